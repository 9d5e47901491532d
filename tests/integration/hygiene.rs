//! What ends at this hop, and what we tell the next one: hop-by-hop fields, `Via`, forwarding fields, request ids, trace
//! context, PROXY protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{self, Client, request};
use crate::support::proxy::{proxy, to, with};
use crate::support::upstream::Upstream;

const TRUSTING: &str = "listeners:\n  web:\n    address: 127.0.0.1:0\n    trusted_proxies: 127.0.0.0/8\n";

fn trusting(upstream: &Upstream) -> String {
    format!(
        "{TRUSTING}routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    )
}

#[tokio::test]
async fn fields_of_one_hop_end_here_in_both_directions() {
    let upstream = Upstream::sends(
        b"HTTP/1.1 200 OK\r\nconnection: x-back-hop, keep-alive\r\nx-back-hop: 1\r\nkeep-alive: timeout=5\r\n\
          proxy-authenticate: Basic\r\nproxy-connection: keep-alive\r\nupgrade: h2c\r\nx-stays: 2\r\ncontent-length: 0\r\n\r\n"
            .to_vec(),
    );
    let proxy = proxy(&to(&[upstream.address()])).await;
    let fields = "connection: x-hop, te, authorization\r\nx-hop: 1\r\nauthorization: Basic x\r\nkeep-alive: timeout=5\r\n\
                  proxy-connection: keep-alive\r\nproxy-authorization: Basic y\r\nte: gzip\r\nupgrade: h2c\r\n\
                  http2-settings: AAMAAABk\r\nx-stays: 2\r\n";
    let answer = client::ask(proxy.web(), "GET", "/", fields, b"").await;
    let received = upstream.only();
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
        "http2-settings",
    ] {
        assert!(
            !received.fields.has(name),
            "{name} was passed on: {:?}",
            received.fields
        );
    }
    assert_eq!(received.fields.get("x-stays"), Some("2"));
    // Nobody may name away what a check in front of us added.
    assert_eq!(received.fields.get("authorization"), Some("Basic x"));
    for name in [
        "x-back-hop",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "upgrade",
    ] {
        assert!(
            !answer.fields.has(name),
            "{name} was passed back: {:?}",
            answer.fields
        );
    }
    assert_eq!(answer.fields.get("x-stays"), Some("2"));
}

#[tokio::test]
async fn via_tells_the_upstream_who_was_before_it() {
    let upstream =
        Upstream::sends(b"HTTP/1.1 200 OK\r\nvia: 1.1 behind\r\ncontent-length: 0\r\n\r\n".to_vec());
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = client::ask(proxy.web(), "GET", "/", "via: 1.0 before\r\n", b"").await;
    assert_eq!(
        upstream.only().fields.all("via").join(", "),
        "1.0 before, 1.1 bellwether"
    );
    // RFC 9110 section 7.6.3: a gateway may add itself to answers, and has no need to.
    assert_eq!(answer.fields.all("via"), ["1.1 behind"]);
}

