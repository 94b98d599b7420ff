//! The arena: one mapping, cut into aligned slots, that every piece passes through on its way in.
//!
//! A slot is owned by whoever holds it: the network fills it, the checksum reads it, the disk writes from it, peers
//! are served from it; nothing is copied in between. RDMA registers the same arena once.
//!
//! Participants: receivers ask for a [`Slot`]; [`crate::piece::Verified`] shares it as a [`SharedSlot`]; the last
//! holder gives it back by dropping it. Goals: one stable address range, 4096-aligned slots, bounded memory, first
//! come first served, no allocation per slot. Non-goals: growing; slots over one chunk; giving memory back.
//!
//! This file is one of the walls behind which `unsafe` lives: it turns places in the mapping into slices.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use tokio::sync::Notify;

use crate::limits::{ARENA_BYTES_MAX, CHUNK_BYTES, SLOT_BYTES_MIN};

/// log2 of the smallest slot.
const CLASS_MIN: u32 = SLOT_BYTES_MIN.trailing_zeros();
/// Slot sizes: 64 KiB, 128 KiB, … up to a chunk.
const CLASSES: usize = (CHUNK_BYTES.trailing_zeros() - CLASS_MIN + 1) as usize;
/// Smallest slots in a chunk: one bit each in [`Chunk::free`].
const UNITS: usize = CHUNK_BYTES / SLOT_BYTES_MIN;
const _: () = assert!(UNITS <= 64, "the slots of a chunk are bits of a u64");

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Over [`ARENA_BYTES_MAX`].
    #[error("{bytes} bytes of buffers asked for, and {ARENA_BYTES_MAX} are the most")]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The kernel refused the mapping.
    #[error("cannot map {bytes} bytes of buffers")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A chunk and the equal slots it is cut into at the moment.
#[derive(Clone, Copy)]
struct Chunk {
    /// Bit i: slot i is free.
    free: u64,
    /// Where it stands in `State::partial[class]`, if any slot of it is free.
    at: Option<u32>,
}

struct State {
    chunks: Vec<Chunk>,
    /// Chunks that are not cut.
    whole: Vec<u32>,
    /// By slot size: chunks that are cut and have free slots.
    partial: [Vec<u32>; CLASSES],
    free_bytes: u64,
    /// Callers of [`Arena::slot`] that wait. While there are any, [`Arena::try_slot`] does not overtake them.
    waiting: u32,
}

/// Where a slot lies.
#[derive(Clone, Copy)]
struct Place {
    chunk: u32,
    index: u8,
    class: u8,
}

impl Place {
    fn capacity(self) -> usize {
        SLOT_BYTES_MIN << self.class
    }

    fn offset(self) -> usize {
        self.chunk as usize * CHUNK_BYTES + self.index as usize * self.capacity()
    }

    /// The number of the smallest slot that begins where this one does.
    fn unit(self) -> usize {
        self.offset() / SLOT_BYTES_MIN
    }
}

fn all_free(class: usize) -> u64 {
    u64::MAX >> (64 - (UNITS >> class))
}

impl State {
    fn take(&mut self, class: usize) -> Option<Place> {
        if self.partial[class].is_empty() {
            let chunk = self.whole.pop()?;
            self.chunks[chunk as usize] = Chunk { free: all_free(class), at: None };
            self.list(chunk, class);
        }
        let chunk = *self.partial[class].last()?;
        let c = &mut self.chunks[chunk as usize];
        let index = c.free.trailing_zeros() as u8;
        c.free &= c.free - 1;
        if c.free == 0 {
            self.unlist(chunk, class);
        }
        let place = Place { chunk, index, class: class as u8 };
        self.free_bytes -= place.capacity() as u64;
        Some(place)
    }

    fn give(&mut self, place: Place) {
        let class = place.class as usize;
        let c = &mut self.chunks[place.chunk as usize];
        debug_assert_eq!(c.free & (1 << place.index), 0, "a slot was given back twice");
        c.free |= 1 << place.index;
        let (whole, listed) = (c.free == all_free(class), c.at.is_some());
        if whole && listed {
            self.unlist(place.chunk, class);
        }
        if whole {
            self.whole.push(place.chunk);
        } else if !listed {
            self.list(place.chunk, class);
        }
        self.free_bytes += place.capacity() as u64;
    }

    fn list(&mut self, chunk: u32, class: usize) {
        self.chunks[chunk as usize].at = Some(self.partial[class].len() as u32);
        self.partial[class].push(chunk);
    }

