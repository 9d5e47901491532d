//! Endpoints written in the configuration, where some are names: each name is followed like a DNS source of its own.
//!
//! Addresses are members from the start; a name joins when it first resolves. A name that cannot be resolved takes
//! nothing from the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use bellwether_core::Dice;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::net::{Address, SocketAddress};

use super::dns::{self, Question, Resolver};
use super::{Asked, Event, Member, SourceKind, Task, keep, normalize};

/// Where a written endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Known.
    Address(SocketAddress),
    /// To be resolved, and resolved again.
    Name {
        /// The host name.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
}

impl From<&Address> for Place {
    fn from(written: &Address) -> Self {
        match (written, written.socket_addr()) {
            (Address::Unix(path), _) => Self::Address(SocketAddress::Unix(path.as_path().into())),
            (Address::Tcp { .. }, Some(address)) => Self::Address(SocketAddress::Ip(address)),
            (Address::Tcp { host, port }, None) => Self::Name {
                host: host.as_str().into(),
                port: *port,
            },
        }
    }
}

/// One endpoint as written. All addresses behind a name share the settings of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub place: Place,
    /// As in [`Member::weight`].
    pub weight: u32,
    /// As in [`Member::zone`].
    pub zone: Option<Arc<str>>,
    /// As in [`Member::priority`].
    pub priority: u8,
    /// As in [`Member::labels`].
    pub labels: Arc<BTreeMap<String, String>>,
}

impl Entry {
    /// An entry with weight 1 and nothing else said about it.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            weight: 1,
            zone: None,
            priority: 0,
            labels: Arc::default(),
        }
    }

    fn member(&self, address: SocketAddress, host: Option<Arc<str>>) -> Member {
        Member {
            address,
            host,
            weight: self.weight,
            zone: self.zone.clone(),
            priority: self.priority,
            labels: self.labels.clone(),
        }
    }
}

/// A list of endpoints.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As written, in that order; where two lead to the same address the first one's settings count.
    pub entries: Vec<Entry>,
    /// For every name.
    pub keep: keep::Settings,
    /// Whom to ask.
    pub resolver: Arc<Resolver>,
}

impl Settings {
    /// Whether there is anything to follow; a list of addresses alone needs no task.
    pub fn has_names(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.place, Place::Name { .. }))
    }

    /// The members that need no resolving.
    pub fn known(&self) -> Vec<Member> {
        self.merge(&BTreeMap::new())
    }

    fn merge(&self, resolved: &BTreeMap<usize, Vec<Member>>) -> Vec<Member> {
        let mut members = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            match &entry.place {
                Place::Address(address) => members.push(entry.member(address.clone(), None)),
                Place::Name { .. } => {
                    let found = resolved.get(&at).map(Vec::as_slice).unwrap_or_default();
                    members.extend(
                        found
                            .iter()
                            .map(|found| entry.member(found.address.clone(), found.host.clone())),
                    );
                }
            }
        }
        normalize(&mut members);
        members
    }
}

/// Runs until the receiver of the events is gone.
pub async fn run(settings: Settings, task: Task) {
    let mut dice = Dice::new(task.seed);
    let (steps, mut heard) = mpsc::channel(16);
    // Dropped with this task, and with it every follower.
    let mut followers = JoinSet::new();
    for (at, entry) in settings.entries.iter().enumerate() {
        if let Place::Name { host, port } = &entry.place {
            let dns = dns::Settings {
                question: Question::Addresses {
                    host: host.clone(),
                    port: *port,
                },
                keep: settings.keep,
                resolver: settings.resolver.clone(),
            };
            followers.spawn(dns::follow(at, dns, dice.next_u64(), steps.clone()));
        }
    }
    drop(steps);
    let mut in_force = settings.known();
    let mut resolved = BTreeMap::new();
    let mut stale = BTreeMap::new();
    if !in_force.is_empty() {
        let event = Event {
            cluster: task.cluster.clone(),
            source: SourceKind::Fixed,
            at: tokio::time::Instant::now(),
            asked: Asked::Changed,
            detail: None,
            stale: false,
            members: Some(in_force.clone()),
        };
        if task.events.send(event).await.is_err() {
            return;
        }
    }
    while let Some((at, when, step)) = heard.recv().await {
        stale.insert(at, step.stale);
        if let Some(members) = step.members {
            resolved.insert(at, members);
        }
        let members = settings.merge(&resolved);
        let changed = members != in_force;
        let name = match settings.entries.get(at).map(|entry| &entry.place) {
            Some(Place::Name { host, .. }) => host.clone(),
            Some(Place::Address(_)) | None => Arc::from(""),
        };
        let event = Event {
            cluster: task.cluster.clone(),
            source: SourceKind::Fixed,
            at: when,
            asked: step.asked,
            detail: step.detail.map(|why| Arc::from(format!("{name}: {why}"))),
            stale: stale.values().any(|stale| *stale),
            members: changed.then(|| members.clone()),
        };
        in_force = members;
        if task.events.send(event).await.is_err() {
            return;
        }
    }
}

/// How names in `endpoints` are followed: by their TTL, with the defaults of `discovery.dns`.
pub const fn keep_defaults() -> keep::Settings {
    keep::Settings::new(keep::Pace::Ttl)
}
