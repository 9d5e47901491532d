//! The shape of the code, checked against the tables of `docs/architecture.md`.
//!
//! A map that nobody checks is wrong within a month. This test reads the imports of every file and compares them with
//! the layers the document promises, so either the code or the document is changed, in the same commit. It reads
//! sources as text and links nothing, so it is done before the compiler is with the rest.
//!
//! What is read: `use crate::…`, paths that begin with `crate::` in code, and chains of `super::` that leave their
//! module. Comments and literals are taken out first. Sources are formatted by rustfmt, which the check for inline
//! modules relies on.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below a folder of the project, by path from its root. Build output is not looked at.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a folder's entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                let left_out = ["target", "corpus", "artifacts"].contains(&name.as_str());
                if !left_out && !name.starts_with(".git") {
                    folders.push(path);
                }
            } else if !name.starts_with(".git") {
                found.push(path.strip_prefix(root()).expect("below the root").to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = files(folder);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// Rows of the table under a heading of the document, cells without their backquotes.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = read("docs/architecture.md");
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| line.trim_start_matches('#').trim() != heading || !line.starts_with('#'))
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim().trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect();
    assert!(
        !rows.is_empty(),
        "docs/architecture.md has no table under {heading:?}"
    );
    rows
}

/// Module to layer, from the table "Layers".
fn layers() -> BTreeMap<String, u32> {
    let mut layers = BTreeMap::new();
    for row in table("Layers") {
        let layer = row[0].parse().expect("the first column is a number");
        let module = row[1].clone();
        assert_eq!(
            layers.insert(module.clone(), layer),
            None,
            "{module} is listed twice"
        );
    }
    layers
}

/// The text without comments, and with nothing between the quotes of its literals.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            out.push_str("\"\"");
            end_of_string(rest)
        } else if let Some(hashes) = raw_string(rest).filter(|_| !ends_in_word(&out)) {
            out.push_str("\"\"");
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |end| open + end + close.len())
        } else if let Some(end) = char_literal(rest) {
            out.push_str("' '");
            end
        } else {
            out.push(first);
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    out
}

fn ends_in_word(out: &str) -> bool {
    out.chars()
        .next_back()
        .is_some_and(|last| last.is_alphanumeric() || last == '_')
}

/// How many hashes a raw string that begins here has.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn end_of_string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The end of a character literal that begins here; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        // The closing quote is looked for behind what is escaped, which may be a quote.
        return inner[2..].find('\'').map(|end| end + 4);
    }
    let first = inner.chars().next()?;
    inner[first.len_utf8()..]
        .starts_with('\'')
        .then(|| first.len_utf8() + 2)
}

/// The module path of a file below `src`: `src/a/b.rs` and `src/a/b/mod.rs` are both `a::b`.
fn module_of(file: &Path, below: &str) -> Vec<String> {
    let inside = file.strip_prefix(below).expect("below the sources");
    let mut path: Vec<String> = inside
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if path
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        path.pop();
    }
    path
}

/// Top-level modules that a file names, with the lines that do.
fn named(file: &Path, below: &str) -> BTreeMap<String, Vec<usize>> {
    let depth = module_of(file, below).len();
    let code = code(&read(file));
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut inline = 0;
    let mut at = 0;
    for (number, line) in code.split_inclusive('\n').enumerate() {
        let number = number + 1;
        let opens = line.trim_end().ends_with('{')
            && (line.starts_with("mod ")
                || line.starts_with("pub mod ")
                || line.starts_with("pub(crate) mod "));
        if opens {
            inline = 1;
        } else if line.starts_with('}') {
            inline = 0;
        }
        for (start, _) in line.match_indices("crate::") {
            if !ends_in_word(&line[..start]) && !line[..start].ends_with('$') {
                for name in first_names(&code[at + start + "crate::".len()..]) {
                    found.entry(name).or_default().push(number);
                }
            }
        }
        // `super::` once for each level, and once more, is the root.
        let mut rest = line;
        while let Some(start) = rest.find("super::") {
            let chain = &rest[start..];
            let mut after = chain;
            let mut levels = 0;
            while let Some(shorter) = after.strip_prefix("super::") {
                after = shorter;
                levels += 1;
            }
            if levels >= depth + inline && depth > 0 {
                for name in first_names(after) {
                    found.entry(name).or_default().push(number);
                }
            }
            rest = after;
        }
        at += line.len();
    }
    found
}

