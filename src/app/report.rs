//! What the process says about itself: reload reports, the start banner, what operators may do.

use std::fmt::Write as _;
use std::time::Duration;

use super::sockets::Sockets;
use crate::admin::{ConfigText, ReloadOutcome, ReloadReport};
use crate::cluster::probe;
use crate::config::diagnostic::Diagnostics;
use crate::config::render::{self, Look};
use crate::config::{Document, show};
use crate::snapshot::compile::Plan;
use crate::snapshot::{Action, Breakers, PerTry, Retry, RetryMethods, Snapshot, Target};
use crate::telemetry::{AccessLog, AccessOutput, Sink};

/// What became of a reload, for people and for programs.
pub(super) fn report(
    outcome: ReloadOutcome,
    generation: u64,
    changes: Vec<String>,
    diagnostics: &Diagnostics,
) -> ReloadReport {
    ReloadReport {
        outcome,
        generation,
        changes,
        diagnostics: render::json(diagnostics),
        text: render::text(diagnostics, Look::default()),
    }
}

/// The configuration in its long form, for the API.
pub(super) fn config_text(document: &Document) -> ConfigText {
    let file = document
        .diagnostics
        .sources
        .iter()
        .next()
        .map_or_else(String::new, |source| source.name.clone());
    ConfigText {
        file,
        plain: show::yaml(document, None, false).unwrap_or_default(),
        with_origins: show::yaml(document, None, true).unwrap_or_default(),
    }
}

/// Sends the access log elsewhere if the configuration says so.
pub(super) fn switch_access_log(
    log: &AccessLog,
    before: Option<&AccessOutput>,
    after: Option<&AccessOutput>,
) {
    let Some(output) = after.filter(|after| before != Some(*after)) else {
        return;
    };
    match Sink::open(output.clone()) {
        Ok(sink) => log.replace(sink),
        Err(error) => tracing::error!(%error, ?output, "the access log stays where it was"),
    }
}

/// What is in force, in a few lines.
pub(super) fn banner(
    snapshot: &Snapshot,
    plan: &Plan,
    sockets: &Sockets,
    admin: Option<&str>,
    file: &str,
    lines: usize,
    took: Duration,
) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| writeln!(out, "{text}").unwrap_or(());
    line(format!(
        "bellwether {}  config {file} (generation {}, {lines} lines, checked)",
        env!("CARGO_PKG_VERSION"),
        snapshot.generation
    ));
    for listener in &snapshot.listeners {
        let scheme = if listener.tls.is_some() { "https" } else { "http" };
        let local = sockets
            .of(&listener.name)
            .map_or_else(|| listener.address.to_string(), |open| open.local.to_string());
        let protocols = match (&listener.http1, &listener.http2) {
            (Some(_), Some(_)) => "http1 http2",
            (Some(_), None) => "http1",
            (None, _) => "http2",
        };
        line(format!(
            "  listen   {:<8} {scheme}://{local}   {protocols}",
            listener.name
        ));
    }
    const SHOWN: usize = 20;
    for route in snapshot.routes.iter().take(SHOWN) {
        let to = match &route.action {
            Action::Forward(Target::Cluster(id)) => snapshot
                .cluster(*id)
                .map_or("?", |cluster| &cluster.name)
                .to_owned(),
            Action::Forward(Target::Split { clusters, .. }) => {
                format!("{} clusters by weight", clusters.len())
            }
            Action::Redirect(_) => "a redirect".to_owned(),
            Action::Direct(direct) => format!("an answer of its own ({})", direct.status().as_u16()),
        };
        let policies = match &route.action {
            Action::Forward(_) => format!(
                "   {} · timeout {} · {}",
                retry(route.retry.as_ref()),
                duration(route.timeout),
                breaker(&route.breakers, snapshot)
            ),
            Action::Redirect(_) | Action::Direct(_) => String::new(),
        };
        line(format!("  route    {:<8} -> {to}{policies}", route.name));
    }
    if snapshot.routes.len() > SHOWN {
        line(format!("  … and {} more routes", snapshot.routes.len() - SHOWN));
    }
    for cluster in snapshot.clusters.iter().take(SHOWN) {
        let endpoints = match cluster.endpoints.len() {
            1 => "1 endpoint".to_owned(),
            count => format!("{count} endpoints"),
        };
        let checked = plan.probes.iter().find(|probe| probe.cluster == cluster.name);
        let health = checked.map_or_else(String::new, |probe| format!(" · {}", check(&probe.settings)));
        line(format!(
            "  cluster  {:<8} {endpoints}   {}{health}",
            cluster.name,
            cluster.balancer.policy().name()
        ));
    }
    if snapshot.clusters.len() > SHOWN {
        line(format!(
            "  … and {} more clusters",
            snapshot.clusters.len() - SHOWN
        ));
    }
    if let Some(admin) = admin {
        line(format!("  admin    {admin}   /metrics, /readyz, /api/v1"));
    }
    let changes = match (plan.files.is_empty(), plan.runtime.watch) {
        // Standard input, and what the program itself wrote for the demo.
        (true, _) => "",
        (false, true) => " Edit the file: changes are applied when they are valid.",
        (false, false) => " SIGHUP applies changes of the file.",
    };
    line(format!(
        "ready in {} ms.{changes} Ctrl-C drains, twice stops.",
        took.as_millis()
    ));
    out
}

fn retry(retry: Option<&Retry>) -> String {
    let Some(retry) = retry else {
        return "retry off".to_owned();
    };
    let methods = match &retry.methods {
        RetryMethods::Idempotent => "idempotent",
        RetryMethods::All => "all methods",
        RetryMethods::These(_) => "listed methods",
    };
    let per_try = match retry.per_try {
        PerTry::After(share) => format!(", {} each", duration(Some(share))),
        PerTry::Auto | PerTry::Off => String::new(),
    };
    format!("retry {} ({methods}{per_try})", retry.num_retries)
}

fn breaker(breakers: &Breakers, snapshot: &Snapshot) -> String {
    let scope = breakers.scope();
    let of_route = breakers.iter().next().map(|guarded| &guarded.settings);
    let of_endpoints = || {
        let (id, place) = breakers.places().first()?;
        Some(&snapshot.cluster(*id)?.guards.get(*place)?.settings)
    };
    let Some(settings) = of_route.or_else(of_endpoints) else {
        return "breaker off".to_owned();
    };
    let observes = if settings.mode.enforces() {
        ""
    } else {
        ", observes"
    };
    let rate = settings.failure_rate.unwrap_or(1.0) * 100.0;
    let window = duration(Some(settings.window));
    format!(
        "breaker {rate}% of {} in {window} ({scope}{observes})",
        settings.min_requests
    )
}

fn duration(duration: Option<Duration>) -> String {
    match duration {
        None => "off".to_owned(),
        Some(duration) if duration.subsec_millis() == 0 => format!("{}s", duration.as_secs()),
        Some(duration) => format!("{}ms", duration.as_millis()),
    }
}

fn check(settings: &probe::Settings) -> String {
    let every = duration(Some(settings.pace.interval));
    match &settings.kind {
        probe::Kind::Tcp => format!("health connect every {every}"),
        probe::Kind::Http(check) => format!("health {} {} every {every}", check.method, check.path),
        probe::Kind::Grpc(service) if service.is_empty() => format!("health gRPC every {every}"),
        probe::Kind::Grpc(service) => format!("health gRPC {service} every {every}"),
    }
}
