//! What the rest of the program counts with: one struct of cells per named thing.
//!
//! A handle is made once, when a configuration is compiled, by asking the [`Recorder`](super::Recorder) for it by name,
//! and kept as a field. Counting then is an index and an add: no label is hashed and no name looked at. The same name
//! gives the same handle again, so counters go on over a reload.
//!
//! Every verb takes the [`WorkerId`] of the calling thread ([`WorkerId::CONTROL`] for whoever is not a worker).
//! Invariant: whatever goes up by a verb must come down by its counterpart, on any worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bellwether_core::adaptive::Readings;
use bellwether_core::breaker::{CHANGES, Permit, State, Transition};
use bellwether_core::shed::{Level, Priority};
use bellwether_core::window::Counts;
use bellwether_core::{Mode, Reason};

use super::cells::{Block, Cell64, CodeCells, HistogramCells, Layout, Sharded, WorkerId, nanos};
use super::labels::{
    BreakerCall, CheckResult, CloseReason, ConnectResult, ConnectionRejection, ConnectionState,
    DeadlineStage, Detector, Direction, DiscoveryResult, DrainState, EjectionResult, EndpointLabel,
    FallbackCause, HealthSource, HealthTo, HeartbeatResult, HedgeResult, Label, OutcomeLabel, ReloadResult,
    ReloadTrigger, RetryResult, RetryTrigger, RetryVeto, ShedReason, ShedScope, Side, TlsResult,
    UpstreamFailure,
};

/// How a request ended, for [`RouteMetrics::request_ended`].
#[derive(Clone, Copy, Debug)]
pub struct RequestEnd {
    /// The status sent, or 0 when none was.
    pub code: u16,
    /// How it went.
    pub outcome: OutcomeLabel,
    /// From the head of the request to the last byte of the answer.
    pub duration: Duration,
    /// From the head of the request to the head of the answer; none when there was no answer.
    pub ttfb: Option<Duration>,
    /// Time in the proxy minus time spent waiting for the upstream; none when nobody was asked.
    pub overhead: Option<Duration>,
    /// Attempts made; 0 when nobody was asked.
    pub attempts: u32,
}

/// How an attempt ended, for [`ClusterMetrics::attempt_ended`].
#[derive(Clone, Copy, Debug)]
pub struct AttemptEnd {
    /// The status received, or 0 when none was.
    pub code: u16,
    /// How it went.
    pub outcome: OutcomeLabel,
    /// From the choice of the endpoint to the end of the answer.
    pub duration: Duration,
}

/// A listener by name: connections from clients.
#[derive(Debug)]
pub struct ListenerMetrics {
    pub(crate) name: Arc<str>,
    pub(crate) cells: Sharded<ListenerBlock>,
}

#[derive(Debug)]
pub(crate) struct ListenerBlock {
    pub(crate) open: Cell64,
    pub(crate) accepted: Cell64,
    pub(crate) rejected: [Cell64; ConnectionRejection::COUNT],
}

impl Block for ListenerBlock {
    fn empty(_: &Layout) -> Self {
        Self {
            open: Cell64::default(),
            accepted: Cell64::default(),
            rejected: Default::default(),
        }
    }
}

impl ListenerMetrics {
    pub(crate) fn new(name: Arc<str>, layout: &Arc<Layout>) -> Self {
        Self {
            name,
            cells: Sharded::new(layout),
        }
    }

    /// A connection was accepted, whatever becomes of it.
    #[inline]
    pub fn connection_opened(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.accepted.add(slot.access, 1);
        slot.block.open.add(slot.access, 1);
    }

    /// It is gone.
    #[inline]
    pub fn connection_closed(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.open.sub(slot.access, 1);
    }

    /// It was let go before any request on it. Independent of opened and closed.
    pub fn connection_rejected(&self, worker: WorkerId, reason: ConnectionRejection) {
        let slot = self.cells.at(worker);
        slot.block.rejected[reason.index()].add(slot.access, 1);
    }

    /// Connections open now, over all workers.
    pub fn connections(&self) -> u64 {
        self.cells.level(|block| &block.open) as u64
    }
}

/// A route by name: requests. The route `none` stands for requests that matched no route.
#[derive(Debug)]
pub struct RouteMetrics {
    pub(crate) name: Arc<str>,
    pub(crate) cells: Sharded<RouteBlock>,
}

