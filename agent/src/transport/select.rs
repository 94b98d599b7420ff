//! Which carrier a piece takes: RDMA where both nodes can, TCP everywhere else, and never silently.
//!
//! Participants: the driver asks for pieces; [`super::rdma`] is tried first, unless this node has none, or the peer
//! is cooling down after a failure; [`super::tcp`] gets what is left. Every piece that goes over TCP although this
//! node wants RDMA is counted as one fallback with its reason. The waits are decided by
//! [`millstream_agent_core::cooldown`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millstream_agent_core::cooldown::Cooldowns;
#[cfg(feature = "rdma")]
use millstream_agent_core::cooldown::Trial;
#[cfg(feature = "rdma")]
use millstream_types::Time;
use serde_json::{Value, json};

use super::tcp::TcpTransport;
use super::{Carrier, FetchError, PieceRequest, Transport};
use crate::buffers::{Arena, Slot};
use crate::counters::Counters;
use crate::limits::PEERS_MAX;
use crate::pace::Moved;
use crate::piece::Unverified;

#[cfg(feature = "rdma")]
type Rdma = super::rdma::Rdma;
/// Built without RDMA: there is never one.
#[cfg(not(feature = "rdma"))]
type Rdma = std::convert::Infallible;

/// Bytes received from one peer, by carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerBytes {
    /// Over RDMA.
    pub rdma: u64,
    /// Over TCP.
    pub tcp: u64,
}

#[derive(Default)]
struct State {
    cooldowns: Cooldowns,
    peers: BTreeMap<String, PeerBytes>,
}

/// See the module's documentation.
pub struct SelectTransport {
    tcp: TcpTransport,
    rdma: Option<Rdma>,
    arena: Arc<Arena>,
    counters: Arc<Counters>,
    #[cfg_attr(not(feature = "rdma"), allow(dead_code))]
    started: Instant,
    state: Mutex<State>,
}

impl std::fmt::Debug for SelectTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelectTransport").field("tcp", &self.tcp).field("rdma", &self.rdma).finish_non_exhaustive()
    }
}

