//! TLS on both sides, as written.

use super::table::{List, Many, Sp, object, words};
use super::units::FilePath;

words! {
    /// The oldest protocol version accepted.
    TlsVersion: "TLS version", "versions" { Tls12 = "1.2", Tls13 = "1.3" }
}

words! {
    /// Whether a client must show a certificate.
    ClientAuthMode: "mode", "modes" { Require = "require", Optional = "optional" }
}

object! {
    /// TLS for those who connect to us.
    ListenerTls = "listener.tls" {
        /// chosen by SNI, first is the default; watched, reloaded on change
        certificates: Sp<List<Certificate>> = req;
        /// write it quoted: "1.3"
        min_version: Sp<TlsVersion> = "1.2";
        /// mTLS
        client_auth: Sp<Option<ClientAuth>> = "off";
    }
}

object! {
    /// A certificate and its key.
    Certificate = "tls.certificate" {
        /// PEM chain
        cert: Sp<FilePath> = req;
        /// PEM key
        key: Sp<FilePath> = req;
        /// exact or `*.example.com`
        sni: Option<Sp<Many<super::units::HostPattern>>> = none as "names in the certificate";
    }
}

object! {
    /// Certificates of clients.
    ClientAuth = "tls.client_auth" {
        /// whether a client without a certificate is refused
        mode: Sp<ClientAuthMode> = "require";
        /// who signs the certificates of clients
        ca: Sp<FilePath> = req;
        /// SAN DNS/URI patterns, `spiffe://prod/ns/*/sa/api`
        allowed_names: Option<Sp<Many<String>>> = none as "any";
        /// revoked certificates, PEM, watched
        crl: Option<Sp<Many<FilePath>>> = none;
    }
}

object! {
    /// TLS towards endpoints.
    ClusterTls = "cluster.tls", short_true true {
        /// SNI and verification
        server_name: Option<Sp<String>> = none as "host of the endpoint";
        /// who signs the certificates of endpoints
        ca: Option<Sp<FilePath>> = none as "system roots";
        /// client certificate
        cert: Option<Sp<FilePath>> = none;
        /// key of the client certificate
        key: Option<Sp<FilePath>> = none;
        /// the oldest version accepted
        min_version: Sp<TlsVersion> = "1.2";
        /// warned about at every start
        insecure_skip_verify: Sp<bool> = "false";
    }
}
