//! A request as it is forwarded: any bytes in, and what is written is exactly one request that says nothing about the
//! hop it came by, or nothing is written.
#![no_main]

mod http1;
mod message;
mod wire;

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use http1::{encode, head};
use message::forwarded::{Added, Hop, Scheme, Trust};
use message::{hygiene, trace};

/// Fields of one hop; `connection` and framing are ours on the way out.
const HOP: [&str; 8] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "upgrade",
    "expect",
    "http2-settings",
    "x-bellwether-test",
];

fn all(headers: &HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    headers.get_all(name).iter().cloned().collect()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut buf = BytesMut::from(input);
    let Ok(Some(request)) = head::parse_request(&mut buf, &head::Limits::default(), &mut 0) else {
        return;
    };
    let mut headers = request.headers.clone();
    let target = request
        .uri
        .authority()
        .filter(|_| request.uri.scheme().is_some() || request.method == Method::CONNECT);
    let Ok(host) = hygiene::authority(target, &headers, request.version) else {
        return;
    };
    let host = host.to_owned();
    let seen = hygiene::look(&headers);
    let asked = hygiene::upgrade_asked(&request.method, request.version, &headers, seen);
    if let Some(protocol) = &asked {
        assert!(
            request.version == Version::HTTP_11 && request.headers.contains_key("upgrade"),
            "{protocol:?}"
        );
    }
    let before = headers.clone();
    hygiene::clean_request(&mut headers, Trust::Untrusted, seen);
    trace::take(&mut headers);
    let hop = Hop::new([192, 0, 2, 1].into(), Scheme::Http, 80, Trust::Untrusted);
    let mut added = Added::new();
    let value = HeaderValue::from_str(&host).expect("a host is a value");
    hop.write(&mut headers, &mut added, &value);
    added.push(hygiene::via(request.version));
    // Whatever `connection` named, what a service or a check relies on is still there.
    for name in [
        header::AUTHORIZATION,
        header::COOKIE,
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
    ] {
        assert_eq!(all(&before, &name), all(&headers, &name), "{name}");
    }
    // A client of HTTP/1.0 may name no host; the endpoint's stands in.
    let named = if host.is_empty() { "endpoint:80" } else { &host };
    headers.insert(
        header::HOST,
        HeaderValue::from_str(named).expect("a host is a value"),
    );
    let path = match request.uri.path_and_query() {
        Some(path) => path.as_str().to_owned(),
        None => request.uri.to_string(),
    };

    let mut out = BytesMut::new();
    encode::request_head(
        &mut out,
        &request.method,
        path.as_bytes(),
        &headers,
        &added,
        request.framing,
        encode::Connection::KeepAlive,
    );
    let limits = head::Limits {
        head_bytes: 1 << 20,
        headers: 1 << 10,
        target_bytes: 1 << 17,
    };
    let again = head::parse_request(&mut out, &limits, &mut 0)
        .expect("what we write is a request")
        .expect("and a whole one");
    assert!(out.is_empty(), "bytes are left behind the head: {out:?}");
    assert_eq!((again.method, again.framing), (request.method, request.framing));
    assert_eq!(again.headers.get_all(header::HOST).iter().count(), 1);
    for name in HOP {
        assert!(!again.headers.contains_key(name), "{name}");
    }
    for value in again.headers.get_all(header::CONNECTION) {
        // Our own word, and the one that `te` brings.
        let fine = value.as_bytes().split(|byte| *byte == b',').all(|option| {
            let option = option.trim_ascii();
            option.eq_ignore_ascii_case(b"te") || option.eq_ignore_ascii_case(b"keep-alive")
        });
        assert!(fine, "{value:?}");
    }
    for value in again.headers.get_all(header::TE) {
        assert_eq!(value, "trailers");
    }
    for name in again.headers.keys().map(HeaderName::as_str) {
        let dashed = name.replace('_', "-");
        assert!(dashed == name || !dashed.starts_with("x-forwarded-"), "{name}");
    }
    // Cleaned once is clean.
    let mut twice = headers.clone();
    let seen = hygiene::look(&twice);
    hygiene::clean_request(&mut twice, Trust::Untrusted, seen);
    assert_eq!(twice, headers);
});
