//! From the first line of the banner to the exit code: starts that fail, drains, second signals, a successor that takes
//! over, the service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::client::{Client, get, request};
use crate::support::h2::H2;
use crate::support::load::Load;
use crate::support::proxy::{Start, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, eventually_async, soon};

fn draining(upstream: &Upstream, min: &str, max: &str) -> String {
    to(&[upstream.address()])
        + &format!("runtime:\n  worker_threads: 2\n  drain: {{ min: {min}, max: {max} }}\n")
}

#[tokio::test]
async fn the_banner_says_what_is_in_force() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let banner = proxy.stderr();
    for part in [
        "bellwether ",
        "bellwether.yaml",
        &format!("http://{}", proxy.web()),
        &format!("http://{}", proxy.admin()),
        "retry 1",
        "ready in",
    ] {
        assert!(banner.contains(part), "no {part:?} in\n{banner}");
    }
    // Nothing but data on stdout.
    assert_eq!(proxy.stdout(), "");
}

#[tokio::test]
async fn a_port_in_use_is_exit_4_and_names_the_place() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let config = to(&[([127, 0, 0, 1], 9).into()]).replace("127.0.0.1:0", &address.to_string());
    let finished = Start::new(&config).fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    let stderr = &finished.stderr;
    assert!(
        stderr.contains("E0603") && stderr.contains(&address.to_string()),
        "{stderr}"
    );
    assert!(stderr.contains("bellwether.yaml:2"), "{stderr}");
}

#[tokio::test]
async fn a_bad_configuration_is_exit_3_with_all_its_mistakes() {
    let config = "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: ap\n    timeout: 5\nclusters:\n  app:\n    intervall: 2s\n    \
                  endpoints: [127.0.0.1:9]\n";
    let finished = Start::new(config).fail().await;
    assert_eq!(finished.status.code(), Some(3), "{finished:?}");
    for part in ["did you mean `app`", "bellwether.yaml:5", "intervall"] {
        assert!(
            finished.stderr.contains(part),
            "no {part:?} in\n{}",
            finished.stderr
        );
    }
    assert_eq!(finished.stdout, "");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_said() {
    let start = Start::new("listeners: {}\n");
    std::fs::remove_file(start.folder().join("bellwether.yaml")).expect("a file");
    let finished = start.fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    assert!(finished.stderr.contains("bellwether.yaml"), "{}", finished.stderr);
}

#[tokio::test]
async fn an_idle_proxy_ends_with_0() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "10ms", "20s")).await;
    let mut idle = Client::connect(proxy.web()).await;
    assert_eq!(idle.get("/").await.status, 200);
    proxy.signal(Signal::TERM);
    idle.is_closed().await;
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

