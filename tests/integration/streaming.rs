//! Bodies stream: nothing is gathered, each side goes at the pace of the other, and memory stays flat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Request;
use tokio::io::AsyncWriteExt;

use crate::support::client::Client;
use crate::support::h2::{H2, head, uri, write};
use crate::support::http1::Framing;
use crate::support::proxy::{Proxy, proxy, to, with};
use crate::support::upstream::Upstream;
use crate::support::{PATIENCE, soon};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Runs something long and fails when the proxy grows by 32 MiB meanwhile.
async fn flat<F: Future>(proxy: &Proxy, work: F) -> F::Output {
    let before = proxy.memory();
    let mut most = before;
    let mut work = std::pin::pin!(work);
    let output = loop {
        tokio::select! {
            output = &mut work => break output,
            () = tokio::time::sleep(crate::support::proxy::BEAT) => most = most.max(proxy.memory()),
        }
    };
    most = most.max(proxy.memory());
    let grown = most.saturating_sub(before);
    assert!(
        grown < 32 * MIB,
        "grew by {} KiB from {} KiB",
        grown / 1024,
        before / 1024
    );
    output
}

/// Counts uploads and sends as much back.
fn mirror_of_lengths() -> Upstream {
    Upstream::each(|mut peer| async move {
        while let Some(head) = peer.head().await? {
            let framing = head.framing()?;
            let Framing::Length(length) = framing else {
                panic!("{framing:?}")
            };
            peer.record(head, framing, Vec::new(), <_>::default())?;
            peer.reader.swallow(length).await?;
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())
                .await?;
            send_many(&mut peer.reader.io, length).await?;
        }
        Ok(())
    })
}

async fn send_many<W: tokio::io::AsyncWrite + Unpin>(to: &mut W, length: u64) -> std::io::Result<()> {
    let block = vec![b'x'; 1 << 20];
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left.min(block.len() as u64)).expect("fits");
        to.write_all(&block[..part]).await?;
        left -= part as u64;
    }
    Ok(())
}

#[tokio::test]
async fn a_gibibyte_each_way_over_http_1_leaves_memory_flat() {
    let upstream = mirror_of_lengths();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    // What one exchange needs is there before we look.
    client.ask("POST", "/", "", b"warm").await;
    flat(&proxy, async {
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: {GIB}\r\n\r\n"
            ))
            .await;
        tokio::time::timeout(4 * PATIENCE, send_many(&mut client.reader.io, GIB))
            .await
            .expect("in time")
            .expect("the proxy reads");
        let (status, head) = client.answer_head().await;
        assert_eq!(
            (status, head.framing().expect("a length")),
            (200, Framing::Length(GIB))
        );
        let received = tokio::time::timeout(4 * PATIENCE, client.reader.swallow(GIB))
            .await
            .expect("in time");
        assert_eq!(received.expect("a whole body"), GIB);
    })
    .await;
    assert!(client.ask("POST", "/", "", b"again").await.keep_alive);
}

