//! Endpoints that come and go: from a file, over HTTP, from a name; and the last good answer where there is none.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::support::client::{Client, get};
use crate::support::eventually_async;
use crate::support::load::Load;
use crate::support::proxy::{Proxy, Start};
use crate::support::upstream::Upstream;

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
    crate::support::eventually("it is asked again", || registry.requests() > before + 1).await;
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
    .with_hosts("hosts");
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
