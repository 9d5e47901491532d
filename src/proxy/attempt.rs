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
use bellwether_core::ejection::Probe;
use bellwether_core::{Moment, Origin, Outcome, Phase, Reason, outlier};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, response};

use super::Interim;
use super::body::Streaming;
use super::cx::RequestCx;
use crate::cluster::connect::ConnectError;
use crate::cluster::exchange::{Answer, Checkout, Exchange, ExchangeError, Outgoing};
use crate::cluster::outliers::Witness;
use crate::cluster::pool::Freshness;
use crate::cluster::{Cluster, Picked, Seat};
use crate::message::pushback::{Pushback, pushback};
use crate::message::replay::Failure;
use crate::message::reply::REJECTED;
use crate::message::{grpc, hygiene};
use crate::net::wheel::Timer;
use crate::snapshot::FailureWhen;
use crate::telemetry::{AttemptEnd, CloseReason, OutcomeLabel, RetryTrigger, UpstreamFailure, WorkerId};

const GRPC_UNAVAILABLE: u8 = 14;

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

/// Counts one attempt at its cluster and endpoint until the verdict.
#[derive(Debug)]
pub(super) struct AttemptGuard {
    cluster: Arc<Cluster>,
    index: usize,
    /// The endpoint is ejected, and this finds out whether it may come back.
    probe: Option<Probe>,
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
}

impl AttemptGuard {
    fn begin(
        cluster: &Arc<Cluster>,
        picked: Picked,
        generation: u64,
        worker: &Rc<super::Worker>,
        now: Moment,
    ) -> Self {
        let Picked { index, probe, seat } = picked;
        let endpoint = &cluster.endpoints[index];
        endpoint.state.load.begin();
        cluster.metrics.attempt_started(worker.id);
        endpoint.metrics.attempt_started(worker.id);
        Self {
            cluster: Arc::clone(cluster),
            index,
            probe,
            seat,
            measured: false,
            generation,
            worker: Rc::clone(worker),
            started: now,
            rtt: None,
            code: 0,
            grpc: None,
            outcome: None,
        }
    }

    fn id(&self) -> WorkerId {
        self.worker.id
    }

    /// The head of the answer arrived.
    fn answered(&mut self, status: StatusCode, headers: &HeaderMap, when: &FailureWhen, now: Moment) {
        self.rtt = Some(now.since(self.started));
        self.code = status.as_u16();
        let outcome = when.of_status(status, None);
        self.outcome = Some(match outcome {
            Outcome::Success => Outcome::Success,
            // A proxy between us and the endpoint said so for itself.
            _ if headers.contains_key(REJECTED) => Outcome::Ignored,
            _ => when.of_status(status, self.hint(headers, now)),
        });
        if let Some(code) = grpc::Code::of(headers) {
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
            None => self.outcome = None,
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        let now = self.worker.tools.wheel.recent();
        let duration = now.since(self.started);
        let endpoint = &self.cluster.endpoints[self.index];
        match self.outcome {
            Some(outcome) => endpoint
                .state
                .load
                .finish(self.rtt.unwrap_or(duration), outcome, now),
            None => endpoint.state.load.end_ignored(),
        }
        let outcome = self.outcome.unwrap_or(Outcome::Ignored);
        endpoint.state.pulse.record(outcome, now);
        let witness = Witness {
            worker: self.worker.id,
            events: &self.worker.events,
            generation: self.generation,
            now,
            score: self.worker.vitals.score(),
        };
        self.cluster.attempted(
            self.index,
            self.probe.take(),
            outcome,
            self.kind(),
            witness,
            &mut self.worker.dice.borrow_mut(),
        );
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
pub(super) async fn attempt(
    cx: &mut RequestCx,
    cluster: &Arc<Cluster>,
    picked: Picked,
    freshness: Freshness,
    sendable: &Sendable<'_>,
    early: Interim<'_>,
    per_try: Option<&Timer>,
) -> Result<Answered, Failed> {
    let worker = Rc::clone(&cx.worker);
    let index = picked.index;
    let endpoint = &cluster.endpoints[index];
    cx.attempts += 1;
    cx.endpoint = u32::try_from(index).ok();
    cx.phase = Phase::Connect;
    let started = worker.tools.wheel.recent();
    let mut guard = AttemptGuard::begin(cluster, picked, cx.view.snapshot.generation, &worker, started);
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
    let checkout = match checkout {
        Some(Ok(checkout)) => checkout,
        Some(Err(error)) => {
            cx.detail = Some(format!("{}: {error}", endpoint.label).into());
            let why = error.failure();
            guard.failed(why);
            return Err(not_connected(&error));
        }
        None => {
            guard.failed(Some(UpstreamFailure::ConnectTimeout));
            cx.detail = Some(format!("{}: still connecting", endpoint.label).into());
            return Err(timed_out(cx, Exposure::Nothing));
        }
    };
    let opened = worker.tools.wheel.recent();
    if opened > started {
        cx.connect = Some(opened.since(started));
    }
    cx.phase = Phase::Send;
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
            return Err(Failed {
                reason: Reason::UpgradeRefused,
                exposure: Exposure::Nothing,
                trigger: None,
            });
        }
        Err(error) => {
            guard.failed(Some(UpstreamFailure::Reset));
            cx.detail = Some(format!("{}: {error}", endpoint.label).into());
            return Err(Failed {
                reason: Reason::ConnectFailed,
                exposure: Exposure::Stale,
                trigger: Some(RetryTrigger::Stale),
            });
        }
    };
    let mut guard = guard;
    loop {
        cx.phase = Phase::Headers;
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
                    hygiene::clean_response(&mut headers);
                    early.send(status, &headers);
                }
            }
            Some(Ok(Answer::Final(mut head))) => {
                let now = worker.tools.wheel.now();
                if let Some(route) = cx.route(&cx.view) {
                    guard.answered(head.status, &head.headers, &route.failure_when, now);
                }
                cx.upstream += now.since(started);
                if let Some(translated) = &translated {
                    translated.answer(&mut head);
                }
                return Ok(Answered {
                    head,
                    rest: Box::new(Streaming::new(exchange, guard)),
                });
            }
            Some(Err(error)) => {
                cx.upstream += worker.tools.wheel.now().since(started);
                return Err(no_answer(cx, &endpoint.label, &error, exchange, guard));
            }
            None => {
                cx.upstream += worker.tools.wheel.now().since(started);
                let exposure = if exchange.is_sent() {
                    Exposure::Maybe
                } else {
                    Exposure::Nothing
                };
                exchange.abandon(CloseReason::Aborted);
                guard.failed(Some(UpstreamFailure::PerTryTimeout));
                cx.detail = Some(format!("{}: no answer in time", endpoint.label).into());
                return Err(timed_out(cx, exposure));
            }
        }
    }
}

