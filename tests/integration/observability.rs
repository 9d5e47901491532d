//! What an operator can see: access log, metrics, probes, the admin API.

use rustix::process::Signal;

use crate::support::client::{Client, ask, get};
use crate::support::proxy::{Start, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async};

#[tokio::test]
async fn every_request_is_one_line_that_tells_its_story() {
    let upstream = Upstream::answers(200, "0123456789");
    let proxy = proxy(&with("    name: all\n", "", &[upstream.address()])).await;
    ask(
        proxy.web(),
        "POST",
        "/path?secret=1",
        "user-agent: a\"b\\c\r\n",
        b"12345",
    )
    .await;
    let line = proxy.logged(|line| line["path"] == "/path").await;
    for (field, value) in [
        ("listener", "web".into()),
        ("route", "all".into()),
        ("cluster", "app".into()),
        ("endpoint", upstream.address().to_string().into()),
        ("method", "POST".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("client", "127.0.0.1".into()),
        ("attempts", 1.into()),
        ("bytes_in", 5.into()),
        ("bytes_out", 10.into()),
        ("user_agent", "a\"b\\c".into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(line[field], value, "{field} in {line}");
    }
    for timing in ["t_ttfb", "t_total"] {
        assert!(
            line[timing].as_f64().is_some_and(|millis| millis >= 0.0),
            "{timing} in {line}"
        );
    }
    assert!(line.get("reason").is_none(), "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
}

#[tokio::test]
async fn a_line_cannot_be_forged() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(b"GET /x%0a%22 HTTP/1.1\r\nhost: test.example\r\nuser-agent: \x1b[31m\xff\",\"status\":500\r\n\r\n".as_slice())
        .await;
    let answer = client.answer().await;
    if answer.status == 400 {
        // Escape is a control byte, and those are refused; without it the rest must do.
        let mut client = Client::connect(proxy.web()).await;
        client
            .send(
                b"GET /x HTTP/1.1\r\nhost: test.example\r\nuser-agent: \xff\",\"status\":500\r\n\r\n"
                    .as_slice(),
            )
            .await;
        assert_eq!(client.answer().await.status, 200);
    }
    // Parsing each line is the claim; `access_log` fails on one that is no JSON.
    let line = proxy.logged(|line| line["status"] == 200).await;
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn text_lines_and_file_rotation() {
    let upstream = Upstream::answers(200, "ok");
    let folder = tempfile::tempdir().expect("a folder");
    let (log, rotated) = (
        folder.path().join("access.txt"),
        folder.path().join("access.txt.1"),
    );
    let config = to(&[upstream.address()])
        + &format!(
            "telemetry:\n  access_log: {{ format: text, output: {} }}\n",
            log.display()
        );
    let proxy = proxy(&config).await;
    let contains = |path: &std::path::Path, what: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(what))
    };
    get(proxy.web(), "/before").await;
    eventually("a line is written", || contains(&log, "/before")).await;
    std::fs::rename(&log, &rotated).expect("a writable folder");
    proxy.signal(Signal::USR1);
    eventually_async("the file is opened anew", || async {
        get(proxy.web(), "/after").await;
        contains(&log, "/after")
    })
    .await;
    assert!(!contains(&log, "/before"));
}

#[tokio::test]
async fn only_errors_are_logged_when_asked() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            let status = if request.target == "/bad" { 500 } else { 200 };
            peer.answer(&request, status, "", b"").await?;
        }
        Ok(())
    });
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.json");
    let config = to(&[upstream.address()])
        + &format!(
            "telemetry:\n  access_log: {{ format: json, only: errors, output: {} }}\n",
            log.display()
        );
    let proxy = proxy(&config).await;
    for path in ["/good", "/bad", "/good", "/bad"] {
        get(proxy.web(), path).await;
    }
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("both errors are written", || lines().matches("/bad").count() == 2).await;
    assert!(!lines().contains("/good"), "{}", lines());
}

