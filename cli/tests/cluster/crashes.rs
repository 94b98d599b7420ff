//! Processes that die in the middle.

use crate::harness::{Cluster, DATASET, node_name, until};

/// Slow enough to be caught in the middle, quick enough to wait for.
const ORIGIN_BYTES_PER_S: u64 = 12 << 20;

fn staging(nodes: usize) -> Cluster {
    let cluster = Cluster::start(nodes);
    for i in 0..4u64 {
        cluster.put_seeded(&format!("shard-{i}"), i + 1, 6 << 20);
    }
    cluster.add();
    cluster.s3().set_rate(Some(ORIGIN_BYTES_PER_S));
    cluster.stage();
    cluster.until_share(0.2);
    cluster
}

#[test]
fn an_agent_killed_midway_harms_nobody_else_and_resumes() {
    let mut cluster = staging(3);
    cluster.agent(0).kill9();
    cluster.wait(&format!("{},{}", node_name(1), node_name(2)));
    cluster.assert_node(1);
    cluster.assert_node(2);
    cluster.agent(0).restart();
    cluster.wait("all");
    cluster.assert_identical();
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    assert!(read <= 1.5 * size, "the origin sent {read} bytes of {size}");
}

#[test]
fn a_coordinator_killed_midway_forgets_nothing() {
    let mut cluster = staging(3);
    cluster.coordinator().kill9();
    assert_eq!(cluster.cli(&["status"]).status.code(), Some(6));
    cluster.coordinator().restart();
    cluster.wait("all");
    cluster.assert_identical();
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    assert!(read <= 1.1 * size, "the origin sent {read} bytes of {size}");
}

#[test]
fn what_is_there_is_served_without_a_coordinator_and_found_again() {
    let mut cluster = staging(2);
    cluster.s3().set_rate(None);
    cluster.wait("all");
    let read = cluster.origin_bytes();
    cluster.coordinator().kill9();
    for i in 0..2 {
        assert!(cluster.cli_at(i, &["path", DATASET]).status.success());
    }
    cluster.agent(0).kill9();
    cluster.agent(0).restart();
    until("a restarted agent shows what it has, still without a coordinator", || {
        cluster.cli_at(0, &["path", DATASET]).status.success()
    });
    cluster.coordinator().restart();
    cluster.wait("all");
    cluster.stage_and_wait();
    cluster.assert_identical();
    assert_eq!(cluster.origin_bytes(), read, "nothing was read again");
}

#[test]
fn everyone_stops_in_order_when_asked() {
    let mut cluster = staging(2);
    for i in 0..2 {
        assert_eq!(cluster.agent(i).terminate(), Some(0));
    }
    assert_eq!(cluster.coordinator().terminate(), Some(0));
    cluster.coordinator().restart();
    cluster.s3().set_rate(None);
    for i in 0..2 {
        cluster.agent(i).restart();
    }
    cluster.wait("all");
    cluster.assert_identical();
}

#[test]
fn an_agent_that_stops_says_so_and_its_work_moves_on_at_once() {
    let mut cluster = staging(3);
    assert_eq!(cluster.agent(1).terminate(), Some(0));
    let state = |status: &serde_json::Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().find(|n| n["node"] == "node2").map(|n| n["state"].as_str().unwrap_or_default().to_owned())
    };
    // Never suspect: that is for those who fall silent.
    let mut seen = state(&cluster.status().unwrap());
    until("it is not up any more", || {
        seen = state(&cluster.status().unwrap());
        seen.as_deref() != Some("up")
    });
    assert_eq!(seen.as_deref(), Some("down"));
    cluster.s3().set_rate(None);
    cluster.wait("node1,node3");
    cluster.agent(1).restart();
    cluster.wait("all");
    cluster.assert_identical();
}
