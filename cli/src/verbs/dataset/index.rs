//! `dataset index`: reads the data once, here, and writes its manifest beside it. No coordinator is needed.

use millstream_origin::index::{self, INDEX_KEY};
use millstream_origin::{Origin, OriginError};
use millstream_proto::manifest;
use serde_json::json;

use crate::args::IndexArgs;
use crate::failure::{Code, Failure, Result};
use crate::output::{self, Progress, of};

/// Builds and writes the index.
pub async fn run(args: IndexArgs) -> Result<()> {
    let failed = |e| failure(&args.url, &e);
    let origin = Origin::from_url(&args.url).map_err(failed)?;
    let progress = std::sync::Mutex::new(Progress::new(args.json));
    let built = index::build(&origin, |step| {
        // A poisoned lock only means that a line of progress was cut short.
        let mut progress = progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        progress.show(step.bytes_read, step.bytes_total, &format!("{} read", of(step.bytes_read, step.bytes_total)));
    })
    .await;
    progress.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).finish();
    let built = built.map_err(failed)?;
    let bytes = manifest::encode(&built, None).map_err(|e| Failure::other(&args.url, e))?;
    origin.put(INDEX_KEY, bytes).await.map_err(failed)?;
    let written = format!("{}/{INDEX_KEY}", args.url.trim_end_matches('/'));
    let layout = built.layout();
    if args.json {
        return output::json(&json!({
            "index": written, "shards": layout.shards(), "bytes": layout.bytes(), "pieces": layout.pieces(),
            "piece_bytes": layout.piece_len(), "origin_verified": built.origin_verified(),
        }));
    }
    output::note(&format!("{} shards, {} pieces summed", layout.shards(), layout.pieces()));
    output::line(&written)
}

fn failure(url: &str, error: &OriginError) -> Failure {
    let code = match error {
        OriginError::Url { .. } | OriginError::BadKeys { .. } => Code::Usage,
        OriginError::NotFound { .. } => Code::Unknown,
        OriginError::Denied { .. } => Code::Denied,
        OriginError::Changed { .. } => Code::Conflict,
        OriginError::Invalid { .. } => Code::Integrity,
        _ => Code::Other,
    };
    let next = match code {
        Code::Denied => {
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and the permissions to read and write"
        }
        Code::Conflict => "nobody may write to the prefix while it is indexed; then run this again",
        Code::Usage | Code::Unknown => "correct the URL or the keys that it names",
        _ => "`millstream doctor URL` shows whether the origin can be reached",
    };
    Failure::new(code, url, error).next(next)
}
