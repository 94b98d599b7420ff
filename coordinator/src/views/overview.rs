//! The overview: is everything where it shall be, and if not, why?

use std::collections::{BTreeMap, BTreeSet};

use millstream_types::size::{counted, format_size};
use millstream_types::{DatasetId, StageId, Time};
use serde::Serialize;
use utoipa::ToSchema;

use super::datasets::DatasetItem;
use super::{Page, Paging};
use crate::driver::State;
use crate::driver::state::unix_ms;
use crate::nodes::Moved;
use crate::observe::alarms::Alarm;
use crate::observe::events::{Event, Severity};
use crate::status::StageStatus;

/// Datasets and stages named on the overview; their own lists have all of them.
const FIRST: u32 = 20;

/// Everything at a glance.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Overview {
    /// When this was looked at, in milliseconds since 1970 (UTC).
    at_unix_ms: i64,
    coordinator: CoordinatorInfo,
    /// The answer in one sentence.
    headline: Headline,
    totals: Totals,
    /// What is wrong now, worst first.
    alarms: Vec<Alarm>,
    /// Those that are not ready first.
    datasets: Page<DatasetItem>,
    /// Those that run first, then the newest.
    stages: Page<StageStatus>,
}

/// The coordinator that answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct CoordinatorInfo {
    id: String,
    leader: bool,
    version: &'static str,
    /// Seconds since it began.
    uptime_s: u64,
    state_store: String,
}

/// One sentence.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Headline {
    /// `ok`, `waiting`, `warning`, `error` or `empty`.
    state: &'static str,
    text: String,
}

/// Sums over all nodes.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Totals {
    nodes: u32,
    nodes_up: u32,
    datasets: u32,
    stages_running: u32,
    used_bytes: u64,
    capacity_bytes: u64,
    /// Since this coordinator knows the nodes, by source.
    received_bytes: BySource,
    /// The same per second, over the last ten seconds.
    rate_bytes_per_s: BySource,
    /// Of what stages wanted, there already when they began.
    found_bytes: u64,
    /// Read from the origin since this coordinator began, over the bytes, of versions whose stages are shown: 1.0 is once
    /// per cluster. Absent without any.
    origin_over_dataset: Option<f64>,
    alarms: u32,
    alarms_error: u32,
}

/// Bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct BySource {
    pub(crate) origin: u64,
    pub(crate) rdma: u64,
    pub(crate) tcp: u64,
    /// Of shards that readers wanted and found in place.
    pub(crate) local: u64,
}

/// Bytes per second of all nodes together, by source, second by second.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Throughput {
    /// Between two samples.
    step_s: u32,
    /// By second since 1970: bytes per second from the origin, by RDMA, by TCP, and found in place by readers.
    samples: BTreeMap<String, [u64; 4]>,
}

impl State {
    pub(crate) fn overview(&self, now: Time) -> Overview {
        let first = Paging { limit: Some(FIRST), ..Paging::default() };
        let datasets = self.dataset_list(now, &first);
        let stages = self.stage_list(now, &first);
        let totals = self.totals(now, &stages);
        let alarms = self.observed.alarms.clone();
        Overview {
            at_unix_ms: unix_ms(),
            coordinator: CoordinatorInfo {
                id: self.settings.id.clone(),
                leader: true,
                version: env!("CARGO_PKG_VERSION"),
                uptime_s: now.0 / 1_000_000,
                state_store: self.store.description().to_owned(),
            },
            headline: headline(&totals, &alarms, &datasets.items),
            totals,
            alarms,
            datasets,
            stages,
        }
    }

    fn totals(&self, now: Time, stages: &Page<StageStatus>) -> Totals {
        let mut moved = Moved::default();
        let (mut used, mut capacity) = (0, 0);
        for node in self.nodes.iter().filter(|n| n.hello.is_some()) {
            moved = moved.plus(node.report.moved());
            used += node.report.used_bytes;
            capacity += node.report.capacity_bytes;
        }
        let views = self.core.nodes(now);
        let recent = self.observed.history.recent();
        // Of those shown: the newest ones say what happens now.
        let found = stages.items.iter().map(|s| s.bytes_found).sum();
        // A version that several stages want is wanted once from the origin.
        let versions: BTreeSet<DatasetId> =
            stages.items.iter().filter_map(|s| self.stages.get(&StageId(s.id))).map(|s| s.dataset).collect();
        let origin: u64 = versions.iter().map(|&d| self.core.origin_bytes(d)).sum();
        let bytes: u64 =
            versions.iter().filter_map(|&d| self.datasets.get(d)).map(|d| d.manifest.layout().bytes()).sum();
        let alarms = &self.observed.alarms;
        Totals {
            nodes: views.len() as u32,
            nodes_up: views.iter().filter(|v| v.state.as_str() == "up").count() as u32,
            datasets: self.datasets.len() as u32,
            stages_running: self.observed.paces.len() as u32,
            used_bytes: used,
            capacity_bytes: capacity,
            received_bytes: BySource {
                origin: moved.received_origin,
                rdma: moved.received_rdma,
                tcp: moved.received_tcp,
                local: moved.local_hits,
            },
            rate_bytes_per_s: BySource {
                origin: recent.origin as u64,
                rdma: recent.rdma as u64,
                tcp: recent.tcp as u64,
                local: recent.local as u64,
            },
            found_bytes: found,
            origin_over_dataset: (bytes > 0).then(|| origin as f64 / bytes as f64),
            alarms: alarms.len() as u32,
            alarms_error: alarms.iter().filter(|a| a.severity == Severity::Error).count() as u32,
        }
    }

