//! The origin's own checksums: only those that cover the whole object count.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{StreamExt as _, TryStreamExt as _};
use http::HeaderMap;
use millstream_types::OriginChecksum;

use crate::error::OriginError;
use crate::limits::HEADS_AT_ONCE;
use crate::list::ListedObject;
use crate::Origin;

/// How many checksums were asked for so far.
pub type ChecksumProgress = u64;

impl Origin {
    /// The origin's checksum of each object, in the same order; `None` where it has none that we can check.
    ///
    /// # Errors
    /// What the origin answered; [`OriginError::Changed`] when an object changed since it was listed.
    pub async fn checksums(
        &self,
        objects: &[ListedObject],
        mut progress: impl FnMut(ChecksumProgress),
    ) -> Result<Vec<Option<OriginChecksum>>, OriginError> {
        let Some(s3) = &self.s3 else { return Ok(vec![None; objects.len()]) };
        let mut done = 0;
        futures::stream::iter(objects)
            .map(|object| {
                let s3 = Arc::clone(s3);
                async move {
                    if object.len == 0 {
                        return Ok(None);
                    }
                    let path = self.path(object.key.as_str())?;
                    let version = object.version_id.as_deref();
                    let headers = s3.head_with_checksum(object.key.as_str(), &path, version).await?;
                    of_headers(object, &headers)
                }
            })
            .buffered(HEADS_AT_ONCE)
            .inspect(|_| {
                done += 1;
                progress(done);
            })
            .try_collect()
            .await
    }
}

fn of_headers(object: &ListedObject, headers: &HeaderMap) -> Result<Option<OriginChecksum>, OriginError> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let etag = text("etag");
    if let (Some(listed), Some(now)) = (object.etag.as_deref(), etag)
        && listed != now
    {
        let detail = format!("its ETag was {listed} when it was listed, now it is {now}");
        return Err(OriginError::Changed { key: object.key.to_string(), detail });
    }
    if let Some(len) = text("content-length").and_then(|v| v.parse::<u64>().ok())
        && len != object.len
    {
        let detail = format!("it had {} bytes when it was listed, now it has {len}", object.len);
        return Err(OriginError::Changed { key: object.key.to_string(), detail });
    }
    // COMPOSITE checksums are sums of part checksums; they say nothing that can be checked without the part sizes.
    let full = text("x-amz-checksum-type").is_none_or(|t| t.eq_ignore_ascii_case("FULL_OBJECT"));
    let stored = |name: &str, algorithm: &str| {
        let value = text(name).filter(|v| full && !v.contains('-'))?;
        OriginChecksum::from_parts(algorithm, &BASE64.decode(value).ok()?)
    };
    Ok(stored("x-amz-checksum-crc64nvme", "crc64nvme")
        .or_else(|| stored("x-amz-checksum-crc32c", "crc32c"))
        .or_else(|| stored("x-amz-checksum-sha256", "sha256"))
        .or_else(|| single_part_md5(headers, etag?)))
}

/// The ETag is the MD5 of the object only for one part and without KMS or customer keys.
fn single_part_md5(headers: &HeaderMap, etag: &str) -> Option<OriginChecksum> {
    let encrypted = headers.get("x-amz-server-side-encryption").is_some_and(|v| v.as_bytes().starts_with(b"aws:kms"))
        || headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
    let hex = etag.trim_matches('"');
    if encrypted || hex.len() != 32 {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..16).map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()).collect();
    OriginChecksum::from_parts("md5", &bytes?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ListedObject {
        ListedObject { key: "k".parse().unwrap(), len: 3, etag: Some("\"e\"".into()), version_id: None }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn the_stored_checksum_comes_first_and_composites_do_not_count() {
        let crc = headers(&[("x-amz-checksum-crc64nvme", "AAAAAAAAAAU="), ("etag", "\"e\"")]);
        let found = of_headers(&object(), &crc).unwrap();
        assert_eq!(found.unwrap().to_string(), "crc64nvme:0000000000000005");
        let composite = headers(&[("x-amz-checksum-crc32c", "AAAAAA=="), ("x-amz-checksum-type", "COMPOSITE")]);
        assert_eq!(of_headers(&object(), &composite).unwrap(), None);
    }

    #[test]
    fn an_etag_is_an_md5_only_for_one_part_without_kms() {
        let md5 = "\"900150983cd24fb0d6963f7d28e17f72\"";
        let mut plain = object();
        plain.etag = Some(md5.into());
        let kind = |h: &[(&'static str, &str)]| of_headers(&plain, &headers(h)).unwrap().map(|c| c.algorithm());
        assert_eq!(kind(&[("etag", md5)]), Some("md5"));
        assert_eq!(kind(&[("etag", md5), ("x-amz-server-side-encryption", "aws:kms")]), None);
        assert_eq!(single_part_md5(&HeaderMap::new(), "\"900150983cd24fb0d6963f7d28e17f72-2\""), None);
    }

    #[test]
    fn an_object_that_changed_between_listing_and_head_is_a_conflict() {
        let error = of_headers(&object(), &headers(&[("etag", "\"other\"")])).unwrap_err();
        assert!(matches!(error, OriginError::Changed { .. }));
    }
}
