//! The circuit breakers of routes: settings of this snapshot, and the breaker that outlives it.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::breaker::{Breaker, Report, Settings, State, Transition};

use super::ClusterId;
use crate::telemetry::{BreakerMetrics, BreakerSeen, Change, EventKind, Events, WorkerId};

/// A breaker and how this snapshot wants it to behave.
#[derive(Debug, Clone)]
pub struct Guarded {
    /// What it is called: `route`, or `cluster/NAME`.
    pub name: Arc<str>,
    /// When it opens and how it closes.
    pub settings: Settings,
    /// An answer that takes longer is slow.
    pub slow: Option<Duration>,
    /// What was learned.
    pub breaker: Arc<Breaker>,
    /// Its series.
    pub metrics: Arc<BreakerMetrics>,
}

/// The breakers in the way of one route.
#[derive(Debug, Clone, Default)]
pub enum Breakers {
    /// None.
    #[default]
    Off,
    /// One for the route.
    Route(Guarded),
    /// One for each cluster that the route can lead to, shared with other routes to it.
    Cluster(Box<[(ClusterId, Guarded)]>),
}

impl Breakers {
    /// The one in the way to this cluster.
    pub fn toward(&self, cluster: ClusterId) -> Option<&Guarded> {
        match self {
            Self::Off => None,
            Self::Route(guarded) => Some(guarded),
            Self::Cluster(guarded) => {
                let (_, guarded) = guarded.iter().find(|(id, _)| *id == cluster)?;
                Some(guarded)
            }
        }
    }

    /// The one of the cluster that a fallback leads to; that of the route has spoken already.
    pub fn toward_fallback(&self, cluster: ClusterId) -> Option<&Guarded> {
        match self {
            Self::Off | Self::Route(_) => None,
            Self::Cluster(_) => self.toward(cluster),
        }
    }

    /// The word for what one guards.
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Route(_) => "route",
            Self::Cluster(_) => "cluster",
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Guarded> {
        let (one, more): (_, &[(ClusterId, Guarded)]) = match self {
            Self::Off => (None, &[]),
            Self::Route(guarded) => (Some(guarded), &[]),
            Self::Cluster(guarded) => (None, guarded),
        };
        one.into_iter().chain(more.iter().map(|(_, guarded)| guarded))
    }
}

impl Guarded {
    /// Counts a change of state and tells who listens.
    pub fn changed(&self, worker: WorkerId, events: &Events, generation: u64, change: &Transition) {
        self.metrics.changed(worker, change);
        let counts = change.counts;
        events.push(Change {
            kind: EventKind::Breaker,
            subject: String::from(&*self.name),
            from: change.from.name().to_owned(),
            to: change.to.name().to_owned(),
            reason: change.cause.name().to_owned(),
            evidence: format!(
                "{} of {} failed, {} slow",
                counts.failed, counts.total, counts.slow
            ),
            generation,
        });
    }

    /// How it stands at `now`; `since_epoch` is the time of day then.
    pub fn report(&self, now: Moment, since_epoch: Duration) -> Report {
        let report = self.breaker.report(&self.settings, now);
        let open_until = match report.state {
            State::Open | State::ForcedOpen => (since_epoch + report.until.since(now)).as_secs(),
            _ => 0,
        };
        self.metrics.show(BreakerSeen {
            state: report.state,
            counts: report.counts,
            open_until,
        });
        report
    }
}
