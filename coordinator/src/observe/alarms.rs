//! What is wrong now: from facts to alarms, without looking anywhere else.

use millstream_types::size::counted;
use serde::Serialize;
use utoipa::ToSchema;

use super::events::Severity;
use crate::limits::{ALARMS_PER_KIND_MAX, DISK_NEAR_FULL, SLOW_NODES_MIN, SLOW_SHARE, STALLED_AFTER_S};

/// Something is wrong now.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Alarm {
    /// The same for as long as it stands.
    pub(crate) id: String,
    /// How bad.
    pub(crate) severity: Severity,
    /// What kind: `node-down`, `node-silent`, `node-slow`, `quarantined`, `fallback`, `checksum`, `disk-near-quota`,
    /// `refused`, `shards-failed`, `stage-stalled` or `more`.
    pub(crate) kind: &'static str,
    /// The thing and the reason.
    pub(crate) text: String,
    /// What to do.
    pub(crate) next: String,
    /// Since when, in seconds since 1970.
    pub(crate) since_unix_s: i64,
    /// The node, where it is about one.
    pub(crate) node: Option<String>,
    /// `name@version`, where it is about one.
    pub(crate) dataset: Option<String>,
}

impl Alarm {
    fn new(kind: &'static str, severity: Severity, about: &str, text: String, next: impl Into<String>) -> Alarm {
        let id = format!("{kind}:{about}");
        Alarm { id, severity, kind, text, next: next.into(), since_unix_s: 0, node: None, dataset: None }
    }

    fn node(mut self, node: &str) -> Alarm {
        self.node = Some(node.to_owned());
        self
    }

    fn dataset(mut self, dataset: &str) -> Alarm {
        self.dataset = Some(dataset.to_owned());
        self
    }
}

/// A way that a node took instead of the best one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FallbackFacts {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) reason: String,
    pub(crate) count: u64,
    /// It happened within the time that an alarm is held, or it is how the node works now.
    pub(crate) stands: bool,
}

/// What alarms need to know of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    /// Since it was heard last.
    pub(crate) silent_s: f64,
    /// A running stage that wants something there.
    pub(crate) wanted_by: Option<String>,
    pub(crate) used_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) quarantined_s: f64,
    pub(crate) avoided_as_slow: bool,
    /// Receiving while busy, measured; zero: not measured.
    pub(crate) in_bytes_per_s: f64,
    /// Orders are outstanding.
    pub(crate) busy: bool,
    pub(crate) fallbacks: Vec<FallbackFacts>,
    pub(crate) checksum_failures: u64,
    /// Some came within the time that an alarm is held.
    pub(crate) checksum_recent: bool,
    pub(crate) last_error: String,
}

/// What alarms need to know of a stage that runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct StageFacts {
    pub(crate) id: u64,
    pub(crate) dataset: String,
    pub(crate) stalled_s: f64,
    /// The first of the nodes that it waits for, with the reason.
    pub(crate) waits_for: String,
}

/// Everything that alarms are made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) nodes: Vec<NodeFacts>,
    pub(crate) stages: Vec<StageFacts>,
    /// Version, node, reason.
    pub(crate) refusals: Vec<(String, String, String)>,
    /// Version, how many, the first in words.
    pub(crate) failed_shards: Vec<(String, usize, String)>,
}

/// The alarms that follow from the facts, worst first.
pub(crate) fn raise(facts: &Facts) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for (dataset, count, first) in &facts.failed_shards {
        let text = format!("{} of {dataset} failed: {first}", counted(*count as u64, "shard"));
        let next = format!("look at the failures of {dataset}; mend the origin, then: millstream stage {dataset}");
        alarms.push(Alarm::new("shards-failed", Severity::Error, dataset, text, next).dataset(dataset));
    }
    for (dataset, node, reason) in &facts.refusals {
        let text = format!("{node} cannot take {dataset}: {reason}");
        let next =
            format!("make room on {node} (millstream evict …, a larger --capacity), then: millstream stage {dataset}");
        let about = format!("{dataset}:{node}");
        alarms.push(Alarm::new("refused", Severity::Error, &about, text, next).node(node).dataset(dataset));
    }
    for stage in facts.stages.iter().filter(|s| s.stalled_s >= STALLED_AFTER_S) {
        let dataset = &stage.dataset;
        let waits = if stage.waits_for.is_empty() { "no reason known" } else { &stage.waits_for };
        let text = format!("{dataset} (stage {}) got no byte for {:.0} s: {waits}", stage.id, stage.stalled_s);
        let next = format!("millstream wait {dataset} --nodes all --timeout 1s names every node that is missing");
        alarms.push(Alarm::new("stage-stalled", Severity::Error, &stage.id.to_string(), text, next).dataset(dataset));
    }
    let median = median_rate(&facts.nodes);
    for node in &facts.nodes {
        of_node(node, median, &mut alarms);
    }
    alarms.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.id.cmp(&b.id)));
    shorten(alarms)
}

