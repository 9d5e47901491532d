//! `Io`: the one byte stream type of the data path, and what is known about its other end.
//!
//! It is an enum and not a `Box<dyn …>` because nearly every stream is a plain TCP socket, which then costs neither
//! an allocation nor an indirect call; TLS is boxed, so that an idle plain connection does not pay for its size.
//! Bytes that were read too early (behind a PROXY header, while guessing a protocol, while watching an idle
//! connection) are put back with [`Io::prefixed`]; the first read past them removes the layer again.
//! Invariant: no method loses bytes; what [`Io::idle_state`] and [`Io::readable`] had to read is given back.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop::unconstrained;

use super::address::SocketAddress;
use super::proxy_protocol::Proxied;
use super::tls::{ClientStream, ServerStream, TlsInfo};

/// A connected, bidirectional stream of bytes.
pub struct Io(Kind);

/// Anything that can be carried inside an [`Io`].
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    TlsServer(Box<ServerStream>),
    TlsClient(Box<ClientStream>),
    Boxed(Box<dyn Stream>),
    Prefixed(Box<Prefixed>),
    /// Only while a drained prefix is being removed; never seen by a caller.
    Gone,
}

struct Prefixed {
    bytes: Bytes,
    io: Io,
}

/// What an idle connection has to say, asked without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing arrived: as good as it was.
    Quiet,
    /// Bytes arrived. On an idle upstream connection nobody asked for them, so it must not be used again.
    Readable,
    /// The peer closed or reset it, or broke TLS.
    Closed,
}

impl Io {
    /// Wraps any stream, at the price of one indirect call per read and write.
    pub fn boxed(stream: impl Stream + 'static) -> Self {
        Self(Kind::Boxed(Box::new(stream)))
    }

    /// The same stream with `bytes` in front of what is still to come.
    #[must_use]
    pub fn prefixed(self, bytes: Bytes) -> Self {
        if bytes.is_empty() {
            self
        } else {
            Self(Kind::Prefixed(Box::new(Prefixed { bytes, io: self })))
        }
    }

    pub(super) fn tls_server(stream: ServerStream) -> Self {
        Self(Kind::TlsServer(Box::new(stream)))
    }

    pub(super) fn tls_client(stream: ClientStream) -> Self {
        Self(Kind::TlsClient(Box::new(stream)))
    }

