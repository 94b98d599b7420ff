//! Two machines joined by two cables, `rxe1` and `rxe2` on each: the left one has the coordinator, the origin and an
//! agent, and decides; the right one has an agent, and does what it is told. `scripts/rdma-guest` starts one of these
//! tests in each machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use millstream_sim_s3::{ObjectOptions, S3Server, Seeded, ServerConfig};
use millstream_types::limits::PIECE_BYTES_MIN;
use serde_json::{Value, json};

use crate::harness::{ask_socket, millstream};

const COORDINATOR: &str = "http://10.9.1.1:7070";
const LEFT_S3: &str = "10.9.1.1:9000";
const ORDERS: &str = "10.9.1.1:9001";
const SHARDS: u64 = 3;
const SHARD_BYTES: usize = 2_000_000;
/// Two emulated machines with one processor each, on a host that may be busy.
const DEADLINE: Duration = Duration::from_secs(240);

fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !probe() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already: nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_origin(mut command: Command) -> Command {
    command.env("AWS_ENDPOINT_URL", format!("http://{LEFT_S3}")).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("AWS_REGION", "us-east-1");
    command
}

fn agent(node: &str, address: &str, dir: &Path) -> Running {
    let mut command = with_origin(millstream());
    command.args(["agent", "--node", node, "--coordinator", COORDINATOR, "--listen", &format!("{address}:7072")]);
    command.args(["--http", "off", "--buffers", "64MiB", "--capacity", "1GiB", "--data-dir"]);
    Running(command.arg(dir.join(node)).spawn().unwrap())
}

fn shell(line: &str) {
    assert!(Command::new("bash").args(["-ec", line]).status().unwrap().success(), "{line}");
}

