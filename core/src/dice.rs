//! Dice: the only randomness there is.
//!
//! A run must be repeatable from one number, so nobody may reach for a generator of their own: the shell seeds one
//! [`Dice`] per worker and per background task from its entropy, each request splits its own off, and every policy is
//! handed `&mut Dice`. The generator is SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
//! Generators", 2014): one addition and two multiplications, equidistributed over all 64-bit values, and splitting costs
//! one draw. It decides which endpoint comes first, how long a backoff is, which request is sampled. It guards nothing: an
//! attacker who sees outputs can predict the next one, so keys, tokens and request ids come from elsewhere.
//!
//! Invariant: equal seeds give equal sequences, on every platform and in every version.

/// A seeded sequence of draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The sequence of `seed`. Neighbouring seeds give unrelated sequences.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        scramble(self.state)
    }

    /// A number below `n`, each as likely as the others up to one part in 2^32 of `n`'s share.
    ///
    /// `n` is at least 1; zero is a bug of the caller and answers 0.
    pub const fn below(&mut self, n: u32) -> u32 {
        debug_assert!(n > 0, "nothing is below zero");
        // Lemire's multiplication on the upper half of the range: no division. With 64 random bits against a 32-bit `n`
        // the bias is below 2^-32, too small for the loop that would remove it.
        ((self.next_u64() as u128 * n as u128) >> 64) as u32
    }

    /// A number in `0.0..1.0`, one of 2^53 equally spaced ones.
    pub const fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with probability `p`; never at 0 or below, always at 1 or above.
    pub const fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A sequence of its own for someone else, at the price of one draw of this one.
    #[must_use]
    pub const fn split(&mut self) -> Self {
        Self {
            state: self.next_u64(),
        }
    }
}

/// The fractional part of the golden ratio in 64 bits, odd: the increment of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: every input bit flips every output bit with probability near one half.
#[must_use]
pub(crate) const fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // First outputs of SplitMix64 for seed 1234567, as printed with the reference implementation.
        let mut dice = Dice::new(1_234_567);
        let drawn: Vec<u64> = (0..5).map(|_| dice.next_u64()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn a_die_shows_each_face_about_as_often() {
        let mut dice = Dice::new(7);
        let mut faces = [0u32; 6];
        for _ in 0..60_000 {
            faces[dice.below(6) as usize] += 1;
        }
        assert!(faces.iter().all(|&n| (9_600..10_400).contains(&n)), "{faces:?}");
    }

    #[test]
    fn chance_keeps_its_ends() {
        let mut dice = Dice::new(1);
        assert!((0..1000).all(|_| !dice.chance(0.0)));
        assert!((0..1000).all(|_| dice.chance(1.0)));
    }

    #[test]
    fn a_split_sequence_differs_from_its_parent() {
        let mut parent = Dice::new(3);
        let mut child = parent.split();
        assert!((0..100).all(|_| parent.next_u64() != child.next_u64()));
    }

    proptest! {
        #[test]
        fn draws_stay_in_range(seed: u64, n in 1u32..) {
            let mut dice = Dice::new(seed);
            for _ in 0..16 {
                prop_assert!(dice.below(n) < n);
                let unit = dice.unit();
                prop_assert!((0.0..1.0).contains(&unit));
            }
        }

        #[test]
        fn equal_seeds_give_equal_draws(seed: u64) {
            let (mut a, mut b) = (Dice::new(seed), Dice::new(seed));
            for _ in 0..8 {
                prop_assert_eq!(a.next_u64(), b.next_u64());
            }
        }
    }
}
