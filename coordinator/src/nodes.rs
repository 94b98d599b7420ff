//! The nodes: names and numbers, sessions, and what their heartbeats said last.
//!
//! Goals: a number stays with a name as long as this process lives; exactly one session speaks for a name.
//! Non-goals: who is suspect or down, and what follows from it (the core's).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millstream_proto::convert::{self, ConvertError};
use millstream_proto::v1;
use millstream_types::{DatasetId, Digest, NodeId, Time};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::limits::{
    FALLBACKS_MAX, NODE_ERRORS_MAX, NODES_MAX, PEERS_PER_NODE_MAX, RDMA_DEVICES_MAX, REASON_BYTES_MAX,
};

/// One opened stream of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What an agent said of itself, checked.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Its name.
    pub node: String,
    /// Where peers reach it.
    pub listen: String,
    /// Where its metrics are; empty when nowhere.
    pub http: String,
    /// Its version.
    pub agent_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `tcp`, `rdma`.
    pub transports: Vec<String>,
    /// `uring` or `blocking`.
    pub io: String,
    /// Why not uring.
    pub io_reason: String,
    /// Quota.
    pub capacity_bytes: u64,
    /// Differs for each start of the process.
    pub boot_id: u64,
    /// Versions of which it has something.
    pub digests: Vec<Digest>,
}

/// Why a session was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Another protocol.
    #[error(
        "agent and coordinator do not understand each other: the agent speaks protocol {agent}, this coordinator \
         ({version}) speaks {ours}; install the same version on both"
    )]
    Protocol {
        /// Its protocol.
        agent: u32,
        /// Ours.
        ours: u32,
        /// Our version.
        version: &'static str,
    },
    /// A greeting that makes no sense.
    #[error("the greeting is wrong: {0}")]
    Hello(#[from] ConvertError),
    /// Nothing was said in time, or something else.
    #[error("the first message must be a greeting")]
    NoHello,
    /// Two agents of one name.
    #[error(
        "a node named {node:?} is connected already from {other}; give each agent its own --node (or stop the other)"
    )]
    NameTaken {
        /// The name.
        node: String,
        /// Where the other one listens.
        other: String,
    },
    /// Over [`NODES_MAX`].
    #[error("{NODES_MAX} nodes are known, which is the most")]
    TooMany,
    /// On its way down.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// Checks a greeting.
///
/// # Errors
/// [`Refusal`] in words for the agent's log.
pub fn parse_hello(hello: &v1::Hello) -> Result<Hello, Refusal> {
    if hello.protocol != millstream_proto::PROTOCOL {
        return Err(Refusal::Protocol {
            agent: hello.protocol,
            ours: millstream_proto::PROTOCOL,
            version: env!("CARGO_PKG_VERSION"),
        });
    }
    let digests = hello.digests.iter().map(|d| convert::digest("digests", d)).collect::<Result<_, _>>()?;
    Ok(Hello {
        node: convert::node_name("node", &hello.node)?.to_owned(),
        listen: convert::address("listen", &hello.listen)?.to_owned(),
        http: match hello.http.as_str() {
            "" => String::new(),
            text => convert::address("http", text)?.to_owned(),
        },
        agent_version: short(&hello.agent_version),
        labels: convert::labels("labels", &hello.labels)?,
        transports: hello.transports.iter().take(8).map(|t| short(t)).collect(),
        io: short(&hello.io),
        io_reason: short(&hello.io_reason),
        capacity_bytes: hello.capacity_bytes,
        boot_id: hello.boot_id,
        digests,
    })
}

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

/// Bytes that agents moved, as counters that never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the origin.
    pub received_origin: u64,
    /// From peers over TCP.
    pub received_tcp: u64,
    /// From peers over RDMA.
    pub received_rdma: u64,
    /// To peers over TCP.
    pub sent_tcp: u64,
    /// To peers over RDMA.
    pub sent_rdma: u64,
    /// Pieces or shards that did not match.
    pub checksum_failures: u64,
}

impl Moved {
    fn of(heartbeat: &v1::Heartbeat) -> Moved {
        Moved {
            received_origin: heartbeat.received_origin_bytes,
            received_tcp: heartbeat.received_tcp_bytes,
            received_rdma: heartbeat.received_rdma_bytes,
            sent_tcp: heartbeat.sent_tcp_bytes,
            sent_rdma: heartbeat.sent_rdma_bytes,
            checksum_failures: heartbeat.checksum_failures,
        }
    }

    /// Both together.
    pub fn plus(self, other: Moved) -> Moved {
        let add = u64::saturating_add;
        Moved {
            received_origin: add(self.received_origin, other.received_origin),
            received_tcp: add(self.received_tcp, other.received_tcp),
            received_rdma: add(self.received_rdma, other.received_rdma),
            sent_tcp: add(self.sent_tcp, other.sent_tcp),
            sent_rdma: add(self.sent_rdma, other.sent_rdma),
            checksum_failures: add(self.checksum_failures, other.checksum_failures),
        }
    }
}

/// One fallback of one node: from, to, reason.
pub type FallbackKey = (String, String, String);

