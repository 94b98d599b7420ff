//! The origin: what is there, what it sums to, and ranged reads of exactly the pinned objects.
//!
//! Participants: the coordinator lists and pins ([`Origin::list`], [`Origin::checksums`]), agents read
//! ([`Origin::get_range`]), the CLI writes an index ([`index`]).
//! Goals: S3 first, and by URL everything else that `object_store` speaks, plain HTTP(S) with an index, and local
//! directories; keys are taken literally or refused with the reason; one error enum whose variants say what to do
//! next; a changed object is an error, never other bytes; one copy from the socket into the caller's buffer.
//! Non-goals: retries of ranged reads, concurrency, budgets (policy, in the cores).

mod backend;
mod body;
mod checksum;
mod error;
mod file;
mod http1;
pub mod index;
pub mod limits;
mod list;
mod patience;
mod s3;
mod still;
mod store;
mod web;

use std::ops::Range;
use std::sync::Arc;

use object_store::{ClientOptions, RetryConfig};

use backend::Backend;
pub use body::BodyReader;
pub use checksum::{ChecksumProgress, Facts, Hasher};
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

/// A prefix at an object store. Clones share connections.
#[derive(Clone, Debug)]
pub struct Origin {
    url: String,
    backend: Arc<Backend>,
    /// With its slash at the end, or empty.
    prefix: String,
}

/// Most often the URL; but no client can be made either on a machine without root certificates.
fn unusable(url: String, detail: String) -> OriginError {
    if detail.contains("CA certificates") {
        let detail = format!("{url}: this machine has no root certificates; install the package ca-certificates");
        return OriginError::Invalid { detail };
    }
    OriginError::Url { url, detail }
}

impl Origin {
    /// From `s3://bucket/prefix`, `gs://…`, `az://…`, `http(s)://…` or `file:///…`. Credentials and endpoints come
    /// from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`). Connects to nothing yet.
    ///
    /// # Errors
    /// [`OriginError::Url`] with the URL and the reason.
    pub fn from_url(text: &str) -> Result<Origin, OriginError> {
        Origin::from_url_with(
            text,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Like [`from_url`](Self::from_url), with these variables instead of the process's.
    ///
    /// # Errors
    /// As [`from_url`](Self::from_url).
    pub fn from_url_with(text: &str, vars: impl IntoIterator<Item = (String, String)>) -> Result<Origin, OriginError> {
        let vars: Vec<(String, String)> = vars.into_iter().collect();
        let (backend, prefix) =
            Backend::open(text, &vars).map_err(|detail| unusable(backend::without_secrets(text), detail))?;
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Origin { url: text.to_owned(), backend: Arc::new(backend), prefix })
    }

    /// The URL it was made from.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Reads `range` of the object below the prefix, if it still is the pinned one. Tried once.
    ///
    /// # Errors
    /// [`OriginError`], at the start here or later from [`BodyReader::read`].
    pub async fn get_range(&self, key: &str, range: Range<u64>, pin: &Pin) -> Result<BodyReader, OriginError> {
        if range.start > range.end || range.end > pin.len {
            let detail = format!("bytes {range:?} of {} were asked for", pin.len);
            return Err(OriginError::Invalid { detail: format!("{key:?}: {detail}") });
        }
        if range.is_empty() {
            return Ok(BodyReader::empty(key));
        }
        self.backend.get_range(key, &self.full(key), range, pin).await
    }

    /// Writes a whole object below the prefix.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), OriginError> {
        self.backend.put(key, &self.full(key), bytes.into()).await
    }

    /// Reads a whole (small) object below the prefix; `None` when it is not there.
    ///
    /// # Errors
    /// [`OriginError`]; [`OriginError::TooLarge`] over `limit` bytes.
    pub async fn get_small(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, OriginError> {
        let full = self.full(key);
        let got = patience::patiently(async || self.backend.get_all(key, &full, limit).await).await?;
        Ok(got.map(Vec::from))
    }
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(limits::CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_pool_max_idle_per_host(limits::IDLE_CONNECTIONS)
        .with_allow_http(true)
}

/// Retrying is the cores' business: they know leases, budgets and other sources.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}
