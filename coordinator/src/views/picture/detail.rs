//! One version in figures: how many copies there are of how many shards, what failed, what moves.

use millstream_coordinator_core::holdings::ShardState;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::Page;
use super::super::datasets::{DatasetItem, FailureItem, MendedItem};
use super::{Counts, Picture, add};
use crate::status::StageStatus;

/// One version: verdict, availability, failures.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct DatasetDetail {
    #[serde(flatten)]
    dataset: DatasetItem,
    /// All (node, shard) pairs that were looked at, by state.
    pairs: Counts,
    /// Only every n-th shard was looked at; 1 is all of them.
    sampled_every: u32,
    /// How many shards have how many verified copies.
    availability: Vec<AvailabilityBin>,
    /// Read from the origin for it since this coordinator began.
    origin_bytes: u64,
    /// What moves now.
    transfers_from_origin: u32,
    transfers_from_peers: u32,
    /// Shards in doubt, being read again by other nodes.
    shards_disputed: u32,
    /// The first failures.
    failures: Page<FailureItem>,
    /// Wrong bytes that nobody saw, newest first, since this coordinator began.
    mended: Vec<MendedItem>,
    /// Its stages.
    stages: Vec<StageStatus>,
}

/// Shards with so many verified copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct AvailabilityBin {
    copies_from: u32,
    copies_to: u32,
    shards: u32,
}

impl Picture {
    pub(crate) fn detail(&self) -> DatasetDetail {
        let mut pairs = [0; 6];
        self.counts.iter().for_each(|&counts| add(&mut pairs, counts));
        let from_origin = self.sample.transfers.iter().filter(|t| t.is_from_origin()).count();
        let failed = self.sample.holdings.failed.len();
        DatasetDetail {
            dataset: self.sample.dataset.clone(),
            pairs: pairs.into(),
            sampled_every: self.step,
            availability: self.availability(),
            origin_bytes: self.sample.holdings.origin_bytes,
            transfers_from_origin: from_origin as u32,
            transfers_from_peers: (self.sample.transfers.len() - from_origin) as u32,
            shards_disputed: self.sample.holdings.disputed.len() as u32,
            failures: Page {
                total: failed as u64,
                matched: failed as u64,
                offset: 0,
                items: self.sample.failures.clone(),
            },
            mended: self.sample.mended.clone(),
            stages: self.sample.stages.clone(),
        }
    }

    fn availability(&self) -> Vec<AvailabilityBin> {
        let mut bins = bins(self.states.members() as u32);
        for counts in &self.counts {
            let copies = counts[ShardState::Ready as usize];
            if let Some(bin) = bins.iter_mut().find(|b| (b.copies_from..=b.copies_to).contains(&copies)) {
                bin.shards += 1;
            }
        }
        bins
    }
}

/// One bin per number of copies while they are few; growing ones between none and all otherwise.
fn bins(members: u32) -> Vec<AvailabilityBin> {
    let bin = |copies_from, copies_to| AvailabilityBin { copies_from, copies_to, shards: 0 };
    if members <= 16 {
        return (0..=members).map(|n| bin(n, n)).collect();
    }
    let mut out = vec![bin(0, 0)];
    let (mut from, mut width) = (1, 1);
    while from < members {
        let to = (from + width - 1).min(members - 1);
        out.push(bin(from, to));
        from = to + 1;
        width *= 2;
    }
    out.push(bin(members, members));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_copies_has_one_bin() {
        for members in [0, 1, 3, 16, 17, 64, 1000, 4096] {
            let bins = bins(members);
            for copies in 0..=members {
                let holds = |b: &&AvailabilityBin| (b.copies_from..=b.copies_to).contains(&copies);
                assert_eq!(bins.iter().filter(holds).count(), 1, "{copies} of {members}: {bins:?}");
            }
            assert!(bins.len() <= 20);
        }
    }
}
