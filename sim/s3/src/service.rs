//! The S3 protocol over the [`Store`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use md5::{Digest as _, Md5};
use s3s::dto::*;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use crate::body::{ContentStream, FramePool};
use crate::limits::{LIST_PAGE_MAX, UPLOAD_BYTES_MAX};
use crate::object::{ChecksumHeader, Object, ObjectOptions};
use crate::store::{Listed, Store};

pub(crate) struct Service {
    pub(crate) store: Arc<Store>,
    pub(crate) pool: FramePool,
}

/// What HEAD and GET say about an object.
struct Description {
    etag: ETag,
    checksum: Option<ChecksumHeader>,
}

fn internal(e: impl std::error::Error + Send + Sync + 'static) -> S3Error {
    s3_error!(e, InternalError)
}

impl Service {
    fn find(&self, bucket: &str, key: &str, version: Option<&str>) -> S3Result<Arc<Object>> {
        if !self.store.has_bucket(bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        match version {
            None => self.store.get(bucket, key).ok_or_else(|| s3_error!(NoSuchKey)),
            Some(version) => self.store.get_version(bucket, key, version).ok_or_else(|| s3_error!(NoSuchVersion)),
        }
    }
}

/// ETag and, when asked for, checksum. The first time it may take a while: the object is read.
async fn describe(object: &Arc<Object>, with_checksum: bool) -> S3Result<Description> {
    let object = object.clone();
    let work = move || -> std::io::Result<Description> {
        Ok(Description {
            etag: ETag::Strong(object.etag()?.to_owned()),
            checksum: match with_checksum {
                true => object.checksum()?,
                false => None,
            },
        })
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(internal)?;
    done.map_err(internal)
}

fn check_if_match(condition: Option<&ETagCondition>, etag: &ETag) -> S3Result<()> {
    match condition {
        Some(ETagCondition::ETag(wanted)) if !wanted.strong_cmp(etag) => Err(s3_error!(PreconditionFailed)),
        _ => Ok(()),
    }
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// The four checksum fields of HEAD and GET.
macro_rules! set_checksum {
    ($output:ident, $checksum:expr) => {
        let full = |full: bool| {
            let name = if full { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
            Some(ChecksumType::from_static(name))
        };
        match $checksum {
            Some(ChecksumHeader::Crc64Nvme(value)) => {
                $output.checksum_crc64nvme = Some(value);
                $output.checksum_type = full(true);
            }
            Some(ChecksumHeader::Crc32c { value, full: whole }) => {
                $output.checksum_crc32c = Some(value);
                $output.checksum_type = full(whole);
            }
            Some(ChecksumHeader::Sha256(value)) => {
                $output.checksum_sha256 = Some(value);
                $output.checksum_type = full(true);
            }
            None => {}
        }
    };
}

async fn read_all(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut out = BytesMut::new();
    let Some(mut body) = body else {
        return Ok(Bytes::new());
    };
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| S3Error::with_source(s3s::S3ErrorCode::IncompleteBody, e))?;
        if out.len() + chunk.len() > UPLOAD_BYTES_MAX {
            return Err(s3_error!(EntityTooLarge));
        }
        out.extend_from_slice(&chunk);
    }
    Ok(out.freeze())
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self.find(&input.bucket, &input.key, input.version_id.as_deref())?;
        let wanted = wants_checksum(input.checksum_mode.as_ref());
        let description = describe(&object, wanted).await?;
        check_if_match(input.if_match.as_ref(), &description.etag)?;
        let mut output = HeadObjectOutput {
            content_length: Some(object.len as i64),
            e_tag: Some(description.etag),
            last_modified: Some(object.modified.into()),
            version_id: object.version_id.clone(),
            server_side_encryption: sse(&object),
            accept_ranges: Some("bytes".to_owned()),
            ..Default::default()
        };
        set_checksum!(output, description.checksum);
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.find(&input.bucket, &input.key, input.version_id.as_deref())?;
        let whole = input.range.is_none();
        let wanted = whole && wants_checksum(input.checksum_mode.as_ref());
        let description = describe(&object, wanted).await?;
        check_if_match(input.if_match.as_ref(), &description.etag)?;
        let range = match &input.range {
            Some(range) => range.check(object.len).map_err(|_| s3_error!(InvalidRange))?,
            None => 0..object.len,
        };
        let reader = object.open().map_err(internal)?;
        let content_range = (!whole).then(|| format!("bytes {}-{}/{}", range.start, range.end - 1, object.len));
        let len = range.end - range.start;
        let stream = ContentStream::new(reader, range, self.pool.clone());
        let mut output = GetObjectOutput {
            body: Some(StreamingBlob::new(stream)),
            content_length: Some(len as i64),
            content_range,
            e_tag: Some(description.etag),
            last_modified: Some(object.modified.into()),
            version_id: object.version_id.clone(),
            server_side_encryption: sse(&object),
            accept_ranges: Some("bytes".to_owned()),
            ..Default::default()
        };
        set_checksum!(output, description.checksum);
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let max = input.max_keys.unwrap_or(LIST_PAGE_MAX as i32);
        let max = usize::try_from(max).map_err(|_| s3_error!(InvalidArgument))?;
        let max = max.min(LIST_PAGE_MAX);
        let after = match &input.continuation_token {
            Some(token) => Some(
                hex::decode(token)
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .ok_or_else(|| s3_error!(InvalidArgument))?,
            ),
            None => input.start_after.clone(),
        };
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().unwrap_or_default();
        let (store, bucket) = (self.store.clone(), input.bucket.clone());
        let encode = input.encoding_type.is_some();
        let work = move || -> S3Result<(Vec<s3s::dto::Object>, Vec<CommonPrefix>, Option<String>)> {
            let page = store.list(&bucket, &prefix, &delimiter, after.as_deref(), max);
            let page = page.ok_or_else(|| s3_error!(NoSuchBucket))?;
            let page = page.map_err(internal)?;
            let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
            let name = |text: String| if encode { url_encode(&text) } else { text };
            for entry in page.entries {
                match entry {
                    Listed::Object(key, object) => objects.push(s3s::dto::Object {
                        e_tag: Some(ETag::Strong(object.etag().map_err(internal)?.to_owned())),
                        key: Some(name(key)),
                        size: Some(object.len as i64),
                        last_modified: Some(object.modified.into()),
                        ..Default::default()
                    }),
                    Listed::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(name(prefix)) }),
                }
            }
            Ok((objects, prefixes, page.next))
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(internal)?;
        let (objects, prefixes, next) = done?;
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some((objects.len() + prefixes.len()) as i32),
            max_keys: Some(max as i32),
            contents: Some(objects),
            common_prefixes: Some(prefixes),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next.map(hex::encode),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            delimiter: input.delimiter,
            name: Some(input.bucket),
            prefix: input.prefix,
            start_after: input.start_after,
            ..Default::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        if !self.store.has_bucket(&input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let bytes = read_all(input.body).await?;
        let object = Object::from_bytes(bytes, ObjectOptions::default());
        let put = self.store.put(&input.bucket, &input.key, object);
        put.map_err(internal)?;
        let object = self.find(&input.bucket, &input.key, None)?;
        let description = describe(&object, false).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(description.etag),
            version_id: object.version_id.clone(),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.store.delete(&req.input.bucket, &req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            self.store.delete(&req.input.bucket, &object.key);
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        if !self.store.has_bucket(&input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let id = self.store.begin_upload(&input.bucket, &input.key);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        let bytes = read_all(input.body).await?;
        let etag = hex::encode(Md5::digest(&bytes));
        let (id, number) = (&input.upload_id, input.part_number);
        if !self.store.put_part(id, number, bytes, etag.clone()) {
            return Err(s3_error!(NoSuchUpload));
        }
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let upload = self.store.end_upload(&req.input.upload_id);
        let (bucket, key, parts) = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let mut md5s = Md5::new();
        let mut bytes = BytesMut::with_capacity(parts.iter().map(|(part, _)| part.len()).sum());
        for (part, etag) in &parts {
            md5s.update(hex::decode(etag).map_err(internal)?);
            bytes.extend_from_slice(part);
        }
        let etag = format!("{}-{}", hex::encode(md5s.finalize()), parts.len());
        let object = Object::from_bytes(bytes.freeze(), ObjectOptions::default());
        let object = object.with_etag(etag);
        self.store.put(&bucket, &key, object).map_err(internal)?;
        let object = self.find(&bucket, &key, None)?;
        let description = describe(&object, false).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(description.etag),
            bucket: Some(bucket),
            key: Some(key),
            version_id: object.version_id.clone(),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.store.end_upload(&req.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        match self.store.has_bucket(&req.input.bucket) {
            true => Ok(S3Response::new(HeadBucketOutput::default())),
            false => Err(s3_error!(NoSuchBucket)),
        }
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let names = self.store.bucket_names().into_iter();
        let buckets = names.map(|name| Bucket { name: Some(name), ..Default::default() });
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets.collect()), ..Default::default() }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.store.add_bucket(&req.input.bucket, None).map_err(internal)?;
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        _: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }
}

fn sse(object: &Object) -> Option<ServerSideEncryption> {
    let kms = || ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS);
    object.options.kms.then(kms)
}

/// Keys as `encoding-type=url` wants them.
fn url_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'*' => {
                out.push(b as char);
            }
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
