//! Readers of several versions on nodes that hold a part of them: messages and transfers in any order, by seed.

#![allow(clippy::print_stdout, reason = "the seed and what it means, for a test that failed")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use millstream_coordinator_core::config::CoreConfig;
use millstream_coordinator_core::event::{Action, Assignment, DatasetFacts, Event, NodeInfo, Placement, Source};
use millstream_coordinator_core::{Core, ReaderReport};
use millstream_types::{Crc64, DatasetId, Layout, NodeId, RunSet, ShardNo, StageId, Time};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng, rngs::StdRng};

const PIECE: u64 = 4 << 20;
/// Far more than anything here takes.
const LIMIT_US: u64 = 20_000_000;

/// One loader: it needs `lanes` shards at a time, and reads its order so many times.
#[derive(Clone, Debug)]
struct Loader {
    number: u64,
    node: u32,
    dataset: DatasetId,
    order: Vec<ShardNo>,
    lanes: usize,
    at: usize,
    announced: bool,
    /// Asked for, because it waits.
    asked: Option<(ShardNo, Time)>,
}

impl Loader {
    fn open(&self) -> &[ShardNo] {
        &self.order[self.at..self.order.len().min(self.at + self.lanes)]
    }
}

#[derive(Default)]
struct Node {
    /// Pieces.
    have: BTreeMap<DatasetId, RunSet>,
    /// Pieces whose checksums it was told, or found.
    known: BTreeMap<DatasetId, RunSet>,
    orders: Vec<Assignment>,
    to_core: VecDeque<Event>,
    to_node: VecDeque<Action>,
}

struct World {
    core: Core,
    rng: StdRng,
    now: Time,
    layout: Arc<Layout>,
    nodes: Vec<Node>,
    /// Bytes that a node may hold.
    capacity: u64,
    loaders: Vec<Loader>,
    begun: u64,
    read_from_origin: u64,
}

impl World {
    /// `shards`: pieces of each; `room`: pieces that a node may hold.
    fn new(seed: u64, nodes: u32, versions: u32, shards: &[u64], room: u64) -> World {
        let sizes: Vec<u64> = shards.iter().map(|pieces| pieces * PIECE).collect();
        let layout = Arc::new(Layout::new(PIECE, &sizes).expect("a layout"));
        let mut core = Core::new(CoreConfig::default());
        let now = Time(1_000);
        for dataset in (0..versions).map(DatasetId) {
            let shard_checksums = vec![None; shards.len()].into();
            let facts =
                DatasetFacts { layout: layout.clone(), shard_checksums, known: Vec::new(), learned: Vec::new() };
            core.handle_event(now, Event::DatasetAdded { dataset, facts });
        }
        for node in (0..nodes).map(NodeId) {
            let info = NodeInfo { name: format!("n{node}"), boot_id: 1, ..NodeInfo::default() };
            core.handle_event(now, Event::NodeUp { node, info });
        }
        for dataset in (0..versions).map(DatasetId) {
            let (stage, nodes) = (StageId(u64::from(dataset.0) + 1), (0..nodes).map(NodeId).collect());
            let placement = Placement::Window;
            core.handle_event(now, Event::StageRequested { stage, dataset, nodes, placement, priority: 0 });
        }
        let nodes = (0..nodes).map(|_| Node::default()).collect();
        let (rng, capacity) = (StdRng::seed_from_u64(seed), room * PIECE);
        let mut world =
            World { core, rng, now, layout, nodes, capacity, loaders: Vec::new(), begun: 0, read_from_origin: 0 };
        world.drain();
        world
    }

    fn load(&mut self, node: u32, dataset: u32, lanes: usize) {
        let mut order: Vec<ShardNo> = (0..self.layout.shards()).collect();
        order.shuffle(&mut self.rng);
        let dataset = DatasetId(dataset);
        self.begun += 1;
        let number = self.begun;
        self.loaders.push(Loader { number, node, dataset, order, lanes, at: 0, announced: false, asked: None });
    }

