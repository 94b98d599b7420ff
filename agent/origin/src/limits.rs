//! Every limit of the origin client, with its reason.

use std::time::Duration;

/// An origin that does not accept a connection in this time is treated as failing for now.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A read that brings no byte for this long is given up: the lease goes elsewhere.
pub const READ_STALL: Duration = Duration::from_secs(20);
/// HEAD requests at once while a version is registered: hides their latency, stays far below S3's request rates.
pub const HEADS_AT_ONCE: usize = 64;
/// Idle connections kept per origin: as many as an agent has ranged reads at once, and as there are HEADs.
pub const IDLE_CONNECTIONS: usize = 64;
/// Idle connections older than this are closed: S3 and most load balancers close them soon after.
pub const IDLE_AGE_MAX: Duration = Duration::from_secs(15);
/// Read into our own buffer while the head of an answer comes; the body's first bytes in it are copied once more.
pub const HEAD_READ_BYTES: usize = 4 << 10;
/// Longest head of an answer: S3's own limit for metadata is 8 KiB.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Header lines in an answer.
pub const HEADERS_MAX: usize = 100;
/// Longest text of an error that is read for its code.
pub const ERROR_BODY_BYTES_MAX: u64 = 16 << 10;
/// Longest page of a listing: 1,000 keys of 1 KiB, escaped, with their fields.
pub const LIST_PAGE_BYTES_MAX: u64 = 8 << 20;
/// Most objects in a listing: what a manifest takes.
pub const OBJECTS_MAX: usize = millstream_types::limits::SHARDS_MAX;
/// A listing says how far it is after this many objects: one page of S3.
pub const PROGRESS_EVERY: u64 = 1000;
/// Attempts for a page of a listing or a HEAD: registration is not repeated by anyone else, so it rides out a hiccup.
/// Ranged reads are tried once: whoever holds the lease decides.
pub const ATTEMPTS: u32 = 6;
/// Pause after the first failed attempt; doubles each time.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between attempts, also when the origin asks for a longer one.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Refused keys named in one error: enough to see the pattern.
pub const BAD_KEYS_SHOWN: usize = 10;
/// An index larger than this is not an index.
pub const INDEX_BYTES_MAX: u64 = 2 << 30;
/// Ranges read at once while an index is built.
pub const INDEX_READS: usize = 8;
/// Bytes per range while an index is built.
pub const INDEX_RANGE_BYTES: u64 = 64 << 20;
/// Bytes summed at a time: they are still in the cache then.
pub const SUM_BYTES: usize = 256 << 10;
/// Bytes per blocking read of a local file.
pub const FILE_READ_BYTES: usize = 1 << 20;
/// Longest wait for instance credentials: on a machine that is no cloud instance nobody answers.
pub const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest credentials or configuration file.
pub const PROFILE_BYTES_MAX: u64 = 1 << 20;
