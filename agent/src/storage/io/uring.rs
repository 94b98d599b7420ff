//! io_uring, by tokio-uring on one thread of its own. All of tokio-uring is in this file.
//!
//! Its futures are not `Send`, so operations come through a channel with everything they own: the file, and the
//! buffer that the kernel writes to or reads from. A caller that goes away leaves both with the operation. A fixed
//! number of tasks carries them out, and the ring's own descriptors of a file are kept as long as the file is open,
//! so that an operation costs neither an allocation nor a system call beside its own.
//!
//! This file is one of the walls behind which `unsafe` lives: it tells tokio-uring where a slot's bytes are.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{Mutex, mpsc};
use tokio_uring::buf::{BoundedBuf as _, IoBuf, IoBufMut};

use super::{
    Answers, Engine, FileHandle, Op, WritePlan, advance, forget_cached, is_direct_refusal, read_plan, run_blocking,
};
use crate::buffers::Slot;
use crate::limits::{URING_DEPTH, URING_ENTRIES};
use crate::piece::Verified;

/// What the ring's thread is told.
enum Order {
    /// An operation, and the number under which the ring knows its file.
    Carry(Op, Option<FileNo>),
    /// A file was closed.
    Forget(FileNo),
}

/// A file that is open, by a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileNo(u64);

/// Kept beside an open file: has the ring let go of it when it is closed.
struct Known {
    no: FileNo,
    orders: mpsc::UnboundedSender<Order>,
}

impl Drop for Known {
    fn drop(&mut self) {
        // A ring that has ended has let go of everything.
        let _ = self.orders.send(Order::Forget(self.no));
    }
}

/// See the module's documentation. The thread ends, after what is in flight, when the engine is dropped and its files
/// are closed. What waits for the ring owns its buffers, so the arena bounds the queue.
#[derive(Debug)]
pub struct UringEngine {
    orders: mpsc::UnboundedSender<Order>,
    next_file: AtomicU64,
    answers: Answers,
}

impl UringEngine {
    /// Sets a ring up on a new thread.
    ///
    /// # Errors
    /// What the kernel says: containers often refuse with `EPERM`, old kernels with `ENOSYS`.
    pub fn start() -> io::Result<UringEngine> {
        let (orders, queue) = mpsc::unbounded_channel();
        let (started, result) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("millstream-uring".into()).spawn(move || {
            let mut builder = tokio_uring::builder();
            match tokio_uring::Runtime::new(builder.entries(URING_ENTRIES)) {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    runtime.block_on(serve(queue));
                }
                Err(e) => drop(started.send(Err(e))),
            }
        })?;
        result.recv().map_err(io::Error::other)??;
        Ok(UringEngine { orders, next_file: AtomicU64::new(0), answers: Answers::default() })
    }

    /// The number of a file, given when it is first used. `None`: it is another engine's.
    fn known(&self, file: &FileHandle) -> Option<FileNo> {
        let new = || Known { no: FileNo(self.next_file.fetch_add(1, Relaxed)), orders: self.orders.clone() };
        let known = file.keep(new)?;
        known.orders.same_channel(&self.orders).then_some(known.no)
    }
}

impl Engine for UringEngine {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn answers(&self) -> &Answers {
        &self.answers
    }

    fn submit(&self, op: Op) {
        let file = match op {
            // The ring could do it, but not the checks that come with it.
            Op::Open { dir, path, purpose, done } => {
                let open = run_blocking(move || FileHandle::open(&dir, &path, purpose));
                tokio::spawn(async move { done.send(open.await) });
                return;
            }
            Op::Write { ref file, .. }
            | Op::Read { ref file, .. }
            | Op::Append { ref file, .. }
            | Op::Sync { ref file, .. } => self.known(file),
        };
        // A thread that is gone drops the operation, which is an answer.
        let _ = self.orders.send(Order::Carry(op, file));
    }
}

/// The ring's descriptors of open files: of the file itself, and of the one past the page cache.
#[derive(Default)]
struct Files(RefCell<HashMap<(FileNo, bool), Rc<tokio_uring::fs::File>>>);

impl Files {
    /// tokio-uring closes the descriptors it is given, so it is given a duplicate: once for a known file.
    fn of(&self, no: Option<FileNo>, file: &File, direct: bool) -> io::Result<Rc<tokio_uring::fs::File>> {
        if let Some(no) = no
            && let Some(known) = self.0.borrow().get(&(no, direct))
        {
            return Ok(known.clone());
        }
        let ring = Rc::new(tokio_uring::fs::File::from_std(file.try_clone()?));
        if let Some(no) = no {
            self.0.borrow_mut().insert((no, direct), ring.clone());
        }
        Ok(ring)
    }

    fn forget(&self, no: FileNo) {
        let mut files = self.0.borrow_mut();
        files.remove(&(no, false));
        files.remove(&(no, true));
    }
}

