//! The rate limits of routes: settings of this snapshot, and the buckets that outlive it.
//!
//! A limit is known by its route and by what it counts, so a reload that changes its rate keeps what every client has
//! used. Which bucket a request draws from is a hash with a seed of this process: nobody outside can aim at the bucket of
//! somebody else.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::buckets::Buckets;
use bellwether_core::rate::{Rate, RetryAfter};
use bellwether_core::{Mode, Moment};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::route::{HashKey, KeySource, bucket_hash};
use crate::telemetry::{RateMetrics, WorkerId};

/// `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`, of the same draft.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// One limit of one route.
#[derive(Debug)]
pub struct RateLimit {
    /// What it is called: what it counts, as written.
    pub name: Arc<str>,
    /// How many in how long, and at once.
    pub rate: Rate,
    /// What clients are told of it once and for all.
    pub told: Told,
    /// Requests that agree in all of these share a bucket.
    pub keys: Box<[HashKey]>,
    /// Whether it refuses.
    pub mode: Mode,
    /// With which status.
    pub status: StatusCode,
    /// Buckets at one time.
    pub max_keys: u32,
    /// Makes buckets unpredictable.
    pub seed: u64,
    /// What was used.
    pub buckets: Arc<Buckets>,
    /// Its series.
    pub metrics: Arc<RateMetrics>,
}

/// The parts of the fields about a limit that are the same for every answer.
#[derive(Debug)]
pub struct Told {
    /// Of `RateLimit-Policy`; none where the name cannot stand in a field.
    policy: Option<HeaderValue>,
    /// What `RateLimit` begins with.
    start: Box<str>,
}

impl Told {
    /// Of a limit of this name.
    pub fn new(name: &str, rate: &Rate) -> Self {
        let policy = format!("\"{name}\";q={};w={}", rate.count(), rate.per().as_secs());
        Self {
            policy: HeaderValue::try_from(policy).ok(),
            start: format!("\"{name}\";r=").into(),
        }
    }
}

/// How a request stands with the limit that is nearest to refusing, for the client to know.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Index of the limit in its route.
    limit: usize,
    /// How many more may come now.
    requests: u32,
    /// How long until all may.
    reset: Duration,
}

/// A request that a limit refuses.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// With this status.
    pub status: StatusCode,
    /// When it is worth asking again.
    pub retry_after: Duration,
    /// How the client stands.
    pub standing: Standing,
}

/// Asks the limits of a route in their order. What earlier ones have taken is given back where a later one refuses, or one
/// client's refused requests would use up a bucket that it shares with others.
///
/// # Errors
/// The limit that refuses.
pub fn ask(
    limits: &[RateLimit],
    source: &KeySource<'_>,
    worker: WorkerId,
    now: Moment,
) -> Result<Option<Standing>, Refused> {
    let mut tightest: Option<Standing> = None;
    for (index, limit) in limits.iter().enumerate() {
        let drawn = limit
            .buckets
            .take(limit.key(source), &limit.rate, limit.max_keys, now);
        if drawn.evicted > 0 {
            limit.metrics.evicted(worker, drawn.evicted);
        }
        match drawn.result {
            Ok(left) => {
                let least = tightest.is_none_or(|tightest| left.requests < tightest.requests);
                // What only watches is not the client's business.
                if limit.mode.enforces() && least {
                    tightest = Some(Standing {
                        limit: index,
                        requests: left.requests,
                        reset: left.reset,
                    });
                }
            }
            Err(RetryAfter { wait, reset }) => {
                limit.metrics.limited(worker, limit.mode);
                if limit.mode.enforces() {
                    for earlier in &limits[..index] {
                        earlier.buckets.put_back(earlier.key(source), &earlier.rate, now);
                    }
                    return Err(Refused {
                        status: limit.status,
                        retry_after: wait,
                        standing: Standing {
                            limit: index,
                            requests: 0,
                            reset,
                        },
                    });
                }
            }
        }
    }
    Ok(tightest)
}

