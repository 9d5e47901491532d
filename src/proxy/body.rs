//! The body of an answer, which carries its request's context to the true end.

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
}

impl Streaming {
    /// Everything behind the head.
    pub(super) fn new(exchange: Exchange, attempt: AttemptGuard) -> Self {
        Self {
            exchange,
            attempt,
            idle: None,
            ends: None,
            waiting: false,
        }
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
            cx.phase = Phase::Body;
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
        cx.phase = Phase::Body;
        cx.timer.clear();
        if streaming.exchange.is_end_stream() {
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
        match streaming.exchange.poll_frame(cx) {
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
                                if let Some(route) = request.route(&request.view) {
                                    streaming.attempt.grpc(code.number(), &route.failure_when);
                                }
                            }
                            Frame::trailers(trailers)
                        }
                        Err(frame) => frame,
                    },
                };
                if frame.is_trailers() || streaming.exchange.is_end_stream() {
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
            Kind::Upstream(streaming) => streaming.exchange.size_hint(),
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
