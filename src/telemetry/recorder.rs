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
use super::handles::{ClusterMetrics, EndpointMetrics, ListenerMetrics, ProcessMetrics, RouteMetrics};

/// What a [`Recorder`] is made with.
#[derive(Debug, Clone)]
pub struct RecorderSettings {
    /// Number of data-plane workers; their [`WorkerId`](super::WorkerId)s are 0 to `workers` - 1.
    pub workers: usize,
    /// The words of label `reason` of rejections; `RouteMetrics::request_rejected` takes an index into it.
    pub reasons: &'static [&'static str],
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
            reasons: &[],
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

type Named<H> = BTreeMap<Arc<str>, Entry<H>>;

#[derive(Debug)]
struct Known {
    labels: Vec<(String, String)>,
    max_endpoints: usize,
    listeners: Named<ListenerMetrics>,
    routes: Named<RouteMetrics>,
    clusters: Named<ClusterMetrics>,
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

impl Recorder {
    /// A recorder without any listener, route or cluster yet.
    pub fn new(settings: RecorderSettings) -> Self {
        let layout = Arc::new(Layout {
            workers: settings.workers,
            reasons: settings.reasons,
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
                endpoints: BTreeMap::new(),
                folded: 0,
            }),
            layout,
        }
    }

    /// What may change with a reload. Workers, reasons and buckets may not: cells are made for them.
    pub fn reconfigure(&self, labels: Vec<(String, String)>, max_endpoints: usize) {
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

    /// Ends the series of what nobody holds any more. Every scrape does this.
    pub fn retire(&self, now: Instant) {
        let mut known = self.known.lock();
        known.listeners.retain(|_, entry| entry.keep(now));
        known.routes.retain(|_, entry| entry.keep(now));
        known.clusters.retain(|_, entry| entry.keep(now));
        for named in known.endpoints.values_mut() {
            named.retain(|_, entry| entry.keep(now));
        }
        known.endpoints.retain(|_, named| !named.is_empty());
    }
}
