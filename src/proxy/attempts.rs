//! The loop around attempts: which cluster, which endpoint, and whether another try is allowed.
//!
//! A request that no endpoint can have seen is tried on others whatever its method; one that may have been seen is
//! tried again only if it is idempotent and its content is still complete here. Retries prefer endpoints that have
//! not been tried.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::budget::{Denied, Spent};
use bellwether_core::deadline::Deadline;
use bellwether_core::shed::Priority;
use bellwether_core::{Moment, Phase, Reason};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response};

use super::attempt::{self, Aim, Answered, Call, Exposure, Passed, Sendable};
use super::body::{Body, Streaming};
use super::cx::RequestCx;
use super::enter::Entered;
use super::hedge::{self, Hedged};
use super::{Interim, View, admit, copy, fallback, upgrade};
use crate::cluster::pool::Freshness;
use crate::cluster::{Ask, Cluster, NoPick, Tried};
use crate::message::forwarded::{Added, Trust};
use crate::message::hygiene::Seen;
use crate::message::pushback::{Pushback, pushback};
use crate::message::repeatable::{Repeatable, repeatable};
use crate::message::reply::{self, Detail, REJECTED};
use crate::message::{deadline, grpc, hygiene};
use crate::route::{combined_hash, first_hash};
use crate::snapshot::{EXPIRED, HedgePlan, PerTry, Retry, RetryMethods, Route, Target};
use crate::telemetry::{CloseReason, DeadlineStage, RetryResult, RetryTrigger, RetryVeto};
use crate::wire::Reply;

/// Endpoints that may be tried beyond `num_retries` as long as none of them has seen anything of the request.
const UNSEEN_TRIES: u32 = 5;
/// Says which try this is, from the second on; believed from trusted peers only, as all fields of ours.
pub(super) const ATTEMPT: HeaderName = HeaderName::from_static("x-bellwether-attempt");
/// Says that trying again has been tried.
const NO_RETRY: HeaderName = HeaderName::from_static("x-bellwether-no-retry");
/// How much later than asked a retry may come.
const SPREAD: f64 = 0.2;
/// Asks for the debug fields; believed from trusted peers only.
const DEBUG: HeaderName = HeaderName::from_static("x-bellwether-debug");

/// The answer that the client gets, and what is still attached to it.
pub(super) struct Forwarded {
    pub(super) head: Box<response::Parts>,
    rest: Box<Streaming>,
    idle: Option<Duration>,
    upgraded: bool,
}

