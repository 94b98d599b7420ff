//! The verbs wall: everything that talks to RDMA hardware, and all `unsafe` that it takes, behind a safe interface.
//!
//! Participants: [`discover`] lists devices, ports and GIDs; a [`Rail`] is one open port with its protection domain,
//! registered memory and the thread that drives completions; a [`Queue`] is one reliable-connected queue pair with
//! everything in flight on it. A receiver [lends](Queue::lend) a slot to the peer of one queue under a key of its
//! own, the peer [writes](Queue::write) into it, and the slot comes back only after its key has been revoked.
//!
//! Goals: the operation in flight owns its buffer, never the future that waits for it; a buffer comes back after the
//! NIC has confirmed that it is done with it, or after the queue pair was destroyed; a key opens one slot, to one
//! queue pair, for one transfer. One binary runs everywhere: libibverbs is loaded when first asked for, and its
//! absence is an error value. Non-goals: choosing peers or carriers, retries, anything but one-sided writes.
//!
//! Numbers that come from C are compared, never turned into Rust enums unseen.
#![allow(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]

mod completion;
mod device;
mod error;
mod library;
mod limits;
mod memory;
mod network;
mod queue;
mod rail;
mod window;

pub use device::{Device, Gid, GidEntry, GidKind, Link, Port, PortState, discover};
pub use error::{Fault, RdmaError};
pub use limits::*;
pub use memory::{Mapping, Source, Target};
pub use queue::{Address, Lease, Lent, Queue};
pub use rail::{KeyKind, Rail, RailOptions, RailState, Traffic};
