//! `x-bellwether-fail`: an endpoint says, in any answer, that it wants no more requests.
//!
//! The quickest way for an application to leave: the answer that it gives anyhow. `drain` finishes what it has, `down`
//! cannot serve. Envoy's name for the same wish, `x-envoy-immediate-health-check-fail`, is understood too; it has no words
//! and means `drain`.

use bellwether_core::heartbeat::State;
use http::{HeaderMap, HeaderName};

/// The field.
pub const FAIL: HeaderName = HeaderName::from_static("x-bellwether-fail");
/// Its name elsewhere.
const FAIL_OF_ENVOY: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");

/// What an answer says about who gave it; none when it says nothing, or nothing that we know.
pub fn said(headers: &HeaderMap) -> Option<State> {
    match headers.get(&FAIL).map(http::HeaderValue::as_bytes) {
        Some(b"drain") => Some(State::Drain),
        Some(b"down") => Some(State::Down),
        Some(_) => None,
        None => headers.contains_key(&FAIL_OF_ENVOY).then_some(State::Drain),
    }
}

/// Removes it: who asked through us is told nothing about our endpoints.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(&FAIL);
    headers.remove(&FAIL_OF_ENVOY);
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_words_are_known_and_nothing_else() {
        let heard = |name: HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let heard = said(&headers);
            strip(&mut headers);
            assert!(headers.is_empty());
            heard
        };
        assert_eq!(heard(FAIL, "drain"), Some(State::Drain));
        assert_eq!(heard(FAIL, "down"), Some(State::Down));
        assert_eq!(heard(FAIL, "maybe"), None);
        assert_eq!(heard(FAIL_OF_ENVOY, "true"), Some(State::Drain));
        assert_eq!(said(&HeaderMap::new()), None);
    }
}
