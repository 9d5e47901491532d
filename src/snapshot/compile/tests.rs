//! What the compiler makes of whole files.

use crate::test_pki as pki;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Moment;

use self::pki::{Authority, Wanted};
use super::{Compiled, SourcePlan, check_restart_only, compile};
use crate::cluster::discovery::Member;
use crate::config::Document;
use crate::config::diagnostic::Diagnostics;
use crate::config::read::Reader;
use crate::net::SocketAddress;
use crate::net::clock::Clock;
use crate::snapshot::{Action, ClusterId, Registry, Target, with_members};
use crate::telemetry::{Recorder, RecorderSettings};

fn registry() -> Registry {
    Registry::new(
        Arc::new(Recorder::new(RecorderSettings::default())),
        Clock::start(),
    )
}

fn read(text: &str) -> Document {
    let read = Reader::new()
        .with_every_block()
        .read_bytes("bellwether.yaml", text.as_bytes());
    read.unwrap_or_else(|diagnostics| panic!("{:?}", diagnostics.sorted()))
}

fn try_compile(text: &str, registry: &Registry, generation: u64) -> Result<Compiled, Diagnostics> {
    let document = read(text);
    let mut diagnostics = document.diagnostics.clone();
    compile(&document, registry, generation, &mut diagnostics).ok_or(diagnostics)
}

fn compiled(text: &str, registry: &Registry, generation: u64) -> Compiled {
    let compiled = try_compile(text, registry, generation);
    compiled.unwrap_or_else(|diagnostics| panic!("{:?}", diagnostics.sorted()))
}

/// Codes of the errors, and the text under each.
fn errors(text: &str) -> Vec<(&'static str, String)> {
    let diagnostics = try_compile(text, &registry(), 1).expect_err("refused");
    let errors = diagnostics.sorted().into_iter().filter(|d| d.is_error());
    errors
        .map(|d| (d.code, diagnostics.sources.slice(d.span()).to_owned()))
        .collect()
}

const QUICKSTART: &str = "\
listeners:
  web: 127.0.0.1:8080
routes:
  - cluster: app
clusters:
  app:
    health_check: /healthz
    endpoints: [127.0.0.1:9001, 127.0.0.1:9002]
";

const TWO: &str = "\
listeners:
  in: 127.0.0.1:8080
  also: 127.0.0.1:8081
  out: { address: 127.0.0.1:15001, direction: outbound }
routes:
  - { name: only-also, listeners: also, match: { path: /x }, cluster: b }
  - { name: out, listeners: out, cluster: a }
  - { name: everywhere, weighted_clusters: { b: 1, a: 3 }, rewrite: { path_prefix: /v2 }, match: { path_prefix: /v1 } }
clusters:
  a: { endpoints: [127.0.0.1:9001] }
  b: { endpoints: [127.0.0.1:9002, 'localhost:9003'] }
";

#[test]
fn the_quickstart_compiles() {
    let compiled = compiled(QUICKSTART, &registry(), 1);
    let snapshot = &compiled.snapshot;
    let listener = snapshot.listener("web").expect("there");
    assert!(listener.http1.is_some() && listener.http2.is_some());
    assert_eq!(listener.max_connections_per_ip, Some(256));
    assert_eq!(&*listener.routes, [0]);
    let route = snapshot.routes.first().expect("one");
    assert_eq!(&*route.name, "route-1");
    assert!(matches!(
        route.action,
        Action::Forward(Target::Cluster(ClusterId(0)))
    ));
    assert_eq!(route.retry.as_ref().map(|retry| retry.num_retries), Some(1));
    let cluster = snapshot.clusters.first().expect("one");
    let labels: Vec<&str> = cluster
        .endpoints
        .iter()
        .map(|endpoint| &*endpoint.label)
        .collect();
    assert_eq!(labels, ["127.0.0.1:9001", "127.0.0.1:9002"]);
    assert!(compiled.plan.discovery.is_empty(), "addresses need no task");
    assert_eq!(compiled.plan.probes.len(), 1);
    assert_eq!(
        compiled
            .plan
            .admin
            .map(|admin| admin.address.to_string())
            .as_deref(),
        Some("127.0.0.1:9900")
    );
}

#[test]
fn names_become_indices_and_routes_are_where_they_belong() {
    let compiled = compiled(TWO, &registry(), 1);
    let snapshot = &compiled.snapshot;
    let on = |name: &str| &*snapshot.listener(name).expect("there").routes;
    assert_eq!(on("in"), [2], "without `listeners`: all inbound");
    assert_eq!(on("also"), [0, 2]);
    assert_eq!(on("out"), [1], "outbound only where it is named");
    let Action::Forward(Target::Split { clusters, .. }) = &snapshot.routes[2].action else {
        panic!("a split");
    };
    assert_eq!(&**clusters, [ClusterId(1), ClusterId(0)]);
    assert_eq!(snapshot.clusters[1].endpoints.len(), 1, "the name joins later");
    let task = compiled.plan.discovery.first().expect("one name to resolve");
    assert!(matches!(&task.source, SourcePlan::Fixed { entries, .. } if entries.len() == 2));
}

