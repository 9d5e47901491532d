//! HTTP/2 used as a weapon: frames that ask for nothing, heads that never end, streams that are opened to be reset, and
//! bodies that drip. The client is made of bytes, because no library would send this. Each is ended with GOAWAY and
//! ENHANCE_YOUR_CALM, costs little memory, and nobody else notices.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::Client;
use crate::support::h2::H2;
use crate::support::proxy::{Proxy, proxy, to};
use crate::support::upstream::Upstream;
use crate::support::{background, eventually, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ENHANCE_YOUR_CALM: u32 = 11;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// `GET`, `http`, `/` and the authority `x`, by the static table (RFC 7541).
const REQUEST: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'x'];
/// The same as a POST.
const UPLOAD: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'x'];
/// What a client may write before it is clear that nobody ends it.
const MOST: usize = 64 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a short payload")
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

async fn open(address: SocketAddr) -> TcpStream {
    let mut stream = soon("a connection", TcpStream::connect(address))
        .await
        .expect("the proxy accepts");
    stream.set_nodelay(true).expect("a socket");
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&hello).await.expect("the proxy reads");
    stream
}

/// Reads frames until the proxy closes; the error code of the last GOAWAY among them.
async fn goaway<R: tokio::io::AsyncRead + Unpin>(mut from: R) -> Option<u32> {
    let mut code = None;
    let mut header = [0; 9];
    while from.read_exact(&mut header).await.is_ok() {
        let [high, middle, low, kind, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        if from.read_exact(&mut payload).await.is_err() {
            break;
        }
        if kind == GOAWAY {
            let bytes: [u8; 4] = payload[4..8].try_into().expect("a whole GOAWAY");
            code = Some(u32::from_be_bytes(bytes));
        }
    }
    code
}

/// Writes `opening` and then what `next` says, until the proxy ends it; how it was told.
async fn attack(
    address: SocketAddr,
    opening: Vec<u8>,
    next: impl Fn(u32) -> Vec<u8> + Send + 'static,
) -> Option<u32> {
    let (read, mut write) = open(address).await.into_split();
    let told = background().spawn(goaway(read));
    let writing = async move {
        let mut sent = opening.len();
        if write.write_all(&opening).await.is_err() {
            return;
        }
        for batch in 0.. {
            let mut bytes = Vec::new();
            for at in 0..100 {
                bytes.extend_from_slice(&next(batch * 100 + at));
            }
            sent += bytes.len();
            assert!(sent < MOST, "the flood went on");
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    soon("the end of the flood", async {
        tokio::select! {
            // Whoever is told reads it, also when nothing more can be written.
            () = async { writing.await; std::future::pending().await } => None,
            told = told => told.expect("no panic"),
        }
    })
    .await
}

/// Several of these at once, between two looks at the proxy's memory and while others are served.
async fn is_contained(name: &str, proxy: &Proxy, opening: &[u8], next: fn(u32) -> Vec<u8>) {
    let address = proxy.web();
    let mut first = Client::connect(address).await;
    let mut second = H2::connect(address).await;
    assert_eq!(first.get("/").await.status, 200);
    assert_eq!(second.get("/").await.status, 200);
    let before = proxy.memory();
    let attackers: Vec<_> = (0..8)
        .map(|_| background().spawn(attack(address, opening.to_vec(), next)))
        .collect();
    assert_eq!(first.get("/").await.status, 200, "{name}");
    assert_eq!(second.get("/").await.status, 200, "{name}");
    for attacker in attackers {
        assert_eq!(
            attacker.await.expect("no panic"),
            Some(ENHANCE_YOUR_CALM),
            "{name}"
        );
    }
    assert_eq!(first.get("/").await.status, 200, "{name}");
    assert_eq!(second.get("/").await.status, 200, "{name}");
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 20 << 20, "{name}: {grown} bytes");
}

#[tokio::test]
async fn scenario_44_frames_that_ask_for_nothing_end_the_connection() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    is_contained("PING", &proxy, &[], |_| frame(PING, 0, 0, &[0; 8])).await;
    is_contained("SETTINGS", &proxy, &[], |_| frame(SETTINGS, 0, 0, &[])).await;
    is_contained("SETTINGS with a value", &proxy, &[], |at| {
        // HEADER_TABLE_SIZE, up and down.
        frame(
            SETTINGS,
            0,
            0,
            &[0, 1, 0, 0, 0, u8::try_from(at % 200).unwrap_or(0)],
        )
    })
    .await;
    is_contained("PRIORITY", &proxy, &[], |_| {
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])
    })
    .await;
    is_contained("WINDOW_UPDATE", &proxy, &[], |_| {
        frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())
    })
    .await;
    let upload = frame(HEADERS, END_HEADERS, 1, UPLOAD);
    is_contained("empty DATA", &proxy, &upload, |_| frame(DATA, 0, 1, &[])).await;
}

