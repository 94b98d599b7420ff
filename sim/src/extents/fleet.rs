//! Nodes that do as they are told.

use millstream_coordinator_core::event::{Action as Order, Assignment, Event as Word, Failure, FailureKind, Source};
use millstream_types::{AssignmentId, Layout, NodeId, PieceRange, RunSet, Time};

use super::links::{Job, Uplink};
use super::{Event, World, shards};
use crate::clock::transfer_us;
use crate::coordinator::DATASET;

/// Until a peer that does not answer is given up.
const CONNECT_US: u64 = 100_000;
/// Until a peer that knows nothing of an extent is asked again, and how often.
const NOT_HAVE_US: u64 = 20_000;
const NOT_HAVE_MAX: u32 = 5;

/// An order being carried out.
pub(super) struct Flight {
    pub id: AssignmentId,
    pub pieces: PieceRange,
    pub bytes: u64,
    /// Of those, not sent yet.
    pub left: u64,
    pub source: Source,
    alternates: Vec<NodeId>,
    next_alternate: usize,
    not_have: u32,
    /// Counts changes of source: what was on the way from a former one is lost.
    pub attempt: u32,
    started: Time,
    /// When its last byte comes, as things stand; set once it flows.
    pub end: Option<Time>,
    /// The first piece is there: it can be passed on.
    pub begun: bool,
    /// Whoever wants it from us as soon as it begins.
    pub waiters: Vec<Job>,
    /// Whoever has all of it but what we still lack.
    pub followers: Vec<Job>,
}

/// One node.
pub(super) struct Node {
    pub alive: bool,
    pub epoch: u32,
    pub flights: Vec<Flight>,
    pub holds: RunSet,
    /// Pieces that are there, by shard.
    pieces_of: Vec<u32>,
    pub sealed: u32,
    pub uplink: Uplink,
    pub down_rate: f64,
    pub down_free: Time,
    disk_free: Time,
    pub last_seal: Time,
}

impl Node {
    pub fn new(alive: bool, rate: f64, shards: u32) -> Node {
        Node {
            alive,
            epoch: 0,
            flights: Vec::new(),
            holds: RunSet::new(),
            pieces_of: vec![0; shards as usize],
            sealed: 0,
            uplink: Uplink::new(rate),
            down_rate: rate,
            down_free: Time::ZERO,
            disk_free: Time::ZERO,
            last_seal: Time::ZERO,
        }
    }

    pub fn flight(&mut self, id: AssignmentId) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|f| f.id == id)
    }

    pub fn sealed_shards(&self, layout: &Layout) -> RunSet {
        shards((0..layout.shards()).filter(|s| self.is_whole(layout, *s)))
    }

    fn is_whole(&self, layout: &Layout, shard: u32) -> bool {
        let pieces = layout.shard_pieces(shard);
        self.pieces_of[shard as usize] == pieces.end - pieces.start
    }
}

impl World {
    pub(super) fn order_arrived(&mut self, n: u32, epoch: u32, order: Order) {
        let node = &mut self.nodes[n as usize];
        if !node.alive || node.epoch != epoch {
            return;
        }
        match order {
            Order::Attach { .. } => self.inventory(n),
            Order::Assign { assignment, .. } => self.assigned(n, assignment),
            Order::Cancel { assignment, .. } => self.drop_flight(n, assignment),
            _ => {}
        }
    }

    fn assigned(&mut self, n: u32, a: Assignment) {
        let now = self.clock.now();
        let latency = self.latency(a.source);
        let bytes = self.layout.range_bytes(a.pieces.clone());
        let node = &mut self.nodes[n as usize];
        let mut flight = Flight {
            id: a.id,
            pieces: a.pieces,
            bytes,
            left: bytes,
            source: a.source,
            alternates: a.alternates,
            next_alternate: 0,
            not_have: 0,
            attempt: 0,
            started: now,
            end: None,
            begun: false,
            waiters: Vec::new(),
            followers: Vec::new(),
        };
        if let Some(old) = node.flights.iter().position(|f| f.pieces.start == flight.pieces.start) {
            let old = node.flights.swap_remove(old);
            flight.waiters = old.waiters;
            flight.followers = old.followers;
            flight.attempt = old.attempt + 1;
        }
        let (id, attempt) = (flight.id, flight.attempt);
        node.flights.push(flight);
        self.node_orders_max = self.node_orders_max.max(node.flights.len() as u64);
        self.clock.after(latency, Event::Request { node: n, id, attempt });
    }

