//! What the registry knows, in a form that another process can read: breakers, budgets, ejections, checks, load, members.
//!
//! Records are found by the same identities as in the [`Registry`]: route name, cluster name, cluster name and address.
//! A successor recalls them before it compiles its configuration, so that everything is found there as if it were the
//! next snapshot of one process; what its configuration no longer names is forgotten in time.
//!
//! Not kept: connections and what is in flight, which stay with the process that has them; the tallies of outlier
//! detection and the rhythm of heartbeats, which are learned anew within seconds; TLS sessions.
//!
//! Invariant: times are durations relative to the moment of saving, because no clock crosses processes. What a record
//! says is never trusted further than that a state ends within a day; `bellwether_core` sees to it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::balance::SavedLoad;
use bellwether_core::breaker::{self, Breaker, Cause, State};
use bellwether_core::budget::{self, Budget};
use bellwether_core::health::Verdict;
use bellwether_core::{ejection, idle, window};
use serde::{Deserialize, Serialize};

use super::registry::{Kept, Registry};
use crate::cluster::discovery::{MAX_MEMBERS, Member};
use crate::cluster::{EndpointState, endpoint};
use crate::net::SocketAddress;

/// What a [`Registry`] holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    routes: BTreeMap<Arc<str>, OfRoute>,
    clusters: BTreeMap<Arc<str>, OfCluster>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfRoute {
    breaker: Option<OfBreaker>,
    /// Breakers that it has for endpoints by itself: cluster, address, breaker.
    endpoints: Vec<(Arc<str>, String, OfBreaker)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfCluster {
    breaker: Option<OfBreaker>,
    budget: Option<OfBudget>,
    /// By address.
    endpoints: BTreeMap<String, OfEndpoint>,
    /// What discovery told last.
    members: Option<Vec<OfMember>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfEndpoint {
    #[serde(with = "LoadRecord")]
    load: SavedLoad,
    #[serde(with = "EjectionRecord")]
    ejection: ejection::Saved,
    breaker: Option<OfBreaker>,
    #[serde(with = "verdict")]
    check: Option<Verdict>,
    /// Incarnation and number.
    heartbeat: Option<(u64, u64)>,
    joined_ago: Option<Duration>,
    #[serde(with = "IdleRecord")]
    idle: idle::Saved,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMember {
    address: String,
    host: Option<Arc<str>>,
    weight: u32,
    zone: Option<Arc<str>>,
    priority: u8,
    labels: BTreeMap<String, String>,
}

/// How much was recalled, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recalled {
    /// Breakers that are not closed.
    pub breakers: usize,
    /// Endpoints that are out.
    pub ejected: usize,
    /// Endpoints that something is known about.
    pub endpoints: usize,
}

impl Registry {
    /// Everything that another process has to know.
    pub fn save(&self, now: Moment) -> Memory {
        let known = self.known.lock();
        let mut places = HashMap::new();
        #[expect(clippy::iter_over_hash_type, reason = "what is made of it is a map again")]
        for (cluster, endpoints) in &known.endpoints {
            for (address, kept) in endpoints {
                places.insert(kept.value.id, (cluster, address));
            }
        }
        let routes = known.routes.iter().map(|(name, route)| {
            let of_endpoints = route.value.breakers_of_endpoints();
            let of_endpoints = of_endpoints.into_iter().filter_map(|(id, breaker)| {
                let (cluster, address) = places.get(&id)?;
                let breaker = OfBreaker(breaker.save(now));
                Some((Arc::clone(cluster), address.to_string(), breaker))
            });
            let breaker = route.value.last_breaker();
            let record = OfRoute {
                breaker: breaker.map(|breaker| OfBreaker(breaker.save(now))),
                endpoints: of_endpoints.collect(),
            };
            (Arc::clone(name), record)
        });
        let clusters = known.clusters.iter().map(|(name, cluster)| {
            let of_cluster = known.endpoints.get(name).into_iter().flatten();
            let endpoints =
                of_cluster.map(|(address, kept)| (address.to_string(), OfEndpoint::of(kept.value.save(now))));
            let members = known.members.get(name);
            let record = OfCluster {
                breaker: cluster
                    .value
                    .last_breaker()
                    .map(|breaker| OfBreaker(breaker.save(now))),
                budget: cluster
                    .value
                    .last_budget()
                    .map(|budget| OfBudget(budget.save(now))),
                endpoints: endpoints.collect(),
                members: members.map(|members| members.iter().map(OfMember::of).collect()),
            };
            (Arc::clone(name), record)
        });
        Memory {
            routes: routes.collect(),
            clusters: clusters.collect(),
        }
    }

    /// Takes over what another process had saved at the moment that is `then` here. To be called before anything asks
    /// for a record: one that exists stays as it is.
    pub fn recall(&self, memory: &Memory, then: Moment) -> Recalled {
        let mut recalled = Recalled::default();
        let mut breaker = |saved: &OfBreaker| {
            recalled.breakers += usize::from(saved.0.state != State::Closed);
            Breaker::restored(&saved.0, then)
        };
        for (name, of_route) in &memory.routes {
            let route = self.route(name);
            if let Some(saved) = &of_route.breaker {
                route.recall_breaker(breaker(saved));
            }
        }
        for (name, of_cluster) in &memory.clusters {
            let cluster = self.cluster(name);
            if let Some(saved) = &of_cluster.breaker {
                cluster.recall_breaker(breaker(saved));
            }
            if let Some(saved) = &of_cluster.budget {
                cluster.recall_budget(Budget::restored(&saved.0, then));
            }
            if let Some(members) = &of_cluster.members {
                let members = members.iter().take(MAX_MEMBERS);
                self.remember_members(name, &members.filter_map(OfMember::member).collect::<Vec<_>>());
            }
        }
        let now = self.now();
        let mut known = self.known.lock();
        for (name, of_cluster) in &memory.clusters {
            let endpoints = known.endpoints.entry(Arc::clone(name)).or_default();
            for (address, saved) in &of_cluster.endpoints {
                let Some(address) = address_of(address) else {
                    continue;
                };
                recalled.endpoints += 1;
                recalled.ejected += usize::from(saved.ejection.left.is_some());
                if let Some(OfBreaker(saved)) = &saved.breaker {
                    recalled.breakers += usize::from(saved.state != State::Closed);
                }
                endpoints.entry(address).or_insert_with(|| {
                    let state = EndpointState::restored(&saved.saved(), then);
                    Kept::new(Arc::new(state), now)
                });
            }
        }
        for (name, of_route) in &memory.routes {
            for (cluster, address, OfBreaker(saved)) in &of_route.endpoints {
                let endpoint = address_of(address)
                    .and_then(|address| known.endpoints.get(cluster)?.get(&address))
                    .map(|kept| &kept.value);
                if let (Some(endpoint), Some(route)) = (endpoint, known.routes.get(name)) {
                    recalled.breakers += usize::from(saved.state != State::Closed);
                    let breaker = Breaker::restored(saved, then);
                    route.value.recall_breaker_of(endpoint, breaker);
                }
            }
        }
        recalled
    }
}

impl OfEndpoint {
    fn of(saved: endpoint::Saved) -> Self {
        let endpoint::Saved {
            load,
            ejection,
            breaker,
            verdict,
            newest,
            joined_ago,
            idle,
        } = saved;
        Self {
            load,
            ejection,
            breaker: breaker.map(OfBreaker),
            check: verdict,
            heartbeat: newest,
            joined_ago,
            idle,
        }
    }

    fn saved(&self) -> endpoint::Saved {
        endpoint::Saved {
            load: self.load,
            ejection: self.ejection,
            breaker: self.breaker.as_ref().map(|OfBreaker(saved)| saved.clone()),
            verdict: self.check,
            newest: self.heartbeat,
            joined_ago: self.joined_ago,
            idle: self.idle,
        }
    }
}

impl OfMember {
    fn of(member: &Member) -> Self {
        Self {
            address: member.address.to_string(),
            host: member.host.clone(),
            weight: member.weight,
            zone: member.zone.clone(),
            priority: member.priority,
            labels: (*member.labels).clone(),
        }
    }

    fn member(&self) -> Option<Member> {
        Some(Member {
            address: address_of(&self.address)?,
            host: self.host.clone(),
            weight: self.weight,
            zone: self.zone.clone(),
            priority: self.priority,
            labels: Arc::new(self.labels.clone()),
        })
    }
}

/// The address that is shown like this.
pub fn address_of(text: &str) -> Option<SocketAddress> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(SocketAddress::Unix(Path::new(path).into())),
        None => text.parse().ok().map(SocketAddress::Ip),
    }
}

