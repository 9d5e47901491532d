//! HTTP/2 (RFC 9113) connections over the h2 crate.
