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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::io::AsyncWriteExt;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::net::memory;
    use crate::wire::Toolbox;
    use crate::wire::testing::{Raw, run, secs, sleep};

    /// What a socket holds for somebody who does not read.
    const CAPACITY: usize = 4 * 1024;

    struct Ends {
        client: Raw,
        endpoint: Raw,
        carried: JoinHandle<Carried>,
    }

    fn tunnel(tools: &Toolbox, early: &'static [u8], idle: Option<Duration>) -> Ends {
        let (client, near) = memory::pair(CAPACITY);
        let (endpoint, far) = memory::pair(CAPACITY);
        let wheel = tools.wheel.clone();
        let carried = tokio::task::spawn_local(async move {
            let mut near = Tunnel::stream(near, Bytes::from_static(early));
            let mut far = Tunnel::stream(far, Bytes::new());
            copy(&mut near, &mut far, &wheel, idle).await
        });
        Ends {
            client: Raw { io: client },
            endpoint: Raw { io: endpoint },
            carried,
        }
    }

    fn heard(text: &str, closed: bool) -> (String, bool) {
        (text.to_owned(), closed)
    }

    #[test]
    fn either_side_may_end_first_and_the_other_goes_on() {
        run(|tools| async move {
            for client_first in [true, false] {
                let Ends {
                    client,
                    endpoint,
                    carried,
                } = tunnel(&tools, b"", None);
                let (mut first, mut second) = if client_first {
                    (client, endpoint)
                } else {
                    (endpoint, client)
                };
                first.send("that is all").await;
                first.io.shutdown().await.unwrap();
                assert_eq!(second.receive().await, heard("that is all", true));
                // Long after, and more than once.
                for _ in 0..3 {
                    sleep(secs(1000)).await;
                    second.send("not here").await;
                    assert_eq!(first.receive().await, heard("not here", false));
                }
                assert!(!carried.is_finished());
                second.io.shutdown().await.unwrap();
                assert_eq!(first.receive().await, heard("", true));
                let carried = carried.await.unwrap();
                let (up, down) = if client_first { (11, 24) } else { (24, 11) };
                assert_eq!((carried.up, carried.down), (up, down));
                assert!(!carried.idle && !carried.broken);
            }
        });
    }

    #[test]
    fn what_was_read_before_the_switch_comes_first() {
        run(|tools| async move {
            let mut ends = tunnel(&tools, b"early ", None);
            ends.client.send("late").await;
            assert_eq!(ends.endpoint.receive().await, heard("early late", false));
        });
    }

    #[test]
    fn a_side_that_does_not_read_stops_the_other_and_only_in_that_direction() {
        run(|tools| async move {
            let Ends {
                client,
                mut endpoint,
                carried,
            } = tunnel(&tools, b"", None);
            let written = Rc::new(Cell::new(0));
            let (mut read, mut write) = tokio::io::split(client.io);
            let count = Rc::clone(&written);
            let writing = tokio::task::spawn_local(async move {
                for _ in 0..1000 {
                    write.write_all(&[b'x'; 1000]).await.unwrap();
                    count.set(count.get() + 1000);
                }
                write.shutdown().await.unwrap();
            });
            sleep(secs(10)).await;
            // Both sockets are full, and so is the one buffer between them.
            assert!(written.get() <= 2 * CAPACITY + BUFFER, "{}", written.get());
            endpoint.send("still here").await;
            let mut back = [0; 10];
            tokio::io::AsyncReadExt::read_exact(&mut read, &mut back)
                .await
                .unwrap();
            assert_eq!(&back, b"still here");
            let (all, closed) = endpoint.receive().await;
            assert_eq!((all.len(), closed), (1_000_000, true));
            writing.await.unwrap();
            drop(endpoint);
            assert_eq!(carried.await.unwrap().up, 1_000_000);
        });
    }

    #[test]
    fn it_ends_when_nothing_moves_in_either_direction() {
        run(|tools| async move {
            let mut ends = tunnel(&tools, b"", Some(secs(10)));
            for _ in 0..5 {
                sleep(secs(8)).await;
                ends.endpoint.send("tick").await;
                assert_eq!(ends.client.receive().await.0, "tick");
            }
            let carried = tokio::time::timeout(secs(11), ends.carried)
                .await
                .expect("it ends")
                .unwrap();
            assert!(carried.idle && !carried.broken);
            assert_eq!(ends.client.receive().await, heard("", true));
            assert_eq!(ends.endpoint.receive().await, heard("", true));
        });
    }

    #[test]
    fn a_side_that_breaks_takes_the_other_along() {
        run(|tools| async move {
            let mut ends = tunnel(&tools, b"", None);
            drop(ends.endpoint);
            ends.client.send("anybody?").await;
            let carried = ends.carried.await.unwrap();
            assert!(carried.broken);
            assert!(ends.client.receive().await.1);
        });
    }
}
