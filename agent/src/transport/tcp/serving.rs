//! The task that owns one serving connection: hears requests, waits for their pieces all at once ([`opening`]), sends
//! one piece at a time in the order in which they become available ([`outbound`]).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use millstream_agent_core::wire::{FRAME_BYTES_MAX, Frame, StatusCode, WireError};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};

use super::server::Context;
use super::socket::{self, Moved};
use super::stats::add;
use crate::limits::{PEER_TICK_MIN, REQUEST_BUFFER_BYTES, STEPS_PER_TURN};
use crate::transport::{Inbox, PieceRequest};

mod opening;
mod outbound;

use opening::{Open, Opened, Ready};
use outbound::{Outbound, SendError, Sent};

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    /// By the peer.
    #[error("closed by the peer")]
    ByPeer,
    /// Nothing was asked for long.
    #[error("idle")]
    Idle,
    /// This side is going away.
    #[error("drained")]
    Drained,
    /// The socket failed.
    #[error("i/o error: {0}")]
    Io(io::Error),
    /// The peer takes nothing.
    #[error("the receiver took nothing for {0:.0?}")]
    Stalled(Duration),
    /// Not our protocol.
    #[error("garbage: {0}")]
    Garbage(WireError),
    /// Frames that make no sense.
    #[error("misuse: {0}")]
    Misuse(&'static str),
    /// The file ended within a piece that was verified once.
    #[error("the file ended within a piece")]
    ShortFile,
}

impl Closed {
    /// For counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Closed::ByPeer => "closed by peer",
            Closed::Idle => "idle",
            Closed::Drained => "drained",
            Closed::Io(_) => "i/o error",
            Closed::Stalled(_) => "receiver stalled",
            Closed::Garbage(_) => "garbage frame",
            Closed::Misuse(_) => "misuse",
            Closed::ShortFile => "short file",
        }
    }

    /// Worth a warning?
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Closed::ByPeer | Closed::Idle | Closed::Drained | Closed::Io(_))
    }
}

impl From<io::Error> for Closed {
    fn from(e: io::Error) -> Closed {
        Closed::Io(e)
    }
}

impl From<SendError> for Closed {
    fn from(e: SendError) -> Closed {
        match e {
            SendError::Io(e) => Closed::Io(e),
            SendError::ShortFile => Closed::ShortFile,
        }
    }
}

/// See the module's documentation.
pub(super) struct Serving {
    stream: TcpStream,
    context: Arc<Context>,
    held: Vec<u8>,
    open: HashMap<u64, Open>,
    /// Pieces that cannot be had at once.
    opening: FuturesUnordered<BoxFuture<'static, Opened>>,
    /// Requests to look at again.
    inbox: Arc<Inbox>,
    woken: Vec<u64>,
    ready: VecDeque<Ready>,
    /// Pieces in `ready` that are held or being opened again.
    ready_held: usize,
    out: Outbound,
    /// When something was last asked for or sent.
    active_at: Instant,
    /// When something was last sent, or there was last nothing to send.
    sent_at: Instant,
    draining: bool,
    read_closed: bool,
}

impl Serving {
    pub(super) fn new(stream: TcpStream, context: Arc<Context>, held: Vec<u8>) -> Serving {
        Serving {
            stream,
            context,
            held,
            open: HashMap::new(),
            opening: FuturesUnordered::new(),
            inbox: Arc::default(),
            woken: Vec::new(),
            ready: VecDeque::new(),
            ready_held: 0,
            out: Outbound::default(),
            active_at: Instant::now(),
            sent_at: Instant::now(),
            draining: false,
            read_closed: false,
        }
    }

    pub(super) async fn run(mut self) -> Closed {
        let closed = match self.drive().await {
            Ok(closed) | Err(closed) => closed,
        };
        self.forget_all();
        closed
    }

    async fn drive(&mut self) -> Result<Closed, Closed> {
        let config = &self.context.config;
        let mut tick = tokio::time::interval((config.write_timeout.min(config.idle_close) / 4).max(PEER_TICK_MIN));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (shutdown, inbox) = (self.context.shutdown.clone(), self.inbox.clone());
        let mut patience = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        self.hear()?;
        loop {
            self.send()?;
            if self.draining && self.is_done() && !self.out.is_closed() {
                // The peer ends the connection: closing with its requests unread would reset it under our last piece.
                self.out.close(&self.stream)?;
            }
            if self.read_closed {
                // A peer that has ended its side wants no answers any more.
                return Ok(if self.draining { Closed::Drained } else { Closed::ByPeer });
            }
            let patience_ends = self.patience_ends();
            if let Some(at) = patience_ends
                && at != patience.deadline()
            {
                patience.as_mut().reset(at);
            }
            tokio::select! {
                ready = self.stream.readable() => { ready?; self.read()?; }
                ready = self.stream.writable(), if self.out.has_work() => { ready?; }
                () = inbox.woken() => self.look_again()?,
                Some(opened) = self.opening.next() => self.opened(opened)?,
                () = &mut patience, if patience_ends.is_some() => self.lose_patience()?,
                () = shutdown.cancelled(), if !self.draining => self.go_away()?,
                _ = tick.tick() => self.check_progress()?,
            }
        }
    }

