//! The composition root: every long-lived object is made here, once, visibly.

pub mod systemd;
pub mod upgrade;
pub mod watch;
