//! The promises of `balance`, checked for every policy, and the behaviour of each under simulated traffic.

use std::{cell::Cell, collections::BinaryHeap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::outcome::{Origin, Outcome};

const ALL: [Policy; 6] = [
    Policy::RoundRobin,
    Policy::Random,
    Policy::LeastRequest,
    Policy::PeakEwma,
    Policy::RingHash,
    Policy::Maglev,
];

/// Members as the shell would keep them.
struct Fixture {
    loads: Vec<Load>,
    eligible: Vec<Cell<bool>>,
    ramp: Vec<Cell<f32>>,
}

impl Fixture {
    fn new(len: usize) -> Self {
        Self {
            loads: (0..len).map(|_| Load::new()).collect(),
            eligible: vec![Cell::new(true); len],
            ramp: vec![Cell::new(1.0); len],
        }
    }
}

impl Members for Fixture {
    fn load(&self, index: usize) -> &Load {
        &self.loads[index]
    }

    fn eligible(&self, index: usize) -> bool {
        self.eligible[index].get()
    }

    fn slow_start(&self, index: usize, _: Moment) -> f32 {
        self.ramp[index].get()
    }
}

fn keys(len: usize) -> Vec<String> {
    (0..len)
        .map(|i| format!("10.0.{}.{}:8080", i / 250, i % 250))
        .collect()
}

fn specs<'a>(keys: &'a [String], weights: &[u32]) -> Vec<MemberSpec<'a>> {
    keys.iter()
        .zip(weights)
        .map(|(key, &weight)| MemberSpec {
            weight,
            priority: 0,
            key: key.as_bytes(),
        })
        .collect()
}

fn balancer(policy: Policy, weights: &[u32]) -> Balancer {
    Balancer::new(policy, &specs(&keys(weights.len()), weights), 42)
}

/// Shares of `n` picks without any traffic in flight.
fn idle_shares(policy: Policy, weights: &[u32], fixture: &Fixture, n: u32) -> Vec<f64> {
    let balancer = balancer(policy, weights);
    let mut dice = Dice::new(1);
    let mut counts = vec![0u32; weights.len()];
    for _ in 0..n {
        let hash = Some(dice.next_u64());
        counts[balancer.pick(fixture, hash, Moment::ZERO, &mut dice).unwrap()] += 1;
    }
    counts
        .iter()
        .map(|&count| f64::from(count) / f64::from(n))
        .collect()
}

/// What the members of a simulation do with a request.
type Behaviour = fn(usize, &mut Dice) -> (Duration, Outcome);

/// Requests arrive at random `rate` times a second for `seconds`; answers the share of each member.
fn simulate(policy: Policy, weights: &[u32], rate: f64, seconds: f64, behaviour: Behaviour) -> Vec<f64> {
    let fixture = Fixture::new(weights.len());
    let balancer = balancer(policy, weights);
    let mut dice = Dice::new(99);
    let mut now = Moment::ZERO;
    let mut counts = vec![0u32; weights.len()];
    let mut running: BinaryHeap<std::cmp::Reverse<(Moment, u64, usize, Moment)>> = BinaryHeap::new();
    let mut outcomes = std::collections::BTreeMap::new();
    let mut id = 0;
    while now.as_nanos() < (seconds * 1e9) as u64 {
        now = now.plus(Duration::from_secs_f64(-(1.0 - dice.unit()).ln() / rate));
        while running.peek().is_some_and(|next| next.0.0 <= now) {
            let std::cmp::Reverse((end, id, member, begun)) = running.pop().unwrap();
            fixture.loads[member].heard(end);
            fixture.loads[member].finish(end.since(begun), outcomes.remove(&id).unwrap(), end);
        }
        let hash = Some(dice.next_u64());
        let member = balancer.pick(&fixture, hash, now, &mut dice).unwrap();
        counts[member] += 1;
        fixture.loads[member].begin(now);
        let (rtt, outcome) = behaviour(member, &mut dice);
        outcomes.insert(id, outcome);
        running.push(std::cmp::Reverse((now.plus(rtt), id, member, now)));
        id += 1;
    }
    let total: u32 = counts.iter().sum();
    counts
        .iter()
        .map(|&count| f64::from(count) / f64::from(total))
        .collect()
}

