//! The rules one by one, then stories, then what must hold whatever happens.

use super::super::position::Position;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// A group with virtual time. What is made durable is so at once, unless the disk is slow.
struct Scene {
    state: GroupState,
    settings: Settings,
    now: Moment,
    effects: Vec<Effect>,
    slow_disk: bool,
}

const A: Member = Member(0);
const B: Member = Member(1);
const C: Member = Member(2);

fn term(number: u64) -> Option<Epoch> {
    Some(Epoch::new(Kind::RaftTerm, number))
}

fn key(revision: u64) -> Option<Epoch> {
    Some(Epoch::new(Kind::EtcdKey, revision))
}

fn timeline(number: u64) -> Option<Epoch> {
    Some(Epoch::new(Kind::Timeline, number))
}

fn secs(length: u64) -> Duration {
    Duration::from_secs(length)
}

impl Scene {
    /// Three members, told apart by nothing but what they say.
    fn new() -> Self {
        Self::with(Settings::default())
    }

    /// Who leads is claimed with a quorum behind it.
    fn quorum() -> Self {
        Self::with(Settings {
            durability: Durability::Quorum,
            ..Settings::default()
        })
    }

    fn registry() -> Self {
        Self::with(Settings {
            registry: true,
            ..Settings::default()
        })
    }

    fn with(settings: Settings) -> Self {
        let now = Moment::ZERO.plus(secs(1000));
        Self {
            state: GroupState::new(3, now),
            settings,
            now,
            effects: Vec::new(),
            slow_disk: false,
        }
    }

    fn step(&mut self, event: Event) {
        let effects = self.state.step(&self.settings, event, self.now);
        for effect in effects {
            if let Effect::Persist(number, _) = &effect
                && !self.slow_disk
            {
                let number = *number;
                self.effects.push(effect);
                self.step(Event::Persisted(number));
            } else {
                self.effects.push(effect);
            }
        }
    }

    fn wait(&mut self, length: Duration) {
        self.now = self.now.plus(length);
        self.step(Event::Tick);
    }

    fn observation(&self, member: Member, role: Role, epoch: Option<Epoch>) -> Observation {
        let mut said = Observation::new(member, self.state.generation, Source::HttpProbe, self.now);
        said.role = role;
        said.epoch = epoch;
        said
    }

    /// A member says something of itself; the clock moves on by a millisecond.
    fn says(&mut self, member: Member, role: Role, epoch: Option<Epoch>) {
        let said = self.observation(member, role, epoch);
        self.hear(said);
    }

    fn hear(&mut self, said: Observation) {
        self.step(Event::Observed(said));
        self.now = self.now.plus(Duration::from_millis(1));
    }

    fn says_with_quorum(&mut self, member: Member, role: Role, epoch: Option<Epoch>) {
        let mut said = self.observation(member, role, epoch);
        said.authority = Authority::QuorumClaim;
        self.hear(said);
    }

    fn says_at(&mut self, member: Member, role: Role, epoch: Option<Epoch>, line: &str, position: u64) {
        let mut said = self.observation(member, role, epoch);
        said.position = Some(Position::U64(position));
        said.lineage = (!line.is_empty()).then(|| Lineage::of("", line));
        self.hear(said);
    }

    fn registry_says(&mut self, member: Member, epoch: Option<Epoch>) {
        let mut said = self.observation(member, Role::Leader, epoch);
        said.source = Source::Etcd;
        said.authority = Authority::Registry;
        self.hear(said);
    }

    fn leader(&self) -> Option<Member> {
        let leader = self.state.view().leader_at(self.now);
        leader.map(|leader| leader.member)
    }

    fn incumbent(&self) -> Option<Member> {
        self.state.view().incumbent.map(|leader| leader.member)
    }

    fn phase(&self) -> Phase {
        self.state.phase()
    }

    fn is_stale(&self, member: Member) -> bool {
        self.state.view().members[member.index()].stale_claimant
    }

    fn had(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|effect| wanted(effect)).count()
    }

    fn changes(&self) -> usize {
        self.had(|effect| matches!(effect, Effect::LeaderChanged(_)))
    }

    fn probed(&self, member: Member) -> bool {
        self.effects.contains(&Effect::Probe(member))
    }
}

// The rules.

#[test]
fn e1_only_claims_to_lead_move_the_highest_epoch() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    for role in [Role::Follower, Role::Candidate, Role::Learner, Role::Unknown] {
        scene.says_with_quorum(B, role, term(1 << 40));
    }
    assert_eq!(scene.state.highest(), [Epoch::new(Kind::RaftTerm, 5)]);
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e1_a_lower_claim_is_stale_until_something_newer_is_heard() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.effects.clear();
    scene.says_with_quorum(B, Role::Leader, term(4));
    assert_eq!(scene.leader(), Some(A));
    assert!(scene.is_stale(B) && scene.probed(B));
    let stale = Effect::StaleClaim {
        member: B,
        claimed: term(4),
        highest: term(5),
    };
    assert_eq!(scene.had(|effect| *effect == stale), 1);
    scene.says_with_quorum(B, Role::Leader, term(4));
    assert_eq!(scene.had(|effect| *effect == stale), 1, "an event, not a drum");
    scene.wait(secs(3600));
    assert!(scene.is_stale(B), "silence clears nobody");
    scene.says_with_quorum(B, Role::Follower, term(5));
    assert!(!scene.is_stale(B));
}

