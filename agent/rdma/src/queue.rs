//! A reliable-connected queue pair with everything in flight on it.
//!
//! The books ([`books`]) own every buffer that the NIC may touch. A buffer leaves them in two ways only: its
//! operation has completed (for a lent slot: its key has been revoked, and the device has said so), or the queue pair
//! has been destroyed, after which no device touches memory on its behalf. Should the kernel refuse to destroy it,
//! the buffers are never freed.
//!
//! One lock per queue covers posting, polling and destruction, so that no thread posts to what another destroys.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::device::Gid;
use crate::error::Fault;
use crate::limits::{LEASES_MAX, SEGMENT_BYTES, SEGMENTS_PER_LEASE_MAX};
use crate::memory::{Source, Target};
use crate::rail::locked;

mod books;
mod connection;

pub(crate) use books::Polled;
use books::{Books, Key, Loan, Post, Step, Write, Written};

/// Where a queue pair is, for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The queue pair's number.
    pub number: u32,
    /// Its first packet number, 24 bits.
    pub psn: u32,
    /// The port's address.
    pub gid: Gid,
    /// InfiniBand's local identifier; 0 on Ethernet.
    pub lid: u16,
    /// The port's packet size, as the code of `ibv_mtu`.
    pub mtu_code: u8,
    /// InfiniBand or Ethernet: the two do not reach each other.
    pub infiniband: bool,
}

/// How the lending of a slot ended.
#[derive(Debug)]
pub enum Lent<T> {
    /// The peer wrote all bytes, and can write no more.
    Filled(T),
    /// It was recalled before; the peer can write no more.
    Recalled(T),
    /// The queue pair failed and is destroyed.
    Failed(T, Fault),
    /// The kernel would not confirm that the device is done with it: the slot is never seen again.
    Kept,
}

/// A slot that is lent. Dropping this changes nothing: the slot stays in the books until it is filled, recalled or
/// the queue pair ends.
#[derive(Debug)]
pub struct Lease<T> {
    /// Comes back as the immediate value of each write.
    pub tag: u32,
    /// What the peer writes to.
    pub address: u64,
    /// What lets it.
    pub key: u32,
    bound: Option<oneshot::Receiver<()>>,
    ended: oneshot::Receiver<Lent<T>>,
}

impl<T> Lease<T> {
    /// Waits until the key works. False: the queue pair has failed, and [`ended`](Self::ended) says why.
    pub async fn ready(&mut self) -> bool {
        match self.bound.take() {
            Some(bound) => bound.await.is_ok(),
            None => true,
        }
    }

    /// Waits for the end.
    pub async fn ended(self) -> Lent<T> {
        self.ended.await.unwrap_or(Lent::Kept)
    }
}

/// See the module's documentation. Dropping it destroys the queue pair and gives every buffer back.
pub struct Queue<T: Target, S: Source> {
    books: Arc<Books<T, S>>,
    number: u32,
    psn: u32,
}

impl<T: Target, S: Source> fmt::Debug for Queue<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} on {})", self.number, self.books.shared.open.name)
    }
}

impl<T: Target, S: Source> Drop for Queue<T, S> {
    fn drop(&mut self) {
        // On the rail's thread: destroying takes system calls.
        self.books.shared.retire(self.books.clone());
    }
}

impl<T: Target, S: Source> Queue<T, S> {
    /// Lends the first `length` bytes of `target` to the peer, for writes of `segments` segments in all. It comes
    /// back through the lease, after its key has been revoked.
    ///
    /// # Errors
    /// The slot, untouched, and why: too many lent, not registered, or the queue pair is gone.
    pub fn lend(&self, target: T, length: u32, segments: u32) -> Result<Lease<T>, (T, Fault)> {
        let mut state = locked(&self.books.state);
        if let Some(fault) = state.fault {
            return Err((target, fault));
        }
        if state.loans.len() >= LEASES_MAX || segments > SEGMENTS_PER_LEASE_MAX {
            return Err((target, Fault::Busy));
        }
        if length as usize > target.capacity() || length == 0 {
            return Err((target, Fault::NotRegistered));
        }
        let address = target.address();
        let key = match self.books.new_key(&mut state, address, length) {
            Ok(key) => key,
            Err(fault) => return Err((target, fault)),
        };
        state.next = state.next.wrapping_add(1);
        let tag = state.next;
        let (ended, on_end) = oneshot::channel();
        let (bound, on_bound) = oneshot::channel();
        let (number, step, bound, on_bound) = match &key {
            Key::Window(_, number) => (*number, Step::Binding, Some(bound), Some(on_bound)),
            Key::Region(region) => (region.key(), Step::Open, None, None),
        };
        let loan = Loan { target, key, length, received: 0, receives: segments, step, bound, ended };
        state.loans.insert(tag, loan);
        let lease = Lease { tag, address: address.as_ptr() as u64, key: number, bound: on_bound, ended: on_end };
        if step == Step::Binding {
            state.posts.push_back(Post::Bind(tag));
        }
        if let Err(fault) = self.books.post_receives(&mut state, segments).and_then(|()| self.books.pump(&mut state)) {
            // The lease says so.
            self.books.fail_locked(&mut state, fault);
        }
        Ok(lease)
    }

