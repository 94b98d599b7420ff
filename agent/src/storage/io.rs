//! How bytes get to the disk and back: one trait, two engines that behave alike, and one that fails on purpose.
//!
//! Participants: the store opens files and orders writes, reads and syncs; [`uring`] and [`blocking`] carry them out.
//! Goals: the operation in flight owns its buffer and its file, so that a caller may vanish at any time; O_DIRECT
//! from the arena where the file system takes it, buffered where it does not, per file and counted; short transfers
//! are never seen by the caller. Non-goals: knowing what the bytes are.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use crate::buffers::{Arena, Slot};
use crate::limits::IO_ALIGN;
use crate::piece::{Unverified, Verified};

pub mod blocking;
pub mod faulty;
mod op;
pub mod uring;

pub use op::{Answer, Answers, Done, Op};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reading a file that is there.
    Read,
    /// Writing and reading; made when it is not there. It gets `len` bytes and the disk space for them.
    Write {
        /// Its length in the end.
        len: u64,
    },
}

/// An open file: as it is, and past the page cache where that is possible. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FileHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Arc<File>,
    direct: Option<File>,
    /// The file system took O_DIRECT when opening, but not when writing.
    refused: AtomicBool,
    len: u64,
    /// What the engine keeps beside it; goes with it.
    kept: OnceLock<Kept>,
}

/// Something of an engine's that lives as long as a file is open.
struct Kept(Box<dyn Any + Send + Sync>);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl FileHandle {
    /// Opens `path` below `dir`. Blocks.
    ///
    /// # Errors
    /// Those of the system; `StorageFull` when there is no room for it.
    pub fn open(dir: &Dir, path: &str, purpose: Purpose) -> io::Result<FileHandle> {
        let flags = match purpose {
            Purpose::Read => OFlags::RDONLY,
            Purpose::Write { .. } => OFlags::RDWR | OFlags::CREATE,
        };
        let file = match dir.open_file(path, flags) {
            // Made read-only by a seal that did not get to its end.
            Err(e) if flags.contains(OFlags::RDWR) && e.kind() == io::ErrorKind::PermissionDenied => {
                let read_only = dir.open_file(path, OFlags::RDONLY)?;
                rustix::fs::fchmod(&read_only, rustix::fs::Mode::from_raw_mode(0o644))?;
                dir.open_file(path, flags)?
            }
            other => other?,
        };
        let mut len = file.metadata()?.len();
        if let Purpose::Write { len: wanted } = purpose {
            if len != wanted {
                allocate(&file, wanted)?;
            }
            len = wanted;
        }
        let direct = match dir.open_file(path, flags.difference(OFlags::CREATE) | OFlags::DIRECT) {
            Ok(direct) => Some(direct),
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::OPNOTSUPP)) => None,
            Err(e) => return Err(e),
        };
        Ok(FileHandle(Arc::new(Inner {
            file: Arc::new(file),
            direct,
            refused: AtomicBool::new(false),
            len,
            kept: OnceLock::new(),
        })))
    }

    /// A file that grows, through the page cache: for records.
    pub(super) fn growing(file: File) -> FileHandle {
        let (file, refused) = (Arc::new(file), AtomicBool::new(false));
        FileHandle(Arc::new(Inner { file, direct: None, refused, len: u64::MAX, kept: OnceLock::new() }))
    }

    /// The file itself: for sending, syncing, and its attributes.
    pub fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    /// Length in bytes that it has, or will have when it is complete.
    #[allow(clippy::len_without_is_empty)] // a file's length, not a collection's
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Does it bypass the page cache?
    pub fn is_direct(&self) -> bool {
        self.direct().is_some()
    }

    fn direct(&self) -> Option<&File> {
        self.0.direct.as_ref().filter(|_| !self.0.refused.load(Ordering::Relaxed))
    }

    /// What the engine keeps beside the file, made when first asked for. `None`: another engine keeps something.
    fn keep<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.0.kept.get_or_init(|| Kept(Box::new(make()))).0.downcast_ref()
    }

    fn refuse_direct(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }
}

/// Sets the length, and takes the disk space for it at once: a full disk shows here, not in the middle.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len > 0 {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    file.set_len(len)
}

