//! The asking side: one link per peer, each a control connection and a queue pair, opened when first needed.
//!
//! Each fetch is a task of its own that ends only when its slot is safe again: filled and out of the peer's reach,
//! recalled, or given back by a destroyed queue pair. The future that waits for it may go at any time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use millstream_agent_core::wire::{Frame, RemoteSlot, StatusCode};
use millstream_rdma::{Fault, Lent, Queue, SEGMENT_BYTES};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Failed, Node};
use crate::buffers::Slot;
use crate::buffers::rdma::Outgoing;
use crate::limits::{PEER_TICK_MIN, PEERS_MAX, RDMA_CANCEL_GRACE, RDMA_SETUP_RETRY};
use crate::piece::Unverified;
use crate::transport::{FetchError, PieceRequest};

mod connecting;
mod link;

use connecting::{Paired, connect};
pub(super) use link::{IDLE, Link};

/// Why there is no link.
#[derive(Clone, Debug)]
struct Refused {
    reason: &'static str,
    detail: String,
    ours: bool,
    /// Its port does not answer at all: another carrier would do no better.
    unreachable: bool,
    /// The rail does not lead to it, perhaps; another might.
    rail: bool,
}

impl Refused {
    fn theirs(reason: &'static str, detail: impl Into<String>) -> Refused {
        Refused { reason, detail: detail.into(), ours: false, unreachable: false, rail: false }
    }

    fn rail(reason: &'static str, detail: impl Into<String>) -> Refused {
        Refused { rail: true, ..Refused::theirs(reason, detail) }
    }

    fn ours(reason: &'static str, detail: impl Into<String>) -> Refused {
        Refused { ours: true, ..Refused::theirs(reason, detail) }
    }

    fn unreachable(detail: impl Into<String>) -> Refused {
        Refused { unreachable: true, ..Refused::theirs("unreachable", detail) }
    }
}

#[derive(Default)]
struct PeerState {
    /// Not held here: a link that has ended must let go of its device, which may be waiting to be removed.
    link: Weak<Link>,
    /// Those who waited while the attempt failed do not repeat it at once.
    failed: Option<(Instant, Refused)>,
}

/// All peers that this node asks.
pub(super) struct Peers {
    node: Arc<Node>,
    peers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<PeerState>>>>,
    next_id: AtomicU64,
    /// Ends the links when the last user is gone.
    stop: CancellationToken,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(super) fn new(node: Arc<Node>) -> Peers {
        let stop = node.shutdown.child_token();
        Peers { node, peers: Mutex::default(), next_id: AtomicU64::default(), stop }
    }

    fn peer(&self, address: &str) -> Arc<tokio::sync::Mutex<PeerState>> {
        let mut peers = locked(&self.peers);
        if peers.len() >= PEERS_MAX && !peers.contains_key(address) {
            let unused = |state: &Arc<tokio::sync::Mutex<PeerState>>| {
                state.try_lock().is_ok_and(|s| s.link.upgrade().is_none_or(|l| !l.is_open()))
            };
            peers.retain(|_, state| !unused(state));
        }
        peers.entry(address.to_owned()).or_default().clone()
    }

    /// The link to a peer, set up if there is none.
    async fn link(&self, address: &str) -> Result<Arc<Link>, Refused> {
        let peer = self.peer(address);
        let mut state = peer.lock().await;
        let current = state.link.upgrade().filter(|link| link.is_open());
        if let Some(link) = current.clone().filter(|link| !link.is_to_move()) {
            return Ok(link);
        }
        if let Some((at, refused)) = &state.failed
            && at.elapsed() < RDMA_SETUP_RETRY
        {
            return Err(refused.clone());
        }
        let refused = match connect(&self.node, address).await {
            // A link that is replaced carries what is in flight on it, then is idle, and closed.
            Ok(paired) => {
                self.node.stats.links_opened.fetch_add(1, Relaxed);
                let link = Link::start(address, &self.node, paired, self.stop.clone());
                (state.link, state.failed) = (Arc::downgrade(&link), None);
                return Ok(link);
            }
            Err(refused) => refused,
        };
        tracing::debug!(peer = address, reason = refused.reason, detail = refused.detail, "no RDMA link");
        if let Some(link) = current {
            return Ok(link);
        }
        state.failed = Some((Instant::now(), refused.clone()));
        Err(refused)
    }

    pub(super) async fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        mut slot: Slot,
        after: Duration,
    ) -> Result<Unverified, Failed> {
        let deadline = Instant::now() + after;
        loop {
            match self.attempt(peer, request, slot, after, deadline).await {
                // The link was closed for want of requests when this one came: a new one is opened.
                Err(Failed::Carrier { slot: Some(back), reason: IDLE, .. }) => slot = back,
                other => return other,
            }
        }
    }

    async fn attempt(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        after: Duration,
        deadline: Instant,
    ) -> Result<Unverified, Failed> {
        let link = match self.link(peer).await {
            Ok(link) => link,
            Err(Refused { unreachable: true, detail, .. }) => {
                return Err(Failed::Answered(FetchError::Unreachable { peer: peer.to_owned(), detail }));
            }
            Err(Refused { reason, detail, ours, .. }) => {
                return Err(Failed::Carrier { slot: Some(slot), reason, detail, ours });
            }
        };
        let timeout = || Failed::Answered(FetchError::Timeout { peer: peer.to_owned(), after });
        let Ok(permit) = tokio::time::timeout_at(deadline, link.permits.clone().acquire_owned()).await else {
            return Err(timeout());
        };
        let (answer, answered) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Relaxed);
        let operation = Operation { link: link.clone(), id, peer: peer.to_owned(), request, deadline, after };
        let stats = self.node.stats.clone();
        // Boxed: tokio moves what it spawns half a dozen times.
        tokio::spawn(Box::pin(async move {
            let _permit = permit;
            let mut answer = answer;
            let result = operation.run(slot, &mut answer).await;
            if let Ok(piece) = &result {
                link.carried();
                stats.received_bytes.fetch_add(u64::from(piece.len()), Relaxed);
            }
            // Nobody waits any more: what came goes back to the arena.
            let _ = answer.send(result);
        }));
        answered.await.unwrap_or_else(|_| Err(Failed::Answered(FetchError::Cancelled)))
    }
}

