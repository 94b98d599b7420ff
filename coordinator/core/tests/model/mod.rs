//! A small model of a cluster: first-come-first-served links, obedient agents, one origin. No agent core, no network:
//! just enough to see what the coordinator's orders amount to.

#![allow(dead_code, reason = "each test file uses its part")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use millstream_coordinator_core::event::{
    Action, Assignment, DatasetFacts, Event, FailureKind, NodeInfo, Note, Placement,
};
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_types::{
    Crc64, DatasetId, Layout, NodeId, OriginChecksum, PieceCombiner, PieceNo, RunSet, StageId, Time,
};

mod agent;
mod loader;

pub use loader::Loader;

pub const DS: DatasetId = DatasetId(0);
pub const STAGE: StageId = StageId(1);

/// What the cluster is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: u32,
    pub shards: Vec<u64>,
    pub piece_len: u64,
    /// Bytes per second.
    pub origin: f64,
    pub link: f64,
    /// One way, of control messages and of requests.
    pub latency_us: u64,
    /// Piece requests that an agent has open at once.
    pub requests: usize,
    pub placement: Placement,
    pub core: CoreConfig,
}

impl Setup {
    pub fn new(nodes: u32, pieces: u64, origin_to_link: f64) -> Setup {
        let piece_len = 1 << 20;
        Setup {
            nodes,
            shards: vec![pieces * piece_len / 4; 4],
            piece_len,
            origin: 1e9 * origin_to_link,
            link: 1e9,
            latency_us: 50,
            requests: 64,
            placement: Placement::Replicate,
            core: CoreConfig::default(),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.shards.iter().sum()
    }

    /// The lower bound in seconds.
    pub fn bound(&self) -> f64 {
        let (d, n) = (self.bytes() as f64, f64::from(self.nodes));
        (d / self.origin).max(d / self.link).max(n * d / (self.origin + n * self.link))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ev {
    Tick,
    /// Something in the core waits until now.
    Due,
    /// A loader has read its shard.
    Read(u32),
    ToCore(usize),
    ToNode(usize),
    /// A piece left its source's uplink.
    Left {
        to: u32,
        piece: PieceNo,
        from: Option<u32>,
    },
    Arrived {
        to: u32,
        piece: PieceNo,
        from: Option<u32>,
        life: u32,
    },
    Kill(u32),
    Revive(u32),
    RestartCore,
}

#[derive(Debug, Default)]
struct Node {
    alive: bool,
    life: u32,
    have: RunSet,
    sealed: RunSet,
    known: RunSet,
    /// Read from the origin by this node.
    read: RunSet,
    orders: Vec<Order>,
    /// Pieces asked for, and of whom.
    asked: BTreeMap<PieceNo, Option<u32>>,
    /// Arrived before its checksum.
    unverified: RunSet,
    up_free: f64,
    down_free: f64,
    up_rate: f64,
    down_rate: f64,
    /// Who waits here for a piece.
    waiting: BTreeMap<PieceNo, BTreeSet<u32>>,
    up: bool,
}

#[derive(Debug, Clone)]
struct Order {
    assignment: Assignment,
    began: Time,
    bytes: u64,
}

/// The running model.
pub struct World {
    pub setup: Setup,
    pub core: Core,
    pub now: Time,
    pub layout: Arc<Layout>,
    truth: Vec<Crc64>,
    nodes: Vec<Node>,
    origin_free: f64,
    queue: BinaryHeap<Reverse<(Time, u64, Ev)>>,
    seq: u64,
    to_core: Vec<Option<Event>>,
    to_node: Vec<Option<(u32, Action)>>,
    /// Times that each piece was read from the origin.
    pub reads: Vec<u32>,
    pub notes: Vec<Note>,
    pub persisted: BTreeMap<PieceNo, Crc64>,
    pub trace: Vec<String>,
    pub keep_trace: bool,
    /// Piece whose next origin read comes out wrong, and how often still.
    pub corrupt: Option<(PieceNo, u32)>,
    /// Fails the next so many origin reads.
    pub origin_failures: u32,
    pub origin_failure_kind: FailureKind,
    /// Nodes that take origin leases and never do anything.
    pub stuck: BTreeSet<u32>,
    pub discarded: u32,
    /// Shards that the origin no longer has as they were.
    pub origin_lacks: RunSet,
    pub readers: BTreeMap<u32, Loader>,
    /// What heartbeats say of links and disks.
    pub rates: [u64; 2],
    core_down: bool,
    ticking: bool,
    next_tick: Time,
    due: Option<Time>,
    scripted: u32,
}

impl World {
    pub fn new(setup: Setup) -> World {
        let layout = Arc::new(Layout::new(setup.piece_len, &setup.shards).expect("a layout"));
        let truth: Vec<Crc64> = (0..layout.pieces()).map(|p| Crc64(u64::from(p) * 0x9e37_79b9 + 1)).collect();
        let nodes = (0..setup.nodes)
            .map(|_| Node { alive: true, up_rate: setup.link, down_rate: setup.link, ..Node::default() })
            .collect();
        let reads = vec![0; layout.pieces() as usize];
        let core = Core::new(setup.core.clone());
        let mut world = World {
            setup,
            core,
            now: Time(1_000),
            layout,
            truth,
            nodes,
            origin_free: 0.0,
            queue: BinaryHeap::new(),
            seq: 0,
            to_core: Vec::new(),
            to_node: Vec::new(),
            reads,
            notes: Vec::new(),
            persisted: BTreeMap::new(),
            trace: Vec::new(),
            keep_trace: false,
            corrupt: None,
            origin_failures: 0,
            origin_failure_kind: FailureKind::OriginTransient,
            stuck: BTreeSet::new(),
            discarded: 0,
            origin_lacks: RunSet::new(),
            readers: BTreeMap::new(),
            rates: [0, 0],
            core_down: false,
            ticking: false,
            next_tick: Time::ZERO,
            due: None,
            scripted: 0,
        };
        world.tell_core(Event::DatasetAdded { dataset: DS, facts: world.facts() });
        world
    }

    fn facts(&self) -> DatasetFacts {
        let combiner = PieceCombiner::new(self.setup.piece_len);
        let shard = |s| {
            let pieces = self.layout.shard_pieces(s);
            let sum = pieces.fold(Crc64::default(), |sum, p| {
                combiner.combine(sum, self.truth[p as usize], u64::from(self.layout.place(p).len))
            });
            Some(OriginChecksum::Crc64Nvme(sum))
        };
        DatasetFacts {
            layout: Arc::clone(&self.layout),
            shard_checksums: (0..self.layout.shards()).map(shard).collect(),
            known: Vec::new(),
            learned: self.persisted.iter().map(|(&p, &c)| (p, vec![c])).collect(),
        }
    }

    pub fn set_rates(&mut self, node: u32, up: f64, down: f64) {
        self.nodes[node as usize].up_rate = up;
        self.nodes[node as usize].down_rate = down;
    }

    pub fn join(&mut self, node: u32) {
        self.nodes[node as usize].up = true;
        let info = NodeInfo {
            name: format!("n{node}"),
            boot_id: u64::from(self.nodes[node as usize].life) + 1,
            ..NodeInfo::default()
        };
        self.tell_core(Event::NodeUp { node: NodeId(node), info });
    }

    pub fn join_all(&mut self) {
        for node in 0..self.setup.nodes {
            self.join(node);
        }
    }

    pub fn request(&mut self, stage: StageId, nodes: Vec<u32>) {
        self.tell_core(Event::StageRequested {
            stage,
            dataset: DS,
            nodes: nodes.into_iter().map(NodeId).collect(),
            placement: self.setup.placement,
            priority: 0,
        });
    }

    pub fn request_all(&mut self) {
        self.request(STAGE, (0..self.setup.nodes).collect());
    }

    pub fn at(&mut self, time: Time, what: &str, node: u32) {
        let ev = match what {
            "kill" => Ev::Kill(node),
            "revive" => Ev::Revive(node),
            "restart" => Ev::RestartCore,
            _ => panic!("{what}"),
        };
        self.scripted += 1;
        self.push(time, ev);
    }

    fn push(&mut self, at: Time, ev: Ev) {
        self.seq += 1;
        self.queue.push(Reverse((at, self.seq, ev)));
    }

    pub fn tell_core(&mut self, event: Event) {
        if self.core_down {
            return;
        }
        self.core.handle_event(self.now, event);
        self.drain();
        // Beside the sweeps, for which there are ticks.
        if let Some(at) = self.core.poll_timeout().filter(|&at| at < self.next_tick && self.due.replace(at) != Some(at))
        {
            self.push(at, Ev::Due);
        }
    }

    fn later_core(&mut self, event: Event) {
        self.to_core.push(Some(event));
        let at = self.now + self.setup.latency_us;
        self.push(at, Ev::ToCore(self.to_core.len() - 1));
    }

    fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            if self.keep_trace {
                self.trace.push(format!("{} {action:?}", self.now.0));
            }
            let node = match &action {
                Action::Attach { node, .. }
                | Action::Assign { node, .. }
                | Action::Cancel { node, .. }
                | Action::DropShards { node, .. }
                | Action::Evict { node, .. } => node.0,
                Action::AskOrigin { shards, .. } => {
                    let mut holds = shards.clone();
                    holds.remove_all(&self.origin_lacks);
                    self.later_core(Event::OriginSays { dataset: DS, asked: shards.clone(), holds });
                    continue;
                }
                Action::Checksums { to, .. } => {
                    to.iter().for_each(|node| self.tell_node(node.0, action.clone()));
                    continue;
                }
                Action::PersistChecksums { first, crcs, .. } => {
                    for (i, &crc) in crcs.iter().enumerate() {
                        self.persisted.insert(*first + i as u32, crc);
                    }
                    continue;
                }
                Action::DiscardShard { to, shard, .. } => {
                    self.discarded += 1;
                    let pieces = self.layout.shard_pieces(*shard);
                    self.persisted.retain(|p, _| !pieces.contains(p));
                    to.iter().for_each(|node| self.tell_node(node.0, action.clone()));
                    continue;
                }
                Action::Note(note) => {
                    self.notes.push(note.clone());
                    continue;
                }
            };
            self.tell_node(node, action);
        }
    }

    /// A node is told everything in the order in which the core said it.
    fn tell_node(&mut self, node: u32, action: Action) {
        self.to_node.push(Some((node, action)));
        let at = self.now + self.setup.latency_us;
        self.push(at, Ev::ToNode(self.to_node.len() - 1));
    }

    /// Runs until all living nodes of the stage have sealed everything they want, or `limit`. Seconds of model time.
    pub fn run(&mut self, limit: Time) -> f64 {
        if !std::mem::replace(&mut self.ticking, true) {
            self.push(self.now, Ev::Tick);
        }
        while let Some(Reverse((at, ..))) = self.queue.peek() {
            if *at > limit {
                self.now = limit;
                break;
            }
            let Some(Reverse((at, _, ev))) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(at);
            self.step(ev);
            if self.finished() {
                break;
            }
        }
        self.now.as_secs_f64()
    }

    /// Bytes on a node.
    pub fn held_bytes(&self, node: u32) -> u64 {
        self.nodes[node as usize].have.runs().iter().map(|r| self.layout.range_bytes(r.clone())).sum()
    }

    /// Lets this much time pass, whatever stages do.
    pub fn pass(&mut self, us: u64) {
        let limit = self.now + us;
        if !std::mem::replace(&mut self.ticking, true) {
            self.push(self.now, Ev::Tick);
        }
        while let Some(Reverse((at, seq, ev))) = self.queue.pop() {
            if at > limit {
                self.queue.push(Reverse((at, seq, ev)));
                break;
            }
            self.now = self.now.max(at);
            self.step(ev);
        }
        self.now = limit;
    }

    /// The stage ended, and nothing more is going to happen to nodes.
    pub fn finished(&self) -> bool {
        self.scripted == 0
            && self.notes.iter().any(|n| matches!(n, Note::StageFinished { .. }))
            && self.core.stages(self.now).iter().all(|s| s.state != "running")
    }

    fn step(&mut self, ev: Ev) {
        match ev {
            Ev::Tick => {
                if !self.core_down {
                    for node in 0..self.setup.nodes {
                        if self.nodes[node as usize].alive && self.nodes[node as usize].up {
                            self.core.handle_event(
                                self.now,
                                Event::Heartbeat {
                                    node: NodeId(node),
                                    used_bytes: 0,
                                    capacity_bytes: 0,
                                    link_bytes_per_s: self.rates[0],
                                    disk_bytes_per_s: self.rates[1],
                                },
                            );
                        }
                    }
                    self.core.handle_timeout(self.now);
                    self.drain();
                }
                self.next_tick = self.now + 250_000;
                self.push(self.next_tick, Ev::Tick);
            }
            Ev::Due => {
                self.core.handle_timeout(self.now);
                self.drain();
            }
            Ev::Read(node) => self.loader_read(node),
            Ev::ToCore(i) => {
                if let Some(event) = self.to_core[i].take() {
                    self.tell_core(event);
                }
            }
            Ev::ToNode(i) => {
                if let Some((node, action)) = self.to_node[i].take() {
                    self.obey(node, action);
                }
            }
            Ev::Left { to, piece, from } => {
                let len = f64::from(self.layout.place(piece).len);
                let life = self.nodes[to as usize].life;
                let node = &mut self.nodes[to as usize];
                let at = (self.now.0 as f64).max(node.down_free + len * 1e6 / node.down_rate);
                node.down_free = at;
                self.push(Time(at.ceil() as u64), Ev::Arrived { to, piece, from, life });
            }
            Ev::Arrived { to, piece, from, life } => self.arrived(to, piece, from, life),
            Ev::Kill(node) => {
                self.scripted -= 1;
                self.kill(node);
            }
            Ev::Revive(node) => {
                self.scripted -= 1;
                if !self.nodes[node as usize].up {
                    self.nodes[node as usize].alive = true;
                    self.nodes[node as usize].life += 1;
                    self.join(node);
                }
            }
            Ev::RestartCore => {
                self.scripted -= 1;
                self.restart_core();
            }
        }
    }

    fn restart_core(&mut self) {
        let mut config = self.setup.core.clone();
        config.recovering = true;
        config.first_assignment = 1 << 30;
        self.core = Core::new(config);
        self.to_core.clear();
        self.to_node.clear();
        let lost = |ev: &Ev| matches!(ev, Ev::ToCore(_) | Ev::ToNode(_));
        self.queue.retain(|Reverse((_, _, ev))| !lost(ev));
        let facts = self.facts();
        self.tell_core(Event::DatasetAdded { dataset: DS, facts });
        self.request_all();
        for node in 0..self.setup.nodes {
            if self.nodes[node as usize].alive {
                self.join(node);
            }
        }
    }

    /// Everything is on the node, and it was told what to expect of it.
    pub fn has_all(&self, node: u32) -> bool {
        let n = &self.nodes[node as usize];
        let pieces = self.layout.pieces();
        n.have.contains_range(0..pieces) && n.known.union_len(pieces) == u64::from(pieces)
    }

    pub fn describe(&self) -> String {
        let node = |(i, n): (usize, &Node)| {
            let orders: Vec<_> = n.orders.iter().map(|o| (&o.assignment.pieces, o.assignment.source)).collect();
            format!(
                "{i}: up {} lacks {:?} does not know {:?} asked {:?} orders {orders:?} sealed {:?}",
                n.up,
                n.have.gaps(0..self.layout.pieces()).collect::<Vec<_>>(),
                n.known.gaps(0..self.layout.pieces()).collect::<Vec<_>>(),
                n.asked,
                n.sealed
            )
        };
        let nodes: Vec<String> = self.nodes.iter().enumerate().map(node).collect();
        format!("{}\n{:?}\n{:?}", nodes.join("\n"), self.core.counters(), self.core.replicas(DS))
    }

    pub fn is_up(&self, node: u32) -> bool {
        self.nodes[node as usize].up
    }

    pub fn have(&self, node: u32) -> &RunSet {
        &self.nodes[node as usize].have
    }

    /// Bytes read from the origin, over the size of the data.
    pub fn origin_ratio(&self) -> f64 {
        let bytes: u64 = self
            .reads
            .iter()
            .enumerate()
            .map(|(p, &n)| u64::from(n) * u64::from(self.layout.place(p as u32).len))
            .sum();
        bytes as f64 / self.setup.bytes() as f64
    }
}

trait UnionLen {
    fn union_len(&self, pieces: u32) -> u64;
}

impl UnionLen for RunSet {
    fn union_len(&self, pieces: u32) -> u64 {
        u64::from(self.count_range(0..pieces))
    }
}
