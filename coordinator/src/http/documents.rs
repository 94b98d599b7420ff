//! Any document of the API by its path, for those who follow several (the stream) or have no HTTP (gRPC).

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt as _;

use super::api;
use crate::driver::DriverHandle;
use crate::limits::STREAM_DOCUMENT_BYTES_MAX;
use crate::store::StoreHandle;

/// The documents of `/api/v1`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Documents {
    pub(super) router: Router,
    pub(super) description: utoipa::openapi::OpenApi,
}

/// What a path answered.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) document: Value,
}

impl Documents {
    pub(crate) fn new(driver: DriverHandle, store: StoreHandle) -> Documents {
        let (router, description) = api::documents(driver, store);
        Documents { router, description }
    }

    /// The document at `/api/v1/` and `path`, which may have a query.
    pub(crate) async fn get(&self, path: &str) -> Answered {
        let wrong = |status, error: String| Answered {
            status,
            document: serde_json::json!({"error": error, "next": "GET /api/v1/openapi.json lists all paths", "code": 3}),
        };
        let Ok(request) = Request::get(format!("/api/v1/{path}")).body(Body::empty()) else {
            return wrong(StatusCode::BAD_REQUEST, format!("{:?} is no path", crate::nodes::short(path)));
        };
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), STREAM_DOCUMENT_BYTES_MAX).await;
        let Ok(bytes) = bytes else {
            let text = format!("the document is larger than {STREAM_DOCUMENT_BYTES_MAX} bytes; ask for a smaller page");
            return wrong(StatusCode::INTERNAL_SERVER_ERROR, text);
        };
        match serde_json::from_slice(&bytes) {
            Ok(document) => Answered { status, document },
            Err(_) => wrong(StatusCode::NOT_FOUND, format!("there is no document at {:?}", crate::nodes::short(path))),
        }
    }
}
