//! `bellwether config show`: the configuration in force, long form, with the origin of every value.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::check;
use crate::config::show;

/// Looks at the configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print everything that holds, defaults included
    Show(ShowArgs),
}

/// What to show.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Configuration file; `-` reads standard input
    #[arg(short, long, env = "BELLWETHER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say beside every value where it comes from: file:line, profile or default
    #[arg(long)]
    origin: bool,
    /// Only this part, for example `clusters.app` or `routes.shop.retry`
    #[arg(long, value_name = "PATH")]
    only: Option<String>,
}

/// Runs the command.
#[must_use]
pub fn run(args: &ConfigArgs) -> ExitCode {
    let ConfigCommand::Show(args) = &args.command;
    let (document, _) = match check::load(args.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(failure) => return failure.report(check::Format::Text, check::look(false)),
    };
    match show::yaml(&document, args.only.as_deref(), args.origin) {
        Ok(text) => {
            if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
                return ExitCode::from(1);
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            check::complain(&format!("error: {why}\n"));
            ExitCode::from(2)
        }
    }
}
