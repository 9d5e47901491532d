//! Whether a request may be worked on at all, in the order of what it costs to find out.
//!
//! ```text
//! rate limits     is this client within its share            (admit)
//! overload        can the process afford it                  (admit)
//! route limit     is there a place on this route             (admit)
//! fault           does it fail or wait on purpose            (inject)
//! cluster limit   is there a place there, or will there be   (enter)
//! ```
//!
//! A request waits at one point only: for its place at the cluster and at an endpoint, both or none. What is likely to last
//! is counted apart from what ends soon: upgrades and tunnels from the start, event streams when their answer begins, gRPC
//! calls after ten seconds.
//!
//! Everything here ends a request before anybody else has seen it, so none of it is ever counted against an endpoint, and
//! the answer says that it is ours (`x-bellwether-rejected`), so that the proxy in front of us does not count it either.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::limit::{Stay, wait_until};
use bellwether_core::shed::{Level, Priority};
use bellwether_core::{Deadline, Mode, Moment, Phase, Reason};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Worker;
use super::attempt::{AttemptGuard, Sendable};
use super::attempts::ATTEMPT;
use super::cx::RequestCx;
use super::enter::Entered;
use crate::cluster::{Ask, Cluster, NoPick, Patience, Picked, Tried, TurnedAway};
use crate::message::forwarded::Trust;
use crate::message::grpc;
use crate::message::hygiene::Seen;
use crate::snapshot::{Fault, Route, rate};
use crate::telemetry::{ShedReason, ShedScope};

/// Lets a request in to its route, or says for which reason not.
pub(super) fn admit(
    cx: &mut RequestCx,
    route: &Arc<Route>,
    entered: &Entered,
    headers: &HeaderMap,
) -> Result<(), Reason> {
    cx.priority = priority(cx, route, entered, headers);
    if !route.rate_limits.is_empty() {
        rate_limits(cx, route, entered, headers)?;
    }
    let danger = cx.worker.tools.overload.danger();
    if danger.level >= Level::High && !danger.admits(cx.priority, &mut cx.worker.dice.borrow_mut()) {
        // Not all at the same time again.
        let jitter = cx.worker.dice.borrow_mut().unit();
        cx.retry_after = Some(Duration::from_secs_f64(1.0 + jitter));
        return Err(shed(cx, ShedScope::Process, ShedReason::Overload));
    }
    cx.seat = route
        .seat(stay(entered), cx.priority)
        .ok_or_else(|| shed(cx, ShedScope::Route, ShedReason::Overflow))?;
    Ok(())
}

/// Makes a request wait or fail as its route asks for. What it waits here is not part of the route's time.
pub(super) async fn inject(cx: &mut RequestCx, fault: &Fault, headers: &HeaderMap) -> Result<(), Reason> {
    if fault
        .only_with
        .as_ref()
        .is_some_and(|name| !headers.contains_key(name))
    {
        return Ok(());
    }
    let chance = |cx: &RequestCx, share| cx.worker.dice.borrow_mut().chance(share);
    if let Some((delay, share)) = fault.delay
        && chance(cx, share)
    {
        let wheel = cx.worker.tools.wheel.clone();
        wheel.sleep_until(wheel.now().plus(delay)).await;
        cx.began = wheel.now();
    }
    match fault.abort {
        Some((status, share)) if chance(cx, share) => {
            cx.refused_with = Some(status);
            Err(Reason::FaultInjected)
        }
        Some(_) | None => Ok(()),
    }
}

/// Says how much a request matters: `critical`, `high`, `normal` or `low`. Believed from trusted peers only, as all
/// fields of ours, and passed on.
pub(super) const PRIORITY: HeaderName = HeaderName::from_static("x-bellwether-priority");

/// How much a request matters: what a trusted peer says, else what its route says. What a proxy before us tries again
/// counts one class lower.
fn priority(cx: &RequestCx, route: &Route, entered: &Entered, headers: &HeaderMap) -> Priority {
    match cx.view.hop.trust() {
        Trust::Trusted if entered.seen.any(Seen::OURS) => {
            let said = headers.get(PRIORITY).map(HeaderValue::as_bytes);
            let attempt = 1 + u32::from(headers.contains_key(ATTEMPT));
            said.and_then(Priority::parse)
                .unwrap_or(route.priority)
                .of_attempt(attempt)
        }
        Trust::Trusted | Trust::Untrusted => route.priority,
    }
}

/// Counts a request that is refused because there is too much.
fn shed(cx: &RequestCx, scope: ShedScope, reason: ShedReason) -> Reason {
    cx.worker.metrics.shed(cx.worker.id, scope, cx.priority, reason);
    match reason {
        ShedReason::Overflow => Reason::Overflow,
        ShedReason::QueueFull => Reason::QueueFull,
        ShedReason::QueueTimeout => Reason::QueueTimeout,
        ShedReason::Overload => Reason::Overload,
    }
}

/// Whether the time to the answer says how much a cluster can bear: not of tunnels, and not of a route without a
/// `timeout`, which is one whose clients wait for something to happen.
pub(super) fn is_measured(cx: &RequestCx, sendable: &Sendable<'_>) -> bool {
    sendable.upgrade.is_none() && cx.route(&cx.view).is_some_and(|route| route.timeout.is_some())
}

fn rate_limits(
    cx: &mut RequestCx,
    route: &Arc<Route>,
    entered: &Entered,
    headers: &HeaderMap,
) -> Result<(), Reason> {
    let source = entered.key_source(cx, route, headers);
    match rate::ask(&route.rate_limits, &source, cx.worker.id, cx.started) {
        Ok(standing) => {
            cx.standing = standing;
            Ok(())
        }
        Err(refused) => {
            cx.standing = Some(refused.standing);
            cx.refused_with = Some(refused.status);
            cx.retry_after = Some(refused.retry_after);
            Err(Reason::RateLimited)
        }
    }
}

