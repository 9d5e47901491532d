//! What the proxy refuses before anybody else has seen it: rate limits, limits with their queues, shedding, faults.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::client::{Answer, Client, ask, get, request};
use crate::support::h2::H2;
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{background, eventually, eventually_async, soon};

/// Three requests of one user, then one every twenty seconds.
const THREE: &str = "    rate_limit: { rate: 3/m, burst: 3, key: \"header:x-user\" }\n";

#[tokio::test]
async fn a_client_above_its_rate_is_told_when_to_come_again() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with(THREE, "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for left in [2, 1, 0] {
        let answer = client.ask("GET", "/", "x-user: anna\r\n", b"").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.fields.get("ratelimit-policy"),
            Some("\"header:x-user\";q=3;w=60")
        );
        let limit = answer.fields.get("ratelimit").expect("told how it stands");
        assert!(
            limit.starts_with(&format!("\"header:x-user\";r={left};t=")),
            "{limit}"
        );
    }
    let refused = client.ask("GET", "/", "x-user: anna\r\n", b"").await;
    refused.is_refusal(429, "rate_limited");
    let after: u64 = refused
        .fields
        .get("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("seconds");
    assert!((1..=20).contains(&after), "{after}");
    assert!(
        refused
            .fields
            .get("ratelimit")
            .is_some_and(|limit| limit.contains(";r=0;t=")),
        "{refused:?}"
    );
    // Somebody else has a bucket of his own, and so have those who say no name, all together.
    assert_eq!(client.ask("GET", "/", "x-user: ben\r\n", b"").await.status, 200);
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(upstream.requests(), 5);
    let metrics = proxy.metrics().await;
    let refused = [
        ("route", "route-1"),
        ("policy", "header:x-user"),
        ("enforced", "true"),
    ];
    assert_eq!(metrics.sum("bellwether_rate_limited_total", &refused), 1.0);
}

#[tokio::test]
async fn a_limit_that_observes_refuses_nobody_and_counts() {
    let upstream = Upstream::answers(200, "ok");
    let route = THREE.replace("{ rate", "{ mode: observe, rate");
    let proxy = proxy(&with(&route, "", &[upstream.address()])).await;
    for _ in 0..5 {
        let answer = get(proxy.web(), "/").await;
        assert_eq!((answer.status, answer.fields.get("ratelimit")), (200, None));
    }
    let watched = [("enforced", "false")];
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("bellwether_rate_limited_total", &watched), 2.0);
}

#[tokio::test]
async fn several_limits_hold_at_once_and_each_has_its_status() {
    let upstream = Upstream::answers(200, "ok");
    let route = "    rate_limit:\n      - { rate: 100/m, burst: 4 }\n      - { rate: 1/m, burst: 1, key: \"query:q\", status: 503 }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    assert_eq!(client.get("/?q=a").await.status, 200);
    for _ in 0..6 {
        // Refused by the second, it does not use up the first.
        client.get("/?q=a").await.is_refusal(503, "rate_limited");
    }
    for q in ["b", "c", "d"] {
        assert_eq!(client.get(&format!("/?q={q}")).await.status, 200);
    }
    client.get("/?q=e").await.is_refusal(429, "rate_limited");
}

#[tokio::test]
async fn what_was_used_outlives_a_reload_that_changes_the_rate() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with(THREE, "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let wider = THREE.replace("rate: 3/m, burst: 3", "rate: 4/m, burst: 4");
    proxy.reload(&with(&wider, "", &[upstream.address()])).await;
    // Three of four are used: one is left, where a new bucket would have had four.
    assert_eq!(client.get("/").await.status, 200);
    client.get("/").await.is_refusal(429, "rate_limited");
}

