//! Scripted upstream servers: each behaviour is an async function over one connection.
//!
//! An upstream reads requests without mercy. What it must never receive is kept as a complaint, and the test fails when
//! the upstream is dropped.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::background;
use super::http1::{Fields, Framing, Head, Reader};

/// A server on a port the kernel chose. It stops when dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    log: Arc<Log>,
    stop: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Log {
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: Mutex<Vec<Received>>,
    bytes: Mutex<Vec<u8>>,
    complaints: Mutex<Vec<String>>,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    pub(crate) framing: Framing,
    /// Whether the peer wants to go on.
    pub(crate) keep_alive: bool,
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) reader: Reader<TcpStream>,
    /// Which connection of this upstream, from 0.
    pub(crate) index: usize,
    log: Arc<Log>,
}

impl Upstream {
    /// Runs `behaviour` for each connection. An error of reading what is not HTTP is a complaint; the peer going away
    /// is not.
    pub(crate) fn each<F, B>(behaviour: B) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
        B: Fn(Peer) -> F + Send + Sync + 'static,
    {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(socket, behaviour)
    }

    /// The same on a given socket.
    pub(crate) fn on<F, B>(socket: std::net::TcpListener, behaviour: B) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
        B: Fn(Peer) -> F + Send + Sync + 'static,
    {
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("bound");
        let log = Arc::<Log>::default();
        let (stop, stopped) = watch::channel(false);
        background().spawn(accept(socket, Arc::clone(&log), stopped, Arc::new(behaviour)));
        Self { address, log, stop }
    }

    /// Answers every request the same.
    pub(crate) fn answers(status: u16, body: &'static str) -> Self {
        Self::each(move |mut peer| async move {
            while let Some(request) = peer.request().await? {
                peer.answer(&request, status, "", body.as_bytes()).await?;
            }
            Ok(())
        })
    }

    /// Says its name, so that a test sees who was asked.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::answers(200, name)
    }

    /// Tells what it received, as JSON.
    pub(crate) fn echo() -> Self {
        Self::each(|mut peer| async move {
            while let Some(request) = peer.request().await? {
                let body = request.json();
                peer.answer(
                    &request,
                    200,
                    "content-type: application/json\r\n",
                    body.as_bytes(),
                )
                .await?;
            }
            Ok(())
        })
    }

    /// Sends these bytes after each request head and body, then goes on.
    pub(crate) fn sends(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::each(move |mut peer| {
            let bytes = Arc::clone(&bytes);
            async move {
                while peer.request().await?.is_some() {
                    peer.send(&bytes).await?;
                }
                Ok(())
            }
        })
    }

    /// Sends these bytes after the first request, then closes.
    pub(crate) fn sends_and_closes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::each(move |mut peer| {
            let bytes = Arc::clone(&bytes);
            async move {
                if peer.request().await?.is_some() {
                    peer.send(&bytes).await?;
                }
                Ok(())
            }
        })
    }

    /// Reads a request and then says nothing.
    pub(crate) fn stalls() -> Self {
        Self::each(|mut peer| async move {
            while peer.request().await?.is_some() {}
            Ok(())
        })
    }

    /// Sends a head that promises a body, and nothing else.
    pub(crate) fn stalls_after_headers() -> Self {
        Self::each(|mut peer| async move {
            peer.request().await?;
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
                .await?;
            peer.reader.rest().await?;
            Ok(())
        })
    }

    /// Resets the connection once a request has arrived.
    pub(crate) fn resets() -> Self {
        Self::each(|mut peer| async move {
            if peer.request().await?.is_some() {
                peer.reset();
            }
            Ok(())
        })
    }

    /// Keeps every byte and answers nothing: what arrived is what the proxy wrote.
    pub(crate) fn records() -> Self {
        Self::each(|mut peer| async move {
            let log = Arc::clone(&peer.log);
            loop {
                use tokio::io::AsyncReadExt;
                let mut bytes = Vec::new();
                if peer.reader.io.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
                log.bytes.lock().extend_from_slice(&bytes);
            }
        })
    }

    /// An address where nothing listens, and nothing will: the socket stays bound without listening.
    pub(crate) fn refuses() -> Refusing {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .expect("a free port");
        let address = socket
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("an IP address");
        Refusing {
            address,
            _socket: socket,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.log.requests.lock().len()
    }

    /// Everything received so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.log.requests.lock().clone()
    }

    /// The one request received. Fails the test when there is another number.
    #[track_caller]
    pub(crate) fn only(&self) -> Received {
        let all = self.received();
        assert_eq!(all.len(), 1, "requests received: {all:?}");
        all[0].clone()
    }

    /// The request received last.
    #[track_caller]
    pub(crate) fn last(&self) -> Received {
        self.received().pop().expect("a request")
    }

    /// Bytes kept by [`Upstream::records`].
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.log.bytes.lock().clone()
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.log.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.log.open.load(Ordering::SeqCst)
    }

    /// Closes the port and every connection, as a process that is killed.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn complaints(&self) -> Vec<String> {
        self.log.complaints.lock().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
        let complaints = self.complaints();
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "the upstream received: {complaints:?}");
        }
    }
}

