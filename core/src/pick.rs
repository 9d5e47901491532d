//! Pick: which endpoint gets the next attempt, and in what role.
//!
//! Four questions in this order. *Is a probe due?* An endpoint that only a request can bring back is asked first, by an
//! attempt that may fail: nothing else brings it back, and a picker that hides it keeps it out for ever. *Does a breaker
//! wait for somebody?* Likewise. *Who is in service?* Those compete under the balancer's policy. *Is it panic?* Then so do
//! those that a detector took out.
//!
//! All ways of choosing are the one [`Balancer`] with another view of who is eligible, so priorities, weights, limits and
//! what is known of load hold in panic too. Whoever is chosen must still have a place ([`Candidates::take`]): another worker
//! may have been faster.
//!
//! What must stay true: nobody whom people took out is picked, in any role; a probe is handed out only with the rights of
//! everybody who waits for one ([`Availability::awaits_probe`]); if there is no pick, the reason says whether trying
//! elsewhere, waiting, or giving up is right.

use std::time::Duration;

use crate::arbiter::Availability;
use crate::balance::{Balancer, Load, Members};
use crate::breaker::Passage;
use crate::dice::Dice;
use crate::moment::Moment;
use crate::panic;
use crate::pulse::Pulse;

/// The members of a cluster as one request sees them. Indices are those of the balancer.
pub trait Candidates {
    /// The right to find out whether an endpoint may come back.
    type Probe;
    /// The right to send it a request.
    type Place;

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

    /// A place at it, if there is one.
    fn take(&self, index: usize) -> Option<Self::Place>;

    /// Whether anybody can be due; if not, nobody is looked at for it.
    fn may_be_due(&self) -> bool {
        true
    }

    /// The right to probe it, if it is due with everybody who waits for a probe.
    fn try_probe(&self, index: usize, now: Moment, dice: &mut Dice) -> Option<Self::Probe>;

    /// What its breaker would say to this request at `now`; those who have none that asks are free.
    fn passage(&self, index: usize, now: Moment) -> Passage {
        let _ = (index, now);
        Passage::Free
    }

    /// Whether the breaker of anybody can say anything but [`Passage::Free`].
    fn may_be_shut(&self) -> bool {
        false
    }

    /// Whether panic has been noticed although somebody is in service. That nobody is, is found out here.
    fn panics(&self) -> bool {
        false
    }
}

/// An endpoint for one attempt.
#[derive(Debug)]
pub struct Picked<P, L> {
    /// Which one.
    pub index: usize,
    /// As what.
    pub role: Role<P>,
    /// Its place there.
    pub place: L,
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
    /// The breakers of those that are left refuse, for so long.
    BreakersOpen(Duration),
}

/// How many could be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Those in service.
    pub available: usize,
    /// All but those that people took out.
    pub total: usize,
}

/// The endpoint for the next attempt. Without settings there is no panic.
///
/// # Errors
/// Why there is none.
pub fn pick<C: Candidates>(
    balancer: &Balancer,
    candidates: &C,
    panic: Option<&panic::Settings>,
    wish: Wish,
    now: Moment,
    dice: &mut Dice,
) -> Result<Picked<C::Probe, C::Place>, NoPick> {
    if wish.may_probe
        && let Some((index, probe)) = due(candidates, now, dice)
        && let Some(place) = candidates.take(index)
    {
        let role = Role::Probe(probe);
        return Ok(Picked { index, role, place });
    }
    let mut serving = Serving {
        candidates,
        now,
        panic: panic.filter(|_| candidates.panics()),
    };
    if wish.may_probe
        && let Some(picked) = serving.wanted()
    {
        return Ok(picked);
    }
    if let Some(picked) = serving.pick(balancer, wish, dice) {
        return Ok(picked);
    }
    // Whoever comes is better than nobody.
    if let Some(picked) = serving.wanted() {
        return Ok(picked);
    }
    // Usually panic means that nobody is left, which the balancer has just found out.
    if serving.panic.is_none() {
        serving.panic = panic.filter(|settings| census(candidates).is_panic(settings));
        if serving.panic.is_some()
            && let Some(picked) = serving.pick(balancer, wish, dice)
        {
            return Ok(picked);
        }
    }
    Err(serving.why())
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
    /// Whether that is panic.
    #[must_use]
    pub fn is_panic(self, settings: &panic::Settings) -> bool {
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
    if !candidates.may_be_due() {
        return None;
    }
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

/// Who may be asked: those in service, and in panic those who would answer at all.
struct Serving<'a, C> {
    candidates: &'a C,
    now: Moment,
    panic: Option<&'a panic::Settings>,
}

impl<C: Candidates> Serving<'_, C> {
    /// Whether it would take a request, apart from limits, breakers and what this request has tried.
    fn is_willing(&self, index: usize) -> bool {
        let availability = self.candidates.availability(index);
        match self.panic {
            None => availability.is_available(),
            Some(settings) => settings.admits(availability, self.candidates.pulse(index), self.now),
        }
    }

    /// Whether it could be picked if it had no breaker.
    fn is_usable(&self, index: usize) -> bool {
        self.is_willing(index) && !self.candidates.is_tried(index) && !self.candidates.is_full(index)
    }

    fn pick(&self, balancer: &Balancer, wish: Wish, dice: &mut Dice) -> Option<Picked<C::Probe, C::Place>> {
        (0..RACES).find_map(|_| {
            let index = balancer.pick(self, wish.hash, self.now, dice)?;
            self.seated(index)
        })
    }

    fn seated(&self, index: usize) -> Option<Picked<C::Probe, C::Place>> {
        let place = self.candidates.take(index)?;
        let role = if self.panic.is_none() || self.candidates.availability(index).is_available() {
            Role::Usual
        } else {
            Role::Panic
        };
        Some(Picked { index, role, place })
    }

    /// Somebody whose breaker waits for a probe.
    fn wanted(&self) -> Option<Picked<C::Probe, C::Place>> {
        if !self.candidates.may_be_shut() {
            return None;
        }
        let index = (0..self.candidates.count()).find(|index| {
            self.candidates.takes_part(*index)
                && self.candidates.passage(*index, self.now) == Passage::Due
                && self.is_usable(*index)
        })?;
        self.seated(index)
    }

    /// Why nobody was picked of those who may be asked.
    fn why(&self) -> NoPick {
        let mut willing = (0..self.candidates.count())
            .filter(|index| self.candidates.takes_part(*index) && self.is_willing(*index))
            .peekable();
        if willing.peek().is_none() {
            return NoPick::NoneAvailable;
        }
        let mut untried = willing
            .filter(|index| !self.candidates.is_tried(*index))
            .peekable();
        if untried.peek().is_none() {
            return NoPick::AllTried;
        }
        let shut = untried
            .filter_map(|index| match self.candidates.passage(index, self.now) {
                Passage::Shut(left) => Some(left),
                Passage::Free | Passage::Due => None,
            })
            .min();
        shut.map_or(NoPick::AtLimit, NoPick::BreakersOpen)
    }
}

