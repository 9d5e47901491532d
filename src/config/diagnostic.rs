//! What is wrong with a configuration, and where: the one type that every checker pushes and every output prints.
//!
//! A [`Diagnostic`] carries the exact place of the mistake, a second place where one matters, and at most one help and
//! one note (operator.md 4.8). [`Diagnostics`] collects them together with the texts they point into, so that lowering,
//! semantic checks and `snapshot::compile` all push into the same list and all mistakes are shown at once.
//!
//! Invariant: a [`Span`] either points into a text of [`Sources`], or says that the value is a default.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in one of the files that were read: a byte range, or the mark of a built-in default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    file: u16,
    start: u32,
    end: u32,
}

impl Span {
    /// The place of a value that nobody wrote: a built-in default.
    pub const DEFAULT: Self = Self {
        file: u16::MAX,
        start: 0,
        end: 0,
    };
    /// The place of a value that comes from `profile:`.
    pub const PROFILE: Self = Self {
        file: u16::MAX - 1,
        start: 0,
        end: 0,
    };

    /// The bytes `start..end` of a file.
    #[must_use]
    pub fn new(file: FileId, start: usize, end: usize) -> Self {
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            file: file.0,
            start: clamp(start),
            end: clamp(end.max(start)),
        }
    }

    /// True when the value stands in a file, false for defaults.
    #[must_use]
    pub const fn is_written(self) -> bool {
        self.file < u16::MAX - 1
    }

    /// The file, unless the value is a default.
    #[must_use]
    pub const fn file(self) -> Option<FileId> {
        if self.is_written() {
            Some(FileId(self.file))
        } else {
            None
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> usize {
        self.start as usize
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(self) -> usize {
        self.end as usize
    }

    /// The part `from..to` (in bytes, relative to the start) of this span.
    #[must_use]
    pub fn part(self, from: usize, to: usize) -> Self {
        if !self.is_written() {
            return self;
        }
        Self::new(FileId(self.file), self.start() + from, self.start() + to)
    }

    /// True when `other` lies inside this span.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.file == other.file && self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_written() {
            write!(f, "{}:{}..{}", self.file, self.start, self.end)
        } else if *self == Self::PROFILE {
            f.write_str("profile")
        } else {
            f.write_str("default")
        }
    }
}

/// One file of a configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub(crate) u16);

impl FileId {
    /// The main file.
    pub const MAIN: Self = Self(0);
}

/// A position as people count it: 1-based line, 1-based column in characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
}

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name shown to people, as they named it.
    pub name: String,
    /// Where it was read from; `None` for standard input and tests.
    pub path: Option<PathBuf>,
    /// Its text.
    pub text: String,
    line_starts: Vec<usize>,
}

impl Source {
    fn new(name: String, path: Option<PathBuf>, text: String) -> Self {
        let line_starts = std::iter::once(0).chain(
            text.bytes()
                .enumerate()
                .filter(|(_, b)| *b == b'\n')
                .map(|(i, _)| i + 1),
        );
        let line_starts = line_starts.collect();
        Self {
            name,
            path,
            text,
            line_starts,
        }
    }

    /// Line and column of a byte offset.
    #[must_use]
    pub fn position(&self, offset: usize) -> Position {
        let offset = self.floor(offset);
        let line = self
            .line_starts
            .partition_point(|start| *start <= offset)
            .saturating_sub(1);
        let start = self.line_starts.get(line).copied().unwrap_or(0);
        let column = self
            .text
            .get(start..offset)
            .map_or(0, |before| before.chars().count());
        Position {
            line: line + 1,
            column: column + 1,
        }
    }

    /// The text of a 1-based line, without its line break.
    #[must_use]
    pub fn line(&self, line: usize) -> &str {
        let Some(start) = self.line_starts.get(line.saturating_sub(1)) else {
            return "";
        };
        let end = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        self.text
            .get(*start..end)
            .unwrap_or("")
            .trim_end_matches(['\n', '\r'])
    }

    /// Number of lines.
    #[must_use]
    pub fn lines(&self) -> usize {
        let full = self.line_starts.len();
        if self.text.ends_with('\n') || self.text.is_empty() {
            full - 1
        } else {
            full
        }
    }

    /// The nearest character boundary at or before `offset`.
    pub(crate) fn floor(&self, offset: usize) -> usize {
        let mut at = offset.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// All files of one configuration, in the order in which they were read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Adds a file.
    pub fn add(&mut self, name: impl Into<String>, path: Option<PathBuf>, text: String) -> FileId {
        // More files than this are refused by the reader; saturating keeps the type honest anyway.
        let id = FileId(u16::try_from(self.files.len()).unwrap_or(u16::MAX - 2));
        self.files.push(Source::new(name.into(), path, text));
        id
    }

    /// The file a span points into; `None` for defaults.
    #[must_use]
    pub fn of(&self, span: Span) -> Option<&Source> {
        self.files.get(span.file()?.0 as usize)
    }

    /// A file by its id.
    #[must_use]
    pub fn get(&self, file: FileId) -> Option<&Source> {
        self.files.get(file.0 as usize)
    }

    /// All files.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.files.iter()
    }

