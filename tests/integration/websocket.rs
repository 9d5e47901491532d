//! Upgrades: a real WebSocket client and server, tunnels that open only after the upstream's 101, halves that close on
//! their own, and the same over HTTP/2.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{self, Client, request};
use crate::support::h2::{H2, H2Upstream, head, uri, write};
use crate::support::proxy::{proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

const ASK: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A server that says everything back.
fn echoing() -> Upstream {
    Upstream::each(|peer| async move {
        let mut socket = tokio_tungstenite::accept_async(peer.reader.io)
            .await
            .map_err(std::io::Error::other)?;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.map_err(std::io::Error::other)?;
            }
        }
        Ok(())
    })
}

#[tokio::test]
async fn a_web_socket_speaks_both_ways() {
    let upstream = echoing();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let url = format!("ws://{}/chat?room=1", proxy.web());
    let (mut socket, answer) = soon("an upgrade", tokio_tungstenite::connect_async(url))
        .await
        .expect("an upgrade");
    assert_eq!(answer.status(), 101);
    for message in [
        Message::text("hello"),
        Message::binary(vec![7; 200_000]),
        Message::text("bye"),
    ] {
        socket.send(message.clone()).await.expect("a socket");
        assert_eq!(
            soon("an echo", socket.next())
                .await
                .expect("an echo")
                .expect("an echo"),
            message
        );
    }
    socket
        .send(Message::Ping(Bytes::from_static(b"?")))
        .await
        .expect("a socket");
    assert!(
        soon("a pong", socket.next())
            .await
            .expect("a pong")
            .expect("a pong")
            .is_pong()
    );
    socket.close(None).await.expect("a socket");
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    drop(socket);
    eventually("the upstream's connection ends", || upstream.open() == 0).await;
    let line = proxy.logged(|line| line["path"] == "/chat").await;
    assert_eq!(line["status"], 101, "{line}");
}

/// After the 101: reads to the end, then sends what it got and how it ended.
fn answers_after_the_end() -> Upstream {
    Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(ACCEPT).await?;
            let got = peer.reader.rest().await?;
            peer.send(b"after the end: ").await?;
            peer.send(&got).await?;
        }
        Ok(())
    })
}

#[tokio::test]
async fn the_upstream_goes_on_after_the_client_has_finished() {
    let upstream = answers_after_the_end();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", ASK, b"")).await;
    assert_eq!(client.answer().await.status, 101);
    client.send("some bytes").await;
    client.finish().await;
    assert_eq!(client.until_closed().await, b"after the end: some bytes");
}

#[tokio::test]
async fn the_client_goes_on_after_the_upstream_has_finished() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(ACCEPT).await?;
            peer.send(b"done").await?;
            peer.reader.io.shutdown().await?;
            let rest = peer.reader.rest().await?;
            assert_eq!(rest, b"still here");
            // Counted as a second request, which is how the test sees it.
            let head = crate::support::http1::Head {
                start: "GET /heard HTTP/1.1".to_owned(),
                fields: crate::support::http1::Fields(vec![("host".to_owned(), "x".to_owned())]),
            };
            peer.record(
                head,
                crate::support::http1::Framing::None,
                Vec::new(),
                <_>::default(),
            )?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", ASK, b"")).await;
    assert_eq!(client.answer().await.status, 101);
    assert_eq!(client.until_closed().await, b"done");
    client.send("still here").await;
    client.finish().await;
    eventually("the upstream hears the rest", || upstream.requests() == 2).await;
}

#[tokio::test]
async fn bytes_right_behind_the_handshake_are_not_lost() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            let mut bytes = ACCEPT.to_vec();
            bytes.extend_from_slice(b"first words");
            peer.send(&bytes).await?;
            let mut got = peer.reader.exactly(5).await?;
            got.reverse();
            peer.send(&got).await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", ASK, b"")).await;
    assert_eq!(client.answer().await.status, 101);
    client.send("early").await;
    assert_eq!(client.until_closed().await, b"first wordsylrae");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let upstream = Upstream::answers(426, "no");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2 {
        let answer = client.ask("GET", "/", ASK, b"").await;
        assert_eq!((answer.status, answer.text().as_str()), (426, "no"));
        assert!(answer.keep_alive);
    }
    let received = upstream.last();
    assert_eq!(received.fields.get("upgrade"), Some("websocket"));
    assert_eq!(
        received
            .fields
            .get("connection")
            .map(str::to_ascii_lowercase)
            .as_deref(),
        Some("upgrade")
    );
}

