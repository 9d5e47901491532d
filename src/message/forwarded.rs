//! Forwarding fields: who the client is, and what we tell the service about it.
//!
//! Anybody can write `X-Forwarded-For`. What a peer says about others is believed only when its address is among the
//! listener's `trusted_proxies`; the client is then the rightmost address that is not itself a trusted proxy, because
//! everything left of it was written by somebody we do not know. What an untrusted peer wrote is replaced, not
//! extended, so that no service behind us can be told a false address, host or scheme.
//!
//! `X-Forwarded-For/-Proto/-Host/-Port` are always written. `Forwarded` (RFC 7239) is extended where a trusted peer
//! uses it and not started by us: two fields that say the same are two fields that can differ.
//!
//! Everything that is the same for all requests of a connection is made once per connection, in [`Hop`].

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

/// Fields that we add to a request, behind its own. They are few and new, so they are not worth their places in the map
/// where they would be looked for, unless somebody edits them.
pub type Added = SmallVec<[(HeaderName, HeaderValue); 7]>;

/// Whether what a peer says about others is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its address is among the trusted proxies.
    Trusted,
    /// Anybody.
    Untrusted,
}

/// The networks whose forwarding fields are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Box<[IpNet]>);

/// The scheme in which a request came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As written in `X-Forwarded-Proto`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Addresses that are looked at in one request; more say nothing more, and each costs.
const MOST_HOPS: usize = 32;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

impl TrustedProxies {
    /// Trusts these networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Whether an address is in one of them. An IPv4 address seen through a dual-stack socket is an IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
    }

    /// Whether a peer with this address is believed; to be asked once per connection.
    pub fn trust(&self, peer: IpAddr) -> Trust {
        if !self.0.is_empty() && self.contains(peer) {
            Trust::Trusted
        } else {
            Trust::Untrusted
        }
    }

    /// Who sent the request: `peer`, or whom the chain of trusted proxies names.
    ///
    /// `X-Forwarded-For` is read where there is one, else `Forwarded`. An entry that is no address (`unknown`, an
    /// obfuscated name, nonsense) ends the walk: what stands left of it cannot be attributed.
    pub fn client_ip(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if self.trust(peer) == Trust::Untrusted {
            return peer;
        }
        if headers.contains_key(&FOR) {
            let entries =
                lines_from_the_right(headers, FOR).flat_map(|line| line.rsplit(|byte| *byte == b','));
            self.walk(peer, entries.map(address))
        } else if headers.contains_key(header::FORWARDED) {
            let elements = lines_from_the_right(headers, header::FORWARDED).flat_map(elements_from_the_right);
            let written = |element| {
                is_element(element)
                    .then(|| parameter(element, "for"))
                    .flatten()
                    .and_then(|value| address(&value))
            };
            self.walk(peer, elements.map(written))
        } else {
            peer
        }
    }

    fn walk(&self, peer: IpAddr, entries: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer;
        for entry in entries.take(MOST_HOPS) {
            let Some(ip) = entry else { break };
            client = ip;
            if !self.contains(ip) {
                break;
            }
        }
        client
    }
}