    /// Line and column of the start of a span.
    #[must_use]
    pub fn position(&self, span: Span) -> Option<Position> {
        Some(self.of(span)?.position(span.start()))
    }

    /// The text under a span.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.of(span)
            .and_then(|source| source.text.get(span.start()..span.end()))
            .unwrap_or("")
    }

    /// `file:line`, or `default`, or `profile`: where a value comes from.
    #[must_use]
    pub fn origin(&self, span: Span) -> String {
        match (self.of(span), self.position(span)) {
            (Some(source), Some(at)) => format!("{}:{}", source.name, at.line),
            _ => format!("{span:?}"),
        }
    }

    /// Directory that relative paths written at `span` start from.
    #[must_use]
    pub fn directory(&self, span: Span) -> PathBuf {
        let path = self
            .of(span)
            .or_else(|| self.files.first())
            .and_then(|source| source.path.as_deref());
        path.and_then(Path::parent)
            .map(Path::to_path_buf)
            .unwrap_or_default()
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is taken, but probably not what was meant; refused with `--strict`.
    Warning,
    /// Advice, shown with `-v`.
    Hint,
}

impl Severity {
    /// The word that starts the first line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Hint => "hint",
        }
    }
}

/// A place and what is to be said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// The exact token.
    pub span: Span,
    /// Said beside the caret; may be empty.
    pub text: String,
}

/// One thing to say about a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Error, warning or hint.
    pub severity: Severity,
    /// `E0201`; stable, never reused.
    pub code: &'static str,
    /// The first line: what is wrong, in the user's words; lower case, no full stop.
    pub message: String,
    /// Where; `None` only when there is no file (E0606).
    pub primary: Option<Label>,
    /// Other places that matter, in file order.
    pub secondary: Vec<Label>,
    /// What to write.
    pub help: Option<String>,
    /// A fact.
    pub note: Option<String>,
}

impl Diagnostic {
    fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            severity,
            code,
            message,
            primary: None,
            secondary: Vec::new(),
            help: None,
            note: None,
        }
    }

    /// A reason to refuse the configuration.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// Probably a mistake.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }

    /// Advice.
    pub fn hint(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Hint, code, message)
    }

    /// Sets the place of the mistake and what stands beside the caret (may be empty).
    #[must_use]
    pub fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.primary = Some(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// Adds a second place. Places that are defaults are left out: there is nothing to show.
    #[must_use]
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        if span.is_written() {
            self.secondary.push(Label {
                span,
                text: text.into(),
            });
        }
        self
    }

    /// Says what to write.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Gives a fact.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.note = Some(text.into());
        self
    }

    /// True for errors.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The place of the mistake, or [`Span::DEFAULT`].
    #[must_use]
    pub fn span(&self) -> Span {
        self.primary.as_ref().map_or(Span::DEFAULT, |label| label.span)
    }
}

/// The collector: what was said so far, and the texts it speaks of.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// The files that spans point into.
    pub sources: Sources,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// An empty list over these files.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        Self {
            sources,
            list: Vec::new(),
        }
    }

    /// Adds one; the same thing said twice about the same place is kept once.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        // Cheap guard: duplicates arise only when one anchor is lowered at several aliases, close together.
        if diagnostic.primary.is_some() && self.list.iter().rev().take(64).any(|seen| *seen == diagnostic) {
            return;
        }
        self.list.push(diagnostic);
    }

    /// Everything said so far, in file order.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Diagnostic> {
        let mut list: Vec<&Diagnostic> = self.list.iter().collect();
        list.sort_by_key(|d| (d.span(), d.severity));
        list
    }

    /// Everything said so far, in the order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// How many of one severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|d| d.severity == severity).count()
    }

    /// True when the configuration must be refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    /// True when nothing is wrong with what is written, only with the machine: files that are missing or cannot be
    /// read, addresses and ports that cannot be used.
    #[must_use]
    pub fn only_the_machine_refuses(&self) -> bool {
        let of_the_machine = |d: &Diagnostic| matches!(d.code, "E0601" | "E0603" | "E0605" | "E0606");
        self.has_errors() && self.list.iter().filter(|d| d.is_error()).all(of_the_machine)
    }

    /// True when an error was reported inside this place.
    #[must_use]
    pub fn has_errors_within(&self, span: Span) -> bool {
        span.is_written() && self.list.iter().any(|d| d.is_error() && span.contains(d.span()))
    }
}
