//! Who reads what: positions of the order that are left, shared out to ranks and their workers.
//!
//! What is left is numbered without gaps; rank `r` of `R` takes `r, r + R, …`. On a rank, worker `w` of `K` takes
//! whole batches in turn, as a data loader asks for them. Nothing here depends on how often a run was interrupted:
//! [`Left`] says what is left, [`Consumed::of`] turns what readers did into the next [`Left`].

use std::collections::BTreeSet;

/// What is left of an order of `len` samples: everything from `prefix` on, except `extras`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    len: u64,
    prefix: u64,
    /// Consumed positions after the prefix, ascending.
    extras: Vec<u64>,
}

impl Left {
    /// `extras` may be in any order; positions outside are ignored.
    pub fn new(len: u64, prefix: u64, extras: impl IntoIterator<Item = u64>) -> Left {
        let mut prefix = prefix.min(len);
        let mut extras: BTreeSet<u64> = extras.into_iter().filter(|&p| p >= prefix && p < len).collect();
        while extras.remove(&prefix) {
            prefix += 1;
        }
        Left { len, prefix, extras: extras.into_iter().collect() }
    }

    /// Samples left.
    pub fn remaining(&self) -> u64 {
        self.len - self.prefix - self.extras.len() as u64
    }

    /// Everything before this position is consumed.
    pub fn prefix(&self) -> u64 {
        self.prefix
    }

    /// Consumed positions after the prefix.
    pub fn extras(&self) -> &[u64] {
        &self.extras
    }

    /// The position in the order of the `q`-th sample that is left.
    pub fn position(&self, q: u64) -> u64 {
        // `extras[i]` has `extras[i] - prefix - i` samples before it that are left.
        let (mut low, mut high) = (0, self.extras.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.extras[middle] - self.prefix - middle as u64 <= q { low = middle + 1 } else { high = middle }
        }
        self.prefix + q + low as u64
    }
}

/// One reader: a worker of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Ranks.
    pub world: u64,
    /// Which of them.
    pub rank: u64,
    /// Workers of each rank.
    pub workers: u64,
    /// Which of them.
    pub worker: u64,
    /// Samples that a data loader takes from a worker before it goes to the next.
    pub batch: u64,
}

impl Reader {
    /// The reader, when the numbers make sense.
    pub fn new(world: u64, rank: u64, workers: u64, worker: u64, batch: u64) -> Option<Reader> {
        let sound = rank < world && worker < workers && batch > 0 && world <= 1 << 24 && workers <= 1 << 16;
        sound.then_some(Reader { world, rank, workers, worker, batch })
    }

    /// The rank's item number of this reader's `c`-th sample.
    pub fn item(&self, c: u64) -> u64 {
        ((c / self.batch) * self.workers + self.worker) * self.batch + c % self.batch
    }

    /// How many of a rank's first `items` items are this reader's.
    pub fn count(&self, items: u64) -> u64 {
        let turn = self.batch * self.workers;
        let (turns, rest) = (items / turn, items % turn);
        turns * self.batch + rest.saturating_sub(self.worker * self.batch).min(self.batch)
    }
}

/// Samples that each rank gets of `remaining`: the same for all of them. `repeat` rounds up: some come twice then.
pub fn per_rank(remaining: u64, world: u64, repeat: bool) -> u64 {
    if repeat { remaining.div_ceil(world) } else { remaining / world }
}

/// What a group of readers consumed together.
#[derive(Debug)]
pub struct Consumed;

