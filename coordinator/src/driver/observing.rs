//! Once a second: rates, alarms, and news that are told together. See [`crate::observe`].

use millstream_coordinator_core::event::{Event, Failure, FailureKind, Source};
use millstream_coordinator_core::view::ReplicaState;
use millstream_types::{Crc64, DatasetId, NodeId, RunSet, StageId, Time};

use super::State;
use super::state::{unix_ms, unix_s};
use crate::failure::named;
use crate::nodes::{FallbackKey, Moved, Node};
use crate::observe::Pace;
use crate::observe::alarms::{self, Facts, FallbackFacts, NodeFacts, StageFacts};
use crate::observe::events::{Kind, Severity, Telling};
use crate::observe::troubles::Trouble;

impl State {
    /// Looks, when it is time.
    pub(crate) fn observe(&mut self, now: Time) {
        if !self.observed.begin(now) {
            return;
        }
        let moved = self.nodes.iter().fold(Moved::default(), |sum, n| sum.plus(n.report.moved()));
        self.observed.history.take(now, unix_s(), moved);
        self.observed.links.sweep(now);
        self.keep_paces(now);
        self.tell_sealed();
        let mut raised = alarms::raise(&self.facts(now));
        let before = std::mem::take(&mut self.observed.raised);
        for alarm in &mut raised {
            alarm.since_unix_s = before.get(&alarm.id).copied().unwrap_or_else(unix_s);
            self.observed.raised.insert(alarm.id.clone(), alarm.since_unix_s);
        }
        self.observed.alarms = raised;
    }

    /// Since when is each running stage no further?
    fn keep_paces(&mut self, now: Time) {
        let running: Vec<StageId> = self.core.running_stages().collect();
        self.observed.paces.retain(|id, _| running.binary_search(id).is_ok());
        for id in running {
            let bytes_ready = self.core.stage(id, now).map_or(0, |v| v.bytes_ready);
            let pace = self.observed.paces.entry(id).or_insert(Pace { bytes_ready, since: now });
            if pace.bytes_ready != bytes_ready {
                *pace = Pace { bytes_ready, since: now };
            }
        }
    }

    fn facts(&self, now: Time) -> Facts {
        let stages = self.observed.paces.iter().filter_map(|(id, pace)| {
            let stage = self.stages.get(id)?;
            let waits = stage.nodes.iter().find_map(|&node| {
                let view = self.core.replica(stage.dataset, node).filter(|v| v.state != ReplicaState::Ready)?;
                Some(format!("{}: {}", self.nodes.name(node), self.why_waiting(now, stage.dataset, &view)))
            });
            Some(StageFacts {
                id: id.0,
                dataset: self.dataset_name(stage.dataset),
                stalled_s: now.since(pace.since) as f64 / 1e6,
                waits_for: waits.unwrap_or_default(),
            })
        });
        let failed = self.datasets.iter().filter_map(|d| {
            let failures = self.core.failures(d.id);
            let first = failures.first()?;
            Some((d.record.name.to_string(), failures.len(), self.shard_failure_words(d.id, first)))
        });
        let refusals = self.refusals.iter();
        let refusals = refusals.map(|((dataset, node), (_, reason))| {
            (self.dataset_name(*dataset), self.nodes.name(*node).to_owned(), reason.clone())
        });
        Facts {
            nodes: self.nodes.iter().filter(|n| n.hello.is_some()).map(|n| self.node_facts(now, n)).collect(),
            stages: stages.collect(),
            refusals: refusals.collect(),
            failed_shards: failed.collect(),
        }
    }

    fn node_facts(&self, now: Time, node: &Node) -> NodeFacts {
        let view = self.core.node(node.id, now);
        let report = &node.report;
        let recent = |at: &Time| now.since(*at) < self.settings.alarm_hold_us;
        let fallbacks = report.fallbacks.iter().map(|(key, &count)| {
            let (from, to, reason) = key.clone();
            // How its disk is used is decided once, when its process starts.
            let standing = matches!(from.as_str(), "uring" | "direct");
            let stands = node.session.is_some() && (standing || report.fell_back_at.get(key).is_some_and(recent));
            FallbackFacts { from, to, reason, count, stands }
        });
        let waiting = self.observed.paces.keys().filter_map(|id| self.stages.get(id));
        let mut waiting = waiting.filter(|s| s.nodes.contains(&node.id));
        let busy = view.as_ref().is_some_and(|v| v.outstanding_bytes > 0);
        NodeFacts {
            name: node.name.clone(),
            state: view.as_ref().map_or("down", |v| v.state.as_str()),
            silent_s: now.since(node.last_seen) as f64 / 1e6,
            wanted_by: waiting.next().map(|s| self.dataset_name(s.dataset)),
            used_bytes: report.used_bytes,
            capacity_bytes: report.capacity_bytes,
            quarantined_s: view.as_ref().map_or(0.0, |v| v.quarantined_us as f64 / 1e6),
            avoided_as_slow: view.as_ref().is_some_and(|v| v.avoided_as_slow),
            in_bytes_per_s: view.as_ref().map_or(0.0, |v| v.in_bytes_per_s),
            busy,
            fallbacks: fallbacks.collect(),
            checksum_failures: report.moved().checksum_failures,
            checksum_recent: report.checksum_failed_at.as_ref().is_some_and(recent),
            last_error: report.last_errors.last().map(|(text, _)| text.clone()).unwrap_or_default(),
        }
    }