#[test]
fn e1_no_epoch_is_below_any() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, term(1));
    scene.says(B, Role::Leader, None);
    assert_eq!(scene.leader(), Some(A));
    assert!(scene.is_stale(B));
}

#[test]
fn e2_a_higher_claim_deposes_the_leader_at_once() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.says_with_quorum(B, Role::Leader, term(6));
    assert_eq!(scene.leader(), Some(B));
    assert!(scene.is_stale(A), "without its own confession");
    assert!(scene.probed(A));
}

#[test]
fn e2_the_deposed_leader_gets_nothing_even_if_nobody_follows_it_yet() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.slow_disk = true;
    scene.says_with_quorum(B, Role::Leader, term(6));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::NoLeader));
    assert!(scene.is_stale(A) && !scene.is_stale(B));
}

#[test]
fn e3_two_claims_of_one_epoch_are_a_conflict_and_the_incumbent_is_kept() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.says_with_quorum(B, Role::Leader, term(5));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::Conflict));
    assert_eq!(scene.incumbent(), Some(A), "for routes that prefer availability");
    for _ in 0..10 {
        scene.says_with_quorum(A, Role::Leader, term(5));
        scene.says_with_quorum(B, Role::Leader, term(5));
    }
    assert_eq!(scene.changes(), 1, "no flap");
    scene.says_with_quorum(B, Role::Follower, term(5));
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e3_a_node_number_tells_leaders_of_one_term_apart() {
    let mut scene = Scene::quorum();
    let of = |node| Some(Epoch::with_tie(Kind::RaftTerm, 5, node));
    scene.says_with_quorum(A, Role::Leader, of(1));
    scene.says_with_quorum(B, Role::Leader, of(2));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e3_a_registry_decides_a_tie() {
    let mut scene = Scene::registry();
    scene.registry_says(B, key(9));
    scene.says(A, Role::Leader, timeline(5));
    scene.says(B, Role::Leader, timeline(5));
    assert_eq!(scene.leader(), Some(B));
    assert!(scene.is_stale(A) && !scene.is_stale(B));
}

#[test]
fn e3_two_leaders_without_epochs_are_a_conflict() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, None);
    scene.says(B, Role::Leader, None);
    assert_eq!(scene.phase(), Phase::Conflict);
}

#[test]
fn e4_a_higher_epoch_is_durable_before_it_is_used() {
    let mut scene = Scene::quorum();
    scene.slow_disk = true;
    scene.says_with_quorum(A, Role::Leader, term(5));
    assert_eq!(scene.leader(), None);
    let Some(Effect::Persist(number, durable)) = scene.effects.first().cloned() else {
        panic!("nothing is made durable: {:?}", scene.effects);
    };
    assert_eq!(durable.epochs, [Epoch::new(Kind::RaftTerm, 5)]);
    scene.says_with_quorum(A, Role::Leader, term(5));
    assert_eq!(scene.leader(), None, "still");
    scene.step(Event::Persisted(number));
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e4_an_acknowledgement_of_something_earlier_is_not_one() {
    let mut scene = Scene::quorum();
    scene.slow_disk = true;
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.says_with_quorum(B, Role::Leader, term(6));
    scene.step(Event::Persisted(1));
    assert_eq!(scene.leader(), None);
    scene.step(Event::Persisted(2));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e4_a_restarted_proxy_refuses_the_old_leader() {
    let mut scene = Scene::quorum();
    scene.step(Event::Restored(Durable {
        epochs: vec![Epoch::new(Kind::RaftTerm, 6)],
        ..Durable::default()
    }));
    scene.says_with_quorum(A, Role::Leader, term(5));
    assert_eq!(scene.leader(), None);
    assert!(scene.is_stale(A));
    // The control: without what was durable it would lead.
    let mut control = Scene::quorum();
    control.says_with_quorum(A, Role::Leader, term(5));
    assert_eq!(control.leader(), Some(A));
}

#[test]
fn e4_a_token_of_another_proxy_deposes_a_leader_that_is_over() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.effects.clear();
    scene.step(Event::TokenEpoch(Epoch::new(Kind::RaftTerm, 6)));
    assert_eq!(scene.leader(), None);
    assert!(scene.probed(A));
    scene.step(Event::TokenEpoch(Epoch::new(Kind::RaftTerm, 3)));
    scene.says_with_quorum(B, Role::Leader, term(6));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e4_a_hint_raises_nothing() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    let mut hint = scene.observation(B, Role::Leader, term(99));
    (hint.source, hint.authority) = (Source::Responses, Authority::Hint);
    scene.hear(hint);
    assert_eq!(scene.state.highest(), [Epoch::new(Kind::RaftTerm, 5)]);
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e5_a_registry_that_goes_back_fences_until_it_is_accepted() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(50));
    scene.registry_says(B, key(40));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::Fenced));
    let regression = Regression::Epoch {
        highest: Epoch::new(Kind::EtcdKey, 50),
        confirmed: Epoch::new(Kind::EtcdKey, 40),
    };
    assert_eq!(scene.state.regression(), Some(&regression));
    scene.wait(secs(3600));
    scene.registry_says(B, key(40));
    assert_eq!(scene.phase(), Phase::Fenced, "no time is enough");
    scene.step(Event::AcceptEpoch);
    assert_eq!(scene.leader(), Some(B));
    assert!(scene.effects.contains(&Effect::Accepted(regression)));
    assert!(scene.state.highest().contains(&Epoch::new(Kind::EtcdKey, 40)));
}

