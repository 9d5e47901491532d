//! From a configuration to a snapshot: the only bridge between what is written and what runs.
//!
//! One module per section. Each turns strings and options into settings that are checked, pushes what is wrong into
//! the collector that reading the file began, and goes on, so that an operator sees every mistake at once. Names become
//! indices. State is found again in the [`Registry`].
//!
//! Besides the files of certificates and bodies, nothing is opened here: binding, resolving and checking begin when the
//! snapshot is published, from the [`Plan`]. `bellwether check` is [`dry_run`].
//!
//! Invariant: with an error in the collector there is no snapshot.

mod breaker;
mod cluster;
mod expectations;
mod listener;
mod plan;
mod policy;
mod route;
mod telemetry;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::Arc;

pub use plan::{
    AdminSettings, Certificates, DiscoveryTask, LogSettings, MetricsSettings, Plan, ProbePlan,
    RuntimeSettings, SourcePlan,
};

use super::registry::Registry;
use super::{ClusterId, OverloadSettings, Snapshot};
use crate::config::Document;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::config::units::{self, WordOr};
use crate::net::Address;
use crate::net::clock::Clock;
use crate::telemetry::{Bounds, Recorder, RecorderSettings};

/// A configuration, ready to be published.
#[derive(Debug)]
pub struct Compiled {
    /// What requests see.
    pub snapshot: Snapshot,
    /// What the process does besides.
    pub plan: Plan,
}

/// What every section needs.
struct Context<'a> {
    document: &'a Document,
    registry: &'a Registry,
    out: &'a mut Diagnostics,
    /// By name.
    clusters: HashMap<&'a str, ClusterId>,
    /// Files of TLS, collected on the way.
    certificates: Vec<Certificates>,
    /// Breakers that routes want endpoints to have.
    guards: breaker::Plans,
    /// The proxy is starting: endpoints do not have to wait for their share.
    at_start: bool,
}

impl Context<'_> {
    fn error(&mut self, code: &'static str, message: impl Into<String>, at: Span, label: impl Into<String>) {
        self.out.push(Diagnostic::error(code, message).at(at, label));
    }

    fn cluster_name(&self, id: ClusterId) -> Option<&str> {
        let mut known = self.clusters.iter();
        known.find(|(_, known)| **known == id).map(|(name, _)| *name)
    }

    fn cluster(&mut self, name: &crate::config::Sp<String>) -> Option<ClusterId> {
        let found = self.clusters.get(name.value.as_str()).copied();
        if found.is_none() {
            self.error(
                "E0401",
                format!("cluster `{}` does not exist", name.value),
                name.span,
                "",
            );
        }
        found
    }
}

/// Makes a snapshot of a configuration. **Blocks** on the files that it names.
///
/// `diagnostics` begins as a copy of the document's; what is wrong is added. None when there is any error.
pub fn compile(
    document: &Document,
    registry: &Registry,
    generation: u64,
    diagnostics: &mut Diagnostics,
) -> Option<Compiled> {
    let effective = &document.effective;
    let ids = (0_u32..).map(ClusterId);
    let clusters = effective.clusters.iter().zip(ids);
    let mut cx = Context {
        document,
        registry,
        out: diagnostics,
        clusters: clusters
            .map(|((name, _), id)| (name.value.as_str(), id))
            .collect(),
        certificates: Vec::new(),
        guards: breaker::Plans::new(),
        at_start: generation <= 1,
    };
    cx.guards = breaker::plans(&cx);
    let clusters = cluster::all(&mut cx);
    let routes = route::all(&mut cx);
    let listeners = listener::all(&routes, &mut cx);
    let telemetry = telemetry::all(&mut cx);
    let admin = admin(&mut cx);
    let certificates = std::mem::take(&mut cx.certificates);
    let compiled = Compiled {
        snapshot: Snapshot {
            generation,
            hash: hash(document),
            listeners: listeners.into(),
            routes: routes.into_iter().flatten().map(|route| route.route).collect(),
            clusters: clusters.iter().map(|made| Arc::clone(&made.cluster)).collect(),
            overload: overload(document),
            unrouted: registry.recorder().unrouted(),
            access_log: telemetry.access_log,
            access_fields: telemetry.access_fields,
        },
        plan: Plan {
            discovery: clusters
                .iter()
                .filter_map(|made| made.discovery.clone())
                .collect(),
            probes: clusters.iter().filter_map(|made| made.probe.clone()).collect(),
            certificates,
            admin,
            metrics: telemetry.metrics,
            log: telemetry.log,
            access_output: telemetry.access_output,
            runtime: runtime(document),
            outline: super::diff::Outline::of(document),
            profile: document.config.profile.value,
            files: document
                .diagnostics
                .sources
                .iter()
                .filter_map(|source| source.path.clone())
                .collect(),
        },
    };
    if diagnostics.has_errors() {
        return None;
    }
    expectations::all(document, &compiled.snapshot, diagnostics);
    (!diagnostics.has_errors()).then_some(compiled)
}

/// Compiles as [`compile`] does, for nobody: what `check` reports. **Blocks** on the files that it names.
pub fn dry_run(document: &Document, diagnostics: &mut Diagnostics) -> Option<Compiled> {
    let recorder = Arc::new(Recorder::new(RecorderSettings::default()));
    compile(document, &Registry::new(recorder, Clock::start()), 1, diagnostics)
}

