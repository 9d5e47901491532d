//! Table 2.6 cell by cell, then appendix C step by step.

use super::super::epoch::{Epoch, Kind};
use super::super::lineage::Fork;
use super::super::observation::{Lag, Role};
use super::super::view::MemberView;
use super::*;
use proptest::prelude::*;

const A: Member = Member(0);
const B: Member = Member(1);
const C: Member = Member(2);

fn now() -> Moment {
    Moment::ZERO.plus(Duration::from_secs(1000))
}

fn line(name: &str) -> Lineage {
    Lineage::of("", name)
}

fn set(members: &[Member]) -> Set {
    members.iter().copied().collect()
}

/// A leads at 100; B is at 90, C at 80. A was asked 1 s ago, and was at 85; everything older is in B.
fn view(phase: Phase) -> View {
    let member = |role, position, proven: Option<u64>| MemberView {
        role,
        position: Some((line("1"), Position::U64(position))),
        proven: proven.map(|ago| now().minus(Duration::from_secs(ago))),
        ..MemberView::default()
    };
    let leader = Leader {
        member: A,
        epoch: Epoch::new(Kind::RaftTerm, 5),
        since: Moment::ZERO,
        usable_until: now().plus(Duration::from_secs(5)),
    };
    View {
        phase,
        leader: (phase == Phase::Steady).then_some(leader),
        incumbent: Some(leader),
        lineage: Some(line("1")),
        members: Box::new([
            member(Role::Leader, 100, Some(0)),
            member(Role::Follower, 90, Some(1)),
            member(Role::Follower, 80, None),
        ]),
        ..View::default()
    }
}

fn policy(level: Level, choice: Choice) -> Policy {
    Policy {
        level,
        choice,
        ..Policy::default()
    }
}

/// A read of `policy` that needs `position` of the history that is written.
fn place_with(
    view: &View,
    policy: &Policy,
    position: Option<u64>,
    tried: &[Member],
    age: Duration,
) -> Verdict {
    let position = position.map(Position::U64);
    let need = position
        .as_ref()
        .map_or(Need::Nothing, |position| Need::Position(line("1"), position));
    let read = Read {
        policy,
        need,
        tried: &set(tried),
        since: now().minus(age),
        leader_has_room: true,
    };
    place_read(view, &read, |_| true, now())
}

fn place(view: &View, policy: &Policy, position: Option<u64>) -> Verdict {
    place_with(view, policy, position, &[], Duration::from_secs(60))
}

fn session(view: &View, choice: Choice, position: u64) -> Verdict {
    place(view, &policy(Level::ReadYourWrites, choice), Some(position))
}

fn bounded(view: &View, choice: Choice, age: u64) -> Verdict {
    let level = Level::BoundedStaleness(Bound::Age(Duration::from_secs(age)));
    place(view, &policy(level, choice), None)
}

fn leads(view: &View) -> Leader {
    view.incumbent.expect("there is one")
}

fn degraded(candidates: &[Member], wanted: Level, got: Level, staleness: Option<u64>) -> Verdict {
    Verdict::Degraded(Degraded {
        candidates: set(candidates),
        wanted,
        got,
        staleness: staleness.map(Duration::from_secs),
    })
}

const WITHOUT_LEADER: [Phase; 2] = [Phase::NoLeader, Phase::LeaderUnreachable];
const NEEDS_LEADER: [Level; 2] = [Level::Leader, Level::Strong];

// Row "Steady".

#[test]
fn steady_is_normal_for_both() {
    let view = view(Phase::Steady);
    let leader = leads(&view);
    for choice in [Choice::Cp, Choice::Ap] {
        assert_eq!(place_write(&view, choice, now()), Write::Leader(leader));
        for level in NEEDS_LEADER {
            assert_eq!(
                place(&view, &policy(level, choice), None),
                Verdict::Leader(leader)
            );
        }
        assert_eq!(session(&view, choice, 85), Verdict::Serve(set(&[B])));
        assert_eq!(bounded(&view, choice, 2), Verdict::Serve(set(&[B])));
        let eventual = place(&view, &policy(Level::Eventual, choice), None);
        assert_eq!(eventual, Verdict::Serve(set(&[B, C])));
    }
}

