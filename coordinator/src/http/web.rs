//! The page's files, in the binary: no build step, nothing from elsewhere.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page needs nothing from elsewhere, and gets nothing. Styles are set through the object model, never as text.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        &[$(($name, $kind, include_str!(concat!("web/", $name)))),*]
    };
}

const FILES: &[(&str, &str, &str)] = files! {
    "index.html": HTML,
    "app.css": CSS,
    "icon.svg": SVG,
    "app.js": JS,
    "dom.js": JS,
    "format.js": JS,
    "live.js": JS,
    "chart.js": JS,
    "map.js": JS,
    "overview.js": JS,
    "dataset.js": JS,
    "node.js": JS,
    "lists.js": JS,
    "uplot.js": JS,
    "uplot.css": CSS,
    "uplot.LICENSE": TEXT,
};

fn file(name: &str) -> Response {
    let Some((_, kind, content)) = FILES.iter().find(|(n, _, _)| *n == name) else {
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    let kind = HeaderValue::from_static(kind);
    let policy = HeaderValue::from_static(POLICY);
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, *content).into_response()
}

/// `/`, and the files that it names below `/web/`.
pub(super) fn routes() -> Router {
    let index = || async { file("index.html") };
    Router::new()
        .route("/", get(index))
        .route("/web/{name}", get(|Path(name): Path<String>| async move { file(&name) }))
}
