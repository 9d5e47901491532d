//! The effective configuration in its long form, as YAML that reads back to the same.
//!
//! Every value may carry where it came from: `file:line`, `profile` or `default`. Secrets are masked; a masked file
//! still reads, but not with the same secrets.

use std::fmt::Write as _;

use super::Document;
use super::diagnostic::{Sources, Span};
use super::supported;
use super::table::{Lower as _, Shown};

/// The YAML text.
///
/// # Errors
/// When `only` names nothing: the names that exist at the place where it went wrong.
pub fn yaml(document: &Document, only: Option<&str>, origin: bool) -> Result<String, String> {
    let mut shown = whole(document);
    for part in only.unwrap_or("").split('.').filter(|part| !part.is_empty()) {
        shown = step(shown, part)?;
    }
    let mut writer = Writer {
        sources: &document.diagnostics.sources,
        origin,
        out: String::new(),
    };
    match &shown {
        Shown::Map(rows) => writer.map(rows, 0),
        Shown::List(items) => writer.list(items, 0),
        single => {
            let text = scalar(single);
            let _infallible = writeln!(writer.out, "{text}");
        }
    }
    Ok(writer.out)
}

/// The configuration with everything that holds put in its place.
fn whole(document: &Document) -> Shown {
    let mut config = document.config.clone();
    for (route, policy) in config.routes.value.0.iter_mut().zip(&document.effective.policies) {
        route.value.policy = policy.clone();
    }
    for (entry, (_, cluster)) in config
        .clusters
        .value
        .entries
        .iter_mut()
        .zip(&document.effective.clusters)
    {
        entry.value.value = cluster.clone();
    }
    config.runtime.value = document.effective.runtime.clone();
    let Shown::Map(mut rows) = config.show() else {
        return Shown::Map(Vec::new());
    };
    // Named routes are easier to find; the rest has been laid over the routes and clusters.
    rows.retain(|(key, value, _)| !matches!(key.as_str(), "include" | "defaults") && !is_empty(value));
    let mut shown = Shown::Map(rows);
    leave_out_unperformed(&mut shown);
    shown
}

/// A default of something that this version does not perform is not in force, so it is not shown.
fn leave_out_unperformed(shown: &mut Shown) {
    match shown {
        Shown::Map(rows) => {
            rows.retain(|(key, value, span)| {
                !supported::UNPERFORMED.contains(&key.as_str()) || is_written(value, *span)
            });
            for (_, value, _) in rows {
                leave_out_unperformed(value);
            }
        }
        Shown::List(items) => items.iter_mut().for_each(|(item, _)| leave_out_unperformed(item)),
        Shown::Text(_) | Shown::Secret => {}
    }
}

fn is_written(shown: &Shown, span: Span) -> bool {
    match shown {
        Shown::Map(rows) => rows.iter().any(|(_, value, span)| is_written(value, *span)),
        Shown::List(_) | Shown::Text(_) | Shown::Secret => span.is_written(),
    }
}

fn is_empty(shown: &Shown) -> bool {
    match shown {
        Shown::Map(rows) => rows.is_empty(),
        Shown::List(items) => items.is_empty(),
        Shown::Text(_) | Shown::Secret => false,
    }
}

fn step(shown: Shown, part: &str) -> Result<Shown, String> {
    match shown {
        Shown::Map(rows) => {
            let names: Vec<String> = rows.iter().map(|(key, ..)| key.clone()).collect();
            let found = rows.into_iter().find(|(key, ..)| key == part);
            found
                .map(|(_, value, _)| value)
                .ok_or_else(|| format!("there is no `{part}`; there are: {}", names.join(", ")))
        }
        Shown::List(items) => {
            let named = |item: &Shown| match item {
                Shown::Map(rows) => rows
                    .iter()
                    .any(|(key, value, _)| key == "name" && *value == Shown::Text(part.to_owned())),
                _ => false,
            };
            let count = items.len();
            let index = items.iter().position(|(item, _)| named(item)).or_else(|| {
                let number = part
                    .strip_prefix("route-")
                    .unwrap_or(part)
                    .parse::<usize>()
                    .ok()?;
                number.checked_sub(1)
            });
            let found = index.and_then(|index| items.into_iter().nth(index));
            found
                .map(|(item, _)| item)
                .ok_or_else(|| format!("there is no `{part}` among {count} items"))
        }
        Shown::Text(_) | Shown::Secret => Err(format!("`{part}` is below a single value")),
    }
}

struct Writer<'a> {
    sources: &'a Sources,
    origin: bool,
    out: String,
}

impl Writer<'_> {
    fn map(&mut self, rows: &[(String, Shown, Span)], depth: usize) {
        for (key, value, span) in rows {
            self.entry(&quoted(key), value, *span, depth);
        }
    }

    fn entry(&mut self, key: &str, value: &Shown, span: Span, depth: usize) {
        let indent = "  ".repeat(depth);
        match value {
            Shown::Map(rows) if !rows.is_empty() => {
                let _infallible = writeln!(self.out, "{indent}{key}:");
                self.map(rows, depth + 1);
            }
            Shown::List(items)
                if items
                    .iter()
                    .any(|(item, _)| matches!(item, Shown::Map(_) | Shown::List(_))) =>
            {
                let _infallible = writeln!(self.out, "{indent}{key}:");
                self.list(items, depth + 1);
            }
            single => self.line(&format!("{indent}{key}: {}", scalar(single)), span),
        }
    }

    fn list(&mut self, items: &[(Shown, Span)], depth: usize) {
        let indent = "  ".repeat(depth);
        for (item, span) in items {
            match item {
                Shown::Map(rows) if !rows.is_empty() => {
                    // The first key stands beside the dash.
                    let start = self.out.len();
                    self.map(rows, depth + 1);
                    let at = start + indent.len();
                    self.out.replace_range(at..at + 2, "- ");
                }
                single => self.line(&format!("{indent}- {}", scalar(single)), *span),
            }
        }
    }

    fn line(&mut self, text: &str, span: Span) {
        self.out.push_str(text);
        if self.origin {
            let _infallible = write!(self.out, "  # {}", self.sources.origin(span));
        }
        self.out.push('\n');
    }
}

fn scalar(shown: &Shown) -> String {
    match shown {
        Shown::Text(text) => quoted(text),
        Shown::Secret => "\"***\"".to_owned(),
        Shown::List(items) => {
            let items: Vec<String> = items.iter().map(|(item, _)| scalar(item)).collect();
            format!("[{}]", items.join(", "))
        }
        Shown::Map(_) => "{}".to_owned(),
    }
}

/// Quotes what would not read back as the same text.
fn quoted(text: &str) -> String {
    let text = text.replace("$$", "$$$$").replace("${", "$${");
    let plain = |c: char| c.is_alphanumeric() || "_-./%+:".contains(c);
    let is_plain = !text.is_empty()
        && text.chars().all(plain)
        && !text.starts_with(['-', ':', '%', '.', '+'])
        && !text.ends_with(':')
        && !matches!(
            text.as_str(),
            "null" | "~" | "Null" | "NULL" | "yes" | "no" | "on" | "y" | "n"
        );
    if is_plain {
        text
    } else {
        serde_json::Value::String(text).to_string()
    }
}
