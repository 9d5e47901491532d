//! The real network: listening, connecting and accepting, over TCP and Unix sockets.
//!
//! Every worker listens on a socket of its own in one `SO_REUSEPORT` group, so the kernel spreads connections and no
//! worker waits for another. The price is that a second process of the same user could join the group unnoticed;
//! [`bind_workers`] therefore first tries the address without the option and fails as any server would.
//! Invariant: every socket made here is non-blocking and closed on exec.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::address::SocketAddress;
use super::io::{Io, PeerInfo};

/// How to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOptions {
    /// Several sockets may share the address, and the kernel spreads connections over them. For [`bind_workers`]:
    /// sockets of other processes too, as when a running binary is replaced.
    pub reuse_port: bool,
    /// Connections the kernel keeps ready before they are accepted; `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// An IPv6 wildcard socket does not take IPv4 too.
    pub v6only: bool,
    /// Permission bits of a Unix socket's file; none leaves what the umask gives.
    pub mode: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            backlog: 4096,
            v6only: false,
            mode: None,
        }
    }
}

/// When a silent peer is asked whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question.
    pub idle: Duration,
    /// Between questions.
    pub interval: Duration,
    /// Unanswered questions before the connection counts as dead.
    pub retries: u32,
}

impl Default for Keepalive {
    /// Notices a vanished peer after a minute and a half, well inside the usual five minutes of NAT and firewall.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            retries: 3,
        }
    }
}

/// How a connected TCP socket behaves, on either side. Unix sockets need none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Send small segments at once (`TCP_NODELAY`).
    pub nodelay: bool,
    /// Keep-alive probes; none turns them off.
    pub keepalive: Option<Keepalive>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
        }
    }
}

impl ConnectOptions {
    /// Sets the options on a connected socket.
    ///
    /// # Errors
    /// What the kernel said; after a peer's reset that can be any of them, and the connection is then dead anyway.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(stream);
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some(keepalive) = &self.keepalive {
            let keepalive = TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.retries);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        Ok(())
    }
}

/// Connects to an address that is already resolved. Dropping the future gives the attempt up.
///
/// # Errors
/// What the kernel said: `ConnectionRefused`, `TimedOut`, `NotFound` for a Unix path, and so on.
pub async fn connect(address: &SocketAddress, options: &ConnectOptions) -> io::Result<Io> {
    match address {
        SocketAddress::Ip(address) => {
            let stream = TcpStream::connect(address).await?;
            options.apply(&stream)?;
            Ok(stream.into())
        }
        SocketAddress::Unix(path) => Ok(UnixStream::connect(path).await?.into()),
    }
}

/// A socket that listens but belongs to no runtime yet; it may be sent to the worker that will accept from it.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(StdTcpListener),
    /// Unix.
    Unix(StdUnixListener),
}

impl Bound {
    /// The address it listens on, with the port the system chose.
    ///
    /// # Errors
    /// What the kernel said; not known to happen.
    pub fn local_addr(&self) -> io::Result<SocketAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(SocketAddress::Ip),
            Self::Unix(listener) => listener
                .local_addr()
                .map(|address| unix_address(address.as_pathname())),
        }
    }

    /// The same socket once more: both accept from one queue, and it closes when both are gone.
    ///
    /// # Errors
    /// What the kernel said, such as having no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Opens one TCP listening socket.
///
/// # Errors
/// What the kernel said: `AddrInUse` (see [`holder`]), `PermissionDenied` below port 1024, `AddrNotAvailable`.
pub fn listen(address: &SocketAddr, options: &ListenOptions) -> io::Result<StdTcpListener> {
    let socket = bind(address, options)?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn bind(address: &SocketAddr, options: &ListenOptions) -> io::Result<Socket> {
    // `Socket::new` sets close-on-exec.
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Restarting within a minute must not fail on connections that linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(options.v6only)?;
    }
    socket.bind(&(*address).into())?;
    Ok(socket)
}

/// Opens a Unix listening socket. A file left by a process that is gone is replaced; a living one's is not.
///
/// # Errors
/// `AddrInUse` when somebody answers at the path or something else than a socket is there; else what the kernel said.
pub fn listen_unix(path: &Path, options: &ListenOptions) -> io::Result<StdUnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "the path exists and is not a socket",
            ));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            // Only this error proves that nobody listens; a full backlog or a denied permission does not.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) | Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    if let Some(mode) = options.mode {
        // Between bind and listen nobody can connect, so nobody gets in under the wider mode.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// One listening socket per worker for one address; with port 0 all of them share the port the system chose.
