//! Breakers of endpoints, slow endpoints, copies of slow requests, and deadlines between hops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::support::client::{Client, ask, get};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

/// Every endpoint gets its turn, and only its breaker stops it.
const IN_TURN: &str = "    load_balancing: round_robin\n    slow_start: off\n    outlier_detection: off\n";

/// Breakers of endpoints that open after two failures and try again soon.
fn at(scope: &str) -> String {
    format!(
        "    retry: off\n    circuit_breaker: {{ scope: {scope}, consecutive_failures: 2, open_duration: 100ms, \
         max_open_duration: 150ms, half_open_requests: 2 }}\n"
    )
}

/// An upstream that answers with the status it was told last.
fn told(status: usize) -> (Upstream, Arc<AtomicUsize>) {
    let status = Arc::new(AtomicUsize::new(status));
    let now = Arc::clone(&status);
    let upstream = Upstream::each(move |mut peer| {
        let now = Arc::clone(&now);
        async move {
            while let Some(request) = peer.request().await? {
                let status = match request.target.as_str() {
                    "/broken" => 500,
                    _ => u16::try_from(now.load(Ordering::SeqCst)).unwrap_or(500),
                };
                peer.answer(&request, status, "", b"x").await?;
            }
            Ok(())
        }
    });
    (upstream, status)
}

async fn states(proxy: &Proxy) -> Vec<(String, String)> {
    let json = proxy.admin_get("/api/v1/breakers").await.json();
    let breakers = json["breakers"].as_array().expect("a list").iter();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    breakers
        .map(|breaker| (text(&breaker["id"]), text(&breaker["state"])))
        .collect()
}

#[tokio::test]
async fn scenario_04_breakers_of_all_endpoints_are_open_and_the_picker_still_sees_them() {
    let [(one, first), (two, second)] = [told(500), told(500)];
    let config = with(&at("endpoint"), IN_TURN, &[one.address(), two.address()]);
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.status, 500);
    }
    let refused = client.get("/").await;
    refused.is_refusal(503, "breaker_open");
    let after: u32 = refused
        .fields
        .get("retry-after")
        .expect("retry-after")
        .parse()
        .expect("a number");
    assert!(after >= 1);
    assert_eq!(
        (one.requests(), two.requests()),
        (2, 2),
        "nobody is asked while they are open"
    );

    // Whoever comes finds out, also with what can be sent only once.
    eventually_async("a probe", || async {
        ask(proxy.web(), "POST", "/", "", b"x").await.status == 500
    })
    .await;
    first.store(200, Ordering::SeqCst);
    second.store(200, Ordering::SeqCst);
    eventually_async("both are closed", || async {
        get(proxy.web(), "/").await;
        states(&proxy).await.iter().all(|(_, state)| state == "closed")
    })
    .await;
    let metrics = proxy.metrics().await;
    let of = |to: &str| {
        let labels = [("scope", "endpoint"), ("cluster", "app"), ("to", to)];
        metrics.sum("bellwether_breaker_transitions_total", &labels)
    };
    assert!(of("open") >= 2.0);
    assert_eq!(of("closed"), 2.0);
    let events = proxy.admin_get("/api/v1/events?kind=breaker").await.json();
    let subject = format!("endpoint/app/{}", one.address());
    assert!(events.to_string().contains(&subject), "{events}");
}

#[tokio::test]
async fn an_endpoint_whose_breaker_is_open_is_passed_over_and_gets_a_probe_when_it_is_due() {
    let [(good, _), (bad, status)] = [told(200), told(500)];
    let config = with(&at("endpoint"), IN_TURN, &[good.address(), bad.address()]);
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    eventually_async("the breaker opens", || async {
        get(proxy.web(), "/").await;
        states(&proxy).await.iter().any(|(_, state)| state == "open")
    })
    .await;
    for _ in 0..20 {
        let probes = bad.requests();
        let answer = client.get("/").await;
        assert_eq!(
            answer.status == 500,
            bad.requests() > probes,
            "only probes fail: {answer:?}"
        );
    }
    let metrics = proxy.metrics().await;
    let open = metrics.sum("bellwether_endpoint_breakers", &[("cluster", "app")]);
    assert_eq!(open, 2.0, "each endpoint has one, in some state");
    status.store(200, Ordering::SeqCst);
    eventually_async("it is closed", || async {
        assert!(matches!(get(proxy.web(), "/").await.status, 200 | 500));
        states(&proxy).await.iter().all(|(_, state)| state == "closed")
    })
    .await;
}

