//! Limits of the coordinator's shell, each with its reason.

use std::time::Duration;

/// Inputs of the driver that wait: a full queue makes sessions stop reading, which is back-pressure to the agents.
pub const INPUTS_MAX: usize = 4096;
/// Inputs that are applied before the orders are drained: amortises the drain, and keeps an order's delay below
/// what this many inputs cost (a few milliseconds).
pub const INPUTS_PER_ROUND: usize = 256;
/// Batches that wait for one agent. A session that falls this far behind is ended: it reconnects and sends what it
/// has, which is cheaper than remembering orders that are stale by then.
pub const NODE_QUEUE_MAX: usize = 1024;
/// Messages in one batch to an agent: an assignment is about 100 bytes, so a batch stays far below
/// [`GRPC_MESSAGE_BYTES_MAX`].
pub const BATCH_MESSAGES_MAX: usize = 4096;
/// Largest gRPC message in either direction: an inventory of [`millstream_proto::limits::RUNS_MAX`] runs.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Connections at the gRPC port: 4,096 agents and as many clients.
pub const GRPC_CONNECTIONS_MAX: usize = 8192;
/// Requests at a time on one gRPC connection: an agent has a session and a few manifests.
pub const GRPC_STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Connections at the HTTP port: dashboards, probes, scrapers.
pub const HTTP_CONNECTIONS_MAX: usize = 512;
/// A request body at the HTTP port: nothing there takes one.
pub const HTTP_BODY_BYTES_MAX: usize = 16 << 10;
/// Time to send the head of an HTTP request: ends connections that only hold a place.
pub const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to answer one HTTP request: the driver answers in milliseconds, or is stuck.
pub const HTTP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence on a gRPC connection before it is pinged, and how long the answer may take: finds dead hosts in 20 s
/// where heartbeats do not (clients).
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time for an agent to say hello once its session is open.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes that are remembered, present or not: four times the largest cluster simulated. One that is gone and not
/// named by a stage makes room.
pub const NODES_MAX: usize = 16_384;
/// Dataset versions in the catalog: each has its manifest's geometry in memory.
pub const DATASETS_MAX: usize = 100_000;
/// Stages that are remembered; the oldest finished ones make room.
pub const STAGES_MAX: usize = 10_000;
/// Jobs that have not ended: more than schedulers of that size run at a time.
pub const JOBS_OPEN_MAX: usize = 20_000;
/// Jobs that have ended and are remembered: for accounting, and so that late hooks do not open them again.
pub const JOBS_ENDED_MAX: usize = 1_000;
/// Versions that one job may want: a job description names a few.
pub const JOB_WANTS_MAX: usize = 64;
/// Nodes times versions of one job: as large a job as the largest cluster runs, with four versions.
pub const JOB_PLACES_MAX: usize = 65_536;
/// Bytes of a job's key, name and user.
pub const JOB_TEXT_BYTES_MAX: usize = 256;
/// Clients that wait or verify at a time: one per trainer process of a large job that starts at once.
pub const WATCHERS_MAX: usize = 65_536;
/// Progress messages that wait for a slow client: only the newest counts.
pub const PROGRESS_QUEUE_MAX: usize = 16;
/// Nodes named one by one in a progress message or an error: people read the first few.
pub const NODES_NAMED_MAX: usize = 64;
/// Pause between two looks at a wait's progress.
pub const WAIT_TICK: Duration = Duration::from_millis(250);
/// Pause between two looks when something was sealed or failed: what a caller of `wait` may lose at the end.
pub const WAIT_TICK_DIRTY: Duration = Duration::from_millis(20);
/// A wait without news sends its progress anyway after this, so that proxies keep the stream and clients know.
pub const WAIT_KEEPALIVE: Duration = Duration::from_secs(10);
/// Time for agents to answer an evict order: deleting large files takes a while.
pub const EVICT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the origin to say whether it still holds what is evicted: people wait for the answer, and without one the
/// copy stays.
pub const ORIGIN_WORD_TIMEOUT: Duration = Duration::from_secs(30);
/// Keys in one request of a node for shards: a reader waits for one, or for a batch.
pub const WANTED_KEYS_MAX: usize = 1_000;
/// Shards in one page of `dataset show`, and the default.
pub const PAGE_MAX: u32 = 10_000;
/// Shards in a page when the client does not say.
pub const PAGE_DEFAULT: u32 = 1_000;
/// Adding datasets at a time: each lists an origin and holds a manifest in memory.
pub const ADDS_MAX: usize = 4;
/// Checksum requests (HEAD) in flight per added dataset: about what one S3 prefix answers at ease.
pub const CHECKSUM_HEADS_MAX: usize = 64;
/// Bytes of a manifest in one message to an agent.
pub const MANIFEST_CHUNK_BYTES: usize = 1 << 20;
/// Chunks of a manifest that wait for a slow agent.
pub const MANIFEST_CHUNKS_MAX: usize = 4;
/// Store requests that wait for the disk.
pub const STORE_JOBS_MAX: usize = 1024;
/// How long learned checksums gather before they are committed together: losing the last of them in a crash costs
/// reading a few pieces again.
pub const GROUP_COMMIT: Duration = Duration::from_millis(100);
/// Pieces per durable checksum row (8 KiB): bounds what a commit rewrites, also for a shard of a terabyte and for a
/// million shards of one piece.
pub const CHECKSUM_ROW_PIECES: u32 = 1024;
/// Lines of the audit log that are kept.
pub const AUDIT_LINES_MAX: u64 = 10_000;
/// Bytes of one line of the audit log.
pub const AUDIT_LINE_BYTES_MAX: usize = 4096;
/// Notices (quarantines, failed shards, expired leases) that the status page shows.
pub const NOTICES_MAX: usize = 100;
/// Bytes of words from an agent (reasons, errors) that are kept and shown.
pub const REASON_BYTES_MAX: usize = 1024;
/// Fallback kinds per node: transports, reasons and I/O engines multiply to a few dozen.
pub const FALLBACKS_MAX: usize = 64;
/// RDMA devices of a node that are shown: the largest servers have a dozen.
pub const RAILS_MAX: usize = 32;
/// Counters of one such device that are shown: drivers count some fifty things.
pub const RAIL_COUNTERS_MAX: usize = 128;
/// Peers of a node whose traffic is shown, as many as agents report.
pub const PEERS_SHOWN_MAX: usize = 64;
/// Keepers of a node that are shown, as many as agents report.
pub const KEEPERS_MAX: usize = 256;
/// Last errors per node.
pub const NODE_ERRORS_MAX: usize = 16;
/// Shortest time of moving bytes from which the rate of a link or a disk is worked out.
pub const MOVING_US_MIN: u64 = 1_000;
/// Longest URL of an origin.
pub const URL_BYTES_MAX: usize = 4096;
/// Highest priority of a stage.
pub const PRIORITY_MAX: u32 = 1_000;
/// Memory for pages of the store: the catalog is read at the start and when agents open versions.
pub const STORE_CACHE_BYTES: usize = 64 << 20;
/// Between two looks at alarms, rates and progress: what a person notices, and cheap for thousands of nodes.
pub const OBSERVE_EVERY: Duration = Duration::from_secs(1);
/// Seconds of throughput that are remembered: enough to see what happened since one was called.
pub const HISTORY_SECONDS: i64 = 300;
/// Pairs of nodes between which bytes moved lately: trees of two children on 16,384 nodes, and as many again.
pub const LINKS_MAX: usize = 65_536;
/// Lost shards whose repair is told: beyond this the loss itself is the story.
pub const LOST_SHARDS_MAX: usize = 10_000;
/// Wrong bytes that were mended, as far as they are remembered one by one: enough to see a pattern.
pub const TROUBLES_MAX: usize = 1_000;
/// Alarms of one kind that are shown one by one: people read the first few.
pub const ALARMS_PER_KIND_MAX: usize = 20;
/// Share of its quota at which a node's disk counts as near full: leaves time to act.
pub const DISK_NEAR_FULL: f64 = 0.9;
/// A busy node that receives less than this share of the median is slow.
pub const SLOW_SHARE: f64 = 0.5;
/// Nodes that must be measured before a median says what is normal.
pub const SLOW_NODES_MIN: usize = 4;
/// A running stage without a new byte for this long is stalled: longer than any retry's pause.
pub const STALLED_AFTER_S: f64 = 15.0;
/// After so long without a new byte the rate since the beginning says nothing of the time that is left.
pub const NO_ETA_AFTER_S: f64 = 5.0;
/// Pairs of member and shard that a picture of a version looks at: beyond it only every n-th shard is, and the
/// picture says so. 64 M pairs take about 60 MiB and a third of a second.
pub const PICTURE_CELLS_MAX: u64 = 64 << 20;
/// A picture of a version is used again for this long, however many people look.
pub const PICTURE_REUSE: Duration = Duration::from_millis(900);
/// Pictures that are kept at a time: versions that somebody looks at now.
pub const PICTURES_MAX: usize = 32;
/// Items that may be left out at the front of a list: more than any list has.
pub const LIST_OFFSET_MAX: u32 = 1_000_000_000;
/// Items in one page of a list of the API.
pub const LIST_PAGE_MAX: u32 = 1_000;
/// Items in a page when the client does not say.
pub const LIST_PAGE_DEFAULT: u32 = 50;
/// Rows and columns of a map.
pub const MAP_SIDE_MAX: u32 = 512;
/// Live streams (SSE) at a time: people who look at the page. More are told to come back.
pub const STREAMS_MAX: usize = 256;
/// Documents that one stream may follow: what one page shows.
pub const STREAM_WATCHES_MAX: usize = 8;
/// Between two looks of a live stream.
pub const STREAM_EVERY: Duration = Duration::from_secs(1);
/// A document that a stream follows, as JSON.
pub const STREAM_DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// Longest text in a filter.
pub const FILTER_CHARS_MAX: usize = 256;
