//! The fine world: real agent cores, every piece on its way through uplinks, downlinks and disks.
//!
//! Links are full duplex. A node's uplink sends one piece at a time, in the order of the requests; a downlink takes
//! pieces in as they come, and a sender passes over a receiver whose downlink is backed up (as flow control would).
//! A parent asked for a piece that it is itself receiving waits until its core has accepted it, then sends.

mod control;
mod faults;
mod loaders;
mod network;
mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_agent_core::event::{Failure as AgentFailure, FetchId, PeerId, Source as AgentSource};
use millstream_coordinator_core::event::{Action as Order, Event as Word};
use millstream_types::{Crc64, Layout, OriginChecksum, PieceCombiner, PieceNo, RunSet, ShardNo, Time};

use crate::checks::Checks;
use crate::clock::Clock;
use crate::coordinator::{Coordinator, DATASET};
use crate::outcome::Outcome;
use crate::rng::{Rng, mix};
use crate::scenario::Scenario;
use crate::trace::Trace;
use loaders::Loader;
use network::{Job, Origin};
use node::Node;

/// Heartbeats of an agent.
const HEARTBEAT_US: u64 = 1_000_000;
/// Time for which the run goes on after the last shard, so that the coordinator hears of it.
const GRACE_US: u64 = 60_000_000;

/// What happens.
#[derive(Debug)]
enum Event {
    /// An order reaches a node's session.
    Order {
        node: u32,
        epoch: u32,
        session: u32,
        order: Order,
    },
    /// A word of a node reaches the coordinator's session.
    Word {
        node: u32,
        session: u32,
        word: Word,
    },
    Heartbeat {
        node: u32,
        epoch: u32,
    },
    Reconnect {
        node: u32,
        epoch: u32,
    },
    CoordinatorTimer,
    NodeTimer {
        node: u32,
        epoch: u32,
    },
    /// A version is open on a node.
    Open {
        node: u32,
        epoch: u32,
    },
    /// A request for a piece reaches a peer.
    Request {
        parent: u32,
        job: Job,
    },
    /// A GET reaches the origin.
    Get {
        job: Job,
    },
    UplinkFree {
        node: u32,
    },
    OriginFree,
    Arrived {
        job: Job,
        crc: Crc64,
        source: AgentSource,
    },
    FetchEnded {
        node: u32,
        epoch: u32,
        fetch: FetchId,
        failure: Option<AgentFailure>,
    },
    Deadline {
        node: u32,
        epoch: u32,
        fetch: FetchId,
    },
    Written {
        node: u32,
        epoch: u32,
        piece: PieceNo,
        crc: Crc64,
        from_origin: bool,
    },
    Sealed {
        node: u32,
        epoch: u32,
        shard: ShardNo,
    },
    /// The answer of the origin to the coordinator.
    OriginSays {
        shards: RunSet,
    },
    /// A loader has read its shard.
    LoaderRead {
        node: u32,
    },
    SessionLost {
        node: u32,
        incarnation: u32,
    },
    Fault(usize),
    CoordinatorUp,
}

/// Everything there is.
struct World {
    scenario: Scenario,
    layout: Arc<Layout>,
    truth: Vec<Crc64>,
    shard_checksums: Arc<[Option<OriginChecksum>]>,
    shard_truth: Vec<Crc64>,
    clock: Clock<Event>,
    rng: Rng,
    trace: Trace,
    checks: Checks,
    coordinator: Coordinator,
    coordinator_timer: Option<Time>,
    nodes: Vec<Node>,
    origin: Origin,
    messages: u64,
    faults_left: usize,
    loaders: Vec<Loader>,
    node_orders_max: u64,
    done_at: Option<Time>,
}

