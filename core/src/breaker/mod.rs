//! Breaker: stops calls to what keeps failing, and finds out carefully when it works again.
//!
//! ```text
//!          trip                            open_until passed
//! CLOSED ───────▶ OPEN ◀──────────────┐ ─────────────────────▶ HALF_OPEN
//!   ▲  ▲           ▲   a probe failed └──────────────────────────┘ │
//!   │  └───────────┼── ramp done ─── RECOVERING ◀── probes went well
//!   └── (no ramp) ─┼───────────────────────────────────────────────┘
//!                  └── trip again ───────┘         (open means refusing)
//! ```
//!
//! The closed breaker is what every request meets, so admitting is one load and recording a success a few additions.
//! Everything else is rare and happens under a short lock, where the rules can be read one after another.
//!
//! What must stay true:
//! * A verdict counts only for the generation that admitted the call, so a call that began long ago decides nothing.
//! * A probe's place is held by a [`Permit`] and given back by dropping it, whatever became of the call; a probe that
//!   takes too long counts as failed, and its place is free. A breaker that waits for ever is the most common breaker bug.
//! * At most `max_in_flight` probes at a time and `probes` in total per half-open period; without a verdict it ends.
//! * An observing breaker goes through the same states as one that acts, and refuses nothing.
//!
//! The state machine is that of Hystrix and Resilience4j with generations, a ramp (Traefik) and growing open times.

use std::sync::Arc;
use std::time::Duration;

use crate::dice::Dice;
use crate::mode::Mode;
use crate::moment::Moment;
use crate::outcome::Outcome;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::window::{self, Counts, Sample, Window};

/// When a breaker opens and how it closes.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Whether it acts.
    pub mode: Mode,
    /// Opens at this share of failures, 0.0 to 1.0.
    pub failure_rate: Option<f64>,
    /// Opens at this share of slow calls.
    pub slow_rate: Option<f64>,
    /// Opens after so many failures in a row, whatever the volume.
    pub consecutive: Option<u32>,
    /// Rates say nothing about fewer calls than this in the window.
    pub min_requests: u32,
    /// How far back rates look.
    pub window: Duration,
    /// The first opening lasts this long; each further one twice as long, plus up to half of it by chance.
    pub open: Duration,
    /// No opening lasts longer.
    pub max_open: Duration,
    /// Probes that must go well.
    pub probes: u32,
    /// Probes at a time.
    pub max_in_flight: u32,
    /// A probe without an answer for so long has failed.
    pub probe_timeout: Duration,
    /// How long closing takes after the probes; none closes at once.
    pub ramp: Option<Duration>,
}

impl Default for Settings {
    /// The defaults of a route.
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            failure_rate: Some(0.5),
            slow_rate: None,
            consecutive: None,
            min_requests: 20,
            window: Duration::from_secs(10),
            open: Duration::from_secs(5),
            max_open: Duration::from_secs(60),
            probes: 3,
            max_in_flight: 1,
            probe_timeout: Duration::from_secs(30),
            ramp: Some(Duration::from_secs(10)),
        }
    }
}

/// One opening is forgotten after so long in the closed state.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// A half-open period without a verdict ends after so long.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// No state that another process saved lasts longer.
const LONGEST_RESTORED: Duration = Duration::from_secs(86_400);
/// The ramp begins with this share of the calls.
const RAMP_START: f64 = 0.1;
/// Openings are longer by up to this share, so that a fleet does not probe in step.
const JITTER: f64 = 0.5;

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Lets all pass.
    Closed,
    /// Refuses all.
    Open,
    /// Lets probes pass.
    HalfOpen,
    /// Lets a growing share pass.
    Recovering,
    /// Refuses all because an operator said so.
    ForcedOpen,
    /// Lets all pass because an operator said so.
    ForcedClosed,
}

impl State {
    /// All, in the order of their metrics.
    pub const ALL: [Self; 6] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::Recovering,
        Self::ForcedOpen,
        Self::ForcedClosed,
    ];

    /// The word in metrics, events and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Recovering => "recovering",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & STATE_BITS {
            1 => Self::Open,
            2 => Self::HalfOpen,
            3 => Self::Recovering,
            4 => Self::ForcedOpen,
            5 => Self::ForcedClosed,
            _ => Self::Closed,
        }
    }
}

