//! Ejection: the tests by number, what is told apart and what is not, caps, and threads.

use super::*;
use proptest::prelude::*;

const SUCCESS: Outcome = Outcome::Success;
const LOCAL: Outcome = Outcome::Failure(Origin::Local);
const REMOTE: Outcome = Outcome::Failure(Origin::Remote);

fn at(millis: u64) -> Moment {
    Moment::ZERO.plus(Duration::from_millis(millis))
}

/// Rows switched off: only shares count.
fn by_share() -> Settings {
    Settings {
        consecutive_gateway_errors: None,
        consecutive_local_errors: None,
        ..Settings::default()
    }
}

struct Fleet {
    hosts: Vec<(Tally, Ejection)>,
    recent: Vec<Recent>,
    available: Vec<bool>,
    referee: Referee,
    dice: Dice,
}

impl Fleet {
    fn new(size: usize) -> Self {
        let window = Settings::default().window;
        Self {
            hosts: (0..size).map(|_| (Tally::new(window), Ejection::new())).collect(),
            recent: (0..size).map(|_| Recent::new()).collect(),
            available: vec![true; size],
            referee: Referee::new(),
            dice: Dice::new(11),
        }
    }

    fn members(&self) -> Vec<Member<'_>> {
        self.hosts
            .iter()
            .enumerate()
            .map(|(index, (tally, ejection))| Member {
                tally,
                ejection,
                group: 0,
                available: self.available[index],
                recent: Some(&self.recent[index]),
            })
            .collect()
    }

    /// `failed` of `total` attempts of a host fail with 500, spread evenly.
    fn feed(&self, host: usize, failed: u32, total: u32, now: Moment) {
        for i in 0..total {
            let fails = (i + 1) * failed / total > i * failed / total;
            let outcome = if fails { REMOTE } else { SUCCESS };
            self.hosts[host]
                .0
                .record(&by_share(), outcome, Kind::ServerError, now, now);
        }
    }

    fn sweep_at(&mut self, settings: &Settings, score: Score, now: Moment) -> Report {
        let mut dice = self.dice.split();
        self.referee
            .sweep(settings, &self.members(), score, now, &mut dice)
    }

    fn sweep(&mut self, settings: &Settings, now: Moment) -> Report {
        self.sweep_at(settings, Score::WELL, now)
    }

    fn strike(&mut self, settings: &Settings, host: usize, score: Score, now: Moment) -> Option<Verdict> {
        let mut dice = self.dice.split();
        self.referee
            .strike(settings, &self.members(), host, score, now, &mut dice)
    }

    fn out(&self) -> Vec<usize> {
        (0..self.hosts.len())
            .filter(|&host| self.hosts[host].1.is_out())
            .collect()
    }
}

fn findings_of(outcomes: &[(Outcome, Kind)], settings: &Settings) -> Vec<Option<&'static str>> {
    let tally = Tally::new(settings.window);
    outcomes
        .iter()
        .map(|&(outcome, kind)| {
            let finding = tally.record(settings, outcome, kind, at(1), at(1));
            finding.map(|finding| finding.detector())
        })
        .collect()
}

#[test]
fn the_fifth_gateway_error_in_a_row_is_told_once() {
    let found = findings_of(&[(REMOTE, Kind::Gateway); 7], &Settings::default());
    assert_eq!(found[4], Some("consecutive_gateway"));
    assert_eq!(found.iter().flatten().count(), 1);
}

#[test]
fn rows_of_two_kinds_do_not_end_each_other_and_any_good_answer_ends_both() {
    let settings = Settings {
        failure_rate: None,
        ..Settings::default()
    };
    let alternating = [(LOCAL, Kind::Other), (REMOTE, Kind::Gateway)].repeat(3);
    let found = findings_of(&alternating, &settings);
    assert_eq!(found[4], Some("consecutive_local"));

    for good in [SUCCESS, Outcome::Slow, Outcome::Pushback(None)] {
        let mut outcomes = vec![(LOCAL, Kind::Other); 2];
        outcomes.push((good, Kind::Other));
        outcomes.extend([(LOCAL, Kind::Other); 2]);
        assert_eq!(findings_of(&outcomes, &settings).iter().flatten().count(), 0);
    }
    // A 500 is an answer of the application.
    let mut outcomes = vec![(REMOTE, Kind::Gateway); 4];
    outcomes.push((REMOTE, Kind::ServerError));
    outcomes.push((REMOTE, Kind::Gateway));
    assert_eq!(findings_of(&outcomes, &settings).iter().flatten().count(), 0);
}

