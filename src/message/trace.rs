//! W3C trace context, passed on.
//!
//! This proxy makes no spans of its own yet, so a valid `traceparent` goes on unchanged, as the recommendation allows
//! ("forward unchanged"), together with its `tracestate`. An invalid one starts no trace of ours; it is dropped, and
//! `tracestate` with it, because a state without a parent means nothing ("Trace Context", W3C recommendation,
//! sections 3.2 and 4.3). The trace id is what the access log needs.

use http::header::{HeaderMap, HeaderName};

/// The field with ids and flags.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The field with what vendors add.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A trace that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 32],
    parent_id: [u8; 16],
    sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`; versions we do not know are read as far as version 00 goes, as the recommendation asks.
    pub fn parse(value: &[u8]) -> Option<Self> {
        // version "-" trace-id "-" parent-id "-" flags: 2 + 32 + 16 + 2 digits and three dashes.
        let (known, beyond) = value.split_at_checked(55)?;
        let version = &known[..2];
        let fits = match version {
            b"00" => beyond.is_empty(),
            b"ff" => false,
            _ => beyond.first().is_none_or(|byte| *byte == b'-'),
        };
        let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let (trace_id, parent_id, flags) = (&known[3..35], &known[36..52], &known[53..]);
        let digits = [version, trace_id, parent_id, flags]
            .iter()
            .all(|part| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let named = [trace_id, parent_id]
            .iter()
            .all(|id| id.iter().any(|byte| *byte != b'0'));
        (fits && dashes && digits && named).then_some(())?;
        Some(Self {
            trace_id: trace_id.try_into().ok()?,
            parent_id: parent_id.try_into().ok()?,
            sampled: (flags[1] as char).to_digit(16)? & 1 == 1,
        })
    }

    /// 32 hex digits, lower case.
    pub fn trace_id(&self) -> &str {
        std::str::from_utf8(&self.trace_id).unwrap_or_default()
    }

    /// 16 hex digits, lower case: the span of whoever asked us.
    pub fn parent_id(&self) -> &str {
        std::str::from_utf8(&self.parent_id).unwrap_or_default()
    }

    /// Whether the one who asked us recorded the trace.
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }
}

/// Reads the trace context of a request and drops what is not valid, so that what is left may be forwarded.
pub fn take(headers: &mut HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(&TRACEPARENT).iter();
    let context = match (parents.next(), parents.next()) {
        (Some(parent), None) => TraceContext::parse(parent.as_bytes()),
        (None, _) if !headers.contains_key(&TRACESTATE) => return None,
        _ => None,
    };
    if context.is_none() {
        headers.remove(&TRACEPARENT);
        headers.remove(&TRACESTATE);
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_parent_goes_on_unchanged() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, GOOD.parse().unwrap());
        headers.insert(TRACESTATE, "a=1".parse().unwrap());
        let before = headers.clone();
        let context = take(&mut headers).unwrap();
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent_id(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        assert_eq!(headers, before);
    }

    #[test]
    fn an_invalid_parent_takes_the_state_with_it() {
        let zero = "0".repeat(32);
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zero),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace('-', "_"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, bad.parse().unwrap());
            headers.insert(TRACESTATE, "a=1".parse().unwrap());
            assert_eq!(take(&mut headers), None, "{bad}");
            assert!(headers.is_empty(), "{bad}");
        }
    }

    #[test]
    fn two_parents_are_none_and_a_state_alone_is_nothing() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(take(&mut headers), None);
        assert!(headers.is_empty());
        headers.insert(TRACESTATE, "a=1".parse().unwrap());
        assert_eq!(take(&mut headers), None);
        assert!(headers.is_empty());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = format!("{}-extra", GOOD.replacen("00", "01", 1));
        assert!(TraceContext::parse(later.as_bytes()).is_some());
        assert!(TraceContext::parse(format!("{later}x").replace("-extra", "extra").as_bytes()).is_none());
    }
}
