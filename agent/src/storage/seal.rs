//! Making a complete shard visible: check the whole, make it lasting, move it, and only then say so.

use std::collections::BTreeSet;
use std::io;

use crc_fast::CrcAlgorithm;
use md5::Md5;
use millstream_types::checksum::PieceCombiner;
use millstream_types::{Crc64, Digest, OriginChecksum, ShardNo};
use sha2::Sha256;

use super::check::{ReadBack, read_back};
use super::dir::Dir;
use super::error::SealError;
use super::io::{FileHandle, run_blocking};
use super::records::Attributes;
use super::store::Store;
use super::version::{Use, Version};

/// A checksum of a whole file that piece checksums do not combine into.
pub(super) enum WholeHash {
    Crc32c(Box<crc_fast::Digest>),
    Sha256(Box<Sha256>),
    Md5(Box<Md5>),
}

impl WholeHash {
    /// The hash that an origin's checksum needs; `None` where the pieces' checksums are enough.
    fn needed_for(checksum: Option<&OriginChecksum>) -> Option<WholeHash> {
        match checksum? {
            OriginChecksum::Crc64Nvme(_) => None,
            OriginChecksum::Crc32c(_) => {
                Some(WholeHash::Crc32c(Box::new(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi))))
            }
            OriginChecksum::Sha256(_) => Some(WholeHash::Sha256(Box::default())),
            OriginChecksum::Md5(_) => Some(WholeHash::Md5(Box::default())),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            WholeHash::Crc32c(hash) => hash.update(bytes),
            WholeHash::Sha256(hash) => sha2::Digest::update(&mut **hash, bytes),
            WholeHash::Md5(hash) => md5::Digest::update(&mut **hash, bytes),
        }
    }

    fn finish(self) -> OriginChecksum {
        match self {
            WholeHash::Crc32c(hash) => OriginChecksum::Crc32c(hash.finalize() as u32),
            WholeHash::Sha256(hash) => OriginChecksum::Sha256(sha2::Digest::finalize(*hash).into()),
            WholeHash::Md5(hash) => OriginChecksum::Md5(md5::Digest::finalize(*hash).into()),
        }
    }
}

impl Store {
    /// Makes a shard visible whose pieces are all on disk: compares the whole with the origin's checksum (re-reading
    /// the file for kinds that piece checksums do not combine into) and with `crc`, what the caller thinks the
    /// pieces combine to; syncs, moves, records. Sealing it again does nothing.
    ///
    /// # Errors
    /// [`SealError`]; the shard then is not visible.
    pub async fn seal(&self, digest: &Digest, shard: ShardNo, crc: Crc64) -> Result<(), SealError> {
        let version = self.version(digest).ok_or(SealError::NotOpen(*digest))?;
        if shard >= version.layout().shards() {
            return Err(SealError::Incomplete { key: format!("shard {shard}"), missing: 0 });
        }
        self.seal_open(&version, shard, Some(crc)).await
    }

    /// Like `seal`, for a shard that was sealed before a restart.
    pub(super) async fn reseal(&self, version: &Version, shard: ShardNo) -> Result<(), SealError> {
        self.seal_open(version, shard, None).await
    }

    async fn seal_open(&self, version: &Version, shard: ShardNo, told: Option<Crc64>) -> Result<(), SealError> {
        let _gate = version.gate(shard).write().await;
        let Some(crc) = combined(version, shard)? else { return Ok(()) };
        let key = || version.key(shard);
        if let Some(told) = told.filter(|&told| told != crc) {
            return Err(SealError::Mismatch { key: key(), expected: told.to_string(), actual: crc.to_string() });
        }
        let disk = |error| SealError::Disk { key: key(), error };
        let file = self.partial_file(version, shard).await.map_err(disk)?;
        self.check_whole(version, shard, crc, &file).await?;
        self.engine.sync(&file).await.map_err(disk)?;
        // Nobody writes to it through us any more, also not by a handle that someone still holds.
        self.files.forget(&version.digest, shard);
        let len = version.layout().shard_len(shard);
        let (datasets, partial, path) =
            (self.dirs.datasets.clone(), version.partial.clone(), version.sealed_path(shard));
        let moved = file.clone();
        let attributes = run_blocking(move || expose(&moved, len, &partial, shard, &datasets, &path));
        let attributes = attributes.await.map_err(disk)?;
        let record = version.state().record(version.layout(), shard, attributes, crc);
        if let Err(error) = version.records.append(&*self.engine, |out| record.encode(&version.digest, out)).await {
            // It is visible and right; only a restart will read it once more.
            tracing::warn!(digest = %version.digest, shard, %error, "cannot record a sealed shard");
        }
        version.state().sealed.insert(shard);
        // Peers that are a few pieces behind ask for it next.
        self.files.insert(&version.digest, shard, Use::Reading, file);
        self.quota().update(&version.digest, |held| {
            held.partial = held.partial.saturating_sub(len);
            held.used += len;
        });
        Ok(())
    }