#[tokio::test]
async fn a_grpc_call_above_its_rate_is_refused_as_one() {
    let upstream = Upstream::answers(200, "ok");
    let route = "    rate_limit: { rate: 1/m, burst: 1 }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    let call = "content-type: application/grpc\r\n";
    ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
    let refused = ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
    refused.is_refusal(200, "rate_limited");
    assert_eq!(refused.fields.get("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");
    assert!(refused.fields.has("grpc-retry-pushback-ms"), "{refused:?}");
}

#[tokio::test]
async fn a_limit_shared_by_all_proxies_is_refused_as_long_as_it_cannot_be_kept() {
    let route = "    rate_limit: { rate: 1/m, scope: fleet }\n";
    let endpoint = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let config = format!(
        "{}fleet: {{ redis: {{ url: \"redis://127.0.0.1:1\" }} }}\n",
        with(route, "", &[endpoint])
    );
    let finished = crate::support::proxy::Start::new(&config).fail().await;
    assert!(
        finished.stderr.contains("rate_limit.scope"),
        "{}",
        finished.stderr
    );
}

/// An upstream that answers one request for each that it is let go.
struct Holding {
    upstream: Upstream,
    let_go: Arc<Semaphore>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Holding {
    fn new(name: &'static str) -> Self {
        Self::with_room(name, usize::MAX)
    }

    /// The same, failing what comes when there are as many already.
    fn with_room(name: &'static str, room: usize) -> Self {
        let (let_go, now, most) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
        let (gate, running, peak): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) =
            (Arc::clone(&let_go), Arc::clone(&now), Arc::clone(&most));
        let upstream = Upstream::each(move |mut peer| {
            let (gate, running, peak) = (Arc::clone(&gate), Arc::clone(&running), Arc::clone(&peak));
            async move {
                while let Some(request) = peer.request().await? {
                    let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(at_once, Ordering::SeqCst);
                    gate.acquire().await.expect("never closed").forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                    let status = if at_once > room { 500 } else { 200 };
                    peer.answer(&request, status, "", name.as_bytes()).await?;
                }
                Ok(())
            }
        });
        Self {
            upstream,
            let_go,
            now,
            most,
        }
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    async fn holds(&self, count: usize) {
        eventually("the upstream holds requests", || {
            self.now.load(Ordering::SeqCst) == count
        })
        .await;
    }
}

/// A request on a connection of its own that is not waited for.
fn sent(address: SocketAddr, fields: &'static str) -> tokio::task::JoinHandle<Answer> {
    background().spawn(async move { ask(address, "GET", "/", fields, b"").await })
}

async fn queue_length(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("bellwether_upstream_queue_length", &[])
}

async fn queued(proxy: &Proxy, count: f64) {
    eventually_async("requests wait", || async { queue_length(proxy).await == count }).await;
}

async fn status_of(answer: tokio::task::JoinHandle<Answer>) -> (u16, Option<String>) {
    let answer = soon("an answer", answer).await.expect("no panic");
    (answer.status, answer.rejected().map(str::to_owned))
}

/// Waiting is for its turn, not for the time to pass.
const PATIENT: &str = "    limits: { max_in_flight: 2, queue_timeout: 1h }\n";

#[tokio::test]
async fn a_request_above_the_limit_of_its_cluster_waits_for_its_turn() {
    let held = Holding::new("ok");
    let proxy = proxy(&with("    timeout: off\n", PATIENT, &[held.address()])).await;
    let first = [sent(proxy.web(), ""), sent(proxy.web(), "")];
    held.holds(2).await;
    let third = sent(proxy.web(), "");
    queued(&proxy, 1.0).await;
    assert_eq!(held.now.load(Ordering::SeqCst), 2, "it waits here, not there");
    held.let_go.add_permits(3);
    for answer in first {
        assert_eq!(status_of(answer).await, (200, None));
    }
    assert_eq!(status_of(third).await, (200, None));
    assert_eq!(held.most.load(Ordering::SeqCst), 2);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("bellwether_upstream_queue_length", &[]), 0.0);
    assert_eq!(
        metrics.sum("bellwether_upstream_queue_wait_seconds_count", &[]),
        1.0
    );
}

#[tokio::test]
async fn when_every_endpoint_is_full_the_request_waits_for_any_of_them() {
    let (one, other) = (Holding::new("one"), Holding::new("other"));
    let cluster = "    limits: { max_in_flight_per_endpoint: 1, queue_timeout: 1h }\n";
    let endpoints = [one.address(), other.address()];
    let proxy = proxy(&with("    timeout: off\n", cluster, &endpoints)).await;
    let first = [sent(proxy.web(), ""), sent(proxy.web(), "")];
    one.holds(1).await;
    other.holds(1).await;
    let third = sent(proxy.web(), "");
    queued(&proxy, 1.0).await;
    other.let_go.add_permits(2);
    let answer = soon("an answer", third).await.expect("no panic");
    assert_eq!(answer.text(), "other");
    one.let_go.add_permits(1);
    for answer in first {
        assert_eq!(status_of(answer).await, (200, None));
    }
    assert_eq!(
        [&one, &other].map(|held| held.most.load(Ordering::SeqCst)),
        [1, 1]
    );
}

#[tokio::test]
async fn a_full_queue_and_a_long_wait_are_refused_each_by_its_name() {
    let held = Holding::new("ok");
    let cluster = "    limits: { max_in_flight: 1, max_queue: 1, queue_timeout: 1h }\n";
    let proxy = proxy(&with("    timeout: off\n", cluster, &[held.address()])).await;
    let first = sent(proxy.web(), "");
    held.holds(1).await;
    let waits = sent(proxy.web(), "");
    queued(&proxy, 1.0).await;
    let refused = get(proxy.web(), "/").await;
    refused.is_refusal(503, "queue_full");
    assert_eq!(refused.fields.get("retry-after"), Some("1"));
    held.let_go.add_permits(2);
    assert_eq!(status_of(first).await, (200, None));
    assert_eq!(status_of(waits).await, (200, None));

    // The same with little patience.
    proxy
        .reload(&with(
            "    timeout: off\n",
            &cluster.replace("1h", "20ms"),
            &[held.address()],
        ))
        .await;
    let first = sent(proxy.web(), "");
    held.holds(1).await;
    get(proxy.web(), "/").await.is_refusal(503, "queue_timeout");
    // And with a quarter of the time that the request has.
    proxy
        .reload(&with("    timeout: 200ms\n", cluster, &[held.address()]))
        .await;
    get(proxy.web(), "/").await.is_refusal(503, "queue_timeout");
    held.let_go.add_permits(1);
    assert_eq!(status_of(first).await, (200, None));
    let metrics = proxy.metrics().await;
    let shed = |reason| {
        metrics.sum(
            "bellwether_shed_total",
            &[("scope", "cluster"), ("reason", reason)],
        )
    };
    assert_eq!((shed("queue_full"), shed("queue_timeout")), (1.0, 2.0));
    let failed = metrics.sum("bellwether_endpoint_attempts_total", &[("outcome", "failure")]);
    assert_eq!(failed, 0.0, "scenario 8: nobody is blamed");
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_turn_to_the_next() {
    let held = Holding::new("ok");
    let cluster = PATIENT.replace('2', "1");
    let proxy = proxy(&with("    timeout: off\n", &cluster, &[held.address()])).await;
    let first = sent(proxy.web(), "");
    held.holds(1).await;
    let mut leaves = Client::connect(proxy.web()).await;
    leaves.send(request("GET", "/left", "", b"")).await;
    queued(&proxy, 1.0).await;
    drop(leaves);
    queued(&proxy, 0.0).await;
    let next = sent(proxy.web(), "");
    queued(&proxy, 1.0).await;
    held.let_go.add_permits(2);
    assert_eq!(status_of(first).await, (200, None));
    assert_eq!(status_of(next).await, (200, None));
    let targets: Vec<String> = held.upstream.received().into_iter().map(|r| r.target).collect();
    assert_eq!(targets, ["/", "/"], "the one who left was never sent");
}

/// Both limits hold over all workers, whoever is woken by whom.
#[tokio::test]
async fn the_limits_are_exact_over_all_workers() {
    let held = Holding::new("ok");
    held.let_go.add_permits(100_000);
    for limits in ["max_in_flight: 3", "max_in_flight_per_endpoint: 3"] {
        let cluster = format!("    limits: {{ {limits}, queue_timeout: 1h }}\n");
        let proxy = proxy(&with("    timeout: off\n", &cluster, &[held.address()])).await;
        let mut clients = JoinSet::new();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..24 {
            let (address, done) = (proxy.web(), Arc::clone(&done));
            clients.spawn_on(
                async move {
                    let mut client = Client::connect(address).await;
                    for _ in 0..40 {
                        let answer = client.get("/").await;
                        let fine = answer.status == 200 || answer.rejected() == Some("queue_timeout");
                        assert!(fine, "{answer:?}");
                        done.fetch_add(usize::from(answer.status == 200), Ordering::SeqCst);
                    }
                },
                background().handle(),
            );
        }
        while let Some(client) = soon("the clients", clients.join_next()).await {
            client.expect("no panic");
        }
        assert!(done.load(Ordering::SeqCst) > 0);
        let most = held.most.swap(0, Ordering::SeqCst);
        assert!((1..=3).contains(&most), "{limits}: {most} at once");
        // Nothing is left taken and nobody is left waiting.
        let three: Vec<_> = (0..3).map(|_| sent(proxy.web(), "")).collect();
        for answer in three {
            assert_eq!(status_of(answer).await, (200, None), "{limits}");
        }
        assert_eq!(queue_length(&proxy).await, 0.0);
        held.most.store(0, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn what_lasts_takes_no_place_of_what_ends_soon() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            match request.target.as_str() {
                "/tunnel" => {
                    let accept = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: test\r\n\r\n";
                    peer.send(accept).await?;
                    peer.reader.rest().await?;
                    return Ok(());
                }
                "/events" => {
                    let head =
                        b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\n";
                    peer.send(head).await?;
                    peer.reader.rest().await?;
                    return Ok(());
                }
                _ => peer.answer(&request, 200, "", b"ok").await?,
            }
        }
        Ok(())
    });
    let route = "    max_in_flight: 1\n";
    let cluster = "    limits: { max_in_flight: 1, max_in_flight_per_endpoint: 1, max_queue: 0 }\n";
    let proxy = proxy(&with(route, cluster, &[upstream.address()])).await;
    let mut tunnel = Client::connect(proxy.web()).await;
    let ask_for = "connection: upgrade\r\nupgrade: test\r\n";
    tunnel.send(request("GET", "/tunnel", ask_for, b"")).await;
    assert_eq!(tunnel.answer_head().await.0, 101);
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    // Tunnels have as many places of their own as the limit says, and no more.
    let second = ask(proxy.web(), "GET", "/tunnel", ask_for, b"").await;
    second.is_refusal(503, "overflow");
    drop(tunnel);
    // Its line is written when everything else about it is over.
    proxy.logged(|line| line["status"] == 101).await;
    let mut events = Client::connect(proxy.web()).await;
    events.send(request("GET", "/events", "", b"")).await;
    assert_eq!(events.answer_head().await.0, 200);
    eventually_async("there is room beside the stream", || async {
        get(proxy.web(), "/").await.status == 200
    })
    .await;
    drop(events);
}

const TRUSTING: &str = "  web: { address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32], limits: { max_connections_per_ip: 1000 } }\n";

#[tokio::test]
async fn the_last_places_are_kept_for_who_matters() {
    let held = Holding::new("ok");
    let route = "    priority: low\n    timeout: off\n";
    let cluster = "    limits: { max_in_flight: 10, max_queue: 0 }\n";
    let config = with(route, cluster, &[held.address()]).replace("  web: 127.0.0.1:0\n", TRUSTING);
    let proxy = proxy(&config).await;
    let mut tasks = Vec::new();
    for (fields, room) in [
        ("", 7),
        ("x-bellwether-priority: normal\r\n", 9),
        ("x-bellwether-priority: high\r\n", 10),
        ("x-bellwether-priority: critical\r\n", 11),
    ] {
        while tasks.len() < room {
            tasks.push(sent(proxy.web(), fields));
            held.holds(tasks.len()).await;
        }
        ask(proxy.web(), "GET", "/", fields, b"")
            .await
            .is_refusal(503, "overflow");
    }
    // What somebody tries again counts one class lower.
    held.let_go.add_permits(2);
    held.holds(9).await;
    let again = "x-bellwether-priority: normal\r\nx-bellwether-attempt: 2\r\n";
    ask(proxy.web(), "GET", "/", again, b"")
        .await
        .is_refusal(503, "overflow");
    held.let_go.add_permits(9);
    for answer in tasks {
        assert_eq!(status_of(answer).await, (200, None));
    }
    let passed_on = |request: crate::support::upstream::Received| {
        request.fields.get("x-bellwether-priority").map(str::to_owned)
    };
    let told: Vec<_> = held
        .upstream
        .received()
        .into_iter()
        .filter_map(passed_on)
        .collect();
    assert_eq!(told.len(), 11, "every one says how much it matters");
    assert_eq!(told.iter().filter(|word| *word == "low").count(), 7);
}

#[tokio::test]
async fn a_stranger_cannot_say_that_it_matters() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    priority: low\n", "", &[upstream.address()])).await;
    ask(
        proxy.web(),
        "GET",
        "/",
        "x-bellwether-priority: critical\r\n",
        b"",
    )
    .await;
    assert_eq!(upstream.only().fields.all("x-bellwether-priority"), ["low"]);
}

