//! Heartbeat: what an endpoint says of itself, and whether to believe it.
//!
//! An endpoint pushes a beat every second: that it lives, whether it wants traffic, how much, and how busy it is. Networks
//! reorder and retries repeat, so a beat carries the number of the process (`incarnation`, grows with every start) and its
//! own (`seq`); what is not newer than what is known is ignored. What it says holds for a time only (`ttl`) and is then
//! forgotten, in whatever direction it went: an agent that said "down" and died must not keep its endpoint down for ever,
//! which is what HAProxy warns of.
//!
//! An endpoint that pushes nothing may say that it leaves in any answer it gives ([`Beats::hear`]); the worse of the two
//! words counts. There is no order among answers, so the last one heard holds.
//!
//! Who sends for an endpoint must be it. The shell checks the identity; here it is settled what follows: a beat for
//! nobody we know, of somebody else, or of nonsense changes nothing and is counted.

use std::time::Duration;

use crate::arbiter::Opinion;
use crate::moment::Moment;

/// One pushed beat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beat {
    /// The start of the process; a later one is greater.
    pub incarnation: u64,
    /// Grows within an incarnation.
    pub seq: u64,
    /// Whether it wants traffic.
    pub state: State,
    /// How much of it.
    pub weight: Option<Weight>,
    /// How busy it is, 0.0 to 1.0.
    pub load: Option<f32>,
    /// How many requests it wants at a time.
    pub max_in_flight: Option<u32>,
    /// How long this holds.
    pub ttl: Option<Duration>,
}

/// Whether an endpoint wants traffic. The words are those of HAProxy's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It does.
    Up,
    /// It finishes what it has.
    Drain,
    /// It is being worked on.
    Maint,
    /// It cannot.
    Down,
}

/// How much traffic an endpoint wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// This instead of the configured weight, 0 to 256.
    Absolute(u16),
    /// This share of the configured weight, 0 to 100.
    Percent(u16),
}

/// Whether the sender of a beat is the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// It has proven so.
    Verified,
    /// It has proven to be somebody else, or nothing.
    Forged,
}

/// What became of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is the newest.
    Accepted,
    /// A newer one came before.
    Stale,
    /// There is no such endpoint.
    Unknown,
    /// It is forged.
    Forged,
    /// It makes no sense.
    Invalid(Nonsense),
}

/// What is wrong with a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonsense {
    /// Not within 0 to 256, or 0 to 100 %.
    Weight,
    /// Not within 0 to 1.
    Load,
    /// Zero.
    Ttl,
}

/// What one endpoint has said. Survives reloads; the order of beats is remembered longer than what they said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Beats {
    newest: Option<(u64, u64)>,
    said: Option<(Beat, Moment)>,
    /// In an answer, and until when it holds.
    heard: Option<(State, Moment)>,
}

