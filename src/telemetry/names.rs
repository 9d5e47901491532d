//! The register: every metric with its name, kind, unit, labels and help.
//!
//! Names are a contract: dashboards and alerts are built on them. A name is written here and nowhere else;
//! `docs/metrics.md` is generated from this list and a test compares the two, so a renamed metric shows up in review as
//! the breaking change it is. The order of the list is the order of a scrape.

use std::fmt::Write as _;

use bellwether_core::Reason;
use bellwether_core::shed::{Level, Priority};

use super::labels::{
    CheckResult, CloseReason, ConnectResult, ConnectionRejection, ConnectionState, DeadlineStage, Direction,
    DiscoveryResult, DrainState, EndpointLabel, FallbackCause, HealthSource, HealthTo, HeartbeatResult,
    HedgeResult, Label, OutcomeLabel, ReloadResult, ReloadTrigger, RetryResult, RetryTrigger, RetryVeto,
    ShedReason, ShedScope, Side, TlsResult, UpstreamFailure,
};

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets, their sum and number.
    Histogram,
}

impl Kind {
    /// As in a `# TYPE` line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Pieces.
    Count,
    /// Seconds, or seconds since 1970 for a name that ends in `_timestamp_seconds`.
    Seconds,
    /// Bytes.
    Bytes,
    /// 0 or 1.
    Flag,
    /// 0 to 1.
    Ratio,
}

impl Unit {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Flag => "0 or 1",
            Self::Ratio => "0 to 1",
        }
    }
}

/// One line of the register.
#[derive(Debug)]
pub struct Metric {
    /// With prefix and unit.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What is counted.
    pub unit: Unit,
    /// Label names, in the order of a scrape.
    pub labels: &'static [&'static str],
    /// One sentence without a full stop.
    pub help: &'static str,
}

macro_rules! register {
    ($($section:literal { $($id:ident = $kind:ident $name:literal $unit:ident [$($label:literal),*] $help:literal;)+ })+) => {
        $($(
            pub(crate) const $id: &Metric = &Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )+)+

        /// Every metric, by section.
        pub const SECTIONS: &[(&str, &[&Metric])] = &[$(($section, &[$($id),+])),+];
    };
}

