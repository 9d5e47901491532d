//! YAML text to a small tree in which every key and value knows its place; the only file that knows the YAML parser.
//!
//! The parser is `granit-parser`. Its events carry byte ranges, the raw style of
//! a scalar and unresolved aliases, which a serde data model cannot carry: `5` must be reported as written, `"off"` and
//! `off` differ, and a bare `*.example.com` is an alias only to the parser. Nothing is typed here: `1.3`, `no` and `5s`
//! are all text, as in YAML 1.2's failsafe schema, and lowering decides what was meant.
//!
//! Invariants: the tree has at most [`MAX_NODES`] nodes after aliases are expanded and at most [`MAX_DEPTH`] levels, so
//! arbitrary input costs bounded time and memory.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::diagnostic::{Diagnostic, Diagnostics, FileId, Source, Sources, Span};

/// Bytes a file may have.
pub const MAX_BYTES: usize = 10 * 1024 * 1024;
/// Nodes a tree may have, aliases expanded.
pub const MAX_NODES: usize = 1_000_000;
/// Levels of nesting; the schema needs eight.
pub const MAX_DEPTH: usize = 64;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// The exact token, or the whole collection.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing at all after a key or a dash.
    Empty,
    /// Any text, number, word or quoted string.
    Scalar(Scalar),
    /// A list.
    List(Rc<[Node]>),
    /// A map; keys in the order written, duplicates kept for the reader to report.
    Map(Rc<[(Key, Node)]>),
}

/// A scalar as written.
#[derive(Clone, Debug)]
pub struct Scalar {
    /// The text with quotes and escapes resolved.
    pub text: Rc<str>,
    /// How it was written.
    pub style: Style,
}

/// How a scalar was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Bare.
    Plain,
    /// `'…'`
    Single,
    /// `"…"`
    Double,
    /// `|` or `>`.
    Block,
}

/// A key of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// Its text.
    pub name: Rc<str>,
    /// Its place.
    pub span: Span,
}

impl Node {
    /// A node for the text of a default; understands a word, `{}` and a flat `[a, b]`.
    #[must_use]
    pub fn of_default(text: &str, span: Span) -> Self {
        let kind = if text == "{}" {
            Kind::Map(Rc::from([]))
        } else if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let items = inner.split(',').map(str::trim).filter(|t| !t.is_empty());
            Kind::List(items.map(|item| Self::scalar(item, span)).collect())
        } else {
            return Self::scalar(text, span);
        };
        Self { span, kind }
    }

    /// A bare scalar.
    #[must_use]
    pub fn scalar(text: &str, span: Span) -> Self {
        Self {
            span,
            kind: Kind::Scalar(Scalar {
                text: text.into(),
                style: Style::Plain,
            }),
        }
    }

    /// The text of a bare scalar; quoted ones are never words.
    #[must_use]
    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(scalar) if scalar.style == Style::Plain => Some(&scalar.text),
            _ => None,
        }
    }

    /// What the user wrote, in words.
    #[must_use]
    pub fn noun(&self) -> &'static str {
        match &self.kind {
            Kind::Empty => "nothing",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a block of keys",
            Kind::Scalar(scalar) => match (scalar.style, &*scalar.text) {
                (Style::Plain, "true" | "false") => "true or false",
                (Style::Plain, text) if text.parse::<f64>().is_ok() => "a number",
                _ => "text",
            },
        }
    }
}

