//! What matching and header hygiene cost per request: a plain loop, nanoseconds per operation.
//!
//! Run with `cargo bench --bench route`. Each number is the best of eleven batches, because noise only ever adds. The
//! budget is about a thousand instructions for matching with a thousand routes, some 250 ns.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up should stop")]

use std::hint::black_box;
use std::net::IpAddr;

use bellwether::message::forwarded::{Added, Hop, Scheme, Trust, TrustedProxies};
use bellwether::message::request_id::RequestId;
use bellwether::message::{hygiene, path};
use bellwether::route::{HostPattern, MatchSettings, PathMatch, Pattern, RequestView, Table};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

fn main() {
    let headers = browser();
    for routes in [10, 1_000, 10_000] {
        let table = Table::new((0..routes).map(by_host_and_path).collect()).expect("a valid table");
        let middle = routes / 2;
        let host = format!("shop{middle}.example.com");
        let path = format!("/api/v{middle}/orders/12345");
        let found = request(&host, &path, &headers);
        assert_eq!(table.find(&found), Some(middle));
        measure(&format!("{routes} routes, host and prefix"), || {
            table.find(black_box(&found))
        });
        let unknown = request("nobody.example.org", "/nothing/here", &headers);
        assert_eq!(table.find(&unknown), None);
        measure(&format!("{routes} routes, none matches"), || {
            table.find(black_box(&unknown))
        });
    }
    for routes in [10, 1_000] {
        let table = Table::new((0..routes).map(by_prefix_only).collect()).expect("a valid table");
        let path = format!("/service{}/a/b", routes - 1);
        let last = request("shop.example.com", &path, &headers);
        assert_eq!(table.find(&last), Some(routes - 1));
        measure(&format!("{routes} routes, prefix only, the last"), || {
            table.find(black_box(&last))
        });
        let table = Table::new((0..routes).map(by_regex).collect()).expect("a valid table");
        let path = format!("/r{}/42", routes - 1);
        let last = request("shop.example.com", &path, &headers);
        assert_eq!(table.find(&last), Some(routes - 1));
        measure(&format!("{routes} routes, regex, the last"), || {
            table.find(black_box(&last))
        });
    }

    measure("path already in its one spelling", || {
        path::normalise(black_box("/api/v1/orders/12345/items"))
    });
    measure("path with dots and escapes", || {
        path::normalise(black_box("/api//v1/../%6frders/a%2fb"))
    });

    let mut clean = browser();
    measure("hygiene of 10 fields, nothing to remove", || {
        let seen = hygiene::look(black_box(&clean));
        hygiene::clean_request(black_box(&mut clean), Trust::Untrusted, seen);
    });
    measure("hygiene, four fields added and removed", || {
        clean.insert("connection", HeaderValue::from_static("keep-alive, x-hop"));
        clean.insert("x-hop", HeaderValue::from_static("1"));
        clean.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        clean.insert("te", HeaderValue::from_static("gzip"));
        let seen = hygiene::look(black_box(&clean));
        hygiene::clean_request(black_box(&mut clean), Trust::Untrusted, seen);
    });
    let hop = Hop::new(CLIENT, Scheme::Https, 443, Trust::Untrusted);
    let mut forwarded = clean.clone();
    let (mut added, host) = (Added::new(), HeaderValue::from_static("shop.example.com"));
    measure("forwarding fields", || {
        added.clear();
        hop.write(black_box(&mut forwarded), &mut added, &host);
    });
    let trusted = TrustedProxies::new(["10.0.0.0/8".parse().expect("a network")]);
    measure("client address, untrusted peer", || {
        trusted.client_ip(black_box(CLIENT), &clean)
    });
    let mut dice = bellwether_core::Dice::new(1);
    measure("new request id", || {
        RequestId::make(black_box(1_700_000_000_000), &mut dice)
    });
    measure("host check", || {
        hygiene::authority(None, black_box(&clean), http::Version::HTTP_11)
    });
}

fn by_host_and_path(n: usize) -> MatchSettings {
    MatchSettings {
        hosts: vec![
            HostPattern::parse(&format!("shop{n}.example.com")).expect("a host"),
            HostPattern::parse(&format!("*.shop{n}.example.com")).expect("a host"),
        ],
        path: PathMatch::prefix([format!("/api/v{n}"), format!("/static/{n}")]).expect("prefixes"),
        ..MatchSettings::default()
    }
}

fn by_prefix_only(n: usize) -> MatchSettings {
    MatchSettings {
        path: PathMatch::prefix([format!("/service{n}")]).expect("a prefix"),
        ..MatchSettings::default()
    }
}

fn by_regex(n: usize) -> MatchSettings {
    let pattern = Pattern::new(&format!("/r{n}/[0-9]+")).expect("a pattern");
    MatchSettings {
        path: PathMatch::Regex(pattern),
        ..MatchSettings::default()
    }
}

fn request<'a>(host: &'a str, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        host,
        path,
        query: Some("a=1&b=2"),
        method: &Method::GET,
        headers,
        client_ip: CLIENT,
    }
}

fn browser() -> HeaderMap {
    [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br"),
        ("cookie", "sid=0123456789abcdef; theme=dark"),
        ("referer", "https://shop.example.com/"),
        ("cache-control", "max-age=0"),
        ("sec-fetch-mode", "navigate"),
        ("x-custom", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect()
}

#[expect(clippy::disallowed_types, reason = "a benchmark measures real time")]
fn measure<T>(what: &str, mut operation: impl FnMut() -> T) {
    const BATCH: u32 = 20_000;
    let best = (0..11)
        .map(|_| {
            let start = std::time::Instant::now();
            for _ in 0..BATCH {
                black_box(operation());
            }
            start.elapsed()
        })
        .min()
        .expect("eleven batches");
    println!(
        "{what:<44} {:>8.1} ns",
        best.as_secs_f64() * 1e9 / f64::from(BATCH)
    );
}
