//! Active health checks: what an endpoint says when we ask it, apart from what requests tell.
//!
//! One task per endpoint on the control runtime. Each check opens a connection of its own and closes it: it shows that
//! the endpoint still *accepts*, cannot be served by a connection from better days, and leaves nothing behind. The
//! decision is the pure [`ProbeState`]: the first result counts at once, after that only results in a row do.
//!
//! Checks are spread: the first comes within a second, the second at a random point of the interval, and every
//! interval varies by 20 %, so that many proxies never ask in phase. While results speak against the present verdict,
//! the next check comes after [`Settings::edge_interval`].
//!
//! Invariants: a cancelled check has no result; at most [`MAX_BODY`] of an answer is held.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::net::tcp::{self, ConnectOptions};
use crate::net::tls::{Alpn, ClientTls};
use crate::net::{Io, SocketAddress};

use super::discovery::jittered;

/// How much of a body is looked at.
pub const MAX_BODY: usize = 4 << 10;

/// What to do and how to read the result.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is sent and what counts as passed.
    pub kind: Kind,
    /// Another port than the endpoint's; ignored for Unix sockets.
    pub port: Option<u16>,
    /// Speak TLS first, also for [`Kind::Tcp`]. Offer it HTTP/1.1 only: an endpoint that chooses HTTP/2 fails the check.
    pub tls: Option<Arc<ClientTls>>,
    /// Between checks, +-20 %.
    pub interval: Duration,
    /// Between checks while results contradict the verdict; never more than `interval`.
    pub edge_interval: Duration,
    /// For one check, from connecting to the last byte looked at.
    pub timeout: Duration,
    /// Passes in a row that bring an endpoint back; 0 counts as 1.
    pub healthy_threshold: u32,
    /// Failures in a row that take it out; 0 counts as 1.
    pub unhealthy_threshold: u32,
}

impl Settings {
    /// The defaults: every 5 s (1 s on the edge), 2 s timeout, two passes, three failures.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            port: None,
            tls: None,
            interval: Duration::from_secs(5),
            edge_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }
}

/// The kind of check.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A connection is accepted.
    Tcp,
    /// A request is answered as expected.
    Http(Box<HttpCheck>),
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
    /// Whether the check was passed.
    pub const fn is_pass(&self) -> bool {
        matches!(self, Self::Pass)
    }

    /// The label `result` of `bellwether_health_checks_total`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Unexpected(_) | Self::Broken(_) => "fail",
            Self::Refused(_) => "refused",
            Self::Timeout => "timeout",
        }
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

/// What checks say about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers as expected.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// One result and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How the check ended.
    pub outcome: Outcome,
    /// What is now thought of the endpoint.
    pub health: Health,
    /// The verdict is new: the first one, or another than before.
    pub changed: bool,
    /// Results in a row that agree with this one, itself included.
    pub in_a_row: u32,
}

/// The memory of the checks of one endpoint. Survives a reload; settings come with every call.
#[derive(Clone, Debug, Default)]
pub struct ProbeState {
    health: Option<Health>,
    last: Option<Health>,
    in_a_row: u32,
}

impl ProbeState {
    /// The verdict; `None` before the first result.
    pub const fn health(&self) -> Option<Health> {
        self.health
    }

