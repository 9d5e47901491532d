//! Ejection: an endpoint is out for a while and comes back by passing one request.
//!
//! A timer alone cannot tell whether an endpoint has recovered, so detectors that return by time put a failing one back
//! every few seconds and pay with a burst of failures each time. Here the end of the time only makes a probe *due*: one
//! request at a time may pass. If it succeeds the endpoint is back and enters its slow start; if it fails the endpoint is
//! out again, twice as long. Each time out is longer than the one before ([`Settings::delay`]), jittered so that many
//! proxies do not probe together, and time spent in service shortens the next one again.
//!
//! An active check may take the probe instead of a request, and should where there is no traffic. It proves no more than
//! it asks: after failures of requests that a check does not see, a request is the better probe.
//!
//! *Rehearsals.* A time out that doubles is right for who keeps failing and long for who has recovered, and every failed
//! probe costs somebody a request. So while an endpoint is out, copies of requests that anybody may repeat are sent to it,
//! ten a second, and nobody waits for them: [`Ejection::rehearse`] gives the right to one. [`REHEARSALS`] good ones in
//! a row bring the probe forward; they do not replace it. What fails now and then fails among so many. One that fails puts
//! the probe off by a second: whoever fails three of ten would pass most probes and cost users a request each time. The
//! time out is at most doubled so, because copies may fail where other requests would not.
//!
//! An endpoint whose probe is due must stay visible to the picker, and should be preferred once: nothing else brings it
//! back. [`Ejection::standing`] says so with one load for the usual case.
//!
//! What must stay true:
//! * a probe that is dropped frees its slot, and one that never ends holds it no longer than [`Settings::probe_timeout`];
//! * a verdict that comes late decides only about the same time out, and only the first one does;
//! * an endpoint ejected for show ([`Mode::Observe`]) is in service for the picker at every moment.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::dice::Dice;
use crate::mode::Mode;
use crate::moment::Moment;
use crate::outcome::Outcome;
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};

/// How long an endpoint stays out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The first time.
    pub base: Duration,
    /// Never longer than this.
    pub max: Duration,
    /// Up to this share is added at random.
    pub jitter: f64,
    /// For each of these spent in service one ejection is forgotten.
    pub forget_after: Duration,
    /// A probe that runs longer no longer keeps others from trying.
    pub probe_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(5),
            max: Duration::from_secs(300),
            jitter: 0.5,
            forget_after: Duration::from_secs(600),
            probe_timeout: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// How long the `nth` ejection in a row lasts: doubling, jittered, never above the maximum.
    ///
    /// The maximum is shared out among the jitter too, so endpoints that are out for the longest time are not probed in
    /// phase either.
    #[must_use]
    pub fn delay(&self, nth: u32, dice: &mut Dice) -> Duration {
        let jitter = self.jitter.clamp(0.0, 1.0);
        let max = self.max.max(self.base);
        let doublings = nth.saturating_sub(1).min(62);
        let grown = self.base.as_secs_f64() * (1u64 << doublings) as f64;
        let seconds = grown.min(max.as_secs_f64() / (1.0 + jitter)) * (1.0 + jitter * dice.unit());
        Duration::try_from_secs_f64(seconds).unwrap_or(max).min(max)
    }
}

/// The state of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Ejection {
    /// 0 in service, else the end of the time out in nanoseconds with [`OUT`] and perhaps [`SHADOW`] in its low bits.
    word: AtomicU64,
    /// Until when the running probe holds its slot, in nanoseconds; 0 or past when it is free.
    probe: AtomicU64,
    /// When the next rehearsal may begin, in nanoseconds.
    rehearsal: AtomicU64,
    /// Good rehearsals in a row.
    rehearsed: AtomicU32,
    /// Held while `word` changes.
    history: Mutex<History>,
}

#[derive(Debug, Clone, Copy, Default)]
struct History {
    /// Ejections in a row, not yet forgotten.
    nth: u32,
    ejected_at: Moment,
    /// When the first probe was to be due.
    until: Moment,
    returned_at: Moment,
}

