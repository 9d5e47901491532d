//! Writing heads and chunks.
//!
//! What is written about framing and connection is ours alone: a message is rebuilt, not copied, so nothing that a
//! peer wrote about the one hop decides anything on the other. Values come from `HeaderMap`, whose type admits no CR,
//! LF or NUL; there is no other way for bytes of a peer into a head than the target, which is checked.
//!
//! Invariants: what is written parses with [`super::head`]; each head holds at most one of `content-length` and
//! `transfer-encoding`, and at most one `connection`.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use super::chunked::is_forbidden_trailer;
use super::head::Framing;

/// What a head says about the connection that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'a> {
    /// It stays: the default of HTTP/1.1, a word in HTTP/1.0.
    KeepAlive,
    /// It ends with this message.
    Close,
    /// It changes to this protocol, or is asked to: writes `upgrade` as well.
    Upgrade(&'a HeaderValue),
}

/// Writes a request head, HTTP/1.1.
///
/// `target` is written as given; it must be a target that [`super::head::parse_request`] accepts, and `headers` must
/// hold `host`. A `te` field in `headers` brings its connection option with it (RFC 9110 §10.1.4). `added` are further
/// fields, end to end, that are not worth a place in a map.
pub fn request_head(
    out: &mut BytesMut,
    method: &Method,
    target: &[u8],
    headers: &HeaderMap,
    added: &[(HeaderName, HeaderValue)],
    framing: Framing,
    connection: Connection<'_>,
) {
    debug_assert!(
        framing != Framing::UntilClose,
        "a request cannot end with its connection"
    );
    debug_assert!(
        target.iter().all(u8::is_ascii_graphic),
        "a target holds neither spaces nor control bytes"
    );
    let room = added.iter().fold(size_hint(headers), |sum, (name, value)| {
        sum + field_len(name, value)
    });
    out.reserve(room + method.as_str().len() + target.len());
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target);
    out.put_slice(b" HTTP/1.1\r\n");
    let seen = put_fields(out, headers);
    for (name, value) in added {
        put_field(out, name, value);
    }
    put_framing(out, framing);
    put_connection(out, connection, Version::HTTP_11, seen);
    out.put_slice(b"\r\n");
}

/// Writes a final response head, or a 101.
///
/// `version` goes into the status line; with HTTP/1.0 a connection that stays is said to. `framing` is what the head
/// announces: [`Framing::Length`] for an answer to `HEAD` whose body would have been that long, [`Framing::None`] for
/// 101, 204 and 304. [`Framing::UntilClose`] announces nothing and closes. `date` is written unless `headers` hold
/// one.
pub fn response_head(
    out: &mut BytesMut,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    connection: Connection<'_>,
    date: Option<&[u8]>,
) {
    debug_assert!(
        version != Version::HTTP_10 || framing != Framing::Chunked,
        "HTTP/1.0 knows no chunks: end with the connection"
    );
    out.reserve(size_hint(headers));
    put_status(out, version, status);
    let seen = put_fields(out, headers);
    if let (Some(date), false) = (date, seen & SEEN_DATE != 0) {
        debug_assert!(HeaderValue::from_bytes(date).is_ok(), "a date is text");
        out.put_slice(b"date: ");
        out.put_slice(date);
        out.put_slice(b"\r\n");
    }
    put_framing(out, framing);
    let connection = if framing == Framing::UntilClose {
        Connection::Close
    } else {
        connection
    };
    put_connection(out, connection, version, 0);
    out.put_slice(b"\r\n");
}

/// Writes an informational response other than 101, always HTTP/1.1.
pub fn informational(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    debug_assert!(
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS,
        "not informational"
    );
    out.reserve(size_hint(headers));
    put_status(out, Version::HTTP_11, status);
    put_fields(out, headers);
    out.put_slice(b"\r\n");
}

/// Writes what stands before the `length` bytes of a chunk; [`chunk_suffix`] belongs behind them.
///
/// A chunk of no bytes would end the body: nothing may be written for it.
pub fn chunk_prefix(out: &mut BytesMut, length: usize) {
    debug_assert!(length > 0, "an empty chunk ends the body");
    out.reserve(18);
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[(length >> (digit * 4)) & 15]);
    }
    out.put_slice(b"\r\n");
}

/// Writes what stands behind the bytes of a chunk.
pub fn chunk_suffix(out: &mut BytesMut) {
    out.extend_from_slice(b"\r\n");
}

/// Writes the chunk that ends a body, with its trailers. Fields that must not come in a trailer are left out.
pub fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        out.reserve(size_hint(trailers));
        for (name, value) in trailers {
            if !is_forbidden_trailer(name) {
                put_field(out, name, value);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

const SEEN_DATE: u8 = 1;
const SEEN_TE: u8 = 2;

/// Writes all fields but those about framing and connection, and says which of some others there were.
fn put_fields(out: &mut BytesMut, headers: &HeaderMap) -> u8 {
    let mut seen = 0;
    for (name, value) in headers {
        // By length first: most fields are told from the interesting ones by that alone.
        match name.as_str().len() {
            2 if *name == header::TE => seen |= SEEN_TE,
            4 if *name == header::DATE => seen |= SEEN_DATE,
            7 if *name == header::UPGRADE => continue,
            10 if *name == header::CONNECTION || name.as_str() == "keep-alive" => continue,
            14 if *name == header::CONTENT_LENGTH => continue,
            16 if name.as_str() == "proxy-connection" => continue,
            17 if *name == header::TRANSFER_ENCODING => continue,
            _ => {}
        }
        put_field(out, name, value);
    }
    seen
}

#[inline]
fn put_field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_status(out: &mut BytesMut, version: Version, status: StatusCode) {
    out.put_slice(if version == Version::HTTP_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.put_slice(b"\r\n");
}

fn put_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(length).as_bytes());
            out.put_slice(b"\r\n");
        }
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
}

