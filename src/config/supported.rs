//! What this version knows but does not perform yet.
use super::Config;
use super::diagnostic::Diagnostics;

/// Refuses what is written and not performed.
pub fn check(_config: &Config, _out: &mut Diagnostics) {}
