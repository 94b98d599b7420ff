//! Limits of the vocabulary itself, each with its reason.

/// Smallest piece: below this, per-piece work (a frame, a journal entry) costs more than the bytes.
pub const PIECE_BYTES_MIN: u64 = 64 * 1024;
/// Largest and default piece: one buffer slot, one checksum, one unit of forwarding.
pub const PIECE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A dataset is cut into about this many pieces before pieces reach [`PIECE_BYTES_MAX`], so that the pipeline
/// through the nodes fills in about N/1024 of the transfer.
pub const PIECES_WANTED: u64 = 1024;
/// Longest file name component that Linux file systems take.
pub const KEY_COMPONENT_BYTES_MAX: usize = 255;
/// Longest shard key: S3's own limit.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest dataset name or version: both become part of one directory name.
pub const NAME_BYTES_MAX: usize = 100;
/// Most shards in one version: bounds manifests to a few hundred MiB.
pub const SHARDS_MAX: usize = 4_000_000;
/// Most pieces in one version (1 PiB at 4 MiB): piece numbers are `u32` and checksum tables stay below 2 GiB.
pub const PIECES_MAX: u64 = 1 << 28;
