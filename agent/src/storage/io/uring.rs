//! io_uring, by tokio-uring on one thread of its own. All of tokio-uring is in this file.
//!
//! Its futures are not `Send`, so operations come through a channel with everything they own: the file, and the
//! buffer that the kernel writes to or reads from. A caller that goes away leaves both with the operation.
//!
//! This file is one of the walls behind which `unsafe` lives: it tells tokio-uring where a slot's bytes are.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_uring::buf::{BoundedBuf as _, IoBuf, IoBufMut};

use super::{Engine, FileHandle, WritePlan, advance, forget_cached, is_direct_refusal, read_plan};
use crate::buffers::Slot;
use crate::limits::{URING_DEPTH, URING_ENTRIES, URING_WAITING_MAX};
use crate::piece::Verified;

enum Op {
    Write { file: FileHandle, offset: u64, piece: Verified, done: oneshot::Sender<io::Result<()>> },
    Read { file: FileHandle, offset: u64, len: u32, slot: Slot, done: oneshot::Sender<io::Result<Slot>> },
    Sync { file: FileHandle, done: oneshot::Sender<io::Result<()>> },
}

/// See the module's documentation. The thread ends, after what is in flight, when the engine is dropped.
#[derive(Debug)]
pub struct UringEngine {
    ops: mpsc::Sender<Op>,
}

impl UringEngine {
    /// Sets a ring up on a new thread.
    ///
    /// # Errors
    /// What the kernel says: containers often refuse with `EPERM`, old kernels with `ENOSYS`.
    pub fn start() -> io::Result<UringEngine> {
        let (ops, queue) = mpsc::channel(URING_WAITING_MAX);
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
        Ok(UringEngine { ops })
    }

    async fn run<T>(&self, op: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Op) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        self.ops.send(op(done)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}

fn stopped() -> io::Error {
    io::Error::other("the io_uring thread stopped")
}

#[async_trait]
impl Engine for UringEngine {
    fn name(&self) -> &'static str {
        "uring"
    }

    async fn write_piece(&self, file: &FileHandle, offset: u64, piece: Verified) -> io::Result<()> {
        let file = file.clone();
        self.run(|done| Op::Write { file, offset, piece, done }).await
    }

    async fn read_into(&self, file: &FileHandle, offset: u64, len: u32, slot: Slot) -> io::Result<Slot> {
        let file = file.clone();
        self.run(|done| Op::Read { file, offset, len, slot, done }).await
    }

    async fn sync(&self, file: &FileHandle) -> io::Result<()> {
        let file = file.clone();
        self.run(|done| Op::Sync { file, done }).await
    }
}

async fn serve(mut queue: mpsc::Receiver<Op>) {
    let depth = Arc::new(Semaphore::new(URING_DEPTH as usize));
    while let Some(op) = queue.recv().await {
        let Ok(permit) = depth.clone().acquire_owned().await else { return };
        tokio_uring::spawn(async move {
            carry_out(op).await;
            drop(permit);
        });
    }
    // The ring must not go while the kernel still writes to slots.
    let _ = depth.acquire_many(URING_DEPTH).await;
}

async fn carry_out(op: Op) {
    // A caller that went away does not want the answer.
    match op {
        Op::Write { file, offset, piece, done } => drop(done.send(write(&file, offset, piece).await)),
        Op::Read { file, offset, len, slot, done } => drop(done.send(read(&file, offset, len, slot).await)),
        Op::Sync { file, done } => {
            let synced = match ring_file(file.file()) {
                Ok(file) => file.sync_all().await,
                Err(e) => Err(e),
            };
            drop(done.send(synced));
        }
    }
}

/// tokio-uring closes the descriptors it is given, so it is given a duplicate.
fn ring_file(file: &File) -> io::Result<tokio_uring::fs::File> {
    Ok(tokio_uring::fs::File::from_std(file.try_clone()?))
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

async fn write(file: &FileHandle, offset: u64, piece: Verified) -> io::Result<()> {
    let plan = WritePlan::new(file, offset, &piece)?;
    if let Some(direct) = file.direct().filter(|_| plan.direct) {
        let ring = ring_file(direct)?;
        match write_all(&ring, WriteBuf { piece: piece.clone(), len: plan.len }, offset, true).await {
            Err(e) if is_direct_refusal(&e) => file.refuse_direct(),
            Ok(()) if plan.cut => return file.file().set_len(file.len()),
            other => return other,
        }
    }
    let len = piece.len() as usize;
    write_all(&ring_file(file.file())?, WriteBuf { piece, len }, offset, false).await
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

async fn read(file: &FileHandle, offset: u64, len: u32, slot: Slot) -> io::Result<Slot> {
    let (direct, wanted) = read_plan(file, offset, len, &slot)?;
    let mut buf = ReadBuf { slot, len: wanted };
    if let Some(direct) = file.direct().filter(|_| direct) {
        let (result, back) = read_all(&ring_file(direct)?, buf, len as usize, offset, true).await;
        match result {
            Err(e) if is_direct_refusal(&e) => file.refuse_direct(),
            other => return other.map(|()| back.slot),
        }
        buf = back;
    }
    forget_cached(file.file(), offset, len);
    buf.len = len as usize;
    let (result, back) = read_all(&ring_file(file.file())?, buf, len as usize, offset, false).await;
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