/// Parses one file. Problems of YAML itself are pushed; `None` when there is no tree to go on with.
pub fn parse(file: FileId, out: &mut Diagnostics) -> Option<Node> {
    let source = out.sources.get(file)?.clone();
    let options = granit_parser::options! {
        emit_unresolved_aliases: true,
        emit_comments: false,
        disallow_directives: true,
        strict_indentation: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder {
        file,
        source: &source,
        out,
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        documents: 0,
        root: None,
    };
    for event in Parser::new_from_str_with_options(&source.text, options) {
        match event {
            Ok((event, span)) => {
                let range = span.byte_range().unwrap_or(0..0);
                let at = Span::new(file, range.start, range.end);
                if let Some(tag) = span.tag_span().and_then(|tag| tag.byte_range()) {
                    let at = Span::new(file, tag.start, tag.end);
                    let tag = builder.out.sources.slice(at).to_owned();
                    builder.out.push(
                        Diagnostic::error("E0108", format!("YAML tags such as `{tag}` are not supported"))
                            .at(at, "remove it; quote the value if it is text"),
                    );
                }
                builder.take(event, at)?;
            }
            Err(error) => {
                let problem = explain(&source, file, &error);
                builder.out.push(problem);
                return None;
            }
        }
    }
    builder.root
}

/// A file that is no configuration, as plain values: `name` is what people know it by.
///
/// Bare words are null, true, false and numbers where they are written as JSON writes them; everything else is text.
///
/// # Errors
/// What is wrong first, and where.
pub fn values(name: &str, text: &str) -> Result<serde_json::Value, String> {
    let mut found = Diagnostics::new(Sources::default());
    let file = found.sources.add(name, None, text.to_owned());
    let node = parse(file, &mut found);
    let value = node.map(|node| value(&node, &mut found));
    let problems = found.sorted();
    let Some(problem) = problems.iter().find(|problem| problem.is_error()) else {
        return Ok(value.unwrap_or(serde_json::Value::Null));
    };
    let place = found.sources.position(problem.span());
    Err(match place {
        Some(place) => format!(
            "line {}, column {}: {}",
            place.line, place.column, problem.message
        ),
        None => problem.message.clone(),
    })
}

fn value(node: &Node, found: &mut Diagnostics) -> serde_json::Value {
    use serde_json::Value;
    match &node.kind {
        Kind::Empty => Value::Null,
        Kind::List(items) => items.iter().map(|item| value(item, found)).collect(),
        Kind::Map(entries) => {
            let mut map = serde_json::Map::new();
            for (key, held) in entries.iter() {
                let held = value(held, found);
                if map.insert(key.name.to_string(), held).is_some() {
                    let message = format!("`{}` stands here a second time", key.name);
                    found.push(Diagnostic::error("E0201", message).at(key.span, "again"));
                }
            }
            Value::Object(map)
        }
        Kind::Scalar(scalar) => match (scalar.style, &*scalar.text) {
            (Style::Plain, "" | "null" | "~") => Value::Null,
            (Style::Plain, text) => match serde_json::from_str::<Value>(text) {
                // `01` and `1e3` are what people write who mean text.
                Ok(Value::Bool(is)) => Value::Bool(is),
                Ok(Value::Number(number)) if number.to_string().as_str() == text => Value::Number(number),
                Ok(_) | Err(_) => Value::String(text.to_owned()),
            },
            (_, text) => Value::String(text.to_owned()),
        },
    }
}

/// The entries of a map so far, and the key whose value comes next.
type OpenMap = (Vec<(Key, Node)>, Option<Key>);

/// A collection whose end has not come yet.
struct Open {
    start: Span,
    anchor: usize,
    list: Vec<Node>,
    map: Option<OpenMap>,
}

struct Builder<'a> {
    file: FileId,
    source: &'a Source,
    out: &'a mut Diagnostics,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    /// Takes one event; `None` ends the work (the reason has been pushed).
    fn take(&mut self, event: Event<'_>, at: Span) -> Option<()> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.out.push(
                        Diagnostic::error(
                            "E0108",
                            "a second YAML document starts here; one file is one document",
                        )
                        .at(
                            at,
                            "remove the `---` line, or move this part to its own file and `include` it",
                        ),
                    );
                    return None;
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::SingleQuoted => Style::Single,
                    ScalarStyle::DoubleQuoted => Style::Double,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                    _ => Style::Plain,
                };
                // The parser says `~` where nothing stands.
                let kind = if at.start() == at.end() && style == Style::Plain {
                    Kind::Empty
                } else {
                    Kind::Scalar(Scalar {
                        text: text.as_ref().into(),
                        style,
                    })
                };
                self.place(Node { span: at, kind }, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => self.begin(at, anchor, None)?,
            Event::MappingStart(_, anchor, _) => self.begin(at, anchor, Some((Vec::new(), None)))?,
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop()?;
                let end = at.end().max(open.start.end());
                let span = Span::new(self.file, open.start.start(), end);
                let kind = match open.map {
                    Some((entries, _)) => Kind::Map(self.merge(entries)?.into()),
                    None => Kind::List(open.list.into()),
                };
                self.place(Node { span, kind }, open.anchor)?;
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    let text = self.source.text.get(at.start()..at.end()).unwrap_or("");
                    self.out.push(
                        Diagnostic::error("E0109", format!("`{text}` refers to the block that it stands in"))
                            .at(at, "an alias can only repeat what is complete before it"),
                    );
                    return None;
                };
                self.nodes += count(&node, MAX_NODES);
                self.place(node, 0)?;
            }
            Event::UnresolvedAlias(name) => {
                // Go on with what was probably meant, so that the rest of the file is still checked.
                self.out.push(bare_star(at, &name));
                let text = format!("*{name}");
                let kind = Kind::Scalar(Scalar {
                    text: text.as_str().into(),
                    style: Style::Single,
                });
                self.place(Node { span: at, kind }, 0)?;
            }
            _ => {}
        }
        Some(())
    }

    fn begin(&mut self, start: Span, anchor: usize, map: Option<OpenMap>) -> Option<()> {
        if self.open.len() >= MAX_DEPTH {
            self.out.push(
                Diagnostic::error("E0109", format!("nested deeper than {MAX_DEPTH} levels")).at(start, ""),
            );
            return None;
        }
        self.open.push(Open {
            start,
            anchor,
            list: Vec::new(),
            map,
        });
        Some(())
    }

    fn place(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.out.push(
                Diagnostic::error(
                    "E0109",
                    format!("more than {MAX_NODES} values after aliases are expanded"),
                )
                .at(node.span, "here the limit is passed"),
            );
            return None;
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        let Some((entries, pending)) = &mut open.map else {
            open.list.push(node);
            return Some(());
        };
        match pending.take() {
            Some(key) => entries.push((key, node)),
            None => match node.kind {
                Kind::Scalar(scalar) => {
                    *pending = Some(Key {
                        name: scalar.text,
                        span: node.span,
                    });
                }
                Kind::Empty => {
                    *pending = Some(Key {
                        name: "".into(),
                        span: node.span,
                    });
                }
                Kind::List(_) | Kind::Map(_) => {
                    self.out
                        .push(Diagnostic::error("E0203", "a key must be a word").at(
                            first_line(self.source, node.span),
                            "quote it: a bare `{` or `[` starts a block",
                        ));
                    *pending = Some(Key {
                        name: "".into(),
                        span: node.span,
                    });
                }
            },
        }
        Some(())
    }

    /// Resolves `<<`: what the merged maps have and this one has not.
    fn merge(&mut self, entries: Vec<(Key, Node)>) -> Option<Vec<(Key, Node)>> {
        if !entries.iter().any(|(key, _)| &*key.name == "<<") {
            return Some(entries);
        }
        let (merges, mut own): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| &*key.name == "<<");
        for (key, node) in merges {
            let maps: Vec<Node> = match &node.kind {
                Kind::List(list) => list.to_vec(),
                _ => vec![node],
            };
            for map in maps {
                let Kind::Map(more) = &map.kind else {
                    self.out.push(
                        Diagnostic::error("E0203", "`<<` wants a block of keys")
                            .at(key.span, "write `<<: *name`"),
                    );
                    continue;
                };
                self.nodes += more.len();
                if self.nodes > MAX_NODES {
                    self.out.push(
                        Diagnostic::error("E0109", format!("more than {MAX_NODES} values after merging"))
                            .at(key.span, "here the limit is passed"),
                    );
                    return None;
                }
                let known: std::collections::HashSet<Rc<str>> =
                    own.iter().map(|(key, _)| key.name.clone()).collect();
                own.extend(more.iter().filter(|(key, _)| !known.contains(&key.name)).cloned());
            }
        }
        Some(own)
    }
}

