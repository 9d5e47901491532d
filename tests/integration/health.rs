//! Whether an endpoint is used: everybody has an opinion, one is enough to take it out, and it can be seen who.

use serde_json::Value;

use crate::support::client::get;
use crate::support::eventually_async;
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;

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
