//! Health: what active checks conclude, and when to ask next.
//!
//! One [`Checks`] per endpoint, owned by the task that asks. The first result counts at once, for nothing better is known;
//! after it a verdict changes only by results in a row: `unhealthy_threshold` failures take an endpoint out,
//! `healthy_threshold` passes bring it back, and one result to the contrary begins the row anew. A check that was
//! cancelled (a reload, a shutdown) is no result.
//!
//! *When.* The first check comes at a random point of the interval and every pause varies by 20 %, so that many proxies
//! and many endpoints are never in phase. While a row to the contrary grows the pause is [`EDGE_INTERVAL`], so that a
//! verdict changes in seconds; while an endpoint is down it is at most [`DOWN_INTERVAL`], and [`RETURN_INTERVAL`] once it
//! has passed. An endpoint that answers
//! requests need not be asked: then a check is left out, but never more than [`MAX_SKIPPED`] in a row, because an
//! application may answer what it is asked now and still say that it wants to leave.
//!
//! *The last one.* An endpoint with nobody beside it is not taken out because its checks time out: under load that turns
//! slow into dead. A refused connection or an answer that says "unfit" takes it out all the same.

use std::time::Duration;

use crate::dice::Dice;
use crate::self_health::Score;

/// When to ask and what to conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Between checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Passes in a row that bring an endpoint back; 0 counts as 1.
    pub healthy_threshold: u32,
    /// Failures in a row that take it out; 0 counts as 1.
    pub unhealthy_threshold: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }
}

impl Settings {
    /// How long a check may take, more of it while we are unwell ourselves.
    #[must_use]
    pub fn timeout(&self, score: Score) -> Duration {
        score.stretch(self.timeout)
    }

    /// When to ask for the first time.
    #[must_use]
    pub fn first_pause(&self, dice: &mut Dice) -> Duration {
        self.interval.mul_f64(dice.unit())
    }
}

/// How an endpoint is treated before its first result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// It is used.
    Up,
    /// It is not used, and has to pass as often as one that failed.
    Down,
    /// It is not used until its first check passes.
    Checking,
}

impl Initial {
    /// For an endpoint that joins: it waits for its first check if others can do the work meanwhile.
    #[must_use]
    pub const fn beside(others: Others) -> Self {
        match others {
            Others::Available => Self::Checking,
            Others::None => Self::Up,
        }
    }
}

/// Whether anybody else of the cluster could serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Somebody could.
    Available,
    /// Nobody.
    None,
}

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    /// As expected.
    Passed,
    /// Not as expected.
    Failed(Failure),
    /// By us, before there was a result.
    Cancelled,
}

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or one that broke.
    Refused,
    /// No answer in time.
    TimedOut,
    /// Another answer than expected.
    Unfit,
}

/// What a result changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The endpoint passes.
    Up,
    /// It fails.
    Down(Failure),
    /// It would fail but is the last and only slow; told once per row.
    Protected,
}

/// What is known of one endpoint; survives reloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    verdict: Verdict,
    /// Results in a row against the verdict.
    row: u32,
    /// Checks left out in a row.
    skipped: u32,
}

/// What results have shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet; the endpoint is used.
    Unknown,
    /// Nothing yet; the endpoint is not used.
    Pending,
    /// It passes.
    Up,
    /// It fails.
    Down,
}

impl Checks {
    /// Before the first result.
    #[must_use]
    pub const fn new(initial: Initial) -> Self {
        Self {
            verdict: match initial {
                Initial::Up => Verdict::Unknown,
                Initial::Down => Verdict::Down,
                Initial::Checking => Verdict::Pending,
            },
            row: 0,
            skipped: 0,
        }
    }

    /// With a verdict that was come to before, by another process for example.
    #[must_use]
    pub const fn with(verdict: Verdict) -> Self {
        Self {
            verdict,
            row: 0,
            skipped: 0,
        }
    }

    /// What results have shown.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Results in a row against the verdict.
    #[must_use]
    pub const fn row(&self) -> u32 {
        self.row
    }

    /// A check ended. Answers with what it changed, if anything.
    pub fn apply(&mut self, settings: &Settings, result: CheckResult, others: Others) -> Option<Change> {
        self.skipped = 0;
        let failure = match result {
            CheckResult::Cancelled => return None,
            CheckResult::Passed => None,
            CheckResult::Failed(failure) => Some(failure),
        };
        let needed = match (self.verdict, failure) {
            (Verdict::Up, None) | (Verdict::Down, Some(_)) => {
                self.row = 0;
                return None;
            }
            (Verdict::Unknown | Verdict::Pending, _) => 1,
            (Verdict::Up, Some(_)) => settings.unhealthy_threshold.max(1),
            (Verdict::Down, None) => settings.healthy_threshold.max(1),
        };
        self.row = self.row.saturating_add(1);
        if self.row < needed {
            return None;
        }
        // An endpoint that is not used yet has nothing to be protected from.
        let protected =
            failure == Some(Failure::TimedOut) && others == Others::None && self.verdict.is_used();
        if protected {
            return (self.row == needed).then_some(Change::Protected);
        }
        self.row = 0;
        match failure {
            None => {
                self.verdict = Verdict::Up;
                Some(Change::Up)
            }
            Some(failure) => {
                self.verdict = Verdict::Down;
                Some(Change::Down(failure))
            }
        }
    }

