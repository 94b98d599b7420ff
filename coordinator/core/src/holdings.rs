//! Who holds what of a version, shard by shard: a copy that can be looked at elsewhere, and pictures made of it.
//!
//! Purpose: the status page's map and tables. Taking the copy costs the owner of the core about a millisecond for
//! 1,000 nodes and 10,000 shards; everything that costs more works on the copy. Non-goals: decisions.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use millstream_types::{DatasetId, Layout, NodeId, PieceRange, ShardNo, Time};

use crate::Core;
use crate::bits::{Bits, ones};
use crate::catalog::{Dataset, Wanted};
use crate::event::{NodeState, ShardFailure, Source};

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
        let transfer = |f: &crate::flight::Flight| Transfer {
            node: f.node,
            source: f.source,
            pieces: ds.extents[f.extent as usize].pieces.clone(),
            bytes: f.bytes,
            age_us: now.since(f.started),
            source_ready: f.source == Source::Origin || f.source_ready.is_some(),
            resourced: f.resourced,
        };
        flights.map(transfer).collect()
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
            let transfer = Transfer {
                node: f.node,
                source: f.source,
                pieces: ds.extents[f.extent as usize].pieces.clone(),
                bytes: f.bytes,
                age_us: now.since(f.started),
                source_ready: f.source == Source::Origin || f.source_ready.is_some(),
                resourced: f.resourced,
            };
            Some((f.dataset, transfer))
        });
        found.collect()
    }
}

/// Sets of members, one for each looked-at shard.
#[derive(Clone, Debug)]
struct Sets {
    words: usize,
    bits: Vec<u64>,
}

impl Sets {
    fn new(shards: usize, members: usize) -> Sets {
        let words = members.div_ceil(64);
        Sets { words, bits: vec![0; shards * words] }
    }

    fn of(&self, i: usize) -> &[u64] {
        &self.bits[i * self.words..(i + 1) * self.words]
    }

    fn set(&mut self, i: usize, member: usize) {
        self.bits[i * self.words + member / 64] |= 1 << (member % 64);
    }
}

/// The state of every looked-at shard on every member.
#[derive(Clone, Debug)]
pub struct States {
    shards: Vec<ShardNo>,
    members: usize,
    /// In the order of [`ShardState::ALL`], without `Missing`: that is all the rest.
    sets: [Sets; 5],
}

impl Holdings {
    /// Puts the members into an order: rows of the map.
    pub fn sort_members<K: Ord>(&mut self, key: impl Fn(NodeId) -> K) {
        self.members.sort_by_cached_key(|m| key(m.node));
    }

    /// Works out the states of every `step`-th shard: of all with 1.
    pub fn states(&self, step: u32) -> States {
        let step = step.max(1);
        let shards: Vec<ShardNo> = (0..self.layout.shards()).step_by(step as usize).collect();
        let (count, members) = (shards.len(), self.members.len());
        let mut ready = Sets::new(count, members);
        let mut wanted = Sets::new(count, members);
        for (m, member) in self.members.iter().enumerate() {
            let looked_at = |run: &Range<u32>| run.start.div_ceil(step)..run.end.div_ceil(step);
            for i in member.sealed.runs().iter().flat_map(looked_at) {
                ready.set(i as usize, m);
            }
            let whole = 0..self.layout.shards();
            let runs: &[Range<u32>] = match &member.wanted {
                _ if member.refused.is_some() => &[],
                Wanted::Nothing => &[],
                Wanted::All => std::slice::from_ref(&whole),
                Wanted::Some(set) => set.runs(),
            };
            for i in runs.iter().flat_map(looked_at) {
                wanted.set(i as usize, m);
            }
        }
        let (have, coming) = self.by_extent();
        let mut sets = [(); 5].map(|()| Sets::new(count, members));
        for (i, &shard) in shards.iter().enumerate() {
            let bad = self.failed.contains_key(&shard) || self.disputed.contains(&shard);
            let held = self.extents_of(shard);
            for w in 0..ready.words {
                let at = i * ready.words + w;
                let (mut all, mut any) = (if held.is_empty() { 0 } else { u64::MAX }, 0);
                for e in held.clone() {
                    all &= have.of(e)[w];
                    any |= have.of(e)[w] | coming.of(e)[w];
                }
                let (ready, wanted) = (ready.bits[at], wanted.bits[at]);
                let bad = if bad { (wanted | any) & !ready } else { 0 };
                let rest = !ready & !bad;
                sets[0].bits[at] = wanted & rest & !any;
                sets[1].bits[at] = any & !all & rest;
                sets[2].bits[at] = all & rest;
                sets[3].bits[at] = ready;
                sets[4].bits[at] = bad;
            }
        }
        States { shards, members, sets }
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

    /// Which members have each extent, and to which it is on its way.
    fn by_extent(&self) -> (Sets, Sets) {
        let members = self.members.len();
        let highest = self.members.iter().map(|m| m.node.0 as usize + 1).max().unwrap_or(0);
        let mut place = vec![usize::MAX; highest];
        for (m, member) in self.members.iter().enumerate() {
            place[member.node.0 as usize] = m;
        }
        let place = |node: u32| place.get(node as usize).copied().filter(|&m| m < members);
        let mut have = Sets::new(self.extents.len(), members);
        for (e, extent) in self.extents.iter().enumerate() {
            for node in (0..extent.have.words()).flat_map(|w| ones(w, extent.have.word(w))) {
                if let Some(m) = place(node) {
                    have.set(e, m);
                }
            }
        }
        let mut coming = Sets::new(self.extents.len(), members);
        for transfer in &self.transfers {
            let e = self.extents.partition_point(|e| e.pieces.start < transfer.pieces.start);
            if let (Some(m), true) = (place(transfer.node.0), e < self.extents.len()) {
                coming.set(e, m);
            }
        }
        (have, coming)
    }

    /// Verified bytes of a shard on a member (extents that are complete there).
    pub fn shard_bytes_on(&self, shard: ShardNo, node: NodeId) -> u64 {
        let pieces = self.layout.shard_pieces(shard);
        let held = self.extents[self.extents_of(shard)].iter().filter(|e| e.have.get(node.0));
        held.map(|e| self.layout.range_bytes(e.pieces.start.max(pieces.start)..e.pieces.end.min(pieces.end))).sum()
    }
}

fn in_range(word: u64, w: usize, range: &Range<usize>) -> u64 {
    let (first, end) = (w * 64, w * 64 + 64);
    let low = range.start.saturating_sub(first).min(64);
    let high = end.saturating_sub(range.end).min(64);
    let mut mask = u64::MAX;
    mask = if low == 64 { 0 } else { mask << low };
    mask &= if high == 64 { 0 } else { u64::MAX >> high };
    word & mask
}

impl States {
    /// The shards that were looked at, ascending.
    pub fn shards(&self) -> &[ShardNo] {
        &self.shards
    }