const CLASSES: [&str; 3] = [
    "x-bellwether-priority: low\r\n",
    "x-bellwether-priority: normal\r\n",
    "x-bellwether-priority: high\r\n",
];

/// A service with room for a hundred, which fails what is above that, and three hundred who want it at once.
#[tokio::test]
async fn scenario_34_a_service_at_three_times_its_capacity_does_what_it_can() {
    let held = Holding::with_room("ok", 100);
    let route = "    retry: off\n    circuit_breaker: off\n    timeout: off\n";
    let config = |limits: &str| {
        let cluster = format!("    outlier_detection: off\n{limits}");
        with(route, &cluster, &[held.address()]).replace("  web: 127.0.0.1:0\n", TRUSTING)
    };
    let guarded = proxy(&config("    limits: { max_in_flight: 100, max_queue: 0 }\n")).await;
    // The least important come first, and then the most important: either way all of the service is used, and not more.
    let [low, normal, high] = CLASSES;
    for rush in [
        [(low, 70), (normal, 90), (high, 100)],
        [(high, 100), (normal, 100), (low, 100)],
    ] {
        let mut admitted = Vec::new();
        for (class, room) in rush {
            let asked: Vec<_> = (0..100).map(|_| sent(guarded.web(), class)).collect();
            let shed = 100 - (room - admitted.len());
            eventually("the rest is refused", || {
                asked.iter().filter(|answer| answer.is_finished()).count() == shed
            })
            .await;
            held.holds(room).await;
            for answer in asked {
                if answer.is_finished() {
                    assert_eq!(status_of(answer).await, (503, Some("overflow".to_owned())));
                } else {
                    admitted.push(answer);
                }
            }
        }
        held.let_go.add_permits(100);
        for answer in admitted {
            assert_eq!(status_of(answer).await, (200, None), "what is let in is done");
        }
        held.holds(0).await;
        // A place is given back when the answer is complete, which its client may know a moment earlier.
        eventually_async("every place is free again", || async {
            let metrics = guarded.metrics().await;
            metrics.sum("bellwether_requests_in_flight", &[("route", "route-1")]) == 0.0
        })
        .await;
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 100);

    // Without the limit it is not the proxy that refuses, but the service that fails.
    let open = proxy(&config("")).await;
    let asked: Vec<_> = (0..300).map(|_| sent(open.web(), CLASSES[0])).collect();
    held.holds(300).await;
    held.let_go.add_permits(300);
    let mut failed = 0;
    for answer in asked {
        failed += usize::from(status_of(answer).await.0 == 500);
    }
    assert_eq!(failed, 200);
}

