//! Everything else that `object_store` speaks: Google Cloud Storage, Azure, S3 Express.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use url::Url;

use crate::error::{OriginError, with_causes};
use crate::{Pin, s3};

/// A store behind `object_store`.
#[derive(Debug)]
pub(crate) struct Store(Arc<dyn ObjectStore>);

/// Keys that `object_store` would rewrite are refused.
fn path_of(name: &str, key: &str) -> Result<Path, OriginError> {
    let bad = |detail: String| OriginError::BadKeys { count: 1, shown: vec![format!("{name:?}: {detail}")] };
    let path = Path::parse(key).map_err(|e| bad(e.to_string()))?;
    match path.as_ref() == key {
        true => Ok(path),
        false => Err(bad(format!("the store would read {path} instead"))),
    }
}

impl Store {
    pub(crate) fn open(url: &Url, vars: &[(String, String)]) -> Result<(Store, String), String> {
        let options = vars.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let (store, prefix) = object_store::parse_url_opts(url, options).map_err(|e| with_causes(&e))?;
        Ok((Store(Arc::from(store)), prefix.to_string()))
    }

    pub(crate) fn s3_express(bucket: &str, vars: &[(String, String)]) -> Result<Store, String> {
        let builder = s3::builder(bucket, vars).with_s3_express(true);
        Ok(Store(Arc::new(builder.build().map_err(|e| with_causes(&e))?)))
    }

    pub(crate) fn list(&self, prefix: &str) -> BoxStream<'static, Result<ObjectMeta, OriginError>> {
        let name = prefix.to_owned();
        let wanted = Path::from(prefix.trim_end_matches('/'));
        let wanted = (!wanted.as_ref().is_empty()).then_some(wanted);
        self.0.list(wanted.as_ref()).map_err(move |e| OriginError::from_store(&name, e)).boxed()
    }

    pub(crate) async fn get_range(
        &self,
        name: &str,
        key: &str,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, OriginError> {
        let options = GetOptions {
            if_match: pin.etag.clone(),
            version: pin.version_id.clone(),
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let got = self.0.get_opts(&path_of(name, key)?, options).await;
        let got = got.map_err(|e| OriginError::from_store(name, e))?;
        let changed = |detail: String| Err(OriginError::Changed { key: name.to_owned(), detail });
        if got.meta.size != pin.len {
            return changed(format!("it has {} bytes now, {} were pinned", got.meta.size, pin.len));
        }
        if let (Some(pinned), Some(now)) = (&pin.etag, &got.meta.e_tag)
            && pinned != now
        {
            return changed(format!("its ETag was {pinned}, now it is {now}"));
        }
        if got.range != range {
            let detail = format!("asked for bytes {range:?}, got {:?}", got.range);
            return Err(OriginError::transient(name, detail));
        }
        Ok(got.into_stream())
    }

    /// Length and ETag of an object.
    pub(crate) async fn head(
        &self,
        name: &str,
        key: &str,
        version: Option<String>,
    ) -> Result<(u64, Option<String>), OriginError> {
        let options = GetOptions { head: true, version, ..GetOptions::default() };
        let got = self.0.get_opts(&path_of(name, key)?, options).await;
        let meta = got.map_err(|e| OriginError::from_store(name, e))?.meta;
        Ok((meta.size, meta.e_tag))
    }

    pub(crate) async fn put(&self, name: &str, key: &str, bytes: Bytes) -> Result<(), OriginError> {
        let put = self.0.put(&path_of(name, key)?, bytes.into()).await;
        put.map(|_| ()).map_err(|e| OriginError::from_store(name, e))
    }

    pub(crate) async fn get_all(&self, name: &str, key: &str, max: u64) -> Result<Option<Bytes>, OriginError> {
        let got = match self.0.get(&path_of(name, key)?).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(OriginError::from_store(name, e)),
        };
        if got.meta.size > max {
            return Err(OriginError::TooLarge { key: name.to_owned(), len: got.meta.size, limit: max });
        }
        got.bytes().await.map(Some).map_err(|e| OriginError::from_store(name, e))
    }
}
