//! The store against a reference model, crashes at every byte, damaged files, wrong wholes, full disks.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use md5::Digest as _;
use millstream_agent::buffers::Arena;
use millstream_agent::piece::{Served, Unverified, Verified};
use millstream_agent::storage::io::blocking::BlockingEngine;
use millstream_agent::storage::io::faulty::{Fault, FaultyEngine, On};
use millstream_agent::storage::{
    BadShard, DatasetError, EvictError, Keeper, OpenError, OpenedDataset, SealError, Store, StoreConfig, WriteError,
};
use millstream_agent::verify::check_shard;
use millstream_types::checksum::PieceCombiner;
use millstream_types::{Crc64, DatasetKind, Digest, Manifest, OriginChecksum, PieceNo, RunSet, ShardEntry, ShardNo};
use proptest::prelude::*;
use tempfile::TempDir;

const PIECE: u64 = 64 * 1024;
const ENTRY: usize = millstream_agent::storage::journal::ENTRY_BYTES;

fn content(len: u64, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..len).map(|_| (next() >> 32) as u8).collect()
}

/// A version with its true bytes.
struct Truth {
    manifest: Arc<Manifest>,
    shards: Vec<Vec<u8>>,
}

impl Truth {
    fn new(name: &str, lens: &[u64]) -> Truth {
        Truth::with(name, lens, |_, _| None)
    }

    fn with(name: &str, lens: &[u64], checksum: impl Fn(usize, &[u8]) -> Option<OriginChecksum>) -> Truth {
        let shards: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, &len)| content(len, i as u64 + 1)).collect();
        let entry = |(i, bytes): (usize, &Vec<u8>)| ShardEntry {
            key: format!("dir {}/{i:04}.tar", i / 2).parse().unwrap(),
            len: bytes.len() as u64,
            etag: None,
            version_id: None,
            checksum: checksum(i, bytes),
            piece_crcs: None,
        };
        let entries = shards.iter().enumerate().map(entry).collect();
        let kind = DatasetKind::Dataset;
        let manifest = Manifest::new(name.parse().unwrap(), kind, "s3://b/p".into(), PIECE, entries).unwrap();
        Truth { manifest: Arc::new(manifest), shards }
    }

    fn digest(&self) -> Digest {
        self.manifest.digest()
    }

    fn bytes(&self, piece: PieceNo) -> &[u8] {
        let place = self.manifest.layout().place(piece);
        &self.shards[place.shard as usize][place.offset as usize..][..place.len as usize]
    }

    fn crc(&self, shard: ShardNo) -> Crc64 {
        Crc64::of(&self.shards[shard as usize])
    }

    fn pieces(&self) -> u32 {
        self.manifest.layout().pieces()
    }
}

struct Rig {
    tmp: TempDir,
    arena: Arc<Arena>,
    engine: Arc<FaultyEngine>,
    store: Option<Arc<Store>>,
}

impl Rig {
    async fn new() -> Rig {
        let mut rig = Rig {
            tmp: tempfile::tempdir().unwrap(),
            arena: Arena::new(8 << 20).unwrap(),
            engine: FaultyEngine::new(Arc::new(BlockingEngine::new())),
            store: None,
        };
        rig.restart().await;
        rig
    }

