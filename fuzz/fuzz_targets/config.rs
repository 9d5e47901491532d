//! Configurations: any bytes are answered with a document or with reasons, and both can be printed in every form.
#![no_main]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "no target uses everything"
)]

#[path = "../../src/config/mod.rs"]
mod config;

use config::render::{self, Look};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let reader = config::Reader::new()
        .with_root("/nonexistent")
        .with_variables([("A", "b")]);
    let reader = if input.len() % 2 == 0 {
        reader.with_every_block()
    } else {
        reader
    };
    let look = Look {
        color: input.len() % 3 == 0,
        width: 40 + input.len() % 100,
        hints: true,
    };
    match reader.read_bytes("bellwether.yaml", input) {
        Ok(document) => {
            let text = config::show::yaml(&document, None, false).expect("all of it");
            let again = reader.read_bytes("again.yaml", text.as_bytes());
            // A masked secret reads back as another one, and files are resolved anew; all else is the same.
            if let Ok(again) = again {
                assert_eq!(config::show::yaml(&again, None, false).expect("all of it"), text);
            }
            let _said = render::text(&document.diagnostics, look);
        }
        Err(diagnostics) => {
            assert!(diagnostics.has_errors());
            assert!(!render::text(&diagnostics, look).is_empty());
            let _forms = (
                render::json(&diagnostics),
                render::github(&diagnostics),
                render::sarif(&diagnostics),
            );
        }
    }
});
