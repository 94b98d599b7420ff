//! The one struct that owns the agent's state: events in, actions out. What it decides is beside it: `orders` (what
//! the coordinator wants), `fetching` (what to ask of whom), `verdicts` (what arrived), `shards` (the whole).

mod fetching;
mod orders;
mod shards;
#[cfg(test)]
mod tests;
mod verdicts;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millstream_types::{AssignmentId, Crc64, DatasetId, Layout, OriginChecksum, PieceNo, PieceRange, RunSet, Time};

use crate::config::AgentConfig;
use crate::dataset::{Dataset, PieceState};
use crate::event::{Action, Assignment, Event, FetchId, PeerId, Report, Source};
use crate::limits;
use crate::order::Order;
use crate::ordered::OrderedMap;
use crate::owners::Owners;

/// The agent's policy. Drive it as [`event`](crate::event) says: events in, then drain the actions.
#[derive(Debug)]
pub struct AgentCore {
    config: AgentConfig,
    datasets: BTreeMap<DatasetId, Dataset>,
    /// What came for versions that are still being opened.
    early: BTreeMap<DatasetId, Vec<Early>>,
    orders: BTreeMap<AssignmentId, Order>,
    /// Orders in the order in which they are served. It is the same on all nodes, so that nodes which wait for each
    /// other do not fill their buffers with requests in opposite orders.
    queue: BTreeSet<(Reverse<u32>, AssignmentId)>,
    owners: Owners,
    fetches: OrderedMap<FetchId, Fetch>,
    next_fetch: u64,
    /// Received, but the checksum is not known yet.
    held: OrderedMap<(DatasetId, PieceNo), Held>,
    /// Accepted, the disk has not answered yet.
    writing: OrderedMap<(DatasetId, PieceNo), Writing>,
    peers: BTreeMap<PeerId, Peer>,
    origin_gets: usize,
    /// Ranged GETs at once, fewer after the origin asked for fewer.
    origin_gets_limit: usize,
    /// What may be in flight at present.
    budget_bytes: u64,
    /// In flight: fetches asked for, bytes held, bytes being written.
    charged_bytes: u64,
    /// Of those: asked for or held without a checksum to check against.
    unknown_bytes: u64,
    timers: BTreeSet<(Time, AssignmentId)>,
    actions: VecDeque<Action>,
    /// Checksums read from the origin, not reported yet: consecutive pieces become one report.
    reads: Vec<(DatasetId, PieceNo, Vec<Crc64>)>,
}

/// Something for a version that is not open yet.
#[derive(Debug)]
enum Early {
    Assigned(Assignment),
    Checksums(PieceNo, Vec<Crc64>),
}

/// A fetch that the shell carries out.
#[derive(Debug)]
struct Fetch {
    dataset: DatasetId,
    order: AssignmentId,
    pieces: PieceRange,
    /// The next piece to arrive.
    next: PieceNo,
    source: Source,
    /// Its part of `charged_bytes`.
    charge: u64,
    /// Its part of `unknown_bytes`.
    unknown: u64,
    issued: Time,
    aborted: bool,
}

/// Bytes that wait for their checksum.
#[derive(Debug)]
struct Held {
    fetch: FetchId,
    actual: Crc64,
    source: Source,
    bytes: u64,
}

/// Bytes on their way to disk.
#[derive(Debug)]
struct Writing {
    bytes: u64,
    /// The present bytes are wanted (not dropped by a discard).
    live: bool,
    /// Answers of the disk to come for bytes that were dropped.
    stale: u32,
}

/// What is known of a peer.
#[derive(Debug, Default)]
struct Peer {
    pieces: u32,
    bytes: u64,
    last_delivery: Time,
    /// Measured while it delivers, in bytes per second; zero before.
    rate: u64,
}

