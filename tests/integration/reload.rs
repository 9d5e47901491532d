//! A new configuration takes the place of the old one: whole or not at all, without a request failing, with everything
//! that was learned.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::client::{Client, get};
use crate::support::load::Load;
use crate::support::proxy::{Proxy, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

/// A configuration that differs from turn to turn, and that only commands reload.
fn turn(number: usize, upstreams: &[&Upstream]) -> String {
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    let timeout = format!("    timeout: {}s\n", 20 + number % 7);
    with(
        &timeout,
        &format!("    connect_timeout: {}ms\n", 900 + number % 5),
        &endpoints,
    ) + "runtime:\n  worker_threads: 2\n  reload: { watch: false }\n"
}

async fn reload_by_command(proxy: &Proxy) {
    let answer = proxy.admin_post("/api/v1/reload", "{}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn scenario_38_a_hundred_reloads_under_load_fail_no_request_and_leak_nothing() {
    let (a, b) = (Upstream::answers(200, "ok"), Upstream::answers(200, "ok"));
    let proxy = proxy(&turn(0, &[&a, &b])).await;
    let warm = Load::get(proxy.web(), 4);
    warm.more(100).await;
    warm.stop_without_failure().await;
    let (descriptors, metrics) = (proxy.descriptors(), proxy.metrics().await);

    let (get, post) = (Load::get(proxy.web(), 2), Load::post(proxy.web(), 2));
    for number in 1..=100 {
        // Endpoints come and go as well.
        let both = [&a, &b];
        proxy.write(&turn(number, if number % 3 == 0 { &both[..1] } else { &both }));
        reload_by_command(&proxy).await;
    }
    get.more(20).await;
    let (get, post) = (
        get.stop_without_failure().await,
        post.stop_without_failure().await,
    );
    // No connection was cut, so each client has needed one.
    assert_eq!(get.connects + post.connects, 4);

    let after = proxy.metrics().await;
    let reloads = |metrics: &crate::support::proxy::Metrics| {
        metrics.sum("bellwether_config_reloads_total", &[("result", "applied")])
    };
    assert!(
        reloads(&after) >= reloads(&metrics) + 100.0,
        "{} reloads",
        reloads(&after)
    );
    eventually("descriptors are given back", || {
        proxy.descriptors() <= descriptors + 4
    })
    .await;
}

/// What was learned about routes and endpoints that have seen trouble, apart from the time that passes.
async fn learned(proxy: &Proxy) -> serde_json::Value {
    let mut breaker = proxy.admin_get("/api/v1/breakers/broken").await.json();
    let mut endpoints = proxy.admin_get("/api/v1/clusters/flaky/endpoints").await.json()["endpoints"].take();
    assert!(breaker["seconds_left"].as_f64().expect("it is open") > 0.0);
    for passing in ["seconds_left", "settings"] {
        breaker[passing].take();
    }
    for endpoint in endpoints.as_array_mut().expect("a list") {
        // Idle connections of before have ended, or not yet.
        for passing in ["connections", "grounds"] {
            endpoint[passing].take();
        }
        if let Some(ejected) = endpoint["ejected"].as_object_mut() {
            ejected.remove("seconds_left");
        }
    }
    serde_json::json!({ "breaker": breaker, "endpoints": endpoints })
}

#[tokio::test]
async fn scenario_38_a_hundred_reloads_change_nothing_that_was_learned() {
    let (good, steady) = (Upstream::answers(200, "ok"), Upstream::answers(200, "ok"));
    let (bad, broken) = (Upstream::answers(503, ""), Upstream::answers(500, ""));
    let config = |number: usize| {
        format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - name: broken\n    match: {{ path_prefix: /broken }}\n    \
             cluster: broken\n    retry: off\n    timeout: {}s\n    circuit_breaker: {{ min_requests: 4, open_duration: 100s, \
             max_open_duration: 200s }}\n  - name: flaky\n    match: {{ path_prefix: /flaky }}\n    cluster: flaky\n    \
             retry: off\n    circuit_breaker: off\n  - cluster: app\n    timeout: {}s\nclusters:\n  broken:\n    \
             endpoints: [{}]\n  flaky:\n    endpoints: [{}, {}]\n    load_balancing: round_robin\n    connect_timeout: {}ms\n    \
             outlier_detection: {{ rehearsals: false, base_ejection_time: 100s, max_ejection_time: 200s }}\n  app:\n    endpoints: [{}]\n\
             runtime:\n  worker_threads: 2\n  reload: {{ watch: false }}\n",
            20 + number % 7,
            20 + number % 5,
            broken.address(),
            good.address(),
            bad.address(),
            900 + number % 3,
            steady.address(),
        )
    };
    let proxy = proxy(&config(0)).await;
    eventually_async("the breaker opens", || async {
        get(proxy.web(), "/broken").await.rejected() == Some("breaker_open")
    })
    .await;
    eventually_async("the bad one is out", || async {
        get(proxy.web(), "/flaky").await;
        proxy.metrics().await.sum("bellwether_ejections_active", &[]) == 1.0
    })
    .await;
    let (before, asked) = (learned(&proxy).await, (broken.requests(), bad.requests()));

    let loads = [Load::get(proxy.web(), 2), Load::post(proxy.web(), 2)];
    let mut warm = (0, 0);
    for number in 1..=110 {
        proxy.write(&config(number));
        reload_by_command(&proxy).await;
        if number == 10 {
            warm = (proxy.descriptors(), proxy.memory());
        }
    }
    let reloaded = (proxy.descriptors(), proxy.memory());
    for load in loads {
        load.more(20).await;
        load.stop_without_failure().await;
    }
    assert_eq!(learned(&proxy).await, before);
    get(proxy.web(), "/broken").await.is_refusal(503, "breaker_open");
    for _ in 0..10 {
        assert_eq!(get(proxy.web(), "/flaky").await.status, 200);
    }
    assert_eq!(
        (broken.requests(), bad.requests()),
        asked,
        "nobody was asked again"
    );
    assert!(reloaded.0 <= warm.0 + 4, "descriptors: {warm:?} {reloaded:?}");
    let grown = reloaded.1.saturating_sub(warm.1);
    assert!(grown < 16 << 20, "{grown} bytes");
    let events = proxy.admin_get("/api/v1/events?kind=breaker").await.json();
    assert_eq!(events["events"].as_array().map(Vec::len), Some(1), "{events}");
}

#[tokio::test]
async fn a_changed_file_is_noticed_however_it_is_changed() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let proxy = proxy(&to(&[a.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "a");
    // Replaced by rename.
    proxy.reload(&to(&[b.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "b");
    // Written in place.
    let text = std::fs::read_to_string(proxy.config()).expect("a file");
    let back = text.replace(&b.address().to_string(), &a.address().to_string());
    std::fs::write(proxy.config(), back).expect("a writable folder");
    eventually_async("the file is noticed", || async {
        get(proxy.web(), "/").await.text() == "a"
    })
    .await;
}

#[tokio::test]
async fn a_log_beside_the_configuration_does_not_keep_the_watch_busy() {
    const LINES: u64 = 1000;
    const SIZE: usize = 100 * 1024;
    let upstream = Upstream::answers(200, "ok");
    // Large, so that reading it shows in what the process reads.
    let config = to(&[upstream.address()])
        + "runtime:\n  worker_threads: 1\n  drain: { min: 10ms, max: 20s }\n  reload: { debounce: 1s }\n"
        + &"# a long story\n".repeat(SIZE / 15);
    let proxy = proxy(&config).await;
    let read = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", proxy.pid())).expect("a process");
        let line = io
            .lines()
            .find(|line| line.starts_with("rchar:"))
            .expect("a count");
        line[6..].trim().parse::<u64>().expect("a number")
    };
    let before = read();
    for line in 0..LINES {
        std::fs::write(proxy.folder().join("busy.log"), line.to_string()).expect("a writable folder");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let readings = (read() - before) / SIZE as u64;
    assert!(readings < LINES / 10, "{readings} readings for {LINES} lines");
    // What matters is still seen.
    proxy.reload(&config.replace("min: 10ms", "min: 20ms")).await;
}

#[tokio::test]
async fn a_swapped_symlink_is_noticed() {
    // As a ConfigMap is mounted: a link to a folder, which is swapped.
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let proxy = proxy(&to(&[a.address()])).await;
    let text = std::fs::read_to_string(proxy.config()).expect("a file");
    let folder = proxy.folder();
    for (name, address) in [("v1", a.address()), ("v2", b.address())] {
        std::fs::create_dir(folder.join(name)).expect("a writable folder");
        let text = text.replace(&a.address().to_string(), &address.to_string());
        std::fs::write(folder.join(name).join("bellwether.yaml"), text).expect("a writable folder");
    }
    let swap = |version: &str| {
        std::os::unix::fs::symlink(version, folder.join("data.new")).expect("a writable folder");
        std::fs::rename(folder.join("data.new"), folder.join("..data")).expect("a writable folder");
    };
    swap("v1");
    std::os::unix::fs::symlink("..data/bellwether.yaml", folder.join("link.new")).expect("a writable folder");
    std::fs::rename(folder.join("link.new"), proxy.config()).expect("a writable folder");
    eventually_async("the link is read", || async {
        get(proxy.web(), "/").await.text() == "a"
    })
    .await;
    swap("v2");
    eventually_async("the swap is noticed", || async {
        get(proxy.web(), "/").await.text() == "b"
    })
    .await;
}

#[tokio::test]
async fn sighup_reloads() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let proxy = proxy(&turn(0, &[&a])).await;
    proxy.write(&turn(0, &[&b]));
    proxy.signal(Signal::HUP);
    eventually_async("the file is read", || async {
        get(proxy.web(), "/").await.text() == "b"
    })
    .await;
}

#[tokio::test]
async fn scenario_39_a_broken_file_changes_nothing_and_says_where_and_why() {
    let upstream = Upstream::named("a");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut kept = Client::connect(proxy.web()).await;
    assert_eq!(kept.get("/").await.text(), "a");
    proxy.write(&to(&[upstream.address()]).replace("cluster: app", "cluster: apps"));
    eventually_async("the failure is counted", || async {
        proxy.reloads("rejected").await >= 1.0
    })
    .await;
    assert_eq!(kept.get("/").await.text(), "a");
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("bellwether_config_last_reload_successful", &[]), 0.0);

    let answer = proxy.admin_post("/api/v1/reload", "{}").await;
    assert_eq!(answer.status, 422, "{answer:?}");
    let text = answer.json()["text"].as_str().expect("a text").to_owned();
    for said in [&text, &proxy.stderr()] {
        for part in ["E0401", "`apps`", "bellwether.yaml:4:14", "did you mean `app`"] {
            assert!(said.contains(part), "no {part:?} in\n{said}");
        }
    }
    let diagnostic = &answer.json()["report"]["diagnostics"][0];
    assert!(diagnostic.is_object(), "for programs too: {answer:?}");

    proxy
        .reload(&with("    timeout: 9s\n", "", &[upstream.address()]))
        .await;
    assert_eq!(
        proxy
            .metrics()
            .await
            .sum("bellwether_config_last_reload_successful", &[]),
        1.0
    );
    assert_eq!(kept.get("/").await.text(), "a");
}

#[tokio::test]
async fn a_port_that_cannot_be_bound_keeps_the_old_configuration() {
    let upstream = Upstream::named("a");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let text = to(&[upstream.address()]);
    let with_taken = text.replace(
        "listeners:\n",
        &format!("listeners:\n  other: {}\n", taken.local_addr().expect("bound")),
    );
    proxy.write(&with_taken);
    eventually_async("the failure is counted", || async {
        proxy.reloads("rejected").await >= 1.0
    })
    .await;
    assert_eq!(get(proxy.web(), "/").await.text(), "a");
    // Once the port is free the same file is fine.
    drop(taken);
    let answer = proxy.admin_post("/api/v1/reload", "{}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_key_that_needs_a_restart_is_refused() {
    let upstream = Upstream::named("a");
    let proxy = proxy(&turn(0, &[&upstream])).await;
    proxy.write(&turn(0, &[&upstream]).replace("worker_threads: 2", "worker_threads: 3"));
    let answer = proxy.admin_post("/api/v1/reload", "{}").await;
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.text().contains("worker_threads"), "{}", answer.text());
}

#[tokio::test]
async fn listeners_come_and_go_and_their_connections_end_in_good_order() {
    let upstream = Upstream::named("a");
    let one = to(&[upstream.address()]);
    let two = one.replace("listeners:\n", "listeners:\n  extra: 127.0.0.1:0\n");
    let proxy = proxy(&two).await;
    let extra = proxy.listener("extra");
    let (mut on_web, mut on_extra) = (Client::connect(proxy.web()).await, Client::connect(extra).await);
    assert_eq!(
        (on_web.get("/").await.text(), on_extra.get("/").await.text()),
        ("a".to_owned(), "a".to_owned())
    );
    proxy.reload(&one).await;
    eventually_async("the port is closed", || async {
        tokio::net::TcpStream::connect(extra).await.is_err()
    })
    .await;
    on_extra.is_closed().await;
    assert!(on_web.get("/").await.keep_alive);
}

#[tokio::test]
async fn a_request_in_flight_finishes_under_the_configuration_it_began_with() {
    let (release, waiting) = tokio::sync::watch::channel(false);
    let slow = Upstream::each(move |mut peer| {
        let mut waiting = waiting.clone();
        async move {
            while let Some(request) = peer.request().await? {
                drop(waiting.wait_for(|released| *released).await);
                peer.answer(&request, 200, "", b"old").await?;
            }
            Ok(())
        }
    });
    let new = Upstream::named("new");
    let proxy = proxy(&to(&[slow.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(crate::support::client::request("GET", "/", "", b""))
        .await;
    eventually("the request arrives", || slow.requests() == 1).await;
    proxy.reload(&to(&[new.address()])).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "new");
    release.send(true).expect("an upstream");
    assert_eq!(soon("the old answer", client.answer()).await.text(), "old");
    assert_eq!(client.get("/").await.text(), "new");
}

#[tokio::test]
async fn counters_go_on_over_a_reload() {
    let upstream = Upstream::named("a");
    let named = |timeout: &str| {
        with(
            &format!("    name: all\n    timeout: {timeout}\n"),
            "",
            &[upstream.address()],
        )
    };
    let proxy = proxy(&named("10s")).await;
    for _ in 0..5 {
        get(proxy.web(), "/").await;
    }
    let counted = || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_requests_total", &[("route", "all"), ("code", "200")])
    };
    eventually_async("five are counted", || async { counted().await == 5.0 }).await;
    proxy.reload(&named("11s")).await;
    assert_eq!(counted().await, 5.0);
    get(proxy.web(), "/").await;
    eventually_async("six are counted", || async { counted().await == 6.0 }).await;
}

#[tokio::test]
async fn included_files_are_read_and_watched() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let cluster =
        |upstream: &Upstream| format!("clusters:\n  app:\n    endpoints: [{}]\n", upstream.address());
    let config = "include: parts/*.yaml\nlisteners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n";
    let start = crate::support::proxy::Start::new(config);
    let part = start.folder().join("parts").join("clusters.yaml");
    std::fs::create_dir(start.folder().join("parts")).expect("a writable folder");
    std::fs::write(&part, cluster(&a)).expect("a writable folder");
    let proxy = start.start().await;
    assert_eq!(get(proxy.web(), "/").await.text(), "a");
    std::fs::write(&part, cluster(&b)).expect("a writable folder");
    eventually_async("the part is noticed", || async {
        get(proxy.web(), "/").await.text() == "b"
    })
    .await;
    // A mistake in a part is said with its own name, and changes nothing.
    std::fs::write(&part, "clusters:\n  app: { endpoint: [] }\n").expect("a writable folder");
    eventually("the mistake is said", || {
        proxy.stderr().contains("clusters.yaml:2")
    })
    .await;
    assert_eq!(get(proxy.web(), "/").await.text(), "b");
}

#[tokio::test]
async fn connections_to_endpoints_outlive_a_reload() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&turn(0, &[&upstream])).await;
    let mut client = Client::connect(proxy.web()).await;
    for number in 1..=10 {
        assert_eq!(client.get("/").await.status, 200);
        proxy.write(&turn(number, &[&upstream]).replace(&format!("{}ms", 900 + number % 5), "900ms"));
        reload_by_command(&proxy).await;
    }
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_tunnel_outlives_a_reload() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await?;
            let (mut from, mut to) = peer.reader.io.into_split();
            tokio::io::copy(&mut from, &mut to).await?;
        }
        Ok(())
    });
    let proxy = proxy(&turn(0, &[&upstream])).await;
    let mut client = Client::connect(proxy.web()).await;
    let ask = crate::support::client::request("GET", "/", "connection: upgrade\r\nupgrade: echo\r\n", b"");
    client.send(ask).await;
    assert_eq!(client.answer().await.status, 101);
    for number in 1..=3 {
        client.send("still here").await;
        let heard = soon("an echo", client.reader.exactly(10)).await.expect("an echo");
        assert_eq!(heard, b"still here");
        // Even the endpoint and the route may be gone.
        proxy.write(&format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - direct_response: {{ status: 20{number} }}\nruntime:\n  worker_threads: 2\n  \
             reload: {{ watch: false }}\n"
        ));
        reload_by_command(&proxy).await;
    }
    client.finish().await;
    client.is_closed().await;
}
