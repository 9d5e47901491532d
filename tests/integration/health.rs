//! Whether an endpoint is used: everybody has an opinion, one is enough to take it out, and it can be seen who.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::client::{Client, ask, get};
use crate::support::pki::Authority;
use crate::support::proxy::{Metrics, Proxy, Start, proxy, with};
use crate::support::tls;
use crate::support::upstream::Upstream;
use crate::support::{background, eventually, eventually_async, soon};

const IN_TURN: &str = "    load_balancing: round_robin\n    slow_start: off\n";

/// What the API shows of the endpoint of cluster `app` with this address.
async fn endpoint(proxy: &Proxy, address: impl ToString) -> Value {
    let shown = proxy.admin_get("/api/v1/clusters/app/endpoints").await.json();
    let endpoints = shown["endpoints"].as_array().expect("endpoints").clone();
    let address = address.to_string();
    let found = endpoints.into_iter().find(|e| e["address"] == *address);
    found.expect("the endpoint")
}

/// What a source thinks of an endpoint, and why.
fn ground(endpoint: &Value, source: &str) -> Option<(String, String)> {
    let mut grounds = endpoint["grounds"].as_array().expect("grounds").iter();
    let ground = grounds.find(|ground| ground["source"] == source)?;
    let word = |key: &str| ground[key].as_str().expect("a word").to_owned();
    Some((word("opinion"), word("reason")))
}

fn said(opinion: &str, reason: &str) -> Option<(String, String)> {
    Some((opinion.to_owned(), reason.to_owned()))
}

/// The events about an endpoint, as from, to and reason.
async fn events(proxy: &Proxy, address: impl ToString) -> Vec<(String, String, String)> {
    let shown = proxy.admin_get("/api/v1/events?kind=health").await.json();
    let subject = format!("app/{}", address.to_string());
    let events = shown["events"].as_array().expect("events").iter();
    events
        .filter(|event| event["subject"] == *subject)
        .map(|event| {
            let word = |key: &str| event[key].as_str().expect("a word").to_owned();
            (word("from"), word("to"), word("reason"))
        })
        .collect()
}

