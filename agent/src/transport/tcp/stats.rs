//! What the TCP carrier counts. Plain atomics: the agent mirrors them into its metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::pace::{Moved, Pace};

/// Counters of the asking side.
#[derive(Debug, Default)]
pub struct TransportStats {
    pub(super) connects: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) discarded_bytes: AtomicU64,
    pub(super) broken: Reasons,
    pub(super) arriving: Arc<Pace>,
}

impl TransportStats {
    /// Connections that were established.
    pub fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Attempts that failed, refusals counted.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    /// Piece bytes read from sockets, whatever became of them.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Relaxed)
    }

    /// Of those, bytes of pieces that nobody waited for any more.
    pub fn discarded_bytes(&self) -> u64 {
        self.discarded_bytes.load(Relaxed)
    }

    /// Pieces, and the time in which some were arriving: how fast the way to here is.
    pub fn arriving(&self) -> Moved {
        self.arriving.moved()
    }

    /// Connections that ended badly, by reason.
    pub fn broken(&self) -> Vec<(&'static str, u64)> {
        self.broken.all()
    }
}

/// Counters of the serving side.
#[derive(Debug, Default)]
pub struct ServerStats {
    pub(super) connections: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) sent_bytes_memory: AtomicU64,
    pub(super) sent_bytes_file: AtomicU64,
    pub(super) sent_pieces: AtomicU64,
    pub(super) cold_reads: AtomicU64,
    pub(super) answers: Reasons,
    pub(super) closed: Reasons,
}

impl ServerStats {
    /// Connections now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Connections taken so far, refused ones counted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Piece bytes handed to the kernel.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes_memory.load(Relaxed) + self.sent_bytes_file.load(Relaxed)
    }

    /// Of those, bytes that came from files.
    pub fn sent_bytes_file(&self) -> u64 {
        self.sent_bytes_file.load(Relaxed)
    }

    /// Pieces handed to the kernel whole.
    pub fn sent_pieces(&self) -> u64 {
        self.sent_pieces.load(Relaxed)
    }

    /// Pieces that had to be read from the disk before they could be sent.
    pub fn cold_reads(&self) -> u64 {
        self.cold_reads.load(Relaxed)
    }

    /// Requests that were not answered with data, by reason.
    pub fn answers(&self) -> Vec<(&'static str, u64)> {
        self.answers.all()
    }

    /// Connections that were closed, by reason.
    pub fn closed(&self) -> Vec<(&'static str, u64)> {
        self.closed.all()
    }
}

/// A count per reason. Reasons are constants, so their number is bounded.
#[derive(Debug, Default)]
pub(super) struct Reasons(Mutex<BTreeMap<&'static str, u64>>);

impl Reasons {
    /// Counts one; true the first time.
    pub(super) fn count(&self, reason: &'static str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(reason).or_insert(0);
        *count += 1;
        *count == 1
    }

    fn all(&self) -> Vec<(&'static str, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(reason, count)| (*reason, *count)).collect()
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
