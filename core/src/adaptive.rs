//! Adaptive limit: how many at once, found out from how long answers take.
//!
//! A fixed limit is right on the day it was measured. This one follows Gradient2 of Netflix's concurrency limits: compare
//! the present response time with its long average; while the present one is not more than half again as long, there is no
//! queue at the other side, and the limit may grow by a few; when it is, the limit shrinks in proportion. Windows are spans
//! of *time*, not counts of samples, so that a busy cluster is not judged by ten milliseconds of its traffic and a quiet
//! one is judged at all:
//!
//! * *short*: the median of the last second, or of the last 50 samples if those took longer. The median, because a limit
//!   must not follow a tail.
//! * *long*: the average of the shorts, over a minute: what is normal.
//! * An update at most every 100 ms, and only with at least five new samples or a timeout. Whoever records a sample after
//!   that makes it; nobody waits for it.
//!
//! There is no phase in which the limit is pinned down to measure an unloaded response time: those phases refuse requests
//! that nothing was wrong with. Until the first full window there is no limit but the largest; then it starts at twice
//! what was in use.
//!
//! **What is normal** is the difficult half. An average that follows an overload excuses it: offered three times its
//! capacity, plain Gradient2 doubles the response time after 40 s and has no limit left after 80 (measured with the model
//! in the tests). One that does not follow never learns that the service has become slower. So while the limit is in use
//! the average follows downwards only, and a response time beyond the tolerance is answered by a **trial**: the limit is
//! halved for one window. If answers become faster it was our doing: the limit goes on from the half, and nothing is
//! tried again for five seconds, or twice as long as the last time, up to a minute, when trial after trial has said so. If
//! they do not, the service is slower than it was: that is normal now, and the limit is put back. Halving costs little
//! where nothing is wrong, because the limit is about twice of what is in use. The first verdict holds so shortly because
//! a trial can be misled: a neighbour that left the machine meanwhile makes answers faster, too.
//!
//! What must stay true: the limit stays between `min` and `max`; it never grows while less than half of it is used, so it
//! is never far above what has been shown to work; recording a sample takes a few relaxed additions.

use std::{collections::VecDeque, sync::TryLockError, time::Duration};

use crate::{
    histogram::{Counts, Histogram},
    moment::Moment,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// The range of an adaptive limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Never lower.
    pub min: u32,
    /// Never higher.
    pub max: u32,
}

impl Range {
    const fn clamp(self, limit: f64) -> f64 {
        // Not `f64::clamp`, which panics if a user's `min` is above `max`.
        limit.min(self.max as f64).max(self.min as f64)
    }
}

/// What a request that held a place has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// It was answered well; this long until the head of the answer.
    Answered(Duration),
    /// It was not answered in time by our clock.
    TimedOut,
    /// It failed otherwise. How fast somebody fails says nothing about how many they can bear.
    Failed,
}

/// A limit that follows response times, shared by all threads.
#[derive(Debug)]
pub struct Adaptive {
    fresh: Histogram,
    timed_out: AtomicU32,
    failed: AtomicU32,
    /// The largest number in flight since the last update.
    peak: AtomicU32,
    /// Nanoseconds of the moment from which on an update may be made.
    due: AtomicU64,
    /// `f32` bits of the limit; `WARMING` until the first update.
    limit: AtomicU32,
    /// Nanoseconds, for people.
    short: AtomicU64,
    long: AtomicU64,
    /// `f32` bits, for people.
    gradient: AtomicU32,
    memory: Mutex<Memory>,
}

/// What only the one who makes an update needs.
#[derive(Debug)]
struct Memory {
    /// The samples of the last slots, oldest first, and their sum.
    slots: VecDeque<Counts>,
    window: Counts,
    /// Samples of the slot that is not complete.
    open: Counts,
    /// Whether the first slot has been opened.
    begun: bool,
    /// Seconds; 0 before the first update.
    long: f64,
    updated: Moment,
    /// Updates in a row that left the limit at its lowest without an error.
    at_min: u32,
    trial: Option<Trial>,
    /// Until then a long response time is our own doing, as the last trial has shown.
    ours_until: Moment,
    /// How long the next verdict of that kind holds.
    trust: Duration,
}

/// A limit that was halved to see whether answers become faster.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// The limit before.
    limit: f64,
    /// The response time before, in seconds.
    short: f64,
    /// When what was begun under the limit before has been answered.
    from: Moment,
    /// Slots closed since.
    slots: usize,
}

