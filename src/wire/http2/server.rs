//! One HTTP/2 connection of a client.
//!
//! The connection task drives frames; each request is a task of its own on the same worker, ended by its answer or by
//! the client's reset. Draining sends GOAWAY and finishes what runs.
//!
//! A client that opens streams only to reset them makes the proxy work for nothing (CVE-2023-44487): resets before an
//! answer are counted, and a connection on which they outweigh the requests that were let live is ended with
//! ENHANCE_YOUR_CALM. Frames that ask for nothing are metered in the same spirit, see `meter`.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bellwether_core::{Dice, Moment};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use super::batch::{Batch, Batched};
use super::meter::{FRAMES_PER_REQUEST, Meter, Metered};
use super::{PumpError, RecvBody, SendPump, StreamTunnel};
use crate::net::Io;
use crate::net::wheel::Timer;
use crate::wire::{BodyError, Drain, Early, Inbound, Reply, RequestBody, Service, Toolbox, Tunnel};

/// Limits and timeouts of a listener's HTTP/2 connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Streams open at once.
    pub max_streams: u32,
    /// Size of a header list as HPACK counts it (RFC 9113 §10.5.1).
    pub header_list: u32,
    /// Number of fields of a head.
    pub headers: usize,
    /// What the preface may take, and each head from its first byte to its last.
    pub head: Duration,
    /// Between two frames of a body that is wanted.
    pub body_idle: Option<Duration>,
    /// A connection without streams.
    pub keep_alive: Duration,
    /// After this a connection ends with its current streams; jittered by a tenth.
    pub max_age: Option<Duration>,
    /// Requests of one connection.
    pub max_requests: Option<u32>,
}

/// What a stream may buffer towards a client that does not read.
const SEND_BUFFER: usize = 64 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Resets before an answer that are nobody's fault, per window of [`RESET_WINDOW`].
const RESETS_ALLOWED: u32 = 100;
const RESET_WINDOW: Duration = Duration::from_secs(30);
/// Streams that a protocol error of the client made us reset, over the life of a connection (CVE-2025-8671).
const ERROR_RESETS_ALLOWED: usize = 100;
/// What small DATA frames may cost in bookkeeping while nobody reads them. The crate's default ends the connection of
/// a client that sends many small messages to a slow service, which is no offence: windows bound what is buffered.
const SMALL_FRAMES: usize = 2 * 1024 * 1024;
/// After the first GOAWAY streams that were on their way are still taken for this long (RFC 9113 §6.8); and a
/// connection without streams whose client does not let go of it is dropped after this.
const GOAWAY_GRACE: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// In good order.
    Cleanly,
    /// The preface or a head did not come in time.
    HeadTimeout,
    /// Too many streams were opened only to be reset.
    ResetFlood,
    /// The connection broke the protocol or was cut.
    Failed(h2::Error),
}

struct Shared {
    tools: Toolbox,
    settings: Arc<Settings>,
    active: Cell<u32>,
    /// When the last stream ended.
    idle_since: Cell<Moment>,
    resets: Cell<u32>,
    opened: Cell<u32>,
    flooded: Cell<bool>,
    waker: RefCell<Option<std::task::Waker>>,
}

