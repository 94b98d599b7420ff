//! A node: the real agent core, and what its shell does for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_agent_core::event::{Action, Event as Heard, Failure, FailureKind, FetchId, Source};
use millstream_agent_core::{AgentConfig, AgentCore};
use millstream_types::{Crc64, Layout, PieceNo, PieceRange, RunSet, ShardNo, Time};

use super::network::{Job, Uplink};
use super::{Event, World, peer};
use crate::clock::transfer_us;
use crate::coordinator::DATASET;
use crate::scenario::Scenario;

/// fsync and rename.
const SEAL_US: u64 = 1_000;

/// A fetch that the shell carries out.
#[derive(Debug)]
pub(super) struct Live {
    pub pieces: PieceRange,
    pub source: Source,
    /// Aborted by the core: nothing more arrives, `FetchEnded` is on the way.
    pub over: bool,
}

/// One node.
pub(super) struct Node {
    pub number: u32,
    pub alive: bool,
    /// Counts its processes: what was on the way to a former one is lost.
    pub epoch: u32,
    /// Its session with the coordinator, if there is one.
    pub session: Option<u32>,
    pub is_open: bool,
    pub agent: AgentCore,
    pub live: BTreeMap<FetchId, Live>,
    /// Received, no verdict yet.
    undecided: BTreeMap<(FetchId, PieceNo), Crc64>,
    /// Verified bytes, in memory or on disk: what peers are served from.
    pub verified: Vec<Option<Crc64>>,
    /// On disk.
    pub disk: BTreeMap<PieceNo, Crc64>,
    /// Read from the origin by this node itself, as its journal says.
    pub own_reads: BTreeMap<PieceNo, Crc64>,
    pub sealed: BTreeSet<ShardNo>,
    /// Shards that the coordinator gave up.
    pub given_up: BTreeSet<ShardNo>,
    pub waiters: BTreeMap<PieceNo, Vec<Job>>,
    pub uplink: Uplink,
    pub down_rate: f64,
    pub down_free: Time,
    disk_rate: f64,
    disk_free: Time,
    pub disk_full: bool,
    pub cut_until: Time,
    /// Serves wrong bytes this many times in a million.
    pub corrupt_ppm: u32,
    /// Says that it has nothing.
    pub refuses: bool,
    pub timer: Option<Time>,
    pub last_seal: Time,
    config: AgentConfig,
}

impl Node {
    pub fn new(number: u32, alive: bool, scenario: &Scenario, layout: &Layout) -> Node {
        let config = AgentConfig {
            buffer_bytes: scenario.buffer_bytes,
            jitter_seed: scenario.seed ^ u64::from(number),
            ..AgentConfig::default()
        };
        Node {
            number,
            alive,
            epoch: 0,
            session: None,
            is_open: false,
            agent: AgentCore::new(config.clone()),
            live: BTreeMap::new(),
            undecided: BTreeMap::new(),
            verified: vec![None; layout.pieces() as usize],
            disk: BTreeMap::new(),
            own_reads: BTreeMap::new(),
            sealed: BTreeSet::new(),
            given_up: BTreeSet::new(),
            waiters: BTreeMap::new(),
            uplink: Uplink::new(scenario.link_bytes_per_s),
            down_rate: scenario.link_bytes_per_s,
            down_free: Time::ZERO,
            disk_rate: scenario.disk_bytes_per_s,
            disk_free: Time::ZERO,
            disk_full: false,
            cut_until: Time::ZERO,
            corrupt_ppm: 0,
            refuses: false,
            timer: None,
            last_seal: Time::ZERO,
            config,
        }
    }

    /// Nothing is expected of it any more.
    pub fn is_settled(&self, layout: &Layout) -> bool {
        let all = (self.sealed.len() + self.given_up.len()) as u32 == layout.shards();
        !self.alive || self.disk_full || all
    }

    pub fn orders(&self) -> usize {
        self.agent.orders()
    }

