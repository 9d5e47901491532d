//! Deadlines between hops: how long a client is willing to wait, and how long the next hop is given.
//!
//! Durations, never times of day, because no two clocks agree: `grpc-timeout`, `x-bellwether-deadline-ms`, and from a mesh
//! of Envoys `x-envoy-upstream-rq-timeout-ms`. The last two are believed from trusted peers only; a stranger may say in
//! `grpc-timeout` how long it waits itself, but not nonsense below a millisecond, which would only make us work in vain.

use std::time::Duration;

use bellwether_core::deadline::{GrpcTimeout, parse_grpc_timeout};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::forwarded::{Added, Trust};
use super::grpc::GRPC_TIMEOUT;

/// Milliseconds until whoever sent it stops waiting for the head of the answer.
pub const DEADLINE: HeaderName = HeaderName::from_static("x-bellwether-deadline-ms");
const ENVOY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
/// A stranger who is said to wait for less means something else.
const LEAST: Duration = Duration::from_millis(1);

/// What a client said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// The shortest of what it is willing to wait; none if it did not say.
    pub within: Option<Duration>,
    /// It said so in `grpc-timeout`.
    pub grpc: bool,
}

/// Takes what the client said out of its fields; `grpc-timeout` stays, to be replaced by [`tell`].
pub fn take(headers: &mut HeaderMap, trust: Trust) -> Asked {
    let mut asked = Asked::default();
    if let Some(value) = headers.get(&GRPC_TIMEOUT) {
        let said = parse_grpc_timeout(value.as_bytes());
        match said.filter(|said| trust == Trust::Trusted || *said >= LEAST) {
            Some(within) => {
                asked = Asked {
                    within: Some(within),
                    grpc: true,
                };
            }
            None => {
                headers.remove(&GRPC_TIMEOUT);
            }
        }
    }
    if trust == Trust::Trusted {
        for name in [&DEADLINE, &ENVOY] {
            let said = headers.remove(name).and_then(|value| millis(&value));
            asked.within = match (asked.within, said) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
    }
    asked
}

/// Tells the next hop how long it has. What it was told by an earlier try is replaced.
pub fn tell(headers: &mut HeaderMap, added: &mut Added, left: Duration, grpc: bool) {
    let value = HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    match added.last_mut() {
        Some((name, told)) if *name == DEADLINE => *told = value,
        _ => added.push((DEADLINE, value)),
    }
    if grpc && let Ok(value) = HeaderValue::from_bytes(GrpcTimeout::new(left).as_bytes()) {
        headers.insert(&GRPC_TIMEOUT, value);
    }
}

fn millis(value: &HeaderValue) -> Option<Duration> {
    let digits = value.as_bytes();
    // Longer than a year is no deadline, and would be no number either.
    let sane = !digits.is_empty() && digits.len() <= 11 && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = sane.then(|| value.to_str().ok()?.parse().ok())??;
    Some(Duration::from_millis(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = [(&'static str, &'static str)];

    fn headers(fields: &Fields) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn ms(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    #[test]
    fn the_shortest_of_what_a_trusted_peer_says_holds() {
        let cases: [(&Fields, Option<Duration>); 9] = [
            (&[], None),
            (&[("grpc-timeout", "250m")], ms(250)),
            (&[("x-bellwether-deadline-ms", "90")], ms(90)),
            (
                &[("x-envoy-upstream-rq-timeout-ms", "80"), ("grpc-timeout", "1S")],
                ms(80),
            ),
            (&[("x-bellwether-deadline-ms", "0")], ms(0)),
            (&[("x-bellwether-deadline-ms", "-1")], None),
            (&[("x-bellwether-deadline-ms", "")], None),
            (&[("x-bellwether-deadline-ms", "123456789012")], None),
            (&[("grpc-timeout", "soon")], None),
        ];
        for (fields, within) in cases {
            let mut trusted = headers(fields);
            assert_eq!(take(&mut trusted, Trust::Trusted).within, within, "{fields:?}");
            assert!(trusted.keys().all(|name| name == GRPC_TIMEOUT), "ours end here");
        }
    }

    #[test]
    fn a_stranger_may_only_say_how_long_it_waits_itself() {
        let mut fields = headers(&[("x-envoy-upstream-rq-timeout-ms", "1"), ("grpc-timeout", "50m")]);
        let asked = take(&mut fields, Trust::Untrusted);
        assert_eq!((asked.within, asked.grpc), (ms(50), true));
        for nonsense in ["1n", "999u", "0S", "x"] {
            let mut fields = headers(&[("grpc-timeout", nonsense)]);
            assert_eq!(
                take(&mut fields, Trust::Untrusted),
                Asked::default(),
                "{nonsense}"
            );
            assert!(fields.is_empty(), "{nonsense}");
        }
    }

    #[test]
    fn each_try_is_told_what_is_left_then() {
        let mut fields = headers(&[("grpc-timeout", "1S")]);
        let mut added = Added::new();
        tell(&mut fields, &mut added, Duration::from_millis(500), true);
        tell(&mut fields, &mut added, Duration::from_micros(250_900), true);
        assert_eq!(added.len(), 1);
        assert_eq!((&added[0].0, added[0].1.as_bytes()), (&DEADLINE, &b"250"[..]));
        let told = parse_grpc_timeout(fields["grpc-timeout"].as_bytes()).unwrap();
        assert!(told <= Duration::from_micros(250_900) && told > Duration::from_millis(250));
        let mut fields = HeaderMap::new();
        tell(&mut fields, &mut added, Duration::ZERO, false);
        assert!(
            fields.is_empty(),
            "nobody who did not speak of it is told in gRPC's words"
        );
        assert_eq!(added[0].1.as_bytes(), b"0");
    }
}
