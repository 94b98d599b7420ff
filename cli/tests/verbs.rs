//! The real binary against a scripted coordinator: exit codes, output shapes, failover.

// Helpers of tests, outside of `#[test]` functions: a panic is the report.
#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use futures::Stream;
use millstream_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use millstream_proto::v1::*;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A coordinator that says what the name of the dataset tells it to: `unknown`, `conflict`, `late`, `broken`, `full`,
/// and for everything else that all is well.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Vec<String>>>);

fn scripted(dataset: &str) -> Result<(), Status> {
    let (code, number) = match dataset.split('@').next().unwrap_or_default() {
        "unknown" => (tonic::Code::NotFound, 3),
        "conflict" => (tonic::Code::AlreadyExists, 8),
        "denied" => (tonic::Code::PermissionDenied, 9),
        "full" => (tonic::Code::ResourceExhausted, 7),
        _ => return Ok(()),
    };
    let mut status = Status::new(code, format!("{dataset}: because it is {}", dataset));
    status.metadata_mut().insert("millstream-code", number.into());
    Err(status)
}

fn stream<T: Send + 'static>(items: Vec<T>) -> Response<Streamed<T>> {
    Response::new(Box::pin(futures::stream::iter(items.into_iter().map(Ok))))
}

fn info(name: &str) -> DatasetInfo {
    DatasetInfo { name: name.into(), version: "v1".into(), shards: 2, bytes: 10, ..DatasetInfo::default() }
}

#[tonic::async_trait]
impl ClientService for Scripted {
    type AddDatasetStream = Streamed<AddDatasetProgress>;
    type WaitStream = Streamed<WaitProgress>;
    type VerifyStream = Streamed<VerifyProgress>;

    async fn add_dataset(&self, r: Request<AddDatasetRequest>) -> Result<Response<Self::AddDatasetStream>, Status> {
        let name = r.into_inner().name;
        scripted(&name)?;
        let listed = AddDatasetProgress { objects_listed: 2, ..AddDatasetProgress::default() };
        let done = AddDatasetProgress { done: Some(info(&name)), ..AddDatasetProgress::default() };
        Ok(stream(vec![listed, done]))
    }

    async fn list_datasets(&self, _: Request<ListDatasetsRequest>) -> Result<Response<ListDatasetsReply>, Status> {
        Ok(Response::new(ListDatasetsReply { datasets: vec![info("digits")] }))
    }

    async fn show_dataset(&self, r: Request<ShowDatasetRequest>) -> Result<Response<ShowDatasetReply>, Status> {
        let r = r.into_inner();
        scripted(&r.dataset)?;
        let shard = |key: &str| ShardInfo { key: key.into(), len: 5, ..ShardInfo::default() };
        let shards = [shard("a.tar"), shard("b.tar")].into_iter().skip(r.page_offset as usize).take(1).collect();
        Ok(Response::new(ShowDatasetReply { info: Some(info("digits")), shards }))
    }

    async fn remove_dataset(&self, r: Request<RemoveDatasetRequest>) -> Result<Response<RemoveDatasetReply>, Status> {
        let dataset = r.into_inner().dataset;
        scripted(&dataset)?;
        Ok(Response::new(RemoveDatasetReply { removed: vec![dataset] }))
    }

    async fn stage(&self, r: Request<StageRequest>) -> Result<Response<StageReply>, Status> {
        let r = r.into_inner();
        scripted(&r.dataset)?;
        self.0.lock().unwrap().push(r.nodes);
        Ok(Response::new(StageReply { stage: 7, dataset: r.dataset, nodes: vec!["n1".into()], joined_existing: false }))
    }

    async fn wait(&self, r: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let r = r.into_inner();
        scripted(&r.dataset)?;
        let waiting = WaitProgress { state: "waiting".into(), bytes_total: 10, nodes_total: 1, ..Default::default() };
        let mut last = WaitProgress { bytes_ready: 10, nodes_ready: 1, state: "ready".into(), ..waiting.clone() };
        if r.dataset.starts_with("late") {
            return Ok(stream(vec![waiting]));
        }
        if r.dataset.starts_with("broken") {
            last.state = "failed".into();
            last.problem = Some(Problem {
                code: 5,
                message: "bytes do not match".into(),
                key: "a.tar".into(),
                expected: "aa".into(),
                actual: "bb".into(),
                ..Problem::default()
            });
        }
        Ok(stream(vec![waiting, last]))
    }

