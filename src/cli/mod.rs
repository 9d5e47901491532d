//! The command line: one subcommand per file.

pub mod check;
pub mod config;
pub mod schema;
