//! What outlives a snapshot, found again by identity.
//!
//! A snapshot is made anew with every reload and every change of members; what was learned must not be. Each compile
//! asks here for the record of a cluster (by name), an endpoint (by cluster name and address), a route (by name) and
//! for the TLS sides of listeners and clusters (by name and settings), and gets the one that was there before.
//!
//! References are strong, and a record that no snapshot holds is kept for `forget_after`: with weak ones, an endpoint
//! that DNS drops for five seconds would come back innocent.
//!
//! Control plane only; nothing here is asked on the path of a request.
//!
//! Invariant: asking changes nothing for anybody who is served, so a compile that is refused leaves no trace but
//! records that are forgotten in time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Moment;
use parking_lot::Mutex;

use super::RouteState;
use crate::cluster::discovery::Member;
use crate::cluster::{ClusterState, EndpointState};
use crate::net::SocketAddress;
use crate::net::clock::Clock;
use crate::net::tls::{ClientSettings, ClientTls, ServerSettings, ServerTls, TlsProblem};
use crate::telemetry::Recorder;

/// How long a record is kept that no snapshot holds.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Everything that survives between snapshots.
#[derive(Debug)]
pub struct Registry {
    recorder: Arc<Recorder>,
    clock: Clock,
    forget_after: Duration,
    /// Where balancers start; differs between processes so that proxies do not go through members in step.
    seed: u64,
    pub(super) known: Mutex<Known>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) endpoints: HashMap<Arc<str>, HashMap<SocketAddress, Kept<EndpointState>>>,
    pub(super) clusters: HashMap<Arc<str>, Kept<ClusterState>>,
    pub(super) routes: HashMap<Arc<str>, Kept<RouteState>>,
    /// The last members that discovery told, as long as the cluster is known.
    pub(super) members: HashMap<Arc<str>, Arc<[Member]>>,
    /// The newest last. More than one only between a reload and the end of the connections before it.
    servers: HashMap<Arc<str>, Vec<Kept<ServerTls>>>,
    clients: HashMap<Arc<str>, Vec<Kept<ClientTls>>>,
}

/// A record, and when it was last known to be held by somebody else.
#[derive(Debug)]
pub(super) struct Kept<T> {
    pub(super) value: Arc<T>,
    seen: Moment,
}

impl<T> Kept<T> {
    pub(super) const fn new(value: Arc<T>, now: Moment) -> Self {
        Self { value, seen: now }
    }

    fn take(&mut self, now: Moment) -> Arc<T> {
        self.seen = now;
        Arc::clone(&self.value)
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.value) > 1
    }

    /// Whether to keep it.
    fn keep(&mut self, now: Moment, forget_after: Duration) -> bool {
        if self.is_held() {
            self.seen = now;
        }
        now.since(self.seen) < forget_after
    }
}

impl Registry {
    /// An empty registry that forgets after [`FORGET_AFTER`].
    pub fn new(recorder: Arc<Recorder>, clock: Clock) -> Self {
        Self {
            recorder,
            clock,
            forget_after: FORGET_AFTER,
            seed: RandomState::new().hash_one(0_u8),
            known: Mutex::default(),
        }
    }

