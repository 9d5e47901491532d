//! What an operator may have done: reload, drain, quit, the log's level, an endpoint set aside; and `explain`, which is
//! asked with a body.
//!
//! Handlers translate and wait; the supervisor acts ([`Command`]). A supervisor that does not answer in time is
//! reported as such, never as success.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{FromRequest, Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::overrides::{self, DEFAULT_TTL, DoneTo, MAX_TTL, Shown};
use super::{Command, Context, Explanation, Problem, Question, ReloadOutcome, guard, inspect, problem};
use crate::cluster::Endpoint;
use crate::config::units::Scalar as _;
use crate::net::PeerInfo;
use crate::telemetry::LogLevel;

/// How long a command may take. A reload reads files, and certificates among them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The content of a request; [`super::MAX_BODY`] bounds it.
pub(super) struct Content(Bytes);

impl<S: Send + Sync> FromRequest<S> for Content {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self)
            .map_err(|rejection| Problem::new(rejection.status().as_u16(), rejection.body_text()))
    }
}

/// The content as JSON; nothing at all counts as `{}`.
pub(super) fn read<T: DeserializeOwned>(Content(body): &Content) -> Result<T, Problem> {
    let text: &[u8] = match body.trim_ascii() {
        b"" => b"{}",
        // A list would be taken as the values of the fields in their order.
        text if text.first() != Some(&b'{') => {
            return Err(Problem::new(400, "the content is not a JSON object"));
        }
        text => text,
    };
    serde_json::from_slice(text)
        .map_err(|error| Problem::new(400, format!("the content cannot be used: {error}")))
}

/// Hands a command to the supervisor and waits for its answer.
async fn ask<T>(
    context: &Context,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Problem> {
    let (sender, answer) = oneshot::channel();
    let exchange = async {
        context.control.send(command(sender)).await.ok()?;
        answer.await.ok()
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Problem::new(
            503,
            "the proxy is stopping and takes no commands any more",
        )),
        Err(_elapsed) => Err(Problem::new(
            504,
            "the command was taken but not answered within a minute",
        )),
    }
}

