//! Keys: the part of a request that decides which side of a split, which endpoint of a ring or which bucket it gets.
//!
//! A key becomes 64 bits by XXH3, whose values are fixed for all time and all machines: two proxies, and a proxy
//! before and after an update, put the same client on the same side. The hash is not a secret and not a defence; a
//! client that wants another side can have it by sending another cookie, with or without knowing the hash.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};
use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// One part of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// `client_ip`.
    ClientIp,
    /// `host`: without regard to case, port included.
    Host,
    /// `path`, without the query.
    Path,
    /// `route`: the name of the route.
    Route,
    /// `tls_peer`: the identity in the client's certificate.
    TlsPeer,
    /// `header:x-user`: the first such field.
    Header(HeaderName),
    /// `cookie:sid`.
    Cookie(String),
    /// `query:tenant`: the first such parameter, decoded.
    Query(String),
}

/// Why a key is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashKeyError {
    /// No such part.
    #[error(
        "no such key; write client_ip, host, path, route, tls_peer, header:NAME, cookie:NAME or query:NAME"
    )]
    Unknown,
    /// `header:`, `cookie:` or `query:` with nothing after it.
    #[error("a name is missing after the colon")]
    NoName,
    /// Not a field name.
    #[error("not a header name")]
    HeaderName,
}

/// Where the parts are read from.
#[derive(Clone, Copy, Debug)]
pub struct KeySource<'a> {
    /// The client after trusted proxies.
    pub client_ip: IpAddr,
    /// The authority.
    pub host: &'a str,
    /// The normalised path.
    pub path: &'a str,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// The name of the matched route.
    pub route: &'a str,
    /// The identity in the client's certificate.
    pub tls_peer: Option<&'a str>,
    /// The request's fields.
    pub headers: &'a HeaderMap,
}

impl HashKey {
    /// Reads a key as written in the file.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(written: &str) -> Result<Self, HashKeyError> {
        let (kind, name) = match written.split_once(':') {
            Some((kind, name)) => (kind, Some(name)),
            None => (written, None),
        };
        match (kind, name) {
            ("client_ip", None) => Ok(Self::ClientIp),
            ("host", None) => Ok(Self::Host),
            ("path", None) => Ok(Self::Path),
            ("route", None) => Ok(Self::Route),
            ("tls_peer", None) => Ok(Self::TlsPeer),
            ("header" | "cookie" | "query", None | Some("")) => Err(HashKeyError::NoName),
            ("header", Some(name)) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => Ok(Self::Header(name)),
                Err(_) => Err(HashKeyError::HeaderName),
            },
            ("cookie", Some(name)) => Ok(Self::Cookie(name.to_owned())),
            ("query", Some(name)) => Ok(Self::Query(name.to_owned())),
            _ => Err(HashKeyError::Unknown),
        }
    }

    /// The hash of this part, or `None` when the request does not have it.
    pub fn hash(&self, source: &KeySource<'_>) -> Option<u64> {
        self.read(source, xxh3_64)
    }

    /// Hands the bytes of this part to `read`, or says `None` when the request does not have it.
    fn read(&self, source: &KeySource<'_>, read: impl FnOnce(&[u8]) -> u64) -> Option<u64> {
        match self {
            Self::ClientIp => Some(match source.client_ip.to_canonical() {
                IpAddr::V4(ip) => read(&ip.octets()),
                IpAddr::V6(ip) => read(&ip.octets()),
            }),
            Self::Host => (!source.host.is_empty()).then(|| {
                let mut lower = SmallVec::<[u8; 128]>::from_slice(source.host.as_bytes());
                lower.make_ascii_lowercase();
                read(&lower)
            }),
            Self::Path => Some(read(source.path.as_bytes())),
            Self::Route => Some(read(source.route.as_bytes())),
            Self::TlsPeer => source.tls_peer.map(|peer| read(peer.as_bytes())),
            Self::Header(name) => source.headers.get(name).map(|value| read(value.as_bytes())),
            Self::Cookie(name) => cookie(source.headers, name).map(read),
            Self::Query(name) => {
                let (mut read, mut hash) = (Some(read), None);
                query_values(source.query.unwrap_or_default(), name, |value| {
                    hash = read.take().map(|read| read(value));
                    true
                });
                hash
            }
        }
    }
}

impl std::fmt::Display for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClientIp => f.write_str("client_ip"),
            Self::Host => f.write_str("host"),
            Self::Path => f.write_str("path"),
            Self::Route => f.write_str("route"),
            Self::TlsPeer => f.write_str("tls_peer"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

/// The hash of the first key that the request has: "by cookie, else by address". For splits, rings and sessions.
pub fn first_hash(keys: &[HashKey], source: &KeySource<'_>) -> Option<u64> {
    keys.iter().find_map(|key| key.hash(source))
}

/// One hash of all keys together; an absent part counts as such. For limits "per tenant and address".
pub fn combined_hash(keys: &[HashKey], source: &KeySource<'_>) -> u64 {
    keys.iter().fold(0, |seed, key| match key.hash(source) {
        Some(hash) => xxh3_64_with_seed(&hash.to_le_bytes(), seed),
        None => xxh3_64_with_seed(b"", seed),
    })
}

/// Which bucket of a rate limit a request draws from: all keys together, with a seed that clients do not know. Otherwise
/// one could make up a value that shares the bucket of somebody else, and empty it. An IPv6 client is its /64: that is
/// what one customer has.
pub fn bucket_hash(keys: &[HashKey], source: &KeySource<'_>, seed: u64) -> u64 {
    keys.iter().fold(seed, |seed, key| {
        let hash = match (key, source.client_ip.to_canonical()) {
            (HashKey::ClientIp, IpAddr::V6(ip)) => Some(xxh3_64_with_seed(&ip.octets()[..8], seed)),
            _ => key.read(source, |bytes| xxh3_64_with_seed(bytes, seed)),
        };
        // What is not there is a value of its own.
        hash.unwrap_or_else(|| xxh3_64_with_seed(&[], !seed))
    })
}

/// The value of a cookie (RFC 6265 section 4.2.1), without surrounding quotes.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            pair.trim_ascii()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
        .map(|value| {
            value
                .strip_prefix(b"\"")
                .and_then(|v| v.strip_suffix(b"\""))
                .unwrap_or(value)
        })
}

