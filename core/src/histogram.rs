//! Histogram: how long things took, counted so cheaply that every request can be, and shared by all threads.
//!
//! A quantile wants every sample; keeping them would cost an allocation, sorting them a millisecond. Buckets that grow
//! with their value cost one addition, and are exact enough: eight per doubling, so a bucket is at most an eighth as wide
//! as its lower end, and its middle is within **1/16** of whatever fell into it. That holds from 8 µs to 137 s. Below, the
//! error is half a microsecond; longer samples count as 137 s.
//!
//! [`Histogram`] is the counters, [`Counts`] a copy of them to ask, [`Rolling`] forgets what is older than a window. A
//! rolling window is two halves: the one that is being filled and the one before, so it covers between half of its length
//! and all of it. Two, because a half has to be emptied when its turn comes again, and a ring of ten would cost five times
//! the memory for an answer that is not visibly better.
//!
//! What must stay true: a sample is counted once or not at all, and the second happens only to samples that arrive while
//! the same half is being emptied (some hundred stores, once in a half), or that are late by half a window.

use std::time::Duration;

use crate::{
    moment::Moment,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Counters of durations that all threads add to.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU32; BUCKETS],
}

impl Histogram {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Counts one sample.
    pub fn record(&self, sample: Duration) {
        // Ordering: Relaxed; a counter guards no other memory.
        self.buckets[bucket_of(sample)].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes all samples out. A sample that is recorded meanwhile is in this answer or in the next, never lost.
    #[must_use]
    pub fn drain(&self) -> Counts {
        let mut counts = Counts::new();
        for (bucket, count) in self.buckets.iter().zip(&mut counts.buckets) {
            // Ordering: Relaxed; each bucket is complete in itself. Most are empty, and reading does not take the line
            // away from those who write.
            if bucket.load(Ordering::Relaxed) > 0 {
                *count = bucket.swap(0, Ordering::Relaxed);
                counts.total += u64::from(*count);
            }
        }
        counts
    }

    /// A copy of the present state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        self.add_to(&mut counts);
        counts
    }

    /// The number of samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts().count()
    }

    /// The `q`-quantile, as [`Counts::quantile`].
    #[must_use]
    pub fn quantile(&self, q: f32) -> Option<Duration> {
        self.counts().quantile(q)
    }

    fn add_to(&self, counts: &mut Counts) {
        for (bucket, count) in self.buckets.iter().zip(&mut counts.buckets) {
            // Ordering: Relaxed; a reader may miss what is being added just now.
            let seen = bucket.load(Ordering::Relaxed);
            *count = count.saturating_add(seen);
            counts.total += u64::from(seen);
        }
    }

    fn clear(&self) {
        for bucket in &self.buckets {
            // Ordering: Relaxed; `Rolling` publishes the emptied half.
            bucket.store(0, Ordering::Relaxed);
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// What a histogram had counted: a value of its owner, to be added up and asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    buckets: [u32; BUCKETS],
    total: u64,
}

impl Counts {
    /// No samples.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buckets: [0; BUCKETS],
            total: 0,
        }
    }

    /// The number of samples.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// Adds the samples of `other`.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.saturating_add(*more);
        }
        self.total += other.total;
    }

    /// Takes away samples that were added before.
    pub fn subtract(&mut self, other: &Self) {
        for (count, less) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.saturating_sub(*less);
        }
        self.total = self.total.saturating_sub(other.total);
    }

    /// The `q`-quantile, `q` in 0..=1: the middle of the bucket that holds the sample of rank `ceil(q * count)`, so at
    /// most 1/16 away from that sample. `None` without samples.
    #[must_use]
    pub fn quantile(&self, q: f32) -> Option<Duration> {
        if self.total == 0 {
            return None;
        }
        let rank = (f64::from(q.clamp(0.0, 1.0)) * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(middle_of(index));
            }
        }
        // Only if a bucket overflowed 32 bits and the total did not.
        Some(middle_of(BUCKETS - 1))
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

