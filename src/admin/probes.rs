//! `/livez`, `/readyz` and the scrape: plain paths under the names that probes and scrapers know.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::{Context, problem};
use crate::message::fail;

/// Where a process says that it lives.
pub(super) const LIVEZ: &str = "/livez";
/// Where it says whether traffic should come.
pub(super) const READYZ: &str = "/readyz";

/// The three of them.
pub(super) fn routes(metrics_path: &str) -> Router<Arc<Context>> {
    // A path that is taken would panic in the router; the configuration's checks refuse most of them, and what is left
    // falls back to the usual name.
    let taken = [LIVEZ, READYZ, "/", "/quitquitquit"].contains(&metrics_path)
        || metrics_path.starts_with("/api/")
        || !metrics_path.starts_with('/')
        || metrics_path.contains(['{', '}', '*', ':']);
    let metrics_path = if taken { "/metrics" } else { metrics_path };
    Router::new()
        .route(LIVEZ, get(livez))
        .route(READYZ, get(readyz))
        .route(metrics_path, get(metrics))
}

/// 200 as long as this runtime turns. Workers that hang are seen by their lag, not here: restarting would not help.
async fn livez() -> Response {
    text("ok\n".to_owned(), "text/plain; charset=utf-8")
}

#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    draining: bool,
    waiting_for: Vec<String>,
}

async fn readyz(State(context): State<Arc<Context>>) -> Response {
    let ready = Ready {
        ready: context.readiness.is_ready(),
        draining: context.readiness.is_draining(),
        waiting_for: context.readiness.missing(),
    };
    let status = if ready.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut answer = problem::json(status, "application/json", &ready);
    if ready.draining {
        answer
            .headers_mut()
            .insert(fail::FAIL, HeaderValue::from_static("drain"));
    }
    answer
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    // Rendering many series takes milliseconds and reads /proc: not on the control runtime's threads.
    let recorder = Arc::clone(&context.recorder);
    match tokio::task::spawn_blocking(move || recorder.render()).await {
        Ok(rendered) => text(rendered, "text/plain; version=0.0.4; charset=utf-8"),
        Err(_) => problem::Problem::new(500, "the metrics could not be rendered").into_response(),
    }
}

fn text(text: String, content_type: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
