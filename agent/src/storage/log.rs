//! A file that only grows: appends of many tasks are written together, and a failed write leaves no torn middle.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use super::dir::Dir;
use super::io::run_blocking;
use crate::limits::LOG_PENDING_BYTES_MAX;

/// An append-only file of records. The reader stops at the first bad record, so order and wholeness matter here,
/// and lasting writes do not: what is lost in a crash is found missing and checked again.
#[derive(Debug)]
pub(super) struct AppendLog {
    file: Arc<File>,
    pending: Arc<Mutex<Pending>>,
    writer: Arc<tokio::sync::Mutex<Written>>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Bytes ever appended.
    end: u64,
}

#[derive(Debug)]
struct Written {
    /// Bytes ever written, in the count of `Pending::end`.
    end: u64,
    /// Length of the file in bytes.
    file_len: u64,
    /// The last batch's buffer, to be used again.
    spare: Vec<u8>,
}

fn locked(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AppendLog {
    /// Opens the log for appending after `good_len` bytes; what follows them is cut off. Blocks.
    pub fn open(dir: &Dir, name: &str, good_len: u64) -> io::Result<AppendLog> {
        let file = dir.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
        file.set_len(good_len)?;
        let written = Written { end: 0, file_len: good_len, spare: Vec::new() };
        Ok(AppendLog {
            file: Arc::new(file),
            pending: Arc::default(),
            writer: Arc::new(tokio::sync::Mutex::new(written)),
        })
    }

    /// Appends one record, which `encode` adds to the buffer. Returns when it is written (not synced).
    pub async fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mine = {
            let mut pending = locked(&self.pending);
            if pending.bytes.len() > LOG_PENDING_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "records wait for a disk that fails"));
            }
            let before = pending.bytes.len();
            encode(&mut pending.bytes);
            pending.end += (pending.bytes.len() - before) as u64;
            pending.end
        };
        let mut written = self.writer.clone().lock_owned().await;
        if written.end >= mine {
            return Ok(()); // another task's batch had it
        }
        let (file, pending) = (self.file.clone(), self.pending.clone());
        // The guard goes with the work: it ends in order also when the caller goes away.
        run_blocking(move || write_batch(&file, &pending, &mut written)).await
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

fn write_batch(file: &File, pending: &Mutex<Pending>, written: &mut Written) -> io::Result<()> {
    let mut batch = std::mem::take(&mut written.spare);
    let end = {
        let mut pending = locked(pending);
        std::mem::swap(&mut pending.bytes, &mut batch);
        pending.end
    };
    match file.write_all_at(&batch, written.file_len) {
        Ok(()) => {
            written.file_len += batch.len() as u64;
            written.end = end;
            batch.clear();
            written.spare = batch;
            Ok(())
        }
        Err(e) => {
            // Nothing torn stays in the middle, and nobody's record is lost: each of them tries again.
            let _ = file.set_len(written.file_len);
            let mut pending = locked(pending);
            batch.append(&mut pending.bytes);
            pending.bytes = batch;
            Err(e)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_of_many_tasks_are_all_there_and_whole() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("log"), b"goodtorn").unwrap();
        let log = Arc::new(AppendLog::open(&Dir::open(tmp.path()).unwrap(), "log", 4).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..200u8 {
            let log = log.clone();
            tasks.spawn(async move { log.append(|out| out.extend([i; 3])).await });
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
        log.append(|out| out.extend(b"!")).await.unwrap();
        assert_eq!(std::fs::read(tmp.path().join("log")).unwrap(), b"good!");
    }

    #[tokio::test]
    async fn a_failed_batch_is_written_by_the_next() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let mut log = AppendLog::open(&dir, "log", 0).unwrap();
        let good = log.file.clone();
        log.file = Arc::new(File::open(tmp.path().join("log")).unwrap()); // not for writing
        assert!(log.append(|out| out.extend(b"one")).await.is_err());
        log.file = good;
        log.append(|out| out.extend(b"two")).await.unwrap();
        assert_eq!(std::fs::read(tmp.path().join("log")).unwrap(), b"onetwo");
    }
}
