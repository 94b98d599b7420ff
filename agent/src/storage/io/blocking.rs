//! Blocking calls on tokio's blocking threads, a bounded number at a time. Works everywhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{Engine, FileHandle, WritePlan, advance, forget_cached, is_direct_refusal, read_plan, run_blocking};
use crate::buffers::Slot;
use crate::limits::BLOCKING_JOBS_MAX;
use crate::piece::Verified;

/// See the module's documentation.
#[derive(Debug)]
pub struct BlockingEngine {
    jobs: Arc<Semaphore>,
}

impl BlockingEngine {
    /// An engine; it needs a tokio runtime when it is used.
    #[allow(clippy::new_without_default)] // making one is a choice
    pub fn new() -> BlockingEngine {
        BlockingEngine { jobs: Arc::new(Semaphore::new(BLOCKING_JOBS_MAX)) }
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let permit = self.jobs.clone().acquire_owned().await.map_err(io::Error::other)?;
        run_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
    }
}

#[async_trait]
impl Engine for BlockingEngine {
    fn name(&self) -> &'static str {
        "blocking"
    }

    async fn write_piece(&self, file: &FileHandle, offset: u64, piece: Verified) -> io::Result<()> {
        let file = file.clone();
        self.run(move || write(&file, offset, &piece)).await
    }

    async fn read_into(&self, file: &FileHandle, offset: u64, len: u32, slot: Slot) -> io::Result<Slot> {
        let file = file.clone();
        self.run(move || read(&file, offset, len, slot)).await
    }

    async fn sync(&self, file: &FileHandle) -> io::Result<()> {
        let file = file.file().clone();
        self.run(move || file.sync_all()).await
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
