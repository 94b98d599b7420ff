//! Is what was registered still there? Asked before a node drops what may be the last other copy.

use futures::StreamExt as _;
use millstream_types::ShardKey;

use crate::backend::Backend;
use crate::error::OriginError;
use crate::limits::HEADS_AT_ONCE;
use crate::patience::patiently;
use crate::{Origin, Pin};

impl Origin {
    /// Whether each object is still the pinned one, so that reads of it would be answered; in the same order.
    /// [`OriginError::Changed`] and [`OriginError::NotFound`] say that it is not; other errors that nobody knows.
    pub async fn still_holds(&self, objects: &[(ShardKey, Pin)]) -> Vec<Result<(), OriginError>> {
        let heads = futures::stream::iter(objects).map(|(key, pin)| async move {
            let full = self.full(key.as_str());
            patiently(async || self.compare(key.as_str(), &full, pin).await).await
        });
        heads.buffered(HEADS_AT_ONCE).collect().await
    }

    async fn compare(&self, name: &str, full: &str, pin: &Pin) -> Result<(), OriginError> {
        let (len, etag) = match &*self.backend {
            Backend::S3(s3) => {
                let headers = s3.head(name, full, pin.version_id.as_deref()).await?;
                let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
                (text("content-length").and_then(|v| v.parse().ok()), text("etag").map(str::to_owned))
            }
            Backend::Web(web) => {
                let (len, etag) = web.head(name, full).await?;
                (Some(len), etag)
            }
            Backend::File(directory) => {
                let (len, etag) = directory.head(name, full).await?;
                (Some(len), Some(etag))
            }
            Backend::Store(store) => {
                let (len, etag) = store.head(name, full, pin.version_id.clone()).await?;
                (Some(len), etag)
            }
        };
        let changed = |detail: String| Err(OriginError::Changed { key: name.to_owned(), detail });
        match (len, &pin.etag, etag) {
            (Some(len), _, _) if len != pin.len => changed(format!("it has {len} bytes now, {} were pinned", pin.len)),
            (_, Some(pinned), Some(now)) if *pinned != now => {
                changed(format!("its ETag was {pinned}, now it is {now}"))
            }
            _ => Ok(()),
        }
    }
}
