//! Reading back what is on disk and comparing every piece: for seals, `verify` and the scrub.

use std::io;

use millstream_types::{Crc64, Digest, PieceNo, ShardNo};

use super::error::BadShard;
use super::io::FileHandle;
use super::seal::WholeHash;
use super::store::Store;
use super::version::Version;
use crate::buffers::Slot;
use crate::piece::{Mismatch, Unverified, Verified};

/// Why a file is not what was written.
#[derive(Debug)]
pub(super) enum ReadBack {
    Bad { piece: PieceNo, mismatch: Mismatch },
    Disk(io::Error),
}

/// Reads a shard piece by piece, compares each with the checksum known here, and hashes the whole if asked to.
/// Holds one slot, and a second one only when it is there for the taking.
pub(super) async fn read_back(
    store: &Store,
    version: &Version,
    shard: ShardNo,
    file: &FileHandle,
    mut hash: Option<WholeHash>,
) -> Result<Option<WholeHash>, ReadBack> {
    let pieces = version.layout().shard_pieces(shard);
    let mut ready: Option<Verified> = None;
    for piece in pieces {
        let len = version.layout().place(piece).len as usize;
        let spare = store.arena.try_slot(len);
        match (spare, ready.take()) {
            // Read ahead while the last piece is hashed.
            (Some(slot), Some(last)) => {
                let (next, hashed) =
                    tokio::join!(read_verified(store, version, file, piece, slot), hash_piece(hash, last));
                hash = hashed?;
                ready = Some(next?);
            }
            (Some(slot), None) => ready = Some(read_verified(store, version, file, piece, slot).await?),
            (None, last) => {
                if let Some(last) = last {
                    hash = hash_piece(hash, last).await?;
                }
                let slot = store.arena.slot(len).await;
                ready = Some(read_verified(store, version, file, piece, slot).await?);
            }
        }
        if hash.is_none() {
            ready = None; // summed already, and nobody hashes it
        }
    }
    match ready {
        Some(last) => hash_piece(hash, last).await,
        None => Ok(hash),
    }
}

async fn hash_piece(hash: Option<WholeHash>, piece: Verified) -> Result<Option<WholeHash>, ReadBack> {
    let Some(mut hash) = hash else { return Ok(None) };
    let hashed = super::io::run_blocking(move || {
        hash.update(&piece);
        Ok(hash)
    });
    hashed.await.map(Some).map_err(ReadBack::Disk)
}

async fn read_verified(
    store: &Store,
    version: &Version,
    file: &FileHandle,
    piece: PieceNo,
    slot: Slot,
) -> Result<Verified, ReadBack> {
    let expected = version.state().crcs[piece as usize];
    read_expected(store, version, file, piece, expected, slot).await
}

/// Reads one piece and compares it.
pub(super) async fn read_expected(
    store: &Store,
    version: &Version,
    file: &FileHandle,
    piece: PieceNo,
    expected: Crc64,
    slot: Slot,
) -> Result<Verified, ReadBack> {
    let place = version.layout().place(piece);
    let slot = store.engine.read_into(file, place.offset, place.len, slot).await.map_err(ReadBack::Disk)?;
    let unverified = Unverified::sum(slot, place.len);
    unverified.verify(expected).map_err(|(mismatch, _slot)| ReadBack::Bad { piece, mismatch })
}

impl Store {
    /// Reads a sealed shard from the disk, past the page cache, and compares every piece with its record. One piece
    /// at a time; the caller sets the pace between shards.
    ///
    /// # Errors
    /// [`BadShard`]: the first thing that is wrong.
    pub async fn verify_shard(&self, digest: &Digest, shard: ShardNo) -> Result<(), BadShard> {
        let not_sealed = || BadShard::NotSealed { digest: *digest, shard };
        let version = self.version(digest).ok_or_else(not_sealed)?;
        if shard >= version.layout().shards() {
            return Err(not_sealed());
        }
        let _gate = version.gate(shard).read().await;
        if !version.state().sealed.contains(shard) {
            return Err(not_sealed());
        }
        let key = || version.key(shard);
        // Opened anew: what counts is the file that is there now.
        let path = version.sealed_path(shard);
        let file = self.engine.open(&self.dirs.datasets, &path, super::io::Purpose::Read).await;
        let file = file.map_err(|error| BadShard::Unreadable { key: key(), error })?;
        let expected = version.layout().shard_len(shard);
        if file.len() != expected {
            return Err(BadShard::Length { key: key(), expected, actual: file.len() });
        }
        match read_back(self, &version, shard, &file, None).await {
            Ok(_) => Ok(()),
            Err(ReadBack::Disk(error)) => Err(BadShard::Unreadable { key: key(), error }),
            Err(ReadBack::Bad { piece, mismatch: Mismatch { expected, actual } }) => {
                Err(BadShard::Piece { key: key(), piece, expected, actual })
            }
        }
    }

    /// What the pieces of a sealed shard sum to.
    pub fn sealed_crcs(&self, digest: &Digest, shard: ShardNo) -> Option<Vec<Crc64>> {
        let version = self.version(digest)?;
        let state = version.state();
        let pieces = state.sealed.contains(shard).then(|| version.layout().shard_pieces(shard))?;
        Some(state.crcs[pieces.start as usize..pieces.end as usize].to_vec())
    }
}
