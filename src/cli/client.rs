//! Talks to a running proxy: finds its admin listener, sends one request, reads one answer.
//!
//! The address comes from `--admin`, else from `$BELLWETHER_ADMIN`, else from the configuration file that `run` would
//! take, else it is the default. What was tried is part of every failure, because "connection refused" alone does not
//! tell an operator whether the proxy is down or another one was asked.

use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::check;
use crate::admin::guard::ADMIN_HEADER;
use crate::net::tcp::{self, ConnectOptions};
use crate::net::tls::{ClientSettings, ClientTls, MinVersion};
use crate::net::{Address, Io, SocketAddress};

/// Where a proxy listens for operators unless it is told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9900";
/// For one request: a reload may take a minute.
const TIMEOUT: Duration = Duration::from_secs(70);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Which running proxy is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct AdminArgs {
    /// The running proxy: `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`
    #[arg(long, env = "BELLWETHER_ADMIN", value_name = "URL")]
    pub admin: Option<String>,
    /// File with the token of `admin.auth`; `$BELLWETHER_ADMIN_TOKEN` holds the token itself
    #[arg(long, env = "BELLWETHER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// PEM file with the authority to trust for `https`
    #[arg(long, env = "BELLWETHER_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
    /// Configuration file; tells where the proxy listens for operators
    #[arg(short, long, env = "BELLWETHER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A running proxy, as far as we know.
#[derive(Debug)]
pub struct Client {
    address: Address,
    tls: Option<Arc<ClientTls>>,
    token: Option<String>,
    /// Who said so, for people.
    source: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its content; null when it is not JSON.
    pub json: serde_json::Value,
}

/// Why there is no answer, for people, and what to exit with.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, as it is shown.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code,
        }
    }

    /// Says it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        check::complain(&self.text);
        ExitCode::from(self.code)
    }
}

impl Client {
    /// Finds the proxy.
    ///
    /// # Errors
    /// An address, token or authority that cannot be used; a proxy without an admin listener.
    pub fn find(args: &AdminArgs) -> Result<Self, Failure> {
        let mut client = match &args.admin {
            Some(url) => Self::at(url, args.admin_ca.as_deref())?,
            None => Self::of_config(args)?,
        };
        if let Some(path) = &args.admin_token_file {
            let token = std::fs::read_to_string(path).map_err(|error| {
                Failure::new(
                    4,
                    format!(
                        "error: the token file {} cannot be read: {error}\n",
                        path.display()
                    ),
                )
            })?;
            client.token = Some(token.trim().to_owned());
        } else if let Some(token) = std::env::var("BELLWETHER_ADMIN_TOKEN")
            .ok()
            .filter(|token| !token.is_empty())
        {
            client.token = Some(token);
        }
        Ok(client)
    }

    fn at(url: &str, ca: Option<&Path>) -> Result<Self, Failure> {
        let (secure, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(wrong_url(url)),
            None => (false, url),
        };
        let rest = if rest.starts_with("unix:") {
            rest
        } else {
            rest.trim_end_matches('/')
        };
        let address = rest.parse().map_err(|_invalid| wrong_url(url))?;
        Ok(Self {
            address,
            tls: secure.then(|| trust(ca)).transpose()?,
            token: None,
            source: "--admin or $BELLWETHER_ADMIN".to_owned(),
        })
    }

    /// The proxy that runs with this configuration. One with mistakes says nothing about the proxy that runs, which
    /// may have started with it before they were made; then the usual address is tried.
    fn of_config(args: &AdminArgs) -> Result<Self, Failure> {
        let usual = |source: &str| Self {
            address: Address::Tcp {
                host: "127.0.0.1".to_owned(),
                port: 9900,
            },
            tls: None,
            token: None,
            source: format!("the usual address {DEFAULT_ADDRESS}; {source}"),
        };
        let (document, name) = match check::load(args.config.as_deref()) {
            Ok(loaded) => loaded,
            // A file that was named has to be there.
            Err(failure) if failure.code == 4 && args.config.is_some() => {
                let text = crate::config::render::text(&failure.diagnostics, check::look(false));
                return Err(Failure::new(4, text));
            }
            Err(failure) if failure.name.is_empty() => {
                return Ok(usual("there is no configuration file here"));
            }
            Err(failure) => return Ok(usual(&format!("{} has errors", failure.name))),
        };
        let Some(admin) = &document.config.admin.value else {
            return Err(Failure::new(
                5,
                format!("error: {name} says `admin: off`, so a running proxy cannot be asked\n"),
            ));
        };
        let written = crate::config::units::Scalar::written(&admin.address.value);
        let address = written.parse().map_err(|_invalid| wrong_url(&written))?;
        let token = admin
            .auth
            .as_ref()
            .and_then(|auth| auth.value.bearer_token.as_ref());
        Ok(Self {
            address,
            tls: admin
                .tls
                .value
                .is_some()
                .then(|| trust(args.admin_ca.as_deref()))
                .transpose()?,
            token: token.map(|token| token.value.reveal().trim().to_owned()),
            source: format!("admin.address in {name}"),
        })
    }