#[test]
fn e5_with_availability_before_consistency_it_is_accepted_after_a_grace() {
    let mut scene = Scene::registry();
    scene.settings.acceptance = Acceptance::After(secs(3));
    scene.registry_says(A, key(50));
    scene.registry_says(B, key(40));
    scene.wait(secs(2));
    assert_eq!(scene.phase(), Phase::Fenced);
    assert!(scene.state.wake() <= scene.now.plus(secs(1)));
    scene.wait(secs(1));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e5_the_own_word_of_whom_the_registry_names_counts_too() {
    // Finding 4: the key goes to the old leader, whose timeline is the one before.
    let mut scene = Scene::registry();
    scene.registry_says(A, key(10));
    scene.says(A, Role::Leader, timeline(1));
    scene.registry_says(C, key(20));
    scene.says(C, Role::Leader, timeline(2));
    assert_eq!(scene.leader(), Some(C));
    scene.registry_says(A, key(30));
    scene.says(A, Role::Leader, timeline(1));
    assert_eq!(scene.phase(), Phase::Fenced);
}

#[test]
fn e5_what_the_new_holder_said_before_it_held_is_no_regression() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(10));
    scene.says(A, Role::Leader, timeline(1));
    scene.registry_says(C, key(20));
    scene.says(C, Role::Leader, timeline(2));
    scene.says(A, Role::Leader, timeline(1));
    assert!(scene.is_stale(A));
    scene.registry_says(A, key(30));
    assert_ne!(scene.phase(), Phase::Fenced, "it may have promoted since");
    scene.says(A, Role::Leader, timeline(3));
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e5_without_a_registry_a_lower_claim_is_only_stale() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, timeline(2));
    scene.says(B, Role::Leader, timeline(1));
    assert_eq!(scene.phase(), Phase::Steady);
}

#[test]
fn e5_an_operator_may_accept_that_everything_known_is_over() {
    let mut scene = Scene::quorum();
    scene.step(Event::Restored(Durable {
        epochs: vec![Epoch::new(Kind::RaftTerm, 900)],
        ..Durable::default()
    }));
    scene.says_with_quorum(A, Role::Leader, term(3));
    assert_eq!(scene.leader(), None);
    scene.step(Event::AcceptEpoch);
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e5_what_is_accepted_is_durable_first() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(50));
    scene.registry_says(B, key(40));
    scene.slow_disk = true;
    scene.effects.clear();
    scene.step(Event::AcceptEpoch);
    assert_eq!(scene.leader(), None);
    let number = scene.effects.iter().find_map(|effect| match effect {
        Effect::Persist(number, _) => Some(*number),
        _ => None,
    });
    scene.step(Event::Persisted(number.expect("it is made durable")));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e5_another_cluster_behind_the_registry_is_a_regression() {
    let mut scene = Scene::registry();
    scene.settings.cluster_id = Some("one".into());
    scene.registry_says(A, key(10));
    let mut said = scene.observation(A, Role::Leader, timeline(7));
    said.cluster_id = Some("two".into());
    scene.hear(said);
    assert_eq!(scene.phase(), Phase::Fenced);
    scene.step(Event::AcceptEpoch);
    scene.registry_says(A, key(10));
    let mut said = scene.observation(A, Role::Leader, timeline(7));
    said.cluster_id = Some("two".into());
    scene.hear(said);
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e6_a_silent_registry_deposes_nobody_before_its_grace() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(10));
    scene.step(Event::ProviderLost(Source::Etcd));
    scene.wait(secs(9));
    assert_eq!(scene.leader(), Some(A));
    scene.wait(secs(1));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::Isolated));
    assert_eq!(scene.incumbent(), Some(A));
    scene.step(Event::ProviderBack(Source::Etcd));
    scene.registry_says(A, key(10));
    assert_eq!(scene.leader(), Some(A));
}

#[test]
fn e6_a_grace_revives_no_claim_that_had_run_out() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(10));
    scene.wait(secs(6));
    assert_eq!(scene.leader(), None);
    scene.step(Event::ProviderLost(Source::Etcd));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::Isolated));
}

#[test]
fn e7_a_registry_is_believed_before_any_member() {
    let mut scene = Scene::registry();
    scene.says_with_quorum(A, Role::Leader, term(5));
    assert_eq!(scene.leader(), None, "the registry has not spoken");
    scene.registry_says(B, key(1));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn e7_a_quorum_is_believed_before_an_own_word() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    scene.says(B, Role::Leader, timeline(9));
    assert_eq!(scene.leader(), Some(A));
    assert!(scene.is_stale(B));
}

#[test]
fn e7_a_hint_makes_no_leader_and_says_where_to_ask() {
    let mut scene = Scene::new();
    let mut hint = scene.observation(B, Role::Leader, None);
    (hint.source, hint.authority) = (Source::Responses, Authority::Hint);
    scene.hear(hint);
    assert_eq!(scene.leader(), None);
    assert!(scene.probed(B));
    let mut said = scene.observation(A, Role::Follower, None);
    said.leader_hint = Some(C);
    scene.hear(said);
    assert!(scene.probed(C));
}

