//! From the first line of the banner to the exit code: starts that fail, drains, second signals, a successor that takes
//! over, the service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use bellwether::app::upgrade::{Handover, Successor};

use crate::support::client::{Client, ask, get, request};
use crate::support::h2::H2;
use crate::support::load::Load;
use crate::support::proxy::{Proxy, Start, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

fn draining(upstream: &Upstream, min: &str, max: &str) -> String {
    to(&[upstream.address()])
        + &format!("runtime:\n  worker_threads: 2\n  drain: {{ min: {min}, max: {max} }}\n")
}

#[tokio::test]
async fn the_banner_says_what_is_in_force() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let banner = proxy.stderr();
    for part in [
        "bellwether ",
        "bellwether.yaml",
        &format!("http://{}", proxy.web()),
        &format!("http://{}", proxy.admin()),
        "retry 1",
        "ready in",
    ] {
        assert!(banner.contains(part), "no {part:?} in\n{banner}");
    }
    // Nothing but data on stdout.
    assert_eq!(proxy.stdout(), "");
}

#[tokio::test]
async fn a_port_in_use_is_exit_4_and_names_the_place() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let config = to(&[([127, 0, 0, 1], 9).into()]).replace("127.0.0.1:0", &address.to_string());
    let finished = Start::new(&config).fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    let stderr = &finished.stderr;
    assert!(
        stderr.contains("E0603") && stderr.contains(&address.to_string()),
        "{stderr}"
    );
    assert!(stderr.contains("bellwether.yaml:2"), "{stderr}");
}

#[tokio::test]
async fn a_bad_configuration_is_exit_3_with_all_its_mistakes() {
    let config = "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: ap\n    timeout: 5\nclusters:\n  app:\n    intervall: 2s\n    \
                  endpoints: [127.0.0.1:9]\n";
    let finished = Start::new(config).fail().await;
    assert_eq!(finished.status.code(), Some(3), "{finished:?}");
    for part in ["did you mean `app`", "bellwether.yaml:5", "intervall"] {
        assert!(
            finished.stderr.contains(part),
            "no {part:?} in\n{}",
            finished.stderr
        );
    }
    assert_eq!(finished.stdout, "");
}

/// `bellwether check` on a file beside this configuration.
async fn checked(config: &str) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("bellwether.yaml"), config).expect("a writable folder");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bellwether"));
    command.arg("check").current_dir(folder.path());
    command.env_remove("BELLWETHER_CONFIG").env_remove("COLUMNS");
    let output = tokio::task::spawn_blocking(move || command.output().expect("the binary was built"));
    output.await.expect("no panic")
}

#[tokio::test]
async fn check_runs_the_tests_of_a_configuration_and_shows_the_line_of_one_that_fails() {
    let config = |expected: &str| {
        format!(
            "listeners:\n  web: 127.0.0.1:8080\nroutes:\n  - name: api\n    match: {{ path_prefix: /api }}\n    \
             cluster: app\n  - name: rest\n    cluster: app\nclusters:\n  app:\n    endpoints: [127.0.0.1:9001]\n\
             tests:\n  - request: GET http://shop.example/api/orders\n    expect: {{ route: {expected} }}\n"
        )
    };
    let passed = checked(&config("api")).await;
    let stdout = String::from_utf8_lossy(&passed.stdout).into_owned();
    assert!(
        passed.status.success() && stdout.contains("1 test passed"),
        "{passed:?}"
    );

    let failed = checked(&config("rest")).await;
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(3), "{stderr}");
    for part in [
        "E0510",
        "bellwether.yaml:14:",
        "expected route `rest`",
        "got route `api`",
    ] {
        assert!(stderr.contains(part), "no {part:?} in\n{stderr}");
    }
    // A proxy does not start with it either.
    let finished = Start::new(&config("rest").replace("127.0.0.1:8080", "127.0.0.1:0"))
        .fail()
        .await;
    assert_eq!(finished.status.code(), Some(3), "{finished:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_said() {
    let start = Start::new("listeners: {}\n");
    std::fs::remove_file(start.folder().join("bellwether.yaml")).expect("a file");
    let finished = start.fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    assert!(finished.stderr.contains("bellwether.yaml"), "{}", finished.stderr);
}

