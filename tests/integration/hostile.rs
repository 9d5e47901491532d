//! Peers that mean harm, or are broken: what a client must not write over HTTP/2, floods, streams and connections that
//! stand still, upstreams that end what they began. Others are served meanwhile, and memory stays where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};

use crate::support::client::{Client, get, request};
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, SETTINGS, block, frame,
};
use crate::support::h2::{H2, H2Upstream, collect, head, read, uri, write};
use crate::support::proxy::{Proxy, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

type Field = (&'static [u8], &'static [u8]);

const METHOD: Field = (b":method", b"GET");
const SCHEME: Field = (b":scheme", b"http");
const PATH: Field = (b":path", b"/");
const AUTHORITY: Field = (b":authority", b"test.example");

/// Heads of HTTP/2 that must not become a request of HTTP/1.1 (RFC 9113 §8.2, §8.3, and what smugglers hope for).
const REFUSED: &[(&str, &[Field])] = &[
    (
        "an upper case name",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"X-A", b"1")],
    ),
    (
        "a name with a colon",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x:a", b"1")],
    ),
    (
        "a name with a space",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x a", b"1")],
    ),
    (
        "a name with a line end",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x\r\ny", b"1")],
    ),
    ("an empty name", &[METHOD, SCHEME, PATH, AUTHORITY, (b"", b"1")]),
    (
        "a value with a line end",
        &[
            METHOD,
            SCHEME,
            PATH,
            AUTHORITY,
            (b"x-a", b"1\r\ntransfer-encoding: chunked"),
        ],
    ),
    (
        "a value with a line feed",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x-a", b"1\nx-b: 2")],
    ),
    (
        "a value with a NUL",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x-a", b"1\0")],
    ),
    (
        "connection",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"connection", b"x-a")],
    ),
    (
        "transfer-encoding",
        &[
            METHOD,
            SCHEME,
            PATH,
            AUTHORITY,
            (b"transfer-encoding", b"chunked"),
        ],
    ),
    (
        "keep-alive",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"keep-alive", b"timeout=5")],
    ),
    (
        "upgrade",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"upgrade", b"websocket")],
    ),
    (
        "proxy-connection",
        &[
            METHOD,
            SCHEME,
            PATH,
            AUTHORITY,
            (b"proxy-connection", b"keep-alive"),
        ],
    ),
    (
        "te that is not trailers",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"te", b"gzip")],
    ),
    ("no method", &[SCHEME, PATH, AUTHORITY]),
    ("no path", &[METHOD, SCHEME, AUTHORITY]),
    ("no scheme", &[METHOD, PATH, AUTHORITY]),
    ("no authority and no host", &[METHOD, SCHEME, PATH]),
    (
        "two methods",
        &[METHOD, (b":method", b"POST"), SCHEME, PATH, AUTHORITY],
    ),
    ("two paths", &[METHOD, SCHEME, PATH, (b":path", b"/b"), AUTHORITY]),
    ("an empty path", &[METHOD, SCHEME, (b":path", b""), AUTHORITY]),
    (
        "a path without a slash",
        &[METHOD, SCHEME, (b":path", b"abc"), AUTHORITY],
    ),
    (
        "a path with a request in it",
        &[
            METHOD,
            SCHEME,
            (b":path", b"/ HTTP/1.1\r\nhost: evil\r\n\r\n"),
            AUTHORITY,
        ],
    ),
    (
        "a path with a space",
        &[METHOD, SCHEME, (b":path", b"/a b"), AUTHORITY],
    ),
    (
        "a method with a space",
        &[(b":method", b"GET /x"), SCHEME, PATH, AUTHORITY],
    ),
    (
        "a pseudo-field after a field",
        &[METHOD, SCHEME, PATH, (b"x-a", b"1"), AUTHORITY],
    ),
    (
        "an unknown pseudo-field",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":evil", b"1")],
    ),
    (
        "a status in a request",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":status", b"200")],
    ),
    (
        "a host against the authority",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"host", b"other.example")],
    ),
    (
        "an authority with userinfo",
        &[METHOD, SCHEME, PATH, (b":authority", b"me@test.example")],
    ),
    (
        "an authority with a path",
        &[METHOD, SCHEME, PATH, (b":authority", b"test.example/x")],
    ),
    (
        "two lengths",
        &[
            METHOD,
            SCHEME,
            PATH,
            AUTHORITY,
            (b"content-length", b"0"),
            (b"content-length", b"3"),
        ],
    ),
    (
        "a signed length",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"content-length", b"+0")],
    ),
    (
        "a length and no content",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"content-length", b"3")],
    ),
    (
        "plain CONNECT",
        &[(b":method", b"CONNECT"), (b":authority", b"inside.example:22")],
    ),
    (
        "a protocol without CONNECT",
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":protocol", b"websocket")],
    ),
];

