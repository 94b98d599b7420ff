//! The one thread that owns the store, and the handle that everyone else has.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use millstream_types::{Crc64, Digest, PieceNo, PieceRange};
use tokio::sync::oneshot;

use super::pending::Pending;
use super::{CatalogStore, Change, KnownChecksums, StoreError};
use crate::limits::{GROUP_COMMIT, STORE_JOBS_MAX};

type Done<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    /// Something is pending: commit it with what else gathers until [`GROUP_COMMIT`] from now.
    Wake,
    Commit(Vec<Change>, Done<()>),
    Manifest(Digest, Done<Option<Vec<u8>>>),
    Checksums(Digest, Done<KnownChecksums>),
    Audit(usize, Done<Vec<String>>),
    Close(Done<()>),
}

/// Hands changes to the store's thread, in order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    jobs: SyncSender<Job>,
    pending: Arc<Mutex<Pending>>,
    description: Arc<str>,
}

impl StoreHandle {
    /// Starts the thread. It ends with [`close`](Self::close), or when every handle is gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(store: impl CatalogStore) -> std::io::Result<(StoreHandle, JoinHandle<()>)> {
        let (jobs, rx) = sync_channel(STORE_JOBS_MAX);
        let pending = Arc::<Mutex<Pending>>::default();
        let handle = StoreHandle { jobs, pending: pending.clone(), description: store.describe().into() };
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || serve(&store, rx, &pending))?;
        Ok((handle, thread))
    }

    /// What the store is, for status.
    pub fn description(&self) -> &str {
        &self.description
    }

    fn pend(&self, change: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pending.is_empty();
        change(&mut pending);
        drop(pending);
        if idle {
            // A full queue wakes the thread as well.
            let _ = self.jobs.try_send(Job::Wake);
        }
    }

    /// Remembers checksums with the next group commit.
    pub fn learn(&self, digest: Digest, first: PieceNo, crcs: &[Crc64]) {
        self.pend(|p| p.learn(digest, first, crcs));
    }

    /// Forgets checksums with the next group commit.
    pub fn forget(&self, digest: Digest, pieces: PieceRange) {
        self.pend(|p| p.forget(digest, pieces));
    }

    /// Adds a line to the audit log with the next group commit.
    pub fn audit_line(&self, line: String) {
        self.pend(|p| p.audit(line));
    }

    /// Commits `changes` now, in the order of calls. The answer comes when they are durable.
    pub fn commit(&self, changes: Vec<Change>) -> Durable {
        let (done, answer) = oneshot::channel();
        // A store that lags by STORE_JOBS_MAX client requests refuses more: the client sees why and tries again.
        let _ = self.jobs.try_send(Job::Commit(changes, done));
        Durable(answer)
    }

    /// A manifest as Arrow IPC.
    ///
    /// # Errors
    /// [`StoreError`] of the store.
    pub async fn manifest(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(|done| Job::Manifest(digest, done)).await
    }

    /// All checksums learned of a version until now.
    ///
    /// # Errors
    /// [`StoreError`] of the store.
    pub async fn checksums(&self, digest: Digest) -> Result<KnownChecksums, StoreError> {
        self.ask(|done| Job::Checksums(digest, done)).await
    }

    /// The newest lines of the audit log, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] of the store.
    pub async fn audit(&self, lines: usize) -> Result<Vec<String>, StoreError> {
        self.ask(|done| Job::Audit(lines, done)).await
    }

    /// Commits what is pending and ends the thread.
    ///
    /// # Errors
    /// [`StoreError`] of the last commit.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.ask(Job::Close).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Done<T>) -> Job) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        self.jobs.try_send(job(done)).map_err(|e| match e {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// A commit on its way to the disk.
#[derive(Debug)]
#[must_use = "an answer to a client must wait for this"]
pub struct Durable(oneshot::Receiver<Result<(), StoreError>>);

impl Durable {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be written.
    pub async fn wait(self) -> Result<(), StoreError> {
        self.0.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn flush(store: &impl CatalogStore, pending: &Mutex<Pending>) -> Result<(), StoreError> {
    let taken = std::mem::take(&mut *pending.lock().unwrap_or_else(PoisonError::into_inner));
    if taken.is_empty() {
        return Ok(());
    }
    let committed = store.commit(&taken.into_changes());
    if let Err(error) = &committed {
        tracing::error!(%error, "checksums that were learned are not durable; they will be read again after a restart");
    }
    committed
}

fn serve(store: &impl CatalogStore, jobs: Receiver<Job>, pending: &Mutex<Pending>) {
    let mut group_at: Option<Instant> = None;
    loop {
        let job = match group_at {
            None => jobs.recv().map_err(RecvTimeoutError::from),
            Some(at) => jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match job {
            Ok(Job::Wake) => {
                group_at.get_or_insert_with(|| Instant::now() + GROUP_COMMIT);
            }
            Ok(Job::Close(done)) => {
                let _ = done.send(flush(store, pending));
                return;
            }
            Ok(job) => serve_one(store, job, pending),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let _ = flush(store, pending);
                return;
            }
        }
        if group_at.is_some_and(|at| at <= Instant::now()) {
            group_at = None;
            let _ = flush(store, pending);
        }
    }
}

fn serve_one(store: &impl CatalogStore, job: Job, pending: &Mutex<Pending>) {
    match job {
        Job::Commit(changes, done) => {
            // A removed version must not get checksums back from the next group.
            for change in &changes {
                if let Change::RemoveVersion { digest, .. } = change {
                    let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
                    pending.drop_version(*digest);
                }
            }
            let _ = done.send(store.commit(&changes));
        }
        Job::Manifest(digest, done) => {
            let _ = done.send(store.manifest(digest));
        }
        Job::Checksums(digest, done) => {
            let known = flush(store, pending).and_then(|()| store.checksums(digest));
            let _ = done.send(known);
        }
        Job::Audit(lines, done) => {
            let known = flush(store, pending).and_then(|()| store.audit(lines));
            let _ = done.send(known);
        }
        Job::Wake | Job::Close(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    #[tokio::test]
    async fn learned_checksums_are_seen_at_once_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest([3; 32]);
        let (store, thread) = StoreHandle::start(EmbeddedStore::open(dir.path()).unwrap()).unwrap();
        store.learn(digest, 5, &[Crc64(1), Crc64(2)]);
        let known = store.checksums(digest).await.unwrap();
        assert_eq!(known, [(5, vec![Crc64(1), Crc64(2)])]);
        store.forget(digest, 5..6);
        store.audit_line("line".into());
        store.close().await.unwrap();
        thread.join().unwrap();
        assert!(matches!(store.manifest(digest).await, Err(StoreError::Closed)));
        let again = EmbeddedStore::open(dir.path()).unwrap();
        assert_eq!(again.checksums(digest).unwrap(), [(6, vec![Crc64(2)])]);
        assert_eq!(again.audit(9).unwrap(), ["line"]);
    }
}
