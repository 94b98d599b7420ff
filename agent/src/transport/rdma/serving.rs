//! The serving side: waits for the pieces that a peer asks for and writes them into its slots.
//!
//! One task owns the control connection, the queue pair and everything that is open on it. A piece in memory is
//! written from the slot it arrived in; one on disk is read into a slot of the serving arena first. When the
//! connection ends, for whatever reason, the queue pair is destroyed, and only then are the buffers let go.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use millstream_agent_core::wire::{Frame, Hello, QueuePair, RemoteSlot, StatusCode, Trouble};
use millstream_rdma::{Fault, LEASES_MAX, Queue, Rail, RdmaError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::buffers::Slot;
use crate::buffers::rdma::Outgoing;
use crate::limits::{PEER_HELLO_TIMEOUT, PEER_SERVER_IDLE_CLOSE, PEER_TICK_MIN, PEER_WRITE_TIMEOUT, RDMA_WRITES_MAX};
use crate::piece::Served;
use crate::transport::waiting::patience;
use crate::transport::{PieceRequest, PieceSource};

/// A request, from the peer's asking to the last acknowledged write.
struct Answer {
    node: Arc<Node>,
    source: Arc<dyn PieceSource>,
    queue: Arc<Queue<Slot, Outgoing>>,
    writes: Arc<Semaphore>,
    request: PieceRequest,
    deadline: Instant,
    place: RemoteSlot,
}

/// What an answer came to.
enum Answered {
    Written,
    Refused(StatusCode),
    Broken(Fault),
}

impl Answer {
    async fn open(&self) -> Result<Served, StatusCode> {
        let wait = self.deadline.saturating_duration_since(Instant::now());
        let Some(served) = self.source.open(self.request, wait).await else {
            let late = Instant::now() >= self.deadline;
            return Err(if late { StatusCode::Deadline } else { StatusCode::NotHave });
        };
        let len = match &served {
            Served::Memory(piece) => piece.len(),
            Served::File { len, .. } => *len,
        };
        if len == self.request.len { Ok(served) } else { Err(StatusCode::Length) }
    }

    async fn run(self) -> Answered {
        let mut served = match self.open().await {
            Ok(served) => served,
            Err(code) => return Answered::Refused(code),
        };
        // Only pieces whose turn has come are held, so that one slow peer does not hold the arena.
        let permit = match self.writes.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                drop(served);
                let Ok(permit) = self.writes.clone().acquire_owned().await else {
                    return Answered::Refused(StatusCode::Draining);
                };
                served = match self.open().await {
                    Ok(served) => served,
                    Err(code) => return Answered::Refused(code),
                };
                permit
            }
        };
        let outgoing = match self.outgoing(served).await {
            Ok(outgoing) => outgoing,
            Err(code) => return Answered::Refused(code),
        };
        let written = self.queue.write(outgoing, self.place.address, self.place.key, self.place.tag).await;
        drop(permit);
        match written {
            Ok(_) => {
                self.node.stats.sent_bytes.fetch_add(u64::from(self.request.len), Relaxed);
                Answered::Written
            }
            Err((_, fault)) => Answered::Broken(fault),
        }
    }

    /// The bytes in registered memory.
    async fn outgoing(&self, served: Served) -> Result<Outgoing, StatusCode> {
        let len = self.request.len;
        match served {
            Served::Memory(piece) if self.queue.is_registered(piece.bytes()) => Ok(Outgoing::Piece(piece)),
            Served::Memory(piece) => {
                let mut slot = self.node.serve_arena.slot(len as usize).await;
                slot[..len as usize].copy_from_slice(piece.bytes());
                self.node.stats.copied_bytes.fetch_add(u64::from(len), Relaxed);
                Ok(Outgoing::Read { slot, len })
            }
            Served::File { file, offset, .. } => {
                let mut slot = self.node.serve_arena.slot(len as usize).await;
                let read = tokio::task::spawn_blocking(move || {
                    let result = file.read_exact_at(&mut slot[..len as usize], offset);
                    result.map(|()| slot)
                });
                match read.await {
                    Ok(Ok(slot)) => Ok(Outgoing::Read { slot, len }),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, piece = self.request.piece, "cannot read a piece that a peer asked for");
                        Err(StatusCode::Failed)
                    }
                    Err(error) => {
                        tracing::error!(%error, "reading a piece panicked");
                        Err(StatusCode::Failed)
                    }
                }
            }
        }
    }
}

