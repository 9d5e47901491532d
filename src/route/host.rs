//! Hosts: exact names and `*.suffix`, found by hash.
//!
//! A wildcard covers every depth (`*.example.com` matches `a.example.com` and `a.b.example.com`) and never the bare
//! domain, as in Envoy and the Gateway API. It is not the rule of TLS certificates, where a star is one label.
//! Case, a port and one trailing dot do not matter. A host longer than any DNS name matches only routes that name no
//! host.
//!
//! Invariant: the row of a name already contains the rows of all wildcards above it and of the routes without host,
//! so that one lookup is the whole answer.

use std::collections::{BTreeMap, HashMap};

use super::MatchSettings;
use super::path::Quick;
use super::rows::Row;

/// Longest name that can be asked for: 253 octets of name (RFC 1035 section 2.3.4), brackets of a literal included.
const LONGEST: usize = 255;

/// The hosts of a route's match, one of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This name and no other, lower case, without port and trailing dot.
    Exact(String),
    /// Every name that ends in a dot and this; the part after `*.`.
    Suffix(String),
}

/// Why a host of a match is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    /// Nothing there.
    #[error("a host is empty; leave `host` out to match any host")]
    Empty,
    /// `a.*.b`, `*a.b`, `*`.
    #[error(
        "`*` stands only for whole leading labels, as in \"*.example.com\"; leave `host` out to match any host"
    )]
    Wildcard,
    /// `example.com:8080`.
    #[error("a host has no port here: the port of a request is ignored when matching")]
    Port,
    /// Characters that no host has.
    #[error(
        "a host is made of letters, digits, `-`, `_` and `.`; write names in other scripts as punycode (xn--)"
    )]
    Character,
    /// Longer than a DNS name may be.
    #[error("a host has at most 253 characters")]
    TooLong,
}

impl HostPattern {
    /// Reads `example.com`, `*.example.com`, `192.0.2.1` or `[2001:db8::1]`.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(written: &str) -> Result<Self, HostPatternError> {
        let lower = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
        let (name, suffix) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower.as_str(), false),
        };
        if name.is_empty() {
            return Err(HostPatternError::Empty);
        }
        if name.len() > 253 {
            return Err(HostPatternError::TooLong);
        }
        if name.contains('*') {
            return Err(HostPatternError::Wildcard);
        }
        let is_name = |name: &str| {
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_host = match literal {
            Some(address) => !suffix && address.parse::<std::net::Ipv6Addr>().is_ok(),
            None if name.contains(':') => return Err(HostPatternError::Port),
            None => is_name(name),
        };
        if !is_host {
            return Err(HostPatternError::Character);
        }
        Ok(if suffix {
            Self::Suffix(name.to_owned())
        } else {
            Self::Exact(name.to_owned())
        })
    }

    /// Whether this pattern covers the host of a request.
    pub fn matches(&self, host: &str) -> bool {
        let mut buffer = [0; LONGEST];
        canonical(host, &mut buffer).is_some_and(|name| self.covers(name))
    }

    fn covers(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => name == exact.as_bytes(),
            Self::Suffix(suffix) => name
                .strip_suffix(suffix.as_bytes())
                .is_some_and(|rest| rest.ends_with(b".")),
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(name) => write!(f, "*.{name}"),
        }
    }
}

/// The host without port and trailing dot, in lower case; `None` when it cannot equal any pattern.
fn canonical<'b>(host: &str, buffer: &'b mut [u8; LONGEST]) -> Option<&'b [u8]> {
    let bytes = host.as_bytes();
    let end = if bytes.first() == Some(&b'[') {
        memchr::memchr(b']', bytes)? + 1
    } else {
        memchr::memchr(b':', bytes).unwrap_or(bytes.len())
    };
    let name = &bytes[..end];
    let name = name.strip_suffix(b".").unwrap_or(name);
    let out = buffer.get_mut(..name.len())?;
    out.copy_from_slice(name);
    out.make_ascii_lowercase();
    Some(out)
}

/// All hosts of a table.
#[derive(Debug)]
pub(super) struct Hosts {
    exact: HashMap<Box<[u8]>, Row, Quick>,
    suffix: HashMap<Box<[u8]>, Row, Quick>,
    /// Labels of the longest suffix; names are not searched deeper, whatever a client sends.
    deepest: usize,
    /// Routes that name no host.
    any: Row,
}

