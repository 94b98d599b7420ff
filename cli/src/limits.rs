//! Limits of the command line, each with its reason.

use std::time::Duration;

/// A coordinator that does not accept a connection in this time is passed over for the next one.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Quick questions (list, show, status) are answered within this time, or the coordinator counts as unreachable.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Long streams notice a vanished coordinator after this silence.
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// `wait` outlives a coordinator's restart: it tries to get back for this long.
pub const WAIT_RECONNECT: Duration = Duration::from_secs(120);
/// Between attempts to get back to a coordinator.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(300);
/// The largest reply taken: a status document of 4,096 nodes has a few MiB.
pub const REPLY_BYTES_MAX: usize = 256 << 20;
/// Shards asked for at once by `dataset show`.
pub const SHOW_PAGE_SHARDS: u32 = 10_000;
/// Shards that `dataset show` prints for people; `--json` prints all.
pub const SHOW_SHARDS_MAX: usize = 50;
/// The longest reply line taken from the agent's socket: `list` of a version with very many shards.
pub const SOCKET_REPLY_BYTES_MAX: u64 = 1 << 30;
/// An agent answers a quick question within this time, or counts as unreachable.
pub const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// Off a terminal, a progress line at most this often.
pub const PLAIN_PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Between refreshes of `status --watch`.
pub const WATCH_EVERY: Duration = Duration::from_secs(1);
/// `demo`: how long each child may take to bind its ports.
pub const DEMO_START: Duration = Duration::from_secs(30);
/// `demo`: how long the sample may take to be staged; it has a few MiB.
pub const DEMO_STAGE: Duration = Duration::from_secs(120);
/// `demo`: how long children may take to stop before they are killed.
pub const DEMO_STOP: Duration = Duration::from_secs(15);
/// Clocks of a node and the coordinator that differ by more than this make logs and certificates hard to trust.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);
/// `doctor`: an origin that does not answer a listing within this time is of no use.
pub const DOCTOR_ORIGIN: Duration = Duration::from_secs(20);
