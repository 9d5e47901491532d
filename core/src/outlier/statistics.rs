//! The two calculations outlier detection needs.

use std::time::Duration;

/// The probability of `k` or more hits in `n` trials that hit with `p` each.
///
/// Exact up to 200 trials, the normal approximation with correction for continuity above. In the far tail of a small `p`
/// that one is too sure; [`super::Relative::min_gap`] keeps the question out of there.
pub(super) fn at_least(k: u32, n: u32, p: f64) -> f64 {
    if k == 0 || p >= 1.0 {
        return 1.0;
    }
    if k > n || p <= 0.0 {
        return 0.0;
    }
    if n > EXACT {
        normal(k, n, p)
    } else {
        exact(k, n, p)
    }
}

/// The sum of the terms from 0 to `k - 1`, each from the one before, taken from 1.
fn exact(k: u32, n: u32, p: f64) -> f64 {
    // (1 - p)^200 underflows only beyond p = 0.97, where all below a `k` worth asking about is nothing anyway.
    let mut term = (1.0 - p).powi(n.cast_signed());
    let mut below = 0.0;
    for i in 0..k {
        below += term;
        term *= f64::from(n - i) / f64::from(i + 1) * p / (1.0 - p);
    }
    (1.0 - below).clamp(0.0, 1.0)
}

fn normal(k: u32, n: u32, p: f64) -> f64 {
    let (n, k) = (f64::from(n), f64::from(k));
    upper_tail((k - 0.5 - n * p) / (n * p * (1.0 - p)).sqrt())
}

/// The median of a sorted list without one of its values: the middle one, or the mean of the two in the middle.
pub(super) fn median_without(sorted: &[Duration], value: Duration) -> Option<Duration> {
    let skipped = sorted.partition_point(|other| *other < value);
    let rest = sorted.len().checked_sub(1)?;
    let nth = |n: usize| sorted.get(if n < skipped { n } else { n + 1 }).copied();
    let upper = nth(rest / 2)?;
    Some(if rest.is_multiple_of(2) {
        (upper + nth(rest / 2 - 1)?) / 2
    } else {
        upper
    })
}

/// The probability that a standard normal value exceeds `z`: Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
fn upper_tail(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let polynomial = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * polynomial * (-x * x).exp();
    if z < 0.0 { 1.0 - tail } else { tail }
}

const EXACT: u32 = 200;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_tail_of_the_binomial_is_the_textbook_one() {
        // Ten tosses of a coin, eight heads or more: 56 of 1024.
        assert!((at_least(8, 10, 0.5) - 56.0 / 1024.0).abs() < 1e-12);
        assert!((at_least(1, 10, 0.1) - (1.0 - 0.9f64.powi(10))).abs() < 1e-12);
        assert_eq!(at_least(0, 10, 0.1), 1.0);
        assert_eq!(at_least(11, 10, 0.1), 0.0);
    }

    #[test]
    fn the_normal_tail_is_the_textbook_one() {
        for (z, expected) in [
            (0.0, 0.5),
            (1.0, 0.158_655_25),
            (3.0, 0.001_349_898),
            (-1.0, 0.841_344_75),
        ] {
            assert!((upper_tail(z) - expected).abs() < 1e-6, "{z}");
        }
    }

    #[test]
    fn the_two_methods_meet() {
        for k in 40..100 {
            let (exact, normal) = (exact(k, 200, 0.3), normal(k, 200, 0.3));
            assert!((exact - normal).abs() < 0.005, "{k}: {exact} {normal}");
        }
    }

    #[test]
    fn the_median_of_two_others_lies_between() {
        let ms = Duration::from_millis;
        let of = |values: &[u64], without| {
            let sorted: Vec<Duration> = values.iter().copied().map(ms).collect();
            median_without(&sorted, ms(without))
        };
        assert_eq!(of(&[10, 30, 99], 99), Some(ms(20)));
        assert_eq!(of(&[10, 30, 99], 10), Some(Duration::from_micros(64_500)));
        assert_eq!(of(&[10, 11, 30, 99], 11), Some(ms(30)));
        assert_eq!(of(&[10, 10, 10], 10), Some(ms(10)));
        assert_eq!(of(&[10, 30], 10), Some(ms(30)));
        assert_eq!(of(&[10], 10), None);
        assert_eq!(of(&[], 10), None);
    }

    proptest! {
        #[test]
        fn more_hits_are_less_probable(n in 1u32..2000, p in 0.0005f64..0.999) {
            let mut before = 1.0;
            for k in 0..=n.min(300) {
                let tail = at_least(k, n, p);
                prop_assert!((0.0..=1.0).contains(&tail));
                prop_assert!(tail <= before + 1e-6, "{k} of {n} at {p}");
                before = tail;
            }
        }
    }
}
