//! Connections of one worker to endpoints.
//!
//! HTTP/1.1 connections are taken from the end of a list that was filled at its end (the warmest first), HTTP/2
//! connections are shared up to what the peer allows. A request that finds none waits for its own connection to open or
//! for another to come back, whichever is first: an endpoint that is slow to accept must not fail a request while its
//! other connections fall idle. A connection nobody waits for any more is kept for the next request. Nothing watches idle connections: the reactor has noticed if a
//! peer closed, and checkout asks it. A sweep, running only while there is something to sweep, closes what has been
//! idle too long.
//!
//! Invariant: every connection is counted at its endpoint exactly as long as it exists, by a guard.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::shed::Level;
use bellwether_core::{Moment, idle};
use tokio::sync::{Notify, oneshot};

use super::connect::{self, ConnectError, Opened};
use super::{Cluster, Endpoint, EndpointState, Protocol};
use crate::net::PeerInfo;
use crate::telemetry::{CloseReason, ClusterMetrics, ConnectResult, ConnectionState, WorkerId};
use crate::wire::{Toolbox, http1, http2};

/// An unused HTTP/2 connection is kept this long.
const IDLE_HTTP2: Duration = Duration::from_secs(300);
const SWEEP: Duration = Duration::from_millis(250);
/// How often somebody at the limit of connections looks again.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);

/// All pools of one worker.
#[derive(Debug, Clone)]
pub struct Pools {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Ordered, because comparing two numbers a few times costs a fraction of a hash that clients cannot aim at.
    pools: RefCell<BTreeMap<Key, Rc<Pool>>>,
    tools: Toolbox,
    worker: WorkerId,
    sweeping: Cell<bool>,
}

/// Identity of the endpoint's state, and of the way connections to it are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    endpoint: u64,
    transport: u64,
    /// Whose connection it is, where the endpoint was told (PROXY protocol): it believes that of every request on it.
    client: Option<(SocketAddr, SocketAddr)>,
}

/// Connections of one endpoint on one worker.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Shared>>,
    /// One HTTP/2 handshake at a time; the others wait for it.
    connecting: Cell<bool>,
    connected: Notify,
    /// The endpoint chose HTTP/1.1 the last time, so there is nothing to wait for.
    exclusive: Cell<bool>,
    /// An HTTP/1.1 connection came back.
    returned: Notify,
    /// Who would like to know.
    waiting: Cell<u32>,
    /// Connections that could not be opened; wraps.
    failures: Cell<u32>,
    max_idle: Cell<usize>,
    idle_timeout: Cell<Option<Duration>>,
    max_requests: Cell<Option<u32>>,
    owner: Rc<Inner>,
}

#[derive(Debug)]
struct Idle {
    connection: http1::client::Connection,
    guard: Guard,
    since: Moment,
}

#[derive(Debug)]
struct Shared {
    connection: http2::client::Connection,
    guard: Rc<RefCell<Guard>>,
    used: Moment,
}

/// Counts one open connection for as long as it lives.
#[derive(Debug)]
pub(super) struct Guard {
    endpoint: Arc<EndpointState>,
    metrics: Arc<ClusterMetrics>,
    worker: WorkerId,
    state: ConnectionState,
    reason: CloseReason,
}

impl Guard {
    fn open(endpoint: &Endpoint, cluster: &Cluster, worker: WorkerId) -> Option<Self> {
        if !endpoint.state.open_connection(cluster.settings.max_connections) {
            return None;
        }
        cluster
            .metrics
            .connection_moved(worker, None, Some(ConnectionState::Connecting));
        Some(Self {
            endpoint: Arc::clone(&endpoint.state),
            metrics: Arc::clone(&cluster.metrics),
            worker,
            state: ConnectionState::Connecting,
            reason: CloseReason::Error,
        })
    }

    fn moved(&mut self, to: ConnectionState) {
        self.metrics
            .connection_moved(self.worker, Some(self.state), Some(to));
        self.state = to;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.endpoint.close_connection();
        self.metrics.connection_moved(self.worker, Some(self.state), None);
        if self.state != ConnectionState::Connecting {
            self.metrics.connection_closed(self.worker, self.reason);
        }
    }
}

/// A connection in use.
#[derive(Debug)]
pub(super) enum Lease {
    Http1(http1::client::Connection, Ticket),
    /// A shared connection; the guard counts it until its last exchange ends.
    Http2(http2::client::Connection, Rc<RefCell<Guard>>),
}

