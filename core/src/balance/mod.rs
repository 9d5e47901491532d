//! Balance: which endpoint gets the next attempt.
//!
//! A [`Balancer`] is made of a list of members when a snapshot is compiled and is immutable but for cursors and cached
//! medians; what is learned about an endpoint lives in its [`Load`] and outlasts the snapshot. Who may be picked at all
//! (healthy, not tried yet) is not the balancer's business: it asks [`Members::eligible`] and never answers with a member
//! that is not.
//!
//! For every [`Policy`]:
//! * a member of weight 0 is never picked, and weights are honoured: by frequency (round robin, random), by load
//!   (least request, peak EWMA), by share of the keys (ring hash, Maglev);
//! * only the lowest priority number that has an eligible member is used;
//! * if anything is eligible, something is picked;
//! * equal seeds, members and dice give equal picks.
//!
//! The usual pick asks two members and costs the same for 3 and for 3000; only when most of a tier is ineligible are all
//! of its members asked.

mod bound;
mod least_request;
mod load;
mod maglev;
mod peak_ewma;
mod ring;
mod round_robin;
mod tier;
mod zone;

pub use load::{Load, Saved as SavedLoad};
pub use zone::Place;

use self::{
    bound::Bound, maglev::Maglev, peak_ewma::Typical, ring::Ring, round_robin::Turns, tier::Tier, zone::Gate,
};
use crate::{dice::Dice, moment::Moment};

/// How a member is chosen among equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// In turn, the heavier more often.
    RoundRobin,
    /// By chance, by weight.
    Random,
    /// The less busy of two.
    LeastRequest,
    /// The one of two that is expected to answer sooner, failures counted as slowness.
    #[default]
    PeakEwma,
    /// By the hash of the request, on a circle; moves the fewest keys when members change.
    RingHash,
    /// By the hash of the request, in a table; more even than a ring.
    Maglev,
}

impl Policy {
    /// The word in configuration and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastRequest => "least_request",
            Self::PeakEwma => "peak_ewma",
            Self::RingHash => "ring_hash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether the policy chooses by the hash of the request, so that one must be given.
    #[must_use]
    pub const fn is_hashing(self) -> bool {
        match self {
            Self::RingHash | Self::Maglev => true,
            Self::RoundRobin | Self::Random | Self::LeastRequest | Self::PeakEwma => false,
        }
    }
}

/// What is known about a member when the balancer is made.
#[derive(Debug, Clone, Copy)]
pub struct MemberSpec<'a> {
    /// Share relative to the others; 0 means drained: never picked.
    pub weight: u32,
    /// 0 first; a higher number is used only while nobody of a lower one is eligible.
    pub priority: u8,
    /// What the member is called across restarts and proxies, an address for example; unlike any other member's. Hashing
    /// policies place a member by it.
    pub key: &'a [u8],
}

/// What is known about the members at the moment of a pick. Indices are those of the list given to [`Balancer::new`].
pub trait Members {
    /// The record of a member's recent past.
    fn load(&self, index: usize) -> &Load;

    /// Whether a member may get this attempt.
    fn eligible(&self, index: usize) -> bool;

    /// Whether a member is in service apart from this attempt: its zone may count on it.
    fn in_service(&self, index: usize) -> bool {
        self.eligible(index)
    }

    /// The share of its weight that a member has at `now`, above 0.0 and up to 1.0 ([`crate::slow_start`]). Hashing
    /// policies do not ask: a key that moves away and back helps nobody.
    fn slow_start(&self, index: usize, now: Moment) -> f32 {
        let _ = (index, now);
        1.0
    }
}

/// A policy over one list of members.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    /// By ascending priority number.
    levels: Box<[Level]>,
}

/// The members of one priority.
#[derive(Debug)]
enum Level {
    /// Wherever they are.
    Together(Group),
    /// Those of our own zone first, as far as it bears that.
    Apart {
        here: Group,
        elsewhere: Group,
        gate: Gate,
    },
}

/// Members among whom one is chosen.
#[derive(Debug)]
struct Group {
    tier: Tier,
    method: Method,
}

