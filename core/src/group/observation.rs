//! Observation: one thing that somebody said about one endpoint, and since when it is true.
//!
//! Probes, watches, heartbeats and answers all become this one value, so that who leads is decided from one kind of
//! evidence. What distinguishes them is who says it ([`Source`]) and what that word is worth ([`Authority`]).
//!
//! **An observation is as old as the sending of the request that fetched it**, never as its reply: a reply that was queued
//! in a paused process arrives late and tells of a time long gone (measured: a stopped etcd answered 1.5 s later with the
//! old term). What the upstream itself says about the age of its knowledge (`age`) is subtracted too, so an answer from a
//! cache is worth what the cache is.

use std::sync::Arc;
use std::time::Duration;

use crate::moment::Moment;

use super::epoch::Epoch;
use super::lineage::Lineage;
use super::position::Position;

/// An endpoint of a group, by its place in the list that was announced last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member(pub u16);

impl Member {
    /// Its place.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The configuration, or an operator.
    Static,
    /// A request to the endpoint over HTTP.
    HttpProbe,
    /// A call to the endpoint over gRPC.
    GrpcProbe,
    /// A watch of a key or an election of etcd.
    Etcd,
    /// A watch of a Kubernetes Lease.
    KubernetesLease,
    /// A lock of Consul.
    Consul,
    /// A lease in Redis.
    RedisLease,
    /// ZooKeeper.
    Zookeeper,
    /// A name that resolves to the leader.
    Dns,
    /// A beat that the endpoint pushed.
    Heartbeat,
    /// An answer to a request of a client.
    Responses,
    /// Another proxy.
    Peers,
}

/// What its word is worth, from the least (rule E7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authority {
    /// Somebody says that somebody leads: where to ask first, and nothing more.
    Hint,
    /// The endpoint says it of itself.
    SelfClaim,
    /// The endpoint says it and has asked its quorum.
    QuorumClaim,
    /// What decides it says it.
    Registry,
}

/// What an endpoint does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// It leads, or says so.
    Leader,
    /// It follows.
    Follower,
    /// It wants to lead.
    Candidate,
    /// It follows and has no vote.
    Learner,
    /// Nobody has said.
    #[default]
    Unknown,
}

/// What an endpoint says about how far it is behind, where positions do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// It names the lag.
    Behind(Duration),
    /// It names the time of the last write it has, in milliseconds of the upstream's own clock.
    LastWrite(u64),
}

/// One thing that was said about one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// About whom.
    pub member: Member,
    /// The list of members that this place belongs to.
    pub generation: u32,
    /// Which cluster it says it is part of.
    pub cluster_id: Option<Arc<str>>,
    /// What it does.
    pub role: Role,
    /// In which epoch.
    pub epoch: Option<Epoch>,
    /// How far it has come.
    pub position: Option<Position>,
    /// On which history.
    pub lineage: Option<Lineage>,
    /// Who leads, if that is somebody else.
    pub leader_hint: Option<Member>,
    /// How far it says it is behind.
    pub lag: Option<Lag>,
    /// Who says all this.
    pub source: Source,
    /// What that is worth.
    pub authority: Authority,
    /// When the request that fetched it was sent, or the event that carried it was received.
    pub sent_at: Moment,
    /// When it was received.
    pub received_at: Moment,
    /// How old the knowledge behind it was then, as the upstream says.
    pub age: Duration,
    /// For how long it may be believed.
    pub ttl: Duration,
}

impl Observation {
    /// One that says nothing but that `member` was asked at `sent_at` and answered at `received_at`.
    #[must_use]
    pub const fn new(member: Member, generation: u32, source: Source, sent_at: Moment) -> Self {
        Self {
            member,
            generation,
            cluster_id: None,
            role: Role::Unknown,
            epoch: None,
            position: None,
            lineage: None,
            leader_hint: None,
            lag: None,
            source,
            authority: source.usual_authority(),
            sent_at,
            received_at: sent_at,
            age: Duration::ZERO,
            ttl: Duration::from_secs(5),
        }
    }