/// 8 to 12 ms, never failing.
fn steady(_: usize, dice: &mut Dice) -> (Duration, Outcome) {
    (
        Duration::from_micros(8_000 + u64::from(dice.below(4_000))),
        Outcome::Success,
    )
}

#[track_caller]
fn assert_shares(shares: &[f64], weights: &[u32], tolerance: f64) {
    let total: u32 = weights.iter().sum();
    for (share, &weight) in shares.iter().zip(weights) {
        let due = f64::from(weight) / f64::from(total);
        assert!(
            (share - due).abs() <= due * tolerance,
            "{shares:.3?} for {weights:?}"
        );
    }
}

#[test]
fn an_idle_cluster_is_shared_by_weight() {
    for policy in ALL {
        for weights in [&[1u32, 1, 1][..], &[3, 1], &[5, 1, 1], &[1, 2, 3, 4, 10, 1, 1]] {
            let shares = idle_shares(policy, weights, &Fixture::new(weights.len()), 50_000);
            assert_shares(&shares, weights, 0.16);
        }
    }
}

#[test]
fn a_busy_cluster_is_shared_by_weight() {
    for policy in ALL {
        for weights in [&[1u32, 1, 1][..], &[3, 1], &[1, 2, 3, 4, 10, 1, 1]] {
            // About 400 in flight: hashing policies are within their bound, the others balance by load.
            let shares = simulate(policy, weights, 40_000.0, 2.0, steady);
            assert_shares(&shares, weights, 0.3);
        }
    }
}

#[test]
fn a_lightly_used_cluster_is_shared_roughly_by_weight() {
    for policy in ALL {
        let shares = simulate(policy, &[9, 1], 50.0, 400.0, steady);
        assert!((0.05..0.25).contains(&shares[1]), "{policy:?} {shares:.3?}");
    }
}

#[test]
fn peak_ewma_turns_away_from_the_slow_one() {
    let slow = |member: usize, _: &mut Dice| {
        (
            Duration::from_millis(if member == 0 { 50 } else { 10 }),
            Outcome::Success,
        )
    };
    let shares = simulate(Policy::PeakEwma, &[1; 10], 1000.0, 30.0, slow);
    assert!(shares[0] < 0.02, "{shares:.3?}");
    assert!(shares[0] > 0.0, "it must be asked now and then: {shares:.3?}");
}

#[test]
fn failing_fast_swallows_least_request_but_not_peak_ewma() {
    let black_hole = |member: usize, _: &mut Dice| match member {
        0 => (Duration::from_millis(1), Outcome::Failure(Origin::Remote)),
        _ => (Duration::from_millis(10), Outcome::Success),
    };
    for weights in [&[1u32; 10][..], &[1, 1], &[1, 1, 1], &[1, 2, 3, 4, 5, 6]] {
        let due = f64::from(weights[0]) / f64::from(weights.iter().sum::<u32>());
        let shares = simulate(Policy::PeakEwma, weights, 1000.0, 30.0, black_hole);
        assert!(shares[0] < 0.15 * due, "{shares:.3?} for {weights:?}");
    }
    let shares = simulate(Policy::LeastRequest, &[1; 10], 1000.0, 30.0, black_hole);
    assert!(
        shares[0] > 0.12,
        "the comparison has lost its point: {shares:.3?}"
    );
}

#[test]
fn a_failing_heavy_member_is_left_too() {
    let black_hole = |member: usize, _: &mut Dice| match member {
        0 => (Duration::from_millis(1), Outcome::Failure(Origin::Local)),
        _ => (Duration::from_millis(10), Outcome::Success),
    };
    for weights in [&[5u32, 1][..], &[8, 1, 1, 1, 1]] {
        let shares = simulate(Policy::PeakEwma, weights, 1000.0, 30.0, black_hole);
        assert!(shares[0] < 0.5, "{shares:.3?} for {weights:?}");
    }
}