fn event(from: &str, to: &str, reason: &str) -> (String, String, String) {
    (from.to_owned(), to.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn who_took_an_endpoint_out_is_shown_and_each_must_agree_before_it_returns() {
    let (good, bad) = (Upstream::named("good"), Upstream::refuses());
    let lines =
        format!("{IN_TURN}    health_check: {{ tcp: true, interval: 50ms, unhealthy_threshold: 1 }}\n");
    let proxy = proxy(&with("", &lines, &[good.address(), bad.address()])).await;
    eventually_async("its check fails", || async {
        endpoint(&proxy, bad.address()).await["state"] == "check_failed"
    })
    .await;
    let path = format!("/api/v1/clusters/app/endpoints/{}/override", bad.address());
    let order = r#"{"action": "drain", "reason": "disk swap"}"#;
    assert_eq!(proxy.admin_ask("PUT", &path, order).await.status, 200);
    let shown = endpoint(&proxy, bad.address()).await;
    assert_eq!(
        (&shown["state"], &shown["available"]),
        (&"draining".into(), &false.into())
    );
    assert_eq!(ground(&shown, "admin"), said("draining", "drained"));
    assert_eq!(ground(&shown, "check"), said("down", "check_refused"));
    assert_eq!(ground(&shown, "discovery"), said("up", "listed"));

    assert_eq!(proxy.admin_ask("DELETE", &path, "").await.status, 200);
    let shown = endpoint(&proxy, bad.address()).await;
    assert_eq!(
        (&shown["state"], &shown["available"]),
        (&"check_failed".into(), &false.into()),
        "the operator's word does not undo the check's"
    );
    let expected = [
        event("up", "down", "check_refused"),
        event("up", "draining", "drained"),
        event("draining", "up", "restored"),
    ];
    assert_eq!(events(&proxy, bad.address()).await, expected);
    let changed = "bellwether_health_transitions_total";
    let metrics = proxy.metrics().await;
    for (source, to) in [("check", "down"), ("admin", "draining"), ("admin", "up")] {
        let labels = [("cluster", "app"), ("source", source), ("to", to)];
        assert_eq!(metrics.sum(changed, &labels), 1.0, "{source} {to}");
    }
    eventually_async("it is counted where it belongs", || async {
        let metrics = proxy.metrics().await;
        let count = |state| metrics.sum("bellwether_endpoints", &[("state", state)]);
        (count("check_failed"), count("available")) == (1.0, 1.0)
    })
    .await;
    let question = format!(r#"{{"url": "http://{}/"}}"#, proxy.web());
    let explained = proxy.admin_post("/api/v1/explain", &question).await.json();
    let mut candidates = explained["candidates"].as_array().expect("candidates").iter();
    let address = bad.address().to_string();
    let candidate = candidates.find(|candidate| candidate["address"] == *address);
    let why = candidate.expect("it")["excluded"].as_str().expect("a reason");
    assert!(
        why.starts_with("check_failed: check says down, check_refused"),
        "{why}"
    );
}

#[tokio::test]
async fn a_weight_of_zero_drains_and_an_endpoint_that_left_is_spoken_of() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let config = |b: &str| {
        with(
            "",
            &format!("    endpoints: [{}, {b}]\n{IN_TURN}", a.address()),
            &[],
        )
        .replace("    endpoints: []\n", "")
    };
    let drained = format!("{{ address: \"{}\", weight: 0 }}", b.address());
    let proxy = proxy(&config(&drained)).await;
    let shown = endpoint(&proxy, b.address()).await;
    assert_eq!(shown["state"], "draining");
    assert_eq!(ground(&shown, "discovery"), said("draining", "weight_zero"));
    for _ in 0..6 {
        assert_eq!(get(proxy.web(), "/").await.text(), "a");
    }
    proxy.reload(&config(&b.address().to_string())).await;
    assert_eq!(endpoint(&proxy, b.address()).await["state"], "available");
    proxy.reload(&with("", IN_TURN, &[a.address()])).await;
    let expected = [
        event("up", "draining", "weight_zero"),
        event("draining", "up", "listed"),
        event("up", "down", "not_listed"),
    ];
    assert_eq!(events(&proxy, b.address()).await, expected);
}

/// The picker reads what the arbiter says, so an ejection must be there at once and gone at once.
#[tokio::test]
async fn an_ejection_is_one_opinion_among_others() {
    let (good, bad) = (Upstream::named("good"), Upstream::answers(503, "bad"));
    let lines =
        format!("{IN_TURN}    outlier_detection: {{ base_ejection_time: 60s, max_ejection_time: 60s }}\n");
    let route = "    retry: off\n    circuit_breaker: off\n";
    let proxy = proxy(&with(route, &lines, &[good.address(), bad.address()])).await;
    for _ in 0..10 {
        get(proxy.web(), "/").await;
    }
    let shown = endpoint(&proxy, bad.address()).await;
    assert_eq!(shown["state"], "ejected");
    assert_eq!(ground(&shown, "ejection"), said("down", "consecutive_gateway"));
    let off = with(
        route,
        &format!("{IN_TURN}    outlier_detection: off\n"),
        &[good.address(), bad.address()],
    );
    proxy.reload(&off).await;
    eventually_async("nobody is compared any more, so nobody is out", || async {
        endpoint(&proxy, bad.address()).await["state"] == "available"
    })
    .await;
    let before = bad.requests();
    for _ in 0..4 {
        get(proxy.web(), "/").await;
    }
    assert_eq!(bad.requests() - before, 2);
}

/// An upstream whose answers to `/healthz` and to everything else are told from outside.
fn told(health: &'static str) -> (Upstream, Arc<Mutex<(u16, &'static str)>>) {
    let told = Arc::new(Mutex::new((200, health)));
    let now = Arc::clone(&told);
    let upstream = Upstream::each(move |mut peer| {
        let now = Arc::clone(&now);
        async move {
            while let Some(request) = peer.request().await? {
                let (status, fields) = *now.lock();
                peer.answer(&request, status, fields, b"told").await?;
            }
            Ok(())
        }
    });
    (upstream, told)
}

#[tokio::test]
async fn an_endpoint_leaves_by_a_field_of_any_answer_and_its_client_is_not_told() {
    let (leaving, told) = told("");
    let other = Upstream::named("other");
    let lines = format!("{IN_TURN}    health_check: {{ path: /healthz, interval: 100ms }}\n");
    let proxy = proxy(&with("", &lines, &[leaving.address(), other.address()])).await;
    eventually_async("it serves", || async {
        get(proxy.web(), "/").await.text() == "told"
    })
    .await;
    *told.lock() = (200, "x-bellwether-fail: drain\r\n");
    eventually_async("it drains", || async {
        let answer = get(proxy.web(), "/").await;
        assert!(answer.fields.get("x-bellwether-fail").is_none(), "{answer:?}");
        endpoint(&proxy, leaving.address()).await["state"] == "draining"
    })
    .await;
    assert_eq!(
        ground(&endpoint(&proxy, leaving.address()).await, "agent"),
        said("draining", "agent_drain")
    );
    for _ in 0..6 {
        assert_eq!(get(proxy.web(), "/").await.text(), "other");
    }
    // A check is answered without it: it has thought better of it.
    *told.lock() = (200, "");
    eventually_async("it is back", || async {
        get(proxy.web(), "/").await.text() == "told"
    })
    .await;

    *told.lock() = (200, "x-envoy-immediate-health-check-fail: true\r\n");
    eventually_async("the other name is known too", || async {
        get(proxy.web(), "/").await;
        endpoint(&proxy, leaving.address()).await["state"] == "draining"
    })
    .await;
}

/// Where everybody wishes to leave, whoever made them say so, they are asked all the same.
#[tokio::test]
async fn a_field_of_an_answer_cannot_take_a_whole_cluster_out() {
    let (only, told) = told("");
    let lines = "    health_check: { path: /healthz, interval: 60s }\n";
    let proxy = proxy(&with("", lines, &[only.address()])).await;
    *told.lock() = (200, "x-bellwether-fail: down\r\n");
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    assert_eq!(endpoint(&proxy, only.address()).await["state"], "draining");
}

#[tokio::test]
async fn a_proxy_that_drains_says_so_on_its_readiness() {
    let upstream = Upstream::named("a");
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    let ready = proxy.admin_get("/readyz").await;
    assert!(ready.fields.get("x-bellwether-fail").is_none());
    assert_eq!(proxy.admin_post("/api/v1/drain", "{}").await.status, 200);
    let ready = proxy.admin_get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.fields.get("x-bellwether-fail"), Some("drain"));
}