/// Sends a request until an answer may be kept.
pub(super) async fn attempts(
    view: &View,
    cx: &mut RequestCx,
    route: &Arc<Route>,
    target: &Target,
    entered: &Entered,
    headers: &mut HeaderMap,
    early: Interim<'_>,
) -> Result<Forwarded, Reason> {
    let id = match target {
        Target::Cluster(id) => *id,
        Target::Split {
            split,
            clusters,
            keys,
        } => {
            let key = first_hash(keys, &entered.key_source(cx, route, headers));
            let choice = match key {
                Some(key) => split.by_key(key),
                None => split.by_draw(cx.worker.dice.borrow_mut().next_u64()),
            };
            *clusters.get(choice).ok_or(Reason::NoUpstream)?
        }
    };
    let cluster = view.snapshot.cluster(id).ok_or(Reason::NoUpstream)?;
    cx.cluster = Some(id);
    let asked = if entered.seen.any(Seen::GRPC.or(Seen::OURS).or(Seen::ENVOY)) {
        deadline::take(headers, view.hop.trust())
    } else {
        deadline::Asked::default()
    };
    let deadline = within(cx, route, &asked)?;
    let guarded = match cx.fell_back {
        false => route.breakers.toward(id),
        true => route.breakers.toward_fallback(id),
    };
    if let Some(guarded) = guarded {
        cx.ask_breaker(guarded)?;
    }
    // What another proxy of ours tries again is not tried again here: layers of retries multiply.
    let is_retry = entered.seen.any(Seen::OURS) && headers.contains_key(ATTEMPT);
    if let (Some(budget), false) = (&cluster.budget, is_retry) {
        budget.offer(cx.worker.tools.wheel.recent());
    }
    let hash = cluster
        .balancer
        .policy()
        .is_hashing()
        .then(|| combined_hash(&cluster.settings.hash_on, &entered.key_source(cx, route, headers)));
    let guard = route.breakers.at_endpoints(id);
    let repeatable = match &route.retry {
        _ if is_retry || cx.is_probe() => false,
        Some(retry) => may_repeat(retry, &cx.method, entered, headers),
        None => false,
    };
    let debug = debug_wanted(view, entered, headers);
    let mut added = Added::new();
    let rewritten = prepare(view, cx, route, cluster, entered, headers, &mut added)?;
    let target = rewritten.map_or_else(|| entered.target(), Cow::Owned);
    if let Some(timeout) = deadline.or(route.max_duration) {
        cx.timer.set(cx.began.plus(timeout));
    }
    let stay = admit::stay(entered);
    let mut first = Some(admit::enter(cx, cluster, hash, guard, repeatable, stay, deadline).await?);
    let method = if entered.extended {
        Method::GET
    } else {
        cx.method.clone()
    };
    let mut tries = Tries::new(route.retry.as_ref(), repeatable);
    let mut last = Last::None;
    loop {
        let now = cx.worker.tools.wheel.recent();
        let ask = Ask {
            tried: &tries.tried,
            hash,
            may_probe: repeatable && tries.may_repeat(),
            priority: cx.priority.of_attempt(cx.attempts + 1),
            stay,
            guard,
        };
        let same = tries.again_on.take().and_then(|same| cluster.again(same, &ask));
        let picked = match first.take().or(same) {
            Some(picked) => Ok(picked),
            None => cluster.pick(&ask, now, &mut cx.worker.dice.borrow_mut()),
        };
        let picked = match (picked, tries.answered_by.take()) {
            // Elsewhere where there is an elsewhere; one that was reached may do better on another connection.
            (Err(NoPick::AllTried), Some(same)) => {
                tries.freshness = Freshness::Fresh;
                cluster.again(same, &ask).ok_or(NoPick::AtLimit)
            }
            (picked, _) => picked,
        };
        let picked = match picked {
            Ok(picked) => picked,
            Err(no_pick) => {
                if !matches!(last, Last::None) {
                    route
                        .metrics
                        .retry_vetoed(cx.worker.id, RetryVeto::NoOtherEndpoint);
                }
                // What the last try led to is the better answer.
                return match last {
                    Last::Answer(answered) if fallback::replaces(cx, route, entered, headers) => {
                        give_up(cx, answered);
                        Err(tries.failed(cx, route, Reason::RetryExhausted))
                    }
                    Last::Answer(answered) => {
                        tries.settle(cx, route, false);
                        Ok(forward(
                            cx,
                            route,
                            cluster,
                            answered,
                            debug,
                            tries.counted.is_some(),
                        ))
                    }
                    Last::Failure(reason) => Err(tries.failed(cx, route, reason)),
                    Last::None => Err(match no_pick {
                        NoPick::NoneAvailable | NoPick::AllTried => Reason::NoEndpoint,
                        NoPick::AtLimit => Reason::Overflow,
                        NoPick::BreakersOpen(left) => admit::shut(cx, left),
                    }),
                };
            }
        };
        let passed = match guard {
            Some(guard) => match attempt::ask(cx, cluster, picked.index, guard) {
                Ok(passed) => passed,
                // Somebody else was faster; the next pick sees it.
                Err(_) => {
                    tries.tried.push(u32::try_from(picked.index).unwrap_or(u32::MAX));
                    continue;
                }
            },
            None => None,
        };
        if let Last::Answer(answered) = std::mem::replace(&mut last, Last::None) {
            give_up(cx, answered);
            tries.acted = Some(Reason::RetryExhausted);
        }
        tries.begin();
        if cx.attempts > 0 {
            headers.insert(ATTEMPT, HeaderValue::from(cx.attempts + 1));
        }
        let index = picked.index;
        let endpoint = &cluster.endpoints[index];
        let rewritten = route.rewrite.as_ref().and_then(|rewrite| {
            let mut values = entered.values(cx, &route.name);
            values.cluster = &cluster.name;
            values.endpoint = std::str::from_utf8(endpoint.authority.as_bytes()).unwrap_or("");
            rewrite.host(&values)
        });
        if let Some(host) = rewritten {
            let host = HeaderValue::try_from(host).or(Err(Reason::ClientProtocol))?;
            headers.insert(header::HOST, host);
        } else if entered.host.is_empty() {
            // A client of HTTP/1.0 may name no host; what we send must (RFC 9112 §3.2): the endpoint's own.
            headers.insert(header::HOST, endpoint.authority.clone());
        }
        let per_try = tries.per_try(cx, deadline);
        let ends = per_try.map_or(Deadline::NEVER, Deadline::at);
        let total = deadline.map_or(Deadline::NEVER, |within| Deadline::after(cx.began, within));
        // Measured anew only for who has said how long it waits: then a tick matters.
        let now = match asked.within {
            Some(_) => cx.worker.tools.wheel.now(),
            None => cx.worker.tools.wheel.recent(),
        };
        if let Some(left) = total.earlier(ends).forwarded(now) {
            deadline::tell(headers, &mut added, left, asked.grpc);
        }
        let per_try = per_try.map(|ends| {
            let timer = cx.worker.tools.wheel.timer();
            timer.set(ends);
            timer
        });
        let sendable = Sendable {
            method: &method,
            target: &target,
            headers,
            added: &added,
            upgrade: entered.upgrade.as_ref(),
            extended: entered.extended,
        };
        let aim = Aim {
            picked,
            passed,
            freshness: std::mem::replace(&mut tries.freshness, Freshness::Any),
        };
        cx.attempts += 1;
        cx.endpoint = u32::try_from(index).ok();
        let hedge = route
            .hedge
            .as_ref()
            .filter(|_| cx.worker.tools.level().allows_hedges());
        let call = Call {
            cluster,
            sendable: &sendable,
            early,
            per_try: per_try.as_ref(),
        };
        let (index, mut result) = match hedge.filter(|plan| !is_retry && may_hedge(plan, cx, entered, &aim)) {
            None => (index, attempt::attempt(cx, &call, aim).await),
            Some(plan) => {
                let ask = Ask {
                    tried: &Tried::new(),
                    hash,
                    may_probe: false,
                    priority: cx.priority.of_attempt(cx.attempts + 1),
                    stay,
                    guard,
                };
                let another = |asked: &[usize]| another(cx, cluster, &tries.tried, asked, ask);
                let is_final = |answered: &Answered| tries.retryable_answer(answered).is_none();
                let hedged = hedge::attempt(cx, route, plan, &call, aim, another, is_final).await;
                tries.copied(cx, &hedged);
                (hedged.index, hedged.result)
            }
        };
        if let Ok(answered) = &mut result
            && tries.waits_for_trailers(answered)
        {
            answered.rest.peek(cx, &route.failure_when).await;
        }
        drop(per_try);
        cx.took(&result);
        match result {
            Ok(answered) => {
                if let Some(trigger) = tries.retryable_answer(&answered)
                    && tries.respects(cx, route, &answered.head.headers)
                    && tries.allow(cx, route, cluster, index, Exposure::Maybe, trigger)
                {
                    // Where there is no time for another try, this is the answer.
                    if tries.back_off(cx).await {
                        last = Last::Answer(answered);
                        continue;
                    }
                }
                if answered.rest.attempt.has_failed() && fallback::replaces(cx, route, entered, headers) {
                    give_up(cx, answered);
                    return Err(tries.failed(cx, route, Reason::RetryExhausted));
                }
                tries.settle(cx, route, answered.head.status.as_u16() < 500);
                if !cx.is_probe() && cx.worker.tools.level().allows_mirrors() {
                    mirror(view, cx, route, &sendable);
                    if method == Method::GET && sendable.upgrade.is_none() && cx.replay.is_empty() {
                        copy::rehearse(cx, route, cluster, &sendable);
                    }
                }
                return Ok(forward(
                    cx,
                    route,
                    cluster,
                    answered,
                    debug,
                    tries.counted.is_some(),
                ));
            }
            Err(mut failed) => {
                cx.exposed(failed.exposure);
                cx.detail = failed.detail.take();
                cx.hurried = failed.hurried;
                if cx.limited && failed.reason == Reason::UpstreamTimeout {
                    route
                        .metrics
                        .deadline_expired(cx.worker.id, DeadlineStage::Attempt);
                }
                if failed.exposure == Exposure::Maybe {
                    tries.acted = Some(failed.reason);
                }
                let again = failed
                    .trigger
                    .is_some_and(|trigger| tries.allow(cx, route, cluster, index, failed.exposure, trigger));
                if !again {
                    return Err(tries.failed(cx, route, failed.reason));
                }
                if !tries.back_off(cx).await {
                    if cx.limited {
                        route
                            .metrics
                            .deadline_expired(cx.worker.id, DeadlineStage::Backoff);
                    }
                    return Err(tries.failed(cx, route, Reason::UpstreamTimeout));
                }
                last = Last::Failure(failed.reason);
            }
        }
    }
}

