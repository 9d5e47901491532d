//! Round robin: everyone in turn, the heavier more often, and not in a row.
//!
//! The turns are laid out once, when the cluster is compiled: a member of weight `w` gets `w` places evenly spread over
//! the round, each member shifted by another fraction so that equal ones do not sit in one heap. A pick is then one
//! addition to a shared cursor. Rounds are at most [`LONGEST`] turns (or four per member); weights that need more are
//! rounded, none of them to zero.
//!
//! An ineligible member's turn is skipped by taking the next one *from the cursor*. Falling through to the neighbour
//! instead would give that neighbour twice its share for as long as the other is out.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{MemberSpec, Members, tier::Tier};
use crate::{dice::Dice, moment::Moment};

#[derive(Debug)]
pub(super) struct Turns {
    /// The slots of one round; `None` when the round is 0, 1, 2 and so on.
    round: Option<Box<[u32]>>,
    next: AtomicUsize,
}

impl Turns {
    /// `seed` decides where the first round begins, so that many proxies do not begin at one member.
    pub(super) fn new(tier: &Tier, specs: &[MemberSpec<'_>], seed: u64) -> Self {
        let weights: Vec<u64> = (0..tier.len())
            .map(|slot| u64::from(specs[tier.member(slot)].weight))
            .collect();
        let round = (!tier.is_uniform()).then(|| round(&weights));
        let len = round.as_ref().map_or(tier.len(), |round| round.len());
        let start = Dice::new(seed).below(len as u32) as usize;
        Self {
            round,
            next: AtomicUsize::new(start),
        }
    }

    pub(super) fn pick(
        &self,
        tier: &Tier,
        members: &impl Members,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<usize> {
        for _ in 0..TRIES {
            let slot = self.turn(tier.len());
            if tier.takes(slot, members, now, dice) {
                return Some(slot);
            }
        }
        tier.any(None, members, dice)
    }

    fn turn(&self, len: usize) -> usize {
        // Ordering: Relaxed; the cursor only hands out numbers.
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match &self.round {
            None => turn % len,
            Some(round) => round[turn % round.len()] as usize,
        }
    }
}

/// The slots of one round, each as often as its weight says.
fn round(weights: &[u64]) -> Box<[u32]> {
    let places = places(weights);
    let mut turns: Vec<(f64, u32)> = Vec::with_capacity(places.iter().sum::<u64>() as usize);
    for (slot, &count) in places.iter().enumerate() {
        let shift = (slot as f64 * GOLDEN).fract();
        turns.extend((0..count).map(|k| ((k as f64 + shift) / count as f64, slot as u32)));
    }
    turns.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    turns.into_iter().map(|(_, slot)| slot).collect()
}

/// How many turns of a round each weight gets.
fn places(weights: &[u64]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let total: u64 = weights.iter().sum::<u64>() / divisor;
    let longest = LONGEST.max(4 * weights.len() as u64);
    if total <= longest {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    let scale = longest as f64 / total as f64;
    weights
        .iter()
        .map(|weight| (((weight / divisor) as f64 * scale).round() as u64).max(1))
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Turns of a round: enough to tell weights apart to a tenth of a percent, 16 KiB at most for usual clusters.
const LONGEST: u64 = 4096;

/// Turns tried before all members are asked.
const TRIES: usize = 8;

/// Multiples of it modulo 1 are spread as evenly as any.
const GOLDEN: f64 = 0.618_033_988_749_895;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_heavy_one_is_interleaved() {
        let round = round(&[5, 1, 1]);
        let longest_run = (0..round.len())
            .map(|start| {
                (0..round.len())
                    .take_while(|k| round[(start + k) % round.len()] == 0)
                    .count()
            })
            .max();
        assert_eq!(round.len(), 7);
        assert!(longest_run <= Some(4), "{round:?}");
    }

    #[test]
    fn weights_are_reduced_before_they_are_laid_out() {
        assert_eq!(round(&[100, 200]).len(), 3);
        assert_eq!(round(&[7, 7]).len(), 2);
    }

    proptest! {
        #[test]
        fn a_round_is_bounded_and_shows_each_by_weight(weights in proptest::collection::vec(1u64..=u64::from(u32::MAX), 1..200)) {
            let round = round(&weights);
            prop_assert!(round.len() as u64 <= LONGEST + weights.len() as u64);
            let total: u64 = weights.iter().sum();
            for (slot, &weight) in weights.iter().enumerate() {
                let turns = round.iter().filter(|&&s| s as usize == slot).count() as f64;
                let due = weight as f64 / total as f64 * round.len() as f64;
                prop_assert!(turns >= 1.0);
                // One for "none to zero", and the rounds that those ones lengthen.
                prop_assert!((turns - due).abs() <= 1.0 + due * weights.len() as f64 / LONGEST as f64);
            }
        }

        #[test]
        fn any_stretch_of_a_round_is_fair(weights in proptest::collection::vec(1u64..20, 2..12)) {
            let round = round(&weights);
            let places = places(&weights);
            let len = round.len();
            for (slot, &count) in places.iter().enumerate() {
                let mut seen = 0.0;
                for (turn, &s) in round.iter().enumerate() {
                    seen += f64::from(u8::from(s as usize == slot));
                    let due = (turn + 1) as f64 * count as f64 / len as f64;
                    let slack = 1.0 + weights.len() as f64 * count as f64 / len as f64;
                    prop_assert!((seen - due).abs() <= slack, "{round:?} {slot} {turn}");
                }
            }
        }
    }
}