/// Everything this proxy refuses by itself, seen by the one before it: nobody is blamed, nothing is tried again.
#[tokio::test]
async fn scenario_08_what_is_refused_here_blames_nobody_here_nor_at_the_hop_above() {
    let held = Holding::new("ok");
    let route = "  - match: { path: /rate }\n    cluster: app\n    rate_limit: { rate: 1/h, burst: 1 }\n\
                 \x20 - match: { path: /fault }\n    cluster: app\n    fault: { abort: { status: 503 } }\n\
                 \x20 - cluster: app\n    timeout: off\n";
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n{route}clusters:\n  app:\n    limits: {{ max_in_flight: 1, max_queue: 0 }}\n    \
         endpoints: [{}]\n",
        held.address()
    );
    let inner = proxy(&config).await;
    // One bad answer would eject the inner proxy, and each would be tried again.
    let above =
        "    circuit_breaker: { min_requests: 3 }\n    retry: { num_retries: 3, retry_on: [5xx, 429] }\n";
    let cluster = "    outlier_detection: { consecutive_gateway_errors: 1, consecutive_local_errors: 1 }\n";
    let outer = proxy(&with(above, cluster, &[inner.web()])).await;
    held.let_go.add_permits(1);
    assert_eq!(get(outer.web(), "/rate").await.status, 200);
    let busy = sent(inner.web(), "");
    held.holds(1).await;
    for _ in 0..5 {
        for (target, reason) in [
            ("/rate", "rate_limited"),
            ("/fault", "fault_injected"),
            ("/", "overflow"),
        ] {
            let answer = get(outer.web(), target).await;
            assert_eq!(answer.rejected(), Some(reason), "{answer:?}");
        }
    }
    held.let_go.add_permits(1);
    assert_eq!(status_of(busy).await, (200, None));
    assert_eq!(held.upstream.requests(), 2);
    for proxy in [&inner, &outer] {
        let metrics = proxy.metrics().await;
        let of = |outcome| metrics.sum("bellwether_endpoint_attempts_total", &[("outcome", outcome)]);
        assert_eq!((of("failure"), of("pushback")), (0.0, 0.0));
        assert_eq!(
            metrics.sum("bellwether_ejections_total", &[("enforced", "true")]),
            0.0
        );
        assert_eq!(
            metrics.sum("bellwether_breaker_calls_total", &[("result", "rejected")]),
            0.0
        );
    }
    let metrics = outer.metrics().await;
    assert_eq!(
        metrics.sum("bellwether_upstream_attempts_total", &[]),
        16.0,
        "each was sent once"
    );
}

