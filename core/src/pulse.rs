//! Pulse: when an endpoint last answered and when it last would not have us.
//!
//! Three decisions need just these two moments: an active check is superfluous while requests are answered, any answer is
//! a sign of life to the heartbeat detector, and a panicking cluster must not ask who refuses connections right now. They
//! are kept whether or not outlier detection is on.
//!
//! A busy endpoint answers thousands of times a second; its moment is written only when the old one is older than
//! [`GRAIN`], so workers do not fight for a cache line to say what is known already.

use std::time::Duration;

use crate::moment::Moment;
use crate::outcome::{Origin, Outcome};
use crate::sync::{AtomicU64, Ordering};

/// The two moments of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Pulse {
    /// Nanoseconds; 0 for never.
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Pulse {
    /// Of an endpoint that was never asked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// An attempt ended at `now`.
    pub fn record(&self, outcome: Outcome, now: Moment) {
        match outcome {
            Outcome::Success | Outcome::Slow | Outcome::Pushback(_) => refresh(&self.answered, now),
            Outcome::Failure(Origin::Local) => refresh(&self.refused, now),
            Outcome::Failure(Origin::Remote) | Outcome::Ignored => {}
        }
    }

    /// When it last answered with anything but a failure, up to [`GRAIN`] early; `None` if it never did.
    #[must_use]
    pub fn answered(&self) -> Option<Moment> {
        read(&self.answered)
    }

    /// When an attempt last failed on our side of the connection, up to [`GRAIN`] early; `None` if none did.
    #[must_use]
    pub fn refused(&self) -> Option<Moment> {
        read(&self.refused)
    }

    /// Whether it answered within the last `length`.
    #[must_use]
    pub fn answered_within(&self, length: Duration, now: Moment) -> bool {
        self.answered().is_some_and(|at| now.since(at) < length)
    }

    /// Whether an attempt failed on our side of the connection within the last `length`.
    #[must_use]
    pub fn refused_within(&self, length: Duration, now: Moment) -> bool {
        self.refused().is_some_and(|at| now.since(at) < length)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

fn refresh(at: &AtomicU64, now: Moment) {
    // Ordering: Relaxed; a lone value, and of two workers that write together either is right.
    let before = at.load(Ordering::Relaxed);
    if before == 0 || now.since(Moment::from_nanos(before)) >= GRAIN {
        at.store(now.as_nanos().max(1), Ordering::Relaxed);
    }
}

fn read(at: &AtomicU64) -> Option<Moment> {
    // Ordering: Relaxed; a lone value, and late is fine.
    match at.load(Ordering::Relaxed) {
        0 => None,
        nanos => Some(Moment::from_nanos(nanos)),
    }
}

/// How exact the moments are.
pub const GRAIN: Duration = Duration::from_millis(50);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let pulse = Pulse::new();
        assert_eq!((pulse.answered(), pulse.refused()), (None, None));
        pulse.record(Outcome::Ignored, at(1));
        pulse.record(Outcome::Failure(Origin::Remote), at(1));
        assert_eq!((pulse.answered(), pulse.refused()), (None, None));
        pulse.record(Outcome::Pushback(None), at(1000));
        pulse.record(Outcome::Failure(Origin::Local), at(2000));
        assert!(pulse.answered_within(Duration::from_millis(101), at(1100)));
        assert!(!pulse.answered_within(Duration::from_millis(100), at(1100)));
        assert!(pulse.refused_within(Duration::from_secs(5), at(6999)));
        assert!(!pulse.refused_within(Duration::from_secs(5), at(7000)));
    }

    #[test]
    fn a_moment_is_rewritten_once_per_grain() {
        let pulse = Pulse::new();
        pulse.record(Outcome::Success, at(1000));
        pulse.record(Outcome::Success, at(1049));
        assert_eq!(pulse.answered(), Some(at(1000)));
        pulse.record(Outcome::Success, at(1050));
        assert_eq!(pulse.answered(), Some(at(1050)));
        pulse.record(Outcome::Success, at(900));
        assert_eq!(
            pulse.answered(),
            Some(at(1050)),
            "a late worker does not turn time back"
        );
    }
}