/// Writes and reads pieces. One conformance suite (`tests/storage_io.rs`) holds for every implementation.
///
/// Engines implement [`submit`](Self::submit); the other methods make the operation and its answer, and allocate
/// nothing once as many were under way before.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// `uring` or `blocking`.
    fn name(&self) -> &'static str;

    /// Carries an operation out, sooner or later, and answers. Within a tokio runtime.
    fn submit(&self, op: Op);

    /// Cells for the answers.
    fn answers(&self) -> &Answers;

    /// Opens a file below `dir`.
    ///
    /// # Errors
    /// Those of the system.
    fn open(&self, dir: &Dir, path: &str, purpose: Purpose) -> Answer<io::Result<FileHandle>> {
        let (done, answer) = self.answers().files.pair();
        self.submit(Op::Open { dir: dir.clone(), path: path.to_owned(), purpose, done });
        Answer(answer)
    }

    /// Writes all of a piece at `offset`, or fails. The file keeps its length.
    ///
    /// # Errors
    /// Those of the system; `InvalidInput` when it would end past the file's length.
    fn write_piece(&self, file: &FileHandle, offset: u64, piece: Verified) -> Answer<io::Result<()>> {
        let (done, answer) = self.answers().units.pair();
        self.submit(Op::Write { file: file.clone(), offset, piece, done });
        Answer(answer)
    }

    /// Reads exactly `len` bytes at `offset` into the start of `slot`, from the disk rather than the page cache where
    /// that is possible. What follows them in the slot is undefined.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` when there are not as many. The slot has then gone back to the arena.
    fn read_into(&self, file: &FileHandle, offset: u64, len: u32, slot: Slot) -> Answer<io::Result<Slot>> {
        let (done, answer) = self.answers().slots.pair();
        self.submit(Op::Read { file: file.clone(), offset, len, slot, done });
        Answer(answer)
    }

    /// Writes `bytes` at `offset` through the page cache; the buffer comes back, to be used again.
    ///
    /// # Errors
    /// Those of the system; part of the bytes may be written then.
    fn append(&self, file: &FileHandle, offset: u64, bytes: Vec<u8>) -> Answer<(io::Result<()>, Vec<u8>)> {
        let (done, answer) = self.answers().appends.pair();
        self.submit(Op::Append { file: file.clone(), offset, bytes, done });
        Answer(answer)
    }

    /// Makes everything written to it lasting.
    ///
    /// # Errors
    /// Those of the system. What was written may then be lost even if a later sync succeeds.
    fn sync(&self, file: &FileHandle) -> Answer<io::Result<()>> {
        let (done, answer) = self.answers().units.pair();
        self.submit(Op::Sync { file: file.clone(), done });
        Answer(answer)
    }
}

/// Runs something that blocks, off the async threads. It runs to its end also when the caller goes away.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(io::Error::other(e)),
    }
}

/// How to write a piece: past the page cache with padding, or through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WritePlan {
    direct: bool,
    /// Bytes handed to the kernel.
    len: usize,
    /// The padding goes past the end of the file, which is cut back afterwards.
    cut: bool,
}

impl WritePlan {
    fn new(file: &FileHandle, offset: u64, piece: &Verified) -> io::Result<WritePlan> {
        let end = offset.checked_add(u64::from(piece.len())).filter(|&end| end <= file.len());
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "past the end of the file"))?;
        let padded = piece.padded().len();
        let past = offset + padded as u64 > file.len();
        // Padding may only fall where nothing else is: behind the last byte of the file.
        let fits = piece.len() as usize == padded || (past && end == file.len());
        let direct = offset.is_multiple_of(IO_ALIGN as u64) && fits && file.direct().is_some();
        Ok(if direct {
            WritePlan { direct, len: padded, cut: past }
        } else {
            WritePlan { direct, len: piece.len() as usize, cut: false }
        })
    }
}

/// How to read: whole blocks past the page cache, or what is asked for through it.
fn read_plan(file: &FileHandle, offset: u64, len: u32, slot: &Slot) -> io::Result<(bool, usize)> {
    let direct = offset.is_multiple_of(IO_ALIGN as u64) && file.direct().is_some();
    let wanted = if direct { (len as usize).next_multiple_of(IO_ALIGN) } else { len as usize };
    if wanted > slot.capacity() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the buffer is too short"));
    }
    Ok((direct, wanted))
}

