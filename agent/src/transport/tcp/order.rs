//! What passes between those who fetch and the task that owns a connection: orders one way, one answer each the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::buffers::Slot;
use crate::piece::Unverified;
use crate::reply;
use crate::transport::{FetchError, PieceRequest};

/// One piece to fetch.
pub(super) struct Order {
    pub(super) id: u64,
    pub(super) request: PieceRequest,
    pub(super) slot: Slot,
    pub(super) deadline: Instant,
    pub(super) after: Duration,
    pub(super) answer: reply::Sender<Answer>,
    pub(super) load: Load,
}

/// What becomes of an order.
pub(super) enum Answer {
    /// The piece.
    Filled(Unverified),
    /// No piece.
    Failed(FetchError),
    /// Never sent: the slot is as it was, ask on another connection.
    NotSent(Slot, OwnedSemaphorePermit),
}

/// What the task is told.
pub(super) enum Command {
    /// Fetch.
    Fetch(Order),
    /// The one who ordered has gone.
    Cancel(u64),
}

/// Whether a connection takes orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Yes, also while it is being established.
    Open,
    /// No.
    Closed,
}

/// What the pool sees of a connection.
#[derive(Debug)]
pub(super) struct Gauge {
    requests: AtomicUsize,
    phase: AtomicU8,
}

impl Gauge {
    pub(super) fn new() -> Arc<Gauge> {
        Arc::new(Gauge { requests: AtomicUsize::new(0), phase: AtomicU8::new(Phase::Open as u8) })
    }

    /// Requests in flight or waiting on it.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// Does it take orders?
    pub(super) fn is_open(&self) -> bool {
        self.phase.load(Relaxed) == Phase::Open as u8
    }

    pub(super) fn close(&self) {
        self.phase.store(Phase::Closed as u8, Relaxed);
    }
}

/// One request's share of a connection's load and of the peer's bound, until it is answered.
#[derive(Debug)]
pub(super) struct Load {
    gauge: Arc<Gauge>,
    /// `None` once it was taken back.
    permit: Option<OwnedSemaphorePermit>,
}

impl Load {
    pub(super) fn new(gauge: &Arc<Gauge>, permit: OwnedSemaphorePermit) -> Load {
        gauge.requests.fetch_add(1, Relaxed);
        Load { gauge: gauge.clone(), permit: Some(permit) }
    }

    /// The share of the peer's bound, to ask on another connection.
    pub(super) fn into_permit(mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.gauge.requests.fetch_sub(1, Relaxed);
    }
}

/// The requester may be gone; then the slot goes back with the answer.
pub(super) fn answer(to: Option<reply::Sender<Answer>>, what: Answer) {
    if let Some(to) = to {
        to.send(what);
    }
}

pub(super) fn give_back(order: Order) {
    let Order { slot, answer, load, .. } = order;
    if let Some(permit) = load.into_permit() {
        answer.send(Answer::NotSent(slot, permit));
    }
}

/// Gives back what is still in the channel, and closes it.
pub(super) fn give_back_all(mut commands: mpsc::UnboundedReceiver<Command>) {
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let Command::Fetch(order) = command {
            give_back(order);
        }
    }
}