#[tokio::test]
async fn scenario_44_a_head_that_never_ends_ends_the_connection() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let begun = frame(HEADERS, END_STREAM, 1, REQUEST);
    is_contained("empty CONTINUATION", &proxy, &begun, |_| {
        frame(CONTINUATION, 0, 1, &[])
    })
    .await;
    is_contained("CONTINUATION", &proxy, &begun, |at| {
        // A literal that is not indexed: `x: yyy…`.
        let mut field = vec![0, 1, b'x', 0x7f, 0xa1, 0x3e];
        field.resize(field.len() + 127 + 0x21 + (0x3e << 7), b'y');
        assert!(field.len() < 16 * 1024 && at < u32::MAX);
        frame(CONTINUATION, 0, 1, &field)
    })
    .await;
    assert_eq!(
        upstream
            .received()
            .iter()
            .filter(|got| got.fields.has("x"))
            .count(),
        0
    );
}

#[tokio::test]
async fn scenario_44_streams_that_are_reset_before_anybody_looks_end_the_connection() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let served = |upstream: &Upstream| upstream.requests();
    let before = served(&upstream);
    is_contained("RST_STREAM", &proxy, &[], |at| {
        let stream = 2 * at + 1;
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST),
            frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
        ]
        .concat()
    })
    .await;
    // Six of them are those of the others; eight connections may have had a hundred each looked at.
    let passed = served(&upstream) - before;
    assert!(passed <= 8 * 110 + 6, "{passed} were passed on");
}

fn hurried(lines: &str, upstream: &Upstream) -> String {
    format!(
        "listeners:\n  web:\n    address: 127.0.0.1:0\n{lines}routes:\n  - cluster: app\nclusters:\n  app:\n    \
         endpoints: [{}]\n",
        upstream.address()
    )
}

#[tokio::test]
async fn scenario_44_a_head_that_drips_is_given_up() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&hurried("    timeouts: { headers: 300ms }\n", &upstream)).await;
    // Neither empty frames nor single bytes of one are a head.
    for bytes in [
        frame(HEADERS, END_STREAM, 1, REQUEST),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, REQUEST)[..12].to_vec(),
    ] {
        let (read, mut write) = open(proxy.web()).await.into_split();
        let told = background().spawn(goaway(read));
        write.write_all(&bytes).await.expect("the proxy reads");
        let told = soon("the end", told).await.expect("no panic");
        assert_eq!(told, Some(ENHANCE_YOUR_CALM));
    }
    // The same with HTTP/1.1, by many at once, who leave nothing behind.
    let mut other = Client::connect(proxy.web()).await;
    assert_eq!(other.get("/").await.status, 200);
    let before = (proxy.memory(), proxy.descriptors());
    let drips: Vec<_> = (0..200)
        .map(|_| {
            let address = proxy.web();
            background().spawn(async move {
                let mut client = Client::connect(address).await;
                client.send("GET / HTTP/1.1\r\nhost: test.example\r\n").await;
                // A field every now and then, for as long as somebody listens.
                let mut fields = 0;
                while client.try_send("x-slow: y\r\n").await.is_ok() {
                    fields += 1;
                    assert!(fields < 3000, "it goes on for ever");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            })
        })
        .collect();
    assert_eq!(other.get("/").await.status, 200);
    for drip in drips {
        soon("the end", drip).await.expect("no panic");
    }
    assert_eq!(other.get("/").await.status, 200);
    let grown = proxy.memory().saturating_sub(before.0);
    assert!(grown < 20 << 20, "{grown} bytes");
    eventually("connections are given back", || {
        proxy.descriptors() <= before.1 + 4
    })
    .await;
}
