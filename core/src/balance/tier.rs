//! Tier: the members of one priority, and drawing from them by weight.
//!
//! Only members that may ever be picked are in a tier; a weight of zero keeps one out. Inside a tier members are *slots*
//! 0, 1, 2, so that tables stay dense; only the answer is translated back.
//!
//! Drawing by weight costs one draw whatever the number of members (Walker's alias method in Vose's form). Eligibility is
//! asked after the draw, because it changes by the second and tables do not. What must stay true: if any member is
//! eligible, every way of picking ends in one, at worst through [`Tier::any`], which asks all of them.

use super::{Load, MemberSpec, Members};
use crate::{dice::Dice, moment::Moment};

#[derive(Debug)]
pub(super) struct Tier {
    /// Slot to the caller's index.
    members: Box<[u32]>,
    /// Weight relative to the mean: 1.0 for all when equal.
    weights: Box<[f32]>,
    /// The mean that they are relative to.
    mean: f32,
    /// `None` when all weights are equal.
    alias: Option<Box<[Alias]>>,
}

impl Tier {
    /// The tier of the members at `indices`, whose weights are above zero; there is at least one.
    pub(super) fn new(specs: &[MemberSpec<'_>], indices: &[u32]) -> Self {
        let given: Vec<f64> = indices
            .iter()
            .map(|&index| f64::from(specs[index as usize].weight))
            .collect();
        let mean = given.iter().sum::<f64>() / given.len() as f64;
        let relative: Vec<f64> = given.iter().map(|weight| weight / mean).collect();
        let uniform = given.iter().all(|&weight| weight == given[0]);
        Self {
            members: indices.into(),
            weights: relative.iter().map(|&weight| weight as f32).collect(),
            mean: mean as f32,
            alias: (!uniform).then(|| alias_table(relative)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The caller's index of a slot.
    pub(super) fn member(&self, slot: usize) -> usize {
        self.members[slot] as usize
    }

    /// Weight relative to the mean of the tier.
    pub(super) fn weight(&self, slot: usize) -> f32 {
        self.weights[slot]
    }

    /// Weight as it was given.
    pub(super) fn given(&self, slot: usize) -> f32 {
        self.weights[slot] * self.mean
    }

    pub(super) fn is_uniform(&self) -> bool {
        self.alias.is_none()
    }

    pub(super) fn load<'m>(&self, slot: usize, members: &'m impl Members) -> &'m Load {
        members.load(self.member(slot))
    }

    pub(super) fn is_eligible(&self, slot: usize, members: &impl Members) -> bool {
        members.eligible(self.member(slot))
    }

    /// Whether a slot may be picked now: eligible, and in slow start only for that share of the asking.
    pub(super) fn takes(&self, slot: usize, members: &impl Members, now: Moment, dice: &mut Dice) -> bool {
        if !self.is_eligible(slot, members) {
            return false;
        }
        let share = members.slow_start(self.member(slot), now);
        share >= 1.0 || dice.chance(f64::from(share))
    }

    /// A slot by weight, eligible or not.
    pub(super) fn draw(&self, dice: &mut Dice) -> usize {
        let slot = dice.below(self.members.len() as u32) as usize;
        match &self.alias {
            None => slot,
            Some(table) if (dice.next_u64() as u32) < table[slot].keep => slot,
            Some(table) => table[slot].other as usize,
        }
    }

    /// A slot by weight that takes a request, if a few draws find one.
    pub(super) fn draw_taking(&self, members: &impl Members, now: Moment, dice: &mut Dice) -> Option<usize> {
        (0..TRIES).find_map(|_| {
            let slot = self.draw(dice);
            self.takes(slot, members, now, dice).then_some(slot)
        })
    }

    /// An eligible slot by weight, other than `except`, found by asking all of them.
    pub(super) fn any(
        &self,
        except: Option<usize>,
        members: &impl Members,
        dice: &mut Dice,
    ) -> Option<usize> {
        let mut total = 0.0;
        let mut chosen = None;
        for slot in 0..self.members.len() {
            if Some(slot) == except || !self.is_eligible(slot, members) {
                continue;
            }
            // A reservoir of one: each takes over with its share of the weight so far.
            let weight = f64::from(self.weights[slot]);
            total += weight;
            if chosen.is_none() || dice.unit() * total < weight {
                chosen = Some(slot);
            }
        }
        chosen
    }

    /// The cheaper of two random slots, or the cheapest of all if there are at most three.
    ///
    /// The first candidate is drawn by weight. A challenger must cost less; if weights differ, less than half, because
    /// smaller differences (one request in flight, a few milliseconds) are mostly chance, and following them would share a
    /// quiet cluster by chance instead of by weight. A cost of infinity means "only if there is nobody else".
    pub(super) fn cheaper(
        &self,
        members: &impl Members,
        now: Moment,
        dice: &mut Dice,
        cost: impl Fn(&Load, f32) -> f32,
    ) -> Option<usize> {
        let cost_of = |slot: usize| cost(self.load(slot, members), self.weight(slot));

        let drawn = self.draw_taking(members, now, dice);
        let first = match drawn {
            Some(slot) => slot,
            None => self.any(None, members, dice)?,
        };
        let margin = if self.is_uniform() { 1.0 } else { 0.5 };
        let mut best = first;
        let mut limit = cost_of(first) * margin;
        let mut challenge = |slot: usize| {
            let cost = cost_of(slot);
            if cost < limit {
                (best, limit) = (slot, cost);
            }
            limit.is_finite()
        };

        let len = self.members.len();
        if len <= SMALL {
            for step in 1..len {
                let slot = (first + step) % len;
                if self.takes(slot, members, now, dice) {
                    challenge(slot);
                }
            }
        } else if drawn.is_none() {
            // Most are out: draws would only find the same one again.
            if let Some(slot) = self.any(Some(first), members, dice) {
                challenge(slot);
            }
        } else {
            for _ in 0..TRIES {
                let slot = self.draw(dice);
                if slot != first && self.takes(slot, members, now, dice) && challenge(slot) {
                    break;
                }
            }
        }
        Some(best)
    }
}

/// One column of the alias table: the slot itself below `keep`, else `other`.
#[derive(Debug, Clone, Copy)]
struct Alias {
    keep: u32,
    other: u32,
}

/// Vose's construction from weights whose mean is 1.
fn alias_table(mut weights: Vec<f64>) -> Box<[Alias]> {
    let mut table: Vec<Alias> = (0..weights.len())
        .map(|slot| Alias {
            keep: u32::MAX,
            other: slot as u32,
        })
        .collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|&slot| weights[slot] < 1.0);
    while let (Some(&poor), Some(&rich)) = (small.last(), large.last()) {
        small.pop();
        table[poor] = Alias {
            keep: (weights[poor] * f64::from(u32::MAX)) as u32,
            other: rich as u32,
        };
        weights[rich] -= 1.0 - weights[poor];
        if weights[rich] < 1.0 {
            large.pop();
            small.push(rich);
        }
    }
    // What is left over is 1.0 up to rounding and keeps its own column.
    table.into()
}

/// Draws before all members are asked. With half of them out, one pick in 64 gets that far.
const TRIES: usize = 6;

/// Up to this many members all of them are compared.
const SMALL: usize = 3;
