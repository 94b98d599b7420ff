//! Every limit of the agent's shell, with its reason.

use std::time::Duration;

// ------------------------------------------------------------------ shell

/// Errors kept for the status page: enough to see a pattern, not a log.
pub const LAST_ERRORS_MAX: usize = 16;
/// Inputs waiting for the driver: a few per fetch in flight; senders wait when it is full.
pub const DRIVER_INPUTS_MAX: usize = 4096;
/// Fetches from peers at once, at most: what the buffers hold of the smallest pieces. Each takes a task of some
/// kilobytes, which stays; more wait for one.
pub const FETCHES_MAX: usize = 4096;
/// Pieces on their way to the disk at once, at most: the ring takes a few dozen, the others only wait for it.
pub const WRITES_MAX: usize = 256;
/// Cells for answers that are kept to be used again: one per request in flight, some hundred bytes each.
pub const SPARE_REPLIES_MAX: usize = 4096;
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
/// Time for the last message to reach the coordinator when the agent stops; one that does not answer is not waited for.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a peer's request for a piece that is not even on its way here is held: the child's order may overtake
/// the parent's.
pub const UNKNOWN_PIECE_GRACE: Duration = Duration::from_secs(2);
/// A piece that does not come is refused this part of the requester's deadline (one of so many) before that ends, and at
/// most [`PEER_ANSWER_MAX`]: who hears in time that it is not here does not take this node for dead.
pub const PEER_ANSWER_PART: u32 = 8;
/// See [`PEER_ANSWER_PART`].
pub const PEER_ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long `fetch` waits when its client does not say: a large shard on a slow link.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// And at most: a client that wants to wait longer asks again.
pub const FETCH_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// A shard that has not come is asked for again after this time: the coordinator may have been restarted.
pub const FETCH_ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a reader's first word waits for its version to be opened here; less than a client waits for the answer.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers that one connection may announce: a loader process has one, or one per data set that it mixes.
pub const READERS_PER_CLIENT_MAX: usize = 64;
/// Longest request line on the Unix socket.
pub const SOCKET_LINE_BYTES_MAX: usize = 64 * 1024;
/// Clients of the Unix socket at once: a large node runs some hundred data loader workers.
pub const SOCKET_CLIENTS_MAX: usize = 2048;
/// Shards in one reply of the socket: with the longest keys about a megabyte.
pub const SHARDS_PAGE_MAX: u32 = 1000;
/// Missing shards that an error names: enough to recognise which; the count says the rest.
pub const MISSING_NAMED_MAX: usize = 100;
/// How long the coordinator may take to know of a failure that this node knows of: one round of its clients' ticks.
pub const FAILURE_PATIENCE: Duration = Duration::from_secs(3);
/// And how much longer its answer may take.
pub const FAILURE_ASKED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a question to the coordinator on a socket client's behalf may take before its first answer. Clients that
/// wait for nodes wait in the stream that follows.
pub const COORDINATOR_CALL_TIMEOUT: Duration = Duration::from_secs(20);

// ---------------------------------------------------------------- storage

/// The arena is cut in chunks of this size: the largest piece.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Smallest slot: the smallest piece.
pub const SLOT_BYTES_MIN: usize = 64 * 1024;
/// Largest arena: more than any node needs, and well inside the address space.
pub const ARENA_BYTES_MAX: u64 = 1 << 40;
/// What O_DIRECT wants of addresses, offsets and lengths: the largest logical block of the disks we know.
pub const IO_ALIGN: usize = 4096;

// -------------------------------------------------------------- transport

