//! What can go wrong at the origin, by what to do about it.

use std::time::Duration;

/// One failed request or read.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Not a URL we can read from.
    #[error("{url:?} is not an origin: {detail}; give s3://bucket/prefix, gs://, az://, http(s):// or file:///path")]
    Url {
        /// What was given.
        url: String,
        /// Why not.
        detail: String,
    },
    /// The origin asks for fewer requests (503 SlowDown, 429).
    #[error("the origin asks to slow down reading {key:?}")]
    Throttled {
        /// The object.
        key: String,
        /// When it says how long.
        retry_after: Option<Duration>,
    },
    /// May pass: 5xx, a broken connection, a short body, no progress.
    #[error("reading {key:?} failed for now: {detail}")]
    Transient {
        /// The object.
        key: String,
        /// In words.
        detail: String,
    },
    /// It is another object than the pinned one.
    #[error(
        "object {key:?} changed since it was registered ({detail}); register a new version with: millstream dataset add"
    )]
    Changed {
        /// The object.
        key: String,
        /// How we know.
        detail: String,
    },
    /// 401, 403, and whatever else it will refuse the next time too.
    #[error(
        "the origin refuses access to {key:?}: {detail}; check the credentials (AWS_*) of the agent and the bucket policy"
    )]
    Denied {
        /// The object.
        key: String,
        /// In words.
        detail: String,
    },
    /// No such object.
    #[error("there is no object {key:?} at the origin: {detail}")]
    NotFound {
        /// The object.
        key: String,
        /// In words.
        detail: String,
    },
    /// Larger than allowed for what it is.
    #[error("object {key:?} has {len} bytes, and {limit} are the most")]
    TooLarge {
        /// The object.
        key: String,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// Keys that cannot become files.
    #[error("{count} object names cannot become files: {}", shown.join("; "))]
    BadKeys {
        /// How many.
        count: usize,
        /// The first ones, with reasons.
        shown: Vec<String>,
    },
    /// Something in the bucket is not what it should be.
    #[error("{detail}")]
    Invalid {
        /// In words, with the next step.
        detail: String,
    },
}

impl OriginError {
    pub(crate) fn transient(key: &str, detail: impl Into<String>) -> OriginError {
        OriginError::Transient { key: key.to_owned(), detail: detail.into() }
    }

    /// From an HTTP status that is no success; `code` is S3's own word for it.
    pub(crate) fn from_status(
        key: &str,
        status: u16,
        code: Option<&str>,
        retry_after: Option<Duration>,
        detail: String,
    ) -> OriginError {
        let key = key.to_owned();
        // Some 400s pass: S3 says so for slow senders and for credentials that have just expired.
        let passing = matches!(code, Some("RequestTimeout" | "ExpiredToken" | "TokenRefreshRequired"));
        match status {
            429 | 503 => OriginError::Throttled { key, retry_after },
            404 | 410 => OriginError::NotFound { key, detail },
            409 | 412 | 416 => OriginError::Changed { key, detail },
            408 => OriginError::Transient { key, detail },
            300..=499 if !passing => OriginError::Denied { key, detail },
            _ => OriginError::Transient { key, detail },
        }
    }

    pub(crate) fn from_store(key: &str, error: object_store::Error) -> OriginError {
        let detail = with_causes(&error);
        let key = key.to_owned();
        match error {
            object_store::Error::NotFound { .. } => OriginError::NotFound { key, detail },
            object_store::Error::Precondition { .. } => OriginError::Changed { key, detail },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                OriginError::Denied { key, detail }
            }
            object_store::Error::InvalidPath { .. } => OriginError::BadKeys { count: 1, shown: vec![detail] },
            // The crate puts the status of other answers into the text only.
            _ if detail.contains("503") || detail.contains("429") => OriginError::Throttled { key, retry_after: None },
            _ => OriginError::Transient { key, detail },
        }
    }
}

/// The message of an error and of those below it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