#[tokio::test]
async fn an_idle_proxy_ends_with_0() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "10ms", "20s")).await;
    let mut idle = Client::connect(proxy.web()).await;
    assert_eq!(idle.get("/").await.status, 200);
    proxy.signal(Signal::TERM);
    idle.is_closed().await;
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

#[tokio::test]
async fn readiness_fails_first_and_requests_in_flight_finish() {
    let (release, waiting) = tokio::sync::watch::channel(false);
    let slow = Upstream::each(move |mut peer| {
        let mut waiting = waiting.clone();
        async move {
            while let Some(request) = peer.request().await? {
                if request.target == "/slow" {
                    drop(waiting.wait_for(|released| *released).await);
                }
                peer.answer(&request, 200, "", b"done").await?;
            }
            Ok(())
        }
    });
    let proxy = proxy(&draining(&slow, "1s", "20s")).await;
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    let mut one = Client::connect(proxy.web()).await;
    one.send(request("GET", "/slow", "", b"")).await;
    let mut two = H2::connect(proxy.web()).await;
    let slow_request = http::Request::get(crate::support::h2::uri("/slow"))
        .body(())
        .expect("a request");
    let (second, _) = two.start(slow_request, true).await;
    eventually("both arrive", || slow.requests() == 2).await;

    proxy.signal(Signal::TERM);
    eventually_async("it says that it is not ready", || async {
        proxy.admin_get("/readyz").await.status == 503
    })
    .await;
    assert_eq!(proxy.admin_get("/livez").await.status, 200);
    // The balancer may not have noticed yet: new connections are still served.
    let late = get(proxy.web(), "/late").await;
    assert_eq!(late.status, 200);
    let web = proxy.web();
    eventually_async("the port is closed", || async {
        tokio::net::TcpStream::connect(web).await.is_err()
    })
    .await;
    release.send(true).expect("an upstream");
    let answer = one.answer().await;
    assert_eq!((answer.text().as_str(), answer.keep_alive), ("done", false));
    one.is_closed().await;
    assert_eq!(
        crate::support::h2::collect(second)
            .await
            .expect("an answer")
            .text(),
        "done"
    );
    soon("GOAWAY", two.ended()).await.expect("a clean end");
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

#[tokio::test]
async fn from_the_first_moment_of_a_drain_every_answer_says_close() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "60s", "20s")).await;
    let mut busy = Client::connect(proxy.web()).await;
    let mut idle = Client::connect(proxy.web()).await;
    let mut second = H2::connect(proxy.web()).await;
    for client in [&mut busy, &mut idle] {
        assert!(client.get("/").await.keep_alive);
    }
    proxy.signal(Signal::TERM);
    eventually_async("it says that it is not ready", || async {
        proxy.admin_get("/readyz").await.status == 503
    })
    .await;
    for mut client in [busy, Client::connect(proxy.web()).await, idle] {
        let last = client.get("/").await;
        assert_eq!((last.status, last.keep_alive), (200, false));
        client.is_closed().await;
    }
    // GOAWAY says which requests were taken, so it needs no time in advance.
    assert_eq!(second.get("/").await.status, 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.finished().await.status.code(), Some(143));
}

#[tokio::test]
async fn an_operator_s_drain_lets_clients_leave_until_it_is_taken_back() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "60s", "20s")).await;
    let mut client = Client::connect(proxy.web()).await;
    assert!(client.get("/").await.keep_alive);
    assert_eq!(proxy.admin_post("/api/v1/drain", "{}").await.status, 200);
    assert!(!client.get("/").await.keep_alive);
    client.is_closed().await;
    assert_eq!(proxy.admin_post("/api/v1/undrain", "{}").await.status, 200);
    let mut client = Client::connect(proxy.web()).await;
    assert!(client.get("/").await.keep_alive);
}

