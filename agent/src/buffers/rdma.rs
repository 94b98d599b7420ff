//! What the arena promises to RDMA devices. This file is one of the walls behind which `unsafe` lives.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use millstream_rdma::{Mapping, Source, Target};

use super::{Arena, Slot};
use crate::piece::Verified;

// SAFETY: the mapping is made in `Arena::new`, readable and writable, and unmapped only when the arena is dropped.
unsafe impl Mapping for Arena {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn bytes(&self) -> usize {
        self.len
    }
}

// SAFETY: a slot is the only way to its place, which does not move; what owns the slot owns the bytes.
unsafe impl Target for Slot {
    fn address(&self) -> NonNull<u8> {
        // SAFETY: places lie within the mapping, whose addresses are not null.
        unsafe { NonNull::new_unchecked(self.inner.ptr()) }
    }

    fn capacity(&self) -> usize {
        Slot::capacity(self)
    }
}

/// A piece on its way out over RDMA.
#[derive(Debug)]
pub enum Outgoing {
    /// From the slot that it arrived in.
    Piece(Verified),
    /// From a slot that it was read into.
    Read {
        /// The slot.
        slot: Slot,
        /// Bytes of the piece.
        len: u32,
    },
}

// SAFETY: a shared slot is written by nobody while a holder is left, and an owned slot only by its owner, which this
// value is; neither moves.
unsafe impl Source for Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Outgoing::Piece(piece) => piece.bytes(),
            Outgoing::Read { slot, len } => &slot[..(*len as usize).min(slot.capacity())],
        }
    }
}
