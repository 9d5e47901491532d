//! `bellwether drain`, `undrain` and `quit`: the ways out.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{self, AdminArgs, Answer};

/// Says not ready and finishes what runs; the process stays.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Wait until no connection and no request is left
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = client::duration)]
    max: Duration,
}

/// Takes a drain back.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Drains, then exits.
#[derive(Debug, Args)]
pub struct QuitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Without waiting for what runs
    #[arg(long)]
    now: bool,
}

/// Runs `drain`.
#[must_use]
pub fn drain(args: &DrainArgs) -> ExitCode {
    client::run(&args.admin, async |client| {
        client
            .send("POST", "/api/v1/drain", Some(&json!({})))
            .await?
            .done()?;
        if args.wait {
            client::poll(&client, "/api/v1", args.max, "draining", is_empty).await?;
            return Ok(client::print("drained\n"));
        }
        Ok(client::print("draining\n"))
    })
}

/// Whether nobody is connected and nothing runs.
fn is_empty(answer: &Answer) -> bool {
    let none = |name: &str| answer.json.get(name).and_then(Value::as_u64) == Some(0);
    answer.status.is_success() && none("connections") && none("requests_in_flight")
}

/// Runs `undrain`.
#[must_use]
pub fn undrain(args: &UndrainArgs) -> ExitCode {
    client::run(&args.admin, async |client| {
        client
            .send("POST", "/api/v1/undrain", Some(&json!({})))
            .await?
            .done()?;
        Ok(client::print("taking traffic again\n"))
    })
}

/// Runs `quit`.
#[must_use]
pub fn quit(args: &QuitArgs) -> ExitCode {
    client::run(&args.admin, async |client| {
        let content = json!({ "now": args.now });
        client
            .send("POST", "/quitquitquit", Some(&content))
            .await?
            .done()?;
        Ok(client::print("stopping\n"))
    })
}
