//! Expected checksums of a version: what is known, who said so last, and doubts about it.
//!
//! The first value reported for a piece stands. A second, different one, or a shard whose pieces do not combine into
//! the origin's own checksum, means that something read from the origin was wrong: a dispute.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use millstream_types::{Crc64, Layout, NodeId, OriginChecksum, PieceCombiner, PieceNo, PieceRange, RunSet, ShardNo};

/// A piece whose checksum was contradicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contradiction {
    pub(crate) shard: ShardNo,
    pub(crate) piece: Option<PieceNo>,
    pub(crate) expected: String,
    pub(crate) actual: String,
}

/// What is known of one shard that was in doubt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dispute {
    pub(crate) rounds: u32,
    /// Nodes that read it from the origin in earlier rounds.
    pub(crate) used: Vec<NodeId>,
}

/// The table of one version.
pub(crate) struct Sums {
    crcs: Vec<Crc64>,
    known: RunSet,
    /// Learned since the version was added: not shipped with the manifest at that time.
    learned: RunSet,
    /// Pieces unknown, per shard.
    unknown: Vec<u32>,
    of_origin: Arc<[Option<OriginChecksum>]>,
    combiner: PieceCombiner,
    pub(crate) disputes: BTreeMap<ShardNo, Dispute>,
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sums").field("known", &self.known).field("disputes", &self.disputes).finish_non_exhaustive()
    }
}

/// What came of a report.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    /// Runs of pieces that were unknown.
    pub(crate) new: Vec<PieceRange>,
    /// Shards of which all pieces are known now.
    pub(crate) complete: Vec<ShardNo>,
    pub(crate) contradiction: Option<Contradiction>,
}

impl Sums {
    pub(crate) fn new(layout: &Layout, of_origin: Arc<[Option<OriginChecksum>]>) -> Sums {
        Sums {
            crcs: vec![Crc64::default(); layout.pieces() as usize],
            known: RunSet::new(),
            learned: RunSet::new(),
            unknown: (0..layout.shards()).map(|s| layout.shard_pieces(s).len() as u32).collect(),
            of_origin,
            combiner: PieceCombiner::new(layout.piece_len()),
            disputes: BTreeMap::new(),
        }
    }

    /// Records checksums of consecutive pieces. `learned`: not part of what the version came with.
    pub(crate) fn record(&mut self, layout: &Layout, first: PieceNo, crcs: &[Crc64], learned: bool) -> Learned {
        let mut out = Learned::default();
        let end = u64::from(first) + crcs.len() as u64;
        let range = first..end.min(u64::from(layout.pieces())) as u32;
        for (shard, part) in layout.split_by_shard(range) {
            for piece in part {
                let crc = crcs[(piece - first) as usize];
                let slot = &mut self.crcs[piece as usize];
                if self.known.contains(piece) {
                    if *slot != crc && out.contradiction.is_none() {
                        out.contradiction = Some(Contradiction {
                            shard,
                            piece: Some(piece),
                            expected: slot.to_string(),
                            actual: crc.to_string(),
                        });
                    }
                    continue;
                }
                *slot = crc;
                self.known.insert(piece);
                if learned {
                    self.learned.insert(piece);
                }
                self.unknown[shard as usize] -= 1;
                if self.unknown[shard as usize] == 0 {
                    out.complete.push(shard);
                }
                match out.new.last_mut() {
                    Some(run) if run.end == piece => run.end = piece + 1,
                    _ => out.new.push(piece..piece + 1),
                }
            }
        }
        out
    }

    /// Compares a shard whose pieces are all known with the origin's CRC-64, where it has one.
    pub(crate) fn check(&self, layout: &Layout, shard: ShardNo) -> Option<Contradiction> {
        let Some(Some(OriginChecksum::Crc64Nvme(expected))) = self.of_origin.get(shard as usize) else {
            return None;
        };
        let pieces = layout.shard_pieces(shard);
        let mut combined = Crc64::default();
        for piece in pieces {
            let len = u64::from(layout.place(piece).len);
            combined = self.combiner.combine(combined, self.crcs[piece as usize], len);
        }
        (combined != *expected).then(|| Contradiction {
            shard,
            piece: None,
            expected: expected.to_string(),
            actual: combined.to_string(),
        })
    }

    /// Forgets what is believed of a shard's pieces.
    pub(crate) fn forget(&mut self, layout: &Layout, shard: ShardNo) {
        let pieces = layout.shard_pieces(shard);
        self.unknown[shard as usize] = pieces.len() as u32;
        self.known.remove_range(pieces.clone());
        self.learned.remove_range(pieces);
    }

    pub(crate) fn slice(&self, range: PieceRange) -> Arc<[Crc64]> {
        self.crcs[range.start as usize..range.end as usize].into()
    }

    pub(crate) fn known(&self) -> &RunSet {
        &self.known
    }

    pub(crate) fn learned(&self) -> &RunSet {
        &self.learned
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.crcs.capacity() * 8
            + self.unknown.capacity() * 4
            + 8 * (self.known.runs().len() + self.learned.runs().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_types::limits::PIECE_BYTES_MIN as P;

    fn table(expected: Crc64) -> (Layout, Sums) {
        let layout = Layout::new(P, &[2 * P + 5, P]).unwrap();
        let sums = Sums::new(&layout, vec![Some(OriginChecksum::Crc64Nvme(expected)), None].into());
        (layout, sums)
    }

    #[test]
    fn pieces_combine_into_the_shard() {
        let bytes: Vec<u8> = (0..2 * P + 5).map(|i| (i * 31 % 251) as u8).collect();
        let crcs: Vec<Crc64> = bytes.chunks(P as usize).map(Crc64::of).collect();
        let (layout, mut sums) = table(Crc64::of(&bytes));
        assert!(sums.record(&layout, 1, &crcs[1..], true).complete.is_empty());
        let learned = sums.record(&layout, 0, &crcs[..1], true);
        assert_eq!((learned.complete, learned.new[0].clone()), (vec![0], 0..1));
        assert_eq!(sums.check(&layout, 0), None);
        let (_, mut wrong) = table(Crc64(1));
        wrong.record(&layout, 0, &crcs, true);
        assert_eq!(wrong.check(&layout, 0).unwrap().shard, 0);
    }

    #[test]
    fn the_first_value_stands_and_the_second_is_a_contradiction() {
        let (layout, mut sums) = table(Crc64(0));
        sums.record(&layout, 0, &[Crc64(1), Crc64(2)], true);
        let again = sums.record(&layout, 0, &[Crc64(1), Crc64(3), Crc64(4)], true);
        assert_eq!(again.new[0], 2..3);
        assert_eq!(again.contradiction.unwrap().piece, Some(1));
        assert_eq!(&sums.slice(0..3)[..], &[Crc64(1), Crc64(2), Crc64(4)]);
        sums.forget(&layout, 0);
        assert!(sums.known().is_empty());
        // Beyond the last piece: nothing is believed, nothing breaks.
        assert_eq!(sums.record(&layout, 3, &[Crc64(1), Crc64(2)], true).new[0], 3..4);
    }
}
