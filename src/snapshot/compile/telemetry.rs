//! Metrics and logs.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Context, LogSettings, MetricsSettings, address, policy};
use crate::config::diagnostic::Span;
use crate::config::telemetry as written;
use crate::message::template::Template;
use crate::telemetry::{AccessFilter, AccessFormat, AccessOutput, AccessSettings, LogFormat, LogLevel};

pub(super) struct Made {
    pub(super) access_log: Option<AccessSettings>,
    pub(super) access_fields: Arc<[(Arc<str>, Template)]>,
    pub(super) access_output: Option<AccessOutput>,
    pub(super) metrics: Option<MetricsSettings>,
    pub(super) log: LogSettings,
}

pub(super) fn all(cx: &mut Context<'_>) -> Made {
    let document = cx.document;
    let telemetry = &document.config.telemetry;
    let access = telemetry.access_log.value.as_ref().map(|log| access_log(log, cx));
    let (access_log, access_output) = access.unzip();
    let access_fields = telemetry
        .access_log
        .value
        .as_ref()
        .map(|log| access_fields(log, cx));
    Made {
        access_log,
        access_fields: access_fields.unwrap_or_default(),
        access_output,
        metrics: telemetry
            .metrics
            .value
            .as_ref()
            .map(|metrics| self::metrics(metrics, cx)),
        log: log(&telemetry.log),
    }
}

/// How the program's own log is written.
pub(super) fn log(written: &written::Log) -> LogSettings {
    LogSettings {
        level: match written.level.value {
            written::LogLevel::Error => LogLevel::Error,
            written::LogLevel::Warn => LogLevel::Warn,
            written::LogLevel::Info => LogLevel::Info,
            written::LogLevel::Debug => LogLevel::Debug,
            written::LogLevel::Trace => LogLevel::Trace,
        },
        format: match written.format.value {
            written::LogFormat::Auto => LogFormat::Auto,
            written::LogFormat::Text => LogFormat::Text,
            written::LogFormat::Json => LogFormat::Json,
        },
    }
}

fn access_log(written: &written::AccessLog, cx: &Context<'_>) -> (AccessSettings, AccessOutput) {
    let output = match written.output.value.as_str() {
        "stdout" => AccessOutput::Stdout,
        "stderr" => AccessOutput::Stderr,
        path => AccessOutput::File(below(cx, written.output.span, path)),
    };
    let is_terminal = match &output {
        AccessOutput::Stdout => std::io::stdout().is_terminal(),
        AccessOutput::Stderr => std::io::stderr().is_terminal(),
        AccessOutput::File(_) => false,
    };
    let settings = AccessSettings {
        format: match written.format.value {
            written::LogFormat::Text => AccessFormat::Text,
            written::LogFormat::Auto if is_terminal => AccessFormat::Text,
            written::LogFormat::Json | written::LogFormat::Auto => AccessFormat::Json,
        },
        only: match written.only.value {
            written::LogOnly::All => AccessFilter::All,
            written::LogOnly::Errors => AccessFilter::Errors,
            written::LogOnly::Slow => AccessFilter::Slow(written.slower_than.value),
        },
        sample: written.sample.fraction(),
    };
    (settings, output)
}

fn access_fields(written: &written::AccessLog, cx: &mut Context<'_>) -> Arc<[(Arc<str>, Template)]> {
    let mut fields = Vec::new();
    for (name, value) in policy::pairs(written.fields.as_ref()) {
        match Template::compile(&value.value) {
            Ok(template) => fields.push((Arc::from(name.value.as_str()), template)),
            Err(error) => cx.error(
                "E0305",
                format!("`{{{}}}` is not a template", error.name),
                value.span,
                "",
            ),
        }
    }
    fields.into()
}

/// Relative paths start at the directory of the file that names them.
fn below(cx: &Context<'_>, at: Span, path: &str) -> PathBuf {
    cx.out.sources.directory(at).join(path)
}

fn metrics(written: &written::Metrics, cx: &mut Context<'_>) -> MetricsSettings {
    let mut labels = Vec::new();
    for (name, value) in policy::pairs(written.labels.as_ref()) {
        match crate::telemetry::names::check_label_name(&name.value) {
            Ok(()) => labels.push((name.value.clone(), value.value.clone())),
            Err(why) => cx.error(
                "E0305",
                format!("`{}` cannot be a label", name.value),
                name.span,
                why,
            ),
        }
    }
    MetricsSettings {
        address: written.address.as_ref().map(|written| address(&written.value)),
        path: written.path.0.as_str().into(),
        labels,
        buckets: buckets(written),
        max_endpoints: written.max_endpoints.value as usize,
    }
}

/// The bounds of histograms, ascending.
pub(super) fn buckets(written: &written::Metrics) -> Option<Vec<Duration>> {
    let written = written.buckets.as_ref()?;
    let mut buckets: Vec<Duration> = written.iter().map(|bound| bound.value).collect();
    buckets.sort_unstable();
    buckets.dedup();
    Some(buckets)
}
