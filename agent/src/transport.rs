//! How pieces move between agents: one trait that a one-sided carrier (RDMA) fits, and its TCP implementation.
//!
//! A carrier takes the requester's slot and gives it back filled: the operation in flight owns the buffer, never a
//! future that may be dropped. That is what lets a NIC write into it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use millstream_types::{Digest, PieceNo};

use crate::buffers::Slot;
use crate::piece::{Served, Unverified};

pub use millstream_agent_core::reasons;

pub mod faulty;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod select;
pub mod tcp;

/// Which carrier bytes travelled by. The names are those of metrics and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// Framed, pipelined TCP.
    Tcp,
    /// One-sided RDMA WRITE into the requester's slot.
    Rdma,
}

impl Carrier {
    /// `tcp` or `rdma`.
    pub fn as_str(self) -> &'static str {
        match self {
            Carrier::Tcp => "tcp",
            Carrier::Rdma => "rdma",
        }
    }
}

/// Bytes received from one peer, by carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerBytes {
    /// Over RDMA.
    pub rdma: u64,
    /// Over TCP.
    pub tcp: u64,
}

/// One piece asked of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceRequest {
    /// The version, by its lasting identity.
    pub digest: Digest,
    /// The piece.
    pub piece: PieceNo,
    /// Its length in bytes, from the manifest. A peer that offers another length breaks the protocol.
    pub len: u32,
}

/// Why a peer did not deliver a piece.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("cannot reach peer {peer}: {detail}")]
    Unreachable {
        /// host:port.
        peer: String,
        /// The underlying error.
        detail: String,
    },
    /// No answer in time.
    #[error("peer {peer} did not answer within {after:?}")]
    Timeout {
        /// host:port.
        peer: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// The peer does not have the piece and is not receiving it.
    #[error("peer {peer} does not have the piece")]
    NotHave {
        /// host:port.
        peer: String,
    },
    /// The peer sent something else than it was asked for.
    #[error("peer {peer} broke the protocol: {detail}")]
    Protocol {
        /// host:port.
        peer: String,
        /// What it did.
        detail: String,
    },
    /// The requester stopped it.
    #[error("cancelled")]
    Cancelled,
}

/// Fetches pieces from peers. Implementations: [`tcp::TcpTransport`]; [`select::SelectTransport`], which
/// prefers RDMA; a faulty wrapper in tests.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug {
    /// The carrier that is used for bytes that do not say themselves by which they came.
    fn carrier(&self) -> Carrier;

    /// Bytes received from each peer, by its address.
    fn peers(&self) -> BTreeMap<String, PeerBytes> {
        BTreeMap::new()
    }

    /// Asks `peer` (host:port) for one piece and fills `slot` with exactly `request.len` bytes, summing them while
    /// they are in cache. The transport owns the slot until it returns it inside [`Unverified`] or drops it after
    /// nothing can write to it any more.
    ///
    /// # Errors
    /// [`FetchError`]; the slot has then gone back to the arena.
    async fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> Result<Unverified, FetchError>;
}

/// Where a serving transport gets verified bytes. Implemented by the agent's piece table; faulty ones in tests.
#[async_trait]
pub trait PieceSource: Send + Sync + 'static {
    /// Waits until the piece is verified here, but no longer than `deadline` and not at all when this node neither
    /// has it nor is receiving it (`None`).
    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served>;
}
