//! Clusters: endpoints, connections to them, and where their addresses come from.
//!
//! A [`Cluster`] is part of a snapshot and immutable; what is learned about its members lives in [`EndpointState`]
//! and is found again by the next snapshot. Picking reads that state in place. Connections belong to one worker each
//! ([`pool`]), so checking one out takes no lock.

pub mod connect;
pub mod discovery;
pub mod endpoint;
pub mod exchange;
pub mod gate;
pub mod group;
pub mod guarded;
pub mod health;
pub mod heartbeat;
pub mod outliers;
pub mod pool;
pub mod probe;
#[cfg(test)]
mod testing;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bellwether_core::adaptive::{Adaptive, Range, Readings, Sample};
use bellwether_core::arbiter::Availability;
use bellwether_core::balance::{Balancer, Load};
use bellwether_core::breaker::{self, Breaker, Passage};
use bellwether_core::budget::{self, Budget};
use bellwether_core::ejection::Probe;
use bellwether_core::limit::{Places, Stay};
use bellwether_core::outlier::{self, Referee};
use bellwether_core::panic::{self, Panic};
pub use bellwether_core::pick::NoPick;
use bellwether_core::pick::{self, Role, Wish};
use bellwether_core::pulse::Pulse;
use bellwether_core::shed::Priority;
use bellwether_core::shelf::Shelf;
use bellwether_core::slow_start::SlowStart;
use bellwether_core::{Dice, Mode, Moment};
use smallvec::SmallVec;

use crate::net::proxy_protocol;
use crate::net::tls::ClientTls;
use crate::route::HashKey;
use crate::telemetry::ClusterMetrics;
pub use endpoint::{Endpoint, EndpointState};
pub use gate::{Gate, Patience, Seat, TurnedAway};
use guarded::GuardPlan;

/// Which protocol to speak to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// What ALPN chooses over TLS, HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, over plain TCP with prior knowledge.
    Http2,
}

/// Settings of a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Protocol towards endpoints.
    pub protocol: Protocol,
    /// TCP, TLS and HTTP/2 handshakes together.
    pub connect_timeout: Duration,
    /// Keep-alive probes of the kernel.
    pub tcp_keepalive: Option<Duration>,
    /// The PROXY header sent first on every connection.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// Connections of one endpoint over all workers.
    pub max_connections: Option<u32>,
    /// Idle connections of one endpoint on one worker.
    pub max_idle: usize,
    /// How long an idle connection is kept; none learns it from the endpoint.
    pub idle_timeout: Option<Duration>,
    /// Exchanges of one connection.
    pub max_requests: Option<u32>,
    /// Requests in flight in the whole cluster.
    pub max_in_flight: Option<u32>,
    /// Requests in flight at one endpoint.
    pub max_in_flight_per_endpoint: Option<u32>,
    /// Requests that wait for a place.
    pub max_queue: u32,
    /// How long they do.
    pub queue_timeout: Duration,
    /// A limit that follows response times; none when off.
    pub adaptive: Option<AdaptiveLimit>,
    /// How long a new endpoint takes to its full share.
    pub slow_start: Option<Duration>,
    /// Whether what an endpoint says of itself in an answer is believed ([`crate::message::fail`]): where something brings
    /// it back that asks again.
    pub heeds_answers: bool,
    /// How endpoints are watched for signs of life; none when off.
    pub heartbeat: Option<heartbeat::Settings>,
    /// Who is ejected, and for how long; none when off.
    pub outlier: Option<outlier::Settings>,
    /// Whether copies of requests find out early that who is ejected works again.
    pub rehearsals: bool,
    /// When too few are left, and what happens then; none when off.
    pub panic: Option<panic::Settings>,
    /// How many retries the cluster can bear; none means any number.
    pub retry_budget: Option<budget::Settings>,
    /// The zone that requests stay in as far as it bears them: our own, if it is known and asked for.
    pub zone: Option<Arc<str>>,
    /// What hashing policies hash.
    pub hash_on: Vec<HashKey>,
}

/// Settings of a limit that follows response times.
#[derive(Debug, Clone, Copy)]
pub struct AdaptiveLimit {
    /// Whether it refuses.
    pub mode: Mode,
    /// Where it stays.
    pub range: Range,
}