#[test]
fn server_errors_in_a_row_count_if_asked_for() {
    let settings = Settings {
        consecutive_5xx: NonZeroU32::new(3),
        ..Settings::default()
    };
    let outcomes = [
        (REMOTE, Kind::ServerError),
        (REMOTE, Kind::Gateway),
        (REMOTE, Kind::ServerError),
    ];
    assert_eq!(findings_of(&outcomes, &settings)[2], Some("consecutive_5xx"));
}

#[test]
fn ignored_attempts_leave_no_trace_and_pushback_counts_for_the_share() {
    let settings = Settings::default();
    let tally = Tally::new(settings.window);
    for _ in 0..2 {
        tally.record(&settings, LOCAL, Kind::Other, at(1), at(1));
    }
    tally.record(&settings, Outcome::Ignored, Kind::Other, at(1), at(1));
    assert_eq!(tally.counts(at(1)).total, 2);
    assert_eq!(tally.rows().local, 2);
    tally.record(&settings, Outcome::Pushback(None), Kind::Other, at(1), at(1));
    assert_eq!(tally.rows(), Rows::default());
    assert_eq!(tally.counts(at(1)).failed, 3);
}

#[test]
fn who_refuses_is_out_at_once() {
    let settings = Settings::default();
    let mut fleet = Fleet::new(3);
    let finding = (0..3)
        .filter_map(|_| {
            fleet.hosts[1]
                .0
                .record(&settings, LOCAL, Kind::Other, at(5), at(5))
        })
        .next();
    assert_eq!(
        finding,
        Some(Finding::LocalErrors {
            count: 3,
            threshold: 3
        })
    );
    let verdict = fleet.strike(&settings, 1, Score::WELL, at(5)).expect("a verdict");
    let Ruling::Ejected(ejected) = verdict.ruling else {
        panic!("{verdict:?}");
    };
    assert_eq!(ejected.nth, 1);
    assert!(ejected.until.since(at(5)) <= Duration::from_millis(7500));
    assert!(
        fleet.strike(&settings, 1, Score::WELL, at(6)).is_none(),
        "late results"
    );
    assert_eq!(fleet.out(), [1]);
}

#[test]
fn attempts_from_before_the_last_return_say_nothing() {
    let settings = Settings::default();
    let tally = Tally::new(settings.window);
    let late = |began, now| tally.record(&settings, LOCAL, Kind::Other, at(began), at(now));
    assert_eq!([late(1, 100), late(2, 200)], [None, None]);
    tally.clear(at(5_000));
    // It hung, was ejected, came back, and now the deadlines of that time pass.
    assert!((0..10).all(|_| late(4_999, 6_000).is_none()));
    assert_eq!(tally.counts(at(6_000)), Counts::default());
    assert_eq!([late(5_000, 6_000), late(5_001, 6_000)], [None, None]);
    assert!(late(5_002, 6_000).is_some(), "those from after it count");
    let after = Tally::after(Some(&tally), &settings);
    assert!(
        after
            .record(&settings, SUCCESS, Kind::Other, at(4_999), at(7_000))
            .is_none()
    );
    assert_eq!(
        after.counts(at(7_000)).total,
        0,
        "a reload does not forget when that was"
    );
}

#[test]
fn a_row_is_forgotten_with_its_window() {
    let settings = Settings {
        max_ejection_percent: 0.1,
        ..Settings::default()
    };
    let mut fleet = Fleet::new(3);
    for host in [0, 1] {
        for _ in 0..3 {
            fleet.hosts[host]
                .0
                .record(&settings, LOCAL, Kind::Other, at(5), at(5));
        }
    }
    fleet.sweep(&settings, at(10));
    assert_eq!(fleet.out().len(), 1, "the cap keeps the other");
    let (out, kept) = match fleet.out()[0] {
        0 => (0, 1),
        _ => (1, 0),
    };
    // Nobody asks the one that was kept; a minute later there is room under the cap.
    assert!(fleet.hosts[out].1.pardon(at(60_000)));
    fleet.sweep(&settings, at(61_000));
    assert!(!fleet.hosts[kept].1.is_out(), "what it did a minute ago is over");
}