    /// Looks whether anything happened on a connection nobody was reading from.
    ///
    /// On a plain socket this is one atomic load while the runtime has seen no event, and one read otherwise (measured:
    /// one system call in a million looks at a quiet connection, the first). On TLS,
    /// records that carry no data (session tickets, key updates) are processed and count as quiet. Anything read is
    /// kept for the next reader.
    pub fn idle_state(&mut self) -> IdleState {
        let mut byte = [0; 1];
        // `try_read` asks tokio's cached readiness first and makes no system call when that says no.
        let read = match &self.0 {
            Kind::Tcp(stream) => stream.try_read(&mut byte),
            Kind::Unix(stream) => stream.try_read(&mut byte),
            Kind::Prefixed(_) => return IdleState::Readable,
            Kind::TlsServer(_) | Kind::TlsClient(_) | Kind::Boxed(_) | Kind::Gone => self.read_now(&mut byte),
        };
        match read {
            Ok(0) => IdleState::Closed,
            Ok(_) => {
                self.put_back(Bytes::copy_from_slice(&byte));
                IdleState::Readable
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => IdleState::Quiet,
            Err(_) => IdleState::Closed,
        }
    }

    /// Takes a plain connection out of its runtime, so that it can go on in another one.
    ///
    /// # Errors
    /// The connection itself, when it is not plain or its runtime does not let it go.
    pub fn detach(self) -> Result<Detached, Self> {
        match self.0 {
            Kind::Tcp(stream) => stream
                .into_std()
                .map(Detached::Tcp)
                .map_err(|_gone| Self(Kind::Gone)),
            Kind::Unix(stream) => stream
                .into_std()
                .map(Detached::Unix)
                .map_err(|_gone| Self(Kind::Gone)),
            other => Err(Self(other)),
        }
    }

    /// Makes the coming close a reset (RST instead of FIN), for answers that end with the connection and were cut.
    pub fn abort(&mut self) {
        match &mut self.0 {
            // Failing to set an option on a socket that is about to go changes nothing that could be repaired.
            Kind::Tcp(stream) => {
                drop(socket2::SockRef::from(&*stream).set_linger(Some(std::time::Duration::ZERO)));
            }
            Kind::TlsServer(stream) => stream.get_mut().0.abort(),
            Kind::TlsClient(stream) => stream.get_mut().0.abort(),
            Kind::Prefixed(prefixed) => prefixed.io.abort(),
            Kind::Unix(_) | Kind::Boxed(_) | Kind::Gone => {}
        }
    }

    /// Waits until a read would return something: data, the end, or an error.
    ///
    /// For connections that sleep between requests without holding a buffer. Cancel safe.
    ///
    /// # Errors
    /// A broken TLS session or a failed socket; the next read would say the same of a socket.
    pub async fn readable(&mut self) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(stream) => return stream.readable().await,
            Kind::Unix(stream) => return stream.readable().await,
            Kind::Prefixed(_) => return Ok(()),
            Kind::TlsServer(_) | Kind::TlsClient(_) | Kind::Boxed(_) | Kind::Gone => {}
        }
        let mut byte = [0; 1];
        let read = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut byte);
            Pin::new(&mut *self)
                .poll_read(cx, &mut buffer)
                .map_ok(|()| buffer.filled().len())
        })
        .await?;
        if read == 1 {
            self.put_back(Bytes::copy_from_slice(&byte));
        }
        Ok(())
    }

    /// One read that never waits and leaves no waker behind.
    fn read_now(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        let read = poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut buffer));
        // Outside the cooperative budget: running out of it would look like silence.
        match pin!(unconstrained(read)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.map(|()| buffer.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn put_back(&mut self, bytes: Bytes) {
        let io = std::mem::replace(self, Self(Kind::Gone));
        *self = io.prefixed(bytes);
    }
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Tcp(stream))
    }
}

impl From<UnixStream> for Io {
    fn from(stream: UnixStream) -> Self {
        Self(Kind::Unix(stream))
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Tcp(_) => "Io::Tcp",
            Kind::Unix(_) => "Io::Unix",
            Kind::TlsServer(_) => "Io::TlsServer",
            Kind::TlsClient(_) => "Io::TlsClient",
            Kind::Boxed(_) => "Io::Boxed",
            Kind::Prefixed(_) => "Io::Prefixed",
            Kind::Gone => "Io::Gone",
        })
    }
}

/// A stream that exists only between two statements, see [`Kind::Gone`].
fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::TlsServer(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::TlsClient(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Boxed(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Prefixed(prefixed) => {
                let count = prefixed.bytes.len().min(buf.remaining());
                buf.put_slice(&prefixed.bytes[..count]);
                prefixed.bytes.advance(count);
                if prefixed.bytes.is_empty()
                    && let Kind::Prefixed(drained) = std::mem::replace(&mut this.0, Kind::Gone)
                {
                    this.0 = drained.io.0;
                }
                Poll::Ready(Ok(()))
            }
            Kind::Gone => Poll::Ready(Err(gone())),
        }
    }
}

/// Forwards a writing method to whatever carries the bytes; a prefix concerns reading only.
macro_rules! forward {
    ($io:expr, $stream:ident => $call:expr, $gone:expr) => {
        match &mut $io.get_mut().0 {
            Kind::Tcp(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Kind::Unix(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Kind::TlsServer(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Kind::TlsClient(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Kind::Boxed(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Kind::Prefixed(inner) => {
                let $stream = Pin::new(&mut inner.io);
                $call
            }
            Kind::Gone => $gone,
        }
    };
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, stream => stream.poll_write(cx, buf), Poll::Ready(Err(gone())))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => stream.poll_flush(cx), Poll::Ready(Err(gone())))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => stream.poll_shutdown(cx), Poll::Ready(Err(gone())))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, stream => stream.poll_write_vectored(cx, bufs), Poll::Ready(Err(gone())))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Tcp(_) | Kind::Unix(_) => true,
            Kind::TlsServer(stream) => stream.is_write_vectored(),
            Kind::TlsClient(stream) => stream.is_write_vectored(),
            Kind::Boxed(stream) => stream.is_write_vectored(),
            Kind::Prefixed(prefixed) => prefixed.io.is_write_vectored(),
            Kind::Gone => false,
        }
    }
}

