//! gRPC as far as a proxy must know it: what is a call and how it ends. How long it may take is
//! read by `bellwether_core::parse_grpc_timeout`.
//!
//! Every gRPC answer is a 200; what happened stands in `grpc-status`, in the trailers or, when there is no message, in
//! the header section ("trailers-only"). Sources: gRPC over HTTP/2 (PROTOCOL-HTTP2), "HTTP to gRPC status code
//! mapping", "Status codes and their use".

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

/// `grpc-status`.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// `grpc-timeout`.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Names of the codes, by number.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC status code, 0 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u8);

impl Code {
    /// 0.
    pub const OK: Self = Self(0);
    /// 2: also what a call ended with when nobody said.
    pub const UNKNOWN: Self = Self(2);

    /// A code by number; what is not one is `UNKNOWN`.
    pub const fn new(number: u8) -> Self {
        if number < 17 { Self(number) } else { Self::UNKNOWN }
    }

    /// A code by name, upper or lower case, or by number: `grpc_status` of a direct response.
    pub fn parse(written: &str) -> Option<Self> {
        let by_name = (0..)
            .zip(NAMES)
            .find(|(_, name)| name.eq_ignore_ascii_case(written))
            .map(|(number, _)| number);
        by_name
            .or_else(|| written.parse().ok().filter(|number| *number < 17))
            .map(Self)
    }

    /// 0 to 16.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// `UNAVAILABLE` and the like.
    pub const fn name(self) -> &'static str {
        NAMES[self.0 as usize]
    }

    /// What a call ended with when the answer was not gRPC ("HTTP to gRPC status code mapping").
    pub const fn from_http(status: StatusCode) -> Self {
        Self(match status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        })
    }

    /// The HTTP status that says about the same, for logs and for counting failures (google.rpc.Code).
    pub const fn to_http(self) -> u16 {
        match self.0 {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            // UNKNOWN, INTERNAL, DATA_LOSS
            _ => 500,
        }
    }

    /// Reads `grpc-status`, from trailers or from the headers of a trailers-only answer.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        let value = fields.get(&GRPC_STATUS)?;
        let number = std::str::from_utf8(value.as_bytes())
            .ok()
            .and_then(|text| text.parse().ok());
        Some(number.map_or(Self::UNKNOWN, Self::new))
    }
}

/// Whether a request or response is gRPC: content type `application/grpc`, with or without `+proto` and parameters.
/// Not gRPC-Web, which is plain HTTP to a proxy.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let Some((start, rest)) = value.as_bytes().split_at_checked(16) else {
        return false;
    };
    start.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// An answer without messages: everything stands in the header section.
pub fn trailers_only(code: Code, message: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code.0)));
    if !message.is_empty() {
        headers.insert(GRPC_MESSAGE, encode_message(message));
    }
    response
}

/// Percent-encodes a message: bytes from space to `~` but `%` stay as they are.
pub fn encode_message(message: &str) -> HeaderValue {
    const KEEP: percent_encoding::AsciiSet = percent_encoding::CONTROLS.add(b'%');
    let encoded = percent_encoding::utf8_percent_encode(message, &KEEP).to_string();
    // What is left is printable ASCII.
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

/// Reads a message; what is not UTF-8 after decoding is shown as well as it can be.
pub fn decode_message(value: &HeaderValue) -> String {
    percent_encoding::percent_decode(value.as_bytes())
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_known_by_its_content_type() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        for yes in [
            "application/grpc",
            "Application/gRPC+proto",
            "application/grpc;charset=utf-8",
            "application/grpc+json",
        ] {
            assert!(of(yes), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpcx",
            "application/json",
            "",
        ] {
            assert!(!of(no), "{no}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn an_answer_without_messages_is_all_header() {
        let response = trailers_only(Code::new(14), "down: 100 % für alle\n");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(
            response.headers()["grpc-message"],
            "down: 100 %25 f%C3%BCr alle%0A"
        );
        assert_eq!(
            decode_message(&response.headers()["grpc-message"]),
            "down: 100 % für alle\n"
        );
        assert!(response.body().is_empty());
    }

    #[test]
    fn codes_are_read_and_mapped() {
        assert_eq!(Code::parse("unavailable"), Some(Code::new(14)));
        assert_eq!(Code::parse("7").unwrap().name(), "PERMISSION_DENIED");
        assert_eq!(Code::parse("17"), None);
        assert_eq!(Code::parse("NOPE"), None);
        let table: Vec<(u16, u8)> = [200, 400, 401, 403, 404, 429, 500, 502, 503, 504]
            .map(|status| {
                (
                    status,
                    Code::from_http(StatusCode::from_u16(status).unwrap()).number(),
                )
            })
            .to_vec();
        let expected = [
            (200, 2),
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (500, 2),
            (502, 14),
            (503, 14),
            (504, 14),
        ];
        assert_eq!(table, expected);
        let back: Vec<u16> = (0..17).map(|number| Code::new(number).to_http()).collect();
        assert_eq!(
            back,
            [
                200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401
            ]
        );
        let mut fields = HeaderMap::new();
        assert_eq!(Code::of(&fields), None);
        for (value, code) in [("0", 0), ("14", 14), ("99", 2), ("x", 2), ("", 2)] {
            fields.insert(GRPC_STATUS, HeaderValue::from_static(value));
            assert_eq!(Code::of(&fields).unwrap().number(), code, "{value}");
        }
    }

    proptest! {
        #[test]
        fn a_message_survives_writing(message in ".{0,60}") {
            let value = encode_message(&message);
            prop_assert!(value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)));
            prop_assert_eq!(decode_message(&value), message);
        }
    }
}