/// Shows every value of a query parameter, decoded, until `visit` says that it has seen enough; whether it did.
pub(super) fn query_values(query: &str, name: &str, mut visit: impl FnMut(&[u8]) -> bool) -> bool {
    query.split('&').any(|pair| {
        let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
        !pair.is_empty()
            && decoded(raw_name.as_bytes(), |decoded| decoded == name.as_bytes())
            && decoded(raw_value.as_bytes(), &mut visit)
    })
}

/// Hands the form-decoded bytes to `read`; copies only when there is something to decode.
fn decoded(raw: &[u8], read: impl FnOnce(&[u8]) -> bool) -> bool {
    if memchr::memchr2(b'%', b'+', raw).is_none() {
        return read(raw);
    }
    let mut spaces = SmallVec::<[u8; 128]>::from_slice(raw);
    spaces
        .iter_mut()
        .filter(|byte| **byte == b'+')
        .for_each(|byte| *byte = b' ');
    let bytes: SmallVec<[u8; 128]> = percent_encoding::percent_decode(&spaces).collect();
    read(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> KeySource<'a> {
        KeySource {
            client_ip: [192, 0, 2, 7].into(),
            host: "Shop.example",
            path: "/a",
            query,
            route: "orders",
            tls_peer: None,
            headers,
        }
    }

    #[test]
    fn a_key_is_read_as_written() {
        for written in [
            "client_ip",
            "host",
            "path",
            "route",
            "tls_peer",
            "header:x-user",
            "cookie:sid",
            "query:q",
        ] {
            assert_eq!(HashKey::parse(written).unwrap().to_string(), written);
        }
        assert_eq!(HashKey::parse("ip"), Err(HashKeyError::Unknown));
        assert_eq!(HashKey::parse("client_ip:x"), Err(HashKeyError::Unknown));
        assert_eq!(HashKey::parse("cookie:"), Err(HashKeyError::NoName));
        assert_eq!(HashKey::parse("header"), Err(HashKeyError::NoName));
        assert_eq!(HashKey::parse("header:a b"), Err(HashKeyError::HeaderName));
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        // Values of XXH3-64; if this fails, clients change sides at the next update.
        let mut headers = HeaderMap::new();
        headers.append("cookie", "a=1; sid=\"abc\"".parse().unwrap());
        headers.append("cookie", "other=2".parse().unwrap());
        let source = with(&headers, Some("q=a%2Bb&q=second"));
        assert_eq!(HashKey::Cookie("sid".into()).hash(&source), Some(xxh3_64(b"abc")));
        assert_eq!(HashKey::Cookie("other".into()).hash(&source), Some(xxh3_64(b"2")));
        assert_eq!(HashKey::Cookie("si".into()).hash(&source), None);
        assert_eq!(HashKey::Query("q".into()).hash(&source), Some(xxh3_64(b"a+b")));
        assert_eq!(HashKey::Host.hash(&source), Some(xxh3_64(b"shop.example")));
        assert_eq!(xxh3_64(b"abc"), 0x78AF_5F94_892F_3950);
    }

    #[test]
    fn a_bucket_is_one_value_of_all_keys_and_a_customer_of_ipv6_is_one_client() {
        let (mut one, mut other) = (HeaderMap::new(), HeaderMap::new());
        one.append("x-tenant", "acme".parse().unwrap());
        other.append("x-tenant", "zeta".parse().unwrap());
        let tenant = [HashKey::Header(HeaderName::from_static("x-tenant"))];
        let of = |headers: &HeaderMap, seed| bucket_hash(&tenant, &with(headers, None), seed);
        assert_eq!(of(&one, 7), of(&one.clone(), 7));
        assert_ne!(of(&one, 7), of(&other, 7));
        assert_ne!(of(&one, 7), of(&one, 8), "nobody outside can compute it");
        assert_ne!(of(&one, 7), of(&HeaderMap::new(), 7));

        let from = |ip: &str| {
            let source = KeySource {
                client_ip: ip.parse().unwrap(),
                ..with(&one, None)
            };
            bucket_hash(&[HashKey::ClientIp], &source, 7)
        };
        assert_eq!(from("2001:db8:0:1::1"), from("2001:db8:0:1:ffff::2"));
        assert_ne!(from("2001:db8:0:1::1"), from("2001:db8:0:2::1"));
        assert_ne!(from("192.0.2.1"), from("192.0.2.2"));
        assert_eq!(from("::ffff:192.0.2.1"), from("192.0.2.1"));
    }

    #[test]
    fn the_first_key_that_is_there_decides() {
        let headers = HeaderMap::new();
        let source = with(&headers, None);
        let keys = [HashKey::Cookie("sid".into()), HashKey::ClientIp];
        assert_eq!(first_hash(&keys, &source), HashKey::ClientIp.hash(&source));
        assert_eq!(first_hash(&keys[..1], &source), None);
        assert_ne!(combined_hash(&keys, &source), combined_hash(&keys[1..], &source));
    }
}