    fn unlist(&mut self, chunk: u32, class: usize) {
        if let Some(at) = self.chunks[chunk as usize].at.take() {
            self.partial[class].swap_remove(at as usize);
            if let Some(&moved) = self.partial[class].get(at as usize) {
                self.chunks[moved as usize].at = Some(at);
            }
        }
    }
}

/// See the module's documentation.
pub struct Arena {
    mapping: NonNull<u8>,
    mapping_len: usize,
    base: NonNull<u8>,
    len: usize,
    state: Mutex<State>,
    /// Holders of a shared slot, by its first unit.
    refs: Box<[AtomicU32]>,
    /// Held by the first in the queue; tokio's mutex is first come, first served.
    turn: tokio::sync::Mutex<()>,
    freed: Notify,
}

// SAFETY: the mapping lives as long as the arena and is not tied to a thread. `Arena` itself never reads or writes
// it; slots do, and no two slots overlap (`State` hands each place out once until it is given back).
unsafe impl Send for Arena {}
// SAFETY: as above; all other fields are `Sync`.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `bytes`, rounded up to whole chunks (at least one). Memory is taken from the system when first touched.
    ///
    /// # Errors
    /// [`ArenaError`]: too much, or the kernel refuses.
    pub fn new(bytes: u64) -> Result<Arc<Arena>, ArenaError> {
        if bytes > ARENA_BYTES_MAX {
            return Err(ArenaError::TooLarge { bytes });
        }
        let chunks = (bytes as usize).div_ceil(CHUNK_BYTES).max(1);
        let len = chunks * CHUNK_BYTES;
        // One chunk more, so that the base can be a multiple of the chunk: huge pages then fit.
        let mapping_len = len + CHUNK_BYTES;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapping_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|e| ArenaError::Map { bytes, source: e.into() })?
        .cast::<u8>();
        let skip = mapping.align_offset(CHUNK_BYTES);
        // SAFETY: `skip` is below one chunk, and the mapping has one chunk more than `len`.
        let base = unsafe { mapping.add(skip) };
        // SAFETY: advice about our own mapping; it changes no contents. Refusal does not matter.
        let _ = unsafe { madvise(base.cast(), len, Advice::LinuxHugepage) };
        let (Some(mapping), Some(base)) = (NonNull::new(mapping), NonNull::new(base)) else {
            return Err(ArenaError::Map { bytes, source: std::io::ErrorKind::OutOfMemory.into() });
        };
        let state = State {
            chunks: vec![Chunk { free: 0, at: None }; chunks],
            // Popped from the end: low addresses first, so that a quiet agent touches few pages.
            whole: (0..chunks as u32).rev().collect(),
            partial: std::array::from_fn(|_| Vec::with_capacity(chunks)),
            free_bytes: len as u64,
            waiting: 0,
        };
        let mut refs = Vec::new();
        refs.resize_with(chunks * UNITS, AtomicU32::default);
        Ok(Arc::new(Arena {
            mapping,
            mapping_len,
            base,
            len,
            state: Mutex::new(state),
            refs: refs.into_boxed_slice(),
            turn: tokio::sync::Mutex::new(()),
            freed: Notify::new(),
        }))
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot_at(self: &Arc<Self>, place: Place, len: usize) -> Slot {
        Slot { inner: Raw { arena: self.clone(), place }, len }
    }

    /// A slot of at least `len` bytes; waits, first come first served, until one is free. Safe to cancel.
    ///
    /// Panics when `len` is over a chunk (4 MiB): pieces are never longer, and lengths from outside are checked
    /// before. Hold no slot while waiting for another one unless the first goes back regardless.
    pub async fn slot(self: &Arc<Self>, len: usize) -> Slot {
        let class = class_of(len).expect("pieces are at most one chunk long");
        if let Some(slot) = self.try_slot(len) {
            return slot;
        }
        let _waiting = Waiting::new(self);
        let _turn = self.turn.lock().await;
        loop {
            let place = self.locked().take(class);
            if let Some(place) = place {
                return self.slot_at(place, len);
            }
            // A slot given back between the try and here has left its permit in the `Notify`.
            self.freed.notified().await;
        }
    }

    /// A slot of at least `len` bytes, if one is free, nobody waits for one, and `len` is at most a chunk.
    pub fn try_slot(self: &Arc<Self>, len: usize) -> Option<Slot> {
        let class = class_of(len)?;
        let mut state = self.locked();
        if state.waiting > 0 {
            return None;
        }
        let place = state.take(class)?;
        drop(state);
        Some(self.slot_at(place, len))
    }

    /// Bytes that are in no slot. Not all of them need be usable for the largest slots at once.
    pub fn free_bytes(&self) -> u64 {
        self.locked().free_bytes
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.len as u64
    }

    /// First address; stays as long as the arena lives. With [`bytes`](Self::bytes) the region to register.
    pub fn base(&self) -> *const u8 {
        self.base.as_ptr()
    }
}

