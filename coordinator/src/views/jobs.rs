//! Jobs of a batch scheduler: what they want, and what they wait for.
//!
//! What is remembered of a job comes from [`crate::jobs`]; this module adds where its data is.

use millstream_coordinator_core::view::ReplicaState;
use millstream_types::Time;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Blocking, Page, Paging};
use crate::driver::State;

/// Nodes named for one dataset of one job.
const NAMED: usize = 8;

/// A job as its scheduler's part of the coordinator knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobFacts {
    /// `cluster/number`.
    pub(crate) job: String,
    pub(crate) name: String,
    pub(crate) user: String,
    /// It ended, and how.
    pub(crate) ended: Option<String>,
    /// `name@version` and the nodes that it wants it on.
    pub(crate) wants: Vec<(String, Vec<String>)>,
    /// When it asked, in seconds since 1970.
    pub(crate) asked_unix_s: i64,
}

/// A job and what it waits for.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    /// `cluster/number`.
    job: String,
    name: String,
    user: String,
    /// `waiting`, `ready`, `failed` or `ended`.
    state: &'static str,
    /// Why it waits, in one sentence.
    reason: String,
    asked_unix_s: i64,
    datasets: Vec<JobDataset>,
}

/// A version that a job wants.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct JobDataset {
    /// `name@version`.
    dataset: String,
    nodes_wanted: u32,
    nodes_ready: u32,
    /// The first of the nodes that it waits for.
    blocking: Vec<Blocking>,
}

impl State {
    /// Jobs that are known.
    fn job_facts(&self) -> Vec<JobFacts> {
        let facts = self.jobs.iter().map(|job| {
            let record = &job.record;
            let wants = record.wants.iter().map(|w| (w.dataset.to_string(), w.nodes.clone()));
            JobFacts {
                job: record.job.clone(),
                name: record.name.clone(),
                user: record.user.clone(),
                ended: record.ended_unix_s.map(|_| record.outcome.clone()),
                wants: wants.collect(),
                asked_unix_s: record.asked_unix_s,
            }
        });
        facts.collect()
    }

    /// Jobs, those that wait first.
    pub(crate) fn job_list(&self, now: Time, paging: &Paging) -> Page<Job> {
        self.jobs_of(now, self.job_facts(), paging)
    }

    fn jobs_of(&self, now: Time, facts: Vec<JobFacts>, paging: &Paging) -> Page<Job> {
        let total = facts.len();
        let named = |f: &JobFacts| paging.names(&f.job) || paging.names(&f.name) || paging.names(&f.user);
        let jobs = facts.into_iter().filter(named).map(|f| self.job(now, f));
        let mut matched: Vec<Job> = jobs.filter(|j| paging.in_state(j.state)).collect();
        matched.sort_by_key(|j| (j.state == "ended", j.state == "ready", std::cmp::Reverse(j.asked_unix_s)));
        paging.page(total, matched, |j| j)
    }

    fn job(&self, now: Time, facts: JobFacts) -> Job {
        let datasets: Vec<JobDataset> = facts.wants.iter().map(|(d, nodes)| self.job_dataset(now, d, nodes)).collect();
        let blocked = datasets.iter().find_map(|d| Some((d, d.blocking.first()?)));
        let failed = datasets.iter().any(|d| d.blocking.iter().any(|b| b.state == "failed"));
        let (state, reason) = match (facts.ended, blocked) {
            (Some(how), _) => ("ended", how),
            (None, None) => ("ready", String::new()),
            (None, Some((d, b))) => {
                let reason = format!(
                    "{} is ready on {} of {} nodes; {}: {}",
                    d.dataset, d.nodes_ready, d.nodes_wanted, b.node, b.reason
                );
                (if failed { "failed" } else { "waiting" }, reason)
            }
        };
        Job {
            job: facts.job,
            name: facts.name,
            user: facts.user,
            state,
            reason,
            asked_unix_s: facts.asked_unix_s,
            datasets,
        }
    }