fn count(node: &Node, limit: usize) -> usize {
    match &node.kind {
        Kind::Empty | Kind::Scalar(_) => 1,
        Kind::List(list) => list
            .iter()
            .fold(1, |n, node| if n > limit { n } else { n + count(node, limit) }),
        Kind::Map(map) => map.iter().fold(
            1,
            |n, (_, node)| if n > limit { n } else { n + count(node, limit) },
        ),
    }
}

/// The first line of a longer place, without what follows it.
fn first_line(source: &Source, span: Span) -> Span {
    let text = source.text.get(span.start()..span.end()).unwrap_or("");
    span.part(0, text.lines().next().map_or(0, str::len).max(1))
}

fn bare_star(at: Span, name: &str) -> Diagnostic {
    if name.contains(['.', '/', '-']) || name.is_empty() {
        Diagnostic::error("E0104", format!("`*{name}` must be quoted"))
            .at(at, format!("write \"*{name}\" (a bare * starts a YAML alias)"))
    } else {
        Diagnostic::error("E0104", format!("the alias `*{name}` has no anchor"))
            .at(at, format!("define `&{name}` above, or quote it: \"*{name}\""))
    }
}

/// Puts an error of the parser into our words, at the place where the hand must go.
fn explain(source: &Source, file: FileId, error: &ScanError) -> Diagnostic {
    let offset = source.floor(error.marker().byte_offset().unwrap_or(source.text.len()));
    let rest = source.text.get(offset..).unwrap_or("");
    let here = Span::new(
        file,
        offset,
        offset + rest.chars().next().map_or(0, char::len_utf8),
    );
    let value = Value::around(source, file, offset);
    match error.kind() {
        ErrorKind::TabInIndentation
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabNotAllowed
        | ErrorKind::TabInPlainScalar
        | ErrorKind::TabAtBlockScalarStart => tab(source, file, offset),
        _ if indented_with_tab(source, offset).is_some() => tab(source, file, offset),
        ErrorKind::UnclosedFlowCollection { open } => unclosed(here, *open, source, file),
        ErrorKind::UnexpectedEofFlowSequence => unclosed(here, '[', source, file),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            unclosed(here, '{', source, file)
        }
        ErrorKind::UnclosedQuotedScalar => {
            let quote = rest
                .chars()
                .next()
                .filter(|c| matches!(c, '"' | '\''))
                .unwrap_or('"');
            Diagnostic::error("E0103", format!("the quote `{quote}` is never closed"))
                .at(here, "opened here")
                .help(format!("close it with `{quote}` at the end of the value"))
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            Diagnostic::error("E0103", format!("`{close}` does not close `{open}`"))
                .at(here, format!("`{open}` is closed by `{}`", closing(*open)))
        }
        ErrorKind::RecursionLimitExceeded => {
            Diagnostic::error("E0109", format!("nested deeper than {MAX_DEPTH} levels")).at(here, "")
        }
        ErrorKind::BomInsideDocument => {
            Diagnostic::error("E0109", "a byte-order mark inside the file").at(here, "remove it")
        }
        ErrorKind::DirectiveDisallowed | ErrorKind::MissingDirectiveName | ErrorKind::UndeclaredTagHandle => {
            match value.as_ref().filter(|v| v.key.is_some()) {
                Some(value) => value.quote(),
                None => Diagnostic::error("E0108", "YAML directives and custom tags are not supported")
                    .at(here, "remove it"),
            }
        }
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidUnicodeEscape => Diagnostic::error("E0103", "no such escape in a \"…\" text")
            .at(here, "in '…' a backslash is only a backslash")
            .help("write a backslash as `\\\\`, or use single quotes"),
        ErrorKind::MissingAnchorOrAliasName => match value {
            Some(value) => value.bare_star(),
            None => Diagnostic::error("E0104", "`*` must be quoted").at(here, "a bare * starts a YAML alias"),
        },
        kind => {
            if let Some(value) = value.filter(Value::needs_quotes) {
                return value.quote();
            }
            let found = open_bracket(source, file, offset).or_else(|| misaligned(source, file, offset));
            found.unwrap_or_else(|| {
                let what = plain_words(kind);
                Diagnostic::error("E0101", format!("this is not YAML: {what}")).at(here, "")
            })
        }
    }
}