impl Beats {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self::after(None)
    }

    /// With the order that was known before, by another process for example, and nothing said.
    #[must_use]
    pub const fn after(newest: Option<(u64, u64)>) -> Self {
        Self {
            newest,
            said: None,
            heard: None,
        }
    }

    /// The incarnation and number of the newest beat.
    #[must_use]
    pub const fn newest(&self) -> Option<(u64, u64)> {
        self.newest
    }

    /// What the newest beat said, while it holds.
    #[must_use]
    pub fn current(&self, now: Moment) -> Option<&Beat> {
        self.said
            .as_ref()
            .filter(|(_, until)| now < *until)
            .map(|(beat, _)| beat)
    }

    /// Until when that holds; [`Moment::ZERO`] if nothing was said.
    #[must_use]
    pub fn until(&self) -> Moment {
        self.said.map_or(Moment::ZERO, |(_, until)| until)
    }

    /// It said this of itself in an answer; that holds for `ttl`, or until it says something else in another one.
    pub fn hear(&mut self, state: State, ttl: Duration, now: Moment) {
        self.heard = match state {
            State::Up => None,
            State::Drain | State::Maint | State::Down => Some((state, now.plus(ttl.min(LONGEST_TTL)))),
        };
    }

    /// What it said in an answer, while it holds.
    #[must_use]
    pub fn heard(&self, now: Moment) -> Option<State> {
        self.heard
            .filter(|(_, until)| now < *until)
            .map(|(state, _)| state)
    }

    /// What the endpoint thinks of itself.
    #[must_use]
    pub fn opinion(&self, now: Moment) -> Opinion {
        let pushed = self.current(now).map(Beat::opinion);
        let heard = self.heard(now).map(State::opinion);
        match (pushed, heard) {
            (Some(Opinion::Down), _) | (_, Some(Opinion::Down)) => Opinion::Down,
            (Some(Opinion::Draining), _) | (_, Some(Opinion::Draining)) => Opinion::Draining,
            (Some(opinion), _) => opinion,
            (None, _) => Opinion::Unknown,
        }
    }

    /// How many requests it wants at a time.
    #[must_use]
    pub fn max_in_flight(&self, now: Moment) -> Option<u32> {
        self.current(now)?.max_in_flight
    }

    /// The share of its configured weight that it wants.
    #[must_use]
    pub fn share(&self, configured: u32, now: Moment) -> f32 {
        match self.current(now).and_then(|beat| beat.weight) {
            Some(Weight::Absolute(weight)) => f32::from(weight) / configured.max(1) as f32,
            Some(Weight::Percent(percent)) => f32::from(percent) / 100.0,
            None => 1.0,
        }
    }

    fn accept(&mut self, beat: &Beat, now: Moment) -> Received {
        if let Err(nonsense) = beat.check() {
            return Received::Invalid(nonsense);
        }
        let order = (beat.incarnation, beat.seq);
        if self.newest.is_some_and(|newest| order <= newest) {
            return Received::Stale;
        }
        self.newest = Some(order);
        let ttl = beat.ttl.unwrap_or(DEFAULT_TTL).min(LONGEST_TTL);
        self.said = Some((*beat, now.plus(ttl)));
        Received::Accepted
    }
}

/// Takes a beat for `endpoint`, `None` if there is no such endpoint.
///
/// Only an accepted beat is a sign of life for the detector ([`crate::phi`]): a stale one may have been recorded and sent
/// again.
pub fn receive(endpoint: Option<&mut Beats>, sender: Sender, beat: &Beat, now: Moment) -> Received {
    match (endpoint, sender) {
        (None, _) => Received::Unknown,
        (Some(_), Sender::Forged) => Received::Forged,
        (Some(beats), Sender::Verified) => beats.accept(beat, now),
    }
}

impl Beat {
    /// What it means for the arbiter: who wants no share wants no new requests.
    fn opinion(&self) -> Opinion {
        match (self.state, self.weight) {
            (State::Up, Some(Weight::Absolute(0) | Weight::Percent(0))) => Opinion::Draining,
            (state, _) => state.opinion(),
        }
    }

    fn check(&self) -> Result<(), Nonsense> {
        match self.weight {
            Some(Weight::Absolute(257..) | Weight::Percent(101..)) => return Err(Nonsense::Weight),
            Some(Weight::Absolute(_) | Weight::Percent(_)) | None => {}
        }
        if self.load.is_some_and(|load| !(0.0..=1.0).contains(&load)) {
            return Err(Nonsense::Load);
        }
        if self.ttl == Some(Duration::ZERO) {
            return Err(Nonsense::Ttl);
        }
        Ok(())
    }
}

impl State {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Down => "down",
        }
    }

    /// The state of a word on the wire.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Up, Self::Drain, Self::Maint, Self::Down]
            .into_iter()
            .find(|state| state.name() == name)
    }

    /// What it means for the arbiter.
    #[must_use]
    pub const fn opinion(self) -> Opinion {
        match self {
            Self::Up => Opinion::Up,
            Self::Drain => Opinion::Draining,
            Self::Maint | Self::Down => Opinion::Down,
        }
    }
}

