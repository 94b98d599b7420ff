//! What batch schedulers ask for: a job's data on its nodes, from the moment it is known until it has ended.
//!
//! Each want of a job is a stage that jobs alone asked for: jobs that want the same share it, and it ends with the
//! last of them.

use std::collections::BTreeSet;

use millstream_coordinator_core::event::Placement;
use millstream_coordinator_core::view::ReplicaState;
use millstream_proto::convert;
use millstream_proto::v1;
use millstream_types::{NodeId, Time};

use super::State;
use super::requests::{Answer, Asked};
use super::stages::{Wish, parse_placement};
use super::state::unix_s;
use crate::failure::RequestError;
use crate::jobs::{Job, Place, Want};
use crate::limits::{JOB_PLACES_MAX, JOB_TEXT_BYTES_MAX, JOB_WANTS_MAX, JOBS_OPEN_MAX, NODES_MAX, PRIORITY_MAX};
use crate::nodes::short;
use crate::observe::events::{Kind, Severity, Telling};
use crate::store::{Change, JobRecord, WantRecord, placed};

fn usage(field: &'static str, reason: impl Into<String>) -> RequestError {
    RequestError::Usage { field, reason: reason.into() }
}

/// A job's key: `cluster/number`, of letters, digits and a few signs.
fn job_key(text: &str) -> Asked<&str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.is_empty() || text.len() > JOB_TEXT_BYTES_MAX || !text.chars().all(fine) {
        return Err(usage("job", format!("{:?} is not CLUSTER/NUMBER", short(text))));
    }
    Ok(text)
}

fn cut(text: &str) -> String {
    short(text).chars().take(JOB_TEXT_BYTES_MAX / 4).collect()
}

fn conflict(job: &str, reason: String) -> RequestError {
    let next = format!("nothing, when job {job} was cancelled; else see `millstream status --json`, under jobs");
    RequestError::Conflict { reason, next }
}

impl State {
    /// A job wants data on nodes. Repeating it changes nothing; other nodes take the place of those before.
    pub(crate) fn open_job(&mut self, now: Time, request: &v1::OpenJobRequest) -> Asked<Answer<v1::JobReply>> {
        let job = job_key(&request.job)?.to_owned();
        self.may_open(&job, request)?;
        let same = self.jobs.get(&job).filter(|j| j.record.attempt == request.attempt && j.open.is_some()).cloned();
        let nodes = self.job_nodes(now, request)?;
        let (mut wants, priorities) = self.job_wants(request, &nodes, same.as_ref())?;
        let before = self.jobs.get(&job).and_then(|j| j.open.as_ref()).map(|o| o.wants.clone()).unwrap_or_default();
        let mut changes = Vec::new();
        for (want, &priority) in wants.iter().zip(&priorities) {
            if same.is_some() && before.contains(want) {
                continue;
            }
            let wish = Wish { dataset: want.dataset, placement: want.placement, priority, for_job: true };
            self.stage_on(now, wish, &want.nodes, &mut changes)?;
        }
        if request.add_nodes {
            let kept = before.iter().filter(|w| !wants.contains(w)).cloned().collect::<Vec<_>>();
            wants.extend(kept);
        }
        let over: Vec<Want> = before.into_iter().filter(|w| !wants.contains(w)).collect();
        let record = self.job_record(request, &wants, same.as_ref());
        let have = |(dataset, node): Place| self.core.replica(dataset, node).map_or(0, |r| r.bytes_ready);
        let (known, places) = (same.is_some(), wants.clone());
        self.jobs.open(now, record, places, have);
        self.release(now, &job, &over, &mut changes);
        let Some(opened) = self.jobs.get(&job).cloned() else { return Err(RequestError::Stopping) };
        if !known {
            let what = format!("job {job} of {} wants {}", opened.record.user, datasets_of(&opened.record).join(", "));
            changes.push(Change::Audit(self.told(Telling::new(Kind::JobOpened, Severity::Info, what))));
        }
        let changed = !changes.is_empty() || same.is_none_or(|s| s.record != opened.record);
        changes.push(Change::PutJob(Box::new(opened.record.clone())));
        self.judge_jobs(now);
        let reply = self.show_job(now, &job)?;
        Ok(Answer { reply, durable: changed.then(|| self.store.commit(changes)) })
    }

    fn may_open(&self, job: &str, request: &v1::OpenJobRequest) -> Asked<()> {
        if request.wants.is_empty() || request.wants.len() > JOB_WANTS_MAX {
            return Err(usage("wants", format!("{} of them; 1 to {JOB_WANTS_MAX} are allowed", request.wants.len())));
        }
        match self.jobs.get(job) {
            Some(known) if request.attempt < known.record.attempt => {
                Err(conflict(job, format!("job {job} runs for the {}. time by now", known.record.attempt + 1)))
            }
            Some(known) if request.attempt == known.record.attempt && known.open.is_none() => {
                Err(conflict(job, format!("job {job} has ended ({})", known.record.outcome)))
            }
            Some(known) if known.open.is_some() => Ok(()),
            _ if self.jobs.open_count() >= JOBS_OPEN_MAX => {
                Err(RequestError::TooMany { what: "jobs that have not ended", limit: JOBS_OPEN_MAX })
            }
            _ => Ok(()),
        }
    }

