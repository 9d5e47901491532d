//! Limits and timeouts of a listener and a route: exact statuses, exact reasons, and what happens to the connection.

use crate::support::client::{Client, ask, get, request};
use crate::support::h2::H2;
use crate::support::proxy::{proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

/// A listener with these further lines, indented by four spaces.
fn listening(lines: &str, upstream: &Upstream) -> String {
    format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n{lines}routes:\n  - name: all\n    cluster: app\nclusters:\n  app:\n    \
         endpoints: [{}]\n",
        upstream.address()
    )
}

#[tokio::test]
async fn a_head_above_the_limit_is_431_and_the_end() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    limits: { max_header_size: 4KiB }\n", &upstream)).await;
    let mut client = Client::connect(proxy.web()).await;
    let fits = format!("x-fits: {}\r\n", "a".repeat(3000));
    assert_eq!(client.ask("GET", "/", &fits, b"").await.status, 200);
    let large = format!("x-large: {}\r\n", "a".repeat(5000));
    let answer = client.ask("GET", "/", &large, b"").await;
    answer.is_refusal(431, "headers_too_large");
    assert!(!answer.keep_alive);
    client.is_closed().await;
    assert_eq!(upstream.requests(), 1);
    let counted = proxy.metrics().await.sum(
        "bellwether_request_rejections_total",
        &[("reason", "headers_too_large")],
    );
    assert!(counted >= 1.0, "{counted}");
}

#[tokio::test]
async fn too_many_fields_are_431() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    limits: { max_headers: 20 }\n", &upstream)).await;
    let fields: String = (0..30).map(|number| format!("x-{number}: 1\r\n")).collect();
    ask(proxy.web(), "GET", "/", &fields, b"")
        .await
        .is_refusal(431, "headers_too_large");
    let mut request = http::Request::get(crate::support::h2::uri("/"));
    for number in 0..30 {
        request = request.header(format!("x-{number}"), "1");
    }
    let answer = H2::connect(proxy.web())
        .await
        .ask(request.body(&b""[..]).expect("a request"))
        .await;
    answer.is_refusal(431, "headers_too_large");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_target_that_is_too_long_is_414() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let target = format!("/{}", "a".repeat(20 * 1024));
    get(proxy.web(), &target).await.is_refusal(414, "uri_too_long");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_body_that_announces_too_much_is_413_at_once() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    limits: { max_body_size: 1KiB }\n", &upstream)).await;
    assert_eq!(ask(proxy.web(), "POST", "/", "", &[b'x'; 1024]).await.status, 200);
    let mut client = Client::connect(proxy.web()).await;
    // Not one byte of it is sent.
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 10000000\r\n\r\n")
        .await;
    let answer = client.answer().await;
    answer.is_refusal(413, "body_too_large");
    assert!(!answer.keep_alive);
    let request = http::Request::post(crate::support::h2::uri("/"))
        .body(&[b'x'; 2000][..])
        .expect("a request");
    H2::connect(proxy.web())
        .await
        .ask(request)
        .await
        .is_refusal(413, "body_too_large");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_413() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    limits: { max_body_size: 1KiB }\n", &upstream)).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let chunk = format!("200\r\n{}\r\n", "x".repeat(512));
    for _ in 0..3 {
        // The answer may be on its way already.
        drop(client.try_send(&chunk).await);
    }
    let answer = client.answer().await;
    answer.is_refusal(413, "body_too_large");
    assert!(!answer.keep_alive);
    assert_eq!(upstream.requests(), 0, "half a request was taken for a whole one");
}

#[tokio::test]
async fn an_address_may_open_so_many_connections_and_no_more() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening(
        "    limits: { max_connections_per_ip: 5 }\n",
        &upstream,
    ))
    .await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(proxy.web()).await;
        assert_eq!(client.get("/").await.status, 200);
        clients.push(client);
    }
    let mut one_too_many = Client::connect(proxy.web()).await;
    let refused = one_too_many.try_ask("GET", "/", "", b"").await;
    assert!(
        refused.as_ref().map_or(true, |answer| answer.status != 200),
        "{refused:?}"
    );
    for client in &mut clients {
        assert_eq!(client.get("/").await.status, 200);
    }
    let counted = proxy
        .metrics()
        .await
        .sum("bellwether_downstream_connections_rejected_total", &[]);
    assert!(counted >= 1.0, "{counted}");
    // A place that is given back is taken again.
    clients.pop();
    crate::support::eventually_async("a place is free", || async {
        let mut client = Client::connect(proxy.web()).await;
        matches!(client.try_ask("GET", "/", "", b"").await, Ok(answer) if answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn slow_headers_end_in_408() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    timeouts: { headers: 300ms }\n", &upstream)).await;
    let mut slow = Client::connect(proxy.web()).await;
    slow.send("GET / HTTP/1.1\r\nhost: test.example\r\n").await;
    // One byte after the other does not help.
    let drip = async {
        loop {
            if slow.try_send("x").await.is_err() {
                return;
            }
            tokio::time::sleep(crate::support::proxy::BEAT).await;
        }
    };
    // Meanwhile others are served.
    let (_, status) = tokio::join!(
        tokio::time::timeout(std::time::Duration::from_millis(900), drip),
        async { get(proxy.web(), "/").await.status }
    );
    assert_eq!(status, 200);
    let rest = crate::support::http1::latin1(&slow.until_closed().await);
    assert!(rest.starts_with("HTTP/1.1 408") || rest.is_empty(), "{rest:?}");
    assert_eq!(upstream.requests(), 1);
    proxy.logged(|line| line["reason"] == "client_timeout").await;
}

#[tokio::test]
async fn a_body_that_stalls_ends_the_request() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    timeouts: { body_idle: 300ms }\n", &upstream)).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 100\r\n\r\nhalf")
        .await;
    let answer = client.answer().await;
    answer.is_refusal(408, "client_timeout");
    assert!(!answer.keep_alive);
    eventually("the upstream's connection ends", || upstream.open() == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening("    timeouts: { keep_alive: 200ms }\n", &upstream)).await;
    let mut silent = Client::connect(proxy.web()).await;
    let mut kept = Client::connect(proxy.web()).await;
    assert_eq!(kept.get("/").await.status, 200);
    kept.is_closed().await;
    silent.is_closed().await;
    let client = H2::connect(proxy.web()).await;
    soon("GOAWAY", client.ended()).await.expect("a clean end");
}

