//! The compiled table against the plain rule, on random tables and requests, and a few stories by hand.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn settings() -> impl Strategy<Value = MatchSettings> {
    let host = select(vec![
        "example.com",
        "a.example.com",
        "b.a.example.com",
        "*.example.com",
        "*.a.example.com",
        "*.com",
        "[::1]",
        "localhost",
    ])
    .prop_map(|written| HostPattern::parse(written).unwrap());
    let segment = select(vec!["", "a", "b", "api", "apix", "A", "%2F"]);
    let literal =
        proptest::collection::vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")));
    let literals = proptest::collection::vec(literal, 1..3);
    let path = prop_oneof![
        2 => Just(PathMatch::Any),
        3 => literals.clone().prop_map(|paths| PathMatch::exact(paths).unwrap()),
        4 => literals.prop_map(|paths| PathMatch::prefix(paths).unwrap()),
        2 => select(vec!["/a.*", "/(a|api)/?", ".*", "/[^/]+/b", "/a/b|/a", "/a/[^/]*", "/a//b.*", "/api/a/?", "/%2F/.*", "(?i)/API"])
            .prop_map(|source| PathMatch::Regex(Pattern::new(source).unwrap())),
    ];
    let value = prop_oneof![
        select(vec!["", "x", "xy"]).prop_map(|v| ValueMatch::Exact(v.into())),
        select(vec!["x", "y"]).prop_map(|v| ValueMatch::Prefix(v.into())),
        select(vec!["x", "y"]).prop_map(|v| ValueMatch::Suffix(v.into())),
        Just(ValueMatch::Contains("x".into())),
        Just(ValueMatch::Regex(Pattern::new("x|y").unwrap())),
        any::<bool>().prop_map(ValueMatch::Present),
    ];
    (
        proptest::collection::vec(host, 0..3),
        path,
        proptest::collection::vec(select(vec![Method::GET, Method::POST]), 0..2),
        proptest::collection::vec((Just(http::HeaderName::from_static("x-h")), value.clone()), 0..2),
        proptest::collection::vec((Just("q".to_owned()), value), 0..2),
        proptest::option::weighted(
            0.1,
            Just(GrpcMatch {
                service: "a".into(),
                methods: vec!["b".into()],
            }),
        ),
        proptest::option::weighted(0.2, Just("10.0.0.0/8".parse().unwrap())),
    )
        .prop_map(
            |(hosts, path, methods, headers, query, grpc, net)| MatchSettings {
                hosts,
                path,
                methods,
                headers,
                query,
                grpc,
                client_ip: net.into_iter().collect(),
            },
        )
}

#[derive(Clone, Debug)]
struct Asked {
    host: String,
    path: String,
    query: Option<String>,
    method: Method,
    headers: HeaderMap,
    client_ip: IpAddr,
}

impl Asked {
    fn view(&self) -> RequestView<'_> {
        RequestView {
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            method: &self.method,
            headers: &self.headers,
            client_ip: self.client_ip,
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let host = (
        select(vec![
            "example.com",
            "EXAMPLE.com",
            "a.example.com",
            "x.a.Example.COM",
            "b.a.example.com",
            "y.x.b.a.example.com",
            "com",
            "x.com",
            "",
            ".",
            "..",
            ".example.com",
            "[::1]",
            "localhost",
            "example.comx",
            "aexample.com",
        ]),
        select(vec!["", ".", ":80", ".:443", ":"]),
    )
        .prop_map(|(name, tail)| format!("{name}{tail}"));
    let segment = select(vec!["", "a", "b", "api", "apix", "A", "API", "%2F", "x"]);
    let path = prop_oneof![
        9 => proptest::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/"))),
        1 => select(vec!["*".to_owned(), String::new(), "a/b".to_owned()]),
    ];
    (
        host,
        path,
        proptest::option::of(select(vec![
            "",
            "q",
            "q=x",
            "q=%78y&q=z",
            "p=1&q=+x",
            "Q=x",
            "&&q=y",
            "q=x=y",
        ])),
        select(vec![Method::GET, Method::POST, Method::HEAD]),
        proptest::collection::vec(select(vec!["", "x", "xy", "zx", "y"]), 0..3),
        any::<bool>(),
        select(vec!["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1"]),
    )
        .prop_map(|(host, path, query, method, values, grpc, ip)| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-h", http::HeaderValue::from_static(value));
            }
            if grpc {
                headers.insert(
                    "content-type",
                    http::HeaderValue::from_static("application/grpc+proto"),
                );
            }
            Asked {
                host,
                path,
                query: query.map(str::to_owned),
                method,
                headers,
                client_ip: ip.parse().unwrap(),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_compiled_table_answers_what_a_scan_answers(
        routes in proptest::collection::vec(settings(), 0..90),
        requests in proptest::collection::vec(asked(), 1..20),
    ) {
        let table = Table::new(routes.clone()).unwrap();
        for asked in &requests {
            let view = asked.view();
            let naive = routes.iter().position(|route| route.mismatch(&view).is_none());
            prop_assert_eq!(table.find(&view), naive, "{:?}", asked);
        }
    }

    #[test]
    fn no_host_and_no_path_can_disturb_it(host in ".{0,300}", path in ".{0,80}", query in ".{0,40}") {
        let star = MatchSettings { hosts: vec![HostPattern::parse("*.example.com").unwrap()], ..Default::default() };
        let api = MatchSettings { path: PathMatch::prefix(["/api"]).unwrap(), ..Default::default() };
        let asks = MatchSettings { query: vec![("q".into(), ValueMatch::Present(true))], ..Default::default() };
        let routes = vec![star, api, asks];
        let table = Table::new(routes.clone()).unwrap();
        let headers = HeaderMap::new();
        let view = RequestView {
            host: &host, path: &path, query: Some(&query), method: &Method::GET, headers: &headers,
            client_ip: [127, 0, 0, 1].into(),
        };
        prop_assert_eq!(table.find(&view), routes.iter().position(|route| route.mismatch(&view).is_none()));
    }
}

fn get<'a>(host: &'a str, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        host,
        path,
        query: None,
        method: &Method::GET,
        headers,
        client_ip: [127, 0, 0, 1].into(),
    }
}