#[derive(Debug)]
pub(crate) struct RouteBlock {
    pub(crate) in_flight: Cell64,
    pub(crate) requests: CodeCells,
    pub(crate) duration: HistogramCells,
    pub(crate) ttfb: HistogramCells,
    pub(crate) overhead: HistogramCells,
    pub(crate) attempts: HistogramCells,
    pub(crate) rejections: [Cell64; Reason::ALL.len()],
    pub(crate) retries: [[Cell64; RetryResult::COUNT]; RetryTrigger::COUNT],
    pub(crate) vetoes: [Cell64; RetryVeto::COUNT],
    pub(crate) deadlines: [Cell64; DeadlineStage::COUNT],
    pub(crate) hedges: [Cell64; HedgeResult::COUNT],
    pub(crate) fallbacks: [Cell64; FallbackCause::COUNT],
}

impl Block for RouteBlock {
    fn empty(layout: &Layout) -> Self {
        Self {
            in_flight: Cell64::default(),
            requests: CodeCells::default(),
            duration: HistogramCells::new(&layout.latency),
            ttfb: HistogramCells::new(&layout.latency),
            overhead: HistogramCells::new(&layout.overhead),
            attempts: HistogramCells::new(&layout.attempts),
            rejections: std::array::from_fn(|_| Cell64::default()),
            retries: Default::default(),
            vetoes: Default::default(),
            deadlines: Default::default(),
            hedges: Default::default(),
            fallbacks: Default::default(),
        }
    }
}

impl RouteMetrics {
    pub(crate) fn new(name: Arc<str>, layout: &Arc<Layout>) -> Self {
        Self {
            name,
            cells: Sharded::new(layout),
        }
    }

    /// A request was matched to this route. Ends with [`RouteMetrics::request_ended`].
    #[inline]
    pub fn request_started(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.in_flight.add(slot.access, 1);
    }

    /// It is over, on any worker, in any way.
    #[inline]
    pub fn request_ended(&self, worker: WorkerId, end: &RequestEnd) {
        let layout = self.cells.layout();
        let slot = self.cells.at(worker);
        let (block, access) = (slot.block, slot.access);
        block.in_flight.sub(access, 1);
        block.requests.add(access, end.code, end.outcome);
        block
            .duration
            .record(&layout.latency, access, nanos(end.duration));
        if let Some(ttfb) = end.ttfb {
            block.ttfb.record(&layout.latency, access, nanos(ttfb));
        }
        if let Some(overhead) = end.overhead {
            block.overhead.record(&layout.overhead, access, nanos(overhead));
        }
        if end.attempts > 0 {
            block
                .attempts
                .record(&layout.attempts, access, u64::from(end.attempts));
        }
    }

    /// We answered ourselves; beside [`RouteMetrics::request_ended`].
    pub fn request_rejected(&self, worker: WorkerId, reason: Reason) {
        let slot = self.cells.at(worker);
        slot.block.rejections[reason.index()].add(slot.access, 1);
    }

    /// A retry was made and this is how it ended.
    pub fn retried(&self, worker: WorkerId, trigger: RetryTrigger, result: RetryResult) {
        let slot = self.cells.at(worker);
        slot.block.retries[trigger.index()][result.index()].add(slot.access, 1);
    }

    /// What came of a copy.
    pub fn hedged(&self, worker: WorkerId, result: HedgeResult) {
        let slot = self.cells.at(worker);
        slot.block.hedges[result.index()].add(slot.access, 1);
    }

    /// A failed attempt was not repeated.
    pub fn retry_vetoed(&self, worker: WorkerId, veto: RetryVeto) {
        let slot = self.cells.at(worker);
        slot.block.vetoes[veto.index()].add(slot.access, 1);
    }

    /// The time of a request ran out.
    pub fn deadline_expired(&self, worker: WorkerId, stage: DeadlineStage) {
        let slot = self.cells.at(worker);
        slot.block.deadlines[stage.index()].add(slot.access, 1);
    }

    /// A request was answered by the route's fallback, or sent to it.
    pub fn fell_back(&self, worker: WorkerId, cause: FallbackCause) {
        let slot = self.cells.at(worker);
        slot.block.fallbacks[cause.index()].add(slot.access, 1);
    }

    /// Requests running now, over all workers.
    pub fn in_flight(&self) -> u64 {
        self.cells.level(|block| &block.in_flight) as u64
    }
}

