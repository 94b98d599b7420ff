//! Keys: what lets one peer write to one slot.
//!
//! Where the device has memory windows of type 2, a key is a window, bound to one slot and usable by one queue pair,
//! and revoked by a work request. Elsewhere it is a registration of the slot alone, made and ended by system calls;
//! that is slower, and the protection domain rather than the queue pair is the limit of who could use it.

use std::ffi::c_void;
use std::ptr::NonNull;

use rdma_sys::{ibv_access_flags, ibv_mr, ibv_mw, ibv_mw_bind_info, ibv_mw_type, ibv_pd, ibv_send_wr, ibv_wr_opcode};

use crate::error::Fault;
use crate::library::Library;

/// A memory window, bound or not.
pub(crate) struct Window {
    mw: NonNull<ibv_mw>,
}

// SAFETY: libibverbs allows its objects to be used from any thread.
unsafe impl Send for Window {}

impl Window {
    /// A new window of type 2; `None` when the device gives no more.
    ///
    /// # Safety
    /// `pd` is alive, and outlives the window.
    pub(crate) unsafe fn new(pd: *mut ibv_pd) -> Option<Window> {
        // SAFETY: the caller's promise; the inline function goes through the table of the open device.
        let mw = unsafe { rdma_sys::ibv_alloc_mw(pd, ibv_mw_type::IBV_MW_TYPE_2) }?;
        NonNull::new(mw).map(|mw| Window { mw })
    }

    /// The key that the next binding will have: the old one can then not open anything.
    pub(crate) fn next_key(&self) -> u32 {
        // SAFETY: allocated in `new`, not freed before `free` takes it.
        let key = unsafe { self.mw.as_ref().rkey };
        (key & !0xff) | (key.wrapping_add(1) & 0xff)
    }

    /// Remembers that the binding under `key` was done.
    pub(crate) fn bound(&mut self, key: u32) {
        // SAFETY: as above; `&mut self` is the only way to it.
        unsafe { self.mw.as_mut().rkey = key };
    }

    /// Fills in the request that binds it to `length` bytes at `address`.
    pub(crate) fn bind_request(&self, request: &mut ibv_send_wr, mr: *mut ibv_mr, address: u64, length: u32, key: u32) {
        request.opcode = ibv_wr_opcode::IBV_WR_BIND_MW;
        request.bind_mw_tso_union.bind_mw = rdma_sys::bind_mw_t {
            mw: self.mw.as_ptr(),
            rkey: key,
            bind_info: ibv_mw_bind_info {
                mr,
                addr: address,
                length: u64::from(length),
                mw_access_flags: ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
            },
        };
    }

    /// Ends it; a binding ends with it.
    pub(crate) fn free(self) {
        // SAFETY: allocated in `new`, and gone after this.
        let rc = unsafe { rdma_sys::ibv_dealloc_mw(self.mw.as_ptr()) };
        if rc != 0 {
            tracing::debug!(rc, "freeing a memory window failed");
        }
    }
}

/// Fills in the request that revokes `key`.
pub(crate) fn revoke_request(request: &mut ibv_send_wr, key: u32) {
    request.opcode = ibv_wr_opcode::IBV_WR_LOCAL_INV;
    request.imm_data_invalidated_rkey_union.invalidated_rkey = key;
}

/// A registration of one slot.
pub(crate) struct Region {
    mr: NonNull<ibv_mr>,
}

// SAFETY: libibverbs allows its objects to be used from any thread.
unsafe impl Send for Region {}

impl Region {
    /// Registers `length` bytes at `address` for the peer to write to.
    ///
    /// # Safety
    /// The memory stays mapped until `end`, and `pd` outlives the region.
    pub(crate) unsafe fn new(
        library: &Library,
        pd: *mut ibv_pd,
        address: NonNull<u8>,
        length: usize,
    ) -> Result<Region, Fault> {
        let access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        // SAFETY: the caller's promise.
        let mr = unsafe { (library.reg_mr)(pd, address.as_ptr().cast::<c_void>(), length, access as i32) };
        let failed = || Fault::Post(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        NonNull::new(mr).map(|mr| Region { mr }).ok_or_else(failed)
    }

    pub(crate) fn key(&self) -> u32 {
        // SAFETY: registered in `new`, not ended before `end` takes it.
        unsafe { self.mr.as_ref().rkey }
    }

    /// Ends it: afterwards the key opens nothing. False when the kernel would not.
    pub(crate) fn end(self, library: &Library) -> bool {
        // SAFETY: registered in `new`, and gone after this.
        let rc = unsafe { (library.dereg_mr)(self.mr.as_ptr()) };
        // EIO: the device is gone, and its registrations with it.
        rc == 0 || rc == libc::EIO
    }
}
