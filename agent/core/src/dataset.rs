//! What the core knows of one open version: a byte of state and a checksum per piece, a count per shard.

use std::sync::Arc;

use millstream_types::{Crc64, Layout, OriginChecksum, PieceCombiner, PieceNo, PieceRange, RunSet, ShardNo};

/// `expected` holds the piece's checksum.
const KNOWN: u8 = 1;
/// The checksum is the coordinator's word, not only our own reading of the origin.
const TOLD: u8 = 2;
/// The checksum was in the manifest when the version was opened.
const MANIFEST: u8 = 4;
/// Bytes are here and wait for their checksum.
const HELD: u8 = 8;
/// Verified, being written.
const ACCEPTED: u8 = 16;
/// Verified and on disk.
const WRITTEN: u8 = 32;

/// Where a piece stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceState {
    Missing,
    Held,
    Accepted,
    Written,
}

/// Where a shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealing {
    /// Pieces are lacking, or checksums of pieces on disk.
    Open,
    /// The shell was told to seal it.
    Asked,
    /// Visible.
    Sealed,
    /// The whole is wrong; the coordinator knows and will have it discarded.
    Mismatched,
}

/// One shard.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// Pieces on disk.
    pub written: u32,
    pub sealing: Sealing,
    /// Answers to `Seal` that are on the way for bytes that were dropped since.
    pub stale_answers: u32,
    pub failures: u32,
}

/// One open version.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub layout: Arc<Layout>,
    shard_checksums: Arc<[Option<OriginChecksum>]>,
    combiner: PieceCombiner,
    expected: Vec<Crc64>,
    flags: Vec<u8>,
    shards: Vec<Shard>,
    /// Told the coordinator that the disk does not take it; nothing is fetched until it asks again.
    pub refused: bool,
    /// Write errors in a row.
    pub disk_failures: u32,
}

impl Dataset {
    pub fn new(
        layout: Arc<Layout>,
        shard_checksums: Arc<[Option<OriginChecksum>]>,
        known: &[(PieceNo, Vec<Crc64>)],
        have: &RunSet,
        sealed: &RunSet,
    ) -> Dataset {
        let pieces = layout.pieces();
        let mut dataset = Dataset {
            combiner: PieceCombiner::new(layout.piece_len()),
            expected: vec![Crc64::default(); pieces as usize],
            flags: vec![0; pieces as usize],
            shards: vec![
                Shard { written: 0, sealing: Sealing::Open, stale_answers: 0, failures: 0 };
                layout.shards() as usize
            ],
            layout,
            shard_checksums,
            refused: false,
            disk_failures: 0,
        };
        for (first, crcs) in known {
            for (piece, &crc) in (*first..pieces).zip(crcs) {
                dataset.expected[piece as usize] = crc;
                dataset.flags[piece as usize] |= KNOWN | TOLD | MANIFEST;
            }
        }
        for shard in sealed.iter().take_while(|&s| s < dataset.layout.shards()) {
            dataset.shards[shard as usize].sealing = Sealing::Sealed;
        }
        for shard in 0..dataset.layout.shards() {
            let range = dataset.layout.shard_pieces(shard);
            let whole = dataset.shards[shard as usize].sealing == Sealing::Sealed;
            for piece in range.filter(|&p| whole || have.contains(p)) {
                dataset.flags[piece as usize] |= WRITTEN;
                dataset.shards[shard as usize].written += 1;
            }
        }
        dataset
    }

    pub fn len_of(&self, piece: PieceNo) -> u64 {
        u64::from(self.layout.place(piece).len)
    }

    pub fn state(&self, piece: PieceNo) -> PieceState {
        let flags = self.flags[piece as usize];
        if flags & WRITTEN != 0 {
            PieceState::Written
        } else if flags & ACCEPTED != 0 {
            PieceState::Accepted
        } else if flags & HELD != 0 {
            PieceState::Held
        } else {
            PieceState::Missing
        }
    }

    /// Moves a piece to another state and keeps its shard's count.
    pub fn set_state(&mut self, piece: PieceNo, state: PieceState) {
        let was = self.state(piece);
        let bit = match state {
            PieceState::Missing => 0,
            PieceState::Held => HELD,
            PieceState::Accepted => ACCEPTED,
            PieceState::Written => WRITTEN,
        };
        let flags = &mut self.flags[piece as usize];
        *flags = (*flags & !(HELD | ACCEPTED | WRITTEN)) | bit;
        let shard = self.layout.shard_of(piece) as usize;
        if was == PieceState::Written {
            self.shards[shard].written -= 1;
        }
        if state == PieceState::Written {
            self.shards[shard].written += 1;
        }
    }

