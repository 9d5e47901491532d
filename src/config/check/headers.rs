//! Header names and values that are written as maps.

use super::super::Config;
use super::super::diagnostic::{Diagnostic, Diagnostics};
use super::super::route::HeaderEdits;
use super::super::table::{Map, Sp};
use super::super::units::is_token;

/// RFC 9110 §7.6.1: these belong to one connection; and what we compute ourselves.
const OURS: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
];

pub(super) fn check(config: &Config, out: &mut Diagnostics) {
    for route in config.routes.iter() {
        for edits in [&route.request_headers, &route.response_headers]
            .into_iter()
            .flatten()
        {
            edited(edits, out);
        }
        let answers = [&route.direct_response]
            .into_iter()
            .flatten()
            .map(|answer| &answer.value);
        let fallback = route
            .policy
            .fallback
            .value
            .iter()
            .filter_map(|f| f.direct_response.as_deref());
        for answer in answers.chain(fallback) {
            each(answer.headers.as_ref(), Rule::Ours, out);
        }
        for (name, _) in route.matches.headers.iter().flat_map(|map| map.iter()) {
            named(name, Rule::Any, out);
        }
    }
    for (_, cluster) in config.clusters.iter() {
        if let Some(check) = &cluster.health_check.value {
            each(check.headers.as_ref(), Rule::OursButHost, out);
        }
    }
    for test in config.tests.iter() {
        each(test.headers.as_ref(), Rule::Any, out);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Any,
    Ours,
    OursButHost,
}

fn edited(edits: &HeaderEdits, out: &mut Diagnostics) {
    each(edits.set.as_ref(), Rule::Ours, out);
    each(edits.add.as_ref(), Rule::Ours, out);
}

fn each(map: Option<&Sp<Map<String>>>, rule: Rule, out: &mut Diagnostics) {
    for (name, value) in map.iter().flat_map(|map| map.iter()) {
        named(name, rule, out);
        if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            out.push(
                Diagnostic::error(
                    "E0314",
                    format!("the value of header `{}` has a line break in it", name.value),
                )
                .at(value.span, "a header is one line"),
            );
        }
    }
}

fn named(name: &Sp<String>, rule: Rule, out: &mut Diagnostics) {
    let text = name.value.as_str();
    let lower = text.to_ascii_lowercase();
    let refuse = |why: &str| {
        Diagnostic::error("E0314", format!("header `{text}` cannot be named here")).at(name.span, why)
    };
    if text.starts_with(':') {
        out.push(refuse(
            "a pseudo header; `host`, `path` and `method` have their own keys",
        ));
    } else if !is_token(text) {
        out.push(
            Diagnostic::error("E0314", format!("`{text}` is not a header name"))
                .at(name.span, "a header name has letters, digits and `-`, no spaces"),
        );
    } else if lower == "host" && rule == Rule::Ours {
        out.push(refuse("write `rewrite: { host: … }`"));
    } else if rule != Rule::Any && lower != "host" && OURS.contains(&lower.as_str()) {
        out.push(refuse("it belongs to one connection and is set by the proxy"));
    }
}
