//! The service manager: telling it how we are, and taking the sockets it opened for us.
//!
//! Everything here does nothing without systemd: the notices need `NOTIFY_SOCKET` in the environment, the sockets
//! `LISTEN_FDS`. A notice that cannot be sent is no reason to serve worse, so the results are for a debug log at most.
//!
//! Sockets arrive as bare numbers, which safe code cannot turn into owners. `pidfd_getfd` on ourselves could duplicate
//! them, but the usual filters of system calls (`@system-service`, the container runtimes' defaults) forbid it as a
//! debugger's call; the `listenfd` crate adopts the descriptors themselves and checks that they are sockets.

use std::env;
use std::io;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;

use crate::net::SocketAddress;
use crate::net::tcp::Bound;

/// Every configured listener accepts connections.
///
/// # Errors
/// The notice could not be sent, as with all of this module's notices.
pub fn ready(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
}

/// A new configuration is being read; [`ready`] ends it, also when the configuration was refused.
///
/// # Errors
/// As [`ready`].
pub fn reloading() -> io::Result<()> {
    // systemd 253 and newer insist on the time, to tell this reload from the one before.
    sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
}

/// The process drains and will exit.
///
/// # Errors
/// As [`ready`].
pub fn stopping(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))])
}

/// What `systemctl status` shows.
///
/// # Errors
/// As [`ready`].
pub fn status(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Status(&one_line(status))])
}

/// Another process is the service now. Only the one that was until now is believed.
///
/// # Errors
/// As [`ready`].
pub fn main_pid(pid: u32) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::MainPid(pid)])
}

/// The process is alive: to be sent every [`watchdog_interval`] from where a standstill of the proxy would be felt.
///
/// # Errors
/// As [`ready`].
pub fn watchdog() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Watchdog])
}

/// How often [`watchdog`] is due, if it was asked for: half of the time after which systemd takes action, as
/// `sd_watchdog_enabled(3)` recommends.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// A line end would start another assignment of the notice.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// The sockets that systemd opened for this service.
#[derive(Debug, Default)]
pub struct Activated {
    sockets: Vec<Socket>,
}

#[derive(Debug)]
struct Socket {
    name: Option<String>,
    address: SocketAddress,
    bound: Bound,
}

impl Activated {
    /// Takes the sockets that the environment announces, non-blocking and closed on exec; none without systemd.
    ///
    /// Call it once, at the start and before any thread: it removes the announcement from the environment.
    ///
    /// # Errors
    /// `InvalidInput` when a descriptor is no listening stream socket, as with `ListenDatagram=` or `Accept=yes`.
    pub fn receive() -> io::Result<Self> {
        // sd_listen_fds(3): the names in the order of the descriptors, separated by colons.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(given.len());
        for index in 0..given.len() {
            let name = names.next().filter(|name| !name.is_empty()).map(str::to_owned);
            let bound = take(&mut given, index)?;
            sockets.push(Socket {
                name,
                address: bound.local_addr()?,
                bound,
            });
        }
        Ok(Self { sockets })
    }

    /// The sockets for the listener `name` at `address`: those whose `FileDescriptorName=` is the listener's name,
    /// or else those that listen at its address. `None` when there are none: the listener then binds by itself.
    ///
    /// A name wins even where the address differs, because somebody wrote it for this purpose. Usually there is one
    /// socket and several workers; [`super::upgrade::distribute`] shares it out.
    pub fn take(&mut self, name: &str, address: &SocketAddress) -> Option<Vec<Bound>> {
        let by_name = |socket: &mut Socket| socket.name.as_deref() == Some(name);
        let by_address = |socket: &mut Socket| socket.address == *address;
        let mut taken: Vec<Bound> = self.sockets.extract_if(.., by_name).map(|s| s.bound).collect();
        if taken.is_empty() {
            taken = self.sockets.extract_if(.., by_address).map(|s| s.bound).collect();
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// Sockets that no listener took, for a warning: connections to them are refused or hang.
    pub fn left(&self) -> impl Iterator<Item = &SocketAddress> {
        self.sockets.iter().map(|socket| &socket.address)
    }
}

fn take(given: &mut ListenFd, index: usize) -> io::Result<Bound> {
    let bound = match given.take_tcp_listener(index) {
        Ok(Some(listener)) => {
            listener.set_nonblocking(true)?;
            Bound::Tcp(listener)
        }
        // It is kept when it is of another kind.
        Err(_) => match given.take_unix_listener(index)? {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                Bound::Unix(listener)
            }
            None => return Err(not_listening()),
        },
        Ok(None) => return Err(not_listening()),
    };
    let listens = match &bound {
        Bound::Tcp(listener) => socket_acceptconn(listener)?,
        Bound::Unix(listener) => socket_acceptconn(listener)?,
    };
    if listens { Ok(bound) } else { Err(not_listening()) }
}

fn not_listening() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "a socket from systemd does not listen for streams: use ListenStream= and Accept=no",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::process::Command;

