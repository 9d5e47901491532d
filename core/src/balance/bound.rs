//! Bound: no member carries more than 1.25 times its share because of its keys.
//!
//! Hashing spreads keys, not work: one popular key can drown one member. With bounded loads (Mirrokni, Thorup,
//! Zadimoghaddam, 2016) a member is passed over while `in flight + 1 > ceil(1.25 * (total in flight + 1) * share)`; the key
//! goes on to the next one and returns when there is room. Not all members can be above their bound at once, so the walk
//! ends soon.
//!
//! The total is summed anew for up to [`EXACT`] members. Beyond that it is summed at most once per [`REFRESH`] and counts
//! up with each pick in between: never too low for lack of an update, too high by at most what a millisecond finishes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{Members, tier::Tier};
use crate::{dice::Dice, moment::Moment};

#[derive(Debug)]
pub(super) struct Bound {
    total: AtomicU64,
    due: AtomicU64,
}

impl Bound {
    pub(super) const fn new() -> Self {
        Self {
            total: AtomicU64::new(0),
            due: AtomicU64::new(0),
        }
    }

    /// The first eligible slot of the walk that has room; if none has, the first eligible one.
    pub(super) fn pick(
        &self,
        walk: impl Iterator<Item = usize>,
        tier: &Tier,
        members: &impl Members,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<usize> {
        let mut preferred = None;
        let mut room = None;
        let mut walked = 0;
        for slot in walk {
            walked += 1;
            if tier.is_eligible(slot, members) {
                let in_flight = tier.load(slot, members).in_flight();
                // An idle member always has room: the bound is at least one.
                if in_flight == 0 {
                    return Some(slot);
                }
                let total = *room.get_or_insert_with(|| self.total(tier, members, now));
                if f64::from(in_flight) < limit(total, tier.weight(slot), tier.len()) {
                    return Some(slot);
                }
                preferred = preferred.or(Some(slot));
            }
            if walked >= LONGEST_WALK && preferred.is_some() {
                break;
            }
        }
        preferred.or_else(|| tier.any(None, members, dice))
    }

    fn total(&self, tier: &Tier, members: &impl Members, now: Moment) -> u64 {
        let sum = || {
            (0..tier.len())
                .map(|slot| u64::from(tier.load(slot, members).in_flight()))
                .sum()
        };
        if tier.len() <= EXACT {
            return sum();
        }
        // Ordering: Relaxed; lone values, and an approximate total is what is asked for. The exchange lets one worker sum.
        let due = self.due.load(Ordering::Relaxed);
        if now.as_nanos() >= due
            && self
                .due
                .compare_exchange(
                    due,
                    now.plus(REFRESH).as_nanos(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
        {
            let total = sum();
            self.total.store(total, Ordering::Relaxed);
            return total;
        }
        self.total.fetch_add(1, Ordering::Relaxed)
    }
}

/// How many requests may be in flight on a member, one more included.
fn limit(total: u64, weight: f32, len: usize) -> f64 {
    (FACTOR * (total + 1) as f64 * f64::from(weight) / len as f64).ceil()
}

/// Above its share by a quarter: tighter moves many keys, looser bounds little.
const FACTOR: f64 = 1.25;

/// Up to this many members the total is exact.
const EXACT: usize = 32;

/// How old the total of a larger tier may be.
const REFRESH: Duration = Duration::from_millis(1);

/// Steps after which the preferred member gets the request although it is above its bound.
const LONGEST_WALK: usize = 256;
