//! Routes: what matches, in which order, and what is done: other clusters, rewrites, redirects, answers of our own, edits,
//! weights, mirrors.

use std::collections::BTreeMap;

use crate::support::client::{Client, ask, get};
use crate::support::h2::{H2, uri};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

const ONE_WORKER: &str = "runtime: { worker_threads: 1, drain: { min: 1ms, max: 1s } }\n";

/// Clusters named as their upstreams answer.
fn clusters(upstreams: &[(&str, &Upstream)]) -> String {
    let mut text = "clusters:\n".to_owned();
    for (name, upstream) in upstreams {
        text.push_str(&format!("  {name}:\n    endpoints: [{}]\n", upstream.address()));
    }
    text
}

#[tokio::test]
async fn the_first_route_that_matches_wins() {
    let (a, b, c) = (Upstream::named("a"), Upstream::named("b"), Upstream::named("c"));
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n\
         \x20 - match: {{ host: \"*.shop.example\", path_prefix: /api }}\n    cluster: a\n\
         \x20 - match: {{ path_prefix: /api, method: [GET, HEAD] }}\n    cluster: b\n\
         \x20 - match: {{ path: /exact }}\n    cluster: c\n\
         \x20 - match: {{ path_regex: \"/v[0-9]+/.*\" }}\n    cluster: a\n\
         \x20 - match: {{ headers: {{ x-canary: \"true\" }} }}\n    cluster: b\n\
         \x20 - match: {{ query: {{ debug: {{ present: true }} }} }}\n    cluster: c\n\
         \x20 - match: {{ client_ip: 127.0.0.0/8, path: /local }}\n    cluster: a\n{}",
        clusters(&[("a", &a), ("b", &b), ("c", &c)])
    );
    let proxy = proxy(&config).await;
    let rows = [
        ("GET", "/api/x", "host: eu.shop.example:8080\r\n", Some("a")),
        ("GET", "/api/x", "host: shop.example\r\n", Some("b")),
        ("HEAD", "/apix", "", None),
        ("GET", "/api", "", Some("b")),
        ("POST", "/api", "", None),
        ("GET", "/exact", "", Some("c")),
        ("GET", "/exact/", "", None),
        ("GET", "/v2/things", "", Some("a")),
        ("GET", "/vx/things", "", None),
        ("GET", "/other", "X-Canary: true\r\n", Some("b")),
        ("GET", "/other", "x-canary: false\r\n", None),
        ("GET", "/other?a=1&debug", "", Some("c")),
        ("GET", "/local", "", Some("a")),
        // Other spellings of a path are that path.
        ("GET", "/x/../api/%78", "", Some("b")),
    ];
    for (method, target, fields, expected) in rows {
        let answer = ask(proxy.web(), method, target, fields, b"").await;
        match expected {
            Some(name) => assert_eq!(answer.text(), name, "{method} {target} {fields}"),
            None => assert_eq!(answer.status, 404, "{method} {target} {fields}"),
        }
    }
}

#[tokio::test]
async fn routes_belong_to_listeners() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\n  inside: 127.0.0.1:0\nroutes:\n  - listeners: inside\n    cluster: b\n  - listeners: web\n    \
         cluster: a\n{}",
        clusters(&[("a", &a), ("b", &b)])
    );
    let proxy = proxy(&config).await;
    assert_eq!(get(proxy.web(), "/").await.text(), "a");
    assert_eq!(get(proxy.listener("inside"), "/").await.text(), "b");
}

#[tokio::test]
async fn a_redirect_keeps_what_it_does_not_name() {
    let config = "listeners:\n  web: 127.0.0.1:0\nroutes:\n\
         \x20 - match: { path_prefix: /old }\n    redirect: { path_prefix: /new, status: 301 }\n\
         \x20 - redirect: { scheme: https, host: shop.example }\n";
    let proxy = proxy(config).await;
    let answer = ask(proxy.web(), "GET", "/old/a?b=c", "host: x.example\r\n", b"").await;
    assert_eq!(answer.status, 301);
    assert!(
        answer
            .fields
            .get("location")
            .expect("a place")
            .ends_with("/new/a?b=c"),
        "{answer:?}"
    );
    let answer = ask(proxy.web(), "POST", "/a?b=c", "", b"x").await;
    assert_eq!(
        (answer.status, answer.fields.get("location")),
        (308, Some("https://shop.example/a?b=c"))
    );
}