#[tokio::test]
async fn scenario_18_one_failing_path_takes_no_endpoint_from_the_other_routes() {
    let [(one, _), (two, _)] = [told(200), told(200)];
    for (scope, spared) in [("route_endpoint", true), ("endpoint", false)] {
        let policy = at(scope);
        let config = format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - name: broken\n    match: {{ path: /broken }}\n    cluster: app\n\
             {policy}  - name: fine\n    cluster: app\n{policy}clusters:\n  app:\n    endpoints: [{}, {}]\n{IN_TURN}",
            one.address(),
            two.address()
        )
        .replace("open_duration: 100ms, max_open_duration: 150ms", "open_duration: 60s");
        let proxy = proxy(&config).await;
        let mut client = Client::connect(proxy.web()).await;
        for _ in 0..4 {
            assert_eq!(client.get("/broken").await.status, 500);
        }
        client.get("/broken").await.is_refusal(503, "breaker_open");
        let fine = client.get("/").await;
        assert_eq!(fine.status == 200, spared, "{scope}: {fine:?}");
    }
}

/// An upstream that answers after `wait`, once it was told to be slow.
fn slow(wait: Duration) -> (Upstream, Arc<AtomicBool>) {
    let is_slow = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&is_slow);
    let upstream = Upstream::each(move |mut peer| {
        let now = Arc::clone(&now);
        async move {
            while let Some(request) = peer.request().await? {
                if now.load(Ordering::SeqCst) {
                    tokio::time::sleep(wait).await;
                }
                peer.answer(&request, 200, "", b"x").await?;
            }
            Ok(())
        }
    });
    (upstream, is_slow)
}

