//! What a route does with a request that it matched.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::breaker::{self, Breaker};
use bellwether_core::buckets::Buckets;
use bellwether_core::budget::{self, Budget};
use bellwether_core::hedge::{self, Hedge};
use bellwether_core::limit::{Places, Stay};
use bellwether_core::shed::Priority;
use bellwether_core::shelf::Shelf;
use http::{HeaderName, Method, StatusCode};
use parking_lot::Mutex;

use super::{Breakers, ClusterId, FailureWhen, RateLimit};
use crate::cluster::EndpointState;
use crate::message::direct_response::DirectResponse;
use crate::message::edits::HeaderEdits;
use crate::message::redirect::Redirect;
use crate::message::rewrite::Rewrite;
use crate::route::{HashKey, PathMatch, WeightedSplit};
use crate::telemetry::{FallbackCause, RouteMetrics};

/// A route, compiled.
#[derive(Debug)]
pub struct Route {
    /// Its name, or `route-N`.
    pub name: Arc<str>,
    /// Where it is in the file, for people.
    pub origin: Arc<str>,
    /// The path condition again: rewriting a prefix needs to know which one matched.
    pub path: PathMatch,
    /// What happens.
    pub action: Action,
    /// What the service sees of the target.
    pub rewrite: Option<Rewrite>,
    /// A copy of requests for another cluster.
    pub mirror: Option<Mirror>,
    /// Edits on the way to the service.
    pub request_headers: HeaderEdits,
    /// Edits on the way to the client.
    pub response_headers: HeaderEdits,
    /// Request in to response headers out, all tries included.
    pub timeout: Option<Duration>,
    /// No byte in either direction.
    pub idle_timeout: Option<Duration>,
    /// The whole exchange.
    pub max_duration: Option<Duration>,
    /// Further tries; none when off.
    pub retry: Option<Retry>,
    /// Copies of requests that take long; none when off.
    pub hedge: Option<HedgePlan>,
    /// What counts as failure.
    pub failure_when: FailureWhen,
    /// What stops it when it fails.
    pub breakers: Breakers,
    /// What is done when it cannot answer as it should.
    pub fallback: Option<Fallback>,
    /// Faults on purpose.
    pub fault: Option<Fault>,
    /// How much its requests matter when there is too much.
    pub priority: Priority,
    /// How many may come, in this order.
    pub rate_limits: Box<[RateLimit]>,
    /// Requests in flight.
    pub max_in_flight: Option<u32>,
    /// What outlives the snapshot.
    pub state: Arc<RouteState>,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request to a cluster.
    Forward(Target),
    /// Sends the client elsewhere.
    Redirect(Redirect),
    /// Answers by itself.
    Direct(DirectResponse),
}

/// Where a request goes.
#[derive(Debug)]
pub enum Target {
    /// To one cluster.
    Cluster(ClusterId),
    /// To one of several, by weight.
    Split {
        /// Chooses; indices are those of `clusters`.
        split: WeightedSplit,
        /// The choices.
        clusters: Box<[ClusterId]>,
        /// The same key stays on the same side; without one, chance decides.
        keys: Box<[HashKey]>,
    },
}

/// Copies of requests whose answers nobody waits for.
#[derive(Debug)]
pub struct Mirror {
    /// Who gets them.
    pub cluster: ClusterId,
    /// Share of requests, 0.0 to 1.0.
    pub share: f64,
}

/// When another endpoint is asked although the first has not failed yet.
#[derive(Debug, Clone)]
pub struct HedgePlan {
    /// After what time.
    pub delay: hedge::Delay,
    /// How many copies at most.
    pub max_extra: u32,
    /// What each request adds to the budget.
    pub share: hedge::Share,
    /// For which methods.
    pub methods: RetryMethods,
}

/// What is done when a route cannot answer as it should.
#[derive(Debug)]
pub struct Fallback {
    /// For these reasons.
    pub when: Box<[FallbackCause]>,
    /// What is done.
    pub to: FallbackTo,
}

/// Where a fallback leads.
#[derive(Debug)]
pub enum FallbackTo {
    /// To another cluster.
    Cluster(ClusterId),
    /// To an answer of the route's own.
    Direct(DirectResponse),
}

/// Faults on purpose. Shares are of requests, 0.0 to 1.0.
#[derive(Debug)]
pub struct Fault {
    /// How long to wait first, and how many have to.
    pub delay: Option<(Duration, f64)>,
    /// What to answer, and to how many.
    pub abort: Option<(StatusCode, f64)>,
    /// Only to requests that have this field.
    pub only_with: Option<HeaderName>,
}

/// When and how often a request is tried again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Tries after the first.
    pub num_retries: u32,
    /// After what.
    pub on: RetryOn,
    /// For which methods, once anything may have been sent.
    pub methods: RetryMethods,
    /// A request that carries this field is idempotent.
    pub idempotency_key: HeaderName,
    /// The share of one try.
    pub per_try: PerTry,
    /// Backoff: base and most. The first retry to another endpoint is immediate.
    pub backoff: (Duration, Duration),
    /// The longest `Retry-After` that is obeyed.
    pub retry_after_max: Duration,
    /// Content up to this size is kept for another try.
    pub max_body: usize,
}

/// What may be tried again.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one per word of `retry_on`, in any combination"
)]
pub struct RetryOn {
    /// No connection.
    pub connect_failure: bool,
    /// The endpoint refused the stream before processing it.
    pub refused_stream: bool,
    /// The connection or stream was reset before an answer.
    pub reset: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// Any 5xx.
    pub server_error: bool,
    /// The share of one try ran out.
    pub per_try_timeout: bool,
    /// These statuses.
    pub statuses: Vec<StatusCode>,
    /// These gRPC statuses (in trailers-only answers).
    pub grpc: Vec<u8>,
}

