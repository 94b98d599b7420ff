//! Planning: which node gets which extent from whom.
//!
//! Work is found node by node: whoever has room gets the rarest extent that others have ("catching up"), else the
//! next one from the origin. But an extent is always planned for *all* nodes that need it and have room, as a tree
//! that exists only while the extent moves. Where nodes are few it is a chain, always the same (see
//! [`crate::chain`]); else it is binary, and whoever received more than it passed on stands at the top, so that
//! each node is inside about every second tree and a leaf of the others: all uplinks carry the same, and the depth is
//! log2(N). (A parent with more children makes them wait for its uplink while others idle.)

mod demand;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millstream_types::{NodeId, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::chain::{Feeder, NOBODY, Place};
use crate::limits::{
    DEBIT_EXTENTS_MAX, FAN_OUT, LEASES_PER_NODE, SAMPLE_MAX, SERVE_MAX, STARVING_PART, TREE_LEASES, WINDOW_US,
};
use crate::membership::Node;

/// Reused between plans: nothing is allocated per assignment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) wanters: Vec<Wanter>,
    pub(crate) candidates: Vec<(u32, ExtentNo)>,
    pub(crate) sources: Vec<(u64, NodeId)>,
    /// Possible parents: rounds of children they had, order of joining, number.
    pub(crate) heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
    /// By node: children in the present tree, and the next older member of the same rack.
    pub(crate) children: Vec<u32>,
    pub(crate) next_in_rack: Vec<Option<NodeId>>,
    /// By rack: the oldest member of the tree that has room for a child, and the youngest.
    pub(crate) rack_open: Vec<Option<NodeId>>,
    pub(crate) rack_last: Vec<Option<NodeId>>,
    /// Members so far: the older, the nearer to the root.
    pub(crate) joined: u32,
    /// Chains: who has the extent; nodes in their order; what nodes lack.
    pub(crate) feeders: Vec<Feeder>,
    pub(crate) line: Vec<Place>,
    pub(crate) missing: Vec<(u64, NodeId)>,
}

/// A node that needs an extent. Nodes keep their places from tree to tree as far as possible, so that what flows
/// through them flows evenly: other places each time mean bursts and gaps on uplinks that have nothing to spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanter {
    /// Joins last and feeds nobody: slow, quarantined, or far behind with what it owes.
    pub(crate) leaf: bool,
    /// Bytes passed on less bytes received, in extents.
    pub(crate) debit: i64,
    pub(crate) node: NodeId,
    /// More is on its way to it than to the others: what it reads from the origin would be late.
    pub(crate) busy: bool,
    /// Chains: as much is on its way to it as may be, and all behind it wait, too.
    pub(crate) full: bool,
}

impl Core {
    /// Finds work for a node until its window is full or nothing is left for it.
    pub(crate) fn serve(&mut self, now: Time, node: NodeId) {
        for _ in 0..SERVE_MAX {
            if !self.nodes.get(node).is_some_and(|n| n.ready(now)) {
                return;
            }
            let mut planned = self.serve_demand(now, node);
            for i in 0..self.active.len() {
                if planned {
                    break;
                }
                let id = self.active[i];
                planned = self.with(id, |core, ds| core.serve_from(ds, now, node)).unwrap_or(false);
            }
            if !planned {
                return;
            }
        }
    }

    fn serve_from(&mut self, ds: &mut Dataset, now: Time, node: NodeId) -> bool {
        if !self.open_for(ds, node) || !self.hungry(ds, node) {
            return false;
        }
        let mut candidates = std::mem::take(&mut self.scratch.candidates);
        ds.catch_up_candidates(node, &mut candidates);
        let planned = candidates.iter().take(4).any(|&(_, e)| self.plan_seeded(ds, now, e, node));
        self.scratch.candidates = candidates;
        planned || self.plan_fresh(ds, now, node)
    }

    /// The version is open on the node and may go there.
    pub(crate) fn open_for(&self, ds: &Dataset, node: NodeId) -> bool {
        ds.replica(node).is_some_and(|r| r.inventoried && r.refused.is_none())
    }

