//! Routes that can never be taken because an earlier one takes every request they want.
//!
//! Claimed only when it can be proven from one earlier route: hosts, paths, methods, headers, query and addresses of the
//! later route all lie within those of the earlier one. Several earlier routes that together cover a later one are not
//! looked for.

use std::collections::BTreeSet;

use super::super::Config;
use super::super::diagnostic::{Diagnostic, Diagnostics};
use super::super::listener::Direction;
use super::super::route::{Route, RouteMatch, ValueMatch};
use super::super::table::{Many, Map, Sp, clip};

/// Above this many routes the comparison of each with each is left out.
const MAX_ROUTES: usize = 5_000;

pub(super) fn check(config: &Config, out: &mut Diagnostics) {
    if config.routes.len() > MAX_ROUTES {
        return;
    }
    let inbound: BTreeSet<&str> = config
        .listeners
        .iter()
        .filter(|(_, listener)| listener.direction.value == Direction::Inbound && listener.tcp.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let listeners = |route: &Route| -> BTreeSet<String> {
        match &route.listeners {
            Some(names) => names.iter().map(|name| name.value.clone()).collect(),
            None => inbound.iter().map(|name| (*name).to_owned()).collect(),
        }
    };
    let routes: Vec<(&Sp<Route>, BTreeSet<String>, bool)> = config
        .routes
        .iter()
        .map(|route| (route, listeners(route), !out.has_errors_within(route.span)))
        .collect();
    for (index, (late, late_listeners, sound)) in routes.iter().enumerate() {
        if !sound || late_listeners.is_empty() {
            continue;
        }
        let earlier = routes
            .iter()
            .take(index)
            .enumerate()
            .find(|(_, (early, listeners, sound))| {
                *sound && late_listeners.is_subset(listeners) && covers(&early.matches, &late.matches)
            });
        let Some((earlier, (early, early_listeners, _))) = earlier else {
            continue;
        };
        let (name, early_name) = (config.route_name(index), config.route_name(earlier));
        let place = |route: &Sp<Route>, out: &Diagnostics| {
            route
                .name
                .as_ref()
                .map_or_else(|| clip(out, route.span), |name| name.span)
        };
        let (at, also) = (place(late, out), place(early, out));
        let line = out.sources.position(also).map_or(0, |at| at.line);
        let identical = early_listeners == late_listeners && covers(&late.matches, &early.matches);
        let is_everything = |matched: &RouteMatch| covers(matched, &EVERYTHING);
        if identical && !is_everything(&late.matches) {
            out.push(
                Diagnostic::error(
                    "E0501",
                    format!("routes `{early_name}` and `{name}` match the same requests"),
                )
                .at(at, "this one is never taken")
                .also(also, "this one takes them all")
                .help("remove one, or make their `match` differ"),
            );
            continue;
        }
        let mut diagnostic = Diagnostic::warning("W0501", format!("route `{name}` can never match"))
            .at(
                at,
                format!("every request it wants is taken by `{early_name}` (line {line})"),
            )
            .also(also, "this earlier route takes it")
            .help(format!("move `{name}` above `{early_name}`"));
        if identical {
            diagnostic.help = Some("remove one of them, or give one a `match`".to_owned());
        }
        out.push(diagnostic);
    }
}

/// The match of a route that says nothing.
static EVERYTHING: RouteMatch = RouteMatch {
    host: None,
    path: None,
    path_prefix: None,
    path_regex: None,
    method: None,
    headers: None,
    query: None,
    grpc: None,
    client_ip: None,
};

/// True when every request that `late` matches is also matched by `early`.
fn covers(early: &RouteMatch, late: &RouteMatch) -> bool {
    path(early, late)
        && subset(early.host.as_ref(), late.host.as_ref(), |a, b| host(&a.0, &b.0))
        && subset(early.method.as_ref(), late.method.as_ref(), |a, b| a == b)
        && conditions(
            early.headers.as_ref(),
            late.headers.as_ref(),
            str::eq_ignore_ascii_case,
        )
        && conditions(early.query.as_ref(), late.query.as_ref(), |a, b| a == b)
        && subset(early.client_ip.as_ref(), late.client_ip.as_ref(), |a, b| {
            a.0.contains(&b.0)
        })
        && match (&early.grpc, &late.grpc) {
            (None, _) => true,
            (Some(a), Some(b)) => {
                a.service.value == b.service.value
                    && subset(a.method.as_ref(), b.method.as_ref(), |a, b| a == b)
            }
            (Some(_), None) => false,
        }
}

/// Nothing said covers all; otherwise each of the later values must be within one of the earlier.
fn subset<T>(
    early: Option<&Sp<Many<T>>>,
    late: Option<&Sp<Many<T>>>,
    within: impl Fn(&T, &T) -> bool,
) -> bool {
    match (early, late) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(early), Some(late)) => late
            .iter()
            .all(|b| early.iter().any(|a| within(&a.value, &b.value))),
    }
}

