//! The origin's own checksums: only those that cover the whole object count.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use futures::{StreamExt as _, TryStreamExt as _};
use http::HeaderMap;
use md5::{Digest as _, Md5};
use millstream_types::OriginChecksum;
use millstream_types::checksum::Crc64Stream;
use sha2::Sha256;

use crate::Origin;
use crate::backend::Backend;
use crate::error::OriginError;
use crate::limits::HEADS_AT_ONCE;
use crate::list::ListedObject;
use crate::patience::patiently;
use crate::s3::S3;

/// How many checksums were asked for so far.
pub type ChecksumProgress = u64;

/// What a HEAD says about an object beyond the listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The origin's checksum, where it has one that we can check.
    pub checksum: Option<OriginChecksum>,
    /// The version that was listed, where the bucket keeps versions: reads can be pinned to it.
    pub version_id: Option<String>,
}

impl Origin {
    /// The origin's checksum of each object, in the same order; `None` where it has none that we can check.
    ///
    /// # Errors
    /// What the origin answered; [`OriginError::Changed`] when an object changed since it was listed.
    pub async fn checksums(
        &self,
        objects: &[ListedObject],
        progress: impl FnMut(ChecksumProgress),
    ) -> Result<Vec<Option<OriginChecksum>>, OriginError> {
        let facts = self.facts(objects, progress).await?;
        Ok(facts.into_iter().map(|facts| facts.checksum).collect())
    }

    /// Like [`checksums`](Self::checksums), with the version of each object.
    ///
    /// # Errors
    /// As [`checksums`](Self::checksums).
    pub async fn facts(
        &self,
        objects: &[ListedObject],
        mut progress: impl FnMut(ChecksumProgress),
    ) -> Result<Vec<Facts>, OriginError> {
        match &*self.backend {
            Backend::S3(s3) => self.heads(s3, objects, progress).await,
            Backend::Web(web) => {
                let index = web.index(&self.prefix).await?;
                progress(objects.len() as u64);
                let of = |object: &ListedObject| index.get(object.key.as_str())?.checksum.clone();
                Ok(objects.iter().map(|object| Facts { checksum: of(object), version_id: None }).collect())
            }
            Backend::File(_) | Backend::Store(_) => {
                let listed = objects.iter().map(|o| Facts { checksum: None, version_id: o.version_id.clone() });
                Ok(listed.collect())
            }
        }
    }

    async fn heads(
        &self,
        s3: &S3,
        objects: &[ListedObject],
        mut progress: impl FnMut(ChecksumProgress),
    ) -> Result<Vec<Facts>, OriginError> {
        let mut all = Vec::with_capacity(objects.len());
        let mut heads = futures::stream::iter(objects)
            .map(|object| async move {
                let (key, full) = (object.key.as_str(), self.full(object.key.as_str()));
                let version = object.version_id.as_deref();
                let headers = patiently(async || s3.head(key, &full, version).await).await?;
                let version = headers.get("x-amz-version-id").and_then(|v| v.to_str().ok());
                let version_id = version.filter(|&v| v != "null").map(str::to_owned);
                Ok::<_, OriginError>(Facts { checksum: of_headers(object, &headers)?, version_id })
            })
            .buffered(HEADS_AT_ONCE);
        while let Some(facts) = heads.try_next().await? {
            all.push(facts);
            progress(all.len() as u64);
        }
        Ok(all)
    }
}

/// Sums up a whole object in the way its origin did.
#[derive(Clone)]
pub struct Hasher(Kind);

#[derive(Clone)]
enum Kind {
    Crc64Nvme(Crc64Stream),
    Crc32c(crc_fast::Digest),
    Sha256(Sha256),
    Md5(Md5),
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hasher({})", self.value().algorithm())
    }
}

impl Hasher {
    /// Of the same kind as `checksum`.
    pub fn like(checksum: &OriginChecksum) -> Hasher {
        Hasher(match checksum {
            OriginChecksum::Crc64Nvme(_) => Kind::Crc64Nvme(Crc64Stream::default()),
            OriginChecksum::Crc32c(_) => Kind::Crc32c(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            OriginChecksum::Sha256(_) => Kind::Sha256(Sha256::new()),
            OriginChecksum::Md5(_) => Kind::Md5(Md5::new()),
        })
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Kind::Crc64Nvme(sum) => sum.update(bytes),
            Kind::Crc32c(sum) => sum.update(bytes),
            Kind::Sha256(sum) => sum.update(bytes),
            Kind::Md5(sum) => sum.update(bytes),
        }
    }

    /// The checksum of all bytes so far.
    pub fn value(&self) -> OriginChecksum {
        match &self.0 {
            Kind::Crc64Nvme(sum) => OriginChecksum::Crc64Nvme(sum.value()),
            Kind::Crc32c(sum) => OriginChecksum::Crc32c(sum.finalize() as u32),
            Kind::Sha256(sum) => OriginChecksum::Sha256(sum.clone().finalize().into()),
            Kind::Md5(sum) => OriginChecksum::Md5(sum.clone().finalize().into()),
        }
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
    OriginChecksum::from_parts("md5", &hex::decode(hex).ok()?)
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
