//! The piece table: where each verified piece of each open version is right now, for those who serve peers.
//!
//! Participants: the driver marks pieces expected, verified, on disk and gone; the serving transports ask through
//! [`PieceSource`] and wait here for pieces that are still on their way. Goals: a child is served the moment its
//! parent has verified the piece, from the very buffer it arrived in. Non-goals: deciding anything.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use millstream_types::{Digest, Layout, PieceNo, PieceRange, RunSet};

use crate::limits::UNKNOWN_PIECE_GRACE;
use crate::piece::{Served, Verified};
use crate::storage::Store;
use crate::transport::{Inbox, Look, PieceRequest, PieceSource, Waiter};

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
    /// Who waits for which piece, by piece: they come and go nearly in order.
    waiting: VecDeque<(PieceNo, Waiter)>,
}

impl Version {
    fn wake(&mut self, pieces: PieceRange) {
        let at = self.waiting.partition_point(|(piece, _)| *piece < pieces.start);
        while let Some((piece, waiter)) = self.waiting.get(at)
            && *piece < pieces.end
        {
            // Whoever is woken looks again.
            waiter.wake();
            self.waiting.remove(at);
        }
    }

    fn enlist(&mut self, piece: PieceNo, waiter: &Waiter) {
        let at = self.waiting.partition_point(|(p, _)| *p <= piece);
        self.waiting.insert(at, (piece, waiter.clone()));
    }

    fn strike(&mut self, piece: PieceNo, waiter: &Waiter) {
        let from = self.waiting.partition_point(|(p, _)| *p < piece);
        let mut same = self.waiting.range(from..).take_while(|(p, _)| *p == piece);
        if let Some(at) = same.position(|(_, w)| w.is(waiter)) {
            self.waiting.remove(from + at);
        }
    }
}

/// See the module's documentation.
pub struct PieceTable {
    versions: Mutex<HashMap<Digest, Version>>,
    store: Arc<Store>,
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
        let version = Version { layout, places, expected: RunSet::new(), waiting: VecDeque::new() };
        self.locked().insert(digest, version);
    }

    /// A version was closed: whoever waits for its pieces is told no.
    pub fn close(&self, digest: &Digest) {
        if let Some(mut version) = self.locked().remove(digest) {
            version.wake(0..PieceNo::MAX);
        }
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
}

/// A wait that ends with its future.
struct Waiting<'a> {
    table: &'a PieceTable,
    request: PieceRequest,
    waiter: Waiter,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.table.forget(&self.request, &self.waiter);
    }
}

#[async_trait]
impl PieceSource for PieceTable {
    fn look(&self, request: &PieceRequest, waiter: &Waiter) -> Look {
        let mut versions = self.locked();
        let Some(version) = versions.get_mut(&request.digest) else { return Look::No };
        match version.layout.get(request.piece) {
            Some(place) if place.len == request.len => {}
            _ => return Look::No,
        }
        match &version.places[request.piece as usize] {
            Place::Memory(bytes) => Look::Here(Served::Memory(bytes.clone())),
            Place::Disk => {
                drop(versions);
                match self.store.piece_of_open_file(&request.digest, request.piece) {
                    Some(served) => Look::Here(served),
                    None => Look::Open,
                }
            }
            Place::Missing => {
                version.enlist(request.piece, waiter);
                Look::Wait { expected: version.expected.contains(request.piece) }
            }
        }
    }

    fn forget(&self, request: &PieceRequest, waiter: &Waiter) {
        self.with(&request.digest, |v| v.strike(request.piece, waiter));
    }

    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served> {
        let until = tokio::time::Instant::now() + deadline;
        let inbox = Arc::new(Inbox::default());
        let waiting = Waiting { table: self, request, waiter: inbox.waiter(0) };
        let mut woken = false;
        loop {
            match self.look(&request, &waiting.waiter) {
                Look::Here(served) => return Some(served),
                Look::Open => return self.store.read_piece(&request.digest, request.piece).await.ok(),
                Look::No => return None,
                // Its order was given back.
                Look::Wait { expected: false } if woken => return None,
                Look::Wait { expected } => {
                    let grace = tokio::time::Instant::now() + UNKNOWN_PIECE_GRACE;
                    let until = if expected { until } else { until.min(grace) };
                    tokio::time::timeout_at(until, inbox.woken()).await.ok()?;
                    woken = true;
                }
            }
        }
    }
}
