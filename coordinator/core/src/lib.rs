//! The coordinator's decisions, without I/O.
//!
//! Purpose: who fetches which extent from whom, what is expected of each piece, who is with us, what failed.
//! Participants: the shell (`millstream-coordinator`) and the simulator (`millstream-sim`) drive a [`Core`] through
//! [`event`]. Goals: every origin byte read once; transfers near T*; a fault costs little; the same events give the
//! same actions. Non-goals: storage, sockets, clocks, names and URLs (the shell's).

pub mod config;
pub mod event;
pub mod limits;
pub mod view;

use std::collections::VecDeque;

use millstream_types::{Crc64, DatasetId, NodeId, PieceNo, StageId, Time};

pub use config::CoreConfig;
use event::{Action, Event, ShardFailure};
use view::{Counters, NodeView, ReplicaView, StageView};

/// The coordinator's whole state and policy.
#[derive(Debug)]
pub struct Core {
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Core {
    /// Nothing known yet.
    pub fn new(config: CoreConfig) -> Core {
        let _ = config;
        Core {
            actions: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes one event in. Drain [`poll_action`](Self::poll_action) afterwards.
    pub fn handle_event(&mut self, now: Time, event: Event) {
        let _ = (now, event);
    }

    /// Call when [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        let _ = now;
    }

    /// The next order to carry out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None`: nothing is waiting for time to pass.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// All nodes ever seen, by number.
    pub fn nodes(&self, now: Time) -> Vec<NodeView> {
        let _ = now;
        Vec::new()
    }

    /// One node.
    pub fn node(&self, node: NodeId, now: Time) -> Option<NodeView> {
        let _ = (node, now);
        None
    }

    /// A version on a node; `None` when the version or the node is unknown.
    pub fn replica(&self, dataset: DatasetId, node: NodeId) -> Option<ReplicaView> {
        let _ = (dataset, node);
        None
    }

    /// A version on every node that has or shall have something of it.
    pub fn replicas(&self, dataset: DatasetId) -> Vec<ReplicaView> {
        let _ = dataset;
        Vec::new()
    }

    /// All stages, by number.
    pub fn stages(&self, now: Time) -> Vec<StageView> {
        let _ = now;
        Vec::new()
    }

    /// One stage.
    pub fn stage(&self, stage: StageId, now: Time) -> Option<StageView> {
        let _ = (stage, now);
        None
    }

    /// Shards of a version that failed for good.
    pub fn failures(&self, dataset: DatasetId) -> Vec<ShardFailure> {
        let _ = dataset;
        Vec::new()
    }

    /// The piece checksums known of a version: runs of consecutive pieces, to go with its manifest.
    pub fn known_checksums(&self, dataset: DatasetId) -> Vec<(PieceNo, Vec<Crc64>)> {
        let _ = dataset;
        Vec::new()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of memory held for holdings, flights and checksums (an estimate from lengths).
    pub fn memory_bytes(&self) -> usize {
        0
    }
}
