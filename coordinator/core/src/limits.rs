//! Every limit of the scheduling core, with its reason. [`CoreConfig`](crate::CoreConfig) carries those that a shell
//! or a test may change.

// ------------------------------------------------------------------ membership

/// Highest node number plus one: columns of the holdings tables are dense.
pub const NODES_MAX: u32 = 1 << 16;
/// Silence before a node is suspected: three heartbeats of one second, and some jitter.
pub const HEARTBEAT_TIMEOUT_US: u64 = 3_500_000;
/// How long a suspect may stay away before its work is handed to others: a reconnect (at most 3 s apart) fits in.
pub const DOWN_US: u64 = 5_000_000;
/// A session that ends this soon after a peer could not reach the node is the end of the node.
pub const UNREACHABLE_US: u64 = 1_000_000;
/// Period of the sweep over nodes and flights: short against every timeout here, long against the cost of a sweep.
pub const TICK_US: u64 = 250_000;
/// Origin reads wait this long for the inventories of nodes that joined: opening a large version takes seconds.
pub const INVENTORY_GRACE_US: u64 = 3_000_000;
/// After a restart, origin reads wait this long for the nodes of known stages: agents reconnect within 3 s.
pub const RECONNECT_GRACE_US: u64 = 10_000_000;

// ------------------------------------------------------------------ geometry

/// Extents wanted of a version: the depth of a tree costs about log2(N) extent times once, 2 % at 4,096 nodes.
pub const EXTENTS_WANTED: u64 = 1024;
/// Normal largest extent: beyond it, ranged reads and control load gain nothing.
pub const EXTENT_BYTES_NORMAL: u64 = 64 << 20;
/// Largest extent that the control budget may ask for.
pub const EXTENT_BYTES_MAX: u64 = 1 << 30;
/// Assignments handed out per second at full rate: the budget that grows extents (see `examples/assignments_per_s`).
pub const ASSIGNMENTS_PER_S: u64 = 100_000;
/// Largest placement group of small shards.
pub const GROUP_BYTES_MAX: u64 = 256 << 20;

/// Rates within this factor are the same: the origin bounds a stage only where it gives less than a node could take by
/// more than that.
pub const RATES_ALIKE: f64 = 1.1;

// ------------------------------------------------------------------ planning

/// Alternates that go with an assignment: each costs an address in the message.
pub const ALTERNATES_MAX: usize = 3;
/// Priority of what nodes ask for themselves: above every stage, because a reader waits.
pub const DEMAND_PRIORITY: u32 = 1 << 20;
/// Children per node and tree: with two, each node is inside every second tree, and trees are shallow.
pub const FAN_OUT: u32 = 2;
/// A chain of N nodes costs N piece times once: it is taken where that is at most this part of the version. Trees cost
/// about 15 %, and more after accidents.
pub const CHAIN_PART: u64 = 8;
/// Alternates in a chain: more would take from uplinks that have nothing to spare.
pub const CHAIN_ALTERNATES: usize = 1;
/// Longest chain: each link adds its latency, and a break holds up all behind it until it is found.
pub const CHAIN_NODES_MAX: u32 = 128;
/// A node that got less than this part of what the one before it in the chain got is where the chain breaks.
pub const CHAIN_LATE_PART: u64 = 4;
/// Extents by which a node may fall behind the one before it, beyond two sweeps' worth, before the chain is led around
/// it: completions come in batches.
pub const CHAIN_BREAK_EXTENTS: u64 = 4;
/// The first node of a chain may get less than usual by this part (one of so many): origins are not even.
pub const CHAIN_HEAD_SLACK: u64 = 8;
/// What usually comes to a node is forgotten within about so many sweeps.
pub const CHAIN_USUAL_SWEEPS: u64 = 64;
/// A slow node that gets what the typical one gets in so many sweeps in a row is not slow any more.
pub const KEPT_UP_SWEEPS: u8 = 4;
/// What comes to a node that was led to the end of the line is not judged for so many sweeps.
pub const SETTLING_SWEEPS: u32 = 8;
/// A node behind which a chain breaks again, at another one, this soon is itself to blame.
pub const BLAME_US: u64 = 5_000_000;
/// Complaints of a node that was slow or cut off so recently do not count: what it could not reach was not to blame.
pub const SLANDER_US: u64 = 10_000_000;
/// When the first node of a chain was replaced, the next one is not judged for this long: it may be the origin's fault.
pub const HEAD_CALM_US: u64 = 5_000_000;
/// A node that lacks so many extents more than the typical one (and the length of the chain) is late.
pub const LATE_EXTENTS: u64 = 32;
/// And what flows in so many sweeps: a chain may be led around a node once or twice until then.
pub const LATE_SWEEPS: u64 = 8;
/// Bytes on their way to a node of a chain, in windows: the chain goes on while a part of it is behind.
pub const CHAIN_WINDOWS: u64 = 4;
/// How far a node's account of bytes received and passed on counts, in extents: what lies long back is forgotten.
pub const DEBIT_EXTENTS_MAX: i64 = 8;
/// Children that one node may serve at once: each is a connection or a request queue there.
pub const CHILDREN_MAX: usize = 256;
/// Holders, receivers or wanters looked at for one choice: enough for a good one, bounded for a cheap one.
pub const SAMPLE_MAX: usize = 16;
/// Extents compared when a node catches up ("rarest first").
pub const CANDIDATES_MAX: usize = 32;
/// Plans tried for one node in one go.
pub const SERVE_MAX: usize = 64;
/// Assigned and not done, per node, at least this long at its measured rate: hides the control round trip and the
/// batching of completions.
pub const WINDOW_US: u64 = 200_000;
/// A node with less than this part of its window is not made to wait for others.
pub const STARVING_PART: u64 = 8;
/// Slower than typical by this factor: a node is served last and serves nobody while others can.
pub const SLOW_FACTOR: f64 = 4.0;
/// What is left of a measured slowness of a source after each sweep: half of it after 10 s.
pub const SLOW_FADE: f64 = 0.983;
/// Slower by less than this is noise.
pub const SLOW_NOISE: f64 = 2.0;
/// A measured slowness is never believed beyond this: it must be able to recover.
pub const SLOW_MAX: f64 = 16.0;
/// A flight this many times slower than typical gets another source.
pub const OVERDUE_FACTOR: f64 = 4.0;
/// The same when the source is known to be slow, still lacks the extent, and others have it.
pub const OVERDUE_UNREADY_FACTOR: f64 = 1.5;
/// An origin read without progress for this many times what reads typically take is stalled: others take its place.
pub const STALLED_FACTOR: f64 = 2.0;
/// And at least this late: below it, re-sourcing costs more than waiting.
pub const OVERDUE_SLACK_US: u64 = 500_000;
/// In a chain, a source that still waits itself may be late by this many times more: its flow is judged before.
pub const OVERDUE_CHAIN_FACTOR: f64 = 4.0;
/// A stalled read is taken away when so many reads are done that began after it stalled.
pub const OVERTAKEN_READS: u64 = 4;
/// A transfer between peers is taken to last this long before one was measured.
pub const UNMEASURED_US: f64 = 5_000_000.0;
/// Each change of source doubles the wait before the next one, so often: perhaps the node itself is the slow one.
pub const RESOURCE_DOUBLINGS_MAX: u8 = 6;