#[tokio::test]
async fn what_http_2_must_not_carry_never_reaches_an_http_1_upstream() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut wrong = Vec::new();
    for (name, fields) in REFUSED {
        let mut client = Frames::connect(proxy.web()).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
        client.try_send(&head).await.expect("the proxy reads");
        match client.outcome(1).await {
            None | Some(400..=499 | 501) => {}
            answer => wrong.push(format!("{name}: {answer:?}")),
        }
        if upstream.requests() > 0 {
            wrong.push(format!("{name}: was forwarded: {:?}", upstream.last()));
            break;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The writer itself is sound: the plain head goes through.
    let mut client = Frames::connect(proxy.web()).await;
    let head = block(&[METHOD, SCHEME, PATH, AUTHORITY]);
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head);
    client.try_send(&head).await.expect("the proxy reads");
    assert_eq!(client.outcome(1).await, Some(200));
}

#[tokio::test]
async fn content_that_is_not_as_long_as_it_said_is_no_request() {
    for (name, sent) in [("too short", &b"ab"[..]), ("too long", b"abcdef")] {
        let upstream = Upstream::answers(200, "ok");
        let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
        let mut client = Frames::connect(proxy.web()).await;
        let post: Field = (b":method", b"POST");
        let head = block(&[post, SCHEME, PATH, AUTHORITY, (b"content-length", b"4")]);
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &head);
        bytes.extend(frame(DATA, END_STREAM, 1, sent));
        client.try_send(&bytes).await.expect("the proxy reads");
        let outcome = client.outcome(1).await;
        assert!(matches!(outcome, None | Some(400)), "{name}: {outcome:?}");
        // A whole request on the same endpoint afterwards: nothing of the other is in it.
        assert_eq!(get(proxy.web(), "/clean").await.status, 200);
        assert_eq!(upstream.only().target, "/clean", "{name}");
    }
}

/// Floods a connection until the proxy ends it or a bound is reached; fails when memory grows by 20 MiB meanwhile, or
/// when somebody else is not served. Whether the proxy has ended it.
async fn flood(proxy: &Proxy, client: &mut Frames, unit: &[u8], times: usize) -> bool {
    let before = proxy.memory();
    let block = unit.repeat(64);
    let mut ended = false;
    for _ in 0..times / 64 {
        if client.try_send(&block).await.is_err() {
            ended = true;
            break;
        }
    }
    assert_eq!(get(proxy.web(), "/").await.status, 200, "somebody else is served");
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 20 << 20, "grew by {grown} bytes");
    ended
}

#[tokio::test]
async fn floods_of_frames_that_ask_for_nothing_end_the_connection() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    for (name, unit) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("an unknown kind", frame(0xbe, 0, 0, b"x")),
    ] {
        let mut client = Frames::connect(proxy.web()).await;
        // Nothing is read meanwhile, so acknowledgements pile up somewhere, and it must not be here.
        let ended = flood(&proxy, &mut client, &unit, 200_000).await;
        assert!(ended || client.first(GOAWAY).await.is_some(), "{name}: went on");
    }
    assert_eq!(get(proxy.web(), "/").await.status, 200);
}

#[tokio::test]
async fn a_head_without_end_over_http_2_is_bounded() {
    // CVE-2024-27316 and its kin: CONTINUATION after CONTINUATION, with content and without.
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let long: Vec<u8> = block(&[(b"x-bomb", &[b'a'; 1000])]);
    for (name, part) in [("with content", long.as_slice()), ("empty", b"")] {
        let mut client = Frames::connect(proxy.web()).await;
        let head = block(&[METHOD, SCHEME, PATH, AUTHORITY]);
        client
            .try_send(&frame(HEADERS, END_STREAM, 1, &head))
            .await
            .expect("the proxy reads");
        let ended = flood(&proxy, &mut client, &frame(CONTINUATION, 0, 1, part), 100_000).await;
        assert!(ended || client.outcome(1).await != Some(200), "{name}: went on");
    }
    assert!(
        upstream
            .received()
            .iter()
            .all(|received| !received.fields.has("x-bomb"))
    );
}

