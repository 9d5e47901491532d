//! What is in force and how it goes: listeners, routes, clusters, endpoints, the configuration.
//!
//! Every answer is made from one snapshot and names things as the configuration does. Numbers of traffic are those of
//! `/metrics`; here is what a person asks next: which endpoint, in what state, since when. `docs/admin-api.md` describes
//! the shapes; fields may be added to them but not renamed.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use bellwether_core::Moment;
use bellwether_core::arbiter::{Opinion, Source};
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};

use super::overrides::Shown as Override;
use super::{Context, Problem, problem};
use crate::cluster::{self, Cluster, Endpoint, Protocol};
use crate::net::proxy_protocol::{Presence, Version};
use crate::route::MatchSettings;
use crate::snapshot::{Action, Direction, Listener, Route, Snapshot, Target};

/// What there is to ask, for who follows their nose.
const PATHS: &[&str] = &[
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "POST /quitquitquit",
    "POST /v1/heartbeat",
    "GET /api/v1/listeners",
    "GET /api/v1/routes",
    "GET /api/v1/clusters",
    "GET /api/v1/clusters/{cluster}",
    "GET /api/v1/clusters/{cluster}/endpoints",
    "PUT, DELETE /api/v1/clusters/{cluster}/endpoints/{address}/override",
    "GET /api/v1/breakers",
    "GET, PUT, DELETE /api/v1/breakers/{breaker}",
    "GET /api/v1/config",
    "GET /api/v1/events",
    "POST /api/v1/explain",
    "POST /api/v1/reload",
    "POST /api/v1/drain",
    "POST /api/v1/undrain",
    "GET, PUT /api/v1/log",
];

#[derive(Debug, Serialize)]
struct Index {
    name: &'static str,
    version: &'static str,
    revision: &'static str,
    /// Seconds since 1970.
    started: u64,
    uptime_seconds: u64,
    generation: u64,
    config_hash: Arc<str>,
    ready: bool,
    draining: bool,
    waiting_for: Vec<String>,
    /// Open connections of clients.
    connections: u64,
    requests_in_flight: u64,
    paths: &'static [&'static str],
}

pub(super) async fn index(State(context): State<Arc<Context>>) -> Response {
    let snapshot = context.cell.load();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let started = seconds(context.started);
    let routes = snapshot.routes.iter().map(|route| route.metrics.in_flight());
    problem::ok(&Index {
        name: "bellwether",
        version: context.build.version,
        revision: context.build.revision,
        started,
        uptime_seconds: seconds(SystemTime::now()).saturating_sub(started),
        generation: snapshot.generation,
        config_hash: Arc::clone(&snapshot.hash),
        ready: context.readiness.is_ready(),
        draining: context.readiness.is_draining(),
        waiting_for: context.readiness.missing(),
        connections: snapshot.listeners.iter().map(|l| l.metrics.connections()).sum(),
        requests_in_flight: routes.sum::<u64>() + snapshot.unrouted.in_flight(),
        paths: PATHS,
    })
}

#[derive(Debug, Serialize)]
struct Listeners<'a> {
    generation: u64,
    listeners: Vec<ListenerView<'a>>,
}

#[derive(Debug, Serialize)]
struct ListenerView<'a> {
    name: &'a str,
    address: String,
    direction: &'static str,
    protocols: Vec<&'static str>,
    tls: Option<TlsView>,
    proxy_protocol: Option<&'static str>,
    connections: u64,
    max_connections: Option<u32>,
    max_connections_per_ip: Option<u32>,
    /// Names, in the order in which they are tried.
    routes: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
struct TlsView {
    certificates: Vec<CertificateView>,
    client_certificates: &'static str,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    file: String,
    names: Vec<String>,
    /// Seconds since 1970.
    not_before: i64,
    /// Seconds since 1970.
    not_after: i64,
}

