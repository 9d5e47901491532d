//! Routes: one action, names that exist, settings that fit together.

use super::super::cluster::UpstreamProtocol;
use super::super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::super::effective::Effective;
use super::super::policy::{ConsistencyPolicy, Operation, Policy, TokenStore};
use super::super::route::{DirectResponse, Redirect, Route, RouteMatch, ValueMatch};
use super::super::table::Map;
use super::super::units::{MethodSet, Scalar as _, WordOr};
use super::super::{Config, Sp};
use super::{Choice, cluster_exists, names, undefined};

pub(super) fn check(config: &Config, effective: &Effective, out: &mut Diagnostics) {
    let mut seen: std::collections::HashMap<&str, Span> = std::collections::HashMap::new();
    for (index, route) in config.routes.iter().enumerate() {
        let name = config.route_name(index);
        if let Some(written) = &route.name {
            if let Some(first) = seen.insert(&written.value, written.span) {
                out.push(
                    Diagnostic::error("E0106", format!("route `{name}` is defined twice"))
                        .at(written.span, "defined again")
                        .also(first, "first defined here"),
                );
            }
        } else if route.policy.circuit_breaker.value.is_some() && config.routes.len() > 1 {
            let at = super::super::table::clip(out, route.span);
            out.push(
                Diagnostic::hint("H0702", format!("route {} has no name", index + 1))
                    .at(at, format!("its metrics and its breaker are called `{name}`"))
                    .help("give it a `name`: a number changes when a route is added above"),
            );
        }
        action(config, &name, route, out);
        references(config, &name, route, out);
        matches(&route.matches, out);
        if let Some(policy) = effective.policies.get(index) {
            settings(config, &name, route, policy, out);
        }
    }
    let bundles = config.policies.iter().map(|(_, policy)| &policy.value);
    let all = config
        .routes
        .iter()
        .map(|route| &route.policy)
        .chain(bundles)
        .chain(config.defaults.route.as_deref());
    for policy in all {
        block(config, policy, out);
    }
}

fn action(config: &Config, name: &str, route: &Sp<Route>, out: &mut Diagnostics) {
    let written = [
        route.cluster.as_ref().map(|field| field.key),
        route.weighted_clusters.as_ref().map(|field| field.key),
        route.redirect.as_ref().map(|field| field.key),
        route.direct_response.as_ref().map(|field| field.key),
    ];
    let what = format!("route `{name}`");
    let keys = ["cluster", "weighted_clusters", "redirect", "direct_response"];
    let choice = Choice {
        what: &what,
        plural: "actions",
        keys: &keys,
        written: &written,
    };
    let at = route.name.as_ref().map_or(route.span, |name| name.span);
    if out.has_errors_within(route.span) {
        choice.at_most_one(out);
    } else {
        choice.exactly_one(at, out);
    }
    if let Some(redirect) = &route.redirect {
        redirects(name, redirect, &route.matches, out);
    }
    if let Some(response) = &route.direct_response {
        direct_response(response, out);
    }
    if let Some(weights) = &route.weighted_clusters
        && !out.has_errors_within(weights.span)
        && weights.iter().all(|(_, weight)| weight.value == 0)
    {
        let at = weights
            .entries
            .first()
            .map_or(weights.key, |entry| entry.value.span);
        out.push(
            Diagnostic::error("E0507", format!("every cluster of route `{name}` has weight 0"))
                .at(at, "nobody would get a request")
                .help("give at least one cluster a weight of 1 or more"),
        );
    }
    if let Some(rewrite) = &route.rewrite {
        let written = [
            rewrite.path_prefix.as_ref().map(|field| field.key),
            rewrite.path.as_ref().map(|field| field.key),
            rewrite.regex.as_ref().map(|field| field.key),
        ];
        let keys = ["path_prefix", "path", "regex"];
        Choice {
            what: "rewrite",
            plural: "paths",
            keys: &keys,
            written: &written,
        }
        .at_most_one(out);
        if let Some(prefix) = &rewrite.path_prefix {
            needs_prefix(prefix.key, &route.matches, out);
        }
    }
    if let (Some(split), None) = (&route.split_key, &route.weighted_clusters) {
        out.push(
            Diagnostic::error("E0209", "`split_key` without `weighted_clusters`")
                .at(split.key, "there is nothing to split here"),
        );
    }
    grpc(config, route, out);
}