#[tokio::test]
async fn a_client_that_names_no_host_is_sent_to_none() {
    let upstream = Upstream::echo();
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n\
         \x20 - match: {{ path_prefix: /path }}\n    redirect: {{ path: \"/{{host}}{{path}}\" }}\n\
         \x20 - match: {{ path_prefix: /secure }}\n    redirect: {{ scheme: https }}\n\
         \x20 - cluster: app\n    rewrite: {{ host: \"{{host}}\" }}\n{}",
        clusters(&[("app", &upstream)])
    );
    let proxy = proxy(&config).await;
    let ask = async |target: &str| {
        let mut client = Client::connect(proxy.web()).await;
        client.send(format!("GET {target} HTTP/1.0\r\n\r\n")).await;
        client.answer().await
    };
    // Two slashes would make a host of the path.
    let answer = ask("/path/a").await;
    assert_eq!(
        (answer.status, answer.fields.get("location")),
        (308, Some("/path/a"))
    );
    // The same path again would be asked for ever.
    ask("/secure/a").await.is_refusal(400, "client_protocol");
    ask("/").await;
    let own = upstream.address().to_string();
    assert_eq!(upstream.only().fields.all("host"), [own.as_str()]);
}

#[tokio::test]
async fn a_direct_response_is_ours() {
    let config = "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: { path: /empty }\n    direct_response: { status: 200 }\n  - direct_response:\n      status: 418\n      body: \"short and stout\\n\"\n      \
                  headers: { x-pot: \"{host}\" }\n";
    let proxy = proxy(config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (418, "short and stout\n")
        );
        assert_eq!(answer.fields.get("x-pot"), Some("test.example"));
        // It was asked for, so it is no refusal.
        assert_eq!(answer.rejected(), None);
    }
    let answer = head(proxy.web()).await;
    assert_eq!((answer.status, answer.body.len()), (418, 0));
    // What GET would have got (RFC 9110 §9.3.2).
    assert_eq!(answer.fields.get("content-length"), Some("16"));
    let mut over_http_2 = H2::connect(proxy.web()).await;
    for (path, length) in [("/", "16"), ("/empty", "0")] {
        let answer = ask(proxy.web(), "HEAD", path, "", b"").await;
        assert_eq!((path, answer.fields.get("content-length")), (path, Some(length)));
        let request = http::Request::head(uri(path)).body(&b""[..]).expect("a request");
        let answer = over_http_2.ask(request).await;
        assert_eq!((path, answer.fields.get("content-length")), (path, Some(length)));
    }
}

