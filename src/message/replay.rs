//! Request content that can be sent again.
//!
//! Content streams through once. While it fits into a bound it is also kept, so that an attempt that failed early can
//! be repeated from the first byte; once it outgrows the bound, what was kept is dropped and the request can only be
//! sent by the attempt that has it. Keeping a large piece costs a reference count, not a copy. Small ones are copied
//! together: each would otherwise hold the buffer in which it arrived, and a client that sends byte by byte could
//! make us hold many times the bound.
//!
//! The whole request's limit is enforced here too, because only here every byte passes.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::wire::{BodyError, RequestBody};

/// The content of one request, shared by its attempts.
#[derive(Debug)]
pub struct Replay {
    source: Option<Rc<RefCell<Source>>>,
}

#[derive(Debug)]
struct Source {
    body: RequestBody,
    announced: Option<u64>,
    kept: Vec<Bytes>,
    /// Small pieces behind those, copied together.
    tail: BytesMut,
    trailers: Option<HeaderMap>,
    kept_bytes: usize,
    keep: usize,
    limit: u64,
    received: u64,
    /// More was received than is kept, so only the present attempt can go on.
    outgrown: bool,
    finished: bool,
    failed: Option<Failure>,
}

/// A piece from here on is kept as it is. It holds little more than its own length in memory.
const LARGE: usize = 4 * 1024;
/// Small pieces are copied into buffers of about this length.
const TAIL: usize = 16 * 1024;

impl Source {
    /// Keeps a piece for another attempt, or gives up keeping.
    fn keep(&mut self, data: &Bytes) {
        if self.outgrown {
            return;
        }
        if self.kept_bytes + data.len() > self.keep {
            self.outgrown = true;
            self.kept = Vec::new();
            self.tail = BytesMut::new();
            return;
        }
        let is_first = self.kept_bytes == 0;
        self.kept_bytes += data.len();
        // Most requests have their whole content in one piece.
        if data.len() >= LARGE || (is_first && !data.is_empty()) {
            self.seal();
            self.kept.push(data.clone());
        } else {
            self.tail.extend_from_slice(data);
            if self.tail.len() >= TAIL {
                self.seal();
            }
        }
    }

    /// Makes the small pieces a large one.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.kept.push(self.tail.split().freeze());
        }
    }
}

/// How the client's content failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The client went away.
    Gone,
    /// It stopped sending.
    Stalled,
    /// It broke the protocol.
    Malformed,
    /// It sent more than is allowed.
    TooLarge,
}

impl Replay {
    /// No content.
    pub fn none() -> Self {
        Self { source: None }
    }

    /// Wraps a body: up to `keep` bytes can be sent again, more than `limit` fail.
    pub fn new(body: RequestBody, keep: usize, limit: Option<u64>) -> Self {
        if body.is_end_stream() {
            return Self { source: None };
        }
        let announced = body.size_hint().exact();
        let source = Source {
            body,
            announced,
            kept: Vec::new(),
            tail: BytesMut::new(),
            trailers: None,
            kept_bytes: 0,
            keep,
            limit: limit.unwrap_or(u64::MAX),
            received: 0,
            outgrown: false,
            finished: false,
            failed: None,
        };
        Self {
            source: Some(Rc::new(RefCell::new(source))),
        }
    }

    /// The content for one attempt. Only the latest one may be polled.
    pub fn attempt(&self) -> Upload {
        if let Some(source) = &self.source {
            source.borrow_mut().seal();
        }
        Upload {
            source: self.source.clone(),
            next: 0,
            trailers_sent: false,
        }
    }

    /// Whether another attempt could send everything from the start.
    pub fn is_repeatable(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            !source.outgrown && source.failed.is_none()
        })
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.source.is_none()
    }

    /// Whether everything has arrived and is kept, so that several attempts may send it at once.
    pub fn is_complete(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            source.finished && !source.outgrown && source.failed.is_none()
        })
    }

    /// Why the client's content failed, if it did.
    pub fn failure(&self) -> Option<Failure> {
        self.source.as_ref().and_then(|source| source.borrow().failed)
    }

    /// Bytes received from the client so far.
    pub fn received(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.borrow().received)
    }

    /// Everything, if it has all arrived and is still kept; for mirrors.
    pub fn complete(&self) -> Option<Bytes> {
        let Some(source) = &self.source else {
            return Some(Bytes::new());
        };
        let source = source.borrow();
        if !source.finished || source.outgrown {
            return None;
        }
        if let ([one], true) = (source.kept.as_slice(), source.tail.is_empty()) {
            return Some(one.clone());
        }
        let mut all = BytesMut::with_capacity(source.kept_bytes);
        for piece in &source.kept {
            all.extend_from_slice(piece);
        }
        all.extend_from_slice(&source.tail);
        Some(all.freeze())
    }
}

