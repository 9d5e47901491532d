//! One address of a cluster: what the configuration or discovery says of it, and what was learned about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::balance::Load;
use bellwether_core::breaker::{self, Breaker};
use bellwether_core::ejection::Ejection;
use bellwether_core::idle::IdleLimit;
use bellwether_core::outlier::{self, Tally};
use bellwether_core::recent::Recent;
use bellwether_core::shelf::Shelf;
use http::HeaderValue;

use super::guarded::Guarded;
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
    /// Its breakers, in the order of its cluster's plans.
    pub guards: Box<[Guarded]>,
    /// What was learned; survives reloads.
    pub state: Arc<EndpointState>,
    /// Its series.
    pub metrics: Arc<EndpointMetrics>,
}

/// What was learned about an address as a member of a cluster. Shared by all workers, kept over reloads.
#[derive(Debug)]
pub struct EndpointState {
    /// Never used twice in one process; pools are keyed by it.
    pub id: u64,
    /// Requests in flight, latency, success.
    pub load: Load,
    /// Whether it is out for behaving worse than others.
    pub ejection: Arc<Ejection>,
    /// Its last times to the first byte, where latency is compared.
    pub recent: Recent,
    tallies: Shelf<Tally>,
    breakers: Shelf<Breaker>,
    /// Nanoseconds that a probe of one that was ejected for being slow may take; 0 for any time.
    slow: AtomicU64,
    /// When it joined, or `ZERO` if it was there at the start; slow start counts from here.
    joined: AtomicU64,
    /// The verdict of the active check. Starts as healthy: an unchecked endpoint may be used.
    failed: AtomicBool,
    /// Set by an operator.
    drained: AtomicBool,
    /// Open connections over all workers.
    connections: AtomicU32,
    /// Workers that wait for one of them to end.
    room_wanted: AtomicU32,
    /// How long it keeps idle connections, as far as it has said or shown.
    pub idle: IdleLimit,
}

impl EndpointState {
    /// A fresh record. `joined` is `Moment::ZERO` for members that are there from the start.
    pub fn new(joined: Moment) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            // Ordering: only uniqueness matters.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            load: Load::default(),
            ejection: Arc::default(),
            recent: Recent::new(),
            tallies: Shelf::default(),
            breakers: Shelf::default(),
            slow: AtomicU64::new(0),
            joined: AtomicU64::new(joined.as_nanos()),
            failed: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            room_wanted: AtomicU32::new(0),
            idle: IdleLimit::new(),
        }
    }

    // Ordering (all of the following): each value stands alone and a reader may act on one that is a moment old.

    /// Whether a request may be sent here as far as checks and operators are concerned.
    pub fn is_available(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && !self.drained.load(Ordering::Relaxed)
    }

    /// The last verdict of the active check.
    pub fn is_healthy(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Whether an operator has drained it.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Records a verdict of the active check. An endpoint that comes back starts slowly.
    pub fn set_healthy(&self, healthy: bool, now: Moment) {
        let was_failed = self.failed.swap(!healthy, Ordering::Relaxed);
        if healthy && was_failed {
            // Whatever it was ejected for, it is another process now.
            self.ejection.invite(now);
            self.came_back(now);
        }
    }

    /// How attempts went, over the window that the settings ask for.
    pub fn tally(&self, settings: &outlier::Settings) -> Arc<Tally> {
        self.tallies.take(
            |tally| tally.fits(settings),
            |last| Tally::after(last.map(|last| &**last), settings),
        )
    }

    /// The breaker that all routes to it share.
    pub fn breaker(&self, settings: &breaker::Settings, now: Moment) -> Arc<Breaker> {
        self.breakers.take(
            |breaker| breaker.fits(settings),
            |last| Breaker::after(last.map(|last| &**last), settings, now),
        )
    }

    /// It was ejected, and this long a probe may take; none where slowness was not the reason.
    pub(super) fn set_slow(&self, bound: Option<Duration>) {
        let nanos = bound.map_or(0, |bound| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
        self.slow.store(nanos, Ordering::Relaxed);
    }

    /// Whether a probe that took so long shows that it is as slow as it was.
    pub(super) fn is_still_slow(&self, took: Duration) -> bool {
        let bound = self.slow.load(Ordering::Relaxed);
        bound > 0 && took.as_nanos() > u128::from(bound)
    }

    /// It is in service again, starts slowly, and is not taken for what it was before.
    pub(super) fn came_back(&self, now: Moment) {
        self.load.forget();
        self.recent.clear();
        if let Some(tally) = self.tallies.last() {
            tally.clear(now);
        }
        self.joined.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Drains or restores it for an operator.
    pub fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Relaxed);
    }

    /// When it joined or came back.
    pub fn joined(&self) -> Moment {
        Moment::from_nanos(self.joined.load(Ordering::Relaxed))
    }

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
}
