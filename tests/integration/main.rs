//! The proxy through real sockets, one file per subject.
//!
//! Every test starts the built binary with a configuration of its own on ports the kernel chooses, puts scripted
//! upstreams behind it and a strict client in front, and claims one thing. Nothing here knows the proxy's types: what is
//! tested is what goes over the wire, what stands in `/metrics` and the log, and how the process ends.
//!
//! A peer that receives something it must not (two lengths, a bare line feed, a field of one hop) fails the test that
//! started it, whatever that test was about.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says what went wrong by failing"
)]
#![allow(unreachable_pub, reason = "one binary; nothing is public")]

mod admission;
mod attempts;
mod balancing;
mod breaker;
mod commands;
mod discovery;
mod ejection;
mod floods;
mod grpc;
mod h1;
mod h2;
mod health;
mod hostile;
mod hygiene;
mod lifecycle;
mod limits;
mod listeners;
mod nginx;
mod observability;
mod reload;
mod retries;
mod routing;
mod smuggling;
mod streaming;
mod support;
mod tls;
mod websocket;
