//! Circuit breakers, retry budgets and what an answer asks for, through real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{Answer, Client, get};
use crate::support::h2::{H2, collect, uri};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{background, eventually, eventually_async};

/// Opens after four failures, tries again soon, and closes after two probes.
const QUICK: &str = "    retry: off\n    circuit_breaker: { min_requests: 4, open_duration: 100ms, max_open_duration: 150ms, \
                     half_open_requests: 2, ramp: off }\n";

async fn breaker(proxy: &Proxy, id: &str) -> serde_json::Value {
    proxy.admin_get(&format!("/api/v1/breakers/{id}")).await.json()
}

async fn state(proxy: &Proxy, id: &str) -> String {
    breaker(proxy, id).await["state"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

/// An upstream that answers each request with what `script` says then.
fn scripted(script: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Upstream {
    let script = Arc::new(script);
    Upstream::each(move |mut peer| {
        let script = Arc::clone(&script);
        async move {
            while peer.request().await?.is_some() {
                peer.send(&script()).await?;
            }
            Ok(())
        }
    })
}

/// An upstream that fails until told otherwise.
fn failing() -> (Upstream, Arc<AtomicUsize>) {
    let status = Arc::new(AtomicUsize::new(500));
    let told = Arc::clone(&status);
    let upstream = scripted(move || {
        let status = told.load(Ordering::SeqCst);
        format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").into_bytes()
    });
    (upstream, status)
}

#[tokio::test]
async fn a_route_that_keeps_failing_is_stopped_and_comes_back_by_probes() {
    let (upstream, status) = failing();
    let proxy = proxy(&with(QUICK, "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.status, 500);
    }
    client.get("/").await.is_refusal(503, "breaker_open");
    assert_eq!(upstream.requests(), 4, "nobody is asked while it is open");

    // A probe that fails opens it again, for longer.
    eventually_async("a probe", || async { get(proxy.web(), "/").await.status == 500 }).await;
    status.store(200, Ordering::SeqCst);
    eventually_async("it closes", || async {
        get(proxy.web(), "/").await;
        state(&proxy, "route-1").await == "closed"
    })
    .await;
    let metrics = proxy.metrics().await;
    let of = |to: &str, reason: &str| {
        metrics.sum(
            "bellwether_breaker_transitions_total",
            &[("to", to), ("reason", reason)],
        )
    };
    assert_eq!(of("open", "failure_ratio"), 1.0);
    assert!(of("open", "probe_failed") >= 1.0);
    assert_eq!(of("closed", "probes_ok"), 1.0);
    assert!(metrics.sum("bellwether_breaker_calls_total", &[("result", "rejected")]) >= 1.0);
    let events = proxy.admin_get("/api/v1/events?kind=breaker").await.json();
    assert_eq!(events["events"][0]["to"], "open", "{events}");
    assert_eq!(events["events"][0]["evidence"], "4 of 4 failed, 0 slow");
}

/// How long a refusal asks for patience, in seconds.
fn retry_after(refused: &Answer) -> u64 {
    refused.is_refusal(503, "breaker_open");
    let text = refused.fields.get("retry-after").expect("retry-after");
    text.parse().expect("a whole number")
}

#[tokio::test]
async fn scenario_33_a_refusal_says_for_how_long() {
    for (settings, least, most) in [
        // Never zero, which would invite at once.
        ("open_duration: 100ms, max_open_duration: 100ms", 1, 1),
        ("open_duration: 20s, max_open_duration: 25s", 2, 25),
    ] {
        let upstream = Upstream::answers(500, "");
        let route = format!(
            "    retry: off\n    circuit_breaker: {{ min_requests: 4, half_open_requests: 1, {settings} }}\n"
        );
        let proxy = proxy(&with(&route, "", &[upstream.address()])).await;
        let refused = parking_lot::Mutex::new(None);
        eventually_async("it opens", || async {
            let answer = get(proxy.web(), "/").await;
            let opened = answer.rejected() == Some("breaker_open");
            *refused.lock() = Some(answer);
            opened
        })
        .await;
        let after = retry_after(&refused.into_inner().expect("refused"));
        assert!((least..=most).contains(&after), "{settings}: {after}");
    }
}

/// A thousand clients meet a half-open breaker at once: the service sees two at a time and three in all.
#[tokio::test]
async fn scenario_03_a_thousand_clients_are_not_let_loose_on_what_recovers() {
    const CLIENTS: usize = 1000;
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let (open, most, failing) = (
        Arc::<AtomicUsize>::default(),
        Arc::<AtomicUsize>::default(),
        Arc::new(AtomicUsize::new(4)),
    );
    let upstream = {
        let (release, open, most) = (Arc::clone(&release), Arc::clone(&open), Arc::clone(&most));
        Upstream::each(move |mut peer| {
            let (release, open, most) = (Arc::clone(&release), Arc::clone(&open), Arc::clone(&most));
            let failing = Arc::clone(&failing);
            async move {
                while let Some(request) = peer.request().await? {
                    let fails = failing
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                        .is_ok();
                    if fails {
                        peer.answer(&request, 500, "", b"").await?;
                        continue;
                    }
                    most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    release.acquire().await.expect("open").forget();
                    open.fetch_sub(1, Ordering::SeqCst);
                    peer.answer(&request, 200, "", b"").await?;
                }
                Ok(())
            }
        })
    };
    let route = "    retry: off\n    circuit_breaker: { min_requests: 4, open_duration: 100ms, max_open_duration: 150ms, \
                 half_open_requests: 3, half_open_max_in_flight: 2, ramp: off }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    for _ in 0..4 {
        assert_eq!(get(proxy.web(), "/").await.status, 500);
    }
    eventually_async("it is half open", || async {
        state(&proxy, "route-1").await == "half_open"
    })
    .await;

    let mut connections = Vec::new();
    for _ in 0..CLIENTS / 100 {
        connections.push(H2::connect(proxy.web()).await);
    }
    let (refused, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut asked = 0;
    // Two probes in the first wave, the third one in the second.
    for probes in [2, 1] {
        for connection in &mut connections {
            for _ in 0..100 {
                let request = http::Request::get(uri("/")).body(()).expect("a request");
                let (answer, _) = connection.start(request, true).await;
                let (refused, served) = (Arc::clone(&refused), Arc::clone(&served));
                background().spawn(async move {
                    let answer = collect(answer).await.expect("an answer");
                    match answer.status {
                        200 => served.fetch_add(1, Ordering::SeqCst),
                        503 => refused.fetch_add(1, Ordering::SeqCst),
                        other => panic!("{other}"),
                    }
                });
            }
        }
        asked += CLIENTS;
        let probed = served.load(Ordering::SeqCst) + probes;
        eventually("all others are refused", || {
            refused.load(Ordering::SeqCst) == asked - probed
        })
        .await;
        assert_eq!(open.load(Ordering::SeqCst), probes);
        release.add_permits(probes);
        eventually("the probes are answered", || {
            served.load(Ordering::SeqCst) == probed
        })
        .await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 2, "at a time");
    assert_eq!(upstream.requests(), 4 + 3, "in all");
    eventually_async("it closes", || async {
        state(&proxy, "route-1").await == "closed"
    })
    .await;
}

#[tokio::test]
async fn scenario_10_a_probe_that_is_told_to_wait_keeps_it_open_for_so_long() {
    for (asked, least, most) in [(20, 10.0, 30.0), (3600, 15.0, 30.0)] {
        let count = AtomicUsize::new(0);
        let upstream = scripted(move || {
            if count.fetch_add(1, Ordering::SeqCst) < 4 {
                b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".to_vec()
            } else {
                format!("HTTP/1.1 429 x\r\nretry-after: {asked}\r\ncontent-length: 0\r\n\r\n").into_bytes()
            }
        });
        // By itself the second opening would last for a second at most.
        let route = "    retry: off\n    circuit_breaker: { min_requests: 4, open_duration: 300ms, max_open_duration: 30s }\n";
        let proxy = proxy(&with(route, "", &[upstream.address()])).await;
        for _ in 0..4 {
            assert_eq!(get(proxy.web(), "/").await.status, 500);
        }
        eventually_async("a probe is told to wait", || async {
            get(proxy.web(), "/").await;
            breaker(&proxy, "route-1").await["reason"] == "probe_failed"
        })
        .await;
        let asked_so_far = upstream.requests();
        let seen = breaker(&proxy, "route-1").await;
        let left = seen["seconds_left"].as_f64().expect("a time");
        assert_eq!(seen["state"], "open", "{seen}");
        assert!((least..=most).contains(&left), "{asked}: {left}");
        let after = retry_after(&get(proxy.web(), "/").await);
        assert!((5..=30).contains(&after), "{asked}: {after}");
        assert_eq!(upstream.requests(), asked_so_far);
    }
}

#[tokio::test]
async fn scenario_11_an_observing_breaker_refuses_nothing_and_says_what_it_would_have_done() {
    let (upstream, _status) = failing();
    let route = QUICK.replace("{ min", "{ mode: observe, min");
    let proxy = proxy(&with(&route, "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..12 {
        assert_eq!(client.get("/").await.status, 500);
    }
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("bellwether_breaker_calls_total", &[("result", "would_reject")]) >= 1.0);
    assert_eq!(
        metrics.sum("bellwether_breaker_calls_total", &[("result", "rejected")]),
        0.0
    );
}

#[tokio::test]
async fn scenario_08_what_we_refuse_ourselves_is_no_failure() {
    let (upstream, _status) = failing();
    let proxy = proxy(&with(QUICK, "", &[upstream.address()])).await;
    for _ in 0..4 {
        get(proxy.web(), "/").await;
    }
    for _ in 0..20 {
        get(proxy.web(), "/").await;
    }
    let metrics = proxy.metrics().await;
    let failed = metrics.sum("bellwether_endpoint_attempts_total", &[("outcome", "failure")]);
    assert_eq!(
        failed as usize,
        upstream.requests(),
        "only what the endpoint answered"
    );
}

/// Answers of a proxy behind us that it made itself blame nobody here.
#[tokio::test]
async fn scenario_08_what_the_next_proxy_refuses_blames_no_endpoint() {
    let upstream =
        Upstream::sends("HTTP/1.1 503 x\r\nx-bellwether-rejected: overload\r\ncontent-length: 0\r\n\r\n");
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.status, 503);
    assert_eq!(upstream.requests(), 1, "and is not tried again");
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("bellwether_endpoint_attempts_total", &[("outcome", "failure")]),
        0.0
    );
}

#[tokio::test]
async fn scenario_11_an_operator_opens_and_closes_it() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    let order = |method, body| proxy.admin_ask(method, "/api/v1/breakers/route-1", body);
    let answer = order(
        "PUT",
        "{\"state\": \"open\", \"ttl\": \"10m\", \"reason\": \"drill\"}",
    )
    .await;
    assert_eq!(answer.json()["state"], "forced_open", "{answer:?}");
    get(proxy.web(), "/").await.is_refusal(503, "breaker_open");
    assert_eq!(order("DELETE", "").await.json()["state"], "closed");
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    assert_eq!(
        order("PUT", "{\"state\": \"open\", \"ttl\": \"25h\"}")
            .await
            .status,
        400
    );
    assert_eq!(order("PUT", "{\"state\": \"ajar\"}").await.status, 400);
    assert_eq!(proxy.admin_get("/api/v1/breakers/nobody").await.status, 404);

    // It ends by itself.
    order("PUT", "{\"state\": \"open\", \"ttl\": \"200ms\"}").await;
    eventually_async("the order ends", || async {
        get(proxy.web(), "/").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn scenario_11_one_that_is_held_closed_counts_and_does_not_open() {
    let (upstream, _status) = failing();
    let proxy = proxy(&with(QUICK, "", &[upstream.address()])).await;
    let order = "{\"state\": \"closed\", \"ttl\": \"10m\"}";
    let answer = proxy.admin_ask("PUT", "/api/v1/breakers/route-1", order).await;
    assert_eq!(answer.json()["state"], "forced_closed", "{answer:?}");
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..12 {
        assert_eq!(client.get("/").await.status, 500);
    }
    eventually_async("all are counted", || async {
        breaker(&proxy, "route-1").await["window"]["failed"] == 12
    })
    .await;
    assert_eq!(state(&proxy, "route-1").await, "forced_closed");
    proxy.admin_ask("DELETE", "/api/v1/breakers/route-1", "").await;
    for _ in 0..4 {
        get(proxy.web(), "/").await;
    }
    opens(&proxy, "/").await;
}

#[tokio::test]
async fn routes_to_a_cluster_can_share_its_breaker() {
    let (upstream, _status) = failing();
    let breaker = "retry: off, circuit_breaker: { scope: cluster, min_requests: 4 }";
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - {{ match: {{ path_prefix: /a }}, cluster: app, {breaker} }}\n  - {{ cluster: app, \
         {breaker} }}\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    for _ in 0..2 {
        assert_eq!(get(proxy.web(), "/a").await.status, 500);
        assert_eq!(get(proxy.web(), "/b").await.status, 500);
    }
    opens(&proxy, "/a").await;
    opens(&proxy, "/b").await;
    let seen = breaker_list(&proxy).await;
    assert_eq!(seen, ["cluster/app"]);
}

/// Waits until requests for `path` are refused: a request is counted when it is over, which its client may know before
/// another worker does.
async fn opens(proxy: &Proxy, path: &str) {
    eventually_async("the breaker opens", || async {
        get(proxy.web(), path).await.rejected() == Some("breaker_open")
    })
    .await;
}

async fn breaker_list(proxy: &Proxy) -> Vec<String> {
    let list = proxy.admin_get("/api/v1/breakers").await.json();
    let breakers = list["breakers"].as_array().expect("a list").iter();
    breakers
        .map(|breaker| breaker["id"].as_str().unwrap_or("").to_owned())
        .collect()
}

#[tokio::test]
async fn scenario_38_an_open_breaker_stays_open_over_a_reload() {
    let (upstream, _status) = failing();
    let route = "    retry: off\n    circuit_breaker: { min_requests: 4, open_duration: 50s }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    for _ in 0..4 {
        get(proxy.web(), "/").await;
    }
    opens(&proxy, "/").await;
    // Another window, so another object.
    let wider = route.replace("min_requests: 4", "min_requests: 4, window: 30s");
    proxy.write(&with(&wider, "", &[upstream.address()]));
    eventually_async("the reload", || async {
        breaker(&proxy, "route-1").await["window"]["seconds"] == 30.0
    })
    .await;
    get(proxy.web(), "/").await.is_refusal(503, "breaker_open");
}

#[tokio::test]
async fn a_route_says_what_it_calls_a_failure() {
    let upstream = Upstream::answers(404, "nothing");
    let route = format!("{QUICK}    failure_when: {{ status: [404] }}\n");
    let proxy = proxy(&with(&route, "", &[upstream.address()])).await;
    for _ in 0..4 {
        assert_eq!(get(proxy.web(), "/").await.status, 404);
    }
    opens(&proxy, "/").await;
}

#[tokio::test]
async fn slow_answers_open_it_where_that_is_asked_for() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            tokio::time::sleep(Duration::from_millis(60)).await;
            peer.answer(&request, 200, "", b"late").await?;
        }
        Ok(())
    });
    let route = "    circuit_breaker: { min_requests: 4, slow_call_rate: 50%, slow_call_duration: 20ms }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    for _ in 0..4 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    opens(&proxy, "/").await;
}

