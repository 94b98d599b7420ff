//! The piece journal of a version: which pieces lie in its partial files, and what they sum to.
//!
//! Entries are claims, not facts: at a restart every claimed piece is read and summed before it counts. So a torn
//! tail, a lost write or a claim of bytes that never reached the disk costs a piece to be fetched again, no more.

use millstream_types::{Crc64, Digest, PieceNo, ShardNo};

/// One entry on disk, all numbers little-endian:
/// magic 4, version 1, flags 1, zero 2, digest prefix 8, shard 4, piece 4, length 4, zero 4, crc 8, own crc 8.
pub const ENTRY_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"MSPJ";
const FLAG_FROM_ORIGIN: u8 = 1;

/// What the entries of a journal look like. A new look is a new variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Format {
    /// The first: 48 bytes, CRC-64/NVME.
    V1 = 1,
}

/// A claim: this piece was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The shard it is part of.
    pub shard: ShardNo,
    /// The piece.
    pub piece: PieceNo,
    /// Its length in bytes.
    pub len: u32,
    /// What it sums to.
    pub crc: Crc64,
    /// Read from the origin by this node.
    pub from_origin: bool,
}

impl Entry {
    /// Adds it to `out`, as part of the journal of that version.
    pub fn encode(&self, digest: &Digest, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(MAGIC);
        out.extend([Format::V1 as u8, if self.from_origin { FLAG_FROM_ORIGIN } else { 0 }, 0, 0]);
        out.extend(&digest.0[..8]);
        out.extend(self.shard.to_le_bytes());
        out.extend(self.piece.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.crc.0.to_le_bytes());
        let own = Crc64::of(&out[start..]);
        out.extend(own.0.to_le_bytes());
        debug_assert_eq!(out.len() - start, ENTRY_BYTES);
    }

    fn decode(bytes: &[u8; ENTRY_BYTES], digest: &Digest) -> Option<Entry> {
        let (body, own) = bytes.split_at(ENTRY_BYTES - 8);
        let known = body[..4] == MAGIC && body[4] == Format::V1 as u8 && body[5] <= FLAG_FROM_ORIGIN;
        let ours = body[8..16] == digest.0[..8];
        if !known || !ours || Crc64::of(body).0.to_le_bytes() != own {
            return None;
        }
        let u32_at = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
        Some(Entry {
            shard: u32_at(16)?,
            piece: u32_at(20)?,
            len: u32_at(24)?,
            crc: Crc64(u64::from_le_bytes(body[32..40].try_into().ok()?)),
            from_origin: body[5] & FLAG_FROM_ORIGIN != 0,
        })
    }
}

/// The entries of that version's journal up to the first that is torn, foreign or damaged, and how many bytes they
/// take. Takes any bytes.
pub fn parse(bytes: &[u8], digest: &Digest) -> (Vec<Entry>, u64) {
    let (whole, _torn) = bytes.as_chunks::<ENTRY_BYTES>();
    let entries: Vec<Entry> = whole.iter().map_while(|entry| Entry::decode(entry, digest)).collect();
    let good = entries.len() * ENTRY_BYTES;
    (entries, good as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: Digest = Digest([7; 32]);

    fn entry() -> impl Strategy<Value = Entry> {
        (any::<(u32, u32, u32, u64, bool)>()).prop_map(|(shard, piece, len, crc, from_origin)| Entry {
            shard,
            piece,
            len,
            crc: Crc64(crc),
            from_origin,
        })
    }

    proptest! {
        #[test]
        fn cut_anywhere_whole_entries_remain(entries in proptest::collection::vec(entry(), 0..6)) {
            let mut bytes = Vec::new();
            entries.iter().for_each(|e| e.encode(&DIGEST, &mut bytes));
            for cut in 0..=bytes.len() {
                let (got, good) = parse(&bytes[..cut], &DIGEST);
                prop_assert_eq!(&got[..], &entries[..cut / ENTRY_BYTES]);
                prop_assert_eq!(good as usize, cut / ENTRY_BYTES * ENTRY_BYTES);
            }
            prop_assert!(parse(&bytes, &Digest([8; 32])).0.is_empty(), "another version's journal");
        }

        #[test]
        fn a_flipped_bit_ends_the_journal_there(entries in proptest::collection::vec(entry(), 1..6), at in any::<usize>()) {
            let mut bytes = Vec::new();
            entries.iter().for_each(|e| e.encode(&DIGEST, &mut bytes));
            let at = at % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let (got, _) = parse(&bytes, &DIGEST);
            prop_assert_eq!(&got[..], &entries[..at / 8 / ENTRY_BYTES]);
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            parse(&bytes, &DIGEST);
        }
    }
}
