//! Lines, fields and byte classes: what heads and trailer sections have in common.
//!
//! A section (RFC 9112 §2.1) is a run of CRLF-terminated lines up to an empty one. Finding its end and reading its
//! fields are two steps on purpose: the search remembers where it stopped, so that a peer sending one byte at a time
//! costs one look at each byte, and the fields are read once, from a frozen buffer that their values then share.
//!
//! Invariants: a line ends in CRLF and nothing else; no byte is searched twice while a section is incomplete; what
//! the search finds does not depend on how the bytes were cut into reads.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;
use smallvec::SmallVec;

use super::head::HeadError;

/// Ends of lines: for each line the index of its LF. The first 32 need no allocation.
pub(super) type LineEnds = SmallVec<[u32; 32]>;

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
const HOST: u8 = 8;
const TEXT: u8 = 16;

/// One lookup answers every question about a byte.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0_u8; 256];
    let mut index = 0_usize;
    while index < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "the loop ends at 255")]
        let byte = index as u8;
        let mut class = 0;
        // RFC 9110 §5.6.2.
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            class |= TOKEN;
        }
        // RFC 3986 §3.3 and §3.4, widened by what browsers send unescaped (WHATWG URL §1.3): brackets, braces, bar
        // and caret everywhere, back-quote and backslash in queries. A backslash in a path stays out, because some
        // servers read it as a slash.
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'#' | b'<' | b'>') {
            class |= QUERY;
            if !matches!(byte, b'?' | b'\\' | b'`') {
                class |= PATH;
            }
        }
        // The part of RFC 3986 §3.2.2 that names a host in DNS. Percent escapes and sub-delims are legal there and
        // mean nothing but trouble: `*` meets wildcards, `,` is what two joined hosts look like.
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= HOST;
        }
        // RFC 9110 §5.5: visible characters, space, tab and obs-text.
        if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
            class |= TEXT;
        }
        table[index] = class;
        index += 1;
    }
    table
}

#[inline]
fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// Whether `byte` may stand in a method or a field name.
#[inline]
pub(super) fn is_token(byte: u8) -> bool {
    is(byte, TOKEN)
}

/// Whether `bytes` may be a reason phrase or a chunk extension: text without control bytes.
#[inline]
pub(super) fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| is(byte, TEXT))
}

/// Whether `bytes` is a path with an optional query, made of bytes that may stand there.
#[inline]
pub(super) fn is_path_and_query(bytes: &[u8]) -> bool {
    match bytes.iter().position(|&byte| !is(byte, PATH)) {
        None => true,
        Some(at) => bytes[at] == b'?' && bytes[at + 1..].iter().all(|&byte| is(byte, QUERY)),
    }
}

/// Whether `bytes` is a host with an optional port: a registered name or IPv4 address, or an IPv6 address in brackets.
///
/// Narrower than RFC 3986 §3.2.2 where a wider reading is only useful to an attacker: no userinfo, no escapes, no
/// zone, no empty host, no empty port.
pub(super) fn is_host(bytes: &[u8]) -> bool {
    let rest = if bytes.first() == Some(&b'[') {
        let Some(close) = memchr(b']', bytes) else {
            return false;
        };
        let literal = std::str::from_utf8(&bytes[1..close]);
        if !literal.is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok()) {
            return false;
        }
        &bytes[close + 1..]
    } else {
        let name = bytes
            .iter()
            .position(|&byte| !is(byte, HOST))
            .unwrap_or(bytes.len());
        if name == 0 || name > 255 {
            return false;
        }
        &bytes[name..]
    };
    match rest {
        [] => true,
        [b':', port @ ..] => {
            (1..=5).contains(&port.len())
                && port.iter().all(u8::is_ascii_digit)
                && port
                    .iter()
                    .fold(0_u32, |sum, &digit| sum * 10 + u32::from(digit - b'0'))
                    <= 65_535
        }
        _ => false,
    }
}

