//! The composition root: every long-lived object is made here, once, visibly.
//!
//! Two kinds of threads: workers, one runtime each, that serve requests and share nothing that has to be locked on the
//! way; and one control runtime for everything else. [`start`] makes all of it from a configuration.

mod checks;
mod drain;
mod heartbeats;
mod legacy;
mod pressure;
mod reload;
pub mod report;
pub mod sockets;
pub mod supervisor;
pub mod systemd;
pub mod upgrade;
mod upkeep;
mod voice;
pub mod watch;
pub mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bellwether_core::{Dice, Moment};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Context, Readiness, Security};
use crate::cluster::discovery::dns;
use crate::config::Document;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::net::clock::Clock;
use crate::net::tcp;
use crate::net::tls::ServerTls;
use crate::net::{Address, SocketAddress};
use crate::server::listener::Load;
use crate::snapshot::cell::Cell;
use crate::snapshot::compile;
use crate::snapshot::memory::Recalled;
use crate::snapshot::registry::Registry;
use crate::telemetry::{
    AccessLog, AccessOutput, BuildInfo, Change, EventKind, Events, LogControl, Recorder, Sink, Vitals,
};
use legacy::Legacy;
use sockets::Sockets;
pub use supervisor::{Ended, Load as Source, Signal};
use supervisor::{Inbox, Outbox, Supervisor, Tasks};

/// What a process is started with.
pub struct Options {
    /// The first configuration, read and without errors.
    pub document: Document,
    /// Reads it again.
    pub source: Source,
    /// Changes the level of the log.
    pub log: LogControl,
    /// The one number that all chance comes from.
    pub seed: u64,
    /// Sockets from a predecessor or from systemd.
    pub sockets: Sockets,
    /// How this process was started.
    pub successor: upgrade::Successor,
    /// Signals.
    pub signals: mpsc::Receiver<Signal>,
    /// When the process began, for the banner.
    pub began: Instant,
}

/// A process that serves.
pub struct Running {
    /// Drives it; ends with it.
    pub supervisor: Supervisor,
    /// Where listeners really listen, by name.
    pub listeners: Vec<(Arc<str>, SocketAddress)>,
    /// Where operators are served.
    pub admin: Option<SocketAddress>,
    /// What is in force, in words.
    pub banner: String,
    /// What is better changed although it is no error.
    pub diagnostics: Diagnostics,
    /// Served as soon as the process is ready; until then a predecessor answers at the same addresses.
    operators: Vec<Operators>,
}

/// Why a process did not start. Nothing of it is left.
#[derive(Debug)]
pub struct NotStarted {
    /// What is wrong.
    pub diagnostics: Diagnostics,
    /// 3 for the configuration, 4 for the machine.
    pub code: u8,
    /// A predecessor that waits for an answer.
    pub inherited: Option<upgrade::Inherited>,
}

impl Running {
    /// Tells a predecessor and systemd that this process serves, and begins to serve operators.
    pub fn report_ready(&mut self) {
        if let Some(inherited) = self.supervisor.sockets.inherited.take()
            && let Err(error) = tokio::task::block_in_place(|| inherited.report_ready())
        {
            tracing::warn!(%error, "the previous process was not told that this one serves");
        }
        for Operators {
            listener,
            router,
            tls,
        } in self.operators.drain(..)
        {
            let cancel = self.supervisor.operators.clone();
            let serving = tokio::spawn(admin::serve(listener, router, tls, cancel));
            self.supervisor.serving_operators.push(serving);
        }
        if let Some(activated) = self.supervisor.sockets.activated.take() {
            for address in activated.left() {
                tracing::warn!(%address, "systemd passed a socket that no listener wants");
            }
        }
        if let Err(error) = systemd::ready(&format!("generation {}", self.supervisor.cell.load().generation))
        {
            tracing::debug!(%error, "systemd was not told");
        }
    }
}

