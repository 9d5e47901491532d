//! Replacing the running binary: the old process starts the new one and gives it its listening sockets.
//!
//! The sockets themselves are handed over, not only their addresses: a connection that waits in a socket's queue when
//! its last owner closes it is reset by the kernel, so with two independent `SO_REUSEPORT` groups a busy proxy would
//! lose some requests in every exchange. With the same sockets in both processes there is no such moment.
//!
//! The two talk over a socket pair that the new process finds as its standard input. Nobody else can connect to it, it
//! needs no path, and its end of file says that the peer is gone. The kernel names the pair's creator
//! (`SO_PEERCRED`), which tells the new process that its parent is at the other end and that the environment variable
//! was not merely inherited from further up.
//!
//! ```text
//! old                                                new
//!  |-- "BWHO" version ------------------------------->|  any other version: failed, with the reason
//!  |-- length, {"sockets":[key..],"state":length} --->|
//!  |-- one byte + up to 200 descriptors, repeated --->|
//!  |-- state ---------------------------------------->|
//!  |                                                  |  reads its configuration, starts its workers
//!  |<------------------------- ready, or failed: text |
//!  |   tells systemd the new main process             |
//!  |-- go ------------------------------------------->|  tells systemd that it is ready
//!  |   stops accepting, drains, exits                 |
//! ```
//!
//! Invariants: until the new process said that it is ready the old one serves as if nothing happened, and a failed
//! exchange leaves no process behind. Numbers are big endian.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_peercred, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg,
};
use rustix::process::getppid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::systemd;
use crate::net::tcp::Bound;

/// Set for the new process; the value is the highest version of the exchange that the old one speaks.
pub const VARIABLE: &str = "BELLWETHER_UPGRADE";

/// How long the new process may take to become ready, unless [`Handover::patience`] says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Version of the exchange. It covers what is sent here, not the state's content, which its owner versions.
const VERSION: u32 = 1;
const MAGIC: [u8; 4] = *b"BWHO";
/// The kernel takes 253 descriptors in one message (`SCM_MAX_FD`).
const BATCH: usize = 200;
const MAX_MANIFEST: usize = 1 << 20;
const MAX_STATE: usize = 64 << 20;
/// Room for all that can be wrong with a configuration.
const MAX_REASON: usize = 64 * 1024;
const READY: u8 = b'R';
const FAILED: u8 = b'F';
const GO: u8 = b'G';
/// How long a process that closed its end may take to exit by itself, so that its exit status can be told.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What precedes sockets and state.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// The key of each socket, in the order in which they are sent.
    sockets: Vec<String>,
    /// Length of the state, bytes.
    state: usize,
}

/// The program that takes over, with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// Path of the binary.
    pub program: PathBuf,
    /// Arguments without the program's name.
    pub arguments: Vec<OsString>,
}

impl Successor {
    /// The program as this process was started, to be called when it starts: later its file may have been replaced.
    ///
    /// The name it was called by comes first, because a symbolic link such as `current/bellwether` may lead to another
    /// file by the time it is used. `/proc/self/exe` only serves when that name leads nowhere: it keeps naming the old
    /// file, as `... (deleted)` after a replacement.
    ///
    /// # Errors
    /// What the system said when neither is known.
    pub fn capture() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let named = arguments.next().and_then(|name| find(&name));
        let program = match named {
            Some(program) => program,
            None => without_deleted(env::current_exe()?),
        };
        Ok(Self {
            program,
            arguments: arguments.collect(),
        })
    }
}

/// The absolute path of the program called `name`, found as a shell finds it.
fn find(name: &OsStr) -> Option<PathBuf> {
    let named = Path::new(name);
    if name.as_bytes().contains(&b'/') {
        return std::path::absolute(named).ok().filter(|path| is_program(path));
    }
    env::split_paths(&env::var_os("PATH")?)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(named))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// proc(5): the link of a process whose file was removed or replaced ends in this word.
fn without_deleted(path: PathBuf) -> PathBuf {
    let mut bytes = path.into_os_string().into_vec();
    if bytes.ends_with(b" (deleted)") {
        bytes.truncate(bytes.len() - b" (deleted)".len());
    }
    OsString::from_vec(bytes).into()
}

