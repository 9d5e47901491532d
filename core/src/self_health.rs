//! Self health: how far we may trust our own clock when we call others late.
//!
//! A process that is starved of CPU finds every endpoint slow, every beat late and every check timed out, and would take
//! a healthy fleet out of service. Memberlist's answer (Lifeguard, Dadgar et al. 2018) is a score of one's own: who misses
//! answers from everybody is probably the sick one. The score stretches everything that suspects by time, and from
//! [`Score::SUSPENDING`] on nobody is ejected any more.
//!
//! What must stay true: without signs of trouble the score falls to zero by itself, so nothing stays suspended.

use std::time::Duration;

/// How unwell this process is, 0 to 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Score(u8);

/// What the last second showed about ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Signs {
    /// How late timers fired.
    pub lag: Duration,
    /// Share of the time in which the kernel withheld the CPU, 0.0 to 1.0.
    pub throttled: f64,
    /// Clusters of which more than half of the endpoints failed on our side of the connection.
    pub failing_clusters: u32,
    /// Memory is short.
    pub memory: Memory,
}

/// Whether memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// There is enough.
    #[default]
    Enough,
    /// The overload guard is at work.
    Short,
}

impl Score {
    /// All is well.
    pub const WELL: Self = Self(0);

    /// From here on nothing is ejected.
    pub const SUSPENDING: Self = Self(4);

    /// The worst.
    pub const WORST: Self = Self(7);

    /// The score `value`, at most [`Score::WORST`].
    #[must_use]
    pub const fn new(value: u8) -> Self {
        if value > Self::WORST.0 {
            Self::WORST
        } else {
            Self(value)
        }
    }

    /// The number, 0 to 7.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }

    /// The score a second later: up by one for each sign of trouble, down by one without any.
    #[must_use]
    pub fn after(self, signs: &Signs) -> Self {
        match signs.count() {
            0 => Self(self.0.saturating_sub(1)),
            signs => Self::new(self.0.saturating_add(signs)),
        }
    }

    /// Whether nothing may be ejected.
    #[must_use]
    pub fn suspends(self) -> bool {
        self >= Self::SUSPENDING
    }

    /// A patience of `length`, stretched by half of itself per point.
    #[must_use]
    pub fn stretch(self, length: Duration) -> Duration {
        length.saturating_add(length.saturating_mul(u32::from(self.0)) / 2)
    }

    /// A number of failures in a row, raised by half of itself per point, rounded up.
    #[must_use]
    pub const fn stretch_count(self, count: u32) -> u32 {
        count.saturating_add(count.saturating_mul(self.0 as u32).div_ceil(2))
    }
}

impl Signs {
    /// How many of the four are beyond what a healthy process shows.
    fn count(&self) -> u8 {
        u8::from(self.lag > LAG)
            + u8::from(self.throttled > THROTTLED)
            + u8::from(self.failing_clusters >= FAILING_CLUSTERS)
            + u8::from(self.memory == Memory::Short)
    }
}

const LAG: Duration = Duration::from_millis(50);
const THROTTLED: f64 = 0.1;
const FAILING_CLUSTERS: u32 = 3;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scenario_15_a_starved_process_suspends_and_recovers_by_itself() {
        let starved = Signs {
            lag: Duration::from_millis(400),
            throttled: 0.95,
            ..Signs::default()
        };
        let mut score = Score::WELL;
        for _ in 0..2 {
            score = score.after(&starved);
        }
        assert!(score.suspends(), "{score:?} after two seconds");
        for _ in 0..10 {
            score = score.after(&starved);
        }
        assert_eq!(score, Score::WORST);
        for _ in 0..7 {
            score = score.after(&Signs::default());
        }
        assert_eq!(score, Score::WELL);
    }

    #[test]
    fn one_cluster_that_fails_is_not_our_fault() {
        let signs = Signs {
            failing_clusters: 2,
            ..Signs::default()
        };
        assert_eq!(Score::WELL.after(&signs), Score::WELL);
    }

    #[test]
    fn patience_grows_by_half_per_point() {
        let second = Duration::from_secs(1);
        assert_eq!(Score::WELL.stretch(second), second);
        assert_eq!(Score::new(1).stretch(second), Duration::from_millis(1500));
        assert_eq!(Score::new(4).stretch(second), Duration::from_secs(3));
        assert_eq!(Score::new(1).stretch_count(3), 5);
        assert_eq!(Score::new(2).stretch_count(3), 6);
    }

    proptest! {
        #[test]
        fn it_stays_in_its_range(start: u8, lags in prop::collection::vec(0u64..200, 0..30)) {
            let mut score = Score::new(start);
            for lag in lags {
                let signs = Signs { lag: Duration::from_millis(lag), ..Signs::default() };
                score = score.after(&signs);
                prop_assert!(score <= Score::WORST);
                prop_assert!(score.stretch(Duration::MAX) == Duration::MAX);
            }
        }
    }
}
