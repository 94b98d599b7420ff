//! The HTTP port: status page, API, probes, metrics. Reads only.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::driver::DriverHandle;
use crate::failure::RequestError;
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADER_TIMEOUT, HTTP_REQUEST_TIMEOUT};
use crate::net::Listener;
use api::HttpError;
use stream::Streams;

mod api;
mod documents;
mod metrics;
mod stream;
mod web;

pub(crate) use documents::Documents;

#[derive(Clone)]
struct Context {
    driver: DriverHandle,
    shutdown: CancellationToken,
}

/// The process answers.
async fn healthz() -> &'static str {
    "ok\n"
}

/// The driver answers, and we are not on our way down.
async fn readyz(context: Shared<Context>) -> Result<&'static str, HttpError> {
    if context.shutdown.is_cancelled() {
        return Err(RequestError::Stopping.into());
    }
    context.driver.call(|_, _| ()).await?;
    Ok("ready\n")
}

async fn metrics_text(context: Shared<Context>) -> Result<Response, HttpError> {
    let sample = context.driver.call(metrics::Sample::take).await?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], sample.render()).into_response())
}

async fn in_time(request: Request<Body>, next: Next) -> Response {
    match tokio::time::timeout(HTTP_REQUEST_TIMEOUT, next.run(request)).await {
        Ok(mut response) => {
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the coordinator is too busy to answer\n").into_response(),
    }
}

/// Everything that the port serves.
fn router(driver: DriverHandle, documents: Documents, shutdown: CancellationToken) -> Router {
    let streams = Streams::new(documents.clone(), shutdown.clone());
    let (live, description) = OpenApiRouter::new().routes(routes!(stream::stream)).split_for_parts();
    let mut whole = documents.description;
    whole.merge(description);
    let whole = whole.to_json().unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    let describe = move || async move { ([(header::CONTENT_TYPE, json)], whole).into_response() };
    let probes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(Context { driver, shutdown });
    documents
        .router
        .merge(live.with_state(streams))
        .route("/api/v1/openapi.json", get(describe))
        .merge(web::routes())
        .merge(probes)
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX))
        .layer(middleware::from_fn(in_time))
}

/// Serves until `shutdown`; connections that are open then get what they asked for.
pub(crate) async fn serve(listener: Listener, driver: DriverHandle, documents: Documents, shutdown: CancellationToken) {
    let router = router(driver, documents, shutdown.clone());
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HTTP_HEADER_TIMEOUT).max_buf_size(64 << 10);
    let http = Arc::new(http);
    let connections = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => break,
            connection = listener.accept() => connection,
        };
        let service = TowerToHyperService::new(router.clone());
        let (http, shutdown) = (http.clone(), shutdown.clone());
        connections.spawn(async move {
            let serving = http.serve_connection(TokioIo::new(connection), service);
            tokio::pin!(serving);
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = shutdown.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP connection broke");
            }
        });
    }
    connections.close();
    connections.wait().await;
}