/// A port that answers connections with a reset.
#[derive(Debug)]
pub(crate) struct Refusing {
    address: SocketAddr,
    _socket: socket2::Socket,
}

impl Refusing {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept<F, B>(
    socket: std::net::TcpListener,
    log: Arc<Log>,
    mut stopped: watch::Receiver<bool>,
    behaviour: Arc<B>,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
    B: Fn(Peer) -> F + Send + Sync + 'static,
{
    let listener = TcpListener::from_std(socket).expect("a socket");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        // Fails only on a connection that is gone.
        drop(stream.set_nodelay(true));
        let peer = Peer {
            reader: Reader::new(stream),
            index: log.connections.fetch_add(1, Ordering::SeqCst),
            log: Arc::clone(&log),
        };
        log.open.fetch_add(1, Ordering::SeqCst);
        let (log, behaviour, mut stopped) = (Arc::clone(&log), Arc::clone(&behaviour), stopped.clone());
        tokio::spawn(async move {
            let served = tokio::select! {
                served = behaviour(peer) => served,
                _ = stopped.changed() => Ok(()),
            };
            log.open.fetch_sub(1, Ordering::SeqCst);
            if let Err(error) = served
                && error.kind() == io::ErrorKind::InvalidData
            {
                log.complaints.lock().push(error.to_string());
            }
        });
    }
}

impl Peer {
    /// The next request with its body; `None` when the peer has closed.
    pub(crate) async fn request(&mut self) -> io::Result<Option<Received>> {
        let Some(head) = self.head().await? else {
            return Ok(None);
        };
        self.body(head).await.map(Some)
    }

    /// The next head.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        let head = self.reader.head().await?;
        Ok(head)
    }

    /// The body of a request, which is then logged.
    pub(crate) async fn body(&mut self, head: Head) -> io::Result<Received> {
        let framing = head.framing()?;
        let (body, trailers) = match framing {
            Framing::None => <_>::default(),
            Framing::Length(length) => (self.reader.exactly(length).await?, Fields::default()),
            Framing::Chunked => self.reader.chunked().await?,
        };
        let received = self.record(head, framing, body, trailers)?;
        Ok(received)
    }

    /// Logs a request whose body is not read.
    pub(crate) fn record(
        &self,
        head: Head,
        framing: Framing,
        body: Vec<u8>,
        trailers: Fields,
    ) -> io::Result<Received> {
        let mut words = head.start.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(super::http1::wrong(&format!("request line {:?}", head.start)));
        };
        if head.fields.all("host").len() != 1 {
            return Err(super::http1::wrong(&format!("no one host in {:?}", head.fields)));
        }
        for name in [
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "http2-settings",
        ] {
            if head.fields.has(name) {
                return Err(super::http1::wrong(&format!("{name} is a field of one hop")));
            }
        }
        let received = Received {
            method: method.to_owned(),
            target: target.to_owned(),
            keep_alive: !head.connection().iter().any(|token| token == "close"),
            fields: head.fields,
            body,
            trailers,
            framing,
        };
        self.log.requests.lock().push(received.clone());
        Ok(received)
    }

    /// A complete answer. `fields` are whole lines.
    pub(crate) async fn answer(
        &mut self,
        request: &Received,
        status: u16,
        fields: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let bodiless = matches!(status, 204 | 304) || request.method == "HEAD";
        let length = match status {
            204 | 304 => String::new(),
            _ => format!("content-length: {}\r\n", body.len()),
        };
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n{fields}{length}\r\n").into_bytes();
        if !bodiless {
            bytes.extend_from_slice(body);
        }
        self.send(&bytes).await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.io.write_all(bytes).await
    }

    /// Waits until the other side's kernel has everything, so that a reset does not overtake it.
    pub(crate) async fn sent(&mut self) -> io::Result<()> {
        // SIOCOUTQ would need unsafe; a moment is enough for loopback, and nothing is claimed about it.
        self.reader.io.flush().await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }

    /// Ends the connection with a reset instead of an end.
    pub(crate) fn reset(self) {
        // Fails only on a connection that is gone.
        drop(socket2::SockRef::from(&self.reader.io).set_linger(Some(Duration::ZERO)));
    }
}

impl Received {
    /// As [`Upstream::echo`] tells it.
    pub(crate) fn json(&self) -> String {
        json!({
            "method": self.method,
            "target": self.target,
            "fields": self.fields.0,
            "body": super::http1::latin1(&self.body),
            "trailers": self.trailers.0,
        })
        .to_string()
    }
}