    /// The moment whose truth it tells.
    #[must_use]
    pub fn true_at(&self) -> Moment {
        self.sent_at.minus(self.age)
    }

    /// Until when it may be acted on (rule E8).
    #[must_use]
    pub fn usable_until(&self) -> Moment {
        self.true_at().plus(self.ttl)
    }

    /// Whether it claims leadership with a word that can make a leader.
    #[must_use]
    pub fn is_claim(&self) -> bool {
        self.role == Role::Leader && self.authority > Authority::Hint
    }

    /// Whether the endpoint itself was heard.
    #[must_use]
    pub const fn is_own(&self) -> bool {
        self.source.is_own()
    }
}

impl Source {
    /// How many there are.
    pub const COUNT: usize = 12;

    /// The word in metrics and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::HttpProbe => "http_probe",
            Self::GrpcProbe => "grpc_probe",
            Self::Etcd => "etcd",
            Self::KubernetesLease => "kubernetes_lease",
            Self::Consul => "consul",
            Self::RedisLease => "redis_lease",
            Self::Zookeeper => "zookeeper",
            Self::Dns => "dns",
            Self::Heartbeat => "heartbeat",
            Self::Responses => "responses",
            Self::Peers => "peers",
        }
    }

    /// Whether what it says comes from the endpoint itself.
    #[must_use]
    pub const fn is_own(self) -> bool {
        match self {
            Self::HttpProbe | Self::GrpcProbe | Self::Heartbeat => true,
            Self::Static
            | Self::Etcd
            | Self::KubernetesLease
            | Self::Consul
            | Self::RedisLease
            | Self::Zookeeper
            | Self::Dns
            | Self::Responses
            | Self::Peers => false,
        }
    }

    /// What its word is worth unless a preset knows better: a probe of etcd is a quorum's claim.
    #[must_use]
    pub const fn usual_authority(self) -> Authority {
        match self {
            Self::Static
            | Self::Etcd
            | Self::KubernetesLease
            | Self::Consul
            | Self::RedisLease
            | Self::Zookeeper => Authority::Registry,
            // A name is a copy of a decision, as old as its caches.
            Self::HttpProbe | Self::GrpcProbe | Self::Heartbeat | Self::Dns => Authority::SelfClaim,
            Self::Responses | Self::Peers => Authority::Hint,
        }
    }
}

impl Authority {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::SelfClaim => "self_claim",
            Self::QuorumClaim => "quorum_claim",
            Self::Registry => "registry",
        }
    }
}

impl Role {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn a_late_reply_is_as_old_as_its_request() {
        let mut said = Observation::new(Member(0), 0, Source::HttpProbe, at(1000));
        said.ttl = Duration::from_secs(2);
        said.received_at = at(2500);
        assert_eq!(said.usable_until(), at(3000));
    }

    #[test]
    fn an_answer_from_a_cache_is_as_old_as_the_cache() {
        let mut said = Observation::new(Member(0), 0, Source::HttpProbe, at(10_000));
        said.ttl = Duration::from_secs(5);
        said.age = Duration::from_secs(8);
        assert_eq!(said.usable_until(), at(7000), "not usable when it arrives");
    }

    #[test]
    fn a_hint_is_no_claim() {
        let mut said = Observation::new(Member(0), 0, Source::Responses, at(0));
        said.role = Role::Leader;
        assert!(!said.is_claim());
        said.authority = Authority::SelfClaim;
        assert!(said.is_claim());
    }

    #[test]
    fn the_order_of_words_is_registry_quorum_self_hint() {
        assert!(Authority::Registry > Authority::QuorumClaim);
        assert!(Authority::QuorumClaim > Authority::SelfClaim);
        assert!(Authority::SelfClaim > Authority::Hint);
    }
}
