//! The coordinator's decisions, without I/O.
//!
//! Purpose: who fetches which extent from whom, what is expected of each piece, who is with us, what failed.
//! Participants: the shell (`millstream-coordinator`) and the simulator (`millstream-sim`) drive a [`Core`] through
//! [`event`]. Goals: every origin byte read once; transfers near T*; a fault costs little; the same events give the
//! same actions. Non-goals: storage, sockets, clocks, names and URLs (the shell's).
//!
//! Order inside: [`Core::handle_event`] dispatches to `session` (nodes come and go), `staging` (what is wanted),
//! `progress` (what was done) and `faults` (what went wrong); all of them end in `plan`, which hands out work.

mod bits;
mod catalog;
mod chain;
pub mod config;
mod copies;
pub mod event;
mod extent;
mod faults;
mod flight;
mod hand_out;
pub mod holdings;
pub mod limits;
mod membership;
mod origin;
mod plan;
mod progress;
mod session;
mod source;
mod stage;
mod staging;
mod sums;
mod tree;
pub mod view;
mod views;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millstream_types::{DatasetId, NodeId, StageId, Time};

pub use config::CoreConfig;
pub use window::ReaderReport;

use catalog::Dataset;
use event::{Action, Event, Note};
use flight::Flights;
use membership::Nodes;
use origin::OriginBudget;
use plan::Scratch;
use stage::Stage;
use view::Counters;

/// The coordinator's whole state and policy.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    actions: VecDeque<Action>,
    counters: Counters,
    nodes: Nodes,
    flights: Flights,
    /// By number; `None` for those unknown or removed (and for the one being worked on).
    datasets: Vec<Option<Box<Dataset>>>,
    /// Versions with stages, the most urgent first.
    active: Vec<DatasetId>,
    /// Versions of which nodes asked for shards themselves.
    demanding: BTreeSet<DatasetId>,
    stages: BTreeMap<StageId, Stage>,
    origin: OriginBudget,
    next_tick: Time,
    begun: bool,
    /// After a restart, origin reads wait until then for known nodes.
    recover_until: Time,
    /// Readers that have just begun wait for others until then.
    gather_until: Option<Time>,
    /// Versions that need room which others take.
    lacks: Vec<window::Lack>,
    /// Planning runs on the typical link's time.
    ns_per_byte: f64,
    /// Counts sweeps.
    sweeps: u32,
    /// No chain is judged before: one was led around a node.
    judged_from: Time,
    /// The same for the first node of a chain, whose flow is the origin's.
    head_judged_from: Time,
    /// Where a chain last broke.
    blamed: Option<(Time, chain::Break)>,
    /// Turns the starting points of bounded searches.
    rotation: u32,
    scratch: Scratch,
}

impl Core {
    /// Nothing known yet.
    pub fn new(config: CoreConfig) -> Core {
        Core {
            actions: VecDeque::new(),
            counters: Counters::default(),
            nodes: Nodes::default(),
            flights: Flights::new(config.first_assignment),
            datasets: Vec::new(),
            active: Vec::new(),
            demanding: BTreeSet::new(),
            stages: BTreeMap::new(),
            origin: OriginBudget::new(config.origin_leases, config.origin_leases_max),
            next_tick: Time::ZERO,
            begun: false,
            recover_until: Time::ZERO,
            gather_until: None,
            lacks: Vec::new(),
            ns_per_byte: 1e9 / config.link_bytes_per_s.max(1.0),
            sweeps: 0,
            judged_from: Time::ZERO,
            head_judged_from: Time::ZERO,
            blamed: None,
            rotation: 0,
            scratch: Scratch::default(),
            config,
        }
    }

