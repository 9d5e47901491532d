//! Direct responses: answers that the configuration holds.
//!
//! A gRPC call gets its answer as gRPC: trailers-only, with the code that the route names or that follows from the
//! status, and the body as the message. A text may have templates; the bytes of a file are given as they are.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::edits::{EditError, HeaderEdits};
use super::grpc::{self, Code};
use super::reply;
use super::template::{Template, UnknownField, Values};

/// An answer, compiled.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    status: StatusCode,
    body: Body,
    headers: HeaderEdits,
    grpc_status: Code,
}

#[derive(Clone, Debug)]
enum Body {
    Fixed(Bytes),
    Filled(Template),
}

/// What is answered, as written.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// `body`, which may have templates.
    Text(&'a str),
    /// The bytes of `body_file`.
    File(Bytes),
}

/// Why an answer is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectResponseError {
    /// Not a final status.
    #[error("{0} is not a status that ends a request; write 200 to 599")]
    Status(u16),
    /// A body where there can be none.
    #[error("a {0} has no body (RFC 9110 section 6.4.1)")]
    NoBody(u16),
    /// Not a gRPC status.
    #[error("{0:?} is not a gRPC status; write a name such as UNAVAILABLE, or 0 to 16")]
    GrpcStatus(String),
    /// A header that cannot be given.
    #[error(transparent)]
    Header(#[from] EditError),
    /// A template that names nothing.
    #[error(transparent)]
    Field(#[from] UnknownField),
}

impl DirectResponse {
    /// Compiles an answer.
    ///
    /// # Errors
    /// When it is not one.
    pub fn compile<N: AsRef<str>, V: AsRef<str>>(
        status: u16,
        content: &Content<'_>,
        headers: impl IntoIterator<Item = (N, V)>,
        grpc_status: Option<&str>,
    ) -> Result<Self, DirectResponseError> {
        let code = match StatusCode::from_u16(status) {
            Ok(code) if (200..600).contains(&status) => code,
            _ => return Err(DirectResponseError::Status(status)),
        };
        let body = match content {
            Content::File(bytes) => Body::Fixed(bytes.clone()),
            Content::Text(text) => {
                let template = Template::compile(text)?;
                match template.as_literal() {
                    Some(literal) => Body::Fixed(Bytes::from(literal.to_owned())),
                    None => Body::Filled(template),
                }
            }
        };
        let is_empty = matches!(&body, Body::Fixed(bytes) if bytes.is_empty());
        if matches!(status, 204 | 205 | 304) && !is_empty {
            return Err(DirectResponseError::NoBody(status));
        }
        let grpc_status = match grpc_status {
            Some(written) => {
                Code::parse(written).ok_or_else(|| DirectResponseError::GrpcStatus(written.to_owned()))?
            }
            None if code.is_success() => Code::OK,
            None => Code::from_http(code),
        };
        let headers = HeaderEdits::compile(headers, [], [])?;
        Ok(Self {
            status: code,
            body,
            headers,
            grpc_status,
        })
    }

    /// The HTTP status of the answer to a request that is not gRPC.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer to a request with these fields.
    pub fn response(&self, request: &HeaderMap, values: &Values<'_>) -> Response<Bytes> {
        let body = match &self.body {
            Body::Fixed(bytes) => bytes.clone(),
            Body::Filled(template) => Bytes::from(template.render(values)),
        };
        let mut response = if grpc::is_grpc(request) {
            grpc::trailers_only(self.grpc_status, String::from_utf8_lossy(&body).trim_end())
        } else {
            let mut response = Response::new(body);
            *response.status_mut() = self.status;
            if !response.body().is_empty() {
                let plain = HeaderValue::from_static(reply::PLAIN_TEXT);
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
            }
            response
        };
        let grpc_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .filter(|_| grpc::is_grpc(request))
            .cloned();
        self.headers.apply(response.headers_mut(), values);
        if let Some(grpc_type) = grpc_type {
            response.headers_mut().insert(header::CONTENT_TYPE, grpc_type);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::values;
    use super::*;

    const NO_HEADERS: [(&str, &str); 0] = [];

    #[test]
    fn an_answer_is_what_the_file_says() {
        let content = Content::Text("hello {client_ip}\n");
        let answer = DirectResponse::compile(503, &content, [("X-Route", "{route}")], None).unwrap();
        let response = answer.response(&HeaderMap::new(), &values());
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(response.headers()["x-route"], "orders");
        assert_eq!(response.body(), "hello 192.0.2.7\n");
        let html = DirectResponse::compile(
            200,
            &Content::File("{x}".into()),
            [("content-type", "text/html")],
            None,
        );
        let response = html.unwrap().response(&HeaderMap::new(), &values());
        assert_eq!(response.headers()["content-type"], "text/html");
        assert_eq!(response.body(), "{x}");
    }

    #[test]
    fn a_grpc_call_is_answered_as_one() {
        let mut call = HeaderMap::new();
        call.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let of = |status, grpc_status| {
            let content = Content::Text("back soon\n");
            let headers = [("content-type", "text/html")];
            DirectResponse::compile(status, &content, headers, grpc_status)
                .unwrap()
                .response(&call, &values())
        };
        let response = of(503, None);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "back soon");
        assert!(response.body().is_empty());
        assert_eq!(of(200, None).headers()["grpc-status"], "0");
        assert_eq!(of(200, Some("not_found")).headers()["grpc-status"], "5");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        use DirectResponseError::*;
        let refused = |status, text, grpc| {
            DirectResponse::compile(status, &Content::Text(text), NO_HEADERS, grpc).unwrap_err()
        };
        assert_eq!(refused(101, "", None), Status(101));
        assert_eq!(refused(99, "", None), Status(99));
        assert_eq!(refused(600, "", None), Status(600));
        assert_eq!(refused(204, "x", None), NoBody(204));
        assert_eq!(refused(200, "", Some("NOPE")), GrpcStatus("NOPE".into()));
        assert!(matches!(refused(200, "{nobody}", None), Field(_)));
        let framing = DirectResponse::compile(200, &Content::Text(""), [("content-length", "3")], None);
        assert!(matches!(framing, Err(Header(_))));
    }
}
