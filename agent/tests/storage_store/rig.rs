//! A store in a directory of its own, and versions whose bytes are known.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use md5::Digest as _;
use millstream_agent::buffers::Arena;
use millstream_agent::piece::{Unverified, Verified};
use millstream_agent::storage::io::blocking::BlockingEngine;
use millstream_agent::storage::io::faulty::FaultyEngine;
use millstream_agent::storage::{OpenedDataset, Store, StoreConfig, WriteError};
use millstream_types::{Crc64, DatasetKind, Digest, Manifest, OriginChecksum, PieceNo, ShardEntry, ShardNo};
use tempfile::TempDir;

pub const PIECE: u64 = 64 * 1024;
pub const ENTRY: usize = millstream_agent::storage::journal::ENTRY_BYTES;

pub fn content(len: u64, seed: u64) -> Vec<u8> {
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
pub struct Truth {
    pub manifest: Arc<Manifest>,
    pub shards: Vec<Vec<u8>>,
}

impl Truth {
    pub fn new(name: &str, lens: &[u64]) -> Truth {
        Truth::with(name, lens, |_, _| None)
    }

    pub fn with(name: &str, lens: &[u64], checksum: impl Fn(usize, &[u8]) -> Option<OriginChecksum>) -> Truth {
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

    pub fn digest(&self) -> Digest {
        self.manifest.digest()
    }

    pub fn bytes(&self, piece: PieceNo) -> &[u8] {
        let place = self.manifest.layout().place(piece);
        &self.shards[place.shard as usize][place.offset as usize..][..place.len as usize]
    }

    pub fn crc(&self, shard: ShardNo) -> Crc64 {
        Crc64::of(&self.shards[shard as usize])
    }

    pub fn pieces(&self) -> u32 {
        self.manifest.layout().pieces()
    }
}

/// All checksums that an origin may have of these bytes.
pub fn sums(bytes: &[u8]) -> [OriginChecksum; 4] {
    [
        OriginChecksum::Crc64Nvme(Crc64::of(bytes)),
        OriginChecksum::Crc32c(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32),
        OriginChecksum::Sha256(sha2::Sha256::digest(bytes).into()),
        OriginChecksum::Md5(md5::Md5::digest(bytes).into()),
    ]
}

pub struct Rig {
    pub tmp: TempDir,
    pub arena: Arc<Arena>,
    pub engine: Arc<FaultyEngine>,
    pub store: Option<Arc<Store>>,
}

impl Rig {
    pub async fn new() -> Rig {
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
    pub async fn restart(&mut self) {
        self.store = None;
        assert_eq!(self.arena.free_bytes(), self.arena.bytes(), "every slot came back");
        let config = StoreConfig::new(self.tmp.path(), Some(1 << 30));
        self.store = Some(Store::open(config, self.engine.clone(), self.arena.clone()).await.unwrap());
    }

    pub fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    pub async fn piece(&self, bytes: &[u8]) -> Verified {
        let mut slot = self.arena.slot(bytes.len()).await;
        slot[..bytes.len()].copy_from_slice(bytes);
        Unverified::sum(slot, bytes.len() as u32).learn_from_origin().0
    }

    pub async fn write(&self, truth: &Truth, piece: PieceNo) -> Result<(), WriteError> {
        let verified = self.piece(truth.bytes(piece)).await;
        let crc = verified.crc();
        self.store().write(&truth.digest(), piece, verified, crc, piece.is_multiple_of(2)).await
    }

    pub async fn write_shard(&self, truth: &Truth, shard: ShardNo) {
        for piece in truth.manifest.layout().shard_pieces(shard) {
            self.write(truth, piece).await.unwrap();
        }
    }

    pub async fn fill(&self, truth: &Truth) {
        self.store().open_dataset(truth.manifest.clone()).await.unwrap();
        for shard in 0..truth.shards.len() as u32 {
            self.write_shard(truth, shard).await;
            self.store().seal(&truth.digest(), shard, truth.crc(shard)).await.unwrap();
        }
    }

    pub async fn open(&self, truth: &Truth) -> OpenedDataset {
        self.store().open_dataset(truth.manifest.clone()).await.unwrap()
    }

    pub fn visible_path(&self, truth: &Truth, shard: ShardNo) -> PathBuf {
        let key = &truth.manifest.shards()[shard as usize].key;
        self.store().root_of(truth.manifest.name()).join(key.as_str())
    }

    pub fn partial_path(&self, truth: &Truth, name: &str) -> PathBuf {
        self.tmp.path().join("partial").join(truth.digest().to_string()).join(name)
    }

    /// The promise: what is visible is whole, right and read-only.
    pub fn check_visible(&self, truth: &Truth) -> BTreeSet<ShardNo> {
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
