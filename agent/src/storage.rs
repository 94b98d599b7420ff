//! Storage on a node: partial shards with their journal, sealed shards, quota, pins, scrub.
//!
//! Participants: [`Store`] is what the rest of the agent uses; [`io`] carries bytes to the disk and back. Goals: what
//! is visible is complete and verified, a crash anywhere costs pieces and never correctness, a restart does not
//! re-read what it can trust. Non-goals: deciding what to fetch or evict.
//!
//! On disk, below the data directory: `datasets/<name>@<version>/<key>` (read-only, complete),
//! `partial/<digest>/<shard number>` and `partial/<digest>/journal`, `records/<digest>`,
//! `manifests/<digest>.arrow`, `pins`, `lock`.

mod check;
pub mod dir;
mod error;
pub mod io;
pub mod journal;
mod log;
mod manifests;
mod pins;
mod prepare;
mod quota;
pub mod records;
mod restart;
mod seal;
mod store;
mod version;

pub use error::{BadShard, DatasetError, DiscardError, EvictError, OpenError, ReadError, SealError, WriteError};
pub use pins::{Holder, Keeper, Lease};
pub use quota::{NoSpace, Usage};
pub use store::{OpenedDataset, Store, StoreConfig};
