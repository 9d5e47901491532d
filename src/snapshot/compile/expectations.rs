//! The `tests:` of a configuration: each request is sent through the compiled tables, without a socket.
//!
//! They run with every check and before every reload, so a file that no longer does what it promises is refused.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use std::net::{IpAddr, Ipv4Addr};

use crate::config::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::config::listener::ReadOrWrite;
use crate::config::policy::Operation;
use crate::config::process::{Expect, Test};
use crate::config::{Document, Sp};
use crate::message::forwarded::Scheme;
use crate::message::path;
use crate::message::redirect::Asked;
use crate::message::template::Values;
use crate::route::RequestView;
use crate::snapshot::{Action, Listener, Route, Snapshot, Target};

/// The client of every test.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Runs them all.
pub(super) fn all(document: &Document, snapshot: &Snapshot, out: &mut Diagnostics) {
    for test in document.config.tests.iter() {
        run(test, document, snapshot, out);
    }
}

/// A request of a test, taken apart.
struct Asks<'a> {
    method: Method,
    scheme: Scheme,
    port: u16,
    authority: &'a str,
    host: &'a str,
    path: String,
    query: Option<&'a str>,
    headers: HeaderMap,
}

fn run(test: &Sp<Test>, document: &Document, snapshot: &Snapshot, out: &mut Diagnostics) {
    let request = &test.request;
    let Some((method, uri)) = split(&request.value) else {
        let label = "write `GET https://shop.example/api`";
        let message = format!("`{}` is not a request", request.value);
        out.push(Diagnostic::error("E0510", message).at(request.span, label));
        return;
    };
    let asks = match asks(test, method, &uri) {
        Ok(asks) => asks,
        Err(why) => {
            let message = format!("`{}` is not a request", request.value);
            out.push(Diagnostic::error("E0510", message).at(request.span, why));
            return;
        }
    };
    let Some(listener) = arrives(test, &asks, snapshot, out) else {
        return;
    };
    let view = RequestView {
        host: asks.authority,
        path: &asks.path,
        query: asks.query,
        method: &asks.method,
        headers: &asks.headers,
        client_ip: CLIENT,
    };
    let found = listener.find(snapshot, &view);
    let mut report = Report {
        request: &request.value,
        explain: explain(listener, snapshot, &view, found),
        out,
    };
    compare(&test.expect, &asks, found, snapshot, document, &mut report);
}

fn split(text: &str) -> Option<(Method, Uri)> {
    let (method, uri) = text.split_once(char::is_whitespace)?;
    Some((method.parse().ok()?, uri.trim().parse().ok()?))
}

fn asks<'a>(test: &Test, method: Method, uri: &'a Uri) -> Result<Asks<'a>, String> {
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err("the address starts with `http://` or `https://`".to_owned()),
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let mut headers = HeaderMap::new();
    for (name, value) in super::policy::pairs(test.headers.as_ref()) {
        let field = HeaderName::from_bytes(name.value.as_bytes());
        let value = HeaderValue::from_str(&value.value);
        if let (Ok(field), Ok(value)) = (field, value) {
            headers.append(field, value);
        } else {
            return Err(format!("`{}` is not a header", name.value));
        }
    }
    Ok(Asks {
        method,
        scheme,
        port: uri.port_u16().unwrap_or(match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }),
        authority,
        host: uri.host().unwrap_or_default(),
        path: path::normalise(uri.path())
            .map_err(|error| error.to_string())?
            .into_owned(),
        query: uri.query(),
        headers,
    })
}

/// The listener that is named; else the first with the scheme and port of the request, with the scheme, or at all.
fn arrives<'a>(
    test: &Test,
    asks: &Asks<'_>,
    snapshot: &'a Snapshot,
    out: &mut Diagnostics,
) -> Option<&'a Listener> {
    if let Some(name) = &test.listener {
        let found = snapshot.listener(&name.value);
        if found.is_none() {
            let message = format!("listener `{}` does not exist", name.value);
            out.push(Diagnostic::error("E0402", message).at(name.span, ""));
        }
        return found.map(AsRef::as_ref);
    }
    let same_scheme = |listener: &&Listener| listener.tls.is_some() == (asks.scheme == Scheme::Https);
    let same_port = |listener: &&Listener| listener.address.port() == Some(asks.port);
    let mut all = snapshot.listeners.iter().map(AsRef::as_ref);
    (all.clone()
        .find(|listener| same_scheme(listener) && same_port(listener)))
    .or_else(|| all.clone().find(same_scheme))
    .or_else(|| all.next())
}

/// Where the request went and, where it matched nothing, why the nearest routes did not.
fn explain(
    listener: &Listener,
    snapshot: &Snapshot,
    view: &RequestView<'_>,
    found: Option<&std::sync::Arc<Route>>,
) -> String {
    let name = &listener.name;
    if let Some(route) = found {
        return format!(
            "listener `{name}` gives it to route `{}` ({})",
            route.name, route.origin
        );
    }
    let near = listener.table.nearest(view, 1).into_iter().next();
    let near = near.and_then(|miss| {
        let route = snapshot.routes.get(*listener.routes.get(miss.index)? as usize)?;
        let failing: Vec<String> = miss
            .failing
            .iter()
            .map(|mismatch| format!("{mismatch:?}").to_lowercase())
            .collect();
        Some(format!(
            "; the nearest is `{}`, which differs in {}",
            route.name,
            failing.join(", ")
        ))
    });
    format!(
        "listener `{name}` has no route for it{}",
        near.unwrap_or_default()
    )
}

