//! Exchanges that are not a request and an answer: switches of protocol, and copies for mirrors.
//!
//! A tunnel opens only after the endpoint has agreed (101 in HTTP/1.1, 200 to an extended CONNECT in HTTP/2); until
//! then the request is one like any other. WebSocket is carried over between the two protocols (RFC 8441).

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bellwether_core::limit::Stay;
use bellwether_core::shed::Priority;
use bellwether_core::{Outcome, Phase, Reason};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, response};

use super::Worker;
use super::attempt::{AttemptGuard, Sendable};
use super::body::Body;
use super::cx::RequestCx;
use crate::cluster::exchange::{Answer, Checkout, Exchange, Outgoing};
use crate::cluster::pool::Freshness;
use crate::cluster::{Ask, Cluster, Picked, Tried};
use crate::message::replay::Upload;
use crate::wire::{Reply, Tunnel, tunnel};

/// A mirror that has not answered by then is given up.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(10);
/// What a mirror's answer may have, to keep its connection; it is not looked at.
const MIRROR_BYTES: u64 = 1024 * 1024;

/// An upgrade that changes its form between client and endpoint.
#[derive(Debug)]
pub(super) struct Translated {
    headers: HeaderMap,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// `Upgrade: websocket` becomes extended CONNECT; holds the accept value that the client expects.
    Up { accept: Option<HeaderValue> },
    /// Extended CONNECT becomes `Upgrade: websocket`.
    Down,
}

/// The form in which an endpoint of the other protocol takes this upgrade; none where it can go as it is.
pub(super) fn translate(sendable: &Sendable<'_>, http2: bool, worker: &Worker) -> Option<Translated> {
    sendable.upgrade?;
    match (sendable.extended, http2) {
        (true, true) | (false, false) => None,
        (false, true) => {
            let mut headers = sendable.headers.clone();
            let key = headers.remove(header::SEC_WEBSOCKET_KEY);
            let accept = key.and_then(|key| HeaderValue::from_str(&accept_value(key.as_bytes())).ok());
            Some(Translated {
                headers,
                way: Way::Up { accept },
            })
        }
        (true, false) => {
            let mut headers = sendable.headers.clone();
            let mut nonce = [0; 16];
            let mut dice = worker.dice.borrow_mut();
            nonce[..8].copy_from_slice(&dice.next_u64().to_be_bytes());
            nonce[8..].copy_from_slice(&dice.next_u64().to_be_bytes());
            if let Ok(key) = HeaderValue::from_str(&base64(&nonce)) {
                headers.insert(header::SEC_WEBSOCKET_KEY, key);
            }
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            Some(Translated {
                headers,
                way: Way::Down,
            })
        }
    }
}

impl Translated {
    pub(super) fn outgoing<'a>(&'a self, sendable: &'a Sendable<'a>) -> Outgoing<'a> {
        Outgoing {
            method: sendable.method,
            target: sendable.target.as_bytes(),
            headers: &self.headers,
            added: sendable.added,
            upgrade: sendable.upgrade,
        }
    }

    /// Gives the answer the form that the client expects.
    pub(super) fn answer(&self, head: &mut response::Parts) {
        match &self.way {
            Way::Up { accept } if head.status.is_success() => {
                head.status = StatusCode::SWITCHING_PROTOCOLS;
                head.headers
                    .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                if let Some(accept) = accept {
                    head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
                }
            }
            Way::Down if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                head.status = StatusCode::OK;
                head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            }
            Way::Up { .. } | Way::Down => {}
        }
    }
}

/// Whether the endpoint agreed to switch, in the form the client sees.
pub(super) fn is_accepted(cx: &RequestCx, head: &response::Parts) -> bool {
    match cx.version {
        Version::HTTP_2 => cx.method == Method::CONNECT && head.status.is_success(),
        _ => head.status == StatusCode::SWITCHING_PROTOCOLS,
    }
}

/// The reply that opens the tunnel.
pub(super) fn reply(
    head: Box<response::Parts>,
    exchange: Exchange,
    guard: AttemptGuard,
    idle: Option<Duration>,
    mut cx: Box<RequestCx>,
) -> Reply<Body> {
    cx.phase = Phase::Upgrade;
    cx.timer.clear();
    let start = Box::new(move |mut client: Tunnel| -> crate::wire::LocalFuture<()> {
        Box::pin(async move {
            let Some((mut endpoint, _counted)) = exchange.into_tunnel() else {
                return;
            };
            let wheel = cx.worker.tools.wheel.clone();
            let carried = tunnel::copy(&mut client, &mut endpoint, &wheel, idle).await;
            cx.bytes_out = carried.down;
            if carried.idle {
                cx.end(Reason::StreamIdle);
            } else {
                cx.complete();
            }
            guard.succeed();
        })
    });
    Reply {
        head,
        body: Body::none(),
        tunnel: Some(start),
        idle,
    }
}

/// Sends a copy of a request on a task of its own; nothing is learned from it and nobody waits for it.
pub(super) fn mirror(cx: &RequestCx, cluster: Arc<Cluster>, sendable: &Sendable<'_>, content: Bytes) {
    let worker = std::rc::Rc::clone(&cx.worker);
    let (method, target) = (sendable.method.clone(), sendable.target.to_owned());
    let (headers, added) = (sendable.headers.clone(), sendable.added.to_vec());
    tokio::task::spawn_local(async move {
        let now = worker.tools.wheel.now();
        let ask = Ask {
            tried: &Tried::new(),
            hash: None,
            may_probe: false,
            // The first to go without.
            priority: Priority::Low,
            stay: Stay::Brief,
        };
        let entered = cluster.enter(&ask, now, &mut worker.dice.borrow_mut());
        let Ok((_seat, picked)) = entered else { return };
        let Picked {
            index, seat: _place, ..
        } = picked;
        let endpoint = &cluster.endpoints[index];
        let send = async {
            let checkout = Checkout::open(&worker.pools, &cluster, index, Freshness::Any, None)
                .await
                .ok()?;
            let outgoing = Outgoing {
                method: &method,
                target: target.as_bytes(),
                headers: &headers,
                added: &added,
                upgrade: None,
            };
            let mut exchange = Exchange::start(checkout, &outgoing, Upload::full(content)).ok()?;
            while let Answer::Interim(..) = poll_fn(|task| exchange.poll_answer(task)).await.ok()? {}
            let mut swallowed = 0;
            while swallowed < MIRROR_BYTES {
                let Some(frame) = poll_fn(|task| exchange.poll_frame(task)).await else {
                    break;
                };
                swallowed += frame.ok()?.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(())
        };
        endpoint.state.load.begin();
        let mut send = std::pin::pin!(send);
        let timer = worker.tools.wheel.timer();
        timer.set(now.plus(MIRROR_TIMEOUT));
        poll_fn(|task| {
            if send.as_mut().poll(task).is_ready() {
                return Poll::Ready(());
            }
            timer.poll_expired(task)
        })
        .await;
        endpoint.state.load.finish(Duration::ZERO, Outcome::Ignored, now);
    });
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
fn accept_value(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID);
    base64(context.finish().as_ref())
}

/// RFC 4648 §4, for two short values.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(ALPHABET[(word >> (18 - 6 * place) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(
            accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn base64_pads_as_the_rfc_says() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
