//! What is wanted where: versions, stages, and whether they are finished.

use millstream_types::{DatasetId, NodeId, StageId, Time};

use crate::Core;
use crate::bits::Bits;
use crate::catalog::{Dataset, Wanted};
use crate::event::{Action, DatasetFacts, NodeState, Note, Placement};
use crate::extent::extent_bytes;
use crate::limits::NODES_MAX;
use crate::stage::{Stage, StageState, mix, name_hash, union};

impl Core {
    pub(crate) fn dataset_added(&mut self, dataset: DatasetId, facts: DatasetFacts) {
        let at = dataset.0 as usize;
        if at >= self.datasets.len() {
            self.datasets.resize_with(at + 1, || None);
        }
        if self.datasets[at].is_some() {
            self.counters.ignored += 1;
            return;
        }
        let mut ds = Dataset::new(dataset, facts);
        ds.recovered = !self.config.recovering;
        self.datasets[at] = Some(Box::new(ds));
    }

    pub(crate) fn dataset_removed(&mut self, now: Time, dataset: DatasetId) {
        self.with(dataset, |core, ds| {
            core.recall_all(ds, now);
            for (node, replica) in ds.members() {
                if replica.attached {
                    core.actions.push_back(Action::Evict { node, dataset });
                }
            }
            for id in &ds.stages {
                if let Some(stage) = core.stages.get_mut(id).filter(|s| s.state == StageState::Running) {
                    stage.state = StageState::Cancelled;
                    stage.ended = Some(now);
                }
            }
        });
        if let Some(slot) = self.datasets.get_mut(dataset.0 as usize) {
            *slot = None;
        }
        self.active.retain(|&d| d != dataset);
        self.demanding.remove(&dataset);
        self.serve_all(now);
    }

    fn recall_all(&mut self, ds: &mut Dataset, now: Time) {
        for e in 0..ds.extents.len() {
            for no in ds.extents[e].flights.clone() {
                self.recall(ds, now, no);
            }
        }
    }

