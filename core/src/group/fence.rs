//! Fence: what became of a write, and whether it may be sent again.
//!
//! Silent duplicates and silent losses are the two sins of a proxy before a database. A write is sent again only if nobody
//! can have executed it, or if whoever did will notice: everything else is told to the client in one word
//! ([`Outcome`], the header `x-bellwether-outcome`), who then knows whether it may try again, must look first, or has lost.
//!
//! An answer can come too late: by the time a 2xx arrives, another leader may have been claimed, and what the old one
//! executed is lost unless a quorum has it ([`judge_ack`], rule F3).
//!
//! Invariant: a write of which a byte was sent and that was neither refused nor deduplicated by the upstream is never sent
//! again unless its route says so.

use super::epoch::Epoch;
use super::state::Durability;

/// What is said about a write that does not end in the upstream's own answer. Part of the public contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// No endpoint has seen it.
    NotExecuted,
    /// An endpoint has refused it without executing it.
    Refused,
    /// It may or may not have been executed.
    Unknown,
    /// A leader that was none any more has executed it; it may be lost.
    ExecutedByStaleLeader,
    /// The leader has executed it, and not enough replicas have it.
    ExecutedUnreplicated,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [
        Self::NotExecuted,
        Self::Refused,
        Self::Unknown,
        Self::ExecutedByStaleLeader,
        Self::ExecutedUnreplicated,
    ];

    /// The word in the header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotExecuted => "not-executed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::ExecutedByStaleLeader => "executed-by-stale-leader",
            Self::ExecutedUnreplicated => "executed-unreplicated",
        }
    }

    /// Whether a client or an outer proxy may repeat the write without looking first.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        match self {
            Self::NotExecuted | Self::Refused => true,
            Self::Unknown | Self::ExecutedByStaleLeader | Self::ExecutedUnreplicated => false,
        }
    }
}

/// How sending a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// There was no connection, or its handshake failed, or the write never left its queue.
    NeverSent,
    /// HTTP/1: the connection failed before a byte of the request was written.
    NothingWritten,
    /// HTTP/2: `REFUSED_STREAM`, or a stream above the last one of a GOAWAY (RFC 9113 section 8.7).
    StreamRefused,
    /// 425: the server would not risk a replay (RFC 8470 section 5.2).
    TooEarly,
    /// The endpoint said that it does not lead: a redirect, 421, a rule of the route, a stale epoch.
    NotLeader,
    /// A byte was written, and then it broke, took too long or failed in a way that says nothing.
    Sent,
    /// Part of the answer was passed on.
    Streamed,
}

/// Where a write may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resend {
    /// Nowhere.
    Never,
    /// To whoever leads.
    Leader,
    /// To whoever leads, but not to the one that refused.
    Another,
}

/// What makes a write safe to repeat, as far as the request tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Request {
    /// It carries an `Idempotency-Key`.
    pub has_key: bool,
    /// Its method is idempotent (RFC 9110 section 9.2.2).
    pub is_idempotent: bool,
    /// It carries `If-Match`, so a second execution finds another state and fails.
    pub is_conditional: bool,
}

/// What a route allows beyond that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Replay {
    /// Nothing: an old PUT that is repeated after somebody else's PUT undoes it.
    #[default]
    Never,
    /// The upstream remembers keys, and its leaders pass them on to each other (`dedup: upstream_replicated`).
    Deduplicated,
    /// Idempotent methods are repeated, lost updates and all (`replay: idempotent`).
    Idempotent,
}

/// What may be done about a write that ended like this, and what is said if nothing is done (the table of 2.4).
#[must_use]
pub const fn judge(ending: Ending, request: Request, replay: Replay) -> (Resend, Outcome) {
    match ending {
        Ending::NeverSent | Ending::NothingWritten => (Resend::Leader, Outcome::NotExecuted),
        Ending::StreamRefused | Ending::TooEarly => (Resend::Leader, Outcome::Refused),
        Ending::NotLeader => (Resend::Another, Outcome::Refused),
        Ending::Sent => {
            let again = match replay {
                Replay::Never => request.is_idempotent && request.is_conditional,
                Replay::Deduplicated => request.has_key || request.is_idempotent && request.is_conditional,
                Replay::Idempotent => request.is_idempotent,
            };
            let resend = if again { Resend::Leader } else { Resend::Never };
            (resend, Outcome::Unknown)
        }
        Ending::Streamed => (Resend::Never, Outcome::Unknown),
    }
}

/// What happens to an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ack {
    /// It is passed on.
    Pass,
    /// It is replaced by 503 and this word.
    Quarantine(Outcome),
}

/// A write that was stamped with an epoch was acknowledged; meanwhile `highest` has been claimed (F3).
///
/// What a quorum has, every later leader has. Without one it is the old leader's alone. Epochs that do not compare say
/// that the group has been given another order since, which is no better.
#[must_use]
pub fn judge_ack(stamped: Epoch, highest: Option<Epoch>, durability: Durability) -> Ack {
    let current = highest.is_none_or(|highest| stamped >= highest);
    match durability {
        Durability::Quorum => Ack::Pass,
        Durability::Async if current => Ack::Pass,
        Durability::Async => Ack::Quarantine(Outcome::ExecutedByStaleLeader),
    }
}

