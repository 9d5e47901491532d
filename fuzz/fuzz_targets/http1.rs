//! The HTTP/1.1 codec, taken in by path, and cuts derived from the input, so that seeds stay plain text.
#![allow(dead_code, reason = "no target uses everything")]

#[path = "../../src/wire/http1/chunked.rs"]
pub mod chunked;
#[path = "../../src/wire/http1/encode.rs"]
pub mod encode;
#[path = "../../src/wire/http1/head.rs"]
pub mod head;
#[path = "../../src/wire/http1/laws.rs"]
pub mod laws;
#[path = "../../src/wire/http1/scan.rs"]
mod scan;

/// A few places to cut `input` at, or all of them.
pub fn cuts(input: &[u8]) -> Vec<usize> {
    let mut state = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    if state % 8 == 0 {
        return (0..=input.len()).collect();
    }
    (0..state % 5 + 1)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        })
        .collect()
}