    /// Takes a lent slot back: its key is revoked, then the lease ends. A peer that is still writing makes the queue
    /// pair fail, so ask it to stop first.
    pub fn recall(&self, tag: u32) {
        let mut state = locked(&self.books.state);
        let Some(loan) = state.loans.get_mut(&tag) else { return };
        if loan.step == Step::Open || loan.step == Step::Binding {
            self.books.revoke(&mut state, tag, false);
        }
    }

    /// Writes all of `source` to the peer, in segments, each with the immediate value `tag`; returns when the device
    /// has finished with the bytes. Dropping the future does not end the operation.
    ///
    /// # Errors
    /// The source, and the fault, after the queue pair was destroyed.
    pub async fn write(&self, source: S, address: u64, key: u32, tag: u32) -> Result<S, (Option<S>, Fault)> {
        let done = match self.start_write(source, address, key, tag) {
            Ok(done) => done,
            Err((source, fault)) => return Err((Some(source), fault)),
        };
        match done.await {
            Ok(Ok(source)) => Ok(source),
            Ok(Err((source, fault))) => Err((Some(source), fault)),
            Err(_) => Err((None, Fault::Closed)),
        }
    }

    fn start_write(
        &self,
        source: S,
        address: u64,
        key: u32,
        tag: u32,
    ) -> Result<oneshot::Receiver<Written<S>>, (S, Fault)> {
        let mut state = locked(&self.books.state);
        if let Some(fault) = state.fault {
            return Err((source, fault));
        }
        let length = source.bytes().len();
        let region =
            NonNull::new(source.bytes().as_ptr().cast_mut()).and_then(|at| self.books.shared.region(at, length));
        let (Some(region), Ok(length), true) = (region, u32::try_from(length), length > 0) else {
            return Err((source, Fault::NotRegistered));
        };
        // SAFETY: registrations live as long as the rail.
        let lkey = unsafe { region.as_ref().lkey };
        state.next = state.next.wrapping_add(1);
        let id = state.next;
        let (done, on_done) = oneshot::channel();
        let left = length.div_ceil(SEGMENT_BYTES);
        state.writes.insert(id, Write { source, lkey, address, key, tag, left, done });
        for offset in (0..length).step_by(SEGMENT_BYTES as usize) {
            let length = SEGMENT_BYTES.min(length - offset);
            state.posts.push_back(Post::Segment { write: id, offset, length });
        }
        if let Err(fault) = self.books.pump(&mut state) {
            self.books.fail_locked(&mut state, fault);
        }
        Ok(on_done)
    }

    /// Can these bytes be written from where they are?
    pub fn is_registered(&self, bytes: &[u8]) -> bool {
        let at = NonNull::new(bytes.as_ptr().cast_mut());
        at.is_some_and(|at| self.books.shared.region(at, bytes.len()).is_some())
    }

    /// Waits until the queue pair is gone, and says why.
    pub async fn broken(&self) -> Fault {
        let mut broken = self.books.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(fault) => fault.unwrap_or(Fault::Closed),
            Err(_) => Fault::Closed,
        }
    }

    /// The device that it is on.
    pub fn device(&self) -> &str {
        &self.books.shared.open.name
    }

    /// Why it is gone, if it is.
    pub fn fault(&self) -> Option<Fault> {
        *self.books.broken.borrow()
    }

    /// Destroys the queue pair; everything in flight ends with `fault`.
    pub fn close(&self, fault: Fault) {
        self.books.fail(fault);
    }
}
