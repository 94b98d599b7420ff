//! Work on a thread of its own.

use std::future::Future;

use crate::failure::RequestError;

/// Off the async threads: millions of shards take a second to sort and hash.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RequestError::Stopping)
}

/// A future that stays on one thread: those of the origin, which are not `Send` where they stream over borrowed
/// objects, and which decode and sort for seconds.
pub(crate) async fn apart<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T, RequestError>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let runtime = tokio::runtime::Handle::current();
    blocking(move || runtime.block_on(work())).await
}
