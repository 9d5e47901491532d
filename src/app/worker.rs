//! One worker: a thread with a runtime of its own, and everything a request touches.
//!
//! A worker is told what to do by messages and tells nothing back but its counts. It never waits for another thread:
//! connections, pools, timers and metric cells are its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bellwether_core::shed::Overload;
use bellwether_core::{Dice, Moment};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::cluster::pool::Pools;
use crate::net::clock::Clock;
use crate::net::tcp::{self, Bound};
use crate::net::wheel::Wheel;
use crate::net::{Detached, PeerInfo};
use crate::proxy::Worker;
use crate::server::Shared;
use crate::server::listener::{Accepting, Load};
use crate::snapshot::Listener;
use crate::snapshot::cell::{Cell, Reader};
use crate::telemetry::{AWAKE, AccessLog, Events, ProcessMetrics, Vitals, WorkerId};
use crate::wire::{Drain, Toolbox};

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Accept connections of a listener from these sockets.
    Listen {
        /// Identity of the listening sockets.
        key: Arc<str>,
        /// The listener as it is now.
        listener: Arc<Listener>,
        /// Counts over all workers.
        shared: Arc<Shared>,
        /// The worker's own sockets; more than one after a hand-over from a process with more workers.
        sockets: Vec<Bound>,
        /// Socket options of accepted connections.
        options: tcp::ConnectOptions,
    },
    /// Stop accepting from a listener. What is queued is still accepted.
    StopAccepting {
        /// Identity of the listening sockets.
        key: Arc<str>,
    },
    /// Let answers of HTTP/1.1 be the last of their connections, so that nobody sends into one that is about to close.
    Announce {
        /// Identity of the listening sockets.
        key: Arc<str>,
    },
    /// Take [`Order::Announce`] back.
    Retract {
        /// Identity of the listening sockets.
        key: Arc<str>,
    },
    /// Stop accepting, and end the connections of a listener in good order.
    Drain {
        /// Identity of the listening sockets.
        key: Arc<str>,
    },
    /// Serve a connection that another worker accepted.
    Serve {
        /// Identity of the listening sockets.
        key: Arc<str>,
        /// The connection.
        io: Detached,
        /// Who is at its other end.
        peer: Box<PeerInfo>,
    },
    /// Say when all orders before this one are done, and what was queued at sockets given up is accepted and counted.
    Settle {
        /// Answered then.
        done: oneshot::Sender<()>,
    },
    /// Close idle connections to endpoints that the present snapshot does not know.
    Sweep,
    /// End now; whatever still runs is cut.
    Stop {
        /// Answered when nothing of the worker is left.
        done: oneshot::Sender<()>,
    },
}

/// What a worker is made with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Snapshots.
    pub cell: Arc<Cell>,
    /// The clock of the process.
    pub clock: Clock,
    /// What changes.
    pub events: Arc<Events>,
    /// Access log.
    pub log: Arc<AccessLog>,
    /// Series of the process.
    pub metrics: Arc<ProcessMetrics>,
    /// Connections per worker.
    pub load: Arc<Load>,
    /// How the process is doing.
    pub vitals: Arc<Vitals>,
    /// What the process has to give up.
    pub overload: Arc<Overload>,
}

/// How to reach a worker.
#[derive(Debug)]
pub struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    thread: thread::JoinHandle<()>,
}

impl Handle {
    /// Gives an order. A worker that has ended does not take any.
    pub fn send(&self, order: Order) {
        drop(self.orders.send(order));
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// The access log of a worker is handed over when it has been awake so often.
const FLUSH: u32 = 5;

/// Starts `count` workers.
///
/// # Errors
/// When the system has no thread or no runtime to give.
pub fn start(count: usize, parts: &Parts, dice: &mut Dice) -> io::Result<Vec<Handle>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    receivers
        .into_iter()
        .enumerate()
        .map(|(index, orders)| {
            let parts = parts.clone();
            let others = senders.clone();
            let seed = dice.next_u64();
            let id = WorkerId::new(u16::try_from(index).unwrap_or(u16::MAX));
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    if let Err(error) = run(id, &parts, orders, others, seed) {
                        tracing::error!(%error, worker = id.index(), "a worker could not start");
                    }
                })?;
            Ok(Handle {
                orders: senders[index].clone(),
                thread,
            })
        })
        .collect()
}

fn run(
    id: WorkerId,
    parts: &Parts,
    orders: mpsc::UnboundedReceiver<Order>,
    others: Vec<mpsc::UnboundedSender<Order>>,
    seed: u64,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(61)
        .build_local(LocalOptions::default())?;
    let parts = parts.clone();
    runtime.block_on(async move {
        let wheel = Wheel::new(parts.clock);
        tokio::task::spawn_local(wheel.clone().drive());
        let tools = Toolbox::new(wheel, Arc::clone(&parts.overload));
        let worker = Rc::new(Worker {
            id,
            pools: Pools::new(tools.clone(), id),
            tools,
            dice: RefCell::new(Dice::new(seed)),
            reader: Reader::new(Arc::clone(&parts.cell)),
            log: parts.log.writer(id),
            metrics: Arc::clone(&parts.metrics),
            events: Arc::clone(&parts.events),
            vitals: Arc::clone(&parts.vitals),
            cut: std::cell::Cell::new(Moment::ZERO),
            wall: std::cell::Cell::new((Duration::ZERO, Moment::ZERO)),
        });
        tokio::task::spawn_local(keep_awake(Rc::clone(&worker), parts.clone()));
        Orders {
            worker,
            parts,
            others,
            listeners: HashMap::new(),
            left: HashMap::new(),
            stopping: Vec::new(),
        }
        .obey(orders)
        .await;
    });
    Ok(())
}