/// What a piece may do now.
#[cfg_attr(not(feature = "rdma"), allow(dead_code))]
enum Choice<'a> {
    Rdma(&'a Rdma),
    /// With the reason, if RDMA is wanted here.
    Tcp(Option<&'static str>),
}

impl SelectTransport {
    /// Without `rdma`, everything goes over TCP and nothing is a fallback.
    pub fn new(tcp: TcpTransport, rdma: Option<Rdma>, arena: Arc<Arena>, counters: Arc<Counters>) -> SelectTransport {
        SelectTransport { tcp, rdma, arena, counters, started: Instant::now(), state: Mutex::default() }
    }

    /// Pieces over TCP, and the time in which some were arriving.
    pub fn arriving(&self) -> Moved {
        self.tcp.stats().arriving()
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "rdma")]
    fn now(&self) -> Time {
        Time(self.started.elapsed().as_micros() as u64)
    }

    #[cfg(feature = "rdma")]
    fn choose(&self, peer: &str) -> Choice<'_> {
        let Some(rdma) = &self.rdma else { return Choice::Tcp(None) };
        if let Err(lack) = rdma.lack() {
            return Choice::Tcp(lack);
        }
        match self.locked().cooldowns.trial(peer, self.now()) {
            Trial::Go => Choice::Rdma(rdma),
            Trial::Wait { reason } => Choice::Tcp(Some(reason)),
        }
    }

    #[cfg(not(feature = "rdma"))]
    fn choose(&self, _peer: &str) -> Choice<'_> {
        Choice::Tcp(None)
    }

    /// Tries RDMA; `Err` is the slot, if there still is one, for another carrier, and the reason.
    #[cfg(feature = "rdma")]
    async fn by_rdma(
        &self,
        rdma: &Rdma,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> Result<Result<Unverified, FetchError>, (Option<Slot>, &'static str)> {
        use super::rdma::Failed;
        let guard = Probe { select: self, peer, armed: true };
        let fetched = rdma.fetch(peer, request, slot, deadline).await;
        guard.done();
        match fetched {
            Ok(piece) => {
                if self.locked().cooldowns.worked(peer) {
                    tracing::info!(peer, "RDMA works again");
                }
                Ok(Ok(piece.by(Carrier::Rdma)))
            }
            Err(Failed::Answered(error)) => {
                let mut state = self.locked();
                match error {
                    // The peer's answer came over a link that works.
                    FetchError::NotHave { .. } | FetchError::NotYet { .. } | FetchError::Protocol { .. } => {
                        state.cooldowns.worked(peer);
                    }
                    // Nothing was learned about RDMA.
                    FetchError::Unreachable { .. } | FetchError::Timeout { .. } | FetchError::Cancelled => {
                        state.cooldowns.retry(peer, self.now());
                    }
                }
                Ok(Err(error))
            }
            Err(Failed::Carrier { slot, reason, detail, ours }) => {
                tracing::debug!(peer, reason, detail, "RDMA failed; the piece goes over TCP");
                if !ours {
                    self.locked().cooldowns.failed(peer, reason, self.now(), rand::random());
                }
                Err((slot, reason))
            }
        }
    }

    #[cfg(not(feature = "rdma"))]
    async fn by_rdma(
        &self,
        rdma: &Rdma,
        _peer: &str,
        _request: PieceRequest,
        _slot: Slot,
        _deadline: Duration,
    ) -> Result<Result<Unverified, FetchError>, (Option<Slot>, &'static str)> {
        match *rdma {}
    }

    fn count(&self, peer: &str, piece: &Unverified) {
        let mut state = self.locked();
        if state.peers.len() >= PEERS_MAX && !state.peers.contains_key(peer) {
            return;
        }
        let bytes = match state.peers.get_mut(peer) {
            Some(bytes) => bytes,
            None => state.peers.entry(peer.to_owned()).or_default(),
        };
        match piece.carrier() {
            Carrier::Rdma => bytes.rdma += u64::from(piece.len()),
            Carrier::Tcp => bytes.tcp += u64::from(piece.len()),
        }
    }

    /// Bytes received from each peer, by its address.
    pub fn peers(&self) -> BTreeMap<String, PeerBytes> {
        self.locked().peers.clone()
    }

    /// For the status of this node: carriers, devices with their counters, bytes by peer, who is cooling down.
    pub fn describe(&self) -> Value {
        let state = self.locked();
        let peers: Vec<Value> = state.peers.iter().map(|(address, bytes)| {
            json!({"address": address, "received_bytes": {"rdma": bytes.rdma, "tcp": bytes.tcp}})
        }).collect();
        let waiting: Vec<Value> =
            state.cooldowns.waiting().map(|(peer, reason)| json!({"address": peer, "reason": reason})).collect();
        drop(state);
        json!({"peers": peers, "cooling_down": waiting, "rdma": self.describe_rdma()})
    }

    /// Copies what RDMA counts into the agent's counters.
    #[cfg(feature = "rdma")]
    pub fn mirror(&self, counters: &Counters) {
        if let Some(rdma) = &self.rdma {
            counters.sent_rdma.set(rdma.stats().sent_bytes());
            counters.rdma_copied.set(rdma.stats().copied_bytes());
            counters.rdma_devices.set(rdma.devices());
            counters.set_rdma(rdma.device_list());
        }
    }

    /// Without RDMA there is nothing to copy.
    #[cfg(not(feature = "rdma"))]
    pub fn mirror(&self, _counters: &Counters) {}

    #[cfg(feature = "rdma")]
    fn describe_rdma(&self) -> Value {
        self.rdma.as_ref().map_or(Value::Null, Rdma::describe)
    }

    #[cfg(not(feature = "rdma"))]
    fn describe_rdma(&self) -> Value {
        Value::Null
    }
}

/// A probe whose requester goes away must not leave the peer cooling down.
#[cfg(feature = "rdma")]
struct Probe<'a> {
    select: &'a SelectTransport,
    peer: &'a str,
    armed: bool,
}

#[cfg(feature = "rdma")]
impl Probe<'_> {
    fn done(mut self) {
        self.armed = false;
    }
}

#[cfg(feature = "rdma")]
impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if self.armed {
            let now = self.select.now();
            self.select.locked().cooldowns.retry(self.peer, now);
        }
    }
}

impl Transport for SelectTransport {
    fn carrier(&self) -> Carrier {
        Carrier::Tcp
    }

    async fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> Result<Unverified, FetchError> {
        let began = Instant::now();
        let (slot, reason) = match self.choose(peer) {
            Choice::Tcp(reason) => (slot, reason),
            Choice::Rdma(rdma) => match self.by_rdma(rdma, peer, request, slot, deadline).await {
                Ok(answered) => {
                    if let Ok(piece) = &answered {
                        self.count(peer, piece);
                    }
                    return answered;
                }
                Err((Some(slot), reason)) => (slot, Some(reason)),
                // The device has the slot for ever; the arena has others.
                Err((None, reason)) => (self.arena.slot(request.len as usize).await, Some(reason)),
            },
        };
        if let Some(reason) = reason {
            self.counters.fallback("rdma", "tcp", reason);
        }
        let piece = self.tcp.fetch(peer, request, slot, deadline.saturating_sub(began.elapsed())).await?;
        self.count(peer, &piece);
        Ok(piece)
    }
}
