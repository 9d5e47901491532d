//! Ejection as the rest of the proxy sees it: who is compared with whom, and who is told.
//!
//! What is decided, and when, is [`bellwether_core::outlier`]'s. Here the members of a cluster are laid before the
//! referee, at once by the worker on which a row of failures became too long, and once a second by the control plane.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bellwether_core::arbiter::{Opinion, Source};
use bellwether_core::ejection::{Conclusion, Ejected, Probe, Standing};
use bellwether_core::outlier::{Finding, Kind, Member, Ruling, Verdict};
use bellwether_core::panic::is_taken_out;
use bellwether_core::self_health::Score;
use bellwether_core::{Dice, Moment, Origin, Outcome};

use super::{Cluster, Endpoint};
use crate::telemetry::{Change, Detector, EjectionResult, EventKind, Events, WorkerId};

/// Who decides, and where to tell about it.
#[derive(Debug, Clone, Copy)]
pub struct Witness<'a> {
    /// On which thread.
    pub worker: WorkerId,
    /// Who is told.
    pub events: &'a Events,
    /// The configuration that serves.
    pub generation: u64,
    /// The present moment.
    pub now: Moment,
    /// How far our own clock may be trusted.
    pub score: Score,
}

/// How an attempt went, as far as ejection is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    /// Success, failure, or nothing to conclude.
    pub outcome: Outcome,
    /// What it was answered with.
    pub kind: Kind,
    /// When it began.
    pub began: Moment,
    /// From then to the head of the answer; to its end where there was none.
    pub took: Duration,
}

impl Endpoint {
    /// Whether it is in service as far as its ejection is concerned.
    pub fn is_in_service(&self) -> bool {
        // In service whatever the moment, or not at all.
        self.state.ejection.standing(Moment::ZERO) == Standing::In
    }
}

impl Cluster {
    /// An endpoint that is out, or in service and avoided for being slow, and to which a copy of a request may be sent to
    /// find out how it is: who gets nothing to answer has no other way to show it.
    pub fn rehearsal(&self, now: Moment) -> Option<usize> {
        // Ordering: Relaxed; a hint that the sweep sets right.
        if !self.settings.rehearsals || !self.state.any_out.load(Ordering::Relaxed) {
            return None;
        }
        self.endpoints.iter().position(|endpoint| {
            let (state, availability) = (&endpoint.state, endpoint.state.availability());
            if endpoint.weight == 0 {
                false
            } else if availability.is_available() {
                state.is_suspect() && state.ejection.turn(now)
            } else {
                availability.is_removed_only_by(Source::Ejection) && state.ejection.rehearse(now)
            }
        })
    }

    /// What came of it; `took` is the time to the head of the answer.
    pub fn rehearsed(&self, index: usize, well: bool, took: Duration, witness: Witness<'_>) {
        let state = &self.endpoints[index].state;
        let is_out = state.ejection.is_out();
        if well && !is_out {
            state.recent.record(took, witness.now);
            state.load.learn(took, witness.now);
        }
        let well = well && !state.is_still_slow(took);
        if !state.ejection.rehearsed(well, witness.now) {
            return;
        }
        if is_out {
            let evidence = "copies of requests went well";
            self.tell(index, "ejected", "probe_due", "rehearsed", evidence, witness);
        } else {
            // It is fast again, which an average would believe in half a minute.
            state.load.forget();
            state.set_slow(None);
        }
    }

    /// Looks who is so much slower than the others that the balancer avoids it; returns how many are.
    fn suspect_slow(&self, factor: f64, now: Moment) -> usize {
        let expected = |endpoint: &Endpoint| {
            let load = &endpoint.state.load;
            let estimate = load.estimate(Moment::ZERO, f32::INFINITY)?.max(load.silence(now));
            Some(Duration::from_secs_f32(estimate))
        };
        let serving = self.endpoints.iter().filter(|endpoint| endpoint.is_usable());
        let known: Vec<(&Endpoint, Duration)> = serving
            .filter_map(|endpoint| Some((endpoint, expected(endpoint)?)))
            .collect();
        let mut sorted: Vec<Duration> = known.iter().map(|(_, expected)| *expected).collect();
        sorted.sort_unstable();
        // The lower one in the middle: of two, the faster is what is usual.
        let Some(usual) = sorted.get(sorted.len().saturating_sub(1) / 2).copied() else {
            return 0;
        };
        let bound = usual.mul_f64(factor).max(usual + LEAST_EXCESS);
        let mut suspects = 0;
        for (endpoint, expected) in known {
            let is_slow = expected > bound;
            suspects += usize::from(is_slow);
            if is_slow != endpoint.state.is_suspect() {
                endpoint.state.set_slow(is_slow.then_some(bound));
            }
        }
        suspects
    }

