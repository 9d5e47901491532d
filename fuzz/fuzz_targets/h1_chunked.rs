//! Chunked bodies: any bytes, cut anywhere, obey the laws of the codec.
#![no_main]

mod http1;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    http1::laws::chunked(input, &http1::cuts(input));
});
