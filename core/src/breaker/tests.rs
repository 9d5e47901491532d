//! Breakers: each rule, the scenarios by number, any sequence of calls, and threads.

use proptest::prelude::*;

use super::*;
use crate::outcome::Origin;

const FAILURE: Outcome = Outcome::Failure(Origin::Remote);

fn at(millis: u64) -> Moment {
    Moment::ZERO.plus(Duration::from_millis(millis))
}

/// A breaker, its settings, a clock and dice, and everything that happened.
struct World {
    breaker: Arc<Breaker>,
    settings: Settings,
    now: u64,
    dice: Dice,
    log: Vec<(State, State, Cause)>,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            breaker: Arc::new(Breaker::new(settings.window)),
            settings,
            now: 1_000,
            dice: Dice::new(7),
            log: Vec::new(),
        }
    }

    fn note(&mut self, change: Option<Transition>) {
        if let Some(change) = change {
            assert_ne!(
                (change.from, change.to),
                (State::Closed, State::Closed),
                "a transition leads somewhere"
            );
            self.log.push((change.from, change.to, change.cause));
        }
    }

    fn admit(&mut self) -> Result<Permit, Refused> {
        let admission = self.breaker.admit(&self.settings, at(self.now), &mut self.dice);
        self.note(admission.change);
        admission.verdict
    }

    fn end(&mut self, permit: Permit, outcome: Outcome) {
        let change = self
            .breaker
            .record(&self.settings, permit, outcome, at(self.now), &mut self.dice);
        self.note(change);
    }

    fn call(&mut self, outcome: Outcome) -> bool {
        match self.admit() {
            Ok(permit) => {
                self.end(permit, outcome);
                true
            }
            Err(_) => false,
        }
    }

    fn calls(&mut self, n: usize, outcome: Outcome) -> usize {
        (0..n).filter(|_| self.call(outcome)).count()
    }

    fn wait(&mut self, millis: u64) {
        self.now += millis;
    }

    fn tick(&mut self) {
        let change = self.breaker.tick(&self.settings, at(self.now), &mut self.dice);
        self.note(change);
    }

    fn state(&self) -> State {
        self.breaker.state()
    }

    fn report(&self) -> Report {
        self.breaker.report(&self.settings, at(self.now))
    }

    /// Waits until an open breaker is due, and no longer.
    fn wait_until_due(&mut self) {
        self.now = self.report().until.as_nanos() / 1_000_000 + 1;
    }

    fn open(mut self) -> Self {
        self.calls(20, FAILURE);
        assert_eq!(self.state(), State::Open);
        self
    }
}

#[test]
fn half_of_twenty_calls_failing_opens_it_and_three_probes_close_it_by_a_ramp() {
    let mut world = World::new(Settings::default());
    world.calls(10, Outcome::Success);
    assert_eq!(world.calls(9, FAILURE), 9);
    assert_eq!(
        world.state(),
        State::Closed,
        "nineteen calls are too few to judge"
    );
    world.call(FAILURE);
    assert_eq!(world.state(), State::Open);
    let refused = world.admit().expect_err("open");
    assert!(
        refused.retry_after >= Duration::from_secs(5) && refused.retry_after <= Duration::from_millis(7_500)
    );

    world.wait_until_due();
    assert_eq!(world.calls(3, Outcome::Success), 3);
    assert_eq!(world.state(), State::Recovering);
    world.wait(5_000);
    let passed = world.calls(1_000, Outcome::Success);
    assert!(
        (480..620).contains(&passed),
        "about 55 % in the middle of the ramp, not {passed}"
    );
    world.wait(5_000);
    world.call(Outcome::Success);
    assert_eq!(world.state(), State::Closed);
    assert_eq!(
        world
            .log
            .iter()
            .map(|(_, to, cause)| (*to, *cause))
            .collect::<Vec<_>>(),
        [
            (State::Open, Cause::FailureRate),
            (State::HalfOpen, Cause::OpenOver),
            (State::Recovering, Cause::ProbesPassed),
            (State::Closed, Cause::RampDone)
        ]
    );
}

#[test]
fn the_ramp_does_not_end_without_a_success() {
    let mut world = World::new(Settings::default()).open();
    world.wait_until_due();
    world.calls(3, Outcome::Success);
    world.wait(60_000);
    world.tick();
    assert_eq!(world.state(), State::Recovering);
    world.call(Outcome::Success);
    assert_eq!(world.state(), State::Closed);
}