/// Why the old process goes on.
#[derive(Debug, thiserror::Error)]
pub enum NotReplaced {
    /// The program could not be started.
    #[error("{} cannot be started: {error}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The new process said why it will not take over.
    #[error("the new process refused: {0}")]
    Refused(String),
    /// The new process ended before it was ready; its own messages say why.
    #[error("the new process ended before it was ready ({0})")]
    Ended(ExitStatus),
    /// It did not become ready in time and was stopped.
    #[error("the new process was not ready after {} s and was stopped", .0.as_secs())]
    TooSlow(Duration),
    /// The exchange broke.
    #[error("the exchange with the new process failed: {0}")]
    Broken(#[from] io::Error),
}

/// What the old process gives away, collected before the new one is started.
///
/// The sockets are duplicates: the old process keeps its own and, when the exchange fails, goes on with them. After
/// [`Handover::spawn`] returned, nothing of this is open any more, so that closing the workers' sockets closes all.
#[derive(Debug)]
pub struct Handover {
    sockets: Vec<(String, OwnedFd)>,
    state: Vec<u8>,
    /// How long the new process may take to become ready.
    pub patience: Duration,
}

impl Handover {
    /// An exchange that hands over no socket yet. `state` is opaque here; it should carry a version of its own.
    pub const fn new(state: Vec<u8>) -> Self {
        Self {
            sockets: Vec::new(),
            state,
            patience: PATIENCE,
        }
    }

    /// Adds a listening socket. All sockets of one listener have the same key, and **all** of a key must be added: a
    /// socket of an `SO_REUSEPORT` group that is left out takes its waiting connections with it.
    ///
    /// # Errors
    /// What the kernel said when it was to duplicate the descriptor, such as having none left.
    pub fn add(&mut self, key: &str, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        self.sockets.push((key.to_owned(), socket));
        Ok(())
    }

    /// Starts `successor`, gives it everything, and waits until it is ready. Returns its process id; the caller then
    /// stops accepting and drains. Unix sockets' files must stay: they are the new process's now.
    ///
    /// Dropping the future stops the new process.
    ///
    /// # Errors
    /// Why it is not going to take over; it is stopped, and the caller goes on as before.
    pub async fn spawn(self, successor: &Successor) -> Result<u32, NotReplaced> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let child = Command::new(&successor.program)
            .args(&successor.arguments)
            .env(VARIABLE, VERSION.to_string())
            // systemd's variables name the process they are meant for. The watchdog is meant for whoever serves, so
            // without the name it holds for the new process; the sockets arrive by this exchange.
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(|error| NotReplaced::Start {
                program: successor.program.clone(),
                error,
            })?;
        let mut child = Starting(Some(child));
        let patience = self.patience;
        match timeout(patience, self.exchange(ours, &mut child)).await {
            Ok(Ok(())) => Ok(child.keep()),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(NotReplaced::TooSlow(patience)),
        }
    }

    async fn exchange(self, mut peer: UnixStream, child: &mut Starting) -> Result<(), NotReplaced> {
        // A process that refuses says so and closes without reading the rest, so a failed write is no verdict yet.
        let sent = self.send(&mut peer).await;
        // The peer has its own copies now; ours would keep a socket open that the workers close.
        drop(self);
        match answer(&mut peer).await {
            Ok(Answer::Ready) => {
                sent?;
                // In this order: systemd believes only the main process, and reads in the order of sending.
                drop(systemd::main_pid(child.id()));
                peer.write_all(&[GO]).await?;
                Ok(())
            }
            Ok(Answer::Failed(reason)) => Err(NotReplaced::Refused(reason)),
            Err(error) => match child.last_words().await {
                Some(status) => Err(NotReplaced::Ended(status)),
                None => Err(error.into()),
            },
        }
    }

    async fn send(&self, peer: &mut UnixStream) -> io::Result<()> {
        let manifest = Manifest {
            sockets: self.sockets.iter().map(|(key, _)| key.clone()).collect(),
            state: self.state.len(),
        };
        let manifest = serde_json::to_vec(&manifest)?;
        if manifest.len() > MAX_MANIFEST || self.state.len() > MAX_STATE {
            return Err(io::Error::other(
                "there is more to hand over than the exchange allows",
            ));
        }
        peer.write_all(&MAGIC).await?;
        peer.write_u32(VERSION).await?;
        peer.write_u32(u32::try_from(manifest.len()).unwrap_or(u32::MAX))
            .await?;
        peer.write_all(&manifest).await?;
        for batch in self.sockets.chunks(BATCH) {
            let sockets: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
            peer.async_io(Interest::WRITABLE, || send_sockets(peer.as_fd(), &sockets))
                .await?;
        }
        peer.write_all(&self.state).await
    }
}

