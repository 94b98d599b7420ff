//! Clients that wait: when a version is ready on nodes, or why not.
//!
//! Goals: a caller learns the end within milliseconds; thousands of them cost little; a slow client misses progress,
//! never the end. Non-goals: who is ready (the core's).

use std::collections::{BTreeMap, BTreeSet};

use millstream_coordinator_core::event::ShardFailure;
use millstream_coordinator_core::view::ReplicaState;
use millstream_proto::v1;
use millstream_types::{DatasetId, NodeId, Time};
use tokio::sync::mpsc;
use tonic::Status;

use super::State;
use super::watch::us;
use crate::failure::{ExitCode, RequestError};
use crate::limits::{NODES_NAMED_MAX, PROGRESS_QUEUE_MAX, WAIT_KEEPALIVE, WAIT_TICK};

pub(crate) type WaitStream = mpsc::Receiver<Result<v1::WaitProgress, Status>>;

pub(super) struct Wait {
    pub(super) dataset: DatasetId,
    /// `None`: the nodes of all stages of the version, whichever they are at the time.
    nodes: Option<Vec<NodeId>>,
    began: Time,
    deadline: Option<Time>,
    pub(super) out: mpsc::Sender<Result<v1::WaitProgress, Status>>,
    last: v1::WaitProgress,
    last_sent: Option<Time>,
    /// For the rate: bytes at a moment.
    sample: (Time, u64),
}

impl State {
    /// Begins a wait. `all`, or nothing: the nodes of the version's stages.
    pub(crate) fn wait(&mut self, now: Time, request: &v1::WaitRequest) -> Result<WaitStream, RequestError> {
        self.room_for_watcher()?;
        let dataset = self.select(&request.dataset)?.id;
        let nodes = match request.nodes.trim() {
            "" | "all" => None,
            text => Some(self.select_nodes(text)?),
        };
        let (out, stream) = mpsc::channel(PROGRESS_QUEUE_MAX);
        let timeout = request.timeout_ms;
        self.watchers.waits.push(Wait {
            dataset,
            nodes,
            began: now,
            deadline: (timeout > 0).then(|| now + timeout.saturating_mul(1_000)),
            out,
            last: v1::WaitProgress::default(),
            last_sent: None,
            sample: (now, 0),
        });
        self.watchers.fresh = true;
        Ok(stream)
    }

    /// Looks at those whose time has come.
    pub(super) fn watch(&mut self, now: Time) {
        self.evictions_in_time(now);
        let due = self.watchers.due();
        if self.watchers.waits.is_empty() || due.is_none_or(|due| due > now) {
            return;
        }
        let dirty = std::mem::take(&mut self.watchers.dirty);
        let tick = now.since(self.watchers.last_tick) >= us(WAIT_TICK);
        self.watchers.last_look = now;
        if tick {
            self.watchers.last_tick = now;
        }
        self.watchers.fresh = false;
        let waits = std::mem::take(&mut self.watchers.waits);
        // Thousands may wait for the same: it is worked out once.
        let mut everywhere = BTreeMap::new();
        let kept = waits.into_iter().filter_map(|mut wait| {
            let look = tick || wait.last_sent.is_none() || dirty.contains(&wait.dataset);
            let keep = !look || self.look(now, &mut wait, &mut everywhere);
            keep.then_some(wait)
        });
        self.watchers.waits = kept.collect();
    }

    /// One look at one wait; false when it is over.
    fn look(&self, now: Time, wait: &mut Wait, everywhere: &mut BTreeMap<DatasetId, v1::WaitProgress>) -> bool {
        if wait.out.is_closed() {
            return false;
        }
        let dataset = wait.dataset;
        let mut progress = match &wait.nodes {
            Some(nodes) => self.progress(now, dataset, nodes),
            None => everywhere.entry(dataset).or_insert_with(|| self.progress_everywhere(now, dataset)).clone(),
        };
        if progress.state != "waiting" {
            // The end must arrive: when the client is slow it is tried again with the next look.
            return wait.out.try_send(Ok(progress)).is_err();
        }
        if wait.deadline.is_some_and(|deadline| deadline <= now) {
            let error = self.not_in_time(now, wait, &progress);
            return wait.out.try_send(Err(error.into())).is_err();
        }
        let (then, bytes) = wait.sample;
        if now.since(then) >= us(WAIT_TICK) {
            let moved = progress.bytes_ready.saturating_sub(bytes);
            progress.rate_bytes_per_s = moved as f64 * 1e6 / now.since(then).max(1) as f64;
            wait.sample = (now, progress.bytes_ready);
        } else {
            progress.rate_bytes_per_s = wait.last.rate_bytes_per_s;
        }
        let news = wait.last.bytes_ready != progress.bytes_ready
            || wait.last.nodes_ready != progress.nodes_ready
            || wait.last.waiting_for != progress.waiting_for
            || wait.last.bytes_total != progress.bytes_total;
        let silent = wait.last_sent.is_none_or(|at| now.since(at) >= us(WAIT_KEEPALIVE));
        if (news || silent) && wait.out.try_send(Ok(progress.clone())).is_ok() {
            wait.last_sent = Some(now);
            wait.last = progress;
        }
        true
    }

