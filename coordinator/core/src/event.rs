//! What the coordinator's core is told, and what it orders. The whole boundary between policy and I/O.
//!
//! Order of use: the shell calls `handle_event(now, event)` (or `handle_timeout(now)` when `poll_timeout()` has
//! passed), then drains `poll_action()` until it is empty, and carries every action out in that order.

use std::sync::Arc;

pub use millstream_types::FailureKind;
use millstream_types::{
    AssignmentId, Crc64, DatasetId, Layout, NodeId, OriginChecksum, PieceNo, PieceRange, RunSet, ShardNo, StageId,
};

/// Where a fetch reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The object store.
    Origin,
    /// Another node.
    Peer(NodeId),
}

/// What is known of a node when it joins.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Its name, for reasons given to people.
    pub name: String,
    /// Nodes with the same label are near each other (rack or leaf switch); empty when unknown.
    pub rack: String,
    /// Quota for Millstream's own bytes.
    pub capacity_bytes: u64,
    /// Bytes in use when it joined.
    pub used_bytes: u64,
    /// Differs for each start of its process; zero when unknown. Orders of an earlier process are lost.
    pub boot_id: u64,
}

/// How a stage places shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Every shard on every node of the stage.
    Replicate,
    /// Each shard on this many nodes of the stage (chosen by rendezvous hashing).
    Spread(u32),
    /// Nothing by itself: what readers on the nodes announce comes ahead of them, and goes behind them.
    Window,
}

/// A failed fetch of this core's sources.
pub type Failure = millstream_types::Failure<Source>;

/// A version as the core needs it: geometry and what to check against.
#[derive(Clone, Debug)]
pub struct DatasetFacts {
    /// Piece geometry.
    pub layout: Arc<Layout>,
    /// The origin's own checksum per shard.
    pub shard_checksums: Arc<[Option<OriginChecksum>]>,
    /// Piece checksums that the manifest itself carries (from an index): every node has them with it.
    pub known: Vec<(PieceNo, Vec<Crc64>)>,
    /// Piece checksums learned before a restart: a node may hold a manifest from before them.
    pub learned: Vec<(PieceNo, Vec<Crc64>)>,
}

