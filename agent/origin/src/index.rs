//! The index beside the data: a manifest with every piece checksum, written once, used by every later registration.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt as _, TryStreamExt as _};
use millstream_proto::manifest;
use millstream_types::checksum::Crc64Stream;
use millstream_types::{Crc64, DatasetKind, Layout, Manifest, OriginChecksum, PieceCombiner, ShardEntry};

use crate::backend::Backend;
use crate::error::OriginError;
use crate::limits::{INDEX_BYTES_MAX, INDEX_RANGE_BYTES, INDEX_READS, SUM_BYTES};
use crate::patience::patiently;
use crate::{Facts, Hasher, ListedObject, Origin, Pin};

/// The index's name below the prefix. It is no shard.
pub use millstream_proto::manifest::INDEX_KEY;

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
    let objects = origin.list(|_| {}).await?.objects;
    let facts = origin.facts(&objects, |_| {}).await?;
    let bytes_total: u64 = objects.iter().map(|o| o.len).sum();
    let piece_len = Layout::piece_len_for(bytes_total);
    let read = AtomicU64::new(0);
    let count = |n: u64| {
        let bytes_read = read.fetch_add(n, Ordering::Relaxed) + n;
        progress(IndexProgress { bytes_read, bytes_total });
    };
    let parts = objects.iter().zip(&facts).enumerate();
    let parts = parts.flat_map(|(no, (object, facts))| Part::split(no, object, facts, piece_len));
    let mut sums =
        futures::stream::iter(parts).map(|part| sum_part(origin, part, piece_len, &count)).buffered(INDEX_READS);
    let mut crcs: Vec<Vec<Crc64>> = vec![Vec::new(); objects.len()];
    while let Some((no, sums)) = sums.try_next().await? {
        crcs[no].extend(sums);
    }
    drop(sums);
    let combiner = PieceCombiner::new(piece_len);
    let mut shards = Vec::with_capacity(objects.len());
    for ((object, facts), crcs) in objects.into_iter().zip(facts).zip(crcs) {
        let whole = combiner.shard(crcs.iter().copied(), object.len);
        if let Some(expected @ OriginChecksum::Crc64Nvme(crc)) = &facts.checksum
            && *crc != whole
        {
            return Err(mismatch(&object, &whole, expected));
        }
        shards.push(ShardEntry {
            key: object.key,
            len: object.len,
            etag: object.etag,
            version_id: facts.version_id.or(object.version_id),
            checksum: facts.checksum,
            piece_crcs: Some(crcs),
        });
    }
    let name = INDEX_NAME.parse().map_err(|e| OriginError::Invalid { detail: format!("{e}") })?;
    Manifest::new(name, DatasetKind::Dataset, origin.url().to_owned(), piece_len, shards)
        .map_err(|e| OriginError::Invalid { detail: e.to_string() })
}

fn mismatch(object: &ListedObject, actual: &dyn std::fmt::Display, expected: &OriginChecksum) -> OriginError {
    let key = &object.key;
    let detail = format!("{key:?} sums to {actual}, but the origin says {expected}; read it again or upload it anew");
    OriginError::Invalid { detail }
}

/// Some pieces of one object, read in one go.
struct Part<'a> {
    no: usize,
    object: &'a ListedObject,
    pin: Pin,
    range: Range<u64>,
    /// A checksum that does not combine from pieces: the part is then the whole object.
    check: Option<&'a OriginChecksum>,
}

impl<'a> Part<'a> {
    fn split(
        no: usize,
        object: &'a ListedObject,
        facts: &'a Facts,
        piece_len: u64,
    ) -> impl Iterator<Item = Part<'a>> + use<'a> {
        let check = facts.checksum.as_ref().filter(|sum| !matches!(sum, OriginChecksum::Crc64Nvme(_)));
        let len = object.len;
        let step = match check {
            Some(_) => len.max(1),
            None => INDEX_RANGE_BYTES.next_multiple_of(piece_len),
        };
        let version_id = facts.version_id.clone().or_else(|| object.version_id.clone());
        let pin = Pin { etag: object.etag.clone(), version_id, len };
        (0..len.div_ceil(step)).map(move |i| {
            let range = i * step..(i * step + step).min(len);
            Part { no, object, pin: pin.clone(), range, check }
        })
    }
}

async fn sum_part(
    origin: &Origin,
    part: Part<'_>,
    piece_len: u64,
    count: &(impl Fn(u64) + Sync),
) -> Result<(usize, Vec<Crc64>), OriginError> {
    let crcs = patiently(async || sum_once(origin, &part, piece_len).await).await?;
    count(part.range.end - part.range.start);
    Ok((part.no, crcs))
}

async fn sum_once(origin: &Origin, part: &Part<'_>, piece_len: u64) -> Result<Vec<Crc64>, OriginError> {
    let key = part.object.key.as_str();
    let mut body = origin.get_range(key, part.range.clone(), &part.pin).await?;
    let mut hasher = part.check.map(Hasher::like);
    let mut buffer = vec![0; SUM_BYTES];
    let mut crcs = Vec::with_capacity((body.left() / piece_len) as usize + 1);
    while body.left() > 0 {
        let mut piece_left = body.left().min(piece_len);
        let mut sum = Crc64Stream::default();
        while piece_left > 0 {
            let want = buffer.len().min(piece_left as usize);
            let n = body.read(&mut buffer[..want]).await?;
            sum.update(&buffer[..n]);
            if let Some(hasher) = &mut hasher {
                hasher.update(&buffer[..n]);
            }
            piece_left -= n as u64;
        }
        crcs.push(sum.value());
    }
    match (hasher.map(|h| h.value()), part.check) {
        (Some(actual), Some(expected)) if actual != *expected => Err(mismatch(part.object, &actual, expected)),
        _ => Ok(crcs),
    }
}

/// The bytes of the index beside the data, when there is one.
///
/// # Errors
/// [`OriginError`].
pub async fn read(origin: &Origin) -> Result<Option<Vec<u8>>, OriginError> {
    let bytes = origin.get_small(INDEX_KEY, INDEX_BYTES_MAX).await?;
    match (&*origin.backend, &bytes) {
        (Backend::Web(web), Some(bytes)) => web.index_as_seen(bytes).map(Some),
        _ => Ok(bytes),
    }
}

/// The same index with other ETags.
pub(crate) fn with_etags(
    bytes: &[u8],
    etag: impl Fn(&str) -> Option<String>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let index = manifest::decode(bytes)?;
    let shards = index.shards().iter().cloned();
    let shards = shards.map(|shard| ShardEntry { etag: etag(shard.key.as_str()), version_id: None, ..shard });
    let (name, kind, url) = (index.name().clone(), index.kind().clone(), index.origin_url().to_owned());
    let seen = Manifest::new(name, kind, url, index.layout().piece_len(), shards.collect())?;
    Ok(manifest::encode(&seen, None)?)
}

/// Piece length and checksums of an index, if it speaks of exactly these objects.
///
/// # Errors
/// [`OriginError::Invalid`] naming the first object that differs.
pub fn matching(index: &Manifest, objects: &[ListedObject]) -> Result<Vec<ShardEntry>, OriginError> {
    let stale = |what: String| OriginError::Invalid {
        detail: format!(
            "the index {INDEX_KEY} is older than the data ({what}); write it anew: millstream dataset index"
        ),
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