    /// A node says that it sealed shards: what was lost is repaired, and a version may be complete there.
    pub(super) fn shards_sealed(&mut self, now: Time, node: NodeId, dataset: DatasetId, shards: RunSet) {
        for shard in self.observed.repaired(dataset, node, &shards) {
            self.tell_shard(Kind::Repaired, node, dataset, shard, "repaired");
        }
        let ready = |state: &State| state.core.replica(dataset, node).is_some_and(|r| r.state == ReplicaState::Ready);
        let before = ready(self);
        self.core.handle_event(now, Event::ShardsSealed { node, dataset, shards });
        if !before && ready(self) {
            self.observed.sealed.entry(dataset).or_default().push(node);
        }
    }

    /// Bytes did not match: remembered with what was done about it. Other failures are no trouble of a shard.
    pub(super) fn wrong_bytes(&mut self, node: NodeId, dataset: DatasetId, failure: &Failure, done: &'static str) {
        let layout = self.datasets.get(dataset).map(|d| d.manifest.layout());
        let place = failure.piece.and_then(|piece| layout?.get(piece));
        let (FailureKind::Checksum, Some(place)) = (failure.kind, place) else { return };
        let words = |crc: Option<Crc64>| crc.map(|c| c.to_string()).unwrap_or_default();
        let trouble = Trouble {
            piece: failure.piece,
            expected: words(failure.expected),
            actual: words(failure.actual),
            source: Some(failure.source),
            detail: failure.detail.clone(),
            done,
            ..self.trouble(node, dataset, place.shard)
        };
        self.observed.troubles.push(trouble);
    }

    /// All pieces of a shard matched, and the whole is not what the origin says.
    pub(super) fn not_whole(&mut self, node: NodeId, dataset: DatasetId, shard: u32, [expected, actual]: [&str; 2]) {
        let trouble = Trouble {
            expected: expected.to_owned(),
            actual: actual.to_owned(),
            source: Some(Source::Origin),
            detail: "the whole shard is not what the origin says".into(),
            done: "thrown away on every node and read again by other nodes",
            ..self.trouble(node, dataset, shard)
        };
        self.observed.troubles.push(trouble);
    }

    /// A shard that was visible turned out bad on the node's disk.
    pub(super) fn on_disk(&mut self, node: NodeId, dataset: DatasetId, shard: u32, reason: &str) {
        let trouble = Trouble {
            detail: reason.to_owned(),
            done: "taken out of sight on that node and fetched again",
            ..self.trouble(node, dataset, shard)
        };
        self.observed.troubles.push(trouble);
    }

    fn trouble(&self, node: NodeId, dataset: DatasetId, shard: u32) -> Trouble {
        Trouble {
            at_unix_ms: unix_ms(),
            dataset,
            node,
            shard,
            piece: None,
            expected: String::new(),
            actual: String::new(),
            source: None,
            detail: String::new(),
            done: "",
        }
    }

    fn tell_sealed(&mut self) {
        for (dataset, nodes) in std::mem::take(&mut self.observed.sealed) {
            let names = self.names(&nodes);
            let name = self.dataset_name(dataset);
            let telling = Telling::new(Kind::Sealed, Severity::Info, format!("{name} is ready on {}", named(&names)));
            let telling = telling.dataset(name);
            self.tell(match &names[..] {
                [only] => telling.node(only),
                _ => telling,
            });
        }
    }

    pub(super) fn tell_fallbacks(&mut self, node: NodeId, fallbacks: Vec<FallbackKey>) {
        let name = self.nodes.name(node).to_owned();
        for (from, to, reason) in fallbacks {
            let text = format!("{name} uses {to} instead of {from}: {reason}");
            self.tell(Telling::new(Kind::FellBack, Severity::Warning, text).node(&name));
        }
    }
}
