//! Handshakes over an in-process connection, with certificates made for the occasion: what must work, and what must
//! be refused and for which stated reason.

use crate::test_pki as pki;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use self::pki::{Authority, Issued, Wanted};
use super::*;
use crate::net::{IdleState, memory};

type Ends = (
    Result<(Io, TlsInfo), HandshakeError>,
    Result<(Io, TlsInfo), HandshakeError>,
);

fn serving(certificates: &[&Issued]) -> ServerSettings {
    let source = |issued: &&Issued| CertificateSource {
        cert: issued.cert.clone(),
        key: issued.key.clone(),
        names: vec![],
    };
    ServerSettings {
        certificates: certificates.iter().map(source).collect(),
        min_version: MinVersion::Tls12,
        client_auth: None,
        alpn: vec![Alpn::Http2, Alpn::Http1],
    }
}

fn trusting(authority: &Authority) -> ClientSettings {
    ClientSettings {
        server_name: None,
        ca: Some(authority.ca().to_owned()),
        identity: None,
        min_version: MinVersion::Tls12,
        insecure_skip_verify: false,
        alpn: vec![Alpn::Http2, Alpn::Http1],
    }
}

fn as_client(authority: &Authority, issued: &Issued) -> ClientSettings {
    let identity = Identity {
        cert: issued.cert.clone(),
        key: issued.key.clone(),
    };
    ClientSettings {
        identity: Some(identity),
        ..trusting(authority)
    }
}

fn asking(authority: &Authority) -> ClientAuth {
    ClientAuth {
        required: true,
        ca: authority.ca().to_owned(),
        crl: vec![],
        allowed_names: vec![],
    }
}

/// The client's end, then the server's.
async fn handshake(client: &ClientTls, server: &ServerTls, host: &str) -> Ends {
    let (near, far) = memory::pair(64 << 10);
    tokio::join!(client.connect(near, host), server.accept(far))
}

/// As [`handshake`], with a client that is not ours.
async fn foreign(config: ClientConfig, server: &ServerTls) -> Result<(Io, TlsInfo), HandshakeError> {
    let (near, far) = memory::pair(64 << 10);
    let name = "a.test".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    tokio::join!(connector.connect(name, near), server.accept(far)).1
}

fn foreign_config(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut files = certificate::Files::default();
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(files.authorities(authority.ca()).unwrap())
        .with_no_client_auth()
}

fn failure<T>(result: Result<T, HandshakeError>) -> HandshakeFailure {
    match result {
        Ok(_) => panic!("the handshake succeeded"),
        Err(error) => error.failure,
    }
}

/// One byte from the server to the client, which thereby also receives its session tickets.
async fn say_hello(client: &mut Io, server: &mut Io) {
    server.write_all(b"!").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

/// Connects twice and tells whether the second handshake was a resumption, for both ends.
async fn resumes(client: &ClientTls, first: &ServerTls, second: &ServerTls) -> bool {
    let (near, far) = handshake(client, first, "a.test").await;
    say_hello(&mut near.unwrap().0, &mut far.unwrap().0).await;
    let (near, far) = handshake(client, second, "a.test").await;
    let (near, far) = (near.unwrap().1.resumed, far.unwrap().1.resumed);
    assert_eq!(near, far);
    near
}

#[tokio::test]
async fn both_ends_agree_and_bytes_pass() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let server = ServerTls::load(&serving(&[&issued])).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    let (near, far) = handshake(&client, &server, "a.test").await;
    let ((mut near, at_client), (mut far, at_server)) = (near.unwrap(), far.unwrap());
    assert_eq!(at_server.server_name.as_deref(), Some("a.test"));
    assert_eq!(
        (at_client.alpn, at_server.alpn),
        (Some(Alpn::Http2), Some(Alpn::Http2))
    );
    assert_eq!((at_server.version, at_server.resumed), ("TLSv1.3", false));
    assert!(at_server.cipher.starts_with("TLS_"), "{}", at_server.cipher);
    assert_eq!(at_client.peer_names.as_ref(), [Arc::from("a.test")]);
    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut text = [0; 4];
    far.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"ping");
}