fn needs_prefix(at: Span, matched: &RouteMatch, out: &mut Diagnostics) {
    if matched.path_prefix.is_none() {
        out.push(
            Diagnostic::error(
                "E0513",
                "`path_prefix` replaces the matched prefix, and this route matches none",
            )
            .at(at, "no `path_prefix` in `match`")
            .help("add `path_prefix` to `match`, or give the whole path with `path`"),
        );
    }
}

fn redirects(name: &str, redirect: &Sp<Redirect>, matched: &RouteMatch, out: &mut Diagnostics) {
    if !matches!(redirect.status.value, 301 | 302 | 303 | 307 | 308) {
        out.push(
            Diagnostic::error("E0309", format!("{} is not a redirect", redirect.status.value))
                .at(redirect.status.span, "write 301, 302, 303, 307 or 308"),
        );
    }
    let written = [
        redirect.path.as_ref().map(|field| field.key),
        redirect.path_prefix.as_ref().map(|field| field.key),
    ];
    Choice {
        what: "redirect",
        plural: "paths",
        keys: &["path", "path_prefix"],
        written: &written,
    }
    .at_most_one(out);
    if let Some(prefix) = &redirect.path_prefix {
        needs_prefix(prefix.key, matched, out);
    }
    let same_host = redirect.host.as_ref().is_none_or(|host| {
        matched
            .host
            .as_ref()
            .is_some_and(|hosts| hosts.iter().all(|pattern| pattern.value.0 == host.value))
    });
    let same_path = redirect.path.as_ref().is_none_or(|path| {
        matched
            .path
            .as_ref()
            .is_some_and(|paths| paths.iter().all(|matched| matched.value.0 == path.value))
    });
    let same_prefix = redirect.path_prefix.as_ref().is_none_or(|prefix| {
        matched
            .path_prefix
            .as_ref()
            .is_some_and(|all| all.iter().any(|matched| matched.value == prefix.value))
    });
    let elsewhere = redirect.scheme.is_some() || redirect.port.is_some();
    if same_host && same_path && same_prefix && !elsewhere && !out.has_errors_within(redirect.span) {
        out.push(
            Diagnostic::error("E0512", format!("route `{name}` redirects to itself"))
                .at(redirect.key, "the client would come back with the same request")
                .help("change scheme, host, port or path"),
        );
    }
}

fn direct_response(response: &Sp<DirectResponse>, out: &mut Diagnostics) {
    if !(200..=599).contains(&response.status.value) {
        out.push(
            Diagnostic::error(
                "E0309",
                format!("{} cannot be the status of an answer", response.status.value),
            )
            .at(response.status.span, "write 200 to 599"),
        );
    }
    let written = [
        response.body.as_ref().map(|field| field.key),
        response.body_file.as_ref().map(|field| field.key),
    ];
    Choice {
        what: "direct_response",
        plural: "bodies",
        keys: &["body", "body_file"],
        written: &written,
    }
    .at_most_one(out);
}

fn references(config: &Config, name: &str, route: &Route, out: &mut Diagnostics) {
    let who = format!("route `{name}`");
    if let Some(cluster) = &route.cluster {
        cluster_exists(config, &who, "sends to", cluster, out);
    }
    for (cluster, _) in route.weighted_clusters.iter().flat_map(|map| map.iter()) {
        cluster_exists(config, &who, "sends to", cluster, out);
    }
    if let Some(mirror) = &route.mirror {
        cluster_exists(config, &who, "mirrors to", &mirror.cluster, out);
    }
    for listener in route.listeners.iter().flat_map(|names| names.iter()) {
        if !config.listeners.declares(listener) {
            let message = format!(
                "route `{name}` listens on `{}`, which does not exist",
                listener.value
            );
            undefined(
                "E0402",
                message,
                listener.span,
                "listeners",
                listener,
                &names(&config.listeners),
                out,
            );
        }
    }
    if let Some(policy) = &route.policy_name
        && !config.policies.declares(policy)
    {
        let message = format!(
            "route `{name}` uses policy `{}`, which does not exist",
            policy.value
        );
        undefined(
            "E0403",
            message,
            policy.span,
            "policies",
            policy,
            &names(&config.policies),
            out,
        );
    }
}

