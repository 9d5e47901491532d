//! The body of an answer, which carries its request's context to the true end.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bellwether_core::{Moment, Phase, Reason};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::attempt::AttemptGuard;
use super::cx::RequestCx;
use crate::cluster::exchange::Exchange;
use crate::message::{grpc, hygiene};
use crate::snapshot::FailureWhen;
use crate::wire::BodyError;

/// The body of an answer.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Taken when everything has been handed over.
    cx: Option<Box<RequestCx>>,
}

#[derive(Debug)]
enum Kind {
    Done,
    Local(Bytes),
    Upstream(Box<Streaming>),
}

/// What is still to come of an answer.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) exchange: Exchange,
    pub(super) attempt: AttemptGuard,
    idle: Option<Duration>,
    ends: Option<Moment>,
    /// The idle deadline runs.
    waiting: bool,
    /// Came before the answer was passed on; see [`Streaming::peek`].
    first: Option<Option<Result<Frame<Bytes>, BodyError>>>,
}

/// How long the head of a gRPC answer is held back for its first frame. An answer whose first message takes longer is
/// passed on as it is, because a client of a stream may want to see the head before it sends more.
const PEEK: Duration = Duration::from_millis(250);

impl Streaming {
    /// Everything behind the head.
    pub(super) fn new(exchange: Exchange, attempt: AttemptGuard) -> Self {
        Self {
            exchange,
            attempt,
            idle: None,
            ends: None,
            waiting: false,
            first: None,
        }
    }

    /// Waits for the first frame, or the end, for a while. Trailers without a message are the whole answer of gRPC: they
    /// say whether it is worth another try, and the head does not (gRPC over HTTP/2, "Responses").
    pub(super) async fn peek(&mut self, cx: &RequestCx, when: &FailureWhen) {
        if self.exchange.is_end_stream() {
            return;
        }
        let wheel = &cx.worker.tools.wheel;
        let timer = wheel.timer();
        timer.set(wheel.now().plus(PEEK));
        let first = poll_fn(|task| match self.exchange.poll_frame(task) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending
                if timer.poll_expired(task).is_ready() || cx.timer.poll_expired(task).is_ready() =>
            {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        })
        .await;
        if let Some(Some(Ok(frame))) = &first
            && let Some(trailers) = frame.trailers_ref()
            && let Some(code) = grpc::Code::of(trailers)
        {
            self.attempt.grpc(code.number(), when);
        }
        self.first = first;
    }

    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(frame),
            None => self.exchange.poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.exchange.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.exchange.size_hint();
        if let Some(Some(Ok(frame))) = &self.first
            && let Some(data) = frame.data_ref()
        {
            let peeked = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + peeked);
            }
            hint.set_lower(hint.lower() + peeked);
        }
        hint
    }
}

impl Body {
    /// Nothing; the context is elsewhere.
    pub(super) fn none() -> Self {
        Self {
            kind: Kind::Done,
            cx: None,
        }
    }

    /// Content of our own.
    pub(super) fn local(content: Bytes, mut cx: Box<RequestCx>) -> Self {
        if content.is_empty() {
            cx.complete();
            return Self {
                kind: Kind::Done,
                cx: Some(cx),
            };
        }
        if cx.reason.is_none() {
            cx.phase.set(Phase::Body);
        }
        Self {
            kind: Kind::Local(content),
            cx: Some(cx),
        }
    }

    /// Content that is still coming from an endpoint.
    pub(super) fn upstream(mut streaming: Box<Streaming>, mut cx: Box<RequestCx>) -> Self {
        let route = cx.view.snapshot.routes.get(cx.route_index());
        let level = cx.worker.tools.level();
        streaming.idle = route
            .and_then(|route| route.idle_timeout)
            .map(|idle| level.idle_timeout(idle));
        streaming.ends = route
            .and_then(|route| route.max_duration)
            .map(|most| cx.started.plus(most));
        cx.phase.set(Phase::Body);
        cx.timer.clear();
        if streaming.is_end_stream() {
            streaming.exchange.finish();
            streaming.attempt.succeed();
            cx.complete();
            return Self {
                kind: Kind::Done,
                cx: Some(cx),
            };
        }
        if let Some(ends) = streaming.ends {
            cx.timer.set(ends);
        }
        Self {
            kind: Kind::Upstream(streaming),
            cx: Some(cx),
        }
    }

    /// Everything has been handed over; the request is counted now.
    fn complete(&mut self) {
        if let Some(mut cx) = self.cx.take() {
            cx.complete();
        }
        if let Kind::Upstream(streaming) = std::mem::replace(&mut self.kind, Kind::Done) {
            streaming.attempt.succeed();
        }
    }

