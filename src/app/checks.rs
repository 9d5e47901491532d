//! Active checks as tasks: one per endpoint, on the control runtime.
//!
//! When to ask and what results mean is [`bellwether_core::health`]'s; how one question is put is `cluster/probe`'s. Here
//! time passes and results become opinions. What is known of an endpoint lies with the endpoint, so a reload that changes
//! how it is asked begins with the verdict that there was; a check that a reload cuts short counts for nothing.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::arbiter::{Opinion, Source};
use bellwether_core::health::{Change, CheckResult, Checks, Failure, Initial, Others, Traffic, Verdict};
use bellwether_core::moment::Moment;
use bellwether_core::{Dice, Origin};
use tokio_util::sync::CancellationToken;

use super::voice::Voice;
use crate::cluster::health::{Said, reason};
use crate::cluster::outliers::Witness;
use crate::cluster::probe::{self, Checked, Outcome, Settings, Target};
use crate::cluster::{Cluster, Endpoint, EndpointState};
use crate::telemetry::{CheckResult as Label, WorkerId};

/// The checks of one endpoint.
pub(super) struct Checker {
    pub(super) cluster: Arc<str>,
    pub(super) state: Arc<EndpointState>,
    pub(super) target: Target,
    pub(super) settings: Arc<Settings>,
    pub(super) voice: Voice,
    pub(super) dice: Dice,
    pub(super) cancel: CancellationToken,
}

impl Checker {
    /// Checks until cancelled.
    pub(super) async fn run(mut self) {
        let cancel = self.cancel.clone();
        let pace = self.settings.pace;
        let mut pause = pace.first_pause(&mut self.dice);
        if self.verdict() == Verdict::Pending {
            // Somebody waits for it.
            pause = pause.min(FIRST_WITHIN.mul_f64(self.dice.unit()));
        }
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause.max(LEAST_PAUSE)) => {}
            }
            if self.is_superfluous() {
                self.count(Label::Suppressed);
            } else {
                let timeout = pace.timeout(self.voice.score());
                let checked = tokio::select! {
                    biased;
                    () = cancel.cancelled() => {
                        self.count(Label::Cancelled);
                        return;
                    }
                    checked = probe::check(&self.target, &self.settings, timeout) => checked,
                };
                self.conclude(&checked);
            }
            pause = match &*self.state.checks.lock() {
                Some(checks) => checks.pause(&pace, &mut self.dice),
                None => pace.interval,
            };
        }
    }

    fn verdict(&self) -> Verdict {
        let mut checks = self.state.checks.lock();
        checks.get_or_insert(Checks::new(Initial::Up)).verdict()
    }

    /// Whether requests have shown what a check would.
    fn is_superfluous(&self) -> bool {
        let answered = self
            .state
            .pulse
            .answered_within(self.settings.pace.interval, self.voice.now());
        let traffic = if answered {
            Traffic::Answered
        } else {
            Traffic::Silent
        };
        let mut checks = self.state.checks.lock();
        checks.as_mut().is_some_and(|checks| checks.skip(traffic))
    }

    fn count(&self, result: Label) {
        self.voice
            .about(&self.cluster, self.state.id, |cluster, _, witness| {
                cluster.metrics.health_checked(witness.worker, result);
            });
    }

    fn conclude(&self, checked: &Checked) {
        let pace = self.settings.pace;
        let conclude = |cluster: &Cluster, index: usize, witness: Witness<'_>| {
            let Checked { outcome, word } = checked;
            let result = outcome.result();
            cluster
                .metrics
                .health_checked(WorkerId::CONTROL, Label::from(result));
            let others = if cluster.is_anybody_beside(index) {
                Others::Available
            } else {
                Others::None
            };
            match result {
                CheckResult::Passed => cluster.is_alive(index, witness),
                CheckResult::Failed(Failure::Refused) => {
                    self.state
                        .pulse
                        .record(bellwether_core::Outcome::Failure(Origin::Local), witness.now);
                }
                CheckResult::Failed(Failure::TimedOut | Failure::Unfit) | CheckResult::Cancelled => {}
            }
            let change = {
                let mut checks = self.state.checks.lock();
                let checks = checks.get_or_insert(Checks::new(Initial::Up));
                checks.apply(&pace, result, others)
            };
            if let Some(change) = change {
                conclusion(cluster, index, change, outcome, witness);
            }
            if let Some(word) = word {
                let holds = (pace.interval * 3).max(WORD_HOLDS);
                cluster.hear(index, *word, holds, witness);
            }
        };
        self.voice.about(&self.cluster, self.state.id, conclude);
    }
}

/// Voices what checks have come to.
fn conclusion(cluster: &Cluster, index: usize, change: Change, outcome: &Outcome, witness: Witness<'_>) {
    let (opinion, reason) = match change {
        Change::Up => (Opinion::Up, reason::CHECK_PASSED),
        Change::Down(failure) => (Opinion::Down, word(failure)),
        Change::Protected => {
            let evidence = format!("{outcome}; there is nobody else");
            cluster.report(index, "up", "up", reason::CHECK_PROTECTED, evidence, witness);
            return;
        }
    };
    let said = Said {
        source: Source::Check,
        opinion,
        reason,
        evidence: outcome.to_string(),
    };
    cluster.say(index, said, witness);
}

const fn word(failure: Failure) -> &'static str {
    match failure {
        Failure::Refused => reason::CHECK_REFUSED,
        Failure::TimedOut => reason::CHECK_TIMEOUT,
        Failure::Unfit => reason::CHECK_FAILED,
    }
}

/// Decides how members are treated that have not been checked before. To be called before `cluster` serves.
pub(super) fn prepare(cluster: &Cluster, witness: Witness<'_>) {
    let is_new = |endpoint: &Endpoint| {
        endpoint.state.checks.lock().is_none()
            && endpoint.state.arbiter.entered() > Moment::ZERO
            && endpoint.state.load.picks() == 0
    };
    let anybody = cluster
        .endpoints
        .iter()
        .any(|endpoint| endpoint.is_usable() && !is_new(endpoint));
    for (index, endpoint) in cluster.endpoints.iter().enumerate() {
        let initial = match is_new(endpoint) {
            true if anybody => Initial::beside(Others::Available),
            true => Initial::beside(Others::None),
            false => Initial::Up,
        };
        let pending = {
            let mut checks = endpoint.state.checks.lock();
            if checks.is_some() {
                continue;
            }
            checks.insert(Checks::new(initial)).verdict() == Verdict::Pending
        };
        if pending {
            let said = Said {
                source: Source::Check,
                opinion: Opinion::Down,
                reason: reason::CHECK_PENDING,
                evidence: "its first check is to come".to_owned(),
            };
            cluster.say(index, said, witness);
        }
    }
}

/// Nobody checks this endpoint any more, so nobody would ever call it healthy again.
pub(super) fn end(cluster: &Cluster, index: usize, witness: Witness<'_>) {
    let endpoint = &cluster.endpoints[index];
    if endpoint.state.checks.lock().take().is_some() {
        let said = Said {
            source: Source::Check,
            opinion: Opinion::Unknown,
            reason: reason::CHECK_OFF,
            evidence: String::new(),
        };
        cluster.say(index, said, witness);
    }
}

/// An endpoint that waits to be used is checked at once, only not all at the same moment.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Whatever is configured, a task does not run hot.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// How long what an endpoint says of itself in the answer to a check holds at least; the next answer says it again or
/// takes it back.
const WORD_HOLDS: Duration = Duration::from_secs(60);