/// A histogram that forgets: it covers at least half of the window before `now` and at most all of it.
///
/// The window comes with every call; after it was changed the old samples are gone within the longer of the two.
#[derive(Debug)]
pub struct Rolling {
    halves: [Half; 2],
}

#[derive(Debug)]
struct Half {
    /// Nanoseconds of the moment at which the half that was last counted here began, or `EMPTYING`.
    began: AtomicU64,
    samples: Histogram,
}

impl Rolling {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            halves: std::array::from_fn(|_| Half {
                began: AtomicU64::new(0),
                samples: Histogram::new(),
            }),
        }
    }

    /// Counts one sample.
    pub fn record(&self, sample: Duration, window: Duration, now: Moment) {
        let (index, began) = half_of(window, now);
        let half = &self.halves[index];
        // Ordering: Acquire pairs with the Release below: who sees that the half is this one's also sees it emptied.
        let stamp = half.began.load(Ordering::Acquire);
        if stamp != began {
            // Newer: this sample is late by half a window. Emptying: see the head of the file.
            if stamp > began
                // Ordering: Acquire keeps the emptying behind the claim; losing means that somebody else empties.
                || half
                    .began
                    .compare_exchange(stamp, EMPTYING, Ordering::Acquire, Ordering::Relaxed)
                    .is_err()
            {
                return;
            }
            half.samples.clear();
            half.began.store(began, Ordering::Release);
        }
        half.samples.record(sample);
    }

    /// The samples of the window before `now`.
    #[must_use]
    pub fn counts(&self, window: Duration, now: Moment) -> Counts {
        let mut counts = Counts::new();
        let (_, current) = half_of(window, now);
        let oldest = Moment::from_nanos(current).minus(window / 2).as_nanos();
        for half in &self.halves {
            // Ordering: Acquire, as in `record`. A half that begins to be emptied after this line may be read half empty;
            // that is one answer among many, and of samples that were about to be forgotten.
            let began = half.began.load(Ordering::Acquire);
            if began != EMPTYING && began >= oldest {
                half.samples.add_to(&mut counts);
            }
        }
        counts
    }

    /// The `q`-quantile of the window before `now`, as [`Counts::quantile`].
    #[must_use]
    pub fn quantile(&self, q: f32, window: Duration, now: Moment) -> Option<Duration> {
        self.counts(window, now).quantile(q)
    }
}

impl Default for Rolling {
    fn default() -> Self {
        Self::new()
    }
}

/// Which half `now` belongs to, and when that half began in nanoseconds.
fn half_of(window: Duration, now: Moment) -> (usize, u64) {
    let half = u64::try_from(window.as_nanos() / 2).unwrap_or(u64::MAX).max(1);
    let number = now.as_nanos() / half;
    ((number & 1) as usize, number * half)
}

/// The bucket of a duration: ticks below 8 one by one, then eight buckets for each doubling.
fn bucket_of(sample: Duration) -> usize {
    let ticks = u64::try_from(sample.as_nanos() >> TICK_BITS).unwrap_or(u64::MAX);
    if ticks < STEPS {
        return ticks as usize;
    }
    let exponent = u64::from(ticks.ilog2());
    let step = (ticks >> (exponent - STEP_BITS)) & (STEPS - 1);
    let index = (exponent - STEP_BITS + 1) * STEPS + step;
    (index as usize).min(BUCKETS - 1)
}

/// The middle of a bucket.
const fn middle_of(index: usize) -> Duration {
    let index = index as u64;
    let (low, width) = if index < STEPS {
        (index, 1)
    } else {
        let doublings = index / STEPS - 1;
        ((STEPS + index % STEPS) << doublings, 1 << doublings)
    };
    Duration::from_nanos((low << TICK_BITS) + (width << (TICK_BITS - 1)))
}

/// A tick is 1.024 µs.
const TICK_BITS: u32 = 10;

/// Eight buckets for each doubling.
const STEP_BITS: u64 = 3;
const STEPS: u64 = 1 << STEP_BITS;

/// Up to 2^27 ticks, 137 s.
#[cfg(not(loom))]
const BUCKETS: usize = ((27 - STEP_BITS + 1) * STEPS) as usize;