fn host(early: &str, late: &str) -> bool {
    if early == late {
        return true;
    }
    // A wildcard covers every depth below its suffix, and other wildcards there.
    let Some(suffix) = early.strip_prefix('*') else {
        return false;
    };
    late.strip_suffix(suffix).is_some_and(|label| !label.is_empty())
}

fn path(early: &RouteMatch, late: &RouteMatch) -> bool {
    if let Some(regex) = &early.path_regex {
        let all = matches!(
            regex.value.0.as_str(),
            ".*" | "/.*" | "^.*$" | "^/.*$" | "^/.*" | "^.*"
        );
        return all
            || late
                .path_regex
                .as_ref()
                .is_some_and(|other| other.value == regex.value);
    }
    if let Some(prefixes) = &early.path_prefix {
        let under = |path: &str| prefixes.iter().any(|prefix| is_under(&prefix.value.0, path));
        if under("/") {
            return true;
        }
        return match (&late.path, &late.path_prefix) {
            (Some(paths), _) => paths.iter().all(|path| under(&path.value.0)),
            (_, Some(prefixes)) => prefixes.iter().all(|prefix| under(&prefix.value.0)),
            _ => false,
        };
    }
    if let Some(paths) = &early.path {
        let exact = |path: &str| paths.iter().any(|known| known.value.0 == path);
        return late
            .path
            .as_ref()
            .is_some_and(|late| late.iter().all(|path| exact(&path.value.0)));
    }
    true
}

/// Whole segments: `/api` holds `/api` and `/api/x`, not `/apix`.
fn is_under(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Every condition of the earlier route is also one of the later.
fn conditions(
    early: Option<&Sp<Map<ValueMatch>>>,
    late: Option<&Sp<Map<ValueMatch>>>,
    same: impl Fn(&str, &str) -> bool,
) -> bool {
    let Some(early) = early else { return true };
    early.iter().all(|(name, condition)| {
        let mut others = late.iter().flat_map(|map| map.iter());
        others.any(|(other, wanted)| same(name, other) && implies(wanted, condition))
    })
}

/// A value that fits `wanted` also fits `condition`.
fn implies(wanted: &ValueMatch, condition: &ValueMatch) -> bool {
    let is_present = condition.present.as_ref().is_some_and(|present| present.value);
    let denied = wanted.present.as_ref().is_some_and(|present| !present.value);
    let text = |field: &Option<Sp<String>>| field.as_ref().map(|field| field.value.clone());
    let same = text(&wanted.exact) == text(&condition.exact)
        && text(&wanted.prefix) == text(&condition.prefix)
        && text(&wanted.suffix) == text(&condition.suffix)
        && text(&wanted.contains) == text(&condition.contains)
        && wanted.regex.as_ref().map(|r| &r.value) == condition.regex.as_ref().map(|r| &r.value)
        && wanted.present.as_ref().map(|p| p.value) == condition.present.as_ref().map(|p| p.value);
    same || (is_present && !denied)
}
