//! Listeners: what is spoken, what clients may take, and which routes they have.

use std::sync::Arc;

use super::route::Made;
use super::{Context, address, tls};
use crate::config::Sp;
use crate::config::listener as written;
use crate::config::route::Route;
use crate::message::forwarded::TrustedProxies;
use crate::message::reply::Detail;
use crate::net::proxy_protocol::Presence;
use crate::net::tls::Alpn;
use crate::route::Table;
use crate::snapshot::{Direction, Listener};
use crate::wire::http1::{self, head};
use crate::wire::http2;

/// The longest request target, where heads may be that long.
const MAX_TARGET: usize = 16 * 1024;

pub(super) fn all(routes: &[Option<Made>], cx: &mut Context<'_>) -> Vec<Arc<Listener>> {
    let document = cx.document;
    let listeners = document.config.listeners.iter();
    // What is only passed through has no requests and no routes.
    listeners
        .filter(|(_, listener)| listener.tcp.is_none())
        .filter_map(|(name, listener)| one(name, listener, routes, cx))
        .map(Arc::new)
        .collect()
}

fn one(
    name: &Sp<String>,
    listener: &Sp<written::Listener>,
    routes: &[Option<Made>],
    cx: &mut Context<'_>,
) -> Option<Listener> {
    let speaks = |protocol| listener.protocols.iter().any(|known| known.value == protocol);
    let (http1, http2) = (speaks(written::Protocol::Http1), speaks(written::Protocol::Http2));
    let alpn = [(http2, Alpn::Http2), (http1, Alpn::Http1)];
    let alpn: Vec<Alpn> = alpn
        .into_iter()
        .filter_map(|(speaks, alpn)| speaks.then_some(alpn))
        .collect();
    let tls = tls::server(&format!("listener {}", name.value), &listener.tls, &alpn, cx);
    let (indices, matches) = cx
        .document
        .config
        .routes
        .iter()
        .zip(compiled(routes))
        .filter(|(route, _)| is_attached(route, &name.value, listener.direction.value))
        .filter_map(|(_, made)| made.map(|(index, made)| (index, made.matches.clone())))
        .unzip::<u32, _, Vec<_>, Vec<_>>();
    let table = match Table::new(matches) {
        Ok(table) => table,
        Err(error) => {
            let message = format!("the paths of listener `{}` are too many to search", name.value);
            cx.error("E0307", message, name.span, error.to_string());
            return None;
        }
    };
    let (timeouts, limits) = (&listener.timeouts, &listener.limits);
    let networks = listener
        .trusted_proxies
        .iter()
        .flat_map(|networks| networks.iter());
    Some(Listener {
        name: name.value.as_str().into(),
        address: address(&listener.address.value),
        direction: match listener.direction.value {
            written::Direction::Inbound => Direction::Inbound,
            written::Direction::Outbound => Direction::Outbound,
        },
        http1: http1.then(|| Arc::new(http1_settings(listener))),
        http2: http2.then(|| Arc::new(http2_settings(listener))),
        tls,
        handshake_timeout: timeouts.tls_handshake.value,
        proxy_protocol: match listener.proxy_protocol.value {
            written::ProxyProtocolIn::Off => None,
            written::ProxyProtocolIn::Optional => Some(Presence::Optional),
            written::ProxyProtocolIn::Required => Some(Presence::Required),
        },
        trusted: TrustedProxies::new(networks.map(|network| network.0)),
        max_connections: limits.max_connections.value,
        max_connections_per_ip: limits.max_connections_per_ip.value,
        max_body: limits.max_body_size.value.map(|size| size.0),
        detail: match listener.error_detail.value {
            written::ErrorDetail::Minimal => Detail::Minimal,
            written::ErrorDetail::Standard => Detail::Standard,
            written::ErrorDetail::Full => Detail::Full,
        },
        access_log: listener.access_log.value,
        table,
        routes: indices.into(),
        metrics: cx.registry.recorder().listener(&name.value),
    })
}

/// Every route with its index in the snapshot, which has only those that could be compiled.
fn compiled(routes: &[Option<Made>]) -> impl Iterator<Item = Option<(u32, &Made)>> {
    let mut next = 0_u32;
    routes.iter().map(move |made| {
        let made = made.as_ref()?;
        let index = next;
        next += 1;
        Some((index, made))
    })
}

/// A route that names listeners is on those; any other is on every inbound one.
fn is_attached(route: &Route, listener: &str, direction: written::Direction) -> bool {
    match &route.listeners {
        Some(names) => names.iter().any(|name| name.value == listener),
        None => direction == written::Direction::Inbound,
    }
}

fn http1_settings(listener: &written::Listener) -> http1::server::Settings {
    let (timeouts, limits) = (&listener.timeouts, &listener.limits);
    let head_bytes = usize::try_from(limits.max_header_size.0).unwrap_or(usize::MAX);
    http1::server::Settings {
        limits: head::Limits {
            head_bytes,
            headers: limits.max_headers.value as usize,
            target_bytes: head_bytes.min(MAX_TARGET),
        },
        headers: timeouts.headers.value,
        body_idle: timeouts.body_idle.value,
        keep_alive: timeouts.keep_alive.value,
        max_age: timeouts.max_connection_age.value,
        max_requests: limits.max_requests_per_connection.value,
    }
}

fn http2_settings(listener: &written::Listener) -> http2::server::Settings {
    let (timeouts, limits) = (&listener.timeouts, &listener.limits);
    http2::server::Settings {
        max_streams: limits.max_concurrent_streams.value,
        header_list: u32::try_from(limits.max_header_size.0).unwrap_or(u32::MAX),
        headers: limits.max_headers.value as usize,
        head: timeouts.headers.value,
        body_idle: timeouts.body_idle.value,
        keep_alive: timeouts.keep_alive.value,
        max_age: timeouts.max_connection_age.value,
        max_requests: limits.max_requests_per_connection.value,
    }
}
