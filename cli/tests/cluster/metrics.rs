//! Every metric moves: a cluster lives through good and bad days, and each series that the page names is looked at.

use std::collections::BTreeMap;

use millstream_proto::v1::client_service_client::ClientServiceClient;
use millstream_proto::v1::{JobWant, OpenJobRequest};
use millstream_sim_s3::{Fault, FaultKind, ObjectOptions};
use serde_json::json;

use crate::harness::{Cluster, DATASET, DEADLINE, until};

/// What no run of seconds can move, with the test that does.
const ELSEWHERE: [(&str, &str); 9] = [
    // Need an RDMA device.
    ("millstream_rdma_devices", "the RDMA lane"),
    ("millstream_rdma_copied_bytes_total", "the RDMA lane"),
    ("millstream_rdma_device_received_bytes", "the RDMA lane"),
    ("millstream_rdma_device_sent_bytes", "the RDMA lane"),
    // Whole seconds, and this job waits for less than one.
    ("millstream_job_wait_seconds_total", "nothing yet"),
    // A lease lasts at least ten seconds beyond its last sign of life.
    ("millstream_leases_expired_total", "coordinator/core/tests/cluster.rs"),
    // Needs a node whose room is full of what others need.
    ("millstream_copies_handed_over_total", "coordinator/core/tests/window.rs"),
    // Counted at the start when the disk or the kernel takes less than was wanted, which depends on the machine.
    ("millstream_fallbacks_total", "agent/src/counters.rs"),
    ("millstream_cluster_fallbacks", "coordinator/tests/coordinator.rs"),
];

/// The names in `docs/metrics.md`, by heading.
fn documented(heading: &str) -> Vec<String> {
    let text = include_str!("../../../docs/metrics.md");
    let (_, section) = text.split_once(heading).unwrap();
    let rows = section.split("\n## ").next().unwrap().lines().filter(|l| l.starts_with("| `millstream_"));
    rows.map(|l| l.split('`').nth(1).unwrap().to_owned()).collect()
}

/// The largest value of any series of a name.
fn value(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of_name = metrics.iter().filter(|(series, _)| {
        let bare = series.split('{').next().unwrap_or_default();
        bare == name || bare.strip_suffix("_count") == Some(name)
    });
    of_name.map(|(_, &v)| v).fold(0.0, f64::max)
}

#[test]
fn every_metric_moves() {
    // The first agent serves its peers wrong bytes.
    let mut cluster = Cluster::builder(3).agent_env(0, "MILLSTREAM_FAULT_SERVE", "flip").start();
    for i in 0..4u64 {
        cluster.put_seeded(&format!("shard-{i}"), i + 1, 3_000_000);
    }
    cluster.add();
    // A node that dies midway and comes back: what it had in hand is handed out again.
    cluster.s3().set_rate(Some(8 << 20));
    cluster.stage();
    cluster.until_share(0.1);
    cluster.agent(2).kill9();
    cluster.agent(2).restart();
    cluster.s3().set_rate(None);
    cluster.wait("all");
    // A bad index, and an origin whose bytes are not what it says they are.
    let put = |key: &str, bytes: &'static str| {
        cluster.s3().put_bytes("data", key, bytes, ObjectOptions::default()).unwrap();
    };
    put("bad/millstream-manifest.arrow", "no index");
    put("bad/a", "some bytes that will come out wrong");
    cluster.cli_ok(&["dataset", "add", "bad", "s3://data/bad/"]);
    cluster.s3().faults().add(Fault::on_get("data/bad/*", FaultKind::Corrupt { at: 3 }));
    let timeout = format!("{}s", DEADLINE.as_secs());
    assert_eq!(cluster.cli(&["stage", "bad", "--wait", "--timeout", &timeout]).status.code(), Some(5));
    // A reader, and what goes behind it; an eviction; a pin; a partial shard.
    cluster.cli_ok(&["pin", DATASET, "--nodes", "node2"]);
    cluster.cli_ok(&["evict", DATASET, "--nodes", "node3"]);
    let garbage = cluster.coordinator().address("grpc");
    let refused = crate::harness::millstream()
        .args(["agent", "--node", "node1", "--coordinator", &format!("http://{garbage}"), "--listen", "127.0.0.1:0"])
        .args(["--http", "off", "--buffers", "64MiB", "--data-dir"])
        .arg(cluster.data_dir(9))
        .spawn();
    let mut refused = refused.unwrap();
    until("an agent of the same name was refused", || {
        value(&cluster.coordinator_metrics(), "millstream_coordinator_dropped_total") > 0.0
    });
    refused.kill().unwrap();
    refused.wait().unwrap();
    cluster.stop_watching();
    run_job(&cluster);
    shrink(&mut cluster);

    let seen = |names: &[String], look: &dyn Fn() -> BTreeMap<String, f64>| {
        for name in names.iter().filter(|n| !ELSEWHERE.iter().any(|(e, _)| e == n)) {
            until(&format!("{name} moved"), || value(&look(), name) > 0.0);
        }
    };
    seen(&documented("\n## Coordinator\n"), &|| cluster.coordinator_metrics());
    seen(&documented("\n## Agents\n"), &|| {
        let mut all = BTreeMap::new();
        for i in 0..3 {
            for (series, value) in cluster.agent_metrics(i) {
                let known = all.entry(series).or_insert(value);
                *known = known.max(value);
            }
        }
        all
    });
}

/// A job of a batch scheduler whose data is on no node yet.
fn run_job(cluster: &Cluster) {
    cluster.s3().put_seeded("data", "job/a", 9, 1_000_000, ObjectOptions::default()).unwrap();
    cluster.cli_ok(&["dataset", "add", "job", "s3://data/job/"]);
    let want = JobWant { dataset: "job".into(), ..JobWant::default() };
    let (job, nodes) = ("test/1".into(), "node1,node2".into());
    let request = OpenJobRequest { job, nodes, wants: vec![want], ..OpenJobRequest::default() };
    let url = cluster.url().to_owned();
    let opened = async { ClientServiceClient::connect(url).await.unwrap().open_job(request).await };
    tokio::runtime::Runtime::new().unwrap().block_on(opened).unwrap();
    cluster.cli_ok(&["wait", "job", "--nodes", "node1,node2", "--timeout", "90s"]);
}

/// A loader on the third node, whose room shrinks to a part of the data, so that shards go behind it.
fn shrink(cluster: &mut Cluster) {
    cluster.agent(2).terminate();
    cluster.agent(2).restart_with("--capacity", "7MB");
    cluster.cli_ok(&["stage", DATASET, "--nodes", "node3", "--placement", "window"]);
    let mut agent = cluster.socket(2);
    let keys: Vec<String> = (0..4).map(|i| format!("shard-{i}")).collect();
    until("the version is open there", || {
        agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "upcoming": keys}))["ok"] == true
    });
    for key in &keys {
        let got = agent.ask(json!({"op": "fetch", "dataset": DATASET, "key": key, "timeout_ms": 90_000}));
        assert_eq!(got["ok"], true, "{got}");
        // Asked again, it is found in place.
        assert_eq!(agent.ask(json!({"op": "path", "dataset": DATASET, "key": key}))["ok"], true);
        agent.ask(json!({"op": "reader", "dataset": DATASET, "reader": "r", "finished": [key]}));
    }
}
