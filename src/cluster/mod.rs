//! Clusters: endpoints, connections to them, and where their addresses come from.
//!
//! A [`Cluster`] is part of a snapshot and immutable; what is learned about its members lives in [`EndpointState`]
//! and is found again by the next snapshot. Picking reads that state in place. Connections belong to one worker each
//! ([`pool`]), so checking one out takes no lock.

pub mod connect;
pub mod discovery;
pub mod endpoint;
pub mod exchange;
pub mod guarded;
pub mod health;
pub mod heartbeat;
pub mod outliers;
pub mod pool;
pub mod probe;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bellwether_core::balance::{Balancer, Load, Members};
use bellwether_core::breaker::{self, Breaker, Passage};
use bellwether_core::budget::{self, Budget};
use bellwether_core::ejection::Probe;
use bellwether_core::outlier::{self, Referee};
use bellwether_core::panic::{self, Panic};
use bellwether_core::shelf::Shelf;
use bellwether_core::slow_start::SlowStart;
use bellwether_core::{Dice, Moment};
use smallvec::SmallVec;

use crate::net::proxy_protocol;
use crate::net::tls::ClientTls;
use crate::route::HashKey;
use crate::telemetry::ClusterMetrics;
pub use endpoint::{Endpoint, EndpointState};
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
    in_flight: AtomicU32,
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

/// One request's place under a cluster's limit; dropping it gives the place back.
#[derive(Debug)]
pub struct Seat {
    state: Option<Arc<ClusterState>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An endpoint for one attempt.
#[derive(Debug)]
pub struct Picked {
    /// Which one.
    pub index: usize,
    /// It is ejected, and this attempt finds out whether it may come back.
    pub probe: Option<Probe>,
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

/// What a request asks of the picker, the same for all of its attempts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// For policies that hash.
    pub hash: Option<u64>,
    /// The place of the breaker that its attempts ask, among those of each endpoint.
    pub guard: Option<usize>,
}

impl Cluster {
    /// Takes a place under the cluster's limit.
    pub fn seat(&self) -> Option<Seat> {
        let Some(limit) = self.settings.max_in_flight else {
            return Some(Seat { state: None });
        };
        // Ordering: the count itself is exact; nothing else is published through it.
        let before = self.state.in_flight.fetch_add(1, Ordering::Relaxed);
        if before >= limit {
            self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Seat {
            state: Some(Arc::clone(&self.state)),
        })
    }

    /// The endpoint for the next attempt. One that is out and due is asked first, by an attempt that may fail
    /// (`may_probe`): nothing else brings it back.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(
        &self,
        tried: &Tried,
        wish: Wish,
        may_probe: bool,
        now: Moment,
        dice: &mut Dice,
    ) -> Result<Picked, NoPick> {
        if may_probe && let Some((index, probe)) = self.due(tried, now, dice) {
            return Ok(Picked {
                index,
                probe: Some(probe),
            });
        }
        // Where panic began with endpoints left, nobody's health is asked; usually it begins when nobody is left.
        let calm = Candidates {
            cluster: self,
            tried,
            // Ordering: Relaxed; a hint that the next tick sets right.
            guard: wish.guard.filter(|_| self.state.any_shut.load(Ordering::Relaxed)),
            now,
            panic: self.state.panic.since().and(self.settings.panic),
        };
        let wanted = || {
            let mut indices = 0..self.endpoints.len();
            calm.guard
                .and_then(|_| indices.find(|index| calm.is_wanted(*index)))
        };
        if may_probe && let Some(index) = wanted() {
            return Ok(Picked { index, probe: None });
        }
        if let Some(index) = self.balancer.pick(&calm, wish.hash, now, dice) {
            return Ok(Picked { index, probe: None });
        }
        // Whoever comes is better than nobody.
        if let Some(index) = wanted() {
            return Ok(Picked { index, probe: None });
        }
        let panicking = Candidates {
            panic: calm.panic.or_else(|| self.panics()),
            ..calm
        };
        if panicking.panic.is_some()
            && calm.panic.is_none()
            && let Some(index) = self.balancer.pick(&panicking, wish.hash, now, dice)
        {
            return Ok(Picked { index, probe: None });
        }
        let mut willing = (0..self.endpoints.len())
            .filter(|index| self.endpoints[*index].weight > 0 && panicking.is_willing(*index))
            .peekable();
        if willing.peek().is_none() {
            return Err(NoPick::NoneAvailable);
        }
        let mut untried = (0..self.endpoints.len())
            .filter(|index| self.endpoints[*index].weight > 0 && panicking.is_willing(*index))
            .filter(|index| !tried.contains(&index_of(*index)))
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

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// What the balancer asks about the members at the moment of a pick.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    cluster: &'a Cluster,
    tried: &'a Tried,
    /// The breaker to ask, while any may refuse.
    guard: Option<usize>,
    now: Moment,
    /// In panic not health decides, but who would answer at all.
    panic: Option<panic::Settings>,
}

impl Candidates<'_> {
    /// Whether an endpoint is below its limit, and below what it asked for itself.
    fn has_room(&self, endpoint: &Endpoint) -> bool {
        let limit = self
            .cluster
            .settings
            .max_in_flight_per_endpoint
            .unwrap_or(u32::MAX);
        let limit = limit.min(endpoint.state.asked_at_most());
        limit == u32::MAX || endpoint.state.load.in_flight() < limit
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
        self.is_willing(index) && !self.tried.contains(&index_of(index)) && self.has_room(endpoint)
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