#[tokio::test]
async fn the_metrics_of_the_contract_are_there() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    name: all\n", "", &[upstream.address()])).await;
    for _ in 0..10 {
        ask(proxy.web(), "POST", "/", "", b"x").await;
    }
    get(proxy.web(), "/").await;
    eventually_async("all are counted", || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_requests_total", &[("route", "all"), ("code", "200")])
            == 11.0
    })
    .await;
    let metrics = proxy.metrics().await;
    for name in [
        "bellwether_request_duration_seconds_bucket",
        "bellwether_request_ttfb_seconds_count",
        "bellwether_requests_in_flight",
        "bellwether_request_rejections_total",
        "bellwether_upstream_attempts_total",
        "bellwether_upstream_attempt_duration_seconds_count",
        "bellwether_upstream_failures_total",
        "bellwether_upstream_in_flight",
        "bellwether_upstream_bytes_total",
        "bellwether_downstream_connections",
        "bellwether_downstream_connections_total",
        "bellwether_upstream_connections",
        "bellwether_upstream_connects_total",
        "bellwether_endpoints",
        "bellwether_endpoint_up",
        "bellwether_retries_total",
        "bellwether_build_info",
        "bellwether_config_reloads_total",
        "bellwether_config_last_reload_successful",
        "bellwether_drain_state",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(metrics.has(name), "no {name}");
    }
    assert_eq!(
        metrics.sum("bellwether_request_duration_seconds_count", &[("route", "all")]),
        11.0
    );
    assert_eq!(
        metrics.sum(
            "bellwether_upstream_attempts_total",
            &[("cluster", "app"), ("outcome", "success")]
        ),
        11.0
    );
    assert_eq!(
        metrics.sum("bellwether_requests_in_flight", &[("route", "all")]),
        0.0
    );
    assert_eq!(
        metrics.sum(
            "bellwether_endpoints",
            &[("cluster", "app"), ("state", "available")]
        ),
        1.0
    );
    // A name of the client's choosing makes no series.
    let before = metrics.0.len();
    for number in 0..20 {
        ask(
            proxy.web(),
            "GET",
            &format!("/{number}"),
            &format!("host: h{number}.example\r\n"),
            b"",
        )
        .await;
    }
    let after = proxy.metrics().await.0.len();
    assert!(after <= before + 5, "{before} series became {after}");
}

/// What `promtool check metrics` and a scraper insist on.
fn lint(text: &str) {
    use std::collections::{BTreeMap, BTreeSet};
    let (mut types, mut helps, mut series) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let (mut last, mut closed) = (String::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a text");
            assert!(helps.insert(name.to_owned()) && !help.is_empty(), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(
                types.insert(name.to_owned(), kind.to_owned()).is_none(),
                "twice: {line}"
            );
            continue;
        }
        let (key, value) = line.rsplit_once(' ').expect("a value");
        assert!(series.insert(key.to_owned()), "twice: {line}");
        let name = key.split('{').next().expect("a name");
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(valid), "{line}");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(name);
        assert!(helps.contains(family), "no help: {line}");
        let kind = types.get(family).unwrap_or_else(|| panic!("no type: {line}"));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        if kind != "gauge" {
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
        }
        if last != family {
            assert!(closed.insert(family.to_owned()), "in two places: {line}");
            family.clone_into(&mut last);
        }
    }
    assert!(series.len() > 100, "{} series", series.len());
}