#[tokio::test]
async fn the_certificate_follows_the_name_then_the_wildcard_then_the_first() {
    let mut ca = Authority::new("ca");
    let first = ca.issue("first", &["first.test"]);
    let wild = ca.issue("wild", &["*.a.test"]);
    let exact = ca.issue("exact", &["b.a.test"]);
    let server = ServerTls::load(&serving(&[&first, &wild, &exact])).unwrap();
    let client = ClientTls::load(&ClientSettings {
        insecure_skip_verify: true,
        ..trusting(&ca)
    })
    .unwrap();
    for (asked, expected) in [
        ("first.test", "first"),
        ("x.a.test", "wild"),
        ("b.a.test", "exact"),
        ("B.A.test", "exact"),
        ("x.y.a.test", "first"),
        ("127.0.0.1", "first"),
    ] {
        let (near, far) = memory::pair(64 << 10);
        let name = asked.to_owned().try_into().unwrap();
        let config = {
            let mut config = foreign_config(&ca, &[&rustls::version::TLS13]);
            config.dangerous().set_certificate_verifier(Arc::new(Anyone));
            config
        };
        let connector = TlsConnector::from(Arc::new(config));
        let (stream, accepted) = tokio::join!(connector.connect(name, near), server.accept(far));
        accepted.unwrap();
        let stream = stream.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let file = fs::read(ca.folder().join(format!("{expected}.pem"))).unwrap();
        let wanted: rustls_pki_types::CertificateDer<'_> =
            rustls_pki_types::pem::PemObject::from_pem_slice(&file).unwrap();
        assert_eq!(shown, wanted, "{asked}");
    }
    // The same through our own client, whose names are not to be believed then.
    let (near, _far) = handshake(&client, &server, "other.test").await;
    assert!(near.unwrap().1.peer_names.is_empty());
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn an_upstream_is_verified_for_authority_name_and_time() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test", "127.0.0.1"]);
    let server = ServerTls::load(&serving(&[&issued])).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    handshake(&client, &server, "127.0.0.1").await.0.unwrap();

    let (near, far) = handshake(&client, &server, "b.test").await;
    assert_eq!(
        (failure(near), failure(far)),
        (HandshakeFailure::WrongName, HandshakeFailure::RefusedByPeer)
    );

    let named = ClientSettings {
        server_name: Some("a.test".to_owned()),
        ..trusting(&ca)
    };
    handshake(&ClientTls::load(&named).unwrap(), &server, "10.0.0.1")
        .await
        .0
        .unwrap();

    let stranger = ClientTls::load(&trusting(&Authority::new("other"))).unwrap();
    assert_eq!(
        failure(handshake(&stranger, &server, "a.test").await.0),
        HandshakeFailure::UnknownIssuer
    );

    let anyone = ClientSettings {
        insecure_skip_verify: true,
        ..trusting(&ca)
    };
    handshake(&ClientTls::load(&anyone).unwrap(), &server, "b.test")
        .await
        .0
        .unwrap();

    let (near, _far) = memory::pair(1024);
    assert_eq!(
        failure(client.connect(near, "").await),
        HandshakeFailure::WrongName
    );
}

#[tokio::test]
async fn clients_are_verified_for_authority_time_and_presence() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let caller = ca.issue("caller", &["caller.test", "spiffe://prod/ns/shop/sa/api"]);
    let expired = ca.issue_as(
        "expired",
        Wanted {
            names: &["caller.test"],
            expired: true,
        },
    );
    let mut other = Authority::new("other");
    let stranger = other.issue("stranger", &["caller.test"]);

    let mut settings = ServerSettings {
        client_auth: Some(asking(&ca)),
        ..serving(&[&issued])
    };
    let server = ServerTls::load(&settings).unwrap();
    let (_near, far) = handshake(
        &ClientTls::load(&as_client(&ca, &caller)).unwrap(),
        &server,
        "a.test",
    )
    .await;
    let info = far.unwrap().1;
    assert_eq!(
        info.spiffe_id().map(|id| &**id),
        Some("spiffe://prod/ns/shop/sa/api")
    );
    assert_eq!(info.peer_names.len(), 2);

    let nobody = ClientTls::load(&trusting(&ca)).unwrap();
    assert_eq!(
        failure(handshake(&nobody, &server, "a.test").await.1),
        HandshakeFailure::NoCertificate
    );
    let unknown = ClientTls::load(&as_client(&ca, &stranger)).unwrap();
    assert_eq!(
        failure(handshake(&unknown, &server, "a.test").await.1),
        HandshakeFailure::UnknownIssuer
    );

    // We refuse to load an expired certificate ourselves, so a foreign client shows it.
    let mut files = certificate::Files::default();
    let late = files
        .certified_key(&expired.cert, &expired.key, &provider(), 0)
        .unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(files.authorities(ca.ca()).unwrap())
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(late.key)));
    assert_eq!(failure(foreign(config, &server).await), HandshakeFailure::Expired);

    settings.client_auth = Some(ClientAuth {
        required: false,
        ..asking(&ca)
    });
    let optional = ServerTls::load(&settings).unwrap();
    assert!(
        handshake(&nobody, &optional, "a.test")
            .await
            .1
            .unwrap()
            .1
            .peer_names
            .is_empty()
    );
    assert_eq!(
        failure(handshake(&unknown, &optional, "a.test").await.1),
        HandshakeFailure::UnknownIssuer
    );
}

