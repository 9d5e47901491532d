//! One HTTP/1.1 connection of a client.
//!
//! The connection is one task and owns everything: it reads a head, calls the service, writes the answer, and starts
//! again. The request body is read through the same stream by whoever polls it, which is the same task, so no channel
//! and no second task stand between a client and an upstream. Between requests the task holds a socket and little
//! else: buffers of a connection that stays idle are given back.
//!
//! A client that closes its side while its answer is awaited has gone (the answer would have nobody to read it);
//! a client that still uploads is read only as fast as the body is wanted.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bellwether_core::{Dice, Moment};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWrite;

use super::head::{self, Framing, RequestHead};
use super::{Decoder, HEAD_READ, Output, encode, poll_fill};
use crate::net::Io;
use crate::net::wheel::Timer;
use crate::wire::pace::Pace;
use crate::wire::{
    BodyError, Drain, DrainMember, Early, Inbound, Refusal, Reply, RequestBody as AnyBody, Service, Toolbox,
    Tunnel,
};

/// Limits and timeouts of a listener's HTTP/1.1 connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits of a head.
    pub limits: head::Limits,
    /// First byte to end of a head.
    pub headers: Duration,
    /// Between two bytes of a body that is wanted.
    pub body_idle: Option<Duration>,
    /// A connection without a request.
    pub keep_alive: Duration,
    /// After this a connection ends with its current request; jittered by a tenth.
    pub max_age: Option<Duration>,
    /// Requests of one connection.
    pub max_requests: Option<u32>,
}

/// How long an idle connection keeps its buffers.
const SHRINK_AFTER: Duration = Duration::from_millis(500);
/// Unread request bytes that are swallowed to keep a connection, or to let the client read our last answer.
const DRAIN_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(2);
/// How long an idle connection is kept once draining began: a client that was about to send its next request gets an
/// answer that says close, instead of a reset that it may not be allowed to try again.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Interim responses that a client leaves unread are dropped beyond this; nobody depends on them.
const INTERIM_BYTES: usize = 16 * 1024;

/// How a connection ended, for logs and counters.
#[derive(Debug)]
pub enum Ended {
    /// In good order: idle, drained, closed by the client between requests, or handed to a tunnel.
    Cleanly,
    /// The client left while its answer was awaited or written.
    ClientGone,
    /// What arrived was not a request.
    Refused(Refusal),
    /// The stream failed.
    Io(io::Error),
    /// The answer could not be completed, so the connection was cut.
    AnswerFailed(BodyError),
}

/// Serves one connection until it ends.
pub async fn serve<S: Service>(
    io: Io,
    service: Rc<S>,
    settings: Arc<Settings>,
    tools: Toolbox,
    drain: &Rc<Drain>,
    dice: &mut Dice,
) -> Ended {
    let now = tools.wheel.clock().now();
    let connection = Connection {
        shared: Rc::new(Shared {
            io: RefCell::new(Some(io)),
            input: RefCell::new(Input {
                buffer: BytesMut::new(),
                scanned: 0,
                decoder: Decoder::Done,
                pace: Pace::default(),
                failed: false,
            }),
            output: RefCell::new(Output::default()),
            continue_owed: Cell::new(false),
            answering: Cell::new(false),
            interim: Cell::new(false),
            timer: tools.wheel.timer(),
            body_idle: settings.body_idle,
        }),
        old_at: settings
            .max_age
            .map(|age| now.plus(age.mul_f64(0.9 + 0.2 * dice.unit()))),
        requests: 0,
        drain: drain.join(),
        settings,
        tools,
    };
    connection.run(service).await
}

struct Connection {
    shared: Rc<Shared>,
    settings: Arc<Settings>,
    tools: Toolbox,
    drain: DrainMember,
    old_at: Option<Moment>,
    requests: u32,
}

/// What the connection task and the request body both touch, never at the same time.
#[derive(Debug)]
struct Shared {
    io: RefCell<Option<Io>>,
    input: RefCell<Input>,
    output: RefCell<Output>,
    /// The client waits for `100 Continue` before it sends the body.
    continue_owed: Cell<bool>,
    /// The final head has been written, so nothing interim may follow.
    answering: Cell<bool>,
    /// The client understands interim responses.
    interim: Cell<bool>,
    timer: Timer,
    body_idle: Option<Duration>,
}

