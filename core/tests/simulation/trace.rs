//! What happened, as a number to compare runs by and as a tail to read.
//!
//! Everything that matters is noted once. The number covers all of it; the tail only the last few hundred notes, as
//! values that are turned into text when somebody wants to read them.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

use bellwether_core::Moment;
use bellwether_core::breaker::{Cause, State};

use crate::world::{Fault, Step};

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Note {
    Arrived {
        request: u32,
        get: bool,
    },
    Sent {
        request: u32,
        server: usize,
        role: &'static str,
    },
    Step {
        request: u32,
        server: usize,
        step: Step,
    },
    Retry {
        request: u32,
        why: &'static str,
    },
    Hedged {
        request: u32,
    },
    Ended {
        request: u32,
        how: &'static str,
    },
    Breaker {
        of: Option<usize>,
        from: State,
        to: State,
        cause: Cause,
    },
    Ejected {
        server: usize,
        nth: u32,
        why: &'static str,
    },
    Kept {
        server: usize,
        why: &'static str,
    },
    Probed {
        server: usize,
        conclusion: &'static str,
    },
    Checked {
        server: usize,
        result: &'static str,
    },
    Said {
        server: usize,
        by: &'static str,
        what: &'static str,
    },
    Panic {
        began: bool,
    },
    Fault {
        server: usize,
        fault: Fault,
    },
}

/// The notes of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    tail: VecDeque<(Moment, Note)>,
    length: usize,
}

impl Trace {
    pub fn new(length: usize) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            tail: VecDeque::new(),
            length,
        }
    }

    pub fn note(&mut self, now: Moment, note: Note) {
        self.count += 1;
        let mut hasher = Fnv(self.hash);
        now.as_nanos().hash(&mut hasher);
        note.hash(&mut hasher);
        self.hash = hasher.finish();
        if self.tail.len() == self.length {
            self.tail.pop_front();
        }
        self.tail.push_back((now, note));
    }

    /// Equal for equal runs.
    pub fn fingerprint(&self) -> (u64, u64) {
        (self.hash, self.count)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (when, note) in &self.tail {
            writeln!(f, "{:>12.6}  {note:?}", when.as_nanos() as f64 / 1e9)?;
        }
        Ok(())
    }
}

impl Hash for Note {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match *self {
            Self::Arrived { request, get } => (request, get).hash(state),
            Self::Sent {
                request,
                server,
                role,
            } => (request, server, role).hash(state),
            Self::Step {
                request,
                server,
                step,
            } => (request, server, step).hash(state),
            Self::Retry { request, why } => (request, why).hash(state),
            Self::Hedged { request } => request.hash(state),
            Self::Ended { request, how } => (request, how).hash(state),
            Self::Breaker { of, from, to, cause } => (of, from, to, cause.name()).hash(state),
            Self::Ejected { server, nth, why } => (server, nth, why).hash(state),
            Self::Kept { server, why } => (server, why).hash(state),
            Self::Probed { server, conclusion } => (server, conclusion).hash(state),
            Self::Checked { server, result } => (server, result).hash(state),
            Self::Said { server, by, what } => (server, by, what).hash(state),
            Self::Panic { began } => began.hash(state),
            Self::Fault { server, fault } => (server, fault).hash(state),
        }
    }
}

/// FNV-1a: the same on every platform and in every version, unlike the standard library's.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
