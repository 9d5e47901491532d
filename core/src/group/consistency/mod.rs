//! Consistency: who may answer a request, given what it was promised.
//!
//! A route promises a level; what is known about the group says who can keep it at this moment; and where nobody can, the
//! route has chosen what comes first: the promise (`cp`, the request waits or is refused) or the answer (`ap`, it is
//! answered and **labelled** with what it got). Silence is never an option: nothing here gives less than was promised
//! without saying so.
//!
//! A read that needs a position ([`Need::Position`], out of the session's token) goes to whoever is known to have it. If
//! nobody is, the most advanced replica is asked *and its answer's position checked* before a byte of it is passed on
//! ([`Verdict::Verify`]); then the read waits for a replica; then `on_stale` decides. The shell calls again after each of
//! these with what it has learned, so the order stands here and nowhere else.
//!
//! A group of up to 64 members costs no allocation.

use std::time::Duration;

use crate::moment::Moment;
use crate::reason::Reason;

use super::lineage::{Answer, Lineage};
use super::observation::Member;
use super::position::Position;
use super::set::Set;
use super::view::{Leader, Phase, View};

/// What a read is promised, from the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Any state.
    #[default]
    Eventual,
    /// Never an older state than this session has read before.
    Monotonic,
    /// Everything that is older than the bound.
    BoundedStaleness(Bound),
    /// Everything that this session has written, and never an older state than it has read.
    ReadYourWrites,
    /// The freshest claim's state.
    Leader,
    /// Linearizable.
    Strong,
}

/// How far behind a read may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// So old.
    Age(Duration),
    /// So many positions, or bytes of log.
    Distance(u64),
}

/// What comes first where a promise cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Choice {
    /// The promise.
    #[default]
    Cp,
    /// The answer, labelled.
    Ap,
}

/// What a read does that no replica can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnStale {
    /// It goes to the leader.
    #[default]
    Leader,
    /// It is refused.
    Reject,
    /// It is answered from what there is, labelled.
    Serve,
}

/// Whom reads prefer among those who keep the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReadFrom {
    /// Replicas; the leader if there is none.
    #[default]
    ReplicaPreferred,
    /// Replicas.
    Replica,
    /// The leader; replicas if it cannot.
    LeaderPreferred,
    /// Anybody.
    Any,
}

/// What makes a strong read strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strong {
    /// The upstream: any member answers linearizably, or fails (etcd, `?consistent`).
    Native,
    /// Reads of the leader are declared linearizable.
    #[default]
    LeaderReads,
    /// A position that the leader has confirmed with its quorum after the read came; any member that has it will do.
    Barrier,
}

/// What a read policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Policy {
    /// What is promised.
    pub level: Level,
    /// What comes first.
    pub choice: Choice,
    /// What a read does that no replica can answer.
    pub on_stale: OnStale,
    /// Whom it prefers.
    pub read_from: ReadFrom,
    /// What makes it strong.
    pub strong: Strong,
    /// Whether answers name their position in the head, so that they can be checked before they are passed on.
    pub verifiable: bool,
    /// How long it waits for a replica.
    pub wait: Duration,
    /// How often members are probed: what a reported lag may be wrong by.
    pub interval: Duration,
}

/// What a read needs to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Need<'a> {
    /// Nothing in particular.
    #[default]
    Nothing,
    /// Everything up to here: of a token, or of a barrier.
    Position(Lineage, &'a Position),
    /// Whatever it is, only the leader has it for certain.
    Leader,
}

/// A read that wants to go somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Read<'a> {
    /// What it was promised.
    pub policy: &'a Policy,
    /// What it needs.
    pub need: Need<'a>,
    /// Whom it has asked in vain.
    pub tried: &'a Set,
    /// When it came: what its wait counts from.
    pub since: Moment,
    /// Whether the leader has room for reads that replicas should have answered.
    pub leader_has_room: bool,
}

/// Where a read goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// To one of these: each keeps the promise.
    Serve(Set),
    /// To this one, whose answer's position is checked before it is passed on; if it does not cover, ask again.
    Verify(Member),
    /// Nowhere yet: ask again when something is learned, at the latest then.
    Wait(Moment),
    /// To the leader.
    Leader(Leader),
    /// Ask this leader for a position that its quorum confirms, then ask again with that.
    Barrier(Leader),
    /// Into the hold until there is a leader; this is the reason if there is none in time.
    Hold(Reason),
    /// To one of these, labelled: the promise is not kept.
    Degraded(Degraded),
    /// What it needs is lost. To the leader, with a new token and a label, or refused if the route is strict.
    Lost(Leader),
    /// Refused.
    Refuse(Reason),
}

