//! What a reload changes, in names: for the report that an operator reads and the event that is kept.
//!
//! Compiled settings cannot be compared (expressions, closures, TLS), texts should not be (a comment is no change). So
//! each compile leaves an [`Outline`]: a name and a hash of the long form for every listener, route and cluster.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::config::Document;
use crate::config::table::{Lower, Shown};

/// The names in a configuration, and what is behind them as a number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    listeners: Vec<(Arc<str>, u64)>,
    routes: Vec<(Arc<str>, u64)>,
    clusters: Vec<(Arc<str>, u64)>,
}

impl Outline {
    /// The outline of a configuration.
    pub fn of(document: &Document) -> Self {
        let config = &document.config;
        let routes = config.routes.iter().zip(&document.effective.policies).enumerate();
        Self {
            listeners: config
                .listeners
                .iter()
                .map(|(name, listener)| (name.value.as_str().into(), hash(&[listener.value.show()])))
                .collect(),
            routes: routes
                .map(|(index, (route, policy))| {
                    let name = match &route.name {
                        Some(name) => name.value.as_str().into(),
                        None => format!("route-{}", index + 1).into(),
                    };
                    (name, hash(&[route.value.show(), policy.show()]))
                })
                .collect(),
            clusters: document
                .effective
                .clusters
                .iter()
                .map(|(name, cluster)| (name.value.as_str().into(), hash(&[cluster.show()])))
                .collect(),
        }
    }
}

fn hash(shown: &[Shown]) -> u64 {
    let mut text = String::new();
    for shown in shown {
        write(shown, &mut text);
    }
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// Values without their places, with marks that no value can imitate.
fn write(shown: &Shown, out: &mut String) {
    match shown {
        Shown::Text(text) => {
            out.push_str(&format!("{}:", text.len()));
            out.push_str(text);
        }
        Shown::Secret => out.push('*'),
        Shown::List(items) => {
            out.push('[');
            items.iter().for_each(|(item, _)| write(item, out));
            out.push(']');
        }
        Shown::Map(entries) => {
            out.push('{');
            for (key, value, _) in entries {
                out.push_str(&format!("{}:{key}", key.len()));
                write(value, out);
            }
            out.push('}');
        }
    }
}

/// What became of the names of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// New.
    pub added: Vec<Arc<str>>,
    /// Gone.
    pub removed: Vec<Arc<str>>,
    /// Same name, other settings.
    pub changed: Vec<Arc<str>>,
    /// How many stayed as they were.
    pub kept: usize,
}

impl Names {
    fn between(old: &[(Arc<str>, u64)], new: &[(Arc<str>, u64)]) -> Self {
        let before: HashMap<&str, u64> = old.iter().map(|(name, hash)| (&**name, *hash)).collect();
        let after: HashMap<&str, u64> = new.iter().map(|(name, hash)| (&**name, *hash)).collect();
        let mut names = Self::default();
        for (name, hash) in new {
            match before.get(&**name) {
                None => names.added.push(Arc::clone(name)),
                Some(known) if known == hash => names.kept += 1,
                Some(_) => names.changed.push(Arc::clone(name)),
            }
        }
        let gone = old.iter().filter(|(name, _)| !after.contains_key(&**name));
        names.removed = gone.map(|(name, _)| Arc::clone(name)).collect();
        names
    }

    /// Whether all stayed as they were.
    pub const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    fn write(&self, noun: &str, first: &mut bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verb, names) in [
            ("added", &self.added),
            ("removed", &self.removed),
            ("changed", &self.changed),
        ] {
            if names.is_empty() {
                continue;
            }
            let comma = if std::mem::take(first) { "" } else { ", " };
            let plural = if names.len() == 1 { "" } else { "s" };
            write!(f, "{comma}{noun}{plural} {verb}: {}", names.join(" "))?;
        }
        Ok(())
    }
}

/// What a reload changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Of listeners.
    pub listeners: Names,
    /// Of routes.
    pub routes: Names,
    /// Of clusters.
    pub clusters: Names,
    /// Routes that were there before are tried in another order.
    pub reordered: bool,
}

impl Difference {
    /// Whether listeners, routes and clusters stayed as they were.
    pub const fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.routes.is_empty() && self.clusters.is_empty() && !self.reordered
    }
}

/// What `new` changes.
pub fn between(old: &Outline, new: &Outline) -> Difference {
    let common = |these: &[(Arc<str>, u64)], those: &[(Arc<str>, u64)]| -> Vec<Arc<str>> {
        let names = these.iter().map(|(name, _)| name);
        let both = names.filter(|name| those.iter().any(|(other, _)| other == *name));
        both.cloned().collect()
    };
    Difference {
        listeners: Names::between(&old.listeners, &new.listeners),
        routes: Names::between(&old.routes, &new.routes),
        clusters: Names::between(&old.clusters, &new.clusters),
        reordered: common(&old.routes, &new.routes) != common(&new.routes, &old.routes),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        self.listeners.write("listener", &mut first, f)?;
        self.routes.write("route", &mut first, f)?;
        self.clusters.write("cluster", &mut first, f)?;
        if self.reordered {
            let comma = if std::mem::take(&mut first) { "" } else { ", " };
            write!(f, "{comma}routes reordered")?;
        }
        if first {
            f.write_str("no listener, route or cluster changed")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(text: &str) -> Outline {
        Outline::of(&crate::config::read_bytes("bellwether.yaml", text.as_bytes()).expect("valid"))
    }

    const BEFORE: &str = "listeners:\n  web: 127.0.0.1:8080\nroutes:\n  - { name: a, match: { path: /a }, cluster: one }\n  - { name: b, match: { path: /b }, cluster: one }\nclusters:\n  one: { endpoints: [127.0.0.1:9001] }\n";

    #[test]
    fn comments_and_places_are_no_change() {
        let after = format!("# a comment\n\n{BEFORE}");
        let difference = between(&outline(BEFORE), &outline(&after));
        assert!(difference.is_empty(), "{difference}");
        assert_eq!(difference.to_string(), "no listener, route or cluster changed");
        assert_eq!((difference.routes.kept, difference.clusters.kept), (2, 1));
    }

    #[test]
    fn names_tell_what_changed() {
        let after = BEFORE
            .replace("name: a", "name: c")
            .replace("127.0.0.1:9001", "127.0.0.1:9002")
            .replace("clusters:\n", "defaults: { route: { timeout: 3s } }\nclusters:\n");
        let difference = between(&outline(BEFORE), &outline(&after));
        assert_eq!(
            difference.to_string(),
            "route added: c, route removed: a, route changed: b, cluster changed: one",
            "a default changes every route that takes it"
        );
    }

    #[test]
    fn the_order_of_routes_matters() {
        let (head, rest) = BEFORE.split_once("  - { name: a").expect("there");
        let (a, rest) = rest.split_once('\n').expect("there");
        let (b, rest) = rest.split_once('\n').expect("there");
        let after = format!("{head}{b}\n  - {{ name: a{a}\n{rest}");
        let difference = between(&outline(BEFORE), &outline(&after));
        assert_eq!(difference.to_string(), "routes reordered");
    }
}
