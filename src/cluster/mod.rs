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
use bellwether_core::balance::{Balancer, Load, Members};
use bellwether_core::breaker::{self, Breaker, Passage};
use bellwether_core::budget::{self, Budget};
use bellwether_core::ejection::Probe;
use bellwether_core::limit::{Places, Stay};
use bellwether_core::outlier::{self, Referee};
use bellwether_core::panic::{self, Panic};
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

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPick {
    /// There is none, or none that may be used.
    NoneAvailable,
    /// Those that may be used are at their limit.
    AtLimit,
    /// Every one that may be used has been tried.
    AllTried,
    /// The breakers of those that are left refuse, for so long.
    BreakersOpen(Duration),
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

    /// One of these candidates, with its place.
    fn pick_among(&self, candidates: &Candidates<'_>, now: Moment, dice: &mut Dice) -> Option<Picked> {
        for _ in 0..RACES {
            let index = self.balancer.pick(candidates, candidates.ask.hash, now, dice)?;
            // Another worker may have taken the last place meanwhile.
            if let Some(picked) = self.again(index, candidates.ask) {
                return Some(picked);
            }
        }
        None
    }

    /// The endpoint for the next attempt. One that is out and due is asked first, by an attempt that may fail
    /// ([`Ask::may_probe`]): nothing else brings it back.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, ask: &Ask<'_>, now: Moment, dice: &mut Dice) -> Result<Picked, NoPick> {
        if ask.may_probe
            && let Some((index, probe)) = self.due(ask.tried, now, dice)
            && let Some(seat) = self.take_place(index, ask)
        {
            return Ok(Picked {
                index,
                probe: Some(probe),
                seat,
            });
        }
        // Where panic began with endpoints left, nobody's health is asked; usually it begins when nobody is left.
        let calm = Candidates {
            cluster: self,
            ask,
            // Ordering: Relaxed; a hint that the next tick sets right.
            guard: ask.guard.filter(|_| self.state.any_shut.load(Ordering::Relaxed)),
            now,
            panic: self.state.panic.since().and(self.settings.panic),
        };
        let wanted = || {
            let mut indices = 0..self.endpoints.len();
            let index = calm
                .guard
                .and_then(|_| indices.find(|index| calm.is_wanted(*index)))?;
            self.again(index, ask)
        };
        if ask.may_probe
            && let Some(picked) = wanted()
        {
            return Ok(picked);
        }
        if let Some(picked) = self.pick_among(&calm, now, dice) {
            return Ok(picked);
        }
        // Whoever comes is better than nobody.
        if let Some(picked) = wanted() {
            return Ok(picked);
        }
        let panicking = Candidates {
            panic: calm.panic.or_else(|| self.panics()),
            ..calm
        };
        if panicking.panic.is_some()
            && calm.panic.is_none()
            && let Some(picked) = self.pick_among(&panicking, now, dice)
        {
            return Ok(picked);
        }
        let mut willing = (0..self.endpoints.len())
            .filter(|index| self.endpoints[*index].weight > 0 && panicking.is_willing(*index))
            .peekable();
        if willing.peek().is_none() {
            return Err(NoPick::NoneAvailable);
        }
        let mut untried = willing
            .filter(|index| !ask.tried.contains(&index_of(*index)))
            .peekable();
        if untried.peek().is_none() {
            return Err(NoPick::AllTried);
        }
        let shut = untried
            .filter_map(|index| match self.endpoints[index].passage(calm.guard, now) {
                Passage::Shut(left) => Some(left),
                Passage::Free | Passage::Due => None,
            })
            .min();
        Err(shut.map_or(NoPick::AtLimit, NoPick::BreakersOpen))
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

    /// The settings of panic, if this is one.
    fn panics(&self) -> Option<panic::Settings> {
        let (available, total) = self.standing();
        self.settings
            .panic
            .filter(|settings| settings.is_panic(available, total))
    }
}

/// How often a pick tries again after another worker was faster.
const RACES: usize = 4;

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// What the balancer asks about the members at the moment of a pick.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    cluster: &'a Cluster,
    ask: &'a Ask<'a>,
    /// The breaker to ask, while any may refuse.
    guard: Option<usize>,
    now: Moment,
    /// In panic not health decides, but who would answer at all.
    panic: Option<panic::Settings>,
}

impl Candidates<'_> {
    /// Whether an endpoint is below its limit, and below what it asked for itself.
    fn has_room(&self, endpoint: &Endpoint) -> bool {
        let asked = endpoint.state.asked_at_most();
        let ask = self.ask;
        (asked == u32::MAX || endpoint.state.load.in_flight() < asked)
            && self
                .cluster
                .settings
                .max_in_flight_per_endpoint
                .is_none_or(|limit| {
                    endpoint.state.places.of(ask.stay).in_flight() < ask.priority.share(limit)
                })
    }

    /// Whether an endpoint would take a request, apart from limits and from what this request has tried.
    fn is_willing(&self, index: usize) -> bool {
        let state = &self.cluster.endpoints[index].state;
        match &self.panic {
            None => state.availability().is_available(),
            Some(settings) => settings.admits(state.availability(), &state.pulse, self.now),
        }
    }
}

impl Candidates<'_> {
    /// Whether it could be picked if it had no breaker.
    fn is_usable(&self, index: usize) -> bool {
        let endpoint = &self.cluster.endpoints[index];
        self.is_willing(index) && !self.ask.tried.contains(&index_of(index)) && self.has_room(endpoint)
    }

    /// Whether its breaker waits for a probe.
    fn is_wanted(&self, index: usize) -> bool {
        let endpoint = &self.cluster.endpoints[index];
        endpoint.weight > 0 && endpoint.passage(self.guard, self.now) == Passage::Due && self.is_usable(index)
    }
}

impl Members for Candidates<'_> {
    fn load(&self, index: usize) -> &Load {
        &self.cluster.endpoints[index].state.load
    }

    fn eligible(&self, index: usize) -> bool {
        self.is_usable(index)
            && (self.guard.is_none()
                || self.cluster.endpoints[index].passage(self.guard, self.now) == Passage::Free)
    }

    fn slow_start(&self, index: usize, now: Moment) -> f32 {
        if self.panic.is_some() {
            return 1.0;
        }
        let arbiter = &self.cluster.endpoints[index].state.arbiter;
        let factor = arbiter.factor() / self.cluster.state.greatest_share();
        let entered = arbiter.entered();
        match self.cluster.settings.slow_start {
            Some(window) if entered > Moment::ZERO => factor * SlowStart { window }.factor(entered, now),
            _ => factor,
        }
    }
}
