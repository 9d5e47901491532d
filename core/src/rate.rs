//! Rate: how many in a span of time, for one key, in one atomic word.
//!
//! The generic cell rate algorithm (ITU-T I.371; a leaky bucket turned inside out) keeps one number: the moment at which
//! the bucket would be full again if nobody came, the *theoretical arrival time*. A request moves it by one interval
//! `T = per / count`; it may lie at most `burst` intervals ahead. Nothing is refilled by a timer, nothing is lost to
//! rounding, and a bucket nobody uses needs no attention.
//!
//! The rate comes with every call, so a reload keeps the buckets. What they owe is a length of time, which another rate
//! reads as another number of requests: [`Bucket::rescale`] translates it. Where nobody does, a debt counts as at most a
//! full one under the new rate.
//!
//! What must stay true: in any span of length `s`, at most `burst + s / T` requests of one key are let through, however
//! many threads ask. Intervals are whole nanoseconds, rounded up, so the promise errs on the strict side.

use std::{num::NonZeroU32, time::Duration};

use crate::{
    moment::Moment,
    sync::{AtomicU64, Ordering},
};

/// How many requests in how long, and how many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    per: Duration,
    burst: NonZeroU32,
    /// Nanoseconds between two requests at full rate.
    interval: u64,
    /// Nanoseconds that the theoretical arrival time may lie ahead.
    tolerance: u64,
}

impl Rate {
    /// `count` requests per `per`, `burst` at once.
    #[must_use]
    pub fn new(count: NonZeroU32, per: Duration, burst: NonZeroU32) -> Self {
        let interval = per.as_nanos().div_ceil(u128::from(count.get()));
        // A burst that takes longer than a century to refill is one that takes a century.
        let longest = CENTURY / u64::from(burst.get());
        let interval = u64::try_from(interval).unwrap_or(u64::MAX).clamp(1, longest);
        Self {
            count,
            per,
            burst,
            interval,
            tolerance: interval * u64::from(burst.get()),
        }
    }

    /// The number of requests in [`Rate::per`]: `q` of `RateLimit-Policy`.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count.get()
    }

    /// The span of [`Rate::count`]: `w` of `RateLimit-Policy`.
    #[must_use]
    pub const fn per(&self) -> Duration {
        self.per
    }

    /// How many may come at once.
    #[must_use]
    pub const fn burst(&self) -> u32 {
        self.burst.get()
    }
}

/// What one key has used, shared by all threads.
#[derive(Debug)]
pub struct Bucket {
    /// Nanoseconds of the theoretical arrival time.
    full_at: AtomicU64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes one request's worth.
    ///
    /// # Errors
    /// How long until that would be granted, if nobody else takes it. Asking costs nothing then.
    pub fn take(&self, rate: &Rate, now: Moment) -> Result<Remaining, RetryAfter> {
        let now = now.as_nanos();
        // Ordering: Relaxed; the word is complete in itself and guards nothing else.
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            // A debt is at most a full one: it was made under another rate, or by a worker whose clock is ahead.
            let debt = full_at.saturating_sub(now).min(rate.tolerance);
            let after = debt.saturating_add(rate.interval);
            if after > rate.tolerance {
                return Err(RetryAfter {
                    wait: Duration::from_nanos(after - rate.tolerance),
                    reset: Duration::from_nanos(debt),
                });
            }
            match self.full_at.compare_exchange_weak(
                full_at,
                now.saturating_add(after),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    return Ok(Remaining {
                        requests: u32::try_from((rate.tolerance - after) / rate.interval).unwrap_or(u32::MAX),
                        reset: Duration::from_nanos(after),
                    });
                }
                Err(current) => full_at = current,
            }
        }
    }

    /// Gives back what a [`Bucket::take`] took, because another limit refused the request. Otherwise one client's refused
    /// requests would use up a bucket that it shares with others.
    pub fn put_back(&self, rate: &Rate) {
        self.change(|full_at| full_at.saturating_sub(rate.interval));
    }

    /// Translates what was used under `old` into the same number of requests under `new`; to be called once when the rate
    /// of this key changes.
    pub fn rescale(&self, old: &Rate, new: &Rate, now: Moment) {
        let now = now.as_nanos();
        self.change(|full_at| {
            let debt = full_at.saturating_sub(now).min(old.tolerance);
            let scaled = u128::from(debt) * u128::from(new.interval) / u128::from(old.interval);
            let scaled = u64::try_from(scaled).unwrap_or(u64::MAX).min(new.tolerance);
            now.saturating_add(scaled)
        });
    }

    /// Whether the bucket is full, so that forgetting it changes nothing.
    #[must_use]
    pub fn is_full(&self, now: Moment) -> bool {
        // Ordering: Relaxed; a lone value.
        self.full_at.load(Ordering::Relaxed) <= now.as_nanos()
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        // Ordering: Relaxed, as in `take`.
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        while let Err(current) =
            self.full_at
                .compare_exchange_weak(full_at, change(full_at), Ordering::Relaxed, Ordering::Relaxed)
        {
            full_at = current;
        }
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::new()
    }
}