/// Where an endpoint stands, for the picker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In service.
    In,
    /// Out.
    Out,
    /// Out, and a request that takes the probe may pass.
    Due,
    /// Out, and a probe is under way.
    Probing,
}

/// The right to send one request to an endpoint that is out.
///
/// Ends with [`Probe::judge`]; dropping it frees the slot and says nothing about the endpoint.
#[derive(Debug)]
#[must_use = "a probe that is dropped gives its slot back"]
pub struct Probe {
    ejection: Arc<Ejection>,
    /// Which time out it is about.
    word: u64,
    /// The value it put into the slot.
    deadline: u64,
}

/// What a new time out looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// The how many-th in a row, from 1.
    pub nth: u32,
    /// When the first probe is due.
    pub until: Moment,
}

/// What a probe's verdict did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// The endpoint is back; its slow start begins, and its tally must be cleared.
    Returned,
    /// It is out again.
    Again(Ejected),
    /// The request said nothing about the endpoint; the slot is free.
    Released,
    /// Somebody else decided before.
    Stale,
}

/// What people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Where it stands.
    pub standing: Standing,
    /// Whether it is out for show only.
    pub mode: Mode,
    /// Ejections in a row; kept for a while after the return.
    pub nth: u32,
    /// Since when it is out, or was the last time.
    pub since: Moment,
    /// When the first probe is or was due; `None` in service.
    pub until: Option<Moment>,
}

/// What outlives the process, free of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// Ejections in a row.
    pub nth: u32,
    /// How long it is still out; `None` in service.
    pub left: Option<Duration>,
}

