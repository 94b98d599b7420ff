//! The timeline: what happened to whom, newest last, durable within [`AUDIT_LINES_MAX`].
//!
//! One list in memory answers every question; the store keeps the same lines for the next life of the coordinator.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limits::AUDIT_LINES_MAX;

/// How bad something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Severity {
    /// Worth knowing.
    #[default]
    Info,
    /// Worth a look.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A version was registered.
    Added,
    /// A version left the catalog.
    Removed,
    /// A version shall be on nodes.
    Staged,
    /// A version is complete on nodes.
    Sealed,
    /// A stage ended well.
    StageDone,
    /// A stage ended, and something failed.
    StageFailed,
    /// A node took another way than the best one.
    FellBack,
    /// A source is avoided for a while.
    Quarantined,
    /// The right to read from the origin ran out.
    LeaseExpired,
    /// Bytes did not match their checksum.
    Checksum,
    /// What was read of a shard was thrown away and is read again.
    Discarded,
    /// A shard failed for good.
    ShardFailed,
    /// A node lost a shard that it had.
    Lost,
    /// A shard that was lost is back.
    Repaired,
    /// A version was dropped from nodes.
    Evicted,
    /// A version shall stay on nodes.
    Pinned,
    /// It may go again.
    Unpinned,
    /// A node cannot take a version, or an agent was turned away.
    Refused,
    /// A node joined or came back.
    NodeUp,
    /// A node is late.
    NodeSuspect,
    /// A node was given up.
    NodeDown,
    /// Everybody reads the origin, or peers again.
    WentDirect,
    /// A job of a batch scheduler asked for data.
    JobOpened,
    /// It ended.
    JobEnded,
    /// A coordinator began.
    Coordinator,
    /// Anything else, and lines from before kinds were kept.
    #[default]
    Note,
}

impl Kind {
    /// As it is written in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Removed => "removed",
            Kind::Staged => "staged",
            Kind::Sealed => "sealed",
            Kind::StageDone => "stage-done",
            Kind::StageFailed => "stage-failed",
            Kind::FellBack => "fell-back",
            Kind::Quarantined => "quarantined",
            Kind::LeaseExpired => "lease-expired",
            Kind::Checksum => "checksum",
            Kind::Discarded => "discarded",
            Kind::ShardFailed => "shard-failed",
            Kind::Lost => "lost",
            Kind::Repaired => "repaired",
            Kind::Evicted => "evicted",
            Kind::Pinned => "pinned",
            Kind::Unpinned => "unpinned",
            Kind::Refused => "refused",
            Kind::NodeUp => "node-up",
            Kind::NodeSuspect => "node-suspect",
            Kind::NodeDown => "node-down",
            Kind::WentDirect => "went-direct",
            Kind::JobOpened => "job-opened",
            Kind::JobEnded => "job-ended",
            Kind::Coordinator => "coordinator",
            Kind::Note => "note",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Event {
    /// Grows by one with each event.
    pub(crate) sequence: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub(crate) at_unix_ms: i64,
    /// How bad.
    pub(crate) severity: Severity,
    /// What kind.
    pub(crate) kind: Kind,
    /// In words.
    pub(crate) text: String,
    /// `name@version`, where it is about one.
    pub(crate) dataset: Option<String>,
    /// The node, where it is about one.
    pub(crate) node: Option<String>,
}

/// An event before it has a number and a time.
#[derive(Clone, Debug)]
pub(crate) struct Telling {
    kind: Kind,
    severity: Severity,
    pub(crate) text: String,
    dataset: Option<String>,
    node: Option<String>,
}

impl Telling {
    pub(crate) fn new(kind: Kind, severity: Severity, text: impl Into<String>) -> Telling {
        Telling { kind, severity, text: text.into(), dataset: None, node: None }
    }

    pub(crate) fn severity(&self) -> Severity {
        self.severity
    }