/// What is left after a request was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// How many more may come at once: `r` of `RateLimit`.
    pub requests: u32,
    /// How long until the bucket is full: `t` of `RateLimit`.
    pub reset: Duration,
}

/// Why a request was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter {
    /// How long until one request would be let through; more than zero.
    pub wait: Duration,
    /// How long until the bucket is full: `t` of `RateLimit`.
    pub reset: Duration,
}

impl RetryAfter {
    /// [`RetryAfter::wait`] for the header `Retry-After`: whole seconds, rounded up, at least one.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.wait
            .as_secs()
            .saturating_add(u64::from(self.wait.subsec_nanos() > 0))
    }
}

/// In nanoseconds: far enough from the end of 64 bits for every sum in this file.
const CENTURY: u64 = 100 * 365 * 86_400 * 1_000_000_000;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(count: u32, per: Duration, burst: u32) -> Rate {
        Rate::new(
            NonZeroU32::new(count).unwrap(),
            per,
            NonZeroU32::new(burst).unwrap(),
        )
    }

    fn per_second(count: u32, burst: u32) -> Rate {
        rate(count, Duration::from_secs(1), burst)
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn granted(bucket: &Bucket, rate: &Rate, now: Moment, asked: u32) -> u32 {
        (0..asked).filter(|_| bucket.take(rate, now).is_ok()).count() as u32
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = per_second(10, 5);
        let bucket = Bucket::new();
        assert_eq!(granted(&bucket, &rate, at(1000), 20), 5);
        assert_eq!(granted(&bucket, &rate, at(1099), 20), 0);
        assert_eq!(granted(&bucket, &rate, at(1100), 20), 1);
        assert_eq!(granted(&bucket, &rate, at(9000), 20), 5);
    }

    #[test]
    fn the_answer_says_what_is_left_and_how_long_to_wait() {
        let rate = per_second(10, 2);
        let bucket = Bucket::new();
        let ms = Duration::from_millis;
        assert_eq!(
            bucket.take(&rate, at(0)),
            Ok(Remaining {
                requests: 1,
                reset: ms(100)
            })
        );
        assert_eq!(
            bucket.take(&rate, at(0)),
            Ok(Remaining {
                requests: 0,
                reset: ms(200)
            })
        );
        let refused = bucket.take(&rate, at(30)).unwrap_err();
        assert_eq!(
            refused,
            RetryAfter {
                wait: ms(70),
                reset: ms(170)
            }
        );
        assert_eq!(refused.seconds(), 1);
        assert!(bucket.take(&rate, at(100)).is_ok());
        assert!(!bucket.is_full(at(299)));
        assert!(bucket.is_full(at(300)));
    }

    #[test]
    fn seconds_are_rounded_up() {
        let after = |millis| RetryAfter {
            wait: Duration::from_millis(millis),
            reset: Duration::ZERO,
        };
        assert_eq!(
            [1, 1000, 1001, 60_000].map(|millis| after(millis).seconds()),
            [1, 1, 2, 60]
        );
    }

    #[test]
    fn what_was_put_back_can_be_taken_again() {
        let rate = per_second(1, 1);
        let bucket = Bucket::new();
        assert!(bucket.take(&rate, at(5000)).is_ok());
        bucket.put_back(&rate);
        assert!(bucket.take(&rate, at(5000)).is_ok());
        assert!(bucket.take(&rate, at(5000)).is_err());
    }

    #[test]
    fn a_reload_keeps_the_number_of_requests_used() {
        let (slow, fast) = (per_second(1, 10), per_second(100, 10));
        let bucket = Bucket::new();
        assert_eq!(granted(&bucket, &slow, at(0), 6), 6);
        bucket.rescale(&slow, &fast, at(0));
        assert_eq!(granted(&bucket, &fast, at(0), 20), 4);
        bucket.rescale(&fast, &slow, at(0));
        assert_eq!(granted(&bucket, &slow, at(0), 20), 0);
        assert_eq!(granted(&bucket, &slow, at(3000), 20), 3);
    }

    #[test]
    fn a_debt_of_a_slower_rate_is_at_most_a_full_one() {
        let bucket = Bucket::new();
        let hourly = rate(1, Duration::from_secs(3600), 10);
        assert_eq!(granted(&bucket, &hourly, at(0), 20), 10);
        let fast = per_second(100, 10);
        let refused = bucket.take(&fast, at(0)).unwrap_err();
        assert_eq!(refused.wait, Duration::from_millis(10));
    }

    #[test]
    fn extreme_rates_do_no_harm() {
        let bucket = Bucket::new();
        let fastest = rate(u32::MAX, Duration::from_nanos(1), u32::MAX);
        assert!(bucket.take(&fastest, at(1)).is_ok());
        let slowest = rate(1, Duration::MAX, 1);
        let bucket = Bucket::new();
        assert!(bucket.take(&slowest, at(1)).is_ok());
        assert!(bucket.take(&slowest, at(1)).is_err());
        bucket.rescale(&slowest, &fastest, at(1));
        assert!(bucket.take(&fastest, Moment::FAR_FUTURE).is_ok());
    }

    #[test]
    fn threads_share_one_burst() {
        let rate = per_second(1, 1000);
        let bucket = Bucket::new();
        let sum: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| granted(&bucket, &rate, at(0), 10_000)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(sum, 1000);
    }

    proptest! {
        #[test]
        fn no_span_sees_more_than_the_burst_and_its_share(
            count in 1u32..5000,
            burst in 1u32..50,
            gaps in proptest::collection::vec(0u64..20_000_000, 1..300),
        ) {
            let rate = per_second(count, burst);
            let bucket = Bucket::new();
            let mut now = Moment::from_nanos(1_000_000);
            let mut times: Vec<Moment> = Vec::new();
            for gap in gaps {
                now = now.plus(Duration::from_nanos(gap));
                if bucket.take(&rate, now).is_ok() {
                    times.push(now);
                }
            }
            for (index, first) in times.iter().enumerate() {
                for (seen, last) in times[index..].iter().enumerate() {
                    let span = last.since(*first).as_secs_f64();
                    let allowed = f64::from(burst) + span * f64::from(count);
                    prop_assert!((seen + 1) as f64 <= allowed + 1e-6);
                }
            }
        }

        #[test]
        fn who_waits_as_long_as_told_is_let_through(
            count in 1u32..100_000,
            burst in 1u32..50,
            start in 0u64..1 << 50,
        ) {
            let rate = per_second(count, burst);
            let bucket = Bucket::new();
            let now = Moment::from_nanos(start);
            let mut left = burst;
            while let Ok(remaining) = bucket.take(&rate, now) {
                left -= 1;
                prop_assert_eq!(remaining.requests, left);
            }
            prop_assert_eq!(left, 0);
            let wait = bucket.take(&rate, now).unwrap_err().wait;
            prop_assert!(wait > Duration::ZERO);
            prop_assert!(bucket.take(&rate, now.plus(wait - Duration::from_nanos(1))).is_err());
            prop_assert!(bucket.take(&rate, now.plus(wait)).is_ok());
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_the_last_request_is_granted_once() {
        loom::model(|| {
            let rate = Rate::new(NonZeroU32::MIN, Duration::from_secs(1), NonZeroU32::MIN);
            let now = Moment::from_nanos(7_000_000_000);
            let bucket = Arc::new(Bucket::new());
            let other = Arc::clone(&bucket);
            let thread = thread::spawn(move || other.take(&rate, now).is_ok());
            let mine = bucket.take(&rate, now).is_ok();
            assert!(mine != thread.join().unwrap());
        });
    }

    #[test]
    fn loom_putting_back_loses_nothing() {
        loom::model(|| {
            let two = NonZeroU32::MIN.saturating_add(1);
            let rate = Rate::new(NonZeroU32::MIN, Duration::from_secs(1), two);
            let now = Moment::from_nanos(7_000_000_000);
            let bucket = Arc::new(Bucket::new());
            assert!(bucket.take(&rate, now).is_ok());
            let other = Arc::clone(&bucket);
            let thread = thread::spawn(move || other.put_back(&rate));
            assert!(bucket.take(&rate, now).is_ok());
            thread.join().unwrap();
            assert!(bucket.take(&rate, now).is_ok());
            assert!(bucket.take(&rate, now).is_err());
        });
    }
}
