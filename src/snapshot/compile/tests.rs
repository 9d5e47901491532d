//! What the compiler makes of whole files.

use std::sync::Arc;

use super::{Compiled, compile};
use crate::config::diagnostic::Diagnostics;
use crate::config::read::Reader;
use crate::net::clock::Clock;
use crate::snapshot::{Action, ClusterId, Registry, Target};
use crate::telemetry::{Recorder, RecorderSettings};

pub(super) fn registry() -> Registry {
    Registry::new(
        Arc::new(Recorder::new(RecorderSettings::default())),
        Clock::start(),
    )
}

fn try_compile(text: &str, registry: &Registry, generation: u64) -> Result<Compiled, Diagnostics> {
    let document = Reader::new().read_bytes("bellwether.yaml", text.as_bytes())?;
    let mut diagnostics = document.diagnostics.clone();
    compile(&document, registry, generation, &mut diagnostics).ok_or(diagnostics)
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

#[test]
fn the_quickstart_compiles() {
    let compiled = try_compile(QUICKSTART, &registry(), 1).expect("valid");
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
