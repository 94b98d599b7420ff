//! A rail: one port of one device, opened, with registered memory and a thread that drives its completions.
//!
//! A rail that has failed (device removed, port down, address changed) stays failed: everything in flight on it has
//! been given back, and whoever wants to go on opens a new one. Memory is registered once per rail.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdma_sys::{ibv_access_flags, ibv_comp_channel, ibv_mr, ibv_pd};
use tokio::sync::watch;

use crate::completion;
use crate::device::{Device, Gid, GidEntry, List, Open, Port, PortState};
use crate::error::{Fault, RdmaError};
use crate::limits::{ACK_TIMEOUT, QUEUES_MAX, RAIL_FAULTS_MAX, RETRIES};
use crate::memory::Mapping;
use crate::network::network_bits;
use crate::queue::{Polled, Queue};

/// How slots get keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Memory windows of type 2: usable by one queue pair, revoked by a work request.
    Window,
    /// A registration per transfer.
    Region,
}

/// How a rail is to behave.
#[derive(Clone, Copy, Debug)]
pub struct RailOptions {
    /// `None`: windows where the device has them.
    pub keys: Option<KeyKind>,
    /// Acknowledgement timeout, as 4.096 µs · 2^n.
    pub ack_timeout: u8,
    /// Retries after it, 6 at most.
    pub retries: u8,
    /// Queue pairs there may be at once.
    pub queues_max: usize,
}

impl Default for RailOptions {
    fn default() -> Self {
        RailOptions { keys: None, ack_timeout: ACK_TIMEOUT, retries: RETRIES, queues_max: QUEUES_MAX }
    }
}

/// Whether a rail can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RailState {
    /// Yes.
    Up,
    /// No, and it will not be again.
    Failed(Fault),
}

/// What went over a rail since it was opened, as this side counts it and as the device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that peers wrote into slots lent on this rail.
    pub received_bytes: u64,
    /// Bytes that peers' devices acknowledged.
    pub sent_bytes: u64,
    /// What the device says that it received: headers and other users of it included, so never less than
    /// `received_bytes` when those came over the wire. Real ports count bytes; soft-RoCE counts packets, taken here as
    /// full ones. `None`: the device does not count.
    pub wire_received_bytes: Option<u64>,
    /// The same for what it sent.
    pub wire_sent_bytes: Option<u64>,
}

/// Memory registered with the device; its mapping lives as long.
struct Registered {
    mr: NonNull<ibv_mr>,
    start: usize,
    end: usize,
    mapping: Arc<dyn Mapping>,
}

// SAFETY: libibverbs allows its objects to be used from any thread.
unsafe impl Send for Registered {}

/// What queues and the completion thread share.
pub(crate) struct Shared {
    pub(crate) open: Open,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) channel: *mut ibv_comp_channel,
    pub(crate) port: Port,
    pub(crate) gid: GidEntry,
    /// Leading bits of the address that name its network.
    network_bits: Option<u32>,
    pub(crate) keys: KeyKind,
    pub(crate) options: RailOptions,
    regions: Mutex<Vec<Registered>>,
    /// By the address of the completion queue.
    pub(crate) queues: Mutex<HashMap<usize, Weak<dyn Polled>>>,
    /// Queues that nobody uses any more, for the thread to take down.
    retired: Mutex<Vec<Arc<dyn Polled>>>,
    wake: OwnedFd,
    stop: AtomicBool,
    /// Faults of queue pairs since something worked.
    faults: AtomicU32,
    /// Bytes that peers wrote into lent slots.
    received: AtomicU64,
    /// Bytes that peers' devices acknowledged.
    sent: AtomicU64,
    /// The device's own counts of received and sent bytes when the rail was opened.
    wire_before: [Option<u64>; 2],
    state: watch::Sender<RailState>,
}