#[test]
fn the_first_route_wins_even_when_a_later_one_is_more_precise() {
    let table = Table::new(vec![
        MatchSettings {
            path: PathMatch::prefix(["/"]).unwrap(),
            ..Default::default()
        },
        MatchSettings {
            path: PathMatch::exact(["/exact"]).unwrap(),
            ..Default::default()
        },
    ])
    .unwrap();
    assert_eq!(table.find(&get("h", "/exact", &HeaderMap::new())), Some(0));
    assert_eq!(table.len(), 2);
    assert!(!table.is_empty());
}

#[test]
fn an_empty_table_matches_nothing() {
    let table = Table::new(Vec::new()).unwrap();
    assert!(table.is_empty());
    assert_eq!(table.find(&get("h", "/", &HeaderMap::new())), None);
}

#[test]
fn the_nearest_routes_come_with_what_they_lack() {
    let host = |name: &str| vec![HostPattern::parse(name).unwrap()];
    let routes = vec![
        MatchSettings {
            hosts: host("other.example"),
            path: PathMatch::prefix(["/x"]).unwrap(),
            ..Default::default()
        },
        MatchSettings {
            hosts: host("shop.example"),
            methods: vec![Method::PUT, Method::POST],
            ..Default::default()
        },
        MatchSettings {
            hosts: host("*.shop.example"),
            ..Default::default()
        },
    ];
    let table = Table::new(routes.clone()).unwrap();
    let headers = HeaderMap::new();
    let view = get("shop.example", "/orders", &headers);
    assert_eq!(table.find(&view), None);
    let near = table.nearest(&view, 3);
    assert_eq!(near.iter().map(|miss| miss.index).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(near[0].failing, [Mismatch::Method]);
    assert_eq!(near[2].failing, [Mismatch::Host, Mismatch::Path]);
    assert_eq!(
        routes[1].describe(&Mismatch::Method, &view),
        "method is GET, not PUT or POST"
    );
    assert_eq!(
        routes[2].describe(&Mismatch::Host, &view),
        "host is \"shop.example\", not *.shop.example"
    );
    assert_eq!(
        routes[0].describe(&Mismatch::Path, &view),
        "path is /orders, not path_prefix /x"
    );
    assert_eq!(table.mismatch(2, &view), Some(Mismatch::Host));
}

#[test]
fn thousands_of_expressions_are_one_automaton() {
    let routes: Vec<MatchSettings> = (0..500)
        .map(|n| MatchSettings {
            path: PathMatch::Regex(Pattern::new(&format!("/r{n}/[0-9]+")).unwrap()),
            ..Default::default()
        })
        .collect();
    let table = Table::new(routes).unwrap();
    let headers = HeaderMap::new();
    assert_eq!(table.find(&get("h", "/r499/12", &headers)), Some(499));
    assert_eq!(table.find(&get("h", "/r499/x", &headers)), None);
}
