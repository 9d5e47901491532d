//! HTTP/1.1 (RFC 9112), strict in what it accepts and exact in what it writes.
//!
//! [`head`], [`chunked`] and [`encode`] are pure functions on bytes; [`server`] and [`client`] drive them over a
//! stream. Nothing a peer wrote about framing or connection management is ever copied to the other side: heads are
//! parsed into values and written anew.

pub mod chunked;
pub mod client;
pub mod encode;
pub mod head;
#[cfg(test)]
mod laws;
mod scan;
pub mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::io::AsyncWrite;

use super::BodyError;
use crate::net::Io;
use head::Framing;

/// What a head may take from the socket at once.
const HEAD_READ: usize = 4 * 1024;
/// What a body may take from the socket at once. Larger reads halve the system calls of large bodies.
const BODY_READ: usize = 64 * 1024;
/// Data of this size or less is copied behind the head or the chunk prefix, so that one system call sends both.
const COPY_BELOW: usize = 8 * 1024;

/// Cuts frames out of buffered bytes according to the framing of the message.
#[derive(Debug)]
pub(super) enum Decoder {
    /// Nothing (more) belongs to the message.
    Done,
    /// As `Done`, but the peer tried something on the way: its connection must not carry another message.
    Spent,
    /// This many bytes are left.
    Length(u64),
    /// Chunks and trailers follow.
    Chunked(Box<chunked::Decoder>),
    /// The message ends with the connection (responses only).
    UntilClose,
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Box::new(chunked::Decoder::new(chunked::Limits::default()))),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done | Self::Spent)
    }

    /// Whether another message may follow on the connection.
    pub(super) fn is_reusable(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes that are still to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Done | Self::Spent => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done | Self::Spent => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::UntilClose => SizeHint::default(),
        }
    }

    /// How much to ask of the socket.
    fn want(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(BODY_READ).clamp(1024, BODY_READ),
            Self::Chunked(_) | Self::UntilClose => BODY_READ,
            Self::Done | Self::Spent => HEAD_READ,
        }
    }

    /// The next frame in `input`; `None` when more bytes are needed. After the last frame the decoder is done.
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, BodyError> {
        match self {
            Self::Done | Self::Spent => Ok(None),
            Self::Length(left) => {
                if input.is_empty() {
                    return Ok(None);
                }
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= take as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Some(Frame::data(input.split_to(take).freeze())))
            }
            Self::Chunked(decoder) => match decoder.decode(input) {
                Ok(None) => Ok(None),
                Ok(Some(chunked::Decoded::Data(data))) => Ok(Some(Frame::data(data))),
                Ok(Some(chunked::Decoded::End(trailers))) => {
                    // A field that must not come late was either a mistake or an attempt to smuggle.
                    *self = if decoder.dropped_trailers() > 0 {
                        Self::Spent
                    } else {
                        Self::Done
                    };
                    Ok(trailers.map(Frame::trailers))
                }
                Err(error) => Err(BodyError::Malformed(error.name())),
            },
            Self::UntilClose => Ok((!input.is_empty()).then(|| Frame::data(input.split().freeze()))),
        }
    }

    /// Polls the next frame, reading from `io` as needed. `None` is the regular end.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        input: &mut BytesMut,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.decode(input) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(poll_fill(cx, io, input, self.want())) {
                Ok(0) if matches!(self, Self::UntilClose) => {
                    *self = Self::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(BodyError::Truncated))),
                Ok(_) => {}
                Err(error) => {
                    return Poll::Ready(Some(Err(match error.kind() {
                        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => BodyError::Truncated,
                        _ => BodyError::Io(error),
                    })));
                }
            }
        }
    }
}

/// Appends what the socket has, up to about `want` bytes. `Ok(0)` is the end of the stream.
///
/// What is left of the buffer is used while it is half of that: a read that stops at the end of the buffer costs another
/// system call (measured with answers of 1.2 kB: every fourth), and making room costs nothing when nobody holds the bytes
/// of the message before.
pub(super) fn poll_fill(
    cx: &mut Context<'_>,
    io: &mut Io,
    input: &mut BytesMut,
    want: usize,
) -> Poll<io::Result<usize>> {
    if input.capacity() - input.len() < want / 2 {
        input.reserve(want);
    }
    tokio_util::io::poll_read_buf(Pin::new(io), cx, input)
}

/// Bytes on their way to a socket: a flat buffer, then at most one chunk that is not copied, then its line end.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) flat: BytesMut,
    chunk: Bytes,
    tail: &'static [u8],
    /// The stream took bytes that it may still hold back (TLS).
    unflushed: bool,
    /// Bytes accepted by the socket so far.
    pub(super) written: u64,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.flat.is_empty() && self.chunk.is_empty() && self.tail.is_empty() && !self.unflushed
    }

    /// Gives back what an idle connection does not need.
    pub(super) fn shrink(&mut self, keep: usize) {
        if self.flat.is_empty() && self.flat.capacity() > keep {
            self.flat = BytesMut::new();
        }
    }

    /// Whether another frame may be appended before something is written.
    pub(super) fn has_room(&self) -> bool {
        self.chunk.is_empty() && self.tail.is_empty() && self.flat.len() < COPY_BELOW
    }

    /// Appends the data of one frame; call only while [`Output::has_room`].
    pub(super) fn push_data(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            // An empty chunk would end a chunked message.
            return;
        }
        if chunked {
            encode::chunk_prefix(&mut self.flat, data.len());
        }
        if data.len() <= COPY_BELOW {
            self.flat.extend_from_slice(&data);
            if chunked {
                self.flat.extend_from_slice(b"\r\n");
            }
        } else {
            self.chunk = data;
            self.tail = if chunked { b"\r\n" } else { b"" };
        }
    }

    /// Writes everything to `io`, and through it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, io: &mut Io) -> Poll<io::Result<()>> {
        while !self.flat.is_empty() || !self.chunk.is_empty() || !self.tail.is_empty() {
            let count = if self.chunk.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.flat))?
            } else {
                let slices = [
                    io::IoSlice::new(&self.flat),
                    io::IoSlice::new(&self.chunk),
                    io::IoSlice::new(self.tail),
                ];
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count as u64;
            self.unflushed = true;
            let flat = count.min(self.flat.len());
            self.flat.advance(flat);
            let chunk = (count - flat).min(self.chunk.len());
            self.chunk.advance(chunk);
            if self.chunk.is_empty() {
                self.chunk = Bytes::new();
            }
            self.tail = self.tail.get(count - flat - chunk..).unwrap_or_default();
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
