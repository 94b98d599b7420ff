//! Blocking calls on a few threads of its own. Works everywhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Answers, Engine, FileHandle, Op, WritePlan, advance, forget_cached, is_direct_refusal, read_plan};
use crate::buffers::Slot;
use crate::limits::BLOCKING_JOBS_MAX;
use crate::piece::Verified;

#[derive(Debug, Default)]
struct Queue {
    ops: VecDeque<Op>,
    /// Threads that wait for an operation, those included that are about to.
    idle: usize,
    threads: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    given: Condvar,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Op> {
        let mut queue = self.locked();
        loop {
            if let Some(op) = queue.ops.pop_front() {
                queue.idle -= 1;
                return Some(op);
            }
            if queue.closed {
                return None;
            }
            queue = self.given.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn serve(&self) {
        while let Some(op) = self.next() {
            carry_out(op);
            self.locked().idle += 1;
        }
    }
}

/// See the module's documentation. Threads are started when they are needed, and end, after what is waiting, when
/// the engine is dropped. What waits owns its buffers, so the arena bounds the queue.
#[derive(Debug)]
pub struct BlockingEngine {
    shared: Arc<Shared>,
    answers: Answers,
}

impl BlockingEngine {
    /// An engine without threads yet.
    #[allow(clippy::new_without_default)] // making one is a choice
    pub fn new() -> BlockingEngine {
        BlockingEngine { shared: Arc::default(), answers: Answers::default() }
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new().name("millstream-io".into()).spawn(move || shared.serve()).map(drop)
    }
}

impl Engine for BlockingEngine {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn answers(&self) -> &Answers {
        &self.answers
    }

    fn submit(&self, op: Op) {
        let mut queue = self.shared.locked();
        queue.ops.push_back(op);
        if queue.ops.len() > queue.idle && queue.threads < BLOCKING_JOBS_MAX {
            match self.start_thread() {
                Ok(()) => {
                    queue.threads += 1;
                    queue.idle += 1;
                }
                // The threads there are will come to it.
                Err(error) if queue.threads > 0 => tracing::warn!(%error, "cannot start another thread for the disk"),
                Err(error) => {
                    tracing::error!(%error, "cannot start a thread for the disk");
                    queue.ops.clear();
                }
            }
        }
        drop(queue);
        self.shared.given.notify_one();
    }
}

impl Drop for BlockingEngine {
    fn drop(&mut self) {
        self.shared.locked().closed = true;
        self.shared.given.notify_all();
    }
}

fn carry_out(op: Op) {
    match op {
        Op::Open { dir, path, purpose, done } => done.send(FileHandle::open(&dir, &path, purpose)),
        Op::Write { file, offset, piece, done } => {
            let result = write(&file, offset, &piece);
            drop(piece); // whoever is told may want its buffer
            done.send(result);
        }
        Op::Read { file, offset, len, slot, done } => done.send(read(&file, offset, len, slot)),
        Op::Append { file, offset, bytes, done } => {
            let result = file.file().write_all_at(&bytes, offset);
            done.send((result, bytes));
        }
        Op::Sync { file, done } => done.send(file.file().sync_all()),
    }
}

fn write(file: &FileHandle, offset: u64, piece: &Verified) -> io::Result<()> {
    let plan = WritePlan::new(file, offset, piece)?;
    let bytes = &piece.padded()[..plan.len];
    match file.direct().filter(|_| plan.direct) {
        Some(direct) => match write_all(direct, bytes, offset, true) {
            Err(e) if is_direct_refusal(&e) => {
                file.refuse_direct();
                write_all(file.file(), piece.bytes(), offset, false)
            }
            Ok(()) if plan.cut => file.file().set_len(file.len()),
            other => other,
        },
        // Also when another write found out, just now, that direct ones are refused.
        None => write_all(file.file(), piece.bytes(), offset, false),
    }
}

fn write_all(file: &File, bytes: &[u8], offset: u64, direct: bool) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(n) => {
                done = advance(done, n, bytes.len(), direct).ok_or(io::ErrorKind::WriteZero)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read(file: &FileHandle, offset: u64, len: u32, mut slot: Slot) -> io::Result<Slot> {
    let (direct, wanted) = read_plan(file, offset, len, &slot)?;
    if let Some(direct) = file.direct().filter(|_| direct) {
        match read_all(direct, &mut slot[..wanted], len as usize, offset, true) {
            Err(e) if is_direct_refusal(&e) => file.refuse_direct(),
            other => return other.map(|()| slot),
        }
    }
    forget_cached(file.file(), offset, len);
    read_all(file.file(), &mut slot[..len as usize], len as usize, offset, false)?;
    Ok(slot)
}

fn read_all(file: &File, into: &mut [u8], needed: usize, offset: u64, direct: bool) -> io::Result<()> {
    let (mut done, total) = (0, into.len());
    while done < needed {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(n) if done + n >= needed => return Ok(()),
            Ok(n) => {
                done = advance(done, n, total, direct).ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