/// Median of what busy nodes receive; zero while too few are measured to say what is normal.
fn median_rate(nodes: &[NodeFacts]) -> f64 {
    let mut rates: Vec<f64> = nodes.iter().map(|n| n.in_bytes_per_s).filter(|&r| r > 0.0).collect();
    if rates.len() < SLOW_NODES_MIN {
        return 0.0;
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn of_node(node: &NodeFacts, median: f64, alarms: &mut Vec<Alarm>) {
    let name = node.name.as_str();
    let mut raise = |kind, severity, about: &str, text: String, next: String| {
        alarms.push(Alarm::new(kind, severity, about, text, next).node(name));
    };
    if node.state != "up" {
        let (kind, severity) = match (node.state, &node.wanted_by) {
            ("down", Some(_)) => ("node-down", Severity::Error),
            ("down", None) => ("node-down", Severity::Warning),
            _ => ("node-silent", Severity::Warning),
        };
        let waits = node.wanted_by.as_ref().map(|d| format!("; {d} waits for it")).unwrap_or_default();
        let text = format!("{name} is {}: not heard of for {:.0} s{waits}", node.state, node.silent_s);
        raise(
            kind,
            severity,
            name,
            text,
            format!("on {name}: is the agent running, and does it reach the coordinator?"),
        );
    }
    if node.capacity_bytes > 0 && node.used_bytes as f64 >= DISK_NEAR_FULL * node.capacity_bytes as f64 {
        let share = 100.0 * node.used_bytes as f64 / node.capacity_bytes as f64;
        let text = format!("{name} has used {share:.0} % of its quota");
        raise(
            "disk-near-quota",
            Severity::Warning,
            name,
            text,
            format!("millstream evict NAME@V --nodes {name}, or a larger --capacity"),
        );
    }
    if node.quarantined_s > 0.0 {
        let text = format!(
            "{name} is avoided as a source for {:.0} s more: others got bad bytes or no answer from it",
            node.quarantined_s
        );
        raise(
            "quarantined",
            Severity::Warning,
            name,
            text,
            format!("look at the errors of {name} and of those that read from it"),
        );
    } else if node.avoided_as_slow {
        let text = format!("{name} sends much slower than others and is avoided as a source");
        raise("node-slow", Severity::Warning, name, text, format!("check the link, disk and load of {name}"));
    } else if node.busy && node.in_bytes_per_s > 0.0 && node.in_bytes_per_s < SLOW_SHARE * median {
        let percent = 100.0 * node.in_bytes_per_s / median;
        let text = format!("{name} receives at {percent:.0} % of the median rate");
        raise("node-slow", Severity::Warning, name, text, format!("check the link, disk and load of {name}"));
    }
    if node.checksum_recent {
        let why = if node.last_error.is_empty() { String::new() } else { format!("; last error: {}", node.last_error) };
        let text = format!(
            "{name} received bytes that did not match their checksum, {} since it started{why}",
            counted(node.checksum_failures, "time")
        );
        raise(
            "checksum",
            Severity::Error,
            name,
            text,
            "nothing bad became visible; the events name the sources: check their disks and memory".into(),
        );
    }
    for f in node.fallbacks.iter().filter(|f| f.stands) {
        let text = format!("{name} uses {} instead of {}: {} ({})", f.to, f.from, f.reason, counted(f.count, "time"));
        raise(
            "fallback",
            Severity::Warning,
            &format!("{name}:{}:{}", f.from, f.to),
            text,
            format!("millstream doctor on {name} says what is missing"),
        );
    }
}

/// A thousand nodes with the same trouble are one line more, not a thousand.
fn shorten(alarms: Vec<Alarm>) -> Vec<Alarm> {
    let mut counts = std::collections::BTreeMap::<&'static str, usize>::new();
    let mut kept = Vec::new();
    for alarm in alarms {
        let count = counts.entry(alarm.kind).or_default();
        *count += 1;
        if *count <= ALARMS_PER_KIND_MAX {
            kept.push(alarm);
        }
    }
    for (kind, count) in counts.into_iter().filter(|(_, n)| *n > ALARMS_PER_KIND_MAX) {
        let text = format!("and {} more of kind {kind}", count - ALARMS_PER_KIND_MAX);
        kept.push(Alarm::new("more", Severity::Warning, kind, text, "the nodes' list shows all of them"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(facts: &Facts) -> Vec<(&'static str, Severity)> {
        raise(facts).iter().map(|a| (a.kind, a.severity)).collect()
    }

    fn up(name: &str) -> NodeFacts {
        NodeFacts { name: name.into(), state: "up", capacity_bytes: 100, ..NodeFacts::default() }
    }

    #[test]
    fn a_healthy_cluster_has_none() {
        assert_eq!(raise(&Facts { nodes: vec![up("a"), up("b")], ..Facts::default() }), []);
    }

    #[test]
    fn each_trouble_raises_its_own_and_goes_with_it() {
        type Trouble = Box<dyn Fn(&mut Facts)>;
        let cases: Vec<(&'static str, Severity, Trouble)> = vec![
            ("node-silent", Severity::Warning, Box::new(|f| f.nodes[0].state = "suspect")),
            ("node-down", Severity::Warning, Box::new(|f| f.nodes[0].state = "down")),
            (
                "node-down",
                Severity::Error,
                Box::new(|f| (f.nodes[0].state, f.nodes[0].wanted_by) = ("down", Some("d@v1".into()))),
            ),
            ("disk-near-quota", Severity::Warning, Box::new(|f| f.nodes[0].used_bytes = 90)),
            ("quarantined", Severity::Warning, Box::new(|f| f.nodes[0].quarantined_s = 3.0)),
            ("node-slow", Severity::Warning, Box::new(|f| f.nodes[0].avoided_as_slow = true)),
            ("checksum", Severity::Error, Box::new(|f| f.nodes[0].checksum_recent = true)),
            (
                "fallback",
                Severity::Warning,
                Box::new(|f| f.nodes[0].fallbacks.push(FallbackFacts { stands: true, ..Default::default() })),
            ),
            ("refused", Severity::Error, Box::new(|f| f.refusals.push(("d".into(), "a".into(), "full".into())))),
            ("shards-failed", Severity::Error, Box::new(|f| f.failed_shards.push(("d".into(), 2, "x".into())))),
            (
                "stage-stalled",
                Severity::Error,
                Box::new(|f| f.stages.push(StageFacts { stalled_s: STALLED_AFTER_S, ..Default::default() })),
            ),
        ];
        for (kind, severity, trouble) in cases {
            let mut facts = Facts { nodes: vec![up("a"), up("b")], ..Facts::default() };
            trouble(&mut facts);
            assert_eq!(kinds(&facts), [(kind, severity)]);
            let alarm = &raise(&facts)[0];
            assert!(!alarm.text.is_empty() && !alarm.next.is_empty(), "{alarm:?}");
        }
        let mut facts = Facts { nodes: vec![up("a")], ..Facts::default() };
        facts.nodes[0].fallbacks.push(FallbackFacts::default());
        facts.stages.push(StageFacts { stalled_s: STALLED_AFTER_S - 1.0, ..Default::default() });
        assert_eq!(kinds(&facts), [], "what is over, or has not lasted, is no alarm");
    }

    #[test]
    fn slow_is_slower_than_the_others_while_busy() {
        let mut facts = Facts { nodes: ["a", "b", "c", "d"].map(up).into(), ..Facts::default() };
        for node in &mut facts.nodes {
            (node.in_bytes_per_s, node.busy) = (100.0, true);
        }
        facts.nodes[3].in_bytes_per_s = 20.0;
        assert_eq!(raise(&facts)[0].id, "node-slow:d");
        facts.nodes[3].busy = false;
        assert_eq!(kinds(&facts), []);
    }

    #[test]
    fn a_thousand_of_a_kind_are_summed_up() {
        let nodes = (0..1000).map(|i| NodeFacts { state: "down", ..up(&format!("n{i}")) });
        let alarms = raise(&Facts { nodes: nodes.collect(), ..Facts::default() });
        assert_eq!(alarms.len(), ALARMS_PER_KIND_MAX + 1);
        assert!(alarms.last().is_some_and(|a| a.text.contains(&(1000 - ALARMS_PER_KIND_MAX).to_string())));
    }
}