    /// A command that runs one of the functions below in a process of its own, where the environment may be set.
    fn child(name: &str, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .arg(env::current_exe().unwrap())
            .args(["--exact", &format!("app::systemd::tests::{name}")])
            .env("BELLWETHER_TEST_CHILD", name);
        command
    }

    fn is_child(name: &str) -> bool {
        env::var("BELLWETHER_TEST_CHILD").is_ok_and(|child| child == name)
    }

    #[test]
    fn sockets_from_systemd_go_to_the_listener_of_their_name_or_address() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("named.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let script = r#"exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_PID=$$; exec "$0" "$@""#;
        let status = child("takes_sockets", script)
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "bellwether.socket:internal")
            .env("BELLWETHER_TEST_ADDRESS", tcp.local_addr().unwrap().to_string())
            .stdin(OwnedFd::from(tcp))
            .stdout(OwnedFd::from(unix))
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Not a test but the other process of the one above.
    #[test]
    fn takes_sockets() {
        if !is_child("takes_sockets") {
            return;
        }
        let address: std::net::SocketAddr = env::var("BELLWETHER_TEST_ADDRESS").unwrap().parse().unwrap();
        let mut activated = Activated::receive().unwrap();
        assert_eq!(activated.left().count(), 2);
        let elsewhere = SocketAddress::Ip(([127, 0, 0, 1], 1).into());
        assert!(activated.take("web", &elsewhere).is_none());
        let named = activated.take("internal", &elsewhere).unwrap();
        assert!(matches!(named[..], [Bound::Unix(_)]));
        let web = activated.take("web", &SocketAddress::Ip(address)).unwrap();
        assert!(matches!(web[..], [Bound::Tcp(_)]));
        assert_eq!(activated.left().count(), 0);
        assert!(env::var_os("LISTEN_FDS").is_none());
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let script = r#"exec 3<&0 0</dev/null 1>/dev/null; export LISTEN_PID=$$; exec "$0" "$@""#;
        let status = child("refuses_socket", script)
            .env("LISTEN_FDS", "1")
            .stdin(OwnedFd::from(one))
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Not a test but the other process of the one above.
    #[test]
    fn refuses_socket() {
        if is_child("refuses_socket") {
            assert_eq!(
                Activated::receive().unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }

    #[test]
    fn notices_reach_the_service_manager() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let status = child("sends_notices", r#"exec "$0" "$@" >/dev/null"#)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "10000000")
            .status()
            .unwrap();
        assert!(status.success());
        let mut buffer = [0; 512];
        let mut next = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(next(), "READY=1\nSTATUS=2 listeners MAINPID=1\n");
        assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(next(), "STATUS=idle\n");
        assert_eq!(next(), "WATCHDOG=1\n");
        assert_eq!(next(), "MAINPID=7\n");
        assert_eq!(next(), "STOPPING=1\nSTATUS=draining\n");
    }

    /// Not a test but the other process of the one above.
    #[test]
    fn sends_notices() {
        if !is_child("sends_notices") {
            return;
        }
        assert_eq!(watchdog_interval(), Some(Duration::from_secs(5)));
        ready("2 listeners\nMAINPID=1").unwrap();
        reloading().unwrap();
        status("idle").unwrap();
        watchdog().unwrap();
        main_pid(7).unwrap();
        stopping("draining").unwrap();
    }
}