// Row "NoLeader / LeaderUnreachable".

#[test]
fn no_leader_cp_holds_writes_and_reads_of_the_leader() {
    for phase in WITHOUT_LEADER {
        let view = view(phase);
        assert_eq!(
            place_write(&view, Choice::Cp, now()),
            Write::Hold(Reason::NoLeader)
        );
        for level in NEEDS_LEADER {
            let verdict = place(&view, &policy(level, Choice::Cp), None);
            assert_eq!(verdict, Verdict::Hold(Reason::NoLeader));
        }
        let verdict = session(&view, Choice::Cp, 95);
        assert_eq!(
            verdict,
            Verdict::Serve(set(&[A])),
            "whoever has it, leader or not"
        );
        let verdict = session(&view, Choice::Cp, 101);
        assert_eq!(verdict, Verdict::Hold(Reason::NoLeader));
    }
}

#[test]
fn no_leader_cp_goes_on_with_reads_that_replicas_can_serve() {
    for phase in WITHOUT_LEADER {
        let view = view(phase);
        assert_eq!(session(&view, Choice::Cp, 90), Verdict::Serve(set(&[A, B])));
        let monotonic = place(&view, &policy(Level::Monotonic, Choice::Cp), Some(90));
        assert_eq!(monotonic, Verdict::Serve(set(&[A, B])));
        assert_eq!(bounded(&view, Choice::Cp, 2), Verdict::Serve(set(&[A, B])));
        let eventual = place(&view, &policy(Level::Eventual, Choice::Cp), None);
        assert_eq!(eventual, Verdict::Serve(set(&[A, B, C])));
    }
}

#[test]
fn no_leader_ap_answers_reads_from_the_best_there_is_and_says_so() {
    for phase in WITHOUT_LEADER {
        let view = view(phase);
        for level in NEEDS_LEADER {
            let verdict = place(&view, &policy(level, Choice::Ap), None);
            assert_eq!(verdict, degraded(&[A], level, Level::Eventual, Some(0)));
        }
        let verdict = session(&view, Choice::Ap, 101);
        assert_eq!(
            verdict,
            degraded(&[A], Level::ReadYourWrites, Level::Eventual, Some(0))
        );
    }
}

#[test]
fn no_leader_ap_holds_writes_too() {
    for phase in WITHOUT_LEADER {
        assert_eq!(
            place_write(&view(phase), Choice::Ap, now()),
            Write::Hold(Reason::NoLeader)
        );
    }
}

// Row "Conflict".

#[test]
fn conflict_cp_refuses_what_is_above_monotonic() {
    let view = view(Phase::Conflict);
    let refused = Verdict::Refuse(Reason::LeaderConflict);
    assert_eq!(
        place_write(&view, Choice::Cp, now()),
        Write::Refuse(Reason::LeaderConflict)
    );
    for level in NEEDS_LEADER {
        assert_eq!(place(&view, &policy(level, Choice::Cp), None), refused);
    }
    assert_eq!(session(&view, Choice::Cp, 1), refused);
    assert_eq!(bounded(&view, Choice::Cp, 60), refused);
    let monotonic = place(&view, &policy(Level::Monotonic, Choice::Cp), Some(90));
    assert_eq!(monotonic, Verdict::Serve(set(&[A, B])));
}

#[test]
fn conflict_ap_stays_with_the_incumbent() {
    let view = view(Phase::Conflict);
    assert_eq!(place_write(&view, Choice::Ap, now()), Write::Leader(leads(&view)));
    let verdict = place(&view, &policy(Level::Leader, Choice::Ap), None);
    assert_eq!(verdict, degraded(&[A], Level::Leader, Level::Eventual, Some(0)));
    let later = now().plus(Duration::from_secs(6));
    let refused = Write::Refuse(Reason::LeaderConflict);
    assert_eq!(
        place_write(&view, Choice::Ap, later),
        refused,
        "not beyond its claim"
    );
}

// Row "Fenced".