fn expired(cx: &RequestCx, per_try: Option<&Timer>, task: &mut std::task::Context<'_>) -> bool {
    cx.timer.poll_expired(task).is_ready() || per_try.is_some_and(|timer| timer.poll_expired(task).is_ready())
}

fn timed_out(cx: &RequestCx, exposure: Exposure) -> Failed {
    // The route's deadline is final, the share of one try is not.
    let mut idle = std::task::Context::from_waker(std::task::Waker::noop());
    if cx.timer.poll_expired(&mut idle).is_ready() {
        Failed {
            reason: Reason::UpstreamTimeout,
            exposure,
            trigger: None,
        }
    } else {
        Failed {
            reason: Reason::PerTryTimeout,
            exposure,
            trigger: Some(RetryTrigger::PerTryTimeout),
        }
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
    Failed {
        reason,
        exposure: Exposure::Nothing,
        trigger: Some(RetryTrigger::Connect),
    }
}

fn no_answer(
    cx: &mut RequestCx,
    label: &str,
    error: &ExchangeError,
    exchange: Exchange,
    guard: AttemptGuard,
) -> Failed {
    cx.detail = Some(format!("{label}: {error}").into());
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
            Failed {
                reason,
                exposure: if sent { Exposure::Maybe } else { Exposure::Nothing },
                trigger: None,
            }
        }
        ExchangeError::NotProcessed(_) => {
            exchange.abandon(CloseReason::Goaway);
            guard.failed(Some(UpstreamFailure::Reset));
            Failed {
                reason: Reason::UpstreamReset,
                exposure: Exposure::Refused,
                trigger: Some(RetryTrigger::Refused),
            }
        }
        ExchangeError::Lost(_) if reused && !answered => {
            // The endpoint closed an idle connection while the request was on its way. That is no failure of the
            // endpoint, but whether it has seen the request is only certain if nothing left.
            exchange.abandon(CloseReason::Race);
            guard.ignore();
            let exposure = if sent { Exposure::Maybe } else { Exposure::Stale };
            Failed {
                reason: Reason::UpstreamClosed,
                exposure,
                trigger: Some(RetryTrigger::Stale),
            }
        }
        ExchangeError::Lost(_) => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Reset));
            let exposure = if sent { Exposure::Maybe } else { Exposure::Nothing };
            Failed {
                reason: Reason::UpstreamReset,
                exposure,
                trigger: Some(RetryTrigger::Reset),
            }
        }
        ExchangeError::Reset(_) => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Reset));
            Failed {
                reason: Reason::UpstreamReset,
                exposure: Exposure::Maybe,
                trigger: Some(RetryTrigger::Reset),
            }
        }
        ExchangeError::Protocol(_) | ExchangeError::Unsupported => {
            exchange.abandon(CloseReason::Error);
            guard.failed(Some(UpstreamFailure::Protocol));
            Failed {
                reason: Reason::UpstreamProtocol,
                exposure: Exposure::Maybe,
                trigger: None,
            }
        }
    }
}