/// Whether a family of series is part of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// A circuit breaker by what it guards: what it did with requests, and how it stood when last looked at.
#[derive(Debug)]
pub struct BreakerMetrics {
    pub(crate) scope: &'static str,
    pub(crate) route: Arc<str>,
    pub(crate) cluster: Arc<str>,
    pub(crate) cells: Sharded<BreakerBlock>,
    pub(crate) seen: parking_lot::Mutex<BreakerSeen>,
}

/// How a breaker stood when last looked at.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSeen {
    /// Its state.
    pub state: State,
    /// What its window held.
    pub counts: Counts,
    /// Seconds since 1970 at which it tries again; 0 when it is not open.
    pub open_until: u64,
}

#[derive(Debug)]
pub(crate) struct BreakerBlock {
    pub(crate) calls: [Cell64; BreakerCall::COUNT],
    pub(crate) changes: [Cell64; CHANGES.len()],
}

impl Block for BreakerBlock {
    fn empty(_: &Layout) -> Self {
        Self {
            calls: Default::default(),
            changes: Default::default(),
        }
    }
}

impl BreakerMetrics {
    pub(crate) fn new(scope: &'static str, route: Arc<str>, cluster: Arc<str>, layout: &Arc<Layout>) -> Self {
        Self {
            scope,
            route,
            cluster,
            cells: Sharded::new(layout),
            seen: parking_lot::Mutex::new(BreakerSeen {
                state: State::Closed,
                counts: Counts::default(),
                open_until: 0,
            }),
        }
    }

    /// A call was let pass.
    #[inline]
    pub fn passed(&self, worker: WorkerId, permit: &Permit) {
        let answer = match () {
            () if permit.is_probe() => BreakerCall::Probe,
            () if permit.is_shadow() => BreakerCall::WouldReject,
            () => BreakerCall::Admitted,
        };
        self.called(worker, answer);
    }

    /// A call asked.
    #[inline]
    pub fn called(&self, worker: WorkerId, answer: BreakerCall) {
        let slot = self.cells.at(worker);
        slot.block.calls[answer.index()].add(slot.access, 1);
    }

    /// The state changed.
    pub fn changed(&self, worker: WorkerId, change: &Transition) {
        let kind = (change.to, change.cause);
        if let Some(index) = CHANGES.iter().position(|known| *known == kind) {
            let slot = self.cells.at(worker);
            slot.block.changes[index].add(slot.access, 1);
        }
    }

    /// How it stands.
    pub fn show(&self, seen: BreakerSeen) {
        *self.seen.lock() = seen;
    }
}

/// A rate limit of a route, by what it counts.
#[derive(Debug)]
pub struct RateMetrics {
    pub(crate) route: Arc<str>,
    pub(crate) policy: Arc<str>,
    pub(crate) cells: Sharded<RateBlock>,
}

#[derive(Debug)]
pub(crate) struct RateBlock {
    pub(crate) refused: Cell64,
    pub(crate) observed: Cell64,
    pub(crate) evicted: Cell64,
}

impl Block for RateBlock {
    fn empty(_: &Layout) -> Self {
        Self {
            refused: Cell64::default(),
            observed: Cell64::default(),
            evicted: Cell64::default(),
        }
    }
}

impl RateMetrics {
    pub(crate) fn new(route: Arc<str>, policy: Arc<str>, layout: &Arc<Layout>) -> Self {
        Self {
            route,
            policy,
            cells: Sharded::new(layout),
        }
    }

    /// A request was above the limit.
    pub fn limited(&self, worker: WorkerId, mode: Mode) {
        let slot = self.cells.at(worker);
        let cell = match mode {
            Mode::Enforce => &slot.block.refused,
            Mode::Observe => &slot.block.observed,
        };
        cell.add(slot.access, 1);
    }

    /// Keys were forgotten that were not at rest.
    pub fn evicted(&self, worker: WorkerId, keys: u32) {
        let slot = self.cells.at(worker);
        slot.block.evicted.add(slot.access, u64::from(keys));
    }
}

