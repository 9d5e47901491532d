//! One try: pick, check out, send, judge.
//!
//! This is the only place where a verdict about an endpoint is formed. An attempt that is dropped without a verdict
//! says nothing about its endpoint, so a client that leaves is never blamed on one.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bellwether_core::adaptive::Sample;
use bellwether_core::breaker::Permit;
use bellwether_core::ejection::Probe;
use bellwether_core::heartbeat::State;
use bellwether_core::{Moment, Origin, Outcome, Phase, Reason, outlier};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, response};

use super::Interim;
use super::body::Streaming;
use super::cx::RequestCx;
use crate::cluster::connect::ConnectError;
use crate::cluster::exchange::{Answer, Checkout, Exchange, ExchangeError, Outgoing};
use crate::cluster::outliers::{Attempted, Witness};
use crate::cluster::pool::Freshness;
use crate::cluster::{Cluster, Endpoint, Picked, Seat};
use crate::message::forwarded::Trust;
use crate::message::hygiene::Seen;
use crate::message::pushback::{Pushback, pushback};
use crate::message::replay::Failure;
use crate::message::reply::REJECTED;
use crate::message::{fail, grpc, hygiene};
use crate::net::wheel::Timer;
use crate::snapshot::FailureWhen;
use crate::telemetry::{AttemptEnd, CloseReason, OutcomeLabel, RetryTrigger, UpstreamFailure, WorkerId};

const GRPC_UNAVAILABLE: u8 = 14;
/// How long a wish to leave holds that came with an answer; a check that is answered without it ends it sooner.
const WISH_HOLDS: Duration = Duration::from_secs(60);

/// What is sent, however often.
#[derive(Debug)]
pub(super) struct Sendable<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// What we add to them.
    pub(super) added: &'a [(HeaderName, HeaderValue)],
    pub(super) upgrade: Option<&'a HeaderValue>,
    /// The client asked by extended CONNECT.
    pub(super) extended: bool,
}

/// A try that led to an answer. Boxed once, because it goes through many hands.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: Box<response::Parts>,
    pub(super) rest: Box<Streaming>,
    pub(super) took: Took,
    /// What its fields may have besides those of everybody.
    pub(super) seen: Seen,
}

/// How long the parts of a try took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Took {
    /// To a new connection; none where there was one.
    pub(super) connect: Option<Duration>,
    /// Waiting for the endpoint.
    pub(super) upstream: Duration,
}

/// A try that led to none.
#[derive(Debug)]
pub(super) struct Failed {
    /// What the client is told if nothing better follows.
    pub(super) reason: Reason,
    /// How certain it is that no endpoint has acted.
    pub(super) exposure: Exposure,
    /// What a retry would be counted under; none where no retry can help.
    pub(super) trigger: Option<RetryTrigger>,
    /// More about `reason`.
    pub(super) detail: Option<Arc<str>>,
    /// The client gave too little time to blame anybody.
    pub(super) hurried: bool,
    pub(super) took: Took,
}

impl Failed {
    fn new(reason: Reason, exposure: Exposure, trigger: Option<RetryTrigger>) -> Self {
        Self {
            reason,
            exposure,
            trigger,
            detail: None,
            hurried: false,
            took: Took::default(),
        }
    }
}

/// What the endpoint can have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Nothing: any request may be tried again.
    Nothing,
    /// Nothing, because a connection that had been idle was gone; a fresh one to the same endpoint may do.
    Stale,
    /// It has seen it, and said that it did nothing about it; a fresh connection to the same endpoint may do.
    Refused,
    /// It may have acted.
    Maybe,
}

/// The right of one attempt to pass the breaker of its endpoint.
#[derive(Debug)]
pub(super) struct Passed {
    guard: usize,
    permit: Permit,
}

impl Passed {
    /// Whether the attempt finds out for the breaker.
    pub(super) fn is_probe(&self) -> bool {
        self.permit.is_probe()
    }
}