/// Methods that may be tried again.
#[derive(Debug, Clone)]
pub enum RetryMethods {
    /// RFC 9110 §9.2.2.
    Idempotent,
    /// Every one.
    All,
    /// These.
    These(Vec<Method>),
}

/// The share of one try in the route's timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PerTry {
    /// No share: all of it.
    Off,
    /// What is left, divided by the tries that are left.
    Auto,
    /// Fixed.
    After(Duration),
}

/// What is known about a route beyond one snapshot.
#[derive(Debug, Default)]
pub struct RouteState {
    places: Places,
    breakers: Shelf<Breaker>,
    /// How many of those that say how long they wait may be refused for it.
    deadlines: OnceLock<Arc<Budget>>,
    hedge: OnceLock<Hedge>,
    /// Those of endpoints that the route has for itself, by the endpoints' ids.
    of_endpoints: Mutex<HashMap<u64, OfEndpoint>>,
    /// By the name of the limit.
    buckets: Mutex<BTreeMap<Arc<str>, Arc<Buckets>>>,
}

/// Breakers of an endpoint, for as long as somebody knows it.
type OfEndpoint = (Weak<EndpointState>, Shelf<Breaker>);

/// At most a fifth of the requests that say how long they wait are refused because nothing of it is left.
pub const EXPIRED: budget::Settings = budget::Settings {
    share: 0.2,
    per_second: 0,
    window: Duration::from_secs(10),
};

impl RouteState {
    /// How long first tries take, and what may be spent on copies.
    pub fn hedge(&self) -> &Hedge {
        self.hedge.get_or_init(Hedge::new)
    }

    /// Counts those that say how long they wait; [`EXPIRED`] is what it is asked with.
    pub fn deadlines(&self) -> &Arc<Budget> {
        self.deadlines
            .get_or_init(|| Arc::new(Budget::new(EXPIRED.window)))
    }

    /// The breaker of an endpoint for this route alone.
    pub fn breaker_of(
        &self,
        endpoint: &Arc<EndpointState>,
        settings: &breaker::Settings,
        now: Moment,
    ) -> Arc<Breaker> {
        let mut known = self.of_endpoints.lock();
        known.retain(|_, (endpoint, _)| endpoint.strong_count() > 0);
        let (_, shelf) = known
            .entry(endpoint.id)
            .or_insert_with(|| (Arc::downgrade(endpoint), Shelf::default()));
        shelf.take(
            |breaker| breaker.fits(settings),
            |last| Breaker::after(last.map(|last| &**last), settings, now),
        )
    }

    /// The buckets of a rate limit of the route.
    pub fn buckets(&self, name: &Arc<str>) -> Arc<Buckets> {
        let mut known = self.buckets.lock();
        Arc::clone(known.entry(Arc::clone(name)).or_default())
    }

    /// The breaker of the route.
    pub fn breaker(&self, settings: &breaker::Settings, now: Moment) -> Arc<Breaker> {
        self.breakers.take(
            |breaker| breaker.fits(settings),
            |last| Breaker::after(last.map(|last| &**last), settings, now),
        )
    }

    /// The breakers that it has for endpoints by itself, by the endpoints' ids.
    pub(super) fn breakers_of_endpoints(&self) -> Vec<(u64, Arc<Breaker>)> {
        let known = self.of_endpoints.lock();
        let breakers = known
            .iter()
            .filter_map(|(id, (_, shelf))| Some((*id, shelf.last()?)));
        breakers.collect()
    }

    /// Goes on with such a breaker of another process.
    pub(super) fn recall_breaker_of(&self, endpoint: &Arc<EndpointState>, breaker: Breaker) {
        let shelf = Shelf::default();
        shelf.put(breaker);
        let kept = (Arc::downgrade(endpoint), shelf);
        self.of_endpoints.lock().insert(endpoint.id, kept);
    }

    /// The breaker as it was last, whatever its settings.
    pub(super) fn last_breaker(&self) -> Option<Arc<Breaker>> {
        self.breakers.last()
    }

    /// Goes on with a breaker of another process.
    pub(super) fn recall_breaker(&self, breaker: Breaker) {
        self.breakers.put(breaker);
    }
}

/// One request's place under a route's limit; dropping it gives the place back.
#[derive(Debug)]
pub struct RouteSeat {
    state: Arc<RouteState>,
    stay: Stay,
    limit: u32,
}

impl Route {
    /// Takes a place under the route's limit; an inner none where there is no limit.
    pub fn seat(&self, stay: Stay, priority: Priority) -> Option<Option<RouteSeat>> {
        let Some(limit) = self.max_in_flight else {
            return Some(None);
        };
        let limit = priority.share(limit);
        self.state.places.of(stay).try_acquire(limit).then(|| {
            Some(RouteSeat {
                state: Arc::clone(&self.state),
                stay,
                limit,
            })
        })
    }
}

impl Route {
    /// Whether its requests may go to another cluster than the one they were for.
    pub const fn falls_back_to_cluster(&self) -> bool {
        match &self.fallback {
            Some(fallback) => matches!(fallback.to, FallbackTo::Cluster(_)),
            None => false,
        }
    }
}

impl RouteSeat {
    /// The exchange turns out to last: from here on it is counted with those.
    pub fn lasts(&mut self) {
        if self.stay == Stay::Brief && self.state.places.move_to_lasting(self.limit) {
            self.stay = Stay::Lasting;
        }
    }
}

impl Drop for RouteSeat {
    fn drop(&mut self) {
        self.state.places.of(self.stay).release();
    }
}
