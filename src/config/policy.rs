//! The settings of a route that can be bundled in `policies` and preset in `defaults`, as written.

use std::time::Duration;

use super::route::DirectResponse;
use super::table::{Many, Sp, object, words};
use super::units::{
    Auto, GrpcStatus, HeaderName, MethodSet, Percent, Pointer, Rate, RequestKey, RetryOn, Size, Staleness,
    Statuses, WordOr,
};

words! {
    /// What a request does to data.
    Operation: "operation", "operations" { Auto = "auto", Read = "read", Write = "write" }
}
words! {
    /// Shed order.
    Priority: "priority", "priorities" { Critical = "critical", High = "high", Normal = "normal", Low = "low" }
}
words! {
    /// Whether a policy acts or only counts.
    Mode: "mode", "modes" { Enforce = "enforce", Observe = "observe" }
}
words! {
    /// What one breaker covers.
    BreakerScope: "scope", "scopes" { Route = "route", Cluster = "cluster", Endpoint = "endpoint", RouteEndpoint = "route_endpoint" }
}
words! {
    /// Who shares the count.
    RateScope: "scope", "scopes" { Local = "local", Fleet = "fleet" }
}
words! {
    /// When to hedge: a quantile of the latency.
    Quantile: "quantile", "quantiles" { P50 = "p50", P90 = "p90", P95 = "p95", P99 = "p99" }
}
words! {
    /// Reasons that a fallback covers.
    FallbackWhen: "reason", "reasons" {
        BreakerOpen = "breaker_open", NoEndpoint = "no_endpoint", NoLeader = "no_leader", Overflow = "overflow",
        UpstreamTimeout = "upstream_timeout", RetryExhausted = "retry_exhausted",
    }
}
words! {
    /// How fresh a read must be.
    ConsistencyPolicy: "consistency policy", "policies" {
        Eventual = "eventual", Monotonic = "monotonic", BoundedStaleness = "bounded_staleness",
        ReadYourWrites = "read_your_writes", Leader = "leader", Strong = "strong",
    }
}
words! {
    /// What happens when the promise cannot be kept.
    CpOrAp: "mode", "modes" { Cp = "cp", Ap = "ap" }
}
words! {
    /// Which endpoints serve reads.
    ReadFrom: "choice", "choices" {
        ReplicaPreferred = "replica_preferred", Replica = "replica", LeaderPreferred = "leader_preferred", Any = "any",
    }
}
words! {
    /// What happens when no replica is fresh enough.
    OnStale: "reaction", "reactions" { Leader = "leader", Reject = "reject", Serve = "serve" }
}
words! {
    /// Who keeps the session token.
    TokenStore: "store", "stores" { Cookie = "cookie", Header = "header", Memory = "memory", Fleet = "fleet" }
}

object! {
    /// Settings of routes.
    Policy = "policy" {
        /// request in → response headers out, all tries included; `grpc-timeout` shortens it
        timeout: Sp<Option<Duration>> = "30s" in (1, u32::MAX);
        /// no byte in either direction
        idle_timeout: Sp<Option<Duration>> = "5m" in (1, u32::MAX);
        /// whole exchange
        max_duration: Sp<Option<Duration>> = "off" in (1, u32::MAX);
        /// further tries; a bare number is `num_retries`
        retry: Sp<Option<Retry>> = "1";
        /// stops a route that fails
        circuit_breaker: Sp<Option<CircuitBreaker>> = "{}" as "on";
        /// bounds arrivals
        rate_limit: Sp<Option<Many<RateLimit>>> = "off";
        /// a second copy when the first is slow
        hedge: Sp<Option<Hedge>> = "off";
        /// what to answer when nobody can
        fallback: Sp<Option<Fallback>> = "off";
        /// faults on purpose
        fault: Sp<Option<Fault>> = "off";
        /// auto: GET, HEAD, OPTIONS, TRACE read, all others write
        operation: Sp<Operation> = "auto";
        /// used when the cluster has a `leader`
        consistency: Sp<Consistency> = "eventual";
        /// shed order
        priority: Sp<Priority> = "normal";
        /// per route
        max_in_flight: Sp<Option<u32>> = "off" in (1, u32::MAX);
        /// what counts as failure for breaker and ejection
        failure_when: Sp<FailureWhen> = "{}";
    }
}

