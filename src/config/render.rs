//! Diagnostics for people and for tools: one renderer for `check`, `run`, `reload` and the admin API.
//!
//! The look is rustc's. It is our own because the caret must stand under the exact cells of wide characters, long
//! lines must be cropped around the mistake, and the text must be the same byte for byte in golden tests.

use std::fmt::Write as _;

use serde_json::{Value, json};
use unicode_width::UnicodeWidthChar as _;

use super::diagnostic::{Diagnostic, Diagnostics, Label, Severity, Source, Sources};

/// Diagnostics shown in one run; more help nobody.
const SHOWN: usize = 20;

/// How a text is written.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// ANSI colours.
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
    /// Also hints.
    pub hints: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            color: false,
            width: 100,
            hints: false,
        }
    }
}

/// Everything that was said, in file order, at most twenty things.
#[must_use]
pub fn text(diagnostics: &Diagnostics, look: Look) -> String {
    let mut out = String::new();
    let list: Vec<&Diagnostic> = diagnostics
        .sorted()
        .into_iter()
        .filter(|d| look.hints || d.severity != Severity::Hint)
        .collect();
    for diagnostic in list.iter().take(SHOWN) {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&one(diagnostic, &diagnostics.sources, look));
    }
    if list.len() > SHOWN {
        let _infallible = writeln!(out, "\n… and {} more", list.len() - SHOWN);
    }
    out
}

/// `2 errors, 1 warning`.
#[must_use]
pub fn counts(diagnostics: &Diagnostics) -> String {
    let mut parts = Vec::new();
    for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
        match diagnostics.count(severity) {
            0 => {}
            1 => parts.push(format!("1 {word}")),
            n => parts.push(format!("{n} {word}s")),
        }
    }
    parts.join(", ")
}

/// One diagnostic.
#[must_use]
pub fn one(diagnostic: &Diagnostic, sources: &Sources, look: Look) -> String {
    let paint = Paint { on: look.color };
    let tone = match diagnostic.severity {
        Severity::Error => Tone::Red,
        Severity::Warning => Tone::Yellow,
        Severity::Hint => Tone::Cyan,
    };
    let mut out = String::new();
    let title = format!("{}[{}]", diagnostic.severity.word(), diagnostic.code);
    let _infallible = writeln!(
        out,
        "{}{}",
        paint.put(tone, &title),
        paint.put(Tone::Bold, &format!(": {}", diagnostic.message))
    );
    let marks = marks(diagnostic, sources);
    let digits = marks
        .iter()
        .map(|mark| mark.line.to_string().len())
        .max()
        .unwrap_or(1)
        .max(2);
    let bar = |n: &str| paint.put(Tone::Blue, &format!("{n:>digits$} |"));
    let mut file: Option<&str> = None;
    let mut line = 0;
    for mark in &marks {
        if file != Some(&mark.source.name) {
            let arrow = if file.is_none() { "-->" } else { ":::" };
            // The header names the place of the mistake, even when an earlier place is shown above it.
            let at = marks
                .iter()
                .find(|other| other.source.name == mark.source.name && other.primary)
                .unwrap_or(mark);
            let place = format!("{}:{}:{}", mark.source.name, at.line, at.column);
            let _infallible = writeln!(
                out,
                "{}{} {place}",
                " ".repeat(digits),
                paint.put(Tone::Blue, arrow)
            );
            file = Some(&mark.source.name);
            line = 0;
            if mark.source.text.is_empty() {
                continue;
            }
            let _infallible = writeln!(out, "{}", bar(""));
        }
        let row = Row::of(mark, look.width.saturating_sub(digits + 3).max(20));
        if line != mark.line {
            let _infallible = writeln!(out, "{} {}", bar(&mark.line.to_string()), row.text);
            line = mark.line;
        }
        let caret = if mark.primary { "^" } else { "-" }.repeat(row.width);
        let space = if mark.label.text.is_empty() { "" } else { " " };
        let said = format!("{caret}{space}{}", mark.label.text);
        let said = paint.put(if mark.primary { tone } else { Tone::Blue }, &said);
        let _infallible = writeln!(out, "{} {}{said}", bar(""), " ".repeat(row.indent));
    }
    for (word, text) in [("note", &diagnostic.note), ("help", &diagnostic.help)] {
        if let Some(text) = text {
            let sign = paint.put(Tone::Blue, "=");
            let word = paint.put(Tone::Bold, &format!("{word}:"));
            let _infallible = writeln!(out, "{} {sign} {word} {text}", " ".repeat(digits));
        }
    }
    out
}