#[tokio::test]
async fn faults_come_as_they_are_asked_for_and_only_to_those_who_ask() {
    let upstream = Upstream::answers(200, "ok");
    let route = "    timeout: 1s\n    fault: { require_header: x-chaos, delay: { duration: 50ms }, abort: { status: 418 } }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    let answer = ask(proxy.web(), "GET", "/", "x-chaos: 1\r\n", b"").await;
    answer.is_refusal(418, "fault_injected");
    let call = "x-chaos: 1\r\ncontent-type: application/grpc\r\n";
    let answer = ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
    assert_eq!(answer.fields.get("grpc-status"), Some("2"), "{answer:?}");
    assert_eq!(upstream.requests(), 1);
    let line = proxy
        .logged(|line| line["reason"] == "fault_injected" && line["status"] == 418)
        .await;
    assert_eq!(line["attempts"], 0);
}

/// A delay on purpose uses up nobody's time, so it makes nobody look late.
#[tokio::test]
async fn a_delay_on_purpose_is_not_part_of_the_timeout() {
    let upstream = Upstream::answers(200, "ok");
    let route = "    timeout: 300ms\n    fault: { delay: { duration: 600ms } }\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    let line = proxy.logged(|line| line["status"] == 200).await;
    assert!(
        line["t_total"].as_f64().is_some_and(|total| total >= 0.5),
        "{line}"
    );
}