    /// An attempt that `began` then is over, with all of its body.
    pub fn attempted(
        &self,
        index: usize,
        probe: Option<Probe>,
        attempted: Attempted,
        witness: Witness<'_>,
        dice: &mut Dice,
    ) {
        let Attempted {
            outcome,
            kind,
            began,
            took,
        } = attempted;
        let Some(settings) = &self.settings.outlier else {
            return;
        };
        let endpoint = &self.endpoints[index];
        let now = witness.now;
        let Some(probe) = probe else {
            if settings.latency_factor.is_some() && matches!(outcome, Outcome::Success | Outcome::Slow) {
                endpoint.state.recent.record(took, now);
            }
            // Of one that is out only the probe's verdict counts.
            if endpoint.is_in_service()
                && let Some(tally) = &endpoint.tally
                && tally.record(settings, outcome, kind, began, now).is_some()
            {
                let members = self.members();
                let referee = &self.state.referee;
                let verdict = referee.strike(settings, &members, self.place(index), witness.score, now, dice);
                drop(members);
                if let Some(verdict) = verdict {
                    self.announce(index, &verdict, witness);
                }
            }
            return;
        };
        let outcome = match outcome {
            Outcome::Success | Outcome::Slow if endpoint.state.is_still_slow(took) => {
                Outcome::Failure(Origin::Local)
            }
            outcome => outcome,
        };
        match probe.judge(&settings.ejection, outcome, now, dice) {
            Conclusion::Returned => self.returned(index, "probe passed", witness),
            Conclusion::Again(ejected) => {
                let until = length(&ejected, now);
                self.show_ejection(index, "probe_failed", &until, witness);
                self.tell(index, "ejected", "ejected", "probe_failed", &until, witness);
            }
            Conclusion::Released | Conclusion::Stale => {}
        }
    }

    /// Compares everybody. To be called about once a second; returns how many are out.
    pub fn sweep(&self, witness: Witness<'_>, dice: &mut Dice) -> u64 {
        self.tick_breakers(witness, dice);
        let Some(settings) = &self.settings.outlier else {
            self.pardon_all(witness);
            return 0;
        };
        let members = self.members();
        let report = self
            .state
            .referee
            .sweep(settings, &members, witness.score, witness.now, dice);
        drop(members);
        let indices = self.indices();
        for verdict in &report.verdicts {
            if let Some(index) = indices.get(verdict.index) {
                self.announce(*index, verdict, witness);
            }
        }
        for index in report.returned.iter().filter_map(|place| indices.get(*place)) {
            self.returned(*index, "time over", witness);
        }
        for correlated in &report.correlated {
            witness.events.push(Change {
                kind: EventKind::Ejection,
                subject: String::from(&*self.name),
                from: String::new(),
                to: "correlated_failure".to_owned(),
                reason: "correlated_failure".to_owned(),
                evidence: format!(
                    "{} of {} endpoints fail together",
                    correlated.failing, correlated.size
                ),
                generation: witness.generation,
            });
        }
        self.show_ejections(witness);
        let out = self
            .endpoints
            .iter()
            .filter(|endpoint| !endpoint.is_in_service())
            .count();
        let suspects = match settings.latency_factor {
            Some(factor) => self.suspect_slow(factor, witness.now),
            None => 0,
        };
        // Ordering: Relaxed; an ejection that this overwrites is found by the next sweep.
        self.state.any_out.store(out + suspects > 0, Ordering::Relaxed);
        out as u64
    }

    /// Those that are compared: an operator's decisions are none of the referee's business.
    fn indices(&self) -> Vec<usize> {
        let compared = |endpoint: &Endpoint| {
            endpoint.tally.is_some() && !is_taken_out(endpoint.state.availability()) && endpoint.weight > 0
        };
        (0..self.endpoints.len())
            .filter(|index| compared(&self.endpoints[*index]))
            .collect()
    }

