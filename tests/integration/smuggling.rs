//! Ambiguous, malformed and hostile messages: refused towards the client, never forwarded, never mixed up.
//!
//! The upstream of each request case is a strict reader: whatever reaches it must be one request that reads only one
//! way. The rows follow the table of the project's reliability promises.

use crate::support::client::{Client, get, request};
use crate::support::h2::H2;
use crate::support::http1::latin1;
use crate::support::proxy::{proxy, to, with};
use crate::support::upstream::Upstream;

/// Requests that are 400 and the end of the connection. `~` stands for the usual host line.
const REFUSED: &[(&str, &[u8])] = &[
    (
        "both framings",
        b"POST / HTTP/1.1\r\n~content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        b"POST / HTTP/1.1\r\n~content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    ),
    (
        "two different lengths",
        b"POST / HTTP/1.1\r\n~content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    ),
    (
        "a list of lengths",
        b"POST / HTTP/1.1\r\n~content-length: 3, 3\r\n\r\nabc",
    ),
    (
        "a signed length",
        b"POST / HTTP/1.1\r\n~content-length: +3\r\n\r\nabc",
    ),
    (
        "a hexadecimal length",
        b"POST / HTTP/1.1\r\n~content-length: 0x3\r\n\r\nabc",
    ),
    (
        "a length with a space",
        b"POST / HTTP/1.1\r\n~content-length: 3 3\r\n\r\nabc",
    ),
    (
        "a length of twenty digits",
        b"POST / HTTP/1.1\r\n~content-length: 18446744073709551616\r\n\r\nabc",
    ),
    (
        "an empty length",
        b"POST / HTTP/1.1\r\n~content-length:\r\n\r\nabc",
    ),
    (
        "gzip, chunked",
        b"POST / HTTP/1.1\r\n~transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked twice",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked, identity",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "xchunked",
        b"POST / HTTP/1.1\r\n~transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a tab in chunked",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chun\tked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked in 1.0",
        b"POST / HTTP/1.0\r\n~transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a bare line feed", b"GET / HTTP/1.1\r\n~x-a: 1\nx-b: 2\r\n\r\n"),
    (
        "a bare carriage return",
        b"GET / HTTP/1.1\r\n~x-a: 1\rx-b: 2\r\n\r\n",
    ),
    ("a NUL", b"GET / HTTP/1.1\r\n~x-a: 1\0\r\n\r\n"),
    ("a control byte", b"GET / HTTP/1.1\r\n~x-a: \x01\r\n\r\n"),
    ("a folded line", b"GET / HTTP/1.1\r\n~x-a: 1\r\n more\r\n\r\n"),
    (
        "a space before the colon",
        b"POST / HTTP/1.1\r\n~content-length : 3\r\n\r\nabc",
    ),
    ("an empty name", b"GET / HTTP/1.1\r\n~: 1\r\n\r\n"),
    ("a name that is no token", b"GET / HTTP/1.1\r\n~x(a): 1\r\n\r\n"),
    ("a line without a colon", b"GET / HTTP/1.1\r\n~nonsense\r\n\r\n"),
    (
        "a space before the first field",
        b"GET / HTTP/1.1\r\n x-a: 1\r\n~\r\n",
    ),
    ("no host", b"GET / HTTP/1.1\r\nx-a: 1\r\n\r\n"),
    ("two hosts", b"GET / HTTP/1.1\r\n~~\r\n"),
    (
        "a host with userinfo",
        b"GET / HTTP/1.1\r\nhost: me@test.example\r\n\r\n",
    ),
    (
        "a host with a path",
        b"GET / HTTP/1.1\r\nhost: test.example/x\r\n\r\n",
    ),
    (
        "a host with a space",
        b"GET / HTTP/1.1\r\nhost: test example\r\n\r\n",
    ),
    (
        "a target against its host",
        b"GET http://other.example/ HTTP/1.1\r\n~\r\n",
    ),
    ("a fragment", b"GET /a#b HTTP/1.1\r\n~\r\n"),
    ("a target with a control byte", b"GET /\x01 HTTP/1.1\r\n~\r\n"),
    ("a target that is not ASCII", b"GET /\xe9 HTTP/1.1\r\n~\r\n"),
    ("a target without a slash", b"GET abc HTTP/1.1\r\n~\r\n"),
    ("a method that is no token", b"G(T / HTTP/1.1\r\n~\r\n"),
    ("two spaces in the request line", b"GET  / HTTP/1.1\r\n~\r\n"),
    ("version 0.9", b"GET /\r\n\r\n"),
    ("version 2.0", b"GET / HTTP/2.0\r\n~\r\n"),
    ("version 1.2 in letters", b"GET / HTTP/one\r\n~\r\n"),
    (
        "a chunk size with a sign",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with 0x",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size that overflows",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk without its end",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ),
    (
        "a chunk that ends in a line feed",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with a space inside",
        b"POST / HTTP/1.1\r\n~transfer-encoding: chunked\r\n\r\n3 3\r\nabc\r\n0\r\n\r\n",
    ),
];

#[tokio::test]
async fn scenario_44_what_reads_two_ways_is_refused_and_not_forwarded() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut wrong = Vec::new();
    let mut other = Client::connect(proxy.web()).await;
    for (name, bytes) in REFUSED {
        assert_eq!(other.get("/other").await.status, 200, "{name}: others are served");
        let before = upstream.requests();
        let mut bytes = replaced(bytes);
        // What a smuggler hides behind it.
        bytes.extend(request("GET", "/smuggled", "", b""));
        let mut client = Client::connect(proxy.web()).await;
        client.send(bytes).await;
        match client.try_answer("GET").await {
            Ok(answer) if answer.status == 400 && !answer.keep_alive => {
                if answer.rejected() != Some("client_protocol") {
                    wrong.push(format!("{name}: reason {:?}", answer.rejected()));
                }
                let rest = client.until_closed().await;
                if !rest.is_empty() {
                    wrong.push(format!("{name}: a second answer: {:?}", latin1(&rest)));
                }
            }
            Ok(answer) => wrong.push(format!(
                "{name}: {} keep_alive={}",
                answer.status, answer.keep_alive
            )),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
        if upstream.requests() != before {
            wrong.push(format!("{name}: was forwarded: {:?}", upstream.last()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let counted = proxy.metrics().await.sum(
        "bellwether_request_rejections_total",
        &[("reason", "client_protocol")],
    );
    assert!(counted >= REFUSED.len() as f64, "{counted} counted");
}

fn replaced(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in bytes {
        match byte {
            b'~' => out.extend_from_slice(b"host: test.example\r\n"),
            byte => out.push(byte),
        }
    }
    out
}

#[tokio::test]
async fn what_is_read_is_written_anew() {
    let upstream = Upstream::records();
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(
            "\r\nPOST /a HTTP/1.1\r\nHOST:   test.example\t\r\nTransfer-Encoding: CHUNKED\r\nX-Mixed:\t spaced out \r\n\r\n\
             0003;name=\"a;b\"\r\nabc\r\n00\r\nX-Trailer: 1\r\nTransfer-Encoding: x\r\nHost: evil\r\n\r\n",
        )
        .await;
    crate::support::eventually("the request arrives", || upstream.bytes().ends_with(b"\r\n\r\n")).await;
    crate::support::eventually("the body arrives", || {
        latin1(&upstream.bytes()).contains("\r\n0\r\n")
    })
    .await;
    let text = latin1(&upstream.bytes());
    let lower = text.to_ascii_lowercase();
    assert!(text.starts_with("POST /a HTTP/1.1\r\n"), "{text:?}");
    assert_eq!(lower.matches("\r\nhost:").count(), 1, "{text:?}");
    assert_eq!(
        lower.matches("transfer-encoding: chunked\r\n").count(),
        1,
        "{text:?}"
    );
    assert!(!lower.contains("content-length"), "{text:?}");
    assert!(!text.contains("a;b") && !text.contains("evil"), "{text:?}");
    assert!(lower.contains("x-mixed: spaced out\r\n"), "{text:?}");
}

#[tokio::test]
async fn a_get_with_a_body_cannot_poison_the_next_request() {
    let upstream = Upstream::echo();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send("GET /1 HTTP/1.1\r\nhost: test.example\r\ncontent-length: 27\r\n\r\nGET /smuggled HTTP/1.1\r\nA: bGET /2 HTTP/1.1\r\nhost: test.example\r\n\r\n").await;
    assert_eq!(client.answer().await.json()["target"], "/1");
    assert_eq!(client.answer().await.json()["target"], "/2");
    assert!(
        upstream
            .received()
            .iter()
            .all(|received| received.target != "/smuggled")
    );
}

#[tokio::test]
async fn unread_content_does_not_become_a_request() {
    // CVE-2025-4366: an upstream that answers without reading leaves content on its connection.
    let upstream = Upstream::each(|mut peer| async move {
        if let Some(head) = peer.head().await? {
            let framing = head.framing()?;
            peer.record(head, framing, Vec::new(), <_>::default())?;
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
            // Whatever comes now must be the rest of that body, or nothing; a new request would be mixed with it.
            while let Ok(Some(head)) = peer.head().await {
                let framing = head.framing()?;
                peer.record(head, framing, Vec::new(), <_>::default())?;
                let body = if peer.index == 0 { "bad" } else { "ok!" };
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{body}").as_bytes())
                    .await?;
            }
        }
        Ok(())
    });
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 40\r\n\r\nGET /smuggled")
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    drop(client);
    for _ in 0..5 {
        let answer = get(proxy.web(), "/clean").await;
        assert!(answer.text().starts_with("ok"), "{answer:?}");
    }
    assert!(
        upstream
            .received()
            .iter()
            .all(|received| received.target != "/smuggled")
    );
}

/// Answers that must become 502 and nothing else.
const HOSTILE: &[(&str, &[u8])] = &[
    ("garbage", b"\x16\x03\x01 this is not HTTP\r\n\r\n"),
    ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    (
        "both framings",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ),
    (
        "a length that is no number",
        b"HTTP/1.1 200 OK\r\ncontent-length: three\r\n\r\nabc",
    ),
    (
        "gzip, chunked",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a bare line feed", b"HTTP/1.1 200 OK\nx-a: 1\n\n"),
    (
        "a NUL",
        b"HTTP/1.1 200 OK\r\nx-a: \0\r\ncontent-length: 0\r\n\r\n",
    ),
    (
        "a folded line",
        b"HTTP/1.1 200 OK\r\nx-a: 1\r\n b\r\ncontent-length: 0\r\n\r\n",
    ),
    ("a status of 99", b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n"),
    (
        "a status of 600",
        b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
    ),
    (
        "an unasked 101",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ),
    ("version 2.0", b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ("a head and no end", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"),
];

#[tokio::test]
async fn a_hostile_answer_becomes_502_and_its_connection_is_not_used_again() {
    for (name, bytes) in HOSTILE {
        let upstream = Upstream::sends_and_closes(*bytes);
        let proxy = proxy(&with(
            "    retry: off\n",
            "    outlier_detection: off\n",
            &[upstream.address()],
        ))
        .await;
        let mut client = Client::connect(proxy.web()).await;
        for turn in 1..=2 {
            let answer = client.get("/").await;
            assert_eq!((*name, answer.status), (*name, 502), "{answer:?}");
            let reason = answer.rejected().expect("a reason");
            assert!(
                matches!(reason, "upstream_protocol" | "upstream_closed" | "upstream_reset"),
                "{name}: {reason}"
            );
            assert!(answer.keep_alive, "{name}: the client has done nothing wrong");
            assert_eq!(upstream.connections(), turn, "{name}");
        }
    }
}

#[tokio::test]
async fn a_head_without_end_from_an_upstream_is_bounded() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                peer.send(&b"x-bomb: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(100))
                    .await?;
            }
        }
        Ok(())
    });
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let answer = get(proxy.web(), "/").await;
    answer.is_refusal(502, "upstream_protocol");
}

#[tokio::test]
async fn a_flood_of_interim_answers_is_bounded() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            loop {
                peer.send(&b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100))
                    .await?;
            }
        }
        Ok(())
    });
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!(answer.status, 502, "{:?}", answer.rejected());
    assert!(
        answer.interim.len() <= 1000,
        "{} interim answers",
        answer.interim.len()
    );
}

#[tokio::test]
async fn bytes_behind_an_answer_do_not_answer_the_next_request() {
    let upstream = Upstream::each(|mut peer| async move {
        while peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..10 {
        let answer = client.get("/").await;
        assert_eq!(answer.text(), "good");
    }
}

#[tokio::test]
async fn bytes_that_come_before_a_request_do_not_answer_it() {
    let upstream = Upstream::each(|mut peer| async move {
        while peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood")
                .await?;
            peer.sent().await?;
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
                .await?;
        }
        Ok(())
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    assert_eq!(client.get("/").await.text(), "good");
    // By now the second answer lies in the pooled connection, or the connection is gone.
    tokio::time::sleep(crate::support::proxy::BEAT * 10).await;
    assert_eq!(client.get("/").await.text(), "good");
}

#[tokio::test]
async fn content_where_none_may_be_does_not_reach_the_client() {
    for head in [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
    ] {
        let upstream =
            Upstream::sends(format!("{head}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").into_bytes());
        let proxy = proxy(&to(&[upstream.address()])).await;
        let mut client = Client::connect(proxy.web()).await;
        for _ in 0..5 {
            let answer = client.get("/").await;
            assert!(matches!(answer.status, 204 | 304), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_passed_off_as_whole() {
    let cases: [(&str, &[u8]); 4] = [
        ("too short", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"),
        (
            "no last chunk",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        (
            "a broken chunk",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalfXX0\r\n\r\n",
        ),
        (
            "a wrong chunk size",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfour\r\nhalf\r\n0\r\n\r\n",
        ),
    ];
    for (name, bytes) in cases {
        let upstream = Upstream::sends_and_closes(bytes);
        let proxy = proxy(&with(
            "    retry: off\n",
            "    outlier_detection: off\n",
            &[upstream.address()],
        ))
        .await;
        let mut client = Client::connect(proxy.web()).await;
        client.send(request("GET", "/", "", b"")).await;
        let answer = client.try_answer("GET").await;
        let passed_off = answer.as_ref().is_ok_and(|answer| answer.status != 502);
        assert!(!passed_off, "{name}: {answer:?}");
        let mut client = H2::connect(proxy.web()).await;
        let request = http::Request::get(crate::support::h2::uri("/"))
            .body(&b""[..])
            .expect("a request");
        let answer = client.try_ask(request).await;
        let passed_off = answer.as_ref().is_ok_and(|answer| answer.status != 502);
        assert!(!passed_off, "{name} over HTTP/2: {answer:?}");
        proxy
            .logged(|line| {
                line["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.starts_with("upstream_"))
            })
            .await;
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_its_body_sends_no_whole_request() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    for start in [
        "POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 10\r\n\r\nhalf",
        "POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let mut client = Client::connect(proxy.web()).await;
        client.send(start).await;
        client.finish().await;
        client.until_closed().await;
    }
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    assert_eq!(upstream.requests(), 1);
}