    async fn pin(&self, r: Request<PinRequest>) -> Result<Response<PinReply>, Status> {
        let dataset = r.into_inner().dataset;
        scripted(&dataset)?;
        Ok(Response::new(PinReply { dataset, nodes: vec!["n1".into()] }))
    }

    async fn evict(&self, r: Request<EvictRequest>) -> Result<Response<EvictReply>, Status> {
        let dataset = r.into_inner().dataset;
        let refused = if dataset == "last" { vec!["n1: the last copy".into()] } else { vec![] };
        Ok(Response::new(EvictReply { dataset, bytes: 3, nodes: vec![], refused }))
    }

    async fn open_job(&self, _: Request<OpenJobRequest>) -> Result<Response<JobReply>, Status> {
        Err(Status::unimplemented("no verb of these tests opens a job"))
    }

    async fn close_job(&self, _: Request<CloseJobRequest>) -> Result<Response<JobReply>, Status> {
        Err(Status::unimplemented("no verb of these tests closes a job"))
    }

    async fn show_job(&self, _: Request<ShowJobRequest>) -> Result<Response<JobReply>, Status> {
        Err(Status::unimplemented("no verb of these tests asks for a job"))
    }

    async fn view(&self, _: Request<ViewRequest>) -> Result<Response<ViewReply>, Status> {
        Err(Status::unimplemented("no verb of these tests asks for a view"))
    }

    async fn verify(&self, r: Request<VerifyDatasetRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let failure = Failure { kind: "mismatch".into(), key: "a.tar".into(), ..Failure::default() };
        let failures = if r.into_inner().dataset == "rotten" { vec![failure] } else { vec![] };
        Ok(stream(vec![VerifyProgress { node: "n1".into(), done: true, failures, ..VerifyProgress::default() }]))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply { json: r#"{"version":"0","nodes":[{"node":"n1","state":"up"}]}"#.into() }))
    }
}

/// The scripted coordinator on a port of its own, and the binary that talks to it.
struct World {
    url: String,
    seen: Scripted,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Scripted::default();
        let service = ClientServiceServer::new(seen.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        World { url, seen, _runtime: runtime }
    }

    fn run(&self, args: &[&str]) -> Output {
        millstream(args).env("MILLSTREAM_COORDINATOR", &self.url).output().unwrap()
    }
}

fn millstream(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MILLSTREAM_") {
            command.env_remove(name);
        }
    }
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn every_refusal_has_its_exit_code_and_says_what_next() {
    let world = World::new();
    for (args, expected) in [
        (&["stage", "fine"][..], 0),
        (&["stage", "unknown@v9"], 3),
        (&["wait", "late", "--nodes", "all", "--timeout", "1s"], 4),
        (&["wait", "broken", "--nodes", "all"], 5),
        (&["stage", "broken", "--wait"], 5),
        (&["stage", "full"], 7),
        (&["evict", "last"], 8),
        (&["dataset", "add", "conflict", "s3://b/p", "--version", "v1"], 8),
        (&["dataset", "add", "denied", "s3://b/p"], 9),
        (&["dataset", "rm", "unknown"], 3),
        (&["pin", "unknown"], 3),
        (&["verify", "rotten"], 5),
        (&["verify", "fine"], 0),
        (&["dataset", "add", "a/b", "s3://b/p"], 2),
        (&["stage", "a b"], 2),
        (&["stage", "fine", "--placement", "everywhere"], 2),
        (&["wait", "fine", "--timeout", "soon"], 2),
        (&["wait", "fine", "--config", "/nowhere.toml"], 2),
        (&["wait", "fine", "--nodes", "n[1-"], 2),
        (&["stage", "ckpt/run@soon"], 2),
        (&["stage", "ckpt/%x@latest"], 2),
        (&["stage", "ckpt/run@latest,priority=5"], 2),
        (&["stage", "ckpt/run@7"], 3),
        (&["wait", "ckpt/run@latest", "--nodes", "all"], 3),
        (&["no-such-verb"], 2),
        (&[], 2),
    ] {
        let output = world.run(args);
        assert_eq!(code(&output), expected, "{args:?}: {}", stderr(&output));
        if expected > 2 {
            let text = stderr(&output);
            assert_eq!(text.matches("error: ").count(), 1, "{args:?}: {text}");
            assert_eq!(text.matches("\n  next: ").count(), 1, "{args:?}: {text}");
        }
    }
}

