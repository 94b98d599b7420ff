//! The canonical order of one epoch.
//!
//! Shards are permuted, then dealt into `lanes`: each next shard goes to the lane with the fewest samples so far. The
//! order takes one sample from each lane in turn. So consecutive samples come from `lanes` different shards, and a
//! reader that takes every `R`-th sample reads from few lanes only when `R` divides the number of lanes. When short
//! lanes run out, the others go on in turn.
//!
//! Random access is O(log shards) and needs no table of samples: within a shard the shuffle is a keyed permutation
//! computed per index. **What is here decides which sample a saved position means: changing it needs a new
//! [`ORDER_VERSION`].**

/// Changes whenever the same arguments would give another order; saved states name it.
pub const ORDER_VERSION: u32 = 1;

/// Most lanes: a window of the order spans this many shards; more of them would not fit caches.
pub const LANES_MAX: u32 = 4096;

/// Where a sample is: the shard, and the sample's number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleAt {
    /// Index into the counts that the order was made of.
    pub shard: u32,
    /// Which sample of the shard.
    pub index: u64,
}

#[derive(Debug, Default)]
struct Lane {
    shards: Vec<u32>,
    /// Samples before each shard; one more entry than shards.
    starts: Vec<u64>,
}

impl Lane {
    fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// A stretch of the order in which the same lanes take turns.
#[derive(Debug)]
struct Region {
    /// First position.
    start: u64,
    /// Samples already taken from each of its lanes.
    taken: u64,
    lanes: Vec<u32>,
}

/// One epoch's order.
#[derive(Debug)]
pub struct Order {
    lanes: Vec<Lane>,
    regions: Vec<Region>,
    counts: Vec<u64>,
    shuffle_key: Option<u64>,
    len: u64,
}

impl Order {
    /// The order of `counts[i]` samples in shard `i`. `seed: None` leaves shards and samples as they are. `lanes` is
    /// brought between 1 and [`LANES_MAX`].
    pub fn new(counts: &[u64], lanes: u32, seed: Option<u64>, epoch: u64) -> Order {
        let key = seed.map(|seed| mix(mix(seed) ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let n = counts.len() as u64;
        let permuted = (0..n).map(|i| key.map_or(i, |key| permute(i, n, key)) as u32);
        let mut lanes: Vec<Lane> =
            (0..lanes.clamp(1, LANES_MAX)).map(|_| Lane { shards: Vec::new(), starts: vec![0] }).collect();
        // The emptiest lane gets the next shard; the lowest number breaks ties.
        let mut heap: std::collections::BinaryHeap<std::cmp::Reverse<(u64, usize)>> =
            (0..lanes.len()).map(|l| std::cmp::Reverse((0, l))).collect();
        for shard in permuted {
            let count = counts[shard as usize];
            if count == 0 {
                continue;
            }
            if let Some(std::cmp::Reverse((len, l))) = heap.pop() {
                lanes[l].shards.push(shard);
                lanes[l].starts.push(len + count);
                heap.push(std::cmp::Reverse((len + count, l)));
            }
        }
        let (regions, len) = regions(&lanes);
        Order { lanes, regions, counts: counts.to_vec(), shuffle_key: key, len }
    }

    /// Samples of the epoch.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No samples at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sample at a position below [`len`](Self::len).
    ///
    /// # Panics
    /// When `position` is not below `len`.
    pub fn at(&self, position: u64) -> SampleAt {
        let (shard, nth) = self.place(position);
        let count = self.counts[shard as usize];
        let index = match self.shuffle_key {
            Some(key) => permute(nth, count, mix(key ^ (u64::from(shard) + 1))),
            None => nth,
        };
        SampleAt { shard, index }
    }

    /// The shard at a position, and how many samples of it come before in the order.
    fn place(&self, position: u64) -> (u32, u64) {
        assert!(position < self.len, "position {position} of {}", self.len);
        let r = self.regions.partition_point(|r| r.start <= position) - 1;
        let region = &self.regions[r];
        let (offset, turns) = (position - region.start, region.lanes.len() as u64);
        let lane = &self.lanes[region.lanes[(offset % turns) as usize] as usize];
        let nth = region.taken + offset / turns;
        let s = lane.starts.partition_point(|&start| start <= nth) - 1;
        (lane.shards[s], nth - lane.starts[s])
    }

    /// The next `max` different shards that a reader opens which takes positions `first, first + stride, …` below
    /// `end`, in the order of their first use. Work is proportional to the shards named, not to the samples between.
    pub fn upcoming(&self, first: u64, stride: u64, end: u64, max: usize) -> Vec<u32> {
        let (end, stride) = (end.min(self.len), stride.max(1));
        let mut uses: Vec<(u64, u32)> = Vec::new();
        let region_ends = self.regions.iter().skip(1).map(|r| r.start).chain([self.len]);
        for (region, region_end) in self.regions.iter().zip(region_ends) {
            let (from, until) = (first.max(region.start), region_end.min(end));
            if from >= until {
                continue;
            }
            let different: std::collections::BTreeSet<u32> = uses.iter().map(|(_, shard)| *shard).collect();
            if different.len() >= max {
                break; // what a later region uses comes later in the order
            }
            for slot in 0..region.lanes.len() {
                self.uses_of_lane(region, slot, (from, until), (first, stride), max, &mut uses);
            }
        }
        uses.sort_unstable();
        let mut seen = std::collections::BTreeSet::new();
        uses.into_iter().map(|(_, shard)| shard).filter(|&shard| seen.insert(shard)).take(max).collect()
    }

    /// Adds the first use of each of the next `max` shards of one lane within a region.
    fn uses_of_lane(
        &self,
        region: &Region,
        slot: usize,
        (from, until): (u64, u64),
        (first, stride): (u64, u64),
        max: usize,
        uses: &mut Vec<(u64, u32)>,
    ) {
        let turns = region.lanes.len() as u64;
        let lane_start = region.start + slot as u64;
        // Where the reader meets this lane: here first, then again and again.
        let Some(hit) = meeting(from, first, stride, lane_start, turns) else { return };
        let period = stride / gcd(stride, turns) * turns;
        let lane = &self.lanes[region.lanes[slot] as usize];
        let nth = region.taken + (hit - lane_start) / turns;
        let s = lane.starts.partition_point(|&start| start <= nth).saturating_sub(1);
        let mut found = 0;
        for (&shard, bounds) in lane.shards.iter().zip(lane.starts.windows(2)).skip(s) {
            let position_of = |nth: u64| lane_start + nth.saturating_sub(region.taken) * turns;
            let (shard_from, shard_until) = (position_of(bounds[0]).max(hit), position_of(bounds[1]).min(until));
            let use_at = hit + (shard_from - hit).div_ceil(period) * period;
            if shard_from >= until || found == max {
                return;
            }
            if use_at < shard_until {
                uses.push((use_at, shard));
                found += 1;
            }
        }
    }
}

/// The first number from `from` on that is in both `a, a + m, …` and `b, b + n, …` (b ≤ from).
fn meeting(from: u64, a: u64, m: u64, b: u64, n: u64) -> Option<u64> {
    let start = b + from.saturating_sub(b).div_ceil(n) * n;
    (0..m / gcd(m, n)).map(|k| start + k * n).find(|x| x % m == a % m)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn regions(lanes: &[Lane]) -> (Vec<Region>, u64) {
    let mut lens: Vec<u64> = lanes.iter().map(Lane::len).filter(|&len| len > 0).collect();
    lens.sort_unstable();
    lens.dedup();
    let (mut regions, mut start, mut taken) = (Vec::new(), 0, 0);
    for until in lens {
        let active: Vec<u32> =
            lanes.iter().zip(0u32..).filter(|(lane, _)| lane.len() > taken).map(|(_, l)| l).collect();
        let samples = (until - taken) * active.len() as u64;
        regions.push(Region { start, taken, lanes: active });
        (start, taken) = (start + samples, until);
    }
    (regions, start)
}

/// A number that depends on every bit of `x` (SplitMix64's finisher).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Where `i` goes in a keyed permutation of `0..n`: a Feistel network over the next even number of bits, walked until
/// it falls below `n` (fewer than four steps on average).
fn permute(i: u64, n: u64, key: u64) -> u64 {
    if n < 2 {
        return 0;
    }
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..6u64 {
            (left, right) = (right, left ^ (mix(right ^ key.rotate_left(11 * round as u32) ^ round) & mask));
        }
        x = (left << half) | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_sample_comes_once(
            counts in prop::collection::vec(0u64..40, 0..30), lanes in 1u32..9, seed: Option<u64>, epoch in 0u64..5,
        ) {
            let order = Order::new(&counts, lanes, seed, epoch);
            let all: BTreeSet<(u32, u64)> =
                (0..order.len()).map(|p| order.at(p)).map(|s| (s.shard, s.index)).collect();
            let wanted: BTreeSet<(u32, u64)> =
                counts.iter().zip(0u32..).flat_map(|(&n, s)| (0..n).map(move |i| (s, i))).collect();
            prop_assert_eq!(order.len(), counts.iter().sum::<u64>());
            prop_assert_eq!(all, wanted);
        }

        #[test]
        fn permutations_are_permutations(n in 1u64..3000, key: u64) {
            let image: BTreeSet<u64> = (0..n).map(|i| permute(i, n, key)).collect();
            prop_assert_eq!(image.len() as u64, n);
            prop_assert!(image.iter().all(|&x| x < n));
        }

        #[test]
        fn upcoming_is_what_a_walk_finds(
            counts in prop::collection::vec(0u64..12, 1..25), lanes in 1u32..7, seed: u64,
            first in 0u64..60, stride in 1u64..6, max in 1usize..8,
        ) {
            let order = Order::new(&counts, lanes, Some(seed), 0);
            let mut seen = BTreeSet::new();
            let walk: Vec<u32> = (first..order.len()).step_by(stride as usize).map(|p| order.at(p).shard).collect();
            let first_uses: Vec<u32> = walk.into_iter().filter(|&s| seen.insert(s)).take(max).collect();
            let named = order.upcoming(first, stride, order.len(), max);
            prop_assert_eq!(&named, &first_uses);
        }
    }

    #[test]
    fn the_order_is_this_one_for_ever() {
        let order = Order::new(&[3, 2, 4], 2, Some(17), 5);
        let got: Vec<(u32, u64)> = (0..order.len()).map(|p| order.at(p)).map(|s| (s.shard, s.index)).collect();
        assert_eq!(got, GOLDEN);
    }

    /// Saved positions of version 1 mean these samples.
    const GOLDEN: [(u32, u64); 9] = [(2, 2), (0, 0), (2, 3), (0, 1), (2, 1), (0, 2), (2, 0), (1, 0), (1, 1)];

    #[test]
    fn epochs_and_seeds_differ_and_lanes_mix_shards() {
        let counts = [50u64; 8];
        let list = |seed, epoch| {
            let order = Order::new(&counts, 4, Some(seed), epoch);
            (0..order.len()).map(|p| order.at(p)).collect::<Vec<_>>()
        };
        assert_ne!(list(1, 0), list(1, 1));
        assert_ne!(list(1, 0), list(2, 0));
        let first: BTreeSet<u32> = list(1, 0)[..4].iter().map(|s| s.shard).collect();
        assert_eq!(first.len(), 4);
    }

    #[test]
    fn a_reader_of_every_rth_sample_needs_only_its_lanes() {
        let order = Order::new(&[100u64; 16], 8, Some(3), 0);
        let shards = |rank: u64| (rank..order.len()).step_by(4).map(|p| order.at(p).shard).collect::<BTreeSet<u32>>();
        for rank in 0..4 {
            assert_eq!(shards(rank).len(), 4, "a quarter of the shards");
        }
    }
}
