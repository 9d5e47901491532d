//! What is pure in `message`, taken in by path, and hostile values built from a fuzzer's choices.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    unfulfilled_lint_expectations,
    reason = "no target uses everything"
)]

#[path = "../../src/message/direct_response.rs"]
pub mod direct_response;
#[path = "../../src/message/edits.rs"]
pub mod edits;
#[path = "../../src/message/forwarded.rs"]
pub mod forwarded;
#[path = "../../src/message/grpc.rs"]
pub mod grpc;
#[path = "../../src/message/hygiene.rs"]
pub mod hygiene;
#[path = "../../src/message/path.rs"]
pub mod path;
#[path = "../../src/message/redirect.rs"]
pub mod redirect;
#[path = "../../src/message/reply.rs"]
pub mod reply;
#[path = "../../src/message/request_id.rs"]
pub mod request_id;
#[path = "../../src/message/rewrite.rs"]
pub mod rewrite;
#[path = "../../src/message/template.rs"]
pub mod template;
#[path = "../../src/message/trace.rs"]
pub mod trace;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// A field value that every version of HTTP can carry: RFC 9110 section 5.5, RFC 9113 section 8.2.1.
pub fn is_field_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        && value
            .iter()
            .all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

/// A field value as a parser of ours would let it in, from arbitrary bytes.
pub fn value(u: &mut Unstructured<'_>) -> Result<HeaderValue> {
    let bytes: Vec<u8> = u.arbitrary()?;
    let bytes: Vec<u8> = bytes
        .into_iter()
        .filter(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
        .collect();
    Ok(HeaderValue::from_bytes(bytes.trim_ascii()).expect("only bytes that a value may have are left"))
}

/// Up to `most` fields, with names from a list or arbitrary ones.
pub fn fields(u: &mut Unstructured<'_>, names: &[&'static str], most: usize) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for _ in 0..u.int_in_range(0..=most)? {
        let name = if u.ratio(7, 8)? {
            HeaderName::from_static(*u.choose(names)?)
        } else {
            let name: &[u8] = u.arbitrary()?;
            match HeaderName::from_bytes(name) {
                Ok(name) => name,
                Err(_) => continue,
            }
        };
        headers.append(name, value(u)?);
    }
    Ok(headers)
}