fn send_sockets(peer: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("a batch of sockets is larger than its buffer"));
    }
    // Descriptors travel with at least one byte of data.
    sendmsg(peer, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

enum Answer {
    Ready,
    Failed(String),
}

async fn answer(peer: &mut UnixStream) -> io::Result<Answer> {
    match peer.read_u8().await? {
        READY => Ok(Answer::Ready),
        FAILED => {
            let length = usize::try_from(peer.read_u32().await?).unwrap_or(usize::MAX);
            let mut reason = vec![0; length.min(MAX_REASON)];
            peer.read_exact(&mut reason).await?;
            Ok(Answer::Failed(String::from_utf8_lossy(&reason).into_owned()))
        }
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("an answer of kind {other}"),
        )),
    }
}

/// A process that has not taken over yet; dropping it stops it.
struct Starting(Option<Child>);

impl Starting {
    fn id(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// It took over and outlives this process; whoever adopts it then reaps it.
    fn keep(mut self) -> u32 {
        self.0.take().map_or(0, |child| child.id())
    }

    /// How it ended, if it does soon.
    async fn last_words(&mut self) -> Option<ExitStatus> {
        // Its end is closed, so it is about to exit; asking now and then is simpler than being told, and rare.
        let deadline = sleep(LAST_WORDS);
        tokio::pin!(deadline);
        loop {
            if let Some(status) = self.0.as_mut()?.try_wait().ok()? {
                return Some(status);
            }
            tokio::select! {
                () = &mut deadline => return None,
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Both fail only when it is gone and reaped. After the kill, waiting takes no time worth a thread.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl fmt::Debug for Starting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Starting({})", self.id())
    }
}

/// What a new process was given. Dropping it without [`Inherited::report_ready`] makes the old one go on.
#[derive(Debug)]
pub struct Inherited {
    peer: StdUnixStream,
    sockets: Vec<(String, Bound)>,
    state: Vec<u8>,
}

impl Inherited {
    /// Receives what the old process hands over; `None` when this process was started in the ordinary way.
    ///
    /// Blocks until everything has arrived; call it at the start, before threads, and before anything is bound. The
    /// standard input is `/dev/null` afterwards.
    ///
    /// # Errors
    /// `Unsupported` when the old process speaks another version (it is told so), `InvalidData` when what arrived
    /// makes no sense, else what the kernel said. The process should then exit; the old one goes on.
    pub fn receive_from_env() -> io::Result<Option<Self>> {
        if env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let stdin = io::stdin();
        // The variable may come from further up, through a process that started us for another reason: then the
        // standard input is no socket that our parent made.
        let parent = getppid();
        if !socket_peercred(stdin.as_fd()).is_ok_and(|peer| Some(peer.pid) == parent) {
            return Ok(None);
        }
        let peer = StdUnixStream::from(stdin.as_fd().try_clone_to_owned()?);
        // The last copy but ours: when we close, the old process must notice.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        peer.set_nonblocking(false)?;
        peer.set_read_timeout(Some(PATIENCE))?;
        peer.set_write_timeout(Some(PATIENCE))?;
        Self::receive(peer).map(Some)
    }

    fn receive(mut peer: StdUnixStream) -> io::Result<Self> {
        let mut magic = [0; 4];
        peer.read_exact(&mut magic)?;
        let version = read_u32(&mut peer)?;
        if magic != MAGIC || version != VERSION {
            let reason = format!(
                "version {version} of the socket exchange was offered, this binary speaks version {VERSION}; restart \
                 instead"
            );
            report(&mut peer, FAILED, &reason)?;
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        let length = usize::try_from(read_u32(&mut peer)?).unwrap_or(usize::MAX);
        let manifest: Manifest = serde_json::from_slice(&read_vec(&mut peer, length, MAX_MANIFEST)?)?;
        let mut descriptors = Vec::with_capacity(manifest.sockets.len());
        while descriptors.len() < manifest.sockets.len() {
            receive_sockets(peer.as_fd(), &mut descriptors)?;
        }
        if descriptors.len() != manifest.sockets.len() {
            return Err(invalid("more sockets arrived than were announced"));
        }
        let sockets = manifest
            .sockets
            .into_iter()
            .zip(descriptors)
            .map(|(key, socket)| Ok((key, adopt(socket)?)))
            .collect::<io::Result<_>>()?;
        let state = read_vec(&mut peer, manifest.state, MAX_STATE)?;
        Ok(Self { peer, sockets, state })
    }

    /// The old process's listening sockets for `key`, each once; `None` when it had none.
    ///
    /// The caller must accept from **all** of them, however many workers it has (see [`distribute`]): the kernel
    /// spreads new connections over every socket of the group, so one that nobody serves swallows its share.
    pub fn take(&mut self, key: &str) -> Option<Vec<Bound>> {
        let taken: Vec<Bound> = self
            .sockets
            .extract_if(.., |(of, _)| of == key)
            .map(|(_, socket)| socket)
            .collect();
        (!taken.is_empty()).then_some(taken)
    }

    /// The keys not taken yet, each once: listeners that the new configuration no longer has. Their sockets close
    /// with this value.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.sockets.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What the old process wanted remembered.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Tells the old process to stop accepting, and waits until it has heard it: from then on systemd, if there is
    /// one, listens to this process. Blocks for a moment; sockets that were not taken close.
    ///
    /// # Errors
    /// The old process is gone or no longer waits. If it gave up, it is about to stop this process; if it died, this
    /// process is the only one left. Either way there is no reason to stop serving.
    pub fn report_ready(mut self) -> io::Result<()> {
        self.peer.write_all(&[READY])?;
        let mut go = [0];
        self.peer.read_exact(&mut go)?;
        if go == [GO] {
            Ok(())
        } else {
            Err(invalid("an unknown answer to being ready"))
        }
    }

    /// Tells the old process why this one will not take over, for its log. The caller then exits.
    ///
    /// # Errors
    /// The old process is gone.
    pub fn report_failed(mut self, reason: &str) -> io::Result<()> {
        report(&mut self.peer, FAILED, reason)
    }
}

/// Gives every one of `workers` at least one socket to accept from, and every socket to some worker.
///
/// With more workers than sockets some share a socket, and with it one queue; the next ordinary start gives each its
/// own again.
///
/// # Errors
/// What the kernel said when it was to duplicate a descriptor, such as having none left.
pub fn distribute(sockets: Vec<Bound>, workers: usize) -> io::Result<Vec<Vec<Bound>>> {
    let mut shares: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
    let given = sockets.len();
    if given == 0 || workers == 0 {
        return Ok(shares);
    }
    for (index, socket) in sockets.into_iter().enumerate() {
        shares[index % workers].push(socket);
    }
    for worker in given..workers {
        let shared = shares[worker % given][0].try_clone()?;
        shares[worker].push(shared);
    }
    Ok(shares)
}

/// Takes a descriptor of unknown origin for a listening socket, if it is one that streams.
fn adopt(socket: OwnedFd) -> io::Result<Bound> {
    if socket_type(&socket)? != SocketType::STREAM || !socket_acceptconn(&socket)? {
        return Err(invalid("a descriptor is no listening socket"));
    }
    match socket_domain(&socket)? {
        AddressFamily::INET | AddressFamily::INET6 => Ok(Bound::Tcp(socket.into())),
        AddressFamily::UNIX => Ok(Bound::Unix(socket.into())),
        _ => Err(invalid("a socket of an unknown address family")),
    }
}

fn receive_sockets(peer: BorrowedFd<'_>, into: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(
        peer,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let before = into.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            into.extend(sockets);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // recvmsg(2): what this process has no descriptors left for is closed and only the flag tells.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "there are too few file descriptors for the sockets",
        ));
    }
    if into.len() == before {
        return Err(invalid("a message without sockets"));
    }
    Ok(())
}

fn report(peer: &mut StdUnixStream, kind: u8, reason: &str) -> io::Result<()> {
    let reason = &reason.as_bytes()[..reason.len().min(MAX_REASON)];
    let mut message = vec![kind];
    message.extend(u32::try_from(reason.len()).unwrap_or(0).to_be_bytes());
    message.extend(reason);
    peer.write_all(&message)
}

fn read_u32(peer: &mut StdUnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_vec(peer: &mut StdUnixStream, length: usize, limit: usize) -> io::Result<Vec<u8>> {
    if length > limit {
        return Err(invalid("a length beyond its limit"));
    }
    let mut bytes = vec![0; length];
    peer.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tcp::{ListenOptions, bind_workers};
    use crate::net::{Address, SocketAddress};
    use std::net::TcpStream;
    use std::sync::mpsc;
    use std::thread;

    /// The test binary again, running only [`successor`]; what it does is written in the state.
    fn successor_process() -> Successor {
        let this = env::current_exe().unwrap();
        let script = r#"exec "$0" "$@" >/dev/null"#;
        Successor {
            program: "/bin/sh".into(),
            arguments: ["-c".as_ref(), script.as_ref(), this.as_os_str()]
                .into_iter()
                .chain(["--exact", "app::upgrade::tests::successor"].map(OsStr::new))
                .map(OsStr::to_owned)
                .collect(),
        }
    }

    fn listen(workers: usize) -> (SocketAddress, Vec<Bound>) {
        let any: Address = "127.0.0.1:0".parse().unwrap();
        let bound = bind_workers(&any.to_listen().unwrap(), workers, &ListenOptions::default()).unwrap();
        (bound[0].local_addr().unwrap(), bound)
    }

    fn handover(sockets: &[Bound], state: impl Into<Vec<u8>>) -> Handover {
        let mut handover = Handover::new(state.into());
        for socket in sockets {
            handover.add("web", socket).unwrap();
        }
        handover
    }

    /// Not a test but the new process of the others, which run it in a process of its own.
    #[test]
    fn successor() {
        if env::var_os(VARIABLE).is_none() {
            return;
        }
        let Some(mut inherited) = Inherited::receive_from_env().unwrap() else {
            assert_eq!(env::var(VARIABLE).as_deref(), Ok("leaked"));
            return;
        };
        let state = String::from_utf8(inherited.state().to_vec()).unwrap();
        let (task, expected) = state.trim_end().split_once(' ').unwrap();
        let expected: usize = expected.parse().unwrap();
        match task {
            "serve" => {
                // Three workers, whatever the old process had.
                let shares = distribute(inherited.take("web").unwrap(), 3).unwrap();
                assert!(shares.iter().all(|share| !share.is_empty()));
                let (answered, answers) = mpsc::channel();
                for socket in shares.into_iter().flatten() {
                    let answered = answered.clone();
                    thread::spawn(move || serve(socket, &answered));
                }
                inherited.report_ready().unwrap();
                for _ in 0..expected {
                    answers.recv_timeout(Duration::from_secs(20)).unwrap();
                }
            }
            "count" => {
                assert_eq!(inherited.keys(), ["web"]);
                assert_eq!(inherited.take("web").unwrap().len(), expected);
                assert!(inherited.take("web").is_none());
                inherited.report_ready().unwrap();
            }
            "refuse" => inherited
                .report_failed("listener `web` has no certificate")
                .unwrap(),
            "leave" => {}
            "hang" => thread::park(),
            other => panic!("unknown task {other}"),
        }
    }

    fn serve(socket: Bound, answered: &mpsc::Sender<()>) {
        let Bound::Tcp(listener) = socket else {
            panic!("not TCP")
        };
        // All duplicates of a descriptor share this flag; the old process no longer accepts.
        listener.set_nonblocking(false).unwrap();
        while let Ok((mut client, _)) = listener.accept() {
            client.write_all(b"new").unwrap();
            answered.send(()).unwrap();
        }
    }

    #[tokio::test]
    async fn connections_that_wait_during_the_exchange_are_answered_by_the_new_process() {
        const CLIENTS: usize = 40;
        let (address, sockets) = listen(2);
        let connect = || TcpStream::connect(address.ip().unwrap()).unwrap();
        let before: Vec<TcpStream> = (0..CLIENTS).map(|_| connect()).collect();
        let handover = handover(&sockets, format!("serve {}", 2 * CLIENTS));
        let pid = handover.spawn(&successor_process()).await.unwrap();
        assert_ne!(pid, std::process::id());
        drop(sockets);
        let after: Vec<TcpStream> = (0..CLIENTS).map(|_| connect()).collect();
        for mut client in before.into_iter().chain(after) {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "new");
        }
    }

    #[tokio::test]
    async fn more_sockets_than_one_message_takes_and_a_large_state_arrive() {
        let (_, sockets) = listen(1);
        let mut handover = Handover::new(format!("count 450{}", " ".repeat(1 << 20)).into());
        for _ in 0..450 {
            handover.add("web", &sockets[0]).unwrap();
        }
        handover.spawn(&successor_process()).await.unwrap();
    }

    #[tokio::test]
    async fn the_old_process_goes_on_when_the_new_one_refuses() {
        let (address, sockets) = listen(1);
        let outcome = handover(&sockets, "refuse 0").spawn(&successor_process()).await;
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the new process refused: listener `web` has no certificate"
        );
        let Bound::Tcp(listener) = &sockets[0] else {
            panic!("not TCP")
        };
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(address.ip().unwrap()).unwrap();
        listener.accept().unwrap();
    }

