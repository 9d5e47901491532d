//! One downstream connection: PROXY header, TLS, protocol, requests.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bellwether_core::Dice;
use bytes::BytesMut;

use super::Place;
use crate::net::proxy_protocol::{self, Header};
use crate::net::tls::{Alpn, HandshakeFailure};
use crate::net::wheel::Timer;
use crate::net::{Io, PeerInfo};
use crate::proxy::{Frontend, Worker};
use crate::snapshot::Listener;
use crate::snapshot::cell::World;
use crate::telemetry::{ConnectionRejection, Side, TlsResult};
use crate::wire::{Drain, http1, http2};

/// What HTTP/2 with prior knowledge begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The stream.
    pub io: Io,
    /// Who is at the other end.
    pub peer: PeerInfo,
    /// Its place among the connections of the listener.
    pub place: Place,
}

/// Serves a connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    source: World,
    listener: Arc<Listener>,
    accepted: Accepted,
    drain: Rc<Drain>,
) {
    let metrics = Arc::clone(&listener.metrics);
    metrics.connection_opened(worker.id);
    let open = Open {
        worker: Rc::clone(&worker),
        listener: Arc::clone(&listener),
    };
    if let Err(rejection) = run(worker, source, listener, accepted, drain).await {
        metrics.connection_rejected(open.worker.id, rejection);
    }
    drop(open);
}

/// Counts the connection as open, also while it unwinds.
struct Open {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.listener.metrics.connection_closed(self.worker.id);
        if std::thread::panicking() {
            self.worker.metrics.invariant_violated("connection");
        }
    }
}

async fn run(
    worker: Rc<Worker>,
    source: World,
    listener: Arc<Listener>,
    accepted: Accepted,
    drain: Rc<Drain>,
) -> Result<(), ConnectionRejection> {
    let Accepted {
        mut io,
        mut peer,
        mut place,
    } = accepted;
    let wheel = worker.tools.wheel.clone();
    let timer = wheel.timer();
    timer.set(wheel.now().plus(listener.handshake_timeout));
    if let Some(presence) = listener
        .proxy_protocol
        .filter(|_| listener.trusts(peer.peer.ip().map(|peer| peer.ip())))
    {
        let read = within(&timer, Box::pin(proxy_protocol::read_header(io, presence))).await;
        let (header, rest) = read.ok_or(ConnectionRejection::Timeout)?.map_err(|error| {
            tracing::debug!(%error, "PROXY header");
            ConnectionRejection::ProxyProtocol
        })?;
        io = rest;
        if let Some(Header::Tcp(proxied)) = header {
            peer.proxied = Some(proxied);
        }
    }
    if let (Some(limit), Some(client)) = (listener.max_connections_per_ip, peer.client())
        && !place.for_client(client.ip(), limit)
    {
        return Err(ConnectionRejection::LimitPerIp);
    }
    let mut chosen = None;
    if let Some(tls) = &listener.tls {
        match within(&timer, Box::pin(tls.accept(io))).await {
            Some(Ok((secured, info))) => {
                let result = if info.resumed {
                    TlsResult::Resumed
                } else {
                    TlsResult::Full
                };
                worker.metrics.tls_handshake(worker.id, Side::Downstream, result);
                io = secured;
                chosen = info.alpn;
                peer.tls = Some(info);
            }
            Some(Err(error)) => {
                worker
                    .metrics
                    .tls_handshake(worker.id, Side::Downstream, tls_result(error.failure));
                tracing::debug!(failure = error.failure.as_str(), error = %error.source, "TLS handshake");
                return Err(ConnectionRejection::Tls);
            }
            None => {
                worker
                    .metrics
                    .tls_handshake(worker.id, Side::Downstream, TlsResult::Timeout);
                return Err(ConnectionRejection::Timeout);
            }
        }
    }
    let http2 = match (&listener.http1, &listener.http2, chosen) {
        (_, Some(_), Some(Alpn::Http2)) | (None, Some(_), _) => true,
        (_, None, _) | (Some(_), Some(_), Some(Alpn::Http1)) => false,
        (Some(http1), Some(_), None) => {
            // A client may take its time before it says anything at all.
            timer.set(wheel.now().plus(http1.keep_alive));
            let Some(sniffed) = within(&timer, Box::pin(sniff(io))).await else {
                return Ok(());
            };
            let Ok((sniffed, http2)) = sniffed else {
                return Ok(());
            };
            io = sniffed;
            http2
        }
    };
    drop(timer);
    let tools = worker.tools.clone();
    let mut dice: Dice = worker.dice.borrow_mut().split();
    let settings = (listener.http1.clone(), listener.http2.clone());
    let service = Rc::new(Frontend::new(worker, source, listener, peer));
    // What a connection waits in is as large as the largest thing that it could be doing: only HTTP/1.1, whose
    // connections are many and idle, stays in the task itself. Before, every one of them was 5.6 KiB.
    match (http2, settings) {
        (true, (_, Some(settings))) => {
            let ended = Box::pin(http2::server::serve(
                io, service, settings, tools, &drain, &mut dice,
            ))
            .await;
            tracing::trace!(?ended, "connection");
            match ended {
                http2::server::Ended::ResetFlood => return Err(ConnectionRejection::Flood),
                http2::server::Ended::HeadTimeout => return Err(ConnectionRejection::Timeout),
                http2::server::Ended::Cleanly | http2::server::Ended::Failed(_) => {}
            }
        }
        (false, (Some(settings), _)) => {
            let ended = http1::server::serve(io, service, settings, tools, &drain, &mut dice).await;
            tracing::trace!(?ended, "connection");
        }
        (true, (_, None)) | (false, (None, _)) => {}
    }
    drop(place);
    Ok(())
}