    /// Nodes that never were here are taken, too: the reply names them as absent.
    fn job_nodes(&mut self, now: Time, request: &v1::OpenJobRequest) -> Asked<Vec<NodeId>> {
        if request.nodes.trim().is_empty() {
            if !request.pending {
                return Err(usage("nodes", "none, and the job is not pending"));
            }
            return self.select_nodes("all");
        }
        let names = convert::hostlist("nodes", &request.nodes)?;
        if names.len().saturating_mul(request.wants.len()) > JOB_PLACES_MAX {
            return Err(RequestError::TooMany { what: "nodes times versions of one job", limit: JOB_PLACES_MAX });
        }
        let new: Vec<String> = names.iter().filter(|n| self.nodes.find(n).is_none()).cloned().collect();
        if self.nodes.iter().count() + new.len() > NODES_MAX {
            return Err(RequestError::UnknownNodes { names: new });
        }
        let mut named: Vec<(String, NodeId)> = Vec::new();
        for name in names {
            let id = match self.nodes.find(&name) {
                Some(node) => node.id,
                None => self.know_node(now, &name),
            };
            named.push((name, id));
        }
        // In the order of stages that people ask for, so that equal ones are found equal.
        named.sort_unstable();
        Ok(named.into_iter().map(|(_, id)| id).collect())
    }

    fn job_wants(
        &self,
        request: &v1::OpenJobRequest,
        nodes: &[NodeId],
        same: Option<&Job>,
    ) -> Asked<(Vec<Want>, Vec<u32>)> {
        let mut wants: Vec<Want> = Vec::new();
        let mut priorities = Vec::new();
        for asked in &request.wants {
            if asked.priority > PRIORITY_MAX {
                return Err(usage("priority", format!("{} is over {PRIORITY_MAX}", asked.priority)));
            }
            let selector = convert::selector("dataset", &asked.dataset)?;
            // "Latest" was decided when the job asked first.
            let decided = same.into_iter().flat_map(|j| &j.record.wants).map(|w| &w.dataset);
            let decided = decided.filter(|d| selector.version.is_none() && d.name == selector.name);
            let version = match decided.filter_map(|d| self.datasets.by_ref(d)).next() {
                Some(version) => version,
                None => self.datasets.select(&selector)?,
            };
            let placement = parse_placement(&asked.placement, nodes.len())?;
            let want = Want { dataset: version.id, nodes: nodes.to_vec(), placement };
            if !wants.contains(&want) {
                wants.push(want);
                priorities.push(asked.priority);
            }
        }
        Ok((wants, priorities))
    }

    fn job_record(&self, request: &v1::OpenJobRequest, wants: &[Want], same: Option<&Job>) -> JobRecord {
        let mut record = same.map(|j| j.record.clone()).unwrap_or_else(|| JobRecord {
            job: request.job.clone(),
            attempt: request.attempt,
            asked_unix_s: unix_s(),
            ..JobRecord::default()
        });
        if !request.name.is_empty() {
            record.name = cut(&request.name);
        }
        if !request.user.is_empty() {
            record.user = cut(&request.user);
        }
        // Once allocated, a hook that comes late with candidates does not make it pending again.
        record.pending = request.pending && same.is_none_or(|j| j.record.pending);
        record.wants = wants.iter().filter_map(|w| self.want_record(w)).collect();
        record.asked_bytes = wants.iter().map(|w| self.want_bytes(w)).sum();
        record
    }

    fn want_record(&self, want: &Want) -> Option<WantRecord> {
        let dataset = self.datasets.get(want.dataset)?.record.name.clone();
        let (window, spread) = placed(want.placement);
        Some(WantRecord { dataset, nodes: self.names(&want.nodes), spread, window })
    }

    fn want_bytes(&self, want: &Want) -> u64 {
        let bytes = self.datasets.get(want.dataset).map_or(0, |d| d.manifest.layout().bytes());
        // A window brings every shard to whoever reads it: to all of them, in the end.
        match want.placement {
            Placement::Spread(r) => bytes * u64::from(r),
            Placement::Replicate | Placement::Window => bytes * want.nodes.len() as u64,
        }
    }

    /// Ends the stages of wants that nobody has any more.
    fn release(&mut self, now: Time, job: &str, wants: &[Want], changes: &mut Vec<Change>) {
        for want in wants {
            if !self.jobs.wanted_by_another(job, want) {
                self.unstage(now, want.dataset, &want.nodes, want.placement, changes);
            }
        }
    }