fn lines_from_the_right(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).iter().rev().map(HeaderValue::as_bytes)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(written: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(written.trim_ascii()).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(())?;
        return ip
            .parse::<Ipv6Addr>()
            .ok()
            .map(|ip| IpAddr::V6(ip).to_canonical());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let (ip, port) = text.split_once(':')?;
    is_port(port)
        .then(|| ip.parse::<std::net::Ipv4Addr>().ok())
        .flatten()
        .map(IpAddr::V4)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// The elements of one line of `Forwarded`, the rightmost first.
///
/// A comma in a quoted string separates nothing. But in a line that breaks the grammar somewhere, every comma does: a
/// proxy may have appended its element to a line with an open quote, which would swallow what it wrote.
fn elements_from_the_right(line: &[u8]) -> SmallVec<[&[u8]; MOST_HOPS]> {
    let mut elements = split_quoted(line, b',');
    if elements.iter().all(|element| is_element(element)) {
        elements.reverse();
        elements
    } else {
        line.rsplit(|byte| *byte == b',').take(MOST_HOPS).collect()
    }
}

/// Whether something is an element of `Forwarded` (RFC 7239 section 4): pairs of a name and a token or quoted string.
/// An address with colons or brackets may come without quotes, as many write it.
fn is_element(written: &[u8]) -> bool {
    let is_plain = |text: &[u8]| !text.iter().any(|byte| b" \t\"\\,;".contains(byte));
    split_quoted(written, b';').into_iter().all(|pair| {
        let pair = pair.trim_ascii();
        let Some(equals) = memchr::memchr(b'=', pair) else {
            return pair.is_empty();
        };
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        !name.is_empty() && is_plain(name) && (is_plain(value) || is_quoted(value))
    })
}

/// Whether a text is one quoted string, no more and no less.
fn is_quoted(text: &[u8]) -> bool {
    let Some((b'"', mut rest)) = text.split_first() else {
        return false;
    };
    loop {
        match rest {
            [b'"'] => return true,
            [b'"', ..] | [] | [b'\\'] => return false,
            [b'\\', _, behind @ ..] | [_, behind @ ..] => rest = behind,
        }
    }
}

/// Splits at a separator outside of quoted strings (RFC 9110 section 5.6.4); at most [`MOST_HOPS`] parts, the
/// rightmost ones.
fn split_quoted(line: &[u8], separator: u8) -> SmallVec<[&[u8]; MOST_HOPS]> {
    let mut parts: SmallVec<[&[u8]; MOST_HOPS]> = SmallVec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    let mut push = |part| {
        if parts.len() == MOST_HOPS {
            parts.remove(0);
        }
        parts.push(part);
    };
    for (at, &byte) in line.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if quoted && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            push(&line[start..at]);
            start = at + 1;
        }
    }
    push(&line[start..]);
    parts
}

/// A parameter of one `Forwarded` element, unquoted.
fn parameter(element: &[u8], name: &str) -> Option<SmallVec<[u8; 64]>> {
    split_quoted(element, b';').into_iter().find_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        if !pair[..equals].trim_ascii().eq_ignore_ascii_case(name.as_bytes()) {
            return None;
        }
        let value = pair[equals + 1..].trim_ascii();
        match value
            .strip_prefix(b"\"")
            .and_then(|value| value.strip_suffix(b"\""))
        {
            None => Some(SmallVec::from_slice(value)),
            Some(quoted) => {
                let mut plain = SmallVec::new();
                let mut bytes = quoted.iter();
                while let Some(&byte) = bytes.next() {
                    plain.push(if byte == b'\\' { *bytes.next()? } else { byte });
                }
                Some(plain)
            }
        }
    })
}

/// What we tell the service about one downstream connection. Made once per connection, cloned into each request
/// without copying.
#[derive(Clone, Debug)]
pub struct Hop {
    trust: Trust,
    address: IpAddr,
    scheme: Scheme,
    peer: HeaderValue,
    proto: HeaderValue,
    port: HeaderValue,
}

