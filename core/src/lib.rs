//! The decisions of the Bellwether proxy.
//!
//! Everything that is hard to get right in a proxy is a decision: which endpoint, whether once more, whether at all, what
//! to say. Decisions are wrong in ways that show only at the third failure of an unlucky minute, so they live here, where
//! that minute can be replayed ten thousand times: functions and small state machines over values, with time
//! ([`Moment`]) and chance ([`Dice`]) passed in. The shell (package `bellwether`) performs what is decided.
//!
//! What belongs here: any rule that could be wrong while every socket works. What never may: a clock, a source of
//! randomness, a task, a socket, a file, a lock held across calls, a dependency. The crate has none, so the compiler keeps
//! the promise; shared state is atomics, each with an `Ordering:` comment.
//!
//! Reading order: [`moment`], [`dice`], [`reason`], [`outcome`] are the vocabulary; [`deadline`] and [`slow_start`] are
//! small; [`balance`] picks endpoints.

#![warn(missing_docs)]

pub mod balance;
pub mod deadline;
pub mod dice;
pub mod moment;
pub mod outcome;
pub mod reason;
pub mod slow_start;

pub use deadline::Deadline;
pub use dice::Dice;
pub use moment::Moment;
pub use outcome::{Origin, Outcome};
pub use reason::{Phase, Reason, TerminatedBy};
