//! Request ids: one name for a request in every log it passes.
//!
//! A trusted peer's id is kept when it can be logged safely; everybody else gets a new one, so that nobody can make
//! two requests look like one or write into our logs. A new id is 26 characters of Crockford's base 32, 48 bits of
//! milliseconds and 80 random bits, as ULID has it: ids sort by time and can be read aloud. It is a name, not a
//! secret: whoever has seen some can guess others.

use bellwether_core::Dice;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::forwarded::{Added, Trust};

/// The field that carries it, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is kept.
const LONGEST: usize = 128;

/// Characters of an id that we made.
const LENGTH: usize = 26;

/// Crockford's alphabet: without I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The id of one request; visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Inner);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Inner {
    Made([u8; LENGTH]),
    Given(HeaderValue),
}

impl RequestId {
    /// The id that came with a request, when its peer is believed and it is fit to be logged, else a new one.
    ///
    /// `millis` is the wall clock, milliseconds since 1970.
    pub fn keep_or_make(headers: &HeaderMap, peer: Trust, millis: u64, dice: &mut Dice) -> Self {
        if peer == Trust::Trusted
            && let Some(value) = headers.get(&REQUEST_ID)
            && is_sane(value.as_bytes())
        {
            return Self(Inner::Given(value.clone()));
        }
        Self::make(millis, dice)
    }

    /// A new id.
    pub fn make(millis: u64, dice: &mut Dice) -> Self {
        let random = u128::from(dice.next_u64()) << 64 | u128::from(dice.next_u64());
        let number = u128::from(millis) << 80 | random >> 48;
        let mut text = [0; LENGTH];
        for (place, character) in text.iter_mut().rev().enumerate() {
            *character = ALPHABET[(number >> (5 * place) & 31) as usize];
        }
        Self(Inner::Made(text))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let bytes = match &self.0 {
            Inner::Made(text) => &text[..],
            Inner::Given(value) => value.as_bytes(),
        };
        // Both are visible ASCII; were they not, an empty id is better than a panic.
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// As a field value. One copy for an id of ours, none for one that came with the request.
    pub fn to_value(&self) -> HeaderValue {
        match &self.0 {
            Inner::Made(text) => HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("")),
            Inner::Given(value) => value.clone(),
        }
    }

    /// Makes it the id of a request: none that came with it stays.
    pub fn replace(&self, headers: &mut HeaderMap, added: &mut Added) {
        if headers.keys().any(|name| *name == REQUEST_ID) {
            headers.remove(REQUEST_ID);
        }
        added.push((REQUEST_ID, self.to_value()));
    }

    /// Writes it into a response.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.to_value());
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_sane(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= LONGEST && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, id.parse().unwrap());
        headers
    }

    #[test]
    fn an_id_is_kept_from_trusted_peers_only_and_only_when_it_can_be_logged() {
        let keep =
            |id: &str, trust| RequestId::keep_or_make(&with(id), trust, 0, &mut Dice::new(1)).to_string();
        assert_eq!(keep("abc-1", Trust::Trusted), "abc-1");
        let made = RequestId::make(0, &mut Dice::new(1)).to_string();
        assert_eq!(keep("abc-1", Trust::Untrusted), made);
        for insane in ["", "a b", &"x".repeat(129)] {
            assert_eq!(keep(insane, Trust::Trusted), made);
        }
        assert_eq!(keep(&"x".repeat(128), Trust::Trusted).len(), 128);
    }

    #[test]
    fn a_request_has_one_id() {
        let id = RequestId::make(0, &mut Dice::new(1));
        let mut headers = with("another");
        headers.append(REQUEST_ID, "third".parse().unwrap());
        let mut added = Added::new();
        id.replace(&mut headers, &mut added);
        assert!(headers.is_empty());
        assert_eq!(added[..], [(REQUEST_ID, id.to_value())]);
    }

    #[test]
    fn a_new_id_is_a_ulid() {
        // The example of the ULID specification: 01ARZ3NDEK is the 30th of July 2016, 22:36:16.115 UTC.
        let mut dice = Dice::new(7);
        let id = RequestId::make(1_469_922_850_259, &mut dice);
        assert!(id.as_str().starts_with("01ARZ3NDEK"), "{id}");
        assert_eq!(id.as_str().len(), 26);
        assert_eq!(id.to_value(), id.as_str());
        let later = RequestId::make(1_469_922_850_260, &mut dice);
        assert!(id.as_str() < later.as_str());
        assert_ne!(RequestId::make(5, &mut dice), RequestId::make(5, &mut dice));
    }
}
