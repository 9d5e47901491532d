//! Routes: what they match and what they do.

use std::sync::Arc;

use http::{HeaderName, Method};

use super::{Context, breaker, cluster, policy};
use crate::config::Sp;
use crate::config::policy::{Fallback as WrittenFallback, Policy};
use crate::config::route as written;
use crate::config::units::UrlPath;
use crate::message::direct_response::{Content, DirectResponse, DirectResponseError};
use crate::message::forwarded::Scheme;
use crate::message::path;
use crate::message::redirect::{Redirect, RedirectError, RedirectSettings};
use crate::message::rewrite::{PathRewrite, Rewrite, RewriteError};
use crate::route::{GrpcMatch, HostPattern, MatchSettings, PathMatch, Pattern, ValueMatch, WeightedSplit};
use crate::snapshot::{Action, Fallback, FallbackTo, Mirror, Route, Target};

/// A longer `body_file` is refused: it is held in memory.
const MAX_BODY_FILE: u64 = 1 << 20;

/// A route and what it matches.
pub(super) struct Made {
    pub(super) route: Arc<Route>,
    pub(super) matches: MatchSettings,
}

/// All routes, by index; none where something is wrong.
pub(super) fn all(cx: &mut Context<'_>) -> Vec<Option<Made>> {
    let document = cx.document;
    let policies = document.effective.policies.iter();
    let routes = document.config.routes.iter().zip(policies).enumerate();
    routes
        .map(|(index, (route, policy))| one(index, route, policy, cx))
        .collect()
}

/// What a route is called.
pub(super) fn name(index: usize, route: &written::Route) -> Arc<str> {
    match &route.name {
        Some(name) => name.value.as_str().into(),
        None => format!("route-{}", index + 1).into(),
    }
}

fn one(index: usize, route: &Sp<written::Route>, policy: &Policy, cx: &mut Context<'_>) -> Option<Made> {
    let name = name(index, route);
    let matches = matches(&route.matches, cx);
    let action = action(route, cx);
    let rewrite = route.rewrite.as_ref().map(|written| rewrite(written, cx));
    let mirror = route.mirror.as_ref().map(|mirror| {
        let cluster = cx.cluster(&mirror.cluster)?;
        Some(Mirror {
            cluster,
            share: mirror.percent.fraction(),
        })
    });
    let request_headers = policy::edits(route.request_headers.as_ref(), cx);
    let response_headers = policy::edits(route.response_headers.as_ref(), cx);
    let retry = policy::retry(policy, cx);
    let (matches, action) = (matches?, action?);
    let state = cx.registry.route(&name);
    let failure_when = policy::failure_when(policy);
    let fallback = policy
        .fallback
        .value
        .as_ref()
        .and_then(|written| fallback(written, cx));
    let fault = policy::fault(policy, cx);
    let breakers = breaker::of_route(policy, &name, &state, &action, fallback.as_ref(), cx);
    let rate_limits = policy::rate_limits(policy, &name, &state, cx);
    Some(Made {
        route: Arc::new(Route {
            origin: cx.out.sources.origin(route.span).into(),
            path: matches.path.clone(),
            action,
            // An inner none is a mistake that has been reported.
            rewrite: rewrite.flatten(),
            mirror: mirror.flatten(),
            request_headers,
            response_headers,
            timeout: policy.timeout.value,
            idle_timeout: policy.idle_timeout.value,
            max_duration: policy.max_duration.value,
            retry,
            fallback,
            fault,
            priority: policy::priority(policy),
            rate_limits,
            max_in_flight: policy.max_in_flight.value,
            hedge: policy::hedge(policy),
            failure_when,
            breakers,
            state,
            metrics: cx.registry.recorder().route(&name),
            name,
        }),
        matches,
    })
}

fn matches(written: &Sp<written::RouteMatch>, cx: &mut Context<'_>) -> Option<MatchSettings> {
    let mut fine = true;
    let mut matches = MatchSettings::default();
    for host in written.host.iter().flat_map(|hosts| hosts.iter()) {
        match HostPattern::parse(&host.0) {
            Ok(host) => matches.hosts.push(host),
            Err(error) => {
                fine = false;
                cx.error(
                    "E0306",
                    format!("`{}` is not a host", host.0),
                    host.span,
                    error.to_string(),
                );
            }
        }
    }
    matches.path = path_match(written, cx).unwrap_or_else(|| {
        fine = false;
        PathMatch::Any
    });
    for method in written.method.iter().flat_map(|methods| methods.iter()) {
        matches.methods.extend(Method::from_bytes(method.0.as_bytes()));
    }
    for (name, value) in written.headers.iter().flat_map(|map| map.iter()) {
        match (
            HeaderName::from_bytes(name.value.as_bytes()),
            value_match(value, cx),
        ) {
            (Ok(name), Some(value)) => matches.headers.push((name, value)),
            (Err(_), _) => {
                fine = false;
                cx.error(
                    "E0314",
                    format!("`{}` is not a header name", name.value),
                    name.span,
                    "",
                );
            }
            (Ok(_), None) => fine = false,
        }
    }
    for (name, value) in written.query.iter().flat_map(|map| map.iter()) {
        match value_match(value, cx) {
            Some(value) => matches.query.push((name.value.clone(), value)),
            None => fine = false,
        }
    }
    matches.grpc = written.grpc.as_ref().map(|grpc| GrpcMatch {
        service: grpc.service.value.clone(),
        methods: grpc
            .method
            .iter()
            .flat_map(|methods| methods.iter())
            .map(|method| method.value.clone())
            .collect(),
    });
    let networks = written.client_ip.iter().flat_map(|networks| networks.iter());
    matches.client_ip = networks.map(|network| network.0).collect();
    fine.then_some(matches)
}

