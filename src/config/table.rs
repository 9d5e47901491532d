//! One table per object of the schema, and everything that is made from it.
//!
//! The `object!` macro takes the rows of a table of the schema (key, type, default, meaning) and makes the struct,
//! its lowering from the tree, its merging over defaults, its long form for `config show`, and the rows that the JSON
//! Schema, the reference and the suggestions read. A macro of our own, because a derive could not keep the default's
//! text beside the field, and because five hand-written copies of sixty tables would differ within a month.
//!
//! A default is written as the user would write it and goes through the same parser, so it cannot be out of range.
//!
//! Invariant: lowering never stops at the first mistake; a field that is wrong gets its default and the file is refused.

use std::fmt::Debug;
use std::ops::Deref;
use std::rc::Rc;

use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::suggest;
use super::yaml::{Key, Kind, Node, Style};

/// A value, the place where it stands, and the place of its key.
///
/// For defaults both places are [`Span::DEFAULT`] (or [`Span::PROFILE`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sp<T> {
    /// The value.
    pub value: T,
    /// Where the value stands.
    pub span: Span,
    /// Where its key stands; the value's own place where there is no key (items of a list).
    pub key: Span,
}

impl<T> Sp<T> {
    /// True when the user wrote it.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.span.is_written()
    }
}

impl<T> Deref for Sp<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One value or a list: `T+` in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Many<T>(pub Vec<Sp<T>>);

/// A list: `[T]` in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct List<T>(pub Vec<Sp<T>>);

impl<T> Deref for Many<T> {
    type Target = [Sp<T>];
    fn deref(&self) -> &[Sp<T>] {
        &self.0
    }
}

impl<T> Deref for List<T> {
    type Target = [Sp<T>];
    fn deref(&self) -> &[Sp<T>] {
        &self.0
    }
}

/// A map by name, in the order written: `{T}` in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map<T> {
    /// The entries that could be read.
    pub entries: Vec<Entry<T>>,
    /// Every name, also of entries that could not be read, so that one mistake does not cause others.
    pub declared: Vec<(String, Span)>,
}

/// One entry of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// The name, and the place where it stands.
    pub name: Sp<String>,
    /// The value; its `key` is the place of the name.
    pub value: Sp<T>,
}

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            declared: Vec::new(),
        }
    }
}

impl<T> Map<T> {
    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Sp<T>> {
        self.entries
            .iter()
            .find(|entry| entry.name.value == name)
            .map(|entry| &entry.value)
    }

    /// True when a name is defined, even if its value has mistakes.
    #[must_use]
    pub fn declares(&self, name: &str) -> bool {
        self.declared.iter().any(|(declared, _)| declared == name)
    }

    /// Names and values in the order written.
    pub fn iter(&self) -> impl Iterator<Item = (&Sp<String>, &Sp<T>)> {
        self.entries.iter().map(|entry| (&entry.name, &entry.value))
    }

    /// True when nothing is defined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.declared.is_empty()
    }
}

/// What a field may hold, for the schema, the reference and messages.
#[derive(Clone, Debug)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// Text of some form: its noun (`duration`), a pattern for the schema, an example.
    Text {
        /// As in the tables.
        noun: &'static str,
        /// ECMA regex for the JSON Schema; empty for any.
        pattern: &'static str,
        /// Something that is accepted.
        example: &'static str,
    },
    /// One of some words.
    Words(&'static [&'static str]),
    /// Anything.
    Any,
    /// `off` or something.
    Off(Box<Self>),
    /// One or the other.
    Either(Box<Self>, Box<Self>),
    /// One or a list.
    Many(Box<Self>),
    /// A list.
    List(Box<Self>),
    /// A map by name.
    Map(Box<Self>),
    /// A block with its own table.
    Object(fn() -> Table),
}

/// One table of the schema.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name in the reference.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// The field that a bare value stands for.
    pub short: Option<&'static str>,
    /// `true` stands for the block with its defaults.
    pub short_true: bool,
    /// The rows, in order; those of a flattened table at the end.
    pub rows: Vec<Row>,
    /// The table whose rows may stand here too.
    pub flat: Option<&'static str>,
}