/// A label with the place that people see.
struct Mark<'a> {
    source: &'a Source,
    label: &'a Label,
    primary: bool,
    line: usize,
    column: usize,
}

/// The labels of the primary file by line, then those of other files.
fn marks<'a>(diagnostic: &'a Diagnostic, sources: &'a Sources) -> Vec<Mark<'a>> {
    let labels = diagnostic
        .primary
        .iter()
        .map(|l| (l, true))
        .chain(diagnostic.secondary.iter().map(|l| (l, false)));
    let mut marks: Vec<Mark<'a>> = labels
        .filter_map(|(label, primary)| {
            let source = sources.of(label.span)?;
            let at = source.position(label.span.start());
            Some(Mark {
                source,
                label,
                primary,
                line: at.line,
                column: at.column,
            })
        })
        .collect();
    let first = diagnostic.span().file();
    marks.sort_by_key(|mark| {
        (
            mark.label.span.file() != first,
            mark.label.span.file(),
            mark.line,
            !mark.primary,
        )
    });
    marks
}

/// A line as it is shown, and where the label stands under it.
struct Row {
    text: String,
    indent: usize,
    width: usize,
}

/// Cells of a character on a terminal, and what is shown for it.
fn cell(c: char) -> (char, usize) {
    match c {
        '\t' => (' ', 1),
        c if c.is_control() => ('\u{fffd}', 1),
        c => (c, c.width().unwrap_or(0)),
    }
}

impl Row {
    fn of(mark: &Mark<'_>, room: usize) -> Self {
        let line = mark.source.line(mark.line);
        let length = mark
            .source
            .text
            .get(mark.label.span.start()..mark.label.span.end())
            .map_or(1, |token| {
                token.lines().next().map_or(0, |first| first.chars().count())
            });
        let cells: Vec<(char, usize)> = line.chars().map(cell).collect();
        let from = (mark.column - 1).min(cells.len());
        let to = (from + length).min(cells.len());
        let wide = |cells: &[(char, usize)]| cells.iter().map(|(_, w)| w).sum::<usize>();
        let part = |a: usize, b: usize| cells.get(a..b).unwrap_or(&[]);
        // A long line is cropped around the label: a third of the room before it, the rest from it on.
        let (mut start, mut end) = (0, cells.len());
        if wide(&cells) > room {
            let before = room / 3;
            start = from;
            while start > 0 && wide(part(start - 1, from)) <= before {
                start -= 1;
            }
            end = start;
            while end < cells.len() && wide(part(start, end + 1)) + 2 <= room {
                end += 1;
            }
        }
        let shown: String = part(start, end).iter().map(|(c, _)| *c).collect();
        let (left, right) = (
            if start > 0 { "…" } else { "" },
            if end < cells.len() { "…" } else { "" },
        );
        let indent = wide(part(start, from)) + usize::from(start > 0);
        let width = wide(part(from, to.min(end).max(from))).max(1);
        Self {
            text: format!("{left}{shown}{right}").trim_end().to_owned(),
            indent,
            width,
        }
    }
}

#[derive(Clone, Copy)]
enum Tone {
    Red,
    Yellow,
    Cyan,
    Blue,
    Bold,
}

struct Paint {
    on: bool,
}

