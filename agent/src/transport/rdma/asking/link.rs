//! A link: the control connection to one peer, and the queue pair that lives as long as it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::limits::RDMA_RAIL_LOOK_PERIOD;

/// Ends of a link that may be its rail's fault, or that of the peer's: the next one tries another.
const RAIL_REASONS: [&str; 7] = [
    "retry-exceeded",
    "receiver-not-ready",
    "remote-access",
    "local-error",
    "peer-device",
    "peer-fault",
    "cancel-ignored",
];

/// The end of a link that nobody used.
pub(in crate::transport::rdma) const IDLE: &str = "idle";

type Statuses = HashMap<u64, oneshot::Sender<StatusCode>>;

/// What fetches use; a task owns the connection.
pub(in crate::transport::rdma) struct Link {
    pub(super) queue: Queue<Slot, Outgoing>,
    /// Slots that may be lent at once.
    pub(super) permits: Arc<Semaphore>,
    out: mpsc::UnboundedSender<Frame>,
    open: Mutex<Statuses>,
    ended: Mutex<Option<&'static str>>,
    stop: CancellationToken,
    node: Arc<Node>,
    peer: String,
    /// A piece has come over it.
    carried: AtomicBool,
    /// When it was last asked whether this is still the rail to use.
    rail_looked_at: Mutex<Instant>,
}

impl Link {
    pub(super) fn start(address: &str, node: &Arc<Node>, paired: Paired, stop: CancellationToken) -> Arc<Link> {
        let Paired { stream, held, queue } = paired;
        // At most two frames for each slot that is lent, so the channel is bounded by those.
        let (out, frames) = mpsc::unbounded_channel();
        let link = Arc::new(Link {
            queue,
            permits: Arc::new(Semaphore::new(millstream_rdma::LEASES_MAX)),
            out,
            open: Mutex::default(),
            ended: Mutex::default(),
            stop: stop.child_token(),
            node: node.clone(),
            peer: address.to_owned(),
            carried: AtomicBool::new(false),
            rail_looked_at: Mutex::new(Instant::now()),
        });
        let task = link.clone();
        let (silence, idle_close) = (node.config.silence, node.config.idle_close);
        tokio::spawn(async move {
            let reason = Control { link: &task, stream, held, frames, silence, idle_close }.run().await;
            task.end(reason);
            // Not always what ended the connection: the first reason is the one that counts.
            let reason = task.ended().unwrap_or(reason);
            if RAIL_REASONS.contains(&reason) {
                task.node.rails.failed(&task.peer, task.queue.device());
            }
            tracing::debug!(peer = task.peer, reason = task.ended(), "an RDMA link ended");
        });
        link
    }

    pub(super) fn is_open(&self) -> bool {
        locked(&self.ended).is_none() && self.queue.fault().is_none()
    }

    /// Is another rail the better one by now? One that failed may have come back. Looked at now and then.
    pub(super) fn is_to_move(&self) -> bool {
        let mut looked_at = locked(&self.rail_looked_at);
        if looked_at.elapsed() < RDMA_RAIL_LOOK_PERIOD {
            return false;
        }
        *looked_at = Instant::now();
        self.node.rails.choose(&self.peer).is_some_and(|rail| rail.device() != self.queue.device())
    }

    /// A piece has come.
    pub(super) fn carried(&self) {
        if !self.carried.swap(true, Relaxed) {
            self.node.rails.worked(&self.peer, self.queue.device());
        }
    }

