//! The last copy: may a node drop what it has?
//!
//! A copy of a shard is a visible replica on another node that is up and trusted, or the object at the origin while it
//! still is the pinned one. Whether it is, only the shell can ask; here it comes in as a set of shards. What is not
//! known does not count as a copy: a refused eviction can be asked for again, a dropped last copy cannot.

use millstream_types::{DatasetId, NodeId, RunSet, ShardNo, Time};

use crate::Core;
use crate::catalog::Dataset;
use crate::event::Action;
use crate::view::Departures;

impl Core {
    /// Shards that would be on no node if all of these dropped the version: for them the origin's word counts.
    pub fn only_on(&self, now: Time, dataset: DatasetId, nodes: &[NodeId]) -> RunSet {
        let Some(ds) = self.dataset(dataset) else {
            return RunSet::new();
        };
        let mut theirs = RunSet::new();
        for &node in nodes {
            theirs.union_with(&ds.may_hold(node));
        }
        theirs.remove_all(&self.elsewhere(ds, now, nodes));
        theirs
    }

    /// Which of these nodes may drop the version when the origin still holds `at_origin`. Asked in this order: the
    /// first node that has something not kept elsewhere stays, and with it everything that it has is kept.
    pub fn departures(&self, now: Time, dataset: DatasetId, nodes: &[NodeId], at_origin: &RunSet) -> Departures {
        let mut out = Departures::default();
        let Some(ds) = self.dataset(dataset) else {
            out.go = nodes.to_vec();
            return out;
        };
        let mut safe = self.elsewhere(ds, now, nodes);
        safe.union_with(at_origin);
        for &node in nodes {
            let mut last = ds.may_hold(node);
            last.remove_all(&safe);
            if last.is_empty() {
                out.go.push(node);
            } else {
                out.stay.push((node, last));
                // What it is only believed to hold keeps nothing.
                safe.union_with(&self.copies_on(ds, now, node));
            }
        }
        out
    }

    /// Shards that need no node of `nodes`: others hold them, or there is nothing in them to lose.
    fn elsewhere(&self, ds: &Dataset, now: Time, nodes: &[NodeId]) -> RunSet {
        let mut safe = ds.empty_shards();
        for (other, _) in ds.members().filter(|(n, _)| !nodes.contains(n)) {
            safe.union_with(&self.copies_on(ds, now, other));
        }
        safe
    }

    /// What counts as a copy on a node: visible there, the node is with us, trusted, and not about to drop it.
    pub(crate) fn copies_on(&self, ds: &Dataset, now: Time, node: NodeId) -> RunSet {
        let trusted = self.nodes.get(node).is_some_and(|n| n.serves() && !n.quarantine.distrusted(now));
        match ds.replica(node) {
            Some(replica) if trusted && !replica.leaving => {
                let mut copies = replica.sealed.clone();
                copies.remove_all(&replica.dropping);
                copies
            }
            _ => RunSet::new(),
        }
    }

    /// Orders nodes to drop the version. From now on they do not count as holders.
    pub(crate) fn eviction_ordered(&mut self, dataset: DatasetId, nodes: Vec<NodeId>) {
        self.with(dataset, |core, ds| {
            for node in nodes {
                ds.replica_entry(node).leaving = true;
                core.actions.push_back(Action::Evict { node, dataset });
            }
        });
    }

    /// A node kept the version after all (pinned, leased, its disk).
    pub(crate) fn eviction_refused(&mut self, node: NodeId, dataset: DatasetId) {
        self.with(dataset, |_, ds| {
            if let Some(replica) = ds.replica_mut(node) {
                replica.leaving = false;
            }
        });
    }
}

impl Dataset {
    /// What a node may hold: everything, while its inventory is on its way.
    fn may_hold(&self, node: NodeId) -> RunSet {
        match self.replica(node) {
            Some(replica) if replica.inventoried => replica.sealed.clone(),
            _ => RunSet::from_range(0..self.layout.shards()),
        }
    }

    fn empty_shards(&self) -> RunSet {
        let empty = |&s: &ShardNo| self.layout.shard_len(s) == 0;
        RunSet::from_runs((0..self.layout.shards()).filter(empty).map(|s| s..s + 1))
    }
}
