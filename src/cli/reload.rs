//! `bellwether reload`: take up the configuration file now, and say what came of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use serde_json::{Value, json};

use super::check;
use super::client::{self, AdminArgs, Client, Failure};

/// Takes up the configuration file now.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Wait until the proxy is ready with it, a minute at most
    #[arg(long)]
    wait: bool,
}

/// Runs the command.
#[must_use]
pub fn run(args: &ReloadArgs) -> ExitCode {
    client::run(&args.admin, |client| reload(client, args.dry_run, args.wait))
}

async fn reload(client: Client, dry_run: bool, wait: bool) -> Result<ExitCode, Failure> {
    let content = json!({ "dry_run": dry_run });
    let answer = client.send("POST", "/api/v1/reload", Some(&content)).await?;
    let word = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    if answer.status == StatusCode::UNPROCESSABLE_ENTITY {
        let generation = answer
            .json
            .get("generation")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        let text = format!(
            "reload refused, generation {generation} stays in force\n{}",
            word(&answer.json, "text")
        );
        check::complain(&text);
        return Ok(ExitCode::from(3));
    }
    let report = answer.done()?;
    check::complain(&word(&report, "text"));
    let generation = report
        .get("generation")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let mut said = match &*word(&report, "outcome") {
        "unchanged" => format!("nothing changed, generation {generation} stays in force\n"),
        "valid" => "the file is valid; it would change:\n".to_owned(),
        _ => format!("generation {generation} is in force\n"),
    };
    let changes = report.get("changes").and_then(Value::as_array);
    for change in changes.into_iter().flatten().filter_map(Value::as_str) {
        said.push_str(&format!("  {change}\n"));
    }
    if wait && !dry_run {
        let ready = |answer: &client::Answer| answer.status == StatusCode::OK;
        client::poll(
            &client,
            "/readyz",
            Duration::from_secs(60),
            "getting ready",
            ready,
        )
        .await?;
    }
    Ok(client::print(&said))
}