/// Lets the supervisor drain or restore an endpoint; whether there is one.
pub(super) async fn set_endpoint(
    context: &Context,
    cluster: &str,
    address: &str,
    drained: bool,
    reason: &str,
) -> Result<bool, Problem> {
    let (cluster, address, reason) = (cluster.to_owned(), address.to_owned(), reason.to_owned());
    ask(context, |answer| Command::SetEndpoint {
        cluster,
        address,
        drained,
        reason,
        answer,
    })
    .await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReloadRequest {
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct ReloadView {
    outcome: ReloadOutcome,
    dry_run: bool,
    /// In force after it.
    generation: u64,
    changes: Vec<String>,
    /// `{"diagnostics": […], "errors": N, "warnings": N, "hints": N}`.
    report: serde_json::Value,
    /// The same for people.
    text: String,
}

pub(super) async fn reload(State(context): State<Arc<Context>>, body: Content) -> Result<Response, Problem> {
    let ReloadRequest { dry_run } = read(&body)?;
    let report = ask(&context, |answer| Command::Reload { dry_run, answer }).await?;
    let status = match report.outcome {
        ReloadOutcome::Applied | ReloadOutcome::Unchanged | ReloadOutcome::Valid => StatusCode::OK,
        ReloadOutcome::Refused => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let view = ReloadView {
        outcome: report.outcome,
        dry_run,
        generation: report.generation,
        changes: report.changes,
        report: report.diagnostics,
        text: report.text,
    };
    Ok(problem::json(status, "application/json", &view))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, Serialize)]
struct DrainView {
    draining: bool,
    ready: bool,
}

fn drain_view(context: &Context) -> Response {
    problem::ok(&DrainView {
        draining: context.readiness.is_draining(),
        ready: context.readiness.is_ready(),
    })
}

pub(super) async fn drain(State(context): State<Arc<Context>>, body: Content) -> Result<Response, Problem> {
    let Nothing {} = read(&body)?;
    ask(&context, |answer| Command::Drain { answer }).await?;
    Ok(drain_view(&context))
}

pub(super) async fn undrain(State(context): State<Arc<Context>>, body: Content) -> Result<Response, Problem> {
    let Nothing {} = read(&body)?;
    let done = ask(&context, |answer| Command::Undrain { answer }).await?;
    done.map_err(|why| Problem::new(409, why))?;
    Ok(drain_view(&context))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QuitRequest {
    now: bool,
}

#[derive(Debug, Serialize)]
struct QuitView {
    quitting: bool,
    now: bool,
}

pub(super) async fn quit(
    State(context): State<Arc<Context>>,
    peer: Option<Extension<PeerInfo>>,
    body: Content,
) -> Result<Response, Problem> {
    if !guard::is_local(peer.as_deref()) {
        return Err(Problem::new(
            403,
            "only a caller on this machine may end the process",
        ));
    }
    let QuitRequest { now } = read(&body)?;
    let sent = context.control.send(Command::Quit { now }).await;
    sent.map_err(|_stopping| Problem::new(503, "the proxy is stopping already"))?;
    let view = QuitView { quitting: true, now };
    Ok(problem::json(StatusCode::ACCEPTED, "application/json", &view))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogRequest {
    level: String,
}

pub(super) async fn log(State(context): State<Arc<Context>>, body: Content) -> Result<Response, Problem> {
    let LogRequest { level } = read(&body)?;
    let level = LogLevel::from_name(&level).ok_or_else(|| {
        Problem::new(400, format!("`{}` is not a level", level.escape_default()))
            .help("levels: error, warn, info, debug, trace")
    })?;
    let before = context.log.level();
    // At a level that is shown before and after, as far as there is one.
    tracing::warn!(
        from = before.name(),
        to = level.name(),
        "an operator changes the level of this log"
    );
    context.log.set_level(level);
    Ok(inspect::log(State(context)).await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverrideRequest {
    action: DoneTo,
    /// With a unit: `10m`.
    ttl: Option<String>,
    reason: Option<String>,
    author: Option<String>,
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct OverrideView {
    cluster: String,
    address: String,
    #[serde(rename = "override")]
    set_aside: Option<Shown>,
}

/// A text of an operator, short and without control characters, because it goes to logs and screens.
pub(super) fn said(text: Option<String>, otherwise: &str) -> Result<String, Problem> {
    let text = text.unwrap_or_else(|| otherwise.to_owned());
    if text.len() > 200 || text.chars().any(char::is_control) {
        return Err(Problem::new(
            400,
            "`reason` and `author` are one line of at most 200 bytes",
        ));
    }
    Ok(text)
}

pub(super) async fn set_override(
    State(context): State<Arc<Context>>,
    Path((name, address)): Path<(String, String)>,
    peer: Option<Extension<PeerInfo>>,
    body: Content,
) -> Result<Response, Problem> {
    let request: OverrideRequest = read(&body)?;
    let ttl = match &request.ttl {
        None => DEFAULT_TTL,
        Some(text) => Duration::parse(text)
            .map_err(|_refusal| Problem::new(400, "`ttl` is a duration with a unit, like `10m`"))?,
    };
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Problem::new(400, "`ttl` is above 0 and at most 24h"));
    }
    let from = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.peer.to_string());
    let (reason, author) = (said(request.reason, "")?, said(request.author, &from)?);
    {
        let snapshot = context.cell.load();
        let cluster = inspect::find(&snapshot, &name)?;
        let others = cluster
            .endpoints
            .iter()
            .filter(|endpoint| *endpoint.label != *address);
        if others.clone().count() == cluster.endpoints.len() {
            return Err(no_endpoint(&name, &address));
        }
        if !request.force && !others.clone().any(Endpoint::is_usable) {
            return Err(
                Problem::new(409, format!("cluster `{name}` would be left without an endpoint"))
                    .help("add \"force\": true to do it all the same"),
            );
        }
    }
    if context.kept.overrides.is_full() {
        return Err(Problem::new(409, "too many overrides at once"));
    }
    if !set_endpoint(&context, &name, &address, true, &reason).await? {
        return Err(no_endpoint(&name, &address));
    }
    let shown = Shown::new(request.action, reason, author, ttl);
    overrides::keep(&context, name.clone(), address.clone(), shown.clone(), ttl);
    Ok(problem::ok(&OverrideView {
        cluster: name,
        address,
        set_aside: Some(shown),
    }))
}

fn no_endpoint(cluster: &str, address: &str) -> Problem {
    let address = address.escape_default();
    Problem::new(404, format!("cluster `{cluster}` has no endpoint `{address}`"))
        .help(format!("GET /api/v1/clusters/{cluster}/endpoints lists them"))
}

pub(super) async fn end_override(
    State(context): State<Arc<Context>>,
    Path((name, address)): Path<(String, String)>,
) -> Result<Response, Problem> {
    if context.kept.overrides.get(&name, &address).is_none() {
        return Err(Problem::new(404, "there is no override for this endpoint"));
    }
    // The endpoint may have left in the meantime; then there is nothing to restore.
    set_endpoint(&context, &name, &address, false, "the override was taken back").await?;
    drop(context.kept.overrides.remove(&name, &address));
    Ok(problem::ok(&OverrideView {
        cluster: name,
        address,
        set_aside: None,
    }))
}

pub(super) async fn explain(State(context): State<Arc<Context>>, body: Content) -> Result<Response, Problem> {
    let question: Question = read(&body)?;
    let snapshot = context.cell.load();
    let explanation: Explanation =
        super::explain(&snapshot, &question).map_err(|error| Problem::new(400, error.to_string()))?;
    Ok(problem::ok(&explanation))
}
