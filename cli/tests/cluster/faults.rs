//! Peers, origins, disks and networks that misbehave: every test ends with the right bytes, or with a clear refusal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::Duration;

use millstream_sim_s3::{Fault, FaultKind, ObjectOptions};
use serde_json::Value;

use crate::harness::{Cluster, DATASET, DEADLINE, node_name, until};

fn with_shards(cluster: Cluster) -> Cluster {
    for i in 0..4u64 {
        cluster.put_seeded(&format!("shard-{i}"), i + 1, 3_000_000);
    }
    cluster.add();
    cluster
}

fn stage_code(cluster: &Cluster) -> (Option<i32>, String) {
    let timeout = format!("{}s", DEADLINE.as_secs());
    let output = cluster.cli(&["stage", DATASET, "--wait", "--timeout", &timeout]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let mut nodes = status["nodes"].as_array().into_iter().flatten();
    nodes.find(|n| n["node"] == name).unwrap_or(&Value::Null)
}

/// One agent of three serves its peers badly; the others get everything right all the same, from elsewhere.
fn lying_peer(script: &str) {
    let cluster = with_shards(Cluster::builder(3).agent_env(0, "MILLSTREAM_FAULT_SERVE", script).start());
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn a_peer_that_flips_bits_is_seen_through() {
    lying_peer("flip");
}

#[test]
fn a_peer_that_cuts_pieces_short_is_seen_through() {
    lying_peer("truncate@2");
}

#[test]
fn a_peer_that_sends_other_pieces_is_seen_through() {
    lying_peer("swap@2");
}

#[test]
fn a_peer_that_refuses_everything_is_gone_around() {
    lying_peer("refuse");
}

/// The origin fails for a while in that way; the stage completes.
fn passing_origin_fault(kind: FaultKind, times: u64) {
    let cluster = with_shards(Cluster::start(2));
    cluster.s3().faults().add(Fault::on_get("*", kind).times(times));
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn an_origin_that_sends_short_bodies_is_asked_again() {
    passing_origin_fault(FaultKind::Truncate { bytes: 100_000 }, 4);
}

#[test]
fn an_origin_that_resets_connections_is_asked_again() {
    passing_origin_fault(FaultKind::Reset { bytes: 10_000 }, 4);
}

#[test]
fn an_origin_with_internal_errors_is_asked_again() {
    passing_origin_fault(FaultKind::Status { status: 500, retry_after_s: None }, 6);
}

#[test]
fn an_origin_that_wants_less_is_given_time() {
    passing_origin_fault(FaultKind::Status { status: 503, retry_after_s: None }, 6);
}

#[test]
fn bytes_that_the_origin_corrupts_once_are_read_again() {
    passing_origin_fault(FaultKind::Corrupt { at: 777 }, 1);
}

#[test]
fn bytes_that_the_origin_always_corrupts_fail_the_shard_and_say_so() {
    let cluster = with_shards(Cluster::start(2));
    cluster.s3().faults().add(Fault::on_get("*shard-2", FaultKind::Corrupt { at: 777 }));
    let (code, error) = stage_code(&cluster);
    assert_eq!(code, Some(5), "{error}");
    for what in ["shard-2", "crc64nvme:", "origin"] {
        assert!(error.contains(what), "{what:?} is missing in: {error}");
    }
    for i in 0..2 {
        assert!(!cluster.root(i).join("shard-2").exists(), "a corrupt shard is visible");
    }
}

#[test]
fn an_object_that_changes_after_registration_is_a_conflict() {
    let cluster = with_shards(Cluster::start(2));
    cluster.s3().put_seeded("data", "d/shard-1", 99, 3_000_000, ObjectOptions::default()).unwrap();
    let (code, error) = stage_code(&cluster);
    assert_eq!(code, Some(8), "{error}");
    assert!(error.contains("shard-1"), "{error}");
    assert!(!cluster.root(0).join("shard-1").exists());
}

#[test]
fn a_version_that_cannot_fit_is_refused_up_front_with_numbers() {
    let cluster = with_shards(Cluster::builder(1).agent_argument("--capacity").agent_argument("5MiB").start());
    let (code, error) = stage_code(&cluster);
    assert_eq!(code, Some(7), "{error}");
    assert_eq!(cluster.origin_bytes(), 0, "nothing was read for it");
}

/// A disk that is fuller than its quota says: a small tmpfs under the data directory.
#[test]
fn a_disk_that_fills_midway_is_reported_and_harms_no_other_node() {
    let mut cluster = with_shards(Cluster::start(2));
    cluster.agent(0).kill9();
    let dir = cluster.data_dir(0);
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(&dir)
        .status()
        .is_ok_and(|s| s.success());
    assert!(mounted, "this test mounts a tmpfs: run it as root");
    let _unmount = Unmount(dir);
    cluster.agent(0).restart();
    cluster.until_status("node1 is back", |s| node(s, &node_name(0))["state"] == "up");
    let (code, error) = stage_code(&cluster);
    assert_eq!(code, Some(7), "{error}");
    assert!(error.contains(&node_name(0)), "{error}");
    cluster.wait(&node_name(1));
    cluster.assert_node(1);
    cluster.agent(0).kill9();
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_node_that_falls_silent_for_a_while_comes_back_and_completes() {
    let mut cluster = with_shards(Cluster::start(3));
    cluster.s3().set_rate(Some(4 << 20));
    cluster.stage();
    cluster.until_share(0.2);
    cluster.agent(1).freeze();
    cluster.until_status("node2 is given up", |s| node(s, &node_name(1))["state"] == "down");
    cluster.agent(1).thaw();
    cluster.until_status("node2 is back", |s| node(s, &node_name(1))["state"] == "up");
    cluster.s3().set_rate(None);
    cluster.wait("all");
    cluster.assert_identical();
}

#[test]
fn a_node_that_joins_midway_is_served_from_its_peers() {
    let mut cluster = with_shards(Cluster::start(3));
    cluster.agent(2).kill9();
    cluster.s3().set_rate(Some(6 << 20));
    let all = [0, 1, 2].map(node_name).join(",");
    cluster.cli_ok(&["stage", DATASET, "--nodes", &all]);
    cluster.until_share(0.2);
    cluster.agent(2).restart();
    cluster.wait(&all);
    cluster.assert_identical();
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    assert!(read <= 1.02 * size, "the origin sent {read} bytes of {size}");
}

#[test]
fn blocking_io_does_the_same_and_is_shown() {
    let cluster = with_shards(Cluster::builder(2).agent_argument("--io").agent_argument("blocking").start());
    cluster.stage_and_wait();
    cluster.assert_identical();
    let status = cluster.status().unwrap();
    assert_eq!(node(&status, &node_name(0))["io"], "blocking");
}

/// The kernel itself says no, as it does in containers: blocking calls take over, and that is counted and shown.
#[test]
fn where_the_kernel_refuses_io_uring_blocking_calls_take_over_and_it_shows() {
    let cluster = with_shards(Cluster::builder(2).refuse_io_uring(0).start());
    cluster.stage_and_wait();
    cluster.assert_identical();
    let status = cluster.status().unwrap();
    assert_eq!(node(&status, &node_name(0))["io"], "blocking");
    let fallbacks = |i| {
        let series = cluster.agent_metrics(i).into_iter();
        let of_uring = series.filter(|(name, _)| {
            name.starts_with("millstream_fallbacks_total") && name.contains(r#"from="uring",to="blocking""#)
        });
        of_uring.collect::<Vec<_>>()
    };
    let counted = fallbacks(0);
    assert!(matches!(&counted[..], [(name, 1.0)] if name.contains("not permitted")), "{counted:?}");
    cluster.until_status("the fallback is shown", |s| {
        let alarms = s["alarms"].to_string();
        alarms.contains(&node_name(0)) && alarms.contains("uring") && alarms.contains("blocking")
    });
}

/// A cable is pulled in the middle of a stage, and put back. The others go on meanwhile.
#[test]
fn a_link_that_is_cut_for_five_seconds_costs_a_pause_and_nothing_else() {
    let cluster = with_shards(Cluster::builder(3).networked().start());
    cluster.s3().set_rate(Some(1 << 20));
    cluster.stage();
    cluster.until_share(0.2);
    cluster.network().cut(1);
    // The length of the fault, not a wait for something.
    std::thread::sleep(Duration::from_secs(5));
    let while_cut = cluster.origin_bytes();
    assert!(while_cut < cluster.bytes(), "the stage was over before the link came back");
    cluster.network().mend(1);
    cluster.s3().set_rate(None);
    cluster.wait("all");
    cluster.assert_identical();
    // What the cut node was reading is read again by another; the rest once.
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    assert!(read <= 1.25 * size, "the origin sent {read} bytes of {size}");
}

fn flip_a_byte(cluster: &Cluster, i: usize, key: &str) {
    let path = cluster.root(i).join(key);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_234_567).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1_234_567).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn verify_finds_a_flipped_bit_and_it_is_repaired_from_a_peer() {
    let cluster = with_shards(Cluster::start(2));
    cluster.stage_and_wait();
    let read = cluster.origin_bytes();
    cluster.stop_watching();
    flip_a_byte(&cluster, 0, "shard-3");
    let output = cluster.cli(&["verify", DATASET]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("shard-3") && error.contains(&node_name(0)), "{error}");
    until("verify finds nothing more", || cluster.cli(&["verify", DATASET]).status.success());
    cluster.wait("all");
    cluster.assert_identical();
    assert_eq!(cluster.origin_bytes(), read, "the repair came from the peer");
}

#[test]
fn the_scrub_finds_a_flipped_bit_by_itself() {
    let cluster = with_shards(Cluster::builder(2).agent_argument("--scrub-rate").agent_argument("1GiB").start());
    cluster.stage_and_wait();
    cluster.stop_watching();
    let good = fs::read(cluster.root(1).join("shard-0")).unwrap();
    flip_a_byte(&cluster, 0, "shard-0");
    until("the scrub has repaired the shard", || {
        fs::read(cluster.root(0).join("shard-0")).is_ok_and(|bytes| bytes == good)
    });
    cluster.wait("all");
    cluster.assert_identical();
}

/// Bytes that are no protocol at all, half a frame, and nothing, on every port that listens.
#[test]
fn garbage_on_every_port_changes_nothing() {
    let mut cluster = with_shards(Cluster::start(2));
    let mut ports = vec![cluster.coordinator().address("grpc"), cluster.coordinator().address("http")];
    for i in 0..2 {
        ports.push(cluster.agent(i).address("listen"));
        ports.push(cluster.agent(i).address("http"));
    }
    let noise = millstream_sim_s3::Seeded::new(7).bytes(100_000);
    cluster.s3().set_rate(Some(8 << 20));
    cluster.stage();
    for port in &ports {
        for len in [0, 1, 7, 24, 64, 1000, noise.len()] {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            // The other side may well hang up in the middle: that is one right answer.
            let _ = stream.write_all(&noise[..len]);
            let _ = stream.read(&mut [0; 64]);
        }
    }
    cluster.s3().set_rate(None);
    cluster.wait("all");
    cluster.assert_identical();
}
