//! Paths: exact ones by hash, prefixes by whole segments in a trie, regular expressions where their text begins.
//!
//! `/api` as a prefix matches `/api` and `/api/x`, never `/apix`; a trailing slash on a prefix means nothing, and `/`
//! is the prefix of everything. A route that names no path is filed under `/`.
//!
//! An expression is filed in the trie under the segments that every match of it starts with (`/export` for
//! `/export/[0-9]+`), so that most requests never run it. The few that remain are asked one by one; from the fifth on,
//! one automaton answers for all of them together, so that a hundred expressions without a common beginning cost one
//! pass and not a hundred. Measured with 1000 expressions, each with its own beginning: 106 ns for the last of them,
//! 9.7 us with the automaton alone.
//!
//! Invariant: the row of a node of the trie already contains the rows of all nodes above it.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use regex_automata::{Input, PatternID, PatternSet, meta};

use super::pattern::{PatternError, all_at_once};
use super::rows::{Cursor, Row};
use super::{MatchSettings, Pattern};

/// What a route wants of the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path, also `*`.
    #[default]
    Any,
    /// One of these, to the letter.
    Exact(Vec<String>),
    /// One of these or anything below it, by whole segments. Without trailing slash; empty means any path.
    Prefix(Vec<String>),
    /// The whole path.
    Regex(Pattern),
}

/// Why a path of a match is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathMatchError {
    /// Paths of requests start with a slash, so this would never match.
    #[error("a path starts with `/`")]
    NoSlash,
    /// A question mark or a fragment.
    #[error("a path has no `?` and no `#`; use `query` to look at the query")]
    Query,
}

impl PathMatch {
    /// Exact paths, which should be normalised as those of requests are.
    ///
    /// # Errors
    /// When one of them could never match.
    pub fn exact(paths: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, PathMatchError> {
        Ok(Self::Exact(checked(paths)?))
    }

    /// Prefixes by whole segments, which should be normalised as the paths of requests are.
    ///
    /// # Errors
    /// When one of them could never match.
    pub fn prefix(paths: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, PathMatchError> {
        let mut paths = checked(paths)?;
        for path in &mut paths {
            path.truncate(path.trim_end_matches('/').len());
        }
        Ok(Self::Prefix(paths))
    }

    /// Whether a normalised path matches. The table decides the same faster.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(paths) => paths.iter().any(|exact| exact == path),
            Self::Prefix(_) => self.matched_prefix(path).is_some(),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }

    /// The longest prefix of this match that the path has; what a rewrite or redirect of `path_prefix` replaces.
    /// Empty for the prefix `/`, and `None` for the other kinds.
    pub fn matched_prefix(&self, path: &str) -> Option<&str> {
        let Self::Prefix(prefixes) = self else { return None };
        prefixes
            .iter()
            .filter(|prefix| has_prefix(path, prefix))
            .max_by_key(|prefix| prefix.len())
            .map(String::as_str)
    }
}

impl std::fmt::Display for PathMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any path"),
            Self::Exact(paths) => write!(f, "path {}", paths.join(" or ")),
            Self::Prefix(paths) => {
                let shown: Vec<&str> = paths
                    .iter()
                    .map(|path| if path.is_empty() { "/" } else { path })
                    .collect();
                write!(f, "path_prefix {}", shown.join(" or "))
            }
            Self::Regex(pattern) => write!(f, "path_regex {}", pattern.as_str()),
        }
    }
}

fn checked(paths: impl IntoIterator<Item = impl Into<String>>) -> Result<Vec<String>, PathMatchError> {
    paths
        .into_iter()
        .map(|path| {
            let path = path.into();
            if !path.starts_with('/') {
                Err(PathMatchError::NoSlash)
            } else if path.contains(['?', '#']) {
                Err(PathMatchError::Query)
            } else {
                Ok(path)
            }
        })
        .collect()
}

