//! Endpoints that fail: what is asked again, where, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::client::{Answer, Client, ask, get, request};
use crate::support::h2::H2Upstream;
use crate::support::load::Load;
use crate::support::proxy::{Proxy, proxy, to, with};
use crate::support::upstream::{Refusing, Upstream};
use crate::support::{eventually_async, soon};

/// Every endpoint is sure to get its turn.
const IN_TURN: &str = "    load_balancing: round_robin\n    slow_start: off\n";

#[tokio::test]
async fn one_dead_endpoint_of_two_fails_no_request() {
    let (alive, dead) = (Upstream::answers(200, "ok"), Upstream::refuses());
    let proxy = proxy(&with("", IN_TURN, &[dead.address(), alive.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for method in ["GET", "POST"] {
        for _ in 0..100 {
            // A request that was never sent may be asked again, whatever its method.
            let answer = client.ask(method, "/", "", b"").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    assert_eq!(alive.requests(), 200);
    assert!(proxy.metrics().await.sum("bellwether_retries_total", &[]) >= 1.0);
}

#[tokio::test]
async fn two_dead_endpoints_of_three_fail_no_request() {
    let alive = Upstream::answers(200, "ok");
    let dead = [Upstream::refuses(), Upstream::refuses()];
    let proxy = proxy(&with(
        "",
        IN_TURN,
        &[dead[0].address(), alive.address(), dead[1].address()],
    ))
    .await;
    let mut client = Client::connect(proxy.web()).await;
    for method in ["GET", "POST"] {
        for _ in 0..100 {
            let answer = client.ask(method, "/", "", b"").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    assert_eq!(alive.requests(), 200);
}

#[tokio::test]
async fn no_living_endpoint_is_a_503_that_may_be_repeated() {
    let dead = [Upstream::refuses(), Upstream::refuses()];
    let proxy = proxy(&to(&[dead[0].address(), dead[1].address()])).await;
    let answer = ask(proxy.web(), "POST", "/", "", b"x").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        matches!(answer.rejected(), Some("connect_failed" | "no_endpoint")),
        "{answer:?}"
    );
    let line = proxy.logged(|line| line["status"] == 503).await;
    assert!(line["attempts"].as_u64().expect("attempts") >= 1, "{line}");
}

#[tokio::test]
async fn an_endpoint_that_dies_under_load_fails_no_get() {
    let (a, b) = (Upstream::answers(200, "ok"), Upstream::answers(200, "ok"));
    let proxy = proxy(&to(&[a.address(), b.address()])).await;
    let load = Load::get(proxy.web(), 4);
    load.more(200).await;
    b.stop();
    load.more(500).await;
    load.stop_without_failure().await;
    assert!(a.requests() > 0 && b.requests() > 0);
}

#[tokio::test]
async fn a_reset_is_asked_again_where_that_is_safe() {
    let bad = Upstream::resets();
    let good = Upstream::answers(200, "ok");
    let cluster = "    load_balancing: round_robin\n    outlier_detection: off\n    slow_start: off\n";
    let proxy = proxy(&with("", cluster, &[bad.address(), good.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert!(bad.requests() > 0, "the bad one was never asked");
    assert_eq!(good.requests(), 6);
}

#[tokio::test]
async fn a_write_that_may_have_been_executed_is_not_sent_twice() {
    let bad = Upstream::resets();
    let proxy = proxy(&with("", "    outlier_detection: off\n", &[bad.address()])).await;
    let answer = ask(proxy.web(), "POST", "/", "", b"once").await;
    answer.is_refusal(502, "upstream_reset");
    assert_eq!(bad.requests(), 1);

    // A key makes it repeatable.
    let answer = ask(proxy.web(), "POST", "/", "idempotency-key: 7\r\n", b"twice").await;
    assert_eq!(answer.status, 502);
    assert_eq!(bad.requests(), 3);
    assert_eq!(bad.last().body, b"twice");
}

#[tokio::test]
async fn a_bad_gateway_is_asked_again_and_the_last_answer_counts() {
    let first = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&first);
    let upstream = Upstream::each(move |mut peer| {
        let counting = Arc::clone(&counting);
        async move {
            while let Some(request) = peer.request().await? {
                let (status, body) = match (request.target.as_str(), counting.fetch_add(1, Ordering::SeqCst))
                {
                    ("/always", _) => (503, "still down"),
                    (_, 0) => (502, "down"),
                    _ => (200, "up"),
                };
                peer.answer(&request, status, "", body.as_bytes()).await?;
            }
            Ok(())
        }
    });
    let proxy = proxy(&with("", "    outlier_detection: off\n", &[upstream.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "up");
    assert_eq!(upstream.requests(), 2);
    let answer = get(proxy.web(), "/always").await;
    // Its own words, not ours.
    assert_eq!((answer.status, answer.text().as_str()), (503, "still down"));
    assert_eq!(upstream.requests(), 4);
}

#[tokio::test]
async fn an_answer_is_kept_until_another_endpoint_is_found() {
    let (busy, failing) = (Upstream::stalls(), Upstream::answers(503, "its own words"));
    let cluster = "    load_balancing: round_robin\n    slow_start: off\n    outlier_detection: off\n    limits: { max_in_flight_per_endpoint: 1 }\n";
    let proxy = proxy(&with("", cluster, &[busy.address(), failing.address()])).await;
    let mut waiting = Client::connect(proxy.web()).await;
    // Whoever is asked first, in the end this one waits for the busy endpoint.
    waiting.send(request("GET", "/", "", b"")).await;
    crate::support::eventually("the busy one has it", || busy.requests() == 1).await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.rejected()),
        (503, "its own words", None)
    );
}

#[tokio::test]
async fn a_write_that_failed_says_what_became_of_it() {
    let outcome = |answer: &Answer| answer.fields.get("x-bellwether-outcome").map(str::to_owned);
    let (gone, bad, slow) = (Upstream::refuses(), Upstream::resets(), Upstream::stalls());
    let refusing = H2Upstream::each(|_, mut respond| async move {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    });
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n\
         \x20 - match: {{ path: /gone }}\n    cluster: gone\n\
         \x20 - match: {{ path: /bad }}\n    cluster: bad\n\
         \x20 - match: {{ path: /slow }}\n    cluster: slow\n    timeout: 200ms\n\
         \x20 - match: {{ path: /refusing }}\n    cluster: refusing\n\
         clusters:\n  gone:\n    endpoints: [{}]\n  bad:\n    endpoints: [{}]\n  slow:\n    endpoints: [{}]\n  \
         refusing:\n    protocol: http2\n    endpoints: [{}]\n",
        gone.address(),
        bad.address(),
        slow.address(),
        refusing.address()
    );
    let proxy = proxy(&config).await;
    for (path, status, expected) in [
        ("/gone", 503, "not-executed"),
        ("/nowhere", 404, "not-executed"),
        ("/bad", 502, "unknown"),
        ("/slow", 504, "unknown"),
        ("/refusing", 502, "refused"),
    ] {
        let answer = ask(proxy.web(), "POST", path, "", b"once").await;
        assert_eq!(
            (path, answer.status, outcome(&answer).as_deref()),
            (path, status, Some(expected))
        );
        // A read may be sent again anyway.
        assert_eq!(outcome(&get(proxy.web(), path).await), None, "{path}");
    }
    // One endpoint that may have acted and one that cannot be reached: the less certain one speaks.
    let both = proxy_of_both(&bad, &gone).await;
    for _ in 0..2 {
        let answer = ask(both.web(), "PUT", "/", "", b"once").await;
        assert_eq!(
            (answer.status, outcome(&answer).as_deref()),
            (502, Some("unknown")),
            "{answer:?}"
        );
    }
    let call = "content-type: application/grpc\r\nte: trailers\r\n";
    let answer = ask(proxy.web(), "POST", "/gone", call, b"").await;
    assert_eq!(
        (answer.status, outcome(&answer).as_deref()),
        (200, Some("not-executed"))
    );
}

async fn proxy_of_both(bad: &Upstream, gone: &Refusing) -> Proxy {
    let cluster = "    load_balancing: round_robin\n    slow_start: off\n    outlier_detection: off\n";
    proxy(&with("", cluster, &[bad.address(), gone.address()])).await
}

#[tokio::test]
async fn content_that_comes_byte_by_byte_is_replayed() {
    let first = AtomicUsize::new(0);
    let upstream = Upstream::each(move |mut peer| {
        let resets = first.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            while let Some(request) = peer.request().await? {
                if resets {
                    peer.reset();
                    return Ok(());
                }
                peer.answer(&request, 200, "", &request.body).await?;
            }
            Ok(())
        }
    });
    let proxy = proxy(&with("", "    outlier_detection: off\n", &[upstream.address()])).await;
    let body: Vec<u8> = (b'a'..=b'z').cycle().take(20_000).collect();
    let mut client = Client::connect(proxy.web()).await;
    let mut bytes = b"PUT / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for byte in &body {
        bytes.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    client.send(bytes).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body == body, "{} bytes", answer.body.len());
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn scenario_27_a_body_is_replayed_up_to_its_bound() {
    let failing_once = || {
        let asked = AtomicUsize::new(0);
        Upstream::each(move |mut peer| {
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                while let Some(request) = peer.request().await? {
                    if first {
                        peer.reset();
                        return Ok(());
                    }
                    let body = request.body.len().to_string();
                    peer.answer(&request, 200, "", body.as_bytes()).await?;
                }
                Ok(())
            }
        })
    };
    let small = failing_once();
    let proxy_small = proxy(&to(&[small.address()])).await;
    let answer = ask(proxy_small.web(), "PUT", "/", "", &[b'x'; 30_000]).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "30000"));
    let large = failing_once();
    let proxy_large = proxy(&to(&[large.address()])).await;
    let answer = ask(proxy_large.web(), "PUT", "/", "", &[b'x'; 200_000]).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(large.requests(), 1);
    let vetoed = proxy_large
        .metrics()
        .await
        .sum("bellwether_retries_vetoed_total", &[("reason", "body_overflow")]);
    assert_eq!(vetoed, 1.0);
}

/// Nothing of a body is read before there is a connection to send it on, so its size is no reason.
#[tokio::test]
async fn scenario_27_a_refused_connection_is_tried_elsewhere_whatever_the_size() {
    const SIZE: usize = 10 << 20;
    let (alive, dead) = (
        Upstream::each(|mut peer| async move {
            while let Some(request) = peer.request().await? {
                let length = request.body.len().to_string();
                peer.answer(&request, 200, "", length.as_bytes()).await?;
            }
            Ok(())
        }),
        Upstream::refuses(),
    );
    let proxy = proxy(&with("", IN_TURN, &[dead.address(), alive.address()])).await;
    let body = vec![b'x'; SIZE];
    for method in ["POST", "PUT"] {
        // One of the two begins at the dead one.
        for _ in 0..2 {
            let answer = ask(proxy.web(), method, "/", "", &body).await;
            assert_eq!((answer.status, answer.text()), (200, SIZE.to_string()));
        }
    }
    assert_eq!(alive.requests(), 4, "each arrived once, and whole");
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("bellwether_retries_total", &[]) >= 1.0);
}

#[tokio::test]
async fn scenario_29_a_retry_goes_to_another_endpoint_while_there_is_one() {
    let all = [
        Upstream::answers(503, ""),
        Upstream::answers(503, ""),
        Upstream::answers(503, ""),
    ];
    let addresses: Vec<_> = all.iter().map(Upstream::address).collect();
    let route = "    circuit_breaker: off\n    retry: { num_retries: 2, backoff: { base: 1ms, max: 1ms } }\n";
    let cluster = "    outlier_detection: off\n    retry_budget: off\n";
    for policy in ["peak_ewma", "random", "round_robin", "least_request"] {
        let before: Vec<_> = all.iter().map(Upstream::requests).collect();
        let cluster = format!("{cluster}    load_balancing: {policy}\n");
        let proxy = proxy(&with(route, &cluster, &addresses)).await;
        let mut client = Client::connect(proxy.web()).await;
        for _ in 0..30 {
            assert_eq!(client.get("/").await.status, 503);
        }
        // Three tries of each request and three endpoints: nobody was asked twice.
        for (upstream, before) in all.iter().zip(before) {
            assert_eq!(upstream.requests() - before, 30, "{policy}");
        }
    }
}

#[tokio::test]
async fn connections_that_the_endpoint_closes_while_idle_fail_no_request() {
    // Closes every connection a moment after each answer, so that the next request often meets one that just ended.
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            peer.answer(&request, 200, "", b"ok").await?;
            if request.target == "/load" {
                tokio::time::sleep(std::time::Duration::from_micros(300)).await;
                return Ok(());
            }
        }
        Ok(())
    });
    let proxy = proxy(&with("", "    outlier_detection: off\n", &[upstream.address()])).await;
    let load = Load::get(proxy.web(), 4);
    load.more(400).await;
    load.stop_without_failure().await;

    // A POST that was on its way when the connection ended may have been executed, so it fails and is not sent again:
    // no more requests have arrived than the client has sent.
    let before = upstream.requests();
    let load = Load::post(proxy.web(), 4);
    load.more(200).await;
    let tally = load.stop().await;
    assert!(
        upstream.requests() - before <= tally.succeeded + tally.failures.len(),
        "{tally:?}"
    );
    assert!(
        tally
            .failures
            .iter()
            .all(|failure| failure.contains("upstream_closed")),
        "{tally:?}"
    );
}

