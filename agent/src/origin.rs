//! Reading an extent from the origin into slots, piece by piece, while it arrives.
//!
//! One ranged GET covers consecutive pieces of one shard. Each piece is summed in cache as its bytes come in and
//! goes to the driver at once, so peers are served while the rest is still under way.

use std::sync::Arc;
use std::time::Duration;

use millstream_agent_core::event::{Failure, FailureKind, FetchId, Source};
use millstream_origin::{Origin, OriginError, Pin};
use millstream_types::checksum::Crc64Stream;
use millstream_types::{DatasetId, Manifest, PieceNo, PieceRange};

use crate::buffers::Arena;
use crate::driver::{Input, Inputs, failure};
use crate::limits::SUM_CHUNK_BYTES;
use crate::piece::Unverified;

/// One ranged GET.
pub(crate) struct ExtentRead {
    pub fetch: FetchId,
    pub dataset: DatasetId,
    pub manifest: Arc<Manifest>,
    pub pieces: PieceRange,
    pub deadline: Duration,
}

/// Reads all pieces of `read`, sending each to the driver.
///
/// # Errors
/// Why it stopped short; the pieces before stand.
pub(crate) async fn read_extent(
    read: ExtentRead,
    origin: Result<Arc<Origin>, String>,
    arena: &Arc<Arena>,
    inputs: &Inputs,
) -> Result<(), Failure> {
    let origin = origin.map_err(|e| failure(FailureKind::OriginDenied, Source::Origin, None, e))?;
    let until = tokio::time::Instant::now() + read.deadline;
    match tokio::time::timeout_at(until, read_pieces(&read, &origin, arena, inputs)).await {
        Ok(result) => result.map_err(|(piece, error)| origin_failure(&read, piece, &error)),
        Err(_) => {
            let detail = format!("the origin did not deliver within {:?}", read.deadline);
            Err(failure(FailureKind::Timeout, Source::Origin, None, detail))
        }
    }
}

async fn read_pieces(
    read: &ExtentRead,
    origin: &Origin,
    arena: &Arc<Arena>,
    inputs: &Inputs,
) -> Result<(), (PieceNo, OriginError)> {
    let layout = read.manifest.layout();
    let first = layout.place(read.pieces.start);
    let last = layout.place(read.pieces.end - 1);
    let shard = &read.manifest.shards()[first.shard as usize];
    let pin = Pin { etag: shard.etag.clone(), version_id: shard.version_id.clone(), len: shard.len };
    let range = first.offset..last.offset + u64::from(last.len);
    let at = |e| (read.pieces.start, e);
    let mut body = origin.get_range(shard.key.as_str(), range, &pin).await.map_err(at)?;
    for piece in read.pieces.clone() {
        let len = layout.place(piece).len as usize;
        let mut slot = arena.slot(len).await;
        let mut sum = Crc64Stream::default();
        let mut filled = 0;
        while filled < len {
            let end = len.min(filled + SUM_CHUNK_BYTES);
            let n = body.read(&mut slot[filled..end]).await.map_err(|e| (piece, e))?;
            sum.update(&slot[filled..filled + n]);
            filled += n;
        }
        let bytes = Unverified::new(slot, len as u32, sum.value());
        let (fetch, dataset, source) = (read.fetch, read.dataset, Source::Origin);
        if inputs.send(Input::Received { fetch, dataset, piece, source, bytes }).await.is_err() {
            return Ok(()); // the agent stops
        }
    }
    Ok(())
}

fn origin_failure(read: &ExtentRead, piece: PieceNo, error: &OriginError) -> Failure {
    let kind = match error {
        OriginError::Throttled { .. } => FailureKind::Throttled,
        OriginError::Changed { .. } => FailureKind::OriginChanged,
        OriginError::Denied { .. } | OriginError::NotFound { .. } => FailureKind::OriginDenied,
        _ => FailureKind::OriginTransient,
    };
    let key = &read.manifest.shards()[read.manifest.layout().shard_of(piece) as usize].key;
    failure(kind, Source::Origin, Some(piece), format!("{key:?}: {error}"))
}
