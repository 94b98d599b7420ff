//! Evictions that clients ask for: from which nodes a version may go, and the orders to drop it.
//!
//! Two calls, because the origin is asked in between: [`State::evict_question`] says for which shards its word counts,
//! [`State::evict`] decides with its answer, on what is known by then.

use std::collections::BTreeSet;

use millstream_coordinator_core::event::Event;
use millstream_origin::Pin;
use millstream_proto::v1;
use millstream_types::{DatasetId, NodeId, RunSet, StageId, Time};
use tokio::sync::oneshot;

use super::requests::{Answer, Asked};
use super::state::{Stage, unix_s};
use super::{State, WeakHandle};
use crate::copies::{self, AtOrigin, Question};
use crate::failure::RequestError;
use crate::observe::events::{Kind, Severity, Telling};
use crate::store::{Change, StageRecord};

/// Nodes that a request names, as far as it goes without looking at copies.
struct Chosen {
    dataset: DatasetId,
    name: String,
    asked: Vec<NodeId>,
    refused: Vec<String>,
}

impl State {
    /// The shards for which the origin's word counts.
    pub(crate) fn evict_question(&self, now: Time, request: &v1::EvictRequest) -> Asked<Question> {
        let chosen = self.choose(now, request)?;
        Ok(self.question(chosen.dataset, &self.core.only_on(now, chosen.dataset, &chosen.asked)))
    }

    fn question(&self, dataset: DatasetId, shards: &RunSet) -> Question {
        let Some(version) = self.datasets.get(dataset) else {
            return Question::default();
        };
        let manifest = &version.manifest;
        let mut question = Question { url: manifest.origin_url().to_owned(), ..Question::default() };
        for shard in shards.iter() {
            let entry = &manifest.shards()[shard as usize];
            let pin = Pin { etag: entry.etag.clone(), version_id: entry.version_id.clone(), len: entry.len };
            question.shards.push(shard);
            question.objects.push((entry.key.clone(), pin));
        }
        question
    }

    /// Asks the origin in a task of its own; the core hears the answer.
    pub(super) fn ask_origin(&mut self, dataset: DatasetId, shards: RunSet) {
        let question = self.question(dataset, &shards);
        let Some(driver) = self.handle.as_ref().and_then(WeakHandle::upgrade) else {
            return;
        };
        tokio::spawn(async move {
            // Nobody to tell it to: the coordinator stops.
            let Ok(origin) = copies::ask(question).await else { return };
            let says = Event::OriginSays { dataset, asked: shards, holds: origin.holds };
            let _ = driver.call(move |state, now| state.event(now, says)).await;
        });
    }

    /// Removes a version from nodes; the reply comes when they have answered.
    pub(crate) fn evict(
        &mut self,
        now: Time,
        request: &v1::EvictRequest,
        origin: &AtOrigin,
    ) -> Asked<Answer<oneshot::Receiver<v1::EvictReply>>> {
        let Chosen { dataset, name, asked, mut refused } = self.choose(now, request)?;
        let departures = self.core.departures(now, dataset, &asked, &origin.holds);
        for (node, last) in &departures.stay {
            refused.push(self.last_copy_words(dataset, *node, last, origin));
        }
        let go: BTreeSet<NodeId> = departures.go.iter().copied().collect();
        let what = format!("evicting {name} from {} nodes", go.len());
        let line = self.told(Telling::new(Kind::Evicted, Severity::Info, what).dataset(&name));
        let mut changes = vec![Change::Audit(line)];
        self.take_out_of_stages(now, dataset, &go, &mut changes);
        self.event(now, Event::EvictionOrdered { dataset, nodes: departures.go });
        Ok(Answer {
            reply: self.watchers.evict(now, dataset, name, go, refused),
            durable: Some(self.store.commit(changes)),
        })
    }

