//! PROXY headers: every verdict is final and comes in bounded space, and what is read can be written and read again.
#![no_main]

#[path = "../../src/net/proxy_protocol/header.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "part of the header's interface serves the reader"
)]
mod header;

use header::{Header, MAX_HEADER, Version, encode, parse};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut verdict = Ok(None);
    for end in 0..=input.len() {
        let now = parse(&input[..end]);
        if verdict != Ok(None) {
            assert_eq!(now, verdict, "more bytes changed the verdict at {end}");
        }
        if let Ok(Some((_, length))) = now {
            assert!(length <= end && length <= MAX_HEADER);
        }
        verdict = now;
    }
    if input.len() >= MAX_HEADER {
        assert_ne!(verdict, Ok(None), "a header is waited for beyond the bound");
    }
    let Ok(Some((found, _))) = verdict else { return };
    if let Header::Tcp(proxied) = found {
        for ip in [proxied.source.ip(), proxied.destination.ip()] {
            assert_eq!(ip, ip.to_canonical());
        }
    }
    for version in [Version::V1, Version::V2] {
        let mut out = Vec::new();
        encode(version, &found, &mut out);
        let length = out.len();
        assert_eq!(parse(&out[..length - 1]), Ok(None));
        out.extend_from_slice(input);
        let expected = match (version, found) {
            (Version::V1, Header::Local) => Header::Unknown,
            (_, found) => found,
        };
        assert_eq!(parse(&out), Ok(Some((expected, length))));
    }
});
