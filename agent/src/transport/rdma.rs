//! The RDMA carrier: pieces are written by the source's NIC straight into the requester's slot.
//!
//! Participants: [`rails`] keeps this node's ports open and registered; [`asking`] lends slots to peers over one
//! queue pair each; [`serving`] answers with writes. The control of a transfer (greeting, queue pairs, requests,
//! statuses) runs over an ordinary connection to the peer's port, whose end is the queue pair's end.
//!
//! Goals: no copy between NIC and disk; a slot is out of the peer's reach before it is summed; whatever fails, the
//! slot comes back and the caller hears a reason code, so that it can go on over TCP and say so. Non-goals: choosing
//! the carrier (see [`super::select`]), encryption.

mod asking;
mod rails;
mod serving;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use millstream_agent_core::wire::{Features, Hello, QueuePair, TokenHash};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::tcp::Takeover;
use super::{FetchError, PieceRequest, PieceSource};
use crate::buffers::rdma::Outgoing;
use crate::buffers::{Arena, Slot};
use crate::config::RdmaMode;
use crate::limits::{PEER_CONNECT_TIMEOUT, PEER_IDLE_CLOSE, PEER_SILENCE, RDMA_SERVE_BYTES, RDMA_SETUP_TIMEOUT};
use crate::piece::Unverified;
use millstream_rdma::Queue;
pub use millstream_rdma::{Device, Link, Rail, RailOptions, RdmaError, discover};
use rails::Rails;

/// How RDMA is used.
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    /// This node's name, for the peer's log.
    pub node: String,
    /// The cluster's shared secret, hashed; zeros without one.
    pub token: TokenHash,
    /// Which devices.
    pub mode: RdmaMode,
    /// Name lookup and connection together.
    pub connect_timeout: Duration,
    /// Greeting and queue pairs together.
    pub setup_timeout: Duration,
    /// A queue pair without requests is closed after this time.
    pub idle_close: Duration,
    /// A peer is pinged this often while it owes answers, and given up after three times as much silence.
    pub silence: Duration,
    /// How queue pairs behave; tests shorten their timeouts.
    pub options: millstream_rdma::RailOptions,
}

impl RdmaConfig {
    /// Defaults for a node of that name.
    pub fn new(node: impl Into<String>, mode: RdmaMode) -> RdmaConfig {
        RdmaConfig {
            node: node.into(),
            token: TokenHash::default(),
            mode,
            connect_timeout: PEER_CONNECT_TIMEOUT,
            setup_timeout: RDMA_SETUP_TIMEOUT,
            idle_close: PEER_IDLE_CLOSE,
            silence: PEER_SILENCE,
            options: millstream_rdma::RailOptions::default(),
        }
    }
}

/// What the carrier counts.
#[derive(Debug, Default)]
pub struct RdmaStats {
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Bytes that had to be copied in memory before they could be sent: 0 unless the source holds pieces elsewhere.
    copied_bytes: AtomicU64,
    links_opened: AtomicU64,
}

impl RdmaStats {
    /// Piece bytes written into this node's slots.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Relaxed)
    }

    /// Piece bytes written into peers' slots, acknowledged by their devices.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    /// Bytes that were copied in memory to be sent.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Relaxed)
    }

    /// Queue pairs that were connected, asking side.
    pub fn links_opened(&self) -> u64 {
        self.links_opened.load(Relaxed)
    }
}

/// Why a fetch brought nothing.
#[derive(Debug)]
pub enum Failed {
    /// The peer answered, or the requester gave up: another carrier would do no better.
    Answered(FetchError),
    /// RDMA did not work: the piece can be had over another carrier.
    Carrier {
        /// The slot, unless the device still has it.
        slot: Option<Slot>,
        /// The reason code.
        reason: &'static str,
        /// The same in words.
        detail: String,
        /// It is this node's device or port that failed, not the peer's.
        ours: bool,
    },
}

/// What both sides share.
#[derive(Debug)]
struct Node {
    config: RdmaConfig,
    rails: Rails,
    /// Slots for pieces that are read from disk to be sent. Apart from the arena: a receiver that holds slots while
    /// it waits for a peer must never keep that peer's reads waiting.
    serve_arena: Arc<Arena>,
    stats: Arc<RdmaStats>,
    shutdown: CancellationToken,
}

