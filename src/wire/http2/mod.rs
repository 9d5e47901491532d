//! HTTP/2 (RFC 9113) on the h2 crate, without a layer between.
//!
//! [`server`] accepts the streams of one client connection and runs each as a task of the same worker; [`client`]
//! sends exchanges over a shared connection. Both sides use [`RecvBody`] to read content, which gives flow-control
//! window back only when the next frame is asked for, and `SendPump` to write it, which asks for content only when
//! the peer has room for it: a slow reader on one side of the proxy slows the writer on the other. What several streams
//! have to say at once is written at once, see `batch`.

mod batch;
pub mod client;
mod meter;
pub mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::BodyError;
use super::http1::head::declared_length;
use super::pace::Pace;
use crate::net::wheel::Timer;

/// The content of a message received on a stream.
#[derive(Debug)]
pub struct RecvBody {
    stream: RecvStream,
    /// Bytes handed out whose window has not been given back.
    unreleased: usize,
    left: Option<u64>,
    data_done: bool,
    watch: Option<Box<Watch>>,
    /// Whom to tell that the content is wanted, once it is (RFC 9110 §10.1.1).
    owed: Option<server::Interim>,
}

/// What a client's content is held against.
#[derive(Debug)]
struct Watch {
    timer: Timer,
    idle: Duration,
    pace: Pace,
}

impl RecvBody {
    /// Reads from `stream`; `headers` may announce the length. With a timer and a time, a peer that is silent for so long
    /// or too slow fails the body.
    fn new(stream: RecvStream, headers: &HeaderMap, idle: Option<(Timer, Duration)>) -> Self {
        let watch = idle.map(|(timer, idle)| {
            Box::new(Watch {
                timer,
                idle,
                pace: Pace::default(),
            })
        });
        Self {
            stream,
            unreleased: 0,
            left: declared_length(headers),
            data_done: false,
            watch,
            owed: None,
        }
    }

    /// The client waits for a 100 before it sends.
    fn expected(mut self, interim: server::Interim) -> Self {
        self.owed = Some(interim);
        self
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.release();
        if !self.data_done {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    self.owed = None;
                    self.unreleased = data.len();
                    if let Some(left) = self.left.as_mut() {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    if let Some(watch) = &mut self.watch
                        && watch.pace.is_too_slow(&watch.timer, data.len())
                    {
                        return Poll::Ready(Some(Err(BodyError::Stalled)));
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.failed(error)),
                Poll::Ready(None) => self.data_done = true,
                Poll::Pending => return self.waiting(cx),
            }
        }
        match self.stream.poll_trailers(cx) {
            Poll::Ready(Ok(Some(trailers))) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Poll::Ready(Ok(None)) => Poll::Ready(None),
            Poll::Ready(Err(error)) => Poll::Ready(self.failed(error)),
            Poll::Pending => self.waiting(cx),
        }
    }

    fn failed(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, BodyError>> {
        // A stream that ends by NO_ERROR said all it wanted to say (RFC 9113 §8.1).
        let complete = self.left.is_none_or(|left| left == 0);
        if error.is_remote() && error.reason() == Some(Reason::NO_ERROR) && complete {
            return None;
        }
        Some(Err(error.into()))
    }

    fn waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(interim) = self.owed.take() {
            interim.send(StatusCode::CONTINUE, &HeaderMap::new());
        }
        let Some(watch) = &mut self.watch else {
            return Poll::Pending;
        };
        let waited = watch.pace.poll_wait(cx, &watch.timer, watch.idle);
        waited.map(|()| Some(Err(BodyError::Stalled)))
    }

    fn release(&mut self) {
        let count = std::mem::take(&mut self.unreleased);
        if count > 0 {
            // Fails only when the stream is gone, and then there is no window to give back.
            drop(self.stream.flow_control().release_capacity(count));
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Why content could not be sent.
#[derive(Debug)]
enum PumpError {
    /// The content itself failed.
    Body(BodyError),
    /// The peer reset the stream.
    Reset,
    /// The connection failed.
    Connection,
}

impl From<h2::Error> for PumpError {
    /// What went wrong is told by the receiving half of the stream.
    fn from(_: h2::Error) -> Self {
        Self::Connection
    }
}

/// Content that is read before the peer has room for it.
const LITTLE: u64 = 4 * 1024;

/// Sends the content of a message, one chunk at a time and only into an open window.
#[derive(Debug)]
struct SendPump<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// Frames handed to the connection, to tell a slow peer from one that stopped.
    sent: u64,
    /// The window is shut.
    shut: bool,
}

impl<B> SendPump<B> {
    fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self {
            stream,
            body,
            sent: 0,
            shut: false,
        }
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> SendPump<B> {
    /// Ready when the peer takes another byte.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(PumpError::Reset)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once everything has been handed to the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            // Little content is taken whatever the window: to ask for room costs more than to hold it.
            let little = self.sent == 0 && self.body.size_hint().upper().is_some_and(|most| most <= LITTLE);
            self.shut = !little && self.poll_room(cx)?.is_pending();
            if self.shut {
                return Poll::Pending;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    // Only this leaves a waker for a reset while the content is awaited.
                    return self
                        .stream
                        .poll_reset(cx)
                        .map(|reason| Err(reason.map_or(PumpError::Connection, |_| PumpError::Reset)));
                }
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let end = self.body.is_end_stream();
                        if data.is_empty() && !end {
                            continue;
                        }
                        self.stream.send_data(data, end)?;
                        self.sent += 1;
                        if end {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            self.stream.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => return Poll::Ready(Err(PumpError::Body(error))),
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// One HTTP/2 stream used as a raw byte stream (RFC 8441).
#[derive(Debug)]
pub struct StreamTunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unreleased: usize,
    finished: bool,
}

impl StreamTunnel {
    fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self {
            send,
            recv,
            unreleased: 0,
            finished: false,
        }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let count = std::mem::take(&mut self.unreleased);
        if count > 0 {
            drop(self.recv.flow_control().release_capacity(count));
        }
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.unreleased = data.len();
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn start_write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send.send_data(bytes, false).map_err(io::Error::other)
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        self.send.send_data(Bytes::new(), true).map_err(io::Error::other)
    }
}