impl Hop {
    /// A connection from this peer to this port of ours. With the PROXY protocol, `peer` is the address it names.
    pub fn new(peer: IpAddr, scheme: Scheme, port: u16, trust: Trust) -> Self {
        let address = peer.to_canonical();
        let proto = HeaderValue::from_static(scheme.as_str());
        // The text of an address is always a field value; the empty one is never met.
        let text = HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static(""));
        Self {
            trust,
            address,
            scheme,
            peer: text,
            proto,
            port: HeaderValue::from(port),
        }
    }

    /// Whether the peer is believed.
    pub const fn trust(&self) -> Trust {
        self.trust
    }

    /// The peer.
    pub const fn peer(&self) -> IpAddr {
        self.address
    }

    /// The scheme of the connection.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Writes the forwarding fields of a request. `host` is the authority that the client asked for; it may be empty.
    pub fn write(&self, headers: &mut HeaderMap, added: &mut Added, host: &HeaderValue) {
        match self.trust {
            Trust::Untrusted => self.replace(headers, added, host),
            Trust::Trusted => self.extend(headers, added, host),
        }
    }

    fn replace(&self, headers: &mut HeaderMap, added: &mut Added, host: &HeaderValue) {
        // Others of the family (-Prefix, -Server, -Ssl, ...) are instructions to services as well.
        if headers
            .keys()
            .any(|name| is_ours(name) || *name == header::FORWARDED || *name == REAL_IP)
        {
            let names: SmallVec<[HeaderName; 8]> =
                headers.keys().filter(|name| is_ours(name)).cloned().collect();
            for name in &names {
                headers.remove(name);
            }
            headers.remove(header::FORWARDED);
            headers.remove(&REAL_IP);
        }
        added.push((FOR, self.peer.clone()));
        added.push((PROTO, self.proto.clone()));
        added.push((PORT, self.port.clone()));
        if !host.is_empty() {
            added.push((HOST, host.clone()));
        }
    }

    fn extend(&self, headers: &mut HeaderMap, added: &mut Added, host: &HeaderValue) {
        if headers.contains_key(header::FORWARDED) {
            let element = HeaderValue::from_str(&self.element(host.to_str().unwrap_or("")));
            if let Ok(element) = element {
                headers.append(header::FORWARDED, element);
            }
        }
        // A list may be spread over lines (RFC 9110 section 5.3), but services are known that read the first only.
        let mut list: SmallVec<[u8; 128]> = SmallVec::new();
        for line in headers.get_all(&FOR) {
            list.extend_from_slice(line.as_bytes().trim_ascii());
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(self.peer.as_bytes());
        let list = HeaderValue::from_bytes(&list).unwrap_or_else(|_unreachable| self.peer.clone());
        headers.remove(&FOR);
        added.push((FOR, list));
        for (name, value) in [(PROTO, &self.proto), (PORT, &self.port), (HOST, host)] {
            if !headers.contains_key(&name) && !value.is_empty() {
                added.push((name, value.clone()));
            }
        }
    }

    /// `for="[2001:db8::1]";host="shop.example:8080";proto=https`
    fn element(&self, host: &str) -> String {
        let mut out = String::with_capacity(64 + host.len());
        // RFC 7239 section 6: an IPv6 address has brackets, and what has brackets or colons is quoted.
        // Writing into a String cannot fail.
        let _infallible = match self.address {
            IpAddr::V4(ip) => write!(out, "for={ip}"),
            IpAddr::V6(ip) => write!(out, "for=\"[{ip}]\""),
        };
        if !host.is_empty() {
            out.push_str(";host=");
            push_token_or_quoted(&mut out, host);
        }
        out.push_str(";proto=");
        out.push_str(self.scheme.as_str());
        out
    }
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-")
}

