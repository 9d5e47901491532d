//! What was probably meant: the nearest word, the word that other proxies use, the block that a key belongs to.

use std::collections::BTreeSet;

use super::diagnostic::{Diagnostic, Span};
use super::table::{Table, Type};
use super::yaml::Key;

/// The nearest of some words, if it is near enough to be meant.
pub fn nearest<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let len = word.chars().count();
    // A pasted paragraph is nobody's typing error, and the distance is quadratic.
    if len > 64 {
        return None;
    }
    let limit = if len <= 3 { 1 } else { (len / 3).max(2) };
    let lower = word.to_lowercase().replace('-', "_");
    let mut best: Option<(usize, &str)> = None;
    for candidate in words {
        let distance = strsim::damerau_levenshtein(&lower, candidate);
        // Two short words may be near and still have nothing in common.
        if distance <= limit
            && distance < candidate.chars().count()
            && best.is_none_or(|(least, _)| distance < least)
        {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, word)| word)
}

/// A word that is none of a closed list.
pub fn unknown_word(word: &str, span: Span, noun: &str, plural: &str, words: &[&str]) -> Diagnostic {
    let label = match nearest(word, words.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match words {
            [only] => format!("write `{only}`"),
            _ => String::new(),
        },
    };
    let code = if noun == "leader preset" { "E0404" } else { "E0305" };
    Diagnostic::error(code, format!("`{word}` is not {}", super::table::article(noun)))
        .at(span, label)
        .note(format!("{plural}: {}", words.join(", ")))
}

/// A key that the table has not.
pub fn unknown_field(key: &Key, table: &Table, path: &str) -> Diagnostic {
    let name = &*key.name;
    let place = if path.is_empty() {
        "the configuration".to_owned()
    } else {
        format!("`{path}`")
    };
    let unknown = |code| Diagnostic::error(code, format!("unknown field `{name}` in {place}"));
    let has = |word: &str| table.rows.iter().any(|row| row.key == word);

    // An exact hit among the foreign words knows more than the distance does.
    if let Some(word) = FOREIGN
        .iter()
        .find(|word| word.theirs == name && has(word.ours.split(['.', ' ']).next().unwrap_or("")))
    {
        let verb = if word.whose.contains(" and ")
            || word.whose.ends_with('s') && word.whose != "nginx" && word.whose != "Kubernetes"
        {
            "call"
        } else {
            "calls"
        };
        let whose = if word.whose.is_empty() {
            "others call".to_owned()
        } else {
            format!("{} {verb}", word.whose)
        };
        return unknown("E0207").at(key.span, format!("{whose} it that; here it is `{}`", word.ours));
    }
    if let Some(near) = nearest(name, table.rows.iter().map(|row| row.key)) {
        return unknown("E0201").at(key.span, format!("did you mean `{near}`?"));
    }
    let children = blocks_with(name, table);
    if !children.is_empty() {
        return Diagnostic::error("E0209", format!("`{name}` does not belong in {place}"))
            .at(key.span, format!("move it under {}", or_list(&children)));
    }
    if let Some(word) = FOREIGN.iter().find(|word| word.theirs == name) {
        return unknown("E0207").at(key.span, format!("here it is `{}`, in another block", word.ours));
    }
    let elsewhere = tables_with(name);
    if !elsewhere.is_empty() {
        return Diagnostic::error("E0209", format!("`{name}` does not belong in {place}"))
            .at(key.span, format!("it belongs to {}", or_list(&elsewhere)));
    }
    let fields: Vec<&str> = table.rows.iter().map(|row| row.key).collect();
    unknown("E0201")
        .at(key.span, "no such field")
        .note(format!("fields: {}", fields.join(", ")))
}

fn or_list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().take(4).map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [init @ .., last] if !init.is_empty() => format!("{} or {last}", init.join(", ")),
        _ => quoted.join(""),
    }
}

/// The blocks of a table that have a field of this name.
fn blocks_with(name: &str, table: &Table) -> Vec<&'static str> {
    let has = |row: &&super::table::Row| match object_in(&row.ty) {
        Some(block) => block().rows.iter().any(|row| row.key == name),
        None => false,
    };
    let mut blocks: Vec<&'static str> = table.rows.iter().filter(has).map(|row| row.key).collect();
    blocks.dedup();
    blocks
}

