//! Arbiter: the one place where it is settled whether an endpoint may be used.
//!
//! Discovery, operators, active checks, heartbeats, the endpoint itself, ejection and its breaker each know something,
//! and none of them may undo what another has done: a green check does not bring back what fails for users, and a
//! returned ejection does not override an operator. So each source has an opinion of its own and changes no other. An
//! endpoint is available while nobody who has an opinion is against it: one is enough to remove it, everybody who removed
//! it must agree before it returns, and who does not know has no vote.
//!
//! The picker reads one word ([`Arbiter::availability`]): a bit per source and degree. Why each bit is what it is (reason,
//! evidence, times) lies behind a lock, for people.
//!
//! Precedence matters only for the one word that describes an endpoint ([`State`]), not for whether it is used: what
//! people did comes before what was observed, and what was asked before what was inferred.

use std::sync::PoisonError;

use crate::moment::Moment;
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};

/// Who has an opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// What lists the endpoints.
    Discovery,
    /// An operator.
    Admin,
    /// Active checks.
    Check,
    /// The detector of missing beats.
    Heartbeat,
    /// What the endpoint says of itself: a pushed state, a drain header.
    Agent,
    /// Outlier ejection.
    Ejection,
    /// The endpoint's circuit breaker.
    Breaker,
}

/// What a source thinks of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Opinion {
    /// Nothing; no vote.
    #[default]
    Unknown,
    /// It may be used.
    Up,
    /// It may be used for a quarter of its share.
    Degraded,
    /// It finishes what it has; nothing new.
    Draining,
    /// It may not be used.
    Down,
}

/// One source's opinion with its grounds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    /// What it thinks.
    pub opinion: Opinion,
    /// Why, as one of the words of events: `connect_refused`, `consecutive_gateway`, `drained`.
    pub reason: &'static str,
    /// The numbers, for people.
    pub evidence: String,
    /// Since when it thinks so.
    pub since: Moment,
    /// When it last said so.
    pub said: Moment,
}

/// Whether an endpoint may be used, and who is against it: what the picker reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Availability {
    /// From bit 0 who says down, from 8 who says draining, from 16 who says degraded.
    bits: u32,
}

/// The one word that describes an endpoint; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Discovery no longer lists it.
    Gone,
    /// An operator took it out.
    AdminDown,
    /// It finishes what it has.
    Draining,
    /// Active checks fail, or it says itself that it is down.
    CheckFailed,
    /// Its beats are missing.
    HeartbeatLost,
    /// It was ejected.
    Ejected,
    /// Its breaker is open.
    BreakerOpen,
    /// It is used for a quarter of its share.
    Degraded,
    /// It is used.
    Available,
}

/// What an opinion changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// How it was.
    pub before: Availability,
    /// How it is.
    pub after: Availability,
}

/// The opinions about one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Arbiter {
    /// The bits of [`Availability`]; written under the lock.
    word: AtomicU32,
    /// `f32` bits: what share of its weight the endpoint asked for; 1.0 unless it did.
    share: AtomicU32,
    /// When it joined or came back, in nanoseconds.
    entered: AtomicU64,
    grounds: Mutex<[Ground; SOURCES.len()]>,
}

impl Arbiter {
    /// An endpoint that nobody has an opinion about: it may be used. `joined` is where its slow start counts from;
    /// [`Moment::ZERO`] for one that was there from the start.
    #[must_use]
    pub fn new(joined: Moment) -> Self {
        Self {
            word: AtomicU32::new(0),
            share: AtomicU32::new(1.0f32.to_bits()),
            entered: AtomicU64::new(joined.as_nanos()),
            grounds: Mutex::new(std::array::from_fn(|_| Ground::default())),
        }
    }

    /// Whether it may be used. One load.
    #[must_use]
    pub fn availability(&self) -> Availability {
        // Ordering: Relaxed; a picker may act on a word that is a moment old.
        Availability {
            bits: self.word.load(Ordering::Relaxed),
        }
    }

    /// The share of its weight that it gets apart from slow start: what it asked for, a quarter of that when degraded.
    /// Two loads.
    #[must_use]
    pub fn factor(&self) -> f32 {
        self.share() * self.availability().factor()
    }

    /// The share of its weight that it asked for.
    #[must_use]
    pub fn share(&self) -> f32 {
        // Ordering: Relaxed; a lone value.
        f32::from_bits(self.share.load(Ordering::Relaxed))
    }

    /// When it joined or last became available.
    #[must_use]
    pub fn entered(&self) -> Moment {
        // Ordering: Relaxed; a lone value, and the ramp does not mind.
        Moment::from_nanos(self.entered.load(Ordering::Relaxed))
    }