    /// The process is gone: what was only in memory, too.
    pub fn die(&mut self) {
        self.alive = false;
        self.epoch += 1;
        self.session = None;
        self.is_open = false;
        self.agent = AgentCore::new(self.config.clone());
        self.live.clear();
        self.undecided.clear();
        self.waiters.clear();
        self.uplink.clear();
        self.timer = None;
        self.disk_free = Time::ZERO;
        for (piece, slot) in self.verified.iter_mut().enumerate() {
            *slot = self.disk.get(&(piece as PieceNo)).copied();
        }
    }

    /// Removes all bytes of a shard.
    fn remove_shard(&mut self, pieces: PieceRange, shard: ShardNo) {
        for piece in pieces {
            self.verified[piece as usize] = None;
            self.disk.remove(&piece);
            self.own_reads.remove(&piece);
        }
        self.sealed.remove(&shard);
    }
}

impl World {
    /// Tells a node's core something and does what it orders.
    pub(super) fn tell(&mut self, n: u32, heard: Heard) {
        let now = self.clock.now();
        self.nodes[n as usize].agent.handle_event(now, heard);
        self.obey(n);
    }

    pub(super) fn node_time(&mut self, n: u32, epoch: u32) {
        let now = self.clock.now();
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch || !node.alive || node.timer.is_none_or(|at| at > now) {
            return;
        }
        node.timer = None;
        if node.agent.poll_timeout().is_some_and(|at| at <= now) {
            node.agent.handle_timeout(now);
        }
        self.obey(n);
    }

    /// Carries out what a node's core orders.
    fn obey(&mut self, n: u32) {
        while let Some(action) = self.nodes[n as usize].agent.poll_action() {
            self.trace.add(&action);
            self.act(n, action);
        }
        let node = &mut self.nodes[n as usize];
        let (flight, budget) = (node.agent.in_flight_bytes(), node.config.buffer_bytes);
        self.node_orders_max = self.node_orders_max.max(node.agent.orders() as u64);
        // Running GETs count with a window only; what they bring beyond it waits for the disk.
        self.checks.that(flight <= budget * 2, || format!("n{n}: {flight} bytes in flight with buffers for {budget}"));
        if let Some(at) = node.agent.poll_timeout()
            && node.timer.is_none_or(|set| at < set)
        {
            node.timer = Some(at);
            let epoch = node.epoch;
            self.clock.at(at, Event::NodeTimer { node: n, epoch });
        }
    }

    fn act(&mut self, n: u32, action: Action) {
        let epoch = self.nodes[n as usize].epoch;
        match action {
            Action::Fetch { fetch, pieces, source, deadline_us, .. } => {
                let live = Live { pieces: pieces.clone(), source, over: false };
                self.nodes[n as usize].live.insert(fetch, live);
                self.clock.after(deadline_us, Event::Deadline { node: n, epoch, fetch });
                self.begin(n, fetch, pieces, source);
            }
            Action::Abort { fetch } => self.end_live(n, fetch, FailureKind::Cancelled, 0),
            Action::Accept { fetch, piece, crc, from_origin, .. } => {
                self.accepted(n, fetch, piece, crc, from_origin);
            }
            Action::Reject { fetch, piece, .. } => {
                let known = self.nodes[n as usize].undecided.remove(&(fetch, piece));
                self.checks.that(known.is_some(), || format!("n{n}: a verdict on nothing: {fetch:?} {piece}"));
            }
            Action::Seal { shard, crc, .. } => {
                self.check_seal(n, shard, crc);
                self.clock.after(SEAL_US, Event::Sealed { node: n, epoch, shard });
            }
            Action::Discard { shard, .. } => {
                let pieces = self.layout.shard_pieces(shard);
                self.nodes[n as usize].remove_shard(pieces, shard);
            }
            Action::Report(report) => self.report(n, report),
        }
    }