///
/// Unless `reuse_port` is set, an address that another process listens on is an error, even where the kernel would
/// have let us join.
///
/// # Errors
/// As [`listen`] and [`listen_unix`]; either all workers get their socket or none.
pub fn bind_workers(
    address: &SocketAddress,
    workers: usize,
    options: &ListenOptions,
) -> io::Result<Vec<Bound>> {
    match address {
        SocketAddress::Ip(address) => {
            // Alone first: joining a group that another process of ours already has would succeed silently and take
            // half of its connections.
            let mut address = *address;
            if address.port() != 0 && !options.reuse_port {
                drop(bind(&address, options)?);
            }
            let shared = ListenOptions {
                reuse_port: true,
                ..*options
            };
            let mut bound = Vec::with_capacity(workers);
            for _ in 0..workers {
                let listener = listen(&address, &shared)?;
                address.set_port(listener.local_addr()?.port());
                bound.push(Bound::Tcp(listener));
            }
            Ok(bound)
        }
        SocketAddress::Unix(path) => {
            // Unix sockets have no groups; the workers accept from one queue.
            let first = listen_unix(path, options)?;
            let mut bound = Vec::with_capacity(workers);
            for _ in 1..workers {
                bound.push(Bound::Unix(first.try_clone()?));
            }
            bound.push(Bound::Unix(first));
            Ok(bound)
        }
    }
}

/// A listening socket of one worker's runtime.
#[derive(Debug)]
pub struct Listener {
    socket: ListenSocket,
    local: SocketAddress,
    options: ConnectOptions,
}

#[derive(Debug)]
enum ListenSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes a bound socket into the current runtime. `options` are set on every connection.
    ///
    /// # Errors
    /// What the kernel said when the socket was registered.
    pub fn new(bound: Bound, options: ConnectOptions) -> io::Result<Self> {
        let local = bound.local_addr()?;
        let socket = match bound {
            Bound::Tcp(listener) => ListenSocket::Tcp(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => ListenSocket::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Self {
            socket,
            local,
            options,
        })
    }

    /// The address it listens on.
    pub const fn local_addr(&self) -> &SocketAddress {
        &self.local
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// Those that concern the listener, such as having no descriptor left (see [`is_exhausted`]): wait a moment and
    /// go on. A connection that died while it waited in the queue is skipped.
    pub async fn accept(&self) -> io::Result<(Io, PeerInfo)> {
        loop {
            match self.accept_one().await {
                Err(error) if is_about_the_connection(&error) => {}
                result => return result,
            }
        }
    }

    async fn accept_one(&self) -> io::Result<(Io, PeerInfo)> {
        let (io, peer, local) = match &self.socket {
            ListenSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A reset that already arrived makes these fail; the first read will say so in the right place.
                drop(self.options.apply(&stream));
                // On a wildcard listener only the connection knows which address it came to.
                let local = match &self.local {
                    SocketAddress::Ip(address) if address.ip().is_unspecified() => stream
                        .local_addr()
                        .map_or_else(|_| self.local.clone(), |a| canonical(a).into()),
                    SocketAddress::Ip(_) | SocketAddress::Unix(_) => self.local.clone(),
                };
                (Io::from(stream), SocketAddress::Ip(canonical(peer)), local)
            }
            ListenSocket::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                (
                    Io::from(stream),
                    unix_address(peer.as_pathname()),
                    self.local.clone(),
                )
            }
        };
        Ok((
            io,
            PeerInfo {
                peer,
                local,
                tls: None,
                proxied: None,
            },
        ))
    }
}

fn unix_address(path: Option<&Path>) -> SocketAddress {
    SocketAddress::Unix(path.map_or_else(|| Arc::from(Path::new("")), Arc::from))
}

/// An IPv4 client of a dual-stack socket appears as `::ffff:a.b.c.d`; access lists and logs mean `a.b.c.d`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// accept(2): errors already pending on the new connection are passed on, and are no reason to stop accepting.
fn is_about_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::Interrupted
    )
}

/// Whether an accept or connect failed because this process or machine has no descriptor or memory left.
pub fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|code| {
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].contains(&Errno::from_raw_os_error(code))
    })
}

/// A process that holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its short name, as `ps` shows it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Who listens at `address`, as far as this process may look: for an error message, never for a decision.
///
/// Reads `/proc` and blocks for milliseconds; other users' processes are invisible without privileges.
pub fn holder(address: &SocketAddr) -> Option<Holder> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let held = descriptors.any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| {
                target
                    .to_str()
                    .is_some_and(|t| inodes.iter().any(|inode| inode == t))
            })
        });
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        held.then(|| Holder {
            pid,
            name: name.trim_end().to_owned(),
        })
    })
}

/// The inodes of sockets in a `/proc/net/tcp{,6}` table that listen where `wanted` would collide.
fn listening_inodes(table: &str, wanted: &SocketAddr) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                return None;
            };
            let (ip, port) = local.split_once(':')?;
            let same_port = u16::from_str_radix(port, 16).ok()? == wanted.port();
            let ip = proc_ip(ip)?.to_canonical();
            let collides =
                ip.is_unspecified() || wanted.ip().is_unspecified() || ip == wanted.ip().to_canonical();
            if same_port && collides {
                inode.parse().ok()
            } else {
                None
            }
        })
        .collect()
}

