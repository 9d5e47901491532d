//! `bellwether wait`: block until the proxy is ready, and perhaps run a command then.
//!
//! For containers whose program must not start before its proxy, and for jobs whose proxy must end with them.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use serde_json::json;

use super::check;
use super::client::{self, AdminArgs, Answer, Client, Failure};

/// Blocks until the proxy is ready; runs a command after that.
#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = client::duration)]
    timeout: Duration,
    /// Stop the proxy when the command has ended
    #[arg(long, requires = "command")]
    quit: bool,
    /// What to run once the proxy is ready; its exit code becomes ours
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command.
#[must_use]
pub fn run(args: &WaitArgs) -> ExitCode {
    client::run(&args.admin, |client| wait(client, args))
}

async fn wait(client: Client, args: &WaitArgs) -> Result<ExitCode, Failure> {
    let ready = |answer: &Answer| answer.status == StatusCode::OK;
    client::poll(&client, "/readyz", args.timeout, "waiting for the proxy", ready).await?;
    let Some((program, arguments)) = args.command.split_first() else {
        return Ok(ExitCode::SUCCESS);
    };
    // Nothing else runs on this thread, so waiting for a child may block it.
    let code = match Command::new(program).args(arguments).status() {
        // As shells say it: 128 and the signal.
        Ok(status) => status.code().unwrap_or_else(|| {
            use std::os::unix::process::ExitStatusExt as _;
            status.signal().map_or(1, |signal| 128 + signal)
        }),
        Err(error) => {
            check::complain(&format!(
                "error: cannot run {}: {error}\n",
                program.to_string_lossy()
            ));
            127
        }
    };
    if args.quit {
        client
            .send("POST", "/quitquitquit", Some(&json!({})))
            .await?
            .done()?;
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
