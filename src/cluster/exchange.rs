//! One request to one endpoint and its answer, whatever protocol the connection speaks.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, response};
use http_body::{Frame, SizeHint};

use super::Cluster;
use super::connect::ConnectError;
use super::pool::{Freshness, Guard, Lease, Pools, Ticket};
use crate::message::replay::Upload;
use crate::net::PeerInfo;
use crate::telemetry::CloseReason;
use crate::wire::{BodyError, Tunnel, http1, http2};

/// A request as it leaves: everything that is the same for both protocols.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Method. An extended CONNECT is one with `protocol`.
    pub method: &'a Method,
    /// Path and query, or `*`.
    pub target: &'a [u8],
    /// End-to-end fields, `host` included.
    pub headers: &'a HeaderMap,
    /// Fields that we add to them.
    pub added: &'a [(HeaderName, HeaderValue)],
    /// The protocol of an upgrade.
    pub upgrade: Option<&'a HeaderValue>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection ended or failed.
    #[error("connection lost: {0}")]
    Lost(io::Error),
    /// The endpoint said it did not process the request, or it was never sent.
    #[error("not processed: {0}")]
    NotProcessed(h2::Error),
    /// The endpoint reset the stream.
    #[error("stream reset: {0}")]
    Reset(h2::Reason),
    /// The answer breaks the protocol.
    #[error("invalid answer: {0}")]
    Protocol(&'static str),
    /// The client's content failed; not the endpoint's fault.
    #[error("request body: {0}")]
    Request(BodyError),
    /// The request cannot be expressed in the endpoint's protocol.
    #[error("the endpoint's protocol does not carry this upgrade")]
    Unsupported,
}

/// A request on its way and its answer.
#[derive(Debug)]
pub struct Exchange {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Http1 {
        exchange: Box<http1::client::Exchange<Upload>>,
        ticket: Ticket,
    },
    Http2 {
        exchange: Box<http2::client::Exchange<Upload>>,
        counted: Rc<RefCell<Guard>>,
    },
    Done,
}

/// What the endpoint said.
#[derive(Debug)]
pub enum Answer {
    /// A 1xx response to be passed on.
    Interim(StatusCode, HeaderMap),
    /// The final response.
    Final(Box<response::Parts>),
}

/// A connection to an endpoint that is ready for one exchange.
#[derive(Debug)]
pub struct Checkout {
    lease: Lease,
    /// Whether it is encrypted.
    secure: bool,
}

impl Checkout {
    /// Finds or opens a connection.
    ///
    /// # Errors
    /// Why none could be opened.
    pub async fn open(
        pools: &Pools,
        cluster: &Arc<Cluster>,
        index: usize,
        freshness: Freshness,
        client: Option<&Rc<PeerInfo>>,
    ) -> Result<Self, ConnectError> {
        let pool = pools.of(cluster, &cluster.endpoints[index], client.map(|client| &**client));
        Ok(Self {
            lease: Rc::clone(&pool)
                .checkout(cluster, index, freshness, client)
                .await?,
            secure: cluster.tls.is_some(),
        })
    }

    /// Waits until it is known which upgrades the connection carries.
    pub async fn settled(&self) {
        if let Lease::Http2(connection, _) = &self.lease
            && !connection.takes_extended_connect()
        {
            connection.settled().await;
        }
    }

    /// Whether requests on it are HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.lease, Lease::Http2(..))
    }
}

impl Exchange {
    /// Starts the exchange. Nothing is sent before the first poll of an HTTP/1.1 connection.
    ///
    /// # Errors
    /// When the connection takes no more requests, or cannot carry this one.
    pub fn start(checkout: Checkout, outgoing: &Outgoing<'_>, body: Upload) -> Result<Self, ExchangeError> {
        match checkout.lease {
            Lease::Http1(connection, ticket) => {
                let line = http1::client::Outgoing {
                    method: outgoing.method,
                    target: outgoing.target,
                    headers: outgoing.headers,
                    added: outgoing.added,
                    upgrade: outgoing.upgrade,
                };
                let exchange = Box::new(http1::client::Exchange::start(connection, &line, body));
                Ok(Self {
                    kind: Kind::Http1 { exchange, ticket },
                })
            }
            Lease::Http2(connection, counted) => {
                let connect = outgoing.upgrade.is_some();
                if connect && !connection.takes_extended_connect() {
                    return Err(ExchangeError::Unsupported);
                }
                let request = http2_request(outgoing, checkout.secure)?;
                let exchange = http2::client::Exchange::start(&connection, request, body, connect)
                    .map_err(from_http2)?;
                Ok(Self {
                    kind: Kind::Http2 {
                        exchange: Box::new(exchange),
                        counted,
                    },
                })
            }
        }
    }

