//! Re-checking what is on the disk: one shard for `verify`, all of them in turn for the background scrub.

use std::sync::Arc;
use std::time::Duration;

use millstream_proto::v1;
use millstream_types::{Manifest, ShardNo};
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::driver::{Input, Inputs};
use crate::local::LocalState;
use crate::storage::{BadShard, Store};

/// Re-reads one sealed shard and compares every piece. `false`: it is not here any more; what is dropped is not bad.
///
/// # Errors
/// What is wrong, naming key, piece, expected and actual.
pub async fn check_shard(store: &Store, manifest: &Manifest, shard: ShardNo) -> Result<bool, v1::Failure> {
    let bad = match store.verify_shard(&manifest.digest(), shard).await {
        Ok(()) => return Ok(true),
        Err(BadShard::NotSealed { .. }) => return Ok(false),
        Err(bad) => bad,
    };
    let detail = bad.to_string();
    let (piece, expected, actual) = bad.piece_parts();
    Err(v1::Failure {
        kind: "checksum".into(),
        source: None,
        piece: piece.unwrap_or_default(),
        has_piece: piece.is_some(),
        expected,
        actual,
        detail,
        key: manifest.shards()[shard as usize].key.to_string(),
        asked_us: 0,
    })
}

/// Re-checks every sealed shard in turn, for ever, at `bytes_per_s`.
pub(crate) async fn scrub(
    store: Arc<Store>,
    local: Arc<LocalState>,
    counters: Arc<Counters>,
    inputs: Inputs,
    bytes_per_s: u64,
    shutdown: CancellationToken,
) {
    if bytes_per_s == 0 {
        return;
    }
    loop {
        let mut seen = 0u64;
        for version in local.all() {
            let sealed = version.progress.borrow().sealed.clone();
            for shard in sealed.iter() {
                let bytes = version.manifest.layout().shard_len(shard);
                // The pause comes first: a scrub never competes with the start of an agent.
                let pause = Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.cancelled() => return,
                }
                seen += 1;
                let Err(finding) = check_shard(&store, &version.manifest, shard).await else { continue };
                counters.checksum_failure("disk", "scrub");
                tracing::error!(dataset = %version.manifest.name(), key = finding.key, detail = finding.detail, "scrub found a bad shard");
                let dataset = version.dataset;
                let _ = inputs.send(Input::Lost { dataset, shard, reason: finding.detail }).await;
            }
        }
        let pause = if seen == 0 { Duration::from_secs(5) } else { Duration::from_secs(1) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
