//! Checksum rows, in memory and on disk, and the changes that gather until the next group commit.

use std::collections::{BTreeMap, VecDeque};

use millstream_types::{Crc64, Digest, PieceNo, PieceRange};

use super::{Change, KnownChecksums, rows_of};
use crate::limits::{AUDIT_LINE_BYTES_MAX, AUDIT_LINES_MAX, CHECKSUM_ROW_PIECES};

const PIECES: usize = CHECKSUM_ROW_PIECES as usize;
const MASK_BYTES: usize = PIECES / 8;

/// The checksums of [`CHECKSUM_ROW_PIECES`] consecutive pieces, as far as they are known; or a change to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksumRow {
    known: Vec<u8>,
    forgotten: Vec<u8>,
    crcs: Vec<u64>,
}

impl Default for ChecksumRow {
    fn default() -> Self {
        ChecksumRow { known: vec![0; MASK_BYTES], forgotten: vec![0; MASK_BYTES], crcs: vec![0; PIECES] }
    }
}

fn bit(mask: &[u8], i: usize) -> bool {
    mask[i / 8] & (1 << (i % 8)) != 0
}

impl ChecksumRow {
    /// Sets one checksum; `i` counts from the start of the row.
    pub fn set(&mut self, i: usize, crc: Crc64) {
        self.known[i / 8] |= 1 << (i % 8);
        self.forgotten[i / 8] &= !(1 << (i % 8));
        self.crcs[i] = crc.0;
    }

    /// Forgets one checksum.
    pub fn forget(&mut self, i: usize) {
        self.known[i / 8] &= !(1 << (i % 8));
        self.forgotten[i / 8] |= 1 << (i % 8);
        self.crcs[i] = 0;
    }

    /// Makes the changes of `change`.
    pub fn apply(&mut self, change: &ChecksumRow) {
        for i in 0..PIECES {
            if bit(&change.known, i) {
                self.set(i, Crc64(change.crcs[i]));
            } else if bit(&change.forgotten, i) {
                self.forget(i);
            }
        }
    }

    /// The known runs, for row `row`, appended to `out` (adjacent runs join).
    pub fn runs(&self, row: u32, out: &mut KnownChecksums) {
        for i in (0..PIECES).filter(|&i| bit(&self.known, i)) {
            let piece = row.saturating_mul(CHECKSUM_ROW_PIECES) + i as PieceNo;
            let crc = Crc64(self.crcs[i]);
            match out.last_mut() {
                Some((first, crcs)) if *first as usize + crcs.len() == piece as usize => {
                    crcs.push(crc);
                }
                _ => out.push((piece, vec![crc])),
            }
        }
    }

    /// Nothing known?
    pub fn is_empty(&self) -> bool {
        self.known.iter().all(|&b| b == 0)
    }

    /// As it is kept: the mask, then every checksum, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MASK_BYTES + PIECES * 8);
        out.extend_from_slice(&self.known);
        out.extend(self.crcs.iter().flat_map(|crc| crc.to_le_bytes()));
        out
    }

    /// From [`to_bytes`](Self::to_bytes); `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<ChecksumRow> {
        let (known, crcs) = bytes.split_at_checked(MASK_BYTES)?;
        if crcs.len() != PIECES * 8 {
            return None;
        }
        Some(ChecksumRow {
            known: known.to_vec(),
            forgotten: vec![0; MASK_BYTES],
            crcs: crcs.chunks_exact(8).map(|c| c.iter().rev().fold(0, |n, &b| (n << 8) | u64::from(b))).collect(),
        })
    }
}

/// What gathers between two group commits. Bounded by the pieces of the catalog and [`AUDIT_LINES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: BTreeMap<(Digest, u32), Box<ChecksumRow>>,
    audit: VecDeque<String>,
}

