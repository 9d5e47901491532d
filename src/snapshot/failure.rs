//! What a route calls a failure: `failure_when`.
//!
//! Breakers, ejection, balancing and metrics must not each read a status their own way, so an answer is judged once, by
//! its route, and everybody learns the same [`Outcome`].

use std::time::Duration;

use bellwether_core::{Origin, Outcome};
use http::StatusCode;

/// Statuses and gRPC codes that are failures, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureWhen {
    /// Bit `status - 100` of 100 to 599.
    statuses: [u64; 8],
    /// Bit `code` of 0 to 16.
    grpc: u32,
    /// An answer that takes longer is slow.
    pub slower_than: Option<Duration>,
}

impl FailureWhen {
    /// Failures are the statuses in these ranges, ends included, and these gRPC codes.
    pub fn new(
        statuses: impl IntoIterator<Item = (u16, u16)>,
        grpc: impl IntoIterator<Item = u8>,
        slower_than: Option<Duration>,
    ) -> Self {
        let mut bits = [0; 8];
        for status in statuses.into_iter().flat_map(|(from, to)| from..=to) {
            if let Some((word, bit)) = place(status) {
                bits[word] |= bit;
            }
        }
        Self {
            statuses: bits,
            grpc: grpc
                .into_iter()
                .filter(|code| *code < 32)
                .fold(0, |bits, code| bits | (1 << code)),
            slower_than,
        }
    }

    /// How an answer with this status went. `pushback` is the hint of its `Retry-After`, if it has one.
    pub fn of_status(&self, status: StatusCode, pushback: Option<Duration>) -> Outcome {
        let failed = place(status.as_u16()).is_some_and(|(word, bit)| self.statuses[word] & bit != 0);
        match status {
            StatusCode::SERVICE_UNAVAILABLE if failed && pushback.is_some() => Outcome::Pushback(pushback),
            _ if failed => Outcome::Failure(Origin::Remote),
            StatusCode::TOO_MANY_REQUESTS => Outcome::Pushback(pushback),
            _ => Outcome::Success,
        }
    }

    /// How a call that ended with this gRPC status went (RESOURCE_EXHAUSTED asks for less).
    pub fn of_grpc(&self, code: u8) -> Outcome {
        if code < 32 && self.grpc & (1 << code) != 0 {
            Outcome::Failure(Origin::Remote)
        } else if code == RESOURCE_EXHAUSTED {
            Outcome::Pushback(None)
        } else {
            Outcome::Success
        }
    }
}

const RESOURCE_EXHAUSTED: u8 = 8;

fn place(status: u16) -> Option<(usize, u64)> {
    let index = usize::from(status.checked_sub(100)?);
    (index < 500).then_some((index / 64, 1 << (index % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Outcome = Outcome::Failure(Origin::Remote);

    #[test]
    fn what_is_listed_fails_and_asking_for_less_is_not_failing() {
        let when = FailureWhen::new([(500, 500), (502, 504)], [2, 14], None);
        let of = |status: u16| when.of_status(StatusCode::from_u16(status).unwrap(), None);
        for status in [100, 200, 404, 499, 501, 505, 599] {
            assert_eq!(of(status), Outcome::Success, "{status}");
        }
        for status in [500, 502, 503, 504] {
            assert_eq!(of(status), FAILED, "{status}");
        }
        assert_eq!(of(429), Outcome::Pushback(None));
        let hint = Some(Duration::from_secs(3));
        assert_eq!(
            when.of_status(StatusCode::SERVICE_UNAVAILABLE, hint),
            Outcome::Pushback(hint)
        );
        assert_eq!(when.of_status(StatusCode::BAD_GATEWAY, hint), FAILED);
        assert_eq!(
            [0, 2, 5, 8, 14, 200].map(|code| when.of_grpc(code)),
            [
                Outcome::Success,
                FAILED,
                Outcome::Success,
                Outcome::Pushback(None),
                FAILED,
                Outcome::Success,
            ]
        );
    }

    #[test]
    fn a_route_may_call_other_statuses_failures() {
        let when = FailureWhen::new([(404, 404), (429, 429)], [8], None);
        assert_eq!(when.of_status(StatusCode::NOT_FOUND, None), FAILED);
        assert_eq!(when.of_status(StatusCode::TOO_MANY_REQUESTS, None), FAILED);
        assert_eq!(when.of_status(StatusCode::BAD_GATEWAY, None), Outcome::Success);
        assert_eq!(when.of_grpc(8), FAILED);
    }
}