impl AgentCore {
    /// A core that knows no version yet.
    pub fn new(config: AgentConfig) -> AgentCore {
        AgentCore {
            budget_bytes: config.buffer_bytes,
            origin_gets_limit: config.origin_gets_max.max(1),
            config,
            datasets: BTreeMap::new(),
            early: BTreeMap::new(),
            orders: BTreeMap::new(),
            queue: BTreeSet::new(),
            owners: Owners::default(),
            fetches: OrderedMap::default(),
            next_fetch: 0,
            held: OrderedMap::default(),
            writing: OrderedMap::default(),
            peers: BTreeMap::new(),
            origin_gets: 0,
            charged_bytes: 0,
            unknown_bytes: 0,
            timers: BTreeSet::new(),
            actions: VecDeque::new(),
            reads: Vec::new(),
        }
    }

    /// Takes one event in. Drain [`poll_action`](Self::poll_action) afterwards; several events may come before.
    pub fn handle_event(&mut self, now: Time, event: Event) {
        match event {
            Event::Opened { dataset, layout, shard_checksums, known, have, sealed } => {
                let facts = (layout, shard_checksums);
                self.opened(now, dataset, facts, &known, &have, &sealed);
            }
            Event::Closed { dataset } => self.closed(now, dataset),
            Event::Assigned(assignment) => self.assigned(now, assignment),
            Event::Cancelled(id) => self.cancel(now, id),
            Event::Checksums { dataset, first, crcs } => self.checksums(now, dataset, first, crcs),
            Event::PieceReceived { fetch, dataset, piece, actual, source: _ } => {
                self.received(now, fetch, dataset, piece, actual)
            }
            Event::FetchEnded { fetch, result } => self.fetch_ended(now, fetch, result),
            Event::PieceWritten { dataset, piece } => self.written(now, dataset, piece),
            Event::WriteFailed { dataset, piece, kind, detail } => self.write_failed(now, dataset, piece, kind, detail),
            Event::ShardSealed { dataset, shard } => self.shard_sealed(dataset, shard),
            Event::SealMismatch { dataset, shard, expected, actual } => {
                self.seal_mismatch(dataset, shard, expected, actual)
            }
            Event::SealFailed { dataset, shard, detail } => self.seal_failed(now, dataset, shard, detail),
            Event::DiscardShard { dataset, shard } => self.discard_shard(now, dataset, shard),
            Event::DropShard { dataset, shard } => self.drop_shard(now, dataset, shard),
            Event::ShardLost { dataset, shard, reason } => self.shard_lost(now, dataset, shard, reason),
            Event::BuffersFree { bytes } => {
                let room = self.charged_bytes.saturating_add(bytes);
                self.budget_bytes = room.min(self.config.buffer_bytes);
            }
        }
        self.handle_timeout(now);
    }