fn has_prefix(path: &str, prefix: &str) -> bool {
    prefix.is_empty()
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All paths of a table.
#[derive(Debug)]
pub(super) struct Paths {
    exact: HashMap<Box<[u8]>, Row, Quick>,
    trie: Vec<Node>,
    regexes: Option<Regexes>,
}

#[derive(Debug, Default)]
struct Node {
    row: Row,
    children: HashMap<Box<[u8]>, usize, Quick>,
}

#[derive(Debug)]
struct Regexes {
    all: meta::Regex,
    /// By route: its own expression and its place in `all`.
    routes: HashMap<usize, (Pattern, PatternID), Quick>,
}

/// Expressions that are asked alone before the automaton of all is.
const ALONE: u32 = 4;

impl Paths {
    pub(super) fn new(routes: &[MatchSettings]) -> Result<Self, PatternError> {
        let mut trie = vec![(Node::default(), Vec::new())];
        let mut exact: HashMap<Box<[u8]>, Vec<usize>, Quick> = HashMap::default();
        let mut patterns = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            match &route.path {
                PathMatch::Any => file(&mut trie, "", index),
                PathMatch::Prefix(prefixes) => {
                    for prefix in prefixes {
                        file(&mut trie, prefix, index);
                    }
                }
                PathMatch::Exact(paths) => {
                    for path in paths {
                        let indices = exact.entry(path.as_bytes().into()).or_default();
                        if indices.last() != Some(&index) {
                            indices.push(index);
                        }
                    }
                }
                PathMatch::Regex(pattern) => {
                    file(&mut trie, pattern.first_segments(), index);
                    patterns.push((index, pattern));
                }
            }
        }
        let mut nodes: Vec<Node> = Vec::with_capacity(trie.len());
        let mut above: Vec<Row> = vec![Row::default(); trie.len()];
        for (at, (mut node, own)) in trie.into_iter().enumerate() {
            // Nodes are numbered as they are made, so a parent always comes before its children.
            node.row = above[at].union(&Row::of(own));
            node.children
                .values()
                .for_each(|child| above[*child] = node.row.clone());
            nodes.push(node);
        }
        Ok(Self {
            exact: exact
                .into_iter()
                .map(|(path, indices)| (path, Row::of(indices)))
                .collect(),
            trie: nodes,
            regexes: Regexes::new(&patterns)?,
        })
    }

    /// Starts the lookup of one path.
    pub(super) fn lookup<'a>(&'a self, path: &'a str) -> Lookup<'a> {
        let exact = if self.exact.is_empty() {
            None
        } else {
            self.exact.get(path.as_bytes())
        };
        Lookup {
            exact: exact.map(Row::cursor).unwrap_or_default(),
            prefix: self.deepest(path).row.cursor(),
            regexes: self.regexes.as_ref(),
            path,
            asked: 0,
            matched: None,
        }
    }

    fn deepest(&self, path: &str) -> &Node {
        let mut node = &self.trie[0];
        let Some(mut rest) = path.as_bytes().strip_prefix(b"/") else {
            return node;
        };
        while !node.children.is_empty() {
            let end = memchr::memchr(b'/', rest).unwrap_or(rest.len());
            let Some(child) = node.children.get(&rest[..end]) else {
                break;
            };
            node = &self.trie[*child];
            if end == rest.len() {
                break;
            }
            rest = &rest[end + 1..];
        }
        node
    }
}

/// Files a route under a prefix.
fn file(trie: &mut Vec<(Node, Vec<usize>)>, prefix: &str, index: usize) {
    let mut at = 0;
    for segment in prefix.split('/').skip(1) {
        let next = trie.len();
        let child = *trie[at]
            .0
            .children
            .entry(segment.as_bytes().into())
            .or_insert(next);
        if child == next {
            trie.push((Node::default(), Vec::new()));
        }
        at = child;
    }
    let own = &mut trie[at].1;
    if own.last() != Some(&index) {
        own.push(index);
    }
}

