//! Pick: which endpoint gets the next attempt, and in what role.
//!
//! Three questions in this order. *Is a probe due?* An endpoint that only a request can bring back is asked first, by an
//! attempt that may fail: nothing else brings it back, and a picker that hides it keeps it out for ever. *Who is in
//! service?* Those compete under the balancer's policy. *Is it panic?* Then so do those that a detector took out.
//!
//! Both ways of choosing are the one [`Balancer`] with another view of who is eligible, so priorities, weights, limits and
//! what is known of load hold in panic too.
//!
//! What must stay true: nobody whom people took out is picked, in any role; a probe is handed out only with the rights of
//! everybody who waits for one ([`Availability::awaits_probe`]); if there is no pick, the reason says whether trying
//! elsewhere, waiting, or giving up is right.

use crate::arbiter::Availability;
use crate::balance::{Balancer, Load, Members};
use crate::dice::Dice;
use crate::moment::Moment;
use crate::panic;
use crate::pulse::Pulse;

/// The members of a cluster as one request sees them. Indices are those of the balancer.
pub trait Candidates {
    /// The right to find out whether an endpoint may come back.
    type Probe;

    /// How many there are.
    fn count(&self) -> usize;

    /// Whether a member may be picked at all; one without a weight may not.
    fn takes_part(&self, index: usize) -> bool;

    /// What everybody thinks of it.
    fn availability(&self, index: usize) -> Availability;

    /// When it last answered, and when it last would not have us.
    fn pulse(&self, index: usize) -> &Pulse;

    /// The record of its recent past.
    fn load(&self, index: usize) -> &Load;

    /// The share of its weight that it gets at `now`.
    fn share(&self, index: usize, now: Moment) -> f32;

    /// Whether this request has tried it.
    fn is_tried(&self, index: usize) -> bool;

    /// Whether it has no place for another request.
    fn is_full(&self, index: usize) -> bool;

    /// The right to probe it, if it is due with everybody who waits for a probe.
    fn try_probe(&self, index: usize, now: Moment, dice: &mut Dice) -> Option<Self::Probe>;
}

/// An endpoint for one attempt.
#[derive(Debug)]
pub struct Picked<P> {
    /// Which one.
    pub index: usize,
    /// As what.
    pub role: Role<P>,
}

/// As what an endpoint was picked.
#[derive(Debug)]
pub enum Role<P> {
    /// It is in service.
    Usual,
    /// It is out, and this attempt finds out whether it may come back.
    Probe(P),
    /// It is out, and so is nearly everybody.
    Panic,
}

/// What of an attempt matters for the pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// What hashing policies choose by.
    pub hash: Option<u64>,
    /// Whether it may go to somebody who is out: it can be sent again, or it is its turn to find out.
    pub may_probe: bool,
}

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPick {
    /// There is none that may be asked.
    NoneAvailable,
    /// Those that may be asked and were not yet are at their limit.
    AtLimit,
    /// Every one that may be asked has been tried.
    AllTried,
}

/// How many could be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Those in service.
    pub available: usize,
    /// All but those that people took out.
    pub total: usize,
}

/// The endpoint for the next attempt.
///
/// # Errors
/// Why there is none.
pub fn pick<C: Candidates>(
    balancer: &Balancer,
    candidates: &C,
    panic: &panic::Settings,
    wish: Wish,
    now: Moment,
    dice: &mut Dice,
) -> Result<Picked<C::Probe>, NoPick> {
    if wish.may_probe
        && let Some((index, probe)) = due(candidates, now, dice)
    {
        let role = Role::Probe(probe);
        return Ok(Picked { index, role });
    }
    // By default panic means that nobody is in service, which the balancer finds out for itself.
    let calm = panic.threshold <= 0.0 || !census(candidates).is_panic(panic);
    if calm && let Some(index) = balancer.pick(&Serving(candidates), wish.hash, now, dice) {
        let role = Role::Usual;
        return Ok(Picked { index, role });
    }
    if census(candidates).is_panic(panic) {
        let left = Left {
            candidates,
            panic,
            now,
        };
        let index = balancer.pick(&left, wish.hash, now, dice);
        return index
            .map(|index| Picked {
                index,
                role: if candidates.availability(index).is_available() {
                    Role::Usual
                } else {
                    Role::Panic
                },
            })
            .ok_or_else(|| why(candidates, |index| left.admits(index)));
    }
    Err(why(candidates, |index| {
        candidates.availability(index).is_available()
    }))
}

/// How many there are to choose from; for [`panic::Panic::observe`].
#[must_use]
pub fn census<C: Candidates>(candidates: &C) -> Census {
    let mut census = Census {
        available: 0,
        total: 0,
    };
    for index in (0..candidates.count()).filter(|index| candidates.takes_part(*index)) {
        let availability = candidates.availability(index);
        census.available += usize::from(availability.is_available());
        census.total += usize::from(!panic::is_taken_out(availability));
    }
    census
}

impl Census {
    fn is_panic(self, settings: &panic::Settings) -> bool {
        settings.is_panic(self.available, self.total)
    }
}