#[tokio::test]
async fn connections_that_wait_to_be_accepted_are_served_before_the_end() {
    const CLIENTS: usize = 60;
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "0s", "20s")).await;
    // While it sleeps, connections queue at its sockets and the signal waits with them.
    proxy.signal(Signal::STOP);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(proxy.web()).await;
        client.send(request("POST", "/", "", b"once")).await;
        clients.push(client);
    }
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for mut client in clients {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(proxy.finished().await.status.code(), Some(0));
    assert_eq!(upstream.requests(), CLIENTS);
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut_off_and_said() {
    let upstream = Upstream::stalls();
    let proxy = proxy(&draining(&upstream, "10ms", "400ms")).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    eventually("the request arrives", || upstream.requests() == 1).await;
    proxy.signal(Signal::TERM);
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(8), "{finished:?}");
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let upstream = Upstream::stalls();
        let proxy = proxy(&draining(&upstream, "60s", "120s")).await;
        let mut client = Client::connect(proxy.web()).await;
        client.send(request("GET", "/", "", b"")).await;
        eventually("the request arrives", || upstream.requests() == 1).await;
        proxy.signal(signal);
        eventually_async("it drains", || async {
            proxy.admin_get("/readyz").await.status == 503
        })
        .await;
        proxy.signal(signal);
        let finished = proxy.finished().await;
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
    }
}

#[tokio::test]
async fn the_admin_api_drains_and_quits() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "10ms", "20s")).await;
    let answer = proxy.admin_post("/quitquitquit", "").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_eq!(proxy.finished().await.status.code(), Some(0));
}

#[tokio::test]
async fn an_instance_ends_under_load_and_no_request_fails() {
    let upstream = Upstream::answers(200, "ok");
    let config = draining(&upstream, "1s", "20s");
    let (leaving, staying) = tokio::join!(proxy(&config), proxy(&config));
    let loads = [Load::get(leaving.web(), 4), Load::post(leaving.web(), 4)];
    for load in &loads {
        load.more(200).await;
    }
    leaving.signal(Signal::TERM);
    // What a balancer does: it asks, and sends new connections elsewhere once the answer is no.
    eventually_async("it says that it is not ready", || async {
        leaving.admin_get("/readyz").await.status == 503
    })
    .await;
    for load in &loads {
        load.turn_to(staying.web());
    }
    let finished = leaving.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    for load in loads {
        load.more(200).await;
        load.stop_without_failure().await;
    }
}

/// An upstream that echoes the bytes of a tunnel, and answers everything else.
fn echoes_tunnels() -> Upstream {
    Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            if request.fields.has("upgrade") {
                peer.send(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
                )
                .await?;
                let (mut from, mut to) = peer.reader.io.into_split();
                tokio::io::copy(&mut from, &mut to).await?;
                return Ok(());
            }
            peer.answer(&request, 200, "", b"ok").await?;
        }
        Ok(())
    })
}

async fn echo(tunnel: &mut Client) {
    tunnel.send("still here").await;
    let heard = soon("an echo", tunnel.reader.exactly(10)).await.expect("an echo");
    assert_eq!(heard, b"still here");
}