/// Starts everything. Runs on the control runtime.
///
/// # Errors
/// Everything that is wrong with the configuration, or what the machine refuses.
pub async fn start(options: Options) -> Result<Running, NotStarted> {
    let Options {
        document,
        source,
        log,
        seed,
        mut sockets,
        successor,
        signals,
        began,
    } = options;
    let mut diagnostics = document.diagnostics.clone();
    let clock = Clock::start();
    let recorder = Arc::new(Recorder::new(compile::recorder_settings(&document)));
    let registry = Registry::new(Arc::clone(&recorder), clock);
    let events = Arc::new(Events::default());
    let state = sockets.inherited.as_ref().map(upgrade::Inherited::state);
    let legacy =
        state.and_then(|state| recall(state, &registry, &events, clock.now().minus(began.elapsed())));
    let Some(compiled) = compile::compile(&document, &registry, 1, &mut diagnostics) else {
        return Err(NotStarted {
            code: if diagnostics.only_the_machine_refuses() {
                4
            } else {
                3
            },
            diagnostics,
            inherited: sockets.inherited,
        });
    };
    let compile::Compiled { snapshot, plan } = compiled;
    reload::configure(&recorder, &plan);
    let workers = plan.runtime.worker_threads;
    // Descriptors are the first thing a busy proxy runs out of; what the hard limit allows is taken.
    if let Err(error) = tcp::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let fresh = reload::bind(
        &mut sockets,
        &snapshot.listeners,
        workers,
        &document,
        &mut diagnostics,
    );
    let Some(fresh) = fresh else {
        return Err(NotStarted {
            diagnostics,
            code: 4,
            inherited: sockets.inherited,
        });
    };
    let refused = |diagnostics: Diagnostics, sockets: Sockets| NotStarted {
        diagnostics,
        code: 4,
        inherited: sockets.inherited,
    };
    let access = match Sink::open(plan.access_output.clone().unwrap_or(AccessOutput::Stdout)) {
        Ok(sink) => AccessLog::start(sink, recorder.process()),
        Err(error) => Err(error),
    };
    let access = match access {
        Ok(access) => Arc::new(access),
        Err(error) => {
            return Err(refused(
                machine(diagnostics, "the access log cannot be written", &error),
                sockets,
            ));
        }
    };
    let cell = Arc::new(Cell::new(Arc::new(snapshot)));
    let mut dice = Dice::new(seed);
    let parts = worker::Parts {
        cell: Arc::clone(&cell),
        clock,
        events: Arc::clone(&events),
        log: Arc::clone(&access),
        metrics: recorder.process(),
        load: Arc::new(Load::new(workers)),
        vitals: Arc::new(Vitals::new(workers)),
        overload: Arc::default(),
    };
    let (vitals, overload) = (Arc::clone(&parts.vitals), Arc::clone(&parts.overload));
    let handles = match worker::start(workers, &parts, &mut dice) {
        Ok(handles) => handles,
        Err(error) => {
            return Err(refused(
                machine(diagnostics, "a worker could not be started", &error),
                sockets,
            ));
        }
    };
    let (control, commands) = mpsc::channel(16);
    let context = Arc::new(Context {
        cell: Arc::clone(&cell),
        clock,
        vitals: Arc::clone(&vitals),
        recorder: Arc::clone(&recorder),
        events: Arc::clone(&events),
        log,
        readiness: Arc::new(Readiness::default()),
        control,
        security: ArcSwap::from_pointee(plan.admin.as_ref().map_or_else(Security::default, Security::of)),
        config: ArcSwap::from_pointee(report::config_text(&document)),
        metrics_path: plan
            .metrics
            .as_ref()
            .map_or_else(|| "/metrics".to_owned(), |metrics| metrics.path.to_string()),
        started: SystemTime::now(),
        build: BuildInfo::default(),
        kept: admin::Kept::default(),
    });
    let opened = open_operators(&plan, &context, &mut sockets, &document, &mut diagnostics);
    let Some(operators) = opened else {
        return Err(refused(diagnostics, sockets));
    };
    let admin = plan.admin.as_ref().and(operators.first());
    let admin = admin.map(|admin| admin.listener.local_addr().clone());
    let (outbox, inbox) = channels(commands, signals);
    let mut supervisor = Supervisor {
        load: source,
        registry,
        clock,
        dice,
        cell,
        workers: handles,
        sockets,
        plan,
        events,
        admin: context,
        vitals,
        log: access,
        resolver: Arc::new(dns::Resolver::default()),
        tasks: Tasks::default(),
        inbox,
        outbox,
        operators: CancellationToken::new(),
        serving_operators: Vec::new(),
        successor,
        replacement: None,
        signalled: false,
        watchdog: systemd::watchdog_interval(),
    };
    if let Some(legacy) = legacy {
        legacy.go_on(&supervisor.admin);
    }
    supervisor.begin(fresh);
    let sampler = pressure::Sampler {
        vitals: Arc::clone(&supervisor.vitals),
        cell: Arc::clone(&supervisor.cell),
        clock: supervisor.clock,
        events: Arc::clone(&supervisor.events),
        metrics: recorder.process(),
        overload,
    };
    tokio::spawn(sampler.run());
    // Ready means that every worker accepts.
    supervisor.obeyed().await;
    let snapshot = supervisor.cell.load();
    let listeners = snapshot
        .listeners
        .iter()
        .filter_map(|listener| {
            Some((
                Arc::clone(&listener.name),
                supervisor.sockets.of(&listener.name)?.local.clone(),
            ))
        })
        .collect();
    let main = document.diagnostics.sources.iter().next();
    let banner = report::banner(
        &snapshot,
        &supervisor.plan,
        &supervisor.sockets,
        admin
            .as_ref()
            .map(|address| admin_url(address, supervisor.plan.admin.as_ref()))
            .as_deref(),
        main.map_or("", |source| &source.name),
        main.map_or(0, crate::config::diagnostic::Source::lines),
        began.elapsed(),
    );
    Ok(Running {
        supervisor,
        listeners,
        admin,
        banner,
        diagnostics,
        operators,
    })
}