#[tokio::test]
async fn a_rewrite_changes_what_the_endpoint_sees() {
    let upstream = Upstream::echo();
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n\
         \x20 - match: {{ path_prefix: /api }}\n    cluster: app\n    rewrite: {{ path_prefix: / }}\n\
         \x20 - match: {{ path: /one }}\n    cluster: app\n    rewrite: {{ path: /two, host: inside.example }}\n\
         \x20 - match: {{ path_prefix: /user }}\n    cluster: app\n    rewrite:\n      regex: {{ pattern: \"/user/([0-9]+)(.*)\", substitution: \"/u$2/$1\" }}\n{}",
        clusters(&[("app", &upstream)])
    );
    let proxy = proxy(&config).await;
    for (target, seen) in [
        ("/api/a?b", "/a?b"),
        ("/api", "/"),
        ("/one?x=1", "/two?x=1"),
        ("/user/42/posts?q", "/u/posts/42?q"),
    ] {
        assert_eq!(get(proxy.web(), target).await.json()["target"], seen, "{target}");
    }
    assert_eq!(
        get(proxy.web(), "/one").await.echoed("host").as_deref(),
        Some("inside.example")
    );
}

#[tokio::test]
async fn header_edits_apply_in_both_directions() {
    let upstream = Upstream::each(|mut peer| async move {
        while let Some(request) = peer.request().await? {
            let body = request.json();
            peer.answer(
                &request,
                200,
                "server: secret\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n",
                body.as_bytes(),
            )
            .await?;
        }
        Ok(())
    });
    let route = "    request_headers:\n      set: { x-client: \"{client_ip}\", x-route: \"{route}\" }\n      add: { x-many: two }\n      remove: x-debug\n    \
                 response_headers:\n      set: { x-served-by: \"{cluster}\" }\n      remove: server\n";
    let proxy = proxy(&with(route, "", &[upstream.address()])).await;
    let answer = ask(
        proxy.web(),
        "GET",
        "/",
        "x-debug: 1\r\nx-many: one\r\nx-client: forged\r\n",
        b"",
    )
    .await;
    assert_eq!(answer.echoed("x-client").as_deref(), Some("127.0.0.1"));
    assert_eq!(answer.echoed("x-debug"), None);
    assert_eq!(
        crate::support::client::echoed(&answer.json())
            .all("x-many")
            .join(","),
        "one,two"
    );
    assert_eq!(answer.fields.get("x-served-by"), Some("app"));
    assert!(!answer.fields.has("server"));
    assert_eq!(answer.fields.all("set-cookie"), ["a=1", "b=2"]);
}

async fn head(address: std::net::SocketAddr) -> crate::support::client::Answer {
    let mut client = Client::connect(address).await;
    client
        .send(crate::support::client::request(
            "HEAD",
            "/",
            "connection: close\r\n",
            b"",
        ))
        .await;
    let answer = client.answer_to("HEAD").await;
    client.is_closed().await;
    answer
}

async fn spread(proxy: &Proxy, count: usize, fields: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let mut client = Client::connect(proxy.web()).await;
    let mut spread = BTreeMap::new();
    for number in 0..count {
        let answer = client.ask("GET", "/", &fields(number), b"").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        *spread.entry(answer.text()).or_default() += 1;
    }
    spread
}

#[tokio::test]
async fn weights_split_and_a_key_keeps_to_its_side() {
    let (blue, green) = (Upstream::named("blue"), Upstream::named("green"));
    let config = |key: &str| {
        format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - weighted_clusters: {{ blue: 80, green: 20 }}\n{key}{}",
            clusters(&[("blue", &blue), ("green", &green)])
        )
    };
    let random = proxy(&config("")).await;
    let shares = spread(&random, 500, |_| String::new()).await;
    // Six standard deviations around a hundred.
    assert!((46..=154).contains(&shares["green"]), "{shares:?}");

    let keyed = proxy(&config("    split_key: header:x-user\n")).await;
    for user in 0..10 {
        let sides = spread(&keyed, 5, |_| format!("x-user: {user}\r\n")).await;
        assert_eq!(sides.len(), 1, "user {user}: {sides:?}");
    }
    let sides = spread(&keyed, 200, |number| format!("x-user: {number}\r\n")).await;
    assert_eq!(sides.len(), 2, "{sides:?}");
}

