//! Trying again, for what nobody else repeats: listings, HEADs, the reads of an index.

use crate::error::OriginError;
use crate::limits::{ATTEMPTS, RETRY_PAUSE, RETRY_PAUSE_MAX};

/// Calls `attempt` until it succeeds, fails for good, or [`ATTEMPTS`] are used up.
pub(crate) async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, OriginError>) -> Result<T, OriginError> {
    let mut pause = RETRY_PAUSE;
    for _ in 1..ATTEMPTS {
        let wait = match attempt().await {
            Err(OriginError::Throttled { retry_after, .. }) => retry_after.unwrap_or(pause).max(pause),
            Err(OriginError::Transient { .. }) => pause,
            done => return done,
        };
        tokio::time::sleep(wait.min(RETRY_PAUSE_MAX)).await;
        pause *= 2;
    }
    attempt().await
}