impl Consumed {
    /// What is left after `readers` took so many samples each, out of `left`. A rank that is not among the readers
    /// is taken to be where the lowest rank given is: ranks of data-parallel training move together.
    pub fn of(left: &Left, readers: &[(Reader, u64)]) -> Left {
        let Some(world) = readers.first().map(|(r, _)| r.world) else { return left.clone() };
        let given: BTreeSet<u64> = readers.iter().map(|(r, _)| r.rank).collect();
        let model = given.first().copied().unwrap_or(0);
        // Items that all readers of a rank have behind them, and those that only some have.
        let ranks: Vec<(u64, Vec<u64>)> = (0..world)
            .map(|rank| {
                let like = if given.contains(&rank) { rank } else { model };
                let own: Vec<(Reader, u64)> = readers.iter().copied().filter(|(r, _)| r.rank == like).collect();
                let all = own.iter().map(|(r, c)| r.item(*c)).min().unwrap_or(0);
                let beyond = own
                    .iter()
                    .flat_map(|(r, c)| (0..*c).rev().map(|c| r.item(c)).take_while(|&item| item >= all))
                    .collect();
                (all, beyond)
            })
            .collect();
        let remaining = left.remaining();
        let everyone = ranks.iter().map(|(all, _)| *all).min().unwrap_or(0);
        let position = |item: u64, rank: u64| {
            let q = item * world + rank;
            (q < remaining).then(|| left.position(q))
        };
        let mut extras: BTreeSet<u64> = left.extras.iter().copied().collect();
        for (rank, (all, beyond)) in (0..world).zip(&ranks) {
            extras.extend((everyone..*all).chain(beyond.iter().copied()).filter_map(|item| position(item, rank)));
        }
        let prefix = match (everyone * world).min(remaining) {
            q if q == remaining => left.len,
            q => left.position(q),
        };
        Left::new(left.len, prefix, extras)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn readers(world: u64, workers: u64, batch: u64) -> Vec<Reader> {
        (0..world)
            .flat_map(|rank| (0..workers).filter_map(move |w| Reader::new(world, rank, workers, w, batch)))
            .collect()
    }

    /// All positions that readers take when each takes `counts[i]`.
    fn taken(left: &Left, takes: &[(Reader, u64)]) -> Vec<u64> {
        let items = per_rank(left.remaining(), takes[0].0.world, false);
        let mut out = Vec::new();
        for (reader, count) in takes {
            let count = (*count).min(reader.count(items));
            out.extend((0..count).map(|c| left.position(reader.item(c) * reader.world + reader.rank)));
        }
        out
    }

    proptest! {
        #[test]
        fn shares_are_equal_and_disjoint(
            len in 0u64..400, world in 1u64..6, workers in 1u64..4, batch in 1u64..5, prefix in 0u64..50,
            extras in prop::collection::vec(0u64..400, 0..10),
        ) {
            let left = Left::new(len, prefix, extras);
            let items = per_rank(left.remaining(), world, false);
            let all: Vec<(Reader, u64)> =
                readers(world, workers, batch).into_iter().map(|r| (r, r.count(items))).collect();
            for rank in 0..world {
                let of_rank: u64 = all.iter().filter(|(r, _)| r.rank == rank).map(|(_, c)| c).sum();
                prop_assert_eq!(of_rank, items);
            }
            let positions = taken(&left, &all);
            let distinct: BTreeSet<u64> = positions.iter().copied().collect();
            prop_assert_eq!(distinct.len(), positions.len());
            prop_assert!(distinct.iter().all(|p| !left.extras().contains(p) && *p >= left.prefix() && *p < len));
            prop_assert!(left.remaining() - (positions.len() as u64) < world);
        }

        /// Stop anywhere, change ranks and workers, go on, several times: no sample is lost or read twice.
        #[test]
        fn resuming_loses_nothing_and_repeats_nothing(
            len in 1u64..300,
            runs in prop::collection::vec((1u64..5, 1u64..4, 1u64..4, prop::collection::vec(0u64..60, 20)), 1..4),
        ) {
            let mut left = Left::new(len, 0, []);
            let mut consumed: BTreeSet<u64> = BTreeSet::new();
            for (world, workers, batch, counts) in runs {
                let items = per_rank(left.remaining(), world, false);
                let takes: Vec<(Reader, u64)> = readers(world, workers, batch)
                    .into_iter().zip(&counts).map(|(r, &c)| (r, c.min(r.count(items)))).collect();
                for position in taken(&left, &takes) {
                    prop_assert!(consumed.insert(position), "{position} twice");
                }
                left = Consumed::of(&left, &takes);
                prop_assert_eq!(left.remaining(), len - consumed.len() as u64);
                let open: BTreeSet<u64> = (0..left.remaining()).map(|q| left.position(q)).collect();
                prop_assert!(open.is_disjoint(&consumed));
            }
        }
    }

    #[test]
    fn ranks_that_said_nothing_are_where_the_others_are() {
        let left = Left::new(100, 0, []);
        let own: Vec<(Reader, u64)> = (0..2).filter_map(|w| Reader::new(4, 0, 2, w, 3)).map(|r| (r, 6)).collect();
        let after = Consumed::of(&left, &own);
        assert_eq!((after.prefix(), after.extras()), (48, &[][..]));
    }

    #[test]
    fn nonsense_is_no_reader() {
        assert!(Reader::new(2, 2, 1, 0, 1).is_none());
        assert!(Reader::new(1, 0, 1, 1, 1).is_none());
        assert!(Reader::new(1, 0, 1, 0, 0).is_none());
    }
}
