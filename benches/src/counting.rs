//! An allocator that counts, by the role of the thread that asks, and says from where when it is told to.
//!
//! A binary installs it with `#[global_allocator] static ALLOCATOR: Counting = Counting;`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Whose thread it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Threads that nobody named: those that the agents start for their disks.
    Storage,
    /// The bench itself: not counted.
    Harness,
    /// The agent that serves.
    Sender,
    /// The agent that fetches.
    Receiver,
}

const ROLES: usize = 4;
static COUNTS: [AtomicU64; ROLES] = [const { AtomicU64::new(0) }; ROLES];
static TRACING: AtomicBool = AtomicBool::new(false);
static SITES: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Storage) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Says what this thread is for.
pub fn enter(role: Role) {
    ROLE.set(role);
}

/// Allocations so far of all threads of a role.
pub fn count(role: Role) -> u64 {
    COUNTS[role as usize].load(Relaxed)
}

/// From now on, or no longer, where each allocation comes from is noted. Slow.
pub fn trace(on: bool) {
    TRACING.store(on, Relaxed);
}

/// The places that allocated most while traced.
pub fn sites() -> Vec<(u64, String)> {
    let sites = SITES.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    let mut sites: Vec<_> = sites.into_iter().map(|(site, n)| (n, site)).collect();
    sites.sort_by(|a, b| b.cmp(a));
    sites
}

fn note(role: Role) {
    let whole = Backtrace::force_capture().to_string();
    // Frames of this workspace and of the libraries right above them; the allocator's own come first.
    let frames = whole.lines().filter(|line| line.contains(": ") && !line.contains("counting::"));
    let frames: Vec<&str> = frames.skip(2).take(24).map(str::trim).collect();
    let site = format!("{role:?}\n    {}", frames.join("\n    "));
    let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
    *sites.get_or_insert_with(HashMap::new).entry(site).or_insert(0) += 1;
}

fn counted() {
    // A thread that is ending has no role any more.
    let role = ROLE.try_with(Cell::get).unwrap_or(Role::Harness);
    // Noting where allocations come from allocates too.
    if BUSY.try_with(Cell::get).unwrap_or(true) {
        return;
    }
    COUNTS[role as usize].fetch_add(1, Relaxed);
    if role != Role::Harness && TRACING.load(Relaxed) {
        BUSY.set(true);
        note(role);
        BUSY.set(false);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        counted();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        counted();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        counted();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}