/// Takes over what a predecessor had learned; says how much, or why nothing.
fn recall(state: &[u8], registry: &Registry, events: &Events, then: Moment) -> Option<Legacy> {
    if state.is_empty() {
        return None;
    }
    let (legacy, to, evidence) = match Legacy::read(state) {
        Ok(legacy) => {
            let Recalled {
                breakers,
                ejected,
                endpoints,
            } = legacy.recall(registry, then);
            let evidence = format!(
                "{endpoints} endpoints, {ejected} of them ejected, and {breakers} breakers that are not closed"
            );
            tracing::info!("taken over from the previous process: {evidence}");
            (Some(legacy), "recalled", evidence)
        }
        Err(error) => {
            tracing::warn!("what the previous process had learned is not taken over: {error}");
            (None, "forgotten", error.to_string())
        }
    };
    events.push(Change {
        kind: EventKind::Replacement,
        subject: "state".to_owned(),
        from: String::new(),
        to: to.to_owned(),
        reason: "hand_over".to_owned(),
        evidence,
        generation: 0,
    });
    legacy
}

fn admin_url(address: &SocketAddress, settings: Option<&compile::AdminSettings>) -> String {
    let scheme = if settings.is_some_and(|settings| settings.tls.is_some()) {
        "https"
    } else {
        "http"
    };
    match address {
        SocketAddress::Ip(address) => format!("{scheme}://{address}"),
        SocketAddress::Unix(_) => address.to_string(),
    }
}

/// An operators' listener that is open and not served yet.
struct Operators {
    listener: tcp::Listener,
    router: admin::Router,
    tls: Option<Arc<ServerTls>>,
}

/// Opens the operators' listener, and the one that only shows metrics. None when one of them cannot be had.
fn open_operators(
    plan: &compile::Plan,
    context: &Arc<Context>,
    sockets: &mut Sockets,
    document: &Document,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<Operators>> {
    let mut wanted = Vec::new();
    if let Some(admin) = &plan.admin {
        let written = document.config.admin.value.as_ref();
        let span = written.map_or(Span::DEFAULT, |admin| admin.address.span);
        wanted.push((
            "admin",
            &admin.address,
            span,
            admin::router(context),
            admin.tls.clone(),
        ));
    }
    if let Some(address) = plan.metrics.as_ref().and_then(|metrics| metrics.address.as_ref()) {
        wanted.push((
            "metrics",
            address,
            Span::DEFAULT,
            admin::public_router(context),
            None,
        ));
    }
    let opened =
        wanted.into_iter().map(
            |(role, address, span, router, tls)| match sockets.operators(role, address) {
                Ok(listener) => Some(Operators {
                    listener,
                    router,
                    tls,
                }),
                Err(error) => {
                    diagnostics.push(unavailable(role, address, span, &error));
                    None
                }
            },
        );
    opened.collect()
}

fn unavailable(role: &str, address: &Address, span: Span, error: &io::Error) -> Diagnostic {
    let diagnostic = Diagnostic::error(
        "E0603",
        format!("the {role} listener cannot use {address}: {error}"),
    )
    .at(span, "");
    if error.kind() != io::ErrorKind::AddrInUse {
        return diagnostic;
    }
    let holder = address
        .socket_addr()
        .and_then(|address: SocketAddr| tcp::holder(&address));
    diagnostic
        .note(holder.map_or_else(
            || "held by another process".to_owned(),
            |holder| format!("held by {holder}"),
        ))
        .help("stop it, or set `admin.address` (or `admin: off`)")
}

fn machine(mut diagnostics: Diagnostics, what: &str, error: &io::Error) -> Diagnostics {
    diagnostics.push(Diagnostic::error("E0609", format!("{what}: {error}")));
    diagnostics
}

fn channels(commands: mpsc::Receiver<admin::Command>, signals: mpsc::Receiver<Signal>) -> (Outbox, Inbox) {
    let (discovery, discovered) = mpsc::channel(64);
    let (config_files, config_changed) = mpsc::channel(4);
    let (certificate_files, certificates_changed) = mpsc::channel(4);
    let (replaced, replacements) = mpsc::channel(1);
    let outbox = Outbox {
        discovery,
        config_files,
        certificate_files,
        replaced,
    };
    let inbox = Inbox {
        commands,
        discovery: discovered,
        config_files: config_changed,
        certificate_files: certificates_changed,
        signals,
        replaced: replacements,
    };
    (outbox, inbox)
}

/// The control runtime.
///
/// # Errors
/// When the system has no thread to give.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("control")
        .enable_all()
        .build()
}
