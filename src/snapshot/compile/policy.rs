//! Settings that routes share: what is tried again, and how headers are edited.

use bellwether_core::hedge;
use http::{HeaderName, Method, StatusCode};

use super::Context;
use crate::config::policy as written;
use crate::config::route::HeaderEdits as WrittenEdits;
use crate::config::units::{MethodSet, RetryCondition, RetryOn as When, WordOr};
use crate::config::{Many, Map, Sp};
use crate::message::edits::{EditError, HeaderEdits};
use crate::snapshot::{FailureWhen, HedgePlan, PerTry, Retry, RetryMethods, RetryOn};

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
