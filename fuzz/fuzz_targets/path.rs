//! Path normalisation: the spelling is final, and nothing in it climbs or hides, decode it how often you like.
#![no_main]

mod http1;
mod message;
mod wire;

use message::path;

/// Whether a service that splits, decodes and drops parameters finds a dot segment.
fn climbs(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    })
}

libfuzzer_sys::fuzz_target!(|input: &str| {
    let _any = path::check_query(input);
    let Ok(once) = path::normalise(input) else { return };
    assert_eq!(path::normalise(&once).as_deref(), Ok(&*once));
    assert!(once.starts_with('/') && once.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!once.contains("//"));
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(&once).collect();
    let twice: Vec<u8> = percent_encoding::percent_decode(&decoded).collect();
    for reading in [once.as_bytes(), &decoded, &twice] {
        assert!(!climbs(reading), "{once} is {}", String::from_utf8_lossy(reading));
    }
});