/// An answer that nobody will get.
fn give_up(cx: &mut RequestCx, answered: Answered) {
    let Streaming {
        exchange, attempt, ..
    } = *answered.rest;
    attempt.succeed();
    exchange.abandon(CloseReason::Aborted);
    cx.exposed(Exposure::Maybe);
}

/// What the last try led to, while it is not certain that there is another one.
enum Last {
    /// There was none, or its answer has been given up for the next one.
    None,
    /// An answer that is worth another try. It is kept until an endpoint has been found for that.
    Answer(Answered),
    /// No answer, for this reason.
    Failure(Reason),
}

/// Counts tries and says whether there may be another one.
struct Tries<'a> {
    retry: Option<&'a Retry>,
    repeatable: bool,
    /// Tries after the first that something may have been seen of.
    spent: u32,
    /// Tries that nobody has seen.
    unseen: u32,
    stale: u32,
    tried: Tried,
    freshness: Freshness,
    /// The same endpoint again, on a fresh connection.
    again_on: Option<usize>,
    /// The endpoint of the last try, if it was reached: the one to ask again when there is no other.
    answered_by: Option<usize>,
    /// How the last try ended whose endpoint may have acted.
    acted: Option<Reason>,
    /// What the next try would be counted under.
    allowed: Option<RetryTrigger>,
    /// What the last retry was counted under.
    counted: Option<RetryTrigger>,
    immediate: bool,
    /// How long the last answer asked us to wait.
    asked_for: Option<Duration>,
    /// The present retry, as its cluster's budget counts it.
    paid: Option<Spent>,
}

