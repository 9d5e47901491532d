//! What the parts of a configuration must say to each other: names that exist, choices that are one, rules that hold.
//!
//! Each file looks at one kind of thing. All of them only push; none stops the others. A check that would follow from
//! another mistake (a route whose path could not be read matches everything) stays silent inside what is already wrong.

mod clusters;
mod headers;
mod listeners;
mod routes;
mod shadow;

use super::Config;
use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::effective::Effective;
use super::suggest;
use super::table::Sp;

/// Runs every check.
///
/// `written` are the keys at the top of the file, also those that could not be read.
pub fn all(config: &Config, effective: &Effective, written: &[std::rc::Rc<str>], out: &mut Diagnostics) {
    listeners::required(config, written, out);
    listeners::check(config, out);
    routes::check(config, effective, out);
    clusters::check(config, effective, out);
    headers::check(config, out);
    shadow::check(config, out);
    unused(config, out);
}

/// Exactly one of some alternatives: two are E0205, none is E0206 (when `whole` is given).
struct Choice<'a> {
    /// `route \`shop\``, `cluster \`app\``.
    what: &'a str,
    /// `actions`, `sources`.
    plural: &'a str,
    /// All keys, for the help.
    keys: &'a [&'a str],
    /// What is written: the places of the keys.
    written: &'a [Option<Span>],
}

impl Choice<'_> {
    fn at_most_one(&self, out: &mut Diagnostics) -> usize {
        let mut places: Vec<Span> = self
            .written
            .iter()
            .flatten()
            .copied()
            .filter(|span| span.is_written())
            .collect();
        places.sort();
        if let [first, second, ..] = places.as_slice() {
            let count = match places.len() {
                2 => "two",
                3 => "three",
                _ => "four",
            };
            let noun = self.plural.trim_end_matches('s');
            let article = super::table::article(self.what.split(' ').next().unwrap_or(self.what));
            out.push(
                Diagnostic::error("E0205", format!("{} has {count} {}", self.what, self.plural))
                    .at(*second, format!("second {noun}"))
                    .also(*first, format!("first {noun}"))
                    .help(format!("{article} has exactly one of {}", self.keys.join(", "))),
            );
        }
        places.len()
    }

    fn exactly_one(&self, at: Span, out: &mut Diagnostics) {
        if self.at_most_one(out) == 0
            && self.written.iter().all(Option::is_none)
            && !out.has_errors_within(at)
        {
            let at = super::table::clip(out, at);
            let noun = self.plural.trim_end_matches('s');
            let keys = match self.keys {
                [init @ .., last] if !init.is_empty() => format!("{} or {last}", init.join(", ")),
                _ => self.keys.join(", "),
            };
            out.push(
                Diagnostic::error("E0206", format!("{} has no {noun}", self.what))
                    .at(at, format!("add one of {keys}")),
            );
        }
    }
}

/// Reports a name that is not defined.
fn undefined(
    code: &'static str,
    message: String,
    at: Span,
    noun: &str,
    name: &str,
    known: &[&str],
    out: &mut Diagnostics,
) {
    let near = suggest::nearest(name, known.iter().copied());
    let label = near.map_or_else(String::new, |near| format!("did you mean `{near}`?"));
    let mut diagnostic = Diagnostic::error(code, message).at(at, label);
    diagnostic.note = Some(if known.is_empty() {
        format!("there are no {noun} in this file")
    } else if known.len() > 12 {
        format!(
            "{noun} in this file: {}, … ({} in all)",
            known.iter().take(12).copied().collect::<Vec<_>>().join(", "),
            known.len()
        )
    } else {
        format!("{noun} in this file: {}", known.join(", "))
    });
    out.push(diagnostic);
}

fn names<T>(map: &super::table::Map<T>) -> Vec<&str> {
    map.declared.iter().map(|(name, _)| name.as_str()).collect()
}

/// Reports a cluster that is not defined.
fn cluster_exists(config: &Config, who: &str, verb: &str, name: &Sp<String>, out: &mut Diagnostics) {
    if !config.clusters.declares(name) {
        let message = format!("{who} {verb} cluster `{}`, which does not exist", name.value);
        undefined(
            "E0401",
            message,
            name.span,
            "clusters",
            name,
            &names(&config.clusters),
            out,
        );
    }
}

/// W0505: what nobody uses.
fn unused(config: &Config, out: &mut Diagnostics) {
    let mut clusters: std::collections::HashSet<&str> = std::collections::HashSet::new();
    let mut policies: std::collections::HashSet<&str> = std::collections::HashSet::new();
    let bundles = config.policies.iter().map(|(_, policy)| &policy.value);
    let settings = config
        .routes
        .iter()
        .map(|route| &route.policy)
        .chain(bundles)
        .chain(config.defaults.route.as_deref());
    for policy in settings {
        let fallback = policy
            .fallback
            .value
            .as_ref()
            .and_then(|fallback| fallback.cluster.as_ref());
        clusters.extend(fallback.map(|name| name.as_str()));
    }
    for route in config.routes.iter() {
        clusters.extend(route.cluster.as_ref().map(|name| name.as_str()));
        clusters.extend(route.mirror.as_ref().map(|mirror| mirror.cluster.as_str()));
        clusters.extend(
            route
                .weighted_clusters
                .iter()
                .flat_map(|map| map.declared.iter().map(|(name, _)| name.as_str())),
        );
        policies.extend(route.policy_name.as_ref().map(|name| name.as_str()));
    }
    clusters.extend(
        config
            .listeners
            .iter()
            .filter_map(|(_, listener)| listener.tcp.as_ref())
            .map(|tcp| tcp.cluster.as_str()),
    );
    // A route that could not be read may be the one that uses it.
    if !config.routes.is_written() || out.has_errors_within(config.routes.span) {
        return;
    }
    for (name, at) in &config.clusters.declared {
        if !clusters.contains(&**name) {
            out.push(
                Diagnostic::warning("W0505", format!("cluster `{name}` is never used"))
                    .at(*at, "no route sends to it"),
            );
        }
    }
    for (name, at) in &config.policies.declared {
        if !policies.contains(&**name) {
            out.push(
                Diagnostic::warning("W0505", format!("policy `{name}` is never used"))
                    .at(*at, "no route names it"),
            );
        }
    }
}
