//! Who has which handle, and what a scrape says.
//!
//! Handles are found by name: a reload that still knows a name gets the same handle, so its counters go on. A handle
//! nobody holds any more (route renamed, endpoint gone, last request of the old configuration finished) is shown for
//! ten more minutes, so that its last events are scraped, and then ends; nothing leaks and nothing has to be retired by
//! hand.
//!
//! A scrape copies the list of handles under a mutex that no worker ever takes, adds up their cells, pushes the result
//! through the `metrics` facade into a fresh exporter and appends our own histograms. Fresh, because an exporter cannot
//! forget a series, and because with no state of its own it cannot disagree with the cells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::cells::{Bounds, Layout};
use super::handles::{
    BreakerMetrics, ClusterMetrics, EndpointMetrics, ListenerMetrics, ProcessMetrics, RateMetrics,
    RouteMetrics,
};
use super::process::ProcessUsage;
use super::scrape::Scrape;

/// What a [`Recorder`] is made with.
#[derive(Debug, Clone)]
pub struct RecorderSettings {
    /// Number of data-plane workers; their [`WorkerId`](super::WorkerId)s are 0 to `workers` - 1.
    pub workers: usize,
    /// Labels added to every series.
    pub labels: Vec<(String, String)>,
    /// Buckets of the durations of requests, attempts and connects.
    pub buckets: Bounds,
    /// Endpoints per cluster with series of their own.
    pub max_endpoints: usize,
    /// Shown as `bellwether_build_info`.
    pub build: BuildInfo,
}

impl Default for RecorderSettings {
    fn default() -> Self {
        Self {
            workers: 1,
            labels: Vec::new(),
            buckets: Bounds::latency(),
            max_endpoints: 100,
            build: BuildInfo::default(),
        }
    }
}

/// What this program was built from.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo {
    /// Of the package.
    pub version: &'static str,
    /// Of the sources, or "unknown".
    pub revision: &'static str,
    /// The compiler, or "unknown".
    pub rustc: &'static str,
}

impl Default for BuildInfo {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            revision: "unknown",
            rustc: "unknown",
        }
    }
}

/// How long a handle nobody holds is still shown.
const KEEP_UNUSED: Duration = Duration::from_secs(600);

/// The name of the handle that stands for all endpoints above the limit.
const OTHER: &str = "other";

/// The name of the route of requests that matched none.
const NO_ROUTE: &str = "none";

/// Owns all handles of one proxy instance.
#[derive(Debug)]
pub struct Recorder {
    pub(crate) layout: Arc<Layout>,
    build: BuildInfo,
    process: Arc<ProcessMetrics>,
    unrouted: Arc<RouteMetrics>,
    known: Mutex<Known>,
}

/// A handle and since when nobody else holds it.
#[derive(Debug)]
struct Entry<H> {
    handle: Arc<H>,
    unused_since: Option<Instant>,
}

impl<H> Entry<H> {
    fn new(handle: Arc<H>) -> Self {
        Self {
            handle,
            unused_since: None,
        }
    }

    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.handle) == 1
    }

    /// Notes whether somebody holds the handle; false when nobody did for too long.
    fn keep(&mut self, now: Instant) -> bool {
        if !self.is_unused() {
            self.unused_since = None;
            return true;
        }
        let since = *self.unused_since.get_or_insert(now);
        now.saturating_duration_since(since) < KEEP_UNUSED
    }
}

