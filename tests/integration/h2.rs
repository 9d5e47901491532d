//! HTTP/2 in front of HTTP/1.1 and of HTTP/2: prior knowledge, translation both ways, interim answers, trailers, resets,
//! GOAWAY.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};

use crate::support::client::{self, Client};
use crate::support::eventually;
use crate::support::h2::{H2, H2Upstream, collect, head, read, uri};
use crate::support::http1::Framing;
use crate::support::proxy::{proxy, to, with};
use crate::support::upstream::Upstream;

const HTTP2: &str = "    protocol: http2\n";

#[tokio::test]
async fn prior_knowledge_is_recognised_beside_http_1() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    assert_eq!(client::get(proxy.web(), "/one").await.status, 200);
    let answer = H2::connect(proxy.web()).await.get("/two").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["target"], "/two");
    // The authority has become the host.
    assert_eq!(answer.echoed("host").as_deref(), Some("test.example"));
    assert_eq!(answer.echoed("via").as_deref(), Some("2 bellwether"));
}

#[tokio::test]
async fn streams_are_served_at_the_same_time() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let mut answers = Vec::new();
    for number in 0..50 {
        let request = Request::get(uri(&format!("/{number}")))
            .body(())
            .expect("a request");
        answers.push((number, client.start(request, true).await.0));
    }
    for (number, answer) in answers {
        let answer = collect(answer).await.expect("an answer");
        assert_eq!(answer.json()["target"], format!("/{number}"));
    }
}

#[tokio::test]
async fn a_body_of_known_length_keeps_its_length_towards_http_1() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = Request::post(uri("/"))
        .header("content-length", 5)
        .body(&b"hello"[..])
        .expect("a request");
    assert_eq!(client.ask(request).await.json()["body"], "hello");
    assert_eq!(upstream.last().framing, Framing::Length(5));

    let request = Request::post(uri("/")).body(&b"hello"[..]).expect("a request");
    assert_eq!(client.ask(request).await.json()["body"], "hello");
    assert_eq!(upstream.last().framing, Framing::Chunked);
}

#[tokio::test]
async fn cookies_come_together_for_http_1() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let request = Request::get(uri("/"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(&b""[..])
        .expect("a request");
    let answer = H2::connect(proxy.web()).await.ask(request).await;
    // RFC 9113 §8.2.3
    assert_eq!(answer.echoed("cookie").as_deref(), Some("a=1; b=2"));
}

#[tokio::test]
async fn trailers_go_both_ways_between_http_2_and_http_1() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(received) = peer.request().await? {
            let sum = received.trailers.get("x-sum").unwrap_or("none").to_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-back: {sum}\r\n\r\n"
            );
            peer.send(answer.as_bytes()).await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = Request::post(uri("/"))
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (answer, mut send) = client.start(request, false).await;
    send.send_data(Bytes::from_static(b"body"), false)
        .expect("a stream");
    send.send_trailers(HeaderMap::from_iter([(
        "x-sum".parse().expect("a name"),
        HeaderValue::from_static("42"),
    )]))
    .expect("a stream");
    let answer = collect(answer).await.expect("an answer");
    assert_eq!(upstream.only().trailers.get("x-sum"), Some("42"));
    assert_eq!(answer.text(), "ok");
    assert_eq!(answer.trailers.get("x-back"), Some("42"));
}

