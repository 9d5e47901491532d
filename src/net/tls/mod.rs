//! TLS: the only module that knows rustls.
//!
//! Callers see settings, [`super::Io`] before and after, and what was negotiated ([`TlsInfo`]). Everything is built
//! with an explicit provider, because a second provider in the process would make rustls' defaults panic.

use std::sync::Arc;

use super::io::Io;

/// A TLS session with a client, over any stream.
pub(super) type ServerStream = tokio_rustls::server::TlsStream<Io>;
/// A TLS session with an upstream, over any stream.
pub(super) type ClientStream = tokio_rustls::client::TlsStream<Io>;

/// An application protocol that can be negotiated (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `h2`
    Http2,
    /// `http/1.1`
    Http1,
}

impl Alpn {
    /// The identifier on the wire, from the IANA registry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http2 => "h2",
            Self::Http1 => "http/1.1",
        }
    }

    #[expect(dead_code, reason = "made by the TLS handshakes")]
    fn from_wire(name: &[u8]) -> Option<Self> {
        [Self::Http2, Self::Http1]
            .into_iter()
            .find(|protocol| protocol.as_str().as_bytes() == name)
    }
}

/// What a handshake agreed on, and who the other end proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// The name the client asked for (SNI), lower case.
    pub server_name: Option<Arc<str>>,
    /// The application protocol, if one was negotiated.
    pub alpn: Option<Alpn>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, in IANA spelling.
    pub cipher: &'static str,
    /// The session was resumed: no certificate was exchanged again.
    pub resumed: bool,
    /// The names in the peer's verified certificate: URIs (SPIFFE ids) first, then DNS names. Empty without one.
    pub peer_names: Arc<[Arc<str>]>,
}