/// Why a breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too large a share of failures.
    FailureRate,
    /// Too large a share of slow calls.
    SlowRate,
    /// Too many failures in a row.
    Consecutive,
    /// The time it stays open is over.
    OpenOver,
    /// A probe failed.
    ProbeFailed,
    /// No probe came to a verdict in time.
    HalfOpenTimeout,
    /// The probes went well.
    ProbesPassed,
    /// The ramp is done.
    RampDone,
    /// An operator, or the end of what an operator asked for.
    Operator,
    /// Something else learned that it is worth trying: a new leader.
    Invited,
    /// The process before this one had opened it.
    Restored,
}

impl Cause {
    /// All, in the order of their metrics.
    pub const ALL: [Self; 11] = [
        Self::FailureRate,
        Self::SlowRate,
        Self::Consecutive,
        Self::OpenOver,
        Self::ProbeFailed,
        Self::HalfOpenTimeout,
        Self::ProbesPassed,
        Self::RampDone,
        Self::Operator,
        Self::Invited,
        Self::Restored,
    ];

    /// The word in metrics, events and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_ratio",
            Self::SlowRate => "slow_ratio",
            Self::Consecutive => "consecutive",
            Self::OpenOver => "open_over",
            Self::ProbeFailed => "probe_failed",
            Self::HalfOpenTimeout => "probe_timeout",
            Self::ProbesPassed => "probes_ok",
            Self::RampDone => "ramp_done",
            Self::Operator => "manual",
            Self::Invited => "invited",
            Self::Restored => "restored",
        }
    }
}

/// Every change of state that there is: the new state, and why.
pub const CHANGES: [(State, Cause); 15] = [
    (State::Open, Cause::FailureRate),
    (State::Open, Cause::SlowRate),
    (State::Open, Cause::Consecutive),
    (State::Open, Cause::ProbeFailed),
    (State::Open, Cause::HalfOpenTimeout),
    (State::HalfOpen, Cause::OpenOver),
    (State::HalfOpen, Cause::HalfOpenTimeout),
    (State::HalfOpen, Cause::Invited),
    (State::Recovering, Cause::ProbesPassed),
    (State::Closed, Cause::ProbesPassed),
    (State::Closed, Cause::RampDone),
    (State::Closed, Cause::Operator),
    (State::ForcedOpen, Cause::Operator),
    (State::ForcedClosed, Cause::Operator),
    (State::Open, Cause::Restored),
];

/// A change of state, for metrics and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// What the window held.
    pub counts: Counts,
    /// When the new state is due to end; [`Moment::FAR_FUTURE`] if by calls only.
    pub until: Moment,
}

/// The answer to a call that wants to pass.
#[derive(Debug)]
pub struct Admission {
    /// A permit, or how long until it is worth asking again.
    pub verdict: Result<Permit, Refused>,
    /// Set if asking changed the state.
    pub change: Option<Transition>,
}

/// Why a call may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// For `Retry-After`; at least a second is sent.
    pub retry_after: Duration,
}

/// The right of one call to pass. Dropping it without a verdict says nothing about the call, and frees its place.
#[derive(Debug)]
#[must_use = "a permit that is dropped gives its place back"]
pub struct Permit {
    generation: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An ordinary call.
    Live,
    /// One of the few calls of a half-open breaker.
    Probe(Place),
    /// A call that would have been refused if the breaker acted.
    Shadow,
}

/// A probe's place; dropping it frees the place.
#[derive(Debug)]
struct Place {
    breaker: Arc<Breaker>,
    ticket: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.breaker.locked(|inner| inner.leave(self.ticket));
    }
}

impl Permit {
    /// Whether the call is a probe: never retried, never hedged, never mirrored.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        matches!(self.kind, Kind::Probe(_))
    }

    /// Whether the call passes only because the breaker observes.
    #[must_use]
    pub const fn is_shadow(&self) -> bool {
        matches!(self.kind, Kind::Shadow)
    }
}

