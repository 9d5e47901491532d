//! What a route does when it cannot answer as it should: another cluster, or an answer of its own.
//!
//! The way is two steps long and no longer: a fallback belongs to a route, and the cluster it leads to has none. That
//! cluster is asked under its own limits, its own budget for retries and its own breaker. It gets the route's timeout once
//! more, because the first is usually what was used up, but never more than the client itself is ready to wait.
//!
//! Invariant: what an endpoint may have executed is sent to another cluster only if it may be sent twice.

use std::sync::Arc;

use bellwether_core::{Moment, Reason};
use bytes::Bytes;
use http::{HeaderMap, Response};

use super::attempts::{self, may_repeat};
use super::cx::RequestCx;
use super::enter::Entered;
use super::{Answered, Interim, View};
use crate::message::direct_response::DirectResponse;
use crate::snapshot::{FallbackTo, Route, Target};
use crate::telemetry::FallbackCause;

/// Does what the route says for a request that ended for `reason`. `headers` are its fields as they came.
///
/// # Errors
/// `reason` where it is not covered, or why the other cluster could not help either.
pub(super) async fn fall_back(
    view: &View,
    cx: &mut RequestCx,
    route: &Arc<Route>,
    entered: &Entered,
    headers: &mut HeaderMap,
    early: Interim<'_>,
    reason: Reason,
) -> Result<Answered, Reason> {
    let covered = route.fallback.as_ref().and_then(|fallback| {
        let cause = FallbackCause::of(reason)?;
        fallback.when.contains(&cause).then_some((&fallback.to, cause))
    });
    let Some((to, cause)) = covered else {
        return Err(reason);
    };
    match to {
        FallbackTo::Direct(answer) => {
            route.metrics.fell_back(cx.worker.id, cause);
            Ok(Answered::Local(direct(
                cx, route, entered, headers, answer, reason,
            )))
        }
        FallbackTo::Cluster(cluster) => {
            if !may_follow(cx, route, entered, headers) {
                return Err(reason);
            }
            let now = cx.worker.tools.wheel.now();
            let began = match cx.asked {
                None => now,
                Some(deadline) if now.since(cx.started) < deadline => cx.started,
                Some(_over) => return Err(reason),
            };
            route.metrics.fell_back(cx.worker.id, cause);
            cx.start_over(reason, began);
            let target = Target::Cluster(*cluster);
            let forwarded = attempts::attempts(view, cx, route, &target, entered, headers, early).await;
            forwarded.map(Answered::Forwarded).map_err(|second| {
                // 503 says that nobody has acted.
                if second.status() == 503 && cx.may_have_acted() {
                    reason
                } else {
                    second
                }
            })
        }
    }
}

/// Whether the request can be sent once more, and may be.
fn may_follow(cx: &RequestCx, route: &Route, entered: &Entered, headers: &HeaderMap) -> bool {
    cx.attempts == 0
        || (cx.replay.is_repeatable()
            && (!cx.may_have_acted() || may_be_sent_twice(cx, route, entered, headers)))
}

fn may_be_sent_twice(cx: &RequestCx, route: &Route, entered: &Entered, headers: &HeaderMap) -> bool {
    match &route.retry {
        Some(retry) => may_repeat(retry, &cx.method, entered, headers),
        None => cx.method.is_idempotent() && entered.upgrade.is_none(),
    }
}

/// The route's own answer. Not to be kept: it is what is said now.
fn direct(
    cx: &mut RequestCx,
    route: &Route,
    entered: &Entered,
    headers: &HeaderMap,
    answer: &DirectResponse,
    reason: Reason,
) -> Response<Bytes> {
    let mut response = answer.response(headers, &entered.values(cx, &route.name));
    let fields = response.headers_mut();
    cx.explain(reason, fields);
    cx.end(reason);
    response
}

/// Whether an answer that is worth another try, for which there is none, is to be replaced.
pub(super) fn replaces(cx: &RequestCx, route: &Route, entered: &Entered, headers: &HeaderMap) -> bool {
    let Some(fallback) = route.fallback.as_ref().filter(|_| !cx.fell_back) else {
        return false;
    };
    fallback.when.contains(&FallbackCause::RetryExhausted)
        && match fallback.to {
            FallbackTo::Direct(_) => true,
            FallbackTo::Cluster(_) => {
                let can = cx.replay.is_repeatable() && !is_late(cx);
                can && may_be_sent_twice(cx, route, entered, headers)
            }
        }
}

fn is_late(cx: &RequestCx) -> bool {
    let now: Moment = cx.worker.tools.wheel.recent();
    cx.asked.is_some_and(|deadline| now.since(cx.started) >= deadline)
}