    fn job_dataset(&self, now: Time, dataset: &str, nodes: &[String]) -> JobDataset {
        let id = self.select(dataset).ok().map(|d| d.id);
        let mut out = JobDataset {
            dataset: dataset.to_owned(),
            nodes_wanted: nodes.len() as u32,
            nodes_ready: 0,
            blocking: Vec::new(),
        };
        for name in nodes {
            let unknown = |reason: &str| Blocking {
                node: name.clone(),
                state: ReplicaState::Absent.as_str(),
                reason: reason.to_owned(),
                bytes_ready: 0,
                bytes_wanted: 0,
            };
            let blocking = match (id, self.nodes.find(name)) {
                (None, _) => unknown("the version is not in the catalog any more"),
                (_, None) => unknown("its agent has never joined"),
                (Some(id), Some(node)) => match self.core.replica(id, node.id) {
                    Some(view) if view.state == ReplicaState::Ready => {
                        out.nodes_ready += 1;
                        continue;
                    }
                    Some(view) => self.blocking(now, id, &view),
                    None => unknown("its agent has not joined yet"),
                },
            };
            if out.blocking.len() < NAMED {
                out.blocking.push(blocking);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use millstream_coordinator_core::event::{Event, NodeInfo, Placement};
    use millstream_types::{Manifest, RunSet, ShardEntry, StageId};

    use super::*;
    use crate::store::{EmbeddedStore, StoreHandle, VersionRecord};

    const GONE: &str = "gone@v1";

    /// One version of two shards, ready on n0, wanted and not there on n1.
    fn state(dir: &std::path::Path) -> State {
        let (store, _thread) = StoreHandle::start(EmbeddedStore::open(dir).unwrap()).unwrap();
        let settings = crate::driver::state::Settings {
            id: "test".into(),
            heartbeat_ms: 1_000,
            node_timeout_us: 1,
            alarm_hold_us: 1,
        };
        let core = millstream_coordinator_core::Core::new(millstream_coordinator_core::CoreConfig::default());
        let mut state = State::new(settings, core, store);
        let shard = |key: &str| ShardEntry {
            key: key.parse().unwrap(),
            len: 10,
            etag: None,
            version_id: None,
            checksum: None,
            piece_crcs: Some(vec![millstream_types::Crc64(7)]),
        };
        let kind = millstream_types::DatasetKind::Dataset;
        let shards = vec![shard("a"), shard("b")];
        let manifest = Manifest::new("d@v1".parse().unwrap(), kind, "file:///d".into(), 65536, shards).unwrap();
        let name = manifest.name().clone();
        let record = VersionRecord { name, sequence: 0, created_unix_s: 0, indexed: true };
        let dataset = state.restore_version(Time(0), record, manifest.into(), Vec::new());
        let nodes: Vec<_> = ["n0", "n1"].map(|n| state.know_node(Time(0), n)).into();
        let placement = Placement::Replicate;
        let stage = StageId(1);
        state.event(Time(1), Event::StageRequested { stage, dataset, nodes: nodes.clone(), placement, priority: 0 });
        let info = NodeInfo { name: "n0".into(), capacity_bytes: 1 << 40, ..NodeInfo::default() };
        state.event(Time(2), Event::NodeUp { node: nodes[0], info });
        let all = RunSet::from_range(0..2);
        state.event(Time(3), Event::Inventory { node: nodes[0], dataset, pieces: all.clone(), sealed: all });
        state
    }

    fn job(job: &str, wants: &[(&str, &[&str])], asked_unix_s: i64) -> JobFacts {
        let wants = wants.iter().map(|(d, n)| ((*d).to_owned(), n.iter().map(|n| (*n).to_owned()).collect()));
        JobFacts { job: job.into(), wants: wants.collect(), asked_unix_s, ..JobFacts::default() }
    }

    #[test]
    fn a_job_waits_for_named_nodes_with_reasons() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path());
        let jobs = vec![
            job("c/1", &[("d@v1", &["n0"])], 1),
            job("c/2", &[("d@v1", &["n0", "n1"])], 2),
            job("c/3", &[(GONE, &["n0"])], 3),
            JobFacts { ended: Some("cancelled".into()), ..job("c/4", &[], 4) },
            job("c/5", &[("d@v1", &["stranger"])], 5),
        ];
        let page = state.jobs_of(Time(4), jobs.clone(), &Paging::default());
        let found: Vec<_> = page.items.iter().map(|j| (j.job.as_str(), j.state, j.reason.as_str())).collect();
        assert_eq!(
            found,
            [
                ("c/5", "waiting", "d@v1 is ready on 0 of 1 nodes; stranger: its agent has never joined"),
                ("c/3", "waiting", "gone@v1 is ready on 0 of 1 nodes; n0: the version is not in the catalog any more"),
                ("c/2", "waiting", "d@v1 is ready on 1 of 2 nodes; n1: the node has not joined yet"),
                ("c/1", "ready", ""),
                ("c/4", "ended", "cancelled"),
            ]
        );
        let paging = Paging { state: Some("waiting".into()), q: Some("c/2".into()), ..Paging::default() };
        let page = state.jobs_of(Time(4), jobs, &paging);
        assert_eq!((page.total, page.matched, page.items[0].datasets[0].nodes_ready), (5, 1, 1));
    }

    #[test]
    fn a_verdict_counts_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path());
        let dataset = state.select("d@v1").unwrap().id;
        let verdict = state.verdict(Time(4), dataset, 5);
        assert_eq!((verdict.state, verdict.text.as_str()), ("staging", "ready on 1 of 2 nodes"));
        let named: Vec<_> = verdict.waiting_for.iter().map(|b| (b.node.as_str(), b.reason.as_str())).collect();
        assert_eq!(named, [("n1", "the node has not joined yet")]);
    }
}