    fn progress_everywhere(&self, now: Time, dataset: DatasetId) -> v1::WaitProgress {
        let stages = self.stages.values().filter(|s| s.dataset == dataset);
        let nodes: BTreeSet<NodeId> = stages.flat_map(|s| s.nodes.iter().copied()).collect();
        let nodes: Vec<_> = nodes.into_iter().collect();
        self.progress(now, dataset, &nodes)
    }

    fn progress(&self, now: Time, dataset: DatasetId, nodes: &[NodeId]) -> v1::WaitProgress {
        let mut out =
            v1::WaitProgress { state: "waiting".into(), nodes_total: nodes.len() as u32, ..Default::default() };
        for &node in nodes {
            let one = self.node_wait(dataset, node);
            out.bytes_total += one.bytes_total;
            out.bytes_ready += one.bytes_ready;
            match one.state.as_str() {
                "ready" => out.nodes_ready += 1,
                "failed" if out.problem.is_none() => {
                    out.state = "failed".into();
                    out.problem = Some(self.problem(dataset, node, &one.reason));
                    out.waiting_for.push(one);
                }
                _ if out.waiting_for.len() < NODES_NAMED_MAX => out.waiting_for.push(one),
                _ => {}
            }
        }
        if out.problem.is_none() && out.nodes_total > 0 && out.nodes_ready == out.nodes_total {
            out.state = "ready".into();
        }
        if nodes.is_empty() {
            out.waiting_for.push(v1::NodeWait {
                state: "absent".into(),
                reason: format!("no stage of {} has been asked for yet", self.dataset_name(dataset)),
                ..Default::default()
            });
        }
        let stages = self.stages.iter().filter(|(_, s)| s.dataset == dataset);
        let running = stages.filter_map(|(&id, _)| self.core.stage(id, now)).filter(|s| s.state == "running");
        let eta = running.filter_map(|s| s.eta_us).max();
        out.eta_s = eta.map_or(0.0, |us| us as f64 / 1e6);
        out
    }

    fn node_wait(&self, dataset: DatasetId, node: NodeId) -> v1::NodeWait {
        let mut out = v1::NodeWait {
            node: self.nodes.name(node).to_owned(),
            state: ReplicaState::Absent.as_str().into(),
            ..Default::default()
        };
        if let Some(view) = self.core.replica(dataset, node) {
            out.state = view.state.as_str().into();
            out.reason = view.reason;
            (out.bytes_ready, out.bytes_total) = (view.bytes_ready, view.bytes_wanted);
            (out.shards_ready, out.shards_total) = (view.shards_ready, view.shards_wanted);
        } else if let Some(version) = self.datasets.get(dataset) {
            out.bytes_total = version.manifest.layout().bytes();
            out.shards_total = version.manifest.layout().shards();
        }
        let away = self.nodes.get(node).is_some_and(|n| n.session.is_none());
        if away && out.state != "ready" && out.reason.is_empty() {
            out.reason = "its agent is not connected".into();
        }
        out
    }

    fn problem(&self, dataset: DatasetId, node: NodeId, reason: &str) -> v1::Problem {
        let shard = || Some(self.shard_problem(dataset, node, self.core.failures(dataset).first()?));
        self.node_problem(dataset, node).or_else(shard).unwrap_or_else(|| {
            let node = self.nodes.name(node).to_owned();
            let message = format!("{} failed on {node}: {reason}", self.dataset_name(dataset));
            v1::Problem { code: ExitCode::Other as u32, message, node, ..Default::default() }
        })
    }

    /// Why a node does not take a version, if it has said so.
    pub(super) fn node_problem(&self, dataset: DatasetId, node: NodeId) -> Option<v1::Problem> {
        let (code, reason) = self.refusals.get(&(dataset, node))?;
        let name = self.nodes.name(node).to_owned();
        Some(v1::Problem {
            code: *code as u32,
            message: format!("{name} cannot take {}: {reason}", self.dataset_name(dataset)),
            node: name,
            ..Default::default()
        })
    }

    /// Why a shard will come to no node.
    pub(super) fn shard_problem(&self, dataset: DatasetId, node: NodeId, failure: &ShardFailure) -> v1::Problem {
        v1::Problem {
            code: failure.code,
            message: self.shard_failure_words(dataset, failure),
            node: self.nodes.name(node).to_owned(),
            key: self.shard_key(dataset, failure.shard),
            piece: failure.piece.map(|p| p.to_string()).unwrap_or_default(),
            source: self.source_name(failure.source),
            expected: failure.expected.clone(),
            actual: failure.actual.clone(),
        }
    }

    fn not_in_time(&self, now: Time, wait: &Wait, progress: &v1::WaitProgress) -> RequestError {
        let mut missing: Vec<String> = progress
            .waiting_for
            .iter()
            .take(5)
            .map(|n| match n.reason.as_str() {
                "" => format!("{} {}", n.node, n.state),
                reason => format!("{} {} ({reason})", n.node, n.state).trim_start().to_owned(),
            })
            .collect();
        if progress.waiting_for.len() > missing.len() {
            missing.push("…".into());
        }
        let after = std::time::Duration::from_millis(now.since(wait.began) / 1_000);
        RequestError::NotInTime {
            dataset: self.dataset_name(wait.dataset),
            after: humantime::format_duration(after).to_string(),
            nodes_ready: progress.nodes_ready,
            nodes_total: progress.nodes_total,
            missing: missing.join(", "),
        }
    }
}