    /// The moment of [`poll_timeout`](Self::poll_timeout) has come (or passed).
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(&(when, id)) = self.timers.first() {
            if when > now {
                break;
            }
            self.timers.pop_first();
            self.lease_check(now, id);
            self.set_timer(now, id);
        }
        self.pump(now);
    }

    /// The next order to carry out, until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() {
            self.flush_reads();
        }
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) shall be called next; `None` while nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|&(when, _)| when)
    }

    /// Bytes of buffers that fetches, held pieces and writes take.
    pub fn in_flight_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Orders in hand.
    pub fn orders(&self) -> usize {
        self.orders.len()
    }

    /// What a piece must sum to, where it is known.
    pub fn expected(&self, dataset: DatasetId, piece: PieceNo) -> Option<Crc64> {
        self.datasets.get(&dataset)?.expected(piece)
    }

    /// Pieces on disk and visible shards: the inventory. Walks all pieces.
    pub fn inventory(&self, dataset: DatasetId) -> Option<(RunSet, RunSet)> {
        let dataset = self.datasets.get(&dataset)?;
        Some((dataset.have(), dataset.sealed()))
    }

    /// Checksums that this node learned by reading from the origin, as runs: what a coordinator may not know when a
    /// session begins.
    pub fn learned(&self, dataset: DatasetId) -> Vec<(PieceNo, Vec<Crc64>)> {
        self.datasets.get(&dataset).map(Dataset::learned).unwrap_or_default()
    }

    /// Is there a checksum for every piece? If not, and a new session begins, the shell asks for the manifest's
    /// checksums again: what was sent to the old session may be lost.
    pub fn knows_all(&self, dataset: DatasetId) -> bool {
        self.datasets.get(&dataset).is_some_and(Dataset::knows_all)
    }

    /// Is the piece verified here, or ordered, so that a peer that asks for it does well to wait?
    pub fn is_expecting(&self, dataset: DatasetId, piece: PieceNo) -> bool {
        let Some(d) = self.datasets.get(&dataset) else {
            return self.early_order_covers(dataset, piece);
        };
        piece < d.layout.pieces()
            && (d.state(piece) != PieceState::Missing || self.owners.owner(dataset, piece).is_some())
    }

    fn early_order_covers(&self, dataset: DatasetId, piece: PieceNo) -> bool {
        let early = self.early.get(&dataset).map_or(&[][..], Vec::as_slice);
        early.iter().any(|e| matches!(e, Early::Assigned(a) if a.pieces.contains(&piece)))
    }

    fn opened(
        &mut self,
        now: Time,
        id: DatasetId,
        (layout, shard_checksums): (std::sync::Arc<Layout>, std::sync::Arc<[Option<OriginChecksum>]>),
        known: &[(PieceNo, Vec<Crc64>)],
        have: &RunSet,
        sealed: &RunSet,
    ) {
        let early = self.early.remove(&id);
        if self.datasets.contains_key(&id) {
            self.closed(now, id);
        }
        let shards = layout.shards();
        let dataset = Dataset::new(layout, shard_checksums, known, have, sealed);
        self.datasets.insert(id, dataset);
        for shard in 0..shards {
            self.try_seal(id, shard);
        }
        for item in early.into_iter().flatten() {
            match item {
                Early::Assigned(assignment) => self.assigned(now, assignment),
                Early::Checksums(first, crcs) => self.checksums(now, id, first, crcs),
            }
        }
    }

    fn closed(&mut self, now: Time, id: DatasetId) {
        self.early.remove(&id);
        self.drop_orders(now, id);
        self.reject_held(id, 0..PieceNo::MAX);
        let keys = self.writing.range((id, 0)..=(id, PieceNo::MAX));
        let keys: Vec<_> = keys.map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(writing) = self.writing.remove(&key) {
                let copies = u64::from(writing.stale) + u64::from(writing.live);
                self.charged_bytes -= writing.bytes * copies;
            }
        }
        self.owners.forget(id);
        self.datasets.remove(&id);
        self.reads.retain(|(dataset, ..)| *dataset != id);
    }

    /// Keeps what came for a version that is not open yet. False when that is too much.
    fn keep_early(&mut self, id: DatasetId, item: Early) -> bool {
        let kept: usize = self.early.values().map(Vec::len).sum();
        if kept >= limits::EARLY_MAX {
            return false;
        }
        self.early.entry(id).or_default().push(item);
        true
    }

    fn report(&mut self, report: Report) {
        self.flush_reads();
        self.actions.push_back(Action::Report(report));
    }

    fn flush_reads(&mut self) {
        for (dataset, first, crcs) in self.reads.drain(..) {
            let report = Report::PiecesRead { dataset, first, crcs };
            self.actions.push_back(Action::Report(report));
        }
    }

    /// Enters the order's next moment in the timers. Stale entries wake once for nothing.
    fn set_timer(&mut self, now: Time, id: AssignmentId) {
        if let Some(when) = self.orders.get(&id).and_then(|order| order.wake(now)) {
            self.timers.insert((when, id));
        }
    }
}