/// The way back to the pool for an HTTP/1.1 connection; dropping it closes and uncounts the connection.
#[derive(Debug)]
pub(super) struct Ticket {
    pool: Rc<Pool>,
    guard: Guard,
    /// How long it had been idle before this exchange.
    lay: Duration,
}

/// What checkout asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Any usable connection.
    Any,
    /// A new one, after an idle one turned out to be stale.
    Fresh,
}

impl Pools {
    /// No connections yet.
    pub fn new(tools: Toolbox, worker: WorkerId) -> Self {
        let inner = Inner {
            pools: RefCell::default(),
            tools,
            worker,
            sweeping: Cell::new(false),
        };
        Self {
            inner: Rc::new(inner),
        }
    }

    /// The pool of an endpoint, with the settings of the present snapshot.
    pub(super) fn of(&self, cluster: &Cluster, endpoint: &Endpoint, client: Option<&PeerInfo>) -> Rc<Pool> {
        let key = Key {
            endpoint: endpoint.state.id,
            transport: cluster.transport,
            client: client.and_then(|peer| Some((peer.client()?, peer.destination()?))),
        };
        let mut pools = self.inner.pools.borrow_mut();
        let pool = pools.entry(key).or_insert_with(|| {
            Rc::new(Pool {
                idle: RefCell::default(),
                shared: RefCell::default(),
                connecting: Cell::new(false),
                connected: Notify::new(),
                exclusive: Cell::new(false),
                returned: Notify::new(),
                waiting: Cell::new(0),
                failures: Cell::new(0),
                max_idle: Cell::new(0),
                idle_timeout: Cell::new(None),
                max_requests: Cell::new(None),
                owner: Rc::clone(&self.inner),
            })
        });
        pool.max_idle.set(cluster.settings.max_idle);
        pool.idle_timeout.set(cluster.settings.idle_timeout);
        pool.max_requests.set(cluster.settings.max_requests);
        Rc::clone(pool)
    }

    /// Closes idle connections to endpoints that the predicate does not know any more.
    pub fn retain(&self, mut known: impl FnMut(u64, u64) -> bool) {
        self.inner
            .pools
            .borrow_mut()
            .retain(|key, _| known(key.endpoint, key.transport));
    }

    /// Idle and shared connections, for inspection.
    pub fn connections(&self) -> usize {
        let pools = self.inner.pools.borrow();
        pools
            .values()
            .map(|pool| pool.idle.borrow().len() + pool.shared.borrow().len())
            .sum()
    }
}

impl Pool {
    /// A connection for one exchange: an idle one, room on a shared one, or a new one.
    pub(super) async fn checkout(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        index: usize,
        freshness: Freshness,
        client: Option<&Rc<PeerInfo>>,
    ) -> Result<Lease, ConnectError> {
        if let (Freshness::Any, Some(lease)) = (freshness, self.reuse()) {
            return Ok(lease);
        }
        // Boxed: a request that finds a connection, as nearly all do, carries no room for making one.
        Box::pin(self.connect(cluster, index, freshness, client)).await
    }

    /// A new connection, or one that becomes free meanwhile.
    async fn connect(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        index: usize,
        freshness: Freshness,
        client: Option<&Rc<PeerInfo>>,
    ) -> Result<Lease, ConnectError> {
        // Several requests at once need one HTTP/2 connection, not several.
        while may_share(cluster)
            && !self.exclusive.get()
            && self.connecting.get()
            && freshness == Freshness::Any
        {
            let failures = self.failures.get();
            self.connected.notified().await;
            if let Some(lease) = self.reuse() {
                return Ok(lease);
            }
            if self.failures.get() != failures {
                // To wait for each other's failures in turn would take the sum of their timeouts.
                break;
            }
        }
        if may_share(cluster) && !self.exclusive.get() {
            let client = client.map(|client| &**client);
            return self.open(cluster, &cluster.endpoints[index], client).await;
        }
        self.open_or_returned(cluster, index, freshness, client).await
    }