// SAFETY: libibverbs allows its objects to be used from any thread; everything that changes is behind locks.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The registration that contains all of `address..address + length`.
    pub(crate) fn region(&self, address: NonNull<u8>, length: usize) -> Option<NonNull<ibv_mr>> {
        let start = address.as_ptr() as usize;
        let end = start.checked_add(length)?;
        locked(&self.regions).iter().find(|r| r.start <= start && end <= r.end).map(|r| r.mr)
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        match *self.state.borrow() {
            RailState::Up => None,
            RailState::Failed(fault) => Some(fault),
        }
    }

    /// Takes the whole rail down: every queue ends, and nothing new begins.
    pub(crate) fn fail(&self, fault: Fault) {
        if self.fault().is_some() {
            return;
        }
        tracing::warn!(device = self.open.name, %fault, "an RDMA rail failed");
        self.state.send_replace(RailState::Failed(fault));
        let queues: Vec<_> = locked(&self.queues).values().filter_map(Weak::upgrade).collect();
        for queue in queues {
            queue.fail(fault);
        }
    }

    /// A queue pair failed by itself.
    pub(crate) fn count_fault(&self) {
        if self.faults.fetch_add(1, Ordering::Relaxed) + 1 >= RAIL_FAULTS_MAX {
            self.wake();
        }
    }

    /// Bytes came, or a write was acknowledged.
    pub(crate) fn count_success(&self, received: u64, sent: u64) {
        self.faults.store(0, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    pub(crate) fn is_to_pause(&self) -> bool {
        self.faults.load(Ordering::Relaxed) >= RAIL_FAULTS_MAX
    }

    pub(crate) fn retire(&self, queue: Arc<dyn Polled>) {
        locked(&self.retired).push(queue);
        self.wake();
    }

    pub(crate) fn take_retired(&self) -> Vec<Arc<dyn Polled>> {
        std::mem::take(&mut *locked(&self.retired))
    }

    pub(crate) fn wake_fd(&self) -> i32 {
        self.wake.as_raw_fd()
    }

    fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. A full counter wakes as well.
        let _ = unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let library = self.open.library;
        for region in locked(&self.regions).drain(..) {
            // SAFETY: registered once, ended once; no queue is left that could use it: each holds `Shared`.
            let rc = unsafe { (library.dereg_mr)(region.mr.as_ptr()) };
            if rc != 0 && rc != libc::EIO {
                tracing::error!(rc, bytes = region.end - region.start, "memory stays registered; it is never freed");
                std::mem::forget(region.mapping);
            }
        }
        // SAFETY: made in `Rail::open`, ended once, after everything that was made with them.
        unsafe {
            (library.destroy_comp_channel)(self.channel);
            (library.dealloc_pd)(self.pd);
        }
    }
}

/// Tells the thread to end when the last user is gone.
pub(crate) struct Handle(pub(crate) Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// See the module's documentation. Clones are the same rail.
#[derive(Clone)]
pub struct Rail(pub(crate) Arc<Handle>);

impl fmt::Debug for Rail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rail({} port {} {})", self.device(), self.port().number, self.gid().gid)
    }
}

impl Rail {
    /// Opens the first active port of `device` that has a usable address.
    ///
    /// # Errors
    /// What is missing; see [`RdmaError::reason`].
    pub fn open(device: &str, options: RailOptions) -> Result<Rail, RdmaError> {
        let open = List::get()?.open(device)?;
        let described = open.describe();
        let active: Vec<&Port> = described.ports.iter().filter(|p| p.state == PortState::Active).collect();
        let Some(first) = active.first() else { return Err(RdmaError::PortDown { device: device.into() }) };
        let Some((port, gid)) = active.iter().find_map(|p| Some(((*p).clone(), p.best_gid()?.clone()))) else {
            return Err(RdmaError::NoGid { device: device.into(), port: first.number });
        };
        let keys = options.keys.unwrap_or(if described.windows { KeyKind::Window } else { KeyKind::Region });
        let shared = Rail::build(open, port, gid, keys, options)?;
        let thread = shared.clone();
        std::thread::Builder::new()
            .name(format!("rdma-{device}"))
            .spawn(move || completion::run(&thread))
            .map_err(|source| RdmaError::Create { device: device.into(), what: "thread", source })?;
        Ok(Rail(Arc::new(Handle(shared))))
    }

