//! Piece geometry: one row of numbered pieces per dataset version, shard after shard.
//!
//! Pieces are numbered through the whole version, so extents, inventories and checksum tables are plain ranges of
//! `u32`, also when a dataset has a million small shards. No piece spans two shards; a zero-byte shard has none.

use std::ops::Range;

use crate::limits::{PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_MAX, PIECES_WANTED};

/// A piece, numbered through the whole version.
pub type PieceNo = u32;
/// A shard, numbered in key order.
pub type ShardNo = u32;
/// Consecutive pieces.
pub type PieceRange = Range<PieceNo>;

/// Where a piece lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PiecePlace {
    /// The shard it is part of.
    pub shard: ShardNo,
    /// Its offset in the shard, in bytes.
    pub offset: u64,
    /// Its length in bytes; never zero.
    pub len: u32,
}

/// Lengths of all shards of a version, and the numbering of pieces that follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    piece_len: u64,
    /// First piece of each shard, and one entry past the end.
    first_piece: Vec<PieceNo>,
    /// Bytes before each shard, and one entry past the end.
    shard_start: Vec<u64>,
}

impl Layout {
    /// From the piece length and the shards' lengths, in key order. `None` over [`PIECES_MAX`] pieces, or for a
    /// piece length that is not a power of two between [`PIECE_BYTES_MIN`] and [`PIECE_BYTES_MAX`].
    pub fn new(piece_len: u64, shard_len: &[u64]) -> Option<Layout> {
        if !piece_len.is_power_of_two() || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_len) {
            return None;
        }
        let mut first_piece = Vec::with_capacity(shard_len.len() + 1);
        let mut shard_start = Vec::with_capacity(shard_len.len() + 1);
        let (mut pieces, mut bytes) = (0u64, 0u64);
        for &len in shard_len {
            first_piece.push(pieces as PieceNo);
            shard_start.push(bytes);
            pieces = pieces.checked_add(len.div_ceil(piece_len)).filter(|&p| p <= PIECES_MAX)?;
            bytes += len;
        }
        first_piece.push(pieces as PieceNo);
        shard_start.push(bytes);
        Some(Layout { piece_len, first_piece, shard_start })
    }

    /// The piece length for a version of `bytes` bytes: about [`PIECES_WANTED`] pieces, within the limits.
    pub fn piece_len_for(bytes: u64) -> u64 {
        (bytes / PIECES_WANTED).max(1).next_power_of_two().clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }

    /// Length of every piece but the last of each shard, in bytes.
    pub fn piece_len(&self) -> u64 {
        self.piece_len
    }

    /// All bytes of the version.
    pub fn bytes(&self) -> u64 {
        self.shard_start[self.shards() as usize]
    }

    /// How many pieces.
    pub fn pieces(&self) -> u32 {
        self.first_piece[self.shards() as usize]
    }

    /// How many shards.
    pub fn shards(&self) -> u32 {
        (self.shard_start.len() - 1) as u32
    }

    /// Length of a shard in bytes. Panics when there is no such shard: numbers from outside are checked before.
    pub fn shard_len(&self, shard: ShardNo) -> u64 {
        self.shard_start[shard as usize + 1] - self.shard_start[shard as usize]
    }

    /// The pieces of a shard.
    pub fn shard_pieces(&self, shard: ShardNo) -> PieceRange {
        self.first_piece[shard as usize]..self.first_piece[shard as usize + 1]
    }

    /// The shard that a piece is part of.
    pub fn shard_of(&self, piece: PieceNo) -> ShardNo {
        debug_assert!(piece < self.pieces());
        (self.first_piece.partition_point(|&first| first <= piece) - 1) as ShardNo
    }

    /// Where a piece lies. Panics when there is no such piece: numbers from outside are checked before.
    pub fn place(&self, piece: PieceNo) -> PiecePlace {
        assert!(piece < self.pieces(), "piece {piece} of {}", self.pieces());
        let shard = self.shard_of(piece);
        let offset = u64::from(piece - self.first_piece[shard as usize]) * self.piece_len;
        let len = (self.shard_len(shard) - offset).min(self.piece_len) as u32;
        PiecePlace { shard, offset, len }
    }

    /// The place of a piece, if there is one of that number.
    pub fn get(&self, piece: PieceNo) -> Option<PiecePlace> {
        (piece < self.pieces()).then(|| self.place(piece))
    }

    /// Bytes of consecutive pieces.
    pub fn range_bytes(&self, range: PieceRange) -> u64 {
        if range.start >= range.end {
            return 0;
        }
        self.offset_of(range.end) - self.offset_of(range.start)
    }

    /// Bytes before a piece in the whole version (`pieces()` is allowed: all bytes).
    fn offset_of(&self, piece: PieceNo) -> u64 {
        if piece >= self.pieces() {
            return self.bytes();
        }
        // Only whole pieces come before a piece in its own shard.
        let shard = self.shard_of(piece) as usize;
        self.shard_start[shard] + u64::from(piece - self.first_piece[shard]) * self.piece_len
    }

    /// The parts of `range` shard by shard: each shard with its piece range.
    pub fn split_by_shard(&self, range: PieceRange) -> impl Iterator<Item = (ShardNo, PieceRange)> + '_ {
        let mut at = range.start;
        let end = range.end.min(self.pieces());
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let shard = self.shard_of(at);
            let part = at..self.first_piece[shard as usize + 1].min(end);
            at = part.end;
            Some((shard, part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: u64 = PIECE_BYTES_MIN;

    proptest! {
        #[test]
        fn pieces_tile_every_shard(lens in proptest::collection::vec(0u64..5 * P, 0..20)) {
            let layout = Layout::new(P, &lens).unwrap();
            prop_assert_eq!(layout.bytes(), lens.iter().sum::<u64>());
            let mut next = 0;
            for (shard, len) in lens.iter().enumerate() {
                let mut offset = 0;
                for piece in layout.shard_pieces(shard as u32) {
                    prop_assert_eq!(piece, next);
                    let place = layout.place(piece);
                    prop_assert_eq!((place.shard, place.offset), (shard as u32, offset));
                    prop_assert!(place.len > 0);
                    prop_assert_eq!(layout.range_bytes(0..piece), layout.range_bytes(0..piece + 1) - u64::from(place.len));
                    offset += u64::from(place.len);
                    next += 1;
                }
                prop_assert_eq!(offset, *len);
            }
            prop_assert_eq!(next, layout.pieces());
            prop_assert_eq!(layout.range_bytes(0..next), layout.bytes());
            let split: Vec<_> = layout.split_by_shard(0..next).flat_map(|(_, r)| r).collect();
            prop_assert_eq!(split, (0..next).collect::<Vec<_>>());
        }
    }

    #[test]
    fn piece_lengths() {
        assert_eq!(Layout::piece_len_for(0), PIECE_BYTES_MIN);
        assert_eq!(Layout::piece_len_for(256 << 20), 256 << 10);
        assert_eq!(Layout::piece_len_for(1 << 40), PIECE_BYTES_MAX);
        assert!(Layout::new(3, &[]).is_none());
        assert!(Layout::new(P, &[u64::MAX / 2]).is_none());
    }
}
