//! Endpoints that behave worse than others are set aside, and come back by passing one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{Client, ask, get};
use crate::support::eventually_async;
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;

/// Every endpoint gets its turn, nothing is tried again, and the route's breaker keeps out of it.
const PLAIN: &str = "    retry: off\n    circuit_breaker: off\n";
const IN_TURN: &str = "    load_balancing: round_robin\n    slow_start: off\n";

/// An upstream that answers with the status it was told last.
fn told(status: usize) -> (Upstream, Arc<AtomicUsize>) {
    let status = Arc::new(AtomicUsize::new(status));
    let now = Arc::clone(&status);
    let upstream = Upstream::each(move |mut peer| {
        let now = Arc::clone(&now);
        async move {
            while let Some(request) = peer.request().await? {
                let status = u16::try_from(now.load(Ordering::SeqCst)).unwrap_or(500);
                peer.answer(&request, status, "", b"x").await?;
            }
            Ok(())
        }
    });
    (upstream, status)
}

async fn ejected(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("bellwether_ejections_active", &[])
}

#[tokio::test]
async fn five_gateway_errors_in_a_row_eject_and_one_good_answer_brings_back() {
    let (good, _) = told(200);
    let (bad, status) = told(503);
    let cluster = format!(
        "{IN_TURN}    outlier_detection: {{ rehearsals: false, base_ejection_time: 300ms, max_ejection_time: 400ms }}\n"
    );
    let proxy = proxy(&with(PLAIN, &cluster, &[good.address(), bad.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(client.get("/").await.status == 503);
    }
    assert!(
        (5..=6).contains(&failed),
        "five, and at most one more to probe: {failed}"
    );
    let events = proxy.admin_get("/api/v1/events?kind=ejection").await.json();
    let first = &events["events"][0];
    assert_eq!(
        (&first["to"], &first["reason"]),
        (&"ejected".into(), &"consecutive_gateway".into()),
        "{events}"
    );

    // As long as it fails, only its probes do.
    let before = bad.requests();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..20 {
        client.get("/").await;
    }
    assert!(bad.requests() - before <= 2);

    status.store(200, Ordering::SeqCst);
    let before = bad.requests();
    eventually_async("it is back", || async {
        get(proxy.web(), "/").await;
        bad.requests() > before + 5
    })
    .await;
    let metrics = proxy.metrics().await;
    let found = metrics.sum(
        "bellwether_ejections_total",
        &[("detector", "consecutive_gateway"), ("enforced", "true")],
    );
    assert_eq!(found, 1.0);
    eventually_async("the gauge", || async { ejected(&proxy).await == 0.0 }).await;
}

/// Statuses are fine, only the body never ends: peers that look at heads keep such a host for ever.
#[tokio::test]
async fn resets_in_mid_body_eject() {
    let good = Upstream::answers(200, "ok");
    let bad = Upstream::sends_and_closes("HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\nshort");
    let proxy = proxy(&with(PLAIN, IN_TURN, &[good.address(), bad.address()])).await;
    for _ in 0..40 {
        let mut client = Client::connect(proxy.web()).await;
        drop(client.try_ask("GET", "/", "", b"").await);
    }
    assert!((3..=5).contains(&bad.requests()), "{} requests", bad.requests());
    eventually_async("the gauge", || async { ejected(&proxy).await == 1.0 }).await;
}

#[tokio::test]
async fn the_last_endpoint_is_never_ejected() {
    let (only, _) = told(503);
    let proxy = proxy(&with(PLAIN, IN_TURN, &[only.address()])).await;
    for _ in 0..20 {
        assert_eq!(get(proxy.web(), "/").await.status, 503);
    }
    assert_eq!(only.requests(), 20);
    assert_eq!(ejected(&proxy).await, 0.0);
}

#[tokio::test]
async fn who_observes_says_it_and_does_nothing() {
    let (good, _) = told(200);
    let (bad, _) = told(503);
    let cluster = format!("{IN_TURN}    outlier_detection: {{ rehearsals: false, mode: observe }}\n");
    let proxy = proxy(&with(PLAIN, &cluster, &[good.address(), bad.address()])).await;
    for _ in 0..20 {
        get(proxy.web(), "/").await;
    }
    assert_eq!(bad.requests(), 10);
    let seen = proxy
        .metrics()
        .await
        .sum("bellwether_ejections_total", &[("unenforced_reason", "observe")]);
    assert_eq!(seen, 1.0);
}

#[tokio::test]
async fn off_is_off() {
    let (good, _) = told(200);
    let (bad, _) = told(503);
    let cluster = format!("{IN_TURN}    outlier_detection: off\n");
    let proxy = proxy(&with(PLAIN, &cluster, &[good.address(), bad.address()])).await;
    for _ in 0..20 {
        get(proxy.web(), "/").await;
    }
    assert_eq!(bad.requests(), 10);
}

/// A share of failures too small for any row, found by comparison.
#[tokio::test]
async fn a_share_of_failures_ejects() {
    let (good, _) = told(200);
    let count = Arc::new(AtomicUsize::new(0));
    let bad = Upstream::each(move |mut peer| {
        let count = Arc::clone(&count);
        async move {
            while let Some(request) = peer.request().await? {
                let fails = !count.fetch_add(1, Ordering::SeqCst).is_multiple_of(3);
                peer.answer(&request, if fails { 500 } else { 200 }, "", b"")
                    .await?;
            }
            Ok(())
        }
    });
    let cluster = format!("{IN_TURN}    outlier_detection: {{ rehearsals: false }}\n");
    let proxy = proxy(&with(PLAIN, &cluster, &[good.address(), bad.address()])).await;
    for _ in 0..60 {
        get(proxy.web(), "/").await;
    }
    eventually_async("it is ejected", || async { ejected(&proxy).await == 1.0 }).await;
    let before = bad.requests();
    for _ in 0..20 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    assert_eq!(bad.requests(), before);
}

/// What was learned outlives a reload (scenario 38).
#[tokio::test]
async fn scenario_38_an_ejected_endpoint_stays_out_over_a_reload() {
    let (good, _) = told(200);
    let (bad, _) = told(503);
    let cluster =
        format!("{IN_TURN}    outlier_detection: {{ rehearsals: false, base_ejection_time: 60s }}\n");
    let config = with(PLAIN, &cluster, &[good.address(), bad.address()]);
    let proxy = proxy(&config).await;
    eventually_async("it is out", || async {
        get(proxy.web(), "/").await;
        ejected(&proxy).await == 1.0
    })
    .await;
    let before = bad.requests();
    proxy
        .reload(&config.replace("base_ejection_time: 60s", "base_ejection_time: 60s, window: 20s"))
        .await;
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    assert_eq!(bad.requests(), before);
}

#[tokio::test]
async fn copies_of_requests_find_out_early_that_an_endpoint_works_again() {
    let (good, _) = told(200);
    let (bad, status) = told(500);
    // Its own time would last far longer than any test.
    let of = |rehearsals: bool| {
        format!("{IN_TURN}    outlier_detection: {{ base_ejection_time: 100s, rehearsals: {rehearsals} }}\n")
    };
    let proxy = proxy(&with(PLAIN, &of(true), &[good.address(), bad.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut failed = 0;
    while ejected(&proxy).await == 0.0 {
        failed += usize::from(client.get("/").await.status == 500);
        assert!(failed <= 5, "a surge of five");
    }
    // As long as it fails, copies do, and nobody notices.
    let before = bad.requests();
    eventually_async("it was rehearsed", || async {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
        assert_eq!(ask(proxy.web(), "POST", "/", "", b"x").await.status, 200);
        bad.requests() >= before + 3
    })
    .await;
    assert!(
        bad.received()[before..]
            .iter()
            .all(|request| request.method == "GET"),
        "writes are not copied"
    );
    status.store(200, Ordering::SeqCst);
    eventually_async("it is back", || async {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
        ejected(&proxy).await == 0.0
    })
    .await;
    let events = proxy
        .admin_get("/api/v1/events?kind=ejection")
        .await
        .json()
        .to_string();
    assert!(
        events.contains("surge") && events.contains("rehearsed"),
        "{events}"
    );

    // Without them it stays out.
    status.store(500, Ordering::SeqCst);
    proxy
        .reload(&with(PLAIN, &of(false), &[good.address(), bad.address()]))
        .await;
    while ejected(&proxy).await == 0.0 {
        client.get("/").await;
    }
    status.store(200, Ordering::SeqCst);
    let before = bad.requests();
    for _ in 0..100 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(bad.requests(), before);
}
