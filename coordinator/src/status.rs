//! The document of `millstream status --json` and `GET /api/v1/status`.
//!
//! Its named fields keep their names and shapes (docs/reference); others may be added.

use std::collections::BTreeMap;

use millstream_coordinator_core::event::{NodeState, Placement};
use millstream_types::size::format_size;
use millstream_types::{DatasetId, StageId, Time};
use serde::Serialize;
use utoipa::ToSchema;

use crate::datasets::Dataset;
use crate::driver::State;
use crate::driver::state::Stage;
use crate::failure::RequestError;
use crate::limits::{NO_ETA_AFTER_S, NOTICES_MAX};
use crate::nodes::Node;
use crate::nodes::details::Rail;
use crate::observe::alarms::Alarm;
use crate::observe::events::Event;
use crate::views::Blocking;
use crate::views::datasets::NAMED_IN_LIST;

/// Everything.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Document {
    version: &'static str,
    coordinator: Coordinator,
    pub(crate) nodes: Vec<NodeStatus>,
    datasets: Vec<DatasetStatus>,
    stages: Vec<StageStatus>,
    jobs: Vec<JobStatus>,
    notices: Vec<Notice>,
    alarms: Vec<Alarm>,
}

/// The newest events.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Notice {
    at_unix_s: i64,
    severity: &'static str,
    text: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct Coordinator {
    id: String,
    leader: bool,
    uptime_s: f64,
    state_store: String,
    /// Indexes beside data that registrations left aside; the notices say why.
    indexes_unused: u64,
}

