//! What the arena promises to RDMA devices. This file is one of the walls behind which `unsafe` lives.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use millstream_rdma::{Mapping, Source, Target};
use rustix::mm::{Advice, madvise};

use super::{Arena, Slot};
use crate::limits::{CHUNK_BYTES, POPULATE_THREADS_MAX};
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

impl Arena {
    /// Has the kernel bring all of it into memory, with several threads: zeroing the pages takes far longer than
    /// registering them, which would do it with one.
    pub fn populate(&self) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(POPULATE_THREADS_MAX);
        let share = self.len.div_ceil(threads).next_multiple_of(CHUNK_BYTES);
        std::thread::scope(|scope| {
            for start in (0..self.len).step_by(share) {
                let len = share.min(self.len - start);
                scope.spawn(move || self.populate_part(start, len));
            }
        });
    }

    fn populate_part(&self, start: usize, len: usize) {
        // SAFETY: within our own mapping; the pages' contents do not change. An older kernel refuses, and registering
        // then does it.
        let _ = unsafe { madvise(self.base.as_ptr().add(start).cast(), len, Advice::LinuxPopulateWrite) };
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
