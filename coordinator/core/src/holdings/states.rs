//! The state of every shard on every member, worked out with sets of bits; and pictures of it.

use std::collections::BTreeMap;
use std::ops::Range;

use millstream_types::ShardNo;

use super::{Held, Holdings, ShardState, StateCounts};
use crate::bits::{Bits, ones};
use crate::catalog::Wanted;

/// Sets of members, one for each looked-at shard.
#[derive(Clone, Debug)]
struct Sets {
    words: usize,
    bits: Vec<u64>,
    /// Members that are in all of them: put in once, by [`fill_whole`](Self::fill_whole).
    whole: Vec<u64>,
}

impl Sets {
    fn new(shards: usize, members: usize) -> Sets {
        let words = members.div_ceil(64);
        Sets { words, bits: vec![0; shards * words], whole: vec![0; words] }
    }

    fn of(&self, i: usize) -> &[u64] {
        &self.bits[i * self.words..(i + 1) * self.words]
    }

    /// Puts a member into the sets of every `step`-th shard of `runs`.
    fn set_runs(&mut self, member: usize, runs: &[Range<u32>], every: &[Range<u32>], step: u32) {
        let (word, bit) = (member / 64, 1 << (member % 64));
        if runs == every {
            self.whole[word] |= bit;
            return;
        }
        for run in runs {
            for i in run.start.div_ceil(step)..run.end.div_ceil(step) {
                self.bits[i as usize * self.words + word] |= bit;
            }
        }
    }

    fn fill_whole(&mut self) {
        if self.whole.iter().any(|&w| w != 0) {
            for row in self.bits.chunks_exact_mut(self.words) {
                row.iter_mut().zip(&self.whole).for_each(|(to, from)| *to |= from);
            }
        }
    }
}

/// From the numbers of nodes to the places of members.
struct Order {
    /// By node; those that are no members have none.
    place: Vec<usize>,
    /// Nodes that are members, as bits by node.
    known: Vec<u64>,
    /// All members, as bits by member.
    everybody: Vec<u64>,
}

impl Order {
    fn place(&self, node: u32) -> Option<usize> {
        self.place.get(node as usize).copied().filter(|&m| m != usize::MAX)
    }
}

/// Members that have all of some extents, and those that have any of them.
struct Row {
    all: Vec<u64>,
    any: Vec<u64>,
    one: Vec<u64>,
}

impl Row {
    fn new(words: usize) -> Row {
        Row { all: vec![0; words], any: vec![0; words], one: vec![0; words] }
    }

    fn gather(&mut self, extents: &[Held], order: &Order) {
        self.all.fill(if extents.is_empty() { 0 } else { u64::MAX });
        self.any.fill(0);
        for extent in extents {
            self.members_of(&extent.have, order);
            for (w, &one) in self.one.iter().enumerate() {
                self.all[w] &= one;
                self.any[w] |= one;
            }
        }
    }

