//! What a question that has no answer is answered with.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::failure::{ExitCode, RequestError};

/// An error as JSON, like the gRPC side's.
#[derive(Debug)]
pub(crate) struct HttpError(pub(crate) RequestError);

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// The thing and the reason.
    error: String,
    /// What to do; may be empty.
    next: String,
    /// The exit code that the command line would end with.
    code: u32,
}

impl<E: Into<RequestError>> From<E> for HttpError {
    fn from(error: E) -> HttpError {
        HttpError(error.into())
    }
}

fn malformed(field: &'static str, reason: String) -> HttpError {
    HttpError(RequestError::Usage { field, reason })
}

impl From<QueryRejection> for HttpError {
    fn from(rejection: QueryRejection) -> HttpError {
        malformed("query", rejection.body_text())
    }
}

impl From<PathRejection> for HttpError {
    fn from(rejection: PathRejection) -> HttpError {
        malformed("path", rejection.body_text())
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
        let body = ErrorBody { error: self.0.to_string(), next: self.0.next().to_string(), code: code as u32 };
        (status, Json(body)).into_response()
    }
}