#[tokio::test]
async fn an_endpoint_that_is_far_slower_than_the_others_is_ejected_and_stays_out_while_it_is() {
    let upstreams = [
        slow(Duration::from_millis(400)),
        slow(Duration::ZERO),
        slow(Duration::ZERO),
    ];
    let cluster = "    load_balancing: round_robin\n    slow_start: off\n    outlier_detection: { latency_factor: 3, \
                   base_ejection_time: 100ms, max_ejection_time: 150ms }\n";
    let addresses = upstreams.each_ref().map(|(upstream, _)| upstream.address());
    let proxy = proxy(&with("    hedge: off\n", cluster, &addresses)).await;
    let load = |requests: usize| {
        let web = proxy.web();
        async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..8 {
                tasks.spawn(async move {
                    let mut client = Client::connect(web).await;
                    for _ in 0..requests / 8 {
                        assert_eq!(client.get("/").await.status, 200);
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.expect("a client");
            }
        }
    };
    load(480).await;
    let ejected = || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_ejections_total", &[("detector", "latency")])
    };
    assert_eq!(ejected().await, 0.0);
    let (upstream, is_slow) = &upstreams[0];
    is_slow.store(true, Ordering::SeqCst);
    eventually_async("the slow one is out", || async {
        load(96).await;
        ejected().await > 0.0
    })
    .await;
    let events = proxy.admin_get("/api/v1/events?kind=ejection").await.json();
    assert!(events.to_string().contains("median of the others"), "{events}");
    // Its probes succeed, and are as slow as ever.
    let before = upstream.requests();
    eventually_async("it was probed three times", || async {
        load(48).await;
        upstream.requests() >= before + 3
    })
    .await;
    assert_eq!(
        proxy.metrics().await.sum("bellwether_ejections_active", &[]),
        1.0,
        "it is still out"
    );
    is_slow.store(false, Ordering::SeqCst);
    eventually_async("it is back", || async {
        load(48).await;
        proxy.metrics().await.sum("bellwether_ejections_active", &[]) == 0.0
    })
    .await;
}

/// An upstream that keeps requests to `/stuck` until it is told to answer, and knows how many were given up.
fn stuck(answer: &Arc<Notify>) -> (Upstream, Arc<AtomicUsize>) {
    let gone = Arc::new(AtomicUsize::new(0));
    let (answer, counted) = (Arc::clone(answer), Arc::clone(&gone));
    let upstream = Upstream::each(move |mut peer| {
        let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
        async move {
            while let Some(request) = peer.request().await? {
                if request.target == "/stuck" {
                    tokio::select! {
                        () = answer.notified() => {}
                        _ = peer.reader.rest() => {
                            counted.fetch_add(1, Ordering::SeqCst);
                            return Ok(());
                        }
                    }
                }
                peer.answer(&request, 200, "", b"x").await?;
            }
            Ok(())
        }
    });
    (upstream, gone)
}

const HEDGED: &str = "    hedge: { delay: 20ms, budget: 100% }\n    retry: off\n    circuit_breaker: off\n";

#[tokio::test]
async fn scenario_32_a_copy_overtakes_a_stuck_endpoint_which_is_told_that_nobody_waits() {
    let never = Arc::new(Notify::new());
    let (hangs, given_up) = stuck(&never);
    let fine = Upstream::named("fine");
    let config = with(HEDGED, IN_TURN, &[hangs.address(), fine.address()]);
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..6 {
        let answer = client.get("/stuck").await;
        assert_eq!((answer.status, answer.text()), (200, "fine".to_owned()));
    }
    let first = hangs.requests();
    assert!(first >= 2, "it had its turns: {first}");
    eventually("the losers were cancelled", || {
        given_up.load(Ordering::SeqCst) == first
    })
    .await;
    let metrics = proxy.metrics().await;
    let won = metrics.sum("bellwether_hedges_total", &[("result", "won")]);
    assert_eq!(won as usize, first);
    // Who lost is neither failed nor idle: it looks as slow as it was at least.
    let failed = metrics.sum("bellwether_upstream_attempts_total", &[("outcome", "failure")]);
    assert_eq!(failed, 0.0);
    let line = proxy.logged(|line| line["attempts"] == 2).await;
    assert_eq!(
        line["endpoint"],
        fine.address().to_string(),
        "the one that answered: {line}"
    );
}

#[tokio::test]
async fn scenario_32_copies_never_exceed_their_budget_and_are_for_safe_requests() {
    let never = Arc::new(Notify::new());
    let (hangs, _) = stuck(&never);
    let (other, _) = stuck(&never);
    let route = HEDGED.replace("100%", "5%") + "    timeout: 100ms\n";
    let proxy = proxy(&with(&route, IN_TURN, &[hangs.address(), other.address()])).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let web = proxy.web();
        tasks.spawn(async move { get(web, "/stuck").await.status });
    }
    while let Some(status) = tasks.join_next().await {
        assert_eq!(status.expect("a client"), 504);
    }
    let metrics = proxy.metrics().await;
    let of = |result: &str| metrics.sum("bellwether_hedges_total", &[("result", result)]);
    assert!(
        of("lost") + of("won") <= 3.0,
        "a twentieth of sixty: {}",
        of("lost")
    );
    assert!(of("vetoed") >= 50.0);
    assert!(hangs.requests() + other.requests() <= 63);

    let before = of("vetoed") + of("lost") + of("won");
    let posted = ask(proxy.web(), "POST", "/stuck", "", b"").await;
    assert_eq!(posted.status, 504);
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("bellwether_hedges_total", &[]),
        before,
        "POST is not copied"
    );
}

#[tokio::test]
async fn a_stuck_endpoint_that_loses_against_copies_gains_no_traffic() {
    let never = Arc::new(Notify::new());
    let (hangs, _) = stuck(&never);
    let [fine, more] = ["fine", "more"].map(Upstream::named);
    let cluster = "    slow_start: off\n    outlier_detection: off\n";
    let proxy = proxy(&with(
        HEDGED,
        cluster,
        &[hangs.address(), fine.address(), more.address()],
    ))
    .await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..90 {
        assert_eq!(client.get("/stuck").await.status, 200);
    }
    let share = hangs.requests();
    assert!(share < 30, "less than its third: {share} of 90");
}

/// Believes what its clients say about deadlines.
fn trusting(route: &str, endpoints: &[std::net::SocketAddr]) -> String {
    with(route, "", endpoints).replace(
        "  web: 127.0.0.1:0",
        "  web: { address: \"127.0.0.1:0\", trusted_proxies: [127.0.0.1/32] }",
    )
}