#[tokio::test]
async fn a_client_needs_an_allowed_name() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let api = ca.issue("api", &["spiffe://prod/ns/shop/sa/api"]);
    let web = ca.issue("web", &["spiffe://prod/ns/shop/sa/web"]);
    let auth = ClientAuth {
        allowed_names: vec![NamePattern::new("spiffe://prod/ns/*/sa/api")],
        ..asking(&ca)
    };
    let server = ServerTls::load(&ServerSettings {
        client_auth: Some(auth),
        ..serving(&[&issued])
    })
    .unwrap();
    let api = ClientTls::load(&as_client(&ca, &api)).unwrap();
    handshake(&api, &server, "a.test").await.1.unwrap();
    let web = ClientTls::load(&as_client(&ca, &web)).unwrap();
    assert_eq!(
        failure(handshake(&web, &server, "a.test").await.1),
        HandshakeFailure::NameNotAllowed
    );
}

#[tokio::test]
async fn a_revoked_client_cannot_return_on_its_old_ticket() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let caller = ca.issue("caller", &["caller.test"]);
    let crl = ca.revoke("crl", &[]);
    let auth = ClientAuth {
        crl: vec![crl],
        ..asking(&ca)
    };
    let server = ServerTls::load(&ServerSettings {
        client_auth: Some(auth),
        ..serving(&[&issued])
    })
    .unwrap();
    let client = ClientTls::load(&as_client(&ca, &caller)).unwrap();
    assert!(resumes(&client, &server, &server).await);

    ca.revoke("crl", &[caller.serial]);
    assert_eq!(server.reload(), Ok(Changed::Yes));
    assert_eq!(
        failure(handshake(&client, &server, "a.test").await.1),
        HandshakeFailure::Revoked
    );
}

#[tokio::test]
async fn sessions_survive_a_new_certificate() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let settings = serving(&[&issued]);
    let server = ServerTls::load(&settings).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    let (near, far) = handshake(&client, &server, "a.test").await;
    say_hello(&mut near.unwrap().0, &mut far.unwrap().0).await;

    assert_eq!(server.reload(), Ok(Changed::No));
    ca.issue("a", &["a.test", "b.test"]);
    assert_eq!(server.reload(), Ok(Changed::Yes));
    assert_eq!(server.certificates()[0].names, ["a.test", "b.test"]);
    assert!(handshake(&client, &server, "a.test").await.1.unwrap().1.resumed);

    let next = server.load_next(&settings).unwrap();
    assert!(resumes(&client, &server, &next).await);
    let stranger = ServerTls::load(&settings).unwrap();
    assert!(!resumes(&client, &server, &stranger).await);
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_client_can() {
    let mut ca = Authority::new("ca");
    let server = ServerTls::load(&serving(&[&ca.issue("a", &["a.test"])])).unwrap();
    let (near, far) = memory::pair(64 << 10);
    let connector = TlsConnector::from(Arc::new(foreign_config(&ca, &[&rustls::version::TLS13])));
    let (stream, accepted) = tokio::join!(
        connector.connect("a.test".try_into().unwrap(), near),
        server.accept(far)
    );
    accepted.unwrap();
    let stream = stream.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn tls_1_2_resumes_too() {
    let mut ca = Authority::new("ca");
    let server = ServerTls::load(&serving(&[&ca.issue("a", &["a.test"])])).unwrap();
    let config = foreign_config(&ca, &[&rustls::version::TLS12]);
    let first = foreign(config.clone(), &server).await.unwrap().1;
    assert_eq!((first.version, first.resumed), ("TLSv1.2", false));
    assert!(foreign(config, &server).await.unwrap().1.resumed);
}

#[tokio::test]
async fn a_failed_reload_changes_nothing() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let server = ServerTls::load(&serving(&[&issued])).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    fs::write(&issued.key, "nonsense").unwrap();
    assert_eq!(server.reload().unwrap_err()[0].kind, TlsProblemKind::NoPem);
    handshake(&client, &server, "a.test").await.1.unwrap();

    fs::write(ca.ca(), "nonsense").unwrap();
    assert!(client.reload().is_err());
    handshake(&client, &server, "a.test").await.0.unwrap();
}

