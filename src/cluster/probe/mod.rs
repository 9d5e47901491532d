//! Active health checks: what an endpoint says when we ask it, apart from what requests tell.
//!
//! Each check opens a connection of its own and closes it: it shows that the endpoint still *accepts*, cannot be served by
//! a connection from better days, and leaves nothing behind. What results mean, and when to ask again, is decided by
//! [`bellwether_core::health`]; who asks is `app/checks.rs`.
//!
//! Invariant: at most [`MAX_BODY`] of an answer is held.

mod grpc;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::health::{self, CheckResult, Failure};
use bellwether_core::heartbeat::State;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::TokioIo;

use crate::message::fail;
use crate::net::tcp::{self, ConnectOptions};
use crate::net::tls::{Alpn, ClientTls};
use crate::net::{Io, SocketAddress};

/// How much of a body is looked at.
pub const MAX_BODY: usize = 4 << 10;

/// What to do and how to read the result.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is sent and what counts as passed.
    pub kind: Kind,
    /// Another port than the endpoint's; ignored for Unix sockets.
    pub port: Option<u16>,
    /// Speak TLS first, also for [`Kind::Tcp`]. It offers what the kind of check speaks and nothing else.
    pub tls: Option<Arc<ClientTls>>,
    /// When to ask and what to conclude.
    pub pace: health::Settings,
}

/// The kind of check.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A connection is accepted.
    Tcp,
    /// A request is answered as expected.
    Http(Box<HttpCheck>),
    /// The health protocol of gRPC says that this service serves; the empty name is the whole server.
    Grpc(Arc<str>),
}

/// A request and the answer that is expected.
#[derive(Clone, Debug)]
pub struct HttpCheck {
    /// Usually GET.
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// Sent with every check. `host` here wins over [`Target::host`].
    pub headers: HeaderMap,
    /// Any of these passes.
    pub expect_status: Vec<RangeInclusive<u16>>,
    /// Must be found in the first [`MAX_BODY`] bytes.
    pub expect_body: Option<regex::bytes::Regex>,
}

impl HttpCheck {
    /// `GET path`, 200-299 passes.
    pub fn new(path: Uri) -> Self {
        Self {
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            expect_status: vec![200..=299],
            expect_body: None,
        }
    }
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where the endpoint is.
    pub address: SocketAddress,
    /// The `host` header of checks and the name for TLS; the address where there is no name.
    pub host: Option<Arc<str>>,
}

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Pass,
    /// The answer was not what is expected; what it was.
    Unexpected(Arc<str>),
    /// No connection: refused, unreachable, no such socket.
    Refused(Arc<str>),
    /// The connection broke, or did not speak HTTP.
    Broken(Arc<str>),
    /// Nothing within the timeout.
    Timeout,
}

impl Outcome {
    /// What it means for the endpoint.
    pub const fn result(&self) -> CheckResult {
        match self {
            Self::Pass => CheckResult::Passed,
            Self::Unexpected(_) => CheckResult::Failed(Failure::Unfit),
            Self::Refused(_) | Self::Broken(_) => CheckResult::Failed(Failure::Refused),
            Self::Timeout => CheckResult::Failed(Failure::TimedOut),
        }
    }
}

/// A check that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// How it ended.
    pub outcome: Outcome,
    /// What the endpoint said of itself beside that; none when it gave no answer that could have said so.
    pub word: Option<State>,
}

impl From<Outcome> for Checked {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, word: None }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("passed"),
            Self::Unexpected(what) | Self::Broken(what) | Self::Refused(what) => f.write_str(what),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// Only whether a connection can be opened, within `timeout`.
pub async fn connect(target: &Target, timeout: Duration) -> Outcome {
    let options = ConnectOptions::default();
    match tokio::time::timeout(timeout, tcp::connect(&target.address, &options)).await {
        Ok(Ok(_)) => Outcome::Pass,
        Ok(Err(error)) => Outcome::Refused(error.to_string().into()),
        Err(_elapsed) => Outcome::Timeout,
    }
}