/// One piece, from the lending of its slot to the slot's return.
struct Operation {
    link: Arc<Link>,
    id: u64,
    peer: String,
    request: PieceRequest,
    deadline: Instant,
    after: Duration,
}

/// Why the peer was asked to stop.
#[derive(Clone, Copy)]
enum Stop {
    Deadline,
    Unwanted,
}

impl Operation {
    async fn run(
        self,
        slot: Slot,
        answer: &mut oneshot::Sender<Result<Unverified, Failed>>,
    ) -> Result<Unverified, Failed> {
        let len = self.request.len;
        let queue = &self.link.queue;
        let mut lease = match queue.lend(slot, len, len.div_ceil(SEGMENT_BYTES)) {
            Ok(lease) => lease,
            Err((slot, fault)) => return Err(self.carrier(Some(slot), fault)),
        };
        let place = RemoteSlot { address: lease.address, key: lease.key, tag: lease.tag };
        let mut status = None;
        if lease.ready().await {
            status = Some(self.link.ask(self.id, &self.request, place, self.deadline));
        }
        let mut stop: Option<(Stop, Instant)> = None;
        let mut code = None;
        let ended = lease.ended();
        tokio::pin!(ended);
        let lent = loop {
            let grace = stop.map(|(_, at)| at + RDMA_CANCEL_GRACE);
            tokio::select! {
                lent = &mut ended => break lent,
                said = async { status.as_mut().expect("checked").await }, if status.is_some() => {
                    status = None;
                    if let Ok(said) = said {
                        code = Some(said);
                        // The peer has said that it will not write.
                        queue.recall(place.tag);
                    }
                }
                () = tokio::time::sleep_until(self.deadline), if stop.is_none() && code.is_none() => {
                    stop = Some((Stop::Deadline, Instant::now()));
                    self.link.send(Frame::Cancel { id: self.id });
                }
                () = answer.closed(), if stop.is_none() && code.is_none() => {
                    stop = Some((Stop::Unwanted, Instant::now()));
                    self.link.send(Frame::Cancel { id: self.id });
                }
                () = tokio::time::sleep_until(grace.unwrap_or(self.deadline)), if grace.is_some() && code.is_none() => {
                    self.link.end("cancel-ignored");
                    stop = stop.map(|(why, _)| (why, Instant::now()));
                }
            }
        };
        self.link.forget(self.id);
        match lent {
            Lent::Filled(slot) => Ok(Unverified::sum(slot, len)),
            Lent::Recalled(_) => Err(Failed::Answered(self.answered(code, stop.map(|(why, _)| why)))),
            Lent::Failed(slot, fault) => match stop {
                Some((why, _)) => Err(Failed::Answered(self.answered(None, Some(why)))),
                None => Err(self.carrier(Some(slot), fault)),
            },
            Lent::Kept => Err(self.carrier(None, Fault::Closed)),
        }
    }

    fn carrier(&self, slot: Option<Slot>, fault: Fault) -> Failed {
        let ended = self.link.ended();
        let ours = matches!(fault, Fault::DeviceRemoved | Fault::PortDown | Fault::GidChanged);
        let reason = if fault == Fault::Closed { ended.unwrap_or("closed") } else { fault.reason() };
        Failed::Carrier { slot, reason, detail: format!("{fault} ({reason})"), ours }
    }

    fn answered(&self, code: Option<StatusCode>, stop: Option<Stop>) -> FetchError {
        let peer = self.peer.clone();
        let unreachable = |detail: &str| FetchError::Unreachable { peer: self.peer.clone(), detail: detail.into() };
        match (stop, code) {
            (Some(Stop::Deadline), _) => FetchError::Timeout { peer, after: self.after },
            (None, Some(StatusCode::Deadline)) => FetchError::NotYet { peer, after: self.after },
            (Some(Stop::Unwanted), _) => FetchError::Cancelled,
            (None, Some(StatusCode::NotHave)) => FetchError::NotHave { peer },
            (None, Some(StatusCode::Length)) => {
                FetchError::Protocol { peer, detail: "it has the piece with another length".into() }
            }
            (None, Some(StatusCode::Draining)) => unreachable("it is going away"),
            (None, Some(StatusCode::Failed)) => unreachable("it could not read the piece"),
            (None, Some(StatusCode::Cancelled)) | (None, None) => {
                FetchError::Protocol { peer, detail: "it cancelled a request that stands".into() }
            }
        }
    }
}
