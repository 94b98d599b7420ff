//! What comes and goes is ordered, and what nodes and the origin answer to that is taken in.

use millstream_types::{DatasetId, NodeId, RunSet, Time};

use super::{Group, Word};
use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::Action;

/// What is to happen at one node.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) come: Vec<Group>,
    pub(super) go: Vec<Group>,
    pub(super) ask: Vec<Group>,
    pub(super) hand: Option<(Group, NodeId)>,
}

/// A version has less than its share on a node, and other versions have to make room for it.
#[derive(Debug)]
pub(crate) struct Lack {
    pub(super) dataset: DatasetId,
    pub(super) node: NodeId,
    pub(super) bytes: u64,
    /// How many groups its readers have before the one that waits.
    pub(super) at: usize,
    /// A reader waits for it: not ahead of them all.
    pub(super) urgent: bool,
}

impl Core {
    pub(super) fn carry_moves(&mut self, ds: &mut Dataset, now: Time, node: NodeId, moves: Moves) {
        let shards_of = |groups: &[Group]| RunSet::from_runs(groups.iter().map(|&g| ds.group_shards(g)));
        let (come, gone) = (shards_of(&moves.come), shards_of(&moves.go));
        // Empty files take no room, and nothing would bring them again.
        let mut drop = gone.clone();
        for shard in gone.iter().filter(|&s| ds.layout.shard_len(s) == 0) {
            drop.remove_range(shard..shard + 1);
        }
        if !come.is_empty() || !gone.is_empty() {
            let replica = ds.replica_entry(node);
            replica.demanded.union_with(&come);
            replica.demanded.remove_all(&gone);
            replica.dropping.union_with(&drop);
            self.want_again(ds, &[node]);
            self.tell_sums(ds, node, &come);
        }
        if !drop.is_empty() {
            // From now on nobody is sent there for it.
            for e in ds.extents_of(&drop) {
                ds.lose(e, node);
            }
            self.counters.dropped += drop.len();
            let waiting = ds.window.as_ref().map(|w| w.waiting_on(node)).unwrap_or_default();
            self.actions.push_back(Action::DropShards { node, dataset: ds.id, shards: drop, waiting });
        }
        if let Some((group, heir)) = moves.hand {
            let shards = RunSet::from_range(ds.group_shards(group));
            ds.replica_entry(heir).demanded.union_with(&shards);
            self.counters.handed_over += 1;
            self.want_again(ds, &[heir]);
            self.tell_sums(ds, heir, &shards);
        }
        if !moves.ask.is_empty() {
            let mut shards = RunSet::new();
            for &group in &moves.ask {
                shards.insert_range(ds.group_shards(group));
                if let Some(window) = &mut ds.window {
                    window.words.insert(group, Word::Asked(now));
                }
            }
            self.actions.push_back(Action::AskOrigin { dataset: ds.id, shards });
        }
    }

    /// The origin's word on shards that were asked about.
    pub(crate) fn origin_says(&mut self, now: Time, dataset: DatasetId, asked: &RunSet, holds: &RunSet) {
        self.with(dataset, |core, ds| {
            let mut groups: Vec<Group> =
                asked.iter().take_while(|&s| s < ds.layout.shards()).map(|s| ds.group_of(s)).collect();
            groups.dedup();
            for group in groups {
                let all = holds.contains_range(ds.group_shards(group));
                let word = if all { Word::Holds(now) } else { Word::Lacks(now) };
                if let Some(window) = &mut ds.window {
                    window.words.insert(group, word);
                }
            }
            core.refill_all(ds, now);
        });
        for node in 0..self.nodes.len() {
            self.refill_beside(now, dataset, NodeId(node));
        }
        self.serve_all(now);
    }

    /// A node dropped shards as it was told, or kept some that are in use there.
    pub(crate) fn shards_dropped(
        &mut self,
        now: Time,
        node: NodeId,
        dataset: DatasetId,
        dropped: &RunSet,
        kept: &RunSet,
    ) {
        self.with(dataset, |core, ds| {
            let replica = ds.replica_entry(node);
            replica.dropping.remove_all(dropped);
            replica.dropping.remove_all(kept);
            replica.sealed.remove_all(dropped);
            let groups: Vec<Group> = kept.iter().filter(|&s| s < ds.layout.shards()).map(|s| ds.group_of(s)).collect();
            if let Some(window) = &mut ds.window {
                window.kept.extend(groups.into_iter().map(|group| ((node, group), now)));
            }
            for e in ds.extents_of(dropped) {
                ds.lose(e, node);
            }
            for e in ds.extents_of(kept) {
                let shards = ds.layout.split_by_shard(ds.extents[e as usize].pieces.clone());
                if ds.on(node, |r| shards.map(|(shard, _)| shard).all(|shard| r.sealed.contains(shard))) {
                    ds.gain(e, node);
                }
            }
            core.refill_all(ds, now);
        });
        self.refill_beside(now, dataset, node);
        self.serve_all(now);
    }
}

impl Dataset {
    /// The extents of some shards.
    fn extents_of(&self, shards: &RunSet) -> Vec<ExtentNo> {
        let mut out = Vec::new();
        for run in shards.runs() {
            let end = run.end.min(self.layout.shards());
            if run.start < end {
                let pieces = self.layout.shard_pieces(run.start).start..self.layout.shard_pieces(end - 1).end;
                out.extend(self.extents_in(pieces));
            }
        }
        out
    }
}
