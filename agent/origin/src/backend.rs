//! Which of the ways to an origin a URL means.

use std::ops::Range;

use bytes::Bytes;
use url::Url;

use crate::Pin;
use crate::body::BodyReader;
use crate::error::OriginError;
use crate::file::Directory;
use crate::s3::{self, S3};
use crate::store::Store;
use crate::web::Web;

/// A way to an origin. Names (`name`) are for messages; keys are whole, prefix included.
#[derive(Debug)]
pub(crate) enum Backend {
    S3(S3),
    Web(Web),
    File(Directory),
    Store(Store),
}

/// A URL without the password that someone may have put into it.
pub(crate) fn without_secrets(text: &str) -> String {
    match Url::parse(text) {
        Ok(mut url) if url.password().is_some() => {
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => text.to_owned(),
    }
}

impl Backend {
    /// The way, and the prefix below it.
    pub(crate) fn open(text: &str, vars: &[(String, String)]) -> Result<(Backend, String), String> {
        if text.chars().any(char::is_control) {
            return Err("it has a control character".to_owned());
        }
        if text.starts_with("s3://") || text.starts_with("s3a://") {
            let (bucket, prefix) = s3::split(text).ok_or("there is no bucket in it")?;
            let backend = match s3::is_express(bucket) {
                true => Backend::Store(Store::s3_express(bucket, vars)?),
                false => Backend::S3(S3::open(bucket, vars)?),
            };
            return Ok((backend, prefix.to_owned()));
        }
        let url = Url::parse(text).map_err(|e| e.to_string())?;
        match url.scheme() {
            "file" => {
                let path = url.to_file_path().map_err(|()| "it is no absolute path on this machine")?;
                Ok((Backend::File(Directory::new(path)), String::new()))
            }
            "http" | "https" => Web::open(&url).map(|(web, prefix)| (Backend::Web(web), prefix)),
            _ => Store::open(&url, vars).map(|(store, prefix)| (Backend::Store(store), prefix)),
        }
    }

    pub(crate) async fn get_range(
        &self,
        name: &str,
        key: &str,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<BodyReader, OriginError> {
        let len = range.end - range.start;
        match self {
            Backend::S3(s3) => Ok(BodyReader::from_http(name, s3.get_range(name, key, range, pin).await?, len)),
            Backend::Web(web) => Ok(BodyReader::from_http(name, web.get_range(name, key, range, pin).await?, len)),
            Backend::File(dir) => Ok(BodyReader::from_file(name, dir.open(name, key, range, pin).await?, len)),
            Backend::Store(store) => {
                Ok(BodyReader::from_stream(name, store.get_range(name, key, range, pin).await?, len))
            }
        }
    }

    pub(crate) async fn put(&self, name: &str, key: &str, bytes: Bytes) -> Result<(), OriginError> {
        match self {
            Backend::S3(s3) => s3.put(name, key, bytes).await,
            Backend::Web(_) => Err(OriginError::Denied {
                key: name.to_owned(),
                detail: "plain HTTP origins are read-only; write the index where the data is written".to_owned(),
            }),
            Backend::File(dir) => dir.put(name, key, bytes).await,
            Backend::Store(store) => store.put(name, key, bytes).await,
        }
    }

    pub(crate) async fn get_all(&self, name: &str, key: &str, max: u64) -> Result<Option<Bytes>, OriginError> {
        match self {
            Backend::S3(s3) => s3.get_all(name, key, max).await,
            Backend::Web(web) => web.get_all(name, key, max).await,
            Backend::File(dir) => dir.get_all(name, key, max).await,
            Backend::Store(store) => store.get_all(name, key, max).await,
        }
    }
}