fn plain_words(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
            "a `:` where none can stand (quote values that contain `: `)".to_owned()
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => "a key without `:`".to_owned(),
        ErrorKind::BlockEntryInFlowCollection => "a `- ` inside `[ ]`".to_owned(),
        ErrorKind::BlockSequenceEntryNotAllowed => "a `- ` where no list can start".to_owned(),
        ErrorKind::ExpectedFlowMappingSeparator => "a `,` or `}` is missing before this".to_owned(),
        ErrorKind::ExpectedFlowSequenceSeparator => "a `,` or `]` is missing before this".to_owned(),
        ErrorKind::ExpectedNodeContent => "a value is missing".to_owned(),
        other => other.to_string(),
    }
}

const fn closing(open: char) -> char {
    if open == '[' { ']' } else { '}' }
}

fn unclosed(here: Span, open: char, source: &Source, file: FileId) -> Diagnostic {
    // The parser may speak of the end of the file; the hand must go to the bracket.
    let at_bracket = source
        .text
        .get(here.start()..)
        .is_some_and(|rest| rest.starts_with(open));
    let at = if at_bracket {
        here
    } else {
        last_unclosed(source, file, open).unwrap_or(here)
    };
    Diagnostic::error("E0103", format!("`{open}` is never closed"))
        .at(at, "opened here")
        .help(format!("close it with `{}`", closing(open)))
}

