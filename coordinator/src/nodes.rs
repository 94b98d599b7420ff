//! The nodes: names and numbers, sessions, and what their heartbeats said last.
//!
//! Goals: a number stays with a name as long as this process lives; exactly one session speaks for a name.
//! Non-goals: who is suspect or down, and what follows from it (the core's).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millstream_proto::v1;
use millstream_types::{DatasetId, NodeId, Time};
use tokio::sync::mpsc;

use crate::limits::{NODES_MAX, REASON_BYTES_MAX};

pub(crate) mod details;
mod hello;
mod report;

pub use hello::{Hello, Refusal, parse_hello};
pub use report::{FallbackKey, Moved, Report};

/// One opened stream of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Words from outside, cut to [`REASON_BYTES_MAX`] and without control characters.
pub fn short(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() + c.len_utf8() > REASON_BYTES_MAX {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// A session that is open.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    out: mpsc::Sender<v1::CoordinatorMessage>,
    /// Gathers until the round's end.
    pub(crate) pending: Vec<v1::CoordinatorMessage>,
    /// Versions that were attached in this session.
    pub attached: BTreeSet<DatasetId>,
}

/// A node that is or was with us, or that a stage names.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The session that speaks for it.
    pub session: Option<Session>,
    /// What it said of itself last; `None` before its first session.
    pub hello: Option<Hello>,
    /// What its heartbeats said.
    pub report: Report,
    /// How it is equipped and who uses it, as it said last.
    pub(crate) details: details::Details,
    /// When it was heard last.
    pub last_seen: Time,
}

impl Node {
    /// Where peers reach it; empty when it never was here.
    pub fn address(&self) -> &str {
        self.hello.as_ref().map_or("", |h| &h.listen)
    }

    /// Takes a heartbeat in; fallbacks that its process had not reported before are returned.
    pub fn take_report(&mut self, now: Time, heartbeat: v1::Heartbeat) -> Vec<FallbackKey> {
        self.report.take(now, heartbeat)
    }

    /// Queues a message for the end of the round; false when there is no session.
    pub fn send(&mut self, body: v1::coordinator_message::Body) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        session.pending.push(v1::CoordinatorMessage { body: Some(body) });
        true
    }

    /// Sends `message` now, ahead of what is queued. False when the session is too far behind.
    pub(crate) fn push(&self, message: v1::CoordinatorMessage) -> bool {
        self.session.as_ref().is_some_and(|s| s.out.try_send(message).is_ok())
    }
}

/// A session that took the place of another, or a new one.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The node.
    pub node: NodeId,
    /// The session.
    pub session: SessionId,
    /// A session of the same name that ended by this.
    pub replaced: bool,
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Nodes {
    by_id: BTreeMap<NodeId, Node>,
    by_name: HashMap<String, NodeId>,
    sessions: u64,
    next: u32,
}

