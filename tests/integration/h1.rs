//! HTTP/1.1 on both sides: messages arrive whole, framing is ours, connections are kept and closed as RFC 9110 and
//! RFC 9112 say.

use crate::support::client::{self, Client, request};
use crate::support::http1::Framing;
use crate::support::proxy::{proxy, to, with};
use crate::support::soon;
use crate::support::upstream::Upstream;

#[tokio::test]
async fn a_request_and_its_answer_go_through() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = client::ask(proxy.web(), "PUT", "/a/b?c=d%20e", "x-one: 1\r\n", b"content").await;
    assert_eq!(answer.status, 200);
    let echo = answer.json();
    assert_eq!(echo["method"], "PUT");
    assert_eq!(echo["target"], "/a/b?c=d%20e");
    assert_eq!(echo["body"], "content");
    assert_eq!(answer.echoed("host").as_deref(), Some("test.example"));
    assert_eq!(answer.echoed("x-one").as_deref(), Some("1"));
    assert_eq!(answer.fields.get("content-type"), Some("application/json"));
}

#[tokio::test]
async fn field_values_are_bytes() {
    let upstream = Upstream::sends(b"HTTP/1.1 200 OK\r\nx-back: caf\xe9\r\ncontent-length: 0\r\n\r\n");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(b"GET / HTTP/1.1\r\nhost: test.example\r\nx-there: \xfcber\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.fields.get("x-back"), Some("caf\u{e9}"));
    assert_eq!(upstream.only().fields.get("x-there"), Some("\u{fc}ber"));
}

#[tokio::test]
async fn one_connection_serves_many_requests_on_both_sides() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..20 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        assert!(answer.keep_alive);
    }
    assert_eq!(upstream.requests(), 20);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut bytes = Vec::new();
    for path in ["/1", "/2", "/3"] {
        bytes.extend(request("POST", path, "", path.as_bytes()));
    }
    client.send(bytes).await;
    for path in ["/1", "/2", "/3"] {
        let echo = client.answer().await.json();
        assert_eq!(
            (echo["target"].as_str(), echo["body"].as_str()),
            (Some(path), Some(path))
        );
    }
}

#[tokio::test]
async fn close_ends_the_connection_after_the_answer() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let answer = client.ask("GET", "/", "connection: close\r\n", b"").await;
    assert_eq!(answer.status, 200);
    assert!(!answer.keep_alive);
    client.is_closed().await;
    // The client's wish is about its own connection only.
    assert!(upstream.only().keep_alive);
}

#[tokio::test]
async fn http_1_0_is_served_and_closed() {
    let upstream = Upstream::sends(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
    );
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send("GET / HTTP/1.0\r\nhost: test.example\r\n\r\n").await;
    let raw = client.until_closed().await;
    let text = String::from_utf8(raw).expect("ASCII");
    // A client of 1.0 does not know chunks.
    assert!(text.ends_with("\r\n\r\nabc"), "{text:?}");
    assert!(
        !text.to_ascii_lowercase().contains("transfer-encoding"),
        "{text:?}"
    );
}

#[tokio::test]
async fn a_client_of_http_1_0_may_name_no_host() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    client.until_closed().await;
    // RFC 9112 §3.2: a request of HTTP/1.1 must; the endpoint's own is what is known.
    let own = upstream.address().to_string();
    assert_eq!(upstream.only().fields.all("host"), [own.as_str()]);
}

#[tokio::test]
async fn http_1_0_keeps_the_connection_when_asked() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.0\r\nhost: test.example\r\nconnection: keep-alive\r\n\r\n")
            .await;
        let (status, head) = client.answer_head().await;
        assert_eq!(status, 200, "{head:?}");
        assert_eq!(head.connection(), ["keep-alive"]);
        assert_eq!(head.framing().expect("one framing"), Framing::Length(2));
        client.reader.exactly(2).await.expect("a body");
    }
}

