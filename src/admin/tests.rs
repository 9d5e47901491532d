//! The operators' listener as operators meet it: real sockets, a real snapshot, a supervisor that notes what it is told.

use std::net::SocketAddr;
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::arbiter::{Opinion, Source};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::net::SocketAddress;
use crate::net::tcp::{Bound, ConnectOptions, ListenOptions, Listener, listen, listen_unix};
use crate::snapshot::compile::dry_run;
use crate::telemetry::diagnostics::{LogFormat, LogLevel, subscriber};
use crate::telemetry::{Change, EventKind, RecorderSettings};

const CONFIG: &str = "
listeners:
  web: 127.0.0.1:8080
routes:
  - name: posts
    match: { path_prefix: /orders, method: POST }
    cluster: app
  - name: old
    match: { path: /old }
    redirect: { path: /new }
  - name: health
    match: { path: /ping }
    direct_response: { status: 204 }
  - name: shop
    match: { host: shop.example }
    cluster: app
clusters:
  app:
    endpoints: [127.0.0.1:9001, 127.0.0.1:9002]
";

/// A served context and what its supervisor was told.
struct Served {
    address: SocketAddr,
    context: Arc<Context>,
    told: Arc<Mutex<Vec<String>>>,
    cancel: CancellationToken,
    _tasks: Vec<AbortOnDropHandle<()>>,
    _log: Box<dyn std::any::Any>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// The detail of an error, which must be problem+json.
    fn problem(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["type"] == "about:blank");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

async fn served() -> Served {
    served_with(Security::default()).await
}

async fn served_with(security: Security) -> Served {
    let document = crate::config::read_bytes("bellwether.yaml", CONFIG.as_bytes()).unwrap();
    let mut diagnostics = document.diagnostics.clone();
    let compiled = dry_run(&document, &mut diagnostics).unwrap();
    let (control, mut commands) = mpsc::channel::<Command>(4);
    let (log_subscriber, log) = subscriber(LogLevel::Info, LogFormat::Text, false, std::io::sink);
    let context = Arc::new(Context {
        cell: Arc::new(Cell::new(Arc::new(compiled.snapshot))),
        clock: crate::net::clock::Clock::start(),
        vitals: Arc::new(Vitals::new(0)),
        recorder: Arc::new(Recorder::new(RecorderSettings::default())),
        events: Arc::new(Events::default()),
        log,
        readiness: Arc::new(Readiness::default()),
        control,
        security: ArcSwap::from_pointee(security),
        config: ArcSwap::from_pointee(ConfigText {
            file: "bellwether.yaml".to_owned(),
            plain: "version: 1\n".to_owned(),
            with_origins: "version: 1  # default\n".to_owned(),
        }),
        metrics_path: "/metrics".to_owned(),
        started: SystemTime::now(),
        build: BuildInfo::default(),
        kept: Kept::default(),
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let (notes, world) = (Arc::clone(&told), Arc::clone(&context));
    let supervisor = tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            notes
                .lock()
                .push(format!("{command:?}").split("answer").next().unwrap().to_owned());
            obey(&world, command);
        }
    });
    let bound = listen(&"127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
    let address = bound.local_addr().unwrap();
    let listener = Listener::new(Bound::Tcp(bound), ConnectOptions::default()).unwrap();
    let cancel = CancellationToken::new();
    let server = tokio::spawn(serve(listener, router(&context), None, cancel.clone()));
    Served {
        address,
        context,
        told,
        cancel,
        _tasks: vec![AbortOnDropHandle::new(supervisor), AbortOnDropHandle::new(server)],
        _log: Box::new(log_subscriber),
    }
}

/// What the real supervisor would do, as far as it shows here.
fn obey(context: &Context, command: Command) {
    match command {
        Command::Reload { dry_run, answer } => {
            // A refusal is asked for by draining first.
            let outcome = match (dry_run, context.readiness.is_draining()) {
                (_, true) => ReloadOutcome::Refused,
                (true, _) => ReloadOutcome::Valid,
                (false, _) => ReloadOutcome::Applied,
            };
            let report = ReloadReport {
                outcome,
                generation: 2,
                changes: vec!["cluster app: 1 endpoint added".to_owned()],
                diagnostics: json!({"diagnostics": [], "errors": 0, "warnings": 0, "hints": 0}),
                text: String::new(),
            };
            answer.send(report).unwrap();
        }
        Command::Drain { answer } => {
            context.readiness.set_draining(true);
            answer.send(()).unwrap();
        }
        Command::Undrain { answer } => {
            let was = context.readiness.is_draining();
            context.readiness.set_draining(false);
            let done = if was {
                Ok(())
            } else {
                Err("the proxy does not drain".to_owned())
            };
            answer.send(done).unwrap();
        }
        Command::Quit { .. } => {}
        Command::SetEndpoint {
            cluster,
            address,
            drained,
            answer,
            ..
        } => {
            let snapshot = context.cell.load();
            let clusters = snapshot.clusters.iter().filter(|c| *c.name == *cluster);
            let mut endpoints = clusters.flat_map(|c| c.endpoints.iter());
            let found = endpoints.find(|endpoint| *endpoint.label == *address);
            let opinion = match drained {
                true => Opinion::Draining,
                false => Opinion::Up,
            };
            found.inspect(|endpoint| {
                let arbiter = &endpoint.state.arbiter;
                arbiter.set(Source::Admin, opinion, "drained", String::new(), Moment::ZERO);
            });
            answer.send(found.is_some()).unwrap();
        }
    }
}

impl Served {
    /// A request with exactly these fields; `host` is ours unless given.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let io = TokioIo::new(TcpStream::connect(self.address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    /// A change as the command line makes it.
    async fn change(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask(method, path, &CHANGE, body).await
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock())
    }
}

