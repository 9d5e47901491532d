//! Epoch: the number that orders leaders.
//!
//! Every system counts its leaders somehow: Raft by terms, etcd by revisions, PostgreSQL by timelines. Within one kind a
//! greater number is a later leader; between kinds there is no order at all, and pretending one is how a proxy follows
//! the wrong node. So an epoch carries its kind, and comparing two kinds answers `None`.
//!
//! Kinds differ in what they are worth ([`Trust`]). A Raft term cannot belong to two leaders that both commit; a PostgreSQL
//! timeline can, and it can go back; the counter that Redis keeps is lost with its master. What a route may promise
//! depends on it, so the worth is a property of the kind and not of whoever reads it.
//!
//! An epoch has two parts, compared in order: a term and, where terms alone do not tell leaders apart, what does
//! (openraft's node number, the time a Kubernetes lease was acquired). Most have only the first.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::bytes::{Malformed, Reader, put_varint};

/// What an epoch counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The create revision of the lowest key under an election's prefix: one key per candidate.
    EtcdElection = 1,
    /// The mod revision of a single key when its holder or lease last changed.
    EtcdKey = 2,
    /// `leaseTransitions` of a Kubernetes Lease, then when it was acquired.
    K8sLease = 3,
    /// `LockIndex` of a Consul lock.
    ConsulLock = 4,
    /// The creation zxid of a ZooKeeper node, or the epoch half of the ensemble's zxid.
    Zookeeper = 5,
    /// A Raft term, said by a node that claims to lead; then the node, where a term may have several leaders.
    RaftTerm = 6,
    /// A PostgreSQL timeline.
    Timeline = 7,
    /// The counter that is incremented with the acquisition of a Redis lease.
    RedisLease = 8,
    /// A number of the application's own.
    Heartbeat = 9,
    /// The number of the configuration that names the leader.
    Static = 10,
    /// The proxy's own count of leaders it has seen.
    Proxy = 11,
}

/// What an order of leaders is worth, from the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// It keeps this proxy from flapping and says nothing about the system.
    Routing,
    /// It can be lost, and then begins anew.
    Advisory,
    /// It can go back, or belong to two leaders.
    Weak,
    /// It orders leaders, and nobody fences by it.
    Medium,
    /// A consensus has decided it.
    Strong,
}

/// The number of a leadership: a kind, and two parts that are ordered within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// What it counts.
    pub kind: Kind,
    /// The first part.
    pub term: u64,
    /// The second part; 0 where the first is enough.
    pub tie: u64,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::EtcdElection,
        Self::EtcdKey,
        Self::K8sLease,
        Self::ConsulLock,
        Self::Zookeeper,
        Self::RaftTerm,
        Self::Timeline,
        Self::RedisLease,
        Self::Heartbeat,
        Self::Static,
        Self::Proxy,
    ];

    /// The word in headers, files and explanations. Part of the public contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EtcdElection => "etcd_election",
            Self::EtcdKey => "etcd_key",
            Self::K8sLease => "k8s_lease",
            Self::ConsulLock => "consul_lock",
            Self::Zookeeper => "zookeeper",
            Self::RaftTerm => "raft_term",
            Self::Timeline => "timeline",
            Self::RedisLease => "redis_lease",
            Self::Heartbeat => "heartbeat",
            Self::Static => "static",
            Self::Proxy => "proxy",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What its order is worth.
    #[must_use]
    pub const fn trust(self) -> Trust {
        match self {
            Self::EtcdElection | Self::EtcdKey | Self::ConsulLock | Self::Zookeeper | Self::RaftTerm => {
                Trust::Strong
            }
            // Kubernetes says itself that a lease fences nobody; an application and an operator are believed, not proven.
            Self::K8sLease | Self::Heartbeat | Self::Static => Trust::Medium,
            Self::Timeline => Trust::Weak,
            Self::RedisLease => Trust::Advisory,
            Self::Proxy => Trust::Routing,
        }
    }

    /// The kind of this byte of a token or file.
    pub(super) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        let known = Self::ALL.into_iter().find(|kind| *kind as u8 == byte);
        known.ok_or(Malformed::Unknown)
    }
}

impl Trust {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Advisory => "advisory",
            Self::Weak => "weak",
            Self::Medium => "medium",
            Self::Strong => "strong",
        }
    }
}

impl Epoch {
    /// The epoch of one part.
    #[must_use]
    pub const fn new(kind: Kind, term: u64) -> Self {
        Self::with_tie(kind, term, 0)
    }

