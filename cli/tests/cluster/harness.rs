//! A cluster under test: `Cluster::start(3)`, `put`, `add`, `stage_and_wait`, `agent(1).kill9()`, `assert_identical`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream_sim_s3::{ObjectOptions, S3Server, S3ServerGuard, Seeded, ServerConfig, ServerHandle};
use serde_json::Value;

use crate::network::{HUB, Network};
use crate::seccomp::refuse_io_uring;
use crate::watcher::Watcher;

/// Long enough for a loaded machine; a wait that ends in time costs nothing.
pub const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// The version that every test stages.
pub const DATASET: &str = "d@v1";
const BUCKET: &str = "data";
const PREFIX: &str = "d/";

/// What every shard must be, by key.
pub type Expected = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// How a cluster is to be.
pub struct Builder {
    nodes: usize,
    agent_arguments: Vec<String>,
    agent_environment: BTreeMap<usize, Vec<(String, String)>>,
    agent_wrapper: BTreeMap<usize, Vec<String>>,
    versioned: bool,
    refused_io_uring: Vec<usize>,
    networked: bool,
}

impl Builder {
    /// One more argument for every agent.
    pub fn agent_argument(mut self, argument: &str) -> Builder {
        self.agent_arguments.push(argument.into());
        self
    }

    /// An environment variable for one agent, such as a fault to serve with.
    pub fn agent_env(mut self, agent: usize, name: &str, value: &str) -> Builder {
        self.agent_environment.entry(agent).or_default().push((name.into(), value.into()));
        self
    }

    /// A program that starts one agent, such as `prlimit` with its arguments; it must become it (`exec`).
    #[allow(dead_code)] // the tests with RDMA use it
    pub fn agent_wrapper(mut self, agent: usize, command: &[&str]) -> Builder {
        self.agent_wrapper.insert(agent, command.iter().map(|&word| word.to_owned()).collect());
        self
    }

    /// The origin's buckets keep versions.
    pub fn versioned(mut self) -> Builder {
        self.versioned = true;
        self
    }

    /// The kernel refuses io_uring to one agent.
    pub fn refuse_io_uring(mut self, agent: usize) -> Builder {
        self.refused_io_uring.push(agent);
        self
    }

    /// Each agent is behind a link of its own, in a network of this test's.
    pub fn networked(mut self) -> Builder {
        self.networked = true;
        self
    }

    /// Starts it; all agents are up at the coordinator when this returns.
    pub fn start(self) -> Cluster {
        Cluster::new(self)
    }
}

/// A daemon that can be killed and started again.
pub struct Daemon {
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    dir: PathBuf,
    place: Place,
    child: Option<Child>,
    ready: Value,
}

/// What is particular about where a daemon runs.
#[derive(Clone, Default)]
struct Place {
    /// Words before the command.
    enter: Vec<String>,
    refuse_io_uring: bool,
}

impl Daemon {
    fn start(
        name: &str,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        dir: &Path,
        place: Place,
    ) -> Daemon {
        let (name, dir) = (name.to_owned(), dir.to_owned());
        let mut daemon = Daemon { name, arguments, environment, dir, place, child: None, ready: Value::Null };
        daemon.restart();
        daemon
    }

    /// Starts it with the same arguments; it is ready when this returns.
    pub fn restart(&mut self) {
        self.spawn();
        let path = self.dir.join(format!("{}.ready", self.name));
        until(&format!("{} is ready", self.name), || {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().unwrap()) {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            path.exists()
        });
        self.ready = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    }