#[test]
fn fenced_cp_refuses_with_the_regression() {
    let view = view(Phase::Fenced);
    assert_eq!(
        place_write(&view, Choice::Cp, now()),
        Write::Refuse(Reason::EpochRegression)
    );
    for level in NEEDS_LEADER {
        let verdict = place(&view, &policy(level, Choice::Cp), None);
        assert_eq!(verdict, Verdict::Refuse(Reason::EpochRegression));
    }
    assert_eq!(
        session(&view, Choice::Cp, 1),
        Verdict::Refuse(Reason::EpochRegression)
    );
}

#[test]
fn fenced_ap_reads_labelled_and_writes_nothing_before_the_grace_is_over() {
    let view = view(Phase::Fenced);
    assert_eq!(
        place_write(&view, Choice::Ap, now()),
        Write::Refuse(Reason::EpochRegression)
    );
    let verdict = session(&view, Choice::Ap, 1);
    assert_eq!(
        verdict,
        degraded(&[A], Level::ReadYourWrites, Level::Eventual, Some(0))
    );
}

// Row "Isolated".

#[test]
fn isolated_cp_refuses_what_needs_a_leader() {
    let view = view(Phase::Isolated);
    assert_eq!(
        place_write(&view, Choice::Cp, now()),
        Write::Refuse(Reason::Isolated)
    );
    for level in NEEDS_LEADER {
        let verdict = place(&view, &policy(level, Choice::Cp), None);
        assert_eq!(verdict, Verdict::Refuse(Reason::Isolated));
    }
    assert_eq!(session(&view, Choice::Cp, 101), Verdict::Refuse(Reason::Isolated));
    assert_eq!(session(&view, Choice::Cp, 90), Verdict::Serve(set(&[A, B])));
}

#[test]
fn isolated_ap_reads_from_the_last_known_leader_labelled() {
    let view = view(Phase::Isolated);
    assert_eq!(
        place_write(&view, Choice::Ap, now()),
        Write::Refuse(Reason::Isolated)
    );
    let verdict = place(&view, &policy(Level::Leader, Choice::Ap), None);
    assert_eq!(verdict, degraded(&[A], Level::Leader, Level::Eventual, Some(0)));
}

// Row "the bound cannot be proven".

#[test]
fn unproven_cp_goes_to_the_leader_else_is_refused() {
    let of = |phase| {
        let mut view = view(phase);
        for member in &mut view.members {
            member.proven = None;
        }
        bounded(&view, Choice::Cp, 60)
    };
    assert_eq!(
        of(Phase::Steady),
        Verdict::Serve(set(&[A])),
        "the leader is not behind itself"
    );
    assert_eq!(of(Phase::NoLeader), Verdict::Refuse(Reason::StalenessUnknown));
}

#[test]
fn unproven_ap_answers_labelled() {
    let mut view = view(Phase::NoLeader);
    for member in &mut view.members {
        member.proven = None;
    }
    let level = Level::BoundedStaleness(Bound::Age(Duration::from_secs(60)));
    let verdict = bounded(&view, Choice::Ap, 60);
    assert_eq!(verdict, degraded(&[A], level, Level::Eventual, None));
}

// Dispatch.

#[test]
fn a_claim_that_ran_out_while_the_request_waited_is_no_leader() {
    let view = view(Phase::Steady);
    let later = now().plus(Duration::from_secs(5));
    assert_eq!(
        place_write(&view, Choice::Cp, later),
        Write::Hold(Reason::NoLeader)
    );
}

// Appendix C.

#[test]
fn a_read_goes_to_who_is_known_to_have_what_it_needs() {
    let view = view(Phase::Steady);
    assert_eq!(session(&view, Choice::Cp, 80), Verdict::Serve(set(&[B, C])));
    assert_eq!(session(&view, Choice::Cp, 81), Verdict::Serve(set(&[B])));
    let none = place(&view, &policy(Level::ReadYourWrites, Choice::Cp), None);
    assert_eq!(
        none,
        Verdict::Serve(set(&[B, C])),
        "a session that has seen nothing"
    );
}