fn matches(matched: &Sp<RouteMatch>, out: &mut Diagnostics) {
    let written = [
        matched.path.as_ref().map(|field| field.key),
        matched.path_prefix.as_ref().map(|field| field.key),
        matched.path_regex.as_ref().map(|field| field.key),
    ];
    let keys = ["path", "path_prefix", "path_regex"];
    Choice {
        what: "match",
        plural: "paths",
        keys: &keys,
        written: &written,
    }
    .at_most_one(out);
    let conditions = |map: &Option<Sp<Map<ValueMatch>>>, out: &mut Diagnostics| {
        for (name, condition) in map.iter().flat_map(|map| map.iter()) {
            let written = [
                condition.exact.as_ref().map(|field| field.key),
                condition.prefix.as_ref().map(|field| field.key),
                condition.suffix.as_ref().map(|field| field.key),
                condition.contains.as_ref().map(|field| field.key),
                condition.regex.as_ref().map(|field| field.key),
                condition.present.as_ref().map(|field| field.key),
            ];
            let keys = ["exact", "prefix", "suffix", "contains", "regex", "present"];
            let what = format!("condition `{}`", name.value);
            let choice = Choice {
                what: &what,
                plural: "tests",
                keys: &keys,
                written: &written,
            };
            if out.has_errors_within(condition.span) {
                choice.at_most_one(out);
            } else {
                choice.exactly_one(name.span, out);
            }
        }
    };
    conditions(&matched.headers, out);
    conditions(&matched.query, out);
}

/// E0508: gRPC needs HTTP/2.
fn grpc(config: &Config, route: &Route, out: &mut Diagnostics) {
    let Some(grpc) = &route.matches.grpc else { return };
    let weighted = route
        .weighted_clusters
        .iter()
        .flat_map(|map| map.iter().map(|(name, _)| name));
    for name in route.cluster.iter().chain(weighted) {
        let Some(cluster) = config.clusters.get(name) else {
            continue;
        };
        if cluster.protocol.value == UpstreamProtocol::Http1 {
            out.push(
                Diagnostic::error(
                    "E0508",
                    format!(
                        "gRPC cannot be sent to cluster `{}`, which speaks HTTP/1.1",
                        name.value
                    ),
                )
                .at(grpc.key, "gRPC needs HTTP/2")
                .also(cluster.protocol.span, "write `http2`"),
            );
        }
    }
}

