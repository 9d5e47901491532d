//! Backoff: how long to wait before asking again.
//!
//! Three waits with one enemy, the herd: clients that failed together must not come back together.
//!
//! * [`Backoff`]: between attempts of one request. Full jitter, `U(0, min(max, base * 2^n))`: of the schemes in use it
//!   spreads a herd widest for the same mean wait (Brooker, "Exponential Backoff And Jitter", 2015). The first retry goes
//!   to another endpoint, which has done nothing to be spared, so it goes at once.
//! * [`Pushback`]: when the endpoint said how long. Its word is kept, or the request is not repeated; asking sooner would
//!   be asking somebody who has just said no.
//! * [`OpenTimes`] with [`Streak`]: how long a breaker stays open or an ejection lasts. Longer each time it happens again
//!   soon, and jittered, because a fleet of proxies saw the same failure at the same moment.
//!
//! What must stay true: no wait exceeds its maximum, except where the endpoint itself asked for more, and then its cap.

use std::time::Duration;

use crate::{dice::Dice, moment::Moment};

/// The wait between attempts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait before the first retry; doubles with each further one.
    pub base: Duration,
    /// No wait is longer.
    pub max: Duration,
}

impl Backoff {
    /// The wait before retry number `retry`, counted from 1.
    #[must_use]
    pub fn wait(&self, retry: u32, target: Target, dice: &mut Dice) -> Duration {
        if retry <= 1 && target == Target::Another {
            return Duration::ZERO;
        }
        let doublings = retry.saturating_sub(1).min(31);
        let longest = self.base.saturating_mul(1 << doublings).min(self.max);
        longest.mul_f64(dice.unit())
    }
}

/// Whom a retry asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An endpoint that this request has not tried.
    Another,
    /// One that has failed this request before.
    Same,
}

/// What an endpoint said about asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Not before this has passed: `Retry-After`, `grpc-retry-pushback-ms`.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms`. Negative means never, and so does what is not a number (gRPC proposal A6,
    /// "Pushback"): an endpoint that tried to say something about retries is not answered with one.
    #[must_use]
    pub fn parse_grpc(value: &[u8]) -> Self {
        // A 32-bit number in the proposal; more digits are no number of milliseconds anybody means.
        if value.is_empty() || value.len() > 10 || !value.iter().all(u8::is_ascii_digit) {
            return Self::Never;
        }
        let millis = value
            .iter()
            .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        Self::After(Duration::from_millis(millis))
    }

    /// How long to wait before the retry that the endpoint allows: what it asked for and up to a fifth more.
    ///
    /// `None` if there must be no retry: it asked for more than `longest`, or nothing would be left of `left`.
    #[must_use]
    pub fn wait(self, longest: Duration, left: Option<Duration>, dice: &mut Dice) -> Option<Duration> {
        let Self::After(asked) = self else {
            return None;
        };
        if asked > longest {
            return None;
        }
        let wait = asked.saturating_add(asked.mul_f64(0.2 * dice.unit()));
        left.is_none_or(|left| wait < left).then_some(wait)
    }
}

/// How long a breaker stays open, or an endpoint ejected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenTimes {
    /// The first time.
    pub base: Duration,
    /// The longest, jitter included.
    pub max: Duration,
    /// What each further time is multiplied with.
    pub multiplier: f64,
    /// The share that chance may add; 0.5 means up to half as long again.
    pub jitter: f64,
}