/// The last bracket of a kind that has no partner; quotes and comments are taken into account roughly.
fn last_unclosed(source: &Source, file: FileId, open: char) -> Option<Span> {
    let mut stack = Vec::new();
    for (at, c) in source.text.char_indices() {
        if c == open {
            stack.push(at);
        } else if c == closing(open) {
            stack.pop();
        }
    }
    stack.last().map(|at| Span::new(file, *at, at + 1))
}

fn indented_with_tab(source: &Source, offset: usize) -> Option<usize> {
    let start = source.text.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
    let line = source.text.get(start..)?.lines().next()?;
    let indent = line.len() - line.trim_start().len();
    line.get(..indent)?.find('\t').map(|at| start + at)
}

fn tab(source: &Source, file: FileId, offset: usize) -> Diagnostic {
    let at = indented_with_tab(source, offset)
        .or_else(|| source.text.get(..=offset).and_then(|before| before.rfind('\t')))
        .or_else(|| {
            source
                .text
                .get(offset..)
                .and_then(|rest| rest.find('\t'))
                .map(|at| offset + at)
        })
        .unwrap_or(offset);
    Diagnostic::error("E0102", "a tab in the indentation").at(Span::new(file, at, at + 1), "use spaces")
}

/// A line that starts in a column where none of the lines above it starts.
fn misaligned(source: &Source, file: FileId, offset: usize) -> Option<Diagnostic> {
    let bad = source.position(offset).line;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    // The parser stops at the `:` or at the next line; look at the line itself and the one before it.
    for line in [bad, bad.saturating_sub(1)] {
        let text = source.line(line);
        if line == 0 || !is_content(text) {
            continue;
        }
        let mine = indent(text);
        // The columns in which the blocks that are open here start; `- a: 1` opens two.
        let mut open: Vec<usize> = Vec::new();
        for above in (1..line).rev() {
            let text = source.line(above);
            let dash = indent(text);
            let level = open.last().copied().unwrap_or(usize::MAX);
            if !is_content(text) || dash >= level {
                continue;
            }
            let rest = text.trim_start();
            let content = text.len() - rest.trim_start_matches(['-', ' ']).len();
            if rest.starts_with("- ") && content < level {
                open.push(content);
            }
            open.push(dash);
            if dash == 0 {
                break;
            }
        }
        let nearest = open.iter().copied().min_by_key(|level| level.abs_diff(mine));
        if let Some(sibling) = nearest.filter(|level| *level != mine) {
            // Deeper than the line above is a new block, not a wrong one.
            let start = source.text.len().min(line_start(source, line) + mine);
            let word = text.trim_start();
            let len = word.find([':', ' ']).unwrap_or(word.len()).max(1);
            let message = format!(
                "this line starts in column {}, its siblings in column {}",
                mine + 1,
                sibling + 1
            );
            return Some(Diagnostic::error("E0101", message).at(
                Span::new(file, start, start + len),
                format!("align with column {}", sibling + 1),
            ));
        }
    }
    None
}

