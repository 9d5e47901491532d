//! Bytes: sockets, TLS, the PROXY protocol, timers.
