//! `demo`: a whole cluster on this machine with real data, and a small training run on what it staged.
//!
//! Participants: an S3 server in this process; a coordinator and agents as [`children`] of it, on ports of their own
//! on loopback; Python for the data and the training. Goals: everything that is claimed at the end was measured, and
//! nothing is left behind, however it ends. Non-goals: speed; `make bench` is for that.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use millstream_proto::v1::{AddDatasetRequest, StageRequest};
use millstream_sim_s3::{BucketConfig, S3Server, S3ServerGuard, ServerConfig};
use millstream_types::size::format_size;
use serde_json::{Value, json};

use crate::args::DemoArgs;
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::{DEMO_STAGE, DEMO_START};
use crate::output;
use crate::signals::shutdown_token;
use crate::verbs::{status, wait};
use children::Children;

mod children;

const DATASET: &str = "digits@v1";
const BUCKET: &str = "demo";
const MAKE_DIGITS: &str = include_str!("../../../scripts/make_digits.py");
const TRAIN_DIGITS: &str = include_str!("../../../scripts/train_digits.py");
/// What the classifier reaches is about 0.95; guessing is 0.1.
const ACCURACY_WANTED: f64 = 0.9;

/// Runs it; stops the children however it ends.
pub async fn run(args: DemoArgs) -> Result<()> {
    let shutdown = shutdown_token()?;
    let (dir, temporary) = match &args.dir {
        Some(dir) => (dir.clone(), false),
        None => (std::env::temp_dir().join(format!("millstream-demo-{}", std::process::id())), true),
    };
    for part in ["origin", "logs", "scripts"] {
        make_dir(&dir.join(part))?;
    }
    let mut children = Children::new(dir.join("logs"));
    let shown = tokio::select! {
        shown = show(&args, &dir, &mut children) => shown,
        () = shutdown.cancelled() => Err(Failure::interrupted()),
    };
    if shown.is_ok() && !args.exit {
        shutdown.cancelled().await;
    }
    children.stop().await;
    match &shown {
        Err(failure) if failure.code != Code::Interrupted => output::note(&format!("logs and data: {}", dir.display())),
        _ if temporary => {
            // Left-overs in the system's temporary directory are harmless.
            let _ = std::fs::remove_dir_all(&dir);
        }
        _ => {}
    }
    shown
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Failure::other(dir.display().to_string(), e).next("choose another --dir"))
}

