//! Certificates for tests: an authority that signs what a test needs, and writes it where a proxy can read it.
//!
//! Also included by the unit tests of `net::tls` with `#[path]`, so it depends on nothing but `rcgen` and `tempfile`.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

/// A certificate authority with a folder of its own. The folder is removed with it.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
    next_serial: u64,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) serial: u64,
}

/// What a certificate says. Names with `://` become URIs, IP addresses become addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [&'a str],
    pub(crate) expired: bool,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, certificate.pem()).expect("a writable folder");
        Self {
            folder,
            issuer: Issuer::new(params, key),
            ca,
            next_serial: 1,
        }
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn ca(&self) -> &Path {
        &self.ca
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A certificate for servers and clients, valid for a long time, in `<file>.pem` and `<file>.key`.
    pub(crate) fn issue(&mut self, file: &str, names: &[&str]) -> Issued {
        self.issue_as(
            file,
            Wanted {
                names,
                expired: false,
            },
        )
    }

    pub(crate) fn issue_as(&mut self, file: &str, wanted: Wanted<'_>) -> Issued {
        let serial = self.next_serial;
        self.next_serial += 1;
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, file);
        params.subject_alt_names = wanted.names.iter().map(|name| alternative_name(name)).collect();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(if wanted.expired { 2021 } else { 2120 }, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let issued = Issued {
            cert: self.folder.path().join(format!("{file}.pem")),
            key: self.folder.path().join(format!("{file}.key")),
            serial,
        };
        fs::write(&issued.cert, certificate.pem()).expect("a writable folder");
        fs::write(&issued.key, key.serialize_pem()).expect("a writable folder");
        issued
    }

    /// A revocation list in `<file>.pem`.
    pub(crate) fn revoke(&self, file: &str, serials: &[u64]) -> PathBuf {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.path().join(format!("{file}.pem"));
        let list = list.signed_by(&self.issuer).expect("a list");
        fs::write(&path, list.pem().expect("a list")).expect("a writable folder");
        path
    }
}

fn alternative_name(name: &str) -> SanType {
    if name.contains("://") {
        return SanType::URI(name.try_into().expect("an ASCII URI"));
    }
    match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().expect("an ASCII name")),
    }
}
