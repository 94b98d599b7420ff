//! Every limit of the origin client, with its reason.

use std::time::Duration;

/// An origin that does not accept a connection in this time is treated as failing for now.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A read that brings no byte for this long is given up: the lease goes elsewhere.
pub const READ_STALL: Duration = Duration::from_secs(20);
/// HEAD requests at once while a version is registered: hides their latency, stays far below S3's request rates.
pub const HEADS_AT_ONCE: usize = 64;
/// Idle connections kept per host: as many as an agent has ranged reads at once.
pub const IDLE_CONNECTIONS: usize = 32;
/// Refused keys named in one error: enough to see the pattern.
pub const BAD_KEYS_SHOWN: usize = 10;
/// An index larger than this is not an index.
pub const INDEX_BYTES_MAX: u64 = 2 << 30;
/// Objects read at once while an index is built.
pub const INDEX_READS: usize = 4;