#[tokio::test]
async fn many_mebibytes_each_way_over_http_2_leave_memory_flat() {
    const LENGTH: u64 = 128 * MIB;
    let upstream = mirror_of_lengths();
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = H2::connect(proxy.web()).await;
    let warm = Request::post(uri("/"))
        .header("content-length", 4)
        .body(&b"warm"[..])
        .expect("a request");
    client.ask(warm).await;
    flat(&proxy, async {
        let request = Request::post(uri("/"))
            .header("content-length", LENGTH)
            .body(())
            .expect("a request");
        let (answer, mut send) = client.start(request, false).await;
        let upload = async {
            let block = Bytes::from(vec![b'x'; 1 << 20]);
            for number in 1..=LENGTH / MIB {
                write(&mut send, block.clone(), number == LENGTH / MIB)
                    .await
                    .expect("the proxy reads");
            }
        };
        tokio::time::timeout(2 * PATIENCE, upload).await.expect("in time");
        let (_, response) = head(answer).await.expect("an answer");
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(data) = soon("content", body.data()).await {
            let data = data.expect("content");
            received += data.len() as u64;
            body.flow_control()
                .release_capacity(data.len())
                .expect("a stream");
        }
        assert_eq!(received, LENGTH);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_upstream() {
    let sent = Arc::<AtomicU64>::default();
    let counting = Arc::clone(&sent);
    let upstream = Upstream::each(move |mut peer| {
        let sent = Arc::clone(&counting);
        async move {
            if peer.request().await?.is_some() {
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n").as_bytes())
                    .await?;
                let block = vec![b'x'; 64 * 1024];
                while sent.load(Ordering::SeqCst) < GIB {
                    peer.send(&block).await?;
                    sent.fetch_add(block.len() as u64, Ordering::SeqCst);
                }
            }
            Ok(())
        }
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(crate::support::client::request("GET", "/", "", b""))
        .await;
    client.answer_head().await;
    // What the kernels of all three hold, and one chunk of ours.
    let stopped_at = settled(&sent).await;
    assert!(
        stopped_at < 64 * MIB,
        "{stopped_at} bytes were taken for a client that reads none"
    );
    let rest = tokio::time::timeout(PATIENCE, client.reader.swallow(128 * MIB))
        .await
        .expect("in time");
    assert_eq!(rest.expect("it goes on"), 128 * MIB);
}

#[tokio::test]
async fn an_upstream_that_does_not_read_stops_the_client() {
    let upstream = Upstream::each(|mut peer| async move {
        let head = peer.head().await?.expect("a head");
        peer.record(head, Framing::None, Vec::new(), <_>::default())?;
        std::future::pending().await
    });
    let proxy = proxy(&with("    timeout: 60s\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: {GIB}\r\n\r\n"
        ))
        .await;
    let sent = Arc::<AtomicU64>::default();
    let counting = Arc::clone(&sent);
    let before = proxy.memory();
    let upload = tokio::spawn(async move {
        let block = vec![b'x'; 64 * 1024];
        while client.reader.io.write_all(&block).await.is_ok() {
            counting.fetch_add(block.len() as u64, Ordering::SeqCst);
        }
    });
    let stopped_at = settled(&sent).await;
    assert!(
        stopped_at < 64 * MIB,
        "{stopped_at} bytes were taken for an upstream that reads none"
    );
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 32 * MIB, "grew by {grown} bytes");
    upload.abort();
}

/// Waits until a counter has stood still for a while.
async fn settled(counter: &AtomicU64) -> u64 {
    soon("the flow to stop", async {
        let mut last = counter.load(Ordering::SeqCst);
        let mut quiet = 0;
        while quiet < 20 {
            tokio::time::sleep(crate::support::proxy::BEAT * 2).await;
            let now = counter.load(Ordering::SeqCst);
            quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
            last = now;
        }
        last
    })
    .await
}

#[tokio::test]
async fn each_part_goes_on_as_soon_as_it_comes() {
    let (next, parts) = tokio::sync::mpsc::unbounded_channel::<&'static [u8]>();
    let parts = Arc::new(tokio::sync::Mutex::new(parts));
    let upstream = Upstream::each(move |mut peer| {
        let parts = Arc::clone(&parts);
        async move {
            if peer.request().await?.is_some() {
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                while let Some(part) = parts.lock().await.recv().await {
                    peer.send(part).await?;
                }
            }
            Ok(())
        }
    });
    let proxy = proxy(&to(&[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send(crate::support::client::request("GET", "/events", "", b""))
        .await;
    client.answer_head().await;
    for _ in 0..5 {
        // The next is sent only once the last has arrived.
        next.send(b"8\r\ndata: 1\n\r\n").expect("an upstream");
        let mut got = Vec::new();
        while got.len() < 8 {
            let chunk = soon("an event", client.reader.chunk())
                .await
                .expect("a chunk")
                .expect("a chunk");
            got.extend_from_slice(&chunk);
        }
        assert_eq!(got, b"data: 1\n");
    }
    next.send(b"0\r\n\r\n").expect("an upstream");
    assert_eq!(
        soon("the end", client.reader.chunk()).await.expect("the end"),
        None
    );
}

#[tokio::test]
async fn an_upload_reaches_the_upstream_before_it_is_complete() {
    let upstream = Upstream::each(|mut peer| async move {
        let Some(head) = peer.head().await? else {
            return Ok(());
        };
        peer.record(head, Framing::Chunked, Vec::new(), <_>::default())?;
        let first = peer.reader.chunk().await?.expect("a chunk");
        assert_eq!(first, b"first");
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ngot\r\n")
            .await?;
        let second = peer.reader.chunk().await?.expect("a chunk");
        assert_eq!(second, b"second");
        assert_eq!(peer.reader.chunk().await?, None);
        peer.send(b"0\r\n\r\n").await
    });
    let proxy = proxy(&with("    retry: off\n", "", &[upstream.address()])).await;
    let mut client = Client::connect(proxy.web()).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    client.answer_head().await;
    assert_eq!(
        soon("an early word", client.reader.chunk())
            .await
            .expect("a chunk")
            .as_deref(),
        Some(&b"got"[..])
    );
    client.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(
        soon("the end", client.reader.chunk()).await.expect("the end"),
        None
    );
}
