//! Every limit of the agent's shell, with its reason.

use std::time::Duration;

// ------------------------------------------------------------------ shell

/// Errors kept for the status page: enough to see a pattern, not a log.
pub const LAST_ERRORS_MAX: usize = 16;
/// Inputs waiting for the driver: a few per fetch in flight; senders wait when it is full.
pub const DRIVER_INPUTS_MAX: usize = 4096;
/// Messages to the coordinator that wait for a slow stream. Beyond it the session is dropped and begins anew with
/// an inventory, which says the same in fewer words.
pub const CONTROL_OUT_MAX: usize = 8192;
/// Orders that may wait for a version to be opened (its manifest fetched, its files checked).
pub const WAITING_ORDERS_MAX: usize = 100_000;
/// Manifests up to this size are accepted from the coordinator (4 M shards with long keys).
pub const MANIFEST_BYTES_MAX: usize = 2 << 30;
/// First and longest wait between attempts to reach a coordinator; jitter of half the wait is added.
pub const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// See [`RECONNECT_MIN`]. A restarted coordinator has its agents back within this time.
pub const RECONNECT_MAX: Duration = Duration::from_secs(3);
/// A coordinator that does not accept a connection in this time is tried again.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a peer's request for a piece that is not even on its way here is held: the child's order may overtake
/// the parent's.
pub const UNKNOWN_PIECE_GRACE: Duration = Duration::from_secs(2);
/// Longest request line on the Unix socket.
pub const SOCKET_LINE_BYTES_MAX: usize = 64 * 1024;
/// Clients of the Unix socket at once: a large node runs some hundred data loader workers.
pub const SOCKET_CLIENTS_MAX: usize = 2048;

// ---------------------------------------------------------------- storage

/// The arena is cut in chunks of this size: the largest piece.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Smallest slot: the smallest piece.
pub const SLOT_BYTES_MIN: usize = 64 * 1024;
/// Largest arena: more than any node needs, and well inside the address space.
pub const ARENA_BYTES_MAX: u64 = 1 << 40;
/// What O_DIRECT wants of addresses, offsets and lengths: the largest logical block of the disks we know.
pub const IO_ALIGN: usize = 4096;
