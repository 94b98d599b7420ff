//! How pieces move between agents: one trait that a one-sided carrier (RDMA) fits, and its TCP implementation.
//!
//! A carrier takes the requester's slot and gives it back filled: the operation in flight owns the buffer, never a
//! future that may be dropped. That is what lets a NIC write into it.

use std::fmt;
use std::future::Future;
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
mod waiting;

pub use waiting::{Inbox, Waiter};

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
    /// The peer answers, but was itself waiting for the piece until the deadline.
    #[error("peer {peer} did not receive the piece itself within {after:?}")]
    NotYet {
        /// host:port.
        peer: String,
        /// The deadline that passed.
        after: Duration,
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
/// prefers RDMA; a faulty wrapper in tests. Futures are concrete types, so that a fetch allocates nothing.
pub trait Transport: Send + Sync + fmt::Debug {
    /// The carrier that is used for bytes that do not say themselves by which they came.
    fn carrier(&self) -> Carrier;

    /// Asks `peer` (host:port) for one piece and fills `slot` with exactly `request.len` bytes, summing them while
    /// they are in cache. The transport owns the slot until it returns it inside [`Unverified`] or drops it after
    /// nothing can write to it any more.
    ///
    /// # Errors
    /// [`FetchError`]; the slot has then gone back to the arena.
    fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> impl Future<Output = Result<Unverified, FetchError>> + Send;
}

/// What a look at a source comes to.
#[derive(Debug)]
pub enum Look {
    /// Here it is.
    Here(Served),
    /// Not yet: the waiter is woken when it is worth looking again.
    Wait {
        /// This node was told to fetch it. If not, its order may still be on the way, but not for long.
        expected: bool,
    },
    /// To be had, but not at once: [`open`](PieceSource::open) it.
    Open,
    /// This node does not have it.
    No,
}

/// Where a serving transport gets verified bytes. Implemented by the agent's piece table; faulty ones in tests.
#[async_trait]
pub trait PieceSource: Send + Sync + 'static {
    /// The piece, if it can be had without blocking. Allocates nothing.
    fn look(&self, _request: &PieceRequest, _waiter: &Waiter) -> Look {
        Look::Open
    }

    /// The waiter does not want to be woken any more.
    fn forget(&self, _request: &PieceRequest, _waiter: &Waiter) {}

    /// Waits until the piece is verified here, but no longer than `deadline` and not at all when this node neither
    /// has it nor is receiving it (`None`).
    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served>;
}
