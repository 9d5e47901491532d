//! Listeners, as written.

use std::time::Duration;

use super::policy::Consistency;
use super::table::{Many, Sp, object, words};
use super::tls::ListenerTls;
use super::units::{Address, Cidr, Size};

words! {
    /// Which way the traffic goes.
    Direction: "direction", "directions" { Inbound = "inbound", Outbound = "outbound" }
}
words! {
    /// What is spoken on a listener.
    Protocol: "protocol", "protocols" { Http1 = "http1", Http2 = "http2", Http3 = "http3" }
}
words! {
    /// Whether a PROXY header is expected.
    ProxyProtocolIn: "PROXY protocol mode", "modes" { Off = "off", Optional = "optional", Required = "required" }
}
words! {
    /// What our own error answers reveal.
    ErrorDetail: "level of detail", "levels" { Minimal = "minimal", Standard = "standard", Full = "full" }
}
words! {
    /// What a request or a connection is for.
    ReadOrWrite: "operation", "operations" { Read = "read", Write = "write" }
}
words! {
    /// What happens to connections when the leader changes.
    OnLeaderChange: "reaction", "reactions" { Close = "close", Keep = "keep" }
}

object! {
    /// Where we accept connections. A bare value is the address.
    Listener = "listener", short address {
        /// `host:port`, `:port` = all interfaces, `unix:`
        address: Sp<Address> = req;
        /// drain order, metrics label, default attachment of routes
        direction: Sp<Direction> = "inbound";
        /// http2 includes cleartext prior knowledge; WebSocket and gRPC included
        protocols: Sp<Many<Protocol>> = "[http1, http2]";
        /// layer-4 pass-through instead of HTTP
        tcp: Option<Sp<ListenerTcp>> = none;
        /// TLS for clients
        tls: Sp<Option<ListenerTls>> = "off";
        /// v1/v2, only from `trusted_proxies`
        proxy_protocol: Sp<ProxyProtocolIn> = "off";
        /// whose X-Forwarded-*, PROXY header and x-bellwether-* are believed
        trusted_proxies: Option<Sp<Many<Cidr>>> = none;
        /// outbound sidecar behind iptables REDIRECT/TPROXY
        original_destination: Sp<bool> = "false";
        /// how long clients may take
        timeouts: Sp<ListenerTimeouts> = "{}";
        /// how much clients may take
        limits: Sp<ListenerLimits> = "{}";
        /// what our own error answers reveal
        error_detail: Sp<ErrorDetail> = "standard";
        /// whether requests are logged
        access_log: Sp<bool> = "true";
    }
}

object! {
    /// A layer-4 listener.
    ListenerTcp = "listener.tcp" {
        /// where connections go
        cluster: Sp<String> = req;
        /// for clusters with a `leader`: write = leader, read = per `consistency`
        operation: Sp<ReadOrWrite> = "write";
        /// `read_your_writes` not possible on tcp
        consistency: Sp<Consistency> = "eventual";
        /// no byte in either direction
        idle_timeout: Sp<Option<Duration>> = "1h" in (1, u32::MAX);
        /// close = like HAProxy `on-marked-down shutdown-sessions`
        on_leader_change: Sp<OnLeaderChange> = "close";
    }
}

object! {
    /// How long a client may take.
    ListenerTimeouts = "listener.timeouts" {
        /// from accept to the end of the handshake
        tls_handshake: Sp<Duration> = "10s" in (1, u32::MAX);
        /// first byte to end of request headers
        headers: Sp<Duration> = "10s" in (1, u32::MAX);
        /// between body bytes from the client
        body_idle: Sp<Option<Duration>> = "30s" in (1, u32::MAX);
        /// idle connection
        keep_alive: Sp<Duration> = "75s" in (1, u32::MAX);
        /// then GOAWAY / Connection: close, jittered
        max_connection_age: Sp<Option<Duration>> = "off" in (1, u32::MAX);
    }
}

object! {
    /// How much a client may take.
    ListenerLimits = "listener.limits" {
        /// open connections of the listener
        max_connections: Sp<Option<u32>> = "65536" in (1, 10_000_000);
        /// open connections of one client address
        max_connections_per_ip: Sp<Option<u32>> = "256" as "256 edge, off sidecar" in (1, 10_000_000);
        /// all request headers together
        max_header_size: Sp<Size> = "64KiB";
        /// number of request headers
        max_headers: Sp<u32> = "100" in (1, 10_000);
        /// bodies stream, nothing is buffered by default
        max_body_size: Sp<Option<Size>> = "off";
        /// http2
        max_concurrent_streams: Sp<u32> = "128" in (1, 1_000_000);
        /// then the connection is closed
        max_requests_per_connection: Sp<Option<u32>> = "off" in (1, u32::MAX);
    }
}
