//! A small gRPC service and its client, on a real implementation: all four kinds of call, a refusal, one that never ends.
//!
//! The methods are written by hand as a code generator would write them, so that no compiler for the description
//! language is needed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::uri::PathAndQuery;
use prost::Message;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{background, soon};

/// The one message of the service.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Say {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
}

pub(crate) fn say(text: &str, number: u32) -> Say {
    Say {
        text: text.to_owned(),
        number,
    }
}

type Many = Pin<Box<dyn Stream<Item = Result<Say, Status>> + Send>>;
type Codec = ProstCodec<Say, Say>;

/// The service on a port of its own.
#[derive(Debug)]
pub(crate) struct GrpcUpstream {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: tokio::task::JoinHandle<()>,
}

/// What the service has noticed.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Calls that were begun.
    pub(crate) calls: AtomicUsize,
    /// Calls without end that run in their method, message and all.
    pub(crate) hanging: AtomicUsize,
    /// Calls that ended because nobody waited for them any more.
    pub(crate) cancelled: AtomicUsize,
}

impl GrpcUpstream {
    pub(crate) fn start() -> Self {
        let seen = Arc::<Seen>::default();
        let _runtime = background().enter();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(socket).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let noticing = Arc::clone(&seen);
        let service = service_fn(move |request| {
            let seen = Arc::clone(&noticing);
            async move { Ok::<_, Infallible>(serve(request, seen).await) }
        });
        let task = background().spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            // Ends with the test.
            drop(Server::builder().serve_with_incoming(service, incoming).await);
        });
        Self { address, seen, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn hanging(&self) -> usize {
        self.seen.hanging.load(Ordering::SeqCst)
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.seen.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for GrpcUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A call without end, which counts as cancelled when it is dropped.
struct Call(Arc<Seen>);

impl Call {
    fn hangs(seen: &Arc<Seen>) -> Self {
        seen.hanging.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve(request: HttpRequest<Body>, seen: Arc<Seen>) -> HttpResponse<Body> {
    seen.calls.fetch_add(1, Ordering::SeqCst);
    let mut grpc = tonic::server::Grpc::new(Codec::default());
    match request.uri().path() {
        "/test.Echo/One" => grpc.unary(service_fn(one), request).await,
        "/test.Echo/Refuse" => grpc.unary(service_fn(refuse), request).await,
        "/test.Echo/Hang" => {
            let hang = move |_: Request<Say>| {
                let call = Call::hangs(&seen);
                async move {
                    std::future::pending::<()>().await;
                    drop(call);
                    Ok(Response::new(Say::default()))
                }
            };
            grpc.unary(service_fn(hang), request).await
        }
        "/test.Echo/Down" => grpc.server_streaming(service_fn(down), request).await,
        "/test.Echo/Endless" => {
            let endless = move |_: Request<Say>| {
                let mut call = Some(Call::hangs(&seen));
                let ticks = tokio_stream::iter(0..3).map(move |number| Ok(say("tick", number)));
                let never = tokio_stream::pending().map(move |(): ()| {
                    call.take();
                    Err(Status::internal("never"))
                });
                async move { Ok(Response::new(Box::pin(ticks.chain(never)) as Many)) }
            };
            grpc.server_streaming(service_fn(endless), request).await
        }
        "/test.Echo/Up" => grpc.client_streaming(service_fn(up), request).await,
        "/test.Echo/Both" => grpc.streaming(service_fn(both), request).await,
        _ => Status::unimplemented("no such method").into_http(),
    }
}

/// Says it back; metadata both ways.
async fn one(request: Request<Say>) -> Result<Response<Say>, Status> {
    let tag = request.metadata().get("x-tag").cloned();
    let mut response = Response::new(request.into_inner());
    if let Some(tag) = tag {
        response.metadata_mut().insert("x-tag-back", tag);
    }
    Ok(response)
}

/// Fails with details: an answer of trailers alone.
async fn refuse(request: Request<Say>) -> Result<Response<Say>, Status> {
    let mut status = Status::failed_precondition(format!("not now: {}", request.get_ref().text));
    status
        .metadata_mut()
        .insert("x-why", "because".parse().expect("ASCII"));
    Err(status)
}

/// Says it `number` times, then fails with the text when there is one.
async fn down(request: Request<Say>) -> Result<Response<Many>, Status> {
    let asked = request.into_inner();
    let fails = (!asked.text.is_empty()).then(|| Err(Status::data_loss(asked.text.clone())));
    let items = tokio_stream::iter((0..asked.number).map(|number| Ok(say("item", number))));
    Ok(Response::new(Box::pin(items.chain(tokio_stream::iter(fails)))))
}

/// Adds up what comes.
async fn up(request: Request<Streaming<Say>>) -> Result<Response<Say>, Status> {
    let mut items = request.into_inner();
    let (mut texts, mut sum) = (Vec::new(), 0);
    while let Some(item) = items.next().await {
        let item = item?;
        texts.push(item.text);
        sum += item.number;
    }
    Ok(Response::new(say(&texts.join(" "), sum)))
}

/// Answers each message as it comes.
async fn both(request: Request<Streaming<Say>>) -> Result<Response<Many>, Status> {
    let answers = request
        .into_inner()
        .map(|item| item.map(|item| say(&item.text.to_uppercase(), item.number + 1)));
    Ok(Response::new(Box::pin(answers)))
}

/// A client of the service.
#[derive(Clone, Debug)]
pub(crate) struct GrpcClient(tonic::client::Grpc<Channel>);

impl GrpcClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = soon("a channel", endpoint.connect())
            .await
            .expect("the proxy accepts");
        Self(tonic::client::Grpc::new(channel))
    }

    async fn ready(&mut self) {
        soon("the channel", self.0.ready())
            .await
            .expect("the channel lives");
    }

    pub(crate) async fn one(
        &mut self,
        method: &'static str,
        message: Request<Say>,
    ) -> Result<Response<Say>, Status> {
        self.ready().await;
        soon(method, self.0.unary(message, path(method), Codec::default())).await
    }

    pub(crate) async fn down(
        &mut self,
        method: &'static str,
        message: Say,
    ) -> Result<Streaming<Say>, Status> {
        self.ready().await;
        let call = self
            .0
            .server_streaming(Request::new(message), path(method), Codec::default());
        soon(method, call).await.map(Response::into_inner)
    }

    pub(crate) async fn up(&mut self, messages: Vec<Say>) -> Result<Say, Status> {
        self.ready().await;
        let messages = Request::new(tokio_stream::iter(messages));
        let call = self
            .0
            .client_streaming(messages, path("/test.Echo/Up"), Codec::default());
        soon("the sum", call).await.map(Response::into_inner)
    }

    pub(crate) async fn both<S>(&mut self, messages: S) -> Result<Streaming<Say>, Status>
    where
        S: Stream<Item = Say> + Send + 'static,
    {
        self.ready().await;
        let call = self
            .0
            .streaming(Request::new(messages), path("/test.Echo/Both"), Codec::default());
        soon("a conversation", call).await.map(Response::into_inner)
    }
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

/// Every message of a stream, and how it ended.
pub(crate) async fn all(mut stream: Streaming<Say>) -> (Vec<Say>, Result<(), Status>) {
    soon("the end of a stream", async move {
        let mut messages = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, Ok(())),
                Err(status) => return (messages, Err(status)),
            }
        }
    })
    .await
}
