//! What the tests of pools, exchanges and connecting share: a cluster of one endpoint that is a Unix socket. What is
//! written to one is there at once, so that a clock that stands still never runs ahead of it.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::balance::{Balancer, MemberSpec, Policy};
use bellwether_core::{Dice, Moment};
use http::HeaderValue;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::connect::ConnectError;
use super::exchange::{Answer, Checkout, Exchange, ExchangeError, Outgoing};
use super::pool::{Freshness, Pools};
use super::{Cluster, Endpoint, EndpointState, Protocol, Settings};
use crate::message::replay::Upload;
use crate::net::{Io, SocketAddress};
use crate::telemetry::{Recorder, RecorderSettings, WorkerId};
use crate::wire::testing::Raw;
use crate::wire::{Drain, Service, Toolbox, http2};

/// A cluster, one worker's pools, and the endpoint as a socket.
pub(super) struct World {
    pub(super) cluster: Arc<Cluster>,
    pub(super) pools: Pools,
    pub(super) listener: Rc<UnixListener>,
    _folder: TempDir,
}

pub(super) fn settings() -> Settings {
    Settings {
        protocol: Protocol::Http1,
        connect_timeout: Duration::from_secs(5),
        tcp_keepalive: None,
        proxy_protocol: None,
        max_connections: None,
        max_idle: 10,
        idle_timeout: Some(Duration::from_secs(30)),
        max_requests: None,
        max_in_flight: None,
        max_in_flight_per_endpoint: None,
        max_queue: 0,
        queue_timeout: Duration::from_secs(1),
        adaptive: None,
        slow_start: None,
        heeds_answers: false,
        heartbeat: None,
        outlier: None,
        rehearsals: false,
        panic: None,
        retry_budget: None,
        zone: None,
        hash_on: Vec::new(),
    }
}

impl World {
    pub(super) fn new(tools: &Toolbox, settings: Settings) -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("endpoint");
        let listener = UnixListener::bind(&path).expect("a socket");
        let recorder = Recorder::new(RecorderSettings::default());
        let member = MemberSpec {
            weight: 1,
            priority: 0,
            key: b"endpoint",
        };
        let endpoint = Endpoint {
            guards: Box::default(),
            address: SocketAddress::Unix(Arc::<Path>::from(path)),
            label: "endpoint".into(),
            host: "localhost".into(),
            authority: HeaderValue::from_static("localhost"),
            weight: 1,
            priority: 0,
            zone: None,
            tally: None,
            state: Arc::new(EndpointState::new(Moment::ZERO)),
            metrics: recorder.endpoint("app", "endpoint"),
        };
        Self {
            cluster: Arc::new(Cluster {
                guards: Arc::default(),
                name: "app".into(),
                settings,
                tls: None,
                transport: 0,
                endpoints: Box::new([endpoint]),
                balancer: Balancer::new(Policy::RoundRobin, &[member], 1),
                budget: None,
                state: Arc::default(),
                metrics: recorder.cluster("app"),
            }),
            pools: Pools::new(tools.clone(), WorkerId::new(0)),
            listener: Rc::new(listener),
            _folder: folder,
        }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.cluster.endpoints[0]
    }

    /// Open connections, as counted.
    pub(super) fn open(&self) -> u32 {
        self.endpoint().state.connections()
    }

    pub(super) async fn checkout(&self) -> Result<Checkout, ConnectError> {
        Checkout::open(&self.pools, &self.cluster, 0, Freshness::Any, None).await
    }

    /// Starts a GET.
    pub(super) async fn get(&self) -> Exchange {
        self.send(Upload::empty()).await
    }

    /// Starts a request with this content.
    pub(super) async fn send(&self, body: Upload) -> Exchange {
        let checkout = self.checkout().await.expect("a connection");
        start(checkout, body).expect("a request")
    }

    /// The endpoint's end of the next connection.
    pub(super) async fn accept(&self) -> Raw {
        let (stream, _) = self.listener.accept().await.expect("a connection");
        Raw {
            io: Io::boxed(stream),
        }
    }

    /// Answers every request of every connection with the connection's number, counted from 0. Returns how many there
    /// were, and their tasks: who ends one closes it.
    pub(super) fn numbered(&self) -> (Rc<Cell<u32>>, Tasks) {
        let listener = Rc::clone(&self.listener);
        let (count, tasks) = (Rc::new(Cell::new(0)), Tasks::default());
        let (counted, running) = (Rc::clone(&count), Rc::clone(&tasks));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counted.replace(counted.get() + 1);
                let answering = tokio::task::spawn_local(answer(stream, number));
                running.borrow_mut().push(answering);
            }
        });
        (count, tasks)
    }

    /// Serves every connection as HTTP/2; the drains end them in order.
    pub(super) fn http2<S: Service>(&self, tools: &Toolbox, service: &Rc<S>) -> Rc<RefCell<Vec<Rc<Drain>>>> {
        let listener = Rc::clone(&self.listener);
        let drains = Rc::<RefCell<Vec<Rc<Drain>>>>::default();
        let (tools, service, all) = (tools.clone(), Rc::clone(service), Rc::clone(&drains));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let drain = Rc::<Drain>::default();
                all.borrow_mut().push(Rc::clone(&drain));
                let (tools, service) = (tools.clone(), Rc::clone(&service));
                tokio::task::spawn_local(async move {
                    let settings = http2::server::Settings {
                        max_streams: 100,
                        header_list: 64 * 1024,
                        headers: 100,
                        head: Duration::from_secs(5),
                        body_idle: None,
                        keep_alive: Duration::from_secs(3600),
                        max_age: None,
                        max_requests: None,
                    };
                    let (io, settings) = (Io::boxed(stream), Arc::new(settings));
                    http2::server::serve(io, service, settings, tools, &drain, &mut Dice::new(1)).await
                });
            }
        });
        drains
    }
}

/// Tasks that a test may end.
pub(super) type Tasks = Rc<RefCell<Vec<JoinHandle<()>>>>;

async fn answer(stream: UnixStream, number: u32) {
    let mut buffer = [0; 4096];
    loop {
        let mut seen = 0;
        while !buffer[..seen].ends_with(b"\r\n\r\n") {
            if stream.readable().await.is_err() {
                return;
            }
            match stream.try_read(&mut buffer[seen..]) {
                Ok(0) => return,
                Ok(count) => seen += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        let text = number.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        if stream.try_write(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Starts a request on a connection.
pub(super) fn start(checkout: Checkout, body: Upload) -> Result<Exchange, ExchangeError> {
    let headers = [(http::header::HOST, HeaderValue::from_static("localhost"))];
    let outgoing = Outgoing {
        method: if http_body::Body::is_end_stream(&body) {
            &http::Method::GET
        } else {
            &http::Method::POST
        },
        target: b"/",
        headers: &headers.into_iter().collect(),
        added: &[],
        upgrade: None,
    };
    Exchange::start(checkout, &outgoing, body)
}

/// Waits for the final head.
pub(super) async fn head(exchange: &mut Exchange) -> Result<http::response::Parts, ExchangeError> {
    loop {
        if let Answer::Final(head) = std::future::poll_fn(|cx| exchange.poll_answer(cx)).await? {
            return Ok(*head);
        }
    }
}

/// Reads the content.
pub(super) async fn content(exchange: &mut Exchange) -> Result<String, crate::wire::BodyError> {
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| exchange.poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// A whole exchange.
pub(super) async fn finish(mut exchange: Exchange) -> String {
    head(&mut exchange).await.expect("an answer");
    content(&mut exchange).await.expect("content")
}
