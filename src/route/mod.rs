//! Which route a request takes: a compiled table whose answer equals "the first route in the file that matches".
//!
//! The file's order is the only precedence, so an operator can predict the winner by reading downward. A scan would
//! say so directly and cost in proportion to the number of routes; the table answers the two questions that tell
//! most routes apart, host and path, by lookup. Each lookup yields a `rows::Row`, the set of routes that it
//! does not rule out; the sets are intersected, and only the survivors, lowest number first, are asked about method,
//! headers, query, gRPC and client address. `MatchSettings::mismatch` is the same rule written as a scan: tests hold
//! the table against it, and `explain` prints what it says.
//!
//! Invariant: `Table::find` equals the first index whose `MatchSettings::mismatch` is `None`.
//!
//! Paths are compared as they are, so they must come normalised (dot segments, doubled slashes, needless escapes);
//! what is matched must be what is forwarded.

mod host;
mod key;
mod path;
mod pattern;
mod rows;
mod settings;
mod split;

use std::net::IpAddr;

use http::{HeaderMap, Method};

pub use self::host::{HostPattern, HostPatternError};
pub use self::key::{HashKey, HashKeyError, KeySource, bucket_hash, combined_hash, first_hash};
pub use self::path::{PathMatch, PathMatchError};
pub use self::pattern::{Pattern, PatternError};
pub use self::settings::{GrpcMatch, MatchSettings, Mismatch, ValueMatch};
pub use self::split::{SplitError, WeightedSplit};

/// What matching looks at. Borrowed from the request; making one costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The authority as it came (`:authority` or `Host`); case, port and one trailing dot do not matter.
    pub host: &'a str,
    /// The normalised path, without the query.
    pub path: &'a str,
    /// The query as it came, without the question mark.
    pub query: Option<&'a str>,
    /// The method; case matters (RFC 9110 section 9.1).
    pub method: &'a Method,
    /// The request's fields.
    pub headers: &'a HeaderMap,
    /// The client, after trusted proxies have been taken into account.
    pub client_ip: IpAddr,
}

/// The routes of one listener, compiled.
#[derive(Debug)]
pub struct Table {
    settings: Box<[MatchSettings]>,
    hosts: host::Hosts,
    paths: path::Paths,
}

/// A route that did not match, for `explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// Which route, as an index into the list the table was made from.
    pub index: usize,
    /// Every condition that fails, in the order host, path, method, gRPC, headers, query, client address.
    pub failing: Vec<Mismatch>,
}

impl Table {
    /// Compiles the matches of a listener's routes, in the order in which they are to be tried.
    ///
    /// # Errors
    /// When the regular expressions together exceed the size that one automaton may have; each of them alone was
    /// already accepted by [`Pattern::new`].
    pub fn new(routes: Vec<MatchSettings>) -> Result<Self, PatternError> {
        Ok(Self {
            hosts: host::Hosts::new(&routes),
            paths: path::Paths::new(&routes)?,
            settings: routes.into_boxed_slice(),
        })
    }

    /// The first route that matches, as an index into the list the table was made from.
    ///
    /// Does not allocate (a long percent-encoded query value that a query condition looks at excepted).
    pub fn find(&self, view: &RequestView<'_>) -> Option<usize> {
        let hosts = self.hosts.row(view.host);
        let mut paths = self.paths.lookup(view.path);
        for &(word, bits) in hosts.words() {
            let mut candidates = bits & paths.word(word);
            while candidates != 0 {
                let index = rows::index(word, candidates.trailing_zeros());
                candidates &= candidates - 1;
                if paths.confirms(index) && self.settings[index].rest_matches(view) {
                    return Some(index);
                }
            }
        }
        None
    }

    /// How many routes the table holds.
    pub fn len(&self) -> usize {
        self.settings.len()
    }

    /// Whether there is nothing to match.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// What one route wants, for people.
    pub fn settings(&self, index: usize) -> Option<&MatchSettings> {
        self.settings.get(index)
    }

    /// Why one route does not match, or `None` when it does. For `explain`; not for the request path.
    pub fn mismatch(&self, index: usize, view: &RequestView<'_>) -> Option<Mismatch> {
        self.settings
            .get(index)
            .and_then(|settings| settings.mismatch(view))
    }

    /// The routes that fail the fewest conditions, at most `limit`, nearest first and in file order among equals.
    /// Routes that match are left out. For `explain`; not for the request path.
    pub fn nearest(&self, view: &RequestView<'_>, limit: usize) -> Vec<NearMiss> {
        let mut misses: Vec<NearMiss> = (0..)
            .zip(&self.settings)
            .map(|(index, settings)| NearMiss {
                index,
                failing: settings.mismatches(view),
            })
            .filter(|miss| !miss.failing.is_empty())
            .collect();
        misses.sort_by_key(|miss| miss.failing.len());
        misses.truncate(limit);
        misses
    }
}

#[cfg(test)]
mod tests;
