//! Deadline: when a request must be over, and what the next hop is told about it.
//!
//! Clocks of two machines differ, so hops exchange what is *left*, never a time of day: `grpc-timeout` for gRPC, our own
//! header for the rest. What is passed on is a little less than what we have, or the next hop's answer "too late" would
//! race with our own.
//!
//! What must stay true: a duration written for another hop is never longer than the one we had. Parsing is exact,
//! formatting rounds down.

use std::time::Duration;

use crate::moment::Moment;

/// A moment at which somebody stops waiting; [`Deadline::NEVER`] when nobody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Moment);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(Moment::FAR_FUTURE);

    /// The deadline at `moment`.
    #[must_use]
    pub const fn at(moment: Moment) -> Self {
        Self(moment)
    }

    /// The deadline `length` from `now`.
    #[must_use]
    pub const fn after(now: Moment, length: Duration) -> Self {
        Self(now.plus(length))
    }

    /// The moment itself; [`Moment::FAR_FUTURE`] when there is no deadline.
    #[must_use]
    pub const fn moment(self) -> Moment {
        self.0
    }

    /// The stricter of two: `total.earlier(per_try)` is the deadline of an attempt.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        self.min(other)
    }

    /// Whether it has been reached.
    #[must_use]
    pub fn is_over(self, now: Moment) -> bool {
        self != Self::NEVER && self.0 <= now
    }

    /// How long is left: zero when it is over, `None` when there is no deadline.
    #[must_use]
    pub fn left(self, now: Moment) -> Option<Duration> {
        (self != Self::NEVER).then(|| self.0.since(now))
    }

    /// What the next hop may be told: what is left, less 5 % but at least 1 ms and at most 10 ms, so that its answer can
    /// still reach us. `None` when there is no deadline.
    #[must_use]
    pub fn forwarded(self, now: Moment) -> Option<Duration> {
        let left = self.left(now)?;
        let skew = (left / 20).clamp(Duration::from_millis(1), Duration::from_millis(10));
        Some(left.saturating_sub(skew))
    }
}

/// Reads a `grpc-timeout` value: one to eight ASCII digits and a unit of `H M S m u n`.
///
/// `None` for anything else; what to do about it is the caller's rule. Source: gRPC over HTTP/2, "Requests",
/// `Timeout → "grpc-timeout" TimeoutValue TimeoutUnit`. The grammar asks for a positive value; zero is accepted, since
/// implementations send `0n` for a deadline that has passed.
#[must_use]
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    let mut amount = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        amount = amount * 10 + u64::from(digit - b'0');
    }
    // At most 10^8 hours are 3.6 * 10^11 seconds: nothing here can overflow.
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// A `grpc-timeout` value ready to be written; made without allocating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcTimeout {
    text: [u8; MAX_DIGITS + 1],
    len: usize,
}

impl GrpcTimeout {
    /// The longest value that says at most `left`, in the finest unit whose eight digits suffice.
    #[must_use]
    pub fn new(left: Duration) -> Self {
        const LIMIT: u128 = 10u128.pow(MAX_DIGITS as u32);
        let nanos = left.as_nanos();
        let units: [(u128, u8); 6] = [
            (1, b'n'),
            (1_000, b'u'),
            (1_000_000, b'm'),
            (1_000_000_000, b'S'),
            (60_000_000_000, b'M'),
            (3_600_000_000_000, b'H'),
        ];
        let (amount, unit) = units
            .into_iter()
            .map(|(size, unit)| (nanos / size, unit))
            .find(|(amount, _)| *amount < LIMIT)
            .unwrap_or((LIMIT - 1, b'H'));

        let mut text = [0; MAX_DIGITS + 1];
        let mut len = 0;
        let mut place = LIMIT / 10;
        while place > 0 {
            let digit = (amount / place % 10) as u8;
            if digit != 0 || len > 0 || place == 1 {
                text[len] = b'0' + digit;
                len += 1;
            }
            place /= 10;
        }
        text[len] = unit;
        Self { text, len: len + 1 }
    }

    /// The header value.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

/// gRPC's bound, which keeps a parser free of overflow.
const MAX_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn formatted(left: Duration) -> String {
        String::from_utf8(GrpcTimeout::new(left).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn each_unit_is_read() {
        let read = |text: &str| parse_grpc_timeout(text.as_bytes());
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_not_read() {
        for text in [
            "",
            "S",
            "1",
            "123456789S",
            "1 S",
            "-1S",
            "+1S",
            "1.5S",
            "1s",
            "1Sx",
            "0x1S",
            "١S",
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_finest_unit_that_fits_is_written_rounded_down() {
        assert_eq!(formatted(Duration::ZERO), "0n");
        assert_eq!(formatted(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(formatted(Duration::from_nanos(100_000_999)), "100000u");
        assert_eq!(formatted(Duration::from_secs(15)), "15000000u");
        assert_eq!(formatted(Duration::from_secs(3600)), "3600000m");
        assert_eq!(formatted(Duration::MAX), "99999999H");
    }

    #[test]
    fn the_next_hop_is_told_a_little_less() {
        let now = Moment::from_nanos(1_000);
        let told = |left| Deadline::after(now, left).forwarded(now).unwrap();
        assert_eq!(told(Duration::from_secs(15)), Duration::from_millis(14_990));
        assert_eq!(told(Duration::from_millis(100)), Duration::from_millis(95));
        assert_eq!(told(Duration::from_millis(2)), Duration::from_millis(1));
        assert_eq!(told(Duration::from_micros(500)), Duration::ZERO);
        assert_eq!(Deadline::NEVER.forwarded(now), None);
    }

    #[test]
    fn never_is_never_over() {
        assert!(!Deadline::NEVER.is_over(Moment::FAR_FUTURE));
        let deadline = Deadline::after(Moment::ZERO, Duration::from_secs(1));
        assert!(!deadline.is_over(Moment::from_nanos(999_999_999)));
        assert!(deadline.is_over(Moment::from_nanos(1_000_000_000)));
        assert_eq!(deadline.earlier(Deadline::NEVER), deadline);
    }

    proptest! {
        #[test]
        fn a_written_timeout_is_read_back_no_longer_and_hardly_shorter(secs in 0u64..100_000_000, nanos in 0u32..1_000_000_000) {
            let left = Duration::new(secs, nanos);
            let back = parse_grpc_timeout(GrpcTimeout::new(left).as_bytes()).unwrap();
            prop_assert!(back <= left);
            // Eight digits, or the seven that a coarser unit leaves; minutes and hours may leave six.
            prop_assert!((left - back).as_secs_f64() <= left.as_secs_f64() * 1e-5);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_harm(value in proptest::collection::vec(any::<u8>(), 0..12)) {
            if parse_grpc_timeout(&value).is_some() {
                prop_assert!((2..=9).contains(&value.len()) && value[0].is_ascii_digit());
            }
        }
    }
}
