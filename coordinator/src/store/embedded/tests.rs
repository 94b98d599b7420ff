use std::fs;
use std::sync::Arc;

use millstream_types::{Crc64, StageId};

use super::*;
use crate::store::pending::Pending;

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn version(n: u8) -> Change {
    Change::AddVersion {
        digest: digest(n),
        record: VersionRecord {
            name: format!("d@v{n}").parse().unwrap(),
            sequence: 100 - u64::from(n),
            created_unix_s: 7,
            indexed: false,
        },
        manifest: Arc::new(vec![n; 1000]),
    }
}

fn stage(id: u64) -> StageRecord {
    StageRecord {
        id,
        digest: digest(1).to_string(),
        nodes: vec!["a".into()],
        spread: Some(2),
        window: false,
        priority: 3,
        created_unix_s: 4,
        for_jobs: false,
    }
}

fn learn(digest: Digest, first: u32, crcs: &[u64]) -> Vec<Change> {
    let crcs: Vec<_> = crcs.iter().copied().map(Crc64).collect();
    let mut pending = Pending::default();
    pending.learn(digest, first, &crcs);
    pending.into_changes()
}

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = EmbeddedStore::open(dir.path()).unwrap();
        store.commit(&[version(1), version(2), version(3)]).unwrap();
        store.commit(&learn(digest(1), 1020, &[1, 2, 3, 4, 5, 6])).unwrap();
        store.commit(&learn(digest(2), 0, &[9])).unwrap();
        let pin = |pinned| Change::Pin { digest: digest(1), node: "n".into(), pinned, by: "ann@login".into() };
        store.commit(&[Change::PutStage(stage(1)), Change::PutStage(stage(2)), pin(true)]).unwrap();
        let gone = Change::RemoveVersion { digest: digest(3), name: "d@v3".parse().unwrap() };
        store.commit(&[gone, Change::RemoveStage(StageId(1)), Change::Audit("hello".into())]).unwrap();
    }
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let loaded = store.load().unwrap();
    let names: Vec<_> = loaded.versions.iter().map(|(_, r)| r.name.to_string()).collect();
    assert_eq!(names, ["d@v2", "d@v1"], "in order of creation");
    assert_eq!(loaded.stages, [stage(2)]);
    assert_eq!(loaded.pins, [(digest(1), "n".to_owned(), "ann@login".to_owned())]);
    assert_eq!(loaded.removed, [(digest(3), "d@v3".parse().unwrap())]);
    assert_eq!(store.manifest(digest(2)).unwrap(), Some(vec![2; 1000]));
    assert_eq!(store.manifest(digest(3)).unwrap(), None);
    let crcs = (1..=6).map(Crc64).collect();
    assert_eq!(store.checksums(digest(1)).unwrap(), [(1020, crcs)]);
    assert_eq!(store.audit(10).unwrap(), ["hello"]);
}

#[test]
fn a_removed_version_takes_only_its_own_checksums_and_pins() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    for n in [1, 2, 3] {
        store.commit(&learn(digest(n), 0, &[n.into()])).unwrap();
        let pin = Change::Pin { digest: digest(n), node: "n".into(), pinned: true, by: String::new() };
        store.commit(&[version(n), pin]).unwrap();
    }
    let gone = Change::RemoveVersion { digest: digest(2), name: "d@v2".parse().unwrap() };
    store.commit(&[gone]).unwrap();
    assert!(store.checksums(digest(2)).unwrap().is_empty());
    for n in [1, 3] {
        assert_eq!(store.checksums(digest(n)).unwrap(), [(0, vec![Crc64(n.into())])]);
    }
    assert_eq!(store.load().unwrap().pins.len(), 2);
}

#[test]
fn the_audit_log_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let lines: Vec<_> = (0..AUDIT_LINES_MAX + 5).map(|n| Change::Audit(n.to_string())).collect();
    store.commit(&lines).unwrap();
    let kept = store.audit(usize::MAX).unwrap();
    assert_eq!(kept.len() as u64, AUDIT_LINES_MAX);
    assert_eq!(kept[0], "5");
}

#[test]
fn a_second_process_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _first = EmbeddedStore::open(dir.path()).unwrap();
    let error = EmbeddedStore::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

/// A copy of the file as it lies there while the store is open: what `kill -9` leaves.
#[test]
fn a_killed_process_leaves_what_was_committed() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = EmbeddedStore::open(dir.path()).unwrap();
    for n in 0..50 {
        store.commit(&[version(n), Change::PutStage(stage(n.into()))]).unwrap();
        fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
        let reopened = EmbeddedStore::open(copy.path()).unwrap();
        let loaded = reopened.load().unwrap();
        assert_eq!(loaded.versions.len(), usize::from(n) + 1);
        assert_eq!(loaded.stages.len(), usize::from(n) + 1);
    }
}

/// Whatever is done to the file: the catalog as it was at some commit, or an error that names the file. No panic,
/// and no half of a commit.
#[test]
fn a_damaged_file_is_recovered_or_named() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    {
        let store = EmbeddedStore::open(dir.path()).unwrap();
        for n in 0..20 {
            store.commit(&[version(n), Change::PutStage(stage(n.into()))]).unwrap();
        }
    }
    let good = fs::read(dir.path().join(FILE)).unwrap();
    let mut errors = 0;
    for cut in 0..40 {
        let mut bytes = good.clone();
        let at = good.len() * cut / 40;
        if cut % 2 == 0 {
            bytes.truncate(at);
        } else {
            let end = (at + 5000).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|b| *b ^= 0xa5);
        }
        fs::write(copy.path().join(FILE), &bytes).unwrap();
        match EmbeddedStore::open(copy.path()).and_then(|s| s.load()) {
            Ok(loaded) => assert_eq!(loaded.versions.len(), loaded.stages.len(), "cut {cut}"),
            Err(error) => {
                errors += 1;
                let text = error.to_string();
                assert!(text.contains(FILE), "{text}");
                assert!(text.contains("restore a copy") || text.contains("check"), "{text}");
            }
        }
    }
    assert!(errors > 5, "the damage must have been seen: {errors}");
}
