//! What the tests of both protocols share: a worker with paused time, services made of closures, scripted bodies.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{BodyError, Inbound, LocalFuture, Refusal, Reply, RequestBody, Service, Toolbox};
use crate::net::Io;
use crate::net::clock::Clock;
use crate::net::wheel::{Timer, Wheel};

/// Runs a test on a worker of its own, whose time stands still until everybody waits.
pub(crate) fn run<F: Future>(test: impl FnOnce(Toolbox) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime for tests");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let wheel = Wheel::new(Clock::start());
        tokio::task::spawn_local(wheel.clone().drive());
        test(Toolbox::new(wheel, std::sync::Arc::default())).await
    })
}

pub(crate) async fn sleep(wait: Duration) {
    tokio::time::sleep(wait).await;
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A body of any kind.
pub(crate) type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>;

/// A service that is a closure.
pub(crate) struct Calls<F>(pub(crate) F);

impl<F> Service for Calls<F>
where
    F: Fn(Inbound) -> LocalFuture<Reply<AnyBody>> + 'static,
{
    type Body = AnyBody;

    fn call(&self, inbound: Inbound) -> impl Future<Output = Reply<AnyBody>> + 'static {
        (self.0)(inbound)
    }

    fn refuse(&self, refusal: Refusal) -> Response<Bytes> {
        let (status, text) = match refusal {
            Refusal::Head(error) => (error.status(), error.name()),
            Refusal::HeadTimeout => (StatusCode::REQUEST_TIMEOUT, "head_timeout"),
        };
        let mut response = Response::new(Bytes::from_static(text.as_bytes()));
        *response.status_mut() = status;
        response
    }
}

/// Makes a service out of an async closure.
pub(crate) fn service<F, R>(call: F) -> Rc<Calls<impl Fn(Inbound) -> LocalFuture<Reply<AnyBody>> + 'static>>
where
    F: Fn(Inbound) -> R + 'static,
    R: Future<Output = Reply<AnyBody>> + 'static,
{
    Rc::new(Calls(move |inbound| {
        Box::pin(call(inbound)) as LocalFuture<Reply<AnyBody>>
    }))
}

/// An answer with this body.
pub(crate) fn reply(status: u16, body: AnyBody) -> Reply<AnyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.into()
}

/// An answer with this text.
pub(crate) fn text(status: u16, text: impl Into<Bytes>) -> Reply<AnyBody> {
    reply(status, Box::pin(RequestBody::Full(text.into())))
}

/// A step of a scripted body.
#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Wait(Duration),
    Fail(BodyError),
    /// Nothing ever again.
    Hang,
}

/// A body of unknown length that does as it is told.
#[derive(Debug)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    timer: Timer,
    length: Option<u64>,
}

impl Script {
    pub(crate) fn new(tools: &Toolbox, steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            timer: tools.wheel.timer(),
            length: None,
        }
    }

    pub(crate) fn of_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    pub(crate) fn boxed(self) -> AnyBody {
        Box::pin(self)
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match this.steps.front() {
                Some(Step::Wait(wait)) => {
                    if !this.timer.is_armed() {
                        this.timer.set(this.timer.wheel().now().plus(*wait));
                    }
                    if this.timer.poll_expired(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.timer.clear();
                    this.steps.pop_front();
                }
                Some(Step::Hang) => return Poll::Pending,
                _ => {
                    return Poll::Ready(match this.steps.pop_front() {
                        Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
                        Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                        Some(Step::Fail(error)) => Some(Err(error)),
                        Some(Step::Wait(_) | Step::Hang) | None => None,
                    });
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Reads a body to its end.
pub(crate) async fn collect<B>(body: &mut B) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

/// A client that writes and reads bytes.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) io: Io,
}

impl Raw {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.expect("the peer reads");
    }

    /// Everything that comes until nothing has come for a while; and whether the peer closed.
    pub(crate) async fn receive(&mut self) -> (String, bool) {
        self.receive_for(Duration::from_millis(50)).await
    }

    pub(crate) async fn receive_for(&mut self, wait: Duration) -> (String, bool) {
        let mut all = BytesMut::new();
        loop {
            match tokio::time::timeout(wait, self.io.read_buf(&mut all)).await {
                Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&all).into_owned(), true),
                Ok(Ok(_)) => {}
                Err(_) => return (String::from_utf8_lossy(&all).into_owned(), false),
            }
        }
    }

    /// Sends, and returns what comes back.
    pub(crate) async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> String {
        self.send(bytes).await;
        self.receive().await.0
    }
}
