//! Clusters of real processes over one soft-RoCE device: `make test-rdma` runs this in a virtual machine that has
//! `rxe0` on `dummy0`. The harness is that of the cluster tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // helpers of tests: a panic is the report

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
use millstream_sim_s3::{Fault, FaultKind};
use serde_json::Value;

const COUNTERS: &str = "/sys/class/infiniband/rxe0/ports/1/hw_counters";

/// Payload bytes of one packet of `rxe0`.
const MTU: u64 = 4096;

fn packets() -> u64 {
    fs::read_to_string(format!("{COUNTERS}/rcvd_pkts")).unwrap().trim().parse().unwrap()
}

fn shell(line: &str) {
    assert!(Command::new("bash").args(["-ec", line]).status().unwrap().success(), "{line}");
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

/// The status, once the heartbeats account for all bytes; nodes have received so many copies of all shards by now.
fn settled(cluster: &Cluster, copies: u64) -> Value {
    let wanted = cluster.bytes() * copies;
    let sum = |s: &Value| ["origin", "rdma", "tcp"].map(|way| received(s, way)).iter().sum::<u64>();
    cluster.until_status("all bytes are accounted for", |s| sum(s) >= wanted);
    cluster.status().unwrap()
}

/// The origin answers late for this shard: the stage is still under way when RDMA is seen to carry the others.
fn comes_late(cluster: &Cluster, key: &str) {
    cluster.s3().faults().add(Fault::on_get(&format!("data/d/{key}"), FaultKind::Latency { ms: 6000 }).times(4));
}

fn offers_rdma(status: &Value, node: usize) -> bool {
    status["nodes"][node]["transports"].as_array().unwrap().contains(&"rdma".into())
}

#[test]
fn a_whole_stage_travels_over_rdma_and_the_device_agrees() {
    let cluster = builder(3).start();
    for i in 0..4u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 3_000_000 + i as usize);
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
    for i in 0..4u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 2_000_000);
    }
    cluster.add();
    // One after the other: in what order nodes feed each other depends on how fast they are.
    cluster.cli_ok(&["stage", harness::DATASET, "--nodes", "node1,node2", "--wait", "--timeout", "90s"]);
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

/// Waits until both nodes have opened their device again.
fn uses_rdma_again(cluster: &Cluster) {
    until("both nodes have RDMA again", || {
        (0..2).all(|i| cluster.own_status(i)["transport"]["rdma"]["reason"].is_null())
    });
}

/// Evicted on one node, the version is fetched again, until that is over RDMA, which carried `before` bytes until now:
/// the other node may be left alone for a moment after its failure.
fn fetch_again(cluster: &Cluster, before: u64) {
    cluster.stop_watching();
    until("RDMA carries again", || {
        let evicted = cluster.cli_at(0, &["evict", harness::DATASET, "--nodes", "node1"]);
        assert!(evicted.status.success(), "{}", String::from_utf8_lossy(&evicted.stderr));
        cluster.stage_and_wait();
        received(&settled_in(cluster), "rdma") > before
    });
    println!("after it came back: {} bytes more over RDMA", received(&cluster.status().unwrap(), "rdma") - before);
}

/// The status, once the nodes' own counts have come with their heartbeats.
fn settled_in(cluster: &Cluster) -> Value {
    let own = |i: usize| cluster.own_status(i)["received_bytes"]["rdma"].as_u64().unwrap();
    let wanted = own(0) + own(1);
    cluster.until_status("the heartbeats have come", |s| received(s, "rdma") >= wanted);
    cluster.status().unwrap()
}

