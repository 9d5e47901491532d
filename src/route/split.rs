//! Weighted choice between clusters: by chance, or always the same for the same key.
//!
//! With a key it is weighted rendezvous hashing (Thaler and Ravishankar, 1998): every choice gets a score from the
//! key, its name and its weight, and the highest wins. When a weight grows, keys move only towards that choice; when
//! it shrinks, only away from it; the others never trade keys among themselves. Cutting the range of the hash into
//! slices would move keys between all neighbours.

use xxhash_rust::xxh3::xxh3_64;

/// Named choices with weights.
#[derive(Clone, Debug)]
pub struct WeightedSplit {
    choices: Box<[Choice]>,
    total: u64,
}

#[derive(Clone, Debug)]
struct Choice {
    name: u64,
    weight: u32,
}

/// Why a split is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// No choice, or all weights zero.
    #[error("all weights are 0: nothing would ever be chosen")]
    Nothing,
}

impl WeightedSplit {
    /// A split between these names; answers are indices into this list. A weight of zero is never chosen.
    ///
    /// # Errors
    /// When there is nothing to choose.
    pub fn new(choices: impl IntoIterator<Item = (impl AsRef<str>, u32)>) -> Result<Self, SplitError> {
        let choices: Box<[Choice]> = choices
            .into_iter()
            .map(|(name, weight)| Choice {
                name: xxh3_64(name.as_ref().as_bytes()),
                weight,
            })
            .collect();
        let total = choices.iter().map(|choice| u64::from(choice.weight)).sum();
        if total == 0 {
            Err(SplitError::Nothing)
        } else {
            Ok(Self { choices, total })
        }
    }

    /// The share of one choice, 0.0 to 1.0, for people.
    pub fn share(&self, index: usize) -> f64 {
        let weight = self.choices.get(index).map_or(0, |choice| choice.weight);
        f64::from(weight) / self.total as f64
    }

    /// The choice for a uniform random draw.
    pub fn by_draw(&self, draw: u64) -> usize {
        // The high half of the product is uniform in 0..total without a division.
        let mut left = ((u128::from(draw) * u128::from(self.total)) >> 64) as u64;
        for (index, choice) in self.choices.iter().enumerate() {
            match left.checked_sub(u64::from(choice.weight)) {
                Some(rest) => left = rest,
                None => return index,
            }
        }
        debug_assert!(false, "the draw is below the sum of the weights");
        0
    }

    /// The choice for a key, from its hash: the same for the same key as long as weights and names stay.
    pub fn by_key(&self, key: u64) -> usize {
        let score = |choice: &Choice| {
            // Uniform in (0, 1]: 53 bits of a mix of key and name.
            let uniform = ((mix(key ^ choice.name) >> 11) + 1) as f64 / (1u64 << 53) as f64;
            // An exponential clock with rate `weight`: the first to ring wins with probability weight / total.
            -uniform.ln() / f64::from(choice.weight)
        };
        (0..)
            .zip(&self.choices)
            .filter(|(_, choice)| choice.weight > 0)
            .min_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)))
            .map_or(0, |(index, _)| index)
    }
}

/// The finaliser of SplitMix64: every input bit changes about half of the output bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pick: impl Fn(u64) -> usize, choices: usize) -> Vec<f64> {
        let mut counts = vec![0u32; choices];
        for n in 0..100_000u64 {
            counts[pick(mix(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)))] += 1;
        }
        counts
            .into_iter()
            .map(|count| f64::from(count) / 100_000.0)
            .collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        let split = WeightedSplit::new([("blue", 90), ("green", 10), ("off", 0)]).unwrap();
        for shares in [shares(|n| split.by_draw(n), 3), shares(|n| split.by_key(n), 3)] {
            assert!((shares[0] - 0.9).abs() < 0.005, "{shares:?}");
            assert!((shares[1] - 0.1).abs() < 0.005, "{shares:?}");
            assert!(shares[2] == 0.0);
        }
        assert_eq!(split.by_draw(0), 0);
        assert_eq!(split.by_draw(u64::MAX), 1);
    }

    #[test]
    fn keys_move_only_towards_the_choice_that_grew() {
        let before = WeightedSplit::new([("a", 50), ("b", 40), ("c", 10)]).unwrap();
        let after = WeightedSplit::new([("c", 20), ("b", 40), ("a", 50)]).unwrap();
        let mut moved = 0;
        for n in 0..20_000u64 {
            let (old, new) = (before.by_key(mix(n)), 2 - after.by_key(mix(n)));
            if old != new {
                assert_eq!(new, 2);
                moved += 1;
            }
        }
        // From 10/100 to 20/110: 8.2 % of the keys, and no others.
        assert!((1_400..1_900).contains(&moved), "{moved}");
    }

    #[test]
    fn a_split_without_weight_is_refused() {
        assert_eq!(WeightedSplit::new([("a", 0)]).unwrap_err(), SplitError::Nothing);
        assert_eq!(WeightedSplit::new([("", 0); 0]).unwrap_err(), SplitError::Nothing);
    }
}