impl<'a> Tries<'a> {
    fn new(retry: Option<&'a Retry>, repeatable: bool) -> Self {
        Self {
            retry,
            repeatable,
            spent: 0,
            unseen: 0,
            stale: 0,
            tried: Tried::new(),
            freshness: Freshness::Any,
            again_on: None,
            answered_by: None,
            acted: None,
            allowed: None,
            counted: None,
            immediate: true,
            asked_for: None,
            paid: None,
        }
    }

    /// Whether an answer is one to try again after.
    fn retryable_answer(&self, answered: &Answered) -> Option<RetryTrigger> {
        let on = &self.retry?.on;
        let status = answered.head.status;
        let gateway = matches!(
            status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        if (on.gateway_error && gateway)
            || (on.server_error && status.is_server_error())
            || on.statuses.contains(&status)
        {
            return Some(RetryTrigger::Status);
        }
        let code = answered.rest.attempt.grpc_status()?;
        on.grpc.contains(&code).then_some(RetryTrigger::Grpc)
    }

    /// Whether an answer may still turn out, by its first frame, to be one to try again after: gRPC tells in trailers.
    fn waits_for_trailers(&self, answered: &Answered) -> bool {
        self.repeatable
            && self.retry.is_some_and(|retry| !retry.on.grpc.is_empty())
            && self.may_repeat()
            && answered.rest.attempt.grpc_status().is_none()
            && grpc::is_grpc(&answered.head.headers)
    }

    /// Copies were sent: they count as tries of endpoints that may have acted.
    fn copied(&mut self, cx: &mut RequestCx, hedged: &Hedged) {
        cx.attempts += u32::try_from(hedged.others.len()).unwrap_or(u32::MAX);
        cx.endpoint = u32::try_from(hedged.index).ok();
        cx.hedged |= !hedged.others.is_empty();
        for other in &hedged.others {
            cx.exposed(Exposure::Maybe);
            self.tried.push(u32::try_from(*other).unwrap_or(u32::MAX));
        }
    }

    /// Decides about another try after this one.
    fn allow(
        &mut self,
        cx: &RequestCx,
        route: &Route,
        cluster: &Cluster,
        index: usize,
        exposure: Exposure,
        trigger: RetryTrigger,
    ) -> bool {
        let veto = |veto| {
            route.metrics.retry_vetoed(cx.worker.id, veto);
            false
        };
        let index_u32 = u32::try_from(index).unwrap_or(u32::MAX);
        if matches!(exposure, Exposure::Stale | Exposure::Refused) && self.stale == 0 {
            // Nothing was sent and the endpoint did nothing wrong: once more, freshly connected.
            self.stale += 1;
            self.freshness = Freshness::Fresh;
            self.again_on = Some(index);
            self.allowed = Some(trigger);
            return true;
        }
        let Some(retry) = self.retry else { return false };
        let wanted = match trigger {
            RetryTrigger::Connect => retry.on.connect_failure,
            RetryTrigger::Refused => retry.on.refused_stream,
            RetryTrigger::Stale | RetryTrigger::Reset => retry.on.reset,
            RetryTrigger::PerTryTimeout => retry.on.per_try_timeout,
            RetryTrigger::Status | RetryTrigger::Grpc => true,
        };
        if !wanted {
            return false;
        }
        if !cx.replay.is_repeatable() {
            return veto(RetryVeto::BodyOverflow);
        }
        if exposure == Exposure::Maybe {
            if !self.repeatable {
                return veto(RetryVeto::Method);
            }
            if self.spent >= retry.num_retries {
                return veto(RetryVeto::Attempts);
            }
            // A connection that ended while it was idle is nobody's failure, and a fresh one follows.
            if trigger != RetryTrigger::Stale
                && let Err(denied) = self.pay(cx, cluster)
            {
                return veto(denied);
            }
            self.spent += 1;
            self.immediate = self.spent == 1;
            self.answered_by = Some(index);
        } else {
            // Each endpoint that refuses a connection is asked once; that costs nobody anything.
            if self.unseen >= UNSEEN_TRIES.max(retry.num_retries) || retry.num_retries == 0 {
                return veto(RetryVeto::Attempts);
            }
            self.unseen += 1;
        }
        self.tried.push(index_u32);
        self.allowed = Some(trigger);
        true
    }

    /// Pays for a try out of the cluster's budget.
    fn pay(&mut self, cx: &RequestCx, cluster: &Cluster) -> Result<(), RetryVeto> {
        if !cx.worker.tools.level().allows_retries() {
            return Err(RetryVeto::Overload);
        }
        if !cluster.has_room_for_retry(cx.priority.of_attempt(2)) {
            return Err(RetryVeto::InFlightCap);
        }
        let (Some(budget), Some(settings)) = (&cluster.budget, &cluster.settings.retry_budget) else {
            return Ok(());
        };
        // The try before this one is over; what it was granted does not count twice.
        self.paid = None;
        let active = u32::try_from(cluster.metrics.in_flight()).unwrap_or(u32::MAX);
        let now = cx.worker.tools.wheel.recent();
        match budget.spend(settings, active, now) {
            Ok(spent) => {
                self.paid = Some(spent);
                Ok(())
            }
            Err(Denied::Spent) => Err(RetryVeto::Budget),
            Err(Denied::InFlight) => Err(RetryVeto::InFlightCap),
        }
    }

    /// Whether an answer leaves us free to try again, and how long it asks us to wait first.
    fn respects(&mut self, cx: &RequestCx, route: &Route, headers: &HeaderMap) -> bool {
        let Some(retry) = self.retry else { return false };
        let worker = &cx.worker;
        let free = match pushback(headers, worker.since_epoch(worker.tools.wheel.recent())) {
            // A proxy behind us has said no, or has tried for itself.
            _ if headers.contains_key(REJECTED) || headers.contains_key(NO_RETRY) => false,
            Some(Pushback::Never) => false,
            Some(Pushback::After(wait)) => {
                self.asked_for = Some(wait);
                wait <= retry.retry_after_max
            }
            None => true,
        };
        if !free {
            route.metrics.retry_vetoed(worker.id, RetryVeto::Pushback);
        }
        free
    }

    /// When the share of the next try is over.
    fn per_try(&self, cx: &RequestCx, timeout: Option<Duration>) -> Option<Moment> {
        let retry = self.retry?;
        let now = cx.worker.tools.wheel.recent();
        let share = match retry.per_try {
            PerTry::Off => return None,
            PerTry::After(share) => share,
            PerTry::Auto => {
                // Only worth its while if what it cuts off would be tried again.
                let left = retry
                    .num_retries
                    .checked_sub(self.spent)
                    .filter(|left| *left > 0)?;
                if !retry.on.per_try_timeout || !self.repeatable {
                    return None;
                }
                cx.began.plus(timeout?).since(now) / (left + 1)
            }
        };
        Some(now.plus(share))
    }

    /// Whether there could be another try after the next one.
    fn may_repeat(&self) -> bool {
        self.retry.is_some_and(|retry| self.spent < retry.num_retries)
    }

    /// A try begins; if it is a retry, it counts as one from here on.
    fn begin(&mut self) {
        self.counted = self.allowed.take().or(self.counted);
    }

    /// Waits before the next try, and says whether there is time for it. The first retry elsewhere is immediate; later
    /// ones wait with full jitter.
    async fn back_off(&mut self, cx: &mut RequestCx) -> bool {
        let Some(retry) = self.retry else { return true };
        let asked_for = self.asked_for.take();
        if self.immediate && asked_for.is_none() {
            return true;
        }
        let draw = cx.worker.dice.borrow_mut().unit();
        let wait = match asked_for {
            // A little later than asked, so that those who were told the same do not come together.
            Some(asked_for) => asked_for.mul_f64(1.0 + SPREAD * draw),
            None => {
                let (base, most) = retry.backoff;
                base.saturating_mul(1 << self.spent.min(16))
                    .min(most)
                    .mul_f64(draw)
            }
        };
        cx.phase.set(Phase::Queue);
        let wheel = cx.worker.tools.wheel.clone();
        let mut sleep = std::pin::pin!(wheel.sleep_until(wheel.now().plus(wait)));
        std::future::poll_fn(|task| {
            if sleep.as_mut().poll(task).is_ready() {
                return std::task::Poll::Ready(true);
            }
            cx.timer.poll_expired(task).map(|()| false)
        })
        .await
    }

    /// Ends the tries without an answer, and says for which reason. The least certain try speaks: 503 means that no
    /// endpoint can have acted, so it is not said after one that may have.
    fn failed(&self, cx: &RequestCx, route: &Route, reason: Reason) -> Reason {
        self.settle(cx, route, false);
        match self.acted {
            Some(acted) if reason.status() == 503 => acted,
            _ => reason,
        }
    }

    /// Counts how the retries ended.
    fn settle(&self, cx: &RequestCx, route: &Route, success: bool) {
        if let Some(trigger) = self.counted {
            let result = if success {
                RetryResult::Success
            } else {
                RetryResult::Failure
            };
            route.metrics.retried(cx.worker.id, trigger, result);
        }
    }
}

/// Whether copies of a request may be sent: none of one that finds out for a breaker or an ejection, and none whose
/// content is still coming.
fn may_hedge(plan: &HedgePlan, cx: &RequestCx, entered: &Entered, aim: &Aim) -> bool {
    let is_probe =
        cx.is_probe() || aim.picked.probe.is_some() || aim.passed.as_ref().is_some_and(Passed::is_probe);
    let is_covered = match &plan.methods {
        RetryMethods::All => true,
        RetryMethods::These(methods) => methods.contains(&cx.method),
        RetryMethods::Idempotent => cx.method.is_idempotent(),
    };
    cx.attempts == 1 && !is_probe && is_covered && entered.upgrade.is_none() && cx.replay.is_complete()
}

/// An endpoint for a copy of a request that others have been asked already.
fn another(cx: &RequestCx, cluster: &Cluster, tried: &Tried, asked: &[usize], ask: Ask<'_>) -> Option<Aim> {
    let mut tried = tried.clone();
    tried.extend(asked.iter().filter_map(|index| u32::try_from(*index).ok()));
    let now = cx.worker.tools.wheel.recent();
    let ask = Ask { tried: &tried, ..ask };
    let picked = cluster.pick(&ask, now, &mut cx.worker.dice.borrow_mut()).ok()?;
    let passed = match ask.guard {
        Some(guard) => attempt::ask(cx, cluster, picked.index, guard).ok()?,
        None => None,
    };
    let is_probe = picked.probe.is_some() || passed.as_ref().is_some_and(Passed::is_probe);
    (!is_probe).then_some(Aim {
        picked,
        passed,
        freshness: Freshness::Any,
    })
}

/// Whether a request that an endpoint may have seen can be sent again.
pub(super) fn may_repeat(retry: &Retry, method: &Method, entered: &Entered, headers: &HeaderMap) -> bool {
    if entered.upgrade.is_some() {
        return false;
    }
    match &retry.methods {
        RetryMethods::All => true,
        RetryMethods::These(methods) => methods.contains(method),
        RetryMethods::Idempotent => repeatable(method, headers, &retry.idempotency_key) != Repeatable::Never,
    }
}

fn debug_wanted(view: &View, entered: &Entered, headers: &HeaderMap) -> bool {
    view.listener.detail == Detail::Full
        || (view.hop.trust() == Trust::Trusted && entered.seen.any(Seen::OURS) && headers.contains_key(DEBUG))
}

/// Writes the fields that we owe the service, and returns the target it gets if that is not the client's.
fn prepare(
    view: &View,
    cx: &mut RequestCx,
    route: &Arc<Route>,
    cluster: &Cluster,
    entered: &Entered,
    headers: &mut HeaderMap,
    added: &mut Added,
) -> Result<Option<String>, Reason> {
    let mut target = None;
    if let Some(rewrite) = &route.rewrite {
        let path = entered.path();
        let prefix = route.path.matched_prefix(path);
        target = rewrite
            .target(path, entered.query(), prefix)
            .or(Err(Reason::ClientProtocol))?;
    }
    view.hop.write(headers, added, &entered.host);
    added.push(hygiene::via(cx.version));
    cx.request_id.replace(headers, added);
    if route.priority != Priority::Normal && !headers.contains_key(admit::PRIORITY) {
        let word = HeaderValue::from_static(route.priority.name());
        added.push((admit::PRIORITY, word));
    }
    if !route.request_headers.is_empty() {
        for (name, value) in added.drain(..) {
            headers.append(name, value);
        }
        cx.format = Some(reply::format(headers));
        let mut values = entered.values(cx, &route.name);
        values.cluster = &cluster.name;
        route.request_headers.apply(headers, &values);
    }
    Ok(target)
}

/// How long the request may take to the head of its answer: the route's timeout, or less if the client waits for less.
///
/// A request that nobody waits for any more is not worth an endpoint's time. But a client with a broken clock, or a peer
/// with a broken configuration, must not black-hole a service: at most a share of those that say how long they wait are
/// refused for it, and the others get the route's time.
fn within(cx: &mut RequestCx, route: &Route, asked: &deadline::Asked) -> Result<Option<Duration>, Reason> {
    let Some(within) = asked.within else {
        return Ok(route.timeout);
    };
    let now = cx.worker.tools.wheel.now();
    let guard = route.state.deadlines();
    guard.offer(now);
    cx.asked = Some(within);
    if within <= now.since(cx.started) + EXPIRING {
        if guard.spend(&EXPIRED, 0, now).is_ok() {
            route
                .metrics
                .deadline_expired(cx.worker.id, DeadlineStage::Arrival);
            return Err(Reason::DeadlineExpired);
        }
        return Ok(route.timeout);
    }
    // It began to wait when it asked, and not when a fallback began.
    let within = within.saturating_sub(cx.began.since(cx.started));
    cx.limited = route.timeout.is_none_or(|timeout| within < timeout);
    Ok(Some(route.timeout.map_or(within, |timeout| timeout.min(within))))
}

/// Nobody can do anything in so little time.
const EXPIRING: Duration = Duration::from_millis(1);

/// Makes the answer of an endpoint the answer to the client.
fn forward(
    cx: &mut RequestCx,
    route: &Arc<Route>,
    cluster: &Cluster,
    answered: Answered,
    debug: bool,
    tried_again: bool,
) -> Forwarded {
    let Answered {
        mut head,
        mut rest,
        seen,
        ..
    } = answered;
    cx.status = head.status.as_u16();
    cx.grpc_status = rest.attempt.grpc_status();
    cx.refused_beyond = rest.attempt.was_refused();
    if matches!(
        head.status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        let since_epoch = cx.worker.since_epoch(cx.worker.tools.wheel.recent());
        if let Some(Pushback::After(wait)) = pushback(&head.headers, since_epoch) {
            cx.asked_to_wait = Some(wait);
        }
    }
    cx.answered();
    let upgraded = upgrade::is_accepted(cx, &head);
    let protocol = if upgraded {
        head.headers.get(header::UPGRADE).cloned()
    } else {
        None
    };
    if cx.seat.is_some() || cx.cluster_seat.is_some() || cluster.is_limited() {
        admit::may_last(cx, &head.headers, &mut rest.attempt);
    }
    hygiene::clean_response(&mut head.headers, seen);
    if head.status.is_server_error() {
        // For proxies of ours in front of us; nobody else is told.
        match cx.view.hop.trust() {
            Trust::Trusted if tried_again => {
                head.headers.insert(NO_RETRY, HeaderValue::from_static("1"));
            }
            Trust::Trusted => {}
            Trust::Untrusted => {
                head.headers.remove(NO_RETRY);
            }
        }
    }
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
    }
    if !route.response_headers.is_empty() || debug {
        let endpoint = cx
            .endpoint
            .and_then(|index| cluster.endpoints.get(index as usize));
        let values = crate::message::template::Values {
            client_ip: cx.client_ip,
            host: "",
            path: cx.uri.path(),
            request_id: cx.request_id.as_str(),
            route: &route.name,
            cluster: &cluster.name,
            endpoint: endpoint.map_or("", |endpoint| &endpoint.label),
            tls_peer: "",
        };
        route.response_headers.apply(&mut head.headers, &values);
        if debug {
            for (name, value) in [
                (HeaderName::from_static("x-bellwether-route"), values.route),
                (HeaderName::from_static("x-bellwether-cluster"), values.cluster),
                (HeaderName::from_static("x-bellwether-endpoint"), values.endpoint),
            ] {
                if let Ok(value) = HeaderValue::from_str(value) {
                    head.headers.insert(name, value);
                }
            }
            let attempts = HeaderName::from_static("x-bellwether-attempts");
            head.headers.insert(attempts, HeaderValue::from(cx.attempts));
        }
    }
    Forwarded {
        head,
        rest,
        idle: route.idle_timeout,
        upgraded,
    }
}

impl Forwarded {
    /// The reply that goes to the connection; from here on the context travels with it.
    pub(super) fn into_reply(self, cx: Box<RequestCx>) -> Reply<Body> {
        let Self {
            head,
            rest,
            idle,
            upgraded,
        } = self;
        if upgraded {
            let Streaming {
                exchange, attempt, ..
            } = *rest;
            return upgrade::reply(head, exchange, attempt, idle, cx);
        }
        Reply {
            head,
            body: Body::upstream(rest, cx),
            tunnel: None,
            idle,
        }
    }
}

/// Sends a copy to another cluster and forgets about it.
fn mirror(view: &View, cx: &RequestCx, route: &Route, sendable: &Sendable<'_>) {
    let Some(mirror) = &route.mirror else { return };
    if sendable.upgrade.is_some() || !cx.worker.dice.borrow_mut().chance(mirror.share) {
        return;
    }
    // What has not arrived completely, or is not kept, is not worth holding up anything for.
    let (Some(content), Some(cluster)) = (cx.replay.complete(), view.snapshot.cluster(mirror.cluster)) else {
        return;
    };
    copy::mirror(cx, Arc::clone(cluster), sendable, content);
}
