//! Verification records: for each sealed shard the attributes of its file, its checksum and those of its pieces.
//!
//! A restart trusts a file whose attributes are those of its record and reads none of it; scrub and verify compare
//! its bytes with the record, without a coordinator.

use millstream_types::{Crc64, Digest, ShardNo};

const MAGIC: [u8; 4] = *b"MSVR";
/// Everything before the piece checksums, all numbers little-endian:
/// magic 4, version 1, zero 3, digest prefix 8, shard 4, pieces 4, length 8, mtime 8, inode 8, crc 8.
const HEAD_BYTES: usize = 56;

/// What records look like. A new look is a new variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Format {
    /// The first: head, piece checksums, one bit per piece for "read from the origin", own CRC-64/NVME.
    V1 = 1,
}

/// What a file looked like when it was sealed. A file that looks otherwise is read again before it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Length in bytes.
    pub len: u64,
    /// Time of its last change, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Its inode number.
    pub inode: u64,
}

impl Attributes {
    /// Those of a regular file; `None` for anything else.
    pub fn of(stat: &rustix::fs::Stat) -> Option<Attributes> {
        use rustix::fs::FileType;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(Attributes {
            len: stat.st_size as u64,
            #[allow(clippy::unnecessary_cast)] // other widths on other machines
            mtime_ns: (stat.st_mtime as i64).wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as i64),
            inode: stat.st_ino,
        })
    }
}

/// A sealed shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The shard.
    pub shard: ShardNo,
    /// Its file.
    pub attributes: Attributes,
    /// What the whole sums to.
    pub crc: Crc64,
    /// What each piece sums to, and whether this node read it from the origin.
    pub pieces: Vec<(Crc64, bool)>,
}

impl Record {
    /// Adds it to `out`, as part of the records of that version.
    pub fn encode(&self, digest: &Digest, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(MAGIC);
        out.extend([Format::V1 as u8, 0, 0, 0]);
        out.extend(&digest.0[..8]);
        out.extend(self.shard.to_le_bytes());
        out.extend((self.pieces.len() as u32).to_le_bytes());
        out.extend(self.attributes.len.to_le_bytes());
        out.extend(self.attributes.mtime_ns.to_le_bytes());
        out.extend(self.attributes.inode.to_le_bytes());
        out.extend(self.crc.0.to_le_bytes());
        debug_assert_eq!(out.len() - start, HEAD_BYTES);
        self.pieces.iter().for_each(|(crc, _)| out.extend(crc.0.to_le_bytes()));
        for eight in self.pieces.chunks(8) {
            out.push(eight.iter().enumerate().fold(0, |byte, (i, (_, origin))| byte | u8::from(*origin) << i));
        }
        let own = Crc64::of(&out[start..]);
        out.extend(own.0.to_le_bytes());
    }

    /// The first record in `bytes` and what follows it; `None` when it is torn, foreign or damaged.
    fn decode<'a>(bytes: &'a [u8], digest: &Digest) -> Option<(Record, &'a [u8])> {
        let head = bytes.get(..HEAD_BYTES)?;
        if head[..4] != MAGIC || head[4] != Format::V1 as u8 || head[8..16] != digest.0[..8] {
            return None;
        }
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let pieces = u32_at(20)? as usize;
        // Multiplications of a u32 cannot overflow; the slice is taken before anything is allocated.
        let bits_at = HEAD_BYTES + pieces * 8;
        let own_at = bits_at + pieces.div_ceil(8);
        let body = bytes.get(..own_at)?;
        if Crc64::of(body).0 != u64_at(own_at)? {
            return None;
        }
        let piece = |i: usize| Some((Crc64(u64_at(HEAD_BYTES + i * 8)?), body[bits_at + i / 8] >> (i % 8) & 1 == 1));
        let record = Record {
            shard: u32_at(16)?,
            attributes: Attributes { len: u64_at(24)?, mtime_ns: u64_at(32)? as i64, inode: u64_at(40)? },
            crc: Crc64(u64_at(48)?),
            pieces: (0..pieces).map(piece).collect::<Option<_>>()?,
        };
        Some((record, &bytes[own_at + 8..]))
    }
}

/// The records of that version up to the first bad one, and how many bytes they take. Takes any bytes.
pub fn parse(bytes: &[u8], digest: &Digest) -> (Vec<Record>, u64) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = Record::decode(rest, digest) {
        records.push(record);
        rest = after;
    }
    (records, (bytes.len() - rest.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: Digest = Digest([7; 32]);

    fn record() -> impl Strategy<Value = Record> {
        let pieces = proptest::collection::vec((any::<u64>().prop_map(Crc64), any::<bool>()), 0..20);
        (any::<(u32, u64, i64, u64, u64)>(), pieces).prop_map(|((shard, len, mtime_ns, inode, crc), pieces)| Record {
            shard,
            attributes: Attributes { len, mtime_ns, inode },
            crc: Crc64(crc),
            pieces,
        })
    }

    proptest! {
        #[test]
        fn cut_anywhere_whole_records_remain(records in proptest::collection::vec(record(), 0..4)) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for record in &records {
                record.encode(&DIGEST, &mut bytes);
                ends.push(bytes.len());
            }
            for cut in 0..=bytes.len() {
                let whole = ends.iter().filter(|&&end| end <= cut).count() - 1;
                let (got, good) = parse(&bytes[..cut], &DIGEST);
                prop_assert_eq!(&got[..], &records[..whole]);
                prop_assert_eq!(good as usize, ends[whole]);
            }
        }

        #[test]
        fn a_flipped_bit_ends_the_records_there(records in proptest::collection::vec(record(), 1..4), at in any::<usize>()) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for record in &records {
                record.encode(&DIGEST, &mut bytes);
                ends.push(bytes.len());
            }
            let at = at % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let whole = ends.iter().filter(|&&end| end <= at / 8).count();
            prop_assert_eq!(&parse(&bytes, &DIGEST).0[..], &records[..whole]);
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            parse(&bytes, &DIGEST);
            let mut head = Vec::new();
            Record { shard: 0, attributes: Attributes { len: 0, mtime_ns: 0, inode: 0 }, crc: Crc64(0), pieces: vec![] }
                .encode(&DIGEST, &mut head);
            head[20..24].fill(0xff); // four milliard pieces, it says
            parse(&head, &DIGEST);
        }
    }
}