/// What an answer must say about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Who may answer.
    pub candidates: Set,
    /// What was promised.
    pub wanted: Level,
    /// What is kept.
    pub got: Level,
    /// How old it can be, of the worst of the candidates, if that is known.
    pub staleness: Option<Duration>,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// To the leader, stamped with its epoch.
    Leader(Leader),
    /// Into the hold; this is the reason if there is no leader in time.
    Hold(Reason),
    /// Refused.
    Refuse(Reason),
}

impl Level {
    /// The word in the configuration, in labels and in headers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Monotonic => "monotonic",
            Self::BoundedStaleness(_) => "bounded_staleness",
            Self::ReadYourWrites => "read_your_writes",
            Self::Leader => "leader",
            Self::Strong => "strong",
        }
    }

    /// What a client that asks for `other` gets on a route of this level: it may have more and not less.
    #[must_use]
    pub fn strengthened(self, other: Self) -> Self {
        match (self, other) {
            // The smaller bound is the stronger promise.
            (Self::BoundedStaleness(ours), Self::BoundedStaleness(theirs)) => {
                Self::BoundedStaleness(ours.min(theirs))
            }
            _ => self.max(other),
        }
    }

    /// Whether a group that does not know its own leader for certain can still keep it.
    const fn survives_doubt(self) -> bool {
        match self {
            Self::Eventual | Self::Monotonic => true,
            Self::BoundedStaleness(_) | Self::ReadYourWrites | Self::Leader | Self::Strong => false,
        }
    }
}

/// Where a write goes (table 2.6). Ask at dispatch, after whatever wait.
#[must_use]
pub fn place_write(view: &View, choice: Choice, now: Moment) -> Write {
    let incumbent = || view.incumbent.filter(|leader| now < leader.usable_until);
    match (view.phase_at(now), choice) {
        (Phase::Steady, _) => match view.leader_at(now) {
            Some(leader) => Write::Leader(leader),
            None => Write::Hold(Reason::NoLeader),
        },
        (Phase::NoLeader | Phase::LeaderUnreachable, _) => Write::Hold(Reason::NoLeader),
        (Phase::Conflict, Choice::Ap) => match incumbent() {
            Some(leader) => Write::Leader(leader),
            None => Write::Refuse(Reason::LeaderConflict),
        },
        (phase @ (Phase::Conflict | Phase::Fenced | Phase::Isolated), _) => Write::Refuse(phase.reason()),
    }
}

/// Where a read goes (table 2.6, appendix C). `eligible` says who may be used at all: healthy, not full, not ejected.
#[must_use]
pub fn place_read(view: &View, read: &Read<'_>, eligible: impl Fn(Member) -> bool, now: Moment) -> Verdict {
    let mut usable = Set::new();
    for (member, known) in view.all() {
        if !known.foreign && eligible(member) && !read.tried.contains(member) {
            usable.insert(member);
        }
    }
    let placing = Placing {
        view,
        read,
        policy: read.policy,
        now,
        phase: view.phase_at(now),
        leader: view
            .leader_at(now)
            .filter(|leader| usable.contains(leader.member)),
        usable,
    };
    placing.place()
}

struct Placing<'a> {
    view: &'a View,
    read: &'a Read<'a>,
    policy: &'a Policy,
    now: Moment,
    phase: Phase,
    /// If it may be used.
    leader: Option<Leader>,
    /// Everybody who may be used at all.
    usable: Set,
}

