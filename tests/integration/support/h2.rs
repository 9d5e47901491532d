//! HTTP/2 without a layer between: a client and a server on the h2 crate, so that interim answers, resets, trailers and
//! GOAWAY are seen as they come.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::client::Answer;
use super::http1::Fields;
use super::{background, soon};

/// One connection as a client. Its task ends with it.
#[derive(Debug)]
pub(crate) struct H2 {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl H2 {
    /// With prior knowledge, in clear text.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address))
            .await
            .expect("the proxy accepts");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream).await
    }

    pub(crate) async fn over<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: I) -> Self {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 22);
        Self::built(&builder, io).await
    }

    pub(crate) async fn built<I>(builder: &h2::client::Builder, io: I) -> Self
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, connection) = soon("HTTP/2", builder.handshake(io)).await.expect("HTTP/2");
        Self {
            send,
            driver: background().spawn(connection),
        }
    }

    /// Sends a head, and whether anything follows.
    pub(crate) async fn start(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = soon("a free stream", self.send.clone().ready())
            .await
            .expect("the connection lives");
        ready.send_request(request, end).expect("a valid request")
    }

    /// The same on a connection that may be at its end.
    pub(crate) async fn try_start(
        &mut self,
        request: Request<()>,
    ) -> Option<(ResponseFuture, SendStream<Bytes>)> {
        let mut ready = soon("a free stream", self.send.clone().ready()).await.ok()?;
        ready.send_request(request, true).ok()
    }

    /// One exchange.
    pub(crate) async fn ask(&mut self, request: Request<&[u8]>) -> Answer {
        self.try_ask(request).await.expect("an answer")
    }

    pub(crate) async fn try_ask(&mut self, request: Request<&[u8]>) -> Result<Answer, h2::Error> {
        let (parts, body) = request.into_parts();
        let mut ready = soon("a free stream", self.send.clone().ready()).await?;
        let (answer, mut send) = ready.send_request(Request::from_parts(parts, ()), body.is_empty())?;
        if !body.is_empty() {
            send.send_data(Bytes::copy_from_slice(body), true)?;
        }
        collect(answer).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.ask(Request::get(uri(path)).body(&b""[..]).expect("a request"))
            .await
    }

    /// How the connection ended.
    pub(crate) async fn ended(self) -> Result<(), h2::Error> {
        drop(self.send);
        soon("the connection to end", self.driver)
            .await
            .expect("no panic")
    }

    /// How the server ended the connection. Unlike [`H2::ended`] this keeps what holds it open on our side.
    pub(crate) async fn thrown_out(self) -> h2::Error {
        let ended = soon("the server to end the connection", self.driver)
            .await
            .expect("no panic");
        drop(self.send);
        ended.expect_err("an end with a reason")
    }

    /// Whether the server has said that extended CONNECT is fine. True only after its settings have come.
    pub(crate) fn takes_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }
}

pub(crate) fn uri(path: &str) -> String {
    format!("http://test.example{path}")
}

/// Reads an answer to its end.
pub(crate) async fn collect(answer: ResponseFuture) -> Result<Answer, h2::Error> {
    let (interim, response) = head(answer).await?;
    let (parts, body) = response.into_parts();
    let (body, trailers) = read(body).await?;
    Ok(Answer {
        status: parts.status.as_u16(),
        fields: Fields::from_map(&parts.headers),
        body,
        trailers: Fields::from_map(&trailers),
        interim,
        keep_alive: true,
    })
}

/// The head of an answer, and the interim ones before it.
pub(crate) async fn head(
    mut answer: ResponseFuture,
) -> Result<(Vec<(u16, Fields)>, Response<RecvStream>), h2::Error> {
    soon("an answer", async move {
        let mut interim = Vec::new();
        loop {
            let next = poll_fn(|cx| answer.poll_informational(cx)).await;
            match next {
                Some(Ok(response)) => {
                    interim.push((response.status().as_u16(), Fields::from_map(response.headers())));
                }
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        Ok((interim, answer.await?))
    })
    .await
}

/// A body and its trailers.
pub(crate) async fn read(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    soon("a body", async move {
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, body.trailers().await?.unwrap_or_default()))
    })
    .await
}

/// Sends a body as the window opens.
pub(crate) async fn write(
    send: &mut SendStream<Bytes>,
    mut bytes: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(h2::Error::from(h2::Reason::CANCEL)),
        };
        let part = bytes.split_to(room.min(bytes.len()));
        send.send_data(part, end && bytes.is_empty())?;
    }
    Ok(())
}

/// A server with prior knowledge; each stream is answered by `behaviour`.
#[derive(Debug)]
pub(crate) struct H2Upstream {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl H2Upstream {
    pub(crate) fn each<F, B>(behaviour: B) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        B: Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> F + Send + Sync + 'static,
    {
        Self::with_tls(None, behaviour)
    }

    pub(crate) fn with_tls<F, B>(tls: Option<Arc<rustls::ServerConfig>>, behaviour: B) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        B: Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> F + Send + Sync + 'static,
    {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("bound");
        let connections = Arc::<AtomicUsize>::default();
        let requests = Arc::<AtomicUsize>::default();
        let behaviour = Arc::new(behaviour);
        let (accepted, counted) = (Arc::clone(&connections), Arc::clone(&requests));
        let task = background().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(socket).expect("a socket");
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                accepted.fetch_add(1, Ordering::SeqCst);
                let (behaviour, counted, tls) = (Arc::clone(&behaviour), Arc::clone(&counted), tls.clone());
                tasks.spawn(async move {
                    match tls {
                        None => drop(serve(stream, behaviour, counted).await),
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                drop(serve(stream, behaviour, counted).await);
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            connections,
            requests,
            task,
        }
    }

    /// Answers with what it received, as JSON, and the trailers of the request as trailers.
    pub(crate) fn echo() -> Self {
        Self::each(echo)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<I, F, B>(io: I, behaviour: Arc<B>, counted: Arc<AtomicUsize>) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = ()> + Send + 'static,
    B: Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> F + Send + Sync + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .enable_connect_protocol()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22);
    let mut connection = builder.handshake(io).await?;
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        counted.fetch_add(1, Ordering::SeqCst);
        tasks.spawn(behaviour(request, respond));
    }
    Ok(())
}

/// Answers with what was received, as JSON, and with the request's trailers as trailers.
pub(crate) async fn echo(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let Ok((body, trailers)) = read(body).await else {
        return;
    };
    let json = serde_json::json!({
        "method": parts.method.as_str(),
        "target": parts.uri.path_and_query().map_or("", |path| path.as_str()),
        "authority": parts.uri.authority().map_or("", |authority| authority.as_str()),
        "scheme": parts.uri.scheme_str().unwrap_or_default(),
        "fields": Fields::from_map(&parts.headers).0,
        "body": super::http1::latin1(&body),
        "trailers": Fields::from_map(&trailers).0,
    })
    .to_string();
    let head = Response::builder()
        .header("content-type", "application/json")
        .body(())
        .expect("a head");
    let Ok(mut send) = respond.send_response(head, false) else {
        return;
    };
    // The peer may be gone, and then there is nobody to tell.
    if trailers.is_empty() {
        drop(send.send_data(json.into(), true));
    } else {
        drop(send.send_data(json.into(), false));
        drop(send.send_trailers(trailers));
    }
}
