//! Shed: who is refused first when there is too much, and what the proxy stops doing when it is itself in danger.
//!
//! *Too much for a limit* is a question of order. Each [`Priority`] may fill its own part of the same limit: low ones 70 %,
//! normal ones 90, high ones 100, critical ones 110. So the last places are kept for those who matter, without a queue per
//! class and without measuring anything. A retry counts one class lower: it is the second time that somebody asks.
//!
//! *Too much for the process* is a question of survival: memory, file descriptors, and how late our own loop is. The worst
//! of them gives a [`Level`]; each level gives up more of what clients can do without. Levels rise at once and fall late:
//! a level is left downwards after [`DWELL`] at the earliest, and only when the sample is clearly below where it began,
//! by 5 points of memory and descriptors or by half of the lag (lag is noisier than a gauge).
//!
//! What must stay true: critical and high requests are never shed by a level, only by a full limit; whatever a level
//! forbids, every higher one forbids too.

use std::time::Duration;

use crate::{
    dice::Dice,
    moment::Moment,
    sync::{AtomicU32, Ordering},
};

/// How much a request matters. Ordered: the less important is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Shed first.
    Low,
    /// What nobody said anything about.
    #[default]
    Normal,
    /// Shed only by a full limit.
    High,
    /// May even go a tenth above the limit.
    Critical,
}

impl Priority {
    /// Every priority, the least important first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// The word in configuration, headers and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// The priority of that word, as a trusted `x-bellwether-priority` carries it; `None` for any other.
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.name().as_bytes() == word)
    }

    /// The priority of attempt number `attempt`, counted from 1: retries count one class lower.
    #[must_use]
    pub const fn of_attempt(self, attempt: u32) -> Self {
        match self {
            _ if attempt <= 1 => self,
            Self::Critical => Self::High,
            Self::High => Self::Normal,
            Self::Normal | Self::Low => Self::Low,
        }
    }

    /// The part of `limit` that requests of this priority may fill, to be used as the limit of
    /// [`Limit::try_acquire`](crate::limit::Limit::try_acquire).
    ///
    /// Parts are rounded towards the limit, so that a limit of one is still one for everybody.
    #[must_use]
    pub const fn share(self, limit: u32) -> u32 {
        let limit = limit as u64;
        let share = match self {
            Self::Low => (limit * 70).div_ceil(100),
            Self::Normal => (limit * 90).div_ceil(100),
            Self::High => limit,
            Self::Critical => limit * 110 / 100,
        };
        if share > u32::MAX as u64 {
            u32::MAX
        } else {
            share as u32
        }
    }
}

/// How much danger the process is in. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// None.
    #[default]
    Normal,
    /// Extra work is given up: hedges, retries, mirrors, big replay buffers, long idle times.
    Elevated,
    /// Less important work is given up: low requests, then normal ones.
    High,
    /// New work is given up: no connection is accepted, the largest streams are reset.
    Critical,
}

impl Level {
    /// Every level, the best first.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Elevated, Self::High, Self::Critical];

    /// The word in events and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// Whether hedges may be sent.
    #[must_use]
    pub const fn allows_hedges(self) -> bool {
        matches!(self, Self::Normal)
    }

    /// Whether a policy may ask for another attempt.
    #[must_use]
    pub const fn allows_retries(self) -> bool {
        matches!(self, Self::Normal)
    }

    /// Whether requests may be mirrored.
    #[must_use]
    pub const fn allows_mirrors(self) -> bool {
        matches!(self, Self::Normal)
    }

    /// Whether requests may be traced.
    #[must_use]
    pub const fn allows_tracing(self) -> bool {
        matches!(self, Self::Normal)
    }

    /// The size of a replay buffer whose setting is `size`, in bytes.
    #[must_use]
    pub fn replay_size(self, size: u64) -> u64 {
        match self {
            Self::Normal => size,
            Self::Elevated | Self::High | Self::Critical => size.min(REPLAY_IN_NEED),
        }
    }