/// The content as one attempt sends it.
#[derive(Debug)]
pub struct Upload {
    source: Option<Rc<RefCell<Source>>>,
    next: usize,
    trailers_sent: bool,
}

impl Upload {
    /// No content at all.
    pub fn empty() -> Self {
        Self {
            source: None,
            next: 0,
            trailers_sent: false,
        }
    }

    /// Content in memory.
    pub fn full(bytes: Bytes) -> Self {
        Replay::new(RequestBody::Full(bytes), usize::MAX, None).attempt()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(source) = &this.source else {
            return Poll::Ready(None);
        };
        let mut source = source.borrow_mut();
        if let Some(kept) = source.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if source.finished {
            if let (false, Some(trailers)) = (this.trailers_sent, &source.trailers) {
                this.trailers_sent = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
            }
            return Poll::Ready(None);
        }
        if source.failed.is_some() {
            return Poll::Ready(Some(Err(BodyError::Truncated)));
        }
        match Pin::new(&mut source.body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                source.finished = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                source.failed = Some(match &error {
                    BodyError::Stalled => Failure::Stalled,
                    BodyError::Malformed(_) => Failure::Malformed,
                    BodyError::TooLarge => Failure::TooLarge,
                    BodyError::Truncated
                    | BodyError::Io(_)
                    | BodyError::Reset(_)
                    | BodyError::Abandoned(_) => Failure::Gone,
                });
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    source.received += data.len() as u64;
                    if source.received > source.limit {
                        source.failed = Some(Failure::TooLarge);
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                    if source.body.is_end_stream() {
                        source.finished = true;
                    }
                    source.keep(&data);
                    this.next = source.kept.len();
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        source.trailers = Some(trailers.clone());
                        this.trailers_sent = true;
                        source.finished = true;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            source.finished
                && self.next >= source.kept.len()
                && (self.trailers_sent || source.trailers.is_none())
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            Some(source) => source
                .borrow()
                .announced
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    async fn drain(upload: &mut Upload) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *upload).poll_frame(cx)).await {
            all.extend_from_slice(&frame?.into_data().expect("data only"));
        }
        Ok(all)
    }

    fn full(bytes: &'static [u8]) -> RequestBody {
        RequestBody::Full(Bytes::from_static(bytes))
    }

    #[tokio::test]
    async fn content_within_the_bound_is_sent_again_from_the_start() {
        let replay = Replay::new(full(b"hello"), 5, None);
        assert_eq!(drain(&mut replay.attempt()).await.unwrap(), b"hello");
        assert!(replay.is_repeatable());
        assert_eq!(drain(&mut replay.attempt()).await.unwrap(), b"hello");
        assert_eq!(replay.complete().unwrap(), "hello");
    }

    #[tokio::test]
    async fn content_beyond_the_bound_goes_through_once() {
        let replay = Replay::new(full(b"hello!"), 5, None);
        assert_eq!(drain(&mut replay.attempt()).await.unwrap(), b"hello!");
        assert!(!replay.is_repeatable());
        assert!(replay.complete().is_none());
    }

    #[tokio::test]
    async fn small_pieces_are_kept_together() {
        let replay = Replay::new(full(b"a"), 100_000, None);
        let mut upload = replay.attempt();
        assert_eq!(drain(&mut upload).await.unwrap(), b"a");
        let mut expected = b"a".to_vec();
        let mut keep = |piece: &[u8]| {
            let mut source = replay.source.as_ref().unwrap().borrow_mut();
            source.keep(&Bytes::copy_from_slice(piece));
            expected.extend_from_slice(piece);
        };
        for _ in 0..40_000 {
            keep(b"b");
            keep(b"");
        }
        keep(&[b'c'; LARGE]);
        keep(b"d");
        assert_eq!(replay.complete().unwrap(), expected);
        assert_eq!(drain(&mut replay.attempt()).await.unwrap(), expected);
        let pieces = replay.source.as_ref().unwrap().borrow().kept.len();
        assert!(pieces <= 8, "{pieces} pieces");
    }

    #[tokio::test]
    async fn content_beyond_the_limit_fails_and_says_so() {
        let replay = Replay::new(full(b"hello!"), 100, Some(5));
        assert!(matches!(
            drain(&mut replay.attempt()).await,
            Err(BodyError::TooLarge)
        ));
        assert_eq!(replay.failure(), Some(Failure::TooLarge));
        assert!(!replay.is_repeatable());
    }
}