/// Two clusters, and a route that goes to the second when the first cannot help.
fn falling_back(route: &str, cluster: &str, first: SocketAddr, second: SocketAddr) -> String {
    format!(
        "{}  spare:\n    endpoints: [{second}]\n",
        with(
            &format!("    fallback: {{ cluster: spare }}\n{route}"),
            cluster,
            &[first]
        )
    )
}

#[tokio::test]
async fn a_route_falls_back_to_another_cluster() {
    let (bad, spare) = (Upstream::answers(503, "bad"), Upstream::echo());
    let route = "    request_headers: { add: { x-added: once } }\n";
    let config = falling_back(
        route,
        "    outlier_detection: off\n",
        bad.address(),
        spare.address(),
    );
    let proxy = proxy(&config).await;
    let answer = ask(proxy.web(), "GET", "/a?b=1", "x-own: 1\r\n", b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let received = spare.only();
    assert_eq!(received.target, "/a?b=1");
    assert_eq!(
        received.fields.all("x-added"),
        ["once"],
        "the request as it came, edited once"
    );
    assert_eq!(received.fields.all("via").len(), 1);
    assert_eq!(bad.requests(), 2, "after what retries could do");
    // What may have been executed is not sent to somebody else.
    let answer = ask(proxy.web(), "POST", "/", "", b"pay").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "bad"));
    assert_eq!(spare.requests(), 1);
    let metrics = proxy.metrics().await;
    let fell = metrics.sum("bellwether_fallbacks_total", &[("reason", "retry_exhausted")]);
    assert_eq!(fell, 1.0);
}

#[tokio::test]
async fn an_open_breaker_and_a_full_cluster_are_reasons_to_fall_back() {
    let (bad, spare) = (Upstream::answers(500, "bad"), Upstream::answers(200, "spare"));
    let route = "    retry: off\n    circuit_breaker: { min_requests: 2, open_duration: 50s }\n";
    let when = "fallback: { when: [breaker_open, overflow], cluster: spare }";
    let config =
        falling_back(route, "", bad.address(), spare.address()).replace("fallback: { cluster: spare }", when);
    let proxy = proxy(&config).await;
    for _ in 0..2 {
        assert_eq!(
            get(proxy.web(), "/").await.status,
            500,
            "that is not among the reasons"
        );
    }
    eventually_async("the breaker opens", || async {
        get(proxy.web(), "/").await.text() == "spare"
    })
    .await;
    // Even what must not be sent twice: nobody has seen it.
    let answer = ask(proxy.web(), "POST", "/", "", b"pay").await;
    assert_eq!(answer.text(), "spare");
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("bellwether_fallbacks_total", &[("reason", "breaker_open")]) >= 2.0);
}

#[tokio::test]
async fn a_fallback_gets_the_time_that_the_first_cluster_has_used_up() {
    let (slow, spare) = (Upstream::stalls(), Upstream::answers(200, "spare"));
    let config = falling_back("    timeout: 200ms\n", "", slow.address(), spare.address());
    let proxy = proxy(&config).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "spare");
    // But no more than the client itself is ready to wait.
    let call = "content-type: application/grpc\r\ngrpc-timeout: 100m\r\nidempotency-key: 1\r\n";
    let answer = ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
    assert_eq!(answer.rejected(), Some("upstream_timeout"), "{answer:?}");
}

