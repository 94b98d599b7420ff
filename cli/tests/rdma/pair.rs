//! Two machines joined by a cable, `rxe1` on each: the left one has the coordinator, the origin and an agent, the
//! right one an agent. `scripts/rdma-guest` starts one of these tests in each machine.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use millstream_sim_s3::{ObjectOptions, S3Server, Seeded, ServerConfig};
use serde_json::Value;

use crate::harness::millstream;

const COORDINATOR: &str = "http://10.9.1.1:7070";
const LEFT_S3: &str = "10.9.1.1:9000";
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

fn agent(node: &str, address: &str, dir: &std::path::Path) -> Running {
    let mut command = with_origin(millstream());
    command.args(["agent", "--node", node, "--coordinator", COORDINATOR, "--listen", &format!("{address}:7072")]);
    command.args(["--http", "off", "--buffers", "64MiB", "--capacity", "1GiB", "--rdma", "rxe1", "--data-dir"]);
    Running(command.arg(dir.join(node)).spawn().unwrap())
}

fn client(arguments: &[&str]) -> Option<String> {
    let output = millstream().args(arguments).env("MILLSTREAM_COORDINATOR", COORDINATOR).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn status() -> Option<Value> {
    client(&["status", "--json"]).map(|text| serde_json::from_str(&text).unwrap())
}

fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|n| n["node"] == name && n["state"] == "up")
}

fn has_all(dir: &std::path::Path, node: &str) -> bool {
    (0..SHARDS).all(|i| {
        let path = dir.join(node).join("datasets/d@v1").join(format!("{i}.tar"));
        fs::read(path).is_ok_and(|bytes| bytes == Seeded::new(i + 1).bytes(SHARD_BYTES))
    })
}

#[test]
#[ignore = "run in one of two joined machines"]
fn pair_left() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = ServerConfig { listen: LEFT_S3.parse().unwrap(), ..ServerConfig::default() };
    let s3 = runtime.block_on(S3Server::start(config)).unwrap();
    for i in 0..SHARDS {
        s3.put_seeded("data", &format!("d/{i}.tar"), i + 1, SHARD_BYTES as u64, ObjectOptions::default()).unwrap();
    }
    let mut coordinator = with_origin(millstream());
    coordinator.args(["coordinator", "--grpc", "10.9.1.1:7070", "--http", "10.9.1.1:0", "--state-dir"]);
    let _coordinator = Running(coordinator.arg(dir.path().join("state")).spawn().unwrap());
    let _agent = agent("left", "10.9.1.1", dir.path());
    until("both nodes are up", || status().is_some_and(|s| node(&s, "left").is_some() && node(&s, "right").is_some()));
    assert!(client(&["dataset", "add", "d", "s3://data/d/", "--version", "v1"]).is_some());
    assert!(client(&["stage", "d@v1", "--wait", "--timeout", "200s"]).is_some(), "{:?}", status());
    assert!(has_all(dir.path(), "left"));
    let all = SHARDS * SHARD_BYTES as u64;
    let received = |s: &Value, way: &str| {
        ["left", "right"]
            .map(|n| {
                s["nodes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|x| x["node"] == n)
                    .and_then(|x| x["received_bytes"][way].as_u64())
                    .unwrap_or(0)
            })
            .iter()
            .sum::<u64>()
    };
    until("all bytes are accounted for", || {
        status().is_some_and(|s| ["origin", "rdma", "tcp"].map(|w| received(&s, w)).iter().sum::<u64>() >= 2 * all)
    });
    let s = status().unwrap();
    println!("{} bytes over RDMA between two machines, {} over TCP", received(&s, "rdma"), received(&s, "tcp"));
    println!("fallbacks: {} {}", s["nodes"][0]["fallbacks"], s["nodes"][1]["fallbacks"]);
    assert_eq!((received(&s, "rdma"), received(&s, "tcp")), (all, 0), "{s}");
    // The right one looks at its own files, then leaves; this one stays until then.
    until("the other has seen it", || status().is_some_and(|s| node(&s, "right").is_none()));
}

#[test]
#[ignore = "run in one of two joined machines"]
fn pair_right() {
    let dir = tempfile::tempdir().unwrap();
    until("the coordinator answers", || status().is_some());
    let _agent = agent("right", "10.9.1.2", dir.path());
    until("everything is here", || has_all(dir.path(), "right"));
    let settled = |s: &Value| {
        let of = |n: &Value| ["origin", "rdma", "tcp"].map(|w| n["received_bytes"][w].as_u64().unwrap_or(0));
        let sum: u64 = s["nodes"].as_array().map_or(0, |all| all.iter().flat_map(of).sum());
        sum >= 2 * SHARDS * SHARD_BYTES as u64
    };
    until("the other has counted", || status().is_some_and(|s| settled(&s)));
}
