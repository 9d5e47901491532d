//! TLS in front and behind: SNI, ALPN, client certificates that pass and that do not, upstreams that prove who they are
//! and that cannot, certificates that are renewed.

use std::io;
use std::sync::Arc;

use crate::support::client::{self, Answer};
use crate::support::h2::{H2, H2Upstream};
use crate::support::http1::Reader;
use crate::support::pki::{Authority, Issued, Wanted};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::tls;
use crate::support::upstream::Upstream;
use crate::support::{background, eventually_async, soon};

/// A listener with these lines under `tls:`.
fn listening(lines: &str, upstream: std::net::SocketAddr) -> String {
    format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n    tls:\n{lines}routes:\n  - cluster: app\nclusters:\n  app:\n    \
         endpoints: [{upstream}]\n"
    )
}

fn certificates(issued: &[&Issued]) -> String {
    let mut lines = "      certificates:\n".to_owned();
    for one in issued {
        lines.push_str(&format!(
            "        - {{ cert: {}, key: {} }}\n",
            one.cert.display(),
            one.key.display()
        ));
    }
    lines
}

async fn get(proxy: &Proxy, name: &str, config: &Arc<rustls::ClientConfig>) -> io::Result<Answer> {
    let mut client = tls::connect(proxy.web(), name, config).await?;
    client
        .try_ask("GET", "/", &format!("host: {name}\r\n"), b"")
        .await
}

#[tokio::test]
async fn http_1_and_http_2_are_agreed_by_alpn() {
    let upstream = Upstream::echo();
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let proxy = proxy(&listening(&certificates(&[&shop]), upstream.address())).await;

    let config = tls::client(ca.ca(), None, &["http/1.1"]);
    let answer = get(&proxy, "shop.example", &config).await.expect("an answer");
    assert_eq!(answer.echoed("x-forwarded-proto").as_deref(), Some("https"));

    let config = tls::client(ca.ca(), None, &["h2", "http/1.1"]);
    let stream = tls::handshake(proxy.web(), "shop.example", &config)
        .await
        .expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = H2::over(stream).await;
    let request = http::Request::get("https://shop.example/")
        .body(&b""[..])
        .expect("a request");
    assert_eq!(client.ask(request).await.status, 200);

    // No ALPN at all is HTTP/1.1.
    let config = tls::client(ca.ca(), None, &[]);
    assert_eq!(
        get(&proxy, "shop.example", &config)
            .await
            .expect("an answer")
            .status,
        200
    );

    // No overlap is an alert, not a guess.
    let config = tls::client(ca.ca(), None, &["spdy/3"]);
    assert!(
        tls::handshake(proxy.web(), "shop.example", &config)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_unless_one_is_forbidden() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let open = proxy(&listening(&certificates(&[&shop]), upstream.address())).await;
    let strict = listening(
        &(certificates(&[&shop]) + "      min_version: \"1.3\"\n"),
        upstream.address(),
    );
    let strict = proxy(&strict).await;
    let old = tls::client_with(ca.ca(), None, &["http/1.1"], &[&rustls::version::TLS12]);
    let new = tls::client_with(ca.ca(), None, &["http/1.1"], &[&rustls::version::TLS13]);
    assert_eq!(
        get(&open, "shop.example", &old).await.expect("an answer").status,
        200
    );
    assert_eq!(
        get(&open, "shop.example", &new).await.expect("an answer").status,
        200
    );
    assert_eq!(
        get(&strict, "shop.example", &new)
            .await
            .expect("an answer")
            .status,
        200
    );
    assert!(get(&strict, "shop.example", &old).await.is_err());
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let wild = ca.issue("wild", &["*.wild.example"]);
    let proxy = proxy(&listening(&certificates(&[&shop, &wild]), upstream.address())).await;
    let config = tls::client(ca.ca(), None, &["http/1.1"]);
    for name in ["shop.example", "a.wild.example", "b.wild.example"] {
        assert_eq!(get(&proxy, name, &config).await.expect(name).status, 200);
    }
    // Unknown names get the first, which does not fit.
    assert!(get(&proxy, "other.example", &config).await.is_err());
}

#[tokio::test]
async fn clients_must_show_a_certificate_that_holds() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let mut stranger = Authority::new("stranger");
    let shop = ca.issue("shop", &["shop.example"]);
    let good = ca.issue("good", &["spiffe://prod/ns/web/sa/api"]);
    let wrong_name = ca.issue("wrong", &["spiffe://test/ns/web/sa/api"]);
    let expired = ca.issue_as(
        "expired",
        Wanted {
            names: &["spiffe://prod/ns/web/sa/api"],
            expired: true,
        },
    );
    let revoked = ca.issue("revoked", &["spiffe://prod/ns/web/sa/api"]);
    let unknown = stranger.issue("unknown", &["spiffe://prod/ns/web/sa/api"]);
    let crl = ca.revoke("crl", &[revoked.serial]);
    let lines = format!(
        "{}      client_auth:\n        ca: {}\n        crl: {}\n        allowed_names: \"spiffe://prod/ns/*/sa/api\"\n",
        certificates(&[&shop]),
        ca.ca().display(),
        crl.display()
    );
    let proxy = proxy(&listening(&lines, upstream.address())).await;
    let as_client = |identity: Option<&Issued>| tls::client(ca.ca(), identity, &["http/1.1"]);

    let answer = get(&proxy, "shop.example", &as_client(Some(&good)))
        .await
        .expect("an answer");
    assert_eq!(answer.status, 200);
    for (what, identity) in [
        ("no certificate", None),
        ("an expired one", Some(&expired)),
        ("one of another authority", Some(&unknown)),
        ("another name", Some(&wrong_name)),
        ("a revoked one", Some(&revoked)),
    ] {
        let answer = get(&proxy, "shop.example", &as_client(identity)).await;
        assert!(answer.is_err(), "{what} was let in: {answer:?}");
    }
    assert_eq!(upstream.requests(), 1);
    let metrics = proxy.metrics().await;
    assert!(metrics.has("bellwether_tls_handshakes_total"));
}