/// With whom a request is counted before its answer is known.
pub(super) fn stay(entered: &Entered) -> Stay {
    if entered.upgrade.is_some() {
        Stay::Lasting
    } else {
        Stay::Brief
    }
}

/// Looks whether an answer is the beginning of a stream.
pub(super) fn may_last(cx: &mut RequestCx, headers: &HeaderMap, attempt: &mut AttemptGuard) {
    cx.may_last = grpc::is_grpc(headers);
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind
        .is_some_and(|kind| kind.len() >= EVENTS.len() && kind[..EVENTS.len()].eq_ignore_ascii_case(EVENTS))
    {
        cx.lasts();
        attempt.lasts();
    }
}

/// Server-sent events.
const EVENTS: &[u8] = b"text/event-stream";

/// Lets a request in to its cluster: a place there, and the endpoint of its first attempt.
pub(super) async fn enter(
    cx: &mut RequestCx,
    cluster: &Cluster,
    hash: Option<u64>,
    guard: Option<usize>,
    repeatable: bool,
    stay: Stay,
    timeout: Option<Duration>,
) -> Result<Picked, Reason> {
    let ask = Ask {
        tried: &Tried::new(),
        hash,
        // Who can be asked elsewhere finds out for the others; now and then somebody has to who cannot.
        may_probe: repeatable || cx.worker.dice.borrow_mut().chance(SACRIFICE),
        priority: cx.priority,
        stay,
        guard,
    };
    let now = cx.worker.tools.wheel.recent();
    if cluster.is_above_adaptive(cx.priority) == Some(Mode::Observe) {
        cluster.metrics.would_reject(cx.worker.id);
    }
    // Nobody overtakes those who wait.
    let crowded = cluster.is_limited() && cluster.state.gate().waiting() > 0;
    if !crowded {
        let entered = cluster.enter(&ask, now, &mut cx.worker.dice.borrow_mut());
        match entered {
            Ok((seat, picked)) => {
                cx.cluster_seat = seat;
                return Ok(picked);
            }
            Err(NoPick::AtLimit) if cluster.is_limited() => {}
            Err(NoPick::AtLimit) => return Err(Reason::Overflow),
            Err(NoPick::BreakersOpen(left)) => return Err(shut(cx, left)),
            Err(NoPick::NoneAvailable | NoPick::AllTried) => return Err(Reason::NoEndpoint),
        }
    }
    let deadline = timeout.map_or(Deadline::NEVER, |timeout| Deadline::after(cx.began, timeout));
    Box::pin(queue(cx, cluster, &ask, deadline)).await
}

/// The breakers of all endpoints refuse, for so long.
pub(super) fn shut(cx: &mut RequestCx, left: Duration) -> Reason {
    cx.retry_after = Some(left.max(Duration::from_secs(1)));
    Reason::BreakerOpen
}

/// The share of requests that cannot be sent twice and find out all the same whether an ejected endpoint is back.
const SACRIFICE: f64 = 0.05;

/// Waits for a place.
async fn queue(
    cx: &mut RequestCx,
    cluster: &Cluster,
    ask: &Ask<'_>,
    deadline: Deadline,
) -> Result<Picked, Reason> {
    let capacity = cluster.settings.max_queue;
    // A limit that was found out is nobody's setting: there is simply too much.
    let refuse = |cx: &RequestCx, reason| {
        let reason = match cluster.is_above_adaptive(cx.priority) {
            Some(Mode::Enforce) => ShedReason::Overload,
            Some(Mode::Observe) | None => reason,
        };
        Err(shed(cx, ShedScope::Cluster, reason))
    };
    if capacity == 0 || !cx.worker.tools.level().allows_queueing() {
        return refuse(cx, ShedReason::Overflow);
    }
    cx.phase.set(Phase::Queue);
    let worker = Rc::clone(&cx.worker);
    let wheel = &worker.tools.wheel;
    let now = wheel.now();
    let patience = Patience {
        priority: ask.priority,
        until: wait_until(cluster.settings.queue_timeout, deadline, now),
        capacity,
    };
    let enter = || {
        let entered = cluster.enter(ask, wheel.recent(), &mut worker.dice.borrow_mut());
        match entered {
            Ok(entered) => Some(Ok(entered)),
            Err(NoPick::AtLimit) => None,
            Err(NoPick::BreakersOpen(_)) => Some(Err(Reason::BreakerOpen)),
            Err(NoPick::NoneAvailable | NoPick::AllTried) => Some(Err(Reason::NoEndpoint)),
        }
    };
    let queued = Queued::begin(cluster, &worker, now);
    let waited = cluster.state.gate().wait(patience, wheel, enter).await;
    drop(queued);
    match waited {
        Ok(Ok((seat, picked))) => {
            cx.cluster_seat = seat;
            Ok(picked)
        }
        Ok(Err(reason)) => Err(reason),
        Err(TurnedAway::Full) => refuse(cx, ShedReason::QueueFull),
        Err(TurnedAway::Late) => refuse(cx, ShedReason::QueueTimeout),
    }
}

/// Counts one that waits, also if its client leaves meanwhile.
struct Queued<'a> {
    cluster: &'a Cluster,
    worker: &'a Worker,
    since: Moment,
}

impl<'a> Queued<'a> {
    fn begin(cluster: &'a Cluster, worker: &'a Worker, since: Moment) -> Self {
        cluster.metrics.queue_joined(worker.id);
        Self {
            cluster,
            worker,
            since,
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let waited = self.worker.tools.wheel.now().since(self.since);
        self.cluster.metrics.queue_left(self.worker.id, waited);
    }
}
