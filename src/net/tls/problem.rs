//! What can be wrong with certificates, keys and lists: a closed list, one row per thing an operator can repair.
//!
//! rustls and the PEM readers say what they stumbled over ("no items found"); an operator wants to know what the file
//! is instead. These rows carry the file and the difference; the configuration compiler turns them into diagnostics.

use std::fmt;
use std::path::PathBuf;

/// What a file was read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Material {
    /// A certificate chain of ours.
    Certificate,
    /// A private key of ours.
    Key,
    /// Certificates of authorities.
    Authorities,
    /// A certificate revocation list.
    RevocationList,
}

impl fmt::Display for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authorities => "CA certificates",
            Self::RevocationList => "revocation list",
        })
    }
}

/// Something that keeps TLS settings from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsProblem {
    /// The file it is in; empty when no file is at fault.
    pub file: PathBuf,
    /// What the file was read as.
    pub material: Material,
    /// What is wrong.
    pub kind: TlsProblemKind,
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}: ", self.file.display())?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for TlsProblem {}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblemKind {
    /// No such file.
    #[error("no such file")]
    NotFound,
    /// The file is there but cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Nothing in PEM form is in it.
    #[error("holds no PEM block")]
    NoPem,
    /// The binary form of something.
    #[error("is binary (DER or PKCS#12), not PEM")]
    Der,
    /// PEM, but the block that is needed is missing.
    #[error("holds no {0}")]
    Missing(Material),
    /// The key needs a passphrase.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// A key where a certificate belongs.
    #[error("is a private key, not a certificate")]
    KeyInsteadOfCertificate,
    /// A certificate where a key belongs.
    #[error("is a certificate, not a private key")]
    CertificateInsteadOfKey,
    /// A PEM block whose content makes no sense.
    #[error("cannot be parsed: {0}")]
    Malformed(String),
    /// Key type or size that is not supported.
    #[error("the key cannot be used: {0}")]
    UnsupportedKey(String),
    /// The key belongs to another certificate.
    #[error("does not belong to the certificate {}", .0.display())]
    KeyMismatch(PathBuf),
    /// The certificate ended, in seconds since 1970.
    #[error("expired")]
    Expired(i64),
    /// Neither written nor in the certificate: no client could ever be given it.
    #[error("has no DNS name, and no `sni` is set")]
    NoNames,
    /// An `sni` that the certificate was not made for.
    #[error("is not valid for `{name}`; it is for {}", .certificate.join(", "))]
    NameNotCovered {
        /// What was asked for.
        name: String,
        /// What the certificate says.
        certificate: Vec<String>,
    },
    /// A name that cannot be one.
    #[error("`{0}` is not a host name")]
    InvalidName(String),
    /// The system has no trusted authorities.
    #[error("the system has no trusted CA certificates")]
    NoSystemRoots,
    /// The TLS library refused it for a reason not listed here.
    #[error("{0}")]
    Refused(String),
}