/// Asks the breaker of an endpoint, if it has one.
pub(super) fn ask(
    cx: &RequestCx,
    cluster: &Cluster,
    index: usize,
    guard: usize,
) -> Result<Option<Passed>, Duration> {
    let worker = &cx.worker;
    let witness = Witness {
        worker: worker.id,
        events: &worker.events,
        generation: cx.view.snapshot.generation,
        now: worker.tools.wheel.recent(),
        score: worker.vitals.score(),
    };
    let permit = cluster.ask(index, guard, witness, &mut worker.dice.borrow_mut())?;
    Ok(permit.map(|permit| Passed { guard, permit }))
}

/// Counts one attempt at its cluster and endpoint until the verdict.
#[derive(Debug)]
pub(super) struct AttemptGuard {
    cluster: Arc<Cluster>,
    index: usize,
    /// The endpoint is ejected, and this finds out whether it may come back.
    probe: Option<Probe>,
    /// What its breaker is owed a verdict for.
    passed: Option<Passed>,
    /// The place at the endpoint, where that has a limit.
    seat: Option<Seat>,
    /// How long it takes says how much the cluster can bear.
    measured: bool,
    /// The configuration that serves.
    generation: u64,
    worker: Rc<super::Worker>,
    started: Moment,
    /// From the start to the head of the answer.
    rtt: Option<Duration>,
    code: u16,
    grpc: Option<u8>,
    outcome: Option<Outcome>,
    /// The endpoint has all of the request, so that waiting means waiting for it.
    is_sent: bool,
}

impl AttemptGuard {
    fn begin(
        cluster: &Arc<Cluster>,
        picked: Picked,
        passed: Option<Passed>,
        generation: u64,
        worker: &Rc<super::Worker>,
        now: Moment,
    ) -> Self {
        let Picked { index, probe, seat } = picked;
        let endpoint = &cluster.endpoints[index];
        endpoint.state.load.begin(now);
        cluster.metrics.attempt_started(worker.id);
        endpoint.metrics.attempt_started(worker.id);
        Self {
            cluster: Arc::clone(cluster),
            index,
            probe,
            passed,
            seat,
            measured: false,
            generation,
            worker: Rc::clone(worker),
            started: now,
            rtt: None,
            code: 0,
            grpc: None,
            outcome: None,
            is_sent: false,
        }
    }

    fn id(&self) -> WorkerId {
        self.worker.id
    }

    /// The head of the answer arrived.
    fn answered(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        seen: Seen,
        when: &FailureWhen,
        now: Moment,
    ) {
        self.rtt = Some(now.since(self.started));
        self.cluster.endpoints[self.index].state.load.heard(now);
        self.code = status.as_u16();
        let outcome = when.of_status(status, None);
        // A head is a sign of life, however long its body takes.
        self.cluster.endpoints[self.index]
            .state
            .pulse
            .record(outcome, now);
        self.outcome = Some(match outcome {
            Outcome::Success => Outcome::Success,
            // A proxy between us and the endpoint said so for itself.
            _ if seen.any(Seen::OURS) && headers.contains_key(REJECTED) => Outcome::Ignored,
            _ => when.of_status(status, self.hint(headers, now)),
        });
        if seen.any(Seen::GRPC)
            && let Some(code) = grpc::Code::of(headers)
        {
            self.grpc(code.number(), when);
        }
        if let Some(Outcome::Failure(_)) = self.outcome {
            self.cluster
                .metrics
                .attempt_failed(self.id(), UpstreamFailure::Status);
        }
        match self.outcome {
            Some(Outcome::Success | Outcome::Slow) => {
                self.adapt(Sample::Answered(now.since(self.started)), now);
            }
            Some(Outcome::Failure(_) | Outcome::Pushback(_)) => self.adapt(Sample::Failed, now),
            Some(Outcome::Ignored) | None => {}
        }
    }