#[tokio::test]
async fn an_upstream_that_closes_after_each_answer_is_dialled_again() {
    let upstream = Upstream::each(|mut peer| async move {
        if let Some(request) = peer.request().await? {
            peer.answer(&request, 200, "connection: close\r\n", b"ok").await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..5 {
        let answer = client.get("/").await;
        assert_eq!(answer.text(), "ok");
        // The upstream's wish is about its own connection only.
        assert!(answer.keep_alive);
    }
    assert_eq!(upstream.connections(), 5);
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_framed_anew() {
    let upstream = Upstream::sends_and_closes(b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec());
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let answer = client.get("/").await;
    assert_eq!(answer.text(), "until the end");
    assert_eq!(answer.fields.all("transfer-encoding"), ["chunked"]);
    assert!(answer.keep_alive);
}

#[tokio::test]
async fn head_has_the_fields_of_get_and_no_body() {
    let upstream = Upstream::each(|mut peer| async move {
        while peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n")
                .await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..3 {
        client.send(request("HEAD", "/", "", b"")).await;
        let answer = client.answer_to("HEAD").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.fields.get("content-length"), Some("1234"));
        assert_eq!(answer.fields.get("etag"), Some("\"x\""));
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn answers_without_content_leave_the_connection_usable() {
    for status in [204, 304] {
        let upstream = Upstream::answers(status, "");
        let proxy = proxy(&to(&[upstream.address()])).await;
        let mut client = Client::connect(proxy.web()).await;
        for _ in 0..2 {
            let answer = client.get("/").await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.body, b"");
            assert!(!answer.fields.has("transfer-encoding"), "{answer:?}");
            assert!(
                status != 204 || !answer.fields.has("content-length"),
                "{answer:?}"
            );
        }
        assert_eq!(upstream.connections(), 1);
    }
}

#[tokio::test]
async fn a_304_keeps_the_length_it_speaks_of() {
    let upstream =
        Upstream::sends(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\netag: \"y\"\r\n\r\n".to_vec());
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!(
            (answer.status, answer.fields.get("content-length")),
            (304, Some("77"))
        );
    }
}

#[tokio::test]
async fn chunks_and_trailers_go_through_both_ways() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(received) = peer.request().await? {
            let sum = received.trailers.get("x-sum").unwrap_or("none").to_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-back\r\n\r\n5\r\nhello\r\n0\r\nx-back: {sum}\r\n\r\n"
            );
            peer.send(answer.as_bytes()).await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nte: trailers\r\n\r\n\
             4;extension=1\r\nabcd\r\n2\r\nef\r\n0\r\nx-sum: 42\r\ncontent-length: 3\r\n\r\n",
        )
        .await;
    let answer = client.answer().await;
    let received = upstream.only();
    assert_eq!(received.framing, Framing::Chunked);
    assert_eq!(received.body, b"abcdef");
    assert_eq!(received.trailers.get("x-sum"), Some("42"));
    assert!(
        !received.trailers.has("content-length"),
        "a trailer that frames was passed on"
    );
    assert_eq!(received.fields.get("te"), Some("trailers"));
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.trailers.get("x-back"), Some("42"));
    // Somebody has tried to frame by a trailer; that connection is not trusted any further.
    assert!(!answer.keep_alive);
}

#[tokio::test]
async fn expect_100_is_answered_once_the_upstream_wants_the_body() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await;
    let (status, _) = client.answer_head().await;
    assert_eq!(status, 100);
    client.send("hello").await;
    let answer = client.answer().await;
    assert_eq!(answer.json()["body"], "hello");
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
}

#[tokio::test]
async fn a_body_that_is_refused_is_not_asked_for() {
    let proxy =
        proxy("listeners:\n  web: 127.0.0.1:0\nroutes:\n  - direct_response: { status: 403, body: no }\n")
            .await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 403);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
    // Whether the body follows is not known, so nothing may follow on this connection.
    assert!(!answer.keep_alive);
}

#[tokio::test]
async fn early_hints_reach_the_client() {
    let upstream = Upstream::each(|mut peer| async move {
        while peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")
                .await?;
            peer.send(b"HTTP/1.1 102 Processing\r\n\r\n").await?;
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!(answer.text(), "ok");
        let (status, fields) = answer.interim.first().expect("early hints");
        assert_eq!(*status, 103);
        assert_eq!(fields.get("link"), Some("</a.css>; rel=preload"));
    }
}

#[tokio::test]
async fn a_client_of_1_0_gets_no_interim_answer() {
    let upstream = Upstream::sends_and_closes(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            .to_vec(),
    );
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send("GET / HTTP/1.0\r\nhost: test.example\r\n\r\n").await;
    let text = String::from_utf8(client.until_closed().await).expect("ASCII");
    assert!(text.starts_with("HTTP/1.") && !text.contains("103"), "{text:?}");
}

#[tokio::test]
async fn an_absolute_target_is_sent_on_in_origin_form() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("GET http://shop.example/a?b HTTP/1.1\r\nhost: shop.example\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.json()["target"], "/a?b");
    assert_eq!(answer.echoed("host").as_deref(), Some("shop.example"));
}

#[tokio::test]
async fn options_for_everything_goes_through() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = client::ask(proxy.web(), "OPTIONS", "*", "", b"").await;
    assert_eq!(answer.json()["target"], "*");
}

#[tokio::test]
async fn an_extension_method_goes_through() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = client::ask(proxy.web(), "PROPFIND", "/dav", "", b"<x/>").await;
    assert_eq!(answer.json()["method"], "PROPFIND");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_passed_on() {
    let upstream = Upstream::each(|mut peer| async move {
        if let Some(head) = peer.head().await? {
            let framing = head.framing()?;
            peer.record(head, framing, Vec::new(), <_>::default())?;
            peer.send(b"HTTP/1.1 429 Slow Down\r\ncontent-length: 4\r\nconnection: close\r\n\r\nslow")
                .await?;
            peer.reader.rest().await?;
        }
        Ok(())
    });
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 1000000\r\n\r\nsome")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (429, "slow"));
    assert!(!answer.keep_alive, "unread content remains");
}

#[tokio::test]
async fn a_client_that_leaves_is_told_to_the_upstream() {
    let upstream = Upstream::stalls();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    crate::support::eventually("the request arrives", || upstream.requests() == 1).await;
    drop(client);
    crate::support::eventually("the upstream's connection ends", || upstream.open() == 0).await;
    let line = proxy.logged(|line| line["reason"] == "client_closed").await;
    // None was sent; the log says what the metrics say.
    assert_eq!(
        (&line["status"], &line["terminated_by"]),
        (&499.into(), &"client".into()),
        "{line}"
    );
}

#[tokio::test]
async fn a_unix_socket_listens_and_is_dialled() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = folder.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&app).expect("a socket");
    let serve = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut reader = crate::support::http1::Reader::new(stream);
                while let Ok(Some(_)) = reader.head().await {
                    use tokio::io::AsyncWriteExt;
                    reader
                        .io
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nunix")
                        .await
                        .expect("a peer");
                }
            });
        }
    });
    let front = folder.path().join("front.sock");
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\n  local: \"unix:{}\"\nroutes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [\"unix:{}\"]\n",
        front.display(),
        app.display()
    );
    let proxy = proxy(&config).await;
    assert_eq!(client::get(proxy.web(), "/").await.text(), "unix");
    let stream = soon("a connection", tokio::net::UnixStream::connect(&front))
        .await
        .expect("the proxy accepts");
    let answer = Client::over(client::Stream::Unix(stream)).get("/").await;
    assert_eq!(answer.text(), "unix");
    serve.abort();
}
