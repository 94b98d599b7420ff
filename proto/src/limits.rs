//! Limits of what is taken from the wire, each with its reason.

/// Most runs in one run-length set: at four pieces per run it still covers the largest version in one message of
/// 64 MiB; real inventories have a few hundred.
pub const RUNS_MAX: usize = 4 << 20;
/// Most checksums in one message: 8 MiB of them. Longer rows travel in several messages.
pub const CRCS_PER_MESSAGE_MAX: usize = 1 << 20;
/// Longest node name: Linux host names end at 64 bytes, fully qualified ones at 253.
pub const NODE_NAME_BYTES_MAX: usize = 255;
/// Most names that one host list stands for: ten times the largest clusters.
pub const HOSTLIST_NAMES_MAX: usize = 65_536;
/// Longest host list as text: room for every name written out.
pub const HOSTLIST_BYTES_MAX: usize = 4 << 20;
/// Longest `host:port`.
pub const ADDRESS_BYTES_MAX: usize = 300;
/// Most labels of a node: a handful is used.
pub const LABELS_MAX: usize = 64;
/// Longest key or value of a label.
pub const LABEL_BYTES_MAX: usize = 255;
/// Largest encoded manifest: the checksums of 2^28 pieces are 2 GiB, keys and ETags of four million shards one more.
pub const MANIFEST_BYTES_MAX: usize = 4 << 30;
/// Rows per record batch of a manifest: its keys stay far below the 2 GiB that Arrow's 32-bit offsets reach.
pub const MANIFEST_BATCH_ROWS: usize = 16_384;
/// Longest text in a manifest's metadata (URL, run): anything longer is no URL.
pub const MANIFEST_TEXT_BYTES_MAX: usize = 16 << 10;
