//! Clients that watch: those that wait (see `wait`), and those that verify or evict and hear from many nodes.
//!
//! Goals: the end always comes, also when a node goes away in between or never answers.

use std::collections::{BTreeMap, BTreeSet};

use millstream_coordinator_core::Core;
use millstream_proto::v1;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_types::{DatasetId, NodeId, Time};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::State;
use super::wait::Wait;
use crate::failure::RequestError;
use crate::limits::{EVICT_TIMEOUT, NODES_NAMED_MAX, PROGRESS_QUEUE_MAX, WAIT_TICK, WAIT_TICK_DIRTY, WATCHERS_MAX};
use crate::nodes::short;

pub(crate) type VerifyStream = mpsc::Receiver<Result<v1::VerifyProgress, Status>>;

struct Verify {
    dataset: DatasetId,
    out: mpsc::Sender<Result<v1::VerifyProgress, Status>>,
    /// Nodes that have not finished, with failures that were not passed on yet.
    left: BTreeMap<NodeId, Vec<v1::Failure>>,
    total: u32,
}

struct Eviction {
    dataset: DatasetId,
    waiting: BTreeSet<NodeId>,
    reply: v1::EvictReply,
    answer: oneshot::Sender<v1::EvictReply>,
    deadline: Time,
}

/// All that watch.
#[derive(Default)]
pub(crate) struct Watchers {
    pub(super) waits: Vec<Wait>,
    verifies: BTreeMap<u64, Verify>,
    evictions: Vec<Eviction>,
    next_request: u64,
    pub(super) dirty: BTreeSet<DatasetId>,
    pub(super) last_look: Time,
    /// The last look at all of them.
    pub(super) last_tick: Time,
    /// A wait came that nobody has looked at.
    pub(super) fresh: bool,
}

