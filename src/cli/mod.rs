//! The command line: one subcommand per file.

pub mod check;
pub mod client;
pub mod config;
pub mod demo;
pub mod drain;
pub mod explain;
pub mod loglevel;
pub mod reload;
pub mod run;
pub mod schema;
pub mod wait;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::snapshot::compile;

/// A layer-7 proxy that keeps working when your services do not.
#[derive(Debug, Parser)]
#[command(name = "bellwether", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve in the foreground, watch the file, drain on SIGTERM
    Run(run::RunArgs),
    /// Three small services and the proxy in front of them, to try things out
    Demo(demo::DemoArgs),
    /// Parse and validate a configuration, and run its tests
    Check(check::CheckArgs),
    /// Show the configuration in force
    Config(config::ConfigArgs),
    /// Say which route a request takes, and why not an earlier one
    Explain(explain::ExplainArgs),
    /// Print the JSON Schema of the configuration
    Schema(schema::SchemaArgs),
    /// Apply the file now; print what changed or why not
    Reload(reload::ReloadArgs),
    /// Say "not ready" to whoever sends traffic here
    Drain(drain::DrainArgs),
    /// Take a drain back
    Undrain(drain::UndrainArgs),
    /// Drain, then end the process
    Quit(drain::QuitArgs),
    /// Wait until the proxy is ready, or run a command then
    Wait(wait::WaitArgs),
    /// Change how much the running proxy says
    LogLevel(loglevel::LogLevelArgs),
    /// Print the version
    Version,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nobody is left to tell if this fails.
            error.print().unwrap_or(());
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Demo(args)) => demo::run(&args),
        Some(Command::Check(args)) => check::run(&args, |document, diagnostics| {
            compile::dry_run(document, diagnostics).map_or(0, |_| document.config.tests.len())
        }),
        Some(Command::Config(args)) => config::run(&args),
        Some(Command::Schema(args)) => schema::run(&args),
        Some(Command::Explain(args)) => explain::run(&args),
        Some(Command::Reload(args)) => reload::run(&args),
        Some(Command::Drain(args)) => drain::drain(&args),
        Some(Command::Undrain(args)) => drain::undrain(&args),
        Some(Command::Quit(args)) => drain::quit(&args),
        Some(Command::Wait(args)) => wait::run(&args),
        Some(Command::LogLevel(args)) => loglevel::run(&args),
        Some(Command::Version) => check::print(&format!("bellwether {}\n", env!("CARGO_PKG_VERSION"))),
        None => {
            check::complain(&Cli::command().render_help().to_string());
            ExitCode::from(2)
        }
    }
}
