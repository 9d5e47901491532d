//! View: what the path of a request knows of a group; immutable, cheap to share, and dated.
//!
//! The state behind it changes with every probe; a request must not wait for that, nor lock it. So each change that
//! matters makes a new view, and requests read whichever is there. A view may be old, because the proxy itself may have
//! been stopped: what it says about a leader holds until a moment, and [`View::leader_at`] looks at that moment again when
//! it is asked, at dispatch.

use std::time::Duration;

use crate::moment::Moment;
use crate::reason::Reason;

use super::epoch::Epoch;
use super::lineage::{Answer, Forks, Lineage};
use super::observation::{Lag, Member, Role};
use super::position::Position;
use super::set::Set;
use super::staleness::reported;

/// What is known about who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// One leads, confirmed and reachable.
    Steady,
    /// Nobody leads, or nobody may be believed yet.
    #[default]
    NoLeader,
    /// One leads and we cannot reach it.
    LeaderUnreachable,
    /// Several lead in the same epoch.
    Conflict,
    /// What decides who leads has gone back behind an epoch that was seen; an operator must accept that.
    Fenced,
    /// Nobody who could tell answers.
    Isolated,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 6] = [
        Self::Steady,
        Self::NoLeader,
        Self::LeaderUnreachable,
        Self::Conflict,
        Self::Fenced,
        Self::Isolated,
    ];

    /// The word in metrics and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::NoLeader => "no_leader",
            Self::LeaderUnreachable => "leader_unreachable",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::Isolated => "isolated",
        }
    }

    /// Why a request that needs the leader is refused in this phase. In [`Phase::Steady`] it is when the claim has just
    /// run out.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Steady | Self::NoLeader | Self::LeaderUnreachable => Reason::NoLeader,
            Self::Conflict => Reason::LeaderConflict,
            Self::Fenced => Reason::EpochRegression,
            Self::Isolated => Reason::Isolated,
        }
    }
}

/// Who leads, and until when that may be acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Who.
    pub member: Member,
    /// In which epoch: what writes are stamped with.
    pub epoch: Epoch,
    /// When it was found to lead.
    pub since: Moment,
    /// Until when its claim holds.
    pub usable_until: Moment,
}

/// What is known of one member.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemberView {
    /// What it does, in its own words where there are any.
    pub role: Role,
    /// It claims to lead and does not: its data may be of the past, so it serves nothing above eventual.
    pub stale_claimant: bool,
    /// It belongs to another cluster and serves nothing.
    pub foreign: bool,
    /// How far it has come, and on which history.
    pub position: Option<(Lineage, Position)>,
    /// Everything committed before this moment is in it.
    pub proven: Option<Moment>,
    /// How far it says it is behind, and when it was asked.
    pub lag: Option<(Lag, Moment)>,
}

/// How old what a member has can be, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// At most so old.
    Proven(Duration),
    /// So old by its own word and clock.
    Reported(Duration),
}

impl Staleness {
    /// How old.
    #[must_use]
    pub const fn age(self) -> Duration {
        match self {
            Self::Proven(age) | Self::Reported(age) => age,
        }
    }
}

/// What the path of a request knows of a group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// Which list of members its places belong to.
    pub generation: u32,
    /// What is known about who leads.
    pub phase: Phase,
    /// Since when.
    pub since: Moment,
    /// Who leads. Look with [`View::leader_at`].
    pub leader: Option<Leader>,
    /// Who led last, or does: the choice of routes that prefer availability.
    pub incumbent: Option<Leader>,
    /// The history that is being written.
    pub lineage: Option<Lineage>,
    /// The members.
    pub members: Box<[MemberView]>,
    /// How histories are connected.
    pub forks: Forks,
    /// When the phase may end by itself: what `Retry-After` is made of.
    pub next: Moment,
}

impl View {
    /// The leader, if writes may go to it now. **Ask at dispatch**, whatever was known before a wait.
    #[must_use]
    pub fn leader_at(&self, now: Moment) -> Option<Leader> {
        let steady = self.phase == Phase::Steady;
        self.leader.filter(|leader| steady && now < leader.usable_until)
    }

    /// The phase as it is at `now`: a claim that has run out since the view was made is no leader.
    #[must_use]
    pub fn phase_at(&self, now: Moment) -> Phase {
        match self.phase {
            Phase::Steady if self.leader_at(now).is_none() => Phase::NoLeader,
            phase => phase,
        }
    }

    /// What is known of a member; of one that is not in this list, nothing.
    #[must_use]
    pub fn member(&self, member: Member) -> Option<&MemberView> {
        self.members.get(member.index())
    }

    /// All members.
    pub fn all(&self) -> impl Iterator<Item = (Member, &MemberView)> {
        let each = self.members.iter().enumerate();
        each.map(|(place, member)| (Member(place as u16), member))
    }

    /// Who may serve a level above eventual: of this cluster, and not mistaken about leading.
    #[must_use]
    pub fn trusted(&self) -> Set {
        let honest = |member: &MemberView| !member.foreign && !member.stale_claimant;
        let trusted = self.all().filter(|(_, member)| honest(member));
        trusted.map(|(member, _)| member).collect()
    }

    /// How old what a member has can be; `None` where nothing tells.
    ///
    /// Questions to the leader prove it; where there are no positions, the member's own word is left.
    #[must_use]
    pub fn staleness(&self, member: Member, now: Moment, interval: Duration) -> Option<Staleness> {
        let known = self.member(member)?;
        if self.leader_at(now).is_some_and(|leader| leader.member == member) {
            return Some(Staleness::Proven(Duration::ZERO));
        }
        if let Some(moment) = known.proven {
            return Some(Staleness::Proven(now.since(moment)));
        }
        let (lag, asked) = known.lag?;
        let behind = match lag {
            Lag::Behind(lag) => lag,
            Lag::LastWrite(write) => {
                let (leader, leader_asked) = self.member(self.incumbent?.member)?.lag?;
                let Lag::LastWrite(leader_write) = leader else {
                    return None;
                };
                reported((asked, write), (leader_asked, leader_write), interval)
            }
        };
        Some(Staleness::Reported(behind.saturating_add(now.since(asked))))
    }

    /// How many positions or bytes a member is behind the leader, where positions can be counted.
    #[must_use]
    pub fn distance(&self, member: Member) -> Option<u64> {
        let (own, at) = self.member(member)?.position.as_ref()?;
        let (line, leads_at) = self.member(self.incumbent?.member)?.position.as_ref()?;
        if own != line {
            return None;
        }
        leads_at.distance(at)
    }

    /// Whether a member has what is wanted.
    #[must_use]
    pub fn satisfies(&self, member: Member, lineage: Lineage, position: &Position) -> Answer {
        match self.member(member).and_then(|member| member.position.as_ref()) {
            Some((own, at)) => self.forks.satisfies((*own, at), (lineage, position)),
            None => Answer::Unknown,
        }
    }
}
