//! What an endpoint is asked about who leads, and how its answer is read.
//!
//! Every system has its own words for the same few facts: a role, an epoch, a position, which cluster this is, how fresh the
//! answer is. So a question is data, not code: where each fact stands (a JSON pointer, RFC 6901, or a header) and which
//! conditions make a leader. Known systems are [presets](super::presets) of the same data, and whatever they say may be
//! said in the configuration too.
//!
//! What must stay true: an answer that cannot be read says nothing, and never that somebody leads; a claim to lead without
//! the epoch that it should have is no claim; and what an answer says about its own age is subtracted from it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::group::observation::{Authority, Lag, Member, Observation, Role, Source};
use bellwether_core::group::position::Type;
use bellwether_core::group::{Epoch, Kind, Lineage};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use serde_json::Value;

use crate::net::tls::ClientTls;

/// How much of an answer is read. More is no status.
pub const MAX_ANSWER: usize = 64 << 10;

/// A question to every endpoint of a cluster.
#[derive(Debug, Clone)]
pub struct Question {
    /// Another port than the endpoint's.
    pub port: Option<u16>,
    /// TLS of the question.
    pub tls: Option<Arc<ClientTls>>,
    /// How it is asked.
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// Fields of the question.
    pub headers: HeaderMap,
    /// Its content.
    pub body: Bytes,
    /// How the answer is read.
    pub reading: Reading,
}

/// How an answer is read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// It leads if all of these hold.
    pub leader_when: Vec<Condition>,
    /// It follows if all of these hold; none: if it answered well and does not lead.
    pub replica_when: Option<Vec<Condition>>,
    /// What it says is current if this holds.
    pub fresh_when: Option<Condition>,
    /// Where its epoch stands, and what kind it is; a leader without one is no leader.
    pub epoch: Option<(Kind, Vec<Place>)>,
    /// Where its position stands; the first that is there.
    pub position: Option<(Type, Vec<Place>)>,
    /// Which cluster it belongs to.
    pub cluster_id: Vec<Place>,
    /// Which history it writes.
    pub timeline: Vec<Place>,
    /// How far it is behind, in milliseconds, where positions do not tell.
    pub lag: Vec<Place>,
    /// When it last heard from what decides, in seconds since 1970 by its own clock, which `Date` tells.
    pub seen: Vec<Place>,
    /// What its word is worth.
    pub authority: Authority,
}

/// Where a fact stands in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A JSON pointer.
    Json(Box<str>),
    /// A field.
    Header(HeaderName),
}

/// What an answer must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// It has one of these statuses.
    pub status: Vec<RangeInclusive<u16>>,
    /// And this value passes.
    pub value: Option<(Place, Test)>,
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// It is there, and neither false, null, empty nor 0.
    Set,
    /// It is not there, or false, null, empty or 0.
    Unset,
    /// One of these, compared as text.
    OneOf(Vec<Box<str>>),
    /// What stands in another place of the same answer.
    Equals(Place),
    /// The host of the endpoint, with or without a port.
    Own,
}

/// An answer to a question.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its content, if it was JSON.
    pub body: Option<Value>,
}

/// Why an answer says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A fact is to be looked for in JSON.
    #[error("status {0}, and the content is not JSON")]
    NotJson(u16),
    /// It claims to lead and has no epoch.
    #[error("it leads and names no epoch at {0}")]
    NoEpoch(Box<str>),
    /// What stands at the place of the epoch is no number.
    #[error("`{0}` is no epoch")]
    BadEpoch(Box<str>),
    /// What stands at the place of the position is none.
    #[error("`{0}` is no position")]
    BadPosition(Box<str>),
    /// Neither of the conditions holds.
    #[error("status {0}, which neither leads nor follows")]
    Neither(u16),
}

/// Who was asked, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which place it has in the list of members.
    pub member: Member,
    /// Of which list.
    pub generation: u32,
    /// Its host.
    pub host: &'a str,
    /// When the question was sent.
    pub sent_at: Moment,
    /// When the answer was there.
    pub received_at: Moment,
    /// How long an answer is believed.
    pub ttl: Duration,
}

impl Answer {
    /// An answer as it came.
    pub fn new(status: StatusCode, headers: HeaderMap, body: &[u8]) -> Self {
        Self {
            status,
            headers,
            body: serde_json::from_slice(body).ok(),
        }
    }

    fn at(&self, place: &Place) -> Option<String> {
        match place {
            Place::Json(pointer) => match self.body.as_ref()?.pointer(pointer)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                Value::Bool(is) => Some(is.to_string()),
                // Not what anybody compares; that it is there is known.
                Value::Array(items) => Some(if items.is_empty() { "" } else { "[…]" }.to_owned()),
                Value::Object(fields) => Some(if fields.is_empty() { "" } else { "{…}" }.to_owned()),
                Value::Null => None,
            },
            Place::Header(name) => self.headers.get(name)?.to_str().ok().map(str::to_owned),
        }
    }

    fn first(&self, places: &[Place]) -> Option<String> {
        places.iter().find_map(|place| self.at(place))
    }
}

impl Condition {
    /// One that asks for nothing but a status.
    pub fn status(statuses: impl Into<Vec<RangeInclusive<u16>>>) -> Self {
        Self {
            status: statuses.into(),
            value: None,
        }
    }