impl Adaptive {
    /// Nothing known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            fresh: Histogram::new(),
            timed_out: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            due: AtomicU64::new(0),
            limit: AtomicU32::new(WARMING),
            short: AtomicU64::new(0),
            long: AtomicU64::new(0),
            gradient: AtomicU32::new(1.0f32.to_bits()),
            memory: Mutex::new(Memory {
                slots: VecDeque::new(),
                window: Counts::new(),
                open: Counts::new(),
                begun: false,
                long: 0.0,
                updated: Moment::ZERO,
                at_min: 0,
                trial: None,
                ours_until: Moment::ZERO,
                trust: TRUST,
            }),
        }
    }

    /// The present limit, for [`Limit::try_acquire`](crate::limit::Limit::try_acquire). The largest until enough is known.
    #[must_use]
    pub fn limit(&self, range: Range) -> u32 {
        // Ordering: Relaxed; a lone value.
        let bits = self.limit.load(Ordering::Relaxed);
        if bits == WARMING {
            return range.max.max(range.min);
        }
        range.clamp(f64::from(f32::from_bits(bits))) as u32
    }

    /// Takes in what a request has shown. `in_flight` counts the requests under the limit, this one included.
    pub fn record(&self, sample: Sample, in_flight: u32, range: Range, now: Moment) {
        // Ordering: Relaxed throughout; counters that guard no other memory. What arrives during an update is in the next.
        match sample {
            Sample::Answered(took) => self.fresh.record(took),
            Sample::TimedOut => {
                self.timed_out.fetch_add(1, Ordering::Relaxed);
            }
            Sample::Failed => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Most samples do not raise the peak, and reading leaves the line with everybody.
        if in_flight > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(in_flight, Ordering::Relaxed);
        }
        if now.as_nanos() >= self.due.load(Ordering::Relaxed) {
            self.update(range, now);
        }
    }

    /// The present state, for gauges.
    #[must_use]
    pub fn readings(&self, range: Range) -> Readings {
        // Ordering: Relaxed; for people, who do not mind values of two neighbouring updates.
        Readings {
            limit: self.limit(range),
            short: Duration::from_nanos(self.short.load(Ordering::Relaxed)),
            long: Duration::from_nanos(self.long.load(Ordering::Relaxed)),
            gradient: f32::from_bits(self.gradient.load(Ordering::Relaxed)),
        }
    }

    fn update(&self, range: Range, now: Moment) {
        let mut memory = match self.memory.try_lock() {
            Ok(memory) => memory,
            // Somebody else is at it.
            Err(TryLockError::WouldBlock) => return,
            // A panic while updating would otherwise freeze the limit for ever. The numbers are sound at every step.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        // Ordering: Relaxed; written under the lock. Checked again, or the one who came second would close a slot at once.
        if now.as_nanos() < self.due.load(Ordering::Relaxed) {
            return;
        }
        if !memory.begun {
            memory.begun = true;
            // Ordering: Relaxed, as above.
            self.due.store(now.plus(SLOT).as_nanos(), Ordering::Relaxed);
            return;
        }
        memory.open.add(&self.fresh.drain());
        // Ordering: Relaxed; additions to one atomic are never lost, and those after the swap are the next update's.
        let timed_out = self.timed_out.swap(0, Ordering::Relaxed);
        if timed_out == 0 && memory.open.count() < SLOT_SAMPLES {
            return;
        }
        // Ordering: Relaxed, as above.
        self.due.store(now.plus(SLOT).as_nanos(), Ordering::Relaxed);
        let failed = self.failed.swap(0, Ordering::Relaxed);
        let peak = self.peak.swap(0, Ordering::Relaxed);
        memory.close_slot();

        // Ordering: Relaxed; written under the lock only.
        let bits = self.limit.load(Ordering::Relaxed);
        if bits == WARMING && timed_out == 0 && memory.slots.len() < SLOTS {
            return;
        }
        let before = if bits == WARMING {
            f64::from(peak.saturating_mul(2).max(START))
        } else {
            f64::from(f32::from_bits(bits))
        };
        let before = range.clamp(before);
        let Some(short) = memory.window.quantile(0.5).map(|short| short.as_secs_f64()) else {
            // Nothing but timeouts so far.
            self.publish(range.clamp(before * ON_TIMEOUT));
            return;
        };
        let in_use = f64::from(peak) >= before / 2.0;
        memory.learn(short, in_use, now);
        let next = memory.next(before, short, in_use, timed_out > 0, range, now);
        let gradient = memory.gradient(short);
        let stuck = gradient < 1.0 && next <= f64::from(range.min) && timed_out == 0 && failed == 0;
        memory.unlearn(short, stuck);

        self.publish(next);
        // Ordering: Relaxed; for people.
        self.short.store((short * 1e9) as u64, Ordering::Relaxed);
        self.long.store((memory.long * 1e9) as u64, Ordering::Relaxed);
        self.gradient
            .store((gradient as f32).to_bits(), Ordering::Relaxed);
    }

    fn publish(&self, limit: f64) {
        // Ordering: Relaxed; a lone value.
        self.limit.store((limit as f32).to_bits(), Ordering::Relaxed);
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// The open slot becomes the youngest of the window, and the oldest leaves it.
    fn close_slot(&mut self) {
        let slot = std::mem::take(&mut self.open);
        self.window.add(&slot);
        self.slots.push_back(slot);
        while self.slots.len() > SLOTS {
            if let Some(oldest) = self.slots.pop_front() {
                self.window.subtract(&oldest);
            }
        }
    }

    fn learn(&mut self, short: f64, in_use: bool, now: Moment) {
        if self.long == 0.0 {
            self.long = short;
        } else if short < self.long || !in_use {
            let passed = now.since(self.updated).as_secs_f64();
            let kept = (-passed / LONG_WINDOW.as_secs_f64()).exp();
            self.long = self.long * kept + short * (1.0 - kept);
            // After a bad time the average is still high and would excuse the next one.
            if self.long > 2.0 * short {
                self.long *= UNLEARN;
            }
        }
        self.updated = now;
    }

    fn gradient(&self, short: f64) -> f64 {
        (TOLERANCE * self.long / short).clamp(0.5, 1.0)
    }

    /// The limit after `before`.
    fn next(
        &mut self,
        before: f64,
        short: f64,
        in_use: bool,
        timed_out: bool,
        range: Range,
        now: Moment,
    ) -> f64 {
        if timed_out {
            self.trial = None;
            return range.clamp(before * ON_TIMEOUT);
        }
        if let Some(mut trial) = self.trial.take() {
            trial.slots += usize::from(now >= trial.from);
            if trial.slots <= SLOTS {
                self.trial = Some(trial);
                return range.clamp(before);
            }
            if short < trial.short * FASTER {
                self.ours_until = now.plus(self.trust);
                self.trust = (self.trust * 2).min(LONGEST_TRUST);
                return range.clamp(before);
            }
            self.trust = TRUST;
            self.long = short;
            return range.clamp(trial.limit);
        }
        let gradient = self.gradient(short);
        if !in_use {
            return range.clamp(before);
        }
        if gradient < 1.0 && now >= self.ours_until && before > f64::from(range.min) {
            self.trial = Some(Trial {
                limit: before,
                short,
                from: now.plus(Duration::from_secs_f64(2.0 * short)),
                slots: 0,
            });
            return range.clamp(before / 2.0);
        }
        let aim = before * gradient + QUEUE;
        range.clamp(before + (aim - before) * SMOOTHING)
    }

    /// At the lowest limit the response time cannot be our doing: what we took for normal no longer is.
    fn unlearn(&mut self, short: f64, stuck: bool) {
        if !stuck {
            self.at_min = 0;
            return;
        }
        self.at_min += 1;
        if self.at_min >= STUCK {
            self.long = (self.long / UNLEARN).min(short);
        }
    }
}

/// What an adaptive limit has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Readings {
    /// The limit.
    pub limit: u32,
    /// The present response time.
    pub short: Duration,
    /// Its long average.
    pub long: Duration,
    /// What the limit was last multiplied with, 0.5 to 1.
    pub gradient: f32,
}

