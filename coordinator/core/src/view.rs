//! Read-only answers about the core's state, for status, wait and metrics.

use millstream_types::{DatasetId, NodeId, RunSet, StageId};

use crate::event::{NodeState, Placement, ShardFailure};

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// With us?
    pub state: NodeState,
    /// Receiving rate while busy, measured; zero before the first measurement.
    pub in_bytes_per_s: f64,
    /// Quarantined for this many microseconds more; zero when not.
    pub quarantined_us: u64,
    /// Bytes assigned to it and not done.
    pub outstanding_bytes: u64,
    /// How many times longer than typical it takes to receive; 1 is typical.
    pub slow_in: f64,
    /// The same for sending.
    pub slow_out: f64,
    /// So slow that it is avoided as a source.
    pub avoided_as_slow: bool,
}

/// A version on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaView {
    /// The node.
    pub node: NodeId,
    /// Sealed shards of those wanted there.
    pub shards_ready: u32,
    /// Shards wanted there (all of the version when nothing is staged there).
    pub shards_wanted: u32,
    /// Bytes of verified pieces.
    pub bytes_ready: u64,
    /// Bytes wanted there.
    pub bytes_wanted: u64,
    /// Where it stands.
    pub state: ReplicaState,
    /// In words, when it is waiting or failed.
    pub reason: String,
}

/// Where a version stands on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Nothing there.
    Absent,
    /// Bytes arrive, or shall.
    Receiving,
    /// All bytes are there, not all shards are sealed.
    Verifying,
    /// All visible.
    Ready,
    /// It will not get there without help.
    Failed,
}

impl ReplicaState {
    /// `absent`, `receiving`, `verifying`, `ready` or `failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplicaState::Absent => "absent",
            ReplicaState::Receiving => "receiving",
            ReplicaState::Verifying => "verifying",
            ReplicaState::Ready => "ready",
            ReplicaState::Failed => "failed",
        }
    }
}

/// A stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StageView {
    /// The stage.
    pub stage: StageId,
    /// The version.
    pub dataset: DatasetId,
    /// Where.
    pub nodes: Vec<NodeId>,
    /// How.
    pub placement: Placement,
    /// Higher goes first.
    pub priority: u32,
    /// `running`, `done`, `failed` or `cancelled`.
    pub state: &'static str,
    /// Bytes wanted on all nodes together.
    pub bytes_total: u64,
    /// Of those, verified; all of them once it was done, whatever was lost since: `lacking` says where.
    pub bytes_ready: u64,
    /// Its nodes that lack some of it and that it does not wait for: lost after it was done, refused, or down.
    pub lacking: Vec<NodeId>,
    /// Of `bytes_ready`, there already when it began.
    pub bytes_found: u64,
    /// Bytes that its nodes read from the origin since it began.
    pub origin_bytes: u64,
    /// Microseconds since it began (until it ended).
    pub elapsed_us: u64,
    /// Microseconds that it still needs at the present rate; `None` before there is one.
    pub eta_us: Option<u64>,
    /// T*: the lower bound, in microseconds, from the rates measured until it ended, for what was not there when it
    /// began; `None` without rates, and where all was there.
    pub bound_us: Option<u64>,
    /// `origin`, `link` or `disk`.
    pub bound_by: &'static str,
}

/// What it takes to have more shards on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Bytes beyond what is wanted there already.
    pub bytes_more: u64,
    /// All that is wanted there then.
    pub bytes_wanted: u64,
    /// A reader there announced some, and what it has open at a time takes so many bytes, of so many that readers have.
    pub no_room: Option<(u64, u64)>,
    /// The readers there that announced some wait for their turn: others have so many bytes open, of so many.
    pub turn: Option<(u64, u64)>,
    /// Why the node does not take what stages want there, if so: then it takes nothing.
    pub refused: Option<String>,
}

/// Which nodes may drop a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Departures {
    /// These may.
    pub go: Vec<NodeId>,
    /// These have the last copies of shards: these.
    pub stay: Vec<(NodeId, RunSet)>,
}

/// What failed of a version.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetFailures {
    /// Shards that failed for good.
    pub shards: Vec<ShardFailure>,
}

/// What the core counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Assignments handed out.
    pub assignments: u64,
    /// Of those, leases on the origin.
    pub origin_leases: u64,
    /// Assignments that ended well.
    pub done: u64,
    /// Assignments given back by nodes.
    pub failed: u64,
    /// Extents handed out again (failure, lost node, expired lease, overdue source).
    pub requeues: u64,
    /// Of those, because the source was too slow.
    pub overdue: u64,
    /// Origin leases that ran out.
    pub leases_expired: u64,
    /// Times that a source was put in quarantine.
    pub quarantines: u64,
    /// Rounds of doubt about what was read of a shard.
    pub disputes: u64,
    /// Shards that failed for good.
    pub shards_failed: u64,
    /// Shards that nodes were told to drop behind their readers.
    pub dropped: u64,
    /// Last copies that moved to a node with room.
    pub handed_over: u64,
    /// Piece checksums learned.
    pub checksums_learned: u64,
    /// Bytes read from the origin, as reported.
    pub origin_bytes: u64,
    /// Bytes received from peers, as reported.
    pub peer_bytes: u64,
    /// Events that named something unknown, or no longer valid.
    pub ignored: u64,
}
