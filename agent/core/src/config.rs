//! What the shell can set of the core's behaviour.

use crate::limits;

/// Settings of [`AgentCore`](crate::AgentCore); [`Default`] is right for a node with 2 GiB of buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Bytes in the arena: what fetches in flight, bytes that wait for a verdict and bytes that are being written may
    /// take together.
    pub buffer_bytes: u64,
    /// Bytes asked of one peer for one order before they arrive (at least two pieces are always asked).
    pub peer_pipeline_bytes: u64,
    /// Ranged GETs at once.
    pub origin_gets_max: usize,
    /// Bytes that may wait for their checksum; half of the buffers when zero.
    pub hold_bytes: u64,
    /// Shortest deadline of a fetch, in microseconds.
    pub deadline_us: u64,
    /// Anything that differs from node to node: spreads retries of nodes that failed together.
    pub jitter_seed: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        AgentConfig {
            buffer_bytes: 2 << 30,
            peer_pipeline_bytes: limits::PEER_PIPELINE_BYTES,
            origin_gets_max: limits::ORIGIN_GETS_MAX,
            hold_bytes: 0,
            deadline_us: limits::DEADLINE_US,
            jitter_seed: 0,
        }
    }
}