#[tokio::test]
async fn scenario_28_retries_are_paid_for() {
    let (a, _) = failing();
    let (b, _) = failing();
    let route = "    circuit_breaker: off\n    retry: { num_retries: 1, retry_on: [5xx] }\n";
    let cluster = "    retry_budget: { percent: 10%, min_per_second: 0, window: 60s }\n";
    let proxy = proxy(&with(route, cluster, &[a.address(), b.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..100 {
        assert_eq!(
            client.get("/").await.status,
            500,
            "the endpoint's own answer, not one of ours"
        );
    }
    let retried = a.requests() + b.requests() - 100;
    assert!((9..=10).contains(&retried), "{retried} retries of 100 requests");
    let vetoed = proxy
        .metrics()
        .await
        .sum("bellwether_retries_vetoed_total", &[("reason", "budget")]);
    assert!(vetoed >= 90.0, "{vetoed}");
}

#[tokio::test]
async fn an_answer_that_asks_for_patience_gets_it() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let upstream = scripted(move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => b"HTTP/1.1 503 x\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n".to_vec(),
        1 => b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 503 x\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n".to_vec(),
    });
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.status, 200, "a short wait is waited");
    let answer: Answer = get(proxy.web(), "/").await;
    assert_eq!(
        (answer.status, answer.fields.get("retry-after")),
        (503, Some("30")),
        "a long one is passed on"
    );
    assert_eq!(upstream.requests(), 3);
    let vetoed = proxy
        .metrics()
        .await
        .sum("bellwether_retries_vetoed_total", &[("reason", "pushback")]);
    assert_eq!(vetoed, 1.0);
}

