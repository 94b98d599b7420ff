//! Manifests: the immutable list of shards of a version.
//!
//! Goals: a digest that names exactly these bytes; every fact needed to refuse a changed object (length, ETag,
//! version id) and to check a whole shard against the origin's own checksum.
//! Non-goals: where replicas are (soft state of the coordinator); the encoding (Arrow IPC, in `millstream-proto`).

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::checksum::{Crc64, PieceCombiner};
use crate::id::{DatasetRef, Digest};
use crate::key::{KeyError, ShardKey, check_tree};
use crate::layout::Layout;
use crate::limits::SHARDS_MAX;

/// What the origin itself says the bytes of an object sum to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginChecksum {
    /// Full-object CRC-64/NVME: piece checksums combine into it.
    Crc64Nvme(Crc64),
    /// Full-object CRC-32C (Castagnoli).
    Crc32c(u32),
    /// SHA-256 of the object.
    Sha256([u8; 32]),
    /// MD5 of a single-part object (its ETag).
    Md5([u8; 16]),
}

impl OriginChecksum {
    /// `crc64nvme`, `crc32c`, `sha256` or `md5`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            OriginChecksum::Crc64Nvme(_) => "crc64nvme",
            OriginChecksum::Crc32c(_) => "crc32c",
            OriginChecksum::Sha256(_) => "sha256",
            OriginChecksum::Md5(_) => "md5",
        }
    }

    /// The value, big-endian.
    pub fn value(&self) -> Vec<u8> {
        match self {
            OriginChecksum::Crc64Nvme(crc) => crc.0.to_be_bytes().to_vec(),
            OriginChecksum::Crc32c(crc) => crc.to_be_bytes().to_vec(),
            OriginChecksum::Sha256(sum) => sum.to_vec(),
            OriginChecksum::Md5(sum) => sum.to_vec(),
        }
    }

    /// From [`algorithm`](Self::algorithm) and [`value`](Self::value); `None` when they do not fit together.
    pub fn from_parts(algorithm: &str, value: &[u8]) -> Option<OriginChecksum> {
        Some(match algorithm {
            "crc64nvme" => OriginChecksum::Crc64Nvme(Crc64::from_be_bytes(value.try_into().ok()?)),
            "crc32c" => OriginChecksum::Crc32c(u32::from_be_bytes(value.try_into().ok()?)),
            "sha256" => OriginChecksum::Sha256(value.try_into().ok()?),
            "md5" => OriginChecksum::Md5(value.try_into().ok()?),
            _ => return None,
        })
    }
}

impl fmt::Display for OriginChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), hex::encode(self.value()))
    }
}

/// One object of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    /// Its name below the dataset, and the local file's.
    pub key: ShardKey,
    /// Its length in bytes.
    pub len: u64,
    /// The origin's ETag when it was pinned; reads send `If-Match`.
    pub etag: Option<String>,
    /// The origin's version id, where the bucket keeps versions.
    pub version_id: Option<String>,
    /// What the origin says the bytes sum to; `None`: *origin-unverified*.
    pub checksum: Option<OriginChecksum>,
    /// Piece checksums known in advance (from `dataset index`), one per piece.
    pub piece_crcs: Option<Vec<Crc64>>,
}

/// What a version is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatasetKind {
    /// Data that trainers read.
    Dataset,
    /// State that trainers wrote.
    Checkpoint {
        /// The training run.
        run: String,
        /// The step within it.
        step: u64,
    },
}

/// Why a list of shards is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// A key that cannot become a file, or two that cannot live together.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Over [`SHARDS_MAX`].
    #[error("{count} shards, and {SHARDS_MAX} are the most; split the prefix into several datasets")]
    TooManyShards {
        /// Shards given.
        count: usize,
    },
    /// A piece length that is not allowed, or too many pieces.
    #[error("piece length {piece_len} does not fit {bytes} bytes in {count} shards")]
    Geometry {
        /// Piece length in bytes.
        piece_len: u64,
        /// Bytes of all shards.
        bytes: u128,
        /// Shards given.
        count: usize,
    },
    /// Piece checksums that do not belong to the shard.
    #[error("shard {key:?} has {given} piece checksums, but {pieces} pieces")]
    PieceCount {
        /// The shard.
        key: String,
        /// Checksums given.
        given: usize,
        /// Pieces of the shard.
        pieces: usize,
    },
    /// Piece checksums that contradict the origin's own checksum.
    #[error("the piece checksums of shard {key:?} combine to {combined}, but the origin says {origin}")]
    Contradiction {
        /// The shard.
        key: String,
        /// From the pieces.
        combined: Crc64,
        /// From the origin.
        origin: Crc64,
    },
}

/// The shards of one version. Immutable; equal digests mean equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    name: DatasetRef,
    kind: DatasetKind,
    origin_url: String,
    shards: Vec<ShardEntry>,
    layout: Layout,
    digest: Digest,
}

impl Manifest {
    /// Sorts the shards by key and checks them.
    ///
    /// # Errors
    /// [`ManifestError`] naming the shard and the reason.
    pub fn new(
        name: DatasetRef,
        kind: DatasetKind,
        origin_url: String,
        piece_len: u64,
        mut shards: Vec<ShardEntry>,
    ) -> Result<Manifest, ManifestError> {
        if shards.len() > SHARDS_MAX {
            return Err(ManifestError::TooManyShards { count: shards.len() });
        }
        shards.sort_by(|a, b| a.key.cmp(&b.key));
        check_tree(shards.iter().map(|s| &s.key))?;
        let lens: Vec<u64> = shards.iter().map(|s| s.len).collect();
        let layout = Layout::new(piece_len, &lens).ok_or_else(|| ManifestError::Geometry {
            piece_len,
            bytes: lens.iter().map(|&l| u128::from(l)).sum(),
            count: lens.len(),
        })?;
        check_piece_crcs(&layout, &shards)?;
        let digest = digest(&name, &kind, &origin_url, piece_len, &shards);
        Ok(Manifest { name, kind, origin_url, shards, layout, digest })
    }

