//! Laws of the judges: what a real register did is never accused, what cannot be is always found, and the search agrees
//! with one that simply tries every order.

#![allow(unreachable_pub, reason = "one binary; nothing is public")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod every_order;
mod register;

use std::collections::BTreeMap;

use bellwether_checkers::{
    Applied, History, Kind, Operation, Outcome,
    history::Effect,
    linear::{self, Verdict},
    loss,
    session::{self, Guarantee, Scope},
};
use proptest::prelude::*;

use crate::register::{Dice, Run, run};

fn runs() -> impl Strategy<Value = Run> {
    (any::<u64>(), 1..9u32, 1..4u32, 1..120u32, 0..4u32).prop_map(
        |(seed, clients, keys, operations, trouble)| Run {
            seed,
            clients,
            keys,
            operations,
            trouble: f64::from(trouble) * 0.1,
        },
    )
}

/// The same history with one operation changed.
fn with(history: &History, number: usize, change: impl FnOnce(&mut Operation)) -> History {
    let mut changed = History::new();
    let mut change = Some(change);
    for (at, operation) in history.operations().iter().enumerate() {
        let mut operation = operation.clone();
        if at == number {
            change.take().unwrap()(&mut operation);
        }
        changed.push(operation).unwrap();
    }
    with_log(&changed, history.applied().iter().cloned())
}

/// The same operations with another log.
fn with_log(history: &History, log: impl IntoIterator<Item = Applied>) -> History {
    let mut changed = History::new();
    for operation in history.operations() {
        changed.push(operation.clone()).unwrap();
    }
    for applied in log {
        changed.push_applied(applied).unwrap();
    }
    changed
}

fn linear(history: &History) -> Verdict {
    linear::check(history, linear::STEPS).verdict()
}