    /// Verified: write it, and send it to those who wait for it.
    fn accepted(&mut self, n: u32, fetch: FetchId, piece: PieceNo, crc: Crc64, from_origin: bool) {
        let now = self.clock.now();
        let bytes = u64::from(self.layout.place(piece).len);
        let node = &mut self.nodes[n as usize];
        let received = node.undecided.remove(&(fetch, piece));
        self.checks.that(received == Some(crc), || format!("n{n}: accepted {piece} that is not what was received"));
        if !from_origin {
            let expected = node.agent.expected(DATASET, piece);
            self.checks.that(expected == Some(crc), || format!("n{n}: took a peer's word for {piece}"));
        }
        node.verified[piece as usize] = Some(crc);
        node.disk_free = node.disk_free.max(now) + transfer_us(bytes, node.disk_rate);
        let (at, epoch) = (node.disk_free, node.epoch);
        self.clock.at(at, Event::Written { node: n, epoch, piece, crc, from_origin });
        for job in self.nodes[n as usize].waiters.remove(&piece).unwrap_or_default() {
            self.nodes[n as usize].uplink.push(job, bytes);
        }
        self.serve_uplink(n);
    }

    pub(super) fn written(&mut self, n: u32, epoch: u32, piece: PieceNo, crc: Crc64, from_origin: bool) {
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch {
            return;
        }
        if node.disk_full {
            node.verified[piece as usize] = None;
            let kind = FailureKind::NoSpace;
            let detail = "no space left".to_owned();
            self.tell(n, Heard::WriteFailed { dataset: DATASET, piece, kind, detail });
            return;
        }
        if node.verified[piece as usize] == Some(crc) {
            node.disk.insert(piece, crc);
            if from_origin {
                node.own_reads.insert(piece, crc);
            }
        }
        self.tell(n, Heard::PieceWritten { dataset: DATASET, piece });
    }

    /// Promise 1: visible only when every piece and the whole are right.
    fn check_seal(&mut self, n: u32, shard: ShardNo, crc: Crc64) {
        let node = &self.nodes[n as usize];
        let pieces = self.layout.shard_pieces(shard);
        let on_disk = pieces.clone().all(|p| node.disk.contains_key(&p));
        self.checks.that(on_disk, || format!("n{n}: seals shard {shard}, which is not all on disk"));
        let right = pieces.clone().all(|p| node.disk.get(&p) == Some(&self.truth[p as usize]));
        // Without a checksum of the origin, a wrong read of it cannot be told from a right one.
        let tellable = self.scenario.origin_checksums || self.scenario.indexed;
        let whole = crc == self.shard_truth[shard as usize];
        self.checks.that((right && whole) || !tellable, || format!("n{n}: seals wrong bytes in shard {shard}"));
    }

    pub(super) fn sealed(&mut self, n: u32, epoch: u32, shard: ShardNo) {
        let now = self.clock.now();
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch {
            return;
        }
        if self.layout.shard_pieces(shard).all(|p| node.disk.contains_key(&p)) {
            node.sealed.insert(shard);
            node.last_seal = now;
        }
        self.tell(n, Heard::ShardSealed { dataset: DATASET, shard });
        self.loader_looks(n);
    }

