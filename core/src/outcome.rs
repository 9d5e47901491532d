//! Outcome: how one attempt went, in the only words a policy is fed.
//!
//! Balancing, breakers, ejection and adaptive limits must not each read status codes their own way, or they will
//! disagree about the same answer. The shell classifies an attempt once, by the route's rules, and everybody learns from
//! that one value.
//!
//! What must stay true: nothing the proxy or the client did is held against an endpoint. Our own refusals, a client that
//! left, a deadline too short to judge are [`Outcome::Ignored`], and an ignored attempt changes no estimate.

use std::time::Duration;

/// How one attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer outside the failure set, in time.
    Success,
    /// An answer outside the failure set that took longer than the route calls good.
    Slow,
    /// An answer in the failure set, or none.
    Failure(Origin),
    /// The endpoint asked for less: 429, `RESOURCE_EXHAUSTED`, 503 with `Retry-After`; with its hint, if it gave one.
    Pushback(Option<Duration>),
    /// Says nothing about the endpoint.
    Ignored,
}

/// Who made a failure visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// We did, on our side of the connection: refused, timed out, reset, TLS failed, truncated.
    Local,
    /// The endpoint said so itself, in a status.
    Remote,
}

impl Outcome {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Slow => "slow",
            Self::Failure(Origin::Local | Origin::Remote) => "failure",
            Self::Pushback(_) => "pushback",
            Self::Ignored => "ignored",
        }
    }
}

impl Origin {
    /// The word in events and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_metric_labels() {
        let all = [
            Outcome::Success,
            Outcome::Slow,
            Outcome::Failure(Origin::Local),
            Outcome::Failure(Origin::Remote),
            Outcome::Pushback(None),
            Outcome::Ignored,
        ];
        assert_eq!(
            all.map(Outcome::name),
            ["success", "slow", "failure", "failure", "pushback", "ignored"]
        );
        assert_eq!(
            [Origin::Local, Origin::Remote].map(Origin::name),
            ["local", "remote"]
        );
    }
}
