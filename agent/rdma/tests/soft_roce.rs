//! The verbs wall against a soft-RoCE device: `make test-rdma` runs this as root in a virtual machine that has `rxe0`.
#![allow(clippy::unwrap_used)] // a panic here is a failed test
#![allow(unsafe_code)] // test memory keeps the promises of the traits

use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_rdma::{
    Fault, GidKind, KeyKind, Lent, Link, Mapping, PortState, Queue, RAIL_FAULTS_MAX, Rail, RailOptions, RailState,
    RdmaError, SEGMENT_BYTES, Source, Target, discover,
};

const DEVICE: &str = "rxe0";
const SLOT: usize = 4 << 20;

/// One mapping, cut by hand; counts the slots that are out.
struct Memory {
    base: *mut u8,
    len: usize,
    out: AtomicUsize,
}

// SAFETY: only `Slot`s touch the memory, each its own part.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}
// SAFETY: mapped until dropped.
unsafe impl Mapping for Memory {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.base).unwrap()
    }
    fn bytes(&self) -> usize {
        self.len
    }
}

impl Memory {
    fn new(len: usize) -> Arc<Memory> {
        let layout = std::alloc::Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Arc::new(Memory { base, len, out: AtomicUsize::new(0) })
    }

    fn slot(self: &Arc<Memory>, at: usize) -> Slot {
        self.out.fetch_add(1, Ordering::SeqCst);
        Slot { memory: self.clone(), at: at * SLOT }
    }

    fn out(&self) -> usize {
        self.out.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Slot {
    memory: Arc<Memory>,
    at: usize,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.memory.out.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slot {
    fn fill(&mut self, seed: u8) {
        // SAFETY: this slot's part, and nobody else's.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.memory.base.add(self.at), SLOT) };
        bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 4096) as u8 ^ (i as u8) ^ seed);
    }
}

// SAFETY: the mapping does not move, and tests use each slot once at a time.
unsafe impl Target for Slot {
    fn address(&self) -> NonNull<u8> {
        // SAFETY: within the mapping.
        NonNull::new(unsafe { self.memory.base.add(self.at) }).unwrap()
    }
    fn capacity(&self) -> usize {
        SLOT
    }
}

// SAFETY: as above; nobody writes to a slot that is a source.
unsafe impl Source for Slot {
    fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping.
        unsafe { std::slice::from_raw_parts(self.memory.base.add(self.at), SLOT) }
    }
}

type Pair = Queue<Slot, Slot>;

fn rail(keys: Option<KeyKind>) -> Rail {
    // A peer that is gone is noticed quickly: 4 ms, 3 tries.
    Rail::open(DEVICE, RailOptions { keys, ack_timeout: 14, retries: 3, ..RailOptions::default() }).unwrap()
}

fn pair(a: &Rail, b: &Rail) -> (Pair, Pair) {
    let (x, y) = (a.queue().unwrap(), b.queue().unwrap());
    x.connect(&y.address()).unwrap();
    y.connect(&x.address()).unwrap();
    (x, y)
}

const SEGMENTS: u32 = SLOT as u32 / SEGMENT_BYTES;

