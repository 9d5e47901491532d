//! Keeps what runs equal to what is configured.
//!
//! One task on the control runtime owns every change: files, signals, operators, discovery and checks all send it
//! messages, and it alone compiles, binds, publishes and starts or stops tasks. Starting is a reload from nothing. How
//! a configuration is taken up is in `reload`, how the process ends in `drain`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bellwether_core::Dice;
use bellwether_core::arbiter::{Opinion, Source};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checks;
use super::drain::Leaving;
use super::sockets::{Fresh, Sockets};
use super::systemd;
use super::upgrade::{NotReplaced, Successor};
use super::upkeep::upkeep;
use super::voice::Voice;
use super::worker::{Handle, Order};
use crate::admin::{Command, Context};
use crate::cluster::Cluster;
use crate::cluster::discovery::{self, Asked, Event as DiscoveryEvent};
use crate::cluster::health::{self, Said};
use crate::cluster::heartbeat;
use crate::cluster::outliers::Witness;
use crate::config::Document;
use crate::config::diagnostic::Diagnostics;
use crate::net::SocketAddress;
use crate::net::clock::Clock;
use crate::snapshot::blueprint::with_members;
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{Certificates, DiscoveryTask, Plan, ProbePlan};
use crate::snapshot::registry::Registry;
use crate::snapshot::{Direction, Snapshot};
use crate::telemetry::{
    AccessLog, Change, ConfigInForce, DiscoveryResult, DrainState, EndpointLabel, EventKind, Events, Label,
    ReloadResult, ReloadTrigger, Shown, Vitals, WorkerId,
};

/// Where the configuration comes from.
pub type Load = Box<dyn Fn() -> Result<Document, Diagnostics> + Send>;

/// Everything that outlives a configuration.
pub struct Supervisor {
    pub(super) load: Load,
    pub(super) registry: Registry,
    pub(super) clock: Clock,
    pub(super) dice: Dice,
    pub(super) cell: Arc<Cell>,
    pub(super) workers: Vec<Handle>,
    pub(super) sockets: Sockets,
    pub(super) plan: Plan,
    pub(super) events: Arc<Events>,
    pub(super) admin: Arc<Context>,
    pub(super) vitals: Arc<Vitals>,
    pub(super) log: Arc<AccessLog>,
    /// Ends the operators' listeners.
    pub operators: CancellationToken,
    /// What they end, once their last answers are sent.
    pub(super) serving_operators: Vec<JoinHandle<()>>,
    pub(super) resolver: Arc<discovery::dns::Resolver>,
    pub(super) tasks: Tasks,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    /// How this process was started, to start its successor in the same way.
    pub(super) successor: Successor,
    /// The start of a successor, while it lasts.
    pub(super) replacement: Option<AbortHandle>,
    /// A signal said to stop; the next one means at once.
    pub(super) signalled: bool,
    /// How often systemd wants a sign of life.
    pub(super) watchdog: Option<Duration>,
}

/// Background tasks by key.
#[derive(Default)]
pub(super) struct Tasks {
    pub(super) discovery: HashMap<Arc<str>, (DiscoveryTask, CancellationToken)>,
    pub(super) probes: HashMap<(Arc<str>, SocketAddress), (ProbePlan, CancellationToken)>,
    pub(super) heartbeats: HashMap<Arc<str>, Watching>,
    pub(super) config_watch: Option<(BTreeSet<PathBuf>, CancellationToken)>,
    pub(super) certificate_watch: Option<(BTreeSet<PathBuf>, CancellationToken)>,
    /// What readiness still waits for.
    pub(super) undiscovered: BTreeSet<Arc<str>>,
}

/// A cluster that is watched for signs of life.
pub(super) struct Watching {
    pub(super) settings: heartbeat::Settings,
    pub(super) question: Option<ProbePlan>,
    pub(super) cancel: CancellationToken,
}

/// Messages to the supervisor.
pub(super) struct Inbox {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) discovery: mpsc::Receiver<DiscoveryEvent>,
    pub(super) config_files: mpsc::Receiver<BTreeSet<PathBuf>>,
    pub(super) certificate_files: mpsc::Receiver<BTreeSet<PathBuf>>,
    pub(super) signals: mpsc::Receiver<Signal>,
    pub(super) replaced: mpsc::Receiver<Result<u32, NotReplaced>>,
}