object! {
    /// What counts as failure.
    FailureWhen = "failure_when" {
        /// answers with these statuses
        status: Sp<Many<Statuses>> = "[500, 502-504]";
        /// read from trailers
        grpc_status: Sp<Many<GrpcStatus>> = "[unknown, deadline_exceeded, internal, unavailable, data_loss]";
        /// counts as slow, not failed
        slower_than: Sp<Option<Duration>> = "off" in (1, u32::MAX);
    }
}

object! {
    /// Further tries on other endpoints. A bare number is `num_retries`.
    Retry = "retry", short num_retries {
        /// tries after the first
        num_retries: Sp<u32> = "1" in (0, 10);
        /// also: per_try_timeout, 5xx, a status, `grpc:unavailable`, not_leader
        retry_on: Sp<Many<RetryOn>> = "[connect_failure, refused_stream, reset, gateway_error]";
        /// `idempotent`, `all`, or a list; requests not yet sent are always retried. A replayed PUT can undo another client's PUT, hence the stricter default with a leader
        methods: Sp<Many<MethodSet>> = "[idempotent]" as "idempotent; reads only if the cluster has a `leader`";
        /// its presence makes a request idempotent
        idempotency_key_header: Sp<HeaderName> = "idempotency-key" as "Idempotency-Key";
        /// auto = remaining / tries left
        per_try_timeout: Sp<Option<WordOr<Auto, Duration>>> = "auto" in (1, u32::MAX);
        /// full jitter
        backoff: Sp<Backoff> = "{}";
        /// obey `Retry-After` up to this
        retry_after_max: Sp<Duration> = "1s";
        /// replay buffer; larger bodies are sent once
        max_body_size: Sp<Size> = "64KiB";
    }
}

object! {
    /// How long to wait before a further try.
    Backoff = "backoff" {
        /// first retry to another endpoint is immediate
        base: Sp<Duration> = "25ms";
        /// the longest wait
        max: Sp<Duration> = "250ms";
    }
}

object! {
    /// Stops a route that fails.
    CircuitBreaker = "circuit_breaker" {
        /// observe = metrics and events only
        mode: Sp<Mode> = "enforce";
        /// with a `leader`, reads and writes have separate breakers
        scope: Sp<BreakerScope> = "route";
        /// share of failures that opens
        failure_rate: Sp<Percent> = "50%";
        /// needs slow_call_duration
        slow_call_rate: Sp<Option<Percent>> = "off";
        /// what is slow
        slow_call_duration: Sp<Option<Duration>> = "off" in (1, u32::MAX);
        /// failures in a row that open; 5 for the scopes of endpoints unless it is written
        consecutive_failures: Sp<Option<u32>> = "off" in (1, 1_000_000);
        /// sliding
        window: Sp<Duration> = "10s" in (1, u32::MAX);
        /// fewer than this prove nothing
        min_requests: Sp<u32> = "20" in (1, 1_000_000);
        /// first opening; doubles with jitter
        open_duration: Sp<Duration> = "5s" in (1, u32::MAX);
        /// the longest opening
        max_open_duration: Sp<Duration> = "60s" in (1, u32::MAX);
        /// probes that must succeed
        half_open_requests: Sp<u32> = "3" in (1, 1_000);
        /// probes at one time
        half_open_max_in_flight: Sp<u32> = "1" in (1, 1_000);
        /// gradual closing; at endpoints this is the cluster's `slow_start`
        ramp: Sp<Option<Duration>> = "10s";
    }
}

