//! Circuit breakers: which routes, clusters and endpoints have one, and how it behaves.
//!
//! Those of endpoints belong to clusters, which are made before routes; so the plans are drawn up first ([`plans`]), and a
//! route finds its own among them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::breaker;

use super::policy::mode;
use super::{Context, route};
use crate::cluster::guarded::GuardPlan;
use crate::config::policy as written;
use crate::snapshot::{Action, Breakers, ClusterId, Fallback, FallbackTo, Guarded, RouteState, Target};

/// A probe without an answer for so long has failed, on a route without a timeout.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Failures in a row that open the breaker of an endpoint unless it is written otherwise: its traffic is a part of the
/// route's, and a rate may never have volume enough.
const CONSECUTIVE: u32 = 5;

/// Breakers of endpoints by cluster.
pub(super) type Plans = HashMap<ClusterId, Vec<GuardPlan>>;

/// Those that the routes ask for. Routes that ask for the same share it.
pub(super) fn plans(cx: &Context<'_>) -> Plans {
    let document = cx.document;
    let mut plans = Plans::new();
    let policies = document.effective.policies.iter();
    for (index, (route, policy)) in document.config.routes.iter().zip(policies).enumerate() {
        let Some(plan) = plan(policy, &route::name(index, route)) else {
            continue;
        };
        let one = route.cluster.iter().map(|name| name.value.as_str());
        let several = route.weighted_clusters.iter().flat_map(|map| map.iter());
        for name in one.chain(several.map(|(name, _)| name.value.as_str())) {
            let Some(id) = cx.clusters.get(name) else { continue };
            let of_cluster = plans.entry(*id).or_default();
            if !of_cluster.contains(&plan) {
                of_cluster.push(plan.clone());
            }
        }
    }
    plans
}

/// The breaker that a route wants endpoints to have.
fn plan(policy: &written::Policy, route: &Arc<str>) -> Option<GuardPlan> {
    let written = policy.circuit_breaker.value.as_ref()?;
    let route = match written.scope.value {
        written::BreakerScope::Endpoint => None,
        written::BreakerScope::RouteEndpoint => Some(Arc::clone(route)),
        written::BreakerScope::Route | written::BreakerScope::Cluster => return None,
    };
    let settings = settings(policy, written);
    let consecutive = &written.consecutive_failures;
    Some(GuardPlan {
        route,
        settings: breaker::Settings {
            consecutive: match consecutive.value {
                None if !consecutive.is_written() => Some(CONSECUTIVE),
                value => value,
            },
            // The endpoint's slow start is its ramp.
            ramp: None,
            ..settings
        },
        slow: slow(policy, written),
    })
}

/// The breakers in the way of a route that forwards.
pub(super) fn of_route(
    policy: &written::Policy,
    route: &Arc<str>,
    state: &RouteState,
    action: &Action,
    fallback: Option<&Fallback>,
    cx: &Context<'_>,
) -> Breakers {
    let (Some(written), Action::Forward(target)) = (&policy.circuit_breaker.value, action) else {
        return Breakers::Off;
    };
    let targets = match target {
        Target::Cluster(id) => std::slice::from_ref(id),
        Target::Split { clusters, .. } => clusters,
    };
    let places = || {
        let plan = plan(policy, route);
        let places = targets.iter().filter_map(|id| {
            let of_cluster = cx.guards.get(id)?;
            let place = of_cluster.iter().position(|known| Some(known) == plan.as_ref())?;
            Some((*id, place))
        });
        places.collect()
    };
    let now = cx.registry.now();
    let settings = settings(policy, written);
    let slow = slow(policy, written);
    let recorder = cx.registry.recorder();
    match written.scope.value {
        written::BreakerScope::Endpoint => Breakers::Endpoint(places()),
        written::BreakerScope::RouteEndpoint => Breakers::RouteEndpoint(places()),
        written::BreakerScope::Cluster => {
            let last = fallback.and_then(|fallback| match &fallback.to {
                FallbackTo::Cluster(id) => Some(id),
                FallbackTo::Direct(_) => None,
            });
            let guarded = targets.iter().chain(last).filter_map(|id| {
                let name: Arc<str> = cx.cluster_name(*id)?.into();
                let shared = cx.registry.cluster(&name);
                let guarded = Guarded {
                    name: format!("cluster/{name}").into(),
                    settings: settings.clone(),
                    slow,
                    breaker: shared.breaker(&settings, now),
                    metrics: recorder.breaker("cluster", "", &name),
                };
                Some((*id, guarded))
            });
            Breakers::Cluster(guarded.collect())
        }
        written::BreakerScope::Route => Breakers::Route(Guarded {
            name: Arc::clone(route),
            slow,
            breaker: state.breaker(&settings, now),
            metrics: recorder.breaker("route", route, ""),
            settings,
        }),
    }
}

fn slow(policy: &written::Policy, written: &written::CircuitBreaker) -> Option<Duration> {
    written
        .slow_call_duration
        .value
        .or(policy.failure_when.slower_than.value)
}

fn settings(policy: &written::Policy, written: &written::CircuitBreaker) -> breaker::Settings {
    breaker::Settings {
        mode: mode(written.mode.value),
        failure_rate: Some(written.failure_rate.fraction()),
        slow_rate: written.slow_call_rate.value.map(|rate| rate.fraction()),
        consecutive: written.consecutive_failures.value,
        min_requests: written.min_requests.value,
        window: written.window.value,
        open: written.open_duration.value,
        max_open: written.max_open_duration.value,
        probes: written.half_open_requests.value,
        max_in_flight: written.half_open_max_in_flight.value,
        probe_timeout: policy.timeout.value.unwrap_or(PROBE_TIMEOUT),
        ramp: written.ramp.value,
    }
}
