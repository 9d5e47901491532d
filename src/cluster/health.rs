//! Opinions about endpoints: how they are voiced, counted and told.
//!
//! Whether an endpoint is used is settled by its [`Arbiter`](bellwether_core::arbiter::Arbiter) and nowhere else:
//! discovery, operators, checks, heartbeats, the endpoint itself, its ejection and its breaker each have an opinion there
//! and touch no other's. Here is the one way to have one, [`Cluster::say`], so that none changes without an event and a
//! count. Ejection has events of its own and is only counted here.

use std::collections::HashSet;

use bellwether_core::arbiter::{Change, Ground, Opinion, Source};

use super::Cluster;
use super::outliers::Witness;
use crate::telemetry::{self, EventKind, HealthSource, HealthTo};

/// What a source says about an endpoint.
#[derive(Debug, Clone)]
pub struct Said {
    /// Who.
    pub source: Source,
    /// What it thinks.
    pub opinion: Opinion,
    /// Why, in a word of [`reason`].
    pub reason: &'static str,
    /// The numbers, for people.
    pub evidence: String,
}

/// The words for why a source thinks what it thinks. Each belongs to one source, so that an event needs no other name for
/// who spoke.
pub mod reason {
    /// Discovery lists it.
    pub const LISTED: &str = "listed";
    /// Discovery lists it with the weight 0.
    pub const WEIGHT_ZERO: &str = "weight_zero";
    /// Discovery, or the configuration, does not list it any more.
    pub const NOT_LISTED: &str = "not_listed";
    /// An operator drained it.
    pub const DRAINED: &str = "drained";
    /// An operator, or the end of the override, restored it.
    pub const RESTORED: &str = "restored";
    /// Its checks pass.
    pub const CHECK_PASSED: &str = "check_passed";
    /// The answer to its checks is not as expected.
    pub const CHECK_FAILED: &str = "check_failed";
    /// Its checks find no connection, or one that breaks.
    pub const CHECK_REFUSED: &str = "check_refused";
    /// Its checks get no answer in time.
    pub const CHECK_TIMEOUT: &str = "check_timeout";
    /// It is not checked any more.
    pub const CHECK_OFF: &str = "check_off";
}

impl Cluster {
    /// A source says what it thinks of an endpoint. People are told if that is news.
    pub fn say(&self, index: usize, said: Said, witness: Witness<'_>) -> Change {
        let endpoint = &self.endpoints[index];
        let Said {
            source,
            opinion,
            reason,
            evidence,
        } = said;
        let change = endpoint
            .state
            .arbiter
            .set(source, opinion, reason, evidence.clone(), witness.now);
        if self.count(source, change, witness) {
            let (from, to) = (change.before.opinion_of(source), change.after.opinion_of(source));
            let event = witness.events.push(telemetry::Change {
                kind: EventKind::Health,
                subject: format!("{}/{}", self.name, endpoint.label),
                from: from.name().to_owned(),
                to: to.name().to_owned(),
                reason: reason.to_owned(),
                evidence,
                generation: witness.generation,
            });
            let (subject, evidence) = (&*event.subject, &*event.evidence);
            tracing::info!(
                subject,
                from = from.name(),
                to = to.name(),
                reason,
                evidence,
                "health"
            );
        }
        change
    }

    /// Counts a change of opinion; false if it was none.
    pub(super) fn count(&self, source: Source, change: Change, witness: Witness<'_>) -> bool {
        let is_news = change.before != change.after;
        if is_news {
            let to = HealthTo::from(change.after.opinion_of(source));
            self.metrics
                .health_changed(witness.worker, HealthSource::from(source), to);
        }
        is_news
    }

    /// Says of every member that discovery, or the configuration, lists it. To be called before the cluster serves.
    pub fn list(&self, witness: Witness<'_>) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let (opinion, reason) = match endpoint.weight {
                0 => (Opinion::Draining, reason::WEIGHT_ZERO),
                _ => (Opinion::Up, reason::LISTED),
            };
            let said = Said {
                source: Source::Discovery,
                opinion,
                reason,
                evidence: format!("weight {}", endpoint.weight),
            };
            self.say(index, said, witness);
        }
    }

    /// Says of every member that is not among the ids in `listed` that it is gone. Requests that still hold this snapshot
    /// choose among the others.
    pub fn unlist(&self, listed: &HashSet<u64>, witness: Witness<'_>) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if listed.contains(&endpoint.state.id) {
                continue;
            }
            let said = Said {
                source: Source::Discovery,
                opinion: Opinion::Down,
                reason: reason::NOT_LISTED,
                evidence: String::new(),
            };
            self.say(index, said, witness);
        }
    }
}

/// Why an endpoint is not used, for people: everybody who is against it, with their grounds.
pub fn objections(grounds: &[(Source, Ground)]) -> Option<String> {
    let against: Vec<String> = grounds
        .iter()
        .filter(|(_, ground)| matches!(ground.opinion, Opinion::Down | Opinion::Draining))
        .map(|(source, ground)| {
            let (source, opinion, reason) = (source.name(), ground.opinion.name(), ground.reason);
            let evidence = match &*ground.evidence {
                "" => String::new(),
                evidence => format!(" ({evidence})"),
            };
            format!("{source} says {opinion}, {reason}{evidence}")
        })
        .collect();
    (!against.is_empty()).then(|| against.join("; "))
}
