//! A reliable-connected queue pair with everything in flight on it.
//!
//! The books ([`State`]) own every buffer that the NIC may touch. A buffer leaves them in two ways only: its
//! operation has completed (for a lent slot: its key has been revoked, and the device has said so), or the queue pair
//! has been destroyed, after which no device touches memory on its behalf. Should the kernel refuse to destroy it,
//! the buffers are never freed.
//!
//! One lock per queue covers posting, polling and destruction, so that no thread posts to what another destroys.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex};

use rdma_sys::{
    ibv_access_flags, ibv_cq, ibv_gid, ibv_mr, ibv_mtu, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_opcode, ibv_wr_opcode,
};
use tokio::sync::{oneshot, watch};

use crate::device::{Gid, Link};
use crate::error::{Fault, RdmaError};
use crate::limits::{
    COMPLETIONS_PER_TURN, HOP_LIMIT, LEASES_MAX, QUEUES_MAX, RECEIVE_DEPTH, RNR_RETRIES, RNR_TIMER, SEGMENT_BYTES,
    SEGMENTS_PER_LEASE_MAX, SEND_DEPTH,
};
use crate::memory::{Source, Target};
use crate::rail::{Handle, KeyKind, Shared, locked};
use crate::window::{Region, Window, revoke_request};

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
enum Step {
    Binding,
    Open,
    /// Being revoked; the flag says whether all bytes have come.
    Revoking {
        filled: bool,
    },
}

enum Key {
    Window(Window, u32),
    Region(Region),
}

struct Loan<T> {
    target: T,
    key: Key,
    length: u32,
    received: u32,
    /// Receives posted for it that no write has used.
    receives: u32,
    step: Step,
    bound: Option<oneshot::Sender<()>>,
    ended: oneshot::Sender<Lent<T>>,
}

type Written<S> = Result<S, (S, Fault)>;

struct Write<S> {
    source: S,
    lkey: u32,
    address: u64,
    key: u32,
    tag: u32,
    /// Segments that are not completed.
    left: u32,
    done: oneshot::Sender<Written<S>>,
}

/// A work request that waits for its turn or is posted.
#[derive(Clone, Copy)]
enum Post {
    Bind(u32),
    Revoke(u32),
    Segment { write: u32, offset: u32, length: u32 },
}

const ID_BIND: u64 = 1 << 56;
const ID_REVOKE: u64 = 2 << 56;
const ID_SEGMENT: u64 = 3 << 56;
const ID_RECEIVE: u64 = 4 << 56;
const ID_KIND: u64 = 0xff << 56;

struct State<T, S> {
    qp: *mut ibv_qp,
    cq: *mut ibv_cq,
    /// Set once: the queue pair is gone.
    fault: Option<Fault>,
    next: u32,
    /// Work requests that may still be posted.
    credits: usize,
    posts: VecDeque<Post>,
    loans: HashMap<u32, Loan<T>>,
    writes: HashMap<u32, Write<S>>,
    /// Windows that are not bound.
    windows: Vec<Window>,
    /// Receives posted for loans that ended without using them.
    spare_receives: u32,
}

pub(crate) struct Core<T, S> {
    shared: Arc<Shared>,
    // Keeps the completion thread going.
    _rail: Arc<Handle>,
    state: Mutex<State<T, S>>,
    broken: watch::Sender<Option<Fault>>,
}

// SAFETY: the pointers are used under the lock of `state`, and libibverbs allows any thread.
unsafe impl<T: Send, S: Send> Send for Core<T, S> {}
// SAFETY: as above.
unsafe impl<T: Send, S: Send> Sync for Core<T, S> {}

/// See the module's documentation. Dropping it destroys the queue pair and gives every buffer back.
pub struct Queue<T: Target, S: Source> {
    core: Arc<Core<T, S>>,
    number: u32,
    psn: u32,
}

impl<T: Target, S: Source> fmt::Debug for Queue<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} on {})", self.number, self.core.shared.open.name)
    }
}

impl<T: Target, S: Source> Drop for Queue<T, S> {
    fn drop(&mut self) {
        // On the rail's thread: destroying takes system calls.
        self.core.shared.retire(self.core.clone());
    }
}

fn random_psn() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32 & 0x00ff_ffff
}

