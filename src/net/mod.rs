//! Bytes: sockets, TLS, the PROXY protocol, timers.
//!
//! Everything above this module reads and writes one type, [`Io`], and learns who is at the other end from one
//! record, [`PeerInfo`]. It is the only module that knows what a socket option is, and the only one that knows
//! rustls, so a change of either stays here.
//! Invariant: nothing in here knows HTTP, configuration or policy.

pub mod address;
pub mod clock;
pub mod io;
pub mod memory;
pub mod proxy_protocol;
pub mod tcp;
pub mod tls;
pub mod wheel;

pub use address::{Address, SocketAddress};
pub use io::{Detached, IdleState, Io, PeerInfo, Stream};
pub use proxy_protocol::Proxied;
