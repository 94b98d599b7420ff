//! Answers to questions about the state.

use millstream_types::size::counted;
use millstream_types::{AssignmentId, Crc64, DatasetId, NodeId, PieceNo, StageId, Time};

use crate::Core;
use crate::catalog::{Dataset, Wanted};
use crate::event::{NodeState, Placement, ShardFailure};
use crate::limits::RATES_ALIKE;
use crate::stage::{Bound, Stage, StageState};
use crate::view::{Counters, NodeView, ReplicaState, ReplicaView, StageView};

impl Core {
    /// All nodes ever seen, by number.
    pub fn nodes(&self, now: Time) -> Vec<NodeView> {
        (0..self.nodes.len()).filter_map(|i| self.node(NodeId(i), now)).collect()
    }

    /// One node; `None` when it was never up.
    pub fn node(&self, node: NodeId, now: Time) -> Option<NodeView> {
        let known = self.nodes.get(node).filter(|n| n.seen)?;
        Some(NodeView {
            node,
            name: known.info.name.clone(),
            state: known.state,
            in_bytes_per_s: known.rate_in.rate,
            quarantined_us: known.quarantine.until.since(now),
            outstanding_bytes: known.down_backlog,
            slow_in: known.slow_in.factor(),
            slow_out: known.slow_out.factor(),
            avoided_as_slow: known.slow_out.is_slow(),
        })
    }

    /// A version on a node; `None` when the version or the node is unknown.
    pub fn replica(&self, dataset: DatasetId, node: NodeId) -> Option<ReplicaView> {
        let ds = self.dataset(dataset)?;
        self.nodes.get(node)?;
        Some(self.view_replica(ds, node))
    }

    /// A version on every node that has or shall have something of it.
    pub fn replicas(&self, dataset: DatasetId) -> Vec<ReplicaView> {
        let Some(ds) = self.dataset(dataset) else {
            return Vec::new();
        };
        ds.members()
            .filter(|(_, r)| r.wanted != Wanted::Nothing || r.have_bytes > 0 || !r.sealed.is_empty())
            .map(|(n, _)| self.view_replica(ds, n))
            .collect()
    }

    pub(crate) fn dataset(&self, dataset: DatasetId) -> Option<&Dataset> {
        self.datasets.get(dataset.0 as usize)?.as_deref()
    }

    fn view_replica(&self, ds: &Dataset, node: NodeId) -> ReplicaView {
        let (shards, bytes) = (ds.layout.shards(), ds.layout.bytes());
        let Some(replica) = ds.replica(node) else {
            return ReplicaView {
                node,
                shards_ready: 0,
                shards_wanted: shards,
                bytes_ready: 0,
                bytes_wanted: bytes,
                state: ReplicaState::Absent,
                reason: String::new(),
            };
        };
        let wanted = replica.staged != Wanted::Nothing;
        let (shards_wanted, bytes_wanted, shards_ready, bytes_ready) = if wanted && replica.refused.is_none() {
            let (ready, bytes) = (replica.staged.overlap(&replica.sealed), replica.staged.bytes(&ds.layout));
            // What it asked for itself is not what the stage waits for.
            (replica.staged.count(shards), bytes, ready, replica.ready_bytes.min(bytes))
        } else {
            (shards, bytes, replica.sealed.len() as u32, replica.have_bytes)
        };
        let failed = ds.failed.keys().filter(|&&s| replica.staged.wants(s) && !replica.sealed.contains(s)).count();
        let down = self.nodes.get(node).is_none_or(|n| n.state == NodeState::Down);
        let (state, reason) = if let (true, Some(reason)) = (wanted, &replica.refused) {
            (ReplicaState::Failed, reason.clone())
        } else if shards_ready == shards_wanted && (bytes_ready > 0 || replica.inventoried && (bytes == 0 || wanted)) {
            (ReplicaState::Ready, String::new())
        } else if failed > 0 && shards_ready as usize + failed == shards_wanted as usize {
            (ReplicaState::Failed, format!("{} failed", counted(failed as u64, "shard")))
        } else if !wanted {
            let state = if bytes_ready > 0 { ReplicaState::Receiving } else { ReplicaState::Absent };
            (state, "not staged here".to_owned())
        } else if down {
            let seen = self.nodes.get(node).is_some_and(|n| n.seen);
            (ReplicaState::Absent, if seen { "the node is down" } else { "the node has not joined yet" }.to_owned())
        } else if bytes_ready >= bytes_wanted && replica.inventoried {
            (ReplicaState::Verifying, String::new())
        } else {
            let reason = if replica.inventoried { "" } else { "waiting for the node's inventory" };
            (ReplicaState::Receiving, reason.to_owned())
        };
        ReplicaView { node, shards_ready, shards_wanted, bytes_ready, bytes_wanted, state, reason }
    }

    /// All stages, by number.
    pub fn stages(&self, now: Time) -> Vec<StageView> {
        self.stages.values().map(|s| self.view_stage(s, now)).collect()
    }