/// All tables that have a field of this name, as `table.field`.
fn tables_with(name: &str) -> Vec<&'static str> {
    let tables = super::tables();
    let found = tables
        .iter()
        .filter(|table| table.rows.iter().any(|row| row.key == name && !row.flat));
    found
        .map(|table| table.name)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The block behind `off`, lists and maps.
pub fn object_in(ty: &Type) -> Option<fn() -> Table> {
    match ty {
        Type::Object(table) => Some(*table),
        Type::Off(inner) | Type::Many(inner) | Type::List(inner) | Type::Map(inner) => object_in(inner),
        Type::Either(a, b) => object_in(a).or_else(|| object_in(b)),
        Type::Bool | Type::Int | Type::Text { .. } | Type::Words(_) | Type::Any => None,
    }
}

/// What one entry of a map is called.
#[must_use]
pub fn singular(field: &str) -> &str {
    match field {
        "listeners" => "listener",
        "policies" => "policy",
        "clusters" | "weighted_clusters" => "cluster",
        "headers" | "set" | "add" => "header",
        "query" => "parameter",
        "labels" => "label",
        "peers" => "peer",
        "fields" => "field",
        other => other,
    }
}

/// A word that people bring from elsewhere.
struct Foreign {
    theirs: &'static str,
    whose: &'static str,
    ours: &'static str,
}

const fn foreign(theirs: &'static str, whose: &'static str, ours: &'static str) -> Foreign {
    Foreign { theirs, whose, ours }
}

