//! May this request be sent twice?
//!
//! A request of which no byte was sent may always be sent again. One that may have been executed may be repeated
//! when its method promises that twice is as good as once (RFC 9110 section 9.2.2), or when the client gave it a key
//! by which the service recognises a repetition; whether a key is believed is the route's choice.

use http::{HeaderMap, HeaderName, Method};

/// What allows a request to be repeated after it may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeatable {
    /// Its method is idempotent.
    ByMethod,
    /// It carries an idempotency key.
    ByKey,
    /// Nothing.
    Never,
}

/// The field that usually carries the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What allows this request to be repeated. `key` is the field that the route takes for an idempotency key.
pub fn repeatable(method: &Method, headers: &HeaderMap, key: &HeaderName) -> Repeatable {
    if is_idempotent(method) {
        Repeatable::ByMethod
    } else if headers.get(key).is_some_and(|value| !value.is_empty()) {
        Repeatable::ByKey
    } else {
        Repeatable::Never
    }
}

/// GET, HEAD, OPTIONS, TRACE, PUT, DELETE (RFC 9110 section 9.2.2). Of a method we do not know we promise nothing.
pub fn is_idempotent(method: &Method) -> bool {
    is_safe(method) || matches!(*method, Method::PUT | Method::DELETE)
}

/// GET, HEAD, OPTIONS, TRACE: asked for no change (RFC 9110 section 9.2.1).
pub fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_promise_it_and_keys_allow_repetition() {
        let mut headers = HeaderMap::new();
        let of = |method: &str, headers: &HeaderMap| {
            repeatable(
                &Method::from_bytes(method.as_bytes()).unwrap(),
                headers,
                &IDEMPOTENCY_KEY,
            )
        };
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert_eq!(of(method, &headers), Repeatable::ByMethod, "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "get", "PURGE"] {
            assert_eq!(of(method, &headers), Repeatable::Never, "{method}");
        }
        headers.insert(IDEMPOTENCY_KEY, "".parse().unwrap());
        assert_eq!(of("POST", &headers), Repeatable::Never);
        headers.insert(IDEMPOTENCY_KEY, "abc".parse().unwrap());
        assert_eq!(of("POST", &headers), Repeatable::ByKey);
        assert_eq!(of("GET", &headers), Repeatable::ByMethod);
        assert!(is_safe(&Method::GET) && !is_safe(&Method::DELETE));
    }
}
