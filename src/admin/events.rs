//! `GET /api/v1/events`: what changed, once or live.
//!
//! `since` is the number of the last event that the asker has seen. A live reader gets the kept ones first and then
//! every new one; whoever reads too slowly loses the oldest and sees it by the gap in `seq`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::{Context, Problem, problem};
use crate::telemetry::{Event, EventKind};

/// A comment this often keeps connections alive that middle boxes would forget.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    since: Option<String>,
    kind: Option<String>,
}

#[derive(Debug, Serialize)]
struct EventsView {
    /// The last number given out; ask for what comes after it.
    last: u64,
    events: Vec<Arc<Event>>,
}

pub(super) async fn events(
    State(context): State<Arc<Context>>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let kinds = kinds(query.kind.as_deref())?;
    let live = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
    // A browser that reconnects repeats the address and tells by a field where it was (HTML standard, section 9.2.4).
    let resumed = headers
        .get("last-event-id")
        .map(HeaderValue::to_str)
        .and_then(Result::ok);
    let since = resumed.or(query.since.as_deref()).unwrap_or("0");
    let since: u64 = since
        .parse()
        .map_err(|_not_a_number| Problem::new(400, "`since` is the number of an event"))?;
    if live {
        let seat = Arc::clone(&context.kept.streams)
            .try_acquire_owned()
            .map_err(|_none_left| Problem::new(503, "too many readers of events"))?;
        let (past, live) = context.events.follow(since);
        let follower = Follower {
            past: past.into(),
            live,
            kinds,
            _seat: seat,
        };
        let stream = stream::unfold(follower, async |mut follower| {
            let event = follower.next().await?;
            let text = serde_json::to_string(&*event).unwrap_or_default();
            let line = sse::Event::default()
                .id(event.seq.to_string())
                .event(event.kind.name())
                .data(text);
            Some((Ok::<_, Infallible>(line), follower))
        });
        let keep_alive = KeepAlive::new().interval(HEARTBEAT);
        return Ok(Sse::new(stream).keep_alive(keep_alive).into_response());
    }
    // The number first: an event that comes in between is then asked for again rather than missed.
    let last = context.events.last();
    let mut events = context.events.since(since, None);
    events.retain(|event| wanted(&kinds, event));
    Ok(problem::ok(&EventsView { last, events }))
}

/// The kinds asked for; empty means all.
fn kinds(asked: Option<&str>) -> Result<Vec<EventKind>, Problem> {
    let words = asked
        .unwrap_or_default()
        .split(',')
        .filter(|word| !word.is_empty());
    words
        .map(|word| {
            EventKind::from_name(word).ok_or_else(|| {
                let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
                Problem::new(400, format!("`{}` is not a kind of event", word.escape_default()))
                    .help(format!("kinds: {}", names.join(", ")))
            })
        })
        .collect()
}

fn wanted(kinds: &[EventKind], event: &Event) -> bool {
    kinds.is_empty() || kinds.contains(&event.kind)
}

struct Follower {
    past: VecDeque<Arc<Event>>,
    live: broadcast::Receiver<Arc<Event>>,
    kinds: Vec<EventKind>,
    /// One of the few places for live readers.
    _seat: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            let event = match self.past.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            if wanted(&self.kinds, &event) {
                return Some(event);
            }
        }
    }
}
