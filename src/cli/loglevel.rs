//! `bellwether log-level`: how much the running proxy says about itself.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::client::{self, AdminArgs};

/// Changes the level of the diagnostic log until the next restart.
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How much is said
    #[arg(value_parser = ["error", "warn", "info", "debug", "trace"])]
    level: String,
}

/// Runs the command.
#[must_use]
pub fn run(args: &LogLevelArgs) -> ExitCode {
    client::run(&args.admin, async |client| {
        let content = json!({ "level": args.level });
        client.send("PUT", "/api/v1/log", Some(&content)).await?.done()?;
        Ok(client::print(&format!("log level is {}\n", args.level)))
    })
}
