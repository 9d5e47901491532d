//! One answer to `GET /metrics`.
//!
//! Counters and gauges go through the `metrics` facade into an exporter of `metrics-exporter-prometheus`. Histograms do
//! not: the exporter keeps every sample until somebody drains it, while ours are already counted in buckets, so they are
//! written here as text. The families of both are then put into the order of the register, because people read this
//! with `curl` too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use bellwether_core::Reason;
use bellwether_core::breaker::{CHANGES, State};
use bellwether_core::shed::{Level, Priority};
use metrics::{Key, KeyName, Label as KeyLabel, Level as LogLevel, Metadata, Recorder as _, SharedString};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use super::cells::{Bounds, Code, CodeSums, HistogramSum};
use super::handles::{
    BreakerMetrics, ClusterMetrics, EndpointMetrics, ListenerMetrics, ProcessMetrics, RateMetrics,
    RouteMetrics,
};
use super::labels::{
    BreakerCall, CheckResult, CloseReason, ConnectResult, ConnectionRejection, ConnectionState,
    DeadlineStage, Detector, Direction, DiscoveryResult, DrainState, EjectionResult, EndpointLabel,
    FallbackCause, HealthSource, HealthTo, HeartbeatResult, HedgeResult, Label, OutcomeLabel, ReloadResult,
    ReloadTrigger, RetryResult, RetryTrigger, RetryVeto, ShedReason, ShedScope, Side, TlsResult,
    UpstreamFailure,
};
use super::names::{self, Kind, Metric, Unit};
use super::process::ProcessUsage;
use super::recorder::BuildInfo;

const METADATA: Metadata<'static> = Metadata::new("bellwether", LogLevel::INFO, None);

/// A scrape being collected.
pub(crate) struct Scrape {
    exporter: PrometheusRecorder,
    constant: Vec<(String, String)>,
    /// Samples the exporter cannot write, by metric.
    own: BTreeMap<&'static str, String>,
}

/// A label value: a word of ours, or a name out of the configuration.
type Value<'a> = &'a str;