    /// One that asks for nothing but a value.
    pub const fn value(place: Place, test: Test) -> Self {
        Self {
            status: Vec::new(),
            value: Some((place, test)),
        }
    }

    fn holds(&self, answer: &Answer, host: &str) -> bool {
        let status = answer.status.as_u16();
        if !self.status.is_empty() && !self.status.iter().any(|range| range.contains(&status)) {
            return false;
        }
        let Some((place, test)) = &self.value else {
            return true;
        };
        let found = answer.at(place);
        let is_set = |found: &Option<String>| {
            let found = found.as_deref().unwrap_or("");
            !matches!(found, "" | "0" | "false")
        };
        match test {
            Test::Set => is_set(&found),
            Test::Unset => !is_set(&found),
            Test::OneOf(values) => found.is_some_and(|found| values.iter().any(|value| **value == *found)),
            Test::Equals(other) => found.is_some() && found == answer.at(other),
            Test::Own => found.is_some_and(|found| without_port(&found) == without_port(host)),
        }
    }

    fn reads_json(&self) -> bool {
        matches!(&self.value, Some((Place::Json(_), _)))
    }
}

/// `10.0.0.1:80` and `10.0.0.1` name the same host; an IPv6 address has its port behind brackets.
fn without_port(host: &str) -> &str {
    let host = host.rsplit_once("://").map_or(host, |(_, host)| host);
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

impl Reading {
    /// What an answer says about the one who gave it.
    ///
    /// # Errors
    /// Why it says nothing: nobody leads or follows for it.
    pub fn read(&self, answer: &Answer, asked: Asked<'_>) -> Result<Observation, Unreadable> {
        let holds = |condition: &Condition| condition.holds(answer, asked.host);
        if answer.body.is_none()
            && self.leader_when.iter().any(Condition::reads_json)
            && answer.status.is_success()
        {
            return Err(Unreadable::NotJson(answer.status.as_u16()));
        }
        let leads = !self.leader_when.is_empty() && self.leader_when.iter().all(holds);
        let follows = match &self.replica_when {
            Some(conditions) => conditions.iter().all(holds),
            None => answer.status.is_success(),
        };
        // An answer that is not current says who it is, and not that it still leads.
        let is_fresh = self.fresh_when.as_ref().is_none_or(holds);
        let role = match (leads, follows) {
            (true, _) if is_fresh => Role::Leader,
            (true, _) => Role::Unknown,
            (false, true) => Role::Follower,
            (false, false) => return Err(Unreadable::Neither(answer.status.as_u16())),
        };
        let mut said = Observation::new(asked.member, asked.generation, Source::HttpProbe, asked.sent_at);
        said.received_at = asked.received_at;
        said.ttl = asked.ttl;
        said.authority = self.authority;
        said.role = role;
        said.age = self.age(answer);
        said.epoch = self.epoch(answer)?;
        if let (Role::Leader, None, Some((_, places))) = (role, said.epoch, &self.epoch) {
            return Err(Unreadable::NoEpoch(
                places
                    .iter()
                    .map(Place::name)
                    .collect::<Vec<_>>()
                    .join(", ")
                    .into(),
            ));
        }
        let cluster_id = answer.first(&self.cluster_id);
        if let Some((kind, places)) = &self.position
            && let Some(text) = answer.first(places)
        {
            let position = kind
                .parse(&text)
                .map_err(|_not_one| Unreadable::BadPosition(text.into()))?;
            said.position = Some(position);
        }
        if let Some(timeline) = answer.first(&self.timeline) {
            let id = cluster_id.as_deref().unwrap_or("");
            said.lineage = Some(Lineage::of(id, &timeline));
        }
        said.cluster_id = cluster_id.map(Arc::from);
        said.lag = answer
            .first(&self.lag)
            .and_then(|millis| millis.parse::<f64>().ok())
            .and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok())
            .map(Lag::Behind);
        Ok(said)
    }

    fn epoch(&self, answer: &Answer) -> Result<Option<Epoch>, Unreadable> {
        let Some((kind, places)) = &self.epoch else {
            return Ok(None);
        };
        let Some(text) = answer.first(places) else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(term) => Ok(Some(Epoch::new(*kind, term))),
            Err(_not_a_number) => Err(Unreadable::BadEpoch(text.into())),
        }
    }

    /// How old the answer was when it was given. Both times are of the one who answered, so no two clocks are compared.
    fn age(&self, answer: &Answer) -> Duration {
        let Some(seen) = answer.first(&self.seen).and_then(|seen| seen.parse::<f64>().ok()) else {
            return Duration::ZERO;
        };
        let date = answer
            .headers
            .get(header::DATE)
            .and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
            return Duration::ZERO;
        };
        let now = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Duration::try_from_secs_f64(now.as_secs_f64() - seen).unwrap_or_default()
    }
}

impl Place {
    /// A JSON pointer.
    pub fn json(pointer: &str) -> Self {
        Self::Json(pointer.into())
    }

    /// As it is written in the configuration.
    fn name(&self) -> &str {
        match self {
            Self::Json(pointer) => pointer,
            Self::Header(name) => name.as_str(),
        }
    }
}