// ---- the records of the core, field by field ----

#[derive(Debug, Serialize, Deserialize)]
struct OfBreaker(#[serde(with = "BreakerRecord")] breaker::Saved);

#[derive(Debug, Serialize, Deserialize)]
struct OfBudget(#[serde(with = "BudgetRecord")] budget::Saved);

#[derive(Serialize, Deserialize)]
#[serde(remote = "breaker::Saved", deny_unknown_fields)]
struct BreakerRecord {
    #[serde(with = "state")]
    state: State,
    #[serde(with = "cause")]
    cause: Option<Cause>,
    left: Option<Duration>,
    elapsed: Duration,
    openings: u32,
    consecutive: u32,
    passed: u32,
    ramp_success: bool,
    #[serde(with = "WindowRecord")]
    window: window::Saved,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "budget::Saved", deny_unknown_fields)]
struct BudgetRecord {
    #[serde(with = "WindowRecord")]
    offered: window::Saved,
    #[serde(with = "WindowRecord")]
    granted: window::Saved,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "window::Saved", deny_unknown_fields)]
struct WindowRecord {
    length: Duration,
    periods: Vec<[u32; 4]>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SavedLoad", deny_unknown_fields)]
struct LoadRecord {
    estimate: Option<(f32, Duration)>,
    success: f32,
    avoid_for: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "idle::Saved", deny_unknown_fields)]
