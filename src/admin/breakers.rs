//! Circuit breakers: how they stand, and orders of operators.
//!
//! An order always ends by itself. It lives in the breaker, so it survives a reload and goes to a successor, and does not
//! survive a restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::response::Response;
use bellwether_core::Moment;
use bellwether_core::breaker::{Force, Report, State as BreakerState};
use serde::{Deserialize, Serialize};

use super::operate::{Content, read, said};
use super::overrides::{DEFAULT_TTL, MAX_TTL};
use super::{Context, Problem, problem};
use crate::config::units::Scalar as _;
use crate::snapshot::{Guarded, Snapshot};
use crate::telemetry::WorkerId;

#[derive(Debug, Serialize)]
struct Breakers {
    generation: u64,
    breakers: Vec<BreakerView>,
}

#[derive(Debug, Serialize)]
struct BreakerView {
    id: Arc<str>,
    /// Routes it stands in the way of.
    routes: Vec<Arc<str>>,
    mode: &'static str,
    state: &'static str,
    reason: Option<&'static str>,
    /// Seconds until the state is due to end.
    seconds_left: Option<f64>,
    /// The share of requests that pass now.
    share: f64,
    openings: u32,
    probes_in_flight: usize,
    window: WindowView,
    settings: SettingsView,
}

#[derive(Debug, Serialize)]
struct WindowView {
    seconds: f64,
    requests: u32,
    failed: u32,
    slow: u32,
}

#[derive(Debug, Serialize)]
struct SettingsView {
    failure_rate: Option<f64>,
    slow_call_rate: Option<f64>,
    slow_call_seconds: Option<f64>,
    consecutive_failures: Option<u32>,
    min_requests: u32,
    open_seconds: f64,
    max_open_seconds: f64,
    half_open_requests: u32,
    half_open_max_in_flight: u32,
    ramp_seconds: f64,
}

fn view(guarded: &Guarded, routes: Vec<Arc<str>>, report: &Report, now: Moment) -> BreakerView {
    let settings = &guarded.settings;
    BreakerView {
        id: Arc::clone(&guarded.name),
        routes,
        mode: settings.mode.name(),
        state: report.state.name(),
        reason: report.cause.map(|cause| cause.name()),
        seconds_left: (report.until < Moment::FAR_FUTURE && report.state != BreakerState::Closed)
            .then(|| report.until.since(now).as_secs_f64()),
        share: report.share,
        openings: report.openings,
        probes_in_flight: report.probes,
        window: WindowView {
            seconds: settings.window.as_secs_f64(),
            requests: report.counts.total,
            failed: report.counts.failed,
            slow: report.counts.slow,
        },
        settings: SettingsView {
            failure_rate: settings.failure_rate,
            slow_call_rate: settings.slow_rate,
            slow_call_seconds: guarded.slow.map(|slow| slow.as_secs_f64()),
            consecutive_failures: settings.consecutive,
            min_requests: settings.min_requests,
            open_seconds: settings.open.as_secs_f64(),
            max_open_seconds: settings.max_open.as_secs_f64(),
            half_open_requests: settings.probes,
            half_open_max_in_flight: settings.max_in_flight,
            ramp_seconds: settings.ramp.unwrap_or_default().as_secs_f64(),
        },
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Every breaker once, with the routes that meet it.
fn all(snapshot: &Snapshot) -> Vec<(&Guarded, Vec<Arc<str>>)> {
    let mut found: Vec<(&Guarded, Vec<Arc<str>>)> = Vec::new();
    for route in snapshot.routes.iter() {
        let of_endpoints = route.breakers.places().iter().flat_map(|(id, place)| {
            let endpoints = snapshot.cluster(*id).map(|cluster| cluster.endpoints.iter());
            let endpoints = endpoints.into_iter().flatten();
            endpoints.filter_map(|endpoint| endpoint.guards.get(*place))
        });
        for guarded in route.breakers.iter().chain(of_endpoints) {
            match found.iter_mut().find(|(known, _)| known.name == guarded.name) {
                Some((_, routes)) => routes.push(Arc::clone(&route.name)),
                None => found.push((guarded, vec![Arc::clone(&route.name)])),
            }
        }
    }
    found
}

fn one(context: &Context, snapshot: &Snapshot, id: &str) -> Result<BreakerView, Problem> {
    let now = context.clock.now();
    let (guarded, routes) = find(snapshot, id)?;
    let report = guarded.report(now, since_epoch());
    Ok(view(guarded, routes, &report, now))
}

fn find<'s>(snapshot: &'s Snapshot, id: &str) -> Result<(&'s Guarded, Vec<Arc<str>>), Problem> {
    all(snapshot)
        .into_iter()
        .find(|(guarded, _)| *guarded.name == *id)
        .ok_or_else(|| {
            Problem::new(404, format!("there is no breaker `{}`", id.escape_default()))
                .help("GET /api/v1/breakers lists them")
        })
}

pub(super) async fn list(State(context): State<Arc<Context>>) -> Response {
    let snapshot = context.cell.load();
    let now = context.clock.now();
    problem::ok(&Breakers {
        generation: snapshot.generation,
        breakers: all(&snapshot)
            .into_iter()
            .map(|(guarded, routes)| view(guarded, routes, &guarded.report(now, since_epoch()), now))
            .collect(),
    })
}

pub(super) async fn breaker(
    State(context): State<Arc<Context>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(problem::ok(&one(&context, &context.cell.load(), &id)?))
}

/// What may be ordered.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wanted {
    Open,
    Closed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    state: Wanted,
    ttl: Option<String>,
    reason: Option<String>,
}

pub(super) async fn order(
    State(context): State<Arc<Context>>,
    Path(id): Path<String>,
    body: Content,
) -> Result<Response, Problem> {
    let order: Order = read(&body)?;
    let ttl = match &order.ttl {
        None => DEFAULT_TTL,
        Some(text) => Duration::parse(text)
            .map_err(|_refusal| Problem::new(400, "`ttl` is a duration with a unit, like `10m`"))?,
    };
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Problem::new(400, "`ttl` is above 0 and at most 24h"));
    }
    let reason = said(order.reason, "")?;
    let snapshot = context.cell.load();
    let (guarded, _) = find(&snapshot, &id)?;
    let now = context.clock.now();
    let force = match order.state {
        Wanted::Open => Force::Open,
        Wanted::Closed => Force::Closed,
    };
    let change = guarded.breaker.force(force, now.plus(ttl), now);
    if let Some(change) = change {
        tracing::warn!(breaker = %guarded.name, state = change.to.name(), ttl = ?ttl, reason, "an operator set a breaker");
        guarded.changed(WorkerId::CONTROL, &context.events, snapshot.generation, &change);
    }
    Ok(problem::ok(&one(&context, &snapshot, &id)?))
}

pub(super) async fn end_order(
    State(context): State<Arc<Context>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let snapshot = context.cell.load();
    let (guarded, _) = find(&snapshot, &id)?;
    let change = guarded.breaker.reset(context.clock.now());
    if let Some(change) = change {
        guarded.changed(WorkerId::CONTROL, &context.events, snapshot.generation, &change);
    }
    Ok(problem::ok(&one(&context, &snapshot, &id)?))
}
