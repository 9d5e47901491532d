//! Peers of the proxy, and the proxy itself as a process.

pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod frames;
pub(crate) mod grpc;
pub(crate) mod h2;
pub(crate) mod http1;
pub(crate) mod load;
pub(crate) mod pki;
pub(crate) mod proxy;
pub(crate) mod tls;
pub(crate) mod upstream;

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;

/// How long a test waits for what must happen. Nothing is ever claimed about how long it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where upstreams and load live, so that a test that blocks does not stop them.
pub(crate) fn background() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    });
    &RUNTIME
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn soon<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_elapsed) => panic!("waited {PATIENCE:?} for {what} ({caller})"),
        }
    }
}

/// Asks again and again until the answer is yes.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let give_up = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < give_up,
                "waited {PATIENCE:?} until {what} ({caller})"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The same for a question whose answer takes a while.
#[track_caller]
pub(crate) fn eventually_async<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let give_up = Instant::now() + PATIENCE;
        while !condition().await {
            assert!(
                Instant::now() < give_up,
                "waited {PATIENCE:?} until {what} ({caller})"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
