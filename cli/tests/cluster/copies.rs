//! What may be dropped, and what may not: evictions against the real origin and the real copies of other nodes.

use std::process::Output;

use millstream_sim_s3::ObjectOptions;
use serde_json::{Value, json};

use crate::harness::{Cluster, DATASET};

fn staged(cluster: Cluster) -> Cluster {
    for i in 0..3u64 {
        cluster.put_seeded(&format!("shard-{i}"), i + 1, 300_000);
    }
    cluster.put("empty", Vec::new());
    cluster.add();
    cluster.stage_and_wait();
    cluster
}

fn evict(cluster: &Cluster, nodes: &str) -> Output {
    cluster.cli(&["evict", DATASET, "--nodes", nodes])
}

fn refused_for(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{error}");
    assert!(words.iter().all(|w| error.contains(w)), "{error}");
}

#[test]
fn what_the_origin_still_holds_may_go_everywhere() {
    let cluster = staged(Cluster::start(2));
    assert!(evict(&cluster, "all").status.success());
    assert!(!cluster.root(0).exists() && !cluster.root(1).exists());
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn the_last_copy_of_a_changed_or_lost_object_stays() {
    let cluster = staged(Cluster::start(2));
    cluster.s3().put_bytes("data", "d/shard-1", "something else", ObjectOptions::default()).unwrap();
    // The other node keeps a copy.
    assert!(evict(&cluster, "node1").status.success());
    refused_for(&evict(&cluster, "node2"), &["node2", "last copy of \"shard-1\"", "changed since", "dataset rm"]);
    let reply = cluster.socket(1).ask(json!({"op": "evict", "dataset": DATASET}));
    assert_eq!((reply["ok"].as_bool(), reply["code"].as_u64()), (Some(false), Some(8)), "{reply}");
    cluster.assert_node(1);

    cluster.s3().delete("data", "d/shard-2");
    refused_for(&evict(&cluster, "all"), &["\"shard-1\" and of 1 more shards"]);
    cluster.assert_node(1);

    // What the origin no longer has, the node that kept it gives to the other; then it may go.
    cluster.stage_and_wait();
    cluster.assert_identical();
    let reply = cluster.socket(1).ask(json!({"op": "evict", "dataset": DATASET}));
    assert_eq!((reply["ok"].as_bool(), reply["bytes"].as_u64()), (Some(true), Some(900_000)), "{reply}");
    assert!(!cluster.root(1).exists());
    // Of all that are asked to drop it, one keeps it.
    cluster.stage_and_wait();
    refused_for(&evict(&cluster, "all"), &["node1: it has the last copy"]);
    assert!(cluster.root(0).exists() && !cluster.root(1).exists());
    assert!(cluster.cli(&["dataset", "rm", DATASET]).status.success());
}

#[test]
fn a_bucket_that_keeps_versions_is_read_as_it_was_registered() {
    let cluster = Cluster::builder(2).versioned().start();
    cluster.put_seeded("a", 1, 300_000);
    cluster.put_seeded("b", 2, 70_000);
    cluster.add();
    let shown: Value = serde_json::from_str(&cluster.cli_ok(&["dataset", "show", DATASET, "--json"])).unwrap();
    let versions: Vec<_> = shown["shards"].as_array().unwrap().iter().map(|s| s["version_id"].as_str()).collect();
    assert!(versions.iter().all(|v| v.is_some_and(|v| !v.is_empty())), "{shown}");

    cluster.s3().put_bytes("data", "d/a", "something else", ObjectOptions::default()).unwrap();
    cluster.stage_and_wait();
    cluster.assert_identical();
    // The version that was registered is still there, so that it can be fetched again.
    assert!(evict(&cluster, "all").status.success());
    cluster.stage_and_wait();
    cluster.assert_identical();
}