/// A cluster by name: attempts, connections, health, discovery.
#[derive(Debug)]
pub struct ClusterMetrics {
    pub(crate) name: Arc<str>,
    pub(crate) cells: Sharded<ClusterBlock>,
    /// Set by whoever counts the members.
    pub(crate) endpoints: [AtomicU64; EndpointLabel::COUNT],
    /// Whether members come from a source that may fail.
    pub(crate) discovered: AtomicBool,
    /// Seconds since 1970, 0 for never.
    pub(crate) last_discovery: AtomicU64,
    pub(crate) stale: AtomicBool,
    /// Whether members are checked.
    pub(crate) checked: AtomicBool,
    /// Breakers of members by state; all 0 where they have none.
    pub(crate) breakers: [AtomicU64; State::ALL.len()],
    /// Whether too few are left.
    pub(crate) panic: AtomicBool,
    /// How its adaptive limit stood when last looked at; none where it has none.
    pub(crate) concurrency: parking_lot::Mutex<Option<Readings>>,
}

#[derive(Debug)]
pub(crate) struct ClusterBlock {
    pub(crate) in_flight: Cell64,
    pub(crate) attempts: CodeCells,
    pub(crate) duration: HistogramCells,
    pub(crate) failures: [Cell64; UpstreamFailure::COUNT],
    pub(crate) queued: Cell64,
    pub(crate) queue_wait: HistogramCells,
    pub(crate) would_reject: Cell64,
    pub(crate) bytes: [Cell64; Direction::COUNT],
    pub(crate) connections: [Cell64; ConnectionState::COUNT],
    pub(crate) connects: [Cell64; ConnectResult::COUNT],
    pub(crate) connect_duration: HistogramCells,
    pub(crate) closed: [Cell64; CloseReason::COUNT],
    pub(crate) ejections: [[Cell64; EjectionResult::COUNT]; Detector::COUNT],
    pub(crate) checks: [Cell64; CheckResult::COUNT],
    pub(crate) heartbeats: [Cell64; HeartbeatResult::COUNT],
    pub(crate) transitions: [[Cell64; HealthTo::COUNT]; HealthSource::COUNT],
    pub(crate) discovery: [Cell64; DiscoveryResult::COUNT],
}

impl Block for ClusterBlock {
    fn empty(layout: &Layout) -> Self {
        Self {
            in_flight: Cell64::default(),
            attempts: CodeCells::default(),
            duration: HistogramCells::new(&layout.latency),
            failures: Default::default(),
            queued: Cell64::default(),
            queue_wait: HistogramCells::new(&layout.latency),
            would_reject: Cell64::default(),
            bytes: Default::default(),
            connections: Default::default(),
            connects: Default::default(),
            connect_duration: HistogramCells::new(&layout.latency),
            closed: Default::default(),
            ejections: Default::default(),
            checks: Default::default(),
            heartbeats: Default::default(),
            transitions: Default::default(),
            discovery: Default::default(),
        }
    }
}

impl ClusterMetrics {
    /// An endpoint was found to behave worse than others.
    pub fn ejected(&self, worker: WorkerId, detector: Detector, result: EjectionResult) {
        let slot = self.cells.at(worker);
        slot.block.ejections[detector.index()][result.index()].add(slot.access, 1);
    }

    pub(crate) fn new(name: Arc<str>, layout: &Arc<Layout>) -> Self {
        Self {
            name,
            cells: Sharded::new(layout),
            endpoints: Default::default(),
            discovered: AtomicBool::new(false),
            last_discovery: AtomicU64::new(0),
            stale: AtomicBool::new(false),
            checked: AtomicBool::new(false),
            breakers: Default::default(),
            panic: AtomicBool::new(false),
            concurrency: parking_lot::Mutex::new(None),
        }
    }

    /// Whether the series of discovery and of health checks are shown: those of a cluster that has neither would only say
    /// that nothing happens. Off at first.
    pub fn show(&self, discovery: Shown, checks: Shown) {
        self.discovered.store(discovery == Shown::Yes, Ordering::Relaxed);
        self.checked.store(checks == Shown::Yes, Ordering::Relaxed);
    }

    /// An attempt begins. Ends with [`ClusterMetrics::attempt_ended`].
    #[inline]
    pub fn attempt_started(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.in_flight.add(slot.access, 1);
    }

    /// It is over, in any way.
    #[inline]
    pub fn attempt_ended(&self, worker: WorkerId, end: &AttemptEnd) {
        let slot = self.cells.at(worker);
        let (block, access) = (slot.block, slot.access);
        block.in_flight.sub(access, 1);
        block.attempts.add(access, end.code, end.outcome);
        block
            .duration
            .record(&self.cells.layout().latency, access, nanos(end.duration));
    }

