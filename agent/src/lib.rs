//! The agent: the shell around `millstream-agent-core`.

pub mod buffers;
pub mod limits;
pub mod piece;
pub mod storage;
pub mod transport;
