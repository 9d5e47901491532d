//! What the documents say is true: their YAML is a configuration that this version takes, their links lead somewhere,
//! and the lists that programs keep are the lists that people read.
//!
//! A block of YAML that begins with ```` ```yaml ```` is read, checked and compiled like a file. One that shows only a
//! part of a file says so: ```` ```yaml fragment ````. `BLESS=1 cargo test --test docs` writes `docs/reasons.md` and the
//! table of scenarios in `docs/testing.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
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

/// What a resilient proxy must withstand: each is a trap that others fell into. `U` is shown with virtual time beside the
/// code, `E` through real sockets; tests are called after the number.
const SCENARIOS: [(u8, &str, &str); 45] = [
    (
        1,
        "U",
        "whatever becomes of probes, a half-open breaker neither leaks a place nor stays half open",
    ),
    (2, "U", "a verdict from before the breaker opened decides nothing"),
    (
        3,
        "E",
        "a thousand clients meet a half-open breaker: few at a time, few in all",
    ),
    (
        4,
        "E",
        "every endpoint's breaker open: probes still go out, and it recovers by itself",
    ),
    (5, "U", "fifty breakers that opened together do not probe in step"),
    (
        6,
        "U",
        "few requests open by a row of failures only, never by a rate",
    ),
    (7, "U", "no stale counts after any pause, no drift in a day"),
    (
        8,
        "E",
        "what we refuse ourselves blames no endpoint, here or one hop up",
    ),
    (
        9,
        "U",
        "a failed probe starts afresh, opens for longer, and is forgotten in time",
    ),
    (
        10,
        "E",
        "a probe told to wait keeps the breaker open for so long, within the limit",
    ),
    (
        11,
        "E",
        "orders end by themselves; held closed it counts; observing it refuses nothing",
    ),
    (
        12,
        "U",
        "one bad endpoint of three is found, one slightly worse of fifty is left alone",
    ),
    (
        13,
        "U",
        "half of the endpoints fail together: a cap, an event, no mass ejection",
    ),
    (14, "U", "how many may be out, as a table; never below the least"),
    (15, "E", "a starved proxy ejects nobody"),
    (
        16,
        "E",
        "panic: nobody who refuses is asked, it is seen, it ends by itself",
    ),
    (17, "E", "a returning endpoint gets its share by a ramp"),
    (
        18,
        "E",
        "one bad path does not take an endpoint from other routes",
    ),
    (
        19,
        "U",
        "alternating checks flip nothing, a cancelled one counts nothing",
    ),
    (
        20,
        "E",
        "the last endpoint is not taken out for being slow, only for refusing",
    ),
    (
        21,
        "E",
        "checks of two hundred endpoints are spread, and traffic saves most of them",
    ),
    (
        22,
        "U",
        "suspicion by phi: reference values, finite for ever, our own pause kills nobody",
    ),
    (
        23,
        "E",
        "heartbeats that are old, forged or expired change nothing",
    ),
    (24, "E", "a write is never sent twice once it may have been read"),
    (
        25,
        "E",
        "endpoints that close idle connections cost no request, and their limit is learned",
    ),
    (26, "E", "three layers of retries do not multiply"),
    (
        27,
        "E",
        "a body of any size is tried elsewhere until it was read; a large one not after that",
    ),
    (28, "E", "retries stay within their budget in every window"),
    (29, "E", "a retry goes to another endpoint while there is one"),
    (
        30,
        "E",
        "time that was used is not given to the endpoint again; what is too late never reaches it",
    ),
    (
        31,
        "E",
        "gRPC failures in trailers are seen, and tried again where nothing was passed on",
    ),
    (
        32,
        "E",
        "hedges are few, losers are cancelled, stuck endpoints gain nothing",
    ),
    (
        33,
        "E",
        "a refusal says for how long, in whole seconds within the limit",
    ),
    (
        34,
        "E",
        "offered three times its capacity, a service does its work, the important first",
    ),
    (
        35,
        "E",
        "slow readers of large bodies do not exceed the memory; operators are served",
    ),
    (36, "E", "a service that becomes slower is learned anew"),
    (
        37,
        "E",
        "stopped under load: no request fails, the application loses its way out last",
    ),
    (
        38,
        "E",
        "a hundred reloads under load: no request fails, nothing is forgotten, nothing leaks",
    ),
    (
        39,
        "E",
        "a broken configuration changes nothing, and is told with its place and a suggestion",
    ),
    (
        40,
        "E",
        "a new binary knows what the old one had learned; nobody is refused meanwhile",
    ),
    (
        41,
        "E",
        "a name server that fails or takes back most of its answer removes nobody at once",
    ),
    (
        42,
        "E",
        "thousands of endpoints come and go: bounded, well-formed, monotone metrics",
    ),
    (43, "E", "a stranger's private fields and deadlines have no power"),
    (
        44,
        "E",
        "floods, drips and ambiguous requests end with their connection, others are served",
    ),
    (45, "U", "shared structures are exact between threads"),
];

/// Scenarios without a test of their own yet, and why. To become empty.
const WITHOUT_TESTS: &[(u8, &str)] = &[];

/// Tests named after a scenario, by its number.
fn scenario_tests() -> BTreeMap<u8, BTreeSet<String>> {
    let mut files = Vec::new();
    for folder in ["core", "src", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    let mut found: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        for line in text(&file).lines() {
            let Some((_, rest)) = line.split_once("fn scenario_") else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                .collect();
            let (Some(Ok(number)), true) = (
                name.split('_').next().map(str::parse),
                line.trim_start().starts_with("fn ") || line.trim_start().starts_with("async fn "),
            ) else {
                continue;
            };
            let file = file.display();
            found
                .entry(number)
                .or_default()
                .insert(format!("`{file}`: {}", name.replace('_', " ")));
        }
    }
    found
}

#[test]
fn every_scenario_has_its_tests() {
    const BEGIN: &str = "<!-- scenarios: written by `BLESS=1 cargo test --test docs` -->\n";
    const END: &str = "<!-- end of scenarios -->\n";
    let tests = scenario_tests();
    let mut table = String::from("| | shown | what happens | tests |\n|---|---|---|---|\n");
    for (number, shown, what) in SCENARIOS {
        let excuse = WITHOUT_TESTS.iter().find(|(without, _)| *without == number);
        let names = match (tests.get(&number), excuse) {
            (None, None) => panic!("scenario {number} has no test called `scenario_{number:02}_…`"),
            (Some(tests), Some(_)) => panic!("scenario {number} has tests: strike its excuse. {tests:?}"),
            (None, Some((_, why))) => format!("none yet: {why}"),
            (Some(tests), None) => {
                let names = tests.iter().map(|test| {
                    let (file, name) = test.split_once(": ").expect("a file and a name");
                    let (_, name) = name.split_once(' ').expect("a number and a name");
                    format!("{file}: {name}")
                });
                names.collect::<Vec<_>>().join("<br>")
            }
        };
        writeln!(table, "| {number} | {shown} | {what} | {names} |").expect("text can be written");
    }
    assert!(
        tests.keys().all(|number| (1..=45).contains(number)),
        "there are 45 scenarios: {:?}",
        tests.keys()
    );
    let path = root().join("docs/testing.md");
    let text = std::fs::read_to_string(&path).expect("docs/testing.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table begins");
    let (_, after) = rest.split_once(END).expect("the table ends");
    let expected = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &expected).expect("docs/testing.md can be written");
    } else {
        assert_eq!(
            text, expected,
            "the table of scenarios in docs/testing.md is not what the sources say"
        );
    }
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