#[tokio::test]
async fn a_connection_that_ends_before_the_request_is_replaced() {
    // One answer per connection without saying so: the classic stale connection.
    let upstream = Upstream::each(|mut peer| async move {
        if let Some(request) = peer.request().await? {
            peer.answer(&request, 200, "", b"ok").await?;
        }
        Ok(())
    });
    let proxy = proxy(&with("", "    outlier_detection: off\n", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for method in ["GET", "POST", "GET", "POST"] {
        let answer = client.ask(method, "/", "", b"").await;
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
        // The end of the connection reaches the proxy in its own time.
        crate::support::eventually("the connection ends", || upstream.open() == 0).await;
    }
    assert_eq!(upstream.requests(), 4);
}

#[tokio::test]
async fn a_connect_timeout_is_a_504_and_the_other_endpoint_is_asked() {
    // A queue that is full swallows new connections.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket
        .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("a free port");
    socket.listen(0).expect("listens");
    let full = socket
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("an address");
    let mut fillers = Vec::new();
    for _ in 0..4 {
        let stream =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        stream.set_nonblocking(true).expect("a socket");
        drop(stream.connect(&full.into()));
        fillers.push(stream);
    }
    let cluster = "    connect_timeout: 200ms\n    outlier_detection: off\n";
    let alone = proxy(&with("    retry: off\n", cluster, &[full])).await;
    get(alone.web(), "/").await.is_refusal(504, "connect_timeout");
    let good = Upstream::answers(200, "ok");
    let both = proxy(&with("", cluster, &[full, good.address()])).await;
    let mut client = Client::connect(both.web()).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn an_active_check_takes_an_endpoint_out_and_back_in() {
    let sick = Arc::new(AtomicUsize::new(0));
    let state = Arc::clone(&sick);
    let a = Upstream::each(move |mut peer| {
        let state = Arc::clone(&state);
        async move {
            while let Some(request) = peer.request().await? {
                let status = match (request.target.as_str(), state.load(Ordering::SeqCst)) {
                    ("/healthz", 1) => 500,
                    _ => 200,
                };
                peer.answer(&request, status, "", b"a").await?;
            }
            Ok(())
        }
    });
    let b = Upstream::named("b");
    let cluster = "    health_check: { path: /healthz, interval: 50ms, timeout: 1s, healthy_threshold: 1, unhealthy_threshold: 1 }\n    \
                   load_balancing: round_robin\n    slow_start: off\n";
    let proxy = proxy(&with("", cluster, &[a.address(), b.address()])).await;
    let both_answer = || async {
        let mut client = Client::connect(proxy.web()).await;
        let (one, two) = (client.get("/").await, client.get("/").await);
        assert_eq!((one.status, two.status), (200, 200));
        one.text() != two.text()
    };
    crate::support::eventually_async("both are asked", both_answer).await;
    sick.store(1, Ordering::SeqCst);
    crate::support::eventually_async("the sick one is left out", || async {
        let mut client = Client::connect(proxy.web()).await;
        for _ in 0..4 {
            if client.get("/").await.text() != "b" {
                return false;
            }
        }
        true
    })
    .await;
    sick.store(0, Ordering::SeqCst);
    crate::support::eventually_async("it is asked again", both_answer).await;
}

#[tokio::test]
async fn a_connection_that_is_given_back_serves_who_waits_for_a_new_one() {
    // An endpoint that accepts one connection and leaves all others in a queue that is full: their SYN is dropped.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("a free port");
    let listener = socket.listen(0).expect("a queue of one");
    let address = listener.local_addr().expect("bound");
    let mut config = with("", "    connect_timeout: 20s\n", &[address]);
    config.push_str("runtime: { worker_threads: 1 }\n");
    let proxy = proxy(&config).await;
    let mut first = Client::connect(proxy.web()).await;
    first.send("GET /first HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (mut served, _) = soon("a connection", listener.accept()).await.expect("accepted");
    let mut head = [0; 4096];
    let read = soon("a request", served.read(&mut head)).await.expect("read");
    assert!(head[..read].starts_with(b"GET /first"));
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        filling.push(stream);
    }
    let mut second = Client::connect(proxy.web()).await;
    second.send("GET /second HTTP/1.1\r\nhost: x\r\n\r\n").await;
    eventually_async("the second waits for its connection", async || {
        let connecting = [("cluster", "app"), ("state", "connecting")];
        proxy
            .metrics()
            .await
            .sum("bellwether_upstream_connections", &connecting)
            >= 1.0
    })
    .await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    served.write_all(answer).await.expect("answered");
    assert_eq!(first.answer().await.status, 200);
    let read = soon("the second request", served.read(&mut head))
        .await
        .expect("read");
    assert!(head[..read].starts_with(b"GET /second"));
    served.write_all(answer).await.expect("answered");
    assert_eq!(second.answer().await.status, 200);
}
