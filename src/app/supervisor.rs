//! Keeps what runs equal to what is configured.
//!
//! One task on the control runtime owns every change: files, signals, operators, discovery and checks all send it
//! messages, and it alone compiles, binds, publishes and starts or stops tasks. Starting is a reload from nothing.
//!
//! Order of a reload: read, compile, bind what is new; only if all of that succeeded, publish, then let workers accept
//! from new sockets and leave the old ones. Anything wrong before the publication leaves the old world untouched.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bellwether_core::Dice;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sockets::{Fresh, Sockets};
use super::upgrade::{Handover, Successor};
use super::watch::{Options as WatchOptions, Watch};
use super::worker::{Handle, Order};
use super::{report, systemd};
use crate::admin::{Command, Context, ReloadOutcome, ReloadReport, Security};
use crate::cluster::discovery::{self, Asked, Event as DiscoveryEvent, Task};
use crate::cluster::probe::{self, Health, ProbeState};
use crate::config::Document;
use crate::config::diagnostic::{Diagnostic, Diagnostics};
use crate::net::clock::Clock;
use crate::net::{SocketAddress, tcp};
use crate::snapshot::blueprint::with_members;
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{self, Certificates, Compiled, DiscoveryTask, Plan, ProbePlan};
use crate::snapshot::registry::Registry;
use crate::snapshot::{Direction, Listener, Snapshot, diff};
use crate::telemetry::{
    AccessLog, Change, CheckResult, ConfigInForce, DiscoveryResult, DrainState, EndpointLabel, EventKind,
    Events, HealthSource, HealthTo, Recorder, ReloadResult, ReloadTrigger, WorkerId,
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
    pub(super) log: Arc<AccessLog>,
    /// Ends the operators' listeners.
    pub operators: CancellationToken,
    pub(super) resolver: Arc<discovery::dns::Resolver>,
    pub(super) tasks: Tasks,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    /// How this process was started, to start its successor in the same way.
    pub(super) successor: Successor,
    /// How often systemd wants a sign of life.
    pub(super) watchdog: Option<Duration>,
}

/// Background tasks by key.
#[derive(Default)]
pub(super) struct Tasks {
    discovery: HashMap<Arc<str>, (DiscoveryTask, CancellationToken)>,
    probes: HashMap<(Arc<str>, SocketAddress), (ProbePlan, CancellationToken)>,
    verdicts: HashMap<(Arc<str>, SocketAddress), ProbeState>,
    config_watch: Option<(BTreeSet<PathBuf>, CancellationToken)>,
    certificate_watch: Option<(BTreeSet<PathBuf>, CancellationToken)>,
    /// What readiness still waits for.
    undiscovered: BTreeSet<Arc<str>>,
}

/// Messages to the supervisor.
pub(super) struct Inbox {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) discovery: mpsc::Receiver<DiscoveryEvent>,
    pub(super) probes: mpsc::Receiver<ProbeReport>,
    pub(super) config_files: mpsc::Receiver<BTreeSet<PathBuf>>,
    pub(super) certificate_files: mpsc::Receiver<BTreeSet<PathBuf>>,
    pub(super) signals: mpsc::Receiver<Signal>,
}

/// Where tasks send theirs.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) discovery: mpsc::Sender<DiscoveryEvent>,
    pub(super) probes: mpsc::Sender<ProbeReport>,
    pub(super) config_files: mpsc::Sender<BTreeSet<PathBuf>>,
    pub(super) certificate_files: mpsc::Sender<BTreeSet<PathBuf>>,
}