    pub fn expected(&self, piece: PieceNo) -> Option<Crc64> {
        let flags = *self.flags.get(piece as usize)?;
        (flags & KNOWN != 0).then(|| self.expected[piece as usize])
    }

    /// Takes the origin's word, read by this node.
    pub fn learn(&mut self, piece: PieceNo, crc: Crc64) {
        self.expected[piece as usize] = crc;
        self.flags[piece as usize] |= KNOWN;
    }

    /// Takes the coordinator's word.
    pub fn tell(&mut self, piece: PieceNo, crc: Crc64) {
        self.expected[piece as usize] = crc;
        self.flags[piece as usize] |= KNOWN | TOLD;
    }

    /// Would the coordinator's word make bytes wrong that are here already?
    pub fn contradicts(&self, piece: PieceNo, crc: Crc64) -> bool {
        let here = matches!(self.state(piece), PieceState::Accepted | PieceState::Written);
        here && self.expected(piece).is_some_and(|known| known != crc)
    }

    /// Forgets what this node alone read of a shard.
    pub fn forget_own_readings(&mut self, shard: ShardNo) {
        for piece in self.layout.shard_pieces(shard) {
            let flags = &mut self.flags[piece as usize];
            if *flags & TOLD == 0 {
                *flags &= !KNOWN;
            }
        }
    }

    /// Forgets the checksums of a shard that was discarded; those of an index stay when the origin's own checksum
    /// bears them out.
    pub fn forget_checksums(&mut self, shard: ShardNo) {
        let range = self.layout.shard_pieces(shard);
        let indexed = (range.clone()).all(|p| self.flags[p as usize] & MANIFEST != 0);
        if indexed && self.origin_says(shard).is_some() && self.mismatch(shard).is_none() {
            return;
        }
        for piece in range {
            self.flags[piece as usize] &= !(KNOWN | TOLD | MANIFEST);
        }
    }

    pub fn shard(&self, shard: ShardNo) -> &Shard {
        &self.shards[shard as usize]
    }

    pub fn shard_mut(&mut self, shard: ShardNo) -> &mut Shard {
        &mut self.shards[shard as usize]
    }

    /// What the pieces of a shard combine to, once all are on disk and all checksums are known.
    pub fn whole(&self, shard: ShardNo) -> Option<Crc64> {
        let range = self.layout.shard_pieces(shard);
        let complete = self.shards[shard as usize].written == range.end - range.start;
        complete.then(|| self.combined(range, shard)).flatten()
    }

    fn combined(&self, range: PieceRange, shard: ShardNo) -> Option<Crc64> {
        if range.clone().any(|p| self.flags[p as usize] & KNOWN == 0) {
            return None;
        }
        let crcs = range.map(|p| self.expected[p as usize]);
        Some(self.combiner.shard(crcs, self.layout.shard_len(shard)))
    }

    /// The origin's CRC-64/NVME of a shard, where it has one.
    pub fn origin_says(&self, shard: ShardNo) -> Option<Crc64> {
        match self.shard_checksums.get(shard as usize) {
            Some(Some(OriginChecksum::Crc64Nvme(crc))) => Some(*crc),
            _ => None,
        }
    }

    /// The origin's checksum and ours, where all of ours are known and they differ.
    pub fn mismatch(&self, shard: ShardNo) -> Option<(Crc64, Crc64)> {
        let theirs = self.origin_says(shard)?;
        let ours = self.combined(self.layout.shard_pieces(shard), shard)?;
        (ours != theirs).then_some((theirs, ours))
    }

    /// Checksums known from this node's own reading only, as runs. Those of sealed shards, too: a coordinator that
    /// restarts before it wrote them down has them from nobody else.
    pub fn learned(&self) -> Vec<(PieceNo, Vec<Crc64>)> {
        let mut runs: Vec<(PieceNo, Vec<Crc64>)> = Vec::new();
        for (piece, flags) in (0..).zip(&self.flags) {
            if flags & (KNOWN | TOLD | MANIFEST) != KNOWN {
                continue;
            }
            let crc = self.expected[piece as usize];
            match runs.last_mut() {
                Some((first, crcs)) if *first + crcs.len() as PieceNo == piece => crcs.push(crc),
                _ => runs.push((piece, vec![crc])),
            }
        }
        runs
    }

    pub fn knows_all(&self) -> bool {
        self.flags.iter().all(|flags| flags & KNOWN != 0)
    }

    /// Pieces on disk.
    pub fn have(&self) -> RunSet {
        let written = |p: &u32| self.flags[*p as usize] & WRITTEN != 0;
        (0..self.layout.pieces()).filter(written).collect()
    }

    /// Visible shards.
    pub fn sealed(&self) -> RunSet {
        let sealed = |s: &u32| self.shards[*s as usize].sealing == Sealing::Sealed;
        (0..self.layout.shards()).filter(sealed).collect()
    }
}