async fn serve(queue: mpsc::UnboundedReceiver<Order>) {
    let (queue, files) = (Rc::new(Mutex::new(queue)), Rc::new(Files::default()));
    let tasks: Vec<_> = (0..URING_DEPTH)
        .map(|_| {
            let (queue, files) = (queue.clone(), files.clone());
            tokio_uring::spawn(async move {
                // One waits for the next order, the others for their turn; the lock is let go before the work.
                while let Some(order) = next(&queue).await {
                    match order {
                        Order::Carry(op, no) => carry_out(op, no, &files).await,
                        Order::Forget(no) => files.forget(no),
                    }
                }
            })
        })
        .collect();
    // The ring must not go while the kernel still writes to slots.
    for task in tasks {
        let _ = task.await;
    }
}

async fn next(queue: &Mutex<mpsc::UnboundedReceiver<Order>>) -> Option<Order> {
    queue.lock().await.recv().await
}

async fn carry_out(op: Op, no: Option<FileNo>, files: &Files) {
    match op {
        Op::Write { file, offset, piece, done } => done.send(write(&file, no, files, offset, piece).await),
        Op::Read { file, offset, len, slot, done } => done.send(read(&file, no, files, offset, len, slot).await),
        Op::Append { file, offset, bytes, done } => {
            done.send(match files.of(no, file.file(), false) {
                Ok(ring) => ring.write_all_at(bytes, offset).await,
                Err(e) => (Err(e), bytes),
            });
        }
        Op::Sync { file, done } => {
            let synced = match files.of(no, file.file(), false) {
                Ok(ring) => ring.sync_all().await,
                Err(e) => Err(e),
            };
            done.send(synced);
        }
        // Done before it came here.
        Op::Open { dir, path, purpose, done } => done.send(FileHandle::open(&dir, &path, purpose)),
    }
}

/// A piece as the kernel reads it: `len` bytes, padding included or not.
struct WriteBuf {
    piece: Verified,
    len: usize,
}

// SAFETY: a verified piece lies in its slot, which neither moves nor changes while any clone of it lives, and `len`
// is at most the length of `padded()` (made in `WritePlan`).
unsafe impl IoBuf for WriteBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.piece.padded().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

async fn write(file: &FileHandle, no: Option<FileNo>, files: &Files, offset: u64, piece: Verified) -> io::Result<()> {
    let plan = WritePlan::new(file, offset, &piece)?;
    if let Some(direct) = file.direct().filter(|_| plan.direct) {
        let ring = files.of(no, direct, true)?;
        match write_all(&ring, WriteBuf { piece: piece.clone(), len: plan.len }, offset, true).await {
            Err(e) if is_direct_refusal(&e) => file.refuse_direct(),
            Ok(()) if plan.cut => return file.file().set_len(file.len()),
            other => return other,
        }
    }
    let len = piece.len() as usize;
    let ring = files.of(no, file.file(), false)?;
    write_all(&ring, WriteBuf { piece, len }, offset, false).await
}

async fn write_all(file: &tokio_uring::fs::File, mut buf: WriteBuf, offset: u64, direct: bool) -> io::Result<()> {
    let (mut done, total) = (0, buf.len);
    while done < total {
        let (result, slice) = file.write_at(buf.slice(done..), offset + done as u64).submit().await;
        buf = slice.into_inner();
        match result {
            Ok(n) => done = advance(done, n, total, direct).ok_or(io::ErrorKind::WriteZero)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A slot as the kernel writes to it: its first `len` bytes.
struct ReadBuf {
    slot: Slot,
    len: usize,
}

// SAFETY: a slot lies in the arena, which does not move, belongs to this value alone, and is always initialised
// (anonymous memory is zeroed); `len` is at most its capacity (checked in `read_plan`).
unsafe impl IoBuf for ReadBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.slot.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as for `IoBuf`; the pointer comes from `&mut`. Nothing to do for `set_init`: all bytes are initialised.
unsafe impl IoBufMut for ReadBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.slot.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

async fn read(
    file: &FileHandle,
    no: Option<FileNo>,
    files: &Files,
    offset: u64,
    len: u32,
    slot: Slot,
) -> io::Result<Slot> {
    let (direct, wanted) = read_plan(file, offset, len, &slot)?;
    let mut buf = ReadBuf { slot, len: wanted };
    if let Some(direct) = file.direct().filter(|_| direct) {
        let (result, back) = read_all(&*files.of(no, direct, true)?, buf, len as usize, offset, true).await;
        match result {
            Err(e) if is_direct_refusal(&e) => file.refuse_direct(),
            other => return other.map(|()| back.slot),
        }
        buf = back;
    }
    forget_cached(file.file(), offset, len);
    buf.len = len as usize;
    let (result, back) = read_all(&*files.of(no, file.file(), false)?, buf, len as usize, offset, false).await;
    result.map(|()| back.slot)
}

async fn read_all(
    file: &tokio_uring::fs::File,
    mut buf: ReadBuf,
    needed: usize,
    offset: u64,
    direct: bool,
) -> (io::Result<()>, ReadBuf) {
    let (mut done, total) = (0, buf.len);
    while done < needed {
        let (result, slice) = file.read_at(buf.slice(done..), offset + done as u64).await;
        buf = slice.into_inner();
        match result {
            Ok(n) if done + n >= needed => break,
            Ok(n) => match advance(done, n, total, direct) {
                Some(next) => done = next,
                None => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
            },
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (Err(e), buf),
        }
    }
    (Ok(()), buf)
}
