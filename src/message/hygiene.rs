//! What of a message ends at this proxy, and what a request must say about where it goes.
//!
//! Framing and connection management belong to one hop: we write our own, and nothing a peer wrote about them is
//! forwarded (RFC 9110 section 7.6.1). A `Connection` field may name further fields of its hop, but not fields that
//! others rely on: a client that sends `Connection: authorization` must not be able to strip what a check in front of
//! us added. Everything is found in one pass over the names, which a clean message pays and nothing more; removals
//! happen only for what the pass has seen.
//!
//! Who a request is for is said once: no `Host`, two of them, or one that contradicts the target is refused
//! (RFC 9112 section 3.2, RFC 9113 section 8.3.1), because two readers may pick different ones.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Version};
use smallvec::SmallVec;

use super::forwarded::Trust;
use crate::wire::http1::chunked::is_forbidden_trailer;

/// Why the head of a request is refused; it is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    /// Neither `Host` nor an authority in the target.
    #[error("the request names no host")]
    Missing,
    /// More than one `Host`, equal or not.
    #[error("the request has more than one Host")]
    Twice,
    /// `user:password@`.
    #[error("the host has user information")]
    UserInfo,
    /// Not a name, an address or a port.
    #[error("the host has characters that a host does not have")]
    Malformed,
    /// `Host` and the target name different ones.
    #[error("Host and the request target name different hosts")]
    Mismatch,
}

/// The one host of a request: the authority of the target where there is one, else `Host`.
///
/// Case is left as it came. An HTTP/1.0 request may have none, which gives the empty string.
///
/// # Errors
/// When there is none, more than one, or one that is not a host.
pub fn authority<'a>(
    target: Option<&'a Authority>,
    headers: &'a HeaderMap,
    version: Version,
) -> Result<&'a str, BadAuthority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadAuthority::Twice);
    }
    let host = host.map(|value| checked(value.as_bytes())).transpose()?;
    let target = target
        .map(|authority| checked(authority.as_str().as_bytes()))
        .transpose()?;
    match (target, host) {
        (Some(target), Some(host)) if same_host(target, host) => Ok(target),
        (Some(_), Some(_)) => Err(BadAuthority::Mismatch),
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (None, None) if version <= Version::HTTP_10 => Ok(""),
        (None, None) => Err(BadAuthority::Missing),
    }
}

fn checked(host: &[u8]) -> Result<&str, BadAuthority> {
    let malformed = BadAuthority::Malformed;
    // One pass over what nearly all hosts are made of: a name or an IPv4 address, and a port.
    let name = host.iter().take_while(|byte| is_name_byte(**byte)).count();
    if name > 0 && is_plain_port(&host[name..]) {
        return std::str::from_utf8(host).or(Err(malformed));
    }
    let Ok(text) = std::str::from_utf8(host) else {
        return Err(malformed);
    };
    let (name, port) = match text.strip_prefix('[') {
        Some(literal) => {
            let (address, rest) = literal.split_once(']').ok_or(malformed)?;
            address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_not_an_address| malformed)?;
            (address, rest)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if text.contains('@') {
        return Err(BadAuthority::UserInfo);
    }
    let is_literal = text.starts_with('[');
    let name_is_fine = is_literal || (!name.is_empty() && name.bytes().all(is_name_byte));
    let port_is_fine = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            digits.len() <= 5
                && digits.bytes().all(|b| b.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u16>().is_ok())
        });
    if name_is_fine && port_is_fine {
        Ok(text)
    } else {
        Err(malformed)
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Nothing, or a colon and digits that are a port; what is equally long compares as numbers do.
fn is_plain_port(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && (digits.len() <= 4 || (digits.len() == 5 && digits <= b"65535".as_slice()))
        }
        _ => false,
    }
}

/// Equal but for case and a port that is the default of a scheme.
fn same_host(a: &str, b: &str) -> bool {
    let (a, b) = (without_default_port(a), without_default_port(b));
    a.eq_ignore_ascii_case(b)
}

fn without_default_port(host: &str) -> &str {
    [":80", ":443", ":"]
        .iter()
        .find_map(|port| host.strip_suffix(port))
        .unwrap_or(host)
}

/// What one pass over the names has found. What it has not found is not there and need not be looked up, which is cheaper
/// than a dozen lookups that nearly always find nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u16);

