//! The compiled table answers what a scan of the routes answers, for arbitrary routes and requests.
#![no_main]

#[path = "../../src/route/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "keys and splits are not matched"
)]
mod route;

use std::net::IpAddr;

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use route::{
    GrpcMatch, HashKey, HostPattern, KeySource, MatchSettings, PathMatch, Pattern, RequestView, Table,
    ValueMatch,
};

const HOSTS: [&str; 12] = [
    "example.com",
    "a.example.com",
    "b.a.example.com",
    "*.example.com",
    "*.a.example.com",
    "*.com",
    "[::1]",
    "com",
    "x..com",
    "*..com",
    "example.com.",
    ".com",
];
const SEGMENTS: [&str; 10] = ["", "a", "b", "api", "apix", "A", "%2F", "x", ".", "\u{e9}"];
const PATTERNS: [&str; 14] = [
    "/a.*",
    "/(a|api)/?",
    ".*",
    "/[^/]+/b",
    "/a/b|/a",
    "/a/[^/]*",
    "/a//b.*",
    "/api/a/?",
    "(?i)/API/x",
    "/a/(?:)/b",
    "^/a/$",
    "/a/b/|/a/b/c",
    "",
    "/api/\\b.*",
];
const VALUES: [&str; 6] = ["", "x", "xy", "application/grpc", "application/grpc+proto", "y z"];

fn path(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 16)? {
        return u.arbitrary();
    }
    let mut out = String::new();
    for _ in 0..u.int_in_range(1..=4)? {
        out.push('/');
        out.push_str(u.choose(&SEGMENTS)?);
    }
    Ok(out)
}

fn host(u: &mut Unstructured<'_>) -> Result<String> {
    let name = if u.ratio(1, 8)? {
        u.arbitrary::<&str>()?
    } else {
        *u.choose(&HOSTS)?
    };
    Ok(name.replace('*', "q"))
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(if u.ratio(1, 4)? {
        u.arbitrary()?
    } else {
        (*u.choose(&VALUES)?).to_owned()
    })
}

thread_local! {
    /// Compiled once: with a sanitiser, compiling costs more than all the rest.
    static COMPILED: Vec<Pattern> = PATTERNS.iter().map(|source| Pattern::new(source).expect("a pattern")).collect();
}

fn pattern(u: &mut Unstructured<'_>) -> Result<Option<Pattern>> {
    if u.ratio(1, 16)? {
        let source: String = u.arbitrary::<&str>()?.chars().take(24).collect();
        return Ok(Pattern::new(&source).ok());
    }
    let at = u.choose_index(PATTERNS.len())?;
    Ok(COMPILED.with(|compiled| compiled.get(at).cloned()))
}

fn value_match(u: &mut Unstructured<'_>) -> Result<ValueMatch> {
    Ok(match u.int_in_range(0..=5)? {
        0 => ValueMatch::Exact(text(u)?),
        1 => ValueMatch::Prefix(text(u)?),
        2 => ValueMatch::Suffix(text(u)?),
        3 => ValueMatch::Contains(text(u)?),
        4 => match pattern(u)? {
            Some(pattern) => ValueMatch::Regex(pattern),
            None => ValueMatch::Present(true),
        },
        _ => ValueMatch::Present(u.arbitrary()?),
    })
}

fn settings(u: &mut Unstructured<'_>, regexes: bool) -> Result<MatchSettings> {
    let mut wanted = MatchSettings::default();
    for _ in 0..u.int_in_range(0..=2)? {
        let written = if u.ratio(1, 8)? {
            u.arbitrary::<&str>()?
        } else {
            *u.choose(&HOSTS)?
        };
        wanted.hosts.extend(HostPattern::parse(written));
    }
    wanted.path = match u.int_in_range(0..=3)? {
        0 => PathMatch::Any,
        1 => PathMatch::exact([path(u)?, path(u)?]).unwrap_or_default(),
        2 => PathMatch::prefix([path(u)?, path(u)?]).unwrap_or_default(),
        _ if regexes => pattern(u)?.map_or(PathMatch::Any, PathMatch::Regex),
        _ => PathMatch::prefix([path(u)?]).unwrap_or_default(),
    };
    if u.ratio(1, 4)? {
        wanted
            .methods
            .push(u.choose(&[Method::GET, Method::POST])?.clone());
    }
    if u.ratio(1, 4)? {
        wanted
            .headers
            .push((HeaderName::from_static("x-h"), value_match(u)?));
    }
    if u.ratio(1, 4)? {
        wanted.query.push((text(u)?, value_match(u)?));
    }
    if u.ratio(1, 16)? {
        wanted.grpc = Some(GrpcMatch {
            service: "a".into(),
            methods: if u.arbitrary()? { vec!["b".into()] } else { vec![] },
        });
    }
    if u.ratio(1, 16)? {
        wanted.client_ip.push("10.0.0.0/8".parse().expect("a network"));
    }
    Ok(wanted)
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    // Fillers in front and between, so that the numbers of routes reach into further words of a row.
    // The automaton of all expressions costs more than everything else together, so not every table has one.
    let regexes = u.ratio(1, 8)?;
    let filler = MatchSettings {
        path: PathMatch::exact(["/filler"]).unwrap_or_default(),
        ..MatchSettings::default()
    };
    let mut routes = vec![filler.clone(); u.int_in_range(0..=70)?];
    for _ in 0..u.int_in_range(0..=12)? {
        routes.push(settings(u, regexes)?);
        if u.ratio(1, 8)? {
            routes.extend(vec![filler.clone(); 40]);
        }
    }
    let table = Table::new(routes.clone()).expect("a few patterns fit into one automaton");
    for _ in 0..4 {
        let (host, path, query) = (host(u)?, path(u)?, u.arbitrary::<Option<&str>>()?);
        let mut headers = HeaderMap::new();
        for name in ["x-h", "x-h", "content-type", "cookie"] {
            if u.arbitrary()?
                && let Ok(value) = HeaderValue::from_bytes(text(u)?.as_bytes())
            {
                headers.append(name, value);
            }
        }
        let view = RequestView {
            host: &host,
            path: &path,
            query,
            method: u.choose(&[&Method::GET, &Method::POST, &Method::HEAD])?,
            headers: &headers,
            client_ip: *u.choose(&[IpAddr::from([10, 1, 2, 3]), IpAddr::from([192, 0, 2, 1])])?,
        };
        let scanned = routes.iter().position(|route| route.mismatch(&view).is_none());
        assert_eq!(table.find(&view), scanned, "{view:?} in {routes:?}");
        for miss in table.nearest(&view, 2) {
            for failing in &miss.failing {
                assert!(!routes[miss.index].describe(failing, &view).is_empty());
            }
        }
        if let Some(prefix) = scanned.and_then(|index| routes[index].path.matched_prefix(&path)) {
            assert!(path.starts_with(prefix));
        }
        let source = KeySource {
            client_ip: view.client_ip,
            host: &host,
            path: &path,
            query,
            route: "r",
            tls_peer: None,
            headers: &headers,
        };
        for key in ["host", "cookie:x", "query:x", "header:x-h"] {
            let key = HashKey::parse(key).expect("a key");
            assert_eq!(key.hash(&source), key.hash(&source));
        }
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _enough = run(&mut Unstructured::new(input));
});
