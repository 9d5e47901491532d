//! TLS towards upstreams: one client configuration per cluster.
//!
//! One, because sessions can only be resumed with the configuration they began with. A reload that finds other files
//! begins anew with an empty session cache: a resumed session is not verified again, so it must not outlive the
//! authorities and the identity it was made with.
//! Invariant: without `insecure_skip_verify` nothing is sent to an upstream whose certificate was not verified for the
//! name it was dialled under.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::certificate::{self, CertificateFacts, Files, Fingerprint};
use super::problem::{Material, TlsProblem, TlsProblemKind};
use super::{
    Alpn, Changed, HandshakeError, HandshakeFailure, MinVersion, TlsInfo, alpn_on_the_wire, provider,
};
use crate::net::Io;

/// How a cluster's endpoints are spoken to over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// The name to ask and to verify for; none takes the endpoint's host.
    pub server_name: Option<String>,
    /// PEM file with the authorities to trust; none takes the system's.
    pub ca: Option<PathBuf>,
    /// Who we are; none sends no certificate.
    pub identity: Option<Identity>,
    /// The oldest version that is accepted.
    pub min_version: MinVersion,
    /// Accepts every certificate. For experiments; an operator is warned.
    pub insecure_skip_verify: bool,
    /// Protocols to offer, best first; empty offers none.
    pub alpn: Vec<Alpn>,
}

/// A client certificate and its key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain, our own certificate first.
    pub cert: PathBuf,
    /// The private key; may be the same file.
    pub key: PathBuf,
}

/// The TLS side of a cluster.
pub struct ClientTls {
    settings: ClientSettings,
    server_name: Option<ServerName<'static>>,
    live: ArcSwap<Live>,
}

struct Live {
    config: Arc<ClientConfig>,
    identity: Option<CertificateFacts>,
    files: Fingerprint,
}

impl ClientTls {
    /// Reads all files (or the system's authorities) and builds what handshakes need. **Blocks** on the file system.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first of it.
    pub fn load(settings: &ClientSettings) -> Result<Self, Vec<TlsProblem>> {
        let live = Live::load(settings);
        let server_name = settings.server_name.as_deref().map(parse_name).transpose();
        match (live, server_name) {
            (Ok(live), Ok(server_name)) => Ok(Self {
                settings: settings.clone(),
                server_name,
                live: ArcSwap::from_pointee(live),
            }),
            (live, name) => {
                let mut problems = live.err().unwrap_or_default();
                problems.extend(name.err());
                Err(problems)
            }
        }
    }

    /// Reads the files again and lets new connections use what is in them. **Blocks** on the file system.
    ///
    /// # Errors
    /// Everything that is wrong with the files; connections then go on with what was read before.
    pub fn reload(&self) -> Result<Changed, Vec<TlsProblem>> {
        let live = Live::load(&self.settings)?;
        // Kept unless something changed, because with the configuration go its sessions.
        if live.files == self.live.load().files {
            return Ok(Changed::No);
        }
        self.live.store(Arc::new(live));
        Ok(Changed::Yes)
    }

    /// The settings it was loaded with.
    pub const fn settings(&self) -> &ClientSettings {
        &self.settings
    }

    /// Our own certificate, if we present one.
    pub fn identity(&self) -> Option<CertificateFacts> {
        self.live.load().identity.clone()
    }

    /// The files that are to be watched.
    pub fn files(&self) -> Vec<PathBuf> {
        self.live.load().files.paths()
    }

    /// Shakes hands with an upstream that was dialled as `host` (a name or an IP address without brackets). What was
    /// negotiated is in [`TlsInfo::alpn`]; none means HTTP/1.1. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is no session; the connection is closed then. `WrongName` also when `host` cannot be a name and no
    /// `server_name` is set, as with Unix sockets.
    pub async fn connect(&self, io: Io, host: &str) -> Result<(Io, TlsInfo), HandshakeError> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(host).map_err(|problem| HandshakeError {
                failure: HandshakeFailure::WrongName,
                source: std::io::Error::new(std::io::ErrorKind::InvalidInput, problem.kind),
            })?,
        };
        let connector = TlsConnector::from(self.live.load().config.clone());
        let stream = connector.connect(name, io).await?;
        let mut info = TlsInfo::new(stream.get_ref().1, None);
        if self.settings.insecure_skip_verify {
            info.peer_names = Arc::from([]);
        }
        Ok((Io::tls_client(stream), info))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsProblem> {
    ServerName::try_from(name.to_owned()).map_err(|_invalid| TlsProblem {
        file: PathBuf::new(),
        material: Material::Authorities,
        kind: TlsProblemKind::InvalidName(name.to_owned()),
    })
}

impl Live {
    fn load(settings: &ClientSettings) -> Result<Self, Vec<TlsProblem>> {
        let provider = provider();
        let mut problems = Vec::new();
        let mut files = Files::default();
        let verifier =
            load_verifier(settings, &mut files, &provider).map_err(|problem| problems.push(problem));
        let identity = settings.identity.as_ref().map(|identity| {
            files.certified_key(&identity.cert, &identity.key, &provider, certificate::unix_now())
        });
        let identity = identity.transpose().map_err(|problem| problems.push(problem));
        let (Ok(verifier), Ok(identity)) = (verifier, identity) else {
            return Err(problems);
        };

        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(settings.min_version.protocol_versions())
            .map_err(|error| {
                let kind = TlsProblemKind::Refused(error.to_string());
                vec![TlsProblem {
                    file: PathBuf::new(),
                    material: Material::Authorities,
                    kind,
                }]
            })?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &identity {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(
                rustls::sign::SingleCertAndKey::from(certified.key.clone()),
            )),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn_on_the_wire(&settings.alpn);
        // Per server name; an endpoint dialled by address is a name of its own.
        config.resumption = Resumption::in_memory_sessions(1024);
        let identity = identity
            .zip(settings.identity.as_ref())
            .map(|(certified, source)| CertificateFacts {
                file: source.cert.clone(),
                names: certified.names,
                not_before: certified.not_before,
                not_after: certified.not_after,
            });
        Ok(Self {
            config: Arc::new(config),
            identity,
            files: files.fingerprint(),
        })
    }
}

fn load_verifier(
    settings: &ClientSettings,
    files: &mut Files,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsProblem> {
    // A file that is named must be good even while nothing is verified: it will be needed when verification is on.
    let roots = match &settings.ca {
        Some(path) => Some(files.authorities(path)?),
        None => None,
    };
    if settings.insecure_skip_verify {
        return Ok(Arc::new(AnyServer {
            provider: provider.clone(),
        }));
    }
    let roots = match roots {
        Some(roots) => roots,
        None => system_roots()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let verifier = verifier.map_err(|error| TlsProblem {
        file: settings.ca.clone().unwrap_or_default(),
        material: Material::Authorities,
        kind: TlsProblemKind::Malformed(error.to_string()),
    })?;
    Ok(verifier)
}

/// The authorities the operating system trusts (or `SSL_CERT_FILE` and `SSL_CERT_DIR`).
fn system_roots() -> Result<RootCertStore, TlsProblem> {
    let mut roots = RootCertStore::empty();
    // Systems carry old certificates that no parser accepts any more; the others are as good as before.
    let found = rustls_native_certs::load_native_certs();
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(TlsProblem {
            file: PathBuf::new(),
            material: Material::Authorities,
            kind: TlsProblemKind::NoSystemRoots,
        });
    }
    Ok(roots)
}

/// Accepts every certificate, but still makes the server prove that it has the key of the one it shows.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
