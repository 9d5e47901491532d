//! TLS: the only module that knows rustls.
//!
//! Callers see settings, [`super::Io`] before and after, and what was negotiated ([`TlsInfo`]). Everything is built
//! with an explicit provider (aws-lc-rs, post-quantum hybrid key exchange first), because a second provider in the
//! process would make rustls' defaults panic.
//! Invariant: files are read while loading or reloading, never during a handshake.

mod certificate;
mod client;
mod names;
mod problem;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, CipherSuite, CommonState, HandshakeKind, SupportedProtocolVersion};

use super::io::Io;

pub use certificate::CertificateFacts;
pub use client::{ClientSettings, ClientTls, Identity};
pub use names::NamePattern;
pub use problem::{Material, TlsProblem, TlsProblemKind};
pub use server::{CertificateSource, ClientAuth, ServerSettings, ServerTls};

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

    fn from_wire(name: &[u8]) -> Option<Self> {
        [Self::Http2, Self::Http1]
            .into_iter()
            .find(|protocol| protocol.as_str().as_bytes() == name)
    }
}

fn alpn_on_the_wire(protocols: &[Alpn]) -> Vec<Vec<u8>> {
    protocols
        .iter()
        .map(|protocol| protocol.as_str().as_bytes().to_vec())
        .collect()
}

/// The oldest version that is spoken; there is nothing below 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MinVersion {
    /// TLS 1.2 (RFC 5246) and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 (RFC 8446) only.
    Tls13,
}

impl MinVersion {
    fn protocol_versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => &VERSIONS,
            Self::Tls13 => &VERSIONS[..1],
        }
    }
}

/// What changed when files were read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// The files hold what they held; nothing was replaced.
    No,
    /// New handshakes use what the files hold now.
    Yes,
}

/// What a handshake agreed on, and who the other end proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// The name the client asked for (SNI), lower case. None on our own connections to upstreams.
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

impl TlsInfo {
    /// The peer's first SPIFFE id, if its certificate has one.
    pub fn spiffe_id(&self) -> Option<&Arc<str>> {
        self.peer_names.iter().find(|name| name.starts_with("spiffe://"))
    }

    fn new(session: &CommonState, server_name: Option<&str>) -> Self {
        let peer = session.peer_certificates().and_then(|chain| chain.first());
        Self {
            server_name: server_name.map(Arc::from),
            alpn: session.alpn_protocol().and_then(Alpn::from_wire),
            version: match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "",
            },
            cipher: session
                .negotiated_cipher_suite()
                .map_or("", |suite| iana_name(suite.suite())),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            // The certificate was verified already; one that cannot be parsed here names nobody.
            peer_names: peer
                .and_then(|certificate| certificate::names(certificate).ok())
                .map_or_else(|| Arc::from([]), certificate::Names::all),
        }
    }
}

/// rustls writes `TLS13_` where the registry has `TLS_`.
fn iana_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        older => older.as_str().unwrap_or_default(),
    }
}

/// Why a handshake failed: one row per thing an operator can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The peer left before it was done; also what port scanners and plain TCP checks do.
    Closed,
    /// The socket failed.
    Io,
    /// The peer does not speak TLS.
    NotTls,
    /// No version, cipher suite, key exchange or signature scheme in common.
    Incompatible,
    /// No application protocol in common.
    Alpn,
    /// A certificate was required and none was sent.
    NoCertificate,
    /// The peer's certificate is not valid at this time.
    Expired,
    /// The peer's certificate comes from an authority we do not trust.
    UnknownIssuer,
    /// The peer's certificate was made for other names than the one we asked for.
    WrongName,
    /// The peer's certificate was revoked, or no list says that it was not.
    Revoked,
    /// The peer's certificate is fine but no allowed name is in it.
    NameNotAllowed,
    /// The peer's certificate is wrong in another way.
    BadCertificate,
    /// The peer sent an alert: it did not like what we offered, mostly our certificate.
    RefusedByPeer,
    /// The peer broke the protocol.
    Protocol,
}

impl HandshakeFailure {
    /// Short name, for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Io => "io",
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::Alpn => "alpn",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongName => "wrong_name",
            Self::Revoked => "revoked",
            Self::NameNotAllowed => "name_not_allowed",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Protocol => "protocol",
        }
    }

    fn of(error: &io::Error) -> Self {
        use rustls::{Error, InvalidMessage};
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return match error.kind() {
                // A reset in mid-handshake is how many checks hang up.
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    Self::Closed
                }
                _ => Self::Io,
            };
        };
        match tls {
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::NoApplicationProtocol => Self::Alpn,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            Error::InvalidCertificate(certificate) => Self::of_certificate(certificate),
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
                Self::Expired
            }
            E::UnknownIssuer => Self::UnknownIssuer,
            E::NotValidForName | E::NotValidForNameContext { .. } => Self::WrongName,
            E::Revoked | E::UnknownRevocationStatus => Self::Revoked,
            E::ApplicationVerificationFailure => Self::NameNotAllowed,
            _ => Self::BadCertificate,
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A handshake that failed; the connection is gone, and the peer was told why if it was still there.
#[derive(Debug, thiserror::Error)]
#[error("TLS handshake failed: {source}")]
pub struct HandshakeError {
    /// The kind of failure.
    pub failure: HandshakeFailure,
    /// What exactly was said, for the log.
    pub source: io::Error,
}

impl From<io::Error> for HandshakeError {
    fn from(source: io::Error) -> Self {
        Self {
            failure: HandshakeFailure::of(&source),
            source,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