#[test]
fn state_is_found_again_whatever_changes() {
    let registry = registry();
    let first = compiled(QUICKSTART, &registry, 1).snapshot;
    let state = Arc::clone(&first.clusters[0].endpoints[0].state);
    assert_eq!(state.arbiter.entered(), Moment::ZERO, "there from the start");

    let changed = QUICKSTART.replace(
        "app:\n    health_check: /healthz",
        "app:\n    connect_timeout: 3s",
    );
    let second = compiled(&changed, &registry, 2).snapshot;
    assert!(Arc::ptr_eq(&state, &second.clusters[0].endpoints[0].state));
    assert!(Arc::ptr_eq(&first.clusters[0].state, &second.clusters[0].state));
    assert!(Arc::ptr_eq(&first.routes[0].state, &second.routes[0].state));
    assert!(Arc::ptr_eq(&first.routes[0].metrics, &second.routes[0].metrics));
    assert_eq!(first.clusters[0].transport, second.clusters[0].transport);

    let without = QUICKSTART.replace("127.0.0.1:9001, ", "");
    drop(compiled(&without, &registry, 3));
    drop((first, second));
    registry.sweep(registry.now().plus(Duration::from_secs(5)));
    let back = compiled(QUICKSTART, &registry, 4).snapshot;
    assert!(Arc::ptr_eq(&state, &back.clusters[0].endpoints[0].state));

    let other = QUICKSTART.replace("9002", "9009");
    let grown = compiled(&other, &registry, 5).snapshot;
    assert_ne!(
        grown.clusters[0].endpoints[1].state.arbiter.entered(),
        Moment::ZERO,
        "starts slowly"
    );
    let spoken = QUICKSTART.replace("app:\n    ", "app:\n    protocol: http2\n    ");
    let spoken = compiled(&spoken, &registry, 6).snapshot;
    assert_ne!(back.clusters[0].transport, spoken.clusters[0].transport);
}

#[test]
fn other_members_share_everything_else() {
    let registry = registry();
    let before = compiled(TWO, &registry, 7).snapshot;
    let known = Member::new(SocketAddress::Ip(([127, 0, 0, 1], 9002).into()));
    let mut found = Member::new(SocketAddress::Ip(([127, 0, 0, 1], 9003).into()));
    found.host = Some("localhost".into());
    let members = [known, found];
    let after = with_members(&before, "b", &members, &registry, registry.now()).expect("there is one");
    assert_eq!(after.generation, 7);
    assert!(Arc::ptr_eq(&before.clusters[0], &after.clusters[0]));
    assert!(Arc::ptr_eq(&before.routes, &after.routes));
    assert!(Arc::ptr_eq(&before.listeners[0], &after.listeners[0]));
    let (old, new) = (&before.clusters[1], &after.clusters[1]);
    assert!(Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[0].state));
    assert!(Arc::ptr_eq(&old.state, &new.state));
    assert_eq!(
        new.endpoints[1].authority, "localhost:9003",
        "as it was configured"
    );
    assert!(with_members(&before, "nobody", &[], &registry, registry.now()).is_none());

    // The next configuration starts with what discovery told, and with what is written about it now.
    let heavier = TWO.replace("'localhost:9003'", "{ address: 'localhost:9003', weight: 5 }");
    let next = compiled(&heavier, &registry, 8).snapshot;
    let weights: Vec<u32> = next.clusters[1]
        .endpoints
        .iter()
        .map(|endpoint| endpoint.weight)
        .collect();
    assert_eq!(weights, [1, 5]);
    let gone = TWO.replace(", 'localhost:9003'", ", 'localhost:9004'");
    let next = compiled(&gone, &registry, 9).snapshot;
    assert_eq!(next.clusters[1].endpoints.len(), 1, "no longer written");
}

fn with_tls(cert: &std::path::Path, key: &std::path::Path, more: &str) -> String {
    let (cert, key) = (cert.display(), key.display());
    QUICKSTART.replace(
        "web: 127.0.0.1:8080",
        &format!("web: {{ address: 127.0.0.1:8443, tls: {{ {more}certificates: [{{ cert: {cert}, key: {key} }}] }} }}"),
    )
}

