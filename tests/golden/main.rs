//! What a user reads, byte for byte: one folder per case, the same texts for `check`, `run`, `reload` and the API.
//!
//! A case is a folder under `cases/` with `bellwether.yaml` (and whatever it names), `expected.txt` and
//! `expected.json`. `options` may say `every-block` (accept what this version does not perform), `hints`, or
//! `env NAME=VALUE`. `BLESS=1 cargo test --test golden` writes the expected files; the difference is read in review.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bellwether::cli::check;
use bellwether::config::render::{self, Look};
use bellwether::config::{Diagnostics, Document, Reader, codes, reference, schema, show, supported};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares with a file, or writes it when `BLESS` is set. Gives what differs.
fn compare(path: &Path, actual: &str) -> Option<String> {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, actual).expect("the expected file can be written");
        return None;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    (expected != actual).then(|| {
        format!(
            "{}\n--- expected\n{expected}\n--- actual\n{actual}",
            path.display()
        )
    })
}

/// One case: the answer for people and the answer for tools.
fn answer(case: &Path) -> (String, String) {
    let options = std::fs::read_to_string(case.join("options")).unwrap_or_default();
    let mut variables: Vec<(&str, &str)> = Vec::new();
    let mut reader = Reader::new();
    let mut look = Look::default();
    for option in options.lines() {
        match option.split_once(' ') {
            None if option == "every-block" => reader = reader.with_every_block(),
            None if option == "hints" => look.hints = true,
            Some(("env", pair)) => variables.push(pair.split_once('=').expect("NAME=VALUE")),
            _ => panic!("unknown option {option} in {}", case.display()),
        }
    }
    let reader = reader.with_variables(variables);
    let name = "bellwether.yaml";
    let said = |diagnostics: &Diagnostics, last: &str| {
        let text = render::text(diagnostics, look);
        let gap = if text.is_empty() { "" } else { "\n" };
        let json = format!("{:#}\n", render::json(diagnostics));
        // The real folder differs from machine to machine.
        let place = case.display().to_string();
        (
            format!("{text}{gap}{last}").replace(&place, "/srv/conf"),
            json.replace(&place, "/srv/conf"),
        )
    };
    match reader.read_as(name, &case.join(name)) {
        Ok(document) => said(
            &document.diagnostics,
            &check::success(name, &document, &document.diagnostics, 0, look.hints),
        ),
        Err(diagnostics) => said(
            &diagnostics,
            &format!("{name}: {}\n", render::counts(&diagnostics)),
        ),
    }
}

#[test]
fn every_case_is_answered_as_expected() {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder("tests/golden/cases"))
        .expect("cases")
        .map(|entry| entry.expect("entry").path())
        .collect();
    cases.sort();
    assert!(cases.len() > 20, "the cases are there");
    let mut differences = Vec::new();
    for case in &cases {
        let (text, json) = answer(case);
        assert!(!text.contains('\u{1b}'), "no colours without a terminal");
        differences.extend(compare(&case.join("expected.txt"), &text));
        differences.extend(compare(&case.join("expected.json"), &json));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// A root in which the files that the examples name exist.
fn example_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let files = [
        "etc/bellwether/tls/shop.crt",
        "etc/bellwether/tls/shop.key",
        "etc/bellwether/tls/wildcard.crt",
        "etc/bellwether/tls/wildcard.key",
        "etc/bellwether/tls/clients.crt",
        "etc/bellwether/tls/ca.crt",
        "etc/bellwether/tls/me.crt",
        "etc/bellwether/tls/me.key",
        "etc/bellwether/tls/admin.crt",
        "etc/bellwether/tls/admin.key",
        "etc/bellwether/pages/busy.html",
        "etc/bellwether/endpoints/search-static.yaml",
        "var/run/bellwether/tls.crt",
        "var/run/bellwether/tls.key",
        "var/run/bellwether/ca.crt",
        "run/secrets/admin",
    ];
    for file in files {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        std::fs::write(&path, "secret\n").expect("file");
    }
    root
}

const EXAMPLES: [&str; 8] = [
    "quickstart",
    "edge-tls",
    "sidecar",
    "grpc",
    "patroni",
    "etcd",
    "sessions",
    "everything",
];

fn example(name: &str, reader: &Reader) -> Result<Document, Diagnostics> {
    reader.read_as(
        &format!("{name}.yaml"),
        &folder("config").join(format!("{name}.yaml")),
    )
}

