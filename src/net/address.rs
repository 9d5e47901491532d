//! Addresses: as an operator writes them ([`Address`]) and as a socket has them ([`SocketAddress`]).
//!
//! They are two types because the first may hold a name that is still to be resolved, or no host at all, and the
//! second never does. Nothing connects to or binds an `Address`; somebody resolves it first, knowingly.
//! Invariant: `Display` of an `Address` parses back to the same value.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// An address as written: `example.com:80`, `127.0.0.1:80`, `[::1]:80`, `:80` or `unix:/run/app.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A host, by name or by IP address without brackets, and a port. An empty host means every interface.
    Tcp {
        /// Name or IP address; empty for every interface.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The IP address and port, when the host is not a name. An empty host is no IP address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { host, port } => host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, *port)),
            Self::Unix(_) => None,
        }
    }

    /// The host, when there is one to name: neither empty nor a Unix path.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } if !host.is_empty() => Some(host),
            Self::Tcp { .. } | Self::Unix(_) => None,
        }
    }

    /// The port of a TCP address.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// Where to listen: an empty host becomes `[::]` (which also takes IPv4) or, without IPv6, `0.0.0.0`.
    ///
    /// A name is resolved with the system's resolver and **blocks**; call it while compiling a configuration, not in
    /// a request. The first address wins.
    ///
    /// # Errors
    /// What the resolver said, or `NotFound` when the name has no address.
    pub fn to_listen(&self) -> io::Result<SocketAddress> {
        match self {
            Self::Unix(path) => Ok(SocketAddress::Unix(path.as_path().into())),
            Self::Tcp { host, port } if host.is_empty() => {
                let any: IpAddr = if ipv6_available() {
                    Ipv6Addr::UNSPECIFIED.into()
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                };
                Ok(SocketAddress::Ip(SocketAddr::new(any, *port)))
            }
            Self::Tcp { host, port } => {
                if let Ok(ip) = host.parse::<IpAddr>() {
                    return Ok(SocketAddress::Ip(SocketAddr::new(ip, *port)));
                }
                let first = (host.as_str(), *port).to_socket_addrs()?.next();
                first
                    .map(SocketAddress::Ip)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
            }
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            // A NUL would end the path early in the kernel: another path than the one that is shown.
            return match path {
                "" => Err(AddressError::EmptyPath),
                path if path.contains('\0') => Err(AddressError::Host),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(AddressError::Scheme(scheme.to_owned()));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(AddressError::Brackets)?;
                if host.parse::<Ipv6Addr>().is_err() {
                    return Err(AddressError::Brackets);
                }
                (host, rest.strip_prefix(':').ok_or(AddressError::NoPort)?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
                if host.contains(':') {
                    return Err(AddressError::Brackets);
                }
                (host, port)
            }
        };
        if !host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':'))
        {
            return Err(AddressError::Host);
        }
        // `u16::from_str` also takes a sign.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AddressError::Port(port.to_owned()));
        }
        let port = port
            .parse()
            .map_err(|_too_large| AddressError::Port(port.to_owned()))?;
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing was written.
    #[error("the address is empty")]
    Empty,
    /// `unix:` without a path.
    #[error("`unix:` needs a path")]
    EmptyPath,
    /// A URL was written.
    #[error("an address has no scheme: `{0}://` does not belong here")]
    Scheme(String),
    /// No colon, or nothing behind the brackets.
    #[error("the port is missing: write `host:port`")]
    NoPort,
    /// Not a number between 0 and 65535.
    #[error("`{0}` is not a port between 0 and 65535")]
    Port(String),
    /// An IPv6 address without brackets, or brackets around something else.
    #[error("an IPv6 address is written in brackets: `[::1]:8080`")]
    Brackets,
    /// A character that no host name, IP address or path may hold.
    #[error("the host may hold letters, digits, `-`, `_` and `.` only")]
    Host,
}

/// An address a socket has or can be given: nothing left to resolve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SocketAddress {
    /// IPv4 or IPv6, and a port.
    Ip(SocketAddr),
    /// The path of a Unix socket; empty for an unnamed one, as clients have.
    Unix(Arc<Path>),
}

impl SocketAddress {
    /// The IP address and port; none for a Unix socket.
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether this machine can open IPv6 sockets at all (containers often cannot).
fn ipv6_available() -> bool {
    // Binding, not only opening: with `net.ipv6.conf.all.disable_ipv6=1` sockets can still be made.
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn every_documented_form_parses() {
        assert_eq!("example.com:80".parse(), Ok(tcp("example.com", 80)));
        assert_eq!(":8080".parse(), Ok(tcp("", 8080)));
        assert_eq!("[::1]:8080".parse(), Ok(tcp("::1", 8080)));
        assert_eq!(
            "unix:/run/app.sock".parse(),
            Ok(Address::Unix("/run/app.sock".into()))
        );
    }

    #[test]
    fn what_is_not_an_address_says_why() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(error(""), AddressError::Empty);
        assert_eq!(error("unix:"), AddressError::EmptyPath);
        assert_eq!(error("http://a:80"), AddressError::Scheme("http".to_owned()));
        assert_eq!(error("localhost"), AddressError::NoPort);
        assert_eq!(error("[::1]"), AddressError::NoPort);
        assert_eq!(error("::1:80"), AddressError::Brackets);
        assert_eq!(error("[127.0.0.1]:80"), AddressError::Brackets);
        assert_eq!(error("a:70000"), AddressError::Port("70000".to_owned()));
        assert_eq!(error("a:+80"), AddressError::Port("+80".to_owned()));
        assert_eq!(error("a b:80"), AddressError::Host);
    }

    #[test]
    fn a_port_alone_listens_on_every_interface() {
        let SocketAddress::Ip(address) = tcp("", 8080).to_listen().unwrap() else {
            panic!("not an IP")
        };
        assert!(address.ip().is_unspecified());
        assert_eq!(address.port(), 8080);
    }

    proptest! {
        #[test]
        fn display_parses_back(text in "[ -~]{0,24}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }

        #[test]
        fn socket_addresses_round_trip(address: SocketAddr) {
            let SocketAddr::V4(_) = address else { return Ok(()) };
            let written = Address::from(address);
            prop_assert_eq!(written.to_string().parse::<Address>(), Ok(written.clone()));
            prop_assert_eq!(written.socket_addr(), Some(address));
        }
    }
}