impl<'a> ListenerView<'a> {
    fn new(listener: &'a Listener, snapshot: &'a Snapshot) -> Self {
        let protocols = [
            (listener.http1.is_some(), "http1"),
            (listener.http2.is_some(), "http2"),
        ];
        let tls = listener.tls.as_ref().map(|tls| TlsView {
            certificates: tls
                .certificates()
                .iter()
                .map(|facts| CertificateView {
                    file: facts.file.display().to_string(),
                    names: facts.names.clone(),
                    not_before: facts.not_before,
                    not_after: facts.not_after,
                })
                .collect(),
            client_certificates: match &tls.settings().client_auth {
                None => "off",
                Some(auth) if auth.required => "required",
                Some(_) => "optional",
            },
        });
        Self {
            name: &listener.name,
            address: listener.address.to_string(),
            direction: match listener.direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            },
            protocols: protocols
                .into_iter()
                .filter_map(|(spoken, name)| spoken.then_some(name))
                .collect(),
            tls,
            proxy_protocol: listener.proxy_protocol.map(|presence| match presence {
                Presence::Required => "required",
                Presence::Optional => "optional",
            }),
            connections: listener.metrics.connections(),
            max_connections: listener.max_connections,
            max_connections_per_ip: listener.max_connections_per_ip,
            routes: listener
                .routes
                .iter()
                .filter_map(|index| snapshot.routes.get(*index as usize))
                .map(|route| &*route.name)
                .collect(),
        }
    }
}

pub(super) async fn listeners(State(context): State<Arc<Context>>) -> Response {
    let snapshot = context.cell.load();
    problem::ok(&Listeners {
        generation: snapshot.generation,
        listeners: snapshot
            .listeners
            .iter()
            .map(|listener| ListenerView::new(listener, &snapshot))
            .collect(),
    })
}

#[derive(Debug, Serialize)]
struct Routes<'a> {
    generation: u64,
    routes: Vec<RouteView<'a>>,
}

#[derive(Debug, Serialize)]
struct RouteView<'a> {
    name: &'a str,
    origin: &'a str,
    listeners: Vec<&'a str>,
    /// Conditions in the words of the file; all must hold.
    #[serde(rename = "match")]
    wants: Vec<String>,
    action: ActionView,
    timeout_seconds: Option<f64>,
    retries: u32,
    mirror: Option<String>,
    in_flight: u64,
    max_in_flight: Option<u32>,
}

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ActionView {
    /// Sends it to one of these.
    Forward {
        /// With their shares.
        clusters: Vec<Share>,
    },
    /// Sends the client elsewhere.
    Redirect,
    /// Answers.
    DirectResponse {
        /// With this.
        status: u16,
    },
}

/// A cluster's part of a route's requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Its name.
    pub cluster: String,
    /// 0.0 to 1.0.
    pub share: f64,
}

impl ActionView {
    pub(super) fn new(action: &Action, snapshot: &Snapshot) -> Self {
        let name = |id| {
            snapshot
                .cluster(id)
                .map_or("?", |cluster: &Arc<Cluster>| &cluster.name)
        };
        match action {
            Action::Forward(Target::Cluster(id)) => Self::Forward {
                clusters: vec![Share {
                    cluster: name(*id).to_owned(),
                    share: 1.0,
                }],
            },
            Action::Forward(Target::Split { split, clusters, .. }) => Self::Forward {
                clusters: clusters
                    .iter()
                    .enumerate()
                    .map(|(index, id)| Share {
                        cluster: name(*id).to_owned(),
                        share: split.share(index),
                    })
                    .collect(),
            },
            Action::Redirect(_) => Self::Redirect,
            Action::Direct(answer) => Self::DirectResponse {
                status: answer.status().as_u16(),
            },
        }
    }
}

/// A route's conditions in the words of the file.
fn wants(settings: &MatchSettings) -> Vec<String> {
    let or = |parts: Vec<String>| parts.join(" or ");
    let mut wants = Vec::new();
    if !settings.hosts.is_empty() {
        let hosts = settings.hosts.iter().map(ToString::to_string).collect();
        wants.push(format!("host {}", or(hosts)));
    }
    wants.push(settings.path.to_string());
    if !settings.methods.is_empty() {
        let methods = settings.methods.iter().map(ToString::to_string).collect();
        wants.push(format!("method {}", or(methods)));
    }
    if let Some(grpc) = &settings.grpc {
        let methods = grpc.methods.join(" or ");
        let space = if methods.is_empty() { "" } else { " " };
        wants.push(format!("grpc {}{space}{methods}", grpc.service));
    }
    for (name, value) in &settings.headers {
        wants.push(format!("header {name} {value}"));
    }
    for (name, value) in &settings.query {
        wants.push(format!("query {name} {value}"));
    }
    if !settings.client_ip.is_empty() {
        let networks = settings.client_ip.iter().map(ToString::to_string).collect();
        wants.push(format!("client_ip {}", or(networks)));
    }
    wants
}

