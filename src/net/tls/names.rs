//! Which names in a client's certificate are let in.
//!
//! A pattern is for URIs or for DNS names, never both: `spiffe://prod/ns/*/sa/api` must not be met by a host name that
//! somebody could register. `*` stands for one or more characters inside one segment and never crosses a `/` (URI) or
//! a `.` (DNS), so a pattern cannot match more depth than it shows.

use super::certificate::Names;

/// A pattern for one subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    text: String,
    is_uri: bool,
}

impl NamePattern {
    /// With `://` in it a pattern for URIs, else one for DNS names, in any case.
    pub fn new(text: &str) -> Self {
        let is_uri = text.contains("://");
        Self {
            text: if is_uri {
                text.to_owned()
            } else {
                text.to_ascii_lowercase()
            },
            is_uri,
        }
    }

    pub(super) fn allows(&self, names: &Names) -> bool {
        if self.is_uri {
            names.uris.iter().any(|uri| self.matches(uri, b'/'))
        } else {
            names.dns.iter().any(|name| self.matches(name, b'.'))
        }
    }

    fn matches(&self, name: &str, separator: u8) -> bool {
        let mut pattern = self.text.as_bytes().split(|b| *b == separator);
        let mut segments = name.as_bytes().split(|b| *b == separator);
        loop {
            match (pattern.next(), segments.next()) {
                (None, None) => return true,
                (Some(pattern), Some(segment)) if segment_matches(pattern, segment) => {}
                _ => return false,
            }
        }
    }
}

/// `*` is one or more bytes. Backtracks to the last star only, which is enough and keeps it quadratic at worst.
fn segment_matches(pattern: &[u8], segment: &[u8]) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut last_star = None;
    while s < segment.len() {
        match pattern.get(p) {
            Some(b'*') => {
                s += 1;
                p += 1;
                last_star = Some((p, s));
            }
            Some(byte) if *byte == segment[s] => {
                s += 1;
                p += 1;
            }
            _ => match last_star {
                Some((after, taken)) => {
                    p = after;
                    s = taken + 1;
                    last_star = Some((after, s));
                }
                None => return false,
            },
        }
    }
    p == pattern.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(pattern: &str, name: &str) -> bool {
        NamePattern::new(pattern).allows(&Names {
            uris: vec![name.to_owned()],
            dns: vec![],
        })
    }

    fn dns(pattern: &str, name: &str) -> bool {
        NamePattern::new(pattern).allows(&Names {
            uris: vec![],
            dns: vec![name.to_owned()],
        })
    }

    #[test]
    fn a_star_stays_within_one_segment() {
        let pattern = "spiffe://prod/ns/*/sa/api";
        assert!(uri(pattern, "spiffe://prod/ns/shop/sa/api"));
        assert!(!uri(pattern, "spiffe://prod/ns/shop/x/sa/api"));
        assert!(!uri(pattern, "spiffe://prod/ns//sa/api"));
        assert!(!uri(pattern, "spiffe://prod/ns/shop/sa/api/admin"));
        assert!(!uri(pattern, "spiffe://test/ns/shop/sa/api"));
        assert!(dns("*.example.com", "a.example.com"));
        assert!(!dns("*.example.com", "a.b.example.com"));
        assert!(!dns("*.example.com", "example.com"));
        assert!(dns("API-*.Example.com", "api-7.example.com"));
    }

    #[test]
    fn a_uri_pattern_is_not_met_by_a_host_name() {
        assert!(!dns("spiffe://prod/*", "spiffe://prod/x"));
        assert!(!uri("*", "anything"));
    }

    #[test]
    fn stars_backtrack() {
        assert!(segment_matches(b"a*bc", b"abbc"));
        assert!(segment_matches(b"*a*", b"xaay"));
        assert!(!segment_matches(b"*", b""));
        assert!(!segment_matches(b"a*", b"a"));
        assert!(!segment_matches(b"a*b", b"ab"));
        assert!(segment_matches(b"**", b"ab"));
    }
}