/// Its estimate is as good as ever, because nothing of what it was sent has ended.
#[test]
fn a_member_that_hangs_is_picked_no_more_once_it_has_been_silent_for_longer_than_the_others_need() {
    let fixture = Fixture::new(3);
    let at = |millis: u64| Moment::ZERO.plus(Duration::from_millis(millis));
    for load in &fixture.loads {
        load.begin(at(0));
        load.heard(at(10));
        load.finish(Duration::from_millis(10), Outcome::Success, at(10));
    }
    let balancer = balancer(Policy::PeakEwma, &[1, 1, 1]);
    let mut dice = Dice::new(5);
    // One request hangs in it; the others hold five each, which are answered all the time.
    fixture.loads[0].begin(at(1000));
    for load in &fixture.loads[1..] {
        (0..5).for_each(|_| load.begin(at(1000)));
    }
    let mut picks = |now| {
        (0..100)
            .filter(|_| balancer.pick(&fixture, None, now, &mut dice) == Some(0))
            .count()
    };
    assert_eq!(picks(at(1000)), 100, "the least busy one");
    for load in &fixture.loads[1..] {
        load.heard(at(1100));
    }
    assert_eq!(picks(at(1100)), 0);
}

#[test]
fn a_member_that_asked_to_be_spared_is_spared_while_there_are_others() {
    for len in [2, 3, 12] {
        let weights = vec![1; len];
        let fixture = Fixture::new(len);
        fixture.loads[0].begin(Moment::ZERO);
        let hint = Outcome::Pushback(Some(Duration::from_secs(5)));
        fixture.loads[0].unheard();
        fixture.loads[0].finish(Duration::from_millis(1), hint, Moment::ZERO);
        assert_eq!(idle_shares(Policy::PeakEwma, &weights, &fixture, 1000)[0], 0.0);
        for i in 1..len {
            fixture.eligible[i].set(false);
        }
        assert_eq!(idle_shares(Policy::PeakEwma, &weights, &fixture, 10)[0], 1.0);
    }
}

#[test]
fn a_newcomer_gets_its_share_of_the_asking() {
    for policy in [
        Policy::RoundRobin,
        Policy::Random,
        Policy::LeastRequest,
        Policy::PeakEwma,
    ] {
        for len in [2, 10] {
            let weights = vec![1; len];
            let fixture = Fixture::new(len);
            fixture.ramp[0].set(0.1);
            let share = idle_shares(policy, &weights, &fixture, 20_000)[0];
            let full = 1.0 / len as f64;
            assert!(
                (full * 0.05..full * 0.35).contains(&share),
                "{policy:?} {len}: {share:.3}"
            );
        }
    }
}

#[test]
fn a_first_answer_that_was_slow_is_forgotten_even_by_a_majority() {
    let fixture = Fixture::new(3);
    let keys = [[0_u8], [1], [2]];
    let specs: Vec<MemberSpec<'_>> = keys
        .iter()
        .map(|key| MemberSpec {
            weight: 1,
            priority: 0,
            key,
        })
        .collect();
    let balancer = Balancer::new(Policy::PeakEwma, &specs, 7);
    let mut dice = Dice::new(7);
    let mut asked = [0_u32; 3];
    let mut now = Moment::from_nanos(1_000_000_000);
    // The first answer of two of them paid for a connection; from then on all are equally quick.
    for (load, millis) in fixture.loads.iter().zip([2, 6, 6]) {
        load.begin(Moment::ZERO);
        load.unheard();
        load.finish(Duration::from_millis(millis), Outcome::Success, now);
    }
    for _ in 0..12_000 {
        now = now.plus(Duration::from_millis(10));
        let picked = balancer
            .pick(&fixture, None, now, &mut dice)
            .expect("somebody is eligible");
        asked[picked] += 1;
        fixture.loads[picked].begin(Moment::ZERO);
        let jitter = Duration::from_micros(u64::from(dice.below(200)));
        fixture.loads[picked].unheard();
        fixture.loads[picked].finish(Duration::from_millis(2) + jitter, Outcome::Success, now);
    }
    assert!(
        asked.iter().all(|&count| count > 1_200),
        "somebody is never asked: {asked:?}"
    );
}