/// Everything at once: HTTP/1.1 and HTTP/2 under load, a tunnel, and an application that still needs its way out.
#[tokio::test]
async fn scenario_37_a_sidecar_ends_under_load_and_its_application_is_the_last_to_lose_it() {
    let upstream = echoes_tunnels();
    let config = to(&[upstream.address()])
        .replace(
            "  web: 127.0.0.1:0\n",
            "  web: 127.0.0.1:0\n  out: { address: 127.0.0.1:0, direction: outbound }\n",
        )
        .replace(
            "  - cluster: app\n",
            "  - cluster: app\n    listeners: [web, out]\n",
        )
        + "runtime:\n  worker_threads: 2\n  drain: { min: 500ms, max: 60s, wait_for_app: true }\n";
    let (leaving, staying) = tokio::join!(proxy(&config), proxy(&config));
    let (web, out) = (leaving.web(), leaving.listener("out"));
    let loads = [Load::get(web, 4), Load::post(web, 4), Load::h2(web, 4)];
    let mut tunnel = Client::connect(web).await;
    let upgrade = "connection: upgrade\r\nupgrade: echo\r\n";
    tunnel.send(request("GET", "/", upgrade, b"")).await;
    assert_eq!(tunnel.answer().await.status, 101);
    let mut application = Client::connect(out).await;
    assert_eq!(application.get("/").await.status, 200);
    for load in &loads {
        load.more(300).await;
    }

    leaving.signal(Signal::TERM);
    eventually_async("it says that it is not ready", || async {
        leaving.admin_get("/readyz").await.status == 503
    })
    .await;
    for load in &loads {
        load.turn_to(staying.web());
    }
    eventually_async("nobody comes in any more", || async {
        tokio::net::TcpStream::connect(web).await.is_err()
    })
    .await;
    for load in loads {
        load.more(300).await;
        load.stop_without_failure().await;
    }
    // The application still finds its way out, on the connection that it has and on a new one.
    echo(&mut tunnel).await;
    for _ in 0..3 {
        let answer = application.get("/").await;
        assert_eq!((answer.status, answer.keep_alive), (200, true));
    }
    drop(tunnel);
    for _ in 0..3 {
        assert_eq!(get(out, "/").await.status, 200);
        assert_eq!(application.get("/").await.status, 200);
    }
    // It is gone, and so is the last reason to stay.
    drop(application);
    let finished = leaving.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

#[tokio::test]
async fn scenario_40_a_successor_takes_over_and_no_request_fails() {
    let upstream = Upstream::answers(200, "ok");
    let old = proxy(&draining(&upstream, "300ms", "20s")).await;
    let web = old.web();
    let loads = [Load::get(web, 4), Load::post(web, 4)];
    for load in &loads {
        load.more(200).await;
    }
    let (new, ended) = old.replace().await;
    assert_eq!(ended.code(), Some(0), "{}", new.stderr());
    assert_eq!(new.web(), web);
    for load in &loads {
        load.more(200).await;
    }
    assert_eq!(new.admin_get("/readyz").await.status, 200);
    for load in loads {
        load.stop_without_failure().await;
    }
}

async fn breaker(proxy: &Proxy, id: &str) -> serde_json::Value {
    proxy.admin_get(&format!("/api/v1/breakers/{id}")).await.json()
}

async fn endpoint(proxy: &Proxy, cluster: &str, upstream: &Upstream) -> serde_json::Value {
    let path = format!("/api/v1/clusters/{cluster}/endpoints");
    let list = proxy.admin_get(&path).await.json()["endpoints"].take();
    let address = upstream.address().to_string();
    let mut all = list.as_array().expect("a list").iter();
    all.find(|known| known["address"] == *address)
        .expect("a member")
        .clone()
}

/// An open breaker stays open for as long as it had left, who was out stays out, and what operators ordered holds.
#[tokio::test]
async fn scenario_40_a_successor_knows_what_was_learned() {
    let (steady, spare) = (Upstream::answers(200, "ok"), Upstream::answers(200, "ok"));
    let (good, bad) = (Upstream::answers(200, "ok"), Upstream::answers(503, ""));
    let (broken, ordered) = (Upstream::answers(500, ""), Upstream::answers(200, "ok"));
    let (answers, checks) = (
        std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(500)),
        std::sync::Arc::<std::sync::atomic::AtomicUsize>::default(),
    );
    let checked = {
        let (answers, checks) = (std::sync::Arc::clone(&answers), std::sync::Arc::clone(&checks));
        Upstream::each(move |mut peer| {
            let (answers, checks) = (std::sync::Arc::clone(&answers), std::sync::Arc::clone(&checks));
            async move {
                while let Some(request) = peer.request().await? {
                    let status = answers.load(std::sync::atomic::Ordering::SeqCst);
                    checks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    peer.answer(&request, u16::try_from(status).unwrap_or(500), "", b"")
                        .await?;
                }
                Ok(())
            }
        })
    };
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - name: broken\n    match: {{ path_prefix: /broken }}\n    \
         cluster: broken\n    retry: off\n    circuit_breaker: {{ min_requests: 4, open_duration: 100s, max_open_duration: 200s }}\n  \
         - name: ordered\n    match: {{ path_prefix: /ordered }}\n    cluster: ordered\n  - name: flaky\n    \
         match: {{ path_prefix: /flaky }}\n    cluster: flaky\n    retry: off\n    circuit_breaker: off\n  - cluster: app\nclusters:\n  \
         broken:\n    endpoints: [{}]\n  ordered:\n    endpoints: [{}]\n  flaky:\n    endpoints: [{}, {}]\n    \
         load_balancing: round_robin\n    outlier_detection: {{ rehearsals: false, base_ejection_time: 100s, max_ejection_time: 200s }}\n  \
         checked:\n    endpoints: [{}]\n    health_check: {{ path: /health, interval: 1s, timeout: 500ms, healthy_threshold: 100 }}\n  \
         app:\n    endpoints: [{}, {}]\nruntime:\n  worker_threads: 2\n  drain: {{ min: 300ms, max: 20s }}\n",
        broken.address(),
        ordered.address(),
        good.address(),
        bad.address(),
        checked.address(),
        steady.address(),
        spare.address(),
    );
    let old = proxy(&config).await;
    let web = old.web();
    eventually_async("the breaker opens", || async {
        get(web, "/broken").await.rejected() == Some("breaker_open")
    })
    .await;
    eventually_async("the bad one is out", || async {
        get(web, "/flaky").await;
        old.metrics().await.sum("bellwether_ejections_active", &[]) == 1.0
    })
    .await;
    eventually_async("its check fails", || async {
        endpoint(&old, "checked", &checked).await["healthy"] == false
    })
    .await;
    // From here on its check passes; a hundred in a row would bring it back.
    answers.store(200, std::sync::atomic::Ordering::SeqCst);
    let order = "{\"state\": \"open\", \"ttl\": \"10m\"}";
    old.admin_ask("PUT", "/api/v1/breakers/ordered", order).await;
    let set_aside = format!("/api/v1/clusters/app/endpoints/{}/override", spare.address());
    let drain = "{\"action\": \"drain\", \"ttl\": \"10m\", \"reason\": \"spare\"}";
    let answer = old.admin_ask("PUT", &set_aside, drain).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let began = tokio::time::Instant::now();
    let was = breaker(&old, "broken").await;
    let out = [
        endpoint(&old, "flaky", &good).await,
        endpoint(&old, "flaky", &bad).await,
    ];
    let asked = (
        broken.requests(),
        bad.requests(),
        ordered.requests(),
        spare.requests(),
    );

    let loads = [Load::get(web, 4), Load::post(web, 4), Load::h2(web, 2)];
    for load in &loads {
        load.more(100).await;
    }
    let (new, ended) = old.replace().await;
    assert_eq!(ended.code(), Some(0), "{}", new.stderr());
    let checked_before = checks.load(std::sync::atomic::Ordering::SeqCst);
    for load in loads {
        load.more(100).await;
        load.stop_without_failure().await;
    }

    get(web, "/broken").await.is_refusal(503, "breaker_open");
    get(web, "/ordered").await.is_refusal(503, "breaker_open");
    for _ in 0..10 {
        assert_eq!(get(web, "/flaky").await.status, 200);
    }
    let now = breaker(&new, "broken").await;
    let left = |seen: &serde_json::Value| seen["seconds_left"].as_f64().expect("a time");
    assert_eq!(
        (&now["state"], &now["reason"], &now["openings"]),
        (&was["state"], &was["reason"], &was["openings"])
    );
    assert!(left(&now) <= left(&was), "{was} {now}");
    assert!(
        left(&now) + began.elapsed().as_secs_f64() >= left(&was),
        "{was} {now}"
    );
    assert_eq!(breaker(&new, "ordered").await["state"], "forced_open");
    let still = [
        endpoint(&new, "flaky", &good).await,
        endpoint(&new, "flaky", &bad).await,
    ];
    for (before, after) in [(&out[0], &still[0]), (&out[1], &still[1])] {
        let what = |seen: &serde_json::Value| {
            let times = seen["ejected"]["times"].clone();
            (seen["address"].clone(), times, seen["success"].clone())
        };
        assert_eq!(what(before), what(after));
    }
    assert!(
        left(&still[1]["ejected"]) <= left(&out[1]["ejected"]),
        "{still:?}"
    );
    let app = endpoint(&new, "app", &spare).await;
    assert_eq!(
        (&app["drained"], &app["override"]["reason"]),
        (&true.into(), &"spare".into()),
        "{app}"
    );
    let after = (
        broken.requests(),
        bad.requests(),
        ordered.requests(),
        spare.requests(),
    );
    assert_eq!(after, asked, "none of them was asked again");
    eventually("the successor checks", || {
        checks.load(std::sync::atomic::Ordering::SeqCst) > checked_before + 1
    })
    .await;
    assert_eq!(endpoint(&new, "checked", &checked).await["healthy"], false);
    let events = new.admin_get("/api/v1/events?kind=replacement").await.json();
    assert_eq!(events["events"][0]["to"], "recalled", "{events}");

    // The operator's order ends in the new process as it would have in the old one.
    let answer = new.admin_ask("DELETE", &set_aside, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(endpoint(&new, "app", &spare).await["drained"], false);
}

