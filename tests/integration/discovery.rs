//! Endpoints that come and go: from a file, over HTTP, from a name; and the last good answer where there is none.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::support::client::{Client, get};
use crate::support::dns::{NameServer, Says};
use crate::support::load::Load;
use crate::support::proxy::{Proxy, Start};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async};

fn config(discovery: &str) -> String {
    format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\nclusters:\n  app:\n    load_balancing: round_robin\n    \
         slow_start: off\n    discovery:\n{discovery}"
    )
}

/// Waits until only these answer.
async fn answered_by(proxy: &Proxy, names: &[&str]) {
    eventually_async(&format!("{names:?} answer"), || async {
        let mut client = Client::connect(proxy.web()).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let answer = client.get("/").await;
            if answer.status != 200 {
                return false;
            }
            seen.insert(answer.text());
        }
        seen.iter().map(String::as_str).eq(names.iter().copied())
    })
    .await;
}

#[tokio::test]
async fn a_file_of_endpoints_is_followed() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let start = Start::new(&config("      file: { path: endpoints.yaml }\n"))
        .file("endpoints.yaml", &format!("[\"{}\"]\n", a.address()));
    let proxy = start.start().await;
    answered_by(&proxy, &["a"]).await;
    let write = |text: &str| {
        let fresh = proxy.folder().join("endpoints.new");
        std::fs::write(&fresh, text).expect("a writable folder");
        std::fs::rename(fresh, proxy.folder().join("endpoints.yaml")).expect("a writable folder");
    };
    let load = Load::get(proxy.web(), 2);
    write(&format!(
        "- {}\n- address: {}\n  weight: 1\n",
        a.address(),
        b.address()
    ));
    answered_by(&proxy, &["a", "b"]).await;
    write(&format!("- {}\n", b.address()));
    answered_by(&proxy, &["b"]).await;
    // What cannot be read changes nothing.
    write("- [broken\n");
    load.more(50).await;
    answered_by(&proxy, &["b"]).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_list_over_http_is_followed() {
    let (a, b) = (Upstream::named("a"), Upstream::named("b"));
    let list = Arc::new(Mutex::new(format!("[\"{}\"]", a.address())));
    let served = Arc::clone(&list);
    let registry = Upstream::each(move |mut peer| {
        let served = Arc::clone(&served);
        async move {
            while let Some(request) = peer.request().await? {
                let body = served.lock().clone();
                let status = if body.is_empty() { 500 } else { 200 };
                peer.answer(
                    &request,
                    status,
                    "content-type: application/json\r\n",
                    body.as_bytes(),
                )
                .await?;
            }
            Ok(())
        }
    });
    let discovery = format!(
        "      http: {{ url: \"http://{}/endpoints\", interval: 100ms }}\n",
        registry.address()
    );
    let proxy = Start::new(&config(&discovery)).start().await;
    answered_by(&proxy, &["a"]).await;
    *list.lock() = format!("[\"{}\", \"{}\"]", a.address(), b.address());
    answered_by(&proxy, &["a", "b"]).await;
    // A registry that fails takes nothing away.
    list.lock().clear();
    let before = registry.requests();
    eventually("it is asked again", || registry.requests() > before + 1).await;
    answered_by(&proxy, &["a", "b"]).await;
}

#[tokio::test]
async fn a_name_that_changes_its_addresses_is_followed() {
    // One port on two addresses of the loopback network.
    let (first, second) = loop {
        let first = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = first.local_addr().expect("bound").port();
        if let Ok(second) = std::net::TcpListener::bind(("127.0.0.2", port)) {
            break (first, second);
        }
    };
    let port = first.local_addr().expect("bound").port();
    let serve = |socket, name: &'static str| {
        Upstream::on(socket, move |mut peer| async move {
            while let Some(request) = peer.request().await? {
                peer.answer(&request, 200, "", name.as_bytes()).await?;
            }
            Ok(())
        })
    };
    let (_a, _b) = (serve(first, "a"), serve(second, "b"));
    let start = Start::new(&config(&format!(
        "      dns: {{ name: \"app.test:{port}\", refresh: 1s }}\n"
    )))
    .file("hosts", "127.0.0.1 app.test\n")
    .with_etc("hosts");
    let proxy = start.start().await;
    // In place, because what the process sees is this very file.
    let write = |text: &str| std::fs::write(proxy.folder().join("hosts"), text).expect("a writable folder");
    answered_by(&proxy, &["a"]).await;
    let load = Load::get(proxy.web(), 2);
    write("127.0.0.1 app.test\n127.0.0.2 app.test\n");
    answered_by(&proxy, &["a", "b"]).await;
    write("127.0.0.2 app.test\n");
    answered_by(&proxy, &["b"]).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_cluster_without_members_says_so() {
    let start = Start::new(&config("      file: { path: endpoints.yaml }\n")).file("endpoints.yaml", "[]\n");
    let proxy = start.start().await;
    get(proxy.web(), "/").await.is_refusal(503, "no_endpoint");
}

