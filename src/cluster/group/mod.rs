//! Groups: clusters whose endpoints replicate one state, and what is known about who leads them.
//!
//! What is known, and what follows from it, is [`bellwether_core::group`]'s. Here it lives between snapshots, in one place
//! that the control runtime changes and all workers read: a change locks the state, makes a new view and publishes it; a
//! request takes whichever view is there and asks it at dispatch whether it still holds.
//!
//! Members are known by the identity of their endpoint ([`EndpointState::id`](super::EndpointState)), because a view and a
//! snapshot may be of different moments: a worker that has a newer list of members than the view, or an older one, finds
//! those that both know and no others.

pub mod presets;
pub mod question;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bellwether_core::Moment;
use bellwether_core::group::observation::{Member, Observation};
use bellwether_core::group::{Effect, Event, GroupState, Settings, View};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What is known about who leads a cluster, beyond one snapshot.
#[derive(Debug)]
pub struct Group {
    state: Mutex<State>,
    seen: ArcSwap<Seen>,
    /// Counts the changes, so that who waits for one misses none.
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    core: GroupState,
    ids: Arc<[u64]>,
    generation: u32,
}

/// What a request sees of it.
#[derive(Debug)]
pub struct Seen {
    /// What is known.
    pub view: View,
    /// Who the members are, by [`EndpointState::id`](super::EndpointState).
    ids: Arc<[u64]>,
}

impl Group {
    /// One of which nothing is known, not even its members.
    pub fn new(now: Moment) -> Self {
        let state = State {
            core: GroupState::new(0, now),
            ids: Arc::default(),
            generation: 0,
        };
        let seen = Seen {
            view: state.core.view(),
            ids: Arc::default(),
        };
        Self {
            state: Mutex::new(state),
            seen: ArcSwap::from_pointee(seen),
            news: watch::Sender::new(0),
        }
    }

    /// What is known at present.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.load_full()
    }

    /// Tells when that changes.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// These are the members now. What was known of those who stay is kept.
    pub fn set_members(&self, settings: &Settings, ids: &[u64], now: Moment) -> Vec<Effect> {
        let mut state = self.state.lock();
        if *state.ids == *ids {
            return Vec::new();
        }
        let place = |id: &u64| state.ids.iter().position(|known| known == id).map(member);
        let before = ids.iter().map(place).collect();
        state.ids = ids.into();
        state.generation += 1;
        let generation = state.generation;
        let effects = state
            .core
            .step(settings, Event::Members { generation, before }, now);
        self.publish(&state);
        effects
    }

    /// Which place the endpoint with this id has in the present list of members, and the number of that list.
    pub fn place(&self, id: u64) -> Option<(Member, u32)> {
        let state = self.state.lock();
        let place = state.ids.iter().position(|known| *known == id)?;
        Some((member(place), state.generation))
    }

    /// Takes in what happened and says what to do about it.
    pub fn step(&self, settings: &Settings, event: Event, now: Moment) -> Vec<Effect> {
        let mut state = self.state.lock();
        let effects = state.core.step(settings, event, now);
        self.publish(&state);
        effects
    }

    /// When to come back with a tick.
    pub fn wake(&self) -> Moment {
        self.state.lock().core.wake()
    }

    /// Looks at everything that is known, for explanations.
    pub fn with<T>(&self, look: impl FnOnce(&GroupState) -> T) -> T {
        look(&self.state.lock().core)
    }

    /// What each source last said about a member.
    pub fn said(&self, member: Member) -> Vec<Observation> {
        self.state.lock().core.said(member).to_vec()
    }

    /// Under the lock, so that views appear in the order of what they show.
    fn publish(&self, state: &State) {
        let view = state.core.view();
        let before = self.seen.load();
        if before.view == view && Arc::ptr_eq(&before.ids, &state.ids) {
            return;
        }
        let ids = Arc::clone(&state.ids);
        self.seen.store(Arc::new(Seen { view, ids }));
        self.news.send_modify(|count| *count += 1);
    }
}

impl Seen {
    /// The id of a member's endpoint.
    pub fn id(&self, member: Member) -> Option<u64> {
        self.ids.get(member.index()).copied()
    }

    /// The place of an endpoint in this view, looked for first where it is in a list that has not changed.
    pub fn member(&self, index: usize, id: u64) -> Option<Member> {
        if self.ids.get(index) == Some(&id) {
            return Some(member(index));
        }
        self.ids.iter().position(|known| *known == id).map(member)
    }
}

fn member(place: usize) -> Member {
    Member(u16::try_from(place).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellwether_core::group::observation::{Role, Source};
    use bellwether_core::group::{Epoch, Kind, Phase};

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(1_000_000_000).plus(Duration::from_millis(millis))
    }

    fn leads(group: &Group, id: u64, term: u64, now: Moment) -> Observation {
        let (member, generation) = group.place(id).unwrap();
        let mut said = Observation::new(member, generation, Source::HttpProbe, now);
        said.role = Role::Leader;
        said.epoch = Some(Epoch::new(Kind::RaftTerm, term));
        said.authority = bellwether_core::group::Authority::QuorumClaim;
        said
    }

    /// Steps, and makes durable what is to be durable.
    fn step(group: &Group, event: Event, now: Moment) -> Vec<Effect> {
        let settings = Settings::default();
        let effects = group.step(&settings, event, now);
        for effect in &effects {
            if let Effect::Persist(number, _) = effect {
                group.step(&settings, Event::Persisted(*number), now);
            }
        }
        effects
    }

    fn leader(group: &Group, now: Moment) -> Option<u64> {
        let seen = group.seen();
        let leader = seen.view.leader_at(now)?;
        seen.id(leader.member)
    }

    #[test]
    fn a_leader_stays_who_it_is_when_the_list_of_members_changes() {
        let group = Group::new(at(0));
        let settings = Settings::default();
        group.set_members(&settings, &[10, 20, 30], at(0));
        assert_eq!(leader(&group, at(0)), None);
        let said = leads(&group, 20, 4, at(10));
        step(&group, Event::Observed(said), at(11));
        assert_eq!(leader(&group, at(12)), Some(20));

        group.set_members(&settings, &[20, 40, 10], at(20));
        assert_eq!(leader(&group, at(21)), Some(20));
        let seen = group.seen();
        assert_eq!(seen.member(0, 20), Some(Member(0)));
        assert_eq!(seen.member(7, 10), Some(Member(2)), "of another list");
        assert_eq!(seen.member(0, 30), None, "it has left");

        group.set_members(&settings, &[40, 10], at(30));
        assert_eq!(leader(&group, at(31)), None);
        assert_eq!(group.seen().view.phase, Phase::NoLeader);
    }

    #[test]
    fn an_answer_about_a_list_that_is_over_says_nothing() {
        let group = Group::new(at(0));
        let settings = Settings::default();
        group.set_members(&settings, &[10, 20], at(0));
        let late = leads(&group, 20, 4, at(10));
        group.set_members(&settings, &[30, 40], at(20));
        step(&group, Event::Observed(late), at(21));
        assert_eq!(leader(&group, at(22)), None);
    }

    #[tokio::test]
    async fn who_waits_is_told_of_each_change() {
        let group = Group::new(at(0));
        let settings = Settings::default();
        let mut news = group.news();
        group.set_members(&settings, &[10], at(0));
        news.changed().await.unwrap();
        let said = leads(&group, 10, 1, at(10));
        step(&group, Event::Observed(said), at(11));
        news.changed().await.unwrap();
        group.step(&settings, Event::Tick, at(12));
        assert!(!news.has_changed().unwrap(), "nothing is new");
    }
}
