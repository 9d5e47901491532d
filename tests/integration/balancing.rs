//! Who gets a request: splits and hashes by every kind of key, bounded loads, load that is seen, connections and
//! requests that are limited, mirrors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::client::{Client, ask, get};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

const ONE_WORKER: &str = "runtime: { worker_threads: 1, drain: { min: 1ms, max: 1s } }\n";

/// Two clusters behind one route, by halves and by this key.
fn split(key: &str, blue: &Upstream, green: &Upstream) -> String {
    format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - weighted_clusters: {{ blue: 50, green: 50 }}\n    split_key: {key}\n\
         clusters:\n  blue:\n    endpoints: [{}]\n  green:\n    endpoints: [{}]\n",
        blue.address(),
        green.address()
    )
}

/// Requests that differ in nothing but their key.
struct Keyed {
    key: &'static str,
    /// Target and field lines of somebody.
    request: fn(usize) -> (String, String),
}

const KEYS: [Keyed; 6] = [
    Keyed {
        key: "header:x-user",
        request: |who| ("/".to_owned(), format!("x-user: {who}\r\n")),
    },
    Keyed {
        key: "cookie:session",
        request: |who| ("/".to_owned(), format!("cookie: a=1; session={who}; b=2\r\n")),
    },
    Keyed {
        key: "query:user",
        request: |who| (format!("/?a=1&user={who}"), String::new()),
    },
    Keyed {
        key: "path",
        request: |who| (format!("/{who}"), String::new()),
    },
    Keyed {
        key: "host",
        request: |who| ("/".to_owned(), format!("host: h{who}.example\r\n")),
    },
    // The first that a request has.
    Keyed {
        key: "[header:x-user, path]",
        request: |who| match who % 2 {
            0 => ("/".to_owned(), format!("x-user: {who}\r\n")),
            _ => (format!("/{who}"), String::new()),
        },
    },
];

/// Who answers whom: each of these is asked for several times, on connections of their own, by turns.
async fn homes(proxy: &Proxy, keyed: &Keyed, people: usize) -> Vec<String> {
    let mut homes = vec![String::new(); people];
    for turn in 0..3 {
        let mut client = Client::connect(proxy.web()).await;
        for (who, home) in homes.iter_mut().enumerate() {
            let (target, fields) = (keyed.request)(who);
            let answer = client.ask("GET", &target, &fields, b"").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if turn == 0 {
                *home = answer.text();
            } else {
                assert_eq!(&answer.text(), home, "{} of {who} in turn {turn}", keyed.key);
            }
        }
    }
    homes
}

#[tokio::test]
async fn the_same_key_always_takes_the_same_side_of_a_split() {
    let (blue, green) = (Upstream::named("blue"), Upstream::named("green"));
    for keyed in &KEYS {
        let proxy = proxy(&split(keyed.key, &blue, &green)).await;
        let homes = homes(&proxy, keyed, 24).await;
        let sides: BTreeSet<&String> = homes.iter().collect();
        assert_eq!(sides.len(), 2, "{}: {homes:?}", keyed.key);
        // A reload that changes something else moves nobody.
        proxy
            .reload(
                &split(keyed.key, &blue, &green).replace("    split_key", "    timeout: 9s\n    split_key"),
            )
            .await;
        assert_eq!(self::homes(&proxy, keyed, 24).await, homes, "{}", keyed.key);
    }
}

#[tokio::test]
async fn the_client_address_is_a_key_as_trusted_proxies_tell_it() {
    let (blue, green) = (Upstream::named("blue"), Upstream::named("green"));
    let keyed = Keyed {
        key: "client_ip",
        request: |who| ("/".to_owned(), format!("x-forwarded-for: 203.0.113.{who}\r\n")),
    };
    let config = split(keyed.key, &blue, &green);
    let believing = config.replace(
        "  web: 127.0.0.1:0\n",
        "  web: { address: 127.0.0.1:0, trusted_proxies: 127.0.0.1 }\n",
    );
    let homes_of = |config: String| {
        let keyed = &keyed;
        async move {
            let proxy = proxy(&config).await;
            homes(&proxy, keyed, 24)
                .await
                .into_iter()
                .collect::<BTreeSet<_>>()
                .len()
        }
    };
    assert_eq!(homes_of(believing).await, 2);
    // What a stranger says about himself chooses nothing.
    assert_eq!(homes_of(config).await, 1);
}

#[tokio::test]
async fn hashing_policies_keep_every_kind_of_key_at_its_endpoint() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    for policy in ["ring_hash", "maglev"] {
        for keyed in &KEYS {
            let lines = format!(
                "    load_balancing: {{ policy: {policy}, hash_on: {} }}\n    slow_start: off\n",
                keyed.key
            );
            let all = proxy(&with("", &lines, &addresses)).await;
            let homes = homes(&all, keyed, 24).await;
            assert!(
                homes.iter().collect::<BTreeSet<_>>().len() >= 2,
                "{policy} {}: {homes:?}",
                keyed.key
            );
        }
    }
}