    /// The endpoint asked for this share of its weight; not finite or negative is a bug of the caller and counts as 1.0.
    pub fn set_share(&self, share: f32) {
        let share = if share.is_finite() && share >= 0.0 {
            share
        } else {
            1.0
        };
        // Ordering: Relaxed; a lone value.
        self.share.store(share.to_bits(), Ordering::Relaxed);
    }

    /// A source says what it thinks. Saying the same again renews the evidence and keeps the time since when.
    pub fn set(
        &self,
        source: Source,
        opinion: Opinion,
        reason: &'static str,
        evidence: String,
        now: Moment,
    ) -> Change {
        self.set_to(source, now, || (opinion, reason, evidence))
    }

    /// As [`Arbiter::set`], for a source whose state others change meanwhile: what it thinks is asked under the lock, so
    /// of two that come together the later does not say what was true before the earlier.
    pub fn set_to(
        &self,
        source: Source,
        now: Moment,
        think: impl FnOnce() -> (Opinion, &'static str, String),
    ) -> Change {
        let mut grounds = self.lock();
        let (opinion, reason, evidence) = think();
        let ground = &mut grounds[source.index()];
        if ground.opinion != opinion || ground.reason != reason {
            ground.since = now;
        }
        ground.opinion = opinion;
        ground.reason = reason;
        ground.evidence = evidence;
        ground.said = now;

        let before = self.availability();
        let after = before.with(source, opinion);
        let change = Change { before, after };
        // Ordering: Relaxed; writers are ordered by the lock. The time first, so that a picker that sees the endpoint
        // back usually sees its slow start too.
        if change.is_return() {
            self.entered.store(now.as_nanos(), Ordering::Relaxed);
        }
        self.word.store(after.bits, Ordering::Relaxed);
        change
    }

    /// A source has no opinion any more: it was switched off, or what it knew is too old.
    pub fn forget(&self, source: Source, now: Moment) -> Change {
        self.set(source, Opinion::Unknown, "", String::new(), now)
    }

    /// All opinions, in the order of [`Source::all`].
    #[must_use]
    pub fn grounds(&self) -> Vec<(Source, Ground)> {
        SOURCES.into_iter().zip(self.lock().iter().cloned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, [Ground; SOURCES.len()]> {
        self.grounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Availability {
    /// Whether a new request may be sent.
    #[must_use]
    pub const fn is_available(self) -> bool {
        self.bits & (DOWN | DRAINING) == 0
    }

    /// Whether a request of a session that lives there may be sent: draining does not end those.
    #[must_use]
    pub const fn is_available_to_its_sessions(self) -> bool {
        self.bits & DOWN == 0
    }

    /// Whether it could be used but for this source: the question before its probe.
    #[must_use]
    pub const fn is_removed_only_by(self, source: Source) -> bool {
        self.bits & (DOWN | DRAINING) == source.bit()
    }

    /// Whether nobody is against it but those whom one request can convince: ejection, its breaker. They are one question,
    /// or each would wait for the other to let go first.
    #[must_use]
    pub const fn awaits_probe(self) -> bool {
        let against = self.bits & (DOWN | DRAINING);
        let convincible = Source::Ejection.bit() | Source::Breaker.bit();
        against != 0 && against & !convincible == 0
    }

    /// Whether it could be used if this source had no vote.
    #[must_use]
    pub const fn but_for(self, source: Source) -> bool {
        let own = source.bit() | source.bit() << DRAINING_SHIFT;
        self.bits & (DOWN | DRAINING) & !own == 0
    }

    /// What this source thinks, as far as it matters: [`Opinion::Up`] also stands for none.
    #[must_use]
    pub const fn opinion_of(self, source: Source) -> Opinion {
        if self.is_down_by(source) {
            Opinion::Down
        } else if self.is_drained_by(source) {
            Opinion::Draining
        } else if self.bits & (source.bit() << DEGRADED_SHIFT) != 0 {
            Opinion::Degraded
        } else {
            Opinion::Up
        }
    }

    /// Whether this source says down.
    #[must_use]
    pub const fn is_down_by(self, source: Source) -> bool {
        self.bits & source.bit() != 0
    }

    /// Whether this source says draining.
    #[must_use]
    pub const fn is_drained_by(self, source: Source) -> bool {
        self.bits & (source.bit() << DRAINING_SHIFT) != 0
    }

    /// Who says down or draining.
    pub fn removers(self) -> impl Iterator<Item = Source> {
        SOURCES
            .into_iter()
            .filter(move |&source| self.is_down_by(source) || self.is_drained_by(source))
    }

    /// The share that is left of its weight when somebody calls it degraded.
    #[must_use]
    pub const fn factor(self) -> f32 {
        if self.bits & DEGRADED == 0 {
            1.0
        } else {
            DEGRADED_FACTOR
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn state(self) -> State {
        if self.is_down_by(Source::Discovery) {
            State::Gone
        } else if self.is_down_by(Source::Admin) {
            State::AdminDown
        } else if self.bits & DRAINING != 0 {
            State::Draining
        } else if self.is_down_by(Source::Check) || self.is_down_by(Source::Agent) {
            State::CheckFailed
        } else if self.is_down_by(Source::Heartbeat) {
            State::HeartbeatLost
        } else if self.is_down_by(Source::Ejection) {
            State::Ejected
        } else if self.is_down_by(Source::Breaker) {
            State::BreakerOpen
        } else if self.bits & DEGRADED != 0 {
            State::Degraded
        } else {
            State::Available
        }
    }

    const fn with(self, source: Source, opinion: Opinion) -> Self {
        let bit = source.bit();
        let cleared = self.bits & !(bit | bit << DRAINING_SHIFT | bit << DEGRADED_SHIFT);
        let bits = match opinion {
            Opinion::Unknown | Opinion::Up => cleared,
            Opinion::Down => cleared | bit,
            Opinion::Draining => cleared | bit << DRAINING_SHIFT,
            Opinion::Degraded => cleared | bit << DEGRADED_SHIFT,
        };
        Self { bits }
    }
}

impl Change {
    /// Whether the endpoint has just become unavailable.
    #[must_use]
    pub const fn is_removal(self) -> bool {
        self.before.is_available() && !self.after.is_available()
    }

    /// Whether it has just become available; its slow start begins.
    #[must_use]
    pub const fn is_return(self) -> bool {
        !self.before.is_available() && self.after.is_available()
    }
}

impl Source {
    /// Every source, those of people first.
    #[must_use]
    pub const fn all() -> [Self; SOURCES.len()] {
        SOURCES
    }

    /// The word in metrics, events and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Admin => "admin",
            Self::Check => "check",
            Self::Heartbeat => "heartbeat",
            Self::Agent => "agent",
            Self::Ejection => "ejection",
            Self::Breaker => "breaker",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Discovery => 0,
            Self::Admin => 1,
            Self::Check => 2,
            Self::Heartbeat => 3,
            Self::Agent => 4,
            Self::Ejection => 5,
            Self::Breaker => 6,
        }
    }

    const fn bit(self) -> u32 {
        1 << self.index()
    }
}

impl Opinion {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

impl State {
    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::AdminDown => "admin_down",
            Self::Draining => "draining",
            Self::CheckFailed => "check_failed",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::Ejected => "ejected",
            Self::BreakerOpen => "breaker_open",
            Self::Degraded => "degraded",
            Self::Available => "available",
        }
    }
}

const SOURCES: [Source; 7] = [
    Source::Discovery,
    Source::Admin,
    Source::Check,
    Source::Heartbeat,
    Source::Agent,
    Source::Ejection,
    Source::Breaker,
];

const DRAINING_SHIFT: u32 = 8;
const DEGRADED_SHIFT: u32 = 16;
const DOWN: u32 = 0xff;
const DRAINING: u32 = 0xff << DRAINING_SHIFT;
const DEGRADED: u32 = 0xff << DEGRADED_SHIFT;

const DEGRADED_FACTOR: f32 = 0.25;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const OPINIONS: [Opinion; 5] = [
        Opinion::Unknown,
        Opinion::Up,
        Opinion::Degraded,
        Opinion::Draining,
        Opinion::Down,
    ];

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn say(arbiter: &Arbiter, source: Source, opinion: Opinion, seconds: u64) -> Change {
        arbiter.set(source, opinion, "test", String::new(), at(seconds))
    }

    #[test]
    fn one_removes_and_everybody_who_removed_must_agree_to_return() {
        let arbiter = Arbiter::new(Moment::ZERO);
        assert!(arbiter.availability().is_available(), "unknown is not down");
        assert!(say(&arbiter, Source::Check, Opinion::Down, 1).is_removal());
        assert!(!say(&arbiter, Source::Ejection, Opinion::Down, 2).is_removal());
        assert!(
            !say(&arbiter, Source::Check, Opinion::Up, 3).is_return(),
            "green is not enough"
        );
        assert!(arbiter.availability().is_removed_only_by(Source::Ejection));
        assert_eq!(arbiter.entered(), Moment::ZERO);
        assert!(arbiter.forget(Source::Ejection, at(4)).is_return());
        assert_eq!(arbiter.entered(), at(4), "slow start counts from the return");
    }

    #[test]
    fn draining_ends_new_requests_and_keeps_sessions() {
        let arbiter = Arbiter::new(Moment::ZERO);
        assert!(say(&arbiter, Source::Agent, Opinion::Draining, 1).is_removal());
        let now = arbiter.availability();
        assert!(!now.is_available() && now.is_available_to_its_sessions());
        assert!(!now.is_removed_only_by(Source::Ejection));
        say(&arbiter, Source::Ejection, Opinion::Down, 2);
        assert!(
            !arbiter.availability().is_removed_only_by(Source::Ejection),
            "no probe while it drains"
        );
    }

    #[test]
    fn degraded_is_a_quarter_of_what_it_asked_for() {
        let arbiter = Arbiter::new(Moment::ZERO);
        assert_eq!(arbiter.factor(), 1.0);
        arbiter.set_share(0.5);
        say(&arbiter, Source::Heartbeat, Opinion::Degraded, 1);
        assert!(arbiter.availability().is_available());
        assert_eq!(arbiter.factor(), 0.125);
        arbiter.set_share(f32::NAN);
        assert_eq!(arbiter.factor(), 0.25);
    }

    #[test]
    fn the_grounds_say_who_why_and_since_when() {
        let arbiter = Arbiter::new(Moment::ZERO);
        let evidence = |n: u32| format!("{n} of 3 checks failed");
        arbiter.set(Source::Check, Opinion::Down, "timeout", evidence(3), at(1));
        arbiter.set(Source::Check, Opinion::Down, "timeout", evidence(4), at(9));
        let (source, ground) = arbiter.grounds()[2].clone();
        assert_eq!(source, Source::Check);
        let expected = Ground {
            opinion: Opinion::Down,
            reason: "timeout",
            evidence: evidence(4),
            since: at(1),
            said: at(9),
        };
        assert_eq!(ground, expected);
        let removers: Vec<_> = arbiter.availability().removers().map(Source::name).collect();
        assert_eq!(removers, ["check"]);
    }

    #[test]
    fn the_state_is_the_first_that_applies() {
        let arbiter = Arbiter::new(Moment::ZERO);
        let mut seen = vec![arbiter.availability().state().name()];
        for (source, opinion) in [
            (Source::Heartbeat, Opinion::Degraded),
            (Source::Breaker, Opinion::Down),
            (Source::Ejection, Opinion::Down),
            (Source::Heartbeat, Opinion::Down),
            (Source::Check, Opinion::Down),
            (Source::Agent, Opinion::Draining),
            (Source::Admin, Opinion::Down),
            (Source::Discovery, Opinion::Down),
        ] {
            say(&arbiter, source, opinion, 1);
            seen.push(arbiter.availability().state().name());
        }
        let expected = [
            "available",
            "degraded",
            "breaker_open",
            "ejected",
            "heartbeat_lost",
            "check_failed",
            "draining",
            "admin_down",
            "gone",
        ];
        assert_eq!(seen, expected);
    }

    proptest! {
        /// The word is what the opinions say, whatever the order they came in.
        #[test]
        fn the_word_agrees_with_the_opinions(steps in prop::collection::vec((0usize..7, 0usize..5), 0..40)) {
            let arbiter = Arbiter::new(Moment::ZERO);
            for (second, (source, opinion)) in steps.into_iter().enumerate() {
                let before = arbiter.availability();
                let change = say(&arbiter, SOURCES[source], OPINIONS[opinion], second as u64);
                prop_assert_eq!((change.before, change.after), (before, arbiter.availability()));
                let grounds = arbiter.grounds();
                let has = |wanted: Opinion| grounds.iter().any(|(_, ground)| ground.opinion == wanted);
                let now = arbiter.availability();
                prop_assert_eq!(now.is_available(), !has(Opinion::Down) && !has(Opinion::Draining));
                prop_assert_eq!(now.is_available_to_its_sessions(), !has(Opinion::Down));
                prop_assert_eq!(now.factor() < 1.0, has(Opinion::Degraded));
                if change.is_return() {
                    prop_assert_eq!(arbiter.entered(), at(second as u64));
                }
                for (source, ground) in grounds {
                    let voiced = match ground.opinion {
                        Opinion::Unknown => Opinion::Up,
                        opinion => opinion,
                    };
                    prop_assert_eq!(now.opinion_of(source), voiced);
                    let others = now.removers().any(|other| other != source);
                    prop_assert_eq!(now.but_for(source), !others);
                }
            }
        }
    }

    #[test]
    fn scenario_45_sources_do_not_overwrite_each_other() {
        let arbiter = Arbiter::new(Moment::ZERO);
        std::thread::scope(|scope| {
            for source in SOURCES {
                let arbiter = &arbiter;
                scope.spawn(move || {
                    for step in 0..2_000usize {
                        say(arbiter, source, OPINIONS[step % 5], step as u64);
                    }
                    say(arbiter, source, Opinion::Down, 9_999);
                });
            }
        });
        assert_eq!(arbiter.availability().removers().count(), SOURCES.len());
        for source in SOURCES {
            assert!(!arbiter.availability().is_available());
            arbiter.forget(source, at(10_000));
        }
        assert!(arbiter.availability().is_available());
    }
}
