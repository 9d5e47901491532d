//! Laws of the codec: what must hold for any bytes whatsoever. Property tests and fuzz targets call the same ones.
//!
//! 1. How the input was cut into reads changes neither the result, nor the error, nor what is left over.
//! 2. What is accepted, a second parser (`httparse`) accepts as well and reads the same.
//! 3. What is accepted and written again parses to the same, under both parsers, and nothing is left over: an upstream
//!    receives exactly one message.

#![allow(
    unreachable_pub,
    reason = "the fuzz package takes this file in by path and calls it from outside"
)]

use bytes::BytesMut;
use http::{HeaderMap, Method, Version, header};

use super::chunked::{self, ChunkError, Decoded, Decoder};
use super::encode::{self, Connection};
use super::head::{self, Framing, HeadError, Limits, RequestHead, ResponseHead};

/// Small enough that random inputs meet them.
pub const LIMITS: Limits = Limits {
    head_bytes: 2048,
    headers: 24,
    target_bytes: 512,
};

/// Limits of chunked bodies in the same spirit.
pub const CHUNK_LIMITS: chunked::Limits = chunked::Limits {
    line_bytes: 64,
    extension_bytes: 128,
    trailer_bytes: 512,
    trailers: 8,
};

/// All laws for request heads. `cuts` are the places, in any order, where the input is cut into reads.
pub fn request(input: &[u8], cuts: &[usize]) {
    let whole = drive(input, &[], |buf, scanned| {
        head::parse_request(buf, &LIMITS, scanned)
    });
    let cut = drive(input, cuts, |buf, scanned| {
        head::parse_request(buf, &LIMITS, scanned)
    });
    same(&whole, &cut, cuts);
    let (Ok(Some(head)), rest) = whole else { return };

    let read = &input[..input.len() - rest.len()];
    let second = Second::request(read, &head);
    second.agrees(&head.headers);
    if head.version == Version::HTTP_11 {
        assert_eq!(head.headers.get_all(header::HOST).iter().count(), 1);
    }
    framing_is_unambiguous(&head.headers, head.framing);

    // Forwarded: origin-form where there is a path, our own framing, our own connection.
    let target = match head.uri.path_and_query() {
        Some(path) => path.as_str().to_owned(),
        None => head.uri.to_string(),
    };
    let mut headers = head.headers.clone();
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, http::HeaderValue::from_static("added"));
    }
    if let Some(authority) = head.uri.authority().filter(|_| head.method == Method::CONNECT) {
        headers.insert(
            header::HOST,
            http::HeaderValue::from_str(authority.as_str()).unwrap(),
        );
    }
    let connection = if head.keep_alive {
        Connection::KeepAlive
    } else {
        Connection::Close
    };
    let mut out = BytesMut::new();
    encode::request_head(
        &mut out,
        &head.method,
        target.as_bytes(),
        &headers,
        &[],
        head.framing,
        connection,
    );
    let wire = out.clone();
    // Our own fields come on top, so the limits of the first reading do not bind the second.
    let again = head::parse_request(&mut out, &Limits::default(), &mut 0)
        .unwrap()
        .unwrap();
    assert!(out.is_empty(), "bytes are left behind the head: {out:?}");
    assert_eq!(again.method, head.method);
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.keep_alive, head.keep_alive);
    assert_eq!(again.uri.path_and_query(), head.uri.path_and_query());
    assert_eq!(end_to_end(&again.headers), end_to_end(&headers));
    Second::request(&wire, &again).agrees(&again.headers);
}

