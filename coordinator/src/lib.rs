//! The coordinator: catalog, nodes, and the orders that bring data onto them.
//!
//! Purpose: the shell around `millstream-coordinator-core`: sockets, disk, time.
//! Participants: `driver` owns the core and all state; `grpc` serves agents and clients; `http` serves people and
//! dashboards; `store` keeps what must survive. Goals: see each module. Non-goals: policy (the core's), piece bytes
//! (agents').

mod apart;
pub mod config;
mod copies;
mod datasets;
mod driver;
pub mod failure;
mod grpc;
mod http;
mod jobs;
pub mod limits;
mod net;
mod nodes;
mod observe;
mod register;
pub mod replay;
mod run;
mod status;
pub mod store;
mod views;

pub use config::Config;
pub use run::{Bound, run};