/// What a check of one endpoint said.
#[derive(Debug)]
pub(super) struct ProbeReport {
    cluster: Arc<str>,
    address: SocketAddress,
    report: probe::Report,
    state: ProbeState,
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
/// How often the drain looks whether it is done.
const DRAIN_STEP: Duration = Duration::from_millis(20);

impl Supervisor {
    /// Runs until told to stop.
    pub async fn run(mut self) -> Ended {
        let mut sweep = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
        loop {
            tokio::select! {
                Some(signal) = self.inbox.signals.recv() => match signal {
                    Signal::Stop(_) => {
                        let min = self.plan.runtime.drain_min;
                        return self.drain(min).await;
                    }
                    Signal::Reload => self.reload_and_log(ReloadTrigger::Signal),
                    Signal::Reopen => self.log.reopen(),
                    Signal::Upgrade => {
                        if self.upgrade().await {
                            return self.drain(Duration::ZERO).await;
                        }
                    }
                },
                Some(command) = self.inbox.commands.recv() => {
                    if let Some(ended) = self.command(command).await {
                        return ended;
                    }
                }
                Some(event) = self.inbox.discovery.recv() => self.discovered(&event),
                Some(report) = self.inbox.probes.recv() => self.probed(report),
                Some(_) = self.inbox.config_files.recv() => {
                    if self.plan.runtime.watch {
                        self.reload_and_log(ReloadTrigger::File);
                    }
                }
                Some(files) = self.inbox.certificate_files.recv() => self.reload_certificates(&files),
                _ = sweep.tick() => self.registry.sweep(self.clock.now()),
                () = watchdog(self.watchdog) => told(systemd::watchdog()),
            }
        }
    }

    /// Makes the first snapshot the running one: sockets are bound already.
    pub(super) fn begin(&mut self, fresh: Vec<Fresh>) {
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
                self.admin.readiness.set_draining(true);
                self.admin_drain_state(DrainState::Announced);
                answer.send(()).unwrap_or(());
            }
            Command::Undrain { answer } => {
                self.admin.readiness.set_draining(false);
                self.admin_drain_state(DrainState::Serving);
                drop(answer.send(Ok(())));
            }
            Command::Quit { now } => {
                let min = if now {
                    Duration::ZERO
                } else {
                    self.plan.runtime.drain_min
                };
                if now {
                    self.plan.runtime.drain_max = Duration::ZERO;
                }
                return Some(self.drain(min).await);
            }
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
            .flat_map(|known| known.endpoints.iter().map(move |endpoint| (known, endpoint)))
            .find(|(_, endpoint)| &*endpoint.label == address);
        let Some((known, endpoint)) = found else {
            return false;
        };
        endpoint.state.set_drained(drained);
        let (from, to) = if drained {
            ("available", "drained")
        } else {
            ("drained", "available")
        };
        self.event(
            EventKind::Health,
            format!("{cluster}/{address}"),
            from,
            to,
            reason,
        );
        self.count_endpoints(known);
        true
    }

    // ---- reload ----

    fn reload_and_log(&mut self, trigger: ReloadTrigger) {
        told(systemd::reloading());
        let report = self.reload(trigger, false);
        told(systemd::ready(&format!("generation {}", report.generation)));
        match report.outcome {
            ReloadOutcome::Applied => {
                tracing::info!(
                    generation = report.generation,
                    changes = report.changes.join("; "),
                    "reloaded"
                );
            }
            ReloadOutcome::Refused => {
                tracing::error!(
                    "reload refused, generation {} stays in force\n{}",
                    report.generation,
                    report.text
                );
            }
            ReloadOutcome::Unchanged | ReloadOutcome::Valid => {
                tracing::info!(generation = report.generation, "nothing to reload");
            }
        }
    }

    fn reload(&mut self, trigger: ReloadTrigger, dry_run: bool) -> ReloadReport {
        let current = self.cell.load();
        let report = tokio::task::block_in_place(|| self.try_reload(&current, trigger, dry_run));
        let result = match report.outcome {
            ReloadOutcome::Applied => ReloadResult::Applied,
            ReloadOutcome::Unchanged => ReloadResult::Unchanged,
            ReloadOutcome::Refused => ReloadResult::Rejected,
            ReloadOutcome::Valid => return report,
        };
        if !dry_run {
            self.registry
                .recorder()
                .process()
                .config_reloaded(result, trigger);
        }
        report
    }

