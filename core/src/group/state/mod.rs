//! State: everything that is known about who leads, and the one function that changes it.
//!
//! [`GroupState::step`] takes an event and says what to do about it. It works in two halves. The first keeps evidence:
//! the last thing that each source said about each member, the highest epoch of each kind, what refused and what did
//! not answer. The second decides from that evidence alone, as if for the first time, so that who leads depends on what is
//! known and not on the order in which it became known; only waiting (a takeover, a grace) remembers when it began.
//!
//! The state is changed in place: it holds vectors that every probe touches, and moving it would copy nothing but also
//! gain nothing, since the caller owns it alone.
//!
//! The rules, by the names they have everywhere:
//!
//! - **E1** Only claims to lead move the highest epoch of their kind; what a follower or a candidate says does not. No epoch
//!   is below any. Who claims less than the highest is a *stale claimant* until something newer is heard of it.
//! - **E2** A higher claim deposes the leader at once, without waiting for its own confession.
//! - **E3** Two claims of the same epoch are a conflict, unless a registry decides.
//! - **E4** A higher epoch is durable before it is first acted on ([`Effect::Persist`], [`Event::Persisted`]), and it is
//!   learned from authenticated tokens too. Nothing unauthenticated raises it.
//! - **E5** What decides going back behind the highest epoch, or to another cluster, fences the group until somebody
//!   accepts that.
//! - **E6** A registry that does not answer deposes nobody before its grace is over.
//! - **E7** Registry before quorum's claim before own claim. A hint makes no leader; it says where to ask.
//! - **E8** A claim holds until what made it true runs out, counted from the sending of the question.
//! - **F6** A leader that nothing but its own word makes is not written to before the word of the one before has run out.
//!
//! Invariant: an epoch that writes were stamped with is durable, and never followed by a lower one of its kind unless that
//! was accepted. Memory is bounded: one observation per member and source, one epoch per kind, [`Forks::MOST`] forks,
//! [`Samples::MOST`](super::staleness::Samples::MOST) samples, [`HISTORY`] changes of leader.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::moment::Moment;

use super::epoch::{Epoch, Kind, Trust};
use super::lineage::{Fork, Forks, Lineage};
use super::observation::{Authority, Lag, Member, Observation, Role, Source};
use super::position::Position;
use super::staleness::Samples;
use super::view::{Leader, MemberView, Phase, View};

/// What an acknowledged write is worth when the leader is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// It may be lost: replicas follow in their own time. Also what is not known.
    #[default]
    Async,
    /// It is on a quorum, so every later leader has it.
    Quorum,
}

/// What ends a regression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Acceptance {
    /// An operator (`mode: cp`).
    #[default]
    Operator,
    /// This long after it was seen (`mode: ap`).
    After(Duration),
}

/// Settings of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What an acknowledged write is worth.
    pub durability: Durability,
    /// Whether something outside the members decides who leads.
    pub registry: bool,
    /// How long its silence is borne.
    pub registry_grace: Duration,
    /// How long a member's silence says nothing; the life of a claim.
    pub claim_ttl: Duration,
    /// How long a leader of its own word waits; `None` for as long as the word of the one before holds.
    pub takeover_delay: Option<Duration>,
    /// What ends a regression.
    pub acceptance: Acceptance,
    /// Which cluster this must be; `None` for the one that claims first.
    pub cluster_id: Option<Arc<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            durability: Durability::Async,
            registry: false,
            registry_grace: Duration::from_secs(10),
            claim_ttl: Duration::from_secs(5),
            takeover_delay: None,
            acceptance: Acceptance::Operator,
            cluster_id: None,
        }
    }
}

/// What must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durable {
    /// The highest of each kind.
    pub epochs: Vec<Epoch>,
    /// How histories are connected.
    pub forks: Forks,
    /// Which cluster this is.
    pub cluster_id: Option<Arc<str>>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Somebody said something about a member.
    Observed(Observation),
    /// A registry says that nobody leads; it was asked at this moment.
    Vacant(Source, Moment),
    /// A registry does not answer any more.
    ProviderLost(Source),
    /// It answers again.
    ProviderBack(Source),
    /// The list of members changed: for each place of the new list its place in the old one.
    Members {
        /// The number of the new list.
        generation: u32,
        /// Where its members were.
        before: Vec<Option<Member>>,
    },
    /// Time has passed.
    Tick,
    /// An operator accepts what the group was fenced for.
    AcceptEpoch,
    /// An authenticated token carries this epoch.
    TokenEpoch(Epoch),
    /// What an earlier process had made durable.
    Restored(Durable),
    /// A [`Effect::Persist`] of this number is durable.
    Persisted(u64),
    /// A history's forks were told by who knows them exactly.
    Forks(Vec<Fork>),
    /// No connection to a member came about; tried at this moment.
    ConnectFailed(Member, Moment),
    /// A member was reached.
    Connected(Member, Moment),
    /// A member refused a request, sent at this moment, because it does not lead; and who does, as it says.
    Refused {
        /// Who refused.
        by: Member,
        /// Who leads instead.
        hint: Option<Member>,
        /// When the request was sent.
        sent_at: Moment,
    },
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make this durable, then say so with [`Event::Persisted`]. Until then the new epoch is not acted on. A later one
    /// contains the earlier ones.
    Persist(u64, Durable),
    /// Ask this member now.
    Probe(Member),
    /// Somebody else leads, or the same in a new epoch.
    LeaderChanged(Change),
    /// The phase is another one.
    PhaseChanged {
        /// The one before.
        before: Phase,
        /// The one now.
        after: Phase,
    },
    /// A member claims to lead in an epoch that is over.
    StaleClaim {
        /// Who.
        member: Member,
        /// What it claims.
        claimed: Option<Epoch>,
        /// The highest of that kind.
        highest: Option<Epoch>,
    },
    /// What decides has gone back.
    Fenced(Regression),
    /// Somebody has accepted that, or time has.
    Accepted(Regression),
    /// A member belongs to another cluster and is left out.
    Foreign {
        /// Who.
        member: Member,
        /// Whose it says it is.
        cluster_id: Arc<str>,
    },
    /// A member lost what it had: its position went back on one history.
    PositionWentBack(Member),
    /// Two histories parted.
    ForkRecorded(Fork),
}

