//! Pressure: how this process itself is doing, looked at four times a second.
//!
//! What is measured is published in [`Vitals`]; who refuses work when memory is short reads it there. Once a second the
//! signs are added up to a [`Score`](bellwether_core::self_health::Score), by which everybody who calls others late
//! stretches his patience. A process that is starved finds the whole world slow; this is how it knows better.
//!
//! Runs on the control runtime, in a task of its own, so that it is late when that runtime is.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::self_health::{Memory, Signs};
use bellwether_core::shed::{Danger, Guard, Overload, Sample};
use bellwether_core::{Mode, Moment};
use tokio::time::{Instant, MissedTickBehavior};

use crate::net::clock::Clock;
use crate::snapshot::Snapshot;
use crate::snapshot::cell::Cell;
use crate::telemetry::{
    Cgroup, Change, Descriptors, EventKind, Events, ProcessMetrics, ProcessUsage, Reading, SAMPLE, Vitals,
};

/// What is looked at, and where what was found goes.
pub(super) struct Sampler {
    pub(super) vitals: Arc<Vitals>,
    pub(super) cell: Arc<Cell>,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) metrics: Arc<ProcessMetrics>,
    pub(super) overload: Arc<Overload>,
}

/// What a second has shown so far.
#[derive(Debug, Default)]
struct Second {
    looks: u32,
    lag: Duration,
    /// When it began, and how long the CPU had been withheld by then.
    throttled: Option<(Moment, Duration)>,
}

impl Sampler {
    /// Looks until the runtime ends.
    pub(super) async fn run(self) {
        let cgroup = Cgroup::find();
        let mut second = Second::default();
        let mut ticks = tokio::time::interval(SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = Instant::now();
        let mut guard = Guard::new();
        let mut lags = [Duration::ZERO; LOOKS as usize];
        loop {
            ticks.tick().await;
            let own = due.elapsed();
            due = Instant::now() + SAMPLE;
            let now = self.clock.now();
            let late = self.vitals.lateness(now);
            second.lag = second.lag.max(own).max(late);
            lags.rotate_left(1);
            lags[lags.len() - 1] = late;
            second.looks += 1;
            let before = self.vitals.reading();
            let mut reading = Reading {
                lag: own.max(second.lag),
                throttled: before.throttled,
                memory: cgroup.memory().unwrap_or(0.0),
                descriptors: Descriptors::read().map_or(0.0, |descriptors| descriptors.share()),
            };
            if second.looks >= LOOKS {
                let withheld = cgroup.throttled();
                if let (Some((since, before)), Some(withheld)) = (second.throttled, withheld) {
                    let share =
                        withheld.saturating_sub(before).as_secs_f32() / now.since(since).as_secs_f32();
                    reading.throttled = share.clamp(0.0, 1.0);
                }
                self.judge(&reading, now);
                second = Second {
                    throttled: withheld.map(|withheld| (now, withheld)),
                    ..Second::default()
                };
            }
            self.vitals.publish(&reading);
            // Late once is a coincidence; late at every look of a second is too much work.
            let lag = lags.iter().min().copied().unwrap_or_default();
            self.guard(&mut guard, &reading, lag, now);
        }
    }

    /// Finds out how much is to be given up, and tells everybody.
    fn guard(&self, guard: &mut Guard, reading: &Reading, lag: Duration, now: Moment) {
        let snapshot = self.cell.load();
        let (mode, sample) = match &snapshot.overload {
            None => (Mode::Observe, Sample::IDLE),
            Some(settings) => {
                let limited = settings.max_memory.and_then(|max| {
                    let used = ProcessUsage::read()?.resident;
                    Some(used as f64 / max.max(1) as f64)
                });
                let sample = Sample {
                    memory: limited.unwrap_or(f64::from(reading.memory)),
                    lag,
                    descriptors: f64::from(reading.descriptors),
                };
                (settings.mode, sample)
            }
        };
        let change = guard.observe(&sample, now);
        self.overload.post(match mode {
            Mode::Enforce => guard.danger(),
            Mode::Observe => Danger::default(),
        });
        let Some(change) = change else { return };
        self.metrics.set_overload(change.to);
        let evidence = format!(
            "memory {:.0} %, descriptors {:.0} %, loops {} ms late",
            sample.memory * 100.0,
            sample.descriptors * 100.0,
            sample.lag.as_millis(),
        );
        tracing::warn!(
            evidence,
            cause = change.cause.name(),
            mode = mode.name(),
            "overload: {} instead of {}",
            change.to.name(),
            change.from.name()
        );
        self.events.push(Change {
            kind: EventKind::Overload,
            subject: "process".to_owned(),
            from: change.from.name().to_owned(),
            to: change.to.name().to_owned(),
            reason: change.cause.name().to_owned(),
            evidence,
            generation: snapshot.generation,
        });
    }

    /// A second is over.
    fn judge(&self, reading: &Reading, now: Moment) {
        let snapshot = self.cell.load();
        let signs = Signs {
            lag: reading.lag,
            throttled: f64::from(reading.throttled),
            failing_clusters: failing(&snapshot, now),
            memory: if reading.memory >= SHORT {
                Memory::Short
            } else {
                Memory::Enough
            },
        };
        let before = self.vitals.score();
        let score = before.after(&signs);
        self.vitals.set_score(score);
        self.metrics.set_self_health(score.value());
        if score.suspends() != before.suspends() {
            let word = |suspends: bool| if suspends { "unwell" } else { "well" };
            let evidence = format!(
                "score {} of 7: loops {} ms late, CPU withheld {:.0} % of the time, memory {:.0} %, {} clusters fail on our side",
                score.value(),
                signs.lag.as_millis(),
                signs.throttled * 100.0,
                reading.memory * 100.0,
                signs.failing_clusters,
            );
            tracing::warn!(
                evidence,
                "this process is {}: endpoints are {}",
                word(score.suspends()),
                if score.suspends() {
                    "not ejected"
                } else {
                    "ejected again"
                }
            );
            self.events.push(Change {
                kind: EventKind::SelfHealth,
                subject: "process".to_owned(),
                from: word(before.suspends()).to_owned(),
                to: word(score.suspends()).to_owned(),
                reason: "self_health".to_owned(),
                evidence,
                generation: snapshot.generation,
            });
        }
    }
}

/// How many clusters failed in the last second on our side of the connection at more than half of their endpoints. Where
/// most clusters that were asked did not, it is not us.
fn failing(snapshot: &Snapshot, now: Moment) -> u32 {
    let (mut asked, mut failing) = (0u32, 0u32);
    for cluster in &snapshot.clusters {
        let pulses = || cluster.endpoints.iter().map(|endpoint| &endpoint.state.pulse);
        let refused = pulses().filter(|pulse| pulse.refused_within(SECOND, now)).count();
        let heard = pulses().any(|pulse| pulse.answered_within(SECOND, now));
        asked += u32::from(refused > 0 || heard);
        failing += u32::from(refused * 2 > cluster.endpoints.len());
    }
    if failing * 2 > asked { failing } else { 0 }
}

const SECOND: Duration = Duration::from_secs(1);

/// Looks per second.
const LOOKS: u32 = (SECOND.as_millis() / SAMPLE.as_millis()) as u32;

/// From this share of its limit on memory is short.
const SHORT: f32 = 0.8;
