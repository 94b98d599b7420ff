//! The index beside the data: a manifest with every piece checksum, written once, used by every later registration.

use futures::{StreamExt as _, TryStreamExt as _};
use millstream_types::checksum::Crc64Stream;
use millstream_types::{Crc64, DatasetKind, Layout, Manifest, OriginChecksum, PieceCombiner, ShardEntry};

use crate::error::OriginError;
use crate::limits::{INDEX_BYTES_MAX, INDEX_READS};
use crate::{ListedObject, Origin, Pin};

/// The index's name below the prefix. It is no shard.
pub const INDEX_KEY: &str = "millstream-manifest.arrow";

/// The name that an index carries: it is not bound to a dataset.
const INDEX_NAME: &str = "index@index";

/// How far an index is.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexProgress {
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// Reads every object once, sums its pieces, compares with the origin's own checksum, and builds the index.
///
/// # Errors
/// [`OriginError`]; a checksum that does not match names key, expected and actual.
pub async fn build(origin: &Origin, progress: impl Fn(IndexProgress) + Sync) -> Result<Manifest, OriginError> {
    let listing = origin.list(|_| {}).await?;
    let checksums = origin.checksums(&listing.objects, |_| {}).await?;
    let bytes_total: u64 = listing.objects.iter().map(|o| o.len).sum();
    let piece_len = Layout::piece_len_for(bytes_total);
    let read = std::sync::atomic::AtomicU64::new(0);
    let count = |n: u64| {
        let bytes_read = read.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n;
        progress(IndexProgress { bytes_read, bytes_total });
    };
    let shards: Vec<ShardEntry> = futures::stream::iter(listing.objects.iter().zip(checksums))
        .map(|(object, checksum)| sum_object(origin, object, checksum, piece_len, &count))
        .buffered(INDEX_READS)
        .try_collect()
        .await?;
    let name = INDEX_NAME.parse().map_err(|e| OriginError::Invalid { detail: format!("{e}") })?;
    Manifest::new(name, DatasetKind::Dataset, origin.url().to_owned(), piece_len, shards)
        .map_err(|e| OriginError::Invalid { detail: e.to_string() })
}

async fn sum_object(
    origin: &Origin,
    object: &ListedObject,
    checksum: Option<OriginChecksum>,
    piece_len: u64,
    count: &(impl Fn(u64) + Sync),
) -> Result<ShardEntry, OriginError> {
    let mut crcs: Vec<Crc64> = Vec::new();
    if object.len > 0 {
        let pin = Pin { etag: object.etag.clone(), version_id: object.version_id.clone(), len: object.len };
        let mut body = origin.get_range(object.key.as_str(), 0..object.len, &pin).await?;
        let mut buffer = vec![0; 256 << 10];
        let mut left = object.len;
        while left > 0 {
            let mut piece_left = left.min(piece_len);
            left -= piece_left;
            let mut sum = Crc64Stream::default();
            while piece_left > 0 {
                let want = buffer.len().min(piece_left as usize);
                let n = body.read(&mut buffer[..want]).await?;
                sum.update(&buffer[..n]);
                piece_left -= n as u64;
                count(n as u64);
            }
            crcs.push(sum.value());
        }
    }
    let whole = PieceCombiner::new(piece_len).shard(crcs.iter().copied(), object.len);
    if let Some(OriginChecksum::Crc64Nvme(expected)) = checksum
        && expected != whole
    {
        let key = &object.key;
        let detail = format!("{key:?} sums to {whole}, but the origin says {expected}; read it again or upload it anew");
        return Err(OriginError::Invalid { detail });
    }
    Ok(ShardEntry {
        key: object.key.clone(),
        len: object.len,
        etag: object.etag.clone(),
        version_id: object.version_id.clone(),
        checksum,
        piece_crcs: Some(crcs),
    })
}

/// The bytes of the index beside the data, when there is one.
///
/// # Errors
/// [`OriginError`].
pub async fn read(origin: &Origin) -> Result<Option<Vec<u8>>, OriginError> {
    origin.get_small(INDEX_KEY, INDEX_BYTES_MAX).await
}

/// Piece length and checksums of an index, if it speaks of exactly these objects.
///
/// # Errors
/// [`OriginError::Invalid`] naming the first object that differs.
pub fn matching(index: &Manifest, objects: &[ListedObject]) -> Result<Vec<ShardEntry>, OriginError> {
    let stale = |what: String| OriginError::Invalid {
        detail: format!("the index {INDEX_KEY} is older than the data ({what}); write it anew: millstream dataset index"),
    };
    if index.shards().len() != objects.len() {
        return Err(stale(format!("{} objects, {} in the index", objects.len(), index.shards().len())));
    }
    for (entry, object) in index.shards().iter().zip(objects) {
        if entry.key != object.key || entry.len != object.len || entry.etag != object.etag {
            return Err(stale(format!("{:?} differs", object.key)));
        }
    }
    Ok(index.shards().to_vec())
}