    /// Ends an order without its bytes; those who wait for it look elsewhere.
    fn drop_flight(&mut self, n: u32, id: AssignmentId) {
        let flights = &mut self.nodes[n as usize].flights;
        let Some(at) = flights.iter().position(|f| f.id == id) else {
            return;
        };
        let flight = flights.swap_remove(at);
        self.release(flight.followers);
        for Job { to, id, attempt } in flight.waiters {
            self.clock.after(0, Event::Request { node: to, id, attempt });
        }
    }

    fn latency(&self, source: Source) -> u64 {
        match source {
            Source::Origin => self.scenario.origin_latency_us,
            Source::Peer(_) => self.scenario.peer_latency_us,
        }
    }

    /// A source failed: the next one, or back to the coordinator.
    pub(super) fn fail(&mut self, n: u32, id: AssignmentId, kind: FailureKind, us: u64) {
        let now = self.clock.now();
        let node = &mut self.nodes[n as usize];
        let Some(flight) = node.flight(id) else {
            return;
        };
        flight.attempt += 1;
        flight.end = None;
        flight.begun = false;
        flight.left = flight.bytes;
        let source = flight.source;
        if kind == FailureKind::NotHave && flight.not_have < NOT_HAVE_MAX {
            flight.not_have += 1;
        } else if let Some(&next) = flight.alternates.get(flight.next_alternate) {
            flight.next_alternate += 1;
            flight.not_have = 0;
            flight.source = Source::Peer(next);
        } else {
            let missing = RunSet::from_range(flight.pieces.clone());
            self.drop_flight(n, id);
            let failure = Failure::new(kind, source, "all sources failed".to_owned());
            self.say(Word::AssignmentFailed { node: NodeId(n), assignment: id, missing, failure });
            return;
        }
        let attempt = flight.attempt;
        let at = now + us.max(NOT_HAVE_US);
        self.clock.at(at, Event::Request { node: n, id, attempt });
    }

    /// A request reaches its source.
    pub(super) fn request(&mut self, n: u32, id: AssignmentId, attempt: u32) {
        let node = &mut self.nodes[n as usize];
        let Some(flight) = node.flight(id).filter(|f| f.attempt == attempt) else {
            return;
        };
        let (source, first) = (flight.source, flight.pieces.start);
        let job = Job { to: n, id, attempt };
        let Source::Peer(NodeId(p)) = source else {
            self.origin.jobs.push_back(job);
            self.serve(None);
            return;
        };
        let parent = &mut self.nodes[p as usize];
        if !parent.alive {
            self.fail(n, id, FailureKind::Unreachable, CONNECT_US);
        } else if parent.holds.contains(first) {
            parent.uplink.jobs.push_back(job);
            self.serve(Some(p));
        } else if let Some(coming) = parent.flights.iter_mut().find(|f| f.pieces.contains(&first)) {
            if coming.begun {
                parent.uplink.jobs.push_back(job);
                self.serve(Some(p));
            } else {
                coming.waiters.push(job);
            }
        } else {
            self.fail(n, id, FailureKind::NotHave, 0);
        }
    }

    /// The first piece is there: those who wait for it can have it.
    pub(super) fn begun(&mut self, n: u32, id: AssignmentId, attempt: u32) {
        let node = &mut self.nodes[n as usize];
        let Some(flight) = node.flight(id).filter(|f| f.attempt == attempt) else {
            return;
        };
        flight.begun = true;
        let waiters = std::mem::take(&mut flight.waiters);
        node.uplink.jobs.extend(waiters);
        self.serve(Some(n));
    }

