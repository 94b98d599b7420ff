//! The origin: what is there, what it sums to, and ranged reads of exactly the pinned objects.
//!
//! Participants: the coordinator lists and pins ([`Origin::list`], [`Origin::checksums`]), agents read
//! ([`Origin::get_range`]), the CLI writes an index ([`index`]). Goals: S3 first, everything else that
//! `object_store` speaks by URL; one error enum whose variants say what to do next; a changed object is an error,
//! never other bytes. Non-goals: retries, concurrency, budgets (policy, in the cores).

mod body;
mod checksum;
mod error;
pub mod index;
pub mod limits;
mod list;
mod s3;

use std::ops::Range;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, RetryConfig};
use url::Url;

pub use body::BodyReader;
pub use checksum::ChecksumProgress;
pub use error::OriginError;
pub use list::{ListProgress, ListedObject, Listing};

/// Which object a read must be of. Reads of any other one fail with [`OriginError::Changed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// Sent as `If-Match`.
    pub etag: Option<String>,
    /// The version to read, where the bucket keeps versions.
    pub version_id: Option<String>,
    /// Length in bytes.
    pub len: u64,
}

/// A prefix at an object store.
#[derive(Clone, Debug)]
pub struct Origin {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    s3: Option<Arc<s3::S3Direct>>,
}

impl Origin {
    /// From `s3://bucket/prefix`, `gs://…`, `az://…`, `http(s)://…` or `file:///…`. Credentials and endpoints come
    /// from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`). Connects to nothing yet.
    ///
    /// # Errors
    /// [`OriginError::Url`] with the URL and the reason.
    pub fn from_url(text: &str) -> Result<Origin, OriginError> {
        let bad = |detail: String| OriginError::Url { url: text.to_owned(), detail };
        let url = Url::parse(text).map_err(|e| bad(e.to_string()))?;
        if url.scheme() == "s3" || url.scheme() == "s3a" {
            let (store, direct, prefix) = s3::open(&url).map_err(bad)?;
            return Ok(Origin { url: text.to_owned(), store, prefix, s3: Some(Arc::new(direct)) });
        }
        let options = std::env::vars().map(|(k, v)| (k.to_ascii_lowercase(), v)).chain(
            // Plain http is what the user wrote; nothing is hidden by allowing it.
            (url.scheme() == "http").then(|| ("allow_http".to_owned(), "true".to_owned())),
        );
        let (store, prefix) =
            object_store::parse_url_opts(&url, options).map_err(|e| bad(error::with_causes(&e)))?;
        Ok(Origin { url: text.to_owned(), store: Arc::from(store), prefix, s3: None })
    }

    /// The URL it was made from.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn path(&self, key: &str) -> Result<Path, OriginError> {
        let joined = if self.prefix.as_ref().is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(&joined).map_err(|e| OriginError::NotFound { key: key.to_owned(), detail: e.to_string() })
    }

    /// Reads `range` of the object below the prefix, if it still is the pinned one.
    ///
    /// # Errors
    /// [`OriginError`], at the start here or later from [`BodyReader::read`].
    pub async fn get_range(&self, key: &str, range: Range<u64>, pin: &Pin) -> Result<BodyReader, OriginError> {
        let path = self.path(key)?;
        if let Some(s3) = &self.s3 {
            return s3.get_range(key, &path, range, pin).await;
        }
        let len = range.end - range.start;
        let options = GetOptions {
            if_match: pin.etag.clone(),
            version: pin.version_id.clone(),
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let result = self.store.get_opts(&path, options).await.map_err(|e| OriginError::from_store(key, e))?;
        if result.meta.size != pin.len {
            let detail = format!("it has {} bytes, {} were pinned", result.meta.size, pin.len);
            return Err(OriginError::Changed { key: key.to_owned(), detail });
        }
        Ok(BodyReader::from_stream(key, result.into_stream(), len))
    }

    /// Writes a whole object below the prefix.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), OriginError> {
        let path = self.path(key)?;
        self.store.put(&path, bytes.into()).await.map_err(|e| OriginError::from_store(key, e))?;
        Ok(())
    }

    /// Reads a whole (small) object below the prefix; `None` when it is not there.
    ///
    /// # Errors
    /// [`OriginError`]; [`OriginError::TooLarge`] over `limit` bytes.
    pub async fn get_small(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, OriginError> {
        let path = self.path(key)?;
        let result = match self.store.get(&path).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(OriginError::from_store(key, error)),
        };
        if result.meta.size > limit {
            return Err(OriginError::TooLarge { key: key.to_owned(), len: result.meta.size, limit });
        }
        let bytes = result.bytes().await.map_err(|e| OriginError::from_store(key, e))?;
        Ok(Some(bytes.to_vec()))
    }
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(limits::CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_allow_http(true)
}

/// Retrying is the cores' business: they know leases, budgets and other sources.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}
