//! The coarse world: extents instead of pieces, a stand-in instead of the agent core; for thousands of nodes.
//!
//! An extent flows through a node while it is still coming in, one piece behind. Uplinks and the origin send one
//! extent at a time; a downlink is booked for what it takes in. All checksums are known beforehand, as from an index.

mod fleet;
mod links;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use millstream_coordinator_core::event::{Action as Order, Event as Word};
use millstream_types::{AssignmentId, Crc64, Layout, NodeId, PieceNo, RunSet, Time};

use crate::checks::Checks;
use crate::clock::Clock;
use crate::coordinator::{Coordinator, DATASET, Told, node_info};
use crate::outcome::Outcome;
use crate::rng::Rng;
use crate::scenario::{FaultKind, Scenario};
use crate::trace::Trace;
use fleet::Node;
use links::Uplink;

/// Heartbeats of an agent. Rarer than in life, still within the coordinator's patience: they are not what is measured.
const HEARTBEAT_US: u64 = 2_000_000;

/// What happens.
enum Event {
    Order {
        node: u32,
        epoch: u32,
        order: Box<Order>,
    },
    Word(Box<Word>),
    Heartbeat {
        node: u32,
        epoch: u32,
    },
    Timer,
    /// A request of `node` reaches the flight's source.
    Request {
        node: u32,
        id: AssignmentId,
        attempt: u32,
    },
    /// The first piece of a flight is there.
    Begun {
        node: u32,
        id: AssignmentId,
        attempt: u32,
    },
    /// The last one is.
    Ended {
        node: u32,
        id: AssignmentId,
        attempt: u32,
    },
    UplinkFree {
        node: u32,
    },
    OriginFree,
    Fault(usize),
}

struct World {
    scenario: Scenario,
    layout: Arc<Layout>,
    clock: Clock<Event>,
    rng: Rng,
    trace: Trace,
    checks: Checks,
    coordinator: Coordinator,
    timer: Option<Time>,
    nodes: Vec<Node>,
    origin: Uplink,
    origin_bytes: u64,
    origin_done: Time,
    messages: u64,
    faults_left: usize,
    /// Live nodes that lack something.
    unsettled: u32,
    piece_us: u64,
    node_orders_max: u64,
}

/// Runs a scenario extent by extent. What the core is told goes to `tap`, too; the run ends when nobody takes it.
pub(crate) fn run(scenario: Scenario, tap: Option<SyncSender<Told>>) -> Outcome {
    let mut world = World::new(scenario);
    world.coordinator.tap = tap;
    world.start();
    while let Some(event) = world.clock.pop() {
        if world.clock.now() > Time(world.scenario.time_max_us) {
            let unsettled = world.unsettled;
            world.checks.that(false, || format!("stuck: {unsettled} nodes lack something"));
            break;
        }
        world.apply(event);
        if world.coordinator.unheard {
            break;
        }
        if world.unsettled == 0 && world.faults_left == 0 && world.coordinator.stage_finished.is_some() {
            break;
        }
    }
    world.outcome()
}

impl World {
    fn new(scenario: Scenario) -> World {
        let layout = Arc::new(scenario.layout());
        let known: BTreeMap<PieceNo, Crc64> = (0..layout.pieces()).map(|p| (p, Crc64(u64::from(p) + 1))).collect();
        let sums = (0..layout.shards()).map(|_| None).collect();
        let coordinator = Coordinator::new(&scenario, layout.clone(), sums, known);
        let joins = |n: u32| scenario.faults.iter().any(|f| f.kind == FaultKind::Joins(n));
        let nodes: Vec<Node> =
            (0..scenario.nodes).map(|n| Node::new(!joins(n), scenario.link_bytes_per_s, layout.shards())).collect();
        let unsettled = nodes.iter().filter(|n| n.alive).count() as u32;
        let piece_us = crate::clock::transfer_us(layout.piece_len(), scenario.link_bytes_per_s);
        World {
            rng: Rng::new(scenario.seed, 2),
            clock: Clock::new(),
            trace: Trace::new(scenario.aloud),
            checks: Checks::default(),
            coordinator,
            timer: None,
            nodes,
            origin: Uplink::new(scenario.origin_bytes_per_s),
            origin_bytes: 0,
            origin_done: Time::ZERO,
            messages: 0,
            faults_left: scenario.faults.len(),
            unsettled,
            piece_us,
            node_orders_max: 0,
            layout,
            scenario,
        }
    }

    fn start(&mut self) {
        for (i, fault) in self.scenario.faults.iter().enumerate() {
            self.clock.at(Time(fault.at_us), Event::Fault(i));
        }
        let orders = self.coordinator.start(self.clock.now());
        self.carry_out(orders);
        for n in 0..self.scenario.nodes {
            if self.nodes[n as usize].alive {
                self.connect(n);
            }
        }
    }