    fn members(&self) -> Vec<Member<'_>> {
        let member = |index: usize| {
            let endpoint = &self.endpoints[index];
            Some(Member {
                tally: endpoint.tally.as_deref()?,
                ejection: &endpoint.state.ejection,
                group: u32::from(endpoint.priority),
                available: endpoint.state.availability().but_for(Source::Ejection),
                recent: self
                    .settings
                    .outlier
                    .as_ref()?
                    .latency_factor
                    .map(|_| &endpoint.state.recent),
            })
        };
        self.indices().into_iter().filter_map(member).collect()
    }

    /// The place of an endpoint among those that are compared.
    fn place(&self, index: usize) -> usize {
        self.indices()
            .iter()
            .position(|known| *known == index)
            .unwrap_or(usize::MAX)
    }

    fn announce(&self, index: usize, verdict: &Verdict, witness: Witness<'_>) {
        let finding = verdict.finding;
        let (result, to, more) = match verdict.ruling {
            Ruling::Ejected(ejected) => {
                // Ordering: Relaxed; see `due`.
                self.state.any_out.store(true, Ordering::Relaxed);
                self.endpoints[index].state.set_slow(match finding {
                    Finding::Latency { bound, .. } => Some(bound),
                    _ => None,
                });
                (EjectionResult::Enforced, "ejected", length(&ejected, witness.now))
            }
            Ruling::WouldEject(ejected) => (
                EjectionResult::Observed,
                "would_be_ejected",
                length(&ejected, witness.now),
            ),
            Ruling::Withheld(why) => (EjectionResult::from(why), "kept", why.name().to_owned()),
        };
        self.metrics
            .ejected(witness.worker, Detector::from(&finding), result);
        let evidence = format!("{finding}; {more}");
        if result == EjectionResult::Enforced {
            self.show_ejection(index, finding.detector(), &evidence, witness);
        }
        self.tell(index, "available", to, finding.detector(), &evidence, witness);
    }

    fn returned(&self, index: usize, why: &str, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        if let Some(tally) = &endpoint.tally {
            tally.clear(witness.now);
        }
        self.show_ejection(index, "returned", why, witness);
        self.tell(index, "ejected", "available", "returned", why, witness);
    }

    /// Nobody is compared any more, so nobody is out.
    fn pardon_all(&self, witness: Witness<'_>) {
        for index in 0..self.endpoints.len() {
            let is_shown = self.endpoints[index]
                .state
                .availability()
                .is_down_by(Source::Ejection);
            if self.endpoints[index].state.ejection.pardon(witness.now) || is_shown {
                self.returned(index, "outlier_detection is off", witness);
            }
        }
    }

    /// Shows the arbiter every ejection that it does not know, one taken over from another process for example.
    pub fn show_ejections(&self, witness: Witness<'_>) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if endpoint.state.availability().is_down_by(Source::Ejection) == endpoint.is_in_service() {
                self.show_ejection(index, "taken_over", "", witness);
            }
        }
    }

    /// Shows the arbiter how the ejection stands.
    fn show_ejection(&self, index: usize, reason: &'static str, evidence: &str, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        let change = endpoint.state.arbiter.set_to(Source::Ejection, witness.now, || {
            let opinion = if endpoint.is_in_service() {
                Opinion::Up
            } else {
                Opinion::Down
            };
            (opinion, reason, evidence.to_owned())
        });
        self.count(index, Source::Ejection, change, witness);
    }

    fn tell(&self, index: usize, from: &str, to: &str, reason: &str, evidence: &str, witness: Witness<'_>) {
        witness.events.push(Change {
            kind: EventKind::Ejection,
            subject: format!("{}/{}", self.name, self.endpoints[index].label),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: reason.to_owned(),
            evidence: evidence.to_owned(),
            generation: witness.generation,
        });
    }
}

/// Who is slower by less is slow for nobody.
const LEAST_EXCESS: Duration = Duration::from_millis(50);

fn length(ejected: &Ejected, now: Moment) -> String {
    let seconds = ejected.until.since(now).as_secs_f64();
    format!("out for {seconds:.1} s, time {} in a row", ejected.nth)
}
