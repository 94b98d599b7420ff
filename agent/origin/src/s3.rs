//! S3 requests of our own, signed with `object_store`'s signer and credential providers.
//!
//! `object_store` neither asks for nor shows stored checksums, normalises keys on the way, and hands bodies out in
//! buffers of its own. Here keys are taken literally, headers are seen, and bodies are read in place.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_MATCH, RANGE, RETRY_AFTER};
use http::{HeaderName, Method};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::HttpRequestBody;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::error::{OriginError, with_causes};
use crate::http1::{Body, Client, Endpoint, Request, Response};
use crate::limits::{CREDENTIALS_TIMEOUT, ERROR_BODY_BYTES_MAX};
use crate::{Pin, client_options, no_retries};

mod list;
mod profile;

/// What SigV4 leaves as it is in a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// And in a path.
pub(crate) const PATH: &AsciiSet = &QUERY.remove(b'/');

static CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// Signed requests to one bucket.
#[derive(Debug)]
pub(crate) struct S3 {
    client: Arc<Client>,
    credentials: AwsCredentialProvider,
    /// `/bucket`, or nothing where the host names it.
    base: String,
    region: String,
    signed: bool,
    requester_pays: bool,
}

/// `s3://bucket/prefix` taken literally, as the AWS command line does: no percent-decoding.
pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("s3://").or_else(|| text.strip_prefix("s3a://"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then_some((bucket, prefix))
}

/// Buckets of S3 Express take session tokens that only `object_store` handles.
pub(crate) fn is_express(bucket: &str) -> bool {
    bucket.ends_with("--x-s3") || bucket.ends_with("--xa-s3")
}

/// The builder for a bucket, from `AWS_*` variables and, below them, the shared configuration files.
pub(crate) fn builder(bucket: &str, vars: &[(String, String)]) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    let profile = profile::read(vars);
    for (name, value) in profile.iter().chain(vars) {
        let name = name.to_ascii_lowercase();
        if name.starts_with("aws_")
            && let Ok(key) = name.parse()
        {
            builder = builder.with_config(key, value);
        }
    }
    builder.with_bucket_name(bucket).with_client_options(client_options()).with_retry(no_retries())
}

impl S3 {
    pub(crate) fn open(bucket: &str, vars: &[(String, String)]) -> Result<S3, String> {
        let builder = builder(bucket, vars);
        let value = |key: AmazonS3ConfigKey| builder.get_config_value(&key);
        let on = |key| {
            value(key).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "requester"))
        };
        let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
        // object_store's rule: with virtual hosting the endpoint names the bucket already.
        let path_style = !on(AmazonS3ConfigKey::VirtualHostedStyleRequest);
        let dotted = bucket.contains('.');
        let (url, in_path) = match endpoint {
            Some(endpoint) => (endpoint, path_style),
            // Certificates do not cover names with dots.
            None if dotted => (format!("https://s3.{region}.amazonaws.com"), true),
            None => (format!("https://{bucket}.s3.{region}.amazonaws.com"), false),
        };
        let url = Url::parse(&url).map_err(|e| format!("the endpoint {url:?}: {e}"))?;
        let mut base = url.path().trim_end_matches('/').to_owned();
        if in_path {
            base = format!("{base}/{}", utf8_percent_encode(bucket, PATH));
        }
        let signed = !on(AmazonS3ConfigKey::SkipSignature);
        let requester_pays = on(AmazonS3ConfigKey::RequestPayer);
        let client = Arc::new(Client::new(Endpoint::of(&url)?));
        let store = builder.build().map_err(|e| with_causes(&e))?;
        Ok(S3 { client, credentials: store.credentials().clone(), base, region, signed, requester_pays })
    }

    async fn send(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, OriginError> {
        let mut target = format!("{}/{}", self.base, utf8_percent_encode(key, PATH));
        for (i, (name, value)) in query.iter().enumerate() {
            target.push(if i == 0 { '?' } else { '&' });
            target.push_str(&format!("{name}={}", utf8_percent_encode(value, QUERY)));
        }
        let mut request = Request { method, target, headers, body };
        if self.signed {
            self.sign(key, &mut request).await?;
        }
        self.client.send(&request).await.map_err(|e| OriginError::transient(key, with_causes(&e)))
    }

    async fn sign(&self, key: &str, request: &mut Request) -> Result<(), OriginError> {
        let credential = tokio::time::timeout(CREDENTIALS_TIMEOUT, self.credentials.get_credential()).await;
        let why = match credential {
            Ok(Ok(credential)) => {
                let uri = format!("{}{}", self.client.endpoint().origin(), request.target);
                let body = match request.body.is_empty() {
                    true => HttpRequestBody::empty(),
                    false => HttpRequestBody::from(request.body.clone()),
                };
                let unsigned = http::Request::builder().method(request.method.clone()).uri(uri).body(body);
                let mut unsigned = unsigned.map_err(|e| OriginError::transient(key, e.to_string()))?;
                *unsigned.headers_mut() = std::mem::take(&mut request.headers);
                let signer =
                    AwsAuthorizer::new(&credential, "s3", &self.region).with_request_payer(self.requester_pays);
                match signer.try_authorize(&mut unsigned, None) {
                    Ok(()) => {
                        request.headers = std::mem::take(unsigned.headers_mut());
                        return Ok(());
                    }
                    Err(e) => with_causes(&e),
                }
            }
            Ok(Err(e)) => with_causes(&e),
            Err(_) => format!("no credentials within {CREDENTIALS_TIMEOUT:?}"),
        };
        let detail = format!(
            "no credentials ({why}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a public bucket"
        );
        Err(OriginError::Denied { key: key.to_owned(), detail })
    }

    /// A GET of a range of the pinned object; the body has exactly its bytes.
    pub(crate) async fn get_range(
        &self,
        name: &str,
        key: &str,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<Body, OriginError> {
        let mut headers = HeaderMap::new();
        insert(&mut headers, RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)), name)?;
        if let Some(etag) = &pin.etag {
            insert(&mut headers, IF_MATCH, etag, name)?;
        }
        let version = pin.version_id.as_deref().map(|v| ("versionId", v));
        let response = self.send(Method::GET, key, version.as_slice(), headers, Bytes::new()).await?;
        ranged_body(name, response, &range, pin).await
    }

    /// The headers of a HEAD with checksum mode.
    pub(crate) async fn head(&self, name: &str, key: &str, version: Option<&str>) -> Result<HeaderMap, OriginError> {
        let mut headers = HeaderMap::new();
        headers.insert(CHECKSUM_MODE.clone(), HeaderValue::from_static("ENABLED"));
        let version = version.map(|v| ("versionId", v));
        let response = self.send(Method::HEAD, key, version.as_slice(), headers, Bytes::new()).await?;
        match response.status {
            200 => Ok(response.headers),
            _ => Err(refused(name, response).await),
        }
    }

    /// A whole object of at most `max` bytes.
    pub(crate) async fn get_all(&self, name: &str, key: &str, max: u64) -> Result<Option<Bytes>, OriginError> {
        let response = self.send(Method::GET, key, &[], HeaderMap::new(), Bytes::new()).await?;
        whole_body(name, response, max).await
    }

    pub(crate) async fn put(&self, name: &str, key: &str, body: Bytes) -> Result<(), OriginError> {
        let response = self.send(Method::PUT, key, &[], HeaderMap::new(), body).await?;
        match response.status {
            200 | 201 => Ok(()),
            _ => Err(refused(name, response).await),
        }
    }
}

