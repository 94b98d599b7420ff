//! Planning: which node gets which extent from whom.
//!
//! Work is found node by node: whoever has room gets the rarest extent that others have ("catching up"), else the
//! next one from the origin. But an extent is always planned for *all* nodes that need it and have room, as a binary
//! tree that exists only while the extent moves. Whoever received more than it passed on stands at the top, so that
//! each node is inside about every second tree and a leaf of the others: all uplinks carry the same, a node forwards
//! an extent to two children while it is a leaf of the next, and the depth is log2(N). (Chains carry as much, but N
//! nodes deep; a parent with more children makes them wait for its uplink while others idle.)

mod demand;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millstream_types::{NodeId, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::Source;
use crate::limits::{
    ALTERNATES_MAX, CHILDREN_MAX, DEBIT_EXTENTS_MAX, FAN_OUT, LEASES_PER_NODE, SAMPLE_MAX, SERVE_MAX, STARVING_PART,
    WINDOW_US,
};
use crate::membership::Node;

/// Reused between plans: nothing is allocated per assignment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    wanters: Vec<Wanter>,
    candidates: Vec<(u32, ExtentNo)>,
    sources: Vec<(u64, NodeId)>,
    /// Possible parents: rounds of children they had, order of joining, number.
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
    /// By node: children in the present tree, and the next older member of the same rack.
    children: Vec<u32>,
    next_in_rack: Vec<Option<NodeId>>,
    /// By rack: the oldest member of the tree that has room for a child, and the youngest.
    rack_open: Vec<Option<NodeId>>,
    rack_last: Vec<Option<NodeId>>,
    /// Members so far: the older, the nearer to the root.
    joined: u32,
}

/// A node that needs an extent. Nodes keep their places from tree to tree as far as possible, so that what flows
/// through them flows evenly: other places each time mean bursts and gaps on uplinks that have nothing to spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanter {
    /// Joins last and feeds nobody: slow, quarantined, or far behind with what it owes.
    leaf: bool,
    /// Bytes passed on less bytes received, in extents.
    debit: i64,
    node: NodeId,
}

