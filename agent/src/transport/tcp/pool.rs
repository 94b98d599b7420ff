//! Connections per peer: opened when needed, more of them when the pipeline is full, none while a peer is backing
//! off.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use millstream_agent_core::wire::{Features, Hello};
use rand::Rng;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::TcpConfig;
use super::connection::{Connection, Ended};
use super::greeting::{GreetingError, greet};
use super::inbound::Inbound;
use super::order::{Answer, Command, Gauge, Load, Order, give_back_all};
use super::socket;
use super::stats::{TransportStats, add};
use crate::buffers::Slot;
use crate::limits::{FETCH_SENDS_MAX, PEER_BACKOFF_MAX, PEER_BACKOFF_MIN, PEERS_MAX};
use crate::piece::Unverified;
use crate::reply::Replies;
use crate::transport::{FetchError, PieceRequest};

/// All peers.
pub(super) struct Pool {
    shared: Arc<Shared>,
    peers: Mutex<HashMap<Arc<str>, Arc<Peer>>>,
    answers: Replies<Answer>,
}

/// What connection tasks need of the pool.
struct Shared {
    config: TcpConfig,
    stats: Arc<TransportStats>,
}

/// One peer.
struct Peer {
    address: Arc<str>,
    state: Mutex<PeerState>,
    /// Requests that may be in flight or wait on its connections.
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct PeerState {
    links: Vec<Arc<Link>>,
    failures: u32,
    /// No new connection before this moment, and why.
    barred: Option<(Instant, String)>,
}

/// A connection as its users see it.
struct Link {
    gauge: Arc<Gauge>,
    commands: mpsc::UnboundedSender<Command>,
}

/// Tells the connection when the one who ordered goes away.
struct CancelOnDrop {
    link: Arc<Link>,
    id: u64,
    armed: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.armed {
            // A connection that has ended needs no telling. At most one per request, so the channel stays bounded.
            let _ = self.link.commands.send(Command::Cancel(self.id));
        }
    }
}

impl Pool {
    pub(super) fn new(config: TcpConfig) -> Pool {
        let shared = Arc::new(Shared { config, stats: Arc::default() });
        Pool { shared, peers: Mutex::default(), answers: Replies::default() }
    }

    pub(super) fn stats(&self) -> &Arc<TransportStats> {
        &self.shared.stats
    }

    pub(super) fn config(&self) -> &TcpConfig {
        &self.shared.config
    }

    fn peer(&self, address: &str) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(address) {
            return peer.clone();
        }
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, peer| !peer.is_forgettable());
        }
        let config = &self.shared.config;
        let requests = config.connections_per_peer.max(1) * config.requests_per_connection.max(1);
        let peer = Arc::new(Peer {
            address: address.into(),
            state: Mutex::default(),
            permits: Arc::new(Semaphore::new(requests)),
        });
        peers.insert(peer.address.clone(), peer.clone());
        peer
    }

    /// Fetches one piece; the caller keeps the deadline by dropping the future.
    pub(super) async fn fetch(
        &self,
        address: &str,
        request: PieceRequest,
        mut slot: Slot,
        after: Duration,
        next_id: &AtomicU64,
    ) -> Result<Unverified, FetchError> {
        let deadline = Instant::now() + after;
        let peer = self.peer(address);
        if slot.capacity() < request.len as usize {
            let detail = format!("{slot:?} is too small for {request:?}");
            return Err(FetchError::Protocol { peer: address.to_owned(), detail });
        }
        let Ok(mut permit) = peer.permits.clone().acquire_owned().await else {
            return Err(FetchError::Cancelled);
        };
        for _ in 0..FETCH_SENDS_MAX {
            let (link, load) = peer.choose(&self.shared, permit)?;
            let (answer, answered) = self.answers.pair();
            let id = next_id.fetch_add(1, Relaxed);
            let order = Order { id, request, slot, deadline, after, answer, load };
            if let Err(mpsc::error::SendError(Command::Fetch(order))) = link.commands.send(Command::Fetch(order)) {
                let Some(back) = order.load.into_permit() else { break };
                (slot, permit) = (order.slot, back);
                continue;
            }
            let mut cancel = CancelOnDrop { link, id, armed: true };
            let answer = answered.await;
            cancel.armed = false;
            match answer {
                Ok(Answer::Filled(piece)) => return Ok(piece),
                Ok(Answer::Failed(error)) => return Err(error),
                Ok(Answer::NotSent(slot_back, permit_back)) => (slot, permit) = (slot_back, permit_back),
                Err(_) => return Err(peer.unreachable("its connection was dropped")),
            }
        }
        Err(peer.unreachable("its connections keep closing"))
    }
}