/// What the core is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node's session began. Its inventories follow.
    NodeUp {
        /// The node.
        node: NodeId,
        /// What it said of itself.
        info: NodeInfo,
    },
    /// The name behind a node's number, before it is up: `spread` places by name, so that a restart moves nothing.
    NodeNamed {
        /// The node.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// A node's session ended, or the shell gave up on it. The core waits out `SUSPECT_US` before it acts on it.
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// A node said it is leaving (drained): act at once.
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// A sign of life.
    Heartbeat {
        /// The node.
        node: NodeId,
        /// Bytes of Millstream on its disk.
        used_bytes: u64,
        /// Its quota.
        capacity_bytes: u64,
        /// Its link, per second in which pieces of peers were arriving; zero: not measured.
        link_bytes_per_s: u64,
        /// Its disk, per second of writing; zero: not measured.
        disk_bytes_per_s: u64,
    },
    /// A version is in the catalog. Must come before any event that names it.
    DatasetAdded {
        /// The version.
        dataset: DatasetId,
        /// Geometry and checksums.
        facts: DatasetFacts,
    },
    /// A version left the catalog: stages of it end, nodes evict it.
    DatasetRemoved {
        /// The version.
        dataset: DatasetId,
    },
    /// All that a node holds of a version: replaces what was believed before.
    Inventory {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Verified pieces on its disk.
        pieces: RunSet,
        /// Sealed (visible) shards.
        sealed: RunSet,
    },
    /// A version shall be on nodes. A second stage of the same version adds to the first.
    StageRequested {
        /// Chosen by the shell, unique.
        stage: StageId,
        /// The version.
        dataset: DatasetId,
        /// Where. Nodes that are not up yet are served when they come up.
        nodes: Vec<NodeId>,
        /// How.
        placement: Placement,
        /// Higher goes first.
        priority: u32,
    },
    /// A node asks for shards that a reader there waits for, staged there or not. They come first. No shards: the node
    /// is to open the version.
    ShardsDemanded {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Which.
        shards: RunSet,
    },
    /// A reader on a node says what it will read and what it has read.
    ReaderMoved {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// What it says.
        report: crate::ReaderReport,
    },
    /// A reader's connection ended.
    ReaderGone {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// The reader's number on its node.
        reader: u64,
    },
    /// A node dropped shards as ordered, or kept some that are in use there.
    ShardsDropped {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Gone from its disk.
        dropped: RunSet,
        /// Still there.
        kept: RunSet,
    },
    /// The answer to [`Action::AskOrigin`].
    OriginSays {
        /// The version.
        dataset: DatasetId,
        /// Shards that were asked about.
        asked: RunSet,
        /// Those of which reads would be answered with the registered bytes.
        holds: RunSet,
    },
    /// A stage is no longer wanted; what was fetched stays.
    StageCancelled {
        /// The stage.
        stage: StageId,
    },
    /// A node read pieces from the origin and computed their checksums.
    PiecesRead {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// The first piece.
        first: PieceNo,
        /// One checksum per piece from there on.
        crcs: Vec<Crc64>,
    },
    /// Every piece of an assignment is verified and on the node's disk.
    AssignmentDone {
        /// The node.
        node: NodeId,
        /// The assignment.
        assignment: AssignmentId,
        /// Bytes that this assignment moved.
        bytes: u64,
        /// From its first request to its last byte.
        elapsed_us: u64,
        /// Where the bytes came from in the end (an alternate, perhaps).
        source: Source,
    },
    /// A node tried its sources and gave an assignment back.
    AssignmentFailed {
        /// The node.
        node: NodeId,
        /// The assignment.
        assignment: AssignmentId,
        /// Pieces that it still lacks.
        missing: RunSet,
        /// The last failure.
        failure: Failure,
    },
    /// A source failed a node, which goes on with it or with an alternate: for quarantine and alarms only.
    SourceFailed {
        /// The node that complains.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// What happened.
        failure: Failure,
    },
    /// Shards became visible on a node.
    ShardsSealed {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Which.
        shards: RunSet,
    },
    /// A node found that the whole shard does not match the origin's (non-CRC64) checksum.
    ShardMismatch {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// The origin's checksum, as text.
        expected: String,
        /// What the pieces sum to, as text.
        actual: String,
    },
    /// A node lost a sealed shard (scrub, `verify`, or an outside hand): its pieces are gone there.
    ShardLost {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// In words.
        reason: String,
    },
    /// A node cannot take the version (quota, disk): the stage fails there, elsewhere it goes on.
    NodeRefused {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// `NoSpace` or `Disk`.
        kind: FailureKind,
        /// In words, with numbers.
        reason: String,
    },
    /// These nodes shall drop the version: [`Core::departures`](crate::Core::departures) said that they may.
    EvictionOrdered {
        /// The version.
        dataset: DatasetId,
        /// Where.
        nodes: Vec<NodeId>,
    },
    /// A node kept the version although it was told to drop it (pinned, leased, its disk).
    EvictionRefused {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
    },
    /// A node removed a version from its disk.
    Evicted {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
    },
}

/// The coordinator's order to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its number.
    pub id: AssignmentId,
    /// The version.
    pub dataset: DatasetId,
    /// The extent. The node fetches what it lacks of it.
    pub pieces: PieceRange,
    /// From whom.
    pub source: Source,
    /// From whom else, in order, when that fails. Never the origin: reading there takes a lease.
    pub alternates: Vec<NodeId>,
    /// For the origin: how long the right to read lasts.
    pub lease_us: u64,
    /// Higher goes first.
    pub priority: u32,
}