/// A predecessor whose state nobody can read still hands over its sockets.
#[tokio::test]
async fn scenario_40_a_state_of_another_version_is_forgotten_and_the_sockets_are_not() {
    let upstream = Upstream::answers(200, "ok");
    let [web, admin] = [(), ()].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let address = |socket: &std::net::TcpListener| socket.local_addr().expect("bound");
    let config = to(&[upstream.address()]).replace("web: 127.0.0.1:0", &format!("web: {}", address(&web)))
        + &format!("admin:\n  address: {}\n", address(&admin));
    let start = Start::new(&config);
    let file = start.folder().join("bellwether.yaml");
    let successor = Successor {
        program: env!("CARGO_BIN_EXE_bellwether").into(),
        arguments: vec!["run".into(), "-c".into(), file.into()],
    };
    for socket in [&web, &admin] {
        // As a proxy's own are; the flag goes along.
        socket.set_nonblocking(true).expect("a socket");
    }
    let mut handover = Handover::new(b"{\"version\":4000000,\"engine\":\"steam\"}".to_vec());
    handover
        .add(&address(&web).to_string(), &web)
        .and_then(|()| handover.add(&format!("admin {}", address(&admin)), &admin))
        .expect("descriptors");
    // A client that waits since before the exchange.
    let mut waiting = Client::connect(address(&web)).await;
    waiting.send(request("GET", "/", "", b"")).await;
    let pid = handover.spawn(&successor).await.expect("it takes over");
    let _ended = Ended(pid);
    assert_eq!(waiting.answer().await.status, 200);
    let host = format!("host: {}\r\n", address(&admin));
    let answer = ask(
        address(&admin),
        "GET",
        "/api/v1/events?kind=replacement",
        &host,
        b"",
    )
    .await;
    let event = &answer.json()["events"][0];
    assert_eq!(event["to"], "forgotten", "{event}");
    let why = event["evidence"].as_str().expect("a text");
    assert!(
        why.contains("version 4000000") && why.contains("reads version"),
        "{why}"
    );
}

