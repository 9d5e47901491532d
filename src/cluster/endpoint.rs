//! One address of a cluster: what the configuration or discovery says of it, and what was learned about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::arbiter::{Arbiter, Availability, Opinion, Source};
use bellwether_core::balance::{Load, SavedLoad};
use bellwether_core::breaker::{self, Breaker};
use bellwether_core::ejection::{self, Ejection};
use bellwether_core::health::{Checks, Verdict};
use bellwether_core::heartbeat::Beats;
use bellwether_core::idle::{self, IdleLimit};
use bellwether_core::limit::Places;
use bellwether_core::outlier::{self, Tally};
use bellwether_core::pulse::Pulse;
use bellwether_core::recent::Recent;
use bellwether_core::shelf::Shelf;
use http::HeaderValue;
use parking_lot::Mutex;

use super::guarded::Guarded;
use super::health::reason;
use super::heartbeat::Watched;
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
    /// Its last times to the first byte, where latency is compared.
    pub recent: Recent,
    /// What checks have shown; none while it is not checked.
    pub checks: Mutex<Option<Checks>>,
    /// What it said of itself.
    pub beats: Mutex<Beats>,
    /// Its signs of life.
    pub(super) watched: Mutex<Watched>,
    /// How many requests it wants at a time; `u32::MAX` if it did not say.
    most: AtomicU32,
    tallies: Shelf<Tally>,
    breakers: Shelf<Breaker>,
    /// Nanoseconds that a probe of one that was ejected for being slow may take; 0 for any time.
    slow: AtomicU64,
    /// Open connections over all workers.
    connections: AtomicU32,
    /// Workers that wait for one of them to end.
    room_wanted: AtomicU32,
    /// How long it keeps idle connections, as far as it has said or shown.
    pub idle: IdleLimit,
}

/// What another process has to know, free of this one's clock. What operators said is not part of it: they are asked by
/// name, and their orders are handed over beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Latency, success.
    pub load: SavedLoad,
    /// How long it is still out.
    pub ejection: ejection::Saved,
    /// How its own breaker stands, if it has one.
    pub breaker: Option<breaker::Saved>,
    /// What checks have shown; none if it was not checked.
    pub verdict: Option<Verdict>,
    /// Incarnation and number of the newest heartbeat: what comes must be newer.
    pub newest: Option<(u64, u64)>,
    /// How long ago it joined or came back; none if it was there at the start.
    pub joined_ago: Option<Duration>,
    /// How long it keeps idle connections.
    pub idle: idle::Saved,
}

impl EndpointState {
    /// What another process has to know.
    pub fn save(&self, now: Moment) -> Saved {
        let joined = self.arbiter.entered();
        Saved {
            load: self.load.save(now),
            ejection: self.ejection.save(now),
            breaker: self.breakers.last().map(|breaker| breaker.save(now)),
            verdict: self.checks.lock().as_ref().map(Checks::verdict),
            newest: self.beats.lock().newest(),
            joined_ago: (joined > Moment::ZERO).then(|| now.since(joined)),
            idle: self.idle.save(now),
        }
    }

    /// The record of an endpoint that another process knew.
    pub fn restored(saved: &Saved, now: Moment) -> Self {
        let joined = saved.joined_ago.map_or(Moment::ZERO, |ago| now.minus(ago));
        let state = Self {
            load: Load::restored(&saved.load, now),
            idle: IdleLimit::restored(saved.idle, now),
            ..Self::new(joined)
        };
        state.ejection.restore(saved.ejection, now);
        *state.checks.lock() = saved.verdict.map(Checks::with);
        *state.beats.lock() = Beats::after(saved.newest);
        let down = |source, reason| {
            let evidence = "as the process before found".to_owned();
            state.arbiter.set(source, Opinion::Down, reason, evidence, now);
        };
        if saved.verdict.is_some_and(|verdict| !verdict.is_used()) {
            down(Source::Check, reason::CHECK_FAILED);
        }
        if state.ejection.is_out() {
            down(Source::Ejection, "taken_over");
        }
        if let Some(breaker) = &saved.breaker {
            state.breakers.put(Breaker::restored(breaker, now));
        }
        state
    }

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
            recent: Recent::new(),
            checks: Mutex::default(),
            beats: Mutex::default(),
            watched: Mutex::default(),
            most: AtomicU32::new(u32::MAX),
            tallies: Shelf::default(),
            breakers: Shelf::default(),
            slow: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            room_wanted: AtomicU32::new(0),
            idle: IdleLimit::new(),
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

    /// The breaker that all routes to it share.
    pub fn breaker(&self, settings: &breaker::Settings, now: Moment) -> Arc<Breaker> {
        self.breakers.take(
            |breaker| breaker.fits(settings),
            |last| Breaker::after(last.map(|last| &**last), settings, now),
        )
    }

    /// It is taken for slow, and this long a probe may take to show otherwise; none if slowness is not the question.
    pub(super) fn set_slow(&self, bound: Option<Duration>) {
        let nanos = bound.map_or(0, |bound| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
        self.slow.store(nanos, Ordering::Relaxed);
    }

    /// Whether it is taken for slow, so that it gets nearly nothing to show otherwise.
    pub(super) fn is_suspect(&self) -> bool {
        self.slow.load(Ordering::Relaxed) > 0
    }

    /// Whether a probe that took so long shows that it is as slow as it was.
    pub(super) fn is_still_slow(&self, took: Duration) -> bool {
        let bound = self.slow.load(Ordering::Relaxed);
        bound > 0 && took.as_nanos() > u128::from(bound)
    }

    /// It is in service again, and is not taken for what it was before.
    pub(super) fn starts_anew(&self, now: Moment) {
        self.load.forget();
        self.recent.clear();
        if let Some(tally) = self.tallies.last() {
            tally.clear(now);
        }
    }

    // Ordering (all of the following): each value stands alone and a reader may act on one that is a moment old.

    /// How many requests it wants at a time.
    pub(super) fn ask_at_most(&self, most: Option<u32>) {
        self.most.store(most.unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub(super) fn asked_at_most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
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
