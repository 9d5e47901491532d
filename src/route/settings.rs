//! What a route wants of a request, validated, and the plain rule that says whether it has it.
//!
//! All conditions must hold; several values of one condition mean any of them. A field or query parameter that
//! occurs more than once satisfies a condition when one of its values does, and `present: false` when there is none.
//! Query names and values are compared decoded (`%20` and `+` are spaces); field values as they came.

use http::{HeaderName, Method, header};
use ipnet::IpNet;

use super::key::query_values;
use super::{HostPattern, PathMatch, Pattern, RequestView};

/// The conditions of one route. Empty lists ask for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MatchSettings {
    /// Any of these hosts.
    pub hosts: Vec<HostPattern>,
    /// The path.
    pub path: PathMatch,
    /// Any of these methods; `HEAD` is not implied by `GET`.
    pub methods: Vec<Method>,
    /// All of these fields.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// All of these query parameters.
    pub query: Vec<(String, ValueMatch)>,
    /// A gRPC call of this service.
    pub grpc: Option<GrpcMatch>,
    /// A client in any of these networks.
    pub client_ip: Vec<IpNet>,
}

/// A gRPC call: content type `application/grpc`, path `/service/method`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcMatch {
    /// Full name, `shop.v1.Cart`.
    pub service: String,
    /// Any of these methods; empty means all.
    pub methods: Vec<String>,
}

/// What a field or a query parameter must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal, case included.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Has it somewhere.
    Contains(String),
    /// The whole value matches.
    Regex(Pattern),
    /// Is there (`true`) or is not (`false`), whatever the value.
    Present(bool),
}

impl ValueMatch {
    /// Whether a value that is there satisfies this.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_bytes()),
            Self::Contains(part) => memchr::memmem::find(value, part.as_bytes()).is_some(),
            Self::Regex(pattern) => pattern.matches(value),
            Self::Present(present) => *present,
        }
    }
}

impl std::fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "exact {value:?}"),
            Self::Prefix(value) => write!(f, "prefix {value:?}"),
            Self::Suffix(value) => write!(f, "suffix {value:?}"),
            Self::Contains(value) => write!(f, "contains {value:?}"),
            Self::Regex(pattern) => write!(f, "regex {}", pattern.as_str()),
            Self::Present(present) => write!(f, "present {present}"),
        }
    }
}

impl GrpcMatch {
    fn matches(&self, view: &RequestView<'_>) -> bool {
        let content_type = view
            .headers
            .get(header::CONTENT_TYPE)
            .map(http::HeaderValue::as_bytes)
            .unwrap_or_default();
        let is_grpc = content_type
            .get(..16)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
            && matches!(content_type.get(16), None | Some(b'+' | b';' | b' '));
        is_grpc
            && view
                .path
                .strip_prefix('/')
                .and_then(|path| path.split_once('/'))
                .is_some_and(|(service, method)| {
                    service == self.service
                        && !method.contains('/')
                        && (self.methods.is_empty() || self.methods.iter().any(|wanted| wanted == method))
                })
    }
}

/// A condition that a request does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// None of the hosts.
    Host,
    /// Another path.
    Path,
    /// None of the methods.
    Method,
    /// Not a call of this service.
    Grpc,
    /// This field.
    Header(HeaderName),
    /// This query parameter.
    Query(String),
    /// In none of the networks.
    ClientIp,
}

impl MatchSettings {
    /// The first condition that a request does not meet, or `None` when the route matches.
    pub fn mismatch(&self, view: &RequestView<'_>) -> Option<Mismatch> {
        self.mismatches_lazily(view).next()
    }

    /// All conditions that a request does not meet.
    pub fn mismatches(&self, view: &RequestView<'_>) -> Vec<Mismatch> {
        self.mismatches_lazily(view).collect()
    }

