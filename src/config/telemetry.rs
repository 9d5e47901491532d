//! Metrics, logs and traces, as written.

use std::time::Duration;

use super::table::{List, Many, Map, Sp, object, words};
use super::units::{Address, HeaderName, Percent, Url, UrlPath};

words! {
    /// How lines are written.
    LogFormat: "format", "formats" { Auto = "auto", Text = "text", Json = "json" }
}
words! {
    /// Which requests are logged.
    LogOnly: "choice", "choices" { All = "all", Errors = "errors", Slow = "slow" }
}
words! {
    /// How much is logged.
    LogLevel: "level", "levels" { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
}
words! {
    /// Headers that carry trace context.
    Propagation: "propagation", "propagations" { W3c = "w3c", B3 = "b3" }
}

object! {
    /// What is told about the work.
    Telemetry = "telemetry" {
        /// Prometheus metrics
        metrics: Sp<Option<Metrics>> = "{}" as "on, on the admin address";
        /// one line per request
        access_log: Sp<Option<AccessLog>> = "{}" as "text on a terminal, else json, to stdout";
        /// the program's own log
        log: Sp<Log> = "{}" as "info, stderr";
        /// spans for a collector
        tracing: Sp<Option<Tracing>> = "off";
    }
}

object! {
    /// Prometheus metrics.
    Metrics = "telemetry.metrics" {
        /// additional read-only listener: `/metrics`, `/livez`, `/readyz`
        address: Option<Sp<Address>> = none;
        /// path of the scrape
        path: Sp<UrlPath> = "/metrics";
        /// constant labels
        labels: Option<Sp<Map<String>>> = none;
        /// bounds of latency histograms
        buckets: Option<Sp<List<Duration>>> = none as "1ms … 10s";
        /// per cluster, rest folded into `other`
        max_endpoints: Sp<u32> = "100" in (0, 100_000);
    }
}

object! {
    /// One line per request.
    AccessLog = "telemetry.access_log" {
        /// auto: text on a terminal, else json
        format: Sp<LogFormat> = "auto";
        /// stdout, stderr, or a file path (reopened on SIGUSR1)
        output: Sp<String> = "stdout";
        /// errors = our own and 5xx; slow = above `slower_than`
        only: Sp<LogOnly> = "all";
        /// what is slow
        slower_than: Sp<Duration> = "1s" in (1, u32::MAX);
        /// errors are never sampled away
        sample: Sp<Percent> = "100%";
        /// header names
        redact: Sp<Many<HeaderName>> = "[authorization, cookie, set-cookie]" as "authorization, cookie, set-cookie";
        /// extra fields, templates allowed
        fields: Option<Sp<Map<String>>> = none;
    }
}

object! {
    /// The program's own log.
    Log = "telemetry.log" {
        /// how much
        level: Sp<LogLevel> = "info";
        /// auto: text on a terminal, else json
        format: Sp<LogFormat> = "auto";
    }
}

object! {
    /// Spans for a collector.
    Tracing = "telemetry.tracing" {
        /// `http://otel:4318` or `grpc://otel:4317`
        otlp: Sp<Url> = req;
        /// parent decision honoured
        sample: Sp<Percent> = "1%";
        /// headers that carry the context
        propagation: Sp<Many<Propagation>> = "[w3c]" as "w3c";
        /// name of this service
        service_name: Sp<String> = "bellwether";
    }
}
