//! Sources: who can give a node an extent, the best first.

use millstream_types::{NodeId, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::Source;
use crate::limits::{ALTERNATES_MAX, SAMPLE_MAX};

/// Where to get an extent when a plan has to be changed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) source: NodeId,
    pub(crate) alternates: Vec<NodeId>,
    pub(crate) holder: bool,
}

impl Core {
    fn ns(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.ns_per_byte) as u64
    }

    /// When the node's uplink has served what it owes, counted from now.
    fn up_free(&self, node: NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |n| (self.ns(n.up_backlog) as f64 * n.slow_out.factor()) as u64)
    }

    /// When all that was ordered for the node is there, at the typical rate, counted from now.
    pub(crate) fn down_free(&self, node: NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |n| self.ns(n.down_backlog) / 1000)
    }

    pub(crate) fn list_holders(&mut self, ds: &Dataset, now: Time, e: ExtentNo, out: &mut Vec<(u64, NodeId)>) {
        self.rotation = self.rotation.wrapping_add(1);
        let turn = self.rotation % self.nodes.len().max(1);
        let (mut good, mut poor) = ([NodeId(0); SAMPLE_MAX], None);
        let mut count = 0;
        if !ds.checkable(e) {
            return;
        }
        for h in ds.extents[e as usize].have.iter_from(turn).take(4 * SAMPLE_MAX) {
            let holder = NodeId(h);
            match self.nodes.get(holder) {
                Some(n) if n.serves_well(now) => {
                    good[count] = holder;
                    count += 1;
                    if count == SAMPLE_MAX {
                        break;
                    }
                }
                Some(n) if n.serves() && !n.quarantine.distrusted(now) => poor = Some(holder),
                _ => {}
            }
        }
        let fallback = poor.filter(|_| count == 0);
        good[..count].iter().copied().chain(fallback).for_each(|holder| out.push((self.up_free(holder), holder)));
    }

    pub(crate) fn list_receivers(&self, ds: &Dataset, now: Time, e: ExtentNo, out: &mut Vec<(u64, NodeId)>) {
        let extent = &ds.extents[e as usize];
        let room = out.len() + SAMPLE_MAX;
        for i in 0..extent.flights.len().min(4 * SAMPLE_MAX) {
            let at = (i + self.rotation as usize) % extent.flights.len();
            let Some(flight) = self.flights.get(extent.flights[at]) else {
                continue;
            };
            let root = flight.source == Source::Origin;
            let fit = self.nodes.get(flight.node).is_some_and(|n| n.serves_well(now) || (root && n.serves()));
            if fit && out.len() < room {
                // One extent time later than a holder that is as busy.
                out.push((self.up_free(flight.node) + self.ns(extent.bytes), flight.node));
            }
        }
    }

    /// The node's flight of that extent.
    pub(crate) fn flight_on(&self, ds: &Dataset, e: ExtentNo, node: NodeId) -> Option<&crate::flight::Flight> {
        let flights = &self.nodes.get(node)?.flights;
        flights.iter().filter_map(|&no| self.flights.get(no)).find(|f| f.extent == e && f.dataset == ds.id)
    }

    /// Another source for one node, when a plan failed: a holder, or a receiver that does not depend on the node.
    pub(crate) fn find_source(
        &mut self,
        ds: &Dataset,
        now: Time,
        e: ExtentNo,
        node: NodeId,
        not: Option<NodeId>,
    ) -> Option<Found> {
        if self.chain(ds) {
            return self.chain_source(ds, now, e, node, not);
        }
        self.rotation = self.rotation.wrapping_add(1);
        let turn = self.rotation % self.nodes.len().max(1);
        let extent = &ds.extents[e as usize];
        let mut found: Vec<(bool, bool, u64, NodeId)> = Vec::new();
        for h in extent.have.iter_from(turn).take(if ds.checkable(e) { SAMPLE_MAX } else { 0 }) {
            let holder = NodeId(h);
            let fit = self.nodes.get(holder).is_some_and(|n| n.serves() && !n.quarantine.distrusted(now));
            if fit && holder != node && Some(holder) != not {
                found.push((false, self.poor(now, holder), self.up_free(holder), holder));
            }
        }
        if !found.iter().any(|f| !f.1) {
            for i in 0..extent.flights.len().min(SAMPLE_MAX) {
                let at = (i + turn as usize) % extent.flights.len();
                let Some(flight) = self.flights.get(extent.flights[at]) else {
                    continue;
                };
                let receiver = flight.node;
                let fit = self.nodes.get(receiver).is_some_and(|n| n.serves());
                if fit && receiver != node && Some(receiver) != not && self.fed_without(ds, e, receiver, node) {
                    found.push((true, self.poor(now, receiver), self.up_free(receiver), receiver));
                }
            }
            if let Some(root) = extent.lease.and_then(|no| self.flights.get(no)).map(|f| f.node) {
                let fit = self.nodes.get(root).is_some_and(|n| n.serves());
                if fit && root != node && Some(root) != not {
                    found.push((true, self.poor(now, root), self.up_free(root), root));
                }
            }
        }
        found.sort_unstable_by_key(|&(receiver, poor, up, id)| (poor, receiver, up, id));
        found.dedup_by_key(|f| f.3);
        let &(receiver, _, _, source) = found.first()?;
        let alternates = found[1..].iter().map(|f| f.3).take(ALTERNATES_MAX).collect();
        Some(Found { source, alternates, holder: !receiver })
    }

    fn poor(&self, now: Time, node: NodeId) -> bool {
        !self.nodes.get(node).is_some_and(|n| n.serves_well(now))
    }

    /// Does what `receiver` gets come from the origin or a holder, on a way that does not lead over `node`?
    pub(crate) fn fed_without(&self, ds: &Dataset, e: ExtentNo, receiver: NodeId, node: NodeId) -> bool {
        let mut at = receiver;
        for _ in 0..=self.nodes.len() {
            if at == node {
                return false;
            }
            if ds.extents[e as usize].have.get(at.0) {
                return true;
            }
            match self.flight_on(ds, e, at).map(|f| f.source) {
                Some(Source::Origin) => return true,
                Some(Source::Peer(next)) => at = next,
                None => return false,
            }
        }
        false
    }
}