/// Somebody who is due, and the right to ask it. The search begins anywhere: one that fails each probe is due again by the
/// time of a rare next request, and would keep those behind it waiting for ever.
fn due<C: Candidates>(candidates: &C, now: Moment, dice: &mut Dice) -> Option<(usize, C::Probe)> {
    let waits = |index: &usize| {
        candidates.takes_part(*index)
            && candidates.availability(*index).awaits_probe()
            && !candidates.is_tried(*index)
    };
    let count = candidates.count();
    // Usually nobody waits, and no die is rolled.
    (0..count).find(waits)?;
    let start = dice.below(u32::try_from(count).unwrap_or(u32::MAX)) as usize;
    let around = (start..count).chain(0..start);
    around.filter(waits).find_map(|index| {
        let probe = candidates.try_probe(index, now, dice)?;
        Some((index, probe))
    })
}

/// Why nobody was picked of those who may be asked.
fn why<C: Candidates>(candidates: &C, may_be_asked: impl Fn(usize) -> bool) -> NoPick {
    let mut asked = (0..candidates.count())
        .filter(|index| candidates.takes_part(*index) && may_be_asked(*index))
        .peekable();
    if asked.peek().is_none() {
        NoPick::NoneAvailable
    } else if asked.all(|index| candidates.is_tried(index)) {
        NoPick::AllTried
    } else {
        NoPick::AtLimit
    }
}

/// Those in service.
struct Serving<'a, C>(&'a C);

impl<C: Candidates> Members for Serving<'_, C> {
    fn load(&self, index: usize) -> &Load {
        self.0.load(index)
    }

    fn eligible(&self, index: usize) -> bool {
        self.0.availability(index).is_available() && !self.0.is_tried(index) && !self.0.is_full(index)
    }

    fn slow_start(&self, index: usize, now: Moment) -> f32 {
        self.0.share(index, now)
    }
}

/// Those who are left to ask in panic.
struct Left<'a, C> {
    candidates: &'a C,
    panic: &'a panic::Settings,
    now: Moment,
}

impl<C: Candidates> Left<'_, C> {
    fn admits(&self, index: usize) -> bool {
        let availability = self.candidates.availability(index);
        self.panic
            .admits(availability, self.candidates.pulse(index), self.now)
    }
}