pub(super) fn us(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Watchers {
    /// Something changed about a version: look at its waits soon.
    pub(crate) fn touch(&mut self, dataset: DatasetId) {
        if !self.waits.is_empty() {
            self.dirty.insert(dataset);
        }
    }

    pub(super) fn due(&self) -> Option<Time> {
        let waits = (!self.waits.is_empty()).then(|| {
            let tick = match (self.fresh, self.dirty.is_empty()) {
                (true, _) => 0,
                (false, false) => us(WAIT_TICK_DIRTY),
                (false, true) => us(WAIT_TICK),
            };
            self.last_look + tick
        });
        let evictions = self.evictions.iter().map(|e| e.deadline).min();
        waits.into_iter().chain(evictions).min()
    }

    pub(super) fn stop(&mut self) {
        let stopping = || Status::from(RequestError::Stopping);
        for wait in self.waits.drain(..) {
            let _ = wait.out.try_send(Err(stopping()));
        }
        for (_, verify) in std::mem::take(&mut self.verifies) {
            let _ = verify.out.try_send(Err(stopping()));
        }
        self.evictions.clear();
    }

    pub(super) fn dataset_removed(&mut self, dataset: DatasetId) {
        let gone = || RequestError::UnknownDataset {
            selector: "the version".into(),
            hint: " any more: it was removed".into(),
        };
        self.waits.retain(|w| {
            if w.dataset == dataset {
                let _ = w.out.try_send(Err(gone().into()));
            }
            w.dataset != dataset
        });
        self.verifies.retain(|_, v| v.dataset != dataset);
        self.evictions.retain(|e| e.dataset != dataset);
    }

    pub(super) fn evict(
        &mut self,
        now: Time,
        dataset: DatasetId,
        name: String,
        waiting: BTreeSet<NodeId>,
        refused: Vec<String>,
    ) -> oneshot::Receiver<v1::EvictReply> {
        let (answer, answered) = oneshot::channel();
        let reply = v1::EvictReply { dataset: name, refused, ..Default::default() };
        if waiting.is_empty() {
            let _ = answer.send(reply);
            return answered;
        }
        self.evictions.push(Eviction { dataset, waiting, reply, answer, deadline: now + us(EVICT_TIMEOUT) });
        answered
    }

    fn len(&self) -> usize {
        self.waits.len() + self.verifies.len() + self.evictions.len()
    }
}

impl State {
    pub(super) fn room_for_watcher(&self) -> Result<(), RequestError> {
        if self.watchers.len() < WATCHERS_MAX {
            return Ok(());
        }
        Err(RequestError::TooMany { what: "clients that wait", limit: WATCHERS_MAX })
    }

    /// Asks nodes to check every byte of a version again.
    pub(crate) fn verify(&mut self, request: &v1::VerifyDatasetRequest) -> Result<VerifyStream, RequestError> {
        self.room_for_watcher()?;
        let version = self.select(&request.dataset)?;
        let (dataset, name) = (version.id, version.record.name.to_string());
        let holds = |core: &Core, node: NodeId| core.replica(dataset, node).is_some_and(|r| r.shards_ready > 0);
        let everywhere = matches!(request.nodes.trim(), "" | "all");
        let nodes: Vec<NodeId> = if everywhere {
            self.nodes.iter().map(|n| n.id).filter(|&n| holds(&self.core, n)).collect()
        } else {
            self.select_nodes(&request.nodes)?
        };
        if nodes.is_empty() {
            return Err(RequestError::Conflict {
                reason: format!("{name} is on no node, so there is nothing to verify"),
                next: format!("bring it there first: millstream stage {name}"),
            });
        }
        let request = self.watchers.next_request;
        self.watchers.next_request += 1;
        let total = nodes.len() as u32;
        // Room for the end of every node, beside some progress.
        let (out, stream) = mpsc::channel(nodes.len() + PROGRESS_QUEUE_MAX);
        let left = nodes.iter().map(|&n| (n, Vec::new())).collect();
        self.watchers.verifies.insert(request, Verify { dataset, out, left, total });
        for node in nodes {
            let error = if self.nodes.get(node).is_none_or(|n| n.session.is_none()) {
                "its agent is not connected"
            } else if !holds(&self.core, node) {
                "nothing of it is there"
            } else {
                let dataset = dataset.0;
                self.send(node, Order::Verify(v1::VerifyRequest { request, dataset }));
                continue;
            };
            self.verify_ended(request, node, error);
        }
        Ok(stream)
    }

    fn verify_ended(&mut self, request: u64, node: NodeId, error: &str) {
        let report = v1::VerifyReport { request, done: true, error: error.into(), ..Default::default() };
        self.verify_report(node, report);
    }

    pub(super) fn verify_report(&mut self, node: NodeId, report: v1::VerifyReport) {
        let name = self.nodes.name(node).to_owned();
        let Some(verify) = self.watchers.verifies.get_mut(&report.request) else {
            return;
        };
        let Some(failures) = verify.left.get_mut(&node) else {
            return;
        };
        let room = NODES_NAMED_MAX.saturating_sub(failures.len());
        failures.extend(report.failures.into_iter().take(room));
        let reserved = verify.left.len();
        if !report.done && verify.out.capacity() <= reserved {
            return;
        }
        let failures = if report.done {
            verify.left.remove(&node).unwrap_or_default()
        } else {
            verify.left.get_mut(&node).map(std::mem::take).unwrap_or_default()
        };
        let progress = v1::VerifyProgress {
            node: name,
            shards_checked: report.shards_checked.into(),
            bytes_checked: report.bytes_checked,
            failures,
            done: report.done,
            error: short(&report.error),
            nodes_done: verify.total - verify.left.len() as u32,
            nodes_total: verify.total,
        };
        let gone = verify.out.try_send(Ok(progress)).is_err();
        if gone || verify.left.is_empty() {
            self.watchers.verifies.remove(&report.request);
        }
    }

    /// A node's session ended: what it was to verify or evict it will not report.
    pub(super) fn verify_lost(&mut self, node: NodeId) {
        let hit = self.watchers.verifies.iter().filter(|(_, v)| v.left.contains_key(&node));
        let hit: Vec<u64> = hit.map(|(&request, _)| request).collect();
        for request in hit {
            self.verify_ended(request, node, "its session ended before it had checked everything");
        }
        let name = self.nodes.name(node).to_owned();
        for eviction in &mut self.watchers.evictions {
            if eviction.waiting.remove(&node) {
                let refused = format!("{name}: its session ended before it answered");
                eviction.reply.refused.push(refused);
            }
        }
        self.answer_evictions();
    }

    pub(super) fn evicted(&mut self, node: NodeId, dataset: DatasetId, evicted: v1::Evicted) {
        let name = self.nodes.name(node).to_owned();
        let waiting = |e: &&mut Eviction| e.dataset == dataset && e.waiting.contains(&node);
        for eviction in self.watchers.evictions.iter_mut().filter(waiting) {
            eviction.waiting.remove(&node);
            if evicted.refused.is_empty() {
                eviction.reply.bytes += evicted.bytes;
                eviction.reply.nodes.push(name.clone());
            } else {
                let refused = format!("{name}: {}", short(&evicted.refused));
                eviction.reply.refused.push(refused);
            }
        }
        self.answer_evictions();
    }

    pub(super) fn evictions_in_time(&mut self, now: Time) {
        let nodes = &self.nodes;
        for eviction in self.watchers.evictions.iter_mut().filter(|e| e.deadline <= now) {
            for node in std::mem::take(&mut eviction.waiting) {
                let late = format!("{}: no answer within {EVICT_TIMEOUT:?}", nodes.name(node));
                eviction.reply.refused.push(late);
            }
        }
        self.answer_evictions();
    }

    fn answer_evictions(&mut self) {
        let done = self.watchers.evictions.extract_if(.., |e| e.waiting.is_empty());
        for mut eviction in done.collect::<Vec<_>>() {
            eviction.reply.nodes.sort_unstable();
            let _ = eviction.answer.send(eviction.reply);
        }
    }
}