impl<C: Candidates> Members for Serving<'_, C> {
    fn load(&self, index: usize) -> &Load {
        self.candidates.load(index)
    }

    fn eligible(&self, index: usize) -> bool {
        self.is_usable(index)
            && (!self.candidates.may_be_shut() || self.candidates.passage(index, self.now) == Passage::Free)
    }

    fn slow_start(&self, index: usize, now: Moment) -> f32 {
        match self.panic {
            None => self.candidates.share(index, now),
            Some(_) => 1.0,
        }
    }
}

/// How often a pick tries again after another worker was faster.
const RACES: usize = 4;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

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
        /// Places that somebody else has taken since they were looked at.
        gone: Vec<usize>,
        passages: BTreeMap<usize, Passage>,
        noticed: bool,
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
                gone: Vec::new(),
                passages: BTreeMap::new(),
                noticed: false,
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
            self.noticed = panic.threshold > 0.0 && census(self).is_panic(panic);
            let picked = pick(&self.balancer, self, Some(panic), wish, at(now), &mut dice)?;
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
        type Place = ();

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

        fn take(&self, index: usize) -> Option<()> {
            (!self.gone.contains(&index)).then_some(())
        }

        fn passage(&self, index: usize, _: Moment) -> Passage {
            self.passages.get(&index).copied().unwrap_or(Passage::Free)
        }

        fn may_be_shut(&self) -> bool {
            !self.passages.is_empty()
        }

        fn panics(&self) -> bool {
            self.noticed
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
    fn a_breaker_that_waits_is_asked_first_and_one_that_is_shut_not_at_all() {
        let mut cluster = Cluster::new(3);
        cluster.passages.insert(0, Passage::Shut(Duration::from_secs(3)));
        for _ in 0..50 {
            assert_ne!(cluster.pick(&CALM, 1).expect("two are left").0, 0);
        }
        cluster.passages.insert(2, Passage::Due);
        assert_eq!(cluster.pick(&CALM, 1), Ok((2, "usual")));
        // Nobody else is left: it is asked by whoever comes.
        cluster.tried.push(1);
        let mut dice = Dice::new(3);
        let wish = Wish {
            hash: None,
            may_probe: false,
        };
        let picked = pick(&cluster.balancer, &cluster, None, wish, at(1), &mut dice);
        assert_eq!(picked.map(|picked| picked.index).ok(), Some(2));
        cluster.passages.insert(2, Passage::Shut(Duration::from_secs(2)));
        assert_eq!(
            cluster.pick(&CALM, 1),
            Err(NoPick::BreakersOpen(Duration::from_secs(2))),
            "as long as the first of them"
        );
    }

    #[test]
    fn a_place_that_is_gone_is_looked_for_elsewhere() {
        let mut cluster = Cluster::new(2);
        cluster.gone.push(0);
        let picked: Vec<_> = (0..50).map(|_| cluster.pick(&CALM, 1)).collect();
        assert!(
            picked
                .iter()
                .all(|picked| matches!(picked, Ok((1, _)) | Err(NoPick::AtLimit)))
        );
        assert!(picked.iter().filter(|picked| picked.is_ok()).count() > 40);
        cluster.gone.push(1);
        assert_eq!(cluster.pick(&CALM, 1), Err(NoPick::AtLimit));
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