/// Where to go on after `moved` bytes at `done`: direct transfers go on at a block's start. `None`: no way forward.
fn advance(done: usize, moved: usize, total: usize, direct: bool) -> Option<usize> {
    let now = done + moved;
    let now = if direct && now < total { now / IO_ALIGN * IO_ALIGN } else { now };
    (now > done).then_some(now)
}

fn is_direct_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// Drops cached pages, so that a read shows what the disk has. Best effort.
fn forget_cached(file: &File, offset: u64, len: u32) {
    let len = std::num::NonZeroU64::new(u64::from(len));
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// io_uring where it works, else blocking calls.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Blocking calls.
    Blocking,
}

/// Which engine it became, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoChoice {
    /// `uring` or `blocking`.
    pub engine: &'static str,
    /// Why io_uring was wanted and is not used.
    pub fallback: Option<String>,
    /// Why writes go through the page cache, where they do.
    pub buffered: Option<String>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// io_uring was demanded and does not work.
    #[error("io_uring does not work here: {reason}")]
    NoUring {
        /// What the kernel said.
        reason: String,
    },
    /// Not even plain files work.
    #[error("cannot write and read a file in {dir}")]
    Disk {
        /// The data directory.
        dir: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

const PROBE_FILE: &str = ".io-probe";

/// Chooses an engine by writing and reading back a small file in `dir` with it.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(mode: Mode, dir: &Path, arena: &Arc<Arena>) -> Result<(Arc<dyn Engine>, IoChoice), ProbeError> {
    let disk = |source| ProbeError::Disk { dir: dir.display().to_string(), source };
    let data = Dir::open(dir).map_err(disk)?;
    let mut fallback = None;
    if mode != Mode::Blocking {
        let tried = match uring::UringEngine::start() {
            Ok(engine) => try_out(&engine, &data, arena).await.map(|direct| (engine, direct)),
            Err(e) => Err(e),
        };
        match tried {
            Ok((engine, direct)) => return Ok(chosen(Arc::new(engine), direct, None)),
            Err(e) if mode == Mode::Uring => return Err(ProbeError::NoUring { reason: e.to_string() }),
            Err(e) => fallback = Some(e.to_string()),
        }
    }
    let engine = blocking::BlockingEngine::new();
    let direct = try_out(&engine, &data, arena).await.map_err(disk)?;
    Ok(chosen(Arc::new(engine), direct, fallback))
}

fn chosen(engine: Arc<dyn Engine>, direct: bool, fallback: Option<String>) -> (Arc<dyn Engine>, IoChoice) {
    let buffered = (!direct).then(|| "the file system refuses O_DIRECT".to_owned());
    let choice = IoChoice { engine: engine.name(), fallback, buffered };
    (engine, choice)
}

/// Writes, syncs and reads back one block and a bit. True: past the page cache.
async fn try_out(engine: &dyn Engine, dir: &Dir, arena: &Arc<Arena>) -> io::Result<bool> {
    const LEN: u32 = IO_ALIGN as u32 + 100;
    let mut slot = arena.slot(LEN as usize).await;
    slot[..LEN as usize].fill(0xa5);
    // The probe's own bytes: nobody else's checksum to compare with.
    let (piece, crc) = Unverified::sum(slot, LEN).learn_from_origin();
    let _ = dir.unlink(PROBE_FILE);
    let tried = async {
        let file = engine.open(dir, PROBE_FILE, Purpose::Write { len: u64::from(LEN) }).await?;
        engine.write_piece(&file, 0, piece).await?;
        engine.sync(&file).await?;
        let back = engine.read_into(&file, 0, LEN, arena.slot(LEN as usize).await).await?;
        match Unverified::sum(back, LEN).verify(crc) {
            Ok(_) => Ok(file.is_direct()),
            Err((mismatch, _)) => Err(io::Error::new(io::ErrorKind::InvalidData, mismatch)),
        }
    }
    .await;
    let _ = dir.unlink(PROBE_FILE);
    tried
}
