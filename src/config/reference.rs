//! `docs/configuration.md`, from the tables and the list of codes.

use std::fmt::Write as _;

use super::codes::CODES;
use super::table::{Fallback, Row, Table, Type};

const INTRODUCTION: &str = "# Configuration reference

This file is generated from the tables in `src/config` (`BLESS=1 cargo test --test golden` writes it). `bellwether schema`
prints the same as JSON Schema; `bellwether config show --origin` prints what holds and where each value comes from.

The examples in [`config/`](../config) are the quickest way in. Rules of the format:

- **Short form**: where a block has one field that is nearly always the only one, its value may stand for the block.
- **Choice by key**: `redirect: {…}` or `direct_response: {…}`; two at once is an error that names both.
- **`off` switches a thing off**; `false` means the same.
- **Absent is not empty**: an absent key is the default; a key with nothing after it is an error.
- **Unknown keys are errors**, with a suggestion. Keys that start with `x-` at top level are ignored (for YAML anchors).
- **YAML 1.2**: duplicate keys, tabs in indentation, tags and several documents are errors; anchors and `<<` are allowed.
- **`${NAME}`, `${NAME:-default}`, `${file:/path}`** are filled in inside values after parsing; `$$` is a dollar.
- **Templates** at request time: `{client_ip}`, `{host}`, `{path}`, `{request_id}`, `{route}`, `{cluster}`, `{endpoint}`,
  `{tls_peer}`, in header values, redirects, `rewrite.host` and bodies of direct responses.
- **Precedence**: default < `profile` < `defaults` < `policies.NAME` < the route or cluster itself; field by field, blocks
  one level deep; `off` clears a block.

| value | written |
|---|---|
| duration | `250ms` `5s` `1m30s` `2h` `1d` (us ms s m h d) |
| size | `64KiB` `10MiB` `1GiB`; `64KB` is 64000 |
| percentage | `5%` `0.1%` |
| rate | `100/s` `600/m` `10000/h` |
| address | `host:port`, `:8080` (all interfaces), `\"[::1]:8080\"`, `unix:/run/app.sock` |
| key | `client_ip` `host` `path` `route` `tls_peer` `header:NAME` `cookie:NAME` `query:NAME` |
| regex | the whole value must match |
| status | `503`, `\"500-599\"`, `\"5xx\"` |

In the tables: `A | B` either; `T+` one or a list; `[T]` a list; `{T}` a map by name; `—` not set.

What this version knows and does not perform yet is read, checked and then refused at its line (E0610): nothing that is
written is ever silently ignored.
";

/// The reference.
#[must_use]
pub fn markdown() -> String {
    let mut out = INTRODUCTION.to_owned();
    for table in super::tables() {
        out.push_str(&section(&table));
    }
    out.push_str("\n## Codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in CODES {
        let _infallible = writeln!(out, "| {code} | {meaning} |");
    }
    out
}

fn section(table: &Table) -> String {
    let title = if table.name == "root" {
        "The file"
    } else {
        table.name
    };
    let mut out = format!(
        "\n## {title}\n\n{}\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
        table.doc.trim()
    );
    for row in table.rows.iter().filter(|row| !row.flat) {
        let _infallible = writeln!(
            out,
            "| {} | {} | {} | {} |",
            row.key,
            written(&row.ty),
            fallback(row),
            cell(row.doc.trim())
        );
    }
    if let Some(flat) = table.flat {
        let _infallible = writeln!(
            out,
            "| … | [{flat}](#{flat}) | | every key of that table may stand here |"
        );
    }
    out
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn fallback(row: &Row) -> String {
    match (row.fallback, row.shown) {
        (_, Some(shown)) => cell(shown),
        (Fallback::Required, None) => "required".to_owned(),
        (Fallback::Absent | Fallback::Text("{}" | "[]"), None) => "—".to_owned(),
        (Fallback::Text(text), None) => cell(text),
    }
}

fn written(ty: &Type) -> String {
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::Int => "int".to_owned(),
        Type::Any => "any".to_owned(),
        Type::Text { noun, .. } => (*noun).to_owned(),
        Type::Words(words) => words.join(" "),
        Type::Off(inner) => format!("off \\| {}", written(inner)),
        Type::Either(a, b) => format!("{} \\| {}", written(a), written(b)),
        Type::Many(inner) => format!("{}+", written(inner)),
        Type::List(inner) => format!("[{}]", written(inner)),
        Type::Map(inner) => format!("{{{}}}", written(inner)),
        Type::Object(table) => {
            let table = table();
            let link = format!("[{}](#{})", table.name, table.name.replace('.', ""));
            let short = table
                .short
                .and_then(|short| table.rows.iter().find(|row| row.key == short));
            match short {
                Some(row) => format!("{} \\| {link}", written(&row.ty)),
                None if table.short_true => format!("true \\| {link}"),
                None => link,
            }
        }
    }
}
