//! A cluster without its members: what discovery needs to make the next one.
//!
//! Members come and go far more often than settings do. A new set of members costs one new cluster and one new list of
//! clusters; listeners, routes and all other clusters are shared with the snapshot before.

use std::collections::BTreeSet;
use std::sync::Arc;

use bellwether_core::Moment;
use bellwether_core::balance::{Balancer, MemberSpec, Place, Policy};
use http::HeaderValue;

use super::Snapshot;
use super::registry::Registry;
use crate::cluster::discovery::Member;
use crate::cluster::guarded::{GuardPlan, Guarded};
use crate::cluster::{Cluster, Endpoint, EndpointState, Settings};
use crate::net::SocketAddress;
use crate::net::tls::ClientTls;

/// Everything about a cluster but its members.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Its name.
    pub name: Arc<str>,
    /// Settings.
    pub settings: Settings,
    /// How endpoints are chosen.
    pub policy: Policy,
    /// TLS towards endpoints.
    pub tls: Option<Arc<ClientTls>>,
    /// See [`Cluster::transport`].
    pub transport: u64,
    /// The breakers that every endpoint has.
    pub guards: Arc<[GuardPlan]>,
}

impl Blueprint {
    /// What a cluster was made from.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            name: Arc::clone(&cluster.name),
            settings: cluster.settings.clone(),
            policy: cluster.balancer.policy(),
            tls: cluster.tls.clone(),
            transport: cluster.transport,
            guards: Arc::clone(&cluster.guards),
        }
    }

    /// A cluster with these members. An endpoint that is new joins at `now`, and takes its share slowly, unless the
    /// proxy itself is just starting: then there is nobody who could take the share meanwhile.
    pub fn assemble(&self, members: &[Member], registry: &Registry, now: Moment, at_start: bool) -> Cluster {
        let joined = if at_start { Moment::ZERO } else { now };
        let endpoints: Box<[Endpoint]> = members
            .iter()
            .map(|member| self.endpoint(member, registry, joined))
            .collect();
        let specs: Vec<MemberSpec<'_>> = endpoints
            .iter()
            .map(|endpoint| MemberSpec {
                weight: endpoint.weight,
                priority: endpoint.priority,
                key: endpoint.label.as_bytes(),
            })
            .collect();
        let seed = registry.seed(&self.name);
        let balancer = match &self.settings.zone {
            None => Balancer::new(self.policy, &specs, seed),
            Some(own) => {
                let place = |endpoint: &Endpoint| match &endpoint.zone {
                    Some(zone) if zone == own => Place::Here,
                    _ => Place::Elsewhere,
                };
                let places: Vec<Place> = endpoints.iter().map(place).collect();
                let zones: BTreeSet<Option<&str>> = endpoints.iter().map(|e| e.zone.as_deref()).collect();
                let count = u32::try_from(zones.len()).unwrap_or(u32::MAX);
                Balancer::zoned(self.policy, &specs, &places, count, seed)
            }
        };
        let state = registry.cluster(&self.name);
        let budget = self
            .settings
            .retry_budget
            .as_ref()
            .map(|settings| state.budget(settings));
        Cluster {
            name: Arc::clone(&self.name),
            settings: self.settings.clone(),
            budget,
            tls: self.tls.clone(),
            transport: self.transport,
            guards: Arc::clone(&self.guards),
            endpoints,
            balancer,
            state,
            metrics: registry.recorder().cluster(&self.name),
        }
    }

    fn endpoint(&self, member: &Member, registry: &Registry, joined: Moment) -> Endpoint {
        let label: Arc<str> = member.address.to_string().into();
        let (host, authority) = names(member, &label);
        let state = registry.endpoint(&self.name, &member.address, joined);
        let guards = self.guards.iter();
        let guards = guards
            .map(|plan| self.guard(plan, &label, &state, registry))
            .collect();
        Endpoint {
            guards,
            address: member.address.clone(),
            tally: self
                .settings
                .outlier
                .as_ref()
                .map(|settings| state.tally(settings)),
            metrics: registry.recorder().endpoint(&self.name, &label),
            state,
            label,
            host,
            authority,
            weight: member.weight,
            priority: member.priority,
            zone: member.zone.clone(),
        }
    }
}

impl Blueprint {
    /// A breaker of an endpoint: the one that was there before.
    fn guard(
        &self,
        plan: &GuardPlan,
        label: &str,
        state: &Arc<EndpointState>,
        registry: &Registry,
    ) -> Guarded {
        let now = registry.now();
        let (breaker, name, scope) = match &plan.route {
            None => (
                state.breaker(&plan.settings, now),
                format!("endpoint/{}/{label}", self.name),
                "endpoint",
            ),
            Some(route) => (
                registry.route(route).breaker_of(state, &plan.settings, now),
                format!("route_endpoint/{route}/{}/{label}", self.name),
                "route_endpoint",
            ),
        };
        let route = plan.route.as_deref().unwrap_or("");
        Guarded {
            name: name.into(),
            settings: plan.settings.clone(),
            slow: plan.slow,
            breaker,
            metrics: registry.recorder().breaker(scope, route, &self.name),
        }
    }
}

/// The host to ask for, and host and port as a field value.
fn names(member: &Member, label: &str) -> (Arc<str>, HeaderValue) {
    let local = || (Arc::from("localhost"), HeaderValue::from_static("localhost"));
    let SocketAddress::Ip(address) = &member.address else {
        // A path is no host: what clients of Unix sockets usually send.
        return match &member.host {
            Some(host) => (
                Arc::clone(host),
                HeaderValue::from_str(host).unwrap_or_else(|_| local().1),
            ),
            None => local(),
        };
    };
    match &member.host {
        Some(host) => {
            let port = address.port();
            let written = HeaderValue::from_str(&format!("{host}:{port}"));
            (Arc::clone(host), written.unwrap_or_else(|_| local().1))
        }
        None => (
            address.ip().to_string().into(),
            HeaderValue::from_str(label).unwrap_or_else(|_| local().1),
        ),
    }
}

/// The present snapshot with other members in one cluster; none when there is no such cluster. The generation stays.
pub fn with_members(
    current: &Snapshot,
    cluster: &str,
    members: &[Member],
    registry: &Registry,
    now: Moment,
) -> Option<Snapshot> {
    let at = current
        .clusters
        .iter()
        .position(|known| &*known.name == cluster)?;
    let before = current.clusters.get(at)?;
    registry.remember_members(&before.name, members);
    let next = Arc::new(Blueprint::of(before).assemble(members, registry, now, false));
    let mut clusters = current.clusters.clone();
    *clusters.get_mut(at)? = next;
    Some(Snapshot {
        generation: current.generation,
        hash: Arc::clone(&current.hash),
        listeners: current.listeners.clone(),
        routes: Arc::clone(&current.routes),
        clusters,
        overload: current.overload,
        unrouted: Arc::clone(&current.unrouted),
        access_log: current.access_log.clone(),
        access_fields: Arc::clone(&current.access_fields),
    })
}
