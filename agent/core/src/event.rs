//! What the agent's core is told, and what it orders. The whole boundary between policy and I/O.
//!
//! Order of use: the shell calls `handle_event(now, event)` (or `handle_timeout(now)` when `poll_timeout()` has
//! passed), then drains `poll_action()` until it is empty, and carries every action out in that order. For the
//! inventory of a new session it asks `inventory` (pieces on disk, sealed shards) and `learned` (checksums that this node
//! alone may know); when not `knows_all`, it has the manifest's checksums sent again, as `Checksums` events: what was
//! on its way to the old session is lost.
//!
//! What the core counts on: every `Fetch` is answered by exactly one `FetchEnded` (also after `Abort`); every received
//! piece gets exactly one `Accept` or `Reject`; every `Accept` is answered by exactly one `PieceWritten` or
//! `WriteFailed`, and every `Seal` by exactly one of `ShardSealed`, `SealMismatch` and `SealFailed`, even when a
//! `Discard` of the shard comes between. `Closed` ends all of that for its version.

use std::sync::Arc;

pub use millstream_types::FailureKind;
use millstream_types::{AssignmentId, Crc64, DatasetId, Layout, OriginChecksum, PieceNo, PieceRange, RunSet, ShardNo};

/// A peer, numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// Where a fetch reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The object store.
    Origin,
    /// Another agent.
    Peer(PeerId),
}

/// One fetch of the shell's: a ranged GET of consecutive pieces of one shard, or one piece from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// The coordinator's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its number.
    pub id: AssignmentId,
    /// The version.
    pub dataset: DatasetId,
    /// The extent.
    pub pieces: PieceRange,
    /// From whom.
    pub source: Source,
    /// From whom else, in order.
    pub alternates: Vec<PeerId>,
    /// For the origin: how long the right to read lasts, in microseconds.
    pub lease_us: u64,
    /// Higher goes first.
    pub priority: u32,
}

/// A failed fetch of this core's sources.
pub type Failure = millstream_types::Failure<Source>;

/// What the core is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A version is open: manifest there, directories made, what is on disk known.
    Opened {
        /// The version.
        dataset: DatasetId,
        /// Piece geometry.
        layout: Arc<Layout>,
        /// The origin's own checksum per shard.
        shard_checksums: Arc<[Option<OriginChecksum>]>,
        /// Expected piece checksums known so far: (first piece, one per piece from there).
        known: Vec<(PieceNo, Vec<Crc64>)>,
        /// Pieces on disk whose bytes were checked against the expected checksums.
        have: RunSet,
        /// Sealed shards.
        sealed: RunSet,
    },
    /// A version is closed: forget it. Fetches of it are aborted.
    Closed {
        /// The version.
        dataset: DatasetId,
    },
    /// The coordinator orders.
    Assigned(Assignment),
    /// The coordinator takes an order back.
    Cancelled(AssignmentId),
    /// Expected checksums from the manifest.
    Checksums {
        /// The version.
        dataset: DatasetId,
        /// The first piece.
        first: PieceNo,
        /// One per piece from there on.
        crcs: Vec<Crc64>,
    },
    /// All bytes of one piece arrived and were summed; they wait in a buffer for a verdict.
    PieceReceived {
        /// The fetch.
        fetch: FetchId,
        /// The version.
        dataset: DatasetId,
        /// The piece.
        piece: PieceNo,
        /// What the bytes sum to.
        actual: Crc64,
        /// From whom.
        source: Source,
    },
    /// A fetch ended. Pieces of it that were received before stand.
    FetchEnded {
        /// The fetch.
        fetch: FetchId,
        /// `Ok`, or why it stopped short.
        result: Result<(), Failure>,
    },
    /// An accepted piece is on disk.
    PieceWritten {
        /// The version.
        dataset: DatasetId,
        /// The piece.
        piece: PieceNo,
    },
    /// An accepted piece could not be written: its bytes are gone.
    WriteFailed {
        /// The version.
        dataset: DatasetId,
        /// The piece.
        piece: PieceNo,
        /// `NoSpace` or `Disk`.
        kind: FailureKind,
        /// In words.
        detail: String,
    },
    /// A shard became visible.
    ShardSealed {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
    },
    /// Sealing found that the whole does not match the origin's checksum.
    SealMismatch {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// The origin's, as text.
        expected: String,
        /// Ours, as text.
        actual: String,
    },
    /// Sealing failed for a reason of the disk.
    SealFailed {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// In words.
        detail: String,
    },
    /// The coordinator says that what was read of a shard is wrong.
    DiscardShard {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
    },
    /// The coordinator says that a shard is not needed here any more. What is known of its pieces stays known.
    DropShard {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
    },
    /// Pieces of a shard on disk turned out bad (scrub, verify): the shell removed the file.
    ShardLost {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// In words.
        reason: String,
    },
    /// Buffers for this many more pieces are free (the core never asks for more fetches than that).
    BuffersFree {
        /// Bytes free in the pool.
        bytes: u64,
    },
}