    /// Where it is, as `--admin` takes it.
    pub fn url(&self) -> String {
        match &self.address {
            Address::Unix(_) => self.address.to_string(),
            Address::Tcp { .. } if self.tls.is_some() => format!("https://{}", self.address),
            Address::Tcp { .. } => format!("http://{}", self.address),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.send("GET", path, None).await
    }

    /// Has something done. An answer that is an error is an answer; see [`Answer::done`].
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        content: Option<&serde_json::Value>,
    ) -> Result<Answer, Failure> {
        match timeout(TIMEOUT, self.exchange(method, path, content)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unreachable(&error.to_string())),
            Err(_elapsed) => Err(self.unreachable("it took the request but did not answer")),
        }
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        content: Option<&serde_json::Value>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let io = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let host = match &self.address {
            Address::Unix(_) => "localhost".to_owned(),
            // What stands for every interface is no name; we come by the loopback one.
            Address::Tcp { port, .. } if self.is_unspecified() => format!("localhost:{port}"),
            Address::Tcp { .. } => self.address.to_string(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if method != "GET" {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .header(ADMIN_HEADER, "1");
        }
        let content = content
            .map(|content| Bytes::from(content.to_string()))
            .unwrap_or_default();
        let request = request.body(Full::new(content))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await?
                .to_bytes();
            Ok(Answer {
                status,
                json: serde_json::from_slice(&body).unwrap_or_default(),
            })
        };
        tokio::pin!(answer);
        // The connection must be driven; whichever ends first, the answer decides.
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }

    fn is_unspecified(&self) -> bool {
        match self.address.socket_addr() {
            Some(address) => address.ip().is_unspecified(),
            None => matches!(self.address, Address::Tcp { .. }) && self.address.host().is_none(),
        }
    }

    async fn connect(&self) -> io::Result<Io> {
        let address = match &self.address {
            Address::Tcp { port, .. } if self.is_unspecified() => {
                SocketAddress::Ip(([127, 0, 0, 1], *port).into())
            }
            // Resolving blocks, but here nothing else waits.
            address => address.to_listen()?,
        };
        let io = tcp::connect(&address, &ConnectOptions::default()).await?;
        let Some(tls) = &self.tls else {
            return Ok(io);
        };
        let host = self.address.host().unwrap_or("localhost");
        tls.connect(io, host)
            .await
            .map(|(io, _)| io)
            .map_err(io::Error::other)
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(
            5,
            format!(
                "error: no proxy answers at {}\n  = note: {why} (address from {})\n  \
                 = help: start one with `bellwether run`, or say where it is with --admin or $BELLWETHER_ADMIN\n",
                self.url(),
                self.source,
            ),
        )
    }
}

impl Answer {
    /// The content, when the proxy did as asked.
    ///
    /// # Errors
    /// What the proxy said instead.
    pub fn done(self) -> Result<serde_json::Value, Failure> {
        if self.status.is_success() {
            return Ok(self.json);
        }
        let detail = self.json.get("detail").and_then(|detail| detail.as_str());
        let mut text = match detail {
            Some(detail) => format!("error: {detail}\n"),
            None => format!("error: the admin listener answered {}\n", self.status),
        };
        if let Some(help) = self.json.get("help").and_then(|help| help.as_str()) {
            text.push_str(&format!("  = help: {help}\n"));
        }
        Err(Failure::new(1, text))
    }
}

fn wrong_url(url: &str) -> Failure {
    Failure::new(
        2,
        format!(
            "error: `{url}` is not an address of a proxy\n  = help: write http://HOST:PORT, https://HOST:PORT or unix:PATH\n"
        ),
    )
}

fn trust(ca: Option<&Path>) -> Result<Arc<ClientTls>, Failure> {
    let settings = ClientSettings {
        server_name: None,
        ca: ca.map(Path::to_path_buf),
        identity: None,
        min_version: MinVersion::default(),
        insecure_skip_verify: false,
        alpn: Vec::new(),
    };
    let problems = match ClientTls::load(&settings) {
        Ok(tls) => return Ok(Arc::new(tls)),
        Err(problems) => problems,
    };
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("error: {problem}\n"))
        .collect();
    Err(Failure::new(4, lines.concat()))
}

