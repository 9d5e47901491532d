//! HTTP/1.1 (RFC 9112), strict on what it accepts.

pub mod chunked;
pub mod encode;
pub mod head;
#[cfg(test)]
mod laws;
mod scan;
