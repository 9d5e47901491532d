//! What must be true at every step, kept apart from the code that is tried.
//!
//! The books here are plain lists and counts of what was asked and answered. They are compared with what the policies say
//! of themselves, and with what is true of the world. An assertion names the invariant first; `cargo test` prints it with
//! the seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::breaker::{Breaker, CHANGES, Cause, Force, Permit, Report, Settings, State, Transition};
use bellwether_core::ejection::{Conclusion, Ejected};
use bellwether_core::{Dice, Moment, Outcome, budget};

use crate::trace::{Note, Trace};

/// Between two ticks of whatever is driven by time.
pub const TICK: Duration = Duration::from_secs(1);
/// What the core promises for a half-open breaker.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A breaker, and what it must be like.
#[derive(Debug)]
pub struct Watched {
    pub breaker: Arc<Breaker>,
    pub settings: Settings,
    /// Of an endpoint; else of the route.
    of: Option<usize>,
    state: State,
    since: Moment,
    until: Moment,
    /// Changes of state so far: a permit of an earlier one decides nothing.
    epoch: u64,
    /// When the probes under way began.
    under_way: Vec<(u64, Moment)>,
    judged: u32,
    tickets: u64,
    /// How often it opened.
    pub openings: u64,
}

/// A permit, and when it was given.
#[derive(Debug)]
pub struct Held {
    permit: Permit,
    epoch: u64,
    ticket: Option<u64>,
}

impl Held {
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some()
    }
}