#[test]
fn e8_a_claim_holds_from_the_sending_of_its_question() {
    let mut scene = Scene::new();
    let mut said = scene.observation(A, Role::Leader, term(1));
    said.ttl = secs(2);
    said.sent_at = scene.now.minus(Duration::from_millis(1500));
    said.received_at = scene.now;
    scene.hear(said);
    assert_eq!(scene.leader(), Some(A));
    scene.wait(Duration::from_millis(499));
    assert_eq!(scene.leader(), None);
}

#[test]
fn e8_a_claim_out_of_a_cache_that_is_too_old_makes_no_leader() {
    let mut scene = Scene::new();
    let mut said = scene.observation(A, Role::Leader, term(1));
    said.age = secs(6);
    scene.hear(said);
    assert_eq!(scene.leader(), None);
}

#[test]
fn f6_a_leader_of_its_own_word_waits_until_the_word_before_has_run_out() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, timeline(1));
    scene.wait(secs(2));
    scene.says(B, Role::Leader, timeline(2));
    assert_eq!(
        scene.leader(),
        None,
        "nobody: the old one is deposed, the new one waits"
    );
    assert_eq!(scene.state.waiting().map(|(member, ..)| member), Some(B));
    assert!(!scene.is_stale(B));
    let until = scene.state.wake();
    assert!(until > scene.now.plus(secs(2)) && until <= scene.now.plus(secs(3)));
    scene.now = until;
    scene.step(Event::Tick);
    scene.says(B, Role::Leader, timeline(2));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn f6_who_has_resigned_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, timeline(1));
    scene.says(A, Role::Follower, timeline(1));
    scene.says(B, Role::Leader, timeline(2));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn f6_a_delay_may_be_given() {
    let mut scene = Scene::new();
    scene.settings.takeover_delay = Some(secs(1));
    scene.says(A, Role::Leader, timeline(1));
    scene.says(B, Role::Leader, timeline(2));
    assert_eq!(scene.leader(), None);
    scene.wait(secs(1));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn f6_neither_a_registry_nor_a_consensus_is_waited_for() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(1));
    scene.registry_says(B, key(2));
    assert_eq!(scene.leader(), Some(B));
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(1));
    scene.says_with_quorum(B, Role::Leader, term(2));
    assert_eq!(scene.leader(), Some(B));
}

// What MongoDB's drivers are tested for (server discovery and monitoring), in our words.

#[test]
fn discovery_vectors() {
    use Role::{Candidate as Cand, Follower as Foll, Leader as Lead};
    type Row = (Member, Role, Option<u64>, Option<Member>);
    let vectors: &[(&str, &[Row])] = &[
        ("discover a leader", &[(A, Lead, Some(1), Some(A))]),
        (
            "followers make none",
            &[(A, Foll, Some(1), None), (B, Foll, Some(1), None)],
        ),
        (
            "a new leader with a greater epoch",
            &[(A, Lead, Some(1), Some(A)), (B, Lead, Some(2), Some(B))],
        ),
        (
            "the old leader does not know yet",
            &[
                (A, Lead, Some(1), Some(A)),
                (B, Lead, Some(2), Some(B)),
                (A, Lead, Some(1), Some(B)),
            ],
        ),
        (
            "a leader with an older epoch is not believed, also alone",
            &[
                (B, Lead, Some(2), Some(B)),
                (B, Foll, Some(2), None),
                (A, Lead, Some(1), None),
            ],
        ),
        (
            "a leader becomes a follower",
            &[(A, Lead, Some(1), Some(A)), (A, Foll, Some(1), None)],
        ),
        (
            "a follower with a greater epoch changes nothing",
            &[(A, Lead, Some(1), Some(A)), (B, Foll, Some(9), Some(A))],
        ),
        (
            "a candidate with a greater epoch changes nothing",
            &[(A, Lead, Some(1), Some(A)), (B, Cand, Some(9), Some(A))],
        ),
        (
            "a leader without an epoch after one with",
            &[(A, Lead, Some(1), Some(A)), (B, Lead, None, Some(A))],
        ),
        (
            "a leader with an epoch after one without",
            &[(A, Lead, None, Some(A)), (B, Lead, Some(1), Some(B))],
        ),
        (
            "equal epochs",
            &[(A, Lead, Some(1), Some(A)), (B, Lead, Some(1), None)],
        ),
        (
            "re-elected in a greater epoch",
            &[
                (A, Lead, Some(1), Some(A)),
                (B, Lead, Some(2), Some(B)),
                (A, Lead, Some(3), Some(A)),
                (B, Lead, Some(2), Some(A)),
            ],
        ),
    ];
    for (name, rows) in vectors {
        let mut scene = Scene::quorum();
        for (n, (member, role, epoch, leader)) in rows.iter().enumerate() {
            scene.says_with_quorum(*member, *role, epoch.and_then(term));
            assert_eq!(scene.leader(), *leader, "{name}, row {n}");
        }
    }
}

// Phases.

#[test]
fn nobody_heard_is_no_leader_at_first_and_isolation_later() {
    let mut scene = Scene::new();
    scene.step(Event::Tick);
    assert_eq!(scene.phase(), Phase::NoLeader);
    scene.wait(secs(5));
    assert_eq!(scene.phase(), Phase::Isolated);
    scene.says(A, Role::Follower, term(1));
    assert_eq!(scene.phase(), Phase::NoLeader);
}