/// Everything up to and with the summary.
async fn show(args: &DemoArgs, dir: &Path, children: &mut Children) -> Result<()> {
    let made = make_data(args, dir).await?;
    output::note(&format!(
        "1. data: {} images of handwritten digits in {} tar shards",
        made["samples"], made["shards"]
    ));
    let origin = origin(dir).await?;
    output::note(&format!("2. origin: an S3 server at {} with s3://{BUCKET}/", origin.endpoint()));
    let cluster = Cluster::start(args, dir, children, &origin).await?;
    output::note(&format!(
        "3. cluster: a coordinator and {} agents; status page at {}",
        args.nodes, cluster.status_url
    ));

    let session = Session::at(&cluster.coordinator);
    add(&session).await?;
    let staged = stage(&session, args.nodes).await?;
    let origin_bytes = origin.stats().snapshot().bytes_sent;
    let bytes = staged.bytes_total / u64::from(args.nodes);
    let origin_ratio = origin_bytes as f64 / bytes.max(1) as f64;
    output::note(&format!(
        "4. staged: {} on each of {} nodes, verified; {:.2} of it read from the origin in all",
        format_size(bytes),
        staged.nodes_ready,
        origin_ratio
    ));
    let trained = train(args, dir, &cluster.sockets).await?;
    let accuracy = trained["accuracy"].as_f64().unwrap_or(0.0);
    output::note(&format!(
        "5. trained: each node on its share of the samples; accuracy {accuracy:.3} on images not seen"
    ));
    // With the same number of ranks, and with another one.
    let same_order = trained["resumed_same_order"] == true && trained["resumed_on_fewer_ranks_same_order"] == true;
    output::note(&format!(
        "6. resumed from sample {} of an epoch: {}",
        trained["resumed_at_sample"],
        if same_order { "exactly the same order as without the interruption" } else { "ANOTHER order" }
    ));
    let document = status::document(&session, DATASET).await?;
    let stage = document["stages"].as_array().and_then(|s| s.last()).cloned().unwrap_or_default();
    let ok = staged.nodes_ready == u32::from(args.nodes) && accuracy >= ACCURACY_WANTED && same_order;
    if !args.exit {
        output::note("The status page stays up; Ctrl-C stops everything.");
    }
    output::json_line(&json!({
        "ok": ok, "dataset": DATASET, "shards": made["shards"], "bytes": bytes, "nodes_ready": staged.nodes_ready,
        "nodes": args.nodes, "origin_bytes": origin_bytes, "origin_bytes_ratio": (origin_ratio * 1e4).round() / 1e4,
        "stage_s": stage["elapsed_s"], "bound_s": stage["bound_s"], "bound_by": stage["bound_by"],
        "ratio_to_bound": stage["ratio_to_bound"], "accuracy": accuracy, "train_samples": trained["train_samples"],
        "resumed_same_order": same_order, "order_sha256": trained["order_sha256"], "status_url": cluster.status_url,
    }))?;
    if ok {
        return Ok(());
    }
    Err(Failure::other(
        "demo",
        format!("{} nodes ready, accuracy {accuracy}, same order {same_order}", staged.nodes_ready),
    )
    .next("look at the logs named below"))
}

/// Runs one of the demo's scripts; its last line of output is JSON.
async fn python(args: &DemoArgs, dir: &Path, script: (&str, &str), arguments: &[PathBuf]) -> Result<Value> {
    let (name, content) = script;
    let path = dir.join("scripts").join(name);
    std::fs::write(&path, content).map_err(|e| Failure::other(path.display().to_string(), e))?;
    let done = tokio::process::Command::new(&args.python)
        .arg(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| {
            Failure::other(args.python.display().to_string(), e)
                .next("name a Python with scikit-learn and millstream: --python")
        })?;
    let last = String::from_utf8_lossy(&done.stdout).lines().last().and_then(|l| serde_json::from_str(l).ok());
    match last {
        Some(value) if done.status.success() => Ok(value),
        _ => {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            let said = said.lines().last().unwrap_or("it printed nothing").to_owned();
            Err(Failure::other(name, said)
                .next("name a Python with scikit-learn and millstream: --python; `make demo` makes one"))
        }
    }
}

async fn make_data(args: &DemoArgs, dir: &Path) -> Result<Value> {
    python(args, dir, ("make_digits.py", MAKE_DIGITS), &[dir.join("origin").join("digits")]).await
}

async fn train(args: &DemoArgs, dir: &Path, sockets: &[PathBuf]) -> Result<Value> {
    let arguments: Vec<PathBuf> = std::iter::once(PathBuf::from(DATASET)).chain(sockets.iter().cloned()).collect();
    python(args, dir, ("train_digits.py", TRAIN_DIGITS), &arguments).await
}

async fn origin(dir: &Path) -> Result<S3ServerGuard> {
    let bucket = BucketConfig { name: BUCKET.into(), directory: Some(dir.join("origin")) };
    let config = ServerConfig { buckets: vec![bucket], ..ServerConfig::default() };
    S3Server::start(config).await.map_err(|e| Failure::other("the S3 server", e))
}