impl Shared {
    fn stream_ended(&self) {
        self.active.set(self.active.get() - 1);
        if self.active.get() == 0 {
            self.idle_since.set(self.tools.wheel.recent());
        }
        if (self.active.get() == 0 || self.flooded.get())
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    fn reset_unanswered(&self) {
        self.resets.set(self.resets.get() + 1);
        if self.resets.get() > RESETS_ALLOWED && self.resets.get() * 2 >= self.opened.get() {
            self.flooded.set(true);
        }
    }
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
    let wheel = tools.wheel.clone();
    let timer = wheel.timer();
    let now = wheel.now();
    timer.set(now.plus(settings.head));
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.header_list)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(ERROR_RESETS_ALLOWED))
        .data_frame_budget(SMALL_FRAMES)
        .enable_connect_protocol();
    let meter = Rc::new(Meter::new(wheel.clone()));
    let batch = Batch::new(io);
    let io = Metered::new(Batched(Rc::clone(&batch)), Rc::clone(&meter));
    let handshake = builder.handshake::<_, Bytes>(io);
    let mut handshake = std::pin::pin!(handshake);
    let connection = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = handshake.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            // What failed is told by the next read.
            if batch.poll_flush(cx) != Poll::Ready(false) {
                break;
            }
        }
        timer.poll_expired(cx).map(|()| None)
    })
    .await;
    let mut connection = match connection {
        None => return Ended::HeadTimeout,
        Some(Err(error)) => return Ended::Failed(error),
        Some(Ok(connection)) => connection,
    };
    let old_at = settings
        .max_age
        .map(|age| now.plus(age.mul_f64(0.9 + 0.2 * dice.unit())));
    let max_requests = settings.max_requests.unwrap_or(u32::MAX);
    let keep_alive = settings.keep_alive;
    let shared = Rc::new(Shared {
        tools,
        settings,
        active: Cell::new(0),
        idle_since: Cell::new(now),
        resets: Cell::new(0),
        opened: Cell::new(0),
        flooded: Cell::new(false),
        waker: RefCell::new(None),
    });
    let member = drain.join();
    let mut requests = 0_u32;
    let mut course = Course::Serving;
    let mut late = Late::default();
    let mut window_ends = now.plus(RESET_WINDOW);
    timer.set(old_at.map_or(now.plus(keep_alive), |old| old.min(now.plus(keep_alive))));
    poll_fn(move |cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    let now = shared.tools.wheel.now();
                    if matches!(course, Course::Leaving { until } if now >= until) {
                        // The client has had its GOAWAY for a while; this stream can go elsewhere unseen.
                        respond.send_reset(Reason::REFUSED_STREAM);
                        continue;
                    }
                    if now >= window_ends {
                        window_ends = now.plus(RESET_WINDOW);
                        shared.resets.set(0);
                        shared.opened.set(0);
                    }
                    requests = requests.saturating_add(1);
                    meter.earn(FRAMES_PER_REQUEST);
                    shared.opened.set(shared.opened.get() + 1);
                    shared.active.set(shared.active.get() + 1);
                    let task = Stream {
                        shared: Rc::clone(&shared),
                        service: Rc::clone(&service),
                    };
                    // In a box, because what is spawned is moved more than once.
                    tokio::task::spawn_local(Box::pin(task.run(request, respond)));
                    if requests >= max_requests && matches!(course, Course::Serving) {
                        course = Course::leave(&mut connection, now, &timer);
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    let calm = error.reason() == Some(Reason::ENHANCE_YOUR_CALM) && !error.is_remote();
                    // However a client ends a connection without streams, nothing is lost by it.
                    let clean = error.is_io() && shared.active.get() == 0;
                    return Poll::Ready(if calm {
                        Ended::ResetFlood
                    } else if clean {
                        Ended::Cleanly
                    } else {
                        Ended::Failed(error)
                    });
                }
                Poll::Ready(None) => return Poll::Ready(course.ended()),
                Poll::Pending => {}
            }
            let known = shared
                .waker
                .borrow()
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()));
            if !known {
                shared.waker.replace(Some(cx.waker().clone()));
            }
            let flooded = shared.flooded.get() || meter.exhausted();
            let slow = late.is_late(cx, &meter, &shared);
            if (flooded || slow) && !matches!(course, Course::Thrown { .. }) {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                course = Course::Thrown { slow };
                timer.set(shared.tools.wheel.now().plus(GOAWAY_GRACE));
                continue;
            }
            // In critical danger clients are sent away: what they hold is what the process is short of.
            let leaves = member.poll_draining(cx) || shared.tools.level().resets_streams();
            if matches!(course, Course::Serving) && leaves {
                course = Course::leave(&mut connection, shared.tools.wheel.now(), &timer);
                continue;
            }
            if timer.poll_expired(cx).is_ready() {
                let now = shared.tools.wheel.now();
                let idle_since = shared.idle_since.get();
                let idle = shared.active.get() == 0;
                match course {
                    // It did not even take the GOAWAY.
                    Course::Thrown { .. } => return Poll::Ready(course.ended()),
                    Course::Leaving { .. } if idle && now >= idle_since.plus(GOAWAY_GRACE) => {
                        return Poll::Ready(Ended::Cleanly);
                    }
                    Course::Leaving { .. } => timer.set(now.plus(GOAWAY_GRACE)),
                    Course::Serving => {
                        let keep_alive = shared.tools.level().idle_timeout(keep_alive);
                        let old = old_at.is_some_and(|old| now >= old);
                        if old || (idle && now >= idle_since.plus(keep_alive)) {
                            course = Course::leave(&mut connection, now, &timer);
                        } else {
                            let from = if idle { idle_since } else { now };
                            let next = from.plus(keep_alive);
                            timer.set(old_at.map_or(next, |old| old.min(next)));
                        }
                    }
                }
                continue;
            }
            match batch.poll_flush(cx) {
                // What failed is told by the next read.
                Poll::Ready(false) => continue,
                Poll::Ready(true) if shared.active.get() == 0 => batch.shrink(),
                Poll::Ready(true) | Poll::Pending => {}
            }
            return Poll::Pending;
        }
    })
    .await
}