    fn choose(&self, now: Time, request: &v1::EvictRequest) -> Asked<Chosen> {
        let version = self.select(&request.dataset)?;
        let (dataset, name) = (version.id, version.record.name.to_string());
        let nodes = self.select_nodes(&request.nodes)?;
        self.refuse_running(now, dataset, &name, &nodes)?;
        let holds =
            |node: NodeId| self.core.replica(dataset, node).is_some_and(|r| r.bytes_ready > 0 || r.shards_ready > 0);
        let mut out = Chosen { dataset, name, asked: Vec::new(), refused: Vec::new() };
        for node in nodes {
            let node_name = self.nodes.name(node);
            if let Some(by) = version.pins.get(node_name) {
                let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
                out.refused.push(format!("{node_name}: {} is pinned there{by}", out.name));
            } else if let Some(job) = self.jobs.holder(dataset, node) {
                out.refused.push(format!("{node_name}: {job} has {} there", out.name));
            } else if self.nodes.get(node).is_some_and(|n| n.session.is_none()) {
                out.refused.push(format!("{node_name}: its agent is not connected"));
            } else if holds(node) || self.attached(node, dataset) {
                out.asked.push(node);
            }
        }
        Ok(out)
    }

    fn last_copy_words(&self, dataset: DatasetId, node: NodeId, last: &RunSet, origin: &AtOrigin) -> String {
        let shard = last.iter().next().unwrap_or_default();
        let more = match last.len().saturating_sub(1) {
            0 => String::new(),
            n => format!(" and of {n} more shards"),
        };
        let why = origin.why_not.get(&shard).map_or("another copy went meanwhile", String::as_str);
        let key = self.shard_key(dataset, shard);
        format!("{}: it has the last copy of {key:?}{more}, which stays ({why})", self.nodes.name(node))
    }

    pub(super) fn attached(&self, node: NodeId, dataset: DatasetId) -> bool {
        let session = self.nodes.get(node).and_then(|n| n.session.as_ref());
        session.is_some_and(|s| s.attached.contains(&dataset))
    }

    fn refuse_running(&self, now: Time, dataset: DatasetId, name: &str, chosen: &[NodeId]) -> Asked<()> {
        let chosen: BTreeSet<_> = chosen.iter().collect();
        let running = self.stages.iter().find(|(id, s)| {
            s.dataset == dataset
                && s.nodes.iter().any(|n| chosen.contains(n))
                && self.core.stage(**id, now).is_some_and(|v| v.state == "running")
        });
        match running {
            None => Ok(()),
            Some((id, _)) => Err(RequestError::Conflict {
                reason: format!("stage {id} is bringing {name} onto these nodes"),
                next: format!(
                    "let it end (millstream wait {name}), or remove the version with millstream dataset rm {name}"
                ),
            }),
        }
    }

    /// A stage must not bring back what was evicted: its nodes become fewer.
    fn take_out_of_stages(
        &mut self,
        now: Time,
        dataset: DatasetId,
        gone: &BTreeSet<NodeId>,
        changes: &mut Vec<Change>,
    ) {
        let touched: Vec<Stage> = self
            .stages
            .values()
            .filter(|s| s.dataset == dataset && s.nodes.iter().any(|n| gone.contains(n)))
            .cloned()
            .collect();
        for stage in touched {
            let id = StageId(stage.record.id);
            self.event(now, Event::StageCancelled { stage: id });
            self.stages.remove(&id);
            let nodes: Vec<NodeId> = stage.nodes.into_iter().filter(|n| !gone.contains(n)).collect();
            // A spread over fewer nodes would move shards about: it ends.
            if nodes.is_empty() || stage.record.spread.is_some() {
                changes.push(Change::RemoveStage(id));
                continue;
            }
            // Numbers are never used twice in one life of the core.
            changes.push(Change::RemoveStage(id));
            let record = StageRecord { id: self.next_stage, nodes: self.names(&nodes), ..stage.record };
            self.next_stage += 1;
            changes.push(Change::PutStage(record.clone()));
            self.restore_stage(now, record, dataset, nodes, unix_s());
        }
    }
}