    fn connect(&mut self, n: u32) {
        let epoch = self.nodes[n as usize].epoch;
        self.say(Word::NodeUp { node: NodeId(n), info: node_info(n, epoch) });
        let phase = self.rng.below(HEARTBEAT_US);
        self.clock.after(phase, Event::Heartbeat { node: n, epoch });
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Order { node, epoch, order } => self.order_arrived(node, epoch, *order),
            Event::Word(word) => {
                let orders = self.coordinator.handle(self.clock.now(), *word);
                self.carry_out(orders);
            }
            Event::Heartbeat { node, epoch } => self.heartbeat(node, epoch),
            Event::Timer => self.time(),
            Event::Request { node, id, attempt } => self.request(node, id, attempt),
            Event::Begun { node, id, attempt } => self.begun(node, id, attempt),
            Event::Ended { node, id, attempt } => self.ended(node, id, attempt),
            Event::UplinkFree { node } => {
                self.nodes[node as usize].uplink.busy = false;
                self.serve(Some(node));
            }
            Event::OriginFree => {
                self.origin.busy = false;
                self.serve(None);
            }
            Event::Fault(i) => self.fault(i),
        }
    }

    fn say(&mut self, word: Word) {
        self.messages += 1;
        self.clock.after(self.scenario.control_latency_us, Event::Word(Box::new(word)));
    }

    fn heartbeat(&mut self, n: u32, epoch: u32) {
        if self.nodes[n as usize].alive && self.nodes[n as usize].epoch == epoch {
            let capacity_bytes = node_info(n, epoch).capacity_bytes;
            self.say(Word::Heartbeat {
                node: NodeId(n),
                used_bytes: 0,
                capacity_bytes,
                link_bytes_per_s: 0,
                disk_bytes_per_s: 0,
            });
            self.clock.after(HEARTBEAT_US, Event::Heartbeat { node: n, epoch });
        }
    }

    fn time(&mut self) {
        let now = self.clock.now();
        if self.timer.is_some_and(|at| at <= now) {
            self.timer = None;
            let orders = self.coordinator.timeout(now);
            self.carry_out(orders);
        }
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            let node = match &order {
                Order::Attach { node, .. } | Order::Cancel { node, .. } => *node,
                Order::Assign { node, assignment } => {
                    let from = match assignment.source {
                        millstream_coordinator_core::event::Source::Origin => u64::MAX,
                        millstream_coordinator_core::event::Source::Peer(p) => u64::from(p.0),
                    };
                    self.trace.add_numbers(&[self.clock.now().0, u64::from(node.0), assignment.id.0, from]);
                    *node
                }
                Order::Checksums { .. } | Order::PersistChecksums { .. } | Order::Note(_) => continue,
                Order::DiscardShard { .. }
                | Order::Evict { .. }
                | Order::DropShards { .. }
                | Order::AskOrigin { .. } => {
                    self.checks.that(false, || "an order that nobody gave reason for");
                    continue;
                }
            };
            self.messages += 1;
            let epoch = self.nodes[node.0 as usize].epoch;
            let order = Box::new(order);
            self.clock.after(self.scenario.control_latency_us, Event::Order { node: node.0, epoch, order });
        }
        if let Some(at) = self.coordinator.poll_timeout()
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            self.clock.at(at, Event::Timer);
        }
    }

    fn inventory(&mut self, n: u32) {
        let node = &self.nodes[n as usize];
        let word = Word::Inventory {
            node: NodeId(n),
            dataset: DATASET,
            pieces: node.holds.clone(),
            sealed: node.sealed_shards(&self.layout),
        };
        self.say(word);
    }

    fn fault(&mut self, i: usize) {
        self.faults_left -= 1;
        match self.scenario.faults[i].kind.clone() {
            FaultKind::Dies(n) => self.dies(n),
            FaultKind::Returns(n) | FaultKind::Joins(n) => {
                let node = &mut self.nodes[n as usize];
                node.alive = true;
                if node.sealed < self.layout.shards() {
                    self.unsettled += 1;
                }
                self.connect(n);
            }
            FaultKind::Slow(n, percent) => {
                let rate = self.scenario.link_bytes_per_s * f64::from(percent) / 100.0;
                self.nodes[n as usize].uplink.rate = rate;
                self.nodes[n as usize].down_rate = rate;
            }
            other => self.checks.that(false, || format!("the coarse world has no fault {other:?}")),
        }
    }

    fn outcome(mut self) -> Outcome {
        let (bound_s, bound_by) = self.scenario.bound();
        let bytes = self.layout.bytes();
        let complete = self.unsettled == 0 && self.coordinator.stage_finished == Some(true);
        self.checks.that(self.unsettled == 0, || "not all live nodes got everything");
        let read = self.origin_bytes;
        let most = bytes + bytes / 50;
        let faulty = !self.scenario.faults.is_empty();
        self.checks.that(read <= most || faulty, || format!("the origin sent {read} bytes of {bytes}"));
        let harmed: Vec<u32> = self.scenario.faults.iter().filter_map(|f| f.kind.node()).collect();
        let last = |unharmed: bool| {
            let nodes = (0..).zip(&self.nodes).filter(|(n, _)| !(unharmed && harmed.contains(n)));
            nodes.map(|(_, node)| node.last_seal.as_secs_f64()).fold(0.0, f64::max)
        };
        let counters = self.coordinator.counters();
        let elapsed_s = last(false);
        let ends = [(elapsed_s * 1e6) as u64, read, self.clock.popped()];
        self.trace.add_numbers(&ends);
        Outcome {
            seed: self.scenario.seed,
            nodes: self.scenario.nodes,
            bytes,
            elapsed_s,
            elapsed_unharmed_s: last(true),
            origin_done_s: self.origin_done.as_secs_f64(),
            bound_s,
            bound_by,
            ratio: elapsed_s / bound_s,
            origin_bytes: read,
            origin_ratio: read as f64 / bytes.max(1) as f64,
            complete,
            shards_failed: self.coordinator.shards_failed,
            violations: self.checks.into_violations(),
            trace: self.trace.value(),
            events: self.clock.popped(),
            assignments: counters.assignments,
            assignments_per_s: counters.assignments as f64 / elapsed_s.max(1e-9),
            messages: self.messages,
            origin_leases: counters.origin_leases,
            requeues: counters.requeues,
            coordinator_memory_bytes: self.coordinator.memory_bytes as u64,
            node_orders_max: self.node_orders_max,
            waited_part: 0.0,
            dropped: 0,
            handed_over: 0,
            wall_s: 0.0,
        }
    }
}

/// One run of shards.
fn shards(shards: impl Iterator<Item = u32>) -> RunSet {
    shards.collect()
}