    /// The idle timeout whose setting is `timeout`.
    #[must_use]
    pub fn idle_timeout(self, timeout: Duration) -> Duration {
        match self {
            Self::Normal => timeout,
            Self::Elevated | Self::High | Self::Critical => timeout / 2,
        }
    }

    /// Whether requests above a limit may wait for a place.
    #[must_use]
    pub const fn allows_queueing(self) -> bool {
        matches!(self, Self::Normal | Self::Elevated)
    }

    /// Whether a connection of a client stays open after this answer. Chance, so that not all of them come back at once.
    #[must_use]
    pub fn keeps_alive(self, dice: &mut Dice) -> bool {
        match self {
            Self::Normal | Self::Elevated => true,
            Self::High => !dice.chance(CLOSING),
            Self::Critical => false,
        }
    }

    /// Whether listeners accept connections; those of operators and probes always do.
    #[must_use]
    pub const fn allows_accepting(self) -> bool {
        !matches!(self, Self::Critical)
    }

    /// Whether the largest streams are to be reset, and HTTP/2 clients sent away.
    #[must_use]
    pub const fn resets_streams(self) -> bool {
        matches!(self, Self::Critical)
    }
}

/// What was measured about the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The share of its memory limit that is in use; 0 without a limit.
    pub memory: f64,
    /// How late the workers' loops are, 99th percentile.
    pub lag: Duration,
    /// The larger of the shares of descriptors and of connections that are in use.
    pub descriptors: f64,
}

impl Sample {
    /// A process that does nothing.
    pub const IDLE: Self = Self {
        memory: 0.0,
        lag: Duration::ZERO,
        descriptors: 0.0,
    };

    /// The level of each resource, where levels begin `points` below their share and at `lag_part` of their lag.
    fn levels(&self, points: f64, lag_part: f64) -> [(Cause, Level); 3] {
        let level = |reached: &dyn Fn(&Threshold) -> bool| {
            THRESHOLDS
                .iter()
                .rev()
                .find(|threshold| reached(threshold))
                .map_or(Level::Normal, |threshold| threshold.level)
        };
        [
            (Cause::Memory, level(&|t| self.memory >= t.memory - points)),
            (Cause::Lag, level(&|t| self.lag >= t.lag.mul_f64(lag_part))),
            (
                Cause::Descriptors,
                level(&|t| self.descriptors >= t.descriptors - points),
            ),
        ]
    }

    /// The highest level and who asks for it; on a tie the first of the table.
    fn worst(&self, points: f64, lag_part: f64) -> (Cause, Level) {
        let [first, rest @ ..] = self.levels(points, lag_part);
        rest.into_iter()
            .fold(first, |worst, next| if next.1 > worst.1 { next } else { worst })
    }

    /// How far the worst resource has come from `High` to `Critical`, 0 to 1.
    fn pressure(&self) -> f64 {
        let [_, high, critical] = &THRESHOLDS;
        let part = |value: f64, low: f64, high: f64| ((value - low) / (high - low)).clamp(0.0, 1.0);
        part(self.memory, high.memory, critical.memory)
            .max(part(
                self.lag.as_secs_f64(),
                high.lag.as_secs_f64(),
                critical.lag.as_secs_f64(),
            ))
            .max(part(self.descriptors, high.descriptors, critical.descriptors))
    }
}

/// Which resource asks for a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Memory.
    Memory,
    /// The lag of the workers' loops.
    Lag,
    /// File descriptors, or connections.
    Descriptors,
}

impl Cause {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Lag => "lag",
            Self::Descriptors => "descriptors",
        }
    }
}

/// The level over time: one per process, owned by whoever measures.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    level: Level,
    since: Moment,
    pressure: f64,
}

