//! Steady load that counts every failure.
//!
//! Each connection is a closed loop: a request, its answer, the next. A client here does what every good client does and
//! no more: it closes where the answer says so, and it does not write into a connection whose end it can already see.
//! It never asks twice; a failure is a failure.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::client::{Client, Stream, request};
use super::h2::{H2, collect, uri};
use super::{background, eventually};

/// Load that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    stop: AtomicBool,
    succeeded: AtomicUsize,
    connects: AtomicUsize,
    failures: Mutex<Vec<String>>,
    request: Vec<u8>,
    method: &'static str,
}

/// What a load has seen.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) succeeded: usize,
    pub(crate) connects: usize,
    pub(crate) failures: Vec<String>,
}

impl Load {
    /// `connections` closed loops of `GET`.
    pub(crate) fn get(address: SocketAddr, connections: usize) -> Self {
        Self::start(address, connections, "GET", request("GET", "/load", "", b""))
    }

    /// The same with a method that must not be sent twice.
    pub(crate) fn post(address: SocketAddr, connections: usize) -> Self {
        Self::start(
            address,
            connections,
            "POST",
            request("POST", "/load", "", b"some content"),
        )
    }

    /// `connections` closed loops of `GET` over HTTP/2.
    pub(crate) fn h2(address: SocketAddr, connections: usize) -> Self {
        let shared = Shared::new(address, "GET", Vec::new());
        let tasks = (0..connections)
            .map(|_| {
                let shared = Arc::clone(&shared);
                background().spawn(async move { shared.run_h2().await })
            })
            .collect();
        Self { shared, tasks }
    }

    fn start(address: SocketAddr, connections: usize, method: &'static str, request: Vec<u8>) -> Self {
        let shared = Shared::new(address, method, request);
        let tasks = (0..connections)
            .map(|_| {
                let shared = Arc::clone(&shared);
                background().spawn(async move { shared.run().await })
            })
            .collect();
        Self { shared, tasks }
    }

    /// New connections go here from now on, as behind a balancer that has seen a change.
    pub(crate) fn turn_to(&self, address: SocketAddr) {
        *self.shared.target.lock() = address;
    }

    /// Successes so far.
    pub(crate) fn succeeded(&self) -> usize {
        self.shared.succeeded.load(Ordering::SeqCst)
    }

    /// Waits until this many more have succeeded.
    pub(crate) async fn more(&self, count: usize) {
        let goal = self.succeeded() + count;
        eventually("the load goes on", || {
            self.succeeded() >= goal || !self.shared.failures.lock().is_empty()
        })
        .await;
    }

    /// Lets every loop finish its request.
    pub(crate) async fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            super::soon("a client to finish", task).await.expect("no panic");
        }
        Tally {
            succeeded: self.shared.succeeded.load(Ordering::SeqCst),
            connects: self.shared.connects.load(Ordering::SeqCst),
            failures: self.shared.failures.lock().clone(),
        }
    }

    /// Stops, and claims that nothing failed.
    pub(crate) async fn stop_without_failure(self) -> Tally {
        let tally = self.stop().await;
        assert!(
            tally.failures.is_empty(),
            "{} failed, {} succeeded: {:#?}",
            tally.failures.len(),
            tally.succeeded,
            &tally.failures[..tally.failures.len().min(5)]
        );
        assert!(tally.succeeded > 0, "nothing was sent");
        tally
    }
}

impl Shared {
    fn new(address: SocketAddr, method: &'static str, request: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            target: Mutex::new(address),
            stop: AtomicBool::new(false),
            succeeded: AtomicUsize::new(0),
            connects: AtomicUsize::new(0),
            failures: Mutex::default(),
            request,
            method,
        })
    }

    /// A client that takes a new connection once it is told that the old one ends.
    async fn run_h2(&self) {
        let mut client: Option<H2> = None;
        while !self.stop.load(Ordering::SeqCst) {
            let target = *self.target.lock();
            let mut on = match client.take() {
                Some(on) => on,
                None => {
                    self.connects.fetch_add(1, Ordering::SeqCst);
                    H2::connect(target).await
                }
            };
            let request = http::Request::get(uri("/load")).body(()).expect("a request");
            let Some((answer, _)) = on.try_start(request).await else {
                continue;
            };
            match collect(answer).await {
                Ok(answer) if answer.status == 200 => {
                    self.succeeded.fetch_add(1, Ordering::SeqCst);
                    client = Some(on);
                }
                Ok(answer) => {
                    let seen = format!("{target}: {} {:?}", answer.status, answer.text());
                    self.failures.lock().push(seen);
                }
                // RFC 9113 section 6.8: a stream above the last one of a GOAWAY was not looked at and may be asked again.
                Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {}
                Err(error) => self.failures.lock().push(format!("{target}: HTTP/2: {error}")),
            }
        }
    }

    async fn run(&self) {
        let mut client: Option<Client> = None;
        while !self.stop.load(Ordering::SeqCst) {
            if client.as_ref().is_some_and(has_ended) {
                client = None;
            }
            let target = *self.target.lock();
            match self.once(&mut client, target).await {
                Ok(()) => {
                    self.succeeded.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    client = None;
                    self.failures.lock().push(format!("{target}: {error}"));
                    // A port that refuses would otherwise fill the list.
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn once(&self, kept: &mut Option<Client>, target: SocketAddr) -> io::Result<()> {
        let (mut client, how) = match kept.take() {
            Some(client) => (client, "a kept connection"),
            None => {
                self.connects.fetch_add(1, Ordering::SeqCst);
                (
                    Client::try_connect(target)
                        .await
                        .map_err(|error| told("connecting", &error))?,
                    "a new connection",
                )
            }
        };
        client
            .try_send(&self.request)
            .await
            .map_err(|error| told(&format!("writing to {how}"), &error))?;
        let answer = client
            .try_answer(self.method)
            .await
            .map_err(|error| told(&format!("reading from {how}"), &error))?;
        if answer.status != 200 {
            return Err(io::Error::other(format!(
                "{} {:?} {:?}",
                answer.status,
                answer.fields.all("x-bellwether-rejected"),
                answer.text()
            )));
        }
        if answer.keep_alive {
            *kept = Some(client);
        }
        Ok(())
    }
}

fn told(when: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{when}: {error}"))
}

/// Whether the end of an idle connection can be seen.
fn has_ended(client: &Client) -> bool {
    match &client.reader.io {
        Stream::Tcp(stream) => peek(stream),
        Stream::Tls(_) | Stream::Unix(_) => false,
    }
}

fn peek(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    match socket2::SockRef::from(stream).peek(&mut byte) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}
