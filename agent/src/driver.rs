//! The agent's one owner of state: waits in one `select`, changes state in synchronous `apply` functions only.
//!
//! Participants: [`control`](crate::control) brings the coordinator's orders; fetch, write and seal tasks bring
//! their results; the Unix socket brings requests; the core (`millstream-agent-core`) decides; [`carry`] carries its
//! actions out; [`orders`] and [`report`] translate between the wire and the core.
//! Non-goals: policy. Whatever chooses, orders, retries or gives up is in the core.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_agent_core::AgentCore;
use millstream_agent_core::event::{Event, Failure, FetchId, PeerId, Source};
use millstream_origin::Origin;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, agent_message::Body};
use millstream_types::{Crc64, DatasetId, Digest, PieceNo, ShardNo, Time};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffers::Arena;
use crate::control::{CoordinatorLink, SessionEvent, SessionOut};
use crate::counters::Counters;
use crate::local::{LocalState, LocalVersion};
use crate::piece::{Unverified, Verified};
use crate::storage::{SealError, Store, WriteError};
use crate::table::PieceTable;
use crate::transport::{Carrier, PeerBytes, Transport};

mod care;
mod carry;
mod orders;
mod readers;
mod report;
mod versions;

pub(crate) use carry::failure;
pub(crate) use readers::ReaderMove;
pub(crate) use versions::{OpenFailure, Opened};

/// What tasks tell the driver.
pub(crate) enum Input {
    /// A version was opened, or not.
    Opened { dataset: DatasetId, result: Result<Box<Opened>, OpenFailure> },
    /// One piece arrived and was summed.
    Received { fetch: FetchId, dataset: DatasetId, piece: PieceNo, source: Source, bytes: Unverified },
    /// A fetch ended.
    FetchEnded { fetch: FetchId, result: Result<(), Failure> },
    /// A piece is on disk, or not.
    Written { dataset: DatasetId, piece: PieceNo, result: Result<(), WriteError> },
    /// A shard is visible, or not.
    Sealed { dataset: DatasetId, shard: ShardNo, result: Result<(), SealError> },
    /// A sealed shard turned out bad on disk.
    Lost { dataset: DatasetId, shard: ShardNo, reason: String },
    /// A shard's bytes are off the disk, because of this when the shell itself found them bad.
    Discarded { dataset: DatasetId, shard: ShardNo, lost: Option<String> },
    /// Part of the answer to a verify order.
    Checked(v1::VerifyReport),
    /// A version was removed from the disk, or not.
    Evicted { dataset: DatasetId, result: Result<u64, String> },
    /// The Unix socket asks.
    Ask(Ask),
}

/// What the Unix socket may ask of the driver.
pub(crate) enum Ask {
    /// A reader on this node moved.
    Reader(ReaderMove),
    /// Its connection ended.
    ReaderGone { digest: Digest, reader: u64 },
    /// Re-read and re-check every byte of a version: shards checked, bytes, and what was bad.
    Verify { digest: Digest, answer: oneshot::Sender<v1::VerifyReport> },
}

/// How tasks reach the driver. They hold it weakly in spirit: the driver's end closes the channel.
pub(crate) type Inputs = mpsc::Sender<Input>;

/// A version as the driver knows it.
enum Slot {
    /// Its manifest is being fetched or its files are being checked; orders wait.
    Opening { orders: VecDeque<Order> },
    /// Open.
    Open(OpenVersion),
}

struct OpenVersion {
    digest: Digest,
    local: Arc<LocalVersion>,
    origin: Option<Arc<Origin>>,
    /// Checksums that this node learned from the origin before it was restarted, of shards not sealed then.
    origin_read: Vec<(PieceNo, Vec<Crc64>)>,
}

struct Peer {
    node: String,
    address: String,
}

/// An accepted piece on its way to the disk.
struct PieceToWrite {
    piece: PieceNo,
    bytes: Verified,
    crc: Crc64,
    from_origin: bool,
}

/// What a driver is made of, besides its own state.
pub(crate) struct Parts {
    pub store: Arc<Store>,
    pub arena: Arc<Arena>,
    pub table: Arc<PieceTable>,
    pub transport: Arc<dyn Transport>,
    pub local: Arc<LocalState>,
    pub counters: Arc<Counters>,
    pub link: CoordinatorLink,
    pub tasks: TaskTracker,
}

pub(crate) struct Driver {
    parts: Parts,
    core: AgentCore,
    started: Instant,
    inputs: Inputs,
    session: Option<SessionOut>,
    versions: BTreeMap<DatasetId, Slot>,
    by_digest: HashMap<Digest, DatasetId>,
    /// The coordinator's number of a version, for the session that is up, and back.
    from_wire: HashMap<u32, DatasetId>,
    to_wire: BTreeMap<DatasetId, u32>,
    next_dataset: u32,
    peers: Vec<Peer>,
    peer_ids: HashMap<String, PeerId>,
    held: HashMap<(FetchId, PieceNo), Unverified>,
    fetches: HashMap<FetchId, oneshot::Sender<()>>,
    /// Shards whose bytes are being removed, and writes of new bytes that wait for that.
    discarding: BTreeMap<(DatasetId, ShardNo), Vec<PieceToWrite>>,
    /// The carrier of the bytes that were rejected last; the report of the failure follows at once.
    rejected_by: Option<Carrier>,
    /// Readers on this node.
    readers: BTreeMap<(Digest, u64), readers::Reader>,
    /// Shards that the coordinator told us to drop, and whose bytes are being removed.
    dropping: BTreeSet<(DatasetId, ShardNo)>,
    rates: Rates,
    /// What the coordinator knows of the bytes from each peer, this session.
    peers_told: BTreeMap<String, PeerBytes>,
}

