//! Who holds what of a version, shard by shard: a copy that can be looked at elsewhere, and pictures made of it.
//!
//! Purpose: the status page's map and tables. Taking the copy costs the owner of the core about a millisecond for
//! 1,000 nodes and 10,000 shards; everything that costs more works on the copy. Non-goals: decisions.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use millstream_types::{DatasetId, Layout, NodeId, PieceRange, ShardNo, Time};

use crate::Core;
use crate::bits::Bits;
use crate::catalog::{Dataset, Wanted};
use crate::event::{NodeState, ShardFailure, Source};
use crate::flight::Flight;

mod states;

pub use states::{Grid, States};

/// Where a shard stands on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShardState {
    /// Not there, and not to come.
    Missing,
    /// Wanted; no byte is on its way.
    Queued,
    /// Some bytes are there, or on their way.
    Receiving,
    /// All bytes are there; it is not visible yet.
    Verifying,
    /// Verified and visible.
    Ready,
    /// What was read of it is wrong: it failed, or is in doubt and read again.
    Bad,
}

impl ShardState {
    /// In the order of a shard's life.
    pub const ALL: [ShardState; 6] = [
        ShardState::Missing,
        ShardState::Queued,
        ShardState::Receiving,
        ShardState::Verifying,
        ShardState::Ready,
        ShardState::Bad,
    ];

    /// `missing`, `queued`, `receiving`, `verifying`, `ready` or `bad`.
    pub fn as_str(self) -> &'static str {
        match self {
            ShardState::Missing => "missing",
            ShardState::Queued => "queued",
            ShardState::Receiving => "receiving",
            ShardState::Verifying => "verifying",
            ShardState::Ready => "ready",
            ShardState::Bad => "bad",
        }
    }
}

/// How many of something are in each [`ShardState`], in the order of [`ShardState::ALL`].
pub type StateCounts = [u32; 6];

#[derive(Clone, Debug)]
struct Held {
    pieces: PieceRange,
    have: Bits,
}

/// A node's part in a version.
#[derive(Clone, Debug)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    wanted: Wanted,
    sealed: millstream_types::RunSet,
    /// It cannot take the version; why.
    pub refused: Option<String>,
    /// Given up for now.
    pub down: bool,
}

impl Member {
    /// Does a stage want anything of the version there?
    pub fn wanted(&self) -> bool {
        self.wanted != Wanted::Nothing
    }
}

/// An order that a node works on.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Who receives.
    pub node: NodeId,
    /// From whom.
    pub source: Source,
    /// What.
    pub pieces: PieceRange,
    /// Its bytes.
    pub bytes: u64,
    /// Microseconds since it was ordered.
    pub age_us: u64,
    /// The source had all of it already when asked, or has it by now. The origin always has.
    pub source_ready: bool,
    /// How often its source was changed.
    pub resourced: u8,
}

impl Transfer {
    fn of(f: &Flight, ds: &Dataset, now: Time) -> Transfer {
        Transfer {
            node: f.node,
            source: f.source,
            pieces: ds.extents[f.extent as usize].pieces.clone(),
            bytes: f.bytes,
            age_us: now.since(f.started),
            source_ready: f.source == Source::Origin || f.source_ready.is_some(),
            resourced: f.resourced,
        }
    }
}

/// A copy of who holds what of one version.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// The version's geometry.
    pub layout: Arc<Layout>,
    /// Every node that has or shall have something of it, in the order of [`sort_members`](Self::sort_members).
    pub members: Vec<Member>,
    /// Everything that moves.
    pub transfers: Vec<Transfer>,
    /// Shards that failed for good.
    pub failed: BTreeMap<ShardNo, ShardFailure>,
    /// Shards in doubt: being read again.
    pub disputed: Vec<ShardNo>,
    /// Bytes read from the origin since this coordinator began.
    pub origin_bytes: u64,
    extents: Vec<Held>,
}