/// Servers named after their place, on one port of several loopback addresses.
fn on_one_port<const N: usize>(places: [(&'static str, IpAddr); N]) -> (u16, Vec<Upstream>) {
    let sockets = loop {
        let first = std::net::TcpListener::bind((places[0].1, 0)).expect("a free port");
        let port = first.local_addr().expect("bound").port();
        let others: Result<Vec<_>, _> = places[1..]
            .iter()
            .map(|(_, ip)| std::net::TcpListener::bind((*ip, port)))
            .collect();
        if let Ok(others) = others {
            break std::iter::once(first).chain(others).collect::<Vec<_>>();
        }
    };
    let port = sockets[0].local_addr().expect("bound").port();
    let upstreams = sockets.into_iter().zip(places).map(|(socket, (name, _))| {
        Upstream::on(socket, move |mut peer| async move {
            while let Some(request) = peer.request().await? {
                peer.answer(&request, 200, "", name.as_bytes()).await?;
            }
            Ok(())
        })
    });
    (port, upstreams.collect())
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// A proxy that asks this name server, and nobody else.
async fn asking(server: &NameServer, discovery: &str) -> Proxy {
    Start::new(&config(discovery))
        .file("hosts", "127.0.0.1 localhost\n")
        .file("resolv.conf", &server.resolv_conf())
        .with_etc("hosts")
        .with_etc("resolv.conf")
        .start()
        .await
}

fn left_out() {
    eprintln!("left out: a name server needs port 53, and that a privilege");
}

#[tokio::test]
async fn scenario_41_a_name_is_asked_again_when_its_answer_expires() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let (port, _upstreams) = on_one_port([("a", ip(1)), ("b", ip(2))]);
    server.say("app.test", Says::Addresses(vec![ip(1)], 1));
    let proxy = asking(&server, &format!("      dns: {{ name: \"app.test:{port}\" }}\n")).await;
    answered_by(&proxy, &["a"]).await;
    let load = Load::get(proxy.web(), 2);
    // The file says no interval: it is the TTL that brings us back.
    server.say("app.test", Says::Addresses(vec![ip(1), ip(2)], 1));
    answered_by(&proxy, &["a", "b"]).await;
    server.say("app.test", Says::Addresses(vec![ip(2)], 1));
    answered_by(&proxy, &["b"]).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn an_answer_that_lasts_is_not_asked_for_again() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let (port, _upstreams) = on_one_port([("a", ip(1)), ("b", ip(2))]);
    server.say("app.test", Says::Addresses(vec![ip(1)], 300));
    server.say("other.test", Says::Addresses(vec![ip(1)], 1));
    let config = config(&format!("      dns: {{ name: \"app.test:{port}\" }}\n"))
        + &format!("  other:\n    discovery: {{ dns: {{ name: \"other.test:{port}\" }} }}\n");
    let proxy = Start::new(&config)
        .file("hosts", "127.0.0.1 localhost\n")
        .file("resolv.conf", &server.resolv_conf())
        .with_etc("hosts")
        .with_etc("resolv.conf")
        .start()
        .await;
    answered_by(&proxy, &["a"]).await;
    server.say("app.test", Says::Addresses(vec![ip(2)], 300));
    // Its neighbour, which expires each second, has been asked several times meanwhile.
    let before = server.asked();
    eventually("the neighbour is asked again", || server.asked() >= before + 4).await;
    answered_by(&proxy, &["a"]).await;
}

#[tokio::test]
async fn scenario_41_names_that_cannot_be_asked_keep_their_last_addresses() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let (port, _upstreams) = on_one_port([("a", ip(1)), ("b", ip(2))]);
    server.say("app.test", Says::Addresses(vec![ip(1)], 1));
    let proxy = asking(
        &server,
        &format!("      dns: {{ name: \"app.test:{port}\", hold: 10s }}\n"),
    )
    .await;
    answered_by(&proxy, &["a"]).await;
    let load = Load::get(proxy.web(), 2);
    let all_is_well = || server.say("app.test", Says::Addresses(vec![ip(1)], 1));
    for says in [
        Some(Says::Trouble),
        Some(Says::Silence),
        Some(Says::Addresses(Vec::new(), 1)),
        None,
    ] {
        match says {
            Some(says) => server.say("app.test", says),
            None => server.forget("app.test"),
        }
        let before = server.asked();
        eventually("both families are asked for", || server.asked() >= before + 2).await;
        eventually_async("it is told", || async { stale(&proxy).await == 1.0 }).await;
        answered_by(&proxy, &["a"]).await;
        all_is_well();
        let before = server.asked();
        eventually("they are asked for again", || server.asked() >= before + 2).await;
        eventually_async("it is over", || async { stale(&proxy).await == 0.0 }).await;
    }
    // And it is believed again.
    server.say("app.test", Says::Addresses(vec![ip(2)], 1));
    answered_by(&proxy, &["b"]).await;
    load.stop_without_failure().await;
}

async fn stale(proxy: &Proxy) -> f64 {
    proxy
        .metrics()
        .await
        .sum("bellwether_discovery_stale", &[("cluster", "app")])
}

/// Nine of ten gone in one answer: asked again before it is believed.
#[tokio::test]
async fn scenario_41_most_of_them_gone_in_one_answer_is_held_until_it_is_said_again() {
    const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let all: Vec<IpAddr> = (1..=10).map(ip).collect();
    let places: [_; 10] = std::array::from_fn(|at| (NAMES[at], all[at]));
    let (port, _upstreams) = on_one_port(places);
    server.say("app.test", Says::Addresses(all.clone(), 1));
    let proxy = asking(&server, &format!("      dns: {{ name: \"app.test:{port}\" }}\n")).await;
    let endpoints = || async {
        let list = proxy.admin_get("/api/v1/clusters/app/endpoints").await.json();
        list["endpoints"].as_array().expect("a list").len()
    };
    eventually_async("all ten are there", || async { endpoints().await == 10 }).await;
    let load = Load::get(proxy.web(), 2);
    server.say("app.test", Says::Addresses(vec![all[9]], 1));
    eventually_async("the answer is held", || async { stale(&proxy).await == 1.0 }).await;
    assert_eq!(endpoints().await, 10);
    // Said again after a while, it is believed.
    eventually_async("one is left", || async { endpoints().await == 1 }).await;
    assert_eq!(stale(&proxy).await, 0.0);
    answered_by(&proxy, &["j"]).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_name_that_says_nothing_for_long_enough_is_believed() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let (port, _upstreams) = on_one_port([("a", ip(1))]);
    server.say("app.test", Says::Addresses(vec![ip(1)], 1));
    let proxy = asking(
        &server,
        &format!("      dns: {{ name: \"app.test:{port}\", hold: 1s }}\n"),
    )
    .await;
    answered_by(&proxy, &["a"]).await;
    server.forget("app.test");
    eventually_async("nobody is left", || async {
        get(proxy.web(), "/").await.status == 503
    })
    .await;
    get(proxy.web(), "/").await.is_refusal(503, "no_endpoint");
}

#[tokio::test]
async fn addresses_of_both_families_are_members() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let six = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
    if std::net::TcpListener::bind((six, 0)).is_err() {
        eprintln!("left out: this machine has no IPv6");
        return;
    }
    let (port, _upstreams) = on_one_port([("four", ip(1)), ("six", six)]);
    server.say("app.test", Says::Addresses(vec![ip(1), six], 1));
    let proxy = asking(&server, &format!("      dns: {{ name: \"app.test:{port}\" }}\n")).await;
    answered_by(&proxy, &["four", "six"]).await;
}