#[test]
fn every_example_is_valid_and_refused_only_for_what_is_not_built() {
    let root = example_root();
    let reader = Reader::new()
        .with_root(root.path())
        .with_variables([("NOTHING", "")]);
    let mut said = String::new();
    for name in EXAMPLES {
        let document = example(name, &reader.clone().with_every_block())
            .unwrap_or_else(|diagnostics| panic!("{}", render::text(&diagnostics, Look::default())));
        assert_eq!(
            render::text(&document.diagnostics, Look::default()),
            "",
            "{name} is clean"
        );
        match example(name, &reader) {
            Ok(_) => writeln!(said, "{name}: ok").expect("infallible"),
            Err(diagnostics) => {
                for diagnostic in diagnostics.sorted() {
                    let at = diagnostics.sources.position(diagnostic.span()).expect("a place");
                    if diagnostic.is_error() {
                        assert_eq!(diagnostic.code, supported::CODE, "{}", diagnostic.message);
                        writeln!(said, "{name}:{} {}", at.line, diagnostic.message).expect("infallible");
                    }
                }
            }
        }
    }
    assert!(said.starts_with("quickstart: ok\n"));
    if let Some(difference) = compare(&folder("tests/golden/examples.txt"), &said) {
        panic!("{difference}");
    }
}

#[test]
fn the_long_form_of_every_example_reads_back_to_the_same() {
    let root = example_root();
    let reader = Reader::new()
        .with_root(root.path())
        .with_variables([("NOTHING", "")])
        .with_every_block();
    for name in EXAMPLES {
        let document = example(name, &reader).expect("valid");
        let text = show::yaml(&document, None, false).expect("all of it");
        // From the folder of the example, so that relative paths lead to the same files.
        let again = reader
            .read_bytes("again.yaml", text.as_bytes())
            .unwrap_or_else(|diagnostics| panic!("{}", render::text(&diagnostics, Look::default())));
        assert_eq!(
            show::yaml(&again, None, false).expect("all of it"),
            text,
            "{name}"
        );
    }
}

#[test]
fn the_long_form_says_where_every_value_comes_from() {
    let root = example_root();
    let reader = Reader::new()
        .with_root(root.path())
        .with_variables([("NOTHING", "")])
        .with_every_block();
    let document = example("everything", &reader).expect("valid");
    let text = show::yaml(&document, None, true).expect("all of it");
    assert!(!text.contains("secret"), "secrets are masked");
    if let Some(difference) = compare(&folder("tests/golden/everything.origin.txt"), &text) {
        panic!("{difference}");
    }
}

#[test]
fn the_reference_is_current() {
    let path = folder("docs/configuration.md");
    if let Some(difference) = compare(&path, &reference::markdown()) {
        panic!("run `BLESS=1 cargo test --test golden`\n{difference}");
    }
    assert!(reference::markdown().contains(codes::CODES[0].0));
}

#[test]
fn the_schema_is_current() {
    if let Some(difference) = compare(
        &folder("tests/golden/schema.json"),
        &format!("{:#}\n", schema::json_schema()),
    ) {
        panic!("run `BLESS=1 cargo test --test golden`\n{difference}");
    }
}

#[test]
fn no_file_says_where_it_looked() {
    let said = render::one(&check::no_file(), &Default::default(), Look::default());
    let expected = "\
error[E0606]: no configuration file
   = note: looked at: ./bellwether.yaml, /etc/bellwether/bellwether.yaml
   = help: name one with `-c FILE`, or begin with config/quickstart.yaml; `bellwether demo` needs none
";
    assert_eq!(said, expected);
}

#[test]
fn tools_get_their_own_forms() {
    let text = "listeners: { web: \":8080\" }\nroutes: [{ cluster: ap }]\nclusters: { app: { endpoints: [127.0.0.1:1] } }\n";
    let diagnostics = Reader::new()
        .read_bytes("a,b.yaml", text.as_bytes())
        .expect_err("refused");
    let github = render::github(&diagnostics);
    let first = github.lines().next().expect("a line");
    assert_eq!(
        first,
        "::error title=E0401,file=a%2Cb.yaml,line=2,col=21,endColumn=23::route `route-1` sends to cluster `ap`, which \
         does not exist: did you mean `app`?%0Anote: clusters in this file: app"
    );
    let sarif = render::sarif(&diagnostics);
    assert_eq!(sarif["version"], "2.1.0");
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "E0401");
    assert_eq!(
        result["locations"][0]["physicalLocation"]["region"]["startColumn"],
        21
    );
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let diagnostics = Reader::new()
        .read_bytes("x.yaml", b"listeners: 1\nroutes: [{ cluster: a }]\n")
        .expect_err("refused");
    let plain = render::text(&diagnostics, Look::default());
    let colored = render::text(
        &diagnostics,
        Look {
            color: true,
            ..Look::default()
        },
    );
    assert!(colored.contains("\u{1b}[1;31merror[E0203]"));
    let mut stripped = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        stripped.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    stripped.push_str(rest);
    assert_eq!(stripped, plain);
}
