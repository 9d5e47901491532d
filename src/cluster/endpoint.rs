//! One address of a cluster: what the configuration or discovery says of it, and what was learned about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::arbiter::{Arbiter, Availability};
use bellwether_core::balance::Load;
use bellwether_core::ejection::Ejection;
use bellwether_core::limit::Places;
use bellwether_core::outlier::{self, Tally};
use bellwether_core::pulse::Pulse;
use bellwether_core::shelf::Shelf;
use http::HeaderValue;

use crate::net::SocketAddress;
use crate::telemetry::EndpointMetrics;

/// A member of a cluster in one snapshot.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddress,
    /// The address as text, for logs, labels and the `{endpoint}` template.
    pub label: Arc<str>,
    /// The name it was configured by: SNI and verification, and `Host` when asked for.
    pub host: Arc<str>,
    /// `host` (with the port where it was given) as a field value.
    pub authority: HeaderValue,
    /// Share of traffic relative to the others; 0 drains it.
    pub weight: u32,
    /// Lower numbers first.
    pub priority: u8,
    /// Failure domain.
    pub zone: Option<Arc<str>>,
    /// How attempts went lately; none when nobody is ejected in its cluster.
    pub tally: Option<Arc<Tally>>,
    /// What was learned; survives reloads.
    pub state: Arc<EndpointState>,
    /// Its series.
    pub metrics: Arc<EndpointMetrics>,
}

impl Endpoint {
    /// Whether it may be picked.
    pub fn is_usable(&self) -> bool {
        self.weight > 0 && self.state.availability().is_available()
    }
}

/// What was learned about an address as a member of a cluster. Shared by all workers, kept over reloads.
#[derive(Debug)]
pub struct EndpointState {
    /// Never used twice in one process; pools are keyed by it.
    pub id: u64,
    /// Requests in flight, latency, success.
    pub load: Load,
    /// What everybody thinks of it: the one word that decides whether it is used, and the grounds behind it. Opinions
    /// are voiced by [`Cluster::say`](super::Cluster::say), which also tells people.
    pub arbiter: Arbiter,
    /// When it last answered, and when it last would not have us.
    pub pulse: Pulse,
    /// Places under the limit of one endpoint; taken only where there is one.
    pub(super) places: Places,
    /// How its ejection stands; the arbiter shows it.
    pub ejection: Arc<Ejection>,
    tallies: Shelf<Tally>,
    /// Open connections over all workers.
    connections: AtomicU32,
    /// Workers that wait for one of them to end.
    room_wanted: AtomicU32,
    /// How long it keeps idle connections, in milliseconds, as far as it has said so; 0 for unknown.
    idle_limit: AtomicU64,
}

impl EndpointState {
    /// A fresh record. `joined` is `Moment::ZERO` for members that are there from the start.
    pub fn new(joined: Moment) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            // Ordering: only uniqueness matters.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            load: Load::default(),
            arbiter: Arbiter::new(joined),
            pulse: Pulse::new(),
            places: Places::default(),
            ejection: Arc::default(),
            tallies: Shelf::default(),
            connections: AtomicU32::new(0),
            room_wanted: AtomicU32::new(0),
            idle_limit: AtomicU64::new(0),
        }
    }

    /// Whether it may be used, and who is against it: one load.
    pub fn availability(&self) -> Availability {
        self.arbiter.availability()
    }

    /// How attempts went, over the window that the settings ask for.
    pub fn tally(&self, settings: &outlier::Settings) -> Arc<Tally> {
        self.tallies.take(
            |tally| tally.fits(settings),
            |last| Tally::after(last.map(|last| &**last), settings),
        )
    }

    // Ordering (all of the following): each value stands alone and a reader may act on one that is a moment old.

    /// Open connections over all workers.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection unless `limit` are open.
    pub(super) fn open_connection(&self, limit: Option<u32>) -> bool {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if limit.is_some_and(|limit| before >= limit) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(super) fn close_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn want_room(&self) {
        self.room_wanted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn found_room(&self) {
        self.room_wanted.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a worker has no connection and may open none, because others hold as many as there may be.
    pub(super) fn is_room_wanted(&self) -> bool {
        self.room_wanted.load(Ordering::Relaxed) > 0
    }

    /// How long it said that it keeps idle connections (`keep-alive: timeout=N`).
    pub(super) fn idle_limit(&self) -> Option<Duration> {
        match self.idle_limit.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    pub(super) fn learn_idle_limit(&self, limit: Duration) {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        if self.idle_limit.load(Ordering::Relaxed) != millis {
            self.idle_limit.store(millis, Ordering::Relaxed);
        }
    }
}
