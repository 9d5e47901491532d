//! Staleness: how old the state of a replica can be, without comparing clocks.
//!
//! The leader is asked where it stands; the proxy remembers when it *sent* that question. Whatever was committed before
//! is contained in the answer's position, so a replica that covers the position has everything that is older than the
//! question. The age of the youngest such question bounds the age of the replica. One clock is read, the proxy's own; an idle
//! leader keeps answering, so the bound stays small; a leader that does not answer makes it grow, as it should.
//!
//! Where upstreams name no positions, only their own word is left ([`reported`]), with their clocks in it; it is labelled
//! by whoever uses it.
//!
//! [`Visibility`] turns the question around: how long does a write take until each replica has it? That tells an operator
//! what a read some milliseconds after a write would see.
//!
//! Invariant: a bound is never smaller than the truth. Samples are forgotten so that recent ones are dense and old ones
//! sparse ([`Samples::MOST`]); forgetting one can only make a bound larger.

use std::time::Duration;

use crate::moment::Moment;

use super::lineage::{Answer, Forks, Lineage};
use super::observation::Member;
use super::position::Position;
use super::set::Set;

/// A leader's position and when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    sent_at: Moment,
    lineage: Lineage,
    position: Position,
}

/// Where the leader stood, over time; the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Samples {
    kept: Vec<Sample>,
}

impl Samples {
    /// The most that are kept.
    pub const MOST: usize = 64;

    /// The leader, asked at `sent_at`, was at `position`. Out of order it is no news.
    pub fn record(&mut self, sent_at: Moment, lineage: Lineage, position: &Position) {
        if let Some(last) = self.kept.last_mut() {
            if sent_at <= last.sent_at {
                return;
            }
            // Of equal positions the youngest question says everything.
            if last.lineage == lineage && last.position == *position {
                last.sent_at = sent_at;
                return;
            }
        }
        if self.kept.len() == Self::MOST {
            let mut place = 0;
            self.kept.retain(|_| {
                place += 1;
                place > Self::MOST / 2 || place % 2 == 0
            });
        }
        self.kept.push(Sample {
            sent_at,
            lineage,
            position: position.clone(),
        });
    }

    /// The youngest question whose answer is contained in `position` of `lineage`: everything that was committed before
    /// that moment is in it. `None` where nothing is proven.
    #[must_use]
    pub fn proven(&self, lineage: Lineage, position: &Position, forks: &Forks) -> Option<Moment> {
        let contained = |sample: &&Sample| {
            let wanted = (sample.lineage, &sample.position);
            forks.satisfies((lineage, position), wanted) == Answer::Covered
        };
        self.kept
            .iter()
            .rev()
            .find(contained)
            .map(|sample| sample.sent_at)
    }
}

/// Staleness by MongoDB's formula, from what servers say about their last writes (server selection, "Calculating
/// staleness"): `(S.update - S.lastWrite) - (P.update - P.lastWrite) + interval`, never below zero.
///
/// `update` is when the server was asked, by our clock; `last_write` is in milliseconds of its own.
#[must_use]
pub fn reported(replica: (Moment, u64), leader: (Moment, u64), interval: Duration) -> Duration {
    let millis = |(update, last_write): (Moment, u64)| {
        i128::from(update.as_nanos() / 1_000_000) - i128::from(last_write)
    };
    let behind = millis(replica) - millis(leader) + interval.as_millis().cast_signed();
    Duration::from_millis(u64::try_from(behind.max(0)).unwrap_or(u64::MAX))
}

/// Writes that are followed until every replica has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visibility {
    followed: Vec<Followed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Followed {
    written_at: Moment,
    lineage: Lineage,
    position: Position,
    seen: Set,
}

impl Visibility {
    /// The most writes that are followed at a time.
    pub const MOST: usize = 16;

    /// For how long a write is followed.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// How far apart writes that are followed are at least.
    pub const GAP: Duration = Duration::from_millis(100);

    /// A write was acknowledged at `now` with this position. Whether it will be followed: one in a while is enough.
    pub fn written(&mut self, lineage: Lineage, position: &Position, now: Moment) -> bool {
        self.followed
            .retain(|write| now.since(write.written_at) < Self::LONGEST);
        let too_soon = |write: &Followed| now.since(write.written_at) < Self::GAP;
        if self.followed.len() == Self::MOST || self.followed.last().is_some_and(too_soon) {
            return false;
        }
        self.followed.push(Followed {
            written_at: now,
            lineage,
            position: position.clone(),
            seen: Set::new(),
        });
        true
    }

    /// `member` was seen at a position. How long each write took that it covers for the first time, at most: it had it at
    /// some time before we saw so.
    pub fn seen(
        &mut self,
        member: Member,
        lineage: Lineage,
        position: &Position,
        forks: &Forks,
        now: Moment,
    ) -> Vec<Duration> {
        let mut took = Vec::new();
        for write in &mut self.followed {
            let wanted = (write.lineage, &write.position);
            let has = forks.satisfies((lineage, position), wanted) == Answer::Covered;
            if has && write.seen.insert(member) {
                took.push(now.since(write.written_at));
            }
        }
        took
    }