#[tokio::test]
async fn scenario_20_the_last_endpoint_is_not_removed_for_being_slow_but_for_refusing() {
    let slow = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            if request.target == "/healthz" {
                return std::future::pending().await;
            }
            peer.answer(&request, 200, "", b"slow").await?;
        }
        Ok(())
    });
    let lines =
        "    health_check: { path: /healthz, interval: 50ms, timeout: 100ms, unhealthy_threshold: 2 }\n";
    let only = proxy(&with("", lines, &[slow.address()])).await;
    eventually_async("its checks have timed out more often than is allowed", || async {
        let metrics = only.metrics().await;
        metrics.sum("bellwether_health_checks_total", &[("result", "timeout")]) >= 6.0
    })
    .await;
    let shown = endpoint(&only, slow.address()).await;
    // The first result counts at once, and there was nobody else then either.
    assert_eq!(shown["state"], "available");
    assert_eq!(get(only.web(), "/").await.text(), "slow");
    let protected = event("up", "up", "check_protected");
    assert!(events(&only, slow.address()).await.contains(&protected));

    // The control: with somebody beside it the same endpoint goes.
    let fine = Upstream::named("fine");
    let two = proxy(&with("", lines, &[slow.address(), fine.address()])).await;
    eventually_async("with somebody else it goes", || async {
        endpoint(&two, slow.address()).await["state"] == "check_failed"
    })
    .await;

    slow.stop();
    eventually_async("and whoever refuses goes, last or not", || async {
        ground(&endpoint(&only, slow.address()).await, "check") == said("down", "check_refused")
    })
    .await;
    get(only.web(), "/").await.is_refusal(503, "no_endpoint");
}

#[tokio::test]
async fn scenario_21_checks_are_spread_and_traffic_saves_most_of_them() {
    let started = Instant::now();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let upstreams: Vec<Upstream> = (0..200)
        .map(|_| {
            let asked = Arc::clone(&asked);
            Upstream::each(move |mut peer| {
                let asked = Arc::clone(&asked);
                async move {
                    while let Some(request) = peer.request().await? {
                        asked.lock().push(started.elapsed().as_secs());
                        peer.answer(&request, 200, "", b"").await?;
                    }
                    Ok(())
                }
            })
        })
        .collect();
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let many = proxy(&with("", "    health_check: /healthz\n", &addresses)).await;
    let begun = started.elapsed().as_secs() + 1;
    eventually("ten seconds of checks", || {
        started.elapsed().as_secs() > begun + 10
    })
    .await;
    let mut per_second = [0usize; 10];
    for second in asked
        .lock()
        .iter()
        .filter_map(|at| usize::try_from(at.checked_sub(begun)?).ok())
    {
        if let Some(count) = per_second.get_mut(second) {
            *count += 1;
        }
    }
    let mean = per_second.iter().sum::<usize>() / 10;
    assert!((30..=50).contains(&mean), "200 every 5 s: {per_second:?}");
    assert!(
        per_second.iter().all(|count| *count <= 2 * mean),
        "{per_second:?}"
    );
    drop(many);

    let addresses = &addresses[..2];
    let lines = format!("{IN_TURN}    health_check: {{ path: /healthz, interval: 400ms }}\n");
    let busy = proxy(&with("", &lines, addresses)).await;
    let count =
        |metrics: &Metrics, result| metrics.sum("bellwether_health_checks_total", &[("result", result)]);
    eventually_async("everybody has passed once", || async {
        count(&busy.metrics().await, "pass") >= 2.0
    })
    .await;
    let before = busy.metrics().await;
    let mut client = Client::connect(busy.web()).await;
    let mut after = before.clone();
    while count(&after, "suppressed") - count(&before, "suppressed") < 40.0 {
        for _ in 0..10 {
            assert_eq!(client.get("/").await.status, 200);
        }
        after = busy.metrics().await;
    }
    let suppressed = count(&after, "suppressed") - count(&before, "suppressed");
    let passed = count(&after, "pass") - count(&before, "pass");
    // Five of six; those that were due before the traffic began are not.
    assert!(
        suppressed / (suppressed + passed) > 0.8,
        "{suppressed} left out, {passed} asked"
    );
}

#[tokio::test]
async fn a_new_endpoint_waits_for_its_first_check_and_a_reload_keeps_the_verdict() {
    let (a, b, bad) = (
        Upstream::named("a"),
        Upstream::named("b"),
        Upstream::answers(500, "bad"),
    );
    let lines = format!("{IN_TURN}    health_check: {{ path: /healthz, interval: 50ms }}\n");
    let proxy = proxy(&with("", &lines, &[a.address()])).await;
    eventually_async("it serves", || async {
        get(proxy.web(), "/").await.text() == "a"
    })
    .await;
    proxy
        .reload(&with("", &lines, &[a.address(), b.address(), bad.address()]))
        .await;
    eventually_async("the good one is used", || async {
        get(proxy.web(), "/").await.text() == "b"
    })
    .await;
    eventually_async("the bad one is known", || async {
        ground(&endpoint(&proxy, bad.address()).await, "check") == said("down", "check_failed")
    })
    .await;
    let pending = event("up", "down", "check_pending");
    for new in [b.address(), bad.address()] {
        assert_eq!(
            events(&proxy, new).await[0],
            pending,
            "nobody was asked before a check"
        );
    }
    assert!(bad.received().iter().all(|request| request.target == "/healthz"));

    let slower = lines.replace("50ms", "60s");
    proxy
        .reload(&with("", &slower, &[a.address(), b.address(), bad.address()]))
        .await;
    assert_eq!(endpoint(&proxy, bad.address()).await["state"], "check_failed");
    proxy
        .reload(&with("", IN_TURN, &[a.address(), b.address(), bad.address()]))
        .await;
    assert_eq!(
        endpoint(&proxy, bad.address()).await["state"],
        "available",
        "nobody would ever call it healthy again"
    );
}

