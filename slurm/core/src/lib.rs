//! What Slurm's hooks decide, without I/O: what a job asks for, and what follows from what went wrong.
//!
//! Participants: `want` parses what users write, `hook` reads a hook's environment, `policy` turns failures into
//! what happens to the job and its nodes, `ahead` says where to bring data before nodes are allocated. Goals: every
//! text of a user is parsed or refused, never evaluated. Non-goals: talking to anyone (the command line's).

pub mod ahead;
pub mod hook;
pub mod limits;
pub mod policy;
pub mod want;

pub use hook::Hook;
pub use want::{Want, WantError, What};