#[test]
fn half_of_twenty_attempts_are_too_many() {
    let settings = by_share();
    let mut fleet = Fleet::new(2);
    fleet.feed(0, 9, 19, at(10));
    assert!(fleet.sweep(&settings, at(20)).verdicts.is_empty());
    fleet.feed(0, 1, 1, at(30));
    let report = fleet.sweep(&settings, at(40));
    assert_eq!(report.verdicts.len(), 1);
    assert_eq!(
        report.verdicts[0].finding,
        Finding::FailureRate {
            failed: 10,
            total: 20,
            threshold: 0.5
        }
    );
    assert_eq!(
        fleet.hosts[0].0.counts(at(40)).total,
        0,
        "it starts anew when it returns"
    );
}

#[test]
fn scenario_12_one_of_three_at_half_is_found_at_fifty_requests() {
    let settings = Settings {
        failure_rate: None,
        ..by_share()
    };
    let mut fleet = Fleet::new(3);
    for host in 1..3 {
        fleet.feed(host, 0, 50, at(10));
    }
    fleet.feed(0, 24, 49, at(10));
    assert!(
        fleet.sweep(&settings, at(20)).verdicts.is_empty(),
        "49 are not enough"
    );
    fleet.feed(0, 1, 1, at(25));
    let report = fleet.sweep(&settings, at(30));
    let [verdict] = report.verdicts[..] else {
        panic!("{report:?}");
    };
    assert_eq!((verdict.index, verdict.finding.detector()), (0, "relative"));
    assert!(matches!(verdict.ruling, Ruling::Ejected(_)));
    assert!(report.correlated.is_empty());
}

#[test]
fn scenario_12_one_percent_among_fifty_nearly_perfect_ones_stays() {
    let settings = by_share();
    let mut fleet = Fleet::new(51);
    for host in 0..50 {
        fleet.feed(host, 1, 10_000, at(10));
    }
    fleet.feed(50, 100, 10_000, at(10));
    assert_eq!(fleet.sweep(&settings, at(20)), Report::default());
}

#[test]
fn scenario_12_a_gap_that_chance_explains_is_none() {
    // 5 of 50 against 4 %: a gap of 6 points, and one chance in twenty.
    let mut fleet = Fleet::new(3);
    for host in 1..3 {
        fleet.feed(host, 2, 50, at(10));
    }
    fleet.feed(0, 5, 50, at(10));
    assert_eq!(fleet.sweep(&by_share(), at(20)), Report::default());
}

#[test]
fn scenario_13_five_of_ten_together_are_not_their_own_fault() {
    let settings = by_share();
    let mut fleet = Fleet::new(10);
    for second in 0..30 {
        let now = at(second * 1000);
        for host in 0..10 {
            fleet.feed(host, if host < 5 { 8 } else { 0 }, 10, now);
        }
        let report = fleet.sweep(&settings, now);
        assert_eq!(fleet.out(), [0usize; 0], "no mass ejection in second {second}");
        if second == 1 {
            let correlated = Correlated {
                group: 0,
                failing: 5,
                size: 10,
                allowed: 5,
            };
            assert_eq!(report.correlated, [correlated]);
            assert!(
                report
                    .verdicts
                    .iter()
                    .all(|v| v.ruling == Ruling::Withheld(Withheld::Correlated))
            );
        } else {
            assert!(report.correlated.is_empty(), "it is told once");
        }
    }
    assert!(fleet.referee.is_correlated());
    let quiet = at(70_000);
    assert_eq!(fleet.sweep(&settings, quiet), Report::default());
    assert!(!fleet.referee.is_correlated(), "it ends by itself");
}

#[test]
fn scenario_13_those_that_fail_one_after_the_other_are_stopped_too() {
    let settings = by_share();
    let mut fleet = Fleet::new(10);
    let mut raised = false;
    for host in 0..6 {
        let now = at(1000 + host as u64 * 2000);
        fleet.feed(host, 20, 20, now);
        raised |= !fleet.sweep(&settings, now).correlated.is_empty();
    }
    assert!(raised);
    assert_eq!(fleet.out(), [0, 1, 2, 3], "the fifth makes half of them");
}