    /// A job has ended, or is done with one node. Repeating it, or ending what never began, is fine.
    pub(crate) fn close_job(&mut self, now: Time, request: &v1::CloseJobRequest) -> Asked<Answer<v1::JobReply>> {
        let job = job_key(&request.job)?.to_owned();
        let known = self.jobs.get(&job).cloned();
        // Slurm counts a requeue before it runs the epilog of what is requeued: the attempt that ends is the one that
        // is open, and of one that never began only the first can be told.
        let open = known.as_ref().is_some_and(|j| j.open.is_some() && j.record.attempt <= request.attempt);
        let never = known.is_none() && request.attempt == 0 && request.node.is_empty();
        let no_node = !request.node.is_empty() && self.nodes.find(&request.node).is_none();
        if !(open || never) || no_node {
            return Ok(Answer { reply: self.show_job(now, &job).unwrap_or_default(), durable: None });
        }
        let mut changes = Vec::new();
        let wants = known.as_ref().and_then(|j| j.open.as_ref()).map(|o| o.wants.clone()).unwrap_or_default();
        let mut record =
            known.map(|j| j.record).unwrap_or_else(|| JobRecord { job: job.clone(), ..JobRecord::default() });
        let gone = self.nodes.find(&request.node).map(|n| n.id);
        let left = gone.map(|node| self.jobs.done_on(&job, node)).unwrap_or_default();
        if !left.is_empty() {
            // Stages of several nodes go on until the last of them is done.
            if !record.done_nodes.contains(&request.node) {
                record.done_nodes.push(request.node.clone());
            }
            self.jobs.describe(record.clone());
            let over: Vec<Want> = wants.into_iter().filter(|w| !left.contains(w)).collect();
            self.release(now, &job, &over, &mut changes);
        } else {
            record.ended_unix_s = Some(unix_s());
            record.outcome = cut(&request.outcome);
            changes.extend(self.jobs.end(record.clone()));
            self.release(now, &job, &wants, &mut changes);
            let what = format!("job {job} ended: {}", record.outcome);
            changes.push(Change::Audit(self.told(Telling::new(Kind::JobEnded, Severity::Info, what))));
        }
        changes.push(Change::PutJob(Box::new(record)));
        let reply = self.show_job(now, &job)?;
        Ok(Answer { reply, durable: Some(self.store.commit(changes)) })
    }

    /// What is known of a job.
    pub(crate) fn show_job(&self, now: Time, job: &str) -> Asked<v1::JobReply> {
        let Some(job) = self.jobs.get(job) else {
            return Err(RequestError::UnknownJob { job: short(job) });
        };
        let record = &job.record;
        let mut nodes: BTreeSet<&String> = BTreeSet::new();
        nodes.extend(record.wants.iter().flat_map(|w| &w.nodes));
        let away = |name: &&&String| self.nodes.find(name).is_none_or(|n| n.session.is_none());
        Ok(v1::JobReply {
            job: record.job.clone(),
            attempt: record.attempt,
            name: record.name.clone(),
            user: record.user.clone(),
            state: job.state().into(),
            absent_nodes: nodes.iter().filter(away).map(|n| n.to_string()).collect(),
            nodes: nodes.into_iter().cloned().collect(),
            datasets: datasets_of(record),
            asked_bytes: record.asked_bytes,
            cache_bytes: record.cache_bytes,
            origin_bytes: record.origin_bytes,
            peer_bytes: record.peer_bytes,
            shared_bytes: record.shared_bytes,
            waited_ms: record.waited_ms.unwrap_or_else(|| job.waiting_ms(now)),
            outcome: record.outcome.clone(),
        })
    }

    /// Jobs whose data became ready are remembered so.
    pub(super) fn judge_jobs(&mut self, now: Time) {
        let core = &self.core;
        let ready =
            |(dataset, node): Place| core.replica(dataset, node).is_some_and(|r| r.state == ReplicaState::Ready);
        let done = self.jobs.judge(now, ready);
        if !done.is_empty() {
            // Nobody waits for this: should it be lost, it is found again.
            let changes = done.into_iter().map(|record| Change::PutJob(Box::new(record)));
            drop(self.store.commit(changes.collect()));
        }
    }

    /// A job of the catalog. Its stages are in the catalog themselves.
    pub(crate) fn restore_job(&mut self, record: JobRecord) {
        let mut wants = Vec::new();
        for want in record.wants.iter().filter(|_| record.ended_unix_s.is_none()) {
            let Some(dataset) = self.datasets.by_ref(&want.dataset).map(|d| d.id) else { continue };
            let nodes = want.nodes.iter().map(|name| self.know_node(Time::ZERO, name)).collect();
            wants.push(Want { dataset, nodes, placement: want.placement() });
        }
        let (job, done) = (record.job.clone(), record.done_nodes.clone());
        self.jobs.restore(record, wants);
        for node in done.iter().filter_map(|name| self.nodes.find(name)) {
            self.jobs.done_on(&job, node.id);
        }
    }
}

fn datasets_of(record: &JobRecord) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for want in &record.wants {
        let name = want.dataset.to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
