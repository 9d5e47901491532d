//! Paths as they are matched and forwarded: one spelling for each resource.
//!
//! A path that our rules read one way and a service another is a way around the rules: `//admin`, `/a/../admin` and
//! `/%61dmin` all reach `/admin` in most services. So a path is put into one spelling *before* a route is sought, and
//! that spelling is what is forwarded:
//!
//! - escapes of unreserved characters are decoded, the hex digits of all others upper case (RFC 3986 section 6.2.2);
//! - doubled slashes become one, then dot segments are resolved, `%2e` included (section 5.2.4); `..` above the root
//!   stays at the root;
//! - `%2F` and all other escapes stay what they are: data, not separators.
//!
//! Refused is what cannot have one reading: broken escapes, `%00`, bytes that a path does not have, a backslash, and
//! dot segments that only a second decoding or a path parameter would reveal (`..%2f`, `%2e%2e%5c`, `..;`, `..%3b`).
//!
//! A path that is already in this spelling, which is nearly every path, is neither copied nor changed. The query is
//! never touched: [`check_query`] only refuses bytes that a query does not have.
//!
//! Invariant: `normalise` of its own answer is that answer, unchanged.

use std::borrow::Cow;

/// Why a path or query is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path does not start with a slash.
    #[error("the path does not start with a slash")]
    NoSlash,
    /// A percent sign without two hex digits after it.
    #[error("a percent sign is not followed by two hex digits")]
    BadEscape,
    /// `%00`.
    #[error("the path has an encoded NUL")]
    Nul,
    /// A control byte, a space, a byte above 127, a backslash, a fragment or a delimiter that paths do not have.
    #[error("the path or query has a character that must be percent-encoded")]
    Character,
    /// A dot segment behind an encoded slash or backslash, or with a path parameter.
    #[error("the path hides a dot segment")]
    HiddenDots,
}

/// Puts the path of a request into its one spelling; borrows when it already is.
///
/// The path is without query. `*` (`OPTIONS *`) is not a path: the caller passes it on as it is.
///
/// # Errors
/// When the path has no single reading; the request is to be answered with 400.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if path.is_empty() {
        // RFC 9112 section 3.2.1: an empty path is sent as a slash.
        return Ok(Cow::Borrowed("/"));
    }
    if !path.starts_with('/') {
        return Err(PathError::NoSlash);
    }
    if is_plain(path.as_bytes())? {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    let resolved = resolve(&decoded)?;
    // Escapes that only had to be looked at leave the path as it was; the original bytes go on.
    Ok(if resolved == path {
        Cow::Borrowed(path)
    } else {
        Cow::Owned(resolved)
    })
}

/// Refuses a query with bytes that a query does not have. Escapes are the service's affair.
///
/// # Errors
/// When the request is to be answered with 400.
pub fn check_query(query: &str) -> Result<(), PathError> {
    // A quote, a backslash or a brace in a query is wrong and widespread, and no rule of ours reads it twice.
    if query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        Ok(())
    } else {
        Err(PathError::Character)
    }
}

/// A character that a path may hold as it is. `[ ] { } | ^` are outside the grammar, but sent by browsers and tools
/// and read alike by everybody.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        table[byte] = !matches!(byte as u8, b'"' | b'#' | b'%' | b'<' | b'>' | b'?' | b'\\' | b'`');
        byte += 1;
    }
    table
};

/// Whether nothing at all is to be done; refuses bytes that no path has.
fn is_plain(path: &[u8]) -> Result<bool, PathError> {
    let mut plain = true;
    let mut previous = 0;
    for &byte in path {
        if !PLAIN[byte as usize] {
            if byte != b'%' {
                return Err(PathError::Character);
            }
            plain = false;
        }
        // A segment that is empty or starts with a dot needs a closer look.
        plain &= previous != b'/' || (byte != b'/' && byte != b'.');
        previous = byte;
    }
    Ok(plain)
}

/// Decodes escapes of letters, digits and `-._~`, writes the hex digits of the others in upper case.
fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let digits = after.as_bytes().get(..2).ok_or(PathError::BadEscape)?;
        let byte = hex(digits[0])? << 4 | hex(digits[1])?;
        match byte {
            0 => return Err(PathError::Nul),
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => out.push(byte as char),
            _ => {
                out.push('%');
                out.extend(digits.iter().map(|digit| digit.to_ascii_uppercase() as char));
            }
        }
        rest = &after[2..];
    }
    out.push_str(rest);
    Ok(out)
}

