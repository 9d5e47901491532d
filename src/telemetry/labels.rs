//! Closed lists of label values.
//!
//! A label is either a name out of the configuration or a word out of one of these lists, never anything a client or an
//! upstream wrote. That is why the number of series is known before the first request, and why every word can be
//! exported as 0 from the start: `rate()` then sees the first event instead of a series that appears at 1.
//! Invariant: words are a public contract (dashboards and alerts); the order only matters to this process.

use bellwether_core::arbiter::{self, Opinion, Source};
use bellwether_core::breaker::State;
use bellwether_core::health;
use bellwether_core::heartbeat::Received;
use bellwether_core::outlier::{Finding, Withheld};
use bellwether_core::shed::{Level, Priority};
use bellwether_core::{Outcome, Reason};

/// A closed list of words for one label.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// How many words there are.
    const COUNT: usize = Self::ALL.len();
    /// Position in [`Label::ALL`].
    fn index(self) -> usize;
    /// The word as exported.
    fn word(self) -> &'static str;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn index(self) -> usize { self as usize }
            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    )+};
}

labels! {
    /// How a request or an attempt went, as label `outcome`.
    OutcomeLabel {
        /// Answered, and not with what the route calls a failure.
        Success = "success",
        /// Answered, later than the route calls slow.
        Slow = "slow",
        /// Not answered, or answered with what the route calls a failure.
        Failure = "failure",
        /// The upstream asked for less.
        Pushback = "pushback",
        /// Says nothing about the upstream: the client left, or the proxy refused.
        Ignored = "ignored",
    }

    /// Why a listener let go of a connection before any request on it.
    ConnectionRejection {
        /// `limits.connections` of the listener.
        Limit = "limit",
        /// `limits.connections_per_ip`.
        LimitPerIp = "limit_per_ip",
        /// The first bytes are not a PROXY header, or come from an address that may not send one.
        ProxyProtocol = "proxy_protocol",
        /// The TLS handshake failed.
        Tls = "tls",
        /// Nothing useful arrived in time (TLS handshake, PROXY header, protocol preface).
        Timeout = "timeout",
        /// The process is short of memory or descriptors.
        Overload = "overload",
        /// The process is draining.
        Draining = "draining",
        /// It was ended because it asked for more work than requests: resets, control frames.
        Flood = "flood",
    }

    /// Why an attempt failed, as label `reason` of `upstream_failures_total`.
    UpstreamFailure {
        /// Nothing listens, or the network says so.
        ConnectRefused = "connect_refused",
        /// `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// The handshake failed or the certificate is not acceptable.
        Tls = "tls",
        /// The connection or the stream was reset.
        Reset = "reset",
        /// The answer is not HTTP.
        Protocol = "protocol",
        /// The answer ended before its announced end.
        Truncated = "truncated",
        /// `per_try_timeout`.
        PerTryTimeout = "per_try_timeout",
        /// A status the route calls a failure.
        Status = "status",
        /// A gRPC status the route calls a failure.
        Grpc = "grpc",
    }

    /// Which limit had no place, as label `scope` of `shed_total`.
    ShedScope {
        /// `max_in_flight` of a route.
        Route = "route",
        /// `limits` of a cluster, or what its adaptive limit says.
        Cluster = "cluster",
        /// The overload guard of the process.
        Process = "process",
    }

    /// Why a route fell back.
    FallbackCause {
        /// The circuit breaker was open.
        BreakerOpen = "breaker_open",
        /// Nobody could be asked.
        NoEndpoint = "no_endpoint",
        /// Nobody was known to lead.
        NoLeader = "no_leader",
        /// A limit on what runs at once, its queue, or the proxy as a whole was full.
        Overflow = "overflow",
        /// There was no answer in time.
        UpstreamTimeout = "upstream_timeout",
        /// Every allowed attempt failed.
        RetryExhausted = "retry_exhausted",
    }

    /// Why a request was shed.
    ShedReason {
        /// Nobody may wait.
        Overflow = "overflow",
        /// Too many wait.
        QueueFull = "queue_full",
        /// It waited too long.
        QueueTimeout = "queue_timeout",
        /// There is more work than can be done.
        Overload = "overload",
    }

    /// What a circuit breaker did with a request.
    BreakerCall {
        /// Let it pass.
        Admitted = "admitted",
        /// Let it pass as one of the few that find out.
        Probe = "probe",
        /// Refused it.
        Rejected = "rejected",
        /// Let it pass because it only observes.
        WouldReject = "would_reject",
    }

    /// Where bytes go, as label `direction`.
    Direction {
        /// To the upstream.
        Sent = "sent",
        /// From the upstream.
        Received = "received",
    }

    /// What an upstream connection is doing.
    ConnectionState {
        /// Carries at least one exchange.
        Active = "active",
        /// Waits in the pool.
        Idle = "idle",
        /// Being dialled, or in its handshake.
        Connecting = "connecting",
        /// Finishes what it carries and takes nothing new.
        Draining = "draining",
    }

    /// How a dial ended.
    ConnectResult {
        /// Ready for a request.
        Ok = "ok",
        /// Nothing listens.
        Refused = "refused",
        /// `connect_timeout`.
        Timeout = "timeout",
        /// The network has no way there.
        Unreachable = "unreachable",
        /// The handshake failed or the certificate is not acceptable.
        Tls = "tls",
        /// The HTTP handshake failed.
        Protocol = "protocol",
        /// Anything else: no descriptor, no port.
        Error = "error",
    }

    /// Why an upstream connection was closed.
    CloseReason {
        /// Idle for longer than the pool keeps connections, or more than it keeps.
        Idle = "idle",
        /// The upstream closed it while we were about to use it.
        Race = "race",
        /// The upstream asked to finish: GOAWAY, or `connection: close`.
        Goaway = "goaway",
        /// A transport or protocol error.
        Error = "error",
        /// `max_age` of the pool.
        MaxAge = "max_age",
        /// Its endpoint was set aside or removed.
        Ejected = "ejected",
        /// We left in the middle of an exchange, so the framing is lost.
        Aborted = "aborted",
    }

    /// Which side of the proxy, as label `side`.
    Side {
        /// Towards clients.
        Downstream = "downstream",
        /// Towards upstreams.
        Upstream = "upstream",
    }

    /// How a TLS handshake ended.
    TlsResult {
        /// Complete, with a full exchange.
        Full = "full",
        /// Complete, from a ticket.
        Resumed = "resumed",
        /// Not in time.
        Timeout = "timeout",
        /// The peer's certificate is not acceptable, or ours is not to it.
        Certificate = "certificate",
        /// The peer went away.
        Closed = "closed",
        /// Anything else: version, cipher, ALPN, not TLS at all.
        Protocol = "protocol",
    }

    /// The state of an endpoint; exclusive, the first that applies.
    EndpointLabel {
        /// Switched off by an operator.
        AdminDown = "admin_down",
        /// Finishes what it carries.
        Draining = "draining",
        /// Its health check failed, or it says itself that it cannot.
        CheckFailed = "check_failed",
        /// Its heartbeats are missing.
        HeartbeatLost = "heartbeat_lost",
        /// Out for behaving worse than others.
        Ejected = "ejected",
        /// Its circuit breaker is open.
        BreakerOpen = "breaker_open",
        /// Takes a quarter of its share.
        Degraded = "degraded",
        /// Takes requests.
        Available = "available",
    }

    /// What came of an endpoint that behaves worse than others; all but the first are `enforced="false"`.
    EjectionResult {
        /// It is out.
        Enforced = "none",
        /// The policy observes.
        Observed = "observe",
        /// As many as may be are out.
        Cap = "max_ejection_percent",
        /// Nobody else is left.
        LastAvailable = "last_available",
        /// Too many fail together.
        Correlated = "correlated_failure",
        /// The proxy itself is unwell.
        SelfHealth = "self_health",
    }

    /// How an endpoint was found to behave worse than others.
    Detector {
        /// 502, 503, 504 in a row.
        Gateway = "consecutive_gateway",
        /// Failures of connections in a row.
        Local = "consecutive_local",
        /// Any 5xx in a row.
        ServerErrors = "consecutive_5xx",
        /// The share that fails.
        Ratio = "ratio",
        /// The share that fails, against the others.
        Relative = "relative",
        /// Failures of a short time, against the others.
        Surge = "surge",
        /// The time it takes, against the others.
        Latency = "latency",
    }

    /// How a health check ended.
    CheckResult {
        /// As expected.
        Pass = "pass",
        /// An unexpected answer.
        Fail = "fail",
        /// No answer in time.
        Timeout = "timeout",
        /// No connection.
        Refused = "refused",
        /// Left out, because requests were answered.
        Suppressed = "suppressed",
        /// Cut short by a reload; counts for nothing.
        Cancelled = "cancelled",
    }

    /// What became of a heartbeat.
    HeartbeatResult {
        /// It is the newest.
        Accepted = "accepted",
        /// A newer one came before.
        Stale = "stale",
        /// There is no such endpoint.
        Unknown = "unknown",
        /// The sender is somebody else, or it makes no sense.
        Rejected = "rejected",
    }

    /// Who changed the health of an endpoint.
    HealthSource {
        /// The active check.
        Check = "check",
        /// An operator.
        Admin = "admin",
        /// Discovery.
        Discovery = "discovery",
        /// The detector of missing heartbeats.
        Heartbeat = "heartbeat",
        /// The endpoint itself.
        Agent = "agent",
        /// Outlier detection.
        Ejection = "ejection",
        /// The endpoint's circuit breaker.
        Breaker = "breaker",
    }

    /// What somebody thinks of an endpoint now.
    HealthTo {
        /// It may take requests.
        Up = "up",
        /// It may take none.
        Down = "down",
        /// It finishes what it has.
        Draining = "draining",
        /// It may take a quarter of its share.
        Degraded = "degraded",
    }

    /// What made us try again.
    RetryTrigger {
        /// No connection.
        Connect = "connect",
        /// A pooled connection was already closed: nothing was sent.
        Stale = "stale",
        /// Reset before an answer.
        Reset = "reset",
        /// The upstream refused the stream unprocessed.
        Refused = "refused",
        /// `per_try_timeout`.
        PerTryTimeout = "per_try_timeout",
        /// A status in `retry.on`.
        Status = "status",
        /// A gRPC status in `retry.on`.
        Grpc = "grpc",
    }

    /// How a retry ended.
    RetryResult {
        /// It brought an answer.
        Success = "success",
        /// It failed as well.
        Failure = "failure",
    }

    /// Why a failed attempt was not repeated.
    RetryVeto {
        /// The method may not be sent twice.
        Method = "method",
        /// The answer, or an unrepeatable part of the request, is already on its way.
        Committed = "committed",
        /// `retry.attempts` used up.
        Attempts = "attempts",
        /// No time left.
        Deadline = "deadline",
        /// The body is larger than what is kept for a second try.
        BodyOverflow = "body_overflow",
        /// Every endpoint was tried.
        NoOtherEndpoint = "no_other_endpoint",
        /// The upstream asked not to.
        Pushback = "pushback",
        /// The retry budget of the cluster is spent.
        Budget = "budget",
        /// Too many retries are running already.
        InFlightCap = "in_flight_cap",
        /// This process is short of something.
        Overload = "overload",
    }

    /// What came of a copy of a request that took long.
    HedgeResult {
        /// It answered first.
        Won = "won",
        /// The first try did, or neither.
        Lost = "lost",
        /// It was not sent: no budget, or nobody else to ask.
        Vetoed = "vetoed",
    }

    /// Where a deadline was found expired.
    DeadlineStage {
        /// It came with the request.
        Arrival = "arrival",
        /// Waiting for a place.
        Queue = "queue",
        /// Waiting to try again.
        Backoff = "backoff",
        /// Waiting for the upstream.
        Attempt = "attempt",
    }

    /// How a configuration change ended.
    ReloadResult {
        /// In force.
        Applied = "applied",
        /// Same content as before.
        Unchanged = "unchanged",
        /// Not acceptable; the old configuration serves.
        Rejected = "rejected",
    }

    /// What asked for the configuration to be read.
    ReloadTrigger {
        /// The start of the process.
        Start = "start",
        /// A file changed.
        File = "file",
        /// SIGHUP.
        Signal = "signal",
        /// The admin API.
        Admin = "admin",
    }

    /// How a discovery update ended.
    DiscoveryResult {
        /// The members changed.
        Changed = "changed",
        /// The same members.
        Unchanged = "unchanged",
        /// An empty answer, which was not believed.
        Empty = "empty",
        /// No usable answer.
        Failed = "failed",
    }

    /// How far the process is on its way out.
    DrainState {
        /// Takes everything.
        Serving = "serving",
        /// Says "not ready", still takes everything.
        Announced = "announced",
        /// Finishes what it has.
        Draining = "draining",
        /// Done.
        Stopped = "stopped",
    }
}

