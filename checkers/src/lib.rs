//! Judges of histories: what clients of a replicated register were told, and whether it can be true.
//!
//! A proxy that says "linearizable" or "read your writes" makes claims that no test of a single answer can check: each
//! answer may be fine and the whole impossible. So runs are recorded as a [`history`] and judged afterwards by code that
//! knows nothing of proxies: [`linear`] for one order that explains every answer, [`session`] for what one client may
//! expect of its own past, [`loss`] for writes that were acknowledged and are gone, or refused and are there.
//!
//! A judge is worth what it catches. Each is tested against histories that are known to be good and known to be bad, and
//! the searching one against a second implementation that tries every order. What must stay true: a judge accuses only
//! with a proof that a person can check, and says that it does not know rather than guess.
//!
//! [`model`] has upstreams in virtual time to record runs of, for simulations.
//!
//! No clock, no I/O, no dependency: integration tests, the simulator and the proofs use the same judges.

#![warn(missing_docs)]

pub mod history;
pub mod linear;
pub mod loss;
pub mod model;
pub mod session;

pub use history::{Applied, History, Kind, Operation, Outcome, Value};
