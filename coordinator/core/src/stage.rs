//! Stages: which shards shall be on which nodes, and when that is so.

use millstream_types::{DatasetId, NodeId, RunSet, StageId, Time};

use crate::bits::Bits;
use crate::catalog::{Dataset, Wanted};
use crate::event::Placement;

/// Where a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StageState {
    Running,
    Done,
    Failed,
    Cancelled,
}

impl StageState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            StageState::Running => "running",
            StageState::Done => "done",
            StageState::Failed => "failed",
            StageState::Cancelled => "cancelled",
        }
    }
}

/// The shortest time in microseconds, where there are rates, and what it comes from.
pub(crate) type Bound = (Option<u64>, &'static str);

/// A request that a version be on nodes.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) id: StageId,
    pub(crate) dataset: DatasetId,
    /// Sorted, each once.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) placement: Placement,
    pub(crate) priority: u32,
    pub(crate) state: StageState,
    pub(crate) started: Time,
    pub(crate) ended: Option<Time>,
    /// The version's origin bytes when it began.
    pub(crate) origin_base: u64,
    /// Bytes of it that were on its nodes when it began, as far as they were asked.
    pub(crate) found: u64,
    /// Those that have not told yet what they hold.
    pub(crate) untold: Bits,
    /// Origin bytes when it ended.
    pub(crate) origin_end: Option<u64>,
    /// Its lower bound when it ended: what is measured later is no measure of it.
    pub(crate) bound_end: Option<Bound>,
    /// For `Spread`: shards per node, in the order of `nodes`.
    pub(crate) spread: Vec<RunSet>,
}

impl Stage {
    /// What it wants on a node.
    pub(crate) fn wants(&self, node: NodeId) -> Wanted {
        if self.state == StageState::Cancelled {
            return Wanted::Nothing;
        }
        match (self.nodes.binary_search(&node), self.placement) {
            (Err(_), _) => Wanted::Nothing,
            (Ok(_), Placement::Replicate) => Wanted::All,
            (Ok(_), Placement::Window) => Wanted::Some(RunSet::new()),
            (Ok(i), Placement::Spread(_)) => Wanted::Some(self.spread.get(i).cloned().unwrap_or_default()),
        }
    }

    /// Bytes of it that one of its nodes has.
    pub(crate) fn ready_on(&self, ds: &Dataset, node: NodeId) -> u64 {
        let Ok(i) = self.nodes.binary_search(&node) else {
            return 0;
        };
        let Some(placed) = self.spread.get(i) else {
            let whole = self.placement == Placement::Replicate;
            return ds.replica(node).filter(|_| whole).map_or(0, |r| r.have_bytes);
        };
        let here = ds.extents.iter().filter(|e| e.have.get(node.0));
        here.filter(|e| placed.contains(ds.layout.shard_of(e.pieces.start))).map(|e| e.bytes).sum()
    }

    /// Bytes of it that its nodes have.
    pub(crate) fn ready(&self, ds: &Dataset) -> u64 {
        self.nodes.iter().map(|&n| self.ready_on(ds, n)).sum()
    }

    /// Places the groups of shards on the nodes by rendezvous hashing: a node that comes or goes moves only its own.
    pub(crate) fn place(&mut self, ds: &Dataset, name_of: impl Fn(NodeId) -> u64) {
        let Placement::Spread(copies) = self.placement else {
            return;
        };
        let copies = (copies.max(1) as usize).min(self.nodes.len());
        let names: Vec<u64> = self.nodes.iter().map(|&n| name_of(n)).collect();
        let mut runs: Vec<Vec<std::ops::Range<u32>>> = vec![Vec::new(); self.nodes.len()];
        let mut scored: Vec<(u64, usize)> = Vec::with_capacity(names.len());
        for (g, &first) in ds.groups.iter().enumerate() {
            let end = ds.groups.get(g + 1).copied().unwrap_or(ds.layout.shards());
            scored.clear();
            scored.extend(names.iter().enumerate().map(|(i, &name)| (mix(name ^ mix(u64::from(first))), i)));
            if copies < scored.len() {
                scored.select_nth_unstable_by(copies - 1, |a, b| b.cmp(a));
            }
            for &(_, i) in &scored[..copies] {
                runs[i].push(first..end);
            }
        }
        self.spread = runs.into_iter().map(RunSet::from_runs).collect();
    }
}

/// The union of what several stages want.
pub(crate) fn union(wants: impl Iterator<Item = Wanted>) -> Wanted {
    wants.fold(Wanted::Nothing, |all, one| match (all, one) {
        (Wanted::All, _) | (_, Wanted::All) => Wanted::All,
        (Wanted::Nothing, w) | (w, Wanted::Nothing) => w,
        (Wanted::Some(mut a), Wanted::Some(b)) => {
            a.union_with(&b);
            Wanted::Some(a)
        }
    })
}

/// A number for a name (FNV-1a): the same after a restart, unlike node numbers.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Scatters a number (SplitMix64's finaliser).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