impl From<Outcome> for OutcomeLabel {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::Success,
            Outcome::Slow => Self::Slow,
            Outcome::Failure(_) => Self::Failure,
            Outcome::Pushback(_) => Self::Pushback,
            Outcome::Ignored => Self::Ignored,
        }
    }
}

impl From<arbiter::State> for EndpointLabel {
    fn from(state: arbiter::State) -> Self {
        match state {
            arbiter::State::AdminDown => Self::AdminDown,
            // Who is gone is no member; seen between two snapshots, it finishes what it has.
            arbiter::State::Draining | arbiter::State::Gone => Self::Draining,
            arbiter::State::CheckFailed => Self::CheckFailed,
            arbiter::State::HeartbeatLost => Self::HeartbeatLost,
            arbiter::State::Ejected => Self::Ejected,
            arbiter::State::BreakerOpen => Self::BreakerOpen,
            arbiter::State::Degraded => Self::Degraded,
            arbiter::State::Available => Self::Available,
        }
    }
}

impl From<health::CheckResult> for CheckResult {
    fn from(result: health::CheckResult) -> Self {
        match result {
            health::CheckResult::Passed => Self::Pass,
            health::CheckResult::Failed(health::Failure::Refused) => Self::Refused,
            health::CheckResult::Failed(health::Failure::TimedOut) => Self::Timeout,
            health::CheckResult::Failed(health::Failure::Unfit) => Self::Fail,
            health::CheckResult::Cancelled => Self::Cancelled,
        }
    }
}