/// Where to get an extent when a plan has to be changed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) source: NodeId,
    pub(crate) alternates: Vec<NodeId>,
    pub(crate) holder: bool,
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
    fn open_for(&self, ds: &Dataset, node: NodeId) -> bool {
        ds.replica(node).is_some_and(|r| r.inventoried && r.refused.is_none())
    }

    /// Less is assigned to the node than it may have on its way at once.
    pub(crate) fn has_room(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.down_backlog < 2 * self.window(ds, n))
    }

    /// Little enough is assigned to the node that it asks for more. Between this and [`Self::has_room`] it takes part
    /// in what is planned for others: trees that leave half of the nodes out fall behind for good.
    fn hungry(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.down_backlog < self.window(ds, n))
    }

    /// So little is on its way that the node will soon idle: it does not wait for slower ones.
    fn starving(&self, ds: &Dataset, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| STARVING_PART * n.down_backlog < self.window(ds, n))
    }

    /// Bytes on their way to a node that keep it busy: leases in flight, the way down a tree, the control round trip.
    fn window(&self, ds: &Dataset, node: &Node) -> u64 {
        let depth = 64 - (u64::from(self.nodes.len()) | 1).leading_zeros();
        let extents = self.origin.budget.clamp(LEASES_PER_NODE, 32) + 4 + 2 * depth;
        let by_rate = node.rate_in.rate * WINDOW_US as f64 / 1e6;
        (ds.target * u64::from(extents)).max(by_rate as u64)
    }

    fn wants_now(&self, ds: &Dataset, now: Time, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.ready(now)) && self.open_for(ds, node)
    }

    /// An extent that somebody has or receives already.
    fn plan_seeded(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, node: NodeId) -> bool {
        if self.gate(ds, now, e, node).is_none() {
            return false;
        }
        self.list_wanters(ds, now, e);
        if !self.scratch.wanters.iter().any(|w| w.node == node) {
            return false;
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
        if self.scratch.heap.is_empty() {
            // Copies that are not to be trusted do not count.
            let extent = &ds.extents[e as usize];
            let distrusted = extent.lease.is_none()
                && extent.have.iter().all(|h| self.nodes.get(NodeId(h)).is_some_and(|n| n.quarantine.distrusted(now)));
            return distrusted && self.lease_allowed(ds, now, node, true) && self.grow_from_origin(ds, now, e);
        }
        self.grow(ds, now, e)
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
        (hungry * 2 >= wanting || self.starving(ds, node)).then_some(wanting > 1)
    }

    fn list_wanters(&mut self, ds: &Dataset, now: Time, e: ExtentNo) {
        let mut wanters = std::mem::take(&mut self.scratch.wanters);
        wanters.clear();
        self.rotation = self.rotation.wrapping_add(1);
        let bytes = ds.extents[e as usize].bytes.max(1);
        let (mut up, mut down, mut debit) = (0, 0, 0);
        for n in ds.extents[e as usize].todo.iter() {
            let node = NodeId(n);
            if !self.wants_now(ds, now, node) || !self.has_room(ds, node) {
                continue;
            }
            let Some(known) = self.nodes.get(node) else {
                continue;
            };
            up += known.up_backlog;
            down += known.down_backlog;
            debit += known.debit;
            wanters.push(Wanter { leaf: known.slow_in.is_slow() || !known.serves_well(now), debit: known.debit, node });
        }
        let count = wanters.len().max(1);
        let (up, down, debit) = (up / count as u64, down / count as u64, debit / count as i64);
        let debit_max = DEBIT_EXTENTS_MAX * bytes as i64;
        for wanter in &mut wanters {
            if let Some(known) = self.nodes.get_mut(wanter.node) {
                // Far behind the others: what hangs below it would wait.
                wanter.leaf |= known.up_backlog > 2 * up + 4 * bytes || known.down_backlog > 2 * down + 4 * bytes;
                known.debit = known.debit.clamp(debit - debit_max, debit + debit_max);
                wanter.debit = known.debit / bytes as i64;
            }
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

    fn ns(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.ns_per_byte) as u64
    }

    /// When the node's uplink has served what it owes, counted from now.
    fn up_free(&self, node: NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |n| (self.ns(n.up_backlog) as f64 * n.slow_out.factor()) as u64)
    }

    fn begin_tree(&mut self) {
        let nodes = self.nodes.len() as usize;
        let racks = self.nodes.racks() + 1;
        let scratch = &mut self.scratch;
        scratch.heap.clear();
        scratch.children.resize(nodes, 0);
        scratch.next_in_rack.resize(nodes, None);
        scratch.rack_open.clear();
        scratch.rack_open.resize(racks, None);
        scratch.rack_last.clear();
        scratch.rack_last.resize(racks, None);
        scratch.joined = 0;
    }

    /// `node` becomes a possible parent, that has `children` already.
    fn join_tree(&mut self, node: NodeId, children: u32) {
        let rack = self.nodes.get(node).map_or(0, |n| n.rack) as usize;
        let scratch = &mut self.scratch;
        let at = node.0 as usize;
        scratch.children[at] = children;
        scratch.joined += 1;
        scratch.heap.push(Reverse((children / FAN_OUT, scratch.joined, node.0)));
        if rack > 0 {
            scratch.next_in_rack[at] = None;
            if let Some(last) = scratch.rack_last[rack].replace(node) {
                scratch.next_in_rack[last.0 as usize] = Some(node);
            }
            scratch.rack_open[rack].get_or_insert(node);
        }
    }

    fn list_holders(&mut self, ds: &Dataset, now: Time, e: ExtentNo, out: &mut Vec<(u64, NodeId)>) {
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

    fn list_receivers(&self, ds: &Dataset, now: Time, e: ExtentNo, out: &mut Vec<(u64, NodeId)>) {
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

    /// Chooses the node that reads the extent from the origin, and grows the tree below it.
    fn grow_from_origin(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo) -> bool {
        let extent = &ds.extents[e as usize];
        let shard = ds.layout.shard_of(extent.pieces.start);
        let used = ds.sums.disputes.get(&shard).map_or(&[][..], |d| &d.used);
        let wanters = &self.scratch.wanters;
        let hinted = extent.hint.and_then(|(node, _)| wanters.iter().position(|w| w.node == node));
        let unused = |w: &Wanter| !used.contains(&w.node);
        let retry = |w: &Wanter| extent.attempts > 0 && extent.last_root == Some(w.node);
        let Some(at) = hinted
            .filter(|&i| unused(&wanters[i]))
            .or_else(|| wanters.iter().position(|w| unused(w) && !retry(w)))
            .or_else(|| wanters.iter().position(unused))
            .or_else(|| (!wanters.is_empty()).then_some(0))
        else {
            return false;
        };
        let root = self.scratch.wanters.remove(at).node;
        if self.launch(ds, now, e, root, Source::Origin, Vec::new(), 0).is_none() {
            return false;
        }
        self.join_tree(root, 0);
        self.grow(ds, now, e);
        true
    }

    /// Hangs all wanters into the tree, each below the oldest member that has room.
    fn grow(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo) -> bool {
        let wanters = std::mem::take(&mut self.scratch.wanters);
        let mut grown = false;
        for wanter in &wanters {
            let Some(parent) = self.best_parent(wanter.node) else {
                break;
            };
            let alternates = self.alternates(ds, e, wanter.node, parent);
            if self.launch(ds, now, e, wanter.node, Source::Peer(parent), alternates, 0).is_none() {
                break;
            }
            grown = true;
            if !wanter.leaf {
                self.join_tree(wanter.node, 0);
            }
        }
        self.scratch.wanters = wanters;
        grown
    }

    /// The parent for a child: in its own rack where one has room, else the oldest with the fewest rounds of children.
    fn best_parent(&mut self, child: NodeId) -> Option<NodeId> {
        let rack = self.nodes.get(child).map_or(0, |n| n.rack) as usize;
        while let Some(near) = self.scratch.rack_open[rack].filter(|_| rack > 0) {
            let at = near.0 as usize;
            if self.scratch.children[at] < FAN_OUT && self.takes_children(near) {
                self.scratch.children[at] += 1;
                return Some(near);
            }
            self.scratch.rack_open[rack] = self.scratch.next_in_rack[at];
        }
        loop {
            let Reverse((rounds, order, node)) = self.scratch.heap.pop()?;
            let parent = NodeId(node);
            let children = &mut self.scratch.children[node as usize];
            if *children / FAN_OUT > rounds {
                // It got children from its own rack since.
                self.scratch.heap.push(Reverse((*children / FAN_OUT, order, node)));
                continue;
            }
            *children += 1;
            let again = Reverse((*children / FAN_OUT, order, node));
            if self.takes_children(parent) {
                self.scratch.heap.push(again);
                return Some(parent);
            }
        }
    }

    fn takes_children(&self, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.serving.len() < CHILDREN_MAX)
    }

    /// Ancestors first, then another member of the tree: none of them is below the child.
    fn alternates(&self, ds: &Dataset, e: ExtentNo, child: NodeId, parent: NodeId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = Vec::with_capacity(ALTERNATES_MAX);
        let mut add = |node: NodeId| {
            if node != child && node != parent && !out.contains(&node) && out.len() < ALTERNATES_MAX {
                out.push(node);
            }
        };
        let above = |node| match self.flight_on(ds, e, node).map(|f| f.source) {
            Some(Source::Peer(node)) => Some(node),
            _ => None,
        };
        if let Some(grandparent) = above(parent) {
            add(grandparent);
        }
        if let Some(root) = ds.extents[e as usize].lease.and_then(|no| self.flights.get(no)) {
            add(root.node);
        }
        if let Some(&Reverse((_, _, other))) = self.scratch.heap.peek() {
            add(NodeId(other));
        }
        out
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
    fn fed_without(&self, ds: &Dataset, e: ExtentNo, receiver: NodeId, node: NodeId) -> bool {
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
