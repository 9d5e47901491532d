//! Bellwether: a layer-7 proxy that keeps working when your services do not.
//!
//! Decisions live in `bellwether-core`; this crate performs the I/O around them. Modules are layered and import
//! downward only (`docs/architecture.md` holds the table, `tests/architecture.rs` checks it).

pub mod admin;
pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod message;
pub mod net;
pub mod proxy;
pub mod route;
pub mod server;
pub mod snapshot;
pub mod telemetry;
pub mod wire;

#[cfg(test)]
#[path = "../tests/integration/support/pki.rs"]
mod test_pki;