#[test]
fn else_the_most_advanced_is_asked_and_verified_then_the_next_then_the_leader() {
    let view = view(Phase::Steady);
    let policy = Policy {
        verifiable: true,
        read_from: ReadFrom::Replica,
        ..policy(Level::ReadYourWrites, Choice::Cp)
    };
    let ask = |tried: &[Member]| place_with(&view, &policy, Some(95), tried, Duration::ZERO);
    assert_eq!(ask(&[]), Verdict::Verify(B));
    assert_eq!(ask(&[B]), Verdict::Verify(C));
    assert_eq!(ask(&[B, C]), Verdict::Leader(leads(&view)));
}

#[test]
fn a_leader_that_is_known_to_have_it_is_not_asked_to_prove_it() {
    let view = view(Phase::Steady);
    let policy = Policy {
        verifiable: true,
        ..policy(Level::ReadYourWrites, Choice::Cp)
    };
    let verdict = place_with(&view, &policy, Some(95), &[], Duration::ZERO);
    assert_eq!(
        verdict,
        Verdict::Verify(B),
        "a replica is preferred as long as it may have it"
    );
}

#[test]
fn else_it_waits_and_then_on_stale_decides() {
    let view = view(Phase::Steady);
    let mut policy = Policy {
        wait: Duration::from_millis(300),
        read_from: ReadFrom::Replica,
        ..policy(Level::ReadYourWrites, Choice::Cp)
    };
    let at =
        |policy: &Policy, millis| place_with(&view, policy, Some(101), &[], Duration::from_millis(millis));
    let until = now().plus(Duration::from_millis(200));
    assert_eq!(at(&policy, 100), Verdict::Wait(until));
    assert_eq!(at(&policy, 300), Verdict::Leader(leads(&view)));
    policy.on_stale = OnStale::Reject;
    assert_eq!(at(&policy, 300), Verdict::Refuse(Reason::Behind));
    policy.on_stale = OnStale::Serve;
    let verdict = at(&policy, 300);
    assert_eq!(
        verdict,
        degraded(&[B], Level::ReadYourWrites, Level::Eventual, Some(1))
    );
}

#[test]
fn a_leader_without_room_is_not_melted_by_reads_of_replicas() {
    let view = view(Phase::Steady);
    let policy = policy(Level::ReadYourWrites, Choice::Cp);
    let position = Position::U64(101);
    let read = Read {
        policy: &policy,
        need: Need::Position(line("1"), &position),
        tried: &Set::new(),
        since: Moment::ZERO,
        leader_has_room: false,
    };
    let verdict = place_read(&view, &read, |_| true, now());
    assert_eq!(verdict, Verdict::Refuse(Reason::Behind));
}

#[test]
fn what_is_lost_is_told() {
    let mut view = view(Phase::Steady);
    view.forks
        .record(Fork::exact(line("0"), line("1"), Position::U64(50)));
    let policy = policy(Level::ReadYourWrites, Choice::Cp);
    let at = |position: u64| {
        let position = Position::U64(position);
        let read = Read {
            policy: &policy,
            need: Need::Position(line("0"), &position),
            tried: &Set::new(),
            since: Moment::ZERO,
            leader_has_room: true,
        };
        place_read(&view, &read, |_| true, now())
    };
    assert_eq!(at(50), Verdict::Serve(set(&[B, C])));
    assert_eq!(at(51), Verdict::Lost(leads(&view)));
}

#[test]
fn where_nobody_knows_the_fork_the_leader_answers_labelled() {
    let view = view(Phase::Steady);
    let policy = policy(Level::ReadYourWrites, Choice::Cp);
    let position = Position::U64(10);
    let read = Read {
        policy: &policy,
        need: Need::Position(line("elsewhere"), &position),
        tried: &Set::new(),
        since: Moment::ZERO,
        leader_has_room: true,
    };
    let verdict = place_read(&view, &read, |_| true, now());
    assert_eq!(
        verdict,
        degraded(&[A], Level::ReadYourWrites, Level::Leader, Some(0))
    );
}

