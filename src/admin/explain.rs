//! What would become of a request, and why: the answer of `explain`, from a snapshot.
//!
//! It asks the same table the request path asks, so it cannot be wrong about the route; for the routes that were passed
//! over it asks the plain rule which condition failed. Nothing is sent, picked or counted.
//!
//! The same function serves the API (a running proxy's snapshot) and the command line (one compiled from a file).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use serde::{Deserialize, Serialize};

use super::inspect::ActionView;
use crate::cluster::{Endpoint, health};
use crate::message::path;
use crate::route::RequestView;
use crate::snapshot::{Listener, Route, Snapshot};

/// Routes that almost matched, shown when none did.
const NEAREST: usize = 3;

/// A request to explain.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// As in the request line.
    #[serde(default = "get")]
    pub method: String,
    /// `https://shop.example/orders?x=1`, or a path with the host among the headers.
    pub url: String,
    /// Fields by name.
    #[serde(default)]
    pub headers: BTreeMap<String, Values>,
    /// Who asks; this machine when absent.
    #[serde(default)]
    pub client_ip: Option<IpAddr>,
    /// Where it arrives; the first listener that fits the address when absent.
    #[serde(default)]
    pub listener: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

/// One value of a field, or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Values {
    fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(value) => std::slice::from_ref(value).iter(),
            Self::Many(values) => values.iter(),
        }
    }
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Not a method.
    #[error("`{0}` is not a method")]
    Method(String),
    /// Not an address.
    #[error("`{0}` is not an address like https://shop.example/orders")]
    Url(String),
    /// No host in the address and none among the fields.
    #[error("the request has no host: write it into the address or as a `host` header")]
    NoHost,
    /// Not a field.
    #[error("`{0}` is not a header")]
    Header(String),
    /// No such listener.
    #[error("there is no listener `{name}`; listeners: {known}")]
    Listener {
        /// The one asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// None at all.
    #[error("there is no listener")]
    NoListener,
}

/// What would become of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// As asked.
    pub method: String,
    /// As asked.
    pub url: String,
    /// The listener that takes it.
    pub listener: String,
    /// Where that one listens.
    pub address: String,
    /// The client after trusted proxies have been believed.
    pub client_ip: IpAddr,
    /// The path as it is matched and forwarded; absent when it is refused.
    pub path: Option<String>,
    /// The route that takes it.
    pub route: Option<Found>,
    /// Routes before that one, with the first condition that failed.
    pub skipped: Vec<Skipped>,
    /// Without a route: those that failed the fewest conditions.
    pub nearest: Vec<Near>,
    /// Endpoints of the clusters that the route sends to.
    pub candidates: Vec<Candidate>,
    /// In one sentence.
    pub result: String,
}

/// The route that matched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Where it is written.
    pub origin: String,
    /// What it does.
    pub action: ActionView,
    /// Request in to response headers out.
    pub timeout_seconds: Option<f64>,
    /// Attempts after the first.
    pub retries: u32,
}

/// A route that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub route: String,
    /// The first condition that failed.
    pub why: String,
}

/// A route that almost matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Near {
    /// Its name.
    pub route: String,
    /// Where it is written.
    pub origin: String,
    /// Every condition that failed.
    pub failing: Vec<String>,
}

/// An endpoint that the request could go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its cluster.
    pub cluster: String,
    /// Its address.
    pub address: String,
    /// Relative to the others of the cluster.
    pub weight: u32,
    /// Lower numbers first.
    pub priority: u8,
    /// Why it would not be used; absent when it may be.
    pub excluded: Option<String>,
}

/// Answers a question from a snapshot.
///
/// # Errors
/// What is wrong with the question.
pub fn explain(snapshot: &Snapshot, question: &Question) -> Result<Explanation, QuestionError> {
    let method: Method = question
        .method
        .parse()
        .map_err(|_invalid| QuestionError::Method(question.method.clone()))?;
    let wrong_url = || QuestionError::Url(question.url.clone());
    let uri: Uri = question.url.parse().map_err(|_invalid| wrong_url())?;
    // Without a scheme `a/b` and `shop.example` parse as well, but mean nothing here.
    if uri.scheme().is_none() && !question.url.starts_with('/') {
        return Err(wrong_url());
    }
    let headers = fields(&question.headers)?;
    let listener = listener(snapshot, question.listener.as_deref(), &uri)?;
    let host = match headers.get(header::HOST) {
        Some(host) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        None => uri.authority().ok_or(QuestionError::NoHost)?.to_string(),
    };
    let peer = question.client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let client_ip = listener.trusted.client_ip(peer, &headers);
    let mut explanation = Explanation {
        method: question.method.clone(),
        url: question.url.clone(),
        listener: listener.name.to_string(),
        address: listener.address.to_string(),
        client_ip,
        path: None,
        route: None,
        skipped: Vec::new(),
        nearest: Vec::new(),
        candidates: Vec::new(),
        result: String::new(),
    };
    let path = match path::normalise(uri.path()) {
        Ok(path) => path,
        Err(error) => {
            explanation.result = format!("would be refused with 400: {error}");
            return Ok(explanation);
        }
    };
    let view = RequestView {
        host: &host,
        path: &path,
        query: uri.query(),
        method: &method,
        headers: &headers,
        client_ip,
    };
    explanation.path = Some(path.clone().into_owned());
    match listener.table.find(&view) {
        Some(index) => found(&mut explanation, snapshot, listener, &view, index),
        None => not_found(&mut explanation, snapshot, listener, &view),
    }
    Ok(explanation)
}