impl Peer {
    fn locked(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_forgettable(&self) -> bool {
        let state = self.locked();
        !state.links.iter().any(|l| l.gauge.is_open())
            && state.barred.as_ref().is_none_or(|(until, _)| *until <= Instant::now())
    }

    fn unreachable(&self, detail: impl Into<String>) -> FetchError {
        FetchError::Unreachable { peer: self.address.to_string(), detail: detail.into() }
    }

    /// The least busy connection, or a new one when there is none or all are busy.
    fn choose(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Arc<Link>, Load), FetchError> {
        let mut state = self.locked();
        state.links.retain(|l| l.gauge.is_open());
        let best = state.links.iter().min_by_key(|l| l.gauge.requests()).cloned();
        let full = best.as_ref().is_none_or(|l| l.gauge.requests() >= shared.config.grow_at_requests);
        let may_grow = state.links.len() < shared.config.connections_per_peer.max(1);
        let barred = state.barred.as_ref().filter(|(until, _)| *until > Instant::now());
        let link = match (best, barred) {
            (Some(link), Some(_)) => link,
            (Some(link), None) if !(full && may_grow) => link,
            (None, Some((_, why))) => return Err(self.unreachable(why.clone())),
            (_, None) => {
                let link = self.open(shared);
                state.links.push(link.clone());
                link
            }
        };
        let load = Load::new(&link.gauge, permit);
        Ok((link, load))
    }

    /// Starts the task of a new connection; orders may be sent to it at once.
    fn open(self: &Arc<Self>, shared: &Arc<Shared>) -> Arc<Link> {
        let (commands, orders) = mpsc::unbounded_channel();
        let gauge = Gauge::new();
        let link = Arc::new(Link { gauge: gauge.clone(), commands });
        let (peer, address) = (Arc::downgrade(self), self.address.clone());
        tokio::spawn(run(peer, address, shared.clone(), gauge, orders));
        link
    }

    fn connected(&self) {
        let mut state = self.locked();
        state.failures = 0;
        state.barred = None;
    }

    fn failed(&self, why: String) {
        let mut state = self.locked();
        let wait = PEER_BACKOFF_MIN * 2u32.saturating_pow(state.failures.min(16));
        let wait = wait.min(PEER_BACKOFF_MAX).mul_f64(rand::rng().random_range(0.5..1.0));
        state.failures = state.failures.saturating_add(1);
        state.barred = Some((Instant::now() + wait, why));
    }
}

async fn connect(address: &str, config: &TcpConfig) -> Result<(TcpStream, Inbound, Hello), GreetingError> {
    let mut stream = TcpStream::connect(address).await?;
    socket::prepare(&stream)?;
    let mut held = Vec::new();
    let hello = greet(&mut stream, &config.node, config.token, Features::NONE, &mut held).await?;
    let inbound = Inbound::new(&held).ok_or(GreetingError::Chatty)?;
    Ok((stream, inbound, hello))
}

/// A connection's whole life. Holds the peer weakly: who holds the senders must not keep them alive.
async fn run(
    peer: Weak<Peer>,
    address: Arc<str>,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
    orders: mpsc::UnboundedReceiver<Command>,
) {
    let config = &shared.config;
    let connected = tokio::time::timeout(config.connect_timeout, connect(&address, config)).await;
    let why = match connected {
        Ok(Ok((stream, inbound, hello))) => {
            add(&shared.stats.connects, 1);
            tracing::debug!(peer = %address, node = %hello.node, "connected");
            if let Some(peer) = peer.upgrade() {
                peer.connected();
            }
            let stats = shared.stats.clone();
            let connection = Connection::new(stream, inbound, address.clone(), &hello, config, gauge, stats);
            match connection.run(orders).await {
                Ended::Quietly => {}
                Ended::Broken(why) => {
                    shared.stats.broken.count("broken");
                    tracing::debug!(peer = %address, why, "connection broke");
                }
                Ended::Protocol(why) => {
                    shared.stats.broken.count("protocol");
                    tracing::warn!(peer = %address, why, "peer broke the protocol");
                }
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no connection within {:?}", config.connect_timeout),
    };
    add(&shared.stats.connect_failures, 1);
    tracing::debug!(peer = %address, why, "cannot connect");
    if let Some(peer) = peer.upgrade() {
        peer.failed(why);
    }
    // After the bar is up, so that whoever gets an order back does not try again at once.
    gauge.close();
    give_back_all(orders);
}