/// What a group was fenced for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Regression {
    /// An epoch below the highest.
    Epoch {
        /// The highest.
        highest: Epoch,
        /// The one that what decides has confirmed.
        confirmed: Epoch,
    },
    /// Another cluster.
    Cluster {
        /// The one it was.
        was: Arc<str>,
        /// The one it is.
        is: Arc<str>,
    },
}

/// Why a leader changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There was none before.
    Discovered,
    /// A higher epoch.
    HigherEpoch,
    /// The one before was gone.
    Lost,
    /// The configuration or an operator says so.
    Manual,
}

/// One change of leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Moment,
    /// Who led before.
    pub from: Option<Member>,
    /// Who leads.
    pub to: Member,
    /// In which epoch.
    pub epoch: Epoch,
    /// Why.
    pub cause: Cause,
    /// How long nobody could be written to.
    pub gap: Duration,
}

/// What was heard of one member.
#[derive(Debug, Clone, PartialEq, Default)]
struct Known {
    /// The last word of each source.
    said: Vec<Observation>,
    position: Option<Seen>,
    /// The last position on the history before: what a new leader had when it took over.
    prior: Option<Seen>,
    lag: Option<(Lag, Moment)>,
    /// Since when a registry has named it without a break, and in which epoch. What it says of itself is held against that
    /// only if it was asked later.
    named: Option<(Option<Epoch>, Moment)>,
    unreachable: Option<Moment>,
    refused: Option<Moment>,
    foreign: bool,
}

/// A position and when it was heard.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    lineage: Lineage,
    position: Position,
    sent_at: Moment,
    received_at: Moment,
}

/// Whoever would lead, while it has to wait.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    member: Member,
    claimed: Option<Epoch>,
    epoch: Epoch,
    since: Moment,
    /// Not written to before.
    from: Moment,
}

/// A claim that is believed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Claim {
    member: Member,
    epoch: Option<Epoch>,
    authority: Authority,
    source: Source,
    until: Moment,
    true_at: Moment,
}

/// What the evidence says.
enum Finding {
    Claim(Claim),
    Conflict,
    Nobody,
    Isolated,
}

/// Everything that is known about one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupState {
    started: Moment,
    generation: u32,
    members: Vec<Known>,
    /// At most one of each kind.
    high: Vec<Epoch>,
    durable: Vec<Epoch>,
    /// The number of the last thing given out to be made durable, and what it was.
    saving: (u64, Vec<Epoch>),
    unsaved: bool,
    forks: Forks,
    cluster_id: Option<Arc<str>>,
    lineage: Option<(Lineage, Moment)>,
    leader: Option<Leader>,
    candidate: Option<Candidate>,
    phase: Phase,
    phase_since: Moment,
    unwritable_since: Option<Moment>,
    lost: Vec<(Source, Moment)>,
    /// When each registry was last asked.
    asked: Vec<(Source, Moment)>,
    fence: Option<(Regression, Moment)>,
    samples: Samples,
    history: VecDeque<Change>,
    wake: Moment,
}

impl GroupState {
    /// A group of `members` endpoints of which nothing is known.
    #[must_use]
    pub fn new(members: u16, now: Moment) -> Self {
        Self {
            started: now,
            generation: 0,
            members: (0..members).map(|_| Known::default()).collect(),
            high: Vec::new(),
            durable: Vec::new(),
            saving: (0, Vec::new()),
            unsaved: false,
            forks: Forks::new(),
            cluster_id: None,
            lineage: None,
            leader: None,
            candidate: None,
            phase: Phase::NoLeader,
            phase_since: now,
            unwritable_since: Some(now),
            lost: Vec::new(),
            asked: Vec::new(),
            fence: None,
            samples: Samples::default(),
            history: VecDeque::new(),
            wake: now,
        }
    }

    /// Takes in what happened and says what to do. An empty answer costs no allocation.
    pub fn step(&mut self, settings: &Settings, event: Event, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.cluster_id.is_none() {
            self.cluster_id.clone_from(&settings.cluster_id);
        }
        match event {
            Event::Observed(said) => self.observe(settings, said, &mut effects),
            Event::Vacant(source, sent_at) => {
                if self.is_news(source, sent_at) {
                    self.vacate(source, None);
                }
            }
            Event::ProviderLost(source) => {
                if !self.lost.iter().any(|(lost, _)| *lost == source) {
                    self.lost.push((source, now));
                }
            }
            Event::ProviderBack(source) => self.lost.retain(|(lost, _)| *lost != source),
            Event::Members { generation, before } => self.change_members(generation, &before),
            Event::Tick => {}
            Event::AcceptEpoch => self.accept(settings, now, &mut effects),
            Event::TokenEpoch(epoch) => {
                if self.raise(epoch)
                    && let Some(leader) = self.leader
                {
                    effects.push(Effect::Probe(leader.member));
                }
            }
            Event::Restored(durable) => self.restore(durable),
            Event::Persisted(number) => {
                if number == self.saving.0 {
                    self.durable.clone_from(&self.saving.1);
                }
            }
            Event::Forks(forks) => {
                for fork in forks {
                    self.record_fork(fork, &mut effects);
                }
            }
            Event::ConnectFailed(member, at) => self.miss(member, at, &mut effects),
            Event::Connected(member, at) => self.reach(member, at),
            Event::Refused { by, hint, sent_at } => self.refuse(by, hint, sent_at, &mut effects),
        }
        self.decide(settings, now, &mut effects);
        if self.unsaved {
            self.unsaved = false;
            self.saving = (self.saving.0 + 1, self.high.clone());
            effects.push(Effect::Persist(self.saving.0, self.to_save()));
        }
        effects
    }