#[tokio::test]
async fn a_head_that_unpacks_to_much_is_refused() {
    // One long field in the table, named a thousand times by one byte each.
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let before = proxy.memory();
    let mut client = Frames::connect(proxy.web()).await;
    let mut bomb = block(&[METHOD, SCHEME, PATH, AUTHORITY]);
    // The same literal, but remembered.
    let mut remembered = block(&[(b"x-bomb", &[b'a'; 3900])]);
    remembered[0] = 0x40;
    bomb.extend(remembered);
    bomb.extend([0x80 | 62; 4000]);
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb);
    client.try_send(&head).await.expect("the proxy reads");
    let outcome = client.outcome(1).await;
    assert!(matches!(outcome, None | Some(431)), "{outcome:?}");
    assert!(proxy.memory().saturating_sub(before) < 20 << 20);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn trailers_and_chunk_lines_without_end_are_refused() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    for (name, unit) in [
        ("trailers", "x-bomb: aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        ("a chunk line", "aaaaaaaaaaaaaaaa"),
    ] {
        let mut client = Client::connect(proxy.web()).await;
        let start = if name == "trailers" { "0\r\n" } else { "1;a=" };
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n{start}"
            ))
            .await;
        let before = proxy.memory();
        let block = unit.repeat(1000);
        for _ in 0..1000 {
            if client.try_send(&block).await.is_err() {
                break;
            }
        }
        let rest = crate::support::http1::latin1(&client.until_closed().await);
        assert!(
            rest.is_empty() || rest.starts_with("HTTP/1.1 4"),
            "{name}: {rest:?}"
        );
        assert!(proxy.memory().saturating_sub(before) < 20 << 20, "{name}");
    }
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stops_no_other() {
    // Upstream connections are shared as well: on both sides a stream stands still beside others that move.
    const LENGTH: usize = 16 << 20;
    let large = |_: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| async move {
        let mut send = respond.send_response(Response::new(()), false).expect("a stream");
        // Fails for those who never read.
        drop(write(&mut send, Bytes::from(vec![b'x'; LENGTH]), true).await);
    };
    let upstream = H2Upstream::each(large);
    let one_worker = "runtime: { worker_threads: 1, drain: { min: 1ms, max: 1s } }\n";
    let config = with("", "    protocol: http2\n", &[upstream.address()]) + one_worker;
    let proxy = proxy(&config).await;
    let mut client = H2::connect(proxy.web()).await;
    let ask = || Request::get(uri("/")).body(()).expect("a request");
    let before = proxy.memory();
    let mut still = Vec::new();
    for _ in 0..3 {
        let (answer, _) = client.start(ask(), true).await;
        still.push(head(answer).await.expect("a head").1);
    }
    let (answer, _) = client.start(ask(), true).await;
    let answer = collect(answer).await.expect("a whole answer");
    assert_eq!(answer.body.len(), LENGTH);
    // The same over another connection of the other protocol.
    let mut other = Client::connect(proxy.web()).await;
    assert_eq!(other.get("/").await.body.len(), LENGTH);
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "grew by {grown} bytes");
    // And they go on where they stopped.
    for response in still {
        assert_eq!(read(response.into_body()).await.expect("a body").0.len(), LENGTH);
    }
}