/// All laws for response heads.
pub fn response(input: &[u8], cuts: &[usize], method: &Method) {
    let whole = drive(input, &[], |buf, scanned| {
        head::parse_response(buf, &LIMITS, scanned, method)
    });
    let cut = drive(input, cuts, |buf, scanned| {
        head::parse_response(buf, &LIMITS, scanned, method)
    });
    same(&whole, &cut, cuts);
    let (Ok(Some(head)), rest) = whole else { return };

    let read = &input[..input.len() - rest.len()];
    Second::response(read, &head).agrees(&head.headers);
    assert!((100..600).contains(&head.status.as_u16()));
    framing_is_unambiguous(&head.headers, head.framing);

    let mut out = BytesMut::new();
    if head.status.is_informational() {
        if head.status.as_u16() == 101 {
            return;
        }
        encode::informational(&mut out, head.status, &head.headers);
    } else {
        let announced = match (head.framing, head::declared_length(&head.headers)) {
            (Framing::None, Some(length)) if *method == Method::HEAD => Framing::Length(length),
            (framing, _) => framing,
        };
        let connection = if head.keep_alive {
            Connection::KeepAlive
        } else {
            Connection::Close
        };
        encode::response_head(
            &mut out,
            Version::HTTP_11,
            head.status,
            &head.headers,
            announced,
            connection,
            Some(b"Thu, 01 Jan 1970 00:00:00 GMT"),
        );
    }
    let wire = out.clone();
    let again = head::parse_response(&mut out, &Limits::default(), &mut 0, method)
        .unwrap()
        .unwrap();
    assert!(out.is_empty(), "bytes are left behind the head: {out:?}");
    assert_eq!(again.status, head.status);
    assert_eq!(again.framing, head.framing);
    if !head.status.is_informational() {
        assert_eq!(again.keep_alive, head.keep_alive);
        assert!(again.headers.contains_key(header::DATE));
    }
    let (mut left, mut right) = (end_to_end(&again.headers), end_to_end(&head.headers));
    if !head.headers.contains_key(header::DATE) {
        left.remove(header::DATE);
        right.remove(header::DATE);
    }
    assert_eq!(left, right);
    Second::response(&wire, &again).agrees(&again.headers);
}

/// What a chunked body came to: its data, its end if it ended, and what was left over.
#[derive(Debug, PartialEq)]
struct Body {
    data: Vec<u8>,
    end: Result<Option<Option<HeaderMap>>, ChunkError>,
    rest: Vec<u8>,
}

/// All laws for chunked bodies.
pub fn chunked(input: &[u8], cuts: &[usize]) {
    let whole = decode(input, &[], CHUNK_LIMITS);
    assert_eq!(whole, decode(input, cuts, CHUNK_LIMITS), "cut at {cuts:?}");

    // Every size that was accepted, httparse reads as the same number.
    if let Body {
        data,
        end: Ok(Some(trailers)),
        rest,
    } = &whole
    {
        let mut at = 0;
        let mut expected = &data[..];
        loop {
            let httparse::Status::Complete((line, size)) = httparse::parse_chunk_size(&input[at..]).unwrap()
            else {
                panic!("httparse wants more of a chunk line");
            };
            at += line;
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).unwrap();
            assert_eq!(&input[at..at + size], &expected[..size]);
            expected = &expected[size..];
            at += size;
            assert_eq!(&input[at..at + 2], b"\r\n");
            at += 2;
        }
        assert!(expected.is_empty());
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let httparse::Status::Complete((length, _)) =
            httparse::parse_headers(&input[at..], &mut fields).unwrap()
        else {
            panic!("httparse wants more of the trailers");
        };
        assert_eq!(at + length, input.len() - rest.len());

        // Written again: one body, the same data, the trailers that were let through.
        let mut out = BytesMut::new();
        for piece in data.chunks(7) {
            encode::chunk_prefix(&mut out, piece.len());
            out.extend_from_slice(piece);
            encode::chunk_suffix(&mut out);
        }
        encode::last_chunk(&mut out, trailers.as_ref());
        let again = decode(&out, &[], chunked::Limits::default());
        assert_eq!(&again.data, data);
        assert_eq!(&again.end, &Ok(Some(trailers.clone())));
        assert!(again.rest.is_empty());
    }
}

fn decode(input: &[u8], cuts: &[usize], limits: chunked::Limits) -> Body {
    let mut decoder = Decoder::new(limits);
    let mut buf = BytesMut::new();
    let mut data = Vec::new();
    let mut end = Ok(None);
    let pieces = pieces(input, cuts);
    let mut pieces = pieces.iter();
    'reads: for piece in pieces.by_ref() {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf) {
                Ok(Some(Decoded::Data(bytes))) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Ok(Some(Decoded::End(trailers))) => {
                    assert!(decoder.is_done());
                    end = Ok(Some(trailers));
                    break 'reads;
                }
                Ok(None) => break,
                Err(error) => {
                    end = Err(error);
                    break 'reads;
                }
            }
        }
    }
    // Only what follows a complete body is somebody else's.
    let mut rest = Vec::new();
    if matches!(end, Ok(Some(_))) {
        rest.extend_from_slice(&buf);
        pieces.for_each(|piece| rest.extend_from_slice(piece));
    }
    Body { data, end, rest }
}

