//! TLS of listeners and clusters: settings, and the reports of what is wrong with their files.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Certificates, Context};
use crate::config::Sp;
use crate::config::diagnostic::{Diagnostic, Span};
use crate::config::tls::{ClientAuthMode, ClusterTls, ListenerTls, TlsVersion};
use crate::config::units::FilePath;
use crate::net::tls::{
    Alpn, CertificateFacts, CertificateSource, ClientAuth, ClientSettings, ClientTls, Identity, Material,
    MinVersion, NamePattern, ServerSettings, ServerTls, TlsProblem, TlsProblemKind as Kind,
};

/// A certificate that ends sooner is warned about.
const SOON: i64 = 14 * 86_400;

/// The TLS side of a listener; none when it is off or something is wrong.
pub(super) fn server(
    owner: &str,
    written: &Sp<Option<ListenerTls>>,
    alpn: &[Alpn],
    cx: &mut Context<'_>,
) -> Option<Arc<ServerTls>> {
    let tls = written.value.as_ref()?;
    let mut files: Vec<&Sp<FilePath>> = Vec::new();
    let certificates = tls.certificates.iter().map(|certificate| {
        let certificate = &certificate.value;
        files.extend([&certificate.cert, &certificate.key]);
        CertificateSource {
            cert: certificate.cert.path.clone(),
            key: certificate.key.path.clone(),
            names: certificate
                .sni
                .iter()
                .flat_map(|names| names.iter())
                .map(|name| name.0.clone())
                .collect(),
        }
    });
    let certificates = certificates.collect();
    let client_auth = tls.client_auth.value.as_ref().map(|auth| {
        let crl = auth.crl.as_ref().map_or(&[][..], |crl| &crl.0);
        files.push(&auth.ca);
        files.extend(crl);
        ClientAuth {
            required: auth.mode.value == ClientAuthMode::Require,
            ca: auth.ca.path.clone(),
            crl: crl.iter().map(|file| file.path.clone()).collect(),
            allowed_names: auth
                .allowed_names
                .iter()
                .flat_map(|names| names.iter())
                .map(|name| NamePattern::new(name))
                .collect(),
        }
    });
    let settings = ServerSettings {
        certificates,
        min_version: min_version(tls.min_version.value),
        client_auth,
        alpn: alpn.to_vec(),
    };
    let owner: Arc<str> = owner.into();
    match cx.registry.server_tls(&owner, &settings) {
        Ok(made) => {
            for (facts, certificate) in made.certificates().iter().zip(tls.certificates.iter()) {
                warn_of_end(facts, certificate.cert.span, cx);
            }
            cx.certificates.push(Certificates::Server {
                owner,
                tls: Arc::clone(&made),
            });
            Some(made)
        }
        Err(problems) => {
            report(&problems, &files, written.key, cx);
            None
        }
    }
}

/// The TLS side of a cluster; none when it is off or something is wrong.
pub(super) fn client(
    owner: &str,
    written: &Sp<Option<ClusterTls>>,
    alpn: &[Alpn],
    cx: &mut Context<'_>,
) -> Option<Arc<ClientTls>> {
    let tls = written.value.as_ref()?;
    let identity = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(Identity {
            cert: cert.path.clone(),
            key: key.path.clone(),
        }),
        (None, None) => None,
        (Some(alone), None) => {
            cx.error(
                "E0202",
                "`tls` has no `key`",
                alone.key,
                "a certificate is shown with its key",
            );
            return None;
        }
        (None, Some(alone)) => {
            cx.error(
                "E0202",
                "`tls` has no `cert`",
                alone.key,
                "a key belongs to a certificate",
            );
            return None;
        }
    };
    let settings = ClientSettings {
        server_name: tls.server_name.as_ref().map(|name| name.value.clone()),
        ca: tls.ca.as_ref().map(|file| file.path.clone()),
        identity,
        min_version: min_version(tls.min_version.value),
        insecure_skip_verify: tls.insecure_skip_verify.value,
        alpn: alpn.to_vec(),
    };
    let owner: Arc<str> = owner.into();
    match cx.registry.client_tls(&owner, &settings) {
        Ok(made) => {
            if let (Some(facts), Some(cert)) = (made.identity(), &tls.cert) {
                warn_of_end(&facts, cert.span, cx);
            }
            cx.certificates.push(Certificates::Client {
                owner,
                tls: Arc::clone(&made),
            });
            Some(made)
        }
        Err(problems) => {
            let files: Vec<&Sp<FilePath>> = [&tls.cert, &tls.key, &tls.ca].into_iter().flatten().collect();
            let at = tls.server_name.as_ref().map_or(written.key, |name| name.span);
            report(&problems, &files, at, cx);
            None
        }
    }
}

const fn min_version(written: TlsVersion) -> MinVersion {
    match written {
        TlsVersion::Tls12 => MinVersion::Tls12,
        TlsVersion::Tls13 => MinVersion::Tls13,
    }
}

