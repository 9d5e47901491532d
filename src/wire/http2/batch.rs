//! One system call for all that an HTTP/2 connection has to say at one go.
//!
//! The h2 crate flushes behind every DATA frame of more than a few hundred bytes, so that eight answers which are ready
//! together leave in eight writes. Here small writes are gathered instead, flushing does nothing, and the task that
//! drives the connection flushes once when the crate has nothing more to do. What is large goes out at once, together
//! with what was gathered before it, without being copied.
//!
//! Invariant: whoever polls the connection polls [`Batch::poll_flush`] before it waits.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::Io;

/// What is copied to be gathered: about what a system call costs.
const COPY_BELOW: usize = 4 * 1024;
/// What is gathered at most.
const MOST: usize = 16 * 1024;

/// A stream that is read and written by the h2 crate and flushed by its task.
#[derive(Debug)]
pub(super) struct Batch {
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    io: Io,
    gathered: BytesMut,
    /// The stream took bytes that it may still hold back (TLS).
    unflushed: bool,
    /// What the flush said, to be told to the next reader.
    failed: Option<io::Error>,
}

impl Batch {
    pub(super) fn new(io: Io) -> Rc<Self> {
        let inner = Inner {
            io,
            gathered: BytesMut::new(),
            unflushed: false,
            failed: None,
        };
        Rc::new(Self {
            inner: RefCell::new(inner),
        })
    }

    /// Sends what was gathered. False when the stream failed; the next read says how.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let inner = &mut *self.inner.borrow_mut();
        Poll::Ready(match ready!(inner.poll_flush(cx)) {
            Ok(()) => true,
            Err(error) => {
                inner.gathered = BytesMut::new();
                inner.unflushed = false;
                inner.failed = Some(error);
                false
            }
        })
    }

    /// Gives back what a connection without streams does not need.
    pub(super) fn shrink(&self) {
        let mut inner = self.inner.borrow_mut();
        if inner.gathered.is_empty() {
            inner.gathered = BytesMut::new();
        }
    }
}

impl Inner {
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        let sent = if self.gathered.is_empty() {
            ready!(io.poll_write(cx, bytes))?
        } else if bytes.is_empty() {
            ready!(io.poll_write(cx, &self.gathered))?
        } else {
            let slices = [io::IoSlice::new(&self.gathered), io::IoSlice::new(bytes)];
            ready!(io.poll_write_vectored(cx, &slices))?
        };
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        let gathered = sent.min(self.gathered.len());
        self.gathered.advance(gathered);
        Poll::Ready(Ok(sent - gathered))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() <= COPY_BELOW && self.gathered.len() + bytes.len() <= MOST {
            self.gathered.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        loop {
            let count = ready!(self.poll_send(cx, bytes))?;
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            ready!(self.poll_send(cx, &[]))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// The end of a [`Batch`] that the h2 crate holds.
#[derive(Debug)]
pub(super) struct Batched(pub(super) Rc<Batch>);

impl AsyncRead for Batched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.inner.borrow_mut();
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut inner.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Batched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.inner.borrow_mut().poll_write(cx, buf)
    }

    /// Left to the task.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.inner.borrow_mut();
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::net::memory;
    use crate::wire::testing::{Raw, run};

    #[test]
    fn small_writes_wait_for_the_flush_and_large_ones_take_them_along_in_order() {
        run(|_| async move {
            let (near, far) = memory::pair(64 * 1024);
            let batch = Batch::new(near);
            let (mut io, mut peer) = (Batched(Rc::clone(&batch)), Raw { io: far });
            io.write_all(b"one ").await.unwrap();
            io.flush().await.unwrap();
            io.write_all(b"two").await.unwrap();
            assert_eq!(peer.receive().await, (String::new(), false));
            assert!(poll_fn(|cx| batch.poll_flush(cx)).await);
            assert_eq!(peer.receive().await, ("one two".into(), false));
            batch.shrink();
            io.write_all(b"three ").await.unwrap();
            io.write_all(&[b'x'; 5000]).await.unwrap();
            let (said, _) = peer.receive().await;
            assert!(said.starts_with("three xxx") && said.len() == 5006);
            io.write_all(b"four").await.unwrap();
            io.shutdown().await.unwrap();
            assert_eq!(peer.receive().await, ("four".into(), true));
        });
    }

    #[test]
    fn no_more_is_gathered_than_may_be_and_none_of_it_is_lost() {
        run(|_| async move {
            let (near, mut far) = memory::pair(100);
            let batch = Batch::new(near);
            let mut io = Batched(Rc::clone(&batch));
            let writing = tokio::task::spawn_local(async move {
                for at in 0..1000_u32 {
                    let width = 1 + at as usize % 99 * 60;
                    let line = format!("{at:0>width$}\n");
                    io.write_all(line.as_bytes()).await.unwrap();
                    assert!(io.0.inner.borrow().gathered.len() <= MOST);
                }
                io.shutdown().await.unwrap();
            });
            let mut all = String::new();
            far.read_to_string(&mut all).await.unwrap();
            writing.await.unwrap();
            assert!(all.lines().zip(0..).all(|(line, at)| line.parse() == Ok(at)));
            assert_eq!(all.lines().count(), 1000);
        });
    }

    #[test]
    fn a_flush_that_fails_is_told_to_the_next_reader() {
        run(|_| async move {
            let (near, far) = memory::pair(100);
            let batch = Batch::new(near);
            let mut io = Batched(Rc::clone(&batch));
            drop(far);
            io.write_all(b"anybody?").await.unwrap();
            assert!(!poll_fn(|cx| batch.poll_flush(cx)).await);
            assert!(io.read_u8().await.is_err());
            assert!(poll_fn(|cx| batch.poll_flush(cx)).await);
        });
    }
}