impl Guard {
    /// No danger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample in, and says what changed.
    pub fn observe(&mut self, sample: &Sample, now: Moment) -> Option<Change> {
        self.pressure = sample.pressure();
        let (cause, reached) = sample.worst(0.0, 1.0);
        let next = if reached > self.level {
            reached
        } else {
            // Levels whose lower border has not been left. At most the present one: the border of the next is above it.
            let (_, held) = sample.worst(HYSTERESIS, 0.5);
            let held = held.min(self.level);
            if held < self.level && now.since(self.since) >= DWELL {
                held
            } else {
                self.level
            }
        };
        if next == self.level {
            return None;
        }
        let change = Change {
            from: self.level,
            to: next,
            cause,
        };
        self.level = next;
        self.since = now;
        Some(change)
    }

    /// The present state, for [`Overload::post`].
    #[must_use]
    pub fn danger(&self) -> Danger {
        Danger {
            level: self.level,
            pressure: (self.pressure * 255.0) as u8,
        }
    }
}

/// A level was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The level before.
    pub from: Level,
    /// The level now.
    pub to: Level,
    /// The resource that is worst now.
    pub cause: Cause,
}

/// A level, and how near the next one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Danger {
    /// The level.
    pub level: Level,
    /// The way from high to critical, 0 to 255.
    pressure: u8,
}

impl Danger {
    /// Whether a request may be worked on at all.
    ///
    /// On level high low ones are refused, and of the normal ones a part that grows with the danger: refusing all of them
    /// would empty the process and fill it again, once a second.
    #[must_use]
    pub fn admits(self, priority: Priority, dice: &mut Dice) -> bool {
        match (self.level, priority) {
            (Level::Normal | Level::Elevated, _) | (_, Priority::High | Priority::Critical) => true,
            (Level::High | Level::Critical, Priority::Low) | (Level::Critical, Priority::Normal) => false,
            (Level::High, Priority::Normal) => !dice.chance(f64::from(self.pressure) / 255.0),
        }
    }
}

/// The present danger, where every worker can read it.
#[derive(Debug)]
pub struct Overload(AtomicU32);

impl Overload {
    /// No danger.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Tells everybody.
    pub fn post(&self, danger: Danger) {
        let word = (danger.level as u32) << 8 | u32::from(danger.pressure);
        // Ordering: Relaxed; one word, and a worker that reads it late sheds late.
        self.0.store(word, Ordering::Relaxed);
    }

    /// What was told last.
    #[must_use]
    pub fn danger(&self) -> Danger {
        // Ordering: Relaxed, as above.
        let word = self.0.load(Ordering::Relaxed);
        Danger {
            level: match word >> 8 {
                0 => Level::Normal,
                1 => Level::Elevated,
                2 => Level::High,
                _ => Level::Critical,
            },
            pressure: (word & 0xff) as u8,
        }
    }
}

impl Default for Overload {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a level begins.
struct Threshold {
    level: Level,
    memory: f64,
    lag: Duration,
    descriptors: f64,
}

const THRESHOLDS: [Threshold; 3] = [
    Threshold {
        level: Level::Elevated,
        memory: 0.80,
        lag: Duration::from_millis(20),
        descriptors: 0.80,
    },
    Threshold {
        level: Level::High,
        memory: 0.90,
        lag: Duration::from_millis(100),
        descriptors: 0.90,
    },
    Threshold {
        level: Level::Critical,
        memory: 0.95,
        lag: Duration::from_millis(500),
        descriptors: 0.97,
    },
];

/// A share must fall this far below where its level begins.
const HYSTERESIS: f64 = 0.05;

/// A level is left downwards after this long at the earliest.
pub const DWELL: Duration = Duration::from_secs(1);

/// The size of replay buffers from level elevated on.
const REPLAY_IN_NEED: u64 = 16 * 1024;

/// The share of answers on level high after which the connection is closed.
const CLOSING: f64 = 0.2;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::limit::Limit;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn memory(memory: f64) -> Sample {
        Sample {
            memory,
            ..Sample::IDLE
        }
    }

    fn lag(millis: u64) -> Sample {
        Sample {
            lag: Duration::from_millis(millis),
            ..Sample::IDLE
        }
    }

    fn descriptors(descriptors: f64) -> Sample {
        Sample {
            descriptors,
            ..Sample::IDLE
        }
    }