impl Core {
    /// Who holds what of a version; `None` when it is unknown.
    pub fn holdings(&self, dataset: DatasetId, now: Time) -> Option<Holdings> {
        let ds = self.datasets.get(dataset.0 as usize)?.as_deref()?;
        let members =
            ds.members().filter(|(_, r)| r.wanted != Wanted::Nothing || r.have_bytes > 0 || !r.sealed.is_empty());
        let members = members.map(|(node, r)| Member {
            node,
            wanted: r.wanted.clone(),
            sealed: r.sealed.clone(),
            refused: r.refused.clone(),
            down: self.nodes.get(node).is_none_or(|n| n.state == NodeState::Down),
        });
        let mut extents: Vec<Held> =
            ds.extents.iter().map(|e| Held { pieces: e.pieces.clone(), have: e.have.clone() }).collect();
        extents.sort_by_key(|e| e.pieces.start);
        Some(Holdings {
            layout: ds.layout.clone(),
            members: members.collect(),
            transfers: self.transfers(ds, now),
            failed: ds.failed.clone(),
            disputed: ds.sums.disputes.keys().copied().filter(|s| !ds.failed.contains_key(s)).collect(),
            origin_bytes: ds.origin_bytes,
            extents,
        })
    }

    fn transfers(&self, ds: &Dataset, now: Time) -> Vec<Transfer> {
        let numbers = ds.extents.iter().flat_map(|e| e.flights.iter());
        let flights = numbers.filter_map(|&no| self.flights.get(no));
        flights.map(|f| Transfer::of(f, ds, now)).collect()
    }

    /// Everything that one node receives and sends now, of all versions: (version, transfer).
    pub fn node_transfers(&self, node: NodeId, now: Time) -> Vec<(DatasetId, Transfer)> {
        let Some(known) = self.nodes.get(node) else {
            return Vec::new();
        };
        let numbers = known.flights.iter().chain(&known.serving);
        let found = numbers.filter_map(|&no| {
            let f = self.flights.get(no)?;
            let ds = self.datasets.get(f.dataset.0 as usize)?.as_deref()?;
            Some((f.dataset, Transfer::of(f, ds, now)))
        });
        found.collect()
    }
}

impl Holdings {
    /// Puts the members into an order: rows of the map.
    pub fn sort_members<K: Ord>(&mut self, key: impl Fn(NodeId) -> K) {
        self.members.sort_by_cached_key(|m| key(m.node));
    }

    /// The extents that hold pieces of a shard, by index.
    fn extents_of(&self, shard: ShardNo) -> Range<usize> {
        let pieces = self.layout.shard_pieces(shard);
        if pieces.is_empty() {
            return 0..0;
        }
        let from = self.extents.partition_point(|e| e.pieces.end <= pieces.start);
        from..self.extents.partition_point(|e| e.pieces.start < pieces.end)
    }

    /// Verified bytes of a shard on all members together (extents that are complete there).
    pub fn shard_copies_bytes(&self, shard: ShardNo) -> u64 {
        let pieces = self.layout.shard_pieces(shard);
        let of = |e: &Held| {
            let part = e.pieces.start.max(pieces.start)..e.pieces.end.min(pieces.end);
            u64::from(e.have.count()) * self.layout.range_bytes(part)
        };
        self.extents[self.extents_of(shard)].iter().map(of).sum()
    }

    /// Verified bytes of a shard on a member (extents that are complete there).
    pub fn shard_bytes_on(&self, shard: ShardNo, node: NodeId) -> u64 {
        let pieces = self.layout.shard_pieces(shard);
        let held = self.extents[self.extents_of(shard)].iter().filter(|e| e.have.get(node.0));
        held.map(|e| self.layout.range_bytes(e.pieces.start.max(pieces.start)..e.pieces.end.min(pieces.end))).sum()
    }
}

#[cfg(test)]
mod tests;