#[test]
fn scenario_13_hard_failures_are_ejected_up_to_the_cap() {
    let settings = Settings::default();
    let mut fleet = Fleet::new(10);
    let mut withheld = 0;
    for host in 0..7 {
        for _ in 0..3 {
            if fleet.hosts[host]
                .0
                .record(&settings, LOCAL, Kind::Other, at(5), at(5))
                .is_some()
            {
                let verdict = fleet.strike(&settings, host, Score::WELL, at(5)).expect("news");
                withheld += usize::from(verdict.ruling == Ruling::Withheld(Withheld::Cap));
            }
        }
    }
    assert_eq!((fleet.out().len(), withheld), (5, 2));
    assert!(
        fleet.sweep(&settings, at(900)).verdicts.is_empty(),
        "what is withheld for the same reason is no news"
    );
}

#[test]
fn scenario_14_the_table_of_allowed_ejections() {
    for (size, percent, allowed) in [
        (1, 10, 0),
        (1, 50, 0),
        (1, 100, 0),
        (2, 10, 1),
        (2, 50, 1),
        (2, 100, 1),
        (3, 10, 1),
        (3, 50, 1),
        (3, 100, 2),
    ] {
        let settings = Settings {
            max_ejection_percent: f64::from(percent) / 100.0,
            ..Settings::default()
        };
        let mut fleet = Fleet::new(size);
        for host in 0..size {
            for _ in 0..3 {
                fleet.hosts[host]
                    .0
                    .record(&settings, LOCAL, Kind::Other, at(5), at(5));
            }
            fleet.strike(&settings, host, Score::WELL, at(5));
        }
        fleet.sweep(&settings, at(6));
        assert_eq!(fleet.out().len(), allowed, "{size} at {percent} %");
    }
}

#[test]
fn scenario_14_what_others_took_out_counts_as_missing() {
    let settings = Settings {
        max_ejection_percent: 1.0,
        ..Settings::default()
    };
    let mut fleet = Fleet::new(3);
    fleet.available = vec![true, false, false];
    for _ in 0..3 {
        fleet.hosts[0]
            .0
            .record(&settings, LOCAL, Kind::Other, at(5), at(5));
    }
    let verdict = fleet.strike(&settings, 0, Score::WELL, at(5)).expect("news");
    assert_eq!(verdict.ruling, Ruling::Withheld(Withheld::LastAvailable));
    // Another one comes back: the next sweep finds the row again.
    fleet.available[1] = true;
    assert_eq!(fleet.sweep(&settings, at(1000)).verdicts.len(), 1);
    assert_eq!(fleet.out(), [0]);
}

#[test]
fn the_cap_is_spent_on_the_worst() {
    let settings = Settings {
        max_ejection_percent: 0.2,
        relative: None,
        ..by_share()
    };
    let mut fleet = Fleet::new(10);
    fleet.feed(2, 60, 100, at(5));
    fleet.feed(7, 90, 100, at(5));
    let report = fleet.sweep(&settings, at(10));
    let order: Vec<usize> = report.verdicts.iter().map(|v| v.index).collect();
    assert_eq!((order, fleet.out()), (vec![7, 2], vec![2, 7]));
}

/// Attempts until a surge is told of, of a host that fails with this probability after a long good past; none within
/// `most`.
fn surges_after(fails: f64, elsewhere: f64, most: u32, seed: u64) -> Option<u32> {
    let (tally, mut dice) = (Tally::new(Settings::default().window), Dice::new(seed));
    tally.surge.compare_with(elsewhere);
    for _ in 0..2400 {
        tally.record(&by_share(), SUCCESS, Kind::Other, at(1), at(1));
    }
    (1..=most).find(|_| {
        let outcome = if dice.chance(fails) { REMOTE } else { SUCCESS };
        let found = tally.record(&by_share(), outcome, Kind::ServerError, at(2), at(2));
        found.is_some_and(|finding| finding.detector() == "surge")
    })
}

#[test]
fn a_surge_is_seen_at_once_however_good_the_past_was() {
    assert_eq!(surges_after(1.0, 0.0, 10, 1), Some(5), "five in a row");
    let mut lengths: Vec<u32> = (0..99)
        .filter_map(|seed| surges_after(0.3, 0.0, 500, seed))
        .collect();
    lengths.sort_unstable();
    assert_eq!(lengths.len(), 99, "three in ten are always found");
    assert!(lengths[49] < 30, "{}", lengths[49]);
}

