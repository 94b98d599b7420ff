//! The words of Millstream as Rust types: names, piece geometry, checksums, run-length sets, manifests.
//!
//! Purpose: one vocabulary for the coordinator, the agents, the simulator and the CLI.
//! Participants: every crate of the workspace depends on this one; it depends on none of them.
//! Non-goals: no I/O, no clock, no randomness, no async (see `clippy.toml` beside this crate).

pub mod checksum;
pub mod failure;
pub mod id;
pub mod key;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod runset;
pub mod size;
pub mod time;

pub use checksum::{Crc64, PieceCombiner};
pub use failure::{Failure, FailureKind};
pub use id::{AssignmentId, DatasetId, DatasetName, DatasetRef, Digest, NodeId, StageId, Version};
pub use key::{KeyError, ShardKey};
pub use layout::{Layout, PieceNo, PieceRange, ShardNo};
pub use manifest::{DatasetKind, Manifest, OriginChecksum, ShardEntry};
pub use runset::RunSet;
pub use time::Time;
