//! What was asked and what was sent: tests count origin bytes with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Counters of one key.
#[derive(Debug, Default)]
pub(crate) struct KeyCounters {
    pub(crate) bytes: AtomicU64,
    pub(crate) requests: AtomicU64,
}

/// Counters of the server.
#[derive(Debug, Default)]
pub struct Stats {
    keys: Mutex<BTreeMap<String, Arc<KeyCounters>>>,
    requests: Mutex<BTreeMap<&'static str, u64>>,
    statuses: Mutex<BTreeMap<u16, u64>>,
    pub(crate) connections: AtomicU64,
}

/// Counters of one key, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyStats {
    /// Bytes of bodies handed to the network.
    pub bytes: u64,
    /// GETs.
    pub requests: u64,
}

/// All counters, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Bytes of GET bodies handed to the network.
    pub bytes_sent: u64,
    /// GETs by `bucket/key`.
    pub keys: BTreeMap<String, KeyStats>,
    /// Requests by kind: `get`, `head`, `list`, `put`, `delete`, `other`.
    pub requests: BTreeMap<String, u64>,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections accepted.
    pub connections: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stats {
    pub(crate) fn request(&self, kind: &'static str) {
        *lock(&self.requests).entry(kind).or_default() += 1;
    }

    pub(crate) fn status(&self, status: u16) {
        *lock(&self.statuses).entry(status).or_default() += 1;
    }

    pub(crate) fn key(&self, path: &str) -> Arc<KeyCounters> {
        let mut keys = lock(&self.keys);
        if let Some(counters) = keys.get(path) {
            return counters.clone();
        }
        keys.entry(path.to_owned()).or_default().clone()
    }

    /// All counters, as of now.
    pub fn snapshot(&self) -> Snapshot {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let keys: BTreeMap<String, KeyStats> = lock(&self.keys)
            .iter()
            .map(|(key, c)| {
                let (bytes, requests) = (read(&c.bytes), read(&c.requests));
                (key.clone(), KeyStats { bytes, requests })
            })
            .collect();
        let requests = lock(&self.requests);
        Snapshot {
            bytes_sent: keys.values().map(|k| k.bytes).sum(),
            keys,
            requests: requests.iter().map(|(&k, &n)| (k.to_owned(), n)).collect(),
            statuses: lock(&self.statuses).clone(),
            connections: read(&self.connections),
        }
    }

    /// From zero again.
    pub fn reset(&self) {
        lock(&self.keys).clear();
        lock(&self.requests).clear();
        lock(&self.statuses).clear();
    }
}
