//! The access log: one line per request, written by a thread of its own.
//!
//! A worker formats into its own buffer and hands the whole buffer over when it is full or a second old; one thread
//! writes buffers out and gives them back. So a request costs the formatting and nothing else: no lock, no system call,
//! no allocation. When the disk (or whoever reads our standard output) is slower than the traffic, the queue of buffers
//! fills, and lines are lost and counted instead of requests being held.
//!
//! Invariants: `write` and `flush` never block; at most `QUEUE` buffers of about `BUFFER` bytes exist per process, and
//! one per worker; a line is written whole or not at all unless the output itself fails in the middle.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use bellwether_core::{Dice, Reason};
use parking_lot::Mutex;

use super::access_line::{self, AccessRecord, DateCache};
use super::{ProcessMetrics, WorkerId};

/// A buffer is handed over when it holds this much.
const BUFFER: usize = 32 * 1024;

/// Buffers that may wait for the writer.
const QUEUE: usize = 128;

/// Which requests are logged and how. Comes with every call, from the snapshot of the request.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessSettings {
    /// Text or JSON.
    pub format: AccessFormat,
    /// Which requests.
    pub only: AccessFilter,
    /// Share of requests logged, 0 to 1. Errors always are.
    pub sample: f64,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            format: AccessFormat::Json,
            only: AccessFilter::All,
            sample: 1.0,
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFilter {
    /// All of them.
    All,
    /// The ones that are errors: see [`is_error`].
    Errors,
    /// The ones that took longer than this.
    Slow(Duration),
}

/// Whether a request is an error to the log: we answered ourselves or broke off, the status is 5xx, or the gRPC status is
/// one that means the same (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS).
pub fn is_error(status: u16, grpc_status: Option<u32>, reason: Option<Reason>) -> bool {
    reason.is_some() || status >= 500 || matches!(grpc_status, Some(2 | 4 | 12 | 13 | 14 | 15))
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file that is appended to, made when missing, and opened again on request (log rotation).
    File(PathBuf),
}

/// An output that could be opened.
#[derive(Debug)]
pub struct Sink {
    output: AccessOutput,
    file: Option<File>,
}

impl Sink {
    /// Opens an output, so that a reload can be refused before anything changes.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(output: AccessOutput) -> io::Result<Self> {
        let file = match &output {
            AccessOutput::Stdout | AccessOutput::Stderr => None,
            // Readable for a log collector in our group, not for everybody: lines hold addresses.
            AccessOutput::File(path) => Some(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o640)
                    .open(path)?,
            ),
        };
        Ok(Self { output, file })
    }

    fn write_all(&mut self, lines: &[u8]) -> io::Result<()> {
        match (&self.output, &mut self.file) {
            (AccessOutput::Stdout, _) => {
                let mut out = io::stdout().lock();
                out.write_all(lines).and_then(|()| out.flush())
            }
            (AccessOutput::Stderr, _) => io::stderr().lock().write_all(lines),
            (AccessOutput::File(_), Some(file)) => file.write_all(lines),
            // The file could not be opened again; try once more with every buffer, it may have become possible.
            (AccessOutput::File(_), None) => {
                self.reopen()?;
                self.file.as_mut().map_or(Ok(()), |file| file.write_all(lines))
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if self.file.take().is_some() || matches!(self.output, AccessOutput::File(_)) {
            *self = Self::open(self.output.clone())?;
        }
        Ok(())
    }
}

enum Message {
    /// So many lines.
    Lines(Vec<u8>, u64),
    /// Something in [`Shared`] wants attention.
    Look,
    /// Everything before this is written.
    Written(SyncSender<()>),
}

/// Between workers, writer and control plane.
#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    /// Written buffers, to be filled again.
    empty: Mutex<Vec<Vec<u8>>>,
    /// Open the file again.
    reopen: AtomicBool,
    /// The output that replaces the present one.
    next: Mutex<Option<Sink>>,
    metrics: Arc<ProcessMetrics>,
}

/// The log of one process. Clones are the same log; its thread ends when the last clone and the last
/// [`AccessWriter`] are gone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