#[tokio::test]
async fn a_connection_serves_so_many_requests() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening(
        "    limits: { max_requests_per_connection: 3 }\n",
        &upstream,
    ))
    .await;
    let mut client = Client::connect(proxy.web()).await;
    for left in [2, 1, 0] {
        assert_eq!(client.get("/").await.keep_alive, left > 0);
    }
    client.is_closed().await;
    let mut client = H2::connect(proxy.web()).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
    soon("GOAWAY", client.ended()).await.expect("a clean end");
}

#[tokio::test]
async fn an_old_connection_ends_in_good_order() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&listening(
        "    timeouts: { max_connection_age: 300ms }\n",
        &upstream,
    ))
    .await;
    let mut client = Client::connect(proxy.web()).await;
    soon("the last answer", async {
        // Each answer is whole, and one of them says that it is the last.
        while client.get("/").await.keep_alive {}
    })
    .await;
    client.is_closed().await;
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_in_time_is_504() {
    let upstream = Upstream::stalls();
    let proxy = proxy(&with(
        "    timeout: 300ms\n    retry: off\n",
        "",
        &[upstream.address()],
    ))
    .await;
    let answer = get(proxy.web(), "/").await;
    answer.is_refusal(504, "upstream_timeout");
    assert!(answer.keep_alive);
    eventually("the attempt is given up", || upstream.open() == 0).await;
}

#[tokio::test]
async fn an_answer_that_stalls_in_its_body_is_cut() {
    let upstream = Upstream::stalls_after_headers();
    let proxy = proxy(&with("    idle_timeout: 300ms\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    let (status, _) = client.answer_head().await;
    assert_eq!(status, 200);
    client.until_closed().await;
    eventually("the upstream's connection ends", || upstream.open() == 0).await;
    proxy.logged(|line| line["reason"] == "stream_idle").await;
}

#[tokio::test]
async fn an_exchange_lasts_so_long_and_no_longer() {
    // Never idle, never done.
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await?;
            loop {
                peer.send(b"1\r\nx\r\n").await?;
                tokio::time::sleep(crate::support::proxy::BEAT).await;
            }
        }
        Ok(())
    });
    let proxy = proxy(&with("    max_duration: 400ms\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    client.answer_head().await;
    client.until_closed().await;
    eventually("the upstream's connection ends", || upstream.open() == 0).await;
    proxy.logged(|line| line["reason"] == "max_duration").await;
}

#[tokio::test]
async fn refusals_come_in_the_form_that_was_asked_for() {
    let upstream = Upstream::answers(200, "ok");
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\n  silent: {{ address: 127.0.0.1:0, error_detail: minimal }}\nroutes:\n  - match: {{ path: /yes }}\n    \
         cluster: app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    let text = get(proxy.web(), "/no").await;
    text.is_refusal(404, "no_route");
    let id = text.fields.get("x-request-id").expect("an id").to_owned();
    assert_eq!(text.text().lines().count(), 1);
    assert!(
        text.text().starts_with(&format!("404 no_route (request {id})")),
        "{}",
        text.text()
    );
    let json = ask(proxy.web(), "GET", "/no", "accept: application/json\r\n", b"").await;
    assert_eq!(json.fields.get("content-type"), Some("application/problem+json"));
    assert_eq!(
        (&json.json()["code"], &json.json()["status"]),
        (&"no_route".into(), &404.into())
    );
    let minimal = get(proxy.listener("silent"), "/no").await;
    assert!(!minimal.text().contains("oute matches"), "{}", minimal.text());
}

#[tokio::test]
async fn streams_that_are_opened_to_be_reset_end_the_connection() {
    // CVE-2023-44487: at most about a hundred reach the upstream.
    let upstream = Upstream::stalls();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    for _ in 0..2000 {
        let request = http::Request::get(crate::support::h2::uri("/"))
            .body(())
            .expect("a request");
        let Some((answer, mut send)) = client.try_start(request).await else {
            break;
        };
        send.send_reset(h2::Reason::CANCEL);
        drop(answer);
    }
    // Not our end: under load all of it may be on its way before the first answer comes back.
    client.thrown_out().await;
    assert!(
        upstream.requests() < 300,
        "{} were passed on",
        upstream.requests()
    );
    // Others are served as before.
    assert_eq!(get(proxy.admin(), "/livez").await.status, 200);
}
