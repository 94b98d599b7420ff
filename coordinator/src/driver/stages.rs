//! What clients ask for on nodes: stages, pins, evictions.

use millstream_coordinator_core::event::{Event, Placement};
use millstream_proto::convert;
use millstream_proto::v1;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_types::{DatasetId, NodeId, StageId, Time};

use super::State;
use super::requests::{Answer, Asked};
use super::state::{Stage, unix_s};
use crate::failure::{RequestError, named};
use crate::limits::{PRIORITY_MAX, STAGES_MAX};
use crate::nodes::short;
use crate::observe::events::{Kind, Severity, Telling};
use crate::store::{Change, StageRecord, placed};

/// What a stage is to bring, and for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) dataset: DatasetId,
    pub(super) placement: Placement,
    pub(super) priority: u32,
    pub(super) for_job: bool,
}

impl State {
    /// The nodes that `all` or a host list means, by name. `all`: those connected now.
    pub(crate) fn select_nodes(&self, text: &str) -> Asked<Vec<NodeId>> {
        let mut nodes: Vec<(&str, NodeId)> = Vec::new();
        if matches!(text.trim(), "" | "all") {
            nodes.extend(self.nodes.connected().map(|n| (n.name.as_str(), n.id)));
            if nodes.is_empty() {
                return Err(RequestError::NoNodes);
            }
        } else {
            let names = convert::hostlist("nodes", text)?;
            let mut unknown = Vec::new();
            for name in names {
                match self.nodes.find(&name) {
                    Some(node) => nodes.push((node.name.as_str(), node.id)),
                    None => unknown.push(name),
                }
            }
            if !unknown.is_empty() {
                return Err(RequestError::UnknownNodes { names: unknown });
            }
        }
        nodes.sort_unstable();
        Ok(nodes.into_iter().map(|(_, id)| id).collect())
    }

    /// The number of a node that a stage names before the node was ever here.
    pub(crate) fn know_node(&mut self, now: Time, name: &str) -> NodeId {
        let node = self.nodes.intern(name);
        let name = name.to_owned();
        self.event(now, Event::NodeNamed { node, name });
        node
    }

    pub(crate) fn names(&self, nodes: &[NodeId]) -> Vec<String> {
        nodes.iter().map(|&n| self.nodes.name(n).to_owned()).collect()
    }

    /// Asks for a version on nodes; joins an identical stage that is running.
    pub(crate) fn stage(&mut self, now: Time, request: &v1::StageRequest) -> Asked<Answer<v1::StageReply>> {
        let version = self.select(&request.dataset)?;
        let (dataset, name) = (version.id, version.record.name.to_string());
        let nodes = self.select_nodes(&request.nodes)?;
        let placement = parse_placement(&request.placement, nodes.len())?;
        if request.priority > PRIORITY_MAX {
            return Err(RequestError::Usage {
                field: "priority",
                reason: format!("{} is over {PRIORITY_MAX}", request.priority),
            });
        }
        let wish = Wish { dataset, placement, priority: request.priority, for_job: false };
        let mut changes = Vec::new();
        let (stage, joined_existing) = self.stage_on(now, wish, &nodes, &mut changes)?;
        let reply = v1::StageReply { stage: stage.0, dataset: name, nodes: self.names(&nodes), joined_existing };
        let durable = (!changes.is_empty()).then(|| self.store.commit(changes));
        Ok(Answer { reply, durable })
    }

    /// Stages a version on nodes, or joins the stage that does the same. The flag: joined.
    pub(super) fn stage_on(
        &mut self,
        now: Time,
        wish: Wish,
        nodes: &[NodeId],
        changes: &mut Vec<Change>,
    ) -> Asked<(StageId, bool)> {
        let Wish { dataset, placement, mut priority, mut for_job } = wish;
        let same = |s: &&Stage| s.dataset == dataset && s.nodes == nodes && s.record.placement() == placement;
        let old = self.stages.values().find(same).cloned();
        if let Some(old) = old {
            let id = StageId(old.record.id);
            let running = self.core.stage(id, now).is_some_and(|s| s.state == "running");
            // A job does not slow down what others want sooner.
            priority = if for_job { priority.max(old.record.priority) } else { priority };
            if running && old.record.priority == priority {
                if old.record.for_jobs && !for_job {
                    let record = StageRecord { for_jobs: false, ..old.record };
                    changes.push(Change::PutStage(record.clone()));
                    self.stages.insert(id, Stage { record, ..old });
                }
                return Ok((id, true));
            }
            // Finished (it is looked at anew), or of another priority: the new one takes its place.
            for_job &= old.record.for_jobs;
            self.stages.remove(&id);
            self.event(now, Event::StageCancelled { stage: id });
            changes.push(Change::RemoveStage(id));
        }
        self.make_room_for_stage(now, changes)?;
        let version = self.datasets.get(dataset);
        let digest = version.map(|v| v.manifest.digest().to_string()).unwrap_or_default();
        let (window, spread) = placed(placement);
        let record = StageRecord {
            id: self.next_stage,
            digest,
            nodes: self.names(nodes),
            spread,
            window,
            priority,
            created_unix_s: unix_s(),
            for_jobs: for_job,
        };
        self.next_stage += 1;
        let stage = StageId(record.id);
        let what = format!("stage {stage} of {} on {} nodes", self.dataset_name(dataset), nodes.len());
        changes.push(Change::PutStage(record.clone()));
        let name = self.dataset_name(dataset);
        changes.push(Change::Audit(self.told(Telling::new(Kind::Staged, Severity::Info, what).dataset(name))));
        for &node in nodes {
            self.refusals.remove(&(dataset, node));
        }
        let told = record.created_unix_s;
        self.restore_stage(now, record, dataset, nodes.to_vec(), told);
        Ok((stage, false))
    }

