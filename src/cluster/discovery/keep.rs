//! What to believe: turns the answers of an unreliable source into the set of members to use.
//!
//! Sources lie in three ways, and each has its own remedy. *No answer* (timeout, SERVFAIL): keep the last good set for
//! as long as it lasts, ask again after 1 s, 2 s, ... 60 s. *"There is nothing"* (NXDOMAIN, no records): keep for
//! `hold`, and until three such answers in a row, then believe it. *Most members gone in one answer*: take the new
//! ones at once, remove the others only when a second answer, some seconds later, says the same.
//!
//! Pure: time and chance are arguments.
//!
//! Invariant: a failure never changes the members; what is in force always came from good answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Asked, Member, jittered, normalize};

/// When to ask again after a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// When the answer expires, within [`TTL_BOUNDS`].
    Ttl,
    /// Always after this time.
    Every(Duration),
}

/// How long to hold on to what a source no longer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When to ask again after a good answer, +-10 %.
    pub pace: Pace,
    /// How long members outlive an answer that says there are none.
    pub hold: Duration,
    /// How many such answers in a row it takes, besides the time.
    pub empty_answers: u32,
    /// A removal of more than [`MASS_PERCENT`] must be said again after this time; zero believes at once.
    pub confirm: Duration,
}

impl Settings {
    /// 30 s and three answers for nothing, 10 s for a mass removal.
    pub const fn new(pace: Pace) -> Self {
        Self {
            pace,
            hold: Duration::from_secs(30),
            empty_answers: 3,
            confirm: Duration::from_secs(10),
        }
    }
}

/// What a source said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These members, good for so long. A list without members is [`Answer::Empty`].
    Members(Vec<Member>, Option<Duration>),
    /// There are none; and how that was said.
    Empty(Arc<str>),
    /// Nothing usable; and why.
    Failed(Arc<str>),
}

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How the question went.
    pub asked: Asked,
    /// Why it did not go well.
    pub detail: Option<Arc<str>>,
    /// The new set in force, when it changed.
    pub members: Option<Vec<Member>>,
    /// What is in force is older than the source's last word.
    pub stale: bool,
    /// Ask again after this time.
    pub next: Duration,
}

/// The memory of one source.
#[derive(Clone, Debug, Default)]
pub struct Keeper {
    members: Vec<Member>,
    failures: u32,
    /// How many answers in a row said that there is nothing, and when the first did.
    empty: Option<(u32, Instant)>,
    /// Since when most members have been missing from the answers.
    shrinking: Option<Instant>,
}

impl Keeper {
    /// The set in force.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Takes an answer heard at `now`; `draw` is any evenly distributed number.
    pub fn take(&mut self, settings: &Settings, answer: Answer, now: Instant, draw: u64) -> Step {
        match answer {
            Answer::Members(members, _) if members.is_empty() => {
                self.take_empty(settings, Arc::from("an empty list"), now, draw)
            }
            Answer::Members(members, ttl) => self.take_members(settings, members, ttl, now, draw),
            Answer::Empty(why) => self.take_empty(settings, why, now, draw),
            Answer::Failed(why) => {
                // Neither resets nor counts as an answer: the empties before and after it are still in a row.
                let next = self.back_off(draw);
                Step {
                    asked: Asked::Failed,
                    detail: Some(why),
                    members: None,
                    stale: !self.members.is_empty(),
                    next,
                }
            }
        }
    }