#[test]
fn a_claim_that_runs_out_is_no_leader_although_nobody_said_anything() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, term(1));
    let view = scene.state.view();
    let later = scene.now.plus(secs(20));
    assert!(view.leader_at(scene.now).is_some());
    assert_eq!(view.leader_at(later), None, "a proxy that was stopped asks again");
    assert_eq!(view.phase_at(later), Phase::NoLeader);
}

#[test]
fn a_leader_that_cannot_be_reached_stays_the_leader_and_nobody_else_becomes_it() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(1));
    scene.effects.clear();
    let failed = scene.now;
    scene.step(Event::ConnectFailed(A, failed));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::LeaderUnreachable));
    assert!(scene.probed(A));
    scene.now = scene.now.plus(secs(1));
    scene.registry_says(A, key(1));
    assert_eq!(
        scene.phase(),
        Phase::LeaderUnreachable,
        "the registry reaches it, we do not"
    );
    scene.says(A, Role::Leader, None);
    assert_eq!(scene.leader(), Some(A));
    scene.step(Event::ConnectFailed(A, failed));
    assert_eq!(scene.leader(), Some(A), "that was before");
}

#[test]
fn a_leader_that_refuses_is_none_until_it_claims_again() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, term(1));
    scene.effects.clear();
    scene.step(Event::Refused {
        by: A,
        hint: Some(B),
        sent_at: scene.now,
    });
    assert_eq!(scene.leader(), None);
    assert!(scene.probed(A) && scene.probed(B) && scene.is_stale(A));
    scene.now = scene.now.plus(secs(1));
    scene.says(A, Role::Leader, term(1));
    assert_eq!(scene.leader(), Some(A));
    let earlier = scene.now.minus(secs(1));
    scene.step(Event::Refused {
        by: A,
        hint: None,
        sent_at: earlier,
    });
    assert_eq!(scene.leader(), Some(A), "a refusal that was overtaken");
}

#[test]
fn whom_the_registry_names_must_be_ready_too() {
    let mut scene = Scene::registry();
    scene.registry_says(B, key(2));
    assert_eq!(scene.leader(), Some(B));
    scene.says(B, Role::Follower, timeline(1));
    assert_eq!(
        (scene.leader(), scene.phase()),
        (None, Phase::NoLeader),
        "it promotes"
    );
    scene.says(B, Role::Leader, timeline(2));
    assert_eq!(scene.leader(), Some(B));
}

#[test]
fn a_registry_that_repeats_itself_does_not_outdate_what_its_choice_says() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(1));
    scene.says(A, Role::Leader, timeline(2));
    scene.registry_says(B, key(2));
    scene.says(B, Role::Follower, timeline(2));
    scene.registry_says(B, key(2));
    assert_eq!(scene.leader(), None, "it still promotes");
    let regressed = scene.observation(B, Role::Leader, timeline(1));
    scene.now = scene.now.plus(Duration::from_millis(5));
    scene.registry_says(B, key(2));
    scene.hear(regressed);
    assert_eq!(
        scene.phase(),
        Phase::Fenced,
        "it was asked after it was named first"
    );
}

#[test]
fn a_key_that_nobody_holds_is_no_leader() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(1));
    scene.step(Event::Vacant(Source::Etcd, scene.now));
    assert_eq!((scene.leader(), scene.phase()), (None, Phase::NoLeader));
}

#[test]
fn answers_of_a_registry_that_overtake_each_other_make_no_conflict() {
    let mut scene = Scene::registry();
    let mut early = scene.observation(A, Role::Leader, key(1));
    (early.source, early.authority) = (Source::Etcd, Authority::Registry);
    scene.now = scene.now.plus(Duration::from_millis(5));
    scene.registry_says(B, key(2));
    scene.hear(early.clone());
    assert_eq!((scene.leader(), scene.phase()), (Some(B), Phase::Steady));
    scene.step(Event::Vacant(Source::Etcd, scene.now));
    scene.hear(early);
    assert_eq!(scene.leader(), None);
}

#[test]
fn a_key_that_was_stolen_is_a_new_epoch() {
    let mut scene = Scene::registry();
    scene.registry_says(C, key(20));
    scene.registry_says(A, key(30));
    assert_eq!(scene.leader(), Some(A));
    let change = scene.state.history().last().cloned().expect("a change");
    assert_eq!((change.from, change.cause), (Some(C), Cause::HigherEpoch));
}

#[test]
fn a_member_of_another_cluster_is_left_out_with_an_alarm() {
    let mut scene = Scene::quorum();
    let of = |scene: &Scene, member, role, id: &str| {
        let mut said = scene.observation(member, role, term(5));
        said.authority = Authority::QuorumClaim;
        said.cluster_id = Some(id.into());
        said
    };
    scene.hear(of(&scene, A, Role::Leader, "one"));
    scene.hear(of(&scene, B, Role::Leader, "two"));
    scene.hear(of(&scene, B, Role::Leader, "two"));
    assert_eq!(scene.leader(), Some(A), "not even a conflict");
    assert!(scene.state.view().members[1].foreign);
    assert_eq!(scene.had(|effect| matches!(effect, Effect::Foreign { .. })), 1);
    scene.hear(of(&scene, B, Role::Follower, "one"));
    assert!(!scene.state.view().members[1].foreign);
}