#[test]
fn who_is_mistaken_about_leading_serves_nothing_above_eventual() {
    let mut view = view(Phase::Steady);
    view.members[1].stale_claimant = true;
    assert_eq!(session(&view, Choice::Cp, 80), Verdict::Serve(set(&[C])));
    assert_eq!(bounded(&view, Choice::Cp, 2), Verdict::Serve(set(&[A])));
    view.members[2].stale_claimant = true;
    view.members[0].stale_claimant = true;
    let eventual = place(&view, &policy(Level::Eventual, Choice::Cp), None);
    assert_eq!(eventual, Verdict::Serve(set(&[B, C])), "if nobody else is left");
}

#[test]
fn who_belongs_to_another_cluster_serves_nothing_at_all() {
    let mut view = view(Phase::Steady);
    view.members[1].foreign = true;
    let eventual = place(&view, &policy(Level::Eventual, Choice::Cp), None);
    assert_eq!(eventual, Verdict::Serve(set(&[C])));
}

#[test]
fn a_strong_read_by_barrier_needs_what_the_leader_confirmed() {
    let view = view(Phase::Steady);
    let policy = Policy {
        strong: Strong::Barrier,
        ..policy(Level::Strong, Choice::Cp)
    };
    assert_eq!(place(&view, &policy, None), Verdict::Barrier(leads(&view)));
    assert_eq!(place(&view, &policy, Some(90)), Verdict::Serve(set(&[B])));
    let alone = place_with(&self::view(Phase::NoLeader), &policy, None, &[], Duration::ZERO);
    assert_eq!(alone, Verdict::Hold(Reason::NoLeader));
}

#[test]
fn a_strong_read_that_the_upstream_answers_needs_no_leader() {
    let policy = Policy {
        strong: Strong::Native,
        ..policy(Level::Strong, Choice::Cp)
    };
    let verdict = place(&view(Phase::NoLeader), &policy, None);
    assert_eq!(verdict, Verdict::Serve(set(&[A, B, C])));
    let verdict = place(&view(Phase::Conflict), &policy, None);
    assert_eq!(verdict, Verdict::Refuse(Reason::LeaderConflict));
}

#[test]
fn routes_prefer_whom_they_say() {
    let view = view(Phase::Steady);
    let of = |read_from| {
        let policy = Policy {
            read_from,
            ..policy(Level::ReadYourWrites, Choice::Cp)
        };
        place(&view, &policy, Some(90))
    };
    assert_eq!(of(ReadFrom::ReplicaPreferred), Verdict::Serve(set(&[B])));
    assert_eq!(of(ReadFrom::Replica), Verdict::Serve(set(&[B])));
    assert_eq!(of(ReadFrom::LeaderPreferred), Verdict::Serve(set(&[A])));
    assert_eq!(of(ReadFrom::Any), Verdict::Serve(set(&[A, B])));
}

#[test]
fn a_bound_may_be_a_distance() {
    let view = view(Phase::Steady);
    let of = |most| {
        let level = Level::BoundedStaleness(Bound::Distance(most));
        place(&view, &policy(level, Choice::Cp), None)
    };
    assert_eq!(of(10), Verdict::Serve(set(&[B])));
    assert_eq!(of(20), Verdict::Serve(set(&[B, C])));
    assert_eq!(of(9), Verdict::Serve(set(&[A])));
}

#[test]
fn where_there_are_no_positions_the_own_word_of_members_counts() {
    let mut view = view(Phase::Steady);
    for member in &mut view.members {
        (member.position, member.proven) = (None, None);
    }
    view.members[1].lag = Some((
        Lag::Behind(Duration::from_secs(1)),
        now().minus(Duration::from_secs(1)),
    ));
    assert_eq!(bounded(&view, Choice::Cp, 2), Verdict::Serve(set(&[B])));
    assert_eq!(bounded(&view, Choice::Cp, 1), Verdict::Serve(set(&[A])));
    view.members[0].lag = Some((Lag::LastWrite(50_000), now()));
    view.members[1].lag = Some((Lag::LastWrite(47_000), now()));
    assert_eq!(bounded(&view, Choice::Cp, 3), Verdict::Serve(set(&[B])));
    assert_eq!(bounded(&view, Choice::Cp, 2), Verdict::Serve(set(&[A])));
}

