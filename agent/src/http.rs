//! `/metrics`, `/healthz` and `/readyz` of the agent.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::control::CoordinatorLink;
use crate::counters::Counters;

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    counters: Arc<Counters>,
    link: CoordinatorLink,
    shutdown: CancellationToken,
) {
    let metrics = move || std::future::ready(counters.render());
    let ready = move || {
        // Ready means: orders can arrive. What is on disk is served to trainers and peers without it.
        let up = link.channel().is_some();
        let answer =
            if up { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "no coordinator\n") };
        std::future::ready(answer)
    };
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(ready));
    let served = axum::serve(listener, app).with_graceful_shutdown(async move { shutdown.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP port failed");
    }
}