    /// How long to wait for the next check.
    #[must_use]
    pub fn pause(&self, settings: &Settings, dice: &mut Dice) -> Duration {
        let pause = if self.row > 0 && !self.verdict.is_used() {
            settings.interval.min(RETURN_INTERVAL)
        } else if self.row > 0 {
            settings.interval.min(EDGE_INTERVAL)
        } else if self.verdict.is_used() {
            settings.interval
        } else {
            settings.interval.min(DOWN_INTERVAL)
        };
        pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * dice.unit())
    }

    /// Whether the check that is due may be left out, when the endpoint answered requests since the last one.
    pub fn skip(&mut self, traffic: Traffic) -> bool {
        let skip = traffic == Traffic::Answered
            && self.verdict == Verdict::Up
            && self.row == 0
            && self.skipped < MAX_SKIPPED;
        self.skipped = if skip { self.skipped + 1 } else { 0 };
        skip
    }
}

/// What requests have shown in the last interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// At least one answer that was no failure.
    Answered,
    /// Nothing.
    Silent,
}

impl Verdict {
    /// Whether an endpoint is used as far as checks are concerned.
    #[must_use]
    pub const fn is_used(self) -> bool {
        match self {
            Self::Unknown | Self::Up => true,
            Self::Pending | Self::Down => false,
        }
    }
}

impl CheckResult {
    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed(Failure::Refused) => "refused",
            Self::Failed(Failure::TimedOut) => "timeout",
            Self::Failed(Failure::Unfit) => "fail",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Between checks while results speak against the verdict.
pub const EDGE_INTERVAL: Duration = Duration::from_secs(1);

/// Between checks of an endpoint that is out, at most.
pub const DOWN_INTERVAL: Duration = Duration::from_secs(1);

/// While an endpoint that is down has passed, but not often enough: it is wanted.
pub const RETURN_INTERVAL: Duration = Duration::from_millis(250);

/// Checks that may be left out in a row.
pub const MAX_SKIPPED: u32 = 5;

const JITTER: f64 = 0.2;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASS: CheckResult = CheckResult::Passed;
    const FAIL: CheckResult = CheckResult::Failed(Failure::Refused);
    const SLOW: CheckResult = CheckResult::Failed(Failure::TimedOut);

    fn up() -> Checks {
        let mut checks = Checks::new(Initial::Up);
        assert_eq!(
            checks.apply(&Settings::default(), PASS, Others::Available),
            Some(Change::Up)
        );
        checks
    }

    fn run(checks: &mut Checks, results: &[CheckResult], others: Others) -> Vec<Change> {
        results
            .iter()
            .filter_map(|&result| checks.apply(&Settings::default(), result, others))
            .collect()
    }

    #[test]
    fn scenario_19_alternating_results_never_flip() {
        for mut checks in [up(), Checks::new(Initial::Down)] {
            let before = checks.verdict();
            let alternating = [PASS, FAIL].repeat(50);
            assert_eq!(run(&mut checks, &alternating, Others::Available), []);
            assert_eq!(checks.verdict(), before);
        }
    }

    #[test]
    fn scenario_19_a_cancelled_check_counts_nothing() {
        let mut checks = up();
        let cancelled = CheckResult::Cancelled;
        assert_eq!(
            run(
                &mut checks,
                &[FAIL, FAIL, cancelled, cancelled],
                Others::Available
            ),
            []
        );
        assert_eq!(checks.row(), 2, "neither added nor forgotten");
        assert_eq!(
            run(&mut checks, &[FAIL], Others::Available),
            [Change::Down(Failure::Refused)]
        );
    }

    #[test]
    fn three_failures_take_it_out_and_two_passes_bring_it_back() {
        let mut checks = up();
        let changes = run(
            &mut checks,
            &[FAIL, FAIL, FAIL, FAIL, PASS, PASS, PASS],
            Others::Available,
        );
        assert_eq!(changes, [Change::Down(Failure::Refused), Change::Up]);
    }

    #[test]
    fn the_first_result_counts_at_once() {
        for (initial, used) in [(Initial::Up, true), (Initial::Checking, false)] {
            let mut checks = Checks::new(initial);
            assert_eq!(checks.verdict().is_used(), used);
            assert_eq!(run(&mut checks, &[PASS], Others::Available), [Change::Up]);
            let mut checks = Checks::new(initial);
            assert_eq!(
                run(&mut checks, &[FAIL], Others::Available),
                [Change::Down(Failure::Refused)]
            );
        }
        let mut checks = Checks::new(Initial::Down);
        assert_eq!(run(&mut checks, &[PASS], Others::Available), []);
        assert_eq!(run(&mut checks, &[PASS], Others::Available), [Change::Up]);
        assert_eq!(Initial::beside(Others::None), Initial::Up);
        assert_eq!(Initial::beside(Others::Available), Initial::Checking);
    }