const CHANGE: [(&str, &str); 2] = [("content-type", "application/json"), ("x-bellwether-admin", "1")];

/// The rules for changes, with other fields besides.
fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&CHANGE[..], more].concat()
}

#[tokio::test]
async fn a_process_that_waits_or_drains_lives_but_is_not_ready() {
    let served = served().await;
    assert_eq!(served.get("/livez").await.text, "ok\n");
    let answer = served.get("/readyz").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"ready": true, "draining": false, "waiting_for": []})
    );
    served
        .context
        .readiness
        .wait_for("cluster app: first discovery answer");
    let answer = served.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({"ready": false, "draining": false, "waiting_for": ["cluster app: first discovery answer"]})
    );
    served.context.readiness.set_waiting([]);
    served.context.readiness.set_draining(true);
    assert_eq!(served.get("/readyz").await.status, 503);
    assert_eq!(served.get("/livez").await.status, 200);
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let served = served().await;
    let answer = served.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(answer.text.contains("# TYPE bellwether_build_info gauge"));
}

#[tokio::test]
async fn only_names_of_this_listener_are_answered() {
    let served = served().await;
    let port = served.address.port();
    let ours = [
        "localhost",
        "LOCALHOST:1",
        "proxy.localhost",
        "localhost.",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]:9900",
    ];
    for host in ours {
        let answer = served.ask("GET", "/metrics", &[("host", host)], "").await;
        assert_eq!(answer.status, 200, "{host}");
    }
    let forged = format!("evil.example:{port}");
    let strangers = [
        &*forged,
        "10.0.0.1",
        "localhost.evil.example",
        "xlocalhost",
        "127.0.0.1.evil.example",
        "",
    ];
    for host in strangers {
        for path in ["/metrics", "/", "/api/v1/config", "/nothing"] {
            let answer = served.ask("GET", path, &[("host", host)], "").await;
            assert_eq!(answer.status, 421, "{host} {path}");
            answer.problem();
        }
    }
    let twice = [("host", "localhost"), ("host", "evil.example")];
    assert_eq!(served.ask("GET", "/metrics", &twice, "").await.status, 400);
    let absolute = served
        .ask("GET", "http://evil.example/metrics", &[("host", "localhost")], "")
        .await;
    assert_eq!(absolute.status, 400);
    // Probes come by whatever name a platform uses, and learn nothing else.
    assert_eq!(
        served
            .ask("GET", "/readyz", &[("host", "10.1.2.3:9900")], "")
            .await
            .status,
        200
    );

    let named = served_with(Security {
        hosts: vec!["proxy.internal".to_owned()],
        ..Security::default()
    })
    .await;
    assert_eq!(
        named
            .ask("GET", "/metrics", &[("host", "Proxy.internal:9900")], "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn other_web_sites_get_nothing() {
    let served = served().await;
    let host = served.address.to_string();
    let own = format!("http://{host}");
    assert_eq!(
        served.ask("GET", "/api/v1", &[("origin", &own)], "").await.status,
        200
    );
    for origin in [
        "http://evil.example",
        "null",
        "http://localhost:1",
        "file://",
        &host,
    ] {
        let answer = served.ask("GET", "/api/v1", &[("origin", origin)], "").await;
        assert_eq!(answer.status, 403, "{origin}");
        assert_eq!(answer.headers.get("access-control-allow-origin"), None);
        let change = served
            .ask("POST", "/api/v1/drain", &with(&[("origin", origin)]), "{}")
            .await;
        assert_eq!(change.status, 403, "{origin}");
    }
    let preflight = [("origin", &*own), ("access-control-request-method", "POST")];
    let answer = served.ask("OPTIONS", "/api/v1/drain", &preflight, "").await;
    assert_eq!(answer.status, 403);
    assert!(
        answer
            .headers
            .keys()
            .all(|name| !name.as_str().starts_with("access-control"))
    );
    assert!(served.told().is_empty());
}

#[tokio::test]
async fn a_change_needs_what_no_web_page_can_send() {
    let served = served().await;
    let refused: [(&[(&str, &str)], u16); 6] = [
        (&[], 403),
        (&[("content-type", "application/json")], 403),
        (
            &[
                ("content-type", "application/json"),
                ("x-bellwether-admin", "yes"),
            ],
            403,
        ),
        (&[("x-bellwether-admin", "1")], 415),
        (
            &[("content-type", "text/plain"), ("x-bellwether-admin", "1")],
            415,
        ),
        (
            &[
                ("content-type", "application/x-www-form-urlencoded"),
                ("x-bellwether-admin", "1"),
            ],
            415,
        ),
    ];
    let changes = [
        ("POST", "/api/v1/reload"),
        ("POST", "/api/v1/drain"),
        ("POST", "/api/v1/undrain"),
        ("POST", "/quitquitquit"),
        ("PUT", "/api/v1/log"),
        ("POST", "/api/v1/explain"),
        ("PUT", "/api/v1/clusters/app/endpoints/127.0.0.1:9001/override"),
        ("DELETE", "/api/v1/clusters/app/endpoints/127.0.0.1:9001/override"),
    ];
    for (method, path) in changes {
        for (headers, status) in refused {
            let answer = served.ask(method, path, headers, "{}").await;
            assert_eq!(answer.status, status, "{method} {path} {headers:?}");
            answer.problem();
        }
    }
    assert!(served.told().is_empty());
    let charset = [
        ("content-type", "Application/JSON; charset=utf-8"),
        ("x-bellwether-admin", "1"),
    ];
    assert_eq!(
        served.ask("POST", "/api/v1/drain", &charset, "").await.status,
        200
    );
}

fn tokens() -> Security {
    Security {
        bearer_token: Token::new("s3cret"),
        viewer_token: Token::new("looker"),
        ..Security::default()
    }
}

#[tokio::test]
async fn tokens_come_in_the_header_and_the_viewers_may_only_look() {
    let served = served_with(tokens()).await;
    for path in [
        "/metrics",
        "/api/v1",
        "/api/v1/config?access_token=s3cret",
        "/nothing?token=s3cret",
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"bellwether\"");
        answer.problem();
    }
    for wrong in [
        "Bearer wrong",
        "Bearer s3cre",
        "Bearer s3cret0",
        "Bearer",
        "Bearer ",
        "Basic s3cret",
        "s3cret",
    ] {
        let answer = served
            .ask("GET", "/api/v1", &[("authorization", wrong)], "")
            .await;
        assert_eq!(answer.status, 401, "{wrong}");
    }
    let twice = [
        ("authorization", "Bearer s3cret"),
        ("authorization", "Bearer s3cret"),
    ];
    assert_eq!(served.ask("GET", "/api/v1", &twice, "").await.status, 401);
    for (token, status) in [("bearer looker", 403), ("Bearer s3cret", 200)] {
        let token = ("authorization", token);
        assert_eq!(served.ask("GET", "/api/v1", &[token], "").await.status, 200);
        assert_eq!(
            served
                .ask("POST", "/api/v1/drain", &with(&[token]), "{}")
                .await
                .status,
            status
        );
        let question = r#"{"url": "http://shop.example/"}"#;
        let answer = served
            .ask("POST", "/api/v1/explain", &with(&[token]), question)
            .await;
        assert_eq!(answer.status, 200, "a question changes nothing");
    }
    assert_eq!(served.get("/livez").await.status, 200);
    assert_eq!(served.get("/readyz").await.status, 503);
}

