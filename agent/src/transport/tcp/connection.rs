//! The task that owns one asking connection, the requests in flight on it, and their slots.
//!
//! Orders come in over a channel and are answered exactly once: filled, failed, or given back unsent. The task ends
//! when the connection does, when it has been idle for long, or when everyone who could send it orders is gone and
//! nothing is in flight. A cancelled request stays in the books without its slot until the peer has answered it,
//! because the answer may be on its way.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use millstream_agent_core::wire::{Frame, Hello, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::TcpConfig;
use super::inbound::{Arrived, Inbound, InboundError, Step};
use super::order::{Answer, Command, Gauge, Load, Order, answer, give_back, give_back_all};
use super::socket::{self, Moved};
use super::stats::{TransportStats, add};
use crate::buffers::Slot;
use crate::limits::{PEER_TICK_MIN, STEPS_PER_TURN};
use crate::reply;
use crate::transport::FetchError;

/// A request in flight. Its slot is taken when its answer begins or when it is cancelled.
struct Pending {
    len: u32,
    after: Duration,
    slot: Option<Slot>,
    answer: Option<reply::Sender<Answer>>,
    _load: Load,
}

/// Why a connection ended.
pub(super) enum Ended {
    /// As it should.
    Quietly,
    /// The socket failed, or the peer is silent: its requests fail as unreachable.
    Broken(String),
    /// The peer broke the protocol: its requests fail as that.
    Protocol(String),
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Ended {
        Ended::Broken(e.to_string())
    }
}

impl From<InboundError> for Ended {
    fn from(e: InboundError) -> Ended {
        match e {
            InboundError::Io(e) => e.into(),
            InboundError::Wire(e) => Ended::Protocol(e.to_string()),
        }
    }
}