#[tokio::test]
async fn readiness_fails_first_and_requests_in_flight_finish() {
    let (release, waiting) = tokio::sync::watch::channel(false);
    let slow = Upstream::each(move |mut peer| {
        let mut waiting = waiting.clone();
        async move {
            while let Some(request) = peer.request().await? {
                if request.target == "/slow" {
                    drop(waiting.wait_for(|released| *released).await);
                }
                peer.answer(&request, 200, "", b"done").await?;
            }
            Ok(())
        }
    });
    let proxy = proxy(&draining(&slow, "1s", "20s")).await;
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    let mut one = Client::connect(proxy.web()).await;
    one.send(request("GET", "/slow", "", b"")).await;
    let mut two = H2::connect(proxy.web()).await;
    let slow_request = http::Request::get(crate::support::h2::uri("/slow"))
        .body(())
        .expect("a request");
    let (second, _) = two.start(slow_request, true).await;
    eventually("both arrive", || slow.requests() == 2).await;

    proxy.signal(Signal::TERM);
    eventually_async("it says that it is not ready", || async {
        proxy.admin_get("/readyz").await.status == 503
    })
    .await;
    assert_eq!(proxy.admin_get("/livez").await.status, 200);
    // The balancer may not have noticed yet: new connections are still served.
    let late = get(proxy.web(), "/late").await;
    assert_eq!(late.status, 200);
    let web = proxy.web();
    eventually_async("the port is closed", || async {
        tokio::net::TcpStream::connect(web).await.is_err()
    })
    .await;
    release.send(true).expect("an upstream");
    let answer = one.answer().await;
    assert_eq!((answer.text().as_str(), answer.keep_alive), ("done", false));
    one.is_closed().await;
    assert_eq!(
        crate::support::h2::collect(second)
            .await
            .expect("an answer")
            .text(),
        "done"
    );
    soon("GOAWAY", two.ended()).await.expect("a clean end");
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut_off_and_said() {
    let upstream = Upstream::stalls();
    let proxy = proxy(&draining(&upstream, "10ms", "400ms")).await;
    let mut client = Client::connect(proxy.web()).await;
    client.send(request("GET", "/", "", b"")).await;
    eventually("the request arrives", || upstream.requests() == 1).await;
    proxy.signal(Signal::TERM);
    let finished = proxy.finished().await;
    assert_eq!(finished.status.code(), Some(8), "{finished:?}");
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let upstream = Upstream::stalls();
        let proxy = proxy(&draining(&upstream, "60s", "120s")).await;
        let mut client = Client::connect(proxy.web()).await;
        client.send(request("GET", "/", "", b"")).await;
        eventually("the request arrives", || upstream.requests() == 1).await;
        proxy.signal(signal);
        eventually_async("it drains", || async {
            proxy.admin_get("/readyz").await.status == 503
        })
        .await;
        proxy.signal(signal);
        let finished = proxy.finished().await;
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
    }
}

#[tokio::test]
async fn the_admin_api_drains_and_quits() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&draining(&upstream, "10ms", "20s")).await;
    let answer = proxy.admin_post("/quitquitquit", "").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_eq!(proxy.finished().await.status.code(), Some(0));
}

#[tokio::test]
async fn an_instance_ends_under_load_and_no_request_fails() {
    let upstream = Upstream::answers(200, "ok");
    let config = draining(&upstream, "1s", "20s");
    let (leaving, staying) = tokio::join!(proxy(&config), proxy(&config));
    let loads = [Load::get(leaving.web(), 4), Load::post(leaving.web(), 4)];
    for load in &loads {
        load.more(200).await;
    }
    leaving.signal(Signal::TERM);
    // What a balancer does: it asks, and sends new connections elsewhere once the answer is no.
    eventually_async("it says that it is not ready", || async {
        leaving.admin_get("/readyz").await.status == 503
    })
    .await;
    for load in &loads {
        load.turn_to(staying.web());
    }
    let finished = leaving.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    for load in loads {
        load.more(200).await;
        load.stop_without_failure().await;
    }
}

#[tokio::test]
async fn a_successor_takes_over_and_no_request_fails() {
    let upstream = Upstream::answers(200, "ok");
    let old = proxy(&draining(&upstream, "300ms", "20s")).await;
    let web = old.web();
    let loads = [Load::get(web, 4), Load::post(web, 4)];
    for load in &loads {
        load.more(200).await;
    }
    let (new, ended) = old.replace().await;
    assert_eq!(ended.code(), Some(0), "{}", new.stderr());
    assert_eq!(new.web(), web);
    for load in &loads {
        load.more(200).await;
    }
    assert_eq!(new.admin_get("/readyz").await.status, 200);
    for load in loads {
        load.stop_without_failure().await;
    }
}

