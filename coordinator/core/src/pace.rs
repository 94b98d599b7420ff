//! Who holds the others up.
//!
//! A chain is as fast as its slowest link, so that is looked for at every sweep: where much less came in than the one
//! before it in the chain had to give. Trees take over then, with that node as a leaf.

use millstream_types::{NodeId, Time};

use crate::Core;
use crate::event::{NodeState, Source};
use crate::flight::FlightNo;
use crate::limits::{CALM_US, CHAIN_LATE_PART, EVEN_EXTENTS};

impl Core {
    /// Looks for the node where the flow along the chain breaks, once per sweep.
    pub(crate) fn watch_chain(&mut self, now: Time) {
        let broken = (0..self.nodes.len()).map(NodeId).find_map(|node| self.breaks_at(now, node));
        for i in 0..self.nodes.len() {
            if let Some(known) = self.nodes.get_mut(NodeId(i)) {
                known.swept = (0, known.swept.0);
            }
        }
        let Some((node, feeder)) = broken else {
            return;
        };
        self.chains_from = now + CALM_US;
        // One of the two; trees soon show which.
        if let Some(known) = self.nodes.get_mut(node) {
            known.slow_in.strike();
        }
        if let Source::Peer(feeder) = feeder
            && let Some(feeder) = self.nodes.get_mut(feeder)
        {
            feeder.slow_out.strike();
        }
        self.leave(now, node);
    }

    /// Did much less come to this member of a chain than its source had to give? The node and its source.
    fn breaks_at(&self, now: Time, node: NodeId) -> Option<(NodeId, Source)> {
        let known = self.nodes.get(node)?;
        let first = known.flights.first().and_then(|&no| self.flights.get(no)).filter(|_| known.flights.len() > 1)?;
        let ds = self.datasets.get(first.dataset.0 as usize)?.as_ref()?;
        if !self.chain(ds, now) {
            return None;
        }
        let (came, before) = known.swept;
        let given = match first.source {
            Source::Peer(peer) => self.nodes.get(peer).map_or(0, |p| p.swept.0),
            Source::Origin => before,
        };
        (given.max(before) > CHAIN_LATE_PART * (came + first.bytes)).then_some((node, first.source))
    }

    /// Are all nodes that want a version about equally far?
    pub(crate) fn compare_progress(&mut self) {
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                let up = |n| core.nodes.get(n).is_some_and(|n: &crate::membership::Node| n.state != NodeState::Down);
                let missing = |r: &crate::catalog::Replica| r.wanted_bytes.saturating_sub(r.ready_bytes);
                let members = ds.members().filter(|(n, r)| r.wanted_bytes > 0 && r.refused.is_none() && up(*n));
                let (mut least, mut most, mut count) = (u64::MAX, 0, 0);
                for (_, replica) in members {
                    least = least.min(missing(replica));
                    most = most.max(missing(replica));
                    count += 1;
                }
                ds.even = most.saturating_sub(least) <= (count + EVEN_EXTENTS) * ds.target;
            });
        }
    }

    /// What waits for a node that is late itself goes to nodes that have it.
    fn leave(&mut self, now: Time, node: NodeId) {
        let serving: Vec<FlightNo> = self.nodes.get(node).map(|n| n.serving.clone()).unwrap_or_default();
        for no in serving {
            let Some((id, e, to)) =
                self.flights.get(no).filter(|f| f.source_ready.is_none()).map(|f| (f.dataset, f.extent, f.node))
            else {
                continue;
            };
            self.with(id, |core, ds| {
                if let Some(found) = core.find_source(ds, now, e, to, Some(node)) {
                    core.reassign(ds, now, no, Some(found));
                }
            });
        }
    }
}