    /// Another agent process on the same directory; what the old one had in memory is gone.
    async fn restart(&mut self) {
        self.store = None;
        assert_eq!(self.arena.free_bytes(), self.arena.bytes(), "every slot came back");
        let config = StoreConfig::new(self.tmp.path(), Some(1 << 30));
        self.store = Some(Store::open(config, self.engine.clone(), self.arena.clone()).await.unwrap());
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    async fn piece(&self, bytes: &[u8]) -> Verified {
        let mut slot = self.arena.slot(bytes.len()).await;
        slot[..bytes.len()].copy_from_slice(bytes);
        Unverified::sum(slot, bytes.len() as u32).learn_from_origin().0
    }

    async fn write(&self, truth: &Truth, piece: PieceNo) -> Result<(), WriteError> {
        let verified = self.piece(truth.bytes(piece)).await;
        let crc = verified.crc();
        self.store().write(&truth.digest(), piece, verified, crc, piece.is_multiple_of(2)).await
    }

    async fn write_shard(&self, truth: &Truth, shard: ShardNo) {
        for piece in truth.manifest.layout().shard_pieces(shard) {
            self.write(truth, piece).await.unwrap();
        }
    }

    async fn fill(&self, truth: &Truth) {
        self.store().open_dataset(truth.manifest.clone()).await.unwrap();
        for shard in 0..truth.shards.len() as u32 {
            self.write_shard(truth, shard).await;
            self.store().seal(&truth.digest(), shard, truth.crc(shard)).await.unwrap();
        }
    }

    async fn open(&self, truth: &Truth) -> OpenedDataset {
        self.store().open_dataset(truth.manifest.clone()).await.unwrap()
    }

    fn visible_path(&self, truth: &Truth, shard: ShardNo) -> PathBuf {
        let key = &truth.manifest.shards()[shard as usize].key;
        self.store().root_of(truth.manifest.name()).join(key.as_str())
    }

    fn partial_path(&self, truth: &Truth, name: &str) -> PathBuf {
        self.tmp.path().join("partial").join(truth.digest().to_string()).join(name)
    }

    /// The promise: what is visible is whole, right and read-only.
    fn check_visible(&self, truth: &Truth) -> BTreeSet<ShardNo> {
        let mut visible = BTreeSet::new();
        for shard in 0..truth.shards.len() as u32 {
            let path = self.visible_path(truth, shard);
            // One open file: others may discard the shard at any time.
            if let Ok(mut file) = fs::File::open(&path) {
                let mut found = Vec::new();
                file.read_to_end(&mut found).unwrap();
                assert!(found == truth.shards[shard as usize], "wrong bytes are visible: {path:?}");
                assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
                visible.insert(shard);
            }
        }
        visible
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_become_visible_shards_that_a_restart_trusts_without_reading() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[0, 1, PIECE, 3 * PIECE + 17]);
    assert_eq!(rig.open(&truth).await, OpenedDataset::default());
    let digest = truth.digest();
    rig.write(&truth, 0).await.unwrap();
    assert_eq!(rig.store().usage().partial_bytes, 1);
    let layout = truth.manifest.layout();
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 4);
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (layout.bytes(), 0));
    for piece in 0..layout.pieces() {
        let Served::File { file, offset, len, crc } = rig.store().read_piece(&digest, piece).await.unwrap() else {
            panic!("not from the file");
        };
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes == truth.bytes(piece) && crc == Crc64::of(&bytes));
    }

    rig.restart().await;
    assert_eq!(rig.store().usage().used_bytes, layout.bytes(), "also before it is opened");
    rig.engine.inject(On::Read, 0, 1000, Fault::Io);
    let opened = rig.open(&truth).await;
    rig.engine.heal();
    assert_eq!(opened.have, RunSet::from_range(0..layout.pieces()));
    assert_eq!(opened.sealed, RunSet::from_range(0..4));
    let crcs: Vec<Crc64> = (0..layout.pieces()).map(|p| Crc64::of(truth.bytes(p))).collect();
    assert_eq!(opened.crcs, [(0, crcs.clone())]);
    let from_origin: Vec<_> = (0..layout.pieces()).step_by(2).map(|p| (p, vec![crcs[p as usize]])).collect();
    assert_eq!(opened.origin_read, from_origin);
    let all: Vec<Crc64> = (0..4).flat_map(|shard| rig.store().sealed_crcs(&digest, shard).unwrap()).collect();
    assert_eq!(all, crcs);
    for shard in 0..4 {
        rig.store().verify_shard(&digest, shard).await.unwrap();
        let serving = rig.store().read_piece(&digest, layout.shard_pieces(shard).start).await;
        assert_eq!(serving.is_ok(), layout.shard_len(shard) > 0 || shard == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_do_not_fit_are_refused() {
    let rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE]);
    let crc = Crc64::of(truth.bytes(0));
    let not_open = rig.store().write(&truth.digest(), 0, rig.piece(truth.bytes(0)).await, crc, false).await;
    assert!(matches!(not_open, Err(WriteError::NotOpen(_))));
    rig.open(&truth).await;
    let short = rig.piece(&truth.bytes(0)[..100]).await;
    let short_crc = short.crc();
    for (piece, bytes, crc) in [(0, short.clone(), short_crc), (0, rig.piece(truth.bytes(0)).await, short_crc)] {
        let refused = rig.store().write(&truth.digest(), piece, bytes, crc, false).await;
        assert!(matches!(refused, Err(WriteError::WrongPiece { .. })), "{refused:?}");
    }
    let beyond = rig.store().write(&truth.digest(), 2, short, short_crc, false).await;
    assert!(matches!(beyond, Err(WriteError::WrongPiece { .. })));
    rig.write(&truth, 0).await.unwrap();
    rig.write(&truth, 0).await.unwrap();
    let other = rig.piece(&content(PIECE, 99)).await;
    let other_crc = other.crc();
    let conflict = rig.store().write(&truth.digest(), 0, other, other_crc, false).await;
    assert!(matches!(conflict, Err(WriteError::WrongPiece { .. })));
    let early = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
    assert!(matches!(early, Err(SealError::Incomplete { missing: 1, .. })));
    assert!(rig.store().read_piece(&truth.digest(), 1).await.is_err());
    assert!(rig.store().seal(&truth.digest(), 9, Crc64(0)).await.is_err());
    assert!(rig.check_visible(&truth).is_empty());
}

