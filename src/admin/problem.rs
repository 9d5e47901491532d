//! Errors of the API: `application/problem+json` (RFC 9457), always with a sentence that an operator can act on.

use std::any::Any;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

/// An error answer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    /// `about:blank`: the status says what kind it is (RFC 9457 section 4.2.1).
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// What is wrong with this request.
    detail: String,
    /// What to do instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Problem {
    pub(super) fn new(status: u16, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            help: None,
        }
    }

    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &self)
    }
}

/// Any JSON answer. None of them is to be kept: they are true for a moment.
pub(super) fn json(status: StatusCode, content_type: &'static str, value: &impl Serialize) -> Response {
    // Numbers and strings under string keys always serialise.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 200 with JSON.
pub(super) fn ok(value: &impl Serialize) -> Response {
    json(StatusCode::OK, "application/json", value)
}

/// The answer of a handler that panicked; the panic hook has written the details to the log.
pub(super) fn panicked(_payload: Box<dyn Any + Send + 'static>) -> http::Response<Full<Bytes>> {
    let problem = Problem::new(500, "the proxy made a mistake; its log says more");
    let text = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = http::Response::new(Full::from(text));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