#[test]
fn what_fails_as_often_as_elsewhere_is_no_surge() {
    for (fails, elsewhere) in [(0.001, 0.0), (0.01, 0.0), (0.05, 0.05), (0.2, 0.2)] {
        for seed in 0..10 {
            let found = surges_after(fails, elsewhere, 100_000, seed);
            assert_eq!(found, None, "{fails} of all, {elsewhere} elsewhere");
        }
    }
}

#[test]
fn a_surge_ejects_one_and_not_those_who_fail_together() {
    let settings = Settings::default();
    let fail = |fleet: &Fleet, host: usize, times: u32| {
        (0..times)
            .filter_map(|_| {
                let tally = &fleet.hosts[host].0;
                tally.record(&settings, REMOTE, Kind::ServerError, at(5), at(5))
            })
            .count()
    };
    let mut fleet = Fleet::new(3);
    assert_eq!(fail(&fleet, 0, 5), 1);
    let verdict = fleet.strike(&settings, 0, Score::WELL, at(5)).unwrap();
    assert_eq!(
        (verdict.finding.to_string().as_str(), fleet.out()),
        ("a surge: 5 of 5 attempts failed, elsewhere 0.00 %", vec![0])
    );

    let mut fleet = Fleet::new(3);
    assert_eq!(fail(&fleet, 1, 3), 0);
    assert_eq!(fail(&fleet, 0, 5), 1);
    let verdict = fleet.strike(&settings, 0, Score::WELL, at(5)).unwrap();
    assert_eq!(verdict.ruling, Ruling::Withheld(Withheld::Correlated));
    assert!(fleet.out().is_empty(), "another one has begun to fail too");

    let off = Settings {
        failure_rate: None,
        ..settings
    };
    let fleet = Fleet::new(3);
    for _ in 0..20 {
        let tally = &fleet.hosts[0].0;
        assert_eq!(tally.record(&off, REMOTE, Kind::ServerError, at(5), at(5)), None);
    }
}

/// Of each of three hosts: so many milliseconds, so often.
type Times<'a> = [&'a [(u64, u32)]; 3];

/// Each host's last answers took so many milliseconds.
fn answers(fleet: &Fleet, hosts: Times<'_>) {
    for (recent, times) in fleet.recent.iter().zip(hosts) {
        recent.clear();
        for &(millis, count) in times {
            for _ in 0..count {
                recent.record(Duration::from_millis(millis), at(9));
            }
        }
    }
}

