//! Idle: how long an endpoint lets a connection lie before it closes it.
//!
//! Who sends on a connection at the moment at which the other side closes it gets an error that is nobody's fault, the
//! largest family of complaints about proxies. The cure is to close first, and for that one has to know when the other
//! would. Some endpoints say so (`Keep-Alive: timeout=N`); from the others it is learned: a connection that was found
//! closed after lying for some time was closed by a timer. One closed connection proves nothing, because a restart
//! closes them all, so a second one of about the same age is waited for. What was learned is slowly forgotten again, or
//! one unlucky hour would last for ever.
//!
//! What must stay true: the limit is never below [`LEAST`], and never longer than what the endpoint itself has said.

use std::time::Duration;

use crate::moment::Moment;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Before anything is known: most servers close after five seconds or more.
pub const START: Duration = Duration::from_secs(4);
/// No limit is shorter, whatever was seen.
pub const LEAST: Duration = Duration::from_millis(250);
/// No limit is longer, whatever the endpoint says.
pub const MOST: Duration = Duration::from_secs(55);
/// The part of a lifetime that is used: our clock and theirs do not start together.
const SAFE: f64 = 0.8;
/// Two lifetimes belong to one timer if the shorter is at least this part of the longer.
const ALIKE: f64 = 0.7;
/// What was learned grows by [`GROWTH`] in this time.
const HOUR: Duration = Duration::from_secs(3600);
const GROWTH: f64 = 1.1;

/// What is known about one endpoint, shared by all threads.
#[derive(Debug)]
pub struct IdleLimit {
    /// Milliseconds that the endpoint has said, less a second; 0 for nothing.
    said: AtomicU32,
    /// Seconds of the moment above, milliseconds that were learned then below; 0 for nothing.
    learned: AtomicU64,
    /// Milliseconds after which a connection was last found closed; 0 for never.
    suspect: AtomicU32,
}

/// What is known, in a form that another process can take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// What the endpoint has said, less a second.
    pub said: Option<Duration>,
    /// What was learned, as it is now.
    pub learned: Option<Duration>,
}