#[derive(Debug)]
struct Input {
    buffer: BytesMut,
    scanned: usize,
    decoder: Decoder,
    /// How fast the content of the present request comes.
    pace: Pace,
    /// The body could not be read; nothing that follows can be trusted to be a request.
    failed: bool,
}

/// What a connection between two requests waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// It has not waited yet.
    Nothing,
    /// A first byte, with buffers at hand.
    Awake,
    /// A first byte, holding nothing but the socket.
    Asleep,
    /// A first byte, for a last time.
    Draining,
    /// The rest of a head.
    Head,
}

enum Next {
    Request(Box<RequestHead>, u64),
    Close,
    /// And whether the method is known to be HEAD.
    Bad(Refusal, bool),
    Failed(io::Error),
    Gone,
}

impl Connection {
    async fn run<S: Service>(mut self, service: Rc<S>) -> Ended {
        loop {
            let (head, head_bytes) = match self.next().await {
                Next::Request(head, bytes) => (head, bytes),
                Next::Close => return Ended::Cleanly,
                Next::Failed(error) => return gone(error),
                Next::Gone => return Ended::ClientGone,
                Next::Bad(refusal, head_only) => return self.refuse(&*service, refusal, head_only).await,
            };
            self.requests += 1;
            let exchange = self.exchange(*head, head_bytes);
            let may_continue = exchange.keep_alive;
            let mut call = Box::pin(service.call(exchange.inbound));
            let reply = match self.await_reply(call.as_mut()).await {
                Ok(reply) => reply,
                Err(ended) => return ended,
            };
            drop(call);
            match self
                .answer(&exchange.method, exchange.version, may_continue, reply)
                .await
            {
                Ok(After::Continue) if self.swallow().await => {}
                Ok(After::Continue | After::Close) => {
                    self.linger().await;
                    return Ended::Cleanly;
                }
                Ok(After::Tunnel(start)) => {
                    if let Some(tunnel) = self.into_tunnel() {
                        start(tunnel).await;
                    }
                    return Ended::Cleanly;
                }
                Err(ended) => return ended,
            }
        }
    }