/// Why a shard failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFailure {
    /// The shard.
    pub shard: ShardNo,
    /// Exit code class: 5 integrity, 8 conflict (the object changed), 9 denied, 1 otherwise.
    pub code: u32,
    /// The piece, where one is to blame.
    pub piece: Option<PieceNo>,
    /// Expected checksum, as text; empty when it is not about checksums.
    pub expected: String,
    /// Actual checksum, as text.
    pub actual: String,
    /// From whom the bytes came.
    pub source: Source,
    /// In words.
    pub detail: String,
}

/// What the core orders.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The node shall open the version: get its manifest, make room, send its inventory.
    Attach {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Bytes that a stage wants there in the end: refused up front when they cannot fit.
        wanted_bytes: u64,
    },
    /// Fetch. An extent that the node is fetching already changes its source and keeps its verified pieces.
    Assign {
        /// The node.
        node: NodeId,
        /// The order.
        assignment: Assignment,
    },
    /// Stop fetching; keep verified pieces.
    Cancel {
        /// The node.
        node: NodeId,
        /// The assignment.
        assignment: AssignmentId,
    },
    /// Expected checksums, for nodes that will receive these pieces.
    Checksums {
        /// The nodes.
        to: Vec<NodeId>,
        /// The version.
        dataset: DatasetId,
        /// The first piece.
        first: PieceNo,
        /// One per piece from there on.
        crcs: Arc<[Crc64]>,
    },
    /// Checksums learned: keep them durably.
    PersistChecksums {
        /// The version.
        dataset: DatasetId,
        /// The first piece.
        first: PieceNo,
        /// One per piece from there on.
        crcs: Arc<[Crc64]>,
    },
    /// What was read of a shard is wrong: forget its pieces and checksums, everywhere (durable copy included).
    DiscardShard {
        /// The nodes that have or receive pieces of it.
        to: Vec<NodeId>,
        /// The version.
        dataset: DatasetId,
        /// The shard.
        shard: ShardNo,
        /// In words.
        reason: String,
        /// Given up: do not fetch it again.
        fatal: bool,
    },
    /// The node shall drop these shards (not the version), unless something there uses them; answered with
    /// [`Event::ShardsDropped`].
    DropShards {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// Which.
        shards: RunSet,
        /// Readers there whose turn has not come: what they have open does not count.
        waiting: Vec<u64>,
    },
    /// Ask the origin whether it still holds these shards unchanged; answered with [`Event::OriginSays`].
    AskOrigin {
        /// The version.
        dataset: DatasetId,
        /// Which.
        shards: RunSet,
    },
    /// Remove the version from the node's disk.
    Evict {
        /// The node.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
    },
    /// For the audit log, alarms and metrics. Nothing depends on it.
    Note(Note),
}

/// Things worth telling people.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A stage is on all its nodes (or failed on all that are left).
    StageFinished {
        /// The stage.
        stage: StageId,
        /// Nothing failed.
        ok: bool,
    },
    /// A shard failed for good.
    ShardFailed {
        /// The version.
        dataset: DatasetId,
        /// Why.
        failure: ShardFailure,
    },
    /// A source is avoided from now on.
    Quarantined {
        /// The node.
        node: NodeId,
        /// Because of.
        kind: FailureKind,
        /// Until (microseconds from now).
        for_us: u64,
    },
    /// An origin lease ran out and went to another node.
    LeaseExpired {
        /// The holder.
        node: NodeId,
        /// The version.
        dataset: DatasetId,
        /// The extent.
        pieces: PieceRange,
    },
    /// The cost model sends everyone to the origin (or back to peers).
    GoDirect {
        /// The version.
        dataset: DatasetId,
        /// Direct from now on?
        direct: bool,
        /// In words.
        reason: String,
    },
    /// A node changed between up, suspect and down.
    NodeState {
        /// The node.
        node: NodeId,
        /// The new state.
        state: NodeState,
    },
}

/// Is a node with us?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Heartbeats arrive.
    Up,
    /// Heartbeats are late or the session ended a moment ago: no new work, old work stands.
    Suspect,
    /// Given up: its work is handed to others.
    Down,
}

impl NodeState {
    /// `up`, `suspect` or `down`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
        }
    }
}