    /// Numbers of the stages that run.
    pub fn running_stages(&self) -> impl Iterator<Item = StageId> + '_ {
        self.stages.values().filter(|s| s.state == StageState::Running).map(|s| s.id)
    }

    /// What the stages that run want of a node's disk is on its way: is the version wanted there by one of them?
    pub fn stage_of(&self, dataset: DatasetId, node: NodeId) -> Option<StageId> {
        let mut running = self.stages.values().filter(|s| s.dataset == dataset && s.state == StageState::Running);
        running.find(|s| s.nodes.binary_search(&node).is_ok()).map(|s| s.id)
    }

    /// One stage.
    pub fn stage(&self, stage: StageId, now: Time) -> Option<StageView> {
        self.stages.get(&stage).map(|s| self.view_stage(s, now))
    }

    fn view_stage(&self, stage: &Stage, now: Time) -> StageView {
        let ds = self.dataset(stage.dataset);
        let total = ds.map_or(0, |ds| self.total_bytes(ds, stage));
        // What is done stays done: a node that is lost later takes nothing back of what was achieved.
        let ready = if stage.state == StageState::Done { total } else { ds.map_or(0, |ds| stage.ready(ds)) };
        let origin = ds.map_or(0, |ds| stage.origin_end.unwrap_or(ds.origin_bytes) - stage.origin_base);
        let elapsed_us = stage.ended.unwrap_or(now).since(stage.started);
        let moved = ready.saturating_sub(stage.found);
        let eta_us = (stage.state == StageState::Running && moved > 0)
            .then(|| (elapsed_us as f64 * (total - ready.min(total)) as f64 / moved as f64) as u64);
        let (bound_us, bound_by) = match (stage.bound_end, ds) {
            (Some(then), _) => then,
            (None, Some(ds)) => self.bound(ds, stage),
            (None, None) => (None, "origin"),
        };
        StageView {
            stage: stage.id,
            dataset: stage.dataset,
            nodes: stage.nodes.clone(),
            placement: stage.placement,
            priority: stage.priority,
            state: stage.state.as_str(),
            bytes_total: total,
            bytes_ready: ready,
            lacking: ds.map_or_else(Vec::new, |ds| self.lacking(ds, stage)),
            bytes_found: stage.found.min(ready),
            origin_bytes: origin,
            elapsed_us,
            eta_us,
            bound_us,
            bound_by,
        }
    }

    fn lacking(&self, ds: &Dataset, stage: &Stage) -> Vec<NodeId> {
        let awaited = |node| stage.state == StageState::Running && !self.given_up(ds, node);
        let there = |node| {
            let wanted = stage.wants(node);
            ds.replica(node).is_some_and(|r| wanted.overlap(&r.sealed) == wanted.count(ds.layout.shards()))
        };
        let nodes = if stage.state == StageState::Cancelled { &[] } else { stage.nodes.as_slice() };
        nodes.iter().copied().filter(|&n| !awaited(n) && !there(n)).collect()
    }

    /// T* = max(D/S, D/min(B, W), N·D/(S + N·min(B, W))), from measured rates; D is what was not there when it began.
    pub(crate) fn bound(&self, ds: &Dataset, stage: &Stage) -> Bound {
        let (origin, received) = (self.origin.meter.rate, self.nodes.median_rate());
        let wanted = self.total_bytes(ds, stage).saturating_sub(stage.found);
        let Some(received) = received.filter(|_| origin > 0.0 && wanted > 0) else {
            return (None, "origin");
        };
        let disk = self.nodes.median_disk_rate().unwrap_or(f64::INFINITY);
        let (node, by) = match self.nodes.median_link_rate() {
            Some(link) if disk < link => (disk, "disk"),
            Some(link) => (link, "link"),
            // What nodes receive is no more than what they are sent, and nothing says that a link could not take more.
            None if disk < RATES_ALIKE * received => (received, "disk"),
            None => (received, "origin"),
        };
        let nodes = stage.nodes.len().max(1) as f64;
        let each = wanted as f64 / nodes;
        let seconds = (each / origin).max(each / node).max(nodes * each / (origin + nodes * node));
        let by = if node > RATES_ALIKE * origin { "origin" } else { by };
        (Some((seconds * 1e6) as u64), by)
    }

    fn total_bytes(&self, ds: &Dataset, stage: &Stage) -> u64 {
        if stage.placement == Placement::Window {
            return 0;
        }
        if stage.spread.is_empty() {
            return ds.layout.bytes() * stage.nodes.len() as u64;
        }
        let bytes = |r: &std::ops::Range<u32>| {
            ds.layout.range_bytes(ds.layout.shard_pieces(r.start).start..ds.layout.shard_pieces(r.end - 1).end)
        };
        stage.spread.iter().flat_map(|set| set.runs()).map(bytes).sum()
    }

    /// The version of an assignment that a node works on.
    pub fn assigned_dataset(&self, assignment: AssignmentId, node: NodeId) -> Option<DatasetId> {
        Some(self.flights.get(self.flights.find(assignment, node)?)?.dataset)
    }

    /// Bytes of a version that nodes read from the origin, as reported.
    pub fn origin_bytes(&self, dataset: DatasetId) -> u64 {
        self.dataset(dataset).map_or(0, |ds| ds.origin_bytes)
    }

    /// Shards of a version that failed for good.
    pub fn failures(&self, dataset: DatasetId) -> Vec<ShardFailure> {
        self.dataset(dataset).map(|ds| ds.failed.values().cloned().collect()).unwrap_or_default()
    }

    /// The piece checksums known of a version: runs of consecutive pieces, to go with its manifest.
    pub fn known_checksums(&self, dataset: DatasetId) -> Vec<(PieceNo, Vec<Crc64>)> {
        let Some(ds) = self.dataset(dataset) else {
            return Vec::new();
        };
        let runs = ds.sums.known().runs().iter();
        runs.map(|r| (r.start, ds.sums.slice(r.clone()).to_vec())).collect()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of memory held for holdings, flights and checksums (an estimate from lengths).
    pub fn memory_bytes(&self) -> usize {
        let datasets: usize = self.datasets.iter().flatten().map(|ds| ds.memory_bytes()).sum();
        datasets + self.nodes.memory_bytes() + self.flights.memory_bytes()
    }
}
