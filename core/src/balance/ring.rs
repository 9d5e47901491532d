//! Ring hash: a key goes to the next member on a circle.
//!
//! Each member stands on the circle of 64-bit numbers at many points that depend on its own key alone, so removing one
//! moves only its keys and adding one takes keys only for itself (Karger et al., 1997; the points as in Ketama). The more
//! points, the more even the shares: [`MANY`] per member up to [`FEW_MEMBERS`] members, [`SOME`] beyond, which keeps
//! 3000 members below 5 MB. A lighter member has proportionally fewer points than the heaviest.
//!
//! What moves more than the promised minimum, and why it is accepted: crossing [`FEW_MEMBERS`], and changing the heaviest
//! weight, both change how many points everyone has. Keys of two members must differ; with equal ones the first takes all.

use super::{MemberSpec, hash, tier::Tier};
use crate::dice::scramble;

#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[u64]>,
    slots: Box<[u32]>,
}

impl Ring {
    pub(super) fn new(tier: &Tier, specs: &[MemberSpec<'_>]) -> Self {
        let per_member = if tier.len() <= FEW_MEMBERS { MANY } else { SOME };
        let heaviest = (0..tier.len())
            .map(|slot| specs[tier.member(slot)].weight)
            .max()
            .unwrap_or(1);
        let mut points: Vec<(u64, u32)> = Vec::with_capacity(tier.len() * per_member as usize);
        for slot in 0..tier.len() {
            let spec = &specs[tier.member(slot)];
            let key = hash::of_key(spec.key);
            let count = (per_member * u64::from(spec.weight)).div_ceil(u64::from(heaviest));
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

/// Points of the heaviest member in a small cluster: shares differ by about 3 %.
const MANY: u64 = 1024;

/// Points of the heaviest member in a large cluster: shares differ by about 9 %, which the load bound evens out.
const SOME: u64 = 128;

/// How many members are a small cluster.
const FEW_MEMBERS: usize = 32;