    /// The last byte should be there.
    pub(super) fn ended(&mut self, n: u32, id: AssignmentId, attempt: u32) {
        let node = &mut self.nodes[n as usize];
        let Some(flight) = node.flight(id).filter(|f| f.attempt == attempt) else {
            return;
        };
        let (source, pieces) = (flight.source, flight.pieces.clone());
        if let Source::Peer(NodeId(p)) = source
            && !self.nodes[p as usize].holds.contains_range(pieces.clone())
        {
            // The parent was held up itself: not before it has all, and a piece's time.
            let parent = self.nodes[p as usize].flights.iter_mut().find(|f| f.pieces.contains(&pieces.start));
            match parent {
                Some(coming) => coming.followers.push(Job { to: n, id, attempt }),
                None => self.fail(n, id, FailureKind::NotHave, 0),
            }
            return;
        }
        self.complete(n, id);
    }

    /// All of an order is there: the disk has it a moment later.
    fn complete(&mut self, n: u32, id: AssignmentId) {
        let now = self.clock.now();
        let node = &mut self.nodes[n as usize];
        let Some(at) = node.flights.iter().position(|f| f.id == id) else {
            return;
        };
        let flight = node.flights.swap_remove(at);
        node.uplink.jobs.extend(flight.waiters);
        self.release(flight.followers);
        let node = &mut self.nodes[n as usize];
        let disk = self.scenario.disk_bytes_per_s;
        let tail = now + transfer_us(self.layout.piece_len(), disk);
        node.disk_free = (node.disk_free + transfer_us(flight.bytes, disk)).max(tail);
        let on_disk = node.disk_free;
        let mut whole = Vec::new();
        for (shard, part) in self.layout.split_by_shard(flight.pieces.clone()) {
            let new = part.end - part.start - node.holds.count_range(part.clone());
            node.holds.insert_range(part);
            node.pieces_of[shard as usize] += new;
            if new > 0 && node.is_whole(&self.layout, shard) {
                whole.push(shard);
            }
        }
        let late = on_disk.since(now);
        let done = Word::AssignmentDone {
            node: NodeId(n),
            assignment: id,
            bytes: flight.bytes,
            elapsed_us: on_disk.since(flight.started),
            source: flight.source,
        };
        self.say_late(done, late);
        if !whole.is_empty() {
            let node = &mut self.nodes[n as usize];
            node.last_seal = on_disk;
            node.sealed += whole.len() as u32;
            self.unsettled -= u32::from(node.sealed == self.layout.shards());
            let shards = shards(whole.into_iter());
            self.say_late(Word::ShardsSealed { node: NodeId(n), dataset: DATASET, shards }, late);
        }
        self.serve(Some(n));
    }

    /// Those who waited for the end of a flight look again.
    fn release(&mut self, followers: Vec<Job>) {
        let us = self.piece_us + self.scenario.peer_latency_us;
        for Job { to, id, attempt } in followers {
            self.clock.after(us, Event::Ended { node: to, id, attempt });
        }
    }

    fn say_late(&mut self, word: Word, us: u64) {
        self.messages += 1;
        self.clock.after(us + self.scenario.control_latency_us, Event::Word(Box::new(word)));
    }

    pub(super) fn dies(&mut self, n: u32) {
        let node = &mut self.nodes[n as usize];
        node.alive = false;
        node.epoch += 1;
        if node.sealed < self.layout.shards() {
            self.unsettled -= 1;
        }
        let flights = std::mem::take(&mut node.flights);
        let mut broken: Vec<Job> = std::mem::take(&mut node.uplink.jobs).into();
        broken.extend(flights.into_iter().flat_map(|f| f.waiters.into_iter().chain(f.followers)));
        for job in broken {
            let current = self.nodes[job.to as usize].flight(job.id).is_some_and(|f| f.attempt == job.attempt);
            if current {
                self.fail(job.to, job.id, FailureKind::Unreachable, 0);
            }
        }
        for child in 0..self.scenario.nodes {
            let from_it = |f: &&Flight| f.source == Source::Peer(NodeId(n)) && f.left < f.bytes;
            let ids: Vec<_> = self.nodes[child as usize].flights.iter().filter(from_it).map(|f| f.id).collect();
            for id in ids {
                self.fail(child, id, FailureKind::Unreachable, 0);
            }
        }
        self.say(Word::NodeLost { node: NodeId(n) });
    }
}