/// Ends a process that is nobody's child.
struct Ended(u32);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        // Fails only if it has ended.
        let _gone = rustix::process::kill_process(pid.expect("a process id"), Signal::KILL);
    }
}

#[tokio::test]
async fn a_successor_answers_operators_at_the_same_port_without_a_gap() {
    let upstream = Upstream::answers(200, "ok");
    let old = proxy(&draining(&upstream, "300ms", "20s")).await;
    let admin = old.admin();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let asking = tokio::spawn(async move {
        let mut asked = 0;
        while !*stopped.borrow() {
            let host = format!("host: {admin}\r\nconnection: close\r\n");
            let answer = ask(admin, "GET", "/livez", &host, b"").await;
            assert_eq!(answer.status, 200);
            asked += 1;
        }
        asked
    });
    let (new, ended) = old.replace().await;
    assert_eq!(ended.code(), Some(0), "{}", new.stderr());
    assert_eq!(new.admin(), admin);
    assert_eq!(new.admin_get("/readyz").await.status, 200);
    stop.send(true).expect("somebody asks");
    assert!(asking.await.expect("every answer") > 0);
}

#[tokio::test]
async fn a_successor_that_cannot_serve_changes_nothing() {
    let upstream = Upstream::answers(200, "ok");
    let config = draining(&upstream, "300ms", "20s").replace(
        "worker_threads: 2",
        "worker_threads: 2\n  reload: { watch: false }",
    );
    let proxy = proxy(&config).await;
    let load = Load::get(proxy.web(), 4);
    proxy.write("listeners: { web: nonsense }\n");
    proxy.signal(Signal::USR2);
    eventually("the failure is said", || proxy.stderr().contains("E0306")).await;
    let said = proxy.stderr();
    assert!(said.contains("not replaced"), "{said}");
    assert!(
        !said.contains("\nerror[E0306]"),
        "the new process says it too:\n{said}"
    );
    load.more(100).await;
    load.stop_without_failure().await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
    // Operators ask at the port of before, which the kernel chose, and are told why.
    let events = proxy.admin_get("/api/v1/events?kind=replacement").await;
    let events = events.text();
    assert!(events.contains("refused") && events.contains("E0306"), "{events}");
}