/// Looks at the first bytes: HTTP/2 with prior knowledge, or HTTP/1.1.
async fn sniff(mut io: Io) -> io::Result<(Io, bool)> {
    let mut seen = BytesMut::with_capacity(1024);
    let http2 = loop {
        let count = poll_fn(|cx| tokio_util::io::poll_read_buf(Pin::new(&mut io), cx, &mut seen)).await?;
        let compared = seen.len().min(PREFACE.len());
        if seen[..compared] != PREFACE[..compared] {
            break false;
        }
        if compared == PREFACE.len() {
            break true;
        }
        if count == 0 {
            // Left before it was clear; the HTTP/1.1 side deals with the rest.
            break false;
        }
    };
    Ok((io.prefixed(seen.freeze()), http2))
}

/// The future's result, or none when the timer was first.
async fn within<F: Future>(timer: &Timer, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.poll_expired(cx).map(|()| None)
    })
    .await
}

fn tls_result(failure: HandshakeFailure) -> TlsResult {
    match failure {
        HandshakeFailure::Closed | HandshakeFailure::Io => TlsResult::Closed,
        HandshakeFailure::NoCertificate
        | HandshakeFailure::Expired
        | HandshakeFailure::UnknownIssuer
        | HandshakeFailure::WrongName
        | HandshakeFailure::Revoked
        | HandshakeFailure::NameNotAllowed
        | HandshakeFailure::BadCertificate
        | HandshakeFailure::RefusedByPeer => TlsResult::Certificate,
        HandshakeFailure::NotTls
        | HandshakeFailure::Incompatible
        | HandshakeFailure::Alpn
        | HandshakeFailure::Protocol => TlsResult::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a future returned by `_serve` would take, without calling it.
    fn size<F: Future>(
        _serve: impl FnOnce(Rc<Worker>, World, Arc<Listener>, Accepted, Rc<Drain>) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_connection_is_small() {
        let bytes = size(serve);
        assert!(bytes <= 3 * 1024, "{bytes} bytes");
    }
}
