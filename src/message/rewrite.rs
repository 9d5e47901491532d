//! Rewrites: the path and the host that the service sees, where they differ from what the client asked.
//!
//! Only the path is rewritten; the query goes along untouched, unless the substitution of an expression brings one of
//! its own, which is then put in front. The result of an expression is normalised like the path of a request, so that
//! no capture can build what was refused at the door. `host` is a literal or names the endpoint, which is known only
//! when one has been picked, so it is filled in per attempt.

use regex_automata::meta;
use regex_syntax::hir::{Hir, Look};

use super::path::{self, PathError};
use super::template::{Template, UnknownField, Values};

/// What a route makes of the target.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    path: Option<PathRewrite>,
    host: Option<Template>,
}

/// What a route makes of the path.
#[derive(Clone, Debug)]
pub struct PathRewrite(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Prefix(String),
    Whole(String),
    Regex {
        regex: meta::Regex,
        substitution: Box<[Piece]>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

/// Why a rewrite is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// A path that is none.
    #[error("not a path: {0}")]
    Path(#[from] PathError),
    /// The pattern is wrong or too large; with the engine's own text.
    #[error("{0}")]
    Pattern(String),
    /// `$7` or `${name}` where the pattern has no such group.
    #[error("the pattern has no group {0:?}")]
    Group(String),
    /// A dollar sign with nothing that it could stand for.
    #[error("`$` stands before a number or a name in braces; write `$$` for a dollar sign")]
    Dollar,
    /// The host names an unknown field.
    #[error(transparent)]
    Field(#[from] UnknownField),
}

impl Rewrite {
    /// A rewrite of path, host or both.
    ///
    /// # Errors
    /// When the host is not a template.
    pub fn new(path: Option<PathRewrite>, host: Option<&str>) -> Result<Self, RewriteError> {
        Ok(Self {
            path,
            host: host.map(Template::compile).transpose()?,
        })
    }

    /// The new target (path and query), or `None` where the path stays as it is. `matched_prefix` is the prefix by
    /// which the route was found.
    ///
    /// # Errors
    /// When an expression makes something of this path that is none; the request is to be answered with 400.
    pub fn target(
        &self,
        path: &str,
        query: Option<&str>,
        matched_prefix: Option<&str>,
    ) -> Result<Option<String>, PathError> {
        let Some(rewrite) = &self.path else {
            return Ok(None);
        };
        let mut target = match &rewrite.0 {
            Kind::Prefix(new) => replace_prefix(path, matched_prefix.unwrap_or_default(), new),
            Kind::Whole(new) => new.clone(),
            Kind::Regex { regex, substitution } => match substitute(regex, substitution, path) {
                None => return Ok(None),
                Some(text) => checked(&text)?,
            },
        };
        append_query(&mut target, query);
        Ok(Some(target))
    }

    /// The host that the service sees, or `None` for the client's. A host made of nothing but what this request does
    /// not have is none either: no service takes an empty one.
    pub fn host(&self, values: &Values<'_>) -> Option<String> {
        let host = self.host.as_ref()?.render(values);
        (!host.is_empty()).then_some(host)
    }
}

impl PathRewrite {
    /// Puts something else in the place of the matched prefix.
    ///
    /// # Errors
    /// When it is not a path.
    pub fn prefix(new: &str) -> Result<Self, RewriteError> {
        Ok(Self(Kind::Prefix(path::normalise(new)?.into_owned())))
    }

    /// Puts this in the place of the whole path; it may bring a query.
    ///
    /// # Errors
    /// When it is not a path.
    pub fn whole(new: &str) -> Result<Self, RewriteError> {
        Ok(Self(Kind::Whole(checked(new)?)))
    }

    /// Puts a substitution (`$1`, `${name}`, `$$`) in the place of a path that matches a pattern as a whole.
    ///
    /// # Errors
    /// When the pattern does not compile or the substitution names a group that it does not have.
    pub fn regex(pattern: &str, substitution: &str) -> Result<Self, RewriteError> {
        let hir = regex_syntax::parse(pattern).map_err(|error| RewriteError::Pattern(error.to_string()))?;
        // Anchored in the tree: text pasted around a pattern can be escaped from.
        let hir = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let regex = meta::Builder::new()
            .configure(
                meta::Config::new()
                    .nfa_size_limit(Some(1 << 20))
                    .hybrid_cache_capacity(2 << 20),
            )
            .build_from_hir(&hir)
            .map_err(|error| RewriteError::Pattern(format!("too large once compiled: {error}")))?;
        let substitution = cut(substitution, &regex)?.into();
        Ok(Self(Kind::Regex { regex, substitution }))
    }
}

/// Cuts a substitution into text and groups.
fn cut(substitution: &str, regex: &meta::Regex) -> Result<Vec<Piece>, RewriteError> {
    let groups = regex.group_info();
    let first = regex_automata::PatternID::ZERO;
    let group = |name: &str| {
        let index = match name.parse::<usize>() {
            Ok(number) => (number < groups.group_len(first)).then_some(number),
            Err(_) => groups.to_index(first, name),
        };
        index
            .map(Piece::Group)
            .ok_or_else(|| RewriteError::Group(name.to_owned()))
    };
    let mut pieces = Vec::new();
    let mut rest = substitution;
    while let Some((text, after)) = rest.split_once('$') {
        pieces.push(Piece::Text(text.to_owned()));
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        if let Some(after) = after.strip_prefix('$') {
            pieces.push(Piece::Text("$".to_owned()));
            rest = after;
        } else if digits > 0 {
            pieces.push(group(&after[..digits])?);
            rest = &after[digits..];
        } else if let Some((name, after)) = after.strip_prefix('{').and_then(|braced| braced.split_once('}'))
        {
            pieces.push(group(name)?);
            rest = after;
        } else {
            return Err(RewriteError::Dollar);
        }
    }
    pieces.push(Piece::Text(rest.to_owned()));
    pieces.retain(|piece| *piece != Piece::Text(String::new()));
    Ok(pieces)
}

fn substitute(regex: &meta::Regex, substitution: &[Piece], path: &str) -> Option<String> {
    let mut captures = regex.create_captures();
    regex.captures(path, &mut captures);
    captures.is_match().then(|| {
        substitution
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Group(index) => captures.get_group(*index).map_or("", |span| &path[span.range()]),
            })
            .collect()
    })
}

/// A path with or without query, normalised.
fn checked(target: &str) -> Result<String, PathError> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    query.map_or(Ok(()), path::check_query)?;
    let mut out = path::normalise(path)?.into_owned();
    append_query(&mut out, query);
    Ok(out)
}