    /// `name@version`.
    pub fn name(&self) -> &DatasetRef {
        &self.name
    }

    /// Dataset or checkpoint.
    pub fn kind(&self) -> &DatasetKind {
        &self.kind
    }

    /// The prefix at the origin that keys are relative to.
    pub fn origin_url(&self) -> &str {
        &self.origin_url
    }

    /// The shards, in key order; a [`ShardNo`](crate::ShardNo) is an index into this.
    pub fn shards(&self) -> &[ShardEntry] {
        &self.shards
    }

    /// Piece geometry.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The version's lasting identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Does the origin vouch for every shard?
    pub fn origin_verified(&self) -> bool {
        self.shards.iter().all(|s| s.checksum.is_some() || s.len == 0)
    }

    /// The shard of that key, and its number.
    pub fn find(&self, key: &str) -> Option<(u32, &ShardEntry)> {
        let i = self.shards.binary_search_by(|s| s.key.as_str().cmp(key)).ok()?;
        Some((i as u32, &self.shards[i]))
    }
}

fn check_piece_crcs(layout: &Layout, shards: &[ShardEntry]) -> Result<(), ManifestError> {
    let combiner = PieceCombiner::new(layout.piece_len());
    for (no, shard) in shards.iter().enumerate() {
        let Some(crcs) = &shard.piece_crcs else {
            continue;
        };
        let pieces = layout.shard_pieces(no as u32).len();
        if crcs.len() != pieces {
            return Err(ManifestError::PieceCount { key: shard.key.to_string(), given: crcs.len(), pieces });
        }
        let combined = combiner.shard(crcs.iter().copied(), shard.len);
        match shard.checksum {
            Some(OriginChecksum::Crc64Nvme(origin)) if origin != combined => {
                return Err(ManifestError::Contradiction { key: shard.key.to_string(), combined, origin });
            }
            _ => {}
        }
    }
    Ok(())
}

/// SHA-256 over every field that decides which bytes a version has. Piece checksums are left out: they follow from
/// the bytes, and are learned after the version is registered.
fn digest(name: &DatasetRef, kind: &DatasetKind, origin_url: &str, piece_len: u64, shards: &[ShardEntry]) -> Digest {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    field(b"millstream-manifest-v1");
    field(name.to_string().as_bytes());
    match kind {
        DatasetKind::Dataset => field(b"dataset"),
        DatasetKind::Checkpoint { run, step } => field(format!("checkpoint\0{run}\0{step}").as_bytes()),
    }
    field(origin_url.as_bytes());
    field(&piece_len.to_be_bytes());
    for shard in shards {
        field(shard.key.as_str().as_bytes());
        field(&shard.len.to_be_bytes());
        field(shard.etag.as_deref().unwrap_or("").as_bytes());
        field(shard.version_id.as_deref().unwrap_or("").as_bytes());
        field(shard.checksum.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes());
    }
    Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_BYTES_MIN;

    fn shard(key: &str, len: u64) -> ShardEntry {
        ShardEntry { key: key.parse().unwrap(), len, etag: None, version_id: None, checksum: None, piece_crcs: None }
    }

    fn manifest(shards: Vec<ShardEntry>) -> Result<Manifest, ManifestError> {
        let name = "d@v1".parse().unwrap();
        Manifest::new(name, DatasetKind::Dataset, "s3://b/p".into(), PIECE_BYTES_MIN, shards)
    }

    #[test]
    fn order_does_not_matter_and_every_field_does() {
        let a = manifest(vec![shard("a", 1), shard("b", 2)]).unwrap();
        let b = manifest(vec![shard("b", 2), shard("a", 1)]).unwrap();
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a.find("b").unwrap().0, 1);
        let mut changed = shard("a", 1);
        changed.etag = Some("x".into());
        assert_ne!(a.digest(), manifest(vec![changed, shard("b", 2)]).unwrap().digest());
    }

    #[test]
    fn piece_checksums_must_fit_the_shard_and_the_origin() {
        let data = vec![7u8; PIECE_BYTES_MIN as usize + 10];
        let mut good = shard("a", data.len() as u64);
        good.piece_crcs = Some(data.chunks(PIECE_BYTES_MIN as usize).map(Crc64::of).collect());
        good.checksum = Some(OriginChecksum::Crc64Nvme(Crc64::of(&data)));
        assert!(manifest(vec![good.clone()]).is_ok());
        let mut wrong = good.clone();
        wrong.checksum = Some(OriginChecksum::Crc64Nvme(Crc64(1)));
        assert!(matches!(manifest(vec![wrong]), Err(ManifestError::Contradiction { .. })));
        good.piece_crcs = Some(vec![]);
        assert!(matches!(manifest(vec![good]), Err(ManifestError::PieceCount { .. })));
    }

    #[test]
    fn checksums_survive_their_parts() {
        for sum in [OriginChecksum::Crc64Nvme(Crc64(5)), OriginChecksum::Crc32c(6), OriginChecksum::Md5([7; 16])] {
            assert_eq!(OriginChecksum::from_parts(sum.algorithm(), &sum.value()), Some(sum));
        }
        assert_eq!(OriginChecksum::from_parts("md5", &[0; 3]), None);
    }
}