/// Feeds `input` in pieces until a head is complete or refused; what follows a complete one is the rest.
fn drive<T>(
    input: &[u8],
    cuts: &[usize],
    mut parse: impl FnMut(&mut BytesMut, &mut usize) -> Result<Option<T>, HeadError>,
) -> (Result<Option<T>, HeadError>, Vec<u8>) {
    let mut buf = BytesMut::new();
    let mut scanned = 0;
    let pieces = pieces(input, cuts);
    let mut pieces = pieces.iter();
    let mut result = Ok(None);
    for piece in pieces.by_ref() {
        buf.extend_from_slice(piece);
        result = parse(&mut buf, &mut scanned);
        if !matches!(result, Ok(None)) {
            break;
        }
    }
    let mut rest = Vec::new();
    if matches!(result, Ok(Some(_))) {
        assert_eq!(scanned, 0);
        rest.extend_from_slice(&buf);
        pieces.for_each(|piece| rest.extend_from_slice(piece));
    }
    (result, rest)
}

fn pieces<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    cuts.push(input.len());
    cuts.sort_unstable();
    let mut from = 0;
    cuts.into_iter()
        .map(|to| {
            let piece = &input[from..to];
            from = to;
            piece
        })
        .collect()
}

fn same<T: PartialEq + std::fmt::Debug>(
    whole: &(Result<Option<T>, HeadError>, Vec<u8>),
    cut: &(Result<Option<T>, HeadError>, Vec<u8>),
    cuts: &[usize],
) {
    assert_eq!(whole, cut, "cut at {cuts:?}");
}

/// The fields that are not ours to write.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut left = headers.clone();
    for name in [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        left.remove(name);
    }
    left.remove("keep-alive");
    left.remove("proxy-connection");
    left
}

fn framing_is_unambiguous(headers: &HeaderMap, framing: Framing) {
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let encodings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    assert!(lengths + encodings <= 1);
    match framing {
        Framing::Length(length) => assert_eq!(head::declared_length(headers), Some(length)),
        Framing::Chunked => assert_eq!(encodings, 1),
        Framing::None | Framing::UntilClose => {}
    }
}

/// What the second parser read.
struct Second {
    fields: Vec<(String, Vec<u8>)>,
}

impl Second {
    fn request(bytes: &[u8], head: &RequestHead) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut second = httparse::Request::new(&mut fields);
        let status = second.parse(bytes).unwrap();
        assert_eq!(status, httparse::Status::Complete(bytes.len()));
        assert_eq!(second.method, Some(head.method.as_str()));
        assert_eq!(second.version, Some(u8::from(head.version == Version::HTTP_11)));
        let target = second.path.unwrap();
        assert!(
            head.uri
                .path_and_query()
                .is_none_or(|path| target.ends_with(path.as_str())
                    || (path.as_str().starts_with('/') && target.ends_with(&path.as_str()[1..]))),
            "{target} against {}",
            head.uri
        );
        Self::of(second.headers)
    }

    fn response(bytes: &[u8], head: &ResponseHead) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut second = httparse::Response::new(&mut fields);
        let status = second.parse(bytes).unwrap();
        assert_eq!(status, httparse::Status::Complete(bytes.len()));
        assert_eq!(second.code, Some(head.status.as_u16()));
        assert_eq!(second.version, Some(u8::from(head.version == Version::HTTP_11)));
        Self::of(second.headers)
    }

    fn of(fields: &[httparse::Header<'_>]) -> Self {
        let fields = fields
            .iter()
            .map(|field| (field.name.to_ascii_lowercase(), trim(field.value)))
            .collect();
        Self { fields }
    }

    fn agrees(&self, headers: &HeaderMap) {
        assert_eq!(self.fields.len(), headers.len());
        for name in headers.keys() {
            let ours: Vec<&[u8]> = headers
                .get_all(name)
                .iter()
                .map(|value| value.as_bytes())
                .collect();
            let theirs: Vec<&[u8]> = self
                .fields
                .iter()
                .filter(|(other, _)| other == name.as_str())
                .map(|(_, value)| &value[..])
                .collect();
            assert_eq!(ours, theirs, "{name}");
        }
    }
}

