//! Who may do what: the rules every request of the operators' listener passes first.
//!
//! Nothing but the loopback interface protects an admin port by default, and a browser on the same machine is inside it.
//! So a name that is not ours in `Host` is refused (DNS rebinding), a foreign `Origin` is refused, and whatever is not a
//! plain GET must carry a content type and a field that no web page can send without asking us first, which we never
//! grant (cross-site request forgery). From other machines, changing something needs a token.
//!
//! Tokens come in the `Authorization` field only: what stands in an address ends up in logs. They are compared in
//! constant time, and shown by nothing.
//!
//! Invariant: liveness and readiness are the only answers that need neither a name nor a token.

use std::fmt;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::probes::{LIVEZ, READYZ};
use super::{Context, Problem, heartbeat};
use crate::net::{PeerInfo, SocketAddress};
use crate::snapshot::compile::AdminSettings;

/// Marks a request as not made by a web page.
pub const ADMIN_HEADER: &str = "x-bellwether-admin";

/// Paths that are asked with a body but change nothing.
const QUESTIONS: &[&str] = &["/api/v1/explain"];

/// Who may do what.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Nothing may be changed, by nobody.
    pub read_only: bool,
    /// Lets its bearer do everything.
    pub bearer_token: Option<Token>,
    /// Lets its bearer look.
    pub viewer_token: Option<Token>,
    /// Lets its bearer send heartbeats, and nothing else.
    pub heartbeat_token: Option<Token>,
    /// Names we are reached by, besides `localhost` and the address itself: the host of `admin.address` when that is a
    /// name.
    pub hosts: Vec<String>,
}

/// A secret word. Never shown.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Takes the secret; none when it is empty, because an empty token would let everybody in.
    pub fn new(secret: &str) -> Option<Self> {
        let secret = secret.trim();
        (!secret.is_empty()).then(|| Self(secret.as_bytes().into()))
    }

    /// Whether this is the secret. Takes the same time wherever the first difference is; only the length of the
    /// secret could be learned from it.
    fn is(&self, given: &[u8]) -> bool {
        if self.0.len() != given.len() {
            return false;
        }
        let mut difference = 0;
        for (a, b) in self.0.iter().zip(given) {
            // The compiler must not learn that a set bit never goes away, or it may stop early.
            difference = black_box(difference | (a ^ b));
        }
        difference == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Nothing,
    Look,
    Everything,
}

impl Security {
    /// From the configuration.
    pub fn of(settings: &AdminSettings) -> Self {
        let token = |secret: &Option<Arc<str>>| secret.as_deref().and_then(Token::new);
        Self {
            read_only: settings.read_only,
            bearer_token: token(&settings.bearer_token),
            viewer_token: token(&settings.viewer_token),
            heartbeat_token: token(&settings.heartbeat_token),
            hosts: settings.address.host().map(str::to_owned).into_iter().collect(),
        }
    }

    fn rights(&self, headers: &HeaderMap) -> Rights {
        if self.bearer_token.is_none() && self.viewer_token.is_none() {
            return Rights::Everything;
        }
        let Some(given) = bearer(headers) else {
            return Rights::Nothing;
        };
        // Both are compared, whichever fits.
        let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.is(given));
        match (is(&self.bearer_token), is(&self.viewer_token)) {
            (true, _) => Rights::Everything,
            (false, true) => Rights::Look,
            (false, false) => Rights::Nothing,
        }
    }

    /// Whether these fields carry the operators' token.
    pub(super) fn is_operator(&self, headers: &HeaderMap) -> bool {
        let token = self.bearer_token.as_ref();
        token.is_some_and(|token| bearer(headers).is_some_and(|given| token.is(given)))
    }

    /// Whether somebody may send heartbeats at all. For whom is another question.
    fn may_beat(&self, headers: &HeaderMap, peer: Option<&PeerInfo>) -> bool {
        let bears = |token: &Option<Token>| {
            let token = token.as_ref();
            token.is_some_and(|token| bearer(headers).is_some_and(|given| token.is(given)))
        };
        let is_known = peer
            .and_then(|peer| peer.tls.as_ref())
            .is_some_and(|tls| !tls.peer_names.is_empty());
        let is_free = self.heartbeat_token.is_none() && !self.needs_token() && is_local(peer);
        bears(&self.bearer_token) || bears(&self.heartbeat_token) || is_known || is_free
    }

    const fn needs_token(&self) -> bool {
        self.bearer_token.is_some() || self.viewer_token.is_some()
    }
}

/// The token of `Authorization: Bearer …` (RFC 6750 section 2.1); the scheme's case does not matter.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// The middleware.
pub(super) async fn check(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let verdict = judge(&context.security.load(), &request);
    match verdict {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// A refusal; a missing token also says which scheme is wanted.
#[derive(Debug)]
struct Refusal {
    problem: Problem,
    challenge: bool,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            challenge: false,
        }
    }
}

