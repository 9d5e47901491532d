//! The accept loop of one listener on one worker.
//!
//! The kernel spreads connections over the sockets of a group by hash, which is uneven when there are few of them. A
//! worker that has clearly more than its share hands a fresh connection to the one that has least: one message per
//! connection, none per request.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::Shared;
use super::connection::{self, Accepted};
use crate::net::tcp;
use crate::net::{Io, PeerInfo};
use crate::proxy::Worker;
use crate::snapshot::Listener;
use crate::telemetry::ConnectionRejection;
use crate::wire::{Drain, DrainMember};

/// Connections of every worker, for balancing. Made once, shared by all workers.
#[derive(Debug)]
pub struct Load {
    workers: Box<[AtomicU32]>,
}

impl Load {
    /// For this many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    // Ordering: a balance need not be exact.

    fn enter(&self, worker: usize) {
        self.workers[worker].fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self, worker: usize) {
        self.workers[worker].fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections of a worker.
    pub fn of(&self, worker: usize) -> u32 {
        self.workers[worker].load(Ordering::Relaxed)
    }

    /// Whom to give a new connection of `worker`, if somebody else has clearly less.
    fn lighter_than(&self, worker: usize) -> Option<usize> {
        let own = self.of(worker);
        let (lightest, least) = (0..self.workers.len())
            .map(|other| (other, self.of(other)))
            .min_by_key(|(_, connections)| *connections)?;
        // A quarter above the lightest, and two more, so that single connections stay where they are.
        (lightest != worker && own > least + least / 4 + 2).then_some(lightest)
    }
}

/// How to send a connection to another worker; what could not be sent comes back.
pub type GiveAway = Rc<dyn Fn(usize, Io, PeerInfo) -> Option<(Io, PeerInfo)>>;

/// One listener on one worker.
pub struct Accepting {
    /// The worker.
    pub worker: Rc<Worker>,
    /// Finds the listener in the present snapshot; a listener that has left keeps its last state.
    pub listener: RefCell<Arc<Listener>>,
    /// Counts over all workers.
    pub shared: Arc<Shared>,
    /// Counts of all listeners, per worker.
    pub load: Arc<Load>,
    /// Ends connections.
    pub drain: Rc<Drain>,
    /// Sends connections to other workers.
    pub give_away: GiveAway,
}

impl std::fmt::Debug for Accepting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepting")
            .field("listener", &self.listener.borrow().name)
            .finish_non_exhaustive()
    }
}

impl Accepting {
    /// Accepts until told to stop, and then what is already queued: the kernel resets what is left in a queue when its
    /// socket closes.
    pub async fn run(self: Rc<Self>, socket: tcp::Listener, stop: Rc<Drain>) {
        let member = stop.join();
        loop {
            let accepted = {
                let mut accept = std::pin::pin!(socket.accept());
                poll_fn(|cx| {
                    if let Poll::Ready(accepted) = accept.as_mut().poll(cx) {
                        return Poll::Ready(Some(accepted));
                    }
                    if member.poll_draining(cx) {
                        Poll::Ready(None)
                    } else {
                        Poll::Pending
                    }
                })
                .await
            };
            match accepted {
                Some(Ok((io, peer))) => {
                    self.until_affordable(&member).await;
                    self.place(io, peer);
                }
                Some(Err(error)) => {
                    // Out of descriptors: those who are connected are served on, the rest waits in the queue.
                    tracing::warn!(%error, listener = %self.listener.borrow().name, "cannot accept connections");
                    let wheel = &self.worker.tools.wheel;
                    wheel
                        .sleep_until(wheel.now().plus(Duration::from_millis(100)))
                        .await;
                }
                None => return,
            }
        }
    }

    /// Waits while the process cannot afford the connection that was just accepted; those behind it wait in the kernel's
    /// queue.
    async fn until_affordable(&self, stop: &DrainMember) {
        let tools = &self.worker.tools;
        while !tools.level().allows_accepting() {
            let mut pause = std::pin::pin!(tools.wheel.sleep_until(tools.wheel.now().plus(LOOK_AGAIN)));
            let stopped = poll_fn(|cx| match pause.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(false),
                Poll::Pending if stop.poll_draining(cx) => Poll::Ready(true),
                Poll::Pending => Poll::Pending,
            });
            if stopped.await {
                return;
            }
        }
    }

    fn place(self: &Rc<Self>, io: Io, peer: PeerInfo) {
        match self.load.lighter_than(self.worker.id.index()) {
            Some(other) => {
                if let Some((io, peer)) = (self.give_away)(other, io, peer) {
                    self.serve(io, peer);
                }
            }
            None => self.serve(io, peer),
        }
    }

    /// Serves a connection on this worker.
    pub fn serve(self: &Rc<Self>, io: Io, peer: PeerInfo) {
        let source = self.worker.reader.current();
        let known = Arc::clone(&self.listener.borrow());
        let listener = source.listener(&known.name).map_or(known, Arc::clone);
        self.listener.replace(Arc::clone(&listener));
        let Some(place) = self.shared.enter(listener.max_connections) else {
            listener
                .metrics
                .connection_rejected(self.worker.id, ConnectionRejection::Limit);
            return;
        };
        let accepting = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let worker = Rc::clone(&accepting.worker);
            let _counted = Counted::enter(&accepting);
            let accepted = Accepted { io, peer, place };
            connection::serve(worker, source, listener, accepted, Rc::clone(&accepting.drain)).await;
        });
    }
}

/// How often a worker looks whether it may accept again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

struct Counted<'a>(&'a Accepting);

impl<'a> Counted<'a> {
    fn enter(accepting: &'a Accepting) -> Self {
        accepting.load.enter(accepting.worker.id.index());
        Self(accepting)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.load.leave(self.0.worker.id.index());
    }
}
