//! Panic: what to do when hardly anybody is available.
//!
//! Detectors err, and an outage of the detector must not be an outage of the service: when nobody is left, requests go to
//! those who were taken out. Envoy panics when half are gone and then sends most traffic to dead hosts of a small
//! cluster; here the default is that none is left (0 %). Even then an endpoint is not brought back that refuses connections
//! right now, nor one that an operator or the endpoint itself took out: those are not errors of a detector. Writes to a leader
//! never panic; that is the caller's to know.
//!
//! Panic is visible: it begins and ends at a moment ([`Panic::observe`]), and ends by itself.

use std::time::Duration;

use crate::arbiter::{Availability, Source};
use crate::moment::Moment;
use crate::pulse::Pulse;
use crate::sync::{AtomicU64, Ordering};

/// When to panic, and what to do then.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    /// An available share at or below this is panic, 0.0 to 1.0.
    pub threshold: f64,
    /// Whom to ask then.
    pub to: To,
}

/// Whom to ask in panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum To {
    /// Everybody who does not refuse connections right now.
    #[default]
    All,
    /// Nobody: requests are refused.
    Reject,
}

impl To {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Reject => "reject",
        }
    }
}

impl Settings {
    /// Whether this is panic: of `total` endpoints, without those that people took out, `available` are. Nobody panics
    /// about nothing.
    #[must_use]
    pub fn is_panic(&self, available: usize, total: usize) -> bool {
        total > 0 && available as f64 <= self.threshold * total as f64 + ROUNDING
    }

    /// Whether an endpoint may be asked in panic.
    #[must_use]
    pub fn admits(&self, availability: Availability, pulse: &Pulse, now: Moment) -> bool {
        match self.to {
            To::Reject => availability.is_available(),
            // Who is in service stays in service: nothing took it out.
            To::All if availability.is_available() => true,
            To::All => !is_taken_out(availability) && !pulse.refused_within(REFUSES, now),
        }
    }
}

/// Whether an endpoint is out by somebody's will and not by a detector's verdict. Such an endpoint does not count in the
/// total either.
#[must_use]
pub const fn is_taken_out(availability: Availability) -> bool {
    availability.is_down_by(Source::Discovery)
        || availability.is_down_by(Source::Admin)
        || availability.is_drained_by(Source::Admin)
        || availability.is_down_by(Source::Agent)
}

/// Whether a cluster is in panic; shared by all workers.
#[derive(Debug)]
pub struct Panic {
    /// Since when, in nanoseconds; 0 while it is not.
    since: AtomicU64,
}

/// Panic began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// It has just begun.
    Began,
    /// It has just ended, after this long.
    Ended(Duration),
}

impl Panic {
    /// Of a calm cluster.
    #[must_use]
    pub fn new() -> Self {
        Self {
            since: AtomicU64::new(0),
        }
    }

    /// Notes how it stands. Of the workers that see the same change one is told.
    pub fn observe(&self, settings: &Settings, available: usize, total: usize, now: Moment) -> Option<Edge> {
        // Ordering: Relaxed throughout; the word stands alone.
        let since = self.since.load(Ordering::Relaxed);
        let (next, edge) = match (since, settings.is_panic(available, total)) {
            (0, true) => (now.as_nanos().max(1), Edge::Began),
            (1.., false) => (0, Edge::Ended(now.since(Moment::from_nanos(since)))),
            (0, false) | (1.., true) => return None,
        };
        self.since
            .compare_exchange(since, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            .then_some(edge)
    }

    /// Since when, if it panics.
    #[must_use]
    pub fn since(&self) -> Option<Moment> {
        // Ordering: Relaxed; a lone value.
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }
}

impl Default for Panic {
    fn default() -> Self {
        Self::new()
    }
}

/// Who failed on our side of the connection this recently refuses right now.
const REFUSES: Duration = Duration::from_secs(5);

/// 30 % of ten is three, also in binary.
const ROUNDING: f64 = 1e-9;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::arbiter::{Arbiter, Opinion};
    use crate::outcome::{Origin, Outcome};

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn share(percent: u32) -> Settings {
        Settings {
            threshold: f64::from(percent) / 100.0,
            to: To::All,
        }
    }

    #[test]
    fn by_default_only_nobody_is_too_few() {
        let settings = Settings::default();
        assert!(settings.is_panic(0, 3));
        assert!(!settings.is_panic(1, 100));
        assert!(!settings.is_panic(0, 0), "an empty cluster does not panic");
    }

    #[test]
    fn the_threshold_itself_is_panic() {
        assert!(share(20).is_panic(1, 5));
        assert!(share(30).is_panic(3, 10));
        assert!(!share(20).is_panic(2, 5));
    }

    #[test]
    fn scenario_16_who_refuses_or_was_drained_is_not_asked() {
        let settings = Settings::default();
        let verdict = |source, opinion| {
            let arbiter = Arbiter::new(Moment::ZERO);
            arbiter.set(source, opinion, "test", String::new(), at(0));
            settings.admits(arbiter.availability(), &Pulse::new(), at(10))
        };
        for source in [
            Source::Check,
            Source::Heartbeat,
            Source::Ejection,
            Source::Breaker,
        ] {
            assert!(verdict(source, Opinion::Down), "{source:?} may be wrong");
        }
        assert!(verdict(Source::Agent, Opinion::Draining), "better than nobody");
        assert!(!verdict(Source::Agent, Opinion::Down));
        assert!(!verdict(Source::Admin, Opinion::Down));
        assert!(!verdict(Source::Admin, Opinion::Draining));
        assert!(!verdict(Source::Discovery, Opinion::Down));

        let pulse = Pulse::new();
        pulse.record(Outcome::Failure(Origin::Local), at(10));
        let arbiter = Arbiter::new(Moment::ZERO);
        let serving = arbiter.availability();
        arbiter.set(Source::Check, Opinion::Down, "test", String::new(), at(0));
        let failed = arbiter.availability();
        assert!(!settings.admits(failed, &pulse, at(14)));
        assert!(settings.admits(failed, &pulse, at(15)), "it may have come back");
        assert!(
            settings.admits(serving, &pulse, at(14)),
            "panic takes nobody out of service"
        );
    }

    #[test]
    fn scenario_16_panic_begins_and_ends_once() {
        let panic = Panic::new();
        let settings = Settings::default();
        assert_eq!(panic.observe(&settings, 2, 3, at(1)), None);
        assert_eq!(panic.observe(&settings, 0, 3, at(2)), Some(Edge::Began));
        assert_eq!(panic.observe(&settings, 0, 3, at(3)), None);
        assert_eq!(panic.since(), Some(at(2)));
        let ended = Edge::Ended(Duration::from_secs(4));
        assert_eq!(panic.observe(&settings, 1, 3, at(6)), Some(ended));
        assert_eq!(panic.since(), None);
    }

    #[test]
    fn of_many_workers_one_is_told() {
        let panic = Panic::new();
        let settings = Settings::default();
        let told: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1_000)
                            .filter_map(|_| panic.observe(&settings, 0, 3, at(1)))
                            .count()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("no panic"))
                .sum()
        });
        assert_eq!(told, 1);
    }
}