/// What a call would meet, for those who can choose whom to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It would pass like any other.
    Free,
    /// It would be a probe, and one is wanted: the breaker closes by nothing else.
    Due,
    /// It would be refused, for so long.
    Shut(Duration),
}

/// What an operator can order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Refuse everything.
    Open,
    /// Let everything pass; calls are counted.
    Closed,
}

/// The breaker of one route, cluster or endpoint, shared by all workers.
#[derive(Debug)]
pub struct Breaker {
    /// State in the lowest bits, generation above.
    view: AtomicU64,
    /// Nanoseconds of the moment at which an open breaker is due to be half-open, or an order to end.
    until: AtomicU64,
    /// Nanoseconds of the moment at which the ramp began.
    entered: AtomicU64,
    consecutive: AtomicU32,
    /// Nanoseconds of the moment at which the last call that was not good leaves the window.
    bad_until: AtomicU64,
    window: Window,
    inner: Mutex<Inner>,
}

/// What only the rare paths need. `view`, `until` and `entered` change only while it is locked.
#[derive(Debug)]
struct Inner {
    /// Openings in a row, as remembered.
    openings: u32,
    /// When the breaker last closed.
    closed: Moment,
    /// Why it is not closed.
    cause: Option<Cause>,
    /// Probes under way: ticket and when they are too late.
    probes: Vec<(u64, Moment)>,
    next_ticket: u64,
    passed: u32,
    failed: u32,
    /// At least one success since the ramp began.
    ramp_success: bool,
}

impl Inner {
    /// Whether one more probe may be under way.
    fn has_place(&self, settings: &Settings) -> bool {
        let judged = (self.passed + self.failed) as usize;
        let under_way = self.probes.len();
        under_way < settings.max_in_flight.max(1) as usize
            && judged + under_way < settings.probes.max(1) as usize
    }

    fn leave(&mut self, ticket: u64) {
        self.probes.retain(|(held, _)| *held != ticket);
    }
}

const STATE_BITS: u64 = 0b111;
const GENERATION_STEP: u64 = 0b1000;

/// What one observer sees of a breaker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// The state.
    pub state: State,
    /// Why it is not closed.
    pub cause: Option<Cause>,
    /// When the state is due to end.
    pub until: Moment,
    /// What the window holds.
    pub counts: Counts,
    /// Openings in a row.
    pub openings: u32,
    /// Probes under way.
    pub probes: usize,
    /// The share of calls that a recovering breaker lets pass.
    pub share: f64,
}

/// A breaker in a form that another process can take over: durations instead of moments.
///
/// Probes under way are not part of it; they end with the process that sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The state.
    pub state: State,
    /// Why it is not closed.
    pub cause: Option<Cause>,
    /// How long until the state is due to end; none if it ends by calls only.
    pub left: Option<Duration>,
    /// For how long it has been in this state.
    pub elapsed: Duration,
    /// Openings in a row.
    pub openings: u32,
    /// Failures in a row.
    pub consecutive: u32,
    /// Probes that went well.
    pub passed: u32,
    /// At least one success since the ramp began.
    pub ramp_success: bool,
    /// What the window holds.
    pub window: window::Saved,
}

impl Default for Saved {
    /// A closed breaker that has seen nothing.
    fn default() -> Self {
        Self {
            state: State::Closed,
            cause: None,
            left: None,
            elapsed: Duration::ZERO,
            openings: 0,
            consecutive: 0,
            passed: 0,
            ramp_success: false,
            window: window::Saved::default(),
        }
    }
}

