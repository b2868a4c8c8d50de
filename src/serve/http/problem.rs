//! [`Problem`]: what this port refuses, as the JSON object `{"error": …}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Error, ErrorKind};

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound | ErrorKind::OutOfRange => StatusCode::NOT_FOUND,
            ErrorKind::Unauthorized => StatusCode::FORBIDDEN,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Exhausted => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.why}))).into_response()
    }
}

/// The answer at paths where nothing is.
pub(super) async fn no_such_path(uri: Uri) -> Problem {
    let why = format!(
        "nothing is at {}; there are /metrics, /livez, /readyz, /v1/streams, /v1/sql and /v1/queries",
        uri.path()
    );
    Problem::new(StatusCode::NOT_FOUND, why)
}

/// The answer to a method that a path does not have. The router adds `Allow`.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let why =
        format!("{} does not take {method}; the header Allow names what it takes", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, why)
}