#[tokio::test]
async fn hashing_policies_move_only_the_keys_of_an_endpoint_that_leaves() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let keyed = &KEYS[0];
    for policy in ["ring_hash", "maglev"] {
        let config = |count: usize| {
            let lines = format!(
                "    load_balancing: {{ policy: {policy}, hash_on: {} }}\n    slow_start: off\n",
                keyed.key
            );
            with("", &lines, &addresses[..count])
        };
        let proxy = proxy(&config(3)).await;
        let before = homes(&proxy, keyed, 60).await;
        proxy.reload(&config(2)).await;
        let after = homes(&proxy, keyed, 60).await;
        let stayed = before.iter().zip(&after).filter(|(old, _)| *old != "c");
        let (mut kept, mut moved) = (0, 0);
        for (old, new) in stayed {
            if old == new {
                kept += 1;
            } else {
                moved += 1;
            }
        }
        // Maglev moves a few, a ring none.
        assert!(moved * 10 <= kept, "{policy}: {moved} moved, {kept} stayed");
    }
}

/// Answers with its name once it is let.
fn holding(name: &'static str, gate: &watch::Receiver<bool>) -> Upstream {
    let gate = gate.clone();
    Upstream::each(move |mut peer| {
        let mut gate = gate.clone();
        async move {
            while let Some(request) = peer.request().await? {
                // Fails only when the test is over.
                drop(gate.wait_for(|open| *open).await);
                peer.answer(&request, 200, "", name.as_bytes()).await?;
            }
            Ok(())
        }
    })
}

/// Sends so many requests at once, one after the other has arrived, and tells how many each endpoint holds.
async fn pile_up(
    proxy: &Proxy,
    upstreams: &[Upstream],
    count: usize,
    fields: &str,
) -> (Vec<usize>, JoinSet<u16>) {
    let mut tasks = JoinSet::new();
    for number in 1..=count {
        let (web, fields) = (proxy.web(), fields.to_owned());
        tasks.spawn(async move { ask(web, "GET", "/", &fields, b"").await.status });
        eventually("it arrives", || {
            upstreams.iter().map(Upstream::requests).sum::<usize>() == number
        })
        .await;
    }
    (upstreams.iter().map(Upstream::requests).collect(), tasks)
}

#[tokio::test]
async fn one_popular_key_does_not_drown_its_endpoint() {
    for policy in ["ring_hash", "maglev"] {
        let (open, gate) = watch::channel(false);
        let upstreams = [holding("a", &gate), holding("b", &gate), holding("c", &gate)];
        let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
        let lines = format!(
            "    load_balancing: {{ policy: {policy}, hash_on: header:x-user }}\n    slow_start: off\n"
        );
        let proxy = proxy(&with("", &lines, &addresses)).await;
        let (held, mut tasks) = pile_up(&proxy, &upstreams, 24, "x-user: everybody\r\n").await;
        // The bound is 1.25 times the share: ceil(1.25 * 24 / 3).
        assert!(held.iter().all(|held| *held <= 10), "{policy}: {held:?}");
        assert!(held.iter().any(|held| *held >= 9), "{policy}: {held:?}");
        open.send_replace(true);
        while let Some(status) = soon("an answer", tasks.join_next()).await {
            assert_eq!(status.expect("no panic"), 200);
        }
    }
}

#[tokio::test]
async fn load_that_is_seen_is_levelled() {
    for policy in ["least_request", "peak_ewma"] {
        let (open, gate) = watch::channel(false);
        let upstreams = [holding("a", &gate), holding("b", &gate), holding("c", &gate)];
        let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
        let lines = format!("    load_balancing: {policy}\n    slow_start: off\n");
        let proxy = proxy(&with("", &lines, &addresses)).await;
        let (held, mut tasks) = pile_up(&proxy, &upstreams, 30, "").await;
        // Two are compared each time; the busiest of three never wins that, so nobody is far ahead.
        assert!(
            held.iter().all(|held| (5..=15).contains(held)),
            "{policy}: {held:?}"
        );
        open.send_replace(true);
        while let Some(status) = soon("an answer", tasks.join_next()).await {
            assert_eq!(status.expect("no panic"), 200);
        }
    }
}

#[tokio::test]
async fn requests_above_a_limit_are_refused_and_those_below_it_are_not() {
    for (route, cluster) in [
        ("    max_in_flight: 2\n", ""),
        ("", "    limits: { max_in_flight: 2, max_queue: 0 }\n"),
        (
            "",
            "    limits: { max_in_flight_per_endpoint: 2, max_queue: 0 }\n",
        ),
        ("", "    connection_pool: { max_connections_per_endpoint: 2 }\n"),
    ] {
        let (open, gate) = watch::channel(false);
        let upstreams = [holding("a", &gate)];
        let config = with(
            &format!("    retry: off\n{route}"),
            cluster,
            &[upstreams[0].address()],
        );
        // Idle connections belong to a worker, and one alone finds them again.
        let proxy = proxy(&(config + ONE_WORKER)).await;
        let (_, mut tasks) = pile_up(&proxy, &upstreams, 2, "").await;
        get(proxy.web(), "/").await.is_refusal(503, "overflow");
        open.send_replace(true);
        while let Some(status) = soon("an answer", tasks.join_next()).await {
            assert_eq!(status.expect("no panic"), 200, "{route}{cluster}");
        }
        // The places are given back with the answers.
        eventually_async("there is room again", || async {
            get(proxy.web(), "/").await.status == 200
        })
        .await;
        assert_eq!(upstreams[0].requests(), 3, "{route}{cluster}");
    }
}

