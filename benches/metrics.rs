//! What counting costs: nanoseconds per event, best of a few rounds.
//!
//! `cargo bench --bench metrics`. The best round counts: noise only ever adds. One thread unless a line says otherwise;
//! "two threads" means both count on the same handle, each as its own worker.

use std::hint::black_box;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use bellwether::telemetry::{
    AccessFormat, AccessLog, AccessOutput, AccessRecord, AccessSettings, AttemptEnd, Direction, OutcomeLabel,
    Recorder, RecorderSettings, RequestEnd, Sink, WorkerId,
};
use tokio::time::Instant;

const ROUNDS: usize = 7;
const W0: WorkerId = WorkerId::new(0);
const W1: WorkerId = WorkerId::new(1);

/// Nanoseconds per call of `event`, which is told its number.
fn best(events: u64, mut event: impl FnMut(u64)) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for n in 0..events {
            event(black_box(n));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / events as f64);
    }
    best
}

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    let recorder = Recorder::new(RecorderSettings {
        workers: 2,
        ..RecorderSettings::default()
    });
    let (listener, route) = (recorder.listener("web"), recorder.route("api"));
    let (cluster, endpoint) = (recorder.cluster("app"), recorder.endpoint("app", "10.0.0.1:80"));
    let process = recorder.process();
    const N: u64 = 3_000_000;

    let mut line = |what: &str, nanos: f64| writeln!(out, "{what:<58} {nanos:>10.2} ns");
    line("empty loop", best(N, |_| {}))?;
    line(
        "one counter, own block",
        best(N, |n| cluster.bytes(W0, Direction::Sent, n)),
    )?;
    line(
        "one counter, shared block",
        best(N, |n| cluster.bytes(WorkerId::CONTROL, Direction::Sent, n)),
    )?;
    line(
        "one histogram",
        best(N, |n| {
            process.runtime_lag(W0, Duration::from_nanos((n << 7) & 0xff_ffff));
        }),
    )?;
    line(
        "connection opened and closed",
        best(N, |_| {
            listener.connection_opened(W0);
            listener.connection_closed(W0);
        }),
    )?;

    let request = |worker: WorkerId, n: u64| {
        let duration = Duration::from_nanos(1_000_000 + ((n << 9) & 0xff_ffff));
        route.request_started(worker);
        cluster.attempt_started(worker);
        endpoint.attempt_started(worker);
        let outcome = OutcomeLabel::Success;
        endpoint.attempt_ended(worker, outcome);
        cluster.attempt_ended(
            worker,
            &AttemptEnd {
                code: 200,
                outcome,
                duration,
            },
        );
        cluster.bytes(worker, Direction::Sent, 400);
        cluster.bytes(worker, Direction::Received, n);
        let overhead = Some(Duration::from_nanos(30_000 + (n & 0xffff)));
        let end = RequestEnd {
            code: 200,
            outcome,
            duration,
            ttfb: Some(duration),
            overhead,
            attempts: 1,
        };
        route.request_ended(worker, &end);
    };
    line(
        "a whole request: route, cluster, endpoint, bytes",
        best(N, |n| request(W0, n)),
    )?;
    line(
        "a whole request, shared block",
        best(N, |n| request(WorkerId::CONTROL, n)),
    )?;
    let both = thread::scope(|scope| {
        let other = scope.spawn(|| best(N, |n| request(W1, n)));
        let own = best(N, |n| request(W0, n));
        other.join().map_or(own, |other| own.max(other))
    });
    line("a whole request, two threads, the slower one", both)?;

    let log = AccessLog::start(
        Sink::open(AccessOutput::File("/dev/null".into()))?,
        recorder.process(),
    )?;
    let writer = log.writer(W0);
    let record = AccessRecord {
        time: 1_763_836_200_123_456,
        request_id: b"01J9Z3K2M4N5P6Q7R8S9T0V1W2",
        listener: "web",
        route: "api",
        cluster: "app",
        endpoint: "10.0.0.1:8080",
        method: b"GET",
        path: b"/v1/orders/12345/items?page=2&size=50",
        protocol: "HTTP/1.1",
        status: 200,
        attempts: 1,
        client: Some("192.0.2.7".parse().map_err(io::Error::other)?),
        bytes_out: 1024,
        user_agent: b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        t_headers: Some(Duration::from_micros(31)),
        t_ttfb: Some(Duration::from_micros(1234)),
        t_total: Duration::from_micros(1301),
        ..AccessRecord::default()
    };
    for (what, format) in [
        ("access log line, JSON", AccessFormat::Json),
        ("access log line, text", AccessFormat::Text),
    ] {
        let settings = AccessSettings {
            format,
            ..AccessSettings::default()
        };
        line(
            what,
            best(N / 10, |n| {
                writer.write(
                    &settings,
                    &AccessRecord {
                        time: record.time + n,
                        ..record
                    },
                );
            }),
        )?;
    }

    let names: Vec<String> = (0..70).map(|n| format!("name-{n}")).collect();
    let _handles: Vec<_> = names
        .iter()
        .map(|name| (recorder.route(name), recorder.cluster(name)))
        .collect();
    let series = recorder
        .render()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    line(
        &format!("one scrape of {series} series"),
        best(3, |_| drop(black_box(recorder.render()))),
    )
}
