//! What memory must promise before a NIC may touch it.
//!
//! The promises are those of `unsafe trait`s, kept where the memory lives (the agent's arena). Memory without them
//! cannot be lent or written from:
//!
//! ```compile_fail
//! fn needs_target<T: millstream_rdma::Target>(_: T) {}
//! needs_target(vec![0u8; 4096]); // a Vec may be reallocated under the NIC
//! ```
//!
//! ```compile_fail
//! fn needs_source<S: millstream_rdma::Source>(_: S) {}
//! let bytes = [0u8; 16];
//! needs_source(&bytes[..]); // a borrow may end before the NIC is done
//! ```

use std::ptr::NonNull;

/// A mapping that is registered as a whole.
///
/// # Safety
/// `base..base + len` is mapped, readable and writable for as long as the value lives, and does not move.
pub unsafe trait Mapping: Send + Sync + 'static {
    /// First address.
    fn base(&self) -> NonNull<u8>;
    /// Bytes.
    fn bytes(&self) -> usize;
}

/// A slot that a peer may write to.
///
/// # Safety
/// The bytes stay where they are for as long as the value lives, however it is moved, and nobody else reads or
/// writes them in that time.
pub unsafe trait Target: Send + 'static {
    /// First byte.
    fn address(&self) -> NonNull<u8>;
    /// Bytes.
    fn capacity(&self) -> usize;
}

/// Bytes that are written to a peer.
///
/// # Safety
/// The bytes stay where they are for as long as the value lives, however it is moved, and nobody writes to them in
/// that time.
pub unsafe trait Source: Send + 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}