#[tokio::test]
async fn a_client_certificate_may_be_optional() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let mut stranger = Authority::new("stranger");
    let shop = ca.issue("shop", &["shop.example"]);
    let unknown = stranger.issue("unknown", &["x.example"]);
    let lines = format!(
        "{}      client_auth: {{ mode: optional, ca: {} }}\n",
        certificates(&[&shop]),
        ca.ca().display()
    );
    let proxy = proxy(&listening(&lines, upstream.address())).await;
    let nobody = tls::client(ca.ca(), None, &["http/1.1"]);
    assert_eq!(
        get(&proxy, "shop.example", &nobody)
            .await
            .expect("an answer")
            .status,
        200
    );
    let wrong = tls::client(ca.ca(), Some(&unknown), &["http/1.1"]);
    assert!(get(&proxy, "shop.example", &wrong).await.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_reload() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let proxy = proxy(&listening(&certificates(&[&shop]), upstream.address())).await;
    let config = tls::client(ca.ca(), None, &["http/1.1"]);
    let shown = || async {
        let stream = tls::handshake(proxy.web(), "shop.example", &config)
            .await
            .expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("a chain")[0].to_vec()
    };
    let before = shown().await;
    let mut kept = tls::connect(proxy.web(), "shop.example", &config)
        .await
        .expect("a handshake");
    assert_eq!(kept.get("/").await.status, 200);
    ca.issue("shop", &["shop.example"]);
    eventually_async("the new certificate is shown", || async {
        shown().await != before
    })
    .await;
    // Who is connected stays connected.
    assert_eq!(kept.get("/").await.status, 200);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_stops_the_start() {
    let config = listening(
        "      certificates:\n        - { cert: /nowhere/a.pem, key: /nowhere/a.key }\n",
        ([127, 0, 0, 1], 9).into(),
    );
    let finished = crate::support::proxy::Start::new(&config).fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    let said = &finished.stderr;
    assert!(
        said.contains("/nowhere/a.pem")
            && said.contains("bellwether.yaml:6")
            && said.contains("create the file"),
        "{said}"
    );
}

#[tokio::test]
async fn operators_may_be_served_over_tls() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let admin = ca.issue("admin", &["admin.internal", "127.0.0.1"]);
    let config = with("", "", &[upstream.address()])
        + &format!(
            "admin:\n  address: 127.0.0.1:0\n  tls:\n    certificates:\n      - {{ cert: {}, key: {} }}\n",
            admin.cert.display(),
            admin.key.display()
        );
    let proxy = proxy(&config).await;
    let trusting = tls::client(ca.ca(), None, &["http/1.1"]);
    let mut client = tls::connect(proxy.admin(), "127.0.0.1", &trusting)
        .await
        .expect("a handshake");
    let host = format!("host: {}\r\n", proxy.admin());
    assert_eq!(client.ask("GET", "/readyz", &host, b"").await.status, 200);
    // The command line finds certificate and address in the same file.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bellwether"));
    command
        .args(["wait", "--timeout", "20s", "--admin"])
        .arg(format!("https://{}", proxy.admin()))
        .arg("--admin-ca")
        .arg(ca.ca());
    let waited = tokio::task::spawn_blocking(move || command.output().expect("the binary was built"));
    let waited = waited.await.expect("no panic");
    assert!(waited.status.success(), "{waited:?}");
    // Without TLS there is nothing to be had.
    let mut plain = client::Client::connect(proxy.admin()).await;
    assert!(plain.try_ask("GET", "/readyz", &host, b"").await.is_err());
}