fn path_match(written: &written::RouteMatch, cx: &mut Context<'_>) -> Option<PathMatch> {
    let (found, at) = if let Some(paths) = &written.path {
        (PathMatch::exact(normalised(paths, cx)?), paths.span)
    } else if let Some(prefixes) = &written.path_prefix {
        (PathMatch::prefix(normalised(prefixes, cx)?), prefixes.span)
    } else if let Some(pattern) = &written.path_regex {
        return pattern_of(pattern, cx).map(PathMatch::Regex);
    } else {
        return Some(PathMatch::Any);
    };
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            cx.error("E0316", "this path could never match", at, error.to_string());
            None
        }
    }
}

/// Paths in the one spelling that requests are put into.
fn normalised(paths: &[Sp<UrlPath>], cx: &mut Context<'_>) -> Option<Vec<String>> {
    let mut all = Vec::with_capacity(paths.len());
    for written in paths {
        match path::normalise(&written.0) {
            Ok(path) => all.push(path.into_owned()),
            Err(error) => {
                cx.error(
                    "E0316",
                    format!("`{}` could never match", written.0),
                    written.span,
                    error.to_string(),
                );
            }
        }
    }
    (all.len() == paths.len()).then_some(all)
}

fn pattern_of(written: &Sp<crate::config::units::Pattern>, cx: &mut Context<'_>) -> Option<Pattern> {
    match Pattern::new(&written.0) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            cx.error(
                "E0307",
                "the regex does not compile",
                written.span,
                error.to_string(),
            );
            None
        }
    }
}

fn value_match(written: &Sp<written::ValueMatch>, cx: &mut Context<'_>) -> Option<ValueMatch> {
    let text = |value: &Sp<String>| value.value.clone();
    if let Some(pattern) = &written.regex {
        return pattern_of(pattern, cx).map(ValueMatch::Regex);
    }
    let found = (written.exact.as_ref().map(text).map(ValueMatch::Exact))
        .or_else(|| written.prefix.as_ref().map(text).map(ValueMatch::Prefix))
        .or_else(|| written.suffix.as_ref().map(text).map(ValueMatch::Suffix))
        .or_else(|| written.contains.as_ref().map(text).map(ValueMatch::Contains))
        .or_else(|| {
            written
                .present
                .as_ref()
                .map(|present| ValueMatch::Present(present.value))
        });
    if found.is_none() {
        let label = "one of exact, prefix, suffix, contains, regex, present";
        cx.error("E0206", "this condition says nothing", written.span, label);
    }
    found
}

fn action(route: &Sp<written::Route>, cx: &mut Context<'_>) -> Option<Action> {
    if let Some(redirect) = &route.redirect {
        return self::redirect(redirect, cx).map(Action::Redirect);
    }
    if let Some(answer) = &route.direct_response {
        return direct(answer, cx).map(Action::Direct);
    }
    if let Some(name) = &route.cluster {
        return cx.cluster(name).map(|id| Action::Forward(Target::Cluster(id)));
    }
    let Some(weighted) = &route.weighted_clusters else {
        let label = "exactly one of cluster, weighted_clusters, redirect, direct_response";
        cx.error("E0206", "the route has no action", route.span, label);
        return None;
    };
    let clusters: Vec<_> = weighted.iter().map(|(name, _)| cx.cluster(name)).collect();
    let clusters: Option<Box<[_]>> = clusters.into_iter().collect();
    let keys = cluster::hash_keys(route.split_key.as_ref(), cx).into();
    match WeightedSplit::new(weighted.iter().map(|(name, weight)| (&name.value, weight.value))) {
        Ok(split) => Some(Action::Forward(Target::Split {
            split,
            clusters: clusters?,
            keys,
        })),
        Err(error) => {
            cx.error("E0507", error.to_string(), weighted.span, "");
            None
        }
    }
}