#[test]
fn a_stray_endpoint_that_answers_first_does_not_name_the_cluster() {
    let mut scene = Scene::quorum();
    let mut stray = scene.observation(B, Role::Follower, None);
    stray.cluster_id = Some("other".into());
    scene.hear(stray);
    let mut claim = scene.observation(A, Role::Leader, term(1));
    claim.cluster_id = Some("one".into());
    scene.hear(claim);
    assert_eq!(scene.leader(), Some(A));
}

// Stories.

#[test]
fn an_answer_that_was_queued_in_a_stopped_leader_changes_nothing() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(5));
    let mut queued = scene.observation(A, Role::Leader, term(5));
    queued.authority = Authority::QuorumClaim;
    scene.now = scene.now.plus(secs(8));
    scene.says_with_quorum(B, Role::Leader, term(6));
    queued.received_at = scene.now;
    scene.hear(queued);
    assert_eq!(scene.leader(), Some(B));
    assert!(scene.is_stale(A));
}

#[test]
fn replies_that_overtake_each_other_do_not_turn_time_back() {
    let mut scene = Scene::quorum();
    let mut early = scene.observation(A, Role::Leader, term(5));
    early.authority = Authority::QuorumClaim;
    scene.now = scene.now.plus(Duration::from_millis(10));
    scene.says_with_quorum(A, Role::Follower, term(6));
    scene.hear(early);
    assert_eq!(scene.leader(), None);
}

#[test]
fn a_flapping_leader_is_followed_ever_more_slowly_and_found_soon_after_it_stops() {
    let mut scene = Scene::new();
    scene.settings.takeover_delay = Some(Duration::ZERO);
    let mut number = 0;
    for turn in 0..30 {
        let (leads, follows) = if turn % 2 == 0 { (A, B) } else { (B, A) };
        number += 1;
        for _ in 0..4 {
            scene.says(follows, Role::Follower, term(number));
            scene.says(leads, Role::Leader, term(number));
            scene.wait(Duration::from_millis(500));
        }
    }
    assert!(scene.changes() < 15, "{} changes", scene.changes());
    assert!(scene.state.history().count() <= HISTORY);
    let (mut waited, step) = (Duration::ZERO, Duration::from_millis(500));
    while scene.leader() != Some(A) {
        scene.says(B, Role::Follower, term(number + 1));
        scene.says(A, Role::Leader, term(number + 1));
        scene.wait(step);
        waited += step;
        assert!(waited < secs(5), "not found again");
    }
}

#[test]
fn memory_is_bounded_whatever_is_said() {
    let mut scene = Scene::new();
    scene.settings.takeover_delay = Some(Duration::ZERO);
    for n in 0..2000u64 {
        let member = Member((n % 3) as u16);
        scene.says_at(member, Role::Leader, term(n), &n.to_string(), n);
        scene.wait(secs(30));
        scene.effects.clear();
    }
    assert!(scene.state.history().count() <= HISTORY);
    assert!(scene.state.forks().known().len() <= Forks::MOST);
    assert_eq!(scene.state.highest().len(), 1);
    assert!(scene.state.said(A).len() <= Source::COUNT);
}

#[test]
fn without_epochs_the_proxy_counts_and_does_not_flap() {
    let mut scene = Scene::new();
    scene.says(A, Role::Leader, None);
    let first = scene.state.view().leader.expect("A leads").epoch;
    assert_eq!(first, Epoch::new(Kind::Proxy, 1));
    for _ in 0..5 {
        scene.says(A, Role::Leader, None);
    }
    scene.says(A, Role::Follower, None);
    scene.says(B, Role::Leader, None);
    let second = scene.state.view().leader.expect("B leads");
    assert_eq!((second.member, second.epoch), (B, Epoch::new(Kind::Proxy, 2)));
}

#[test]
fn what_a_lost_history_had_beyond_the_fork_is_lost() {
    // Scenario 11: a replica that lagged is promoted.
    let mut scene = Scene::new();
    scene.settings.takeover_delay = Some(Duration::ZERO);
    scene.says_at(A, Role::Leader, timeline(1), "1", 100);
    scene.says_at(B, Role::Follower, timeline(1), "1", 80);
    scene.says_at(B, Role::Leader, timeline(2), "2", 90);
    assert_eq!(scene.leader(), Some(B));
    let ask = |scene: &Scene, position| {
        let view = scene.state.view();
        view.satisfies(B, Lineage::of("", "1"), &Position::U64(position))
    };
    use super::super::lineage::Answer;
    assert_eq!(ask(&scene, 80), Answer::Covered);
    assert_eq!(ask(&scene, 85), Answer::Unknown, "between what we saw");
    assert_eq!(ask(&scene, 100), Answer::Lost);
    let (old, new) = (Lineage::of("", "1"), Lineage::of("", "2"));
    scene.step(Event::Forks(vec![Fork::exact(old, new, Position::U64(84))]));
    assert_eq!(ask(&scene, 84), Answer::Covered);
    assert_eq!(ask(&scene, 85), Answer::Lost);
}

