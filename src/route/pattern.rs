//! Regular expressions an operator wrote: the whole value must match, and none can grow without bound.
//!
//! Patterns are anchored in their syntax tree, not by pasting `^(?:` and `)$` around the text, which a comment in
//! `(?x)` mode or an unbalanced group would escape from. The engine has no backtracking: matching is linear in the
//! value; what must be bounded is the automaton, which the limits below do.

use regex_automata::meta;
use regex_syntax::hir::{Hir, HirKind, Look};

/// Bytes that the automaton of one pattern may take.
const ONE: usize = 1 << 20;

/// A regular expression that must match a whole value.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: String,
    segments: Box<str>,
    hir: Hir,
    regex: meta::Regex,
}

/// Why a pattern is not accepted; the text is the engine's, with its own caret under the offending place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The syntax is wrong, or asks for something that cannot be matched in linear time.
    #[error("{0}")]
    Syntax(String),
    /// The automaton would be larger than allowed.
    #[error("too large once compiled: {0}")]
    TooLarge(String),
}

impl Pattern {
    /// Compiles one pattern in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// When the syntax is wrong or the automaton too large.
    pub fn new(source: &str) -> Result<Self, PatternError> {
        let hir = regex_syntax::parse(source).map_err(|error| PatternError::Syntax(error.to_string()))?;
        let hir = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let regex = build(&[&hir], ONE, meta::Config::new())?;
        Ok(Self {
            source: source.to_owned(),
            segments: first_segments(&hir),
            hir,
            regex,
        })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// The path, by whole segments and without slash at the end, below which every match lies; often empty.
    pub(super) fn first_segments(&self) -> &str {
        &self.segments
    }

    /// Whether the whole value matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

/// The whole segments of a path that an anchored expression starts with.
fn first_segments(hir: &Hir) -> Box<str> {
    let parts = match hir.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(hir),
    };
    let mut literal: Vec<u8> = Vec::new();
    for part in parts {
        match part.kind() {
            HirKind::Look(_) => {}
            HirKind::Literal(bytes) => literal.extend_from_slice(&bytes.0),
            _ => break,
        }
    }
    // What follows the last slash may go on in the path; a beginning without slash is no path of the trie.
    let whole = memchr::memrchr(b'/', &literal).map_or(&[][..], |slash| &literal[..slash]);
    match std::str::from_utf8(whole) {
        Ok(text) if text.starts_with('/') => text.into(),
        _ => "".into(),
    }
}

/// One automaton for all patterns: a single pass over a path tells which of them match it.
pub(super) fn all_at_once(patterns: &[&Pattern]) -> Result<meta::Regex, PatternError> {
    let hirs: Vec<&Hir> = patterns.iter().map(|pattern| &pattern.hir).collect();
    // MatchKind::All: every pattern is reported, not only the first alternative.
    let config = meta::Config::new()
        .match_kind(regex_automata::MatchKind::All)
        .which_captures(regex_automata::nfa::thompson::WhichCaptures::None);
    build(&hirs, 16 * ONE, config)
}

fn build(hirs: &[&Hir], nfa_limit: usize, config: meta::Config) -> Result<meta::Regex, PatternError> {
    meta::Builder::new()
        .configure(
            config
                .nfa_size_limit(Some(nfa_limit))
                .hybrid_cache_capacity(2 * ONE)
                .utf8_empty(false),
        )
        .build_many_from_hir(hirs)
        .map_err(|error| PatternError::TooLarge(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_value_must_match() {
        let pattern = Pattern::new("a|ab").unwrap();
        assert!(pattern.matches(b"a"));
        assert!(pattern.matches(b"ab"));
        assert!(!pattern.matches(b"abc"));
        assert!(!pattern.matches(b"xa"));
    }

    #[test]
    fn a_comment_cannot_escape_the_anchors() {
        let pattern = Pattern::new("(?x) a b # c").unwrap();
        assert!(pattern.matches(b"ab"));
        assert!(!pattern.matches(b"abc"));
        assert!(matches!(Pattern::new("a)|(b"), Err(PatternError::Syntax(_))));
        let lines = Pattern::new("(?m)^a$").unwrap();
        assert!(!lines.matches(b"a\nb"));
    }

    #[test]
    fn a_pattern_is_filed_under_segments_that_every_match_has() {
        let filed = |source| Pattern::new(source).unwrap().first_segments().to_owned();
        assert_eq!(filed("/export/[0-9]{4}/.*"), "/export");
        assert_eq!(filed("^/a/b/c"), "/a/b");
        assert_eq!(filed("/a/bc*"), "/a");
        for none in [
            "/a",
            "/a/?",
            "(?i)/a/b/c",
            "/x/|/y/",
            ".*/b/",
            "a/b/",
            "",
            "(/a)?/b/",
            "/?a/",
        ] {
            assert_eq!(filed(none), "", "{none}");
        }
    }

    #[test]
    fn a_pattern_that_would_fill_the_memory_is_refused() {
        assert!(matches!(
            Pattern::new(r"(\w{1000}){1000}"),
            Err(PatternError::TooLarge(_))
        ));
        assert!(matches!(Pattern::new("(?=a)"), Err(PatternError::Syntax(_))));
    }
}