    /// When to come back with a [`Event::Tick`], if nothing else happens before.
    #[must_use]
    pub const fn wake(&self) -> Moment {
        self.wake
    }

    /// What requests should see from now on.
    #[must_use]
    pub fn view(&self) -> View {
        let each = self.members.iter().enumerate().map(|(place, known)| MemberView {
            role: known.role(),
            stale_claimant: self.is_stale_claimant(Member(place as u16)),
            foreign: known.foreign,
            position: known
                .position
                .as_ref()
                .map(|seen| (seen.lineage, seen.position.clone())),
            proven: known
                .position
                .as_ref()
                .and_then(|seen| self.samples.proven(seen.lineage, &seen.position, &self.forks)),
            lag: known.lag,
        });
        View {
            generation: self.generation,
            phase: self.phase,
            since: self.phase_since,
            leader: self.leader.filter(|_| self.phase == Phase::Steady),
            incumbent: self.leader,
            lineage: self.lineage.map(|(lineage, _)| lineage),
            members: each.collect(),
            forks: self.forks.clone(),
            next: self.wake,
        }
    }

    /// The phase.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The highest epoch of each kind that was claimed.
    #[must_use]
    pub fn highest(&self) -> &[Epoch] {
        &self.high
    }

    /// The last word of each source about a member, for people to compare.
    #[must_use]
    pub fn said(&self, member: Member) -> &[Observation] {
        self.members.get(member.index()).map_or(&[], |known| &known.said)
    }

    /// What the group is fenced for.
    #[must_use]
    pub fn regression(&self) -> Option<&Regression> {
        self.fence.as_ref().map(|(regression, _)| regression)
    }

    /// The last changes of leader, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Change> {
        self.history.iter()
    }

    /// How histories are connected.
    #[must_use]
    pub const fn forks(&self) -> &Forks {
        &self.forks
    }

    /// Who would lead and has to wait, and until when.
    #[must_use]
    pub fn waiting(&self) -> Option<(Member, Epoch, Moment)> {
        self.candidate
            .map(|candidate| (candidate.member, candidate.epoch, candidate.from))
    }
}

/// Keeping evidence.
impl GroupState {
    fn observe(&mut self, settings: &Settings, said: Observation, effects: &mut Vec<Effect>) {
        let place = said.member.index();
        if said.generation != self.generation || place >= self.members.len() {
            return;
        }
        let mut last = self.members[place].said.iter();
        if last.any(|last| last.source == said.source && last.sent_at >= said.sent_at) {
            // A reply that was overtaken tells of the past. The epoch it names was claimed all the same.
            if let Some(epoch) = said
                .epoch
                .filter(|_| said.is_claim() && !self.members[place].foreign)
            {
                self.raise(epoch);
            }
            return;
        }
        if said.is_claim()
            && said.authority == Authority::Registry
            && !self.is_news(said.source, said.sent_at)
        {
            return;
        }
        if !self.belongs(&said, effects) {
            return;
        }
        if said.is_claim() {
            self.hear_claim(settings, &said, effects);
        }
        // E7: a hint is a place to ask.
        let hinted = Some(said.member).filter(|_| said.role == Role::Leader && !said.is_claim());
        for hint in [said.leader_hint, hinted].into_iter().flatten() {
            let news = self.leader.is_none_or(|leader| leader.member != hint);
            if news && hint.index() < self.members.len() {
                effects.push(Effect::Probe(hint));
            }
        }
        self.hear_position(settings, &said, effects);
        let known = &mut self.members[place];
        if said.is_own() {
            known.lag = said.lag.map(|lag| (lag, said.true_at()));
            known.unreachable = known.unreachable.filter(|at| said.sent_at <= *at);
        }
        let may_clear = said.is_claim() && (said.is_own() || said.authority == Authority::Registry);
        known.refused = known.refused.filter(|at| !may_clear || said.true_at() <= *at);
        known.said.retain(|last| last.source != said.source);
        if said.is_claim() && said.authority == Authority::Registry {
            if known.named.is_none_or(|(epoch, _)| epoch != said.epoch) {
                known.named = Some((said.epoch, said.true_at()));
            }
            self.vacate(said.source, Some(said.member));
        }
        self.members[place].said.push(said);
    }

    /// Whether a registry was asked later than the last time it said something; what it says is about all members.
    fn is_news(&mut self, source: Source, sent_at: Moment) -> bool {
        match self.asked.iter_mut().find(|(asked, _)| *asked == source) {
            Some((_, last)) if sent_at < *last => return false,
            Some((_, last)) => *last = sent_at,
            None => self.asked.push((source, sent_at)),
        }
        true
    }