    /// The version's manifest is there: what is on disk is known to the core from now on.
    pub(super) fn open(&mut self, n: u32, epoch: u32) {
        let mut known = self.coordinator.known_checksums();
        let coordinator_is_up = self.coordinator.is_up();
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch || node.is_open {
            return;
        }
        if !coordinator_is_up {
            // The manifest cannot be had: try again.
            self.clock.after(100_000, Event::Open { node: n, epoch });
            return;
        }
        let told: BTreeMap<PieceNo, Crc64> =
            known.iter().flat_map(|(first, crcs)| (*first..).zip(crcs.iter().copied())).collect();
        node.own_reads.retain(|p, crc| told.get(p).is_none_or(|t| t == crc));
        known.extend(node.own_reads.iter().map(|(p, crc)| (*p, vec![*crc])));
        let right = |p: &PieceNo, crc: &Crc64| told.get(p).or(node.own_reads.get(p)) == Some(crc);
        node.disk.retain(|p, crc| right(p, crc));
        let disk = &node.disk;
        let layout = &self.layout;
        node.sealed.retain(|s| layout.shard_pieces(*s).all(|p| disk.contains_key(&p)));
        for (piece, slot) in node.verified.iter_mut().enumerate() {
            *slot = disk.get(&(piece as PieceNo)).copied();
        }
        node.is_open = true;
        let opened = Heard::Opened {
            dataset: DATASET,
            layout: Arc::clone(&self.layout),
            shard_checksums: Arc::clone(&self.shard_checksums),
            known,
            have: node.disk.keys().copied().collect::<RunSet>(),
            sealed: node.sealed.iter().copied().collect(),
        };
        self.tell(n, opened);
        self.send_inventory(n);
    }

    /// Ends a fetch; the core hears of it after `us`.
    pub(super) fn end_live(&mut self, n: u32, fetch: FetchId, kind: FailureKind, us: u64) {
        let node = &mut self.nodes[n as usize];
        let Some(live) = node.live.get_mut(&fetch).filter(|live| !live.over) else {
            return;
        };
        live.over = true;
        let (source, epoch) = (live.source, node.epoch);
        let failure = Failure { piece: Some(live.pieces.start), ..Failure::new(kind, source, String::new()) };
        self.clock.after(us, Event::FetchEnded { node: n, epoch, fetch, failure: Some(failure) });
    }

    pub(super) fn deadline(&mut self, n: u32, epoch: u32, fetch: FetchId) {
        if self.nodes[n as usize].epoch == epoch {
            let waits = |job: &Job| (job.to, job.epoch, job.fetch) == (n, epoch, fetch);
            let waiting = self.nodes.iter().any(|node| node.waiters.values().flatten().any(waits));
            let kind = if waiting { FailureKind::NotHave } else { FailureKind::Timeout };
            self.end_live(n, fetch, kind, 0);
        }
    }

    pub(super) fn fetch_ended(&mut self, n: u32, epoch: u32, fetch: FetchId, failure: Option<Failure>) {
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch || node.live.remove(&fetch).is_none() {
            return;
        }
        let result = failure.map_or(Ok(()), Err);
        self.tell(n, Heard::FetchEnded { fetch, result });
    }

    /// The last bit of a piece came in.
    pub(super) fn arrived(&mut self, job: Job, crc: Crc64, source: Source) {
        let node = &mut self.nodes[job.to as usize];
        let wanted = node.epoch == job.epoch && node.live.get(&job.fetch).is_some_and(|live| !live.over);
        if !wanted {
            return;
        }
        node.undecided.insert((job.fetch, job.piece), crc);
        let last = node.live.get(&job.fetch).is_some_and(|live| live.pieces.end == job.piece + 1);
        let heard = Heard::PieceReceived { fetch: job.fetch, dataset: DATASET, piece: job.piece, actual: crc, source };
        self.tell(job.to, heard);
        if last {
            self.fetch_ended(job.to, job.epoch, job.fetch, None);
        }
    }

    /// Sends a fetch on its way.
    fn begin(&mut self, n: u32, fetch: FetchId, pieces: PieceRange, source: Source) {
        let epoch = self.nodes[n as usize].epoch;
        let job = Job { to: n, epoch, fetch, piece: pieces.start, end: pieces.end };
        match source {
            Source::Origin => self.clock.after(self.scenario.origin_latency_us, Event::Get { job }),
            Source::Peer(p) if p != peer(n) => {
                self.clock.after(self.scenario.peer_latency_us, Event::Request { parent: p.0, job });
            }
            Source::Peer(_) => self.checks.that(false, || format!("n{n} is to fetch from itself")),
        }
    }
}