/// Handshakes count as connecting, and on a busy machine they take their time.
const PATIENT: &str = "    connect_timeout: 20s\n";

/// An HTTP/1.1 server with TLS that answers `ok`.
fn secure(server: Arc<rustls::ServerConfig>) -> std::net::SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.set_nonblocking(true).expect("a socket");
    let address = socket.local_addr().expect("bound");
    background().spawn(async move {
        let listener = tokio::net::TcpListener::from_std(socket).expect("a socket");
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&server));
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt;
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let sni = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
                let mut reader = Reader::new(stream);
                while let Ok(Some(_)) = reader.head().await {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{sni}", sni.len());
                    if reader.io.write_all(answer.as_bytes()).await.is_err()
                        || reader.io.flush().await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_upstream_must_prove_who_it_is() {
    let mut ca = Authority::new("ca");
    let mut stranger = Authority::new("stranger");
    let good = ca.issue("good", &["app.internal"]);
    let expired = ca.issue_as(
        "expired",
        Wanted {
            names: &["app.internal"],
            expired: true,
        },
    );
    let wrong_name = ca.issue("wrong", &["other.internal"]);
    let unknown = stranger.issue("unknown", &["app.internal"]);
    let tls = format!(
        "{PATIENT}    tls: {{ server_name: app.internal, ca: {} }}\n",
        ca.ca().display()
    );

    let address = secure(tls::server(&good, None, &["http/1.1"]));
    let right = proxy(&with("", &tls, &[address])).await;
    let answer = client::get(right.web(), "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "app.internal"));

    for (what, issued) in [
        ("expired", &expired),
        ("wrong name", &wrong_name),
        ("wrong authority", &unknown),
    ] {
        let address = secure(tls::server(issued, None, &["http/1.1"]));
        let proxy = proxy(&with("", &tls, &[address])).await;
        let answer = client::get(proxy.web(), "/").await;
        assert_eq!(
            (what, answer.status, answer.rejected()),
            (what, 502, Some("tls_failed"))
        );
    }

    // Verification can be switched off, and then it is said at every start.
    let address = secure(tls::server(&wrong_name, None, &["http/1.1"]));
    let careless = format!("{PATIENT}    tls: {{ server_name: app.internal, insecure_skip_verify: true }}\n");
    let careless = proxy(&with("", &careless, &[address])).await;
    assert_eq!(client::get(careless.web(), "/").await.status, 200);
}

#[tokio::test]
async fn an_upstream_may_ask_who_we_are() {
    let mut ca = Authority::new("ca");
    let server = ca.issue("server", &["app.internal"]);
    let us = ca.issue("us", &["proxy.internal"]);
    let address = secure(tls::server(&server, Some(ca.ca()), &["http/1.1"]));
    let anonymous = format!(
        "{PATIENT}    tls: {{ server_name: app.internal, ca: {} }}\n",
        ca.ca().display()
    );
    let known = format!(
        "{PATIENT}    tls: {{ server_name: app.internal, ca: {}, cert: {}, key: {} }}\n",
        ca.ca().display(),
        us.cert.display(),
        us.key.display()
    );
    let known = proxy(&with("", &known, &[address])).await;
    assert_eq!(client::get(known.web(), "/").await.status, 200);
    let anonymous = proxy(&with("    retry: off\n", &anonymous, &[address])).await;
    let answer = client::get(anonymous.web(), "/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
}

#[tokio::test]
async fn http_2_to_an_upstream_is_agreed_by_alpn() {
    let mut ca = Authority::new("ca");
    let server = ca.issue("server", &["app.internal"]);
    let upstream = H2Upstream::with_tls(
        Some(tls::server(&server, None, &["h2"])),
        crate::support::h2::echo,
    );
    let tls = format!(
        "{PATIENT}    tls: {{ server_name: app.internal, ca: {} }}\n",
        ca.ca().display()
    );
    let proxy = proxy(&with("", &tls, &[upstream.address()])).await;
    let answer = client::ask(proxy.web(), "POST", "/", "", b"hello").await;
    assert_eq!(answer.json()["body"], "hello");
    // The scheme is that of the connection, not the client's.
    assert_eq!(answer.json()["scheme"], "https");
    assert_eq!(
        answer.json()["fields"]
            .as_array()
            .expect("fields")
            .iter()
            .find(|field| field[0] == "x-forwarded-proto")
            .expect("told")[1],
        "http"
    );
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn sessions_are_resumed_on_every_worker_and_over_a_reload() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let config = listening(&certificates(&[&shop]), upstream.address());
    let proxy = proxy(&config).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = tls::client_with(ca.ca(), None, &["http/1.1"], &[version]);
        let resumed = || async {
            let mut stream = tls::handshake(proxy.web(), "shop.example", &client)
                .await
                .expect("a handshake");
            // Tickets come with the first answer at the latest.
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")
                .await
                .expect("the proxy reads");
            let mut answer = Vec::new();
            soon("an answer", stream.read_to_end(&mut answer))
                .await
                .expect("an answer");
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
            stream.get_ref().1.handshake_kind()
        };
        assert_eq!(resumed().await, Some(rustls::HandshakeKind::Full), "{version:?}");
        // Sixteen connections meet both workers, whoever gave the ticket.
        for _ in 0..16 {
            assert_eq!(
                resumed().await,
                Some(rustls::HandshakeKind::Resumed),
                "{version:?}"
            );
        }
        proxy
            .reload(&config.replace(
                "  - cluster: app\n",
                &format!(
                    "  - cluster: app\n    timeout: {}s\n",
                    10 + u16::from(version.version) % 7
                ),
            ))
            .await;
        assert_eq!(
            resumed().await,
            Some(rustls::HandshakeKind::Resumed),
            "{version:?}"
        );
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("bellwether_tls_handshakes_total", &[]) >= 36.0);
}

#[tokio::test]
async fn renewed_authorities_are_believed_without_a_reload_on_both_sides() {
    let mut ca = Authority::new("ca");
    let stranger = Authority::new("stranger");
    let server = ca.issue("server", &["app.internal"]);
    let shop = ca.issue("shop", &["shop.example"]);
    let client = ca.issue("client", &["client.example"]);
    let address = secure(tls::server(&server, None, &["http/1.1"]));
    // Both sides begin with an authority that knows nobody here.
    let folder = tempfile::tempdir().expect("a folder");
    let (front, back) = (folder.path().join("front.pem"), folder.path().join("back.pem"));
    for file in [&front, &back] {
        std::fs::copy(stranger.ca(), file).expect("a writable folder");
    }
    let lines = format!(
        "{}      client_auth: {{ ca: {} }}\n",
        certificates(&[&shop]),
        front.display()
    );
    let config = listening(&lines, address)
        + &format!(
            "{PATIENT}    tls: {{ server_name: app.internal, ca: {} }}\n",
            back.display()
        );
    let proxy = proxy(&config).await;
    let config = tls::client(ca.ca(), Some(&client), &["http/1.1"]);
    assert!(get(&proxy, "shop.example", &config).await.is_err());
    let renew = |file: &std::path::Path| {
        let fresh = file.with_extension("new");
        std::fs::copy(ca.ca(), &fresh).expect("a writable folder");
        std::fs::rename(fresh, file).expect("a writable folder");
    };
    renew(&front);
    eventually_async("clients are known", || async {
        get(&proxy, "shop.example", &config).await.is_ok()
    })
    .await;
    let refused = get(&proxy, "shop.example", &config).await.expect("an answer");
    refused.is_refusal(502, "tls_failed");
    renew(&back);
    eventually_async("the endpoint is known", || async {
        matches!(get(&proxy, "shop.example", &config).await, Ok(answer) if answer.status == 200)
    })
    .await;
}