impl Breaker {
    /// A closed breaker whose rates look back over `window`.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            view: AtomicU64::new(0),
            until: AtomicU64::new(u64::MAX),
            entered: AtomicU64::new(0),
            consecutive: AtomicU32::new(0),
            bad_until: AtomicU64::new(0),
            window: Window::new(window),
            inner: Mutex::new(Inner {
                openings: 0,
                closed: Moment::ZERO,
                cause: None,
                probes: Vec::new(),
                next_ticket: 0,
                passed: 0,
                failed: 0,
                ramp_success: false,
            }),
        }
    }

    /// A breaker over the window that the settings ask for, in the state of `before`. What its window held cannot be
    /// told over another length, and is forgotten.
    #[must_use]
    pub fn after(before: Option<&Self>, settings: &Settings, now: Moment) -> Self {
        let Some(before) = before else {
            return Self::new(settings.window);
        };
        let window = window::Saved {
            length: settings.window,
            periods: Vec::new(),
        };
        Self::restored(
            &Saved {
                window,
                ..before.save(now)
            },
            now,
        )
    }

    /// Whether it looks back as far as the settings ask for.
    #[must_use]
    pub fn fits(&self, settings: &Settings) -> bool {
        self.window.is_over(settings.window)
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_bits(self.view())
    }

    /// Asks whether a call may pass.
    pub fn admit(self: &Arc<Self>, settings: &Settings, now: Moment, dice: &mut Dice) -> Admission {
        let view = self.view();
        if view & STATE_BITS == State::Closed as u64 {
            return Admission {
                verdict: Ok(Permit {
                    generation: view,
                    kind: Kind::Live,
                }),
                change: None,
            };
        }
        self.admit_slowly(settings, now, dice)
    }

    /// What a call would meet now. Changes nothing: [`Breaker::admit`] still has to be asked.
    #[must_use]
    pub fn passage(&self, settings: &Settings, now: Moment) -> Passage {
        let state = self.state();
        if state == State::Closed {
            return Passage::Free;
        }
        let acts = settings.mode.enforces() || state == State::ForcedOpen;
        match state {
            State::Closed | State::ForcedClosed | State::Recovering => Passage::Free,
            _ if !acts => Passage::Free,
            State::Open | State::ForcedOpen if now >= self.until() => Passage::Due,
            State::Open | State::ForcedOpen => Passage::Shut(self.until().since(now)),
            State::HalfOpen => {
                let free = self.locked(|inner| {
                    // A probe that is too late has failed, and somebody has to come by to say so.
                    inner.probes.iter().any(|(_, late)| now >= *late) || inner.has_place(settings)
                });
                if free {
                    Passage::Due
                } else {
                    Passage::Shut(Duration::ZERO)
                }
            }
        }
    }

    #[cold]
    fn admit_slowly(self: &Arc<Self>, settings: &Settings, now: Moment, dice: &mut Dice) -> Admission {
        let change = if self.is_due(settings, now) {
            self.tick(settings, now, dice)
        } else {
            None
        };
        let view = self.view();
        let live = || {
            Ok(Permit {
                generation: view,
                kind: Kind::Live,
            })
        };
        let verdict = match State::from_bits(view) {
            State::Closed | State::ForcedClosed => live(),
            State::Open | State::ForcedOpen => Err(self.until().since(now)),
            State::Recovering if dice.chance(self.share(settings, now)) => live(),
            State::Recovering => Err(Duration::ZERO),
            State::HalfOpen => self
                .take_place(settings, view, now)
                .map_or(Err(Duration::ZERO), |place| {
                    Ok(Permit {
                        generation: view,
                        kind: Kind::Probe(place),
                    })
                }),
        };
        let verdict = match verdict {
            Err(_) if !settings.mode.enforces() && State::from_bits(view) != State::ForcedOpen => {
                Ok(Permit {
                    generation: view,
                    kind: Kind::Shadow,
                })
            }
            other => other.map_err(|retry_after| Refused { retry_after }),
        };
        Admission { verdict, change }
    }

    fn take_place(self: &Arc<Self>, settings: &Settings, view: u64, now: Moment) -> Option<Place> {
        let ticket = self.locked(|inner| {
            let free = inner.has_place(settings) && self.view() == view;
            free.then(|| {
                inner.next_ticket += 1;
                inner
                    .probes
                    .push((inner.next_ticket, now.plus(settings.probe_timeout)));
                inner.next_ticket
            })
        })?;
        Some(Place {
            breaker: Arc::clone(self),
            ticket,
        })
    }

    /// Tells how a call went. Ordinary successes of a closed breaker cost a few additions.
    pub fn record(
        &self,
        settings: &Settings,
        permit: Permit,
        outcome: Outcome,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Transition> {
        let view = self.view();
        if permit.generation != view {
            // It was admitted by an earlier state: too late to decide anything.
            return None;
        }
        match permit.kind {
            Kind::Shadow => None,
            Kind::Probe(place) => self.judge_probe(settings, place, view, outcome, now, dice),
            Kind::Live => {
                let sample = sample(outcome)?;
                self.window.record(sample, now);
                // Ordering: Relaxed here and in the next lines; values of their own.
                if sample != Sample::Good {
                    let until = now.plus(self.window.length()).as_nanos();
                    self.bad_until.fetch_max(until, Ordering::Relaxed);
                } else if now.as_nanos() >= self.bad_until.load(Ordering::Relaxed)
                    && view & STATE_BITS == State::Closed as u64
                {
                    // The usual call: a good one in a window of good ones changes nothing.
                    if self.consecutive.load(Ordering::Relaxed) != 0 {
                        self.consecutive.store(0, Ordering::Relaxed);
                    }
                    return None;
                }
                let in_a_row = if sample == Sample::Failed {
                    // Ordering: Relaxed; a count of its own.
                    self.consecutive.fetch_add(1, Ordering::Relaxed) + 1
                } else {
                    if self.consecutive.load(Ordering::Relaxed) != 0 {
                        self.consecutive.store(0, Ordering::Relaxed);
                    }
                    0
                };
                match State::from_bits(view) {
                    State::Closed => self.judge(settings, view, in_a_row, outcome, now, dice),
                    State::Recovering => {
                        if sample != Sample::Failed {
                            self.locked(|inner| inner.ramp_success = true);
                        }
                        self.judge(settings, view, in_a_row, outcome, now, dice)
                            .or_else(|| self.tick(settings, now, dice))
                    }
                    _ => None,
                }
            }
        }
    }

    /// Opens if the window or the row of failures says so.
    fn judge(
        &self,
        settings: &Settings,
        view: u64,
        in_a_row: u32,
        outcome: Outcome,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Transition> {
        if settings.consecutive.is_some_and(|most| in_a_row >= most) {
            return self.open(settings, view, Cause::Consecutive, hint(outcome), now, dice);
        }
        let counts = self.window.counts(now);
        let least = if State::from_bits(view) == State::Recovering {
            settings.min_requests / 2
        } else {
            settings.min_requests
        };
        if counts.total < least.max(1) {
            return None;
        }
        let cause = if settings
            .failure_rate
            .is_some_and(|rate| counts.failure_rate() >= rate)
        {
            Cause::FailureRate
        } else if settings.slow_rate.is_some_and(|rate| counts.slow_rate() >= rate) {
            Cause::SlowRate
        } else {
            return None;
        };
        self.open(settings, view, cause, hint(outcome), now, dice)
    }

    fn judge_probe(
        &self,
        settings: &Settings,
        place: Place,
        view: u64,
        outcome: Outcome,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Transition> {
        let change = self.locked(|inner| {
            if self.view() != view || !inner.probes.iter().any(|(held, _)| *held == place.ticket) {
                return None;
            }
            inner.leave(place.ticket);
            match outcome {
                Outcome::Ignored => None,
                Outcome::Success => {
                    inner.passed += 1;
                    (inner.passed >= settings.probes.max(1)).then(|| self.close_or_ramp(inner, settings, now))
                }
                Outcome::Slow | Outcome::Failure(_) | Outcome::Pushback(_) => {
                    inner.failed += 1;
                    Some(self.reopen(inner, settings, Cause::ProbeFailed, hint(outcome), now, dice))
                }
            }
        });
        drop(place);
        change
    }

    /// Whether the passing of time alone changes something.
    fn is_due(&self, settings: &Settings, now: Moment) -> bool {
        match self.state() {
            State::Closed => false,
            State::Open | State::ForcedOpen | State::ForcedClosed => now >= self.until(),
            State::HalfOpen => true,
            State::Recovering => now.since(self.entered()) >= settings.ramp.unwrap_or_default(),
        }
    }

    /// Lets time pass. Called by admissions when something is due, and now and then by a timer so that states change,
    /// and gauges tell the truth, without traffic.
    pub fn tick(&self, settings: &Settings, now: Moment, dice: &mut Dice) -> Option<Transition> {
        if self.state() == State::Closed {
            return None;
        }
        self.locked(|inner| match self.state() {
            State::Open if now >= self.until() => Some(self.half_open(inner, Cause::OpenOver, now)),
            State::ForcedOpen | State::ForcedClosed if now >= self.until() => {
                Some(self.close(inner, Cause::Operator, now))
            }
            State::HalfOpen => {
                let late = inner.probes.iter().any(|(_, late)| now >= *late);
                if late {
                    return Some(self.reopen(inner, settings, Cause::ProbeFailed, None, now, dice));
                }
                if now < self.until() {
                    return None;
                }
                if !inner.probes.is_empty() {
                    return Some(self.reopen(inner, settings, Cause::HalfOpenTimeout, None, now, dice));
                }
                // Hardly anybody came. What was seen went well, or nothing was seen: neither speaks for refusing.
                Some(if inner.passed > 0 {
                    self.close_or_ramp(inner, settings, now)
                } else {
                    self.half_open(inner, Cause::HalfOpenTimeout, now)
                })
            }
            State::Recovering
                if inner.ramp_success && now.since(self.entered()) >= settings.ramp.unwrap_or_default() =>
            {
                Some(self.close(inner, Cause::RampDone, now))
            }
            _ => None,
        })
    }

    /// Carries out an order until `until`.
    pub fn force(&self, force: Force, until: Moment, now: Moment) -> Option<Transition> {
        let to = match force {
            Force::Open => State::ForcedOpen,
            Force::Closed => State::ForcedClosed,
        };
        self.locked(|inner| {
            inner.cause = Some(Cause::Operator);
            Some(self.enter(inner, to, Cause::Operator, until, now))
        })
    }

    /// Closes, whatever the state, and forgets the past.
    pub fn reset(&self, now: Moment) -> Option<Transition> {
        self.locked(|inner| {
            inner.openings = 0;
            self.window.clear();
            (self.state() != State::Closed).then(|| self.close(inner, Cause::Operator, now))
        })
    }

    /// Something outside says that trying is worth while: an open breaker lets probes pass at once.
    pub fn invite(&self, now: Moment) -> Option<Transition> {
        if self.state() != State::Open {
            return None;
        }
        self.locked(|inner| (self.state() == State::Open).then(|| self.half_open(inner, Cause::Invited, now)))
    }

    /// What is known at `now`.
    #[must_use]
    pub fn report(&self, settings: &Settings, now: Moment) -> Report {
        self.locked(|inner| Report {
            state: self.state(),
            cause: inner.cause,
            until: self.until(),
            counts: self.window.counts(now),
            openings: inner.openings,
            probes: inner.probes.len(),
            share: match self.state() {
                State::Closed | State::ForcedClosed => 1.0,
                State::Recovering => self.share(settings, now),
                State::Open | State::HalfOpen | State::ForcedOpen => 0.0,
            },
        })
    }

    /// What another process has to know.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        self.locked(|inner| {
            let (state, until) = (self.state(), self.until());
            Saved {
                state,
                cause: inner.cause,
                left: (until < Moment::FAR_FUTURE).then(|| until.since(now)),
                elapsed: now.since(self.entered()),
                openings: inner.openings,
                // Ordering: Relaxed; a count of its own.
                consecutive: self.consecutive.load(Ordering::Relaxed),
                passed: inner.passed,
                ramp_success: inner.ramp_success,
                window: self.window.save(now),
            }
        })
    }

    /// A breaker that goes on where another one was. It cannot be wedged by what it is told: a state that ends by time
    /// has an end, at most a day away.
    #[must_use]
    pub fn restored(saved: &Saved, now: Moment) -> Self {
        let entered = now.minus(saved.elapsed);
        let until = match saved.state {
            State::Closed | State::Recovering => Moment::FAR_FUTURE,
            State::HalfOpen => now.plus(saved.left.unwrap_or_default().min(HALF_OPEN_TIMEOUT)),
            State::Open | State::ForcedOpen | State::ForcedClosed => {
                now.plus(saved.left.unwrap_or_default().min(LONGEST_RESTORED))
            }
        };
        let window = Window::restored(&saved.window, now);
        let counts = window.counts(now);
        let bad_until = if counts.failed + counts.slow > 0 {
            now.plus(window.length()).as_nanos()
        } else {
            0
        };
        Self {
            view: AtomicU64::new(GENERATION_STEP | saved.state as u64),
            until: AtomicU64::new(until.as_nanos()),
            entered: AtomicU64::new(entered.as_nanos()),
            consecutive: AtomicU32::new(saved.consecutive.min(u32::MAX / 2)),
            bad_until: AtomicU64::new(bad_until),
            window,
            inner: Mutex::new(Inner {
                openings: saved.openings,
                closed: entered,
                cause: saved.cause.filter(|_| saved.state != State::Closed),
                probes: Vec::new(),
                next_ticket: 0,
                passed: saved.passed.min(u32::MAX / 2),
                failed: 0,
                ramp_success: saved.ramp_success,
            }),
        }
    }

    /// From any state that lets calls pass, if nobody else was first.
    fn open(
        &self,
        settings: &Settings,
        view: u64,
        cause: Cause,
        hint: Option<Duration>,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Transition> {
        self.locked(|inner| {
            (self.view() == view).then(|| self.reopen(inner, settings, cause, hint, now, dice))
        })
    }

    fn reopen(
        &self,
        inner: &mut Inner,
        settings: &Settings,
        cause: Cause,
        hint: Option<Duration>,
        now: Moment,
        dice: &mut Dice,
    ) -> Transition {
        if self.state() == State::Closed {
            let calm = now.since(inner.closed).as_secs() / FORGET_AFTER.as_secs();
            inner.openings = inner
                .openings
                .saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX));
        }
        let length = settings
            .open
            .saturating_mul(1_u32.checked_shl(inner.openings).unwrap_or(u32::MAX))
            .min(settings.max_open);
        let draw = dice.unit();
        let jittered = length.mul_f64(1.0 + JITTER * draw);
        let length = if jittered <= settings.max_open {
            jittered
        } else {
            // At the limit chance shortens: the limit is a promise.
            settings.max_open.mul_f64(1.0 - JITTER / 2.0 * draw)
        };
        let length = length.max(hint.unwrap_or_default().min(settings.max_open));
        inner.openings = inner.openings.saturating_add(1);
        inner.cause = Some(cause);
        let change = self.enter(inner, State::Open, cause, now.plus(length), now);
        self.window.clear();
        change
    }

    fn half_open(&self, inner: &mut Inner, cause: Cause, now: Moment) -> Transition {
        self.enter(inner, State::HalfOpen, cause, now.plus(HALF_OPEN_TIMEOUT), now)
    }

    fn close_or_ramp(&self, inner: &mut Inner, settings: &Settings, now: Moment) -> Transition {
        if settings.ramp.is_some_and(|ramp| !ramp.is_zero()) {
            self.enter(
                inner,
                State::Recovering,
                Cause::ProbesPassed,
                Moment::FAR_FUTURE,
                now,
            )
        } else {
            self.close(inner, Cause::ProbesPassed, now)
        }
    }

    fn close(&self, inner: &mut Inner, cause: Cause, now: Moment) -> Transition {
        inner.cause = None;
        inner.closed = now;
        self.enter(inner, State::Closed, cause, Moment::FAR_FUTURE, now)
    }

    /// The one place where the state changes. Called with `inner` locked.
    fn enter(&self, inner: &mut Inner, to: State, cause: Cause, until: Moment, now: Moment) -> Transition {
        inner.probes.clear();
        inner.passed = 0;
        inner.failed = 0;
        inner.ramp_success = false;
        let before = self.view();
        let counts = self.window.counts(now);
        // Ordering: these are read after `view`, whose store below releases them.
        self.until.store(until.as_nanos(), Ordering::Relaxed);
        self.entered.store(now.as_nanos(), Ordering::Relaxed);
        self.consecutive.store(0, Ordering::Relaxed);
        let generation = (before & !STATE_BITS).wrapping_add(GENERATION_STEP);
        // Ordering: Release; who sees the new state sees its times.
        self.view.store(generation | to as u64, Ordering::Release);
        Transition {
            from: State::from_bits(before),
            to,
            cause,
            counts,
            until,
        }
    }

    /// The share of calls that pass at `now` while recovering.
    fn share(&self, settings: &Settings, now: Moment) -> f64 {
        let ramp = settings.ramp.unwrap_or_default();
        if ramp.is_zero() {
            return 1.0;
        }
        let done = now.since(self.entered()).as_secs_f64() / ramp.as_secs_f64();
        (RAMP_START + (1.0 - RAMP_START) * done).min(1.0)
    }

    fn view(&self) -> u64 {
        // Ordering: Acquire; pairs with the store in `enter`.
        self.view.load(Ordering::Acquire)
    }

    fn until(&self) -> Moment {
        // Ordering: Relaxed; after `view`.
        Moment::from_nanos(self.until.load(Ordering::Relaxed))
    }

    fn entered(&self) -> Moment {
        // Ordering: Relaxed; after `view`.
        Moment::from_nanos(self.entered.load(Ordering::Relaxed))
    }

    fn locked<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic while it was held left plain numbers behind, all of them valid.
        let mut inner = self
            .inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut inner)
    }
}

