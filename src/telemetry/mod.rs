//! Metrics, access log, events, diagnostics.