#[tokio::test]
async fn a_client_reload_takes_new_authorities_and_forgets_sessions() {
    let mut ca = Authority::new("ca");
    let server = ServerTls::load(&serving(&[&ca.issue("a", &["a.test"])])).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    assert!(resumes(&client, &server, &server).await);
    assert_eq!(client.reload(), Ok(Changed::No));
    fs::copy(Authority::new("other").ca(), ca.ca()).unwrap();
    assert_eq!(client.reload(), Ok(Changed::Yes));
    assert_eq!(
        failure(handshake(&client, &server, "a.test").await.0),
        HandshakeFailure::UnknownIssuer
    );
}

#[tokio::test]
async fn versions_below_the_floor_are_refused() {
    let mut ca = Authority::new("ca");
    let mut settings = serving(&[&ca.issue("a", &["a.test"])]);
    settings.min_version = MinVersion::Tls13;
    let server = ServerTls::load(&settings).unwrap();
    let old = foreign_config(&ca, &[&rustls::version::TLS12]);
    assert_eq!(
        failure(foreign(old, &server).await),
        HandshakeFailure::Incompatible
    );
}

#[tokio::test]
async fn no_protocol_in_common_is_an_alert_and_no_protocol_at_all_is_fine() {
    let mut ca = Authority::new("ca");
    let mut settings = serving(&[&ca.issue("a", &["a.test"])]);
    settings.alpn = vec![Alpn::Http1];
    let server = ServerTls::load(&settings).unwrap();
    let h2_only = ClientTls::load(&ClientSettings {
        alpn: vec![Alpn::Http2],
        ..trusting(&ca)
    })
    .unwrap();
    let (near, far) = handshake(&h2_only, &server, "a.test").await;
    assert_eq!(
        (failure(near), failure(far)),
        (HandshakeFailure::RefusedByPeer, HandshakeFailure::Alpn)
    );

    let silent = ClientTls::load(&ClientSettings {
        alpn: vec![],
        ..trusting(&ca)
    })
    .unwrap();
    assert_eq!(
        handshake(&silent, &server, "a.test").await.1.unwrap().1.alpn,
        None
    );
    let both = ClientTls::load(&trusting(&ca)).unwrap();
    assert_eq!(
        handshake(&both, &server, "a.test").await.1.unwrap().1.alpn,
        Some(Alpn::Http1)
    );
}

#[tokio::test]
async fn what_is_not_a_handshake_is_told_apart() {
    let mut ca = Authority::new("ca");
    let server = ServerTls::load(&serving(&[&ca.issue("a", &["a.test"])])).unwrap();
    let (mut near, far) = memory::pair(1024);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(failure(server.accept(far).await), HandshakeFailure::NotTls);
    let (near, far) = memory::pair(1024);
    drop(near);
    assert_eq!(failure(server.accept(far).await), HandshakeFailure::Closed);
}

#[tokio::test]
async fn an_idle_tls_connection_swallows_tickets_and_shows_everything_else() {
    let mut ca = Authority::new("ca");
    let server = ServerTls::load(&serving(&[&ca.issue("a", &["a.test"])])).unwrap();
    let client = ClientTls::load(&trusting(&ca)).unwrap();
    let (near, far) = handshake(&client, &server, "a.test").await;
    let ((mut near, _), (mut far, _)) = (near.unwrap(), far.unwrap());
    // The tickets have arrived by now: the server's side of the handshake ends with them.
    assert_eq!(near.idle_state(), IdleState::Quiet);
    far.write_all(b"unasked").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.idle_state(), IdleState::Readable);
    let mut text = [0; 7];
    near.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"unasked");
    assert_eq!(near.idle_state(), IdleState::Quiet);
    far.shutdown().await.unwrap();
    assert_eq!(near.idle_state(), IdleState::Closed);

    let again = handshake(&client, &server, "a.test").await;
    assert!(again.0.unwrap().1.resumed, "the tickets were kept");
}

fn problems(settings: &ServerSettings) -> Vec<(PathBuf, TlsProblemKind)> {
    let problems = ServerTls::load(settings).unwrap_err();
    problems
        .into_iter()
        .map(|problem| (problem.file, problem.kind))
        .collect()
}

