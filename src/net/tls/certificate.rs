//! Reading certificates, keys and revocation lists from PEM files, and the facts that are in them.
//!
//! Every way in which a file can be the wrong one is told apart here, once, for both sides of the proxy. Text is looked
//! at before it is parsed, because the usual mistakes (the key where the certificate belongs, DER, a passphrase) are
//! visible from the PEM labels alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::problem::{Material, TlsProblem, TlsProblemKind as Kind};

/// What an operator wants to know about a certificate in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The file it came from.
    pub file: PathBuf,
    /// The SNI names it answers to; patterns such as `*.example.com` as written.
    pub names: Vec<String>,
    /// When it begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

/// The subject alternative names that are used for authentication. DNS names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) uris: Vec<String>,
    pub(super) dns: Vec<String>,
}

impl Names {
    pub(super) fn all(self) -> Arc<[Arc<str>]> {
        self.uris.into_iter().chain(self.dns).map(Arc::from).collect()
    }
}

/// The names in a certificate.
///
/// # Errors
/// What the parser said; a certificate without names is no error.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Result<Names, String> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let mut names = Names::default();
    if let Some(extension) = parsed
        .subject_alternative_name()
        .map_err(|error| error.to_string())?
    {
        for name in &extension.value.general_names {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.dns.push(name.to_ascii_lowercase()),
                _ => {}
            }
        }
    }
    Ok(names)
}

/// The files of one load, each of them read once.
#[derive(Default)]
pub(super) struct Files {
    contents: BTreeMap<PathBuf, Vec<u8>>,
}

/// What files held when they were loaded: tells whether a later load found anything new, without keeping keys around.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fingerprint(BTreeMap<PathBuf, u128>);

impl Fingerprint {
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.keys().cloned().collect()
    }

    pub(super) fn and(mut self, other: &Self) -> Self {
        self.0
            .extend(other.0.iter().map(|(path, hash)| (path.clone(), *hash)));
        self
    }
}

impl Files {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let hash = |(path, bytes): (&PathBuf, &Vec<u8>)| (path.clone(), xxhash_rust::xxh3::xxh3_128(bytes));
        Fingerprint(self.contents.iter().map(hash).collect())
    }

    pub(super) fn certificates(
        &mut self,
        path: &Path,
        material: Material,
    ) -> Result<Vec<CertificateDer<'static>>, TlsProblem> {
        let problem = |kind| TlsProblem {
            file: path.to_owned(),
            material,
            kind,
        };
        let bytes = self.read(path).map_err(problem)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        match found {
            Ok(found) if found.is_empty() && holds(bytes, "PRIVATE KEY-----") => {
                Err(problem(Kind::KeyInsteadOfCertificate))
            }
            Ok(found) if found.is_empty() => Err(problem(Kind::Missing(material))),
            Ok(found) => Ok(found),
            Err(error) => Err(problem(Kind::Malformed(error.to_string()))),
        }
    }

    pub(super) fn authorities(&mut self, path: &Path) -> Result<RootCertStore, TlsProblem> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(path, Material::Authorities)? {
            roots.add(certificate).map_err(|error| TlsProblem {
                file: path.to_owned(),
                material: Material::Authorities,
                kind: Kind::Malformed(error.to_string()),
            })?;
        }
        Ok(roots)
    }

    pub(super) fn revocation_lists(
        &mut self,
        path: &Path,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsProblem> {
        let problem = |kind| TlsProblem {
            file: path.to_owned(),
            material: Material::RevocationList,
            kind,
        };
        let bytes = self.read(path).map_err(problem)?;
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
        match found {
            Ok(found) if found.is_empty() => Err(problem(Kind::Missing(Material::RevocationList))),
            Ok(found) => Ok(found),
            Err(error) => Err(problem(Kind::Malformed(error.to_string()))),
        }
    }

    fn key(&mut self, path: &Path) -> Result<PrivateKeyDer<'static>, Kind> {
        let bytes = self.read(path)?;
        // PKCS#8 has a label of its own for it; the older forms say it in a header inside the block.
        if holds(bytes, "BEGIN ENCRYPTED PRIVATE KEY-----") || holds(bytes, "Proc-Type: 4,ENCRYPTED") {
            return Err(Kind::EncryptedKey);
        }
        match PrivateKeyDer::from_pem_slice(bytes) {
            Ok(key) => Ok(key),
            Err(rustls_pki_types::pem::Error::NoItemsFound) if holds(bytes, "BEGIN CERTIFICATE-----") => {
                Err(Kind::CertificateInsteadOfKey)
            }
            Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(Kind::Missing(Material::Key)),
            Err(error) => Err(Kind::Malformed(error.to_string())),
        }
    }

    /// A chain and its key, which fit together and are valid at `now` (seconds since 1970).
    pub(super) fn certified_key(
        &mut self,
        certificate: &Path,
        key: &Path,
        provider: &CryptoProvider,
        now: i64,
    ) -> Result<Certified, TlsProblem> {
        let about = |kind| TlsProblem {
            file: certificate.to_owned(),
            material: Material::Certificate,
            kind,
        };
        let about_key = |kind| TlsProblem {
            file: key.to_owned(),
            material: Material::Key,
            kind,
        };

        let chain = self.certificates(certificate, Material::Certificate)?;
        let private = self.key(key).map_err(about_key)?;
        let (names, not_before, not_after) = facts(&chain[0]).map_err(|e| about(Kind::Malformed(e)))?;
        let signer = provider
            .key_provider
            .load_private_key(private)
            .map_err(|error| about_key(Kind::UnsupportedKey(error.to_string())))?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            // A signer that cannot show its public half cannot be compared; the handshake will tell.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(about_key(Kind::KeyMismatch(certificate.to_owned())));
            }
            Err(error) => return Err(about(Kind::Malformed(error.to_string()))),
        }
        if not_after < now {
            return Err(about(Kind::Expired(not_after)));
        }
        Ok(Certified {
            key: Arc::new(certified),
            names: names.dns,
            not_before,
            not_after,
        })
    }

    fn read(&mut self, path: &Path) -> Result<&[u8], Kind> {
        if !self.contents.contains_key(path) {
            let bytes = fs::read(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Unreadable(error.to_string()),
            })?;
            self.contents.insert(path.to_owned(), bytes);
        }
        let bytes = self.contents.get(path).map_or(&[][..], |bytes| bytes);
        if holds(bytes, "-----BEGIN ") {
            return Ok(bytes);
        }
        // 0x30 opens an ASN.1 sequence: certificates, keys, lists and PKCS#12 containers alike.
        Err(if bytes.first() == Some(&0x30) {
            Kind::Der
        } else {
            Kind::NoPem
        })
    }
}

/// A chain with its key, ready to be served or presented.
pub(super) struct Certified {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names, lower case.
    pub(super) names: Vec<String>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

fn facts(certificate: &CertificateDer<'_>) -> Result<(Names, i64, i64), String> {
    let names = names(certificate)?;
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    Ok((
        names,
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

fn holds(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

/// Wall time in seconds since 1970, as certificates count it.
pub(super) fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