    /// About a version.
    pub(crate) fn dataset(mut self, name: impl Into<String>) -> Telling {
        self.dataset = Some(name.into());
        self
    }

    /// About a node.
    pub(crate) fn node(mut self, name: impl Into<String>) -> Telling {
        self.node = Some(name.into());
        self
    }
}

/// A line of the audit log. The first two names are older than the rest.
#[derive(Serialize, Deserialize)]
struct Line {
    at_unix_s: i64,
    what: String,
    #[serde(default)]
    n: u64,
    #[serde(default)]
    ms: i64,
    #[serde(default)]
    severity: Severity,
    #[serde(default)]
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dataset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// The timeline.
#[derive(Debug, Default)]
pub(crate) struct Events {
    list: VecDeque<Event>,
    next: u64,
}

impl Events {
    /// Takes back what was kept. Lines that are no events are left out.
    pub(crate) fn restore(&mut self, lines: &[String]) {
        let mut lines: Vec<Line> = lines.iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
        // A line that goes with another change is kept with that, which may be after younger ones.
        lines.sort_by_key(|line| line.n);
        for line in lines {
            let sequence = line.n.max(self.next);
            let at_unix_ms = if line.ms == 0 { line.at_unix_s.saturating_mul(1_000) } else { line.ms };
            let Line { severity, kind, what: text, dataset, node, .. } = line;
            self.push(Event { sequence, at_unix_ms, severity, kind, text, dataset, node });
        }
    }

    fn push(&mut self, event: Event) {
        self.next = event.sequence + 1;
        while self.list.len() as u64 >= AUDIT_LINES_MAX {
            self.list.pop_front();
        }
        self.list.push_back(event);
    }

    /// Remembers something; the line to keep.
    pub(crate) fn tell(&mut self, at_unix_ms: i64, telling: Telling) -> String {
        let Telling { kind, severity, text, dataset, node } = telling;
        let event = Event { sequence: self.next, at_unix_ms, severity, kind, text, dataset, node };
        let line = Line {
            at_unix_s: at_unix_ms.div_euclid(1_000),
            what: event.text.clone(),
            n: event.sequence,
            ms: at_unix_ms,
            severity,
            kind,
            dataset: event.dataset.clone(),
            node: event.node.clone(),
        };
        self.push(event);
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// All that are remembered, newest first.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &Event> {
        self.list.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let mut events = Events::default();
        let telling = |i: i64| Telling::new(Kind::Staged, Severity::Warning, format!("t{i}")).dataset("d@v1").node("n");
        let lines: Vec<String> = (0..3).map(|i| events.tell(1_000 + i, telling(i))).collect();
        let mut again = Events::default();
        again.restore(&[lines[1].clone(), lines[0].clone(), lines[2].clone()]);
        assert!(events.newest().eq(again.newest()));
        again.tell(2_000, telling(3));
        assert_eq!(again.newest().next().map(|e| e.sequence), Some(3), "numbers go on after a restart");
    }

    #[test]
    fn kinds_are_written_as_they_are_filtered() {
        for kind in [Kind::Staged, Kind::FellBack, Kind::NodeSuspect, Kind::WentDirect, Kind::Note] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn older_lines_and_nonsense_do_no_harm() {
        let mut events = Events::default();
        events.restore(&[r#"{"at_unix_s":7,"what":"added d@v1"}"#.into(), "{".into(), "{}".into()]);
        let found: Vec<_> = events.newest().map(|e| (e.at_unix_ms, e.kind, e.text.as_str())).collect();
        assert_eq!(found, [(7_000, Kind::Note, "added d@v1")]);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut events = Events::default();
        for i in 0..AUDIT_LINES_MAX as i64 + 5 {
            events.tell(i, Telling::new(Kind::Note, Severity::Info, ""));
        }
        assert_eq!(events.newest().count() as u64, AUDIT_LINES_MAX);
        assert_eq!(events.newest().last().map(|e| e.sequence), Some(5));
    }
}