/// This node's RDMA: asks and serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Rdma {
    node: Arc<Node>,
    peers: Arc<asking::Peers>,
}

impl Rdma {
    /// Opens what there is and registers `arena` with it. Having no device is no error: see [`Rdma::lack`].
    ///
    /// # Errors
    /// No memory for the serving side's buffers.
    pub async fn start(
        config: RdmaConfig,
        arena: Arc<Arena>,
        shutdown: CancellationToken,
    ) -> Result<Rdma, crate::buffers::ArenaError> {
        let serve_arena = Arena::new(RDMA_SERVE_BYTES)?;
        let rails = Rails::new(config.mode.clone(), config.options, [arena, serve_arena.clone()]);
        let node = Arc::new(Node { config, rails, serve_arena, stats: Arc::default(), shutdown });
        node.rails.look().await;
        tokio::spawn(rails::keep(Arc::downgrade(&node), node.shutdown.clone()));
        Ok(Rdma { peers: Arc::new(asking::Peers::new(node.clone())), node })
    }

    /// Why no device can be used now; `Ok` when one can. `Err(None)`: there is none and none was asked for.
    ///
    /// # Errors
    /// The reason code.
    pub fn lack(&self) -> Result<(), Option<&'static str>> {
        self.node.rails.lack()
    }

    /// Devices that can be used now.
    pub fn devices(&self) -> u64 {
        self.node.rails.up()
    }

    /// All of them, with what went over each.
    pub fn device_list(&self) -> Vec<crate::counters::RdmaDevice> {
        self.node.rails.devices()
    }

    /// What it counts.
    pub fn stats(&self) -> &Arc<RdmaStats> {
        &self.node.stats
    }

    /// Fetches a piece. The operation goes on to its end by itself when the future is dropped.
    ///
    /// # Errors
    /// See [`Failed`].
    pub async fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> Result<Unverified, Failed> {
        self.peers.fetch(peer, request, slot, deadline).await
    }

    /// For the status: devices with their own counters, and what was sent and received.
    pub fn describe(&self) -> Value {
        let stats = &self.node.stats;
        json!({
            "received_bytes": stats.received_bytes(), "sent_bytes": stats.sent_bytes(),
            "copied_bytes": stats.copied_bytes(), "links_opened": stats.links_opened(),
            "reason": self.lack().err().flatten(),
            "devices": self.node.rails.describe(),
        })
    }
}

#[async_trait]
impl Takeover for Rdma {
    fn features(&self) -> Features {
        if self.lack().is_ok() { Features::RDMA } else { Features::NONE }
    }

    async fn serve(
        &self,
        stream: TcpStream,
        held: Vec<u8>,
        hello: Hello,
        source: Arc<dyn PieceSource>,
        shutdown: CancellationToken,
    ) -> &'static str {
        serving::serve(self.node.clone(), stream, held, hello, source, shutdown).await
    }
}

fn to_wire(address: &millstream_rdma::Address) -> QueuePair {
    QueuePair {
        number: address.number,
        psn: address.psn,
        gid: address.gid.0,
        lid: address.lid,
        mtu_code: address.mtu_code.clamp(1, 5),
        infiniband: address.infiniband,
    }
}

fn from_wire(pair: &QueuePair) -> millstream_rdma::Address {
    millstream_rdma::Address {
        number: pair.number,
        psn: pair.psn,
        gid: millstream_rdma::Gid(pair.gid),
        lid: pair.lid,
        mtu_code: pair.mtu_code,
        infiniband: pair.infiniband,
    }
}

/// Connects a queue pair to the peer's. The kernel may look for the peer's hardware address meanwhile, for seconds when
/// nobody has it.
async fn joined(queue: Queue<Slot, Outgoing>, peer: &QueuePair) -> Result<Queue<Slot, Outgoing>, RdmaError> {
    let address = from_wire(peer);
    let device = queue.device().to_owned();
    let joined = tokio::task::spawn_blocking(move || queue.connect(&address).map(|()| queue)).await;
    joined.unwrap_or_else(|error| Err(RdmaError::Connect { device, source: std::io::Error::other(error) }))
}
