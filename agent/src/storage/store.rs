//! The store: what pieces and shards of all versions are on this node's disk.
//!
//! Participants: the driver writes, seals, discards, evicts; the piece table reads; the socket leases and pins.
//! Invariants: a file below `datasets/` is complete and was verified; a piece counts only after its bytes and its
//! journal entry were written; nothing is removed that is pinned or leased.
//! Non-goals: deciding what to fetch, seal or evict; the meaning of manifests (kept as opaque bytes).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use millstream_types::{Crc64, DatasetRef, Digest, Manifest, PieceNo, RunSet, ShardNo};

use super::dir::Dir;
use super::error::{DatasetError, DiscardError, EvictError, OpenError, ReadError, WriteError};
use super::io::{Engine, FileHandle, Purpose, run_blocking};
use super::journal::Entry;
use super::pins::{Holder, Keeper, Lease, Pins};
use super::prepare::{Prepared, TRASH_PREFIX, prepare};
use super::quota::{NoSpace, Quota, Usage};
use super::restart;
use super::version::{OpenFiles, Use, Version};
use crate::buffers::Arena;
use crate::pace::{Moved, Pace};
use crate::piece::{Served, Verified};

/// Where and how much.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The quota; `None` is 90 % of the file system.
    pub capacity_bytes: Option<u64>,
}

impl StoreConfig {
    /// A store in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>, capacity_bytes: Option<u64>) -> StoreConfig {
        StoreConfig { data_dir: data_dir.into(), capacity_bytes }
    }
}

/// What is on disk of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenedDataset {
    /// Pieces on disk, sealed or not. Those of partial files were read and summed.
    pub have: RunSet,
    /// Visible shards.
    pub sealed: RunSet,
    /// Pieces that this node once read from the origin, and what they sum to: (first piece, one per piece).
    pub origin_read: Vec<(PieceNo, Vec<Crc64>)>,
    /// What all pieces on disk sum to.
    pub crcs: Vec<(PieceNo, Vec<Crc64>)>,
}

/// The directories of the store.
#[derive(Debug)]
pub(super) struct Dirs {
    /// What trainers see.
    pub datasets: Dir,
    /// What nobody else may read.
    pub partial: Dir,
    pub records: Dir,
    pub manifests: Dir,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Store {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) arena: Arc<Arena>,
    pub(super) dirs: Dirs,
    pub(super) files: OpenFiles,
    path: PathBuf,
    versions: RwLock<HashMap<Digest, Arc<Version>>>,
    /// One version is opened or evicted at a time: both look at names that others may want.
    changing: tokio::sync::Mutex<()>,
    quota: Mutex<Quota>,
    pins: Pins,
    pace: Arc<Pace>,
    /// Locked as long as this agent lives.
    _lock: File,
}

impl Store {
    /// Opens the data directory, making what is not there, for this agent alone.
    ///
    /// # Errors
    /// [`OpenError`]: another agent uses it, or the disk fails.
    pub async fn open(
        config: StoreConfig,
        engine: Arc<dyn Engine>,
        arena: Arc<Arena>,
    ) -> Result<Arc<Store>, OpenError> {
        let path = config.data_dir.clone();
        let disk = |source| OpenError::Disk { path: path.display().to_string(), source };
        let prepared = run_blocking(move || Ok(prepare(&config))).await.map_err(disk)??;
        let Prepared { dirs, lock, capacity, pins, left_behind } = prepared;
        let mut quota = Quota::new(capacity);
        // Until they are opened, versions that were here before count with what their files say.
        for (digest, bytes) in left_behind {
            quota.update(&digest, |held| held.used = bytes);
        }
        Ok(Arc::new(Store {
            engine,
            arena,
            dirs,
            files: OpenFiles::default(),
            path,
            versions: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
            quota: Mutex::new(quota),
            pins,
            pace: Arc::default(),
            _lock: lock,
        }))
    }

    pub(super) fn version(&self, digest: &Digest) -> Option<Arc<Version>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn versions_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Digest, Arc<Version>>> {
        self.versions.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.path
    }