    /// How many members of `members` are in which state for the `i`-th looked-at shard.
    pub fn count(&self, i: usize, members: Range<usize>) -> StateCounts {
        let members = members.start.min(self.members)..members.end.min(self.members);
        let mut counts = [0; 6];
        if members.is_empty() {
            return counts;
        }
        for (state, set) in self.sets.iter().enumerate() {
            let words = members.start / 64..members.end.div_ceil(64);
            let row = set.of(i);
            counts[state + 1] = words.map(|w| in_range(row[w], w, &members).count_ones()).sum();
        }
        counts[0] = members.len() as u32 - counts[1..].iter().sum::<u32>();
        counts
    }

    /// The state of the `i`-th looked-at shard on one member.
    pub fn get(&self, i: usize, member: usize) -> ShardState {
        let set = |s: &Sets| s.of(i)[member / 64] >> (member % 64) & 1 == 1;
        let found = (0..5).find(|&s| set(&self.sets[s]));
        found.map_or(ShardState::Missing, |s| ShardState::ALL[s + 1])
    }

    /// The members in a state for the `i`-th looked-at shard.
    pub fn members_in(&self, i: usize, state: ShardState) -> impl Iterator<Item = usize> + '_ {
        let set = ShardState::ALL.iter().position(|&s| s == state).and_then(|s| s.checked_sub(1));
        let words = set.map_or(&[][..], |s| self.sets[s].of(i));
        words.iter().enumerate().flat_map(|(w, &word)| ones(w, word)).map(|m| m as usize)
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.members
    }

    /// A picture of some members and looked-at shards (by index), in `rows` by `columns` cells at most: each says how
    /// many (member, shard) pairs are in which state. Rows and columns cover equally many, but for the last.
    pub fn grid(&self, members: Range<usize>, shards: Range<usize>, rows: usize, columns: usize) -> Grid {
        let members = members.start.min(self.members)..members.end.min(self.members);
        let shards = shards.start.min(self.shards.len())..shards.end.min(self.shards.len());
        let members_per_row = members.len().div_ceil(rows.max(1)).max(1);
        let shards_per_column = shards.len().div_ceil(columns.max(1)).max(1);
        let (rows, columns) = (members.len().div_ceil(members_per_row), shards.len().div_ceil(shards_per_column));
        let mut cells = vec![[0; 6]; rows * columns];
        for row in 0..rows {
            let first = members.start + row * members_per_row;
            let of_row = first..(first + members_per_row).min(members.end);
            for (at, i) in shards.clone().enumerate() {
                let cell = &mut cells[row * columns + at / shards_per_column];
                for (sum, n) in cell.iter_mut().zip(self.count(i, of_row.clone())) {
                    *sum += n;
                }
            }
        }
        Grid { rows, columns, members_per_row, shards_per_column, cells }
    }
}

/// A picture of [`States`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of cells.
    pub rows: usize,
    /// Columns of cells.
    pub columns: usize,
    /// Members in one row; fewer in the last.
    pub members_per_row: usize,
    /// Looked-at shards in one column; fewer in the last.
    pub shards_per_column: usize,
    /// Row by row.
    pub cells: Vec<StateCounts>,
}

#[cfg(test)]
mod tests;