    pub(crate) fn stage_requested(
        &mut self,
        now: Time,
        stage: StageId,
        dataset: DatasetId,
        mut nodes: Vec<NodeId>,
        placement: Placement,
        priority: u32,
    ) {
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|n| n.0 < NODES_MAX);
        if self.stages.contains_key(&stage) || !self.datasets.get(dataset.0 as usize).is_some_and(|d| d.is_some()) {
            self.counters.ignored += 1;
            return;
        }
        let mut stage = Stage {
            id: stage,
            dataset,
            nodes,
            placement,
            priority,
            state: StageState::Running,
            started: now,
            ended: None,
            origin_base: 0,
            found: 0,
            untold: Bits::default(),
            origin_end: None,
            bound_end: None,
            spread: Vec::new(),
        };
        self.with(dataset, |core, ds| {
            stage.place(ds, |n| core.placing_name(n));
            let nodes = stage.nodes.clone();
            ds.stages.push(stage.id);
            stage.origin_base = ds.origin_bytes;
            core.stages.insert(stage.id, stage);
            for &node in &nodes {
                core.nodes.entry(node);
                ds.replica_entry(node).refused = None;
            }
            core.cut(ds);
            core.want_again(ds, &nodes);
            let id = ds.stages[ds.stages.len() - 1];
            if let Some(stage) = core.stages.get_mut(&id) {
                for &node in &nodes {
                    if ds.replica(node).is_some_and(|r| r.inventoried) {
                        stage.found += stage.ready_on(ds, node);
                    } else {
                        stage.untold.set(node.0);
                    }
                }
            }
            for &node in &nodes {
                if core.nodes.get(node).is_some_and(|n| n.state != NodeState::Down) {
                    let new = !ds.replica(node).is_some_and(|r| r.attached);
                    core.attach(ds, now, node, new);
                }
            }
            core.judge_cost(ds);
            core.judge_stages(now, ds);
        });
        self.rank();
        self.serve_all(now);
    }

    pub(crate) fn stage_cancelled(&mut self, now: Time, id: StageId) {
        let Some(stage) = self.stages.get_mut(&id).filter(|s| s.state != StageState::Cancelled) else {
            self.counters.ignored += 1;
            return;
        };
        stage.state = StageState::Cancelled;
        stage.ended.get_or_insert(now);
        let (dataset, nodes) = (stage.dataset, stage.nodes.clone());
        self.with(dataset, |core, ds| {
            core.want_again(ds, &nodes);
            for e in 0..ds.extents.len() as u32 {
                for no in ds.extents[e as usize].flights.clone() {
                    let unwanted = core.flights.get(no).is_some_and(|f| !ds.needs(e, f.node));
                    if unwanted {
                        core.recall(ds, now, no);
                    }
                }
                core.rescue_orphans(ds, now, e);
            }
            core.judge_cost(ds);
        });
        self.rank();
        self.serve_all(now);
    }

    /// Those fed by a node that no longer receives and does not have the extent get other sources.
    pub(crate) fn rescue_orphans(&mut self, ds: &mut Dataset, now: Time, e: u32) {
        for no in ds.extents[e as usize].flights.clone() {
            let Some(crate::event::Source::Peer(source)) = self.flights.get(no).map(|f| f.source) else {
                continue;
            };
            let feeds = ds.extents[e as usize].have.get(source.0) || self.flight_on(ds, e, source).is_some();
            if !feeds {
                self.rehome(ds, now, no, Some(source));
            }
        }
    }

    /// Cuts the version when that was not done yet, or when it should be cut very differently and nothing is known.
    pub(crate) fn cut(&mut self, ds: &mut Dataset) {
        let nodes = ds.stages.iter().filter_map(|s| self.stages.get(s)).map(|s| s.nodes.len()).max().unwrap_or(1);
        let rate = 1e9 / self.ns_per_byte;
        let target = self
            .config
            .extent_bytes
            .unwrap_or_else(|| extent_bytes(&ds.layout, nodes, rate, self.config.assignments_per_s));
        let held = ds.extents.iter().any(|e| !e.have.is_empty());
        if ds.target == 0 || (ds.flying == 0 && !held && (target > 2 * ds.target || ds.target > 2 * target)) {
            ds.cut(target);
            let failed: Vec<u32> = ds.failed.keys().copied().collect();
            for shard in failed {
                self.close_shard(ds, shard);
            }
            let members: Vec<NodeId> = ds.members().map(|(n, _)| n).collect();
            for node in members {
                ds.resettle(node, &Default::default());
            }
        }
    }

    /// Recomputes what the stages want on these nodes.
    pub(crate) fn want_again(&mut self, ds: &mut Dataset, nodes: &[NodeId]) {
        for &node in nodes {
            let staged = union(ds.stages.iter().filter_map(|s| self.stages.get(s)).map(|s| s.wants(node)));
            let flying = self.flying_to(ds, node);
            let replica = ds.replica_entry(node);
            let mut wanted = staged.clone();
            wanted.add(replica.demanded.clone());
            replica.staged = staged;
            ds.want(node, wanted, &flying);
        }
        let running = ds.stages.iter().filter_map(|s| self.stages.get(s)).filter(|s| s.state == StageState::Running);
        ds.priority = running.map(|s| s.priority).max().unwrap_or(0);
    }

    fn placing_name(&self, node: NodeId) -> u64 {
        match self.nodes.get(node) {
            Some(known) if !known.info.name.is_empty() => name_hash(&known.info.name),
            _ => mix(u64::from(node.0)),
        }
    }

    /// A node's name became known: `spread` goes by names.
    pub(crate) fn replace_spread(&mut self, now: Time, node: NodeId) {
        let stages: Vec<StageId> = self
            .stages
            .values()
            .filter(|s| s.state != StageState::Cancelled && s.placement != Placement::Replicate)
            .filter(|s| s.nodes.binary_search(&node).is_ok())
            .map(|s| s.id)
            .collect();
        for id in stages {
            let Some(mut stage) = self.stages.remove(&id) else {
                continue;
            };
            let (dataset, nodes) = (stage.dataset, stage.nodes.clone());
            self.with(dataset, |core, ds| {
                stage.place(ds, |n| core.placing_name(n));
                core.stages.insert(id, stage);
                core.want_again(ds, &nodes);
                core.judge_stages(now, ds);
            });
        }
    }

    /// The most urgent versions first; among equals the oldest stage.
    pub(crate) fn rank(&mut self) {
        let mut ranked: Vec<(std::cmp::Reverse<u32>, StageId, DatasetId)> = self
            .datasets
            .iter()
            .flatten()
            .filter_map(|ds| {
                let oldest =
                    ds.stages.iter().filter(|s| self.stages.get(s).is_some_and(|s| s.state != StageState::Cancelled));
                // What nodes ask for themselves is served first anyway; here it waits for those that can be asked.
                let demanded = self.demanding.contains(&ds.id).then_some(StageId(u64::MAX));
                Some((std::cmp::Reverse(ds.priority), oldest.copied().min().or(demanded)?, ds.id))
            })
            .collect();
        ranked.sort_unstable();
        self.active = ranked.into_iter().map(|(_, _, id)| id).collect();
    }

    /// Peers help only where two nodes want the same: says so when that changes.
    fn judge_cost(&mut self, ds: &mut Dataset) {
        let nodes = ds.members().filter(|(_, r)| r.wanted != Wanted::Nothing).count();
        let disjoint = ds
            .stages
            .iter()
            .filter_map(|s| self.stages.get(s))
            .filter(|s| s.state != StageState::Cancelled)
            .all(|s| s.placement == Placement::Spread(1));
        let one_stage = ds.stages.len() == 1;
        let direct = nodes == 1 || (nodes > 1 && disjoint && one_stage);
        if direct != ds.direct {
            ds.direct = direct;
            let reason = match (direct, nodes) {
                (true, 1) => "one node wants it: nobody to share with",
                (true, _) => "every shard is wanted on one node: nothing to share",
                (false, _) => "several nodes want the same shards: each is read once and passed on",
            };
            self.note(Note::GoDirect { dataset: ds.id, direct, reason: reason.to_owned() });
        }
    }

    /// The stages that do not know yet what the node held, and the bytes that it got for them since.
    pub(crate) fn untold_by(&self, ds: &Dataset, node: NodeId) -> Vec<(StageId, u64)> {
        let stages = ds.stages.iter().filter_map(|s| self.stages.get(s)).filter(|s| s.untold.get(node.0));
        stages.map(|s| (s.id, s.ready_on(ds, node))).collect()
    }

    /// What an inventory brought to light, beyond what the node got since, was there before.
    pub(crate) fn count_found(&mut self, ds: &Dataset, node: NodeId, untold: &[(StageId, u64)]) {
        for (id, got) in untold {
            if let Some(stage) = self.stages.get_mut(id) {
                stage.untold.clear(node.0);
                stage.found += stage.ready_on(ds, node).saturating_sub(*got);
            }
        }
    }

    /// Ends stages that are everywhere, or failed on all that are left; opens failed ones that can go on.
    pub(crate) fn judge_stages(&mut self, now: Time, ds: &mut Dataset) {
        for id in ds.stages.clone() {
            let Some(stage) = self.stages.get(&id) else {
                continue;
            };
            if !matches!(stage.state, StageState::Running | StageState::Failed) {
                continue;
            }
            let (mut waiting, mut bad) = (false, false);
            for &node in &stage.nodes {
                let refused = ds.replica(node).is_some_and(|r| r.refused.is_some());
                if refused || !ds.complete_on(node) {
                    let given_up = self.given_up(ds, node);
                    bad |= given_up;
                    waiting |= !given_up;
                    if waiting {
                        break;
                    }
                }
            }
            bad |= ds.failed.keys().any(|&s| stage.nodes.iter().any(|&n| stage.wants(n).wants(s)));
            let state = match (waiting, bad) {
                (true, _) => StageState::Running,
                (false, false) => StageState::Done,
                (false, true) => StageState::Failed,
            };
            let changed = state != stage.state;
            let bound = changed.then(|| self.bound(ds, stage));
            let Some(stage) = self.stages.get_mut(&id).filter(|_| changed) else {
                continue;
            };
            stage.state = state;
            if state == StageState::Running {
                stage.ended = None;
                stage.origin_end = None;
                stage.bound_end = None;
            } else {
                stage.ended = Some(now);
                stage.origin_end = Some(ds.origin_bytes);
                stage.bound_end = bound;
                self.note(Note::StageFinished { stage: id, ok: state == StageState::Done });
            }
        }
    }

    /// Nothing is waited for there: the node cannot or shall not have it, or was here and is down.
    pub(crate) fn given_up(&self, ds: &Dataset, node: NodeId) -> bool {
        ds.replica(node).is_some_and(|r| r.refused.is_some())
            || self.nodes.get(node).is_some_and(|n| n.seen && n.state == NodeState::Down)
    }

    pub(crate) fn node_refused(&mut self, now: Time, node: NodeId, dataset: DatasetId, reason: String) {
        self.give_up_on(now, node, dataset, reason);
    }

    pub(crate) fn evicted(&mut self, now: Time, node: NodeId, dataset: DatasetId) {
        self.with(dataset, |core, ds| {
            for e in 0..ds.extents.len() as u32 {
                ds.lose(e, node);
            }
            if let Some(replica) = ds.replica_mut(node) {
                replica.sealed = Default::default();
                replica.leaving = false;
                // It closed the version: what comes next begins with opening it.
                replica.attached = false;
                replica.inventoried = false;
                replica.demanded = Default::default();
                replica.dropping = Default::default();
            }
            core.want_again(ds, &[node]);
            core.judge_stages(now, ds);
        });
        self.give_up_on(now, node, dataset, "evicted".to_owned());
    }

    /// The version will not be on that node unless it is asked for again.
    fn give_up_on(&mut self, now: Time, node: NodeId, dataset: DatasetId, reason: String) {
        self.with(dataset, |core, ds| {
            if ds.replica(node).is_none() {
                core.counters.ignored += 1;
                return;
            }
            ds.replica_entry(node).refused = Some(reason);
            core.stop_waiting_for(ds, node);
            let mine = core.nodes.get(node).map(|n| n.flights.clone()).unwrap_or_default();
            for no in mine {
                if let Some(e) = core.flights.get(no).filter(|f| f.dataset == ds.id).map(|f| f.extent) {
                    core.recall(ds, now, no);
                    core.rescue_orphans(ds, now, e);
                }
            }
            ds.resettle(node, &Default::default());
            core.judge_stages(now, ds);
        });
        self.serve_all(now);
    }
}