#[tokio::test]
async fn nothing_flows_before_the_upstream_has_agreed() {
    // CVE-2026-2833: a second request behind the handshake must not reach the upstream as tunnel bytes.
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(received) = peer.request().await? {
            peer.sent().await?;
            assert!(peer.reader.buffer.is_empty(), "bytes before our answer");
            peer.answer(&received, 200, "", received.target.as_bytes())
                .await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut bytes = request("GET", "/first", ASK, b"");
    bytes.extend(request("GET", "/second", "", b""));
    client.send(bytes).await;
    assert_eq!(client.answer().await.text(), "/first");
    assert_eq!(client.answer().await.text(), "/second");
    assert!(!upstream.last().fields.has("upgrade"));
}

#[tokio::test]
async fn an_unasked_101_is_an_error_of_the_upstream() {
    let upstream = Upstream::sends_and_closes(ACCEPT);
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    client::get(proxy.web(), "/")
        .await
        .is_refusal(502, "upstream_protocol");
}

#[tokio::test]
async fn connect_is_not_a_way_out() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("CONNECT internal.example:22 HTTP/1.1\r\nhost: internal.example:22\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert!((400..=501).contains(&answer.status), "{answer:?}");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn an_extended_connect_becomes_an_upgrade() {
    let upstream = Upstream::each(|mut peer| async move {
        if let Some(received) = peer.request().await? {
            assert_eq!(received.method, "GET");
            assert!(received.fields.has("sec-websocket-key"), "{received:?}");
            // The accept value of this key, as a strict server makes it.
            let key = received
                .fields
                .get("sec-websocket-key")
                .expect("a key")
                .to_owned();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            peer.send(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
                )
                .as_bytes(),
            )
            .await?;
            let mut buffer = [0; 1024];
            loop {
                let count = peer.reader.io.read(&mut buffer).await?;
                if count == 0 {
                    return Ok(());
                }
                peer.reader.io.write_all(&buffer[..count]).await?;
            }
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    over_http_2(proxy.web()).await;
}

#[tokio::test]
async fn an_extended_connect_reaches_an_http_2_upstream() {
    let upstream = H2Upstream::each(|request, mut respond| async move {
        assert_eq!(request.method(), Method::CONNECT);
        let protocol = request
            .extensions()
            .get::<h2::ext::Protocol>()
            .map(|name| name.as_str().to_owned());
        assert_eq!(protocol.as_deref(), Some("websocket"));
        let mut body = request.into_body();
        let mut send = respond.send_response(Response::new(()), false).expect("a stream");
        while let Some(Ok(data)) = body.data().await {
            drop(body.flow_control().release_capacity(data.len()));
            if write(&mut send, data, false).await.is_err() {
                return;
            }
        }
        drop(send.send_data(Bytes::new(), true));
    });
    let proxy = proxy(&with("", "    protocol: http2\n", &[upstream.address()])).await;
    over_http_2(proxy.web()).await;
}

/// Opens a tunnel over HTTP/2, says something, hears it back, closes both halves.
async fn over_http_2(address: std::net::SocketAddr) {
    let mut client = H2::connect(address).await;
    eventually("the proxy offers extended CONNECT", || {
        client.takes_extended_connect()
    })
    .await;
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(uri("/chat"))
        .header("sec-websocket-version", "13")
        .body(())
        .expect("a request");
    request
        .extensions_mut()
        .insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, mut send) = client.start(request, false).await;
    let (_, response) = head(answer).await.expect("an answer");
    assert_eq!(response.status(), 200, "{response:?}");
    assert!(
        !response.headers().contains_key("sec-websocket-accept"),
        "{response:?}"
    );
    let mut body = response.into_body();
    for word in ["one", "two"] {
        send.send_data(Bytes::from_static(word.as_bytes()), false)
            .expect("a stream");
        let mut got = Vec::new();
        while got.len() < word.len() {
            let data = soon("an echo", body.data())
                .await
                .expect("an echo")
                .expect("an echo");
            drop(body.flow_control().release_capacity(data.len()));
            got.extend_from_slice(&data);
        }
        assert_eq!(got, word.as_bytes());
    }
    send.send_data(Bytes::new(), true).expect("a stream");
    loop {
        match soon("the end", body.data()).await {
            None => break,
            Some(data) => assert!(data.expect("a clean end").is_empty()),
        }
    }
}

#[tokio::test]
async fn a_web_socket_over_http_1_reaches_an_http_2_upstream_or_is_refused_cleanly() {
    let upstream = H2Upstream::each(|request, mut respond| async move {
        assert_eq!(request.method(), Method::CONNECT);
        let mut body = request.into_body();
        let mut send = respond.send_response(Response::new(()), false).expect("a stream");
        while let Some(Ok(data)) = body.data().await {
            drop(body.flow_control().release_capacity(data.len()));
            if write(&mut send, data, false).await.is_err() {
                return;
            }
        }
        drop(send.send_data(Bytes::new(), true));
    });
    let proxy = proxy(&with("", "    protocol: http2\n", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", ASK, b"")).await;
    let answer = client.answer().await;
    if answer.status == 101 {
        assert_eq!(
            answer.fields.get("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        client.send("hello").await;
        assert_eq!(
            soon("an echo", client.reader.exactly(5)).await.expect("an echo"),
            b"hello"
        );
    } else {
        assert!(answer.rejected().is_some(), "{answer:?}");
    }
}