/// One of those that meet a condition.
fn pick(history: &History, seed: u64, fits: impl Fn(usize, &Operation) -> bool) -> Option<usize> {
    let numbers: Vec<usize> = (0..history.operations().len())
        .filter(|number| fits(*number, &history.operations()[*number]))
        .collect();
    let at = Dice(seed).below(numbers.len().max(1) as u32);
    numbers.get(at as usize).copied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_a_register_did_is_never_accused(run_of in runs()) {
        let history = run(&run_of);
        let report = linear::check(&history, linear::STEPS);
        prop_assert_eq!(report.verdict(), Verdict::Linearizable, "{}", report.explain(&history));
        for scope in [Scope::Key, Scope::Group] {
            let report = session::check(&history, scope);
            prop_assert!(report.violations.is_empty(), "{}", report.explain(&history, 9));
            prop_assert!(report.unplaced.is_empty());
        }
        prop_assert!(session::bounded(&history, 0).violations.is_empty());
        prop_assert_eq!(loss::effects(&history), []);
        prop_assert_eq!(loss::against_log(&history), []);
        let mut held: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for operation in history.operations() {
            held.insert(operation.key.clone(), None);
        }
        for applied in history.applied() {
            held.insert(applied.key.clone(), Some(applied.value));
        }
        prop_assert_eq!(loss::at_end(&history, &held), []);
        prop_assert_eq!(history.to_string().parse::<History>().unwrap(), history);
    }

    /// A read is told what was overwritten before it began: by its own session or by others.
    #[test]
    fn an_older_value_than_was_acknowledged_is_always_refused(run_of in runs(), seed: u64) {
        let history = run(&run_of);
        let operations = history.operations();
        // Writes of a key that followed each other, and a read that came after both.
        let stale = |read: &Operation| {
            let after = operations.iter().enumerate().filter(|(_, newer)| {
                newer.key == read.key && newer.wrote().is_some() && newer.ret < read.call
            });
            after
                .flat_map(|(at, newer)| {
                    let before = operations.iter().filter(|older| {
                        older.key == read.key && older.wrote().is_some() && older.ret < newer.call
                    });
                    before.map(move |older| (at, older.wrote()))
                })
                .max()
        };
        let reads = |_: usize, read: &Operation| matches!(read.outcome, Outcome::Saw(_)) && stale(read).is_some();
        let Some(read) = pick(&history, seed, reads) else {
            return Ok(());
        };
        let (newer, older) = stale(&operations[read]).unwrap();
        let session = operations[newer].session;
        let told = with(&history, read, |read| {
            read.outcome = Outcome::Saw(older);
            read.session = session;
        });
        let report = linear::check(&told, linear::STEPS);
        prop_assert_eq!(report.verdict(), Verdict::Violated);
        let window = &report.violations[0].window;
        prop_assert!(window.contains(&read), "{}", report.explain(&told));
        let broken = session::check(&told, Scope::Key);
        prop_assert!(broken.broken(Guarantee::ReadYourWrites) > 0);
        prop_assert!(broken.violations.iter().all(|v| v.later == read || v.earlier == read));
        prop_assert!(session::bounded(&told, 0).broken(Guarantee::BoundedStaleness) > 0);
        let long = told.operations()[read].call;
        prop_assert!(session::bounded(&told, long).violations.is_empty());
    }

    #[test]
    fn a_value_of_the_future_or_of_nobody_is_always_refused(run_of in runs(), seed: u64) {
        let history = run(&run_of);
        let operations = history.operations();
        let Some(read) = pick(&history, seed, |_, read| matches!(read.outcome, Outcome::Saw(_))) else {
            return Ok(());
        };
        let told = with(&history, read, |read| read.outcome = Outcome::Saw(Some(u64::MAX)));
        prop_assert_eq!(linear(&told), Verdict::Violated);
        prop_assert_eq!(loss::effects(&told), [loss::Anomaly::Invented { by: read }]);
        prop_assert_eq!(session::check(&told, Scope::Key).unplaced, [read]);
        let future = pick(&history, seed, |_, write| {
            write.key == operations[read].key
                && write.kind.writes().is_some()
                && write.outcome != Outcome::CasFailed
                && write.outcome.effect() != Effect::Excluded
                && operations[read].ret < write.call
        });
        let Some(write) = future else { return Ok(()) };
        let told = with(&history, read, |read| read.outcome = Outcome::Saw(operations[write].kind.writes()));
        prop_assert_eq!(linear(&told), Verdict::Violated);
        prop_assert_eq!(loss::effects(&told), [loss::Anomaly::SeenBeforeCall { write, by: read }]);
    }

    #[test]
    fn a_second_success_on_the_same_value_is_always_refused(run_of in runs(), seed: u64) {
        let history = run(&run_of);
        let operations = history.operations();
        let Some(first) = pick(&history, seed, |_, cas| cas.saw().is_some() && cas.wrote().is_some()) else {
            return Ok(());
        };
        let failed = pick(&history, seed, |_, cas| {
            cas.key == operations[first].key && cas.outcome == Outcome::CasFailed
        });
        let Some(second) = failed else { return Ok(()) };
        let told = with(&history, second, |second| {
            let new = second.kind.writes().unwrap();
            second.kind = Kind::Cas { expected: operations[first].saw().unwrap(), new };
            second.outcome = Outcome::Done;
        });
        prop_assert_eq!(linear(&told), Verdict::Violated);
    }

    /// The log does not have what was acknowledged, has it twice, or has what was excluded.
    #[test]
    fn a_log_that_does_not_fit_is_always_refused(run_of in runs(), seed: u64) {
        let history = run(&run_of);
        let applied = history.applied();
        let writer = |entry: &Applied| {
            let wrote = |op: &Operation| op.key == entry.key && op.kind.writes() == Some(entry.value);
            history.operations().iter().position(wrote).unwrap()
        };
        if applied.is_empty() {
            return Ok(());
        }
        let at = Dice(seed).below(applied.len() as u32) as usize;
        let (entry, write) = (&applied[at], writer(&applied[at]));
        let known = history.operations()[write].outcome == Outcome::Done;

        let mut log = applied.to_vec();
        log.remove(at);
        let lost = if known { vec![loss::Anomaly::Lost { write }] } else { vec![] };
        prop_assert_eq!(loss::against_log(&with_log(&history, log)), lost);

        let again = applied.last().unwrap().position + 1;
        let twice = Applied { position: again, ..entry.clone() };
        let log = applied.iter().cloned().chain([twice]);
        let first = entry.position;
        prop_assert_eq!(
            loss::against_log(&with_log(&history, log)),
            [loss::Anomaly::AppliedTwice { write, first, again }]
        );

        let denied = with(&history, write, |write| write.outcome = Outcome::NotExecuted);
        prop_assert_eq!(
            loss::against_log(&denied),
            [loss::Anomaly::ExcludedYetApplied { write, position: entry.position }]
        );
    }

    /// Two acknowledged writes that followed each other were applied the other way round.
    #[test]
    fn writes_out_of_order_are_always_refused(run_of in runs(), seed: u64) {
        let history = run(&run_of);
        let operations = history.operations();
        let next = |first: &Operation| {
            operations.iter().position(|next| {
                next.session == first.session
                    && next.key == first.key
                    && next.wrote().is_some()
                    && first.ret < next.call
            })
        };
        let Some(first) = pick(&history, seed, |_, op| op.wrote().is_some() && next(op).is_some()) else {
            return Ok(());
        };
        let second = next(&operations[first]).unwrap();
        let (one, two) = (operations[first].wrote().unwrap(), operations[second].wrote().unwrap());
        let log = history.applied().iter().map(|entry| {
            let same = entry.key == operations[first].key;
            let value = match entry.value {
                value if same && value == one => two,
                value if same && value == two => one,
                value => value,
            };
            Applied { value, ..entry.clone() }
        });
        let told = with_log(&history, log);
        for scope in [Scope::Key, Scope::Group] {
            let broken = session::check(&told, scope).broken(Guarantee::MonotonicWrites);
            prop_assert!(broken > 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Few operations, few values, all outcomes: whatever the shortcuts of the search assume is met here.
    #[test]
    fn the_search_agrees_with_one_that_tries_every_order(seed: u64, values in 2..5u32, unique: bool) {
        let history = every_order::random(seed, values, unique);
        let report = linear::check(&history, linear::STEPS);
        let expected = if every_order::exists(&history, &(0..history.operations().len()).collect::<Vec<_>>()) {
            Verdict::Linearizable
        } else {
            Verdict::Violated
        };
        prop_assert_eq!(report.verdict(), expected, "{}\n{}", history, report.explain(&history));
        if let Some(violation) = report.violations.first() {
            // The proof is one: those operations alone have no order either.
            prop_assert!(!every_order::exists(&history, &violation.window), "{}", report.explain(&history));
        }
    }
}

#[test]
fn both_verdicts_are_common_among_the_small_ones() {
    let good = (0..2_000)
        .filter(|seed| {
            let history = every_order::random(*seed, 3, seed % 2 == 0);
            linear(&history) == Verdict::Linearizable
        })
        .count();
    assert!((400..1_600).contains(&good), "{good} of 2000 are linearizable");
}

/// The size that proofs on real systems have. Steps are counted, not seconds.
#[test]
fn twenty_thousand_operations_of_sixteen_clients_are_decided_within_the_budget() {
    for (seed, keys) in [(1, 20), (2, 20), (3, 4)] {
        let history = run(&Run {
            seed,
            clients: 16,
            keys,
            operations: 20_000,
            trouble: 0.1,
        });
        let report = linear::check(&history, linear::STEPS);
        assert_eq!(report.verdict(), Verdict::Linearizable, "{report}");
        assert!(report.steps < 20_000_000, "{report}");

        // A read in the middle is told what an older one was told before.
        let operations = history.operations();
        let reads = |op: &Operation| op.key == "k1" && matches!(op.outcome, Outcome::Saw(Some(_)));
        let reads: Vec<usize> = (0..operations.len())
            .filter(|at| reads(&operations[*at]))
            .collect();
        let (older, stale) = (reads[reads.len() / 2], reads[reads.len() / 2 + 20]);
        let told = with(&history, stale, |read| read.outcome = operations[older].outcome);
        let report = linear::check(&told, linear::STEPS);
        assert_eq!(report.verdict(), Verdict::Violated, "{report}");
        assert!(
            report.violations[0].window.len() <= 4,
            "{}",
            report.explain(&told)
        );
    }
}
