//! `${NAME}`, `${NAME:-default}`, `${file:/path}` and `$$` inside values; and the way back from a place in a value to
//! the place in the file.
//!
//! Filling in happens after parsing, so nothing that comes from the environment can change the structure of the file.

use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::table::Cx;
use super::yaml::{Kind, Node, Style};

/// Bytes a file named by `${file:…}` may have.
const MAX_FILE: usize = 64 * 1024;

/// Fills in a text. Pushes what is wrong and returns `None` then.
pub fn fill(text: &str, style: Style, span: Span, cx: &mut Cx<'_>) -> Option<String> {
    if !text.contains('$') {
        return Some(text.to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut failed = false;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(dollar) = rest.find('$') else {
            out.push_str(rest);
            break;
        };
        out.push_str(rest.get(..dollar).unwrap_or(""));
        let start = at + dollar;
        let after = text.get(start + 1..).unwrap_or("");
        if after.starts_with('$') {
            out.push('$');
            at = start + 2;
        } else if let Some(inner) = after.strip_prefix('{') {
            let Some(close) = inner.find('}') else {
                let at = place(span, style, text, start, text.len(), cx.out);
                cx.out.push(
                    Diagnostic::error("E0310", "`${` is never closed")
                        .at(at, "close it with `}`, or write `$$` for a dollar"),
                );
                return None;
            };
            let end = start + 2 + close + 1;
            let inner = inner.get(..close).unwrap_or("");
            match value_of(inner, span, cx) {
                Ok(value) => out.push_str(&value),
                Err((message, label)) => {
                    failed = true;
                    let at = place(span, style, text, start, end, cx.out);
                    cx.out.push(Diagnostic::error("E0310", message).at(at, label));
                }
            }
            at = end;
        } else {
            out.push('$');
            at = start + 1;
        }
    }
    if failed { None } else { Some(out) }
}

fn value_of(inner: &str, span: Span, cx: &Cx<'_>) -> Result<String, (String, String)> {
    if let Some(written) = inner.strip_prefix("file:") {
        let shown = cx.out.sources.directory(span).join(written);
        let path = if std::path::Path::new(written).is_absolute() {
            cx.reader.rooted(&shown)
        } else {
            shown
        };
        return match cx.reader.bytes(&path, MAX_FILE) {
            Ok(bytes) => match String::from_utf8(bytes) {
                // Editors and `echo` end files with a line break that is not part of a secret.
                Ok(text) => Ok(text
                    .strip_suffix('\n')
                    .map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t))
                    .to_owned()),
                Err(_) => Err((
                    format!("the file `{written}` is not text"),
                    "only UTF-8 text can be filled in".to_owned(),
                )),
            },
            Err(why) => Err((format!("the file `{written}` cannot be read"), why)),
        };
    }
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(is_name) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let label = "write ${NAME}, ${NAME:-default} or ${file:/path}; a dollar is `$$`".to_owned();
        return Err((format!("`${{{inner}}}` names no variable"), label));
    }
    match (cx.reader.variable(name), default) {
        (Some(value), _) if !(value.is_empty() && default.is_some()) => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        _ => {
            let example = if name.ends_with("HOST") || name.ends_with("ADDR") || name.ends_with("ADDRESS") {
                "127.0.0.1"
            } else if name.ends_with("PORT") {
                "8080"
            } else {
                "value"
            };
            Err((
                format!("environment variable `{name}` is not set"),
                format!("set it, or give a default: ${{{name}:-{example}}}"),
            ))
        }
    }
}

/// The place in the file of bytes `from..to` of a node's text.
///
/// When the text is not what stands in the file (something was filled in, or it spans lines), the whole value.
pub fn locate(node: &Node, text: &str, from: usize, to: usize, out: &Diagnostics) -> Span {
    match &node.kind {
        Kind::Scalar(scalar) if &*scalar.text == text => place(node.span, scalar.style, text, from, to, out),
        _ => node.span,
    }
}

fn place(span: Span, style: Style, text: &str, from: usize, to: usize, out: &Diagnostics) -> Span {
    let raw = out.sources.slice(span);
    if raw.contains('\n') {
        return span;
    }
    let Some(offsets) = offsets(raw, style, text) else {
        return span;
    };
    let last = offsets.last().copied().unwrap_or(0);
    let at = |index: usize| offsets.get(index).copied().unwrap_or(last);
    let (start, end) = (at(from), at(to));
    span.part(start, end.max(start + 1))
}

/// For every byte of `text`, and for its end, the byte of `raw` where it comes from.
fn offsets(raw: &str, style: Style, text: &str) -> Option<Vec<usize>> {
    let mut offsets = Vec::with_capacity(text.len() + 1);
    match style {
        Style::Block => return None,
        Style::Plain => {
            if raw != text {
                return None;
            }
            offsets.extend(0..=text.len());
        }
        Style::Single | Style::Double => {
            let mut at = 1;
            for c in text.chars() {
                let rest = raw.get(at..)?;
                offsets.extend(std::iter::repeat_n(at, c.len_utf8()));
                at += if style == Style::Single && rest.starts_with("''") {
                    2
                } else if style == Style::Double && rest.starts_with('\\') {
                    match rest.as_bytes().get(1)? {
                        b'x' => 4,
                        b'u' => 6,
                        b'U' => 10,
                        _ => 2,
                    }
                } else {
                    rest.chars().next()?.len_utf8()
                };
            }
            offsets.push(at);
        }
    }
    Some(offsets)
}
