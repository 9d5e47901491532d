//! Ring hash: a key goes to the next member on a circle.
//!
//! Each member stands on the circle of 64-bit numbers at many points that depend on its own key alone, so removing one
//! moves only its keys and adding one takes keys only for itself (Karger et al., 1997; the points as in Ketama). The more
//! points, the more even the shares: [`MANY`] per member on average up to [`FEW_MEMBERS`] members, [`SOME`] beyond, which
//! keeps 3000 members below 5 MB. Points are proportional to weight, with at least one each.
//!
//! What moves more than the promised minimum, because it changes how many points everyone has: crossing [`FEW_MEMBERS`],
//! changing the heaviest weight, and, with unequal weights, a change after which the mean weight stands to the heaviest in
//! another power of two. Keys of two members must differ; with equal ones the first takes all.

use super::{MemberSpec, tier::Tier};
use crate::dice::scramble;
use crate::hash;

#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[u64]>,
    slots: Box<[u32]>,
}

impl Ring {
    pub(super) fn new(tier: &Tier, specs: &[MemberSpec<'_>]) -> Self {
        let per_member = if tier.len() <= FEW_MEMBERS { MANY } else { SOME };
        let weight = |slot: usize| u128::from(specs[tier.member(slot)].weight);
        let heaviest = (0..tier.len()).map(weight).max().unwrap_or(1);
        let total: u128 = (0..tier.len()).map(weight).sum();
        // As many points in all as there would be with equal weights, but a power of two for the heaviest, so that the
        // number stays the same while members come and go.
        let for_heaviest = 1 << (per_member * tier.len() as u128 * heaviest / total).ilog2();
        let mut points: Vec<(u64, u32)> = Vec::with_capacity(tier.len() * per_member as usize);
        for slot in 0..tier.len() {
            let key = hash::of_key(specs[tier.member(slot)].key);
            let count = (for_heaviest * weight(slot) / heaviest).max(1) as u64;
            points.extend((0..count).map(|n| (hash::nth(key, n), slot as u32)));
        }
        points.sort_unstable();
        let (points, slots): (Vec<u64>, Vec<u32>) = points.into_iter().unzip();
        Self {
            points: points.into(),
            slots: slots.into(),
        }
    }

    /// Slots in the order in which they are asked for a key; every slot occurs.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        // The hash came from outside; a weak one would leave arcs of the circle empty.
        let key = scramble(key);
        let start = self.points.partition_point(|&point| point < key);
        let (before, after) = self.slots.split_at(start);
        after.iter().chain(before).map(|&slot| slot as usize)
    }
}

/// Points per member of a small cluster: shares differ by about 3 %.
const MANY: u128 = 1024;

/// Points per member of a large cluster: shares differ by about 9 %, which the load bound evens out.
const SOME: u128 = 128;

/// How many members are a small cluster.
const FEW_MEMBERS: usize = 32;