/// What loom can explore.
#[cfg(loom)]
const BUCKETS: usize = 2;

/// A half that somebody is emptying. Later than every beginning, so a writer leaves it alone.
const EMPTYING: u64 = u64::MAX;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The error that the head of the file promises.
    fn close(answer: Duration, truth: Duration) -> bool {
        let bound = (truth.as_nanos() / 16).max(513);
        answer.as_nanos().abs_diff(truth.as_nanos()) <= bound
    }

    #[test]
    fn nothing_seen_means_no_quantile() {
        assert_eq!(Histogram::new().quantile(0.5), None);
        assert_eq!(Rolling::new().quantile(0.5, WINDOW, at(100)), None);
    }

    #[test]
    fn quantiles_are_the_samples_of_their_rank() {
        let histogram = Histogram::new();
        for millis in 1..=100 {
            histogram.record(ms(millis));
        }
        assert_eq!(histogram.count(), 100);
        for (q, truth) in [(0.0, 1), (0.5, 50), (0.95, 95), (1.0, 100)] {
            let answer = histogram.quantile(q).unwrap();
            assert!(close(answer, ms(truth)), "{q}: {answer:?}");
        }
    }

    #[test]
    fn the_longest_count_as_the_last_bucket() {
        let histogram = Histogram::new();
        histogram.record(Duration::MAX);
        let answer = histogram.quantile(0.5).unwrap();
        assert!((120..138).contains(&answer.as_secs()), "{answer:?}");
    }

    #[test]
    fn draining_takes_everything_once() {
        let histogram = Histogram::new();
        histogram.record(ms(5));
        histogram.record(ms(5));
        let mut sum = histogram.drain();
        assert_eq!((sum.count(), histogram.count()), (2, 0));
        histogram.record(ms(50));
        let second = histogram.drain();
        sum.add(&second);
        assert_eq!(sum.count(), 3);
        sum.subtract(&second);
        assert!(close(sum.quantile(1.0).unwrap(), ms(5)));
    }

    #[test]
    fn a_window_forgets_between_half_its_length_and_all_of_it() {
        let rolling = Rolling::new();
        rolling.record(ms(1), WINDOW, at(100));
        for (second, expected) in [(100, 1), (104, 1), (105, 1), (119, 1), (120, 0), (10_000, 0)] {
            assert_eq!(
                rolling.counts(WINDOW, at(second)).count(),
                expected,
                "at {second} s"
            );
        }
    }

    #[test]
    fn the_half_that_comes_round_again_is_empty() {
        let rolling = Rolling::new();
        rolling.record(ms(1), WINDOW, at(1));
        rolling.record(ms(2), WINDOW, at(16));
        rolling.record(ms(3), WINDOW, at(31));
        assert_eq!(rolling.counts(WINDOW, at(31)).count(), 2);
        assert!(close(rolling.quantile(0.0, WINDOW, at(31)).unwrap(), ms(2)));
    }

    #[test]
    fn a_sample_a_little_late_goes_to_the_half_before_and_a_very_late_one_nowhere() {
        let rolling = Rolling::new();
        rolling.record(ms(1), WINDOW, at(15));
        rolling.record(ms(1), WINDOW, at(30));
        rolling.record(ms(1), WINDOW, at(29));
        assert_eq!(rolling.counts(WINDOW, at(30)).count(), 3);
        rolling.record(ms(1), WINDOW, at(14));
        assert_eq!(rolling.counts(WINDOW, at(30)).count(), 3);
    }

    #[test]
    fn a_longer_or_shorter_window_takes_over_within_itself() {
        for (before, after) in [(2, 60), (60, 2)] {
            let (before, after) = (Duration::from_secs(before), Duration::from_secs(after));
            let rolling = Rolling::new();
            rolling.record(ms(1), before, at(1001));
            for second in 1002..1062 {
                rolling.record(ms(9), after, at(second));
            }
            let counts = rolling.counts(after, at(1061));
            assert!(counts.count() > 0);
            assert!(close(counts.quantile(0.0).unwrap(), ms(9)), "{after:?}");
        }
    }

    #[test]
    fn threads_count_together() {
        let histogram = Histogram::new();
        let mut drained = Counts::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for micros in 0..20_000 {
                        histogram.record(Duration::from_micros(micros));
                    }
                });
            }
            for _ in 0..100 {
                drained.add(&histogram.drain());
            }
        });
        drained.add(&histogram.drain());
        assert_eq!(drained.count(), 80_000);
    }

    #[test]
    fn threads_that_rotate_lose_next_to_nothing() {
        let rolling = Rolling::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for millis in 0..40_000 {
                        rolling.record(ms(1), WINDOW, Moment::ZERO.plus(ms(millis)));
                    }
                });
            }
        });
        // 30 s to 40 s and 15 s to 30 s. Threads that run ahead of the others make these drop, so only the bound is claimed.
        let seen = rolling.counts(WINDOW, Moment::ZERO.plus(ms(39_999))).count();
        assert!((25_000..=100_000).contains(&seen), "{seen}");
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_sixteenth_of_its_sample(
            mut samples in proptest::collection::vec(0u64..130_000_000_000, 1..200),
            scale in 0u32..24,
            q in 0.0f32..=1.0,
        ) {
            let histogram = Histogram::new();
            for sample in &mut samples {
                *sample >>= scale;
                histogram.record(Duration::from_nanos(*sample));
            }
            samples.sort_unstable();
            let rank = (f64::from(q) * samples.len() as f64).ceil().max(1.0) as usize;
            let truth = Duration::from_nanos(samples[rank - 1]);
            let answer = histogram.quantile(q).unwrap();
            prop_assert!(close(answer, truth), "{answer:?} for {truth:?}");
        }

        #[test]
        fn buckets_are_ordered_and_hold_their_middles(index in 0..BUCKETS) {
            prop_assert_eq!(bucket_of(middle_of(index)), index);
            if index > 0 {
                prop_assert!(middle_of(index - 1) < middle_of(index));
            }
        }

        #[test]
        fn a_window_counts_what_is_younger_than_half_and_nothing_older_than_all(
            gaps in proptest::collection::vec(0u64..8_000, 1..100),
        ) {
            let rolling = Rolling::new();
            let mut now = Moment::ZERO.plus(WINDOW);
            let mut times = Vec::new();
            for gap in gaps {
                now = now.plus(ms(gap));
                rolling.record(ms(1), WINDOW, now);
                times.push(now);
                let seen = rolling.counts(WINDOW, now).count() as usize;
                let younger = |than: Duration| times.iter().filter(|time| now.since(**time) < than).count();
                prop_assert!(younger(WINDOW / 2) <= seen && seen <= younger(WINDOW));
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    const WINDOW: Duration = Duration::from_nanos(20);
    const SAMPLE: Duration = Duration::ZERO;

    #[test]
    fn loom_a_half_that_comes_round_again_holds_nothing_old() {
        loom::model(|| {
            let rolling = Arc::new(Rolling::new());
            rolling.record(SAMPLE, WINDOW, Moment::from_nanos(10));
            rolling.record(SAMPLE, WINDOW, Moment::from_nanos(11));
            let now = Moment::from_nanos(30);
            let other = Arc::clone(&rolling);
            let thread = thread::spawn(move || other.record(SAMPLE, WINDOW, now));
            rolling.record(SAMPLE, WINDOW, now);
            thread.join().unwrap();
            let seen = rolling.counts(WINDOW, now).count();
            // The one who comes while the other empties is not counted.
            assert!((1..=2).contains(&seen), "{seen}");
        });
    }

    #[test]
    fn loom_draining_loses_nothing() {
        loom::model(|| {
            let histogram = Arc::new(Histogram::new());
            let other = Arc::clone(&histogram);
            let thread = thread::spawn(move || {
                other.record(SAMPLE);
                other.record(SAMPLE);
            });
            let mut seen = histogram.drain().count();
            thread.join().unwrap();
            seen += histogram.drain().count();
            assert_eq!(seen, 2);
        });
    }
}
