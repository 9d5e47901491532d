//! Listeners, the admin address and the process.

use std::rc::Rc;

use super::super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::super::listener::Direction;
use super::super::policy::ConsistencyPolicy;
use super::super::suggest;
use super::super::table::Sp;
use super::super::units::{Address, Host, Scalar as _};
use super::super::{Config, policy};
use super::{Choice, cluster_exists};

pub(super) fn check(config: &Config, out: &mut Diagnostics) {
    addresses(config, out);
    admin(config, out);
    for (name, listener) in config.listeners.iter() {
        if let Some(tcp) = &listener.tcp {
            cluster_exists(
                config,
                &format!("listener `{}`", name.value),
                "sends to",
                &tcp.cluster,
                out,
            );
            let policy = &tcp.consistency.policy;
            if policy.value == ConsistencyPolicy::ReadYourWrites {
                out.push(
                    Diagnostic::error(
                        "E0511",
                        format!("listener `{}` cannot promise `read_your_writes`", name.value),
                    )
                    .at(policy.span, "a byte stream carries no session")
                    .help("write `consistency: leader`, or put the clients behind an HTTP listener"),
                );
            }
        }
        let named = |route: &super::super::route::Route| {
            route
                .listeners
                .as_ref()
                .is_some_and(|names| names.iter().any(|n| n.value == name.value))
        };
        if listener.direction.value == Direction::Outbound
            && listener.tcp.is_none()
            && !config.routes.iter().any(|r| named(r))
        {
            out.push(
                Diagnostic::warning(
                    "W0506",
                    format!(
                        "no route takes requests of the outbound listener `{}`",
                        name.value
                    ),
                )
                .at(name.span, "every request would be answered 404")
                .help(format!(
                    "add `listeners: {}` to the routes that are meant for it",
                    name.value
                )),
            );
        }
    }
    if let Some(fleet) = &config.fleet.value {
        let written = [
            fleet.etcd.as_ref().map(|f| f.key),
            fleet.redis.as_ref().map(|f| f.key),
            fleet.raft.as_ref().map(|f| f.key),
        ];
        let choice = Choice {
            what: "fleet",
            plural: "stores",
            keys: &["etcd", "redis", "raft"],
            written: &written,
        };
        choice.exactly_one(config.fleet.key, out);
    }
    fleet_needed(config, out);
}

/// E0202 at the top: a file without listeners or routes. Silent where a key was meant to be one of them.
pub(super) fn required(config: &Config, written: &[Rc<str>], out: &mut Diagnostics) {
    let meant = |name: &str| {
        written
            .iter()
            .any(|key| &**key == name || suggest::nearest(key, [name]).is_some())
    };
    let top = Span::new(super::super::diagnostic::FileId::MAIN, 0, 0);
    let first = config.routes.key.min(config.clusters.key);
    let at = if first.is_written() { first } else { top };
    if !meant("listeners") {
        out.push(
            Diagnostic::error("E0202", "the configuration has no `listeners`")
                .at(at, "add `listeners: { web: 127.0.0.1:8080 }`"),
        );
        return;
    }
    let all_tcp = !config.listeners.entries.is_empty()
        && config
            .listeners
            .iter()
            .all(|(_, listener)| listener.tcp.is_some());
    if !meant("routes") && !all_tcp {
        let at = if config.listeners.is_written() {
            config.listeners.key
        } else {
            top
        };
        out.push(
            Diagnostic::error("E0202", "the configuration has no `routes`")
                .at(at, "requests arrive here, and nobody takes them")
                .help("add `routes: [{ cluster: app }]`"),
        );
    }
}

