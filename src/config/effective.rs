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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{Document, Reader};

    fn document(rest: &str) -> Document {
        let text = format!(
            "listeners: {{ web: \":8080\" }}\nclusters: {{ app: {{ endpoints: [127.0.0.1:1], connect_timeout: 3s }} }}\n{rest}"
        );
        let reader = Reader::new().with_every_block();
        reader
            .read_bytes("x.yaml", text.as_bytes())
            .unwrap_or_else(|diagnostics| {
                panic!(
                    "{}",
                    crate::config::render::text(&diagnostics, crate::config::render::Look::default())
                )
            })
    }

    #[test]
    fn the_nearest_word_holds() {
        let document = document(
            "defaults:\n  route: { timeout: 1s, idle_timeout: 2s, max_duration: 3s }\npolicies:\n  p: { idle_timeout: 4s, \
             max_duration: 5s }\nroutes:\n  - { cluster: app, policy: p, max_duration: 6s }\n",
        );
        let policy = document.effective.policies.first().expect("one route");
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(policy.timeout.value, seconds(1));
        assert_eq!(policy.idle_timeout.value, seconds(4));
        assert_eq!(policy.max_duration.value, seconds(6));
        assert_eq!(
            document.diagnostics.sources.origin(policy.timeout.span),
            "x.yaml:4"
        );
        assert_eq!(
            document.diagnostics.sources.origin(policy.idle_timeout.span),
            "x.yaml:6"
        );
        assert_eq!(
            document.diagnostics.sources.origin(policy.max_duration.span),
            "x.yaml:8"
        );
        assert_eq!(document.diagnostics.sources.origin(policy.retry.span), "default");
    }

    #[test]
    fn blocks_are_merged_one_level_deep() {
        let document = document(
            "defaults:\n  route: { retry: { num_retries: 3, retry_on: [reset], backoff: { base: 7ms } } }\nroutes:\n  - { \
             cluster: app, retry: { num_retries: 2, backoff: { max: 9ms } } }\n",
        );
        let retry = document
            .effective
            .policies
            .first()
            .and_then(|p| p.retry.value.clone())
            .expect("retries");
        assert_eq!(retry.num_retries.value, 2);
        assert_eq!(retry.retry_on.len(), 1, "kept from below");
        assert_eq!(retry.backoff.max.value, Duration::from_millis(9));
        assert_eq!(
            retry.backoff.base.value,
            Duration::from_millis(25),
            "a block inside a block is replaced"
        );
    }

    #[test]
    fn off_clears_a_block_and_a_later_one_starts_afresh() {
        let document = document(
            "defaults:\n  route: { retry: { num_retries: 3, max_body_size: 1KiB } }\npolicies:\n  none: { retry: off }\nroutes:\n  - { \
             name: a, match: { path: /a }, cluster: app, policy: none }\n  - { name: b, cluster: app, policy: none, retry: 2 }\n",
        );
        let [a, b] = document.effective.policies.as_slice() else {
            panic!("two routes")
        };
        assert!(a.retry.value.is_none());
        let retry = b.retry.value.as_ref().expect("retries");
        assert_eq!(
            (retry.num_retries.value, retry.max_body_size.value.0),
            (2, 64 * 1024)
        );
    }

    #[test]
    fn a_profile_speaks_where_nobody_else_does() {
        let document =
            document("profile: sidecar\nroutes: [{ cluster: app }]\nruntime: { drain: { max: 7s } }\n");
        let drain = &document.effective.runtime.drain;
        assert_eq!(
            (drain.min.value, drain.max.value),
            (Duration::from_secs(5), Duration::from_secs(7))
        );
        assert_eq!(document.diagnostics.sources.origin(drain.min.span), "profile");
        let listener = &document.config.listeners.entries.first().expect("one").value;
        assert_eq!(listener.limits.max_connections_per_ip.value, None);
    }
}
