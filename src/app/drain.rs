//! The way out: draining, and giving everything to a successor.
//!
//! Nothing is lost on the way because of the order of the steps. First those who choose where requests go hear that we
//! are leaving: `/readyz` says no, and every answer of HTTP/1.1 is the last one of its connection, so that a client
//! never sends into a connection that closes at that moment. HTTP/2 needs no such time, its GOAWAY says which requests
//! were taken. After `drain.min` we stop accepting, take what is queued, send GOAWAY and close what is idle. What runs
//! then has until `drain.max`.
//!
//! A successor has the same sockets, so with one we stop accepting at once; everything else is the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::supervisor::{Ended, Signal, Supervisor, told};
use super::systemd;
use super::upgrade::{Handover, NotReplaced};
use super::worker::Order;
use crate::admin::Command;
use crate::snapshot::Direction;
use crate::telemetry::{Change, DrainState, EventKind};

/// How often the drain looks whether it is done.
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// How long a worker may take to obey; they do within microseconds.
const OBEDIENCE: Duration = Duration::from_secs(1);

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It was told to.
    Told,
    /// It was told not to wait for anybody.
    Now,
    /// A successor has its sockets.
    Replaced,
}

impl Supervisor {
    /// Ends everything in good order, as far as there is time.
    pub(super) async fn drain(&mut self, leaving: Leaving) -> Ended {
        const BOTH: [Direction; 2] = [Direction::Inbound, Direction::Outbound];
        let runtime = &self.plan.runtime;
        let (min, max) = match leaving {
            Leaving::Told | Leaving::Replaced => (runtime.drain_min, runtime.drain_max),
            Leaving::Now => (Duration::ZERO, Duration::ZERO),
        };
        // The application may still need its way out after everything that came in is finished; a successor offers one.
        let out_last = runtime.wait_for_app && leaving != Leaving::Replaced;
        let replacement = self.replacement.take();
        if let Some(replacement) = replacement.filter(|_| leaving != Leaving::Replaced) {
            // One who would serve although the service is to end.
            replacement.abort();
        }
        told(systemd::stopping("draining"));
        tracing::info!(?min, ?max, "draining");
        let (quiet, ends) = (Instant::now() + min, Instant::now() + min + max);
        let announced = if out_last { &BOTH[..1] } else { &BOTH };
        self.announce(announced).await;
        self.admin.readiness.set_draining(true);
        self.admin_drain_state(DrainState::Announced);
        if leaving == Leaving::Replaced {
            self.stop_accepting(&BOTH).await;
        }
        let waited = match leaving {
            // Others may still send us new connections.
            Leaving::Told | Leaving::Now => self.pause(quiet).await,
            Leaving::Replaced => self.until_idle(&BOTH, quiet).await,
        };
        if let Some(ended) = waited {
            return ended;
        }
        self.admin_drain_state(DrainState::Draining);
        for (index, directions) in BOTH.chunks(1).enumerate() {
            if out_last
                && index > 0
                && let Some(ended) = self.until_idle(directions, ends).await
            {
                return ended;
            }
            self.stop_accepting(directions).await;
            self.end_connections(directions).await;
            if let Some(ended) = self.until_idle(directions, ends).await {
                return ended;
            }
        }
        let cut = self.connections(&BOTH);
        self.admin_drain_state(DrainState::Stopped);
        self.stop_workers().await;
        if cut == 0 {
            tracing::info!("drained");
            Ended::Drained
        } else {
            tracing::warn!(connections = cut, "stopped with connections cut off");
            Ended::Cut(cut)
        }
    }

    async fn until_idle(&mut self, directions: &[Direction], ends: Instant) -> Option<Ended> {
        while self.connections(directions) > 0 && Instant::now() < ends {
            if let Some(ended) = self.pause(Instant::now() + DRAIN_STEP).await {
                return Some(ended);
            }
        }
        None
    }

    /// From here on every answer of HTTP/1.1 says that it is the last of its connection.
    pub(super) async fn announce(&self, directions: &[Direction]) {
        self.order(directions, |key| Order::Announce { key }).await;
    }

    /// Takes [`Self::announce`] back.
    pub(super) async fn retract(&self) {
        let both = [Direction::Inbound, Direction::Outbound];
        self.order(&both, |key| Order::Retract { key }).await;
    }

    async fn stop_accepting(&mut self, directions: &[Direction]) {
        for key in self.keys(directions) {
            self.sockets.release(&key);
        }
        self.order(directions, |key| Order::StopAccepting { key }).await;
        // What a worker accepted last may be on its way to another one.
        self.obeyed().await;
    }

    async fn end_connections(&self, directions: &[Direction]) {
        self.order(directions, |key| Order::Drain { key }).await;
    }

    /// Has all workers do something with the listeners of these directions, and waits until they have.
    async fn order(&self, directions: &[Direction], order: impl Fn(Arc<str>) -> Order) {
        for key in self.keys(directions) {
            for worker in &self.workers {
                worker.send(order(Arc::clone(&key)));
            }
        }
        self.obeyed().await;
    }