    /// Compares the whole with what the origin says.
    async fn check_whole(
        &self,
        version: &Version,
        shard: ShardNo,
        crc: Crc64,
        file: &FileHandle,
    ) -> Result<(), SealError> {
        let Some(expected) = &version.manifest.shards()[shard as usize].checksum else { return Ok(()) };
        let actual = match WholeHash::needed_for(Some(expected)) {
            None => OriginChecksum::Crc64Nvme(crc),
            Some(hash) => match read_back(self, version, shard, file, Some(hash)).await {
                Ok(Some(hash)) => hash.finish(),
                Ok(None) => OriginChecksum::Crc64Nvme(crc), // not reached: a hash that went in comes out
                Err(ReadBack::Bad { piece, mismatch }) => {
                    let (expected, actual) = (mismatch.expected, mismatch.actual);
                    return Err(SealError::Corrupt { key: version.key(shard), piece, expected, actual });
                }
                Err(ReadBack::Disk(error)) => return Err(SealError::Disk { key: version.key(shard), error }),
            },
        };
        if actual == *expected {
            return Ok(());
        }
        let (expected, actual) = (expected.to_string(), actual.to_string());
        Err(SealError::Mismatch { key: version.key(shard), expected, actual })
    }
}

/// What a shard's pieces combine to; `None` when it is sealed already.
fn combined(version: &Version, shard: ShardNo) -> Result<Option<Crc64>, SealError> {
    let layout = version.layout();
    let pieces = layout.shard_pieces(shard);
    let state = version.state();
    if state.closed {
        return Err(SealError::NotOpen(version.digest));
    }
    if state.sealed.contains(shard) {
        return Ok(None);
    }
    let missing = pieces.len() as u32 - state.have.count_range(pieces.clone());
    if missing > 0 {
        return Err(SealError::Incomplete { key: version.key(shard), missing });
    }
    let crcs = state.crcs[pieces.start as usize..pieces.end as usize].iter().copied();
    Ok(Some(PieceCombiner::new(layout.piece_len()).shard(crcs, layout.shard_len(shard))))
}

/// Moves a synced file to where trainers look, read-only, and makes the move lasting.
fn expose(
    file: &FileHandle,
    len: u64,
    partial: &Dir,
    shard: ShardNo,
    datasets: &Dir,
    path: &str,
) -> io::Result<Attributes> {
    use std::os::unix::fs::PermissionsExt as _;
    let found = file.file().metadata()?.len();
    if found != len {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{found} bytes on disk instead of {len}")));
    }
    file.file().set_permissions(std::fs::Permissions::from_mode(0o444))?;
    let mut changed = Vec::new();
    let (parent, name) = datasets.make_parents(path, &mut changed)?;
    partial.rename(&Version::partial_name(shard), &parent, name)?;
    parent.sync()?;
    // Deepest first: a directory is lasting before the entry that names it matters.
    changed.iter().rev().try_for_each(Dir::sync)?;
    let stat = rustix::fs::fstat(&**file.file())?;
    let planted = || io::Error::new(io::ErrorKind::InvalidData, "not a regular file");
    let attributes = Attributes::of(&stat).ok_or_else(planted)?;
    // What is visible must be the very file that was checked.
    let visible = datasets.stat(path)?.and_then(|stat| Attributes::of(&stat)).ok_or_else(planted)?;
    if visible != attributes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another file came in between"));
    }
    Ok(attributes)
}

/// Shards that were sealed once and are to be sealed again.
pub(super) type Reseal = BTreeSet<ShardNo>;
