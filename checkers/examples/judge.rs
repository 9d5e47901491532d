//! Judges a recorded run and prints what a person needs to see why it cannot be.
//!
//! ```text
//! cargo run -p bellwether-checkers --example judge -- run.history
//! ```
//!
//! Exits with 0 if every judge is content, with 1 if one is not, with 2 if the file cannot be read. The log of applied
//! writes is judged if the file has one; staleness is not, because only the run knows its bound.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bellwether_checkers::{
    History,
    linear::{self, Verdict},
    loss,
    session::{self, Scope},
};

/// Violations of session guarantees that are shown in full.
const SHOWN: usize = 20;

fn main() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let Some(path) = std::env::args().nth(1) else {
        writeln!(out, "usage: judge FILE, a history as written by `History`")?;
        return Ok(ExitCode::from(2));
    };
    let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let history: History = match read.and_then(|text| text.parse().map_err(|error| format!("{error}"))) {
        Ok(history) => history,
        Err(error) => {
            writeln!(out, "{path}: {error}")?;
            return Ok(ExitCode::from(2));
        }
    };
    writeln!(out, "{}", loss::Tally::of(&history))?;

    let report = linear::check(&history, linear::STEPS);
    writeln!(out, "\nlinearizability: {}", report.explain(&history))?;
    let mut content = report.verdict() == Verdict::Linearizable;

    let mut anomalies = loss::effects(&history);
    if !history.applied().is_empty() {
        anomalies.extend(loss::against_log(&history));
        let report = session::check(&history, Scope::Key);
        writeln!(out, "sessions: {}", report.explain(&history, SHOWN))?;
        content &= report.violations.is_empty();
    }
    anomalies.sort();
    anomalies.dedup();
    writeln!(out, "loss: {} anomalies", anomalies.len())?;
    for anomaly in &anomalies {
        writeln!(out, "\n{}", anomaly.explain(&history))?;
    }
    content &= anomalies.is_empty();
    Ok(if content {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
