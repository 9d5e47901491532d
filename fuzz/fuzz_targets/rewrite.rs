//! Rewrites and redirects: what is made of a path is one path in its one spelling, or refused.
#![no_main]

mod http1;
mod message;
mod wire;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use message::forwarded::Scheme;
use message::path;
use message::redirect::{Asked, Redirect, RedirectSettings};
use message::rewrite::{PathRewrite, Rewrite};
use message::template::Values;

const PATTERNS: [&str; 8] = [
    "/(.*)",
    "(.*)",
    "/a/(?<rest>.*)",
    "/([^/]*)/(.*)",
    "(/[a-z]+)+",
    "/(%2[Ff]|x)?(.*)",
    "(?s).*",
    "/a|/b(.)",
];
const PIECES: [&str; 16] = [
    "/", ".", "..", "$1", "$0", "${rest}", "$$", "?", "%", "2f", "%2e", "a", "?x=", "\\", " ", "$2",
];

fn substitution(u: &mut Unstructured<'_>) -> Result<String> {
    let mut out = String::new();
    for _ in 0..u.int_in_range(0..=6)? {
        if u.ratio(1, 8)? {
            out.push_str(u.arbitrary()?);
        } else {
            out.push_str(u.choose(&PIECES)?);
        }
    }
    Ok(out)
}

fn is_target(target: &str) {
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    assert_eq!(path::normalise(path).as_deref(), Ok(path), "{target:?}");
    if let Some(query) = query {
        assert_eq!(path::check_query(query), Ok(()), "{target:?}");
    }
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let written: &str = u.arbitrary()?;
    let query: Option<&str> = u.arbitrary()?;
    let Ok(path) = path::normalise(written) else {
        return Ok(());
    };
    let query = query.filter(|query| path::check_query(query).is_ok());
    let cuts: Vec<usize> = (0..=path.len())
        .filter(|at| *at == path.len() || path.as_bytes()[*at] == b'/')
        .collect();
    let prefix = &path[..*u.choose(&cuts)?];
    let new = substitution(u)?;
    let pattern: String = if u.ratio(1, 4)? {
        u.arbitrary::<&str>()?.chars().take(40).collect()
    } else {
        (*u.choose(&PATTERNS)?).to_owned()
    };
    let rewrites = [
        PathRewrite::prefix(&new),
        PathRewrite::whole(&new),
        PathRewrite::regex(&pattern, &new),
    ];
    for rewrite in rewrites.into_iter().flatten() {
        let rewrite = Rewrite::new(Some(rewrite), None).expect("no host, no template");
        if let Ok(Some(target)) = rewrite.target(&path, query, Some(prefix)) {
            is_target(&target);
        }
    }

    let values = Values {
        client_ip: [192, 0, 2, 1].into(),
        host: "shop.example:8080",
        path: &path,
        request_id: "id",
        route: "r",
        cluster: "",
        endpoint: "",
        tls_peer: "",
    };
    let settings = RedirectSettings {
        scheme: *u.choose(&[None, Some(Scheme::Http), Some(Scheme::Https)])?,
        host: *u.choose(&[None, Some("www.{host}"), Some("other.example")])?,
        port: u.arbitrary()?,
        path: None,
        path_prefix: u.ratio(1, 2)?.then_some(&*new),
        status: None,
    };
    let Ok(redirect) = Redirect::compile(&settings) else {
        return Ok(());
    };
    for host in ["shop.example:8080", "shop.example", "[::1]:80", ""] {
        let asked = Asked {
            scheme: Scheme::Http,
            host,
            path: &path,
            query,
            matched_prefix: Some(prefix),
        };
        // None: it cannot be said without a host, and there is none.
        let (Some(location), Some(response)) = (
            redirect.location(&asked, &values),
            redirect.response(&asked, &values),
        ) else {
            assert!(host.is_empty());
            continue;
        };
        let rest = match location.split_once("://") {
            Some((_, rest)) if !location.starts_with('/') => rest,
            _ => location.as_str(),
        };
        let at = rest.find('/').expect("a path");
        // Nothing of the path can become part of the host: "//evil" would be an address of its own.
        assert!(at > 0 || !rest.starts_with("//"), "{location}");
        is_target(&rest[at..]);
        assert!(message::is_field_value(response.headers()["location"].as_bytes()));
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _enough = run(&mut Unstructured::new(input));
});