    /// Whether the connection had been used before.
    pub fn is_reused(&self) -> bool {
        matches!(&self.kind, Kind::Http1 { exchange, .. } if exchange.is_reused())
    }

    /// Whether the endpoint may have seen any of the request.
    pub fn is_sent(&self) -> bool {
        match &self.kind {
            Kind::Http1 { exchange, .. } => exchange.is_sent(),
            Kind::Http2 { .. } | Kind::Done => true,
        }
    }

    /// Whether any byte of an answer arrived.
    pub fn is_answered(&self) -> bool {
        match &self.kind {
            Kind::Http1 { exchange, .. } => exchange.is_answered(),
            Kind::Http2 { .. } | Kind::Done => false,
        }
    }

    /// Sends, and waits for the next response head.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, ExchangeError>> {
        match &mut self.kind {
            Kind::Http1 { exchange, ticket } => Poll::Ready(match ready!(exchange.poll_answer(cx)) {
                Ok(http1::client::Answer::Interim(head)) => Ok(Answer::Interim(head.status, head.headers)),
                Ok(http1::client::Answer::Final(head)) => {
                    if let Some(seconds) = keep_alive_timeout(&head.headers) {
                        ticket.endpoint_says(seconds);
                    }
                    let mut parts = http::Response::new(()).into_parts().0;
                    parts.status = head.status;
                    parts.version = head.version;
                    parts.headers = head.headers;
                    Ok(Answer::Final(Box::new(parts)))
                }
                Err(http1::client::ExchangeError::Lost(error)) => Err(ExchangeError::Lost(error)),
                Err(http1::client::ExchangeError::Protocol(what)) => Err(ExchangeError::Protocol(what)),
                Err(http1::client::ExchangeError::Request(error)) => Err(ExchangeError::Request(error)),
            }),
            Kind::Http2 { exchange, .. } => Poll::Ready(match ready!(exchange.poll_answer(cx)) {
                Ok(http2::client::Answer::Interim(response)) => {
                    let (parts, ()) = response.into_parts();
                    Ok(Answer::Interim(parts.status, parts.headers))
                }
                Ok(http2::client::Answer::Final(response)) => {
                    Ok(Answer::Final(Box::new(response.into_parts().0)))
                }
                Err(error) => Err(from_http2(error)),
            }),
            Kind::Done => Poll::Ready(Err(ExchangeError::Protocol("answered_twice"))),
        }
    }

    /// Polls the content of the final answer. At its end the connection goes back to its pool.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.kind {
            Kind::Http1 { exchange, .. } => ready!(exchange.poll_frame(cx)),
            Kind::Http2 { exchange, .. } => ready!(exchange.poll_frame(cx)),
            Kind::Done => None,
        };
        if frame.is_none() || self.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    /// Ends an exchange whose answer has no (more) content.
    pub fn finish(&mut self) {
        match std::mem::replace(&mut self.kind, Kind::Done) {
            Kind::Http1 { exchange, ticket } => ticket.finish(exchange.into_connection()),
            Kind::Http2 { .. } | Kind::Done => {}
        }
    }

    /// Gives the exchange up and says why its connection is closed.
    pub fn abandon(mut self, reason: CloseReason) {
        match std::mem::replace(&mut self.kind, Kind::Done) {
            Kind::Http1 { ticket, .. } => ticket.close(reason),
            Kind::Http2 { exchange, .. } if reason == CloseReason::Aborted => exchange.time_out(),
            Kind::Http2 { .. } | Kind::Done => {}
        }
    }

    /// Whether the answer has been read to its end.
    pub fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Http1 { exchange, .. } => exchange.is_end_stream(),
            Kind::Http2 { exchange, .. } => exchange.is_end_stream(),
            Kind::Done => true,
        }
    }

    /// Length of what is left of the answer.
    pub fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Http1 { exchange, .. } => exchange.size_hint(),
            Kind::Http2 { exchange, .. } => exchange.size_hint(),
            Kind::Done => SizeHint::with_exact(0),
        }
    }

    /// The raw stream after an accepted upgrade. The ticket counts the connection while the tunnel lives.
    pub fn into_tunnel(mut self) -> Option<(Tunnel, TunnelGuard)> {
        match std::mem::replace(&mut self.kind, Kind::Done) {
            Kind::Http1 { exchange, ticket } => Some((
                exchange.into_tunnel(),
                TunnelGuard {
                    _ticket: Some(ticket),
                    _counted: None,
                },
            )),
            Kind::Http2 { exchange, counted } => Some((
                exchange.into_tunnel()?,
                TunnelGuard {
                    _ticket: None,
                    _counted: Some(counted),
                },
            )),
            Kind::Done => None,
        }
    }
}

