//! Clusters: settings, first members, where further ones come from, and how they are checked.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use bellwether_core::balance::Policy;
use bellwether_core::{Moment, adaptive, budget, ejection, health, outlier, panic, phi};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::policy::mode;
use super::{Context, DiscoveryTask, ProbePlan, SourcePlan, address, tls};
use crate::cluster::discovery::fixed::{Entry, Place};
use crate::cluster::discovery::{Member, dns, file, fixed, http as http_source, keep};
use crate::cluster::heartbeat::{self, Signs};
use crate::cluster::probe::{self, HttpCheck, Kind};
use crate::cluster::{AdaptiveLimit, Cluster, Protocol, Settings};
use crate::config::Sp;
use crate::config::cluster as written;
use crate::config::units::{self, Scalar as _, WordOr};
use crate::net::tls::Alpn;
use crate::net::{Address, SocketAddress, proxy_protocol};
use crate::route::HashKey;
use crate::snapshot::blueprint::Blueprint;

/// A cluster and the tasks it wants.
pub(super) struct Made {
    pub(super) cluster: Arc<Cluster>,
    pub(super) discovery: Option<DiscoveryTask>,
    pub(super) probe: Option<ProbePlan>,
}

pub(super) fn all(cx: &mut Context<'_>) -> Vec<Made> {
    let document = cx.document;
    document
        .effective
        .clusters
        .iter()
        .map(|(name, cluster)| one(name, cluster, cx))
        .collect()
}

fn one(name: &Sp<String>, cluster: &written::Cluster, cx: &mut Context<'_>) -> Made {
    let label: Arc<str> = name.value.as_str().into();
    let owner = format!("cluster {label}");
    let settings = settings(cluster, cx);
    let tls = tls::client(&owner, &cluster.tls, alpn(settings.protocol), cx);
    let blueprint = Blueprint {
        name: Arc::clone(&label),
        transport: transport(
            &settings,
            tls.as_deref().map(crate::net::tls::ClientTls::settings),
        ),
        policy: policy(cluster.load_balancing.policy.value),
        guards: cx
            .clusters
            .get(name.value.as_str())
            .and_then(|id| cx.guards.get(id))
            .map(|guards| guards.as_slice().into())
            .unwrap_or_default(),
        settings,
        tls,
    };
    let source = source(cluster, cx);
    let entries: &[Entry] = match &source {
        Sourced::Known(entries) | Sourced::Told(SourcePlan::Fixed { entries, .. }) => entries,
        Sourced::Told(_) | Sourced::Nowhere => &[],
    };
    let mut members: Vec<Member> = fixed_members(entries);
    if let Sourced::Told(source) = &source
        && let Some(last) = cx.registry.members(&label)
    {
        members = last_known(source, &last, members);
    }
    let at = if cx.at_start {
        Moment::ZERO
    } else {
        cx.registry.now()
    };
    let made = blueprint.assemble(&members, cx.registry, at, cx.at_start);
    Made {
        cluster: Arc::new(made),
        probe: cluster
            .health_check
            .value
            .as_ref()
            .and_then(|check| probe(check, cluster, &owner, cx))
            .map(|settings| ProbePlan::new(Arc::clone(&label), settings)),
        discovery: match source {
            Sourced::Told(source) => Some(DiscoveryTask {
                cluster: label,
                source,
            }),
            Sourced::Known(_) | Sourced::Nowhere => None,
        },
    }
}