    /// Whether it is said by a member of this cluster.
    fn belongs(&mut self, said: &Observation, effects: &mut Vec<Effect>) -> bool {
        let Some(theirs) = &said.cluster_id else {
            return true;
        };
        let Some(ours) = &self.cluster_id else {
            // Only who claims to lead names the cluster; a stray endpoint that answers first must not.
            if said.is_claim() {
                self.cluster_id = Some(theirs.clone());
                self.unsaved = true;
            }
            return true;
        };
        let known = &mut self.members[said.member.index()];
        let was_foreign = known.foreign;
        known.foreign = theirs != ours;
        if !known.foreign {
            return true;
        }
        if !was_foreign {
            *known = Known {
                foreign: true,
                said: std::mem::take(&mut known.said),
                named: known.named,
                ..Known::default()
            };
            // What registries say of it is theirs to say; its own words are not evidence in this group.
            known.said.retain(|last| !last.is_own());
            effects.push(Effect::Foreign {
                member: said.member,
                cluster_id: theirs.clone(),
            });
        }
        known.said.retain(|last| last.source != said.source);
        known.said.push(said.clone());
        false
    }

    /// E1, E2.
    fn hear_claim(&mut self, settings: &Settings, said: &Observation, effects: &mut Vec<Effect>) {
        if self.is_behind(settings, said) {
            // What a registry says is settled by E5. Of the others it is an event once per epoch that they claim.
            let same = |last: &Observation| last.is_claim() && last.epoch == said.epoch;
            let known = &self.members[said.member.index()];
            if said.authority != Authority::Registry && !known.said.iter().any(same) {
                effects.push(Effect::StaleClaim {
                    member: said.member,
                    claimed: said.epoch,
                    highest: said.epoch.and_then(|epoch| self.highest_of(epoch.kind)),
                });
                effects.push(Effect::Probe(said.member));
            }
            return;
        }
        let raised = said.epoch.is_some_and(|epoch| self.raise(epoch));
        if let Some(leader) = self.leader
            && raised
            && leader.member != said.member
        {
            effects.push(Effect::Probe(leader.member));
        }
    }

    /// Whether a claim is below what was claimed before. No epoch is below any, of those who are asked alike: what a
    /// registry counts says nothing about who counts not.
    fn is_behind(&self, settings: &Settings, said: &Observation) -> bool {
        match said.epoch {
            Some(epoch) => self.highest_of(epoch.kind).is_some_and(|highest| epoch < highest),
            None => !settings.registry && self.high.iter().any(|high| high.kind != Kind::Proxy),
        }
    }

    fn hear_position(&mut self, settings: &Settings, said: &Observation, effects: &mut Vec<Effect>) {
        let Some(position) = said.position.clone() else {
            return;
        };
        let Some(lineage) = self.lineage_of(settings, said) else {
            return;
        };
        let leads = said.is_own() && self.is_word_of_leader(said);
        let known = &mut self.members[said.member.index()];
        let seen = Seen {
            lineage,
            position,
            sent_at: said.sent_at,
            received_at: said.received_at,
        };
        match &known.position {
            Some(last) if last.lineage != lineage => {
                if seen.sent_at <= last.sent_at {
                    return;
                }
                known.prior = known.position.take();
            }
            Some(last) if !seen.position.covers(&last.position) => {
                // Two answers under way at the same time may overtake each other; a question that was sent after the other
                // answer had come may not go back.
                if seen.sent_at <= last.received_at {
                    return;
                }
                effects.push(Effect::PositionWentBack(said.member));
            }
            _ => {}
        }
        if leads {
            self.samples.record(said.true_at(), lineage, &seen.position);
        }
        self.members[said.member.index()].position = Some(seen);
    }

    /// Which history a position that was said belongs to.
    ///
    /// Who names none: where a write is on a quorum there is only one. Elsewhere each epoch of a leader is one, as far as
    /// we know, and who follows is on that of the present leader.
    fn lineage_of(&self, settings: &Settings, said: &Observation) -> Option<Lineage> {
        if said.lineage.is_some() {
            return said.lineage;
        }
        if settings.durability == Durability::Quorum {
            return Some(self.history_of(settings, None));
        }
        // Where a registry counts, the count of the member itself is not the one that histories are named by.
        let counts = !settings.registry || said.authority == Authority::Registry;
        if let Some(epoch) = said.epoch.filter(|_| said.is_claim() && counts) {
            return Some(self.history_of(settings, Some(epoch)));
        }
        match self.lineage {
            Some((lineage, since)) => (said.sent_at >= since).then_some(lineage),
            None => Some(self.history_of(settings, None)),
        }
    }

    fn history_of(&self, settings: &Settings, epoch: Option<Epoch>) -> Lineage {
        let id = self.cluster_id.as_deref().unwrap_or("");
        match (settings.durability, epoch) {
            // A count of our own would name the same history differently at every proxy.
            (Durability::Async, Some(epoch)) if epoch.kind != Kind::Proxy => {
                Lineage::of(id, &epoch.to_string())
            }
            _ => Lineage::of(id, ""),
        }
    }

    /// What a registry said before is over, except about whom it names.
    fn vacate(&mut self, source: Source, named: Option<Member>) {
        for (place, known) in self.members.iter_mut().enumerate() {
            if named != Some(Member(place as u16)) {
                known.said.retain(|last| last.source != source);
                let by_registry =
                    |said: &Observation| said.authority == Authority::Registry && said.is_claim();
                known.named = known.named.filter(|_| known.said.iter().any(by_registry));
            }
        }
    }