/// The deadline of a head of which something is missing. None is set for one that arrives in one read.
#[derive(Default)]
struct Late {
    awaited: Option<(u32, Timer)>,
}

impl Late {
    fn is_late(&mut self, cx: &mut Context<'_>, meter: &Meter, shared: &Shared) -> bool {
        let Some(head) = meter.unfinished_head() else {
            self.awaited = None;
            return false;
        };
        let wheel = &shared.tools.wheel;
        let (awaited, timer) = self
            .awaited
            .get_or_insert_with(|| (head.wrapping_sub(1), wheel.timer()));
        if *awaited != head {
            *awaited = head;
            timer.set(wheel.now().plus(shared.settings.head));
        }
        timer.poll_expired(cx).is_ready()
    }
}

/// How far a connection is from its end.
#[derive(Debug, Clone, Copy)]
enum Course {
    /// Taking requests.
    Serving,
    /// GOAWAY is out; new streams are taken until then, for those that crossed it.
    Leaving { until: Moment },
    /// Ended for a flood, or for a head that did not come in time.
    Thrown { slow: bool },
}

impl Course {
    /// What a connection that ends now was ended by.
    fn ended(self) -> Ended {
        match self {
            Self::Serving | Self::Leaving { .. } => Ended::Cleanly,
            Self::Thrown { slow: true } => Ended::HeadTimeout,
            Self::Thrown { slow: false } => Ended::ResetFlood,
        }
    }

    /// Sends GOAWAY and looks from time to time whether the client has understood.
    fn leave(connection: &mut h2::server::Connection<Metered, Bytes>, now: Moment, timer: &Timer) -> Self {
        connection.graceful_shutdown();
        let until = now.plus(GOAWAY_GRACE);
        timer.set(until);
        Self::Leaving { until }
    }
}

/// One request on its own task.
struct Stream<S> {
    shared: Rc<Shared>,
    service: Rc<S>,
}