    /// An HTTP/1.1 connection: a new one, or one that comes back before it is open.
    async fn open_or_returned(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        index: usize,
        freshness: Freshness,
        client: Option<&Rc<PeerInfo>>,
    ) -> Result<Lease, ConnectError> {
        let (done, mut opened) = oneshot::channel();
        let (pool, cluster, client) = (Rc::clone(self), Arc::clone(cluster), client.cloned());
        tokio::task::spawn_local(async move {
            let opened = pool
                .open(&cluster, &cluster.endpoints[index], client.as_deref())
                .await;
            if let Err(Ok(Lease::Http1(connection, ticket))) = done.send(opened) {
                ticket.finish(Some(connection));
            }
        });
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            tokio::select! {
                biased;
                opened = &mut opened => {
                    return opened.unwrap_or_else(|_gone| {
                        Err(ConnectError::Failed(io::Error::other("the worker is ending")))
                    });
                }
                () = self.returned.notified(), if freshness == Freshness::Any => {
                    if let Some(lease) = self.reuse() {
                        return Ok(lease);
                    }
                }
            }
        }
    }

    fn reuse(self: &Rc<Self>) -> Option<Lease> {
        let limit = self.max_requests.get().unwrap_or(u32::MAX);
        {
            let mut shared = self.shared.borrow_mut();
            shared.retain(|entry| !entry.connection.is_closed() && entry.connection.exchanges() < limit);
            for entry in shared.iter_mut() {
                if entry.connection.has_room() {
                    entry.used = self.owner.tools.wheel.recent();
                    return Some(Lease::Http2(entry.connection.clone(), Rc::clone(&entry.guard)));
                }
            }
        }
        let now = self.owner.tools.wheel.recent();
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle {
            mut connection,
            mut guard,
            since,
        }) = idle.pop()
        {
            let lay = now.since(since);
            // The sweep comes four times a second; the race against the endpoint's own limit is lost in less.
            let stale = self.is_stale(&guard, lay, now, Level::Normal);
            if !stale && connection.is_reusable() {
                guard.moved(ConnectionState::Active);
                guard.reason = CloseReason::Error;
                return Some(Lease::Http1(
                    connection,
                    Ticket {
                        pool: Rc::clone(self),
                        guard,
                        lay,
                    },
                ));
            }
            if !stale {
                guard.endpoint.idle.closed_after(lay, now);
            }
            guard.reason = CloseReason::Idle;
        }
        None
    }

    async fn open(
        self: &Rc<Self>,
        cluster: &Cluster,
        endpoint: &Endpoint,
        client: Option<&PeerInfo>,
    ) -> Result<Lease, ConnectError> {
        let worker = self.owner.worker;
        let mut guard = match Guard::open(endpoint, cluster, worker) {
            Some(guard) => guard,
            None => self.room(cluster, endpoint).await?,
        };
        let _turn = may_share(cluster).then(|| Turn::take(self));
        let started = self.owner.tools.wheel.now();
        let opened = connect::open(cluster, endpoint, client, &self.owner.tools.wheel).await;
        let took = self.owner.tools.wheel.now().since(started);
        match &opened {
            Ok(_) => cluster.metrics.connect_ended(worker, ConnectResult::Ok, took),
            Err(error) => cluster.metrics.connect_ended(worker, error.result(), took),
        }
        let opened = opened.inspect_err(|_| self.failures.set(self.failures.get().wrapping_add(1)))?;
        guard.moved(ConnectionState::Active);
        match opened {
            Opened::Http1(connection) => {
                self.exclusive.set(true);
                Ok(Lease::Http1(
                    connection,
                    Ticket {
                        pool: Rc::clone(self),
                        guard,
                        lay: Duration::ZERO,
                    },
                ))
            }
            Opened::Http2(connection) => {
                guard.reason = CloseReason::Goaway;
                self.exclusive.set(false);
                let guard = Rc::new(RefCell::new(guard));
                let used = self.owner.tools.wheel.recent();
                self.shared.borrow_mut().push(Shared {
                    connection: connection.clone(),
                    guard: Rc::clone(&guard),
                    used,
                });
                Inner::sweep_soon(&self.owner);
                Ok(Lease::Http2(connection, guard))
            }
        }
    }

    /// Waits for room below the limit of connections, which all workers share. Idle connections of other workers are no
    /// use here, so they are asked to let go of them.
    async fn room(&self, cluster: &Cluster, endpoint: &Endpoint) -> Result<Guard, ConnectError> {
        let wheel = &self.owner.tools.wheel;
        let deadline = wheel.now().plus(cluster.settings.connect_timeout);
        let _wanted = Wanted::begin(&endpoint.state);
        while wheel.now() < deadline {
            wheel.sleep_until(wheel.now().plus(LOOK_FOR_ROOM)).await;
            if let Some(guard) = Guard::open(endpoint, cluster, self.owner.worker) {
                return Ok(guard);
            }
        }
        Err(ConnectError::Limit)
    }

    /// Whether a connection has been idle too long; a process that is short of something keeps them half as long.
    fn is_stale(&self, guard: &Guard, lay: Duration, now: Moment, level: Level) -> bool {
        match self.idle_timeout.get() {
            Some(timeout) => lay >= level.idle_timeout(timeout),
            None => lay >= idle::LEAST && lay >= level.idle_timeout(guard.endpoint.idle.limit(now)),
        }
    }

    /// Closes what has been idle too long; whether anything is left.
    fn sweep(&self, now: Moment) -> bool {
        let level = self.owner.tools.level();
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|entry| {
            let lay = now.since(entry.since);
            let stale = self.is_stale(&entry.guard, lay, now, level) || entry.guard.endpoint.is_room_wanted();
            if !stale && entry.connection.is_reusable() {
                return true;
            }
            if !stale {
                entry.guard.endpoint.idle.closed_after(lay, now);
            }
            entry.guard.reason = CloseReason::Idle;
            false
        });
        let mut shared = self.shared.borrow_mut();
        shared.retain_mut(|entry| {
            if entry.connection.active() > 0 {
                entry.used = now;
            } else if now.since(entry.used)
                >= level.idle_timeout(self.idle_timeout.get().unwrap_or(IDLE_HTTP2))
            {
                entry.guard.borrow_mut().reason = CloseReason::Idle;
                return false;
            }
            !entry.connection.is_closed()
        });
        !idle.is_empty() || !shared.is_empty()
    }
}