#[test]
fn a_slow_host_is_found_by_comparison() {
    let settings = Settings {
        latency_factor: Some(3.0),
        ..Settings::default()
    };
    let mut fleet = Fleet::new(3);
    for host in 0..3 {
        fleet.feed(host, 0, 60, at(5));
    }
    let spared: [(&str, Times<'_>); 5] = [
        ("44 ms are no harm", [&[(10, 64)], &[(12, 64)], &[(55, 64)]]),
        ("not three times", [&[(300, 64)], &[(310, 64)], &[(800, 64)]]),
        ("two are no comparison", [&[(10, 64)], &[(10, 19)], &[(800, 64)]]),
        ("nineteen prove nothing", [&[(10, 64)], &[(12, 64)], &[(800, 19)]]),
        (
            "one in ten may be chance",
            [&[(10, 64)], &[(12, 64)], &[(10, 56), (800, 8)]],
        ),
    ];
    for (why, times) in spared {
        answers(&fleet, times);
        assert!(fleet.sweep(&settings, at(10)).verdicts.is_empty(), "{why}");
    }
    answers(&fleet, [&[(10, 64)], &[(12, 64)], &[(10, 48), (800, 16)]]);
    let report = fleet.sweep(&settings, at(10));
    let [verdict] = report.verdicts[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        verdict.finding.to_string(),
        "p90 800 ms, median of the others 11 ms (factor 3)"
    );
    assert!(matches!(
        verdict.finding,
        Finding::Latency { bound, .. } if bound == Duration::from_millis(61)
    ));
    assert_eq!(fleet.out(), [2]);
}

/// A route of which one request in twenty is slow everywhere must lose nobody, however long it is watched.
#[test]
fn what_is_slow_everywhere_now_and_then_ejects_nobody() {
    let settings = Settings {
        latency_factor: Some(2.0),
        ..Settings::default()
    };
    let mut fleet = Fleet::new(5);
    let mut dice = Dice::new(3);
    for second in 1..=1000 {
        let now = at(second * 1000);
        for host in 0..5 {
            fleet.feed(host, 0, 40, now);
            for _ in 0..40 {
                let millis = if dice.chance(0.05) {
                    900
                } else {
                    10 + dice.below(10)
                };
                fleet.recent[host].record(Duration::from_millis(u64::from(millis)), now);
            }
        }
        assert!(
            fleet.sweep(&settings, now).verdicts.is_empty(),
            "after {second} s"
        );
    }
}

#[test]
fn scenario_15_an_unwell_proxy_is_patient_and_ejects_nobody() {
    let settings = Settings::default();
    let mut fleet = Fleet::new(3);
    for _ in 0..3 {
        fleet.hosts[0]
            .0
            .record(&settings, LOCAL, Kind::Other, at(5), at(5));
    }
    assert!(
        fleet.strike(&settings, 0, Score::new(2), at(5)).is_none(),
        "six are needed"
    );
    for _ in 0..30 {
        fleet.hosts[0]
            .0
            .record(&settings, LOCAL, Kind::Other, at(6), at(6));
    }
    let verdict = fleet
        .strike(&settings, 0, Score::SUSPENDING, at(6))
        .expect("news");
    assert_eq!(verdict.ruling, Ruling::Withheld(Withheld::SelfHealth));
    assert!(fleet.out().is_empty());
    fleet.sweep(&settings, at(1000));
    assert_eq!(fleet.out(), [0], "once we are well it goes");
}

#[test]
fn observing_gives_the_same_verdicts_and_takes_nobody_out() {
    let observe = Settings {
        mode: Mode::Observe,
        ..by_share()
    };
    let mut fleet = Fleet::new(3);
    fleet.feed(1, 20, 20, at(5));
    let report = fleet.sweep(&observe, at(10));
    let [
        Verdict {
            index: 1,
            ruling: Ruling::WouldEject(ejected),
            ..
        },
    ] = report.verdicts[..]
    else {
        panic!("{report:?}");
    };
    let standing = fleet.hosts[1].1.standing(at(20));
    assert_eq!(standing, ejection::Standing::In);
    fleet.feed(1, 20, 20, at(30));
    assert_eq!(
        fleet.sweep(&observe, at(40)),
        Report::default(),
        "it is out, for show"
    );
    let after = fleet.sweep(&observe, ejected.until);
    assert_eq!(after.returned, [1]);
    assert!(after.verdicts.is_empty(), "its tally was cleared");
}

#[test]
fn a_change_of_mode_brings_back_who_was_out() {
    let mut fleet = Fleet::new(3);
    let observe = Settings {
        mode: Mode::Observe,
        ..by_share()
    };
    fleet.feed(1, 20, 20, at(5));
    fleet.sweep(&by_share(), at(10));
    assert_eq!(fleet.out(), [1]);
    assert_eq!(fleet.sweep(&observe, at(20)).returned, [1]);
    fleet.feed(1, 20, 20, at(25));
    fleet.sweep(&observe, at(30));
    assert_eq!(fleet.sweep(&by_share(), at(40)).returned, [1]);
    assert!(fleet.out().is_empty());
}

#[test]
fn a_changed_window_keeps_the_rows() {
    let settings = Settings::default();
    let tally = Tally::new(settings.window);
    for _ in 0..2 {
        tally.record(&settings, LOCAL, Kind::Other, at(1), at(1));
    }
    let shorter = Settings {
        window: Duration::from_secs(10),
        ..settings
    };
    assert!(tally.fits(&settings) && !tally.fits(&shorter));
    let tally = Tally::after(Some(&tally), &shorter);
    assert!(tally.fits(&shorter));
    assert!(tally.record(&shorter, LOCAL, Kind::Other, at(2), at(2)).is_some());
}

#[test]
fn findings_say_their_numbers() {
    let finding = Finding::Relative {
        failed: 25,
        total: 50,
        others: 0.0012,
        probability: 0.0,
    };
    assert_eq!(finding.to_string(), "25 of 50 attempts failed, elsewhere 0.12 %");
    let finding = Finding::FailureRate {
        failed: 12,
        total: 20,
        threshold: 0.5,
    };
    assert_eq!(finding.to_string(), "12 of 20 attempts failed (threshold 50 %)");
}

proptest! {
    /// Whatever endpoints do and whoever else takes them out: the cap holds and nobody ejects the last.
    #[test]
    fn the_cap_holds(
        size in 1usize..8,
        percent in 0.0f64..=1.0,
        steps in prop::collection::vec((0usize..8, 0u8..6, 0u64..3_000), 1..120),
    ) {
        let settings = Settings { max_ejection_percent: percent, min_requests: 3, ..Settings::default() };
        let mut fleet = Fleet::new(size);
        let mut now = at(1);
        for (host, what, wait) in steps {
            let host = host % size;
            now = now.plus(Duration::from_millis(wait));
            match what {
                0..=2 => {
                    for _ in 0..3 {
                        if fleet.hosts[host].0.record(&settings, LOCAL, Kind::Other, now, now).is_some() {
                            let before = fleet.out();
                            let available = fleet.members().iter().filter(|m| m.is_available()).count();
                            let verdict = fleet.strike(&settings, host, Score::WELL, now);
                            if fleet.out() != before {
                                prop_assert!(matches!(verdict.unwrap().ruling, Ruling::Ejected(_)));
                                prop_assert!(available > 1 || !fleet.available[host]);
                            }
                        }
                    }
                }
                3 => fleet.feed(host, 5, 10, now),
                4 => fleet.available[host] = !fleet.available[host],
                _ => drop(fleet.sweep(&settings, now)),
            }
            prop_assert!(fleet.out().len() <= Cap::new(size, percent).size());
        }
    }

    /// Rows are what a list says they are.
    #[test]
    fn rows_agree_with_a_list(outcomes in prop::collection::vec(0u8..6, 0..60)) {
        let settings = Settings::default();
        let tally = Tally::new(settings.window);
        let (mut gateway, mut local) = (0, 0);
        for outcome in outcomes {
            let (outcome, kind) = match outcome {
                0 => (LOCAL, Kind::Other),
                1 => (REMOTE, Kind::Gateway),
                2 => (REMOTE, Kind::ServerError),
                3 => (Outcome::Pushback(None), Kind::Gateway),
                4 => (Outcome::Ignored, Kind::Other),
                _ => (SUCCESS, Kind::Other),
            };
            match outcome {
                Outcome::Failure(Origin::Local) => local += 1,
                Outcome::Failure(Origin::Remote) if kind == Kind::Gateway => gateway += 1,
                Outcome::Ignored => {}
                _ => (gateway, local) = (0, 0),
            }
            tally.record(&settings, outcome, kind, at(1), at(1));
            prop_assert_eq!((tally.rows().gateway, tally.rows().local), (gateway, local));
        }
    }
}

#[test]
fn scenario_45_workers_count_together_and_one_of_them_is_told() {
    let settings = Settings {
        consecutive_local_errors: NonZeroU32::new(10_000),
        failure_rate: None,
        ..Settings::default()
    };
    let tally = Tally::new(settings.window);
    let told: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..5_000)
                        .filter_map(|_| tally.record(&settings, LOCAL, Kind::Other, at(1), at(1)))
                        .count()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .sum()
    });
    assert_eq!(
        (told, tally.rows().local, tally.counts(at(1)).failed),
        (1, 20_000, 20_000)
    );
}

#[test]
fn scenario_45_racing_workers_respect_the_cap() {
    let settings = Settings {
        max_ejection_percent: 1.0,
        ..Settings::default()
    };
    for round in 0..100 {
        let fleet = Fleet::new(4);
        std::thread::scope(|scope| {
            for host in 0..4 {
                let fleet = &fleet;
                scope.spawn(move || {
                    let mut dice = Dice::new(round);
                    for _ in 0..3 {
                        if fleet.hosts[host]
                            .0
                            .record(&settings, LOCAL, Kind::Other, at(5), at(5))
                            .is_some()
                        {
                            let members = fleet.members();
                            fleet
                                .referee
                                .strike(&settings, &members, host, Score::WELL, at(5), &mut dice);
                        }
                    }
                });
            }
        });
        assert_eq!(fleet.out().len(), 3, "never the last one");
    }
}