impl Hosts {
    pub(super) fn new(routes: &[MatchSettings]) -> Self {
        let any = Row::of(
            (0..)
                .zip(routes)
                .filter(|(_, r)| r.hosts.is_empty())
                .map(|(index, _)| index),
        );
        let mut names: BTreeMap<&HostPattern, Vec<usize>> = BTreeMap::new();
        for (index, route) in routes.iter().enumerate() {
            for host in &route.hosts {
                let indices = names.entry(host).or_default();
                if indices.last() != Some(&index) {
                    indices.push(index);
                }
            }
        }
        // A wildcard covers another when it covers a name one label below the other's suffix, or is the same.
        let row = |sample: &[u8], own: &[usize]| {
            names
                .iter()
                .filter(|(pattern, _)| matches!(pattern, HostPattern::Suffix(_)) && pattern.covers(sample))
                .fold(any.union(&Row::of(own.iter().copied())), |row, (_, indices)| {
                    row.union(&Row::of(indices.iter().copied()))
                })
        };
        let (mut exact, mut suffix) = (HashMap::default(), HashMap::default());
        let mut deepest = 0;
        // Asking every wildcard about every name would be quadratic in a file of many hosts.
        let wildcards = names
            .keys()
            .any(|pattern| matches!(pattern, HostPattern::Suffix(_)));
        for (pattern, own) in &names {
            match pattern {
                HostPattern::Exact(name) if wildcards => {
                    exact.insert(name.as_bytes().into(), row(name.as_bytes(), own));
                }
                HostPattern::Exact(name) => {
                    exact.insert(name.as_bytes().into(), any.union(&Row::of(own.iter().copied())));
                }
                HostPattern::Suffix(name) => {
                    deepest = deepest.max(name.split('.').count());
                    suffix.insert(name.as_bytes().into(), row(format!("x.{name}").as_bytes(), own));
                }
            }
        }
        Self {
            exact,
            suffix,
            deepest,
            any,
        }
    }

    /// The routes that a host does not rule out.
    pub(super) fn row(&self, host: &str) -> &Row {
        if self.exact.is_empty() && self.suffix.is_empty() {
            return &self.any;
        }
        let mut buffer = [0; LONGEST];
        let Some(name) = canonical(host, &mut buffer) else {
            return &self.any;
        };
        if let Some(row) = self.exact.get(name) {
            return row;
        }
        if self.suffix.is_empty() {
            return &self.any;
        }
        // The longest suffix wins because its row contains the rows of the shorter ones.
        memchr::memrchr_iter(b'.', name)
            .take(self.deepest)
            .filter_map(|dot| self.suffix.get(&name[dot + 1..]))
            .last()
            .unwrap_or(&self.any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_every_depth_and_never_the_bare_domain() {
        let star = HostPattern::parse("*.Example.com").unwrap();
        assert!(star.matches("a.example.com"));
        assert!(star.matches("a.b.EXAMPLE.com:8443"));
        assert!(star.matches("a.example.com."));
        assert!(!star.matches("example.com"));
        assert!(!star.matches("aexample.com"));
        assert!(!star.matches("a.example.com.evil"));
    }

    #[test]
    fn case_port_and_a_trailing_dot_do_not_matter() {
        let host = HostPattern::parse("Shop.Example.").unwrap();
        assert_eq!(host, HostPattern::Exact("shop.example".into()));
        for same in [
            "shop.example",
            "SHOP.example:443",
            "shop.example.",
            "shop.example.:80",
        ] {
            assert!(host.matches(same), "{same}");
        }
        for other in [
            "",
            ":80",
            ".",
            "shop.example..",
            "xshop.example",
            "[shop.example]",
        ] {
            assert!(!host.matches(other), "{other}");
        }
        let literal = HostPattern::parse("[2001:DB8::1]").unwrap();
        assert!(literal.matches("[2001:db8::1]:8080"));
        assert!(!literal.matches("[2001:db8::1"));
    }

    #[test]
    fn what_is_not_a_host_is_refused_with_a_reason() {
        use HostPatternError::*;
        for (written, why) in [
            ("", Empty),
            ("*.", Wildcard),
            ("*", Wildcard),
            ("a.*.b", Wildcard),
            ("*a.b", Wildcard),
            ("*.*.b", Wildcard),
            ("a:80", Port),
            ("ümlaut.example", Character),
            ("a b", Character),
            ("a/b", Character),
            ("[nonsense]", Character),
            ("*.[::1]", Character),
        ] {
            assert_eq!(HostPattern::parse(written), Err(why), "{written}");
        }
        assert_eq!(HostPattern::parse(&"a".repeat(300)), Err(TooLong));
    }
}
