//! Path normalisation: the spelling is final, and nothing in it climbs or hides.
#![no_main]

#[path = "../../src/message/path.rs"]
#[allow(dead_code, reason = "the query is not looked at here")]
mod path;

libfuzzer_sys::fuzz_target!(|input: &str| {
    let Ok(once) = path::normalise(input) else { return };
    assert_eq!(path::normalise(&once).as_deref(), Ok(&*once));
    assert!(once.starts_with('/') && once.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!once.contains("//"));
    // Whoever decodes once more finds no dot segment either.
    let lower = once.to_ascii_lowercase().replace("%2e", ".");
    assert!(
        !lower.split('/').any(|segment| segment == "." || segment == ".."),
        "{once}"
    );
});
