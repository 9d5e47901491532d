//! DNS as a source: addresses (A and AAAA) or services (SRV) behind one name, asked again when the answer expires.
//!
//! Every question is asked with a fresh resolver without a cache of its own: `/etc/resolv.conf` and `/etc/hosts` may
//! change at any time, the TTL is ours to count, and a question per second and name at most does not pay for a cache.
//!
//! Invariants: one family or one SRV target that cannot be resolved does not remove the addresses it had; a name in
//! `/etc/hosts` is never asked about elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::net::SocketAddress;

use super::keep::{self, Answer, Keeper, Pace, Step};
use super::{Event, MAX_MEMBERS, Member, SourceKind, Task};

/// How names are resolved.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Ask these name servers (UDP, then TCP where an answer was cut) instead of the system's.
    pub servers: Option<Vec<SocketAddr>>,
    /// The hosts file, read with every question; `None` ignores it.
    pub hosts: Option<std::path::PathBuf>,
    /// For one question with all its parts and repetitions.
    pub timeout: Duration,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            servers: None,
            hosts: Some("/etc/hosts".into()),
            timeout: Duration::from_secs(10),
        }
    }
}

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// The addresses of a host (A and AAAA), all with this port.
    Addresses {
        /// The name; one that ends in a dot is not completed with search domains.
        host: Arc<str>,
        /// The port of every member.
        port: u16,
    },
    /// The services behind a name (SRV, RFC 2782), which bring their own ports, weights and priorities.
    Services {
        /// Such as `_http._tcp.app.default.svc.cluster.local`.
        name: Arc<str>,
    },
}

/// A DNS source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to ask.
    pub question: Question,
    /// When to ask again and what to hold on to.
    pub keep: keep::Settings,
    /// Whom to ask.
    pub resolver: Arc<Resolver>,
}

