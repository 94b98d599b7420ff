//! What is below a prefix.

use futures::{StreamExt as _, TryStreamExt as _};
use millstream_types::{KeyError, ShardKey};

use crate::Origin;
use crate::backend::Backend;
use crate::error::OriginError;
use crate::index::INDEX_KEY;
use crate::limits::{BAD_KEYS_SHOWN, HEADS_AT_ONCE, OBJECTS_MAX, PROGRESS_EVERY};
use crate::patience::patiently;

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

/// Collects objects, and the names that are refused.
struct Collector<'a, P> {
    prefix: &'a str,
    progress: P,
    seen: ListProgress,
    listing: Listing,
    bad: Vec<String>,
    bad_count: usize,
}

impl<P: FnMut(ListProgress)> Collector<'_, P> {
    fn add(&mut self, key: &str, len: u64, etag: Option<String>, version_id: Option<String>) {
        let key = key.strip_prefix(self.prefix).unwrap_or(key);
        // A directory marker, also the one of the prefix itself.
        if len == 0 && (key.is_empty() || key.ends_with('/')) {
            return;
        }
        if key == INDEX_KEY {
            self.listing.has_index = true;
            return;
        }
        let parsed: Result<ShardKey, KeyError> = match key.contains(char::REPLACEMENT_CHARACTER) {
            true => Err(KeyError::BadComponent { key: key.to_owned(), part: "bytes that are no UTF-8".to_owned() }),
            false => key.parse(),
        };
        match parsed {
            Ok(key) => {
                self.seen.objects += 1;
                self.seen.bytes += len;
                self.listing.objects.push(ListedObject { key, len, etag, version_id });
            }
            Err(error) => {
                self.bad_count += 1;
                if self.bad.len() < BAD_KEYS_SHOWN {
                    self.bad.push(error.to_string());
                }
            }
        }
        if self.seen.objects.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(self.seen);
        }
    }

    fn full(&self) -> bool {
        self.listing.objects.len() > OBJECTS_MAX
    }

    fn finish(mut self) -> Result<Listing, OriginError> {
        (self.progress)(self.seen);
        if self.bad_count > 0 {
            return Err(OriginError::BadKeys { count: self.bad_count, shown: self.bad });
        }
        self.listing.objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(self.listing)
    }
}

fn too_many() -> OriginError {
    let detail = format!("more than {OBJECTS_MAX} objects; split the prefix into several datasets");
    OriginError::Invalid { detail }
}

impl Origin {
    /// Lists everything below the prefix. Directory markers (empty objects whose name ends with `/`) are left out.
    ///
    /// # Errors
    /// [`OriginError::BadKeys`] naming keys that cannot become files; else what the origin answered.
    pub async fn list(&self, progress: impl FnMut(ListProgress)) -> Result<Listing, OriginError> {
        let mut all = Collector {
            prefix: &self.prefix,
            progress,
            seen: ListProgress::default(),
            listing: Listing::default(),
            bad: Vec::new(),
            bad_count: 0,
        };
        match &*self.backend {
            Backend::S3(s3) => {
                let pages = s3.list(&self.prefix, |page| {
                    page.into_iter().for_each(|o| all.add(&o.key, o.len, o.etag, None));
                    if all.full() { Err(too_many()) } else { Ok(()) }
                });
                pages.await?;
            }
            Backend::Store(store) => {
                let mut stream = store.list(&self.prefix);
                while let Some(meta) = stream.try_next().await? {
                    all.add(meta.location.as_ref(), meta.size, meta.e_tag, meta.version);
                    if all.full() {
                        return Err(too_many());
                    }
                }
            }
            Backend::File(directory) => {
                for file in directory.list().await? {
                    all.add(&file.key, file.len, Some(file.etag), None);
                }
            }
            Backend::Web(web) => {
                all.listing.has_index = true;
                let index = web.index(&self.prefix).await?;
                let heads = futures::stream::iter(index).map(|(key, indexed)| async move {
                    let full = self.full(key);
                    let (len, etag) = patiently(async || web.head(key, &full).await).await?;
                    if len != indexed.len {
                        let detail = format!("it has {len} bytes, but the index says {}", indexed.len);
                        return Err(OriginError::Changed { key: key.clone(), detail });
                    }
                    Ok((key, len, etag))
                });
                let mut heads = heads.buffered(HEADS_AT_ONCE);
                while let Some((key, len, etag)) = heads.try_next().await? {
                    all.add(key, len, etag, None);
                }
            }
        }
        all.finish()
    }
}