/// Keeps a connection counted while it is a tunnel.
#[derive(Debug)]
pub struct TunnelGuard {
    _ticket: Option<Ticket>,
    _counted: Option<Rc<RefCell<Guard>>>,
}

fn from_http2(error: http2::client::ExchangeError) -> ExchangeError {
    match error {
        http2::client::ExchangeError::NotProcessed(error) => ExchangeError::NotProcessed(error),
        http2::client::ExchangeError::Lost(error) => ExchangeError::Lost(error),
        http2::client::ExchangeError::Reset(reason) => ExchangeError::Reset(reason),
        http2::client::ExchangeError::Protocol(what) => ExchangeError::Protocol(what),
        http2::client::ExchangeError::Request(error) => ExchangeError::Request(error),
    }
}

/// The head as HTTP/2 wants it: scheme and authority in the URI, no `host` field (RFC 9113 §8.3.1).
///
/// `:scheme` is that of this connection, because servers refuse one that contradicts it. That of the client's is told
/// by `x-forwarded-proto`.
fn http2_request(outgoing: &Outgoing<'_>, secure: bool) -> Result<Request<()>, ExchangeError> {
    let mut headers = outgoing.headers.clone();
    headers.reserve(outgoing.added.len());
    for (name, value) in outgoing.added {
        headers.append(name, value.clone());
    }
    let host = headers.remove(header::HOST);
    let invalid = |_| ExchangeError::Protocol("invalid_target");
    let mut uri = Uri::builder().scheme(if secure { "https" } else { "http" });
    if let Some(host) = &host {
        uri = uri.authority(host.as_bytes());
    }
    let uri = uri
        .path_and_query(outgoing.target.as_ref())
        .build()
        .map_err(invalid)?;
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    match outgoing.upgrade.and_then(|upgrade| upgrade.to_str().ok()) {
        Some(protocol) => {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        }
        None => *request.method_mut() = outgoing.method.clone(),
    }
    Ok(request)
}

