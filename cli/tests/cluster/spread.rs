//! Shards on some of the nodes, and readers on the others that ask for them.

use std::fs;

use millstream_sim_s3::{Fault, FaultKind};
use serde_json::json;

use crate::harness::{Cluster, DATASET, DEADLINE, node_name, until};

const SHARDS: u64 = 8;

fn key(shard: u64) -> String {
    format!("shard-{shard}")
}

fn spread(cluster: &Cluster, copies: u32, nodes: &str) {
    let (placement, timeout) = (format!("spread={copies}"), format!("{}s", DEADLINE.as_secs()));
    let stage = ["stage", DATASET, "--nodes", nodes, "--placement", &placement, "--wait", "--timeout", &timeout];
    cluster.cli_ok(&stage);
}

/// Nodes that show a shard.
fn holders(cluster: &Cluster, nodes: usize, shard: u64) -> Vec<usize> {
    (0..nodes).filter(|&i| cluster.root(i).join(key(shard)).exists()).collect()
}

fn fetch(cluster: &Cluster, node: usize, shard: u64) -> Vec<u8> {
    let output = cluster.cli_at(node, &["path", DATASET, &key(shard), "--fetch", "--timeout", "90s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = String::from_utf8(output.stdout).unwrap();
    assert_eq!(path.trim_end(), cluster.root(node).join(key(shard)).to_string_lossy());
    fs::read(path.trim_end()).unwrap()
}

#[test]
fn shards_are_spread_and_fetched_from_peers_by_those_who_ask() {
    let mut cluster = Cluster::start(4);
    for shard in 0..SHARDS {
        cluster.put_seeded(&key(shard), shard + 1, 700_000);
    }
    cluster.add();
    // The fourth node is in no stage.
    spread(&cluster, 2, "node1,node2,node3");
    let read = cluster.origin_bytes();
    assert!(read as f64 <= 1.02 * cluster.bytes() as f64, "{read}");
    for shard in 0..SHARDS {
        assert_eq!(holders(&cluster, 4, shard).len(), 2, "shard {shard}");
    }
    for node in 0..4 {
        let lacking: Vec<u64> = (0..SHARDS).filter(|&s| !holders(&cluster, 4, s).contains(&node)).collect();
        for &shard in lacking.iter().take(2) {
            assert_eq!(cluster.cli_at(node, &["path", DATASET, &key(shard)]).status.code(), Some(4));
            assert_eq!(fetch(&cluster, node, shard), cluster.expected(&key(shard)));
        }
    }
    assert_eq!(cluster.origin_bytes(), read, "peers had all of it");
    // Answered at once when it is there, by the bare name too; and by name when it cannot be.
    let mut socket = cluster.socket(0);
    let hello = socket.ask(json!({"op": "hello"}));
    assert!(hello["features"].as_array().unwrap().contains(&json!("fetch")), "{hello}");
    let here = (0..SHARDS).find(|&s| holders(&cluster, 4, s).contains(&0)).unwrap();
    let reply = socket.ask(json!({"op": "fetch", "dataset": "d", "key": key(here), "timeout_ms": 0}));
    assert_eq!((&reply["ok"], &reply["dataset"]), (&json!(true), &json!(DATASET)));
    let code = |reply: serde_json::Value| reply["code"].as_u64();
    assert_eq!(code(socket.ask(json!({"op": "fetch", "dataset": "d", "key": "nothing"}))), Some(3));
    assert_eq!(code(socket.ask(json!({"op": "fetch", "dataset": "e", "key": "nothing"}))), Some(3));

    // When nobody has it any more, the origin does.
    let lost = (0..SHARDS).find(|&s| !holders(&cluster, 4, s).contains(&3)).unwrap();
    let gone: Vec<usize> = holders(&cluster, 4, lost);
    for &node in &gone {
        cluster.agent(node).kill9();
    }
    cluster.until_status("the holders are given up", |s| {
        gone.iter()
            .all(|&n| s["nodes"].as_array().unwrap().iter().any(|x| x["node"] == *node_name(n) && x["state"] == "down"))
    });
    assert_eq!(fetch(&cluster, 3, lost), cluster.expected(&key(lost)));
    assert!(cluster.origin_bytes() > read);
    for &node in &gone {
        cluster.agent(node).restart();
    }
}

#[test]
fn a_fetch_ends_in_time_and_does_not_overfill() {
    let cluster = Cluster::builder(2).agent_argument("--capacity").agent_argument("1MiB").start();
    cluster.put_seeded("a", 1, 600_000);
    cluster.put_seeded("b", 2, 600_000);
    cluster.add();
    let slow_down = FaultKind::Status { status: 503, retry_after_s: None };
    let throttled = cluster.s3().faults().add(Fault::on_get("*", slow_down)).unwrap();
    let late = cluster.cli_at(0, &["path", DATASET, "a", "--fetch", "--timeout", "300ms"]);
    let error = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(4), "{error}");
    assert!(error.contains("\"a\" of d@v1 is not on node node1 within 300ms"), "{error}");
    cluster.s3().faults().remove(throttled);
    assert_eq!(fs::read(path_of(&cluster, "a")).unwrap(), cluster.expected("a"));
    let full = cluster.cli_at(0, &["path", DATASET, "b", "--fetch"]);
    let error = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(7), "{error}");
    assert!(error.contains("\"b\" of d@v1 does not fit on node1"), "{error}");
    // Evicted, it can be asked for anew.
    assert!(cluster.cli(&["evict", DATASET, "--nodes", "node1"]).status.success());
    until("it is gone", || !cluster.root(0).exists());
    path_of(&cluster, "b");
}

fn path_of(cluster: &Cluster, key: &str) -> String {
    let output = cluster.cli_at(0, &["path", DATASET, key, "--fetch", "--timeout", "90s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}
