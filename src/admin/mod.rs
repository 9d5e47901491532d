//! The operators' listener: probes, metrics and the JSON API.
//!
//! It shows what the rest of the program knows and asks the supervisor to do things; it decides nothing and changes
//! nothing by itself (the log level excepted). It runs on the control runtime and reads snapshots like anybody else, so
//! a slow scrape or a hostile operator cannot make a request wait.
//!
//! An admin port that anybody may use is the classic hole of proxies, so every request passes the rules of [`guard`]
//! first, and whatever they refuse never reaches a handler.
//!
//! Invariants: a request that changes something is refused unless it could not have come from a web page; no answer
//! holds a secret; everything that is kept per operator (connections, streams, overrides) has a limit.

mod breakers;
mod events;
mod explain;
pub mod guard;
mod heartbeat;
mod inspect;
mod operate;
pub mod overrides;
mod probes;
mod problem;
mod readiness;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
/// What answers an operator's requests.
pub use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post, put};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use explain::{Candidate, Explanation, Found, Near, Question, QuestionError, Skipped, Values, explain};
pub use guard::{Security, Token};
pub use inspect::{ActionView, Share};
pub use readiness::Readiness;
pub use serve::serve;

use crate::net::clock::Clock;
use crate::snapshot::cell::Cell;
use crate::telemetry::{BuildInfo, Events, LogControl, Recorder, Vitals};
use problem::Problem;

/// Everything the operators' listener may show or ask for. Made by `app`.
#[derive(Debug)]
pub struct Context {
    /// The snapshot in force.
    pub cell: Arc<Cell>,
    /// The clock of the process.
    pub clock: Clock,
    /// Renders the metrics.
    pub recorder: Arc<Recorder>,
    /// What changed.
    pub events: Arc<Events>,
    /// Changes the level of the diagnostic log.
    pub log: LogControl,
    /// Whether traffic should come here.
    pub readiness: Arc<Readiness>,
    /// How the process is doing.
    pub vitals: Arc<Vitals>,
    /// Executes commands.
    pub control: mpsc::Sender<Command>,
    /// Who may do what. A reload may replace it.
    pub security: ArcSwap<Security>,
    /// The configuration in force. A reload replaces it.
    pub config: ArcSwap<ConfigText>,
    /// Where metrics are shown, with a leading slash; `/metrics` unless configured.
    pub metrics_path: String,
    /// When the process started.
    pub started: SystemTime,
    /// What runs here.
    pub build: BuildInfo,
    /// What the API keeps for itself; starts empty.
    pub kept: Kept,
}

/// What the API keeps from one request to another.
#[derive(Debug)]
pub struct Kept {
    overrides: overrides::Overrides,
    /// Places for live readers of events.
    streams: Arc<Semaphore>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            overrides: overrides::Overrides::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// The configuration in force in its long form, secrets masked. Comes from `config::show`.
#[derive(Debug, Default)]
pub struct ConfigText {
    /// The main file as the operator named it.
    pub file: String,
    /// Without comments.
    pub plain: String,
    /// With the origin of every value.
    pub with_origins: String,
}

/// What an operator asked for. The supervisor executes it and answers; a dropped `answer` says that it will not.
#[derive(Debug)]
pub enum Command {
    /// Take up the configuration file now.
    Reload {
        /// Only say what would happen.
        dry_run: bool,
        /// What happened.
        answer: oneshot::Sender<ReloadReport>,
    },
    /// Say that we are not ready and start to finish what runs; the process stays.
    Drain {
        /// Done: readiness says no from now on.
        answer: oneshot::Sender<()>,
    },
    /// Take everything back that `Drain` did.
    Undrain {
        /// Done, or why that is not possible any more.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Drain, then exit.
    Quit {
        /// Without waiting for what runs.
        now: bool,
    },
    /// Give an endpoint no new requests, or give it requests again.
    SetEndpoint {
        /// The cluster's name.
        cluster: String,
        /// The endpoint's address as shown by the API.
        address: String,
        /// No new requests.
        drained: bool,
        /// For the event: what the operator said, or that the time is over.
        reason: String,
        /// Whether there is such an endpoint.
        answer: oneshot::Sender<bool>,
    },
}

/// What became of a reload.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// How it ended.
    pub outcome: ReloadOutcome,
    /// The generation in force after it.
    pub generation: u64,
    /// What changed or would change: `cluster app: 1 endpoint added`.
    pub changes: Vec<String>,
    /// What was said about the file: `config::render::json`.
    pub diagnostics: serde_json::Value,
    /// The same for people: `config::render::text`, without colours.
    pub text: String,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// The file is in force.
    Applied,
    /// The file says what is in force already.
    Unchanged,
    /// A dry run: it would be applied.
    Valid,
    /// It is wrong, or needs a restart; what was in force stays so.
    Refused,
}

/// Most bytes of a request's content.
const MAX_BODY: usize = 64 * 1024;
/// Live readers of events at once.
const MAX_STREAMS: usize = 50;

/// All of it: probes, metrics and the API.
pub fn router(context: &Arc<Context>) -> Router {
    let api = Router::new()
        .route("/", get(inspect::index))
        .route("/listeners", get(inspect::listeners))
        .route("/routes", get(inspect::routes))
        .route("/clusters", get(inspect::clusters))
        .route("/clusters/{cluster}", get(inspect::cluster))
        .route("/clusters/{cluster}/endpoints", get(inspect::endpoints))
        .route(
            "/clusters/{cluster}/endpoints/{address}/override",
            put(operate::set_override).delete(operate::end_override),
        )
        .route("/breakers", get(breakers::list))
        // Names of breakers may hold a slash.
        .route(
            "/breakers/{*id}",
            get(breakers::breaker)
                .put(breakers::order)
                .delete(breakers::end_order),
        )
        .route("/config", get(inspect::config))
        .route("/events", get(events::events))
        .route("/explain", post(operate::explain))
        .route("/reload", post(operate::reload))
        .route("/drain", post(operate::drain))
        .route("/undrain", post(operate::undrain))
        .route("/log", get(inspect::log).put(operate::log));
    let router = probes::routes(&context.metrics_path)
        .route("/", get(inspect::index))
        .route("/quitquitquit", post(operate::quit))
        .route(heartbeat::PATH, post(heartbeat::receive))
        .nest("/api/v1", api);
    finish(router, context)
        .layer(middleware::from_fn_with_state(Arc::clone(context), guard::check))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(
            problem::panicked,
        ))
}

/// What may be shown to everybody who reaches `telemetry.metrics.address`: probes and metrics, no control. Scrapers come
/// by whatever name they know us by, so there is no rule about names here; there is nothing to change either.
pub fn public_router(context: &Arc<Context>) -> Router {
    finish(probes::routes(&context.metrics_path), context).layer(
        tower_http::catch_panic::CatchPanicLayer::custom(problem::panicked),
    )
}

fn finish(router: Router<Arc<Context>>, context: &Arc<Context>) -> Router {
    router
        .fallback(|| async {
            Problem::new(404, "there is nothing at this path").help("GET /api/v1 lists what there is")
        })
        .method_not_allowed_fallback(|| async { Problem::new(405, "this path does not take that method") })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::clone(context))
}
