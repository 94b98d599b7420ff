//! What a cluster must do when nothing goes wrong.

use crate::harness::{Cluster, DATASET};

#[test]
fn three_nodes_end_up_with_the_origins_bytes_read_once() {
    let cluster = Cluster::start(3);
    for i in 0..4u64 {
        cluster.put_seeded(&format!("train-{i:03}.tar"), i + 1, 5_000_000);
    }
    cluster.add();
    cluster.stage_and_wait();
    cluster.assert_identical();
    let (read, size) = (cluster.origin_bytes() as f64, cluster.bytes() as f64);
    assert!(read <= 1.02 * size, "the origin sent {read} bytes of {size}");

    for i in 0..3 {
        let output = cluster.cli_at(i, &["path", DATASET, "train-002.tar"]);
        let path = String::from_utf8(output.stdout).unwrap();
        assert_eq!(path.trim_end(), cluster.root(i).join("train-002.tar").to_string_lossy());
        assert!(cluster.cli_at(i, &["wait", DATASET, "--timeout", "5s"]).status.success());
        assert_eq!(cluster.cli_at(i, &["path", DATASET, "no-such-shard"]).status.code(), Some(3));
    }
    assert!(cluster.cli(&["verify", DATASET]).status.success());
}

#[test]
fn odd_keys_become_files_of_that_name() {
    let cluster = Cluster::start(2);
    let keys = [
        "a b/c d.tar",
        "ünïcödé/日本語/シャード.bin",
        "-rf",
        "a..b",
        "...",
        "x%20y+z&q=1#f?.bin",
        "quote'\"back\\slash",
        "deep/er/and/deep/er/still/x",
        "tilde~and*star",
    ];
    for (i, key) in keys.iter().enumerate() {
        cluster.put_seeded(key, i as u64 + 1, 70_000 + i);
    }
    cluster.add();
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn empty_tiny_and_uneven_shards() {
    let cluster = Cluster::start(2);
    for (i, len) in [0, 1, 65_535, 65_536, 65_537, 131_072, 0, 3].into_iter().enumerate() {
        cluster.put_seeded(&format!("{i}-{len}"), i as u64 + 1, len);
    }
    cluster.add();
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn one_node_and_only_empty_shards() {
    let cluster = Cluster::start(1);
    cluster.put("empty", Vec::new());
    cluster.add();
    cluster.stage_and_wait();
    cluster.assert_identical();
}

#[test]
fn refusals_have_their_exit_codes() {
    let cluster = Cluster::start(1);
    cluster.put_seeded("a", 1, 1000);
    cluster.add();
    let code = |arguments: &[&str]| cluster.cli_at(0, arguments).status.code();
    assert_eq!(code(&["stage", "nothing"]), Some(3));
    assert_eq!(code(&["stage", "d@v9"]), Some(3));
    assert_eq!(code(&["stage", DATASET, "--nodes", "nobody"]), Some(3));
    assert_eq!(code(&["dataset", "show", "nothing"]), Some(3));
    assert_eq!(code(&["path", DATASET]), Some(4));
    assert_eq!(code(&["wait", DATASET, "--timeout", "200ms"]), Some(4));
    assert_eq!(code(&["dataset", "add", "e", "no-url"]), Some(2));
    cluster.put_seeded("b", 2, 1000);
    let other = cluster.cli(&["dataset", "add", "d", "s3://data/d/", "--version", "v1"]);
    assert_eq!(other.status.code(), Some(8), "a version is immutable");
}

#[test]
fn an_index_that_is_older_than_the_data_is_told_of_and_left_aside() {
    let mut cluster = Cluster::start(1);
    cluster.put_seeded("a", 1, 200_000);
    let unused = |cluster: &mut Cluster| {
        let metrics = cluster.coordinator_metrics();
        let of = |reason: &str| metrics[&format!("millstream_indexes_unused_total{{reason=\"{reason}\"}}")];
        (of("stale"), of("damaged"))
    };
    assert_eq!(unused(&mut cluster), (0.0, 0.0));
    let index = |bytes: &'static str| {
        cluster.s3().put_bytes("data", "d/millstream-manifest.arrow", bytes, Default::default()).unwrap();
    };
    index("not an index");
    cluster.cli_ok(&["dataset", "add", "damaged", "s3://data/d/"]);
    assert_eq!(unused(&mut cluster), (0.0, 1.0));
    assert!(cluster.index_at("s3://data/d/"));
    cluster.put_seeded("a", 2, 200_000);
    cluster.add();
    assert_eq!(unused(&mut cluster), (1.0, 1.0));
    let status = cluster.status().unwrap();
    assert_eq!(status["coordinator"]["indexes_unused"], 2);
    let notices = status["notices"].to_string();
    assert!(notices.contains("is left aside") && notices.contains("older than the data"), "{notices}");
    cluster.stage_and_wait();
    cluster.assert_identical();
}
