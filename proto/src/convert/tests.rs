use super::*;
use proptest::prelude::*;

fn runs(start_len: &[u32]) -> v1::Runs {
    v1::Runs { start_len: start_len.to_vec() }
}

#[test]
fn runs_that_are_no_set_are_refused() {
    assert!(runs_to_set(&runs(&[0, 3, 3, 1, 9, 1])).is_ok());
    assert!(runs_to_set(&runs(&[u32::MAX - 1, 1])).is_ok());
    for bad in [&[1u32][..], &[1, 0], &[5, 2, 1, 1], &[0, 3, 2, 1], &[u32::MAX, 1]] {
        assert!(runs_to_set(&runs(bad)).is_err(), "{bad:?}");
    }
    assert!(runs_within(&runs(&[0, 4]), 4).is_ok());
    let e = runs_within(&runs(&[0, 5]), 4).unwrap_err();
    assert_eq!(e.to_string(), "runs: number 4, but the version ends at 4");
}

#[test]
fn ranges_and_checksums_stay_in_the_version() {
    assert_eq!(range_within("x", 2, 3, 5), Ok(2..5));
    assert!(range_within("x", 2, 4, 5).is_err());
    assert!(range_within("x", 2, 0, 5).is_err());
    assert!(range_within("x", u32::MAX, 2, u32::MAX).is_err());
    let message = v1::PieceChecksums { dataset: 0, first: 1, crcs: vec![7, 8] };
    assert_eq!(crcs_within(&message, 3), Ok((1, vec![Crc64(7), Crc64(8)])));
    assert!(crcs_within(&message, 2).is_err());
}

#[test]
fn sources_travel() {
    for s in [WireSource::Origin, WireSource::Peer { node: "n1".into(), address: "[::1]:7072".into() }] {
        assert_eq!(source("source", Some(&s.clone().into())), Ok(s));
    }
    assert!(source("source", None).is_err());
    assert!(source("source", Some(&v1::Source { from: None })).is_err());
}

#[test]
fn addresses() {
    for good in ["h:1", "10.0.0.1:7072", "[fe80::1]:65535", "a-b.c:80"] {
        assert!(address("a", good).is_ok(), "{good}");
    }
    for bad in ["", "h", ":1", "h:", "h:0", "h:65536", "::1:80", "h x:1", "u@h:1", "http://h:1"] {
        assert!(address("a", bad).is_err(), "{bad}");
    }
}

#[test]
fn names_and_labels() {
    assert!(node_name("node", "gpu-01.example_x").is_ok());
    for bad in ["", "a b", "a\n", "a,b", "a[1]", &"x".repeat(256)] {
        assert!(node_name("node", bad).is_err(), "{bad:?}");
    }
    let one = |k: &str, v: &str| HashMap::from([(k.to_owned(), v.to_owned())]);
    assert_eq!(labels("l", &one("rack", "r 1")).unwrap()["rack"], "r 1");
    assert!(labels("l", &one("", "v")).is_err());
    assert!(labels("l", &one("k", "v\u{1b}")).is_err());
    let many = (0..LABELS_MAX + 1).map(|i| (i.to_string(), String::new()));
    assert!(labels("l", &many.collect()).is_err());
}

#[test]
fn hostlists_expand_as_slurm_writes_them() {
    let expand = |s: &str| hostlist("nodes", s).unwrap().join(" ");
    assert_eq!(expand("node[01-04,7],x"), "node01 node02 node03 node04 node7 x");
    assert_eq!(expand("a, b ,a"), "a b");
    assert_eq!(expand("r[1-2]n[09-10]-ib"), "r1n09-ib r1n10-ib r2n09-ib r2n10-ib");
    assert_eq!(expand("n[8-11]"), "n8 n9 n10 n11");
    assert_eq!(hostlist("nodes", "n[0-65535]").unwrap().len(), 65_536);
}

#[test]
fn hostlists_that_mean_nothing_or_too_much_are_refused() {
    for bad in [
        "",
        "a,,b",
        "a[1",
        "a]1",
        "a[[1]]",
        "a[]",
        "a[1-]",
        "a[3-1]",
        "a[x]",
        "a[1,,2]",
        "n[0-65536]",
        "n[1-300][1-300]",
        "n[1-99999999999999999999]",
        "n[0-65535],m",
        "a b",
    ] {
        assert!(hostlist("nodes", bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn sets_travel(numbers in proptest::collection::btree_set(0u32..500, 0..60)) {
        let set: RunSet = numbers.iter().copied().collect();
        prop_assert_eq!(runs_to_set(&set_to_runs(&set)), Ok(set));
    }

    #[test]
    fn no_text_panics(text in "[a-c\\[\\],0-9\\- ]{0,40}") {
        if let Ok(names) = hostlist("nodes", &text) {
            prop_assert!(!names.is_empty() && names.len() <= HOSTLIST_NAMES_MAX);
            // What a list expands to is a list of itself.
            prop_assert_eq!(hostlist("nodes", &names.join(",")), Ok(names));
        }
    }
}
