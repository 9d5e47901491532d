//! TLS towards clients: certificates chosen by name, client certificates, resumption, reload without a new listener.
//!
//! A listener keeps one [`ServerTls`] for its whole life. What it needs for a handshake sits in one immutable value
//! that a reload replaces as a whole, so a handshake sees either all old files or all new ones. Session tickets are
//! stateless and survive a reload, with one exception: a resumed session is not verified again, so tickets end when
//! anything about client authentication changed. Otherwise a revoked client could return on its old ticket for hours.
//! Invariant: a failed reload changes nothing.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_rustls::TlsAcceptor;

use super::certificate::{self, CertificateFacts, Certified, Files, Fingerprint};
use super::problem::{Material, TlsProblem, TlsProblemKind};
use super::{Alpn, Changed, HandshakeError, MinVersion, NamePattern, TlsInfo, alpn_on_the_wire, provider};
use crate::net::Io;

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// At least one; the first answers clients that name none of them.
    pub certificates: Vec<CertificateSource>,
    /// The oldest version that is accepted.
    pub min_version: MinVersion,
    /// Client certificates; none does not ask for one.
    pub client_auth: Option<ClientAuth>,
    /// Protocols to negotiate, best first. Empty negotiates nothing; otherwise no overlap refuses the handshake.
    pub alpn: Vec<Alpn>,
}

/// A certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSource {
    /// PEM file with the chain, our own certificate first.
    pub cert: PathBuf,
    /// PEM file with the private key; may be the same file.
    pub key: PathBuf,
    /// The SNI names it answers to, exact or `*.example.com`; empty takes those in the certificate.
    pub names: Vec<String>,
}

/// How clients prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// Without a certificate there is no connection. Otherwise one is verified if it is sent.
    pub required: bool,
    /// PEM file with the authorities that may vouch for clients.
    pub ca: PathBuf,
    /// PEM files with revocation lists. With any, every issuer in a client's chain needs one, as in OpenSSL's
    /// `crl_check_all`; a list past its `nextUpdate` is still used.
    pub crl: Vec<PathBuf>,
    /// One of them must match a name in the certificate; empty allows every name.
    pub allowed_names: Vec<NamePattern>,
}

/// The TLS side of a listener.
pub struct ServerTls {
    settings: ServerSettings,
    live: ArcSwap<Live>,
}

/// Everything that came from one reading of the files.
struct Live {
    config: Arc<ServerConfig>,
    certificates: Arc<[CertificateFacts]>,
    files: Fingerprint,
    /// What a resumed session was once verified against.
    trust: Trust,
}

#[derive(PartialEq, Eq)]
struct Trust {
    client_auth: Option<ClientAuth>,
    files: Fingerprint,
}

/// What lets a client come back without a full handshake.
struct Sessions {
    ticketer: Arc<dyn ProducesTickets>,
    cache: Arc<dyn StoresServerSessions>,
}

impl ServerTls {
    /// Reads all files and builds what handshakes need. **Blocks** on the file system.
    ///
    /// # Errors
    /// Everything that is wrong with the files, not only the first of it.
    pub fn load(settings: &ServerSettings) -> Result<Self, Vec<TlsProblem>> {
        let live = Live::load(settings, None)?;
        Ok(Self {
            settings: settings.clone(),
            live: ArcSwap::from_pointee(live),
        })
    }

