//! The thread of a rail: sleeps on the event channel, takes completions, notices that the device changes.
//!
//! Adaptive polling: a queue that has just completed something is polled again for a moment before its event is
//! armed, because the next completion is often near; how long that moment is follows how often it paid.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_sys::{ibv_async_event, ibv_cq};

use crate::error::Fault;
use crate::limits::{LIVENESS_PERIOD, SPIN_MAX};
use crate::queue::Polled;
use crate::rail::{Shared, locked};

// Numbers of `ibv_event_type`, which rdma-sys makes a Rust enum: a value that it does not know must not become one.
const EVENT_DEVICE_FATAL: i32 = 8;
const EVENT_PORT_ERROR: i32 = 10;
const EVENT_LID_CHANGE: i32 = 11;
const EVENT_GID_CHANGE: i32 = 18;

/// How long to spin, learned.
struct Spin {
    now: Duration,
    max: Duration,
}

impl Spin {
    fn new() -> Spin {
        // With few cores the spinning thread would take the place of the one it waits for.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Spin { now: Duration::ZERO, max: if cores > 2 { SPIN_MAX } else { Duration::ZERO } }
    }

    /// An event came this long after the queue was armed.
    fn learn(&mut self, waited: Duration) {
        self.now = match waited < self.max {
            true => (self.now * 2).max(Duration::from_micros(2)).min(self.max),
            false => self.now / 2,
        };
    }
}

/// Runs until the rail has no user.
pub(crate) fn run(shared: &Arc<Shared>) {
    let mut hot: Vec<Arc<dyn Polled>> = Vec::new();
    let mut spin = Spin::new();
    let (mut active_at, mut armed_at, mut looked_at) = (Instant::now(), Instant::now(), Instant::now());
    loop {
        for queue in shared.take_retired() {
            hot.retain(|q| !Arc::ptr_eq(q, &queue));
            queue.fail(Fault::Closed);
        }
        if shared.is_stopped() {
            return;
        }
        let taken: usize = hot.iter().map(|queue| queue.poll()).sum();
        if taken > 0 {
            active_at = Instant::now();
        } else if !hot.is_empty() && active_at.elapsed() >= spin.now {
            // What completed before the arming leaves no event: look once more.
            hot.retain(|queue| queue.arm() && queue.poll() > 0);
            armed_at = Instant::now();
        }
        let timeout = if hot.is_empty() { LIVENESS_PERIOD } else { Duration::ZERO };
        let ready = wait(shared, timeout);
        if ready.events {
            spin.learn(armed_at.elapsed());
            take_events(shared, &mut hot);
        }
        if ready.asynchronous {
            take_async(shared);
        }
        if shared.is_to_pause() {
            shared.fail(Fault::RailPaused);
        }
        if ready.broken || looked_at.elapsed() >= LIVENESS_PERIOD {
            looked_at = Instant::now();
            if !shared.open.is_present() {
                shared.fail(Fault::DeviceRemoved);
            }
        }
        if shared.fault().is_some() {
            hot.clear();
            if ready.broken {
                // The descriptors stay readable for ever once the device is gone.
                std::thread::sleep(LIVENESS_PERIOD);
            }
        }
    }
}

struct Ready {
    events: bool,
    asynchronous: bool,
    broken: bool,
}

fn wait(shared: &Shared, timeout: Duration) -> Ready {
    let fd = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: both structs live as long as `shared`.
    let (channel, asynchronous) = unsafe { ((*shared.channel).fd, (*shared.open.context).async_fd) };
    let mut fds = [fd(channel), fd(asynchronous), fd(shared.wake_fd())];
    // SAFETY: an array of three, and its length.
    unsafe { libc::poll(fds.as_mut_ptr(), 3, timeout.as_millis() as i32) };
    if fds[2].revents != 0 {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes; the descriptor does not block.
        let _ = unsafe { libc::read(shared.wake_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
    let has = |at: usize, what: i16| fds[at].revents & what != 0;
    let gone = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
    Ready { events: has(0, libc::POLLIN), asynchronous: has(1, libc::POLLIN), broken: has(0, gone) || has(1, gone) }
}

fn take_events(shared: &Shared, hot: &mut Vec<Arc<dyn Polled>>) {
    loop {
        let (mut cq, mut context): (*mut ibv_cq, *mut c_void) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel lives as long as `shared` and does not block; both are places for one pointer.
        let rc = unsafe { (shared.open.library.get_cq_event)(shared.channel, &raw mut cq, &raw mut context) };
        if rc != 0 {
            return;
        }
        // SAFETY: an event was got for it and is acknowledged once; until then its queue cannot be destroyed.
        unsafe { (shared.open.library.ack_cq_events)(cq, 1) };
        let queue = locked(&shared.queues).get(&(cq as usize)).and_then(std::sync::Weak::upgrade);
        if let Some(queue) = queue
            && !hot.iter().any(|q| Arc::ptr_eq(q, &queue))
        {
            hot.push(queue);
        }
    }
}

fn take_async(shared: &Shared) {
    let library = shared.open.library;
    loop {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open and its descriptor does not block; room for one event.
        if unsafe { (library.get_async_event)(shared.open.context, event.as_mut_ptr()) } != 0 {
            return;
        }
        // SAFETY: filled; read as the number that it is in C.
        let kind = unsafe { (&raw const (*event.as_ptr()).event_type).cast::<i32>().read() };
        // SAFETY: got once, acknowledged once.
        unsafe { (library.ack_async_event)(event.as_mut_ptr()) };
        tracing::debug!(device = shared.open.name, kind, "RDMA event");
        match kind {
            EVENT_DEVICE_FATAL => shared.fail(Fault::DeviceRemoved),
            EVENT_PORT_ERROR => shared.fail(Fault::PortDown),
            EVENT_GID_CHANGE | EVENT_LID_CHANGE => {
                let now = shared.open.port(shared.port.number);
                let same = now.as_ref().is_some_and(|port| {
                    port.lid == shared.port.lid
                        && port.gids.iter().any(|g| (g.index, g.gid) == (shared.gid.index, shared.gid.gid))
                });
                if !same {
                    shared.fail(Fault::GidChanged);
                }
            }
            // Faults of one queue pair also show in its completions.
            _ => {}
        }
    }
}
