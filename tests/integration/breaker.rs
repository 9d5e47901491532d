//! Circuit breakers, retry budgets and what an answer asks for, through real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{Answer, Client, get};
use crate::support::eventually_async;
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;

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
    let refused = client.get("/").await;
    refused.is_refusal(503, "breaker_open");
    let after: u32 = refused
        .fields
        .get("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("retry-after");
    assert!(
        (1..=60).contains(&after),
        "scenario 33: a positive number of seconds, not {after}"
    );
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

#[tokio::test]
async fn an_observing_breaker_refuses_nothing_and_says_what_it_would_have_done() {
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

/// Three proxies in a row before a service that always fails.
#[tokio::test]
async fn scenario_26_layers_of_retries_do_not_multiply() {
    let (service, _status) = failing();
    let layer = |endpoint| {
        let route = "    circuit_breaker: off\n    retry: { num_retries: 2, retry_on: [5xx] }\n";
        let cluster = "    retry_budget: { percent: 20%, min_per_second: 0, window: 60s }\n";
        with(route, cluster, &[endpoint]).replace(
            "  web: 127.0.0.1:0\n",
            "  web: { address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32] }\n",
        )
    };
    let inner = proxy(&layer(service.address())).await;
    let middle = proxy(&layer(inner.web())).await;
    let outer = proxy(&layer(middle.web())).await;
    let mut client = Client::connect(outer.web()).await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.status, 500);
    }
    let factor = service.requests() as f64 / 200.0;
    assert!(factor <= 1.75, "{factor}");
    assert!(factor > 1.05, "it does try again: {factor}");
}
