//! Run-length sets of `u32`: how inventories and piece maps travel and are kept.

use std::ops::Range;

/// A set of numbers kept as sorted, disjoint, non-adjacent runs. A full dataset is one run, whatever its size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RunSet {
    runs: Vec<Range<u32>>,
}

impl RunSet {
    /// The empty set.
    pub fn new() -> RunSet {
        RunSet::default()
    }

    /// All numbers in `range`.
    pub fn from_range(range: Range<u32>) -> RunSet {
        let mut set = RunSet::new();
        set.insert_range(range);
        set
    }

    /// From runs in any order, overlapping or not; empty ones are dropped.
    pub fn from_runs(runs: impl IntoIterator<Item = Range<u32>>) -> RunSet {
        let mut runs: Vec<_> = runs.into_iter().filter(|r| r.start < r.end).collect();
        runs.sort_by_key(|r| r.start);
        let mut out: Vec<Range<u32>> = Vec::with_capacity(runs.len());
        for run in runs {
            match out.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => out.push(run),
            }
        }
        RunSet { runs: out }
    }

    /// The runs, sorted.
    pub fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// How many numbers.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.end - r.start)).sum()
    }

    /// No numbers?
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Is `n` in?
    pub fn contains(&self, n: u32) -> bool {
        let i = self.runs.partition_point(|r| r.end <= n);
        self.runs.get(i).is_some_and(|r| r.start <= n)
    }

    /// Are all of `range` in? (True for an empty range.)
    pub fn contains_range(&self, range: Range<u32>) -> bool {
        if range.start >= range.end {
            return true;
        }
        let i = self.runs.partition_point(|r| r.end <= range.start);
        self.runs.get(i).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// How many of `range` are in.
    pub fn count_range(&self, range: Range<u32>) -> u32 {
        let first = self.runs.partition_point(|r| r.end <= range.start);
        self.runs[first..]
            .iter()
            .take_while(|r| r.start < range.end)
            .map(|r| r.end.min(range.end) - r.start.max(range.start))
            .sum()
    }

    /// Adds one number.
    pub fn insert(&mut self, n: u32) {
        self.insert_range(n..n + 1);
    }

    /// Adds all of `range`.
    pub fn insert_range(&mut self, range: Range<u32>) {
        if range.start >= range.end {
            return;
        }
        // Runs that touch or overlap: from the first that ends at or after our start …
        let first = self.runs.partition_point(|r| r.end < range.start);
        // … to the last that starts at or before our end.
        let last = self.runs.partition_point(|r| r.start <= range.end);
        if first == last {
            self.runs.insert(first, range);
            return;
        }
        let start = range.start.min(self.runs[first].start);
        let end = range.end.max(self.runs[last - 1].end);
        self.runs[first] = start..end;
        self.runs.drain(first + 1..last);
    }

    /// Removes all of `range`.
    pub fn remove_range(&mut self, range: Range<u32>) {
        if range.start >= range.end {
            return;
        }
        let first = self.runs.partition_point(|r| r.end <= range.start);
        let last = self.runs.partition_point(|r| r.start < range.end);
        if first >= last {
            return;
        }
        let left = self.runs[first].start..range.start;
        let right = range.end..self.runs[last - 1].end;
        let kept = [left, right].into_iter().filter(|r| r.start < r.end);
        self.runs.splice(first..last, kept);
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &RunSet) {
        for run in &other.runs {
            self.insert_range(run.clone());
        }
    }

    /// Removes all of `other`.
    pub fn remove_all(&mut self, other: &RunSet) {
        for run in &other.runs {
            self.remove_range(run.clone());
        }
    }

    /// The parts of `range` that are not in the set.
    pub fn gaps(&self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = range.start;
        let mut i = self.runs.partition_point(|r| r.end <= range.start);
        std::iter::from_fn(move || {
            while at < range.end {
                let run = self.runs.get(i).filter(|r| r.start < range.end);
                match run {
                    Some(r) => {
                        let gap = at..r.start.max(at);
                        at = r.end;
                        i += 1;
                        if gap.start < gap.end {
                            return Some(gap);
                        }
                    }
                    None => {
                        let gap = at..range.end;
                        at = range.end;
                        return Some(gap);
                    }
                }
            }
            None
        })
    }

    /// Every number, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|r| r.clone())
    }
}

impl FromIterator<u32> for RunSet {
    fn from_iter<T: IntoIterator<Item = u32>>(iter: T) -> RunSet {
        RunSet::from_runs(iter.into_iter().map(|n| n..n.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(Range<u32>),
        Remove(Range<u32>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0u32..60, 0u32..12).prop_map(|(a, n)| a..a + n);
        prop_oneof![range.clone().prop_map(Op::Insert), range.prop_map(Op::Remove)]
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec(op(), 0..40), probe in (0u32..60, 0u32..20)) {
            let mut set = RunSet::new();
            let mut model = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert(r) => { set.insert_range(r.clone()); model.extend(r); }
                    Op::Remove(r) => { set.remove_range(r.clone()); model.retain(|n| !r.contains(n)); }
                }
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.runs().windows(2).all(|w| w[0].end < w[1].start), "canonical: {:?}", set);
            }
            let range = probe.0..probe.0 + probe.1;
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.count_range(range.clone()) as usize, model.range(range.clone()).count());
            prop_assert_eq!(set.contains_range(range.clone()), range.clone().all(|n| model.contains(&n)));
            let gaps: Vec<u32> = set.gaps(range.clone()).flatten().collect();
            let expected: Vec<u32> = range.clone().filter(|n| !model.contains(n)).collect();
            prop_assert_eq!(gaps, expected);
            prop_assert_eq!(&RunSet::from_runs(set.runs().iter().cloned().rev()), &set);
        }
    }
}