/// `grpc.health.v1.Health/Check` by hand: what it was asked for, and the status it answers with.
#[tokio::test]
async fn grpc_endpoints_are_asked_by_the_health_protocol() {
    let serving = Arc::new(AtomicU8::new(1));
    let (address, asked) = grpc_health(Arc::clone(&serving)).await;
    let other = grpc_health(Arc::new(AtomicU8::new(1))).await.0;
    let lines = "    protocol: http2\n    health_check: { grpc_service: shop.v1.Cart, interval: 50ms, healthy_threshold: 1, unhealthy_threshold: 1 }\n";
    let proxy = proxy(&with("", lines, &[address, other])).await;
    eventually_async("it passes", || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_health_checks_total", &[("result", "pass")])
            >= 2.0
    })
    .await;
    assert_eq!(endpoint(&proxy, address).await["state"], "available");
    serving.store(2, Ordering::SeqCst);
    eventually_async("NOT_SERVING takes it out", || async {
        ground(&endpoint(&proxy, address).await, "check") == said("down", "check_failed")
    })
    .await;
    let shown = endpoint(&proxy, address).await;
    let grounds = shown["grounds"].as_array().expect("grounds").iter();
    let evidence: Vec<&Value> = grounds.map(|ground| &ground["evidence"]).collect();
    assert!(evidence.contains(&&"NOT_SERVING".into()), "{evidence:?}");
    serving.store(1, Ordering::SeqCst);
    eventually_async("SERVING brings it back", || async {
        endpoint(&proxy, address).await["state"] == "available"
    })
    .await;
    let question = b"\0\0\0\0\x0e\x0a\x0cshop.v1.Cart";
    assert!(
        asked.lock().iter().all(|asked| asked == question),
        "{:?}",
        asked.lock().first()
    );
}

#[tokio::test]
async fn grpc_endpoints_behind_tls_are_asked_over_it() {
    let mut ca = Authority::new("ca");
    let server = ca.issue("server", &["cart.internal"]);
    let serving = Arc::new(AtomicU8::new(1));
    let tls = Some(tls::server(&server, None, &["h2"]));
    let (address, asked) = grpc_health_over(tls, Arc::clone(&serving)).await;
    let stranger = Authority::new("stranger");
    let lines = |ca: &Authority| {
        format!(
            "    tls: {{ server_name: cart.internal, ca: {} }}\n    health_check: {{ grpc_service: shop.v1.Cart, interval: 50ms, timeout: 10s, \
             healthy_threshold: 1, unhealthy_threshold: 1 }}\n",
            ca.ca().display()
        )
    };
    let proxy = proxy(&with("", &lines(&ca), &[address])).await;
    eventually_async("it passes", || async {
        let metrics = proxy.metrics().await;
        metrics.sum("bellwether_health_checks_total", &[("result", "pass")]) >= 1.0
    })
    .await;
    assert!(!asked.lock().is_empty());
    serving.store(2, Ordering::SeqCst);
    eventually_async("NOT_SERVING takes it out", || async {
        ground(&endpoint(&proxy, address).await, "check") == said("down", "check_failed")
    })
    .await;
    // The control: who cannot prove its name is not asked.
    serving.store(1, Ordering::SeqCst);
    eventually_async("SERVING brings it back", || async {
        endpoint(&proxy, address).await["state"] == "available"
    })
    .await;
    proxy.reload(&with("", &lines(&stranger), &[address])).await;
    let before = asked.lock().len();
    eventually_async("it fails for its certificate", || async {
        let shown = endpoint(&proxy, address).await;
        let grounds = shown["grounds"].as_array().expect("grounds").iter();
        let mut evidence = grounds.filter_map(|ground| ground["evidence"].as_str());
        evidence.any(|evidence| evidence.contains("certificate"))
    })
    .await;
    assert!(asked.lock().len() <= before + 1, "one may have been under way");
}

async fn grpc_health(serving: Arc<AtomicU8>) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    grpc_health_over(None, serving).await
}

async fn grpc_health_over(
    tls: Option<Arc<rustls::ServerConfig>>,
    serving: Arc<AtomicU8>,
) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (serving, seen, tls) = (Arc::clone(&serving), Arc::clone(&seen), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => grpc_health_on(socket, serving, seen).await,
                    Some(tls) => {
                        if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
                            grpc_health_on(stream, serving, seen).await;
                        }
                    }
                }
            });
        }
    });
    (address, asked)
}

