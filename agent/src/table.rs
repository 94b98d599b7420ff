//! The piece table: where each verified piece of each open version is right now, for those who serve peers.
//!
//! Participants: the driver marks pieces expected, verified, on disk and gone; the serving transports ask through
//! [`PieceSource`] and wait here for pieces that are still on their way. Goals: a child is served the moment its
//! parent has verified the piece, from the very buffer it arrived in. Non-goals: deciding anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use millstream_types::{Digest, Layout, PieceNo, PieceRange, RunSet};
use tokio::sync::oneshot;

use crate::limits::UNKNOWN_PIECE_GRACE;
use crate::piece::{Served, Verified};
use crate::storage::Store;
use crate::transport::{PieceRequest, PieceSource};

/// Where a piece is.
enum Place {
    /// Not here. Someone may be waiting for it.
    Missing,
    /// Verified, in memory, being written.
    Memory(Verified),
    /// Verified, on disk.
    Disk,
}

struct Version {
    layout: Arc<Layout>,
    places: Vec<Place>,
    /// Pieces that this node was told to fetch: worth waiting for.
    expected: RunSet,
    waiting: HashMap<PieceNo, Vec<oneshot::Sender<()>>>,
}

impl Version {
    fn wake(&mut self, pieces: PieceRange) {
        if self.waiting.is_empty() {
            return;
        }
        for piece in pieces {
            // A waiter that is woken looks again; one that gave up does not mind.
            for waiter in self.waiting.remove(&piece).into_iter().flatten() {
                let _ = waiter.send(());
            }
        }
    }
}

/// See the module's documentation.
pub struct PieceTable {
    versions: Mutex<HashMap<Digest, Version>>,
    store: Arc<Store>,
}

enum Found {
    Here(Verified),
    OnDisk,
    Wait { woken: oneshot::Receiver<()>, at_most: Duration },
    No,
}

impl PieceTable {
    /// A table without versions.
    pub fn new(store: Arc<Store>) -> PieceTable {
        PieceTable { versions: Mutex::default(), store }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Digest, Version>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, digest: &Digest, change: impl FnOnce(&mut Version)) {
        if let Some(version) = self.locked().get_mut(digest) {
            change(version);
        }
    }

    /// A version was opened with these pieces on disk.
    pub fn open(&self, digest: Digest, layout: Arc<Layout>, have: &RunSet) {
        let mut places: Vec<Place> = Vec::new();
        places.resize_with(layout.pieces() as usize, || Place::Missing);
        for piece in have.iter() {
            places[piece as usize] = Place::Disk;
        }
        let version = Version { layout, places, expected: RunSet::new(), waiting: HashMap::new() };
        self.locked().insert(digest, version);
    }

    /// A version was closed: whoever waits for its pieces is told no.
    pub fn close(&self, digest: &Digest) {
        self.locked().remove(digest);
    }

    /// This node was told to fetch these pieces.
    pub fn expect(&self, digest: &Digest, pieces: PieceRange) {
        self.with(digest, |v| v.expected.insert_range(pieces));
    }

    /// This node gave up on these pieces: whoever waits for them is told no.
    pub fn give_up(&self, digest: &Digest, pieces: &RunSet) {
        self.with(digest, |v| {
            for run in pieces.runs() {
                v.expected.remove_range(run.clone());
                v.wake(run.clone());
            }
        });
    }

    /// A piece is verified: it can be served.
    pub fn verified(&self, digest: &Digest, piece: PieceNo, bytes: Verified) {
        self.with(digest, |v| {
            if let Some(place) = v.places.get_mut(piece as usize) {
                *place = Place::Memory(bytes);
                v.wake(piece..piece + 1);
            }
        });
    }

    /// A piece is on disk: its buffer is no longer needed.
    pub fn written(&self, digest: &Digest, piece: PieceNo) {
        self.with(digest, |v| {
            if let Some(place) = v.places.get_mut(piece as usize) {
                *place = Place::Disk;
            }
        });
    }

    /// Pieces are gone.
    pub fn remove(&self, digest: &Digest, pieces: PieceRange) {
        self.with(digest, |v| {
            for piece in pieces {
                if let Some(place) = v.places.get_mut(piece as usize) {
                    *place = Place::Missing;
                }
            }
        });
    }

    fn find(&self, request: &PieceRequest) -> Found {
        let mut versions = self.locked();
        let Some(version) = versions.get_mut(&request.digest) else { return Found::No };
        match version.layout.get(request.piece) {
            Some(place) if place.len == request.len => {}
            _ => return Found::No,
        }
        match &version.places[request.piece as usize] {
            Place::Memory(bytes) => Found::Here(bytes.clone()),
            Place::Disk => Found::OnDisk,
            Place::Missing => {
                let expected = version.expected.contains(request.piece);
                let (wake, woken) = oneshot::channel();
                let waiters = version.waiting.entry(request.piece).or_default();
                waiters.retain(|w| !w.is_closed());
                waiters.push(wake);
                Found::Wait { woken, at_most: if expected { Duration::MAX } else { UNKNOWN_PIECE_GRACE } }
            }
        }
    }
}

#[async_trait]
impl PieceSource for PieceTable {
    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            match self.find(&request) {
                Found::Here(bytes) => return Some(Served::Memory(bytes)),
                Found::OnDisk => return self.store.read_piece(&request.digest, request.piece).await.ok(),
                Found::No => return None,
                Found::Wait { woken, at_most } => {
                    let now = tokio::time::Instant::now();
                    let grace_ends = now.checked_add(at_most).unwrap_or(until);
                    tokio::time::timeout_at(until.min(grace_ends), woken).await.ok()?.ok()?;
                    let versions = self.locked();
                    let version = versions.get(&request.digest)?;
                    if matches!(version.places.get(request.piece as usize), Some(Place::Missing) | None)
                        && !version.expected.contains(request.piece)
                    {
                        return None;
                    }
                }
            }
        }
    }
}