#[test]
fn a_cluster_of_newcomers_works_as_usual() {
    for policy in ALL {
        let fixture = Fixture::new(4);
        fixture.ramp.iter().for_each(|ramp| ramp.set(0.1));
        assert_shares(&idle_shares(policy, &[1; 4], &fixture, 20_000), &[1; 4], 0.1);
    }
}

#[test]
fn round_robin_gives_a_missing_turn_to_all_the_others() {
    let fixture = Fixture::new(5);
    fixture.eligible[2].set(false);
    let shares = idle_shares(Policy::RoundRobin, &[1; 5], &fixture, 10_000);
    for i in [0, 1, 3, 4] {
        assert!((shares[i] - 0.25).abs() < 0.001, "{shares:.3?}");
    }
}

#[test]
fn a_hot_key_stays_within_its_bound() {
    for policy in [Policy::RingHash, Policy::Maglev] {
        for len in [4usize, 100] {
            let weights = vec![1; len];
            let fixture = Fixture::new(len);
            let balancer = balancer(policy, &weights);
            let mut dice = Dice::new(5);
            let requests = 40 * len;
            for i in 0..requests {
                let now = Moment::from_nanos(i as u64 * 10_000);
                fixture.loads[balancer.pick(&fixture, Some(7), now, &mut dice).unwrap()].begin(Moment::ZERO);
            }
            let most = fixture.loads.iter().map(Load::in_flight).max().unwrap();
            assert!(most <= 51, "{policy:?} {len}: {most} of {requests}");
        }
    }
}

#[test]
fn a_key_keeps_its_member() {
    for policy in [Policy::RingHash, Policy::Maglev] {
        let fixture = Fixture::new(7);
        let balancer = balancer(policy, &[1, 2, 3, 1, 2, 3, 1]);
        let mut dice = Dice::new(5);
        for key in 0..100 {
            let first = balancer.pick(&fixture, Some(key), Moment::ZERO, &mut dice);
            for _ in 0..5 {
                assert_eq!(balancer.pick(&fixture, Some(key), Moment::ZERO, &mut dice), first);
            }
        }
    }
}

/// The share of the keys that moved although their member stayed, after removing member `gone`.
fn moved(policy: Policy, len: usize, gone: usize) -> f64 {
    let all = keys(len);
    let weights = vec![1; len];
    let before = Balancer::new(policy, &specs(&all, &weights), 1);
    let mut rest = all.clone();
    rest.remove(gone);
    // Discovery may also list them in another order.
    rest.reverse();
    let after = Balancer::new(policy, &specs(&rest, &weights), 2);
    let fixture = Fixture::new(len);
    let mut dice = Dice::new(0);
    let (mut stayed, mut lost) = (0u32, 0u32);
    for key in 0..20_000 {
        let was = before.pick(&fixture, Some(key), Moment::ZERO, &mut dice).unwrap();
        let is = after.pick(&fixture, Some(key), Moment::ZERO, &mut dice).unwrap();
        if was != gone {
            stayed += 1;
            lost += u32::from(all[was] != rest[is]);
        }
    }
    f64::from(lost) / f64::from(stayed)
}

#[test]
fn a_ring_moves_only_the_keys_of_who_left() {
    for (len, gone) in [(3, 0), (10, 4), (32, 31), (200, 17)] {
        assert_eq!(moved(Policy::RingHash, len, gone), 0.0, "{len}");
    }
}

#[test]
fn hashing_honours_light_weights_among_many() {
    for policy in [Policy::RingHash, Policy::Maglev] {
        let weights: Vec<u32> = (0..60).map(|i| if i < 30 { 100 } else { 2 }).collect();
        let shares = idle_shares(policy, &weights, &Fixture::new(60), 200_000);
        let light: f64 = shares[30..].iter().sum();
        assert!((0.015..0.025).contains(&light), "{policy:?}: {light:.4}");
    }
}