async fn grpc_health_on<I>(io: I, serving: Arc<AtomicU8>, seen: Arc<Mutex<Vec<Vec<u8>>>>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let Ok(mut connection) = h2::server::handshake(io).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (serving, seen) = (Arc::clone(&serving), Arc::clone(&seen));
        tokio::spawn(async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let mut body = request.into_body();
            let mut content = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                content.extend_from_slice(&data);
            }
            seen.lock().push(content);
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut send = respond
                .send_response(head.body(()).expect("a head"), false)
                .expect("sent");
            let status = serving.load(Ordering::SeqCst);
            let message = bytes::Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
            send.send_data(message, false).expect("sent");
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            send.send_trailers(trailers).expect("sent");
        });
    }
}

#[tokio::test]
async fn scenario_16_panic_asks_whom_a_detector_took_out_and_never_who_refuses() {
    let (unfit, told) = told("");
    let (dead, drained) = (Upstream::refuses(), Upstream::named("drained"));
    let check = "    health_check: { path: /healthz, interval: 50ms, healthy_threshold: 1, unhealthy_threshold: 1 }\n";
    let endpoints = [unfit.address(), dead.address(), drained.address()];
    let route = "    retry: off\n    circuit_breaker: off\n";
    let one = proxy(&with(route, &format!("{IN_TURN}{check}"), &endpoints)).await;
    let path = format!("/api/v1/clusters/app/endpoints/{}/override", drained.address());
    assert_eq!(
        one.admin_ask("PUT", &path, r#"{"action": "drain"}"#).await.status,
        200
    );
    *told.lock() = (500, "");
    eventually_async("nobody is left", || async {
        one.metrics()
            .await
            .sum("bellwether_upstream_panic", &[("cluster", "app")])
            == 1.0
    })
    .await;
    for _ in 0..30 {
        // Unfit by its check, but it answers: the others would not, or must not be asked.
        assert_eq!(get(one.web(), "/").await.text(), "told");
    }
    assert!(
        drained
            .received()
            .iter()
            .all(|request| request.target == "/healthz")
    );
    let began = one.admin_get("/api/v1/events?kind=panic").await.json();
    assert_eq!(
        (&began["events"][0]["to"], &began["events"][0]["subject"]),
        (&"panic".into(), &"app".into())
    );

    *told.lock() = (200, "");
    eventually_async("it ends by itself", || async {
        one.metrics()
            .await
            .sum("bellwether_upstream_panic", &[("cluster", "app")])
            == 0.0
    })
    .await;
    let events = one.admin_get("/api/v1/events?kind=panic").await.json();
    assert_eq!(events["events"][1]["to"], "calm", "{events}");

    // The control: without panic nobody is asked.
    *told.lock() = (500, "");
    for setting in ["off", "{ to: reject }"] {
        let lines = format!("{IN_TURN}{check}    panic: {setting}\n");
        let calm = proxy(&with(route, &lines, &endpoints[..2])).await;
        eventually_async("nobody is left", || async {
            get(calm.web(), "/").await.status == 503
        })
        .await;
        eventually_async("and nobody is asked", || async {
            get(calm.web(), "/").await.rejected() == Some("no_endpoint")
        })
        .await;
    }
}

#[tokio::test]
async fn who_panics_early_asks_everybody_while_some_are_left() {
    let (good, unfit) = (Upstream::named("good"), Upstream::answers(500, "unfit"));
    let lines = format!(
        "{IN_TURN}    health_check: {{ path: /healthz, interval: 50ms, unhealthy_threshold: 1 }}\n    panic: {{ threshold: 50% }}\n"
    );
    let route = "    retry: off\n    circuit_breaker: off\n";
    let proxy = proxy(&with(route, &lines, &[good.address(), unfit.address()])).await;
    eventually_async("half are left", || async {
        proxy.metrics().await.sum("bellwether_upstream_panic", &[]) == 1.0
    })
    .await;
    let mut unfit = 0;
    for _ in 0..20 {
        unfit += usize::from(get(proxy.web(), "/").await.status == 500);
    }
    assert_eq!(unfit, 10);
}

/// Milliseconds since 1970, as events tell the time.
fn today() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a date");
    since.as_millis() as f64
}