/// `None`: it was aborted before its write began.
type Done = (u64, Option<Answered>);

struct Serving {
    node: Arc<Node>,
    stream: TcpStream,
    held: Vec<u8>,
    source: Arc<dyn PieceSource>,
    queue: Arc<Queue<Slot, Outgoing>>,
    writes: Arc<Semaphore>,
    open: HashMap<u64, AbortHandle>,
    answers: FuturesUnordered<BoxFuture<'static, Done>>,
    active_at: Instant,
    draining: bool,
}

/// Serves one peer until its connection ends; returns why it did.
pub(super) async fn serve(
    node: Arc<Node>,
    mut stream: TcpStream,
    mut held: Vec<u8>,
    hello: Hello,
    source: Arc<dyn PieceSource>,
    shutdown: CancellationToken,
) -> &'static str {
    let paired = tokio::time::timeout(PEER_HELLO_TIMEOUT, pair(&node, &mut stream, &mut held, &hello)).await;
    let queue = match paired {
        Ok(Ok(queue)) => Arc::new(queue),
        Ok(Err(reason)) => return reason,
        Err(_) => return "no queue pair in time",
    };
    let mut serving = Serving {
        node,
        stream,
        held,
        source,
        queue,
        writes: Arc::new(Semaphore::new(RDMA_WRITES_MAX)),
        open: HashMap::new(),
        answers: FuturesUnordered::new(),
        active_at: Instant::now(),
        draining: false,
    };
    let reason = match serving.drive(&shutdown).await {
        Ok(reason) | Err(reason) => reason,
    };
    // Destroys the queue pair: writes in flight end, then their buffers are let go.
    serving.queue.close(Fault::Closed);
    tracing::debug!(node = hello.node, reason, "an RDMA connection ended");
    reason
}

/// The exchange of queue pairs.
async fn pair(
    node: &Arc<Node>,
    stream: &mut TcpStream,
    held: &mut Vec<u8>,
    hello: &Hello,
) -> Result<Queue<Slot, Outgoing>, &'static str> {
    let theirs = their_pair(stream, held).await?;
    let queue = match node.rails.choose_answering(&hello.node, &theirs) {
        Some(rail) => queue_pair(&rail, &theirs).await.map_err(|error| {
            tracing::warn!(%error, peer = hello.node, "cannot give a peer a queue pair");
            (trouble_of(&error), error.reason())
        }),
        None => Err((Trouble::Device, "no device")),
    };
    let mut bytes = Vec::new();
    match &queue {
        Ok(queue) => Frame::QueuePair(super::to_wire(&queue.address())).encode(&mut bytes),
        Err((trouble, _)) => Frame::Broken { trouble: *trouble }.encode(&mut bytes),
    }
    stream.write_all(&bytes).await.map_err(|_| "i/o error")?;
    queue.map_err(|(_, reason)| reason)
}

async fn queue_pair(rail: &Rail, theirs: &QueuePair) -> Result<Queue<Slot, Outgoing>, RdmaError> {
    super::joined(rail.queue()?, theirs).await
}

async fn their_pair(stream: &mut TcpStream, held: &mut Vec<u8>) -> Result<QueuePair, &'static str> {
    loop {
        let mut view = held.as_slice();
        let decoded = Frame::decode(&mut view).map_err(|_| "garbage frame")?;
        let taken = held.len() - view.len();
        held.drain(..taken);
        match decoded {
            Some(Frame::QueuePair(pair)) => return Ok(pair),
            Some(_) => return Err("misuse"),
            None => {}
        }
        if stream.read_buf(held).await.map_err(|_| "i/o error")? == 0 {
            return Err("closed by peer");
        }
    }
}

/// What the requester is told when there is no queue pair for it.
fn trouble_of(error: &RdmaError) -> Trouble {
    match error {
        RdmaError::TooManyQueues { .. } | RdmaError::Create { .. } => Trouble::Resources,
        RdmaError::Connect { .. } => Trouble::Other,
        _ => Trouble::Device,
    }
}

/// What the requester is told when its queue pair has failed here.
fn trouble_in(fault: Fault) -> Trouble {
    match fault {
        Fault::RetryExceeded => Trouble::RetryExceeded,
        Fault::ReceiverNotReady => Trouble::ReceiverNotReady,
        Fault::RemoteAccess | Fault::RemoteRefused => Trouble::Refused,
        Fault::DeviceRemoved | Fault::PortDown | Fault::GidChanged | Fault::RailPaused => Trouble::Device,
        _ => Trouble::Other,
    }
}

