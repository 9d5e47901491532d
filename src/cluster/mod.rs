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
    /// Who is ejected, and for how long; none when off.
    pub outlier: Option<outlier::Settings>,
    /// Whether copies of requests find out early that who is ejected works again.
    pub rehearsals: bool,
    /// How many retries the cluster can bear; none means any number.
    pub retry_budget: Option<budget::Settings>,
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
    /// Whether an endpoint may be out.
    any_out: AtomicBool,
    /// Whether the breaker of an endpoint may refuse.
    any_shut: AtomicBool,
    breakers: Shelf<Breaker>,
    budgets: Shelf<Budget>,
}

impl ClusterState {
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
        if may_probe && let Some((index, probe)) = self.due(tried, now) {
            return Ok(Picked {
                index,
                probe: Some(probe),
            });
        }
        // Ordering: Relaxed; a hint that the next tick sets right.
        let guard = wish.guard.filter(|_| self.state.any_shut.load(Ordering::Relaxed));
        let candidates = Candidates {
            cluster: self,
            tried,
            guard,
            now,
        };
        let wanted = || {
            let mut indices = 0..self.endpoints.len();
            guard.and_then(|_| indices.find(|index| candidates.is_wanted(*index)))
        };
        if may_probe && let Some(index) = wanted() {
            return Ok(Picked { index, probe: None });
        }
        if let Some(index) = self.balancer.pick(&candidates, wish.hash, now, dice) {
            return Ok(Picked { index, probe: None });
        }
        // Whoever comes is better than nobody.
        if let Some(index) = wanted() {
            return Ok(Picked { index, probe: None });
        }
        let usable = || {
            self.endpoints
                .iter()
                .enumerate()
                .filter(|(_, e)| e.weight > 0 && e.state.is_available())
        };
        let in_service = |endpoint: &Endpoint| self.settings.outlier.is_none() || endpoint.is_in_service();
        let untried = |index: usize| !tried.contains(&index_of(index));
        if usable().next().is_none() {
            return Err(NoPick::NoneAvailable);
        }
        if !usable().any(|(_, endpoint)| in_service(endpoint)) {
            // Panic: nobody is left but those that are ejected, and one of them is better than nobody.
            let left: SmallVec<[usize; 8]> = usable()
                .map(|(index, _)| index)
                .filter(|index| untried(*index))
                .collect();
            let draw = dice.below(u32::try_from(left.len().max(1)).unwrap_or(u32::MAX)) as usize;
            let index = *left.get(draw).ok_or(NoPick::AllTried)?;
            return Ok(Picked { index, probe: None });
        }
        let mut serving = usable().filter(|(_, endpoint)| in_service(endpoint));
        if serving.all(|(index, _)| !untried(index)) {
            return Err(NoPick::AllTried);
        }
        let shut = usable()
            .filter(|(index, endpoint)| in_service(endpoint) && untried(*index))
            .filter_map(|(_, endpoint)| match endpoint.passage(guard, now) {
                Passage::Shut(left) => Some(left),
                Passage::Free | Passage::Due => None,
            })
            .min();
        Err(shut.map_or(NoPick::AtLimit, NoPick::BreakersOpen))
    }
}

fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// What the balancer asks about the members at the moment of a pick.
struct Candidates<'a> {
    cluster: &'a Cluster,
    tried: &'a Tried,
    /// The breaker to ask, while any may refuse.
    guard: Option<usize>,
    now: Moment,
}

impl Candidates<'_> {
    /// Whether it could be picked if it had no breaker.
    fn is_usable(&self, index: usize) -> bool {
        let endpoint = &self.cluster.endpoints[index];
        endpoint.state.is_available()
            && (self.cluster.settings.outlier.is_none() || endpoint.is_in_service())
            && !self.tried.contains(&index_of(index))
            && self
                .cluster
                .settings
                .max_in_flight_per_endpoint
                .is_none_or(|limit| endpoint.state.load.in_flight() < limit)
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
        let Some(window) = self.cluster.settings.slow_start else {
            return 1.0;
        };
        let joined = self.cluster.endpoints[index].state.joined();
        if joined == Moment::ZERO {
            1.0
        } else {
            SlowStart { window }.factor(joined, now)
        }
    }
}