impl Regexes {
    fn new(patterns: &[(usize, &Pattern)]) -> Result<Option<Self>, PatternError> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let in_order: Vec<&Pattern> = patterns.iter().map(|(_, pattern)| *pattern).collect();
        let all = all_at_once(&in_order)?;
        let places = (0..all.pattern_len()).map(PatternID::new_unchecked);
        let routes = patterns
            .iter()
            .zip(places)
            .map(|((index, pattern), place)| (*index, ((*pattern).clone(), place)))
            .collect();
        Ok(Some(Self { all, routes }))
    }
}

/// One path being looked up. An expression runs only when its route is next in line.
pub(super) struct Lookup<'a> {
    exact: Cursor<'a>,
    prefix: Cursor<'a>,
    regexes: Option<&'a Regexes>,
    path: &'a str,
    asked: u32,
    matched: Option<PatternSet>,
}

thread_local! {
    /// The answer of the automaton, kept between requests so that none allocates it.
    static MATCHED: Cell<Option<PatternSet>> = const { Cell::new(None) };
}

impl Lookup<'_> {
    /// The routes of this word that the path does not rule out; those with a regular expression may still be.
    pub(super) fn word(&mut self, word: u32) -> u64 {
        self.exact.word(word) | self.prefix.word(word)
    }

    /// Whether the path really is one of this route's, where a regular expression has to say so.
    pub(super) fn confirms(&mut self, index: usize) -> bool {
        let Some(regexes) = self.regexes else { return true };
        let Some((pattern, place)) = regexes.routes.get(&index) else {
            return true;
        };
        self.asked += 1;
        if self.asked <= ALONE {
            return pattern.matches(self.path.as_bytes());
        }
        let matched = self.matched.get_or_insert_with(|| {
            let wanted = regexes.all.pattern_len();
            let kept = MATCHED.take().filter(|set| set.capacity() >= wanted);
            let mut set = kept.unwrap_or_else(|| PatternSet::new(wanted));
            set.clear();
            regexes
                .all
                .which_overlapping_matches(&Input::new(self.path), &mut set);
            set
        });
        matched.contains(*place)
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        if let Some(set) = self.matched.take() {
            MATCHED.set(Some(set));
        }
    }
}

/// A fast hash for tables whose keys come from the configuration only: a client can look up, never insert, so it
/// cannot choose collisions worth having.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quick;

/// See [`Quick`].
pub(super) struct QuickHasher(u64);

impl BuildHasher for Quick {
    type Hasher = QuickHasher;
    fn build_hasher(&self) -> QuickHasher {
        QuickHasher(0)
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= xxhash_rust::xxh3::xxh3_64(bytes);
    }
    fn write_usize(&mut self, number: usize) {
        // The length that a slice hashes before its bytes, or a whole key.
        self.0 = (self.0 ^ number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_made_of_whole_segments() {
        let api = PathMatch::prefix(["/api/"]).unwrap();
        for inside in ["/api", "/api/", "/api/x", "/api//x"] {
            assert!(api.matches(inside), "{inside}");
        }
        for outside in ["/apix", "/", "/Api", "api", "*", ""] {
            assert!(!api.matches(outside), "{outside}");
        }
        assert!(PathMatch::prefix(["/"]).unwrap().matches("/anything"));
    }

    #[test]
    fn the_longest_prefix_is_the_one_that_was_matched() {
        let nested = PathMatch::prefix(["/a", "/a/b", "/c"]).unwrap();
        assert_eq!(nested.matched_prefix("/a/b/c"), Some("/a/b"));
        assert_eq!(nested.matched_prefix("/a/bc"), Some("/a"));
        assert_eq!(nested.matched_prefix("/d"), None);
        assert_eq!(PathMatch::prefix(["/"]).unwrap().matched_prefix("/d"), Some(""));
    }

    #[test]
    fn a_path_that_could_never_match_is_refused() {
        assert_eq!(PathMatch::exact(["api"]), Err(PathMatchError::NoSlash));
        assert_eq!(PathMatch::prefix(["/api?x=1"]), Err(PathMatchError::Query));
    }
}