/// A bracket that is opened and not closed on the line of an error or shortly above it.
fn open_bracket(source: &Source, file: FileId, offset: usize) -> Option<Diagnostic> {
    let bad = source.position(offset).line;
    for line in (bad.saturating_sub(3).max(1)..=bad).rev() {
        let mut open: Vec<(usize, char)> = Vec::new();
        let mut quote: Option<char> = None;
        let start = line_start(source, line);
        for (at, c) in source.line(line).char_indices() {
            match (quote, c) {
                (Some(q), c) if q == c => quote = None,
                (None, '"' | '\'') => quote = Some(c),
                (None, '#') => break,
                (None, '[' | '{') => open.push((start + at, c)),
                (None, ']' | '}') => drop(open.pop()),
                (Some(_) | None, _) => {}
            }
        }
        if let Some((at, bracket)) = open.first() {
            let here = Span::new(file, *at, at + 1);
            return Some(unclosed(here, *bracket, source, file));
        }
    }
    None
}

fn line_start(source: &Source, line: usize) -> usize {
    source
        .text
        .split_inclusive('\n')
        .take(line - 1)
        .map(str::len)
        .sum()
}

/// The value of the line that the parser stumbled over.
struct Value<'a> {
    key: Option<&'a str>,
    text: &'a str,
    span: Span,
}

impl<'a> Value<'a> {
    fn around(source: &'a Source, file: FileId, offset: usize) -> Option<Self> {
        let start = source.text.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
        let line = source.text.get(start..)?.lines().next()?;
        let content = line.len() - line.trim_start().len();
        let body = line.get(content..)?;
        let (key, skip) = match body.find(": ") {
            Some(at) => (Some(body.get(..at)?.trim_start_matches("- ")), at + 2),
            None if body.starts_with("- ") => (Some(""), 2),
            None => (None, 0),
        };
        let value = body.get(skip..)?;
        let lead = value.len() - value.trim_start().len();
        let text = value.trim_start();
        let text = text.split(" #").next().unwrap_or(text).trim_end();
        if text.is_empty() {
            return None;
        }
        let from = start + content + skip + lead;
        Some(Self {
            key,
            text,
            span: Span::new(file, from, from + text.len()),
        })
    }

    /// Values that look like text to people and like syntax to YAML.
    fn needs_quotes(&self) -> bool {
        let starts = |set: &[char]| self.text.starts_with(set);
        self.key.is_some()
            && (starts(&['@', '`', '%', '*', '&', '!'])
                || (starts(&['[', '{']) && !self.text.ends_with([']', '}', ',', '[', '{'])))
    }

