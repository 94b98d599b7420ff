//! Growing the tree along which one extent moves, below its source (see [`crate::chain`] for chains).

use std::cmp::Reverse;

use millstream_types::{NodeId, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::chain::NOBODY;
use crate::event::Source;
use crate::limits::{ALTERNATES_MAX, CHILDREN_MAX, FAN_OUT};
use crate::plan::Wanter;

impl Core {
    pub(crate) fn begin_tree(&mut self) {
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
    pub(crate) fn join_tree(&mut self, node: NodeId, children: u32) {
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

    /// Chooses the node that reads the extent from the origin, and grows the tree below it.
    pub(crate) fn grow_from_origin(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo) -> bool {
        let extent = &ds.extents[e as usize];
        let shard = ds.layout.shard_of(extent.pieces.start);
        let used = ds.sums.disputes.get(&shard).map_or(&[][..], |d| &d.used);
        let chain = self.chain(ds);
        let wanters = &self.scratch.wanters;
        let hinted = extent.hint.and_then(|(node, _)| wanters.iter().position(|w| w.node == node));
        let unused = |w: &Wanter| !w.full && !used.contains(&w.node);
        let retry = |w: &Wanter| extent.attempts > 0 && extent.last_root == Some(w.node);
        let Some(at) = hinted
            .filter(|&i| unused(&wanters[i]))
            .or_else(|| wanters.iter().position(|w| unused(w) && !retry(w) && (chain || !w.busy)))
            .or_else(|| wanters.iter().position(|w| unused(w) && !retry(w)))
            .or_else(|| wanters.iter().position(unused))
            .or_else(|| wanters.iter().position(|w| !w.full))
        else {
            return false;
        };
        let root = self.scratch.wanters.remove(at).node;
        if self.launch(ds, now, e, root, Source::Origin, Vec::new(), 0).is_none() {
            return false;
        }
        if chain {
            if let Some(ring) = self.list_feeders(ds, now, e, NOBODY) {
                self.grow_chain(ds, now, e, ring);
            }
        } else {
            self.join_tree(root, 0);
            self.grow(ds, now, e);
        }
        true
    }

    /// Hangs all wanters into the tree, each below the oldest member that has room.
    pub(crate) fn grow(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo) -> bool {
        let wanters = std::mem::take(&mut self.scratch.wanters);
        let mut grown = false;
        for wanter in &wanters {
            let Some(parent) = self.best_parent(wanter.node) else {
                break;
            };
            let other = self.scratch.heap.peek().map(|&Reverse((_, _, other))| NodeId(other));
            let alternates = self.alternates(ds, e, wanter.node, parent, other);
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

    pub(crate) fn takes_children(&self, node: NodeId) -> bool {
        self.nodes.get(node).is_some_and(|n| n.serving.len() < CHILDREN_MAX)
    }

    /// Ancestors first, then another source: none of them is below the child.
    pub(crate) fn alternates(
        &self,
        ds: &Dataset,
        e: ExtentNo,
        child: NodeId,
        parent: NodeId,
        other: Option<NodeId>,
    ) -> Vec<NodeId> {
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
        if let Some(other) = other {
            add(other);
        }
        out
    }
}