    /// Why an attempt failed; beside [`ClusterMetrics::attempt_ended`].
    pub fn attempt_failed(&self, worker: WorkerId, reason: UpstreamFailure) {
        let slot = self.cells.at(worker);
        slot.block.failures[reason.index()].add(slot.access, 1);
    }

    /// A request came above an adaptive limit that only observes.
    pub fn would_reject(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.would_reject.add(slot.access, 1);
    }

    /// How the adaptive limit stands; none where there is none.
    pub fn show_concurrency(&self, readings: Option<Readings>) {
        *self.concurrency.lock() = readings;
    }

    /// A request begins to wait for a place. Ends with [`ClusterMetrics::queue_left`].
    pub fn queue_joined(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.queued.add(slot.access, 1);
    }

    /// It waits no longer, for whatever reason.
    pub fn queue_left(&self, worker: WorkerId, waited: Duration) {
        let slot = self.cells.at(worker);
        slot.block.queued.sub(slot.access, 1);
        slot.block
            .queue_wait
            .record(&self.cells.layout().latency, slot.access, nanos(waited));
    }

    /// Bytes of heads and bodies, before TLS.
    #[inline]
    pub fn bytes(&self, worker: WorkerId, direction: Direction, n: u64) {
        let slot = self.cells.at(worker);
        slot.block.bytes[direction.index()].add(slot.access, n);
    }

    /// A connection changes its state; `None` is "does not exist".
    #[inline]
    pub fn connection_moved(
        &self,
        worker: WorkerId,
        from: Option<ConnectionState>,
        to: Option<ConnectionState>,
    ) {
        let slot = self.cells.at(worker);
        if let Some(from) = from {
            slot.block.connections[from.index()].sub(slot.access, 1);
        }
        if let Some(to) = to {
            slot.block.connections[to.index()].add(slot.access, 1);
        }
    }

    /// A dial ended after this time, TLS and HTTP handshakes included.
    pub fn connect_ended(&self, worker: WorkerId, result: ConnectResult, duration: Duration) {
        let slot = self.cells.at(worker);
        slot.block.connects[result.index()].add(slot.access, 1);
        slot.block
            .connect_duration
            .record(&self.cells.layout().latency, slot.access, nanos(duration));
    }

    /// Why a connection was closed; beside [`ClusterMetrics::connection_moved`].
    pub fn connection_closed(&self, worker: WorkerId, reason: CloseReason) {
        let slot = self.cells.at(worker);
        slot.block.closed[reason.index()].add(slot.access, 1);
    }

    /// A health check ended.
    pub fn health_checked(&self, worker: WorkerId, result: CheckResult) {
        let slot = self.cells.at(worker);
        slot.block.checks[result.index()].add(slot.access, 1);
    }

    /// A heartbeat came.
    pub fn heartbeat_received(&self, worker: WorkerId, result: HeartbeatResult) {
        let slot = self.cells.at(worker);
        slot.block.heartbeats[result.index()].add(slot.access, 1);
    }

    /// An endpoint came or went.
    pub fn health_changed(&self, worker: WorkerId, source: HealthSource, to: HealthTo) {
        let slot = self.cells.at(worker);
        slot.block.transitions[source.index()][to.index()].add(slot.access, 1);
    }

    /// How many breakers of members are in each state, in the order of [`State::ALL`].
    pub fn show_breakers(&self, states: &[u64; State::ALL.len()]) {
        for (shown, count) in self.breakers.iter().zip(states) {
            shown.store(*count, Ordering::Relaxed);
        }
    }

    /// How many endpoints are in this state now.
    pub fn set_endpoints(&self, state: EndpointLabel, count: u64) {
        self.endpoints[state.index()].store(count, Ordering::Relaxed);
    }

    /// Whether too few endpoints are left.
    pub fn set_panic(&self, panic: bool) {
        self.panic.store(panic, Ordering::Relaxed);
    }

    /// Discovery said something. `now` is seconds since 1970 and is kept when the answer was usable.
    pub fn discovery_updated(&self, worker: WorkerId, result: DiscoveryResult, now: u64) {
        let slot = self.cells.at(worker);
        slot.block.discovery[result.index()].add(slot.access, 1);
        match result {
            DiscoveryResult::Changed | DiscoveryResult::Unchanged => {
                self.last_discovery.store(now, Ordering::Relaxed);
            }
            DiscoveryResult::Empty | DiscoveryResult::Failed => {}
        }
    }