impl<T: Target, S: Source> Queue<T, S> {
    pub(crate) fn new(rail: Arc<Handle>) -> Result<Queue<T, S>, RdmaError> {
        let shared = rail.0.clone();
        let device = shared.open.name.clone();
        if let Some(fault) = shared.fault() {
            return Err(RdmaError::Failed { device, fault });
        }
        if locked(&shared.queues).len() >= QUEUES_MAX {
            return Err(RdmaError::TooManyQueues { device, limit: QUEUES_MAX });
        }
        let library = shared.open.library;
        let entries = (SEND_DEPTH + RECEIVE_DEPTH) as c_int;
        // SAFETY: context and channel live as long as `shared`.
        let cq = unsafe { (library.create_cq)(shared.open.context, entries, ptr::null_mut(), shared.channel, 0) };
        if cq.is_null() {
            return Err(RdmaError::create(&device, "completion queue"));
        }
        // SAFETY: all zeros is a value of this struct of numbers and pointers.
        let mut attributes: ibv_qp_init_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        (attributes.send_cq, attributes.recv_cq) = (cq, cq);
        attributes.qp_type = ibv_qp_type::IBV_QPT_RC;
        attributes.cap.max_send_wr = SEND_DEPTH as u32;
        attributes.cap.max_recv_wr = RECEIVE_DEPTH as u32;
        (attributes.cap.max_send_sge, attributes.cap.max_recv_sge) = (1, 1);
        // SAFETY: the protection domain and the completion queue are alive; the struct is filled.
        let qp = unsafe { (library.create_qp)(shared.pd, &raw mut attributes) };
        if qp.is_null() {
            let error = RdmaError::create(&device, "queue pair");
            // SAFETY: made above, with nothing in it.
            unsafe { (library.destroy_cq)(cq) };
            return Err(error);
        }
        // SAFETY: just made.
        let number = unsafe { (*qp).qp_num };
        let state = State {
            qp,
            cq,
            fault: None,
            next: 0,
            credits: SEND_DEPTH,
            posts: VecDeque::new(),
            loans: HashMap::new(),
            writes: HashMap::new(),
            windows: Vec::new(),
            spare_receives: 0,
        };
        let core = Arc::new(Core { shared, _rail: rail, state: Mutex::new(state), broken: watch::Sender::new(None) });
        let polled: Arc<dyn Polled> = core.clone();
        locked(&core.shared.queues).insert(cq as usize, Arc::downgrade(&polled));
        let queue = Queue { core, number, psn: random_psn() };
        queue.core.arm();
        // A rail that failed meanwhile did not see this queue.
        if let Some(fault) = queue.core.shared.fault() {
            queue.core.fail(fault);
            return Err(RdmaError::Failed { device, fault });
        }
        Ok(queue)
    }

    /// What the peer must know to connect.
    pub fn address(&self) -> Address {
        let shared = &self.core.shared;
        Address {
            number: self.number,
            psn: self.psn,
            gid: shared.gid.gid,
            lid: shared.port.lid,
            mtu_code: shared.port.mtu_code.min(5) as u8,
            infiniband: shared.port.link == Link::InfiniBand,
        }
    }

    /// Connects to the peer's queue pair. Both sides do so, with each other's address.
    ///
    /// # Errors
    /// [`RdmaError::Create`] when the device refuses the address.
    pub fn connect(&self, peer: &Address) -> Result<(), RdmaError> {
        let state = locked(&self.core.state);
        let shared = &self.core.shared;
        if let Some(fault) = state.fault {
            return Err(RdmaError::Failed { device: shared.open.name.clone(), fault });
        }
        for (attributes, mask) in [self.to_init(), self.to_receive(peer), self.to_send()] {
            let mut attributes = attributes;
            // SAFETY: the queue pair is alive (no fault, under the lock); the struct has what the mask names.
            let rc = unsafe { (shared.open.library.modify_qp)(state.qp, &raw mut attributes, mask as c_int) };
            if rc != 0 {
                let source = std::io::Error::from_raw_os_error(rc);
                return Err(RdmaError::Create { device: shared.open.name.clone(), what: "connection", source });
            }
        }
        Ok(())
    }

    fn to_init(&self) -> (ibv_qp_attr, u32) {
        let mut a = empty_attributes(ibv_qp_state::IBV_QPS_INIT);
        a.port_num = self.core.shared.port.number;
        a.qp_access_flags = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        use ibv_qp_attr_mask as m;
        (a, (m::IBV_QP_STATE | m::IBV_QP_PKEY_INDEX | m::IBV_QP_PORT | m::IBV_QP_ACCESS_FLAGS).0)
    }

    fn to_receive(&self, peer: &Address) -> (ibv_qp_attr, u32) {
        let shared = &self.core.shared;
        let mut a = empty_attributes(ibv_qp_state::IBV_QPS_RTR);
        let ours = shared.port.mtu_code;
        a.path_mtu = ours.min(u32::from(peer.mtu_code)).clamp(ibv_mtu::IBV_MTU_256, ibv_mtu::IBV_MTU_4096);
        a.dest_qp_num = peer.number;
        a.rq_psn = peer.psn;
        a.max_dest_rd_atomic = 1;
        a.min_rnr_timer = RNR_TIMER;
        a.ah_attr.port_num = shared.port.number;
        a.ah_attr.dlid = peer.lid;
        // Ethernet always has a global route; InfiniBand only between subnets.
        let routed = shared.port.link != Link::InfiniBand || peer.gid.common_prefix(shared.gid.gid) < 64;
        if routed {
            a.ah_attr.is_global = 1;
            a.ah_attr.grh.dgid = ibv_gid { raw: peer.gid.0 };
            a.ah_attr.grh.sgid_index = shared.gid.index;
            a.ah_attr.grh.hop_limit = HOP_LIMIT;
        }
        use ibv_qp_attr_mask as m;
        let mask = m::IBV_QP_STATE
            | m::IBV_QP_AV
            | m::IBV_QP_PATH_MTU
            | m::IBV_QP_DEST_QPN
            | m::IBV_QP_RQ_PSN
            | m::IBV_QP_MAX_DEST_RD_ATOMIC
            | m::IBV_QP_MIN_RNR_TIMER;
        (a, mask.0)
    }

