//! The agent's decisions, without I/O.
//!
//! Purpose: which piece to ask of whom and when, what is accepted, when a shard is sealed, what the coordinator is
//! told. Participants: the shell (`millstream-agent`) and the simulator (`millstream-sim`) drive it through
//! [`event`]; `wire` is the peer protocol's codec. Non-goals: bytes, files, sockets, clocks.

mod agent;
pub mod config;
pub mod cooldown;
mod dataset;

pub mod event;
pub mod limits;
mod order;
mod ordered;
mod owners;
pub mod rails;
pub mod reasons;
pub mod wire;

pub use agent::AgentCore;
pub use config::AgentConfig;
