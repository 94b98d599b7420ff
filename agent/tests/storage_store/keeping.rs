//! What is there: verified again, kept, evicted, refused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;

use millstream_agent::storage::{
    BadShard, DatasetError, EvictError, Keeper, OpenError, OpenedDataset, SealError, Store, StoreConfig, WriteError,
};
use millstream_agent::verify::check_shard;
use millstream_types::Crc64;

use crate::rig::{PIECE, Rig, Truth};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_what_is_wrong() {
    let rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[3 * PIECE, PIECE, PIECE, PIECE]);
    let digest = truth.digest();
    rig.fill(&truth).await;
    let open = |shard| fs::File::options().write(true).open(rig.visible_path(&truth, shard)).unwrap();
    open(0).write_all_at(b"x", 2 * PIECE + 77).unwrap();
    open(1).set_len(100).unwrap();
    fs::remove_file(rig.visible_path(&truth, 2)).unwrap();
    let bad = rig.store().verify_shard(&digest, 0).await.unwrap_err();
    let (piece, expected, actual) = bad.piece_parts();
    assert_eq!((piece, expected), (Some(2), Crc64::of(truth.bytes(2)).to_string()));
    assert!(actual.starts_with("crc64nvme:") && bad.to_string().contains("dir 0/0000.tar"));
    let bad = rig.store().verify_shard(&digest, 1).await.unwrap_err();
    assert!(matches!(bad, BadShard::Length { expected: PIECE, actual: 100, .. }), "{bad}");
    assert!(matches!(rig.store().verify_shard(&digest, 2).await.unwrap_err(), BadShard::Unreadable { .. }));
    rig.store().verify_shard(&digest, 3).await.unwrap();
    for shard in 0..3 {
        rig.store().discard_shard(&digest, shard).await.unwrap();
        assert!(matches!(rig.store().verify_shard(&digest, shard).await, Err(BadShard::NotSealed { .. })));
        // The scrub may come to a shard that was just dropped: that is no finding.
        assert!(!check_shard(rig.store(), &truth.manifest, shard).await.unwrap());
    }
    assert_eq!(rig.check_visible(&truth), BTreeSet::from([3]));
    assert_eq!(rig.store().usage().used_bytes, PIECE);
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_links_are_not_followed() {
    let rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[PIECE, PIECE, PIECE]);
    let outside = tempfile::tempdir().unwrap();
    let root = rig.store().root_of(truth.manifest.name());
    fs::create_dir_all(root.join("dir 1")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.join("dir 0")).unwrap();
    fs::write(outside.path().join("victim"), "v").unwrap();
    std::os::unix::fs::symlink(outside.path().join("victim"), root.join("dir 1/0002.tar")).unwrap();
    rig.open(&truth).await;
    rig.write_shard(&truth, 0).await;
    rig.write_shard(&truth, 2).await;
    assert!(matches!(rig.store().seal(&truth.digest(), 0, truth.crc(0)).await, Err(SealError::Disk { .. })));
    rig.store().seal(&truth.digest(), 2, truth.crc(2)).await.unwrap();
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"v");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was written outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_not_evicted_and_what_does_not_fit_is_refused() {
    let mut rig = Rig::new().await;
    let (a, b) = (Truth::new("a@v1", &[PIECE, 5]), Truth::new("b@v1", &[PIECE]));
    rig.fill(&a).await;
    rig.open(&b).await;
    rig.write(&b, 0).await.unwrap();
    let total = PIECE + 5;
    let no_space = rig.store().reserve(&b.digest(), 2 << 30).unwrap_err();
    let free = (1 << 30) - total - PIECE;
    assert_eq!((no_space.needed, no_space.free, no_space.capacity), ((2 << 30) - PIECE, free, 1 << 30));
    rig.store().reserve(&b.digest(), free + PIECE).unwrap();
    assert!(rig.store().reserve(&a.digest(), total + 1).is_err(), "all of it is reserved");

    rig.store().set_pin(&a.digest(), true, "").unwrap();
    assert_eq!(rig.store().usage().pinned_bytes, total);
    assert!(matches!(rig.store().evict(&a.digest()).await, Err(EvictError::Kept { keeper: Keeper::Pin, .. })));
    rig.store().save_manifest(&a.digest(), b"a manifest").await.unwrap();
    rig.restart().await;
    rig.open(&a).await;
    assert!(matches!(rig.store().evict(&a.digest()).await, Err(EvictError::Kept { .. })));
    rig.store().set_pin(&a.digest(), false, "").unwrap();
    let lease = rig.store().lease(&a.digest(), "a test");
    let kept = rig.store().evict(&a.digest()).await.unwrap_err();
    assert!(kept.to_string().contains("a@v1") && kept.to_string().contains("1 open reader"), "{kept}");
    rig.write(&a, 0).await.unwrap(); // still open
    drop(lease);
    assert_eq!(rig.store().datasets_on_disk().await.unwrap(), [a.digest()]);
    assert_eq!(rig.store().evict(&a.digest()).await.unwrap(), total);
    assert!(!rig.store().root_of(a.manifest.name()).exists());
    assert!(!rig.partial_path(&a, "").exists());
    assert_eq!(rig.store().load_manifest(&a.digest()).await.unwrap(), None);
    assert!(matches!(rig.write(&a, 0).await, Err(WriteError::NotOpen(_))));
    assert!(matches!(rig.store().evict(&a.digest()).await, Err(EvictError::NotOpen(_))));
    assert_eq!(rig.open(&a).await, OpenedDataset::default());
    rig.fill(&a).await;
    assert_eq!(rig.check_visible(&a).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_per_directory_and_one_content_per_name() {
    let rig = Rig::new().await;
    let config = StoreConfig::new(rig.tmp.path(), None);
    let second = Store::open(config, rig.engine.clone(), rig.arena.clone()).await.unwrap_err();
    let OpenError::Locked { holder, .. } = &second else { panic!("{second}") };
    assert!(holder.contains(&std::process::id().to_string()));
    let (one, two) = (Truth::new("d@v1", &[1]), Truth::new("d@v1", &[2]));
    rig.fill(&one).await;
    let taken = rig.store().open_dataset(two.manifest.clone()).await.unwrap_err();
    assert!(matches!(taken, DatasetError::NameTaken { other, .. } if other == one.digest()));
    rig.store().evict(&one.digest()).await.unwrap();
    rig.fill(&two).await;
}
