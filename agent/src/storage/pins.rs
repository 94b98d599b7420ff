//! What must stay: pins, which last, and leases, which end with their holder.

use std::collections::BTreeMap;
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

/// Someone who keeps a version here, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The version.
    pub digest: Digest,
    /// A pin; else a lease.
    pub pin: bool,
    /// Who, in words; empty when they did not say.
    pub by: String,
}

#[derive(Debug, Default)]
struct State {
    /// With the words of whoever set it.
    pinned: BTreeMap<Digest, String>,
    /// By version and number.
    leases: BTreeMap<(Digest, u64), String>,
    next: u64,
}

impl State {
    fn leases(&self, digest: &Digest) -> u32 {
        self.leases.range((*digest, 0)..=(*digest, u64::MAX)).count() as u32
    }
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
    /// Reads the pins, one per line: a digest in hexadecimal, and after it who set it. Lines that are none are
    /// skipped: someone edited the file.
    pub fn open(dir: Dir) -> io::Result<Pins> {
        let bytes = dir.read_file(FILE)?.unwrap_or_default();
        let line = |line: &str| {
            let (digest, by) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            Some((digest.parse().ok()?, by.trim().to_owned()))
        };
        let pinned = String::from_utf8_lossy(&bytes).lines().filter_map(line).collect();
        let state = State { pinned, ..State::default() };
        Ok(Pins { dir, state: Arc::new(Mutex::new(state)) })
    }

    /// Sets or clears a pin; it lasts when this returns. `by`: who wants it, in words, or nobody in particular; a pin
    /// that stands stays with those who set it.
    pub fn set(&self, digest: &Digest, pinned: bool, by: &str) -> io::Result<()> {
        let mut state = locked(&self.state);
        if state.pinned.contains_key(digest) == pinned {
            return Ok(());
        }
        let mut wanted = state.pinned.clone();
        match pinned {
            true => wanted.insert(*digest, by.replace(char::is_control, " ")),
            false => wanted.remove(digest),
        };
        let text: String = wanted.iter().map(|(d, by)| format!("{}\n", format!("{d} {by}").trim_end())).collect();
        self.dir.replace_file(FILE, text.as_bytes())?;
        state.pinned = wanted;
        Ok(())
    }

    /// Keeps a version until the lease is dropped. `by`: who, in words.
    pub fn lease(&self, digest: &Digest, by: &str) -> Lease {
        let mut state = locked(&self.state);
        let number = state.next;
        state.next += 1;
        state.leases.insert((*digest, number), by.to_owned());
        Lease { digest: *digest, number, state: self.state.clone() }
    }

    /// Everyone who keeps something, by version.
    pub fn holders(&self) -> Vec<Holder> {
        let state = locked(&self.state);
        let pins = state.pinned.iter().map(|(&digest, by)| Holder { digest, pin: true, by: by.clone() });
        let leases = state.leases.iter().map(|(&(digest, _), by)| Holder { digest, pin: false, by: by.clone() });
        pins.chain(leases).collect()
    }

    /// Who keeps it?
    pub fn keeper(&self, digest: &Digest) -> Keeper {
        let state = locked(&self.state);
        match state.leases(digest) {
            _ if state.pinned.contains_key(digest) => Keeper::Pin,
            0 => Keeper::Nobody,
            leases => Keeper::Leases(leases),
        }
    }
}

/// Keeps a version from being evicted while it lives. Belongs to a connection, so it dies with its process.
#[derive(Debug)]
pub struct Lease {
    digest: Digest,
    number: u64,
    state: Arc<Mutex<State>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        locked(&self.state).leases.remove(&(self.digest, self.number));
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
        pins.set(&a, true, "ann@login").unwrap();
        let leases = (pins.lease(&b, "p 1"), pins.lease(&b, "p 2"));
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Pin, Keeper::Leases(2)));
        drop(leases.0);
        assert_eq!(pins.keeper(&b), Keeper::Leases(1));
        drop(leases.1);
        assert_eq!(pins.keeper(&b), Keeper::Nobody);
        let _lease = pins.lease(&b, "p 3");
        let held = |digest, pin, by: &str| Holder { digest, pin, by: by.into() };
        assert_eq!(pins.holders(), [held(a, true, "ann@login"), held(b, false, "p 3")]);
        let pins = Pins::open(dir.clone()).unwrap();
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Pin, Keeper::Nobody));
        pins.set(&a, true, "somebody else").unwrap();
        assert_eq!(pins.holders(), [held(a, true, "ann@login")], "over a restart, and with those who set it");
        pins.set(&a, false, "").unwrap();
        std::fs::write(tmp.path().join(FILE), format!("junk\n{b}\n")).unwrap();
        let pins = Pins::open(dir).unwrap();
        assert_eq!((pins.keeper(&a), pins.keeper(&b)), (Keeper::Nobody, Keeper::Pin));
    }
}