/// One check, which may take `timeout`.
pub async fn check(target: &Target, settings: &Settings, timeout: Duration) -> Checked {
    let checking = async {
        let dialled = dial(target, settings.port, settings.tls.as_ref(), settings.kind.alpn()).await;
        let (io, host) = match dialled {
            Ok(dialled) => dialled,
            Err(outcome) => return outcome.into(),
        };
        match &settings.kind {
            Kind::Tcp => Outcome::Pass.into(),
            Kind::Http(check) => ask(io, &host, check).await,
            Kind::Grpc(service) => grpc::ask(io, &host, settings.tls.is_some(), service).await,
        }
    };
    tokio::time::timeout(timeout, checking)
        .await
        .unwrap_or(Outcome::Timeout.into())
}

/// One question and its whole answer, of at most `most` bytes of content, within `timeout`.
///
/// # Errors
/// Why there was none; never [`Outcome::Pass`].
pub async fn fetch(
    target: &Target,
    port: Option<u16>,
    tls: Option<&Arc<ClientTls>>,
    request: Request<Full<Bytes>>,
    most: usize,
    timeout: Duration,
) -> Result<Response<Bytes>, Outcome> {
    let broken = |error: hyper::Error| Outcome::Broken(error.to_string().into());
    let fetching = async {
        let (io, host) = dial(target, port, tls, &[Alpn::Http1]).await?;
        let request = dressed(request, &host)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = handshake.map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            match Limited::new(body, most).collect().await {
                Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
                Err(error) => Err(Outcome::Broken(error.to_string().into())),
            }
        };
        tokio::pin!(connection, exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            _ended = &mut connection => exchange.await,
        }
    };
    tokio::time::timeout(timeout, fetching)
        .await
        .unwrap_or(Err(Outcome::Timeout))
}

/// Connects, and says what the endpoint is called in `host`.
async fn dial(
    target: &Target,
    port: Option<u16>,
    tls: Option<&Arc<ClientTls>>,
    alpn: &[Alpn],
) -> Result<(Io, String), Outcome> {
    let (address, dialled, authority) = match (&target.address, port) {
        (SocketAddress::Ip(address), port) => {
            let address = SocketAddr::new(address.ip(), port.unwrap_or(address.port()));
            (
                SocketAddress::Ip(address),
                address.ip().to_string(),
                address.to_string(),
            )
        }
        // A path is no host; this is what clients of Unix sockets send.
        (SocketAddress::Unix(_), _) => (
            target.address.clone(),
            "localhost".to_owned(),
            "localhost".to_owned(),
        ),
    };
    let options = ConnectOptions {
        nodelay: true,
        keepalive: None,
    };
    let io = tcp::connect(&address, &options)
        .await
        .map_err(|error| Outcome::Refused(error.to_string().into()))?;
    let host = target.host.as_deref().unwrap_or(&authority).to_owned();
    let Some(tls) = tls else {
        return Ok((io, host));
    };
    match tls.connect(io, target.host.as_deref().unwrap_or(&dialled)).await {
        // One that knows no ALPN is taken at its word.
        Ok((_, info)) if info.alpn.is_some_and(|chosen| !alpn.contains(&chosen)) => Err(Outcome::Broken(
            format!("the endpoint does not speak {alpn:?}").into(),
        )),
        Ok((io, _)) => Ok((io, host)),
        Err(error) => Err(Outcome::Broken(error.to_string().into())),
    }
}

