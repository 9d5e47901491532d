//! An HTTP/1.1 client that writes exactly what it is told and reads answers without mercy.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::http1::{Fields, Framing, Head, Reader, latin1};
use super::soon;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) reader: Reader<Stream>,
}

/// Bytes to a server, with TLS or without.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Unix(tokio::net::UnixStream),
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    /// Interim answers before it.
    pub(crate) interim: Vec<(u16, Fields)>,
    /// Whether the connection goes on.
    pub(crate) keep_alive: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        latin1(&self.body)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What an echoing upstream received: the only value of a field.
    #[track_caller]
    pub(crate) fn echoed(&self, name: &str) -> Option<String> {
        echoed(&self.json()).get(name).map(str::to_owned)
    }

    /// The reason word of an answer the proxy made itself.
    #[track_caller]
    pub(crate) fn rejected(&self) -> Option<&str> {
        self.fields.get("x-bellwether-rejected")
    }

    /// Claims that the proxy refused, with this status and this reason.
    #[track_caller]
    pub(crate) fn is_refusal(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.rejected()), (status, Some(reason)), "{self:?}");
    }
}

/// The fields in an echo.
pub(crate) fn echoed(json: &serde_json::Value) -> Fields {
    let pairs = json["fields"].as_array().expect("an echo");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    Fields(
        pairs
            .iter()
            .map(|pair| (text(&pair[0]), text(&pair[1])))
            .collect(),
    )
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.expect("the proxy accepts")
    }

    pub(crate) async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = soon("a connection", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Stream::Tcp(stream)))
    }

    pub(crate) fn over(stream: Stream) -> Self {
        Self {
            reader: Reader::new(stream),
        }
    }

    /// Writes bytes.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the proxy reads");
    }

    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        soon("the proxy to read", async {
            self.reader.io.write_all(bytes.as_ref()).await?;
            self.reader.io.flush().await
        })
        .await
    }

    /// Ends our direction only.
    pub(crate) async fn finish(&mut self) {
        self.reader.io.shutdown().await.expect("the connection lives");
    }

    /// The answer to a request that is not `HEAD`.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.try_answer("GET").await.expect("an answer")
    }

    pub(crate) async fn answer_to(&mut self, method: &str) -> Answer {
        self.try_answer(method).await.expect("an answer")
    }

    /// The answer, or how reading it failed.
    pub(crate) async fn try_answer(&mut self, method: &str) -> io::Result<Answer> {
        soon("an answer", self.read(method)).await
    }

    async fn read(&mut self, method: &str) -> io::Result<Answer> {
        let mut interim = Vec::new();
        let (head, status) = loop {
            let head = self.reader.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = status(&head)?;
            if (100..200).contains(&status) && status != 101 {
                interim.push((status, head.fields));
            } else {
                break (head, status);
            }
        };
        let mut keep_alive = !head.connection().iter().any(|token| token == "close");
        let bodiless = method == "HEAD" || matches!(status, 101 | 204 | 304);
        let framing = head.framing()?;
        let (body, trailers) = match framing {
            _ if bodiless => <_>::default(),
            Framing::Length(length) => (self.reader.exactly(length).await?, Fields::default()),
            Framing::Chunked => self.reader.chunked().await?,
            Framing::None => {
                keep_alive = false;
                (self.reader.rest().await?, Fields::default())
            }
        };
        Ok(Answer {
            status,
            fields: head.fields,
            body,
            trailers,
            interim,
            keep_alive,
        })
    }

    /// The head of an answer whose body is read by hand.
    pub(crate) async fn answer_head(&mut self) -> (u16, Head) {
        soon("the head of an answer", async {
            let head = self.reader.head().await.expect("a head").expect("a head");
            (status(&head).expect("a status"), head)
        })
        .await
    }

    /// `GET`, and its answer.
    pub(crate) async fn get(&mut self, target: &str) -> Answer {
        self.ask("GET", target, "", b"").await
    }

    /// A request with a `host`, further field lines and a body of this length, and its answer.
    pub(crate) async fn ask(&mut self, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
        self.try_ask(method, target, fields, body)
            .await
            .expect("an answer")
    }

    pub(crate) async fn try_ask(
        &mut self,
        method: &str,
        target: &str,
        fields: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        self.try_send(request(method, target, fields, body)).await?;
        self.try_answer(method).await
    }

    /// Waits for the end of the connection; whatever came before it is returned.
    pub(crate) async fn until_closed(&mut self) -> Vec<u8> {
        match soon("the connection to end", self.reader.rest()).await {
            Ok(rest) => rest,
            // A reset ends it as well.
            Err(_reset) => std::mem::take(&mut self.reader.buffer),
        }
    }

    /// Claims that the connection ends and nothing more comes.
    #[track_caller]
    pub(crate) fn is_closed(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let rest = self.until_closed().await;
            assert!(
                rest.is_empty(),
                "after the last answer came {:?} ({caller})",
                latin1(&rest)
            );
        }
    }
}

/// The bytes of a request.
pub(crate) fn request(method: &str, target: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = match (method, body) {
        ("GET" | "HEAD" | "DELETE" | "OPTIONS" | "TRACE", b"") => String::new(),
        _ => format!("content-length: {}\r\n", body.len()),
    };
    let host = match fields
        .to_ascii_lowercase()
        .lines()
        .any(|line| line.starts_with("host:"))
    {
        true => "",
        false => "host: test.example\r\n",
    };
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n{host}{fields}{length}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One request on a connection of its own.
pub(crate) async fn get(address: SocketAddr, target: &str) -> Answer {
    Client::connect(address).await.get(target).await
}

/// One request with everything on a connection of its own.
pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &str,
    body: &[u8],
) -> Answer {
    Client::connect(address)
        .await
        .ask(method, target, fields, body)
        .await
}

fn status(head: &Head) -> io::Result<u16> {
    let rest = ["HTTP/1.1 ", "HTTP/1.0 "]
        .iter()
        .find_map(|version| head.start.strip_prefix(version))
        .unwrap_or_default();
    match rest.get(..3).map(str::parse) {
        Some(Ok(status)) if matches!(rest.as_bytes().get(3), None | Some(b' ')) => Ok(status),
        _ => Err(super::http1::wrong(&format!("status line {:?}", head.start))),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
