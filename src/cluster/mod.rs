//! Clusters: endpoints, connections to them, and where their addresses come from.

pub mod discovery;
pub mod probe;
