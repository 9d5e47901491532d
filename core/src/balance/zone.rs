//! Zone: requests stay in our own zone as long as it can bear them.
//!
//! Crossing a zone costs milliseconds and money; keeping everything at home drowns a zone that has become small. So a
//! *share* of the requests stays, the rest goes elsewhere by chance, and two things lower the share:
//!
//! * *capacity*: of `zones` zones each should carry one part of the traffic. If ours holds less than its part of the weight
//!   that is available, it keeps as much as it holds: `share = here / (all / zones)`, at most 1. It works with one endpoint
//!   per zone, and a zone without anybody keeps nothing;
//! * *load*: while the endpoints here have more than [`MORE`] times the requests in flight of those elsewhere *and* are
//!   expected to take that many times as long (failures count as slowness), the share shrinks in proportion. In flight
//!   alone would prove nothing: who keeps everything at home has nothing in flight elsewhere.
//!
//! Somewhere that has never answered nothing can be compared with; one request in a hundred goes there to find out.
//!
//! What is asked is asked of all members, at most every [`REFRESH`], by whichever pick comes first.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{Members, tier::Tier};
use crate::{dice::Dice, moment::Moment};

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In our own zone.
    Here,
    /// In another one, or nobody knows where.
    Elsewhere,
}

/// The share of requests that stays here, kept fresh in passing.
#[derive(Debug)]
pub(super) struct Gate {
    /// Zones that share the traffic, our own included.
    zones: u32,
    /// `f32` bits.
    share: AtomicU32,
    /// Nanoseconds of the moment at which the next pick asks again.
    due: AtomicU64,
}

impl Gate {
    pub(super) const fn new(zones: u32) -> Self {
        Self {
            zones,
            share: AtomicU32::new(1.0f32.to_bits()),
            due: AtomicU64::new(0),
        }
    }

    /// Whether this request stays here.
    pub(super) fn keeps(
        &self,
        here: &Tier,
        elsewhere: &Tier,
        members: &impl Members,
        now: Moment,
        dice: &mut Dice,
    ) -> bool {
        // Ordering: Relaxed; both are lone values, and one look more or less changes nothing. The exchange lets one
        // worker look.
        let due = self.due.load(Ordering::Relaxed);
        let next = now.plus(REFRESH).as_nanos();
        if now.as_nanos() >= due
            && self
                .due
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let share = share(
                &Side::look(here, members),
                &Side::look(elsewhere, members),
                self.zones,
            );
            self.share.store(share.to_bits(), Ordering::Relaxed);
        }
        let share = f32::from_bits(self.share.load(Ordering::Relaxed));
        share >= 1.0 || dice.chance(f64::from(share))
    }
}

/// What is known about the members on one side.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Side {
    /// Of those that are in service.
    weight: f32,
    in_flight: f32,
    /// The mean time that an answer takes, failures counted as slowness; none while nobody has answered.
    time: Option<f32>,
}

impl Side {
    fn look(tier: &Tier, members: &impl Members) -> Self {
        let mut side = Self::default();
        let (mut sum, mut known) = (0.0, 0.0);
        for slot in 0..tier.len() {
            let member = tier.member(slot);
            if !members.in_service(member) {
                continue;
            }
            let load = members.load(member);
            let weight = tier.given(slot);
            side.weight += weight;
            side.in_flight += load.in_flight() as f32;
            // As it was after the last answer: who is not asked becomes neither slower nor faster.
            if let Some(time) = load.estimate(Moment::ZERO, f32::INFINITY) {
                let success = load.success().max(SUCCESS_FLOOR);
                sum += weight * time / (success * success);
                known += weight;
            }
        }
        side.time = (known > 0.0).then(|| sum / known);
        side
    }
}

/// The share of requests that stays here.
fn share(here: &Side, elsewhere: &Side, zones: u32) -> f32 {
    if here.weight <= 0.0 {
        return 0.0;
    }
    if elsewhere.weight <= 0.0 {
        return 1.0;
    }
    let all = here.weight + elsewhere.weight;
    let capacity = (here.weight * zones.max(2) as f32 / all).min(1.0);
    let is_busier = here.in_flight / here.weight > MORE * elsewhere.in_flight / elsewhere.weight;
    let load = match (here.time, elsewhere.time) {
        (Some(here), Some(elsewhere)) if is_busier && here > MORE * elsewhere => MORE * elsewhere / here,
        (Some(_), None) => 1.0 - EXPLORED,
        _ => 1.0,
    };
    capacity * load
}

/// So much more work, and so much longer, is too much.
const MORE: f32 = 1.5;

/// The share that finds out about somewhere that has never answered.
const EXPLORED: f32 = 0.01;

/// As in `peak_ewma`.
const SUCCESS_FLOOR: f32 = 0.05;

/// How old the share may be.
const REFRESH: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn side(weight: f32, in_flight: f32, time: f32) -> Side {
        Side {
            weight,
            in_flight,
            time: Some(time),
        }
    }

    #[test]
    fn everything_stays_while_our_zone_holds_its_part() {
        assert_eq!(share(&side(2.0, 9.0, 0.01), &side(4.0, 0.0, 0.01), 3), 1.0);
        assert_eq!(share(&side(1.0, 0.0, 0.01), &side(1.0, 0.0, 0.01), 2), 1.0);
        assert_eq!(share(&side(9.0, 0.0, 0.01), &side(1.0, 0.0, 0.01), 2), 1.0);
    }

    #[test]
    fn a_zone_that_lost_half_keeps_what_it_can_bear() {
        let kept = share(&side(1.0, 0.0, 0.01), &side(4.0, 0.0, 0.01), 3);
        assert!((kept - 0.6).abs() < 1e-6, "{kept}");
        assert_eq!(share(&Side::default(), &side(4.0, 0.0, 0.01), 3), 0.0);
        assert_eq!(share(&side(1.0, 0.0, 0.01), &Side::default(), 3), 1.0);
    }

    #[test]
    fn a_zone_that_is_busier_and_slower_spills_in_proportion() {
        let kept = share(&side(2.0, 40.0, 0.3), &side(4.0, 0.0, 0.1), 3);
        assert!((kept - 0.5).abs() < 1e-6, "{kept}");
        let idle = share(&side(2.0, 0.0, 0.3), &side(4.0, 0.0, 0.1), 3);
        assert_eq!(idle, 1.0, "slow, but not for want of room");
        let quick = share(&side(2.0, 40.0, 0.1), &side(4.0, 0.0, 0.1), 3);
        assert_eq!(quick, 1.0, "busy, and bears it");
    }

    #[test]
    fn somewhere_unknown_is_found_out_about() {
        let unknown = Side {
            time: None,
            ..side(2.0, 0.0, 0.0)
        };
        assert_eq!(share(&side(2.0, 1.0, 0.1), &unknown, 2), 0.99);
        assert_eq!(share(&unknown, &unknown, 2), 1.0, "nothing to compare yet");
    }
}