#[test]
fn maglev_moves_few_more() {
    for (len, gone) in [(3, 0), (10, 4), (100, 17)] {
        let share = moved(Policy::Maglev, len, gone);
        assert!(share < 0.05, "{len}: {share:.4}");
    }
}

#[test]
fn an_excluded_member_moves_only_its_own_keys() {
    for policy in [Policy::RingHash, Policy::Maglev] {
        let fixture = Fixture::new(10);
        let balancer = balancer(policy, &[1; 10]);
        let mut dice = Dice::new(0);
        let mut pick = |fixture: &Fixture, key| {
            balancer
                .pick(fixture, Some(key), Moment::ZERO, &mut dice)
                .unwrap()
        };
        let before: Vec<usize> = (0..5000).map(|key| pick(&fixture, key)).collect();
        fixture.eligible[3].set(false);
        for (key, &was) in (0..).zip(&before) {
            let is = pick(&fixture, key);
            assert!(if was == 3 { is != 3 } else { is == was });
        }
    }
}

#[test]
fn large_clusters_are_shared_evenly() {
    for policy in ALL {
        let weights = vec![1; 3000];
        let shares = idle_shares(policy, &weights, &Fixture::new(3000), 300_000);
        let most = shares.iter().copied().fold(0.0, f64::max) * 3000.0;
        assert!(most < 1.8, "{policy:?}: {most:.2}");
    }
}

#[test]
fn extreme_weights_neither_hang_nor_break_a_table() {
    for policy in ALL {
        let mut weights = vec![1; 1000];
        weights[7] = u32::MAX;
        let shares = idle_shares(policy, &weights, &Fixture::new(1000), 10_000);
        // Maglev gives each at least a thousandth of the heaviest's places; the others round by far less.
        assert!(shares[7] > 0.45, "{policy:?}: {}", shares[7]);
    }
}

#[test]
fn the_higher_priority_number_waits_until_nobody_else_is_left() {
    for policy in ALL {
        let keys = keys(4);
        let mut specs = specs(&keys, &[1; 4]);
        specs[0].priority = 9;
        specs[1].priority = 9;
        let balancer = Balancer::new(policy, &specs, 0);
        let fixture = Fixture::new(4);
        let mut dice = Dice::new(3);
        let mut picked =
            |fixture: &Fixture| balancer.pick(fixture, Some(dice.next_u64()), Moment::ZERO, &mut dice);
        assert!((0..100).all(|_| picked(&fixture) >= Some(2)));
        fixture.eligible[2].set(false);
        assert!((0..100).all(|_| picked(&fixture) == Some(3)));
        fixture.eligible[3].set(false);
        assert!((0..100).all(|_| picked(&fixture).is_some_and(|i| i < 2)));
    }
}

