//! Reason: the closed list of why the proxy, and not an upstream, ended a request.
//!
//! A hundred things can go wrong and about forty can be said. One list serves the access log, the metric label, the
//! header `x-bellwether-rejected`, the error body and the operator, so that a word seen in one place is found in all the
//! others. Each word's consequences stand in the tables of this file under each other; no table has a `_` arm, so a new
//! reason does not compile until it has an answer in each.
//!
//! Statuses follow one sentence: **503 when no upstream can have acted, 502 when one was reached and broke, 504 when time
//! ran out, 4xx when the client is at fault, 500 only for our own bugs.** A client may therefore repeat any request after
//! a 503 of ours. Where several attempts failed, the least certain one speaks. Two reasons are finer than the sentence:
//! an exchange that idles or lasts too long is 408, and a TLS failure is 502 although nothing was asked.
//!
//! Diagnosis has two more axes, which the shell keeps beside the reason: who ended it ([`TerminatedBy`]) and during what
//! ([`Phase`]).

/// Why the proxy ended a request by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// No route matches.
    NoRoute,
    /// The route names a cluster that this snapshot does not have.
    NoUpstream,
    /// The cluster has no endpoint, or none that may be used.
    NoEndpoint,
    /// The circuit breaker is open.
    BreakerOpen,
    /// A concurrency limit is reached and nothing may queue.
    Overflow,
    /// A concurrency limit is reached and so is its queue.
    QueueFull,
    /// The wait for a seat or a connection took too long.
    QueueTimeout,
    /// Shed: the proxy is overloaded and the request was not important enough.
    Overload,
    /// The proxy is at its memory limit.
    Memory,
    /// The rate limit is exhausted.
    RateLimited,
    /// Refused by an access rule.
    Denied,
    /// Failed on purpose by a `fault` policy; the policy's own status replaces the one here.
    FaultInjected,
    /// The route does not allow this tunnel or protocol upgrade.
    UpgradeRefused,
    /// The proxy is stopping and the time for running requests is over.
    Draining,
    /// No connection to an endpoint: refused, unreachable.
    ConnectFailed,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// Connected, but the TLS handshake or the verification of the certificate failed.
    TlsFailed,
    /// The endpoint reset the connection or the stream.
    UpstreamReset,
    /// The endpoint closed before its answer was complete.
    UpstreamClosed,
    /// The endpoint's answer is not valid HTTP, or not one that may be passed on.
    UpstreamProtocol,
    /// No answer within the route's timeout.
    UpstreamTimeout,
    /// No answer within the timeout of one attempt, and no further attempt was allowed.
    PerTryTimeout,
    /// The deadline that came with the request passed before an attempt could be made.
    DeadlineExpired,
    /// Every allowed attempt failed; where the last one has an answer, that one is passed on instead.
    RetryExhausted,
    /// Nothing moved for the idle timeout; after the response has begun it is reset instead.
    StreamIdle,
    /// The exchange lasted longer than `max_duration`; after the response has begun it is reset instead.
    MaxDuration,
    /// The client went away; the status is only for the log.
    ClientClosed,
    /// The client did not send its request in time.
    ClientTimeout,
    /// The request is not valid HTTP, or its framing is in doubt.
    ClientProtocol,
    /// The request target is longer than the limit.
    UriTooLong,
    /// The header section is larger than the limit, in bytes or in fields.
    HeadersTooLarge,
    /// The body is larger than the route allows.
    BodyTooLarge,
    /// The connection was not made for this authority (RFC 9110 section 15.5.20).
    Misdirected,
    /// The method is not one this proxy forwards (RFC 9110 section 9.1).
    MethodUnsupported,
    /// No endpoint is confirmed as leader.
    NoLeader,
    /// Two endpoints claim to lead in the same epoch.
    LeaderConflict,
    /// The claim to lead belongs to an older epoch than one already seen.
    EpochRegression,
    /// No replica can show how stale it is, and the route asks for a bound.
    StalenessUnknown,
    /// No replica has reached the position that the read needs.
    Behind,
    /// The proxy cannot reach enough of the group to know who leads.
    Isolated,
    /// A bug of the proxy.
    Internal,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::NoRoute,
        Self::NoUpstream,
        Self::NoEndpoint,
        Self::BreakerOpen,
        Self::Overflow,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::Overload,
        Self::Memory,
        Self::RateLimited,
        Self::Denied,
        Self::FaultInjected,
        Self::UpgradeRefused,
        Self::Draining,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::UpstreamReset,
        Self::UpstreamClosed,
        Self::UpstreamProtocol,
        Self::UpstreamTimeout,
        Self::PerTryTimeout,
        Self::DeadlineExpired,
        Self::RetryExhausted,
        Self::StreamIdle,
        Self::MaxDuration,
        Self::ClientClosed,
        Self::ClientTimeout,
        Self::ClientProtocol,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::BodyTooLarge,
        Self::Misdirected,
        Self::MethodUnsupported,
        Self::NoLeader,
        Self::LeaderConflict,
        Self::EpochRegression,
        Self::StalenessUnknown,
        Self::Behind,
        Self::Isolated,
        Self::Internal,
    ];

    /// Its place in [`Reason::ALL`]: the index of a table of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word in logs, metrics and headers. Part of the public contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoUpstream => "no_upstream",
            Self::NoEndpoint => "no_endpoint",
            Self::BreakerOpen => "breaker_open",
            Self::Overflow => "overflow",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Overload => "overload",
            Self::Memory => "memory",
            Self::RateLimited => "rate_limited",
            Self::Denied => "denied",
            Self::FaultInjected => "fault_injected",
            Self::UpgradeRefused => "upgrade_refused",
            Self::Draining => "draining",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed => "tls_failed",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::PerTryTimeout => "per_try_timeout",
            Self::DeadlineExpired => "deadline_expired",
            Self::RetryExhausted => "retry_exhausted",
            Self::StreamIdle => "stream_idle",
            Self::MaxDuration => "max_duration",
            Self::ClientClosed => "client_closed",
            Self::ClientTimeout => "client_timeout",
            Self::ClientProtocol => "client_protocol",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::Misdirected => "misdirected",
            Self::MethodUnsupported => "method_unsupported",
            Self::NoLeader => "no_leader",
            Self::LeaderConflict => "leader_conflict",
            Self::EpochRegression => "epoch_regression",
            Self::StalenessUnknown => "staleness_unknown",
            Self::Behind => "behind",
            Self::Isolated => "isolated",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status of the answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::NoRoute => 404,
            // Nobody upstream can have acted.
            Self::NoUpstream
            | Self::NoEndpoint
            | Self::BreakerOpen
            | Self::Overflow
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Overload
            | Self::Memory
            | Self::FaultInjected
            | Self::Draining
            | Self::ConnectFailed
            | Self::NoLeader
            | Self::LeaderConflict
            | Self::EpochRegression
            | Self::StalenessUnknown
            | Self::Behind
            | Self::Isolated => 503,
            Self::RateLimited => 429,
            Self::Denied | Self::UpgradeRefused => 403,
            // Time ran out.
            Self::ConnectTimeout | Self::UpstreamTimeout | Self::PerTryTimeout | Self::DeadlineExpired => 504,
            // Somebody was reached and broke. TLS: there was somebody, it was the wrong one.
            Self::TlsFailed
            | Self::UpstreamReset
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::RetryExhausted => 502,
            // 408 and not 504: the exchange as a whole stalled, and no attempt is to blame.
            Self::StreamIdle | Self::MaxDuration | Self::ClientTimeout => 408,
            // nginx's number; nobody is there to read it.
            Self::ClientClosed => 499,
            Self::ClientProtocol => 400,
            Self::UriTooLong => 414,
            Self::HeadersTooLarge => 431,
            Self::BodyTooLarge => 413,
            Self::Misdirected => 421,
            Self::MethodUnsupported => 501,
            // Only our own bugs.
            Self::Internal => 500,
        }
    }

    /// The gRPC status code of the answer (gRPC "Status codes and their use").
    #[must_use]
    pub const fn grpc(self) -> u8 {
        match self {
            // UNIMPLEMENTED
            Self::NoRoute | Self::Misdirected | Self::MethodUnsupported => 12,
            // UNAVAILABLE
            Self::NoUpstream
            | Self::NoEndpoint
            | Self::BreakerOpen
            | Self::Overflow
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Overload
            | Self::Memory
            | Self::FaultInjected
            | Self::Draining
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::UpstreamReset
            | Self::UpstreamClosed
            | Self::RetryExhausted
            | Self::NoLeader
            | Self::LeaderConflict
            | Self::EpochRegression
            | Self::StalenessUnknown
            | Self::Behind
            | Self::Isolated => 14,
            // RESOURCE_EXHAUSTED
            Self::RateLimited | Self::UriTooLong | Self::HeadersTooLarge | Self::BodyTooLarge => 8,
            // PERMISSION_DENIED
            Self::Denied | Self::UpgradeRefused => 7,
            // INTERNAL
            Self::UpstreamProtocol | Self::ClientProtocol | Self::Internal => 13,
            // DEADLINE_EXCEEDED
            Self::UpstreamTimeout
            | Self::PerTryTimeout
            | Self::DeadlineExpired
            | Self::StreamIdle
            | Self::MaxDuration => 4,
            // CANCELLED
            Self::ClientClosed | Self::ClientTimeout => 1,
        }
    }

    /// Who ended the request.
    #[must_use]
    pub const fn fault(self) -> TerminatedBy {
        match self {
            Self::NoRoute
            | Self::NoUpstream
            | Self::BreakerOpen
            | Self::RateLimited
            | Self::Denied
            | Self::FaultInjected
            | Self::UpgradeRefused
            | Self::Isolated => TerminatedBy::Policy,
            Self::NoEndpoint
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::UpstreamReset
            | Self::UpstreamClosed
            | Self::UpstreamProtocol
            | Self::RetryExhausted
            | Self::NoLeader
            | Self::LeaderConflict
            | Self::EpochRegression
            | Self::StalenessUnknown
            | Self::Behind => TerminatedBy::Upstream,
            Self::Overflow
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Overload
            | Self::Memory
            | Self::Internal => TerminatedBy::Resource,
            Self::Draining => TerminatedBy::Admin,
            Self::ConnectTimeout
            | Self::UpstreamTimeout
            | Self::PerTryTimeout
            | Self::DeadlineExpired
            | Self::StreamIdle
            | Self::MaxDuration => TerminatedBy::Timeout,
            Self::ClientClosed
            | Self::ClientTimeout
            | Self::ClientProtocol
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::BodyTooLarge
            | Self::Misdirected
            | Self::MethodUnsupported => TerminatedBy::Client,
        }
    }

    /// One plain sentence without a full stop, safe to show to any client: it names no cluster and no address.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoRoute => "No route matches this request",
            Self::NoUpstream => "The cluster of this route does not exist",
            Self::NoEndpoint => "No endpoint of the cluster can take this request",
            Self::BreakerOpen => "The circuit breaker is open after recent failures",
            Self::Overflow => "Too many requests are in flight",
            Self::QueueFull => "Too many requests are waiting",
            Self::QueueTimeout => "The request waited too long for its turn",
            Self::Overload => "The proxy is overloaded",
            Self::Memory => "The proxy is short of memory",
            Self::RateLimited => "Too many requests in a short time",
            Self::Denied => "Access is denied",
            Self::FaultInjected => "This failure was injected on purpose",
            Self::UpgradeRefused => "The route does not allow this upgrade",
            Self::Draining => "The proxy is shutting down",
            Self::ConnectFailed => "The endpoint could not be reached",
            Self::ConnectTimeout => "Connecting to the endpoint took too long",
            Self::TlsFailed => "The TLS handshake with the endpoint failed",
            Self::UpstreamReset => "The endpoint reset the connection",
            Self::UpstreamClosed => "The endpoint closed the connection before its answer was complete",
            Self::UpstreamProtocol => "The endpoint sent an invalid answer",
            Self::UpstreamTimeout => "The upstream did not answer in time",
            Self::PerTryTimeout => "The attempt was not answered in time",
            Self::DeadlineExpired => "The deadline of the request has passed",
            Self::RetryExhausted => "Every allowed attempt failed",
            Self::StreamIdle => "The exchange was idle for too long",
            Self::MaxDuration => "The exchange lasted longer than allowed",
            Self::ClientClosed => "The client closed the connection",
            Self::ClientTimeout => "The request did not arrive in time",
            Self::ClientProtocol => "The request is malformed",
            Self::UriTooLong => "The request target is too long",
            Self::HeadersTooLarge => "The request headers are too large",
            Self::BodyTooLarge => "The request body is too large",
            Self::Misdirected => "This connection does not serve the requested authority",
            Self::MethodUnsupported => "The request method is not supported",
            Self::NoLeader => "No leader is known for this backend",
            Self::LeaderConflict => "Two endpoints claim to be the leader",
            Self::EpochRegression => "The leader claims an epoch that has already passed",
            Self::StalenessUnknown => "No replica can prove how fresh it is",
            Self::Behind => "No replica has caught up with the position this read needs",
            Self::Isolated => "The proxy is cut off from the group and cannot tell who leads",
            Self::Internal => "The proxy made a mistake",
        }
    }

    /// The nearest Envoy response flag, for people whose searches and dashboards know those; `-` when there is none.
    #[must_use]
    pub const fn envoy_flag(self) -> &'static str {
        match self {
            Self::NoRoute | Self::Misdirected => "NR",
            Self::NoUpstream => "NC",
            Self::NoEndpoint => "UH",
            Self::BreakerOpen | Self::Overflow | Self::QueueFull | Self::QueueTimeout => "UO",
            Self::Overload | Self::Memory => "OM",
            Self::RateLimited => "RL",
            Self::Denied => "UAEX",
            Self::FaultInjected => "FI",
            Self::UpgradeRefused
            | Self::Draining
            | Self::NoLeader
            | Self::LeaderConflict
            | Self::EpochRegression
            | Self::StalenessUnknown
            | Self::Behind
            | Self::Isolated
            | Self::Internal => "-",
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed => "UF",
            Self::UpstreamReset => "UR",
            Self::UpstreamClosed => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::UpstreamTimeout | Self::PerTryTimeout => "UT",
            Self::DeadlineExpired => "DT",
            Self::RetryExhausted => "URX",
            Self::StreamIdle => "SI",
            Self::MaxDuration => "UMSDR",
            Self::ClientClosed => "DC",
            Self::ClientTimeout => "DR",
            Self::ClientProtocol
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::BodyTooLarge
            | Self::MethodUnsupported => "DPE",
        }
    }
}

