//! Storage on a node: partial shards with their journal, sealed shards, quota, pins, scrub.

pub mod dir;
pub mod io;
