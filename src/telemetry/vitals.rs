//! Vitals: what was last measured about this process, in one place for everybody who acts on it.
//!
//! The sampler (`app/pressure.rs`) writes once per [`SAMPLE`]; workers only say that they are awake ([`Vitals::awake`]).
//! Reading is one load per value and never waits. Shares are of a limit that may not exist: then they are 0.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::self_health::Score;

use super::cells::WorkerId;

/// How often the process is looked at.
pub const SAMPLE: Duration = Duration::from_millis(250);

/// How often a worker says that it is awake.
pub const AWAKE: Duration = Duration::from_millis(100);

/// One look at the process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// How late the latest loop was, of the workers and of the control runtime, since the look before.
    pub lag: Duration,
    /// Share of the time in which the kernel withheld the CPU, over the last second.
    pub throttled: f32,
    /// Share of the memory limit that is in use.
    pub memory: f32,
    /// Share of the descriptors that is in use.
    pub descriptors: f32,
}

/// The last reading, and the score that follows from all of them.
#[derive(Debug)]
pub struct Vitals {
    score: AtomicU8,
    /// Nanoseconds.
    lag: AtomicU64,
    /// Bits of an `f32`, as the next two.
    throttled: AtomicU32,
    memory: AtomicU32,
    descriptors: AtomicU32,
    loops: Box<[Loop]>,
}

/// How punctual one worker is.
#[derive(Debug, Default)]
struct Loop {
    /// When it was last awake, in nanoseconds; 0 before it began.
    awake: AtomicU64,
    /// How late it was at most since that was last asked, in nanoseconds.
    late: AtomicU64,
}

// Ordering (all of the following): Relaxed; each value stands alone, and one that is a moment old is as good.
impl Vitals {
    /// Of a process with this many workers, that is well.
    pub fn new(workers: usize) -> Self {
        Self {
            score: AtomicU8::new(0),
            lag: AtomicU64::new(0),
            throttled: AtomicU32::new(0),
            memory: AtomicU32::new(0),
            descriptors: AtomicU32::new(0),
            loops: (0..workers).map(|_| Loop::default()).collect(),
        }
    }

    /// How far our own clock may be trusted.
    pub fn score(&self) -> Score {
        Score::new(self.score.load(Ordering::Relaxed))
    }

    /// The last reading.
    pub fn reading(&self) -> Reading {
        let share = |bits: &AtomicU32| f32::from_bits(bits.load(Ordering::Relaxed));
        Reading {
            lag: Duration::from_nanos(self.lag.load(Ordering::Relaxed)),
            throttled: share(&self.throttled),
            memory: share(&self.memory),
            descriptors: share(&self.descriptors),
        }
    }

    /// A worker is awake, `late` after it wanted to be. To be said every [`AWAKE`].
    pub fn awake(&self, worker: WorkerId, late: Duration, now: Moment) {
        if let Some(known) = self.loops.get(worker.index()) {
            known.awake.store(now.as_nanos(), Ordering::Relaxed);
            let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
            known.late.fetch_max(late, Ordering::Relaxed);
        }
    }

    /// How late the latest worker was since this was last asked; one that is stuck right now is as late as that.
    pub fn lateness(&self, now: Moment) -> Duration {
        let late = self.loops.iter().map(|known| {
            let was = Duration::from_nanos(known.late.swap(0, Ordering::Relaxed));
            match known.awake.load(Ordering::Relaxed) {
                0 => was,
                awake => was.max(now.since(Moment::from_nanos(awake)).saturating_sub(AWAKE)),
            }
        });
        late.max().unwrap_or_default()
    }

    /// Publishes a reading.
    pub fn publish(&self, reading: &Reading) {
        let lag = u64::try_from(reading.lag.as_nanos()).unwrap_or(u64::MAX);
        self.lag.store(lag, Ordering::Relaxed);
        let share = |bits: &AtomicU32, share: f32| bits.store(share.to_bits(), Ordering::Relaxed);
        share(&self.throttled, reading.throttled);
        share(&self.memory, reading.memory);
        share(&self.descriptors, reading.descriptors);
    }

    /// Publishes the score.
    pub fn set_score(&self, score: Score) {
        self.score.store(score.value(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn the_latest_worker_counts_also_while_it_is_stuck() {
        let vitals = Vitals::new(2);
        assert_eq!(vitals.lateness(at(5_000)), Duration::ZERO, "not begun");
        vitals.awake(WorkerId::new(0), Duration::from_millis(3), at(1_000));
        vitals.awake(WorkerId::new(1), Duration::from_millis(70), at(1_000));
        assert_eq!(vitals.lateness(at(1_010)), Duration::from_millis(70));
        vitals.awake(WorkerId::new(0), Duration::ZERO, at(1_100));
        vitals.awake(WorkerId::new(1), Duration::ZERO, at(1_100));
        assert_eq!(vitals.lateness(at(1_150)), Duration::ZERO, "asked since");
        vitals.awake(WorkerId::new(0), Duration::ZERO, at(3_000));
        assert_eq!(vitals.lateness(at(3_000)), Duration::from_millis(1_800), "stuck");
        vitals.awake(WorkerId::CONTROL, Duration::from_secs(9), at(3_000));
        assert_eq!(vitals.lateness(at(3_000)), Duration::from_millis(1_800));
    }

    #[test]
    fn what_is_published_is_read() {
        let vitals = Vitals::new(0);
        assert_eq!(
            (vitals.reading(), vitals.score()),
            (Reading::default(), Score::WELL)
        );
        let reading = Reading {
            lag: Duration::from_millis(20),
            throttled: 0.5,
            memory: 0.25,
            descriptors: 0.125,
        };
        vitals.publish(&reading);
        vitals.set_score(Score::SUSPENDING);
        assert_eq!((vitals.reading(), vitals.score()), (reading, Score::SUSPENDING));
    }
}