    /// Waits for the next head.
    ///
    /// A head that is there, or arrives in one read, sets no timer and reads no clock.
    async fn next(&mut self) -> Next {
        let shared = &*self.shared;
        let wheel = &self.tools.wheel;
        let mut wait = Wait::Nothing;
        let mut fresh = false;
        let next = poll_fn(|cx| {
            let mut input = shared.input.borrow_mut();
            let input = &mut *input;
            loop {
                if !input.buffer.is_empty() {
                    let before = input.buffer.len();
                    let head_only = head::is_to_head(&input.buffer);
                    match head::parse_request(&mut input.buffer, &self.settings.limits, &mut input.scanned) {
                        Ok(Some(head)) => {
                            input.scanned = 0;
                            let bytes = (before - input.buffer.len()) as u64;
                            return Poll::Ready(Next::Request(Box::new(head), bytes));
                        }
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Next::Bad(Refusal::Head(error), head_only)),
                    }
                }
                let begun = head::has_begun(&input.buffer);
                let mut io = shared.io.borrow_mut();
                let Some(io) = io.as_mut() else {
                    return Poll::Ready(Next::Close);
                };
                match poll_fill(cx, io, &mut input.buffer, HEAD_READ) {
                    Poll::Ready(Ok(0)) if begun => return Poll::Ready(Next::Gone),
                    Poll::Ready(Ok(0)) => return Poll::Ready(Next::Close),
                    Poll::Ready(Ok(_)) => {
                        fresh = true;
                        continue;
                    }
                    Poll::Ready(Err(error)) if begun => return Poll::Ready(Next::Failed(error)),
                    // However a client ends an idle connection, nothing is lost by it.
                    Poll::Ready(Err(_)) => return Poll::Ready(Next::Close),
                    Poll::Pending => {}
                }
                if begun && wait != Wait::Head {
                    // Slow heads are measured from their first byte, however often more of them arrives.
                    wait = Wait::Head;
                    shared.timer.set(wheel.now().plus(self.settings.headers));
                } else if wait == Wait::Nothing {
                    wait = Wait::Awake;
                    // Good enough for a nap: a value that is too old only makes it begin earlier.
                    let nap = SHRINK_AFTER.min(self.settings.keep_alive);
                    shared.timer.set(wheel.recent().plus(nap));
                }
                // A request that has begun is still served while draining.
                if wait != Wait::Head && wait != Wait::Draining && self.drain.poll_draining(cx) {
                    wait = Wait::Draining;
                    shared.timer.set(wheel.now().plus(DRAIN_GRACE));
                }
                if shared.timer.poll_expired(cx).is_ready() {
                    match wait {
                        Wait::Head => {
                            let head_only = head::is_to_head(&input.buffer);
                            return Poll::Ready(Next::Bad(Refusal::HeadTimeout, head_only));
                        }
                        Wait::Awake => {
                            wait = Wait::Asleep;
                            shared.output.borrow_mut().shrink(0);
                            let now = wheel.now();
                            let keep_alive = self.tools.level().idle_timeout(self.settings.keep_alive);
                            let until = now.plus(keep_alive.saturating_sub(SHRINK_AFTER));
                            // An old connection is told so with its next answer; nobody comes for it if there is none.
                            let until = self.old_at.map_or(until, |old| old.max(now).min(until));
                            shared.timer.set(until);
                            continue;
                        }
                        Wait::Nothing | Wait::Asleep | Wait::Draining => return Poll::Ready(Next::Close),
                    }
                }
                if wait == Wait::Asleep && input.buffer.is_empty() {
                    input.buffer = BytesMut::new();
                }
                return Poll::Pending;
            }
        })
        .await;
        if !fresh {
            // It was pipelined, and the answer before it may have taken long.
            wheel.now();
        }
        next
    }

    /// Turns a head into what the service gets.
    fn exchange(&self, head: RequestHead, head_bytes: u64) -> Exchange {
        let shared = &self.shared;
        let mut input = shared.input.borrow_mut();
        input.decoder = Decoder::new(head.framing);
        input.pace = Pace::default();
        input.failed = false;
        let has_body = !input.decoder.is_done();
        drop(input);
        shared.timer.clear();
        shared.answering.set(false);
        shared.interim.set(head.version == Version::HTTP_11);
        shared
            .continue_owed
            .set(head.expect_continue && has_body && head.version == Version::HTTP_11);
        let body = if has_body {
            AnyBody::Http1(RequestBody {
                shared: Rc::clone(shared),
            })
        } else {
            AnyBody::Empty
        };
        let method = head.method.clone();
        let version = head.version;
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.version_mut() = version;
        *request.headers_mut() = head.headers;
        let early = if version == Version::HTTP_11 {
            Early::Http1(Interim {
                shared: Rc::clone(shared),
            })
        } else {
            Early::None
        };
        let keep_alive = head.keep_alive && self.settings.max_requests.is_none_or(|max| self.requests < max);
        Exchange {
            inbound: Inbound {
                request,
                early,
                head_bytes,
            },
            method,
            version,
            keep_alive,
        }
    }

    /// Drives the service, writes interim responses, and notices a client that leaves.
    async fn await_reply<B>(
        &self,
        mut call: Pin<&mut impl Future<Output = Reply<B>>>,
    ) -> Result<Reply<B>, Ended> {
        poll_fn(|cx| {
            if let Poll::Ready(reply) = call.as_mut().poll(cx) {
                return Poll::Ready(Ok(reply));
            }
            if let Poll::Ready(Err(error)) = self.shared.poll_flush(cx) {
                return Poll::Ready(Err(gone(error)));
            }
            match self.shared.poll_client_gone(cx) {
                Poll::Ready(ended) => Poll::Ready(Err(ended)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Writes one answer.
    async fn answer<B>(
        &self,
        method: &Method,
        version: Version,
        may_continue: bool,
        reply: Reply<B>,
    ) -> Result<After, Ended>
    where
        B: Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        let Reply {
            head,
            body,
            tunnel,
            idle,
        } = reply;
        let mut body = pin!(body);
        let shared = &*self.shared;
        shared.answering.set(true);
        let now = self.tools.wheel.recent();
        let upgraded = tunnel.is_some() && head.status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded && !shared.input.borrow().decoder.is_done() {
            // What is left of the content would be taken for the other protocol (RFC 9110 §7.8).
            return Err(Ended::AnswerFailed(BodyError::Malformed(
                "upgraded inside a request",
            )));
        }
        let aged = self.old_at.is_some_and(|old| now >= old);
        let keep_alive = may_continue
            && !aged
            && !self.drain.is_leaving()
            && !says_close(&head.headers)
            && self.may_swallow(head.status);
        let (framing, bodiless) = answer_framing(method, version, head.status, &head.headers, &*body);
        let keep_alive = keep_alive && framing != Framing::UntilClose;
        {
            let mut output = shared.output.borrow_mut();
            let connection = match head.headers.get(header::UPGRADE) {
                Some(protocol) if upgraded => encode::Connection::Upgrade(protocol),
                _ if keep_alive => encode::Connection::KeepAlive,
                _ => encode::Connection::Close,
            };
            let date = self.tools.date.get(now);
            encode::response_head(
                &mut output.flat,
                version,
                head.status,
                &head.headers,
                framing,
                connection,
                Some(date.as_bytes()),
            );
        }
        let chunked = framing == Framing::Chunked;
        let mut left = match framing {
            Framing::Length(length) if !bodiless => Some(length),
            _ => None,
        };
        let mut ended = bodiless || upgraded;
        let mut stall: Option<(Timer, u64)> = None;
        poll_fn(|cx| {
            let mut wrote_nothing = false;
            loop {
                while !ended && shared.output.borrow().has_room() {
                    match body.as_mut().poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            let mut output = shared.output.borrow_mut();
                            match frame.into_data() {
                                Ok(data) => {
                                    if let Some(left) = left.as_mut() {
                                        // More than announced would be read as the next answer.
                                        let Some(rest) = left.checked_sub(data.len() as u64) else {
                                            return Poll::Ready(Err(Ended::AnswerFailed(
                                                BodyError::Malformed("longer than its content-length"),
                                            )));
                                        };
                                        *left = rest;
                                    }
                                    output.push_data(data, chunked);
                                }
                                Err(frame) => {
                                    if let (true, Ok(trailers)) = (chunked, frame.into_trailers()) {
                                        encode::last_chunk(&mut output.flat, Some(&trailers));
                                        ended = true;
                                    }
                                }
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            return Poll::Ready(Err(Ended::AnswerFailed(error)));
                        }
                        Poll::Ready(None) => {
                            ended = true;
                            if left.is_some_and(|left| left > 0) {
                                return Poll::Ready(Err(Ended::AnswerFailed(BodyError::Truncated)));
                            }
                            if chunked {
                                encode::last_chunk(&mut shared.output.borrow_mut().flat, None);
                            }
                        }
                        Poll::Pending => {
                            wrote_nothing = true;
                            break;
                        }
                    }
                }
                match shared.poll_flush(cx) {
                    Poll::Ready(Ok(())) if ended => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) if !wrote_nothing => {}
                    Poll::Ready(Ok(())) => {
                        return match shared.poll_client_gone(cx) {
                            Poll::Ready(gone) => Poll::Ready(Err(gone)),
                            Poll::Pending => Poll::Pending,
                        };
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(gone(error))),
                    Poll::Pending => {
                        // Nobody reads at the other end; progress is counted in bytes the socket took.
                        let Some(idle) = idle else { return Poll::Pending };
                        let written = shared.output.borrow().written;
                        let (timer, seen) = stall.get_or_insert_with(|| (self.tools.wheel.timer(), u64::MAX));
                        if *seen != written {
                            *seen = written;
                            timer.set(self.tools.wheel.now().plus(idle));
                        }
                        return match timer.poll_expired(cx) {
                            Poll::Ready(()) => Poll::Ready(Err(Ended::AnswerFailed(BodyError::Stalled))),
                            Poll::Pending => Poll::Pending,
                        };
                    }
                }
            }
        })
        .await
        .inspect_err(|ended| self.cut(ended, framing))?;
        if let (true, Some(start)) = (upgraded, tunnel) {
            return Ok(After::Tunnel(start));
        }
        Ok(if keep_alive { After::Continue } else { After::Close })
    }

    /// The answer broke off: what there is of it still goes out, and the client can tell that it is not complete.
    fn cut(&self, ended: &Ended, framing: Framing) {
        let shared = &*self.shared;
        let Ended::AnswerFailed(error) = ended else { return };
        if !matches!(error, BodyError::Stalled) {
            // One attempt, without waiting for anybody.
            drop(shared.poll_flush(&mut Context::from_waker(Waker::noop())));
        }
        if framing == Framing::UntilClose
            && let Some(io) = shared.io.borrow_mut().as_mut()
        {
            // Without a length, an orderly close would look like a complete answer.
            io.abort();
        }
    }

    /// Whether the connection may go on although the request has not been read to its end. If not, the answer says so.
    fn may_swallow(&self, status: StatusCode) -> bool {
        let shared = &*self.shared;
        let input = shared.input.borrow();
        if input.decoder.is_done() {
            return input.decoder.is_reusable();
        }
        // Unread content of a client that still waits for `100 Continue` will never come.
        if input.failed || shared.continue_owed.get() {
            return false;
        }
        // Whoever is refused early should not have to send everything; whoever is answered early may be still read.
        let refused = status.is_client_error() || status.is_server_error();
        !refused
            || input
                .decoder
                .left()
                .is_some_and(|left| left <= DRAIN_BYTES as u64)
    }

    /// Swallows what is left of the request, if that is little and comes soon.
    async fn swallow(&self) -> bool {
        let shared = &*self.shared;
        if shared.input.borrow().decoder.is_done() {
            return shared.input.borrow().decoder.is_reusable();
        }
        shared.timer.set(self.tools.wheel.now().plus(LINGER));
        let mut swallowed = 0;
        poll_fn(|cx| {
            let mut input = shared.input.borrow_mut();
            let input = &mut *input;
            let mut io = shared.io.borrow_mut();
            let Some(io) = io.as_mut().filter(|_| !input.failed) else {
                return Poll::Ready(false);
            };
            loop {
                match input.decoder.poll_frame(cx, io, &mut input.buffer) {
                    Poll::Ready(Some(Ok(frame))) => {
                        swallowed += frame.data_ref().map_or(0, Bytes::len);
                        if swallowed > DRAIN_BYTES {
                            return Poll::Ready(false);
                        }
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                    Poll::Ready(None) => return Poll::Ready(input.decoder.is_reusable()),
                    Poll::Pending => return shared.timer.poll_expired(cx).map(|()| false),
                }
            }
        })
        .await
    }

    async fn refuse<S: Service>(&self, service: &S, refusal: Refusal, head_only: bool) -> Ended {
        let (head, content) = service.refuse(refusal).into_parts();
        let now = self.tools.wheel.now();
        {
            let mut output = self.shared.output.borrow_mut();
            encode::response_head(
                &mut output.flat,
                Version::HTTP_11,
                head.status,
                &head.headers,
                Framing::Length(content.len() as u64),
                encode::Connection::Close,
                Some(self.tools.date.get(now).as_bytes()),
            );
            if !head_only {
                output.flat.extend_from_slice(&content);
            }
        }
        self.shared.timer.set(now.plus(LINGER));
        let sent = poll_fn(|cx| {
            if self.shared.timer.poll_expired(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.shared.poll_flush(cx)
        })
        .await;
        if sent.is_ok() {
            self.linger().await;
        }
        Ended::Refused(refusal)
    }

    /// Closes so that the client can read our last answer although it may still be sending (RFC 9112 §9.6).
    async fn linger(&self) {
        let shared = &*self.shared;
        let Some(mut io) = shared.io.borrow_mut().take() else {
            return;
        };
        shared.timer.set(self.tools.wheel.now().plus(LINGER));
        let mut scratch = BytesMut::with_capacity(8 * 1024);
        let mut swallowed = 0;
        let mut shut = false;
        poll_fn(|cx| {
            loop {
                if !shut {
                    match Pin::new(&mut io).poll_shutdown(cx) {
                        Poll::Ready(Ok(())) => shut = true,
                        Poll::Ready(Err(_)) => return Poll::Ready(()),
                        Poll::Pending => {}
                    }
                }
                match poll_fill(cx, &mut io, &mut scratch, 8 * 1024) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(count)) => {
                        swallowed += count;
                        scratch.clear();
                        if swallowed > DRAIN_BYTES {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Pending if shared.timer.poll_expired(cx).is_ready() => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    fn into_tunnel(self) -> Option<Tunnel> {
        let io = self.shared.io.borrow_mut().take()?;
        let early = self.shared.input.borrow_mut().buffer.split().freeze();
        Some(Tunnel::stream(io, early))
    }
}

struct Exchange {
    inbound: Inbound,
    method: Method,
    version: Version,
    keep_alive: bool,
}

enum After {
    Continue,
    Close,
    Tunnel(crate::wire::TunnelStart),
}

fn gone(error: io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::UnexpectedEof => Ended::ClientGone,
        _ => Ended::Io(error),
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONNECTION)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// How an answer is framed, and whether it has no content by definition (RFC 9112 §6.3).
fn answer_framing<B: Body>(
    method: &Method,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    body: &B,
) -> (Framing, bool) {
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return (Framing::None, true);
    }
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // What GET would have announced; nothing is sent.
        // An empty body says nothing here: it is that of an answer to HEAD.
        let announced =
            head::declared_length(headers).or(body.size_hint().exact().filter(|length| *length > 0));
        return (announced.map_or(Framing::None, Framing::Length), true);
    }
    match body.size_hint().exact() {
        Some(length) => (Framing::Length(length), false),
        None if version == Version::HTTP_11 => (Framing::Chunked, false),
        None => (Framing::UntilClose, false),
    }
}

impl Shared {
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.output.borrow_mut();
        if output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match self.io.borrow_mut().as_mut() {
            Some(io) => output.poll_flush(cx, io),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Watches for the end of the stream while nothing else reads from it. Early bytes of a next request are kept, up
    /// to one head's worth.
    fn poll_client_gone(&self, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut input = self.input.borrow_mut();
        if !input.decoder.is_done() || input.buffer.len() >= HEAD_READ {
            return Poll::Pending;
        }
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut() else {
            return Poll::Pending;
        };
        loop {
            match ready!(poll_fill(cx, io, &mut input.buffer, HEAD_READ)) {
                Ok(0) => return Poll::Ready(Ended::ClientGone),
                Ok(_) if input.buffer.len() >= HEAD_READ => return Poll::Pending,
                Ok(_) => {}
                Err(error) => return Poll::Ready(gone(error)),
            }
        }
    }

    fn interim(&self, status: StatusCode, headers: &HeaderMap) {
        if self.answering.get() || !self.interim.get() {
            return;
        }
        let mut output = self.output.borrow_mut();
        if output.flat.len() < INTERIM_BYTES {
            encode::informational(&mut output.flat, status, headers);
        }
    }
}

/// The content of one request, read on demand.
#[derive(Debug)]
pub struct RequestBody {
    shared: Rc<Shared>,
}

impl RequestBody {
    pub(in crate::wire) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let shared = &*self.shared;
        if shared.continue_owed.take() && !shared.answering.get() {
            encode::informational(
                &mut shared.output.borrow_mut().flat,
                StatusCode::CONTINUE,
                &HeaderMap::new(),
            );
            if let Poll::Ready(Err(error)) = shared.poll_flush(cx) {
                return Poll::Ready(Some(Err(BodyError::Io(error))));
            }
        }
        let mut input = shared.input.borrow_mut();
        let input = &mut *input;
        let mut io = shared.io.borrow_mut();
        let Some(io) = io.as_mut() else {
            return Poll::Ready(Some(Err(BodyError::Truncated)));
        };
        let polled = input.decoder.poll_frame(cx, io, &mut input.buffer);
        let verdict = match polled {
            Poll::Pending => {
                let Some(idle) = shared.body_idle else {
                    return Poll::Pending;
                };
                ready!(input.pace.poll_wait(cx, &shared.timer, idle));
                Some(Err(BodyError::Stalled))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if !input.pace.is_too_slow(&shared.timer, bytes) {
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(BodyError::Stalled))
            }
            Poll::Ready(other) => other,
        };
        shared.timer.clear();
        input.failed = matches!(verdict, Some(Err(_)));
        Poll::Ready(verdict)
    }

    pub(in crate::wire) fn is_end_stream(&self) -> bool {
        self.shared.input.borrow().decoder.is_done()
    }

    pub(in crate::wire) fn size_hint(&self) -> SizeHint {
        self.shared.input.borrow().decoder.size_hint()
    }
}

/// Writes interim responses to the connection of one request.
#[derive(Debug, Clone)]
pub struct Interim {
    shared: Rc<Shared>,
}

impl Interim {
    pub(in crate::wire) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        self.shared.interim(status, headers);
    }
}