#[test]
fn every_wrong_file_is_named_for_what_it_is() {
    let mut ca = Authority::new("ca");
    let good = ca.issue("good", &["a.test"]);
    let other = ca.issue("other", &["b.test"]);
    let path = |name: &str| ca.folder().join(name);
    let expect = |cert: &Path, key: &Path, file: &Path, kind: TlsProblemKind| {
        let mut settings = serving(&[&good]);
        settings.certificates[0].cert = cert.to_owned();
        settings.certificates[0].key = key.to_owned();
        assert_eq!(problems(&settings), [(file.to_owned(), kind)]);
    };
    let (cert, key, none) = (&good.cert, &good.key, &path("none"));
    expect(none, key, none, TlsProblemKind::NotFound);
    expect(cert, none, none, TlsProblemKind::NotFound);
    expect(key, key, key, TlsProblemKind::KeyInsteadOfCertificate);
    expect(cert, cert, cert, TlsProblemKind::CertificateInsteadOfKey);
    expect(
        cert,
        &other.key,
        &other.key,
        TlsProblemKind::KeyMismatch(cert.clone()),
    );

    let binary = path("binary");
    let bytes: rustls_pki_types::CertificateDer<'_> =
        rustls_pki_types::pem::PemObject::from_pem_file(cert).unwrap();
    fs::write(&binary, &bytes).unwrap();
    expect(&binary, key, &binary, TlsProblemKind::Der);
    let text = path("text");
    fs::write(&text, "hello").unwrap();
    expect(&text, key, &text, TlsProblemKind::NoPem);
    let secret = path("secret");
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(&secret, pem).unwrap();
    expect(cert, &secret, &secret, TlsProblemKind::EncryptedKey);
    let list = ca.revoke("list", &[]);
    expect(&list, key, &list, TlsProblemKind::Missing(Material::Certificate));
    expect(cert, &list, &list, TlsProblemKind::Missing(Material::Key));

    let mut both = fs::read(&good.cert).unwrap();
    both.extend(fs::read(&good.key).unwrap());
    fs::write(path("both"), both).unwrap();
    let mut settings = serving(&[&good]);
    settings.certificates[0].cert = path("both");
    settings.certificates[0].key = path("both");
    assert!(ServerTls::load(&settings).is_ok());
}

#[test]
fn names_and_dates_are_checked_and_all_problems_are_told_at_once() {
    let mut ca = Authority::new("ca");
    let good = ca.issue("good", &["*.a.test"]);
    let nameless = ca.issue("nameless", &["127.0.0.1"]);
    let expired = ca.issue_as(
        "expired",
        Wanted {
            names: &["a.test"],
            expired: true,
        },
    );
    let mut settings = serving(&[&nameless, &nameless, &expired, &good, &good]);
    settings.certificates[3].names = vec!["x.a.test".to_owned(), "*.a.test".to_owned()];
    settings.certificates[4].names = vec!["x.y.a.test".to_owned()];
    settings.client_auth = Some(ClientAuth {
        ca: ca.folder().join("none"),
        ..asking(&ca)
    });
    let found = problems(&settings);
    assert_eq!(
        found,
        [
            (nameless.cert, TlsProblemKind::NoNames),
            (expired.cert, TlsProblemKind::Expired(1_609_459_200)),
            (
                good.cert,
                TlsProblemKind::NameNotCovered {
                    name: "x.y.a.test".to_owned(),
                    certificate: vec!["*.a.test".to_owned()]
                }
            ),
            (ca.folder().join("none"), TlsProblemKind::NotFound),
        ]
    );
}

#[test]
fn a_problem_reads_as_a_sentence() {
    let settings = ClientSettings {
        server_name: Some("not a name".to_owned()),
        ca: Some("/nowhere/ca.pem".into()),
        ..trusting(&Authority::new("ca"))
    };
    let told: Vec<String> = ClientTls::load(&settings)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        told,
        ["/nowhere/ca.pem: no such file", "`not a name` is not a host name"]
    );
}

#[test]
fn the_files_to_watch_are_all_that_were_read() {
    let mut ca = Authority::new("ca");
    let issued = ca.issue("a", &["a.test"]);
    let crl = ca.revoke("crl", &[]);
    let auth = ClientAuth {
        crl: vec![crl.clone()],
        ..asking(&ca)
    };
    let server = ServerTls::load(&ServerSettings {
        client_auth: Some(auth),
        ..serving(&[&issued])
    })
    .unwrap();
    let mut expected = vec![issued.cert, issued.key, ca.ca().to_owned(), crl];
    expected.sort();
    assert_eq!(server.files(), expected);
    assert!(server.certificates()[0].not_after > 4_000_000_000);
}