    /// Why it ended.
    pub(super) fn ended(&self) -> Option<&'static str> {
        *locked(&self.ended)
    }

    /// Ends it; the first reason stays.
    pub(super) fn end(&self, reason: &'static str) {
        locked(&self.ended).get_or_insert(reason);
        self.stop.cancel();
        self.queue.close(Fault::Closed);
        locked(&self.open).clear();
    }

    pub(super) fn send(&self, frame: Frame) {
        // A link that has ended needs no frames: its slots are on their way back.
        let _ = self.out.send(frame);
    }

    /// Asks; the receiver hears if the answer is a status.
    pub(super) fn ask(
        &self,
        id: u64,
        request: &PieceRequest,
        place: RemoteSlot,
        deadline: Instant,
    ) -> oneshot::Receiver<StatusCode> {
        let (said, status) = oneshot::channel();
        locked(&self.open).insert(id, said);
        let left = deadline.saturating_duration_since(Instant::now());
        self.send(Frame::WriteHere {
            id,
            digest: request.digest,
            piece: request.piece,
            len: request.len,
            deadline_ms: left.as_millis().try_into().unwrap_or(u32::MAX),
            place,
        });
        status
    }

    pub(super) fn forget(&self, id: u64) {
        locked(&self.open).remove(&id);
    }
}

/// The task's side of it.
struct Control<'a> {
    link: &'a Link,
    stream: TcpStream,
    held: Vec<u8>,
    frames: mpsc::UnboundedReceiver<Frame>,
    silence: Duration,
    idle_close: Duration,
}

impl Control<'_> {
    /// Until the link ends; returns why.
    async fn run(mut self) -> &'static str {
        let mut tick = tokio::time::interval((self.silence.min(self.idle_close) / 4).max(PEER_TICK_MIN));
        let (mut heard_at, mut pinged_at, mut busy_at) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            tokio::select! {
                read = self.stream.read_buf(&mut self.held) => match read {
                    Ok(n) if n > 0 => {
                        heard_at = Instant::now();
                        if let Err(reason) = self.hear() {
                            return reason;
                        }
                    }
                    _ => return "peer-closed",
                },
                Some(frame) = self.frames.recv() => {
                    if let Err(reason) = self.write(frame).await {
                        return reason;
                    }
                }
                fault = self.link.queue.broken() => return fault.reason(),
                () = self.link.stop.cancelled() => return "closed",
                _ = tick.tick() => {
                    let busy = self.link.permits.available_permits() < millstream_rdma::LEASES_MAX;
                    if busy {
                        // The bytes do not come over this connection: without pings its silence would mean nothing.
                        if busy_at.elapsed() > self.silence {
                            heard_at = Instant::now();
                        }
                        busy_at = Instant::now();
                        if heard_at.elapsed() >= self.silence * 3 {
                            return "peer-silent";
                        }
                        if pinged_at.elapsed() >= self.silence {
                            pinged_at = Instant::now();
                            if let Err(reason) = self.write(Frame::Ping { nonce: 0 }).await {
                                return reason;
                            }
                        }
                    } else if busy_at.elapsed() >= self.idle_close {
                        return IDLE;
                    }
                }
            }
        }
    }

    async fn write(&mut self, first: Frame) -> Result<(), &'static str> {
        let mut bytes = Vec::new();
        first.encode(&mut bytes);
        while let Ok(frame) = self.frames.try_recv() {
            frame.encode(&mut bytes);
        }
        match tokio::time::timeout(self.silence, self.stream.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err("peer-closed"),
        }
    }

    fn hear(&mut self) -> Result<(), &'static str> {
        let mut view = self.held.as_slice();
        while let Some(frame) = Frame::decode(&mut view).map_err(|_| "protocol")? {
            match frame {
                Frame::Status { id, code } => {
                    if let Some(said) = locked(&self.link.open).remove(&id) {
                        let _ = said.send(code);
                    }
                }
                Frame::Ping { nonce } => self.link.send(Frame::Pong { nonce }),
                Frame::Pong { .. } => {}
                Frame::Broken { trouble } => return Err(trouble.reason()),
                // What is open is finished or refused by the peer, one by one; nothing new is asked here.
                Frame::GoAway => {
                    locked(&self.link.ended).get_or_insert("peer-draining");
                }
                _ => return Err("protocol"),
            }
        }
        let rest = view.len();
        self.held.drain(..self.held.len() - rest);
        Ok(())
    }
}
