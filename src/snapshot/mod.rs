//! The world of one configuration: immutable, compiled, swapped atomically.
//!
//! A [`Snapshot`] holds everything a request may ask, with names resolved to indices. What was learned (endpoint
//! state, counters) is found again in the [`registry::Registry`] when the next snapshot is made, so a reload forgets
//! nothing. Only the publisher stores into the [`cell::Cell`]; a request reads it once.

pub mod blueprint;
pub mod cell;
pub mod compile;
pub mod diff;
pub mod failure;
pub mod guard;
pub mod memory;
pub mod rate;
pub mod registry;
pub mod route;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use route::{
    Action, EXPIRED, Fallback, FallbackTo, Fault, HedgePlan, Mirror, PerTry, Retry, RetryMethods, RetryOn,
    Route, RouteSeat, RouteState, Target,
};

pub use blueprint::with_members;
pub use compile::{Compiled, Plan, check_restart_only, compile, dry_run};
pub use diff::{Difference, Outline};
pub use failure::FailureWhen;
pub use guard::{Breakers, Guarded};
pub use rate::RateLimit;
pub use registry::Registry;

use bellwether_core::Mode;

use crate::cluster::Cluster;
use crate::message::forwarded::TrustedProxies;
use crate::message::reply::Detail;
use crate::message::template::Template;
use crate::net::tls::ServerTls;
use crate::net::{Address, proxy_protocol};
use crate::route::{RequestView, Table};
use crate::telemetry::{AccessSettings, ListenerMetrics, RouteMetrics};
use crate::wire::{http1, http2};

/// Everything in force at one time.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts published snapshots that came from a configuration; members that come and go do not change it.
    pub generation: u64,
    /// Short hash of the configuration's text.
    pub hash: Arc<str>,
    /// By the order in the file.
    pub listeners: Box<[Arc<Listener>]>,
    /// By the order in the file.
    pub routes: Arc<[Arc<Route>]>,
    /// Indexed by [`ClusterId`].
    pub clusters: Box<[Arc<Cluster>]>,
    /// What is given up when the process is short of something; none when off.
    pub overload: Option<OverloadSettings>,
    /// What requests without a route count as.
    pub unrouted: Arc<RouteMetrics>,
    /// How requests are logged; none when the log is off.
    pub access_log: Option<AccessSettings>,
    /// Further fields of the access log. No template shows a request's own fields, so there is nothing to redact.
    pub access_fields: Arc<[(Arc<str>, Template)]>,
}

/// How the process looks after itself.
#[derive(Debug, Clone, Copy)]
pub struct OverloadSettings {
    /// Whether anything is given up.
    pub mode: Mode,
    /// Bytes that it may use; none for what the system says.
    pub max_memory: Option<u64>,
}

/// Index of a cluster in its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u32);

impl Snapshot {
    /// The cluster of a route of the same snapshot.
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.0 as usize)
    }

    /// A listener by name.
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| &*listener.name == name)
    }
}

/// Which way traffic of a listener goes, seen from the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards it.
    Inbound,
    /// From it.
    Outbound,
}

/// A bound address and what it serves.
#[derive(Debug)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// As configured.
    pub address: Address,
    /// Inbound or outbound.
    pub direction: Direction,
    /// HTTP/1.1 is spoken, with these settings.
    pub http1: Option<Arc<http1::server::Settings>>,
    /// HTTP/2 is spoken, with these settings.
    pub http2: Option<Arc<http2::server::Settings>>,
    /// TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// From accept to the end of the TLS handshake; also bounds the PROXY header and the guess of the protocol.
    pub handshake_timeout: Duration,
    /// Whether trusted peers send a PROXY header first; none when they do not.
    pub proxy_protocol: Option<proxy_protocol::Presence>,
    /// Whose PROXY header, forwarding fields and `x-bellwether-*` are believed.
    pub trusted: TrustedProxies,
    /// Connections at once, over all workers.
    pub max_connections: Option<u32>,
    /// Connections of one client address at once, over all workers.
    pub max_connections_per_ip: Option<u32>,
    /// Bytes of a request's content.
    pub max_body: Option<u64>,
    /// How much our own error answers tell.
    pub detail: Detail,
    /// Whether its requests are logged.
    pub access_log: bool,
    /// Finds the route.
    pub table: Table,
    /// From an index of the table to an index of [`Snapshot::routes`].
    pub routes: Box<[u32]>,
    /// Its series.
    pub metrics: Arc<ListenerMetrics>,
}

impl Listener {
    /// The first route that matches.
    pub fn find<'a>(&self, snapshot: &'a Snapshot, view: &RequestView<'_>) -> Option<&'a Arc<Route>> {
        let index = self.table.find(view)?;
        snapshot.routes.get(*self.routes.get(index)? as usize)
    }

    /// Whether a peer's word about others is taken.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.is_some_and(|peer| self.trusted.contains(peer))
    }
}
