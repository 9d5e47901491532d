//! Window: how many calls went how, over the last few seconds, exactly.
//!
//! A ring of ten buckets. Each counter of a bucket is one 64-bit word holding the number of the period it belongs to
//! and the count, so that a writer who finds an old period replaces both in one step: nothing is ever cleared by
//! somebody else, no count is lost, and a window that nobody touched for an hour is empty without anyone sweeping it.
//! An average that decays with time was rejected: it hides a total outage behind the calls before it.
//!
//! Periods are counted from the origin of time and not from the last call, so they do not drift. The window covers nine
//! to ten periods: the present one is still filling.
//!
//! The length is fixed when a window is made. Whoever changes it makes a new one.

use std::time::Duration;

use crate::moment::Moment;
use crate::sync::{AtomicU64, Ordering};

/// Buckets of a window; a window of ten seconds forgets in steps of one.
const BUCKETS: usize = 10;

/// Counts of the last period of a given length, shared by all workers.
#[derive(Debug)]
pub struct Window {
    /// Nanoseconds of one bucket, at least 1.
    width: u64,
    buckets: [Bucket; BUCKETS],
}

/// Words of period number (upper half) and count (lower half).
#[derive(Debug)]
struct Bucket {
    total: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All calls.
    pub total: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were slow; none of them failed.
    pub slow: u32,
}

/// What a window holds, in a form that another process can take over: ages instead of moments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    /// How far back it looks.
    pub length: Duration,
    /// One entry for each period that is not empty: its age in periods, then all calls, failed ones and slow ones.
    pub periods: Vec<[u32; 4]>,
}

/// What one call adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// It went well.
    Good,
    /// It went well, slowly.
    Slow,
    /// It failed.
    Failed,
}

impl Window {
    /// An empty window over the last `length`.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self {
            width: (nanos / BUCKETS as u64).max(1),
            buckets: std::array::from_fn(|_| Bucket {
                total: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                slow: AtomicU64::new(0),
            }),
        }
    }

    /// How far back it looks.
    #[must_use]
    pub const fn length(&self) -> Duration {
        Duration::from_nanos(self.width.saturating_mul(BUCKETS as u64))
    }

    /// Whether it looks as far back as a new one over `length` would.
    #[must_use]
    pub fn is_over(&self, length: Duration) -> bool {
        self.width == Self::new(length).width
    }

    /// Counts one call that ended at `now`.
    pub fn record(&self, sample: Sample, now: Moment) {
        let period = self.period(now);
        let bucket = &self.buckets[period as usize % BUCKETS];
        add(&bucket.total, period);
        match sample {
            Sample::Good => {}
            Sample::Slow => add(&bucket.slow, period),
            Sample::Failed => add(&bucket.failed, period),
        }
    }

    /// The counts of the window that ends at `now`.
    ///
    /// A call being recorded meanwhile may be seen in the total and not yet among the failures.
    #[must_use]
    pub fn counts(&self, now: Moment) -> Counts {
        let period = self.period(now);
        let mut counts = Counts::default();
        for bucket in &self.buckets {
            // Failures first: then no reader sees more of them than calls.
            counts.failed = counts.failed.saturating_add(read(&bucket.failed, period));
            counts.slow = counts.slow.saturating_add(read(&bucket.slow, period));
            counts.total = counts.total.saturating_add(read(&bucket.total, period));
        }
        counts
    }

    /// What another process has to know.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        let present = self.period(now);
        let periods = (0..BUCKETS as u32).filter_map(|age| {
            let period = present.wrapping_sub(age);
            let bucket = &self.buckets[period as usize % BUCKETS];
            let of_period = |word: &AtomicU64| {
                // Ordering: Relaxed, as in `add`.
                let seen = word.load(Ordering::Relaxed);
                ((seen >> 32) as u32 == period).then_some((seen & COUNT) as u32)
            };
            let total = of_period(&bucket.total).filter(|total| *total > 0)?;
            let (failed, slow) = (of_period(&bucket.failed), of_period(&bucket.slow));
            Some([age, total, failed.unwrap_or(0), slow.unwrap_or(0)])
        });
        Saved {
            length: self.length(),
            periods: periods.collect(),
        }
    }

    /// A window with what another one held. What lies before the origin of time is forgotten, and so is nonsense.
    #[must_use]
    pub fn restored(saved: &Saved, now: Moment) -> Self {
        let window = Self::new(saved.length);
        let present = window.period(now);
        for &[age, total, failed, slow] in &saved.periods {
            if age >= (BUCKETS as u32).min(present) {
                continue;
            }
            let period = present - age;
            let failed = failed.min(total);
            let counts = [total, failed, slow.min(total - failed)];
            let bucket = &window.buckets[period as usize % BUCKETS];
            for (word, count) in [&bucket.total, &bucket.failed, &bucket.slow]
                .into_iter()
                .zip(counts)
            {
                // Ordering: Relaxed; nobody else has it yet.
                word.store(u64::from(period) << 32 | u64::from(count), Ordering::Relaxed);
            }
        }
        window
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for bucket in &self.buckets {
            for word in [&bucket.total, &bucket.failed, &bucket.slow] {
                // Ordering: Relaxed; a call recorded meanwhile may count before or after.
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The number of the period that `now` lies in, from 1; 0 marks what was never written.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "periods are compared as circular numbers"
    )]
    const fn period(&self, now: Moment) -> u32 {
        let period = (now.as_nanos() / self.width) as u32;
        period.wrapping_add(1)
    }
}