impl Nodes {
    /// The number of a name; a new one for a new name.
    pub fn intern(&mut self, name: &str) -> NodeId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = NodeId(self.next);
        self.next += 1;
        self.by_name.insert(name.to_owned(), id);
        self.by_id.insert(
            id,
            Node {
                id,
                name: name.to_owned(),
                session: None,
                hello: None,
                report: Report::default(),
                details: details::Details::default(),
                last_seen: Time::ZERO,
            },
        );
        id
    }

    /// By number.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.by_id.get(&id)
    }

    /// By number.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.by_id.get_mut(&id)
    }

    /// By name.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// The name of a number, for people.
    pub fn name(&self, id: NodeId) -> &str {
        self.by_id.get(&id).map_or("?", |n| &n.name)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.by_id.values()
    }

    /// All, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.by_id.values_mut()
    }

    /// Those with a session.
    pub fn connected(&self) -> impl Iterator<Item = &Node> {
        self.iter().filter(|n| n.session.is_some())
    }

    /// Opens a session for a greeting. `fresh_us`: a session heard of within this time is alive.
    ///
    /// # Errors
    /// [`Refusal`] when another agent has the name, or there are too many.
    pub fn open(
        &mut self,
        now: Time,
        hello: Hello,
        out: mpsc::Sender<v1::CoordinatorMessage>,
        fresh_us: u64,
    ) -> Result<Opened, Refusal> {
        let known = self.by_name.contains_key(&hello.node);
        if !known && self.by_id.len() >= NODES_MAX {
            return Err(Refusal::TooMany);
        }
        let id = self.intern(&hello.node);
        let session = SessionId(self.sessions);
        let Some(node) = self.by_id.get_mut(&id) else {
            return Err(Refusal::TooMany);
        };
        if let (Some(_), Some(old)) = (&node.session, &node.hello) {
            // The same process again, or its next start at the same place, takes over. Another place means another
            // agent, unless the one that we know has fallen silent.
            let same = old.boot_id == hello.boot_id || old.listen == hello.listen;
            if !same && now.since(node.last_seen) < fresh_us {
                return Err(Refusal::NameTaken { node: hello.node, other: old.listen.clone() });
            }
        }
        if node.hello.as_ref().map(|h| h.boot_id) != Some(hello.boot_id) {
            node.report.process_ended();
            node.details = details::Details::default();
        }
        let replaced = node.session.is_some();
        node.report.capacity_bytes = hello.capacity_bytes;
        node.hello = Some(hello);
        node.last_seen = now;
        node.session = Some(Session { id: session, out, pending: Vec::new(), attached: BTreeSet::new() });
        self.sessions += 1;
        Ok(Opened { node: id, session, replaced })
    }

    /// Ends a session. The node's number, when that session still spoke for it.
    pub fn close(&mut self, node: NodeId, session: SessionId) -> bool {
        let Some(node) = self.by_id.get_mut(&node) else {
            return false;
        };
        let ours = node.session.as_ref().is_some_and(|s| s.id == session);
        if ours {
            node.session = None;
            (node.report.in_bytes_per_s, node.report.out_bytes_per_s) = (0, 0);
        }
        ours
    }

    /// Does that session speak for the node?
    pub fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        let current = self.by_id.get(&node).and_then(|n| n.session.as_ref());
        current.is_some_and(|s| s.id == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MOVING_US_MIN;

    fn hello(node: &str, listen: &str, boot_id: u64) -> Hello {
        parse_hello(&v1::Hello { protocol: 1, node: node.into(), listen: listen.into(), boot_id, ..Default::default() })
            .unwrap()
    }

    fn open(nodes: &mut Nodes, now: u64, hello: Hello) -> Result<Opened, Refusal> {
        nodes.open(Time(now), hello, mpsc::channel(1).0, 100)
    }

    #[test]
    fn the_newest_session_of_an_agent_wins() {
        let mut nodes = Nodes::default();
        let first = open(&mut nodes, 0, hello("a", "h:1", 7)).unwrap();
        let again = open(&mut nodes, 1, hello("a", "h:1", 7)).unwrap();
        let restarted = open(&mut nodes, 2, hello("a", "h:1", 8)).unwrap();
        let moved = open(&mut nodes, 3, hello("a", "h:9", 8)).unwrap();
        assert_eq!([first.replaced, again.replaced, restarted.replaced, moved.replaced], [false, true, true, true]);
        assert_eq!(first.node, moved.node);
        assert!(!nodes.close(first.node, first.session), "an old session's end means nothing");
        assert!(nodes.is_current(moved.node, moved.session));
        assert!(nodes.close(moved.node, moved.session));
    }

    #[test]
    fn a_second_agent_of_the_same_name_is_refused_while_the_first_is_alive() {
        let mut nodes = Nodes::default();
        let first = open(&mut nodes, 0, hello("a", "h:1", 7)).unwrap();
        let refused = open(&mut nodes, 99, hello("a", "h:2", 8)).unwrap_err();
        assert!(refused.to_string().contains("h:1"), "{refused}");
        assert!(nodes.is_current(first.node, first.session));
        open(&mut nodes, 100, hello("a", "h:2", 8)).unwrap();
        assert!(open(&mut nodes, 101, hello("b", "h:1", 9)).is_ok());
    }

    #[test]
    fn a_disk_is_measured_while_it_is_written_to() {
        let mut nodes = Nodes::default();
        let id = open(&mut nodes, 0, hello("a", "h:1", 7)).unwrap().node;
        let mut measured = |written_bytes, writing_us| {
            let known = nodes.get_mut(id).unwrap();
            known.take_report(Time(0), v1::Heartbeat { written_bytes, writing_us, ..Default::default() });
            known.report.disk.bytes_per_s
        };
        assert_eq!(measured(5, MOVING_US_MIN - 1), 0, "too short");
        assert_eq!(measured(1_000_000, 100_000), 10_000_000);
        assert_eq!(measured(1_000_000, 100_000), 10_000_000, "nothing was written");
        assert_eq!(measured(1_400_000, 200_000), 7_000_000);
        open(&mut nodes, 0, hello("a", "h:1", 8)).unwrap();
        let known = nodes.get_mut(id).unwrap();
        known.take_report(Time(0), v1::Heartbeat { written_bytes: 700_000, writing_us: 100_000, ..Default::default() });
        assert_eq!(known.report.disk.bytes_per_s, 7_000_000, "another process counts from zero");
    }

    #[test]
    fn counters_never_go_back() {
        let mut nodes = Nodes::default();
        let id = open(&mut nodes, 0, hello("a", "h:1", 7)).unwrap().node;
        let beat = |n| v1::Heartbeat { received_tcp_bytes: n, ..Default::default() };
        nodes.get_mut(id).unwrap().take_report(Time(0), beat(10));
        open(&mut nodes, 0, hello("a", "h:1", 7)).unwrap();
        nodes.get_mut(id).unwrap().take_report(Time(0), beat(15));
        open(&mut nodes, 0, hello("a", "h:1", 8)).unwrap();
        assert_eq!(nodes.get(id).unwrap().report.moved().received_tcp, 15);
        nodes.get_mut(id).unwrap().take_report(Time(0), beat(1));
        assert_eq!(nodes.get(id).unwrap().report.moved().received_tcp, 16);
    }
}