#[test]
fn clients_may_strengthen_and_not_weaken() {
    let of = |secs| Level::BoundedStaleness(Bound::Age(Duration::from_secs(secs)));
    assert_eq!(Level::Eventual.strengthened(Level::Strong), Level::Strong);
    assert_eq!(Level::Strong.strengthened(Level::Eventual), Level::Strong);
    assert_eq!(of(5).strengthened(of(2)), of(2));
    assert_eq!(of(2).strengthened(of(5)), of(2));
}

fn any_level() -> impl Strategy<Value = Level> {
    prop_oneof![
        Just(Level::Eventual),
        Just(Level::Monotonic),
        (0u64..4).prop_map(|age| Level::BoundedStaleness(Bound::Age(Duration::from_secs(age)))),
        Just(Level::ReadYourWrites),
        Just(Level::Leader),
        Just(Level::Strong),
    ]
}

proptest! {
    #[test]
    fn nobody_serves_unlabelled_who_does_not_keep_the_promise(
        level in any_level(),
        phase in (0usize..6).prop_map(|n| Phase::ALL[n]),
        ap: bool,
        on_stale in prop_oneof![Just(OnStale::Leader), Just(OnStale::Reject), Just(OnStale::Serve)],
        read_from in prop_oneof![
            Just(ReadFrom::ReplicaPreferred), Just(ReadFrom::Replica), Just(ReadFrom::LeaderPreferred), Just(ReadFrom::Any)
        ],
        verifiable: bool,
        down in proptest::collection::vec(any::<bool>(), 3),
        stale in proptest::collection::vec(any::<bool>(), 3),
        foreign in proptest::collection::vec(proptest::bool::weighted(0.1), 3),
        needed in proptest::option::of(70u64..105),
    ) {
        let mut view = view(phase);
        for (n, member) in view.members.iter_mut().enumerate() {
            (member.stale_claimant, member.foreign) = (stale[n], foreign[n]);
        }
        let choice = if ap { Choice::Ap } else { Choice::Cp };
        let policy = Policy { on_stale, read_from, verifiable, ..policy(level, choice) };
        let position = needed.map(Position::U64);
        let read = Read {
            policy: &policy,
            need: position.as_ref().map_or(Need::Nothing, |position| Need::Position(line("1"), position)),
            tried: &Set::new(),
            since: Moment::ZERO,
            leader_has_room: true,
        };
        let usable = |member: Member| !down[member.index()] && !foreign[member.index()];
        match place_read(&view, &read, |member| !down[member.index()], now()) {
            Verdict::Serve(candidates) => {
                prop_assert!(!candidates.is_empty());
                for member in candidates.iter() {
                    prop_assert!(usable(member));
                    let known = &view.members[member.index()];
                    if level != Level::Eventual {
                        prop_assert!(!known.stale_claimant);
                    }
                    match level {
                        Level::ReadYourWrites | Level::Monotonic => if let Some(needed) = needed {
                            let at = [100, 90, 80][member.index()];
                            prop_assert!(at >= needed);
                        },
                        Level::BoundedStaleness(Bound::Age(most)) => {
                            let age = view.staleness(member, now(), Duration::ZERO).expect("it is known");
                            prop_assert!(age.age() <= most);
                        }
                        Level::BoundedStaleness(Bound::Distance(_)) | Level::Eventual => {}
                        Level::Leader | Level::Strong => prop_assert!(false, "these name the leader"),
                    }
                }
            }
            Verdict::Verify(member) => prop_assert!(usable(member) && verifiable && !stale[member.index()]),
            Verdict::Leader(leader) | Verdict::Barrier(leader) | Verdict::Lost(leader) => {
                prop_assert!(phase == Phase::Steady && usable(leader.member));
            }
            Verdict::Degraded(degraded) => {
                prop_assert!(ap || on_stale == OnStale::Serve);
                prop_assert!(degraded.candidates.iter().all(usable));
            }
            Verdict::Wait(_) | Verdict::Hold(_) | Verdict::Refuse(_) => {}
        }
    }
}
