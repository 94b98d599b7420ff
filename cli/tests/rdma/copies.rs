//! What a byte costs the processor on its way from the device to the disk: copies are counted, not argued about.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::DATASET;
use crate::{MTU, builder, packets};

/// `agent/rdma/examples/count_copies.rs`, built beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().unwrap().with_file_name("examples").join("libcount_copies.so");
    assert!(path.exists(), "{} is missing: scripts/test-rdma builds it", path.display());
    path
}

/// The counts of a process that runs with the library.
#[derive(Debug)]
struct Copies {
    bytes: u64,
    longest: u64,
    /// Where long copies were called from, how many, and their bytes.
    long: Vec<(u64, u64, u64)>,
}

/// Copies of so many bytes are told apart by their callers: `LONG` of the library.
const LONG: u64 = 4096;

impl Copies {
    fn read(path: &Path) -> Copies {
        let file = fs::read(path).unwrap();
        let words: Vec<u64> = file.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect();
        let sites = words[3..].chunks_exact(3).filter(|s| s[0] != 0).map(|s| (s[0], s[1], s[2]));
        Copies { bytes: words[1], longest: words[2], long: sites.collect() }
    }

    /// Bytes of long copies since then, and where they were made.
    fn long_since(&self, before: &Copies) -> (u64, String) {
        let old = |site: u64| before.long.iter().find(|s| s.0 == site).map_or((0, 0), |s| (s.1, s.2));
        let mut long: Vec<_> = self.long.iter().map(|s| (s.2 - old(s.0).1, s.1 - old(s.0).0, s.0)).collect();
        long.sort_unstable();
        let sum = long.iter().map(|s| s.0).sum();
        let texts = long.iter().rev().take(5).filter(|s| s.0 > 0);
        let texts = texts.map(|(bytes, n, site)| format!("; {bytes} bytes in {n} from {site:#x}"));
        (sum, texts.collect())
    }
}

fn number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Bytes written to the disk of this machine, by its own count.
fn disk_written() -> u64 {
    let stat = fs::read_to_string("/sys/block/vda/stat").unwrap();
    stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
}

/// The library sees what is copied: otherwise its zeros would mean nothing.
fn the_counter_counts() {
    let dir = tempfile::tempdir().unwrap();
    let counts = dir.path().join("control");
    let script = "b = bytearray(8 << 20); c = bytes(b)";
    let mut python = Command::new("python3");
    python.args(["-c", script]).env("LD_PRELOAD", library()).env("COUNT_COPIES", &counts);
    assert!(python.status().unwrap().success());
    let counted = Copies::read(&counts);
    assert!(counted.bytes >= 8 << 20 && counted.longest == 8 << 20, "{counted:?}");
}

#[test]
fn nothing_is_copied_between_the_device_and_the_disk() {
    the_counter_counts();
    let dir = tempfile::tempdir().unwrap();
    let counts = [0, 1].map(|i| dir.path().join(format!("{i}")));
    let mut builder = builder(2);
    for (i, path) in counts.iter().enumerate() {
        builder = builder.agent_env(i, "LD_PRELOAD", library().to_str().unwrap());
        builder = builder.agent_env(i, "COUNT_COPIES", path.to_str().unwrap());
    }
    let cluster = builder.start();
    for i in 0..4u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 4 << 20);
    }
    cluster.add();
    let stage = |nodes: &str| cluster.cli_ok(&["stage", DATASET, "--nodes", nodes, "--wait", "--timeout", "90s"]);
    stage("node1");
    let lo = || number("/sys/class/net/lo/statistics/rx_bytes");
    let before = (counts.each_ref().map(|p| Copies::read(p)), packets(), lo(), disk_written());
    stage("node2");
    let after = (counts.each_ref().map(|p| Copies::read(p)), packets(), lo(), disk_written());
    cluster.assert_identical();
    let status = crate::settled(&cluster, 2);
    let received = status["nodes"][1]["received_bytes"]["rdma"].as_u64().unwrap();
    assert_eq!(received, cluster.bytes(), "{status}");
    let direct = status["nodes"][1]["fallbacks"].as_array().unwrap().iter().all(|f| f["from"] != "direct");
    let (packets, lo, disk) = (after.1 - before.1, after.2 - before.2, after.3 - before.3);
    println!("copies: {received} bytes received over RDMA ({packets} packets of at most {MTU}), direct I/O: {direct}");
    println!("copies: {disk} bytes written to the disk, {lo} bytes over loopback TCP (control, everybody's)");
    for (i, who) in ["source", "receiver"].iter().enumerate() {
        let copied = after.0[i].bytes - before.0[i].bytes;
        let (long, where_from) = after.0[i].long_since(&before.0[i]);
        let ratio = |bytes: u64| bytes as f64 / received as f64;
        println!(
            "copies: {who}: {:.4} bytes for each received in copies of {LONG} and more{where_from}; {:.4} in shorter ones",
            ratio(long),
            ratio(copied - long)
        );
    }
    for (before, after) in before.0.iter().zip(&after.0) {
        let (long, copied) = (after.long_since(before).0, after.bytes - before.bytes);
        // Messages and books are copied in small parts. A piece that was copied once, in whatever parts, would count
        // as much as was received.
        assert!(long < received / 100 && copied < received / 4, "{long} in long copies, {copied} in all");
    }
    assert!(packets >= received / MTU, "the device carried them");
    assert!(lo < received / 5, "{lo} bytes went over TCP");
    assert!(direct && disk >= received, "the disk took them past the page cache");
}