impl<'a> RouteView<'a> {
    fn new(index: usize, route: &'a Route, snapshot: &'a Snapshot) -> Self {
        let mut listeners = Vec::new();
        let mut conditions = Vec::new();
        for listener in &snapshot.listeners {
            let at = listener.routes.iter().position(|route| *route as usize == index);
            if let Some(at) = at {
                listeners.push(&*listener.name);
                conditions = listener.table.settings(at).map(wants).unwrap_or_default();
            }
        }
        Self {
            name: &route.name,
            origin: &route.origin,
            listeners,
            wants: conditions,
            action: ActionView::new(&route.action, snapshot),
            timeout_seconds: route.timeout.map(|timeout| timeout.as_secs_f64()),
            retries: route.retry.as_ref().map_or(0, |retry| retry.num_retries),
            mirror: route
                .mirror
                .as_ref()
                .and_then(|mirror| snapshot.cluster(mirror.cluster))
                .map(|cluster| cluster.name.to_string()),
            in_flight: route.metrics.in_flight(),
            max_in_flight: route.max_in_flight,
        }
    }
}

pub(super) async fn routes(State(context): State<Arc<Context>>) -> Response {
    let snapshot = context.cell.load();
    problem::ok(&Routes {
        generation: snapshot.generation,
        routes: (0..)
            .zip(snapshot.routes.iter())
            .map(|(index, route)| RouteView::new(index, route, &snapshot))
            .collect(),
    })
}

#[derive(Debug, Serialize)]
struct Clusters<'a> {
    generation: u64,
    clusters: Vec<ClusterView<'a>>,
}

#[derive(Debug, Serialize)]
struct ClusterView<'a> {
    name: &'a str,
    load_balancing: &'static str,
    protocol: &'static str,
    tls: bool,
    proxy_protocol: Option<&'static str>,
    /// Members.
    endpoints: usize,
    /// Members that may get requests now.
    available: usize,
    in_flight: u64,
    max_in_flight: Option<u32>,
    /// Requests that wait for a place.
    waiting: u32,
    /// The limit that follows response times; none when off.
    adaptive: Option<AdaptiveView>,
    connect_timeout_seconds: f64,
}

/// What a limit that follows response times has come to.
#[derive(Debug, Serialize)]
struct AdaptiveView {
    /// Whether it refuses, or only says what it would have done.
    enforced: bool,
    limit: u32,
    /// The response time now.
    short_seconds: f64,
    /// What is usual.
    long_seconds: f64,
    gradient: f32,
}

impl AdaptiveView {
    fn new(cluster: &Cluster) -> Option<Self> {
        let (_, mode) = cluster.adaptive_limit()?;
        let readings = cluster.adaptive_readings()?;
        Some(Self {
            enforced: mode.enforces(),
            limit: readings.limit,
            short_seconds: readings.short.as_secs_f64(),
            long_seconds: readings.long.as_secs_f64(),
            gradient: readings.gradient,
        })
    }
}

impl<'a> ClusterView<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let cluster::Settings {
            protocol,
            proxy_protocol,
            connect_timeout,
            max_in_flight,
            ..
        } = &cluster.settings;
        Self {
            name: &cluster.name,
            load_balancing: cluster.balancer.policy().name(),
            protocol: match protocol {
                Protocol::Auto => "auto",
                Protocol::Http1 => "http1",
                Protocol::Http2 => "http2",
            },
            tls: cluster.tls.is_some(),
            proxy_protocol: proxy_protocol.map(|version| match version {
                Version::V1 => "v1",
                Version::V2 => "v2",
            }),
            endpoints: cluster.endpoints.len(),
            available: cluster.endpoints.iter().filter(|e| e.is_usable()).count(),
            in_flight: cluster.metrics.in_flight(),
            max_in_flight: *max_in_flight,
            waiting: cluster.state.gate().waiting(),
            adaptive: AdaptiveView::new(cluster),
            connect_timeout_seconds: connect_timeout.as_secs_f64(),
        }
    }
}

