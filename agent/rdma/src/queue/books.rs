//! What is in flight on a queue pair: who owns which buffer until when.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex};

use rdma_sys::{
    ibv_cq, ibv_mr, ibv_qp, ibv_qp_attr_mask, ibv_qp_state, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc,
    ibv_wc_opcode, ibv_wr_opcode,
};
use tokio::sync::{oneshot, watch};

use super::Lent;
use super::connection::empty_attributes;
use crate::error::Fault;
use crate::limits::COMPLETIONS_PER_TURN;
use crate::memory::{Source, Target};
use crate::rail::{Handle, KeyKind, Shared, locked};
use crate::window::{Region, Window, revoke_request};

/// What the completion thread sees of a queue, whatever its buffers are.
pub(crate) trait Polled: Send + Sync {
    /// Takes completions; how many.
    fn poll(&self) -> usize;
    /// Asks for an event at the next completion. False when there is nothing to ask any more.
    fn arm(&self) -> bool;
    /// Destroys the queue pair and gives everything back.
    fn fail(&self, fault: Fault);
}

/// What is being done with a lent slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Binding,
    Open,
    /// Being revoked; the flag says whether all bytes have come.
    Revoking {
        filled: bool,
    },
}

pub(super) enum Key {
    Window(Window, u32),
    Region(Region),
}

pub(super) struct Loan<T> {
    pub(super) target: T,
    pub(super) key: Key,
    pub(super) length: u32,
    pub(super) received: u32,
    /// Receives posted for it that no write has used.
    pub(super) receives: u32,
    pub(super) step: Step,
    pub(super) bound: Option<oneshot::Sender<()>>,
    pub(super) ended: oneshot::Sender<Lent<T>>,
}

pub(super) type Written<S> = Result<S, (S, Fault)>;

pub(super) struct Write<S> {
    pub(super) source: S,
    pub(super) lkey: u32,
    pub(super) address: u64,
    pub(super) key: u32,
    pub(super) tag: u32,
    /// Segments that are not completed.
    pub(super) left: u32,
    pub(super) done: oneshot::Sender<Written<S>>,
}

/// A work request that waits for its turn or is posted.
#[derive(Clone, Copy)]
pub(super) enum Post {
    Bind(u32),
    Revoke(u32),
    Segment { write: u32, offset: u32, length: u32 },
}

const ID_BIND: u64 = 1 << 56;
const ID_REVOKE: u64 = 2 << 56;
const ID_SEGMENT: u64 = 3 << 56;
const ID_RECEIVE: u64 = 4 << 56;
const ID_KIND: u64 = 0xff << 56;

pub(super) struct State<T, S> {
    pub(super) qp: *mut ibv_qp,
    pub(super) cq: *mut ibv_cq,
    /// Set once: the queue pair is gone.
    pub(super) fault: Option<Fault>,
    pub(super) next: u32,
    /// Work requests that may still be posted.
    pub(super) credits: usize,
    pub(super) posts: VecDeque<Post>,
    pub(super) loans: HashMap<u32, Loan<T>>,
    pub(super) writes: HashMap<u32, Write<S>>,
    /// Windows that are not bound.
    pub(super) windows: Vec<Window>,
    /// Receives posted for loans that ended without using them.
    pub(super) spare_receives: u32,
}

pub(crate) struct Books<T, S> {
    pub(super) shared: Arc<Shared>,
    // Keeps the completion thread going.
    pub(super) _rail: Arc<Handle>,
    pub(super) state: Mutex<State<T, S>>,
    pub(super) broken: watch::Sender<Option<Fault>>,
}

// SAFETY: the pointers are used under the lock of `state`, and libibverbs allows any thread.
unsafe impl<T: Send, S: Send> Send for Books<T, S> {}
// SAFETY: as above.
unsafe impl<T: Send, S: Send> Sync for Books<T, S> {}

