//! What the parts of a configuration must say to each other: names that exist, choices that are one, rules that hold.

use super::Config;
use super::diagnostic::Diagnostics;
use super::effective::Effective;

/// Runs every check.
pub fn all(_config: &Config, _effective: &Effective, _out: &mut Diagnostics) {}
