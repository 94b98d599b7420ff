//! Plain HTTP(S) servers: no listing, so the index beside the data says what there is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, IF_MATCH, RANGE};
use millstream_types::{Manifest, OriginChecksum};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use tokio::sync::OnceCell;
use url::Url;

use crate::Pin;
use crate::error::{OriginError, with_causes};
use crate::http1::{Body, Client, Endpoint, Request, Response};
use crate::index::{INDEX_KEY, with_etags};
use crate::limits::INDEX_BYTES_MAX;
use crate::patience::patiently;
use crate::s3::{PATH, ranged_body, refused, whole_body};

/// A web server.
#[derive(Debug)]
pub(crate) struct Web {
    client: Arc<Client>,
    /// What the index says, once it was read.
    index: OnceCell<BTreeMap<String, Indexed>>,
    /// ETags as this server sends them: the index was written where the data was, with the ETags from there.
    etags: Mutex<BTreeMap<String, String>>,
}

/// One object in the index.
#[derive(Clone, Debug)]
pub(crate) struct Indexed {
    pub(crate) len: u64,
    pub(crate) checksum: Option<OriginChecksum>,
}

/// A strong ETag, fit for `If-Match`.
pub(crate) fn strong(etag: &str) -> bool {
    etag.starts_with('"')
}

impl Web {
    pub(crate) fn open(url: &Url) -> Result<(Web, String), String> {
        if url.query().is_some() || !url.username().is_empty() {
            return Err("it has a query or a user name, which ranged reads cannot use".to_owned());
        }
        let prefix = percent_decode_str(url.path()).decode_utf8().map_err(|e| e.to_string())?;
        let client = Arc::new(Client::new(Endpoint::of(url)?));
        Ok((Web { client, index: OnceCell::new(), etags: Mutex::default() }, prefix.into_owned()))
    }

    async fn send(
        &self,
        method: Method,
        name: &str,
        key: &str,
        mut headers: HeaderMap,
    ) -> Result<Response, OriginError> {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let target = format!("/{}", utf8_percent_encode(key, PATH));
        let request = Request { method, target, headers, body: Bytes::new() };
        self.client.send(&request).await.map_err(|e| OriginError::transient(name, with_causes(&e)))
    }

    pub(crate) async fn get_range(
        &self,
        name: &str,
        key: &str,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<Body, OriginError> {
        let mut headers = HeaderMap::new();
        let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let text = HeaderValue::from_str(&text).map_err(|e| OriginError::transient(name, e.to_string()))?;
        headers.insert(RANGE, text);
        if let Some(etag) = pin.etag.as_deref().filter(|etag| strong(etag))
            && let Ok(etag) = HeaderValue::from_str(etag)
        {
            headers.insert(IF_MATCH, etag);
        }
        let response = self.send(Method::GET, name, key, headers).await?;
        ranged_body(name, response, &range, pin).await
    }

    pub(crate) async fn get_all(&self, name: &str, key: &str, max: u64) -> Result<Option<Bytes>, OriginError> {
        whole_body(name, self.send(Method::GET, name, key, HeaderMap::new()).await?, max).await
    }

    /// Length and ETag of an object.
    pub(crate) async fn head(&self, name: &str, key: &str) -> Result<(u64, Option<String>), OriginError> {
        let response = self.send(Method::HEAD, name, key, HeaderMap::new()).await?;
        if response.status != 200 {
            return Err(refused(name, response).await);
        }
        let len = response.text(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let len = len
            .ok_or_else(|| OriginError::Invalid { detail: format!("the origin does not say how long {name:?} is") })?;
        let etag = response.text(ETAG).map(str::to_owned);
        if let Some(etag) = &etag {
            let mut etags = self.etags.lock().unwrap_or_else(PoisonError::into_inner);
            etags.insert(name.to_owned(), etag.clone());
        }
        Ok((len, etag))
    }

    /// The index with the ETags that this server sends, as far as it was asked.
    pub(crate) fn index_as_seen(&self, bytes: &[u8]) -> Result<Vec<u8>, OriginError> {
        let etags = self.etags.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = with_etags(bytes, |key| etags.get(key).cloned());
        seen.map_err(|e| OriginError::Invalid { detail: format!("{INDEX_KEY} is damaged: {e}") })
    }

    /// Objects by name (relative to the prefix), as the index has them.
    pub(crate) async fn index(&self, prefix: &str) -> Result<&BTreeMap<String, Indexed>, OriginError> {
        self.index.get_or_try_init(|| self.read_index(prefix)).await
    }

    async fn read_index(&self, prefix: &str) -> Result<BTreeMap<String, Indexed>, OriginError> {
        let key = format!("{prefix}{INDEX_KEY}");
        let got = patiently(async || self.get_all(INDEX_KEY, &key, INDEX_BYTES_MAX).await).await?;
        let Some(bytes) = got else {
            let detail = format!(
                "plain HTTP has no listing, and there is no {INDEX_KEY} beside the data; write one with `millstream dataset index` where the data is written"
            );
            return Err(OriginError::NotFound { key: INDEX_KEY.to_owned(), detail });
        };
        let manifest: Manifest = millstream_proto::manifest::decode(&bytes)
            .map_err(|e| OriginError::Invalid { detail: format!("{INDEX_KEY} is damaged: {e}") })?;
        let shards = manifest.shards().iter();
        Ok(shards.map(|s| (s.key.to_string(), Indexed { len: s.len, checksum: s.checksum.clone() })).collect())
    }
}