// ------------------------------------------------------------------ origin

/// Leases that one node may hold when nobody shares what it reads: enough parallel reads to fill a link.
pub const LEASES_PER_NODE: u32 = 8;
/// Fewer shared leases than these are not tried in chains: they leave gaps between reads, the next one is ordered while
/// another is being read.
pub const CHAIN_LEASES: u32 = 2;
/// The same for trees, where each read has another reader and none queues before another's link: with four, the pauses
/// between reads cost an origin 6 %.
pub const TREE_LEASES: u32 = 12;
/// A lease lasts this many times longer than they typically take.
pub const LEASE_FACTOR: f64 = 8.0;
/// Before anything was measured, a lease lasts this long.
pub const LEASE_FIRST_US: u64 = 60_000_000;
/// Time beyond the lease before it is taken away: the holder's report may be on its way.
pub const LEASE_SLACK_US: u64 = 1_000_000;
/// First and longest pause after the origin asked for fewer requests.
pub const THROTTLE_PAUSE_MIN_US: u64 = 100_000;
/// See [`THROTTLE_PAUSE_MIN_US`].
pub const THROTTLE_PAUSE_MAX_US: u64 = 10_000_000;
/// After throttling, the budget grows by one per round for this long.
pub const THROTTLE_MEMORY_US: u64 = 60_000_000;
/// Origin reads of one extent that may fail in passing ways before its shard fails.
pub const ORIGIN_ATTEMPTS_MAX: u8 = 8;
/// First pause before an extent is read again; doubles with each attempt.
pub const ORIGIN_RETRY_MIN_US: u64 = 100_000;
/// Longest pause before an extent is read again.
pub const ORIGIN_RETRY_MAX_US: u64 = 5_000_000;

// ------------------------------------------------------------------ readers

/// Origin reads for the first reader of a version wait this long for the others of its job, who begin with the same
/// shards in other orders: what each read by itself would come to all in disorder.
pub const GATHER_US: u64 = 50_000;
/// Readers of one version: some loader processes on each node of a large cluster.
pub const READERS_MAX: usize = 1 << 16;
/// Groups of a reader's order that are looked at: all of a normal version (see `extent::groups`).
pub const AHEAD_GROUPS_MAX: usize = 4096;
/// The part of a node's room (one of so many) that is for what its readers need next; the rest keeps what is still
/// needed by others. Less starves readers on slow links, more sends bytes through the origin again.
pub const AHEAD_PART: u64 = 4;
/// Groups of which the origin is asked at once whether it still has them.
pub const ASK_GROUPS_MAX: usize = 16;
/// What a node would not drop is not asked for again for this long: a lease or a pin may end any time.
pub const KEPT_FOR_US: u64 = 1_000_000;
/// The origin's word counts for this long: it is asked shortly before it is needed.
pub const WORD_FOR_US: u64 = 60_000_000;

// ------------------------------------------------------------------ faults

/// First quarantine of a source of bad bytes, or of one that denies what it said it has; doubles each time.
pub const QUARANTINE_OFFENCE_US: u64 = 10_000_000;
/// Longest of those.
pub const QUARANTINE_OFFENCE_MAX_US: u64 = 600_000_000;
/// First quarantine of a source that does not answer; doubles each time.
pub const QUARANTINE_MIN_US: u64 = 1_000_000;
/// Longest quarantine of a source that does not answer.
pub const QUARANTINE_MAX_US: u64 = 60_000_000;
/// What a node reports is no older than this when it is dealt with here.
pub const CONTROL_DELAY_US: u64 = 100_000;
/// After this many of those a node's copy does not count as one: the origin is read again.
pub const DISTRUST_OFFENCES: u32 = 2;
/// First pause of a node whose assignments fail in a row; doubles each time.
pub const HOLD_MIN_US: u64 = 50_000;
/// Longest pause of a node whose assignments fail in a row.
pub const HOLD_MAX_US: u64 = 5_000_000;
/// Rounds of doubt about one shard before it fails.
pub const DISPUTE_ROUNDS_MAX: u32 = 3;
/// Failed shards kept with their reason per version; beyond it only the count is right.
pub const FAILURES_KEPT_MAX: usize = 10_000;