#[test]
fn a_device_that_goes_and_comes_back_costs_no_stage() {
    let cluster = builder(2).start();
    for i in 0..6u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 3_000_000);
    }
    cluster.add();
    comes_late(&cluster, "train-005.tar");
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
    uses_rdma_again(&cluster);
    fetch_again(&cluster, rdma);
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Port down, address changed: each is noticed, said, and over when it is mended.
#[test]
fn a_port_that_goes_down_or_changes_its_address_is_named_and_used_again() {
    for (damage, mend, reason) in [
        ("ip link set dummy0 down", "ip link set dummy0 up", "port-down"),
        ("ip addr del 10.9.0.1/24 dev dummy0", "ip addr add 10.9.0.1/24 dev dummy0", "gid-changed"),
    ] {
        let cluster = builder(2).start();
        for i in 0..5u64 {
            cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 2_000_000);
        }
        cluster.add();
        comes_late(&cluster, "train-004.tar");
        cluster.stage();
        cluster.until_status("RDMA carries", |s| received(s, "rdma") > 0);
        shell(damage);
        // The tests that follow need the port, also when this one fails.
        let mended = OnDrop(|| shell(mend));
        until("the devices are not used, for this reason", || {
            (0..2).all(|i| cluster.own_status(i)["transport"]["rdma"]["reason"].to_string().contains(reason))
        });
        cluster.wait("all");
        cluster.assert_identical();
        let status = settled(&cluster, 2);
        println!(
            "{damage}: {} bytes over RDMA, {} over TCP; {:?}",
            received(&status, "rdma"),
            received(&status, "tcp"),
            fallbacks(&status)
        );
        // What was under way names how it failed, what came later the port; how much there is of each is chance.
        assert!(!fallbacks(&status).is_empty(), "{status}");
        drop(mended);
        uses_rdma_again(&cluster);
        fetch_again(&cluster, received(&status, "rdma"));
    }
}

/// The three ways in which a device is there and cannot be used, and what the node and `doctor` say.
#[test]
fn nodes_that_cannot_use_their_device_say_why_and_doctor_says_what_to_do() {
    let no_memory = ["prlimit", "--memlock=65536", "setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock"];
    let hide =
        "mount --bind /dev/null \"$(ldconfig -p | awk '/libibverbs.so.1 /{print $NF; exit}')\"; exec \"$0\" \"$@\"";
    let no_library = ["unshare", "--mount", "bash", "-ec", hide];
    let cluster = builder(3).agent_wrapper(1, &no_memory).agent_wrapper(2, &no_library).start();
    for i in 0..3u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 1_000_000);
    }
    cluster.add();
    // Who has it first gets nothing from a peer, and so has nothing to say: each of them gets it from others once.
    cluster.cli_ok(&["stage", harness::DATASET, "--nodes", "node2", "--wait", "--timeout", "90s"]);
    cluster.stage_and_wait();
    cluster.cli_ok(&["evict", harness::DATASET, "--nodes", "node2"]);
    cluster.stage_and_wait();
    cluster.assert_identical();
    // One of them twice.
    let status = settled(&cluster, 4);
    assert_eq!(received(&status, "rdma"), 0, "nobody has a peer with RDMA: {status}");
    for (node, reason, fix, wrapper) in [
        (0, "peer-without-rdma", "millstream doctor on the peer", &[][..]),
        (1, "memlock", "LimitMEMLOCK=infinity", &no_memory[..]),
        (2, "library-missing", "apt install libibverbs1", &no_library[..]),
    ] {
        let reasons = status["nodes"][node]["fallbacks"].as_array().unwrap();
        let counted = reasons.iter().filter(|f| f["from"] == "rdma").map(|f| f["reason"].as_str().unwrap());
        assert_eq!(counted.collect::<Vec<_>>(), [reason], "{status}");
        let series = format!("millstream_fallbacks_total{{from=\"rdma\",to=\"tcp\",reason=\"{reason}\"}}");
        assert!(cluster.agent_metrics(node).get(&series).is_some_and(|n| *n > 0.0), "{series}");
        let doctor = cluster.wrapped_at(node, wrapper, &["doctor", "--data-dir", "/run/tmp/doctor"]);
        let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
        println!("{}", text.lines().filter(|l| l.contains("rdma") || l.contains("fix")).collect::<Vec<_>>().join("\n"));
        assert!(text.contains(reason) && text.contains(fix), "{text}");
    }
}