impl Paint {
    fn put(&self, tone: Tone, text: &str) -> String {
        if !self.on {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Red => "1;31",
            Tone::Yellow => "1;33",
            Tone::Cyan => "1;36",
            Tone::Blue => "1;34",
            Tone::Bold => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

fn place(label: &Label, sources: &Sources) -> Value {
    let Some(source) = sources.of(label.span) else {
        return Value::Null;
    };
    let (from, to) = (
        source.position(label.span.start()),
        source.position(label.span.end()),
    );
    json!({
        "file": source.name, "line": from.line, "column": from.column, "end_line": to.line, "end_column": to.column,
        "label": label.text,
    })
}

/// The stable JSON form: `{"diagnostics": […], "errors": 1, "warnings": 0, "hints": 0}`.
#[must_use]
pub fn json(diagnostics: &Diagnostics) -> Value {
    let list = diagnostics.sorted().into_iter().map(|d| {
        let mut value = json!({ "severity": d.severity.word(), "code": d.code, "message": d.message });
        if let (Some(object), Some(label)) = (value.as_object_mut(), &d.primary)
            && let Value::Object(place) = place(label, &diagnostics.sources)
        {
            object.extend(place);
        }
        if let Some(object) = value.as_object_mut() {
            let others: Vec<Value> = d
                .secondary
                .iter()
                .map(|label| place(label, &diagnostics.sources))
                .collect();
            if !others.is_empty() {
                object.insert("related".to_owned(), Value::Array(others));
            }
            for (key, text) in [("help", &d.help), ("note", &d.note)] {
                if let Some(text) = text {
                    object.insert(key.to_owned(), Value::String(text.clone()));
                }
            }
        }
        value
    });
    let list: Vec<Value> = list.collect();
    json!({
        "diagnostics": list,
        "errors": diagnostics.count(Severity::Error),
        "warnings": diagnostics.count(Severity::Warning),
        "hints": diagnostics.count(Severity::Hint),
    })
}

/// Annotations of GitHub Actions, one line each.
#[must_use]
pub fn github(diagnostics: &Diagnostics) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut out = String::new();
    for d in diagnostics.sorted() {
        let command = match d.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Hint => "notice",
        };
        let mut at = format!("title={}", d.code);
        let mut said = d.message.clone();
        if let Some(label) = &d.primary {
            if let Some(source) = diagnostics.sources.of(label.span) {
                let (from, to) = (
                    source.position(label.span.start()),
                    source.position(label.span.end()),
                );
                let _infallible = write!(
                    at,
                    ",file={},line={},col={}",
                    property(&source.name),
                    from.line,
                    from.column
                );
                if from.line == to.line {
                    let _infallible = write!(at, ",endColumn={}", to.column);
                }
            }
            if !label.text.is_empty() {
                said = format!("{said}: {}", label.text);
            }
        }
        for (word, text) in [("help", &d.help), ("note", &d.note)] {
            if let Some(text) = text {
                let _infallible = write!(said, "\n{word}: {text}");
            }
        }
        let _infallible = writeln!(out, "::{command} {at}::{}", data(&said));
    }
    out
}

/// SARIF 2.1.0, for code scanning tools.
#[must_use]
pub fn sarif(diagnostics: &Diagnostics) -> Value {
    let location = |label: &Label| {
        let source = diagnostics.sources.of(label.span)?;
        let (from, to) = (
            source.position(label.span.start()),
            source.position(label.span.end()),
        );
        Some(json!({
            "physicalLocation": {
                "artifactLocation": { "uri": source.name },
                "region": {
                    "startLine": from.line, "startColumn": from.column, "endLine": to.line, "endColumn": to.column,
                },
            },
            "message": { "text": label.text },
        }))
    };
    let results = diagnostics.sorted().into_iter().map(|d| {
        let level = match d.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Hint => "note",
        };
        let mut text = d.message.clone();
        if let Some(help) = &d.help {
            let _infallible = write!(text, " ({help})");
        }
        json!({
            "ruleId": d.code,
            "level": level,
            "message": { "text": text },
            "locations": d.primary.iter().filter_map(location).collect::<Vec<_>>(),
            "relatedLocations": d.secondary.iter().filter_map(location).collect::<Vec<_>>(),
        })
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "bellwether", "version": env!("CARGO_PKG_VERSION") } },
            "results": results.collect::<Vec<_>>(),
        }],
    })
}