#[test]
fn where_histories_have_no_names_each_leader_begins_one() {
    let mut scene = Scene::new();
    scene.settings.takeover_delay = Some(Duration::ZERO);
    scene.says_at(A, Role::Leader, term(1), "", 100);
    scene.says_at(B, Role::Follower, None, "", 80);
    let first = scene.state.view().lineage.expect("one is written");
    scene.says_at(B, Role::Leader, term(2), "", 82);
    let view = scene.state.view();
    assert_ne!(view.lineage, Some(first));
    use super::super::lineage::Answer;
    assert_eq!(view.satisfies(B, first, &Position::U64(80)), Answer::Covered);
    assert_eq!(view.satisfies(B, first, &Position::U64(83)), Answer::Lost);
    scene.says_at(A, Role::Follower, None, "", 90);
    let view = scene.state.view();
    let second = view.lineage.expect("another");
    assert_eq!(view.satisfies(A, second, &Position::U64(90)), Answer::Covered);
}

#[test]
fn where_writes_are_on_a_quorum_there_is_one_history() {
    let mut scene = Scene::quorum();
    scene.says_at(A, Role::Leader, term(1), "", 100);
    let first = scene.state.view().lineage;
    scene.says_at(A, Role::Follower, term(2), "", 100);
    scene.says_at(B, Role::Leader, term(2), "", 100);
    assert_eq!(scene.state.view().lineage, first);
    assert!(scene.state.forks().known().is_empty());
}

#[test]
fn accepting_a_regression_loses_the_history_that_is_abandoned() {
    // Scenario 9: timeline 2 -> 1.
    let mut scene = Scene::registry();
    scene.registry_says(A, key(10));
    scene.says_at(A, Role::Leader, timeline(1), "1", 100);
    scene.says_at(C, Role::Follower, timeline(1), "1", 100);
    scene.registry_says(C, key(20));
    scene.says_at(C, Role::Leader, timeline(2), "2", 101);
    let (old, new) = (Lineage::of("", "1"), Lineage::of("", "2"));
    scene.step(Event::Forks(vec![Fork::exact(old, new, Position::U64(100))]));
    scene.says_at(C, Role::Leader, timeline(2), "2", 150);
    scene.registry_says(A, key(30));
    scene.says_at(A, Role::Leader, timeline(1), "1", 130);
    assert_eq!(scene.phase(), Phase::Fenced);
    scene.step(Event::AcceptEpoch);
    scene.registry_says(A, key(30));
    scene.says_at(A, Role::Leader, timeline(1), "1", 160);
    assert_eq!(scene.leader(), Some(A));
    use super::super::lineage::Answer;
    let view = scene.state.view();
    assert_eq!(view.satisfies(A, new, &Position::U64(140)), Answer::Lost);
    assert_eq!(view.satisfies(A, old, &Position::U64(120)), Answer::Covered);
}

#[test]
fn a_member_that_was_wiped_stands_where_it_says() {
    // Scenario 12.
    let mut scene = Scene::quorum();
    scene.says_at(A, Role::Leader, term(1), "", 100);
    scene.says_at(B, Role::Follower, term(1), "", 100);
    scene.wait(secs(1));
    scene.says_at(B, Role::Follower, term(1), "", 0);
    assert!(scene.effects.contains(&Effect::PositionWentBack(B)));
    let position = scene.state.view().members[1].position.clone();
    assert_eq!(position.map(|(_, position)| position), Some(Position::U64(0)));
}

#[test]
fn answers_that_overtake_each_other_do_not_lower_a_position() {
    let mut scene = Scene::quorum();
    let of = |scene: &Scene, position, received: u64| {
        let mut said = scene.observation(B, Role::Follower, term(1));
        said.position = Some(Position::U64(position));
        said.received_at = scene.now.plus(Duration::from_millis(received));
        said
    };
    let slow = of(&scene, 20, 100);
    scene.hear(slow);
    let fast = of(&scene, 10, 1);
    scene.hear(fast);
    let position = scene.state.view().members[1].position.clone();
    assert_eq!(position.map(|(_, position)| position), Some(Position::U64(20)));
    assert_eq!(
        scene.had(|effect| matches!(effect, Effect::PositionWentBack(_))),
        0
    );
}

#[test]
fn how_old_a_replica_can_be_is_proven_by_questions_to_the_leader() {
    let mut scene = Scene::quorum();
    scene.says_at(A, Role::Leader, term(1), "", 10);
    let asked = scene.now;
    scene.says_at(A, Role::Leader, term(1), "", 20);
    scene.says_at(B, Role::Follower, term(1), "", 20);
    scene.says_at(A, Role::Leader, term(1), "", 30);
    let view = scene.state.view();
    assert_eq!(view.members[1].proven, Some(asked));
    assert_eq!(view.members[2].proven, None);
}

#[test]
fn a_list_of_members_that_changes_keeps_what_is_known_of_those_who_stay() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(B, Role::Leader, term(4));
    let old = scene.observation(A, Role::Leader, term(9));
    scene.step(Event::Members {
        generation: 7,
        before: vec![Some(B), None],
    });
    assert_eq!(scene.leader(), Some(A), "its place is another one");
    assert_eq!(scene.state.view().generation, 7);
    scene.hear(old);
    assert_eq!(scene.leader(), Some(A), "an answer about a place of the old list");
    assert_eq!(scene.state.highest(), [Epoch::new(Kind::RaftTerm, 4)]);
    scene.step(Event::Members {
        generation: 8,
        before: vec![None],
    });
    assert_eq!(scene.leader(), None);
    assert_eq!(scene.state.history().last().map(|change| change.to), Some(GONE));
}