#[tokio::test]
async fn scenario_17_an_endpoint_that_returns_takes_its_share_slowly() {
    let (good, bad) = (Upstream::named("good"), told(""));
    let (bad, told) = bad;
    *told.lock() = (503, "");
    let lines = "    load_balancing: round_robin\n    slow_start: 4s\n    outlier_detection: { base_ejection_time: 300ms, max_ejection_time: 400ms }\n";
    let proxy = proxy(&with(
        "    retry: off\n    circuit_breaker: off\n",
        lines,
        &[good.address(), bad.address()],
    ))
    .await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..12 {
        client.get("/").await;
    }
    assert_eq!(endpoint(&proxy, bad.address()).await["state"], "ejected");
    *told.lock() = (200, "");
    let back = loop {
        client.get("/").await;
        let events = proxy.admin_get("/api/v1/events?kind=ejection").await.json();
        let events = events["events"].as_array().expect("events").clone();
        if let Some(event) = events.iter().find(|event| event["to"] == "available") {
            break event["time"].as_f64().expect("a time");
        }
    };
    let web = proxy.web();
    let mut asking = tokio::task::JoinSet::new();
    let ask = move || async move {
        let mut client = Client::connect(web).await;
        let mut sent = Vec::new();
        while today() - back < 4_000.0 {
            let before = today();
            let is_back = client.get("/").await.text() == "told";
            sent.push((f64::midpoint(before, today()) - back, is_back));
        }
        sent
    };
    for _ in 0..4 {
        asking.spawn(ask());
    }
    let sent = asking.join_all().await.concat();
    // It counts as much as its ramp allows, beside one that counts fully.
    let share = |at: f64| (at / 4_000.0).max(0.1);
    for half in [0.0..2_000.0, 2_000.0..4_000.0] {
        let of_half = || sent.iter().filter(|(at, _)| half.contains(at));
        let expected: f64 = of_half().map(|(at, _)| share(*at) / (1.0 + share(*at))).sum();
        let got = of_half().filter(|(_, is_back)| *is_back).count() as f64;
        let off = (got / expected - 1.0).abs();
        assert!(
            off < 0.2 || (got - expected).abs() < 4.0 * expected.sqrt(),
            "{half:?}: {got} of {expected}"
        );
    }
}