    fn level_of(sample: Sample) -> Level {
        let mut guard = Guard::new();
        guard.observe(&sample, at(0));
        guard.danger().level
    }

    fn dangers() -> impl Iterator<Item = Danger> {
        Level::ALL
            .into_iter()
            .flat_map(|level| [0, 128, 255].map(|pressure| Danger { level, pressure }))
    }

    #[test]
    fn each_priority_fills_its_part_of_the_limit() {
        let shares = |limit| Priority::ALL.map(|priority| priority.share(limit));
        assert_eq!(shares(100), [70, 90, 100, 110]);
        assert_eq!(shares(1), [1, 1, 1, 1]);
        assert_eq!(shares(5), [4, 5, 5, 5]);
        assert_eq!(shares(0), [0, 0, 0, 0]);
        assert_eq!(shares(u32::MAX)[3], u32::MAX);
    }

    #[test]
    fn the_least_important_are_refused_first() {
        let limit = Limit::new();
        let mut admitted = [0; 4];
        for _ in 0..200 {
            for (index, priority) in Priority::ALL.into_iter().enumerate() {
                admitted[index] += u32::from(limit.try_acquire(priority.share(100)));
            }
        }
        assert_eq!(limit.in_flight(), 110);
        assert!(admitted.windows(2).all(|pair| pair[0] < pair[1]), "{admitted:?}");
    }

    #[test]
    fn a_retry_counts_one_class_lower() {
        assert_eq!(Priority::ALL.map(|p| p.of_attempt(1)), Priority::ALL);
        assert_eq!(
            Priority::ALL.map(|p| p.of_attempt(2)),
            [Priority::Low, Priority::Low, Priority::Normal, Priority::High]
        );
        assert_eq!(Priority::Critical.of_attempt(3), Priority::High);
    }

    #[test]
    fn words_are_read_back() {
        for priority in Priority::ALL {
            assert_eq!(Priority::parse(priority.name().as_bytes()), Some(priority));
        }
        assert_eq!(Priority::parse(b"High"), None);
        assert_eq!(Priority::parse(b""), None);
    }

    #[test]
    fn levels_begin_where_the_table_says() {
        use Level::{Critical, Elevated, High, Normal};
        let table = [
            (memory(0.79), Normal),
            (memory(0.80), Elevated),
            (memory(0.90), High),
            (memory(0.95), Critical),
            (lag(19), Normal),
            (lag(20), Elevated),
            (lag(100), High),
            (lag(500), Critical),
            (descriptors(0.79), Normal),
            (descriptors(0.80), Elevated),
            (descriptors(0.95), High),
            (descriptors(0.97), Critical),
        ];
        for (sample, level) in table {
            assert_eq!(level_of(sample), level, "{sample:?}");
        }
    }

    #[test]
    fn the_worst_resource_decides_and_is_named() {
        let mut guard = Guard::new();
        let sample = Sample {
            memory: 0.85,
            lag: Duration::from_millis(150),
            descriptors: 0.1,
        };
        assert_eq!(
            guard.observe(&sample, at(0)),
            Some(Change {
                from: Level::Normal,
                to: Level::High,
                cause: Cause::Lag
            })
        );
    }

    #[test]
    fn a_level_rises_at_once_and_falls_late() {
        let mut guard = Guard::new();
        assert!(guard.observe(&memory(0.81), at(0)).is_some());
        assert!(guard.observe(&memory(0.96), at(1)).is_some());
        assert_eq!(guard.observe(&Sample::IDLE, at(1000)), None);
        let change = guard.observe(&Sample::IDLE, at(1001)).unwrap();
        assert_eq!((change.from, change.to), (Level::Critical, Level::Normal));
    }

