//! What a message's head costs on its way through: reading it, removing what ends here, writing it anew.
//!
//! Run with `cargo bench --bench headers`. A request passes each of these once and its answer once more, so the sum of
//! the rows for a browser and its answer is the price of strictness.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up should stop")]

mod measure;

use std::hint::black_box;

use bellwether::message::forwarded::Trust;
use bellwether::message::hygiene;
use bellwether::wire::http1::encode::{self, Connection};
use bellwether::wire::http1::head::{self, Framing, Limits, RequestHead, ResponseHead};
use bytes::BytesMut;
use http::{Method, Version};
use measure::measure;

const TOOL: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

const BROWSER: &[u8] = b"GET /api/v1/orders/12345?expand=items HTTP/1.1\r\n\
Host: shop.example.com\r\n\
Connection: keep-alive\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Accept-Language: en-GB,en;q=0.5\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Cookie: sid=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n\
Referer: https://shop.example.com/orders\r\n\
Cache-Control: max-age=0\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-Site: same-origin\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
Server: nginx/1.22.1\r\n\
Date: Sun, 22 Nov 2026 19:00:00 GMT\r\n\
Content-Type: application/json\r\n\
Content-Length: 1024\r\n\
Connection: keep-alive\r\n\
Cache-Control: private, max-age=0\r\n\
ETag: \"5f3c-1a2b3c4d\"\r\n\r\n";

fn main() {
    let limits = Limits::default();
    for (who, bytes) in [("a tool", TOOL), ("a browser", BROWSER)] {
        measure(
            &format!("request of {who}: parse ({} bytes)", bytes.len()),
            || request(black_box(bytes), &limits),
        );
        let parsed = request(bytes, &limits);
        measure(&format!("request of {who}: clone and clean"), || {
            let mut headers = black_box(&parsed).headers.clone();
            let seen = hygiene::look(&headers);
            hygiene::clean_request(&mut headers, Trust::Untrusted, seen);
            headers
        });
        measure(&format!("request of {who}: clone alone"), || {
            black_box(&parsed).headers.clone()
        });
        let mut clean = parsed.headers.clone();
        let seen = hygiene::look(&clean);
        hygiene::clean_request(&mut clean, Trust::Untrusted, seen);
        let mut out = BytesMut::with_capacity(4096);
        measure(&format!("request of {who}: encode"), || {
            out.clear();
            let target = parsed.uri.path_and_query().expect("origin form").as_str();
            encode::request_head(
                &mut out,
                &parsed.method,
                target.as_bytes(),
                black_box(&clean),
                &[],
                parsed.framing,
                Connection::KeepAlive,
            );
            out.len()
        });
    }

    measure(&format!("answer: parse ({} bytes)", ANSWER.len()), || {
        response(black_box(ANSWER), &limits)
    });
    let parsed = response(ANSWER, &limits);
    measure("answer: clone and clean", || {
        let mut headers = black_box(&parsed).headers.clone();
        let seen = hygiene::look(&headers);
        hygiene::clean_response(&mut headers, seen);
        headers
    });
    let mut clean = parsed.headers.clone();
    let seen = hygiene::look(&clean);
    hygiene::clean_response(&mut clean, seen);
    let mut out = BytesMut::with_capacity(4096);
    measure("answer: encode", || {
        out.clear();
        encode::response_head(
            &mut out,
            Version::HTTP_11,
            parsed.status,
            black_box(&clean),
            Framing::Length(1024),
            Connection::KeepAlive,
            None,
        );
        out.len()
    });
}

fn request(bytes: &[u8], limits: &Limits) -> RequestHead {
    let mut buffer = BytesMut::from(bytes);
    head::parse_request(&mut buffer, limits, &mut 0)
        .expect("a valid request")
        .expect("a whole request")
}

fn response(bytes: &[u8], limits: &Limits) -> ResponseHead {
    let mut buffer = BytesMut::from(bytes);
    head::parse_response(&mut buffer, limits, &mut 0, &Method::GET)
        .expect("a valid response")
        .expect("a whole response")
}