#[test]
fn failures_during_the_ramp_open_it_again_after_half_the_calls() {
    let mut world = World::new(Settings::default()).open();
    world.wait_until_due();
    world.calls(3, Outcome::Success);
    world.wait(9_900);
    world.calls(20, FAILURE);
    assert_eq!(world.state(), State::Open);
    assert_eq!(world.report().openings, 2);
}

proptest! {
    #[test]
    fn scenario_01_a_half_open_breaker_never_keeps_a_place(steps in prop::collection::vec((0u8..9, 0u64..40_000), 1..120)) {
        let mut world = World::new(Settings::default()).open();
        world.wait_until_due();
        let mut held = Vec::new();
        let mut half_open_since = None;
        for (step, wait) in steps {
            match step {
                0..=2 => if let Ok(permit) = world.admit() { held.push(permit); },
                3 => if let Some(permit) = held.pop() { world.end(permit, Outcome::Success); },
                4 => if let Some(permit) = held.pop() { world.end(permit, FAILURE); },
                5 => if let Some(permit) = held.pop() { world.end(permit, Outcome::Ignored); },
                6 => drop(held.pop()),
                7 => if let Some(permit) = held.pop() {
                    // A handler that panics.
                    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                        let _permit = permit;
                        std::panic::resume_unwind(Box::new(()));
                    }));
                    prop_assert!(caught.is_err());
                },
                _ => { world.wait(wait); world.tick(); }
            }
            let report = world.report();
            prop_assert!(report.probes <= 1);
            match (report.state, half_open_since) {
                (State::HalfOpen, None) => half_open_since = Some(world.now),
                (State::HalfOpen, Some(_)) if world.log.last().is_some_and(|(from, _, _)| *from == State::HalfOpen) => {
                    // Entered anew because nobody came.
                    half_open_since = Some(world.now);
                    world.log.push((State::Closed, State::Open, Cause::Operator));
                }
                (State::HalfOpen, Some(since)) => prop_assert!(world.now - since <= 60_000 + 40_000),
                _ => half_open_since = None,
            }
        }
        held.clear();
        prop_assert_eq!(world.report().probes, 0);
        // Whatever happened, it can be brought back.
        for _ in 0..200 {
            world.wait(1_000);
            world.tick();
            world.call(Outcome::Success);
        }
        prop_assert_eq!(world.state(), State::Closed);
    }

    #[test]
    fn nothing_opens_on_successes(n in 1usize..300) {
        let mut world = World::new(Settings { slow_rate: Some(0.5), consecutive: Some(1), min_requests: 1, ..Settings::default() });
        prop_assert_eq!(world.calls(n, Outcome::Success), n);
        prop_assert!(world.log.is_empty());
    }
}

#[test]
fn scenario_02_a_call_from_before_decides_nothing() {
    let mut world = World::new(Settings::default());
    let early = world.admit().expect("closed");
    let another = world.admit().expect("closed");
    world.calls(20, FAILURE);
    world.wait_until_due();
    let probe = world.admit().expect("a probe");
    assert!(probe.is_probe());
    world.end(early, FAILURE);
    assert_eq!(
        world.state(),
        State::HalfOpen,
        "a late failure does not fail the probe"
    );
    world.end(another, Outcome::Success);
    world.end(probe, Outcome::Success);
    assert_eq!(
        world.report().state,
        State::HalfOpen,
        "a late success is no probe that passed"
    );
    world.calls(2, Outcome::Success);
    assert_eq!(world.state(), State::Recovering);
}

#[test]
fn scenario_03_half_open_admits_one_at_a_time_and_three_in_all() {
    let mut world = World::new(Settings::default()).open();
    world.wait_until_due();
    let mut admitted = 0;
    for _ in 0..3 {
        let held: Vec<_> = (0..1_000).filter_map(|_| world.admit().ok()).collect();
        assert_eq!(held.len(), 1);
        for probe in held {
            admitted += 1;
            world.end(probe, Outcome::Success);
        }
    }
    assert_eq!(admitted, 3);
    assert_eq!(world.state(), State::Recovering);
}

#[test]
fn scenario_05_fifty_breakers_do_not_probe_in_step() {
    let mut due = Vec::new();
    for seed in 0..50 {
        let mut world = World::new(Settings::default());
        world.dice = Dice::new(seed);
        due.push(world.open().report().until);
    }
    let first = due.iter().min().expect("fifty");
    let last = due.iter().max().expect("fifty");
    assert!(
        last.since(*first) >= Duration::from_millis(2_000),
        "spread over most of jitter x base"
    );
}