/// Runs until the receiver of the events is gone.
pub async fn run(settings: Settings, task: Task) {
    let (steps, mut heard) = mpsc::channel(1);
    let follow = follow((), settings, task.seed, steps);
    let forward = async {
        while let Some(((), at, step)) = heard.recv().await {
            let event = Event {
                cluster: task.cluster.clone(),
                source: SourceKind::Dns,
                at,
                asked: step.asked,
                detail: step.detail,
                stale: step.stale,
                members: step.members,
            };
            if task.events.send(event).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = forward => {}
    }
}

/// Asks one question over and over, and says under `key` what to do with each answer.
pub(super) async fn follow<K: Clone>(
    key: K,
    settings: Settings,
    seed: u64,
    steps: mpsc::Sender<(K, Instant, Step)>,
) {
    let mut dice = Dice::new(seed);
    let mut keeper = Keeper::default();
    let mut memory = Memory::default();
    loop {
        let answer = settings.resolver.ask(&settings.question, &mut memory).await;
        let now = Instant::now();
        let step = keeper.take(&settings.keep, answer, now, dice.next_u64());
        let next = step.next;
        if steps.send((key.clone(), now, step)).await.is_err() {
            return;
        }
        tokio::time::sleep(next).await;
    }
}

/// What earlier answers said, to tell "gone" from "could not be asked".
#[derive(Debug, Default)]
pub struct Memory {
    hosts: BTreeMap<Arc<str>, Known>,
}

#[derive(Debug, Default)]
struct Known {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

/// What one lookup said, before it is an answer about members.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard<T> {
    Found(Vec<T>, Option<Duration>),
    Nothing(Arc<str>),
    Failed(Arc<str>),
}

impl Resolver {
    /// Asks once.
    pub async fn ask(&self, question: &Question, memory: &mut Memory) -> Answer {
        let asking = async {
            let lookups = match lookups::Lookups::prepare(self).await {
                Ok(lookups) => lookups,
                Err(why) => return Answer::Failed(why),
            };
            match question {
                Question::Addresses { host, port } => self.ask_addresses(&lookups, host, *port, memory).await,
                Question::Services { name } => self.ask_services(&lookups, name, memory).await,
            }
        };
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(answer) => answer,
            Err(_elapsed) => Answer::Failed("no answer in time".into()),
        }
    }

    async fn ask_addresses(
        &self,
        lookups: &lookups::Lookups,
        host: &Arc<str>,
        port: u16,
        memory: &mut Memory,
    ) -> Answer {
        match self.addresses(lookups, host, memory).await {
            Heard::Found(addresses, _) if addresses.len() > MAX_MEMBERS => too_many(addresses.len()),
            Heard::Found(addresses, ttl) => {
                let member = |ip| Member {
                    host: Some(host.clone()),
                    ..Member::new(SocketAddress::Ip(SocketAddr::new(ip, port)))
                };
                Answer::Members(addresses.into_iter().map(member).collect(), ttl)
            }
            Heard::Nothing(why) => Answer::Empty(why),
            Heard::Failed(why) => Answer::Failed(why),
        }
    }

    async fn ask_services(&self, lookups: &lookups::Lookups, name: &Arc<str>, memory: &mut Memory) -> Answer {
        let (services, mut ttl) = match lookups.services(name).await {
            Heard::Found(services, ttl) => (services, ttl),
            Heard::Nothing(why) => return Answer::Empty(why),
            Heard::Failed(why) => return Answer::Failed(why),
        };
        // RFC 2782: the root as target says that the service is decidedly not available here.
        let services: Vec<Service> = services
            .into_iter()
            .filter(|service| !service.target.is_empty())
            .collect();
        if services.is_empty() {
            return Answer::Empty("the service is declared unavailable (SRV target `.`)".into());
        }
        if services.len() > MAX_MEMBERS {
            return too_many(services.len());
        }
        memory
            .hosts
            .retain(|host, _| services.iter().any(|service| service.target == *host));
        let mut ranks: Vec<u16> = services.iter().map(|service| service.priority).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let mut members = Vec::new();
        let mut trouble = None;
        for service in &services {
            let addresses = match self.addresses(lookups, &service.target, memory).await {
                Heard::Found(addresses, address_ttl) => {
                    ttl = ttl.into_iter().chain(address_ttl).min();
                    addresses
                }
                // A target that left DNS before its SRV record did is simply gone.
                Heard::Nothing(_) => Vec::new(),
                Heard::Failed(why) => {
                    trouble = Some(Arc::from(format!("{}: {why}", service.target)));
                    ttl = Some(keep::RETRY_BOUNDS.0);
                    memory
                        .hosts
                        .get(&service.target)
                        .map(Known::all)
                        .unwrap_or_default()
                }
            };
            let rank = ranks.binary_search(&service.priority).unwrap_or(0);
            members.extend(addresses.into_iter().map(|ip| Member {
                host: Some(service.target.clone()),
                // RFC 2782: weight 0 is a small chance, not none; our 0 would drain it.
                weight: u32::from(service.weight.max(1)),
                priority: u8::try_from(rank).unwrap_or(u8::MAX),
                ..Member::new(SocketAddress::Ip(SocketAddr::new(ip, service.port)))
            }));
        }
        match (members.len(), trouble) {
            (0, Some(why)) => Answer::Failed(why),
            (0, None) => Answer::Empty("no SRV target has an address".into()),
            (found, _) if found > MAX_MEMBERS => too_many(found),
            _ => Answer::Members(members, ttl),
        }
    }

    /// The addresses of one host, both families; a family that could not be asked keeps what it had.
    async fn addresses(
        &self,
        lookups: &lookups::Lookups,
        host: &Arc<str>,
        memory: &mut Memory,
    ) -> Heard<IpAddr> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Heard::Found(vec![ip], None);
        }
        let known = memory.hosts.entry(host.clone()).or_default();
        let (v4, v6) = lookups.addresses(host).await;
        let (mut ttl, mut why_nothing, mut why_failed) = (None::<Duration>, None, None);
        for (heard, kept) in [(v4, &mut known.v4), (v6, &mut known.v6)] {
            match heard {
                Heard::Found(addresses, lasts) => {
                    ttl = ttl.into_iter().chain(lasts).min();
                    *kept = addresses;
                }
                Heard::Nothing(why) => {
                    why_nothing = why_nothing.or(Some(why));
                    kept.clear();
                }
                Heard::Failed(why) => {
                    why_failed = why_failed.or(Some((why, !kept.is_empty())));
                }
            }
        }
        match (known.all(), why_failed, why_nothing) {
            // Broken name servers answer SERVFAIL to AAAA for ever: fatal only if the family ever had an answer.
            (_, Some((why, true)), _) => Heard::Failed(why),
            (all, _, _) if !all.is_empty() => Heard::Found(usable(host, all), ttl),
            (_, Some((why, false)), _) => Heard::Failed(why),
            (_, None, why) => Heard::Nothing(why.unwrap_or_else(|| "no addresses".into())),
        }
    }
}

impl Known {
    fn all(&self) -> Vec<IpAddr> {
        self.v4.iter().chain(&self.v6).copied().collect()
    }
}

fn too_many(found: usize) -> Answer {
    Answer::Failed(format!("{found} members, at most {MAX_MEMBERS} are accepted").into())
}