impl OpenTimes {
    /// With the multiplier and the jitter that everybody gets: 2 and 0.5.
    #[must_use]
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            multiplier: 2.0,
            jitter: 0.5,
        }
    }

    /// The length of the `count`-th time in a row, counted from 1.
    ///
    /// The growth ends where the largest jitter reaches `max`, so that the longest times are still spread: cutting them
    /// off at `max` would bring the fleet back in step just when the service has been away longest.
    #[must_use]
    pub fn length(&self, count: u32, dice: &mut Dice) -> Duration {
        let jitter = self.jitter.max(0.0);
        let ceiling = self.max.as_secs_f64() / (1.0 + jitter);
        let exponent = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.base.as_secs_f64() * self.multiplier.powi(exponent);
        let length = grown.min(ceiling) * (1.0 + jitter * dice.unit());
        Duration::try_from_secs_f64(length).map_or(self.max, |length| length.min(self.max))
    }

    /// The same, but not shorter than what the endpoint asked for, as far as `cap` allows.
    #[must_use]
    pub fn length_with_hint(&self, count: u32, hint: Duration, cap: Duration, dice: &mut Dice) -> Duration {
        self.length(count, dice).max(hint.min(cap))
    }
}

/// How many times in a row; one is forgotten for every [`FORGET_AFTER`] of good standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    count: u32,
    /// Since when it has been well; `None` while it is not.
    well_since: Option<Moment>,
}

