//! HTTP/1.1 (RFC 9112), strict on what it accepts.
