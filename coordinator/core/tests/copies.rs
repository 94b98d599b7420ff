//! No order of evictions, losses and returns drops the last copy of anything, and nothing stays without need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_coordinator_core::event::{Action, DatasetFacts, Event, NodeInfo};
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_types::{DatasetId, Layout, NodeId, RunSet, Time};
use proptest::prelude::*;

const DS: DatasetId = DatasetId(0);
const NODES: u32 = 4;
/// The third shard is empty: there is nothing to lose in it.
const LENGTHS: [u64; 6] = [65_536, 200_000, 0, 1, 65_536, 70_000];
const EMPTY: u32 = 2;

struct World {
    core: Core,
    layout: Arc<Layout>,
    /// What is on the disks of nodes that are with us; `None`: the node is away.
    disks: BTreeMap<u32, Option<BTreeSet<u32>>>,
    /// Told to drop it, and not done yet.
    leaving: BTreeSet<u32>,
    now: Time,
}

impl World {
    fn new() -> World {
        let layout = Arc::new(Layout::new(65_536, &LENGTHS).expect("a layout"));
        let mut core = Core::new(CoreConfig::default());
        let shard_checksums = LENGTHS.iter().map(|_| None).collect();
        let facts = DatasetFacts { layout: layout.clone(), shard_checksums, known: Vec::new(), learned: Vec::new() };
        core.handle_event(Time(1), Event::DatasetAdded { dataset: DS, facts });
        let mut world = World { core, layout, disks: BTreeMap::new(), leaving: BTreeSet::new(), now: Time(1) };
        for node in 0..NODES {
            world.come(node, BTreeSet::new());
        }
        world
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.now = self.now + 1_000;
        self.core.handle_event(self.now, event);
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    fn come(&mut self, node: u32, disk: BTreeSet<u32>) {
        let info = NodeInfo { name: format!("n{node}"), boot_id: self.now.0, ..NodeInfo::default() };
        self.tell(Event::NodeUp { node: NodeId(node), info });
        self.leaving.remove(&node);
        self.holds(node, disk);
    }

    fn holds(&mut self, node: u32, disk: BTreeSet<u32>) {
        let sealed: RunSet = disk.iter().copied().collect();
        let pieces = RunSet::from_runs(disk.iter().map(|&s| self.layout.shard_pieces(s)));
        self.tell(Event::Inventory { node: NodeId(node), dataset: DS, pieces, sealed });
        self.disks.insert(node, Some(disk));
    }

    /// Shards that have a copy to count on.
    fn kept(&self, origin: &RunSet) -> BTreeSet<u32> {
        let staying = self.disks.iter().filter(|(n, _)| !self.leaving.contains(n));
        let on_nodes = staying.filter_map(|(_, disk)| disk.as_ref()).flatten().copied();
        on_nodes.chain(origin.iter()).chain([EMPTY]).collect()
    }

    fn evict(&mut self, nodes: &[u32], origin: &RunSet) {
        let nodes: Vec<NodeId> =
            nodes.iter().filter(|n| self.disks[n].is_some() && !self.leaving.contains(n)).map(|&n| NodeId(n)).collect();
        let before = self.kept(origin);
        let only = self.core.only_on(self.now, DS, &nodes);
        let asked: RunSet = origin.iter().filter(|&s| only.contains(s)).collect();
        let departures = self.core.departures(self.now, DS, &nodes, &asked);
        let decided: BTreeSet<NodeId> =
            departures.go.iter().copied().chain(departures.stay.iter().map(|(n, _)| *n)).collect();
        assert_eq!(decided, nodes.iter().copied().collect());
        let orders = self.tell(Event::EvictionOrdered { dataset: DS, nodes: departures.go.clone() });
        for node in &departures.go {
            assert!(orders.contains(&Action::Evict { node: *node, dataset: DS }), "{orders:?}");
            self.leaving.insert(node.0);
        }
        assert_eq!(self.kept(origin), before, "a last copy was dropped: {departures:?}");
        for (node, last) in &departures.stay {
            // Without this node they would be gone.
            let others: BTreeSet<u32> = self
                .disks
                .iter()
                .filter(|(n, _)| **n != node.0 && !self.leaving.contains(n))
                .filter_map(|(_, disk)| disk.as_ref())
                .flatten()
                .copied()
                .collect();
            let needed = last.iter().any(|s| !others.contains(&s) && !origin.contains(s) && s != EMPTY);
            let stays_too = departures.stay.iter().filter(|(n, _)| n != node).count() > 0;
            assert!(needed || stays_too, "{node:?} stays for nothing");
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Holds(u32, BTreeSet<u32>),
    Go(u32),
    Come(u32, BTreeSet<u32>),
    Evict(Vec<u32>, BTreeSet<u32>),
    Answer(u32, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    let shards = || proptest::collection::btree_set(0..LENGTHS.len() as u32, 0..6);
    prop_oneof![
        3 => (node.clone(), shards()).prop_map(|(n, s)| Op::Holds(n, s)),
        1 => node.clone().prop_map(Op::Go),
        1 => (node.clone(), shards()).prop_map(|(n, s)| Op::Come(n, s)),
        4 => (proptest::sample::subsequence((0..NODES).collect::<Vec<_>>(), 1..=NODES as usize), shards())
            .prop_map(|(n, s)| Op::Evict(n, s)),
        2 => (node, any::<bool>()).prop_map(|(n, done)| Op::Answer(n, done)),
    ]
}

proptest! {
    #[test]
    fn the_last_copy_of_nothing_is_dropped(ops in proptest::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Holds(node, disk) if world.disks[&node].is_some() && !world.leaving.contains(&node) => {
                    world.holds(node, disk);
                }
                Op::Go(node) if world.disks[&node].is_some() => {
                    world.tell(Event::NodeGone { node: NodeId(node) });
                    world.disks.insert(node, None);
                    world.leaving.remove(&node);
                }
                Op::Come(node, disk) if world.disks[&node].is_none() => world.come(node, disk),
                Op::Evict(nodes, origin) => world.evict(&nodes, &origin.into_iter().collect()),
                Op::Answer(node, true) if world.leaving.remove(&node) => {
                    world.tell(Event::Evicted { node: NodeId(node), dataset: DS });
                    world.disks.insert(node, Some(BTreeSet::new()));
                }
                Op::Answer(node, false) if world.leaving.remove(&node) => {
                    world.tell(Event::EvictionRefused { node: NodeId(node), dataset: DS });
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_node_whose_inventory_is_not_in_is_taken_to_hold_everything() {
    let mut world = World::new();
    let info = NodeInfo { name: "late".into(), boot_id: 9, ..NodeInfo::default() };
    world.tell(Event::NodeUp { node: NodeId(7), info });
    let departures = world.core.departures(world.now, DS, &[NodeId(7)], &RunSet::new());
    assert_eq!(departures.go, []);
    let all = RunSet::from_range(0..LENGTHS.len() as u32);
    assert_eq!(world.core.departures(world.now, DS, &[NodeId(7)], &all).go, [NodeId(7)]);
}
