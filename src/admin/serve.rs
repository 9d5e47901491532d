//! Accepts operators' connections and serves a router on them.
//!
//! The limits are small and fixed: this listener is for a few people, probes and scrapers. What they cannot do is hold
//! it: heads must arrive in time, contents are small, and connections above the limit are closed at once.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::net::tcp::{self, Listener};
use crate::net::tls::ServerTls;
use crate::net::{Io, PeerInfo};

/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first wait for a request to the end of its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a head.
const MAX_HEAD: usize = 32 * 1024;
/// How long answers that are being sent may take once we were told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until cancelled, then finishes the answers that are being sent, for two seconds at most.
pub async fn serve(
    listener: Listener,
    router: Router,
    tls: Option<Arc<ServerTls>>,
    cancel: CancellationToken,
) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tracker = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, listener = %listener.local_addr(), "cannot accept operators' connections");
                let pause = if tcp::is_exhausted(&error) { 200 } else { 20 };
                sleep(Duration::from_millis(pause)).await;
                continue;
            }
        };
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            tracing::warn!(peer = %peer.peer, "too many operators' connections, closed one");
            continue;
        };
        let (router, tls) = (router.clone(), tls.clone());
        let (cancel, abort) = (cancel.clone(), abort.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = connection(io, peer, router, tls, cancel) => {}
            }
            drop(seat);
        });
    }
    tracker.close();
    if timeout(STOP_TIMEOUT, tracker.wait()).await.is_err() {
        abort.cancel();
        tracker.wait().await;
    }
}

async fn connection(
    io: Io,
    mut peer: PeerInfo,
    router: Router,
    tls: Option<Arc<ServerTls>>,
    cancel: CancellationToken,
) {
    let io = match tls {
        None => io,
        Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(io)).await {
            Ok(Ok((io, info))) => {
                peer.tls = Some(info);
                io
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, peer = %peer.peer, "an operator's TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    let asked = Arc::new(Notify::new());
    let asking = Arc::clone(&asked);
    let service = router.map_request(move |request: http::Request<hyper::body::Incoming>| {
        asking.notify_one();
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        // A shutdown in good order closes a connection whose first request has not been read yet, though it may have
        // been sent; so that one is waited for, as long as `serve` waits.
        () = async {
            cancel.cancelled().await;
            asked.notified().await;
        } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an operator's connection ended early");
    }
}
