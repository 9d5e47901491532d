//! Bytes: the small codecs that tokens and the durable file share.
//!
//! Varints are little-endian groups of seven bits whose ninth byte carries eight, so that 64 bits never take ten bytes.
//! Only the shortest form of a number is read: one value has one spelling, which lets a signature stand for a value.
//! Base64 is the URL alphabet without padding (RFC 4648 section 5), the one text form that survives a cookie, a header
//! and a query string unquoted; trailing bits must be zero, for the same reason.
//!
//! Invariant: reading never panics and never allocates more than it was given.

/// Why bytes were not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end too early.
    Truncated,
    /// A number is not in its shortest form, or too large for its place.
    Number,
    /// A character outside the alphabet of base64url, or bits that should be zero.
    Alphabet,
    /// A type, kind or version that this code does not know.
    Unknown,
    /// A part breaks the rules of its type: order, range, length.
    Content,
    /// There is more than belongs to it.
    Trailing,
}

impl Malformed {
    /// The word in counters and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Number => "number",
            Self::Alphabet => "alphabet",
            Self::Unknown => "unknown",
            Self::Content => "content",
            Self::Trailing => "trailing",
        }
    }
}

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..8 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || place == 0;
                return if shortest {
                    Ok(value)
                } else {
                    Err(Malformed::Number)
                };
            }
        }
        match self.byte()? {
            0 => Err(Malformed::Number),
            last => Ok(value | u64::from(last) << 56),
        }
    }

    /// A number of things of which each takes at least `each` bytes, so a lie about it cannot reserve memory.
    pub(super) fn count(&mut self, each: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if count.saturating_mul(each) > self.left() {
            return Err(Malformed::Truncated);
        }
        Ok(count)
    }

    pub(super) const fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing)
        }
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    for _ in 0..8 {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
    out.push(value as u8);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Base64 of the URL alphabet, without padding.
#[must_use]
pub fn to_base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let part = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for place in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * place)) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

/// The bytes of [`to_base64url`]'s text.
///
/// # Errors
/// Where it is not the text of any bytes.
pub fn from_base64url(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for place in 0..4 {
            let value = match chunk.get(place) {
                Some(&character) => value_of(character)?,
                None => 0,
            };
            bits = bits << 6 | u32::from(value);
        }
        let whole = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        let length = match chunk.len() {
            2 => 1,
            3 => 2,
            4 => 3,
            _ => return Err(Malformed::Truncated),
        };
        if whole[length..].iter().any(|&byte| byte != 0) {
            return Err(Malformed::Alphabet);
        }
        bytes.extend_from_slice(&whole[..length]);
    }
    Ok(bytes)
}

const fn value_of(character: u8) -> Result<u8, Malformed> {
    match character {
        b'A'..=b'Z' => Ok(character - b'A'),
        b'a'..=b'z' => Ok(character - b'a' + 26),
        b'0'..=b'9' => Ok(character - b'0' + 52),
        b'-' => Ok(62),
        b'_' => Ok(63),
        _ => Err(Malformed::Alphabet),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64url_is_that_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in vectors {
            assert_eq!(to_base64url(plain.as_bytes()), coded);
            assert_eq!(from_base64url(coded.as_bytes()), Ok(plain.as_bytes().to_vec()));
        }
        assert_eq!(to_base64url(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn one_value_has_one_text() {
        assert_eq!(from_base64url(b"Zh"), Err(Malformed::Alphabet), "trailing bits");
        assert_eq!(from_base64url(b"Zg=="), Err(Malformed::Alphabet));
        assert_eq!(from_base64url(b"Z"), Err(Malformed::Truncated));
        assert_eq!(from_base64url(b"Zm+v"), Err(Malformed::Alphabet));
    }

    #[test]
    fn a_number_has_one_spelling_of_at_most_nine_bytes() {
        assert_eq!(Reader::new(&[0x80, 0]).varint(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(Malformed::Truncated));
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!(out.len(), 9);
        out[8] = 0;
        assert_eq!(Reader::new(&out).varint(), Err(Malformed::Number));
    }

    #[test]
    fn a_count_that_cannot_be_true_reserves_nothing() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).count(16), Err(Malformed::Truncated));
    }

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_base64url(to_base64url(&bytes).as_bytes()), Ok(bytes));
        }

        #[test]
        fn what_is_read_would_be_written_like_that(text: Vec<u8>) {
            if let Ok(bytes) = from_base64url(&text) {
                prop_assert_eq!(to_base64url(&bytes).into_bytes(), text);
            }
        }

        #[test]
        fn a_varint_that_is_read_would_be_written_like_that(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&bytes[..bytes.len() - reader.left()], &out[..]);
            }
        }
    }
}