/// Adds to a question what every one of ours says. What it says itself stays.
fn dressed<B>(mut request: Request<B>, host: &str) -> Result<Request<B>, Outcome> {
    let Ok(host) = HeaderValue::from_str(host) else {
        return Err(Outcome::Broken(format!("`{host}` cannot be sent as host").into()));
    };
    let own = std::mem::take(request.headers_mut());
    let headers = request.headers_mut();
    // First, as RFC 9110 §7.2 asks.
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static("bellwether-probe"));
    for (name, value) in &own {
        headers.insert(name, value.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

impl Kind {
    /// What is offered to an endpoint behind TLS.
    pub const fn alpn(&self) -> &'static [Alpn] {
        match self {
            Self::Tcp | Self::Http(_) => &[Alpn::Http1],
            Self::Grpc(_) => &[Alpn::Http2],
        }
    }
}

async fn ask(stream: Io, host: &str, check: &HttpCheck) -> Checked {
    let broken = |error: hyper::Error| Checked::from(Outcome::Broken(error.to_string().into()));
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = check.method.clone();
    *request.uri_mut() = check.path.clone();
    request.headers_mut().clone_from(&check.headers);
    let request = match dressed(request, host) {
        Ok(request) => request,
        Err(outcome) => return outcome.into(),
    };
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return broken(error),
    };
    let exchange = async {
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return broken(error),
        };
        let word = Some(fail::said(response.headers()).unwrap_or(State::Up));
        let status = response.status();
        let unexpected = |what: String| Checked {
            outcome: Outcome::Unexpected(what.into()),
            word,
        };
        let passed = Checked {
            outcome: Outcome::Pass,
            word,
        };
        if !check.expects(status) {
            return unexpected(format!("status {}", status.as_u16()));
        }
        let Some(expected) = &check.expect_body else {
            // What follows is of no interest: the connection ends here.
            return passed;
        };
        let mut seen = BytesMut::new();
        let mut body = response.into_body();
        while seen.len() < MAX_BODY {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        seen.extend_from_slice(&data[..data.len().min(MAX_BODY - seen.len())]);
                    }
                }
                Some(Err(error)) => return broken(error),
                None => break,
            }
        }
        if expected.is_match(&seen) {
            passed
        } else {
            unexpected(format!("status {}, but the body does not match", status.as_u16()))
        }
    };
    // The connection is driven right here, so that nothing outlives the check.
    tokio::pin!(connection, exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        _ended = &mut connection => exchange.await,
    }
}