#[tokio::test]
async fn a_successor_that_cannot_serve_changes_nothing() {
    let upstream = Upstream::answers(200, "ok");
    let config = draining(&upstream, "300ms", "20s").replace(
        "worker_threads: 2",
        "worker_threads: 2\n  reload: { watch: false }",
    );
    let proxy = proxy(&config).await;
    let load = Load::get(proxy.web(), 4);
    proxy.write("listeners: { web: nonsense }\n");
    proxy.signal(Signal::USR2);
    eventually("the failure is said", || proxy.stderr().contains("not replaced")).await;
    load.more(100).await;
    load.stop_without_failure().await;
    assert_eq!(get(proxy.web(), "/").await.status, 200);
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let upstream = Upstream::answers(200, "ok");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket");
    let heard = move |what: &str| {
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while !all.lines().any(|line| line.starts_with(what)) {
            let count = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what}: {error} after {all:?}"));
            all.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
            all.push('\n');
        }
    };
    let proxy = Start::new(&draining(&upstream, "10ms", "20s"))
        .variable("NOTIFY_SOCKET", path.to_str().expect("text"))
        .start()
        .await;
    heard("READY=1");
    proxy.signal(Signal::TERM);
    heard("STOPPING=1");
    assert_eq!(proxy.finished().await.status.code(), Some(0));
}

#[tokio::test]
async fn a_socket_of_the_service_manager_is_used() {
    let upstream = Upstream::answers(200, "ok");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    // Connections that come before the proxy wait for it.
    let early = tokio::spawn(async move { get(address, "/early").await });
    let config = to(&[upstream.address()]).replace("web: 127.0.0.1:0", &format!("web: {address}"));
    let proxy = Start::new(&config).with_socket(socket).start().await;
    assert_eq!(proxy.web(), address);
    assert_eq!(
        soon("the early answer", early).await.expect("no panic").status,
        200
    );
    for _ in 0..10 {
        assert_eq!(get(address, "/").await.status, 200);
    }
}

#[tokio::test]
async fn the_environment_fills_in_values() {
    let upstream = Upstream::echo();
    let route = "    request_headers:\n      set: { x-region: \"${REGION:-nowhere}\", x-secret: \"${file:secret.txt}\" }\n";
    let start = Start::new(&with(route, "", &[upstream.address()]))
        .file("secret.txt", "hush\n")
        .variable("REGION", "eu");
    let proxy = start.start().await;
    let answer = get(proxy.web(), "/").await;
    assert_eq!(answer.echoed("x-region").as_deref(), Some("eu"));
    assert_eq!(answer.echoed("x-secret").as_deref(), Some("hush"));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_exit_4_and_said_with_its_line() {
    // A folder in its place cannot be read by anybody, whatever the privileges of who runs the tests.
    let folder = tempfile::tempdir().expect("a folder");
    let config = to(&[([127, 0, 0, 1], 9).into()]).replace(
        "  - cluster: app\n",
        &format!(
            "  - cluster: app\n    request_headers: {{ set: {{ x-secret: \"${{file:{}}}\" }} }}\n",
            folder.path().display()
        ),
    );
    let finished = Start::new(&config).fail().await;
    assert!(
        finished.stderr.contains("bellwether.yaml:5")
            && finished.stderr.contains(folder.path().to_str().expect("text")),
        "{}",
        finished.stderr
    );
    assert!(matches!(finished.status.code(), Some(3 | 4)), "{finished:?}");
    let start = Start::new("listeners: {}\n");
    std::fs::remove_file(start.folder().join("bellwether.yaml")).expect("a file");
    std::fs::create_dir(start.folder().join("bellwether.yaml")).expect("a writable folder");
    let finished = start.fail().await;
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
}

#[tokio::test]
async fn a_tunnel_ends_with_the_drain_and_is_told_of() {
    let upstream = Upstream::each(|mut peer| async move {
        if peer.request().await?.is_some() {
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await?;
            peer.reader.rest().await?;
        }
        Ok(())
    });
    let proxy = proxy(&draining(&upstream, "10ms", "500ms")).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(request(
            "GET",
            "/",
            "connection: upgrade\r\nupgrade: echo\r\n",
            b"",
        ))
        .await;
    assert_eq!(client.answer().await.status, 101);
    proxy.signal(Signal::TERM);
    let finished = proxy.finished().await;
    assert!(matches!(finished.status.code(), Some(0 | 8)), "{finished:?}");
    client.until_closed().await;
}
