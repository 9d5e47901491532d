//! HTTP on the wire: the HTTP/1.1 codec and connections, and HTTP/2 on the h2 crate.

pub mod http1;
pub mod http2;