fn sums(bytes: &[u8]) -> [OriginChecksum; 4] {
    [
        OriginChecksum::Crc64Nvme(Crc64::of(bytes)),
        OriginChecksum::Crc32c(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32),
        OriginChecksum::Sha256(sha2::Sha256::digest(bytes).into()),
        OriginChecksum::Md5(md5::Md5::digest(bytes).into()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_origin_says_becomes_visible() {
    for small_arena in [false, true] {
        let mut rig = Rig::new().await;
        if small_arena {
            // One slot: no reading ahead.
            rig.arena = Arena::new(1).unwrap();
            rig.restart().await;
        }
        let lens = [3 * PIECE + 5; 4];
        let good = Truth::with("d@good", &lens, |i, bytes| Some(sums(bytes)[i].clone()));
        let bad = Truth::with("d@bad", &lens, |i, bytes| Some(sums(&bytes[1..])[i].clone()));
        rig.fill(&good).await;
        assert_eq!(rig.check_visible(&good).len(), 4);
        rig.open(&bad).await;
        for shard in 0..4 {
            rig.write_shard(&bad, shard).await;
            let sealed = rig.store().seal(&bad.digest(), shard, bad.crc(shard)).await;
            let Err(SealError::Mismatch { expected, actual, .. }) = sealed else { panic!("{sealed:?}") };
            let entry = &bad.manifest.shards()[shard as usize];
            assert_eq!(expected, entry.checksum.as_ref().unwrap().to_string());
            assert_ne!(expected, actual);
            assert_eq!(expected.split(':').next(), actual.split(':').next());
        }
        assert!(rig.check_visible(&bad).is_empty());
        // A caller whose pieces are others.
        let told = rig.store().seal(&bad.digest(), 0, Crc64(1)).await;
        assert!(matches!(told, Err(SealError::Mismatch { .. })));
        // The origin's bytes are fetched again after the wrong ones were discarded.
        rig.store().discard_shard(&bad.digest(), 1).await.unwrap();
        assert!(rig.store().read_piece(&bad.digest(), bad.manifest.layout().shard_pieces(1).start).await.is_err());
        rig.write_shard(&bad, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_changes_bytes_is_caught_before_they_are_visible() {
    let rig = Rig::new().await;
    let truth = Truth::with("d@v1", &[3 * PIECE], |_, bytes| Some(sums(bytes)[2].clone()));
    rig.open(&truth).await;
    for fault in [Fault::FlipBit(7), Fault::Lost] {
        rig.engine.inject(On::Write, 1, 1, fault);
        rig.write_shard(&truth, 0).await;
        let sealed = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
        assert!(matches!(sealed, Err(SealError::Corrupt { piece: 1, .. })), "{sealed:?}");
        assert!(rig.check_visible(&truth).is_empty());
        rig.store().discard_shard(&truth.digest(), 0).await.unwrap();
    }
    for on in [On::Sync, On::Read] {
        rig.write_shard(&truth, 0).await;
        rig.engine.inject(on, 0, 1, Fault::Io);
        let sealed = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
        assert!(matches!(sealed, Err(SealError::Disk { .. })), "{sealed:?}");
        assert!(rig.check_visible(&truth).is_empty());
    }
    rig.store().seal(&truth.digest(), 0, truth.crc(0)).await.unwrap();
    assert_eq!(rig.check_visible(&truth).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_the_piece_and_nothing_else() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE, PIECE]);
    rig.open(&truth).await;
    rig.write(&truth, 0).await.unwrap();
    rig.engine.inject(On::Write, 0, 1, Fault::NoSpace);
    let full = rig.write(&truth, 1).await.unwrap_err();
    assert!(full.is_no_space() && full.to_string().contains("dir 0/0000.tar"), "{full}");
    rig.engine.inject(On::Open, 0, 1, Fault::NoSpace);
    assert!(rig.write(&truth, 2).await.unwrap_err().is_no_space());
    rig.engine.inject(On::Write, 0, 1, Fault::Torn);
    assert!(!rig.write(&truth, 1).await.unwrap_err().is_no_space());
    assert_eq!(rig.store().usage().partial_bytes, PIECE);
    rig.restart().await;
    assert_eq!(rig.open(&truth).await.have, RunSet::from_range(0..1));
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_may_be_cut_anywhere() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
    rig.open(&truth).await;
    let order: Vec<PieceNo> = vec![2, 0, 3, 1];
    for &piece in &order {
        rig.write(&truth, piece).await.unwrap();
    }
    let journal = rig.partial_path(&truth, "journal");
    let whole = fs::read(&journal).unwrap();
    assert_eq!(whole.len(), order.len() * ENTRY);
    let saved: Vec<Vec<u8>> = (0..2).map(|s| fs::read(rig.partial_path(&truth, &s.to_string())).unwrap()).collect();
    for cut in 0..=whole.len() {
        rig.store = None;
        fs::write(&journal, &whole[..cut]).unwrap();
        for (shard, bytes) in saved.iter().enumerate() {
            fs::write(rig.partial_path(&truth, &shard.to_string()), bytes).unwrap();
        }
        rig.restart().await;
        let expected: RunSet = order[..cut / ENTRY].iter().copied().collect();
        assert_eq!(rig.open(&truth).await.have, expected, "cut at {cut}");
        // What comes after a torn tail is found again, too.
        if cut % 16 == 5 {
            rig.write(&truth, order[cut / ENTRY]).await.unwrap();
            rig.restart().await;
            let expected: RunSet = order[..=cut / ENTRY].iter().copied().collect();
            assert_eq!(rig.open(&truth).await.have, expected, "cut at {cut}, and one more");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_partial_files_cost_the_damaged_pieces() {
    type Damage = fn(&PathBuf);
    let damages: [(Damage, &[PieceNo]); 4] = [
        (|path| fs::File::options().write(true).open(path).unwrap().set_len(PIECE + 10).unwrap(), &[0]),
        (|path| fs::File::options().write(true).open(path).unwrap().write_all_at(b"!", 5).unwrap(), &[1, 2]),
        (|path| fs::remove_file(path).unwrap(), &[]),
        (
            |path| {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
            },
            &[],
        ),
    ];
    for (damage, left) in damages {
        let mut rig = Rig::new().await;
        let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
        rig.open(&truth).await;
        for piece in 0..truth.pieces() {
            rig.write(&truth, piece).await.unwrap();
        }
        rig.store = None;
        damage(&rig.partial_path(&truth, "0"));
        rig.restart().await;
        let expected: RunSet = left.iter().copied().chain([3]).collect();
        assert_eq!(rig.open(&truth).await.have, expected);
        rig.fill(&truth).await;
        assert_eq!(rig.check_visible(&truth).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_file_that_was_touched_is_checked_again() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE, PIECE, PIECE]);
    rig.fill(&truth).await;
    let path = |shard| rig.visible_path(&truth, shard);
    let open = |shard| fs::File::options().write(true).open(path(shard)).unwrap();
    let (touched, bitten, gone) = (path(0), path(1), path(2));
    open(0).set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    open(1).write_all_at(b"??", 100).unwrap();
    fs::remove_file(&gone).unwrap();
    let before = fs::metadata(&touched).unwrap().ino();
    rig.restart().await;
    let opened = rig.open(&truth).await;
    assert_eq!(opened.sealed, [0, 3].into_iter().collect::<RunSet>());
    let place = truth.manifest.layout().shard_pieces(3).start;
    assert_eq!(opened.have, [0, 1, 2, place].into_iter().collect::<RunSet>());
    assert_eq!(rig.check_visible(&truth), BTreeSet::from([0, 3]));
    assert_eq!(fs::metadata(&touched).unwrap().ino(), before, "the same file");
    assert!(!bitten.exists());
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (3 * PIECE + 9, 0));
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 4);
    rig.restart().await;
    rig.engine.inject(On::Read, 0, 1000, Fault::Io);
    assert_eq!(rig.open(&truth).await.sealed.len(), 4, "trusted again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_records_are_made_up_for_by_the_journal() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
    rig.fill(&truth).await;
    let records = rig.tmp.path().join("records").join(truth.digest().to_string());
    let whole = fs::read(&records).unwrap();
    fs::write(&records, &whole[..whole.len() - 1]).unwrap();
    rig.restart().await;
    assert_eq!(rig.open(&truth).await.sealed.len(), 2);
    assert_eq!(rig.check_visible(&truth).len(), 2);
    // Without either, nobody knows what the bytes should be: they are not visible any more.
    rig.store = None;
    fs::remove_file(&records).unwrap();
    fs::write(rig.partial_path(&truth, "journal"), b"").unwrap();
    rig.restart().await;
    assert_eq!(rig.open(&truth).await, OpenedDataset::default());
    assert!(rig.check_visible(&truth).is_empty());
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_sealers_and_discarders_at_once_never_show_wrong_bytes() {
    let rig = Arc::new(Rig::new().await);
    let truth = Arc::new(Truth::new("d@v1", &[3 * PIECE, 2 * PIECE + 1, PIECE]));
    rig.open(&truth).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6u32 {
        let (rig, truth) = (rig.clone(), truth.clone());
        tasks.spawn(async move {
            for round in 0..30u32 {
                let shard = (task + round) % 3;
                match task {
                    0 => drop(rig.store().discard_shard(&truth.digest(), shard).await),
                    1 | 2 => drop(rig.store().seal(&truth.digest(), shard, truth.crc(shard)).await),
                    _ => {
                        for piece in truth.manifest.layout().shard_pieces(shard) {
                            rig.write(&truth, piece).await.unwrap();
                        }
                    }
                }
                rig.check_visible(&truth);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let opened = rig.open(&truth).await;
    assert_eq!(rig.check_visible(&truth), opened.sealed.iter().collect());
    for piece in opened.have.iter() {
        let Ok(Served::File { file, offset, len, .. }) = rig.store().read_piece(&truth.digest(), piece).await else {
            panic!("piece {piece} is said to be here");
        };
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes == truth.bytes(piece));
    }
    let layout = truth.manifest.layout();
    let have: u64 = opened.have.runs().iter().map(|r| layout.range_bytes(r.clone())).sum();
    let usage = rig.store().usage();
    assert_eq!(usage.used_bytes + usage.partial_bytes, have);
}

// ------------------------------------------------------------------ the model

#[derive(Clone, Debug)]
enum Op {
    Write(u32),
    WriteShard(u32),
    Seal(u32),
    Discard(u32),
    Verify(u32),
    Restart,
    /// A crash that loses the last entries of the journal.
    CutJournal(u16),
    /// A crash after which a piece of a partial file holds other bytes.
    FlipPartial(u32),
    /// Bit rot in a visible file that also changes its time.
    FlipSealed(u32),
    Evict,
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u32>();
    prop_oneof![
        8 => n.prop_map(Op::Write),
        4 => n.prop_map(Op::WriteShard),
        6 => n.prop_map(Op::Seal),
        2 => n.prop_map(Op::Discard),
        1 => n.prop_map(Op::Verify),
        2 => Just(Op::Restart),
        1 => any::<u16>().prop_map(Op::CutJournal),
        1 => n.prop_map(Op::FlipPartial),
        1 => n.prop_map(Op::FlipSealed),
        1 => Just(Op::Evict),
    ]
}

#[derive(Default)]
struct Model {
    have: BTreeSet<PieceNo>,
    sealed: BTreeSet<ShardNo>,
}

impl Model {
    fn lose_shard(&mut self, truth: &Truth, shard: ShardNo) {
        let pieces = truth.manifest.layout().shard_pieces(shard);
        self.have.retain(|piece| !pieces.contains(piece));
        self.sealed.remove(&shard);
    }

    fn is_complete(&self, truth: &Truth, shard: ShardNo) -> bool {
        truth.manifest.layout().shard_pieces(shard).all(|piece| self.have.contains(&piece))
    }
}

async fn step(rig: &mut Rig, truth: &Truth, model: &mut Model, op: Op) {
    let layout = truth.manifest.layout();
    let digest = truth.digest();
    let shard_of = |n: u32| n % layout.shards();
    match op {
        Op::Write(n) => {
            rig.write(truth, n % layout.pieces()).await.unwrap();
            model.have.insert(n % layout.pieces());
        }
        Op::WriteShard(n) => {
            rig.write_shard(truth, shard_of(n)).await;
            model.have.extend(layout.shard_pieces(shard_of(n)));
        }
        Op::Seal(n) => {
            let sealed = rig.store().seal(&digest, shard_of(n), truth.crc(shard_of(n))).await;
            assert_eq!(sealed.is_ok(), model.is_complete(truth, shard_of(n)), "{sealed:?}");
            sealed.is_ok().then(|| model.sealed.insert(shard_of(n)));
        }
        Op::Discard(n) => {
            rig.store().discard_shard(&digest, shard_of(n)).await.unwrap();
            model.lose_shard(truth, shard_of(n));
        }
        Op::Verify(n) => {
            let verified = rig.store().verify_shard(&digest, shard_of(n)).await;
            assert_eq!(verified.is_ok(), model.sealed.contains(&shard_of(n)), "{verified:?}");
        }
        Op::Restart => {
            rig.restart().await;
            rig.open(truth).await;
        }
        Op::CutJournal(n) => {
            rig.store = None;
            let path = rig.partial_path(truth, "journal");
            let journal = fs::read(&path).unwrap();
            let cut = journal.len() - usize::from(n) % (journal.len() + 1);
            fs::write(&path, &journal[..cut]).unwrap();
            // What entries the store has is its own affair: here only that it never claims too much.
            rig.restart().await;
            let have: BTreeSet<PieceNo> = rig.open(truth).await.have.iter().collect();
            assert!(have.is_subset(&model.have));
            let lost: Vec<_> = model.have.difference(&have).collect();
            assert!(lost.len() <= (journal.len() - cut).div_ceil(ENTRY), "{lost:?} for {cut}");
            assert!(lost.iter().all(|piece| !model.sealed.contains(&layout.shard_of(**piece))));
            model.have = have;
        }
        Op::FlipPartial(n) => {
            let piece = n % layout.pieces();
            let place = layout.place(piece);
            if model.sealed.contains(&place.shard) || !model.have.contains(&piece) {
                return;
            }
            rig.store = None;
            let path = rig.partial_path(truth, &place.shard.to_string());
            let at = place.offset + u64::from(n) % u64::from(place.len);
            let byte = truth.shards[place.shard as usize][at as usize];
            fs::File::options().write(true).open(path).unwrap().write_all_at(&[!byte], at).unwrap();
            rig.restart().await;
            rig.open(truth).await;
            model.have.remove(&piece);
        }
        Op::FlipSealed(n) => {
            let piece = n % layout.pieces();
            let place = layout.place(piece);
            if !model.sealed.contains(&place.shard) {
                return;
            }
            let path = rig.visible_path(truth, place.shard);
            rig.store = None;
            let at = place.offset + u64::from(n) % u64::from(place.len);
            let byte = truth.shards[place.shard as usize][at as usize];
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[!byte], at).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            rig.restart().await;
            rig.open(truth).await;
            model.have.remove(&piece);
            model.sealed.remove(&place.shard);
        }
        Op::Evict => {
            rig.store().evict(&digest).await.unwrap();
            *model = Model::default();
            rig.open(truth).await;
        }
    }
}

async fn check(rig: &Rig, truth: &Truth, model: &Model) {
    let layout = truth.manifest.layout();
    let opened = rig.open(truth).await;
    assert_eq!(opened.have.iter().collect::<BTreeSet<_>>(), model.have);
    assert_eq!(opened.sealed.iter().collect::<BTreeSet<_>>(), model.sealed);
    assert_eq!(rig.check_visible(truth), model.sealed, "exactly what is sealed is visible");
    let crcs: BTreeMap<PieceNo, Crc64> =
        opened.crcs.iter().flat_map(|(first, crcs)| (*first..).zip(crcs.iter().copied())).collect();
    assert_eq!(crcs, model.have.iter().map(|&p| (p, Crc64::of(truth.bytes(p)))).collect());
    let used: u64 = model.sealed.iter().map(|&s| layout.shard_len(s)).sum();
    let have: u64 = model.have.iter().map(|&p| u64::from(layout.place(p).len)).sum();
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (used, have - used));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn behaves_like_the_model(
        lens in proptest::collection::vec(prop_oneof![Just(0), 1..PIECE, Just(PIECE), PIECE..4 * PIECE], 1..5),
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let truth = Truth::with("d@v1", &lens, |i, bytes| sums(bytes).get(i).cloned());
        prop_assume!(truth.pieces() > 0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut rig = Rig::new().await;
            rig.open(&truth).await;
            let mut model = Model::default();
            for op in ops {
                step(&mut rig, &truth, &mut model, op).await;
                check(&rig, &truth, &model).await;
            }
        });
    }
}

#[test]
fn piece_checksums_of_the_tests_combine() {
    let truth = Truth::new("d@v1", &[3 * PIECE + 5]);
    let crcs = (0..truth.pieces()).map(|piece| Crc64::of(truth.bytes(piece)));
    assert_eq!(PieceCombiner::new(PIECE).shard(crcs, 3 * PIECE + 5), truth.crc(0));
}