    fn change_members(&mut self, generation: u32, before: &[Option<Member>]) {
        let mut old = std::mem::take(&mut self.members);
        let now_at = |member: Member| {
            let place = before.iter().position(|place| *place == Some(member));
            place.map(|place| Member(place as u16))
        };
        self.members = before
            .iter()
            .map(|place| {
                let known = place.and_then(|member| old.get_mut(member.index()));
                known.map(std::mem::take).unwrap_or_default()
            })
            .collect();
        for (place, known) in self.members.iter_mut().enumerate() {
            for said in &mut known.said {
                said.member = Member(place as u16);
                said.generation = generation;
                said.leader_hint = said.leader_hint.and_then(now_at);
            }
        }
        self.generation = generation;
        self.leader = self.leader.and_then(|leader| {
            let member = now_at(leader.member)?;
            Some(Leader { member, ..leader })
        });
        self.candidate = None;
        // Places of the history are of the past; who is gone is nobody.
        for change in &mut self.history {
            change.from = change.from.and_then(now_at);
            change.to = now_at(change.to).unwrap_or(GONE);
        }
    }

    fn restore(&mut self, durable: Durable) {
        for epoch in durable.epochs {
            raise(&mut self.high, epoch);
            raise(&mut self.durable, epoch);
        }
        for fork in durable.forks.known() {
            self.forks.record(fork.clone());
        }
        self.cluster_id = self.cluster_id.take().or(durable.cluster_id);
    }

    fn miss(&mut self, member: Member, at: Moment, effects: &mut Vec<Effect>) {
        let Some(known) = self.members.get_mut(member.index()) else {
            return;
        };
        let mut own = known.said.iter().filter(|said| said.is_own());
        if own.any(|said| said.sent_at > at) {
            return;
        }
        if known.unreachable.is_none() {
            effects.push(Effect::Probe(member));
        }
        known.unreachable = known.unreachable.max(Some(at));
    }

    fn reach(&mut self, member: Member, at: Moment) {
        if let Some(known) = self.members.get_mut(member.index()) {
            known.unreachable = known.unreachable.filter(|missed| *missed > at);
        }
    }

    fn refuse(&mut self, by: Member, hint: Option<Member>, sent_at: Moment, effects: &mut Vec<Effect>) {
        let Some(known) = self.members.get_mut(by.index()) else {
            return;
        };
        let mut newer = known.said.iter().filter(|said| said.is_own() && said.is_claim());
        if newer.any(|said| said.true_at() > sent_at) {
            return;
        }
        known.refused = known.refused.max(Some(sent_at));
        effects.push(Effect::Probe(by));
        if let Some(hint) = hint.filter(|hint| hint.index() < self.members.len() && *hint != by) {
            effects.push(Effect::Probe(hint));
        }
    }

    /// E1, E4: the highest of its kind. Whether it is higher.
    fn raise(&mut self, epoch: Epoch) -> bool {
        let higher = raise(&mut self.high, epoch);
        self.unsaved |= higher;
        higher
    }

    fn record_fork(&mut self, fork: Fork, effects: &mut Vec<Effect>) {
        if self.forks.record(fork.clone()) {
            self.unsaved = true;
            effects.push(Effect::ForkRecorded(fork));
        }
    }

    fn to_save(&self) -> Durable {
        Durable {
            epochs: self.high.clone(),
            forks: self.forks.clone(),
            cluster_id: self.cluster_id.clone(),
        }
    }
}

/// Deciding.
impl GroupState {
    fn decide(&mut self, settings: &Settings, now: Moment, effects: &mut Vec<Effect>) {
        self.wake = Moment::FAR_FUTURE;
        self.look_for_regression(settings, now, effects);
        let finding = self.find(settings, now);
        let phase = match finding {
            _ if self.fence.is_some() => Phase::Fenced,
            Finding::Claim(claim) => self.follow(settings, claim, now, effects),
            Finding::Conflict => {
                self.keep_incumbent(settings, now);
                Phase::Conflict
            }
            Finding::Nobody => Phase::NoLeader,
            Finding::Isolated => Phase::Isolated,
        };
        if phase != Phase::Steady {
            self.unwritable_since.get_or_insert(now);
        }
        if phase != self.phase {
            effects.push(Effect::PhaseChanged {
                before: self.phase,
                after: phase,
            });
            self.phase = phase;
            self.phase_since = now;
        }
    }

    /// Who leads by the evidence, whatever led before.
    fn find(&mut self, settings: &Settings, now: Moment) -> Finding {
        let mut claims = self.claims(settings, now);
        for claim in &claims {
            self.wake = self.wake.min(claim.until);
        }
        if settings.registry {
            claims.retain(|claim| claim.authority == Authority::Registry);
        }
        if let Some(best) = claims.iter().map(|claim| claim.authority).max() {
            claims.retain(|claim| claim.authority == best);
            return resolve(&claims);
        }
        if settings.registry && !self.lost.is_empty() {
            return Finding::Isolated;
        }
        let heard = self.members.iter().flat_map(|known| &known.said);
        let heard = heard.map(Observation::usable_until).max();
        let silent_from = heard
            .unwrap_or(Moment::ZERO)
            .max(self.started.plus(settings.claim_ttl));
        if now < silent_from {
            self.wake = self.wake.min(silent_from);
            return Finding::Nobody;
        }
        if self.members.is_empty() {
            return Finding::Nobody;
        }
        Finding::Isolated
    }

