//! TLS for peers: rustls on both ends, with what a test wants to be wrong.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;

use super::client::{Client, Stream};
use super::pki::Issued;
use super::soon;

/// Trusts one authority; perhaps shows a certificate; offers these protocols.
pub(crate) fn client(ca: &Path, identity: Option<&Issued>, alpn: &[&str]) -> Arc<ClientConfig> {
    client_with(ca, identity, alpn, rustls::ALL_VERSIONS)
}

pub(crate) fn client_with(
    ca: &Path,
    identity: Option<&Issued>,
    alpn: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots(ca));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(chain(&issued.cert), key(&issued.key))
            .expect("a key pair"),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A server's settings; with `clients`, only clients whom that authority knows are served.
pub(crate) fn server(identity: &Issued, clients: Option<&Path>, alpn: &[&str]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)), provider());
            builder.with_client_cert_verifier(verifier.build().expect("an authority"))
        }
    };
    let mut config = builder
        .with_single_cert(chain(&identity.cert), key(&identity.key))
        .expect("a key pair");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A handshake with the proxy.
pub(crate) async fn handshake(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    soon("a handshake", connector.connect(name, stream)).await
}

/// An HTTP/1.1 client over TLS.
pub(crate) async fn connect(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> io::Result<Client> {
    let stream = handshake(address, name, config).await?;
    Ok(Client::over(Stream::Tls(Box::new(stream))))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in chain(ca) {
        roots.add(certificate).expect("an authority");
    }
    roots
}

fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .expect("a file")
        .collect::<Result<_, _>>()
        .expect("certificates")
}

fn key(path: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(path).expect("a key")
}