impl IdleLimit {
    /// Nothing known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            said: AtomicU32::new(0),
            learned: AtomicU64::new(0),
            suspect: AtomicU32::new(0),
        }
    }

    // Ordering (all of the following): Relaxed; each word stands alone, and a limit may be a moment old.

    /// How long a connection may lie idle.
    #[must_use]
    pub fn limit(&self, now: Moment) -> Duration {
        let said = match self.said.load(Ordering::Relaxed) {
            0 => START,
            millis => Duration::from_millis(u64::from(millis)),
        };
        let limit = match self.learned.load(Ordering::Relaxed) {
            0 => said,
            word => grown(word, now).min(said),
        };
        limit.clamp(LEAST, MOST)
    }

    /// What another process has to know.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        let (said, learned) = (
            self.said.load(Ordering::Relaxed),
            self.learned.load(Ordering::Relaxed),
        );
        Saved {
            said: (said > 0).then(|| Duration::from_millis(u64::from(said))),
            learned: (learned > 0).then(|| grown(learned, now)),
        }
    }

    /// What another process knew.
    #[must_use]
    pub fn restored(saved: Saved, now: Moment) -> Self {
        let millis = |known: Duration| u32::try_from(known.as_millis()).unwrap_or(u32::MAX);
        let limit = Self::new();
        limit.said.store(saved.said.map_or(0, millis), Ordering::Relaxed);
        if let Some(learned) = saved.learned {
            limit.learn(learned.clamp(LEAST, MOST), now);
        }
        limit
    }

    /// The endpoint says how long it keeps connections (`Keep-Alive: timeout=N`).
    pub fn says(&self, seconds: u64) {
        // A second less than promised: the clock started earlier there.
        let millis = seconds.saturating_sub(1).saturating_mul(1000).max(500);
        let millis = u32::try_from(millis).unwrap_or(u32::MAX);
        if self.said.load(Ordering::Relaxed) != millis {
            self.said.store(millis, Ordering::Relaxed);
        }
    }

    /// A connection was found closed after it had been idle for `lay`.
    pub fn closed_after(&self, lay: Duration, now: Moment) {
        let lay = u32::try_from(lay.as_millis()).unwrap_or(u32::MAX).max(1);
        let before = self.suspect.swap(lay, Ordering::Relaxed);
        let (less, more) = (lay.min(before), lay.max(before));
        if f64::from(less) < f64::from(more) * ALIKE {
            return;
        }
        let limit = Duration::from_millis(u64::from(less)).mul_f64(SAFE).max(LEAST);
        if limit < self.limit(now) {
            self.learn(limit, now);
        }
    }

    fn learn(&self, limit: Duration, now: Moment) {
        let seconds = now.since(Moment::ZERO).as_secs().min(u64::from(u32::MAX));
        self.learned
            .store(seconds << 32 | limit.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Default for IdleLimit {
    fn default() -> Self {
        Self::new()
    }
}

fn grown(word: u64, now: Moment) -> Duration {
    let since = now.since(Moment::ZERO).as_secs().saturating_sub(word >> 32);
    let hours = since as f64 / HOUR.as_secs_f64();
    let millis = (word & u64::from(u32::MAX)) as f64 * GROWTH.powf(hours);
    Duration::from_millis((millis as u64).min(MOST.as_millis() as u64))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_was_learned_survives_the_process() {
        let old = IdleLimit::new();
        assert_eq!(old.save(at(5)), Saved::default());
        old.says(30);
        assert_eq!(
            IdleLimit::restored(old.save(at(5)), at(900)).limit(at(900)),
            ms(29_000)
        );
        old.closed_after(ms(2_000), at(5));
        old.closed_after(ms(2_000), at(5));
        let new = IdleLimit::restored(old.save(at(5)), at(900));
        assert_eq!((old.limit(at(5)), new.limit(at(900))), (ms(1_600), ms(1_600)));
        for nonsense in [Duration::ZERO, Duration::MAX] {
            let saved = Saved {
                said: Some(nonsense),
                learned: Some(nonsense),
            };
            let limit = IdleLimit::restored(saved, at(1)).limit(at(1));
            assert!((LEAST..=MOST).contains(&limit), "{limit:?}");
        }
    }

    #[test]
    fn what_the_endpoint_says_is_kept_to_with_a_second_to_spare() {
        let idle = IdleLimit::new();
        assert_eq!(idle.limit(at(0)), START);
        for (says, limit) in [
            (60, MOST),
            (21, ms(20_000)),
            (2, ms(1000)),
            (1, ms(500)),
            (0, ms(500)),
            (u64::MAX, MOST),
        ] {
            idle.says(says);
            assert_eq!(idle.limit(at(0)), limit, "{says}");
        }
    }

    #[test]
    fn two_connections_closed_at_the_same_age_show_a_timer() {
        let idle = IdleLimit::new();
        idle.closed_after(ms(1000), at(1));
        assert_eq!(idle.limit(at(1)), START, "one may be a restart");
        idle.closed_after(ms(1200), at(2));
        assert_eq!(idle.limit(at(2)), ms(800));
        idle.closed_after(ms(3000), at(3));
        idle.closed_after(ms(3000), at(3));
        assert_eq!(idle.limit(at(3)), ms(800), "a later one is no news");
        idle.says(60);
        assert_eq!(
            idle.limit(at(3)),
            ms(800),
            "what was seen counts, not what is promised"
        );
        idle.closed_after(ms(2), at(4));
        idle.closed_after(ms(2), at(4));
        assert_eq!(idle.limit(at(4)), LEAST);
    }

    #[test]
    fn a_restart_teaches_nothing() {
        let idle = IdleLimit::new();
        for age in [3900, 2500, 1600, 1000, 600, 300, 100, 5] {
            idle.closed_after(ms(age), at(1));
        }
        assert_eq!(idle.limit(at(1)), START);
    }

    #[test]
    fn what_was_learned_is_slowly_forgotten() {
        let idle = IdleLimit::new();
        idle.closed_after(ms(1000), at(10));
        idle.closed_after(ms(1000), at(10));
        assert_eq!(idle.limit(at(10)), ms(800));
        let hour = idle.limit(at(3610));
        assert!(hour > ms(879) && hour < ms(881), "{hour:?}");
        assert_eq!(idle.limit(at(3600 * 24 * 30)), START);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_two_workers_that_find_a_closed_connection_learn_from_each_other() {
        loom::model(|| {
            let idle = Arc::new(IdleLimit::new());
            let now = Moment::ZERO.plus(Duration::from_secs(60));
            let other = Arc::clone(&idle);
            let thread = thread::spawn(move || other.closed_after(Duration::from_millis(1000), now));
            idle.closed_after(Duration::from_millis(1100), now);
            thread.join().unwrap();
            // Whoever was second has met the first.
            assert_eq!(idle.limit(now), Duration::from_millis(800));
        });
    }
}