#[test]
fn scenario_06_a_rate_needs_a_volume_and_a_row_does_not() {
    let mut world = World::new(Settings::default());
    world.calls(19, FAILURE);
    assert_eq!(world.state(), State::Closed);
    let mut world = World::new(Settings {
        consecutive: Some(5),
        ..Settings::default()
    });
    world.calls(4, FAILURE);
    world.call(Outcome::Success);
    world.calls(4, FAILURE);
    assert_eq!(world.state(), State::Closed, "a success ends the row");
    world.call(FAILURE);
    assert_eq!(world.state(), State::Open);
    assert_eq!(world.log.last().expect("opened").2, Cause::Consecutive);
}

#[test]
fn scenario_09_a_failed_probe_starts_afresh_and_opens_for_longer() {
    let mut world = World::new(Settings::default()).open();
    let mut lengths = Vec::new();
    for _ in 0..5 {
        lengths.push(world.report().until.since(at(world.now)));
        world.wait_until_due();
        assert!(world.call(FAILURE), "the probe");
        assert_eq!(world.state(), State::Open);
        assert_eq!(world.report().counts, Counts::default(), "the window is empty");
    }
    for (n, length) in lengths.iter().enumerate() {
        let base = Duration::from_secs(5 << n);
        let most = base.mul_f64(1.5).min(Duration::from_secs(60));
        assert!(
            *length >= base.min(most.mul_f64(0.75)) && *length <= most,
            "{n}: {length:?}"
        );
    }
    // Twenty calm minutes forget two of the openings.
    world.wait_until_due();
    world.calls(3, Outcome::Success);
    world.wait(10_000);
    while world.state() != State::Closed {
        world.call(Outcome::Success);
    }
    let before = world.report().openings;
    world.wait(1_200_000);
    world.calls(20, FAILURE);
    assert_eq!(world.report().openings, before - 2 + 1);
}

#[test]
fn scenario_10_a_probe_that_is_told_to_wait_opens_it_for_so_long_within_the_cap() {
    for (hint, least, most) in [(20, 20, 20), (300, 60, 60), (1, 10, 15)] {
        let mut world = World::new(Settings::default()).open();
        world.wait_until_due();
        let probe = world.admit().expect("a probe");
        world.end(probe, Outcome::Pushback(Some(Duration::from_secs(hint))));
        let length = world.report().until.since(at(world.now));
        assert!(
            length >= Duration::from_secs(least.min(hint.max(least))),
            "{hint}: {length:?}"
        );
        assert!(length <= Duration::from_secs(most), "{hint}: {length:?}");
    }
}

#[test]
fn scenario_11_orders_end_by_themselves() {
    let mut world = World::new(Settings::default());
    let until = at(world.now + 30_000);
    let change = world.breaker.force(Force::Open, until, at(world.now));
    assert_eq!(change.expect("a change").to, State::ForcedOpen);
    assert!(!world.call(Outcome::Success));
    world.wait(30_000);
    assert!(world.call(Outcome::Success));
    assert_eq!(world.state(), State::Closed);

    let until = at(world.now + 30_000);
    world.breaker.force(Force::Closed, until, at(world.now));
    assert_eq!(world.calls(100, FAILURE), 100, "it lets everything pass");
    assert_eq!(world.report().counts.failed, 100, "and counts");
    world.wait(30_000);
    world.tick();
    assert_eq!(world.state(), State::Closed);
}

#[test]
fn scenario_11_an_observing_breaker_goes_through_its_states_and_refuses_nothing() {
    let mut acting = World::new(Settings::default());
    let mut watching = World::new(Settings {
        mode: Mode::Observe,
        ..Settings::default()
    });
    for world in [&mut acting, &mut watching] {
        world.calls(20, FAILURE);
        assert_eq!(world.state(), State::Open);
    }
    assert_eq!(acting.calls(10, Outcome::Success), 0);
    let shadow = watching.admit().expect("observing");
    assert!(shadow.is_shadow(), "would have been refused");
    watching.end(shadow, Outcome::Success);
    assert_eq!(
        watching.state(),
        State::Open,
        "what would not have happened decides nothing"
    );
    watching.wait_until_due();
    assert_eq!(watching.calls(3, Outcome::Success), 3);
    assert_eq!(watching.state(), State::Recovering);
}

#[test]
fn a_probe_without_an_answer_fails_and_frees_its_place() {
    let mut world = World::new(Settings::default()).open();
    world.wait_until_due();
    let stuck = world.admit().expect("a probe");
    world.wait(30_000);
    assert!(world.admit().is_err());
    assert_eq!(world.state(), State::Open, "it counts as failed");
    world.wait_until_due();
    let next = world.admit().expect("the place is free");
    world.end(stuck, Outcome::Success);
    assert_eq!(
        world.report().probes,
        1,
        "the late one does not give back another's place"
    );
    world.end(next, Outcome::Success);
    assert_eq!(world.report().probes, 0);
}