impl<T: Target, S: Source> Books<T, S> {
    pub(super) fn new_key(&self, state: &mut State<T, S>, address: NonNull<u8>, length: u32) -> Result<Key, Fault> {
        if self.shared.keys == KeyKind::Region {
            // SAFETY: the loan owns the target until the region has ended.
            let region = unsafe { Region::new(self.shared.open.library, self.shared.pd, address, length as usize) }?;
            return Ok(Key::Region(region));
        }
        let Some(_) = self.shared.region(address, length as usize) else { return Err(Fault::NotRegistered) };
        // SAFETY: the protection domain lives as long as `shared`.
        let window = state.windows.pop().or_else(|| unsafe { Window::new(self.shared.pd) }).ok_or(Fault::Busy)?;
        let key = window.next_key();
        Ok(Key::Window(window, key))
    }

    pub(super) fn post_receives(&self, state: &mut State<T, S>, wanted: u32) -> Result<(), Fault> {
        let spare = state.spare_receives.min(wanted);
        state.spare_receives -= spare;
        for _ in spare..wanted {
            // The bytes of a write with immediate go to the slot; the receive has no buffer of its own.
            let mut request =
                ibv_recv_wr { wr_id: ID_RECEIVE, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge: 0 };
            let mut bad = ptr::null_mut();
            // SAFETY: the queue pair is alive (no fault, under the lock); the request is copied by the call.
            let rc = unsafe { rdma_sys::ibv_post_recv(state.qp, &raw mut request, &raw mut bad) };
            if rc != 0 {
                return Err(Fault::Post(rc));
            }
        }
        Ok(())
    }

    /// Posts what waits, as far as there is room.
    pub(super) fn pump(&self, state: &mut State<T, S>) -> Result<(), Fault> {
        while state.credits > 0
            && let Some(post) = state.posts.pop_front()
        {
            self.post(state, post)?;
        }
        Ok(())
    }

