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
#[derive(Clone, Debug, PartialEq, Eq)]
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::super::{Asked, Source, run as run_source};
    use super::*;

    /// Answers one request after the other with what is given, and passes on their heads.
    async fn serve(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/members?cluster=app", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heads.push(String::from_utf8(head).unwrap());
                // The other end may have heard enough before all is sent.
                let _cut = stream.write_all(answer.as_bytes()).await.is_err();
            }
            heads
        });
        (url, serving)
    }

    fn ok(headers: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    async fn ask_once(answer: String) -> Result<Vec<Member>, String> {
        let (url, _serving) = serve(vec![answer]).await;
        ask(&Settings::new(&url, Duration::from_secs(1)).unwrap(), &mut None).await
    }

    #[tokio::test]
    async fn the_tag_is_sent_back_and_a_304_is_the_list_again() {
        let list = "[\"10.0.0.1:80\"]";
        let (url, serving) = serve(vec![
            ok("etag: \"v1\"\r\n", list),
            "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
            ok("", "[\"10.0.0.2:80\"]"),
            ok("", list),
        ])
        .await;
        let settings = Settings::new(&url, Duration::from_secs(1)).unwrap();
        let mut known = None;
        let first = ask(&settings, &mut known).await.unwrap();
        assert_eq!(ask(&settings, &mut known).await.unwrap(), first);
        assert_ne!(ask(&settings, &mut known).await.unwrap(), first);
        ask(&settings, &mut known).await.unwrap();
        let heads = serving.await.unwrap();
        let tagged: Vec<bool> = heads
            .iter()
            .map(|head| head.contains("if-none-match: \"v1\"\r\n"))
            .collect();
        assert_eq!(tagged, [false, true, true, false]);
        assert!(
            heads[0].starts_with("GET /members?cluster=app HTTP/1.1\r\n"),
            "{}",
            heads[0]
        );
        assert!(heads[0].contains("host: 127.0.0.1:"));
    }

    #[tokio::test]
    async fn what_is_not_a_list_is_a_failure() {
        for (answer, expected) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned(),
                "503",
            ),
            (
                "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".to_owned(),
                "302",
            ),
            ("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(), "304"),
            (ok("", "{\"endpoints\": []}"), "sequence"),
            (ok("", ""), "EOF"),
            (ok("", &format!("[{}]", " ".repeat(MAX_BYTES))), "limit"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[]".to_owned(),
                "reading the list",
            ),
            ("SSH-2.0-x\r\n".to_owned(), ""),
        ] {
            let error = ask_once(answer.clone()).await.unwrap_err();
            assert!(error.contains(expected), "{answer:.40}: {error}");
        }
        // A port where nobody listens.
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let settings = Settings::new(&format!("http://127.0.0.1:{port}/"), Duration::from_secs(1)).unwrap();
        assert!(
            ask(&settings, &mut None)
                .await
                .unwrap_err()
                .starts_with("connecting to 127.0.0.1")
        );
    }

    #[tokio::test]
    async fn members_are_sent_and_outlive_a_failure() {
        let (url, _serving) = serve(vec![
            ok("", "[\"10.0.0.1:80\"]"),
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ])
        .await;
        let (events, mut heard) = tokio::sync::mpsc::channel(1);
        let cancel = CancellationToken::new();
        let settings = Settings::new(&url, Duration::from_secs(1)).unwrap();
        let task = Task {
            cluster: "app".into(),
            events,
            seed: 1,
            cancel: cancel.clone(),
        };
        let running = tokio::spawn(run_source(Source::Http(settings), task));
        let first = heard.recv().await.unwrap();
        assert_eq!(
            (first.asked, first.members.map(|members| members.len())),
            (Asked::Changed, Some(1))
        );
        let second = heard.recv().await.unwrap();
        assert_eq!(
            (second.asked, second.members, second.stale),
            (Asked::Failed, None, true)
        );
        cancel.cancel();
        running.await.unwrap();
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        for (url, expected) in [
            ("https://a/", "https"),
            ("ftp://a/", "http://"),
            ("/list", "http://"),
            ("http://u:p@a/", "password"),
            ("http://", "URL"),
        ] {
            let error = Settings::new(url, Duration::from_secs(1)).unwrap_err();
            assert!(error.contains(expected), "{url}: {error}");
        }
        let settings = Settings::new("http://[::1]:8080", Duration::from_secs(1)).unwrap();
        assert_eq!(
            (&*settings.host, settings.port, settings.target.to_string()),
            ("::1", 8080, "/".to_owned())
        );
    }
}
