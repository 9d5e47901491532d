//! The proxy as a process: started with a configuration of its own, watched from outside, ended with the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::client::{self, Answer, Client};
use super::eventually;

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    process: Process,
    folder: Arc<tempfile::TempDir>,
    output: Output,
    listeners: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
}

/// Who serves.
#[derive(Debug)]
enum Process {
    /// A process that we started.
    Child(Child),
    /// One that another proxy started in its place, by its id.
    Heir(u32),
}

/// How a proxy is to be started.
#[derive(Debug)]
pub(crate) struct Start {
    folder: Arc<tempfile::TempDir>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// Files of the folder that stand in `/etc` for this process.
    etc: Vec<&'static str>,
    socket: Option<std::net::TcpListener>,
}

/// What a process has written so far.
#[derive(Clone, Debug, Default)]
struct Output(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    stdout: Vec<String>,
    stderr: Vec<String>,
    ended: usize,
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Starts a proxy with this configuration and waits until it is ready.
///
/// What a test leaves out gets values that suit tests: an admin address, short drains, and no guard against the overload of
/// the machine that runs them. Everything else is the default.
pub(crate) async fn proxy(config: &str) -> Proxy {
    Start::new(config).start().await
}

/// A configuration with one listener `web` that sends everything to these endpoints.
pub(crate) fn to(endpoints: &[SocketAddr]) -> String {
    with("", "", endpoints)
}

/// The same with further lines of the route and of the cluster, each indented by four spaces.
pub(crate) fn with(route: &str, cluster: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: app\n{route}clusters:\n  app:\n    \
         endpoints: [{}]\n{cluster}",
        endpoints.join(", ")
    )
}

impl Start {
    pub(crate) fn new(config: &str) -> Self {
        let start = Self {
            folder: Arc::new(tempfile::tempdir().expect("a temporary folder")),
            arguments: Vec::new(),
            variables: Vec::new(),
            etc: Vec::new(),
            socket: None,
        };
        start.write(config);
        start
    }

    /// Puts a file beside the configuration.
    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        std::fs::write(self.folder.path().join(name), content).expect("a writable folder");
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets the process see this file of the folder in `/etc`, in a mount namespace of its own.
    pub(crate) fn with_etc(mut self, name: &'static str) -> Self {
        self.etc.push(name);
        self
    }

    /// Hands over a listening socket, as a service manager does.
    pub(crate) fn with_socket(mut self, socket: std::net::TcpListener) -> Self {
        self.socket = Some(socket);
        self
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_bellwether");
        if let Some(socket) = &self.socket {
            let mut command = Command::new("sh");
            command
                .args([
                    "-c",
                    "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null",
                    "sh",
                    binary,
                ])
                .stdin(Stdio::from(OwnedFd::from(socket.try_clone().expect("a socket"))));
            return command;
        }
        if self.etc.is_empty() {
            let mut command = Command::new(binary);
            command.stdin(Stdio::null());
            return command;
        }
        let mounts: String = self
            .etc
            .iter()
            .map(|name| format!("mount --bind {name} /etc/{name} && "))
            .collect();
        let mut command = Command::new("unshare");
        command
            .stdin(Stdio::null())
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg(mounts + "exec \"$0\" \"$@\"")
            .arg(binary);
        command
    }

    fn write(&self, config: &str) {
        write_config(self.folder.path(), config);
    }

    fn spawn(&self) -> (Child, Output) {
        let mut child = self
            .command()
            .arg("run")
            .arg("-c")
            .arg(self.folder.path().join("bellwether.yaml"))
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let output = Output::default();
        output.follow(child.stdout.take().expect("piped"), |written| &mut written.stdout);
        output.follow(child.stderr.take().expect("piped"), |written| &mut written.stderr);
        (child, output)
    }

    /// Starts and waits until requests are served.
    pub(crate) async fn start(self) -> Proxy {
        let (child, output) = self.spawn();
        let mut proxy = Proxy {
            process: Process::Child(child),
            folder: Arc::clone(&self.folder),
            output,
            listeners: BTreeMap::new(),
            admin: None,
        };
        let output = proxy.output.clone();
        eventually("the proxy is ready", || {
            output.0.lock().ended == 2 || output.is_ready(0)
        })
        .await;
        proxy.read_banner(0);
        proxy
    }