    fn take_members(
        &mut self,
        settings: &Settings,
        mut members: Vec<Member>,
        ttl: Option<Duration>,
        now: Instant,
        draw: u64,
    ) -> Step {
        normalize(&mut members);
        self.failures = 0;
        self.empty = None;
        let pace = match settings.pace {
            Pace::Ttl => ttl.unwrap_or(WITHOUT_TTL).clamp(TTL_BOUNDS.0, TTL_BOUNDS.1),
            Pace::Every(interval) => interval.clamp(TTL_BOUNDS.0, TTL_BOUNDS.1),
        };
        let pace = jittered(pace, 10, draw);
        if self.is_mass_removal(&members) && !settings.confirm.is_zero() {
            let since = *self.shrinking.get_or_insert(now);
            let left = settings
                .confirm
                .saturating_sub(now.saturating_duration_since(since));
            if !left.is_zero() {
                // Only removal waits: what is new may be all that still works.
                members.extend(self.members.iter().cloned());
                let (named, in_force) = (members.len() - self.members.len(), self.members.len());
                normalize(&mut members);
                let detail =
                    format!("only {named} of {in_force} endpoints named; asking again before removing");
                return Step {
                    asked: Asked::Held,
                    detail: Some(Arc::from(detail)),
                    members: self.replace(members),
                    stale: true,
                    // Never before the time is over, hence only upwards.
                    next: left + jittered(left, 100, draw) / 20,
                };
            }
        }
        self.shrinking = None;
        let members = self.replace(members);
        let asked = if members.is_some() {
            Asked::Changed
        } else {
            Asked::Unchanged
        };
        Step {
            asked,
            detail: None,
            members,
            stale: false,
            next: pace,
        }
    }

    fn take_empty(&mut self, settings: &Settings, why: Arc<str>, now: Instant, draw: u64) -> Step {
        let mut step = Step {
            asked: Asked::Empty,
            detail: Some(why),
            members: None,
            stale: false,
            next: Duration::ZERO,
        };
        if self.members.is_empty() {
            step.next = self.back_off(draw);
            return step;
        }
        self.failures = 0;
        let (count, since) = self
            .empty
            .map_or((1, now), |(count, since)| (count.saturating_add(1), since));
        let held = now.saturating_duration_since(since);
        if count >= settings.empty_answers && held >= settings.hold {
            self.empty = None;
            self.shrinking = None;
            step.members = self.replace(Vec::new());
            step.next = jittered(RETRY_BOUNDS.0, 10, draw);
            return step;
        }
        self.empty = Some((count, since));
        step.stale = true;
        let third = settings.hold / settings.empty_answers.max(1);
        step.next = jittered(third.clamp(TTL_BOUNDS.0, Duration::from_secs(10)), 10, draw);
        step
    }

    /// A set of one or two changes by being replaced; with three and more, losing most at once is suspicious.
    fn is_mass_removal(&self, members: &[Member]) -> bool {
        self.members.len() >= 3 && members.len() * 100 < self.members.len() * (100 - MASS_PERCENT)
    }

    /// Puts a normalised set in force; returns it if it is another one.
    fn replace(&mut self, members: Vec<Member>) -> Option<Vec<Member>> {
        if members == self.members {
            return None;
        }
        self.members.clone_from(&members);
        Some(members)
    }

    fn back_off(&mut self, draw: u64) -> Duration {
        let doubled = RETRY_BOUNDS
            .0
            .saturating_mul(1 << self.failures.min(16))
            .min(RETRY_BOUNDS.1);
        self.failures = self.failures.saturating_add(1);
        jittered(doubled, 10, draw)
    }
}