struct IdleRecord {
    said: Option<Duration>,
    learned: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ejection::Saved", deny_unknown_fields)]
struct EjectionRecord {
    nth: u32,
    left: Option<Duration>,
}

mod state {
    use super::{Deserialize, State};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: serde::Serializer>(state: &State, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(state.name())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<State, D::Error> {
        let word = String::deserialize(from)?;
        let mut all = State::ALL.into_iter();
        all.find(|state| state.name() == word)
            .ok_or_else(|| serde::de::Error::custom(format!("`{}` is no state", word.escape_default())))
    }
}

mod verdict {
    use super::{Deserialize, Verdict};

    const WORDS: [(Verdict, &str); 4] = [
        (Verdict::Unknown, "unknown"),
        (Verdict::Pending, "pending"),
        (Verdict::Up, "up"),
        (Verdict::Down, "down"),
    ];

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        clippy::ref_option,
        reason = "serde calls it so"
    )]
    pub(super) fn serialize<S: serde::Serializer>(
        verdict: &Option<Verdict>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match WORDS.iter().find(|(known, _)| Some(*known) == *verdict) {
            Some((_, word)) => to.serialize_some(word),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Verdict>, D::Error> {
        let Some(word) = Option::<String>::deserialize(from)? else {
            return Ok(None);
        };
        let found = WORDS.iter().find(|(_, known)| *known == word);
        found
            .map(|(verdict, _)| Some(*verdict))
            .ok_or_else(|| serde::de::Error::custom(format!("`{}` is no verdict", word.escape_default())))
    }
}

mod cause {
    use super::{Cause, Deserialize};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        clippy::ref_option,
        reason = "serde calls it so"
    )]
    pub(super) fn serialize<S: serde::Serializer>(cause: &Option<Cause>, to: S) -> Result<S::Ok, S::Error> {
        match cause {
            Some(cause) => to.serialize_some(cause.name()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Cause>, D::Error> {
        let Some(word) = Option::<String>::deserialize(from)? else {
            return Ok(None);
        };
        let found = Cause::ALL.into_iter().find(|cause| cause.name() == word);
        found
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom(format!("`{}` is no cause", word.escape_default())))
    }
}