/// Five thousand endpoints that come and go: what is shown is bounded, in order, and goes on over a reload.
#[tokio::test]
async fn scenario_42_endpoints_that_come_and_go_leave_no_series_behind() {
    const EACH: usize = 2500;
    const LIMIT: usize = 2600;
    let upstream = Upstream::answers(200, "ok");
    let config = |timeout: u32| {
        format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - name: all\n    cluster: app\n    timeout: {timeout}s\nclusters:\n  app:\n    \
             endpoints: [{}]\n  one:\n    discovery: {{ file: {{ path: one.yaml }} }}\n  two:\n    \
             discovery: {{ file: {{ path: two.yaml }} }}\ntelemetry:\n  metrics: {{ max_endpoints: {LIMIT} }}\n",
            upstream.address()
        )
    };
    // Addresses of the network for documentation that nobody dials: no request goes to them.
    let list = |turn: usize, cluster: usize| {
        (0..EACH).fold(String::new(), |mut list, at| {
            let number = turn * 997 + at;
            list.push_str(&format!(
                "- 198.{}.{}.{}:80\n",
                18 + cluster,
                number / 250 % 250,
                number % 250
            ));
            list
        })
    };
    let start = crate::support::proxy::Start::new(&config(9))
        .file("one.yaml", &list(0, 0))
        .file("two.yaml", &list(0, 1));
    let proxy = start.start().await;
    let known =
        |metrics: &crate::support::proxy::Metrics| metrics.matching("bellwether_endpoint_up", &[]).count();
    eventually_async("all are there", || async {
        known(&proxy.metrics().await) == 2 * EACH + 1
    })
    .await;
    for _ in 0..20 {
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    eventually_async("all are counted", || async {
        proxy
            .metrics()
            .await
            .sum("bellwether_requests_total", &[("route", "all")])
            == 20.0
    })
    .await;
    let began = tokio::time::Instant::now();
    let text = proxy.admin_get("/metrics").await.text();
    eprintln!(
        "{} endpoints: {} series, {} bytes, {:?}",
        2 * EACH + 1,
        text.lines().filter(|line| !line.starts_with('#')).count(),
        text.len(),
        began.elapsed()
    );
    lint(&text);
    let before = proxy.metrics().await;
    for turn in 1..=5 {
        for (cluster, name) in [(0, "one.yaml"), (1, "two.yaml")] {
            let fresh = proxy.folder().join("fresh");
            std::fs::write(&fresh, list(turn, cluster)).expect("a writable folder");
            std::fs::rename(&fresh, proxy.folder().join(name)).expect("a writable folder");
        }
        let number = turn * 997 + EACH - 1;
        let newest = format!("198.19.{}.{}:80", number / 250 % 250, number % 250);
        eventually_async("the new ones are there", || async {
            let list = proxy.admin_get("/api/v1/clusters/two/endpoints").await.text();
            list.contains(&format!("\"{newest}\""))
        })
        .await;
    }
    proxy.reload(&config(8)).await;
    let text = proxy.admin_get("/metrics").await.text();
    lint(&text);
    let after = proxy.metrics().await;
    // Those that left are shown for a while, within the limit; what is above it shares one series, and is counted.
    assert!(
        known(&after) <= 2 * LIMIT + 1,
        "{} endpoints are shown",
        known(&after)
    );
    let most = before.0.len() * LIMIT / EACH + 200;
    assert!(
        after.0.len() <= most,
        "{} series became {}",
        before.0.len(),
        after.0.len()
    );
    assert!(after.sum("bellwether_metrics_series_dropped_total", &[]) > 0.0);
    for sample in before.0.iter().filter(|sample| sample.name.ends_with("_total")) {
        let labels: Vec<_> = sample
            .labels
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if labels.iter().any(|(name, _)| *name == "endpoint") {
            continue;
        }
        let now = after.sum(&sample.name, &labels);
        assert!(now >= sample.value, "{sample:?} became {now}");
    }
}

#[tokio::test]
async fn a_refusal_is_counted_and_logged_with_its_reason() {
    let proxy = proxy(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: { path: /yes }\n    direct_response: { status: 200 }\n",
    )
    .await;
    get(proxy.web(), "/no").await.is_refusal(404, "no_route");
    let line = proxy.logged(|line| line["reason"] == "no_route").await;
    assert_eq!(
        (&line["status"], &line["terminated_by"], &line["phase"]),
        (&404.into(), &"proxy_policy".into(), &"route".into()),
        "{line}"
    );
    eventually_async("it is counted", || async {
        proxy.metrics().await.sum(
            "bellwether_request_rejections_total",
            &[("reason", "no_route"), ("route", "none")],
        ) == 1.0
    })
    .await;
}

#[tokio::test]
async fn the_admin_api_shows_what_is_in_force_and_guards_itself() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("    name: all\n", "", &[upstream.address()])).await;
    assert_eq!(proxy.admin_get("/livez").await.status, 200);
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    for path in [
        "/api/v1/listeners",
        "/api/v1/routes",
        "/api/v1/clusters",
        "/api/v1/clusters/app/endpoints",
        "/api/v1/config",
    ] {
        let answer = proxy.admin_get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json();
    }
    let endpoints = proxy.admin_get("/api/v1/clusters/app/endpoints").await.text();
    assert!(endpoints.contains(&upstream.address().to_string()), "{endpoints}");
    assert_eq!(proxy.admin_get("/api/v1/clusters/none").await.status, 404);

    // DNS rebinding: a name that is not ours.
    let answer = ask(
        proxy.admin(),
        "GET",
        "/api/v1/config",
        "host: evil.example\r\n",
        b"",
    )
    .await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    // A form of another page: no header of ours.
    let host = format!("host: {}\r\n", proxy.admin());
    let answer = ask(proxy.admin(), "POST", "/api/v1/drain", &host, b"").await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
}