register! {
    "Requests" {
        REQUESTS = Counter "bellwether_requests_total" Count ["route", "code", "outcome"]
            "Requests that ended, by the status sent (none: no answer) and how they went";
        REQUEST_DURATION = Histogram "bellwether_request_duration_seconds" Seconds ["route"]
            "From the head of the request to the last byte of the answer";
        REQUEST_TTFB = Histogram "bellwether_request_ttfb_seconds" Seconds ["route"]
            "From the head of the request to the head of the answer";
        REQUESTS_IN_FLIGHT = Gauge "bellwether_requests_in_flight" Count ["route"]
            "Requests running now";
        REQUEST_REJECTIONS = Counter "bellwether_request_rejections_total" Count ["route", "reason"]
            "Requests the proxy answered itself, by reason";
        PROXY_OVERHEAD = Histogram "bellwether_proxy_overhead_seconds" Seconds ["route"]
            "Time a request spent in the proxy, less the time it waited for the upstream";
        REQUEST_ATTEMPTS = Histogram "bellwether_request_attempts" Count ["route"]
            "Attempts per request that was sent to an upstream";
    }
    "Retries and deadlines" {
        RETRIES = Counter "bellwether_retries_total" Count ["route", "trigger", "result"]
            "Attempts after the first, by what made us try again and how it ended";
        RETRIES_VETOED = Counter "bellwether_retries_vetoed_total" Count ["route", "reason"]
            "Failed attempts that were not repeated, by reason";
        HEDGES = Counter "bellwether_hedges_total" Count ["route", "result"]
            "Copies of requests that took long, by what came of them";
        DEADLINE_EXPIRED = Counter "bellwether_deadline_expired_total" Count ["route", "stage"]
            "Requests whose time ran out, by what they were doing";
    }
    "Fallbacks" {
        FALLBACKS = Counter "bellwether_fallbacks_total" Count ["route", "reason"]
            "Requests that a route answered by its fallback, by why";
    }
    "Rate limits" {
        RATE_LIMITED = Counter "bellwether_rate_limited_total" Count ["route", "policy", "enforced"]
            "Requests above a rate limit, by what it counts, and whether they were refused for it";
        RATE_LIMIT_EVICTIONS = Counter "bellwether_rate_limit_evictions_total" Count ["route", "policy"]
            "Keys of a rate limit forgotten for want of max_keys although they were not at rest";
    }
    "Shedding" {
        SHED = Counter "bellwether_shed_total" Count ["scope", "priority", "reason"]
            "Requests refused because there was too much, by whose limit it was and how much they mattered";
        OVERLOAD_LEVEL = Gauge "bellwether_overload_level" Flag ["level"]
            "How much the process gives up because it is short of something; 1 for the current level";
        CONCURRENCY_LIMIT = Gauge "bellwether_concurrency_limit" Count ["scope", "name"]
            "What an adaptive limit allows at once now";
        CONCURRENCY_RTT_SHORT = Gauge "bellwether_concurrency_rtt_short_seconds" Seconds ["scope", "name"]
            "How long answers take now, as an adaptive limit sees it (0: not known yet)";
        CONCURRENCY_RTT_LONG = Gauge "bellwether_concurrency_rtt_long_seconds" Seconds ["scope", "name"]
            "How long answers usually take, as an adaptive limit sees it (0: not known yet)";
        CONCURRENCY_GRADIENT = Gauge "bellwether_concurrency_gradient_ratio" Ratio ["scope", "name"]
            "What an adaptive limit was last multiplied with";
        CONCURRENCY_WOULD_REJECT = Counter "bellwether_concurrency_would_reject_total" Count ["scope", "name"]
            "Requests above an adaptive limit that only observes";
    }
    "Attempts" {
        UPSTREAM_ATTEMPTS = Counter "bellwether_upstream_attempts_total" Count ["cluster", "outcome", "code"]
            "Attempts that ended, by the status received (none: no answer) and how they went";
        UPSTREAM_ATTEMPT_DURATION = Histogram "bellwether_upstream_attempt_duration_seconds" Seconds ["cluster"]
            "From the choice of the endpoint to the end of its answer";
        UPSTREAM_FAILURES = Counter "bellwether_upstream_failures_total" Count ["cluster", "reason"]
            "Attempts that failed, by reason";
        UPSTREAM_IN_FLIGHT = Gauge "bellwether_upstream_in_flight" Count ["cluster"]
            "Attempts running now";
        UPSTREAM_QUEUE_LENGTH = Gauge "bellwether_upstream_queue_length" Count ["cluster"]
            "Requests that wait for a place under a limit of the cluster now";
        UPSTREAM_QUEUE_WAIT = Histogram "bellwether_upstream_queue_wait_seconds" Seconds ["cluster"]
            "How long requests waited for a place that had to wait, whether they got one or not";
        UPSTREAM_BYTES = Counter "bellwether_upstream_bytes_total" Bytes ["cluster", "direction"]
            "Bytes exchanged with upstreams, before TLS";
    }
    "Connections" {
        DOWNSTREAM_CONNECTIONS = Gauge "bellwether_downstream_connections" Count ["listener"]
            "Connections from clients open now";
        DOWNSTREAM_CONNECTIONS_TOTAL = Counter "bellwether_downstream_connections_total" Count ["listener"]
            "Connections accepted from clients";
        DOWNSTREAM_CONNECTIONS_REJECTED = Counter "bellwether_downstream_connections_rejected_total" Count ["listener", "reason"]
            "Connections from clients let go before any request, by reason";
        UPSTREAM_CONNECTIONS = Gauge "bellwether_upstream_connections" Count ["cluster", "state"]
            "Connections to upstreams, by what they are doing";
        UPSTREAM_CONNECTS = Counter "bellwether_upstream_connects_total" Count ["cluster", "result"]
            "Dials to upstreams, by how they ended";
        UPSTREAM_CONNECT_DURATION = Histogram "bellwether_upstream_connect_duration_seconds" Seconds ["cluster"]
            "Time of a dial, with its TLS and HTTP handshakes";
        UPSTREAM_CONNECTION_CLOSED = Counter "bellwether_upstream_connection_closed_total" Count ["cluster", "reason"]
            "Connections to upstreams closed, by reason";
        TLS_HANDSHAKES = Counter "bellwether_tls_handshakes_total" Count ["side", "result"]
            "TLS handshakes, by how they ended";
        CERTIFICATE_NOT_AFTER = Gauge "bellwether_certificate_not_after_timestamp_seconds" Seconds ["name"]
            "When a certificate in use ends";
    }
    "Circuit breakers" {
        BREAKER_STATE = Gauge "bellwether_breaker_state" Flag ["scope", "route", "cluster", "state"]
            "State of a circuit breaker; 1 for the current one";
        BREAKER_TRANSITIONS = Counter "bellwether_breaker_transitions_total" Count ["scope", "route", "cluster", "to", "reason"]
            "Changes of state of a circuit breaker, by why";
        BREAKER_CALLS = Counter "bellwether_breaker_calls_total" Count ["scope", "route", "cluster", "result"]
            "Requests that asked a circuit breaker, by its answer";
        BREAKER_FAILURE_RATIO = Gauge "bellwether_breaker_window_failure_ratio" Ratio ["scope", "route", "cluster"]
            "Share of failures in the window of a circuit breaker";
        BREAKER_SLOW_RATIO = Gauge "bellwether_breaker_window_slow_ratio" Ratio ["scope", "route", "cluster"]
            "Share of slow requests in the window of a circuit breaker";
        BREAKER_REQUESTS = Gauge "bellwether_breaker_window_requests" Count ["scope", "route", "cluster"]
            "Requests in the window of a circuit breaker";
        BREAKER_OPEN_UNTIL = Gauge "bellwether_breaker_open_until_timestamp_seconds" Seconds ["scope", "route", "cluster"]
            "When an open circuit breaker tries again (0: it is not open)";
        ENDPOINT_BREAKERS = Gauge "bellwether_endpoint_breakers" Count ["cluster", "state"]
            "Circuit breakers of the cluster's endpoints, by state";
    }
    "Endpoints and health" {
        ENDPOINTS = Gauge "bellwether_endpoints" Count ["cluster", "state"]
            "Endpoints by state; each is in exactly one, the first that applies";
        ENDPOINT_UP = Gauge "bellwether_endpoint_up" Flag ["cluster", "endpoint"]
            "Whether an endpoint may be picked";
        ENDPOINT_ATTEMPTS = Counter "bellwether_endpoint_attempts_total" Count ["cluster", "endpoint", "outcome"]
            "Attempts at an endpoint that ended, by how they went";
        ENDPOINT_IN_FLIGHT = Gauge "bellwether_endpoint_in_flight" Count ["cluster", "endpoint"]
            "Attempts running at an endpoint now";
        ENDPOINT_WEIGHT = Gauge "bellwether_endpoint_weight" Count ["cluster", "endpoint"]
            "Weight of an endpoint among its siblings";
        ENDPOINT_LATENCY = Gauge "bellwether_endpoint_latency_ewma_seconds" Seconds ["cluster", "endpoint"]
            "What the balancer believes an endpoint needs for an answer";
        ENDPOINT_PHI = Gauge "bellwether_endpoint_phi" Count ["cluster", "endpoint"]
            "How surprising the silence of an endpoint is: at N one suspicion in 10^N is wrong";
        EJECTIONS = Counter "bellwether_ejections_total" Count ["cluster", "detector", "enforced", "unenforced_reason"]
            "Endpoints found to behave worse than others, by how, and whether they were ejected for it";
        EJECTIONS_ACTIVE = Gauge "bellwether_ejections_active" Count ["cluster"]
            "Endpoints ejected now";
        HEALTH_CHECKS = Counter "bellwether_health_checks_total" Count ["cluster", "result"]
            "Health checks, by how they ended";
        HEALTH_TRANSITIONS = Counter "bellwether_health_transitions_total" Count ["cluster", "source", "to"]
            "Changes of opinion about endpoints, by who changed it and to what";
        HEARTBEATS = Counter "bellwether_heartbeats_total" Count ["cluster", "result"]
            "Heartbeats that were sent to us, by what became of them (cluster none: nobody's)";
        UPSTREAM_PANIC = Gauge "bellwether_upstream_panic" Flag ["cluster"]
            "Whether too few endpoints of a cluster are left, so that their health is not asked";
        DISCOVERY_UPDATES = Counter "bellwether_discovery_updates_total" Count ["cluster", "result"]
            "Answers of a discovery source, by what they changed";
        DISCOVERY_LAST_SUCCESS = Gauge "bellwether_discovery_last_success_timestamp_seconds" Seconds ["cluster"]
            "When a discovery source last gave a usable answer (0: never)";
        DISCOVERY_STALE = Gauge "bellwether_discovery_stale" Flag ["cluster"]
            "Whether the members of a cluster are older than their source allows";
    }
    "Process and configuration" {
        BUILD_INFO = Gauge "bellwether_build_info" Flag ["version", "revision", "rustc"]
            "What runs; always 1";
        CONFIG_RELOADS = Counter "bellwether_config_reloads_total" Count ["result", "trigger"]
            "Configurations read, by what became of them and what asked for it";
        CONFIG_LAST_RELOAD_SUCCESSFUL = Gauge "bellwether_config_last_reload_successful" Flag []
            "Whether the configuration read last is the one that serves";
        CONFIG_LAST_SUCCESS = Gauge "bellwether_config_last_success_timestamp_seconds" Seconds []
            "When the configuration that serves came into force (0: none yet)";
        CONFIG_INFO = Gauge "bellwether_config_info" Flag ["hash", "generation"]
            "The configuration that serves; always 1";
        DRAIN_STATE = Gauge "bellwether_drain_state" Flag ["state"]
            "Where the process is on its way out; 1 for the current state";
        SELF_HEALTH = Gauge "bellwether_self_health_score" Count []
            "How unwell this process is, 0 to 7; from 4 on it ejects nobody";
        RUNTIME_LAG = Histogram "bellwether_runtime_lag_seconds" Seconds ["worker"]
            "How late the timers of a worker fire";
        METRICS_SERIES_DROPPED = Counter "bellwether_metrics_series_dropped_total" Count ["metric"]
            "Times an endpoint above max_endpoints was folded into endpoint=\"other\"";
        ACCESS_LOG_DROPPED = Counter "bellwether_access_log_dropped_total" Count []
            "Access log lines lost because the writer did not keep up or could not write";
        INVARIANT_VIOLATIONS = Counter "bellwether_invariant_violations_total" Count ["site"]
            "Things that cannot happen and did: please report";
    }
    "Operating system" {
        PROCESS_CPU = Counter "process_cpu_seconds_total" Seconds []
            "User and system CPU time";
        PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" Bytes []
            "Resident memory";
        PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" Bytes []
            "Virtual memory";
        PROCESS_OPEN_FDS = Gauge "process_open_fds" Count []
            "Open file descriptors";
        PROCESS_MAX_FDS = Gauge "process_max_fds" Count []
            "Most file descriptors that may be open";
        PROCESS_THREADS = Gauge "process_threads" Count []
            "Threads";
        PROCESS_START = Gauge "process_start_time_seconds" Seconds []
            "When the process started, since 1970";
    }
}

