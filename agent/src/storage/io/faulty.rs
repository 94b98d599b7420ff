//! An engine that fails by a script: any other engine, and a list of what goes wrong when. For tests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::{Answers, Engine, FileHandle, Op};

/// Which operations a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Opening.
    Open,
    /// Writing a piece.
    Write,
    /// Reading.
    Read,
    /// Syncing.
    Sync,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is done, and `ENOSPC` said.
    NoSpace,
    /// Nothing is done, and `EIO` said.
    Io,
    /// The first half of a write reaches the disk, and `EIO` is said.
    Torn,
    /// Nothing is done, and success said: a lying disk. Reads leave the slot as it is.
    Lost,
    /// Done, but a bit of this byte (modulo the length) is wrong afterwards.
    FlipBit(u64),
    /// Done after a permit is there to be taken.
    Held(Arc<Semaphore>),
}

struct Rule {
    on: On,
    skip: u32,
    times: u32,
    fault: Fault,
}

/// See the module's documentation.
pub struct FaultyEngine {
    inner: Arc<dyn Engine>,
    script: Mutex<VecDeque<Rule>>,
}

impl std::fmt::Debug for FaultyEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultyEngine({:?})", self.inner)
    }
}

impl FaultyEngine {
    /// Without faults so far.
    pub fn new(inner: Arc<dyn Engine>) -> Arc<FaultyEngine> {
        Arc::new(FaultyEngine { inner, script: Mutex::default() })
    }

    /// After `skip` operations of that kind, the next `times` meet the fault. Rules of one kind follow one another.
    pub fn inject(&self, on: On, skip: u32, times: u32, fault: Fault) {
        self.locked().push_back(Rule { on, skip, times, fault });
    }

    /// Forgets all faults that have not happened.
    pub fn heal(&self) {
        self.locked().clear();
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, VecDeque<Rule>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, on: On) -> Option<Fault> {
        let mut script = self.locked();
        let at = script.iter().position(|r| r.on == on)?;
        let rule = &mut script[at];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        let fault = rule.fault.clone();
        rule.times -= 1;
        if rule.times == 0 {
            script.remove(at);
        }
        Some(fault)
    }
}

fn flip(file: &FileHandle, at: u64) -> io::Result<()> {
    let mut byte = [0];
    file.file().read_exact_at(&mut byte, at)?;
    file.file().write_all_at(&[byte[0] ^ 0x10], at)
}

impl Engine for FaultyEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn answers(&self) -> &Answers {
        self.inner.answers()
    }

    fn submit(&self, op: Op) {
        let on = match &op {
            Op::Open { .. } => On::Open,
            Op::Write { .. } => On::Write,
            Op::Read { .. } => On::Read,
            Op::Sync { .. } => On::Sync,
            // The journal's: damage to it is tested on its file.
            Op::Append { .. } => return self.inner.submit(op),
        };
        match self.next(on) {
            None => self.inner.submit(op),
            Some(Fault::Held(gate)) => {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    drop(gate.acquire().await);
                    inner.submit(op);
                });
            }
            Some(fault) => self.spoil(op, fault),
        }
    }
}

impl FaultyEngine {
    fn spoil(&self, op: Op, fault: Fault) {
        let error = || match fault {
            Fault::NoSpace => io::Error::from(Errno::NOSPC),
            _ => Errno::IO.into(),
        };
        match (op, fault.clone()) {
            (Op::Open { done, .. }, _) => done.send(Err(error())),
            (Op::Sync { done, .. }, Fault::Lost) => done.send(Ok(())),
            (Op::Sync { done, .. }, _) => done.send(Err(error())),
            (Op::Write { piece, done, .. }, Fault::Lost) => {
                drop(piece);
                done.send(Ok(()));
            }
            (Op::Write { file, offset, piece, done }, Fault::Torn) => {
                let torn = file.file().write_all_at(&piece.bytes()[..piece.len() as usize / 2], offset);
                drop(piece);
                done.send(torn.and_then(|()| Err(error())));
            }
            (Op::Write { file, offset, piece, done }, Fault::FlipBit(at)) => {
                let len = u64::from(piece.len());
                let written = self.inner.write_piece(&file, offset, piece);
                tokio::spawn(async move { done.send(written.await.and_then(|()| flip(&file, offset + at % len))) });
            }
            (Op::Write { piece, done, .. }, _) => {
                drop(piece);
                done.send(Err(error()));
            }
            (Op::Read { slot, done, .. }, Fault::Lost) => done.send(Ok(slot)),
            (Op::Read { file, offset, len, slot, done }, Fault::FlipBit(at)) => {
                let read = self.inner.read_into(&file, offset, len, slot);
                tokio::spawn(async move {
                    done.send(read.await.map(|mut slot| {
                        slot[(at % u64::from(len)) as usize] ^= 0x10;
                        slot
                    }));
                });
            }
            (Op::Read { slot, done, .. }, _) => {
                drop(slot);
                done.send(Err(error()));
            }
            (op @ Op::Append { .. }, _) => self.inner.submit(op),
        }
    }
}