    /// Node by node only where some have it and others do not: an extent is mostly nowhere or everywhere.
    fn members_of(&mut self, have: &Bits, order: &Order) {
        self.one.fill(0);
        if have.is_empty() {
            return;
        }
        if order.known.iter().enumerate().all(|(w, &known)| have.word(w) & known == known) {
            self.one.copy_from_slice(&order.everybody);
            return;
        }
        for (w, &known) in order.known.iter().enumerate() {
            let mut word = have.word(w) & known;
            while word != 0 {
                let m = order.place[w * 64 + word.trailing_zeros() as usize];
                self.one[m / 64] |= 1 << (m % 64);
                word &= word - 1;
            }
        }
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
    /// Works out the states of every `step`-th shard: of all with 1.
    pub fn states(&self, step: u32) -> States {
        let step = step.max(1);
        let shards: Vec<ShardNo> = (0..self.layout.shards()).step_by(step as usize).collect();
        let (count, members) = (shards.len(), self.members.len());
        let mut ready = Sets::new(count, members);
        let mut wanted = Sets::new(count, members);
        let whole = 0..self.layout.shards();
        let every = std::slice::from_ref(&whole);
        for (m, member) in self.members.iter().enumerate() {
            ready.set_runs(m, member.sealed.runs(), every, step);
            let runs: &[Range<u32>] = match &member.wanted {
                _ if member.refused.is_some() => &[],
                Wanted::Nothing => &[],
                Wanted::All => every,
                Wanted::Some(set) => set.runs(),
            };
            wanted.set_runs(m, runs, every, step);
        }
        ready.fill_whole();
        wanted.fill_whole();
        let order = self.order();
        let coming = self.coming(&order);
        let mut have = Row::new(ready.words);
        let mut sets = [(); 5].map(|()| Sets::new(count, members));
        for (i, &shard) in shards.iter().enumerate() {
            let bad = self.failed.contains_key(&shard) || self.disputed.contains(&shard);
            let held = self.extents_of(shard);
            let at = i * ready.words..(i + 1) * ready.words;
            // Where everybody has all of it, its extents need not be looked at: most shards, late in a stage.
            if ready.bits[at.clone()] == order.everybody[..] {
                sets[3].bits[at].copy_from_slice(&order.everybody);
                continue;
            }
            have.gather(&self.extents[held.clone()], &order);
            for w in 0..ready.words {
                let at = i * ready.words + w;
                let coming = held.clone().filter_map(|e| coming.get(&e)).fold(0, |any, row| any | row[w]);
                let (all, any) = (have.all[w], have.any[w] | coming);
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

    /// Where each node is among the members.
    fn order(&self) -> Order {
        let members = self.members.len();
        let highest = self.members.iter().map(|m| m.node.0 as usize + 1).max().unwrap_or(0);
        let mut order =
            Order { place: vec![usize::MAX; highest], known: vec![0; highest.div_ceil(64)], everybody: vec![] };
        order.everybody.resize(members.div_ceil(64), 0);
        for (m, member) in self.members.iter().enumerate() {
            let node = member.node.0 as usize;
            order.place[node] = m;
            order.known[node / 64] |= 1 << (node % 64);
            order.everybody[m / 64] |= 1 << (m % 64);
        }
        order
    }

    /// The members to which each extent is on its way, by the extent's index.
    fn coming(&self, order: &Order) -> BTreeMap<usize, Vec<u64>> {
        let mut coming = BTreeMap::new();
        for transfer in &self.transfers {
            let e = self.extents.partition_point(|e| e.pieces.start < transfer.pieces.start);
            if let (Some(m), true) = (order.place(transfer.node.0), e < self.extents.len()) {
                let row = coming.entry(e).or_insert_with(|| vec![0; order.everybody.len()]);
                row[m / 64] |= 1 << (m % 64);
            }
        }
        coming
    }
}

pub(super) fn in_range(word: u64, w: usize, range: &Range<usize>) -> u64 {
    let (first, end) = (w * 64, w * 64 + 64);
    let low = range.start.saturating_sub(first).min(64);
    let high = end.saturating_sub(range.end).min(64);
    let mut mask = if low == 64 { 0 } else { u64::MAX << low };
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
        let mut cells = vec![[0u32; 6]; rows * columns];
        for (at, i) in shards.clone().enumerate() {
            let column = at / shards_per_column;
            for (state, set) in self.sets.iter().enumerate() {
                for (w, &word) in set.of(i).iter().enumerate().filter(|(_, word)| **word != 0) {
                    // The rows that this word has members of.
                    let of_word = (w * 64).max(members.start)..(w * 64 + 64).min(members.end);
                    let mut first = of_word.start;
                    while first < of_word.end {
                        let row = (first - members.start) / members_per_row;
                        let end = (members.start + (row + 1) * members_per_row).min(of_word.end);
                        cells[row * columns + column][state + 1] += in_range(word, w, &(first..end)).count_ones();
                        first = end;
                    }
                }
            }
        }
        for row in 0..rows {
            let of_row = members_per_row.min(members.len() - row * members_per_row);
            for column in 0..columns {
                let of_column = shards_per_column.min(shards.len() - column * shards_per_column);
                let cell = &mut cells[row * columns + column];
                cell[0] = (of_row * of_column) as u32 - cell[1..].iter().sum::<u32>();
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