    /// Starts and waits for the end, for configurations that must not run.
    pub(crate) async fn fail(self) -> Finished {
        let (mut child, output) = self.spawn();
        let mut status = None;
        let waited = async {
            eventually("the proxy gives up", || {
                status = child.try_wait().expect("our child");
                status.is_some() && output.0.lock().ended == 2
            })
            .await;
        };
        // A proxy that runs although it must not is ended before the test fails.
        let waited = tokio::time::timeout(super::PATIENCE / 2, waited).await;
        if waited.is_err() {
            drop(child.kill());
            drop(child.wait());
            panic!("the proxy runs: {}", output.stderr());
        }
        Finished {
            status: status.expect("ended"),
            stdout: output.stdout(),
            stderr: output.stderr(),
        }
    }
}

fn write_config(folder: &Path, config: &str) {
    let mut config = config.to_owned();
    let has = |config: &str, key: &str| config.lines().any(|line| line.starts_with(key));
    if !has(&config, "admin:") {
        config.push_str("admin:\n  address: 127.0.0.1:0\n");
    }
    if !has(&config, "runtime:") {
        config.push_str("runtime:\n  overload: off\n  worker_threads: 2\n  drain: { min: 300ms, max: 20s }\n  reload: { debounce: 50ms }\n");
    }
    if !has(&config, "telemetry:") {
        let log = folder.join("access.log");
        config.push_str(&format!(
            "telemetry:\n  access_log: {{ format: json, output: {} }}\n",
            log.display()
        ));
    }
    // As an editor does: a new file in the place of the old one.
    let fresh = folder.join("bellwether.yaml.new");
    std::fs::write(&fresh, config).expect("a writable folder");
    std::fs::rename(fresh, folder.join("bellwether.yaml")).expect("a writable folder");
}

impl Output {
    fn follow(&self, pipe: impl std::io::Read + Send + 'static, lines: fn(&mut Written) -> &mut Vec<String>) {
        let written = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { break };
                lines(&mut written.lock()).push(line);
            }
            written.lock().ended += 1;
        });
    }

    /// Whether a banner has ended since this line.
    fn is_ready(&self, since: usize) -> bool {
        let written = self.0.lock();
        written.stderr[since..]
            .iter()
            .any(|line| line.trim_start().starts_with("ready in"))
    }

    fn stdout(&self) -> String {
        self.0.lock().stdout.join("\n")
    }

    fn stderr(&self) -> String {
        self.0.lock().stderr.join("\n")
    }
}

