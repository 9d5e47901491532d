//! HTTP on the wire: the strict HTTP/1.1 codec and its connections, and HTTP/2 on the h2 crate.
//!
//! Both sides meet the proxy in the same few types: an [`Inbound`] request with a [`RequestBody`] that is read on
//! demand, and a [`Reply`] whose body is pulled at the speed of the client. Nothing here knows routes or clusters, and
//! nothing is `Send`: a connection lives and dies on one worker.
//!
//! Invariant: no more than one chunk per direction is held while the other side is slow.

pub mod http1;
pub mod http2;
mod pace;
#[cfg(test)]
pub(crate) mod testing;
pub mod tunnel;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bellwether_core::shed::{Level, Overload};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, response};
use http_body::{Body, Frame, SizeHint};

use crate::net::wheel::Wheel;
pub use tunnel::Tunnel;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer closed or reset the connection inside the body.
    #[error("the connection ended inside the body")]
    Truncated,
    /// The transport failed.
    #[error("reading the body: {0}")]
    Io(#[from] io::Error),
    /// The framing or the trailers break the protocol.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    /// The peer reset the HTTP/2 stream.
    #[error("the stream was reset: {0}")]
    Reset(h2::Reason),
    /// No byte arrived for too long, or they arrive too slowly.
    #[error("the body stalled")]
    Stalled,
    /// The body is longer than its limit.
    #[error("the body is longer than allowed")]
    TooLarge,
    /// Our own side gave up (deadline, shutdown).
    #[error("given up: {0}")]
    Abandoned(&'static str),
}

impl BodyError {
    /// The h2 error code that tells the other side of the proxy the same story.
    pub fn h2_reason(&self) -> h2::Reason {
        match self {
            Self::Reset(reason) => *reason,
            Self::Truncated | Self::Io(_) | Self::Stalled => h2::Reason::CANCEL,
            Self::Malformed(_) => h2::Reason::PROTOCOL_ERROR,
            Self::TooLarge | Self::Abandoned(_) => h2::Reason::INTERNAL_ERROR,
        }
    }
}

impl From<h2::Error> for BodyError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            return error.into_io().map_or(Self::Truncated, Self::Io);
        }
        Self::Reset(error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR))
    }
}

/// A request as it arrived, with what the answer may need of its connection.
#[derive(Debug)]
pub struct Inbound {
    /// Head and body. The URI of HTTP/2 requests carries scheme and authority.
    pub request: Box<Request<RequestBody>>,
    /// Where interim responses go.
    pub early: Early,
    /// Bytes of the head on the wire; 0 where the protocol hides it.
    pub head_bytes: u64,
}

/// The body of a request.
#[derive(Debug, Default)]
pub enum RequestBody {
    /// There is none.
    #[default]
    Empty,
    /// Held in memory (tests, replays, health checks).
    Full(Bytes),
    /// Read from an HTTP/1.1 connection.
    Http1(http1::server::RequestBody),
    /// Read from an HTTP/2 stream.
    Http2(http2::RecvBody),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// Sends interim (1xx) responses ahead of the final one (RFC 9110 §15.2).
#[derive(Debug, Clone, Default)]
pub enum Early {
    /// The client cannot take any (HTTP/1.0, tests).
    #[default]
    None,
    /// Written to the HTTP/1.1 connection.
    Http1(http1::server::Interim),
    /// Sent as a HEADERS frame of the stream.
    Http2(http2::server::Interim),
}

impl Early {
    /// Passes one interim response on. Errors are the connection's business and show up there.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        match self {
            Self::None => {}
            Self::Http1(interim) => interim.send(status, headers),
            Self::Http2(interim) => interim.send(status, headers),
        }
    }
}

/// A final answer.
pub struct Reply<B> {
    /// Status and fields; framing and connection management are written by the connection.
    pub head: Box<response::Parts>,
    /// The content.
    pub body: B,
    /// For an accepted upgrade: what to run on the raw stream once the head is out.
    pub tunnel: Option<TunnelStart>,
    /// How long a client may leave the answer unread before it is cut off.
    pub idle: Option<std::time::Duration>,
}

/// Runs a tunnel after the switch of protocols.
pub type TunnelStart = Box<dyn FnOnce(Tunnel) -> LocalFuture<()>>;

/// A boxed future of one worker.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

impl<B> std::fmt::Debug for Reply<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("head", &self.head)
            .field("tunnel", &self.tunnel.is_some())
            .finish()
    }
}

impl<B> From<Response<B>> for Reply<B> {
    fn from(response: Response<B>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            head: Box::new(head),
            body,
            tunnel: None,
            idle: None,
        }
    }
}

/// What a connection could not turn into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The head breaks the grammar or a limit.
    Head(http1::head::HeadError),
    /// The head did not arrive in time.
    HeadTimeout,
}