/// The table of config.md 2.3 as data.
const FOREIGN: &[Foreign] = &[
    foreign("lb_policy", "Envoy and Caddy", "load_balancing"),
    foreign("lbPolicy", "Envoy Gateway", "load_balancing"),
    foreign("balance", "HAProxy", "load_balancing"),
    foreign("strategy", "Traefik", "load_balancing"),
    foreign("proxy_pass", "nginx", "cluster"),
    foreign("backend", "HAProxy", "cluster"),
    foreign("use_backend", "HAProxy", "cluster"),
    foreign("upstream", "nginx", "cluster"),
    foreign("service", "Traefik", "cluster"),
    foreign("backendRefs", "Gateway API", "cluster"),
    foreign("upstreams", "Caddy and Kong", "clusters"),
    foreign("backends", "HAProxy", "clusters"),
    foreign("services", "Traefik", "clusters"),
    foreign("upstreams", "Caddy", "endpoints"),
    foreign("servers", "Traefik", "endpoints"),
    foreign("hosts", "Envoy", "endpoints"),
    foreign("targets", "Kong", "endpoints"),
    foreign("lb_endpoints", "Envoy", "endpoints"),
    foreign("hosts", "Istio", "host"),
    foreign("hostnames", "Gateway API", "host"),
    foreign("domains", "Envoy", "host"),
    foreign("server_name", "nginx", "host"),
    foreign("prefix", "Envoy", "path_prefix"),
    foreign("path_beg", "HAProxy", "path_prefix"),
    foreign("safe_regex", "Envoy", "path_regex"),
    foreign("path_reg", "HAProxy", "path_regex"),
    foreign("methods", "Traefik", "method"),
    foreign("cidr", "", "client_ip"),
    foreign("source_ip", "", "client_ip"),
    foreign("health_checks", "Envoy", "health_check"),
    foreign("healthCheck", "Traefik", "health_check"),
    foreign("healthcheck", "Traefik", "health_check"),
    foreign("rise", "HAProxy", "healthy_threshold"),
    foreign("fall", "HAProxy", "unhealthy_threshold"),
    foreign("passes", "nginx", "healthy_threshold"),
    foreign("fails", "nginx", "unhealthy_threshold"),
    foreign("max_fails", "nginx", "outlier_detection"),
    foreign("fail_timeout", "nginx", "outlier_detection"),
    foreign("passiveHealthCheck", "Traefik", "outlier_detection"),
    foreign("outlierDetection", "Istio", "outlier_detection"),
    foreign("circuit_breakers", "Envoy", "limits"),
    foreign("circuitBreaker", "Traefik", "circuit_breaker"),
    foreign("failureRateThreshold", "Resilience4j", "failure_rate"),
    foreign("slowCallRateThreshold", "Resilience4j", "slow_call_rate"),
    foreign("slowCallDurationThreshold", "Resilience4j", "slow_call_duration"),
    foreign("minimumNumberOfCalls", "Resilience4j", "min_requests"),
    foreign("slidingWindowSize", "Resilience4j", "window"),
    foreign("waitDurationInOpenState", "Resilience4j", "open_duration"),
    foreign(
        "permittedNumberOfCallsInHalfOpenState",
        "Resilience4j",
        "half_open_requests",
    ),
    foreign("maxconn", "HAProxy", "limits.max_in_flight_per_endpoint"),
    foreign("maxconn", "HAProxy", "max_connections"),
    foreign("max_conns", "nginx", "limits.max_in_flight_per_endpoint"),
    foreign("maxqueue", "HAProxy", "limits.max_queue"),
    foreign("max_requests", "Envoy", "max_in_flight"),
    foreign("max_pending_requests", "Envoy", "max_queue"),
    foreign("inFlightReq", "Traefik", "max_in_flight"),
    foreign("connectionPool", "Istio", "connection_pool"),
    foreign("keepalive", "nginx", "connection_pool"),
    foreign("timeoutSeconds", "Kubernetes", "timeout"),
    foreign("periodSeconds", "Kubernetes", "interval"),
    foreign("successThreshold", "Kubernetes", "healthy_threshold"),
    foreign("failureThreshold", "Kubernetes", "unhealthy_threshold"),
    foreign("proxy_read_timeout", "nginx", "timeout"),
    foreign("response_header_timeout", "Caddy", "timeout"),
    foreign("max_stream_duration", "Envoy", "max_duration"),
    foreign("retries", "Istio", "retry"),
    foreign("retry_policy", "Envoy", "retry"),
    foreign("lb_retries", "Caddy", "retry"),
    foreign("attempts", "Traefik and Istio", "num_retries"),
    foreign("max_retries", "", "num_retries"),
    foreign("perTryTimeout", "Istio", "per_try_timeout"),
    foreign("numRetries", "Envoy Gateway", "num_retries"),
    foreign("retryOn", "Istio", "retry_on"),
    foreign("middlewares", "Traefik", "policy"),
    foreign("filters", "Envoy and Gateway API", "policy"),
    foreign("plugins", "Kong", "policy"),
    foreign("rule", "Traefik", "match"),
    foreign("matches", "Gateway API", "match"),
    foreign("entryPoints", "Traefik", "listeners"),
    foreign("entrypoints", "Traefik", "listeners"),
    foreign("frontends", "HAProxy", "listeners"),
    foreign("gateways", "Istio", "listeners"),
    foreign("servers", "nginx", "listeners"),
    foreign("routers", "Traefik", "routes"),
    foreign("locations", "nginx", "routes"),
    foreign("rules", "Gateway API", "routes"),
    foreign("listen", "nginx", "address"),
    foreign("bind", "HAProxy", "address"),
    foreign("port", "", "address"),
    foreign("ssl", "nginx", "tls"),
    foreign("transport_socket", "Envoy", "tls"),
    foreign("cert_file", "", "cert"),
    foreign("certFile", "Traefik", "cert"),
    foreign("certificate", "", "cert"),
    foreign("key_file", "", "key"),
    foreign("keyFile", "Traefik", "key"),
    foreign("private_key", "Envoy", "key"),
    foreign("ca_file", "", "ca"),
    foreign("caFile", "Traefik", "ca"),
    foreign("insecureSkipVerify", "Traefik", "insecure_skip_verify"),
    foreign("term", "Raft", "epoch"),
    foreign("timeline", "Patroni", "epoch"),
    foreign("generation", "", "epoch"),
    foreign("lsn", "PostgreSQL", "position"),
    foreign("revision", "etcd", "position"),
    foreign("gtid", "MySQL", "position"),
    foreign("primary", "Patroni", "leader"),
    foreign("master", "Redis", "leader"),
    foreign("respond", "Caddy", "direct_response"),
    foreign("return", "nginx", "direct_response"),
    foreign("weighted", "Traefik", "weighted_clusters"),
    foreign("split_clients", "nginx", "weighted_clusters"),
    foreign("mirroring", "Traefik", "mirror"),
    foreign("request_mirror_policies", "Envoy", "mirror"),
    foreign("request_headers_to_add", "Envoy", "request_headers.add"),
    foreign("proxy_set_header", "nginx", "request_headers.set"),
    foreign("header_up", "Caddy", "request_headers.set"),
    foreign("accessLog", "Traefik", "access_log"),
    foreign("logging", "", "log"),
];
