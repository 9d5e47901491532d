//! Hedge: when to ask a second endpoint although the first has not failed yet.
//!
//! Most of a tail is bad luck: one answer of twenty is slow because of something that another endpoint does not have.
//! Asking again after the time in which nineteen of twenty have answered costs a twentieth more work and cuts the tail
//! (Dean, Barroso, "The Tail at Scale", CACM 56(2), 2013). Two things make it safe. The delay is *learned*, from first
//! attempts of this route that succeeded in the last half minute, and until a hundred are known nobody is hedged. And
//! there is a *budget*: when everything becomes slow every request would want a second copy, which is the one thing a slow
//! service cannot use.
//!
//! What must stay true: hedges never exceed the share of first attempts that was deposited. The purse starts empty and holds
//! [`PURSE`] at most, so a quiet hour buys no storm.

use std::time::Duration;

use crate::{
    histogram::Rolling,
    moment::Moment,
    sync::{AtomicU64, Ordering},
};

/// When to hedge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delay {
    /// After a fixed time.
    After(Duration),
    /// After the time in which this share of recent first attempts had succeeded; 0.95 for `p95`.
    Quantile(f32),
}

/// What is known about the first attempts of a route, and what may be spent on second ones.
#[derive(Debug)]
pub struct Hedge {
    answered: Rolling,
    /// Nanoseconds of the delay that was last computed; `UNKNOWN` while there are too few samples.
    delay: AtomicU64,
    /// Nanoseconds of the moment from which on it is to be computed again.
    due: AtomicU64,
    purse: Purse,
}

impl Hedge {
    /// Nothing known, nothing to spend.
    #[must_use]
    pub fn new() -> Self {
        Self {
            answered: Rolling::new(),
            delay: AtomicU64::new(UNKNOWN),
            due: AtomicU64::new(0),
            purse: Purse::new(),
        }
    }

    /// A first attempt begins: `share` of a hedge is added to the budget.
    pub fn begin(&self, share: Share) {
        self.purse.deposit(share);
    }

    /// A first attempt succeeded after `took`, measured to the head of the answer.
    pub fn answered(&self, took: Duration, now: Moment) {
        self.answered.record(took, WINDOW, now);
    }

    /// How long to wait before a hedge, at least [`MIN_DELAY`]; `None` while fewer than [`MIN_SAMPLES`] are known. A
    /// quantile is up to [`REFRESH`] old.
    #[must_use]
    pub fn delay(&self, delay: Delay, now: Moment) -> Option<Duration> {
        match delay {
            Delay::After(delay) => Some(delay.max(MIN_DELAY)),
            Delay::Quantile(q) => self.learned(q, now),
        }
    }

    /// Pays for one hedge; `false` if the budget does not allow it.
    #[must_use = "a hedge that was not paid for must not be sent"]
    pub fn pay(&self) -> bool {
        self.purse.withdraw()
    }

    /// What is in the budget, in thousandths of a hedge.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.purse.balance()
    }

    fn learned(&self, q: f32, now: Moment) -> Option<Duration> {
        // Ordering: Relaxed; the two words need not agree, an answer may be one refresh older than its moment says.
        let due = self.due.load(Ordering::Relaxed);
        if now.as_nanos() >= due
            && self
                .due
                // Ordering: Relaxed; the exchange only decides who computes.
                .compare_exchange(
                    due,
                    now.plus(REFRESH).as_nanos(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
        {
            let counts = self.answered.counts(WINDOW, now);
            let delay = if counts.count() < MIN_SAMPLES {
                None
            } else {
                counts.quantile(q)
            };
            let nanos = delay.map_or(UNKNOWN, |delay| {
                u64::try_from(delay.max(MIN_DELAY).as_nanos()).unwrap_or(UNKNOWN)
            });
            // Ordering: Relaxed; a lone value.
            self.delay.store(nanos, Ordering::Relaxed);
        }
        // Ordering: Relaxed; a lone value.
        let nanos = self.delay.load(Ordering::Relaxed);
        (nanos != UNKNOWN).then(|| Duration::from_nanos(nanos))
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self::new()
    }
}

/// How much of a hedge each first attempt pays for, in thousandths: whole tokens would turn 5 % into nothing or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// The share `of` one, 0.05 for 5 %; at most 1. Anything above zero is at least a thousandth.
    #[must_use]
    pub fn new(of: f64) -> Self {
        let thousandths = (of.clamp(0.0, 1.0) * HEDGE as f64).round() as u32;
        Self(thousandths.max(u32::from(of > 0.0)))
    }
}

/// Thousandths of hedges that may be sent.
#[derive(Debug)]
struct Purse {
    thousandths: AtomicU64,
}

impl Purse {
    fn new() -> Self {
        Self {
            thousandths: AtomicU64::new(0),
        }
    }

    fn deposit(&self, share: Share) {
        // Ordering: Relaxed; the number guards nothing else. A full purse is not written to, so that quiet times share
        // the line.
        let mut before = self.thousandths.load(Ordering::Relaxed);
        loop {
            let after = (before + u64::from(share.0)).min(PURSE * HEDGE);
            if after == before {
                return;
            }
            match self
                .thousandths
                .compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(current) => before = current,
            }
        }
    }

    fn withdraw(&self) -> bool {
        // Ordering: Relaxed, as above. Looking and taking are one step, or two threads would spend the same hedge.
        let mut before = self.thousandths.load(Ordering::Relaxed);
        while let Some(after) = before.checked_sub(HEDGE) {
            match self
                .thousandths
                .compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(current) => before = current,
            }
        }
        false
    }

    fn balance(&self) -> u64 {
        // Ordering: Relaxed; for people.
        self.thousandths.load(Ordering::Relaxed)
    }
}