    /// E3: whoever led goes on claiming; routes that prefer availability go on believing it.
    fn keep_incumbent(&mut self, settings: &Settings, now: Moment) {
        let claims = self.claims(settings, now);
        if let Some(leader) = &mut self.leader {
            let own = claims.iter().filter(|claim| claim.member == leader.member);
            leader.usable_until = own
                .map(|claim| claim.until)
                .fold(leader.usable_until, Moment::max);
        }
    }

    /// Claims that hold, are not behind what is known, and were not refuted since.
    fn claims(&self, settings: &Settings, now: Moment) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (place, known) in self.members.iter().enumerate() {
            let claims_of = known.said.iter().filter(|said| said.is_claim() && !known.foreign);
            for said in claims_of {
                let until = self.until(settings, said);
                let refuted = known.refused.is_some_and(|at| said.true_at() <= at);
                if now < until && !refuted && !self.is_behind(settings, said) {
                    claims.push(Claim {
                        member: Member(place as u16),
                        epoch: said.epoch,
                        authority: said.authority,
                        source: said.source,
                        until,
                        true_at: said.true_at(),
                    });
                }
            }
        }
        claims
    }

    /// E8; and E6: the silence of a registry is borne for its grace.
    fn until(&self, settings: &Settings, said: &Observation) -> Moment {
        let until = said.usable_until();
        match self.lost.iter().find(|(lost, _)| *lost == said.source) {
            Some((_, since)) if said.usable_until() >= *since => {
                until.max(since.plus(settings.registry_grace))
            }
            _ => until,
        }
    }

    /// Whether who leads by the evidence can be written to, and if not, why.
    fn follow(&mut self, settings: &Settings, claim: Claim, now: Moment, effects: &mut Vec<Effect>) -> Phase {
        let known = &self.members[claim.member.index()];
        // The registry says that it leads, and it says itself that it does not, or not yet.
        if claim.authority == Authority::Registry
            && let Some((_, since)) = known.named
            && known.denies_since(since, now)
        {
            return Phase::NoLeader;
        }
        let unreachable = known.unreachable.is_some();
        let same = self.leader.filter(|leader| {
            let counted = claim.epoch.is_none() && leader.epoch.kind == Kind::Proxy;
            leader.member == claim.member && (counted || claim.epoch == Some(leader.epoch))
        });
        if let Some(leader) = same {
            self.candidate = None;
            self.leader = Some(Leader {
                usable_until: claim.until,
                ..leader
            });
        } else {
            let candidate = self.candidacy(settings, claim, now);
            if now < candidate.from {
                self.wake = self.wake.min(candidate.from);
                return Phase::NoLeader;
            }
            if !self.is_durable(candidate.epoch) {
                return Phase::NoLeader;
            }
            self.enthrone(claim, candidate.epoch, now, effects);
        }
        self.follow_history(settings, claim.member, now, effects);
        if unreachable {
            return Phase::LeaderUnreachable;
        }
        self.unwritable_since = None;
        Phase::Steady
    }

    /// F6: since when somebody would lead, and from when it may.
    fn candidacy(&mut self, settings: &Settings, claim: Claim, now: Moment) -> Candidate {
        let (member, claimed) = (claim.member, claim.epoch);
        let waiting = self
            .candidate
            .filter(|waiting| (waiting.member, waiting.claimed) == (member, claimed));
        let mut candidate = waiting.unwrap_or_else(|| {
            let epoch = claimed.unwrap_or_else(|| {
                let count = self.highest_of(Kind::Proxy).map_or(0, |highest| highest.term);
                Epoch::new(Kind::Proxy, count + 1)
            });
            Candidate {
                member,
                claimed,
                epoch,
                since: now,
                from: now,
            }
        });
        self.raise(candidate.epoch);
        candidate.from = candidate.since.plus(self.damping(claim, now));
        // Who counts leaders by consensus has no two that both commit; who is named by a registry is the only one.
        let decided = claim.authority == Authority::Registry
            || claim.authority == Authority::QuorumClaim && candidate.epoch.kind.trust() == Trust::Strong;
        if !decided && let Some(before) = self.leader.filter(|leader| leader.member != member) {
            let resigned = self.members[before.member.index()].denies_since(before.since, now);
            let from = match settings.takeover_delay {
                Some(delay) => candidate.since.plus(delay),
                None if resigned => candidate.since,
                None => before.usable_until,
            };
            candidate.from = candidate.from.max(from);
        }
        self.candidate = Some(candidate);
        candidate
    }

    /// How much longer a new leader waits where leaders change all the time: nothing up to three a minute, then one second
    /// more for the first and twice that for each further one. Registries are followed at once: they cannot be wrong about
    /// it, and a hold ends by itself.
    fn damping(&self, claim: Claim, now: Moment) -> Duration {
        if claim.authority == Authority::Registry {
            return Duration::ZERO;
        }
        let recent = self.history.iter().rev();
        let recent = recent
            .take_while(|change| now.since(change.at) < FLAP_WINDOW)
            .count();
        match recent.checked_sub(FLAPS) {
            None => Duration::ZERO,
            Some(more) => MOST_DAMPING.min(Duration::from_secs(1 << more.min(6))),
        }
    }

    fn enthrone(&mut self, claim: Claim, epoch: Epoch, now: Moment, effects: &mut Vec<Effect>) {
        let before = self.leader;
        let cause = match before {
            None => Cause::Discovered,
            Some(_) if claim.source == Source::Static => Cause::Manual,
            Some(before) if before.epoch < epoch && epoch.kind != Kind::Proxy => Cause::HigherEpoch,
            Some(_) => Cause::Lost,
        };
        let change = Change {
            at: now,
            from: before.map(|leader| leader.member),
            to: claim.member,
            epoch,
            cause,
            gap: self
                .unwritable_since
                .map_or(Duration::ZERO, |since| now.since(since)),
        };
        self.candidate = None;
        self.leader = Some(Leader {
            member: claim.member,
            epoch,
            since: now,
            usable_until: claim.until,
        });
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(change.clone());
        effects.push(Effect::LeaderChanged(change));
    }

    /// The history that the leader writes, and where it left the one before.
    fn follow_history(
        &mut self,
        settings: &Settings,
        member: Member,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let known = &self.members[member.index()];
        let own = || {
            known
                .said
                .iter()
                .filter(|said| said.is_own() && said.lineage.is_some())
        };
        let next = if own().next().is_some() {
            // It names histories: what counts is what it says as the leader, not what it said while it followed.
            let leading = own().filter(|said| self.is_word_of_leader(said));
            let newest = leading.max_by_key(|said| said.true_at());
            newest.and_then(|said| said.lineage)
        } else {
            Some(self.history_of(settings, self.leader.map(|leader| leader.epoch)))
        };
        let Some(next) = next else {
            return;
        };
        let Some((last, _)) = self.lineage else {
            self.lineage = Some((next, now));
            return;
        };
        if last == next {
            return;
        }
        self.lineage = Some((next, now));
        let first = known.position.as_ref().filter(|seen| seen.lineage == next);
        let seen = [&known.prior, &known.position].into_iter().flatten();
        let sure = { seen }.rfind(|seen| seen.lineage == last);
        if let Some(first) = first {
            let fork = Fork {
                parent: last,
                child: next,
                sure: sure.map(|seen| seen.position.clone()),
                most: first.position.clone(),
            };
            self.record_fork(fork, effects);
        }
    }

    /// E5: what decides who leads has confirmed less than was seen.
    fn look_for_regression(&mut self, settings: &Settings, now: Moment, effects: &mut Vec<Effect>) {
        // It stays fenced even if a higher epoch comes: numbers that were given twice prove nothing (timelines are).
        if self.fence.is_none()
            && let Some(regression) = self.regression_now(now)
        {
            effects.push(Effect::Fenced(regression.clone()));
            self.fence = Some((regression, now));
        }
        if let (Some((_, since)), Acceptance::After(grace)) = (&self.fence, settings.acceptance) {
            let end = since.plus(grace);
            if now >= end {
                self.accept(settings, now, effects);
            } else {
                self.wake = self.wake.min(end);
            }
        }
    }

    fn regression_now(&self, now: Moment) -> Option<Regression> {
        for known in &self.members {
            let registry = |said: &&Observation| said.authority == Authority::Registry && said.is_claim();
            let Some(named) = known
                .said
                .iter()
                .find(|said| registry(said) && now < said.usable_until())
            else {
                continue;
            };
            if let Some(confirmed) = named.epoch
                && let Some(regression) = self.behind(confirmed)
            {
                return Some(regression);
            }
            // The holder's own word counts if it was asked after the registry had named it.
            let own = known.said.iter().filter(|said| said.is_own() && said.is_claim());
            let since = known.named.map_or(Moment::FAR_FUTURE, |(_, since)| since);
            for said in own.filter(|said| said.true_at() >= since && now < said.usable_until()) {
                if let (Some(was), Some(is)) = (&self.cluster_id, &said.cluster_id)
                    && was != is
                {
                    let (was, is) = (was.clone(), is.clone());
                    return Some(Regression::Cluster { was, is });
                }
                if let Some(regression) = said.epoch.and_then(|epoch| self.behind(epoch)) {
                    return Some(regression);
                }
            }
        }
        None
    }

    fn behind(&self, confirmed: Epoch) -> Option<Regression> {
        let highest = self.highest_of(confirmed.kind)?;
        (confirmed < highest).then_some(Regression::Epoch { highest, confirmed })
    }

    /// What is claimed now is the truth from now on, whatever was before.
    ///
    /// Whom that means: the one the registry names, else the one with the highest claim that holds.
    fn accept(&mut self, settings: &Settings, now: Moment, effects: &mut Vec<Effect>) {
        let holds = |said: &&Observation| said.is_claim() && now < self.until(settings, said);
        let all = self.members.iter().flat_map(|known| &known.said);
        let chosen = all.filter(holds).max_by(|a, b| {
            let order = |said: &Observation| said.epoch.map(|epoch| (epoch.term, epoch.tie));
            (a.authority, order(a)).cmp(&(b.authority, order(b)))
        });
        let Some(chosen) = chosen.map(|said| said.member) else {
            return;
        };
        let known = &mut self.members[chosen.index()];
        known.foreign = false;
        let claims: Vec<Observation> = known
            .said
            .iter()
            .filter(|said| said.is_claim())
            .cloned()
            .collect();
        for said in &claims {
            if let Some(epoch) = said.epoch {
                self.high.retain(|high| high.kind != epoch.kind);
                self.durable.retain(|high| high.kind != epoch.kind);
                self.high.push(epoch);
            }
            if let Some(id) = &said.cluster_id {
                self.cluster_id = Some(id.clone());
            }
        }
        let proxy = self.highest_of(Kind::Proxy).map_or(0, |highest| highest.term);
        self.raise(Epoch::new(Kind::Proxy, proxy + 1));
        self.unsaved = true;
        self.abandon(settings, &claims, effects);
        let (regression, _) = self.fence.take().unzip();
        if let Some(regression) = regression {
            effects.push(Effect::Accepted(regression));
        }
        // The next decision finds the leader anew.
        self.leader = None;
        self.candidate = None;
    }

    /// The history that was being written ends where the accepted one had left it.
    fn abandon(&mut self, settings: &Settings, claims: &[Observation], effects: &mut Vec<Effect>) {
        let own = claims.iter().filter(|said| said.is_own());
        let Some(own) = own.max_by_key(|said| said.true_at()) else {
            return;
        };
        let next = own
            .lineage
            .unwrap_or_else(|| self.history_of(settings, own.epoch));
        let Some((last, _)) = self.lineage.filter(|(last, _)| *last != next) else {
            return;
        };
        let mut known = self.forks.known().iter();
        let fork = known.find(|fork| fork.parent == next && fork.child == last);
        let (sure, most) = match (fork, &own.position) {
            (Some(fork), _) => (fork.sure.clone(), fork.most.clone()),
            (None, Some(position)) => (None, position.clone()),
            (None, None) => return,
        };
        let (parent, child) = (last, next);
        self.record_fork(
            Fork {
                parent,
                child,
                sure,
                most,
            },
            effects,
        );
    }

    fn highest_of(&self, kind: Kind) -> Option<Epoch> {
        self.high.iter().copied().find(|high| high.kind == kind)
    }

    fn is_durable(&self, epoch: Epoch) -> bool {
        let mut durable = self.durable.iter();
        durable.any(|durable| *durable >= epoch)
    }

    /// Whether a member says that it leads in the epoch in which it does, as far as its kind tells.
    fn is_word_of_leader(&self, said: &Observation) -> bool {
        let Some(leader) = self.leader.filter(|leader| leader.member == said.member) else {
            return false;
        };
        let another = said.epoch.is_some_and(|epoch| {
            let of_leader = epoch.kind == leader.epoch.kind && epoch != leader.epoch;
            of_leader || self.highest_of(epoch.kind).is_some_and(|highest| epoch < highest)
        });
        said.role == Role::Leader && !another
    }

    /// It says that it leads, and it does not: until something newer is heard of it.
    fn is_stale_claimant(&self, member: Member) -> bool {
        let known = &self.members[member.index()];
        let own = known.said.iter().filter(|said| said.is_own());
        let newest = own.max_by_key(|said| said.true_at());
        let Some(newest) = newest.filter(|said| said.is_claim()) else {
            return false;
        };
        let leads = self.leader.is_some_and(|leader| leader.member == member);
        let comes = self.candidate.is_some_and(|candidate| candidate.member == member);
        let behind = newest
            .epoch
            .is_some_and(|epoch| self.highest_of(epoch.kind).is_some_and(|highest| epoch < highest));
        !(leads || comes) || behind || known.refused.is_some()
    }
}

