//! The simulator: the real policies in a world that goes wrong, from one number.
//!
//! A seed decides everything: how the proxy is configured, which servers there are and how fast, who comes and when, and
//! what goes wrong at which moment. For a few virtual minutes a nemesis breaks things: servers fail, hang, refuse, flap,
//! reset, answer checks while they fail requests, restart, leave, come back, alone or together; operators drain and order;
//! beats get lost; the proxy itself is starved. Then everything is mended, and after the time that the settings promise
//! nothing may be left of it. What must hold meanwhile is written in `invariants` and at the end of `proxy`.
//!
//! A run that breaks an invariant prints its seed, the invariant and the last things that happened. That seed again:
//!
//! ```text
//! BELLWETHER_SEED=17 cargo test -p bellwether-core --test simulation replay -- --nocapture
//! BELLWETHER_SEEDS=10000 cargo test -p bellwether-core --test simulation
//! ```

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what went wrong by failing"
)]
#![allow(unreachable_pub, reason = "one binary; nothing is public")]
#![cfg(not(loom))]

mod client;
mod invariants;
mod nemesis;
mod proxy;
mod settings;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bellwether_core::Dice;

use crate::proxy::{Scores, Sim};

/// Seeds of an ordinary run; `BELLWETHER_SEEDS` says another number.
const SEEDS: u64 = 2_000;
/// Tests that share them, so that a runner can run some at a time.
const PARTS: u64 = 8;
/// Notes that are printed of a run that failed; all of them when it is replayed.
const TAIL: usize = 60;

/// What equal seeds must agree on: everything that happened, and what came of it.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    fingerprint: (u64, u64),
    scores: Scores,
    gentle: bool,
    losses: u32,
}

fn run(seed: u64, tail: usize) -> Result<Outcome, String> {
    let mut sim = nemesis::world(&mut Dice::new(seed), tail);
    let result = catch_unwind(AssertUnwindSafe(|| nemesis::run(&mut sim)));
    match result {
        Ok(()) => Ok(Outcome {
            fingerprint: sim.trace.get_mut().fingerprint(),
            scores: sim.tally,
            gentle: sim.settings.gentle,
            losses: sim.gentle_losses,
        }),
        Err(cause) => Err(failure(seed, &sim, &*cause)),
    }
}

fn failure(seed: u64, sim: &Sim, cause: &(dyn std::any::Any + Send)) -> String {
    let what = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("a panic");
    let trace = sim.trace.try_borrow().map_or_else(
        |_| String::from("(the trace is being written)"),
        |t| t.to_string(),
    );
    format!(
        "\n{trace}\nat {:.6} s of a run with {:#?}\n\nseed {seed}: {what}\n\nonce more: BELLWETHER_SEED={seed} cargo test \
         -p bellwether-core --test simulation replay -- --nocapture\n",
        sim.now.as_nanos() as f64 / 1e9,
        sim.settings,
    )
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

fn part(part: u64) {
    for seed in (part..number("BELLWETHER_SEEDS").unwrap_or(SEEDS)).step_by(PARTS as usize) {
        if let Err(report) = run(seed, TAIL) {
            panic!("{report}");
        }
    }
}

macro_rules! parts {
    ($($name:ident $part:literal)*) => {
        $(#[test] fn $name() { part($part); })*
    };
}

parts! {
    seeds_0_of_8 0
    seeds_1_of_8 1
    seeds_2_of_8 2
    seeds_3_of_8 3
    seeds_4_of_8 4
    seeds_5_of_8 5
    seeds_6_of_8 6
    seeds_7_of_8 7
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 0..100 {
        let (first, again) = (run(seed, TAIL), run(seed, TAIL));
        assert_eq!(first, again, "seed {seed}");
    }
    let fingerprint = |seed| run(seed, TAIL).map(|outcome| outcome.fingerprint);
    assert_ne!(fingerprint(1), fingerprint(2));
}

/// A simulator in which nothing happens proves nothing.
#[test]
fn the_worlds_are_eventful() {
    let mut sum = Scores::default();
    let (mut gentle, mut losses) = (0, 0);
    for outcome in (0..200).filter_map(|seed| run(seed, TAIL).ok()) {
        let scores = outcome.scores;
        sum.requests += scores.requests;
        sum.failed += scores.failed;
        sum.retries += scores.retries;
        sum.ejections += scores.ejections;
        sum.openings += scores.openings;
        sum.probes += scores.probes;
        sum.panics += scores.panics;
        sum.hedges += scores.hedges;
        sum.vetoed += scores.vetoed;
        sum.kept += scores.kept;
        gentle += u32::from(outcome.gentle);
        losses += outcome.losses;
    }
    println!("{sum:?}, {gentle} gentle worlds lost {losses} GETs to their budgets");
    assert!(
        sum.requests > 100_000 && sum.failed > 1_000 && sum.retries > 1_000,
        "{sum:?}"
    );
    assert!(sum.ejections > 200 && sum.openings > 100, "{sum:?}");
    assert!(sum.probes > 200 && sum.panics > 50, "{sum:?}");
    assert!(sum.hedges > 100 && sum.vetoed > 100 && sum.kept > 50, "{sum:?}");
    assert!(gentle > 30, "{gentle}");
}

/// The run of `BELLWETHER_SEED`, with everything that happened.
#[test]
fn replay() {
    let Some(seed) = number("BELLWETHER_SEED") else {
        return;
    };
    match run(seed, usize::MAX) {
        Ok(outcome) => println!("seed {seed}: {outcome:?}"),
        Err(report) => panic!("{report}"),
    }
}