impl Inner {
    /// Starts the sweep unless it runs.
    fn sweep_soon(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        tokio::task::spawn_local(async move {
            loop {
                inner
                    .tools
                    .wheel
                    .sleep_until(inner.tools.wheel.now().plus(SWEEP))
                    .await;
                let now = inner.tools.wheel.now();
                let mut pools = inner.pools.borrow_mut();
                // A pool that nobody uses and that holds nothing is forgotten.
                pools.retain(|_, pool| pool.sweep(now) || Rc::strong_count(pool) > 1);
                if pools.is_empty() {
                    inner.sweeping.set(false);
                    return;
                }
            }
        });
    }
}

impl Ticket {
    /// Gives the connection back for the next exchange, or closes it.
    pub(super) fn finish(mut self, connection: Option<http1::client::Connection>) {
        let Some(connection) = connection else {
            self.guard.reason = CloseReason::Goaway;
            return;
        };
        let pool = Rc::clone(&self.pool);
        if pool
            .max_requests
            .get()
            .is_some_and(|limit| connection.exchanges() >= limit)
        {
            self.guard.reason = CloseReason::MaxAge;
            return;
        }
        let mut idle = pool.idle.borrow_mut();
        // Whoever waits on this worker takes it; for one on another it has to be closed.
        let wanted_elsewhere = pool.waiting.get() == 0 && self.guard.endpoint.is_room_wanted();
        if wanted_elsewhere || idle.len() >= pool.max_idle.get() {
            self.guard.reason = CloseReason::Idle;
            return;
        }
        self.guard.moved(ConnectionState::Idle);
        idle.push(Idle {
            connection,
            guard: self.guard,
            since: pool.owner.tools.wheel.recent(),
        });
        drop(idle);
        if pool.waiting.get() > 0 {
            pool.returned.notify_one();
        }
        Inner::sweep_soon(&pool.owner);
    }

    /// What the endpoint says about idle connections (`keep-alive: timeout=N`, seconds).
    pub(super) fn endpoint_says(&self, seconds: u64) {
        self.guard.endpoint.idle.says(seconds);
    }

    /// The connection was stale, or the exchange was given up.
    pub(super) fn close(mut self, reason: CloseReason) {
        if reason == CloseReason::Race {
            let now = self.pool.owner.tools.wheel.recent();
            self.guard.endpoint.idle.closed_after(self.lay, now);
        }
        self.guard.reason = reason;
    }
}

fn may_share(cluster: &Cluster) -> bool {
    match cluster.settings.protocol {
        Protocol::Http2 => true,
        Protocol::Auto => cluster.tls.is_some(),
        Protocol::Http1 => false,
    }
}