/// TTLs and intervals below and above are not believed.
pub const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// First and longest wait after failures; doubles in between.
pub const RETRY_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How much of the set may vanish in one answer and be believed at once, in percent.
pub const MASS_PERCENT: usize = 70;
/// How long an answer that says nothing about it is good for.
const WITHOUT_TTL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use bellwether_core::Dice;
    use proptest::prelude::*;

    use super::*;
    use crate::net::SocketAddress;

    const SETTINGS: Settings = Settings::new(Pace::Ttl);

    fn members(last: std::ops::Range<u8>) -> Vec<Member> {
        last.map(|n| Member::new(SocketAddress::Ip(([10, 0, 0, n], 80).into())))
            .collect()
    }

    /// A keeper, the time, and the next draw; `hear` moves time on by what the keeper asked for.
    struct Story {
        keeper: Keeper,
        now: Instant,
        dice: Dice,
        settings: Settings,
    }

    impl Story {
        fn new() -> Self {
            Self {
                keeper: Keeper::default(),
                now: Instant::now(),
                dice: Dice::new(7),
                settings: SETTINGS,
            }
        }

        fn hear(&mut self, answer: Answer) -> Step {
            let step = self
                .keeper
                .take(&self.settings, answer, self.now, self.dice.next_u64());
            self.now += step.next;
            step
        }

        fn hear_members(&mut self, last: std::ops::Range<u8>) -> Step {
            self.hear(Answer::Members(members(last), Some(Duration::from_secs(20))))
        }

        fn fail(&mut self) -> Step {
            self.hear(Answer::Failed("SERVFAIL".into()))
        }

        fn hear_nothing(&mut self) -> Step {
            self.hear(Answer::Empty("NXDOMAIN".into()))
        }
    }

    #[test]
    fn a_new_set_is_taken_and_the_same_set_is_not_sent_again() {
        let mut story = Story::new();
        assert_eq!(story.hear_members(1..3).members, Some(members(1..3)));
        let again = story.hear_members(1..3);
        assert_eq!((again.asked, again.members), (Asked::Unchanged, None));
        assert_eq!(story.hear_members(2..4).members, Some(members(2..4)));
    }

    #[test]
    fn the_ttl_is_clamped_and_jittered() {
        for (ttl, low, high) in [(0, 900, 1_100), (20, 18_000, 22_000), (9_999, 270_000, 330_000)] {
            let mut story = Story::new();
            for _ in 0..200 {
                let step = story.hear(Answer::Members(members(1..2), Some(Duration::from_secs(ttl))));
                assert!(
                    (low..=high).contains(&step.next.as_millis()),
                    "{ttl}: {:?}",
                    step.next
                );
            }
        }
    }

    #[test]
    fn failures_keep_the_last_good_set_for_ever_and_back_off_to_a_minute() {
        let mut story = Story::new();
        story.hear_members(1..5);
        let mut waits = Vec::new();
        for _ in 0..100 {
            let step = story.fail();
            assert_eq!(
                (step.asked, step.members, step.stale),
                (Asked::Failed, None, true)
            );
            waits.push(step.next.as_secs_f64());
        }
        for (wait, about) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
            assert!(
                (about * 0.9..=about * 1.1).contains(wait),
                "{wait} is not about {about}"
            );
        }
        assert_eq!(story.keeper.members(), members(1..5));
        assert!(!story.hear_members(1..5).stale);
        assert!(
            story.fail().next <= Duration::from_millis(1_100),
            "the back-off starts over"
        );
    }

    #[test]
    fn scenario_41_ten_minutes_of_failures_remove_nobody() {
        let mut story = Story::new();
        story.hear_members(1..5);
        let start = story.now;
        let mut asked = 0;
        while story.now - start < Duration::from_secs(600) {
            let step = story.fail();
            assert!(step.stale && step.members.is_none() && step.next <= Duration::from_secs(66));
            asked += 1;
        }
        assert!((10..=30).contains(&asked), "asked {asked} times");
        assert_eq!(story.keeper.members(), members(1..5));
    }

    #[test]
    fn nothing_is_believed_after_the_hold_and_three_answers() {
        let mut story = Story::new();
        story.hear_members(1..5);
        let start = story.now;
        let mut answers = 0;
        let step = loop {
            answers += 1;
            let heard_at = story.now;
            let step = story.hear_nothing();
            if step.members.is_some() {
                assert!(heard_at - start >= SETTINGS.hold);
                break step;
            }
            assert!(step.stale && answers < 10);
        };
        assert!(answers >= 3);
        assert_eq!(step.members, Some(Vec::new()));
        assert!(!step.stale);
    }

    #[test]
    fn three_answers_without_the_time_or_the_time_without_three_answers_remove_nothing() {
        let mut story = Story::new();
        story.hear_members(1..5);
        for _ in 0..5 {
            assert_eq!(story.hear_nothing().members, None);
            story.now -= Duration::from_secs(10);
        }
        let mut story = Story::new();
        story.hear_members(1..5);
        story.hear_nothing();
        story.now += Duration::from_secs(3600);
        assert_eq!(story.hear_nothing().members, None, "the second answer only");
    }

    #[test]
    fn a_good_answer_in_between_starts_the_hold_over() {
        let mut story = Story::new();
        story.hear_members(1..5);
        story.hear_nothing();
        story.hear_nothing();
        story.hear_members(1..5);
        story.now += SETTINGS.hold;
        assert_eq!(story.hear_nothing().members, None);
        assert_eq!(story.hear_nothing().members, None);
    }

    #[test]
    fn a_mass_removal_waits_for_a_second_answer_but_new_members_do_not() {
        let mut story = Story::new();
        story.hear_members(1..11);
        let held = story.hear_members(10..12);
        assert_eq!((held.asked, held.stale), (Asked::Held, true));
        assert_eq!(held.members, Some(members(1..12)), "11 is new and comes at once");
        assert!(held.next >= SETTINGS.confirm);
        let confirmed = story.hear_members(10..12);
        assert_eq!(
            (confirmed.asked, confirmed.members),
            (Asked::Changed, Some(members(10..12)))
        );
    }

    #[test]
    fn a_mass_removal_taken_back_removes_nobody() {
        let mut story = Story::new();
        story.hear_members(1..11);
        story.hear_members(1..2);
        let back = story.hear_members(1..11);
        assert_eq!(
            (back.asked, back.members, back.stale),
            (Asked::Unchanged, None, false)
        );
        assert_eq!(
            story.hear_members(1..2).asked,
            Asked::Held,
            "the next one starts its own wait"
        );
    }

    #[test]
    fn small_sets_and_smaller_changes_are_believed_at_once() {
        let mut story = Story::new();
        story.hear_members(1..2);
        assert_eq!(
            story.hear_members(2..3).members,
            Some(members(2..3)),
            "one address replaced"
        );
        story.hear_members(1..11);
        assert_eq!(
            story.hear_members(1..4).members,
            Some(members(1..4)),
            "70 % is not more than 70 %"
        );
    }

    #[test]
    fn a_name_that_never_resolved_is_asked_about_ever_more_slowly() {
        let mut story = Story::new();
        let waits: Vec<_> = (0..8).map(|_| story.hear_nothing().next.as_secs()).collect();
        assert!(waits[0] <= 1 && waits[6] >= 54 && waits[7] >= 54, "{waits:?}");
    }

    proptest! {
        #[test]
        fn only_good_answers_bring_members_and_time_always_moves(
            answers in prop::collection::vec((0u8..4, 1u8..20, 0u64..400, any::<u64>()), 1..60)
        ) {
            let mut keeper = Keeper::default();
            let mut now = Instant::now();
            let mut named = Vec::new();
            for (kind, n, ttl, draw) in answers {
                let answer = match kind {
                    0 => Answer::Failed("x".into()),
                    1 => Answer::Empty("x".into()),
                    _ => {
                        let list = members(n..n + 5);
                        named.extend(list.iter().map(|m| m.address.clone()));
                        Answer::Members(list, Some(Duration::from_secs(ttl)))
                    }
                };
                let (failed, before) = (kind == 0, keeper.members().to_vec());
                let step = keeper.take(&SETTINGS, answer, now, draw);
                prop_assert!(step.next >= Duration::from_millis(900) && step.next <= Duration::from_secs(330));
                if let Some(members) = &step.members {
                    prop_assert!(!failed && *members != before);
                    prop_assert!(members.iter().all(|m| named.contains(&m.address)));
                    let mut normal = members.clone();
                    normalize(&mut normal);
                    prop_assert_eq!(&normal, members);
                }
                prop_assert_eq!(step.members.unwrap_or(before), keeper.members());
                now += step.next;
            }
        }
    }
}