    /// As [`Self::load`], and clients of `self` can resume their sessions with the result.
    ///
    /// For a configuration that was changed elsewhere: the listener stays, its settings may be other ones.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_next(&self, settings: &ServerSettings) -> Result<Self, Vec<TlsProblem>> {
        let live = Live::load(settings, Some(&self.live.load()))?;
        Ok(Self {
            settings: settings.clone(),
            live: ArcSwap::from_pointee(live),
        })
    }

    /// Reads the files again and lets new handshakes use what is in them. **Blocks** on the file system.
    ///
    /// # Errors
    /// Everything that is wrong with the files; handshakes then go on with what was read before.
    pub fn reload(&self) -> Result<Changed, Vec<TlsProblem>> {
        let before = self.live.load_full();
        let live = Live::load(&self.settings, Some(&before))?;
        if live.files == before.files {
            return Ok(Changed::No);
        }
        self.live.store(Arc::new(live));
        Ok(Changed::Yes)
    }

    /// The settings it was loaded with.
    pub const fn settings(&self) -> &ServerSettings {
        &self.settings
    }

    /// The certificates in use, in the order of the settings.
    pub fn certificates(&self) -> Arc<[CertificateFacts]> {
        self.live.load().certificates.clone()
    }

    /// The files that are to be watched.
    pub fn files(&self) -> Vec<PathBuf> {
        self.live.load().files.paths()
    }

    /// Shakes hands with a client. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is no session; the connection is closed then, after an alert where the protocol has one.
    pub async fn accept(&self, io: Io) -> Result<(Io, TlsInfo), HandshakeError> {
        let acceptor = TlsAcceptor::from(self.live.load().config.clone());
        let stream = acceptor.accept(io).await?;
        let (_, session) = stream.get_ref();
        let info = TlsInfo::new(session, session.server_name());
        Ok((Io::tls_server(stream), info))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Live {
    fn load(settings: &ServerSettings, before: Option<&Self>) -> Result<Self, Vec<TlsProblem>> {
        let provider = provider();
        let now = certificate::unix_now();
        let mut problems = Vec::new();
        let mut files = Files::default();
        let mut served = Served::default();
        let mut facts = Vec::with_capacity(settings.certificates.len());
        for (index, source) in settings.certificates.iter().enumerate() {
            let loaded = files
                .certified_key(&source.cert, &source.key, &provider, now)
                .and_then(|certified| {
                    sni_names(source, &certified, index == 0).map(|names| (certified, names))
                });
            match loaded {
                Ok((certified, names)) => {
                    served.add(&names, certified.key);
                    facts.push(CertificateFacts {
                        file: source.cert.clone(),
                        names,
                        not_before: certified.not_before,
                        not_after: certified.not_after,
                    });
                }
                Err(problem) => problems.push(problem),
            }
        }
        let mut trust_files = Files::default();
        let verifier = match &settings.client_auth {
            Some(auth) => load_verifier(auth, &mut trust_files, &provider),
            None => Ok(WebPkiClientVerifier::no_client_auth()),
        };
        let verifier = match verifier {
            Ok(verifier) if problems.is_empty() => verifier,
            Ok(_) => return Err(problems),
            Err(more) => {
                problems.extend(more);
                return Err(problems);
            }
        };

        let trust = Trust {
            client_auth: settings.client_auth.clone(),
            files: trust_files.fingerprint(),
        };
        let refused = |error: rustls::Error| {
            let kind = TlsProblemKind::Refused(error.to_string());
            vec![TlsProblem {
                file: PathBuf::new(),
                material: Material::Certificate,
                kind,
            }]
        };
        let sessions = match before {
            Some(before) if before.trust == trust => Sessions::of(&before.config),
            Some(_) | None => Sessions::new().map_err(refused)?,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(settings.min_version.protocol_versions())
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(served));
        config.alpn_protocols = alpn_on_the_wire(&settings.alpn);
        config.ticketer = sessions.ticketer;
        // A ticket is as good as two and costs half; clients that want more connections resume from one as well.
        config.send_tls13_tickets = 1;
        config.session_storage = sessions.cache;
        let files = files.fingerprint().and(&trust.files);
        Ok(Self {
            config: Arc::new(config),
            certificates: facts.into(),
            files,
            trust,
        })
    }
}

impl Sessions {
    fn new() -> Result<Self, rustls::Error> {
        Ok(Self {
            ticketer: aws_lc_rs::Ticketer::new()?,
            // Only TLS 1.2 clients without ticket support need it.
            cache: ServerSessionMemoryCache::new(1024),
        })
    }

    fn of(config: &ServerConfig) -> Self {
        Self {
            ticketer: config.ticketer.clone(),
            cache: config.session_storage.clone(),
        }
    }
}

/// The names a certificate answers to: those written, which it must have been made for, or its own.
fn sni_names(
    source: &CertificateSource,
    certified: &Certified,
    is_default: bool,
) -> Result<Vec<String>, TlsProblem> {
    let problem = |kind| TlsProblem {
        file: source.cert.clone(),
        material: Material::Certificate,
        kind,
    };
    if source.names.is_empty() {
        // The default answers even without a name; another certificate would never be chosen.
        return if certified.names.is_empty() && !is_default {
            Err(problem(TlsProblemKind::NoNames))
        } else {
            Ok(certified.names.clone())
        };
    }
    let mut names = Vec::with_capacity(source.names.len());
    for name in &source.names {
        let lower = name.to_ascii_lowercase();
        if !certified.names.iter().any(|own| covers(own, &lower)) {
            return Err(problem(TlsProblemKind::NameNotCovered {
                name: name.clone(),
                certificate: certified.names.clone(),
            }));
        }
        names.push(lower);
    }
    Ok(names)
}

/// RFC 6125 §6.4.3: `*` is exactly one label, the leftmost.
fn covers(certificate: &str, name: &str) -> bool {
    certificate == name
        || certificate.strip_prefix("*.").is_some_and(|parent| {
            name.split_once('.')
                .is_some_and(|(label, rest)| rest == parent && label != "*" && !label.is_empty())
        })
}

/// Chooses the certificate: by exact name, then by wildcard, then the first.
#[derive(Debug, Default)]
struct Served {
    default: Vec<Arc<CertifiedKey>>,
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Served {
    /// A name may have several certificates, with keys of different types.
    fn add(&mut self, names: &[String], key: Arc<CertifiedKey>) {
        for name in names {
            let keys = match name.strip_prefix("*.") {
                Some(parent) => self.wildcard.entry(parent.to_owned()),
                None => self.exact.entry(name.clone()),
            };
            keys.or_default().push(key.clone());
        }
        if self.default.is_empty() {
            self.default.push(key);
        }
    }

    fn candidates(&self, server_name: Option<&str>) -> &[Arc<CertifiedKey>] {
        // rustls hands the name out in lower case.
        let found = server_name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                name.split_once('.')
                    .and_then(|(_, parent)| self.wildcard.get(parent))
            })
        });
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.candidates(hello.server_name());
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates
            .iter()
            .find(usable)
            .or_else(|| candidates.first())
            .cloned()
    }
}