pub(super) async fn clusters(State(context): State<Arc<Context>>) -> Response {
    let snapshot = context.cell.load();
    problem::ok(&Clusters {
        generation: snapshot.generation,
        clusters: snapshot.clusters.iter().map(|c| ClusterView::new(c)).collect(),
    })
}

/// A cluster by its name, or the answer that there is none.
pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Arc<Cluster>, Problem> {
    let found = snapshot.clusters.iter().find(|cluster| &*cluster.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = snapshot.clusters.iter().take(20).map(|c| &*c.name).collect();
        Problem::new(404, format!("there is no cluster `{}`", name.escape_default()))
            .help(format!("clusters: {}", names.join(", ")))
    })
}

#[derive(Debug, Serialize)]
struct OneCluster<'a> {
    #[serde(flatten)]
    cluster: ClusterView<'a>,
    members: Vec<EndpointView>,
}

pub(super) async fn cluster(
    State(context): State<Arc<Context>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let snapshot = context.cell.load();
    let cluster = find(&snapshot, &name)?;
    Ok(problem::ok(&OneCluster {
        cluster: ClusterView::new(cluster),
        members: members(&context, cluster),
    }))
}

#[derive(Debug, Serialize)]
struct Endpoints<'a> {
    cluster: &'a str,
    generation: u64,
    endpoints: Vec<EndpointView>,
}

/// An endpoint and what is known about it.
#[derive(Debug, Serialize)]
pub(super) struct EndpointView {
    address: String,
    host: String,
    weight: u32,
    priority: u8,
    zone: Option<String>,
    /// May get requests: has a weight, and nobody is against it.
    available: bool,
    /// One word for how it stands; the first that applies.
    state: &'static str,
    /// Everybody who has an opinion about it, and on what grounds.
    grounds: Vec<GroundView>,
    /// The verdict of active checks; true without any.
    healthy: bool,
    /// An operator has set it aside.
    drained: bool,
    /// Set aside for behaving worse than others.
    ejected: Option<EjectedView>,
    in_flight: u32,
    /// What it asked for itself by heartbeat.
    asked: Option<AskedView>,
    /// Expected response time; null before the first answer.
    latency_estimate_ms: Option<f64>,
    /// Share of recent attempts that went well, 0.0 to 1.0.
    success: f64,
    connections: u32,
    /// Longer than this no idle connection is kept: the endpoint has said so, or was seen to close earlier.
    idle_limit_seconds: f64,
    /// Attempts ever begun.
    picks: u64,
    #[serde(rename = "override")]
    set_aside: Option<Override>,
}

/// What somebody thinks of an endpoint, and why.
#[derive(Debug, Serialize)]
struct GroundView {
    source: &'static str,
    opinion: &'static str,
    reason: &'static str,
    evidence: String,
    /// Since when it thinks so, in seconds since 1970.
    since: u64,
    /// When it last said so.
    said: u64,
}

impl GroundView {
    fn all(endpoint: &Endpoint, now: Moment) -> Vec<Self> {
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = |moment: Moment| today.saturating_sub(now.since(moment)).as_secs();
        let grounds = endpoint.state.arbiter.grounds().into_iter();
        grounds
            .filter(|(_, ground)| ground.opinion != Opinion::Unknown)
            .map(|(source, ground)| Self {
                source: source.name(),
                opinion: ground.opinion.name(),
                reason: ground.reason,
                evidence: ground.evidence,
                since: date(ground.since),
                said: date(ground.said),
            })
            .collect()
    }
}

/// How an ejection stands.
#[derive(Debug, Serialize)]
struct EjectedView {
    /// `out`, `probe_due` or `probing`.
    standing: &'static str,
    /// The how many-th time in a row.
    times: u32,
    /// Until the first probe.
    seconds_left: f64,
}

impl EjectedView {
    fn of(endpoint: &Endpoint, now: Moment) -> Option<Self> {
        if endpoint.is_in_service() {
            return None;
        }
        let view = endpoint.state.ejection.view(now);
        Some(Self {
            standing: view.standing.name(),
            times: view.nth,
            seconds_left: rounded(view.until?.since(now).as_secs_f64()),
        })
    }
}