impl Placing<'_> {
    fn place(&self) -> Verdict {
        if self.usable.is_empty() && self.read.tried.is_empty() {
            return Verdict::Refuse(Reason::NoEndpoint);
        }
        if !self.policy.level.survives_doubt() {
            match self.phase {
                Phase::Conflict | Phase::Fenced => return self.in_doubt(),
                Phase::Steady | Phase::NoLeader | Phase::LeaderUnreachable | Phase::Isolated => {}
            }
        }
        match self.policy.level {
            Level::Eventual => self.eventual(),
            Level::Monotonic | Level::ReadYourWrites => self.by_position(),
            Level::BoundedStaleness(bound) => self.bounded(bound),
            Level::Leader => self.to_leader(),
            Level::Strong => match (self.policy.strong, self.read.need) {
                (Strong::Native, _) => self
                    .prefer(self.honest())
                    .map_or_else(|| self.to_leader(), Verdict::Serve),
                (Strong::LeaderReads, _) | (Strong::Barrier, Need::Leader) => self.to_leader(),
                (Strong::Barrier, Need::Nothing) => match self.leader {
                    Some(leader) => Verdict::Barrier(leader),
                    None => self.to_leader(),
                },
                (Strong::Barrier, Need::Position(..)) => self.by_position(),
            },
        }
    }

    /// Conflict, or fenced: the incumbent's word or nobody's.
    fn in_doubt(&self) -> Verdict {
        match self.policy.choice {
            Choice::Cp => Verdict::Refuse(self.phase.reason()),
            Choice::Ap => self.degraded_to_incumbent(),
        }
    }

    fn eventual(&self) -> Verdict {
        let honest = self.honest();
        let all = if honest.is_empty() {
            self.usable.clone()
        } else {
            honest
        };
        match self.prefer(all) {
            Some(candidates) => Verdict::Serve(candidates),
            None => Verdict::Refuse(Reason::NoEndpoint),
        }
    }

    fn to_leader(&self) -> Verdict {
        match (self.leader, self.policy.choice) {
            (Some(leader), _) => Verdict::Leader(leader),
            (None, Choice::Ap) if self.phase == Phase::Isolated => self.degraded_to_incumbent(),
            (None, Choice::Ap) => self.degraded(),
            (None, Choice::Cp) => self.without_leader(),
        }
    }

    /// Nobody but a leader would do, and the promise comes first.
    fn without_leader(&self) -> Verdict {
        match self.phase {
            Phase::Steady | Phase::NoLeader | Phase::LeaderUnreachable => Verdict::Hold(Reason::NoLeader),
            Phase::Conflict | Phase::Fenced | Phase::Isolated => Verdict::Refuse(self.phase.reason()),
        }
    }

    fn bounded(&self, bound: Bound) -> Verdict {
        let within = |member: &Member| match bound {
            Bound::Age(most) => {
                let staleness = self.view.staleness(*member, self.now, self.policy.interval);
                staleness.is_some_and(|staleness| staleness.age() <= most)
            }
            Bound::Distance(most) => {
                let leads = self.leader.is_some_and(|leader| leader.member == *member);
                leads || self.view.distance(*member).is_some_and(|behind| behind <= most)
            }
        };
        if let Some(candidates) = self.prefer(self.honest().iter().filter(within).collect()) {
            return Verdict::Serve(candidates);
        }
        self.stale(Reason::StalenessUnknown)
    }

    fn by_position(&self) -> Verdict {
        let (lineage, position) = match self.read.need {
            Need::Nothing => {
                return self
                    .prefer(self.honest())
                    .map_or_else(|| self.stale(Reason::Behind), Verdict::Serve);
            }
            Need::Leader => return self.to_leader(),
            Need::Position(lineage, position) => (lineage, position),
        };
        let answer = |member: Member| self.view.satisfies(member, lineage, position);
        let honest = self.honest();
        let covered: Set = honest
            .iter()
            .filter(|member| answer(*member) == Answer::Covered)
            .collect();
        // That the leader has it is no reason not to ask a replica that may have it, where replicas are preferred.
        let only_leader = self
            .leader
            .is_some_and(|leader| covered == Set::only(leader.member));
        let may_be_spared = only_leader && self.policy.read_from == ReadFrom::ReplicaPreferred;
        if let Some(candidates) = self.prefer(covered).filter(|_| !may_be_spared) {
            return Verdict::Serve(candidates);
        }
        if let Some(leader) = self.leader {
            match answer(leader.member) {
                Answer::Lost => return Verdict::Lost(leader),
                // Histories whose fork nobody knows: the leader is the best there is, and the answer says so.
                Answer::Unknown if self.parts_from(leader.member, lineage) => {
                    return self.labelled(Set::only(leader.member), Level::Leader);
                }
                Answer::Covered | Answer::NotYet | Answer::Unknown => {}
            }
        }
        if self.policy.verifiable
            && let Some(member) = self.most_advanced(&honest, answer)
        {
            return Verdict::Verify(member);
        }
        let end = self.read.since.plus(self.policy.wait);
        if self.now < end {
            return Verdict::Wait(end);
        }
        match self.leader.filter(|_| may_be_spared && self.read.leader_has_room) {
            Some(leader) => Verdict::Leader(leader),
            None => self.stale(Reason::Behind),
        }
    }

    /// No replica will do.
    fn stale(&self, reason: Reason) -> Verdict {
        let served = match self.policy.on_stale {
            OnStale::Serve => return self.degraded(),
            OnStale::Reject => Verdict::Refuse(reason),
            OnStale::Leader => match self.leader {
                Some(leader) if self.read.leader_has_room => return Verdict::Leader(leader),
                Some(_) => Verdict::Refuse(reason),
                // A bound that cannot be proven is said to be so; a session's read is the leader's to answer.
                None if reason == Reason::StalenessUnknown => Verdict::Refuse(reason),
                None => self.without_leader(),
            },
        };
        match self.policy.choice {
            Choice::Cp => served,
            Choice::Ap => self.degraded(),
        }
    }

    /// The best there is, labelled.
    fn degraded(&self) -> Verdict {
        let honest = self.honest();
        let all = if honest.is_empty() {
            self.usable.clone()
        } else {
            honest
        };
        let furthest = self.most_advanced(&all, |_| Answer::NotYet);
        let candidates = furthest.map_or(all, Set::only);
        self.labelled(candidates, Level::Eventual)
    }

    fn degraded_to_incumbent(&self) -> Verdict {
        let incumbent = self.view.incumbent.map(|leader| leader.member);
        match incumbent.filter(|member| self.usable.contains(*member)) {
            Some(member) => self.labelled(Set::only(member), Level::Eventual),
            None => self.degraded(),
        }
    }

    fn labelled(&self, candidates: Set, got: Level) -> Verdict {
        if candidates.is_empty() {
            return Verdict::Refuse(Reason::NoEndpoint);
        }
        let age = |member| self.view.staleness(member, self.now, self.policy.interval);
        let ages = candidates
            .iter()
            .map(|member| age(member).map(|staleness| staleness.age()));
        // Unknown of one is unknown of all.
        let staleness = ages.reduce(|worst, age| Some(worst?.max(age?))).flatten();
        Verdict::Degraded(Degraded {
            candidates,
            wanted: self.policy.level,
            got,
            staleness,
        })
    }

    /// Who may be used above eventual.
    fn honest(&self) -> Set {
        let mistaken = |member: &Member| self.view.member(*member).is_none_or(|known| known.stale_claimant);
        self.usable.iter().filter(|member| !mistaken(member)).collect()
    }

    /// Of those who keep the promise, whom the route prefers.
    fn prefer(&self, mut candidates: Set) -> Option<Set> {
        let leader = self.leader.map(|leader| leader.member);
        let leads = leader.filter(|leader| candidates.contains(*leader));
        match (self.policy.read_from, leads) {
            (ReadFrom::LeaderPreferred, Some(leader)) => return Some(Set::only(leader)),
            (ReadFrom::Replica, Some(leader)) => candidates.remove(leader),
            (ReadFrom::ReplicaPreferred, Some(leader)) if candidates.len() > 1 => candidates.remove(leader),
            (ReadFrom::LeaderPreferred, None)
            | (ReadFrom::Replica, None)
            | (ReadFrom::ReplicaPreferred, _)
            | (ReadFrom::Any, _) => {}
        }
        (!candidates.is_empty()).then_some(candidates)
    }

    /// Of those who may get there, but not the leader, whose answer is not in doubt: the one that nobody is ahead of. Who
    /// names no position may be anywhere and comes last.
    fn most_advanced(&self, among: &Set, answer: impl Fn(Member) -> Answer) -> Option<Member> {
        let leader = self.leader.map(|leader| leader.member);
        let position = |member: Member| self.view.member(member).and_then(|known| known.position.as_ref());
        let may = among.iter().filter(|member| {
            let hopeless = match answer(*member) {
                Answer::NotYet | Answer::Covered => false,
                Answer::Unknown => position(*member).is_some(),
                Answer::Lost => true,
            };
            Some(*member) != leader && !hopeless
        });
        may.reduce(|best, member| match (position(best), position(member)) {
            (Some((line, at)), Some((other_line, other))) => {
                let ahead = line == other_line && other.covers(at) && other != at;
                let newer = line != other_line && Some(*other_line) == self.view.lineage;
                if ahead || newer { member } else { best }
            }
            (None, Some(_)) => member,
            (_, None) => best,
        })
    }

    /// Whether a member's history is another one than that.
    fn parts_from(&self, member: Member, lineage: Lineage) -> bool {
        let known = self.view.member(member).and_then(|known| known.position.as_ref());
        known.is_some_and(|(own, _)| *own != lineage)
    }
}

#[cfg(test)]
mod tests;