/// One row of a table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The key.
    pub key: &'static str,
    /// What it may hold.
    pub ty: Type,
    /// What holds when it is absent.
    pub fallback: Fallback,
    /// What the reference shows instead of the fallback's text.
    pub shown: Option<&'static str>,
    /// Smallest and largest number.
    pub range: Option<(u32, u32)>,
    /// The meaning.
    pub doc: &'static str,
    /// True for rows of a flattened table.
    pub flat: bool,
}

/// What holds when a key is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be written.
    Required,
    /// There is no value.
    Absent,
    /// As if this had been written.
    Text(&'static str),
}

/// The state of a lowering: what was said, and where we are.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The collector.
    pub out: &'a mut Diagnostics,
    /// What `${…}` may read.
    pub reader: &'a super::read::Reader,
    /// The dotted path to here.
    path: Vec<String>,
    /// Set while a default is lowered, so that its places are the default's.
    tables: Vec<&'static str>,
}

impl<'a> Cx<'a> {
    /// A new state at the top of a file.
    pub fn new(out: &'a mut Diagnostics, reader: &'a super::read::Reader) -> Self {
        Self {
            out,
            reader,
            path: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// The dotted path, or `the configuration` at the top.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = String::new();
        for part in &self.path {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        path
    }

    fn place(&self) -> String {
        if self.path.is_empty() {
            "the configuration".to_owned()
        } else {
            format!("`{}`", self.path())
        }
    }

    /// The last name on the path: the field that is read.
    #[must_use]
    pub fn field(&self) -> &str {
        self.path
            .iter()
            .rev()
            .find(|part| !part.starts_with('['))
            .map_or("the configuration", String::as_str)
    }

    /// The table that encloses the current one, innermost last.
    #[must_use]
    pub fn tables(&self) -> &[&'static str] {
        &self.tables
    }

    /// Works one level deeper.
    pub fn within<R>(&mut self, part: impl Into<String>, work: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(part.into());
        let result = work(self);
        self.path.pop();
        result
    }

    /// Says that a value has the wrong shape.
    pub fn wrong_shape(&mut self, node: &Node, wanted: &Type) {
        let field = self.field().to_owned();
        // `{client_ip}` without quotes is a block with one empty key to YAML.
        if let (Kind::Map(entries), true) = (&node.kind, wanted.is_text())
            && let [
                (
                    key,
                    Node {
                        kind: Kind::Empty, ..
                    },
                ),
            ] = &**entries
        {
            let text = format!("{{{}}}", key.name);
            self.out
                .push(Diagnostic::error("E0110", format!("`{text}` must be quoted")).at(
                    node.span,
                    format!("quote it: write \"{text}\" (a bare {{ starts a block)"),
                ));
            return;
        }
        let mut diagnostic = Diagnostic::error("E0203", format!("`{field}` wants {}", wanted.wanted()));
        let label = match (&node.kind, wanted) {
            (Kind::Scalar(_), Type::List(item)) => {
                let text = self.out.sources.slice(node.span).to_owned();
                let each = if matches!(**item, Type::Object(_)) {
                    "block"
                } else {
                    "value"
                };
                let each = if field == "endpoints" { "endpoint" } else { each };
                format!("write [{text}] or one `- ` line per {each}")
            }
            (_, Type::Off(inner)) if inner.is_text() => {
                format!("found {}; write {}", node.noun(), inner.example())
            }
            _ if wanted.is_text() => {
                format!("found {}; write for example `{}`", node.noun(), wanted.example())
            }
            _ => format!("found {}", node.noun()),
        };
        let at = clip(self.out, node.span);
        diagnostic = diagnostic.at(at, label);
        self.out.push(diagnostic);
    }
}

/// The first line of a place, for labels.
pub(crate) fn clip(out: &Diagnostics, span: Span) -> Span {
    let len = out.sources.slice(span).lines().next().map_or(0, str::len);
    if len == 0 { span } else { span.part(0, len) }
}

impl Type {
    /// True for single values.
    #[must_use]
    pub fn is_text(&self) -> bool {
        match self {
            Self::Bool | Self::Int | Self::Text { .. } | Self::Words(_) | Self::Any => true,
            Self::Many(inner) | Self::Off(inner) => inner.is_text(),
            Self::Either(a, b) => a.is_text() && b.is_text(),
            Self::List(_) | Self::Map(_) | Self::Object(_) => false,
        }
    }

    /// What is wanted, in words.
    #[must_use]
    pub fn wanted(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int => "a whole number".to_owned(),
            Self::Text { noun, .. } => article(noun),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Any => "a value".to_owned(),
            Self::Off(inner) => format!("`off` or {}", inner.wanted()),
            Self::Either(a, b) => format!("{} or {}", a.wanted(), b.wanted()),
            Self::Many(inner) => format!("{} or a list of them", inner.wanted()),
            Self::List(_) => "a list".to_owned(),
            Self::Map(inner) => match **inner {
                Self::Object(_) => "a map: a name, and a block under it".to_owned(),
                _ => "a map of names and values".to_owned(),
            },
            Self::Object(table) => {
                let table = table();
                match table.short {
                    Some(short) => format!("{} or a block of keys", article(&short.replace('_', " "))),
                    None => "a block of keys".to_owned(),
                }
            }
        }
    }

    /// Something that would be accepted.
    #[must_use]
    pub fn example(&self) -> String {
        match self {
            Self::Bool => "true".to_owned(),
            Self::Int | Self::Any => "1".to_owned(),
            Self::Text { example, .. } => (*example).to_owned(),
            Self::Words(words) => words.first().copied().unwrap_or("").to_owned(),
            Self::Off(inner) | Self::Many(inner) => inner.example(),
            Self::Either(a, _) => a.example(),
            Self::List(inner) => format!("[{}]", inner.example()),
            Self::Map(inner) => format!("{{ name: {} }}", inner.example()),
            Self::Object(table) => {
                let table = table();
                let row = |key: &str| {
                    table
                        .rows
                        .iter()
                        .find(|row| row.key == key)
                        .map(|row| row.ty.example())
                };
                match table.short {
                    Some(short) => row(short).unwrap_or_default(),
                    None => {
                        let rows = table.rows.iter();
                        let first = rows
                            .clone()
                            .find(|row| row.fallback == Fallback::Required)
                            .or(table.rows.first());
                        first.map_or(String::new(), |row| {
                            format!("{{ {}: {} }}", row.key, row.ty.example())
                        })
                    }
                }
            }
        }
    }
}

/// `duration` → `a duration`.
#[must_use]
pub fn article(noun: &str) -> String {
    let an = noun.starts_with(['a', 'e', 'i', 'o']) || noun.starts_with("HTTP");
    if noun == "text" {
        return "text".to_owned();
    }
    format!("{} {noun}", if an { "an" } else { "a" })
}

/// The long form of a value, for `config show`.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// A single value, as it would be written.
    Text(String),
    /// A value that must not be shown.
    Secret,
    /// Items and where each comes from.
    List(Vec<(Self, Span)>),
    /// Keys, values, and where each comes from.
    Map(Vec<(String, Self, Span)>),
}