#[test]
fn who_can_choose_sees_beforehand_what_a_call_would_meet() {
    let settings = Settings {
        ramp: None,
        ..Settings::default()
    };
    let mut world = World::new(settings.clone());
    let passage = |world: &World| world.breaker.passage(&world.settings, at(world.now));
    assert_eq!(passage(&world), Passage::Free);
    world = world.open();
    assert!(matches!(passage(&world), Passage::Shut(left) if left > Duration::ZERO));
    assert!(world.admit().is_err());
    world.wait_until_due();
    for _ in 0..settings.probes {
        assert_eq!(passage(&world), Passage::Due, "a probe is wanted");
        let probe = world.admit().unwrap();
        assert!(probe.is_probe());
        assert_eq!(passage(&world), Passage::Shut(Duration::ZERO), "one at a time");
        world.end(probe, Outcome::Success);
    }
    assert_eq!(passage(&world), Passage::Free);

    world = world.open();
    world.wait_until_due();
    let stuck = world.admit().unwrap();
    world.wait(settings.probe_timeout.as_millis() as u64);
    assert_eq!(
        passage(&world),
        Passage::Due,
        "a probe that never ends hides nothing"
    );
    drop(stuck);

    let mut observed = World::new(Settings {
        mode: Mode::Observe,
        ..settings
    })
    .open();
    assert_eq!(passage(&observed), Passage::Free, "an observer keeps nobody away");
    let change = observed
        .breaker
        .force(Force::Open, at(observed.now + 1_000), at(observed.now));
    observed.note(change);
    assert!(matches!(passage(&observed), Passage::Shut(_)), "an operator does");
}

#[test]
fn few_calls_close_it_too() {
    let mut world = World::new(Settings::default()).open();
    world.wait_until_due();
    assert!(world.call(Outcome::Success));
    world.wait(61_000);
    world.tick();
    assert_eq!(
        world.state(),
        State::Recovering,
        "one probe in a minute, and it went well"
    );
}

#[test]
fn what_is_saved_is_restored() {
    let world = World::new(Settings::default()).open();
    let left = world.report().until.since(at(world.now));
    let other = Breaker::restored(&world.breaker.save(at(world.now)), at(5));
    let report = other.report(&world.settings, at(5));
    assert_eq!(
        (
            report.state,
            report.until.since(at(5)),
            report.openings,
            report.cause
        ),
        (State::Open, left, 1, Some(Cause::FailureRate))
    );
}

#[test]
fn orders_and_ramps_are_restored_with_what_is_left_of_them() {
    let mut world = World::new(Settings::default());
    for force in [Force::Open, Force::Closed] {
        world.breaker.force(force, at(world.now + 30_000), at(world.now));
        world.wait(10_000);
        let other = Breaker::restored(&world.breaker.save(at(world.now)), at(7_000));
        assert_eq!(other.state(), world.state());
        assert_eq!(other.report(&world.settings, at(7_000)).until, at(27_000));
        world.breaker.reset(at(world.now));
    }
    let mut world = world.open();
    world.wait_until_due();
    world.calls(3, Outcome::Success);
    assert_eq!(world.state(), State::Recovering);
    world.wait(5_000);
    let (now, there) = (at(world.now), at(500_000));
    let other = Breaker::restored(&world.breaker.save(now), there);
    assert_eq!(
        other.report(&world.settings, there).share,
        world.report().share,
        "half of the ramp is done"
    );
}