/// Who ended a request: the log field `terminated_by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TerminatedBy {
    /// Nobody: it ran to its end.
    #[default]
    None,
    /// The client left, stalled or sent what must not be forwarded.
    Client,
    /// An endpoint was missing, failed or broke off.
    Upstream,
    /// A rule of the configuration.
    Policy,
    /// A timeout or deadline.
    Timeout,
    /// The proxy itself: a limit of its own, or a bug.
    Resource,
    /// An operator: drain, shutdown.
    Admin,
}

impl TerminatedBy {
    /// The word in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Policy => "proxy_policy",
            Self::Timeout => "proxy_timeout",
            Self::Resource => "proxy_resource",
            Self::Admin => "admin",
        }
    }
}

/// How far a request had come: the log field `phase`. Set by the step that runs, so it is right even when the request is
/// dropped there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phase {
    /// The request head is being received and checked.
    #[default]
    Request,
    /// A route is sought and its rules are applied.
    Route,
    /// Waiting for a seat or a connection.
    Queue,
    /// Connecting to an endpoint.
    Connect,
    /// In the TLS handshake with an endpoint.
    Tls,
    /// Sending the request.
    Send,
    /// Waiting for the response head.
    Headers,
    /// Passing on the response body.
    Body,
    /// In a tunnel.
    Upgrade,
    /// Over.
    Done,
}

