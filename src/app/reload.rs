//! Makes what runs equal to what is configured, at the start and at every change of the file.
//!
//! Order: read, compile, bind what is new; only if all of that succeeded, publish, then let workers accept from new
//! sockets and leave the old ones, and start and stop tasks by their difference. Anything wrong before the publication
//! leaves the old world untouched.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::checks::{self, Checker};
use super::heartbeats::Watcher;
use super::sockets::{Fresh, Sockets};
use super::supervisor::{Supervisor, Watching, told};
use super::watch::{Options as WatchOptions, Watch};
use super::worker::Order;
use super::{report, systemd};
use crate::admin::{ReloadOutcome, ReloadReport, Security};
use crate::cluster::discovery::{self, Task};
use crate::cluster::probe;
use crate::config::Document;
use crate::config::diagnostic::{Diagnostic, Diagnostics};
use crate::net::tcp;
use crate::snapshot::compile::{self, Certificates, Compiled, Plan};
use crate::snapshot::{Listener, Snapshot, diff};
use crate::telemetry::{EventKind, Recorder, ReloadResult, ReloadTrigger};

impl Supervisor {
    pub(super) fn reload_and_log(&mut self, trigger: ReloadTrigger) {
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

    pub(super) fn reload(&mut self, trigger: ReloadTrigger, dry_run: bool) -> ReloadReport {
        let current = self.cell.load();
        let report = tokio::task::block_in_place(|| self.try_reload(&current, trigger, dry_run));
        if report.outcome == ReloadOutcome::Applied && !report.text.is_empty() {
            tracing::warn!("the configuration has warnings\n{}", report.text);
        }
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
        self.plan = plan;
        self.publish(Arc::new(snapshot));
        self.listen(fresh);
        self.reconcile();
    }

    pub(super) fn listen(&mut self, fresh: Vec<Fresh>) {
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
                if self.admin.readiness.is_draining() {
                    worker.send(Order::Announce {
                        key: Arc::clone(&fresh.key),
                    });
                }
            }
        }
    }

    /// Starts and stops tasks until they are those of the present snapshot and plan.
    pub(super) fn reconcile(&mut self) {
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
        self.reconcile_heartbeats(&snapshot);
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

    pub(super) fn reconcile_probes(&mut self, snapshot: &Snapshot) {
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
                    (plan.clone(), target, Arc::clone(&endpoint.state)),
                );
            }
        }
        self.tasks.probes.retain(|key, (running, cancel)| {
            let keep = wanted.get(key).is_some_and(|(plan, ..)| plan == running);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        for cluster in &snapshot.clusters {
            for (index, endpoint) in cluster.endpoints.iter().enumerate() {
                if !wanted.contains_key(&(Arc::clone(&cluster.name), endpoint.address.clone())) {
                    checks::end(cluster, index, self.witness());
                }
            }
        }
        let mut keys: Vec<_> = wanted
            .into_iter()
            .filter(|(key, _)| !self.tasks.probes.contains_key(key))
            .collect();
        keys.sort_by_key(|(key, _)| (Arc::clone(&key.0), key.1.to_string()));
        for (key, (plan, target, state)) in keys {
            let cancel = CancellationToken::new();
            let checker = Checker {
                cluster: Arc::clone(&key.0),
                state,
                target,
                settings: Arc::clone(&plan.settings),
                voice: self.voice(),
                dice: self.dice.split(),
                cancel: cancel.clone(),
            };
            tokio::spawn(checker.run());
            self.tasks.probes.insert(key, (plan, cancel));
        }
    }

    fn reconcile_heartbeats(&mut self, snapshot: &Snapshot) {
        let mut running = std::mem::take(&mut self.tasks.heartbeats);
        for cluster in &snapshot.clusters {
            let before = running.remove(&cluster.name);
            let Some(settings) = cluster.settings.heartbeat else {
                if let Some(before) = before {
                    before.cancel.cancel();
                    cluster.stop_watching(self.witness());
                }
                continue;
            };
            let mut plans = self.plan.probes.iter();
            let question = plans.find(|plan| plan.cluster == cluster.name).cloned();
            let watching = match before {
                Some(before) if before.settings == settings && before.question == question => before,
                before => {
                    if let Some(before) = before {
                        before.cancel.cancel();
                    }
                    let cancel = CancellationToken::new();
                    let watcher = Watcher {
                        cluster: Arc::clone(&cluster.name),
                        settings,
                        question: question.as_ref().map(|plan| Arc::clone(&plan.settings)),
                        voice: self.voice(),
                        cancel: cancel.clone(),
                    };
                    tokio::spawn(watcher.run());
                    Watching {
                        settings,
                        question,
                        cancel,
                    }
                }
            };
            self.tasks.heartbeats.insert(Arc::clone(&cluster.name), watching);
        }
        for gone in running.into_values() {
            gone.cancel.cancel();
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

    pub(super) fn reload_certificates(&mut self, files: &BTreeSet<PathBuf>) {
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
