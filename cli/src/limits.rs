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
/// Slurm's own commands answer within this time, or count as away; they themselves would wait longer.
pub const SLURM_COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two words to the user of a job that waits for its data: each is a request to Slurm's controller.
pub const SLURM_PROGRESS_EVERY: Duration = Duration::from_secs(15);
/// How long Prolog tries to reach the local agent: a restart takes about a second.
pub const SLURM_AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long Prolog waits for what is only for show.
pub const SLURM_SHOW_TIMEOUT: Duration = Duration::from_millis(500);
/// How long Epilog tries to reach a coordinator: it holds up the node for the next job.
pub const SLURM_EPILOG_BUDGET: Duration = Duration::from_secs(2);
/// The same for EpilogSlurmctld, which holds up nobody.
pub const SLURM_EPILOG_SLURMCTLD_BUDGET: Duration = Duration::from_secs(20);
/// Between two looks at the catalog for job submission: how old "there is no such dataset" may be.
pub const SLURM_CATALOG_EVERY: Duration = Duration::from_secs(2);
/// Between looks whether a daemon that starts is up, for systemd.
pub const SYSTEMD_POLL: Duration = Duration::from_millis(200);
/// A daemon that does not answer itself within this time does not answer.
pub const SYSTEMD_PROBE: Duration = Duration::from_secs(5);
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
/// Keys that wait for the screen: more than anybody types in a second.
pub const KEYS_MAX: usize = 64;
/// Events that the simulation may be ahead of the page: a few MiB.
pub const SIMULATED_AHEAD_MAX: usize = 10_000;