/// Runs a scenario piece by piece.
pub(crate) fn run(scenario: Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.start();
    while let Some(event) = world.clock.pop() {
        if world.clock.now() > Time(world.scenario.time_max_us) {
            let stuck = world.describe();
            world.checks.that(false, || format!("stuck: {stuck}"));
            break;
        }
        world.trace.add(&(world.clock.now(), &event));
        world.apply(event);
        if world.is_over() {
            break;
        }
    }
    world.outcome()
}

impl World {
    fn new(scenario: Scenario) -> World {
        let layout = Arc::new(scenario.layout());
        let truth: Vec<Crc64> =
            (0..layout.pieces()).map(|p| Crc64(mix(scenario.seed ^ mix(u64::from(p) + 1)))).collect();
        let combiner = PieceCombiner::new(layout.piece_len());
        let shard_truth: Vec<Crc64> = (0..layout.shards())
            .map(|s| {
                let crcs = layout.shard_pieces(s).map(|p| truth[p as usize]);
                combiner.shard(crcs, layout.shard_len(s))
            })
            .collect();
        let has = scenario.origin_checksums;
        let shard_checksums: Arc<[Option<OriginChecksum>]> =
            shard_truth.iter().map(|crc| has.then_some(OriginChecksum::Crc64Nvme(*crc))).collect();
        let known: BTreeMap<PieceNo, Crc64> = match scenario.indexed {
            true => (0..).zip(truth.iter().copied()).collect(),
            false => BTreeMap::new(),
        };
        let coordinator = Coordinator::new(&scenario, layout.clone(), shard_checksums.clone(), known);
        let late: Vec<u32> = scenario
            .faults
            .iter()
            .filter_map(|f| match f.kind {
                crate::FaultKind::Joins(n) => Some(n),
                _ => None,
            })
            .collect();
        let nodes = (0..scenario.nodes).map(|n| Node::new(n, !late.contains(&n), &scenario, &layout)).collect();
        World {
            rng: Rng::new(scenario.seed, 2),
            clock: Clock::new(),
            trace: Trace::new(scenario.aloud),
            checks: Checks::default(),
            origin: Origin::new(scenario.origin_bytes_per_s),
            coordinator,
            coordinator_timer: None,
            nodes,
            messages: 0,
            faults_left: scenario.faults.len(),
            loaders: Loader::all(&scenario),
            node_orders_max: 0,
            done_at: None,
            layout,
            truth,
            shard_checksums,
            shard_truth,
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

    fn apply(&mut self, event: Event) {
        match event {
            Event::Order { node, epoch, session, order } => self.order_arrived(node, epoch, session, order),
            Event::Word { node, session, word } => self.word_arrived(node, session, word),
            Event::Heartbeat { node, epoch } => self.heartbeat(node, epoch),
            Event::Reconnect { node, epoch } => self.reconnect(node, epoch),
            Event::CoordinatorTimer => self.coordinator_time(),
            Event::NodeTimer { node, epoch } => self.node_time(node, epoch),
            Event::Open { node, epoch } => self.open(node, epoch),
            Event::Request { parent, job } => self.request_arrived(parent, job),
            Event::Get { job } => self.get_arrived(job),
            Event::UplinkFree { node } => {
                self.nodes[node as usize].uplink.busy = false;
                self.serve_uplink(node);
            }
            Event::OriginFree => {
                self.origin.uplink.busy = false;
                self.serve_origin();
            }
            Event::Arrived { job, crc, source } => self.arrived(job, crc, source),
            Event::FetchEnded { node, epoch, fetch, failure } => self.fetch_ended(node, epoch, fetch, failure),
            Event::Deadline { node, epoch, fetch } => self.deadline(node, epoch, fetch),
            Event::Written { node, epoch, piece, crc, from_origin } => {
                self.written(node, epoch, piece, crc, from_origin)
            }
            Event::Sealed { node, epoch, shard } => self.sealed(node, epoch, shard),
            Event::OriginSays { shards } => self.origin_says(shards),
            Event::LoaderRead { node } => self.loader_read(node),
            Event::SessionLost { node, incarnation } => self.session_lost(node, incarnation),
            Event::Fault(i) => self.fault(i),
            Event::CoordinatorUp => self.coordinator_up(),
        }
    }

    /// Nothing is left to happen: all faults came, all live nodes have everything, the coordinator knows.
    fn is_over(&mut self) -> bool {
        if !self.loaders.is_empty() {
            return self.faults_left == 0 && self.all_read();
        }
        if self.faults_left > 0 || !self.coordinator.is_up() || !self.nodes.iter().all(|n| n.is_settled(&self.layout)) {
            self.done_at = None;
            return false;
        }
        let now = self.clock.now();
        let done = *self.done_at.get_or_insert(now);
        let refused = self.nodes.iter().any(|n| !n.alive || n.disk_full);
        let knows = self.coordinator.stage_finished.is_some() || refused;
        if !knows && now.since(done) > GRACE_US {
            let core = self.coordinator.core();
            let stages = core.map(|core| core.stages(now));
            let replicas = core.map(|core| core.replicas(DATASET));
            self.checks
                .that(false, || format!("all have everything, but the coordinator says {stages:?} {replicas:?}"));
            return true;
        }
        knows
    }

    fn outcome(mut self) -> Outcome {
        let (bound_s, bound_by) = self.scenario.bound();
        let settled = match self.loaders.is_empty() {
            true => self.faults_left == 0 && self.nodes.iter().all(|n| n.is_settled(&self.layout)),
            false => self.faults_left == 0 && self.all_read(),
        };
        self.checks.that(settled, || "not all live nodes got everything");
        let bytes = self.layout.bytes();
        let last = |unharmed: bool| {
            let harmed: Vec<u32> = self.scenario.faults.iter().filter_map(|f| f.kind.node()).collect();
            let nodes = self.nodes.iter().filter(|n| !(unharmed && harmed.contains(&n.number)));
            nodes.map(|n| n.last_seal.as_secs_f64()).fold(0.0, f64::max)
        };
        let (elapsed_s, elapsed_unharmed_s) = (last(false), last(true));
        if self.scenario.faults.is_empty() && self.loaders.is_empty() {
            let most = bytes + bytes / 50;
            let read = self.origin.sent_bytes;
            self.checks.that(read <= most, || format!("the origin sent {read} bytes of {bytes}"));
        }
        let counters = self.coordinator.counters();
        let waited_part = self.waited_part();
        Outcome {
            seed: self.scenario.seed,
            nodes: self.scenario.nodes,
            bytes,
            elapsed_s,
            elapsed_unharmed_s,
            origin_done_s: self.origin.last_sent.as_secs_f64(),
            bound_s,
            bound_by,
            ratio: elapsed_s / bound_s,
            origin_bytes: self.origin.sent_bytes,
            origin_ratio: self.origin.sent_bytes as f64 / bytes.max(1) as f64,
            complete: settled && self.coordinator.stage_finished == Some(true),
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
            waited_part,
            dropped: counters.dropped,
            handed_over: counters.handed_over,
            wall_s: 0.0,
        }
    }

    /// Who lacks what, for the report of a run that is stuck.
    fn describe(&self) -> String {
        let lacking: Vec<String> = self
            .nodes
            .iter()
            .filter(|n| !n.is_settled(&self.layout))
            .map(|n| {
                let (number, sealed, orders) = (n.number, n.sealed.len(), n.orders());
                let missing: RunSet = (0..self.layout.pieces()).filter(|p| !n.disk.contains_key(p)).collect();
                let expects = missing.iter().next().map(|p| n.agent.expected(DATASET, p).is_some());
                let missing = missing.runs();
                format!("n{number} has {sealed} shards, {orders} orders, lacks {missing:?}, expects {expects:?}")
            })
            .collect();
        lacking.join("; ")
    }
}

/// A peer's number is its node's number.
fn peer(node: u32) -> PeerId {
    PeerId(node)
}
