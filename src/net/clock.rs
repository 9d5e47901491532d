//! The one clock of the shell.
//!
//! Everything that waits uses tokio's time, and everything that decides gets a [`Moment`] counted from one origin, so
//! paused test time governs both. Wall time appears in three places only: access-log lines, the `date` field and
//! certificate dates.

use std::time::Duration;

use bellwether_core::Moment;
use tokio::time::Instant;

/// Converts between tokio's instants and [`Moment`]s of one origin. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

/// How far back a moment can lie at the start.
const PAST: Duration = Duration::from_secs(3600);

impl Clock {
    /// A clock whose `Moment::ZERO` is an hour ago: "a moment ago" exists right from the start, and what a predecessor
    /// saw shortly before it handed over can be said.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            origin: now.checked_sub(PAST).unwrap_or(now),
        }
    }

    /// The present moment (one vDSO clock read).
    pub fn now(&self) -> Moment {
        let elapsed = self.origin.elapsed();
        Moment::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The instant that tokio's timers understand.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.origin
            .checked_add(Duration::from_nanos(moment.as_nanos()))
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365))
    }
}