/// The names that a path goes on with: one, or those between braces.
fn first_names(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars()
            .take_while(|character| character.is_alphanumeric() || *character == '_')
            .collect()
    };
    let Some(inside) = rest.strip_prefix('{') else {
        return Some(word(rest))
            .filter(|name| !name.is_empty())
            .into_iter()
            .collect();
    };
    let mut names = Vec::new();
    let mut level = 0;
    let mut begins = true;
    for (at, character) in inside.char_indices() {
        match character {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => begins = true,
            _ if begins && !character.is_whitespace() => {
                names.push(word(&inside[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// For each module, the modules it names and where.
fn imports() -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let mut imports: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for file in sources("src") {
        let Some(module) = module_of(&file, "src").into_iter().next() else {
            continue;
        };
        let from = imports.entry(module).or_default();
        for (name, lines) in named(&file, "src") {
            let place = format!("{}:{}", file.display(), lines[0]);
            from.entry(name).or_default().push(place);
        }
    }
    imports
}

#[test]
fn every_module_has_a_layer_and_every_layer_a_module() {
    let listed: BTreeSet<String> = layers().into_keys().collect();
    let mut present: BTreeSet<String> = imports().into_keys().collect();
    present.insert("bellwether_core".to_owned());
    assert_eq!(
        listed, present,
        "the table \"Layers\" of docs/architecture.md and src/ differ"
    );
    for row in table("Layers").iter().filter(|row| row[1] != "bellwether_core") {
        let folder = root().join("src").join(&row[1]);
        assert!(
            folder.join("mod.rs").is_file(),
            "{} is no folder with a mod.rs",
            row[1]
        );
    }
}

#[test]
fn imports_point_downward() {
    let layers = layers();
    let mut wrong = Vec::new();
    for (module, names) in imports() {
        let layer = layers[&module];
        for (name, places) in names {
            // What is not a module is an item of the crate's root, of which there is none.
            let Some(other) = layers.get(&name) else { continue };
            if name != module && *other >= layer {
                let way = if *other > layer { "up" } else { "sideways" };
                wrong.push(format!(
                    "{module} ({layer}) looks {way} to {name} ({other}): {}",
                    places.join(", ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_do_not_depend_on_each_other_in_a_circle() {
    fn visit(
        module: &str,
        imports: &BTreeMap<String, BTreeMap<String, Vec<String>>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) {
        if let Some(at) = way.iter().position(|seen| seen == module) {
            panic!("a circle: {} -> {module}", way[at..].join(" -> "));
        }
        if done.contains(module) {
            return;
        }
        way.push(module.to_owned());
        for name in imports.get(module).into_iter().flat_map(BTreeMap::keys) {
            if name != module && imports.contains_key(name) {
                visit(name, imports, way, done);
            }
        }
        way.pop();
        done.insert(module.to_owned());
    }
    let imports = imports();
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        visit(module, &imports, &mut Vec::new(), &mut done);
    }
}

/// The order of the files in `core`, from the table "Core": each may name those above it.
#[test]
fn core_has_an_order_too() {
    let order: Vec<String> = table("Core").into_iter().map(|row| row[0].clone()).collect();
    let place = |name: &str| order.iter().position(|listed| listed == name);
    let mut present = BTreeSet::new();
    for file in sources("core/src") {
        let Some(module) = module_of(&file, "core/src").into_iter().next() else {
            continue;
        };
        let own = place(&module).unwrap_or_else(|| panic!("{module} is not in the table \"Core\""));
        for (name, lines) in named(&file, "core/src") {
            if let Some(other) = place(&name) {
                assert!(
                    other <= own,
                    "{}:{}: {module} names {name}, which the table puts below it",
                    file.display(),
                    lines[0]
                );
            }
        }
        present.insert(module);
    }
    assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), present);
}

#[test]
fn the_judges_depend_on_nothing_and_are_all_on_the_map() {
    let manifest = read("checkers/Cargo.toml");
    assert!(
        !manifest.contains("\n[dependencies]"),
        "bellwether-checkers has a dependency"
    );
    let listed: BTreeSet<String> = table("Checkers").into_iter().map(|row| row[0].clone()).collect();
    let present: BTreeSet<String> = sources("checkers/src")
        .iter()
        .filter_map(|file| module_of(file, "checkers/src").into_iter().next())
        .collect();
    assert_eq!(
        listed, present,
        "the table \"Checkers\" of docs/architecture.md and checkers/src differ"
    );
}

#[test]
fn core_depends_on_nothing() {
    let manifest = read("core/Cargo.toml");
    let dependencies = manifest
        .split("[dependencies]")
        .nth(1)
        .map_or("", |rest| rest.split('[').next().unwrap_or(""));
    assert_eq!(dependencies.trim(), "", "bellwether-core has a dependency");
    for file in sources("core/src") {
        if file.ends_with("tests.rs") {
            continue;
        }
        let code = code(&read(&file));
        let tests = [
            "#[cfg(test)]",
            "#[cfg(all(test, not(loom)))]",
            "#[cfg(loom)]\nmod ",
        ];
        let cut = tests.iter().filter_map(|test| code.find(test)).min();
        let code = &code[..cut.unwrap_or(code.len())];
        for word in [
            "std::time::Instant",
            "SystemTime",
            "std::net",
            "std::fs",
            "std::thread",
            "RandomState",
        ] {
            assert!(
                !code.contains(word),
                "{}: {word} has no place in core",
                file.display()
            );
        }
    }
}

/// Outside crates that one place alone may name, from the table "Who alone knows".
#[test]
fn outside_crates_are_known_where_they_belong() {
    let mut wrong = Vec::new();
    let sources: Vec<(String, String)> = sources("src")
        .into_iter()
        .filter(|file| !file.ends_with("tests.rs") && !file.ends_with("laws.rs"))
        .map(|file| {
            let text = code(&read(&file));
            let text = text.split("#[cfg(test)]").next().unwrap_or("").to_owned();
            (file.display().to_string(), text)
        })
        .collect();
    for row in table("Who alone knows") {
        let places: Vec<String> = row[1]
            .split(',')
            .map(|place| format!("src/{}", place.trim()))
            .collect();
        for place in &places {
            assert!(
                root().join(place).exists(),
                "{place} of the table \"Who alone knows\" is not there"
            );
        }
        for name in row[0].split(',').map(str::trim) {
            let path = format!("{name}::");
            let users = sources.iter().filter(|(_, text)| {
                text.match_indices(&path)
                    .any(|(at, _)| !ends_in_word(&text[..at]) && !text[..at].ends_with("::"))
            });
            for (file, _) in users {
                if !places.iter().any(|place| file.starts_with(place)) {
                    wrong.push(format!("{file} names {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let mut silent = Vec::new();
    for folder in [
        "src",
        "core/src",
        "checkers",
        "tests",
        "benches",
        "fuzz/fuzz_targets",
    ] {
        for file in sources(folder) {
            let text = read(&file);
            let first = text.lines().next().unwrap_or("");
            if !first.starts_with("//! ") || first.len() < 12 {
                silent.push(file.display().to_string());
            }
        }
    }
    assert!(
        silent.is_empty(),
        "no essay (`//!`) at the top of: {}",
        silent.join(", ")
    );
}

#[test]
fn nothing_is_left_for_later() {
    let later = ["todo", "unimplemented"].map(|word| format!("{word}!("));
    for folder in ["src", "core/src", "checkers", "tests", "benches"] {
        for file in sources(folder) {
            let code = code(&read(&file));
            for word in &later {
                assert!(!code.contains(word.as_str()), "{}: {word}", file.display());
            }
        }
    }
}

/// A path of the machine on which something was written means nothing on another.
#[test]
fn no_file_names_a_place_of_somebodys_machine() {
    // Put together here so that this file is not the first to be found.
    let places: Vec<String> = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/tmp/", "wt"]]
        .iter()
        .map(|[left, right]| format!("{left}{right}"))
        .collect();
    let mut found = Vec::new();
    for file in files("") {
        let Ok(text) = std::fs::read_to_string(root().join(&file)) else {
            continue;
        };
        for place in &places {
            for (at, _) in text.match_indices(place.as_str()) {
                // The middle of a longer path is another one.
                let before = text[..at].chars().next_back();
                if !before.is_some_and(|before| before.is_alphanumeric() || "._-}".contains(before)) {
                    let line = text[..at].matches('\n').count() + 1;
                    found.push(format!("{}:{line}: {place}", file.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// `file.rs::name` in the documents: the file is there and defines the name.
#[test]
fn what_the_map_points_at_is_there() {
    let mut wrong = Vec::new();
    let mut pointers = 0;
    for document in files("docs").into_iter().chain([PathBuf::from("README.md")]) {
        if document.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = read(&document);
        for quoted in text.split('`').skip(1).step_by(2) {
            let Some(end) = quoted.find(".rs").map(|at| at + 3) else {
                continue;
            };
            let (file, name) = quoted.split_at(end);
            if file.contains([' ', '*', '{', '\n']) || !(name.is_empty() || name.starts_with("::")) {
                continue;
            }
            pointers += 1;
            let candidates = [PathBuf::from(file), Path::new("src").join(file)];
            let Some(path) = candidates.iter().find(|path| root().join(path).is_file()) else {
                wrong.push(format!("{}: {file} is not there", document.display()));
                continue;
            };
            let Some(name) = name.strip_prefix("::").and_then(|name| name.rsplit("::").next()) else {
                continue;
            };
            let code = code(&read(path));
            let defined = ["fn", "struct", "enum", "trait", "const", "type", "mod"]
                .iter()
                .any(|kind| {
                    code.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
                        !code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
                });
            if !defined {
                wrong.push(format!(
                    "{}: {} does not define {name}",
                    document.display(),
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(pointers > 50, "the map points at {pointers} places only");
}

#[test]
fn the_map_fits_on_a_few_screens() {
    let lines = read("docs/architecture.md").lines().count();
    assert!(
        lines <= 300,
        "docs/architecture.md has {lines} lines; 300 are enough"
    );
}

/// The reader of imports reads what it should.
#[test]
fn comments_and_literals_are_not_code() {
    let text = "use crate::a; // crate::b\nlet s = \"crate::c\"; let c = '\"'; crate::d::e(r#\"crate::f\"#); &'a str";
    let code = code(text);
    assert!(code.contains("crate::a") && code.contains("crate::d"), "{code}");
    for gone in ["crate::b", "crate::c", "crate::f"] {
        assert!(!code.contains(gone), "{code}");
    }
    assert_eq!(
        first_names("{net::{Io, tls}, wire, self::x};"),
        ["net", "wire", "self"]
    );
    assert_eq!(first_names("net::Io"), ["net"]);
}