#[test]
fn tokens_are_never_shown_and_never_empty() {
    assert!(Token::new("").is_none() && Token::new(" \n").is_none());
    assert!(!format!("{:?}", tokens()).contains("s3cret"));
}

#[tokio::test]
async fn a_read_only_listener_changes_nothing() {
    let served = served_with(Security {
        read_only: true,
        bearer_token: Token::new("s3cret"),
        ..Security::default()
    })
    .await;
    let token = ("authorization", "Bearer s3cret");
    for path in ["/api/v1/reload", "/api/v1/drain", "/quitquitquit"] {
        let answer = served.ask("POST", path, &with(&[token]), "{}").await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.problem().contains("read_only"));
    }
    assert_eq!(
        served.ask("GET", "/api/v1/config", &[token], "").await.status,
        200
    );
    assert!(served.told().is_empty());
}

#[tokio::test]
async fn what_does_not_exist_is_said_in_the_same_form() {
    let served = served().await;
    for path in [
        "/nothing",
        "/api/v1/nothing",
        "/api/v2",
        "/api/v1/clusters/ap",
        "/api/v1/clusters/ap/endpoints",
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        answer.problem();
    }
    for (method, path) in [("POST", "/api/v1/clusters"), ("DELETE", "/metrics")] {
        let answer = served.change(method, path, "").await;
        assert_eq!(answer.status, 405, "{path}");
        answer.problem();
    }
    assert_eq!(served.get("/api/v1/drain").await.status, 405);
    let large = " ".repeat(MAX_BODY + 1);
    let answer = served.change("POST", "/api/v1/reload", &large).await;
    assert_eq!(answer.status, 413);
    answer.problem();
    for body in ["{", "[]", "{\"dry\": true}", "{\"dry_run\": 1}"] {
        let answer = served.change("POST", "/api/v1/reload", body).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.problem();
    }
    assert!(served.told().is_empty());
}

