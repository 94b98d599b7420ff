//! What a byte costs the processor on its way from the device to the disk: copies are counted, not argued about.

use std::collections::BTreeMap;
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

/// Buckets of the library, by the bits of a copy's length.
const BUCKETS: usize = 64;

/// Copies and their bytes.
type Count = (u64, u64);

/// The counts of a process that runs with the library.
struct Copies {
    /// By the bits of their length.
    sizes: Vec<Count>,
    /// By where they were called from, in the program.
    sites: BTreeMap<u64, Count>,
}

impl Copies {
    fn read(path: &Path) -> Copies {
        let file = fs::read(path).unwrap();
        let words: Vec<u64> = file.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect();
        let sizes = words[..2 * BUCKETS].chunks_exact(2).map(|s| (s[0], s[1])).collect();
        let sites = words[2 * BUCKETS..].chunks_exact(3).filter(|s| s[0] != 0).map(|s| (s[0], (s[1], s[2])));
        Copies { sizes, sites: sites.collect() }
    }

    fn since(&self, before: &Copies) -> Copies {
        let minus = |now: Count, then: Count| (now.0 - then.0, now.1 - then.1);
        let sizes = self.sizes.iter().zip(&before.sizes).map(|(now, then)| minus(*now, *then)).collect();
        let then = |site: &u64| before.sites.get(site).copied().unwrap_or_default();
        Copies { sizes, sites: self.sites.iter().map(|(site, now)| (*site, minus(*now, then(site)))).collect() }
    }

    /// Bytes of copies of at least so many bytes, a power of two.
    fn bytes_from(&self, length: u64) -> u64 {
        self.sizes[(64 - length.leading_zeros()) as usize..].iter().map(|s| s.1).sum()
    }

    /// Callers by the bytes they copied, most first.
    fn callers(&self) -> Vec<(u64, u64, u64)> {
        let mut callers: Vec<_> = self.sites.iter().map(|(site, (n, bytes))| (*bytes, *n, *site)).collect();
        callers.sort_unstable_by(|a, b| b.cmp(a));
        callers
    }

    /// Bytes by the length of the copies.
    fn lengths(&self) -> String {
        let sizes = self.sizes.iter().enumerate().filter(|(_, s)| s.1 > 0);
        sizes.map(|(bits, (n, bytes))| format!("<{}: {bytes} in {n}", 1u64 << bits)).collect::<Vec<_>>().join(", ")
    }

    /// Who copied most, by name: for the reader of a failed run, since looking them up takes long.
    fn names(&self) -> String {
        let callers: Vec<_> = self.callers().into_iter().take(12).collect();
        // The call, not what comes after it.
        let sites = callers.iter().map(|(_, _, site)| format!("{:#x}", site - 1));
        let mut command = Command::new("addr2line");
        command.args(["-f", "-C", "-e", env!("CARGO_BIN_EXE_millstream")]).args(sites);
        let found = command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let found = found.unwrap_or_default();
        // Two lines for each: the function, and where in it.
        let named = callers.iter().zip(found.lines().step_by(2));
        named.map(|((bytes, n, _), name)| format!("\n{bytes} bytes in {n} by {name}")).collect()
    }
}

/// A piece that is copied is copied in parts of at least so many bytes.
const LONG: u64 = 4096;

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
    let counted = Copies::read(&counts).bytes_from(8 << 20);
    assert!(counted >= 8 << 20, "{counted}");
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
        let copied = after.0[i].since(&before.0[i]);
        println!("copies: {who}: bytes by length: {}", copied.lengths());
        let (long, all) = (copied.bytes_from(LONG), copied.bytes_from(0));
        let most = copied.callers()[0].0;
        let ratio = |bytes: u64| bytes as f64 / received as f64;
        println!(
            "copies: {who}: {:.4} for each byte received, {:.4} of them in parts of {LONG} and more, {:.4} by one caller",
            ratio(all),
            ratio(long),
            ratio(most)
        );
        // Task state, orders and messages are moved in small parts: so much for each piece, whatever its length, and
        // these pieces are the shortest there are. A piece that was copied once, in whatever parts, would count as
        // much as was received, and nearly all of it by one caller.
        let few = long < received / 100 && most < received / 10 && all < received / 2;
        assert!(few, "{who}: {long} bytes in long copies, {most} by one caller, {all} in all{}", copied.names());
    }
    assert!(packets >= received / MTU, "the device carried them");
    assert!(lo < received / 5, "{lo} bytes went over TCP");
    assert!(direct && disk >= received, "the disk took them past the page cache");
}