fn put_connection(out: &mut BytesMut, connection: Connection<'_>, version: Version, seen: u8) {
    let te = seen & SEEN_TE != 0;
    out.put_slice(match (connection, te) {
        (Connection::KeepAlive, false) if version == Version::HTTP_10 => b"connection: keep-alive\r\n",
        (Connection::KeepAlive, false) => b"",
        (Connection::KeepAlive, true) => b"connection: te\r\n",
        (Connection::Close, false) => b"connection: close\r\n",
        (Connection::Close, true) => b"connection: close, te\r\n",
        (Connection::Upgrade(_), false) => b"connection: upgrade\r\n",
        (Connection::Upgrade(_), true) => b"connection: upgrade, te\r\n",
    });
    if let Connection::Upgrade(protocol) = connection {
        put_field(out, &header::UPGRADE, protocol);
    }
}

/// About the bytes of a head with these fields, a little too many rather than too few.
fn size_hint(headers: &HeaderMap) -> usize {
    const START_FRAMING_DATE_CONNECTION: usize = 192;
    headers
        .iter()
        .fold(START_FRAMING_DATE_CONNECTION, |sum, (name, value)| {
            sum + field_len(name, value)
        })
}

fn field_len(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + b": \r\n".len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    const LIES: [(&str, &str); 7] = [
        ("content-length", "99"),
        ("transfer-encoding", "gzip"),
        ("connection", "close, x"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "h2c"),
        ("x-a", "b"),
    ];

    #[test]
    fn framing_and_connection_are_ours_alone() {
        let request = |framing, connection| {
            written(|out| request_head(out, &Method::POST, b"/a", &map(&LIES), &[], framing, connection))
        };
        assert_eq!(
            request(Framing::None, Connection::KeepAlive),
            "POST /a HTTP/1.1\r\nx-a: b\r\n\r\n"
        );
        assert_eq!(
            request(Framing::Length(0), Connection::Close),
            "POST /a HTTP/1.1\r\nx-a: b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(
            request(
                Framing::Chunked,
                Connection::Upgrade(&HeaderValue::from_static("websocket"))
            ),
            "POST /a HTTP/1.1\r\nx-a: b\r\ntransfer-encoding: chunked\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
    }

    #[test]
    fn te_brings_its_connection_option() {
        let text = written(|out| {
            let headers = map(&[("te", "trailers")]);
            request_head(
                out,
                &Method::GET,
                b"/",
                &headers,
                &[(header::VIA, HeaderValue::from_static("1.1 us"))],
                Framing::None,
                Connection::Close,
            );
        });
        assert_eq!(
            text,
            "GET / HTTP/1.1\r\nte: trailers\r\nvia: 1.1 us\r\nconnection: close, te\r\n\r\n"
        );
    }

    #[test]
    fn a_response_states_what_its_version_does_not_imply() {
        let response = |version, framing, connection| {
            written(|out| {
                response_head(
                    out,
                    version,
                    StatusCode::OK,
                    &map(&LIES),
                    framing,
                    connection,
                    Some(b"now"),
                );
            })
        };
        assert_eq!(
            response(Version::HTTP_11, Framing::Length(5), Connection::KeepAlive),
            "HTTP/1.1 200 OK\r\nx-a: b\r\ndate: now\r\ncontent-length: 5\r\n\r\n"
        );
        assert_eq!(
            response(Version::HTTP_10, Framing::Length(5), Connection::KeepAlive),
            "HTTP/1.0 200 OK\r\nx-a: b\r\ndate: now\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            response(Version::HTTP_11, Framing::UntilClose, Connection::KeepAlive),
            "HTTP/1.1 200 OK\r\nx-a: b\r\ndate: now\r\nconnection: close\r\n\r\n"
        );
    }

    #[test]
    fn the_date_of_the_upstream_stays_and_an_unknown_status_needs_no_reason() {
        let text = written(|out| {
            let status = StatusCode::from_u16(599).unwrap();
            let headers = map(&[("date", "then")]);
            response_head(
                out,
                Version::HTTP_11,
                status,
                &headers,
                Framing::None,
                Connection::KeepAlive,
                Some(b"now"),
            );
        });
        assert_eq!(text, "HTTP/1.1 599 \r\ndate: then\r\n\r\n");
    }

    #[test]
    fn informational_heads_carry_their_fields() {
        let text = written(|out| informational(out, StatusCode::EARLY_HINTS, &map(&[("link", "</a>")])));
        assert_eq!(text, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        assert_eq!(
            written(|out| informational(out, StatusCode::CONTINUE, &HeaderMap::new())),
            "HTTP/1.1 100 Continue\r\n\r\n"
        );
    }

    #[test]
    fn chunks_have_lower_case_sizes_without_zeros() {
        for (length, expected) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (4096, "1000\r\n"),
            (usize::MAX, "ffffffffffffffff\r\n"),
        ] {
            assert_eq!(written(|out| chunk_prefix(out, length)), expected);
        }
        assert_eq!(written(|out| last_chunk(out, None)), "0\r\n\r\n");
        let trailers = map(&[("grpc-status", "0"), ("content-length", "5"), ("host", "a")]);
        assert_eq!(
            written(|out| last_chunk(out, Some(&trailers))),
            "0\r\ngrpc-status: 0\r\n\r\n"
        );
    }
}
