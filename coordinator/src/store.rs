//! The durable catalog: what must survive `kill -9`, and nothing else.
//!
//! Participants: [`StoreHandle`] (used by the driver and the services) passes changes to one thread, which owns a
//! [`CatalogStore`]. Goals: what was acknowledged is on disk; learned checksums are committed in groups, off the hot
//! path; a damaged file is named with the next step. Non-goals: who holds what (soft state, rebuilt from agents).

use std::path::PathBuf;

use millstream_coordinator_core::event::Placement;
use millstream_types::{Crc64, DatasetRef, Digest, PieceNo, PieceRange, StageId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod embedded;
mod pending;
mod writer;

pub use embedded::EmbeddedStore;
pub use pending::ChecksumRow;
pub use writer::{Durable, StoreHandle};

/// A version in the catalog. The manifest itself is kept apart, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// `name@version`.
    pub name: DatasetRef,
    /// Order of creation, over the whole catalog.
    pub sequence: u64,
    /// When it was added.
    pub created_unix_s: i64,
    /// Its manifest came with piece checksums from an index.
    pub indexed: bool,
}

/// A stage as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Its number.
    pub id: u64,
    /// The version's digest, in hexadecimal.
    pub digest: String,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// `Some(R)`: spread over R nodes; `None`: everything everywhere.
    pub spread: Option<u32>,
    /// Nothing by itself: what readers announce comes ahead of them.
    #[serde(default)]
    pub window: bool,
    /// Higher goes first.
    pub priority: u32,
    /// When it was asked for.
    pub created_unix_s: i64,
    /// Only jobs asked for it: it ends with the last of them.
    #[serde(default)]
    pub for_jobs: bool,
}

/// What a job wants on which nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantRecord {
    /// `name@version`.
    pub dataset: DatasetRef,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// `Some(R)`: spread over R nodes; `None`: everything everywhere.
    pub spread: Option<u32>,
    /// Ahead of readers, gone behind them.
    #[serde(default)]
    pub window: bool,
}

/// A job of a batch scheduler as it is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its key: `cluster/number`.
    pub job: String,
    /// How often the scheduler ran it before.
    pub attempt: u32,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// No nodes were allocated yet: those of the wants are candidates.
    pub pending: bool,
    /// What it wants.
    pub wants: Vec<WantRecord>,
    /// When it asked first.
    pub asked_unix_s: i64,
    /// When it ended.
    pub ended_unix_s: Option<i64>,
    /// From its allocation until all was ready.
    pub waited_ms: Option<u64>,
    /// Wanted on all its nodes together.
    pub asked_bytes: u64,
    /// Of those, there when it asked.
    pub cache_bytes: u64,
    /// Read from the origin for it.
    pub origin_bytes: u64,
    /// Received from peers for it.
    pub peer_bytes: u64,
    /// Moved for a job that had asked before.
    pub shared_bytes: u64,
    /// How it ended, in words.
    pub outcome: String,
    /// Nodes that are done with it while others are not.
    #[serde(default)]
    pub done_nodes: Vec<String>,
}

impl StageRecord {
    /// How it places shards.
    pub fn placement(&self) -> Placement {
        placement(self.window, self.spread)
    }
}

impl WantRecord {
    /// How it places shards.
    pub fn placement(&self) -> Placement {
        placement(self.window, self.spread)
    }
}

fn placement(window: bool, spread: Option<u32>) -> Placement {
    match (window, spread) {
        (true, _) => Placement::Window,
        (false, Some(r)) => Placement::Spread(r),
        (false, None) => Placement::Replicate,
    }
}

/// A placement as records keep it: window, spread.
pub(crate) fn placed(placement: Placement) -> (bool, Option<u32>) {
    match placement {
        Placement::Replicate => (false, None),
        Placement::Spread(r) => (false, Some(r)),
        Placement::Window => (true, None),
    }
}

