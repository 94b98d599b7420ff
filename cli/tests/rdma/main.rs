//! Clusters of real processes over one soft-RoCE device: `make test-rdma` runs this in a virtual machine that has
//! `rxe0` on `dummy0`. The harness is that of the cluster tests.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests: a panic is the report

#[allow(dead_code)] // each test binary uses its part
#[path = "../cluster/harness.rs"]
mod harness;
#[allow(dead_code)] // the harness needs it, the tests with RDMA do not
#[path = "../cluster/network.rs"]
mod network;
#[path = "../cluster/seccomp.rs"]
mod seccomp;
#[path = "../cluster/watcher.rs"]
mod watcher;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Cluster, until};
use serde_json::Value;

const COUNTERS: &str = "/sys/class/infiniband/rxe0/ports/1/hw_counters";

/// Payload bytes of one packet of `rxe0`.
const MTU: u64 = 4096;

fn packets() -> u64 {
    fs::read_to_string(format!("{COUNTERS}/rcvd_pkts")).unwrap().trim().parse().unwrap()
}

fn rdma(arguments: &[&str]) {
    let output = Command::new("rdma").args(arguments).output().unwrap();
    assert!(output.status.success(), "rdma {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn remove_device() {
    rdma(&["link", "delete", "rxe0"]);
}

fn add_device() {
    rdma(&["link", "add", "rxe0", "type", "rxe", "netdev", "dummy0"]);
}

/// A cluster on a machine that has the device, whatever an earlier test that failed has left behind.
fn builder(nodes: usize) -> harness::Builder {
    if !Path::new("/sys/class/infiniband/rxe0").exists() {
        add_device();
    }
    Cluster::builder(nodes)
}

/// Bytes that all nodes received by this way, from the status document.
fn received(status: &Value, way: &str) -> u64 {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().map(|n| n["received_bytes"][way].as_u64().unwrap()).sum()
}

/// Fallbacks from RDMA of all nodes: reason and count.
fn fallbacks(status: &Value) -> Vec<(String, u64)> {
    let nodes = status["nodes"].as_array().unwrap();
    let all = nodes.iter().flat_map(|n| n["fallbacks"].as_array().unwrap());
    let rdma = all.filter(|f| f["from"] == "rdma");
    rdma.map(|f| (f["reason"].as_str().unwrap().to_owned(), f["count"].as_u64().unwrap())).collect()
}

/// The status, once the heartbeats account for all bytes of all nodes.
fn settled(cluster: &Cluster, nodes: u64) -> Value {
    let wanted = cluster.bytes() * nodes;
    let sum = |s: &Value| ["origin", "rdma", "tcp"].map(|way| received(s, way)).iter().sum::<u64>();
    cluster.until_status("all bytes are accounted for", |s| sum(s) >= wanted);
    cluster.status().unwrap()
}

fn offers_rdma(status: &Value, node: usize) -> bool {
    status["nodes"][node]["transports"].as_array().unwrap().contains(&"rdma".into())
}

#[test]
fn a_whole_stage_travels_over_rdma_and_the_device_agrees() {
    let cluster = builder(3).start();
    for i in 0..4u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 6_000_000 + i as usize);
    }
    cluster.add();
    let before = packets();
    cluster.stage_and_wait();
    cluster.assert_identical();
    let status = settled(&cluster, 3);
    let counted = packets() - before;
    let (rdma, tcp) = (received(&status, "rdma"), received(&status, "tcp"));
    println!("received: {rdma} bytes over RDMA, {tcp} over TCP; the device received {counted} packets of {MTU}");
    assert_eq!((tcp, fallbacks(&status)), (0, vec![]), "every byte between nodes goes over RDMA");
    // On a starved machine a lease may run out and an extent be read twice; all the rest comes from nodes.
    let origin = received(&status, "origin");
    assert_eq!(rdma + origin, 3 * cluster.bytes());
    assert!(rdma >= cluster.bytes(), "{rdma} over RDMA, {origin} from the origin");
    assert!((0..3).all(|n| offers_rdma(&status, n)), "{status}");
    // Data packets carry at most the MTU; acknowledgements come on top.
    assert!(counted >= rdma / MTU, "{counted} packets cannot have carried {rdma} bytes");
    assert!(counted <= rdma / MTU * 3, "{counted} packets for {rdma} bytes");
    // The node's own document says the same, by peer, and that nothing was copied on the way out.
    let (mut from_peers, mut sent) = (0, 0);
    for i in 0..3 {
        let own = cluster.own_status(i);
        assert_eq!(own["transport"]["rdma"]["copied_bytes"], 0, "{own}");
        assert_eq!(own["transport"]["rdma"]["devices"][0]["device"], "rxe0", "{own}");
        // The device is shared by all three, so it counts more than each of them.
        let device = &own["transport"]["rdma"]["devices"][0];
        assert!(device["wire_received_bytes"].as_u64() >= device["received_bytes"].as_u64(), "{device}");
        sent += own["transport"]["rdma"]["sent_bytes"].as_u64().unwrap();
        for peer in own["transport"]["peers"].as_array().unwrap() {
            assert_eq!(peer["received_bytes"]["tcp"], 0, "{own}");
            from_peers += peer["received_bytes"]["rdma"].as_u64().unwrap();
        }
    }
    assert!(from_peers >= rdma && sent >= rdma, "{from_peers} received, {sent} sent, {rdma} accepted");
}