/// Every metric, in the order of a scrape.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    SECTIONS.iter().flat_map(|(_, metrics)| metrics.iter().copied())
}

/// Whether a constant label may have this name; the error says why not.
///
/// # Errors
/// The name is not a Prometheus label name, is reserved, or is the label of one of our metrics.
pub fn check_label_name(name: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || !name.bytes().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a label name consists of letters, digits and `_`, and does not begin with a digit");
    }
    if name.starts_with("__") || name == "le" || name == "quantile" {
        return Err("this name is reserved by Prometheus");
    }
    if all().any(|metric| metric.labels.contains(&name)) {
        return Err("this name is a label of our own metrics");
    }
    Ok(())
}

/// `docs/metrics.md`.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\nGenerated from `src/telemetry/names.rs`; `BLESS=1 cargo test metrics_document` writes it anew.\n\n\
         Every word of a closed label is exported as 0 from the start; status codes appear when they are first seen.\n\
         A code that is no status of RFC 9110 is shown as `other`, no answer at all as `none`. A series ends ten minutes\n\
         after the configuration (or discovery) forgot its name.\n",
    );
    for (section, metrics) in SECTIONS {
        // Writing into a String cannot fail, here and below.
        _ = write!(
            text,
            "\n## {section}\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
        );
        for metric in *metrics {
            let labels = if metric.labels.is_empty() {
                "-".to_owned()
            } else {
                metric.labels.join(", ")
            };
            let (kind, unit) = (metric.kind.word(), metric.unit.word());
            _ = writeln!(
                text,
                "| {} | {kind} | {unit} | {labels} | {} |",
                metric.name, metric.help
            );
        }
    }
    text.push_str("\n## Words\n\n| metric | label | words |\n|---|---|---|\n");
    for (metric, label, words) in words() {
        let metric = metric.map_or("(all)", |metric| metric.name);
        _ = writeln!(text, "| {metric} | {label} | {} |", words.join(", "));
    }
    text
}