async fn carry(from: &Pair, to: &Pair, source: Slot, target: Slot) -> (Slot, Slot) {
    let mut lease = to.lend(target, SLOT as u32, SEGMENTS).unwrap();
    assert!(lease.ready().await);
    let source = from.write(source, lease.address, lease.key, lease.tag).await.unwrap();
    match lease.ended().await {
        Lent::Filled(target) => (source, target),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_device_is_described() {
    let devices = discover().unwrap();
    let device = devices.iter().find(|d| d.name == DEVICE).unwrap();
    println!("{device:?}");
    assert!(device.windows, "soft-RoCE has memory windows of type 2");
    let port = &device.ports[0];
    assert_eq!((port.state, port.link), (PortState::Active, Link::Ethernet));
    let gid = port.best_gid().unwrap();
    assert_eq!((gid.kind, gid.gid.to_string().as_str()), (GidKind::RoceV2, "::ffff:10.9.0.1"));
    assert_eq!(Rail::open("mlx5_9", RailOptions::default()).unwrap_err().reason(), "no-device");
}

#[tokio::test]
async fn bytes_land_and_both_slots_come_back() {
    for keys in [KeyKind::Window, KeyKind::Region] {
        let (a, b) = (rail(Some(keys)), rail(Some(keys)));
        let (there, here) = (Memory::new(2 * SLOT), Memory::new(2 * SLOT));
        a.register(there.clone()).unwrap();
        b.register(here.clone()).unwrap();
        let (from, to) = pair(&a, &b);
        let (mut source, mut target) = (there.slot(0), here.slot(1));
        for round in 1..=3 {
            source.fill(round);
            (source, target) = carry(&from, &to, source, target).await;
            assert!(source.bytes() == target.bytes(), "{keys:?}, round {round}");
        }
    }
}

#[tokio::test]
async fn several_transfers_run_at_once() {
    let (a, b) = (rail(None), rail(None));
    let (there, here) = (Memory::new(4 * SLOT), Memory::new(4 * SLOT));
    a.register(there.clone()).unwrap();
    b.register(here.clone()).unwrap();
    let (from, to) = pair(&a, &b);
    let sources = (0..4).map(|i| {
        let mut slot = there.slot(i);
        slot.fill(i as u8 + 10);
        slot
    });
    let all = sources.enumerate().map(|(i, source)| carry(&from, &to, source, here.slot(i)));
    for (source, target) in &futures::future::join_all(all).await {
        assert!(source.bytes() == target.bytes());
    }
}

#[tokio::test]
async fn a_key_opens_nothing_after_it_was_revoked() {
    for keys in [KeyKind::Window, KeyKind::Region] {
        let (a, b) = (rail(Some(keys)), rail(Some(keys)));
        let (there, here) = (Memory::new(SLOT), Memory::new(SLOT));
        a.register(there.clone()).unwrap();
        b.register(here.clone()).unwrap();
        let (from, to) = pair(&a, &b);
        let mut source = there.slot(0);
        source.fill(1);
        let mut lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
        assert!(lease.ready().await);
        let (address, key, tag) = (lease.address, lease.key, lease.tag);
        to.recall(tag);
        let Lent::Recalled(target) = lease.ended().await else { panic!("it was recalled") };
        let (source, fault) = from.write(source, address, key, tag).await.unwrap_err();
        assert_eq!(fault, Fault::RemoteAccess, "{keys:?}: the peer's device refuses the key");
        assert!(source.is_some(), "the source came back");
        assert!(target.bytes().iter().all(|b| *b == 0), "{keys:?}: nothing was written");
        // The receiver's queue pair goes down as well, and lends no more.
        to.broken().await;
    }
}

#[tokio::test]
async fn a_window_serves_one_queue_pair_only() {
    let (a, b) = (rail(Some(KeyKind::Window)), rail(Some(KeyKind::Window)));
    let (there, here) = (Memory::new(2 * SLOT), Memory::new(SLOT));
    a.register(there.clone()).unwrap();
    b.register(here.clone()).unwrap();
    let (_friend, to) = pair(&a, &b);
    let (stranger, _other) = pair(&a, &b);
    let mut lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
    assert!(lease.ready().await);
    let mut source = there.slot(1);
    source.fill(3);
    let (_, fault) = stranger.write(source, lease.address, lease.key, lease.tag).await.unwrap_err();
    assert_eq!(fault, Fault::RemoteAccess);
    to.recall(lease.tag);
    let Lent::Recalled(target) = lease.ended().await else { panic!("it was recalled") };
    assert!(target.bytes().iter().all(|b| *b == 0), "nothing was written");
}

#[tokio::test]
async fn dropping_what_waits_frees_nothing_too_early() {
    let (a, b) = (rail(None), rail(None));
    let (there, here) = (Memory::new(SLOT), Memory::new(SLOT));
    a.register(there.clone()).unwrap();
    b.register(here.clone()).unwrap();
    let (from, to) = pair(&a, &b);
    let mut lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
    assert!(lease.ready().await);
    let (address, key, tag) = (lease.address, lease.key, lease.tag);
    drop(lease);
    assert_eq!(here.out(), 1, "the peer may still write: the slot stays out");
    let mut source = there.slot(0);
    source.fill(9);
    drop(from.write(source, address, key, tag).await.unwrap());
    while here.out() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_closed_queue_gives_everything_back() {
    let (a, b) = (rail(None), rail(None));
    let (there, here) = (Memory::new(SLOT), Memory::new(SLOT));
    a.register(there.clone()).unwrap();
    b.register(here.clone()).unwrap();
    let (from, to) = pair(&a, &b);
    let mut lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
    assert!(lease.ready().await);
    let (address, key, tag) = (lease.address, lease.key, lease.tag);
    let mut source = there.slot(0);
    source.fill(4);
    // The receiver goes away: the write is never acknowledged.
    to.close(Fault::Closed);
    let ended = lease.ended().await;
    assert!(matches!(ended, Lent::Failed(_, Fault::Closed)), "{ended:?}");
    let (source, fault) = from.write(source, address, key, tag).await.unwrap_err();
    println!("the writer sees: {fault}");
    assert!(source.is_some());
    drop((source, ended));
    assert_eq!((there.out(), here.out()), (0, 0));
    // A dropped queue gives back, too.
    let (from, to) = pair(&a, &b);
    let lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
    drop(to);
    assert!(matches!(lease.ended().await, Lent::Failed(_, Fault::Closed)));
    drop(from);
}

#[tokio::test]
async fn what_is_not_registered_is_refused_before_it_is_posted() {
    let (a, b) = (rail(None), rail(None));
    let memory = Memory::new(SLOT);
    let (from, to) = pair(&a, &b);
    let (slot, fault) = to.lend(memory.slot(0), SLOT as u32, SEGMENTS).unwrap_err();
    assert_eq!(fault, Fault::NotRegistered);
    let (_, fault) = from.write(slot, 4096, 1, 1).await.unwrap_err();
    assert_eq!(fault, Fault::NotRegistered);
    assert_eq!((from.fault(), to.fault()), (None, None), "the queue pairs still work");
}

#[tokio::test]
async fn a_rail_on_which_nothing_works_is_paused() {
    let rail = rail(None);
    let memory = Memory::new(SLOT);
    rail.register(memory.clone()).unwrap();
    let mut state = rail.state();
    for n in 0..RAIL_FAULTS_MAX {
        assert_eq!(*state.borrow(), RailState::Up, "after {n} faults");
        let queue: Pair = rail.queue().unwrap();
        // Nobody has this number.
        let nobody = millstream_rdma::Address { number: 0x00ff_fff0, ..queue.address() };
        queue.connect(&nobody).unwrap();
        let (_, fault) = queue.write(memory.slot(0), 4096, 1, 1).await.unwrap_err();
        assert_eq!(fault, Fault::RetryExceeded);
    }
    state.wait_for(|s| *s == RailState::Failed(Fault::RailPaused)).await.unwrap();
    assert!(rail.queue::<Slot, Slot>().is_err());
}

/// Also with as many retries as the field can hold, which soft-RoCE would take as "for ever".
#[tokio::test]
async fn a_peer_that_never_acknowledges_is_given_up() {
    for options in [RailOptions::default(), RailOptions { retries: u8::MAX, ack_timeout: 14, ..RailOptions::default() }]
    {
        let rail = Rail::open(DEVICE, options).unwrap();
        let memory = Memory::new(SLOT);
        rail.register(memory.clone()).unwrap();
        let queue: Pair = rail.queue().unwrap();
        // Nobody has this number.
        let nobody = millstream_rdma::Address { number: 0x00ff_fff0, ..queue.address() };
        queue.connect(&nobody).unwrap();
        let (_, fault) = queue.write(memory.slot(0), 4096, 1, 1).await.unwrap_err();
        assert_eq!(fault, Fault::RetryExceeded, "{options:?}");
    }
}

/// Run by [`too_little_lockable_memory_is_named`], without privileges.
#[test]
#[ignore = "run by another test"]
fn child_registers_a_gigabyte() {
    let rail = rail(None);
    let error = rail.register(Memory::new(64 << 20)).unwrap_err();
    println!("{error}");
    assert!(matches!(error, RdmaError::Register { .. }));
    println!("reason={}", error.reason());
}

#[test]
fn too_little_lockable_memory_is_named() {
    let exe = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -l 1024; exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \
         --bounding-set=-all '{}' --ignored --exact child_registers_a_gigabyte --nocapture",
        exe.display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("reason=memlock"), "{text}");
}

#[test]
fn registration_is_timed() {
    let rail = rail(None);
    let memory = Memory::new(1 << 30);
    // Touched before: what is timed is the registration, not the zeroing of pages.
    (0..memory.len).step_by(4096).for_each(|at| {
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { memory.base.add(at).write(1) }
    });
    let start = std::time::Instant::now();
    rail.register(memory).unwrap();
    let took = start.elapsed();
    println!("registered 1 GiB in {took:?}: 16 GiB would take {:.2} s", took.as_secs_f64() * 16.0);
}

fn rdma(arguments: &[&str]) {
    let output = Command::new("rdma").args(arguments).output().unwrap();
    assert!(output.status.success(), "rdma {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Last by name: tests run in order, and this one takes the device away.
#[tokio::test]
async fn z_a_removed_device_gives_everything_back_and_can_return() {
    let (a, b) = (rail(None), rail(None));
    let (there, here) = (Memory::new(SLOT), Memory::new(SLOT));
    a.register(there.clone()).unwrap();
    b.register(here.clone()).unwrap();
    let (from, to) = pair(&a, &b);
    let mut lease = to.lend(here.slot(0), SLOT as u32, SEGMENTS).unwrap();
    assert!(lease.ready().await);
    let (mut left, mut right) = (a.state(), b.state());
    let removing = tokio::task::spawn_blocking(|| rdma(&["link", "delete", DEVICE]));
    left.wait_for(|s| *s != RailState::Up).await.unwrap();
    right.wait_for(|s| *s != RailState::Up).await.unwrap();
    assert_eq!(*left.borrow(), RailState::Failed(Fault::DeviceRemoved));
    let ended = lease.ended().await;
    assert!(matches!(ended, Lent::Failed(_, Fault::DeviceRemoved)), "{ended:?}");
    drop((ended, from, to, left, right, a, b));
    tokio::time::timeout(Duration::from_secs(60), removing).await.unwrap().unwrap();
    assert_eq!(here.out(), 0);
    assert_eq!(Rail::open(DEVICE, RailOptions::default()).unwrap_err().reason(), "no-device");
    rdma(&["link", "add", DEVICE, "type", "rxe", "netdev", "dummy0"]);
    let again = rail(None);
    again.register(here.clone()).unwrap();
    let (from, to) = pair(&again, &again);
    let mut source = here.slot(0);
    source.fill(1);
    drop((source, from, to));
}