impl Seen {
    const CONNECTION: Self = Self(1);
    const TE: Self = Self(1 << 1);
    const DISGUISED: Self = Self(1 << 2);
    /// One of [`HOP`]; which one is looked up when it is removed.
    const HOP: Self = Self(1 << 3);
    /// A field of ours.
    pub const OURS: Self = Self(1 << 4);
    /// A field of Envoy's.
    pub const ENVOY: Self = Self(1 << 5);
    /// `traceparent` or `tracestate`.
    pub const TRACE: Self = Self(1 << 6);
    /// `grpc-status` or `grpc-timeout`.
    pub const GRPC: Self = Self(1 << 7);

    /// Whether it has found one of these.
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    /// These or those.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Fields of one hop, beside `connection` and `te`.
const HOP: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    // The codec has answered it already (RFC 9110 section 10.1.1), or the upstream connection asks its own.
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
];

/// Prefix of the fields that are ours.
const OURS: &str = "x-bellwether-";

/// Goes through the names.
pub fn look(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for name in headers.keys() {
        let name = name.as_str();
        // The length tells nearly all names apart, so that a clean message costs a few instructions per field.
        seen = seen.or(match name.len() {
            2 if name == "te" => Seen::TE,
            10 if name == "connection" => Seen::CONNECTION,
            10 if name == "keep-alive" => Seen::HOP,
            10 if name == "tracestate" => Seen::TRACE,
            11 if name == "traceparent" => Seen::TRACE,
            11 if name == "grpc-status" => Seen::GRPC,
            12 if name == "grpc-timeout" => Seen::GRPC,
            6 if name == "expect" => Seen::HOP,
            7 if name == "upgrade" => Seen::HOP,
            14 if name == "http2-settings" => Seen::HOP,
            16 if name == "proxy-connection" => Seen::HOP,
            17 if name == "transfer-encoding" => Seen::HOP,
            18 if name == "proxy-authenticate" => Seen::HOP,
            19 if name == "proxy-authorization" => Seen::HOP,
            _ => Seen::default(),
        });
        if name.as_bytes()[0] == b'x' || name.as_bytes()[0] == b'f' {
            if name.starts_with(OURS) {
                seen = seen.or(Seen::OURS);
            } else if name.starts_with("x-envoy-") {
                seen = seen.or(Seen::ENVOY);
            } else if is_disguised(name) {
                seen = seen.or(Seen::DISGUISED);
            }
        }
    }
    seen
}

/// `x_forwarded_for` and the like: a service that maps `_` and `-` to the same (CGI, WSGI) would take it for the
/// field that only we write.
fn is_disguised(name: &str) -> bool {
    memchr::memchr(b'_', name.as_bytes()).is_some() && {
        let dashed = name.replace('_', "-");
        dashed.starts_with(OURS)
            || dashed.starts_with("x-forwarded-")
            || matches!(dashed.as_str(), "x-real-ip" | "x-request-id")
    }
}

/// The protocol that a request asks to switch to, when it really asks: HTTP/1.1, `Connection` names `upgrade`.
///
/// To be asked before [`clean_request`], which removes both fields.
pub fn upgrade_asked(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    seen: Seen,
) -> Option<HeaderValue> {
    if !seen.any(Seen::HOP) {
        return None;
    }
    let value = headers.get(header::UPGRADE)?;
    let named = options(headers.get_all(header::CONNECTION).iter())
        .any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    // RFC 9110 section 7.8: a server ignores it in HTTP/1.0. CONNECT is a tunnel of its own.
    (named && version == Version::HTTP_11 && method != Method::CONNECT).then(|| value.clone())
}

/// Removes from a request what ends here. `te: trailers` stays, because gRPC asks for it end to end.
pub fn clean_request(headers: &mut HeaderMap, peer: Trust, seen: Seen) {
    remove_hop(headers, seen);
    if seen.any(Seen::TE) {
        keep_only_trailers(headers);
    }
    if peer == Trust::Untrusted && seen.any(Seen::OURS.or(Seen::DISGUISED)) {
        remove_where(headers, |name| {
            name.as_str().starts_with(OURS) || is_disguised(name.as_str())
        });
    }
}

/// Removes from a response what ends here. Fields of ours that an upstream sends stay: it may be one of us.
pub fn clean_response(headers: &mut HeaderMap, seen: Seen) {
    remove_hop(headers, seen);
    if seen.any(Seen::TE) {
        headers.remove(header::TE);
    }
}

