//! What a configuration wants from the process besides its snapshot: tasks, listeners for operators, logs.
//!
//! Tasks have keys that can be compared, so that the supervisor starts and stops the difference and leaves alone what
//! goes on unchanged. Nothing here is read on the path of a request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::discovery::{self, Source, dns, file, fixed, http, keep};
use crate::cluster::probe;
use crate::config;
use crate::net::Address;
use crate::net::tls::{Changed, ClientTls, ServerTls, TlsProblem};
use crate::snapshot::diff::Outline;
use crate::telemetry::{AccessOutput, LogFormat, LogLevel};

/// Everything the supervisor needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sources of members, one per cluster that needs one.
    pub discovery: Vec<DiscoveryTask>,
    /// Checks, one per cluster that wants them; each of its endpoints is checked.
    pub probes: Vec<ProbePlan>,
    /// Files of TLS to watch.
    pub certificates: Vec<Certificates>,
    /// The listener for operators; none when it is off.
    pub admin: Option<AdminSettings>,
    /// Metrics; none when they are off.
    pub metrics: Option<MetricsSettings>,
    /// The program's own log.
    pub log: LogSettings,
    /// Where the access log goes; none when it is off. What is logged is in the snapshot.
    pub access_output: Option<AccessOutput>,
    /// Threads, draining, reload.
    pub runtime: RuntimeSettings,
    /// Where the proxy stands.
    pub profile: config::Profile,
    /// The files the configuration was read from; included ones too.
    pub files: Vec<PathBuf>,
    /// What the next reload is compared with.
    pub outline: Outline,
}

/// A source of members. Equal tasks need no restart.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoveryTask {
    /// Whose members.
    pub cluster: Arc<str>,
    /// Where they come from.
    pub source: SourcePlan,
}

/// Where members come from.
#[derive(Debug, Clone, PartialEq)]
pub enum SourcePlan {
    /// Endpoints in the configuration, some of them names.
    Fixed {
        /// As written.
        entries: Vec<fixed::Entry>,
        /// When to ask again.
        keep: keep::Settings,
    },
    /// A DNS name.
    Dns {
        /// What to ask.
        question: dns::Question,
        /// When to ask again.
        keep: keep::Settings,
    },
    /// A file.
    File(file::Settings),
    /// An HTTP address.
    Http(http::Settings),
}

impl SourcePlan {
    /// The word for this kind of source.
    pub const fn kind(&self) -> discovery::SourceKind {
        match self {
            Self::Fixed { .. } => discovery::SourceKind::Fixed,
            Self::Dns { .. } => discovery::SourceKind::Dns,
            Self::File(_) => discovery::SourceKind::File,
            Self::Http(_) => discovery::SourceKind::Http,
        }
    }

    /// The file to watch, for sources that have one.
    pub const fn watched(&self) -> Option<&PathBuf> {
        match self {
            Self::File(settings) => Some(&settings.path),
            Self::Fixed { .. } | Self::Dns { .. } | Self::Http(_) => None,
        }
    }

    /// The source to run. `changes` is asked for where [`Self::watched`] names a file.
    pub fn source(&self, resolver: &Arc<dns::Resolver>, changes: impl FnOnce() -> file::Changes) -> Source {
        match self {
            Self::Fixed { entries, keep } => Source::Fixed(fixed::Settings {
                entries: entries.clone(),
                keep: *keep,
                resolver: Arc::clone(resolver),
            }),
            Self::Dns { question, keep } => Source::Dns(dns::Settings {
                question: question.clone(),
                keep: *keep,
                resolver: Arc::clone(resolver),
            }),
            Self::File(settings) => Source::File(settings.clone(), changes()),
            Self::Http(settings) => Source::Http(settings.clone()),
        }
    }
}

/// The checks of one cluster. Equal plans need no restart.
#[derive(Debug, Clone)]
pub struct ProbePlan {
    /// Whose endpoints.
    pub cluster: Arc<str>,
    /// What to do.
    pub settings: Arc<probe::Settings>,
    /// The settings as text: expressions cannot be compared in another way.
    key: Arc<str>,
}

impl ProbePlan {
    /// A plan with its key.
    pub fn new(cluster: Arc<str>, settings: probe::Settings) -> Self {
        let key = format!("{settings:?}").into();
        Self {
            cluster,
            settings: Arc::new(settings),
            key,
        }
    }
}

impl PartialEq for ProbePlan {
    fn eq(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.key == other.key
    }
}

/// One TLS side with files to watch.
#[derive(Debug, Clone)]
pub enum Certificates {
    /// Of a listener.
    Server {
        /// `listener web`, `admin`
        owner: Arc<str>,
        /// What handshakes use.
        tls: Arc<ServerTls>,
    },
    /// Of a cluster.
    Client {
        /// `cluster app`
        owner: Arc<str>,
        /// What handshakes use.
        tls: Arc<ClientTls>,
    },
}

impl Certificates {
    /// Whose they are, in words for people.
    pub const fn owner(&self) -> &Arc<str> {
        match self {
            Self::Server { owner, .. } | Self::Client { owner, .. } => owner,
        }
    }

    /// The files to watch.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Server { tls, .. } => tls.files(),
            Self::Client { tls, .. } => tls.files(),
        }
    }

    /// Whether both are the same object.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Server { tls, .. }, Self::Server { tls: other, .. }) => Arc::ptr_eq(tls, other),
            (Self::Client { tls, .. }, Self::Client { tls: other, .. }) => Arc::ptr_eq(tls, other),
            _ => false,
        }
    }

    /// Reads the files again. **Blocks** on the file system.
    ///
    /// # Errors
    /// What is wrong with the files; what was read before goes on then.
    pub fn reload(&self) -> Result<Changed, Vec<TlsProblem>> {
        match self {
            Self::Server { tls, .. } => tls.reload(),
            Self::Client { tls, .. } => tls.reload(),
        }
    }
}

/// The listener for operators.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// Where. Needs a restart to change.
    pub address: Address,
    /// Refuses what changes something.
    pub read_only: bool,
    /// Serves the page.
    pub dashboard: bool,
    /// Allows everything.
    pub bearer_token: Option<Arc<str>>,
    /// Allows reading.
    pub viewer_token: Option<Arc<str>>,
    /// Lets its bearer send heartbeats.
    pub heartbeat_token: Option<Arc<str>>,
    /// TLS.
    pub tls: Option<Arc<ServerTls>>,
}

/// Where metrics are served and what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// A listener of their own, besides the one for operators.
    pub address: Option<Address>,
    /// The path of the scrape.
    pub path: Arc<str>,
    /// Labels of every series.
    pub labels: Vec<(String, String)>,
    /// Bounds of the histograms of durations; none for the built-in ones. Needs a restart to change.
    pub buckets: Option<Vec<Duration>>,
    /// Endpoints per cluster with series of their own.
    pub max_endpoints: usize,
}

/// The program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// How much.
    pub level: LogLevel,
    /// How it looks.
    pub format: LogFormat,
}

/// Threads, draining, reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSettings {
    /// Threads of the data plane. Needs a restart to change.
    pub worker_threads: usize,
    /// Not ready, but still accepting.
    pub drain_min: Duration,
    /// The longest end of requests.
    pub drain_max: Duration,
    /// Outbound listeners stay until the application's connections are gone.
    pub wait_for_app: bool,
    /// Changed files are read without being told.
    pub watch: bool,
    /// Quiet time before a change is read.
    pub debounce: Duration,
    /// Where state is kept over a restart.
    pub state_file: Option<PathBuf>,
}
