//! Answers that we make ourselves because a request failed: one shape for every [`Reason`].
//!
//! A client that accepts JSON gets `application/problem+json` (RFC 9457), a gRPC client a trailers-only answer, anybody
//! else one line of text. All three say the same, and the header `x-bellwether-rejected` says it shortest, so that a
//! proxy in front of us knows that no endpoint is to blame. How much is told is the listener's choice
//! ([`Detail`]): names of clusters, endpoints and addresses leave only with `full`.
//!
//! Invariant: what is not `full` contains nothing that came from the cluster or the detail text.

use std::fmt::Write as _;
use std::time::Duration;

use bellwether_core::Reason;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::edits::header_value;
use super::grpc;
use super::request_id::RequestId;

/// The field that names the reason.
pub const REJECTED: HeaderName = HeaderName::from_static("x-bellwether-rejected");
/// The field that says what became of a write.
pub const OUTCOME: HeaderName = HeaderName::from_static("x-bellwether-outcome");

/// What gRPC has for `Retry-After` (gRFC A6).
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// One line for people.
pub(super) const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// How much an answer tells; `error_detail` of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Status, reason and request id.
    Minimal,
    /// Also what it means, the route and when to come again.
    #[default]
    Standard,
    /// Also cluster, cause and attempts: for inside only.
    Full,
}

/// In which form an answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Trailers-only.
    Grpc,
    /// `application/problem+json`.
    Json,
    /// One line.
    Text,
}

/// What became of a write that failed (`x-bellwether-outcome`): whether it may be sent again without fear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// No endpoint has seen it.
    NotExecuted,
    /// An endpoint has refused it without executing it.
    Refused,
    /// It may or may not have been executed.
    Unknown,
    /// A leader that was none any more has executed it; it may be lost.
    ExecutedByStaleLeader,
}

impl WriteOutcome {
    /// The word in the header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotExecuted => "not-executed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::ExecutedByStaleLeader => "executed-by-stale-leader",
        }
    }
}

/// What an answer speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Why.
    pub reason: Reason,
    /// The status, where it is not the reason's own (a fault or a rate limit may set one).
    pub status: Option<StatusCode>,
    /// The request.
    pub request_id: &'a RequestId,
    /// The route, when one was found.
    pub route: Option<&'a str>,
    /// The cluster, when one was chosen; told with `full` only.
    pub cluster: Option<&'a str>,
    /// What happened, with names and addresses; told with `full` only.
    pub detail: Option<&'a str>,
    /// Attempts made; told with `full` only.
    pub attempts: u32,
    /// When to come again; where `None`, the reason may know.
    pub retry_after: Option<Duration>,
    /// What became of a write.
    pub outcome: Option<WriteOutcome>,
}

impl<'a> Reply<'a> {
    /// An answer that says why and no more.
    pub const fn new(reason: Reason, request_id: &'a RequestId) -> Self {
        Self {
            reason,
            status: None,
            request_id,
            route: None,
            cluster: None,
            detail: None,
            attempts: 0,
            retry_after: None,
            outcome: None,
        }
    }

    /// Makes the answer. The body is complete; its length is for the connection to announce.
    pub fn response(&self, format: Format, detail: Detail) -> Response<Bytes> {
        let status = self.status();
        let mut response = match format {
            Format::Grpc => grpc::trailers_only(self.grpc_code(), &self.line(detail)),
            Format::Json => body(status, "application/problem+json", self.json(detail)),
            Format::Text => body(status, PLAIN_TEXT, self.line(detail) + "\n"),
        };
        let headers = response.headers_mut();
        self.explain(headers);
        if let (Format::Grpc, Some(after)) = (format, self.retry_after()) {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(GRPC_PUSHBACK, HeaderValue::from(millis));
        }
        response
    }