#[test]
fn nodes_without_rdma_take_part_over_tcp_and_it_is_said() {
    let cluster = builder(3).agent_env(2, "MILLSTREAM_RDMA", "off").start();
    for i in 0..6u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 3_000_000);
    }
    cluster.add();
    cluster.stage_and_wait();
    cluster.assert_identical();
    let status = settled(&cluster, 3);
    println!(
        "received: {} over RDMA, {} over TCP; {:?}",
        received(&status, "rdma"),
        received(&status, "tcp"),
        fallbacks(&status)
    );
    assert!(!offers_rdma(&status, 2) && offers_rdma(&status, 0), "{status}");
    assert_eq!(status["nodes"][2]["received_bytes"]["rdma"], 0);
    assert!(received(&status, "rdma") > 0, "the two that have it use it: {status}");
    assert!(received(&status, "tcp") > 0, "the third gets its bytes over TCP: {status}");
    let reasons = fallbacks(&status);
    assert!(reasons.iter().all(|(reason, _)| reason == "peer-without-rdma"), "{reasons:?}");
}

#[test]
fn a_device_that_goes_and_comes_back_costs_no_stage() {
    let cluster = builder(2).start();
    for i in 0..10u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 4_000_000);
    }
    cluster.add();
    cluster.stage();
    cluster.until_status("RDMA carries", |s| received(s, "rdma") > 0);
    remove_device();
    println!("removed");
    cluster.wait("all");
    cluster.assert_identical();
    let status = settled(&cluster, 2);
    let (rdma, tcp) = (received(&status, "rdma"), received(&status, "tcp"));
    println!("received: {rdma} bytes over RDMA, then {tcp} over TCP; {:?}", fallbacks(&status));
    assert!(rdma > 0 && tcp > 0, "{status}");
    assert_eq!(rdma + tcp + received(&status, "origin"), 2 * cluster.bytes());
    assert!(fallbacks(&status).iter().any(|(reason, _)| reason == "device-removed"), "{:?}", fallbacks(&status));

    add_device();
    until("both nodes have RDMA again", || {
        (0..2).all(|i| cluster.own_status(i)["transport"]["rdma"]["reason"].is_null())
    });
    // Evicted on one node, the version is fetched again: from the other, over RDMA.
    cluster.stop_watching();
    let evicted = cluster.cli_at(0, &["evict", harness::DATASET, "--nodes", "node1"]);
    assert!(evicted.status.success(), "{}", String::from_utf8_lossy(&evicted.stderr));
    cluster.stage_and_wait();
    cluster.until_status("RDMA carries again", |s| received(s, "rdma") > rdma);
    let status = cluster.status().unwrap();
    println!("after it came back: {} bytes more over RDMA", received(&status, "rdma") - rdma);
}

#[test]
fn a_killed_source_and_damaged_bytes_cost_nothing_but_time() {
    let mut cluster = builder(3).agent_env(1, "MILLSTREAM_FAULT_SERVE", "flip@3").start();
    for i in 0..6u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 4_000_000);
    }
    cluster.add();
    cluster.stage();
    cluster.until_status("RDMA carries", |s| received(s, "rdma") > 0);
    cluster.agent(2).kill9();
    cluster.agent(2).restart();
    cluster.wait("all");
    cluster.assert_identical();
    let status = cluster.status().unwrap();
    println!("fallbacks {:?}", fallbacks(&status));
}

mod pair;
