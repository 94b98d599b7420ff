//! The agent: the shell around `millstream-agent-core`.
//!
//! Purpose: fetch assigned pieces from the origin and from peers, verify, store, expose, serve. Participants: see
//! the modules; [`run`](run::run) puts them together. Non-goals: policy (in the core).

pub mod buffers;
pub mod config;
pub mod control;
pub mod counters;
mod crew;
mod driver;
mod http;
pub mod limits;
pub mod local;
mod local_api;
mod origin;
pub mod pace;
pub mod piece;
pub mod reply;
mod run;
pub mod storage;
pub mod table;
pub mod transport;
pub mod verify;

pub use config::{Config, IoMode};
pub use run::run;
