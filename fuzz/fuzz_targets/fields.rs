//! Small fields that we read: `traceparent`, `grpc-timeout`, `grpc-message`, `grpc-status`.
#![no_main]

mod http1;
mod message;
mod wire;

use bellwether_core::deadline::GrpcTimeout;
use bellwether_core::{Deadline, Moment, deadline};
use http::header::{HeaderMap, HeaderValue};
use message::{grpc, trace};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(context) = trace::TraceContext::parse(input) {
        let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(context.trace_id().len() == 32 && hex(context.trace_id()));
        assert!(context.parent_id().len() == 16 && hex(context.parent_id()));
        let again = format!(
            "00-{}-{}-0{}",
            context.trace_id(),
            context.parent_id(),
            u8::from(context.is_sampled())
        );
        assert_eq!(trace::TraceContext::parse(again.as_bytes()), Some(context));
    }
    if let Some(left) = deadline::parse_grpc_timeout(input) {
        let written = GrpcTimeout::new(left);
        let read = deadline::parse_grpc_timeout(written.as_bytes()).expect("what is written is read");
        assert!(read <= left, "{left:?} became {read:?}");
        let now = Moment::default();
        // A deadline centuries away is none.
        let forwarded = Deadline::after(now, left).forwarded(now);
        assert!(forwarded.map_or(left.as_secs() > 1 << 33, |forwarded| forwarded <= left));
    }
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let text = grpc::decode_message(&value);
    let encoded = grpc::encode_message(&text);
    assert!(encoded.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)));
    assert_eq!(grpc::decode_message(&encoded), text);
    let mut headers = HeaderMap::new();
    for name in ["grpc-status", "content-type", "traceparent", "tracestate"] {
        headers.insert(name, value.clone());
    }
    assert!(grpc::Code::of(&headers).is_some_and(|code| code.number() < 17));
    let _any = grpc::is_grpc(&headers);
    if trace::take(&mut headers).is_none() {
        assert!(!headers.contains_key("traceparent") && !headers.contains_key("tracestate"));
    }
});
