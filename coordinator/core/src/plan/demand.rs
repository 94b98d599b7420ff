//! Shards that a node itself asks for, because a reader there wants them now: beside what stages bring, and first.
//!
//! One extent at a time: whoever has it or receives it is the source. Else the origin is read, once for all nodes that
//! want it by then; those that ask later hang below them.

use millstream_types::{DatasetId, NodeId, RunSet, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo, Wanted};
use crate::event::{Action, NodeState, Source};
use crate::limits::{DEMAND_PRIORITY, LEASES_PER_NODE};
use crate::view::Demand;

impl Core {
    /// What it takes to have these shards on a node, too; `None` for an unknown version.
    pub fn demand(&self, dataset: DatasetId, node: NodeId, shards: &RunSet) -> Option<Demand> {
        let ds = self.dataset(dataset)?;
        let asked = ds.whole_groups(shards);
        // The room of readers has them already in it.
        let mut shards = asked.clone();
        shards.remove_all(&ds.announced(node));
        let announced = shards.len() < asked.len();
        let no_room = self.too_much_open(ds, node).filter(|_| announced);
        let turn = self.turn_of_others(ds, node, &asked).filter(|_| announced);
        let mut wanted = ds.replica(node).map(|r| r.wanted.clone()).unwrap_or_default();
        let before = wanted.bytes(&ds.layout);
        wanted.add(shards);
        let bytes_wanted = wanted.bytes(&ds.layout);
        let refused = ds.replica(node).filter(|r| r.staged != Wanted::Nothing).and_then(|r| r.refused.clone());
        Some(Demand { bytes_more: bytes_wanted - before, bytes_wanted, no_room, turn, refused })
    }

    pub(crate) fn shards_demanded(&mut self, now: Time, node: NodeId, dataset: DatasetId, shards: &RunSet) {
        let up = self.nodes.get(node).is_some_and(|n| n.seen && n.state != NodeState::Down);
        if up && self.with(dataset, |core, ds| core.cut(ds)).is_some() {
            self.hurry(now, node, dataset, shards);
        }
        let taken = up
            && self
                .with(dataset, |core, ds| {
                    // What readers announced comes within their room.
                    let mut shards = ds.whole_groups(shards);
                    shards.remove_all(&ds.announced(node));
                    let replica = ds.replica_entry(node);
                    // Evicted, once, or there was no room: now it is wanted again, and the node has to open it anew.
                    let again = replica.staged == Wanted::Nothing && replica.refused.take().is_some();
                    replica.demanded.union_with(&shards);
                    let attached = replica.attached;
                    core.want_again(ds, &[node]);
                    core.tell_sums(ds, node, &shards);
                    if !attached || again {
                        // A reader that is to announce itself asks for nothing yet.
                        core.have_opened(ds, now, node, !attached);
                    }
                })
                .is_some();
        if !taken {
            self.counters.ignored += 1;
            return;
        }
        if self.demanding.insert(dataset) {
            self.rank();
        }
        self.serve(now, node);
    }

    /// Sends a node the checksums that were learned of these shards while it did not receive them.
    pub(crate) fn tell_sums(&mut self, ds: &Dataset, node: NodeId, shards: &RunSet) {
        // Before its inventory is in, all of them follow that.
        if !ds.replica(node).is_some_and(|r| r.inventoried) {
            return;
        }
        for run in shards.runs() {
            let pieces = ds.layout.shard_pieces(run.start).start..ds.layout.shard_pieces(run.end - 1).end;
            for known in ds.sums.learned().runs() {
                let part = known.start.max(pieces.start)..known.end.min(pieces.end);
                if part.start < part.end {
                    self.actions.push_back(Action::Checksums {
                        to: vec![node],
                        dataset: ds.id,
                        first: part.start,
                        crcs: ds.sums.slice(part),
                    });
                }
            }
        }
    }