    #[test]
    fn a_level_falls_only_clearly_below_its_beginning() {
        let mut guard = Guard::new();
        guard.observe(&memory(0.91), at(0));
        assert_eq!(guard.observe(&memory(0.86), at(5000)), None);
        let change = guard.observe(&memory(0.84), at(6000)).unwrap();
        assert_eq!(change.to, Level::Elevated);
        assert_eq!(guard.observe(&memory(0.76), at(9000)), None);
        assert_eq!(guard.observe(&memory(0.74), at(9000)).unwrap().to, Level::Normal);

        let mut guard = Guard::new();
        guard.observe(&lag(120), at(0));
        assert_eq!(guard.observe(&lag(50), at(5000)), None);
        assert_eq!(guard.observe(&lag(49), at(5000)).unwrap().to, Level::Elevated);
    }

    #[test]
    fn what_a_level_forbids_every_higher_one_forbids() {
        let allowed = |level: Level| {
            [
                level.allows_hedges(),
                level.allows_retries(),
                level.allows_mirrors(),
                level.allows_tracing(),
                level.replay_size(64 * 1024) == 64 * 1024,
                level.idle_timeout(DWELL) == DWELL,
                level.allows_queueing(),
                level.allows_accepting(),
                !level.resets_streams(),
            ]
        };
        assert_eq!(allowed(Level::Normal), [true; 9]);
        assert_eq!(allowed(Level::Critical), [false; 9]);
        for pair in Level::ALL.windows(2) {
            let (lower, higher) = (allowed(pair[0]), allowed(pair[1]));
            assert!(lower.iter().zip(higher).all(|(lower, higher)| *lower || !higher));
        }
        assert_eq!(Level::Elevated.replay_size(100), 100);
    }

    #[test]
    fn clients_are_sent_away_a_few_at_a_time() {
        let mut dice = Dice::new(1);
        let mut kept = |level: Level| (0..1000).filter(|_| level.keeps_alive(&mut dice)).count();
        assert_eq!((kept(Level::Elevated), kept(Level::Critical)), (1000, 0));
        assert!((750..850).contains(&kept(Level::High)));
    }

    #[test]
    fn low_ones_go_first_and_then_more_and_more_normal_ones() {
        let mut dice = Dice::new(1);
        let mut share = |sample: Sample, priority| {
            let mut guard = Guard::new();
            guard.observe(&sample, at(0));
            (0..1000)
                .filter(|_| guard.danger().admits(priority, &mut dice))
                .count()
        };
        assert_eq!(share(memory(0.89), Priority::Low), 1000);
        assert_eq!(share(memory(0.90), Priority::Low), 0);
        assert!(share(memory(0.901), Priority::Normal) > 950);
        assert!((400..600).contains(&share(memory(0.925), Priority::Normal)));
        assert!((400..600).contains(&share(lag(300), Priority::Normal)));
        assert_eq!(share(memory(0.95), Priority::Normal), 0);
        assert_eq!(share(memory(1.5), Priority::High), 1000);
    }

    #[test]
    fn what_was_posted_is_read() {
        let overload = Overload::new();
        assert_eq!(overload.danger(), Danger::default());
        for danger in dangers() {
            overload.post(danger);
            assert_eq!(overload.danger(), danger);
        }
    }

    proptest! {
        #[test]
        fn a_level_is_never_below_what_the_sample_asks_and_stays_a_second(
            samples in proptest::collection::vec((0.5f64..1.1, 0u64..700, 0.5f64..1.1, 0u64..600), 1..100),
        ) {
            let mut guard = Guard::new();
            let mut now = at(0);
            let mut entered = now;
            for (memory, millis, descriptors, gap) in samples {
                now = now.plus(Duration::from_millis(gap));
                let sample = Sample { memory, lag: Duration::from_millis(millis), descriptors };
                if let Some(change) = guard.observe(&sample, now) {
                    prop_assert!(change.to > change.from || now.since(entered) >= DWELL);
                    entered = now;
                }
                prop_assert!(guard.danger().level >= level_of(sample));
            }
        }

        #[test]
        fn a_more_important_request_is_admitted_wherever_a_lesser_one_is(seed in any::<u64>()) {
            for danger in dangers() {
                let admitted = Priority::ALL.map(|priority| danger.admits(priority, &mut Dice::new(seed)));
                prop_assert!(admitted.windows(2).all(|pair| pair[0] <= pair[1]));
            }
        }
    }
}
