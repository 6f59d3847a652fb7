//! What is not answered, in OpenAI's form of an error.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    /// OpenAI's `code`.
    code: Option<&'static str>,
    pub(crate) message: String,
}

/// How long a client that comes at a bad time is asked to wait, in seconds.
const RETRY_AFTER: &str = "1";

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, param: None, code: None, message: message.into() }
    }

    /// The request is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field is wrong.
    pub(crate) fn field(name: &str, message: impl AsRef<str>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad(format!("{name}: {}", message.as_ref())) }
    }

    /// The body is no request at all.
    pub(crate) fn of_body(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// No key, or another one.
    pub(crate) fn key() -> Self {
        let message = "the request has no `Authorization: Bearer KEY` with this server's key";
        let code = Some("invalid_api_key");
        Self { code, ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message) }
    }

    /// Asked for under a name that may be anybody's.
    pub(crate) fn host() -> Self {
        let message =
            "without a key the server answers to 127.0.0.1 and localhost alone, not to another Host; set ALOE_API_KEY";
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message)
    }

    /// Another model than the one that is served.
    pub(crate) fn model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here; {served:?} is");
        let code = Some("model_not_found");
        let param = Some("model".to_owned());
        Self { code, param, ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message) }
    }

    /// No such route.
    pub(crate) fn route(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("there is nothing at {path}"))
    }

    /// A route, but not for this method.
    pub(crate) fn method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// As much is waiting as may.
    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
    }

    /// The server ends.
    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is stopping")
    }

    /// The model cannot answer anything.
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body of the answer; an event of a stream that breaks off holds it too.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(&self.body());
        *response.status_mut() = self.status;
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// A value as an answer.
pub(crate) fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string()).into_response()
}