/// A decimal length (RFC 9110 §8.6): 1 to 19 digits and nothing else, so it always fits.
pub(super) fn length(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 19 {
        return None;
    }
    bytes.iter().try_fold(0_u64, |sum, &byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| sum * 10 + u64::from(digit))
    })
}

/// `bytes` without spaces and tabs at both ends (OWS, RFC 9110 §5.6.3).
#[inline]
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The next LF of `buf` at or after `from`, or a bare one refused.
///
/// # Errors
/// [`HeadError::BareLf`] if the LF does not follow a CR.
#[inline]
pub(super) fn line_end(buf: &[u8], from: usize) -> Result<Option<usize>, HeadError> {
    let Some(found) = buf.get(from..).and_then(|rest| memchr(b'\n', rest)) else {
        return Ok(None);
    };
    let at = from + found;
    if at == 0 || buf[at - 1] != b'\r' {
        return Err(HeadError::BareLf);
    }
    Ok(Some(at))
}

/// Whether the line ending at `end` (its LF, behind a CR) is empty, in a section that begins at `start`.
#[inline]
pub(super) fn is_blank(buf: &[u8], start: usize, end: usize) -> bool {
    end == start + 1 || (end >= start + 2 && buf[end - 2] == b'\n')
}

/// Reads the field lines of `section`, whose line ends are `ends` and whose first field line begins at `start`, and
/// hands each to `keep`, which says whether it goes into `into`.
///
/// # Errors
/// What RFC 9112 §5 forbids, or more than `most` fields.
pub(super) fn fields(
    section: &Bytes,
    start: usize,
    ends: &[u32],
    most: usize,
    into: &mut HeaderMap,
    mut keep: impl FnMut(&HeaderName, &[u8]) -> Result<bool, HeadError>,
) -> Result<(), HeadError> {
    if ends.len() > most {
        return Err(HeadError::TooManyHeaders);
    }
    let mut from = start;
    for &end in ends {
        let end = end as usize;
        let line = &section[from..end - 1];
        let (name, value) = field(line).map_err(|error| blame(line, error))?;
        let text = trim(&line[value..]);
        // Byte offsets, so that the value can be cut from the shared buffer.
        let offset = from + (text.as_ptr() as usize - line.as_ptr() as usize);
        if keep(&name, text)? {
            let shared = section.slice(offset..offset + text.len());
            let value = HeaderValue::from_maybe_shared(shared)
                .map_err(|_invalid| blame(line, HeadError::BadValue))?;
            into.try_append(name, value)
                .map_err(|_full| HeadError::TooManyHeaders)?;
        } else if !is_text(text) {
            return Err(blame(line, HeadError::BadValue));
        }
        from = end + 1;
    }
    Ok(())
}

/// The name of a field line, and where behind the colon its value begins.
#[inline]
fn field(line: &[u8]) -> Result<(HeaderName, usize), HeadError> {
    // Names are short: a plain loop beats the set-up of a vectorised search.
    let colon = line.iter().position(|&byte| byte == b':');
    if matches!(line.first(), Some(b' ' | b'\t')) {
        // RFC 9112 §5.2, and §2.2 for the line after the start line.
        return Err(HeadError::ObsFold);
    }
    let colon = colon.ok_or(HeadError::BadName)?;
    let name = &line[..colon];
    HeaderName::from_bytes(name).map_or_else(
        |_invalid| {
            Err(match name.last() {
                Some(b' ' | b'\t') => HeadError::SpaceBeforeColon,
                _ => HeadError::BadName,
            })
        },
        |name| Ok((name, colon + 1)),
    )
}

/// A CR inside a line is worth its own word, wherever it was noticed.
#[cold]
pub(super) fn blame(line: &[u8], error: HeadError) -> HeadError {
    if memchr(b'\r', line).is_some() {
        HeadError::BareCr
    } else {
        error
    }
}