    #[test]
    fn scenario_20_the_last_one_is_not_removed_for_being_slow() {
        let mut checks = up();
        assert_eq!(run(&mut checks, &[SLOW; 20], Others::None), [Change::Protected]);
        assert_eq!(checks.verdict(), Verdict::Up);
        assert_eq!(
            run(&mut checks, &[FAIL], Others::None),
            [Change::Down(Failure::Refused)],
            "refusing is another matter"
        );
        let mut checks = up();
        run(&mut checks, &[SLOW; 5], Others::None);
        assert_eq!(
            run(&mut checks, &[SLOW], Others::Available),
            [Change::Down(Failure::TimedOut)],
            "somebody else has come back"
        );
    }

    #[test]
    fn pauses_shrink_at_the_edge_and_while_down() {
        let settings = Settings {
            interval: Duration::from_secs(30),
            ..Settings::default()
        };
        let mut dice = Dice::new(5);
        let mut seconds = |checks: &Checks| {
            let pause = checks.pause(&settings, &mut dice).as_secs_f64();
            (pause / 1.2, pause / 0.8)
        };
        let around = |(low, high): (f64, f64), middle: f64| low <= middle && middle <= high;
        let mut checks = up();
        assert!(around(seconds(&checks), 30.0));
        run(&mut checks, &[FAIL], Others::Available);
        assert!(around(seconds(&checks), 1.0));
        run(&mut checks, &[FAIL, FAIL], Others::Available);
        assert!(around(seconds(&checks), 1.0));
        run(&mut checks, &[PASS], Others::Available);
        assert!(around(seconds(&checks), 0.25));
    }

    #[test]
    fn scenario_21_checks_of_two_hundred_endpoints_are_spread() {
        let settings = Settings::default();
        let mut per_second = [0u32; 60];
        for endpoint in 0..200 {
            let mut dice = Dice::new(endpoint);
            let checks = up();
            let mut when = settings.first_pause(&mut dice);
            while when.as_secs() < 60 {
                per_second[when.as_secs() as usize] += 1;
                when += checks.pause(&settings, &mut dice);
            }
        }
        let mean = per_second.iter().sum::<u32>() / 60;
        assert!((38..=42).contains(&mean), "{mean}");
        assert!(
            per_second.iter().all(|&n| n <= 2 * mean && n >= mean / 3),
            "{per_second:?}"
        );
    }

    #[test]
    fn scenario_21_traffic_saves_most_checks() {
        let mut checks = up();
        let mut asked = 0;
        for _ in 0..600 {
            if !checks.skip(Traffic::Answered) {
                asked += 1;
                checks.apply(&Settings::default(), PASS, Others::Available);
            }
        }
        assert_eq!(asked, 100, "five of six are left out");
    }

    #[test]
    fn no_check_is_left_out_while_there_is_doubt() {
        let mut checks = up();
        assert!(!checks.skip(Traffic::Silent));
        assert!(checks.skip(Traffic::Answered));
        run(&mut checks, &[FAIL], Others::Available);
        assert!(!checks.skip(Traffic::Answered));
        run(&mut checks, &[FAIL, FAIL], Others::Available);
        assert!(!checks.skip(Traffic::Answered));
        assert!(!Checks::new(Initial::Up).skip(Traffic::Answered));
    }

    #[test]
    fn an_unwell_proxy_waits_longer() {
        let settings = Settings::default();
        assert_eq!(settings.timeout(Score::WELL), Duration::from_secs(2));
        assert_eq!(settings.timeout(Score::SUSPENDING), Duration::from_secs(6));
    }

    proptest! {
        /// A verdict changes only at the end of a row of the length that the settings name.
        #[test]
        fn consecutive_is_really_consecutive(
            rise in 1u32..5,
            fall in 1u32..5,
            results in prop::collection::vec(0u8..3, 1..200),
        ) {
            let settings = Settings { healthy_threshold: rise, unhealthy_threshold: fall, ..Settings::default() };
            let mut checks = up();
            let (mut passes, mut failures) = (0, 0);
            for result in results {
                let result = [PASS, FAIL, CheckResult::Cancelled][usize::from(result)];
                match result {
                    CheckResult::Passed => (passes, failures) = (passes + 1, 0),
                    CheckResult::Failed(_) => (passes, failures) = (0, failures + 1),
                    CheckResult::Cancelled => {}
                }
                match checks.apply(&settings, result, Others::Available) {
                    Some(Change::Up) => prop_assert_eq!(passes, rise),
                    Some(Change::Down(_)) => prop_assert_eq!(failures, fall),
                    Some(Change::Protected) => prop_assert!(false, "there are others"),
                    None => {}
                }
            }
        }
    }
}