    /// Waits until all workers have done what they were told so far.
    pub(super) async fn obeyed(&self) {
        let waiting: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (done, obeyed) = oneshot::channel();
                worker.send(Order::Settle { done });
                obeyed
            })
            .collect();
        let all = async {
            for worker in waiting {
                // A worker that has died has nothing left to do.
                drop(worker.await);
            }
        };
        if tokio::time::timeout(OBEDIENCE, all).await.is_err() {
            tracing::warn!("a worker does not follow");
        }
    }

    fn keys(&self, directions: &[Direction]) -> Vec<Arc<str>> {
        let open = self.sockets.iter();
        open.filter(|(_, open)| directions.contains(&open.listener.direction))
            .map(|(key, _)| Arc::clone(key))
            .collect()
    }

    fn connections(&self, directions: &[Direction]) -> u32 {
        let open = self.sockets.iter();
        open.filter(|(_, open)| directions.contains(&open.listener.direction))
            .map(|(_, open)| open.shared.connections())
            .sum()
    }

    /// Waits, and answers operators; a second signal ends everything at once.
    async fn pause(&mut self, until: Instant) -> Option<Ended> {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return None,
                Some(signal) = self.inbox.signals.recv() => {
                    // The first one may come after an order to quit, or to a process that has been replaced.
                    if let Signal::Stop(number) = signal
                        && std::mem::replace(&mut self.signalled, true)
                    {
                        self.log_settle();
                        return Some(Ended::Forced(number));
                    }
                }
                Some(command) = self.inbox.commands.recv() => match command {
                    Command::Undrain { answer } => {
                        drop(answer.send(Err("the process is stopping".to_owned())));
                    }
                    Command::Quit { now: true } => {
                        self.log_settle();
                        return Some(Ended::Cut(self.connections(&[Direction::Inbound, Direction::Outbound])));
                    }
                    Command::Drain { answer } => drop(answer.send(())),
                    // Dropping the answer says that it will not be done.
                    Command::Reload { .. } | Command::Quit { now: false } | Command::SetEndpoint { .. } => {}
                },
            }
        }
    }

    async fn stop_workers(&mut self) {
        for worker in &self.workers {
            let (done, stopped) = oneshot::channel();
            worker.send(Order::Stop { done });
            // A worker that has died has stopped too.
            drop(tokio::time::timeout(OBEDIENCE, stopped).await);
        }
        self.log_settle();
    }

    // ---- a successor ----

    /// Starts a successor and hands the sockets over; [`Self::replaced`] is told how it ended. This process serves on
    /// as if nothing happened, also with changes of its own, until the successor is ready.
    pub(super) fn replace(&mut self) {
        if self
            .replacement
            .as_ref()
            .is_some_and(|running| !running.is_finished())
        {
            tracing::warn!("a successor is being started already");
            return;
        }
        let mut handover = Handover::new(self.legacy());
        for (key, socket) in self.sockets.copies() {
            if let Err(error) = handover.add(key, socket) {
                self.not_replaced(&NotReplaced::Broken(error));
                return;
            }
        }
        let successor = self.successor.clone();
        let outcome = self.outbox.replaced.clone();
        let started = tokio::spawn(async move {
            let spawned = handover.spawn(&successor).await;
            // The supervisor is there until the process ends.
            drop(outcome.send(spawned).await);
        });
        self.replacement = Some(started.abort_handle());
    }

    /// A successor serves, and this process has to leave; or it does not.
    pub(super) async fn replaced(&mut self, outcome: Result<u32, NotReplaced>) -> Option<Ended> {
        match outcome {
            Ok(pid) => {
                tracing::info!(pid, "replaced by a new process");
                self.tell_of_replacement("replaced", format!("process {pid} serves"));
                // It has the operators' sockets too.
                self.operators.cancel();
                let ended = self.drain(Leaving::Replaced).await;
                for serving in self.serving_operators.drain(..) {
                    // Bounded by itself; one that panicked has nothing left to answer.
                    drop(serving.await);
                }
                Some(ended)
            }
            Err(error) => {
                self.not_replaced(&error);
                None
            }
        }
    }

    fn not_replaced(&self, error: &NotReplaced) {
        tracing::error!("not replaced, this process goes on: {error}");
        self.tell_of_replacement("refused", error.to_string());
    }

    fn tell_of_replacement(&self, to: &str, evidence: String) {
        self.events.push(Change {
            kind: EventKind::Replacement,
            subject: "process".to_owned(),
            from: String::new(),
            to: to.to_owned(),
            reason: "signal".to_owned(),
            evidence,
            generation: self.cell.load().generation,
        });
    }

    fn log_settle(&self) {
        let log = Arc::clone(&self.log);
        tokio::task::block_in_place(move || log.settle(Duration::from_secs(2)));
    }
}