/// The connection. Built once the greeting is done.
pub(super) struct Connection {
    stream: TcpStream,
    peer: Arc<str>,
    gauge: Arc<Gauge>,
    stats: Arc<TransportStats>,
    window: usize,
    silence: Duration,
    idle_close: Duration,
    inbound: Inbound,
    pending: HashMap<u64, Pending>,
    /// Orders over the peer's window.
    backlog: VecDeque<Order>,
    out: Vec<u8>,
    out_written: usize,
    /// When something was last heard, or first asked for after a pause.
    alive_at: Instant,
    pinged: bool,
    going_away: bool,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        inbound: Inbound,
        peer: Arc<str>,
        hello: &Hello,
        config: &TcpConfig,
        gauge: Arc<Gauge>,
        stats: Arc<TransportStats>,
    ) -> Connection {
        Connection {
            stream,
            peer,
            gauge,
            stats,
            window: usize::from(hello.window).clamp(1, config.requests_per_connection.max(1)),
            silence: config.silence,
            idle_close: config.idle_close,
            inbound,
            pending: HashMap::new(),
            backlog: VecDeque::new(),
            out: Vec::new(),
            out_written: 0,
            alive_at: Instant::now(),
            pinged: false,
            going_away: false,
        }
    }

    /// Runs until the connection ends, then answers everything that is still open.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) -> Ended {
        let ended = match self.drive(&mut commands).await {
            Ok(()) => Ended::Quietly,
            Err(ended) => ended,
        };
        self.gauge.close();
        // The last requester's slots go back only here, after nothing can be read into them any more.
        drop(self.stream);
        for (_, pending) in self.pending.drain() {
            let error = failure(&ended, &self.peer);
            answer(pending.answer, Answer::Failed(error));
        }
        for order in self.backlog.drain(..) {
            give_back(order);
        }
        give_back_all(commands);
        ended
    }

    async fn drive(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Ended> {
        let mut tick = tokio::time::interval((self.silence.min(self.idle_close) / 4).max(PEER_TICK_MIN));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut orphaned = false;
        loop {
            self.flush()?;
            let busy = !(self.pending.is_empty() && self.backlog.is_empty());
            if (orphaned || self.going_away) && !busy {
                return Ok(());
            }
            self.inbound.before_wait(&self.stream)?;
            let out_waits = self.out_written < self.out.len();
            tokio::select! {
                ready = self.stream.readable() => { ready?; self.read()?; }
                ready = self.stream.writable(), if out_waits => { ready?; }
                command = commands.recv(), if !orphaned => match command {
                    Some(command) => {
                        self.take(command);
                        while let Ok(more) = commands.try_recv() {
                            self.take(more);
                        }
                    }
                    None => orphaned = true,
                },
                _ = tick.tick() => if self.is_idle(busy)? { return Ok(()) },
            }
        }
    }

    /// True when an idle connection has been so for long enough.
    fn is_idle(&mut self, busy: bool) -> Result<bool, Ended> {
        let silent = self.alive_at.elapsed();
        if !busy {
            return Ok(silent >= self.idle_close);
        }
        if silent >= self.silence * 3 {
            return Err(Ended::Broken(format!("silent for {silent:.0?} with requests open")));
        }
        if silent >= self.silence && !self.pinged {
            self.pinged = true;
            Frame::Ping { nonce: 0 }.encode(&mut self.out);
        }
        Ok(false)
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Fetch(order) if order.answer.is_closed() => drop(order),
            Command::Fetch(order) if self.going_away => give_back(order),
            Command::Fetch(order) if self.pending.len() >= self.window => self.backlog.push_back(order),
            Command::Fetch(order) => self.ask(order),
            Command::Cancel(id) => self.cancel(id),
        }
    }

    fn ask(&mut self, order: Order) {
        if self.pending.is_empty() {
            self.alive_at = Instant::now();
            self.pinged = false;
        }
        let left = order.deadline.saturating_duration_since(Instant::now());
        let request = Frame::Request {
            id: order.id,
            digest: order.request.digest,
            piece: order.request.piece,
            len: order.request.len,
            deadline_ms: left.as_millis().try_into().unwrap_or(u32::MAX),
        };
        request.encode(&mut self.out);
        let pending = Pending {
            len: order.request.len,
            after: order.after,
            slot: Some(order.slot),
            answer: Some(order.answer),
            _load: order.load,
        };
        self.pending.insert(order.id, pending);
    }

    fn cancel(&mut self, id: u64) {
        self.backlog.retain(|order| order.id != id);
        // Once its piece is arriving, the slot stays with it to the end.
        if self.inbound.arriving() == Some(id) {
            return;
        }
        if let Some(pending) = self.pending.get_mut(&id)
            && pending.slot.take().is_some()
        {
            pending.answer = None;
            Frame::Cancel { id }.encode(&mut self.out);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.out_written < self.out.len() {
            let rest = &self.out[self.out_written..];
            match socket::write(&self.stream, &[IoSlice::new(rest)], rest.len())? {
                Moved::All(n) => self.out_written += n,
                Moved::Partly(n) => {
                    self.out_written += n;
                    return Ok(());
                }
                Moved::End => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        self.out.clear();
        self.out_written = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Ended> {
        let result = self.read_steps();
        let bytes = std::mem::take(&mut self.inbound.bytes);
        if bytes > 0 {
            add(&self.stats.received_bytes, bytes);
            add(&self.stats.discarded_bytes, std::mem::take(&mut self.inbound.dropped));
        }
        result
    }

    fn read_steps(&mut self) -> Result<(), Ended> {
        // Bounded, so that one fast connection does not starve the others of this worker.
        for _ in 0..STEPS_PER_TURN {
            match self.inbound.step(&self.stream)? {
                Step::Arrived(arrived) => self.arrived(arrived)?,
                Step::Progress => {}
                Step::Drained => break,
                Step::End if self.pending.is_empty() => self.going_away = true,
                Step::End => return Err(Ended::Broken("closed by the peer".into())),
            }
            self.alive_at = Instant::now();
            self.pinged = false;
            if self.going_away && self.pending.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), Ended> {
        match arrived {
            Arrived::Piece { id, piece } => {
                if let (Some(pending), Some(piece)) = (self.pending.remove(&id), piece) {
                    answer(pending.answer, Answer::Filled(piece));
                }
                self.ask_more();
            }
            Arrived::Frame(Frame::Data { id, len }) => self.data(id, len)?,
            Arrived::Frame(Frame::Status { id, code }) => {
                let Some(pending) = self.pending.remove(&id) else {
                    return Err(Ended::Protocol(format!("a status for request {id}, which is not open")));
                };
                let error = self.refused(code, pending.after);
                drop(pending.slot);
                answer(pending.answer, Answer::Failed(error));
                self.ask_more();
            }
            Arrived::Frame(Frame::Ping { nonce }) => Frame::Pong { nonce }.encode(&mut self.out),
            Arrived::Frame(Frame::Pong { .. }) => {}
            Arrived::Frame(Frame::GoAway) => {
                self.going_away = true;
                self.gauge.close();
                self.backlog.drain(..).for_each(give_back);
            }
            Arrived::Frame(
                frame @ (Frame::Request { .. }
                | Frame::Cancel { .. }
                | Frame::QueuePair(_)
                | Frame::WriteHere { .. }
                | Frame::Broken { .. }),
            ) => {
                return Err(Ended::Protocol(format!("a server does not send {frame:?}")));
            }
        }
        Ok(())
    }

    /// A piece begins. What its header says is compared with what was asked for.
    fn data(&mut self, id: u64, len: u32) -> Result<(), Ended> {
        let Some(pending) = self.pending.get_mut(&id) else {
            return Err(Ended::Protocol(format!("data for request {id}, which is not open")));
        };
        if len != pending.len {
            return Err(Ended::Protocol(format!("{len} bytes for a piece of {}", pending.len)));
        }
        self.inbound.begin(id, len, pending.slot.take(), self.stats.arriving.begin());
        Ok(())
    }

    fn refused(&self, code: StatusCode, after: Duration) -> FetchError {
        let peer = self.peer.to_string();
        let unreachable = |detail: &str| FetchError::Unreachable { peer: self.peer.to_string(), detail: detail.into() };
        match code {
            StatusCode::NotHave => FetchError::NotHave { peer },
            StatusCode::Deadline => FetchError::NotYet { peer, after },
            StatusCode::Length => FetchError::Protocol { peer, detail: "it has the piece with another length".into() },
            StatusCode::Draining => unreachable("it is going away"),
            StatusCode::Failed => unreachable("it could not read the piece"),
            // Who cancels does not listen any more; who listens has not cancelled.
            StatusCode::Cancelled => FetchError::Protocol { peer, detail: "it cancelled a request that stands".into() },
        }
    }

    fn ask_more(&mut self) {
        while self.pending.len() < self.window {
            match self.backlog.pop_front() {
                Some(order) => self.ask(order),
                None => return,
            }
        }
    }
}

fn failure(ended: &Ended, peer: &str) -> FetchError {
    let peer = peer.to_owned();
    match ended {
        Ended::Quietly => FetchError::Unreachable { peer, detail: "connection closed".into() },
        Ended::Broken(detail) => FetchError::Unreachable { peer, detail: detail.clone() },
        Ended::Protocol(detail) => FetchError::Protocol { peer, detail: detail.clone() },
    }
}
