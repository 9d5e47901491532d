//! The model against the judges: whatever happens to it, it is linearizable, and its followers are not.

use super::*;
use crate::{
    History, Kind, Operation, Outcome,
    history::Notes,
    linear::{self, Verdict},
    loss,
};

fn chance(seed: u64) -> impl FnMut(u32) -> u32 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % u64::from(below)) as u32
    }
}

/// Lets time pass, and collects what was answered.
fn pass(raft: &mut Raft, until: Time, chance: &mut Chance<'_>) -> Vec<(Ticket, Response)> {
    let mut answers = Vec::new();
    while raft.now < until {
        let next = raft.next().min(until);
        answers.extend(raft.tick(next, chance));
    }
    answers
}

/// The leader that most nodes believe in.
fn leader(raft: &Raft) -> Option<usize> {
    (0..raft.nodes.len()).find(|node| {
        let of = |other: usize| {
            raft.status(other)
                .is_some_and(|status| status.leader == Some(*node))
        };
        (0..raft.nodes.len()).filter(|other| of(*other)).count() > raft.nodes.len() / 2
    })
}

fn elected(nodes: usize, chance: &mut Chance<'_>) -> (Raft, usize) {
    let mut raft = Raft::new(nodes, chance);
    pass(&mut raft, 5_000 * MS, chance);
    let leader = leader(&raft).expect("five seconds are enough");
    (raft, leader)
}

fn isolate(raft: &mut Raft, node: usize, chance: &mut Chance<'_>) {
    for other in 0..raft.nodes.len() {
        raft.fault(Fault::Cut(node, other), chance);
        raft.fault(Fault::Cut(other, node), chance);
    }
}

fn write(value: Value) -> Request {
    Request::Write {
        key: "k".to_owned(),
        value,
    }
}

fn read(local: bool) -> Request {
    Request::Read {
        key: "k".to_owned(),
        local,
    }
}

/// Half a minute of six clients and a nemesis.
fn run(seed: u64, local: bool) -> History {
    let dice = &mut chance(seed);
    let nodes = 3 + 2 * dice(2) as usize;
    let mut raft = Raft::new(nodes, dice);
    let mut history = History::new();
    let mut busy: BTreeMap<Ticket, Operation> = BTreeMap::new();
    let mut free: Vec<(u64, Time)> = (0..6).map(|client| (client, 0)).collect();
    let mut seen = BTreeMap::new();
    let mut fresh = 0;
    let mut nemesis = 3_000 * MS;
    while raft.now < 30_000 * MS {
        let now = raft.now;
        if now >= nemesis {
            nemesis = now + Time::from(dice(3_000)) * MS;
            let node = dice(nodes as u32) as usize;
            let leader = leader(&raft).unwrap_or(node);
            match dice(9) {
                0 => raft.fault(Fault::Pause(leader), dice),
                1 => isolate(&mut raft, leader, dice),
                2 => isolate(&mut raft, node, dice),
                3 => raft.fault(Fault::Cut(leader, node), dice),
                4 => raft.fault(Fault::Kill(leader), dice),
                5 => raft.fault(Fault::Campaign(node), dice),
                _ => {
                    raft.fault(Fault::Heal, dice);
                    for node in 0..nodes {
                        raft.fault(Fault::Resume(node), dice);
                        raft.fault(Fault::Start(node), dice);
                    }
                }
            }
        }
        let ready = free.iter().position(|(_, at)| *at <= now);
        if let Some(at) = ready {
            let (session, _) = free.swap_remove(at);
            let key = format!("k{}", dice(2));
            fresh += 1;
            let (kind, request) = match dice(4) {
                0 => (
                    Kind::Write(fresh),
                    Request::Write {
                        key: key.clone(),
                        value: fresh,
                    },
                ),
                1 => {
                    let expected = seen.get(&key).copied().flatten();
                    let cas = Request::Cas {
                        key: key.clone(),
                        expected,
                        new: fresh,
                    };
                    (Kind::Cas { expected, new: fresh }, cas)
                }
                _ => (
                    Kind::Read,
                    Request::Read {
                        key: key.clone(),
                        local,
                    },
                ),
            };
            let ticket = raft.handle(dice(nodes as u32) as usize, request);
            let operation = Operation {
                session,
                key,
                kind,
                call: now,
                ret: crate::history::NEVER,
                outcome: Outcome::Unknown,
                notes: Notes::default(),
            };
            busy.insert(ticket, operation);
        }
        let next = free.iter().map(|(_, at)| *at).min().unwrap_or(Time::MAX);
        let next = next.min(raft.next()).min(nemesis).max(now + 1);
        for (ticket, response) in raft.tick(next, dice) {
            let Some(mut operation) = busy.remove(&ticket) else {
                continue;
            };
            operation.ret = raft.now;
            operation.outcome = match response {
                Response::Saw { value, .. } => {
                    seen.insert(operation.key.clone(), value);
                    Outcome::Saw(value)
                }
                Response::Done { .. } => Outcome::Done,
                Response::CasFailed { .. } => Outcome::CasFailed,
                Response::NotLeader => Outcome::NotExecuted,
                Response::TimedOut => Outcome::Unknown,
            };
            free.push((operation.session, raft.now + Time::from(dice(40)) * MS));
            history.push(operation).unwrap();
        }
    }
    for operation in busy.into_values() {
        history.push(operation).unwrap();
    }
    for applied in raft.applied() {
        history.push_applied(applied.clone()).unwrap();
    }
    history
}