fn fields(asked: &BTreeMap<String, Values>) -> Result<HeaderMap, QuestionError> {
    let mut headers = HeaderMap::new();
    for (name, values) in asked {
        let wrong = || QuestionError::Header(name.clone());
        let field: HeaderName = name.parse().map_err(|_invalid| wrong())?;
        for value in values.iter() {
            let value = HeaderValue::from_str(value).map_err(|_invalid| wrong())?;
            headers.append(&field, value);
        }
    }
    Ok(headers)
}

/// The listener with this name; otherwise the first with the address's port and TLS or not, the first with TLS or not,
/// the first.
fn listener<'a>(
    snapshot: &'a Snapshot,
    name: Option<&str>,
    uri: &Uri,
) -> Result<&'a Listener, QuestionError> {
    if let Some(name) = name {
        let listener = snapshot.listener(name).map(|listener| &**listener);
        return listener.ok_or_else(|| QuestionError::Listener {
            name: name.to_owned(),
            known: snapshot
                .listeners
                .iter()
                .map(|listener| &*listener.name)
                .collect::<Vec<_>>()
                .join(", "),
        });
    }
    let secure = uri.scheme_str().map(|scheme| scheme == "https");
    let port = uri
        .port_u16()
        .or(secure.map(|secure| if secure { 443 } else { 80 }));
    let fits_scheme = |listener: &Listener| secure.is_none_or(|secure| listener.tls.is_some() == secure);
    let fits_port = |listener: &Listener| port.is_some() && listener.address.port() == port;
    let mut listeners = snapshot.listeners.iter().map(|listener| &**listener);
    listeners
        .clone()
        .find(|listener| fits_scheme(listener) && fits_port(listener))
        .or_else(|| listeners.clone().find(|listener| fits_scheme(listener)))
        .or_else(|| listeners.next())
        .ok_or(QuestionError::NoListener)
}

/// The route at an index of a listener's table.
fn route_at<'a>(snapshot: &'a Snapshot, listener: &Listener, index: usize) -> Option<&'a Route> {
    let route = snapshot.routes.get(*listener.routes.get(index)? as usize)?;
    Some(&**route)
}

fn found(
    explanation: &mut Explanation,
    snapshot: &Snapshot,
    listener: &Listener,
    view: &RequestView<'_>,
    index: usize,
) {
    let Some(route) = route_at(snapshot, listener, index) else {
        return;
    };
    let why = |index: usize| {
        let settings = listener.table.settings(index)?;
        let mismatch = settings.mismatch(view)?;
        Some(settings.describe(&mismatch, view))
    };
    explanation.skipped = (0..index)
        .filter_map(|earlier| {
            Some(Skipped {
                route: route_at(snapshot, listener, earlier)?.name.to_string(),
                why: why(earlier)?,
            })
        })
        .collect();
    let action = ActionView::new(&route.action, snapshot);
    match &action {
        ActionView::Redirect => "would be redirected".clone_into(&mut explanation.result),
        ActionView::DirectResponse { status } => {
            explanation.result = format!("would be answered with {status}");
        }
        ActionView::Forward { clusters } => {
            let used = clusters.iter().filter(|share| share.share > 0.0);
            let names: Vec<&str> = used.map(|share| share.cluster.as_str()).collect();
            explanation.candidates = candidates(snapshot, &names);
            explanation.result = sentence(&names, &explanation.candidates);
        }
    }
    explanation.route = Some(Found {
        name: route.name.to_string(),
        origin: route.origin.to_string(),
        action,
        timeout_seconds: route.timeout.map(|timeout| timeout.as_secs_f64()),
        retries: route.retry.as_ref().map_or(0, |retry| retry.num_retries),
    });
}

