//! Handing out assignments and taking them back: the only place where flights begin and end.

use millstream_types::{AssignmentId, NodeId, Time};

use crate::Core;
use crate::bits::Bits;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::{Action, Assignment, Source};
use crate::flight::{Flight, FlightNo, Flights};
use crate::limits::{LEASE_FACTOR, LEASE_FIRST_US};
use crate::source::Found;

/// Takes entry `at` out of a list of flights; the entry that moved there, if one did.
fn unlink(list: &mut Vec<FlightNo>, at: u32) -> Option<FlightNo> {
    list.swap_remove(at as usize);
    list.get(at as usize).copied()
}

impl Core {
    /// Begins a flight and tells the node.
    #[expect(clippy::too_many_arguments, reason = "one assignment, as it is")]
    pub(crate) fn launch(
        &mut self,
        ds: &mut Dataset,
        now: Time,
        e: ExtentNo,
        node: NodeId,
        source: Source,
        alternates: Vec<NodeId>,
        resourced: u8,
    ) -> Option<FlightNo> {
        let extent = &ds.extents[e as usize];
        let lease = source == Source::Origin;
        let shared = lease && extent.todo.count() + extent.flights.len() as u32 > 1;
        let lease_us = if lease { self.lease_us(ds) } else { 0 };
        let source_ready = match source {
            Source::Peer(peer) if extent.have.get(peer.0) => Some(now),
            _ => None,
        };
        let flight = Flight {
            id: AssignmentId(0),
            node,
            dataset: ds.id,
            extent: e,
            source,
            alternates,
            bytes: extent.bytes,
            started: now,
            source_ready,
            progress: now,
            lease_us,
            priority: ds.priority,
            resourced,
            overtaken: None,
            shared_lease: shared,
            at_extent: extent.flights.len() as u32,
            at_node: self.nodes.get(node)?.flights.len() as u32,
            at_source: match source {
                Source::Peer(peer) => self.nodes.get(peer)?.serving.len() as u32,
                Source::Origin => 0,
            },
        };
        let bytes = flight.bytes;
        let no = self.flights.insert(flight)?;
        ds.extents[e as usize].flights.push(no);
        ds.flying += 1;
        if let Source::Peer(peer) = source {
            let parent = self.nodes.get_mut(peer)?;
            parent.serving.push(no);
            parent.up_backlog += bytes;
            parent.debit += (bytes as f64 * parent.slow_out.factor()) as i64;
        }
        let child = self.nodes.get_mut(node)?;
        child.flights.push(no);
        child.down_backlog += bytes;
        child.debit -= bytes as i64;
        child.rate_in.begin(now);
        if lease {
            child.leases += 1;
            ds.extents[e as usize].lease = Some(no);
            ds.extents[e as usize].last_root = Some(node);
            ds.seed(e);
            self.origin.granted(now, shared);
            self.counters.origin_leases += 1;
        }
        ds.settle(e, node, true);
        self.counters.assignments += 1;
        self.tell(ds, no);
        Some(no)
    }