/// Drops what cannot work from here, as `getaddrinfo` does with `AI_ADDRCONFIG`: on a machine without IPv6 every
/// second connection to a dual-stack name would fail. The kernel is asked for a route; nothing is sent.
fn usable(host: &str, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|ip| ip.is_ipv4());
    if v4.is_empty() || v6.is_empty() {
        return addresses;
    }
    // Both are this machine: a server on one of them only is the usual case, and it is the IPv4 one.
    if v4.iter().chain(&v6).all(IpAddr::is_loopback) && host.trim_end_matches('.').ends_with("localhost") {
        return v4;
    }
    let routed = |ip: &IpAddr| {
        let any: SocketAddr = if ip.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0; 16], 0).into()
        };
        UdpSocket::bind(any)
            .and_then(|socket| socket.connect(SocketAddr::new(*ip, 9)))
            .is_ok()
    };
    let reachable: Vec<IpAddr> = addresses.iter().copied().filter(routed).collect();
    if reachable.is_empty() {
        addresses
    } else {
        reachable
    }
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    /// Without the final dot, as certificates have it; empty for the root.
    target: Arc<str>,
    port: u16,
    weight: u16,
    priority: u16,
}

#[cfg(feature = "dns")]
mod lookups {
    //! The lookups themselves, by hickory.

    use std::io::ErrorKind;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::time::Duration;

    use hickory_resolver::config::{
        ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
    };
    use hickory_resolver::lookup::Lookup;
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::net::{DnsError, NetError};
    use hickory_resolver::proto::op::{Query, ResponseCode};
    use hickory_resolver::proto::rr::{Name, RData, RecordType};
    use hickory_resolver::{Hosts, TokioResolver};

    use super::{Heard, Resolver, Service};

    /// After one family answered, how long the other may still take: on networks that drop AAAA it never comes.
    const GRACE: Duration = Duration::from_secs(2);

    pub(super) struct Lookups {
        resolver: TokioResolver,
        hosts: Hosts,
    }

    impl Lookups {
        /// Reads the system's files, off the runtime's threads.
        pub(super) async fn prepare(settings: &Resolver) -> Result<Self, Arc<str>> {
            let settings = settings.clone();
            match tokio::task::spawn_blocking(move || Self::read(&settings)).await {
                Ok(read) => read.map_err(Arc::from),
                Err(error) => Err(format!("reading the resolver's files: {error}").into()),
            }
        }

        fn read(settings: &Resolver) -> Result<Self, String> {
            let (config, mut options) = match &settings.servers {
                Some(servers) => {
                    let servers = servers.iter().map(|server| {
                        let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
                        (udp.port, tcp.port) = (server.port(), server.port());
                        NameServerConfig::new(server.ip(), true, vec![udp, tcp])
                    });
                    (
                        ResolverConfig::from_name_servers(servers.collect()),
                        ResolverOpts::default(),
                    )
                }
                None => match hickory_resolver::system_conf::read_system_conf() {
                    Ok(read) => read,
                    // resolv.conf(5): without the file, the name server on this machine is asked.
                    Err(NetError::Io(error)) if error.kind() == ErrorKind::NotFound => {
                        let local = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
                        (
                            ResolverConfig::from_name_servers(vec![local]),
                            ResolverOpts::default(),
                        )
                    }
                    Err(error) => return Err(format!("/etc/resolv.conf: {error}")),
                },
            };
            options.cache_size = 0;
            options.use_hosts_file = ResolveHosts::Never;
            // Also the TTLs of the CNAMEs on the way count.
            options.preserve_intermediates = true;
            let mut hosts = Hosts::default();
            if let Some(path) = &settings.hosts
                && let Ok(text) = std::fs::read(path)
            {
                // What does not parse is skipped, as everywhere.
                let _skipped = hosts.read_hosts_conf(text.as_slice());
            }
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options;
            let resolver = builder.build().map_err(|error| error.to_string())?;
            Ok(Self { resolver, hosts })
        }

        pub(super) async fn addresses(&self, host: &str) -> (Heard<IpAddr>, Heard<IpAddr>) {
            let name = match Name::from_utf8(host) {
                Ok(name) => name,
                Err(error) => {
                    let heard = Heard::Failed(Arc::from(format!("not a DNS name: {error}")));
                    return (heard.clone(), heard);
                }
            };
            let static_of = |kind| {
                self.hosts
                    .lookup_static_host(&Query::query(name.to_lowercase(), kind))
            };
            let (v4, v6) = (static_of(RecordType::A), static_of(RecordType::AAAA));
            if v4.is_some() || v6.is_some() {
                let heard = |lookup: Option<Lookup>| match lookup {
                    // The file may change at any time and is read for nothing.
                    Some(lookup) => without_ttl(ips(Ok(lookup))),
                    None => Heard::Nothing("not in the hosts file".into()),
                };
                return (heard(v4), heard(v6));
            }
            let v4 = self.resolver.lookup(name.clone(), RecordType::A);
            let v6 = self.resolver.lookup(name.clone(), RecordType::AAAA);
            tokio::pin!(v4, v6);
            let late = || Heard::Failed(Arc::from("no answer in time"));
            tokio::select! {
                first = &mut v4 => {
                    let first = ips(first);
                    (first, tokio::time::timeout(GRACE, v6).await.map_or_else(|_| late(), ips))
                }
                first = &mut v6 => {
                    let first = ips(first);
                    // IPv4 is waited for as long as the whole question may take, unless IPv6 has something.
                    let second = if matches!(first, Heard::Found(..)) {
                        tokio::time::timeout(GRACE, v4).await.map_or_else(|_| late(), ips)
                    } else {
                        ips(v4.await)
                    };
                    (second, first)
                }
            }
        }