/// What an endpoint asks for itself.
#[derive(Debug, Serialize)]
struct AskedView {
    /// Share of its configured weight.
    share: f64,
    load: Option<f32>,
    max_in_flight: Option<u32>,
    /// Until that is forgotten.
    seconds_left: f64,
}

impl AskedView {
    fn of(endpoint: &Endpoint, now: Moment) -> Option<Self> {
        let beats = endpoint.state.beats.lock();
        let beat = beats.current(now)?;
        Some(Self {
            share: rounded(f64::from(beats.share(endpoint.weight, now))),
            load: beat.load,
            max_in_flight: beat.max_in_flight,
            seconds_left: rounded(beats.until().since(now).as_secs_f64()),
        })
    }
}

impl EndpointView {
    fn new(endpoint: &Endpoint, set_aside: Option<Override>, now: Moment) -> Self {
        let (state, load) = (&endpoint.state, &endpoint.state.load);
        let availability = state.availability();
        // Without decay: what the last answers said, which does not change while nobody asks.
        let estimate = load.estimate(Moment::ZERO, f32::INFINITY);
        Self {
            address: endpoint.label.to_string(),
            host: endpoint.host.to_string(),
            weight: endpoint.weight,
            priority: endpoint.priority,
            zone: endpoint.zone.as_deref().map(str::to_owned),
            available: endpoint.is_usable(),
            state: availability.state().name(),
            grounds: GroundView::all(endpoint, now),
            healthy: !availability.is_down_by(Source::Check),
            drained: availability.is_drained_by(Source::Admin),
            ejected: EjectedView::of(endpoint, now),
            in_flight: load.in_flight(),
            asked: AskedView::of(endpoint, now),
            latency_estimate_ms: estimate.map(|seconds| rounded(f64::from(seconds) * 1e3)),
            success: rounded(f64::from(load.success())),
            connections: state.connections(),
            idle_limit_seconds: rounded(state.idle.limit(now).as_secs_f64()),
            picks: load.picks(),
            set_aside,
        }
    }
}

/// Three digits after the point: more would be noise of the estimate.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn members(context: &Context, cluster: &Cluster) -> Vec<EndpointView> {
    let endpoints = cluster.endpoints.iter();
    endpoints
        .map(|endpoint| {
            EndpointView::new(
                endpoint,
                context.kept.overrides.get(&cluster.name, &endpoint.label),
                context.clock.now(),
            )
        })
        .collect()
}

pub(super) async fn endpoints(
    State(context): State<Arc<Context>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let snapshot = context.cell.load();
    let cluster = find(&snapshot, &name)?;
    Ok(problem::ok(&Endpoints {
        cluster: &cluster.name,
        generation: snapshot.generation,
        endpoints: members(&context, cluster),
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct ConfigQuery {
    #[serde(default)]
    origin: Option<String>,
}

#[derive(Debug, Serialize)]
struct ConfigView<'a> {
    generation: u64,
    hash: &'a str,
    file: &'a str,
    /// YAML, long form, secrets masked.
    effective: &'a str,
}

pub(super) async fn config(
    State(context): State<Arc<Context>>,
    Query(query): Query<ConfigQuery>,
    headers: HeaderMap,
) -> Response {
    let (snapshot, config) = (context.cell.load(), context.config.load_full());
    let with_origins = query
        .origin
        .is_some_and(|origin| !matches!(&*origin, "0" | "false"));
    let text = if with_origins {
        &config.with_origins
    } else {
        &config.plain
    };
    let accept = headers.get(header::ACCEPT).map(HeaderValue::as_bytes);
    if accept.is_some_and(|accept| accept.starts_with(b"application/yaml")) {
        let headers = [
            (header::CONTENT_TYPE, "application/yaml"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        return (headers, text.clone()).into_response();
    }
    problem::ok(&ConfigView {
        generation: snapshot.generation,
        hash: &snapshot.hash,
        file: &config.file,
        effective: text,
    })
}

#[derive(Debug, Serialize)]
struct LogView {
    level: &'static str,
}

pub(super) async fn log(State(context): State<Arc<Context>>) -> Response {
    problem::ok(&LogView {
        level: context.log.level().name(),
    })
}