fn remove_hop(headers: &mut HeaderMap, seen: Seen) {
    if seen.any(Seen::CONNECTION)
        && let Entry::Occupied(connection) = headers.entry(header::CONNECTION)
    {
        let mut named = SmallVec::<[HeaderName; 4]>::new();
        // In nearly every answer it names nothing.
        if !connection.iter().all(is_about_itself) {
            let fields = options(connection.iter()).filter_map(|option| HeaderName::from_bytes(option).ok());
            // The others are removed below if they are fields at all.
            named.extend(fields.filter(|name| *name != header::TE && !is_protected(name.as_str())));
        }
        connection.remove();
        for name in &named {
            headers.remove(name);
        }
    }
    if seen.any(Seen::HOP) {
        for name in &HOP {
            headers.remove(name);
        }
    }
}

/// Whether a value of `Connection` says only whether the connection goes on.
fn is_about_itself(value: &HeaderValue) -> bool {
    let option = value.as_bytes();
    option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")
}

/// The options that these values of `Connection` name.
fn options<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> impl Iterator<Item = &'a [u8]> {
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

/// Fields that `Connection` cannot name away: they say what the message is, who sent it and for whom.
fn is_protected(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "authorization"
            | "cookie"
            | "set-cookie"
            | "date"
            | "via"
            | "forwarded"
            | "origin"
            | "range"
            | "trailer"
            | "cache-control"
            | "idempotency-key"
            | "traceparent"
            | "tracestate"
            | "grpc-timeout"
            | "x-real-ip"
            | "x-request-id"
    ) || name.starts_with("content-")
        || name.starts_with("x-forwarded-")
        || name.starts_with(OURS)
        || name.starts_with("if-")
}

fn keep_only_trailers(headers: &mut HeaderMap) {
    let Entry::Occupied(mut te) = headers.entry(header::TE) else {
        return;
    };
    let wanted = te
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    if wanted {
        te.insert(HeaderValue::from_static("trailers"));
    } else {
        te.remove();
    }
}

fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: SmallVec<[HeaderName; 8]> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
}

/// Removes from a trailer section what must not come there: what [`is_forbidden_trailer`] names, and what a service
/// may take for it.
pub fn filter_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| {
        is_forbidden_trailer(name) || is_disguised(name.as_str())
    });
}

/// Cuts spaces and tabs off both ends of all values. HTTP/1.1 parsers do it; h2 does not, and the value would be
/// written so to an HTTP/1.1 upstream, which reads another one.
pub fn trim_values(headers: &mut HeaderMap) {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for value in headers.values_mut() {
        let bytes = value.as_bytes();
        if is_blank(bytes.first()) || is_blank(bytes.last()) {
            let sensitive = value.is_sensitive();
            if let Ok(mut trimmed) = HeaderValue::from_bytes(bytes.trim_ascii()) {
                trimmed.set_sensitive(sensitive);
                *value = trimmed;
            }
        }
    }
}

/// Makes one `cookie` of the several that HTTP/2 may split it into (RFC 9113 section 8.2.3); other protocols know only
/// one, and a service that reads the first only would lose the rest.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let sensitive = first.is_sensitive();
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Made of values and two printable bytes, so it is one.
    if let Ok(mut joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        joined.set_sensitive(sensitive);
        headers.insert(header::COOKIE, joined);
    }
}