/// What an outcome adds to the window; pushback asks for less and is no failure of what is called.
const fn sample(outcome: Outcome) -> Option<Sample> {
    match outcome {
        Outcome::Success => Some(Sample::Good),
        Outcome::Slow => Some(Sample::Slow),
        Outcome::Failure(_) => Some(Sample::Failed),
        Outcome::Pushback(_) | Outcome::Ignored => None,
    }
}

const fn hint(outcome: Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Pushback(hint) => hint,
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(loom)]
mod loom_tests {
    use super::*;
    use crate::outcome::Origin;

    fn settings() -> Settings {
        Settings {
            consecutive: Some(1),
            probes: 1,
            ramp: None,
            ..Settings::default()
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn loom_two_callers_of_a_due_breaker_get_one_place() {
        loom::model(|| {
            let due = Saved {
                state: State::Open,
                openings: 1,
                ..Saved::default()
            };
            let breaker = Arc::new(Breaker::restored(&due, at(1)));
            let other = Arc::clone(&breaker);
            let ask =
                |breaker: &Arc<Breaker>| breaker.admit(&settings(), at(2), &mut Dice::new(1)).verdict.ok();
            let thread = loom::thread::spawn(move || ask(&other));
            let mine = ask(&breaker);
            let theirs = thread.join().expect("no panic");
            assert!(mine.is_some() != theirs.is_some(), "exactly one probe");
            drop((mine, theirs));
            assert_eq!(breaker.report(&settings(), at(2)).probes, 0);
        });
    }

    #[test]
    fn loom_a_verdict_and_a_drop_leave_no_probe() {
        loom::model(|| {
            let breaker = Arc::new(Breaker::new(Duration::from_secs(10)));
            let live = breaker.admit(&settings(), at(1), &mut Dice::new(1)).verdict;
            let other = Arc::clone(&breaker);
            let thread = loom::thread::spawn(move || {
                let failure = Outcome::Failure(Origin::Remote);
                other.record(
                    &settings(),
                    live.expect("closed"),
                    failure,
                    at(1),
                    &mut Dice::new(2),
                );
            });
            let mine = breaker.admit(&settings(), at(100), &mut Dice::new(3)).verdict;
            thread.join().expect("no panic");
            drop(mine);
            assert_eq!(breaker.report(&settings(), at(100)).probes, 0);
        });
    }
}
