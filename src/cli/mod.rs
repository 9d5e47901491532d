//! The command line: one subcommand per file.

pub mod check;
pub mod client;
pub mod config;
pub mod drain;
pub mod explain;
pub mod loglevel;
pub mod reload;
pub mod schema;
pub mod wait;
