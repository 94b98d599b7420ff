//! ListObjectsV2, keys as they are.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{S3, refused};
use crate::error::{OriginError, with_causes};
use crate::limits::LIST_PAGE_BYTES_MAX;
use crate::patience::patiently;

/// One object of a page.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    #[serde(rename = "Key")]
    pub(crate) key: String,
    #[serde(rename = "Size")]
    pub(crate) len: u64,
    #[serde(rename = "ETag")]
    pub(crate) etag: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(rename = "Contents", default)]
    objects: Vec<Object>,
    #[serde(rename = "IsTruncated", default)]
    truncated: bool,
    #[serde(rename = "NextContinuationToken")]
    next: Option<String>,
    #[serde(rename = "EncodingType")]
    encoding: Option<String>,
}

impl S3 {
    /// Objects below `prefix` (literally: with its slash), page by page.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        mut page: impl FnMut(Vec<Object>) -> Result<(), OriginError>,
    ) -> Result<(), OriginError> {
        let mut token: Option<String> = None;
        loop {
            let listed = patiently(async || self.page(prefix, token.as_deref()).await).await?;
            page(listed.objects)?;
            match listed.next {
                Some(next) if listed.truncated => token = Some(next),
                None if listed.truncated => {
                    let detail = "the listing says that there is more, but not where".to_owned();
                    return Err(OriginError::Invalid { detail });
                }
                _ => return Ok(()),
            }
        }
    }

    async fn page(&self, prefix: &str, token: Option<&str>) -> Result<Page, OriginError> {
        let mut query = vec![("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)];
        query.extend(token.map(|token| ("continuation-token", token)));
        let mut response = self.send(Method::GET, "", &query, HeaderMap::new(), Bytes::new()).await?;
        if response.status != 200 {
            return Err(refused(prefix, response).await);
        }
        let read = response.body.read_all(LIST_PAGE_BYTES_MAX).await;
        let text = read.map_err(|e| OriginError::transient(prefix, with_causes(&e)))?;
        parse(&text).map_err(|e| OriginError::transient(prefix, format!("the listing is not readable: {e}")))
    }
}

fn parse(text: &[u8]) -> Result<Page, String> {
    let mut page: Page = quick_xml::de::from_reader(text).map_err(|e| e.to_string())?;
    if page.encoding.as_deref() == Some("url") {
        for object in &mut page.objects {
            let plus = object.key.replace('+', " ");
            let key = percent_decode_str(&plus).decode_utf8().map_err(|e| e.to_string())?;
            object.key = Cow::into_owned(key);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_as_aws_writes_them() {
        let text = br#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>
<NextContinuationToken>t=</NextContinuationToken><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<Contents><Key>p/a+b%2Bc%25/%C3%BC</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>
<ETag>&quot;e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><Size>5</Size></Contents>
<Contents><Key>p/x</Key><Size>0</Size></Contents></ListBucketResult>"#;
        let page = parse(text).unwrap();
        assert_eq!((page.truncated, page.next.as_deref()), (true, Some("t=")));
        assert_eq!((page.objects[0].key.as_str(), page.objects[0].len), ("p/a b+c%/ü", 5));
        assert_eq!(page.objects[0].etag.as_deref(), Some("\"e\""));
        assert!(parse(b"<ListBucketResult/>").unwrap().objects.is_empty());
        assert!(parse(b"<html>").is_err());
    }
}