#[tokio::test]
async fn head_gets_the_fields_without_the_content() {
    let served = served().await;
    for path in ["/livez", "/readyz", "/metrics", "/api/v1/clusters"] {
        let (get, head) = (served.get(path).await, served.ask("HEAD", path, &[], "").await);
        assert_eq!((head.status, &*head.text), (200, ""), "{path}");
        assert_eq!(head.headers["content-type"], get.headers["content-type"]);
    }
}

#[tokio::test]
async fn every_part_of_the_snapshot_can_be_seen() {
    let served = served().await;
    let index = served.get("/api/v1").await.json();
    assert_eq!(
        (&index["name"], &index["generation"]),
        (&json!("bellwether"), &json!(1))
    );
    assert_eq!(
        (&index["connections"], &index["requests_in_flight"]),
        (&json!(0), &json!(0))
    );
    let breakers = served.get("/api/v1/breakers").await.json();
    let breaker = breakers["breakers"][0]["id"].as_str().unwrap().to_owned();
    for entry in index["paths"].as_array().unwrap() {
        let (methods, path) = entry.as_str().unwrap().rsplit_once(' ').unwrap();
        if methods.starts_with("GET") {
            let path = path.replace("{cluster}", "app").replace("{breaker}", &breaker);
            assert_eq!(served.get(&path).await.status, 200, "{path}");
        }
    }
    insta::assert_json_snapshot!("listeners", served.get("/api/v1/listeners").await.json());
    insta::assert_json_snapshot!("routes", served.get("/api/v1/routes").await.json());
    insta::assert_json_snapshot!("clusters", served.get("/api/v1/clusters").await.json());
    insta::assert_json_snapshot!(
        "endpoints",
        served.get("/api/v1/clusters/app/endpoints").await.json()
    );
}