/// Says that a worker waits for room below the limit of connections of an endpoint, for as long as it does.
struct Wanted<'a>(&'a EndpointState);

impl<'a> Wanted<'a> {
    fn begin(endpoint: &'a EndpointState) -> Self {
        endpoint.want_room();
        Self(endpoint)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.found_room();
    }
}

/// Counts one who waits, for as long as it does.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The right to open the one shared connection; the others are woken when it is given up.
struct Turn<'a>(&'a Pool);

impl<'a> Turn<'a> {
    fn take(pool: &'a Pool) -> Self {
        pool.connecting.set(true);
        Self(pool)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::cluster::Settings;
    use crate::cluster::exchange::Checkout;
    use crate::cluster::testing::{World, finish, settings, start};
    use crate::message::replay::Upload;
    use crate::wire::Inbound;
    use crate::wire::testing::{run, secs, service, sleep, text};

    #[test]
    fn the_connection_that_was_used_last_is_used_next() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let (connections, _) = world.numbered();
            let (first, second) = (world.get().await, world.get().await);
            assert_eq!(
                (finish(first).await, finish(second).await),
                ("0".into(), "1".into())
            );
            for _ in 0..3 {
                assert_eq!(finish(world.get().await).await, "1");
            }
            let (warm, cold) = (world.get().await, world.get().await);
            assert_eq!((finish(warm).await, finish(cold).await), ("1".into(), "0".into()));
            assert_eq!(finish(world.get().await).await, "0");
            assert_eq!(
                (connections.get(), world.open(), world.pools.connections()),
                (2, 2, 2)
            );
        });
    }

    #[test]
    fn idle_connections_are_closed_and_the_pool_is_forgotten() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let (_, tasks) = world.numbered();
            drop(finish(world.get().await).await);
            sleep(secs(29)).await;
            assert_eq!((world.open(), world.pools.connections()), (1, 1));
            sleep(secs(3)).await;
            assert_eq!((world.open(), world.pools.connections()), (0, 0));
            assert!(tasks.borrow()[0].is_finished());
            assert!(world.pools.inner.pools.borrow().is_empty());
            // And it begins anew.
            assert_eq!(finish(world.get().await).await, "1");
        });
    }

    #[test]
    fn what_the_endpoint_says_about_idle_connections_is_learned() {
        run(|tools| async move {
            let world = World::new(
                &tools,
                Settings {
                    idle_timeout: None,
                    ..settings()
                },
            );
            let endpoint = &world.endpoint().state;
            let idle_for = async |seconds| {
                sleep(secs(seconds)).await;
                world.open()
            };
            let (_, _tasks) = world.numbered();
            drop(finish(world.get().await).await);
            // Nothing is known yet: less than anybody's default.
            assert_eq!((idle_for(3).await, idle_for(3).await), (1, 0));
            endpoint.idle.says(21);
            drop(finish(world.get().await).await);
            assert_eq!((idle_for(18).await, idle_for(4).await), (1, 0));
            // Also one that says too much.
            endpoint.idle.says(10_000);
            drop(finish(world.get().await).await);
            assert_eq!((idle_for(53).await, idle_for(4).await), (1, 0));
        });
    }

    #[test]
    fn a_connection_that_is_not_as_it_was_left_is_not_used() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let exchange = async || {
                let exchange = world.get().await;
                let mut peer = world.accept().await;
                peer.send(answer).await;
                finish(exchange).await;
                peer
            };
            // The reactor has to look once before anything can be known.
            let noticed = || sleep(secs(1));
            // Closed while it was idle.
            drop(exchange().await);
            noticed().await;
            // Something was said that nobody had asked for.
            let mut chatty = exchange().await;
            chatty.send("HTTP/1.1 408 ").await;
            noticed().await;
            let quiet = exchange().await;
            // Each of them had to be replaced; the last is still good.
            let checkout = world.checkout().await.unwrap();
            assert!(start(checkout, Upload::empty()).unwrap().is_reused());
            drop(quiet);
            assert_eq!(world.open(), 0);
        });
    }

    #[test]
    fn a_fresh_connection_is_one_that_was_not_idle() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let (_, _tasks) = world.numbered();
            drop(finish(world.get().await).await);
            let fresh = Checkout::open(&world.pools, &world.cluster, 0, Freshness::Fresh, None);
            let fresh = start(fresh.await.unwrap(), Upload::empty()).unwrap();
            assert!(!fresh.is_reused());
            assert_eq!(finish(fresh).await, "1");
        });
    }

    #[test]
    fn limits_hold() {
        run(|tools| async move {
            let world = World::new(
                &tools,
                Settings {
                    max_connections: Some(3),
                    max_idle: 1,
                    max_requests: Some(2),
                    ..settings()
                },
            );
            let (connections, _tasks) = world.numbered();
            let running = [world.get().await, world.get().await, world.get().await];
            assert!(matches!(world.checkout().await, Err(ConnectError::Limit)));
            for exchange in running {
                drop(finish(exchange).await);
            }
            // One may be idle; the first to come back was the first to stay.
            assert_eq!((world.open(), world.pools.connections()), (1, 1));
            assert_eq!(finish(world.get().await).await, "0");
            // Its second request was its last.
            assert_eq!(world.open(), 0);
            assert_eq!(finish(world.get().await).await, "3");
            assert_eq!(connections.get(), 4);
        });
    }

    #[test]
    fn whatever_ends_an_exchange_uncounts_its_connection() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let (_, _tasks) = world.numbered();
            // Before anything was sent, and while the answer is awaited.
            drop(world.checkout().await.unwrap());
            assert_eq!(world.open(), 0);
            drop(world.get().await);
            assert_eq!(world.open(), 0);
            world.get().await.abandon(CloseReason::Aborted);
            assert_eq!((world.open(), world.pools.connections()), (0, 0));
        });
    }

    #[test]
    fn what_is_not_known_any_more_is_closed() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let (_, tasks) = world.numbered();
            drop(finish(world.get().await).await);
            let id = world.endpoint().state.id;
            world
                .pools
                .retain(|endpoint, transport| (endpoint, transport) == (id, 0));
            assert_eq!(world.open(), 1);
            world.pools.retain(|_, transport| transport != 0);
            assert_eq!(world.open(), 0);
            sleep(secs(1)).await;
            assert!(tasks.borrow()[0].is_finished());
        });
    }

    fn http2() -> Settings {
        Settings {
            protocol: Protocol::Http2,
            ..settings()
        }
    }

    #[test]
    fn many_requests_at_once_share_one_http2_connection() {
        run(|tools| async move {
            let world = Rc::new(World::new(&tools, http2()));
            let drains = world.http2(&tools, &service(|_: Inbound| async { text(200, "hello") }));
            let asking: Vec<_> = (0..20)
                .map(|_| {
                    let world = Rc::clone(&world);
                    tokio::task::spawn_local(async move { finish(world.get().await).await })
                })
                .collect();
            for asked in asking {
                assert_eq!(asked.await.unwrap(), "hello");
            }
            assert_eq!((drains.borrow().len(), world.open()), (1, 1));
            // Who has said GOAWAY is asked no more, and what is asked then has a connection of its own.
            drains.borrow()[0].begin();
            sleep(secs(1)).await;
            assert_eq!(finish(world.get().await).await, "hello");
            assert_eq!((drains.borrow().len(), world.open()), (2, 1));
        });
    }

    #[test]
    fn a_second_http2_connection_is_opened_when_the_first_is_full() {
        run(|tools| async move {
            let world = World::new(&tools, http2());
            let drains = world.http2(&tools, &service(|_: Inbound| pending()));
            let mut running = Vec::new();
            for _ in 0..101 {
                let mut exchange = world.get().await;
                std::future::poll_fn(|cx| {
                    assert!(exchange.poll_answer(cx).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                running.push(exchange);
            }
            sleep(secs(1)).await;
            assert_eq!((drains.borrow().len(), world.open()), (2, 2));
        });
    }

    #[test]
    fn those_who_wait_for_a_handshake_that_fails_do_not_wait_in_turn() {
        run(|tools| async move {
            let world = Rc::new(World::new(&tools, http2()));
            // It accepts, and says nothing: the settings are assumed. So it must not even accept.
            drop(std::fs::remove_file(match &world.endpoint().address {
                crate::net::SocketAddress::Unix(path) => path,
                crate::net::SocketAddress::Ip(_) => panic!("a Unix socket"),
            }));
            let asking: Vec<_> = (0..10)
                .map(|_| {
                    let world = Rc::clone(&world);
                    tokio::task::spawn_local(async move { world.checkout().await.is_err() })
                })
                .collect();
            for asked in asking {
                assert!(asked.await.unwrap());
            }
            assert_eq!(world.open(), 0);
        });
    }
}