#[test]
fn a_drained_or_empty_cluster_has_nobody() {
    for policy in ALL {
        let mut dice = Dice::new(0);
        let pick = |weights: &[u32], dice: &mut Dice| {
            balancer(policy, weights).pick(&Fixture::new(2), None, Moment::ZERO, dice)
        };
        assert_eq!(pick(&[], &mut dice), None);
        assert_eq!(pick(&[0, 0], &mut dice), None);
        assert_eq!(pick(&[0, 1], &mut dice), Some(1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_pick_is_eligible_weighted_and_of_the_first_possible_priority(
        members in proptest::collection::vec((0u32..4, 0u8..3, any::<bool>(), 0u32..5), 0..40),
        seed: u64,
    ) {
        let names = keys(members.len());
        let specs: Vec<MemberSpec<'_>> = names
            .iter()
            .zip(&members)
            .map(|(key, &(weight, priority, ..))| MemberSpec { weight, priority, key: key.as_bytes() })
            .collect();
        let fixture = Fixture::new(members.len());
        for (i, &(_, _, eligible, in_flight)) in members.iter().enumerate() {
            fixture.eligible[i].set(eligible);
            (0..in_flight).for_each(|_| fixture.loads[i].begin(Moment::ZERO));
        }
        let possible = |i: usize| members[i].0 > 0 && members[i].2;
        let first = (0..members.len()).filter(|&i| possible(i)).map(|i| members[i].1).min();
        for policy in ALL {
            let balancer = Balancer::new(policy, &specs, seed);
            let twin = Balancer::new(policy, &specs, seed);
            let mut dice = Dice::new(seed);
            let mut same = Dice::new(seed);
            for round in 0..20u64 {
                let hash = (round % 2 == 0).then_some(round);
                let now = Moment::from_nanos(round << 24);
                let picked = balancer.pick(&fixture, hash, now, &mut dice);
                prop_assert_eq!(picked.map(|i| members[i].1), first, "{:?}", policy);
                prop_assert!(picked.is_none_or(possible), "{:?}", policy);
                prop_assert_eq!(twin.pick(&fixture, hash, now, &mut same), picked, "{:?}", policy);
            }
        }
    }
}

/// Prints what one odd member of ten gets under each policy, 10 ms otherwise: `-- --ignored --nocapture odd`.
#[test]
#[ignore = "measures, claims nothing"]
fn the_share_of_the_odd_one() {
    const MS: Duration = Duration::from_millis(1);
    const FAILURE: Outcome = Outcome::Failure(Origin::Remote);
    fn noisy(slow: u32, errors: f64, dice: &mut Dice) -> (Duration, Outcome) {
        (
            10 * slow * MS,
            if dice.chance(errors) {
                FAILURE
            } else {
                Outcome::Success
            },
        )
    }
    fn failing(member: usize, share: f64, dice: &mut Dice) -> (Duration, Outcome) {
        if member == 0 && dice.chance(share) {
            (MS, FAILURE)
        } else {
            (10 * MS, Outcome::Success)
        }
    }
    let cases: [(&str, f64, Behaviour); 7] = [
        ("1000/s, 5x slower", 1000.0, |m, dice| {
            noisy(if m == 0 { 5 } else { 1 }, 0.0, dice)
        }),
        ("1000/s, 5x slower, 0.1 % errors everywhere", 1000.0, |m, dice| {
            noisy(if m == 0 { 5 } else { 1 }, 0.001, dice)
        }),
        ("1000/s, 5x slower, 1 % errors everywhere", 1000.0, |m, dice| {
            noisy(if m == 0 { 5 } else { 1 }, 0.01, dice)
        }),
        ("100/s, 5x slower, 1 % errors everywhere", 100.0, |m, dice| {
            noisy(if m == 0 { 5 } else { 1 }, 0.01, dice)
        }),
        ("1000/s, fails at once 100 %", 1000.0, |m, dice| {
            failing(m, 1.0, dice)
        }),
        ("1000/s, fails at once 50 %", 1000.0, |m, dice| {
            failing(m, 0.5, dice)
        }),
        ("1000/s, fails at once 5 %", 1000.0, |m, dice| {
            failing(m, 0.05, dice)
        }),
    ];
    for (name, rate, behaviour) in cases {
        let share = |policy| 100.0 * simulate(policy, &[1; 10], rate, 120.0, behaviour)[0];
        println!(
            "{name:<45} least_request {:>5.2} %  peak_ewma {:>5.2} %",
            share(Policy::LeastRequest),
            share(Policy::PeakEwma)
        );
    }
}

/// Prints what a pick and a build cost: `cargo test --release -p bellwether-core -- --ignored --nocapture cost`.
#[test]
#[ignore = "measures, claims nothing"]
fn the_cost_of_a_pick() {
    // The wall clock of the test harness would need std's Instant; the system's is good enough for a mean of millions.
    let clock = std::time::SystemTime::now;
    for len in [3usize, 10, 3000] {
        for policy in ALL {
            let weights = vec![1; len];
            let begun = clock();
            let balancer = balancer(policy, &weights);
            let build = begun.elapsed().unwrap();
            let fixture = Fixture::new(len);
            for load in &fixture.loads {
                load.begin(Moment::ZERO);
                load.unheard();
                load.finish(Duration::from_millis(10), Outcome::Success, Moment::ZERO);
                load.begin(Moment::ZERO);
            }
            let mut dice = Dice::new(1);
            let picks = 2_000_000u64;
            let begun = clock();
            let mut sum = 0;
            for i in 0..picks {
                let hash = Some(dice.next_u64());
                sum += balancer
                    .pick(&fixture, hash, Moment::from_nanos(i * 1000), &mut dice)
                    .unwrap();
            }
            let each = begun.elapsed().unwrap().as_nanos() as f64 / picks as f64;
            println!(
                "{len:>5} {:<14} pick {each:>6.1} ns  build {build:?}  ({sum})",
                policy.name()
            );
        }
    }
    let load = Load::new();
    let begun = clock();
    let rounds = 5_000_000u64;
    for i in 0..rounds {
        load.begin(Moment::ZERO);
        load.unheard();
        load.finish(
            Duration::from_micros(900 + i % 100),
            Outcome::Success,
            Moment::from_nanos(i * 10_000),
        );
    }
    println!(
        "begin + finish {:.1} ns",
        begun.elapsed().unwrap().as_nanos() as f64 / rounds as f64
    );
}

/// Three zones with two members each; ours holds the first two.
fn in_three_zones(policy: Policy) -> Balancer {
    let keys = keys(6);
    let mut places = vec![Place::Elsewhere; 6];
    places[..2].fill(Place::Here);
    Balancer::zoned(policy, &specs(&keys, &[1; 6]), &places, 3, 42)
}

fn shares_of(balancer: &Balancer, fixture: &Fixture, now: Moment) -> Vec<f64> {
    let mut dice = Dice::new(3);
    let mut counts = [0u32; 6];
    for _ in 0..12_000 {
        counts[balancer
            .pick(fixture, Some(dice.next_u64()), now, &mut dice)
            .unwrap()] += 1;
    }
    counts.iter().map(|&count| f64::from(count) / 12_000.0).collect()
}

#[test]
fn requests_stay_in_our_zone_and_leave_it_as_far_as_it_has_become_too_small() {
    for policy in [
        Policy::RoundRobin,
        Policy::Random,
        Policy::LeastRequest,
        Policy::PeakEwma,
    ] {
        let (balancer, fixture) = (in_three_zones(policy), Fixture::new(6));
        let shares = shares_of(&balancer, &fixture, Moment::from_nanos(1));
        assert!(
            shares[2..].iter().all(|&share| share == 0.0),
            "{policy:?} {shares:?}"
        );
        assert!((0.45..0.55).contains(&shares[0]), "{policy:?} {shares:?}");

        fixture.eligible[0].set(false);
        let shares = shares_of(&balancer, &fixture, Moment::from_nanos(1_000_000_000));
        assert!(
            (0.57..0.63).contains(&shares[1]),
            "3/5 of a third {policy:?} {shares:?}"
        );

        fixture.eligible[1].set(false);
        let shares = shares_of(&balancer, &fixture, Moment::from_nanos(2_000_000_000));
        assert!(
            shares[2..].iter().all(|&share| (0.2..0.3).contains(&share)),
            "{policy:?} {shares:?}"
        );
    }
}

#[test]
fn a_key_has_one_place_seen_from_every_zone() {
    for policy in [Policy::RingHash, Policy::Maglev] {
        let (zoned, plain) = (in_three_zones(policy), balancer(policy, &[1; 6]));
        let fixture = Fixture::new(6);
        for key in 0..200 {
            let mut dice = Dice::new(1);
            let pick =
                |balancer: &Balancer, dice: &mut Dice| balancer.pick(&fixture, Some(key), Moment::ZERO, dice);
            assert_eq!(pick(&zoned, &mut dice), pick(&plain, &mut dice));
        }
    }
}