/// A named set of equivalent endpoints, in one snapshot.
#[derive(Debug)]
pub struct Cluster {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Settings.
    pub settings: Settings,
    /// TLS towards endpoints.
    pub tls: Option<Arc<ClientTls>>,
    /// Changes whenever connections made before must not be used any more.
    pub transport: u64,
    /// Members.
    pub endpoints: Box<[Endpoint]>,
    /// Picks among them; indices agree.
    pub balancer: Balancer,
    /// What retries may cost.
    pub budget: Option<Arc<Budget>>,
    /// What outlives the snapshot.
    pub state: Arc<ClusterState>,
    /// The breakers that every endpoint has.
    pub guards: Arc<[GuardPlan]>,
    /// Its series.
    pub metrics: Arc<ClusterMetrics>,
}

/// What is known about a cluster beyond one snapshot.
#[derive(Debug, Default)]
pub struct ClusterState {
    places: Places,
    gate: Gate,
    adaptive: OnceLock<Adaptive>,
    referee: Referee,
    /// Whether too few are left.
    panic: Panic,
    /// `f32` bits: the greatest share of its weight that an endpoint asks for, above 1; 0 for none.
    greatest: AtomicU32,
    /// Whether an endpoint may be out.
    any_out: AtomicBool,
    /// Whether the breaker of an endpoint may refuse.
    any_shut: AtomicBool,
    breakers: Shelf<Breaker>,
    budgets: Shelf<Budget>,
}

impl ClusterState {
    /// Who waits for a place.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What shares are relative to: an endpoint that asks for twice its weight makes all others get half as often.
    fn greatest_share(&self) -> f32 {
        // Ordering: Relaxed; a lone value.
        f32::from_bits(self.greatest.load(Ordering::Relaxed)).max(1.0)
    }

    fn set_greatest_share(&self, share: f32) {
        // Ordering: Relaxed, as above.
        self.greatest.store(share.to_bits(), Ordering::Relaxed);
    }

    /// The breaker that all routes to the cluster share.
    pub fn breaker(&self, settings: &breaker::Settings, now: Moment) -> Arc<Breaker> {
        self.breakers.take(
            |breaker| breaker.fits(settings),
            |last| Breaker::after(last.map(|last| &**last), settings, now),
        )
    }

    /// The budget for retries of all routes to the cluster.
    pub fn budget(&self, settings: &budget::Settings) -> Arc<Budget> {
        self.budgets
            .take(|budget| budget.fits(settings), |_| Budget::new(settings.window))
    }

    /// The breaker as it was last, whatever its settings.
    pub fn last_breaker(&self) -> Option<Arc<Breaker>> {
        self.breakers.last()
    }

    /// The budget as it was last.
    pub fn last_budget(&self) -> Option<Arc<Budget>> {
        self.budgets.last()
    }

    /// Goes on with a breaker of another process.
    pub fn recall_breaker(&self, breaker: Breaker) {
        self.breakers.put(breaker);
    }

    /// Goes on with a budget of another process.
    pub fn recall_budget(&self, budget: Budget) {
        self.budgets.put(budget);
    }
}

/// Endpoints that a request has tried already.
pub type Tried = SmallVec<[u32; 4]>;

/// An endpoint for one attempt.
#[derive(Debug)]
pub struct Picked {
    /// Which one.
    pub index: usize,
    /// It is ejected, and this attempt finds out whether it may come back.
    pub probe: Option<Probe>,
    /// Its place at the endpoint, where that has a limit.
    pub seat: Option<Seat>,
}

/// Who asks for an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Not these.
    pub tried: &'a Tried,
    /// For policies that hash.
    pub hash: Option<u64>,
    /// It may fail, because it can be tried elsewhere.
    pub may_probe: bool,
    /// How many places it may have.
    pub priority: Priority,
    /// With whom it is counted.
    pub stay: Stay,
    /// The place of the breaker that its attempts ask, among those of each endpoint.
    pub guard: Option<usize>,
}

impl Cluster {
    /// Whether anybody can be told to wait here.
    pub const fn is_limited(&self) -> bool {
        self.settings.max_in_flight.is_some()
            || self.settings.max_in_flight_per_endpoint.is_some()
            || self.settings.adaptive.is_some()
    }