impl From<Received> for HeartbeatResult {
    fn from(received: Received) -> Self {
        match received {
            Received::Accepted => Self::Accepted,
            Received::Stale => Self::Stale,
            Received::Unknown => Self::Unknown,
            Received::Forged | Received::Invalid(_) => Self::Rejected,
        }
    }
}

impl From<Source> for HealthSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Discovery => Self::Discovery,
            Source::Admin => Self::Admin,
            Source::Check => Self::Check,
            Source::Heartbeat => Self::Heartbeat,
            Source::Agent => Self::Agent,
            Source::Ejection => Self::Ejection,
            Source::Breaker => Self::Breaker,
        }
    }
}

impl From<Opinion> for HealthTo {
    fn from(opinion: Opinion) -> Self {
        match opinion {
            Opinion::Unknown | Opinion::Up => Self::Up,
            Opinion::Down => Self::Down,
            Opinion::Draining => Self::Draining,
            Opinion::Degraded => Self::Degraded,
        }
    }
}

impl From<Withheld> for EjectionResult {
    fn from(why: Withheld) -> Self {
        match why {
            Withheld::Cap => Self::Cap,
            Withheld::LastAvailable => Self::LastAvailable,
            Withheld::Correlated => Self::Correlated,
            Withheld::SelfHealth => Self::SelfHealth,
        }
    }
}

