//! Nodes come, go, stay silent and tell what they hold.

use millstream_types::{DatasetId, NodeId, RunSet, Time};

use crate::Core;
use crate::catalog::Dataset;
use crate::event::{Action, NodeInfo, NodeState, Note, Source};
use crate::flight::FlightNo;
use crate::limits::{
    CHAIN_LEASES, LEASE_SLACK_US, OVERDUE_CHAIN_FACTOR, OVERDUE_FACTOR, OVERDUE_SLACK_US, OVERDUE_UNREADY_FACTOR,
    OVERTAKEN_READS, RESOURCE_DOUBLINGS_MAX, STALLED_FACTOR, TREE_LEASES, UNMEASURED_US, UNREACHABLE_US,
};

impl Core {
    pub(crate) fn node_up(&mut self, now: Time, node: NodeId, info: NodeInfo) {
        let rack = self.nodes.rack(&info.rack);
        let Some(known) = self.nodes.entry(node) else {
            self.counters.ignored += 1;
            return;
        };
        let orders_lost = known.seen && known.info.boot_id != info.boot_id;
        let renamed = known.info.name != info.name;
        let before = known.state;
        known.info = info;
        known.rack = rack;
        known.seen = true;
        known.session = true;
        known.last_seen = now;
        known.state = NodeState::Up;
        known.hold_until = now;
        if before != NodeState::Up {
            self.note(Note::NodeState { node, state: NodeState::Up });
        }
        if orders_lost {
            self.drop_flights(now, node);
        }
        if renamed {
            self.replace_spread(now, node);
        }
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                if let Some(replica) = ds.replica_mut(node) {
                    // What was asked in an earlier session is not answered any more.
                    replica.asked = 0;
                    replica.discarded.clear();
                    // A new process knows nothing of what the old one was told.
                    replica.leaving &= !orders_lost;
                    if orders_lost {
                        replica.dropping = RunSet::new();
                    }
                }
                core.attach(ds, now, node, before == NodeState::Down);
                core.judge_stages(now, ds);
            });
        }
    }

    pub(crate) fn node_named(&mut self, now: Time, node: NodeId, name: String) {
        if let Some(known) = self.nodes.entry(node)
            && known.info.name != name
        {
            known.info.name = name;
            self.replace_spread(now, node);
        }
    }

    /// Tells a node to open a version that a stage wants there.
    pub(crate) fn attach(&mut self, ds: &mut Dataset, now: Time, node: NodeId, joins: bool) {
        if ds.replica(node).is_some_and(|r| r.wanted != Default::default()) {
            self.have_opened(ds, now, node, joins);
        }
    }

    /// The same, whether or not anything of it is wanted there yet.
    pub(crate) fn have_opened(&mut self, ds: &mut Dataset, now: Time, node: NodeId, joins: bool) {
        let grace = self.config.inventory_grace_us;
        let replica = ds.replica_entry(node);
        let wanted_bytes = replica.wanted_bytes;
        replica.attached = true;
        replica.asked += 1;
        replica.resend = true;
        if joins {
            replica.inventoried = false;
            if replica.inventory_due.is_none() {
                replica.inventory_due = Some(now + grace);
                ds.pending += 1;
            }
        }
        self.actions.push_back(Action::Attach { node, dataset: ds.id, wanted_bytes });
    }

    pub(crate) fn node_lost(&mut self, now: Time, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(node).filter(|n| n.state == NodeState::Up) {
            known.session = false;
            if known.unreachable.is_some_and(|at| now.since(at) < UNREACHABLE_US) {
                // A peer saw it go, too: no need to wait for it to come back.
                self.node_down(now, node);
                return;
            }
            known.state = NodeState::Suspect;
            known.suspect_since = now;
            self.note(Note::NodeState { node, state: NodeState::Suspect });
        } else if let Some(known) = self.nodes.get_mut(node) {
            known.session = false;
        }
    }

    /// Given up: its work goes to others, its copies do not count.
    pub(crate) fn node_down(&mut self, now: Time, node: NodeId) {
        let Some(known) = self.nodes.get_mut(node).filter(|n| n.state != NodeState::Down) else {
            return;
        };
        known.state = NodeState::Down;
        known.session = false;
        known.room = Default::default();
        self.note(Note::NodeState { node, state: NodeState::Down });
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                core.stop_waiting_for(ds, node);
                core.readers_lost(ds, node);
                if let Some(replica) = ds.replica_mut(node) {
                    replica.attached = false;
                    replica.asked = 0;
                    replica.discarded.clear();
                    replica.inventoried = false;
                    replica.leaving = false;
                    replica.dropping = RunSet::new();
                    replica.sealed = RunSet::new();
                    replica.claimed = RunSet::new();
                }
                for e in 0..ds.extents.len() as u32 {
                    ds.lose(e, node);
                }
            });
        }
        self.drop_flights(now, node);
        for id in self.dataset_ids() {
            self.with(id, |core, ds| core.judge_stages(now, ds));
        }
        self.serve_all(now);
    }

    pub(crate) fn stop_waiting_for(&mut self, ds: &mut Dataset, node: NodeId) {
        if ds.replica_mut(node).and_then(|r| r.inventory_due.take()).is_some() {
            ds.pending -= 1;
        }
    }

    /// The node's orders are lost; those that it fed find other sources.
    fn drop_flights(&mut self, now: Time, node: NodeId) {
        let Some(known) = self.nodes.get(node) else {
            return;
        };
        let own = known.flights.clone();
        let fed: Vec<FlightNo> = known.serving.clone();
        for no in own {
            let Some(id) = self.flights.get(no).map(|f| f.dataset) else {
                continue;
            };
            self.with(id, |core, ds| {
                if let Some(flight) = core.land(ds, now, no, 0) {
                    core.counters.requeues += 1;
                    ds.settle(flight.extent, node, false);
                }
            });
        }
        for no in fed {
            let Some(id) = self.flights.get(no).map(|f| f.dataset) else {
                continue;
            };
            self.with(id, |core, ds| core.rehome(ds, now, no, Some(node)));
        }
    }

    pub(crate) fn heartbeat(&mut self, now: Time, node: NodeId, [used, capacity]: [u64; 2], rates: [u64; 2]) {
        let Some(known) = self.nodes.get_mut(node) else {
            self.counters.ignored += 1;
            return;
        };
        known.info.used_bytes = used;
        known.info.capacity_bytes = capacity;
        [known.link_rate, known.disk_rate] = rates.map(|rate| rate as f64);
        known.last_seen = now;
        if known.state == NodeState::Suspect && known.session {
            known.state = NodeState::Up;
            self.note(Note::NodeState { node, state: NodeState::Up });
            self.serve(now, node);
        }
    }

    pub(crate) fn inventory(&mut self, now: Time, node: NodeId, dataset: DatasetId, pieces: &RunSet, sealed: RunSet) {
        let up = self.nodes.get(node).is_some_and(|n| n.state != NodeState::Down);
        let waiting = up.then(|| {
            self.with(dataset, |core, ds| {
                let waited = ds.pending > 0;
                core.take_inventory(now, ds, node, pieces, sealed);
                waited && ds.pending == 0
            })
        });
        match waiting.flatten() {
            None => self.counters.ignored += 1,
            // The last one that others waited for.
            Some(true) => self.serve_all(now),
            Some(false) => self.serve(now, node),
        }
    }

    fn take_inventory(&mut self, now: Time, ds: &mut Dataset, node: NodeId, pieces: &RunSet, sealed: RunSet) {
        self.stop_waiting_for(ds, node);
        let shards = ds.layout.shards();
        let replica = ds.replica_entry(node);
        replica.attached = true;
        replica.inventoried = true;
        replica.sealed = sealed;
        replica.sealed.remove_range(shards..u32::MAX);
        replica.asked = replica.asked.saturating_sub(1);
        let discarded =
            if replica.asked == 0 { std::mem::take(&mut replica.discarded) } else { replica.discarded.clone() };
        let mut pieces = pieces.clone();
        for shard in discarded {
            pieces.remove_range(ds.layout.shard_pieces(shard));
            ds.replica_entry(node).sealed.remove_range(shard..shard + 1);
        }
        let resend = std::mem::take(&mut ds.replica_entry(node).resend);
        let untold = self.untold_by(ds, node);
        for e in 0..ds.extents.len() as u32 {
            let range = ds.extents[e as usize].pieces.clone();
            if pieces.contains_range(range.clone()) {
                ds.gain(e, node);
            } else {
                ds.lose(e, node);
                let part = if pieces.is_empty() { 0 } else { pieces.count_range(range) };
                if part > ds.extents[e as usize].hint.map_or(0, |(_, most)| most) {
                    ds.extents[e as usize].hint = Some((node, part));
                }
            }
        }
        self.count_found(ds, node, &untold);
        let mine: Vec<FlightNo> = self.nodes.get(node).map(|n| n.flights.clone()).unwrap_or_default();
        for no in mine {
            let Some((e, id)) = self.flights.get(no).map(|f| (f.extent, f.dataset)) else {
                continue;
            };
            if id != ds.id {
                continue;
            }
            if ds.extents[e as usize].have.get(node.0) {
                self.land(ds, now, no, 0);
                self.counters.done += 1;
                self.mark_ready(ds, now, e, node);
            } else {
                ds.settle(e, node, true);
                if resend {
                    self.tell(ds, no);
                }
            }
        }
        self.send_learned(ds, node);
        self.note_recovery(ds);
        self.judge_stages(now, ds);
        self.refill_all(ds, now);
    }

    /// Checksums learned after the manifest was sent may have passed the node by.
    fn send_learned(&mut self, ds: &Dataset, node: NodeId) {
        if ds.replica(node).is_none_or(|r| r.todo.is_empty()) && self.flying_to(ds, node).is_empty() {
            return;
        }
        for run in ds.sums.learned().runs() {
            self.actions.push_back(Action::Checksums {
                to: vec![node],
                dataset: ds.id,
                first: run.start,
                crcs: ds.sums.slice(run.clone()),
            });
        }
    }

    /// After a restart: are all nodes of the version's stages back?
    fn note_recovery(&mut self, ds: &mut Dataset) {
        if !ds.recovered {
            let all = ds.members().filter(|(_, r)| r.wanted != Default::default()).all(|(_, r)| r.inventoried);
            ds.recovered = all;
        }
    }

    /// The sweep: silence, leases that ran out, sources that are too slow, work for those who found none.
    pub(crate) fn tick(&mut self, now: Time) {
        for i in 0..self.nodes.len() {
            self.watch(now, NodeId(i));
        }
        if let Some(rate) = self.nodes.median_rate() {
            self.ns_per_byte = 1e9 / rate.max(1.0);
        }
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                core.stop_waiting_for_late(now, ds);
                core.refill_all(ds, now);
            });
        }
        self.set_origin_floor();
        self.demote_poor(now);
        self.watch_chains(now);
        let flights: Vec<FlightNo> = self.flights.numbers().collect();
        for no in flights {
            self.check_flight(now, no);
        }
        self.serve_all(now);
    }

    /// How many origin reads are allowed at least.
    fn set_origin_floor(&mut self) {
        let trees = self.active.iter().filter_map(|&id| self.dataset(id)).any(|ds| ds.flying > 0 && !self.chain(ds));
        self.origin.at_least(if trees { TREE_LEASES } else { CHAIN_LEASES });
    }

    fn watch(&mut self, now: Time, node: NodeId) {
        let (timeout, down) = (self.config.heartbeat_timeout_us, self.config.down_us);
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        known.slow_out.fade();
        match known.state {
            NodeState::Up if now.since(known.last_seen) > timeout => {
                known.state = NodeState::Suspect;
                known.suspect_since = now;
                self.note(Note::NodeState { node, state: NodeState::Suspect });
            }
            NodeState::Suspect if now.since(known.suspect_since) >= down => self.node_down(now, node),
            _ => {}
        }
    }

    fn stop_waiting_for_late(&mut self, now: Time, ds: &mut Dataset) {
        if ds.pending == 0 {
            return;
        }
        let late: Vec<NodeId> =
            ds.members().filter(|(_, r)| r.inventory_due.is_some_and(|due| now >= due)).map(|(n, _)| n).collect();
        for node in late {
            self.stop_waiting_for(ds, node);
        }
    }

    fn check_flight(&mut self, now: Time, no: FlightNo) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        match flight.source {
            Source::Origin => self.check_read(now, no),
            Source::Peer(source) => self.check_transfer(now, no, source),
        }
    }

    /// A lease that ran out, or a read that others have overtaken.
    fn check_read(&mut self, now: Time, no: FlightNo) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        let (id, node, shared) = (flight.dataset, flight.node, flight.shared_lease);
        let idle = now.since(flight.progress);
        if idle > flight.lease_us + LEASE_SLACK_US {
            self.with(id, |core, ds| core.expire_lease(ds, now, no));
            return;
        }
        // Reads that began after it stalled are done: it is not the origin that is slow.
        let overtaken = flight.overtaken.is_some_and(|done| self.origin.done >= done);
        let slow = self.nodes.get(node).is_some_and(|n| n.slow_in.is_slow());
        self.with(id, |core, ds| {
            let late = ds.typical_origin_us > 0.0
                && idle as f64 > STALLED_FACTOR * ds.typical_origin_us + OVERDUE_SLACK_US as f64;
            if shared {
                if late {
                    core.stalled(no);
                }
                return;
            }
            // In a chain it is the flow that tells who is slow.
            let found = overtaken && !core.chain(ds);
            if let Some(known) = core.nodes.get_mut(node).filter(|n| found && !n.slow_in.is_slow()) {
                known.slow_in.strike();
            }
            // Or nothing else is left to read.
            if found || (slow && (overtaken || (late && core.origin.shared == 0))) {
                core.take_lease(ds, now, no);
            }
        });
    }

    /// A source that takes too long.
    fn check_transfer(&mut self, now: Time, no: FlightNo, source: NodeId) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        let id = flight.dataset;
        let since = flight.source_ready.unwrap_or(flight.started).max(flight.started);
        let (node, resourced, extent) = (flight.node, flight.resourced, flight.extent);
        let unready = flight.source_ready.is_none();
        let slow = self.nodes.get(node).map_or(1.0, |n| n.slow_in.factor());
        let stuck = flight.source_ready.is_none() && self.nodes.get(source).is_some_and(|n| n.slow_in.factor() > 1.0);
        self.with(id, |core, ds| {
            // Nothing came from any peer yet: one that hangs must not be waited for for ever.
            let typical = if ds.typical_peer_us > 0.0 { ds.typical_peer_us } else { UNMEASURED_US };
            // A slow source that lacks the extent itself has sent nothing yet: leaving it costs nothing.
            let factor = if stuck { OVERDUE_UNREADY_FACTOR } else { OVERDUE_FACTOR };
            // In a chain, what was ordered before comes first.
            let queued = if core.chain(ds) { core.down_free(node) as f64 * slow } else { 0.0 };
            let limit = (factor * typical * slow + queued + OVERDUE_SLACK_US as f64)
                * f64::from(1u32 << resourced.min(RESOURCE_DOUBLINGS_MAX));
            let chain = core.chain(ds);
            let limit = if chain && unready { OVERDUE_CHAIN_FACTOR * limit } else { limit };
            if (now.since(since) as f64) < limit {
                return;
            }
            // Only a node that has it all is surely better than one that is late.
            if let Some(found) = core.find_source(ds, now, extent, node, Some(source)).filter(|f| f.holder) {
                // Late from a second source, too: then it is the receiver that is slow.
                let receiver = resourced > 0 || core.nodes.get(node).is_some_and(|n| n.slow_in.is_slow());
                if !chain && let Some(n) = core.nodes.get_mut(if receiver { node } else { source }) {
                    if receiver { n.slow_in.strike() } else { n.slow_out.strike() }
                }
                core.counters.overdue += 1;
                core.reassign(ds, now, no, Some(found));
            }
        });
    }

    /// A read that makes no progress does not hold the others back: it no longer counts against the budget.
    pub(crate) fn stalled(&mut self, no: FlightNo) {
        if let Some(flight) = self.flights.get_mut(no).filter(|f| f.shared_lease) {
            flight.shared_lease = false;
            flight.overtaken = Some(self.origin.done + u64::from(self.origin.all) + OVERTAKEN_READS);
            self.origin.stalled();
        }
    }

    /// The right to read ran out: it goes to a node that has part of it already, and the old holder is fed by that.
    fn expire_lease(&mut self, ds: &mut Dataset, now: Time, no: FlightNo) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        let (e, holder) = (flight.extent, flight.node);
        let pieces = ds.extents[e as usize].pieces.clone();
        self.counters.leases_expired += 1;
        self.note(Note::LeaseExpired { node: holder, dataset: ds.id, pieces });
        self.nodes.receives_slowly(holder);
        ds.extents[e as usize].attempts = ds.extents[e as usize].attempts.saturating_add(1);
        self.take_lease(ds, now, no);
    }

    /// Takes an origin read away from its reader; those that it would have fed find other sources, or read themselves.
    pub(crate) fn take_lease(&mut self, ds: &mut Dataset, now: Time, no: FlightNo) {
        let Some((e, holder)) = self.flights.get(no).map(|f| (f.extent, f.node)) else {
            return;
        };
        let children = self.children(ds, e, holder);
        self.recall(ds, now, no);
        for child in children {
            self.rehome(ds, now, child, Some(holder));
        }
    }
}
