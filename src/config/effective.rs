//! The settings that hold for each route and cluster, after everything that can speak has spoken.
//!
//! Lowest first: built-in default, `profile`, `defaults`, `policies.NAME`, the route or cluster itself. Fields are
//! taken one by one; blocks are merged one level deep; `off` clears a block. Every value keeps the place where it was
//! written, so origin needs no bookkeeping of its own.

use std::time::Duration;

use super::cluster::Cluster;
use super::diagnostic::{Diagnostics, Span};
use super::policy::Policy;
use super::process::Runtime;
use super::table::{Cx, Lower as _, Sp};
use super::yaml::Node;
use super::{Config, Profile};

/// What holds.
#[derive(Clone, Debug)]
pub struct Effective {
    /// For each route of `config.routes`, by index.
    pub policies: Vec<Policy>,
    /// For each cluster of `config.clusters`, by index: name and everything that holds for it.
    pub clusters: Vec<(Sp<String>, Cluster)>,
    /// The process, with the profile's drain times.
    pub runtime: Runtime,
}

/// Resolves everything.
#[must_use]
pub fn resolve(config: &Config, out: &mut Diagnostics) -> Effective {
    let base = match &config.defaults.route {
        Some(defaults) => defaults.value.merged_over(&built_in(out)),
        None => built_in(out),
    };
    let policies = config.routes.iter().map(|route| {
        let named = route
            .policy_name
            .as_ref()
            .and_then(|name| config.policies.get(name));
        let below = named.map_or_else(|| base.clone(), |policy| policy.value.merged_over(&base));
        route.policy.merged_over(&below)
    });
    let policies = policies.collect();
    let clusters = config.clusters.iter().map(|(name, cluster)| {
        let merged = match &config.defaults.cluster {
            Some(defaults) => cluster.value.merged_over(defaults),
            None => cluster.value.clone(),
        };
        (name.clone(), merged)
    });
    let clusters = clusters.collect();
    Effective {
        policies,
        clusters,
        runtime: runtime(config),
    }
}

fn built_in(out: &mut Diagnostics) -> Policy {
    let reader = super::read::Reader::new();
    let mut cx = Cx::new(out, &reader);
    #[expect(
        clippy::expect_used,
        reason = "every default of this table is accepted by its own parser, which a test checks"
    )]
    Policy::lower(&Node::of_default("{}", Span::DEFAULT), &mut cx).expect("a policy has no required field")
}

/// Puts in a value of the profile where nobody wrote one.
fn preset<T: Clone>(value: &Sp<T>, sidecar: T, profile: Profile) -> Sp<T> {
    if value.is_written() || profile == Profile::Edge {
        return value.clone();
    }
    Sp {
        value: sidecar,
        span: Span::PROFILE,
        key: Span::PROFILE,
    }
}

fn runtime(config: &Config) -> Runtime {
    let mut runtime = config.runtime.value.clone();
    let profile = config.profile.value;
    let drain = &mut runtime.drain.value;
    drain.min = preset(&drain.min, Duration::from_secs(5), profile);
    drain.max = preset(&drain.max, Duration::from_secs(30), profile);
    drain.wait_for_app = preset(&drain.wait_for_app, true, profile);
    runtime
}

/// Applies the profile's defaults of listeners.
pub(super) fn apply_profile(config: &mut Config) {
    let profile = config.profile.value;
    for entry in &mut config.listeners.value.entries {
        let limits = &mut entry.value.value.limits.value;
        limits.max_connections_per_ip = preset(&limits.max_connections_per_ip, None, profile);
    }
}