fn candidates(snapshot: &Snapshot, clusters: &[&str]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let clusters = clusters
        .iter()
        .filter_map(|name| snapshot.clusters.iter().find(|cluster| &*cluster.name == *name));
    for cluster in clusters {
        let priorities = cluster.endpoints.iter().filter(|endpoint| endpoint.is_usable());
        let first = priorities.map(|endpoint| endpoint.priority).min();
        for endpoint in &cluster.endpoints {
            let excluded = if endpoint.weight == 0 {
                Some("its weight is 0".to_owned())
            } else if let Some(why) = why_not(endpoint) {
                Some(why)
            } else if Some(endpoint.priority) != first {
                Some("endpoints of a lower priority number are available".to_owned())
            } else {
                None
            };
            candidates.push(Candidate {
                cluster: cluster.name.to_string(),
                address: endpoint.label.to_string(),
                weight: endpoint.weight,
                priority: endpoint.priority,
                excluded,
            });
        }
    }
    candidates
}

/// The state of an endpoint that is not used, with everybody who is against it and why.
fn why_not(endpoint: &Endpoint) -> Option<String> {
    let availability = endpoint.state.availability();
    let objections = health::objections(&endpoint.state.arbiter.grounds())?;
    Some(format!("{}: {objections}", availability.state().name()))
}

fn sentence(clusters: &[&str], candidates: &[Candidate]) -> String {
    let usable: Vec<&Candidate> = candidates.iter().filter(|c| c.excluded.is_none()).collect();
    let clusters = clusters.join(" or ");
    match &*usable {
        [] => format!("would be answered with 503: cluster {clusters} has no endpoint that may be used"),
        [only] => format!("would be sent to {}", only.address),
        several => format!(
            "would be sent to one of {} endpoints of {clusters}",
            several.len()
        ),
    }
}

fn not_found(
    explanation: &mut Explanation,
    snapshot: &Snapshot,
    listener: &Listener,
    view: &RequestView<'_>,
) {
    "no route: would be answered with 404".clone_into(&mut explanation.result);
    let near = listener.table.nearest(view, NEAREST).into_iter();
    explanation.nearest = near
        .filter_map(|miss| {
            let route = route_at(snapshot, listener, miss.index)?;
            let settings = listener.table.settings(miss.index)?;
            let failing = miss
                .failing
                .iter()
                .map(|mismatch| settings.describe(mismatch, view));
            Some(Near {
                route: route.name.to_string(),
                origin: route.origin.to_string(),
                failing: failing.collect(),
            })
        })
        .collect();
}

impl Explanation {
    /// For people, as the command line shows it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail, here and below.
        _ = writeln!(text, "listener  {} ({})", self.listener, self.address);
        if let Some(path) = &self.path
            && !self
                .url
                .split(['?', '#'])
                .next()
                .is_some_and(|url| url.ends_with(path))
        {
            _ = writeln!(text, "path      {path}");
        }
        if let Some(route) = &self.route {
            _ = writeln!(text, "route     {:<30} {}", route.name, route.origin);
            let width = self
                .skipped
                .iter()
                .map(|skipped| skipped.route.len())
                .max()
                .unwrap_or(0);
            for (index, skipped) in self.skipped.iter().enumerate() {
                let title = if index == 0 { "skipped" } else { "" };
                _ = writeln!(text, "  {title:<8}{:<width$}  {}", skipped.route, skipped.why);
            }
            if let ActionView::Forward { clusters } = &route.action {
                for share in clusters {
                    let part = if clusters.len() > 1 {
                        format!("  {:.1}% of requests", share.share * 100.0)
                    } else {
                        String::new()
                    };
                    _ = writeln!(text, "cluster   {}{part}", share.cluster);
                    for candidate in self.candidates.iter().filter(|c| c.cluster == share.cluster) {
                        let note = candidate
                            .excluded
                            .as_ref()
                            .map(|why| format!("  not used: {why}"))
                            .unwrap_or_default();
                        _ = writeln!(text, "          {}{note}", candidate.address);
                    }
                }
                let timeout = route
                    .timeout_seconds
                    .map_or_else(|| "off".to_owned(), |seconds| format!("{seconds}s"));
                _ = writeln!(text, "policy    timeout {timeout} · retries {}", route.retries);
            }
        } else if self.path.is_some() {
            text.push_str("no route\n");
            for near in &self.nearest {
                _ = writeln!(text, "  {:<20} {}", near.route, near.failing.join("; "));
            }
        }
        _ = writeln!(text, "result    {}", self.result);
        text
    }
}
