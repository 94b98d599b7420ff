//! Clusters of real processes: the built binary as coordinator and agents, a real S3 server, faults by signal.
//!
//! Participants: `harness` starts, kills and restarts; `watcher` looks at every file that becomes visible, all the
//! time; the other modules are tests. Every wait is for a condition, with a deadline; nothing asserts a time.

// Helpers of tests, outside of `#[test]` functions: a panic is the report, and logs of failed clusters are printed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod basics;
mod copies;
mod crashes;
mod faults;
mod harness;
mod metrics;
mod network;
mod seccomp;
mod spread;
mod watcher;
mod window;