proptest! {
    /// Whatever happened before, the restored breaker answers every further call as the saved one does.
    #[test]
    fn a_restored_breaker_behaves_as_the_saved_one(
        before in prop::collection::vec((0u8..6, 0u64..9_000), 0..80),
        after in prop::collection::vec((0u8..6, 0u64..9_000), 1..80),
        seed: u64,
    ) {
        const SHIFT: u64 = 7_200_000;
        let settings = Settings { min_requests: 4, consecutive: Some(6), ..Settings::default() };
        let step = |world: &mut World, kind: u8, wait: u64| {
            world.wait(wait);
            match kind {
                0 => world.tick(),
                1 => drop(world.breaker.force(Force::Open, at(world.now + 20_000), at(world.now))),
                2 | 3 => drop(world.call(FAILURE)),
                _ => drop(world.call(Outcome::Success)),
            }
        };
        let mut saved = World::new(settings.clone());
        saved.dice = Dice::new(seed);
        // An order now and then.
        for (kind, wait) in before {
            step(&mut saved, if kind == 1 && wait > 1_000 { 5 } else { kind }, wait);
        }
        let mut restored = World::new(settings);
        restored.now = saved.now + SHIFT;
        restored.breaker = Arc::new(Breaker::restored(&saved.breaker.save(at(saved.now)), at(restored.now)));
        saved.dice = Dice::new(seed ^ 1);
        restored.dice = Dice::new(seed ^ 1);
        saved.log.clear();
        for (kind, wait) in after {
            step(&mut saved, kind, wait);
            step(&mut restored, kind, wait);
            prop_assert_eq!(&saved.log, &restored.log);
            let (a, b) = (saved.report(), restored.report());
            let shifted = if a.until == Moment::FAR_FUTURE { a.until } else { a.until.plus(Duration::from_millis(SHIFT)) };
            prop_assert_eq!(shifted, b.until);
            prop_assert_eq!(Report { until: b.until, ..a }, b);
        }
    }

    /// Whatever is restored, the breaker is one that lets calls pass in the end.
    #[test]
    fn a_breaker_restored_from_anything_does_not_wedge(
        (state, left, elapsed) in (0usize..6, any::<Option<u64>>(), any::<u64>()),
        (openings, consecutive, passed, ramp_success) in any::<(u32, u32, u32, bool)>(),
        (length, periods) in (any::<u64>(), prop::collection::vec(any::<[u32; 4]>(), 0..20)),
        now in 0u64..u64::MAX / 4,
    ) {
        let saved = Saved {
            state: State::ALL[state],
            cause: Some(Cause::Operator),
            left: left.map(Duration::from_nanos),
            elapsed: Duration::from_nanos(elapsed),
            openings,
            consecutive,
            passed,
            ramp_success,
            window: window::Saved { length: Duration::from_nanos(length), periods },
        };
        let mut world = World::new(Settings::default());
        world.now = now / 1_000_000;
        world.breaker = Arc::new(Breaker::restored(&saved, at(world.now)));
        for _ in 0..3 {
            world.call(FAILURE);
            world.tick();
        }
        world.wait(86_400_000);
        for _ in 0..200 {
            world.wait(61_000);
            world.call(Outcome::Success);
        }
        prop_assert_eq!(world.state(), State::Closed);
        prop_assert!(world.call(Outcome::Success));
    }
}

#[test]
fn another_window_keeps_the_state() {
    let world = World::new(Settings::default()).open();
    assert!(world.breaker.fits(&world.settings));
    let wider = Settings {
        window: Duration::from_secs(30),
        ..Settings::default()
    };
    assert!(!world.breaker.fits(&wider));
    let other = Breaker::after(Some(&*world.breaker), &wider, at(world.now));
    assert_eq!(other.state(), State::Open);
    assert_eq!(other.report(&wider, at(world.now)).until, world.report().until);

    let orders = World::new(Settings::default());
    orders.breaker.force(Force::Open, at(9_000), at(orders.now));
    let other = Breaker::after(Some(&*orders.breaker), &wider, at(orders.now));
    assert_eq!(other.state(), State::ForcedOpen, "an operator's order too");
    assert!(other.fits(&wider));
}

#[test]
fn an_invitation_lets_a_probe_pass_at_once() {
    let mut world = World::new(Settings::default()).open();
    assert!(!world.call(Outcome::Success));
    let change = world.breaker.invite(at(world.now));
    world.note(change);
    assert!(world.call(Outcome::Success));
    assert_eq!(world.state(), State::HalfOpen);
}

#[test]
fn scenario_45_threads_leave_nothing_behind() {
    let settings = Settings {
        open: Duration::from_nanos(50),
        max_open: Duration::from_nanos(50),
        ramp: None,
        ..Settings::default()
    };
    let breaker = Arc::new(Breaker::new(settings.window));
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let (breaker, settings) = (&breaker, &settings);
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for step in 0..20_000u64 {
                    let now = Moment::from_nanos(step * 10);
                    if let Ok(permit) = breaker.admit(settings, now, &mut dice).verdict {
                        match dice.below(4) {
                            0 => drop(permit),
                            1 => drop(breaker.record(settings, permit, FAILURE, now, &mut dice)),
                            _ => drop(breaker.record(settings, permit, Outcome::Success, now, &mut dice)),
                        }
                    }
                    assert!(breaker.report(settings, now).probes <= 1);
                }
            });
        }
    });
    assert_eq!(breaker.report(&settings, Moment::from_nanos(1)).probes, 0);
}
