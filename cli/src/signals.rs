//! Signals: the first one asks for a graceful stop, the second one stops at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Result};

/// A token that SIGINT or SIGTERM cancels. A second signal ends the process with exit code 130.
pub fn shutdown_token() -> Result<CancellationToken> {
    let failed = |e| Failure::other("signal handlers", e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                tracing::info!("stopping; a second signal stops at once");
                cancelled.cancel();
            } else {
                std::process::exit(130);
            }
        }
    });
    Ok(token)
}

/// Runs a client verb until it ends or a signal comes.
pub async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let failed = |e| Failure::other("signal handlers", e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(Failure::interrupted()),
        _ = terminate.recv() => Err(Failure::interrupted()),
    }
}

/// From now on SIGTERM comes when the thread of `parent` that started this process ends: no orphans, whatever happens
/// to the parent. `None` changes nothing.
pub fn tie_to_parent(parent: Option<i32>) -> Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    let failed = |e| Failure::other("--parent", e);
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).map_err(failed)?;
    // It may have ended before that call.
    if rustix::process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != parent) {
        return Err(Failure::other("--parent", format!("process {parent} is not the parent (any more)")));
    }
    Ok(())
}