#[tokio::test]
async fn the_configuration_is_shown_with_or_without_origins() {
    let served = served().await;
    let config = served.get("/api/v1/config").await.json();
    assert_eq!(
        (&config["file"], &config["effective"]),
        (&json!("bellwether.yaml"), &json!("version: 1\n"))
    );
    let config = served.get("/api/v1/config?origin=1").await.json();
    assert_eq!(config["effective"], "version: 1  # default\n");
    let answer = served
        .ask(
            "GET",
            "/api/v1/config?origin=0",
            &[("accept", "application/yaml")],
            "",
        )
        .await;
    assert_eq!(
        (&*answer.text, &answer.headers["content-type"]),
        ("version: 1\n", &"application/yaml".parse().unwrap())
    );
}

fn push(context: &Context, kind: EventKind, subject: &str) {
    context.events.push(Change {
        kind,
        subject: subject.to_owned(),
        from: "up".to_owned(),
        to: "down".to_owned(),
        reason: "check_failed".to_owned(),
        evidence: String::new(),
        generation: 1,
    });
}

#[tokio::test]
async fn events_are_listed_by_number_and_kind() {
    let served = served().await;
    push(&served.context, EventKind::Health, "app/a");
    push(&served.context, EventKind::Config, "file");
    push(&served.context, EventKind::Drain, "process");
    let seqs = async |query: &str| -> Vec<u64> {
        let events = served.get(&format!("/api/v1/events{query}")).await.json();
        assert_eq!(events["last"], 3);
        let events = events["events"].as_array().unwrap().clone();
        events
            .iter()
            .map(|event| event["seq"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(seqs("").await, [1, 2, 3]);
    assert_eq!(seqs("?since=2").await, [3]);
    assert_eq!(seqs("?kind=config,drain").await, [2, 3]);
    assert!(
        served
            .get("/api/v1/events?since=x")
            .await
            .problem()
            .contains("since")
    );
    assert!(
        served
            .get("/api/v1/events?kind=weather")
            .await
            .problem()
            .contains("weather")
    );
}

#[tokio::test]
async fn events_can_be_followed_and_end_with_the_listener() {
    let served = served().await;
    push(&served.context, EventKind::Health, "app/a");
    push(&served.context, EventKind::Config, "file");
    let io = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    let request = Request::get("/api/v1/events?kind=health,drain")
        .header("host", "localhost")
        .header("accept", "text/event-stream")
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut text = String::new();
    let mut more = async |text: &mut String| {
        let frame = body.frame().await?.ok()?;
        text.push_str(std::str::from_utf8(&frame.into_data().ok()?).unwrap());
        Some(())
    };
    while !text.contains("\n\n") {
        more(&mut text).await.unwrap();
    }
    assert!(
        text.starts_with("id: 1\nevent: health\ndata: {\"seq\":1,"),
        "{text}"
    );
    text.clear();
    push(&served.context, EventKind::Drain, "process");
    while !text.contains("\n\n") {
        more(&mut text).await.unwrap();
    }
    assert!(text.starts_with("id: 3\nevent: drain\n"), "{text}");
    served.cancel.cancel();
    assert_eq!(more(&mut text).await, None);
}

#[tokio::test]
async fn explain_names_the_route_and_why_not_the_earlier_ones() {
    let served = served().await;
    let question =
        json!({"method": "GET", "url": "http://shop.example:8080/orders//7?x=1", "client_ip": "10.0.0.1"});
    let answer = served
        .change("POST", "/api/v1/explain", &question.to_string())
        .await;
    insta::assert_json_snapshot!("explanation", answer.json());
    let explanation: Explanation = serde_json::from_value(answer.json()).unwrap();
    insta::assert_snapshot!("explanation_text", explanation.text());

    let nowhere = json!({"url": "http://other.example/orders"});
    let answer = served
        .change("POST", "/api/v1/explain", &nowhere.to_string())
        .await;
    let explanation: Explanation = serde_json::from_value(answer.json()).unwrap();
    assert!(explanation.route.is_none() && explanation.nearest.len() == 3);
    insta::assert_snapshot!("explanation_without_route", explanation.text());

    for (url, result) in [
        ("/old", "would be redirected"),
        ("/ping", "would be answered with 204"),
        ("/%zz", "would be refused with 400"),
    ] {
        let question = json!({"url": url, "headers": {"host": "shop.example"}});
        let answer = served
            .change("POST", "/api/v1/explain", &question.to_string())
            .await
            .json();
        assert!(answer["result"].as_str().unwrap().starts_with(result), "{answer}");
    }
    for question in [
        json!({"url": "shop.example"}),
        json!({"url": "/"}),
        json!({"url": "/", "method": "G T"}),
        json!({"url": "http://a/", "listener": "wep"}),
        json!({"url": "http://a/", "headers": {"a b": "c"}}),
        json!({}),
    ] {
        let answer = served
            .change("POST", "/api/v1/explain", &question.to_string())
            .await;
        assert_eq!(answer.status, 400, "{question}");
        answer.problem();
    }
    assert!(served.told().is_empty());
}

#[tokio::test]
async fn a_reload_is_reported_as_it_went() {
    let served = served().await;
    let answer = served.change("POST", "/api/v1/reload", "").await;
    assert_eq!(
        (answer.status, &answer.json()["outcome"]),
        (200, &json!("applied"))
    );
    let answer = served
        .change("POST", "/api/v1/reload", "{\"dry_run\": true}")
        .await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("valid")));
    served.context.readiness.set_draining(true);
    let answer = served.change("POST", "/api/v1/reload", "{}").await;
    assert_eq!(
        (answer.status, &answer.json()["outcome"]),
        (422, &json!("refused"))
    );
    assert_eq!(answer.json()["report"]["errors"], 0);
    assert_eq!(
        served.told(),
        [
            "Reload { dry_run: false, ",
            "Reload { dry_run: true, ",
            "Reload { dry_run: false, ",
        ]
    );
}

#[tokio::test]
async fn draining_can_be_taken_back_and_quitting_is_for_this_machine() {
    let served = served().await;
    assert_eq!(served.change("POST", "/api/v1/undrain", "").await.status, 409);
    let answer = served.change("POST", "/api/v1/drain", "").await;
    assert_eq!(answer.json(), json!({"draining": true, "ready": false}));
    let answer = served.change("POST", "/api/v1/undrain", "").await;
    assert_eq!(answer.json(), json!({"draining": false, "ready": true}));
    served.told();
    let answer = served.change("POST", "/quitquitquit", "{\"now\": true}").await;
    assert_eq!(
        (answer.status, answer.json()),
        (202, json!({"quitting": true, "now": true}))
    );
    assert_eq!(served.told(), ["Quit { now: true }"]);
}

/// A caller from elsewhere, without a socket.
async fn from_elsewhere(context: &Arc<Context>, path: &str, token: Option<&str>) -> u16 {
    use tower::ServiceExt as _;
    let mut request = Request::post(path)
        .header("host", "10.0.0.1:9900")
        .header("content-type", "application/json")
        .header("x-bellwether-admin", "1")
        .extension(crate::net::PeerInfo {
            peer: SocketAddress::Ip("10.0.0.9:1234".parse().unwrap()),
            local: SocketAddress::Ip("10.0.0.1:9900".parse().unwrap()),
            tls: None,
            proxied: None,
        });
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(axum::body::Body::empty()).unwrap();
    router(context).oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn from_another_machine_a_change_needs_a_token_and_quitting_is_never_allowed() {
    let served = served().await;
    assert_eq!(from_elsewhere(&served.context, "/api/v1/drain", None).await, 403);
    assert!(served.told().is_empty());
    served.context.security.store(Arc::new(tokens()));
    assert_eq!(
        from_elsewhere(&served.context, "/api/v1/drain", Some("s3cret")).await,
        200
    );
    assert_eq!(
        from_elsewhere(&served.context, "/quitquitquit", Some("s3cret")).await,
        403
    );
    assert_eq!(served.told().len(), 1);
}

#[tokio::test]
async fn the_level_of_the_log_can_be_changed() {
    let served = served().await;
    assert_eq!(served.get("/api/v1/log").await.json(), json!({"level": "info"}));
    let answer = served
        .change("PUT", "/api/v1/log", "{\"level\": \"debug\"}")
        .await;
    assert_eq!(answer.json(), json!({"level": "debug"}));
    assert_eq!(served.context.log.level(), LogLevel::Debug);
    assert_eq!(
        served
            .change("PUT", "/api/v1/log", "{\"level\": \"loud\"}")
            .await
            .status,
        400
    );
}

const OVERRIDE: &str = "/api/v1/clusters/app/endpoints/127.0.0.1:9001/override";

#[tokio::test]
async fn an_endpoint_is_set_aside_with_a_reason_and_comes_back() {
    let served = served().await;
    let body = r#"{"action": "drain", "ttl": "1h", "reason": "disk swap", "author": "alice"}"#;
    let answer = served.change("PUT", OVERRIDE, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let endpoint = served.get("/api/v1/clusters/app/endpoints").await.json()["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["available"], &endpoint["drained"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(endpoint["state"], "draining");
    let ground = &endpoint["grounds"][0];
    assert_eq!(
        (&ground["source"], &ground["opinion"], &ground["reason"]),
        (&json!("admin"), &json!("draining"), &json!("drained"))
    );
    let shown = &endpoint["override"];
    assert_eq!(
        (&shown["reason"], &shown["author"]),
        (&json!("disk swap"), &json!("alice"))
    );
    assert_eq!(
        shown["until"].as_u64().unwrap() - shown["since"].as_u64().unwrap(),
        3600
    );

    let other = OVERRIDE.replace("9001", "9002");
    let answer = served.change("PUT", &other, r#"{"action": "drain"}"#).await;
    assert_eq!(answer.status, 409, "the last one stays");
    assert!(answer.problem().contains("without an endpoint"));
    assert_eq!(
        served
            .change("PUT", &other, r#"{"action": "drain", "force": true}"#)
            .await
            .status,
        200
    );

    for path in [OVERRIDE, &other] {
        assert_eq!(served.change("DELETE", path, "").await.status, 200);
        assert_eq!(served.change("DELETE", path, "").await.status, 404);
    }
    let endpoint = served.get("/api/v1/clusters/app/endpoints").await.json()["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["available"], &endpoint["override"]),
        (&json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn an_override_wants_sense() {
    let served = served().await;
    for body in [
        "",
        r#"{"action": "explode"}"#,
        r#"{"action": "drain", "ttl": "25h"}"#,
        r#"{"action": "drain", "ttl": "0s"}"#,
        r#"{"action": "drain", "ttl": "10"}"#,
        r#"{"action": "drain", "reason": "a\nb"}"#,
    ] {
        let answer = served.change("PUT", OVERRIDE, body).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.problem();
    }
    for path in [OVERRIDE.replace("9001", "9"), OVERRIDE.replace("app", "ap")] {
        assert_eq!(
            served.change("PUT", &path, r#"{"action": "drain"}"#).await.status,
            404
        );
    }
    assert!(served.told().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_override_ends_by_itself() {
    let served = served().await;
    let drained = || {
        served.context.cell.load().clusters[0].endpoints[0]
            .state
            .availability()
            .is_drained_by(Source::Admin)
    };
    let name = ("app".to_owned(), "127.0.0.1:9001".to_owned());
    let keep = async |ttl: u64| {
        let ttl = Duration::from_secs(ttl);
        assert!(
            operate::set_endpoint(&served.context, &name.0, &name.1, true, "")
                .await
                .unwrap()
        );
        let shown = overrides::Shown::new(overrides::DoneTo::Drain, String::new(), String::new(), ttl);
        overrides::keep(&served.context, name.0.clone(), name.1.clone(), shown, ttl);
    };
    keep(600).await;
    tokio::time::sleep(Duration::from_secs(599)).await;
    keep(600).await;
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(drained(), "a new override starts a new time");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!drained());
    assert!(
        served
            .context
            .kept
            .overrides
            .get("app", "127.0.0.1:9001")
            .is_none()
    );
}

#[tokio::test]
async fn the_public_listener_shows_probes_and_metrics_to_any_name_and_nothing_else() {
    use tower::ServiceExt as _;
    let served = served_with(tokens()).await;
    for (path, status) in [
        ("/metrics", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/", 404),
        ("/api/v1", 404),
        ("/api/v1/drain", 404),
        ("/quitquitquit", 404),
    ] {
        let request = Request::get(path)
            .header("host", "pod-7.svc")
            .body(axum::body::Body::empty())
            .unwrap();
        let answer = public_router(&served.context).oneshot(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_this_machine() {
    let served = served().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let bound = listen_unix(&path, &ListenOptions::default()).unwrap();
    let listener = Listener::new(Bound::Unix(bound), ConnectOptions::default()).unwrap();
    let server = serve(listener, router(&served.context), None, CancellationToken::new());
    let _server = AbortOnDropHandle::new(tokio::spawn(server));
    let io = TokioIo::new(tokio::net::UnixStream::connect(&path).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    let request = Request::post("/quitquitquit").header("host", "localhost");
    let request = CHANGE
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let status = sender.send_request(request).await.unwrap().status();
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(served.told(), ["Quit { now: false }"]);
}

#[tokio::test]
async fn a_supervisor_that_is_gone_is_reported() {
    let mut served = served().await;
    drop(served._tasks.remove(0));
    // The task is aborted; its receiver goes when the runtime gets to it, which `closed` waits for.
    served.context.control.closed().await;
    for (path, body) in [("/api/v1/reload", "{}"), ("/quitquitquit", "{}")] {
        let answer = served.change("POST", path, body).await;
        assert_eq!(answer.status, 503, "{path}");
        answer.problem();
    }
}
