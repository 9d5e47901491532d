//! Voice: how tasks of the control runtime speak about endpoints.
//!
//! A task that watches one endpoint outlives many snapshots. It knows the endpoint by cluster and id, and looks it up in
//! the snapshot that serves each time it has something to say; who has left in the meantime is not spoken of.

use std::sync::Arc;

use bellwether_core::Moment;
use bellwether_core::self_health::Score;

use crate::cluster::Cluster;
use crate::cluster::outliers::Witness;
use crate::net::clock::Clock;
use crate::snapshot::cell::Cell;
use crate::telemetry::{Events, Vitals, WorkerId};

/// What it takes to speak.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    pub(super) cell: Arc<Cell>,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) vitals: Arc<Vitals>,
}

impl Voice {
    /// The present moment.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// How far our own clock may be trusted.
    pub(super) fn score(&self) -> Score {
        self.vitals.score()
    }

    /// Speaks about the endpoint with this id; none if it is no member any more.
    pub(super) fn about<T>(
        &self,
        cluster: &str,
        id: u64,
        speak: impl FnOnce(&Cluster, usize, Witness<'_>) -> T,
    ) -> Option<T> {
        let spoken = self.with(cluster, |cluster, witness| {
            let index = cluster.endpoints.iter().position(|e| e.state.id == id)?;
            Some(speak(cluster, index, witness))
        });
        spoken.flatten()
    }

    /// Speaks about a cluster; none if there is no such cluster any more.
    pub(super) fn with<T>(&self, cluster: &str, speak: impl FnOnce(&Cluster, Witness<'_>) -> T) -> Option<T> {
        let snapshot = self.cell.load();
        let cluster = snapshot.clusters.iter().find(|known| &*known.name == cluster)?;
        let witness = Witness {
            worker: WorkerId::CONTROL,
            events: &self.events,
            generation: snapshot.generation,
            now: self.now(),
            score: self.score(),
        };
        Some(speak(cluster, witness))
    }
}