    /// Takes a result.
    pub fn record(&mut self, settings: &Settings, outcome: Outcome) -> Report {
        let said = if outcome.is_pass() {
            Health::Healthy
        } else {
            Health::Unhealthy
        };
        self.in_a_row = if self.last == Some(said) {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(said);
        let needed = match (self.health, said) {
            (None, _) => 1,
            (Some(_), Health::Healthy) => settings.healthy_threshold.max(1),
            (Some(_), Health::Unhealthy) => settings.unhealthy_threshold.max(1),
        };
        let changed = self.health != Some(said) && self.in_a_row >= needed;
        if changed {
            self.health = Some(said);
        }
        Report {
            outcome,
            health: self.health.unwrap_or(said),
            changed,
            in_a_row: self.in_a_row,
        }
    }

    /// When to check next; `draw` is any evenly distributed number.
    pub fn next(&self, settings: &Settings, draw: u64) -> Duration {
        let Some(last) = self.last else {
            // The first check: soon, but not all at once.
            return spread(settings.interval.min(FIRST_WITHIN), draw);
        };
        let on_edge = self.health != Some(last);
        let base = if on_edge {
            settings.edge_interval.min(settings.interval)
        } else {
            settings.interval
        };
        jittered(base.max(LEAST_INTERVAL), 20, draw)
    }

    /// The wait after the very first check, which gives the endpoint its own place in the interval.
    pub fn phase(&self, settings: &Settings, draw: u64) -> Duration {
        if self.health == self.last {
            spread(settings.interval, draw)
        } else {
            self.next(settings, draw)
        }
    }
}

/// Evenly from zero to `within`.
fn spread(within: Duration, draw: u64) -> Duration {
    jittered(within / 2, 100, draw)
}

const FIRST_WITHIN: Duration = Duration::from_secs(1);
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// Checks until cancelled and reports every result. `state` may bring what was known before a reload.
pub async fn run(
    target: Target,
    settings: Arc<Settings>,
    mut state: ProbeState,
    seed: u64,
    cancel: CancellationToken,
    mut report: impl FnMut(Report) + Send,
) {
    let work = async {
        let mut dice = Dice::new(seed);
        tokio::time::sleep(state.next(&settings, dice.next_u64())).await;
        let mut first = true;
        loop {
            let outcome = check(&target, &settings).await;
            report(state.record(&settings, outcome));
            let wait = if first {
                state.phase(&settings, dice.next_u64())
            } else {
                state.next(&settings, dice.next_u64())
            };
            first = false;
            tokio::time::sleep(wait).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// One check.
pub async fn check(target: &Target, settings: &Settings) -> Outcome {
    let (address, dialled, authority) = match (&target.address, settings.port) {
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
    let checking = async {
        let io = match tcp::connect(&address, &options).await {
            Ok(io) => io,
            Err(error) => return Outcome::Refused(error.to_string().into()),
        };
        let io = match &settings.tls {
            None => io,
            Some(tls) => {
                let name = target.host.as_deref().unwrap_or(&dialled);
                match tls.connect(io, name).await {
                    Ok((_, info)) if info.alpn == Some(Alpn::Http2) => {
                        return Outcome::Broken("the endpoint chose HTTP/2 for the check".into());
                    }
                    Ok((io, _)) => io,
                    Err(error) => return Outcome::Broken(error.to_string().into()),
                }
            }
        };
        match &settings.kind {
            Kind::Tcp => Outcome::Pass,
            Kind::Http(check) => ask(io, target.host.as_deref().unwrap_or(&authority), check).await,
        }
    };
    tokio::time::timeout(settings.timeout, checking)
        .await
        .unwrap_or(Outcome::Timeout)
}

async fn ask(stream: Io, host: &str, check: &HttpCheck) -> Outcome {
    let broken = |error: hyper::Error| Outcome::Broken(error.to_string().into());
    let Ok(host) = HeaderValue::from_str(host) else {
        return Outcome::Broken(format!("`{host}` cannot be sent as host").into());
    };
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = check.method.clone();
    *request.uri_mut() = check.path.clone();
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static("bellwether-probe"));
    for (name, value) in &check.headers {
        headers.insert(name, value.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return broken(error),
    };
    let exchange = async {
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(error) => return broken(error),
        };
        let status = response.status();
        if !check.expects(status) {
            return Outcome::Unexpected(format!("status {}", status.as_u16()).into());
        }
        let Some(expected) = &check.expect_body else {
            // What follows is of no interest: the connection ends here.
            return Outcome::Pass;
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
            Outcome::Pass
        } else {
            Outcome::Unexpected(format!("status {}, but the body does not match", status.as_u16()).into())
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
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};
    use tokio::sync::mpsc;

    use super::*;

    fn settings() -> Settings {
        Settings::new(Kind::Http(Box::new(HttpCheck::new(Uri::from_static(
            "/healthz?full=1",
        )))))
    }

    fn failure() -> Outcome {
        Outcome::Timeout
    }

    /// The verdict after each result: `+` pass, `-` failure; upper case where it changed.
    fn verdicts(results: &str) -> String {
        let (settings, mut state) = (settings(), ProbeState::default());
        results
            .chars()
            .map(|result| {
                let report = state.record(&settings, if result == '+' { Outcome::Pass } else { failure() });
                match (report.health, report.changed) {
                    (Health::Healthy, true) => 'H',
                    (Health::Healthy, false) => 'h',
                    (Health::Unhealthy, true) => 'U',
                    (Health::Unhealthy, false) => 'u',
                }
            })
            .collect()
    }

    #[test]
    fn the_first_result_decides_and_then_only_results_in_a_row_do() {
        assert_eq!(verdicts("+"), "H");
        assert_eq!(verdicts("-"), "U");
        assert_eq!(verdicts("+---"), "HhhU");
        assert_eq!(verdicts("-++"), "UuH");
        assert_eq!(verdicts("+--+--+---"), "HhhhhhhhhU");
        assert_eq!(verdicts("-+-+-++"), "UuuuuuH");
        assert_eq!(verdicts("---++---"), "UuuuHhhU");
    }

    #[test]
    fn checks_come_sooner_on_the_edge_and_never_in_step() {
        let (settings, mut state, mut dice) = (settings(), ProbeState::default(), Dice::new(3));
        for _ in 0..100 {
            assert!(state.next(&settings, dice.next_u64()) <= Duration::from_secs(1));
        }
        state.record(&settings, Outcome::Pass);
        let mut waits: Vec<Duration> = (0..100).map(|_| state.next(&settings, dice.next_u64())).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (4_000..=6_000).contains(&wait.as_millis())),
            "{waits:?}"
        );
        waits.dedup();
        assert!(waits.len() > 90);
        assert!(state.phase(&settings, 0) < Duration::from_millis(1));
        state.record(&settings, failure());
        assert!((800..=1_200).contains(&state.next(&settings, dice.next_u64()).as_millis()));
        state.record(&settings, Outcome::Pass);
        assert!(state.next(&settings, dice.next_u64()) >= Duration::from_secs(4));
    }

    proptest! {
        #[test]
        fn a_change_always_has_its_threshold_behind_it(
            results in prop::collection::vec(any::<bool>(), 1..80), up in 0u32..5, down in 0u32..5
        ) {
            let settings = Settings { healthy_threshold: up, unhealthy_threshold: down, ..settings() };
            let mut state = ProbeState::default();
            for (at, pass) in results.iter().enumerate() {
                let before = state.health();
                let report = state.record(&settings, if *pass { Outcome::Pass } else { failure() });
                prop_assert_eq!(report.changed, state.health() != before);
                prop_assert_eq!(Some(report.health), state.health());
                let row = results[..=at].iter().rev().take_while(|result| *result == pass).count();
                prop_assert_eq!(report.in_a_row as usize, row);
                if report.changed && before.is_some() {
                    let needed = if *pass { up } else { down };
                    prop_assert!(report.in_a_row >= needed.max(1));
                    prop_assert_eq!(report.health == Health::Healthy, *pass);
                }
            }
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
        Settings::new(Kind::Http(Box::new(check)))
    }

    #[tokio::test]
    async fn the_request_says_what_was_configured() {
        let (mut target, mut heads) = serve(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(check(&target, &settings()).await, Outcome::Pass);
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
        assert_eq!(check(&target, &settings).await, Outcome::Pass);
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
        check(&target, &settings).await;
        assert!(heads.recv().await.unwrap().contains("host: other.example\r\n"));
    }

    #[tokio::test]
    async fn the_status_must_be_expected() {
        let (target, _heads) =
            serve(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno").await;
        assert_eq!(
            check(&target, &settings()).await,
            Outcome::Unexpected("status 503".into())
        );
        let accepting = with(|check| check.expect_status = vec![200..=200, 500..=599]);
        assert_eq!(check(&target, &accepting).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn the_body_must_match_within_its_first_bytes() {
        let expecting =
            |text| with(|check| check.expect_body = Some(regex::bytes::Regex::new(text).unwrap()));
        let (target, _heads) = serve(b"HTTP/1.1 200 OK\r\n\r\nstatus: green\n").await;
        assert_eq!(
            check(&target, &expecting("status: (green|yellow)")).await,
            Outcome::Pass
        );
        assert!(matches!(
            check(&target, &expecting("red")).await,
            Outcome::Unexpected(_)
        ));
        let long: &'static [u8] = Box::leak(
            format!("HTTP/1.1 200 OK\r\n\r\n{}green", "-".repeat(MAX_BODY))
                .into_bytes()
                .into_boxed_slice(),
        );
        let (target, _heads) = serve(long).await;
        assert!(matches!(
            check(&target, &expecting("green")).await,
            Outcome::Unexpected(_)
        ));
        assert_eq!(check(&target, &expecting("-{10}")).await, Outcome::Pass);
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
        assert!(matches!(check(&target, &settings()).await, Outcome::Refused(_)));
        let (target, _heads) = serve(b"").await;
        assert!(matches!(check(&target, &settings()).await, Outcome::Broken(_)));
        let (target, _heads) = serve(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(check(&target, &settings()).await, Outcome::Broken(_)));
        // Accepts (the backlog does) and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: SocketAddress::Ip(silent.local_addr().unwrap()),
            host: None,
        };
        let impatient = Settings {
            timeout: Duration::from_millis(20),
            ..settings()
        };
        assert_eq!(check(&target, &impatient).await, Outcome::Timeout);
        assert_eq!(
            check(
                &target,
                &Settings {
                    kind: Kind::Tcp,
                    ..impatient
                }
            )
            .await,
            Outcome::Pass
        );
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
            check(
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
        assert_eq!(check(&target, &connect_only).await, Outcome::Pass);
    }

    #[tokio::test]
    async fn an_endpoint_is_followed_down_until_cancelled() {
        let (target, mut heads) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let expecting = Settings {
            interval: Duration::from_millis(20),
            edge_interval: Duration::from_millis(20),
            ..with(|check| check.expect_status = vec![500..=500])
        };
        let mut state = ProbeState::default();
        state.record(&expecting, Outcome::Pass);
        let cancel = CancellationToken::new();
        let (reports, mut heard) = mpsc::unbounded_channel();
        let report = move |report| {
            let _nobody_listens = reports.send(report).is_err();
        };
        let running = tokio::spawn(run(target, Arc::new(expecting), state, 9, cancel.clone(), report));
        for in_a_row in 1..=3 {
            let report: Report = heard.recv().await.unwrap();
            assert_eq!((report.in_a_row, report.changed), (in_a_row, in_a_row == 3));
        }
        heads.recv().await.unwrap();
        cancel.cancel();
        running.await.unwrap();
    }
}
