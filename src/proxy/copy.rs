//! Copies of requests whose answers nobody waits for.
//!
//! A *mirror* gets a copy for another cluster, and nothing is learned from it. A *rehearsal* goes to an endpoint that is
//! ejected, to find out whether it works again without a user who pays for the answer: only requests that anybody may
//! repeat and that have no content are copied, and the answer is judged to its last byte.
//!
//! What must stay true: a copy never touches the request it was made of, and ends within [`TIMEOUT`].

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bellwether_core::Outcome;
use bellwether_core::limit::Stay;
use bellwether_core::shed::Priority;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Worker;
use super::attempt::Sendable;
use super::cx::RequestCx;
use crate::cluster::exchange::{Answer, Checkout, Exchange, Outgoing};
use crate::cluster::outliers::Witness;
use crate::cluster::pool::Freshness;
use crate::cluster::{Ask, Cluster, Picked, Tried};
use crate::message::grpc;
use crate::message::replay::Upload;
use crate::snapshot::{FailureWhen, Route};

/// A copy that has not been answered by then is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an answer is read, to keep its connection.
const MOST: u64 = 1024 * 1024;

/// Says to who gets it that a request is a copy, and what for.
const COPY: HeaderName = HeaderName::from_static("x-bellwether-copy");

/// Everything a copy needs of the request.
struct Copied {
    method: Method,
    target: String,
    headers: HeaderMap,
    added: Vec<(HeaderName, HeaderValue)>,
    content: Bytes,
}

impl Copied {
    fn of(sendable: &Sendable<'_>, content: Bytes, what_for: &'static str) -> Self {
        let mut added = sendable.added.to_vec();
        added.push((COPY, HeaderValue::from_static(what_for)));
        Self {
            added,
            method: sendable.method.clone(),
            target: sendable.target.to_owned(),
            headers: sendable.headers.clone(),
            content,
        }
    }

    /// Sends it to an endpoint and reads the answer. None where there was no complete one in time; otherwise whether it
    /// was good in the eyes of `when`, and how long its head took.
    async fn send(
        self,
        worker: &Worker,
        cluster: &Arc<Cluster>,
        index: usize,
        when: Option<&FailureWhen>,
    ) -> Option<(bool, Duration)> {
        let started = worker.tools.wheel.now();
        let exchanging = async {
            let checkout = Checkout::open(&worker.pools, cluster, index, Freshness::Any, None)
                .await
                .ok()?;
            let outgoing = Outgoing {
                method: &self.method,
                target: self.target.as_bytes(),
                headers: &self.headers,
                added: &self.added,
                upgrade: None,
            };
            let mut exchange = Exchange::start(checkout, &outgoing, Upload::full(self.content)).ok()?;
            let head = loop {
                if let Answer::Final(head) = poll_fn(|task| exchange.poll_answer(task)).await.ok()? {
                    break head;
                }
            };
            let took = worker.tools.wheel.now().since(started);
            let is_good = |outcome| matches!(outcome, Outcome::Success | Outcome::Slow);
            let mut good = when.is_none_or(|when| is_good(when.of_status(head.status, None)));
            let mut code = grpc::Code::of(&head.headers);
            let mut read = 0;
            while read < MOST && !exchange.is_end_stream() {
                let Some(frame) = poll_fn(|task| exchange.poll_frame(task)).await else {
                    break;
                };
                let frame = frame.ok()?;
                read += frame.data_ref().map_or(0, |data| data.len() as u64);
                code = code.or_else(|| grpc::Code::of(frame.trailers_ref()?));
            }
            if let (Some(when), Some(code)) = (when, code) {
                good &= is_good(when.of_grpc(code.number()));
            }
            Some((good, took))
        };
        let load = &cluster.endpoints[index].state.load;
        load.begin(started);
        let mut exchanging = std::pin::pin!(exchanging);
        let timer = worker.tools.wheel.timer();
        timer.set(started.plus(TIMEOUT));
        let result = poll_fn(|task| match exchanging.as_mut().poll(task) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => timer.poll_expired(task).map(|()| None),
        })
        .await;
        load.unheard();
        load.end_ignored();
        result
    }
}

/// Sends a copy to another cluster, and learns nothing from it.
pub(super) fn mirror(cx: &RequestCx, cluster: Arc<Cluster>, sendable: &Sendable<'_>, content: Bytes) {
    let worker = Rc::clone(&cx.worker);
    let copied = Copied::of(sendable, content, "mirror");
    tokio::task::spawn_local(async move {
        let now = worker.tools.wheel.now();
        let ask = Ask {
            tried: &Tried::new(),
            hash: None,
            may_probe: false,
            // The first to go without.
            priority: Priority::Low,
            stay: Stay::Brief,
            guard: None,
        };
        let entered = cluster.enter(&ask, now, &mut worker.dice.borrow_mut());
        let Ok((_seat, picked)) = entered else { return };
        let Picked {
            index, seat: _place, ..
        } = picked;
        copied.send(&worker, &cluster, index, None).await;
    });
}

/// Sends a copy to an endpoint that is ejected, if there is one that is to be asked now.
pub(super) fn rehearse(cx: &RequestCx, route: &Arc<Route>, cluster: &Arc<Cluster>, sendable: &Sendable<'_>) {
    let Some(index) = cluster.rehearsal(cx.worker.tools.wheel.recent()) else {
        return;
    };
    let (worker, route, cluster) = (Rc::clone(&cx.worker), Arc::clone(route), Arc::clone(cluster));
    let generation = cx.view.snapshot.generation;
    let copied = Copied::of(sendable, Bytes::new(), "rehearsal");
    tokio::task::spawn_local(async move {
        let result = copied
            .send(&worker, &cluster, index, Some(&route.failure_when))
            .await;
        let (well, took) = result.unwrap_or((false, TIMEOUT));
        let witness = Witness {
            worker: worker.id,
            events: &worker.events,
            generation,
            now: worker.tools.wheel.recent(),
            score: worker.vitals.score(),
        };
        cluster.rehearsed(index, well, took, witness);
    });
}