    /// How many writes are followed.
    #[must_use]
    pub fn followed(&self) -> usize {
        self.followed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn line() -> Lineage {
        Lineage::of("c", "1")
    }

    fn proven(samples: &Samples, position: u64) -> Option<Moment> {
        samples.proven(line(), &Position::U64(position), &Forks::new())
    }

    #[test]
    fn a_replica_is_as_old_as_the_youngest_question_whose_answer_it_covers() {
        let mut samples = Samples::default();
        for (sent, position) in [(100, 10), (200, 20), (300, 30)] {
            samples.record(at(sent), line(), &Position::U64(position));
        }
        assert_eq!(proven(&samples, 30), Some(at(300)));
        assert_eq!(proven(&samples, 29), Some(at(200)));
        assert_eq!(proven(&samples, 9), None, "nothing is proven");
    }

    #[test]
    fn an_idle_leader_keeps_the_bound_small() {
        let mut samples = Samples::default();
        for sent in 1..10_000 {
            samples.record(at(sent), line(), &Position::U64(7));
        }
        assert_eq!(proven(&samples, 7), Some(at(9999)));
        assert_eq!(samples.kept.len(), 1);
    }

    #[test]
    fn a_position_of_a_lost_history_proves_nothing() {
        let (old, new) = (Lineage::of("c", "1"), Lineage::of("c", "2"));
        let mut forks = Forks::new();
        forks.record(super::super::lineage::Fork::exact(old, new, Position::U64(15)));
        let mut samples = Samples::default();
        samples.record(at(100), old, &Position::U64(10));
        samples.record(at(200), old, &Position::U64(20));
        let of = |position| samples.proven(new, &Position::U64(position), &forks);
        assert_eq!(of(50), Some(at(100)), "20 was lost at the fork");
    }

    #[test]
    fn a_late_sample_is_no_news() {
        let mut samples = Samples::default();
        samples.record(at(200), line(), &Position::U64(20));
        samples.record(at(100), line(), &Position::U64(10));
        assert_eq!(proven(&samples, 10), None);
    }

    #[test]
    fn reported_staleness_is_mongodb_s_formula() {
        // The example: the replica's last write is 4 s older, both were asked at the same time, every 10 s.
        let lag = reported(
            (at(50_000), 16_000),
            (at(50_000), 20_000),
            Duration::from_secs(10),
        );
        assert_eq!(lag, Duration::from_secs(14));
        // The leader was asked 3 s earlier and wrote nothing since.
        let lag = reported(
            (at(53_000), 16_000),
            (at(50_000), 20_000),
            Duration::from_secs(10),
        );
        assert_eq!(lag, Duration::from_secs(17));
        let lag = reported((at(1), u64::MAX), (at(1), 0), Duration::ZERO);
        assert_eq!(
            lag,
            Duration::ZERO,
            "a clock from the future is not less than no lag"
        );
    }

    #[test]
    fn a_write_is_followed_until_each_replica_has_it() {
        let mut visibility = Visibility::default();
        let forks = Forks::new();
        assert!(visibility.written(line(), &Position::U64(5), at(1000)));
        assert!(
            !visibility.written(line(), &Position::U64(6), at(1050)),
            "one in a while"
        );
        let mut see = |member, position, now| {
            visibility.seen(Member(member), line(), &Position::U64(position), &forks, at(now))
        };
        assert_eq!(see(1, 4, 1010), []);
        assert_eq!(see(1, 5, 1020), [Duration::from_millis(20)]);
        assert_eq!(see(1, 9, 1030), [], "only the first time counts");
        assert_eq!(see(2, 9, 1500), [Duration::from_millis(500)]);
    }

    #[test]
    fn following_is_bounded() {
        let mut visibility = Visibility::default();
        for n in 0..10_000 {
            visibility.written(line(), &Position::U64(n), at(n * 200));
        }
        assert!(visibility.followed() <= Visibility::MOST);
    }

    proptest! {
        /// Against every sample ever taken: the bound is one of the moments, is proven, and forgetting costs at most a
        /// factor of the true age.
        #[test]
        fn forgetting_never_makes_a_replica_younger(count in 1u64..400, position in 0u64..400) {
            let mut samples = Samples::default();
            for n in 1..=count {
                samples.record(at(n * 10), line(), &Position::U64(n));
            }
            prop_assert!(samples.kept.len() <= Samples::MOST);
            let truth = position.min(count);
            match proven(&samples, position) {
                Some(moment) => prop_assert!(moment <= at(truth * 10)),
                None => prop_assert!(truth == 0 || samples.kept[0].sent_at > at(truth * 10)),
            }
            if position >= count {
                prop_assert_eq!(proven(&samples, position), Some(at(count * 10)));
            }
        }
    }
}