    /// Where handles of metrics come from.
    pub const fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Where the balancer of a cluster starts.
    pub(super) fn seed(&self, cluster: &str) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(cluster.as_bytes(), self.seed)
    }

    /// The record of an endpoint; a new one says that it joined at `joined`.
    pub fn endpoint(
        &self,
        cluster: &Arc<str>,
        address: &SocketAddress,
        joined: Moment,
    ) -> Arc<EndpointState> {
        let now = self.now();
        let mut known = self.known.lock();
        let of_cluster = known.endpoints.entry(Arc::clone(cluster)).or_default();
        match of_cluster.get_mut(address) {
            Some(kept) => kept.take(now),
            None => {
                let state = Arc::new(EndpointState::new(joined));
                of_cluster.insert(address.clone(), Kept::new(Arc::clone(&state), now));
                state
            }
        }
    }

    /// The record of a cluster.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterState> {
        let now = self.now();
        let mut known = self.known.lock();
        let kept = known.clusters.entry(Arc::clone(name));
        kept.or_insert_with(|| Kept::new(Arc::default(), now)).take(now)
    }

    /// The record of a route.
    pub fn route(&self, name: &Arc<str>) -> Arc<RouteState> {
        let now = self.now();
        let mut known = self.known.lock();
        let kept = known.routes.entry(Arc::clone(name));
        kept.or_insert_with(|| Kept::new(Arc::default(), now)).take(now)
    }

    /// The members of a cluster that discovery told last.
    pub fn members(&self, cluster: &str) -> Option<Arc<[Member]>> {
        self.known.lock().members.get(cluster).cloned()
    }

    /// Remembers what discovery told.
    pub fn remember_members(&self, cluster: &Arc<str>, members: &[Member]) {
        let mut known = self.known.lock();
        known.members.insert(Arc::clone(cluster), members.into());
    }

    /// The TLS side of a listener: the one with these settings if there is one, else one whose clients can resume the
    /// sessions of the one before. **Blocks** on the file system.
    ///
    /// # Errors
    /// Everything that is wrong with the files.
    pub fn server_tls(
        &self,
        owner: &Arc<str>,
        settings: &ServerSettings,
    ) -> Result<Arc<ServerTls>, Vec<TlsProblem>> {
        let now = self.now();
        let before = {
            let mut known = self.known.lock();
            let kept = known.servers.entry(Arc::clone(owner)).or_default();
            if let Some(same) = kept.iter_mut().find(|kept| kept.value.settings() == settings) {
                return Ok(same.take(now));
            }
            let newest = kept.iter().rev().find(|kept| kept.is_held()).or(kept.last());
            newest.map(|kept| Arc::clone(&kept.value))
        };
        let made = Arc::new(match before {
            Some(before) => before.load_next(settings)?,
            None => ServerTls::load(settings)?,
        });
        let mut known = self.known.lock();
        let kept = known.servers.entry(Arc::clone(owner)).or_default();
        kept.push(Kept::new(Arc::clone(&made), now));
        Ok(made)
    }

    /// The TLS side of a cluster: the one with these settings if there is one, with its sessions. **Blocks** on the
    /// file system.
    ///
    /// # Errors
    /// Everything that is wrong with the files.
    pub fn client_tls(
        &self,
        owner: &Arc<str>,
        settings: &ClientSettings,
    ) -> Result<Arc<ClientTls>, Vec<TlsProblem>> {
        let now = self.now();
        {
            let mut known = self.known.lock();
            let kept = known.clients.entry(Arc::clone(owner)).or_default();
            if let Some(same) = kept.iter_mut().find(|kept| kept.value.settings() == settings) {
                return Ok(same.take(now));
            }
        }
        let made = Arc::new(ClientTls::load(settings)?);
        let mut known = self.known.lock();
        let kept = known.clients.entry(Arc::clone(owner)).or_default();
        kept.push(Kept::new(Arc::clone(&made), now));
        Ok(made)
    }

    /// Forgets what nobody has held for a while. To be called now and then, at least once a minute.
    pub fn sweep(&self, now: Moment) {
        let after = self.forget_after;
        let mut known = self.known.lock();
        let known = &mut *known;
        known.endpoints.retain(|_, of_cluster| {
            of_cluster.retain(|_, kept| kept.keep(now, after));
            !of_cluster.is_empty()
        });
        known.clusters.retain(|_, kept| kept.keep(now, after));
        known.routes.retain(|_, kept| kept.keep(now, after));
        known.members.retain(|name, _| known.clusters.contains_key(name));
        known.servers.retain(|_, kept| {
            kept.retain_mut(|kept| kept.keep(now, after));
            !kept.is_empty()
        });
        known.clients.retain(|_, kept| {
            kept.retain_mut(|kept| kept.keep(now, after));
            !kept.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(
            Arc::new(Recorder::new(crate::telemetry::RecorderSettings::default())),
            Clock::start(),
        )
    }

    #[test]
    fn what_is_held_is_never_forgotten_and_the_rest_in_time() {
        let registry = registry();
        let name: Arc<str> = "app".into();
        let start = registry.now();
        let held = registry.cluster(&name);
        let route = registry.route(&name);
        let route_before = Arc::as_ptr(&route);
        drop(route);
        registry.remember_members(&name, &[]);

        registry.sweep(start.plus(Duration::from_secs(590)));
        assert_eq!(
            Arc::as_ptr(&registry.route(&name)),
            route_before,
            "not forgotten yet"
        );
        registry.sweep(start.plus(Duration::from_secs(1300)));
        assert!(registry.known.lock().routes.is_empty(), "forgotten");
        assert!(Arc::ptr_eq(&held, &registry.cluster(&name)), "held by somebody");
        assert!(registry.members("app").is_some(), "kept with its cluster");

        drop(held);
        registry.sweep(start.plus(Duration::from_secs(2000)));
        assert!(registry.known.lock().clusters.is_empty());
        assert!(registry.members("app").is_none());
    }

    #[test]
    fn one_address_in_two_clusters_is_two_endpoints() {
        let registry = registry();
        let address = SocketAddress::Ip(([127, 0, 0, 1], 80).into());
        let one = registry.endpoint(&"a".into(), &address, Moment::ZERO);
        let other = registry.endpoint(&"b".into(), &address, Moment::ZERO);
        assert_ne!(one.id, other.id);
        let again = registry.endpoint(&"a".into(), &address, registry.now());
        assert!(Arc::ptr_eq(&one, &again));
        assert_eq!(again.arbiter.entered(), Moment::ZERO);
    }
}