    /// Sends the order of a flight (again: agents know it by its number).
    pub(crate) fn tell(&mut self, ds: &Dataset, no: FlightNo) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        self.actions.push_back(Action::Assign {
            node: flight.node,
            assignment: Assignment {
                id: flight.id,
                dataset: ds.id,
                pieces: ds.extents[flight.extent as usize].pieces.clone(),
                source: flight.source,
                alternates: flight.alternates.clone(),
                lease_us: flight.lease_us,
                priority: flight.priority,
            },
        });
    }

    fn lease_us(&self, ds: &Dataset) -> u64 {
        if ds.typical_origin_us > 0.0 {
            self.config.lease_min_us.max((ds.typical_origin_us * LEASE_FACTOR) as u64)
        } else {
            self.config.lease_min_us.max(LEASE_FIRST_US)
        }
    }

    /// Ends a flight; `bytes` came. The caller settles what the node has and needs.
    pub(crate) fn land(&mut self, ds: &mut Dataset, now: Time, no: FlightNo, bytes: u64) -> Option<Flight> {
        let flight = self.flights.remove(no)?;
        let extent = &mut ds.extents[flight.extent as usize];
        let flights = &mut self.flights;
        relink(flights, unlink(&mut extent.flights, flight.at_extent), |f| f.at_extent = flight.at_extent);
        ds.flying -= 1;
        if let Some(node) = self.nodes.get_mut(flight.node) {
            relink(flights, unlink(&mut node.flights, flight.at_node), |f| f.at_node = flight.at_node);
            node.down_backlog -= flight.bytes;
            node.flow.came += bytes;
            node.rate_in.took(now, bytes, node.flights.is_empty());
        }
        match flight.source {
            Source::Peer(peer) => {
                if let Some(parent) = self.nodes.get_mut(peer) {
                    relink(flights, unlink(&mut parent.serving, flight.at_source), |f| f.at_source = flight.at_source);
                    parent.up_backlog -= flight.bytes;
                }
            }
            Source::Origin => {
                if let Some(node) = self.nodes.get_mut(flight.node) {
                    node.leases -= 1;
                }
                extent.lease = None;
                self.origin.ended(now, flight.shared_lease, bytes);
                ds.seed(flight.extent);
            }
        }
        Some(flight)
    }

    /// Takes an order back: the node keeps the pieces it has.
    pub(crate) fn recall(&mut self, ds: &mut Dataset, now: Time, no: FlightNo) {
        if let Some(flight) = self.land(ds, now, no, 0) {
            ds.settle(flight.extent, flight.node, false);
            self.actions.push_back(Action::Cancel { node: flight.node, assignment: flight.id });
        }
    }

    /// Gives a flight another source, under a new number.
    pub(crate) fn reassign(&mut self, ds: &mut Dataset, now: Time, no: FlightNo, found: Option<Found>) {
        let Some(old) = self.land(ds, now, no, 0) else {
            return;
        };
        self.counters.requeues += 1;
        let (source, alternates) = match found {
            Some(found) => (Source::Peer(found.source), found.alternates),
            None => (Source::Origin, Vec::new()),
        };
        let resourced = old.resourced.saturating_add(1);
        if self.launch(ds, now, old.extent, old.node, source, alternates, resourced).is_none() {
            ds.settle(old.extent, old.node, false);
        }
    }

    /// A flight lost its source: another one, or the lease, or back to the heap of things to do.
    pub(crate) fn rehome(&mut self, ds: &mut Dataset, now: Time, no: FlightNo, not: Option<NodeId>) {
        let Some(flight) = self.flights.get(no) else {
            return;
        };
        let (e, node) = (flight.extent, flight.node);
        let found = self.find_source(ds, now, e, node, not);
        let ready = self.nodes.get(node).is_some_and(|n| n.serves());
        if found.is_some() || (!ds.seeded.get(e) && ready) {
            self.reassign(ds, now, no, found);
        } else {
            self.recall(ds, now, no);
            self.counters.requeues += 1;
        }
    }

    /// Flights of one extent that were fed by `node`.
    pub(crate) fn children(&self, ds: &Dataset, e: ExtentNo, node: NodeId) -> Vec<FlightNo> {
        let Some(parent) = self.nodes.get(node) else {
            return Vec::new();
        };
        parent
            .serving
            .iter()
            .copied()
            .filter(|&no| self.flights.get(no).is_some_and(|f| f.extent == e && f.dataset == ds.id))
            .collect()
    }

    /// The extents of a version that are on their way to a node.
    pub(crate) fn flying_to(&self, ds: &Dataset, node: NodeId) -> Bits {
        let mut flying = Bits::default();
        for &no in self.nodes.get(node).map_or(&[][..], |n| &n.flights) {
            if let Some(flight) = self.flights.get(no).filter(|f| f.dataset == ds.id) {
                flying.set(flight.extent);
            }
        }
        flying
    }
}

fn relink(flights: &mut Flights, moved: Option<FlightNo>, fix: impl FnOnce(&mut Flight)) {
    if let Some(flight) = moved.and_then(|no| flights.get_mut(no)) {
        fix(flight);
    }
}