#[tokio::test]
async fn scenario_30_each_hop_is_told_what_is_left() {
    let upstream = Upstream::echo();
    let proxy = proxy(&trusting("", &[upstream.address()])).await;
    let told = |name: &'static str| upstream.last().fields.get(name).map(str::to_owned);
    let millis = || {
        told("x-bellwether-deadline-ms")
            .expect("a deadline")
            .parse::<u64>()
            .expect("a number")
    };
    let mut client = Client::connect(proxy.web()).await;

    client.get("/").await;
    assert!(millis() < 30_000, "less than the route's own 30 s");
    assert!(millis() > 0);
    client
        .ask("GET", "/", "x-bellwether-deadline-ms: 500\r\n", b"")
        .await;
    assert!(millis() < 500, "less than what we were given");
    client
        .ask("GET", "/", "x-envoy-upstream-rq-timeout-ms: 400\r\n", b"")
        .await;
    assert!(millis() < 400);
    assert_eq!(told("x-envoy-upstream-rq-timeout-ms"), None, "that was for us");
    client
        .ask("GET", "/", "x-bellwether-deadline-ms: 9000000\r\n", b"")
        .await;
    assert!(millis() < 30_000, "no more than the route gives");
    client
        .ask(
            "POST",
            "/",
            "grpc-timeout: 700m\r\ncontent-type: application/grpc\r\n",
            b"",
        )
        .await;
    let grpc = told("grpc-timeout").expect("a timeout");
    assert!(
        grpc.ends_with('u') && grpc[..grpc.len() - 1].parse::<u64>().expect("digits") < 700_000,
        "{grpc}"
    );
}

#[tokio::test]
async fn scenario_30_a_second_try_is_told_less_than_the_first() {
    let first = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            tokio::time::sleep(Duration::from_millis(60)).await;
            peer.answer(&request, 503, "", b"x").await?;
        }
        Ok(())
    });
    let second = Upstream::named("second");
    let route = "    circuit_breaker: off\n";
    let config = trusting(route, &[first.address(), second.address()]) + IN_TURN;
    let proxy = proxy(&config).await;
    let fields = "x-bellwether-deadline-ms: 5000\r\n";
    eventually_async("one was tried again", || async {
        ask(proxy.web(), "GET", "/", fields, b"").await;
        first.requests() > 0 && second.requests() > 0
    })
    .await;
    let of = |upstream: &Upstream, attempt: Option<&str>| {
        let all = upstream.received();
        let found = all
            .iter()
            .rev()
            .find(|request| request.fields.get("x-bellwether-attempt") == attempt);
        let told =
            found.and_then(|request| request.fields.get("x-bellwether-deadline-ms").map(str::to_owned));
        told.expect("a deadline").parse::<u64>().expect("a number")
    };
    assert!(
        of(&second, Some("2")) + 50 < of(&first, None),
        "the first try took its time"
    );
}

