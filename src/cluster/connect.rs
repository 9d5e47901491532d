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
