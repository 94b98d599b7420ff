//! Every limit of the scheduling core, with its reason. [`CoreConfig`](crate::CoreConfig) carries those that a shell
//! or a test may change.

// ------------------------------------------------------------------ membership

/// Highest node number plus one: columns of the holdings tables are dense.
pub const NODES_MAX: u32 = 1 << 16;
/// Silence before a node is suspected: three heartbeats of one second, and some jitter.
pub const HEARTBEAT_TIMEOUT_US: u64 = 3_500_000;
/// How long a suspect may stay away before its work is handed to others: a reconnect (at most 3 s apart) fits in.
pub const DOWN_US: u64 = 5_000_000;
/// Period of the sweep over nodes and flights: short against every timeout here, long against the cost of a sweep.
pub const TICK_US: u64 = 250_000;
/// Origin reads wait this long for the inventories of nodes that joined: opening a large version takes seconds.
pub const INVENTORY_GRACE_US: u64 = 3_000_000;
/// After a restart, origin reads wait this long for the nodes of known stages: agents reconnect within 3 s.
pub const RECONNECT_GRACE_US: u64 = 10_000_000;

// ------------------------------------------------------------------ geometry

/// Extents wanted of a version: the depth of a tree costs about log2(N) extent times once, 2 % at 4,096 nodes.
pub const EXTENTS_WANTED: u64 = 512;
/// Normal largest extent: beyond it, ranged reads and control load gain nothing.
pub const EXTENT_BYTES_NORMAL: u64 = 64 << 20;
/// Largest extent that the control budget may ask for.
pub const EXTENT_BYTES_MAX: u64 = 1 << 30;
/// Assignments handed out per second at full rate: the budget that grows extents (see `examples/assignments_per_s`).
pub const ASSIGNMENTS_PER_S: u64 = 100_000;