impl Balancer {
    /// A balancer over `members`. `seed` decides where cursors start.
    ///
    /// Costs little except for hashing: up to 5 MB and tens of milliseconds for 3000 members.
    #[must_use]
    pub fn new(policy: Policy, members: &[MemberSpec<'_>], seed: u64) -> Self {
        Self::zoned(policy, members, &[], 0, seed)
    }

    /// As [`Balancer::new`], and requests stay in our own zone as far as it bears them. `places` says of each member
    /// where it is; `zones` is over how many zones the traffic is spread, our own included.
    ///
    /// Hashing policies do not ask where a member is: a key has one place, seen from everywhere.
    #[must_use]
    pub fn zoned(
        policy: Policy,
        members: &[MemberSpec<'_>],
        places: &[Place],
        zones: u32,
        seed: u64,
    ) -> Self {
        let mut priorities: Vec<u8> = members
            .iter()
            .filter(|spec| spec.weight > 0)
            .map(|spec| spec.priority)
            .collect();
        priorities.sort_unstable();
        priorities.dedup();
        let group = |indices: &[u32]| {
            let tier = Tier::new(members, indices);
            let method = Method::new(policy, &tier, members, seed);
            Group { tier, method }
        };
        let is_here = |index: &u32| places.get(*index as usize) == Some(&Place::Here);
        let levels = priorities
            .into_iter()
            .map(|priority| {
                let indices: Vec<u32> = (0u32..)
                    .zip(members)
                    .filter(|(_, spec)| spec.weight > 0 && spec.priority == priority)
                    .map(|(index, _)| index)
                    .collect();
                let (here, elsewhere): (Vec<u32>, Vec<u32>) =
                    indices.iter().partition(|index| is_here(index));
                if policy.is_hashing() || here.is_empty() || elsewhere.is_empty() {
                    return Level::Together(group(&indices));
                }
                Level::Apart {
                    here: group(&here),
                    elsewhere: group(&elsewhere),
                    gate: Gate::new(zones),
                }
            })
            .collect();
        Self { policy, levels }
    }

    /// The policy it was made with.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// The member for the next attempt, or `None` if no member with a weight is eligible.
    ///
    /// `hash` is what hashing policies choose by; without one they choose by chance. The others ignore it.
    #[must_use]
    pub fn pick(
        &self,
        members: &impl Members,
        hash: Option<u64>,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<usize> {
        self.levels.iter().find_map(|level| match level {
            Level::Together(group) => group.pick(members, hash, now, dice),
            Level::Apart {
                here,
                elsewhere,
                gate,
            } => {
                let (first, second) = match gate.keeps(&here.tier, &elsewhere.tier, members, now, dice) {
                    true => (here, elsewhere),
                    false => (elsewhere, here),
                };
                first
                    .pick(members, hash, now, dice)
                    .or_else(|| second.pick(members, hash, now, dice))
            }
        })
    }
}

impl Group {
    fn pick(&self, members: &impl Members, hash: Option<u64>, now: Moment, dice: &mut Dice) -> Option<usize> {
        let slot = self.method.pick(&self.tier, members, hash, now, dice)?;
        Some(self.tier.member(slot))
    }
}

/// A policy with what it keeps for one tier.
#[derive(Debug)]
enum Method {
    RoundRobin(Turns),
    Random,
    LeastRequest,
    PeakEwma(Typical),
    RingHash(Ring, Bound),
    Maglev(Maglev, Bound),
}

impl Method {
    fn new(policy: Policy, tier: &Tier, members: &[MemberSpec<'_>], seed: u64) -> Self {
        match policy {
            Policy::RoundRobin => Self::RoundRobin(Turns::new(tier, members, seed)),
            Policy::Random => Self::Random,
            Policy::LeastRequest => Self::LeastRequest,
            Policy::PeakEwma => Self::PeakEwma(Typical::new()),
            Policy::RingHash => Self::RingHash(Ring::new(tier, members), Bound::new()),
            Policy::Maglev => Self::Maglev(Maglev::new(tier, members), Bound::new()),
        }
    }

    /// A slot of the tier; `None` only if no member of it is eligible.
    fn pick(
        &self,
        tier: &Tier,
        members: &impl Members,
        hash: Option<u64>,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<usize> {
        if tier.len() == 1 {
            return tier.is_eligible(0, members).then_some(0);
        }
        match self {
            Self::RoundRobin(turns) => turns.pick(tier, members, now, dice),
            Self::Random => tier
                .draw_taking(members, now, dice)
                .or_else(|| tier.any(None, members, dice)),
            Self::LeastRequest => tier.cheaper(members, now, dice, least_request::cost),
            Self::PeakEwma(typical) => {
                let typical = typical.get(tier, members, now, dice);
                tier.cheaper(members, now, dice, |load, weight| {
                    peak_ewma::cost(load, weight, typical, now)
                })
            }
            Self::RingHash(ring, bound) => {
                let key = hash.unwrap_or_else(|| dice.next_u64());
                bound.pick(ring.walk(key), tier, members, now, dice)
            }
            Self::Maglev(maglev, bound) => {
                let key = hash.unwrap_or_else(|| dice.next_u64());
                bound.pick(maglev.walk(key), tier, members, now, dice)
            }
        }
    }
}

#[cfg(test)]
mod tests;
