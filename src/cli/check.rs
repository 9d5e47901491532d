//! `bellwether check`: everything that is wrong with a configuration, without starting anything.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::config::render::{self, Look};
use crate::config::{Diagnostic, Diagnostics, Document, Reader, Severity};

/// Places that are looked at when no file is named.
const SEARCHED: [&str; 2] = ["./bellwether.yaml", "/etc/bellwether/bellwether.yaml"];

/// Checks a configuration.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file; `-` reads standard input
    #[arg(short, long, env = "BELLWETHER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
    /// Also show hints
    #[arg(short, long)]
    verbose: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document, stable.
    Json,
    /// Annotations of GitHub Actions.
    Github,
    /// SARIF 2.1.0 for code scanning.
    Sarif,
}

/// Runs the command. `compile` does the rest of the checking (certificates, tests) and says how many tests passed.
#[must_use]
pub fn run(args: &CheckArgs, compile: impl FnOnce(&Document, &mut Diagnostics) -> usize) -> ExitCode {
    let look = Look {
        hints: args.verbose || args.output != Format::Text,
        ..look(args.verbose)
    };
    let (document, name) = match load(args.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(failure) => return failure.report(args.output, look),
    };
    let mut diagnostics = document.diagnostics.clone();
    let tests = compile(&document, &mut diagnostics);
    let refused = diagnostics.has_errors() || (args.strict && diagnostics.count(Severity::Warning) > 0);
    if refused {
        return Failure {
            code: code(&diagnostics),
            diagnostics,
            name,
        }
        .report(args.output, look);
    }
    let said = match args.output {
        Format::Text => {
            complain(&render::text(&diagnostics, look));
            success(&name, &document, &diagnostics, tests, args.verbose)
        }
        other => form(&diagnostics, other),
    };
    match std::io::stdout().lock().write_all(said.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}

/// `bellwether.yaml: ok (3 routes, 2 clusters, …)`.
#[must_use]
pub fn success(
    name: &str,
    document: &Document,
    diagnostics: &Diagnostics,
    tests: usize,
    verbose: bool,
) -> String {
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let mut parts = vec![
        count(document.config.routes.len(), "route"),
        count(document.effective.clusters.len(), "cluster"),
    ];
    if tests > 0 {
        parts.push(format!("{} passed", count(tests, "test")));
    }
    let warnings = diagnostics.count(Severity::Warning);
    if warnings > 0 {
        parts.push(count(warnings, "warning"));
    }
    let hints = diagnostics.count(Severity::Hint);
    if hints > 0 {
        parts.push(count(hints, "hint"));
    }
    let more = if hints > 0 && !verbose {
        "; bellwether check -v shows hints"
    } else {
        ""
    };
    format!("{name}: ok ({}{more})\n", parts.join(", "))
}

/// A configuration that could not be taken.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub diagnostics: Diagnostics,
    /// The file, as people call it.
    pub name: String,
    /// What to exit with.
    pub code: u8,
}

impl Failure {
    /// Says why, and gives the exit code.
    #[must_use]
    pub fn report(&self, format: Format, look: Look) -> ExitCode {
        if format == Format::Text {
            let mut said = render::text(&self.diagnostics, look);
            if !self.name.is_empty() {
                said.push_str(&format!(
                    "\n{}: {}\n",
                    self.name,
                    render::counts(&self.diagnostics)
                ));
            }
            complain(&said);
        } else if std::io::stdout()
            .lock()
            .write_all(form(&self.diagnostics, format).as_bytes())
            .is_err()
        {
            return ExitCode::from(1);
        }
        ExitCode::from(self.code)
    }
}

fn form(diagnostics: &Diagnostics, format: Format) -> String {
    match format {
        Format::Text => render::text(diagnostics, Look::default()),
        Format::Json => format!("{:#}\n", render::json(diagnostics)),
        Format::Github => render::github(diagnostics),
        Format::Sarif => format!("{:#}\n", render::sarif(diagnostics)),
    }
}

/// 3 for what is written, 4 for what the machine refuses.
fn code(diagnostics: &Diagnostics) -> u8 {
    if diagnostics.only_the_machine_refuses() {
        4
    } else {
        3
    }
}

/// Finds and reads the configuration: the one named, or the first of the usual places. Gives it with its name.
///
/// # Errors
/// What is wrong with it, or that there is none.
pub fn load(named: Option<&Path>) -> Result<(Document, String), Failure> {
    let refused = |name: &str| {
        let name = name.to_owned();
        move |diagnostics: Diagnostics| Failure {
            code: code(&diagnostics),
            diagnostics,
            name,
        }
    };
    if named == Some(Path::new("-")) {
        let mut bytes = Vec::new();
        let limit = u64::try_from(crate::config::yaml::MAX_BYTES + 1).unwrap_or(u64::MAX);
        let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
        if let Err(error) = read {
            let diagnostic =
                Diagnostic::error("E0606", "standard input cannot be read").note(error.to_string());
            return Err(missing(diagnostic));
        }
        let name = "standard input";
        return Reader::new()
            .read_bytes(name, &bytes)
            .map(|document| (document, name.to_owned()))
            .map_err(refused(name));
    }
    let path = match named {
        Some(path) => path.to_path_buf(),
        None => match SEARCHED.iter().map(Path::new).find(|path| path.exists()) {
            Some(path) => path.strip_prefix("./").unwrap_or(path).to_path_buf(),
            None => return Err(missing(no_file())),
        },
    };
    let name = path.display().to_string();
    Reader::new()
        .read(&path)
        .map(|document| (document, name.clone()))
        .map_err(|diagnostics| {
            let unreadable = diagnostics.iter().all(|diagnostic| diagnostic.code == "E0606");
            if unreadable {
                Failure {
                    diagnostics,
                    name: String::new(),
                    code: 4,
                }
            } else {
                refused(&name)(diagnostics)
            }
        })
}

/// No file was named and none was found.
#[must_use]
pub fn no_file() -> Diagnostic {
    Diagnostic::error("E0606", "no configuration file")
        .note(format!("looked at: {}", SEARCHED.join(", ")))
        .help("name one with `-c FILE`, or begin with config/quickstart.yaml; `bellwether demo` needs none")
}

fn missing(diagnostic: Diagnostic) -> Failure {
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(diagnostic);
    Failure {
        diagnostics,
        name: String::new(),
        code: 4,
    }
}

/// How to write to this process's standard error.
#[must_use]
pub fn look(hints: bool) -> Look {
    let color =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let width = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(100);
    Look { color, width, hints }
}

/// Writes to standard error; there is nobody to tell when that fails.
pub fn complain(text: &str) {
    std::io::stderr()
        .lock()
        .write_all(text.as_bytes())
        .unwrap_or_default();
}

/// Writes data to standard output; a reader that has gone is a failure.
#[must_use]
pub fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}
