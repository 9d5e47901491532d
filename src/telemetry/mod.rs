//! What the proxy says about itself: metrics, access log, events, diagnostics.
//!
//! One [`Recorder`] per proxy instance hands out handles ([`RouteMetrics`] and its siblings) and renders them for
//! Prometheus. The access log is one line per request, written by a thread of its own. Events are state changes in the
//! order they happened. Nothing here may make a request wait, and nothing here grows without a bound.

mod access_line;
mod access_log;
mod cells;
mod cgroup;
pub mod diagnostics;
mod events;
#[cfg(test)]
mod exposition;
mod handles;
mod labels;
pub mod names;
mod process;
mod recorder;
mod scrape;
mod vitals;

pub use access_line::AccessRecord;
pub use access_log::{
    AccessFilter, AccessFormat, AccessLog, AccessOutput, AccessSettings, AccessWriter, Sink, is_error,
};
pub use cells::{Bounds, WorkerId};
pub use cgroup::Cgroup;
pub use diagnostics::{LogControl, LogFormat, LogLevel};
pub use events::{Change, EVENTS_KEPT, Event, EventKind, Events};
pub use handles::{
    AttemptEnd, BreakerMetrics, BreakerSeen, ClusterMetrics, ConfigInForce, EndpointMetrics, ListenerMetrics,
    ProcessMetrics, RateMetrics, RequestEnd, RouteMetrics, Shown,
};
pub use labels::*;
pub use process::{Descriptors, ProcessUsage};
pub use recorder::{BuildInfo, Recorder, RecorderSettings};
pub use vitals::{AWAKE, Reading, SAMPLE, Vitals};
