//! Opening a connection to an endpoint: dial, PROXY header, TLS, protocol, within one timeout.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::{Cluster, Endpoint, Protocol};
use crate::net::tls::{Alpn, HandshakeError};
use crate::net::wheel::Wheel;
use crate::net::{Io, PeerInfo, Proxied, proxy_protocol, tcp};
use crate::telemetry::{ConnectResult, UpstreamFailure};
use crate::wire::{http1, http2};

/// A connection that was just opened.
#[derive(Debug)]
pub(super) enum Opened {
    Http1(http1::client::Connection),
    Http2(http2::client::Connection),
}

/// Why a connection could not be opened. Nothing of the request was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kernel or the peer refused.
    #[error("connect: {0}")]
    Failed(#[source] io::Error),
    /// Not within the connect timeout.
    #[error("no connection within the connect timeout")]
    Timeout,
    /// TLS failed, or the certificate is not the right one.
    #[error("tls: {}", .0.source)]
    Tls(HandshakeError),
    /// The peer does not speak the protocol.
    #[error("protocol: {0}")]
    Protocol(Arc<str>),
    /// The endpoint has as many connections as it may have.
    #[error("connection limit reached")]
    Limit,
}

impl ConnectError {
    /// The metric's word for it.
    pub fn result(&self) -> ConnectResult {
        match self {
            Self::Failed(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => ConnectResult::Refused,
                io::ErrorKind::TimedOut => ConnectResult::Timeout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    ConnectResult::Unreachable
                }
                _ => ConnectResult::Error,
            },
            Self::Timeout => ConnectResult::Timeout,
            Self::Tls(_) => ConnectResult::Tls,
            Self::Protocol(_) => ConnectResult::Protocol,
            Self::Limit => ConnectResult::Error,
        }
    }

    /// What it counts as among the failures of the cluster; none where the endpoint is not to blame.
    pub fn failure(&self) -> Option<UpstreamFailure> {
        match self {
            Self::Failed(error) if error.kind() == io::ErrorKind::TimedOut => {
                Some(UpstreamFailure::ConnectTimeout)
            }
            Self::Failed(_) => Some(UpstreamFailure::ConnectRefused),
            Self::Timeout => Some(UpstreamFailure::ConnectTimeout),
            Self::Tls(_) => Some(UpstreamFailure::Tls),
            Self::Protocol(_) => Some(UpstreamFailure::Protocol),
            Self::Limit => None,
        }
    }
}

/// Opens one connection. The peer of the client is announced if the cluster asks for it.
pub(super) async fn open(
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<&PeerInfo>,
    wheel: &Wheel,
) -> Result<Opened, ConnectError> {
    let deadline = wheel.now().plus(cluster.settings.connect_timeout);
    tokio::select! {
        biased;
        opened = handshakes(cluster, endpoint, client) => opened,
        () = wheel.sleep_until(deadline) => Err(ConnectError::Timeout),
    }
}

async fn handshakes(
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<&PeerInfo>,
) -> Result<Opened, ConnectError> {
    let options = tcp::ConnectOptions {
        nodelay: true,
        keepalive: cluster.settings.tcp_keepalive.map(|idle| tcp::Keepalive {
            idle,
            ..tcp::Keepalive::default()
        }),
    };
    let mut io = tcp::connect(&endpoint.address, &options)
        .await
        .map_err(ConnectError::Failed)?;
    if let Some(version) = cluster.settings.proxy_protocol {
        announce(&mut io, version, client)
            .await
            .map_err(ConnectError::Failed)?;
    }
    let mut protocol = cluster.settings.protocol;
    if let Some(tls) = &cluster.tls {
        let (secured, info) = tls.connect(io, &endpoint.host).await.map_err(ConnectError::Tls)?;
        io = secured;
        protocol = match (protocol, info.alpn) {
            (Protocol::Auto, Some(Alpn::Http2)) => Protocol::Http2,
            (Protocol::Auto, _) => Protocol::Http1,
            (fixed, _) => fixed,
        };
    }
    match protocol {
        Protocol::Http2 => http2::client::handshake(io)
            .await
            .map(Opened::Http2)
            .map_err(|error| ConnectError::Protocol(error.to_string().into())),
        Protocol::Auto | Protocol::Http1 => Ok(Opened::Http1(http1::client::Connection::new(io))),
    }
}

/// Sends the PROXY header of the client's connection.
async fn announce(
    io: &mut Io,
    version: proxy_protocol::Version,
    client: Option<&PeerInfo>,
) -> io::Result<()> {
    let addresses = client.and_then(|peer| Some((peer.client()?, peer.destination()?)));
    let header = match addresses {
        Some((source, destination)) => proxy_protocol::Header::Tcp(Proxied { source, destination }),
        None => proxy_protocol::Header::Local,
    };
    let mut bytes = Vec::with_capacity(64);
    proxy_protocol::encode(version, &header, &mut bytes);
    io.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Settings;
    use crate::cluster::testing::{World, settings};
    use crate::net::tls::{ClientSettings, ClientTls, MinVersion};
    use crate::wire::testing::{run, secs};

    #[test]
    fn the_proxy_header_is_the_first_thing_that_is_said() {
        run(|tools| async move {
            let world = World::new(
                &tools,
                Settings {
                    proxy_protocol: Some(proxy_protocol::Version::V1),
                    ..settings()
                },
            );
            let client = PeerInfo {
                peer: std::net::SocketAddr::from(([192, 0, 2, 1], 1000)).into(),
                local: std::net::SocketAddr::from(([192, 0, 2, 2], 443)).into(),
                tls: None,
                proxied: None,
            };
            let opened = open(&world.cluster, world.endpoint(), Some(&client), &tools.wheel).await;
            assert!(matches!(opened, Ok(Opened::Http1(_))));
            let (said, _) = world.accept().await.receive().await;
            assert_eq!(said, "PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n");
            // A check of our own is nobody's connection.
            drop(open(&world.cluster, world.endpoint(), None, &tools.wheel).await);
            let (said, _) = world.accept().await.receive().await;
            assert_eq!(said, "PROXY UNKNOWN\r\n");
        });
    }

    #[test]
    fn what_went_wrong_has_the_right_name() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            if let crate::net::SocketAddress::Unix(path) = &world.endpoint().address {
                std::fs::remove_file(path).unwrap();
            }
            let failed = open(&world.cluster, world.endpoint(), None, &tools.wheel).await;
            let error = failed.expect_err("nobody listens");
            assert!(matches!(error, ConnectError::Failed(_)), "{error}");
            assert_eq!(error.failure(), Some(UpstreamFailure::ConnectRefused));
        });
    }

    #[test]
    fn all_handshakes_together_have_one_timeout() {
        run(|tools| async move {
            let mut world = World::new(&tools, settings());
            let tls = ClientTls::load(&ClientSettings {
                server_name: None,
                ca: None,
                identity: None,
                min_version: MinVersion::Tls12,
                insecure_skip_verify: true,
                alpn: Vec::new(),
            });
            Arc::get_mut(&mut world.cluster).unwrap().tls = Some(Arc::new(tls.unwrap()));
            let before = tools.wheel.now();
            // It accepts the connection and then says nothing.
            let failed = open(&world.cluster, world.endpoint(), None, &tools.wheel).await;
            let error = failed.expect_err("nobody answers");
            assert!(matches!(error, ConnectError::Timeout), "{error}");
            let took = tools.wheel.now().since(before);
            assert!(took >= secs(5) && took < secs(6), "{took:?}");
            assert_eq!(error.result(), ConnectResult::Timeout);
        });
    }
}