    fn try_reload(&mut self, current: &Arc<Snapshot>, trigger: ReloadTrigger, dry_run: bool) -> ReloadReport {
        let refused = |diagnostics: &Diagnostics| {
            report::report(
                ReloadOutcome::Refused,
                current.generation,
                Vec::new(),
                diagnostics,
            )
        };
        let document = match (self.load)() {
            Ok(document) => document,
            Err(diagnostics) => return refused(&diagnostics),
        };
        let mut diagnostics = document.diagnostics.clone();
        compile::check_restart_only(&self.plan, &document, &mut diagnostics);
        let compiled = compile::compile(
            &document,
            &self.registry,
            current.generation + 1,
            &mut diagnostics,
        );
        let Some(compiled) = compiled.filter(|_| !diagnostics.has_errors()) else {
            return refused(&diagnostics);
        };
        if compiled.snapshot.hash == current.hash {
            return report::report(
                ReloadOutcome::Unchanged,
                current.generation,
                Vec::new(),
                &diagnostics,
            );
        }
        let changes: Vec<String> = diff::between(&self.plan.outline, &compiled.plan.outline)
            .to_string()
            .lines()
            .map(str::to_owned)
            .collect();
        if dry_run {
            return report::report(ReloadOutcome::Valid, current.generation, changes, &diagnostics);
        }
        let Some(fresh) = self.bind(&compiled.snapshot.listeners, &document, &mut diagnostics) else {
            return refused(&diagnostics);
        };
        let generation = compiled.snapshot.generation;
        self.admin.config.store(Arc::new(report::config_text(&document)));
        self.apply(compiled, fresh);
        self.publish_facts(trigger);
        report::report(ReloadOutcome::Applied, generation, changes, &diagnostics)
    }