    fn post(&self, state: &mut State<T, S>, post: Post) -> Result<(), Fault> {
        // SAFETY: all zeros is a value of this struct of numbers, pointers and unions of them.
        let mut request: ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut sge = ibv_sge { addr: 0, length: 0, lkey: 0 };
        request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        match post {
            Post::Bind(tag) => {
                let Some(Loan { target, key: Key::Window(window, key), length, .. }) = state.loans.get(&tag) else {
                    return Ok(());
                };
                let mr: *mut ibv_mr =
                    self.shared.region(target.address(), *length as usize).map_or(ptr::null_mut(), NonNull::as_ptr);
                window.bind_request(&mut request, mr, target.address().as_ptr() as u64, *length, *key);
                request.wr_id = ID_BIND | u64::from(tag);
            }
            Post::Revoke(tag) => {
                let Some(Loan { key: Key::Window(_, key), .. }) = state.loans.get(&tag) else { return Ok(()) };
                revoke_request(&mut request, *key);
                request.wr_id = ID_REVOKE | u64::from(tag);
            }
            Post::Segment { write, offset, length } => {
                let Some(w) = state.writes.get(&write) else { return Ok(()) };
                sge.addr = w.source.bytes()[offset as usize..].as_ptr() as u64;
                (sge.length, sge.lkey) = (length, w.lkey);
                request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                request.imm_data_invalidated_rkey_union.imm_data = w.tag.to_be();
                request.wr.rdma = rdma_sys::rdma_t { remote_addr: w.address + u64::from(offset), rkey: w.key };
                (request.sg_list, request.num_sge) = (&raw mut sge, 1);
                request.wr_id = ID_SEGMENT | u64::from(write);
            }
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive (no fault, under the lock); request and element are copied by the call;
        // the buffer that the element names is in the books until this completes or the queue pair is destroyed.
        let rc = unsafe { rdma_sys::ibv_post_send(state.qp, &raw mut request, &raw mut bad) };
        if rc != 0 {
            return Err(Fault::Post(rc));
        }
        state.credits -= 1;
        Ok(())
    }

    /// Begins the end of a loan.
    pub(super) fn revoke(&self, state: &mut State<T, S>, tag: u32, filled: bool) {
        let Some(loan) = state.loans.get_mut(&tag) else { return };
        loan.step = Step::Revoking { filled };
        if matches!(loan.key, Key::Region(_)) {
            self.end_loan(state, tag);
            return;
        }
        state.posts.push_back(Post::Revoke(tag));
        if let Err(fault) = self.pump(state) {
            self.fail_locked(state, fault);
        }
    }

    /// The key opens nothing any more: the slot goes to whoever waits for it.
    fn end_loan(&self, state: &mut State<T, S>, tag: u32) {
        let Some(loan) = state.loans.remove(&tag) else { return };
        state.spare_receives += loan.receives;
        match loan.key {
            Key::Window(window, _) => state.windows.push(window),
            Key::Region(region) => {
                if !region.end(self.shared.open.library) {
                    // The kernel would not end it, so the peer could still write.
                    tracing::error!("a slot stays registered; it is never used again");
                    std::mem::forget(loan.target);
                    return;
                }
            }
        }
        let filled = matches!(loan.step, Step::Revoking { filled: true });
        let _ = loan.ended.send(if filled { Lent::Filled(loan.target) } else { Lent::Recalled(loan.target) });
    }

    fn completed(&self, state: &mut State<T, S>, completion: &ibv_wc) -> Result<(), Fault> {
        let id = completion.wr_id as u32;
        if let Some(fault) = Fault::from_status(completion.status) {
            return Err(fault);
        }
        match completion.wr_id & ID_KIND {
            ID_RECEIVE => return self.arrived(state, completion),
            ID_BIND => {
                if let Some(loan) = state.loans.get_mut(&id) {
                    if let Key::Window(window, key) = &mut loan.key {
                        window.bound(*key);
                    }
                    if loan.step == Step::Binding {
                        loan.step = Step::Open;
                    }
                    if let Some(bound) = loan.bound.take() {
                        let _ = bound.send(());
                    }
                }
            }
            ID_REVOKE => {
                self.end_loan(state, id);
            }
            ID_SEGMENT => {
                if let Some(write) = state.writes.get_mut(&id) {
                    write.left = write.left.checked_sub(1).ok_or(Fault::Protocol)?;
                    self.shared.count_success(0, 0);
                    if write.left == 0
                        && let Some(write) = state.writes.remove(&id)
                    {
                        self.shared.count_success(0, write.source.bytes().len() as u64);
                        let _ = write.done.send(Ok(write.source));
                    }
                }
            }
            _ => return Err(Fault::Protocol),
        }
        state.credits += 1;
        Ok(())
    }

    /// A segment has come.
    fn arrived(&self, state: &mut State<T, S>, completion: &ibv_wc) -> Result<(), Fault> {
        if completion.opcode != ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM {
            return Err(Fault::Protocol);
        }
        // SAFETY: this opcode has an immediate value; either member of the union is four plain bytes.
        let tag = u32::from_be(unsafe { completion.imm_data_invalidated_rkey_union.imm_data });
        let loan = state.loans.get_mut(&tag).ok_or(Fault::Protocol)?;
        loan.receives = loan.receives.checked_sub(1).ok_or(Fault::Protocol)?;
        match loan.step {
            // Nobody knows the key yet.
            Step::Binding => return Err(Fault::Protocol),
            // Recalled while the peer was writing; these bytes came before the key was revoked.
            Step::Revoking { .. } => return Ok(()),
            Step::Open => {}
        }
        let received = loan.received.checked_add(completion.byte_len).filter(|n| *n <= loan.length);
        loan.received = received.ok_or(Fault::Protocol)?;
        self.shared.count_success(u64::from(completion.byte_len), 0);
        if loan.received == loan.length {
            self.revoke(state, tag, true);
        } else if loan.receives == 0 {
            return Err(Fault::Protocol);
        }
        Ok(())
    }

    /// Destroys the queue pair, then gives everything back.
    pub(super) fn fail_locked(&self, state: &mut State<T, S>, fault: Fault) {
        if state.fault.is_some() {
            return;
        }
        state.fault = Some(fault);
        if !matches!(fault, Fault::Closed | Fault::Protocol | Fault::RemoteAccess) {
            self.shared.count_fault();
        }
        let library = self.shared.open.library;
        let mut attributes = empty_attributes(ibv_qp_state::IBV_QPS_ERR);
        // SAFETY: the queue pair is alive. Refusal does not matter: it is destroyed next.
        unsafe { (library.modify_qp)(state.qp, &raw mut attributes, ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int) };
        // Windows hold the queue pair that they are bound to, so they go first; their keys go with them.
        state.windows.drain(..).for_each(Window::free);
        let mut loans = Vec::with_capacity(state.loans.len());
        let mut confirmed = true;
        for (_, loan) in state.loans.drain() {
            match loan.key {
                Key::Window(window, _) => window.free(),
                Key::Region(region) => confirmed &= region.end(library),
            }
            loans.push((loan.target, loan.ended));
        }
        let writes: Vec<_> = state.writes.drain().map(|(_, w)| (w.source, w.done)).collect();
        // SAFETY: alive until here; from now on nobody uses them, because `fault` is set.
        let rc = unsafe { (library.destroy_qp)(state.qp) };
        // EIO: the device was removed, and the kernel has destroyed its queue pairs before it says so.
        confirmed &= rc == 0 || rc == libc::EIO;
        // SAFETY: as above; its events were acknowledged by the thread that got them.
        let rc = unsafe { (library.destroy_cq)(state.cq) };
        if rc != 0 {
            tracing::debug!(rc, "destroying a completion queue failed");
        }
        locked(&self.shared.queues).remove(&(state.cq as usize));
        if confirmed {
            for (target, ended) in loans {
                let _ = ended.send(Lent::Failed(target, fault));
            }
            for (source, done) in writes {
                let _ = done.send(Err((source, fault)));
            }
        } else {
            tracing::error!(rc, "a queue pair could not be destroyed; its buffers are never used again");
            std::mem::forget(loans);
            std::mem::forget(writes);
        }
        self.broken.send_replace(Some(fault));
    }
}

impl<T: Target, S: Source> Polled for Books<T, S> {
    fn poll(&self) -> usize {
        let mut state = locked(&self.state);
        if state.fault.is_some() {
            return 0;
        }
        let mut completions: [MaybeUninit<ibv_wc>; COMPLETIONS_PER_TURN] = [const { MaybeUninit::uninit() }; _];
        // SAFETY: the completion queue is alive (no fault, under the lock); room for as many as are asked for.
        let count = unsafe {
            rdma_sys::ibv_poll_cq(state.cq, COMPLETIONS_PER_TURN as c_int, completions.as_mut_ptr().cast::<ibv_wc>())
        };
        let Ok(count) = usize::try_from(count) else {
            self.fail_locked(&mut state, Fault::Flushed);
            return 0;
        };
        for completion in &completions[..count.min(COMPLETIONS_PER_TURN)] {
            // SAFETY: filled by the call.
            let completion = unsafe { completion.assume_init_ref() };
            if let Err(fault) = self.completed(&mut state, completion) {
                tracing::debug!(
                    device = self.shared.open.name,
                    status = completion.status,
                    vendor = completion.vendor_err,
                    %fault,
                    "a queue pair failed"
                );
                self.fail_locked(&mut state, fault);
            }
            if state.fault.is_some() {
                return count;
            }
        }
        if let Err(fault) = self.pump(&mut state) {
            self.fail_locked(&mut state, fault);
        }
        count
    }

    fn arm(&self) -> bool {
        let mut state = locked(&self.state);
        if state.fault.is_some() {
            return false;
        }
        // SAFETY: the completion queue is alive (no fault, under the lock).
        let rc = unsafe { rdma_sys::ibv_req_notify_cq(state.cq, 0) };
        if rc != 0 {
            self.fail_locked(&mut state, Fault::Post(rc));
        }
        rc == 0
    }

    fn fail(&self, fault: Fault) {
        self.fail_locked(&mut locked(&self.state), fault);
    }
}