impl Watched {
    pub fn new(settings: Settings, of: Option<usize>) -> Self {
        Self {
            breaker: Arc::new(Breaker::new(settings.window)),
            settings,
            of,
            state: State::Closed,
            since: Moment::ZERO,
            until: Moment::FAR_FUTURE,
            epoch: 0,
            under_way: Vec::new(),
            judged: 0,
            tickets: 0,
            openings: 0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Whether its endpoint is out for it.
    pub fn refuses(&self) -> bool {
        let acts = self.settings.mode.enforces() || self.state == State::ForcedOpen;
        acts && matches!(self.state, State::Open | State::HalfOpen | State::ForcedOpen)
    }

    pub fn admit(&mut self, now: Moment, dice: &mut Dice, trace: &mut Trace) -> Result<Held, Duration> {
        let admission = self.breaker.admit(&self.settings, now, dice);
        self.changed(admission.change, now, trace);
        let permit = match admission.verdict {
            Ok(permit) => permit,
            Err(refused) => {
                let may = self.settings.mode.enforces() || self.state == State::ForcedOpen;
                assert!(may, "observing refuses nothing: {:?}", self.state);
                let open = !matches!(self.state, State::Closed | State::ForcedClosed);
                assert!(open, "only who is not closed refuses: {:?}", self.state);
                self.check(now);
                return Err(refused.retry_after);
            }
        };
        let ticket = permit.is_probe().then(|| {
            self.tickets += 1;
            self.under_way.push((self.tickets, now));
            self.tickets
        });
        if permit.is_probe() {
            let most = self.settings.max_in_flight.max(1) as usize;
            let taken = self.under_way.len();
            assert!(
                taken <= most,
                "half-open admits no more than it may: {taken} of {most} at a time"
            );
            let sum = taken as u32 + self.judged;
            let most = self.settings.probes.max(1);
            assert!(
                sum <= most,
                "half-open admits no more than it may: {sum} of {most} in all"
            );
        }
        self.check(now);
        Ok(Held {
            permit,
            epoch: self.epoch,
            ticket,
        })
    }

    /// Whether one who asks now must be let pass as a probe.
    pub fn is_due(&self, now: Moment) -> bool {
        let free = self.under_way.len() < self.settings.max_in_flight.max(1) as usize
            && self.under_way.len() as u32 + self.judged < self.settings.probes.max(1);
        let late = |(_, began): &(u64, Moment)| now.since(*began) >= self.settings.probe_timeout;
        match self.state {
            State::Open => now >= self.until,
            // Asking lets time pass, which may end this period.
            State::HalfOpen => free && now < self.until && !self.under_way.iter().any(late),
            _ => false,
        }
    }

    /// A verdict.
    pub fn record(&mut self, held: Held, outcome: Outcome, now: Moment, dice: &mut Dice, trace: &mut Trace) {
        let late = held.epoch != self.epoch;
        let before = self.report(now);
        let change = self
            .breaker
            .record(&self.settings, held.permit, outcome, now, dice);
        if late {
            assert!(change.is_none(), "a late result decides nothing: {change:?}");
            let after = self.report(now);
            assert_eq!(before, after, "a late result decides nothing");
        } else if let Some(ticket) = held.ticket {
            self.under_way.retain(|(known, _)| *known != ticket);
            self.judged += u32::from(outcome != Outcome::Ignored);
        }
        self.changed(change, now, trace);
        self.check(now);
    }

    /// No verdict.
    pub fn drop(&mut self, held: Held, now: Moment) {
        let Held {
            permit,
            epoch,
            ticket,
        } = held;
        drop(permit);
        if epoch == self.epoch
            && let Some(ticket) = ticket
        {
            self.under_way.retain(|(known, _)| *known != ticket);
        }
        self.check(now);
    }

    pub fn tick(&mut self, now: Moment, dice: &mut Dice, trace: &mut Trace) {
        let change = self.breaker.tick(&self.settings, now, dice);
        self.changed(change, now, trace);
        self.check(now);
        if self.state == State::HalfOpen {
            let longest = HALF_OPEN_TIMEOUT + TICK;
            let spent = now.since(self.since);
            assert!(spent <= longest, "half-open ends in time: it lasts for {spent:?}");
            let patience = self.settings.probe_timeout + TICK;
            for (_, began) in &self.under_way {
                let spent = now.since(*began);
                assert!(
                    spent <= patience,
                    "a probe that hangs frees its place: after {spent:?}"
                );
            }
        }
        if self.state == State::Open {
            let spent = now.since(self.since);
            let longest = self.settings.max_open + TICK;
            assert!(
                spent <= longest,
                "no opening is longer than the longest: {spent:?}"
            );
        }
    }

    pub fn force(&mut self, force: Force, until: Moment, now: Moment, trace: &mut Trace) {
        let change = self.breaker.force(force, until, now);
        self.changed(change, now, trace);
        self.check(now);
    }

    pub fn invite(&mut self, now: Moment, trace: &mut Trace) {
        let change = self.breaker.invite(now);
        self.changed(change, now, trace);
        self.check(now);
    }

    /// Nobody holds a permit any more.
    pub fn is_quiet(&self, now: Moment) {
        assert_eq!(self.report(now).probes, 0, "no probe leaks from a breaker");
    }

    fn report(&self, now: Moment) -> Report {
        self.breaker.report(&self.settings, now)
    }

    fn changed(&mut self, change: Option<Transition>, now: Moment, trace: &mut Trace) {
        let Some(change) = change else { return };
        let Transition { from, to, cause, .. } = change;
        let of = self.of;
        trace.note(now, Note::Breaker { of, from, to, cause });
        assert_eq!(from, self.state, "every change of a breaker is told: {change:?}");
        assert!(
            CHANGES.contains(&(to, cause)),
            "a breaker changes as it should: {change:?}"
        );
        if to == State::Open {
            self.openings += 1;
            let length = change.until.since(now);
            let most = self.settings.max_open;
            assert!(
                length <= most,
                "no opening is longer than the longest: {length:?}"
            );
        }
        if cause == Cause::RampDone {
            let ramp = self.settings.ramp.unwrap_or_default();
            assert!(now.since(self.since) >= ramp, "a ramp takes its time");
        }
        self.state = to;
        self.since = now;
        self.until = change.until;
        self.epoch += 1;
        self.under_way.clear();
        self.judged = 0;
    }

    fn check(&self, now: Moment) {
        assert_eq!(
            self.breaker.state(),
            self.state,
            "every change of a breaker is told"
        );
        if self.state == State::HalfOpen {
            let (known, said) = (self.under_way.len(), self.report(now).probes);
            assert_eq!(known, said, "no probe leaks from a breaker");
        }
    }
}

/// What is known of an endpoint's ejection, told by its verdicts.
#[derive(Debug, Default)]
pub struct Exile {
    /// Until when, if it is out; not for show.
    pub until: Option<Moment>,
    /// Times out and returns so far: a probe of an earlier one decides nothing.
    pub epoch: u64,
    /// The last return; results of attempts that began before say nothing about the time after.
    pub returned: Moment,
    /// The probe under way, and when it began.
    pub probing: Option<(u64, Moment)>,
    tickets: u64,
    /// Picks that could have probed and did not, in a row.
    pub passed_over: u32,
}

impl Exile {
    pub fn ejected(&mut self, ejected: &Ejected) {
        assert!(self.until.is_none(), "who is out is not ejected");
        self.until = Some(ejected.until);
        self.epoch += 1;
        self.probing = None;
        self.passed_over = 0;
    }

    pub fn came_back(&mut self, now: Moment) {
        self.until = None;
        self.epoch += 1;
        self.returned = now;
        self.probing = None;
        self.passed_over = 0;
    }

    /// Whether a probe must be possible.
    pub fn is_due(&self, probe_timeout: Duration, now: Moment) -> bool {
        let free = self
            .probing
            .is_none_or(|(_, began)| now.since(began) >= probe_timeout);
        free && self.until.is_some_and(|until| now >= until)
    }

    /// A probe begins; the books' name for it.
    pub fn probes(&mut self, probe_timeout: Duration, now: Moment) -> u64 {
        assert!(
            self.is_due(probe_timeout, now),
            "one probe at a time, and none before it is due"
        );
        self.tickets += 1;
        self.probing = Some((self.tickets, now));
        self.passed_over = 0;
        self.tickets
    }

    /// A probe ended without a word.
    pub fn released(&mut self, ticket: u64) {
        if self.probing.is_some_and(|(held, _)| held == ticket) {
            self.probing = None;
        }
    }

    pub fn judged(&mut self, epoch: u64, ticket: u64, conclusion: Conclusion, outcome: Outcome, now: Moment) {
        if outcome == Outcome::Ignored {
            assert_eq!(
                conclusion,
                Conclusion::Released,
                "what says nothing decides nothing"
            );
            self.released(ticket);
            return;
        }
        let stale = conclusion == Conclusion::Stale;
        assert_eq!(
            stale,
            epoch != self.epoch,
            "a late result decides nothing: {conclusion:?}"
        );
        match conclusion {
            Conclusion::Returned => self.came_back(now),
            Conclusion::Again(ejected) => {
                self.until = None;
                self.ejected(&ejected);
            }
            Conclusion::Released | Conclusion::Stale => {}
        }
    }
}

/// The books of a retry budget: exact, by list.
#[derive(Debug)]
pub struct Ledger {
    settings: budget::Settings,
    /// Numbers of the periods, the window being ten.
    offered: VecDeque<u64>,
    granted: VecDeque<u64>,
    pub in_flight: u32,
}

impl Ledger {
    pub fn new(settings: budget::Settings) -> Self {
        Self {
            settings,
            offered: VecDeque::new(),
            granted: VecDeque::new(),
            in_flight: 0,
        }
    }

    pub fn offer(&mut self, now: Moment) {
        let period = self.period(now);
        self.offered.push_back(period);
    }

    pub fn granted(&mut self, now: Moment) {
        let period = self.period(now);
        self.granted.push_back(period);
        for list in [&mut self.offered, &mut self.granted] {
            while list.front().is_some_and(|first| first + 10 <= period) {
                list.pop_front();
            }
        }
        let most = self.settings.share * self.offered.len() as f64
            + f64::from(self.settings.per_second) * self.settings.window.as_secs_f64();
        let granted = self.granted.len();
        assert!(
            granted as f64 <= most + 1e-9,
            "retries stay within their budget: {granted} of {most}"
        );
        self.in_flight += 1;
    }

    fn period(&self, now: Moment) -> u64 {
        now.as_nanos() / (self.settings.window.as_nanos() as u64 / 10)
    }
}

/// How many of a group may be out: the rule of the design, written again.
pub fn most_out(group: usize, percent: f64) -> usize {
    match group {
        0 | 1 => 0,
        _ => ((group as f64 * percent) as usize).max(1),
    }
}