/// A type that a node can be lowered into.
pub trait Lower: Sized + Clone + Debug {
    /// For schema, reference and messages.
    fn ty() -> Type;
    /// From the tree; pushes what is wrong and returns `None` then.
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self>;
    /// The long form.
    fn show(&self) -> Shown;
    /// This value written over that one: blocks are merged one level deep, all else replaced.
    #[must_use]
    fn over(&self, _base: &Self) -> Self {
        self.clone()
    }
    /// What the number of a range check counts: nothing in particular, or milliseconds.
    const UNIT: &'static str = "";
    /// The number, when it is one, for range checks.
    fn number(&self) -> Option<u32> {
        None
    }
}

/// A field of an object: a value that always is there, or one that may be absent.
pub trait Field: Sized + Clone {
    /// For schema, reference and messages.
    fn ty() -> Type;
    /// From a written value.
    fn written(key: &Key, node: &Node, cx: &mut Cx<'_>) -> Option<Self>;
    /// When the key is absent (or its value was wrong); `None` when that cannot be.
    fn absent(fallback: Fallback, cx: &mut Cx<'_>) -> Option<Self>;
    /// The long form, `None` for what is absent.
    fn show(&self) -> Option<(Shown, Span)>;
    /// This field over that one, blocks merged.
    #[must_use]
    fn merged(&self, base: &Self) -> Self;
    /// This field over that one, blocks replaced.
    #[must_use]
    fn replaced(&self, base: &Self) -> Self;
    /// What the number of a range check counts.
    const UNIT: &'static str;
    /// Value and place for range checks.
    fn number(&self) -> Option<(u32, Span)>;
}

impl<T: Lower> Field for Sp<T> {
    const UNIT: &'static str = T::UNIT;
    fn ty() -> Type {
        T::ty()
    }
    fn written(key: &Key, node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        Some(Self {
            value: T::lower(node, cx)?,
            span: node.span,
            key: key.span,
        })
    }
    fn absent(fallback: Fallback, cx: &mut Cx<'_>) -> Option<Self> {
        let Fallback::Text(text) = fallback else {
            return None;
        };
        let node = Node::of_default(text, Span::DEFAULT);
        Some(Self {
            value: T::lower(&node, cx)?,
            span: Span::DEFAULT,
            key: Span::DEFAULT,
        })
    }
    fn show(&self) -> Option<(Shown, Span)> {
        Some((self.value.show(), self.span))
    }
    fn merged(&self, base: &Self) -> Self {
        if self.is_written() || self.span == Span::PROFILE {
            Self {
                value: self.value.over(&base.value),
                span: self.span,
                key: self.key,
            }
        } else {
            base.clone()
        }
    }
    fn replaced(&self, base: &Self) -> Self {
        if self.is_written() || self.span == Span::PROFILE {
            self.clone()
        } else {
            base.clone()
        }
    }
    fn number(&self) -> Option<(u32, Span)> {
        Some((self.value.number()?, self.span))
    }
}

impl<T: Lower> Field for Option<Sp<T>> {
    const UNIT: &'static str = T::UNIT;
    fn ty() -> Type {
        T::ty()
    }
    fn written(key: &Key, node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        Some(Some(Sp {
            value: T::lower(node, cx)?,
            span: node.span,
            key: key.span,
        }))
    }
    fn absent(_: Fallback, _: &mut Cx<'_>) -> Option<Self> {
        Some(None)
    }
    fn show(&self) -> Option<(Shown, Span)> {
        self.as_ref().map(|value| (value.value.show(), value.span))
    }
    fn merged(&self, base: &Self) -> Self {
        match (self, base) {
            (Some(own), Some(base)) => Some(own.merged(base)),
            (Some(own), None) => Some(own.clone()),
            (None, base) => base.clone(),
        }
    }
    fn replaced(&self, base: &Self) -> Self {
        self.clone().or_else(|| base.clone())
    }
    fn number(&self) -> Option<(u32, Span)> {
        self.as_ref().and_then(Field::number)
    }
}

/// The keys of one block, and which of them have been read.
#[derive(Debug)]
pub struct Block<'n> {
    entries: &'n [(Key, Node)],
    used: Vec<bool>,
    span: Span,
    missing: Vec<(&'static str, String)>,
    failed: bool,
}

impl<'n> Block<'n> {
    /// Starts to read a block.
    #[must_use]
    pub fn new(entries: &'n [(Key, Node)], span: Span) -> Self {
        Self {
            entries,
            used: vec![false; entries.len()],
            span,
            missing: Vec::new(),
            failed: false,
        }
    }

    /// Reads one field.
    pub fn field<F: Field>(
        &mut self,
        name: &'static str,
        fallback: Fallback,
        range: Option<(u32, u32)>,
        cx: &mut Cx<'_>,
    ) -> Option<F> {
        let mut found: Option<usize> = None;
        for (at, (key, _)) in self.entries.iter().enumerate() {
            if &*key.name != name {
                continue;
            }
            if let Some(used) = self.used.get_mut(at) {
                *used = true;
            }
            match found.and_then(|first| self.entries.get(first)) {
                None => found = Some(at),
                Some((first, _)) => cx.out.push(
                    Diagnostic::error("E0106", format!("`{name}` is written twice"))
                        .at(key.span, "written again")
                        .also(first.span, "first written here"),
                ),
            }
        }
        let Some((key, node)) = found.and_then(|at| self.entries.get(at)) else {
            let value = F::absent(fallback, cx);
            if value.is_none() {
                self.missing.push((name, F::ty().example()));
            }
            return value;
        };
        let value = if matches!(node.kind, Kind::Empty) {
            cx.out.push(no_value(key, &F::ty()));
            None
        } else {
            cx.within(name, |cx| {
                let value = F::written(key, node, cx);
                if let (Some((low, high)), Some((number, span))) =
                    (range, value.as_ref().and_then(Field::number))
                    && !(low..=high).contains(&number)
                {
                    cx.out.push(out_of_range(name, number, low, high, F::UNIT, span));
                    return None;
                }
                value
            })
        };
        let value = value.or_else(|| F::absent(fallback, cx));
        self.failed |= value.is_none();
        value
    }

    /// Reports what is missing and what nobody asked for.
    pub fn finish(self, table: &Table, cx: &mut Cx<'_>) {
        if !self.missing.is_empty() {
            let at = self.entries.first().map_or(self.span, |(key, _)| key.span);
            for (name, example) in &self.missing {
                let place = cx.place();
                cx.out.push(
                    Diagnostic::error("E0202", format!("{place} has no `{name}`"))
                        .at(at, format!("add `{name}: {example}`")),
                );
            }
        }
        for ((key, _), used) in self.entries.iter().zip(&self.used) {
            if *used || (table.name == "root" && key.name.starts_with("x-")) {
                continue;
            }
            let place = cx.path();
            let diagnostic = suggest::unknown_field(key, table, &place);
            cx.out.push(diagnostic);
        }
    }
}

fn no_value(key: &Key, ty: &Type) -> Diagnostic {
    let off = if matches!(ty, Type::Off(_)) {
        "write `off`, or "
    } else {
        ""
    };
    let example = match &*key.name {
        "health_check" => "/healthz".to_owned(),
        _ => ty.example(),
    };
    let noun = match ty.inner() {
        Type::Object(table) => {
            table().short.map_or(
                "block of keys",
                |short| if short == "path" { "path" } else { "value" },
            )
        }
        Type::List(_) | Type::Map(_) => {
            return Diagnostic::error("E0204", format!("`{}` has no value", key.name)).at(
                key.span,
                "remove the line, or write what belongs under it, indented",
            );
        }
        _ => "value",
    };
    Diagnostic::error("E0204", format!("`{}` has no value", key.name))
        .at(
            key.span,
            format!(
                "remove the line for the default, {off}give {}: `{}: {example}`",
                article_of(noun),
                key.name
            ),
        )
        .tidy()
}

fn article_of(noun: &str) -> String {
    article(noun)
}

trait Tidy {
    fn tidy(self) -> Self;
}

impl Tidy for Diagnostic {
    /// `default, or give` reads better when there is no `off` in between.
    fn tidy(mut self) -> Self {
        if let Some(label) = &mut self.primary {
            label.text = label.text.replace("default, give", "default, or give");
        }
        self
    }
}

fn out_of_range(name: &str, number: u32, low: u32, high: u32, unit: &str, span: Span) -> Diagnostic {
    let range = match (high, unit) {
        (u32::MAX, "") => format!("write a number of at least {low}"),
        (u32::MAX, unit) => format!("write at least {low}{unit}"),
        _ => format!("write a number from {low} to {high}"),
    };
    Diagnostic::error("E0312", format!("`{name}` cannot be {number}{unit}")).at(span, range)
}

impl Type {
    /// Without `off` and `one or many`.
    #[must_use]
    pub fn inner(&self) -> &Self {
        match self {
            Self::Off(inner) | Self::Many(inner) => inner.inner(),
            other => other,
        }
    }
}

/// Words for `off` that people bring along.
const OFF_LIKE: [&str; 9] = [
    "disabled", "disable", "none", "null", "~", "no", "never", "Off", "OFF",
];

impl<T: Lower> Lower for Option<T> {
    const UNIT: &'static str = T::UNIT;
    fn ty() -> Type {
        Type::Off(Box::new(T::ty()))
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match node.word() {
            Some("off" | "false" | "False" | "FALSE") => return Some(None),
            Some(word) if OFF_LIKE.contains(&word) => {
                let field = cx.field().to_owned();
                cx.out.push(
                    Diagnostic::error("E0313", format!("`{field}` is switched off with `off`"))
                        .at(node.span, "write off"),
                );
                return None;
            }
            _ => {}
        }
        if let Kind::Scalar(scalar) = &node.kind
            && scalar.style != Style::Plain
            && &*scalar.text == "off"
        {
            return Some(None);
        }
        T::lower(node, cx).map(Some)
    }
    fn show(&self) -> Shown {
        self.as_ref()
            .map_or_else(|| Shown::Text("off".to_owned()), Lower::show)
    }
    fn over(&self, base: &Self) -> Self {
        match (self, base) {
            (Some(own), Some(base)) => Some(own.over(base)),
            _ => self.clone(),
        }
    }
    fn number(&self) -> Option<u32> {
        self.as_ref().and_then(Lower::number)
    }
}

fn items<T: Lower>(list: &[Node], cx: &mut Cx<'_>) -> Vec<Sp<T>> {
    let mut out = Vec::with_capacity(list.len());
    for (at, node) in list.iter().enumerate() {
        let value = cx.within(format!("[{at}]"), |cx| {
            if matches!(node.kind, Kind::Empty) {
                cx.out.push(
                    Diagnostic::error("E0204", format!("an item of `{}` is empty", cx.field()))
                        .at(node.span, "remove the dash, or write a value"),
                );
                return None;
            }
            T::lower(node, cx)
        });
        out.extend(value.map(|value| Sp {
            value,
            span: node.span,
            key: node.span,
        }));
    }
    out
}

fn show_items<T: Lower>(list: &[Sp<T>]) -> Shown {
    Shown::List(list.iter().map(|item| (item.value.show(), item.span)).collect())
}

impl<T: Lower> Lower for Many<T> {
    fn ty() -> Type {
        Type::Many(Box::new(T::ty()))
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        Some(Self(match &node.kind {
            Kind::List(list) => items(list, cx),
            _ => vec![Sp {
                value: T::lower(node, cx)?,
                span: node.span,
                key: node.span,
            }],
        }))
    }
    fn show(&self) -> Shown {
        show_items(&self.0)
    }
}

impl<T: Lower> Lower for List<T> {
    fn ty() -> Type {
        Type::List(Box::new(T::ty()))
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.kind {
            Kind::List(list) => Some(Self(items(list, cx))),
            _ => {
                cx.wrong_shape(node, &Self::ty());
                None
            }
        }
    }
    fn show(&self) -> Shown {
        show_items(&self.0)
    }
}

impl<T: Lower> Lower for Map<T> {
    fn ty() -> Type {
        Type::Map(Box::new(T::ty()))
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            cx.wrong_shape(node, &Self::ty());
            return None;
        };
        let mut map = Self::default();
        let mut seen: std::collections::HashMap<Rc<str>, Span> =
            std::collections::HashMap::with_capacity(entries.len());
        for (key, node) in entries.iter() {
            if let Some(first) = seen.get(&*key.name) {
                let noun = suggest::singular(cx.field());
                let code = if first.file() == key.span.file() {
                    "E0106"
                } else {
                    "E0406"
                };
                cx.out.push(
                    Diagnostic::error(code, format!("{noun} `{}` is defined twice", key.name))
                        .at(key.span, "defined again")
                        .also(*first, "first defined here"),
                );
                continue;
            }
            seen.insert(key.name.clone(), key.span);
            map.declared.push((key.name.to_string(), key.span));
            if matches!(node.kind, Kind::Empty) {
                cx.out.push(
                    Diagnostic::error("E0204", format!("`{}` has no value", key.name)).at(
                        key.span,
                        format!(
                            "remove the line, or give a value: `{}: {}`",
                            key.name,
                            T::ty().example()
                        ),
                    ),
                );
                continue;
            }
            if let Some(value) = cx.within(&*key.name, |cx| T::lower(node, cx)) {
                let name = Sp {
                    value: key.name.to_string(),
                    span: key.span,
                    key: key.span,
                };
                map.entries.push(Entry {
                    name,
                    value: Sp {
                        value,
                        span: node.span,
                        key: key.span,
                    },
                });
            }
        }
        Some(map)
    }
    fn show(&self) -> Shown {
        let rows = self
            .iter()
            .map(|(name, value)| (name.value.clone(), value.value.show(), value.span));
        Shown::Map(rows.collect())
    }
}

/// Lowers a block: the common part of every object.
pub fn lower_object<T>(
    node: &Node,
    table: fn() -> Table,
    short: Option<&'static str>,
    short_true: bool,
    cx: &mut Cx<'_>,
    fill: impl FnOnce(&mut Block<'_>, &mut Cx<'_>) -> Option<T>,
) -> Option<T> {
    let synthetic;
    let entries: &[(Key, Node)] = match &node.kind {
        Kind::Map(entries) => entries,
        Kind::Scalar(scalar) if short_true && &*scalar.text == "true" => &[],
        Kind::Scalar(_) if short.is_some() => {
            let name = short.unwrap_or_default();
            let key = Key {
                name: name.into(),
                span: node.span,
            };
            synthetic = [(key, node.clone())];
            &synthetic
        }
        _ => {
            cx.wrong_shape(node, &Type::Object(table));
            return None;
        }
    };
    let mut block = Block::new(entries, node.span);
    let value = fill(&mut block, cx);
    // The table is built only for those that have something to say about it.
    if block.used.contains(&false) || !block.missing.is_empty() {
        let table = table();
        block.finish(&table, cx);
    }
    value
}

/// The fallback of a row.
macro_rules! config_fallback {
    (req) => {
        $crate::config::table::Fallback::Required
    };
    (none) => {
        $crate::config::table::Fallback::Absent
    };
    ($text:literal) => {
        $crate::config::table::Fallback::Text($text)
    };
}

/// Optional pieces of a row.
macro_rules! config_option {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

/// The key of a row: another word than the field's name where that is a word of Rust.
macro_rules! config_key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// Declares one table of the schema.
///
/// ```text
/// object! {
///     /// What it is.
///     Mirror = "route.mirror" {
///         /// Meaning.
///         cluster: Sp<String> = req;
///         /// Meaning.
///         percent: Sp<Percent> = "100%";
///     }
/// }
/// ```
///
/// After the default may follow `as "shown in the reference"` and `in (low, high)`; after the table's name `short field`
/// (a bare value stands for that field), `short true` and, as last line, `..policy: Policy` (its rows may stand here).
macro_rules! object {
    (
        $(#[doc = $doc:literal])*
        $name:ident = $table:literal $(, short $short:ident)? $(, short_true $short_true:literal)? {
            $(
                $(#[doc = $field_doc:literal])*
                $field:ident $(@ $key:literal)? : $ty:ty = $fallback:tt $(as $shown:literal)? $(in $range:tt)? ;
            )*
            $( .. $flat:ident : $flat_ty:ty ; )?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $ty, )*
            $(
                #[doc = "The settings that may stand here too."]
                pub $flat: $flat_ty,
            )?
        }

        impl $name {
            /// The table this block was declared from.
            #[must_use]
            pub fn table() -> $crate::config::table::Table {
                #[allow(unused_mut, reason = "only tables with a flattened one extend their rows")]
                let mut rows = vec![$(
                    $crate::config::table::Row {
                        key: $crate::config::table::config_key!($field $($key)?),
                        ty: <$ty as $crate::config::table::Field>::ty(),
                        fallback: $crate::config::table::config_fallback!($fallback),
                        shown: $crate::config::table::config_option!($($shown)?),
                        range: $crate::config::table::config_option!($($range)?),
                        doc: concat!($($field_doc, "\n",)* ""),
                        flat: false,
                    },
                )*];
                let flat: Option<&'static str> = $crate::config::table::config_option!($(<$flat_ty>::table().name)?);
                $(
                    let more = <$flat_ty>::table();
                    rows.extend(more.rows.into_iter().map(|row| $crate::config::table::Row { flat: true, ..row }));
                )?
                $crate::config::table::Table {
                    name: $table,
                    doc: concat!($($doc, "\n",)* ""),
                    short: $crate::config::table::config_option!($(stringify!($short))?),
                    short_true: false $(|| $short_true)?,
                    rows,
                    flat,
                }
            }

            pub(crate) fn fill(block: &mut $crate::config::table::Block<'_>, cx: &mut $crate::config::table::Cx<'_>) -> Option<Self> {
                $(
                    let $field: Option<$ty> = block.field(
                        $crate::config::table::config_key!($field $($key)?),
                        $crate::config::table::config_fallback!($fallback),
                        $crate::config::table::config_option!($($range)?),
                        cx,
                    );
                )*
                $( let $flat = <$flat_ty>::fill(block, cx); )?
                Some(Self { $( $field: $field?, )* $( $flat: $flat?, )? })
            }

            /// This block over that one: what is written here wins, blocks inside are merged.
            #[must_use]
            pub fn merged_over(&self, base: &Self) -> Self {
                use $crate::config::table::Field as _;
                Self { $( $field: self.$field.merged(&base.$field), )* $( $flat: self.$flat.merged_over(&base.$flat), )? }
            }
        }

        impl $crate::config::table::Lower for $name {
            fn ty() -> $crate::config::table::Type {
                $crate::config::table::Type::Object(Self::table)
            }
            fn lower(node: &$crate::config::yaml::Node, cx: &mut $crate::config::table::Cx<'_>) -> Option<Self> {
                let short: Option<&'static str> = $crate::config::table::config_option!($(stringify!($short))?);
                $crate::config::table::lower_object(node, Self::table, short, false $(|| $short_true)?, cx, Self::fill)
            }
            fn show(&self) -> $crate::config::table::Shown {
                use $crate::config::table::Field as _;
                #[allow(unused_mut, reason = "only tables with a flattened one extend their rows")]
                let mut rows: Vec<(String, $crate::config::table::Shown, $crate::config::diagnostic::Span)> = vec![];
                $(
                    if let Some((shown, span)) = self.$field.show() {
                        rows.push(($crate::config::table::config_key!($field $($key)?).to_owned(), shown, span));
                    }
                )*
                $(
                    if let $crate::config::table::Shown::Map(more) = $crate::config::table::Lower::show(&self.$flat) {
                        rows.extend(more);
                    }
                )?
                $crate::config::table::Shown::Map(rows)
            }
            fn over(&self, base: &Self) -> Self {
                use $crate::config::table::Field as _;
                Self { $( $field: self.$field.replaced(&base.$field), )* $( $flat: self.$flat.over(&base.$flat), )? }
            }
        }
    };
}

/// Declares a closed list of words.
///
/// `words! { /// Doc. LbPolicy: "load-balancing policy", "policies" { PeakEwma = "peak_ewma", … } }`
macro_rules! words {
    (
        $(#[doc = $doc:literal])*
        $name:ident : $noun:literal, $plural:literal { $( $(#[doc = $word_doc:literal])* $variant:ident = $word:literal ),* $(,)? }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[doc = $word_doc])* #[doc = concat!("`", $word, "`")] $variant, )*
        }

        impl $name {
            /// Every word.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word as written.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl $crate::config::table::Lower for $name {
            fn ty() -> $crate::config::table::Type {
                $crate::config::table::Type::Words(Self::WORDS)
            }
            fn lower(node: &$crate::config::yaml::Node, cx: &mut $crate::config::table::Cx<'_>) -> Option<Self> {
                let text = $crate::config::units::text(node, &Self::ty(), cx)?;
                match &*text {
                    $( $word => Some(Self::$variant), )*
                    other => {
                        let diagnostic = $crate::config::suggest::unknown_word(other, node.span, $noun, $plural, Self::WORDS);
                        cx.out.push(diagnostic);
                        None
                    }
                }
            }
            fn show(&self) -> $crate::config::table::Shown {
                $crate::config::table::Shown::Text(self.word().to_owned())
            }
        }
    };
}

pub(crate) use {config_fallback, config_key, config_option, object, words};