#[tokio::test]
async fn drain_and_undrain_turn_readiness() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let answer = proxy.admin_post("/api/v1/drain", "{}").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    eventually_async("not ready", || async {
        proxy.admin_get("/readyz").await.status == 503
    })
    .await;
    let answer = proxy.admin_post("/api/v1/undrain", "{}").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    eventually_async("ready", || async {
        proxy.admin_get("/readyz").await.status == 200
    })
    .await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    // A pipe without a reader fills after some lines.
    let upstream = Upstream::answers(200, "ok");
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo");
    assert!(made.success());
    // Held open, never read.
    let _held = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("a pipe");
    let config = to(&[upstream.address()])
        + &format!(
            "telemetry:\n  access_log: {{ format: json, output: {} }}\n",
            pipe.display()
        );
    let proxy = Start::new(&config).start().await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2000 {
        assert_eq!(client.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn metrics_have_a_listener_of_their_own_where_asked() {
    let upstream = Upstream::answers(200, "ok");
    let port = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket.local_addr().expect("bound")
    };
    let config = to(&[upstream.address()])
        + &format!(
            "telemetry:\n  access_log: off\n  metrics: {{ address: \"{port}\", labels: {{ datacenter: north }} }}\n"
        );
    let proxy = proxy(&config).await;
    get(proxy.web(), "/").await;
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = get(port, path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    let metrics = get(port, "/metrics").await.text();
    assert!(metrics.contains("datacenter=\"north\""), "{metrics}");
    // It is for reading metrics, and for nothing else.
    for path in ["/api/v1/config", "/api/v1/drain", "/quitquitquit"] {
        assert_eq!(ask(port, "POST", path, "", b"").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_admin_api_asks_for_its_tokens() {
    let upstream = Upstream::answers(200, "ok");
    let config = to(&[upstream.address()])
        + "admin:\n  address: 127.0.0.1:0\n  auth: { bearer_token: may-do-all, viewer_token: may-look }\n";
    let proxy = proxy(&config).await;
    let with_token = |method: &'static str, path: &'static str, token: &'static str| {
        let fields = format!(
            "host: {}\r\ncontent-type: application/json\r\nx-bellwether-admin: 1\r\n{token}",
            proxy.admin()
        );
        let admin = proxy.admin();
        async move { ask(admin, method, path, &fields, b"{}").await.status }
    };
    let (all, look, wrong) = (
        "authorization: Bearer may-do-all\r\n",
        "authorization: Bearer may-look\r\n",
        "authorization: Bearer may-do-al\r\n",
    );
    assert_eq!(with_token("GET", "/api/v1/config", "").await, 401);
    assert_eq!(with_token("GET", "/api/v1/config", wrong).await, 401);
    assert_eq!(with_token("GET", "/api/v1/config", look).await, 200);
    assert_eq!(with_token("POST", "/api/v1/drain", look).await, 403);
    assert_eq!(with_token("GET", "/readyz", "").await, 200);
    assert_eq!(with_token("POST", "/api/v1/drain", all).await, 200);
    // Nor does it tell them.
    let fields = format!("host: {}\r\n{all}", proxy.admin());
    let shown = ask(proxy.admin(), "GET", "/api/v1/config", &fields, b"")
        .await
        .text();
    assert!(
        !shown.contains("may-do-all") && !shown.contains("may-look"),
        "{shown}"
    );
}

#[tokio::test]
async fn the_level_of_the_log_is_changed_while_it_runs() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    assert_eq!(proxy.admin_get("/api/v1/log").await.json()["level"], "info");
    let put = |level: &str| {
        let fields = format!(
            "host: {}\r\ncontent-type: application/json\r\nx-bellwether-admin: 1\r\n",
            proxy.admin()
        );
        let (admin, body) = (proxy.admin(), format!("{{\"level\": \"{level}\"}}"));
        async move {
            ask(admin, "PUT", "/api/v1/log", &fields, body.as_bytes())
                .await
                .status
        }
    };
    assert_eq!(put("debug").await, 200);
    assert_eq!(proxy.admin_get("/api/v1/log").await.json()["level"], "debug");
    assert_eq!(put("loud").await, 400);
}
