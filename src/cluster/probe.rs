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
    /// The `host` header of checks; the address where there is no name.
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
    let (address, authority) = match (&target.address, settings.port) {
        (SocketAddress::Ip(address), port) => {
            let address = SocketAddr::new(address.ip(), port.unwrap_or(address.port()));
            (SocketAddress::Ip(address), address.to_string())
        }
        // A path is no host; this is what clients of Unix sockets send.
        (SocketAddress::Unix(_), _) => (target.address.clone(), "localhost".to_owned()),
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