    fn to_send(&self) -> (ibv_qp_attr, u32) {
        let options = self.core.shared.options;
        let mut a = empty_attributes(ibv_qp_state::IBV_QPS_RTS);
        a.timeout = options.ack_timeout.min(31);
        a.retry_cnt = options.retries.min(7);
        a.rnr_retry = RNR_RETRIES;
        a.sq_psn = self.psn;
        a.max_rd_atomic = 1;
        use ibv_qp_attr_mask as m;
        let mask = m::IBV_QP_STATE
            | m::IBV_QP_TIMEOUT
            | m::IBV_QP_RETRY_CNT
            | m::IBV_QP_RNR_RETRY
            | m::IBV_QP_SQ_PSN
            | m::IBV_QP_MAX_QP_RD_ATOMIC;
        (a, mask.0)
    }

    /// Lends the first `length` bytes of `target` to the peer, for writes of `segments` segments in all. It comes
    /// back through the lease, after its key has been revoked.
    ///
    /// # Errors
    /// The slot, untouched, and why: too many lent, not registered, or the queue pair is gone.
    pub fn lend(&self, target: T, length: u32, segments: u32) -> Result<Lease<T>, (T, Fault)> {
        let mut state = locked(&self.core.state);
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
        let key = match self.core.new_key(&mut state, address, length) {
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
        if let Err(fault) = self.core.post_receives(&mut state, segments).and_then(|()| self.core.pump(&mut state)) {
            // The lease says so.
            self.core.fail_locked(&mut state, fault);
        }
        Ok(lease)
    }

    /// Takes a lent slot back: its key is revoked, then the lease ends. A peer that is still writing makes the queue
    /// pair fail, so ask it to stop first.
    pub fn recall(&self, tag: u32) {
        let mut state = locked(&self.core.state);
        let Some(loan) = state.loans.get_mut(&tag) else { return };
        if loan.step == Step::Open || loan.step == Step::Binding {
            self.core.revoke(&mut state, tag, false);
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
        let mut state = locked(&self.core.state);
        if let Some(fault) = state.fault {
            return Err((source, fault));
        }
        let length = source.bytes().len();
        let region =
            NonNull::new(source.bytes().as_ptr().cast_mut()).and_then(|at| self.core.shared.region(at, length));
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
        if let Err(fault) = self.core.pump(&mut state) {
            self.core.fail_locked(&mut state, fault);
        }
        Ok(on_done)
    }

    /// Can these bytes be written from where they are?
    pub fn is_registered(&self, bytes: &[u8]) -> bool {
        let at = NonNull::new(bytes.as_ptr().cast_mut());
        at.is_some_and(|at| self.core.shared.region(at, bytes.len()).is_some())
    }

    /// Waits until the queue pair is gone, and says why.
    pub async fn broken(&self) -> Fault {
        let mut broken = self.core.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(fault) => fault.unwrap_or(Fault::Closed),
            Err(_) => Fault::Closed,
        }
    }

    /// Why it is gone, if it is.
    pub fn fault(&self) -> Option<Fault> {
        *self.core.broken.borrow()
    }

    /// Destroys the queue pair; everything in flight ends with `fault`.
    pub fn close(&self, fault: Fault) {
        self.core.fail(fault);
    }
}

fn empty_attributes(state: ibv_qp_state::Type) -> ibv_qp_attr {
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut attributes: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    attributes.qp_state = state;
    attributes
}

impl<T: Target, S: Source> Core<T, S> {
    fn new_key(&self, state: &mut State<T, S>, address: NonNull<u8>, length: u32) -> Result<Key, Fault> {
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

    fn post_receives(&self, state: &mut State<T, S>, wanted: u32) -> Result<(), Fault> {
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
    fn pump(&self, state: &mut State<T, S>) -> Result<(), Fault> {
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
    fn revoke(&self, state: &mut State<T, S>, tag: u32, filled: bool) {
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
                    write.left -= 1;
                    self.shared.count_success(0);
                    if write.left == 0
                        && let Some(write) = state.writes.remove(&id)
                    {
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
        self.shared.count_success(completion.byte_len);
        if loan.received == loan.length {
            self.revoke(state, tag, true);
        } else if loan.receives == 0 {
            return Err(Fault::Protocol);
        }
        Ok(())
    }

    /// Destroys the queue pair, then gives everything back.
    fn fail_locked(&self, state: &mut State<T, S>, fault: Fault) {
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

impl<T: Target, S: Source> Polled for Core<T, S> {
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