impl RateLimit {
    fn key(&self, source: &KeySource<'_>) -> u64 {
        bucket_hash(&self.keys, source, self.seed)
    }
}

impl Standing {
    /// Adds the fields that tell a client how it stands, behind those that the service may have sent for itself.
    pub fn tell(&self, limits: &[RateLimit], headers: &mut HeaderMap) {
        let Some(limit) = limits.get(self.limit) else {
            return;
        };
        let Told { policy, start } = &limit.told;
        let Some(policy) = policy else { return };
        headers.append(RATE_LIMIT_POLICY, policy.clone());
        // A reset in less than a second is one in a second: whole seconds is what the draft has.
        let reset = self.reset.as_secs() + u64::from(self.reset.subsec_nanos() > 0);
        let mut value = String::with_capacity(start.len() + 32);
        value.push_str(start);
        value.push_str(itoa::Buffer::new().format(self.requests));
        value.push_str(";t=");
        value.push_str(itoa::Buffer::new().format(reset));
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(RATE_LIMIT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Recorder, RecorderSettings};
    use std::num::NonZeroU32;

    const W0: WorkerId = WorkerId::new(0);

    fn limit(recorder: &Recorder, name: &str, count: u32, mode: Mode) -> RateLimit {
        let number = NonZeroU32::new(count).unwrap();
        let rate = Rate::new(number, Duration::from_secs(60), number);
        RateLimit {
            name: name.into(),
            told: Told::new(name, &rate),
            rate,
            keys: [HashKey::parse(name).unwrap()].into(),
            mode,
            status: StatusCode::TOO_MANY_REQUESTS,
            max_keys: 100,
            seed: 1,
            buckets: Arc::default(),
            metrics: recorder.rate_limit("api", name),
        }
    }

    fn ask_as(limits: &[RateLimit], user: &'static str) -> Result<Option<Standing>, Refused> {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static(user));
        let source = KeySource {
            client_ip: [192, 0, 2, 1].into(),
            host: "a",
            path: "/",
            query: None,
            route: "api",
            tls_peer: None,
            headers: &headers,
        };
        ask(limits, &source, W0, Moment::from_nanos(1_000_000_000))
    }

    #[test]
    fn a_refused_client_does_not_use_up_what_it_shares() {
        let recorder = Recorder::new(RecorderSettings::default());
        let limits = [
            limit(&recorder, "route", 4, Mode::Enforce),
            limit(&recorder, "header:x-user", 2, Mode::Enforce),
        ];
        let passed = |user| (0..20).filter(|_| ask_as(&limits, user).is_ok()).count();
        assert_eq!((passed("greedy"), passed("modest")), (2, 2));
    }

    #[test]
    fn one_that_observes_refuses_nobody_and_is_not_told_of() {
        let recorder = Recorder::new(RecorderSettings::default());
        let limits = [limit(&recorder, "route", 1, Mode::Observe)];
        for _ in 0..3 {
            assert!(ask_as(&limits, "a").unwrap().is_none());
        }
        let text = recorder.render();
        let series = "bellwether_rate_limited_total{route=\"api\",policy=\"route\",enforced=\"false\"} 2";
        assert!(text.contains(series), "{text}");
    }

    #[test]
    fn the_client_is_told_of_the_limit_that_is_nearest() {
        let recorder = Recorder::new(RecorderSettings::default());
        let limits = [
            limit(&recorder, "route", 9, Mode::Enforce),
            limit(&recorder, "header:x-user", 3, Mode::Enforce),
        ];
        let mut headers = HeaderMap::new();
        ask_as(&limits, "a").unwrap().unwrap().tell(&limits, &mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"header:x-user\";q=3;w=60");
        assert_eq!(headers["ratelimit"], "\"header:x-user\";r=2;t=20");
    }
}