impl AccessLog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(sink: Sink, metrics: Arc<ProcessMetrics>) -> io::Result<Self> {
        Self::start_with(sink, metrics, QUEUE)
    }

    fn start_with(sink: Sink, metrics: Arc<ProcessMetrics>, queue: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        let shared = Arc::new(Shared {
            queue: sender,
            empty: Mutex::new(Vec::new()),
            reopen: AtomicBool::new(false),
            next: Mutex::new(None),
            metrics,
        });
        // Weak, so that the end of all senders ends the thread.
        let seen = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_out(sink, &receiver, &seen))?;
        Ok(Self { shared })
    }

    /// The pen of one worker. To be made on its thread, once.
    pub fn writer(&self, worker: WorkerId) -> AccessWriter {
        let page = Page {
            lines: Vec::with_capacity(BUFFER + BUFFER / 4),
            count: 0,
            date: DateCache::default(),
            // Seeded by the worker: which lines are drawn need not be secret, only unrelated to the traffic.
            dice: Dice::new(worker.index() as u64),
        };
        AccessWriter {
            shared: Arc::clone(&self.shared),
            worker,
            page: RefCell::new(page),
        }
    }

    /// Opens the file again, after it was renamed. Returns before it happened.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Lines go there from now on.
    pub fn replace(&self, sink: Sink) {
        *self.shared.next.lock() = Some(sink);
        self.wake();
    }

    fn wake(&self) {
        match self.shared.queue.try_send(Message::Look) {
            // A full queue means that the writer is awake and will look before its next buffer.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// Waits until everything handed over so far is written; false when that took longer than `patience`. Blocks, so not
    /// for a worker. For the end of the process.
    pub fn settle(&self, patience: Duration) -> bool {
        const PAUSE: Duration = Duration::from_millis(2);
        let (sender, receiver) = sync_channel(1);
        let mut left = patience;
        loop {
            match self.shared.queue.try_send(Message::Written(sender.clone())) {
                Ok(()) => return receiver.recv_timeout(left).is_ok(),
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if left.is_zero() => return false,
                Err(TrySendError::Full(_)) => {
                    thread::sleep(PAUSE.min(left));
                    left = left.saturating_sub(PAUSE);
                }
            }
        }
    }
}

/// What one worker has not handed over yet.
#[derive(Debug)]
struct Page {
    lines: Vec<u8>,
    count: u64,
    date: DateCache,
    dice: Dice,
}

/// The pen of one worker.
#[derive(Debug)]
pub struct AccessWriter {
    shared: Arc<Shared>,
    worker: WorkerId,
    page: RefCell<Page>,
}

impl AccessWriter {
    /// Writes the line of a request, if the settings want it. Never blocks.
    pub fn write(&self, settings: &AccessSettings, record: &AccessRecord<'_>) {
        let mut page = self.page.borrow_mut();
        let page = &mut *page;
        if !wants(settings, record, &mut page.dice) {
            return;
        }
        match settings.format {
            AccessFormat::Text => access_line::text(&mut page.lines, &mut page.date, record),
            AccessFormat::Json => access_line::json(&mut page.lines, &mut page.date, record),
        }
        page.count += 1;
        if page.lines.len() >= BUFFER {
            self.hand_over(page);
        }
    }

    /// Hands over what there is. To be called about once a second, so that a quiet log is not a late one.
    pub fn flush(&self) {
        let mut page = self.page.borrow_mut();
        if page.count > 0 {
            self.hand_over(&mut page);
        }
    }

    fn hand_over(&self, page: &mut Page) {
        // Never waits: a lock that is taken is as good as no buffer.
        let empty = self.shared.empty.try_lock().and_then(|mut empty| empty.pop());
        let lines = std::mem::replace(&mut page.lines, empty.unwrap_or_default());
        let count = std::mem::take(&mut page.count);
        match self.shared.queue.try_send(Message::Lines(lines, count)) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                self.shared.metrics.access_log_dropped(self.worker, count);
                if let Message::Lines(mut lines, _) = message {
                    lines.clear();
                    page.lines = lines;
                }
            }
        }
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

fn wants(settings: &AccessSettings, record: &AccessRecord<'_>, dice: &mut Dice) -> bool {
    let error = is_error(record.status, record.grpc_status, record.reason);
    let listed = match settings.only {
        AccessFilter::All => true,
        AccessFilter::Errors => error,
        AccessFilter::Slow(than) => record.t_total > than,
    };
    listed && (error || settings.sample >= 1.0 || dice.chance(settings.sample))
}

/// The thread.
fn write_out(mut sink: Sink, queue: &Receiver<Message>, shared: &std::sync::Weak<Shared>) {
    let mut failing = false;
    while let Ok(message) = queue.recv() {
        // None at the very end: the last lines are written all the same.
        let shared = shared.upgrade();
        if let Some(shared) = &shared {
            let next = shared.next.lock().take();
            if let Some(next) = next {
                sink = next;
            }
            if shared.reopen.swap(false, Ordering::Acquire)
                && let Err(problem) = sink.reopen()
            {
                tracing::error!(output = ?sink.output, %problem, "cannot open the access log again");
            }
        }
        let (mut lines, count) = match message {
            Message::Lines(lines, count) => (lines, count),
            Message::Look => continue,
            Message::Written(done) => {
                // Whoever asked may have stopped waiting.
                _ = done.try_send(());
                continue;
            }
        };
        match sink.write_all(&lines) {
            Ok(()) => failing = false,
            Err(problem) => {
                if !failing {
                    // Once, not per buffer; the counter says how much.
                    tracing::error!(output = ?sink.output, %problem, "cannot write the access log");
                }
                failing = true;
                if let Some(shared) = &shared {
                    shared.metrics.access_log_dropped(WorkerId::CONTROL, count);
                }
            }
        }
        if let Some(shared) = shared {
            lines.clear();
            let mut empty = shared.empty.lock();
            // A burst must not keep its memory for ever.
            if empty.len() < 8 && lines.capacity() <= 2 * BUFFER {
                empty.push(lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Recorder, RecorderSettings};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const W0: WorkerId = WorkerId::new(0);

    fn log(path: &std::path::Path, queue: usize) -> (AccessLog, Recorder) {
        let recorder = Recorder::new(RecorderSettings::default());
        let sink = Sink::open(AccessOutput::File(path.to_owned())).unwrap();
        (
            AccessLog::start_with(sink, recorder.process(), queue).unwrap(),
            recorder,
        )
    }

    fn status(status: u16) -> AccessRecord<'static> {
        AccessRecord {
            status,
            method: b"GET",
            path: b"/",
            ..AccessRecord::default()
        }
    }

    fn dropped(recorder: &Recorder) -> u64 {
        recorder.process().cells.sum(|block| &block.access_log_dropped)
    }

    #[test]
    fn lines_of_a_worker_arrive_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (log, recorder) = log(&path, QUEUE);
        let writer = log.writer(W0);
        for n in 0..3000 {
            writer.write(
                &AccessSettings::default(),
                &AccessRecord {
                    bytes_out: n,
                    ..status(200)
                },
            );
        }
        writer.flush();
        assert!(log.settle(PATIENCE));
        let text = fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["bytes_out"], n);
        }
        assert_eq!(text.lines().count(), 3000);
        assert_eq!(dropped(&recorder), 0);
    }

    #[test]
    fn a_writer_that_is_dropped_hands_over_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (log, _recorder) = log(&path, QUEUE);
        let writer = log.writer(W0);
        writer.write(
            &AccessSettings {
                format: AccessFormat::Text,
                ..AccessSettings::default()
            },
            &status(200),
        );
        drop(writer);
        assert!(log.settle(PATIENCE));
        assert!(fs::read_to_string(&path).unwrap().contains("\"GET / "));
    }

    #[test]
    fn an_output_that_stands_still_costs_lines_not_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        // Open for reading as well, so that opening does not wait; nobody reads.
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (log, recorder) = log(&path, 2);
        let writer = log.writer(W0);
        let total = 20_000;
        for _ in 0..total {
            writer.write(&AccessSettings::default(), &status(200));
        }
        writer.flush();
        let lost = dropped(&recorder);
        assert!(lost > total / 2, "{lost}");
        assert!(!log.settle(Duration::from_millis(1)));
        drop(reader);
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_counted() {
        let (log, recorder) = log(std::path::Path::new("/dev/full"), QUEUE);
        let writer = log.writer(W0);
        writer.write(&AccessSettings::default(), &status(200));
        writer.flush();
        assert!(log.settle(PATIENCE));
        assert_eq!(dropped(&recorder), 1);
    }

    #[test]
    fn a_renamed_file_is_left_on_reopen_and_an_output_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (log, _recorder) = log(&path, QUEUE);
        let writer = log.writer(W0);
        let line = |status: u16| {
            writer.write(&AccessSettings::default(), &self::status(status));
            writer.flush();
            assert!(log.settle(PATIENCE));
        };
        line(201);
        fs::rename(&path, dir.path().join("access.log.1")).unwrap();
        line(202);
        log.reopen();
        line(203);
        log.replace(Sink::open(AccessOutput::File(dir.path().join("other.log"))).unwrap());
        line(204);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let old = read("access.log.1");
        assert!(old.contains(":201") && old.contains(":202") && !old.contains(":203"));
        assert!(read("access.log").contains(":203") && read("other.log").contains(":204"));
    }

    #[test]
    fn errors_are_never_sampled_away_and_only_means_only() {
        let mut dice = Dice::new(1);
        let mut wants = |only, sample, record: &AccessRecord<'_>| {
            let settings = AccessSettings {
                format: AccessFormat::Json,
                only,
                sample,
            };
            (0..1000)
                .filter(|_| super::wants(&settings, record, &mut dice))
                .count()
        };
        let refused = AccessRecord {
            reason: Some(Reason::NoRoute),
            ..status(404)
        };
        let grpc = AccessRecord {
            grpc_status: Some(14),
            ..status(200)
        };
        let slow = AccessRecord {
            t_total: Duration::from_secs(2),
            ..status(200)
        };
        for record in [&refused, &grpc, &status(500)] {
            assert_eq!(wants(AccessFilter::All, 0.0, record), 1000);
            assert_eq!(wants(AccessFilter::Errors, 0.0, record), 1000);
        }
        assert_eq!(wants(AccessFilter::All, 0.0, &status(404)), 0);
        assert_eq!(wants(AccessFilter::Errors, 1.0, &status(404)), 0);
        assert_eq!(
            wants(AccessFilter::Slow(Duration::from_secs(1)), 1.0, &slow),
            1000
        );
        assert_eq!(wants(AccessFilter::Slow(Duration::from_secs(2)), 1.0, &slow), 0);
        let drawn = wants(AccessFilter::All, 0.1, &status(200));
        assert!((50..200).contains(&drawn), "{drawn}");
    }
}