/// The limit counts over all workers, an idle connection serves one of them only.
#[tokio::test]
async fn a_worker_is_not_starved_by_the_idle_connections_of_another() {
    let upstream = Upstream::answers(200, "ok");
    let config = format!(
        "runtime: {{ worker_threads: 2 }}\nlisteners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n    retry: off\nclusters:\n  \
         app:\n    endpoints: [{}]\n    connection_pool: {{ max_connections_per_endpoint: 1 }}\n    connect_timeout: 10s\n",
        upstream.address()
    );
    let proxy = proxy(&config).await;
    for _ in 0..12 {
        // A new connection each time: about every second one comes to the other worker.
        assert_eq!(get(proxy.web(), "/").await.status, 200);
    }
    assert!(upstream.open() <= 1);
}

#[tokio::test]
async fn an_upstream_connection_serves_so_many_requests() {
    let upstream = Upstream::answers(200, "ok");
    let lines = "    connection_pool: { max_requests_per_connection: 3 }\n";
    let proxy = proxy(&with("", lines, &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..9 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(upstream.connections(), 3);
    eventually("those that are used up are closed", || upstream.open() <= 1).await;
}

#[tokio::test]
async fn idle_upstream_connections_are_closed() {
    let upstream = Upstream::answers(200, "ok");
    let lines = "    connection_pool: { idle_timeout: 200ms }\n";
    let proxy = proxy(&with("", lines, &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    assert_eq!(client.get("/").await.status, 200);
    eventually("it is closed", || upstream.open() == 0).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_mirror_that_stalls_delays_nobody() {
    let (app, shadow) = (Upstream::named("app"), Upstream::stalls());
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n    mirror: {{ cluster: shadow }}\nclusters:\n  app:\n    \
         endpoints: [{}]\n  shadow:\n    endpoints: [{}]\n",
        app.address(),
        shadow.address()
    );
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "app");
    }
    eventually("copies arrive", || shadow.requests() > 0).await;
}

#[tokio::test]
async fn a_mirror_gets_its_share() {
    let (app, shadow) = (Upstream::named("app"), Upstream::named("shadow"));
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n    mirror: {{ cluster: shadow, percent: 20% }}\nclusters:\n  app:\n    \
         endpoints: [{}]\n  shadow:\n    endpoints: [{}]\n",
        app.address(),
        shadow.address()
    );
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    for _ in 0..500 {
        assert_eq!(client.get("/").await.text(), "app");
    }
    // Six standard deviations around a hundred.
    eventually("copies arrive", || shadow.requests() >= 46).await;
    assert!(shadow.requests() <= 154, "{}", shadow.requests());
}

#[tokio::test]
async fn every_worker_serves_its_share_of_connections() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&with("", "", &[upstream.address()])).await;
    // A thread gets its name when it first runs.
    eventually("both workers run", || switches(&proxy).len() == 2).await;
    let mut clients = Vec::new();
    // The kernel spreads by a hash, and a worker with clearly more hands over: with sixty-four both have some.
    for _ in 0..64 {
        let mut client = Client::connect(proxy.web()).await;
        assert_eq!(client.get("/").await.status, 200);
        clients.push(client);
    }
    let before = switches(&proxy);
    for client in &mut clients {
        assert_eq!(client.get("/").await.status, 200);
    }
    let after = switches(&proxy);
    let woken: Vec<u64> = after.iter().map(|(name, count)| count - before[name]).collect();
    // Each request wakes its worker for the client and for the upstream.
    assert!(woken.iter().all(|woken| *woken >= 16), "{woken:?}");
}

/// How often each worker has waited for something, by name.
fn switches(proxy: &Proxy) -> BTreeMap<String, u64> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("a process");
    threads
        .filter_map(|thread| {
            let path = thread.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?
                .trim()
                .parse()
                .ok()?;
            name.starts_with("worker-")
                .then(|| (name.trim().to_owned(), count))
        })
        .collect()
}

#[tokio::test]
async fn an_endpoint_that_only_listens_passes_a_tcp_check() {
    let (a, dead) = (Upstream::named("a"), Upstream::refuses());
    let lines = "    health_check: { tcp: true, interval: 50ms, timeout: 1s, unhealthy_threshold: 1 }\n    load_balancing: round_robin\n    slow_start: off\n";
    let proxy = proxy(&with("    retry: off\n", lines, &[a.address(), dead.address()])).await;
    let proxy = Arc::new(proxy);
    eventually_async("the dead one is left out", || {
        let proxy = Arc::clone(&proxy);
        async move {
            let mut client = Client::connect(proxy.web()).await;
            for _ in 0..6 {
                if client.get("/").await.status != 200 {
                    return false;
                }
            }
            true
        }
    })
    .await;
}