    /// Whether the members are older than the source allows.
    pub fn set_discovery_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Relaxed);
    }

    /// Attempts running now, over all workers.
    pub fn in_flight(&self) -> u64 {
        self.cells.level(|block| &block.in_flight) as u64
    }
}

/// An endpoint of a cluster, while the cluster has few enough of them; all others share one handle named `other`.
#[derive(Debug)]
pub struct EndpointMetrics {
    pub(crate) cluster: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    /// Stands for several endpoints: states that cannot be added up are not shown.
    pub(crate) folded: bool,
    pub(crate) cells: Sharded<EndpointBlock>,
    pub(crate) up: AtomicBool,
    /// Bits of an `f64`.
    pub(crate) weight: AtomicU64,
    /// Bits of an `f64`, in seconds.
    pub(crate) latency: AtomicU64,
    /// Bits of an `f64`; not a number while nobody watches.
    pub(crate) phi: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct EndpointBlock {
    pub(crate) in_flight: Cell64,
    pub(crate) attempts: [Cell64; OutcomeLabel::COUNT],
}

impl Block for EndpointBlock {
    fn empty(_: &Layout) -> Self {
        Self {
            in_flight: Cell64::default(),
            attempts: Default::default(),
        }
    }
}

impl EndpointMetrics {
    pub(crate) fn new(cluster: Arc<str>, endpoint: Arc<str>, folded: bool, layout: &Arc<Layout>) -> Self {
        Self {
            cluster,
            endpoint,
            folded,
            cells: Sharded::new(layout),
            up: AtomicBool::new(true),
            weight: AtomicU64::new(1_f64.to_bits()),
            latency: AtomicU64::new(0_f64.to_bits()),
            phi: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    /// An attempt at this endpoint begins.
    #[inline]
    pub fn attempt_started(&self, worker: WorkerId) {
        let slot = self.cells.at(worker);
        slot.block.in_flight.add(slot.access, 1);
    }

    /// It is over, in any way.
    #[inline]
    pub fn attempt_ended(&self, worker: WorkerId, outcome: OutcomeLabel) {
        let slot = self.cells.at(worker);
        slot.block.in_flight.sub(slot.access, 1);
        slot.block.attempts[outcome.index()].add(slot.access, 1);
    }

    /// Whether it may be picked at all.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// Its share, as configured or discovered.
    pub fn set_weight(&self, weight: f64) {
        self.weight.store(weight.to_bits(), Ordering::Relaxed);
    }

    /// How surprising its silence is; none when nobody watches it.
    pub fn set_phi(&self, phi: Option<f64>) {
        self.phi
            .store(phi.unwrap_or(f64::NAN).to_bits(), Ordering::Relaxed);
    }

    /// What the balancer believes it needs for an answer.
    pub fn set_latency(&self, latency: Duration) {
        self.latency
            .store(latency.as_secs_f64().to_bits(), Ordering::Relaxed);
    }
}

/// What there is once per process.
#[derive(Debug)]
pub struct ProcessMetrics {
    pub(crate) cells: Sharded<ProcessBlock>,
    /// Index into [`DrainState`].
    pub(crate) drain: AtomicU64,
    pub(crate) self_health: AtomicU64,
    /// Index into [`Level`].
    pub(crate) overload: AtomicU64,
    pub(crate) seldom: parking_lot::Mutex<Seldom>,
}

/// What changes so seldom that a mutex is the simplest thing.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    pub(crate) config: Option<ConfigInForce>,
    pub(crate) last_reload_successful: bool,
    /// Name, seconds since 1970.
    pub(crate) certificates: Vec<(Arc<str>, u64)>,
    /// Site, how often.
    pub(crate) violations: Vec<(&'static str, u64)>,
}

/// The configuration that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigInForce {
    /// Of the file as read, in hexadecimal.
    pub hash: String,
    /// Counts the applied ones from 1.
    pub generation: u64,
    /// Seconds since 1970.
    pub since: u64,
}

#[derive(Debug)]
pub(crate) struct ProcessBlock {
    pub(crate) tls: [[Cell64; TlsResult::COUNT]; Side::COUNT],
    pub(crate) reloads: [[Cell64; ReloadTrigger::COUNT]; ReloadResult::COUNT],
    pub(crate) lag: HistogramCells,
    pub(crate) access_log_dropped: Cell64,
    pub(crate) heartbeats: [Cell64; HeartbeatResult::COUNT],
    pub(crate) shed: [[[Cell64; ShedReason::COUNT]; Priority::COUNT]; ShedScope::COUNT],
}

impl Block for ProcessBlock {
    fn empty(layout: &Layout) -> Self {
        Self {
            tls: Default::default(),
            reloads: Default::default(),
            lag: HistogramCells::new(&layout.overhead),
            access_log_dropped: Cell64::default(),
            heartbeats: Default::default(),
            shed: Default::default(),
        }
    }
}

impl ProcessMetrics {
    pub(crate) fn new(layout: &Arc<Layout>) -> Self {
        Self {
            cells: Sharded::new(layout),
            drain: AtomicU64::new(0),
            self_health: AtomicU64::new(0),
            overload: AtomicU64::new(0),
            seldom: parking_lot::Mutex::new(Seldom {
                last_reload_successful: true,
                ..Seldom::default()
            }),
        }
    }

