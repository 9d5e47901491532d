//! Heartbeats as a task: one per cluster that is watched, on the control runtime.
//!
//! Once per interval everybody's silence is judged (`cluster/heartbeat.rs`), and who gave no sign of life since then is
//! probed: by the question of its health check, to which any answer will do, else by opening a connection. Probes run
//! beside each other and one at a time per endpoint.
//!
//! A process that slept judges nobody for it: the detector takes a late look for its own pause.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::voice::Voice;
use crate::cluster::heartbeat::Settings;
use crate::cluster::outliers::Witness;
use crate::cluster::probe::{self, Outcome, Target};
use crate::cluster::{Cluster, Endpoint};

/// Watches one cluster.
pub(super) struct Watcher {
    pub(super) cluster: Arc<str>,
    pub(super) settings: Settings,
    /// How its endpoints are asked whether they are fit, if they are.
    pub(super) question: Option<Arc<probe::Settings>>,
    pub(super) voice: Voice,
    pub(super) cancel: CancellationToken,
}

impl Watcher {
    /// Watches until cancelled.
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(self.settings.phi.interval.max(LEAST_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probes = JoinSet::new();
        let mut probed = HashSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                Some(probe) = probes.join_next() => {
                    if let Ok((id, is_alive)) = probe {
                        probed.remove(&id);
                        if is_alive {
                            self.voice.about(&self.cluster, id, Cluster::is_alive);
                        }
                    }
                }
                _ = ticks.tick() => {
                    for (id, target) in self.look() {
                        if probed.insert(id) {
                            probes.spawn(ask(id, target, self.question.clone(), self.timeout()));
                        }
                    }
                }
            }
        }
    }

    /// Judges everybody, and says who is to be probed.
    fn look(&self) -> Vec<(u64, Target)> {
        let look = |cluster: &Cluster, witness: Witness<'_>| {
            cluster.judge_silence(&self.settings, witness);
            let target = |(index, endpoint): (usize, &Endpoint)| {
                if !cluster.is_probed(index, &self.settings, witness.now) {
                    return None;
                }
                let target = Target {
                    address: endpoint.address.clone(),
                    host: Some(Arc::clone(&endpoint.host)),
                };
                Some((endpoint.state.id, target))
            };
            cluster.endpoints.iter().enumerate().filter_map(target).collect()
        };
        self.voice.with(&self.cluster, look).unwrap_or_default()
    }

    /// A probe that takes longer than silence may last proves nothing any more.
    fn timeout(&self) -> Duration {
        let phi = &self.settings.phi;
        self.voice.score().stretch(phi.interval + phi.acceptable_pause)
    }
}

/// Whether an endpoint gave any sign of life.
async fn ask(
    id: u64,
    target: Target,
    question: Option<Arc<probe::Settings>>,
    timeout: Duration,
) -> (u64, bool) {
    let outcome = match &question {
        Some(question) => probe::check(&target, question, timeout).await.outcome,
        None => probe::connect(&target, timeout).await,
    };
    let is_alive = match outcome {
        Outcome::Pass | Outcome::Unexpected(_) => true,
        Outcome::Refused(_) | Outcome::Broken(_) | Outcome::Timeout => false,
    };
    (id, is_alive)
}

/// Whatever is configured, a task does not run hot.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
