//! Settings that routes share: what is tried again, and how headers are edited.

use std::num::NonZeroU32;
use std::sync::Arc;

use bellwether_core::rate::Rate;
use bellwether_core::shed::Priority;
use bellwether_core::{Mode, hedge};
use http::{HeaderName, Method, StatusCode};

use super::{Context, cluster};
use crate::config::policy as written;
use crate::config::route::HeaderEdits as WrittenEdits;
use crate::config::units::{MethodSet, RetryCondition, RetryOn as When, Scalar as _, WordOr};
use crate::config::{Many, Map, Sp};
use crate::message::edits::{EditError, HeaderEdits};
use crate::snapshot::rate::Told;
use crate::snapshot::{
    FailureWhen, Fault, HedgePlan, PerTry, RateLimit, Retry, RetryMethods, RetryOn, RouteState,
};
use crate::telemetry::FallbackCause;

/// RFC 9110 §9.2.2.
const IDEMPOTENT: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::TRACE,
    Method::PUT,
    Method::DELETE,
];

/// Further tries; none when off.
pub(super) fn retry(policy: &written::Policy, cx: &mut Context<'_>) -> Option<Retry> {
    let retry = policy.retry.value.as_ref()?;
    if retry.num_retries.value == 0 {
        return None;
    }
    let name = &retry.idempotency_key_header;
    let Ok(idempotency_key) = HeaderName::from_bytes(name.0.as_bytes()) else {
        cx.error(
            "E0314",
            format!("`{}` is not a header name", name.0),
            name.span,
            "",
        );
        return None;
    };
    Some(Retry {
        num_retries: retry.num_retries.value,
        on: retry_on(retry),
        methods: methods(&retry.methods),
        idempotency_key,
        per_try: match retry.per_try_timeout.value {
            None => PerTry::Off,
            Some(WordOr::Word(_)) => PerTry::Auto,
            Some(WordOr::Value(timeout)) => PerTry::After(timeout),
        },
        backoff: (retry.backoff.base.value, retry.backoff.max.value),
        retry_after_max: retry.retry_after_max.value,
        max_body: usize::try_from(retry.max_body_size.0).unwrap_or(usize::MAX),
    })
}

fn retry_on(retry: &written::Retry) -> RetryOn {
    let mut on = RetryOn::default();
    for when in retry.retry_on.iter() {
        match &when.value {
            When::Condition(condition) => match condition {
                RetryCondition::ConnectFailure => on.connect_failure = true,
                RetryCondition::RefusedStream => on.refused_stream = true,
                RetryCondition::Reset => on.reset = true,
                RetryCondition::GatewayError => on.gateway_error = true,
                RetryCondition::PerTryTimeout => on.per_try_timeout = true,
                RetryCondition::FiveXx => on.server_error = true,
                // Says something only about clusters with a leader.
                RetryCondition::NotLeader => {}
            },
            When::Status(statuses) => {
                let statuses =
                    (statuses.from..=statuses.to).filter_map(|status| StatusCode::from_u16(status).ok());
                on.statuses.extend(statuses);
            }
            When::Grpc(status) => on.grpc.push(status.0),
        }
    }
    on
}

fn methods(written: &Many<MethodSet>) -> RetryMethods {
    let sets = || written.iter().map(|set| &set.value);
    if sets().any(|set| matches!(set, MethodSet::All)) {
        return RetryMethods::All;
    }
    if sets().all(|set| matches!(set, MethodSet::Idempotent)) {
        return RetryMethods::Idempotent;
    }
    let mut methods = Vec::new();
    for set in sets() {
        match set {
            MethodSet::Idempotent => methods.extend(IDEMPOTENT),
            MethodSet::One(name) => methods.extend(Method::from_bytes(name.as_bytes())),
            MethodSet::All => {}
        }
    }
    RetryMethods::These(methods)
}

/// Copies of requests that take long; none when off.
pub(super) fn hedge(policy: &written::Policy) -> Option<HedgePlan> {
    let written = policy.hedge.value.as_ref()?;
    Some(HedgePlan {
        delay: match written.delay.value {
            WordOr::Word(quantile) => hedge::Delay::Quantile(match quantile {
                written::Quantile::P50 => 0.5,
                written::Quantile::P90 => 0.9,
                written::Quantile::P95 => 0.95,
                written::Quantile::P99 => 0.99,
            }),
            WordOr::Value(delay) => hedge::Delay::After(delay),
        },
        max_extra: written.max_extra.value,
        share: hedge::Share::new(written.budget.fraction()),
        methods: methods(&written.methods),
    })
}

/// What counts as failure.
pub(super) fn failure_when(policy: &written::Policy) -> FailureWhen {
    let when = &policy.failure_when;
    FailureWhen::new(
        when.status.iter().map(|range| (range.from, range.to)),
        when.grpc_status.iter().map(|status| status.0),
        when.slower_than.value,
    )
}

/// What a word of `fallback.when` covers.
pub(super) const fn cause(written: written::FallbackWhen) -> FallbackCause {
    match written {
        written::FallbackWhen::BreakerOpen => FallbackCause::BreakerOpen,
        written::FallbackWhen::NoEndpoint => FallbackCause::NoEndpoint,
        written::FallbackWhen::NoLeader => FallbackCause::NoLeader,
        written::FallbackWhen::Overflow => FallbackCause::Overflow,
        written::FallbackWhen::UpstreamTimeout => FallbackCause::UpstreamTimeout,
        written::FallbackWhen::RetryExhausted => FallbackCause::RetryExhausted,
    }
}

