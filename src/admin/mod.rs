//! The operators' listener: probes, metrics and the JSON API.
