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
pub mod health;
pub mod outliers;
pub mod pool;
pub mod probe;
#[cfg(test)]
mod testing;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bellwether_core::adaptive::{Adaptive, Range, Readings, Sample};
use bellwether_core::arbiter::Source;
use bellwether_core::balance::{Balancer, Load, Members};
use bellwether_core::breaker::{self, Breaker};
use bellwether_core::budget::{self, Budget};
use bellwether_core::ejection::Probe;
use bellwether_core::limit::{Places, Stay};
use bellwether_core::outlier::{self, Referee};
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
    /// Who is ejected, and for how long; none when off.
    pub outlier: Option<outlier::Settings>,
    /// How many retries the cluster can bear; none means any number.
    pub retry_budget: Option<budget::Settings>,
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
    /// Whether an endpoint may be out.
    any_out: AtomicBool,
    breakers: Shelf<Breaker>,
    budgets: Shelf<Budget>,
}

impl ClusterState {
    /// Who waits for a place.
    pub const fn gate(&self) -> &Gate {
        &self.gate
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
}

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPick {
    /// There is none, or none that may be used.
    NoneAvailable,
    /// Those that may be used are at their limit.
    AtLimit,
    /// Every one that may be used has been tried.
    AllTried,
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

    /// The same endpoint once more, if it has a place.
    pub fn again(&self, index: usize, ask: &Ask<'_>) -> Option<Picked> {
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

    /// The endpoint for the next attempt. One that is ejected and due is asked first, by an attempt that may fail
    /// ([`Ask::may_probe`]): nothing else brings it back.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, ask: &Ask<'_>, now: Moment, dice: &mut Dice) -> Result<Picked, NoPick> {
        let tried = ask.tried;
        if ask.may_probe
            && let Some((index, probe)) = self.due(tried, now)
            && let Some(seat) = self.take_place(index, ask)
        {
            return Ok(Picked {
                index,
                probe: Some(probe),
                seat,
            });
        }
        let candidates = Candidates { cluster: self, ask };
        for _ in 0..RACES {
            let Some(index) = self.balancer.pick(&candidates, ask.hash, now, dice) else {
                break;
            };
            // Another worker may have taken the last place meanwhile.
            if let Some(picked) = self.again(index, ask) {
                return Ok(picked);
            }
        }
        let untried = |index: usize| !tried.contains(&index_of(index));
        let mut usable = (0..self.endpoints.len())
            .filter(|index| self.endpoints[*index].is_usable())
            .peekable();
        if usable.peek().is_some() {
            return Err(if usable.any(untried) {
                NoPick::AtLimit
            } else {
                NoPick::AllTried
            });
        }
        // Panic: nobody is left but those that are ejected, and one of them is better than nobody.
        let only_ejected = |index: &usize| {
            let endpoint = &self.endpoints[*index];
            endpoint.weight > 0 && endpoint.state.availability().is_removed_only_by(Source::Ejection)
        };
        let left: SmallVec<[usize; 8]> = (0..self.endpoints.len()).filter(only_ejected).collect();
        if left.is_empty() {
            return Err(NoPick::NoneAvailable);
        }
        let left: SmallVec<[usize; 8]> = left.into_iter().filter(|index| untried(*index)).collect();
        let draw = dice.below(u32::try_from(left.len().max(1)).unwrap_or(u32::MAX)) as usize;
        let index = *left.get(draw).ok_or(NoPick::AllTried)?;
        self.again(index, ask).ok_or(NoPick::AtLimit)
    }
}

/// How often a pick tries again after another worker was faster.
const RACES: usize = 4;

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// What the balancer asks about the members at the moment of a pick.
struct Candidates<'a> {
    cluster: &'a Cluster,
    ask: &'a Ask<'a>,
}

impl Members for Candidates<'_> {
    fn load(&self, index: usize) -> &Load {
        &self.cluster.endpoints[index].state.load
    }

    fn eligible(&self, index: usize) -> bool {
        let endpoint = &self.cluster.endpoints[index];
        endpoint.state.availability().is_available()
            && !self.ask.tried.contains(&index_of(index))
            && self
                .cluster
                .settings
                .max_in_flight_per_endpoint
                .is_none_or(|limit| {
                    endpoint.state.places.of(self.ask.stay).in_flight() < self.ask.priority.share(limit)
                })
    }

    fn slow_start(&self, index: usize, now: Moment) -> f32 {
        let arbiter = &self.cluster.endpoints[index].state.arbiter;
        let factor = arbiter.factor();
        let entered = arbiter.entered();
        match self.cluster.settings.slow_start {
            Some(window) if entered > Moment::ZERO => factor * SlowStart { window }.factor(entered, now),
            _ => factor,
        }
    }
}