#[tokio::test]
async fn a_fallback_of_our_own_says_why_and_is_not_to_be_kept() {
    let refusing = Upstream::refuses();
    let route = "    fallback: { when: [retry_exhausted, no_endpoint], direct_response: { status: 200, body: \"later\\n\", headers: { cache-control: max-age=60 } } }\n";
    let proxy = proxy(&with(route, "", &[refusing.address()])).await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "later\n"));
    assert_eq!(answer.rejected(), Some("connect_failed"));
    assert_eq!(answer.fields.all("cache-control"), ["no-store"]);
    let call = "content-type: application/grpc\r\n";
    let answer = ask(proxy.web(), "POST", "/a.B/C", call, b"").await;
    assert_eq!(answer.fields.get("grpc-message"), Some("later"), "{answer:?}");
    assert_eq!(answer.fields.get("x-bellwether-outcome"), Some("not-executed"));
}

/// The configuration of a process that may use so much memory.
fn may_use(config: &str, memory: &str) -> String {
    format!(
        "{config}runtime:\n  worker_threads: 2\n  overload: {{ max_memory: {memory} }}\n  drain: {{ min: 300ms, max: 20s }}\n  \
         reload: {{ debounce: 50ms }}\n"
    )
}

async fn level(proxy: &Proxy, level: &str) {
    eventually_async("the level is reached", || async {
        let metrics = proxy.metrics().await;
        metrics.sum("bellwether_overload_level", &[("level", level)]) == 1.0
    })
    .await;
}

