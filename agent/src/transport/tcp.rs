//! The TCP carrier: pipelined requests, answers in the order in which pieces become available.
//!
//! Participants: [`TcpTransport`] asks ([`pool`] keeps connections per peer, [`connection`] is the task that owns
//! one); [`serve`] answers ([`server`] accepts, [`serving`] is the task that owns one connection). The codec is
//! `millstream_agent_core::wire`.
//!
//! Goals: few system calls and few wake-ups per byte, because on a busy node the CPU is what runs out. A piece is
//! read straight into the requester's slot and summed while it is in cache; it is sent from the slot it arrived in
//! or from the page cache. One task owns a connection and every buffer that the kernel may write to, so that a
//! dropped future neither loses the place in the stream nor lets go of a buffer too early.
//!
//! Non-goals: encryption, congestion control, choosing peers, retrying elsewhere.

mod connection;
pub(super) mod greeting;
mod inbound;
mod order;
mod pool;
mod server;
mod serving;
pub(super) mod socket;
mod stats;
mod warm;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use millstream_agent_core::wire::{Features, Hello, TokenHash};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{Carrier, FetchError, PieceRequest, PieceSource, Transport};
use crate::buffers::Slot;
use crate::limits;
use crate::piece::Unverified;
pub use server::{DrainOutcome, serve};
pub use stats::{ServerStats, TransportStats};

/// How to ask.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// This node's name, for the peer's log.
    pub node: String,
    /// The cluster's shared secret, hashed; zeros without one.
    pub token: TokenHash,
    /// Connections per peer, at most.
    pub connections_per_peer: usize,
    /// Requests in flight per connection, at most; a peer may allow fewer.
    pub requests_per_connection: usize,
    /// Another connection is opened when the least busy one has this many requests in flight.
    pub grow_at_requests: usize,
    /// Name lookup, connection and greeting together.
    pub connect_timeout: Duration,
    /// A connection without requests is closed after this time.
    pub idle_close: Duration,
    /// A peer that owes answers is pinged after this much silence, and given up after three times as much.
    pub silence: Duration,
}

impl TcpConfig {
    /// Defaults for a node of that name.
    pub fn new(node: impl Into<String>) -> TcpConfig {
        TcpConfig {
            node: node.into(),
            token: TokenHash::default(),
            connections_per_peer: 2,
            requests_per_connection: limits::REQUESTS_PER_CONNECTION_MAX,
            grow_at_requests: limits::GROW_AT_REQUESTS,
            connect_timeout: limits::PEER_CONNECT_TIMEOUT,
            idle_close: limits::PEER_IDLE_CLOSE,
            silence: limits::PEER_SILENCE,
        }
    }
}

/// Serves those who want their pieces by another way than this connection, which then only carries the control of it.
#[async_trait]
pub trait Takeover: Send + Sync + std::fmt::Debug {
    /// What is offered in the greeting now; nothing while the other way does not work.
    fn features(&self) -> Features;

    /// Takes over a connection on which both sides offered the same feature; `held` came behind the greeting.
    /// Returns why it ended.
    async fn serve(
        &self,
        stream: TcpStream,
        held: Vec<u8>,
        hello: Hello,
        source: Arc<dyn PieceSource>,
        shutdown: CancellationToken,
    ) -> &'static str;
}

/// How to answer.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// This node's name, for the peer's log.
    pub node: String,
    /// The cluster's shared secret, hashed; zeros without one.
    pub token: TokenHash,
    /// A connection that has not said hello by then is closed.
    pub hello_timeout: Duration,
    /// A receiver that takes nothing for this long is cut off.
    pub write_timeout: Duration,
    /// A connection on which nothing is asked for this long is closed.
    pub idle_close: Duration,
    /// Requests in flight per connection, at most.
    pub requests_per_connection: usize,
    /// Connections, at most.
    pub connections_max: usize,
    /// Connections from one address, at most.
    pub connections_per_ip_max: usize,
    /// How long a stop may take.
    pub drain_timeout: Duration,
    /// What the server counts.
    pub stats: Arc<ServerStats>,
    /// Another way for pieces to travel, if there is one.
    pub takeover: Option<Arc<dyn Takeover>>,
}

impl ServerConfig {
    /// Defaults for a node of that name.
    pub fn new(node: impl Into<String>) -> ServerConfig {
        ServerConfig {
            node: node.into(),
            token: TokenHash::default(),
            hello_timeout: limits::PEER_HELLO_TIMEOUT,
            write_timeout: limits::PEER_WRITE_TIMEOUT,
            idle_close: limits::PEER_SERVER_IDLE_CLOSE,
            requests_per_connection: limits::REQUESTS_PER_CONNECTION_MAX,
            connections_max: limits::PEER_CONNECTIONS_MAX,
            connections_per_ip_max: limits::PEER_CONNECTIONS_PER_IP_MAX,
            drain_timeout: limits::PEER_DRAIN_TIMEOUT,
            stats: Arc::default(),
            takeover: None,
        }
    }
}

/// Fetches pieces from peers over pooled, pipelined connections. Cheap to clone; the connections close when the last
/// clone is dropped and nothing is in flight.
#[derive(Clone)]
pub struct TcpTransport {
    pool: Arc<pool::Pool>,
    next_id: Arc<AtomicU64>,
}

impl TcpTransport {
    /// Opens nothing until the first fetch.
    pub fn new(config: TcpConfig) -> TcpTransport {
        TcpTransport { pool: Arc::new(pool::Pool::new(config)), next_id: Arc::default() }
    }

    /// What it counts.
    pub fn stats(&self) -> &Arc<TransportStats> {
        self.pool.stats()
    }
}

impl std::fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpTransport").field("config", self.pool.config()).finish_non_exhaustive()
    }
}

impl Transport for TcpTransport {
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
        let fetch = self.pool.fetch(peer, request, slot, deadline, &self.next_id);
        tokio::time::timeout(deadline, fetch)
            .await
            .unwrap_or_else(|_| Err(FetchError::Timeout { peer: peer.to_owned(), after: deadline }))
    }
}