/// One node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct NodeStatus {
    pub(crate) node: String,
    pub(crate) state: &'static str,
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) transports: Vec<String>,
    pub(crate) io: String,
    pub(crate) disk: Disk,
    pub(crate) received_bytes: Received,
    pub(crate) sent_bytes: Sent,
    pub(crate) rate_bytes_per_s: Rate,
    /// What its link gives, per second in which pieces of peers were arriving over TCP; 0: not measured yet.
    link_bytes_per_s: u64,
    pub(crate) fallbacks: Vec<Fallback>,
    /// What went over each RDMA device, as the agent and as the device counts it.
    pub(crate) rails: Vec<Rail>,
    io_reason: String,
    http: String,
    pub(crate) agent_version: String,
    pub(crate) checksum_failures: u64,
    /// Of shards that readers on the node wanted and found in place.
    pub(crate) local_hit_bytes: u64,
    pub(crate) quarantined_s: f64,
    pub(crate) outstanding_bytes: u64,
    last_seen_s: Option<f64>,
    pub(crate) last_errors: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Disk {
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pinned_bytes: u64,
    partial_bytes: u64,
    /// Per second in which it was written to; 0: not measured yet.
    write_bytes_per_s: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Received {
    origin: u64,
    rdma: u64,
    tcp: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Sent {
    rdma: u64,
    tcp: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Rate {
    pub(crate) r#in: u64,
    pub(crate) out: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Fallback {
    from: String,
    to: String,
    reason: String,
    count: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct DatasetStatus {
    name: String,
    version: String,
    digest: String,
    shards: u64,
    bytes: u64,
    origin_url: String,
    origin_verified: bool,
    nodes: Vec<ReplicaStatus>,
    kind: &'static str,
    created_unix_s: i64,
    indexed: bool,
    pinned_on: Vec<String>,
    failures: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct ReplicaStatus {
    node: String,
    shards_ready: u32,
    bytes_ready: u64,
    state: &'static str,
    reason: String,
    shards_wanted: u32,
    bytes_wanted: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct StageStatus {
    pub(crate) id: u64,
    pub(crate) dataset: String,
    pub(crate) nodes: Vec<String>,
    placement: String,
    priority: u32,
    pub(crate) state: &'static str,
    pub(crate) bytes_total: u64,
    /// Verified; once it is done all of it, whatever was lost since: `lacking` says where.
    pub(crate) bytes_ready: u64,
    /// Its nodes that lack some of it now and that it does not wait for: lost after it was done, refused, or down.
    nodes_lacking: u32,
    /// The first of those.
    lacking: Vec<Blocking>,
    pub(crate) origin_bytes: u64,
    started_at: String,
    /// Where that is later than `started_at` (the coordinator was restarted, or the stage lost nodes): when its time,
    /// bytes found and bound began to be counted.
    counted_since: Option<String>,
    pub(crate) elapsed_s: f64,
    eta_s: Option<f64>,
    bound_s: Option<f64>,
    bound_by: &'static str,
    ratio_to_bound: Option<f64>,
    /// Of `bytes_ready`, there already when it began.
    pub(crate) bytes_found: u64,
    /// Bytes of the version, once.
    pub(crate) dataset_bytes: u64,
    /// What `eta_s` is worked out from, in words.
    eta_basis: String,
}

/// A job of a batch scheduler: what it asked for, what it waited, where its bytes came from.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct JobStatus {
    job: String,
    attempt: u32,
    name: String,
    user: String,
    state: String,
    datasets: Vec<String>,
    nodes: Vec<String>,
    absent_nodes: Vec<String>,
    asked_bytes: u64,
    bytes: JobBytes,
    waited_s: f64,
    asked_at: String,
    ended_at: Option<String>,
    outcome: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct JobBytes {
    cache: u64,
    origin: u64,
    peer: u64,
    shared: u64,
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// RFC 3339, seconds.
fn timestamp(unix_s: i64) -> String {
    let since = std::time::Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

impl State {
    /// The document; of one version when `selector` is not empty.
    pub(crate) fn status(&self, now: Time, selector: &str) -> Result<Document, RequestError> {
        let only = match selector {
            "" => None,
            text => Some(self.select(text)?.id),
        };
        let wanted = |id: DatasetId| only.is_none_or(|o| o == id);
        Ok(Document {
            version: env!("CARGO_PKG_VERSION"),
            coordinator: Coordinator {
                id: self.settings.id.clone(),
                leader: true,
                uptime_s: now.as_secs_f64(),
                state_store: self.store.description().to_owned(),
                indexes_unused: self.counters.stale_indexes + self.counters.damaged_indexes,
            },
            nodes: self.node_statuses(now),
            datasets: self.datasets.iter().filter(|d| wanted(d.id)).map(|d| self.dataset_status(d)).collect(),
            stages: self.stage_statuses(now, wanted),
            jobs: self.job_statuses(now, only),
            notices: self.notices(),
            alarms: self.observed.alarms.clone(),
        })
    }

    fn notices(&self) -> Vec<Notice> {
        let newest = self.observed.events.newest().take(NOTICES_MAX);
        let notice = |e: &Event| Notice {
            at_unix_s: e.at_unix_ms.div_euclid(1_000),
            severity: e.severity.as_str(),
            text: e.text.clone(),
        };
        newest.map(notice).collect()
    }

    /// All nodes, by name.
    pub(crate) fn node_statuses(&self, now: Time) -> Vec<NodeStatus> {
        let mut nodes: Vec<_> = self.nodes.iter().map(|n| self.node_status(now, n)).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }

    pub(crate) fn node_status(&self, now: Time, node: &Node) -> NodeStatus {
        let view = self.core.node(node.id, now);
        let state = view.as_ref().map_or(NodeState::Down, |v| v.state);
        let hello = node.hello.clone();
        let report = &node.report;
        let moved = report.moved();
        let fallbacks = report.fallbacks.iter().map(|((from, to, reason), &count)| Fallback {
            from: from.clone(),
            to: to.clone(),
            reason: reason.clone(),
            count,
        });
        NodeStatus {
            node: node.name.clone(),
            state: state.as_str(),
            address: node.address().to_owned(),
            fallbacks: fallbacks.collect(),
            rails: node.details.rails.iter().map(Rail::without_counters).collect(),
            disk: Disk {
                capacity_bytes: report.capacity_bytes,
                used_bytes: report.used_bytes,
                pinned_bytes: report.pinned_bytes,
                partial_bytes: report.partial_bytes,
                write_bytes_per_s: report.disk.bytes_per_s,
            },
            received_bytes: Received {
                origin: moved.received_origin,
                rdma: moved.received_rdma,
                tcp: moved.received_tcp,
            },
            sent_bytes: Sent { rdma: moved.sent_rdma, tcp: moved.sent_tcp },
            link_bytes_per_s: report.link.bytes_per_s,
            rate_bytes_per_s: Rate { r#in: report.in_bytes_per_s, out: report.out_bytes_per_s },
            checksum_failures: moved.checksum_failures,
            quarantined_s: view.as_ref().map_or(0.0, |v| seconds(v.quarantined_us)),
            outstanding_bytes: view.as_ref().map_or(0, |v| v.outstanding_bytes),
            last_seen_s: hello.is_some().then(|| seconds(now.since(node.last_seen))),
            last_errors: report.last_errors.iter().map(|(text, _)| text.clone()).collect(),
            local_hit_bytes: moved.local_hits,
            labels: hello.as_ref().map(|h| h.labels.clone()).unwrap_or_default(),
            transports: hello.as_ref().map(|h| h.transports.clone()).unwrap_or_default(),
            io: hello.as_ref().map(|h| h.io.clone()).unwrap_or_default(),
            io_reason: hello.as_ref().map(|h| h.io_reason.clone()).unwrap_or_default(),
            http: hello.as_ref().map(|h| h.http.clone()).unwrap_or_default(),
            agent_version: hello.map(|h| h.agent_version).unwrap_or_default(),
        }
    }

    fn dataset_status(&self, dataset: &Dataset) -> DatasetStatus {
        let info = dataset.info();
        let replicas = self.core.replicas(dataset.id).into_iter();
        let mut nodes: Vec<_> = replicas
            .map(|r| ReplicaStatus {
                node: self.nodes.name(r.node).to_owned(),
                shards_ready: r.shards_ready,
                bytes_ready: r.bytes_ready,
                state: r.state.as_str(),
                reason: r.reason,
                shards_wanted: r.shards_wanted,
                bytes_wanted: r.bytes_wanted,
            })
            .collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let failures = self.core.failures(dataset.id).into_iter();
        DatasetStatus {
            name: info.name,
            version: info.version,
            digest: info.digest,
            shards: info.shards,
            bytes: info.bytes,
            origin_url: info.origin_url,
            origin_verified: info.origin_verified,
            nodes,
            kind: if info.kind == "checkpoint" { "checkpoint" } else { "dataset" },
            created_unix_s: info.created_unix_s,
            indexed: info.indexed,
            pinned_on: dataset.pins.keys().cloned().collect(),
            failures: failures.map(|f| self.shard_failure_words(dataset.id, &f)).collect(),
        }
    }

    fn job_statuses(&self, now: Time, only: Option<DatasetId>) -> Vec<JobStatus> {
        let only = only.map(|id| self.dataset_name(id));
        let jobs = self.jobs.iter().filter_map(|j| Some((j, self.show_job(now, &j.record.job).ok()?)));
        let jobs = jobs.filter(|(_, reply)| only.as_ref().is_none_or(|name| reply.datasets.contains(name)));
        jobs.map(|(job, reply)| JobStatus {
            job: reply.job,
            attempt: reply.attempt,
            name: reply.name,
            user: reply.user,
            state: reply.state,
            datasets: reply.datasets,
            nodes: reply.nodes,
            absent_nodes: reply.absent_nodes,
            asked_bytes: reply.asked_bytes,
            bytes: JobBytes {
                cache: reply.cache_bytes,
                origin: reply.origin_bytes,
                peer: reply.peer_bytes,
                shared: reply.shared_bytes,
            },
            waited_s: reply.waited_ms as f64 / 1e3,
            asked_at: timestamp(job.record.asked_unix_s),
            ended_at: job.record.ended_unix_s.map(timestamp),
            outcome: reply.outcome,
        })
        .collect()
    }

    fn stage_statuses(&self, now: Time, wanted: impl Fn(DatasetId) -> bool) -> Vec<StageStatus> {
        let known = self.stages.iter().filter(|(_, s)| wanted(s.dataset));
        known.filter_map(|(&id, stage)| self.stage_status(now, id, stage)).collect()
    }

    pub(crate) fn stage_status(&self, now: Time, id: StageId, stage: &Stage) -> Option<StageStatus> {
        let view = self.core.stage(id, now)?;
        let moved = view.bytes_ready.saturating_sub(view.bytes_found);
        let elapsed_s = seconds(view.elapsed_us);
        let bound_s = view.bound_us.map(seconds);
        let rate = moved as f64 / elapsed_s.max(0.001);
        let stalled_s = self.observed.paces.get(&id).map(|pace| seconds(now.since(pace.since)));
        let stalled_s = stalled_s.filter(|&s| s >= NO_ETA_AFTER_S);
        let lacking = view.lacking.iter().take(NAMED_IN_LIST).filter_map(|&n| self.core.replica(view.dataset, n));
        Some(StageStatus {
            id: stage.record.id,
            dataset: self.dataset_name(stage.dataset),
            nodes: stage.record.nodes.clone(),
            placement: match view.placement {
                Placement::Replicate => "replicate".into(),
                Placement::Window => "window".into(),
                Placement::Spread(r) => format!("spread={r}"),
            },
            priority: view.priority,
            state: view.state,
            bytes_total: view.bytes_total,
            bytes_ready: view.bytes_ready,
            nodes_lacking: view.lacking.len() as u32,
            lacking: lacking.map(|r| self.blocking(now, view.dataset, &r)).collect(),
            origin_bytes: view.origin_bytes,
            started_at: timestamp(stage.record.created_unix_s),
            counted_since: (stage.told_unix_s > stage.record.created_unix_s).then(|| timestamp(stage.told_unix_s)),
            elapsed_s,
            eta_s: view.eta_us.map(seconds).filter(|_| stalled_s.is_none()),
            bound_s,
            bound_by: view.bound_by,
            ratio_to_bound: bound_s.filter(|&b| b > 0.0).map(|b| elapsed_s / b),
            bytes_found: view.bytes_found,
            dataset_bytes: self.datasets.get(stage.dataset).map_or(0, |d| d.manifest.layout().bytes()),
            eta_basis: match (view.eta_us, stalled_s) {
                (Some(_), Some(s)) => format!("nothing has arrived for {s:.0} s"),
                (Some(_), None) => format!("{}/s on all nodes together since it began", format_size(rate as u64)),
                (None, _) if view.state == "running" => "nothing has arrived yet".into(),
                (None, _) => String::new(),
            },
        })
    }
}