#[tokio::test]
async fn scenario_30_what_nobody_waits_for_is_not_sent_but_a_broken_clock_black_holes_nothing() {
    let upstream = Upstream::named("app");
    let proxy = proxy(&trusting("", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut refused = 0;
    for _ in 0..50 {
        let answer = client
            .ask("GET", "/", "x-bellwether-deadline-ms: 0\r\n", b"")
            .await;
        match answer.status {
            504 => {
                answer.is_refusal(504, "deadline_expired");
                refused += 1;
            }
            status => assert_eq!(status, 200),
        }
    }
    assert!((1..=10).contains(&refused), "a fifth at most: {refused} of 50");
    assert_eq!(upstream.requests(), 50 - refused, "what was refused was not sent");
    let metrics = proxy.metrics().await;
    let expired = metrics.sum("bellwether_deadline_expired_total", &[("stage", "arrival")]);
    assert_eq!(expired as usize, refused);
    // Among many who have time left, one who has none is refused.
    for _ in 0..10 {
        assert_eq!(
            client
                .ask("GET", "/", "x-bellwether-deadline-ms: 9000\r\n", b"")
                .await
                .status,
            200
        );
    }
    let late = client
        .ask("GET", "/", "x-bellwether-deadline-ms: 0\r\n", b"")
        .await;
    late.is_refusal(504, "deadline_expired");
}

#[tokio::test]
async fn a_client_in_a_hurry_blames_nobody_and_one_that_waits_long_enough_does() {
    let hangs = Upstream::stalls();
    let cluster = "    outlier_detection: { consecutive_local_errors: 2 }\n";
    let other = Upstream::stalls();
    let config = trusting(
        "    retry: off\n    circuit_breaker: off\n",
        &[hangs.address(), other.address()],
    ) + cluster;
    let proxy = proxy(&config).await;
    let failures = || async {
        let metrics = proxy.metrics().await;
        metrics.sum(
            "bellwether_upstream_failures_total",
            &[("reason", "per_try_timeout")],
        )
    };
    for _ in 0..5 {
        let answer = ask(proxy.web(), "GET", "/", "x-bellwether-deadline-ms: 30\r\n", b"").await;
        answer.is_refusal(504, "upstream_timeout");
    }
    assert_eq!(failures().await, 0.0, "30 ms are no time to be judged by");
    let answer = ask(proxy.web(), "GET", "/", "x-bellwether-deadline-ms: 700\r\n", b"").await;
    answer.is_refusal(504, "upstream_timeout");
    assert_eq!(failures().await, 1.0);
    let metrics = proxy.metrics().await;
    let expired = metrics.sum("bellwether_deadline_expired_total", &[("stage", "attempt")]);
    assert_eq!(expired, 6.0);
}

#[tokio::test]
async fn scenario_24_a_write_is_sent_once_unless_it_says_that_it_may_be_sent_again() {
    let resets = Upstream::resets();
    let fine = Upstream::named("fine");
    let config = with(
        "    circuit_breaker: off\n",
        IN_TURN,
        &[resets.address(), fine.address()],
    );
    let proxy = proxy(&config).await;
    for _ in 0..6 {
        let before = (resets.requests(), fine.requests());
        let answer = ask(proxy.web(), "POST", "/", "", b"x").await;
        let sent = resets.requests() + fine.requests() - before.0 - before.1;
        assert_eq!(sent, 1, "sent once, whatever came of it: {answer:?}");
    }
    assert!(resets.requests() > 0);
    let before = resets.requests();
    for _ in 0..6 {
        let answer = ask(proxy.web(), "POST", "/", "idempotency-key: 1\r\n", b"x").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert!(resets.requests() > before, "tried again elsewhere");
}

/// Closes a connection that has been idle for a second.
fn impatient() -> Upstream {
    Upstream::each(|mut peer| async move {
        loop {
            let Ok(next) = tokio::time::timeout(Duration::from_secs(1), peer.request()).await else {
                return Ok(());
            };
            let Some(request) = next? else { return Ok(()) };
            peer.answer(&request, 200, "", b"x").await?;
        }
    })
}

#[tokio::test]
async fn scenario_25_idle_connections_are_closed_before_the_endpoint_does() {
    let upstream = impatient();
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    let mut tasks = tokio::task::JoinSet::new();
    // Gaps around the endpoint's second, in many connections at a time.
    for client in 0..40_u64 {
        let web = proxy.web();
        tasks.spawn(async move {
            let mut failed = 0;
            for request in 0..6_u64 {
                failed += u32::from(get(web, "/").await.status != 200);
                tokio::time::sleep(Duration::from_millis(900 + (client * 7 + request * 31) % 200)).await;
            }
            failed
        });
    }
    let mut failed = 0;
    while let Some(of_client) = tasks.join_next().await {
        failed += of_client.expect("a client");
    }
    let endpoints = proxy.admin_get("/api/v1/clusters/app/endpoints").await.json();
    let limit = endpoints["endpoints"][0]["idle_limit_seconds"]
        .as_f64()
        .expect("a limit");
    assert!(limit < 1.0, "it has learned: {limit}");
    assert_eq!(failed, 0, "whoever lost a race was served by another connection");
    let before = proxy.metrics().await.sum(
        "bellwether_upstream_connection_closed_total",
        &[("reason", "race")],
    );
    for _ in 0..3 {
        assert_eq!(soon("an answer", get(proxy.web(), "/")).await.status, 200);
        tokio::time::sleep(Duration::from_millis(990)).await;
    }
    let after = proxy.metrics().await.sum(
        "bellwether_upstream_connection_closed_total",
        &[("reason", "race")],
    );
    assert_eq!(after, before, "no race is run any more");
}