/// Scope, route and cluster; empty where a scope has none.
type BreakerKey = (&'static str, Arc<str>, Arc<str>);
type Named<H> = BTreeMap<Arc<str>, Entry<H>>;

#[derive(Debug)]
struct Known {
    labels: Vec<(String, String)>,
    max_endpoints: usize,
    listeners: Named<ListenerMetrics>,
    routes: Named<RouteMetrics>,
    clusters: Named<ClusterMetrics>,
    /// By scope, route and cluster.
    breakers: BTreeMap<BreakerKey, Entry<BreakerMetrics>>,
    /// By route and policy.
    rates: BTreeMap<(Arc<str>, Arc<str>), Entry<RateMetrics>>,
    /// By cluster, then by endpoint.
    endpoints: BTreeMap<Arc<str>, Named<EndpointMetrics>>,
    /// How often an endpoint found no place of its own.
    folded: u64,
}

/// The handle of `name`, made when there is none.
fn find<H>(named: &mut Named<H>, name: &str, make: impl FnOnce(Arc<str>) -> H) -> Arc<H> {
    if let Some(entry) = named.get(name) {
        return Arc::clone(&entry.handle);
    }
    let name: Arc<str> = name.into();
    let handle = Arc::new(make(Arc::clone(&name)));
    named.insert(name, Entry::new(Arc::clone(&handle)));
    handle
}

fn handles<H>(named: &Named<H>) -> Vec<Arc<H>> {
    named.values().map(|entry| Arc::clone(&entry.handle)).collect()
}

impl Recorder {
    /// A recorder without any listener, route or cluster yet.
    pub fn new(settings: RecorderSettings) -> Self {
        let layout = Arc::new(Layout {
            workers: settings.workers,
            latency: settings.buckets,
            overhead: Bounds::overhead(),
            attempts: Bounds::of_counts(vec![1, 2, 3, 4, 5]),
        });
        Self {
            build: settings.build,
            process: Arc::new(ProcessMetrics::new(&layout)),
            unrouted: Arc::new(RouteMetrics::new(NO_ROUTE.into(), &layout)),
            known: Mutex::new(Known {
                labels: settings.labels,
                max_endpoints: settings.max_endpoints,
                listeners: BTreeMap::new(),
                routes: BTreeMap::new(),
                clusters: BTreeMap::new(),
                breakers: BTreeMap::new(),
                rates: BTreeMap::new(),
                endpoints: BTreeMap::new(),
                folded: 0,
            }),
            layout,
        }
    }

    /// What may change with a reload. Workers and buckets may not: cells are made for them. To be called with every
    /// reload: it also ends what reloads before left behind, should nobody ever scrape.
    pub fn reconfigure(&self, labels: Vec<(String, String)>, max_endpoints: usize) {
        self.retire(Instant::now());
        let mut known = self.known.lock();
        known.labels = labels;
        known.max_endpoints = max_endpoints;
    }

    /// What there is once per process.
    pub fn process(&self) -> Arc<ProcessMetrics> {
        Arc::clone(&self.process)
    }

    /// The handle for requests that matched no route (`route="none"`).
    pub fn unrouted(&self) -> Arc<RouteMetrics> {
        Arc::clone(&self.unrouted)
    }

    /// The handle of this listener; the same as long as anybody holds it, and ten minutes longer.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        find(&mut self.known.lock().listeners, name, |name| {
            ListenerMetrics::new(name, &self.layout)
        })
    }

    /// The handle of this route.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        if name == NO_ROUTE {
            return self.unrouted();
        }
        find(&mut self.known.lock().routes, name, |name| {
            RouteMetrics::new(name, &self.layout)
        })
    }

    /// The handle of this cluster.
    pub fn cluster(&self, name: &str) -> Arc<ClusterMetrics> {
        find(&mut self.known.lock().clusters, name, |name| {
            ClusterMetrics::new(name, &self.layout)
        })
    }

    /// The handle of the breaker of `scope` that guards this route or cluster; empty names where the scope has none.
    pub fn breaker(&self, scope: &'static str, route: &str, cluster: &str) -> Arc<BreakerMetrics> {
        let key: BreakerKey = (scope, route.into(), cluster.into());
        let mut known = self.known.lock();
        let entry = known
            .breakers
            .entry(key)
            .or_insert_with_key(|(scope, route, cluster)| {
                let (route, cluster) = (Arc::clone(route), Arc::clone(cluster));
                Entry::new(Arc::new(BreakerMetrics::new(scope, route, cluster, &self.layout)))
            });
        Arc::clone(&entry.handle)
    }

    /// The handle of a rate limit of this route.
    pub fn rate_limit(&self, route: &str, policy: &str) -> Arc<RateMetrics> {
        let mut known = self.known.lock();
        let entry = known
            .rates
            .entry((route.into(), policy.into()))
            .or_insert_with_key(|(route, policy)| {
                let (route, policy) = (Arc::clone(route), Arc::clone(policy));
                Entry::new(Arc::new(RateMetrics::new(route, policy, &self.layout)))
            });
        Arc::clone(&entry.handle)
    }

    /// The handle of this endpoint, or, when the cluster already has `max_endpoints` of them, the one all others share.
    pub fn endpoint(&self, cluster: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        let mut known = self.known.lock();
        let known = &mut *known;
        let cluster: Arc<str> = cluster.into();
        let named = known.endpoints.entry(Arc::clone(&cluster)).or_default();
        if let Some(entry) = named.get(endpoint) {
            return Arc::clone(&entry.handle);
        }
        let fits = |named: &Named<EndpointMetrics>| {
            named.len() - usize::from(named.contains_key(OTHER)) < known.max_endpoints
        };
        if !fits(named) {
            // One that left makes room for one that came.
            let unused = named
                .iter()
                .filter(|(name, entry)| &***name != OTHER && entry.is_unused());
            let oldest = unused.min_by_key(|(_, entry)| (entry.unused_since.is_none(), entry.unused_since));
            if let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) {
                named.remove(&oldest);
            }
        }
        let folded = !fits(named);
        known.folded += u64::from(folded);
        let name = if folded { OTHER } else { endpoint };
        find(named, name, |name| {
            EndpointMetrics::new(cluster, name, folded, &self.layout)
        })
    }

    /// The answer to `GET /metrics`: Prometheus text format 0.0.4.
    ///
    /// Takes some microseconds per series and reads `/proc`, but waits for no worker and makes none wait. The first call
    /// also calibrates the exporter's clock, which may take up to 0.2 s of one thread.
    pub fn render(&self) -> String {
        self.retire(Instant::now());
        let known = self.known.lock();
        let listeners = handles(&known.listeners);
        let routes = handles(&known.routes);
        let clusters = handles(&known.clusters);
        let breakers: Vec<_> = known
            .breakers
            .values()
            .map(|entry| Arc::clone(&entry.handle))
            .collect();
        let rates: Vec<_> = known
            .rates
            .values()
            .map(|entry| Arc::clone(&entry.handle))
            .collect();
        let endpoints: Vec<_> = known.endpoints.values().flat_map(handles).collect();
        let folded = known.folded;
        let labels = known.labels.clone();
        drop(known);

        let mut scrape = Scrape::new(labels);
        for listener in &listeners {
            scrape.listener(listener);
        }
        scrape.route(&self.unrouted);
        for route in &routes {
            scrape.route(route);
        }
        for breaker in &breakers {
            scrape.breaker(breaker);
        }
        for rate in &rates {
            scrape.rate(rate);
        }
        for cluster in &clusters {
            scrape.cluster(cluster);
        }
        for endpoint in &endpoints {
            scrape.endpoint(endpoint);
        }
        scrape.folded(folded);
        scrape.process(&self.process, self.build);
        if let Some(usage) = ProcessUsage::read() {
            scrape.usage(&usage);
        }
        scrape.finish()
    }

    /// Ends the series of what nobody holds any more. Every scrape and every reload does this.
    pub fn retire(&self, now: Instant) {
        let mut known = self.known.lock();
        known.listeners.retain(|_, entry| entry.keep(now));
        known.routes.retain(|_, entry| entry.keep(now));
        known.clusters.retain(|_, entry| entry.keep(now));
        known.breakers.retain(|_, entry| entry.keep(now));
        known.rates.retain(|_, entry| entry.keep(now));
        for named in known.endpoints.values_mut() {
            named.retain(|_, entry| entry.keep(now));
        }
        known.endpoints.retain(|_, named| !named.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use bellwether_core::Reason;

    use super::super::exposition::Exposition;
    use super::super::labels::{ConnectionRejection, OutcomeLabel, RetryResult, RetryTrigger};
    use super::super::{AttemptEnd, ConfigInForce, RequestEnd, Shown, WorkerId, names};
    use super::*;

    const W0: WorkerId = WorkerId::new(0);
    const W1: WorkerId = WorkerId::new(1);

    fn recorder() -> Recorder {
        Recorder::new(RecorderSettings {
            workers: 2,
            max_endpoints: 2,
            ..RecorderSettings::default()
        })
    }

    fn end(code: u16, outcome: OutcomeLabel, millis: u64) -> RequestEnd {
        RequestEnd {
            code,
            outcome,
            duration: Duration::from_millis(millis),
            ttfb: Some(Duration::from_millis(millis)),
            overhead: Some(Duration::from_micros(40)),
            attempts: 1,
        }
    }

    #[test]
    fn a_scrape_of_everything_is_strictly_valid_and_lists_only_the_register() {
        let recorder = recorder();
        let (_l, _r) = (recorder.listener("web"), recorder.route("api"));
        let _b = recorder.breaker("route", "api", "");
        let _limit = recorder.rate_limit("api", "client_ip");
        let (cluster, endpoint) = (
            recorder.cluster("backend"),
            recorder.endpoint("backend", "10.0.0.1:80"),
        );
        cluster.show(Shown::Yes, Shown::Yes);
        cluster.show_breakers(&[1, 0, 0, 0, 0, 0]);
        endpoint.set_phi(Some(0.5));
        let adaptive = bellwether_core::adaptive::Adaptive::new();
        let range = bellwether_core::adaptive::Range { min: 1, max: 9 };
        cluster.show_concurrency(Some(adaptive.readings(range)));
        let process = recorder.process();
        process.set_certificates(vec![("edge".into(), 2_000_000_000)]);
        process.invariant_violated("test");
        let config = ConfigInForce {
            hash: "ab".to_owned(),
            generation: 1,
            since: 1,
        };
        process.set_config(config);

        let scrape = Exposition::parse(&recorder.render()).unwrap();
        let shown: Vec<&str> = scrape
            .families
            .iter()
            .map(|family| family.name.as_str())
            .collect();
        let registered: Vec<&str> = names::all().map(|metric| metric.name).collect();
        assert_eq!(shown, registered);
        for (family, metric) in scrape.families.iter().zip(names::all()) {
            assert_eq!(family.kind, metric.kind.word(), "{}", metric.name);
            for sample in &family.samples {
                let labels: Vec<&str> = sample
                    .labels
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .filter(|n| *n != "le")
                    .collect();
                assert_eq!(labels, metric.labels, "{}", metric.name);
            }
        }
    }

    #[test]
    fn what_workers_and_the_control_plane_count_is_added_up() {
        let recorder = recorder();
        let route = recorder.route("api");
        for worker in [W0, W1, WorkerId::CONTROL, W0] {
            route.request_started(worker);
            route.request_started(worker);
            route.request_ended(worker, &end(200, OutcomeLabel::Success, 3));
        }
        route.request_ended(W1, &end(503, OutcomeLabel::Failure, 20_000));
        route.request_ended(W1, &end(0, OutcomeLabel::Ignored, 1));
        route.request_ended(W1, &end(999, OutcomeLabel::Failure, 1));
        route.request_rejected(W0, Reason::NoEndpoint);
        route.retried(W1, RetryTrigger::Stale, RetryResult::Success);

        let scrape = Exposition::parse(&recorder.render()).unwrap();
        let value = |series: &str| scrape.value(series);
        assert_eq!(
            value("bellwether_requests_total{route=\"api\",code=\"200\",outcome=\"success\"}"),
            Some(4.0)
        );
        assert_eq!(
            value("bellwether_requests_total{route=\"api\",code=\"503\",outcome=\"failure\"}"),
            Some(1.0)
        );
        assert_eq!(
            value("bellwether_requests_total{route=\"api\",code=\"none\",outcome=\"ignored\"}"),
            Some(1.0)
        );
        assert_eq!(
            value("bellwether_requests_total{route=\"api\",code=\"other\",outcome=\"failure\"}"),
            Some(1.0)
        );
        assert_eq!(value("bellwether_requests_in_flight{route=\"api\"}"), Some(1.0));
        assert_eq!(route.in_flight(), 1);
        assert_eq!(
            value("bellwether_request_rejections_total{route=\"api\",reason=\"no_endpoint\"}"),
            Some(1.0)
        );
        assert_eq!(
            value("bellwether_request_rejections_total{route=\"api\",reason=\"no_route\"}"),
            Some(0.0)
        );
        let retries = "bellwether_retries_total{route=\"api\",trigger=\"stale\",result=\"success\"}";
        assert_eq!(value(retries), Some(1.0));
        let duration = "bellwether_request_duration_seconds";
        assert_eq!(
            value(&format!("{duration}_bucket{{route=\"api\",le=\"0.0025\"}}")),
            Some(2.0)
        );
        assert_eq!(
            value(&format!("{duration}_bucket{{route=\"api\",le=\"0.005\"}}")),
            Some(6.0)
        );
        assert_eq!(
            value(&format!("{duration}_bucket{{route=\"api\",le=\"10\"}}")),
            Some(6.0)
        );
        assert_eq!(
            value(&format!("{duration}_bucket{{route=\"api\",le=\"+Inf\"}}")),
            Some(7.0)
        );
        assert_eq!(value(&format!("{duration}_count{{route=\"api\"}}")), Some(7.0));
        assert!((value(&format!("{duration}_sum{{route=\"api\"}}")).unwrap() - 20.014).abs() < 1e-9);
    }

    #[test]
    fn a_gauge_that_goes_up_on_one_worker_may_come_down_on_another() {
        let recorder = recorder();
        let listener = recorder.listener("web");
        listener.connection_opened(W0);
        listener.connection_opened(W0);
        listener.connection_closed(W1);
        listener.connection_rejected(W1, ConnectionRejection::Tls);
        let scrape = Exposition::parse(&recorder.render()).unwrap();
        assert_eq!(
            scrape.value("bellwether_downstream_connections{listener=\"web\"}"),
            Some(1.0)
        );
        assert_eq!(
            scrape.value("bellwether_downstream_connections_total{listener=\"web\"}"),
            Some(2.0)
        );
        listener.connection_closed(WorkerId::CONTROL);
        listener.connection_closed(W1);
        assert_eq!(listener.connections(), 0, "one too many is shown as none");
    }

    #[test]
    fn counters_survive_a_reload_that_keeps_the_name() {
        let recorder = recorder();
        let before = recorder.cluster("backend");
        before.attempt_started(W0);
        let end = AttemptEnd {
            code: 200,
            outcome: OutcomeLabel::Success,
            duration: Duration::ZERO,
        };
        before.attempt_ended(W0, &end);
        let after = recorder.cluster("backend");
        assert!(Arc::ptr_eq(&before, &after));
        drop((before, after));
        let again = recorder.cluster("backend");
        again.attempt_ended(W1, &end);
        let scrape = Exposition::parse(&recorder.render()).unwrap();
        let series =
            "bellwether_upstream_attempts_total{cluster=\"backend\",outcome=\"success\",code=\"200\"}";
        assert_eq!(scrape.value(series), Some(2.0));
    }

    #[test]
    fn series_end_ten_minutes_after_the_last_holder_let_go() {
        let recorder = recorder();
        let (held, gone) = (recorder.route("held"), recorder.route("gone"));
        drop(gone);
        let start = Instant::now();
        let shown = || recorder.render().contains("route=\"gone\"");
        recorder.retire(start);
        assert!(shown());
        recorder.retire(start + KEEP_UNUSED - Duration::from_secs(1));
        assert!(shown());
        recorder.retire(start + KEEP_UNUSED);
        assert!(!shown());
        assert!(recorder.render().contains("route=\"held\""));
        drop(held);
    }

    #[test]
    fn endpoints_above_the_limit_share_one_handle_and_are_counted() {
        let recorder = recorder();
        let first = recorder.endpoint("c", "a:1");
        let _second = recorder.endpoint("c", "b:1");
        let third = recorder.endpoint("c", "c:1");
        let fourth = recorder.endpoint("c", "d:1");
        assert!(Arc::ptr_eq(&third, &fourth));
        third.attempt_started(W0);
        third.attempt_ended(W0, OutcomeLabel::Failure);
        let text = recorder.render();
        let scrape = Exposition::parse(&text).unwrap();
        let series =
            "bellwether_endpoint_attempts_total{cluster=\"c\",endpoint=\"other\",outcome=\"failure\"}";
        assert_eq!(scrape.value(series), Some(1.0));
        assert_eq!(
            scrape.value("bellwether_endpoint_up{cluster=\"c\",endpoint=\"other\"}"),
            None
        );
        let dropped = "bellwether_metrics_series_dropped_total{metric=\"bellwether_endpoint_up\"}";
        assert_eq!(scrape.value(dropped), Some(2.0));
        assert!(!text.contains("c:1"));

        drop(first);
        let fifth = recorder.endpoint("c", "e:1");
        assert_eq!(&*fifth.endpoint, "e:1", "an endpoint nobody holds makes room");
    }

    #[test]
    fn constant_labels_and_odd_names_are_escaped_once() {
        let odd = "a\"b\\c\\\\d\ne\\\"";
        let recorder = Recorder::new(RecorderSettings {
            labels: vec![("env".to_owned(), odd.to_owned())],
            ..RecorderSettings::default()
        });
        let route = recorder.route(odd);
        route.request_ended(W0, &end(200, OutcomeLabel::Success, 1));
        let scrape = Exposition::parse(&recorder.render()).unwrap();
        for family in &scrape.families {
            for sample in &family.samples {
                assert_eq!(
                    sample.labels[0],
                    ("env".to_owned(), odd.to_owned()),
                    "{}",
                    sample.name
                );
            }
        }
        for name in [
            "bellwether_requests_in_flight",
            "bellwether_request_duration_seconds_count",
        ] {
            let named = scrape
                .families
                .iter()
                .flat_map(|family| &family.samples)
                .filter(|sample| sample.name == name);
            let mut routes: Vec<&str> = named.map(|sample| sample.labels[1].1.as_str()).collect();
            routes.sort_unstable();
            assert_eq!(routes, [odd, "none"], "{name}");
        }
    }
}