impl Serving {
    async fn drive(&mut self, shutdown: &CancellationToken) -> Result<&'static str, &'static str> {
        let mut tick = tokio::time::interval((PEER_SERVER_IDLE_CLOSE / 4).max(PEER_TICK_MIN));
        self.hear().await?;
        loop {
            if self.draining && self.open.is_empty() {
                return Ok("drained");
            }
            tokio::select! {
                read = self.stream.read_buf(&mut self.held) => match read {
                    Ok(n) if n > 0 => self.hear().await?,
                    Ok(_) => return Ok("closed by peer"),
                    Err(_) => return Ok("i/o error"),
                },
                Some((id, answered)) = self.answers.next() => self.answered(id, answered).await?,
                fault = self.queue.broken() => return Ok(self.broken(fault).await),
                () = shutdown.cancelled(), if !self.draining => {
                    self.draining = true;
                    self.say(Frame::GoAway).await?;
                }
                _ = tick.tick() => {
                    if self.open.is_empty() && self.active_at.elapsed() >= PEER_SERVER_IDLE_CLOSE {
                        return Ok("idle");
                    }
                }
            }
        }
    }

    async fn say(&mut self, frame: Frame) -> Result<(), &'static str> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        match tokio::time::timeout(PEER_WRITE_TIMEOUT, self.stream.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("i/o error"),
            Err(_) => Err("receiver stalled"),
        }
    }

    /// Tells the requester why nothing more comes. It may be gone itself.
    async fn broken(&mut self, fault: Fault) -> &'static str {
        let _ = self.say(Frame::Broken { trouble: trouble_in(fault) }).await;
        fault.reason()
    }

    async fn answered(&mut self, id: u64, answered: Option<Answered>) -> Result<(), &'static str> {
        self.open.remove(&id);
        self.active_at = Instant::now();
        match answered {
            Some(Answered::Written) => Ok(()),
            Some(Answered::Refused(code)) => self.say(Frame::Status { id, code }).await,
            None => self.say(Frame::Status { id, code: StatusCode::Cancelled }).await,
            Some(Answered::Broken(fault)) => Err(self.broken(fault).await),
        }
    }

    async fn hear(&mut self) -> Result<(), &'static str> {
        loop {
            let mut view = self.held.as_slice();
            let decoded = Frame::decode(&mut view).map_err(|_| "garbage frame")?;
            let taken = self.held.len() - view.len();
            self.held.drain(..taken);
            let Some(frame) = decoded else { return Ok(()) };
            self.active_at = Instant::now();
            match frame {
                Frame::WriteHere { id, digest, piece, len, deadline_ms, place } => {
                    let request = PieceRequest { digest, piece, len };
                    self.request(id, request, Duration::from_millis(u64::from(deadline_ms)), place).await?;
                }
                // A write that has begun goes on to its end: the requester hears of it from its own device.
                Frame::Cancel { id } => {
                    if let Some(abort) = self.open.get(&id) {
                        abort.abort();
                    }
                }
                Frame::Ping { nonce } => self.say(Frame::Pong { nonce }).await?,
                Frame::Pong { .. } | Frame::GoAway => {}
                _ => return Err("misuse"),
            }
        }
    }

    async fn request(
        &mut self,
        id: u64,
        request: PieceRequest,
        wait: Duration,
        place: RemoteSlot,
    ) -> Result<(), &'static str> {
        // Twice as many as can be lent: the requester knows of the last byte before this side does.
        if self.open.len() >= 2 * LEASES_MAX || self.open.contains_key(&id) {
            return Err("misuse");
        }
        if self.draining {
            return self.say(Frame::Status { id, code: StatusCode::Draining }).await;
        }
        let answer = Answer {
            node: self.node.clone(),
            source: self.source.clone(),
            queue: self.queue.clone(),
            writes: self.writes.clone(),
            request,
            deadline: Instant::now() + patience(wait),
            place,
        };
        let (abort, registration) = AbortHandle::new_pair();
        self.open.insert(id, abort);
        let answer = Abortable::new(answer.run(), registration);
        self.answers.push(Box::pin(async move { (id, answer.await.ok()) }));
        Ok(())
    }
}
