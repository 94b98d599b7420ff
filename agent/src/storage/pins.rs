//! What must stay: pins, which last, and leases, which end with their holder.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_types::Digest;

use super::dir::Dir;

const FILE: &str = "pins";

/// Who keeps a version here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Nobody.
    Nobody,
    /// A pin.
    Pin,
    /// Processes with a lease, this many.
    Leases(u32),
}

#[derive(Debug, Default)]
struct State {
    pinned: BTreeSet<Digest>,
    leases: HashMap<Digest, u32>,
}

/// Pins and leases of all versions on this node.
#[derive(Debug)]
pub(super) struct Pins {
    dir: Dir,
    state: Arc<Mutex<State>>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pins {
    /// Reads the pins, one digest in hexadecimal per line. Lines that are none are skipped: someone edited the file.
    pub fn open(dir: Dir) -> io::Result<Pins> {
        let bytes = dir.read_file(FILE)?.unwrap_or_default();
        let pinned = String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.trim().parse().ok()).collect();
        let state = State { pinned, leases: HashMap::new() };
        Ok(Pins { dir, state: Arc::new(Mutex::new(state)) })
    }

    /// Sets or clears a pin; it lasts when this returns.
    pub fn set(&self, digest: &Digest, pinned: bool) -> io::Result<()> {
        let mut state = locked(&self.state);
        let mut wanted = state.pinned.clone();
        let changes = if pinned { wanted.insert(*digest) } else { wanted.remove(digest) };
        if changes {
            let text: String = wanted.iter().map(|d| format!("{d}\n")).collect();
            self.dir.replace_file(FILE, text.as_bytes())?;
            state.pinned = wanted;
        }
        Ok(())
    }

    /// Keeps a version until the lease is dropped.
    pub fn lease(&self, digest: &Digest) -> Lease {
        *locked(&self.state).leases.entry(*digest).or_insert(0) += 1;
        Lease { digest: *digest, state: self.state.clone() }
    }

    /// Who keeps it?
    pub fn keeper(&self, digest: &Digest) -> Keeper {
        let state = locked(&self.state);
        match state.leases.get(digest) {
            _ if state.pinned.contains(digest) => Keeper::Pin,
            Some(&leases) => Keeper::Leases(leases),
            None => Keeper::Nobody,
        }
    }
}

/// Keeps a version from being evicted while it lives. Belongs to a connection, so it dies with its process.
#[derive(Debug)]
pub struct Lease {
    digest: Digest,
    state: Arc<Mutex<State>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = locked(&self.state);
        if let Some(count) = state.leases.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                state.leases.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_last_and_leases_do_not() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let pins = Pins::open(dir.clone()).unwrap();
        pins.set(&a, true).unwrap();
        let leases = (pins.lease(&b), pins.lease(&b));
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Pin, Keeper::Leases(2)));
        drop(leases.0);
        assert_eq!(pins.keeper(&b), Keeper::Leases(1));
        drop(leases.1);
        assert_eq!(pins.keeper(&b), Keeper::Nobody);
        let _lease = pins.lease(&b);
        let pins = Pins::open(dir.clone()).unwrap();
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Pin, Keeper::Nobody));
        pins.set(&a, false).unwrap();
        std::fs::write(tmp.path().join(FILE), format!("junk\n{b}\n")).unwrap();
        let pins = Pins::open(dir).unwrap();
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Nobody, Keeper::Pin));
    }
}