#[test]
fn whatever_happens_it_is_linearizable_and_loses_nothing() {
    let mut answered = 0;
    for seed in 0..30 {
        let history = run(seed, false);
        let report = linear::check(&history, linear::STEPS);
        assert_eq!(
            report.verdict(),
            Verdict::Linearizable,
            "seed {seed}: {}",
            report.explain(&history)
        );
        assert_eq!(loss::against_log(&history), [], "seed {seed}");
        assert_eq!(loss::effects(&history), [], "seed {seed}");
        answered += loss::Tally::of(&history).acknowledged;
    }
    assert!(answered > 30 * 100, "{answered} writes acknowledged");
}

/// The control: what any node has is not linearizable, and the judge says so.
#[test]
fn local_reads_are_not_linearizable() {
    let violated = (0..30)
        .filter(|seed| {
            let history = run(*seed, true);
            assert_eq!(loss::against_log(&history), [], "seed {seed}");
            linear::check(&history, linear::STEPS).verdict() == Verdict::Violated
        })
        .count();
    assert!(violated > 25, "{violated} of 30");
}

#[test]
fn equal_seeds_give_equal_runs() {
    assert_eq!(run(7, false).to_string(), run(7, false).to_string());
}

#[test]
fn a_leader_that_is_cut_off_claims_to_lead_after_its_successor_for_a_while_and_then_no_more() {
    let mut both = 0;
    for seed in 0..40 {
        let dice = &mut chance(seed);
        let (mut raft, old) = elected(3, dice);
        isolate(&mut raft, old, dice);
        let mut claimed = false;
        let until = raft.now + 5_000 * MS;
        while raft.now < until {
            let next = raft.now + 10 * MS;
            pass(&mut raft, next, dice);
            let claims = |node: usize| {
                raft.status(node)
                    .is_some_and(|status| status.leader == Some(node))
            };
            if claims(old) && (0..3).any(|node| node != old && claims(node)) {
                claimed = true;
                let term = |node: usize| raft.status(node).map(|status| status.term);
                assert!(
                    (0..3)
                        .filter(|node| *node != old)
                        .all(|node| term(node) > term(old))
                );
            }
        }
        let status = raft.status(old).unwrap();
        assert_eq!(status.leader, None, "seed {seed}");
        assert_ne!(leader(&raft), Some(old));
        both += usize::from(claimed);
    }
    assert!(both > 0, "two leaders at a time were never seen");
}

#[test]
fn an_isolated_follower_answers_what_it_has_for_ever_and_nothing_else() {
    let dice = &mut chance(1);
    let (mut raft, leader) = elected(3, dice);
    raft.handle(leader, write(1));
    let next = raft.now + 1_000 * MS;
    pass(&mut raft, next, dice);
    let cut = (leader + 1) % 3;
    isolate(&mut raft, cut, dice);
    raft.handle(leader, write(2));
    let next = raft.now + 60_000 * MS;
    pass(&mut raft, next, dice);
    let (local, strong, put) = (
        raft.handle(cut, read(true)),
        raft.handle(cut, read(false)),
        raft.handle(cut, write(3)),
    );
    let next = raft.now + TIMEOUT + MS;
    let answers = pass(&mut raft, next, dice);
    let old = Response::Saw {
        value: Some(1),
        position: 1,
    };
    assert_eq!(
        answers,
        [
            (local, old),
            (strong, Response::TimedOut),
            (put, Response::TimedOut)
        ]
    );
    assert!(raft.status(cut).unwrap().term > raft.status(leader).unwrap().term);
}

#[test]
fn a_write_that_waited_in_a_paused_leader_is_committed_later_or_never() {
    let (mut late, mut never) = (0, 0);
    for seed in 0..40 {
        let dice = &mut chance(seed);
        let (mut raft, old) = elected(3, dice);
        raft.fault(Fault::Pause(old), dice);
        let put = raft.handle(old, write(9));
        let next = raft.now + 4_000 * MS;
        assert_eq!(pass(&mut raft, next, dice), []);
        assert_eq!(raft.status(old), None);
        raft.fault(Fault::Resume(old), dice);
        let next = raft.now + TIMEOUT + MS;
        let written = |raft: &Raft| raft.applied().iter().any(|applied| applied.value == 9);
        match pass(&mut raft, next, dice)[..] {
            [(ticket, Response::Done { .. })] => {
                assert_eq!(ticket, put);
                assert!(written(&raft));
                late += 1;
            }
            [(_, Response::TimedOut)] => never += usize::from(!written(&raft)),
            ref other => panic!("{other:?}"),
        }
    }
    assert!(late > 0 && never > 0, "{late} late, {never} never");
}
