//! Response heads, as answers to a method that the length of the input chooses.
#![no_main]

mod http1;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let method = match input.len() % 4 {
        0 => http::Method::HEAD,
        1 => http::Method::CONNECT,
        _ => http::Method::GET,
    };
    http1::laws::response(input, &http1::cuts(input), &method);
});
