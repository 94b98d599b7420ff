//! Loaders on nodes that hold less than half of the data: shards come ahead of them and go behind them.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::harness::{Cluster, DATASET, Socket, until};

const SHARDS: usize = 24;
const SHARD_BYTES: usize = 256 << 10;
/// Ten shards on each of three nodes: all of them together can hold every byte, and a quarter more.
const CAPACITY: &str = "2560KiB";
const HELD: usize = 10;

fn key(shard: usize) -> String {
    format!("shard-{shard:02}")
}

/// Another order on each node, in which every shard comes once.
fn order(node: usize) -> Vec<usize> {
    let step = [5, 7, 11][node];
    (0..SHARDS).map(|i| (i * step + node) % SHARDS).collect()
}

/// Reads everything once, as a loader does; what it read.
fn read_all(mut agent: Socket, node: usize) -> Vec<(String, Vec<u8>)> {
    let keys: Vec<String> = order(node).into_iter().map(key).collect();
    // In parts, as for orders that do not fit into one line.
    let (first, rest) = keys.split_at(10);
    let said = agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "upcoming": first}));
    assert_eq!(said["announced"], 10, "{said}");
    let more = json!({"op": "reader", "dataset": DATASET, "reader": "r", "upcoming": rest, "append": true});
    assert_eq!(agent.ask(more)["ok"], true);
    let mut read = Vec::new();
    for key in keys {
        let got = agent.ask(json!({"op": "fetch", "dataset": DATASET, "key": key, "timeout_ms": 90_000}));
        let path = got["path"].as_str().unwrap_or_else(|| panic!("node {node}, {key}: {got}"));
        read.push((key.clone(), fs::read(path).unwrap()));
        let said = agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "finished": [key]}));
        assert_eq!(said["ok"], true, "{said}");
    }
    read
}

#[test]
fn a_cold_epoch_with_little_room_reads_the_origin_once() {
    let cluster = Cluster::builder(3).agent_argument("--capacity").agent_argument(CAPACITY).start();
    for shard in 0..SHARDS {
        cluster.put_seeded(&key(shard), shard as u64 + 1, SHARD_BYTES);
    }
    cluster.add();
    cluster.cli_ok(&["stage", DATASET, "--placement", "window", "--wait", "--timeout", "60s"]);
    until("the version is open on every node", || {
        (0..3).all(|i| cluster.socket(i).ask(json!({"op": "reader", "dataset": DATASET, "reader": "x"}))["ok"] == true)
    });
    // One that announces everything and goes away holds nothing back.
    let all: Vec<String> = (0..SHARDS).map(key).collect();
    let said = cluster.socket(0).ask(json!({"op": "reader", "dataset": DATASET, "reader": "y", "upcoming": all}));
    assert_eq!(said["ok"], true, "{said}");

    let agents: Vec<Socket> = (0..3).map(|i| cluster.socket(i)).collect();
    let loaders: Vec<_> =
        agents.into_iter().enumerate().map(|(node, agent)| std::thread::spawn(move || read_all(agent, node))).collect();
    for loader in loaders {
        let read = loader.join().unwrap();
        assert_eq!(read.iter().map(|(key, _)| key).collect::<BTreeSet<_>>().len(), SHARDS);
        for (key, bytes) in read {
            assert!(bytes == cluster.expected(&key), "{key} has other bytes");
        }
    }
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    println!("origin bytes / dataset bytes: {:.3}", read / size);
    assert!(read <= 1.05 * size, "the origin sent {read} bytes of {size}");
    for i in 0..3 {
        let dropped = cluster.agent_metrics(i)["millstream_evictions_total{cause=\"window\"}"];
        assert!(dropped >= (SHARDS - HELD) as f64, "node {i} dropped {dropped} shards");
        // What a reader waits for comes in any case; who goes for it may need the origin's word first.
        until("the node is within its quota", || {
            let held = &cluster.socket(i).ask(json!({"op": "status"}))["disk"];
            let bytes = held["used_bytes"].as_u64().unwrap() + held["partial_bytes"].as_u64().unwrap();
            bytes <= (HELD * SHARD_BYTES) as u64
        });
    }
}

#[test]
fn what_is_leased_stays_where_it_is() {
    let cluster = Cluster::builder(1).agent_argument("--capacity").agent_argument(CAPACITY).start();
    for shard in 0..SHARDS {
        cluster.put_seeded(&key(shard), shard as u64 + 1, SHARD_BYTES);
    }
    cluster.add();
    cluster.cli_ok(&["stage", DATASET, "--placement", "window", "--wait", "--timeout", "60s"]);
    let mut agent = cluster.socket(0);
    until("the version is open", || {
        agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r"}))["ok"] == true
    });
    let keys: Vec<String> = (0..SHARDS).map(key).collect();
    let all_at_once = json!({"op": "reader", "dataset": DATASET, "reader": "all", "upcoming": keys, "open": HELD + 1});
    let refused = agent.ask(all_at_once);
    assert_eq!(refused["code"], 7, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("2.75 MiB"), "{refused}");
    agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "upcoming": keys, "open": 1}));
    let first = agent.ask(json!({"op": "fetch", "dataset": DATASET, "key": keys[0]}));
    let path = first["path"].as_str().unwrap().to_owned();
    let mut holder = cluster.socket(0);
    assert_eq!(holder.ask(json!({"op": "lease", "dataset": DATASET}))["ok"], true);
    // So many shards fit; behind the reader nothing goes while somebody holds a lease.
    let mut there = 1;
    let stuck = loop {
        let finished = &keys[there - 1..there];
        agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "finished": finished}));
        let next = json!({"op": "fetch", "dataset": DATASET, "key": keys[there], "timeout_ms": 1500});
        let got = agent.ask(next);
        if got["ok"] != true {
            break got;
        }
        there += 1;
    };
    assert_eq!((&stuck["code"], there), (&json!(4), HELD), "{stuck}");
    assert!(fs::metadata(&path).is_ok());
    drop(holder);
    let came = agent.ask(json!({"op": "fetch", "dataset": DATASET, "key": keys[there], "timeout_ms": 90_000}));
    assert_eq!(came["ok"], true, "{came}");
}
