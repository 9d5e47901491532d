//! DNS as a source: addresses (A and AAAA) or services (SRV) behind one name, asked again when the answer expires.
//!
//! Every question is asked with a fresh resolver without a cache of its own: `/etc/resolv.conf` and `/etc/hosts` may
//! change at any time, the TTL is ours to count, and a question per second and name at most does not pay for a cache.
//!
//! Invariants: one family or one SRV target that cannot be resolved does not remove the addresses it had; a name in
//! `/etc/hosts` is never asked about elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::net::SocketAddress;

use self::lookups::Lookups;
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
            let lookups = match Lookups::prepare(self).await {
                Ok(lookups) => lookups,
                Err(why) => return Answer::Failed(why),
            };
            match question {
                Question::Addresses { host, port } => self.ask_addresses(&lookups, host, *port, memory).await,
                Question::Services { name } => self.ask_services(lookups, name, memory).await,
            }
        };
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(answer) => answer,
            Err(_elapsed) => Answer::Failed("no answer in time".into()),
        }
    }

    async fn ask_addresses(
        &self,
        lookups: &Lookups,
        host: &Arc<str>,
        port: u16,
        memory: &mut Memory,
    ) -> Answer {
        let heard = match host.parse::<IpAddr>() {
            Ok(ip) => Heard::Found(vec![ip], None),
            Err(_name) => {
                let (v4, v6) = lookups.addresses(host).await;
                memory.hosts.entry(host.clone()).or_default().merge(host, v4, v6)
            }
        };
        match heard {
            Heard::Found(addresses, _) if addresses.len() > MAX_MEMBERS => too_many(addresses.len()),
            Heard::Found(addresses, ttl) => {
                let host: Arc<str> = host.trim_end_matches('.').into();
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

    async fn ask_services(&self, lookups: Lookups, name: &Arc<str>, memory: &mut Memory) -> Answer {
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
        let targets: BTreeSet<Arc<str>> = services.iter().map(|service| service.target.clone()).collect();
        memory.hosts.retain(|host, _| targets.contains(host));
        let mut found = BTreeMap::new();
        let mut trouble = None;
        for (target, (v4, v6)) in self.look_up_all(lookups, targets).await {
            let known = memory.hosts.entry(target.clone()).or_default();
            let addresses = match known.merge(&target, v4, v6) {
                Heard::Found(addresses, address_ttl) => {
                    ttl = ttl.into_iter().chain(address_ttl).min();
                    addresses
                }
                // A target that left DNS before its SRV record did is simply gone.
                Heard::Nothing(_) => Vec::new(),
                Heard::Failed(why) => {
                    trouble = Some(Arc::from(format!("{target}: {why}")));
                    ttl = ttl.into_iter().chain([PARTIAL]).min();
                    usable(&target, known.all())
                }
            };
            found.insert(target, addresses);
        }
        let mut ranks: Vec<u16> = services.iter().map(|service| service.priority).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let mut members = Vec::new();
        for service in &services {
            let rank = ranks.binary_search(&service.priority).unwrap_or(0);
            let addresses = found.get(&service.target).into_iter().flatten();
            members.extend(addresses.map(|ip| Member {
                host: Some(service.target.clone()),
                // RFC 2782: weight 0 is a small chance, not none; our 0 would drain it.
                weight: u32::from(service.weight.max(1)),
                priority: u8::try_from(rank).unwrap_or(u8::MAX),
                ..Member::new(SocketAddress::Ip(SocketAddr::new(*ip, service.port)))
            }));
            if members.len() > MAX_MEMBERS {
                return too_many(members.len());
            }
        }
        match (members.is_empty(), trouble) {
            (true, Some(why)) => Answer::Failed(why),
            (true, None) => Answer::Empty("no SRV target has an address".into()),
            (false, _) => Answer::Members(members, ttl),
        }
    }

    /// Some at a time, each with half of the time at most: a slow target must not cost the others their answer.
    async fn look_up_all(
        &self,
        lookups: Lookups,
        targets: BTreeSet<Arc<str>>,
    ) -> Vec<(Arc<str>, (Heard<IpAddr>, Heard<IpAddr>))> {
        let (lookups, patience) = (Arc::new(lookups), self.timeout / 2);
        let mut waiting = targets.into_iter();
        let mut running = JoinSet::new();
        let mut done = Vec::new();
        loop {
            while running.len() < TARGETS_AT_ONCE
                && let Some(target) = waiting.next()
            {
                let lookups = lookups.clone();
                running.spawn(async move {
                    let heard = tokio::time::timeout(patience, lookups.addresses(&target)).await;
                    let late = Heard::Failed(Arc::from("no answer in time"));
                    (target, heard.unwrap_or_else(|_elapsed| (late.clone(), late)))
                });
            }
            match running.join_next().await {
                Some(Ok(heard)) => done.push(heard),
                // The runtime is shutting down.
                Some(Err(_)) => {}
                None => return done,
            }
        }
    }
}

impl Known {
    /// Takes what both families said; one that could not be asked keeps what it had.
    fn merge(&mut self, host: &str, v4: Heard<IpAddr>, v6: Heard<IpAddr>) -> Heard<IpAddr> {
        let (mut ttl, mut good, mut nothing, mut failed) = (None::<Duration>, false, None, None);
        for (heard, kept) in [(v4, &mut self.v4), (v6, &mut self.v6)] {
            match heard {
                Heard::Found(addresses, lasts) => {
                    good = true;
                    ttl = ttl.into_iter().chain(lasts).min();
                    *kept = addresses;
                }
                Heard::Nothing(why) => {
                    nothing = nothing.or(Some(why));
                    kept.clear();
                }
                Heard::Failed(why) => {
                    // Broken name servers answer SERVFAIL to AAAA for ever; that is no reason to ask more often.
                    if !kept.is_empty() {
                        ttl = ttl.into_iter().chain([PARTIAL]).min();
                    }
                    failed = failed.or(Some(why));
                }
            }
        }
        match (good, failed) {
            (true, _) => Heard::Found(usable(host, self.all()), ttl),
            (false, Some(why)) => Heard::Failed(why),
            (false, None) => Heard::Nothing(nothing.unwrap_or_else(|| "no addresses".into())),
        }
    }

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

/// After an answer with a part missing, when to ask again at the latest.
const PARTIAL: Duration = Duration::from_secs(10);
/// How many SRV targets are looked up together.
const TARGETS_AT_ONCE: usize = 16;

/// Whether this build knows TTLs and SRV; without, `record: srv` should be refused when the file is checked.
pub const KNOWS_SERVICES: bool = cfg!(feature = "dns");

/// TTL where the configuration says so, or always the same interval.
pub const fn pace(refresh: Option<Duration>) -> Pace {
    match refresh {
        Some(interval) => Pace::Every(interval),
        None => Pace::Ttl,
    }
}

#[cfg(test)]
#[cfg(feature = "dns")]
mod tests {
    use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
    use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket as TokioUdpSocket};
    use tokio_util::sync::CancellationToken;

    use super::super::{Asked, Source, run as run_source};
    use super::*;

    #[derive(Clone)]
    enum Reply {
        Records(Vec<RData>, u32),
        Code(ResponseCode),
        /// Cut over UDP, whole over TCP.
        Cut(Vec<RData>),
        Silence,
    }

    /// A name server on one port of UDP and TCP that says what it was told to say; NXDOMAIN otherwise.
    struct NameServer {
        address: SocketAddr,
        replies: Arc<Mutex<BTreeMap<(String, RecordType), Reply>>>,
        asked: Arc<Mutex<BTreeSet<String>>>,
    }

    impl NameServer {
        async fn start() -> Self {
            let (udp, tcp) = loop {
                let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
                if let Ok(udp) = TokioUdpSocket::bind(tcp.local_addr().unwrap()).await {
                    break (udp, tcp);
                }
            };
            let server = Self {
                address: tcp.local_addr().unwrap(),
                replies: Arc::default(),
                asked: Arc::default(),
            };
            let (replies, asked) = (server.replies.clone(), server.asked.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                    if let Some(answer) = answer(&replies, &asked, &buffer[..length], true) {
                        udp.send_to(&answer, peer).await.unwrap();
                    }
                }
            });
            let (replies, asked) = (server.replies.clone(), server.asked.clone());
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let (replies, asked) = (replies.clone(), asked.clone());
                    tokio::spawn(async move {
                        while let Ok(length) = stream.read_u16().await {
                            let mut question = vec![0; length.into()];
                            stream.read_exact(&mut question).await.unwrap();
                            if let Some(answer) = answer(&replies, &asked, &question, false) {
                                stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                                stream.write_all(&answer).await.unwrap();
                            }
                        }
                    });
                }
            });
            server
        }

        fn say(&self, name: &str, kind: RecordType, reply: Reply) {
            self.replies.lock().insert((format!("{name}."), kind), reply);
        }

        fn resolver(&self) -> Resolver {
            Resolver {
                servers: Some(vec![self.address]),
                hosts: None,
                timeout: Duration::from_secs(10),
            }
        }
    }

    fn answer(
        replies: &Mutex<BTreeMap<(String, RecordType), Reply>>,
        asked: &Mutex<BTreeSet<String>>,
        question: &[u8],
        over_udp: bool,
    ) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries[0].clone();
        let name = query.name().to_string().to_lowercase();
        asked.lock().insert(name.clone());
        let reply = replies
            .lock()
            .get(&(name, query.query_type()))
            .cloned()
            .unwrap_or(Reply::Code(ResponseCode::NXDomain));
        let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        let (records, ttl) = match reply {
            Reply::Silence => return None,
            Reply::Code(code) => {
                message.metadata.response_code = code;
                (Vec::new(), 0)
            }
            Reply::Cut(records) => {
                message.metadata.truncation = over_udp;
                (if over_udp { Vec::new() } else { records }, 60)
            }
            Reply::Records(records, ttl) => (records, ttl),
        };
        for data in records {
            message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        }
        message.add_query(query);
        Some(message.to_vec().unwrap())
    }

    fn v4(last: u8) -> RData {
        RData::A(A::new(10, 0, 0, last))
    }

    fn v6() -> RData {
        RData::AAAA(AAAA("::1".parse().unwrap()))
    }

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
        RData::SRV(SRV::new(
            priority,
            weight,
            port,
            Name::from_ascii(target).unwrap(),
        ))
    }

    fn addresses_of(name: &str) -> Question {
        Question::Addresses {
            host: name.into(),
            port: 80,
        }
    }

    fn texts(answer: &Answer) -> Vec<String> {
        match answer {
            Answer::Members(members, _) => members.iter().map(|m| m.address.to_string()).collect(),
            Answer::Empty(why) => panic!("empty: {why}"),
            Answer::Failed(why) => panic!("failed: {why}"),
        }
    }

    #[tokio::test]
    async fn both_families_are_members_under_the_name_and_the_shortest_ttl_counts() {
        let server = NameServer::start().await;
        server.say("app.test", RecordType::A, Reply::Records(vec![v4(1), v4(2)], 30));
        server.say("app.test", RecordType::AAAA, Reply::Records(vec![v6()], 7));
        let answer = server
            .resolver()
            .ask(&addresses_of("app.test."), &mut Memory::default())
            .await;
        let Answer::Members(members, ttl) = &answer else {
            panic!("{answer:?}")
        };
        assert_eq!(*ttl, Some(Duration::from_secs(7)));
        assert!(
            members
                .iter()
                .all(|member| member.host.as_deref() == Some("app.test"))
        );
        // Whether 10.0.0.0/8 is routed depends on the machine; ::1 always is where there is IPv6.
        assert!(!members.is_empty());
    }

    #[tokio::test]
    async fn a_name_in_the_hosts_file_is_not_asked_about() {
        let server = NameServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.7 app.test app # comment\n").unwrap();
        let resolver = Resolver {
            hosts: Some(hosts),
            ..server.resolver()
        };
        let answer = resolver
            .ask(&addresses_of("App.test"), &mut Memory::default())
            .await;
        assert_eq!(texts(&answer), ["127.0.0.7:80"]);
        assert!(server.asked.lock().is_empty());
    }

    #[tokio::test]
    async fn a_cut_answer_is_asked_for_again_over_tcp() {
        let server = NameServer::start().await;
        server.say("app.test", RecordType::A, Reply::Cut((1..200).map(v4).collect()));
        let answer = server
            .resolver()
            .ask(&addresses_of("app.test"), &mut Memory::default())
            .await;
        assert_eq!(texts(&answer).len(), 199);
    }

    #[tokio::test]
    async fn nothing_and_no_answer_are_told_apart() {
        let server = NameServer::start().await;
        server.say("none.test", RecordType::A, Reply::Records(Vec::new(), 0));
        server.say("none.test", RecordType::AAAA, Reply::Records(Vec::new(), 0));
        server.say("broken.test", RecordType::A, Reply::Code(ResponseCode::ServFail));
        server.say(
            "broken.test",
            RecordType::AAAA,
            Reply::Code(ResponseCode::ServFail),
        );
        server.say("refused.test", RecordType::A, Reply::Code(ResponseCode::Refused));
        server.say("silent.test", RecordType::A, Reply::Silence);
        server.say("silent.test", RecordType::AAAA, Reply::Silence);
        let mut resolver = server.resolver();
        for (name, empty) in [
            ("none.test", true),
            ("nowhere.test", true),
            ("broken.test", false),
            ("refused.test", false),
        ] {
            let answer = resolver.ask(&addresses_of(name), &mut Memory::default()).await;
            match answer {
                Answer::Empty(_) => assert!(empty, "{name}"),
                Answer::Failed(_) => assert!(!empty, "{name}"),
                Answer::Members(..) => panic!("{name}: {answer:?}"),
            }
        }
        resolver.timeout = Duration::from_millis(50);
        let answer = resolver
            .ask(&addresses_of("silent.test"), &mut Memory::default())
            .await;
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
    }

    #[tokio::test]
    async fn a_family_that_never_worked_is_done_without_and_one_that_did_keeps_what_it_had() {
        let server = NameServer::start().await;
        server.say("app.test", RecordType::A, Reply::Records(vec![v4(1)], 30));
        server.say("app.test", RecordType::AAAA, Reply::Code(ResponseCode::ServFail));
        let (resolver, mut memory) = (server.resolver(), Memory::default());
        assert_eq!(
            texts(&resolver.ask(&addresses_of("app.test"), &mut memory).await),
            ["10.0.0.1:80"]
        );
        server.say("app.test", RecordType::AAAA, Reply::Records(vec![v6()], 30));
        texts(&resolver.ask(&addresses_of("app.test"), &mut memory).await);
        server.say("app.test", RecordType::A, Reply::Code(ResponseCode::ServFail));
        let heard = resolver.ask(&addresses_of("app.test"), &mut memory).await;
        let Answer::Members(members, ttl) = heard else {
            panic!("{heard:?}")
        };
        assert_eq!(ttl, Some(PARTIAL));
        assert!(
            members
                .iter()
                .any(|member| member.address.ip().unwrap().is_ipv4())
        );
        server.say("app.test", RecordType::AAAA, Reply::Code(ResponseCode::ServFail));
        let heard = resolver.ask(&addresses_of("app.test"), &mut memory).await;
        assert!(matches!(heard, Answer::Failed(_)), "{heard:?}");
    }

    #[tokio::test]
    async fn services_bring_port_weight_and_dense_priority() {
        let server = NameServer::start().await;
        let records = vec![
            srv(10, 5, 8001, "a.test."),
            srv(20, 0, 8002, "b.test."),
            srv(20, 7, 8003, "gone.test."),
        ];
        server.say(
            "_http._tcp.app.test",
            RecordType::SRV,
            Reply::Records(records, 30),
        );
        server.say("a.test", RecordType::A, Reply::Records(vec![v4(1)], 20));
        server.say("b.test", RecordType::A, Reply::Records(vec![v4(2)], 60));
        let question = Question::Services {
            name: "_http._tcp.app.test".into(),
        };
        let answer = server.resolver().ask(&question, &mut Memory::default()).await;
        assert_eq!(texts(&answer), ["10.0.0.1:8001", "10.0.0.2:8002"]);
        let Answer::Members(members, ttl) = answer else {
            panic!()
        };
        assert_eq!(ttl, Some(Duration::from_secs(20)));
        assert_eq!(
            (members[0].priority, members[0].weight, members[0].host.as_deref()),
            (0, 5, Some("a.test"))
        );
        assert_eq!((members[1].priority, members[1].weight), (1, 1));
    }

    #[tokio::test]
    async fn a_service_target_that_cannot_be_asked_keeps_its_addresses() {
        let server = NameServer::start().await;
        let records = vec![srv(1, 1, 80, "a.test."), srv(1, 1, 80, "b.test.")];
        server.say("app.test", RecordType::SRV, Reply::Records(records, 300));
        server.say("a.test", RecordType::A, Reply::Records(vec![v4(1)], 300));
        server.say("b.test", RecordType::A, Reply::Records(vec![v4(2)], 300));
        let (resolver, mut memory) = (server.resolver(), Memory::default());
        let question = Question::Services {
            name: "app.test".into(),
        };
        texts(&resolver.ask(&question, &mut memory).await);
        server.say("a.test", RecordType::A, Reply::Records(vec![v4(9)], 300));
        server.say("b.test", RecordType::A, Reply::Code(ResponseCode::ServFail));
        let answer = resolver.ask(&question, &mut memory).await;
        assert_eq!(texts(&answer), ["10.0.0.9:80", "10.0.0.2:80"]);
        assert!(matches!(answer, Answer::Members(_, Some(ttl)) if ttl == PARTIAL));
    }

    #[tokio::test]
    async fn the_root_as_target_means_no_service() {
        let server = NameServer::start().await;
        server.say(
            "app.test",
            RecordType::SRV,
            Reply::Records(vec![srv(0, 0, 0, ".")], 30),
        );
        let question = Question::Services {
            name: "app.test".into(),
        };
        let answer = server.resolver().ask(&question, &mut Memory::default()).await;
        assert!(matches!(answer, Answer::Empty(_)), "{answer:?}");
    }

    #[test]
    fn localhost_is_its_ipv4_address_where_it_has_both() {
        let (v4, v6): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), "::1".parse().unwrap());
        assert_eq!(usable("localhost", vec![v4, v6]), [v4]);
        assert_eq!(usable("localhost", vec![v6]), [v6]);
    }

    /// Through an outage and back: real time, waits of about a second as the shortest TTL has it.
    #[tokio::test]
    async fn a_followed_name_changes_and_survives_an_outage() {
        let server = NameServer::start().await;
        server.say("app.test", RecordType::A, Reply::Records(vec![v4(1)], 0));
        let (events, mut heard) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let settings = Settings {
            question: addresses_of("app.test"),
            keep: keep::Settings::new(Pace::Ttl),
            resolver: Arc::new(server.resolver()),
        };
        let task = Task {
            cluster: "app".into(),
            events,
            seed: 1,
            cancel: cancel.clone(),
        };
        let running = tokio::spawn(run_source(Source::Dns(settings), task));
        let first = heard.recv().await.unwrap();
        assert_eq!(
            (first.asked, &*first.cluster, first.members.unwrap().len()),
            (Asked::Changed, "app", 1)
        );
        server.say("app.test", RecordType::A, Reply::Code(ResponseCode::ServFail));
        let failed = next_that(&mut heard, |event| event.asked == Asked::Failed).await;
        assert!(failed.stale && failed.members.is_none() && failed.detail.is_some());
        server.say("app.test", RecordType::A, Reply::Records(vec![v4(2), v4(3)], 0));
        let back = next_that(&mut heard, |event| event.members.is_some()).await;
        assert_eq!(
            (back.asked, back.stale, back.members.unwrap().len()),
            (Asked::Changed, false, 2)
        );
        cancel.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn names_in_a_fixed_list_join_the_addresses() {
        use super::super::fixed;

        let server = NameServer::start().await;
        server.say("app.test", RecordType::A, Reply::Records(vec![v4(1)], 60));
        let entry = |text: &str| {
            let written: crate::net::Address = text.parse().unwrap();
            fixed::Entry {
                weight: 3,
                ..fixed::Entry::new(fixed::Place::from(&written))
            }
        };
        let settings = fixed::Settings {
            entries: vec![
                entry("10.0.0.9:80"),
                entry("app.test:80"),
                entry("nowhere.test:80"),
            ],
            keep: keep::Settings::new(Pace::Ttl),
            resolver: Arc::new(server.resolver()),
        };
        assert!(settings.has_names() && settings.known().len() == 1);
        let (events, mut heard) = mpsc::channel(1);
        let task = Task {
            cluster: "app".into(),
            events,
            seed: 1,
            cancel: CancellationToken::new(),
        };
        let running = tokio::spawn(run_source(Source::Fixed(settings), task));
        let known = heard.recv().await.unwrap().members.unwrap();
        assert_eq!(known.len(), 1);
        let (mut joined, mut missing) = (None, None);
        while joined.is_none() || missing.is_none() {
            let event = heard.recv().await.unwrap();
            match event.asked {
                Asked::Changed => joined = event.members,
                _ => missing = event.detail,
            }
        }
        let joined = joined.unwrap();
        assert_eq!(joined.len(), 2);
        assert_eq!(
            (joined[0].host.as_deref(), joined[0].weight),
            (Some("app.test"), 3)
        );
        assert!(missing.unwrap().starts_with("nowhere.test: "));
        running.abort();
    }

    async fn next_that(heard: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = heard.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    }
}