fn redirect(written: &Sp<written::Redirect>, cx: &mut Context<'_>) -> Option<Redirect> {
    let settings = RedirectSettings {
        scheme: written.scheme.as_ref().map(|scheme| match scheme.value {
            written::Scheme::Http => Scheme::Http,
            written::Scheme::Https => Scheme::Https,
        }),
        host: written.host.as_ref().map(|host| host.value.as_str()),
        port: written
            .port
            .as_ref()
            .and_then(|port| u16::try_from(port.value).ok()),
        path: written.path.as_ref().map(|path| path.value.as_str()),
        path_prefix: written.path_prefix.as_ref().map(|path| path.0.as_str()),
        status: u16::try_from(written.status.value).ok(),
    };
    let error = match Redirect::compile(&settings) {
        Ok(redirect) => return Some(redirect),
        Err(error) => error,
    };
    let path =
        (written.path.as_ref().map(|path| path.span)).or(written.path_prefix.as_ref().map(|path| path.span));
    let (code, at) = match &error {
        RedirectError::ToItself => ("E0512", Some(written.span)),
        RedirectError::Status(_) => ("E0309", Some(written.status.span)),
        RedirectError::TwoPaths => ("E0205", path),
        RedirectError::Path(_) => ("E0316", path),
        RedirectError::Field(_) => ("E0305", written.host.as_ref().map(|host| host.span).or(path)),
    };
    cx.error(
        code,
        "this redirect is not possible",
        at.unwrap_or(written.span),
        error.to_string(),
    );
    None
}

fn fallback(written: &WrittenFallback, cx: &mut Context<'_>) -> Option<Fallback> {
    let to = match (&written.cluster, &written.direct_response) {
        (Some(name), _) => FallbackTo::Cluster(cx.cluster(name)?),
        (None, Some(answer)) => FallbackTo::Direct(direct(answer, cx)?),
        // Reported when the file was checked.
        (None, None) => return None,
    };
    Some(Fallback {
        when: written
            .when
            .iter()
            .map(|when| policy::cause(when.value))
            .collect(),
        to,
    })
}

fn direct(written: &Sp<written::DirectResponse>, cx: &mut Context<'_>) -> Option<DirectResponse> {
    let content = match (&written.body_file, &written.body) {
        (Some(file), _) => match read(&file.path) {
            Ok(bytes) => Content::File(bytes.into()),
            Err(why) => {
                cx.error(
                    "E0601",
                    format!("the file `{}` cannot be used", file.written),
                    file.span,
                    why,
                );
                return None;
            }
        },
        (None, Some(text)) => Content::Text(text.value.as_str()),
        (None, None) => Content::Text(""),
    };
    let status = u16::try_from(written.status.value).unwrap_or(u16::MAX);
    let headers = policy::pairs(written.headers.as_ref())
        .map(|(name, value)| (name.value.as_str(), value.value.as_str()));
    let grpc = written.grpc_status.as_ref().map(|status| status.0.to_string());
    let error = match DirectResponse::compile(status, &content, headers, grpc.as_deref()) {
        Ok(answer) => return Some(answer),
        Err(error) => error,
    };
    let (code, at) = match &error {
        DirectResponseError::Status(_) => ("E0309", Some(written.status.span)),
        DirectResponseError::NoBody(_) => ("E0209", written.body.as_ref().map(|body| body.span)),
        DirectResponseError::GrpcStatus(_) => {
            ("E0309", written.grpc_status.as_ref().map(|status| status.span))
        }
        DirectResponseError::Header(_) => ("E0314", written.headers.as_ref().map(|headers| headers.span)),
        DirectResponseError::Field(_) => ("E0305", written.body.as_ref().map(|body| body.span)),
    };
    cx.error(
        code,
        "this answer is not possible",
        at.unwrap_or(written.span),
        error.to_string(),
    );
    None
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_BODY_FILE {
        return Err(format!(
            "{size} bytes are too many for an answer that is held in memory; the limit is 1MiB"
        ));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn rewrite(written: &Sp<written::Rewrite>, cx: &mut Context<'_>) -> Option<Rewrite> {
    let path = if let Some(prefix) = &written.path_prefix {
        Some((PathRewrite::prefix(&prefix.0), prefix.span))
    } else if let Some(path) = &written.path {
        Some((PathRewrite::whole(&path.0), path.span))
    } else {
        written.regex.as_ref().map(|regex| {
            let made = PathRewrite::regex(&regex.pattern.0, &regex.substitution.value);
            let at = match &made {
                Err(RewriteError::Group(_) | RewriteError::Dollar) => regex.substitution.span,
                _ => regex.pattern.span,
            };
            (made, at)
        })
    };
    let path = match path {
        None => None,
        Some((Ok(path), _)) => Some(path),
        Some((Err(error), at)) => {
            let code = match &error {
                RewriteError::Path(_) => "E0316",
                RewriteError::Pattern(_) | RewriteError::Group(_) | RewriteError::Dollar => "E0307",
                RewriteError::Field(_) => "E0305",
            };
            cx.error(code, "this rewrite is not possible", at, error.to_string());
            return None;
        }
    };
    let host = written.host.as_ref();
    match Rewrite::new(path, host.map(|host| host.value.as_str())) {
        Ok(rewrite) => Some(rewrite),
        Err(error) => {
            cx.error(
                "E0305",
                "no such template",
                host.map_or(written.span, |host| host.span),
                error.to_string(),
            );
            None
        }
    }
}