/// Hands the access log over, and measures how late this worker gets to what is due.
async fn keep_awake(worker: Rc<Worker>, parts: Parts) {
    let mut times = 0u32;
    loop {
        let due = tokio::time::Instant::now() + AWAKE;
        tokio::time::sleep_until(due).await;
        let late = due.elapsed();
        parts.vitals.awake(worker.id, late, parts.clock.now());
        times = times.wrapping_add(1);
        if times.is_multiple_of(FLUSH) {
            parts.metrics.runtime_lag(worker.id, late);
            worker.log.flush();
        }
    }
}

struct Orders {
    worker: Rc<Worker>,
    parts: Parts,
    others: Vec<mpsc::UnboundedSender<Order>>,
    listeners: HashMap<Arc<str>, Running>,
    /// Listeners that no longer accept here: another worker may still have sent us one of their connections.
    left: HashMap<Arc<str>, Running>,
    /// Accept loops that were told to stop.
    stopping: Vec<JoinHandle<()>>,
}

struct Running {
    accepting: Rc<Accepting>,
    stop: Rc<Drain>,
    /// One per socket.
    loops: Vec<JoinHandle<()>>,
}

impl Orders {
    async fn obey(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Listen {
                    key,
                    listener,
                    shared,
                    sockets,
                    options,
                } => {
                    self.listen(key, listener, shared, sockets, options);
                }
                Order::StopAccepting { key } => {
                    if let Some(running) = self.listeners.get_mut(&key) {
                        running.stop.begin();
                        self.stopping.append(&mut running.loops);
                    }
                }
                Order::Announce { key } => {
                    if let Some(running) = self.listeners.get(&key) {
                        running.accepting.drain.announce();
                    }
                }
                Order::Retract { key } => {
                    if let Some(running) = self.listeners.get(&key) {
                        running.accepting.drain.retract();
                    }
                }
                Order::Drain { key } => {
                    // Later orders for the same key are about new sockets.
                    if let Some(mut running) = self.listeners.remove(&key) {
                        running.stop.begin();
                        self.stopping.append(&mut running.loops);
                        running.accepting.drain.begin();
                        self.left.insert(key, running);
                    }
                }
                Order::Settle { done } => {
                    let stopping = std::mem::take(&mut self.stopping);
                    tokio::task::spawn_local(async move {
                        for accepting in stopping {
                            // One that panicked accepts nothing more either.
                            drop(accepting.await);
                        }
                        done.send(()).unwrap_or(());
                    });
                }
                Order::Serve { key, io, peer } => match (
                    self.listeners.get(&key).or_else(|| self.left.get(&key)),
                    io.attach(),
                ) {
                    (Some(running), Ok(io)) => running.accepting.serve(io, *peer),
                    (None, _) | (_, Err(_)) => {}
                },
                Order::Sweep => self.sweep(),
                Order::Stop { done } => {
                    self.worker.log.flush();
                    done.send(()).unwrap_or(());
                    return;
                }
            }
        }
    }

    fn listen(
        &mut self,
        key: Arc<str>,
        listener: Arc<Listener>,
        shared: Arc<Shared>,
        sockets: Vec<Bound>,
        options: tcp::ConnectOptions,
    ) {
        let others = self.others.clone();
        let given = Arc::clone(&key);
        let give_away = Rc::new(move |to: usize, io: crate::net::Io, peer: PeerInfo| {
            let Some(other) = others.get(to) else {
                return Some((io, peer));
            };
            match io.detach() {
                Ok(io) => {
                    let order = Order::Serve {
                        key: Arc::clone(&given),
                        io,
                        peer: Box::new(peer),
                    };
                    // A worker that has ended takes its connections with it.
                    drop(other.send(order));
                    None
                }
                Err(io) => Some((io, peer)),
            }
        });
        let accepting = Rc::new(Accepting {
            worker: Rc::clone(&self.worker),
            listener: RefCell::new(listener),
            shared,
            load: Arc::clone(&self.parts.load),
            drain: Rc::default(),
            give_away,
        });
        let stop = Rc::<Drain>::default();
        let mut loops = Vec::with_capacity(sockets.len());
        for socket in sockets {
            match tcp::Listener::new(socket, options) {
                Ok(socket) => {
                    let accepting = Rc::clone(&accepting).run(socket, Rc::clone(&stop));
                    loops.push(tokio::task::spawn_local(accepting));
                }
                Err(error) => tracing::error!(%error, key = &*key, "cannot accept from a socket"),
            }
        }
        let running = Running {
            accepting,
            stop,
            loops,
        };
        self.listeners.insert(key, running);
    }

    fn sweep(&self) {
        let world = self.worker.reader.current();
        let known: std::collections::HashSet<(u64, u64)> = world
            .clusters
            .iter()
            .flat_map(|cluster| {
                cluster
                    .endpoints
                    .iter()
                    .map(|endpoint| (endpoint.state.id, cluster.transport))
            })
            .collect();
        self.worker
            .pools
            .retain(|endpoint, transport| known.contains(&(endpoint, transport)));
    }
}