    /// The fields that every answer of ours has because a request failed, whatever its content.
    pub fn explain(&self, headers: &mut HeaderMap) {
        headers.insert(REJECTED, HeaderValue::from_static(self.reason.name()));
        self.request_id.write(headers);
        // An error of this moment is not to be kept for later.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        if let Some(outcome) = self.outcome {
            headers.insert(OUTCOME, HeaderValue::from_static(outcome.name()));
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        let by_reason =
            || StatusCode::from_u16(self.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.status.unwrap_or_else(by_reason)
    }

    fn grpc_code(&self) -> grpc::Code {
        match (self.reason, self.status) {
            // A fault is as it was asked for.
            (Reason::FaultInjected, Some(status)) => grpc::Code::from_http(status),
            (reason, _) => grpc::Code::new(reason.grpc()),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after.or_else(|| usual_retry_after(self.reason))
    }

    /// `503 no_leader (request 01J9Z3…): no leader is known for this backend; retry in 2s`
    fn line(&self, detail: Detail) -> String {
        let mut out = String::with_capacity(128);
        let reason = self.reason.name();
        let status = self.status().as_u16();
        // Writing into a String cannot fail.
        let _infallible = write!(out, "{status} {reason} (request {})", self.request_id);
        if detail == Detail::Minimal {
            return out;
        }
        out.push_str(": ");
        let title = self.reason.title();
        // A title starts with an ASCII letter and the line goes on.
        out.extend(title.chars().next().map(|first| first.to_ascii_lowercase()));
        out.push_str(title.get(1..).unwrap_or_default());
        if detail == Detail::Full
            && let Some(cause) = self.detail
        {
            let _infallible = write!(out, " ({})", cause.replace(char::is_control, " "));
        }
        if let Some(after) = self.retry_after() {
            let _infallible = write!(out, "; retry in {}s", whole_seconds(after));
        }
        out
    }

    fn json(&self, detail: Detail) -> String {
        let mut out = String::with_capacity(256);
        out.push('{');
        let mut member = |name: &str, value: Member<'_>| {
            if out.len() > 1 {
                out.push(',');
            }
            // The names are ours and plain.
            let _infallible = match value {
                Member::Number(number) => write!(out, "\"{name}\":{number}"),
                Member::Text(text) => write!(out, "\"{name}\":{}", serde_json::Value::from(text)),
            };
        };
        let reason = self.reason.name();
        let status = Member::Number(u128::from(self.status().as_u16()));
        if detail != Detail::Minimal {
            member("type", Member::Text(&format!("urn:bellwether:{reason}")));
            member("title", Member::Text(self.reason.title()));
        }
        member("status", status);
        member("code", Member::Text(reason));
        if let (false, Some(route)) = (detail == Detail::Minimal, self.route) {
            member("route", Member::Text(route));
        }
        member("request_id", Member::Text(self.request_id.as_str()));
        if let (false, Some(after)) = (detail == Detail::Minimal, self.retry_after()) {
            member("retry_after_ms", Member::Number(after.as_millis()));
        }
        if detail == Detail::Full {
            if let Some(cluster) = self.cluster {
                member("cluster", Member::Text(cluster));
            }
            if let Some(cause) = self.detail {
                member("detail", Member::Text(cause));
            }
            member("attempts", Member::Number(u128::from(self.attempts)));
        }
        out.push('}');
        out
    }
}

enum Member<'a> {
    Number(u128),
    Text(&'a str),
}

/// In which form a client wants its answer: gRPC for a gRPC call, JSON when `Accept` asks for it by name, else text.
pub fn format(request: &HeaderMap) -> Format {
    if grpc::is_grpc(request) {
        return Format::Grpc;
    }
    let wants_json = request
        .get_all(header::ACCEPT)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(asks_for_json);
    if wants_json { Format::Json } else { Format::Text }
}

/// `application/json`, `application/problem+json`, `application/vnd.x+json`; not with `q=0`. A client that takes
/// anything (`*/*`) has not asked.
fn asks_for_json(range: &[u8]) -> bool {
    let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let media = parts.next().unwrap_or_default();
    let Some((start, rest)) = media.split_at_checked(12) else {
        return false;
    };
    let ends_in_json = rest.len() >= 4 && rest[rest.len() - 4..].eq_ignore_ascii_case(b"json");
    let is_json = rest.len() == 4 || rest.len() > 4 && rest[rest.len() - 5] == b'+';
    let refused = parts.any(|part| {
        part.strip_prefix(b"q=")
            .or_else(|| part.strip_prefix(b"Q="))
            .is_some_and(|quality| {
                quality.first() == Some(&b'0') && quality[1..].iter().all(|byte| matches!(byte, b'.' | b'0'))
            })
    });
    start.eq_ignore_ascii_case(b"application/") && ends_in_json && is_json && !refused
}

/// When to come again, where the reason alone tells: the cause is expected to pass by itself.
const fn usual_retry_after(reason: Reason) -> Option<Duration> {
    match reason {
        Reason::NoEndpoint
        | Reason::BreakerOpen
        | Reason::Overflow
        | Reason::QueueFull
        | Reason::QueueTimeout
        | Reason::Overload
        | Reason::Memory
        | Reason::RateLimited
        | Reason::Draining
        | Reason::NoLeader
        | Reason::LeaderConflict
        | Reason::EpochRegression
        | Reason::StalenessUnknown
        | Reason::Behind
        | Reason::Isolated => Some(Duration::from_secs(1)),
        Reason::NoRoute
        | Reason::NoUpstream
        | Reason::Denied
        | Reason::FaultInjected
        | Reason::UpgradeRefused
        | Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::TlsFailed
        | Reason::UpstreamReset
        | Reason::UpstreamClosed
        | Reason::UpstreamProtocol
        | Reason::UpstreamTimeout
        | Reason::PerTryTimeout
        | Reason::DeadlineExpired
        | Reason::RetryExhausted
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
        | Reason::Internal => None,
    }
}

/// Whole seconds, rounded up: who comes earlier comes in vain. At least one.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// An answer of ours with a body.
fn body(status: StatusCode, content_type: &'static str, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A redirect to this address.
pub fn redirect(status: StatusCode, location: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::LOCATION, header_value(location));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("01J9Z3"));
        let trusted = crate::message::forwarded::Trust::Trusted;
        RequestId::keep_or_make(&headers, trusted, 0, &mut bellwether_core::Dice::new(0))
    }

    fn show(response: &Response<Bytes>) -> String {
        let mut out = format!("{}\n", response.status().as_u16());
        for (name, value) in response.headers() {
            writeln!(out, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        out + "\n" + std::str::from_utf8(response.body()).unwrap()
    }

    #[test]
    fn every_reason_reads_the_same_in_all_three_forms() {
        let id = id();
        let mut all = String::new();
        for reason in Reason::ALL {
            let reply = Reply {
                route: Some("orders"),
                ..Reply::new(*reason, &id)
            };
            for format in [Format::Json, Format::Text, Format::Grpc] {
                let response = reply.response(format, Detail::Standard);
                assert_eq!(response.headers()["x-bellwether-rejected"], reason.name());
                assert_eq!(response.headers()["x-request-id"], "01J9Z3");
                if format == Format::Grpc {
                    assert_eq!(response.status(), 200);
                    assert_eq!(
                        response.headers()["grpc-status"],
                        reason.grpc().to_string().as_str()
                    );
                    writeln!(
                        all,
                        "  grpc {}",
                        response.headers()["grpc-message"].to_str().unwrap()
                    )
                    .unwrap();
                } else {
                    assert_eq!(response.status().as_u16(), reason.status());
                    write!(all, "  {}", std::str::from_utf8(response.body()).unwrap()).unwrap();
                    all.push_str(if format == Format::Json { "\n" } else { "" });
                }
            }
        }
        insta::assert_snapshot!("every_reason", all);
    }

    #[test]
    fn how_much_is_told_is_the_listener_s_choice() {
        let id = id();
        let reply = Reply {
            route: Some("orders"),
            cluster: Some("db"),
            detail: Some("waited 3s; leader 10.0.0.12:8080 (epoch 41) lost 4.1s ago"),
            retry_after: Some(Duration::from_millis(1_200)),
            outcome: Some(WriteOutcome::NotExecuted),
            ..Reply::new(Reason::NoLeader, &id)
        };
        let shown: Vec<String> = [Detail::Minimal, Detail::Standard, Detail::Full]
            .into_iter()
            .flat_map(|detail| {
                [Format::Json, Format::Text, Format::Grpc].map(|format| show(&reply.response(format, detail)))
            })
            .collect();
        for told in &shown[..6] {
            assert!(!told.contains("10.0.0.12") && !told.contains("db"), "{told}");
        }
        insta::assert_snapshot!("details", shown.join("\n----\n"));
    }

    #[test]
    fn a_status_of_the_policy_replaces_the_reason_s() {
        let id = id();
        let reply = Reply {
            status: Some(StatusCode::IM_A_TEAPOT),
            ..Reply::new(Reason::FaultInjected, &id)
        };
        let response = reply.response(Format::Text, Detail::Minimal);
        assert_eq!(response.status(), 418);
        assert_eq!(response.body(), "418 fault_injected (request 01J9Z3)\n");
    }

    #[test]
    fn json_is_given_to_those_who_ask_for_it() {
        let of = |values: &[&'static str]| {
            let headers: HeaderMap = values
                .iter()
                .map(|v| (header::ACCEPT, HeaderValue::from_static(v)))
                .collect();
            format(&headers)
        };
        for json in [
            "application/json",
            "text/html, application/problem+json;q=0.5",
            "Application/Vnd.x+JSON; charset=utf-8",
        ] {
            assert_eq!(of(&[json]), Format::Json, "{json}");
        }
        for text in [
            "",
            "*/*",
            "application/*",
            "text/json",
            "application/json;q=0",
            "application/json; q=0.000",
            "application/notjson",
            "application/jsonp",
        ] {
            assert_eq!(of(&[text]), Format::Text, "{text}");
        }
        assert_eq!(of(&["text/html", "application/json"]), Format::Json);
        let mut grpc = HeaderMap::new();
        grpc.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        assert_eq!(format(&grpc), Format::Grpc);
    }

    #[test]
    fn text_from_outside_stays_inside_its_quotes() {
        let id = id();
        let reply = Reply {
            detail: Some("a\"\n\\b"),
            cluster: Some("\"c\""),
            ..Reply::new(Reason::ConnectFailed, &id)
        };
        let response = reply.response(Format::Json, Detail::Full);
        let read: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(read["detail"], "a\"\n\\b");
        assert_eq!(read["cluster"], "\"c\"");
        let line = reply.response(Format::Text, Detail::Full);
        assert_eq!(line.body().iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