/// Where tasks send theirs.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) discovery: mpsc::Sender<DiscoveryEvent>,
    pub(super) config_files: mpsc::Sender<BTreeSet<PathBuf>>,
    pub(super) certificate_files: mpsc::Sender<BTreeSet<PathBuf>>,
    pub(super) replaced: mpsc::Sender<Result<u32, NotReplaced>>,
}

/// What the process was told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: drain, then end. The number is for the exit code of a second one.
    Stop(i32),
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    Reopen,
    /// SIGUSR2.
    Upgrade,
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that ran was finished.
    Drained,
    /// This many connections were cut off.
    Cut(u32),
    /// A second signal ended it at once.
    Forced(i32),
}

/// Registry entries are looked at this often.
const SWEEP: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Runs until told to stop.
    pub async fn run(mut self) -> Ended {
        let mut sweep = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                Some(signal) = self.inbox.signals.recv() => match signal {
                    Signal::Stop(_) => {
                        self.signalled = true;
                        return self.drain(Leaving::Told).await;
                    }
                    Signal::Reload => self.reload_and_log(ReloadTrigger::Signal),
                    Signal::Reopen => self.log.reopen(),
                    Signal::Upgrade => self.replace(),
                },
                Some(command) = self.inbox.commands.recv() => {
                    if let Some(ended) = self.command(command).await {
                        return ended;
                    }
                }
                Some(outcome) = self.inbox.replaced.recv() => {
                    if let Some(ended) = self.replaced(outcome).await {
                        return ended;
                    }
                }
                Some(event) = self.inbox.discovery.recv() => self.discovered(&event),
                Some(_) = self.inbox.config_files.recv() => {
                    if self.plan.runtime.watch {
                        self.reload_and_log(ReloadTrigger::File);
                    }
                }
                Some(files) = self.inbox.certificate_files.recv() => self.reload_certificates(&files),
                _ = second.tick() => {
                    let snapshot = self.cell.load();
                    let mut dice = self.dice.split();
                    upkeep(&snapshot, self.witness(), &mut dice);
                    for cluster in &snapshot.clusters {
                        self.count_endpoints(cluster);
                    }
                }
                _ = sweep.tick() => self.registry.sweep(self.clock.now()),
                () = watchdog(self.watchdog) => told(systemd::watchdog()),
            }
        }
    }

    /// Makes the first snapshot the running one: sockets are bound already.
    pub(super) fn begin(&mut self, fresh: Vec<Fresh>) {
        for cluster in &self.cell.load().clusters {
            cluster.list(self.witness());
            self.prepare(cluster);
        }
        self.listen(fresh);
        self.reconcile();
        self.publish_facts(ReloadTrigger::Start);
    }

    async fn command(&mut self, command: Command) -> Option<Ended> {
        match command {
            Command::Reload { dry_run, answer } => {
                let report = self.reload(ReloadTrigger::Admin, dry_run);
                drop(answer.send(report));
            }
            Command::Drain { answer } => {
                self.announce(&[Direction::Inbound]).await;
                self.admin.readiness.set_draining(true);
                self.admin_drain_state(DrainState::Announced);
                answer.send(()).unwrap_or(());
            }
            Command::Undrain { answer } => {
                self.retract().await;
                self.admin.readiness.set_draining(false);
                self.admin_drain_state(DrainState::Serving);
                drop(answer.send(Ok(())));
            }
            Command::Quit { now: false } => return Some(self.drain(Leaving::Told).await),
            Command::Quit { now: true } => return Some(self.drain(Leaving::Now).await),
            Command::SetEndpoint {
                cluster,
                address,
                drained,
                reason,
                answer,
            } => {
                let done = self.set_endpoint(&cluster, &address, drained, reason);
                answer.send(done).unwrap_or_else(drop);
            }
        }
        None
    }

    fn set_endpoint(&self, cluster: &str, address: &str, drained: bool, reason: String) -> bool {
        let snapshot = self.cell.load();
        let found = snapshot
            .clusters
            .iter()
            .filter(|known| &*known.name == cluster)
            .find_map(|known| {
                let index = known.endpoints.iter().position(|e| &*e.label == address)?;
                Some((known, index))
            });
        let Some((known, index)) = found else {
            return false;
        };
        let (opinion, why) = match drained {
            true => (Opinion::Draining, health::reason::DRAINED),
            false => (Opinion::Up, health::reason::RESTORED),
        };
        let said = Said {
            source: Source::Admin,
            opinion,
            reason: why,
            evidence: reason,
        };
        known.say(index, said, self.witness());
        self.count_endpoints(known);
        true
    }

    // ---- discovery and checks ----

    fn discovered(&mut self, event: &DiscoveryEvent) {
        let recorder = self.registry.recorder();
        let metrics = recorder.cluster(&event.cluster);
        let result = match event.asked {
            Asked::Changed => DiscoveryResult::Changed,
            Asked::Unchanged | Asked::Held => DiscoveryResult::Unchanged,
            Asked::Empty => DiscoveryResult::Empty,
            Asked::Failed => DiscoveryResult::Failed,
        };
        metrics.discovery_updated(WorkerId::CONTROL, result, seconds_since_epoch());
        metrics.set_discovery_stale(event.stale);
        if let (Asked::Failed | Asked::Empty, Some(detail)) = (event.asked, &event.detail) {
            tracing::warn!(cluster = &*event.cluster, source = event.source.as_str(), %detail, "discovery found nobody");
        }
        if let Some(members) = &event.members {
            let snapshot = self.cell.load();
            let now = self.clock.now();
            if let Some(next) = with_members(&snapshot, &event.cluster, members, &self.registry, now) {
                let (before, after) = (count(&snapshot, &event.cluster), count(&next, &event.cluster));
                let endpoints = |count| format!("{count} endpoint{}", if count == 1 { "" } else { "s" });
                self.publish(Arc::new(next));
                self.event(
                    EventKind::Discovery,
                    event.cluster.to_string(),
                    endpoints(before),
                    endpoints(after),
                    event.source.as_str(),
                );
                let snapshot = self.cell.load();
                self.reconcile_probes(&snapshot);
                for worker in &self.workers {
                    worker.send(Order::Sweep);
                }
                if let Some(cluster) = snapshot
                    .clusters
                    .iter()
                    .find(|cluster| cluster.name == event.cluster)
                {
                    self.count_endpoints(cluster);
                }
            }
        }
        if event.asked.is_success() || event.members.is_some() {
            self.tasks.undiscovered.remove(&event.cluster);
            self.say_what_is_missing();
        }
    }

    pub(super) fn say_what_is_missing(&self) {
        let waiting = self
            .tasks
            .undiscovered
            .iter()
            .map(|cluster| format!("cluster {cluster}: first discovery answer"));
        self.admin.readiness.set_waiting(waiting.collect::<Vec<_>>());
    }

    // ---- telemetry ----

    pub(super) fn event(
        &self,
        kind: EventKind,
        subject: impl Into<String>,
        from: impl Into<String>,
        to: impl Into<String>,
        reason: impl Into<String>,
    ) {
        let event = self.events.push(Change {
            kind,
            subject: subject.into(),
            from: from.into(),
            to: to.into(),
            reason: reason.into(),
            evidence: String::new(),
            generation: self.cell.load().generation,
        });
        // Starting, reloading and draining write lines of their own, which say more.
        if !matches!(kind, EventKind::Config | EventKind::Drain) {
            let from = Some(&*event.from).filter(|from| !from.is_empty());
            let (subject, to, reason) = (&*event.subject, &*event.to, &*event.reason);
            tracing::info!(subject, from, to, reason, "{}", kind.name());
        }
    }

    pub(super) fn count_endpoints(&self, cluster: &Cluster) {
        let mut counts = [0; EndpointLabel::COUNT];
        for endpoint in &cluster.endpoints {
            let label = EndpointLabel::from(endpoint.state.availability().state());
            counts[label.index()] += 1;
            endpoint.metrics.set_up(endpoint.is_usable());
            let share = f64::from(endpoint.state.arbiter.factor());
            endpoint.metrics.set_weight(f64::from(endpoint.weight) * share);
        }
        for label in EndpointLabel::ALL {
            cluster.metrics.set_endpoints(*label, counts[label.index()]);
        }
    }

    /// Who speaks here about endpoints.
    pub(super) fn witness(&self) -> Witness<'_> {
        Witness {
            worker: WorkerId::CONTROL,
            events: &self.events,
            generation: self.cell.load().generation,
            now: self.clock.now(),
            score: self.vitals.score(),
        }
    }

    /// What tasks need to speak about endpoints.
    pub(super) fn voice(&self) -> Voice {
        Voice {
            cell: Arc::clone(&self.cell),
            clock: self.clock,
            events: Arc::clone(&self.events),
            vitals: Arc::clone(&self.vitals),
        }
    }

    /// Decides how members are treated that are new, before the cluster serves, and which of its series are shown.
    fn prepare(&self, cluster: &Cluster) {
        let is_checked = self.plan.probes.iter().any(|plan| plan.cluster == cluster.name);
        let is_told = self
            .plan
            .discovery
            .iter()
            .any(|task| task.cluster == cluster.name);
        let shown = |shown: bool| if shown { Shown::Yes } else { Shown::No };
        cluster.metrics.show(shown(is_told), shown(is_checked));
        if is_checked {
            checks::prepare(cluster, self.witness());
        }
    }

    /// Makes this the snapshot that serves.
    pub(super) fn publish(&self, next: Arc<Snapshot>) {
        let before = self.cell.load();
        for cluster in &next.clusters {
            cluster.list(self.witness());
            self.prepare(cluster);
        }
        let members = next.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let listed: HashSet<u64> = members.map(|endpoint| endpoint.state.id).collect();
        self.cell.store(next);
        for cluster in &before.clusters {
            cluster.unlist(&listed, self.witness());
        }
    }

    pub(super) fn publish_facts(&self, trigger: ReloadTrigger) {
        let snapshot = self.cell.load();
        let process = self.registry.recorder().process();
        process.set_config(ConfigInForce {
            hash: snapshot.hash.to_string(),
            generation: snapshot.generation,
            since: seconds_since_epoch(),
        });
        if trigger == ReloadTrigger::Start {
            process.config_reloaded(ReloadResult::Applied, trigger);
        }
        self.event(
            EventKind::Config,
            "config",
            "",
            format!("generation {}", snapshot.generation),
            crate::telemetry::Label::word(trigger),
        );
        self.publish_certificates();
    }

    pub(super) fn publish_certificates(&self) {
        let mut facts = Vec::new();
        for certificates in &self.plan.certificates {
            match certificates {
                Certificates::Server { tls, owner } => {
                    for fact in tls.certificates().iter() {
                        facts.push((
                            format!("{owner} {}", fact.file.display()).into(),
                            u64::try_from(fact.not_after).unwrap_or(0),
                        ));
                    }
                }
                Certificates::Client { tls, owner } => {
                    if let Some(fact) = tls.identity() {
                        facts.push((
                            format!("{owner} {}", fact.file.display()).into(),
                            u64::try_from(fact.not_after).unwrap_or(0),
                        ));
                    }
                }
            }
        }
        self.registry.recorder().process().set_certificates(facts);
    }

    pub(super) fn admin_drain_state(&self, state: DrainState) {
        self.registry.recorder().process().set_drain_state(state);
        self.event(
            EventKind::Drain,
            "process",
            "",
            crate::telemetry::Label::word(state),
            "",
        );
    }
}

/// Completes when systemd is due a sign of life.
async fn watchdog(every: Option<Duration>) {
    match every {
        Some(every) => tokio::time::sleep(every).await,
        None => std::future::pending().await,
    }
}

/// A notice to systemd that does not arrive changes nothing here.
pub(super) fn told(sent: std::io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn count(snapshot: &Snapshot, cluster: &str) -> usize {
    let known = snapshot.clusters.iter().find(|known| &*known.name == cluster);
    known.map_or(0, |cluster| cluster.endpoints.len())
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