/// An address as `/proc/net/tcp` prints it: 32-bit words in the machine's byte order, in hexadecimal.
fn proc_ip(text: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (word, chunk) in bytes.chunks_exact_mut(4).zip(0..text.len() / 8) {
        let digits = text.get(chunk * 8..chunk * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    match text.len() {
        8 => Some(IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])),
        32 => Some(IpAddr::from(bytes)),
        _ => None,
    }
}

/// How many descriptors this process may open: now, and at most after [`raise_descriptor_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The soft limit; `u64::MAX` without one.
    pub current: u64,
    /// The hard limit; `u64::MAX` without one.
    pub maximum: u64,
}

/// Reads the limit of open descriptors (`RLIMIT_NOFILE`).
pub fn descriptor_limit() -> DescriptorLimit {
    let limit = getrlimit(Resource::Nofile);
    DescriptorLimit {
        current: limit.current.unwrap_or(u64::MAX),
        maximum: limit.maximum.unwrap_or(u64::MAX),
    }
}

/// Raises the soft limit to the hard one, which needs no privilege, and returns what holds now.
///
/// # Errors
/// What the kernel said; the limit is then as before.
pub fn raise_descriptor_limit() -> io::Result<DescriptorLimit> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(descriptor_limit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn local(port: u16) -> SocketAddress {
        SocketAddr::from(([127, 0, 0, 1], port)).into()
    }

    fn port(bound: &Bound) -> u16 {
        bound.local_addr().unwrap().ip().unwrap().port()
    }

    #[test]
    fn workers_share_the_port_the_system_chose_and_nobody_joins_them() {
        let bound = bind_workers(&local(0), 3, &ListenOptions::default()).unwrap();
        assert_eq!(bound.len(), 3);
        assert!(bound.iter().all(|b| port(b) == port(&bound[0])));
        let second = bind_workers(&local(port(&bound[0])), 1, &ListenOptions::default()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let successor = ListenOptions {
            reuse_port: true,
            ..ListenOptions::default()
        };
        assert_eq!(
            bind_workers(&local(port(&bound[0])), 2, &successor)
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn a_listening_socket_is_non_blocking_and_closed_on_exec() {
        let bound = listen(&local(0).ip().unwrap(), &ListenOptions::default()).unwrap();
        assert!(
            rustix::fs::fcntl_getfl(bound.as_fd())
                .unwrap()
                .contains(rustix::fs::OFlags::NONBLOCK)
        );
        assert!(
            rustix::io::fcntl_getfd(bound.as_fd())
                .unwrap()
                .contains(rustix::io::FdFlags::CLOEXEC)
        );
    }

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = listen(&local(0).ip().unwrap(), &ListenOptions::default()).unwrap();
        let found = holder(&listener.local_addr().unwrap()).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(found.to_string().starts_with(&format!("process {} (", found.pid)));
    }

    #[test]
    fn the_table_of_listening_sockets_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1001 1\n   \
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 1002 1\n   \
            2: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1003 1\n";
        if cfg!(target_endian = "little") {
            assert_eq!(
                listening_inodes(table, &"127.0.0.1:8080".parse().unwrap()),
                [1001, 1003]
            );
            assert_eq!(
                listening_inodes(table, &"127.0.0.2:8080".parse().unwrap()),
                [1003]
            );
            assert_eq!(
                listening_inodes(table, &"127.0.0.1:80".parse().unwrap()),
                Vec::<u64>::new()
            );
        }
    }

    #[tokio::test]
    async fn a_dual_stack_listener_shows_ipv4_clients_as_ipv4() {
        let any: super::super::Address = ":0".parse().unwrap();
        let mut bound = bind_workers(&any.to_listen().unwrap(), 1, &ListenOptions::default()).unwrap();
        let listener = Listener::new(bound.remove(0), ConnectOptions::default()).unwrap();
        let target = local(listener.local_addr().ip().unwrap().port());
        let options = ConnectOptions::default();
        let (client, accepted) = tokio::join!(connect(&target, &options), listener.accept());
        let (mut client, (mut server, info)) = (client.unwrap(), accepted.unwrap());
        assert!(info.peer.ip().unwrap().is_ipv4());
        assert_eq!(info.local, target);
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_stale_unix_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.sock");
        let options = ListenOptions {
            mode: Some(0o600),
            ..ListenOptions::default()
        };
        drop(listen_unix(&path, &options).unwrap());
        let living = listen_unix(&path, &options).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            listen_unix(&path, &options).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );

        let listener = Listener::new(Bound::Unix(living), ConnectOptions::default()).unwrap();
        let target = SocketAddress::Unix(path.as_path().into());
        let options = ConnectOptions::default();
        let (client, accepted) = tokio::join!(connect(&target, &options), listener.accept());
        client.unwrap();
        assert_eq!(accepted.unwrap().1.peer.to_string(), "unix:");
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        fs::write(&path, "precious").unwrap();
        assert!(listen_unix(&path, &ListenOptions::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_descriptor_limit_can_be_raised() {
        let after = raise_descriptor_limit().unwrap();
        assert_eq!(after.current, after.maximum);
    }
}