    /// Starts it again with another value of an argument.
    pub fn restart_with(&mut self, argument: &str, value: &str) {
        let at = self.arguments.iter().position(|a| a == argument).unwrap();
        self.arguments[at + 1] = value.into();
        self.restart();
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let ready = self.dir.join(format!("{}.ready", self.name));
        let _ = fs::remove_file(&ready);
        let log = File::options().append(true).create(true).open(self.log_path()).unwrap();
        let mut command = millstream_from(&self.place.enter);
        if self.place.refuse_io_uring {
            refuse_io_uring(&mut command);
        }
        let child = command
            .args(&self.arguments)
            .arg("--ready-file")
            .arg(&ready)
            .args(["--parent", &std::process::id().to_string()])
            .envs(self.environment.iter().cloned())
            .env("MILLSTREAM_LOG", std::env::var("CLUSTER_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// SIGKILL, at once.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
        let mut status = None;
        until(&format!("{} stops", self.name), || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// SIGSTOP: alive, and silent.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Everything that it logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Where it listens: `grpc`, `http` or `listen`.
    pub fn address(&self, which: &str) -> String {
        self.ready_text(which)
    }

    fn ready_text(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap_or_else(|| panic!("{key} is missing in {}", self.ready)).to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Gone already: nothing to stop.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A coordinator, agents, an origin, and what the files must be.
pub struct Cluster {
    // Dropped in this order: the watcher first, the directory last.
    watcher: Watcher,
    agents: Vec<Daemon>,
    coordinator: Daemon,
    s3: S3ServerGuard,
    network: Option<Network>,
    expected: Expected,
    url: String,
    aws: Vec<(String, String)>,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// A coordinator and that many agents, all up.
    pub fn start(nodes: usize) -> Cluster {
        Cluster::builder(nodes).start()
    }

    /// The same, with more to say.
    pub fn builder(nodes: usize) -> Builder {
        Builder {
            nodes,
            agent_arguments: Vec::new(),
            agent_environment: BTreeMap::new(),
            versioned: false,
            agent_wrapper: BTreeMap::new(),
            refused_io_uring: Vec::new(),
            networked: false,
        }
    }

    fn new(builder: Builder) -> Cluster {
        // Before anything is started: what this thread starts is where this thread is.
        let network = builder.networked.then(|| Network::enter(builder.nodes));
        let hub = if network.is_some() { HUB } else { "127.0.0.1" };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listen = format!("{hub}:0").parse().unwrap();
        let config = ServerConfig { versioned: builder.versioned, listen, ..ServerConfig::default() };
        let s3 = runtime.block_on(S3Server::start(config)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let aws = [
            ("AWS_ENDPOINT_URL", s3.endpoint()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ALLOW_HTTP", "true".into()),
        ];
        let aws: Vec<(String, String)> = aws.map(|(k, v)| (k.to_owned(), v)).into();
        let state = dir.path().join("state").to_string_lossy().into_owned();
        let grpc = format!("{hub}:{}", fixed_port());
        let arguments = ["coordinator", "--grpc", &grpc, "--http", "127.0.0.1:0", "--state-dir", &state];
        let arguments = arguments.map(str::to_owned).into();
        let coordinator = Daemon::start("coordinator", arguments, aws.clone(), dir.path(), Place::default());
        let url = format!("http://{grpc}");
        let mut agents: Vec<Daemon> = Vec::new();
        let mut roots = Vec::new();
        for i in 0..builder.nodes {
            let name = node_name(i);
            let data = dir.path().join(&name);
            let data_text = data.to_string_lossy();
            let listen = network.as_ref().map_or("127.0.0.1:0".into(), |_| format!("{}:0", Network::address(i)));
            let mut arguments: Vec<String> = [
                "agent",
                "--node",
                &name,
                "--coordinator",
                &url,
                "--data-dir",
                &data_text,
                "--listen",
                &listen,
                "--http",
                &listen,
                "--buffers",
                "64MiB",
                "--capacity",
                "4GiB",
                "--scrub-rate",
                "0",
            ]
            .map(str::to_owned)
            .into();
            for given in builder.agent_arguments.iter().filter(|a| a.starts_with("--")) {
                // What a test gives replaces the default and its value.
                if let Some(at) = arguments.iter().position(|a| a == given) {
                    arguments.drain(at..at + 2);
                }
            }
            arguments.extend(builder.agent_arguments.iter().cloned());
            let mut environment = aws.clone();
            environment.extend(builder.agent_environment.get(&i).cloned().unwrap_or_default());
            let mut enter = network.as_ref().map(|n| n.on(i)).unwrap_or_default();
            enter.extend(builder.agent_wrapper.get(&i).cloned().unwrap_or_default());
            let place = Place { enter, refuse_io_uring: builder.refused_io_uring.contains(&i) };
            agents.push(Daemon::start(&name, arguments, environment, dir.path(), place));
            roots.push(data.join("datasets"));
        }
        let expected = Expected::default();
        let watcher = Watcher::start(roots, DATASET, expected.clone());
        let cluster = Cluster { watcher, agents, coordinator, s3, network, expected, url, aws, dir, _runtime: runtime };
        cluster.until_status("all agents are up", |s| up(s) == builder.nodes);
        cluster
    }

    /// The origin: faults, rate, counters.
    pub fn s3(&self) -> &ServerHandle {
        &self.s3
    }

    /// The links of a networked cluster.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("it is networked")
    }

    /// The coordinator's process.
    pub fn coordinator(&mut self) -> &mut Daemon {
        &mut self.coordinator
    }

    /// An agent's process.
    pub fn agent(&mut self, i: usize) -> &mut Daemon {
        &mut self.agents[i]
    }

    /// Where the coordinator answers clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where an agent keeps everything.
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(node_name(i))
    }

    /// Where the version becomes visible on a node.
    pub fn root(&self, i: usize) -> PathBuf {
        self.data_dir(i).join("datasets").join(DATASET)
    }

    /// Puts an object below the dataset's prefix.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        self.s3.put_bytes(BUCKET, &format!("{PREFIX}{key}"), bytes.clone(), ObjectOptions::default()).unwrap();
        self.expected.lock().unwrap().insert(key.to_owned(), bytes);
    }

    /// Puts an object of pseudo-random bytes.
    pub fn put_seeded(&self, key: &str, seed: u64, len: usize) {
        let path = format!("{PREFIX}{key}");
        self.s3.put_seeded(BUCKET, &path, seed, len as u64, ObjectOptions::default()).unwrap();
        self.expected.lock().unwrap().insert(key.to_owned(), Seeded::new(seed).bytes(len));
    }

    /// Registers what was put, as [`DATASET`].
    pub fn add(&self) {
        let url = format!("s3://{BUCKET}/{PREFIX}");
        self.cli_ok(&["dataset", "add", "d", &url, "--version", "v1"]);
    }

    /// What a shard must be.
    pub fn expected(&self, key: &str) -> Vec<u8> {
        self.expected.lock().unwrap()[key].clone()
    }

    /// Bytes of the dataset.
    pub fn bytes(&self) -> u64 {
        self.expected.lock().unwrap().values().map(|b| b.len() as u64).sum()
    }

    /// Bytes of bodies that the origin sent.
    pub fn origin_bytes(&self) -> u64 {
        self.s3.stats().snapshot().bytes_sent
    }

    /// Stages on all nodes, without waiting.
    pub fn stage(&self) {
        self.cli_ok(&["stage", DATASET]);
    }

    /// Waits until it is ready on `nodes` ("all", or names with commas).
    pub fn wait(&self, nodes: &str) {
        let timeout = format!("{}s", DEADLINE.as_secs());
        self.cli_ok(&["wait", DATASET, "--nodes", nodes, "--timeout", &timeout]);
    }

    /// Stages on all nodes and waits until it is ready there.
    pub fn stage_and_wait(&self) {
        let timeout = format!("{}s", DEADLINE.as_secs());
        self.cli_ok(&["stage", DATASET, "--wait", "--timeout", &timeout]);
    }

    /// Every node has every shard, with the right bytes, read-only, and nothing else.
    pub fn assert_identical(&self) {
        for i in 0..self.agents.len() {
            self.assert_node(i);
        }
    }

    /// The same for one node.
    pub fn assert_node(&self, i: usize) {
        let root = self.root(i);
        let expected = self.expected.lock().unwrap();
        for (key, bytes) in &*expected {
            let path = root.join(key);
            let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(found == *bytes, "{} has other bytes than the origin", path.display());
        }
        self.watcher.check();
    }

    /// From now on the test itself damages visible files, or brings others: the watcher stops judging them.
    pub fn stop_watching(&self) {
        self.watcher.check();
        self.watcher.retire();
    }

    /// The status document; `None` while the coordinator does not answer.
    pub fn status(&self) -> Option<Value> {
        let output = self.cli(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// A node's own status, from its socket.
    #[allow(dead_code)] // the tests with RDMA use it
    pub fn own_status(&self, i: usize) -> Value {
        ask_socket(Path::new(&self.agents[i].ready_text("socket")), &serde_json::json!({"op": "status"}))
    }

    /// Polls until the status document says so.
    pub fn until_status(&self, what: &str, probe: impl Fn(&Value) -> bool) {
        until(what, || self.status().is_some_and(|s| probe(&s)));
    }

    /// Polls until this share of all nodes' bytes has arrived: the middle of a transfer.
    pub fn until_share(&self, share: f64) {
        let wanted = self.bytes() as f64 * self.agents.len() as f64 * share;
        self.until_status(&format!("{share} of all bytes have arrived"), |s| bytes_ready(s) as f64 >= wanted);
    }

    /// Runs a client verb.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        millstream().args(arguments).env("MILLSTREAM_COORDINATOR", &self.url).output().unwrap()
    }

    /// Writes an index beside the data, as a person would.
    pub fn index_at(&self, url: &str) -> bool {
        let mut command = millstream();
        command.args(["dataset", "index", url]).envs(self.aws.iter().cloned());
        command.output().unwrap().status.success()
    }

    /// All series of the coordinator's `/metrics`.
    pub fn coordinator_metrics(&self) -> BTreeMap<String, f64> {
        metrics_at(&self.coordinator.ready_text("http"))
    }

    /// All series of an agent's `/metrics`.
    pub fn agent_metrics(&self, i: usize) -> BTreeMap<String, f64> {
        metrics_at(&self.agents[i].ready_text("http"))
    }

    /// Runs a client verb against one node's agent as well.
    pub fn cli_at(&self, i: usize, arguments: &[&str]) -> Output {
        let socket = self.agents[i].ready_text("socket");
        let mut command = millstream();
        command.args(arguments).env("MILLSTREAM_COORDINATOR", &self.url).env("MILLSTREAM_SOCKET", socket);
        command.output().unwrap()
    }

    /// Runs a client verb against one node's agent, started by another program.
    #[allow(dead_code)] // the tests with RDMA use it
    pub fn wrapped_at(&self, i: usize, wrapper: &[&str], arguments: &[&str]) -> Output {
        let wrapper: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
        let socket = self.agents[i].ready_text("socket");
        let mut command = millstream_from(&wrapper);
        command.args(arguments).env("MILLSTREAM_COORDINATOR", &self.url).env("MILLSTREAM_SOCKET", socket);
        command.output().unwrap()
    }

    /// A document of the coordinator's HTTP API.
    #[allow(dead_code)] // the tests with RDMA use it
    pub fn get(&self, path: &str) -> Value {
        serde_json::from_str(&get(&self.coordinator.ready_text("http"), path)).unwrap()
    }

    /// A connection to one node's Unix socket.
    pub fn socket(&self, i: usize) -> Socket {
        Socket(BufReader::new(UnixStream::connect(self.agents[i].ready_text("socket")).unwrap()))
    }

    /// Runs a client verb that must succeed.
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {:?} {error}", output.status.code());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// One question to the socket of an agent.
#[allow(dead_code)] // the tests with RDMA use it
pub fn ask_socket(path: &Path, request: &Value) -> Value {
    Socket(BufReader::new(UnixStream::connect(path).unwrap())).ask(request.clone())
}

/// A conversation with an agent, as a trainer has it.
pub struct Socket(BufReader<UnixStream>);

impl Socket {
    /// One request, and the reply to it; progress on the way is left out.
    pub fn ask(&mut self, request: Value) -> Value {
        writeln!(self.0.get_mut(), "{request}").unwrap();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let reply: Value = serde_json::from_str(&line).unwrap();
            if reply.get("ok").is_some() {
                return reply;
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(status) = self.status() {
                eprintln!("--- status\n{status}");
            }
            for daemon in std::iter::once(&self.coordinator).chain(&self.agents) {
                let log = daemon.log();
                let lines: Vec<&str> = log.lines().collect();
                // Who asks for more logs wants to see all of them.
                let shown = if std::env::var_os("CLUSTER_LOG").is_some() { usize::MAX } else { 40 };
                eprintln!("--- {}\n{}", daemon.name, lines[lines.len().saturating_sub(shown)..].join("\n"));
            }
        } else {
            self.watcher.check();
        }
    }
}

/// The body at a path of an HTTP port.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()
}

/// The samples at an HTTP port, by series (name and labels).
fn metrics_at(address: &str) -> BTreeMap<String, f64> {
    let text = get(address, "/metrics");
    let samples = text.lines().filter(|l| l.starts_with("millstream_")).filter_map(|l| l.rsplit_once(' '));
    samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// `node1`, `node2`, …
pub fn node_name(i: usize) -> String {
    format!("node{}", i + 1)
}

fn up(status: &Value) -> usize {
    status["nodes"].as_array().map_or(0, |nodes| nodes.iter().filter(|n| n["state"] == "up").count())
}

/// Bytes of [`DATASET`] on all nodes.
pub fn bytes_ready(status: &Value) -> u64 {
    let datasets = status["datasets"].as_array().into_iter().flatten();
    let of_dataset = datasets.filter(|d| d["name"] == "d" && d["version"] == "v1");
    of_dataset.flat_map(|d| d["nodes"].as_array().into_iter().flatten()).filter_map(|n| n["bytes_ready"].as_u64()).sum()
}

/// Polls a condition; panics with its name when it does not come true.
pub fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !probe() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// The binary, without settings of the machine that the tests run on.
pub fn millstream() -> Command {
    millstream_from(&[])
}

/// The same, started by way of another command.
fn millstream_from(enter: &[String]) -> Command {
    let mut words = enter.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_millstream")]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MILLSTREAM_") || text.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
}

/// A free port outside the range that the kernel takes source ports from: a restarted coordinator gets it again, and
/// an agent that tries to reach it meanwhile cannot connect to itself.
fn fixed_port() -> u16 {
    let start = 10_000 + (std::process::id() % 10_000) as u16;
    (start..32_000).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}