/// How far back first attempts are remembered, at most.
pub const WINDOW: Duration = Duration::from_secs(30);

/// Fewer samples say nothing about a tail.
pub const MIN_SAMPLES: u64 = 100;

/// No hedge is sent sooner.
pub const MIN_DELAY: Duration = Duration::from_millis(1);

/// How old a computed quantile may be.
pub const REFRESH: Duration = Duration::from_secs(1);

/// The most hedges that can be saved up.
pub const PURSE: u64 = 10;

/// One hedge in thousandths.
const HEDGE: u64 = 1000;

const UNKNOWN: u64 = u64::MAX;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P95: Delay = Delay::Quantile(0.95);

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn near(answer: Option<Duration>, millis: u64) -> bool {
        let truth = Duration::from_millis(millis).as_secs_f64();
        answer.is_some_and(|answer| (answer.as_secs_f64() - truth).abs() <= truth / 16.0)
    }

    #[test]
    fn nobody_is_hedged_before_a_hundred_samples() {
        let hedge = Hedge::new();
        for _ in 0..99 {
            hedge.answered(Duration::from_millis(10), at(100));
        }
        assert_eq!(hedge.delay(P95, at(100)), None);
        hedge.answered(Duration::from_millis(10), at(100));
        assert!(near(hedge.delay(P95, at(1100)), 10));
    }

    #[test]
    fn the_delay_is_the_percentile_of_the_last_half_minute() {
        let hedge = Hedge::new();
        for millis in 1..=100 {
            hedge.answered(Duration::from_millis(millis), at(100));
        }
        assert!(near(hedge.delay(P95, at(200)), 95));
        assert!(near(hedge.delay(P95, at(29_000)), 95));
        assert_eq!(hedge.delay(P95, at(60_000)), None);
    }

    #[test]
    fn a_percentile_is_computed_once_a_second() {
        let hedge = Hedge::new();
        for _ in 0..100 {
            hedge.answered(Duration::from_millis(10), at(0));
        }
        assert!(near(hedge.delay(P95, at(0)), 10));
        for _ in 0..900 {
            hedge.answered(Duration::from_millis(500), at(1));
        }
        assert!(near(hedge.delay(P95, at(999)), 10));
        assert!(near(hedge.delay(P95, at(1000)), 500));
    }

    #[test]
    fn no_delay_is_shorter_than_a_millisecond() {
        let hedge = Hedge::new();
        assert_eq!(hedge.delay(Delay::After(Duration::ZERO), at(0)), Some(MIN_DELAY));
        assert_eq!(
            hedge.delay(Delay::After(Duration::from_millis(80)), at(0)),
            Some(Duration::from_millis(80))
        );
        for _ in 0..100 {
            hedge.answered(Duration::from_micros(50), at(0));
        }
        assert_eq!(hedge.delay(P95, at(0)), Some(MIN_DELAY));
    }

    #[test]
    fn the_share_is_paid_in_thousandths() {
        let hedge = Hedge::new();
        let share = Share::new(0.05);
        for _ in 0..19 {
            hedge.begin(share);
            assert!(!hedge.pay());
        }
        hedge.begin(share);
        assert_eq!(hedge.budget(), 1000);
        assert!(hedge.pay());
        assert!(!hedge.pay());
    }

    #[test]
    fn shares_are_kept_in_their_range() {
        let odd = [-1.0, f64::NAN, 0.0, 0.00001, 0.3, 1.0, 7.0].map(Share::new);
        assert_eq!(odd, [0, 0, 0, 1, 300, 1000, 1000].map(Share));
    }

    #[test]
    fn a_quiet_hour_buys_no_storm() {
        let hedge = Hedge::new();
        for _ in 0..100_000 {
            hedge.begin(Share::new(0.05));
        }
        assert_eq!((0..1000).filter(|_| hedge.pay()).count(), 10);
    }

    #[test]
    fn scenario_45_threads_spend_no_more_than_was_deposited() {
        let hedge = Hedge::new();
        let share = Share::new(0.05);
        let sent: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut sent = 0;
                        for _ in 0..40_000 {
                            hedge.begin(share);
                            sent += u64::from(hedge.pay());
                        }
                        sent
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // The purse is never full here, so nothing is lost either.
        assert_eq!(sent * 1000 + hedge.budget(), 160_000 * 50);
    }

    proptest! {
        #[test]
        fn hedges_never_exceed_their_share(share in 0.0f64..=1.0, wants in proptest::collection::vec(0u32..4, 1..500)) {
            let hedge = Hedge::new();
            let share = Share::new(share);
            let (mut begun, mut sent) = (0u64, 0u64);
            for wanted in wants {
                hedge.begin(share);
                begun += 1;
                sent += (0..wanted).filter(|_| hedge.pay()).count() as u64;
                prop_assert!(sent * 1000 <= begun * u64::from(share.0));
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_one_hedge_is_spent_once() {
        loom::model(|| {
            let purse = Arc::new(Purse::new());
            purse.deposit(Share::new(1.0));
            let other = Arc::clone(&purse);
            let thread = thread::spawn(move || other.withdraw());
            let mine = purse.withdraw();
            assert!(mine != thread.join().unwrap());
            assert_eq!(purse.balance(), 0);
        });
    }

    #[test]
    fn loom_deposits_and_withdrawals_add_up() {
        loom::model(|| {
            let purse = Arc::new(Purse::new());
            purse.deposit(Share::new(0.6));
            let other = Arc::clone(&purse);
            let thread = thread::spawn(move || {
                other.deposit(Share::new(0.6));
                other.withdraw()
            });
            let mine = purse.withdraw();
            let theirs = thread.join().unwrap();
            assert!(!(mine && theirs));
            assert_eq!(purse.balance() + 1000 * u64::from(mine || theirs), 1200);
        });
    }
}
