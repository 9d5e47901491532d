//! Maglev: a key goes where a table says.
//!
//! Every member has its own order of preference over the places of a table of prime size, and members take turns claiming
//! the first free place of theirs (Eisenbud et al., "Maglev", NSDI 2016, section 3.4). Shares are even to a few places, a
//! pick is one index instead of the ring's search, and when a member leaves, its places go to others and few other places
//! change hands: more than with a ring, which moves none.
//!
//! A member of less weight than the heaviest skips turns in proportion, down to a thousandth. Members claim in the order
//! of their keys, so that discovery may list them in any order. The table has [`SIZE`] places whatever the number of
//! members: a size that followed the number would move nearly every key whenever it changed, and building this one takes
//! one to three milliseconds (measured, 3 to 3000 members). With more members than places, some have none.

use super::{MemberSpec, tier::Tier};
use crate::dice::scramble;
use crate::hash;

#[derive(Debug)]
pub(super) struct Maglev {
    table: Box<[u32]>,
}

impl Maglev {
    pub(super) fn new(tier: &Tier, specs: &[MemberSpec<'_>]) -> Self {
        let heaviest = (0..tier.len())
            .map(|slot| specs[tier.member(slot)].weight)
            .max()
            .unwrap_or(1);
        let mut claimants: Vec<Claimant> = (0..tier.len())
            .map(|slot| {
                let spec = &specs[tier.member(slot)];
                let key = hash::of_key(spec.key);
                Claimant {
                    slot: slot as u32,
                    key,
                    next: (hash::nth(key, 1) % SIZE as u64) as u32,
                    skip: (hash::nth(key, 2) % (SIZE as u64 - 1)) as u32 + 1,
                    weight: (f64::from(spec.weight) / f64::from(heaviest)).max(LIGHTEST),
                    credit: 0.0,
                }
            })
            .collect();
        claimants.sort_unstable_by_key(|claimant| claimant.key);

        let mut table = vec![FREE; SIZE];
        let mut free = SIZE;
        while free > 0 {
            for claimant in &mut claimants {
                claimant.credit += claimant.weight;
                if claimant.credit < 1.0 || free == 0 {
                    continue;
                }
                claimant.credit -= 1.0;
                claimant.claim(&mut table);
                free -= 1;
            }
        }
        Self { table: table.into() }
    }

    /// Slots in the order in which they are asked for a key: the place of the key, then the following ones, which belong
    /// to unrelated members.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let place = (scramble(key) % SIZE as u64) as usize;
        let (before, after) = self.table.split_at(place);
        after.iter().chain(before).map(|&slot| slot as usize)
    }
}

#[derive(Debug)]
struct Claimant {
    slot: u32,
    key: u64,
    /// The place it prefers next; each further one is `skip` away, modulo a prime, so all places are visited.
    next: u32,
    skip: u32,
    weight: f64,
    credit: f64,
}

impl Claimant {
    /// Takes its next preferred place that is free; there is one.
    fn claim(&mut self, table: &mut [u32]) {
        loop {
            let place = self.next as usize;
            self.next = (self.next + self.skip) % SIZE as u32;
            if table[place] == FREE {
                table[place] = self.slot;
                return;
            }
        }
    }
}

/// Places of the table: prime, and exact to 1 % for 600 members; of 3000 each still has about 21.
pub(super) const SIZE: usize = 65_537;

/// The least weight relative to the heaviest: bounds the turns in which nobody claims, and with them the build.
const LIGHTEST: f64 = 1.0 / 1024.0;

const FREE: u32 = u32::MAX;