impl Proxy {
    /// Reads the addresses from what was said since this line.
    fn read_banner(&mut self, since: usize) {
        let stderr = self.output.0.lock().stderr[since..].join("\n");
        for line in stderr.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match &*words {
                ["listen", name, url, ..] => {
                    if let Some(address) = address(url) {
                        self.listeners.insert((*name).to_owned(), address);
                    }
                }
                ["admin", url, ..] => self.admin = address(url),
                _ => {}
            }
        }
        assert!(!self.listeners.is_empty(), "the proxy told no address:\n{stderr}");
    }

    /// The address of the listener `web`.
    #[track_caller]
    pub(crate) fn web(&self) -> SocketAddr {
        self.listener("web")
    }

    #[track_caller]
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        *self
            .listeners
            .get(name)
            .unwrap_or_else(|| panic!("no listener {name}:\n{}", self.stderr()))
    }

    #[track_caller]
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
            .unwrap_or_else(|| panic!("no admin address:\n{}", self.stderr()))
    }

    pub(crate) fn stderr(&self) -> String {
        self.output.stderr()
    }

    pub(crate) fn stdout(&self) -> String {
        self.output.stdout()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder().join("bellwether.yaml")
    }

    /// Lets the process start its successor, and waits until that one serves and the old one has ended. Returns the new
    /// one, and how the old one ended.
    pub(crate) async fn replace(mut self) -> (Self, ExitStatus) {
        let old = self.pid();
        let said = self.output.0.lock().stderr.len();
        self.signal(Signal::USR2);
        let mut heir = None;
        eventually("a successor is started", || {
            heir = children(old).first().copied();
            heir.is_some()
        })
        .await;
        let heir = heir.expect("found");
        let Process::Child(child) = &mut self.process else {
            panic!("only a process that we started can be asked how it ended")
        };
        let mut status = None;
        eventually("the old process ends", || {
            status = child.try_wait().expect("our child");
            status.is_some()
        })
        .await;
        let output = self.output.clone();
        eventually("the successor is ready", || output.is_ready(said)).await;
        self.process = Process::Heir(heir);
        self.read_banner(said);
        (self, status.expect("ended"))
    }

    /// Writes the configuration anew. The listeners keep the addresses that they have.
    pub(crate) fn write(&self, config: &str) {
        write_config(self.folder(), config);
    }

    /// Writes the configuration anew and waits until it is in force.
    pub(crate) async fn reload(&self, config: &str) {
        let before = self.reloads("applied").await;
        self.write(config);
        super::eventually_async("the configuration is in force", || async {
            self.reloads("applied").await > before
        })
        .await;
    }

    /// Reloads so far with this result.
    pub(crate) async fn reloads(&self, result: &str) -> f64 {
        self.metrics()
            .await
            .sum("bellwether_config_reloads_total", &[("result", result)])
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Heir(pid) => *pid,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).expect("a living process");
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a living process");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a number");
        kib * 1024
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("a process")
            .count()
    }

    /// Waits for the end of the process.
    pub(crate) async fn finished(mut self) -> Finished {
        let mut status = None;
        let output = self.output.clone();
        eventually("the proxy ends", || {
            let Process::Child(child) = &mut self.process else {
                panic!("only a process that we started can be asked how it ended")
            };
            status = child.try_wait().expect("our child");
            status.is_some() && output.0.lock().ended == 2
        })
        .await;
        Finished {
            status: status.expect("ended"),
            stdout: output.stdout(),
            stderr: output.stderr(),
        }
    }

    /// `GET` on the admin address.
    pub(crate) async fn admin_get(&self, path: &str) -> Answer {
        let host = format!("host: {}\r\n", self.admin());
        Client::connect(self.admin())
            .await
            .ask("GET", path, &host, b"")
            .await
    }

    /// `POST` on the admin address, with what it asks of those who change something.
    pub(crate) async fn admin_post(&self, path: &str, body: &str) -> Answer {
        self.admin_ask("POST", path, body).await
    }

    /// The same with any method.
    pub(crate) async fn admin_ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let fields = format!(
            "host: {}\r\ncontent-type: application/json\r\nx-bellwether-admin: 1\r\n",
            self.admin()
        );
        client::ask(self.admin(), method, path, &fields, body.as_bytes()).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let answer = self.admin_get("/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics::parse(&answer.text())
    }

    /// The access log so far, one value per line.
    pub(crate) fn access_log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder().join("access.log")).unwrap_or_default();
        // The last line may still be written.
        let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
        complete
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// The first line of the access log that fits.
    pub(crate) async fn logged(&self, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let mut found = None;
        eventually("a line is logged", || {
            found = self.access_log().into_iter().find(|line| fits(line));
            found.is_some()
        })
        .await;
        found.expect("found")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Fails only on a process that has ended.
        match &mut self.process {
            Process::Child(child) => {
                drop(child.kill());
                drop(child.wait());
            }
            Process::Heir(heir) => drop(kill_process(pid(*heir), Signal::KILL)),
        }
        if std::thread::panicking() {
            eprintln!("--- what the proxy said ---\n{}\n---", self.output.stderr());
        } else {
            let stderr = self.output.stderr();
            assert!(!stderr.contains("panicked at"), "the proxy panicked:\n{stderr}");
        }
    }
}

fn pid(number: u32) -> Pid {
    let number = i32::try_from(number).expect("a process id");
    Pid::from_raw(number).expect("a process id")
}

/// The children of a process, whichever thread started them.
fn children(of: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{of}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn address(url: &str) -> Option<SocketAddr> {
    let (_, rest) = url.split_once("://")?;
    rest.trim_end_matches('/').parse().ok()
}

/// One scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(pub(crate) Vec<Sample>);

/// One line of a scrape.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let labels = labels
                    .trim_end_matches('}')
                    .split("\",")
                    .filter_map(|pair| pair.split_once("=\""))
                    .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
                    .collect();
                let value = match value {
                    "+Inf" => f64::INFINITY,
                    "NaN" => f64::NAN,
                    value => value.parse().unwrap_or_else(|_| panic!("not a number: {line}")),
                };
                Sample {
                    name: name.to_owned(),
                    labels,
                    value,
                }
            });
        Self(samples.collect())
    }

    /// The sum over all series of a name that carry these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The series of a name that carry these labels.
    pub(crate) fn matching<'a>(
        &'a self,
        name: &str,
        labels: &[(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}

/// The default wait between two looks at something outside of this process.
pub(crate) const BEAT: Duration = Duration::from_millis(10);
