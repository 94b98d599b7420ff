//! One open version: what is on disk of it, and who may touch which of its shards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_types::{Crc64, Digest, Layout, Manifest, PieceNo, RunSet, ShardNo};
use tokio::sync::RwLock;

use super::dir::Dir;
use super::io::FileHandle;
use super::log::AppendLog;
use super::records::Record;
use crate::limits::{OPEN_SHARDS_MAX, SHARD_GATES};

/// Name of the journal beside the partial files.
pub(super) const JOURNAL: &str = "journal";

#[derive(Debug)]
pub(super) struct Version {
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    /// `partial/<digest>/`.
    pub partial: Dir,
    pub journal: AppendLog,
    pub records: AppendLog,
    /// Shared by a shard's writers, alone for who seals or removes it. Shards share gates.
    gates: Box<[RwLock<()>]>,
    /// Held while a file is opened: the first pieces, and the first requests for them, come together, and one opening
    /// is enough.
    pub opening: tokio::sync::Mutex<()>,
    state: Mutex<VersionState>,
}

#[derive(Debug)]
pub(super) struct VersionState {
    /// Pieces on disk, sealed or not.
    pub have: RunSet,
    /// Visible shards.
    pub sealed: RunSet,
    /// Pieces that this node read from the origin.
    pub from_origin: RunSet,
    /// What each piece sums to; meaningful for those in `have`.
    pub crcs: Vec<Crc64>,
    /// Evicted: nothing may be written any more.
    pub closed: bool,
}

impl VersionState {
    pub fn empty(layout: &Layout) -> VersionState {
        VersionState {
            have: RunSet::new(),
            sealed: RunSet::new(),
            from_origin: RunSet::new(),
            crcs: vec![Crc64::default(); layout.pieces() as usize],
            closed: false,
        }
    }

    pub fn add(&mut self, piece: PieceNo, crc: Crc64, from_origin: bool) {
        self.have.insert(piece);
        self.crcs[piece as usize] = crc;
        if from_origin {
            self.from_origin.insert(piece);
        }
    }

    pub fn remove_shard(&mut self, layout: &Layout, shard: ShardNo) {
        let pieces = layout.shard_pieces(shard);
        self.have.remove_range(pieces.clone());
        self.from_origin.remove_range(pieces);
        self.sealed.remove_range(shard..shard + 1);
    }

    /// Checksums of a set of pieces, run by run.
    pub fn crcs_of(&self, set: &RunSet) -> Vec<(PieceNo, Vec<Crc64>)> {
        let run = |r: &std::ops::Range<u32>| (r.start, self.crcs[r.start as usize..r.end as usize].to_vec());
        set.runs().iter().map(run).collect()
    }

    /// The record of a shard that is all here.
    pub fn record(
        &self,
        layout: &Layout,
        shard: ShardNo,
        attributes: super::records::Attributes,
        crc: Crc64,
    ) -> Record {
        let pieces = layout.shard_pieces(shard);
        let pieces = pieces.map(|p| (self.crcs[p as usize], self.from_origin.contains(p))).collect();
        Record { shard, attributes, crc, pieces }
    }
}

impl Version {
    pub fn new(
        manifest: Arc<Manifest>,
        partial: Dir,
        journal: AppendLog,
        records: AppendLog,
        state: VersionState,
    ) -> Version {
        let gates = (0..SHARD_GATES).map(|_| RwLock::new(())).collect();
        let digest = manifest.digest();
        let opening = tokio::sync::Mutex::new(());
        Version { manifest, digest, partial, journal, records, gates, opening, state: Mutex::new(state) }
    }

    pub fn layout(&self) -> &Layout {
        self.manifest.layout()
    }

    pub fn state(&self) -> MutexGuard<'_, VersionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a piece on disk sums to.
    pub fn crc_on_disk(&self, piece: PieceNo) -> Option<Crc64> {
        let state = self.state();
        state.have.contains(piece).then(|| state.crcs[piece as usize])
    }

    /// The gate of a shard. Nobody holds two, but who takes all of them in order.
    pub fn gate(&self, shard: ShardNo) -> &RwLock<()> {
        &self.gates[shard as usize % SHARD_GATES]
    }

    pub fn gates(&self) -> &[RwLock<()>] {
        &self.gates
    }

    /// Where a shard's file is below `datasets/` when it is sealed. Names and keys are safe as paths by their types.
    pub fn sealed_path(&self, shard: ShardNo) -> String {
        format!("{}/{}", self.manifest.name(), self.manifest.shards()[shard as usize].key)
    }

    /// The name of a shard's file in `partial` before.
    pub fn partial_name(shard: ShardNo) -> String {
        shard.to_string()
    }

    pub fn key(&self, shard: ShardNo) -> String {
        self.manifest.shards()[shard as usize].key.to_string()
    }
}

/// What a cached file is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Use {
    Reading,
    Writing,
}

type FileKey = (Digest, ShardNo, Use);

/// Open files of shards: the most recently used ones, a bounded number.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<OpenFilesState>);

#[derive(Debug, Default)]
struct OpenFilesState {
    files: HashMap<FileKey, (FileHandle, u64)>,
    clock: u64,
}

impl OpenFiles {
    fn locked(&self) -> MutexGuard<'_, OpenFilesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, digest: &Digest, shard: ShardNo, what: Use) -> Option<FileHandle> {
        let mut state = self.locked();
        state.clock += 1;
        let now = state.clock;
        let (file, used) = state.files.get_mut(&(*digest, shard, what))?;
        *used = now;
        Some(file.clone())
    }

    /// Keeps a file that was opened while its shard's gate was held.
    pub fn insert(&self, digest: &Digest, shard: ShardNo, what: Use, file: FileHandle) {
        let mut state = self.locked();
        state.clock += 1;
        let now = state.clock;
        if state.files.len() >= OPEN_SHARDS_MAX {
            let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.map(|key| state.files.remove(&key));
        }
        state.files.insert((*digest, shard, what), (file, now));
    }

    /// The file was moved or removed.
    pub fn forget(&self, digest: &Digest, shard: ShardNo) {
        let mut state = self.locked();
        state.files.remove(&(*digest, shard, Use::Reading));
        state.files.remove(&(*digest, shard, Use::Writing));
    }

    pub fn forget_version(&self, digest: &Digest) {
        self.locked().files.retain(|key, _| key.0 != *digest);
    }
}