/// The least time between two updates, and the least length of a slot.
const SLOT: Duration = Duration::from_millis(100);

/// The least number of samples in a slot.
const SLOT_SAMPLES: u64 = 5;

/// Slots in the window: with the two above, at least a second and at least 50 samples.
const SLOTS: usize = 10;

/// Time constant of the long average.
const LONG_WINDOW: Duration = Duration::from_secs(60);

/// How much longer than its average a response time may be before there is a queue.
const TOLERANCE: f64 = 1.5;

/// The queue that is allowed at the other side, and so the growth per update before smoothing.
const QUEUE: f64 = 4.0;

/// The share of a step that is made.
const SMOOTHING: f64 = 0.2;

/// What a limit is multiplied with when requests timed out, once per update.
const ON_TIMEOUT: f64 = 0.9;

/// Answers this much faster at half the limit are faster because of it. A queue of half again the response time, the
/// least that leads to a trial, falls by a third.
const FASTER: f64 = 0.8;

/// How long the first verdict holds that a long response time is our doing.
const TRUST: Duration = Duration::from_secs(5);

/// How long it holds after several of its kind in a row.
const LONGEST_TRUST: Duration = Duration::from_secs(60);

/// What the long average moves by, per update, when it is plainly wrong.
const UNLEARN: f64 = 0.95;

