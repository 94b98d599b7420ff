//! Limits of the test server, each with its reason.

use std::time::Duration;

/// How long bytes before an ordered cut get to leave.
pub const FLUSH_BEFORE_CUT: Duration = Duration::from_millis(20);
/// Bytes per frame: small enough to stay in the L2 cache between being read and being sent.
pub const FRAME_BYTES: usize = 256 << 10;
/// Bytes per frame while a rate limit holds: waits stay short and the curve smooth.
pub const PACED_FRAME_BYTES: usize = 16 << 10;
/// Frame buffers kept for reuse: more than requests that are answered at once on a busy machine.
pub const FRAME_POOL_MAX: usize = 256;
/// Keys per page of a listing: S3's own limit.
pub const LIST_PAGE_MAX: usize = 1000;
/// Files up to this size get a real MD5 ETag, larger ones a multipart-like one: hashing a data set at start would
/// take longer than the test, and uploads of that size come in parts to S3 as well.
pub const MD5_ETAG_FILE_BYTES_MAX: u64 = 8 << 20;
/// Part size that multipart-like ETags of files claim: that of the common clients.
pub const CLAIMED_PART_BYTES: u64 = 8 << 20;
/// Largest body of a control request: a list of faults, a small object.
pub const CONTROL_BODY_BYTES_MAX: usize = 16 << 20;
/// Largest object that may be uploaded to a bucket in memory.
pub const UPLOAD_BYTES_MAX: usize = 2 << 30;
/// Faults that wait at the same time: a test has a handful; a script gone wild is refused.
pub const FAULTS_MAX: usize = 10_000;