/// What serves the requests of a connection.
pub trait Service: 'static {
    /// Body of the answers.
    type Body: Body<Data = Bytes, Error = BodyError> + Unpin + 'static;

    /// Answers one request. Dropping the future cancels it.
    fn call(&self, inbound: Inbound) -> impl Future<Output = Reply<Self::Body>> + 'static;

    /// Answers something that is not a request; the connection closes afterwards.
    fn refuse(&self, refusal: Refusal) -> Response<Bytes>;
}

/// The tools of a worker that connections share.
#[derive(Debug, Clone)]
pub struct Toolbox {
    /// Timers and clock.
    pub wheel: Wheel,
    /// The `date` field, made once a second.
    pub date: Rc<DateCache>,
    /// What the process has to give up at present.
    pub overload: Arc<Overload>,
}

impl Toolbox {
    /// New tools around a worker's timers, in a process that may be short of something.
    pub fn new(wheel: Wheel, overload: Arc<Overload>) -> Self {
        Self {
            wheel,
            date: Rc::default(),
            overload,
        }
    }

    /// The present level of danger.
    pub fn level(&self) -> Level {
        self.overload.danger().level
    }
}

/// The value of the `date` field (RFC 9110 §6.6.1), formatted at most once a second.
#[derive(Debug)]
pub struct DateCache {
    second: Cell<u64>,
    value: RefCell<HeaderValue>,
}

impl Default for DateCache {
    fn default() -> Self {
        Self {
            second: Cell::new(0),
            value: RefCell::new(HeaderValue::from_static("")),
        }
    }
}

impl DateCache {
    /// The present value; `now` decides when it is made again.
    pub fn get(&self, now: bellwether_core::Moment) -> HeaderValue {
        let second = now.as_nanos() / 1_000_000_000 + 1;
        if self.second.replace(second) != second {
            let text = httpdate::fmt_http_date(std::time::SystemTime::now());
            if let Ok(value) = HeaderValue::try_from(text) {
                *self.value.borrow_mut() = value;
            }
        }
        self.value.borrow().clone()
    }
}

/// Tells the connections of a listener on one worker that they should end.
///
/// HTTP/1.1 can only end in good order behind an answer that said so, so its answers say it from the announcement on,
/// before anything is closed. HTTP/2 can say it at any time (GOAWAY) and does when the end begins.
#[derive(Debug, Default)]
pub struct Drain {
    stage: Cell<Stage>,
    members: RefCell<Members>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Serving,
    /// Connections go on; answers say that they are the last of theirs.
    Announced,
    /// Connections end with what they are doing.
    Ending,
}

#[derive(Debug, Default)]
struct Members {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Drain {
    /// Whether connections should end after what they are doing.
    pub fn is_draining(&self) -> bool {
        self.stage.get() == Stage::Ending
    }

    /// How many connections have joined and not ended.
    pub fn members(&self) -> usize {
        let members = self.members.borrow();
        members.wakers.len() - members.free.len()
    }

    /// Lets every answer of HTTP/1.1 be the last of its connection. Nothing is closed that is idle.
    pub fn announce(&self) {
        if !self.is_draining() {
            self.stage.set(Stage::Announced);
        }
    }

    /// Takes [`Self::announce`] back.
    pub fn retract(&self) {
        if !self.is_draining() {
            self.stage.set(Stage::Serving);
        }
    }

    /// Starts draining and wakes every waiting connection.
    pub fn begin(&self) {
        self.stage.set(Stage::Ending);
        for waker in self
            .members
            .borrow_mut()
            .wakers
            .iter_mut()
            .filter_map(Option::take)
        {
            waker.wake();
        }
    }

    /// Takes part in the drain for as long as the guard lives.
    pub fn join(self: &Rc<Self>) -> DrainMember {
        let mut members = self.members.borrow_mut();
        let key = members.free.pop().unwrap_or_else(|| {
            members.wakers.push(None);
            members.wakers.len() - 1
        });
        drop(members);
        DrainMember {
            drain: Rc::clone(self),
            key,
            registered: Cell::new(false),
        }
    }
}

/// One connection's part in a [`Drain`].
#[derive(Debug)]
pub struct DrainMember {
    drain: Rc<Drain>,
    key: usize,
    registered: Cell<bool>,
}

impl DrainMember {
    /// Whether this connection should end; if not, the task is woken when that changes. A task's waker is stored once.
    pub fn poll_draining(&self, cx: &Context<'_>) -> bool {
        if self.drain.is_draining() {
            return true;
        }
        if !self.registered.replace(true) {
            self.drain.members.borrow_mut().wakers[self.key] = Some(cx.waker().clone());
        }
        false
    }

    /// Whether the next answer should be the last one, where that can be said in no other way.
    pub fn is_leaving(&self) -> bool {
        self.drain.stage.get() != Stage::Serving
    }
}

impl Drop for DrainMember {
    fn drop(&mut self) {
        let mut members = self.drain.members.borrow_mut();
        members.wakers[self.key] = None;
        members.free.push(self.key);
    }
}