    pub(crate) fn throughput(&self) -> Throughput {
        let samples = self.observed.history.samples().iter();
        let samples =
            samples.map(|(at, s)| (at.to_string(), [s.origin as u64, s.rdma as u64, s.tcp as u64, s.local as u64]));
        Throughput { step_s: 1, samples: samples.collect() }
    }

    /// Stages: those that run first, then the newest.
    pub(crate) fn stage_list(&self, now: Time, paging: &Paging) -> Page<StageStatus> {
        let running = |id: &StageId| self.observed.paces.contains_key(id);
        let all = self.stages.iter().filter(|(_, s)| paging.names(&self.dataset_name(s.dataset)));
        let mut found: Vec<_> = all.collect();
        found.sort_by_key(|(id, _)| (!running(id), std::cmp::Reverse(id.0)));
        if paging.state.as_deref().is_some_and(|s| !s.is_empty()) {
            let of_state = found.into_iter().filter_map(|(&id, s)| self.stage_status(now, id, s));
            let matched = of_state.filter(|s| paging.in_state(s.state)).collect();
            return paging.page(self.stages.len(), matched, |s| s);
        }
        let page = paging.page(self.stages.len(), found, |(&id, s)| self.stage_status(now, id, s));
        let Page { total, matched, offset, items } = page;
        Page { total, matched, offset, items: items.into_iter().flatten().collect() }
    }

    /// Events, newest first.
    pub(crate) fn event_list(&self, filter: &EventFilter) -> Page<Event> {
        let total = self.observed.events.newest().count();
        let matched: Vec<&Event> = self.observed.events.newest().filter(|e| filter.takes(e)).collect();
        filter.paging.page(total, matched, Clone::clone)
    }
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFilter {
    pub(crate) paging: Paging,
    pub(crate) severity: String,
    pub(crate) node: String,
    pub(crate) dataset: String,
}

impl EventFilter {
    fn takes(&self, event: &Event) -> bool {
        let is = |asked: &str, has: Option<&str>| asked.is_empty() || has == Some(asked);
        let severe = self.severity.is_empty() || self.severity.split(',').any(|s| s.trim() == event.severity.as_str());
        severe
            && is(&self.node, event.node.as_deref())
            && is(&self.dataset, event.dataset.as_deref())
            && self.paging.in_state(event.kind.as_str())
            && self.paging.names(&event.text)
    }
}

/// The answer to "is everything where it shall be?".
fn headline(totals: &Totals, alarms: &[Alarm], datasets: &[DatasetItem]) -> Headline {
    let waiting = datasets.iter().find(|d| matches!(d.verdict.state, "failed" | "staging"));
    let tail = |d: &DatasetItem| match d.verdict.waiting_for.first() {
        Some(b) if b.reason.is_empty() => format!("; waiting for {} ({})", b.node, b.state),
        Some(b) => format!("; waiting for {}: {}", b.node, b.reason),
        None => String::new(),
    };
    let (state, text) = match waiting {
        Some(d) if d.verdict.state == "failed" => ("error", format!("{} is {}{}", d.dataset, d.verdict.text, tail(d))),
        Some(d) => ("waiting", format!("{} is {}{}", d.dataset, d.verdict.text, tail(d))),
        None if totals.nodes == 0 => ("empty", "no agent has joined yet".to_owned()),
        None if totals.alarms_error > 0 => ("error", alarms.first().map(|a| a.text.clone()).unwrap_or_default()),
        None if datasets.is_empty() => ("empty", "no dataset is registered yet".to_owned()),
        None => {
            let staged = datasets.iter().any(|d| d.verdict.state == "ready");
            let used = format_size(totals.used_bytes);
            let place = counted(totals.nodes.into(), "node");
            let text = match staged {
                true => format!("everything that was staged is ready ({used} on {place})"),
                false => "nothing is staged".to_owned(),
            };
            match alarms.first() {
                Some(alarm) => ("warning", format!("{text}; {}", alarm.text)),
                None => (if staged { "ok" } else { "empty" }, text),
            }
        }
    };
    Headline { state, text }
}
