//! store stub
pub mod config;
pub mod limits;
pub mod store;