impl Counts {
    /// The share that failed; 0 of nothing.
    #[must_use]
    pub fn failure_rate(self) -> f64 {
        ratio(self.failed, self.total)
    }

    /// The share that was slow; 0 of nothing.
    #[must_use]
    pub fn slow_rate(self) -> f64 {
        ratio(self.slow, self.total)
    }
}

fn ratio(part: u32, of: u32) -> f64 {
    if of == 0 {
        0.0
    } else {
        f64::from(part) / f64::from(of)
    }
}

/// Adds one to a word of `period`.
fn add(word: &AtomicU64, period: u32) {
    let fresh = u64::from(period) << 32;
    // Ordering: Relaxed throughout; a word carries all that belongs together.
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let next = match age(seen, period) {
            0 => {
                if seen & COUNT == COUNT {
                    return;
                }
                seen + 1
            }
            // A writer that slept for a whole window adds nothing to the one of today.
            newer if newer < 0 && seen != 0 => return,
            _ => fresh + 1,
        };
        match word.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

/// The count of a word if it is part of the window that ends with `period`.
fn read(word: &AtomicU64, period: u32) -> u32 {
    // Ordering: Relaxed, as in `add`.
    let seen = word.load(Ordering::Relaxed);
    if seen != 0 && age(seen, period) < BUCKETS as i32 {
        (seen & COUNT) as u32
    } else {
        0
    }
}

const COUNT: u64 = 0xffff_ffff;

/// How many periods ago a word was written.
const fn age(word: u64, period: u32) -> i32 {
    period.wrapping_sub((word >> 32) as u32).cast_signed()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn it_holds_what_was_recorded_and_nothing_older_than_its_length() {
        let window = Window::new(LENGTH);
        window.record(Sample::Failed, at(500));
        window.record(Sample::Slow, at(600));
        window.record(Sample::Good, at(700));
        let all = Counts {
            total: 3,
            failed: 1,
            slow: 1,
        };
        assert_eq!(window.counts(at(700)), all);
        assert_eq!(window.counts(at(9_500)), all, "idle for nine seconds");
        assert_eq!(window.counts(at(11_500)), Counts::default(), "for eleven");
        assert_eq!(window.counts(at(3_600_000)), Counts::default(), "for an hour");
    }

    #[test]
    fn scenario_07_no_stale_counts_after_any_pause() {
        for idle in [11_000, 3_600_000, 86_400_000] {
            let window = Window::new(LENGTH);
            for _ in 0..100 {
                window.record(Sample::Failed, at(100));
            }
            window.record(Sample::Good, at(100 + idle));
            let counts = window.counts(at(100 + idle));
            assert_eq!((counts.total, counts.failed), (1, 0), "after {idle} ms");
        }
    }

    #[test]
    fn scenario_07_periods_do_not_drift_in_a_day() {
        let window = Window::new(LENGTH);
        // One call each 997 ms for a day: at every moment those of the last 9 to 10 seconds are counted.
        for call in 0..86_400u64 {
            let now = at(call * 997);
            window.record(Sample::Good, now);
            if call > 20 {
                let total = window.counts(now).total;
                assert!((9..=11).contains(&total), "{total} at call {call}");
            }
        }
    }

    #[test]
    fn the_number_of_the_period_may_wrap() {
        let window = Window::new(Duration::from_nanos(10));
        let edge = u64::from(u32::MAX);
        window.record(Sample::Failed, Moment::from_nanos(edge - 2));
        window.record(Sample::Good, Moment::from_nanos(edge + 3));
        let counts = window.counts(Moment::from_nanos(edge + 4));
        assert_eq!((counts.total, counts.failed), (2, 1));
        assert_eq!(window.counts(Moment::from_nanos(edge + 40)), Counts::default());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list(steps in prop::collection::vec((0u64..4_000, 0u8..3), 1..200)) {
            let window = Window::new(LENGTH);
            let mut list = Vec::new();
            let mut millis = 0;
            for (wait, kind) in steps {
                millis += wait;
                let sample = [Sample::Good, Sample::Slow, Sample::Failed][usize::from(kind)];
                window.record(sample, at(millis));
                list.push((millis / 1000, sample));
                let live = |of: &dyn Fn(Sample) -> bool| {
                    list.iter().filter(|(second, s)| millis / 1000 - second < 10 && of(*s)).count() as u32
                };
                let expected = Counts {
                    total: live(&|_| true),
                    failed: live(&|s| s == Sample::Failed),
                    slow: live(&|s| s == Sample::Slow),
                };
                prop_assert_eq!(window.counts(at(millis)), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_restored_is_what_was_saved(
            calls in prop::collection::vec((0u64..20_000, 0u8..3), 0..200),
            pause in 0u64..12_000,
            later in 0u64..12,
        ) {
            let window = Window::new(LENGTH);
            let mut now = 100_000;
            for (wait, kind) in calls {
                now += wait / 20;
                window.record([Sample::Good, Sample::Slow, Sample::Failed][usize::from(kind)], at(now));
            }
            now += pause;
            // Another clock, at the same place within its period.
            let other = Window::restored(&window.save(at(now)), at(3_600_000 + now % 1_000));
            for seconds in [0, later] {
                prop_assert_eq!(
                    other.counts(at(3_600_000 + now % 1_000 + seconds * 1_000)),
                    window.counts(at(now + seconds * 1_000))
                );
            }
        }

        #[test]
        fn whatever_is_restored_counts_no_more_than_it_says(
            length in any::<u64>(),
            periods in prop::collection::vec(any::<[u32; 4]>(), 0..30),
            near in prop::collection::vec((0u32..12, any::<u32>(), any::<u32>(), any::<u32>()), 0..12),
            now in any::<u64>(),
        ) {
            let near = near.into_iter().map(|(age, total, failed, slow)| [age, total, failed, slow]);
            let saved = Saved { length: Duration::from_nanos(length), periods: periods.into_iter().chain(near).collect() };
            let now = Moment::from_nanos(now);
            let window = Window::restored(&saved, now);
            let counts = window.counts(now);
            prop_assert!(counts.total >= counts.failed && counts.total >= counts.slow);
            window.record(Sample::Failed, now);
            prop_assert!(window.counts(now).total >= counts.total);
        }
    }

    #[test]
    fn scenario_45_no_count_is_lost_between_threads() {
        let window = Window::new(LENGTH);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let window = &window;
                scope.spawn(move || {
                    for call in 0..20_000u64 {
                        // All threads cross the border between two buckets together.
                        let now = at(900 + (call + thread) / 100);
                        window.record(Sample::Failed, now);
                    }
                });
            }
        });
        let counts = window.counts(at(1_200));
        assert_eq!((counts.total, counts.failed), (80_000, 80_000));
    }
}

#[cfg(loom)]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_two_writers_crossing_a_border_lose_nothing() {
        loom::model(|| {
            let word = Arc::new(AtomicU64::new((7 << 32) | 3));
            let other = Arc::clone(&word);
            let thread = loom::thread::spawn(move || add(&other, 17));
            add(&word, 17);
            thread.join().expect("no panic");
            assert_eq!(read(&word, 17), 2);
        });
    }
}