fn settings(cluster: &written::Cluster, cx: &mut Context<'_>) -> Settings {
    let pool = &cluster.connection_pool;
    Settings {
        protocol: match cluster.protocol.value {
            written::UpstreamProtocol::Auto => Protocol::Auto,
            written::UpstreamProtocol::Http1 => Protocol::Http1,
            written::UpstreamProtocol::Http2 => Protocol::Http2,
        },
        connect_timeout: cluster.connect_timeout.value,
        tcp_keepalive: pool.tcp_keepalive.value,
        proxy_protocol: match cluster.proxy_protocol.value {
            written::ProxyProtocolOut::Off => None,
            written::ProxyProtocolOut::V1 => Some(proxy_protocol::Version::V1),
            written::ProxyProtocolOut::V2 => Some(proxy_protocol::Version::V2),
        },
        max_connections: pool.max_connections_per_endpoint.value,
        max_idle: pool.max_idle_per_endpoint.value as usize,
        idle_timeout: match pool.idle_timeout.value {
            WordOr::Word(_) => None,
            WordOr::Value(timeout) => Some(timeout),
        },
        max_requests: pool.max_requests_per_connection.value,
        max_in_flight: cluster.limits.max_in_flight.value,
        max_in_flight_per_endpoint: cluster.limits.max_in_flight_per_endpoint.value,
        max_queue: cluster.limits.max_queue.value,
        queue_timeout: cluster.limits.queue_timeout.value,
        adaptive: cluster
            .adaptive_concurrency
            .value
            .as_ref()
            .map(|written| AdaptiveLimit {
                mode: mode(written.mode.value),
                range: adaptive::Range {
                    min: written.min.value,
                    max: written.max.value,
                },
            }),
        slow_start: cluster.slow_start.value,
        heartbeat: heartbeat(cluster),
        heeds_answers: cluster.health_check.value.is_some() || heartbeat(cluster).is_some(),
        outlier: cluster.outlier_detection.value.as_ref().map(outlier_settings),
        rehearsals: cluster
            .outlier_detection
            .value
            .as_ref()
            .is_some_and(|written| written.rehearsals.value),
        panic: cluster.panic.value.as_ref().map(|written| panic::Settings {
            threshold: written.threshold.fraction(),
            to: match written.to.value {
                written::PanicTo::All => panic::To::All,
                written::PanicTo::Reject => panic::To::Reject,
            },
        }),
        retry_budget: cluster
            .retry_budget
            .value
            .as_ref()
            .map(|budget| budget::Settings {
                share: budget.percent.fraction(),
                per_second: budget.min_per_second.value,
                window: budget.window.value,
            }),
        zone: cluster
            .load_balancing
            .zone_aware
            .value
            .then(|| own_zone(cx))
            .flatten(),
        hash_on: hash_keys(cluster.load_balancing.hash_on.as_ref(), cx),
    }
}

fn heartbeat(cluster: &written::Cluster) -> Option<heartbeat::Settings> {
    let written = cluster.heartbeat.as_ref()?.value.as_ref()?;
    let threshold = f64::from(written.phi_threshold.value);
    let outlier = cluster.outlier_detection.value.as_ref();
    Some(heartbeat::Settings {
        signs: match written.source.value {
            written::HeartbeatSource::Any => Signs::Any,
            written::HeartbeatSource::Probe => Signs::Probe,
            written::HeartbeatSource::Push => Signs::Push,
            written::HeartbeatSource::Traffic => Signs::Traffic,
        },
        phi: phi::Settings {
            interval: written.interval.value,
            phi_threshold: threshold,
            // 3 of 8, as usual.
            degraded_at: threshold * 0.375,
            acceptable_pause: written.acceptable_pause.value,
            timeout: written.timeout.value,
        },
        max_percent: outlier.map_or(0.5, |outlier| outlier.max_ejection_percent.fraction()),
    })
}

/// Where we are: as configured, else as whoever started us says.
fn own_zone(cx: &Context<'_>) -> Option<Arc<str>> {
    let written = cx
        .document
        .config
        .runtime
        .zone
        .as_ref()
        .map(|zone| zone.value.clone());
    let zone = written.or_else(|| std::env::var("BELLWETHER_ZONE").ok())?;
    (!zone.is_empty()).then(|| zone.into())
}

fn outlier_settings(written: &written::OutlierDetection) -> outlier::Settings {
    let count = |count: Option<u32>| count.and_then(NonZeroU32::new);
    outlier::Settings {
        mode: mode(written.mode.value),
        consecutive_gateway_errors: count(written.consecutive_gateway_errors.value),
        consecutive_local_errors: count(written.consecutive_local_errors.value),
        consecutive_5xx: count(written.consecutive_5xx.value),
        failure_rate: written.failure_rate.value.map(|rate| rate.fraction()),
        min_requests: written.min_requests.value,
        relative: written.failure_rate.value.map(|_| outlier::Relative::default()),
        latency_factor: written.latency_factor.value.map(f64::from),
        window: written.window.value,
        max_ejection_percent: written.max_ejection_percent.fraction(),
        ejection: ejection::Settings {
            base: written.base_ejection_time.value,
            max: written.max_ejection_time.value,
            ..ejection::Settings::default()
        },
    }
}

const fn policy(written: written::LbPolicy) -> Policy {
    match written {
        written::LbPolicy::PeakEwma => Policy::PeakEwma,
        written::LbPolicy::LeastRequest => Policy::LeastRequest,
        written::LbPolicy::RoundRobin => Policy::RoundRobin,
        written::LbPolicy::Random => Policy::Random,
        written::LbPolicy::RingHash => Policy::RingHash,
        written::LbPolicy::Maglev => Policy::Maglev,
    }
}