#[tokio::test]
async fn an_upstream_that_nobody_verifies_is_warned_about_at_every_start_and_reload() {
    let upstream = Upstream::answers(200, "ok");
    let config = |route: &str| {
        with(
            route,
            "    tls: { insecure_skip_verify: true }\n",
            &[upstream.address()],
        )
    };
    let proxy = proxy(&config("")).await;
    let warned = || proxy.stderr().matches("W0508").count();
    assert_eq!(warned(), 1, "{}", proxy.stderr());
    proxy.reload(&config("    timeout: 9s\n")).await;
    eventually("it is said again", || warned() == 2).await;
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let upstream = Upstream::answers(200, "ok");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket");
    let heard = move |what: &str| {
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while !all.lines().any(|line| line.starts_with(what)) {
            let count = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what}: {error} after {all:?}"));
            all.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
            all.push('\n');
        }
    };
    let proxy = Start::new(&draining(&upstream, "10ms", "20s"))
        .variable("NOTIFY_SOCKET", path.to_str().expect("text"))
        .start()
        .await;
    heard("READY=1");
    proxy.signal(Signal::TERM);
    heard("STOPPING=1");
    assert_eq!(proxy.finished().await.status.code(), Some(0));
}

#[tokio::test]
async fn a_socket_of_the_service_manager_is_used() {
    let upstream = Upstream::answers(200, "ok");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    // Connections that come before the proxy wait for it.
    let early = tokio::spawn(async move { get(address, "/early").await });
    let config = to(&[upstream.address()]).replace("web: 127.0.0.1:0", &format!("web: {address}"));
    let proxy = Start::new(&config).with_socket(socket).start().await;
    assert_eq!(proxy.web(), address);
    assert_eq!(
        soon("the early answer", early).await.expect("no panic").status,
        200
    );
    for _ in 0..10 {
        assert_eq!(get(address, "/").await.status, 200);
    }
}

#[tokio::test]
async fn the_environment_fills_in_values() {
    let upstream = Upstream::echo();
    let route = "    request_headers:\n      set: { x-region: \"${REGION:-nowhere}\", x-secret: \"${file:secret.txt}\" }\n";
    let start = Start::new(&with(route, "", &[upstream.address()]))
        .file("secret.txt", "hush\n")
        .variable("REGION", "eu");
    let proxy = start.start().await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!(answer.echoed("x-region").as_deref(), Some("eu"));
    assert_eq!(answer.echoed("x-secret").as_deref(), Some("hush"));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_exit_4_and_said_with_its_line() {
    // A folder in its place cannot be read by anybody, whatever the privileges of who runs the tests.
    let folder = tempfile::tempdir().expect("a folder");
    let config = to(&[([127, 0, 0, 1], 9).into()]).replace(
        "  - cluster: app\n",
        &format!(
            "  - cluster: app\n    request_headers: {{ set: {{ x-secret: \"${{file:{}}}\" }} }}\n",
            folder.path().display()
        ),
    );
    let finished = Start::new(&config).fail().await;
    assert!(
        finished.stderr.contains("bellwether.yaml:5")
            && finished.stderr.contains(folder.path().to_str().expect("text")),
        "{}",
        finished.stderr
    );
    assert!(matches!(finished.status.code(), Some(3 | 4)), "{finished:?}");
    let start = Start::new("listeners: {}\n");
    std::fs::remove_file(start.folder().join("bellwether.yaml")).expect("a file");
    std::fs::create_dir(start.folder().join("bellwether.yaml")).expect("a writable folder");
    let finished = start.fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
}

#[tokio::test]
async fn a_tunnel_ends_with_the_drain_and_is_told_of() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await?;
            peer.reader.rest().await?;
        }
        Ok(())
    });
    let proxy = proxy(&draining(&upstream, "10ms", "500ms")).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(request(
            "GET",
            "/",
            "connection: upgrade\r\nupgrade: echo\r\n",
            b"",
        ))
        .await;
    assert_eq!(client.answer().await.status, 101);
    proxy.signal(Signal::TERM);
    let finished = proxy.finished().await;
    assert!(matches!(finished.status.code(), Some(0 | 8)), "{finished:?}");
    client.until_closed().await;
}