    /// A condition in the words of the file, with what the request had instead.
    pub fn describe(&self, mismatch: &Mismatch, view: &RequestView<'_>) -> String {
        match mismatch {
            Mismatch::Host => {
                let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
                format!("host is {:?}, not {}", view.host, hosts.join(" or "))
            }
            Mismatch::Path => format!("path is {}, not {}", view.path, self.path),
            Mismatch::Method => {
                let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
                format!("method is {}, not {}", view.method, methods.join(" or "))
            }
            Mismatch::Grpc => {
                let service = self
                    .grpc
                    .as_ref()
                    .map(|grpc| grpc.service.as_str())
                    .unwrap_or_default();
                format!("not a gRPC call of {service}")
            }
            Mismatch::Header(name) => {
                let wanted = self
                    .headers
                    .iter()
                    .find(|(n, _)| n == name)
                    .map(|(_, wanted)| wanted.to_string());
                let found = view
                    .headers
                    .get(name)
                    .map_or("absent".into(), |value| format!("{value:?}"));
                format!("header {name} is {found}, not {}", wanted.unwrap_or_default())
            }
            Mismatch::Query(name) => {
                let wanted = self
                    .query
                    .iter()
                    .find(|(n, _)| n == name)
                    .map(|(_, wanted)| wanted.to_string());
                format!("query {name} is not {}", wanted.unwrap_or_default())
            }
            Mismatch::ClientIp => {
                let networks: Vec<String> = self.client_ip.iter().map(ToString::to_string).collect();
                format!(
                    "client_ip is {}, not in {}",
                    view.client_ip,
                    networks.join(" or ")
                )
            }
        }
    }

    fn mismatches_lazily(&self, view: &RequestView<'_>) -> impl Iterator<Item = Mismatch> {
        let host = !self.hosts.is_empty() && !self.hosts.iter().any(|host| host.matches(view.host));
        let path = !self.path.matches(view.path);
        [(host, Mismatch::Host), (path, Mismatch::Path)]
            .into_iter()
            .filter_map(|(fails, mismatch)| fails.then_some(mismatch))
            .chain(self.rest(view))
    }

    /// Everything but host and path, which the table has looked up.
    pub(super) fn rest_matches(&self, view: &RequestView<'_>) -> bool {
        self.method_matches(view)
            && self.grpc.as_ref().is_none_or(|grpc| grpc.matches(view))
            && self
                .headers
                .iter()
                .all(|(name, wanted)| header_matches(view, name, wanted))
            && self
                .query
                .iter()
                .all(|(name, wanted)| query_matches(view, name, wanted))
            && self.client_ip_matches(view)
    }

    fn rest(&self, view: &RequestView<'_>) -> impl Iterator<Item = Mismatch> {
        let fixed = [
            (!self.method_matches(view), Mismatch::Method),
            (
                self.grpc.as_ref().is_some_and(|grpc| !grpc.matches(view)),
                Mismatch::Grpc,
            ),
        ];
        let headers = self
            .headers
            .iter()
            .map(|(n, w)| (!header_matches(view, n, w), Mismatch::Header(n.clone())));
        let query = self
            .query
            .iter()
            .map(|(n, w)| (!query_matches(view, n, w), Mismatch::Query(n.clone())));
        fixed
            .into_iter()
            .chain(headers)
            .chain(query)
            .chain([(!self.client_ip_matches(view), Mismatch::ClientIp)])
            .filter_map(|(fails, mismatch)| fails.then_some(mismatch))
    }

    fn method_matches(&self, view: &RequestView<'_>) -> bool {
        self.methods.is_empty() || self.methods.contains(view.method)
    }

    fn client_ip_matches(&self, view: &RequestView<'_>) -> bool {
        // An IPv4 client seen through a dual-stack socket is still an IPv4 client.
        self.client_ip.is_empty()
            || self
                .client_ip
                .iter()
                .any(|net| net.contains(&view.client_ip.to_canonical()))
    }
}

fn header_matches(view: &RequestView<'_>, name: &HeaderName, wanted: &ValueMatch) -> bool {
    match wanted {
        ValueMatch::Present(present) => view.headers.contains_key(name) == *present,
        wanted => view
            .headers
            .get_all(name)
            .iter()
            .any(|value| wanted.matches(value.as_bytes())),
    }
}

fn query_matches(view: &RequestView<'_>, name: &str, wanted: &ValueMatch) -> bool {
    let mut found = false;
    let query = view.query.unwrap_or_default();
    let stopped = query_values(query, name, |value| {
        found = true;
        wanted.matches(value)
    });
    match wanted {
        ValueMatch::Present(present) => found == *present,
        _ => stopped,
    }
}
