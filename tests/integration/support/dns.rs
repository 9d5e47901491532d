//! A name server for the tests of discovery: it says what it was told, over UDP, on port 53 of a loopback address of
//! its own, because `resolv.conf` cannot name another port.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::background;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// What is said about a name.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    /// These addresses, good for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// These services: priority, weight, port, target.
    Services(Vec<(u16, u16, u16, &'static str)>, u32),
    /// That something is broken.
    Trouble,
    /// Nothing at all.
    Silence,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct NameServer {
    address: Ipv4Addr,
    zone: Arc<Mutex<BTreeMap<&'static str, Says>>>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl NameServer {
    /// `None` where port 53 takes a privilege that the test does not have.
    pub(crate) fn start() -> Option<Self> {
        let process = std::process::id();
        let socket = (0..=255_u8).find_map(|turn| {
            let [.., high, low] = process.to_be_bytes();
            let address = Ipv4Addr::new(127, 100_u8.wrapping_add(turn) | 1, high, low.max(1));
            match UdpSocket::bind((address, 53)) {
                Ok(socket) => Some(Ok((socket, address))),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
                Err(error) => Some(Err(error)),
            }
        });
        let (socket, address) = match socket.expect("a free address") {
            Ok(bound) => bound,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(error) => panic!("port 53 of a loopback address: {error}"),
        };
        socket.set_nonblocking(true).expect("a socket");
        let zone = Arc::new(Mutex::new(BTreeMap::new()));
        let asked = Arc::<AtomicUsize>::default();
        let task = background().spawn(serve(socket, Arc::clone(&zone), Arc::clone(&asked)));
        Some(Self {
            address,
            zone,
            asked,
            task,
        })
    }

    /// What belongs into the `resolv.conf` of who should ask here.
    pub(crate) fn resolv_conf(&self) -> String {
        format!("nameserver {}\noptions timeout:1 attempts:1\n", self.address)
    }

    /// From now on this is said about a name. Names nobody has spoken of do not exist.
    pub(crate) fn say(&self, name: &'static str, says: Says) {
        self.zone.lock().insert(name, says);
    }

    /// From now on this name does not exist.
    pub(crate) fn forget(&self, name: &str) {
        self.zone.lock().remove(name);
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<BTreeMap<&'static str, Says>>>, asked: Arc<AtomicUsize>) {
    let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket");
    let mut buffer = [0; 512];
    loop {
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let answer = {
            let zone = zone.lock();
            answer(&buffer[..count], |name| zone.get(name).cloned())
        };
        if let Some(answer) = answer {
            // The one who asked may have given up.
            drop(socket.send_to(&answer, peer).await);
        }
    }
}

/// The answer to a question of RFC 1035, or nothing.
fn answer(question: &[u8], zone: impl Fn(&str) -> Option<Says>) -> Option<Vec<u8>> {
    // The header, then labels until the empty one, then type and class.
    let mut labels = Vec::new();
    let mut at = 12;
    while let Some((&length, rest)) = question.get(at..)?.split_first()
        && length > 0
    {
        labels.push(String::from_utf8_lossy(rest.get(..usize::from(length))?).to_lowercase());
        at += 1 + usize::from(length);
    }
    let kind = u16::from_be_bytes(question.get(at + 1..at + 3)?.try_into().ok()?);
    let (code, records) = match zone(&labels.join(".")) {
        None => (NXDOMAIN, Vec::new()),
        Some(Says::Silence) => return None,
        Some(Says::Trouble) => (SERVFAIL, Vec::new()),
        Some(Says::Addresses(addresses, ttl)) => (
            0,
            addresses
                .iter()
                .filter_map(|ip| address(*ip, ttl, kind))
                .collect(),
        ),
        Some(Says::Services(services, ttl)) if kind == SRV => (
            0,
            services
                .iter()
                .map(|service| record(SRV, ttl, &srv(*service)))
                .collect(),
        ),
        Some(Says::Services(..)) => (0, Vec::new()),
    };
    // The id and the question come back; response, recursion desired and available; one question.
    let mut bytes = question[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1]);
    bytes.extend(u16::try_from(records.len()).expect("few").to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(&question[12..at + 5]);
    bytes.extend(records.concat());
    Some(bytes)
}

fn address(ip: IpAddr, ttl: u32, asked: u16) -> Option<Vec<u8>> {
    match ip {
        IpAddr::V4(ip) if asked == A => Some(record(A, ttl, &ip.octets())),
        IpAddr::V6(ip) if asked == AAAA => Some(record(AAAA, ttl, &ip.octets())),
        _ => None,
    }
}

fn srv((priority, weight, port, target): (u16, u16, u16, &str)) -> Vec<u8> {
    let mut data = [priority, weight, port].map(u16::to_be_bytes).concat();
    for label in target.split('.') {
        data.push(u8::try_from(label.len()).expect("a short label"));
        data.extend(label.bytes());
    }
    data.push(0);
    data
}

/// A record about the name of the question, which a pointer repeats.
fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc0, 12];
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend(data);
    bytes
}