fn trim(value: &[u8]) -> Vec<u8> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let to = value
        .iter()
        .rposition(|byte| !blank(byte))
        .map_or(from, |last| last + 1);
    value[from..to].to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// Words of the language, ugly ones included: bytes alone would never get past the request line.
    fn words(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        const WORDS: &[&str] = &[
            "\r\n",
            "\r\n",
            "\r\n",
            "\r\n\r\n",
            "\n",
            "\r",
            " ",
            "\t",
            ":",
            ": ",
            ",",
            ";",
            "\0",
            "\x7f",
            "\u{e9}",
            "Host: a",
            "Host: a\r\n",
            "Host: b:80\r\n",
            "host:[::1]\r\n",
            "Host: a/b\r\n",
            "Content-Length: 3\r\n",
            "content-length:03\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding:\tCHUNKED \r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive, upgrade\r\n",
            "Upgrade: websocket\r\n",
            "Expect: 100-continue\r\n",
            "TE: trailers\r\n",
            "Keep-Alive: 5\r\n",
            "X-A: b\r\n",
            "x-a:\r\n",
            " folded\r\n",
            "Date: now\r\n",
            "Cookie: a=b; c=d\r\n",
            "Te: x\r\n",
            "abcdefghijklmnopqrstuvwxyz",
            "0",
            "9",
            "a",
            "/",
            "?",
            "#",
            "%",
            "HTTP/1.1",
            "HTTP/1.0",
        ];
        let word = prop_oneof![
            12 => select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..4),
        ];
        let lead = prop_oneof![
            9 => select(first).prop_map(|word| word.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..20),
        ];
        let tail = prop_oneof![3 => Just(&b"\r\n\r\nrest"[..]), 1 => Just(&b""[..])];
        (lead, vec(word, 0..12), tail)
            .prop_map(|(lead, words, tail)| [lead, words.concat(), tail.to_vec()].concat())
    }

    const REQUESTS: &[&str] = &[
        "GET / HTTP/1.1\r\n",
        "GET /a/b?c=d HTTP/1.1\r\nHost: a\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n",
        "GET http://a/b HTTP/1.1\r\nHost: a\r\n",
        "GET HTTP://a?b HTTP/1.1\r\nHost: a\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n",
        "GET / HTTP/1.0\r\n",
        "PUT /x HTTP/1.0\r\nConnection: keep-alive\r\n",
        "brew /pot HTTP/1.1\r\nHost: a\r\n",
        "GET /",
        "PRI * HTTP/2.0\r\n\r\n",
        "\r\n\r\n",
        "GET  / HTTP/1.1\r\n",
    ];
    const RESPONSES: &[&str] = &[
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200\r\n",
        "HTTP/1.0 404 Not Found\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 304 \r\n",
        "HTTP/1.1 100 Continue\r\n",
        "HTTP/1.1 101 \r\n",
        "HTTP/1.1 103 Early\r\n",
        "HTTP/1.1 599 \u{e9}\r\n",
        "HTTP/1.1 600 x\r\n",
        "HTTP/1.1 20 x\r\n",
        "HTTP/2 200\r\n",
        "ICY 200\r\n",
    ];
    const CHUNKS: &[&str] = &[
        "",
        "5\r\nhello\r\n",
        "1\r\na\r\n2\r\nbc\r\n",
        "A;x=y\r\n0123456789\r\n",
        "0\r\n",
        "0\r\n\r\n",
        "0x5\r\n",
        "+5\r\n",
        " 5\r\n",
        "5 \r\nhello\r\n",
        "5;\r\nhello\r\n",
        "5;a=\"b\"\r\nhello\r\n",
        "5\nhello\n",
        "5\r\nhello",
        "0\r\nX-A: b\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "5\r\nhello\r\n0\r\n",
    ];

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![vec(any::<usize>(), 0..6), Just((0..4096).collect())]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

        #[test]
        fn requests_obey(input in words(REQUESTS), cuts in cuts()) {
            request(&input, &cuts);
        }

        #[test]
        fn responses_obey(
            input in words(RESPONSES),
            cuts in cuts(),
            method in select(&[Method::GET, Method::HEAD, Method::CONNECT][..]),
        ) {
            response(&input, &cuts, &method);
        }

        #[test]
        fn chunked_bodies_obey(
            pieces in vec(prop_oneof![8 => words(CHUNKS), 12 => select(CHUNKS).prop_map(|it| it.as_bytes().to_vec())], 0..4),
            cuts in cuts(),
        ) {
            chunked(&pieces.concat(), &cuts);
        }
    }
}