#[tokio::test]
async fn a_stranger_cannot_say_who_the_client_is() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let fields = "host: shop.example:8080\r\nx-forwarded-for: 6.6.6.6\r\nx-forwarded-host: evil\r\nx-forwarded-proto: https\r\n\
                  x-forwarded-prefix: /evil\r\nforwarded: for=6.6.6.6\r\nx-real-ip: 6.6.6.6\r\nx-bellwether-epoch: 9\r\n";
    let answer = client::ask(proxy.web(), "GET", "/", fields, b"").await;
    assert_eq!(answer.echoed("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(answer.echoed("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(
        answer.echoed("x-forwarded-host").as_deref(),
        Some("shop.example:8080")
    );
    assert_eq!(
        answer.echoed("x-forwarded-port"),
        Some(proxy.web().port().to_string())
    );
    for name in [
        "x-forwarded-prefix",
        "forwarded",
        "x-real-ip",
        "x-bellwether-epoch",
    ] {
        assert_eq!(answer.echoed(name), None, "{name}");
    }
    assert!(!answer.text().contains("6.6.6.6"), "{}", answer.text());
}

/// Words of ours that a stranger says neither reach the service nor change what is done.
#[tokio::test]
async fn scenario_43_a_stranger_cannot_speak_our_language() {
    const OURS: [(&str, &str); 8] = [
        ("x-bellwether-attempt", "9"),
        ("x-bellwether-deadline-ms", "1"),
        ("x-bellwether-priority", "critical"),
        ("x-bellwether-no-retry", "1"),
        ("x-bellwether-rejected", "overload"),
        ("x-bellwether-outcome", "not-executed"),
        ("x-bellwether-session", "forged"),
        ("x_bellwether_debug", "1"),
    ];
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let lines: String = OURS
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let answer = client::ask(proxy.web(), "GET", "/", &lines, b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (name, value) in OURS {
        assert_ne!(answer.echoed(name).as_deref(), Some(value), "{name}");
        assert_eq!(answer.fields.get(name), None, "{name} comes back");
    }
    // It is still tried again on another endpoint, as any request is.
    let dead = Upstream::refuses();
    let both = to(&[dead.address(), upstream.address()]);
    let proxy = crate::support::proxy::proxy(&both).await;
    for _ in 0..10 {
        assert_eq!(
            client::ask(proxy.web(), "GET", "/", &lines, b"").await.status,
            200
        );
    }
}

/// A deadline that nobody could meet is none: it is not passed on, nobody fails it, nobody is blamed.
#[tokio::test]
async fn scenario_43_a_deadline_of_a_nanosecond_harms_nobody() {
    let upstream = Upstream::answers(200, "ok");
    let other = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address(), other.address()])).await;
    let call = "content-type: application/grpc\r\nte: trailers\r\ngrpc-timeout: 1n\r\n";
    for _ in 0..100 {
        let answer = client::ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
        assert_eq!(
            (answer.status, answer.fields.get("grpc-status")),
            (200, None),
            "{answer:?}"
        );
    }
    for _ in 0..20 {
        assert_eq!(client::get(proxy.web(), "/").await.status, 200);
    }
    let breaker = proxy.admin_get("/api/v1/breakers/route-1").await.json();
    assert_eq!(
        (&breaker["state"], &breaker["window"]["failed"]),
        (&"closed".into(), &0.into()),
        "{breaker}"
    );
    let endpoints = proxy.admin_get("/api/v1/clusters/app/endpoints").await.json();
    for endpoint in endpoints["endpoints"].as_array().expect("a list") {
        assert_eq!(
            (&endpoint["available"], &endpoint["success"]),
            (&true.into(), &1.0.into()),
            "{endpoint}"
        );
    }
    let told = [&upstream, &other].map(|upstream| upstream.received());
    let told = told
        .iter()
        .flatten()
        .filter_map(|got| got.fields.get("grpc-timeout"));
    assert!(
        told.clone().all(|told| told != "1n"),
        "{:?}",
        told.collect::<Vec<_>>()
    );
    // Nor does it end what is no call of gRPC.
    let answer = client::ask(proxy.web(), "GET", "/", "grpc-timeout: 1n\r\n", b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_extended() {
    let upstream = Upstream::echo();
    let proxy = proxy(&trusting(&upstream)).await;
    let fields = "x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\nforwarded: for=203.0.113.9\r\nx-request-id: given-by-trusted\r\n";
    let answer = client::ask(proxy.web(), "GET", "/", fields, b"").await;
    assert_eq!(
        answer.echoed("x-forwarded-for").as_deref(),
        Some("203.0.113.9, 127.0.0.1")
    );
    assert_eq!(answer.echoed("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(answer.echoed("x-request-id").as_deref(), Some("given-by-trusted"));
    let echo = answer.json();
    let forwarded = client::echoed(&echo).all("forwarded").join(", ");
    assert!(
        forwarded.starts_with("for=203.0.113.9, for=127.0.0.1;"),
        "{forwarded}"
    );
    let line = proxy
        .logged(|line| line["request_id"] == "given-by-trusted")
        .await;
    assert_eq!(line["client"], "203.0.113.9", "{line}");
}

#[tokio::test]
async fn every_request_has_an_id_that_the_log_knows() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let answer = client.ask("GET", "/", "x-request-id: forged\r\n", b"").await;
        let id = answer.echoed("x-request-id").expect("an id");
        assert_ne!(id, "forged");
        proxy.logged(|line| line["request_id"] == id.as_str()).await;
        ids.insert(id);
    }
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn trace_context_is_passed_on_and_logged() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = format!("traceparent: {parent}\r\ntracestate: a=1\r\n");
    let answer = client::ask(proxy.web(), "GET", "/", &fields, b"").await;
    assert_eq!(answer.echoed("traceparent").as_deref(), Some(parent));
    assert_eq!(answer.echoed("tracestate").as_deref(), Some("a=1"));
    proxy
        .logged(|line| line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736")
        .await;

    let answer = client::ask(
        proxy.web(),
        "GET",
        "/",
        "traceparent: nonsense\r\ntracestate: a=1\r\n",
        b"",
    )
    .await;
    assert_eq!(answer.echoed("traceparent"), None);
    assert_eq!(answer.echoed("tracestate"), None);
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client() {
    let upstream = Upstream::echo();
    let config = format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n    proxy_protocol: required\n    trusted_proxies: 127.0.0.0/8\n\
         routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;

    let mut client = Client::connect(proxy.web()).await;
    client
        .send("PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\r\n")
        .await;
    let answer = client.get("/v1").await;
    assert!(
        answer
            .echoed("x-forwarded-for")
            .expect("a client")
            .contains("203.0.113.9"),
        "{}",
        answer.text()
    );

    let mut client = Client::connect(proxy.web()).await;
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([203, 0, 113, 10, 198, 51, 100, 1, 0x15, 0xb3, 0, 80]);
    v2.extend(request("GET", "/v2", "", b""));
    client.send(v2).await;
    let answer = client.answer().await;
    assert!(
        answer
            .echoed("x-forwarded-for")
            .expect("a client")
            .contains("203.0.113.10"),
        "{}",
        answer.text()
    );

    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/none", "", b"")).await;
    client.is_closed().await;
    assert!(
        upstream
            .received()
            .iter()
            .all(|request| request.target != "/none")
    );
}

#[tokio::test]
async fn the_proxy_protocol_is_not_believed_from_strangers() {
    let upstream = Upstream::echo();
    let config = format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n    proxy_protocol: optional\n    trusted_proxies: 192.0.2.0/24\n\
         routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\r\n")
        .await;
    client.send(request("GET", "/", "", b"")).await;
    let rest = client.until_closed().await;
    assert!(
        !rest.starts_with(b"HTTP/1.1 200"),
        "{}",
        crate::support::http1::latin1(&rest)
    );
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn the_proxy_protocol_is_spoken_to_endpoints() {
    for (version, start) in [
        ("v1", &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..]),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"),
    ] {
        let upstream = Upstream::each(move |mut peer| async move {
            let mut got = vec![0; start.len()];
            peer.reader.io.read_exact(&mut got).await?;
            let status = if got == start { 200 } else { 500 };
            // The rest of the header: a line, or a length and that many bytes.
            if start.starts_with(b"PROXY") {
                while peer.reader.io.read_u8().await? != b'\n' {}
            } else {
                let length = peer.reader.io.read_u16().await?;
                for _ in 0..length {
                    peer.reader.io.read_u8().await?;
                }
            }
            while let Some(request) = peer.request().await? {
                peer.answer(&request, status, "", b"").await?;
            }
            peer.reader.io.flush().await
        });
        let proxy = proxy(&with(
            "",
            &format!("    proxy_protocol: {version}\n"),
            &[upstream.address()],
        ))
        .await;
        assert_eq!(client::get(proxy.web(), "/").await.status, 200, "{version}");
    }
}

#[tokio::test]
async fn a_connection_that_was_announced_as_one_client_serves_no_other() {
    let upstream = Upstream::each(|mut peer| async move {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(peer.reader.io.read_u8().await?);
        }
        while let Some(request) = peer.request().await? {
            peer.answer(&request, 200, "", &line).await?;
        }
        Ok(())
    });
    let proxy = proxy(&with("", "    proxy_protocol: v1\n", &[upstream.address()])).await;
    for _ in 0..2 {
        for _ in 0..3 {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let stream = socket.connect(proxy.web()).await.expect("the proxy accepts");
            let port = stream.local_addr().expect("bound").port().to_string();
            let mut client = Client::over(client::Stream::Tcp(stream));
            for _ in 0..2 {
                let told = client.get("/").await.text();
                assert_eq!(told.split(' ').nth(4), Some(port.as_str()), "{told}");
            }
        }
    }
}
