//! An HTTP address as a source: a JSON list of endpoints, asked for at an interval.
//!
//! `If-None-Match` spares the server the list when it has not changed. Anything but a 200 with a readable list (or a
//! 304 to our own ETag) is a failure and changes nothing; redirects are not followed, because the place a cluster
//! takes its members from should be the one that is written down.
//!
//! Invariant: at most [`MAX_BYTES`] of a body are held, and one exchange lasts at most the timeout.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, ETAG, HOST, IF_NONE_MATCH, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::keep::{self, Answer, Keeper, Pace};
use super::{Event, Member, SourceKind, Task, entry};

/// The longest list that is read.
pub const MAX_BYTES: usize = 1 << 20;

/// An HTTP source.
#[derive(Clone, Debug)]
pub struct Settings {
    authority: Arc<str>,
    host: Arc<str>,
    port: u16,
    target: Uri,
    /// When to ask and what to hold on to.
    pub keep: keep::Settings,
    /// For one exchange, from connecting to the last byte.
    pub timeout: Duration,
}

impl Settings {
    /// Checks the address. `interval` is kept within [`keep::TTL_BOUNDS`].
    pub fn new(url: &str, interval: Duration) -> Result<Self, String> {
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("`{url}` is not a URL: {error}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("`https` is not supported here yet; use `http`".into()),
            _ => return Err(format!("`{url}` must start with `http://`")),
        }
        let Some(authority) = uri.authority() else {
            return Err(format!("`{url}` has no host"));
        };
        if authority.as_str().contains('@') {
            return Err("user and password in a URL are not supported".into());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(format!("`{url}` has no host"));
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self {
            authority: authority.as_str().into(),
            host: host.into(),
            port: authority.port_u16().unwrap_or(80),
            target: target.parse().map_err(|error| format!("`{url}`: {error}"))?,
            keep: keep::Settings::new(Pace::Every(interval)),
            timeout: Duration::from_secs(5),
        })
    }
}

/// The last list and the tag under which the server knows it.
struct Known {
    tag: HeaderValue,
    members: Vec<Member>,
}

/// Runs until the receiver of the events is gone.
pub async fn run(settings: Settings, task: Task) {
    let mut dice = Dice::new(task.seed);
    let mut keeper = Keeper::default();
    let mut known = None;
    loop {
        let asked = tokio::time::timeout(settings.timeout, ask(&settings, &mut known)).await;
        let answer = match asked {
            Ok(Ok(members)) => Answer::Members(members, None),
            Ok(Err(why)) => Answer::Failed(why.into()),
            Err(_elapsed) => Answer::Failed(format!("no answer within {:?}", settings.timeout).into()),
        };
        let at = Instant::now();
        let step = keeper.take(&settings.keep, answer, at, dice.next_u64());
        let event = Event {
            cluster: task.cluster.clone(),
            source: SourceKind::Http,
            at,
            asked: step.asked,
            detail: step.detail,
            stale: step.stale,
            members: step.members,
        };
        if task.events.send(event).await.is_err() {
            return;
        }
        tokio::time::sleep(step.next).await;
    }
}

async fn ask(settings: &Settings, known: &mut Option<Known>) -> Result<Vec<Member>, String> {
    let mut request = Request::get(settings.target.clone())
        .header(HOST, &*settings.authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "bellwether")
        .header(CONNECTION, "close");
    if let Some(known) = known.as_ref() {
        request = request.header(IF_NONE_MATCH, known.tag.clone());
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((&*settings.host, settings.port))
        .await
        .map_err(|error| format!("connecting to {}: {error}", settings.authority))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED {
            return match known.as_ref() {
                // Said again: as good as the list itself, also for what waits for confirmation.
                Some(known) => Ok(known.members.clone()),
                None => Err("answered 304 to a request without an ETag".into()),
            };
        }
        if status != StatusCode::OK {
            return Err(format!("answered {status}"));
        }
        let tag = response.headers().get(ETAG).cloned();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let body = body
            .map_err(|error| format!("reading the list: {error}"))?
            .to_bytes();
        let members = entry::read_json(&body)?;
        *known = tag.map(|tag| Known {
            tag,
            members: members.clone(),
        });
        Ok(members)
    };
    // The connection is driven right here, so that nothing outlives the question.
    tokio::pin!(connection, exchange);
    tokio::select! {
        result = &mut exchange => result,
        ended = &mut connection => {
            // The exchange may still have bytes to read; an early end shows there.
            let result = exchange.await;
            match (result, ended) {
                (Err(_), Err(error)) => Err(error.to_string()),
                (result, _) => result,
            }
        }
    }
}
