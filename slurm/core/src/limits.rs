//! Limits of what users may write.

/// Bytes of a comment or of all `--stage` together: Slurm itself takes no longer comment.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Versions that one job may ask for.
pub const WANTS_MAX: usize = 16;
/// The highest priority; the coordinator's own limit.
pub const PRIORITY_MAX: u32 = 1_000;
/// The longest time that a job may ask to wait: longer than any site's budget.
pub const TIMEOUT_S_MAX: u64 = 7 * 86_400;