impl Refusal {
    fn into_response(self) -> Response {
        let mut response = self.problem.into_response();
        if self.challenge {
            let challenge = HeaderValue::from_static("Bearer realm=\"bellwether\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn judge(security: &Security, request: &Request) -> Result<(), Refusal> {
    let (headers, method, path) = (request.headers(), request.method(), request.uri().path());
    let plain = matches!(*method, Method::GET | Method::HEAD);
    if plain && (path == LIVEZ || path == READYZ) {
        return Ok(());
    }
    let peer = request.extensions().get::<PeerInfo>();
    let host = the_host(headers, request.uri())?;
    if !is_our_name(host_name(host), security, peer) {
        let why = format!("`{}` is not a name of this listener", host.escape_default());
        return Err(Problem::new(421, why)
            .help("use localhost or the address it listens on; another name goes into admin.address")
            .into());
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !is_same_origin(origin, host)
    {
        return Err(Problem::new(403, "requests from other web sites are not answered").into());
    }
    if path == heartbeat::PATH {
        if !security.may_beat(headers, peer) {
            return Err(Refusal {
                problem: Problem::new(401, "heartbeats need a token or a certificate")
                    .help("send `authorization: Bearer TOKEN` with the token of admin.auth.heartbeat_token"),
                challenge: true,
            });
        }
        // No web page can send this content type without asking first, which is never granted.
        return match is_json(headers) {
            true => Ok(()),
            false => Err(Problem::new(415, "the content type is not `application/json`").into()),
        };
    }
    let rights = security.rights(headers);
    if rights == Rights::Nothing {
        return Err(Refusal {
            problem: Problem::new(401, "a token is required")
                .help("send `authorization: Bearer TOKEN`; tokens in the address are not read"),
            challenge: true,
        });
    }
    if plain {
        return Ok(());
    }
    if headers.get(ADMIN_HEADER).map(HeaderValue::as_bytes) != Some(b"1") {
        return Err(
            Problem::new(403, format!("the field `{ADMIN_HEADER}: 1` is missing"))
                .help("it shows that no web page made this request")
                .into(),
        );
    }
    if !is_json(headers) {
        return Err(Problem::new(415, "the content type is not `application/json`").into());
    }
    if QUESTIONS.contains(&path) {
        return Ok(());
    }
    if security.read_only {
        return Err(Problem::new(403, "this listener only shows (admin.read_only)").into());
    }
    if rights == Rights::Look {
        return Err(Problem::new(403, "this token may only look")
            .help("use the token of admin.auth.bearer_token")
            .into());
    }
    if !security.needs_token() && !is_local(peer) {
        return Err(Problem::new(403, "from another machine this needs a token")
            .help("set admin.auth.bearer_token")
            .into());
    }
    Ok(())
}

/// The one host a request names. `Host` and an absolute target must agree.
fn the_host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(header::HOST).iter();
    let host = match (values.next(), values.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None | Some(_), _) => None,
    };
    let host = host.ok_or_else(|| Problem::new(400, "a request names exactly one host"))?;
    if let Some(authority) = uri.authority()
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return Err(Problem::new(400, "the target and `host` name different hosts"));
    }
    Ok(host)
}

/// A host without its port and brackets. The port says nothing about who asks, and a forwarded port is another one.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(name, _)| name);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

fn is_our_name(name: &str, security: &Security, peer: Option<&PeerInfo>) -> bool {
    if let Ok(ip) = name.parse::<IpAddr>() {
        // A page cannot have an address of this machine as its origin unless we served it.
        let local = peer.and_then(|peer| peer.local.ip()).map(|local| local.ip());
        return ip.is_loopback() || local == Some(ip.to_canonical());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    // RFC 6761 section 6.3: names below localhost are loopback as well, and browsers see to it.
    let is_localhost = name.eq_ignore_ascii_case("localhost")
        || name
            .len()
            .checked_sub(10)
            .and_then(|at| name.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(".localhost"));
    is_localhost || security.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

/// `scheme://host`, with the host of this request; `null` is nobody's.
fn is_same_origin(origin: &HeaderValue, host: &str) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let media = value.and_then(|value| value.split(|byte| *byte == b';').next());
    media.is_some_and(|media| media.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

/// Whether the caller is on this machine. Unknown callers are not.
pub(super) fn is_local(peer: Option<&PeerInfo>) -> bool {
    peer.is_some_and(|peer| match &peer.peer {
        SocketAddress::Ip(address) => address.ip().is_loopback(),
        SocketAddress::Unix(_) => true,
    })
}