async fn add(session: &Session) -> Result<()> {
    let url = format!("s3://{BUCKET}/digits/");
    let request =
        AddDatasetRequest { name: "digits".into(), version: "v1".into(), url: url.clone(), ..Default::default() };
    let mut steps = session
        .stream(&url, |mut client| {
            let request = request.clone();
            async move { client.add_dataset(request).await }
        })
        .await?;
    while let Some(step) = steps.message().await.map_err(|s| Failure::from_status(&url, &s))? {
        if step.done.is_some() {
            return Ok(());
        }
    }
    Err(Failure::other(url, "the registration ended without a result"))
}

async fn stage(session: &Session, nodes: u16) -> Result<millstream_proto::v1::WaitProgress> {
    let request = StageRequest {
        dataset: DATASET.into(),
        nodes: "all".into(),
        placement: "replicate".into(),
        ..StageRequest::default()
    };
    let reply = session
        .call(DATASET, |mut client| {
            let request = request.clone();
            async move { client.stage(request).await }
        })
        .await?;
    if reply.nodes.len() != usize::from(nodes) {
        return Err(Failure::other(DATASET, format!("staged on {} of {nodes} nodes", reply.nodes.len())));
    }
    wait::follow(session, DATASET, "all", Some(DEMO_STAGE), |_| Ok(())).await
}

/// Where the parts of the demo's cluster are.
struct Cluster {
    coordinator: String,
    status_url: String,
    sockets: Vec<PathBuf>,
}

impl Cluster {
    async fn start(args: &DemoArgs, dir: &Path, children: &mut Children, origin: &S3ServerGuard) -> Result<Cluster> {
        let environment = [
            ("AWS_ENDPOINT_URL", origin.endpoint()),
            ("AWS_ACCESS_KEY_ID", "demo".into()),
            ("AWS_SECRET_ACCESS_KEY", "demo".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ALLOW_HTTP", "true".into()),
        ];
        let http = format!("127.0.0.1:{}", args.http_port);
        let state = dir.join("coordinator");
        let coordinator =
            ["coordinator", "--grpc", "127.0.0.1:0", "--http", &http, "--state-dir", &state.to_string_lossy()];
        children.spawn("coordinator", &coordinator, &environment)?;
        let ready = children.ready("coordinator", DEMO_START).await?;
        let coordinator = format!("http://{}", text(&ready, "grpc")?);
        let status_url = format!("http://{}/", text(&ready, "http")?);

        let mut sockets = Vec::new();
        let names: Vec<String> = (1..=args.nodes).map(|n| format!("node{n}")).collect();
        for node in &names {
            let data = dir.join(node);
            let (data, listen) = (data.to_string_lossy(), "127.0.0.1:0");
            let agent = [
                "agent",
                "--node",
                node,
                "--coordinator",
                &coordinator,
                "--data-dir",
                &data,
                "--listen",
                listen,
                "--http",
                listen,
                "--buffers",
                "64MiB",
                "--capacity",
                "1GiB",
            ];
            children.spawn(node, &agent, &environment)?;
        }
        for node in &names {
            let ready = children.ready(node, DEMO_START).await?;
            sockets.push(PathBuf::from(text(&ready, "socket")?));
        }
        let cluster = Cluster { coordinator, status_url, sockets };
        cluster.all_up().await?;
        Ok(cluster)
    }

    /// Agents say hello a moment after they are up themselves.
    async fn all_up(&self) -> Result<()> {
        let session = Session::at(&self.coordinator);
        let up = async {
            loop {
                let document = status::document(&session, "").await?;
                let nodes =
                    document["nodes"].as_array().map_or(0, |all| all.iter().filter(|n| n["state"] == "up").count());
                if nodes == self.sockets.len() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(DEMO_START, up).await {
            Ok(result) => result,
            Err(_) => Err(Failure::other("agents", format!("not all known to the coordinator within {DEMO_START:?}"))),
        }
    }
}

fn text(value: &Value, key: &str) -> Result<String> {
    let found = value.get(key).and_then(Value::as_str).map(str::to_owned);
    found.ok_or_else(|| Failure::other(key, format!("is missing in {value}")))
}