    /// `<data-dir>/datasets/<name>@<version>`: where a version's sealed shards are.
    pub fn root_of(&self, name: &DatasetRef) -> PathBuf {
        self.path.join("datasets").join(name.to_string())
    }

    /// The engine that reads and writes.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Versions that are open.
    pub fn open_digests(&self) -> Vec<Digest> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Looks at what is on disk of a version and makes it ready for writing. Opening it again says what is there now.
    ///
    /// # Errors
    /// [`DatasetError`]: the disk fails, or its name is taken by another version.
    pub async fn open_dataset(&self, manifest: Arc<Manifest>) -> Result<OpenedDataset, DatasetError> {
        let _changing = self.changing.lock().await;
        let digest = manifest.digest();
        if let Some(version) = self.version(&digest) {
            return Ok(opened(&version));
        }
        let same_name = |v: &&Arc<Version>| v.manifest.name() == manifest.name();
        let other = {
            let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
            versions.values().find(same_name).map(|v| v.digest)
        };
        let name = manifest.name().to_string();
        if let Some(other) = other {
            return Err(DatasetError::NameTaken { name, other });
        }
        let disk = |error| DatasetError::Disk { name: name.clone(), error };
        let (version, reseal) = restart::open_version(self, manifest).await.map_err(disk)?;
        let version = Arc::new(version);
        self.recount(&version);
        self.versions_mut().insert(digest, version.clone());
        for shard in reseal {
            // Sealed before, checked again just now. What cannot be sealed stays partial and is named.
            if let Err(error) = self.reseal(&version, shard).await {
                tracing::warn!(%digest, shard, %error, "a shard that was visible before the restart is not any more");
            }
        }
        Ok(opened(&version))
    }

    /// Counts a version's bytes anew.
    fn recount(&self, version: &Version) {
        let layout = version.layout();
        let (have, sealed): (u64, u64) = {
            let state = version.state();
            let have = state.have.runs().iter().map(|r| layout.range_bytes(r.clone())).sum();
            (have, state.sealed.iter().map(|s| layout.shard_len(s)).sum())
        };
        self.quota().update(&version.digest, |held| {
            held.used = sealed;
            held.partial = have - sealed;
        });
    }

    /// Makes sure that a version can grow to `total_bytes` here. Holds until it is evicted; asking again replaces it.
    ///
    /// # Errors
    /// [`NoSpace`] with the numbers; nothing is reserved then.
    pub fn reserve(&self, digest: &Digest, total_bytes: u64) -> Result<(), NoSpace> {
        self.quota().reserve(digest, total_bytes)
    }

    /// Bytes that no version has or was promised.
    pub fn free_bytes(&self) -> u64 {
        self.quota().free()
    }

    /// Bytes that a version may have in all.
    pub fn room_bytes(&self, digest: &Digest) -> u64 {
        self.quota().room(digest)
    }

    /// Bytes that every other version has or was promised.
    pub fn others_bytes(&self, digest: &Digest) -> Vec<(Digest, u64)> {
        self.quota().others(digest).map(|(other, bytes)| (*other, bytes)).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Bytes on this node.
    pub fn usage(&self) -> Usage {
        self.quota().usage(|digest| self.pins.keeper(digest) != Keeper::Nobody)
    }

    /// Pins or unpins a version, for `by`; lasting when this returns. Blocks shortly.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_pin(&self, digest: &Digest, pinned: bool, by: &str) -> io::Result<()> {
        self.pins.set(digest, pinned, by)
    }

    /// Keeps a version from being evicted until the lease is dropped.
    pub fn lease(&self, digest: &Digest, by: &str) -> Lease {
        self.pins.lease(digest, by)
    }

    /// Everyone who pins or leases something here.
    pub fn holders(&self) -> Vec<Holder> {
        self.pins.holders()
    }

    /// Who keeps a version here.
    pub fn keeper(&self, digest: &Digest) -> Keeper {
        self.pins.keeper(digest)
    }

    /// Pieces that were written, and the time in which some were being written.
    pub fn written(&self) -> Moved {
        self.pace.moved()
    }