struct Report<'a> {
    request: &'a str,
    explain: String,
    out: &'a mut Diagnostics,
}

impl Report<'_> {
    fn differs(&mut self, what: &str, at: Span, expected: &str, got: Option<&str>) {
        if got == Some(expected) {
            return;
        }
        let got = got.map_or_else(|| format!("got no {what}"), |got| format!("got {what} `{got}`"));
        self.out.push(
            Diagnostic::error(
                "E0510",
                format!("test `{}` fails: expected {what} `{expected}`", self.request),
            )
            .at(at, got)
            .note(self.explain.clone()),
        );
    }
}

fn compare(
    expect: &Sp<Expect>,
    asks: &Asks<'_>,
    found: Option<&std::sync::Arc<Route>>,
    snapshot: &Snapshot,
    document: &Document,
    report: &mut Report<'_>,
) {
    let prefix = found.and_then(|route| route.path.matched_prefix(&asks.path));
    let values = Values {
        client_ip: CLIENT,
        host: asks.host,
        path: &asks.path,
        request_id: "",
        route: found.map_or("", |route| &route.name),
        cluster: "",
        endpoint: "",
        tls_peer: "",
    };
    let asked = Asked {
        scheme: asks.scheme,
        host: asks.authority,
        path: &asks.path,
        query: asks.query,
        matched_prefix: prefix,
    };
    if let Some(name) = &expect.route {
        report.differs("route", name.span, &name.value, found.map(|route| &*route.name));
    }
    if let Some(name) = &expect.cluster {
        let targets = found.map_or_else(Vec::new, |route| targets(route, snapshot));
        // A split may go to any of its sides.
        if !targets.contains(&name.value.as_str()) {
            report.differs("cluster", name.span, &name.value, targets.first().copied());
        }
    }
    if let Some(status) = &expect.status {
        let got = match found.map(|route| &route.action) {
            None => Some(404),
            Some(Action::Redirect(redirect)) => Some(redirect.status().as_u16()),
            Some(Action::Direct(answer)) => Some(answer.response(&asks.headers, &values).status().as_u16()),
            Some(Action::Forward(_)) => None,
        };
        let got = got.map(|status| status.to_string());
        report.differs("status", status.span, &status.value.to_string(), got.as_deref());
    }
    if let Some(location) = &expect.location {
        let got = match found.map(|route| &route.action) {
            Some(Action::Redirect(redirect)) => redirect.location(&asked, &values),
            _ => None,
        };
        report.differs("location", location.span, &location.value, got.as_deref());
    }
    if let Some(path) = &expect.path {
        let got = found.and_then(|route| target(route, asks, prefix));
        report.differs("path", path.span, &path.value, got.as_deref());
    }
    if let Some(operation) = &expect.operation {
        let got = found.and_then(|route| operation_of(route, asks, snapshot, document));
        report.differs(
            "operation",
            operation.span,
            operation.value.word(),
            got.map(ReadOrWrite::word),
        );
    }
}

fn targets<'a>(route: &Route, snapshot: &'a Snapshot) -> Vec<&'a str> {
    let ids = match &route.action {
        Action::Forward(Target::Cluster(id)) => std::slice::from_ref(id),
        Action::Forward(Target::Split { clusters, .. }) => clusters,
        Action::Redirect(_) | Action::Direct(_) => &[],
    };
    ids.iter()
        .filter_map(|id| snapshot.cluster(*id))
        .map(|cluster| &*cluster.name)
        .collect()
}

/// Path and query as the service sees them.
fn target(route: &Route, asks: &Asks<'_>, prefix: Option<&str>) -> Option<String> {
    if !matches!(route.action, Action::Forward(_)) {
        return None;
    }
    let rewritten = match &route.rewrite {
        Some(rewrite) => rewrite.target(&asks.path, asks.query, prefix).ok()?,
        None => None,
    };
    Some(rewritten.unwrap_or_else(|| match asks.query {
        Some(query) => format!("{}?{query}", asks.path),
        None => asks.path.clone(),
    }))
}

fn operation_of(
    route: &Route,
    asks: &Asks<'_>,
    snapshot: &Snapshot,
    document: &Document,
) -> Option<ReadOrWrite> {
    let at = snapshot
        .routes
        .iter()
        .position(|known| known.name == route.name)?;
    let operation = document.effective.policies.get(at)?.operation.value;
    Some(match operation {
        Operation::Read => ReadOrWrite::Read,
        Operation::Auto
            if [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&asks.method) =>
        {
            ReadOrWrite::Read
        }
        Operation::Write | Operation::Auto => ReadOrWrite::Write,
    })
}