        pub(super) async fn services(&self, name: &str) -> Heard<Service> {
            let name = match Name::from_utf8(name) {
                Ok(name) => name,
                Err(error) => return Heard::Failed(format!("not a DNS name: {error}").into()),
            };
            heard(
                self.resolver.lookup(name, RecordType::SRV).await,
                |data| match data {
                    RData::SRV(srv) => Some(Service {
                        target: Arc::from(srv.target.to_utf8().trim_end_matches('.')),
                        port: srv.port,
                        weight: srv.weight,
                        priority: srv.priority,
                    }),
                    _ => None,
                },
            )
        }
    }

    fn ips(result: Result<Lookup, NetError>) -> Heard<IpAddr> {
        heard(result, RData::ip_addr)
    }

    fn without_ttl(heard: Heard<IpAddr>) -> Heard<IpAddr> {
        match heard {
            Heard::Found(found, _) => Heard::Found(found, None),
            Heard::Nothing(why) => Heard::Nothing(why),
            Heard::Failed(why) => Heard::Failed(why),
        }
    }

    fn heard<T>(result: Result<Lookup, NetError>, pick: impl Fn(&RData) -> Option<T>) -> Heard<T> {
        match result {
            Ok(lookup) => {
                let found: Vec<T> = lookup
                    .answers()
                    .iter()
                    .filter_map(|record| pick(&record.data))
                    .collect();
                let ttl = lookup.answers().iter().map(|record| record.ttl).min();
                if found.is_empty() {
                    return Heard::Nothing("no such records".into());
                }
                Heard::Found(found, ttl.map(|seconds| Duration::from_secs(seconds.into())))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                ResponseCode::NXDomain => Heard::Nothing("no such name (NXDOMAIN)".into()),
                ResponseCode::NoError => Heard::Nothing("the name has no such records".into()),
                code => Heard::Failed(Arc::from(code.to_str())),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Heard::Failed(Arc::from(code.to_str())),
            Err(error) => Heard::Failed(error.to_string().into()),
        }
    }
}

#[cfg(not(feature = "dns"))]
mod lookups {
    //! Without the feature `dns`: the C library's resolver, which tells neither TTLs nor services.

    use std::net::IpAddr;
    use std::sync::Arc;

    use super::{Heard, Resolver, Service};

    pub(super) struct Lookups;

    impl Lookups {
        pub(super) async fn prepare(settings: &Resolver) -> Result<Self, Arc<str>> {
            if settings.servers.is_some() {
                return Err("this build asks the system's name servers only (feature `dns` is off)".into());
            }
            Ok(Self)
        }

        pub(super) async fn addresses(&self, host: &str) -> (Heard<IpAddr>, Heard<IpAddr>) {
            match tokio::net::lookup_host((host, 0)).await {
                Ok(found) => {
                    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
                        found.map(|address| address.ip()).partition(IpAddr::is_ipv4);
                    let heard = |found: Vec<IpAddr>| {
                        if found.is_empty() {
                            Heard::Nothing("no such records".into())
                        } else {
                            Heard::Found(found, None)
                        }
                    };
                    (heard(v4), heard(v6))
                }
                // getaddrinfo does not let the standard library tell "no such name" from "could not ask".
                Err(error) => {
                    let heard = Heard::Failed(Arc::from(error.to_string()));
                    (heard.clone(), heard)
                }
            }
        }

        pub(super) async fn services(&self, _name: &str) -> Heard<Service> {
            Heard::Failed("SRV needs a build with the feature `dns`".into())
        }
    }
}

/// Whether this build knows TTLs and SRV; without, `record: srv` should be refused when the file is checked.
pub const KNOWS_SERVICES: bool = cfg!(feature = "dns");

/// TTL where the configuration says so, or always the same interval.
pub const fn pace(refresh: Option<Duration>) -> Pace {
    match refresh {
        Some(interval) => Pace::Every(interval),
        None => Pace::Ttl,
    }
}