/// What heartbeats said.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of processes of this node that ended.
    before: Moved,
    /// Of the process that runs.
    now: Moved,
    /// Receiving, bytes per second.
    pub in_bytes_per_s: u64,
    /// Sending, bytes per second.
    pub out_bytes_per_s: u64,
    /// On disk.
    pub used_bytes: u64,
    /// Of those, pinned.
    pub pinned_bytes: u64,
    /// Of those, not sealed yet.
    pub partial_bytes: u64,
    /// Quota.
    pub capacity_bytes: u64,
    /// Fallbacks of the process that runs.
    pub fallbacks: BTreeMap<FallbackKey, u64>,
    /// RDMA devices of the process that runs.
    pub rdma_devices: Vec<v1::RdmaDevice>,
    /// What the process that runs received from each peer, by address: bytes over RDMA, bytes over TCP.
    pub peers: BTreeMap<String, (u64, u64)>,
    /// Newest errors.
    pub last_errors: Vec<String>,
    /// When each fallback was counted last.
    pub fell_back_at: BTreeMap<FallbackKey, Time>,
    /// When a checksum failure was counted last.
    pub checksum_failed_at: Option<Time>,
}

impl Report {
    /// Since this coordinator knows the node.
    pub fn moved(&self) -> Moved {
        self.before.plus(self.now)
    }

    /// Fallbacks that were counted for the first time by this process are returned.
    fn take(&mut self, now: Time, heartbeat: v1::Heartbeat) -> Vec<FallbackKey> {
        let failures = self.now.checksum_failures;
        self.now = Moved::of(&heartbeat);
        if self.now.checksum_failures > failures {
            self.checksum_failed_at = Some(now);
        }
        self.in_bytes_per_s = heartbeat.in_bytes_per_s;
        self.out_bytes_per_s = heartbeat.out_bytes_per_s;
        self.used_bytes = heartbeat.used_bytes;
        self.pinned_bytes = heartbeat.pinned_bytes;
        self.partial_bytes = heartbeat.partial_bytes;
        self.capacity_bytes = heartbeat.capacity_bytes;
        let fallbacks = heartbeat.fallbacks.into_iter().take(FALLBACKS_MAX);
        let fallbacks = fallbacks.map(|f| ((short(&f.from), short(&f.to), short(&f.reason)), f.count));
        let before = std::mem::replace(&mut self.fallbacks, fallbacks.collect());
        let mut new = Vec::new();
        for (key, &count) in &self.fallbacks {
            let old = before.get(key).copied();
            if old.is_none_or(|old| count > old) {
                self.fell_back_at.insert(key.clone(), now);
            }
            if old.is_none() {
                new.push(key.clone());
            }
        }
        self.fell_back_at.retain(|key, _| self.fallbacks.contains_key(key));
        self.take_transport(heartbeat.rdma_devices, heartbeat.peers);
        let errors = heartbeat.last_errors.iter().rev().take(NODE_ERRORS_MAX);
        self.last_errors = errors.map(|e| short(e)).collect();
        self.last_errors.reverse();
        new
    }

    fn take_transport(&mut self, devices: Vec<v1::RdmaDevice>, peers: Vec<v1::PeerBytes>) {
        let devices = devices.into_iter().take(RDMA_DEVICES_MAX);
        let checked = |d: v1::RdmaDevice| v1::RdmaDevice {
            device: short(&d.device),
            state: short(&d.state),
            gid: short(&d.gid),
            kind: short(&d.kind),
            ..d
        };
        self.rdma_devices = devices.map(checked).collect();
        for peer in peers {
            self.peers.insert(short(&peer.address), (peer.rdma_bytes, peer.tcp_bytes));
        }
        while self.peers.len() > PEERS_PER_NODE_MAX {
            let least = self.peers.iter().min_by_key(|(_, (rdma, tcp))| rdma.saturating_add(*tcp));
            let Some(least) = least.map(|(address, _)| address.clone()) else { return };
            self.peers.remove(&least);
        }
    }

    fn process_ended(&mut self) {
        self.before = self.moved();
        self.now = Moved::default();
        (self.in_bytes_per_s, self.out_bytes_per_s) = (0, 0);
        self.fallbacks.clear();
        self.rdma_devices.clear();
        self.peers.clear();
        self.fell_back_at.clear();
        self.checksum_failed_at = None;
    }
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

    #[test]
    fn greetings_are_checked() {
        let good = v1::Hello { protocol: 1, node: "a".into(), listen: "h:1".into(), ..Default::default() };
        assert!(parse_hello(&good).is_ok());
        let wrong = |change: fn(&mut v1::Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            parse_hello(&hello).unwrap_err()
        };
        assert!(matches!(wrong(|h| h.protocol = 2), Refusal::Protocol { agent: 2, .. }));
        assert!(matches!(wrong(|h| h.node = "a b".into()), Refusal::Hello(_)));
        assert!(matches!(wrong(|h| h.listen = "nowhere".into()), Refusal::Hello(_)));
        assert!(matches!(wrong(|h| h.digests = vec![vec![1]]), Refusal::Hello(_)));
    }
}
