//! The HTTP port: status page, API, probes, metrics. Reads only.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State as Shared};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::DriverHandle;
use crate::failure::{ExitCode, RequestError};
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADER_TIMEOUT, HTTP_REQUEST_TIMEOUT};
use crate::net::Listener;
use crate::store::StoreHandle;

mod metrics;

const PAGE: &str = include_str!("http/page.html");
/// The page needs nothing from elsewhere, and gets nothing.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                           connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'";

#[derive(Clone)]
struct Context {
    driver: DriverHandle,
    store: StoreHandle,
    shutdown: CancellationToken,
}

/// An error as JSON, like the gRPC side's.
struct HttpError(RequestError);

impl From<RequestError> for HttpError {
    fn from(error: RequestError) -> HttpError {
        HttpError(error)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let code = self.0.code();
        let status = match code {
            ExitCode::Usage => StatusCode::BAD_REQUEST,
            ExitCode::Unknown => StatusCode::NOT_FOUND,
            ExitCode::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = json!({"error": self.0.to_string(), "next": self.0.next(), "code": code as u32});
        (status, axum::Json(body)).into_response()
    }
}

#[derive(Deserialize)]
struct StatusQuery {
    #[serde(default)]
    dataset: String,
}

async fn status(context: Shared<Context>, query: Query<StatusQuery>) -> Result<Response, HttpError> {
    let dataset = query.0.dataset;
    let document = context.driver.call(move |state, now| state.status(now, &dataset)).await??;
    Ok(axum::Json(document).into_response())
}

async fn nodes(context: Shared<Context>) -> Result<Response, HttpError> {
    let nodes = context.driver.call(|state, now| state.node_statuses(now)).await?;
    Ok(axum::Json(nodes).into_response())
}

async fn node(context: Shared<Context>, Path(name): Path<String>) -> Result<Response, HttpError> {
    let asked = name.clone();
    let found = context.driver.call(move |state, now| {
        let node = state.nodes.find(&asked)?;
        Some(state.node_status(now, node))
    });
    let unknown = || RequestError::UnknownNodes { names: vec![name] };
    Ok(axum::Json(found.await?.ok_or_else(unknown)?).into_response())
}

async fn audit(context: Shared<Context>) -> Result<Response, HttpError> {
    let lines = context.store.audit(1_000).await.map_err(RequestError::from)?;
    let lines: Vec<serde_json::Value> = lines.iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
    Ok(axum::Json(lines).into_response())
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

async fn page() -> Response {
    let policy = HeaderValue::from_static(PAGE_POLICY);
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
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

/// Serves until `shutdown`; connections that are open then get what they asked for.
pub(crate) async fn serve(listener: Listener, driver: DriverHandle, store: StoreHandle, shutdown: CancellationToken) {
    let context = Context { driver, store, shutdown: shutdown.clone() };
    let router = Router::new()
        .route("/", get(page))
        .route("/api/v1/status", get(status))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{name}", get(node))
        .route("/api/v1/audit", get(audit))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX))
        .layer(middleware::from_fn(in_time))
        .with_state(context);
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