/// One durable change. Several in one [`CatalogStore::commit`] happen together or not at all.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new version and its manifest as Arrow IPC.
    AddVersion {
        /// Of the manifest.
        digest: Digest,
        /// The record.
        record: VersionRecord,
        /// The manifest.
        manifest: std::sync::Arc<Vec<u8>>,
    },
    /// A version leaves, with its manifest, checksums and pins. Its digest is remembered as removed.
    RemoveVersion {
        /// Of the manifest.
        digest: Digest,
        /// Its name, for the tombstone.
        name: DatasetRef,
    },
    /// Checksums of some pieces of one row (see [`ChecksumRow`]).
    Checksums {
        /// The version.
        digest: Digest,
        /// Number of the row.
        row: u32,
        /// What to set and what to forget.
        change: Box<ChecksumRow>,
    },
    /// A stage is new or changed.
    PutStage(StageRecord),
    /// A stage is over and forgotten.
    RemoveStage(StageId),
    /// A job is new or changed.
    PutJob(Box<JobRecord>),
    /// A job is forgotten.
    RemoveJob(String),
    /// A version is (not) pinned on a node.
    Pin {
        /// The version.
        digest: Digest,
        /// The node's name.
        node: String,
        /// From now on?
        pinned: bool,
        /// Who wants it, in words; empty when they did not say.
        by: String,
    },
    /// One line of the audit log.
    Audit(String),
}

/// Everything that is read at the start. Manifests and checksums follow by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// All versions, in order of creation.
    pub versions: Vec<(Digest, VersionRecord)>,
    /// All stages, in order of number.
    pub stages: Vec<StageRecord>,
    /// All jobs that are remembered.
    pub jobs: Vec<JobRecord>,
    /// Digest, node and who wants it of all pins.
    pub pins: Vec<(Digest, String, String)>,
    /// Versions that were removed: an agent that was away then learns it when it comes back.
    pub removed: Vec<(Digest, DatasetRef)>,
}

/// Why the catalog could not be opened, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory or the file.
    #[error("cannot open {path:?}; check that --state-dir exists, is writable and has room")]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// From the system.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{path:?} is in use by another process; stop the other coordinator, or give this one its own --state-dir")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not what we wrote.
    #[error(
        "the catalog {path:?} is damaged ({detail}); move it away and restore a copy, or start with an empty catalog \
         and add the datasets again (agents keep their verified files)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        detail: String,
    },
    /// Written by a version that we do not know.
    #[error(
        "the catalog {path:?} has format {found}, and this version reads {expected}; run the version that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// A transaction failed.
    #[error("cannot {what} the catalog {path:?}: {detail}; check the disk under --state-dir")]
    Io {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// In words.
        detail: String,
    },
    /// Over [`STORE_JOBS_MAX`](crate::limits::STORE_JOBS_MAX) requests wait for the disk.
    #[error("the catalog's disk is too slow for the requests that wait; try again")]
    Busy,
    /// The store's thread ended.
    #[error("the catalog is closed: the coordinator is stopping")]
    Closed,
}

/// Known checksums of a version: runs of pieces.
pub type KnownChecksums = Vec<(PieceNo, Vec<Crc64>)>;

/// Where the catalog is kept. Calls block; only the store's own thread makes them.
pub trait CatalogStore: Send + 'static {
    /// Everything but manifests and checksums.
    ///
    /// # Errors
    /// [`StoreError`] naming the file.
    fn load(&self) -> Result<Loaded, StoreError>;
    /// All changes in one transaction. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed then.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;
    /// A manifest as Arrow IPC.
    ///
    /// # Errors
    /// [`StoreError`] naming the file.
    fn manifest(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError>;
    /// The checksums learned of a version, in order.
    ///
    /// # Errors
    /// [`StoreError`] naming the file.
    fn checksums(&self, digest: Digest) -> Result<KnownChecksums, StoreError>;
    /// The newest lines of the audit log, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] naming the file.
    fn audit(&self, lines: usize) -> Result<Vec<String>, StoreError>;
    /// What it is, for status: `embedded:/path`.
    fn describe(&self) -> String;
}

/// Rows that hold `pieces`, each with the part of the range that lies in it.
pub fn rows_of(pieces: PieceRange) -> impl Iterator<Item = (u32, PieceRange)> {
    let rows = crate::limits::CHECKSUM_ROW_PIECES;
    let mut at = pieces.start;
    std::iter::from_fn(move || {
        if at >= pieces.end {
            return None;
        }
        let row = at / rows;
        let part = at..pieces.end.min((row + 1).saturating_mul(rows));
        at = part.end;
        Some((row, part))
    })
}
