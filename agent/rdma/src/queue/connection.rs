//! Making a queue pair and connecting it to a peer's.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex};

use rdma_sys::{
    ibv_access_flags, ibv_gid, ibv_mtu, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
};
use tokio::sync::watch;

use super::books::{Books, Polled, State};
use super::{Address, Queue};
use crate::device::Link;
use crate::error::RdmaError;
use crate::limits::{HOP_LIMIT, RECEIVE_DEPTH, RETRIES_MAX, RNR_RETRIES, RNR_TIMER, SEND_DEPTH};
use crate::memory::{Source, Target};
use crate::rail::{Handle, locked};

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
        let limit = shared.options.queues_max;
        if locked(&shared.queues).len() >= limit {
            return Err(RdmaError::TooManyQueues { device, limit });
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
        let books = Arc::new(Books { shared, _rail: rail, state: Mutex::new(state), broken: watch::Sender::new(None) });
        let polled: Arc<dyn Polled> = books.clone();
        locked(&books.shared.queues).insert(cq as usize, Arc::downgrade(&polled));
        let queue = Queue { books, number, psn: random_psn() };
        queue.books.arm();
        // A rail that failed meanwhile did not see this queue.
        if let Some(fault) = queue.books.shared.fault() {
            queue.books.fail(fault);
            return Err(RdmaError::Failed { device, fault });
        }
        Ok(queue)
    }

    /// What the peer must know to connect.
    pub fn address(&self) -> Address {
        let shared = &self.books.shared;
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
    /// [`RdmaError::Connect`] when the device refuses the address.
    pub fn connect(&self, peer: &Address) -> Result<(), RdmaError> {
        let state = locked(&self.books.state);
        let shared = &self.books.shared;
        if let Some(fault) = state.fault {
            return Err(RdmaError::Failed { device: shared.open.name.clone(), fault });
        }
        for (attributes, mask) in [self.to_init(), self.to_receive(peer), self.to_send()] {
            let mut attributes = attributes;
            // SAFETY: the queue pair is alive (no fault, under the lock); the struct has what the mask names.
            let rc = unsafe { (shared.open.library.modify_qp)(state.qp, &raw mut attributes, mask as c_int) };
            if rc != 0 {
                let source = std::io::Error::from_raw_os_error(rc);
                return Err(RdmaError::Connect { device: shared.open.name.clone(), source });
            }
        }
        Ok(())
    }

    fn to_init(&self) -> (ibv_qp_attr, u32) {
        let mut a = empty_attributes(ibv_qp_state::IBV_QPS_INIT);
        a.port_num = self.books.shared.port.number;
        a.qp_access_flags = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        use ibv_qp_attr_mask as m;
        (a, (m::IBV_QP_STATE | m::IBV_QP_PKEY_INDEX | m::IBV_QP_PORT | m::IBV_QP_ACCESS_FLAGS).0)
    }

    fn to_receive(&self, peer: &Address) -> (ibv_qp_attr, u32) {
        let shared = &self.books.shared;
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
        let options = self.books.shared.options;
        let mut a = empty_attributes(ibv_qp_state::IBV_QPS_RTS);
        a.timeout = options.ack_timeout.min(31);
        a.retry_cnt = options.retries.min(RETRIES_MAX);
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
}

pub(super) fn empty_attributes(state: ibv_qp_state::Type) -> ibv_qp_attr {
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut attributes: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    attributes.qp_state = state;
    attributes
}