impl Received {
    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
            Self::Forged | Self::Invalid(_) => "rejected",
        }
    }
}

/// How long a beat holds that does not say so.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// No beat holds longer, whatever it says.
pub const LONGEST_TTL: Duration = Duration::from_secs(300);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn beat(incarnation: u64, seq: u64) -> Beat {
        Beat {
            incarnation,
            seq,
            state: State::Up,
            weight: None,
            load: None,
            max_in_flight: None,
            ttl: Some(Duration::from_secs(3)),
        }
    }

    fn verified(beats: &mut Beats, beat: &Beat, now: Moment) -> Received {
        receive(Some(beats), Sender::Verified, beat, now)
    }

    #[test]
    fn scenario_23_an_old_seq_or_incarnation_is_ignored() {
        let mut beats = Beats::new();
        assert_eq!(verified(&mut beats, &beat(7, 5), at(1)), Received::Accepted);
        let down = |incarnation, seq| Beat {
            state: State::Down,
            ..beat(incarnation, seq)
        };
        for old in [down(7, 5), down(7, 4), down(6, 900)] {
            assert_eq!(verified(&mut beats, &old, at(2)), Received::Stale);
        }
        assert_eq!(beats.opinion(at(2)), Opinion::Up);
        assert_eq!(
            verified(&mut beats, &down(8, 0), at(3)),
            Received::Accepted,
            "it restarted"
        );
        assert_eq!(beats.opinion(at(3)), Opinion::Down);
    }

    #[test]
    fn scenario_23_what_it_said_expires_and_the_order_does_not() {
        let mut beats = Beats::new();
        let said = Beat {
            state: State::Down,
            weight: Some(Weight::Percent(25)),
            ..beat(1, 9)
        };
        verified(&mut beats, &said, at(10));
        assert_eq!(
            (beats.opinion(at(12)), beats.share(4, at(12))),
            (Opinion::Down, 0.25)
        );
        assert_eq!(
            (beats.opinion(at(13)), beats.share(4, at(13))),
            (Opinion::Unknown, 1.0)
        );
        assert_eq!(verified(&mut beats, &beat(1, 8), at(60)), Received::Stale);
    }

    #[test]
    fn scenario_23_a_forged_or_unknown_sender_changes_nothing() {
        let mut beats = Beats::new();
        verified(&mut beats, &beat(1, 1), at(1));
        let before = beats.clone();
        let evil = Beat {
            state: State::Down,
            ..beat(u64::MAX, u64::MAX)
        };
        assert_eq!(
            receive(Some(&mut beats), Sender::Forged, &evil, at(1)),
            Received::Forged
        );
        assert_eq!(beats, before);
        assert_eq!(receive(None, Sender::Verified, &evil, at(1)), Received::Unknown);
        assert_eq!(Received::Forged.name(), "rejected");
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut beats = Beats::new();
        let wrong = [
            (
                Beat {
                    weight: Some(Weight::Absolute(257)),
                    ..beat(1, 1)
                },
                Nonsense::Weight,
            ),
            (
                Beat {
                    weight: Some(Weight::Percent(101)),
                    ..beat(1, 1)
                },
                Nonsense::Weight,
            ),
            (
                Beat {
                    load: Some(1.5),
                    ..beat(1, 1)
                },
                Nonsense::Load,
            ),
            (
                Beat {
                    load: Some(f32::NAN),
                    ..beat(1, 1)
                },
                Nonsense::Load,
            ),
            (
                Beat {
                    ttl: Some(Duration::ZERO),
                    ..beat(1, 1)
                },
                Nonsense::Ttl,
            ),
        ];
        for (beat, nonsense) in wrong {
            assert_eq!(verified(&mut beats, &beat, at(1)), Received::Invalid(nonsense));
        }
        assert_eq!(beats, Beats::new());
    }

    #[test]
    fn a_weight_replaces_or_scales_the_configured_one() {
        let mut beats = Beats::new();
        assert_eq!(beats.share(50, at(0)), 1.0);
        let weighted = |seq, weight| Beat {
            weight: Some(weight),
            ..beat(1, seq)
        };
        verified(&mut beats, &weighted(1, Weight::Absolute(200)), at(0));
        assert_eq!(beats.share(50, at(0)), 4.0);
        verified(&mut beats, &weighted(2, Weight::Absolute(0)), at(0));
        assert_eq!(beats.share(50, at(0)), 0.0);
    }

    #[test]
    fn who_wants_no_share_drains() {
        let mut beats = Beats::new();
        let none = |seq, weight| Beat {
            weight: Some(weight),
            ..beat(1, seq)
        };
        verified(&mut beats, &none(1, Weight::Percent(0)), at(0));
        assert_eq!(beats.opinion(at(0)), Opinion::Draining);
        verified(&mut beats, &none(2, Weight::Absolute(1)), at(0));
        assert_eq!(beats.opinion(at(0)), Opinion::Up);
    }

    #[test]
    fn the_worse_of_beat_and_answer_counts_and_either_expires() {
        let mut beats = Beats::new();
        beats.hear(State::Drain, Duration::from_secs(5), at(0));
        assert_eq!(beats.opinion(at(4)), Opinion::Draining);
        assert_eq!(beats.opinion(at(5)), Opinion::Unknown);
        beats.hear(State::Drain, Duration::MAX, at(5));
        verified(&mut beats, &beat(1, 1), at(5));
        assert_eq!(beats.opinion(at(6)), Opinion::Draining, "a beat does not undo it");
        let down = Beat {
            state: State::Down,
            ..beat(1, 2)
        };
        verified(&mut beats, &down, at(6));
        assert_eq!(beats.opinion(at(7)), Opinion::Down);
        assert_eq!(beats.opinion(at(9)), Opinion::Draining, "the beat is over");
        assert_eq!(beats.opinion(at(305)), Opinion::Unknown, "and so is the answer");
        beats.hear(State::Down, Duration::from_secs(5), at(400));
        beats.hear(State::Up, Duration::from_secs(5), at(401));
        assert_eq!(beats.opinion(at(401)), Opinion::Unknown, "taken back");
    }

    #[test]
    fn nobody_speaks_for_longer_than_five_minutes() {
        let mut beats = Beats::new();
        let eternal = Beat {
            ttl: Some(Duration::MAX),
            ..beat(1, 1)
        };
        verified(&mut beats, &eternal, at(0));
        assert_eq!(beats.until(), at(300));
        let silent = Beat {
            ttl: None,
            ..beat(1, 2)
        };
        verified(&mut beats, &silent, at(0));
        assert_eq!(beats.until(), at(10));
    }

    #[test]
    fn the_words_are_those_on_the_wire() {
        for state in [State::Up, State::Drain, State::Maint, State::Down] {
            assert_eq!(State::from_name(state.name()), Some(state));
        }
        assert_eq!(State::from_name("UP"), None);
        assert_eq!(State::Maint.opinion(), Opinion::Down);
        assert_eq!(State::Drain.opinion(), Opinion::Draining);
    }

    proptest! {
        /// In whatever order beats arrive, the greatest so far decides.
        #[test]
        fn the_newest_decides(order in prop::collection::vec((0u64..4, 0u64..8), 1..60)) {
            let mut beats = Beats::new();
            let mut newest = None;
            for (incarnation, seq) in order {
                let received = verified(&mut beats, &beat(incarnation, seq), at(0));
                let is_newer = newest.is_none_or(|newest| (incarnation, seq) > newest);
                prop_assert_eq!(received == Received::Accepted, is_newer);
                newest = newest.max(Some((incarnation, seq)));
                let current = beats.current(at(0)).map(|beat| (beat.incarnation, beat.seq));
                prop_assert_eq!(current, newest);
            }
        }
    }
}
