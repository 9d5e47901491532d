//! The first step: is the request sane, whose is it, and which route takes it.

use std::borrow::Cow;
use std::sync::Arc;

use bellwether_core::shed::Level;
use bellwether_core::{Phase, Reason};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use http_body::Body as _;

use super::View;
use super::cx::RequestCx;
use crate::message::hygiene::Seen;
use crate::message::redirect::Asked;
use crate::message::replay::Replay;
use crate::message::template::Values;
use crate::message::{hygiene, path, trace};
use crate::route::{KeySource, RequestView};
use crate::snapshot::Route;
use crate::wire::RequestBody;

/// A request that has passed the first step.
#[derive(Debug)]
pub(super) struct Entered {
    /// The authority, as it came; empty where there is none.
    pub(super) host: HeaderValue,
    /// The normalised path, where it differs from the one that came.
    path: Option<String>,
    uri: http::Uri,
    /// The protocol that the client asks to switch to.
    pub(super) upgrade: Option<HeaderValue>,
    /// The client asks by extended CONNECT (RFC 8441).
    pub(super) extended: bool,
    /// What its fields may have besides those of everybody.
    pub(super) seen: Seen,
}

impl Entered {
    pub(super) fn host(&self) -> &str {
        text(&self.host)
    }

    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_else(|| target_path(&self.uri))
    }

    pub(super) fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    /// Path and query as they are forwarded unless a rewrite says otherwise.
    pub(super) fn target(&self) -> Cow<'_, str> {
        match (&self.path, self.query()) {
            (None, _) => Cow::Borrowed(
                self.uri
                    .path_and_query()
                    .map_or("/", http::uri::PathAndQuery::as_str),
            ),
            (Some(path), None) => Cow::Borrowed(path),
            (Some(path), Some(query)) => Cow::Owned(format!("{path}?{query}")),
        }
    }

    pub(super) fn values<'a>(&'a self, cx: &'a RequestCx, route: &'a str) -> Values<'a> {
        Values {
            client_ip: cx.client_ip,
            host: self.host(),
            path: self.path(),
            request_id: cx.request_id.as_str(),
            route,
            cluster: "",
            endpoint: "",
            tls_peer: cx.tls_peer().unwrap_or(""),
        }
    }

    pub(super) fn asked<'a>(&'a self, view: &View, route: &'a Route) -> Asked<'a> {
        Asked {
            scheme: view.hop.scheme(),
            host: self.host(),
            path: self.path(),
            query: self.query(),
            matched_prefix: route.path.matched_prefix(self.path()),
        }
    }

    pub(super) fn key_source<'a>(
        &'a self,
        cx: &'a RequestCx,
        route: &'a Arc<Route>,
        headers: &'a HeaderMap,
    ) -> KeySource<'a> {
        KeySource {
            client_ip: cx.client_ip,
            host: self.host(),
            path: self.path(),
            query: self.query(),
            route: &route.name,
            tls_peer: cx.tls_peer(),
            headers,
        }
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

fn target_path(uri: &http::Uri) -> &str {
    let path = uri.path();
    if path.is_empty() { "/" } else { path }
}

/// Checks a request and finds its route. Its fields stay where they are; what ends here is removed from them.
pub(super) fn enter(
    view: &View,
    cx: &mut RequestCx,
    request: &mut Request<RequestBody>,
) -> Result<Entered, Reason> {
    let body = std::mem::take(request.body_mut());
    let (uri, version) = (std::mem::take(request.uri_mut()), request.version());
    let extended = request
        .extensions()
        .get::<h2::ext::Protocol>()
        .map(|protocol| protocol.as_str().to_owned());
    let headers = request.headers_mut();
    if version == Version::HTTP_2 {
        hygiene::trim_values(headers);
        hygiene::join_cookies(headers);
    }
    let field = headers.get(header::HOST);
    let named = if version == Version::HTTP_2 {
        match hygiene::authority(uri.authority(), headers, version) {
            Ok(host) => Some(host),
            Err(error) => return Err(bad_request(cx, &error)),
        }
    } else {
        // The parser has refused what names no host, two, or none that is one; a request of HTTP/1.0 may name none.
        uri.authority().map(Authority::as_str)
    };
    let host = match (named, field) {
        (Some(named), _) => HeaderValue::from_str(named).or(Err(Reason::ClientProtocol))?,
        (None, field) => field.cloned().unwrap_or(HeaderValue::from_static("")),
    };
    let is_field = field.is_some();
    if !view.snapshot.access_fields.is_empty() {
        cx.host = Some(text(&host).into());
    }
    if cx.method == Method::CONNECT && extended.is_none() {
        // A gateway serves origins; it is no way out to arbitrary hosts.
        return Err(Reason::MethodUnsupported);
    }
    let asterisk = uri.path() == "*" && cx.method == Method::OPTIONS;
    let path = if asterisk {
        None
    } else {
        match path::normalise(uri.path()) {
            Ok(Cow::Borrowed(_)) => None,
            Ok(Cow::Owned(path)) => Some(path),
            Err(error) => return Err(bad_request(cx, &error)),
        }
    };
    let seen = hygiene::look(headers);
    let upgrade = match &extended {
        Some(protocol) => Some(HeaderValue::from_str(protocol).or(Err(Reason::ClientProtocol))?),
        None => hygiene::upgrade_asked(&cx.method, version, headers, seen),
    };
    let view_path = path.as_deref().unwrap_or_else(|| target_path(&uri));
    let request_view = RequestView {
        host: text(&host),
        path: view_path,
        query: uri.query(),
        // RFC 8441 §5: the bootstrapped request is a GET.
        method: if extended.is_some() {
            &Method::GET
        } else {
            &cx.method
        },
        headers,
        client_ip: cx.client_ip,
    };
    cx.phase.set(Phase::Route);
    let Some(index) = view
        .listener
        .table
        .find(&request_view)
        .and_then(|index| view.listener.routes.get(index))
    else {
        return Err(Reason::NoRoute);
    };
    cx.enter_route(*index);
    if seen.any(Seen::TRACE) {
        cx.trace = trace::take(headers);
    }
    hygiene::clean_request(headers, view.hop.trust(), seen);
    if let (Some(limit), Some(length)) = (view.listener.max_body, body.size_hint().exact())
        && length > limit
    {
        return Err(Reason::BodyTooLarge);
    }
    let keep =
        view.snapshot
            .routes
            .get(*index as usize)
            .map_or(0, |route| match (&route.retry, &route.fallback) {
                (Some(retry), _) => retry.max_body,
                (None, Some(_)) => KEPT_FOR_FALLBACK,
                (None, None) => 0,
            });
    let keep = match cx.worker.tools.level() {
        Level::Normal => keep,
        level => usize::try_from(level.replay_size(keep as u64)).unwrap_or(keep),
    };
    cx.replay = Replay::new(body, keep, view.listener.max_body);
    if !is_field && !host.is_empty() {
        headers.insert(header::HOST, host.clone());
    }
    Ok(Entered {
        host,
        path,
        uri,
        upgrade,
        extended: extended.is_some(),
        seen,
    })
}

/// Content up to this size is kept for a fallback, on a route without retries; as much as these keep by default.
const KEPT_FOR_FALLBACK: usize = 64 * 1024;

pub(super) fn bad_request(cx: &mut RequestCx, error: &dyn std::error::Error) -> Reason {
    cx.detail = Some(error.to_string().into());
    Reason::ClientProtocol
}