#[test]
fn integrity_failures_name_the_shard_and_both_sums() {
    let output = World::new().run(&["wait", "broken", "--nodes", "all"]);
    let text = stderr(&output);
    assert!(text.contains("error: broken: bytes do not match; shard a.tar; expected aa; actual bb"), "{text}");
}

#[test]
fn json_is_all_there_is_on_standard_output() {
    let world = World::new();
    for args in [
        &["dataset", "ls"][..],
        &["dataset", "show", "digits"],
        &["dataset", "add", "digits", "s3://b/p"],
        &["stage", "digits", "--wait"],
        &["status"],
        &["pin", "digits"],
    ] {
        let output = world.run(&[args, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        let document: Value = serde_json::from_str(stdout(&output)).unwrap();
        assert!(document.is_object(), "{args:?}");
    }
    let shown = world.run(&["dataset", "show", "digits", "--json"]);
    let document: Value = serde_json::from_str(stdout(&shown)).unwrap();
    assert_eq!(document["shards"].as_array().unwrap().len(), 2, "both pages");

    let waited = world.run(&["wait", "digits", "--nodes", "all", "--json"]);
    let states: Vec<Value> = stdout(&waited).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(states.iter().map(|s| s["state"].as_str().unwrap()).collect::<Vec<_>>(), ["waiting", "ready"]);
}

#[test]
fn nobody_there_is_exit_6_and_the_next_coordinator_is_tried() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let output = millstream(&["status", "--coordinator", &gone]).output().unwrap();
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains(&gone), "{}", stderr(&output));

    let world = World::new();
    let both = format!("{gone},{}", world.url);
    let output = millstream(&["status", "--json", "--coordinator", &both]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));

    let output = millstream(&["path", "digits", "--socket", "/nowhere/agent.sock"]).output().unwrap();
    assert_eq!(code(&output), 6, "{}", stderr(&output));

    let output = millstream(&["status", "--coordinator", "localhost:7070"]).output().unwrap();
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[test]
fn self_is_this_host_where_no_agent_runs() {
    let world = World::new();
    assert_eq!(code(&world.run(&["stage", "fine", "--nodes", "self"])), 0);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(*world.seen.0.lock().unwrap(), [host]);
}

#[test]
fn settings_that_cannot_be_read_stop_only_jobs_that_ask() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("slurm.toml");
    std::fs::write(&config, "budget = 'soon'").unwrap();
    for (hook, comment, expected) in [
        ("prolog-slurmctld", "nothing of ours", 0),
        ("prolog", "nothing of ours", 0),
        ("prolog-slurmctld", "millstream:d@v", 2),
        ("prolog", "millstream:d@v", 2),
        // Slurm drains a node, or ends a task, for what these say.
        ("epilog", "millstream:d@v", 0),
        ("epilog-slurmctld", "millstream:d@v", 0),
        ("task-prolog", "", 0),
    ] {
        let mut command = millstream(&["slurm", hook, "--slurm-bin", "/nowhere", "--config"]);
        command.arg(&config).envs([("SLURM_JOB_ID", "1"), ("SLURM_JOB_COMMENT", comment), ("SLURMD_NODENAME", "n1")]);
        let output = command.output().unwrap();
        assert_eq!(code(&output), expected, "{hook} {comment}: {}", stderr(&output));
    }
}

#[test]
fn a_closed_pipe_is_silent() {
    use std::process::Stdio;
    let world = World::new();
    let mut child = millstream(&["dataset", "ls"])
        .env("MILLSTREAM_COORDINATOR", &world.url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, ""));
}

#[test]
fn an_interrupt_is_exit_130() {
    // A coordinator that accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut child = millstream(&["wait", "fine", "--nodes", "all", "--coordinator", &url]).spawn().unwrap();
    let _accepted = silent.accept().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn completions_for_three_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = millstream(&["completions", shell]).output().unwrap();
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("coordinator"), "{shell}");
    }
    assert_eq!(code(&millstream(&["--version"]).output().unwrap()), 0);
    assert_eq!(code(&millstream(&["stage", "--help"]).output().unwrap()), 0);
}