#[tokio::test]
async fn an_upload_that_stands_still_stops_no_other() {
    let upstream = H2Upstream::each(|request, respond| async move {
        if request.uri().path() == "/still" {
            let _held = (request, respond);
            std::future::pending::<()>().await;
        } else {
            crate::support::h2::echo(request, respond).await;
        }
    });
    let one_worker = "runtime: { worker_threads: 1, drain: { min: 1ms, max: 1s } }\n";
    let config = with("", "    protocol: http2\n", &[upstream.address()]) + one_worker;
    let proxy = proxy(&config).await;
    let mut client = H2::connect(proxy.web()).await;
    let mut still = Vec::new();
    for _ in 0..3 {
        let request = Request::post(uri("/still")).body(()).expect("a request");
        let (answer, mut send) = client.start(request, false).await;
        // As much as the windows of both sides let through, and then no more.
        let upload = tokio::spawn(async move {
            drop(write(&mut send, Bytes::from(vec![b'x'; 64 << 20]), true).await);
        });
        still.push((answer, upload));
    }
    eventually("they arrive", || upstream.requests() == 3).await;
    for _ in 0..5 {
        let request = Request::post(uri("/moves"))
            .body(&[b'y'; 200_000][..])
            .expect("a request");
        let answer = client.ask(request).await;
        assert_eq!(answer.json()["body"].as_str().map(str::len), Some(200_000));
    }
    for (_, upload) in still {
        upload.abort();
    }
}

#[tokio::test]
async fn an_http_2_upstream_that_says_goodbye_loses_no_request() {
    // Every connection ends in good order after some streams, as servers do that limit the age of connections.
    let served = Arc::<AtomicUsize>::default();
    let upstream = goaway_after(5, &served);
    let proxy = proxy(&with("", "    protocol: http2\n", &[upstream])).await;
    let mut client = H2::connect(proxy.web()).await;
    for number in 0..10 {
        let mut answers = Vec::new();
        for _ in 0..10 {
            let request = Request::post(uri("/")).body(()).expect("a request");
            answers.push(client.start(request, true).await.0);
        }
        for answer in answers {
            let answer = collect(answer).await.expect("an answer");
            assert_eq!(answer.status, 200, "round {number}: {answer:?}");
        }
    }
    // No write was sent twice either.
    assert_eq!(served.load(Ordering::SeqCst), 100);
}

/// A server that asks for the end of each connection after so many streams, and finishes those.
fn goaway_after(streams: usize, served: &Arc<AtomicUsize>) -> std::net::SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.set_nonblocking(true).expect("a socket");
    let address = socket.local_addr().expect("bound");
    let served = Arc::clone(served);
    crate::support::background().spawn(async move {
        let listener = tokio::net::TcpListener::from_std(socket).expect("a socket");
        while let Ok((stream, _)) = listener.accept().await {
            let served = Arc::clone(&served);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                let mut accepted = 0;
                while let Some(next) = connection.accept().await {
                    let (_, mut respond) = next?;
                    accepted += 1;
                    if accepted == streams {
                        connection.graceful_shutdown();
                    }
                    served.fetch_add(1, Ordering::SeqCst);
                    let mut send = respond.send_response(Response::new(()), false)?;
                    send.send_data(Bytes::from_static(b"ok"), true)?;
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    address
}

#[tokio::test]
async fn an_upstream_that_speaks_another_version_is_a_502() {
    let upstream = Upstream::each(|mut peer| async move {
        // What a server of HTTP/1.1 says to the preface of HTTP/2.
        drop(peer.reader.head().await);
        peer.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await
    });
    let config = with("    retry: off\n", "    protocol: http2\n", &[upstream.address()]);
    let proxy = proxy(&config).await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.keep_alive);
}

#[tokio::test]
async fn clients_that_stall_or_break_off_everywhere_leave_nothing_behind() {
    let upstream = Upstream::answers(200, "ok");
    let config = format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n    timeouts: {{ headers: 300ms, body_idle: 300ms, keep_alive: 300ms }}\n\
         routes:\n  - cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    let descriptors = proxy.descriptors();
    let beginnings: [&[u8]; 7] = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nhost: test.example\r\n",
        b"POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 10\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    let mut silent = Vec::new();
    for beginning in beginnings {
        // One that leaves, one that ends its half, and one that says no more.
        let mut leaves = Client::connect(proxy.web()).await;
        leaves.send(beginning).await;
        drop(leaves);
        for half in [true, false] {
            let mut client = Client::connect(proxy.web()).await;
            client.send(beginning).await;
            if half {
                client.finish().await;
            }
            silent.push(client);
        }
    }
    // Meanwhile others are served.
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    assert_eq!(client.answer().await.status, 200);
    drop(client);
    for mut client in silent {
        soon("the proxy to end it", client.until_closed()).await;
    }
    eventually("descriptors are given back", || {
        proxy.descriptors() <= descriptors
    })
    .await;
}
