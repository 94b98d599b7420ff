//! Limits of the agent's core, each with its reason.

/// Orders in hand at once. The coordinator keeps a node's backlog to a window of some dozen extents; a thousand times
/// that is a broken coordinator, and every order costs a few hundred bytes.
pub const ORDERS_MAX: usize = 16_384;
/// Orders and checksum runs kept for a version that is still being opened (its manifest is on the way).
pub const EARLY_MAX: usize = 16_384;
/// Requests to one peer before it answers, at least: one would leave the link idle for a round trip per piece.
pub const PEER_PIECES_MIN: u32 = 2;
/// Requests to one peer before it answers, at most: small pieces fill no link anyway, and a broken peer costs this many.
pub const PEER_PIECES_MAX: u32 = 64;
/// Bytes asked of one peer for one order before they arrive: a 50 GB/s link's product of bandwidth and delay.
pub const PEER_PIPELINE_BYTES: u64 = 8 << 20;
/// A peer may have this many orders' pipelines under way: the next extent starts while the last one drains.
pub const PEER_PIPELINES: u64 = 2;
/// Ranged GETs at once: S3 gives one connection about 100 MB/s, and the first node of a chain reads for all. The
/// coordinator's leases and the buffers keep it lower where that does.
pub const ORIGIN_GETS_MAX: usize = 64;
/// Pieces of a running GET that are counted against the buffers: it streams, so more never wait at once when the disk
/// keeps up, and when it does not the shell's slots hold the stream back.
pub const ORIGIN_WINDOW_PIECES: u64 = 4;
/// Share of the buffers that requests to peers leave free (one part of this many), so that reads from the origin, on
/// which other nodes wait, can always start.
pub const ORIGIN_RESERVE_PART: u64 = 4;
/// Share of the buffers (one part of this many) that may hold bytes whose checksum is not known yet. The rest keeps
/// moving, so nodes that wait for each other's checksums still read from the origin.
pub const HOLD_PART: u64 = 2;
/// Rounds through all sources of an order (its source, then the alternates) before it is given back.
pub const PEER_ROUNDS_MAX: u32 = 3;
/// Failures of the origin in a row, without a piece in between, before an order is given back. With the backoff below
/// that is about half a minute of a throttling store.
pub const ORIGIN_RETRIES_MAX: u32 = 8;
/// Wrong bytes from the origin are read again once; twice wrong is the origin's (or the checksum's) fault.
pub const ORIGIN_CHECKSUM_RETRIES_MAX: u32 = 1;
/// First wait after a failure, in microseconds.
pub const BACKOFF_MIN_US: u64 = 100_000;
/// Longest wait after a failure, in microseconds.
pub const BACKOFF_MAX_US: u64 = 10_000_000;
/// Shortest deadline of a fetch: a parent may itself be waiting for the piece, and so may its parent.
pub const DEADLINE_US: u64 = 30_000_000;
/// An alternate is waited for only this part of the deadline: it is no parent by plan, and may itself wait for us.
pub const ALTERNATE_DEADLINE_PART: u64 = 6;
/// Slowest rate that is waited for beyond [`DEADLINE_US`], in bytes per second.
pub const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// Timeouts in a row forgiven to a peer that delivers other pieces meanwhile: it is loaded, not dead.
pub const FORGIVEN_TIMEOUTS_MAX: u32 = 2;
/// Write errors of the disk in a row before the version is refused.
pub const DISK_RETRIES_MAX: u32 = 1;
/// Attempts to seal one shard before the version is refused.
pub const SEAL_RETRIES_MAX: u32 = 2;
/// Peers whose state is kept; idle ones are forgotten first.
pub const PEERS_MAX: usize = 8_192;
/// Times that a peer may say it does not have a piece, before that counts against it: its own order for the piece
/// travels on another connection and may come later than our question.
pub const NOT_HAVE_GRACE: u32 = 3;
/// A peer that takes this long to say so has waited for its own order.
pub const NOT_HAVE_WAITED_US: u64 = 1_000_000;
/// First wait before RDMA to a peer, or a device, that failed is tried again: long enough for a link to come back by
/// itself, short enough that a stage of minutes gets most of its bytes the fast way.
pub const COOLDOWN_MIN_US: u64 = 1_000_000;
/// Longest such wait; also how long one who probes is waited for. A probe costs one piece's detour.
pub const COOLDOWN_MAX_US: u64 = 30_000_000;
/// Peers and devices whose failures are remembered: the largest cluster, twice.
pub const COOLDOWN_SUBJECTS_MAX: usize = 8192;
/// A rail that failed with one peer is the last choice for it at first for so long: a cable or a device is back by then,
/// or stays away for long.
pub const RAIL_FAULT_MIN_US: u64 = 30_000_000;
/// See [`RAIL_FAULT_MIN_US`]. Trying again costs a second connection, or some pieces a detour.
pub const RAIL_FAULT_MAX_US: u64 = 1_800_000_000;