impl<C: Candidates> Members for Left<'_, C> {
    fn load(&self, index: usize) -> &Load {
        self.candidates.load(index)
    }

    fn eligible(&self, index: usize) -> bool {
        self.admits(index) && !self.candidates.is_tried(index) && !self.candidates.is_full(index)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::arbiter::{Arbiter, Opinion, Source};
    use crate::balance::{MemberSpec, Policy};
    use crate::ejection::{self, Ejection, Probe};
    use crate::mode::Mode;
    use crate::outcome::{Origin, Outcome};

    struct Host {
        arbiter: Arbiter,
        ejection: Arc<Ejection>,
        pulse: Pulse,
        load: Load,
    }

    struct Cluster {
        hosts: Vec<Host>,
        tried: Vec<usize>,
        full: Vec<usize>,
        balancer: Balancer,
        dice: Dice,
    }

    impl Cluster {
        fn new(size: usize) -> Self {
            let keys: Vec<_> = (0..size).map(|index| index.to_be_bytes()).collect();
            let specs: Vec<_> = keys
                .iter()
                .map(|key| MemberSpec {
                    weight: 1,
                    priority: 0,
                    key,
                })
                .collect();
            Self {
                hosts: (0..size)
                    .map(|_| Host {
                        arbiter: Arbiter::new(Moment::ZERO),
                        ejection: Arc::default(),
                        pulse: Pulse::new(),
                        load: Load::new(),
                    })
                    .collect(),
                tried: Vec::new(),
                full: Vec::new(),
                balancer: Balancer::new(Policy::Random, &specs, 1),
                dice: Dice::new(1),
            }
        }

        fn say(&self, index: usize, source: Source, opinion: Opinion) {
            self.hosts[index]
                .arbiter
                .set(source, opinion, "test", String::new(), at(0));
        }

        fn eject(&mut self, index: usize) {
            let settings = ejection::Settings::default();
            self.hosts[index]
                .ejection
                .eject(&settings, Mode::Enforce, at(0), &mut self.dice);
            self.say(index, Source::Ejection, Opinion::Down);
        }

        fn pick(&mut self, panic: &panic::Settings, now: u64) -> Result<(usize, &'static str), NoPick> {
            let mut dice = self.dice.split();
            let wish = Wish {
                hash: None,
                may_probe: true,
            };
            let picked = pick(&self.balancer, self, panic, wish, at(now), &mut dice)?;
            let role = match picked.role {
                Role::Usual => "usual",
                Role::Probe(_) => "probe",
                Role::Panic => "panic",
            };
            Ok((picked.index, role))
        }
    }

    impl Candidates for Cluster {
        type Probe = Probe;

        fn count(&self) -> usize {
            self.hosts.len()
        }

        fn takes_part(&self, _: usize) -> bool {
            true
        }

        fn availability(&self, index: usize) -> Availability {
            self.hosts[index].arbiter.availability()
        }

        fn pulse(&self, index: usize) -> &Pulse {
            &self.hosts[index].pulse
        }

        fn load(&self, index: usize) -> &Load {
            &self.hosts[index].load
        }

        fn share(&self, _: usize, _: Moment) -> f32 {
            1.0
        }

        fn is_tried(&self, index: usize) -> bool {
            self.tried.contains(&index)
        }

        fn is_full(&self, index: usize) -> bool {
            self.full.contains(&index)
        }

        fn try_probe(&self, index: usize, now: Moment, _: &mut Dice) -> Option<Probe> {
            self.hosts[index]
                .ejection
                .try_probe(&ejection::Settings::default(), now)
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    const CALM: panic::Settings = panic::Settings {
        threshold: 0.0,
        to: panic::To::All,
    };

    #[test]
    fn who_is_out_is_left_alone_until_it_is_due_and_then_asked_first() {
        let mut cluster = Cluster::new(3);
        cluster.eject(1);
        for _ in 0..50 {
            let (index, role) = cluster.pick(&CALM, 4).expect("two are left");
            assert!(index != 1 && role == "usual");
        }
        assert_eq!(cluster.pick(&CALM, 60), Ok((1, "probe")));
        cluster.tried.push(1);
        assert_eq!(cluster.pick(&CALM, 60).map(|(_, role)| role), Ok("usual"));
    }

    #[test]
    fn one_that_fails_every_probe_does_not_keep_others_waiting() {
        let mut cluster = Cluster::new(3);
        cluster.eject(0);
        cluster.eject(2);
        // Requests are so rare that both are due each time.
        let asked: Vec<_> = (0..40).map(|_| cluster.pick(&CALM, 60)).collect();
        assert!(asked.contains(&Ok((0, "probe"))) && asked.contains(&Ok((2, "probe"))));
    }

    #[test]
    fn a_probe_does_not_override_what_others_say() {
        let mut cluster = Cluster::new(2);
        cluster.eject(0);
        for source in [Source::Check, Source::Admin, Source::Heartbeat] {
            cluster.say(0, source, Opinion::Down);
            assert_eq!(cluster.pick(&CALM, 60), Ok((1, "usual")), "{source:?}");
            cluster.say(0, source, Opinion::Unknown);
        }
        // Its breaker would wait for the ejection to end as the ejection does for the breaker.
        cluster.say(0, Source::Breaker, Opinion::Down);
        assert_eq!(cluster.pick(&CALM, 60), Ok((0, "probe")));
    }

    #[test]
    fn in_panic_those_are_asked_whom_nobody_took_out_and_who_do_not_refuse() {
        let mut cluster = Cluster::new(4);
        for index in 0..4 {
            cluster.say(index, Source::Check, Opinion::Down);
        }
        cluster.say(1, Source::Admin, Opinion::Down);
        cluster.hosts[2]
            .pulse
            .record(Outcome::Failure(Origin::Local), at(10));
        let mut asked: Vec<_> = (0..100).map(|_| cluster.pick(&CALM, 11)).collect();
        asked.sort_unstable_by_key(|picked| picked.ok());
        asked.dedup();
        assert_eq!(asked, [Ok((0, "panic")), Ok((3, "panic"))]);
        let reject = panic::Settings {
            to: panic::To::Reject,
            ..CALM
        };
        assert_eq!(cluster.pick(&reject, 11), Err(NoPick::NoneAvailable));
    }

    #[test]
    fn a_share_may_be_panic_too() {
        let mut cluster = Cluster::new(4);
        for index in 1..4 {
            cluster.say(index, Source::Check, Opinion::Down);
        }
        let half = panic::Settings {
            threshold: 0.5,
            ..CALM
        };
        let mut picked: Vec<_> = (0..100)
            .filter_map(|_| cluster.pick(&half, 1).ok())
            .map(|(i, _)| i)
            .collect();
        picked.sort_unstable();
        picked.dedup();
        assert_eq!(picked, [0, 1, 2, 3]);
        assert_eq!(cluster.pick(&CALM, 1), Ok((0, "usual")));
    }

    #[test]
    fn the_reason_says_what_to_do() {
        let mut cluster = Cluster::new(2);
        cluster.tried.push(0);
        cluster.full.push(1);
        assert_eq!(cluster.pick(&CALM, 1), Err(NoPick::AtLimit), "waiting may help");
        cluster.tried.push(1);
        assert_eq!(cluster.pick(&CALM, 1), Err(NoPick::AllTried));
        // In panic limits hold too.
        cluster.tried.clear();
        for index in 0..2 {
            cluster.say(index, Source::Check, Opinion::Down);
        }
        cluster.full.push(0);
        assert_eq!(cluster.pick(&CALM, 1), Err(NoPick::AtLimit));
        for index in 0..2 {
            cluster.say(index, Source::Admin, Opinion::Down);
        }
        assert_eq!(cluster.pick(&CALM, 1), Err(NoPick::NoneAvailable));
    }
}