#[tokio::test]
async fn every_policy_of_balancing_reaches_every_endpoint() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    for policy in ["round_robin", "least_request", "random"] {
        let config = with(
            "",
            &format!("    load_balancing: {policy}\n    slow_start: off\n"),
            &addresses,
        );
        let proxy = proxy(&format!("{ONE_WORKER}{config}")).await;
        let shares = spread(&proxy, 90, |_| String::new()).await;
        if policy == "round_robin" {
            assert!(shares.values().all(|share| *share == 30), "{shares:?}");
        }
        let mut reached: std::collections::BTreeSet<String> = shares.into_keys().collect();
        // One that is believed to be slower is asked now and then.
        while reached.len() < 3 {
            reached.extend(
                soon("every endpoint", spread(&proxy, 10, |_| String::new()))
                    .await
                    .into_keys(),
            );
        }
    }
    for policy in ["ring_hash", "maglev"] {
        let lines = format!("    load_balancing: {{ policy: {policy}, hash_on: header:x-user }}\n");
        let proxy = proxy(&with("", &lines, &addresses)).await;
        for user in 0..10 {
            let shares = spread(&proxy, 3, |_| format!("x-user: {user}\r\n")).await;
            assert_eq!(shares.len(), 1, "{policy}: {shares:?}");
        }
        let shares = spread(&proxy, 100, |number| format!("x-user: {number}\r\n")).await;
        assert_eq!(shares.len(), 3, "{policy}: {shares:?}");
    }
}

#[tokio::test]
async fn the_default_policy_reaches_every_endpoint() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let proxy = proxy(&format!("{ONE_WORKER}{}", with("", "", &addresses))).await;
    let mut reached = std::collections::BTreeSet::new();
    soon("every endpoint", async {
        while reached.len() < 3 {
            reached.extend(spread(&proxy, 10, |_| String::new()).await.into_keys());
        }
    })
    .await;
}

#[tokio::test]
async fn endpoint_weights_count() {
    let (light, heavy) = (Upstream::named("light"), Upstream::named("heavy"));
    let config = format!(
        "runtime: {{ worker_threads: 1, drain: {{ min: 1ms, max: 1s }} }}\nlisteners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\nclusters:\n  app:\n    \
         load_balancing: round_robin\n    slow_start: off\n    endpoints:\n      - {{ address: {}, weight: 1 }}\n      - {{ address: {}, weight: 3 }}\n",
        light.address(),
        heavy.address()
    );
    let proxy = proxy(&config).await;
    let shares = spread(&proxy, 80, |_| String::new()).await;
    assert_eq!((shares["light"], shares["heavy"]), (20, 60));
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_changes_nothing() {
    let (app, shadow) = (Upstream::named("app"), Upstream::answers(500, "shadow"));
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n    mirror: {{ cluster: shadow }}\n{}",
        clusters(&[("app", &app), ("shadow", &shadow)])
    );
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..5 {
        let answer = client.ask("POST", "/copied", "x-a: 1\r\n", b"content").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "app"));
    }
    eventually("the copies arrive", || shadow.requests() == 5).await;
    let copy = shadow.last();
    assert_eq!(
        (copy.method.as_str(), copy.target.as_str(), &*copy.body),
        ("POST", "/copied", &b"content"[..])
    );
    assert_eq!(app.requests(), 5);
}

#[tokio::test]
async fn a_dead_mirror_harms_nobody() {
    let (app, dead) = (Upstream::named("app"), Upstream::refuses());
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n    mirror: {{ cluster: shadow }}\n{}  shadow:\n    endpoints: [{}]\n",
        clusters(&[("app", &app)]),
        dead.address()
    );
    let proxy = proxy(&config).await;
    let shares = spread(&proxy, 20, |_| String::new()).await;
    assert_eq!(shares["app"], 20);
}