    /// Writes a verified piece to its partial file, and then its journal entry. Writing it again does nothing.
    ///
    /// # Errors
    /// [`WriteError`]; the piece then does not count.
    pub async fn write(
        &self,
        digest: &Digest,
        piece: PieceNo,
        bytes: Verified,
        crc: Crc64,
        from_origin: bool,
    ) -> Result<(), WriteError> {
        let version = self.version(digest).ok_or(WriteError::NotOpen(*digest))?;
        let wrong = |detail| WriteError::WrongPiece { digest: *digest, piece, detail };
        let place = version.layout().get(piece).ok_or_else(|| wrong("there is no such number"))?;
        if bytes.len() != place.len || bytes.crc() != crc {
            return Err(wrong("another length or checksum was given"));
        }
        let _gate = version.gate(place.shard).read().await;
        {
            let state = version.state();
            if state.closed {
                return Err(WriteError::NotOpen(*digest));
            }
            if state.have.contains(piece) {
                let same = state.crcs[piece as usize] == crc;
                return if same { Ok(()) } else { Err(wrong("other bytes are on disk already")) };
            }
        }
        let disk = |error| WriteError::Disk { key: version.key(place.shard), piece, error };
        let writing = self.pace.begin();
        let file = self.partial_file(&version, place.shard).await.map_err(disk)?;
        self.engine.write_piece(&file, place.offset, bytes).await.map_err(disk)?;
        let entry = Entry { shard: place.shard, piece, len: place.len, crc, from_origin };
        version.journal.append(&*self.engine, |out| entry.encode(digest, out)).await.map_err(disk)?;
        writing.done(u64::from(place.len));
        let mut state = version.state();
        if !state.have.contains(piece) {
            state.add(piece, crc, from_origin);
            self.quota().update(digest, |held| held.partial += u64::from(place.len));
        }
        Ok(())
    }

    /// The partial file of a shard, for writing. The caller holds the shard's gate.
    pub(super) async fn partial_file(&self, version: &Version, shard: ShardNo) -> io::Result<FileHandle> {
        if let Some(file) = self.files.get(&version.digest, shard, Use::Writing) {
            return Ok(file);
        }
        let _opening = version.opening.lock().await;
        if let Some(file) = self.files.get(&version.digest, shard, Use::Writing) {
            return Ok(file);
        }
        let purpose = Purpose::Write { len: version.layout().shard_len(shard) };
        let file = self.engine.open(&version.partial, &Version::partial_name(shard), purpose).await?;
        self.files.insert(&version.digest, shard, Use::Writing, file.clone());
        Ok(file)
    }

    /// A piece that is on disk, as a place in a file that is open already.
    pub fn piece_of_open_file(&self, digest: &Digest, piece: PieceNo) -> Option<Served> {
        let version = self.version(digest)?;
        let place = version.layout().get(piece)?;
        let crc = version.crc_on_disk(piece)?;
        let file = self.files.get(digest, place.shard, Use::Reading);
        let file = file.or_else(|| self.files.get(digest, place.shard, Use::Writing))?;
        Some(Served::File { file: file.file().clone(), offset: place.offset, len: place.len, crc })
    }

