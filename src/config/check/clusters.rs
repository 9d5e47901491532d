//! Clusters: where endpoints come from, how they are chosen and checked, who leads.

use super::super::cluster::{Cluster, LbPolicy, Role};
use super::super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::super::effective::Effective;
use super::super::leader::{Leader, Preset};
use super::super::tls::ClusterTls;
use super::super::{Config, Sp};
use super::Choice;

pub(super) fn check(config: &Config, effective: &Effective, out: &mut Diagnostics) {
    if let Some(defaults) = &config.defaults.cluster {
        let keys = [
            ("endpoints", defaults.endpoints.as_ref().map(|field| field.key)),
            ("discovery", defaults.discovery.as_ref().map(|field| field.key)),
        ];
        for (name, key) in keys.into_iter().filter_map(|(name, key)| Some((name, key?))) {
            out.push(
                Diagnostic::error("E0209", format!("`{name}` does not belong in `defaults.cluster`"))
                    .at(key, "move it under the cluster that it is for"),
            );
        }
    }
    for (name, cluster) in config.clusters.iter() {
        source(&name.value, cluster, name.span, out);
        endpoints(&name.value, cluster, out);
        health_check(cluster, out);
        if let Some(leader) = &cluster.leader.value {
            leads(&name.value, cluster, leader, out);
        }
        if let Some(tls) = &cluster.tls.value {
            certificate(tls, cluster.tls.key, out);
        }
    }
    for (name, cluster) in &effective.clusters {
        if let Some(tls) = &cluster.tls.value
            && tls.insecure_skip_verify.value
        {
            out.push(
                Diagnostic::warning(
                    "W0508",
                    format!("nobody verifies the certificates of cluster `{}`", name.value),
                )
                .at(
                    tls.insecure_skip_verify.span,
                    "whoever answers at an endpoint's address is believed",
                )
                .help("remove it, and name the authority that signs them: `ca: FILE`"),
            );
        }
        let lb = &cluster.load_balancing;
        if matches!(lb.policy.value, LbPolicy::RingHash | LbPolicy::Maglev) && lb.hash_on.is_none() {
            let word = lb.policy.value.word();
            out.push(
                Diagnostic::error(
                    "E0506",
                    format!("`{word}` of cluster `{}` has nothing to hash", name.value),
                )
                .at(lb.policy.span, "`hash_on` is missing")
                .help(format!(
                    "write `load_balancing: {{ policy: {word}, hash_on: client_ip }}`"
                )),
            );
        }
    }
}

fn source(name: &str, cluster: &Sp<Cluster>, at: Span, out: &mut Diagnostics) {
    let written = [
        cluster.endpoints.as_ref().map(|field| field.key),
        cluster.discovery.as_ref().map(|field| field.key),
    ];
    let what = format!("cluster `{name}`");
    let choice = Choice {
        what: &what,
        plural: "sources",
        keys: &["endpoints", "discovery"],
        written: &written,
    };
    if out.has_errors_within(cluster.span) {
        choice.at_most_one(out);
    } else {
        choice.exactly_one(at, out);
    }
    if let Some(discovery) = &cluster.discovery {
        let written = [
            discovery.dns.as_ref().map(|field| field.key),
            discovery.file.as_ref().map(|field| field.key),
            discovery.http.as_ref().map(|field| field.key),
            discovery.kubernetes.as_ref().map(|field| field.key),
        ];
        let what = format!("discovery of cluster `{name}`");
        let keys = ["dns", "file", "http", "kubernetes"];
        let choice = Choice {
            what: &what,
            plural: "sources",
            keys: &keys,
            written: &written,
        };
        if out.has_errors_within(discovery.span) {
            choice.at_most_one(out);
        } else {
            choice.exactly_one(discovery.key, out);
        }
    }
}

fn endpoints(name: &str, cluster: &Sp<Cluster>, out: &mut Diagnostics) {
    let Some(list) = &cluster.endpoints else { return };
    if out.has_errors_within(list.span) {
        return;
    }
    if list.is_empty() {
        out.push(
            Diagnostic::error("E0206", format!("cluster `{name}` has no endpoint"))
                .at(list.span, "the list is empty; write at least one address"),
        );
    } else if list.iter().all(|endpoint| endpoint.weight.value == 0) {
        let at = list.first().map_or(list.span, |endpoint| endpoint.weight.span);
        out.push(
            Diagnostic::error(
                "E0507",
                format!("every endpoint of cluster `{name}` has weight 0"),
            )
            .at(at, "0 means: no new requests")
            .help("give at least one endpoint a weight of 1 or more"),
        );
    }
    let mut seen = std::collections::HashMap::new();
    for endpoint in list.iter() {
        if let Some(first) = seen.insert(&endpoint.address.value, endpoint.address.span) {
            out.push(
                Diagnostic::error("E0106", format!("cluster `{name}` has this endpoint twice"))
                    .at(endpoint.address.span, "again")
                    .also(first, "first here")
                    .help("to send it more requests, give it a `weight`"),
            );
        }
    }
    if list.len() > 1 && cluster.health_check.value.is_none() && !cluster.health_check.is_written() {
        let at = cluster.endpoints.as_ref().map_or(cluster.key, |list| list.key);
        out.push(
            Diagnostic::hint(
                "H0701",
                format!(
                    "cluster `{name}` has {} endpoints and no health check",
                    list.len()
                ),
            )
            .at(at, "a dead one is found by failing requests only")
            .help("add `health_check: /healthz`"),
        );
    }
}