/// E0505: two sockets that cannot both be bound.
fn addresses(config: &Config, out: &mut Diagnostics) {
    let mut all: Vec<(String, &Sp<Address>)> = config
        .listeners
        .iter()
        .map(|(name, listener)| (format!("listener `{}`", name.value), &listener.address))
        .collect();
    if let Some(metrics) = config
        .telemetry
        .metrics
        .value
        .as_ref()
        .and_then(|metrics| metrics.address.as_ref())
    {
        all.push(("the metrics listener".to_owned(), metrics));
    }
    if let Some(admin) = &config.admin.value {
        all.push(("the admin listener".to_owned(), &admin.address));
    }
    let mut seen: std::collections::HashMap<String, Vec<usize>> = std::collections::HashMap::new();
    for (index, (who, address)) in all.iter().enumerate() {
        let key = match &address.value {
            Address::Tcp { port: 0, .. } => continue,
            Address::Tcp { port, .. } => port.to_string(),
            Address::Unix(path) => path.display().to_string(),
        };
        let same = seen.entry(key).or_default();
        let clash = same
            .iter()
            .filter_map(|other| all.get(*other))
            .find(|(_, other)| overlap(&other.value, &address.value));
        if let Some((other, at)) = clash {
            let (who, what) = (who.as_str(), address.written());
            // The written one is shown when the other is a default.
            let (place, second) = if address.is_written() {
                (address.span, at.span)
            } else {
                (at.span, address.span)
            };
            let mut diagnostic = Diagnostic::error("E0505", format!("{who} and {other} both want {what}"))
                .at(place, "this address is taken")
                .also(second, "taken here");
            if !second.is_written() {
                diagnostic = diagnostic.note(format!("{who} listens on {what} by default"));
            }
            if at.value != address.value {
                diagnostic = diagnostic.note(format!(
                    "{} includes {}",
                    wider(&at.value, &address.value),
                    port_of(&address.value)
                ));
            }
            out.push(diagnostic);
        }
        same.push(index);
    }
}

fn wider(a: &Address, b: &Address) -> String {
    if is_any(a) { a.written() } else { b.written() }
}

fn port_of(address: &Address) -> String {
    match address {
        Address::Tcp { port, .. } => format!("port {port} of every address"),
        Address::Unix(path) => path.display().to_string(),
    }
}

fn is_any(address: &Address) -> bool {
    match address {
        Address::Tcp { host: None, .. } => true,
        Address::Tcp {
            host: Some(Host::Ip(ip)),
            ..
        } => ip.is_unspecified(),
        Address::Tcp { .. } | Address::Unix(_) => false,
    }
}

fn overlap(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp { port: p, .. }, Address::Tcp { port: q, .. }) if p == q => {
            is_any(a) || is_any(b) || a == b
        }
        _ => a == b,
    }
}

/// E0604: an admin listener that anybody can reach.
fn admin(config: &Config, out: &mut Diagnostics) {
    let Some(admin) = &config.admin.value else { return };
    let guarded = admin.read_only.value
        || admin.auth.as_ref().is_some_and(|auth| {
            auth.bearer_token
                .as_ref()
                .is_some_and(|token| !token.reveal().is_empty())
        });
    // A token that could not be read is the mistake, not one that nobody wrote.
    let is_broken = admin
        .auth
        .as_ref()
        .is_some_and(|auth| out.has_errors_within(auth.span));
    if !admin.address.is_local() && !guarded && !is_broken {
        out.push(
            Diagnostic::error("E0604", format!("the admin listener on {} can be reached by anybody", admin.address.written()))
                .at(admin.address.span, "not a loopback address, no `auth`, not `read_only`")
                .help("write `auth: { bearer_token: \"${file:/run/secrets/admin}\" }`, or `read_only: true`, or listen on 127.0.0.1")
                .note("`telemetry.metrics.address` serves /metrics and probes to others without control"),
        );
    }
}

/// E0511: what needs a fleet.
fn fleet_needed(config: &Config, out: &mut Diagnostics) {
    if config.fleet.value.is_some() {
        return;
    }
    let bundles = config.policies.iter().map(|(_, policy)| &policy.value);
    let all = config
        .routes
        .iter()
        .map(|route| &route.policy)
        .chain(bundles)
        .chain(config.defaults.route.as_deref());
    for settings in all {
        let store = &settings.consistency.token.store;
        if store.is_written() && store.value == policy::TokenStore::Fleet {
            out.push(needs_fleet("store: fleet", store.span));
        }
        for limit in settings.rate_limit.value.iter().flat_map(|limits| limits.iter()) {
            if limit.scope.value == policy::RateScope::Fleet {
                out.push(needs_fleet("scope: fleet", limit.scope.span));
            }
        }
    }
}

fn needs_fleet(what: &str, at: Span) -> Diagnostic {
    Diagnostic::error("E0511", format!("`{what}` needs a fleet, and there is none"))
        .at(at, "no `fleet:` in this configuration")
        .help("add for example `fleet: { redis: { url: redis://state.internal:6379/0 } }`")
}
