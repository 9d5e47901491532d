//! `bellwether run`: serve in the foreground until told to stop.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::check::{self, Failure, Format};
use crate::app::sockets::Sockets;
use crate::app::systemd::Activated;
use crate::app::upgrade::{Inherited, Successor};
use crate::app::{self, Ended, Options, Signal, Source};
use crate::config::Document;
use crate::config::read::Reader;
use crate::config::render::Look;
use crate::snapshot::compile;
use crate::telemetry::diagnostics;

/// Starts the proxy in the foreground, watches its file, drains on SIGTERM.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file; `-` reads standard input
    #[arg(short, long, env = "BELLWETHER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make every random choice follow from this number, to repeat a run
    #[arg(long, env = "BELLWETHER_SEED", value_name = "NUMBER", hide = true)]
    seed: Option<u64>,
}

/// Runs the command.
#[must_use]
pub fn run(args: &RunArgs) -> ExitCode {
    let began = Instant::now();
    // First, so that a predecessor hears whatever goes wrong after it.
    let given = match Given::receive() {
        Ok(given) => given,
        Err(code) => return code,
    };
    let (document, name) = match check::load(args.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(failure) => return refuse(given.inherited, &failure),
    };
    let source = source(args.config.as_deref(), &name, &document);
    serve(document, name, source, args.seed, began, "", given)
}

/// What others opened for this process.
pub(super) struct Given {
    inherited: Option<Inherited>,
    activated: Activated,
}

impl Given {
    /// Takes it. Changes the environment and adopts descriptors, so to be called before any thread exists.
    ///
    /// # Errors
    /// The exit code, after it was said why.
    pub(super) fn receive() -> Result<Self, ExitCode> {
        match (Inherited::receive_from_env(), Activated::receive()) {
            (Ok(inherited), Ok(activated)) => Ok(Self { inherited, activated }),
            (Err(error), _) | (_, Err(error)) => {
                Err(machine(&format!("sockets cannot be taken over: {error}")))
            }
        }
    }
}

/// Says why this process does not start: to its predecessor, whose log is the one that is read, or here.
fn refuse(inherited: Option<Inherited>, failure: &Failure) -> ExitCode {
    if let Some(inherited) = inherited {
        let why = crate::config::render::text(&failure.diagnostics, Look::default());
        if inherited.report_failed(&why).is_ok() {
            return ExitCode::from(failure.code);
        }
    }
    failure.report(Format::Text, check::look(false))
}

/// How the configuration is read again.
fn source(named: Option<&Path>, name: &str, document: &Document) -> Source {
    if named == Some(Path::new("-")) {
        // Standard input can be read once; a reload finds what was there, and the files it includes as they are now.
        let main = document.diagnostics.sources.iter().next();
        let text = main.map_or_else(String::new, |source| source.text.clone());
        return Box::new(move || Reader::new().read_bytes("standard input", text.as_bytes()));
    }
    let path = PathBuf::from(name);
    Box::new(move || Reader::new().read(&path))
}

/// Serves a configuration until a signal ends it. The greeting is said once it serves.
pub(super) fn serve(
    document: Document,
    name: String,
    source: Source,
    seed: Option<u64>,
    began: Instant,
    greeting: &str,
    given: Given,
) -> ExitCode {
    let log = compile::log_settings(&document);
    let log = match diagnostics::install(log.level, log.format) {
        Ok(log) => log,
        Err(error) => return machine(&error.to_string()),
    };
    let successor = match Successor::capture() {
        Ok(successor) => successor,
        Err(error) => return machine(&error.to_string()),
    };
    let runtime = match app::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return machine(&error.to_string()),
    };
    let seed = seed.unwrap_or_else(entropy);
    let ended = runtime.block_on(async move {
        let (send, signals) = mpsc::channel(8);
        if let Err(error) = listen_to_signals(&send) {
            return Err(machine(&error.to_string()));
        }
        let sockets = Sockets::given(given.inherited, given.activated);
        let options = Options {
            document,
            source,
            log,
            seed,
            sockets,
            successor,
            signals,
            began,
        };
        let mut running = match Box::pin(app::start(options)).await {
            Ok(running) => running,
            Err(mut refused) => {
                let inherited = refused.inherited.take();
                let failure = Failure {
                    diagnostics: refused.diagnostics,
                    name,
                    code: refused.code,
                };
                return Err(refuse(inherited, &failure));
            }
        };
        check::complain(&crate::config::render::text(
            &running.diagnostics,
            check::look(false),
        ));
        check::complain(&running.banner);
        check::complain(greeting);
        running.report_ready();
        Ok(running.supervisor.run().await)
    });
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::Cut(_)) => ExitCode::from(8),
        // The shell's convention for a process that a signal ended.
        Ok(Ended::Forced(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        Err(code) => code,
    }
}

fn machine(error: &str) -> ExitCode {
    check::complain(&format!("error: {error}\n"));
    ExitCode::from(4)
}

/// A number nobody can guess, from the addresses and keys that the system gives each process.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn listen_to_signals(send: &mpsc::Sender<Signal>) -> io::Result<()> {
    let wanted = [
        (SignalKind::terminate(), Signal::Stop(15)),
        (SignalKind::interrupt(), Signal::Stop(2)),
        (SignalKind::hangup(), Signal::Reload),
        (SignalKind::user_defined1(), Signal::Reopen),
        (SignalKind::user_defined2(), Signal::Upgrade),
    ];
    for (kind, meaning) in wanted {
        let mut signals = signal(kind)?;
        let send = send.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if send.send(meaning).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_found_again_at_a_reload() {
        let text = "listeners: { web: \":1\" }\nroutes: [{ cluster: app }]\nclusters: { app: { endpoints: [127.0.0.1:1] } }\n";
        let document = Reader::new()
            .read_bytes("standard input", text.as_bytes())
            .unwrap();
        let again = source(Some(Path::new("-")), "standard input", &document)().unwrap();
        let listeners = |document: &Document| document.config.listeners.iter().count();
        assert_eq!((listeners(&document), listeners(&again)), (1, 1));
    }
}