#[tokio::test]
async fn settings_come_from_defaults_then_policies_then_the_route() {
    let upstream = Upstream::stalls();
    // What is not overridden waits longer than the test does.
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\ndefaults:\n  route: {{ timeout: 300ms, retry: 2 }}\npolicies:\n  once: {{ retry: off }}\n  \
         slow: {{ timeout: 10m }}\nroutes:\n\
         \x20 - match: {{ path: /defaults }}\n    cluster: app\n\
         \x20 - match: {{ path: /once }}\n    cluster: app\n    policy: once\n\
         \x20 - match: {{ path: /own }}\n    cluster: app\n    policy: slow\n    timeout: 301ms\n\
         \x20 - match: {{ path: /slow }}\n    cluster: app\n    policy: slow\n{}",
        clusters(&[("app", &upstream)])
    );
    let proxy = proxy(&config).await;
    let attempts = |path: &'static str| {
        let proxy = &proxy;
        async move {
            get(proxy.web(), path).await.is_refusal(504, "upstream_timeout");
            let line = proxy.logged(|line| line["path"] == path).await;
            line["attempts"].as_u64().expect("attempts")
        }
    };
    assert_eq!(attempts("/once").await, 1);
    assert!(attempts("/defaults").await >= 1);
    attempts("/own").await;
    let patient = tokio::spawn(async move { get(proxy.web(), "/slow").await.status });
    // It has waited longer than the default, and still does.
    eventually("it is asked", || {
        upstream
            .received()
            .iter()
            .any(|received| received.target == "/slow")
    })
    .await;
    let waited = tokio::time::timeout(std::time::Duration::from_millis(900), patient).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn calls_of_grpc_are_told_apart() {
    let (one, rest) = (Upstream::named("one"), Upstream::named("rest"));
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: {{ grpc: {{ service: shop.v1.Cart, method: Add }} }}\n    cluster: one\n  - cluster: rest\n{}",
        clusters(&[("one", &one), ("rest", &rest)])
    );
    let spoken = crate::support::h2::H2Upstream::each(|request, mut respond| async move {
        let head = http::Response::builder()
            .header("x-path", request.uri().path())
            .body(())
            .expect("a head");
        let mut send = respond.send_response(head, false).expect("a stream");
        send.send_data(bytes::Bytes::from_static(b"one"), true)
            .expect("a stream");
    });
    let config = config.replace(
        &format!("endpoints: [{}]", one.address()),
        &format!("protocol: http2\n    endpoints: [{}]", spoken.address()),
    );
    let proxy = proxy(&config).await;
    let grpc = "content-type: application/grpc\r\n";
    for (target, fields, expected) in [
        ("/shop.v1.Cart/Add", grpc, "one"),
        (
            "/shop.v1.Cart/Add",
            "content-type: application/grpc+proto\r\n",
            "one",
        ),
        ("/shop.v1.Cart/Add", "content-type: application/json\r\n", "rest"),
        ("/shop.v1.Cart/Remove", grpc, "rest"),
        ("/shop.v1.CartX/Add", grpc, "rest"),
    ] {
        let answer = ask(proxy.web(), "POST", target, fields, b"").await;
        assert_eq!(answer.text(), expected, "{target} {fields}");
    }
}

#[tokio::test]
async fn values_are_compared_in_every_way() {
    let (yes, no) = (Upstream::named("yes"), Upstream::named("no"));
    for (condition, matching, other) in [
        ("{ exact: abc }", "abc", "abcd"),
        ("{ prefix: ab }", "abc", "cab"),
        ("{ suffix: bc }", "abc", "bca"),
        ("{ contains: b }", "abc", "acc"),
        ("{ regex: \"[a-c]+\" }", "abc", "abcd"),
    ] {
        let config = format!(
            "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: {{ headers: {{ x-v: {condition} }} }}\n    cluster: yes\n  - match: {{ query: {{ v: {condition} }} }}\n    cluster: yes\n  - cluster: no\n{}",
            clusters(&[("yes", &yes), ("no", &no)])
        )
        .replace("cluster: no", "cluster: \"no\"")
        .replace("  no:", "  \"no\":")
        .replace("cluster: yes", "cluster: \"yes\"")
        .replace("  yes:", "  \"yes\":");
        let proxy = proxy(&config).await;
        for (value, expected) in [(matching, "yes"), (other, "no")] {
            let by_header = ask(proxy.web(), "GET", "/", &format!("x-v: {value}\r\n"), b"").await;
            assert_eq!(by_header.text(), expected, "{condition} {value}");
            let by_query = get(proxy.web(), &format!("/?v={value}")).await;
            assert_eq!(by_query.text(), expected, "{condition} {value}");
        }
    }
}