pub(super) fn hash_keys(
    keys: Option<&Sp<crate::config::Many<units::RequestKey>>>,
    cx: &mut Context<'_>,
) -> Vec<HashKey> {
    let mut read = Vec::new();
    for key in keys.iter().flat_map(|keys| keys.iter()) {
        match HashKey::parse(&key.written()) {
            Ok(key) => read.push(key),
            Err(error) => cx.error(
                "E0311",
                format!("`{}` is not a key", key.written()),
                key.span,
                error.to_string(),
            ),
        }
    }
    read
}

const fn alpn(protocol: Protocol) -> &'static [Alpn] {
    match protocol {
        Protocol::Auto => &[Alpn::Http2, Alpn::Http1],
        Protocol::Http1 => &[Alpn::Http1],
        Protocol::Http2 => &[Alpn::Http2],
    }
}

/// What connections depend on: another value, and those made before are not used any more.
fn transport(settings: &Settings, tls: Option<&crate::net::tls::ClientSettings>) -> u64 {
    let text = format!("{:?} {:?} {tls:?}", settings.protocol, settings.proxy_protocol);
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// Where members come from.
enum Sourced {
    /// All of them are addresses.
    Known(Vec<Entry>),
    /// A task tells them.
    Told(SourcePlan),
    /// Nothing usable is written; that has been reported.
    Nowhere,
}

fn source(cluster: &written::Cluster, cx: &mut Context<'_>) -> Sourced {
    if let Some(endpoints) = &cluster.endpoints {
        let entries: Vec<Entry> = endpoints.iter().map(|endpoint| entry(endpoint)).collect();
        let has_names = entries
            .iter()
            .any(|entry| matches!(entry.place, Place::Name { .. }));
        return match has_names {
            true => Sourced::Told(SourcePlan::Fixed {
                entries,
                keep: keep::Settings::new(keep::Pace::Ttl),
            }),
            false => Sourced::Known(entries),
        };
    }
    let Some(discovery) = &cluster.discovery else {
        return Sourced::Nowhere;
    };
    let told = if let Some(dns) = &discovery.dns {
        dns_source(dns, cx)
    } else if let Some(file) = &discovery.file {
        Some(SourcePlan::File(file::Settings {
            path: file.path.path.clone(),
        }))
    } else if let Some(http) = &discovery.http {
        match http_source::Settings::new(&http.url.0, http.interval.value) {
            Ok(settings) => Some(SourcePlan::Http(settings)),
            Err(why) => {
                cx.error(
                    "E0306",
                    "this address cannot be asked for endpoints",
                    http.url.span,
                    why,
                );
                None
            }
        }
    } else {
        None
    };
    told.map_or(Sourced::Nowhere, Sourced::Told)
}

fn entry(endpoint: &written::Endpoint) -> Entry {
    let place = match address(&endpoint.address.value) {
        // No host is "this machine" to somebody who connects.
        Address::Tcp { host, port } if host.is_empty() => {
            Place::Address(SocketAddress::Ip((std::net::Ipv4Addr::LOCALHOST, port).into()))
        }
        address => Place::from(&address),
    };
    let is_witness = endpoint
        .role
        .as_ref()
        .is_some_and(|role| role.value == written::Role::Witness);
    let labels: BTreeMap<String, String> = endpoint
        .labels
        .iter()
        .flat_map(|labels| labels.iter())
        .map(|(name, value)| (name.value.clone(), value.value.clone()))
        .collect();
    Entry {
        place,
        // A witness votes and serves nobody.
        weight: if is_witness { 0 } else { endpoint.weight.value },
        zone: endpoint.zone.as_ref().map(|zone| zone.value.as_str().into()),
        priority: u8::try_from(endpoint.priority.value).unwrap_or(u8::MAX),
        labels: Arc::new(labels),
    }
}

fn dns_source(written: &written::DiscoveryDns, cx: &mut Context<'_>) -> Option<SourcePlan> {
    let name = written.name.value.as_str();
    let question = match written.record.value {
        written::DnsRecord::Srv if !dns::KNOWS_SERVICES => {
            cx.error(
                "E0610",
                "`srv` is not supported by this build",
                written.record.span,
                "feature `dns` is off",
            );
            return None;
        }
        written::DnsRecord::Srv => dns::Question::Services { name: name.into() },
        written::DnsRecord::A => {
            let split = name
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            let Some((host, Ok(port))) = split else {
                cx.error(
                    "E0306",
                    format!("`{name}` has no port"),
                    written.name.span,
                    format!("write `{name}:8080`"),
                );
                return None;
            };
            dns::Question::Addresses {
                host: host.into(),
                port,
            }
        }
    };
    let pace = match written.refresh.value {
        WordOr::Word(_) => dns::pace(None),
        WordOr::Value(interval) => dns::pace(Some(interval)),
    };
    let mut keep = keep::Settings::new(pace);
    keep.hold = written.hold.value;
    Some(SourcePlan::Dns { question, keep })
}

/// The members that need no resolving.
fn fixed_members(entries: &[Entry]) -> Vec<Member> {
    let settings = fixed::Settings {
        entries: entries.to_vec(),
        keep: keep::Settings::new(keep::Pace::Ttl),
        resolver: Arc::default(),
    };
    settings.known()
}

/// What discovery told last, until it speaks again. Of written endpoints, only those that are still written count, with
/// what is written about them now.
fn last_known(source: &SourcePlan, last: &[Member], known: Vec<Member>) -> Vec<Member> {
    let SourcePlan::Fixed { entries, .. } = source else {
        return last.to_vec();
    };
    let mut members = known;
    for entry in entries {
        let Place::Name { host, port } = &entry.place else {
            continue;
        };
        for member in last {
            let is_same = member.host.as_ref() == Some(host)
                && member.address.ip().is_some_and(|address| address.port() == *port)
                && members.iter().all(|known| known.address != member.address);
            if is_same {
                members.push(Member {
                    address: member.address.clone(),
                    host: member.host.clone(),
                    weight: entry.weight,
                    zone: entry.zone.clone(),
                    priority: entry.priority,
                    labels: Arc::clone(&entry.labels),
                });
            }
        }
    }
    members
}

fn probe(
    written: &written::HealthCheck,
    cluster: &written::Cluster,
    owner: &str,
    cx: &mut Context<'_>,
) -> Option<probe::Settings> {
    let kind = if let Some(path) = &written.path {
        http_check(written, path, cx)?
    } else if let Some(service) = &written.grpc_service {
        Kind::Grpc(service.value.as_str().into())
    } else if written.tcp.as_ref().is_some_and(|tcp| tcp.value) {
        Kind::Tcp
    } else {
        return None;
    };
    // A side of its own: a check speaks what it needs, whatever the cluster speaks.
    let tls = match &cluster.tls.value {
        Some(_) => Some(tls::client(
            &format!("{owner} (health check)"),
            &cluster.tls,
            kind.alpn(),
            cx,
        )?),
        None => None,
    };
    Some(probe::Settings {
        kind,
        port: written
            .port
            .as_ref()
            .and_then(|port| u16::try_from(port.value).ok()),
        tls,
        pace: health::Settings {
            interval: written.interval.value,
            timeout: written.timeout.value,
            healthy_threshold: written.healthy_threshold.value,
            unhealthy_threshold: written.unhealthy_threshold.value,
        },
    })
}

fn http_check(
    written: &written::HealthCheck,
    path: &Sp<units::UrlPath>,
    cx: &mut Context<'_>,
) -> Option<Kind> {
    let uri: Uri = match path.0.parse() {
        Ok(uri) => uri,
        Err(error) => {
            cx.error(
                "E0316",
                format!("`{}` is not a path", path.0),
                path.span,
                format!("{error}"),
            );
            return None;
        }
    };
    let mut headers = HeaderMap::new();
    for (name, value) in written.headers.iter().flat_map(|headers| headers.iter()) {
        let field = HeaderName::from_bytes(name.value.as_bytes());
        match (field, HeaderValue::from_str(&value.value)) {
            (Ok(field), Ok(value)) => {
                headers.append(field, value);
            }
            (Err(_), _) => cx.error(
                "E0314",
                format!("`{}` is not a header name", name.value),
                name.span,
                "",
            ),
            (Ok(_), Err(_)) => cx.error("E0314", "a header cannot have this value", value.span, ""),
        }
    }
    let expect_body = match &written.expect_body {
        None => None,
        // The whole value must match, as everywhere.
        Some(pattern) => match regex::bytes::Regex::new(&format!(r"\A(?:{})\z", pattern.0)) {
            Ok(regex) => Some(regex),
            Err(error) => {
                cx.error(
                    "E0307",
                    "the regex does not compile",
                    pattern.span,
                    error.to_string(),
                );
                return None;
            }
        },
    };
    Some(Kind::Http(Box::new(HttpCheck {
        method: Method::from_bytes(written.method.0.as_bytes()).unwrap_or(Method::GET),
        path: uri,
        headers,
        expect_status: written
            .expect_status
            .iter()
            .map(|statuses| statuses.from..=statuses.to)
            .collect(),
        expect_body,
    })))
}
