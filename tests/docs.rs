//! What the documents say is true: their YAML is a configuration that this version takes, their links lead somewhere,
//! and the lists that programs keep are the lists that people read.
//!
//! A block of YAML that begins with ```` ```yaml ```` is read, checked and compiled like a file. One that shows only a
//! part of a file says so: ```` ```yaml fragment ````. `BLESS=1 cargo test --test docs` writes `docs/reasons.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bellwether::cli::Cli;
use bellwether::config::read::Reader;
use bellwether::config::render::{self, Look};
use bellwether::snapshot::compile;
use bellwether::telemetry::names;
use bellwether_core::Reason;
use clap::{CommandFactory as _, Parser as _};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document for people, by its path from the root.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                found.push(path.strip_prefix(root()).expect("below the root").to_path_buf());
            }
        }
    }
    found.sort();
    assert!(found.len() > 5, "the documents are there");
    found
}

fn text(document: &Path) -> String {
    std::fs::read_to_string(root().join(document)).expect("a document can be read")
}

/// Blocks between fences: what the fence says, the line it is in, the content.
fn blocks(text: &str) -> Vec<(String, usize, String)> {
    let mut blocks: Vec<(String, usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            if !open {
                blocks.push((info.trim().to_owned(), number + 1, String::new()));
            }
            open = !open;
        } else if open && let Some((_, _, content)) = blocks.last_mut() {
            content.push_str(line);
            content.push('\n');
        }
    }
    blocks
}

#[test]
fn every_yaml_block_is_a_configuration() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        for (info, line, content) in blocks(&text(&document)) {
            if info != "yaml" {
                continue;
            }
            seen += 1;
            let name = format!("{}:{line}", document.display());
            let mut refuse = |diagnostics: &_| {
                wrong.push(format!("{name}\n{}", render::text(diagnostics, Look::default())));
            };
            match Reader::new().read_bytes(&name, content.as_bytes()) {
                Ok(read) => {
                    let mut diagnostics = read.diagnostics.clone();
                    if compile::dry_run(&read, &mut diagnostics).is_none() || diagnostics.has_errors() {
                        refuse(&diagnostics);
                    }
                }
                Err(diagnostics) => refuse(&diagnostics),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 3, "only {seen} blocks of YAML were found");
}

/// Sources, whose messages name commands too.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.strip_prefix(root()).expect("below the root").to_path_buf());
        }
    }
}

#[test]
fn every_command_that_is_named_exists() {
    let known: BTreeSet<String> = Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    let mut files = documents();
    sources(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files {
        for (number, line) in text(&file).lines().enumerate() {
            let at = format!("{}:{}", file.display(), number + 1);
            for span in line.split("`bellwether ").skip(1) {
                let word: String = span
                    .chars()
                    .take_while(|character| character.is_ascii_lowercase() || *character == '-')
                    .collect();
                seen += 1;
                if !word.is_empty() && !known.contains(&word) {
                    wrong.push(format!("{at}: there is no `bellwether {word}`"));
                }
            }
            // A line of a block: all of it is what people type. The banner begins like a command and is none.
            let Some(typed) = line.strip_prefix("    ") else {
                continue;
            };
            let typed = typed.strip_prefix("$ ").unwrap_or(typed);
            let typed = typed.split("  #").next().unwrap_or(typed);
            for command in typed.split("&&").map(str::trim) {
                let is_command = command
                    .strip_prefix("bellwether ")
                    .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
                if !is_command || file.extension().is_some_and(|extension| extension == "rs") {
                    continue;
                }
                seen += 1;
                if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                    wrong.push(format!("{at}: {command}\n{error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "only {seen} commands were found");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let mut anchor = String::new();
    for character in heading.trim().chars() {
        match character {
            ' ' => anchor.push('-'),
            '-' | '_' => anchor.push(character),
            _ if character.is_alphanumeric() => anchor.extend(character.to_lowercase()),
            _ => {}
        }
    }
    anchor
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if !fenced && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#')));
        }
    }
    found
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("x");
        for part in prose.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        let folder = root().join(document.parent().unwrap_or(Path::new("")));
        for (line, target) in links(&text(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, wanted) = match target.split_once('#') {
                Some((path, wanted)) => (path, Some(wanted)),
                None => (target.as_str(), None),
            };
            let file = if path.is_empty() {
                root().join(&document)
            } else {
                folder.join(path)
            };
            let missing = match wanted {
                _ if !file.exists() => true,
                Some(wanted) => {
                    let text = std::fs::read_to_string(&file).unwrap_or_default();
                    !anchors(&text).contains(wanted)
                }
                None => false,
            };
            if missing {
                wrong.push(format!("{}:{line}: {target}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn every_metric_is_documented() {
    let document = text(Path::new("docs/metrics.md"));
    for metric in names::all() {
        assert!(
            document.contains(&format!("| {} |", metric.name)),
            "{} is not in docs/metrics.md",
            metric.name
        );
    }
}

#[test]
fn every_reason_is_documented() {
    let mut expected = String::from(
        "# Reason words\n\n\
         Generated from `core/src/reason.rs`; `BLESS=1 cargo test --test docs` writes it anew.\n\n\
         When the proxy ends a request by itself, it says why in one word of this closed list: in the header\n\
         `x-bellwether-rejected` and the body of the answer, in the field `reason` of the access log, and in the label\n\
         `reason` of `bellwether_request_rejections_total`. The answer of a service is never given such a word.\n\n\
         503 means that no service can have acted, 502 that one was reached and broke, 504 that time ran out, 4xx that\n\
         the client is at fault. Words of parts that are not built yet are in the list, because a list that is complete\n\
         can be checked; no request gets them. \"Envoy\" is the flag that says nearly the same in Envoy's access log.\n\n\
         Such an answer to a write (a method that is not safe, RFC 9110 section 9.2.1) also says what became of it, in the\n\
         header `x-bellwether-outcome`: `not-executed`, no service can have seen it; `refused`, a service said that it did\n\
         nothing about it; `unknown`, a service may have executed it. After the first two it may be sent again without\n\
         fear. What could not be read as a request has no outcome, and an answer that breaks off cannot tell any more.\n\n\
         Every such answer carries `x-request-id`. That of a service passes as it is; a route that sets\n\
         `response_headers: { set: { x-request-id: \"{request_id}\" } }` adds ours.\n\n\
         | word | status | gRPC | ended by | Envoy | what the client reads |\n|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        writeln!(
            expected,
            "| {} | {} | {} | {} | {} | {} |",
            reason.name(),
            reason.status(),
            reason.grpc(),
            reason.fault().name(),
            reason.envoy_flag(),
            reason.title()
        )
        .expect("text can be written");
    }
    let path = root().join("docs/reasons.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &expected).expect("docs/reasons.md can be written");
    }
    let actual = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "docs/reasons.md is not what the code says");
}