    /// The epoch of two parts.
    #[must_use]
    pub const fn with_tie(kind: Kind, term: u64, tie: u64) -> Self {
        Self { kind, term, tie }
    }

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        put_varint(out, self.term);
        put_varint(out, self.tie);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            kind: Kind::from_byte(reader.byte()?)?,
            term: reader.varint()?,
            tie: reader.varint()?,
        })
    }
}

/// Epochs of different kinds do not compare.
impl PartialOrd for Epoch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.kind == other.kind).then(|| (self.term, self.tie).cmp(&(other.term, other.tie)))
    }
}

/// `raft_term;7`, or `raft_term;7.2` with a second part: the value of `x-bellwether-epoch`.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{}", self.kind.name(), self.term)?;
        if self.tie != 0 {
            write!(f, ".{}", self.tie)?;
        }
        Ok(())
    }
}

/// Why a text is no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAnEpoch {
    /// There is no `;` between kind and number.
    Form,
    /// No kind has this name.
    Kind,
    /// What follows the kind is not one or two numbers of 64 bits.
    Number,
}

impl fmt::Display for NotAnEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "an epoch is a kind and a number, as in `raft_term;7`",
            Self::Kind => {
                "the kind of an epoch is one of etcd_election, etcd_key, k8s_lease, consul_lock, zookeeper, raft_term, \
                 timeline, redis_lease, heartbeat, static, proxy"
            }
            Self::Number => "the number of an epoch is one decimal number of 64 bits, or two with a dot between",
        })
    }
}

impl std::error::Error for NotAnEpoch {}

impl FromStr for Epoch {
    type Err = NotAnEpoch;

    fn from_str(text: &str) -> Result<Self, NotAnEpoch> {
        let (kind, number) = text.split_once(';').ok_or(NotAnEpoch::Form)?;
        let kind = Kind::named(kind).ok_or(NotAnEpoch::Kind)?;
        let (term, tie) = number.split_once('.').unwrap_or((number, "0"));
        let part = |digits: &str| decimal(digits).ok_or(NotAnEpoch::Number);
        Ok(Self::with_tie(kind, part(term)?, part(tie)?))
    }
}

/// Digits and nothing else: `u64::from_str` would take a plus sign too.
pub(super) fn decimal(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn different_kinds_never_compare() {
        for one in Kind::ALL {
            for other in Kind::ALL {
                let order = Epoch::new(one, 1).partial_cmp(&Epoch::new(other, 2));
                assert_eq!(order, (one == other).then_some(Ordering::Less));
            }
        }
    }

    #[test]
    fn the_second_part_breaks_ties_and_nothing_else() {
        let of = |term, tie| Epoch::with_tie(Kind::RaftTerm, term, tie);
        assert!(of(7, 9) < of(8, 0));
        assert!(of(7, 1) < of(7, 2));
    }

    #[test]
    fn the_text_is_what_the_header_says() {
        assert_eq!(Epoch::new(Kind::RaftTerm, 7).to_string(), "raft_term;7");
        assert_eq!(Epoch::with_tie(Kind::RaftTerm, 7, 2).to_string(), "raft_term;7.2");
        assert_eq!("etcd_key;531".parse(), Ok(Epoch::new(Kind::EtcdKey, 531)));
    }

    #[test]
    fn what_is_no_epoch_is_told_why() {
        assert_eq!("7".parse::<Epoch>(), Err(NotAnEpoch::Form));
        assert_eq!("term;7".parse::<Epoch>(), Err(NotAnEpoch::Kind));
        for number in ["", "+7", "-7", "7.", ".7", "7.1.1", "18446744073709551616", "7 "] {
            let text = format!("raft_term;{number}");
            assert_eq!(text.parse::<Epoch>(), Err(NotAnEpoch::Number), "{text}");
        }
        let message = NotAnEpoch::Kind.to_string();
        assert!(Kind::ALL.iter().all(|kind| message.contains(kind.name())));
    }

    #[test]
    fn bytes_of_kinds_are_distinct_and_known() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_byte(kind as u8), Ok(kind));
        }
        assert_eq!(Kind::from_byte(0), Err(Malformed::Unknown));
    }

    pub(in crate::group) fn any_epoch() -> impl Strategy<Value = Epoch> {
        (0..Kind::ALL.len(), any::<u64>(), any::<u64>(), 0u32..64).prop_map(|(kind, term, tie, shift)| {
            Epoch::with_tie(Kind::ALL[kind], term >> shift, tie >> shift)
        })
    }

    proptest! {
        #[test]
        fn text_and_bytes_come_back(epoch in any_epoch()) {
            prop_assert_eq!(epoch.to_string().parse(), Ok(epoch));
            let mut out = Vec::new();
            epoch.encode(&mut out);
            prop_assert_eq!(Epoch::decode(&mut Reader::new(&out)), Ok(epoch));
        }
    }
}
