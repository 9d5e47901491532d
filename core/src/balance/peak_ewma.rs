//! Peak EWMA: the expected cost of one more request.
//!
//! `cost = max(estimate, silence) * (in flight / weight + 1) / max(success, 0.05)^2`, cheapest of the candidates wins. The estimate is
//! latency, the factor behind it the queue the request would join, and the division the *success discount*: an endpoint
//! that fails half of its requests costs four times as much, one that fails all of them four hundred times. Without it the
//! endpoint that fails fastest looks best and swallows the traffic. A fixed penalty per failure does that too, but blinds
//! the latency signal for a minute after each one.
//!
//! Weights are relative to the mean, so equal ones drop out of the formula. Unequal ones act in the draw of the first
//! candidate and where load is: an endpoint of weight 3 may hold three times the requests before it looks as busy.
//! Dividing the whole cost by the weight instead would starve the light ones of an idle cluster.
//!
//! An endpoint that asked to be spared (`Retry-After`) is asked only while nobody else is found.
//!
//! An estimate without fresh samples decays to half of what is typical in the cluster, and an unknown endpoint is taken
//! for typical: a newcomer is neither flooded nor starved. *Typical* is the median of all estimates; the one kept here is
//! refreshed at most every [`REFRESH`] from at most [`SAMPLE`] endpoints by whichever pick comes first, so a pick itself
//! computes no median. It is late by that much, which against a time constant of ten seconds is nothing.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use super::{Load, Members, tier::Tier};
use crate::{dice::Dice, moment::Moment};

/// The cost of one more request on an endpoint, in seconds.
#[must_use]
pub(super) fn cost(load: &Load, weight: f32, typical: f32, now: Moment) -> f32 {
    if load.avoid_until() > now {
        // It asked to be spared: only if there is nobody else.
        return f32::INFINITY;
    }
    // Who has been silent for longer takes at least as long.
    let estimate = load
        .estimate(now, typical / 2.0)
        .unwrap_or(typical)
        .max(load.silence(now));
    let success = load.success().max(SUCCESS_FLOOR);
    estimate * (load.in_flight() as f32 / weight + 1.0) / (success * success)
}

/// The median response time of a cluster, in seconds, kept fresh in passing.
#[derive(Debug)]
pub(super) struct Typical {
    /// `f32` bits of seconds.
    value: AtomicU32,
    /// Nanoseconds of the moment at which the next pick refreshes it.
    due: AtomicU64,
}

impl Typical {
    /// What estimates decay to.
    fn rest(&self) -> f32 {
        f32::from_bits(self.value.load(Ordering::Relaxed)) / 2.0
    }

    pub(super) const fn new() -> Self {
        Self {
            value: AtomicU32::new(UNKNOWN.to_bits()),
            due: AtomicU64::new(0),
        }
    }

    /// The present value, refreshed first if it is time.
    pub(super) fn get(&self, tier: &Tier, members: &impl Members, now: Moment, dice: &mut Dice) -> f32 {
        // Ordering: Relaxed; both are lone values, and one refresh more or less changes nothing. The exchange lets one
        // worker do the work.
        let due = self.due.load(Ordering::Relaxed);
        if now.as_nanos() >= due {
            let next = now.plus(REFRESH).as_nanos();
            if self
                .due
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
                && let Some(median) = median(tier, members, self.rest(), now, dice)
            {
                self.value.store(median.to_bits(), Ordering::Relaxed);
            }
        }
        f32::from_bits(self.value.load(Ordering::Relaxed))
    }
}

/// The median of the estimates of (a sample of) the members; `None` if none has one.
///
/// Of the estimates as they are *now*: taken as they once were, a majority that is never asked would hold the median up
/// and with it the level towards which it decays itself, and would never become attractive again.
fn median(tier: &Tier, members: &impl Members, rest: f32, now: Moment, dice: &mut Dice) -> Option<f32> {
    let mut seen = [0.0f32; SAMPLE];
    let mut len = 0;
    let start = dice.below(tier.len() as u32) as usize;
    for step in 0..tier.len().min(SAMPLE) {
        let member = tier.member((start + step) % tier.len());
        if let Some(estimate) = members.load(member).estimate(now, rest) {
            seen[len] = estimate;
            len += 1;
        }
    }
    let seen = &mut seen[..len];
    seen.sort_unstable_by(f32::total_cmp);
    // The lower one of two in the middle: an unknown endpoint beside two known ones would otherwise always look worse than
    // one of them.
    seen.get(len.saturating_sub(1) / 2).copied()
}

/// What an endpoint is taken for while the whole cluster is unknown, in seconds.
const UNKNOWN: f32 = 0.03;

/// Below this share of successes an endpoint does not get any more expensive; it must stay possible to recover.
const SUCCESS_FLOOR: f32 = 0.05;

/// How old the typical response time may be.
const REFRESH: Duration = Duration::from_millis(100);

/// How many endpoints the median is taken of.
const SAMPLE: usize = 64;