    /// Lets the adaptive limit of the cluster know, once.
    fn adapt(&mut self, sample: Sample, now: Moment) {
        if std::mem::take(&mut self.measured) {
            self.cluster.adapt(sample, now);
        }
    }

    /// The endpoint says that it wants no more. What a client can have made it say must not be worse than a wish: where
    /// everybody wishes so, they are asked all the same.
    fn wishes_to_leave(&self, now: Moment) {
        self.cluster
            .hear(self.index, State::Drain, WISH_HOLDS, self.witness(now));
    }

    fn witness(&self, now: Moment) -> Witness<'_> {
        Witness {
            worker: self.worker.id,
            events: &self.worker.events,
            generation: self.generation,
            now,
            score: self.worker.vitals.score(),
        }
    }

    /// A gRPC status, in the head or in the trailers, is the last word.
    pub(super) fn grpc(&mut self, code: u8, when: &FailureWhen) {
        self.grpc = Some(code);
        match when.of_grpc(code) {
            Outcome::Success => {}
            outcome => {
                if let Outcome::Failure(_) = outcome {
                    self.cluster
                        .metrics
                        .attempt_failed(self.id(), UpstreamFailure::Grpc);
                }
                self.outcome = Some(outcome);
            }
        }
    }

    fn hint(&self, headers: &HeaderMap, now: Moment) -> Option<Duration> {
        match pushback(headers, self.worker.since_epoch(now))? {
            Pushback::After(wait) => Some(wait),
            Pushback::Never => None,
        }
    }

    /// The gRPC status as far as it is known.
    pub(super) fn grpc_status(&self) -> Option<u8> {
        self.grpc
    }

    /// What it was answered with.
    fn kind(&self) -> outlier::Kind {
        match (self.code, self.grpc) {
            (502..=504, _) | (_, Some(GRPC_UNAVAILABLE)) => outlier::Kind::Gateway,
            (500.., _) => outlier::Kind::ServerError,
            _ => outlier::Kind::Other,
        }
    }

    /// Whether it was answered by a proxy of ours further on, which refused it.
    pub(super) fn was_refused(&self) -> bool {
        self.outcome == Some(Outcome::Ignored)
    }

    /// Whether it was answered with what the route calls a failure, by the endpoint itself.
    pub(super) fn has_failed(&self) -> bool {
        matches!(
            self.outcome,
            Some(Outcome::Failure(_) | Outcome::Pushback(Some(_)))
        ) && self.code != 429
    }

    /// The exchange turns out to last.
    pub(super) fn lasts(&mut self) {
        if let Some(seat) = &mut self.seat {
            seat.lasts();
        }
    }

    /// The answer was complete.
    pub(super) fn succeed(self) {
        drop(self);
    }

    /// The answer broke off.
    pub(super) fn truncated(mut self) {
        self.cluster
            .metrics
            .attempt_failed(self.id(), UpstreamFailure::Truncated);
        self.outcome = Some(Outcome::Failure(Origin::Local));
    }

    /// Nothing may be concluded.
    pub(super) fn ignore(mut self) {
        self.outcome = None;
        self.is_sent = false;
    }

    fn failed(mut self, why: Option<UpstreamFailure>) {
        match why {
            Some(why) => {
                self.cluster.metrics.attempt_failed(self.id(), why);
                let sample = match why {
                    UpstreamFailure::PerTryTimeout | UpstreamFailure::ConnectTimeout => Sample::TimedOut,
                    _ => Sample::Failed,
                };
                self.adapt(sample, self.worker.tools.wheel.recent());
                self.outcome = Some(Outcome::Failure(Origin::Local));
            }
            None => self.ignore(),
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        let now = self.worker.tools.wheel.recent();
        let duration = now.since(self.started);
        let endpoint = &self.cluster.endpoints[self.index];
        if self.rtt.is_none() {
            endpoint.state.load.unheard();
        }
        match self.outcome {
            Some(outcome) => endpoint
                .state
                .load
                .finish(self.rtt.unwrap_or(duration), outcome, now),
            // Nobody waits any more: it takes at least so long, or it would look idle and attract work.
            None if self.is_sent && self.rtt.is_none() => endpoint.state.load.end_at_least(duration, now),
            None => endpoint.state.load.end_ignored(),
        }
        let outcome = self.outcome.unwrap_or(Outcome::Ignored);
        endpoint.state.pulse.record(outcome, now);
        let (passed, probe) = (self.passed.take(), self.probe.take());
        let witness = self.witness(now);
        let mut dice = self.worker.dice.borrow_mut();
        let attempted = Attempted {
            outcome,
            kind: self.kind(),
            began: self.started,
            took: self.rtt.unwrap_or(duration),
        };
        if let Some(Passed { guard, permit }) = passed {
            self.cluster
                .judged(self.index, guard, permit, attempted, witness, &mut dice);
        }
        self.cluster
            .attempted(self.index, probe, attempted, witness, &mut dice);
        drop(dice);
        let outcome = OutcomeLabel::from(outcome);
        self.cluster.metrics.attempt_ended(
            self.worker.id,
            &AttemptEnd {
                code: self.code,
                outcome,
                duration,
            },
        );
        endpoint.metrics.attempt_ended(self.worker.id, outcome);
    }
}