#[tokio::test]
async fn early_hints_and_100_reach_http_2() {
    let upstream = Upstream::each(|mut peer| async move {
        while peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = H2::connect(proxy.web()).await.get("/").await;
    let hints: Vec<_> = answer
        .interim
        .iter()
        .filter(|(status, _)| *status == 103)
        .collect();
    assert_eq!(hints.len(), 1, "{:?}", answer.interim);
    assert_eq!(hints[0].1.get("link"), Some("</a.css>"));
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn head_204_and_304_end_with_their_headers() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(received) = peer.request().await? {
            let answer = match received.target.as_str() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            };
            peer.send(answer.as_bytes()).await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    for path in ["/204", "/304"] {
        let answer = client.get(path).await;
        assert_eq!(
            (format!("/{}", answer.status), answer.body.len()),
            (path.to_owned(), 0)
        );
    }
    let request = Request::head(uri("/")).body(&b""[..]).expect("a request");
    let answer = client.ask(request).await;
    assert_eq!(
        (answer.status, answer.fields.get("content-length")),
        (200, Some("1234"))
    );
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn http_1_is_translated_to_an_http_2_upstream() {
    let upstream = H2Upstream::echo();
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for number in 0..10 {
        let answer = client
            .ask(
                "POST",
                &format!("/{number}?q"),
                "x-one: 1\r\nconnection: x-hop\r\nx-hop: 1\r\n",
                b"hello",
            )
            .await;
        assert_eq!(answer.status, 200);
        let echo = answer.json();
        assert_eq!(echo["target"], format!("/{number}?q"));
        assert_eq!(echo["authority"], "test.example");
        assert_eq!(echo["body"], "hello");
        assert_eq!(answer.echoed("x-one").as_deref(), Some("1"));
        for name in ["x-hop", "connection", "host", "transfer-encoding"] {
            assert_eq!(answer.echoed(name), None, "{name}");
        }
    }
    assert_eq!(upstream.requests(), 10);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn chunks_and_trailers_of_http_1_reach_an_http_2_upstream() {
    let upstream = H2Upstream::echo();
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nhost: test.example\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n",
        )
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.json()["body"], "hello");
    assert_eq!(answer.json()["trailers"][0][1], "42");
    assert_eq!(answer.trailers.get("x-sum"), Some("42"));
}

#[tokio::test]
async fn http_2_on_both_sides_shares_upstream_connections() {
    let upstream = H2Upstream::echo();
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    client.get("/first").await;
    let mut answers = Vec::new();
    for number in 0..40 {
        let request = Request::get(uri(&format!("/{number}")))
            .body(())
            .expect("a request");
        answers.push(client.start(request, true).await.0);
    }
    for answer in answers {
        assert_eq!(collect(answer).await.expect("an answer").status, 200);
    }
    assert!(
        upstream.connections() <= 2,
        "{} connections",
        upstream.connections()
    );
}

#[tokio::test]
async fn early_hints_of_an_http_2_upstream_reach_both_kinds_of_client() {
    let upstream = H2Upstream::each(|_, mut respond| async move {
        let hints = Response::builder()
            .status(103)
            .header("link", "</a>")
            .body(())
            .expect("a head");
        respond.send_informational(hints).expect("a stream");
        let mut send = respond.send_response(Response::new(()), false).expect("a stream");
        send.send_data(Bytes::from_static(b"ok"), true).expect("a stream");
    });
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    for answer in [
        client::get(proxy.web(), "/").await,
        H2::connect(proxy.web()).await.get("/").await,
    ] {
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.interim.len(), 1);
        assert_eq!(answer.interim[0].1.get("link"), Some("</a>"));
    }
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_upstream_stream() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let upstream = H2Upstream::each(move |_, mut respond| {
        let told = told.clone();
        async move {
            told.send("asked").expect("a listener");
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            told.send(if reset.is_ok() { "reset" } else { "lost" })
                .expect("a listener");
        }
    });
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = Request::get(uri("/")).body(()).expect("a request");
    let (answer, mut send) = client.start(request, true).await;
    assert_eq!(
        crate::support::soon("the request", heard.recv()).await,
        Some("asked")
    );
    send.send_reset(h2::Reason::CANCEL);
    drop(answer);
    assert_eq!(
        crate::support::soon("the reset", heard.recv()).await,
        Some("reset")
    );
    // The connection lives on.
    drop(client);
}

#[tokio::test]
async fn an_upstream_that_dies_in_the_body_resets_the_stream_only() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(received) = peer.request().await? {
            if received.target == "/whole" {
                peer.answer(&received, 200, "", b"ok").await?;
                continue;
            }
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                .await?;
            peer.sent().await?;
            peer.reset();
            return Ok(());
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = Request::get(uri("/half")).body(()).expect("a request");
    let (answer, _) = client.start(request, true).await;
    let (_, response) = head(answer).await.expect("a head");
    assert_eq!(response.status(), 200);
    let error = read(response.into_body()).await.expect_err("half a body");
    assert!(error.is_reset(), "{error:?}");
    assert_eq!(client.get("/whole").await.text(), "ok");
}

#[tokio::test]
async fn a_stream_that_an_http_2_upstream_refuses_is_asked_again() {
    let upstream = {
        let refused = std::sync::atomic::AtomicUsize::new(0);
        H2Upstream::each(move |request, mut respond| {
            let first = refused.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move {
                if first {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    crate::support::h2::echo(request, respond).await;
                }
            }
        })
    };
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    // RFC 9113 §8.7: nothing was processed, so even a POST is safe.
    let answer = client::ask(proxy.web(), "POST", "/", "", b"once").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["body"], "once");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_version_is_named_in_the_log() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    client::get(proxy.web(), "/one").await;
    H2::connect(proxy.web()).await.get("/two").await;
    assert_eq!(
        proxy.logged(|line| line["path"] == "/one").await["protocol"],
        "HTTP/1.1"
    );
    assert_eq!(
        proxy.logged(|line| line["path"] == "/two").await["protocol"],
        "HTTP/2"
    );
    assert_eq!(format!("{:?}", Version::HTTP_2), "HTTP/2.0");
}

#[tokio::test]
async fn a_full_connection_queues_streams_and_loses_none() {
    let upstream = Upstream::echo();
    let config = format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n    limits: {{ max_concurrent_streams: 4 }}\nroutes:\n  - cluster: app\n\
         clusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    let mut client = H2::connect(proxy.web()).await;
    client.get("/first").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let request = Request::get(uri(&format!("/{number}")))
            .body(())
            .expect("a request");
        let (answer, _) = client.start(request, true).await;
        tasks.spawn(async move { collect(answer).await.map(|answer| answer.status) });
    }
    while let Some(status) = tasks.join_next().await {
        assert_eq!(status.expect("no panic").expect("an answer"), 200);
    }
    eventually("all have arrived", || upstream.requests() == 21).await;
}

#[tokio::test]
async fn expect_100_is_answered_over_http_2_once_the_upstream_wants_the_body() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let request = Request::post(uri("/"))
        .header("expect", "100-continue")
        .header("content-length", 5)
        .body(())
        .expect("a request");
    let (mut answer, mut send) = client.start(request, false).await;
    let interim = crate::support::soon("100", std::future::poll_fn(|cx| answer.poll_informational(cx)))
        .await
        .expect("an interim answer")
        .expect("an interim answer");
    assert_eq!(interim.status(), 100);
    send.send_data(Bytes::from_static(b"hello"), true)
        .expect("a stream");
    let answer = collect(answer).await.expect("an answer");
    assert_eq!(answer.json()["body"], "hello");
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);

    // Who does not wait is not told, and neither is one whose body is not wanted.
    let request = Request::post(uri("/"))
        .header("expect", "100-continue")
        .body(&b""[..])
        .expect("a request");
    assert!(client.ask(request).await.interim.is_empty());
}
