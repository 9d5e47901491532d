//! The configuration as written: YAML with positions, lowered into typed sections, all problems at once.
//!
//! Text becomes a small tree in which every key and value knows its place ([`yaml`]); one table per object of the
//! schema ([`table`]) lowers it into the structs of this module, pushing everything that is wrong into one collector
//! ([`diagnostic`]); [`effective`] lays defaults, policies and routes over each other; [`check`] compares the parts
//! with each other; [`supported`] refuses what this version knows but does not perform. The same tables give the JSON
//! Schema, the reference and the long form.
//!
//! `snapshot::compile` reads [`Document`] and pushes into the same [`diagnostic::Diagnostics`].
//!
//! Invariant: nothing here opens a socket; only files that the configuration names are read.

pub mod check;
pub mod cluster;
pub mod codes;
pub mod diagnostic;
pub mod effective;
pub mod interpolate;
pub mod leader;
pub mod listener;
pub mod policy;
pub mod process;
pub mod read;
pub mod reference;
pub mod render;
pub mod route;
pub mod schema;
pub mod show;
pub mod suggest;
pub mod supported;
pub mod table;
pub mod telemetry;
pub mod tls;
pub mod units;
pub mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Severity, Span};
pub use effective::Effective;
pub use read::{Reader, read, read_bytes};
pub use table::{Entry, List, Many, Map, Sp};

use cluster::Cluster;
use listener::Listener;
use policy::Policy;
use process::{Admin, Fleet, Runtime, Test};
use route::Route;
use table::{Table, object, words};
use telemetry::Telemetry;

/// A configuration without errors, and what else was said about it.
#[derive(Clone, Debug)]
pub struct Document {
    /// As written, defaults filled in.
    pub config: Config,
    /// What holds for each route and cluster after precedence.
    pub effective: Effective,
    /// Warnings and hints; also the files, for origins and further diagnostics.
    pub diagnostics: Diagnostics,
}

words! {
    /// Where the proxy stands; changes a few defaults.
    Profile: "profile", "profiles" { Edge = "edge", Sidecar = "sidecar" }
}

object! {
    /// The whole file.
    Config = "root" {
        /// format version; a newer number is refused with an upgrade hint
        version: Sp<u32> = "1";
        /// changes a few defaults (limits, drain, trust)
        profile: Sp<Profile> = "edge";
        /// more files, globs relative to this file
        include: Option<Sp<Many<String>>> = none;
        /// where we accept, by name
        listeners: Sp<Map<Listener>> = "{}" as "required";
        /// first match wins
        routes: Sp<List<Route>> = "[]" as "required unless every listener is `tcp`";
        /// groups of endpoints, by name
        clusters: Sp<Map<Cluster>> = "{}";
        /// named bundles, used by `policy:`
        policies: Sp<Map<Policy>> = "{}";
        /// settings for every route and cluster
        defaults: Sp<Defaults> = "{}";
        /// metrics, logs, traces
        telemetry: Sp<Telemetry> = "{}";
        /// API and dashboard
        admin: Sp<Option<Admin>> = "{}" as "on, loopback";
        /// threads, drain, reload
        runtime: Sp<Runtime> = "{}";
        /// state shared between proxies
        fleet: Sp<Option<Fleet>> = "off";
        /// run by `check` and before every reload
        tests: Sp<List<Test>> = "[]";
    }
}

object! {
    /// Settings for every route and cluster.
    Defaults = "defaults" {
        /// applies to every route
        route: Option<Sp<Policy>> = none;
        /// applies to every cluster (endpoints and discovery not allowed here)
        cluster: Option<Sp<Cluster>> = none;
    }
}

impl Config {
    /// The name of a route: as written, or `route-N` counted from 1.
    #[must_use]
    pub fn route_name(&self, index: usize) -> String {
        let written = self.routes.get(index).and_then(|route| route.name.as_ref());
        written.map_or_else(|| format!("route-{}", index + 1), |name| name.value.clone())
    }
}

/// Every table of the schema, each once, the root first, blocks after the tables that name them.
#[must_use]
pub fn tables() -> Vec<Table> {
    let mut tables = vec![Config::table()];
    let mut at = 0;
    while let Some(table) = tables.get(at) {
        let mut more: Vec<Table> = Vec::new();
        for row in &table.rows {
            if let Some(block) = suggest::object_in(&row.ty) {
                let block = block();
                if tables.iter().chain(&more).all(|known| known.name != block.name) {
                    more.push(block);
                }
            }
        }
        tables.extend(more);
        at += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_lines_are_enough() {
        let text = "listeners:\n  web: 127.0.0.1:8080\nroutes:\n  - cluster: app\nclusters:\n  app:\n    health_check: /healthz\n    endpoints: [127.0.0.1:9001, 127.0.0.1:9002]\n";
        let document = read_bytes("bellwether.yaml", text.as_bytes()).expect("valid");
        let policy = document.effective.policies.first().expect("one route");
        assert_eq!(policy.timeout.value, Some(std::time::Duration::from_secs(30)));
        assert_eq!(
            policy.retry.value.as_ref().map(|retry| retry.num_retries.value),
            Some(1)
        );
        let (_, cluster) = document.effective.clusters.first().expect("one cluster");
        assert_eq!(cluster.endpoints.as_ref().map(|list| list.len()), Some(2));
        assert!(cluster.health_check.value.is_some());
    }
}
