//! An engine that fails by a script: any other engine, and a list of what goes wrong when. For tests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::{Engine, FileHandle, Purpose};
use crate::buffers::Slot;
use crate::piece::Verified;
use crate::storage::dir::Dir;

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

#[async_trait]
impl Engine for FaultyEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn open(&self, dir: &Dir, path: &str, purpose: Purpose) -> io::Result<FileHandle> {
        match self.next(On::Open) {
            Some(Fault::NoSpace) => return Err(Errno::NOSPC.into()),
            Some(Fault::Held(gate)) => drop(gate.acquire().await),
            Some(_) => return Err(Errno::IO.into()),
            None => {}
        }
        self.inner.open(dir, path, purpose).await
    }

    async fn write_piece(&self, file: &FileHandle, offset: u64, piece: Verified) -> io::Result<()> {
        match self.next(On::Write) {
            Some(Fault::NoSpace) => return Err(Errno::NOSPC.into()),
            Some(Fault::Io) => return Err(Errno::IO.into()),
            Some(Fault::Torn) => {
                file.file().write_all_at(&piece.bytes()[..piece.len() as usize / 2], offset)?;
                return Err(Errno::IO.into());
            }
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::FlipBit(at)) => {
                let len = u64::from(piece.len());
                self.inner.write_piece(file, offset, piece).await?;
                return flip(file, offset + at % len);
            }
            Some(Fault::Held(gate)) => drop(gate.acquire().await),
            None => {}
        }
        self.inner.write_piece(file, offset, piece).await
    }

    async fn read_into(&self, file: &FileHandle, offset: u64, len: u32, slot: Slot) -> io::Result<Slot> {
        match self.next(On::Read) {
            Some(Fault::NoSpace | Fault::Io | Fault::Torn) => return Err(Errno::IO.into()),
            Some(Fault::Lost) => return Ok(slot),
            Some(Fault::FlipBit(at)) => {
                let mut slot = self.inner.read_into(file, offset, len, slot).await?;
                slot[(at % u64::from(len)) as usize] ^= 0x10;
                return Ok(slot);
            }
            Some(Fault::Held(gate)) => drop(gate.acquire().await),
            None => {}
        }
        self.inner.read_into(file, offset, len, slot).await
    }

    async fn sync(&self, file: &FileHandle) -> io::Result<()> {
        match self.next(On::Sync) {
            Some(Fault::NoSpace) => return Err(Errno::NOSPC.into()),
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Held(gate)) => drop(gate.acquire().await),
            Some(_) => return Err(Errno::IO.into()),
            None => {}
        }
        self.inner.sync(file).await
    }
}