/// How the program's own log is written; needed before anything is compiled.
pub fn log_settings(document: &Document) -> LogSettings {
    telemetry::log(&document.config.telemetry.log)
}

/// What the recorder must know before the first snapshot is compiled; the rest of its settings may change later.
pub fn recorder_settings(document: &Document) -> RecorderSettings {
    let metrics = document.config.telemetry.metrics.value.as_ref();
    let bounds = metrics
        .and_then(telemetry::buckets)
        .map(|buckets| Bounds::of_durations(&buckets));
    RecorderSettings {
        workers: worker_threads(document),
        buckets: bounds.unwrap_or_else(Bounds::latency),
        ..RecorderSettings::default()
    }
}

/// Reports what the next configuration changes although it needs a restart.
pub fn check_restart_only(running: &Plan, next: &Document, diagnostics: &mut Diagnostics) {
    let mut refuse = |what: &str, at: Span, label: String| {
        let diagnostic = Diagnostic::error("E0608", format!("`{what}` cannot change while running"))
            .at(at, label)
            .help("restart the proxy to apply it; the other changes were not applied either");
        diagnostics.push(diagnostic);
    };
    let threads = &next.effective.runtime.worker_threads;
    if worker_threads(next) != running.runtime.worker_threads {
        refuse(
            "runtime.worker_threads",
            threads.span,
            format!("was {}", running.runtime.worker_threads),
        );
    }
    let admin = &next.config.admin;
    let address = admin.value.as_ref().map(|admin| address(&admin.address.value));
    let before = running.admin.as_ref().map(|admin| &admin.address);
    if address.as_ref() != before {
        let at = admin
            .value
            .as_ref()
            .map_or(admin.span, |admin| admin.address.span);
        let was = before.map_or_else(|| "was off".to_owned(), |before| format!("was {before}"));
        refuse("admin.address", at, was);
    }
    let metrics = next.config.telemetry.metrics.value.as_ref();
    if let (Some(metrics), Some(before)) = (metrics, &running.metrics) {
        let buckets = telemetry::buckets(metrics);
        if buckets != before.buckets {
            let at = metrics
                .buckets
                .as_ref()
                .map_or(next.config.telemetry.metrics.span, |buckets| buckets.span);
            refuse(
                "telemetry.metrics.buckets",
                at,
                "other bounds are in use".to_owned(),
            );
        }
    }
}

fn hash(document: &Document) -> Arc<str> {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for source in document.diagnostics.sources.iter() {
        hash.update(source.text.as_bytes());
        hash.update(&[0]);
    }
    format!("{:08x}", hash.digest() >> 32).into()
}

fn worker_threads(document: &Document) -> usize {
    match document.effective.runtime.worker_threads.value {
        // Knows about affinity masks and the quota of the control group.
        WordOr::Word(_) => std::thread::available_parallelism().map_or(1, NonZero::get),
        WordOr::Value(threads) => threads as usize,
    }
}

fn overload(document: &Document) -> Option<OverloadSettings> {
    let written = document.effective.runtime.overload.value.as_ref()?;
    Some(OverloadSettings {
        mode: policy::mode(written.mode.value),
        max_memory: written.max_memory.as_ref().map(|max| max.0),
    })
}

fn runtime(document: &Document) -> RuntimeSettings {
    let runtime = &document.effective.runtime;
    RuntimeSettings {
        worker_threads: worker_threads(document),
        drain_min: runtime.drain.min.value,
        drain_max: runtime.drain.max.value,
        wait_for_app: runtime.drain.wait_for_app.value,
        watch: runtime.reload.watch.value,
        debounce: runtime.reload.debounce.value,
        state_file: runtime.state_file.as_ref().map(|file| file.path.clone()),
    }
}

fn admin(cx: &mut Context<'_>) -> Option<AdminSettings> {
    let document = cx.document;
    let written = document.config.admin.value.as_ref()?;
    let token = |token: Option<&crate::config::Sp<units::Secret>>| {
        // An empty one comes from `${NAME:-}`: no token, never a token that everybody knows.
        let token = token
            .map(|token| token.reveal())
            .filter(|token| !token.is_empty());
        token.map(Arc::from)
    };
    let auth = written.auth.as_ref();
    Some(AdminSettings {
        address: address(&written.address.value),
        read_only: written.read_only.value,
        dashboard: written.dashboard.value,
        bearer_token: token(auth.and_then(|auth| auth.bearer_token.as_ref())),
        viewer_token: token(auth.and_then(|auth| auth.viewer_token.as_ref())),
        heartbeat_token: token(auth.and_then(|auth| auth.heartbeat_token.as_ref())),
        tls: tls::server("admin", &written.tls, &[crate::net::tls::Alpn::Http1], cx),
    })
}

/// An address as the sockets know it.
fn address(written: &units::Address) -> Address {
    match written {
        units::Address::Unix(path) => Address::Unix(path.clone()),
        units::Address::Tcp { host, port } => Address::Tcp {
            host: match host {
                None => String::new(),
                Some(units::Host::Ip(ip)) => ip.to_string(),
                Some(units::Host::Name(name)) => name.clone(),
            },
            port: *port,
        },
    }
}
