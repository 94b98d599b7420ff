//! The coordinator's decisions, without I/O.
//!
//! Purpose: who fetches which extent from whom, what is expected of each piece, who is with us, what failed.
//! Participants: the shell (`millstream-coordinator`) and the simulator (`millstream-sim`) drive a [`Core`] through
//! [`event`]. Goals: every origin byte read once; transfers near T*; a fault costs little; the same events give the
//! same actions. Non-goals: storage, sockets, clocks, names and URLs (the shell's).

pub mod event;
pub mod view;