impl Phase {
    /// The word in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Route => "route",
            Self::Queue => "queue",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Send => "send",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::Upgrade => "upgrade",
            Self::Done => "done",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract as a reader sees it. A change here is a change for every dashboard.
    const GOLDEN: &str = "\
no_route           404 12 proxy_policy   NR    No route matches this request
no_upstream        503 14 proxy_policy   NC    The cluster of this route does not exist
no_endpoint        503 14 upstream       UH    No endpoint of the cluster can take this request
breaker_open       503 14 proxy_policy   UO    The circuit breaker is open after recent failures
overflow           503 14 proxy_resource UO    Too many requests are in flight
queue_full         503 14 proxy_resource UO    Too many requests are waiting
queue_timeout      503 14 proxy_resource UO    The request waited too long for its turn
overload           503 14 proxy_resource OM    The proxy is overloaded
memory             503 14 proxy_resource OM    The proxy is short of memory
rate_limited       429  8 proxy_policy   RL    Too many requests in a short time
denied             403  7 proxy_policy   UAEX  Access is denied
fault_injected     503 14 proxy_policy   FI    This failure was injected on purpose
upgrade_refused    403  7 proxy_policy   -     The route does not allow this upgrade
draining           503 14 admin          -     The proxy is shutting down
connect_failed     503 14 upstream       UF    The endpoint could not be reached
connect_timeout    504 14 proxy_timeout  UF    Connecting to the endpoint took too long
tls_failed         502 14 upstream       UF    The TLS handshake with the endpoint failed
upstream_reset     502 14 upstream       UR    The endpoint reset the connection
upstream_closed    502 14 upstream       UC    The endpoint closed the connection before its answer was complete
upstream_protocol  502 13 upstream       UPE   The endpoint sent an invalid answer
upstream_timeout   504  4 proxy_timeout  UT    The upstream did not answer in time
per_try_timeout    504  4 proxy_timeout  UT    The attempt was not answered in time
deadline_expired   504  4 proxy_timeout  DT    The deadline of the request has passed
retry_exhausted    502 14 upstream       URX   Every allowed attempt failed
stream_idle        408  4 proxy_timeout  SI    The exchange was idle for too long
max_duration       408  4 proxy_timeout  UMSDR The exchange lasted longer than allowed
client_closed      499  1 client         DC    The client closed the connection
client_timeout     408  1 client         DR    The request did not arrive in time
client_protocol    400 13 client         DPE   The request is malformed
uri_too_long       414  8 client         DPE   The request target is too long
headers_too_large  431  8 client         DPE   The request headers are too large
body_too_large     413  8 client         DPE   The request body is too large
misdirected        421 12 client         NR    This connection does not serve the requested authority
method_unsupported 501 12 client         DPE   The request method is not supported
no_leader          503 14 upstream       -     No leader is known for this backend
leader_conflict    503 14 upstream       -     Two endpoints claim to be the leader
epoch_regression   503 14 upstream       -     The leader claims an epoch that has already passed
staleness_unknown  503 14 upstream       -     No replica can prove how fresh it is
behind             503 14 upstream       -     No replica has caught up with the position this read needs
isolated           503 14 proxy_policy   -     The proxy is cut off from the group and cannot tell who leads
internal           500 13 proxy_resource -     The proxy made a mistake
";

    #[test]
    fn the_tables_read_as_published() {
        let printed: String = Reason::ALL
            .iter()
            .map(|reason| {
                format!(
                    "{:<18} {} {:>2} {:<14} {:<5} {}\n",
                    reason.name(),
                    reason.status(),
                    reason.grpc(),
                    reason.fault().name(),
                    reason.envoy_flag(),
                    reason.title(),
                )
            })
            .collect();
        assert_eq!(printed, GOLDEN);
    }

    #[test]
    fn the_index_is_the_place_in_the_list() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place, "{reason:?}");
        }
    }

    #[test]
    fn no_two_reasons_share_a_word() {
        let words: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn a_client_fault_is_a_4xx_except_for_the_method_nobody_implements() {
        for reason in Reason::ALL
            .iter()
            .filter(|reason| reason.fault() == TerminatedBy::Client)
        {
            let status = reason.status();
            assert!(
                (400..500).contains(&status) || *reason == Reason::MethodUnsupported,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn only_a_bug_is_a_500() {
        let bugs: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| reason.status() == 500)
            .collect();
        assert_eq!(bugs, [&Reason::Internal]);
    }
}