fn warn_of_end(facts: &CertificateFacts, at: Span, cx: &mut Context<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = facts
        .not_after
        .saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if left < SOON {
        let days = left / 86_400;
        let when = match days {
            0 => "today".to_owned(),
            1 => "in 1 day".to_owned(),
            days => format!("in {days} days"),
        };
        cx.out.push(
            Diagnostic::warning("W0601", format!("the certificate expires {when}"))
                .at(at, format!("valid until {}", date(facts.not_after)))
                .note(format!("it is for {}", facts.names.join(", "))),
        );
    }
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| "an unknown date".to_owned(),
        |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

fn report(problems: &[TlsProblem], files: &[&Sp<FilePath>], otherwise: Span, cx: &mut Context<'_>) {
    for problem in problems {
        let span_of = |file: &Path, material: Option<Material>| {
            let mut found = files.iter().filter(|known| known.path == file);
            let first = found.clone().next();
            // One file may be both certificate and key: the key stands second.
            let written = match material {
                Some(Material::Key) => found.next_back(),
                _ => first,
            };
            written.map(|written| written.span)
        };
        let at = span_of(&problem.file, Some(problem.material)).unwrap_or(otherwise);
        let mut diagnostic = describe(problem, at);
        if let Kind::KeyMismatch(certificate) = &problem.kind
            && let Some(other) = span_of(certificate, None)
        {
            diagnostic = diagnostic.also(other, "the certificate");
        }
        cx.out.push(diagnostic);
    }
}

fn describe(problem: &TlsProblem, at: Span) -> Diagnostic {
    let file = problem.file.display();
    let what = problem.material;
    match &problem.kind {
        Kind::NotFound => Diagnostic::error("E0601", format!("{what} file not found"))
            .at(at, format!("no such file: {file}")),
        Kind::Unreadable(why) => Diagnostic::error("E0601", format!("the {what} file cannot be read"))
            .at(at, why.clone())
            .note(format!("the file is {file}")),
        Kind::KeyMismatch(certificate) => {
            let certificate = certificate.display();
            Diagnostic::error("E0602", "the private key does not belong to the certificate")
                .at(at, format!("the key of another certificate than {certificate}"))
                .help(format!(
                    "both must print the same: `openssl x509 -noout -pubkey -in {certificate}` and `openssl pkey -pubout -in {file}`"
                ))
        }
        Kind::EncryptedKey => Diagnostic::error("E0602", "the private key is encrypted")
            .at(at, "a key with a passphrase cannot be read at start")
            .help(format!(
                "`openssl pkey -in {file} -out plain.key` writes one without; protect it by file permissions"
            )),
        Kind::Der => Diagnostic::error("E0602", format!("the {what} is not PEM"))
            .at(at, "DER or PKCS#12")
            .help(match what {
                Material::Key => format!("`openssl pkey -inform der -in {file} -out key.pem` converts it"),
                Material::RevocationList => {
                    format!("`openssl crl -inform der -in {file} -out crl.pem` converts it")
                }
                Material::Certificate | Material::Authorities => {
                    format!("`openssl x509 -inform der -in {file} -out cert.pem` converts it")
                }
            }),
        Kind::KeyInsteadOfCertificate => Diagnostic::error(
            "E0602",
            "a private key where the certificate belongs",
        )
        .at(at, "this file holds a private key")
        .help(format!(
            "are `cert` and `key` swapped? `openssl x509 -noout -subject -in {file}` shows a certificate"
        )),
        Kind::CertificateInsteadOfKey => {
            Diagnostic::error("E0602", "a certificate where the private key belongs")
                .at(at, "this file holds a certificate")
                .help(format!(
                    "are `cert` and `key` swapped? `openssl pkey -noout -text -in {file}` shows a key"
                ))
        }
        Kind::Expired(end) => Diagnostic::error("E0607", "the certificate has expired")
            .at(at, format!("was valid until {}", date(*end)))
            .help(format!("`openssl x509 -noout -dates -in {file}` shows it")),
        Kind::NameNotCovered { name, certificate } => {
            Diagnostic::error("E0607", format!("the certificate is not valid for `{name}`"))
                .at(at, format!("it is for {}", certificate.join(", ")))
        }
        Kind::NoNames => Diagnostic::error("E0607", "the certificate has no DNS name")
            .at(at, "no client would ever be given it")
            .help("name the hosts: `sni: www.example.com`"),
        Kind::InvalidName(name) => {
            Diagnostic::error("E0602", format!("`{name}` is not a host name")).at(at, "")
        }
        Kind::NoSystemRoots => Diagnostic::error("E0602", "the system has no trusted CA certificates")
            .at(at, "")
            .help("name a file with `ca:`, or install the package ca-certificates"),
        kind @ (Kind::NoPem
        | Kind::Missing(_)
        | Kind::Malformed(_)
        | Kind::UnsupportedKey(_)
        | Kind::Refused(_)) => Diagnostic::error("E0602", format!("the {what} cannot be used"))
            .at(at, kind.to_string())
            .note(format!("the file is {file}")),
    }
}
