//! A file that only grows: appends of many tasks are written together, and a failed write leaves no torn middle.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use super::dir::Dir;
use super::io::{Answer, Engine, FileHandle, run_blocking};
use crate::limits::LOG_PENDING_BYTES_MAX;

/// An append-only file of records. The reader stops at the first bad record, so order and wholeness matter here,
/// and lasting writes do not: what is lost in a crash is found missing and checked again.
#[derive(Debug)]
pub(super) struct AppendLog {
    file: FileHandle,
    pending: Mutex<Pending>,
    writer: tokio::sync::Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Bytes ever appended.
    end: u64,
}

/// The one who writes holds this.
#[derive(Debug)]
struct Writer {
    /// Bytes ever written, in the count of `Pending::end`.
    end: u64,
    /// Length of the file in bytes.
    file_len: u64,
    /// A batch that is being written. Whoever ordered it may have gone away; the next writer waits for it first.
    batch: Option<Batch>,
    /// The last batch's buffer, to be used again.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Batch {
    /// Whether it is written, and its buffer.
    answer: Answer<(io::Result<()>, Vec<u8>)>,
    /// Where it ends, in the count of `Pending::end`.
    end: u64,
}

impl AppendLog {
    /// Opens the log for appending after `good_len` bytes; what follows them is cut off. Blocks.
    pub fn open(dir: &Dir, name: &str, good_len: u64) -> io::Result<AppendLog> {
        let file = dir.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
        file.set_len(good_len)?;
        let writer = Writer { end: 0, file_len: good_len, batch: None, spare: Vec::new() };
        Ok(AppendLog {
            file: FileHandle::growing(file),
            pending: Mutex::default(),
            writer: tokio::sync::Mutex::new(writer),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one record, which `encode` adds to the buffer. Returns when it is written (not synced).
    pub async fn append(&self, engine: &dyn Engine, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mine = {
            let mut pending = self.pending();
            if pending.bytes.len() > LOG_PENDING_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "records wait for a disk that fails"));
            }
            let before = pending.bytes.len();
            encode(&mut pending.bytes);
            pending.end += (pending.bytes.len() - before) as u64;
            pending.end
        };
        let mut writer = self.writer.lock().await;
        if writer.batch.is_some() {
            // Of one who went away. If it failed, its records are in the next batch.
            let _ = self.finish(&mut writer).await;
        }
        if writer.end >= mine {
            return Ok(()); // another task's batch had it
        }
        let mut batch = std::mem::take(&mut writer.spare);
        let end = {
            let mut pending = self.pending();
            std::mem::swap(&mut pending.bytes, &mut batch);
            pending.end
        };
        writer.batch = Some(Batch { answer: engine.append(&self.file, writer.file_len, batch), end });
        self.finish(&mut writer).await
    }

    /// Waits for the batch that is being written.
    async fn finish(&self, writer: &mut Writer) -> io::Result<()> {
        let Some(Batch { answer, end }) = &mut writer.batch else { return Ok(()) };
        let (end, (result, mut bytes)) = (*end, answer.await);
        writer.batch = None;
        match result {
            Ok(()) => {
                writer.file_len += bytes.len() as u64;
                writer.end = end;
                bytes.clear();
                writer.spare = bytes;
                Ok(())
            }
            Err(e) => {
                // Nothing torn stays in the middle, and nobody's record is lost: each of them tries again.
                let _ = self.file.file().set_len(writer.file_len);
                let mut pending = self.pending();
                bytes.append(&mut pending.bytes);
                pending.bytes = bytes;
                Err(e)
            }
        }
    }

    /// Makes the log these bytes, by a crash all or nothing. Nothing may be appended meanwhile.
    pub async fn replace(&mut self, dir: &Dir, name: &'static str, bytes: Vec<u8>) -> io::Result<()> {
        let dir = dir.clone();
        let new = run_blocking(move || {
            dir.replace_file(name, &bytes)?;
            AppendLog::open(&dir, name, bytes.len() as u64)
        });
        *self = new.await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::io::blocking::BlockingEngine;
    use std::fs::File;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_of_many_tasks_are_all_there_and_whole() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("log"), b"goodtorn").unwrap();
        let engine = Arc::new(BlockingEngine::new());
        let log = Arc::new(AppendLog::open(&Dir::open(tmp.path()).unwrap(), "log", 4).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..200u8 {
            let (log, engine) = (log.clone(), engine.clone());
            tasks.spawn(async move { log.append(&*engine, |out| out.extend([i; 3])).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        let bytes = std::fs::read(tmp.path().join("log")).unwrap();
        assert_eq!(&bytes[..4], b"good");
        let mut seen: Vec<u8> =
            bytes[4..].chunks(3).inspect(|c| assert!(c[0] == c[1] && c[1] == c[2])).map(|c| c[0]).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<u8>>());
    }

    #[tokio::test]
    async fn what_follows_the_good_part_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("log"), b"good, bad, stale").unwrap();
        let log = AppendLog::open(&Dir::open(tmp.path()).unwrap(), "log", 4).unwrap();
        log.append(&BlockingEngine::new(), |out| out.extend(b"!")).await.unwrap();
        assert_eq!(std::fs::read(tmp.path().join("log")).unwrap(), b"good!");
    }

    #[tokio::test]
    async fn a_failed_batch_is_written_by_the_next() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let mut log = AppendLog::open(&dir, "log", 0).unwrap();
        let good = log.file.clone();
        log.file = FileHandle::growing(File::open(tmp.path().join("log")).unwrap()); // not for writing
        assert!(log.append(&BlockingEngine::new(), |out| out.extend(b"one")).await.is_err());
        log.file = good;
        log.append(&BlockingEngine::new(), |out| out.extend(b"two")).await.unwrap();
        assert_eq!(std::fs::read(tmp.path().join("log")).unwrap(), b"onetwo");
    }

    #[tokio::test]
    async fn one_who_goes_away_midway_harms_nobody() {
        let tmp = tempfile::tempdir().unwrap();
        let engine = BlockingEngine::new();
        let log = AppendLog::open(&Dir::open(tmp.path()).unwrap(), "log", 0).unwrap();
        for n in 0..100u8 {
            // Dropped after its first poll: its record is written, or in the next batch.
            let mut appending = Box::pin(log.append(&engine, |out| out.extend([b'a', n])));
            let _ = futures::poll!(&mut appending);
            drop(appending);
            log.append(&engine, |out| out.extend([b'b', n])).await.unwrap();
        }
        let expected: Vec<u8> = (0..100).flat_map(|n| [b'a', n, b'b', n]).collect();
        assert_eq!(std::fs::read(tmp.path().join("log")).unwrap(), expected);
    }
}
