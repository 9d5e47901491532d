//! Recent: the last response times of an endpoint, few enough to be looked at one by one.
//!
//! Whether an endpoint has become slow is asked of its *last* answers. A histogram over half a minute answers late: a
//! balancer that avoids slow endpoints sends them so little that the fast answers of before outweigh the slow ones of
//! now until they leave the window. Here every new sample pushes out an old one, so sixty-four answers after a change
//! nothing else is left, and fifteen are enough to tell.
//!
//! What must stay true: a sample and its moment are one word, so no reader sees the time of one with the length of
//! another; samples older than the window, or from before [`Recent::clear`], do not count.

use std::time::Duration;

use crate::moment::Moment;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How many are kept.
pub const SIZE: usize = 64;
/// Bits that a moment is shortened by: ticks of 1.05 ms, which last for 52 days.
const TICK_BITS: u32 = 20;
const EMPTY: u64 = 0;

/// The last [`SIZE`] response times, shared by all threads.
#[derive(Debug)]
pub struct Recent {
    next: AtomicU32,
    /// Ticks of the moment above, microseconds of the sample below.
    samples: [AtomicU64; SIZE],
}

/// A sorted copy of those that count.
#[derive(Debug, Clone)]
pub struct View {
    micros: [u32; SIZE],
    len: usize,
}

impl Recent {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            samples: std::array::from_fn(|_| AtomicU64::new(EMPTY)),
        }
    }

    /// Takes a sample.
    pub fn record(&self, took: Duration, now: Moment) {
        // Ordering: Relaxed here and below; each word stands alone, and two threads that meet after a whole round lose
        // one sample.
        let place = self.next.fetch_add(1, Ordering::Relaxed) as usize % SIZE;
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.samples[place].store(u64::from(tick(now)) << 32 | u64::from(micros), Ordering::Relaxed);
    }

    /// Those of the window before `now`.
    #[must_use]
    pub fn view(&self, window: Duration, now: Moment) -> View {
        let now = tick(now);
        let most = u32::try_from(window.as_nanos() >> TICK_BITS).unwrap_or(u32::MAX);
        let mut view = View {
            micros: [0; SIZE],
            len: 0,
        };
        for sample in &self.samples {
            let word = sample.load(Ordering::Relaxed);
            // One from a clock that was read later than ours is new, not old.
            let age = now.wrapping_sub((word >> 32) as u32) as i32;
            if word != EMPTY && i64::from(age) <= i64::from(most) {
                view.micros[view.len] = word as u32;
                view.len += 1;
            }
        }
        view.micros[..view.len].sort_unstable();
        view
    }

    /// Forgets them all.
    pub fn clear(&self) {
        for sample in &self.samples {
            sample.store(EMPTY, Ordering::Relaxed);
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self::new()
    }
}

impl View {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The least sample that at least `q` of all do not exceed; none if there is none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = (q.clamp(0.0, 1.0) * self.len as f64).ceil() as usize;
        let micros = self.micros[..self.len].get(rank.max(1) - 1)?;
        Some(Duration::from_micros(u64::from(*micros)))
    }

    /// How many are above `bound`.
    #[must_use]
    pub fn above(&self, bound: Duration) -> usize {
        let bound = u32::try_from(bound.as_micros()).unwrap_or(u32::MAX);
        self.len - self.micros[..self.len].partition_point(|micros| *micros <= bound)
    }
}

/// Never 0, so that no sample looks empty.
fn tick(now: Moment) -> u32 {
    ((now.as_nanos() >> TICK_BITS) as u32).max(1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_last_ones_count_and_the_older_ones_are_gone() {
        let recent = Recent::new();
        assert!(recent.view(ms(1000), at(0)).is_empty());
        assert_eq!(recent.view(ms(1000), at(0)).quantile(0.9), None);
        for _ in 0..100 {
            recent.record(ms(10), at(1000));
        }
        assert_eq!(recent.view(ms(1000), at(1000)).len(), SIZE);
        for _ in 0..7 {
            recent.record(ms(800), at(1500));
        }
        let view = recent.view(ms(1000), at(1600));
        assert_eq!(view.quantile(0.9), Some(ms(800)));
        assert_eq!(view.quantile(0.5), Some(ms(10)));
        assert_eq!(
            (view.above(ms(10)), view.above(ms(9)), view.above(ms(800))),
            (7, SIZE, 0)
        );
        let later = recent.view(ms(1000), at(2200));
        assert_eq!(
            (later.len(), later.quantile(0.0)),
            (7, Some(ms(800))),
            "the fast ones are too old"
        );
        recent.clear();
        assert!(recent.view(ms(1000), at(1600)).is_empty());
    }

    #[test]
    fn a_quantile_is_a_sample_that_so_many_do_not_exceed() {
        let recent = Recent::new();
        for n in 1..=10 {
            recent.record(ms(n), at(1));
        }
        let view = recent.view(ms(1000), at(1));
        assert_eq!(
            [0.0, 0.1, 0.11, 0.9, 1.0].map(|q| view.quantile(q)),
            [1, 1, 2, 9, 10].map(|n| Some(ms(n)))
        );
    }

    #[test]
    fn scenario_45_threads_lose_no_more_than_whole_samples() {
        let recent = Recent::new();
        std::thread::scope(|scope| {
            for thread in 1..=4_u64 {
                let recent = &recent;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        recent.record(ms(thread), at(thread * 100));
                    }
                });
            }
        });
        let view = recent.view(ms(10_000), at(500));
        assert_eq!(view.len(), SIZE);
        // Only what was recorded is seen, never a mixture.
        assert!(
            view.micros
                .iter()
                .all(|micros| matches!(micros, 1000 | 2000 | 3000 | 4000))
        );
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_a_reader_sees_whole_samples_and_no_place_is_written_twice_in_a_round() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let recent = Arc::new(Recent::new());
            let other = Arc::clone(&recent);
            let at = |millis| Moment::ZERO.plus(Duration::from_millis(millis));
            let thread = thread::spawn(move || other.record(Duration::from_millis(1), at(100)));
            recent.record(Duration::from_millis(2), at(200));
            thread.join().unwrap();
            let view = recent.view(Duration::from_secs(1), at(200));
            assert_eq!(view.len(), 2);
            assert_eq!(view.quantile(0.5), Some(Duration::from_millis(1)));
            assert_eq!(view.quantile(1.0), Some(Duration::from_millis(2)));
        });
    }
}