/// Updates at the lowest limit before the long average counts as wrong.
const STUCK: u32 = 5;

/// The lowest start.
const START: u32 = 20;

/// A limit no update makes: its bits are those of a NaN.
const WARMING: u32 = u32::MAX;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RANGE: Range = Range { min: 10, max: 2000 };

    /// A cluster that answers in `base` up to `capacity` at once, and above in proportion; and clients that want `offered`
    /// at once. Steps of 20 ms, five samples each.
    struct World {
        adaptive: Adaptive,
        now: Moment,
        base: f64,
        capacity: f64,
    }

    impl World {
        fn new(base_ms: u64, capacity: u32) -> Self {
            Self {
                adaptive: Adaptive::new(),
                now: Moment::ZERO,
                base: base_ms as f64 / 1000.0,
                capacity: f64::from(capacity),
            }
        }

        fn limit(&self) -> u32 {
            self.adaptive.limit(RANGE)
        }

        /// Runs for `seconds`; the response time at the end, in seconds.
        fn run(&mut self, offered: u32, seconds: u64) -> f64 {
            let mut took = self.base;
            for _ in 0..seconds * 50 {
                self.now = self.now.plus(Duration::from_millis(20));
                let in_flight = offered.min(self.limit());
                took = self.base * (f64::from(in_flight) / self.capacity).max(1.0);
                for _ in 0..5 {
                    let sample = Sample::Answered(Duration::from_secs_f64(took));
                    self.adaptive.record(sample, in_flight, RANGE, self.now);
                }
            }
            took
        }
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn until_a_window_is_full_there_is_no_limit_but_the_largest() {
        let adaptive = Adaptive::new();
        let answered = Sample::Answered(Duration::from_millis(10));
        for step in 0..49 {
            adaptive.record(answered, 300, RANGE, at(step * 25));
            assert_eq!(adaptive.limit(RANGE), 2000, "step {step}");
        }
        for step in 49..60 {
            adaptive.record(answered, 300, RANGE, at(step * 25));
        }
        // Twice what was in use, and a step of growth.
        assert_eq!(adaptive.limit(RANGE), 600);
    }

    #[test]
    fn a_quiet_cluster_starts_at_twenty() {
        let mut world = World::new(10, 100);
        world.run(1, 60);
        assert_eq!(world.limit(), START);
    }

    #[test]
    fn the_limit_does_not_grow_beyond_twice_what_is_used() {
        let mut world = World::new(10, 1000);
        world.run(60, 600);
        assert_eq!(world.limit(), 120);
        world.run(10, 600);
        assert_eq!(world.limit(), 120);
    }

    #[test]
    fn scenario_34_in_a_standing_overload_answers_stay_about_half_again_as_long_as_normal() {
        let mut world = World::new(10, 100);
        world.run(60, 60);
        world.run(300, 5);
        for second in 0..3600 {
            let took = world.run(300, 1);
            assert!(took <= 0.017, "{took} s after {second} s");
            // Goodput: the capacity is used but for a trial a minute.
            assert!(world.limit() >= 75, "{} after {second} s", world.limit());
        }
    }

    #[test]
    fn scenario_36_a_service_that_became_slower_keeps_its_limit() {
        for factor in [1.4, 1.7, 2.0, 4.0] {
            let mut world = World::new(10, 100_000);
            world.run(200, 120);
            let before = world.limit();
            world.base *= factor;
            // As many a second, which are more at once.
            world.run((200.0 * factor) as u32, 5);
            assert!(world.limit() >= before, "{factor}: {}", world.limit());
            let normal = world.adaptive.readings(RANGE).long.as_secs_f64();
            assert!(normal * TOLERANCE >= world.base, "{factor}: {normal}");
        }
    }

    #[test]
    fn scenario_36_a_trial_that_was_misled_is_soon_made_again() {
        let mut world = World::new(20, 100_000);
        world.run(24, 10);
        let before = world.limit();
        // Slower for good, and for a moment much slower, as when a neighbour uses the machine: the trial begins in that
        // moment and ends after it.
        world.base = 0.160;
        world.run(96, 1);
        world.base = 0.080;
        world.run(96, 12);
        let readings = world.adaptive.readings(RANGE);
        assert!(readings.long >= Duration::from_millis(50), "{readings:?}");
        assert!(world.limit() >= before / 2, "{readings:?}");
    }

    #[test]
    fn scenario_36_one_that_became_slower_within_an_overload_is_let_go_again_within_two_minutes() {
        let mut world = World::new(10, 100);
        world.run(60, 60);
        world.run(300, 20);
        world.base *= 4.0;
        world.run(300, 120);
        assert!((100..170).contains(&world.limit()), "{}", world.limit());
    }

    #[test]
    fn at_the_lowest_limit_normal_is_learned_anew() {
        let mut world = World::new(10, 5);
        world.run(5, 60);
        world.base = 0.04;
        world.run(300, 30);
        let readings = world.adaptive.readings(RANGE);
        // From 10 ms to where the limit can leave its lowest value.
        assert!(readings.gradient >= 0.59, "{readings:?}");
        assert!(readings.long >= Duration::from_millis(30), "{readings:?}");
    }

    #[test]
    fn timeouts_take_a_tenth_at_most_ten_times_a_second() {
        let mut world = World::new(10, 1000);
        world.run(60, 60);
        let before = f64::from(world.limit());
        for millis in 1..=1000 {
            let now = world.now.plus(Duration::from_millis(millis));
            world.adaptive.record(Sample::TimedOut, 60, RANGE, now);
        }
        let expected = before * ON_TIMEOUT.powi(10);
        assert!(
            (f64::from(world.limit()) - expected).abs() <= expected * 0.12,
            "{}",
            world.limit()
        );
    }

    #[test]
    fn nothing_but_timeouts_still_lowers_the_limit_to_its_lowest() {
        let adaptive = Adaptive::new();
        for step in 0..200 {
            adaptive.record(Sample::TimedOut, 500, RANGE, at(step * 100));
        }
        assert_eq!(adaptive.limit(RANGE), 10);
    }

    #[test]
    fn failing_fast_earns_nothing() {
        let adaptive = Adaptive::new();
        for step in 0..1000 {
            adaptive.record(Sample::Failed, 500, RANGE, at(step * 10));
        }
        assert_eq!(adaptive.readings(RANGE).short, Duration::ZERO);
        assert_eq!(adaptive.limit(RANGE), 2000);
    }

    #[test]
    fn a_reload_moves_the_range_at_once() {
        let mut world = World::new(10, 1000);
        world.run(60, 60);
        assert_eq!(world.adaptive.limit(Range { min: 500, max: 900 }), 500);
        assert_eq!(world.adaptive.limit(Range { min: 1, max: 7 }), 7);
        assert_eq!(world.adaptive.limit(Range { min: 9, max: 3 }), 9);
    }

    #[test]
    fn readings_say_what_was_seen() {
        let mut world = World::new(10, 1000);
        world.run(60, 60);
        let readings = world.adaptive.readings(RANGE);
        assert_eq!((readings.limit, readings.gradient), (120, 1.0));
        for seen in [readings.short, readings.long] {
            assert!((0.0093..0.0107).contains(&seen.as_secs_f64()), "{seen:?}");
        }
    }

    #[test]
    fn scenario_45_threads_record_together_and_one_of_them_updates() {
        let adaptive = Adaptive::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..50_000u64 {
                        let sample = Sample::Answered(Duration::from_micros(9_900 + step % 200));
                        adaptive.record(sample, 100, RANGE, Moment::from_nanos(step * 100_000));
                    }
                });
            }
        });
        let memory = adaptive.memory.into_inner().unwrap();
        assert_eq!(memory.slots.len(), SLOTS);
        let sum: u64 = memory.slots.iter().map(Counts::count).sum();
        assert_eq!(sum, memory.window.count());
        let limit = f32::from_bits(adaptive.limit.into_inner());
        // Five seconds: 50 updates at the most, of which the first ten fill the window.
        assert!((200.0..=201.0).contains(&limit), "{limit}");
    }

    proptest! {
        #[test]
        fn the_limit_stays_in_its_range_whatever_is_seen(
            steps in proptest::collection::vec((0u8..8, 0u64..5_000_000, 0u32..5000, 0u64..300), 1..400),
        ) {
            let adaptive = Adaptive::new();
            let mut now = Moment::ZERO;
            for (kind, micros, in_flight, gap) in steps {
                now = now.plus(Duration::from_millis(gap));
                let sample = match kind {
                    0 => Sample::TimedOut,
                    1 => Sample::Failed,
                    _ => Sample::Answered(Duration::from_micros(micros)),
                };
                adaptive.record(sample, in_flight, RANGE, now);
                let readings = adaptive.readings(RANGE);
                prop_assert!((RANGE.min..=RANGE.max).contains(&readings.limit));
                prop_assert!((0.5..=1.0).contains(&readings.gradient), "{:?}", readings);
            }
        }
    }
}