fn client(arguments: &[&str]) -> Option<String> {
    let output = millstream().args(arguments).env("MILLSTREAM_COORDINATOR", COORDINATOR).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn status() -> Option<Value> {
    client(&["status", "--json"]).map(|text| serde_json::from_str(&text).unwrap())
}

fn is_up(status: &Value, name: &str) -> bool {
    status["nodes"].as_array().unwrap().iter().any(|n| n["node"] == name && n["state"] == "up")
}

/// The datasets are numbered: the first of some shards, then small ones.
const DATASETS: u64 = 120;

fn shards(dataset: u64) -> u64 {
    if dataset == 0 { SHARDS } else { 1 }
}

fn seed(dataset: u64, shard: u64) -> u64 {
    dataset << 8 | shard
}

fn has_all(dir: &Path, node: &str, dataset: u64) -> bool {
    let root = dir.join(node).join(format!("datasets/d{dataset}@v1"));
    (0..shards(dataset)).all(|i| {
        let wanted = Seeded::new(seed(dataset, i)).bytes(SHARD_BYTES);
        fs::read(root.join(format!("{i}.tar"))).is_ok_and(|bytes| bytes == wanted)
    })
}

/// The right machine, as the left one sees it.
struct Right(BufReader<TcpStream>);

impl Right {
    fn tell(&mut self, order: &Value) -> Value {
        writeln!(self.0.get_mut(), "{order}").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{order}: {e}: {line:?}"))
    }

    fn shell(&mut self, line: &str) {
        self.tell(&json!({"shell": line}));
    }

    /// What its agent says of a device.
    fn device(&mut self, name: &str) -> Value {
        device(&self.tell(&json!({"status": true})), name)
    }
}

fn device(own: &Value, name: &str) -> Value {
    let devices = own["transport"]["rdma"]["devices"].as_array();
    devices.into_iter().flatten().find(|d| d["device"] == name).cloned().unwrap_or_default()
}

/// Bytes that a device carried in both directions.
fn carried(device: &Value) -> u64 {
    device["received_bytes"].as_u64().unwrap_or(0) + device["sent_bytes"].as_u64().unwrap_or(0)
}

struct Left {
    dir: tempfile::TempDir,
    right: Right,
    datasets: std::ops::Range<u64>,
}

impl Left {
    fn own(&self) -> Value {
        ask_socket(&self.dir.path().join("left/agent.sock"), &json!({"op": "status"}))
    }

    /// What each rail carried, seen from here.
    fn carried(&self, rail: &str) -> u64 {
        carried(&device(&self.own(), rail))
    }

    /// The next dataset, on both nodes.
    fn stage(&mut self) {
        let dataset = self.datasets.next().expect("one of so many");
        let name = format!("d{dataset}");
        assert!(client(&["dataset", "add", &name, &format!("s3://data/{name}/"), "--version", "v1"]).is_some());
        let version = format!("{name}@v1");
        assert!(client(&["stage", &version, "--wait", "--timeout", "200s"]).is_some(), "{:?}", status());
        assert!(has_all(self.dir.path(), "left", dataset), "{name} on the left");
        assert_eq!(self.right.tell(&json!({"has": dataset})), json!(true), "{name} on the right");
    }

    /// Datasets until a rail carries more than it has; what went over TCP meanwhile was counted.
    fn stage_until_it_carries(&mut self, rail: &str) {
        let before = self.carried(rail);
        until(&format!("{rail} carries"), || {
            self.stage();
            self.carried(rail) > before
        });
        self.assert_counted();
    }

    /// Each piece that came over TCP is a fallback with its reason. Both nodes have a device.
    fn assert_counted(&mut self) {
        for own in [self.own(), self.right.tell(&json!({"status": true}))] {
            let fallbacks = own["fallbacks"].as_array().into_iter().flatten();
            let counts = fallbacks.filter(|f| f["from"] == "rdma").map(|f| f["count"].as_u64().unwrap());
            let tcp = own["received_bytes"]["tcp"].as_u64().unwrap();
            assert!(tcp <= counts.sum::<u64>() * PIECE_BYTES_MIN, "{own}");
        }
    }

    /// Bytes that both nodes received by this way.
    fn received(&mut self, way: &str) -> u64 {
        let own = [self.own(), self.right.tell(&json!({"status": true}))];
        own.iter().map(|s| s["received_bytes"][way].as_u64().unwrap()).sum()
    }

    fn fallbacks(&mut self) -> [Value; 2] {
        [self.own(), self.right.tell(&json!({"status": true}))].map(|s| s["fallbacks"].clone())
    }
}

#[test]
#[ignore = "run in one of two joined machines"]
fn pair_left() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = ServerConfig { listen: LEFT_S3.parse().unwrap(), ..ServerConfig::default() };
    let s3 = runtime.block_on(S3Server::start(config)).unwrap();
    for dataset in 0..DATASETS {
        for i in 0..shards(dataset) {
            let (key, bytes) = (format!("d{dataset}/{i}.tar"), SHARD_BYTES as u64);
            s3.put_seeded("data", &key, seed(dataset, i), bytes, ObjectOptions::default()).unwrap();
        }
    }
    let mut coordinator = with_origin(millstream());
    coordinator.args(["coordinator", "--grpc", "10.9.1.1:7070", "--http", "10.9.1.1:0", "--state-dir"]);
    let _coordinator = Running(coordinator.arg(dir.path().join("state")).spawn().unwrap());
    // Both machines give this one the same address, so it leads nowhere.
    shell("rdma link delete rxe0");
    let _agent = agent("left", "10.9.1.1", dir.path());
    let orders = TcpListener::bind(ORDERS).unwrap();
    let right = Right(BufReader::new(orders.accept().unwrap().0));
    let mut left = Left { dir, right, datasets: 0..DATASETS };
    until("both nodes are up", || status().is_some_and(|s| is_up(&s, "left") && is_up(&s, "right")));

    every_byte_goes_over_rdma(&mut left);
    let lost = a_lost_rail_is_left_for_the_other(&mut left);
    let mut right_device = Value::Null;
    left.right.shell(&format!("rdma link add {lost} type rxe netdev eth{}", u8::from(lost == "rxe2")));
    until("the right node uses the rail again", || {
        right_device = left.right.device(lost);
        right_device["state"] == "up"
    });
    println!("pair: {lost} is back on the right: {}", right_device["gid"]);
    left.stage_until_it_carries(lost);
    println!("pair: {lost} carries again; fallbacks {:?}", left.fallbacks());
    a_node_without_a_device_gets_everything_over_tcp(&mut left);
    left.right.tell(&json!({"end": true}));
}

