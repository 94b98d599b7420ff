//! The coordinator of a run: the real core, and what its shell would keep on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use millstream_coordinator_core::event::{Action, DatasetFacts, Event, NodeInfo, Note, Placement};
use millstream_coordinator_core::view::Counters;
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_types::{Crc64, DatasetId, Layout, NodeId, OriginChecksum, PieceNo, StageId, Time};

use crate::scenario::Scenario;

/// The one dataset of a run.
pub(crate) const DATASET: DatasetId = DatasetId(0);
const STAGE: StageId = StageId(1);

/// What a core was told, and when: an event, or (with `None`) that its time had come.
pub type Told = (Time, Option<Event>);

/// The core and its durable state.
#[derive(Debug)]
pub(crate) struct Coordinator {
    core: Option<Core>,
    config: CoreConfig,
    layout: Arc<Layout>,
    shard_checksums: Arc<[Option<OriginChecksum>]>,
    nodes: u32,
    placement: Placement,
    /// Checksums on disk.
    persisted: BTreeMap<PieceNo, Crc64>,
    /// How often it was started.
    pub incarnation: u32,
    pub stage_finished: Option<bool>,
    pub shards_failed: u32,
    /// Of former incarnations.
    before: Counters,
    /// Most memory seen.
    pub memory_bytes: usize,
    /// Everything that the core is told goes here, too.
    pub tap: Option<SyncSender<Told>>,
    /// Nobody takes it any more.
    pub unheard: bool,
}

impl Coordinator {
    pub fn new(
        scenario: &Scenario,
        layout: Arc<Layout>,
        shard_checksums: Arc<[Option<OriginChecksum>]>,
        known: BTreeMap<PieceNo, Crc64>,
    ) -> Coordinator {
        Coordinator {
            core: None,
            config: scenario.core.clone(),
            layout,
            shard_checksums,
            nodes: scenario.nodes,
            placement: if scenario.loaders.is_some() { Placement::Window } else { Placement::Replicate },
            persisted: known,
            incarnation: 0,
            stage_finished: None,
            shards_failed: 0,
            before: Counters::default(),
            memory_bytes: 0,
            tap: None,
            unheard: false,
        }
    }

    /// Starts the process: the catalog and the stage come from its disk.
    pub fn start(&mut self, now: Time) -> Vec<Action> {
        self.incarnation += 1;
        self.stage_finished = None;
        self.core = Some(Core::new(core_config(&self.config, self.incarnation)));
        let facts = DatasetFacts {
            layout: self.layout.clone(),
            shard_checksums: self.shard_checksums.clone(),
            known: runs(&self.persisted),
            learned: Vec::new(),
        };
        let mut actions = Vec::new();
        for n in 0..self.nodes {
            let name = node_info(n, 0).name;
            actions.extend(self.handle(now, Event::NodeNamed { node: NodeId(n), name }));
        }
        actions.extend(self.handle(now, Event::DatasetAdded { dataset: DATASET, facts }));
        let stage = Event::StageRequested {
            stage: STAGE,
            dataset: DATASET,
            nodes: (0..self.nodes).map(NodeId).collect(),
            placement: self.placement,
            priority: 0,
        };
        actions.extend(self.handle(now, stage));
        actions
    }

    /// Ends the process.
    pub fn stop(&mut self) {
        if let Some(core) = self.core.take() {
            self.before = sum(self.before, core.counters());
        }
    }

    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Action> {
        let Some(core) = &mut self.core else {
            return Vec::new();
        };
        if let Some(tap) = &self.tap {
            self.unheard |= tap.send((now, Some(event.clone()))).is_err();
        }
        core.handle_event(now, event);
        self.drain()
    }

    /// Calls the core when its time has come.
    pub fn timeout(&mut self, now: Time) -> Vec<Action> {
        let Some(core) = &mut self.core else {
            return Vec::new();
        };
        if core.poll_timeout().is_some_and(|at| at <= now) {
            if let Some(tap) = &self.tap {
                self.unheard |= tap.send((now, None)).is_err();
            }
            core.handle_timeout(now);
            self.memory_bytes = self.memory_bytes.max(core.memory_bytes());
        }
        self.drain()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.core.as_ref()?.poll_timeout()
    }

    fn drain(&mut self) -> Vec<Action> {
        let mut out = Vec::new();
        while let Some(action) = self.core.as_mut().and_then(Core::poll_action) {
            self.remember(&action);
            out.push(action);
        }
        out
    }

    /// What the shell does with an action beyond sending it.
    fn remember(&mut self, action: &Action) {
        match action {
            Action::PersistChecksums { first, crcs, .. } => {
                self.persisted.extend((*first..).zip(crcs.iter().copied()));
            }
            Action::DiscardShard { shard, .. } => {
                for piece in self.layout.shard_pieces(*shard) {
                    self.persisted.remove(&piece);
                }
            }
            Action::Note(Note::StageFinished { ok, .. }) => self.stage_finished = Some(*ok),
            Action::Note(Note::ShardFailed { .. }) => self.shards_failed += 1,
            _ => {}
        }
    }

    /// What a node gets with the manifest.
    pub fn known_checksums(&self) -> Vec<(PieceNo, Vec<Crc64>)> {
        self.core.as_ref().map_or_else(Vec::new, |core| core.known_checksums(DATASET))
    }

    pub fn counters(&self) -> Counters {
        let now = self.core.as_ref().map(Core::counters).unwrap_or_default();
        sum(self.before, now)
    }

    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }
}

/// The settings of the core in its n-th life, counted from one.
pub fn core_config(config: &CoreConfig, incarnation: u32) -> CoreConfig {
    CoreConfig { recovering: incarnation > 1, first_assignment: u64::from(incarnation) << 32, ..config.clone() }
}

/// What a node says of itself.
pub(crate) fn node_info(node: u32, epoch: u32) -> NodeInfo {
    NodeInfo {
        name: format!("n{node}"),
        rack: String::new(),
        capacity_bytes: 1 << 50,
        used_bytes: 0,
        boot_id: u64::from(epoch) + 1,
    }
}

/// Consecutive pieces together.
pub(crate) fn runs(map: &BTreeMap<PieceNo, Crc64>) -> Vec<(PieceNo, Vec<Crc64>)> {
    let mut out: Vec<(PieceNo, Vec<Crc64>)> = Vec::new();
    for (&piece, &crc) in map {
        match out.last_mut() {
            Some((first, crcs)) if *first + crcs.len() as u32 == piece => crcs.push(crc),
            _ => out.push((piece, vec![crc])),
        }
    }
    out
}

fn sum(a: Counters, b: Counters) -> Counters {
    Counters {
        assignments: a.assignments + b.assignments,
        origin_leases: a.origin_leases + b.origin_leases,
        done: a.done + b.done,
        failed: a.failed + b.failed,
        requeues: a.requeues + b.requeues,
        ..b
    }
}