impl Scrape {
    pub(crate) fn new(constant: Vec<(String, String)>) -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, value) in &constant {
            builder = builder.add_global_label(name, twice_escaped(value));
        }
        let exporter = builder.build_recorder();
        for metric in names::all() {
            let (name, help) = (
                KeyName::from_const_str(metric.name),
                SharedString::const_str(metric.help),
            );
            let unit = match metric.unit {
                Unit::Count | Unit::Flag | Unit::Ratio => metrics::Unit::Count,
                Unit::Seconds => metrics::Unit::Seconds,
                Unit::Bytes => metrics::Unit::Bytes,
            };
            match metric.kind {
                Kind::Counter => exporter.describe_counter(name, Some(unit), help),
                Kind::Gauge => exporter.describe_gauge(name, Some(unit), help),
                Kind::Histogram => exporter.describe_histogram(name, Some(unit), help),
            }
        }
        Self {
            exporter,
            constant,
            own: BTreeMap::new(),
        }
    }

    fn key(metric: &'static Metric, values: &[Value<'_>]) -> Key {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
        let labels = metric.labels.iter().zip(values);
        let labels = labels.map(|(name, value)| KeyLabel::new(*name, twice_escaped(value)));
        Key::from_parts(metric.name, labels.collect::<Vec<_>>())
    }

    fn counter(&self, metric: &'static Metric, values: &[Value<'_>], value: u64) {
        self.exporter
            .register_counter(&Self::key(metric, values), &METADATA)
            .absolute(value);
    }

    fn gauge(&self, metric: &'static Metric, values: &[Value<'_>], value: f64) {
        self.exporter
            .register_gauge(&Self::key(metric, values), &METADATA)
            .set(value);
    }

    /// A counter that is no whole number, which the exporter cannot hold.
    fn fraction(&mut self, metric: &'static Metric, value: f64) {
        let labels = self.labels(metric, &[]);
        let labels = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        let text = self.own.entry(metric.name).or_default();
        // Writing into a String cannot fail, here and below.
        _ = writeln!(text, "{}{labels} {value}", metric.name);
    }

    /// One counter per word.
    fn words<L: Label>(&self, metric: &'static Metric, name: &str, sum: impl Fn(L) -> u64) {
        for label in L::ALL {
            self.counter(metric, &[name, label.word()], sum(*label));
        }
    }

    /// `unit` is what one second (or one piece) is in the cells.
    fn histogram(
        &mut self,
        metric: &'static Metric,
        values: &[Value<'_>],
        bounds: &Bounds,
        sum: &HistogramSum,
    ) {
        let unit = match metric.unit {
            Unit::Seconds => 1e9,
            Unit::Count | Unit::Bytes | Unit::Flag | Unit::Ratio => 1.0,
        };
        let labels = self.labels(metric, values);
        let comma = if labels.is_empty() { "" } else { "," };
        let text = self.own.entry(metric.name).or_default();
        let name = metric.name;
        let mut below: u64 = 0;
        for (index, bound) in bounds.upper().iter().enumerate() {
            below = below.wrapping_add(sum.buckets.get(index).copied().unwrap_or(0));
            _ = writeln!(
                text,
                "{name}_bucket{{{labels}{comma}le=\"{}\"}} {below}",
                *bound as f64 / unit
            );
        }
        let count = below.wrapping_add(sum.buckets.get(bounds.upper().len()).copied().unwrap_or(0));
        _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let labels = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        _ = writeln!(text, "{name}_sum{labels} {}", sum.sum as f64 / unit);
        _ = writeln!(text, "{name}_count{labels} {count}");
    }

    /// Constant labels and the ones of this series, without braces.
    fn labels(&self, metric: &'static Metric, values: &[Value<'_>]) -> String {
        let constant = self
            .constant
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let own = metric.labels.iter().copied().zip(values.iter().copied());
        let mut text = String::new();
        for (name, value) in constant.chain(own) {
            let comma = if text.is_empty() { "" } else { "," };
            _ = write!(text, "{comma}{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        text
    }

    pub(crate) fn listener(&self, listener: &ListenerMetrics) {
        let (name, cells) = (&*listener.name, &listener.cells);
        self.gauge(names::DOWNSTREAM_CONNECTIONS, &[name], cells.level(|b| &b.open));
        self.counter(
            names::DOWNSTREAM_CONNECTIONS_TOTAL,
            &[name],
            cells.sum(|b| &b.accepted),
        );
        self.words::<ConnectionRejection>(names::DOWNSTREAM_CONNECTIONS_REJECTED, name, |reason| {
            cells.sum(|b| &b.rejected[reason.index()])
        });
    }

    pub(crate) fn route(&mut self, route: &RouteMetrics) {
        let (name, cells, layout) = (&*route.name, &route.cells, route.cells.layout());
        let mut codes = CodeSums::default();
        cells
            .blocks()
            .for_each(|block| block.requests.collect(&mut codes));
        // The usual answer is there before the first one, so that its rate has a beginning.
        codes
            .0
            .entry((Code::Status(200), OutcomeLabel::Success.index()))
            .or_default();
        for ((code, outcome), count) in &codes.0 {
            self.counter(
                names::REQUESTS,
                &[name, &code.word(), OutcomeLabel::ALL[*outcome].word()],
                *count,
            );
        }
        self.gauge(names::REQUESTS_IN_FLIGHT, &[name], cells.level(|b| &b.in_flight));
        self.histogram(
            names::REQUEST_DURATION,
            &[name],
            &layout.latency,
            &cells.histogram(|b| &b.duration),
        );
        self.histogram(
            names::REQUEST_TTFB,
            &[name],
            &layout.latency,
            &cells.histogram(|b| &b.ttfb),
        );
        self.histogram(
            names::PROXY_OVERHEAD,
            &[name],
            &layout.overhead,
            &cells.histogram(|b| &b.overhead),
        );
        self.histogram(
            names::REQUEST_ATTEMPTS,
            &[name],
            &layout.attempts,
            &cells.histogram(|b| &b.attempts),
        );
        self.words::<Reason>(names::REQUEST_REJECTIONS, name, |reason| {
            cells.sum(|b| &b.rejections[reason.index()])
        });
        for trigger in RetryTrigger::ALL {
            for result in RetryResult::ALL {
                let count = cells.sum(|b| &b.retries[trigger.index()][result.index()]);
                self.counter(names::RETRIES, &[name, trigger.word(), result.word()], count);
            }
        }
        self.words::<RetryVeto>(names::RETRIES_VETOED, name, |veto| {
            cells.sum(|b| &b.vetoes[veto.index()])
        });
        self.words::<HedgeResult>(names::HEDGES, name, |result| {
            cells.sum(|b| &b.hedges[result.index()])
        });
        self.words::<FallbackCause>(names::FALLBACKS, name, |cause| {
            cells.sum(|b| &b.fallbacks[cause.index()])
        });
        self.words::<DeadlineStage>(names::DEADLINE_EXPIRED, name, |stage| {
            cells.sum(|b| &b.deadlines[stage.index()])
        });
    }

    pub(crate) fn breaker(&self, breaker: &BreakerMetrics) {
        let (cells, seen) = (&breaker.cells, *breaker.seen.lock());
        let name = [breaker.scope, &breaker.route, &breaker.cluster];
        let [scope, route, cluster] = name;
        // Those of endpoints share their counters; how they stand is `bellwether_endpoint_breakers`.
        let is_one = !scope.ends_with("endpoint");
        for state in State::ALL.into_iter().filter(|_| is_one) {
            let is = flag(state == seen.state);
            self.gauge(names::BREAKER_STATE, &[scope, route, cluster, state.name()], is);
        }
        for (index, (to, cause)) in CHANGES.iter().enumerate() {
            let count = cells.sum(|b| &b.changes[index]);
            let labels = [scope, route, cluster, to.name(), cause.name()];
            self.counter(names::BREAKER_TRANSITIONS, &labels, count);
        }
        for call in BreakerCall::ALL {
            let count = cells.sum(|b| &b.calls[call.index()]);
            self.counter(names::BREAKER_CALLS, &[scope, route, cluster, call.word()], count);
        }
        if !is_one {
            return;
        }
        self.gauge(names::BREAKER_FAILURE_RATIO, &name, seen.counts.failure_rate());
        self.gauge(names::BREAKER_SLOW_RATIO, &name, seen.counts.slow_rate());
        self.gauge(names::BREAKER_REQUESTS, &name, f64::from(seen.counts.total));
        self.gauge(names::BREAKER_OPEN_UNTIL, &name, seen.open_until as f64);
    }

    pub(crate) fn rate(&self, rate: &RateMetrics) {
        let (cells, route, policy) = (&rate.cells, &*rate.route, &*rate.policy);
        for (enforced, count) in [
            ("true", cells.sum(|b| &b.refused)),
            ("false", cells.sum(|b| &b.observed)),
        ] {
            self.counter(names::RATE_LIMITED, &[route, policy, enforced], count);
        }
        let evicted = cells.sum(|b| &b.evicted);
        self.counter(names::RATE_LIMIT_EVICTIONS, &[route, policy], evicted);
    }

    pub(crate) fn cluster(&mut self, cluster: &ClusterMetrics) {
        let (name, cells, layout) = (&*cluster.name, &cluster.cells, cluster.cells.layout());
        let mut codes = CodeSums::default();
        cells
            .blocks()
            .for_each(|block| block.attempts.collect(&mut codes));
        codes
            .0
            .entry((Code::Status(200), OutcomeLabel::Success.index()))
            .or_default();
        for ((code, outcome), count) in &codes.0 {
            let outcome = OutcomeLabel::ALL[*outcome].word();
            self.counter(names::UPSTREAM_ATTEMPTS, &[name, outcome, &code.word()], *count);
        }
        self.gauge(names::UPSTREAM_IN_FLIGHT, &[name], cells.level(|b| &b.in_flight));
        let duration = cells.histogram(|b| &b.duration);
        self.histogram(
            names::UPSTREAM_ATTEMPT_DURATION,
            &[name],
            &layout.latency,
            &duration,
        );
        self.gauge(names::UPSTREAM_QUEUE_LENGTH, &[name], cells.level(|b| &b.queued));
        let wait = cells.histogram(|b| &b.queue_wait);
        self.histogram(names::UPSTREAM_QUEUE_WAIT, &[name], &layout.latency, &wait);
        let concurrency = *cluster.concurrency.lock();
        if let Some(now) = concurrency {
            let labels = ["cluster", name];
            self.gauge(names::CONCURRENCY_LIMIT, &labels, f64::from(now.limit));
            self.gauge(names::CONCURRENCY_RTT_SHORT, &labels, now.short.as_secs_f64());
            self.gauge(names::CONCURRENCY_RTT_LONG, &labels, now.long.as_secs_f64());
            self.gauge(names::CONCURRENCY_GRADIENT, &labels, f64::from(now.gradient));
            let would = cells.sum(|b| &b.would_reject);
            self.counter(names::CONCURRENCY_WOULD_REJECT, &labels, would);
        }
        let connect = cells.histogram(|b| &b.connect_duration);
        self.histogram(
            names::UPSTREAM_CONNECT_DURATION,
            &[name],
            &layout.latency,
            &connect,
        );
        self.words::<UpstreamFailure>(names::UPSTREAM_FAILURES, name, |reason| {
            cells.sum(|b| &b.failures[reason.index()])
        });
        self.words::<Direction>(names::UPSTREAM_BYTES, name, |direction| {
            cells.sum(|b| &b.bytes[direction.index()])
        });
        for state in ConnectionState::ALL {
            let level = cells.level(|b| &b.connections[state.index()]);
            self.gauge(names::UPSTREAM_CONNECTIONS, &[name, state.word()], level);
        }
        self.words::<ConnectResult>(names::UPSTREAM_CONNECTS, name, |result| {
            cells.sum(|b| &b.connects[result.index()])
        });
        self.words::<CloseReason>(names::UPSTREAM_CONNECTION_CLOSED, name, |reason| {
            cells.sum(|b| &b.closed[reason.index()])
        });
        for state in EndpointLabel::ALL {
            let count = cluster.endpoints[state.index()].load(Ordering::Relaxed);
            self.gauge(names::ENDPOINTS, &[name, state.word()], count as f64);
        }
        let shown = cluster.breakers.iter().map(|count| count.load(Ordering::Relaxed));
        if shown.clone().sum::<u64>() > 0 {
            for (state, count) in State::ALL.into_iter().zip(shown) {
                self.gauge(names::ENDPOINT_BREAKERS, &[name, state.name()], count as f64);
            }
        }
        for detector in Detector::ALL {
            for result in EjectionResult::ALL {
                let count = cells.sum(|b| &b.ejections[detector.index()][result.index()]);
                let enforced = matches!(result, EjectionResult::Enforced);
                // What is rare has a series once it has happened.
                if enforced || count > 0 {
                    let labels = [
                        name,
                        detector.word(),
                        if enforced { "true" } else { "false" },
                        result.word(),
                    ];
                    self.counter(names::EJECTIONS, &labels, count);
                }
            }
        }
        let out = cluster.endpoints[EndpointLabel::Ejected.index()].load(Ordering::Relaxed);
        self.gauge(names::EJECTIONS_ACTIVE, &[name], out as f64);
        if cluster.checked.load(Ordering::Relaxed) {
            self.words::<CheckResult>(names::HEALTH_CHECKS, name, |result| {
                cells.sum(|b| &b.checks[result.index()])
            });
        }
        for source in HealthSource::ALL {
            for to in HealthTo::ALL {
                let count = cells.sum(|b| &b.transitions[source.index()][to.index()]);
                let usual = matches!(to, HealthTo::Up | HealthTo::Down);
                // What is rare has a series once it has happened.
                if usual || count > 0 {
                    let labels = [name, source.word(), to.word()];
                    self.counter(names::HEALTH_TRANSITIONS, &labels, count);
                }
            }
        }
        for result in HeartbeatResult::ALL {
            let count = cells.sum(|b| &b.heartbeats[result.index()]);
            // Most clusters are not sent any.
            if count > 0 {
                self.counter(names::HEARTBEATS, &[name, result.word()], count);
            }
        }
        let panic = cluster.panic.load(Ordering::Relaxed);
        self.gauge(names::UPSTREAM_PANIC, &[name], flag(panic));
        if cluster.discovered.load(Ordering::Relaxed) {
            self.words::<DiscoveryResult>(names::DISCOVERY_UPDATES, name, |result| {
                cells.sum(|b| &b.discovery[result.index()])
            });
            let last = cluster.last_discovery.load(Ordering::Relaxed);
            self.gauge(names::DISCOVERY_LAST_SUCCESS, &[name], last as f64);
            self.gauge(
                names::DISCOVERY_STALE,
                &[name],
                flag(cluster.stale.load(Ordering::Relaxed)),
            );
        }
    }

    pub(crate) fn endpoint(&self, endpoint: &EndpointMetrics) {
        let (cluster, name, cells) = (&*endpoint.cluster, &*endpoint.endpoint, &endpoint.cells);
        for outcome in OutcomeLabel::ALL {
            let count = cells.sum(|b| &b.attempts[outcome.index()]);
            self.counter(names::ENDPOINT_ATTEMPTS, &[cluster, name, outcome.word()], count);
        }
        self.gauge(
            names::ENDPOINT_IN_FLIGHT,
            &[cluster, name],
            cells.level(|b| &b.in_flight),
        );
        // Weight, latency and state of several endpoints cannot be one number.
        if !endpoint.folded {
            self.gauge(
                names::ENDPOINT_UP,
                &[cluster, name],
                flag(endpoint.up.load(Ordering::Relaxed)),
            );
            let weight = f64::from_bits(endpoint.weight.load(Ordering::Relaxed));
            self.gauge(names::ENDPOINT_WEIGHT, &[cluster, name], weight);
            let latency = f64::from_bits(endpoint.latency.load(Ordering::Relaxed));
            self.gauge(names::ENDPOINT_LATENCY, &[cluster, name], latency);
            let phi = f64::from_bits(endpoint.phi.load(Ordering::Relaxed));
            if !phi.is_nan() {
                self.gauge(names::ENDPOINT_PHI, &[cluster, name], phi);
            }
        }
    }

    /// How often an endpoint found no place of its own, for each metric it would have had.
    pub(crate) fn folded(&self, folded: u64) {
        for metric in [
            names::ENDPOINT_UP,
            names::ENDPOINT_ATTEMPTS,
            names::ENDPOINT_IN_FLIGHT,
            names::ENDPOINT_WEIGHT,
            names::ENDPOINT_LATENCY,
            names::ENDPOINT_PHI,
        ] {
            self.counter(names::METRICS_SERIES_DROPPED, &[metric.name], folded);
        }
    }

    pub(crate) fn process(&mut self, process: &ProcessMetrics, build: BuildInfo) {
        let (cells, layout) = (&process.cells, process.cells.layout());
        for side in Side::ALL {
            for result in TlsResult::ALL {
                let count = cells.sum(|b| &b.tls[side.index()][result.index()]);
                self.counter(names::TLS_HANDSHAKES, &[side.word(), result.word()], count);
            }
        }
        for result in ReloadResult::ALL {
            for trigger in ReloadTrigger::ALL {
                let count = cells.sum(|b| &b.reloads[result.index()][trigger.index()]);
                self.counter(names::CONFIG_RELOADS, &[result.word(), trigger.word()], count);
            }
        }
        let score = process.self_health.load(Ordering::Relaxed);
        self.gauge(names::SELF_HEALTH, &[], score as f64);
        let level = process.overload.load(Ordering::Relaxed);
        for known in Level::ALL {
            self.gauge(
                names::OVERLOAD_LEVEL,
                &[known.name()],
                flag(known as u64 == level),
            );
        }
        for scope in ShedScope::ALL {
            for priority in Priority::ALL {
                for reason in ShedReason::ALL {
                    let count = cells.sum(|b| &b.shed[scope.index()][priority.index()][reason.index()]);
                    // What is rare has a series once it has happened.
                    if count > 0 || priority == Priority::Normal {
                        let labels = [scope.word(), priority.word(), reason.word()];
                        self.counter(names::SHED, &labels, count);
                    }
                }
            }
        }
        for worker in 0..layout.workers {
            let mut sum = HistogramSum::default();
            if let Some(block) = cells.block(worker) {
                sum.add(&block.lag);
            }
            self.histogram(names::RUNTIME_LAG, &[&worker.to_string()], &layout.overhead, &sum);
        }
        self.counter(
            names::ACCESS_LOG_DROPPED,
            &[],
            cells.sum(|b| &b.access_log_dropped),
        );
        for result in [HeartbeatResult::Unknown, HeartbeatResult::Rejected] {
            let count = cells.sum(|b| &b.heartbeats[result.index()]);
            self.counter(names::HEARTBEATS, &["none", result.word()], count);
        }
        let state = process.drain.load(Ordering::Relaxed);
        for drain in DrainState::ALL {
            self.gauge(
                names::DRAIN_STATE,
                &[drain.word()],
                flag(drain.index() as u64 == state),
            );
        }
        self.gauge(
            names::BUILD_INFO,
            &[build.version, build.revision, build.rustc],
            1.0,
        );

        let seldom = process.seldom.lock();
        self.gauge(
            names::CONFIG_LAST_RELOAD_SUCCESSFUL,
            &[],
            flag(seldom.last_reload_successful),
        );
        let since = seldom.config.as_ref().map_or(0, |config| config.since);
        self.gauge(names::CONFIG_LAST_SUCCESS, &[], since as f64);
        if let Some(config) = &seldom.config {
            self.gauge(
                names::CONFIG_INFO,
                &[&config.hash, &config.generation.to_string()],
                1.0,
            );
        }
        for (name, not_after) in &seldom.certificates {
            self.gauge(names::CERTIFICATE_NOT_AFTER, &[name], *not_after as f64);
        }
        for (site, count) in &seldom.violations {
            self.counter(names::INVARIANT_VIOLATIONS, &[site], *count);
        }
    }

    pub(crate) fn usage(&mut self, usage: &ProcessUsage) {
        self.fraction(names::PROCESS_CPU, usage.cpu);
        self.gauge(names::PROCESS_RESIDENT, &[], usage.resident as f64);
        self.gauge(names::PROCESS_VIRTUAL, &[], usage.virtual_ as f64);
        self.gauge(names::PROCESS_THREADS, &[], usage.threads as f64);
        self.gauge(names::PROCESS_START, &[], usage.started);
        if let Some(fds) = usage.open_fds {
            self.gauge(names::PROCESS_OPEN_FDS, &[], fds as f64);
        }
        if let Some(fds) = usage.max_fds {
            self.gauge(names::PROCESS_MAX_FDS, &[], fds as f64);
        }
    }

    /// The text, families in the order of the register, samples of the exporter sorted.
    pub(crate) fn finish(self) -> String {
        let exported = self.exporter.handle().render();
        // A family ends with an empty line; a label value cannot contain one, line feeds are escaped.
        let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for family in exported.split("\n\n") {
            let mut lines: Vec<&str> = family.lines().collect();
            let header = lines.iter().take_while(|line| line.starts_with('#')).count();
            lines[header..].sort_unstable();
            let name = lines.first().and_then(|line| line.split(' ').nth(2));
            if let Some(name) = name {
                families.insert(name, lines);
            }
        }
        let own = self.own.values().map(|text| text.len() + 200).sum::<usize>();
        let mut text = String::with_capacity(exported.len() + own);
        for metric in names::all() {
            if let Some(lines) = families.get(metric.name) {
                for line in lines {
                    text.push_str(line);
                    text.push('\n');
                }
            } else if let Some(samples) = self.own.get(metric.name) {
                let help = metric.help.replace('\\', "\\\\");
                _ = writeln!(
                    text,
                    "# HELP {0} {help}\n# TYPE {0} {1}",
                    metric.name,
                    metric.kind.word()
                );
                text.push_str(samples);
            }
        }
        text
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// The exporter takes `\` before `\` or `"` for an escape somebody already made and swallows it. Doubling every `\`
/// makes that true.
fn twice_escaped(value: &str) -> String {
    value.replace('\\', "\\\\")
}

impl Code {
    fn word(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Other => "other".to_owned(),
            Self::Status(code) => code.to_string(),
        }
    }
}