fn load_verifier(
    auth: &ClientAuth,
    files: &mut Files,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Vec<TlsProblem>> {
    let mut problems = Vec::new();
    let roots = files.authorities(&auth.ca).unwrap_or_else(|problem| {
        problems.push(problem);
        RootCertStore::empty()
    });
    let mut lists = Vec::new();
    for path in &auth.crl {
        match files.revocation_lists(path) {
            Ok(found) => lists.extend(found),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).with_crls(lists);
    let builder = if auth.required {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    let verifier = builder.build().map_err(|error| {
        let (file, material) = match (&error, auth.crl.first()) {
            (rustls::server::VerifierBuilderError::InvalidCrl(_), Some(crl)) => {
                (crl, Material::RevocationList)
            }
            _ => (&auth.ca, Material::Authorities),
        };
        vec![TlsProblem {
            file: file.clone(),
            material,
            kind: TlsProblemKind::Malformed(error.to_string()),
        }]
    })?;
    if auth.allowed_names.is_empty() {
        return Ok(verifier);
    }
    Ok(Arc::new(NamedClients {
        chain: verifier,
        allowed: auth.allowed_names.clone(),
    }))
}

/// Verifies the chain first and the names second, still inside the handshake: a client that may not come in learns
/// nothing but that.
#[derive(Debug)]
struct NamedClients {
    chain: Arc<dyn ClientCertVerifier>,
    allowed: Vec<NamePattern>,
}

impl ClientCertVerifier for NamedClients {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let names = certificate::names(end_entity).map_err(|_unparsable| CertificateError::BadEncoding)?;
        if self.allowed.iter().any(|pattern| pattern.allows(&names)) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
