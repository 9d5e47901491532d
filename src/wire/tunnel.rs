//! Raw bytes after a switch of protocols (WebSocket, extended CONNECT), copied both ways.
//!
//! Each direction ends on its own: when one side closes its half, the other direction goes on until it ends too, or
//! until neither has moved a byte for the idle time.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::http2::StreamTunnel;
use crate::net::Io;
use crate::net::wheel::Wheel;

/// What one direction holds at most.
const BUFFER: usize = 16 * 1024;

/// One end of a tunnel.
#[derive(Debug)]
pub enum Tunnel {
    /// A whole connection.
    Stream(Box<Stream>),
    /// One HTTP/2 stream.
    Http2(Box<StreamTunnel>),
}

/// A connection with bytes that were read ahead.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    early: Bytes,
    pending: Bytes,
}

impl Tunnel {
    /// A whole connection; `early` was read from it before the switch.
    pub fn stream(io: Io, early: Bytes) -> Self {
        Self::Stream(Box::new(Stream {
            io,
            early,
            pending: Bytes::new(),
        }))
    }

    /// The next bytes; `None` at the end of this direction.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Self::Stream(stream) => {
                if !stream.early.is_empty() {
                    return Poll::Ready(Ok(Some(std::mem::take(&mut stream.early))));
                }
                let mut buffer = BytesMut::with_capacity(BUFFER);
                let count = ready!(tokio_util::io::poll_read_buf(
                    Pin::new(&mut stream.io),
                    cx,
                    &mut buffer
                ))?;
                Poll::Ready(Ok((count > 0).then(|| buffer.freeze())))
            }
            Self::Http2(stream) => stream.poll_read(cx),
        }
    }

    /// Hands over bytes; call only after [`Tunnel::poll_ready`] was ready.
    fn start_write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.pending = bytes;
                Ok(())
            }
            Self::Http2(stream) => stream.start_write(bytes),
        }
    }

    /// Ready when everything handed over has left and more may follow.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Stream(stream) => {
                if stream.pending.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                while !stream.pending.is_empty() {
                    let count = ready!(Pin::new(&mut stream.io).poll_write(cx, &stream.pending))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    stream.pending.advance(count);
                }
                Pin::new(&mut stream.io).poll_flush(cx)
            }
            Self::Http2(stream) => stream.poll_ready(cx),
        }
    }

    /// Ends this direction.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Stream(stream) => Pin::new(&mut stream.io).poll_shutdown(cx),
            Self::Http2(stream) => Poll::Ready(stream.finish()),
        }
    }
}

/// What a finished tunnel carried.
#[derive(Debug, Default, Clone, Copy)]
pub struct Carried {
    /// Bytes from the client to the endpoint.
    pub up: u64,
    /// Bytes from the endpoint to the client.
    pub down: u64,
    /// Ended because nothing moved for the idle time.
    pub idle: bool,
    /// Ended by an error on either side rather than by both halves closing.
    pub broken: bool,
}

#[derive(Debug, Default)]
struct Direction {
    read_done: bool,
    finished: bool,
}

/// Copies both ways until both directions have ended.
pub async fn copy(
    client: &mut Tunnel,
    endpoint: &mut Tunnel,
    wheel: &Wheel,
    idle: Option<Duration>,
) -> Carried {
    let mut carried = Carried::default();
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let timer = wheel.timer();
    if let Some(idle) = idle {
        timer.set(wheel.now().plus(idle));
    }
    poll_fn(|cx| {
        let before = carried.up + carried.down;
        let first = poll_direction(cx, client, endpoint, &mut up, &mut carried.up);
        let second = poll_direction(cx, endpoint, client, &mut down, &mut carried.down);
        if first.is_err() || second.is_err() {
            carried.broken = true;
            return Poll::Ready(());
        }
        if up.finished && down.finished {
            return Poll::Ready(());
        }
        if let Some(idle) = idle {
            if carried.up + carried.down != before {
                timer.set(wheel.now().plus(idle));
            }
            if timer.poll_expired(cx).is_ready() {
                carried.idle = true;
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
    carried
}

/// Moves bytes while both sides allow it. Other directions get their turn because each call moves a bounded amount.
fn poll_direction(
    cx: &mut Context<'_>,
    from: &mut Tunnel,
    to: &mut Tunnel,
    state: &mut Direction,
    count: &mut u64,
) -> io::Result<()> {
    for _ in 0..16 {
        if state.finished {
            return Ok(());
        }
        match to.poll_ready(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => return Ok(()),
        }
        if state.read_done {
            match to.poll_finish(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Ok(()),
            }
            state.finished = true;
            return Ok(());
        }
        match from.poll_read(cx)? {
            Poll::Ready(Some(bytes)) => {
                *count += bytes.len() as u64;
                to.start_write(bytes)?;
            }
            Poll::Ready(None) => state.read_done = true,
            Poll::Pending => return Ok(()),
        }
    }
    cx.waker().wake_by_ref();
    Ok(())
}
