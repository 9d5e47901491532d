//! Discovery: where the members of a cluster come from, and what to believe when the source falters.
//!
//! Every source (a fixed list with names in it, DNS, a file, an HTTP address) is one task on the control runtime that
//! sends [`Event`]s. An event always tells how the question went (for metrics and people) and carries the *whole* new
//! set of members when it changed. What an answer means is decided by the pure [`keep::Keeper`], because the usual
//! outage is not a wrong answer but a resolver that answers nothing: a source that fails never empties a cluster.
//!
//! Invariants: members are sorted and unique by address; an event with members differs from the one before; nothing
//! here can grow past [`MAX_MEMBERS`].

pub mod dns;
pub mod entry;
pub mod file;
pub mod fixed;
pub mod http;
pub mod keep;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::net::SocketAddress;

/// The most members one source may name. An answer with more is refused as a failure, never cut.
pub const MAX_MEMBERS: usize = 4096;

/// One endpoint as a source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is reached; its identity within the cluster.
    pub address: SocketAddress,
    /// The name it was found under, for SNI and certificate verification; `None` where only an address was written.
    pub host: Option<Arc<str>>,
    /// Share of the load relative to the others; 0 drains.
    pub weight: u32,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
    /// Higher numbers are used only when lower ones fail.
    pub priority: u8,
    /// For people and metrics.
    pub labels: Arc<BTreeMap<String, String>>,
}

impl Member {
    /// A member with weight 1 and nothing else said about it.
    pub fn new(address: SocketAddress) -> Self {
        Self {
            address,
            host: None,
            weight: 1,
            zone: None,
            priority: 0,
            labels: Arc::default(),
        }
    }
}

/// Sorts by address and drops all but the first of equal addresses: the form in which sets are compared and sent.
pub(crate) fn normalize(members: &mut Vec<Member>) {
    members.sort_by(|a, b| order(&a.address, &b.address));
    members.dedup_by(|later, first| later.address == first.address);
}

/// IP addresses first, then paths.
fn order(a: &SocketAddress, b: &SocketAddress) -> Ordering {
    match (a, b) {
        (SocketAddress::Ip(a), SocketAddress::Ip(b)) => a.cmp(b),
        (SocketAddress::Ip(_), SocketAddress::Unix(_)) => Ordering::Less,
        (SocketAddress::Unix(_), SocketAddress::Ip(_)) => Ordering::Greater,
        (SocketAddress::Unix(a), SocketAddress::Unix(b)) => a.cmp(b),
    }
}

/// Which kind of source speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Endpoints written in the configuration, some of them by name.
    Fixed,
    /// `discovery.dns`
    Dns,
    /// `discovery.file`
    File,
    /// `discovery.http`
    Http,
}

impl SourceKind {
    /// The word used in logs and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dns => "dns",
            Self::File => "file",
            Self::Http => "http",
        }
    }
}

/// How asking the source went: the label `result` of `bellwether_discovery_updates_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A good answer that changed the members.
    Changed,
    /// A good answer, nothing new.
    Unchanged,
    /// A good answer that would remove most members at once; the removal waits for a second one.
    Held,
    /// The source says that there is nothing (NXDOMAIN, no records, an empty list).
    Empty,
    /// No usable answer: timeout, SERVFAIL, a file that does not parse.
    Failed,
}

impl Asked {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Held => "held",
            Self::Empty => "empty",
            Self::Failed => "failed",
        }
    }

    /// Whether the source gave a good answer; what `discovery_last_success_timestamp_seconds` counts.
    pub const fn is_success(self) -> bool {
        match self {
            Self::Changed | Self::Unchanged | Self::Held => true,
            Self::Empty | Self::Failed => false,
        }
    }
}

/// One answer of a source and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The cluster this is about.
    pub cluster: Arc<str>,
    /// Who says so.
    pub source: SourceKind,
    /// When.
    pub at: Instant,
    /// How it went.
    pub asked: Asked,
    /// What went wrong, in words for people; `None` when nothing did.
    pub detail: Option<Arc<str>>,
    /// What is in force is older than the source's last word (`bellwether_discovery_stale`).
    pub stale: bool,
    /// The new and complete set, when it changed. Empty means that the cluster has no endpoints now.
    pub members: Option<Vec<Member>>,
}

/// What every source task needs besides its settings.
#[derive(Clone, Debug)]
pub struct Task {
    /// The cluster the members belong to.
    pub cluster: Arc<str>,
    /// Where events go. Bounded: a slow receiver slows the source down. A closed one ends it.
    pub events: mpsc::Sender<Event>,
    /// Seeds the jitter; different for every task, so that sources do not ask in phase.
    pub seed: u64,
    /// Ends the task.
    pub cancel: CancellationToken,
}

/// A source with its settings.
#[derive(Debug)]
pub enum Source {
    /// Endpoints from the configuration.
    Fixed(fixed::Settings),
    /// A DNS name.
    Dns(dns::Settings),
    /// A watched file; the receiver yields whenever it changed (from `app::watch`).
    File(file::Settings, file::Changes),
    /// An HTTP address.
    Http(http::Settings),
}

/// Runs a source until cancelled or until nobody listens.
pub async fn run(source: Source, task: Task) {
    let cancel = task.cancel.clone();
    let work = async {
        match source {
            Source::Fixed(settings) => fixed::run(settings, task).await,
            Source::Dns(settings) => dns::run(settings, task).await,
            Source::File(settings, changes) => file::run(settings, changes, task).await,
            Source::Http(settings) => http::run(settings, task).await,
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// `base` times a factor drawn evenly from `1 - share ..= 1 + share`, where `share` is in percent (at most 100).
pub(crate) fn jittered(base: Duration, share: u32, draw: u64) -> Duration {
    let share = u64::from(share.min(100));
    // In millionths, so that the arithmetic stays exact and within u128.
    let low = 1_000_000 - share * 10_000;
    let factor = low + draw % (share * 20_000 + 1);
    let nanos = base.as_nanos().saturating_mul(u128::from(factor)) / 1_000_000;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use bellwether_core::Dice;

    use super::*;

    #[test]
    fn jitter_stays_within_its_share() {
        let mut dice = Dice::new(1);
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for _ in 0..10_000 {
            let wait = jittered(Duration::from_secs(10), 10, dice.next_u64());
            least = least.min(wait);
            most = most.max(wait);
        }
        assert!(
            least >= Duration::from_secs(9) && least < Duration::from_millis(9_100),
            "{least:?}"
        );
        assert!(
            most <= Duration::from_secs(11) && most > Duration::from_millis(10_900),
            "{most:?}"
        );
        assert_eq!(jittered(Duration::from_secs(10), 0, 77), Duration::from_secs(10));
    }

    #[test]
    fn normal_form_is_sorted_and_unique() {
        let member = |text: &str| Member::new(SocketAddress::Ip(text.parse().unwrap()));
        let mut members = vec![
            member("10.0.0.2:80"),
            member("10.0.0.1:80"),
            member("10.0.0.2:80"),
        ];
        normalize(&mut members);
        assert_eq!(members, vec![member("10.0.0.1:80"), member("10.0.0.2:80")]);
    }
}