/// Runs one command against the proxy: finds it, does the work, reports.
pub fn run<F>(args: &AdminArgs, work: impl FnOnce(Client) -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, Failure>>,
{
    let client = match Client::find(args) {
        Ok(client) => client,
        Err(failure) => return failure.report(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(1, format!("error: cannot start: {error}\n")).report(),
    };
    match runtime.block_on(work(client)) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Writes data to standard output.
pub fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}

/// Asks every tenth of a second until `ready` says so.
///
/// # Errors
/// Exit code 6 when the time is over: with what the last answer, or the lack of one, was.
pub async fn poll(
    client: &Client,
    path: &str,
    limit: Duration,
    what: &str,
    ready: impl Fn(&Answer) -> bool,
) -> Result<(), Failure> {
    let mut last = String::new();
    let polling = async {
        loop {
            match client.get(path).await {
                Ok(answer) if ready(&answer) => return,
                Ok(answer) => last = still_missing(&answer),
                // The time that is over is the error; this is why.
                Err(failure) => last = failure.text.replacen("error: ", "  = note: ", 1),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    match timeout(limit, polling).await {
        Ok(()) => Ok(()),
        Err(_elapsed) => Err(Failure::new(
            6,
            format!("error: {what} took more than {}s\n{last}", limit.as_secs_f64()),
        )),
    }
}

/// What a probe's answer says is missing, a line each.
fn still_missing(answer: &Answer) -> String {
    if answer.json.get("draining").and_then(serde_json::Value::as_bool) == Some(true) {
        return "  = note: it is draining; `bellwether undrain` takes that back\n".to_owned();
    }
    let list = answer.json.get("waiting_for").and_then(|list| list.as_array());
    let lines = list.into_iter().flatten().filter_map(|item| item.as_str());
    lines
        .map(|item| format!("  = note: waiting for {item}\n"))
        .collect()
}

/// A duration with a unit, for flags.
///
/// # Errors
/// What to write.
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::config::units::Scalar::parse(text)
        .map_err(|_refusal| "write a duration with a unit, like 60s".to_owned())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::{get, post};
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    fn at(url: &str) -> Result<Client, Failure> {
        Client::find(&AdminArgs {
            admin: Some(url.to_owned()),
            ..AdminArgs::default()
        })
    }

    #[test]
    fn an_address_is_taken_in_three_forms() {
        for (given, shown) in [
            ("http://127.0.0.1:9900", "http://127.0.0.1:9900"),
            ("http://localhost:9900/", "http://localhost:9900"),
            ("[::1]:9900", "http://[::1]:9900"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(at(given).unwrap().url(), shown);
        }
        for wrong in ["ftp://a:1", "localhost", "http://", "unix:"] {
            assert_eq!(at(wrong).unwrap_err().code, 2, "{wrong}");
        }
    }

    #[tokio::test]
    async fn when_nobody_answers_it_says_what_was_tried_and_how_to_start() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = at(&format!("http://{address}")).unwrap();
        let failure = client.get("/api/v1").await.unwrap_err();
        assert_eq!(failure.code, 5);
        let start = format!("error: no proxy answers at http://{address}\n  = note: ");
        assert!(failure.text.starts_with(&start), "{}", failure.text);
        assert!(failure.text.contains("Connection refused") && failure.text.contains("address from --admin"));
        assert!(failure.text.contains("`bellwether run`"));
        let failure = poll(&client, "/readyz", Duration::from_millis(1), "waiting", |_| true)
            .await
            .unwrap_err();
        assert_eq!(failure.code, 6);
    }

    #[tokio::test]
    async fn a_change_carries_what_the_listener_asks_for() {
        let echo = async |headers: http::HeaderMap| {
            let field = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            axum::Json(json!([
                field("x-bellwether-admin"),
                field("content-type"),
                field("authorization"),
                field("host"),
            ]))
        };
        let refuse = async || {
            (
                StatusCode::CONFLICT,
                axum::Json(json!({"detail": "no", "help": "ask later"})),
            )
        };
        let router = Router::new()
            .route("/change", post(echo))
            .route("/look", get(echo))
            .route("/refuse", get(refuse));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let _server = AbortOnDropHandle::new(tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        }));
        let mut client = at(&address).unwrap();
        client.token = Some("s3cret".to_owned());
        let changed = client
            .send("POST", "/change", None)
            .await
            .unwrap()
            .done()
            .unwrap();
        assert_eq!(
            changed,
            json!(["1", "application/json", "Bearer s3cret", address])
        );
        let looked = client.get("/look").await.unwrap().done().unwrap();
        assert_eq!(looked, json!([null, null, "Bearer s3cret", address]));
        let refused = client.get("/refuse").await.unwrap().done().unwrap_err();
        assert_eq!(
            (refused.code, &*refused.text),
            (1, "error: no\n  = help: ask later\n")
        );
    }
}