/// Lets a process run for a twentieth of the time.
struct Starved {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Starved {
    fn new(proxy: &Proxy) -> Self {
        let pid = Pid::from_raw(i32::try_from(proxy.pid()).expect("a process id")).expect("a process id");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                kill_process(pid, Signal::STOP).expect("our own child");
                std::thread::sleep(Duration::from_millis(190));
                kill_process(pid, Signal::CONT).expect("our own child");
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

async fn score(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("bellwether_self_health_score", &[])
}

#[tokio::test]
async fn scenario_15_a_starved_proxy_ejects_nobody_until_it_is_well_again() {
    let (good, bad) = (Upstream::named("good"), Upstream::answers(503, "bad"));
    let route = "    retry: off\n    circuit_breaker: off\n";
    let proxy = proxy(&with(route, IN_TURN, &[good.address(), bad.address()])).await;
    let starved = Starved::new(&proxy);
    eventually_async("it knows that it is unwell", || async {
        score(&proxy).await >= 4.0
    })
    .await;
    for _ in 0..20 {
        get(proxy.web(), "/").await;
    }
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("bellwether_ejections_total", &[("enforced", "true")]),
        0.0
    );
    assert!(
        metrics.sum(
            "bellwether_ejections_total",
            &[("unenforced_reason", "self_health")]
        ) >= 1.0
    );
    assert_eq!(endpoint(&proxy, bad.address()).await["state"], "available");
    let told = proxy.admin_get("/api/v1/events?kind=self_health").await.json();
    assert_eq!(told["events"][0]["to"], "unwell");
    drop(starved);

    // The control: the same failures, once it trusts itself again.
    eventually_async("it recovers by itself", || async { score(&proxy).await < 4.0 }).await;
    eventually_async("and ejects", || async {
        get(proxy.web(), "/").await;
        endpoint(&proxy, bad.address()).await["state"] == "ejected"
    })
    .await;
}

async fn beat(proxy: &Proxy, fields: &str, body: &str) -> u16 {
    let fields = format!(
        "host: {}\r\ncontent-type: application/json\r\n{fields}",
        proxy.admin()
    );
    ask(proxy.admin(), "POST", "/v1/heartbeat", &fields, body.as_bytes())
        .await
        .status
}

async fn beats(proxy: &Proxy, result: &str) -> f64 {
    proxy
        .metrics()
        .await
        .sum("bellwether_heartbeats_total", &[("result", result)])
}

#[tokio::test]
async fn scenario_23_an_endpoint_says_how_it_is_and_nobody_else_does() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let lines =
        format!("{IN_TURN}    heartbeat: {{ source: push, interval: 200ms, acceptable_pause: 60s }}\n");
    // The second is on another machine as far as addresses tell.
    let config = with("", &lines, &[a.address()]).replace("endpoints: [", "endpoints: [127.0.0.2:9, ");
    let proxy = proxy(&config.replace("127.0.0.2:9, ", &format!("{}, 127.0.0.2:9, ", b.address()))).await;
    let of = |endpoint: &str, more: &str| format!(r#"{{"endpoint": "{endpoint}", {more}}}"#);
    let a_says = |more: &str| of(&a.address().to_string(), more);
    assert_eq!(
        beat(
            &proxy,
            "",
            &a_says(r#""incarnation": 7, "seq": 5, "state": "up""#)
        )
        .await,
        200
    );
    for old in [
        r#""incarnation": 7, "seq": 5"#,
        r#""incarnation": 7, "seq": 4"#,
        r#""incarnation": 6, "seq": 900"#,
    ] {
        assert_eq!(
            beat(&proxy, "", &a_says(&format!("{old}, \"state\": \"down\""))).await,
            409
        );
    }
    assert_eq!(endpoint(&proxy, a.address()).await["state"], "available");

    // Somebody else, nobody we know, nonsense.
    let down = r#""incarnation": 9, "seq": 1, "state": "down""#;
    assert_eq!(beat(&proxy, "", &of("127.0.0.2:9", down)).await, 403);
    assert_eq!(endpoint(&proxy, "127.0.0.2:9").await["state"], "available");
    assert_eq!(beat(&proxy, "", &of("127.0.0.3:9", down)).await, 404);
    for nonsense in [
        r#""incarnation": 8, "seq": 1, "state": "fine""#,
        r#""incarnation": 8, "seq": 1, "state": "up", "weight": 257"#,
        r#""incarnation": 8, "seq": 1, "state": "up", "weight": "101%""#,
        r#""incarnation": 8, "seq": 1, "state": "up", "load": 2"#,
        r#""incarnation": 8, "seq": 1, "state": "up", "ttl_ms": 0"#,
        r#""incarnation": 8, "seq": 1"#,
        r#""incarnation": 8, "seq": 1, "state": "up", "mood": "good""#,
    ] {
        assert_eq!(beat(&proxy, "", &a_says(nonsense)).await, 400, "{nonsense}");
    }
    assert_eq!(endpoint(&proxy, a.address()).await["state"], "available");
    let counts = (
        beats(&proxy, "accepted").await,
        beats(&proxy, "stale").await,
        beats(&proxy, "unknown").await,
        beats(&proxy, "rejected").await,
    );
    assert_eq!(counts, (1.0, 3.0, 1.0, 8.0));

    // What it asks for is done, for as long as it said.
    let busy =
        r#""incarnation": 7, "seq": 6, "state": "up", "weight": "10%", "max_in_flight": 3, "ttl_ms": 300000"#;
    assert_eq!(beat(&proxy, "", &a_says(busy)).await, 200);
    let shown = endpoint(&proxy, a.address()).await;
    assert_eq!(
        (&shown["asked"]["share"], &shown["asked"]["max_in_flight"]),
        (&0.1.into(), &3.into())
    );
    let path = "/api/v1/clusters/app/endpoints/127.0.0.2:9/override";
    assert_eq!(
        proxy
            .admin_ask("PUT", path, r#"{"action": "drain"}"#)
            .await
            .status,
        200
    );
    let mut client = Client::connect(proxy.web()).await;
    let before = a.requests();
    for _ in 0..400 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let got = a.requests() - before;
    assert!(
        (1..=60).contains(&got),
        "a tenth of every second turn: {got} of 400"
    );
    let brief = r#""incarnation": 7, "seq": 7, "state": "drain", "ttl_ms": 400"#;
    assert_eq!(beat(&proxy, "", &a_says(brief)).await, 200);
    assert_eq!(endpoint(&proxy, a.address()).await["state"], "draining");
    eventually_async("what it said is over", || async {
        let shown = endpoint(&proxy, a.address()).await;
        shown["state"] == "available" && shown["asked"].is_null()
    })
    .await;
    assert_eq!(
        beat(
            &proxy,
            "",
            &a_says(r#""incarnation": 7, "seq": 7, "state": "down""#)
        )
        .await,
        409,
        "the order outlasts the words"
    );
}

#[tokio::test]
async fn heartbeats_need_their_token_where_there_is_one_and_it_opens_nothing_else() {
    let a = Upstream::named("a");
    let lines = "    heartbeat: { source: push }\n";
    let config = format!(
        "{}admin:\n  address: 127.0.0.1:0\n  auth: {{ bearer_token: operators, heartbeat_token: pulse }}\n",
        with("", lines, &[a.address()])
    );
    let proxy = proxy(&config).await;
    let body = |seq| {
        format!(
            r#"{{"endpoint": "{}", "incarnation": 1, "seq": {seq}, "state": "up"}}"#,
            a.address()
        )
    };
    assert_eq!(beat(&proxy, "", &body(1)).await, 401);
    assert_eq!(
        beat(&proxy, "authorization: Bearer wrong\r\n", &body(1)).await,
        401
    );
    let pulse = "authorization: Bearer pulse\r\n";
    assert_eq!(beat(&proxy, pulse, &body(1)).await, 200);
    assert_eq!(
        beat(&proxy, "authorization: Bearer operators\r\n", &body(2)).await,
        200
    );
    let fields = format!(
        "host: {}\r\ncontent-type: application/json\r\nx-bellwether-admin: 1\r\n{pulse}",
        proxy.admin()
    );
    for path in ["/api/v1/clusters", "/metrics"] {
        assert_eq!(
            ask(proxy.admin(), "GET", path, &fields, b"").await.status,
            401,
            "{path}"
        );
    }
    assert_eq!(
        ask(proxy.admin(), "POST", "/api/v1/drain", &fields, b"{}")
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn requests_that_stay_unanswered_are_silence_and_no_requests_are_none() {
    let answers = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&answers);
    let hangs = Upstream::each(move |mut peer| {
        let told = Arc::clone(&told);
        async move {
            while let Some(request) = peer.request().await? {
                if !told.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                peer.answer(&request, 200, "", b"ok").await?;
            }
            Ok(())
        }
    });
    let alive = Upstream::named("alive");
    let addresses = [alive.address(), hangs.address()];
    let lines = |source: &str| {
        format!(
            "{IN_TURN}    outlier_detection: off\n    heartbeat: {{ source: {source}, interval: 100ms, acceptable_pause: 500ms }}\n"
        )
    };
    let route = "    timeout: 200ms\n    retry: off\n    circuit_breaker: off\n";
    let proxy = proxy(&with(route, &lines("traffic"), &addresses)).await;
    let is_lost = || async {
        ground(&endpoint(&proxy, hangs.address()).await, "heartbeat") == said("down", "heartbeat_lost")
    };
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    answers.store(false, Ordering::SeqCst);
    // Nobody asks: that is no silence of theirs.
    let looked = Instant::now();
    while looked.elapsed() < Duration::from_secs(2) {
        assert_eq!(endpoint(&proxy, hangs.address()).await["state"], "available");
    }
    let stop = Arc::new(AtomicU8::new(0));
    let (web, told) = (proxy.web(), Arc::clone(&stop));
    let asking = background().spawn(async move {
        while told.load(Ordering::SeqCst) == 0 {
            get(web, "/").await;
        }
    });
    eventually_async("who answers nothing is lost", is_lost).await;
    assert_eq!(endpoint(&proxy, alive.address()).await["state"], "available");
    // The control: it accepts connections, so by probes it lives.
    proxy.reload(&with(route, &lines("probe"), &addresses)).await;
    eventually_async("by probes it is alive", || async { !is_lost().await }).await;
    stop.store(1, Ordering::SeqCst);
    soon("the client", asking).await.expect("no panic");
}

#[tokio::test]
async fn scenario_22_a_proxy_that_slept_takes_nobody_for_dead() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let addresses = upstreams.each_ref().map(Upstream::address);
    let lines = format!(
        "{IN_TURN}    heartbeat: {{ interval: 100ms, acceptable_pause: 500ms }}\n    connection_pool: {{ max_idle_per_endpoint: 0 }}\n"
    );
    let proxy = proxy(&with("", &lines, &addresses)).await;
    let lost = || async {
        let metrics = proxy.metrics().await;
        metrics.sum(
            "bellwether_health_transitions_total",
            &[("source", "heartbeat"), ("to", "down")],
        )
    };
    eventually_async("everybody is heard from", || async {
        let mut alive = 0;
        for address in addresses {
            let shown = endpoint(&proxy, address).await;
            alive += usize::from(ground(&shown, "heartbeat") == said("up", "heartbeat_fine"));
        }
        alive == 3
    })
    .await;
    let pid = Pid::from_raw(i32::try_from(proxy.pid()).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::STOP).expect("our own child");
    tokio::time::sleep(Duration::from_secs(10)).await;
    kill_process(pid, Signal::CONT).expect("our own child");
    // It is judged every 100 ms: after as many requests it has been.
    let woken = Instant::now();
    while woken.elapsed() < Duration::from_secs(1) {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    assert_eq!(lost().await, 0.0);

    // The control: who really dies is found, and only who dies.
    upstreams[2].stop();
    eventually_async("the dead one is found", || async {
        ground(&endpoint(&proxy, addresses[2]).await, "heartbeat") == said("down", "heartbeat_lost")
    })
    .await;
    assert_eq!(lost().await, 1.0);
    let phi = proxy.metrics().await;
    let of = |address: SocketAddr| phi.sum("bellwether_endpoint_phi", &[("endpoint", &address.to_string())]);
    assert!(of(addresses[2]) >= 8.0 && of(addresses[0]) < 8.0);
}

#[tokio::test]
async fn a_lower_priority_serves_when_the_higher_one_is_gone_and_only_then() {
    let (first, second) = (Upstream::named("first"), Upstream::named("second"));
    let lines = format!(
        "    endpoints: [{{ address: \"{}\" }}, {{ address: \"{}\", priority: 1 }}]\n{IN_TURN}    health_check: {{ tcp: true, interval: 50ms, unhealthy_threshold: 1 }}\n",
        first.address(),
        second.address()
    );
    let proxy = proxy(&with("", &lines, &[]).replace("    endpoints: []\n", "")).await;
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/").await.text(), "first");
    }
    first.stop();
    eventually_async("the reserve serves", || async {
        get(proxy.web(), "/").await.text() == "second"
    })
    .await;
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/").await.text(), "second");
    }
}

#[tokio::test]
async fn requests_stay_in_our_zone_as_long_as_it_has_somebody() {
    let (here, there) = (Upstream::named("here"), Upstream::named("there"));
    let lines = format!(
        "    endpoints: [{{ address: \"{}\", zone: a }}, {{ address: \"{}\", zone: b }}]\n{IN_TURN}    health_check: {{ tcp: true, interval: 50ms, unhealthy_threshold: 1 }}\n",
        here.address(),
        there.address()
    );
    let config = with("", &lines, &[]).replace("    endpoints: []\n", "");
    let zoned = Start::new(&config).variable("BELLWETHER_ZONE", "a").start().await;
    let count = async |proxy: &Proxy| {
        let mut at_home = 0;
        for _ in 0..200 {
            at_home += usize::from(get(proxy.web(), "/").await.text() == "here");
        }
        at_home
    };
    // One in a hundred finds out about elsewhere until it has answered once.
    assert!(count(&zoned).await >= 190);
    let nowhere = proxy(&config).await;
    let shared = count(&nowhere).await;
    assert!(
        (80..=120).contains(&shared),
        "the control: no zone, no preference: {shared}"
    );
    here.stop();
    eventually_async("nobody is here any more", || async {
        get(zoned.web(), "/").await.text() == "there"
    })
    .await;
}