fn health_check(cluster: &Sp<Cluster>, out: &mut Diagnostics) {
    let Some(check) = &cluster.health_check.value else {
        return;
    };
    let tcp = check.tcp.as_ref().filter(|tcp| tcp.value);
    let written = [
        check.path.as_ref().map(|field| field.key),
        check.grpc_service.as_ref().map(|field| field.key),
        tcp.map(|field| field.key),
    ];
    let choice = Choice {
        what: "health_check",
        plural: "kinds",
        keys: &["path", "grpc_service", "tcp"],
        written: &written,
    };
    if out.has_errors_within(cluster.health_check.span) {
        choice.at_most_one(out);
    } else {
        choice.exactly_one(cluster.health_check.key, out);
    }
    if check.timeout.value > check.interval.value
        && (check.timeout.is_written() || check.interval.is_written())
    {
        let at = if check.timeout.is_written() {
            &check.timeout
        } else {
            &check.interval
        };
        out.push(
            Diagnostic::warning(
                "W0502",
                "the timeout of `health_check` is longer than its interval",
            )
            .at(at.span, "checks are not started while one is running"),
        );
    }
}

fn certificate(tls: &ClusterTls, at: Span, out: &mut Diagnostics) {
    let missing = match (&tls.cert, &tls.key) {
        (Some(cert), None) => Some(("key", cert.key)),
        (None, Some(key)) => Some(("cert", key.key)),
        _ => None,
    };
    if let Some((name, other)) = missing {
        let at = if other.is_written() { other } else { at };
        out.push(
            Diagnostic::error("E0202", format!("`tls` has no `{name}`"))
                .at(at, format!("this needs `{name}` beside it")),
        );
    }
}

fn leads(name: &str, cluster: &Sp<Cluster>, leader: &Leader, out: &mut Diagnostics) {
    let is_static = leader.fixed.as_ref().filter(|fixed| fixed.value);
    let sources = [
        leader.preset.as_ref().map(|field| field.key),
        leader.http.as_ref().map(|field| field.key),
        leader.dns.as_ref().map(|field| field.key),
        leader.kubernetes_lease.as_ref().map(|field| field.key),
        leader.etcd_key.as_ref().map(|field| field.key),
        is_static.map(|field| field.key),
    ];
    if sources.iter().all(Option::is_none) && !out.has_errors_within(cluster.leader.span) {
        out.push(
            Diagnostic::error("E0206", format!("`leader` of cluster `{name}` has no source")).at(
                cluster.leader.key,
                "add one of preset, http, dns, kubernetes_lease, etcd_key or static",
            ),
        );
        return;
    }
    if let Some(http) = &leader.http
        && http.path.is_none()
        && leader.preset.is_none()
        && !out.has_errors_within(http.span)
    {
        out.push(
            Diagnostic::error("E0202", format!("`clusters.{name}.leader.http` has no `path`"))
                .at(http.key, "add `path: /raft`"),
        );
    }
    if let (Some(fixed), Some(list)) = (is_static, &cluster.endpoints) {
        let leaders: Vec<Span> = list
            .iter()
            .filter_map(|e| e.role.as_ref())
            .filter(|role| role.value == Role::Leader)
            .map(|role| role.span)
            .collect();
        match leaders.as_slice() {
            [_] => {}
            [] => out.push(
                Diagnostic::error(
                    "E0509",
                    format!("`leader: {{ static: true }}`, and no endpoint of `{name}` is the leader"),
                )
                .at(fixed.span, "")
                .also(list.key, "none has `role: leader`"),
            ),
            [first, second, ..] => out.push(
                Diagnostic::error(
                    "E0509",
                    format!("cluster `{name}` has {} static leaders", leaders.len()),
                )
                .at(*second, "second leader")
                .also(*first, "first leader"),
            ),
        }
    }
    let preset_epoch = matches!(
        leader.preset.as_ref().map(|p| p.value),
        Some(Preset::Patroni | Preset::Etcd | Preset::Rqlite)
    );
    let has_epoch = preset_epoch
        || is_static.is_some()
        || leader.etcd_key.is_some()
        || leader.kubernetes_lease.is_some()
        || leader.http.as_ref().is_some_and(|http| http.epoch.is_some());
    if !has_epoch && !out.has_errors_within(cluster.leader.span) {
        out.push(
            Diagnostic::warning("W0504", format!("no source of cluster `{name}` gives an epoch"))
                .at(cluster.leader.key, "two leaders at once cannot be told apart")
                .help("add `epoch:` to `leader.http`, or a source that has one (`etcd_key`, `kubernetes_lease`)"),
        );
    }
}