    /// Opens sockets for listeners that have none; none of them stays open if one cannot be had.
    fn bind(
        &mut self,
        listeners: &[Arc<Listener>],
        document: &Document,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<Fresh>> {
        bind(
            &mut self.sockets,
            listeners,
            self.workers.len(),
            document,
            diagnostics,
        )
    }

    fn apply(&mut self, compiled: Compiled, fresh: Vec<Fresh>) {
        let Compiled { snapshot, plan } = compiled;
        configure(self.registry.recorder(), &plan);
        if plan.log.level != self.plan.log.level {
            self.admin.log.set_level(plan.log.level);
        }
        report::switch_access_log(
            &self.log,
            self.plan.access_output.as_ref(),
            plan.access_output.as_ref(),
        );
        self.cell.store(Arc::new(snapshot));
        self.plan = plan;
        self.listen(fresh);
        self.reconcile();
    }

    fn listen(&mut self, fresh: Vec<Fresh>) {
        for mut fresh in fresh {
            self.sockets.keep(&mut fresh);
            for (worker, sockets) in self.workers.iter().zip(fresh.sockets) {
                worker.send(Order::Listen {
                    key: Arc::clone(&fresh.key),
                    listener: Arc::clone(&fresh.listener),
                    shared: Arc::clone(&fresh.shared),
                    sockets,
                    options: tcp::ConnectOptions::default(),
                });
            }
        }
    }

    /// Starts and stops tasks until they are those of the present snapshot and plan.
    fn reconcile(&mut self) {
        let snapshot = self.cell.load();
        for key in self.sockets.reconcile(&snapshot.listeners) {
            for worker in &self.workers {
                worker.send(Order::Drain {
                    key: Arc::clone(&key),
                });
            }
        }
        for worker in &self.workers {
            worker.send(Order::Sweep);
        }
        self.reconcile_discovery();
        self.reconcile_probes(&snapshot);
        self.reconcile_watches();
        if let Some(admin) = &self.plan.admin {
            self.admin.security.store(Arc::new(Security::of(admin)));
        }
        for cluster in &snapshot.clusters {
            self.count_endpoints(cluster);
        }
    }

    fn reconcile_discovery(&mut self) {
        let wanted = self.plan.discovery.clone();
        self.tasks.discovery.retain(|cluster, (running, cancel)| {
            let keep = wanted
                .iter()
                .any(|task| task.cluster == *cluster && task == running);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        self.tasks
            .undiscovered
            .retain(|cluster| wanted.iter().any(|task| task.cluster == *cluster));
        for task in wanted {
            if self.tasks.discovery.contains_key(&task.cluster) {
                continue;
            }
            let cancel = CancellationToken::new();
            let changes = || {
                let paths: Vec<PathBuf> = task.source.watched().cloned().into_iter().collect();
                let watch = Watch::new(paths, self.watch_options());
                let (changes, work) = watch.run(cancel.clone());
                tokio::spawn(work);
                changes
            };
            let source = task.source.source(&self.resolver, changes);
            let run = Task {
                cluster: Arc::clone(&task.cluster),
                events: self.outbox.discovery.clone(),
                seed: self.dice.next_u64(),
                cancel: cancel.clone(),
            };
            tokio::spawn(discovery::run(source, run));
            if self.registry.members(&task.cluster).is_none() {
                self.tasks.undiscovered.insert(Arc::clone(&task.cluster));
            }
            self.tasks
                .discovery
                .insert(Arc::clone(&task.cluster), (task, cancel));
        }
        self.say_what_is_missing();
    }

    fn reconcile_probes(&mut self, snapshot: &Snapshot) {
        let mut wanted = HashMap::new();
        for plan in &self.plan.probes {
            let cluster = snapshot
                .clusters
                .iter()
                .find(|cluster| cluster.name == plan.cluster);
            for endpoint in cluster.iter().flat_map(|cluster| &cluster.endpoints) {
                let target = probe::Target {
                    address: endpoint.address.clone(),
                    host: Some(Arc::clone(&endpoint.host)),
                };
                wanted.insert(
                    (Arc::clone(&plan.cluster), endpoint.address.clone()),
                    (plan.clone(), target),
                );
            }
        }
        self.tasks.probes.retain(|key, (running, cancel)| {
            let keep = wanted.get(key).is_some_and(|(plan, _)| plan == running);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        // An endpoint that is no longer checked has nobody who would ever call it healthy again.
        for cluster in &snapshot.clusters {
            for endpoint in &cluster.endpoints {
                let key = (Arc::clone(&cluster.name), endpoint.address.clone());
                if !wanted.contains_key(&key) && !endpoint.state.is_healthy() {
                    endpoint.state.set_healthy(true, self.clock.now());
                    self.tasks.verdicts.remove(&key);
                }
            }
        }
        let mut keys: Vec<_> = wanted
            .into_iter()
            .filter(|(key, _)| !self.tasks.probes.contains_key(key))
            .collect();
        keys.sort_by(|a, b| {
            a.0.0
                .cmp(&b.0.0)
                .then_with(|| a.0.1.to_string().cmp(&b.0.1.to_string()))
        });
        for (key, (plan, target)) in keys {
            let cancel = CancellationToken::new();
            let state = self.tasks.verdicts.get(&key).cloned().unwrap_or_default();
            let mut seen = state.clone();
            let settings = Arc::clone(&plan.settings);
            let outbox = self.outbox.probes.clone();
            let (cluster, address) = key.clone();
            let report = move |report: probe::Report| {
                // The same pure record on this side keeps the verdict over reloads.
                seen.record(&settings, report.outcome.clone());
                let report = ProbeReport {
                    cluster: Arc::clone(&cluster),
                    address: address.clone(),
                    report,
                    state: seen.clone(),
                };
                // A supervisor that does not keep up loses a repetition, never a task.
                drop(outbox.try_send(report));
            };
            let seed = self.dice.next_u64();
            tokio::spawn(probe::run(
                target,
                Arc::clone(&plan.settings),
                state,
                seed,
                cancel.clone(),
                report,
            ));
            self.tasks.probes.insert(key, (plan, cancel));
        }
    }

    fn watch_options(&self) -> WatchOptions {
        WatchOptions {
            settle: self.plan.runtime.debounce,
            ..WatchOptions::default()
        }
    }

    fn reconcile_watches(&mut self) {
        let options = self.watch_options();
        let files: BTreeSet<PathBuf> = if self.plan.runtime.watch {
            self.plan.files.iter().cloned().collect()
        } else {
            BTreeSet::new()
        };
        rewatch(
            &mut self.tasks.config_watch,
            files,
            options,
            &self.outbox.config_files,
        );
        let files = self
            .plan
            .certificates
            .iter()
            .flat_map(Certificates::files)
            .collect();
        rewatch(
            &mut self.tasks.certificate_watch,
            files,
            options,
            &self.outbox.certificate_files,
        );
    }

    fn reload_certificates(&mut self, files: &BTreeSet<PathBuf>) {
        for certificates in &self.plan.certificates {
            if !certificates.files().iter().any(|file| files.contains(file)) {
                continue;
            }
            match tokio::task::block_in_place(|| certificates.reload()) {
                Ok(crate::net::tls::Changed::No) => {}
                Ok(crate::net::tls::Changed::Yes) => {
                    self.event(
                        EventKind::Certificate,
                        certificates.owner().to_string(),
                        "",
                        "certificates reloaded",
                        "file",
                    );
                }
                Err(problems) => {
                    for problem in problems {
                        tracing::error!(
                            of = &**certificates.owner(),
                            "certificates not reloaded, the old ones stay in force: {problem}"
                        );
                    }
                }
            }
        }
        self.publish_certificates();
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
                self.cell.store(Arc::new(next));
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

    fn probed(
        &mut self,
        ProbeReport {
            cluster,
            address,
            report,
            state,
        }: ProbeReport,
    ) {
        let key = (cluster, address);
        if !self.tasks.probes.contains_key(&key) {
            return;
        }
        let snapshot = self.cell.load();
        let Some(known) = snapshot.clusters.iter().find(|known| known.name == key.0) else {
            return;
        };
        let Some(endpoint) = known.endpoints.iter().find(|endpoint| endpoint.address == key.1) else {
            return;
        };
        let result = match &report.outcome {
            probe::Outcome::Pass => CheckResult::Pass,
            probe::Outcome::Unexpected(_) | probe::Outcome::Broken(_) => CheckResult::Fail,
            probe::Outcome::Refused(_) => CheckResult::Refused,
            probe::Outcome::Timeout => CheckResult::Timeout,
        };
        known.metrics.health_checked(WorkerId::CONTROL, result);
        let healthy = report.health == Health::Healthy;
        let was = endpoint.state.is_healthy();
        endpoint.state.set_healthy(healthy, self.clock.now());
        if was != healthy {
            let to = if healthy { HealthTo::Up } else { HealthTo::Down };
            known
                .metrics
                .health_changed(WorkerId::CONTROL, HealthSource::Check, to);
            let (from, to) = if healthy {
                ("unhealthy", "healthy")
            } else {
                ("healthy", "unhealthy")
            };
            let subject = format!("{}/{}", key.0, endpoint.label);
            self.event(EventKind::Health, subject, from, to, report.outcome.to_string());
        }
        self.tasks.verdicts.insert(key, state);
        self.count_endpoints(known);
    }

    fn say_what_is_missing(&self) {
        let waiting = self
            .tasks
            .undiscovered
            .iter()
            .map(|cluster| format!("cluster {cluster}: first discovery answer"));
        self.admin.readiness.set_waiting(waiting.collect::<Vec<_>>());
    }

    // ---- telemetry ----

    fn event(
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

    fn count_endpoints(&self, cluster: &crate::cluster::Cluster) {
        let mut counts = [
            (EndpointLabel::AdminDown, 0),
            (EndpointLabel::Draining, 0),
            (EndpointLabel::CheckFailed, 0),
            (EndpointLabel::Available, 0),
        ];
        for endpoint in &cluster.endpoints {
            let state = if endpoint.state.is_drained() {
                0
            } else if endpoint.weight == 0 {
                1
            } else if !endpoint.state.is_healthy() {
                2
            } else {
                3
            };
            counts[state].1 += 1;
            endpoint
                .metrics
                .set_up(endpoint.state.is_available() && endpoint.weight > 0);
            endpoint.metrics.set_weight(f64::from(endpoint.weight));
        }
        for (label, count) in counts {
            cluster.metrics.set_endpoints(label, count);
        }
    }

    fn publish_facts(&self, trigger: ReloadTrigger) {
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

    fn publish_certificates(&self) {
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

    fn admin_drain_state(&self, state: DrainState) {
        self.registry.recorder().process().set_drain_state(state);
        self.event(
            EventKind::Drain,
            "process",
            "",
            crate::telemetry::Label::word(state),
            "",
        );
    }

    // ---- the end ----

    /// Not ready, still accepting; then no more connections; then the end of those that are left.
    async fn drain(&mut self, min: Duration) -> Ended {
        told(systemd::stopping("draining"));
        self.admin.readiness.set_draining(true);
        self.admin_drain_state(DrainState::Announced);
        tracing::info!(?min, max = ?self.plan.runtime.drain_max, "draining");
        let ends = Instant::now() + min + self.plan.runtime.drain_max;
        if let Some(ended) = self.pause(Instant::now() + min).await {
            return ended;
        }
        self.admin_drain_state(DrainState::Draining);
        for direction in [Direction::Inbound, Direction::Outbound] {
            if direction == Direction::Outbound && self.plan.runtime.wait_for_app {
                // The application may still need its way out to finish what came in.
                while self.connections(direction) > 0 && Instant::now() < ends {
                    if let Some(ended) = self.pause(Instant::now() + DRAIN_STEP).await {
                        return ended;
                    }
                }
            }
            self.stop_listening(direction);
            while self.connections(direction) > 0 && Instant::now() < ends {
                if let Some(ended) = self.pause(Instant::now() + DRAIN_STEP).await {
                    return ended;
                }
            }
        }
        let cut = self.connections(Direction::Inbound) + self.connections(Direction::Outbound);
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

    fn stop_listening(&mut self, direction: Direction) {
        let keys: Vec<Arc<str>> = self
            .sockets
            .iter()
            .filter(|(_, open)| open.listener.direction == direction)
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in keys {
            self.sockets.release(&key);
            for worker in &self.workers {
                worker.send(Order::Drain {
                    key: Arc::clone(&key),
                });
            }
        }
    }

    fn connections(&self, direction: Direction) -> u32 {
        self.sockets
            .iter()
            .filter(|(_, open)| open.listener.direction == direction)
            .map(|(_, open)| open.shared.connections())
            .sum()
    }

    /// Waits, and answers operators; a second signal ends everything at once.
    async fn pause(&mut self, until: Instant) -> Option<Ended> {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return None,
                Some(signal) = self.inbox.signals.recv() => {
                    if let Signal::Stop(number) = signal {
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
                        return Some(Ended::Cut(self.connections(Direction::Inbound)));
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
            let (done, stopped) = tokio::sync::oneshot::channel();
            worker.send(Order::Stop { done });
            // A worker that has died has stopped too.
            drop(tokio::time::timeout(Duration::from_secs(1), stopped).await);
        }
        self.log_settle();
    }

    /// Starts a successor and hands the sockets over. True when it serves and this process is to end.
    async fn upgrade(&mut self) -> bool {
        let mut handover = Handover::new(Vec::new());
        for (key, open) in self.sockets.iter() {
            for socket in &open.copies {
                if let Err(error) = handover.add(key, socket) {
                    tracing::error!(%error, "not replaced: a socket cannot be handed over");
                    return false;
                }
            }
        }
        // The successor opens the operators' listener anew; it must find the address free.
        let operators = std::mem::take(&mut self.operators);
        operators.cancel();
        match handover.spawn(&self.successor).await {
            Ok(pid) => {
                tracing::info!(pid, "replaced by a new process");
                true
            }
            Err(error) => {
                tracing::error!(%error, "not replaced, this process goes on");
                super::serve_operators_again(&self.plan, &self.admin, &self.operators);
                false
            }
        }
    }

    fn log_settle(&self) {
        let log = Arc::clone(&self.log);
        tokio::task::block_in_place(move || log.settle(Duration::from_secs(2)));
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
fn told(sent: std::io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Labels and bounds of series that may change at a reload.
pub(super) fn configure(recorder: &Recorder, plan: &Plan) {
    if let Some(metrics) = &plan.metrics {
        recorder.reconfigure(metrics.labels.clone(), metrics.max_endpoints);
    }
}

/// Opens sockets for listeners that have none; none of them stays open if one cannot be had.
pub(super) fn bind(
    sockets: &mut Sockets,
    listeners: &[Arc<Listener>],
    workers: usize,
    document: &Document,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<Fresh>> {
    let mut fresh = Vec::new();
    for listener in listeners {
        match sockets.bind(listener, workers) {
            Ok(Some(opened)) => fresh.push(opened),
            Ok(None) => {}
            Err(error) => diagnostics.push(unbindable(listener, &error, document)),
        }
    }
    (!diagnostics.has_errors()).then_some(fresh)
}

fn unbindable(listener: &Listener, error: &std::io::Error, document: &Document) -> Diagnostic {
    let span = document
        .config
        .listeners
        .get(&listener.name)
        .map_or(crate::config::diagnostic::Span::DEFAULT, |written| {
            written.address.span
        });
    let (name, address) = (&listener.name, &listener.address);
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let holder = address.socket_addr().and_then(|address| tcp::holder(&address));
            let label = holder.map_or_else(|| "held by another process".to_owned(), |holder| format!("held by {holder}"));
            Diagnostic::error(
                "E0603",
                format!("listener `{name}` cannot use {address}: the address is already in use"),
            )
            .at(span, label)
            .help("stop it, or choose another port")
        }
        std::io::ErrorKind::PermissionDenied => Diagnostic::error(
            "E0605",
            format!("listener `{name}` may not use {address}: permission denied"),
        )
        .at(span, "ports below 1024 need a capability")
        .help(
            "`setcap cap_net_bind_service=+ep` on the binary, `AmbientCapabilities=CAP_NET_BIND_SERVICE` under systemd, \
             or `sysctl net.ipv4.ip_unprivileged_port_start`",
        ),
        _ => Diagnostic::error("E0603", format!("listener `{name}` cannot use {address}: {error}")).at(span, ""),
    }
}

fn rewatch(
    running: &mut Option<(BTreeSet<PathBuf>, CancellationToken)>,
    files: BTreeSet<PathBuf>,
    options: WatchOptions,
    changed: &mpsc::Sender<BTreeSet<PathBuf>>,
) {
    if running.as_ref().is_some_and(|(watched, _)| *watched == files) {
        return;
    }
    if let Some((_, cancel)) = running.take() {
        cancel.cancel();
    }
    if files.is_empty() {
        return;
    }
    let cancel = CancellationToken::new();
    let (mut changes, work) = Watch::new(files.iter().cloned(), options).run(cancel.clone());
    tokio::spawn(work);
    let changed = changed.clone();
    tokio::spawn(async move {
        while let Some(files) = changes.recv().await {
            if changed.send(files).await.is_err() {
                return;
            }
        }
    });
    *running = Some((files, cancel));
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
