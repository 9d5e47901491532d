//! What this version knows but does not perform yet: parsed, validated, and refused at its line, never ignored.
//!
//! One list. Whoever builds a block deletes its line here, and the tests of the examples expect fewer errors.
//! A block that is `off`, or that nobody wrote, is not refused.

use super::Config;
use super::cluster::Cluster;
use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::listener::{Listener, Protocol};
use super::policy::{ConsistencyPolicy, Policy};
use super::table::{Lower, Shown, Sp};

/// The code of these errors.
pub const CODE: &str = "E0610";

/// Keys whose defaults are not in force either, so `config show` leaves them out unless they are written.
pub const UNPERFORMED: &[&str] = &[
    "consistency",
    "dashboard",
    "fleet",
    "leader",
    "operation",
    "original_destination",
    "prefer",
    "tracing",
];

/// Refuses what is written and not performed.
pub fn check(config: &Config, out: &mut Diagnostics) {
    let mut refuse = Refuse { out };
    for (_, listener) in config.listeners.iter() {
        of_listener(listener, &mut refuse);
    }
    let bundles = config.policies.iter().map(|(_, policy)| &policy.value);
    for policy in config
        .routes
        .iter()
        .map(|route| &route.policy)
        .chain(bundles)
        .chain(config.defaults.route.as_deref())
    {
        of_policy(policy, &mut refuse);
    }
    let defaults = config.defaults.cluster.as_deref();
    for cluster in config
        .clusters
        .iter()
        .map(|(_, cluster)| &cluster.value)
        .chain(defaults)
    {
        of_cluster(cluster, &mut refuse);
    }
    refuse.switch("telemetry.tracing", &config.telemetry.tracing);
    refuse.switch("fleet", &config.fleet);
    refuse.some("runtime.state_file", config.runtime.state_file.as_ref());
}

fn of_listener(listener: &Listener, refuse: &mut Refuse<'_>) {
    refuse.some("tcp", listener.tcp.as_ref());
    refuse.when(
        listener.original_destination.value,
        "original_destination",
        listener.original_destination.key,
    );
    for protocol in listener
        .protocols
        .iter()
        .filter(|protocol| protocol.value == Protocol::Http3)
    {
        refuse.at("http3", protocol.span);
    }
}

fn of_policy(policy: &Policy, refuse: &mut Refuse<'_>) {
    for limit in policy.rate_limit.value.iter().flat_map(|limits| limits.iter()) {
        refuse.unless("rate_limit.scope", &limit.scope, "local");
    }
    let consistency = &policy.consistency;
    let says_more = match consistency.value.show() {
        Shown::Map(rows) => rows
            .iter()
            .any(|(key, _, span)| key != "policy" && span.is_written()),
        _ => false,
    };
    let differs = consistency.policy.value != ConsistencyPolicy::Eventual || says_more;
    refuse.when(differs, "consistency", consistency.key);
    refuse.unless("operation", &policy.operation, "auto");
}

fn of_cluster(cluster: &Cluster, refuse: &mut Refuse<'_>) {
    if let Some(discovery) = &cluster.discovery {
        refuse.some("discovery.kubernetes", discovery.kubernetes.as_ref());
    }
    refuse.switch("leader", &cluster.leader);
    refuse.unless("load_balancing.prefer", &cluster.load_balancing.prefer, "none");
}

struct Refuse<'a> {
    out: &'a mut Diagnostics,
}

impl Refuse<'_> {
    fn at(&mut self, what: &str, at: Span) {
        let label = "not built yet";
        self.out.push(
            Diagnostic::error(CODE, format!("`{what}` is not supported by this version"))
                .at(at, label)
                .help("remove it; nothing that is written is ever silently ignored"),
        );
    }

    fn when(&mut self, refused: bool, what: &str, key: Span) {
        if refused && key.is_written() {
            self.at(what, key);
        }
    }

    /// A block that may be switched off.
    fn switch<T>(&mut self, what: &str, field: &Sp<Option<T>>) {
        self.when(field.value.is_some(), what, field.key);
    }

    /// A block that may be absent.
    fn some<T>(&mut self, what: &str, field: Option<&Sp<T>>) {
        if let Some(field) = field {
            self.when(true, what, field.key);
        }
    }

    /// A value that is refused unless it says what holds anyway.
    fn unless<T: Lower>(&mut self, what: &str, field: &Sp<T>, default: &str) {
        self.when(
            field.value.show() != Shown::Text(default.to_owned()),
            what,
            field.key,
        );
    }
}
