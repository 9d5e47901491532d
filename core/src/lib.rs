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
//! small; [`balance`] picks endpoints. [`limit`], [`adaptive`], [`shed`] and [`rate`] say who must wait or go, [`breaker`]
//! who need not come, [`backoff`], [`budget`] and [`hedge`] when to ask again, [`idle`] when a connection is too old for
//! it. Who may be picked is the [`arbiter`]'s: [`health`], [`heartbeat`] and [`phi`], [`outlier`] (by what it counts and
//! by [`recent`] times) and [`ejection`] tell it what they know, [`self_health`] how far to
//! believe them, [`mod@panic`] says what to do when nobody is left, and [`pick`] puts it together. [`group`] is about
//! endpoints that replicate one state: who leads, and what may be read where.

#![warn(missing_docs)]

pub mod adaptive;
pub mod arbiter;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod buckets;
pub mod budget;
pub mod deadline;
pub mod dice;
pub mod ejection;
pub mod group;
mod hash;
pub mod health;
pub mod heartbeat;
pub mod hedge;
pub mod histogram;
pub mod idle;
pub mod limit;
pub mod line;
pub mod mode;
pub mod moment;
pub mod outcome;
pub mod outlier;
pub mod panic;
pub mod phi;
pub mod pick;
pub mod pulse;
pub mod rate;
pub mod reason;
pub mod recent;
pub mod self_health;
pub mod shed;
pub mod shelf;
pub mod slow_start;
mod sync;
pub mod window;

pub use deadline::Deadline;
pub use dice::Dice;
pub use mode::Mode;
pub use moment::Moment;
pub use outcome::{Origin, Outcome};
pub use reason::{Phase, Reason, TerminatedBy};