impl Known {
    /// What it does: in its own newest words, else in those of a registry.
    fn role(&self) -> Role {
        let own = self.said.iter().filter(|said| said.is_own());
        let newest = own.max_by_key(|said| said.true_at());
        let any = self.said.iter().max_by_key(|said| said.authority);
        newest.or(any).map_or(Role::Unknown, |said| said.role)
    }

    /// It was asked after `since` and said that it does not lead.
    fn denies_since(&self, since: Moment, now: Moment) -> bool {
        let own = self.said.iter().filter(|said| said.is_own());
        own.max_by_key(|said| said.true_at()).is_some_and(|said| {
            let denies = match said.role {
                Role::Follower | Role::Candidate | Role::Learner => true,
                Role::Leader | Role::Unknown => false,
            };
            denies && said.true_at() >= since && now < said.usable_until()
        })
    }
}

/// Of claims of equal authority: the highest, if there is one. What does not compare, or is equal, is a conflict unless
/// it is the same member's.
fn resolve(claims: &[Claim]) -> Finding {
    let above = |one: &Claim, other: &Claim| match (one.epoch, other.epoch) {
        (Some(one), Some(other)) => one > other,
        (Some(_), None) => true,
        (None, _) => false,
    };
    let highest = |claim: &&Claim| {
        let mut others = claims.iter();
        others.all(|other| other.member == claim.member || above(claim, other))
    };
    let of_member = claims.iter().filter(highest);
    // Several sources may say the same of one member: the highest epoch, and of that the longest.
    let best = of_member.reduce(|best, claim| {
        let longer = best.epoch == claim.epoch && claim.until > best.until;
        if above(claim, best) || longer { claim } else { best }
    });
    match best {
        Some(claim) => Finding::Claim(*claim),
        None if claims.is_empty() => Finding::Nobody,
        None => Finding::Conflict,
    }
}

/// Whether it is higher than what there was of its kind.
fn raise(high: &mut Vec<Epoch>, epoch: Epoch) -> bool {
    match high.iter_mut().find(|high| high.kind == epoch.kind) {
        Some(high) if *high < epoch => *high = epoch,
        Some(_) => return false,
        None => high.push(epoch),
    }
    true
}

/// A member of the history that is no member any more.
pub const GONE: Member = Member(u16::MAX);

/// How many changes of leader are remembered.
pub const HISTORY: usize = 64;

/// So many changes within [`FLAP_WINDOW`] are usual.
const FLAPS: usize = 4;
const FLAP_WINDOW: Duration = Duration::from_secs(60);
const MOST_DAMPING: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