    /// What the adaptive limit allows now, and whether it refuses.
    pub fn adaptive_limit(&self) -> Option<(u32, Mode)> {
        let AdaptiveLimit { mode, range } = self.settings.adaptive?;
        let known = self.state.adaptive.get();
        Some((known.map_or(range.max, |adaptive| adaptive.limit(range)), mode))
    }

    /// How the adaptive limit stands.
    pub fn adaptive_readings(&self) -> Option<Readings> {
        let AdaptiveLimit { range, .. } = self.settings.adaptive?;
        Some(self.state.adaptive.get_or_init(Adaptive::new).readings(range))
    }

    /// Lets the adaptive limit know how an attempt went.
    pub fn adapt(&self, sample: Sample, now: Moment) {
        if let Some(AdaptiveLimit { range, .. }) = self.settings.adaptive {
            let adaptive = self.state.adaptive.get_or_init(Adaptive::new);
            adaptive.record(sample, self.requests(), range, now);
        }
    }

    /// Requests under the limit of the cluster now, without those that last.
    fn requests(&self) -> u32 {
        self.state.places.of(Stay::Brief).in_flight()
    }

    /// Whether a request that has a place may use it once more for somebody of this priority.
    pub fn has_room_for_retry(&self, priority: Priority) -> bool {
        self.limit(Stay::Brief)
            .is_none_or(|limit| self.requests() <= priority.share(limit))
    }

    /// The limit of the cluster as a whole: what is set, and less if response times say so.
    fn limit(&self, stay: Stay) -> Option<u32> {
        let set = self.settings.max_in_flight;
        match (stay, self.adaptive_limit()) {
            (Stay::Brief, Some((found, Mode::Enforce))) => Some(set.map_or(found, |set| set.min(found))),
            // Counted all the same, or it would not know how much is in use.
            (Stay::Brief, Some((_, Mode::Observe))) => Some(set.unwrap_or(u32::MAX)),
            (Stay::Lasting, _) | (Stay::Brief, None) => set,
        }
    }

    /// Whether it is the adaptive limit that somebody of this priority has met.
    pub fn is_above_adaptive(&self, priority: Priority) -> Option<Mode> {
        let (found, mode) = self.adaptive_limit()?;
        (self.requests() >= priority.share(found)).then_some(mode)
    }

    /// A place under the cluster's limit; none where there is no limit.
    ///
    /// # Errors
    /// All places that somebody of this priority may have are taken.
    pub fn seat(&self, stay: Stay, priority: Priority) -> Result<Option<Seat>, NoPick> {
        let Some(limit) = self.limit(stay) else {
            return Ok(None);
        };
        let seat = Seat::of_cluster(&self.state, stay, priority.share(limit));
        seat.map(Some).ok_or(NoPick::AtLimit)
    }

    /// A place for a request, and the endpoint of its first attempt.
    ///
    /// # Errors
    /// Why there is none; [`NoPick::AtLimit`] passes by itself.
    pub fn enter(
        &self,
        ask: &Ask<'_>,
        now: Moment,
        dice: &mut Dice,
    ) -> Result<(Option<Seat>, Picked), NoPick> {
        let seat = self.seat(ask.stay, ask.priority)?;
        match self.pick(ask, now, dice) {
            Ok(picked) => Ok((seat, picked)),
            Err(no_pick) => {
                seat.into_iter().for_each(Seat::give_back_quietly);
                Err(no_pick)
            }
        }
    }

    /// The same endpoint once more, if it is still in service and has a place.
    pub fn again(&self, index: usize, ask: &Ask<'_>) -> Option<Picked> {
        self.endpoints
            .get(index)
            .filter(|endpoint| endpoint.is_usable())?;
        self.take_place(index, ask).map(|seat| Picked {
            index,
            probe: None,
            seat,
        })
    }

    /// A place at an endpoint; an inner none where there is no limit.
    fn take_place(&self, index: usize, ask: &Ask<'_>) -> Option<Option<Seat>> {
        let Some(limit) = self.settings.max_in_flight_per_endpoint else {
            return Some(None);
        };
        let endpoint = &self.endpoints[index].state;
        Seat::of_endpoint(&self.state, endpoint, ask.stay, ask.priority.share(limit)).map(Some)
    }

