//! Clusters and their endpoints, as written.

use std::time::Duration;

use super::leader::Leader;
use super::policy::Mode;
use super::table::{List, Many, Map, Sp, object, words};
use super::tls::ClusterTls;
use super::units::{
    Address, Auto, FilePath, Method, Pattern, Percent, RequestKey, Statuses, Url, UrlPath, WordOr,
};

words! {
    /// How an endpoint is chosen.
    LbPolicy: "load-balancing policy", "policies" {
        PeakEwma = "peak_ewma", LeastRequest = "least_request", RoundRobin = "round_robin", Random = "random",
        RingHash = "ring_hash", Maglev = "maglev",
    }
}
words! {
    /// What is spoken to endpoints.
    UpstreamProtocol: "protocol", "protocols" { Auto = "auto", Http1 = "http1", Http2 = "http2" }
}
words! {
    /// The PROXY header sent to endpoints.
    ProxyProtocolOut: "PROXY protocol version", "versions" { Off = "off", V1 = "v1", V2 = "v2" }
}
words! {
    /// A role that does not change.
    Role: "role", "roles" { Leader = "leader", Replica = "replica", Witness = "witness" }
}
words! {
    /// Which role wins a tie.
    Prefer: "preference", "preferences" { None = "none", Leader = "leader", Replica = "replica" }
}
words! {
    /// DNS record type.
    DnsRecord: "record type", "types" { A = "a", Srv = "srv" }
}
words! {
    /// Refresh by the record's own time to live.
    Ttl: "value", "values" { Ttl = "ttl" }
}
words! {
    /// Signs of life.
    HeartbeatSource: "source", "sources" { Any = "any", Probe = "probe", Push = "push", Traffic = "traffic" }
}
words! {
    /// Who gets requests in a panic.
    PanicTo: "choice", "choices" { All = "all", Reject = "reject" }
}

object! {
    /// A named set of equivalent endpoints.
    Cluster = "cluster" {
        /// exactly one of endpoints, discovery
        endpoints: Option<Sp<List<Endpoint>>> = none;
        /// where the endpoints come from
        discovery: Option<Sp<Discovery>> = none;
        /// how an endpoint is chosen
        load_balancing: Sp<LoadBalancing> = "peak_ewma";
        /// auto: ALPN with tls, else http1; gRPC needs http2
        protocol: Sp<UpstreamProtocol> = "auto";
        /// `true` = verify with system roots, name = host
        tls: Sp<Option<ClusterTls>> = "off";
        /// sent to endpoints
        proxy_protocol: Sp<ProxyProtocolOut> = "off";
        /// a string is the path
        health_check: Sp<Option<HealthCheck>> = "off";
        /// watches for signs of life
        heartbeat: Option<Sp<Option<Heartbeat>>> = none as "off; on with `leader`";
        /// sets failing endpoints aside
        outlier_detection: Sp<Option<OutlierDetection>> = "{}" as "on";
        /// what happens when too few are left
        panic: Sp<Option<Panic>> = "{}" as "on, 0%";
        /// gradual start of new and recovered endpoints
        slow_start: Sp<Option<Duration>> = "10s";
        /// to establish a connection
        connect_timeout: Sp<Duration> = "1s" in (1, u32::MAX);
        /// connections kept open
        connection_pool: Sp<ConnectionPool> = "{}";
        /// how much at once
        limits: Sp<ClusterLimits> = "{}";
        /// a limit that finds itself
        adaptive_concurrency: Sp<Option<AdaptiveConcurrency>> = "off";
        /// share of requests that may be tried again
        retry_budget: Sp<Option<RetryBudget>> = "{}" as "on";
        /// a string is a preset
        leader: Sp<Option<Leader>> = "off";
    }
}

object! {
    /// One address in a cluster. A bare value is the address.
    Endpoint = "endpoint", short address {
        /// `host:port` or `unix:`
        address: Sp<Address> = req;
        /// 0 = drain
        weight: Sp<u32> = "1" in (0, 1_000_000);
        /// where it runs
        zone: Option<Sp<String>> = none;
        /// higher numbers are used only when lower ones fail
        priority: Sp<u32> = "0" in (0, 127);
        /// static roles; witness never gets traffic
        role: Option<Sp<Role>> = none;
        /// shown in UI and metrics info
        labels: Option<Sp<Map<String>>> = none;
    }
}

