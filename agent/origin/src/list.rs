//! What is below a prefix.

use futures::TryStreamExt as _;
use millstream_types::ShardKey;
use object_store::ObjectMeta;

use crate::error::OriginError;
use crate::index::INDEX_KEY;
use crate::limits::BAD_KEYS_SHOWN;
use crate::Origin;

/// One object below the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its name relative to the prefix; safe as a local path.
    pub key: ShardKey,
    /// Length in bytes.
    pub len: u64,
    /// ETag, quotes included, as the origin sends it.
    pub etag: Option<String>,
    /// Version id, where the bucket keeps versions.
    pub version_id: Option<String>,
}

/// All objects, and whether an index lies beside them.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The shards, in key order.
    pub objects: Vec<ListedObject>,
    /// There is a `millstream-manifest.arrow` (which is no shard).
    pub has_index: bool,
}

/// How far a listing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListProgress {
    /// Objects so far.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Origin {
    /// Lists everything below the prefix. Directory markers (empty objects whose name ends with `/`) are left out.
    ///
    /// # Errors
    /// [`OriginError::BadKeys`] naming keys that cannot become files; else what the origin answered.
    pub async fn list(&self, mut progress: impl FnMut(ListProgress)) -> Result<Listing, OriginError> {
        let prefix = self.prefix.clone();
        let wanted = (!prefix.as_ref().is_empty()).then_some(&prefix);
        let mut stream = self.store.list(wanted);
        let mut listing = Listing::default();
        let mut bad = Vec::new();
        let mut bad_count = 0;
        let mut seen = ListProgress::default();
        let at = |e| match OriginError::from_store(self.url(), e) {
            OriginError::BadKeys { count, shown } => OriginError::BadKeys { count, shown },
            other => other,
        };
        while let Some(meta) = stream.try_next().await.map_err(at)? {
            let key = relative(prefix.as_ref(), &meta);
            if key == INDEX_KEY {
                listing.has_index = true;
                continue;
            }
            match key.parse() {
                Ok(key) => {
                    seen.objects += 1;
                    seen.bytes += meta.size;
                    listing.objects.push(ListedObject {
                        key,
                        len: meta.size,
                        etag: meta.e_tag,
                        version_id: meta.version,
                    });
                }
                Err(error) => {
                    bad_count += 1;
                    if bad.len() < BAD_KEYS_SHOWN {
                        bad.push(error.to_string());
                    }
                }
            }
            if seen.objects.is_multiple_of(1000) {
                progress(seen);
            }
        }
        progress(seen);
        if bad_count > 0 {
            return Err(OriginError::BadKeys { count: bad_count, shown: bad });
        }
        listing.objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listing)
    }
}

fn relative<'a>(prefix: &str, meta: &'a ObjectMeta) -> &'a str {
    let location = meta.location.as_ref();
    match location.strip_prefix(prefix) {
        // The prefix named one object: it is the only shard, under its own name.
        Some("") => location.rsplit('/').next().unwrap_or(location),
        Some(rest) => rest.trim_start_matches('/'),
        None => location,
    }
}