fn hex(digit: u8) -> Result<u8, PathError> {
    (digit as char)
        .to_digit(16)
        .map(|value| value as u8)
        .ok_or(PathError::BadEscape)
}

/// Removes empty segments, then dot segments.
fn resolve(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            _ if hides_dots(segment) => return Err(PathError::HiddenDots),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if last {
            // "/a/", "/a/." and "/a/b/.." are directories: the slash stays.
            out.push('/');
        }
    }
    Ok(out)
}

/// Whether a second decoding, or dropping a path parameter, would make a dot segment of it.
fn hides_dots(segment: &str) -> bool {
    let is_dots = |part: &str| {
        let name = part.split_once(';').map_or(part, |(name, _)| name);
        matches!(name, "." | "..")
    };
    if !segment.contains('%') {
        return is_dots(segment);
    }
    // Nothing without a dot, or an escape that decodes to one in the end, can hide them.
    if !segment.contains('.') && !segment.contains("%25") {
        return false;
    }
    // Hex digits are upper case by now. `%25` is a percent sign: `%252e` and `%252F` are the second decoding.
    let twice = segment
        .replace("%25", "%")
        .replace("%2e", ".")
        .replace("%2E", ".");
    let encoded = [
        ("%2F", "/"),
        ("%2f", "/"),
        ("%5C", "/"),
        ("%5c", "/"),
        ("%3B", ";"),
        ("%3b", ";"),
    ];
    encoded
        .iter()
        .fold(twice, |text, (escape, plain)| text.replace(escape, plain))
        .split('/')
        .any(is_dots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_in_its_one_spelling_is_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/b/",
            "/a.b/..c/d..",
            "/caf%C3%A9",
            "/a%2Fb",
            "/a%20b",
            "/~x/;p=1,2/(y)",
            "/...",
            "/.well-known/x",
        ] {
            assert_eq!(normalise(path), Ok(Cow::Borrowed(path)));
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(_))), "{path}");
        }
        assert_eq!(normalise("").unwrap(), "/");
    }

    #[test]
    fn other_spellings_become_it() {
        for (path, one) in [
            ("//", "/"),
            ("//admin", "/admin"),
            ("/a//b///c", "/a/b/c"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a//../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/%2e%2E/x", "/x"),
            ("/a/.%2e/b", "/b"),
            ("/%61dmin", "/admin"),
            ("/%7Euser", "/~user"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/x%c3%a9", "/x%C3%A9"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(one), "{path}");
        }
    }

    #[test]
    fn what_has_no_single_reading_is_refused() {
        use PathError::*;
        for (path, why) in [
            ("a", NoSlash),
            ("*", NoSlash),
            ("http://x/", NoSlash),
            ("/%", BadEscape),
            ("/%2", BadEscape),
            ("/%zz", BadEscape),
            ("/%+1", BadEscape),
            ("/%é", Character),
            ("/a%00b", Nul),
            ("/a b", Character),
            ("/a\tb", Character),
            ("/a\u{7f}", Character),
            ("/café", Character),
            ("/a\\b", Character),
            ("/a#b", Character),
            ("/a?b", Character),
            ("/a\"b", Character),
            ("/..%2fadmin", HiddenDots),
            ("/a/%2e%2e%2Fadmin", HiddenDots),
            ("/a%2f..%2fb", HiddenDots),
            ("/..%5cx", HiddenDots),
            ("/..;/admin", HiddenDots),
            ("/a/..;x=1/b", HiddenDots),
            ("/%252e%252e/x", HiddenDots),
            ("/..%252fx", HiddenDots),
            ("/..%3Bx/admin", HiddenDots),
            ("/..%253bx/admin", HiddenDots),
        ] {
            assert_eq!(normalise(path), Err(why), "{path}");
        }
    }

    #[test]
    fn a_query_is_only_looked_at() {
        assert_eq!(check_query("a=1&b=%zz&c=[]{}|\\\"//../"), Ok(()));
        assert_eq!(check_query("a b"), Err(PathError::Character));
        assert_eq!(check_query("a\u{e9}"), Err(PathError::Character));
        assert_eq!(check_query("a#b"), Err(PathError::Character));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn normalising_twice_changes_nothing(path in "/([a-cA./;%]|%2[eEfF5]|%5[cC]|%25|%61|[é\\\\]){0,12}") {
            if let Ok(once) = normalise(&path) {
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.contains("//"));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
                let twice = normalise(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(matches!(twice, Ok(Cow::Borrowed(_))));
            }
        }

        #[test]
        fn no_text_can_disturb_it(path in ".{0,60}") {
            drop(normalise(&path));
        }
    }
}