impl From<&Finding> for Detector {
    fn from(finding: &Finding) -> Self {
        match finding {
            Finding::GatewayErrors { .. } => Self::Gateway,
            Finding::LocalErrors { .. } => Self::Local,
            Finding::ServerErrors { .. } => Self::ServerErrors,
            Finding::FailureRate { .. } => Self::Ratio,
            Finding::Relative { .. } => Self::Relative,
            Finding::Surge { .. } => Self::Surge,
            Finding::Latency { .. } => Self::Latency,
        }
    }
}

impl Label for State {
    const ALL: &'static [Self] = &Self::ALL;
    fn index(self) -> usize {
        self as usize
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

impl FallbackCause {
    /// What this reason is to a fallback; none for what no fallback can cover.
    pub const fn of(reason: Reason) -> Option<Self> {
        Some(match reason {
            Reason::BreakerOpen => Self::BreakerOpen,
            Reason::NoEndpoint | Reason::NoUpstream => Self::NoEndpoint,
            Reason::NoLeader | Reason::LeaderConflict | Reason::EpochRegression | Reason::Isolated => {
                Self::NoLeader
            }
            Reason::Overflow
            | Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::Overload
            | Reason::Memory => Self::Overflow,
            Reason::UpstreamTimeout | Reason::PerTryTimeout => Self::UpstreamTimeout,
            Reason::RetryExhausted
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::UpstreamReset
            | Reason::UpstreamClosed
            | Reason::UpstreamProtocol => Self::RetryExhausted,
            Reason::NoRoute
            | Reason::RateLimited
            | Reason::Denied
            | Reason::FaultInjected
            | Reason::UpgradeRefused
            | Reason::Draining
            | Reason::DeadlineExpired
            | Reason::StreamIdle
            | Reason::MaxDuration
            | Reason::ClientClosed
            | Reason::ClientTimeout
            | Reason::ClientProtocol
            | Reason::UriTooLong
            | Reason::HeadersTooLarge
            | Reason::BodyTooLarge
            | Reason::Misdirected
            | Reason::MethodUnsupported
            | Reason::StalenessUnknown
            | Reason::Behind
            | Reason::Internal => return None,
        })
    }
}

impl Label for Level {
    const ALL: &'static [Self] = &Self::ALL;
    fn index(self) -> usize {
        self as usize
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Label for Priority {
    const ALL: &'static [Self] = &Self::ALL;
    fn index(self) -> usize {
        self as usize
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

impl Label for Reason {
    const ALL: &'static [Self] = Self::ALL;
    fn index(self) -> usize {
        self.index()
    }
    fn word(self) -> &'static str {
        self.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Label + std::fmt::Debug>() {
        let mut words = Vec::new();
        for (i, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), i);
            assert!(
                label.word().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{label:?}"
            );
            assert!(!words.contains(&label.word()), "{label:?} repeats a word");
            words.push(label.word());
        }
    }

    #[test]
    fn the_outcomes_of_core_keep_their_words() {
        use bellwether_core::outcome::Origin;
        for outcome in [
            Outcome::Success,
            Outcome::Slow,
            Outcome::Failure(Origin::Local),
            Outcome::Pushback(None),
            Outcome::Ignored,
        ] {
            assert_eq!(OutcomeLabel::from(outcome).word(), outcome.name());
        }
    }

    #[test]
    fn every_list_has_distinct_words_in_snake_case_in_index_order() {
        check::<Reason>();
        check::<OutcomeLabel>();
        check::<ConnectionRejection>();
        check::<UpstreamFailure>();
        check::<Direction>();
        check::<ConnectionState>();
        check::<ConnectResult>();
        check::<CloseReason>();
        check::<Side>();
        check::<TlsResult>();
        check::<EndpointLabel>();
        check::<CheckResult>();
        check::<HealthSource>();
        check::<HeartbeatResult>();
        check::<HealthTo>();
        check::<RetryTrigger>();
        check::<RetryResult>();
        check::<RetryVeto>();
        check::<DeadlineStage>();
        check::<HedgeResult>();
        check::<ReloadResult>();
        check::<ReloadTrigger>();
        check::<DiscoveryResult>();
        check::<DrainState>();
    }
}