#[test]
fn tls_is_reused_until_its_settings_change() {
    let mut authority = Authority::new("test");
    let issued = authority.issue("web", &["web.example"]);
    let registry = registry();
    let text = with_tls(&issued.cert, &issued.key, "");
    let first = compiled(&text, &registry, 1);
    let again = compiled(&text.replace("/healthz", "/ready"), &registry, 2);
    let tls = |compiled: &Compiled| compiled.snapshot.listeners[0].tls.clone().expect("on");
    assert!(Arc::ptr_eq(&tls(&first), &tls(&again)));
    assert!(first.plan.certificates[0].is_same(&again.plan.certificates[0]));
    assert!(first.plan.certificates[0].files().contains(&issued.cert));
    let stricter = compiled(
        &with_tls(&issued.cert, &issued.key, "min_version: '1.3', "),
        &registry,
        3,
    );
    assert!(!Arc::ptr_eq(&tls(&first), &tls(&stricter)));
}

#[test]
fn what_is_wrong_with_certificates_is_shown_at_the_file() {
    let mut authority = Authority::new("test");
    let (one, other) = (
        authority.issue("one", &["a.example"]),
        authority.issue("other", &["b.example"]),
    );
    let wanted = Wanted {
        names: &["c.example"],
        expired: true,
    };
    let old = authority.issue_as("old", wanted);
    let shown = |path: &std::path::Path| path.display().to_string();
    assert_eq!(
        errors(&with_tls(&one.cert, &other.key, "")),
        [("E0602", shown(&other.key))]
    );
    assert_eq!(
        errors(&with_tls(&old.cert, &old.key, "")),
        [("E0607", shown(&old.cert))]
    );
    assert_eq!(
        errors(&with_tls(&one.key, &one.cert, ""))
            .first()
            .map(|(code, _)| *code),
        Some("E0602"),
        "swapped"
    );
    // Several mistakes at once.
    let both = with_tls(&one.cert, &other.key, "").replace(
        "- cluster: app",
        "- { cluster: app, request_headers: { set: { x-a: '{nonsense}' } } }",
    );
    let codes: Vec<&str> = errors(&both).into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes, ["E0602", "E0305"]);
}

#[test]
fn tests_of_a_file_are_run() {
    let tests = "\
tests:
  - request: GET http://shop.example/v1/cart?a=b
    expect: { route: everywhere, cluster: a, path: '/v2/cart?a=b', operation: read }
  - request: GET http://shop.example/nothing
    expect: { status: 404 }
  - request: POST http://shop.example/x
    listener: also
    expect: { route: only-also, cluster: b, operation: write }
";
    compiled(&format!("{TWO}{tests}"), &registry(), 1);
    let wrong = tests
        .replace("route: everywhere", "route: out")
        .replace("'/v2/cart?a=b'", "/v1/cart");
    assert_eq!(
        errors(&format!("{TWO}{wrong}")),
        [("E0510", "out".to_owned()), ("E0510", "/v1/cart".to_owned())]
    );
}

#[test]
fn some_keys_need_a_restart() {
    let running = compiled(
        &format!("{QUICKSTART}runtime: {{ worker_threads: 4 }}\n"),
        &registry(),
        1,
    )
    .plan;
    let next = read(&format!(
        "{QUICKSTART}runtime: {{ worker_threads: 8 }}\nadmin: {{ address: 127.0.0.1:9999 }}\n"
    ));
    let mut diagnostics = next.diagnostics.clone();
    check_restart_only(&running, &next, &mut diagnostics);
    let said: Vec<String> = diagnostics
        .sorted()
        .iter()
        .filter(|d| d.is_error())
        .map(|d| {
            let label = d
                .primary
                .as_ref()
                .map(|label| label.text.clone())
                .unwrap_or_default();
            format!("{}: {} ({label})", d.code, d.message)
        })
        .collect();
    assert_eq!(
        said,
        [
            "E0608: `runtime.worker_threads` cannot change while running (was 4)",
            "E0608: `admin.address` cannot change while running (was 127.0.0.1:9900)",
        ]
    );
    let mut diagnostics = Diagnostics::default();
    let same = read(&format!("{QUICKSTART}runtime: {{ worker_threads: 4 }}\n"));
    check_restart_only(&running, &same, &mut diagnostics);
    assert!(!diagnostics.has_errors());
}

#[test]
fn answers_redirects_and_bodies() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    std::fs::write(&page, "<h1>busy</h1>").expect("writable");
    let routes = |file: &std::path::Path| {
        QUICKSTART.replace(
            "routes:\n",
            &format!(
                "routes:\n  - {{ name: page, match: {{ path: /busy }}, direct_response: {{ status: 503, body_file: {} }} }}\n  - {{ name: old, match: {{ path_prefix: /old }}, redirect: {{ path_prefix: /new, status: 301 }} }}\n",
                file.display()
            ),
        )
    };
    let tests = "\
tests:
  - request: GET http://a/busy
    expect: { route: page, status: 503 }
  - request: GET http://a/old/x?y=1
    expect: { route: old, status: 301, location: 'http://a/new/x?y=1' }
";
    compiled(&format!("{}{tests}", routes(&page)), &registry(), 1);
}