    /// Finds work for a node among what it asked for itself.
    pub(super) fn serve_demand(&mut self, now: Time, node: NodeId) -> bool {
        let versions: Vec<DatasetId> = self.demanding.iter().copied().collect();
        versions.into_iter().any(|id| self.with(id, |core, ds| core.demand_from(ds, now, node)).unwrap_or(false))
    }

    fn demand_from(&mut self, ds: &mut Dataset, now: Time, node: NodeId) -> bool {
        // More than stages may have on their way to it: what they ordered before must not hold a reader up.
        let room =
            self.nodes.get(node).is_some_and(|n| n.down_backlog < (self.windows(ds, n) + 1) * self.window(ds, n));
        if !self.open_for(ds, node) || !room {
            return false;
        }
        let Some(replica) = ds.replica(node).filter(|r| !r.demanded.is_empty() && !r.todo.is_empty()) else {
            return false;
        };
        let mut open: Vec<ExtentNo> = Vec::new();
        for run in ds.demand_order(node) {
            let pieces = ds.layout.shard_pieces(run.start).start..ds.layout.shard_pieces(run.end - 1).end;
            open.extend(ds.extents_in(pieces).into_iter().filter(|&e| replica.todo.get(e)));
        }
        let reading = ds.window.as_ref().map(|w| w.in_use(node));
        open.into_iter().any(|e| {
            let ahead = reading.as_ref().is_some_and(|now| ds.is_ahead(node, e, now));
            self.bring(ds, now, e, node, ahead)
        })
    }

    /// Brings one extent to one node, from wherever it can be had. `ahead`: no reader there has come to it.
    fn bring(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, node: NodeId, ahead: bool) -> bool {
        let found = match (ds.seeded.get(e), self.chain(ds)) {
            (false, _) => None,
            (true, true) => self.branch_end(ds, now, e, node),
            (true, false) => self.find_source(ds, now, e, node, None),
        };
        // Ahead of everything that is only staged.
        let staged = std::mem::replace(&mut ds.priority, DEMAND_PRIORITY);
        let launched = match found {
            Some(found) => {
                let source = Source::Peer(found.source);
                self.launch(ds, now, e, node, source, found.alternates, 0).is_some()
            }
            None => {
                let extent = &ds.extents[e as usize];
                // Somebody has it or reads it, who cannot be asked at present: that passes, or it is lost.
                let mine = self.nodes.get(node).map_or(0, |n| n.leases);
                let free = extent.lease.is_none() && extent.not_before <= now && mine < LEASES_PER_NODE;
                let gathered = ds.window.is_none() || self.gather_until.is_none_or(|until| now >= until);
                let may = !ds.seeded.get(e) && free && gathered && self.inventories_in(ds, now);
                // Reads that are shared wait for each other: many at once all end late, and until then nobody has
                // anything to pass on. A reader does not wait for those of stages, nor for those that are ahead.
                let shared = extent.todo.count() as usize + extent.flights.len() > 1;
                let few = self.origin.shared < self.origin.budget + LEASES_PER_NODE;
                let allowed = self.origin.allows(now, ahead && shared) && (!shared || few);
                may && allowed && self.read_for_all(ds, now, e, node)
            }
        };
        ds.priority = staged;
        launched
    }

    /// One node reads it, and all others that want it by now and have room hang below.
    fn read_for_all(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, node: NodeId) -> bool {
        self.list_wanters(ds, now, e);
        self.begin_tree();
        self.grow_from_origin(ds, now, e) || self.launch(ds, now, e, node, Source::Origin, Vec::new(), 0).is_some()
    }
}

impl Dataset {
    /// The shards of all placement groups that these are in: extents do not divide groups of small shards.
    pub(crate) fn whole_groups(&self, shards: &RunSet) -> RunSet {
        let mut out = RunSet::new();
        for shard in shards.iter().take_while(|&s| s < self.layout.shards()) {
            if out.contains(shard) {
                continue;
            }
            let next = self.groups.partition_point(|&g| g <= shard);
            let end = self.groups.get(next).copied().unwrap_or(self.layout.shards());
            out.insert_range(self.groups[next - 1]..end);
        }
        out
    }
}
