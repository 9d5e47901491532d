//! Slow start: an endpoint that has just come back is offered a growing part of its share.
//!
//! A cold process (empty caches, code not yet compiled) that gets its full share at once fails at once and is ejected
//! again. The ramp multiplies the weight by a factor that grows with time. It is relative: when every endpoint of a
//! cluster is in its ramp the factors cancel out, which is right, because somebody has to do the work.
//!
//! What must stay true: the factor never reaches zero, or a newcomer could never prove itself under low traffic.

use std::time::Duration;

use crate::moment::Moment;

/// How fast a returning endpoint is given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStart {
    /// How long the ramp lasts; zero switches it off.
    pub window: Duration,
}

impl SlowStart {
    /// The share of its weight that an endpoint has at `now` when it entered at `entered`: from [`FLOOR`] to 1, linear.
    #[must_use]
    pub fn factor(self, entered: Moment, now: Moment) -> f32 {
        let age = now.since(entered);
        if age >= self.window {
            return 1.0;
        }
        (age.as_secs_f32() / self.window.as_secs_f32()).clamp(FLOOR, 1.0)
    }
}

/// The factor at the beginning of the ramp.
pub const FLOOR: f32 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAMP: SlowStart = SlowStart {
        window: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn the_factor_grows_from_a_tenth_to_one() {
        assert_eq!(RAMP.factor(at(100), at(100)), 0.1);
        assert_eq!(RAMP.factor(at(100), at(105)), 0.5);
        assert_eq!(RAMP.factor(at(100), at(110)), 1.0);
        assert_eq!(RAMP.factor(at(100), at(99)), 0.1);
    }

    #[test]
    fn no_window_means_no_ramp() {
        assert_eq!(
            SlowStart {
                window: Duration::ZERO
            }
            .factor(at(1), at(1)),
            1.0
        );
    }

    proptest! {
        #[test]
        fn it_never_falls_and_never_leaves_its_range(window in 1u64..1 << 40, a in 0u64..1 << 41, b in 0u64..1 << 41) {
            let ramp = SlowStart { window: Duration::from_nanos(window) };
            let (early, late) = (a.min(b), a.max(b));
            let early = ramp.factor(Moment::ZERO, Moment::from_nanos(early));
            let late = ramp.factor(Moment::ZERO, Moment::from_nanos(late));
            prop_assert!(FLOOR <= early && early <= late && late <= 1.0);
        }
    }
}
