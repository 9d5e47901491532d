//! Where connections come from, which protocols they may speak, how many there may be, and how they end.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::{self, Client, get};
use crate::support::h2::{H2, collect, uri};
use crate::support::pki::Authority;
use crate::support::proxy::{Start, proxy, to};
use crate::support::tls;
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

/// A listener with these further lines, indented by four spaces.
fn listening(lines: &str, upstream: &Upstream) -> String {
    format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n{lines}routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    )
}

#[tokio::test]
async fn every_kind_of_address_is_listened_on() {
    let upstream = Upstream::echo();
    let six = std::net::TcpListener::bind("[::1]:0").is_ok();
    let mut config = "listeners:\n  web: 127.0.0.1:0\n  other: 127.0.0.2:0\n  all: \":0\"\n".to_owned();
    if six {
        config.push_str("  six: \"[::1]:0\"\n");
    }
    config.push_str(&format!(
        "routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    ));
    let proxy = proxy(&config).await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    assert_eq!(proxy.listener("other").ip().to_string(), "127.0.0.2");
    assert_eq!(get(proxy.listener("other"), "/").await.status, 200);
    let all = proxy.listener("all").port();
    let answer = get(SocketAddr::from(([127, 0, 0, 3], all)), "/").await;
    // Whatever the socket's family, the address is told as it is.
    assert_eq!(answer.echoed("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    if six {
        let answer = get(proxy.listener("six"), "/").await;
        assert_eq!(answer.echoed("x-forwarded-for").as_deref(), Some("::1"));
    }
}

#[tokio::test]
async fn a_socket_file_that_somebody_left_is_replaced_and_a_living_one_is_not() {
    let upstream = Upstream::answers(200, "ok");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    // Closing the socket leaves the file, as a process does that is killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let config = to(&[upstream.address()]).replace(
        "  web: 127.0.0.1:0\n",
        &format!("  web: 127.0.0.1:0\n  local: \"unix:{}\"\n", path.display()),
    );
    let first = proxy(&config).await;
    let stream = soon("a connection", tokio::net::UnixStream::connect(&path))
        .await
        .expect("the proxy accepts");
    let mut kept = Client::over(client::Stream::Unix(stream));
    assert_eq!(kept.get("/").await.status, 200);
    let second = Start::new(&config).fail().await;
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert_eq!(kept.get("/").await.status, 200);
    drop(first);
}

#[tokio::test]
async fn a_protocol_that_is_not_listed_is_not_spoken() {
    let upstream = Upstream::answers(200, "ok");
    let only_1 = proxy(&listening("    protocols: http1\n", &upstream)).await;
    assert_eq!(get(only_1.web(), "/").await.status, 200);
    let mut client = Client::connect(only_1.web()).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let rest = client.until_closed().await;
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 4") || rest.starts_with(b"HTTP/1.1 5"),
        "{rest:?}"
    );

    let only_2 = proxy(&listening("    protocols: http2\n", &upstream)).await;
    assert_eq!(H2::connect(only_2.web()).await.get("/").await.status, 200);
    let mut client = Client::connect(only_2.web()).await;
    let answer = client.try_ask("GET", "/", "", b"").await;
    assert!(
        answer.as_ref().map_or(true, |answer| answer.status != 200),
        "{answer:?}"
    );
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_listener_takes_so_many_connections_and_no_more() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening(
        "    limits: { max_connections: 4, max_connections_per_ip: off }\n",
        &upstream,
    ))
    .await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.web()).await;
        assert_eq!(client.get("/").await.status, 200);
        clients.push(client);
    }
    let mut more = Client::connect(proxy.web()).await;
    let answer = tokio::time::timeout(
        std::time::Duration::from_secs(1),
        more.try_ask("GET", "/", "", b""),
    )
    .await;
    // Refused, or left waiting: not served either way.
    assert!(
        !matches!(&answer, Ok(Ok(answer)) if answer.status == 200),
        "{answer:?}"
    );
    for client in &mut clients {
        assert_eq!(client.get("/").await.status, 200);
    }
    clients.clear();
    eventually_async("there is room again", || async {
        let mut client = Client::connect(proxy.web()).await;
        matches!(client.try_ask("GET", "/", "", b"").await, Ok(answer) if answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn addresses_are_counted_as_trusted_proxies_tell_them() {
    // Two clients behind one balancer do not share a limit.
    let upstream = Upstream::answers(200, "ok");
    let lines = "    proxy_protocol: required\n    trusted_proxies: 127.0.0.1\n    limits: { max_connections_per_ip: 1 }\n";
    let proxy = proxy(&listening(lines, &upstream)).await;
    let from = |last: u8| {
        let web = proxy.web();
        async move {
            let mut client = Client::connect(web).await;
            client
                .send(format!("PROXY TCP4 203.0.113.{last} 198.51.100.1 5555 80\r\n"))
                .await;
            let status = client
                .try_ask("GET", "/", "", b"")
                .await
                .map(|answer| answer.status);
            (client, status.unwrap_or(0))
        }
    };
    let (_one, status) = from(1).await;
    assert_eq!(status, 200);
    let (_two, status) = from(2).await;
    assert_eq!(status, 200);
    let (_again, status) = from(1).await;
    assert_ne!(status, 200);
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_given_up() {
    let upstream = Upstream::answers(200, "ok");
    let mut ca = Authority::new("ca");
    let shop = ca.issue("shop", &["shop.example"]);
    let lines = format!(
        "    timeouts: {{ tls_handshake: 300ms }}\n    tls:\n      certificates:\n        - {{ cert: {}, key: {} }}\n",
        shop.cert.display(),
        shop.key.display()
    );
    let proxy = proxy(&listening(&lines, &upstream)).await;
    let config = tls::client(ca.ca(), None, &["http/1.1"]);
    let descriptors = proxy.descriptors();
    let mut silent = TcpStream::connect(proxy.web()).await.expect("the proxy accepts");
    let mut half = TcpStream::connect(proxy.web()).await.expect("the proxy accepts");
    // A record that says it is long, and its beginning.
    half.write_all(&[22, 3, 1, 2, 0, 1, 0])
        .await
        .expect("the proxy reads");
    let mut garbage = TcpStream::connect(proxy.web()).await.expect("the proxy accepts");
    garbage
        .write_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
        .await
        .expect("the proxy reads");
    // Others shake hands meanwhile.
    let mut client = tls::connect(proxy.web(), "shop.example", &config)
        .await
        .expect("a handshake");
    assert_eq!(client.get("/").await.status, 200);
    drop(client);
    for stream in [&mut silent, &mut half, &mut garbage] {
        let mut rest = Vec::new();
        // An alert may come before the end; a reset is an end as well.
        drop(soon("the end", tokio::io::AsyncReadExt::read_to_end(stream, &mut rest)).await);
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
    }
    eventually("descriptors are given back", || {
        proxy.descriptors() <= descriptors + 1
    })
    .await;
    eventually_async("they are counted", || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_downstream_connections_rejected_total", &[])
            >= 3.0
    })
    .await;
}

#[tokio::test]
async fn an_old_connection_of_http_2_says_goodbye_and_finishes_its_streams() {
    let (release, waiting) = tokio::sync::watch::channel(false);
    let upstream = Upstream::each(move |mut peer| {
        let mut waiting = waiting.clone();
        async move {
            while let Some(request) = peer.request().await? {
                drop(waiting.wait_for(|released| *released).await);
                peer.answer(&request, 200, "", b"whole").await?;
            }
            Ok(())
        }
    });
    let proxy = proxy(&listening(
        "    timeouts: { max_connection_age: 300ms }\n",
        &upstream,
    ))
    .await;
    let mut client = H2::connect(proxy.web()).await;
    let request = http::Request::get(uri("/")).body(()).expect("a request");
    let (running, _) = client.start(request, true).await;
    eventually("it arrives", || upstream.requests() == 1).await;
    // No new stream after the goodbye; how many fit in before is a matter of time.
    soon("GOAWAY", async {
        loop {
            let request = http::Request::get(uri("/late")).body(()).expect("a request");
            match client.try_start(request).await {
                None => return,
                Some(stream) => drop(stream),
            }
            tokio::time::sleep(crate::support::proxy::BEAT).await;
        }
    })
    .await;
    release.send(true).expect("an upstream");
    assert_eq!(collect(running).await.expect("an answer").text(), "whole");
    soon("the end", client.ended()).await.expect("a clean end");
}

#[tokio::test]
async fn a_head_of_http_2_that_does_not_end_is_given_up() {
    use crate::support::frames::{Frames, HEADERS, block, frame};
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening(
        "    timeouts: { headers: 300ms, keep_alive: 500ms }\n",
        &upstream,
    ))
    .await;
    let mut client = Frames::connect(proxy.web()).await;
    let head = frame(HEADERS, 0, 1, &block(&[(b":method", b"GET")]));
    client.try_send(&head).await.expect("the proxy reads");
    // Whether by GOAWAY or by the end alone.
    assert_eq!(client.outcome(1).await, None);
    assert_eq!(get(proxy.web(), "/").await.status, 200);
}

#[tokio::test]
async fn a_body_of_http_2_that_stalls_ends_its_stream_only() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    timeouts: { body_idle: 300ms }\n", &upstream)).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = http::Request::post(uri("/"))
        .header("content-length", 100)
        .body(())
        .expect("a request");
    let (answer, mut send) = client.start(request, false).await;
    send.send_data(bytes::Bytes::from_static(b"half"), false)
        .expect("a stream");
    collect(answer)
        .await
        .expect("an answer")
        .is_refusal(408, "client_timeout");
    assert_eq!(client.get("/").await.status, 200);
}