fn insert(headers: &mut HeaderMap, header: HeaderName, value: &str, name: &str) -> Result<(), OriginError> {
    let value = HeaderValue::from_str(value);
    let value =
        value.map_err(|_| OriginError::Changed { key: name.to_owned(), detail: "its ETag is no ETag".into() })?;
    headers.insert(header, value);
    Ok(())
}

/// The body of an answer to a ranged GET, if it has exactly the bytes of the pinned object that were asked for.
pub(crate) async fn ranged_body(
    name: &str,
    response: Response,
    range: &Range<u64>,
    pin: &Pin,
) -> Result<Body, OriginError> {
    let whole = response.status == 200 && *range == (0..pin.len);
    if response.status != 206 && !whole {
        if response.status == 200 {
            return Err(OriginError::Invalid {
                detail: format!("the origin of {name:?} ignores ranges; serve the data from one that supports them"),
            });
        }
        return Err(refused(name, response).await);
    }
    let changed = |detail: String| OriginError::Changed { key: name.to_owned(), detail };
    let total = match response.text(CONTENT_RANGE) {
        Some(text) => text.rsplit_once('/').and_then(|(_, total)| total.parse::<u64>().ok()),
        None => response.body.announced().filter(|_| whole),
    };
    if total.is_some_and(|total| total != pin.len) {
        return Err(changed(format!("it has {} bytes now, {} were pinned", total.unwrap_or(0), pin.len)));
    }
    // A server that ignores If-Match still must not mix another object in.
    if let (Some(pinned), Some(now)) = (&pin.etag, response.text(ETAG))
        && pinned != now
    {
        return Err(changed(format!("its ETag was {pinned}, now it is {now}")));
    }
    let expected = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), pin.len);
    let len = range.end - range.start;
    let short = response.body.announced().is_some_and(|announced| announced != len);
    if short || (!whole && response.text(CONTENT_RANGE) != Some(&expected)) {
        let got = response.text(CONTENT_RANGE).unwrap_or("nothing");
        let detail = format!("asked for {expected}, got {got} with {:?} bytes", response.body.announced());
        return Err(OriginError::transient(name, detail));
    }
    Ok(response.body)
}

/// The body of an answer to a GET of a small object.
pub(crate) async fn whole_body(name: &str, mut response: Response, max: u64) -> Result<Option<Bytes>, OriginError> {
    match response.status {
        200 => {}
        404 => return Ok(None),
        _ => return Err(refused(name, response).await),
    }
    if let Some(len) = response.body.announced().filter(|&len| len > max) {
        return Err(OriginError::TooLarge { key: name.to_owned(), len, limit: max });
    }
    let read = response.body.read_all(max).await;
    read.map(Some).map_err(|e| OriginError::transient(name, with_causes(&e)))
}

/// An error from an answer that is no success.
pub(crate) async fn refused(name: &str, mut response: Response) -> OriginError {
    let seconds = response.text(RETRY_AFTER).and_then(|v| v.parse().ok());
    let retry_after = seconds.map(Duration::from_secs);
    let region = response.text("x-amz-bucket-region").map(str::to_owned);
    let location = response.text(http::header::LOCATION).map(str::to_owned);
    let body = response.body.read_all(ERROR_BODY_BYTES_MAX).await.unwrap_or_default();
    let body = String::from_utf8_lossy(&body);
    let element = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0)
    };
    let (status, code) = (response.status, element("Code"));
    let mut detail = format!("status {status}");
    for part in [code, element("Message")].into_iter().flatten() {
        detail.push(' ');
        detail.extend(part.chars().filter(|c| !c.is_control()).take(200));
    }
    match (status, region, location) {
        (301 | 307 | 400, Some(region), _) => detail.push_str(&format!("; the bucket is in {region}: set AWS_REGION")),
        (300..=399, None, Some(location)) => detail.push_str(&format!("; it is at {location:.200}")),
        _ => {}
    }
    OriginError::from_status(name, status, code, retry_after, detail)
}