/// The size class of a slot for `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let capacity = len.max(SLOT_BYTES_MIN).checked_next_power_of_two()?;
    (capacity <= CHUNK_BYTES).then(|| (capacity.trailing_zeros() - CLASS_MIN) as usize)
}

/// Counts a caller that waits, also when it is cancelled.
struct Waiting<'a>(&'a Arena);

impl<'a> Waiting<'a> {
    fn new(arena: &'a Arena) -> Self {
        arena.locked().waiting += 1;
        Waiting(arena)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.locked().waiting -= 1;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slot is left: each holds the arena.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_len) };
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} bytes free)", self.free_bytes(), self.len)
    }
}

/// One place that is handed out. Gives nothing back by itself: its owners do.
struct Raw {
    arena: Arc<Arena>,
    place: Place,
}

impl Raw {
    fn ptr(&self) -> *mut u8 {
        // SAFETY: places lie within the mapping.
        unsafe { self.arena.base.as_ptr().add(self.place.offset()) }
    }

    fn refs(&self) -> &AtomicU32 {
        &self.arena.refs[self.place.unit()]
    }

    fn give_back(&self) {
        self.arena.locked().give(self.place);
        self.arena.freed.notify_one();
    }
}

/// A piece of the arena, owned. Derefs to all its bytes ([`capacity`](Self::capacity) of them, left as the last
/// holder had them); goes back when dropped.
pub struct Slot {
    inner: Raw,
    len: usize,
}

// `Slot` is `Send` and `Sync` by its fields; it is the only way to its place.
const _: () = {
    const fn send_sync<T: Send + Sync>() {}
    send_sync::<Slot>();
    send_sync::<SharedSlot>();
};

impl Slot {
    /// Bytes that were asked for.
    #[allow(clippy::len_without_is_empty)] // a length asked for, not contents
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes there are: a power of two, at least 64 KiB.
    pub fn capacity(&self) -> usize {
        self.inner.place.capacity()
    }

    /// The arena it is part of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.inner.arena
    }

    /// Makes it readable by many. It goes back when the last of them is dropped.
    pub fn share(self) -> SharedSlot {
        self.inner.refs().store(1, Ordering::Relaxed);
        let slot = std::mem::ManuallyDrop::new(self);
        // SAFETY: `slot` is never dropped or used again, so its `Raw` is moved, not copied.
        let inner = unsafe { std::ptr::read(&slot.inner) };
        SharedSlot { inner }
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the place is within the mapping, initialised (anonymous memory is zeroed), and only ours.
        unsafe { std::slice::from_raw_parts(self.inner.ptr(), self.capacity()) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.inner.ptr(), self.capacity()) }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.give_back();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} of {} bytes)", self.len, self.capacity())
    }
}

/// A slot that nobody writes to any more, readable by many. Cloning counts, and allocates nothing.
pub struct SharedSlot {
    inner: Raw,
}

impl SharedSlot {
    /// The slot again, if this is the only holder; else itself.
    pub fn unshare(self) -> Result<Slot, SharedSlot> {
        if self.inner.refs().load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let shared = std::mem::ManuallyDrop::new(self);
        // SAFETY: `shared` is never dropped or used again, so its `Raw` is moved, not copied.
        let inner = unsafe { std::ptr::read(&shared.inner) };
        let len = inner.place.capacity();
        Ok(Slot { inner, len })
    }
}

impl Clone for SharedSlot {
    fn clone(&self) -> SharedSlot {
        self.inner.refs().fetch_add(1, Ordering::Relaxed);
        SharedSlot { inner: Raw { arena: self.inner.arena.clone(), place: self.inner.place } }
    }
}

impl Deref for SharedSlot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Slot`; nobody has it for writing until the last holder is gone.
        unsafe { std::slice::from_raw_parts(self.inner.ptr(), self.inner.place.capacity()) }
    }
}

impl Drop for SharedSlot {
    fn drop(&mut self) {
        if self.inner.refs().fetch_sub(1, Ordering::Release) == 1 {
            // Reads of all other holders happened before the next holder writes.
            fence(Ordering::Acquire);
            self.inner.give_back();
        }
    }
}

impl fmt::Debug for SharedSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSlot({} bytes)", self.inner.place.capacity())
    }
}

#[cfg(feature = "rdma")]
pub mod rdma;

#[cfg(test)]
mod tests;