impl Streak {
    /// Nothing has happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            count: 0,
            well_since: None,
        }
    }

    /// It happened again. The answer is the number for [`OpenTimes::length`], at least 1.
    pub fn fell(&mut self, now: Moment) -> u32 {
        self.count = self.count(now).saturating_add(1);
        self.well_since = None;
        self.count
    }

    /// It is well again: a breaker closed, an endpoint came back. Repeating it changes nothing.
    pub fn recovered(&mut self, now: Moment) {
        self.well_since.get_or_insert(now);
    }

    /// The number at `now`.
    #[must_use]
    pub fn count(&self, now: Moment) -> u32 {
        let Some(since) = self.well_since else {
            return self.count;
        };
        let forgotten = now.since(since).as_nanos() / FORGET_AFTER.as_nanos();
        self.count
            .saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

/// The good standing for which one time is forgotten.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    const BACKOFF: Backoff = Backoff {
        base: Duration::from_millis(25),
        max: Duration::from_millis(250),
    };

    #[test]
    fn the_first_retry_to_another_endpoint_goes_at_once() {
        let mut dice = Dice::new(1);
        assert_eq!(BACKOFF.wait(1, Target::Another, &mut dice), Duration::ZERO);
        assert!(BACKOFF.wait(1, Target::Same, &mut dice) > Duration::ZERO);
        assert!(BACKOFF.wait(2, Target::Another, &mut dice) > Duration::ZERO);
    }

    #[test]
    fn waits_use_their_whole_range() {
        let mut dice = Dice::new(1);
        for (retry, longest) in [(1, 25), (2, 50), (4, 200), (5, 250), (u32::MAX, 250)] {
            let waits: Vec<_> = (0..1000)
                .map(|_| BACKOFF.wait(retry, Target::Same, &mut dice))
                .collect();
            let longest = Duration::from_millis(longest);
            assert!(waits.iter().all(|wait| *wait <= longest));
            assert!(waits.iter().any(|wait| *wait > longest.mul_f64(0.99)));
            assert!(waits.iter().any(|wait| *wait < longest.mul_f64(0.01)));
        }
    }

    #[test]
    fn grpc_pushback_is_a_number_or_a_refusal() {
        let read = |text: &str| Pushback::parse_grpc(text.as_bytes());
        assert_eq!(read("0"), Pushback::After(Duration::ZERO));
        assert_eq!(read("1500"), Pushback::After(Duration::from_millis(1500)));
        for text in ["-1", "", "x", "1.5", "+1", " 1", "12345678901"] {
            assert_eq!(read(text), Pushback::Never, "{text:?}");
        }
    }

    #[test]
    fn a_hint_is_kept_or_there_is_no_retry() {
        let mut dice = Dice::new(1);
        let hint = Pushback::After(Duration::from_millis(800));
        let mut wait = |longest, left| hint.wait(longest, left, &mut dice);
        let kept = wait(SECOND, None).unwrap();
        assert!((800..=960).contains(&kept.as_millis()), "{kept:?}");
        assert_eq!(wait(Duration::from_millis(799), None), None);
        assert_eq!(wait(SECOND, Some(Duration::from_millis(800))), None);
        assert!(wait(SECOND, Some(Duration::from_millis(961))).is_some());
        assert_eq!(Pushback::Never.wait(SECOND, None, &mut dice), None);
    }

    #[test]
    fn each_time_is_twice_as_long_up_to_the_longest() {
        let times = OpenTimes::new(5 * SECOND, 60 * SECOND);
        let mut dice = Dice::new(1);
        for (count, base) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 40), (u32::MAX, 40)] {
            for _ in 0..100 {
                let length = times.length(count, &mut dice);
                let base = base * SECOND;
                assert!(
                    base <= length && length <= base.mul_f64(1.5),
                    "{count}: {length:?}"
                );
            }
        }
    }

    #[test]
    fn fifty_that_opened_together_come_back_apart() {
        let times = OpenTimes::new(5 * SECOND, 60 * SECOND);
        let mut lengths: Vec<_> = (0..50)
            .map(|seed| times.length(1, &mut Dice::new(seed)))
            .collect();
        lengths.sort_unstable();
        assert!(
            lengths[49] - lengths[0] >= Duration::from_millis(2250),
            "{lengths:?}"
        );
        let widest = lengths.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(widest < Duration::from_millis(500), "{widest:?}");
    }

    #[test]
    fn a_hint_lengthens_up_to_its_cap_and_never_shortens() {
        let times = OpenTimes::new(5 * SECOND, 60 * SECOND);
        let mut dice = Dice::new(1);
        let mut length = |hint| times.length_with_hint(1, hint, 300 * SECOND, &mut dice);
        assert_eq!(length(20 * SECOND), 20 * SECOND);
        assert_eq!(length(4000 * SECOND), 300 * SECOND);
        assert!(length(SECOND) >= 5 * SECOND);
    }

    #[test]
    fn a_streak_grows_and_is_forgotten_one_by_one() {
        let mut streak = Streak::new();
        assert_eq!(streak.fell(at(0)), 1);
        streak.recovered(at(10));
        assert_eq!(streak.fell(at(20)), 2);
        assert_eq!(streak.fell(at(30)), 3);
        assert_eq!(streak.count(at(100_000)), 3, "being unwell forgets nothing");
        streak.recovered(at(100_000));
        streak.recovered(at(100_500));
        assert_eq!(streak.count(at(100_599)), 3);
        assert_eq!(streak.count(at(100_600)), 2);
        assert_eq!(streak.fell(at(101_200)), 2);
        streak.recovered(at(101_300));
        assert_eq!(streak.count(at(1_000_000)), 0);
    }

    proptest! {
        #[test]
        fn no_length_leaves_its_range(
            base in 1u64..1 << 40,
            max in 1u64..1 << 42,
            count in any::<u32>(),
            jitter in 0.0f64..2.0,
            multiplier in 1.0f64..10.0,
            seed in any::<u64>(),
        ) {
            let times = OpenTimes {
                base: Duration::from_nanos(base),
                max: Duration::from_nanos(max),
                multiplier,
                jitter,
            };
            let length = times.length(count, &mut Dice::new(seed));
            prop_assert!(length <= times.max);
            let least = times.base.min(times.max.div_f64(1.0 + jitter));
            prop_assert!(length.as_secs_f64() >= least.as_secs_f64() * 0.999_999 - 1e-9);
        }

        #[test]
        fn a_hinted_wait_is_at_least_what_was_asked(asked in 0u64..10_000, longest in 0u64..10_000, left in 0u64..10_000, seed in any::<u64>()) {
            let (asked, longest, left) = (
                Duration::from_millis(asked),
                Duration::from_millis(longest),
                Duration::from_millis(left),
            );
            if let Some(wait) = Pushback::After(asked).wait(longest, Some(left), &mut Dice::new(seed)) {
                prop_assert!(asked <= wait && wait < left && asked <= longest);
            }
        }
    }
}