impl Ejection {
    /// In service, never ejected.
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(IN),
            probe: AtomicU64::new(0),
            rehearsal: AtomicU64::new(0),
            rehearsed: AtomicU32::new(0),
            history: Mutex::new(History::default()),
        }
    }

    /// Where it stands. One load while it is in service.
    #[must_use]
    pub fn standing(&self, now: Moment) -> Standing {
        // Ordering: Relaxed; a picker may act on a state that is a moment old.
        let word = self.word.load(Ordering::Relaxed);
        if word == IN || is_shadow(word) {
            Standing::In
        } else if now < end_of(word) {
            Standing::Out
        } else if now.as_nanos() < self.probe.load(Ordering::Relaxed) {
            Standing::Probing
        } else {
            Standing::Due
        }
    }

    /// Whether it is ejected, really or for show.
    #[must_use]
    pub fn is_out(&self) -> bool {
        // Ordering: Relaxed, as in `standing`.
        self.word.load(Ordering::Relaxed) != IN
    }

    /// Whether it is ejected for show only.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        // Ordering: Relaxed, as in `standing`.
        is_shadow(self.word.load(Ordering::Relaxed))
    }

    /// Takes it out, unless it is.
    pub fn eject(&self, settings: &Settings, mode: Mode, now: Moment, dice: &mut Dice) -> Option<Ejected> {
        let mut history = self.lock();
        if self.is_out() {
            return None;
        }
        let forgotten = now.since(history.returned_at).as_nanos() / settings.forget_after.as_nanos().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        history.nth = history.nth.saturating_sub(forgotten);
        let delay = settings.delay(history.nth.saturating_add(1), dice);
        Some(self.put_out(&mut history, delay, mode, now))
    }

    /// The right to probe it, if that is due and nobody else is at it.
    pub fn try_probe(self: &Arc<Self>, settings: &Settings, now: Moment) -> Option<Probe> {
        // Ordering: Relaxed throughout; who holds an outdated word is told so by `judge`, under the lock.
        let word = self.word.load(Ordering::Relaxed);
        if word == IN || is_shadow(word) || now < end_of(word) {
            return None;
        }
        let held = self.probe.load(Ordering::Relaxed);
        if now.as_nanos() < held {
            return None;
        }
        let timeout = settings.probe_timeout.max(Duration::from_nanos(1));
        let deadline = now.plus(timeout).as_nanos();
        self.probe
            .compare_exchange(held, deadline, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        Some(Probe {
            ejection: Arc::clone(self),
            word,
            deadline,
        })
    }

    /// Whether a copy of a request may be sent to it now: it is out, its time is not over, and the last one is a while ago.
    /// Exactly one of those who ask at a time is told so.
    #[must_use]
    pub fn rehearse(&self, now: Moment) -> bool {
        self.standing(now) == Standing::Out && self.turn(now)
    }

    /// Whether it is time for another rehearsal, of an endpoint that is in service and avoided as well.
    #[must_use]
    pub fn turn(&self, now: Moment) -> bool {
        // Ordering: Relaxed; the exchange only decides who goes.
        let due = self.rehearsal.load(Ordering::Relaxed);
        now.as_nanos() >= due
            && self
                .rehearsal
                .compare_exchange(
                    due,
                    now.plus(REHEARSE_AFTER).as_nanos(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// A rehearsal went well, or did not. True if it was the last one needed: the probe of who is out is due.
    pub fn rehearsed(&self, well: bool, now: Moment) -> bool {
        // Ordering: Relaxed; a count of its own. One that belongs to an earlier time out counts for this one: it began
        // less than a request ago.
        if !well {
            self.rehearsed.store(0, Ordering::Relaxed);
            self.put_off(now);
            return false;
        }
        let before = self.rehearsed.fetch_add(1, Ordering::Relaxed);
        if before + 1 < REHEARSALS {
            return false;
        }
        self.rehearsed.store(0, Ordering::Relaxed);
        !self.is_out() || self.invite(now)
    }

    fn put_off(&self, now: Moment) {
        let history = self.lock();
        // Ordering: Relaxed, as in `put_out`.
        let word = self.word.load(Ordering::Relaxed);
        if word == IN || is_shadow(word) || end_of(word) <= now {
            return;
        }
        let last = history.until.plus(history.until.since(history.ejected_at));
        let end = now.plus(PUT_OFF).min(last);
        if end > end_of(word) {
            self.word.store(pack(end, Mode::Enforce), Ordering::Relaxed);
        }
    }

    /// Somebody has reason to believe that it works again: its probe is due at once. True if it was not.
    pub fn invite(&self, now: Moment) -> bool {
        let _history = self.lock();
        // Ordering: Relaxed, as in `put_out`.
        let word = self.word.load(Ordering::Relaxed);
        let invites = word != IN && !is_shadow(word) && end_of(word) > now;
        if invites {
            self.word.store(pack(now, Mode::Enforce), Ordering::Relaxed);
            self.rehearsed.store(0, Ordering::Relaxed);
        }
        invites
    }

    /// Takes it back whatever its state, and forgets: an operator said so, or the policy was switched off.
    /// False if it was in service.
    pub fn pardon(&self, now: Moment) -> bool {
        let mut history = self.lock();
        let was_out = self.is_out();
        if was_out {
            self.put_in(&mut history, now);
        }
        history.nth = 0;
        was_out
    }

    /// Ends a time out that was for show, when it is over: no request is a probe there. True if it did.
    pub fn expire(&self, now: Moment) -> bool {
        let mut history = self.lock();
        let word = self.word.load(Ordering::Relaxed);
        let over = is_shadow(word) && end_of(word) <= now;
        if over {
            self.put_in(&mut history, now);
        }
        over
    }

    /// Everything about it.
    #[must_use]
    pub fn view(&self, now: Moment) -> View {
        let history = self.lock();
        let word = self.word.load(Ordering::Relaxed);
        View {
            standing: self.standing(now),
            mode: if is_shadow(word) {
                Mode::Observe
            } else {
                Mode::Enforce
            },
            nth: history.nth,
            since: history.ejected_at,
            until: (word != IN).then(|| end_of(word)),
        }
    }

    /// What to hand to the next process. A time out for show is not worth keeping.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        let history = self.lock();
        let word = self.word.load(Ordering::Relaxed);
        Saved {
            nth: history.nth,
            left: (word != IN && !is_shadow(word)).then(|| end_of(word).since(now)),
        }
    }

    /// Takes over what another process knew. Nobody is out for more than a day, whatever it says.
    pub fn restore(&self, saved: Saved, now: Moment) {
        let mut history = self.lock();
        match saved.left {
            Some(left) => {
                history.nth = saved.nth.saturating_sub(1);
                self.put_out(&mut history, left.min(LONGEST_RESTORED), Mode::Enforce, now);
            }
            None => {
                history.nth = saved.nth;
                history.returned_at = now;
            }
        }
    }

    fn put_out(&self, history: &mut History, delay: Duration, mode: Mode, now: Moment) -> Ejected {
        history.nth = history.nth.saturating_add(1);
        history.ejected_at = now;
        history.until = now.plus(delay);
        let word = pack(now.plus(delay), mode);
        // Ordering: Relaxed; writers are ordered by the lock, readers may be late.
        self.probe.store(0, Ordering::Relaxed);
        self.rehearsed.store(0, Ordering::Relaxed);
        self.word.store(word, Ordering::Relaxed);
        Ejected {
            nth: history.nth,
            until: end_of(word),
        }
    }

    fn put_in(&self, history: &mut History, now: Moment) {
        history.returned_at = now;
        // Ordering: Relaxed, as in `put_out`.
        self.word.store(IN, Ordering::Relaxed);
        self.probe.store(0, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Good rehearsals in a row that bring the probe forward: an endpoint that fails three of ten has one such row in fifty
/// seconds.
pub const REHEARSALS: u32 = 14;

/// The time from one rehearsal to the next.
pub const REHEARSE_AFTER: Duration = Duration::from_millis(100);

/// How far a rehearsal that fails keeps the probe away.
const PUT_OFF: Duration = Duration::from_secs(1);

impl Probe {
    /// The request ended. Pushback keeps the endpoint out, at least as long as it asked for.
    pub fn judge(self, settings: &Settings, outcome: Outcome, now: Moment, dice: &mut Dice) -> Conclusion {
        let hint = match outcome {
            Outcome::Success | Outcome::Slow => None,
            Outcome::Ignored => return Conclusion::Released,
            Outcome::Failure(_) | Outcome::Pushback(None) => Some(Duration::ZERO),
            Outcome::Pushback(Some(hint)) => Some(hint.min(settings.max)),
        };
        let ejection = &self.ejection;
        let mut history = ejection.lock();
        if ejection.word.load(Ordering::Relaxed) != self.word {
            return Conclusion::Stale;
        }
        match hint {
            None => {
                ejection.put_in(&mut history, now);
                Conclusion::Returned
            }
            Some(hint) => {
                let delay = settings.delay(history.nth.saturating_add(1), dice).max(hint);
                Conclusion::Again(ejection.put_out(&mut history, delay, Mode::Enforce, now))
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Ordering: Relaxed; only the slot's own value matters. One that a later probe took over, or that a verdict has
        // emptied, stays as it is.
        let _held =
            self.ejection
                .probe
                .compare_exchange(self.deadline, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new()
    }
}

impl Standing {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Due => "probe_due",
            Self::Probing => "probing",
        }
    }
}

const LONGEST_RESTORED: Duration = Duration::from_secs(86_400);

const IN: u64 = 0;
const OUT: u64 = 0b01;
const SHADOW: u64 = 0b10;
const FLAGS: u64 = 0b11;

const fn pack(until: Moment, mode: Mode) -> u64 {
    let shadow = match mode {
        Mode::Enforce => 0,
        Mode::Observe => SHADOW,
    };
    (until.as_nanos() & !FLAGS) | OUT | shadow
}

const fn is_shadow(word: u64) -> bool {
    word & SHADOW != 0
}

const fn end_of(word: u64) -> Moment {
    Moment::from_nanos(word & !FLAGS)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::arbiter::{Arbiter, Opinion, Source};
    use crate::outcome::Origin;
    use proptest::prelude::*;

    const FAILURE: Outcome = Outcome::Failure(Origin::Local);

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    /// Seconds without jitter.
    fn plain() -> Settings {
        Settings {
            jitter: 0.0,
            ..Settings::default()
        }
    }

    fn out(ejection: &Ejection, now: Moment) -> Ejected {
        ejection
            .eject(&plain(), Mode::Enforce, now, &mut Dice::new(1))
            .expect("it was in service")
    }

    #[test]
    fn who_fails_its_rehearsals_stays_out_for_at_most_twice_the_time() {
        let ejection = Arc::new(Ejection::new());
        out(&ejection, at(0));
        let until = |ejection: &Ejection| ejection.view(at(0)).until.unwrap();
        let first = until(&ejection);
        let length = first.since(at(0));
        assert!(!ejection.rehearsed(false, at(100)));
        assert_eq!(until(&ejection), first, "it is far away anyhow");
        let late = |millis| {
            first
                .plus(Duration::from_millis(millis))
                .minus(Duration::from_millis(100))
        };
        assert!(!ejection.rehearsed(false, late(0)));
        assert_eq!(until(&ejection), late(1000));
        assert_eq!(ejection.standing(first), Standing::Out);
        // Without another failure it is due a second later.
        assert_eq!(ejection.standing(late(1000)), Standing::Due);
        // What comes too late changes nothing, or the probe that is under way would be about another time out.
        let probe = ejection.try_probe(&plain(), late(1000)).unwrap();
        assert!(!ejection.rehearsed(false, late(1001)));
        assert_eq!(
            probe.judge(&plain(), Outcome::Success, late(1002), &mut Dice::new(1)),
            Conclusion::Returned
        );

        let ejection = Arc::new(Ejection::new());
        out(&ejection, at(0));
        let first = until(&ejection);
        let mut now = at(0);
        while ejection.standing(now) == Standing::Out {
            assert!(!ejection.rehearsed(false, now));
            now = now.plus(Duration::from_millis(50));
        }
        assert!(until(&ejection) == first.plus(length), "{now:?}");
    }

    #[test]
    fn good_rehearsals_in_a_row_bring_the_probe_forward_and_replace_it_not() {
        let ejection = Arc::new(Ejection::new());
        assert!(!ejection.rehearse(at(0)), "it is in service");
        out(&ejection, at(0));
        let mut now = 0;
        let mut rehearse = |well: bool| {
            now += 100;
            assert!(ejection.rehearse(at(now)));
            assert!(!ejection.rehearse(at(now + 50)), "the next one has to wait");
            (ejection.rehearsed(well, at(now)), ejection.standing(at(now)))
        };
        for _ in 1..REHEARSALS {
            assert_eq!(rehearse(true), (false, Standing::Out));
        }
        assert_eq!(
            rehearse(false),
            (false, Standing::Out),
            "one that fails begins the row anew"
        );
        for _ in 1..REHEARSALS {
            assert_eq!(rehearse(true), (false, Standing::Out));
        }
        assert_eq!(rehearse(true), (true, Standing::Due));
        assert!(!ejection.rehearse(at(now + 300)), "what is due is no rehearsal");
        let serving = Ejection::new();
        assert!(serving.turn(at(0)) && !serving.turn(at(99)) && serving.turn(at(100)));
        assert_eq!(
            (1..=2 * REHEARSALS)
                .filter(|_| serving.rehearsed(true, at(0)))
                .count(),
            2
        );
        let probe = ejection.try_probe(&plain(), at(now + 300)).unwrap();
        let again = probe.judge(&plain(), FAILURE, at(now + 300), &mut Dice::new(1));
        assert!(
            matches!(again, Conclusion::Again(Ejected { nth: 2, .. })),
            "{again:?}"
        );
        assert!(
            !ejection.rehearsed(true, at(now + 301)),
            "the row is over with the time out"
        );
    }

    #[test]
    fn an_invitation_is_for_those_who_are_really_out() {
        let ejection = Arc::new(Ejection::new());
        assert!(!ejection.invite(at(0)));
        out(&ejection, at(0));
        assert!(ejection.invite(at(10)));
        assert_eq!(ejection.standing(at(10)), Standing::Due);
        assert!(!ejection.invite(at(11)), "it is due already");
        let shown = Ejection::new();
        shown.eject(&plain(), Mode::Observe, at(0), &mut Dice::new(1));
        assert!(!shown.invite(at(1)), "out for show");
    }

    #[test]
    fn an_endpoint_comes_back_by_one_request_that_succeeds() {
        let ejection = Arc::new(Ejection::new());
        assert_eq!(ejection.standing(at(0)), Standing::In);
        assert_eq!(
            out(&ejection, at(1000)),
            Ejected {
                nth: 1,
                until: at(6000)
            }
        );
        assert_eq!(ejection.standing(at(5999)), Standing::Out);
        assert!(ejection.try_probe(&plain(), at(5999)).is_none());
        assert_eq!(
            ejection.standing(at(6000)),
            Standing::Due,
            "visible to the picker"
        );
        let probe = ejection.try_probe(&plain(), at(6000)).expect("due");
        assert_eq!(ejection.standing(at(6001)), Standing::Probing);
        assert!(ejection.try_probe(&plain(), at(6001)).is_none(), "one at a time");
        let conclusion = probe.judge(&plain(), Outcome::Slow, at(6500), &mut Dice::new(1));
        assert_eq!(conclusion, Conclusion::Returned);
        assert_eq!(ejection.standing(at(6500)), Standing::In);
    }

    #[test]
    fn each_failed_probe_doubles_the_time() {
        let ejection = Arc::new(Ejection::new());
        let mut ejected = out(&ejection, at(0));
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            let now = ejected.until;
            let probe = ejection.try_probe(&plain(), now).expect("due");
            let conclusion = probe.judge(&plain(), FAILURE, now, &mut Dice::new(1));
            let Conclusion::Again(again) = conclusion else {
                panic!("{conclusion:?}");
            };
            assert_eq!(again.nth, ejected.nth + 1);
            assert_eq!(again.until.since(now), Duration::from_secs(expected));
            ejected = again;
        }
    }

    #[test]
    fn a_probe_that_says_nothing_frees_its_slot() {
        let ejection = Arc::new(Ejection::new());
        let due = out(&ejection, at(0)).until;
        let probe = ejection.try_probe(&plain(), due).expect("due");
        drop(probe);
        let probe = ejection.try_probe(&plain(), due).expect("due again");
        let conclusion = probe.judge(&plain(), Outcome::Ignored, due, &mut Dice::new(1));
        assert_eq!(conclusion, Conclusion::Released);
        assert_eq!(ejection.standing(due), Standing::Due);
    }

    #[test]
    fn a_lost_probe_blocks_no_longer_than_its_timeout() {
        let ejection = Arc::new(Ejection::new());
        let due = out(&ejection, at(0)).until;
        let lost = ejection.try_probe(&plain(), due).expect("due");
        let later = due.plus(plain().probe_timeout);
        let second = ejection.try_probe(&plain(), later).expect("timed out");
        assert!(ejection.try_probe(&plain(), later).is_none());
        // The lost one comes to an end after all: it decides, because it is about the same time out.
        let first = lost.judge(&plain(), FAILURE, later, &mut Dice::new(1));
        assert!(matches!(first, Conclusion::Again(Ejected { nth: 2, .. })));
        let late = second.judge(&plain(), Outcome::Success, later, &mut Dice::new(1));
        assert_eq!(late, Conclusion::Stale);
        assert_eq!(ejection.standing(later), Standing::Out);
    }

    #[test]
    fn a_verdict_about_an_earlier_time_out_decides_nothing() {
        let ejection = Arc::new(Ejection::new());
        let due = out(&ejection, at(0)).until;
        let probe = ejection.try_probe(&plain(), due).expect("due");
        assert!(ejection.pardon(due));
        let again = out(&ejection, due);
        assert_eq!(
            probe.judge(&plain(), Outcome::Success, again.until, &mut Dice::new(1)),
            Conclusion::Stale
        );
        assert_eq!(ejection.standing(again.until), Standing::Due);
    }

    #[test]
    fn pushback_keeps_it_out_as_long_as_it_asked() {
        let ejection = Arc::new(Ejection::new());
        let due = out(&ejection, at(0)).until;
        let probe = ejection.try_probe(&plain(), due).expect("due");
        let asked = Outcome::Pushback(Some(Duration::from_secs(60)));
        let conclusion = probe.judge(&plain(), asked, due, &mut Dice::new(1));
        let Conclusion::Again(again) = conclusion else {
            panic!("{conclusion:?}");
        };
        assert_eq!(again.until.since(due), Duration::from_secs(60));
    }

    #[test]
    fn time_in_service_is_forgiving() {
        let ejection = Arc::new(Ejection::new());
        let mut now = at(0);
        for nth in 1..=3 {
            let ejected = out(&ejection, now);
            assert_eq!(ejected.nth, nth);
            now = ejected.until;
            let probe = ejection.try_probe(&plain(), now).expect("due");
            let conclusion = probe.judge(&plain(), Outcome::Success, now, &mut Dice::new(1));
            assert_eq!(conclusion, Conclusion::Returned);
        }
        now = now.plus(Duration::from_secs(1250));
        assert_eq!(
            out(&ejection, now).nth,
            2,
            "two of three are forgotten after 20 minutes"
        );
    }

    #[test]
    fn who_is_out_for_show_is_in_service_and_ends_by_time() {
        let ejection = Arc::new(Ejection::new());
        let ejected = ejection
            .eject(&plain(), Mode::Observe, at(0), &mut Dice::new(1))
            .expect("it was in service");
        assert!(ejection.is_out() && ejection.is_shadow());
        assert_eq!(ejection.standing(at(10)), Standing::In);
        assert_eq!(ejection.standing(ejected.until), Standing::In);
        assert!(ejection.try_probe(&plain(), ejected.until).is_none());
        assert!(!ejection.expire(ejected.until.minus(Duration::from_millis(1))));
        assert!(ejection.expire(ejected.until));
        assert!(!ejection.is_out());
        assert_eq!(out(&ejection, ejected.until).nth, 2);
    }

    #[test]
    fn a_time_out_survives_the_process_with_what_is_left_of_it() {
        let old = Arc::new(Ejection::new());
        out(&old, at(0));
        let saved = old.save(at(3000));
        assert_eq!(
            saved,
            Saved {
                nth: 1,
                left: Some(Duration::from_secs(2))
            }
        );
        let new = Arc::new(Ejection::new());
        new.restore(saved, at(100));
        assert_eq!(new.standing(at(2099)), Standing::Out);
        assert_eq!(new.standing(at(2100)), Standing::Due);
        assert_eq!(new.view(at(100)).nth, 1);
    }

    proptest! {
        /// Whatever is restored, a request brings the endpoint back in the end.
        #[test]
        fn what_is_restored_can_be_probed(nth: u32, left: Option<u64>, now in 0..u64::MAX / 4) {
            let ejection = Arc::new(Ejection::new());
            let now = Moment::from_nanos(now);
            ejection.restore(Saved { nth, left: left.map(Duration::from_nanos) }, now);
            prop_assert_eq!(ejection.is_out(), left.is_some());
            let day = now.plus(Duration::from_secs(86_401));
            if let Some(probe) = ejection.try_probe(&Settings::default(), day) {
                let verdict = probe.judge(&Settings::default(), Outcome::Success, day, &mut Dice::new(1));
                prop_assert_eq!(verdict, Conclusion::Returned);
            }
            prop_assert!(!ejection.is_out());
        }

        #[test]
        fn a_delay_stays_within_its_bounds(nth in 1u32.., seed: u64, base in 1u64..100, max in 1u64..1000, jitter in 0.0f64..1.0) {
            let settings = Settings {
                base: Duration::from_secs(base),
                max: Duration::from_secs(max.max(base)),
                jitter,
                ..Settings::default()
            };
            let delay = settings.delay(nth, &mut Dice::new(seed));
            prop_assert!(delay <= settings.max);
            // Truncation to nanoseconds may take one away.
            let least = Duration::from_secs_f64(base as f64 / (1.0 + jitter));
            prop_assert!(delay + Duration::from_nanos(2) >= least);
        }

        /// Whatever happens to probes, there is a moment at which the endpoint can be probed again.
        #[test]
        fn it_cannot_wedge(steps in prop::collection::vec((0u8..5, 0u64..40_000), 1..100), seed: u64) {
            let settings = Settings::default();
            let mut dice = Dice::new(seed);
            let ejection = Arc::new(Ejection::new());
            let mut now = at(1);
            let mut probes = Vec::new();
            for (step, wait) in steps {
                now = now.plus(Duration::from_millis(wait));
                match step {
                    0 => drop(ejection.eject(&settings, Mode::Enforce, now, &mut dice)),
                    1 => probes.extend(ejection.try_probe(&settings, now)),
                    // Lost without a word.
                    2 => drop(probes.pop()),
                    _ => {
                        if let Some(probe) = probes.pop() {
                            let outcome = [FAILURE, Outcome::Ignored, Outcome::Success][(dice.below(3)) as usize];
                            let _verdict = probe.judge(&settings, outcome, now, &mut dice);
                        }
                    }
                }
            }
            if ejection.is_out() {
                let late = now.plus(settings.max).plus(settings.probe_timeout);
                let probe = ejection.try_probe(&settings, late);
                prop_assert!(probe.is_some());
                let verdict = probe.unwrap().judge(&settings, Outcome::Success, late, &mut dice);
                prop_assert_eq!(verdict, Conclusion::Returned);
            }
            prop_assert_eq!(ejection.standing(now.plus(Duration::from_secs(1000))), Standing::In);
        }
    }

    #[test]
    fn scenario_45_of_many_workers_one_gets_the_probe_and_one_verdict_counts() {
        let settings = plain();
        for round in 0..200u64 {
            let ejection = Arc::new(Ejection::new());
            let due = out(&ejection, at(round)).until;
            let (granted, returned) = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..4)
                    .map(|seed| {
                        let ejection = &ejection;
                        scope.spawn(move || {
                            let Some(probe) = ejection.try_probe(&settings, due) else {
                                return (0, 0);
                            };
                            let verdict = probe.judge(&settings, Outcome::Success, due, &mut Dice::new(seed));
                            (1, u32::from(verdict == Conclusion::Returned))
                        })
                    })
                    .collect();
                workers
                    .into_iter()
                    .map(|worker| worker.join().expect("no panic"))
                    .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            });
            assert_eq!(returned, 1, "{granted} probes");
            assert_eq!(ejection.standing(due), Standing::In);
        }
    }

    #[test]
    fn scenario_45_the_last_word_is_about_the_last_state() {
        let arbiter = Arbiter::new(Moment::ZERO);
        let ejection = Ejection::new();
        let tell = || {
            arbiter.set_to(Source::Ejection, at(1), || match ejection.is_out() {
                true => (Opinion::Down, "local", String::new()),
                false => (Opinion::Up, "", String::new()),
            })
        };
        for _ in 0..200 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    ejection.eject(&Settings::default(), Mode::Enforce, at(1), &mut Dice::new(1));
                    tell();
                });
                scope.spawn(|| {
                    ejection.pardon(at(1));
                    tell();
                });
            });
            assert_eq!(arbiter.availability().is_available(), !ejection.is_out());
        }
    }

    #[test]
    fn scenario_45_no_two_probes_at_a_time() {
        let settings = plain();
        let ejection = Arc::new(Ejection::new());
        let due = out(&ejection, at(0)).until;
        let running = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if let Some(probe) = ejection.try_probe(&settings, due) {
                            // Ordering: SeqCst; a test wants the strictest view.
                            let others = running.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            assert_eq!(others, 0);
                            running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(probe);
                        }
                    }
                });
            }
        });
        assert_eq!(ejection.standing(due), Standing::Due);
    }
}

#[cfg(loom)]
mod loom_tests {
    use super::*;

    #[test]
    fn loom_two_workers_share_one_probe() {
        loom::model(|| {
            let settings = Settings::default();
            let ejection = Arc::new(Ejection::new());
            let now = Moment::from_nanos(1 << 40);
            let ejected = ejection.eject(&settings, Mode::Enforce, now, &mut Dice::new(1));
            let due = ejected.expect("in service").until;
            let other = Arc::clone(&ejection);
            let thread = loom::thread::spawn(move || other.try_probe(&settings, due));
            let mine = ejection.try_probe(&settings, due);
            let theirs = thread.join().expect("no panic");
            assert!(mine.is_some() != theirs.is_some());
        });
    }
}