fn push_token_or_quoted(out: &mut String, text: &str) {
    if text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    {
        out.push_str(text);
        return;
    }
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trusted() -> TrustedProxies {
        TrustedProxies::new(["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The fields as the service sees them.
    fn write(hop: &Hop, headers: &mut HeaderMap, host: &str) {
        let mut added = Added::new();
        hop.write(headers, &mut added, &host.parse().unwrap());
        for (name, value) in added {
            headers.append(name, value);
        }
    }

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_proxy_of_ours() {
        let of = |peer: &str, list: &[(&'static str, &str)]| {
            trusted().client_ip(ip(peer), &fields(list)).to_string()
        };
        let xff = "x-forwarded-for";
        assert_eq!(of("192.0.2.1", &[(xff, "203.0.113.9")]), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[(xff, "203.0.113.9")]), "203.0.113.9");
        assert_eq!(
            of("10.0.0.1", &[(xff, "1.1.1.1, 203.0.113.9 ,10.2.2.2")]),
            "203.0.113.9"
        );
        assert_eq!(
            of("10.0.0.1", &[(xff, "1.1.1.1"), (xff, "203.0.113.9, 10.2.2.2")]),
            "203.0.113.9"
        );
        assert_eq!(of("10.0.0.1", &[(xff, "10.1.1.1, 10.2.2.2")]), "10.1.1.1");
        assert_eq!(of("10.0.0.1", &[(xff, "1.1.1.1, unknown, 10.2.2.2")]), "10.2.2.2");
        assert_eq!(of("10.0.0.1", &[(xff, "")]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[(xff, "203.0.113.9:4711")]), "203.0.113.9");
        assert_eq!(of("10.0.0.1", &[(xff, "[2001:db8::1]:443")]), "2001:db8::1");
        assert_eq!(
            of("::ffff:10.0.0.1", &[(xff, "::ffff:203.0.113.9")]),
            "203.0.113.9"
        );
        let f = "forwarded";
        assert_eq!(
            of("10.0.0.1", &[(f, "for=203.0.113.9;proto=https")]),
            "203.0.113.9"
        );
        assert_eq!(
            of(
                "10.0.0.1",
                &[(f, "For=\"[2001:db8::1]:80\"; host=a, for=10.0.0.3")]
            ),
            "2001:db8::1"
        );
        assert_eq!(
            of("10.0.0.1", &[(f, "for=1.1.1.1, host=\"a,for=2.2.2.2\"")]),
            "10.0.0.1"
        );
        assert_eq!(of("10.0.0.1", &[(f, "for=_hidden, for=10.0.0.9")]), "10.0.0.9");
        // The field that is read wins; the other is not mixed in.
        assert_eq!(of("10.0.0.1", &[(f, "for=1.1.1.1"), (xff, "2.2.2.2")]), "2.2.2.2");
    }

    #[test]
    fn an_open_quote_cannot_swallow_what_a_proxy_appended() {
        let of = |line: &str| {
            trusted()
                .client_ip(ip("10.0.0.1"), &fields(&[("forwarded", line)]))
                .to_string()
        };
        for hostile in [
            "for=\"",
            "for=9.9.9.9;x=\"",
            "for=\"\\",
            "\"",
            "for=9.9.9.9, x=\"a",
            "a\"b\"c=\"",
        ] {
            for appended in [
                "for=203.0.113.9",
                "for=203.0.113.9;host=\"shop.example:8080\";proto=http",
                "for=203.0.113.9;host=\"a\\\"b\"",
                "for=\"203.0.113.9:80\"",
            ] {
                assert_eq!(
                    of(&format!("{hostile}, {appended}")),
                    "203.0.113.9",
                    "{hostile} | {appended}"
                );
            }
        }
    }

    #[test]
    fn what_a_stranger_says_about_others_is_replaced() {
        let hop = Hop::new(ip("192.0.2.1"), Scheme::Https, 443, Trust::Untrusted);
        let mut headers = fields(&[
            ("host", "shop.example"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-prefix", "/evil"),
            ("x-real-ip", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("accept", "*/*"),
        ]);
        write(&hop, &mut headers, "shop.example");
        let expected = fields(&[
            ("host", "shop.example"),
            ("accept", "*/*"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-host", "shop.example"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn what_a_trusted_proxy_says_is_extended() {
        let hop = Hop::new(ip("fd00::5"), Scheme::Http, 8080, Trust::Trusted);
        let mut headers = fields(&[
            ("host", "shop.example:8080"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.9"),
        ]);
        write(&hop, &mut headers, "shop.example:8080");
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 10.0.0.1, fd00::5");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop.example:8080");
        assert_eq!(headers["x-forwarded-port"], "8080");
        let elements: Vec<_> = headers.get_all("forwarded").iter().collect();
        assert_eq!(
            elements,
            [
                "for=203.0.113.9",
                "for=\"[fd00::5]\";host=\"shop.example:8080\";proto=http"
            ]
        );
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(a: [u8; 4], b: [u16; 8], host in "[a-z.:\"\\\\]{0,12}") {
            let all = TrustedProxies::new(["0.0.0.0/0", "::/0"].map(|network| network.parse().unwrap()));
            for peer in [IpAddr::from(a), IpAddr::from(b)] {
                let hop = Hop::new(peer, Scheme::Http, 80, Trust::Trusted);
                let mut headers = fields(&[("forwarded", "for=_start")]);
                headers.append("forwarded", HeaderValue::from_str(&hop.element(&host)).unwrap());
                prop_assert_eq!(all.client_ip(ip("10.0.0.1"), &headers), peer.to_canonical());
                headers.remove("forwarded");
                write(&hop, &mut headers, &host);
                prop_assert_eq!(all.client_ip(ip("10.0.0.1"), &headers), peer.to_canonical());
            }
        }

        #[test]
        fn no_value_can_disturb_it(values in proptest::collection::vec("[ -~]{0,60}|([\"\\\\,;=]|for|host){0,30}", 0..4)) {
            for name in ["x-forwarded-for", "forwarded"] {
                let list: Vec<_> = values.iter().map(|value| (name, value.as_str())).collect();
                let mut headers = fields(&list);
                let _any = trusted().client_ip(ip("10.0.0.1"), &headers);
                let hop = Hop::new(ip("10.0.0.1"), Scheme::Http, 80, Trust::Trusted);
                write(&hop, &mut headers, "h");
            }
        }
    }
}
