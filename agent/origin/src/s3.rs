//! S3 requests of our own beside `object_store`'s: ranged GETs whose status and headers we see, and HEADs that ask
//! for the stored checksum (the header must be signed, so a default header will not do).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_MATCH, RANGE, RETRY_AFTER};
use http::{Method, Request};
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::HttpRequestBody;
use object_store::path::Path;
use url::Url;

use crate::body::BodyReader;
use crate::error::{OriginError, with_causes};
use crate::limits::{CONNECT_TIMEOUT, IDLE_CONNECTIONS, READ_STALL};
use crate::{Pin, client_options, no_retries};

/// Signed requests to one bucket.
#[derive(Debug)]
pub(crate) struct S3Direct {
    client: reqwest::Client,
    store: AmazonS3,
    /// `https://endpoint/bucket` or `https://bucket.endpoint`, without a slash at the end.
    base: String,
    region: String,
    signed: bool,
}

/// The store, our own client and the prefix of an `s3://bucket/prefix` URL.
pub(crate) fn open(url: &Url) -> Result<(Arc<dyn ObjectStore>, S3Direct, Path), String> {
    let bucket = url.host_str().filter(|b| !b.is_empty()).ok_or("there is no bucket in it")?;
    let builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options())
        .with_retry(no_retries());
    let value = |key: AmazonS3ConfigKey| builder.get_config_value(&key);
    let on = |key| value(key).is_some_and(|v: String| matches!(v.to_ascii_lowercase().as_str(), "true" | "1" | "yes"));
    let region = value(AmazonS3ConfigKey::Region)
        .or_else(|| value(AmazonS3ConfigKey::DefaultRegion))
        .unwrap_or_else(|| "us-east-1".into());
    let endpoint = value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    let virtual_hosted = on(AmazonS3ConfigKey::VirtualHostedStyleRequest);
    let base = match endpoint {
        // object_store's rule: with virtual hosting the endpoint names the bucket already.
        Some(endpoint) if virtual_hosted => endpoint.trim_end_matches('/').to_owned(),
        Some(endpoint) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
        None => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    let signed = !on(AmazonS3ConfigKey::SkipSignature);
    let store = builder.build().map_err(|e| with_causes(&e))?;
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .tcp_nodelay(true)
        .http1_only()
        .build()
        .map_err(|e| with_causes(&e))?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| e.to_string())?;
    let direct = S3Direct { client, store: store.clone(), base, region, signed };
    Ok((Arc::new(store), direct, prefix))
}

impl S3Direct {
    async fn send(
        &self,
        method: Method,
        key: &str,
        path: &Path,
        version_id: Option<&str>,
        headers: HeaderMap,
    ) -> Result<reqwest::Response, OriginError> {
        let broken = |detail: String| OriginError::transient(key, detail);
        let mut url = Url::parse(&self.base).map_err(|e| broken(e.to_string()))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.as_ref().split('/'));
        }
        if let Some(version) = version_id {
            url.query_pairs_mut().append_pair("versionId", version);
        }
        let mut request = Request::builder()
            .method(method)
            .uri(strict(&url))
            .body(HttpRequestBody::empty())
            .map_err(|e| broken(e.to_string()))?;
        *request.headers_mut() = headers;
        if self.signed {
            let credential = self.store.credentials().get_credential().await.map_err(|e| OriginError::Denied {
                key: key.to_owned(),
                detail: with_causes(&e),
            })?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .try_authorize(&mut request, None)
                .map_err(|e| broken(with_causes(&e)))?;
        }
        let (parts, _) = request.into_parts();
        let request = self
            .client
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers);
        match tokio::time::timeout(READ_STALL, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(broken(with_causes(&error))),
            Err(_) => Err(broken(format!("no answer for {READ_STALL:?}"))),
        }
    }

    pub(crate) async fn get_range(
        &self,
        key: &str,
        path: &Path,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<BodyReader, OriginError> {
        let mut headers = HeaderMap::new();
        let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        headers.insert(RANGE, HeaderValue::from_str(&text).map_err(|e| OriginError::transient(key, e.to_string()))?);
        if let Some(etag) = &pin.etag {
            let etag = HeaderValue::from_str(etag).map_err(|e| OriginError::transient(key, e.to_string()))?;
            headers.insert(IF_MATCH, etag);
        }
        let response = self.send(Method::GET, key, path, pin.version_id.as_deref(), headers).await?;
        let status = response.status().as_u16();
        if status != 206 {
            return Err(self.refused(key, status, response).await);
        }
        check_range(key, response.headers(), &range, pin)?;
        Ok(BodyReader::from_response(key, response, range.end - range.start))
    }

    /// The headers of a HEAD with checksum mode.
    pub(crate) async fn head_with_checksum(
        &self,
        key: &str,
        path: &Path,
        version_id: Option<&str>,
    ) -> Result<HeaderMap, OriginError> {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        let response = self.send(Method::HEAD, key, path, version_id, headers).await?;
        match response.status().as_u16() {
            200 => Ok(response.headers().clone()),
            status => Err(self.refused(key, status, response).await),
        }
    }

    async fn refused(&self, key: &str, status: u16, response: reqwest::Response) -> OriginError {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        // The body of an error is short XML; a longer one is cut.
        let mut body = match tokio::time::timeout(Duration::from_secs(2), response.text()).await {
            Ok(Ok(body)) => body,
            _ => String::new(),
        };
        body.truncate(body.char_indices().nth(300).map_or(body.len(), |(i, _)| i));
        let code = body.split("<Code>").nth(1).and_then(|s| s.split("</Code>").next());
        let detail = match code {
            Some(code) => format!("status {status} {code}"),
            None => format!("status {status} {}", body.trim()).trim_end().to_owned(),
        };
        OriginError::from_status(key, status, retry_after, detail)
    }
}

/// S3 signs strictly encoded paths (RFC 3986 unreserved characters and `/` only); `Url` leaves some others as they
/// are.
fn strict(url: &Url) -> String {
    let mut out = url[..url::Position::BeforePath].to_owned();
    let mut bytes = url.path().bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                out.push('%');
                out.extend(bytes.by_ref().take(2).map(|h| char::from(h.to_ascii_uppercase())));
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(b)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    if let Some(query) = url.query() {
        out.push('?');
        out.push_str(query);
    }
    out
}

fn check_range(key: &str, headers: &HeaderMap, range: &Range<u64>, pin: &Pin) -> Result<(), OriginError> {
    let changed = |detail: String| OriginError::Changed { key: key.to_owned(), detail };
    let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, pin.len);
    if text != expected {
        return Err(changed(format!("asked for {expected}, got {text:?}")));
    }
    // A server that ignores If-Match still must not mix another object in.
    let etag = headers.get(ETAG).and_then(|v| v.to_str().ok());
    match (&pin.etag, etag) {
        (Some(pinned), Some(now)) if pinned != now => Err(changed(format!("its ETag was {pinned}, now it is {now}"))),
        _ => Ok(()),
    }
}
