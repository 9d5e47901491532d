//! `bellwether schema`: the JSON Schema of the configuration, for editors and other tools.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;

use crate::config::schema;

/// Prints the JSON Schema of the configuration.
#[derive(Debug, Args)]
pub struct SchemaArgs {}

/// Runs the command.
#[must_use]
pub fn run(_args: &SchemaArgs) -> ExitCode {
    let text = format!("{:#}\n", schema::json_schema());
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}
