//! `/metrics`: rendered from the state when asked, so nothing global has to be installed.

use std::collections::BTreeMap;

use metrics::{Label, counter, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use millstream_coordinator_core::view::Counters;
use millstream_types::Time;

use crate::driver::State;
use crate::driver::state::ShellCounters;
use crate::jobs::Totals;
use crate::nodes::Moved;

/// All metrics of the coordinator: name, labels, help. Mirrored in `docs/metrics.md`.
pub(crate) const METRICS: [(&str, &[&str], &str); 25] = [
    ("millstream_build_info", &["version"], "Constant 1; the version is a label."),
    ("millstream_nodes", &["state"], "Nodes by state."),
    ("millstream_assignments_total", &[], "Assignments handed out."),
    ("millstream_assignments_ended_total", &["outcome"], "Assignments that ended, by outcome."),
    ("millstream_origin_leases_total", &[], "Assignments that are leases on the origin."),
    ("millstream_leases_expired_total", &[], "Origin leases that ran out."),
    ("millstream_requeues_total", &[], "Extents that were handed out again."),
    ("millstream_quarantines_total", &[], "Times that a source was put in quarantine."),
    ("millstream_disputes_total", &[], "Rounds of doubt about what was read of a shard."),
    ("millstream_shards_failed_total", &[], "Shards that failed for good."),
    ("millstream_shards_dropped_total", &[], "Shards dropped behind readers."),
    ("millstream_copies_handed_over_total", &[], "Last copies that moved to a node with room."),
    ("millstream_cluster_received_bytes_total", &["source"], "Bytes received by all agents, by source."),
    ("millstream_cluster_sent_bytes_total", &["transport"], "Bytes sent by all agents, by transport."),
    ("millstream_cluster_checksum_failures_total", &[], "Checksum failures at all agents."),
    ("millstream_cluster_fallbacks", &["from", "to"], "Fallbacks at all agents that run, by kind."),
    ("millstream_datasets", &[], "Versions in the catalog."),
    ("millstream_stages", &["state"], "Stages by state."),
    ("millstream_indexes_unused_total", &["reason"], "Indexes beside data that a registration left aside, by reason."),
    ("millstream_jobs", &["state"], "Jobs of batch schedulers that are remembered, by state."),
    ("millstream_job_bytes_total", &["source"], "Bytes that jobs got, by where they came from."),
    ("millstream_job_waits_total", &[], "Jobs whose data became ready on all their nodes."),
    ("millstream_job_wait_seconds_total", &[], "Seconds that those jobs waited after they were allocated."),
    ("millstream_alarms", &["kind", "severity"], "Alarms that stand, by kind and severity."),
    ("millstream_coordinator_dropped_total", &["kind"], "What the coordinator refused or ended, by kind."),
];

/// What is read of the state under the driver; rendering happens outside.
pub(crate) struct Sample {
    nodes: BTreeMap<&'static str, u32>,
    stages: BTreeMap<&'static str, u32>,
    jobs: BTreeMap<&'static str, u32>,
    job_totals: Totals,
    datasets: usize,
    core: Counters,
    shell: ShellCounters,
    moved: Moved,
    fallbacks: BTreeMap<(String, String), u64>,
    alarms: BTreeMap<(&'static str, &'static str), u32>,
}

impl Sample {
    pub(crate) fn take(state: &mut State, now: Time) -> Sample {
        let mut nodes = BTreeMap::from([("up", 0), ("suspect", 0), ("down", 0)]);
        for view in state.core.nodes(now) {
            *nodes.entry(view.state.as_str()).or_default() += 1;
        }
        let mut stages = BTreeMap::from([("running", 0), ("done", 0), ("failed", 0)]);
        for view in state.core.stages(now) {
            *stages.entry(view.state).or_default() += 1;
        }
        let mut jobs = BTreeMap::from([("pending", 0), ("staging", 0), ("ready", 0), ("ended", 0)]);
        for job in state.jobs.iter() {
            *jobs.entry(job.state()).or_default() += 1;
        }
        let mut moved = Moved::default();
        let mut fallbacks = BTreeMap::new();
        for node in state.nodes.iter() {
            moved = moved.plus(node.report.moved());
            // Reasons are words of agents: unbounded, so they are no label here (status has them).
            for ((from, to, _), count) in &node.report.fallbacks {
                *fallbacks.entry((from.clone(), to.clone())).or_default() += count;
            }
        }
        let mut alarms = BTreeMap::new();
        for alarm in &state.observed.alarms {
            *alarms.entry((alarm.kind, alarm.severity.as_str())).or_default() += 1;
        }
        Sample {
            nodes,
            stages,
            jobs,
            job_totals: state.jobs.totals,
            datasets: state.datasets.len(),
            core: state.core.counters(),
            shell: state.counters,
            moved,
            fallbacks,
            alarms,
        }
    }

    /// As Prometheus text.
    pub(crate) fn render(&self) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            for (name, _, help) in METRICS {
                if name.ends_with("_total") {
                    metrics::describe_counter!(name, help);
                } else {
                    metrics::describe_gauge!(name, help);
                }
            }
            self.record();
        });
        handle.render()
    }

    fn record(&self) {
        gauge!("millstream_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        for (&state, &count) in &self.nodes {
            gauge!("millstream_nodes", "state" => state).set(count);
        }
        for (&state, &count) in &self.stages {
            gauge!("millstream_stages", "state" => state).set(count);
        }
        for (&state, &count) in &self.jobs {
            gauge!("millstream_jobs", "state" => state).set(count);
        }
        let jobs = &self.job_totals;
        let sources = [
            ("cache", jobs.cache_bytes),
            ("origin", jobs.origin_bytes),
            ("peer", jobs.peer_bytes),
            ("shared", jobs.shared_bytes),
        ];
        for (source, bytes) in sources {
            counter!("millstream_job_bytes_total", "source" => source).absolute(bytes);
        }
        counter!("millstream_job_waits_total").absolute(jobs.ready);
        counter!("millstream_job_wait_seconds_total").absolute(jobs.waited_ms / 1_000);
        gauge!("millstream_datasets").set(self.datasets as f64);
        let core = &self.core;
        counter!("millstream_assignments_total").absolute(core.assignments);
        let ended = [("done", core.done), ("failed", core.failed)];
        for (outcome, count) in ended {
            counter!("millstream_assignments_ended_total", "outcome" => outcome).absolute(count);
        }
        counter!("millstream_origin_leases_total").absolute(core.origin_leases);
        counter!("millstream_leases_expired_total").absolute(core.leases_expired);
        counter!("millstream_requeues_total").absolute(core.requeues);
        counter!("millstream_quarantines_total").absolute(core.quarantines);
        counter!("millstream_disputes_total").absolute(core.disputes);
        counter!("millstream_shards_failed_total").absolute(core.shards_failed);
        counter!("millstream_shards_dropped_total").absolute(core.dropped);
        counter!("millstream_copies_handed_over_total").absolute(core.handed_over);
        let moved = &self.moved;
        let received = [("origin", moved.received_origin), ("rdma", moved.received_rdma), ("tcp", moved.received_tcp)];
        for (source, bytes) in received {
            counter!("millstream_cluster_received_bytes_total", "source" => source).absolute(bytes);
        }
        for (transport, bytes) in [("rdma", moved.sent_rdma), ("tcp", moved.sent_tcp)] {
            counter!("millstream_cluster_sent_bytes_total", "transport" => transport).absolute(bytes);
        }
        counter!("millstream_cluster_checksum_failures_total").absolute(moved.checksum_failures);
        for ((from, to), &count) in &self.fallbacks {
            let labels = vec![Label::new("from", from.clone()), Label::new("to", to.clone())];
            gauge!("millstream_cluster_fallbacks", labels).set(count as f64);
        }
        for (&(kind, severity), &count) in &self.alarms {
            gauge!("millstream_alarms", "kind" => kind, "severity" => severity).set(count);
        }
        let shell = &self.shell;
        for (reason, count) in [("stale", shell.stale_indexes), ("damaged", shell.damaged_indexes)] {
            counter!("millstream_indexes_unused_total", "reason" => reason).absolute(count);
        }
        let dropped =
            [("message", shell.refused_messages), ("slow-session", shell.overflows), ("agent", shell.refused_sessions)];
        for (kind, count) in dropped {
            counter!("millstream_coordinator_dropped_total", "kind" => kind).absolute(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, labels and kinds of the metrics under a heading of `docs/metrics.md`.
    fn documented(heading: &str) -> BTreeMap<String, (String, Vec<String>)> {
        let text = include_str!("../../../docs/metrics.md");
        let (_, section) = text.split_once(heading).expect("the heading");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|l| l.starts_with("| `millstream_"));
        let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (ticked(cells[1]).remove(0), (cells[2].to_owned(), ticked(cells[3])))
        };
        rows.map(row).collect()
    }

    #[test]
    fn the_page_and_the_constants_say_the_same() {
        let ours = METRICS.map(|(name, labels, _)| {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            (name.to_owned(), (kind.to_owned(), labels.iter().map(|&l| l.to_owned()).collect()))
        });
        assert_eq!(documented("\n## Coordinator\n"), BTreeMap::from(ours));
    }
}
