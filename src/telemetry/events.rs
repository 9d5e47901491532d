//! What changed, in the order it changed.
//!
//! Metrics say how much and the log says what a request met; this says when the proxy changed its mind and on what
//! evidence. State changes are seldom (a breaker, a health check, a reload), so a mutex and a ring are enough, and the
//! ring answers "what happened before I looked?". Who listens live gets the same events through a channel that loses the
//! oldest rather than waiting.
//!
//! Invariant: `seq` counts from 1 without gaps, so a reader who sees a gap knows that it was too slow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

/// Events kept.
pub const EVENTS_KEPT: usize = 10_000;

/// Events a live reader may be behind.
const BEHIND: usize = 256;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A circuit breaker.
    Breaker,
    /// An endpoint that behaves worse than others.
    Ejection,
    /// The health of an endpoint.
    Health,
    /// The members of a cluster.
    Discovery,
    /// The configuration in force.
    Config,
    /// A certificate in use.
    Certificate,
    /// A listener was bound or let go.
    Listener,
    /// The process on its way out.
    Drain,
    /// A new binary took over, or did not.
    Replacement,
    /// How far this process trusts its own clock.
    SelfHealth,
    /// Too few endpoints of a cluster are left.
    Panic,
    /// How much the process gives up because it is short of something.
    Overload,
}

impl EventKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Breaker,
        Self::Ejection,
        Self::Health,
        Self::Discovery,
        Self::Config,
        Self::Certificate,
        Self::Listener,
        Self::Drain,
        Self::Replacement,
        Self::SelfHealth,
        Self::Panic,
        Self::Overload,
    ];

    /// The word in the stream.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Ejection => "ejection",
            Self::Health => "health",
            Self::Discovery => "discovery",
            Self::Config => "config",
            Self::Certificate => "certificate",
            Self::Listener => "listener",
            Self::Drain => "drain",
            Self::Replacement => "replacement",
            Self::SelfHealth => "self_health",
            Self::Panic => "panic",
            Self::Overload => "overload",
        }
    }

    /// The kind with this word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// What there is to say about a change; [`Events::push`] adds the number and the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What changed.
    pub kind: EventKind,
    /// Whose state: `cluster/endpoint`, a listener, a file.
    pub subject: String,
    /// The state before.
    pub from: String,
    /// The state now.
    pub to: String,
    /// Why, in a word of a closed list.
    pub reason: String,
    /// What that was concluded from, for people.
    pub evidence: String,
    /// The configuration that served.
    pub generation: u64,
}

/// A change with its place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts from 1.
    pub seq: u64,
    /// Milliseconds since 1970. May go back when the clock is set; `seq` does not.
    pub time: u64,
    /// What changed.
    pub kind: EventKind,
    /// Whose state.
    pub subject: String,
    /// The state before.
    pub from: String,
    /// The state now.
    pub to: String,
    /// Why.
    pub reason: String,
    /// What that was concluded from.
    pub evidence: String,
    /// The configuration that served.
    pub generation: u64,
}

/// The ring, and whoever listens to it.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Event>>,
    keep: usize,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    events: VecDeque<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(EVENTS_KEPT)
    }
}

impl Events {
    /// A ring of `keep` events.
    pub fn new(keep: usize) -> Self {
        Self {
            ring: Mutex::new(Ring::default()),
            live: broadcast::Sender::new(BEHIND),
            keep,
        }
    }

    /// Adds a change and tells who listens.
    pub fn push(&self, change: Change) -> Arc<Event> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Change {
            kind,
            subject,
            from,
            to,
            reason,
            evidence,
            generation,
        } = change;
        let mut ring = self.ring.lock();
        ring.last += 1;
        let event = Arc::new(Event {
            seq: ring.last,
            time: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            kind,
            subject,
            from,
            to,
            reason,
            evidence,
            generation,
        });
        while ring.events.len() >= self.keep.max(1) {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::clone(&event));
        // Under the lock, so that nobody hears the second before the first. Sending never waits; an error only says
        // that nobody listens.
        _ = self.live.send(Arc::clone(&event));
        drop(ring);
        event
    }

    /// What happened after event `seq` (0: everything that is kept), oldest first, of one kind or of all.
    pub fn since(&self, seq: u64, kind: Option<EventKind>) -> Vec<Arc<Event>> {
        let ring = self.ring.lock();
        let first = ring.events.partition_point(|event| event.seq <= seq);
        let events = ring
            .events
            .range(first..)
            .filter(|event| kind.is_none_or(|kind| event.kind == kind));
        events.map(Arc::clone).collect()
    }

    /// The number of the last event; 0 before the first.
    pub fn last(&self) -> u64 {
        self.ring.lock().last
    }

    /// What is kept after `seq`, and everything that follows: nothing lost and nothing twice in between. A reader that
    /// falls behind learns so from the channel and finds the gap by `seq`.
    pub fn follow(&self, seq: u64) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.ring.lock();
        let live = self.live.subscribe();
        let first = ring.events.partition_point(|event| event.seq <= seq);
        (ring.events.range(first..).map(Arc::clone).collect(), live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: EventKind, subject: &str) -> Change {
        Change {
            kind,
            subject: subject.to_owned(),
            from: "up".to_owned(),
            to: "down".to_owned(),
            reason: "check_failed".to_owned(),
            evidence: "3 of 3 checks failed".to_owned(),
            generation: 7,
        }
    }

    #[test]
    fn the_ring_keeps_the_last_ones_and_the_numbers_have_no_gap() {
        let events = Events::new(3);
        for subject in ["a", "b", "c", "d", "e"] {
            events.push(change(EventKind::Health, subject));
        }
        let seen: Vec<(u64, String)> = events
            .since(0, None)
            .iter()
            .map(|event| (event.seq, event.subject.clone()))
            .collect();
        assert_eq!(
            seen,
            [(3, "c".to_owned()), (4, "d".to_owned()), (5, "e".to_owned())]
        );
        assert_eq!(events.since(4, None).len(), 1);
        assert!(events.since(5, None).is_empty() && events.since(99, None).is_empty());
        assert_eq!(events.last(), 5);
    }

    #[test]
    fn a_kind_can_be_asked_for() {
        let events = Events::default();
        events.push(change(EventKind::Health, "a"));
        events.push(change(EventKind::Config, "b"));
        let seen = events.since(0, EventKind::from_name("config"));
        assert_eq!((seen.len(), seen[0].seq), (1, 2));
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_name(kind.name()), Some(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn who_follows_misses_nothing_between_the_past_and_the_present() {
        let events = Events::default();
        events.push(change(EventKind::Health, "a"));
        let (past, mut live) = events.follow(0);
        events.push(change(EventKind::Health, "b"));
        assert_eq!((past.len(), past[0].seq), (1, 1));
        assert_eq!(live.try_recv().unwrap().seq, 2);
        assert!(live.try_recv().is_err());
    }

    #[test]
    fn a_slow_follower_is_told_and_nobody_waits_for_it() {
        let events = Events::default();
        let (_, mut live) = events.follow(0);
        for _ in 0..2 * BEHIND {
            events.push(change(EventKind::Health, "a"));
        }
        assert!(matches!(
            live.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(_))
        ));
    }
}