/// What the core orders.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a fetch; answer with `PieceReceived` for each piece and one `FetchEnded`.
    Fetch {
        /// The fetch.
        fetch: FetchId,
        /// The version.
        dataset: DatasetId,
        /// Consecutive pieces of one shard (one piece when from a peer).
        pieces: PieceRange,
        /// From whom.
        source: Source,
        /// Give up after this many microseconds.
        deadline_us: u64,
    },
    /// Stop a fetch. `FetchEnded` still comes.
    Abort {
        /// The fetch.
        fetch: FetchId,
    },
    /// The received piece is what the manifest says (or, from the origin, becomes it): write and serve it.
    Accept {
        /// The fetch.
        fetch: FetchId,
        /// The version.
        dataset: DatasetId,
        /// The piece.
        piece: PieceNo,
        /// Its checksum, for the journal.
        crc: Crc64,
        /// Read from the origin by this node.
        from_origin: bool,
    },
    /// The received piece is wrong, not wanted, or here already: drop the bytes.
    Reject {
        /// The fetch.
        fetch: FetchId,
        /// The version.
        dataset: DatasetId,
        /// The piece.
        piece: PieceNo,
    },
    /// All pieces of a shard are on disk: check the whole, make it visible, answer with one of the `Seal` events.
    Seal {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// What the pieces combine to.
        crc: Crc64,
    },
    /// Remove the shard's bytes (partial and sealed) and journal entries.
    Discard {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
    },
    /// Tell the coordinator.
    Report(Report),
}

/// What the coordinator is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// Checksums of pieces that this node read from the origin.
    PiecesRead {
        /// The version.
        dataset: DatasetId,
        /// The first piece.
        first: PieceNo,
        /// One per piece from there on.
        crcs: Vec<Crc64>,
    },
    /// Every piece of an assignment is on disk.
    Done {
        /// The assignment.
        assignment: AssignmentId,
        /// Bytes moved for it.
        bytes: u64,
        /// From its first request to its last byte.
        elapsed_us: u64,
        /// From whom, in the end.
        source: Source,
    },
    /// Given back after all sources failed.
    Failed {
        /// The assignment.
        assignment: AssignmentId,
        /// The version.
        dataset: DatasetId,
        /// Pieces still lacking.
        missing: RunSet,
        /// The last failure.
        failure: Failure,
    },
    /// A source failed; an alternate is tried.
    SourceFailed {
        /// The version.
        dataset: DatasetId,
        /// What happened.
        failure: Failure,
    },
    /// Shards became visible.
    Sealed {
        /// The version.
        dataset: DatasetId,
        /// Which.
        shard: ShardNo,
    },
    /// The whole shard does not match the origin's checksum.
    Mismatch {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// The origin's, as text.
        expected: String,
        /// Ours, as text.
        actual: String,
    },
    /// A sealed shard was lost here.
    Lost {
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// In words.
        reason: String,
    },
    /// The node cannot take the version.
    Refused {
        /// The version.
        dataset: DatasetId,
        /// `NoSpace` or `Disk`.
        kind: FailureKind,
        /// In words.
        reason: String,
    },
}
