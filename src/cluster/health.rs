//! Opinions about endpoints: how they are voiced, counted and told.
//!
//! Whether an endpoint is used is settled by its [`Arbiter`](bellwether_core::arbiter::Arbiter) and nowhere else:
//! discovery, operators, checks, heartbeats, the endpoint itself, its ejection and its breaker each have an opinion there
//! and touch no other's. Here is the one way to have one, [`Cluster::say`], so that none changes without an event and a
//! count. Ejection has events of its own and is only counted here.

use std::collections::HashSet;

use bellwether_core::arbiter::{Change, Ground, Opinion, Source};
use bellwether_core::panic::{self, Edge};

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
    /// It is new, and used from its first passed check on.
    pub const CHECK_PENDING: &str = "check_pending";
    /// Its checks time out, but there is nobody else.
    pub const CHECK_PROTECTED: &str = "check_protected";
    /// It says nothing of itself, or what it said is over.
    pub const AGENT_SILENT: &str = "agent_silent";
    /// It says itself that it is well.
    pub const AGENT_UP: &str = "agent_up";
    /// It says itself that it leaves.
    pub const AGENT_DRAIN: &str = "agent_drain";
    /// It says itself that it cannot serve.
    pub const AGENT_DOWN: &str = "agent_down";
    /// It was never heard from.
    pub const HEARTBEAT_NONE: &str = "heartbeat_none";
    /// It is heard from.
    pub const HEARTBEAT_FINE: &str = "heartbeat_fine";
    /// It is late.
    pub const HEARTBEAT_LATE: &str = "heartbeat_late";
    /// It is not heard from any more.
    pub const HEARTBEAT_LOST: &str = "heartbeat_lost";
    /// It seems to be gone, but as many as may be are out.
    pub const HEARTBEAT_KEPT: &str = "heartbeat_kept";
    /// It seems to be gone, but this process is unwell itself.
    pub const HEARTBEAT_UNSURE: &str = "heartbeat_unsure";
    /// It is not watched any more.
    pub const HEARTBEAT_OFF: &str = "heartbeat_off";
    /// Its breaker is open: routes that ask it stay away.
    pub const BREAKER_OPEN: &str = "breaker_open";
    /// Its breaker is closed.
    pub const BREAKER_CLOSED: &str = "breaker_closed";
    /// It is not checked any more.
    pub const CHECK_OFF: &str = "check_off";
}

impl Cluster {
    /// A source says what it thinks of an endpoint. People are told if that is news.
    pub fn say(&self, index: usize, said: Said, witness: Witness<'_>) -> Change {
        let Said {
            source,
            opinion,
            reason,
            evidence,
        } = said;
        self.voice(index, source, witness, || (opinion, reason, evidence))
    }

    /// As [`Cluster::say`], for a source whose state others change meanwhile: see
    /// [`Arbiter::set_to`](bellwether_core::arbiter::Arbiter::set_to).
    pub(super) fn voice(
        &self,
        index: usize,
        source: Source,
        witness: Witness<'_>,
        think: impl FnOnce() -> (Opinion, &'static str, String),
    ) -> Change {
        let arbiter = &self.endpoints[index].state.arbiter;
        let mut grounds = ("", String::new());
        let change = arbiter.set_to(source, witness.now, || {
            let (opinion, reason, evidence) = think();
            grounds = (reason, evidence.clone());
            (opinion, reason, evidence)
        });
        if self.count(index, source, change, witness) {
            let (from, to) = (change.before.opinion_of(source), change.after.opinion_of(source));
            let (reason, evidence) = grounds;
            self.report(index, from.name(), to.name(), reason, evidence, witness);
        }
        change
    }

    /// Tells people about an endpoint.
    pub fn report(
        &self,
        index: usize,
        from: &'static str,
        to: &'static str,
        reason: &'static str,
        evidence: String,
        witness: Witness<'_>,
    ) {
        let event = witness.events.push(telemetry::Change {
            kind: EventKind::Health,
            subject: format!("{}/{}", self.name, self.endpoints[index].label),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: reason.to_owned(),
            evidence,
            generation: witness.generation,
        });
        let (subject, evidence) = (&*event.subject, &*event.evidence);
        tracing::info!(subject, from, to, reason, evidence, "health");
    }

    /// Whether anybody else could serve.
    pub fn is_anybody_beside(&self, index: usize) -> bool {
        let mut endpoints = self.endpoints.iter().enumerate();
        endpoints.any(|(other, endpoint)| other != index && endpoint.is_usable())
    }

    /// Ends what endpoints said of themselves when it is over. To be called about once a second.
    pub fn heed_all(&self, witness: Witness<'_>) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if endpoint.state.availability().opinion_of(Source::Agent) != Opinion::Up {
                self.heed(index, witness);
            }
        }
    }

    /// What follows from a change of opinion: it is counted, and who returns starts anew. False if it was none.
    pub(super) fn count(&self, index: usize, source: Source, change: Change, witness: Witness<'_>) -> bool {
        let is_news = change.before != change.after;
        let state = &self.endpoints[index].state;
        if change.is_return() {
            state.starts_anew(witness.now);
        }
        if source == Source::Check && change.before.is_down_by(source) && !change.after.is_down_by(source) {
            // Whatever it was ejected for, it is another process now, or as good as: a request may find out at once.
            state.ejection.invite(witness.now);
        }
        if is_news {
            let to = HealthTo::from(change.after.opinion_of(source));
            self.metrics
                .health_changed(witness.worker, HealthSource::from(source), to);
        }
        if change.is_removal() || change.is_return() {
            self.weigh(witness);
        }
        is_news
    }

    /// Looks whether too few are left. Panic begins and ends here; who picks does not wait for it.
    pub fn weigh(&self, witness: Witness<'_>) {
        let (available, total) = self.standing();
        // Switched off while it lasted, it ends.
        let settings = self.settings.panic.unwrap_or(panic::Settings {
            threshold: -1.0,
            to: panic::To::Reject,
        });
        let Some(edge) = self.state.panic.observe(&settings, available, total, witness.now) else {
            return;
        };
        let (from, to, evidence) = match edge {
            Edge::Began => (
                "calm",
                "panic",
                format!("{available} of {total} endpoints are available"),
            ),
            Edge::Ended(after) => (
                "panic",
                "calm",
                format!(
                    "{available} of {total} endpoints are available, after {:.1} s",
                    after.as_secs_f64()
                ),
            ),
        };
        self.metrics.set_panic(edge == Edge::Began);
        let (cluster, asked) = (&*self.name, settings.to.name());
        tracing::warn!(cluster, evidence, asked, "{to}");
        witness.events.push(telemetry::Change {
            kind: EventKind::Panic,
            subject: String::from(cluster),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: "panic_threshold".to_owned(),
            evidence,
            generation: witness.generation,
        });
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
    /// choose among the others; where there are none, nothing is said, or they would have nobody to ask.
    pub fn unlist(&self, listed: &HashSet<u64>, witness: Witness<'_>) {
        let stays = |endpoint: &super::Endpoint| endpoint.is_usable() && listed.contains(&endpoint.state.id);
        if !self.endpoints.iter().any(stays) {
            return;
        }
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