/// Whether an answer to a read may be passed on, at a level that excludes mistaken leaders: like an acknowledgement, but
/// whatever the durability, since a deposed leader may be behind.
#[must_use]
pub fn is_read_current(asked_in: Epoch, highest: Option<Epoch>) -> bool {
    highest.is_none_or(|highest| asked_in >= highest)
}

#[cfg(test)]
mod tests {
    use super::super::epoch::Kind;
    use super::*;

    const PLAIN: Request = Request {
        has_key: false,
        is_idempotent: false,
        is_conditional: false,
    };

    fn put() -> Request {
        Request {
            is_idempotent: true,
            ..PLAIN
        }
    }

    #[test]
    fn what_nobody_has_seen_is_sent_again() {
        for ending in [Ending::NeverSent, Ending::NothingWritten] {
            let judged = judge(ending, PLAIN, Replay::Never);
            assert_eq!(judged, (Resend::Leader, Outcome::NotExecuted));
        }
    }

    #[test]
    fn what_was_refused_is_sent_again() {
        for ending in [Ending::StreamRefused, Ending::TooEarly] {
            assert_eq!(
                judge(ending, PLAIN, Replay::Never),
                (Resend::Leader, Outcome::Refused)
            );
        }
    }

    #[test]
    fn who_does_not_lead_is_not_asked_again() {
        let judged = judge(Ending::NotLeader, PLAIN, Replay::Never);
        assert_eq!(judged, (Resend::Another, Outcome::Refused));
    }

    #[test]
    fn what_was_sent_is_never_sent_again() {
        assert_eq!(
            judge(Ending::Sent, PLAIN, Replay::Never),
            (Resend::Never, Outcome::Unknown)
        );
        assert_eq!(
            judge(Ending::Sent, put(), Replay::Never).0,
            Resend::Never,
            "a lost update"
        );
        let keyed = Request {
            has_key: true,
            ..PLAIN
        };
        assert_eq!(
            judge(Ending::Sent, keyed, Replay::Never).0,
            Resend::Never,
            "nobody looks at the key"
        );
        assert_eq!(
            judge(Ending::Sent, PLAIN, Replay::Deduplicated).0,
            Resend::Never,
            "there is no key"
        );
        assert_eq!(judge(Ending::Sent, PLAIN, Replay::Idempotent).0, Resend::Never);
    }

    #[test]
    fn unless_somebody_would_notice_or_the_route_says_so() {
        let keyed = Request {
            has_key: true,
            ..PLAIN
        };
        let judged = judge(Ending::Sent, keyed, Replay::Deduplicated);
        assert_eq!(
            judged,
            (Resend::Leader, Outcome::Unknown),
            "the word stays if it fails again"
        );
        assert_eq!(judge(Ending::Sent, put(), Replay::Idempotent).0, Resend::Leader);
        let conditional = Request {
            is_conditional: true,
            ..put()
        };
        assert_eq!(judge(Ending::Sent, conditional, Replay::Never).0, Resend::Leader);
    }

    #[test]
    fn an_answer_that_has_begun_is_never_replaced() {
        let everything = Request {
            has_key: true,
            is_idempotent: true,
            is_conditional: true,
        };
        for replay in [Replay::Never, Replay::Deduplicated, Replay::Idempotent] {
            assert_eq!(judge(Ending::Streamed, everything, replay).0, Resend::Never);
        }
    }

    #[test]
    fn a_late_acknowledgement_is_passed_only_if_a_quorum_has_the_write() {
        let term = |number| Epoch::new(Kind::RaftTerm, number);
        let stale = Ack::Quarantine(Outcome::ExecutedByStaleLeader);
        assert_eq!(judge_ack(term(5), Some(term(6)), Durability::Async), stale);
        assert_eq!(judge_ack(term(5), Some(term(6)), Durability::Quorum), Ack::Pass);
        assert_eq!(judge_ack(term(5), Some(term(5)), Durability::Async), Ack::Pass);
        assert_eq!(judge_ack(term(5), None, Durability::Async), Ack::Pass);
        let other = Epoch::new(Kind::EtcdKey, 1);
        assert_eq!(judge_ack(term(5), Some(other), Durability::Async), stale);
    }

    #[test]
    fn a_read_of_a_deposed_leader_is_not_current() {
        let term = |number| Epoch::new(Kind::RaftTerm, number);
        assert!(is_read_current(term(5), Some(term(5))));
        assert!(!is_read_current(term(5), Some(term(6))));
    }

    #[test]
    fn only_what_was_not_executed_is_repeatable() {
        let repeatable = Outcome::ALL.into_iter().filter(|outcome| outcome.is_repeatable());
        let words: Vec<&str> = repeatable.map(Outcome::name).collect();
        assert_eq!(words, ["not-executed", "refused"]);
    }
}