    /// Nothing left to send.
    fn is_done(&self) -> bool {
        self.open.is_empty() && self.ready.is_empty() && !self.out.has_work()
    }

    fn check_progress(&self) -> Result<(), Closed> {
        let config = &self.context.config;
        let stalled = self.sent_at.elapsed();
        if self.out.has_work() && stalled >= config.write_timeout {
            return Err(Closed::Stalled(stalled));
        }
        if self.is_done() && self.active_at.elapsed() >= config.idle_close {
            return Err(Closed::Idle);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Closed> {
        for _ in 0..STEPS_PER_TURN {
            let at = self.held.len();
            self.held.resize(at + REQUEST_BUFFER_BYTES, 0);
            let free = io::IoSliceMut::new(&mut self.held[at..]);
            let moved = socket::read(&self.stream, &mut [free], REQUEST_BUFFER_BYTES);
            let n = match moved {
                Ok(Moved::All(n) | Moved::Partly(n)) => n,
                Ok(Moved::End) | Err(_) => 0,
            };
            self.held.truncate(at + n);
            self.hear()?;
            match moved? {
                Moved::All(_) => {}
                Moved::Partly(_) => break,
                Moved::End => {
                    self.read_closed = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes all whole frames.
    fn hear(&mut self) -> Result<(), Closed> {
        let held = std::mem::take(&mut self.held);
        let mut view = held.as_slice();
        while let Some(frame) = Frame::decode(&mut view).map_err(Closed::Garbage)? {
            self.frame(frame)?;
        }
        let rest = view.len();
        self.held = held;
        self.held.drain(..self.held.len() - rest);
        debug_assert!(rest < FRAME_BYTES_MAX);
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Closed> {
        self.active_at = Instant::now();
        match frame {
            Frame::Request { id, digest, piece, len, deadline_ms } => {
                let request = PieceRequest { digest, piece, len };
                self.request(id, request, Duration::from_millis(u64::from(deadline_ms)))?;
            }
            Frame::Cancel { id } => self.cancel(id)?,
            Frame::Ping { nonce } => self.reply(Frame::Pong { nonce })?,
            Frame::Pong { .. } => {}
            // The requester is going away: it will close when it has what it still wants.
            Frame::GoAway => {}
            Frame::Data { .. } | Frame::Status { .. } => {
                return Err(Closed::Misuse("a requester sends no answers"));
            }
            Frame::QueuePair(_) | Frame::WriteHere { .. } | Frame::Broken { .. } => {
                return Err(Closed::Misuse("a connection without RDMA"));
            }
        }
        Ok(())
    }

    fn reply(&mut self, frame: Frame) -> Result<(), Closed> {
        if self.out.queue(frame) { Ok(()) } else { Err(Closed::Misuse("asks without reading the answers")) }
    }

    fn status(&mut self, id: u64, code: StatusCode) -> Result<(), Closed> {
        self.context.config.stats.answers.count(match code {
            StatusCode::NotHave => "not here",
            StatusCode::Deadline => "deadline",
            StatusCode::Length => "length",
            StatusCode::Draining => "draining",
            StatusCode::Failed => "failed",
            StatusCode::Cancelled => "cancelled",
        });
        self.reply(Frame::Status { id, code })
    }

    /// Sends until the socket is full or there is nothing to send.
    fn send(&mut self) -> Result<(), Closed> {
        if !self.out.has_work() {
            self.sent_at = Instant::now();
        }
        for _ in 0..STEPS_PER_TURN {
            if self.out.sending().is_none() {
                self.next_piece();
            }
            if !self.out.has_work() {
                return Ok(());
            }
            let sent = self.out.step(&self.stream)?;
            let stats = &self.context.config.stats;
            add(&stats.sent_bytes_memory, sent.memory);
            add(&stats.sent_bytes_file, sent.file);
            if sent.any() {
                self.active_at = Instant::now();
                self.sent_at = self.active_at;
            }
            match sent.then {
                Sent::Full => return Ok(()),
                Sent::More => {}
                Sent::Piece => add(&stats.sent_pieces, 1),
            }
        }
        Ok(())
    }
}