object! {
    /// Where endpoints come from: exactly one key.
    Discovery = "discovery" {
        /// from names
        dns: Option<Sp<DiscoveryDns>> = none as "exactly one key";
        /// from a file
        file: Option<Sp<DiscoveryFile>> = none;
        /// from a service that lists them
        http: Option<Sp<DiscoveryHttp>> = none;
        /// from Kubernetes
        kubernetes: Option<Sp<DiscoveryKubernetes>> = none;
    }
}

object! {
    /// Endpoints from names.
    DiscoveryDns = "discovery.dns" {
        /// `app.default.svc:8080`; without port for srv
        name: Sp<String> = req;
        /// a includes AAAA
        record: Sp<DnsRecord> = "a";
        /// clamped 1 s … 5 m
        refresh: Sp<WordOr<Ttl, Duration>> = "ttl" in (1, u32::MAX);
        /// keep the last good set on failure or empty answer
        hold: Sp<Duration> = "30s";
    }
}

object! {
    /// Endpoints from a file.
    DiscoveryFile = "discovery.file" {
        /// YAML list of endpoints, watched
        path: Sp<FilePath> = req;
    }
}

object! {
    /// Endpoints from a service that lists them.
    DiscoveryHttp = "discovery.http" {
        /// JSON list of endpoints, ETag honoured
        url: Sp<Url> = req;
        /// how often
        interval: Sp<Duration> = "10s" in (1, u32::MAX);
    }
}

object! {
    /// Endpoints from Kubernetes.
    DiscoveryKubernetes = "discovery.kubernetes" {
        /// EndpointSlices
        service: Sp<String> = req;
        /// where the service is
        namespace: Option<Sp<String>> = none as "own";
        /// name or number
        port: Sp<String> = req;
    }
}

object! {
    /// How an endpoint is chosen. A bare word is the policy.
    LoadBalancing = "load_balancing", short policy {
        /// how an endpoint is chosen
        policy: Sp<LbPolicy> = "peak_ewma";
        /// required by ring_hash, maglev
        hash_on: Option<Sp<Many<RequestKey>>> = none;
        /// prefers own zone, spills by load
        zone_aware: Sp<bool> = "true";
        /// tie-break for `any` reads
        prefer: Sp<Prefer> = "none";
    }
}

object! {
    /// Asks endpoints whether they are fit to serve. A bare value is the path.
    HealthCheck = "health_check", short path {
        /// implies http
        path: Option<Sp<UrlPath>> = none;
        /// implies gRPC health protocol; "" = whole server
        grpc_service: Option<Sp<String>> = none;
        /// connect only; exactly one of path, grpc_service, tcp
        tcp: Option<Sp<bool>> = none;
        /// where to ask
        port: Option<Sp<u32>> = none as "endpoint's" in (1, 65_535);
        /// how to ask
        method: Sp<Method> = "GET";
        /// headers of the question
        headers: Option<Sp<Map<String>>> = none;
        /// answers that pass
        expect_status: Sp<Many<Statuses>> = "[200-299]" as "200-299";
        /// first 4 KiB
        expect_body: Option<Sp<Pattern>> = none;
        /// ±20 % jitter, never in phase
        interval: Sp<Duration> = "5s" in (1, u32::MAX);
        /// to answer
        timeout: Sp<Duration> = "2s" in (1, u32::MAX);
        /// passes in a row
        healthy_threshold: Sp<u32> = "2" in (1, 100);
        /// failures in a row
        unhealthy_threshold: Sp<u32> = "3" in (1, 100);
    }
}