/// This proxy's line of `Via` (RFC 9110 section 7.6.3), with the version in which the message was received. It stands
/// behind those of others.
pub fn via(received: Version) -> (HeaderName, HeaderValue) {
    let entry = match received {
        Version::HTTP_2 => "2 bellwether",
        Version::HTTP_10 => "1.0 bellwether",
        _ => "1.1 bellwether",
    };
    (header::VIA, HeaderValue::from_static(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(headers: &mut HeaderMap, peer: Trust) {
        let seen = look(headers);
        clean_request(headers, peer, seen);
    }
    use proptest::prelude::*;

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn crumbs_of_a_cookie_become_one() {
        let mut headers = fields(&[
            ("cookie", "a=1"),
            ("accept", "*/*"),
            ("cookie", "b=2"),
            ("cookie", "c=3"),
        ]);
        join_cookies(&mut headers);
        assert_eq!(headers, fields(&[("cookie", "a=1; b=2; c=3"), ("accept", "*/*")]));
    }

    #[test]
    fn fields_of_one_hop_end_here() {
        let mut headers = fields(&[
            ("accept", "*/*"),
            ("connection", "keep-alive, X-Hop , close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("te", "gzip"),
            ("trailer", "x-sum"),
        ]);
        clean(&mut headers, Trust::Untrusted);
        assert_eq!(names(&headers), ["accept", "trailer"]);
    }

    #[test]
    fn connection_cannot_name_away_what_others_rely_on() {
        let mut headers = fields(&[
            (
                "connection",
                "host, authorization, content-length, x-forwarded-for, cookie, x-own, te, \"bad name\"",
            ),
            ("host", "a"),
            ("authorization", "b"),
            ("content-length", "0"),
            ("x-forwarded-for", "192.0.2.1"),
            ("cookie", "c"),
            ("x-own", "d"),
            ("te", "trailers, deflate;q=0.5"),
        ]);
        clean(&mut headers, Trust::Untrusted);
        assert_eq!(
            names(&headers),
            [
                "authorization",
                "content-length",
                "cookie",
                "host",
                "te",
                "x-forwarded-for"
            ]
        );
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn private_fields_are_believed_from_trusted_peers_only() {
        let sent = fields(&[
            ("x-bellwether-deadline-ms", "1"),
            ("x_bellwether_debug", "1"),
            ("x-forwarded_for", "127.0.0.1"),
            ("x_other", "kept"),
        ]);
        let mut headers = sent.clone();
        clean(&mut headers, Trust::Untrusted);
        assert_eq!(names(&headers), ["x_other"]);
        let mut headers = sent.clone();
        clean(&mut headers, Trust::Trusted);
        assert_eq!(headers, sent);
    }

    #[test]
    fn whatever_is_looked_up_only_if_it_was_seen_is_seen() {
        use crate::message::reply::REJECTED;
        use crate::message::{deadline, fail, grpc, trace};
        let ours = Seen::OURS;
        let looked_up = [
            (REJECTED, ours),
            (fail::FAIL, ours),
            (deadline::DEADLINE, ours),
            (HeaderName::from_static("x-bellwether-attempt"), ours),
            (HeaderName::from_static("x-bellwether-priority"), ours),
            (HeaderName::from_static("x-bellwether-debug"), ours),
            (
                HeaderName::from_static("x-envoy-immediate-health-check-fail"),
                Seen::ENVOY,
            ),
            (
                HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
                Seen::ENVOY,
            ),
            (grpc::GRPC_TIMEOUT, Seen::GRPC),
            (HeaderName::from_static("grpc-status"), Seen::GRPC),
            (trace::TRACEPARENT, Seen::TRACE),
            (trace::TRACESTATE, Seen::TRACE),
            (header::UPGRADE, Seen::HOP),
        ];
        for (name, seen) in looked_up {
            let mut headers = fields(&[("host", "a"), ("accept", "*/*")]);
            assert_eq!(look(&headers), Seen::default());
            headers.insert(name.clone(), HeaderValue::from_static("1"));
            assert!(look(&headers).any(seen), "{name}");
        }
    }

    #[test]
    fn a_response_is_cleaned_too() {
        let mut headers = fields(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("proxy-authenticate", "Basic"),
            ("transfer-encoding", "chunked"),
            ("x-bellwether-epoch", "3"),
            ("set-cookie", "a=b"),
        ]);
        {
            let seen = look(&headers);
            clean_response(&mut headers, seen);
        };
        assert_eq!(names(&headers), ["set-cookie", "x-bellwether-epoch"]);
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_fields_or_not_at_all() {
        let asks = fields(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            upgrade_asked(&Method::GET, Version::HTTP_11, &asks, look(&asks)).unwrap(),
            "websocket"
        );
        assert_eq!(
            upgrade_asked(&Method::GET, Version::HTTP_10, &asks, look(&asks)),
            None
        );
        assert_eq!(
            upgrade_asked(&Method::CONNECT, Version::HTTP_11, &asks, look(&asks)),
            None
        );
        let alone = fields(&[("upgrade", "websocket")]);
        assert_eq!(
            upgrade_asked(&Method::GET, Version::HTTP_11, &alone, look(&alone)),
            None
        );
    }

    #[test]
    fn a_request_names_one_host() {
        let of = |target: Option<&str>, hosts: &[&'static str], version| {
            let headers: HeaderMap = hosts
                .iter()
                .map(|h| (header::HOST, HeaderValue::from_static(h)))
                .collect();
            let target: Option<Authority> = target.map(|t| t.parse().unwrap());
            authority(target.as_ref(), &headers, version).map(str::to_owned)
        };
        let h1 = Version::HTTP_11;
        assert_eq!(of(None, &["shop.example:8080"], h1).unwrap(), "shop.example:8080");
        assert_eq!(of(None, &["[::1]:80"], h1).unwrap(), "[::1]:80");
        assert_eq!(
            of(Some("Shop.example"), &["shop.EXAMPLE:80"], h1).unwrap(),
            "Shop.example"
        );
        assert_eq!(of(Some("a"), &[], Version::HTTP_2).unwrap(), "a");
        assert_eq!(of(None, &[], Version::HTTP_10).unwrap(), "");
        assert_eq!(of(None, &[], h1), Err(BadAuthority::Missing));
        assert_eq!(of(None, &[], Version::HTTP_2), Err(BadAuthority::Missing));
        assert_eq!(of(None, &["a", "a"], h1), Err(BadAuthority::Twice));
        assert_eq!(of(Some("a"), &["b"], h1), Err(BadAuthority::Mismatch));
        assert_eq!(of(Some("a:8080"), &["a"], h1), Err(BadAuthority::Mismatch));
        assert_eq!(of(None, &["user@a"], h1), Err(BadAuthority::UserInfo));
        assert_eq!(of(None, &["user:pw@a"], h1), Err(BadAuthority::UserInfo));
        assert_eq!(of(Some("u@a"), &[], h1), Err(BadAuthority::UserInfo));
        for bad in [
            "", " ", "a b", "a/b", "a,b", "a:b", "a:99999", "a:1:2", "[::1", "[::1]x", "[x]", "a\tb", ":80",
            "a%41",
        ] {
            assert_eq!(of(None, &[bad], h1), Err(BadAuthority::Malformed), "{bad}");
        }
    }

    #[test]
    fn trailers_describe_nothing_that_was_already_decided() {
        let mut trailers = fields(&[
            ("grpc-status", "0"),
            ("grpc-message", "ok"),
            ("x-sum", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("host", "evil"),
            ("authorization", "x"),
            ("cookie", "x"),
            ("x-forwarded-for", "x"),
            ("x-bellwether-outcome", "x"),
            ("connection", "x"),
            ("te", "x"),
        ]);
        filter_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["grpc-message", "grpc-status", "x-sum"]);
    }

    #[test]
    fn values_lose_their_outer_blanks() {
        let mut headers = fields(&[("a", " x\t"), ("b", "y z"), ("c", "  ")]);
        trim_values(&mut headers);
        assert_eq!(headers, fields(&[("a", "x"), ("b", "y z"), ("c", "")]));
    }

    #[test]
    fn via_says_how_the_message_came() {
        let mut headers = fields(&[("via", "1.0 fred")]);
        let (name, value) = via(Version::HTTP_2);
        headers.append(name, value);
        let entries: Vec<_> = headers.get_all("via").iter().collect();
        assert_eq!(entries, ["1.0 fred", "2 bellwether"]);
    }

    proptest! {
        #[test]
        fn nothing_of_the_hop_survives(
            list in proptest::collection::vec(("[a-z_-]{1,20}|te|connection|keep-alive|upgrade|expect|x-bellwether-[a-z]|proxy-connection", "[ -~]{0,20}"), 0..12),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &list {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            clean(&mut headers, Trust::Untrusted);
            for name in headers.keys() {
                prop_assert!(!HOP.contains(name) && name != header::CONNECTION && !name.as_str().starts_with(OURS));
            }
            if let Some(te) = headers.get(header::TE) {
                prop_assert_eq!(te, "trailers");
            }
            let once = headers.clone();
            clean(&mut headers, Trust::Untrusted);
            prop_assert_eq!(once, headers);
        }

        #[test]
        fn a_host_that_passes_is_harmless(host in "[ -~]{0,20}") {
            if let Ok(text) = checked(host.as_bytes()) {
                prop_assert!(!text.contains(['/', '@', ' ', ',', '\\', '?', '#', '%', '*']));
            }
        }
    }
}
