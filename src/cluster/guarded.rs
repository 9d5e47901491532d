//! Circuit breakers in their surroundings: the settings of this snapshot, the breaker that outlives it, and who is told.
//!
//! Those of routes and clusters stand in the way of requests (`snapshot::guard`). Those of endpoints, kept here, stand in
//! the way of attempts: the picker passes over an endpoint whose breaker refuses, hands it a probe once one is due, and
//! tells the breaker how every attempt went. A breaker that no request can reach stays open for ever, so an endpoint
//! whose probe is due is looked for first, and found even when nobody else is left.
//!
//! The ramp of an endpoint's breaker is the slow start of its endpoint: two ramps on one another would starve it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bellwether_core::arbiter::{Opinion, Source};
use bellwether_core::breaker::{Breaker, Passage, Permit, Report, Settings, State, Transition};
use bellwether_core::{Dice, Moment, Outcome};

use super::health::{Said, reason};
use super::outliers::{Attempted, Witness};
use super::{Cluster, Endpoint};
use crate::telemetry::{BreakerCall, BreakerMetrics, BreakerSeen, Change, EventKind, Events, WorkerId};

/// A breaker and how this snapshot wants it to behave.
#[derive(Debug, Clone)]
pub struct Guarded {
    /// What it is called: `route`, or `cluster/NAME`.
    pub name: Arc<str>,
    /// When it opens and how it closes.
    pub settings: Settings,
    /// An answer that takes longer is slow.
    pub slow: Option<Duration>,
    /// What was learned.
    pub breaker: Arc<Breaker>,
    /// Its series.
    pub metrics: Arc<BreakerMetrics>,
}

/// A breaker that every endpoint of a cluster is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardPlan {
    /// The route that has it for itself; none when all routes to the cluster share it.
    pub route: Option<Arc<str>>,
    /// When it opens and how it closes.
    pub settings: Settings,
    /// An attempt whose answer takes longer is slow.
    pub slow: Option<Duration>,
}

impl Guarded {
    /// Counts a change of state and tells who listens.
    pub fn changed(&self, worker: WorkerId, events: &Events, generation: u64, change: &Transition) {
        self.metrics.changed(worker, change);
        let counts = change.counts;
        events.push(Change {
            kind: EventKind::Breaker,
            subject: String::from(&*self.name),
            from: change.from.name().to_owned(),
            to: change.to.name().to_owned(),
            reason: change.cause.name().to_owned(),
            evidence: format!(
                "{} of {} failed, {} slow",
                counts.failed, counts.total, counts.slow
            ),
            generation,
        });
    }

    /// How it stands at `now`; `since_epoch` is the time of day then.
    pub fn report(&self, now: Moment, since_epoch: Duration) -> Report {
        let report = self.breaker.report(&self.settings, now);
        let open_until = match report.state {
            State::Open | State::ForcedOpen => (since_epoch + report.until.since(now)).as_secs(),
            _ => 0,
        };
        self.metrics.show(BreakerSeen {
            state: report.state,
            counts: report.counts,
            open_until,
        });
        report
    }
}

impl Endpoint {
    /// Whether the breaker that attempts of this kind ask lets them pass; `guard` is its place among those of the
    /// cluster, none where there is none.
    pub(super) fn passage(&self, guard: Option<usize>, now: Moment) -> Passage {
        let Some(guarded) = guard.and_then(|guard| self.guards.get(guard)) else {
            return Passage::Free;
        };
        guarded.breaker.passage(&guarded.settings, now)
    }
}

impl Cluster {
    /// Asks the breaker of an endpoint for an attempt. A refusal means that somebody else was faster.
    pub fn ask(
        &self,
        index: usize,
        guard: usize,
        witness: Witness<'_>,
        dice: &mut Dice,
    ) -> Result<Option<Permit>, Duration> {
        let Some(guarded) = self.endpoints[index].guards.get(guard) else {
            return Ok(None);
        };
        let admission = guarded.breaker.admit(&guarded.settings, witness.now, dice);
        if let Some(change) = &admission.change {
            self.breaker_changed(index, guard, change, witness);
        }
        match admission.verdict {
            Ok(permit) => {
                guarded.metrics.passed(witness.worker, &permit);
                Ok(Some(permit))
            }
            Err(refused) => {
                guarded.metrics.called(witness.worker, BreakerCall::Rejected);
                Err(refused.retry_after)
            }
        }
    }

    /// Tells the breaker of an endpoint how an attempt went.
    pub fn judged(
        &self,
        index: usize,
        guard: usize,
        permit: Permit,
        attempted: Attempted,
        witness: Witness<'_>,
        dice: &mut Dice,
    ) {
        let Attempted { outcome, took, .. } = attempted;
        let Some(guarded) = self.endpoints[index].guards.get(guard) else {
            return;
        };
        let outcome = match outcome {
            Outcome::Success if guarded.slow.is_some_and(|slow| took > slow) => Outcome::Slow,
            outcome => outcome,
        };
        let change = guarded
            .breaker
            .record(&guarded.settings, permit, outcome, witness.now, dice);
        if let Some(change) = &change {
            self.breaker_changed(index, guard, change, witness);
        }
    }

    /// Lets time pass for the breakers of all endpoints, and shows how many are in which state.
    pub(super) fn tick_breakers(&self, witness: Witness<'_>, dice: &mut Dice) {
        if self.guards.is_empty() {
            return;
        }
        let mut states = [0_u64; State::ALL.len()];
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            for (guard, guarded) in endpoint.guards.iter().enumerate() {
                if let Some(change) = guarded.breaker.tick(&guarded.settings, witness.now, dice) {
                    self.breaker_changed(index, guard, &change, witness);
                }
                let state = guarded.breaker.state();
                if let Some(place) = State::ALL.iter().position(|known| *known == state) {
                    states[place] += 1;
                }
            }
        }
        self.metrics.show_breakers(&states);
        let shut = State::ALL
            .iter()
            .zip(states)
            .any(|(state, count)| count > 0 && !matches!(state, State::Closed | State::ForcedClosed));
        // Ordering: Relaxed; one that this overwrites is found by the next tick.
        self.state.any_shut.store(shut, Ordering::Relaxed);
    }

    fn breaker_changed(&self, index: usize, guard: usize, change: &Transition, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        let Some(guarded) = endpoint.guards.get(guard) else {
            return;
        };
        let is_shared = self.guards.get(guard).is_some_and(|plan| plan.route.is_none());
        let opinion = match change.to {
            State::Closed | State::ForcedClosed => Some((Opinion::Up, reason::BREAKER_CLOSED)),
            State::Open | State::ForcedOpen => Some((Opinion::Degraded, reason::BREAKER_OPEN)),
            State::HalfOpen | State::Recovering => None,
        };
        if matches!(change.to, State::Open | State::ForcedOpen) {
            // Ordering: Relaxed; a hint that the next tick sets right.
            self.state.any_shut.store(true, Ordering::Relaxed);
        }
        if change.to == State::Closed {
            endpoint.state.starts_anew(witness.now);
        }
        // Routes that do not ask it send less there; those that do are stopped by the breaker itself.
        if let (true, Some((opinion, reason))) = (is_shared, opinion) {
            let said = Said {
                source: Source::Breaker,
                opinion,
                reason,
                evidence: change.cause.name().to_owned(),
            };
            self.say(index, said, witness);
        }
        guarded.changed(witness.worker, witness.events, witness.generation, change);
    }
}