/// A plain connection between two runtimes.
#[derive(Debug)]
pub enum Detached {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// Unix.
    Unix(std::os::unix::net::UnixStream),
}

impl Detached {
    /// Takes the connection into the current runtime.
    ///
    /// # Errors
    /// What the kernel said when the socket was registered.
    pub fn attach(self) -> io::Result<Io> {
        Ok(match self {
            Self::Tcp(stream) => TcpStream::from_std(stream)?.into(),
            Self::Unix(stream) => UnixStream::from_std(stream)?.into(),
        })
    }
}

/// Who is at the other end of a connection, and how it came here.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The other end of the socket.
    pub peer: SocketAddress,
    /// Our end of the socket.
    pub local: SocketAddress,
    /// What TLS agreed on; none on a plain connection.
    pub tls: Option<TlsInfo>,
    /// What a trusted peer's PROXY header said; none without one.
    pub proxied: Option<Proxied>,
}

impl PeerInfo {
    /// The client's address as far as it is known: the PROXY header's if there was one, else the socket's.
    pub fn client(&self) -> Option<SocketAddr> {
        self.proxied
            .map_or_else(|| self.peer.ip(), |proxied| Some(proxied.source))
    }

    /// What the client connected to: by the PROXY header if there was one, else our end of the socket.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.proxied
            .map_or_else(|| self.local.ip(), |proxied| Some(proxied.destination))
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn tcp_pair() -> (Io, Io) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap().into(), server.unwrap().0.into())
    }

    #[tokio::test]
    async fn a_prefix_is_read_first_and_then_vanishes() {
        let (mut client, server) = memory::pair(64);
        client.write_all(b"world").await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = server.prefixed(Bytes::from_static(b"hello "));
        assert_eq!(server.idle_state(), IdleState::Readable);
        let mut first = [0; 3];
        server.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"hel");
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "lo world");
        assert_eq!(format!("{server:?}"), "Io::Boxed");
    }

    #[tokio::test]
    async fn an_idle_socket_is_quiet_until_something_arrives_and_loses_nothing() {
        let (mut client, mut server) = tcp_pair().await;
        assert_eq!(server.idle_state(), IdleState::Quiet);
        client.write_all(b"unasked").await.unwrap();
        server.readable().await.unwrap();
        assert_eq!(server.idle_state(), IdleState::Readable);
        let mut text = [0; 7];
        server.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"unasked");
        assert_eq!(server.idle_state(), IdleState::Quiet);
    }

    #[tokio::test]
    async fn an_idle_socket_says_when_the_peer_left() {
        let (client, mut server) = tcp_pair().await;
        drop(client);
        server.readable().await.unwrap();
        assert_eq!(server.idle_state(), IdleState::Closed);

        let (client, mut server) = memory::pair(8);
        assert_eq!(server.idle_state(), IdleState::Quiet);
        drop(client);
        assert_eq!(server.idle_state(), IdleState::Closed);
    }

    #[tokio::test]
    async fn waiting_for_a_boxed_stream_keeps_the_byte_it_read() {
        let (mut client, mut server) = memory::pair(8);
        client.write_all(b"ab").await.unwrap();
        server.readable().await.unwrap();
        let mut text = [0; 2];
        server.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"ab");
    }

    #[test]
    fn an_io_may_be_handed_to_another_worker() {
        fn may_be_sent<T: Send + Unpin + 'static>() {}
        may_be_sent::<Io>();
        may_be_sent::<PeerInfo>();
    }

    #[test]
    fn an_io_is_small() {
        // Every connection and every pool slot holds one; TLS state is behind a box.
        assert!(size_of::<Io>() <= 48, "{}", size_of::<Io>());
    }
}
