//! Moment: a point in time as a number.
//!
//! Policies compare and subtract times far more often than they learn them, several workers share them through
//! atomics, and some are saved across a restart. A `u64` of nanoseconds since an origin serves all three; an opaque
//! clock type serves none. The shell chooses the origin (the start of the process) and is the only one who reads a
//! clock; this crate is handed `now` and cannot ask again.
//!
//! Invariant: arithmetic saturates. A moment before the origin is the origin, one too far ahead is
//! [`Moment::FAR_FUTURE`], and a difference that would be negative is zero, because two workers may read a clock in one
//! order and publish in the other.

use std::time::Duration;

/// A point in time: nanoseconds since an origin that the shell chose. 64 bits last for 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// Later than anything that happens: the deadline of what has none.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin; fits an `AtomicU64`.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `length` later, at most [`Moment::FAR_FUTURE`].
    #[must_use]
    pub const fn plus(self, length: Duration) -> Self {
        Self(self.0.saturating_add(nanos_of(length)))
    }

    /// The moment `length` earlier, at least [`Moment::ZERO`].
    #[must_use]
    pub const fn minus(self, length: Duration) -> Self {
        Self(self.0.saturating_sub(nanos_of(length)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Nanoseconds of a duration, saturating: `Duration` reaches further than 64 bits of them.
const fn nanos_of(length: Duration) -> u64 {
    let nanos = length.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_difference_that_would_be_negative_is_zero() {
        let early = Moment::from_nanos(5);
        let late = Moment::from_nanos(9);
        assert_eq!(late.since(early), Duration::from_nanos(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn the_ends_saturate() {
        assert_eq!(Moment::from_nanos(1).plus(Duration::MAX), Moment::FAR_FUTURE);
        assert_eq!(
            Moment::FAR_FUTURE.plus(Duration::from_secs(1)),
            Moment::FAR_FUTURE
        );
        assert_eq!(Moment::from_nanos(1).minus(Duration::MAX), Moment::ZERO);
    }

    proptest! {
        #[test]
        fn adding_and_subtracting_agree(start in 0..u64::MAX / 2, length in 0..u64::MAX / 2) {
            let start = Moment::from_nanos(start);
            let length = Duration::from_nanos(length);
            prop_assert_eq!(start.plus(length).since(start), length);
            prop_assert_eq!(start.plus(length).minus(length), start);
        }
    }
}