    fn held(&self, node: u32) -> u64 {
        self.nodes[node as usize].have.values().map(|have| have.len() * PIECE).sum()
    }

    fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            let to: Vec<NodeId> = match &action {
                Action::Attach { node, .. }
                | Action::Assign { node, .. }
                | Action::Cancel { node, .. }
                | Action::DropShards { node, .. } => vec![*node],
                Action::Checksums { to, .. } => to.clone(),
                Action::AskOrigin { dataset, shards } => {
                    let (asked, holds) = (shards.clone(), shards.clone());
                    self.core.handle_event(self.now, Event::OriginSays { dataset: *dataset, asked, holds });
                    continue;
                }
                Action::Evict { .. } | Action::DiscardShard { .. } => panic!("nothing is evicted or bad: {action:?}"),
                _ => continue,
            };
            to.into_iter().for_each(|n| self.nodes[n.0 as usize].to_node.push_back(action.clone()));
        }
    }

    fn obey(&mut self, node: u32, action: Action) {
        let n = &mut self.nodes[node as usize];
        match action {
            Action::Attach { dataset, .. } => {
                let known = self.core.known_checksums(dataset).into_iter();
                let known = known.map(|(first, crcs)| first..first + crcs.len() as u32);
                n.known.entry(dataset).or_default().union_with(&RunSet::from_runs(known));
                let pieces = n.have.get(&dataset).cloned().unwrap_or_default();
                let sealed = sealed(&self.layout, &pieces);
                n.to_core.push_back(Event::Inventory { node: NodeId(node), dataset, sealed, pieces });
            }
            Action::Checksums { dataset, first, crcs, .. } => {
                n.known.entry(dataset).or_default().insert_range(first..first + crcs.len() as u32);
            }
            Action::Assign { assignment, .. } => n.orders.push(assignment),
            Action::Cancel { assignment, .. } => n.orders.retain(|o| o.id != assignment),
            Action::DropShards { dataset, shards, waiting, .. } => {
                let here = self.loaders.iter().filter(|l| l.node == node && l.dataset == dataset && l.announced);
                let open = here.filter(|l| !waiting.contains(&l.number)).flat_map(Loader::open);
                let open: RunSet = open.copied().collect();
                let (kept, dropped): (Vec<_>, Vec<_>) = shards.iter().partition(|&s| open.contains(s));
                let (kept, dropped): (RunSet, RunSet) = (kept.into_iter().collect(), dropped.into_iter().collect());
                let pieces = RunSet::from_runs(dropped.iter().map(|s| self.layout.shard_pieces(s)));
                n.have.entry(dataset).or_default().remove_all(&pieces);
                n.to_core.push_back(Event::ShardsDropped { node: NodeId(node), dataset, dropped, kept });
            }
            _ => {}
        }
    }

    /// Carries out one order of a node, whichever can be.
    fn work(&mut self, node: u32) -> bool {
        let can = |o: &&Assignment| match o.source {
            Source::Origin => true,
            Source::Peer(peer) => {
                // A source that does not have it waits for it, as far as whoever asks it can tell.
                let covers = |sets: &BTreeMap<DatasetId, RunSet>| {
                    sets.get(&o.dataset).is_some_and(|set| set.contains_range(o.pieces.clone()))
                };
                covers(&self.nodes[peer.0 as usize].have) && covers(&self.nodes[node as usize].known)
            }
        };
        let ready: Vec<_> = self.nodes[node as usize].orders.iter().filter(can).map(|o| o.id).collect();
        let Some(&id) = ready.choose(&mut self.rng) else { return false };
        let orders = &mut self.nodes[node as usize].orders;
        let order = orders.remove(orders.iter().position(|o| o.id == id).expect("it was there"));
        let (dataset, pieces, source) = (order.dataset, order.pieces.clone(), order.source);
        let n = &mut self.nodes[node as usize];
        if source == Source::Origin {
            let crcs = pieces.clone().map(|p| Crc64(u64::from(p) + 1)).collect();
            n.to_core.push_back(Event::PiecesRead { node: NodeId(node), dataset, first: pieces.start, crcs });
            n.known.entry(dataset).or_default().insert_range(pieces.clone());
            self.read_from_origin += u64::from(pieces.end - pieces.start);
        }
        let have = n.have.entry(dataset).or_default();
        have.insert_range(pieces.clone());
        let touched = self.layout.split_by_shard(pieces.clone()).map(|(shard, _)| shard);
        let shards: RunSet = touched.filter(|&s| have.contains_range(self.layout.shard_pieces(s))).collect();
        let bytes = u64::from(pieces.end - pieces.start) * PIECE;
        let node_id = NodeId(node);
        n.to_core.push_back(Event::AssignmentDone { node: node_id, assignment: id, bytes, elapsed_us: 1_000, source });
        n.to_core.push_back(Event::ShardsSealed { node: node_id, dataset, shards });
        assert!(self.held(node) <= self.capacity, "node {node} holds {} of {}", self.held(node), self.capacity);
        true
    }

    fn report(&mut self, at: usize, upcoming: Vec<ShardNo>, finished: Vec<ShardNo>) {
        let (node, dataset, open) = (self.loaders[at].node, self.loaders[at].dataset, self.loaders[at].lanes as u32);
        let n = &self.nodes[node as usize];
        let own = n.have.get(&dataset).map_or(0, |have| have.len() * PIECE);
        let others: Vec<_> =
            n.have.iter().map(|(&d, have)| (d, have.len() * PIECE)).filter(|o| o.0 != dataset).collect();
        let room_bytes = self.capacity - self.held(node) + own;
        let report = ReaderReport {
            reader: self.loaders[at].number,
            upcoming,
            finished,
            room_bytes,
            others,
            open,
            ..Default::default()
        };
        self.nodes[node as usize].to_core.push_back(Event::ReaderMoved { node: NodeId(node), dataset, report });
    }

    /// A loader announces itself, reads a shard, or waits and says so once in a while.
    fn read(&mut self, at: usize) -> bool {
        let loader = self.loaders[at].clone();
        if !loader.announced {
            self.report(at, loader.order, Vec::new());
            self.loaders[at].announced = true;
            return true;
        }
        let here = self.nodes[loader.node as usize].have.get(&loader.dataset).cloned().unwrap_or_default();
        let lacks = |shard: &&ShardNo| !here.contains_range(self.layout.shard_pieces(**shard));
        let Some(&lacking) = loader.open().iter().find(lacks) else {
            let Some(&first) = loader.open().first() else { return false };
            self.loaders[at].at += 1;
            self.report(at, Vec::new(), vec![first]);
            if self.loaders[at].open().is_empty() {
                let (node, dataset) = (NodeId(loader.node), loader.dataset);
                let gone = Event::ReaderGone { node, dataset, reader: loader.number };
                self.nodes[loader.node as usize].to_core.push_back(gone);
            }
            return true;
        };
        if loader.asked.is_some_and(|(shard, since)| shard == lacking && self.now.since(since) < 2_000_000) {
            return false;
        }
        self.loaders[at].asked = Some((lacking, self.now));
        let (node, shards) = (NodeId(loader.node), RunSet::from_range(lacking..lacking + 1));
        let demanded = Event::ShardsDemanded { node, dataset: loader.dataset, shards };
        self.nodes[loader.node as usize].to_core.push_back(demanded);
        true
    }

    /// Something happens, or time passes.
    fn step(&mut self) {
        let nodes = self.nodes.len();
        let mut choices: Vec<usize> = (0..3 * nodes + self.loaders.len()).collect();
        choices.shuffle(&mut self.rng);
        self.now = self.now + self.rng.random_range(1..200);
        let happened = choices.into_iter().any(|choice| match (choice / nodes, choice % nodes) {
            (0, node) => match self.nodes[node].to_core.pop_front() {
                Some(event) => {
                    self.core.handle_event(self.now, event);
                    true
                }
                None => false,
            },
            (1, node) => match self.nodes[node].to_node.pop_front() {
                Some(action) => {
                    self.obey(node as u32, action);
                    true
                }
                None => false,
            },
            (2, node) => self.work(node as u32),
            _ => self.read(choice - 3 * nodes),
        });
        if let Some(due) = self.core.poll_timeout().filter(|&due| !happened || due <= self.now) {
            self.now = self.now.max(due);
            for node in 0..self.nodes.len() as u32 {
                let event = Event::Heartbeat {
                    node: NodeId(node),
                    used_bytes: 0,
                    capacity_bytes: 0,
                    link_bytes_per_s: 0,
                    disk_bytes_per_s: 0,
                };
                self.core.handle_event(self.now, event);
            }
            self.core.handle_timeout(self.now);
        }
        self.drain();
    }

    fn run(&mut self) {
        let began = self.now;
        while self.loaders.iter().any(|l| l.at < l.order.len()) {
            self.step();
            assert!(self.now.since(began) < LIMIT_US, "stuck:\n{}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let mut out = String::new();
        for (no, n) in self.nodes.iter().enumerate() {
            let have: Vec<_> = n.have.iter().map(|(d, have)| (d.0, have.iter().collect::<Vec<_>>())).collect();
            let orders: Vec<_> = n.orders.iter().map(|o| (o.dataset.0, o.pieces.clone(), o.source)).collect();
            let _ = writeln!(out, "node {no}: has {have:?}, is to fetch {orders:?}");
        }
        for (no, l) in self.loaders.iter().enumerate() {
            let (open, left) = (l.open(), l.order.len() - l.at);
            let _ = writeln!(out, "loader {no} on {} of {}: {left} left, reads {open:?}", l.node, l.dataset.0);
        }
        out
    }
}

fn sealed(layout: &Layout, have: &RunSet) -> RunSet {
    (0..layout.shards()).filter(|&s| have.contains_range(layout.shard_pieces(s))).collect()
}

#[test]
fn what_nobody_reads_any_more_makes_room_for_another_version() {
    let mut world = World::new(1, 1, 2, &[1; 24], 8);
    for dataset in [0, 1, 0] {
        world.load(0, dataset, 1);
        world.run();
    }
    assert_eq!(world.nodes[0].have.len(), 2);
}

#[test]
fn readers_of_two_versions_share_a_node() {
    for seed in 0..40 {
        let mut world = World::new(seed, 1, 2, &[1; 24], 8);
        world.load(0, 0, 2);
        world.load(0, 1, 2);
        world.run();
        assert_eq!(world.read_from_origin, 2 * 24, "seed {seed}: each byte once");
    }
}

/// Any number of nodes, versions, and readers of either, that read one to three shards of one to three pieces at a time,
/// on nodes with room for at least what each of them alone has open: none waits for ever, and no node holds too much.
#[test]
fn readers_of_several_versions_share_several_nodes() {
    let seeds = std::env::var("SEVERAL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    for seed in 0..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let (nodes, versions) = (rng.random_range(1..4), rng.random_range(1..4));
        let largest = rng.random_range(1..4);
        let shards: Vec<u64> = (0..rng.random_range(8..24)).map(|_| rng.random_range(1..=largest)).collect();
        let most = rng.random_range(1..4);
        let room = rng.random_range(most as u64 * largest..40);
        println!("seed {seed}: {nodes} nodes, {versions} versions of {shards:?}, {most} at a time, room for {room}");
        let mut world = World::new(seed, nodes, versions, &shards, room);
        for _epoch in 0..3 {
            let before = world.loaders.len();
            for _ in 0..rng.random_range(1..=2 * nodes * versions) {
                let (node, dataset) = (rng.random_range(0..nodes), rng.random_range(0..versions));
                world.load(node, dataset, rng.random_range(1..=most));
            }
            // The next ones come while those before them are at it.
            for _ in 0..rng.random_range(0..2_000) {
                world.step();
            }
            if rng.random_bool(0.5) {
                world.run();
                world.loaders.drain(..before);
            }
        }
        world.run();
    }
}