impl<S: Service> Stream<S> {
    async fn run(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, recv) = request.into_parts();
        // A stream that was reset before anybody looked at it costs nothing further, least of all an upstream.
        let reset = poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await;
        if reset {
            self.shared.reset_unanswered();
            return;
        }
        let respond = Rc::new(RefCell::new(respond));
        if parts.headers.len() > self.shared.settings.headers {
            let refusal = crate::wire::Refusal::Head(crate::wire::http1::head::HeadError::TooManyHeaders);
            let (head, content) = self.service.refuse(refusal).into_parts();
            let reply = Reply {
                head: Box::new(head),
                body: RequestBody::Full(content),
                tunnel: None,
                idle: None,
            };
            self.answer(&respond, reply, None, parts.method == Method::HEAD)
                .await;
            return;
        }
        let extended = parts.extensions.get::<h2::ext::Protocol>().is_some();
        let mut tunnel_half = None;
        let body = if extended {
            tunnel_half = Some(recv);
            RequestBody::Empty
        } else if recv.is_end_stream() {
            RequestBody::Empty
        } else {
            let idle = self
                .shared
                .settings
                .body_idle
                .map(|idle| (self.shared.tools.wheel.timer(), idle));
            let body = RecvBody::new(recv, &parts.headers, idle);
            RequestBody::Http2(if expects_continue(&parts.headers) {
                body.expected(Interim {
                    respond: Rc::clone(&respond),
                })
            } else {
                body
            })
        };
        let head_only = parts.method == Method::HEAD;
        let inbound = Inbound {
            request: Box::new(Request::from_parts(parts, body)),
            early: Early::Http2(Interim {
                respond: Rc::clone(&respond),
            }),
            head_bytes: 0,
        };
        let mut call = Box::pin(self.service.call(inbound));
        let reply = poll_fn(|cx| {
            if let Poll::Ready(reply) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(reply));
            }
            respond.borrow_mut().poll_reset(cx).map(|_| None)
        })
        .await;
        drop(call);
        let Some(reply) = reply else {
            self.shared.reset_unanswered();
            return;
        };
        self.answer(&respond, reply, tunnel_half, head_only).await;
    }

    async fn answer<B>(
        &self,
        respond: &RefCell<SendResponse<Bytes>>,
        reply: Reply<B>,
        tunnel_half: Option<RecvStream>,
        head_only: bool,
    ) where
        B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        let Reply {
            mut head,
            body,
            tunnel,
            idle,
        } = reply;
        const NOT_IN_HTTP2: [HeaderName; 3] =
            [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
        // Hardly any answer has them, and to look at its names once costs less than to look for three of them.
        if head.headers.keys().any(|name| NOT_IN_HTTP2.contains(name)) {
            for name in NOT_IN_HTTP2 {
                head.headers.remove(name);
            }
        }
        if !head.headers.contains_key(header::DATE) {
            let date = self.shared.tools.date.get(self.shared.tools.wheel.recent());
            head.headers.insert(header::DATE, date);
        }
        let bodiless = head_only
            || head.status == StatusCode::NO_CONTENT
            || head.status == StatusCode::NOT_MODIFIED
            || (body.is_end_stream() && tunnel.is_none());
        if head.status == StatusCode::NO_CONTENT {
            // RFC 9110 §8.6.
            head.headers.remove(header::CONTENT_LENGTH);
        } else if tunnel.is_none()
            && head.status != StatusCode::NOT_MODIFIED
            && let Some(length) = body.size_hint().exact()
            // An empty body says nothing about what GET would have had.
            && !(head_only && length == 0)
            && !head.headers.contains_key(header::CONTENT_LENGTH)
        {
            head.headers
                .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let response = Response::from_parts(*head, ());
        let sent = respond.borrow_mut().send_response(response, bodiless);
        let Ok(stream) = sent else { return };
        if bodiless {
            return;
        }
        if let (Some(start), Some(recv)) = (tunnel, tunnel_half) {
            start(Tunnel::Http2(Box::new(StreamTunnel::new(stream, recv)))).await;
            return;
        }
        let mut pump = SendPump::new(stream, body);
        let mut stall: Option<(Timer, u64)> = None;
        let result = poll_fn(|cx| match pump.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                // While the window is shut nothing else notices that the client stopped reading.
                let Some(idle) = idle.filter(|_| pump.shut) else {
                    stall = None;
                    return Poll::Pending;
                };
                let wheel = &self.shared.tools.wheel;
                let (timer, seen) = stall.get_or_insert_with(|| (wheel.timer(), u64::MAX));
                if *seen != pump.sent {
                    *seen = pump.sent;
                    timer.set(wheel.now().plus(idle));
                }
                timer
                    .poll_expired(cx)
                    .map(|()| Err(PumpError::Body(BodyError::Stalled)))
            }
        })
        .await;
        match result {
            Ok(()) | Err(PumpError::Reset | PumpError::Connection) => {}
            Err(PumpError::Body(error)) => pump.stream.send_reset(error.h2_reason()),
        }
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        self.shared.stream_ended();
    }
}

/// Sends interim responses on one stream.
#[derive(Debug, Clone)]
pub struct Interim {
    respond: Rc<RefCell<SendResponse<Bytes>>>,
}

impl Interim {
    pub(in crate::wire) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().clone_from(headers);
        // Too late or on a dead stream there is nobody to tell.
        drop(self.respond.borrow_mut().send_informational(response));
    }
}