    #[tokio::test]
    async fn a_new_process_that_ends_early_is_noticed_with_its_status() {
        let outcome = handover(&listen(1).1, "leave 0")
            .spawn(&successor_process())
            .await;
        let Err(NotReplaced::Ended(status)) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(status.success());
    }

    #[tokio::test]
    async fn a_new_process_that_never_becomes_ready_is_stopped() {
        let mut handover = handover(&listen(1).1, "hang 0");
        handover.patience = Duration::from_millis(300);
        let outcome = handover.spawn(&successor_process()).await;
        assert!(matches!(outcome, Err(NotReplaced::TooSlow(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let successor = Successor {
            program: "/nowhere/bellwether".into(),
            arguments: Vec::new(),
        };
        let error = Handover::new(Vec::new()).spawn(&successor).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/bellwether cannot be started: ")
        );
    }

    #[tokio::test]
    async fn a_program_that_knows_nothing_of_the_exchange_has_not_taken_over() {
        let successor = Successor {
            program: "/bin/true".into(),
            arguments: Vec::new(),
        };
        let outcome = handover(&listen(1).1, "x").spawn(&successor).await;
        assert!(matches!(outcome, Err(NotReplaced::Ended(_))), "{outcome:?}");
    }

    #[test]
    fn an_environment_variable_alone_is_no_exchange() {
        let successor = successor_process();
        let status = Command::new(successor.program)
            .args(successor.arguments)
            .env(VARIABLE, "leaked")
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn another_version_is_refused_with_the_reason() {
        let (mut old, new) = StdUnixStream::pair().unwrap();
        old.write_all(b"BWHO\0\0\0\x07").unwrap();
        let error = Inherited::receive(new).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        let mut answer = Vec::new();
        old.read_to_end(&mut answer).unwrap();
        assert_eq!(answer[0], FAILED);
        assert!(String::from_utf8_lossy(&answer[5..]).contains("version 7 of the socket exchange"));
    }

    #[test]
    fn what_is_no_listening_socket_is_not_adopted() {
        let (connected, _peer) = StdUnixStream::pair().unwrap();
        assert!(adopt(connected.into()).is_err());
        assert!(adopt(File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn every_worker_gets_a_socket_and_every_socket_a_worker() {
        for (sockets, workers) in [(1, 4), (4, 1), (3, 2), (2, 5), (2, 2)] {
            let shares = distribute(listen(sockets).1, workers).unwrap();
            assert_eq!(shares.len(), workers);
            assert!(shares.iter().all(|share| !share.is_empty()));
            let total: usize = shares.iter().map(Vec::len).sum();
            assert_eq!(total, sockets.max(workers));
        }
        assert!(distribute(Vec::new(), 2).unwrap().iter().all(Vec::is_empty));
    }

    #[test]
    fn a_replaced_binary_is_found_under_its_old_name() {
        assert_eq!(
            without_deleted("/usr/bin/bellwether (deleted)".into()),
            Path::new("/usr/bin/bellwether")
        );
        assert_eq!(
            find(OsStr::new("sh")).unwrap().file_name(),
            Some(OsStr::new("sh"))
        );
        assert_eq!(find(OsStr::new("/bin/sh")), Some("/bin/sh".into()));
        assert_eq!(find(OsStr::new("/nowhere/sh")), None);
        assert!(Successor::capture().unwrap().program.is_absolute());
    }
}
