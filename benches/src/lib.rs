//! Benchmarks: the binaries in `bin/`, and `macro/` beside this crate.

pub mod allocations;
pub mod counting;