impl Pending {
    pub(super) fn learn(&mut self, digest: Digest, first: PieceNo, crcs: &[Crc64]) {
        let end = first.saturating_add(crcs.len() as u32);
        for (row, part) in rows_of(first..end) {
            let change = self.rows.entry((digest, row)).or_default();
            for piece in part {
                change.set((piece % CHECKSUM_ROW_PIECES) as usize, crcs[(piece - first) as usize]);
            }
        }
    }

    pub(super) fn forget(&mut self, digest: Digest, pieces: PieceRange) {
        for (row, part) in rows_of(pieces) {
            let change = self.rows.entry((digest, row)).or_default();
            for piece in part {
                change.forget((piece % CHECKSUM_ROW_PIECES) as usize);
            }
        }
    }

    pub(super) fn drop_version(&mut self, digest: Digest) {
        self.rows.retain(|(d, _), _| *d != digest);
    }

    pub(super) fn audit(&mut self, mut line: String) {
        if line.len() > AUDIT_LINE_BYTES_MAX {
            let cut = (0..=AUDIT_LINE_BYTES_MAX).rev().find(|&i| line.is_char_boundary(i));
            line.truncate(cut.unwrap_or(0));
        }
        if self.audit.len() as u64 >= AUDIT_LINES_MAX {
            self.audit.pop_front();
        }
        self.audit.push_back(line);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.audit.is_empty()
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        let rows = self.rows.into_iter().map(|((digest, row), change)| Change::Checksums { digest, row, change });
        rows.chain(self.audit.into_iter().map(Change::Audit)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Learn(u32, Vec<u64>),
        Forget(u32, u32),
        Commit,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u32..2500, proptest::collection::vec(any::<u64>(), 0..40)).prop_map(|(a, v)| Op::Learn(a, v)),
            (0u32..2500, 0u32..60).prop_map(|(a, n)| Op::Forget(a, n)),
            Just(Op::Commit),
        ]
    }

    proptest! {
        /// Rows after any mixture of learning, forgetting and committing equal a plain map.
        #[test]
        fn rows_behave_like_a_map(ops in proptest::collection::vec(op(), 0..30)) {
            let digest = Digest([1; 32]);
            let mut disk: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let mut pending = Pending::default();
            let mut model = BTreeMap::new();
            for op in ops.into_iter().chain([Op::Commit]) {
                match op {
                    Op::Learn(first, crcs) => {
                        let crcs: Vec<_> = crcs.into_iter().map(Crc64).collect();
                        pending.learn(digest, first, &crcs);
                        model.extend(crcs.into_iter().enumerate().map(|(i, c)| (first + i as u32, c)));
                    }
                    Op::Forget(first, n) => {
                        pending.forget(digest, first..first + n);
                        model.retain(|p, _| !(first..first + n).contains(p));
                    }
                    Op::Commit => for change in std::mem::take(&mut pending).into_changes() {
                        let Change::Checksums { row, change, .. } = change else { continue };
                        let mut old = disk.get(&row).map_or_else(ChecksumRow::default, |b| ChecksumRow::from_bytes(b).unwrap());
                        old.apply(&change);
                        disk.insert(row, old.to_bytes());
                    }
                }
            }
            let mut runs = KnownChecksums::new();
            for (row, bytes) in &disk {
                ChecksumRow::from_bytes(bytes).unwrap().runs(*row, &mut runs);
            }
            prop_assert!(runs.windows(2).all(|w| w[0].0 as usize + w[0].1.len() < w[1].0 as usize));
            let flat: BTreeMap<_, _> = runs.into_iter().flat_map(|(f, c)| c.into_iter().enumerate().map(move |(i, c)| (f + i as u32, c))).collect();
            prop_assert_eq!(flat, model);
        }
    }

    #[test]
    fn odd_rows_are_refused() {
        assert!(ChecksumRow::from_bytes(&[0; 5]).is_none());
        assert!(ChecksumRow::from_bytes(&vec![0; MASK_BYTES + PIECES * 8 + 1]).is_none());
    }
}
