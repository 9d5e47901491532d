//! A real upstream, not one of ours: nginx as Debian ships it, behind the shortest configuration that there is.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::client::{Client, ask};
use crate::support::eventually;
use crate::support::h2::H2;
use crate::support::proxy::proxy;

/// A running nginx.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// nginx cannot choose a port by itself, so it gets one that was free a moment ago, and another one if it was not.
    async fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        std::fs::write(root.join("hello.txt"), format!("hello from {name}\n")).expect("a writable folder");
        std::fs::write(root.join("big.bin"), vec![b'x'; 3 << 20]).expect("a writable folder");
        let mut last = (None, free());
        for _ in 0..5 {
            let (mut child, address) = (spawn(root, last.1, name), last.1);
            let mut ended = false;
            eventually("nginx answers or ends", || {
                ended = child.try_wait().expect("our child").is_some();
                ended || TcpStream::connect(address).is_ok()
            })
            .await;
            if !ended {
                last.0 = Some(child);
                break;
            }
            last.1 = free();
        }
        let log = std::fs::read_to_string(root.join("error.log")).unwrap_or_default();
        let child = last.0.unwrap_or_else(|| panic!("nginx does not start: {log}"));
        Self {
            child,
            address: last.1,
            _folder: folder,
        }
    }
}

fn free() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound")
}

fn spawn(root: &Path, address: SocketAddr, name: &str) -> Child {
    std::fs::write(root.join("nginx.conf"), config(root, address, name)).expect("a writable folder");
    Command::new("nginx")
        .args([OsStr::new("-p"), root.as_os_str(), OsStr::new("-c")])
        .arg(root.join("nginx.conf"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx")
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Fails only on a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn config(root: &Path, address: SocketAddr, name: &str) -> String {
    let root = root.display();
    format!(
        "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n  \
         uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; keepalive_requests 7;\n  \
         server {{\n    listen {address}; root {root};\n    location = /healthz {{ return 200 ok; }}\n    \
         location = /who {{ return 200 {name}; }}\n    location = /host {{ return 200 $host,$http_x_forwarded_for; }}\n  }}\n}}\n"
    )
}

fn is_installed() -> bool {
    Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

#[tokio::test]
async fn the_quickstart_serves_two_nginx_in_turn() {
    assert!(
        is_installed(),
        "this test needs nginx: apt-get install nginx-light"
    );
    let nginx = [Nginx::start("one").await, Nginx::start("two").await];
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\nclusters:\n  app:\n    health_check: /healthz\n    \
         load_balancing: round_robin\n    slow_start: off\n    endpoints: [{}, {}]\n",
        nginx[0].address, nginx[1].address
    );
    let proxy = proxy(&config).await;
    let mut client = Client::connect(proxy.web()).await;
    let mut seen = std::collections::BTreeMap::new();
    // Each nginx closes its connections after seven requests; nobody notices.
    for _ in 0..60 {
        let answer = client.get("/who").await;
        assert_eq!(answer.status, 200);
        *seen.entry(answer.text()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let file = client.get("/hello.txt").await;
    assert!(file.text().starts_with("hello from "), "{file:?}");
    let etag = file.fields.get("etag").expect("an etag").to_owned();
    let answer = client.ask("GET", "/big.bin", "range: bytes=5-9\r\n", b"").await;
    assert_eq!((answer.status, answer.text().as_str()), (206, "xxxxx"));
    assert_eq!(client.get("/big.bin").await.body.len(), 3 << 20);
    let answer = client
        .ask("GET", "/hello.txt", &format!("if-none-match: {etag}\r\n"), b"")
        .await;
    assert!(matches!(answer.status, 200 | 304), "{answer:?}");
    let answer = ask(proxy.web(), "GET", "/host", "host: shop.example\r\n", b"").await;
    assert_eq!(answer.text(), "shop.example,127.0.0.1");
    assert_eq!(ask(proxy.web(), "POST", "/hello.txt", "", b"x").await.status, 405);
    assert_eq!(client.get("/nothing").await.status, 404);
    let answer = H2::connect(proxy.web()).await.get("/big.bin").await;
    assert_eq!((answer.status, answer.body.len()), (200, 3 << 20));
}