/// Three proxies in a row, each with three tries, before a service that always fails: by how much the load of the
/// service grows, how many requests there were, and how long they took.
async fn amplified(requests: u32, budget: &str) -> (f64, f64) {
    let (service, _status) = failing();
    let layer = |endpoint| {
        let route = "    circuit_breaker: off\n    retry: { num_retries: 2, retry_on: [5xx] }\n";
        with(route, budget, &[endpoint]).replace(
            "  web: 127.0.0.1:0\n",
            "  web: { address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32] }\n",
        )
    };
    let inner = proxy(&layer(service.address())).await;
    let middle = proxy(&layer(inner.web())).await;
    let outer = proxy(&layer(middle.web())).await;
    let began = tokio::time::Instant::now();
    let mut client = Client::connect(outer.web()).await;
    for _ in 0..requests {
        assert_eq!(client.get("/").await.status, 500);
    }
    (
        service.requests() as f64 / f64::from(requests),
        began.elapsed().as_secs_f64(),
    )
}

#[tokio::test]
async fn scenario_26_layers_of_retries_do_not_multiply() {
    const REQUESTS: u32 = 200;
    let bare = "    retry_budget: { percent: 20%, min_per_second: 0, window: 60s }\n";
    let (factor, _) = amplified(REQUESTS, bare).await;
    eprintln!("amplification over three layers: {factor:.2} with a budget of 20 %");
    assert!(factor <= 1.0 + 3.0 * 0.2 + 0.01, "{factor}");
    assert!(factor > 1.05, "it does try again: {factor}");

    // By default a few more per second are allowed, in each layer.
    let (factor, seconds) = amplified(1000, "").await;
    let most = 1.0 + 3.0 * 0.2 + 3.0 * 3.0 * (10.0 + seconds) / 1000.0;
    eprintln!("amplification over three layers: {factor:.2} with the default budget, {seconds:.1} s");
    assert!(factor <= most, "{factor} of {most}");

    // The control: without budgets it is far more, although a retry is never retried.
    let (factor, _) = amplified(REQUESTS, "    retry_budget: off\n").await;
    eprintln!("amplification over three layers: {factor:.2} without a budget");
    assert!(factor > 1.75, "{factor}");
}