    fn fail(&mut self, reason: Reason, abandoned: &'static str) -> BodyError {
        if let Some(mut cx) = self.cx.take() {
            cx.end(reason);
        }
        if let Kind::Upstream(streaming) = std::mem::replace(&mut self.kind, Kind::Done) {
            let Streaming {
                exchange, attempt, ..
            } = *streaming;
            match reason {
                Reason::UpstreamClosed | Reason::UpstreamReset | Reason::UpstreamProtocol => {
                    attempt.truncated();
                }
                _ => attempt.ignore(),
            }
            exchange.abandon(crate::telemetry::CloseReason::Error);
        }
        BodyError::Abandoned(abandoned)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let streaming = match &mut this.kind {
            Kind::Done => return Poll::Ready(None),
            Kind::Local(content) => {
                let content = std::mem::take(content);
                if let Some(request) = &mut this.cx {
                    request.bytes_out = content.len() as u64;
                }
                this.kind = Kind::Done;
                this.complete();
                return Poll::Ready(Some(Ok(Frame::data(content))));
            }
            Kind::Upstream(streaming) => streaming,
        };
        let Some(request) = &mut this.cx else {
            return Poll::Ready(None);
        };
        if request.is_to_be_cut() {
            let error = this.fail(Reason::Memory, "this process is short of memory");
            return Poll::Ready(Some(Err(error)));
        }
        match streaming.poll_next(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if std::mem::take(&mut streaming.waiting) {
                    rearm(streaming.ends, request);
                }
                if request.may_last && request.age() > LASTING {
                    request.lasts();
                    streaming.attempt.lasts();
                }
                let frame = match frame.into_data() {
                    Ok(data) => {
                        request.bytes_out += data.len() as u64;
                        Frame::data(data)
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(mut trailers) => {
                            hygiene::filter_trailers(&mut trailers);
                            if let Some(code) = grpc::Code::of(&trailers) {
                                request.grpc_status = Some(code.number());
                                // Said once: what was peeked at is known already.
                                if streaming.attempt.grpc_status().is_none()
                                    && let Some(route) = request.route(&request.view)
                                {
                                    streaming.attempt.grpc(code.number(), &route.failure_when);
                                }
                            }
                            Frame::trailers(trailers)
                        }
                        Err(frame) => frame,
                    },
                };
                if frame.is_trailers() || streaming.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                let (reason, what) = match &error {
                    BodyError::Truncated | BodyError::Io(_) => {
                        (Reason::UpstreamClosed, "the endpoint closed")
                    }
                    BodyError::Reset(_) => (Reason::UpstreamReset, "the endpoint reset the stream"),
                    BodyError::Malformed(_) => (Reason::UpstreamProtocol, "the endpoint broke the protocol"),
                    BodyError::Stalled | BodyError::TooLarge | BodyError::Abandoned(_) => {
                        (Reason::StreamIdle, "nothing moved")
                    }
                };
                drop(this.fail(reason, what));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => {
                let now = || request.worker.tools.wheel.now();
                if let Some(idle) = streaming.idle.filter(|_| !streaming.waiting) {
                    let until = now().plus(idle);
                    request
                        .timer
                        .set(streaming.ends.map_or(until, |ends| ends.min(until)));
                    streaming.waiting = true;
                }
                if request.timer.poll_expired(cx).is_ready() {
                    let over = streaming.ends.is_some_and(|ends| now() >= ends);
                    let reason = if over {
                        Reason::MaxDuration
                    } else {
                        Reason::StreamIdle
                    };
                    return Poll::Ready(Some(Err(this.fail(reason, "the time for this answer is over"))));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Done => SizeHint::with_exact(0),
            Kind::Local(content) => SizeHint::with_exact(content.len() as u64),
            Kind::Upstream(streaming) => streaming.size_hint(),
        }
    }
}

/// A gRPC call that goes on for so long is a stream.
const LASTING: Duration = Duration::from_secs(10);

/// Something moved: the idle deadline is set again by the next wait; the end of the exchange stays.
fn rearm(ends: Option<Moment>, request: &RequestCx) {
    match ends {
        Some(ends) => request.timer.set(ends),
        None => request.timer.clear(),
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        match &self.kind {
            // An answer to HEAD has content that nobody asks for.
            Kind::Local(_) => self.complete(),
            Kind::Done | Kind::Upstream(_) => {}
        }
    }
}