object! {
    /// Watches for signs of life.
    Heartbeat = "heartbeat" {
        /// what counts as a sign
        source: Sp<HeartbeatSource> = "any";
        /// how often
        interval: Sp<Duration> = "1s" in (1, u32::MAX);
        /// suspicion that is believed
        phi_threshold: Sp<u32> = "8" in (1, 20);
        /// silence that means nothing
        acceptable_pause: Sp<Duration> = "2s" in (1, u32::MAX);
        /// fixed deadline instead of phi
        timeout: Sp<Option<Duration>> = "off" in (1, u32::MAX);
    }
}

object! {
    /// Sets failing endpoints aside.
    OutlierDetection = "outlier_detection" {
        /// observe = metrics and events only
        mode: Sp<Mode> = "enforce";
        /// 502 503 504
        consecutive_gateway_errors: Sp<Option<u32>> = "5" in (1, 1_000_000);
        /// connect, reset, TLS, per-try timeout
        consecutive_local_errors: Sp<Option<u32>> = "3" in (1, 1_000_000);
        /// any 5xx
        consecutive_5xx: Sp<Option<u32>> = "off" in (1, 1_000_000);
        /// share of failures
        failure_rate: Sp<Option<Percent>> = "50%";
        /// p90 above N × the median of the others
        latency_factor: Sp<Option<u32>> = "off" in (2, 1_000);
        /// fewer than this prove nothing
        min_requests: Sp<u32> = "20" in (1, 1_000_000);
        /// sliding
        window: Sp<Duration> = "30s" in (1, u32::MAX);
        /// doubles with jitter
        base_ejection_time: Sp<Duration> = "5s" in (1, u32::MAX);
        /// the longest
        max_ejection_time: Sp<Duration> = "300s" in (1, u32::MAX);
        /// at least one may always go, the last never
        max_ejection_percent: Sp<Percent> = "50%";
        /// copies of GET requests are sent to who is ejected, ten a second, to find out early whether it works again
        rehearsals: Sp<bool> = "true";
    }
}

object! {
    /// What happens when too few endpoints are left.
    Panic = "panic" {
        /// available share at or below this = panic; never for writes to a leader
        threshold: Sp<Percent> = "0%";
        /// all = those that do not refuse connections right now
        to: Sp<PanicTo> = "all";
    }
}

object! {
    /// Connections kept open.
    ConnectionPool = "connection_pool" {
        /// open at one time
        max_connections_per_endpoint: Sp<Option<u32>> = "off" in (1, 1_000_000);
        /// kept without use
        max_idle_per_endpoint: Sp<u32> = "64" in (0, 1_000_000);
        /// learned from the endpoint, 4 s to start
        idle_timeout: Sp<WordOr<Auto, Duration>> = "auto" in (1, u32::MAX);
        /// then the connection is closed
        max_requests_per_connection: Sp<Option<u32>> = "off" in (1, u32::MAX);
        /// probes of the system
        tcp_keepalive: Sp<Option<Duration>> = "30s" in (1, u32::MAX);
    }
}

object! {
    /// How much at once.
    ClusterLimits = "cluster.limits" {
        /// requests of the cluster
        max_in_flight: Sp<Option<u32>> = "off" in (1, u32::MAX);
        /// requests of one endpoint
        max_in_flight_per_endpoint: Sp<Option<u32>> = "off" in (1, u32::MAX);
        /// requests that wait
        max_queue: Sp<u32> = "1024" in (0, 1_000_000);
        /// how long they wait
        queue_timeout: Sp<Duration> = "1s";
    }
}

object! {
    /// A limit that finds itself.
    AdaptiveConcurrency = "adaptive_concurrency" {
        /// observe = metrics only
        mode: Sp<Mode> = "observe";
        /// never below
        min: Sp<u32> = "10" in (1, 1_000_000);
        /// never above
        max: Sp<u32> = "2000" in (1, 1_000_000);
    }
}

object! {
    /// Share of requests that may be tried again.
    RetryBudget = "retry_budget" {
        /// of the requests in the window
        percent: Sp<Percent> = "20%";
        /// allowed in any case
        min_per_second: Sp<u32> = "3" in (0, 1_000_000);
        /// sliding
        window: Sp<Duration> = "10s" in (1, u32::MAX);
    }
}