/// Looked up in every answer, and a name that must be parsed first costs three times as much.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// `keep-alive: timeout=N` as HTTP/1.1 servers send it (RFC 2068 §19.7.1.1).
fn keep_alive_timeout(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(&KEEP_ALIVE)?.to_str().ok()?;
    text.split(',')
        .find_map(|part| part.trim().strip_prefix("timeout=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use bellwether_core::Moment;

    use super::*;
    use crate::cluster::testing::{World, content, finish, head, settings, start};
    use crate::cluster::{Protocol, Settings};
    use crate::wire::Inbound;
    use crate::wire::testing::{collect, run, secs, service, sleep, text};

    #[test]
    fn nothing_is_sent_before_somebody_waits() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let mut exchange = world.get().await;
            let mut peer = world.accept().await;
            assert_eq!(peer.receive().await, (String::new(), false));
            assert!(!exchange.is_sent());
            assert!(std::future::poll_fn(|cx| Poll::Ready(exchange.poll_answer(cx).is_pending())).await);
            assert!(exchange.is_sent() && !exchange.is_answered());
            let (sent, _) = peer.receive().await;
            assert!(
                sent.starts_with("GET / HTTP/1.1\r\nhost: localhost\r\n"),
                "{sent}"
            );
            peer.send("HTTP/1.1 200").await;
            sleep(secs(1)).await;
            assert!(std::future::poll_fn(|cx| Poll::Ready(exchange.poll_answer(cx).is_pending())).await);
            assert!(exchange.is_answered());
        });
    }

    #[test]
    fn interim_answers_come_before_the_final_one() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let mut exchange = world.get().await;
            let mut peer = world.accept().await;
            peer.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nkeep-alive: timeout=9\r\ncontent-length: 2\r\n\r\nok")
                .await;
            match std::future::poll_fn(|cx| exchange.poll_answer(cx)).await.unwrap() {
                Answer::Interim(status, headers) => {
                    assert_eq!(
                        (status.as_u16(), &headers["link"]),
                        (103, &HeaderValue::from_static("</a>"))
                    );
                }
                Answer::Final(_) => panic!("the interim answer was lost"),
            }
            assert_eq!(head(&mut exchange).await.unwrap().status.as_u16(), 200);
            assert!(!exchange.is_end_stream());
            assert_eq!(content(&mut exchange).await.unwrap(), "ok");
            // A second less than it said.
            assert_eq!(world.endpoint().state.idle.limit(Moment::ZERO), secs(8));
        });
    }

    #[test]
    fn a_connection_goes_back_only_when_the_answer_has_been_read_to_its_end() {
        run(|tools| async move {
            for (answer, kept) in [
                ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 1),
                ("HTTP/1.1 204 No Content\r\n\r\n", 1),
                (
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                    1,
                ),
                (
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
                    0,
                ),
                ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 0),
                ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more", 0),
            ] {
                let world = World::new(&tools, settings());
                let exchange = world.get().await;
                let mut peer = world.accept().await;
                peer.send(answer).await;
                finish(exchange).await;
                assert_eq!(world.pools.connections(), kept, "{answer}");
                assert_eq!(world.open(), u32::try_from(kept).unwrap(), "{answer}");
            }
            let world = World::new(&tools, settings());
            let mut exchange = world.get().await;
            let mut peer = world.accept().await;
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no").await;
            head(&mut exchange).await.unwrap();
            drop(exchange);
            assert_eq!((world.open(), world.pools.connections()), (0, 0));
        });
    }

    #[test]
    fn how_it_failed_is_told_apart() {
        run(|tools| async move {
            let world = World::new(&tools, settings());
            let mut exchange = world.get().await;
            drop(world.accept().await);
            assert!(matches!(head(&mut exchange).await, Err(ExchangeError::Lost(_))));
            drop(exchange);
            let mut exchange = world.get().await;
            world.accept().await.send("SSH-2.0-x\r\n").await;
            assert!(matches!(
                head(&mut exchange).await,
                Err(ExchangeError::Protocol(_))
            ));
            drop(exchange);
            let mut exchange = world.get().await;
            let mut peer = world.accept().await;
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no").await;
            head(&mut exchange).await.unwrap();
            drop(peer);
            assert!(matches!(content(&mut exchange).await, Err(BodyError::Truncated)));
            drop(exchange);
            assert_eq!(world.open(), 0);
        });
    }

    #[test]
    fn both_protocols_say_the_same_request() {
        run(|tools| async move {
            let settings = Settings {
                protocol: Protocol::Http2,
                ..settings()
            };
            let world = World::new(&tools, settings);
            let describing = service(|inbound: Inbound| async move {
                let (parts, mut body) = inbound.request.into_parts();
                let content = collect(&mut body).await.unwrap();
                let said = format!("{} {} {}", parts.method, parts.uri, content.len());
                assert!(!parts.headers.contains_key(header::HOST));
                text(200, said)
            });
            let drains = world.http2(&tools, &describing);
            assert_eq!(finish(world.get().await).await, "GET http://localhost/ 0");
            let upload = Upload::full(vec![b'x'; 100_000].into());
            assert_eq!(
                finish(world.send(upload).await).await,
                "POST http://localhost/ 100000"
            );
            assert_eq!(drains.borrow().len(), 1);
            // The connection stays open and counted after its exchanges.
            assert_eq!((world.open(), world.pools.connections()), (1, 1));
            sleep(secs(1)).await;
            let checkout = world.checkout().await.unwrap();
            assert!(checkout.is_http2());
            assert_eq!(
                finish(start(checkout, Upload::empty()).unwrap()).await,
                "GET http://localhost/ 0"
            );
        });
    }

    #[test]
    fn an_upgrade_needs_an_endpoint_that_takes_it() {
        run(|tools| async move {
            let world = World::new(
                &tools,
                Settings {
                    protocol: Protocol::Http2,
                    ..settings()
                },
            );
            world.http2(&tools, &service(|_: Inbound| async { text(200, "no") }));
            let checkout = world.checkout().await.unwrap();
            checkout.settled().await;
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("x"))]);
            let outgoing = Outgoing {
                method: &Method::GET,
                target: b"/",
                headers: &headers,
                added: &[],
                upgrade: Some(&HeaderValue::from_static("websocket")),
            };
            let mut exchange = Exchange::start(checkout, &outgoing, Upload::empty()).unwrap();
            assert_eq!(head(&mut exchange).await.unwrap().status.as_u16(), 200);
            assert!(exchange.into_tunnel().is_some());
        });
    }
}