    fn quote(&self) -> Diagnostic {
        let text = self.text;
        let is_address = text.starts_with('[') && text.contains("]:");
        let (code, why) = if is_address {
            ("E0105", "a bare [ starts a list".to_owned())
        } else {
            let first = text.chars().next().unwrap_or(' ');
            ("E0110", format!("a bare {first} means something else in YAML"))
        };
        Diagnostic::error(code, format!("`{text}` must be quoted"))
            .at(self.span, format!("quote it: write \"{text}\" ({why})"))
    }

    fn bare_star(&self) -> Diagnostic {
        bare_star(self.span, self.text.trim_start_matches('*'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::render::{self, Look};
    use crate::config::{Reader, schema, show};

    /// Pieces of which broken configurations are made.
    const PIECES: [&str; 44] = [
        "listeners:",
        "routes:",
        "clusters:",
        "policies:",
        "  web: 127.0.0.1:8080",
        "  - cluster: app",
        "  app:",
        "    ",
        "endpoints: [127.0.0.1:1]",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "'",
        "\"",
        "*a",
        "&a ",
        "<<: ",
        "!tag ",
        "%x",
        "#",
        "---",
        "|",
        ">",
        "${",
        "${A:-b}",
        "$$",
        "off",
        "null",
        "~",
        "5s",
        "match: { path_regex: \"(\" }",
        "timeout: ",
        "retry: ",
        "é",
        "日本",
        "\u{feff}",
        "include: x.yaml",
    ];

    fn survives(bytes: &[u8]) {
        let reader = Reader::new()
            .with_variables([("A", "b")])
            .with_root("/nonexistent");
        let look = Look {
            color: false,
            width: 80,
            hints: true,
        };
        match reader.read_bytes("x.yaml", bytes) {
            Ok(document) => {
                let _text = show::yaml(&document, None, true);
                let _said = render::text(&document.diagnostics, look);
            }
            Err(diagnostics) => {
                assert!(diagnostics.has_errors(), "refused for a reason");
                let said = render::text(&diagnostics, look);
                assert!(!said.is_empty());
                let _json = render::json(&diagnostics);
                let _github = render::github(&diagnostics);
                let _sarif = render::sarif(&diagnostics);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            survives(&bytes);
        }

        #[test]
        fn arbitrary_text_is_answered(text in "\\PC{0,200}") {
            survives(text.as_bytes());
        }

        #[test]
        fn pieces_of_configurations_are_answered(pieces in proptest::collection::vec(0..PIECES.len(), 0..40)) {
            let text: String = pieces.iter().filter_map(|piece| PIECES.get(*piece)).copied().collect();
            survives(text.as_bytes());
        }

        #[test]
        fn a_damaged_configuration_is_answered(at in 0_usize..400, piece in 0..PIECES.len(), cut in 0_usize..30) {
            let good = include_str!("../../config/edge-tls.yaml");
            let at = (at * good.len() / 400).min(good.len());
            let end = (at + cut).min(good.len());
            let piece = PIECES.get(piece).copied().unwrap_or("");
            if let (Some(head), Some(tail)) = (good.get(..at), good.get(end..)) {
                survives(format!("{head}{piece}{tail}").as_bytes());
            }
        }
    }

    #[test]
    fn ten_thousand_routes_are_read() {
        let mut text =
            "listeners: { web: \":8080\" }\nclusters: { app: { endpoints: [127.0.0.1:1] } }\nroutes:\n"
                .to_owned();
        for n in 0..10_000 {
            text.push_str(&format!(
                "  - {{ name: r{n}, match: {{ path_prefix: /r{n} }}, cluster: app, timeout: 3s }}\n"
            ));
        }
        let document = Reader::new()
            .read_bytes("x.yaml", text.as_bytes())
            .expect("valid");
        assert_eq!(document.effective.policies.len(), 10_000);
    }

    #[test]
    fn every_default_is_accepted_by_its_own_parser() {
        for table in crate::config::tables() {
            assert!(!table.rows.is_empty(), "{}", table.name);
        }
        assert!(schema::json_schema().get("$defs").is_some());
    }
}