    /// Takes one event in. Drain [`poll_action`](Self::poll_action) afterwards.
    pub fn handle_event(&mut self, now: Time, event: Event) {
        self.begin(now);
        match event {
            Event::NodeUp { node, info } => self.node_up(now, node, info),
            Event::NodeNamed { node, name } => self.node_named(now, node, name),
            Event::NodeLost { node } => self.node_lost(now, node),
            Event::NodeGone { node } => self.node_down(now, node),
            Event::Heartbeat { node, used_bytes, capacity_bytes, link_bytes_per_s, disk_bytes_per_s } => {
                self.heartbeat(now, node, [used_bytes, capacity_bytes], [link_bytes_per_s, disk_bytes_per_s]);
            }
            Event::DatasetAdded { dataset, facts } => self.dataset_added(dataset, facts),
            Event::DatasetRemoved { dataset } => self.dataset_removed(now, dataset),
            Event::Inventory { node, dataset, pieces, sealed } => {
                self.inventory(now, node, dataset, &pieces, sealed);
            }
            Event::StageRequested { stage, dataset, nodes, placement, priority } => {
                self.stage_requested(now, stage, dataset, nodes, placement, priority);
            }
            Event::StageCancelled { stage } => self.stage_cancelled(now, stage),
            Event::PiecesRead { node, dataset, first, crcs } => {
                self.pieces_read(now, node, dataset, first, &crcs);
            }
            Event::AssignmentDone { node, assignment, bytes, elapsed_us: _, source } => {
                self.assignment_done(now, node, assignment, bytes, source);
            }
            Event::AssignmentFailed { node, assignment, missing, failure } => {
                self.assignment_failed(now, node, assignment, &missing, failure);
            }
            Event::SourceFailed { node, dataset, failure } => self.source_failed(now, node, dataset, &failure),
            Event::ShardsSealed { node, dataset, shards } => self.shards_sealed(now, node, dataset, &shards),
            Event::ShardMismatch { node, dataset, shard, expected, actual } => {
                self.shard_mismatch(now, node, dataset, shard, expected, actual);
            }
            Event::ShardLost { node, dataset, shard, reason: _ } => self.shard_lost(now, node, dataset, shard),
            Event::NodeRefused { node, dataset, kind: _, reason } => self.node_refused(now, node, dataset, reason),
            Event::ShardsDemanded { node, dataset, shards } => self.shards_demanded(now, node, dataset, &shards),
            Event::ReaderMoved { node, dataset, report } => self.reader_report(now, node, dataset, &report),
            Event::ReaderGone { node, dataset, reader } => self.reader_gone(now, node, dataset, reader),
            Event::ShardsDropped { node, dataset, dropped, kept } => {
                self.shards_dropped(now, node, dataset, &dropped, &kept);
            }
            Event::OriginSays { dataset, asked, holds } => self.origin_says(now, dataset, &asked, &holds),
            Event::EvictionOrdered { dataset, nodes } => self.eviction_ordered(dataset, nodes),
            Event::EvictionRefused { node, dataset } => self.eviction_refused(node, dataset),
            Event::Evicted { node, dataset } => self.evicted(now, node, dataset),
        }
        self.settle_lacks(now);
    }

    /// Call when [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.begin(now);
        if now >= self.next_tick {
            self.next_tick = now + limits::TICK_US;
            self.tick(now);
        }
        if self.gather_until.take_if(|until| now >= *until).is_some() {
            self.serve_all(now);
        }
        self.settle_lacks(now);
    }

    /// The next order to carry out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None`: nothing is waiting for time to pass.
    pub fn poll_timeout(&self) -> Option<Time> {
        let watching = self.nodes.iter().any(|(_, n)| n.state != event::NodeState::Down);
        let tick = (watching || !self.active.is_empty()).then_some(self.next_tick);
        self.gather_until.into_iter().chain(tick).min()
    }

    fn begin(&mut self, now: Time) {
        if !self.begun {
            self.begun = true;
            self.next_tick = now + limits::TICK_US;
            if self.config.recovering {
                self.recover_until = now + self.config.reconnect_grace_us;
            }
        }
    }

    fn note(&mut self, note: Note) {
        self.actions.push_back(Action::Note(note));
    }

    /// Works on one version and on everything else at once.
    fn with<R>(&mut self, id: DatasetId, work: impl FnOnce(&mut Core, &mut Dataset) -> R) -> Option<R> {
        let mut ds = self.datasets.get_mut(id.0 as usize)?.take()?;
        let result = work(self, &mut ds);
        self.datasets[id.0 as usize] = Some(ds);
        Some(result)
    }

    fn dataset_ids(&self) -> Vec<DatasetId> {
        (0..self.datasets.len() as u32).map(DatasetId).filter(|d| self.datasets[d.0 as usize].is_some()).collect()
    }

    /// Finds work for everyone, each time beginning with another node.
    fn serve_all(&mut self, now: Time) {
        let nodes = self.nodes.len();
        self.rotation = self.rotation.wrapping_add(1);
        for i in 0..nodes {
            self.serve(now, NodeId((i + self.rotation) % nodes));
        }
    }

    /// Finds work for a few nodes, in turn: after something was freed that is not theirs.
    fn serve_some(&mut self, now: Time) {
        let nodes = self.nodes.len();
        for _ in 0..limits::SAMPLE_MAX.min(nodes as usize) {
            self.rotation = self.rotation.wrapping_add(1);
            self.serve(now, NodeId(self.rotation % nodes));
        }
    }
}
