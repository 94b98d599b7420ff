//! Words between nodes and the coordinator: sessions, delays, conversions between the two cores.

use millstream_agent_core::event as agent;
use millstream_coordinator_core::event::{self as coord, Action as Order, Event as Word, NodeState, Note};
use millstream_types::{Crc64, NodeId, RunSet, Time};

use super::{Event, HEARTBEAT_US, World, peer};
use crate::coordinator::{DATASET, node_info, runs};

/// Until a manifest is there.
const MANIFEST_US: u64 = 5_000;
/// An agent that lost its session tries again within this time.
const RECONNECT_US: u64 = 3_000_000;

impl World {
    /// Hands the coordinator's orders to the network.
    pub(super) fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            self.trace.add(&order);
            match &order {
                Order::Attach { node, .. }
                | Order::Assign { node, .. }
                | Order::Cancel { node, .. }
                | Order::DropShards { node, .. }
                | Order::Evict { node, .. } => self.send_order(node.0, order.clone()),
                Order::Checksums { to, .. } | Order::DiscardShard { to, .. } => {
                    for node in to {
                        self.send_order(node.0, order.clone());
                    }
                }
                Order::Note(Note::NodeState { node, state: NodeState::Down }) => self.end_session(node.0),
                // Nothing changes at the simulated origin.
                Order::AskOrigin { shards, .. } => {
                    let shards = shards.clone();
                    self.clock.after(self.scenario.origin_latency_us, Event::OriginSays { shards });
                }
                Order::PersistChecksums { .. } | Order::Note(_) => {}
            }
        }
        if let Some(at) = self.coordinator.poll_timeout()
            && self.coordinator_timer.is_none_or(|set| at < set)
        {
            self.coordinator_timer = Some(at);
            self.clock.at(at, Event::CoordinatorTimer);
        }
    }

    pub(super) fn coordinator_time(&mut self) {
        let now = self.clock.now();
        if self.coordinator_timer.is_none_or(|at| at > now) {
            return;
        }
        self.coordinator_timer = None;
        let orders = self.coordinator.timeout(now);
        self.carry_out(orders);
    }

    fn send_order(&mut self, n: u32, order: Order) {
        let node = &self.nodes[n as usize];
        let (Some(session), epoch) = (node.session, node.epoch) else {
            return;
        };
        self.messages += 1;
        let at = self.control_arrival(n);
        self.clock.at(at, Event::Order { node: n, epoch, session, order });
    }

    /// A cut link delivers when it heals: the stream survives.
    fn control_arrival(&self, n: u32) -> Time {
        self.clock.now().max(self.nodes[n as usize].cut_until) + self.scenario.control_latency_us
    }

    /// Sends a word of a node, if it has a session.
    pub(super) fn say(&mut self, n: u32, word: Word) {
        let Some(session) = self.nodes[n as usize].session else {
            return;
        };
        self.messages += 1;
        let at = self.control_arrival(n);
        self.clock.at(at, Event::Word { node: n, session, word });
    }

    pub(super) fn word_arrived(&mut self, n: u32, session: u32, word: Word) {
        if self.nodes[n as usize].session != Some(session) || session != self.coordinator.incarnation {
            return;
        }
        let orders = self.coordinator.handle(self.clock.now(), word);
        self.carry_out(orders);
    }

    /// Begins a node's session.
    pub(super) fn connect(&mut self, n: u32) {
        self.nodes[n as usize].session = Some(self.coordinator.incarnation);
        let epoch = self.nodes[n as usize].epoch;
        self.say(n, Word::NodeUp { node: NodeId(n), info: node_info(n, epoch) });
        let phase = self.rng.below(HEARTBEAT_US);
        self.clock.after(phase, Event::Heartbeat { node: n, epoch });
    }

    pub(super) fn reconnect(&mut self, n: u32, epoch: u32) {
        let node = &self.nodes[n as usize];
        if !node.alive || node.epoch != epoch || node.session.is_some() {
            return;
        }
        if !self.coordinator.is_up() || node.cut_until > self.clock.now() {
            self.schedule_reconnect(n);
            return;
        }
        self.nodes[n as usize].session = Some(self.coordinator.incarnation);
        self.say(n, Word::NodeUp { node: NodeId(n), info: node_info(n, epoch) });
    }

    /// The coordinator gave the node up: its shell ends the session, and the node, if it lives, begins another.
    fn end_session(&mut self, n: u32) {
        if self.nodes[n as usize].session.take().is_some() {
            self.schedule_reconnect(n);
        }
    }

    pub(super) fn schedule_reconnect(&mut self, n: u32) {
        let epoch = self.nodes[n as usize].epoch;
        let us = self.rng.between(RECONNECT_US / 10, RECONNECT_US);
        self.clock.after(us, Event::Reconnect { node: n, epoch });
    }

    pub(super) fn heartbeat(&mut self, n: u32, epoch: u32) {
        let node = &self.nodes[n as usize];
        if !node.alive || node.epoch != epoch {
            return;
        }
        let info = node_info(n, epoch);
        let node = NodeId(n);
        self.say(
            n,
            Word::Heartbeat {
                node,
                used_bytes: 0,
                capacity_bytes: info.capacity_bytes,
                link_bytes_per_s: 0,
                disk_bytes_per_s: 0,
            },
        );
        self.clock.after(HEARTBEAT_US, Event::Heartbeat { node: n, epoch });
    }

    pub(super) fn send_inventory(&mut self, n: u32) {
        let node = &self.nodes[n as usize];
        let on_disk = |(p, _): &(&u32, &Crc64)| node.disk.contains_key(p);
        let own = node.own_reads.iter().filter(on_disk).map(|(p, crc)| (*p, *crc)).collect();
        let inventory = Word::Inventory {
            node: NodeId(n),
            dataset: DATASET,
            pieces: node.disk.keys().copied().collect::<RunSet>(),
            sealed: node.sealed.iter().copied().collect(),
        };
        for (first, crcs) in runs(&own) {
            self.say(n, Word::PiecesRead { node: NodeId(n), dataset: DATASET, first, crcs });
        }
        self.say(n, inventory);
        self.announce(n);
    }

    pub(super) fn order_arrived(&mut self, n: u32, epoch: u32, session: u32, order: Order) {
        let node = &mut self.nodes[n as usize];
        if node.epoch != epoch || node.session != Some(session) {
            return;
        }
        match order {
            Order::Attach { .. } if node.is_open => self.attached_again(n),
            Order::Attach { .. } => self.clock.after(MANIFEST_US, Event::Open { node: n, epoch }),
            Order::Assign { assignment, .. } => {
                let assignment = to_agent(assignment);
                self.tell(n, agent::Event::Assigned(assignment));
            }
            Order::Cancel { assignment, .. } => self.tell(n, agent::Event::Cancelled(assignment)),
            Order::Checksums { dataset, first, crcs, .. } => {
                self.tell(n, agent::Event::Checksums { dataset, first, crcs: crcs.to_vec() });
            }
            Order::DiscardShard { dataset, shard, fatal, .. } => {
                if fatal {
                    node.given_up.insert(shard);
                }
                self.tell(n, agent::Event::DiscardShard { dataset, shard });
            }
            Order::DropShards { shards, .. } => self.drop_shards(n, &shards),
            Order::AskOrigin { .. } => {}
            Order::Evict { .. } => self.checks.that(false, || format!("n{n}: nobody asked to evict")),
            Order::PersistChecksums { .. } | Order::Note(_) => {}
        }
    }

    /// A new session for a version that is open: what was on the way to the old one is lost.
    fn attached_again(&mut self, n: u32) {
        if !self.nodes[n as usize].agent.knows_all(DATASET) {
            for (first, crcs) in self.coordinator.known_checksums() {
                self.tell(n, agent::Event::Checksums { dataset: DATASET, first, crcs });
            }
        }
        self.send_inventory(n);
    }

    /// A report of an agent's core, as a word to the coordinator.
    pub(super) fn report(&mut self, n: u32, report: agent::Report) {
        let node = NodeId(n);
        let word = match report {
            agent::Report::PiecesRead { dataset, first, crcs } => Word::PiecesRead { node, dataset, first, crcs },
            agent::Report::Done { assignment, bytes, elapsed_us, source } => {
                Word::AssignmentDone { node, assignment, bytes, elapsed_us, source: from_source(source) }
            }
            agent::Report::Failed { assignment, missing, failure, .. } => {
                Word::AssignmentFailed { node, assignment, missing, failure: failure.named(from_source) }
            }
            agent::Report::SourceFailed { dataset, failure } => {
                Word::SourceFailed { node, dataset, failure: failure.named(from_source) }
            }
            agent::Report::Sealed { dataset, shard } => {
                Word::ShardsSealed { node, dataset, shards: RunSet::from_range(shard..shard + 1) }
            }
            agent::Report::Mismatch { dataset, shard, expected, actual } => {
                Word::ShardMismatch { node, dataset, shard, expected, actual }
            }
            agent::Report::Lost { dataset, shard, reason } => Word::ShardLost { node, dataset, shard, reason },
            agent::Report::Refused { dataset, kind, reason } => Word::NodeRefused { node, dataset, kind, reason },
        };
        self.say(n, word);
    }
}

fn to_agent(a: coord::Assignment) -> agent::Assignment {
    agent::Assignment {
        id: a.id,
        dataset: a.dataset,
        pieces: a.pieces,
        source: match a.source {
            coord::Source::Origin => agent::Source::Origin,
            coord::Source::Peer(node) => agent::Source::Peer(peer(node.0)),
        },
        alternates: a.alternates.iter().map(|node| peer(node.0)).collect(),
        lease_us: a.lease_us,
        priority: a.priority,
    }
}

fn from_source(source: agent::Source) -> coord::Source {
    match source {
        agent::Source::Origin => coord::Source::Origin,
        agent::Source::Peer(peer) => coord::Source::Peer(NodeId(peer.0)),
    }
}