/// One node has everything; the other gets it from there. Returns when it has begun to.
fn from_one_to_the_other(builder: harness::Builder) -> Cluster {
    let cluster = builder.start();
    for i in 0..10u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 4_000_000);
    }
    cluster.add();
    cluster.cli_ok(&["stage", harness::DATASET, "--nodes", "node1", "--wait", "--timeout", "90s"]);
    cluster.cli_ok(&["stage", harness::DATASET, "--nodes", "node2"]);
    // The node itself knows before its next heartbeat, by which all of it may be over.
    until("RDMA carries", || cluster.own_status(1)["received_bytes"]["rdma"].as_u64().is_some_and(|bytes| bytes > 0));
    cluster
}

#[test]
fn a_source_killed_with_writes_in_flight_costs_nothing_but_time() {
    let mut cluster = from_one_to_the_other(builder(2));
    let queued = cluster.own_status(0)["transport"]["rdma"]["devices"][0]["queue_pairs"].clone();
    cluster.agent(0).kill9();
    let status = cluster.status().unwrap();
    let (rdma, ready) = (received(&status, "rdma"), harness::bytes_ready(&status));
    assert!(ready < 2 * cluster.bytes(), "it was killed in the middle");
    cluster.wait("node2");
    cluster.assert_node(1);
    println!(
        "killed with {queued} queue pair(s) open, after {rdma} bytes: {:?}",
        fallbacks(&cluster.status().unwrap())
    );
    cluster.agent(0).restart();
    cluster.wait("all");
    cluster.assert_identical();
}

#[test]
fn a_corrupt_segment_is_seen_by_its_sum_and_never_visible() {
    let cluster = from_one_to_the_other(builder(2).agent_env(0, "MILLSTREAM_FAULT_SERVE", "flip@3"));
    cluster.wait("all");
    cluster.assert_identical();
    let metrics = cluster.agent_metrics(1);
    let failures = metrics.iter().filter(|(series, _)| {
        series.starts_with("millstream_checksum_failures_total") && series.contains("source=\"rdma\"")
    });
    let failures: f64 = failures.map(|(_, n)| n).sum();
    println!("{failures} pieces that came over RDMA did not match, and were fetched again");
    assert!(failures > 0.0, "{metrics:?}");
}

#[test]
fn doctor_and_the_status_show_that_rdma_is_rdma() {
    let cluster = from_one_to_the_other(builder(2));
    cluster.wait("all");
    let status = settled(&cluster, 2);
    let received = status["nodes"][1]["received_bytes"]["rdma"].as_u64().unwrap();
    cluster
        .until_status("the coordinator knows the device", |s| s["nodes"][1]["rails"][0]["received_bytes"] == received);
    let device = cluster.status().unwrap()["nodes"][1]["rails"][0].clone();
    assert_eq!(
        (&device["device"], &device["state"], &device["confirmed"]),
        (&"rxe0".into(), &"up".into(), &true.into())
    );
    assert!(device["wire_received_bytes"].as_u64() >= Some(received), "{device}");
    let metrics = cluster.agent_metrics(1);
    let of = |by: &str| {
        metrics[&format!("millstream_rdma_device_received_bytes{{device=\"rxe0\",counted_by=\"{by}\"}}")] as u64
    };
    assert!(of("agent") == received && of("device") >= received, "{metrics:?}");
    let detail = cluster.get("/api/v1/nodes/node2");
    let links = detail["links_in"].as_array().unwrap();
    let link = links.iter().find(|link| link["peer"] == "node1").unwrap();
    assert_eq!((&link["rdma_bytes"], &link["tcp_bytes"]), (&received.into(), &0.into()), "{link}");
    let doctor = cluster.wrapped_at(1, &[], &["doctor", "--data-dir", "/run/tmp/doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    println!("{}", text.lines().filter(|l| l.contains("rdma")).collect::<Vec<_>>().join("\n"));
    assert!(text.contains("rxe0 port 1 works") && text.contains("rdma proof"), "{text}");
}

mod copies;
mod pair;