/// Content without end, as fast as it is taken.
async fn flows(mut peer: crate::support::upstream::Peer) -> std::io::Result<()> {
    while let Some(request) = peer.request().await? {
        if request.target != "/flow" {
            peer.answer(&request, 200, "", b"ok").await?;
            continue;
        }
        peer.send(b"HTTP/1.1 200 x\r\ncontent-length: 9000000000\r\n\r\n")
            .await?;
        loop {
            peer.send(&[b'x'; 64 * 1024]).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn scenario_35_clients_that_do_not_read_cost_no_more_than_the_limit() {
    const CAP: u64 = 128 * 1024 * 1024;
    let upstream = Upstream::each(flows);
    let config = may_use(&with("", "", &[upstream.address()]), "128MiB");
    let proxy = proxy(&config).await;
    let mut clients = Vec::new();
    for _ in 0..60 {
        let mut client = Client::connect(proxy.web()).await;
        client.send(request("GET", "/flow", "", b"")).await;
        assert_eq!(client.answer_head().await.0, 200);
        clients.push(client);
    }
    for _ in 0..20 {
        let memory = proxy.memory();
        assert!(memory < CAP, "{memory}");
        assert_eq!(proxy.admin_get("/readyz").await.status, 200);
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("bellwether_requests_in_flight", &[("route", "route-1")]),
        60.0
    );
}

#[tokio::test]
async fn scenario_35_a_process_in_danger_gives_up_what_matters_least_and_recovers() {
    let upstream = Upstream::each(flows);
    let important = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: {{ path: /high }}\n    cluster: app\n    priority: high\n  - cluster: \
         app\nclusters:\n  app:\n    endpoints: [{}]\n",
        upstream.address()
    );
    let proxy = proxy(&may_use(&important, "4GiB")).await;
    let (mut normal, mut high) = (
        Client::connect(proxy.web()).await,
        Client::connect(proxy.web()).await,
    );
    assert_eq!(normal.get("/").await.status, 200);
    assert_eq!(high.get("/high").await.status, 200);
    let mut large = Client::connect(proxy.web()).await;
    large.send(request("GET", "/flow", "", b"")).await;
    assert_eq!(large.answer_head().await.0, 200);
    let flowed = large.reader.swallow(4 << 20);
    soon("much has flowed", flowed).await.expect("content");
    let cut = background().spawn(async move { large.reader.swallow(8_000_000_000).await.is_err() });

    proxy.reload(&may_use(&important, "1MiB")).await;
    level(&proxy, "critical").await;
    normal.get("/").await.is_refusal(503, "overload");
    let answer = high.get("/high").await;
    assert_eq!((answer.status, answer.keep_alive), (200, false));
    assert!(soon("the large one is cut", cut).await.expect("no panic"));
    assert_eq!(
        proxy.admin_get("/readyz").await.status,
        200,
        "operators and probes are served"
    );
    let mut late = Client::connect(proxy.web()).await;
    late.send(request("GET", "/", "", b"")).await;
    let accepted = proxy
        .metrics()
        .await
        .sum("bellwether_downstream_connections_total", &[]);
    assert_eq!(accepted, 3.0, "the fourth is not served");

    proxy.reload(&may_use(&important, "4GiB")).await;
    // A busy machine may keep it elevated.
    eventually_async("the danger is over", || async {
        let critical = [("level", "critical")];
        proxy.metrics().await.sum("bellwether_overload_level", &critical) == 0.0
    })
    .await;
    assert_eq!(late.answer().await.status, 200);
    let metrics = proxy.metrics().await;
    let shed = [
        ("scope", "process"),
        ("priority", "normal"),
        ("reason", "overload"),
    ];
    assert_eq!(metrics.sum("bellwether_shed_total", &shed), 1.0);
    let events = proxy.admin_get("/api/v1/events?kind=overload").await.json();
    let told = events["events"].as_array().expect("events").iter();
    let told = told.filter(|event| event["to"] == "critical" && event["reason"] == "memory");
    assert_eq!(told.count(), 1, "{events}");
    assert!(
        proxy.stderr().contains("overload: critical instead of"),
        "{}",
        proxy.stderr()
    );
}

#[tokio::test]
async fn in_critical_danger_http_2_clients_are_sent_away_and_idle_ones_with_their_next_request() {
    let upstream = Upstream::answers(200, "ok");
    let important = with("    priority: critical\n", "", &[upstream.address()]);
    let proxy = proxy(&may_use(&important, "4GiB")).await;
    let mut client = H2::connect(proxy.web()).await;
    assert_eq!(client.get("/").await.status, 200);
    // The control: with enough memory it stays.
    assert_eq!(client.get("/").await.status, 200);
    proxy.reload(&may_use(&important, "1MiB")).await;
    level(&proxy, "critical").await;
    // The request that was on its way is still answered.
    assert_eq!(client.get("/").await.status, 200);
    soon("GOAWAY", client.ended()).await.expect("a clean end");
}

#[tokio::test]
async fn an_overload_guard_that_observes_gives_nothing_up() {
    let upstream = Upstream::answers(200, "ok");
    let config = may_use(&with("", "", &[upstream.address()]), "1MiB, mode: observe");
    let proxy = proxy(&config).await;
    level(&proxy, "critical").await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
}

#[tokio::test]
async fn scenario_36_the_limit_learns_that_a_service_has_become_slower() {
    let millis = Arc::new(AtomicUsize::new(20));
    let told = Arc::clone(&millis);
    let upstream = Upstream::each(move |mut peer| {
        let told = Arc::clone(&told);
        async move {
            while let Some(request) = peer.request().await? {
                tokio::time::sleep(Duration::from_millis(told.load(Ordering::SeqCst) as u64)).await;
                peer.answer(&request, 200, "", b"ok").await?;
            }
            Ok(())
        }
    });
    let cluster = "    adaptive_concurrency: { mode: enforce, min: 2, max: 200 }\n";
    let proxy = proxy(&with("", cluster, &[upstream.address()])).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    let come = |clients: &mut JoinSet<()>| {
        for _ in 0..24 {
            let (address, stop) = (proxy.web(), Arc::clone(&stop));
            let client = async move {
                let mut client = Client::connect(address).await;
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get("/").await;
                    // While it tries whether half the limit makes answers faster, it refuses or lets wait.
                    let refused = matches!(answer.rejected(), Some("overload" | "queue_timeout"));
                    assert!(answer.status == 200 || refused, "{answer:?}");
                    if answer.status != 200 {
                        // Who is refused comes again a little later, and leaves the machine to the others.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            };
            clients.spawn_on(client, background().handle());
        }
    };
    come(&mut clients);
    let reading = async |name: &str| {
        proxy
            .metrics()
            .await
            .sum(&format!("bellwether_concurrency_{name}"), &[])
    };
    eventually_async("it knows what is usual", || async {
        reading("rtt_long_seconds").await >= 0.02 && reading("limit").await < 200.0
    })
    .await;
    // As many a second are more at once when they take longer. The limit is at most twice of what was: it is in use now,
    // and so more is known than an average of a minute would tell.
    millis.store(80, Ordering::SeqCst);
    come(&mut clients);
    eventually_async(
        "it has learned what is usual now, and lets as many in",
        || async { reading("rtt_long_seconds").await >= 0.05 && reading("limit").await >= 8.0 },
    )
    .await;
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = soon("the clients", clients.join_next()).await {
        client.expect("no panic");
    }
    assert_eq!(
        proxy
            .metrics()
            .await
            .sum("bellwether_concurrency_would_reject_total", &[]),
        0.0
    );
}