/// What holds for a route, taken together.
fn settings(config: &Config, name: &str, route: &Sp<Route>, policy: &Policy, out: &mut Diagnostics) {
    if let (Some(timeout), Some(retry)) = (policy.timeout.value, &policy.retry.value)
        && let Some(WordOr::Value(per_try)) = &retry.per_try_timeout.value
        && *per_try >= timeout
    {
        let (per_try_at, timeout_at) = (retry.per_try_timeout.span, policy.timeout.span);
        let (at, also) = if per_try_at.is_written() {
            (per_try_at, timeout_at)
        } else {
            (timeout_at, per_try_at)
        };
        let mut diagnostic = Diagnostic::warning(
            "W0502",
            format!(
                "one try of route `{name}` may take {}, the whole request {}",
                per_try.written(),
                timeout.written()
            ),
        )
        .at(at, "no time is left for a second try")
        .also(also, "the other limit")
        .help("make `per_try_timeout` smaller than `timeout`, or write `per_try_timeout: auto`");
        if !also.is_written() {
            diagnostic.note = Some(format!("`timeout` is {} by default", timeout.written()));
        }
        out.push(diagnostic);
    }
    if let Some(retry) = &policy.retry.value
        && let Some(all) = retry.methods.iter().find(|method| method.value == MethodSet::All)
        && retry.num_retries.value > 0
        && policy.operation.value != Operation::Read
        && route
            .matches
            .grpc
            .as_ref()
            .is_none_or(|grpc| grpc.method.is_none())
        && route.matches.method.as_ref().is_none_or(|list| {
            list.iter()
                .any(|m| !matches!(m.value.0.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE"))
        })
    {
        out.push(
            Diagnostic::warning("W0503", format!("route `{name}` may execute a write twice"))
                .at(all.span, "POST and PATCH are sent again after a failure that may have come too late")
                .help("name the methods that may be repeated, or write `operation: read` if nothing is written here"),
        );
    }
    if policy.consistency.policy.value == ConsistencyPolicy::Strong && policy.consistency.policy.is_written()
    {
        let weighted = route
            .weighted_clusters
            .iter()
            .flat_map(|map| map.iter().map(|(name, _)| name));
        for name in route.cluster.iter().chain(weighted) {
            let Some(cluster) = config.clusters.get(name) else {
                continue;
            };
            if cluster.leader.value.is_none() && !out.has_errors_within(cluster.span) {
                let at = config
                    .clusters
                    .declared
                    .iter()
                    .find(|(declared, _)| **declared == *name.value)
                    .map_or(cluster.key, |d| d.1);
                out.push(
                    Diagnostic::error("E0502", format!("`consistency: strong` needs a leader, and cluster `{}` has none", name.value))
                        .at(policy.consistency.policy.span, "")
                        .also(at, "no `leader:` here")
                        .help(format!(
                            "add `leader: patroni` (or etcd, consul, vault, rqlite, or your own probe) to `clusters.{}`",
                            name.value
                        )),
                );
            }
        }
    }
}

/// Blocks that must make sense wherever they are written.
fn block(config: &Config, policy: &Policy, out: &mut Diagnostics) {
    if let Some(fallback) = &policy.fallback.value {
        let written = [
            fallback.cluster.as_ref().map(|field| field.key),
            fallback.direct_response.as_ref().map(|field| field.key),
        ];
        let choice = Choice {
            what: "fallback",
            plural: "targets",
            keys: &["cluster", "direct_response"],
            written: &written,
        };
        if out.has_errors_within(policy.fallback.span) {
            choice.at_most_one(out);
        } else {
            choice.exactly_one(policy.fallback.key, out);
        }
        if let Some(cluster) = &fallback.cluster {
            cluster_exists(config, "a fallback", "sends to", cluster, out);
        }
        if let Some(response) = &fallback.direct_response {
            direct_response(response, out);
        }
    }
    if let Some(breaker) = &policy.circuit_breaker.value
        && breaker.slow_call_rate.value.is_some()
        && breaker.slow_call_duration.value.is_none()
    {
        out.push(
            Diagnostic::error("E0202", "`circuit_breaker` has no `slow_call_duration`").at(
                breaker.slow_call_rate.key,
                "this needs to know what is slow: add `slow_call_duration: 1s`",
            ),
        );
    }
    let consistency = &policy.consistency;
    if consistency.policy.value == ConsistencyPolicy::BoundedStaleness && consistency.max_staleness.is_none()
    {
        out.push(
            Diagnostic::error("E0503", "`bounded_staleness` has no bound")
                .at(consistency.policy.span, "`max_staleness` is missing")
                .help("write `consistency: { policy: bounded_staleness, max_staleness: 2s }`"),
        );
    }
    if matches!(
        consistency.token.store.value,
        TokenStore::Memory | TokenStore::Fleet
    ) && consistency.session.is_none()
    {
        let store = consistency.token.store.value.word();
        out.push(
            Diagnostic::error(
                "E0504",
                format!("`store: {store}` does not know whose session it is"),
            )
            .at(consistency.token.store.span, "`session` is missing")
            .help(format!(
                "write `consistency: {{ policy: {}, session: \"cookie:sid\", token: {{ store: {store} }} }}`",
                consistency.policy.value.word()
            )),
        );
    }
}