    /// The endpoint for the next attempt. One that is out and due is asked first, by an attempt that may fail
    /// ([`Ask::may_probe`]): nothing else brings it back.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, ask: &Ask<'_>, now: Moment, dice: &mut Dice) -> Result<Picked, NoPick> {
        let candidates = Candidates {
            cluster: self,
            ask,
            // Ordering: Relaxed; a hint that the next tick sets right.
            guard: ask.guard.filter(|_| self.state.any_shut.load(Ordering::Relaxed)),
        };
        let wish = Wish {
            hash: ask.hash,
            may_probe: ask.may_probe,
        };
        let panic = self.settings.panic.as_ref();
        let picked = pick::pick(&self.balancer, &candidates, panic, wish, now, dice)?;
        Ok(Picked {
            index: picked.index,
            probe: match picked.role {
                Role::Probe(probe) => Some(probe),
                Role::Usual | Role::Panic => None,
            },
            seat: picked.place,
        })
    }

    /// How many members are available, of how many; those that somebody took out on purpose do not count.
    fn standing(&self) -> (usize, usize) {
        let counts = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.weight > 0 && !panic::is_taken_out(endpoint.state.availability()));
        counts.fold((0, 0), |(available, total), endpoint| {
            (available + usize::from(endpoint.is_usable()), total + 1)
        })
    }
}

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The members at the moment of a pick.
struct Candidates<'a> {
    cluster: &'a Cluster,
    ask: &'a Ask<'a>,
    /// The breaker to ask, while any may refuse.
    guard: Option<usize>,
}

impl pick::Candidates for Candidates<'_> {
    type Probe = Probe;
    type Place = Option<Seat>;

    fn count(&self) -> usize {
        self.cluster.endpoints.len()
    }

    fn takes_part(&self, index: usize) -> bool {
        self.cluster.endpoints[index].weight > 0
    }

    fn availability(&self, index: usize) -> Availability {
        self.cluster.endpoints[index].state.availability()
    }

    fn pulse(&self, index: usize) -> &Pulse {
        &self.cluster.endpoints[index].state.pulse
    }

    fn load(&self, index: usize) -> &Load {
        &self.cluster.endpoints[index].state.load
    }

    fn share(&self, index: usize, now: Moment) -> f32 {
        let arbiter = &self.cluster.endpoints[index].state.arbiter;
        let factor = arbiter.factor() / self.cluster.state.greatest_share();
        let entered = arbiter.entered();
        match self.cluster.settings.slow_start {
            Some(window) if entered > Moment::ZERO => factor * SlowStart { window }.factor(entered, now),
            _ => factor,
        }
    }

    fn is_tried(&self, index: usize) -> bool {
        self.ask.tried.contains(&index_of(index))
    }

    /// Whether an endpoint is at its limit, or at what it asked for itself.
    fn is_full(&self, index: usize) -> bool {
        let state = &self.cluster.endpoints[index].state;
        let (asked, ask) = (state.asked_at_most(), self.ask);
        let limit = self.cluster.settings.max_in_flight_per_endpoint;
        (asked != u32::MAX && state.load.in_flight() >= asked)
            || limit.is_some_and(|limit| state.places.of(ask.stay).in_flight() >= ask.priority.share(limit))
    }

    fn take(&self, index: usize) -> Option<Self::Place> {
        self.cluster.take_place(index, self.ask)
    }

    fn may_be_due(&self) -> bool {
        // Ordering: Relaxed; a hint that the sweep sets right.
        self.cluster.settings.outlier.is_some() && self.cluster.state.any_out.load(Ordering::Relaxed)
    }

    fn try_probe(&self, index: usize, now: Moment, _: &mut Dice) -> Option<Probe> {
        let settings = self.cluster.settings.outlier.as_ref()?;
        let ejection = &self.cluster.endpoints[index].state.ejection;
        ejection.try_probe(&settings.ejection, now)
    }

    fn passage(&self, index: usize, now: Moment) -> Passage {
        self.cluster.endpoints[index].passage(self.guard, now)
    }

    fn may_be_shut(&self) -> bool {
        self.guard.is_some()
    }

    fn panics(&self) -> bool {
        self.cluster.state.panic.since().is_some()
    }
}