/// Faults on purpose.
pub(super) fn fault(policy: &written::Policy, cx: &mut Context<'_>) -> Option<Fault> {
    let fault = policy.fault.value.as_ref()?;
    let only_with = match &fault.require_header {
        None => None,
        Some(name) => match HeaderName::from_bytes(name.0.as_bytes()) {
            Ok(name) => Some(name),
            Err(_) => {
                cx.error(
                    "E0314",
                    format!("`{}` is not a header name", name.0),
                    name.span,
                    "",
                );
                return None;
            }
        },
    };
    Some(Fault {
        delay: (fault.delay.as_ref()).map(|delay| (delay.duration.value, delay.percent.fraction())),
        abort: fault.abort.as_ref().and_then(|abort| {
            let status = u16::try_from(abort.status.value).ok()?;
            Some((StatusCode::from_u16(status).ok()?, abort.percent.fraction()))
        }),
        only_with,
    })
}

/// How much requests of a route matter.
pub(super) const fn priority(policy: &written::Policy) -> Priority {
    match policy.priority.value {
        written::Priority::Critical => Priority::Critical,
        written::Priority::High => Priority::High,
        written::Priority::Normal => Priority::Normal,
        written::Priority::Low => Priority::Low,
    }
}

/// The rate limits of a route, in the order in which they are asked.
pub(super) fn rate_limits(
    policy: &written::Policy,
    route: &Arc<str>,
    state: &RouteState,
    cx: &mut Context<'_>,
) -> Box<[RateLimit]> {
    let mut limits: Vec<RateLimit> = Vec::new();
    for written in policy.rate_limit.value.iter().flat_map(|limits| limits.iter()) {
        let keys = cluster::hash_keys(Some(&written.value.key), cx).into();
        let name = rate_limit_name(written, &limits);
        let count = NonZeroU32::new(written.rate.count).unwrap_or(NonZeroU32::MIN);
        let burst = match &written.burst {
            Some(burst) => NonZeroU32::new(burst.value).unwrap_or(NonZeroU32::MIN),
            // One second's worth, and at least one.
            None => {
                let seconds = u32::try_from(written.rate.per.as_secs())
                    .unwrap_or(u32::MAX)
                    .max(1);
                NonZeroU32::new(count.get().div_ceil(seconds)).unwrap_or(NonZeroU32::MIN)
            }
        };
        let rate = Rate::new(count, written.rate.per, burst);
        limits.push(RateLimit {
            told: Told::new(&name, &rate),
            rate,
            keys,
            mode: mode(written.mode.value),
            status: u16::try_from(written.status.value)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            max_keys: written.max_keys.value,
            seed: cx.registry.seed(route),
            buckets: state.buckets(&name),
            metrics: cx.registry.recorder().rate_limit(route, &name),
            name,
        });
    }
    limits.into()
}

/// What a limit counts, as written: `header:x-tenant+client_ip`, and `#2` behind the second that counts the same. Its rate
/// is not part of the name: buckets and series outlive a change of it.
fn rate_limit_name(written: &Sp<written::RateLimit>, before: &[RateLimit]) -> Arc<str> {
    let keys: Vec<String> = written.value.key.iter().map(|key| key.written()).collect();
    // It is sent to clients in quotes.
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '#');
    let name = keys.join("+").replace(|c| !plain(c), "_");
    let same = |limit: &&RateLimit| limit.name.split('#').next() == Some(&name);
    match before.iter().filter(same).count() {
        0 => name.into(),
        count => format!("{name}#{}", count + 1).into(),
    }
}

pub(super) const fn mode(written: written::Mode) -> Mode {
    match written {
        written::Mode::Enforce => Mode::Enforce,
        written::Mode::Observe => Mode::Observe,
    }
}

/// Edits of headers. What is wrong is reported at the name or value at fault.
pub(super) fn edits(written: Option<&Sp<WrittenEdits>>, cx: &mut Context<'_>) -> HeaderEdits {
    let Some(written) = written else {
        return HeaderEdits::default();
    };
    let none = || std::iter::empty::<(&str, &str)>();
    let mut fine = true;
    for (name, value) in pairs(written.set.as_ref()).chain(pairs(written.add.as_ref())) {
        let one = HeaderEdits::compile([(name.value.as_str(), value.value.as_str())], none(), []);
        if let Err(error) = one {
            fine = false;
            refuse(&error, name, value, cx);
        }
    }
    for name in written.remove.iter().flat_map(|names| names.iter()) {
        if let Err(error) = HeaderEdits::compile(none(), none(), [name.0.as_str()]) {
            fine = false;
            cx.error(
                "E0314",
                format!("header `{}` cannot be removed", name.0),
                name.span,
                error.to_string(),
            );
        }
    }
    if !fine {
        return HeaderEdits::default();
    }
    let texts = |map| pairs(map).map(|(name, value)| (name.value.as_str(), value.value.as_str()));
    let removed = written.remove.iter().flat_map(|names| names.iter());
    let removed = removed.map(|name| name.0.as_str());
    HeaderEdits::compile(texts(written.set.as_ref()), texts(written.add.as_ref()), removed)
        .unwrap_or_default()
}

/// Names and values of a map that may be missing.
pub(super) fn pairs(map: Option<&Sp<Map<String>>>) -> impl Iterator<Item = (&Sp<String>, &Sp<String>)> {
    map.into_iter().flat_map(|map| map.iter())
}

fn refuse(error: &EditError, name: &Sp<String>, value: &Sp<String>, cx: &mut Context<'_>) {
    match error {
        EditError::Field(field) => cx.error("E0305", "no such template", value.span, field.to_string()),
        EditError::Value(_) => cx.error(
            "E0314",
            "a header cannot have this value",
            value.span,
            error.to_string(),
        ),
        EditError::Name(_) | EditError::Framing(_) | EditError::Host => {
            let message = format!("header `{}` cannot be set", name.value);
            cx.error("E0314", message, name.span, error.to_string());
        }
    }
}