    /// A piece that is on disk, as a place in an open file.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_piece(&self, digest: &Digest, piece: PieceNo) -> Result<Served, ReadError> {
        if let Some(served) = self.piece_of_open_file(digest, piece) {
            return Ok(served);
        }
        let version = self.version(digest).ok_or(ReadError::NotOpen(*digest))?;
        let not_here = || ReadError::NotHere { digest: *digest, piece };
        let place = version.layout().get(piece).ok_or_else(not_here)?;
        // While the gate is held the file is neither moved nor removed.
        let _gate = version.gate(place.shard).read().await;
        let _opening = version.opening.lock().await;
        if let Some(served) = self.piece_of_open_file(digest, piece) {
            return Ok(served);
        }
        let crc = version.crc_on_disk(piece).ok_or_else(not_here)?;
        let disk = |error| ReadError::Disk { key: version.key(place.shard), error };
        let file = self.open_for_reading(&version, place.shard).await.map_err(disk)?;
        Ok(Served::File { file: file.file().clone(), offset: place.offset, len: place.len, crc })
    }

    /// A shard's file, wherever it is now. The caller holds the shard's gate.
    pub(super) async fn open_for_reading(&self, version: &Version, shard: ShardNo) -> io::Result<FileHandle> {
        let sealed = version.state().sealed.contains(shard);
        let file = if sealed {
            self.engine.open(&self.dirs.datasets, &version.sealed_path(shard), Purpose::Read).await?
        } else {
            self.engine.open(&version.partial, &Version::partial_name(shard), Purpose::Read).await?
        };
        self.files.insert(&version.digest, shard, Use::Reading, file.clone());
        Ok(file)
    }

    /// Removes a shard's bytes, partial and visible. Its pieces no longer count.
    ///
    /// # Errors
    /// [`DiscardError`]; its pieces no longer count then, either.
    pub async fn discard_shard(&self, digest: &Digest, shard: ShardNo) -> Result<(), DiscardError> {
        let version = self.version(digest).ok_or(DiscardError::NotOpen(*digest))?;
        if shard >= version.layout().shards() {
            return Ok(());
        }
        let _gate = version.gate(shard).write().await;
        version.state().remove_shard(version.layout(), shard);
        self.files.forget(digest, shard);
        self.recount(&version);
        let (datasets, partial) = (self.dirs.datasets.clone(), version.partial.clone());
        let sealed = version.sealed_path(shard);
        let removed = run_blocking(move || {
            datasets.unlink(&sealed)?;
            partial.unlink(&Version::partial_name(shard))?;
            Ok(())
        });
        removed.await.map_err(|error| DiscardError::Disk { key: version.key(shard), error })
    }

    /// Removes a version from this node: files, journal, records and manifest. Returns the bytes that it had.
    ///
    /// # Errors
    /// [`EvictError`]: pinned, leased, not open, or the disk.
    pub async fn evict(&self, digest: &Digest) -> Result<u64, EvictError> {
        let _changing = self.changing.lock().await;
        let version = self.version(digest).ok_or(EvictError::NotOpen(*digest))?;
        let name = version.manifest.name().to_string();
        version.state().closed = true;
        // Someone may have come between the question and the closing.
        let keeper = self.pins.keeper(digest);
        if keeper != Keeper::Nobody {
            version.state().closed = false;
            return Err(EvictError::Kept { name, keeper });
        }
        // Whoever is writing or sealing ends first; whoever comes later finds it closed.
        for gate in version.gates() {
            drop(gate.write().await);
        }
        self.files.forget_version(digest);
        let (datasets, partial, path) = (self.dirs.datasets.clone(), self.dirs.partial.clone(), self.path.clone());
        let (records, manifests) = (self.dirs.records.clone(), self.dirs.manifests.clone());
        let (digest, root) = (*digest, name.clone());
        let removed = run_blocking(move || {
            // First out of sight, at once and as a whole; then out of the books; then the bytes.
            let trash = format!("{TRASH_PREFIX}{digest}");
            partial.make(&trash)?;
            datasets.move_out(&root, &partial.sub(&trash)?, "datasets")?;
            partial.move_out(&digest.to_string(), &partial.sub(&trash)?, "partial")?;
            records.unlink(&digest.to_string())?;
            manifests.unlink(&super::manifests::file_name(&digest))?;
            std::fs::remove_dir_all(path.join("partial").join(trash))
        });
        let removed = removed.await;
        self.versions_mut().remove(&digest);
        let bytes = self.quota().remove(&digest);
        removed.map_err(|error| EvictError::Disk { name, error })?;
        Ok(bytes)
    }
}

fn opened(version: &Version) -> OpenedDataset {
    let state = version.state();
    OpenedDataset {
        have: state.have.clone(),
        sealed: state.sealed.clone(),
        origin_read: state.crcs_of(&state.from_origin),
        crcs: state.crcs_of(&state.have),
    }
}