    /// Less is assigned to the node than it may have on its way at once.
    pub(crate) fn has_room(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.down_backlog < self.windows(ds, n) * self.window(ds, n))
    }

    /// Little enough is assigned to the node that it asks for more. Between this and [`Self::has_room`] it takes part
    /// in what is planned for others: trees that leave half of the nodes out fall behind for good.
    pub(crate) fn hungry(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.down_backlog < self.window(ds, n))
    }

    /// So little is on its way that the node will soon idle: it does not wait for slower ones.
    fn starving(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| STARVING_PART * n.down_backlog < self.window(ds, n))
    }

    /// Bytes on their way to a node that keep it busy: leases in flight, the way down a tree, the control round trip.
    fn window(&self, ds: &Dataset, node: &Node) -> u64 {
        let nodes = self.nodes.len();
        let chain = self.chain(ds);
        let depth = if chain { nodes } else { 2 * (32 - (nodes | 1).leading_zeros()) };
        // What trees are always allowed beyond one node's leases keeps no single node busy.
        let leases = self.origin.budget.saturating_sub(if chain { 0 } else { TREE_LEASES - LEASES_PER_NODE });
        let extents = leases.clamp(LEASES_PER_NODE, 32) + 4 + depth;
        // One rate for a whole chain: a node with room that those before it lack would be fed from farther away.
        let rate = if chain { 1e9 / self.ns_per_byte } else { node.rate_in.rate };
        let by_rate = rate * WINDOW_US as f64 / 1e6;
        (ds.target * u64::from(extents)).max(by_rate as u64)
    }

    fn wants_now(&self, ds: &Dataset, now: Time, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.ready(now)) && self.open_for(ds, node)
    }

    /// An extent that somebody has or receives already.
    fn plan_seeded(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, node: NodeId) -> bool {
        // A chain begun with those who were asked first would be joined in the middle.
        if self.chain(ds) && ds.pending > 0 || self.gate(ds, now, e, node).is_none() {
            return false;
        }
        self.list_wanters(ds, now, e);
        if !self.scratch.wanters.iter().any(|w| w.node == node && !w.full) {
            return false;
        }
        if self.chain(ds) {
            return match self.list_feeders(ds, now, e, NOBODY) {
                Some(ring) => self.grow_chain(ds, now, e, ring),
                None => self.plan_distrusted(ds, now, e, node),
            };
        }
        self.begin_tree();
        let mut sources = std::mem::take(&mut self.scratch.sources);
        sources.clear();
        self.list_holders(ds, now, e, &mut sources);
        self.list_receivers(ds, now, e, &mut sources);
        sources.sort_unstable();
        // A source passes each extent on once, like the origin: those who get it do the rest.
        for &(_, source) in &sources {
            self.join_tree(source, FAN_OUT - 1);
        }
        self.scratch.sources = sources;
        match self.scratch.heap.is_empty() {
            false => self.grow(ds, now, e),
            true => self.plan_distrusted(ds, now, e, node),
        }
    }

    /// Copies that are not to be trusted do not count: the origin is read again.
    fn plan_distrusted(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, node: NodeId) -> bool {
        let extent = &ds.extents[e as usize];
        let distrusted = extent.lease.is_none()
            && extent.have.iter().all(|h| self.nodes.get(NodeId(h)).is_some_and(|n| n.quarantine.distrusted(now)));
        distrusted && self.lease_allowed(ds, now, node, true) && self.grow_from_origin(ds, now, e)
    }

    /// The next extent that only the origin has.
    fn plan_fresh(&mut self, ds: &mut Dataset, now: Time, node: NodeId) -> bool {
        if !self.inventories_in(ds, now) || !self.origin.allows(now, false) {
            return false;
        }
        let Some(e) = ds.next_fresh(node, now) else {
            return false;
        };
        let Some(shared) = self.gate(ds, now, e, node) else {
            return false;
        };
        if !self.lease_allowed(ds, now, node, shared) {
            return false;
        }
        self.list_wanters(ds, now, e);
        self.begin_tree();
        self.grow_from_origin(ds, now, e)
    }

    fn lease_allowed(&self, ds: &Dataset, now: Time, node: NodeId, shared: bool) -> bool {
        let mine = self.nodes.get(node).map_or(0, |n| n.leases);
        self.origin.allows(now, shared) && (shared || mine < LEASES_PER_NODE) && self.inventories_in(ds, now)
    }

    /// What the nodes hold is known, so that nothing of it is read from the origin again.
    fn inventories_in(&self, ds: &Dataset, now: Time) -> bool {
        ds.pending == 0 && (ds.recovered || now >= self.recover_until)
    }

    /// `None`: most of those that need it are busy, and `node` can wait. Else: is it shared by several nodes?
    fn gate(&mut self, ds: &Dataset, now: Time, e: ExtentNo, node: NodeId) -> Option<bool> {
        self.rotation = self.rotation.wrapping_add(7);
        let turn = self.rotation % self.nodes.len().max(1);
        let (mut wanting, mut hungry) = (0, 0);
        for n in ds.extents[e as usize].todo.iter_from(turn).take(SAMPLE_MAX) {
            if self.wants_now(ds, now, NodeId(n)) {
                wanting += 1;
                hungry += u32::from(self.hungry(ds, NodeId(n)));
            }
        }
        // The first of a chain is ahead of the others by its length, and does not wait for them.
        (hungry * 2 >= wanting || self.chain(ds) || self.starving(ds, node)).then_some(wanting > 1)
    }

    fn list_wanters(&mut self, ds: &Dataset, now: Time, e: ExtentNo) {
        let mut wanters = std::mem::take(&mut self.scratch.wanters);
        wanters.clear();
        self.rotation = self.rotation.wrapping_add(1);
        let chain = self.chain(ds);
        let bytes = ds.extents[e as usize].bytes.max(1);
        let (mut up, mut down, mut debit) = (0, 0, 0);
        for n in ds.extents[e as usize].todo.iter() {
            let node = NodeId(n);
            let full = !self.has_room(ds, node);
            let Some(known) = self.nodes.get(node).filter(|_| self.wants_now(ds, now, node)) else {
                continue;
            };
            // Nobody waits for a node to which nothing comes: it may be waiting for them.
            if full && !(chain && known.flow.runs()) {
                continue;
            }
            up += known.up_backlog;
            down += known.down_backlog;
            debit += known.debit;
            wanters.push(Wanter {
                leaf: known.slow_in.is_slow() || !known.serves_well(now),
                debit: known.debit,
                node,
                busy: false,
                full,
            });
        }
        let count = wanters.len().max(1);
        let (up, down, debit) = (up / count as u64, down / count as u64, debit / count as i64);
        let debit_max = DEBIT_EXTENTS_MAX * bytes as i64;
        for wanter in &mut wanters {
            if let Some(known) = self.nodes.get_mut(wanter.node) {
                // Far behind the others: what hangs below it would wait.
                wanter.leaf |= known.up_backlog > 2 * up + 4 * bytes || known.down_backlog > 2 * down + 4 * bytes;
                wanter.busy = wanter.leaf || known.down_backlog > down + 4 * bytes;
                known.debit = known.debit.clamp(debit - debit_max, debit + debit_max);
                wanter.debit = known.debit / bytes as i64;
            }
        }
        if chain {
            wanters.sort_unstable_by_key(|w| self.place(ds, now, w.node));
            self.scratch.wanters = wanters;
            return;
        }
        // The half that owes most comes first, and within each half everyone keeps its place.
        let inside = count.div_ceil(2).min(wanters.len());
        if inside < wanters.len() {
            wanters.select_nth_unstable(inside);
        }
        let (first, second) = wanters.split_at_mut(inside);
        first.sort_unstable_by_key(|w| (w.leaf, w.node));
        second.sort_unstable_by_key(|w| (w.leaf, w.node));
        self.scratch.wanters = wanters;
    }
}