/// Runs one try on one endpoint.
pub(super) async fn attempt(cx: &RequestCx, call: &Call<'_>, aim: Aim) -> Result<Answered, Failed> {
    let Call {
        cluster,
        sendable,
        early,
        per_try,
    } = *call;
    let Aim {
        picked,
        passed,
        freshness,
    } = aim;
    let worker = Rc::clone(&cx.worker);
    let index = picked.index;
    let endpoint = &cluster.endpoints[index];
    cx.phase.set(Phase::Connect);
    let started = worker.tools.wheel.recent();
    let generation = cx.view.snapshot.generation;
    let mut guard = AttemptGuard::begin(cluster, picked, passed, generation, &worker, started);
    guard.measured = cluster.settings.adaptive.is_some() && super::admit::is_measured(cx, sendable);
    let client = cluster
        .settings
        .proxy_protocol
        .is_some()
        .then(|| Rc::clone(&cx.peer));
    let checkout = {
        let checkout = async {
            let open = Checkout::open(&worker.pools, cluster, index, freshness, client.as_ref());
            let checkout = open.await?;
            if sendable.upgrade.is_some() {
                checkout.settled().await;
            }
            Ok::<_, ConnectError>(checkout)
        };
        let mut checkout = pin!(checkout);
        poll_fn(|task| {
            if let Poll::Ready(result) = checkout.as_mut().poll(task) {
                return Poll::Ready(Some(result));
            }
            if expired(cx, per_try, task) {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    };
    let detail = |what: &dyn std::fmt::Display| Some(Arc::from(format!("{}: {what}", endpoint.label)));
    let checkout = match checkout {
        Some(Ok(checkout)) => checkout,
        Some(Err(error)) => {
            guard.failed(error.failure());
            return Err(Failed {
                detail: detail(&error),
                ..not_connected(&error)
            });
        }
        None => {
            guard.failed(Some(UpstreamFailure::ConnectTimeout));
            return Err(Failed {
                detail: detail(&"still connecting"),
                ..timed_out(cx, Exposure::Nothing)
            });
        }
    };
    let opened = worker.tools.wheel.recent();
    let connect = (opened > started).then(|| opened.since(started));
    let took = || Took {
        connect,
        upstream: worker.tools.wheel.now().since(started),
    };
    cx.phase.set(Phase::Send);
    let http2 = checkout.is_http2();
    let translated = super::upgrade::translate(sendable, http2, &worker);
    let outgoing = match &translated {
        Some(translated) => translated.outgoing(sendable),
        None => Outgoing {
            method: sendable.method,
            target: sendable.target.as_bytes(),
            headers: sendable.headers,
            added: sendable.added,
            upgrade: sendable.upgrade,
        },
    };
    let body = cx.replay.attempt();
    let mut exchange = match Exchange::start(checkout, &outgoing, body) {
        Ok(exchange) => exchange,
        Err(ExchangeError::Unsupported) => {
            guard.ignore();
            return Err(Failed::new(Reason::UpgradeRefused, Exposure::Nothing, None));
        }
        Err(error) => {
            guard.failed(Some(UpstreamFailure::Reset));
            return Err(Failed {
                detail: detail(&error),
                ..Failed::new(Reason::ConnectFailed, Exposure::Stale, Some(RetryTrigger::Stale))
            });
        }
    };
    guard.is_sent = cx.replay.is_complete();
    loop {
        cx.phase.set(Phase::Headers);
        let answer = poll_fn(|task| {
            if let Poll::Ready(answer) = exchange.poll_answer(task) {
                return Poll::Ready(Some(answer));
            }
            if expired(cx, per_try, task) {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await;
        match answer {
            Some(Ok(Answer::Interim(status, mut headers))) => {
                // 100 is between us and the endpoint; the client's own was answered when its body was wanted.
                if status != StatusCode::CONTINUE {
                    let seen = hygiene::look(&headers);
                    hygiene::clean_response(&mut headers, seen);
                    early.send(status, &headers);
                }
            }
            Some(Ok(Answer::Final(mut head))) => {
                let took = took();
                let now = worker.tools.wheel.recent();
                let mut seen = hygiene::look(&head.headers);
                if let Some(route) = cx.route(&cx.view) {
                    guard.answered(head.status, &head.headers, seen, &route.failure_when, now);
                }
                if cluster.settings.heeds_answers
                    && seen.any(Seen::OURS.or(Seen::ENVOY))
                    && fail::said(&head.headers).is_some()
                {
                    guard.wishes_to_leave(now);
                    if cx.view.hop.trust() == Trust::Untrusted {
                        fail::strip(&mut head.headers);
                    }
                }
                if let Some(translated) = &translated {
                    translated.answer(&mut head);
                    seen = hygiene::look(&head.headers);
                }
                return Ok(Answered {
                    head,
                    rest: Box::new(Streaming::new(exchange, guard)),
                    took,
                    seen,
                });
            }
            Some(Err(error)) => {
                let took = took();
                return Err(Failed {
                    detail: detail(&error),
                    took,
                    ..no_answer(cx, &error, exchange, guard)
                });
            }
            None => {
                let took = took();
                let exposure = if exchange.is_sent() {
                    Exposure::Maybe
                } else {
                    Exposure::Nothing
                };
                exchange.abandon(CloseReason::Aborted);
                let failed = timed_out(cx, exposure);
                // Time that the client has cut short says nothing about who did not answer in it.
                let hurried = failed.reason == Reason::UpstreamTimeout
                    && cx.limited
                    && took.upstream < judgeable(endpoint, worker.tools.wheel.recent());
                if hurried {
                    guard.ignore();
                } else {
                    guard.failed(Some(UpstreamFailure::PerTryTimeout));
                }
                return Err(Failed {
                    detail: detail(&"no answer in time"),
                    hurried,
                    took,
                    ..failed
                });
            }
        }
    }
}

/// What a try and its copies have in common.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) sendable: &'a Sendable<'a>,
    pub(super) early: Interim<'a>,
    /// The share of this try.
    pub(super) per_try: Option<&'a Timer>,
}

/// Where one try goes, and with what right.
#[derive(Debug)]
pub(super) struct Aim {
    pub(super) picked: Picked,
    pub(super) passed: Option<Passed>,
    pub(super) freshness: Freshness,
}

/// How long an endpoint must have had for an answer that never came to be its fault: half of what it usually takes.
fn judgeable(endpoint: &Endpoint, now: Moment) -> Duration {
    match endpoint.state.load.estimate(now, f32::INFINITY) {
        Some(usual) => Duration::from_secs_f32(usual.max(0.0) / 2.0).max(LEAST_JUDGEABLE),
        None => UNKNOWN_JUDGEABLE,
    }
}

const LEAST_JUDGEABLE: Duration = Duration::from_millis(10);
const UNKNOWN_JUDGEABLE: Duration = Duration::from_millis(500);

fn expired(cx: &RequestCx, per_try: Option<&Timer>, task: &mut std::task::Context<'_>) -> bool {
    cx.timer.poll_expired(task).is_ready() || per_try.is_some_and(|timer| timer.poll_expired(task).is_ready())
}

fn timed_out(cx: &RequestCx, exposure: Exposure) -> Failed {
    // The route's deadline is final, the share of one try is not.
    let mut idle = std::task::Context::from_waker(std::task::Waker::noop());
    if cx.timer.poll_expired(&mut idle).is_ready() {
        Failed::new(Reason::UpstreamTimeout, exposure, None)
    } else {
        Failed::new(Reason::PerTryTimeout, exposure, Some(RetryTrigger::PerTryTimeout))
    }
}

fn not_connected(error: &ConnectError) -> Failed {
    let reason = match error {
        ConnectError::Failed(_) => Reason::ConnectFailed,
        ConnectError::Timeout => Reason::ConnectTimeout,
        ConnectError::Tls(_) => Reason::TlsFailed,
        ConnectError::Protocol(_) => Reason::UpstreamProtocol,
        ConnectError::Limit => Reason::Overflow,
    };
    Failed::new(reason, Exposure::Nothing, Some(RetryTrigger::Connect))
}

fn no_answer(cx: &RequestCx, error: &ExchangeError, exchange: Exchange, guard: AttemptGuard) -> Failed {
    let (sent, reused, answered) = (exchange.is_sent(), exchange.is_reused(), exchange.is_answered());
    match error {
        ExchangeError::Request(_) => {
            exchange.abandon(CloseReason::Aborted);
            guard.ignore();
            let reason = match cx.replay.failure() {
                Some(Failure::TooLarge) => Reason::BodyTooLarge,
                Some(Failure::Stalled) => Reason::ClientTimeout,
                Some(Failure::Malformed) => Reason::ClientProtocol,
                Some(Failure::Gone) | None => Reason::ClientClosed,
            };
            let exposure = if sent { Exposure::Maybe } else { Exposure::Nothing };
            Failed::new(reason, exposure, None)
        }
        ExchangeError::NotProcessed(_) => {
            exchange.abandon(CloseReason::Goaway);
            guard.failed(Some(UpstreamFailure::Reset));
            Failed::new(
                Reason::UpstreamReset,
                Exposure::Refused,
                Some(RetryTrigger::Refused),
            )
        }
        ExchangeError::Lost(_) if reused && !answered => {
            // The endpoint closed an idle connection while the request was on its way. That is no failure of the
            // endpoint, but whether it has seen the request is only certain if nothing left.
            exchange.abandon(CloseReason::Race);
            guard.ignore();
            let exposure = if sent { Exposure::Maybe } else { Exposure::Stale };
            Failed::new(Reason::UpstreamClosed, exposure, Some(RetryTrigger::Stale))
        }
        ExchangeError::Lost(_) => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Reset));
            let exposure = if sent { Exposure::Maybe } else { Exposure::Nothing };
            Failed::new(Reason::UpstreamReset, exposure, Some(RetryTrigger::Reset))
        }
        ExchangeError::Reset(_) => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Reset));
            Failed::new(Reason::UpstreamReset, Exposure::Maybe, Some(RetryTrigger::Reset))
        }
        ExchangeError::Protocol(_) | ExchangeError::Unsupported => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Protocol));
            Failed::new(Reason::UpstreamProtocol, Exposure::Maybe, None)
        }
    }
}