    fn build(
        open: Open,
        port: Port,
        gid: GidEntry,
        keys: KeyKind,
        options: RailOptions,
    ) -> Result<Arc<Shared>, RdmaError> {
        let library = open.library;
        // SAFETY: plain numbers.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if wake < 0 {
            return Err(RdmaError::create(&open.name, "event descriptor"));
        }
        // SAFETY: just made, and nobody else's.
        let wake = unsafe { OwnedFd::from_raw_fd(wake) };
        // SAFETY: the context is open.
        let pd = unsafe { (library.alloc_pd)(open.context) };
        if pd.is_null() {
            return Err(RdmaError::create(&open.name, "protection domain"));
        }
        // SAFETY: as above.
        let channel = unsafe { (library.create_comp_channel)(open.context) };
        if channel.is_null() {
            let error = RdmaError::create(&open.name, "event channel");
            // SAFETY: made above, with nothing in it.
            unsafe { (library.dealloc_pd)(pd) };
            return Err(error);
        }
        let wire_before = wire_bytes(&open.name, &port);
        // From here on `Shared` cleans up.
        let shared = Arc::new(Shared {
            network_bits: network_bits(&gid),
            open,
            pd,
            channel,
            port,
            gid,
            keys,
            options,
            regions: Mutex::default(),
            queues: Mutex::default(),
            retired: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            faults: AtomicU32::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            wire_before,
            state: watch::Sender::new(RailState::Up),
        });
        // SAFETY: both structs live as long as `shared`; their descriptors are plain numbers.
        let (channel_fd, async_fd) = unsafe { ((*shared.channel).fd, (*shared.open.context).async_fd) };
        for fd in [channel_fd, async_fd] {
            // SAFETY: plain numbers; the descriptors are open.
            let rc = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
            if rc < 0 {
                return Err(RdmaError::create(&shared.open.name, "descriptor that does not block"));
            }
        }
        Ok(shared)
    }

    /// Registers memory that targets and sources lie in. It stays so as long as the rail.
    ///
    /// # Errors
    /// [`RdmaError::Register`]: usually the limit on locked memory.
    pub fn register(&self, mapping: Arc<dyn Mapping>) -> Result<(), RdmaError> {
        let shared = &self.0.0;
        let (base, bytes) = (mapping.base(), mapping.bytes());
        let mut access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        if shared.keys == KeyKind::Window {
            access |= ibv_access_flags::IBV_ACCESS_MW_BIND.0;
        }
        // SAFETY: `Mapping` promises the range for as long as the value lives, and `Registered` keeps it.
        let mr =
            unsafe { (shared.open.library.reg_mr)(shared.pd, base.as_ptr().cast::<c_void>(), bytes, access as i32) };
        let Some(mr) = NonNull::new(mr) else {
            let source = io::Error::last_os_error();
            return Err(RdmaError::Register { device: shared.open.name.clone(), bytes, source });
        };
        let start = base.as_ptr() as usize;
        locked(&shared.regions).push(Registered { mr, start, end: start + bytes, mapping });
        Ok(())
    }

    /// A new queue pair, not yet connected.
    ///
    /// # Errors
    /// The device gives no more, the bound is reached, or the rail has failed.
    pub fn queue<T: crate::Target, S: crate::Source>(&self) -> Result<Queue<T, S>, RdmaError> {
        Queue::new(self.0.clone())
    }

    /// Whether it can be used, now and later.
    pub fn state(&self) -> watch::Receiver<RailState> {
        self.0.0.state.subscribe()
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.0.0.open.name
    }

    /// The device as it is now.
    pub fn describe(&self) -> Device {
        self.0.0.open.describe()
    }

    /// The port, as it was when the rail was opened.
    pub fn port(&self) -> &Port {
        &self.0.0.port
    }

    /// The address.
    pub fn gid(&self) -> &GidEntry {
        &self.0.0.gid
    }

    /// Is this address on the network of the rail's own? Also true when the width of that is not known.
    pub fn is_on_network(&self, other: Gid) -> bool {
        self.0.0.network_bits.is_none_or(|bits| self.gid().gid.common_prefix(other) >= bits)
    }

    /// How slots get keys.
    pub fn keys(&self) -> KeyKind {
        self.0.0.keys
    }

    /// Queue pairs there are now.
    pub fn queues(&self) -> usize {
        locked(&self.0.0.queues).len()
    }

    /// What went over it, by its own count and by the device's.
    pub fn traffic(&self) -> Traffic {
        let shared = &self.0.0;
        // The device is asked last: it must have counted whatever is counted here.
        let received_bytes = shared.received.load(Ordering::Relaxed);
        let sent_bytes = shared.sent.load(Ordering::Relaxed);
        let now = wire_bytes(self.device(), self.port());
        let since = |at: usize| now[at]?.checked_sub(shared.wire_before[at]?);
        Traffic { received_bytes, sent_bytes, wire_received_bytes: since(0), wire_sent_bytes: since(1) }
    }

    /// The device's own counters, by name: packets of soft-RoCE, bytes (in words of four) of real ports.
    pub fn hardware_counters(&self) -> Vec<(String, u64)> {
        let base = ports_dir(self.device(), self.port());
        let mut counters = Vec::new();
        for dir in ["hw_counters", "counters"] {
            let Ok(entries) = std::fs::read_dir(format!("{base}/{dir}")) else { continue };
            for entry in entries.flatten() {
                let value = std::fs::read_to_string(entry.path()).ok().and_then(|v| v.trim().parse().ok());
                if let Some(value) = value {
                    counters.push((entry.file_name().to_string_lossy().into_owned(), value));
                }
            }
        }
        counters.sort();
        counters
    }
}

fn ports_dir(device: &str, port: &Port) -> String {
    format!("/sys/class/infiniband/{device}/ports/{}", port.number)
}

/// What the device says that it received and sent since it came up.
fn wire_bytes(device: &str, port: &Port) -> [Option<u64>; 2] {
    let base = ports_dir(device, port);
    let read =
        |name: &str| -> Option<u64> { std::fs::read_to_string(format!("{base}/{name}")).ok()?.trim().parse().ok() };
    let either = |words: &str, packets: &str| {
        let bytes = read(words).map(|words| words.saturating_mul(4));
        bytes.or_else(|| Some(read(packets)?.saturating_mul(u64::from(port.mtu_bytes()))))
    };
    [
        either("counters/port_rcv_data", "hw_counters/rcvd_pkts"),
        either("counters/port_xmit_data", "hw_counters/sent_pkts"),
    ]
}
