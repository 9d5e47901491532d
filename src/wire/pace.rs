//! How fast content must come while it is wanted, the same for both protocols.
//!
//! Two rules: no wait for the next byte is longer than the idle time, and over all waits together a minimum of bytes
//! per second arrives. Only time spent waiting counts: a service that reads slowly is not held against its client. The
//! clock is read when a wait begins and when it ends, so content that is there when it is asked for costs nothing.

use std::task::{Context, Poll};
use std::time::Duration;

use bellwether_core::Moment;

use crate::net::wheel::Timer;

/// A body slower than this many bytes per second, once [`RATE_AFTER`] has passed, is an attack or a dead link.
const MIN_RATE: u64 = 240;
const RATE_AFTER: Duration = Duration::from_secs(5);

/// What one body has shown so far.
#[derive(Debug)]
pub(super) struct Pace {
    received: u64,
    waited: Duration,
    waiting_since: Moment,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            received: 0,
            waited: Duration::ZERO,
            waiting_since: Moment::ZERO,
        }
    }
}

impl Pace {
    /// Nothing is there: ready when the wait has become too long. The timer is armed by the first call.
    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>, timer: &Timer, idle: Duration) -> Poll<()> {
        if !timer.is_armed() {
            self.waiting_since = timer.wheel().now();
            timer.set(self.waiting_since.plus(idle));
        }
        timer.poll_expired(cx)
    }

    /// So many bytes came. Whether that is too slow, all waits taken together.
    pub(super) fn is_too_slow(&mut self, timer: &Timer, bytes: usize) -> bool {
        self.received += bytes as u64;
        if !timer.is_armed() {
            return false;
        }
        timer.clear();
        self.waited += timer.wheel().now().since(self.waiting_since);
        self.waited > RATE_AFTER && self.received < MIN_RATE * self.waited.as_secs()
    }
}