fn every_byte_goes_over_rdma(left: &mut Left) {
    left.stage();
    let all = SHARDS * SHARD_BYTES as u64;
    let (rdma, tcp) = (left.received("rdma"), left.received("tcp"));
    println!("pair: {rdma} bytes over RDMA between two machines, {tcp} over TCP; fallbacks {:?}", left.fallbacks());
    assert_eq!((rdma, tcp), (all, 0), "{:?}", status());
    for rail in ["rxe1", "rxe2"] {
        let (ours, theirs) = (device(&left.own(), rail), left.right.device(rail));
        println!("pair: {rail} carried {} bytes", carried(&ours));
        assert_eq!(carried(&ours), carried(&theirs), "what one sends the other receives, on the same rail");
        assert_eq!((&ours["confirmed"], &theirs["confirmed"]), (&json!(true), &json!(true)), "{ours} {theirs}");
    }
}

/// The right node loses the rail that carried most; both directions move to the other one.
fn a_lost_rail_is_left_for_the_other(left: &mut Left) -> &'static str {
    let first = left.carried("rxe1") >= left.carried("rxe2");
    let (lost, other) = if first { ("rxe1", "rxe2") } else { ("rxe2", "rxe1") };
    left.right.shell(&format!("rdma link delete {lost}"));
    left.stage_until_it_carries(other);
    println!("pair: without {lost} on the right, {other} carries; fallbacks {:?}", left.fallbacks());
    lost
}

fn a_node_without_a_device_gets_everything_over_tcp(left: &mut Left) {
    left.right.tell(&json!({"agent": "stop"}));
    left.right.shell("for r in $(ls /sys/class/infiniband); do rdma link delete $r; done");
    left.right.tell(&json!({"agent": "start"}));
    until("the right node is back", || {
        let s = status();
        s.is_some_and(|s| {
            let right = s["nodes"].as_array().unwrap().iter().find(|n| n["node"] == "right").cloned().unwrap();
            right["state"] == "up" && right["transports"] == json!(["tcp"])
        })
    });
    let before = left.own()["received_bytes"].clone();
    left.stage();
    let (own, theirs) = (left.own(), left.right.tell(&json!({"status": true})));
    assert_eq!(own["received_bytes"]["rdma"], before["rdma"], "nothing comes from it over RDMA");
    assert_eq!(theirs["received_bytes"]["rdma"], 0);
    let both = |from: &str| {
        let [ours, earlier, theirs] =
            [&own["received_bytes"], &before, &theirs["received_bytes"]].map(|b| b[from].as_u64().unwrap());
        ours - earlier + theirs
    };
    let (moved, read) = (both("tcp"), both("origin"));
    // Each has every byte once; a read that seemed to hang may have been given to the other one, too.
    assert_eq!(
        moved + read,
        2 * SHARD_BYTES as u64,
        "every byte between the two goes over TCP: {read} from the origin"
    );
    assert!(2 * moved > SHARD_BYTES as u64, "{moved} of {SHARD_BYTES} bytes came from the other one");
    assert_eq!(theirs["fallbacks"].as_array().map(|f| f.iter().filter(|f| f["from"] == "rdma").count()), Some(0));
    println!("pair: one without a device: {moved} bytes over TCP; fallbacks {:?}", left.fallbacks());
}

#[test]
#[ignore = "run in one of two joined machines"]
fn pair_right() {
    let dir = tempfile::tempdir().unwrap();
    shell("rdma link delete rxe0");
    let mut orders = None;
    until("the left machine is there", || {
        orders = TcpStream::connect(ORDERS).ok();
        orders.is_some()
    });
    let mut orders = BufReader::new(orders.unwrap());
    let start = || Some(agent("right", "10.9.1.2", dir.path()));
    let mut running = start();
    let socket = dir.path().join("right/agent.sock");
    loop {
        let mut line = String::new();
        orders.read_line(&mut line).unwrap();
        let order: Value = serde_json::from_str(&line).unwrap();
        let mut answer = json!(true);
        if let Some(line) = order["shell"].as_str() {
            shell(line);
        } else if order["agent"] == "stop" {
            running = None;
        } else if order["agent"] == "start" {
            running = start();
        } else if let Some(dataset) = order["has"].as_u64() {
            answer = json!(has_all(dir.path(), "right", dataset));
        } else if order["status"] == true {
            answer = ask_socket(&socket, &json!({"op": "status"}));
        }
        writeln!(orders.get_mut(), "{answer}").unwrap();
        if order["end"] == true {
            break;
        }
    }
    drop(running);
}
