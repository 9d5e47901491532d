//! The composition root: every long-lived object is made here, once, visibly.

pub mod watch;