impl HttpCheck {
    fn expects(&self, status: StatusCode) -> bool {
        self.expect_status
            .iter()
            .any(|range| range.contains(&status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};
    use tokio::sync::mpsc;

    use super::*;

    fn settings() -> Settings {
        of(Kind::Http(Box::new(HttpCheck::new(Uri::from_static(
            "/healthz?full=1",
        )))))
    }

    /// A check with all the time it needs.
    async fn outcome(target: &Target, settings: &Settings) -> Outcome {
        check(target, settings, Duration::from_secs(30)).await.outcome
    }

    fn of(kind: Kind) -> Settings {
        Settings {
            kind,
            port: None,
            tls: None,
            pace: health::Settings::default(),
        }
    }

    /// Answers every connection with the same bytes and passes on the heads of the requests.
    async fn serve(answer: &'static [u8]) -> (Target, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: SocketAddress::Ip(listener.local_addr().unwrap()),
            host: None,
        };
        let (heads, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_closed) => break,
                    }
                }
                let _nobody_listens = heads.send(String::from_utf8(head).unwrap()).is_err();
                let _cut = stream.write_all(answer).await.is_err();
            }
        });
        (target, received)
    }

    fn with(change: impl FnOnce(&mut HttpCheck)) -> Settings {
        let mut check = HttpCheck::new(Uri::from_static("/"));
        change(&mut check);
        of(Kind::Http(Box::new(check)))
    }

    #[tokio::test]
    async fn the_request_says_what_was_configured() {
        let (mut target, mut heads) = serve(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(outcome(&target, &settings()).await, Outcome::Pass);
        let head = heads.recv().await.unwrap();
        assert!(
            head.starts_with("GET /healthz?full=1 HTTP/1.1\r\nhost: 127.0.0.1:"),
            "{head}"
        );
        assert!(head.contains("connection: close\r\n") && head.contains("user-agent: bellwether-probe\r\n"));
        target.host = Some("app.example".into());
        let settings = with(|check| {
            check.method = Method::HEAD;
            check.headers.insert("x-probe", HeaderValue::from_static("1"));
        });
        assert_eq!(outcome(&target, &settings).await, Outcome::Pass);
        let head = heads.recv().await.unwrap();
        assert!(
            head.starts_with("HEAD / HTTP/1.1\r\nhost: app.example\r\n"),
            "{head}"
        );
        assert!(head.contains("x-probe: 1\r\n"), "{head}");
        let settings = with(|check| {
            check
                .headers
                .insert(HOST, HeaderValue::from_static("other.example"));
        });
        outcome(&target, &settings).await;
        assert!(heads.recv().await.unwrap().contains("host: other.example\r\n"));
    }

    #[tokio::test]
    async fn the_status_must_be_expected() {
        let (target, _heads) =
            serve(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno").await;
        assert_eq!(
            outcome(&target, &settings()).await,
            Outcome::Unexpected("status 503".into())
        );
        let accepting = with(|check| check.expect_status = vec![200..=200, 500..=599]);
        assert_eq!(outcome(&target, &accepting).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn the_body_must_match_within_its_first_bytes() {
        let expecting =
            |text| with(|check| check.expect_body = Some(regex::bytes::Regex::new(text).unwrap()));
        let (target, _heads) = serve(b"HTTP/1.1 200 OK\r\n\r\nstatus: green\n").await;
        assert_eq!(
            outcome(&target, &expecting("status: (green|yellow)")).await,
            Outcome::Pass
        );
        assert!(matches!(
            outcome(&target, &expecting("red")).await,
            Outcome::Unexpected(_)
        ));
        let long: &'static [u8] = Box::leak(
            format!("HTTP/1.1 200 OK\r\n\r\n{}green", "-".repeat(MAX_BODY))
                .into_bytes()
                .into_boxed_slice(),
        );
        let (target, _heads) = serve(long).await;
        assert!(matches!(
            outcome(&target, &expecting("green")).await,
            Outcome::Unexpected(_)
        ));
        assert_eq!(outcome(&target, &expecting("-{10}")).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let target = Target {
            address: SocketAddress::Ip(closed),
            host: None,
        };
        assert!(matches!(outcome(&target, &settings()).await, Outcome::Refused(_)));
        let (target, _heads) = serve(b"").await;
        assert!(matches!(outcome(&target, &settings()).await, Outcome::Broken(_)));
        let (target, _heads) = serve(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(outcome(&target, &settings()).await, Outcome::Broken(_)));
        // Accepts (the backlog does) and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: SocketAddress::Ip(silent.local_addr().unwrap()),
            host: None,
        };
        let impatient = check(&target, &settings(), Duration::from_millis(20)).await;
        assert_eq!(impatient.outcome, Outcome::Timeout);
        assert_eq!(outcome(&target, &of(Kind::Tcp)).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn another_port_and_a_unix_socket_can_be_asked() {
        let (asked, mut heads) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let port = asked.address.ip().unwrap().port();
        let target = Target {
            address: SocketAddress::Ip(([127, 0, 0, 1], 1).into()),
            host: None,
        };
        assert_eq!(
            outcome(
                &target,
                &Settings {
                    port: Some(port),
                    ..settings()
                }
            )
            .await,
            Outcome::Pass
        );
        assert!(
            heads
                .recv()
                .await
                .unwrap()
                .contains(&format!("host: 127.0.0.1:{port}\r\n"))
        );

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let target = Target {
            address: SocketAddress::Unix(path.as_path().into()),
            host: None,
        };
        let connect_only = Settings {
            kind: Kind::Tcp,
            ..settings()
        };
        assert_eq!(outcome(&target, &connect_only).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn what_an_endpoint_says_of_itself_is_heard_whatever_the_status() {
        for (answer, word) in [
            (
                &b"HTTP/1.1 200 OK\r\nx-bellwether-fail: drain\r\n\r\n"[..],
                State::Drain,
            ),
            (b"HTTP/1.1 503 no\r\nx-bellwether-fail: down\r\n\r\n", State::Down),
            (b"HTTP/1.1 200 OK\r\n\r\n", State::Up),
        ] {
            let (target, _heads) = serve(answer).await;
            let checked = check(&target, &settings(), Duration::from_secs(30)).await;
            assert_eq!(checked.word, Some(word));
        }
        let (target, _heads) = serve(b"SSH-2.0-OpenSSH\r\n").await;
        assert_eq!(
            check(&target, &settings(), Duration::from_secs(30)).await.word,
            None
        );
    }
}