    /// Ends the stage of jobs that does this, where there is one; what was fetched stays.
    pub(super) fn unstage(
        &mut self,
        now: Time,
        dataset: DatasetId,
        nodes: &[NodeId],
        placement: Placement,
        changes: &mut Vec<Change>,
    ) {
        let same = |s: &&Stage| {
            s.dataset == dataset && s.nodes == nodes && s.record.placement() == placement && s.record.for_jobs
        };
        let Some(id) = self.stages.values().find(same).map(|s| StageId(s.record.id)) else {
            return;
        };
        self.stages.remove(&id);
        self.event(now, Event::StageCancelled { stage: id });
        self.watchers.touch(dataset);
        changes.push(Change::RemoveStage(id));
    }

    fn make_room_for_stage(&mut self, now: Time, changes: &mut Vec<Change>) -> Asked<()> {
        if self.stages.len() < STAGES_MAX {
            return Ok(());
        }
        let over = |id: &StageId| self.core.stage(*id, now).is_none_or(|s| s.state != "running");
        let Some(oldest) = self.stages.keys().find(|id| over(id)).copied() else {
            return Err(RequestError::TooMany { what: "stages that run", limit: STAGES_MAX });
        };
        self.stages.remove(&oldest);
        changes.push(Change::RemoveStage(oldest));
        Ok(())
    }

    /// Puts a stage into memory and tells the core, which counts from then.
    pub(crate) fn restore_stage(
        &mut self,
        now: Time,
        record: StageRecord,
        dataset: DatasetId,
        nodes: Vec<NodeId>,
        told_unix_s: i64,
    ) {
        let stage = StageId(record.id);
        self.next_stage = self.next_stage.max(record.id + 1);
        let event = Event::StageRequested {
            stage,
            dataset,
            nodes: nodes.clone(),
            placement: record.placement(),
            priority: record.priority,
        };
        self.stages.insert(stage, Stage { record, dataset, nodes, told_unix_s });
        self.event(now, event);
        self.watchers.touch(dataset);
    }

    /// Pins or unpins a version on nodes.
    pub(crate) fn pin(&mut self, request: &v1::PinRequest) -> Asked<Answer<v1::PinReply>> {
        let version = self.select(&request.dataset)?;
        let (dataset, digest) = (version.id, version.manifest.digest());
        let name = version.record.name.to_string();
        let pinned = request.pinned;
        // Unpinning everywhere reaches nodes that are away, too.
        let everywhere = !pinned && matches!(request.nodes.trim(), "" | "all");
        let nodes = if everywhere {
            version.pins.keys().filter_map(|n| self.nodes.find(n)).map(|n| n.id).collect()
        } else {
            self.select_nodes(&request.nodes)?
        };
        let names = self.names(&nodes);
        let by = short(&request.by);
        let mut changes = Vec::new();
        for (&node, name) in nodes.iter().zip(&names) {
            if let Some(version) = self.datasets.get_mut(dataset) {
                if pinned {
                    version.pins.insert(name.clone(), by.clone());
                } else {
                    version.pins.remove(name);
                }
            }
            changes.push(Change::Pin { digest, node: name.clone(), pinned, by: by.clone() });
            // The attachment carries the pin; what is attached already is told so.
            self.attach(node, dataset, None);
            let dataset = dataset.0;
            self.send(node, Order::Pin(v1::SetPin { dataset, pinned }));
        }
        let (kind, what) = if pinned { (Kind::Pinned, "pinned") } else { (Kind::Unpinned, "unpinned") };
        let whose = if by.is_empty() { String::new() } else { format!(" by {by}") };
        let what = format!("{what} {name} on {}{whose}", named(&names));
        changes.push(Change::Audit(self.told(Telling::new(kind, Severity::Info, what).dataset(&name))));
        Ok(Answer { reply: v1::PinReply { dataset: name, nodes: names }, durable: Some(self.store.commit(changes)) })
    }
}

pub(super) fn parse_placement(text: &str, nodes: usize) -> Asked<Placement> {
    let usage = |reason: String| RequestError::Usage { field: "placement", reason };
    match text {
        "" | "replicate" => return Ok(Placement::Replicate),
        "window" => return Ok(Placement::Window),
        _ => {}
    }
    let replicas = text.strip_prefix("spread=").and_then(|r| r.parse::<u32>().ok());
    match replicas {
        Some(0) | None => Err(usage(format!("{:?} is not replicate, spread=R or window", short(text)))),
        Some(r) if r as usize > nodes => Err(usage(format!("spread={r} needs {r} nodes, and {nodes} are chosen"))),
        Some(r) => Ok(Placement::Spread(r)),
    }
}
