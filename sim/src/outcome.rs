//! What a run came to.

use serde::Serialize;

/// Figures of one run, and what was broken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario's seed.
    pub seed: u64,
    /// Nodes that were to get the dataset.
    pub nodes: u32,
    /// Bytes of the dataset.
    pub bytes: u64,
    /// Seconds until the last shard was sealed on the last node.
    pub elapsed_s: f64,
    /// The same, for the nodes that no fault named.
    pub elapsed_unharmed_s: f64,
    /// Seconds until the origin had sent its last byte.
    pub origin_done_s: f64,
    /// T* in seconds.
    pub bound_s: f64,
    /// What sets T*.
    pub bound_by: &'static str,
    /// T/T*.
    pub ratio: f64,
    /// Bytes that left the origin.
    pub origin_bytes: u64,
    /// The same over the dataset's bytes.
    pub origin_ratio: f64,
    /// Did all live nodes get everything, and does the coordinator know?
    pub complete: bool,
    /// Shards that failed for good.
    pub shards_failed: u32,
    /// Broken promises, in words; empty when all is well.
    pub violations: Vec<String>,
    /// Fingerprint of everything that happened.
    pub trace: u64,
    /// Events of the run.
    pub events: u64,
    /// Assignments handed out.
    pub assignments: u64,
    /// Assignments per second of simulated time.
    pub assignments_per_s: f64,
    /// Control messages, both ways.
    pub messages: u64,
    /// Origin leases handed out.
    pub origin_leases: u64,
    /// Extents handed out again.
    pub requeues: u64,
    /// Most bytes of memory that the coordinator's core held (its own estimate).
    pub coordinator_memory_bytes: u64,
    /// Most orders that one node had in hand.
    pub node_orders_max: u64,
    /// The part of its time that a loader waited for shards, on average; zero without loaders.
    pub waited_part: f64,
    /// Shards dropped behind loaders.
    pub dropped: u64,
    /// Last copies that moved to a node with room.
    pub handed_over: u64,
    /// Seconds that the run itself took on this machine; zero unless the caller measured it.
    pub wall_s: f64,
}