object! {
    /// Bounds arrivals.
    RateLimit = "rate_limit" {
        /// how many per time
        rate: Sp<Rate> = req;
        /// how many at once
        burst: Option<Sp<u32>> = none as "one second's worth" in (1, u32::MAX);
        /// who shares the limit
        key: Sp<Many<RequestKey>> = "[route]" as "route";
        /// fleet needs `fleet:`
        scope: Sp<RateScope> = "local";
        /// observe = metrics only
        mode: Sp<Mode> = "enforce";
        /// status of the refusal
        status: Sp<u32> = "429" in (400, 599);
        /// keys remembered at one time
        max_keys: Sp<u32> = "10000" in (1, 10_000_000);
    }
}

object! {
    /// A second copy of a slow request.
    Hedge = "hedge" {
        /// when the copy is sent
        delay: Sp<WordOr<Quantile, Duration>> = "p95";
        /// how many copies
        max_extra: Sp<u32> = "1" in (1, 3);
        /// share of requests that may have one
        budget: Sp<Percent> = "5%";
        /// for which methods
        methods: Sp<Many<MethodSet>> = "[GET, HEAD]";
    }
}

object! {
    /// What to answer when nobody can.
    Fallback = "fallback" {
        /// reason words
        when: Sp<Many<FallbackWhen>> = "[breaker_open, no_endpoint, no_leader, overflow, upstream_timeout, retry_exhausted]" as "all of them";
        /// one of cluster, direct_response
        cluster: Option<Sp<String>> = none;
        /// answer by ourselves
        direct_response: Option<Sp<DirectResponse>> = none;
    }
}

object! {
    /// Faults on purpose.
    Fault = "fault" {
        /// makes requests slow
        delay: Option<Sp<FaultDelay>> = none;
        /// makes requests fail
        abort: Option<Sp<FaultAbort>> = none;
        /// only requests carrying this header
        require_header: Option<Sp<HeaderName>> = none;
    }
}

object! {
    /// Makes requests slow.
    FaultDelay = "fault.delay" {
        /// how slow
        duration: Sp<Duration> = req;
        /// how many
        percent: Sp<Percent> = "100%";
    }
}

object! {
    /// Makes requests fail.
    FaultAbort = "fault.abort" {
        /// with which status
        status: Sp<u32> = "503" in (200, 599);
        /// how many
        percent: Sp<Percent> = "100%";
    }
}

object! {
    /// How fresh reads must be. A bare word is the policy.
    Consistency = "consistency", short policy {
        /// `leader` = the freshest claim; `strong` = linearizable and refused by `check` where it cannot be proven
        policy: Sp<ConsistencyPolicy> = "eventual";
        /// ap: when the promise cannot be kept, answer anyway, labelled `x-bellwether-consistency: degraded`
        mode: Sp<CpOrAp> = "cp";
        /// among endpoints that satisfy the policy
        read_from: Sp<ReadFrom> = "replica_preferred";
        /// required by bounded_staleness; a time, bytes, or positions
        max_staleness: Option<Sp<Staleness>> = none;
        /// who "you" are, for clients that carry no token; required by `store: memory` and `fleet`
        session: Option<Sp<Many<RequestKey>>> = none;
        /// signed, carried by the client, valid at every proxy
        token: Sp<Token> = "{}" as "cookie";
        /// reads of a session after its write, if the backend tells no positions at all; labelled best-effort
        pin_to_leader: Sp<Duration> = "2s";
        /// how long a read may wait for a replica to catch up
        wait_for_replica: Sp<Option<Duration>> = "300ms";
        /// no replica fresh enough
        on_stale: Sp<OnStale> = "leader";
    }
}

object! {
    /// How a session is known again.
    Token = "consistency.token" {
        /// header of the leader's answer with the position after the write; without it: `response_json`, else the leader is asked after the write
        response_header: Option<Sp<HeaderName>> = none;
        /// position in the body of the answer (peeked, not buffered)
        response_json: Option<Sp<Pointer>> = none;
        /// native header the backend understands, e.g. `X-Vault-Index`
        request_header: Option<Sp<HeaderName>> = none;
        /// who keeps it: the client (cookie, or header `x-bellwether-session`), this proxy, or the fleet
        store: Sp<TokenStore> = "cookie";
    }
}