/// Requests in flight on one connection: hides the round trip at any rate with the smallest pieces, and bounds what
/// a peer can make this node remember.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 64;
/// A second connection is opened when the first has this many requests in flight: fewer mean that the requester,
/// not the connection, is the limit.
pub const GROW_AT_REQUESTS: usize = 8;
/// Peers that are remembered: the largest cluster, twice.
pub const PEERS_MAX: usize = 8192;
/// How often a request is sent again because its connection closed before it was sent.
pub const FETCH_SENDS_MAX: usize = 3;
/// Name lookup, connection and greeting: a live peer in the same cluster takes milliseconds.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// First and longest wait before a peer that failed is connected to again; half of it is random.
pub const PEER_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// See [`PEER_BACKOFF_MIN`].
pub const PEER_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection on which nothing is asked for is closed by the asking side after this time; extents come more often.
pub const PEER_IDLE_CLOSE: Duration = Duration::from_secs(60);
/// The serving side closes idle connections later, so that it is normally not the one to do it.
pub const PEER_SERVER_IDLE_CLOSE: Duration = Duration::from_secs(300);
/// A peer that owes answers and says nothing is pinged after this time, and given up after three times as much.
pub const PEER_SILENCE: Duration = Duration::from_secs(5);
/// A connection that does not introduce itself holds a socket and a task for nothing.
pub const PEER_HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A receiver that takes no byte for this long is stuck; its buffers are wanted elsewhere.
pub const PEER_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a drain may take: a few of the largest pieces on a slow link.
pub const PEER_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keep-alive: first probe on a quiet connection; two more at a third of the distance.
pub const PEER_KEEPALIVE: Duration = Duration::from_secs(15);
/// Bytes that stay unacknowledged this long end the connection: the other node or the path is gone.
pub const PEER_UNACKED_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections served at once: two from each node of a large cluster.
pub const PEER_CONNECTIONS_MAX: usize = 4096;
/// Connections from one address: many agents may share one in tests and demos, a stranger gets no more.
pub const PEER_CONNECTIONS_PER_IP_MAX: usize = 128;
/// A listener that is out of descriptors tries again after this time.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Shortest interval at which a connection looks after its timeouts, whatever the configuration.
pub const PEER_TICK_MIN: Duration = Duration::from_millis(5);
/// One read of piece bytes: large enough that the call is cheap, small enough that the bytes are still in the core's
/// cache when they are summed.
pub const PEER_READ_BYTES: usize = 256 * 1024;
/// A receiver sleeps until this many bytes of a piece have come: fewer wake-ups on slow links.
pub const PEER_LOW_WATER_MAX: usize = 256 * 1024;
/// System calls on one connection before other tasks of the worker get their turn.
pub const STEPS_PER_TURN: usize = 16;
/// Requests are read in chunks of this size: dozens of them.
pub const REQUEST_BUFFER_BYTES: usize = 4096;
/// Frames (not pieces) that may wait to be sent; a peer for which more wait is not reading.
pub const OUT_FRAMES_BYTES_MAX: usize = 64 * 1024;
/// Pieces in memory that a connection holds while they wait for their turn; others are opened again when it comes,
/// so that one slow receiver does not hold the arena.
pub const READY_PIECES_MAX: usize = 2;
/// Cold pieces read from the disk at once for serving: keeps a disk busy, leaves blocking threads to others.
pub const COLD_READS_MAX: usize = 8;
/// Distance between the places that are probed for being in the page cache: its read-ahead works in such steps.
pub const WARM_PROBE_BYTES: usize = 256 * 1024;
/// One blocking read of a cold piece.
pub const WARM_READ_BYTES: usize = 256 * 1024;
/// Buffers of a source that spoils pieces on purpose: as many as one connection may hold, a few times.
pub const FAULTY_ARENA_BYTES: u64 = 64 << 20;
/// Threads that zero the arena at the start: a few saturate the memory of a socket.
pub const POPULATE_THREADS_MAX: usize = 8;
/// Buffers of the serving side for pieces that are read from disk to be sent over RDMA: a few of the largest pieces
/// for each of a few peers. Apart from the arena, and registered with it.
pub const RDMA_SERVE_BYTES: u64 = 64 << 20;
/// Pieces written at once on one queue pair: with 1 MiB segments the queue never runs dry, and one slow peer does not
/// hold the arena.
pub const RDMA_WRITES_MAX: usize = 4;
/// How long a peer may take to confirm that it will not write to a slot it was asked to leave alone. After that the
/// queue pair is destroyed, which is certain, and costs what else is in flight on it.
pub const RDMA_CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Greeting and the exchange of queue pairs, which take the kernel some milliseconds each, once connected. Until then
/// the pieces of that peer wait.
pub const RDMA_SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that waited for an attempt to set up a queue pair do not repeat it within this time.
pub const RDMA_SETUP_RETRY: Duration = Duration::from_millis(500);
/// How often a link in use asks whether its rail is still the one to use: moving costs a connection, not a piece.
pub const RDMA_RAIL_LOOK_PERIOD: Duration = Duration::from_secs(5);
/// How often devices are looked for that came, went or may be tried again.
pub const RAIL_LOOK_PERIOD: Duration = Duration::from_millis(500);
/// Reads and writes at once on blocking threads: more do not make a disk faster, and threads cost memory.
pub const BLOCKING_JOBS_MAX: usize = 8;
/// Reads and writes at once in the ring: 2 to 8 saturate a disk; more only serve many small pieces.
pub const URING_DEPTH: u32 = 32;
/// Submission queue of the ring: room for every operation in flight.
pub const URING_ENTRIES: u32 = 64;
/// Journal entries and records that may wait for a disk that fails: some 20,000 pieces.
pub const LOG_PENDING_BYTES_MAX: usize = 1 << 20;
/// Shard files kept open, two descriptors each and as many of the ring's: well below the usual limit of 1,024
/// descriptors.
pub const OPEN_SHARDS_MAX: usize = 128;
/// Locks of a version that its shards share: a seal that re-reads a shard holds up one in so many others.
pub const SHARD_GATES: usize = 64;
/// Pieces read at once when a restart checks what the journal claims; each holds a slot.
pub const RECHECK_PIECES_AT_ONCE: usize = 4;
/// Without a configured capacity, this share of the file system is used: file systems slow down when they are full.
pub const CAPACITY_PERCENT: u64 = 90;

// ------------------------------------------------------------------ what people are told

/// Between two reports of a node's equipment, traffic by peer and keepers: people look, nothing depends on it.
pub const DETAILS_EVERY: Duration = Duration::from_secs(2);
/// Peers in such a report, those that sent most: a node has a few parents at a time.
pub const DETAILS_PEERS_MAX: usize = 64;
/// Keepers in such a report: processes of a large node, each with its lease.
pub const DETAILS_KEEPERS_MAX: usize = 256;

// ------------------------------------------------------------------ origin

/// Bytes from the origin are summed in parts of this size: they are still in the L2 cache then.
pub const SUM_CHUNK_BYTES: usize = 256 << 10;