    /// A TLS handshake ended.
    pub fn tls_handshake(&self, worker: WorkerId, side: Side, result: TlsResult) {
        let slot = self.cells.at(worker);
        slot.block.tls[side.index()][result.index()].add(slot.access, 1);
    }

    /// A timer of this worker fired so much later than asked.
    pub fn runtime_lag(&self, worker: WorkerId, lag: Duration) {
        let slot = self.cells.at(worker);
        slot.block
            .lag
            .record(&self.cells.layout().overhead, slot.access, nanos(lag));
    }

    /// A request was refused because there was too much.
    pub fn shed(&self, worker: WorkerId, scope: ShedScope, priority: Priority, reason: ShedReason) {
        let slot = self.cells.at(worker);
        slot.block.shed[scope.index()][priority.index()][reason.index()].add(slot.access, 1);
    }

    /// Lines of the access log were lost, because the writer did not keep up.
    pub fn access_log_dropped(&self, worker: WorkerId, lines: u64) {
        let slot = self.cells.at(worker);
        slot.block.access_log_dropped.add(slot.access, lines);
    }

    /// A configuration was read and became `result`.
    pub fn config_reloaded(&self, result: ReloadResult, trigger: ReloadTrigger) {
        let slot = self.cells.at(WorkerId::CONTROL);
        slot.block.reloads[result.index()][trigger.index()].add(slot.access, 1);
        self.seldom.lock().last_reload_successful = match result {
            ReloadResult::Applied | ReloadResult::Unchanged => true,
            ReloadResult::Rejected => false,
        };
    }

    /// This configuration serves from now on.
    pub fn set_config(&self, config: ConfigInForce) {
        self.seldom.lock().config = Some(config);
    }

    /// The certificates in use and when they end (seconds since 1970); replaces the ones before.
    pub fn set_certificates(&self, certificates: Vec<(Arc<str>, u64)>) {
        self.seldom.lock().certificates = certificates;
    }

    /// Where the process is on its way out.
    pub fn set_drain_state(&self, state: DrainState) {
        self.drain.store(state.index() as u64, Ordering::Relaxed);
    }

    /// A heartbeat came that belongs to no cluster.
    pub fn heartbeat_received(&self, worker: WorkerId, result: HeartbeatResult) {
        let slot = self.cells.at(worker);
        slot.block.heartbeats[result.index()].add(slot.access, 1);
    }

    /// How much the process gives up.
    pub fn set_overload(&self, level: Level) {
        self.overload.store(level as u64, Ordering::Relaxed);
    }

    /// How unwell the process is, 0 to 7.
    pub fn set_self_health(&self, score: u8) {
        self.self_health.store(u64::from(score), Ordering::Relaxed);
    }

    /// Something happened that cannot; `site` says where in our code.
    #[cold]
    pub fn invariant_violated(&self, site: &'static str) {
        let mut seldom = self.seldom.lock();
        match seldom.violations.iter_mut().find(|(known, _)| *known == site) {
            Some((_, count)) => *count += 1,
            None => seldom.violations.push((site, 1)),
        }
    }
}