/// The closed lists: metric (`None` for all with this label), label, words.
fn words() -> Vec<(Option<&'static Metric>, &'static str, Vec<&'static str>)> {
    fn all<L: Label>() -> Vec<&'static str> {
        L::ALL.iter().map(|label| label.word()).collect()
    }
    vec![
        (None, "outcome", all::<OutcomeLabel>()),
        (Some(REQUEST_REJECTIONS), "reason", all::<Reason>()),
        (Some(FALLBACKS), "reason", all::<FallbackCause>()),
        (Some(OVERLOAD_LEVEL), "level", all::<Level>()),
        (Some(SHED), "scope", all::<ShedScope>()),
        (Some(SHED), "priority", all::<Priority>()),
        (Some(SHED), "reason", all::<ShedReason>()),
        (Some(RETRIES), "trigger", all::<RetryTrigger>()),
        (Some(RETRIES), "result", all::<RetryResult>()),
        (Some(RETRIES_VETOED), "reason", all::<RetryVeto>()),
        (Some(HEDGES), "result", all::<HedgeResult>()),
        (Some(DEADLINE_EXPIRED), "stage", all::<DeadlineStage>()),
        (Some(UPSTREAM_FAILURES), "reason", all::<UpstreamFailure>()),
        (Some(UPSTREAM_BYTES), "direction", all::<Direction>()),
        (
            Some(DOWNSTREAM_CONNECTIONS_REJECTED),
            "reason",
            all::<ConnectionRejection>(),
        ),
        (Some(UPSTREAM_CONNECTIONS), "state", all::<ConnectionState>()),
        (Some(UPSTREAM_CONNECTS), "result", all::<ConnectResult>()),
        (Some(UPSTREAM_CONNECTION_CLOSED), "reason", all::<CloseReason>()),
        (Some(TLS_HANDSHAKES), "side", all::<Side>()),
        (Some(TLS_HANDSHAKES), "result", all::<TlsResult>()),
        (Some(ENDPOINTS), "state", all::<EndpointLabel>()),
        (Some(HEALTH_CHECKS), "result", all::<CheckResult>()),
        (Some(HEARTBEATS), "result", all::<HeartbeatResult>()),
        (Some(HEALTH_TRANSITIONS), "source", all::<HealthSource>()),
        (Some(HEALTH_TRANSITIONS), "to", all::<HealthTo>()),
        (Some(DISCOVERY_UPDATES), "result", all::<DiscoveryResult>()),
        (Some(CONFIG_RELOADS), "result", all::<ReloadResult>()),
        (Some(CONFIG_RELOADS), "trigger", all::<ReloadTrigger>()),
        (Some(DRAIN_STATE), "state", all::<DrainState>()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in all() {
            let name = metric.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert!(
                name.starts_with("bellwether_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                metric.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}: counters end in _total"
            );
            let base = name.strip_suffix("_total").unwrap_or(name);
            assert_eq!(
                metric.unit == Unit::Seconds,
                base.ends_with("_seconds"),
                "{name}: unit"
            );
            assert_eq!(
                metric.unit == Unit::Bytes,
                base.ends_with("_bytes"),
                "{name}: unit"
            );
            for label in metric.labels {
                assert!(
                    !name.contains(&format!("_{label}_")) || *label == "endpoint" || *label == "cluster",
                    "{name}"
                );
            }
            assert!(
                !metric.help.is_empty() && !metric.help.ends_with('.'),
                "{name}: help"
            );
        }
    }

    #[test]
    fn metrics_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == document(),
            "docs/metrics.md differs: run BLESS=1 cargo test metrics_document"
        );
    }

    #[test]
    fn constant_labels_may_not_hide_ours() {
        assert!(check_label_name("env").is_ok());
        for name in ["", "1a", "a-b", "__x", "le", "route", "cluster", "é"] {
            assert!(check_label_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_alerts_we_ship_speak_of_metrics_that_exist() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/deploy/prometheus/bellwether-alerts.yaml"
        );
        let alerts = std::fs::read_to_string(path).unwrap();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let used: Vec<&str> = alerts
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split(|c| !is_word(c)))
            .filter(|word| word.starts_with("bellwether_") || word.starts_with("process_"))
            .collect();
        assert!(used.len() > 10);
        for name in used {
            let known = |m: &&Metric| name == m.name || name.strip_suffix("_bucket") == Some(m.name);
            assert!(all().any(|m| known(&m)), "{name} is no metric");
        }
    }
}