#[test]
fn the_words_of_all_sources_stand_side_by_side() {
    let mut scene = Scene::registry();
    scene.registry_says(A, key(3));
    scene.says(A, Role::Leader, timeline(1));
    scene.says(A, Role::Leader, timeline(1));
    let sources: Vec<Source> = scene.state.said(A).iter().map(|said| said.source).collect();
    assert_eq!(sources, [Source::Etcd, Source::HttpProbe]);
}

#[test]
fn a_change_says_how_long_nobody_could_be_written_to() {
    let mut scene = Scene::quorum();
    scene.says_with_quorum(A, Role::Leader, term(1));
    scene.says_with_quorum(A, Role::Follower, term(1));
    scene.wait(secs(3));
    scene.says_with_quorum(B, Role::Leader, term(2));
    let gap = scene.state.history().last().map(|change| change.gap);
    assert_eq!(gap, Some(Duration::from_millis(3001)));
}

// Whatever happens.

fn any_event() -> impl Strategy<Value = (u8, Member, Role, u64, u64, Authority)> {
    let role = prop_oneof![
        4 => Just(Role::Leader),
        2 => Just(Role::Follower),
        1 => Just(Role::Candidate),
    ];
    let authority = prop_oneof![
        Just(Authority::Hint),
        Just(Authority::SelfClaim),
        Just(Authority::QuorumClaim),
        Just(Authority::Registry),
    ];
    (
        0u8..12,
        (0u16..3).prop_map(Member),
        role,
        0u64..6,
        0u64..4000,
        authority,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_writes_are_stamped_with_ever_higher_durable_epochs(
        registry: bool, events in vec(any_event(), 1..80),
    ) {
        let mut scene = if registry { Scene::registry() } else { Scene::quorum() };
        scene.slow_disk = true;
        let mut stamped: Vec<Epoch> = Vec::new();
        let mut durable: Vec<Epoch> = Vec::new();
        let mut on_disk: Option<(u64, Durable)> = None;
        for (what, member, role, number, millis, authority) in events {
            let before = scene.effects.len();
            match what {
                0 => scene.wait(Duration::from_millis(millis)),
                1 => scene.step(Event::ConnectFailed(member, scene.now)),
                2 => scene.step(Event::Refused { by: member, hint: None, sent_at: scene.now.minus(Duration::from_millis(millis)) }),
                3 => scene.step(Event::TokenEpoch(Epoch::new(Kind::RaftTerm, number))),
                4 => scene.step(Event::ProviderLost(Source::Etcd)),
                5 => scene.step(Event::ProviderBack(Source::Etcd)),
                6 | 7 => if let Some((persisted, content)) = on_disk.take() {
                    durable = content.epochs;
                    scene.step(Event::Persisted(persisted));
                },
                _ => {
                    let epoch = if number == 0 { None } else { term(number) };
                    let mut said = scene.observation(member, role, epoch);
                    said.authority = authority;
                    if authority == Authority::Registry {
                        said.source = Source::Etcd;
                    } else if authority == Authority::Hint {
                        said.source = Source::Responses;
                    }
                    said.sent_at = scene.now.minus(Duration::from_millis(millis % 1000));
                    scene.hear(said);
                }
            }
            for effect in &scene.effects[before..] {
                if let Effect::Persist(number, content) = effect {
                    on_disk = Some((*number, content.clone()));
                }
            }
            let view = scene.state.view();
            if let Some(leader) = view.leader_at(scene.now) {
                let known = durable.iter().find(|epoch| epoch.kind == leader.epoch.kind);
                prop_assert!(known >= Some(&leader.epoch), "{} is not durable", leader.epoch);
                let last = stamped.iter_mut().find(|epoch| epoch.kind == leader.epoch.kind);
                match last {
                    Some(last) => {
                        prop_assert!(leader.epoch >= *last, "{} after {last}", leader.epoch);
                        *last = leader.epoch;
                    }
                    None => stamped.push(leader.epoch),
                }
                prop_assert!(!view.members[leader.member.index()].foreign);
            }
            if view.phase != Phase::Steady {
                prop_assert_eq!(view.leader, None);
            }
        }
    }

    #[test]
    fn the_order_of_what_was_said_at_different_times_does_not_matter(
        said in vec(((0u16..3).prop_map(Member), any::<bool>(), 1u64..5), 1..5), seed: u64,
    ) {
        let end = |order: &[usize]| {
            let mut scene = Scene::quorum();
            let start = scene.now;
            scene.now = start.plus(Duration::from_millis(100));
            for &n in order {
                let (member, leads, number) = said[n];
                let role = if leads { Role::Leader } else { Role::Follower };
                let mut said = scene.observation(member, role, term(number));
                said.authority = Authority::QuorumClaim;
                said.sent_at = start.plus(Duration::from_millis(n as u64));
                scene.step(Event::Observed(said));
            }
            (scene.leader(), scene.phase(), scene.state.highest().to_vec())
        };
        let straight: Vec<usize> = (0..said.len()).collect();
        let mut mixed = straight.clone();
        let mut dice = crate::dice::Dice::new(seed);
        for n in (1..mixed.len()).rev() {
            mixed.swap(n, dice.below(n as u32 + 1) as usize);
        }
        prop_assert_eq!(end(&straight), end(&mixed));
    }
}