#[tokio::test]
async fn services_bring_their_own_ports_and_weights() {
    let Some(server) = NameServer::start() else {
        return left_out();
    };
    let (light, heavy) = (Upstream::named("light"), Upstream::named("heavy"));
    let service = |weight: u16, upstream: &Upstream, target| (10, weight, upstream.address().port(), target);
    server.say("one.test", Says::Addresses(vec![ip(1)], 1));
    server.say("two.test", Says::Addresses(vec![ip(1)], 1));
    server.say(
        "_http._tcp.app.test",
        Says::Services(
            vec![service(1, &light, "one.test"), service(3, &heavy, "two.test")],
            1,
        ),
    );
    let discovery = "      dns: { name: _http._tcp.app.test, record: srv }\n";
    let config = config(discovery) + "runtime: { worker_threads: 1, drain: { min: 1ms, max: 1s } }\n";
    let proxy = Start::new(&config)
        .file("hosts", "127.0.0.1 localhost\n")
        .file("resolv.conf", &server.resolv_conf())
        .with_etc("hosts")
        .with_etc("resolv.conf")
        .start()
        .await;
    answered_by(&proxy, &["heavy", "light"]).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut heavies = 0;
    for _ in 0..40 {
        heavies += usize::from(client.get("/").await.text() == "heavy");
    }
    assert_eq!(heavies, 30);
    // A target that is gone from DNS is gone from the cluster.
    server.forget("two.test");
    answered_by(&proxy, &["light"]).await;
    server.say(
        "_http._tcp.app.test",
        Says::Services(vec![service(1, &heavy, "one.test")], 1),
    );
    answered_by(&proxy, &["heavy"]).await;
}