/// Appends the client's query, behind one that is already there.
pub(super) fn append_query(target: &mut String, query: Option<&str>) {
    let Some(query) = query else { return };
    match target.find('?') {
        None => target.push('?'),
        Some(at) if at + 1 < target.len() && !query.is_empty() => target.push('&'),
        Some(_) => {}
    }
    target.push_str(query);
}

/// Puts `new` in the place of a matched prefix, so that exactly one slash stands between it and the rest.
pub(super) fn replace_prefix(path: &str, matched: &str, new: &str) -> String {
    let rest = path.strip_prefix(matched).unwrap_or(path);
    if rest.is_empty() {
        return new.to_owned();
    }
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    format!("{}/{rest}", new.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::values;
    use super::*;

    fn with(path: Result<PathRewrite, RewriteError>) -> Rewrite {
        Rewrite::new(Some(path.unwrap()), None).unwrap()
    }

    #[test]
    fn a_prefix_is_replaced_with_one_slash_between() {
        let cases = [
            ("/search", "/", "/search", "/"),
            ("/search", "/", "/search/", "/"),
            ("/search", "/", "/search/x/y", "/x/y"),
            ("/v1", "/v2", "/v1", "/v2"),
            ("/v1", "/v2", "/v1/", "/v2/"),
            ("/v1", "/v2/", "/v1", "/v2/"),
            ("/v1", "/v2/", "/v1/a", "/v2/a"),
            ("", "/app", "/a", "/app/a"),
            ("", "/app", "/", "/app/"),
        ];
        for (matched, new, path, expected) in cases {
            let rewrite = with(PathRewrite::prefix(new));
            let target = rewrite.target(path, Some("q=a"), Some(matched)).unwrap().unwrap();
            assert_eq!(target, format!("{expected}?q=a"), "{matched} -> {new}: {path}");
        }
    }

    #[test]
    fn an_expression_takes_the_whole_path_or_leaves_it() {
        let rewrite = with(PathRewrite::regex(
            "/export/([0-9]{4})/(?<rest>.*)",
            "/reports/$1?file=${rest}",
        ));
        let target = |path, query| rewrite.target(path, query, None).unwrap();
        assert_eq!(
            target("/export/2024/a.csv", None).unwrap(),
            "/reports/2024?file=a.csv"
        );
        assert_eq!(
            target("/export/2024/a", Some("x=1")).unwrap(),
            "/reports/2024?file=a&x=1"
        );
        assert_eq!(target("/x/export/2024/a", None), None);
        let dollar = with(PathRewrite::regex("/(.*)", "/$$$1"));
        assert_eq!(dollar.target("/a", Some(""), None).unwrap().unwrap(), "/$a?");
    }

    #[test]
    fn no_capture_builds_what_was_refused_at_the_door() {
        let rewrite = with(PathRewrite::regex("/a/(.*)", "/b/.$1"));
        assert_eq!(
            rewrite.target("/a/./admin", None, None).unwrap().unwrap(),
            "/admin"
        );
        let cut = with(PathRewrite::regex("/a(.*)", "/b%$1"));
        assert_eq!(cut.target("/a00", None, None), Err(PathError::Nul));
        let relative = with(PathRewrite::regex("/(.*)", "$1"));
        assert_eq!(relative.target("/a", None, None), Err(PathError::NoSlash));
    }

    #[test]
    fn a_whole_path_keeps_the_query_of_the_client() {
        let rewrite = with(PathRewrite::whole("/fixed?a=1"));
        assert_eq!(
            rewrite.target("/x", Some("b=2"), None).unwrap().unwrap(),
            "/fixed?a=1&b=2"
        );
        assert_eq!(rewrite.target("/x", None, None).unwrap().unwrap(), "/fixed?a=1");
        assert_eq!(Rewrite::default().target("/x", Some("b"), None), Ok(None));
    }

    #[test]
    fn a_host_may_name_the_endpoint() {
        let rewrite = Rewrite::new(None, Some("{endpoint}")).unwrap();
        assert_eq!(rewrite.host(&values()).unwrap(), "10.0.0.11:8080");
        assert_eq!(Rewrite::default().host(&values()), None);
    }

    #[test]
    fn a_rewrite_that_cannot_work_is_refused() {
        let refused = |path: Result<PathRewrite, RewriteError>| path.unwrap_err();
        assert_eq!(
            refused(PathRewrite::prefix("v2")),
            RewriteError::Path(PathError::NoSlash)
        );
        assert!(matches!(
            refused(PathRewrite::regex("(", "/")),
            RewriteError::Pattern(_)
        ));
        assert_eq!(
            refused(PathRewrite::regex("/(a)", "/$2")),
            RewriteError::Group("2".into())
        );
        assert_eq!(
            refused(PathRewrite::regex("/(a)", "/${b}")),
            RewriteError::Group("b".into())
        );
        assert_eq!(refused(PathRewrite::regex("/(a)", "/$b")), RewriteError::Dollar);
        assert!(matches!(
            Rewrite::new(None, Some("{nobody}")),
            Err(RewriteError::Field(_))
        ));
    }
}