#[derive(Default)]
struct Rates {
    at: Option<Instant>,
    received: u64,
    sent: u64,
}

impl Driver {
    pub(crate) fn new(parts: Parts, core: AgentCore, inputs: Inputs) -> Driver {
        Driver {
            parts,
            core,
            started: Instant::now(),
            inputs,
            session: None,
            versions: BTreeMap::new(),
            by_digest: HashMap::new(),
            from_wire: HashMap::new(),
            to_wire: BTreeMap::new(),
            next_dataset: 0,
            peers: Vec::new(),
            peer_ids: HashMap::new(),
            held: HashMap::new(),
            fetches: HashMap::new(),
            discarding: BTreeMap::new(),
            rejected_by: None,
            readers: BTreeMap::new(),
            dropping: BTreeSet::new(),
            rates: Rates::default(),
            peers_told: BTreeMap::new(),
        }
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed().as_micros() as u64)
    }

    /// Runs until `shutdown`, then lets writes and seals in hand finish (the caller bounds that).
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut sessions: mpsc::Receiver<SessionEvent>,
        shutdown: CancellationToken,
    ) {
        let mut heartbeat = tokio::time::interval(Duration::from_millis(500));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let timeout = self.core.poll_timeout().map(|at| self.started + Duration::from_micros(at.0));
            tokio::select! {
                Some(input) = inputs.recv() => {
                    self.apply(input);
                    // A burst of results costs one look at the core's actions, not one each.
                    while let Ok(input) = inputs.try_recv() {
                        self.apply(input);
                    }
                }
                Some(event) = sessions.recv() => self.apply_session(event, &mut heartbeat),
                () = sleep_until(timeout) => {
                    let now = self.now();
                    self.core.handle_timeout(now);
                }
                _ = heartbeat.tick() => self.heartbeat(),
                () = shutdown.cancelled() => break,
            }
            self.carry_out();
        }
        // What is not finished here goes to others at once, instead of after a time of silence.
        self.send(Body::Leaving(v1::Leaving {}));
        self.fetches.clear(); // aborts every fetch
        self.session = None;
        self.parts.tasks.close();
        // Writes and seals in hand report here while they finish; nothing acts on it any more.
        let tasks = self.parts.tasks.clone();
        tokio::select! {
            () = tasks.wait() => {}
            () = async { while inputs.recv().await.is_some() {} } => {}
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        tracing::trace!(?event);
        self.core.handle_event(now, event);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.core.poll_action() {
            tracing::trace!(?action);
            self.carry(action);
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Opened { dataset, result } => self.apply_opened(dataset, result),
            Input::Received { fetch, dataset, piece, source, bytes } => {
                let actual = bytes.crc();
                self.held.insert((fetch, piece), bytes);
                self.handle(Event::PieceReceived { fetch, dataset, piece, actual, source });
            }
            Input::FetchEnded { fetch, result } => {
                self.fetches.remove(&fetch);
                self.handle(Event::FetchEnded { fetch, result });
            }
            Input::Written { dataset, piece, result } => self.apply_written(dataset, piece, result),
            Input::Sealed { dataset, shard, result } => self.apply_sealed(dataset, shard, result),
            Input::Lost { dataset, shard, reason } => self.apply_lost(dataset, shard, reason),
            Input::Discarded { dataset, shard, lost } => self.apply_discarded(dataset, shard, lost),
            Input::Checked(report) => self.send(Body::Verified(report)),
            Input::Evicted { dataset, result } => self.apply_evicted(dataset, result),
            Input::Ask(ask) => self.apply_ask(ask),
        }
    }

    fn apply_session(&mut self, event: SessionEvent, heartbeat: &mut tokio::time::Interval) {
        match event {
            SessionEvent::Up { out, welcome } => {
                self.from_wire.clear();
                self.to_wire.clear();
                self.peers_told.clear();
                self.session = Some(out);
                let every = Duration::from_millis(u64::from(welcome.heartbeat_ms.clamp(50, 60_000)));
                *heartbeat = tokio::time::interval(every);
            }
            SessionEvent::Message(order) => self.apply_order(order),
            SessionEvent::Down { reason } => {
                if self.session.take().is_some() {
                    self.parts.counters.error(format!("session with the coordinator: {reason}"));
                }
            }
        }
    }

    /// Sends to the coordinator. Without a session nothing is lost: the next one begins with an inventory.
    fn send(&mut self, body: Body) {
        if let Some(session) = &self.session
            && !session.send(body)
        {
            tracing::warn!("the session with the coordinator is too slow or gone; dropping it");
            self.session = None;
        }
    }

    fn open(&self, dataset: DatasetId) -> Option<&OpenVersion> {
        match self.versions.get(&dataset) {
            Some(Slot::Open(open)) => Some(open),
            _ => None,
        }
    }

    fn peer(&mut self, node: &str, address: &str) -> PeerId {
        if let Some(id) = self.peer_ids.get(address) {
            return *id;
        }
        let id = PeerId(self.peers.len() as u32);
        self.peers.push(Peer { node: node.to_owned(), address: address.to_owned() });
        self.peer_ids.insert(address.to_owned(), id);
        id
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
