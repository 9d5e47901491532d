//! Models of upstreams: replicated registers that exist only in virtual time.
//!
//! A simulation needs upstreams that fail in the ways real ones do, in any order of events, a thousand times a second.
//! [`raft`] is a quorum of nodes that behaves as etcd does: followers forward, isolated ones answer local reads for ever, a
//! leader that was cut off claims to lead for a while after its successor, what waited in a paused one is committed late.
//!
//! What must stay true: equal calls with equal chance give equal answers; nothing happens except in `tick` and by the
//! orders of whoever plays nemesis; and a model says what it has applied, so that judges can compare.

pub mod raft;

use crate::history::Value;

/// Nanoseconds of virtual time.
pub type Time = u64;

/// Chance, handed in: a number below the given one.
pub type Chance<'a> = dyn FnMut(u32) -> u32 + 'a;

/// A millisecond.
pub const MS: Time = 1_000_000;

/// What a client asks of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A read; `local` may be answered by whoever is asked with what it has (etcd: serializable).
    Read {
        /// Which register.
        key: String,
        /// Whether any state is good enough.
        local: bool,
    },
    /// A write.
    Write {
        /// Which register.
        key: String,
        /// What it shall hold.
        value: Value,
    },
    /// A compare-and-set.
    Cas {
        /// Which register.
        key: String,
        /// What it must hold; `None`: nothing.
        expected: Option<Value>,
        /// What it shall hold then.
        new: Value,
    },
}

/// What a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// What a read saw, and how far the state was that it saw.
    Saw {
        /// The content.
        value: Option<Value>,
        /// The position of the state.
        position: u64,
    },
    /// Done, at a position.
    Done {
        /// The position of the write.
        position: u64,
    },
    /// The register held something else.
    CasFailed {
        /// The position of the state that was compared.
        position: u64,
    },
    /// Not here, and nothing has been done.
    NotLeader,
    /// Nobody can say what became of it.
    TimedOut,
}
