//! Outlier: which endpoint behaves so much worse than it should that it is taken out.
//!
//! Two halves. A [`Tally`] per endpoint is fed by every attempt and costs a good one two relaxed loads and one exchange.
//! A [`Referee`] per cluster decides, rarely and under a lock, because a cap on ejections holds only if one decides at a
//! time: at once when a tally says that failures came in a row ([`Referee::strike`]), and about every second over
//! everything else ([`Referee::sweep`]).
//!
//! *In a row*: gateway errors (502, 503, 504: the endpoint cannot serve), local errors (refused, reset, timed out, a body
//! cut short), optionally any 5xx. Success of any kind ends a row; a failure of another kind does not, or an endpoint that
//! alternates between refusing and 503 would live for ever. *By share*: `failure_rate` of the last window, absolute; and
//! [`Relative`], against the pooled others, which finds one host at 5 % among hosts at 0 % and needs three hosts, where a
//! test by standard deviations needs five and is blind beyond a fifth of them. *By surge*: shares are of the whole window,
//! so a good past hides a bad present for seconds. A running sum (CUSUM; Page 1954) grows with each failure, by how much
//! more likely it is for an endpoint that fails a quarter of the time than for the others, and shrinks with each success:
//! five failures in a row are enough, and what fails no more often than elsewhere gets there once in ten million. *By
//! latency*: the p90 against the median of
//! the others.
//!
//! What must stay true, whatever the evidence:
//! * never more than [`Cap::size`] of a group are out, and never the last available one;
//! * the worst go first, so the cap is spent on them;
//! * when many fail by share at once, nobody is ejected for it: then the cluster is broken, or we are;
//! * an unwell proxy ([`Score::suspends`]) ejects nobody;
//! * pushback ends a row and counts as failed for the share; what is ignored counts nowhere.
//!
//! With [`Mode::Observe`] everything happens to shadows: the same verdicts, nobody is missing.
//!
//! How to use it: `tally.record` once per attempt, when it is *over* (at the end of the body: a body cut short is a local
//! failure, and a success noted at its head would have ended the row). If it answers with a finding, `referee.strike`.
//! While an endpoint is out only its probe's verdict counts, for [`crate::ejection::Probe::judge`]; when it returns, clear the tally:
//! what began before is not counted any more either, or requests that hung would eject again who is back.

mod statistics;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::PoisonError;
use std::time::Duration;

use crate::dice::Dice;
use crate::ejection::{self, Ejected, Ejection};
use crate::mode::Mode;
use crate::moment::Moment;
use crate::outcome::{Origin, Outcome};
use crate::recent::{Recent, View};
use crate::self_health::Score;
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};
use crate::window::{Counts, Sample, Window};

/// What counts as an outlier and what is done with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Whether anybody is really ejected.
    pub mode: Mode,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway_errors: Option<NonZeroU32>,
    /// Failures on our side of the connection in a row.
    pub consecutive_local_errors: Option<NonZeroU32>,
    /// Any 5xx in a row.
    pub consecutive_5xx: Option<NonZeroU32>,
    /// Share of the window that fails, from which on an endpoint goes whatever the others do.
    pub failure_rate: Option<f64>,
    /// Attempts in the window below which `failure_rate` is not asked.
    pub min_requests: u32,
    /// Against the others; meant to be off when `failure_rate` is.
    pub relative: Option<Relative>,
    /// A p90 above this many times the median of the others'.
    pub latency_factor: Option<f64>,
    /// What the shares are of. A [`Tally`] has the window it was made with.
    pub window: Duration,
    /// Share of a group that may be out, 0.0 to 1.0.
    pub max_ejection_percent: f64,
    /// For how long, and how they return.
    pub ejection: ejection::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            consecutive_gateway_errors: NonZeroU32::new(5),
            consecutive_local_errors: NonZeroU32::new(3),
            consecutive_5xx: None,
            failure_rate: Some(0.5),
            min_requests: 20,
            relative: Some(Relative::default()),
            latency_factor: None,
            window: Duration::from_secs(30),
            max_ejection_percent: 0.5,
            ejection: ejection::Settings::default(),
        }
    }
}

/// How much worse than the others is too much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relative {
    /// Endpoints with enough requests below which nothing can be compared.
    pub min_hosts: usize,
    /// What is enough, in the window.
    pub min_requests: u32,
    /// The least difference between the shares; keeps 99.0 % among 99.99 % in service.
    pub min_gap: f64,
    /// How sure the test must be that it is not chance.
    pub confidence: f64,
}

impl Default for Relative {
    fn default() -> Self {
        Self {
            min_hosts: 3,
            min_requests: 50,
            min_gap: 0.05,
            confidence: 0.999,
        }
    }
}

/// What a failed attempt was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 502, 503, 504, or what gRPC calls unavailable: the endpoint could not serve.
    Gateway,
    /// Another 5xx: the application failed, often because of the request.
    ServerError,
    /// Anything else, and everything that did not fail.
    Other,
}

/// Why an endpoint qualifies, with the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Finding {
    /// Gateway errors in a row.
    GatewayErrors {
        /// So many.
        count: u32,
        /// This many are too many.
        threshold: u32,
    },
    /// Local errors in a row.
    LocalErrors {
        /// So many.
        count: u32,
        /// This many are too many.
        threshold: u32,
    },
    /// 5xx in a row.
    ServerErrors {
        /// So many.
        count: u32,
        /// This many are too many.
        threshold: u32,
    },
    /// Too large a share of the window.
    FailureRate {
        /// Failed attempts.
        failed: u32,
        /// All attempts.
        total: u32,
        /// The share that is too large.
        threshold: f64,
    },
    /// A larger share than the others have, and not by chance.
    Relative {
        /// Failed attempts.
        failed: u32,
        /// All attempts.
        total: u32,
        /// The share that fails elsewhere.
        others: f64,
        /// How probable so many failures would be elsewhere.
        probability: f64,
    },
    /// More failures, in a short time, than the others explain.
    Surge {
        /// Failed attempts of the window.
        failed: u32,
        /// All attempts of the window.
        total: u32,
        /// The share that fails elsewhere.
        others: f64,
    },
    /// Slower than the others.
    Latency {
        /// Its 90th percentile.
        p90: Duration,
        /// The median of the others'.
        others: Duration,
        /// What is slow in comparison: a probe that takes longer has not passed.
        bound: Duration,
        /// What factor is too much.
        factor: f64,
    },
}

impl Finding {
    /// The detector, as metrics call it.
    #[must_use]
    pub const fn detector(&self) -> &'static str {
        match self {
            Self::GatewayErrors { .. } => "consecutive_gateway",
            Self::LocalErrors { .. } => "consecutive_local",
            Self::ServerErrors { .. } => "consecutive_5xx",
            Self::FailureRate { .. } => "ratio",
            Self::Relative { .. } => "relative",
            Self::Surge { .. } => "surge",
            Self::Latency { .. } => "latency",
        }
    }

    /// Whether it compares shares or times and not failures in a row, and so falls under the rule of correlation.
    const fn is_statistical(&self) -> bool {
        match self {
            Self::GatewayErrors { .. } | Self::LocalErrors { .. } | Self::ServerErrors { .. } => false,
            Self::FailureRate { .. } | Self::Relative { .. } | Self::Surge { .. } | Self::Latency { .. } => {
                true
            }
        }
    }

    /// What is worse comes first: who fails now, then who fails most, then who is slow.
    fn severity(&self) -> f64 {
        match *self {
            Self::GatewayErrors { count, .. }
            | Self::LocalErrors { count, .. }
            | Self::ServerErrors { count, .. } => 1.0 + f64::from(count),
            Self::FailureRate { failed, total, .. }
            | Self::Relative { failed, total, .. }
            | Self::Surge { failed, total, .. } => f64::from(failed) / f64::from(total.max(1)),
            Self::Latency { p90, others, .. } => -others.as_secs_f64() / p90.as_secs_f64(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::GatewayErrors { count, threshold } => {
                write!(f, "{count} gateway errors in a row (threshold {threshold})")
            }
            Self::LocalErrors { count, threshold } => {
                write!(f, "{count} local errors in a row (threshold {threshold})")
            }
            Self::ServerErrors { count, threshold } => {
                write!(f, "{count} server errors in a row (threshold {threshold})")
            }
            Self::FailureRate {
                failed,
                total,
                threshold,
            } => write!(
                f,
                "{failed} of {total} attempts failed (threshold {:.0} %)",
                threshold * 100.0
            ),
            Self::Relative {
                failed,
                total,
                others,
                ..
            } => write!(
                f,
                "{failed} of {total} attempts failed, elsewhere {:.2} %",
                others * 100.0
            ),
            Self::Surge {
                failed,
                total,
                others,
            } => write!(
                f,
                "a surge: {failed} of {total} attempts failed, elsewhere {:.2} %",
                others * 100.0
            ),
            Self::Latency {
                p90, others, factor, ..
            } => write!(
                f,
                "p90 {} ms, median of the others {} ms (factor {factor})",
                p90.as_millis(),
                others.as_millis()
            ),
        }
    }
}

/// How the attempts of one endpoint went lately; shared by all workers.
#[derive(Debug)]
// Two endpoints in one cache line would make workers wait for each other.
#[repr(align(128))]
pub struct Tally {
    /// Three counts of 21 bits: gateway errors, local errors, 5xx in a row.
    rows: AtomicU64,
    surge: Surge,
    window: Window,
    /// When it was last cleared, in nanoseconds: attempts that began before say nothing about the time since.
    since: AtomicU64,
    /// The last reason why an ejection was withheld, so that it is told once.
    withheld: AtomicU32,
    /// When it was last ejected by a statistical test, in nanoseconds; 0 for never.
    fell: AtomicU64,
}

impl Tally {
    /// An endpoint that was never asked.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            rows: AtomicU64::new(0),
            surge: Surge::new(),
            window: Window::new(window),
            since: AtomicU64::new(0),
            withheld: AtomicU32::new(0),
            fell: AtomicU64::new(0),
        }
    }

    /// A tally over the window that the settings ask for, which takes over the rows of `before`, and since when they count.
    #[must_use]
    pub fn after(before: Option<&Self>, settings: &Settings) -> Self {
        let new = Self::new(settings.window);
        if let Some(before) = before {
            // Ordering: Relaxed; attempts that end meanwhile are counted in one of the two.
            let rows = before.rows.load(Ordering::Relaxed);
            new.rows.store(rows, Ordering::Relaxed);
            let since = before.since.load(Ordering::Relaxed);
            new.since.store(since, Ordering::Relaxed);
        }
        new
    }

    /// Counts an attempt that `began` then and is over, with all of its body. Answers with a finding when it made a row too
    /// long; exactly one of the workers that share a row gets it.
    pub fn record(
        &self,
        settings: &Settings,
        outcome: Outcome,
        kind: Kind,
        began: Moment,
        now: Moment,
    ) -> Option<Finding> {
        // Ordering: Relaxed; a lone value. Requests that hung before an ejection end after the return, and would eject
        // again who works.
        if began < Moment::from_nanos(self.since.load(Ordering::Relaxed)) {
            return None;
        }
        let sample = match outcome {
            Outcome::Ignored => return None,
            Outcome::Success => Sample::Good,
            Outcome::Slow => Sample::Slow,
            Outcome::Failure(_) | Outcome::Pushback(_) => Sample::Failed,
        };
        self.window.record(sample, now);
        let surged = settings.failure_rate.is_some() && self.surge.record(sample == Sample::Failed);
        let in_a_row = match outcome {
            Outcome::Failure(Origin::Local) => self.lengthen(Rows::with_local, settings),
            Outcome::Failure(Origin::Remote) => match kind {
                Kind::Gateway => self.lengthen(Rows::with_gateway, settings),
                Kind::ServerError => self.lengthen(Rows::with_server_error, settings),
                Kind::Other => self.end_rows(),
            },
            Outcome::Success | Outcome::Slow | Outcome::Pushback(_) | Outcome::Ignored => self.end_rows(),
        };
        in_a_row.or_else(|| surged.then(|| self.surge_finding(now)))
    }

    fn surge_finding(&self, now: Moment) -> Finding {
        let counts = self.counts(now);
        Finding::Surge {
            failed: counts.failed,
            total: counts.total,
            others: self.surge.others(),
        }
    }

    /// The counts of the window.
    #[must_use]
    pub fn counts(&self, now: Moment) -> Counts {
        self.window.counts(now)
    }

    /// Whether it looks back as far as the settings ask for.
    #[must_use]
    pub fn fits(&self, settings: &Settings) -> bool {
        self.window.is_over(settings.window)
    }

    /// Forgets: the endpoint is back, and what began before `now` says nothing any more.
    pub fn clear(&self, now: Moment) {
        // Ordering: Relaxed; results that arrive meanwhile may count before or after.
        self.since.store(now.as_nanos(), Ordering::Relaxed);
        self.rows.store(0, Ordering::Relaxed);
        self.surge.clear();
        self.withheld.store(0, Ordering::Relaxed);
        self.window.clear();
    }

    fn end_rows(&self) -> Option<Finding> {
        // Ordering: Relaxed; of a success and a failure at the same time either may be first. Looking first keeps the
        // usual case from writing to a shared line.
        if self.rows.load(Ordering::Relaxed) != 0 {
            self.rows.store(0, Ordering::Relaxed);
        }
        None
    }

    fn lengthen(&self, longer: fn(Rows) -> Rows, settings: &Settings) -> Option<Finding> {
        // Ordering: Relaxed; the word is complete in itself.
        let mut seen = self.rows.load(Ordering::Relaxed);
        loop {
            let before = Rows::unpack(seen);
            let after = longer(before);
            match self
                .rows
                .compare_exchange_weak(seen, after.pack(), Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return after.crossed(before, settings),
                Err(now) => seen = now,
            }
        }
    }

    fn rows(&self) -> Rows {
        // Ordering: Relaxed, as in `lengthen`.
        Rows::unpack(self.rows.load(Ordering::Relaxed))
    }

    /// Whether this reason is news.
    fn withhold(&self, reason: Withheld) -> bool {
        // Ordering: Relaxed; only the referee writes, under its lock.
        self.withheld.swap(reason.code(), Ordering::Relaxed) != reason.code()
    }

    fn fell_within(&self, length: Duration, now: Moment) -> bool {
        // Ordering: Relaxed, as in `withhold`.
        let fell = self.fell.load(Ordering::Relaxed);
        fell != 0 && now.since(Moment::from_nanos(fell)) <= length
    }
}

/// How much more likely the last attempts are for an endpoint that has begun to fail than for the others: a running sum of
/// logarithms that never falls below zero, in thousandths.
#[derive(Debug)]
struct Surge {
    sum: AtomicU32,
    /// The share that fails elsewhere, `f32` bits; written by the sweep.
    others: AtomicU32,
}

impl Surge {
    fn new() -> Self {
        Self {
            sum: AtomicU32::new(0),
            others: AtomicU32::new(0),
        }
    }

    /// Counts an attempt. True for the one that made the sum too large.
    fn record(&self, failed: bool) -> bool {
        // Ordering: Relaxed throughout; lone values. The usual attempt finds nothing to do.
        let mut before = self.sum.load(Ordering::Relaxed);
        if before == 0 && !failed {
            return false;
        }
        let others = self.others().max(SURGE_LEAST);
        let suspect = SURGE_SHARE.max(others * 3.0).min(SURGE_MOST);
        let step = if failed {
            (suspect / others).ln()
        } else {
            ((1.0 - suspect) / (1.0 - others)).ln()
        };
        // Where half of everything fails, nobody is told apart.
        let step = if suspect > others {
            (step * 1000.0) as i64
        } else {
            -1000
        };
        loop {
            let after = (i64::from(before) + step).clamp(0, i64::from(SURGE_LIMIT)) as u32;
            match self
                .sum
                .compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return before < SURGE_LIMIT && after == SURGE_LIMIT,
                Err(now) => before = now,
            }
        }
    }

    fn others(&self) -> f64 {
        f64::from(f32::from_bits(self.others.load(Ordering::Relaxed)))
    }

    fn compare_with(&self, others: f64) {
        self.others.store((others as f32).to_bits(), Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.sum.load(Ordering::Relaxed) >= SURGE_LIMIT
    }

    /// Whether it is on its way.
    fn is_rising(&self) -> bool {
        self.sum.load(Ordering::Relaxed) >= SURGE_LIMIT / 3
    }

    fn clear(&self) {
        self.sum.store(0, Ordering::Relaxed);
    }
}

/// An endpoint that fails so often has begun to fail.
const SURGE_SHARE: f64 = 0.25;
const SURGE_MOST: f64 = 0.9;
/// The others are taken to fail at least this often: one failure in a hundred is everyday life.
const SURGE_LEAST: f64 = 0.01;
/// The logarithm of ten million, in thousandths, a little less: five failures in a row where one in a hundred is usual.
const SURGE_LIMIT: u32 = 16_000;

/// Failures in a row, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rows {
    gateway: u32,
    local: u32,
    server: u32,
}

impl Rows {
    const fn unpack(word: u64) -> Self {
        Self {
            gateway: (word & ROW) as u32,
            local: (word >> ROW_BITS & ROW) as u32,
            server: (word >> (2 * ROW_BITS) & ROW) as u32,
        }
    }

    const fn pack(self) -> u64 {
        self.gateway as u64 | (self.local as u64) << ROW_BITS | (self.server as u64) << (2 * ROW_BITS)
    }

    fn with_local(self) -> Self {
        Self {
            local: longer(self.local),
            ..self
        }
    }

    fn with_gateway(self) -> Self {
        Self {
            gateway: longer(self.gateway),
            server: longer(self.server),
            ..self
        }
    }

    /// The application answered: neither the connection nor the gateway is at fault.
    fn with_server_error(self) -> Self {
        Self {
            gateway: 0,
            local: 0,
            server: longer(self.server),
        }
    }

    /// The finding of a row that has just become too long.
    fn crossed(self, before: Self, settings: &Settings) -> Option<Finding> {
        let finding = self.finding(settings, Score::WELL)?;
        before.finding(settings, Score::WELL).is_none().then_some(finding)
    }

    /// The finding of a row that is too long.
    fn finding(self, settings: &Settings, score: Score) -> Option<Finding> {
        let over = |count: u32, threshold: Option<NonZeroU32>| {
            let threshold = threshold?.get().min(LONGEST_ROW);
            (count >= threshold).then_some(threshold)
        };
        let (gateway, local, server) = (self.gateway, self.local, self.server);
        let patience = settings
            .consecutive_local_errors
            .and_then(|n| NonZeroU32::new(score.stretch_count(n.get())));
        if let Some(threshold) = over(gateway, settings.consecutive_gateway_errors) {
            Some(Finding::GatewayErrors {
                count: gateway,
                threshold,
            })
        } else if let Some(threshold) = over(local, patience) {
            Some(Finding::LocalErrors {
                count: local,
                threshold,
            })
        } else {
            over(server, settings.consecutive_5xx).map(|threshold| Finding::ServerErrors {
                count: server,
                threshold,
            })
        }
    }
}

fn longer(row: u32) -> u32 {
    (row + 1).min(LONGEST_ROW)
}

const ROW_BITS: u32 = 21;
const ROW: u64 = (1 << ROW_BITS) - 1;
const LONGEST_ROW: u32 = ROW as u32;

/// How many of a group may be out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    allowed: usize,
}

impl Cap {
    /// Of a group of `size`: the share, at least one, but nobody who is alone.
    #[must_use]
    pub fn new(size: usize, percent: f64) -> Self {
        let share = (size as f64 * percent.clamp(0.0, 1.0)).floor() as usize;
        Self {
            allowed: if size < 2 { 0 } else { share.max(1) },
        }
    }

    /// How many may be out together.
    #[must_use]
    pub const fn size(self) -> usize {
        self.allowed
    }

    /// Whether one more may go when `out` are and `available` would be left to choose from, the one included.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub const fn admit(self, out: usize, available: usize) -> Result<(), Withheld> {
        if available <= MIN_AVAILABLE {
            Err(Withheld::LastAvailable)
        } else if out >= self.allowed {
            Err(Withheld::Cap)
        } else {
            Ok(())
        }
    }
}

/// One endpoint, as the referee sees it. Those that an operator took out are not among the members.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// How its attempts went.
    pub tally: &'a Tally,
    /// Whether it is out.
    pub ejection: &'a Ejection,
    /// Endpoints of equal numbers stand in for each other: those of one priority. Not of one zone, or three endpoints in
    /// three zones would each be the only one of its group and never be ejected.
    pub group: u32,
    /// Whether it could serve as far as others than this policy are concerned.
    pub available: bool,
    /// Its last times to the first byte, where latency is compared; none from before its last return.
    pub recent: Option<&'a Recent>,
}

impl Member<'_> {
    fn is_available(&self) -> bool {
        self.available && !self.ejection.is_out()
    }
}

/// What was decided about one endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Which of the members.
    pub index: usize,
    /// Why.
    pub finding: Finding,
    /// What came of it.
    pub ruling: Ruling,
}

/// What came of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It is out.
    Ejected(Ejected),
    /// It would be out if the policy were enforced.
    WouldEject(Ejected),
    /// It stays, for this reason. Told once for as long as nothing changes.
    Withheld(Withheld),
}

/// Why somebody stays who should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// As many as may be are out.
    Cap,
    /// Nobody else is left.
    LastAvailable,
    /// Too many fail together.
    Correlated,
    /// We are unwell ourselves.
    SelfHealth,
}

impl Withheld {
    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cap => "max_ejection_percent",
            Self::LastAvailable => "last_available",
            Self::Correlated => "correlated_failure",
            Self::SelfHealth => "self_health",
        }
    }

    const fn code(self) -> u32 {
        match self {
            Self::Cap => 1,
            Self::LastAvailable => 2,
            Self::Correlated => 3,
            Self::SelfHealth => 4,
        }
    }
}

/// Many endpoints of a group fail by share together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correlated {
    /// The group.
    pub group: u32,
    /// How many qualify, with those ejected for it within the window.
    pub failing: usize,
    /// Of so many.
    pub size: usize,
    /// So many may be out.
    pub allowed: usize,
}

/// What a sweep did and found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Everything decided, worst first.
    pub verdicts: Vec<Verdict>,
    /// Groups in which a correlated failure has just begun.
    pub correlated: Vec<Correlated>,
    /// Members whose ejection ended without a probe: for show, or the mode has changed. Their tallies are cleared.
    pub returned: Vec<usize>,
}

/// Decides about the endpoints of one cluster, one decision at a time.
#[derive(Debug)]
pub struct Referee {
    /// The groups in which a correlated failure goes on.
    correlated: Mutex<Vec<u32>>,
}

impl Referee {
    /// Of a cluster in which all is well.
    #[must_use]
    pub fn new() -> Self {
        Self {
            correlated: Mutex::new(Vec::new()),
        }
    }

    /// Decides at once about the member at `index`, of whom a tally has just said that a row is too long. `None` if there
    /// is nothing new: it is out already, or the reason why it stays is known.
    pub fn strike(
        &self,
        settings: &Settings,
        members: &[Member<'_>],
        index: usize,
        score: Score,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Verdict> {
        let _alone = self.lock();
        let member = members.get(index)?;
        if member.ejection.is_out() {
            return None;
        }
        // Not the finding of `record`: a success may have ended the row, and an unwell proxy is more patient.
        if let Some(finding) = member.tally.rows().finding(settings, score) {
            return rule(settings, members, index, finding, Ok(()), score, now, dice);
        }
        if settings.failure_rate.is_none() || !member.tally.surge.is_over() {
            return None;
        }
        // What several see at once is in the requests, or in all of them.
        let is_alone = members
            .iter()
            .enumerate()
            .filter(|(other, member)| *other != index && !member.ejection.is_out())
            .all(|(_, other)| other.group != member.group || !other.tally.surge.is_rising());
        let objection = if is_alone {
            Ok(())
        } else {
            Err(Withheld::Correlated)
        };
        let finding = member.tally.surge_finding(now);
        rule(settings, members, index, finding, objection, score, now, dice)
    }

    /// Decides about everybody. To be called about once a second.
    pub fn sweep(
        &self,
        settings: &Settings,
        members: &[Member<'_>],
        score: Score,
        now: Moment,
        dice: &mut Dice,
    ) -> Report {
        let mut ongoing = self.lock();
        let mut report = Report {
            returned: returns(settings, members, now),
            ..Report::default()
        };
        let mut findings = findings(settings, members, score, now);
        findings.sort_by(|(_, a), (_, b)| b.severity().total_cmp(&a.severity()));
        let mut blameless = vec![true; members.len()];
        for &(index, _) in &findings {
            blameless[index] = false;
        }
        for (member, _) in members.iter().zip(blameless).filter(|(_, blameless)| *blameless) {
            // Ordering: Relaxed; only the referee writes, under its lock.
            member.tally.withheld.store(0, Ordering::Relaxed);
        }

        let groups = groups(members);
        ongoing.retain(|group| groups.contains(group));
        for group in groups {
            match correlation(settings, members, group, &findings, now) {
                None => ongoing.retain(|&other| other != group),
                Some(correlated) if !ongoing.contains(&group) => {
                    ongoing.push(group);
                    report.correlated.push(correlated);
                }
                Some(_) => {}
            }
        }

        for (index, finding) in findings {
            let objection = if finding.is_statistical() && ongoing.contains(&members[index].group) {
                Err(Withheld::Correlated)
            } else {
                Ok(())
            };
            report.verdicts.extend(rule(
                settings, members, index, finding, objection, score, now, dice,
            ));
        }
        report
    }

    /// Whether endpoints of a group fail together at present, as of the last sweep.
    #[must_use]
    pub fn is_correlated(&self) -> bool {
        !self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.correlated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Referee {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends ejections that belong to another mode, and shadows whose time is over.
fn returns(settings: &Settings, members: &[Member<'_>], now: Moment) -> Vec<usize> {
    let mut returned = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let ejection = member.ejection;
        let ended = if !ejection.is_out() {
            false
        } else if ejection.is_shadow() == settings.mode.enforces() {
            ejection.pardon(now)
        } else {
            ejection.expire(now)
        };
        if ended {
            member.tally.clear(now);
            returned.push(index);
        }
    }
    returned
}

/// Everybody in service who qualifies, each with the first finding that applies.
fn findings(settings: &Settings, members: &[Member<'_>], score: Score, now: Moment) -> Vec<(usize, Finding)> {
    let counts: Vec<Option<Counts>> = members
        .iter()
        .map(|member| (!member.ejection.is_out()).then(|| member.tally.counts(now)))
        .collect();
    let views: Vec<Option<View>> = members
        .iter()
        .map(|member| {
            let recent = member.recent.filter(|_| !member.ejection.is_out())?;
            Some(recent.view(settings.window, now)).filter(|view| view.len() >= LATENCY_SAMPLES)
        })
        .collect();
    let pools = pools(settings, members, &counts, &views);
    for (member, own) in members.iter().zip(&counts) {
        if let (Some(own), Some(pool)) = (own, pools.iter().find(|pool| pool.group == member.group)) {
            let is_in_it = settings
                .relative
                .is_some_and(|test| own.total >= test.min_requests);
            let own = if is_in_it { *own } else { Counts::default() };
            member.tally.surge.compare_with(pool.failed_elsewhere(own));
        }
    }
    let mut found = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let Some(own) = counts[index] else { continue };
        let Some(pool) = pools.iter().find(|pool| pool.group == member.group) else {
            continue;
        };
        // Who is asked nothing keeps its row; it is as old as the window at most.
        let rows = if own.failed > 0 {
            member.tally.rows()
        } else {
            Rows::default()
        };
        let finding = rows
            .finding(settings, score)
            .or_else(|| failure_rate(settings, own))
            .or_else(|| relative(settings, pool, own))
            .or_else(|| latency(settings, pool, own, views[index].as_ref()));
        found.extend(finding.map(|finding| (index, finding)));
    }
    found
}

fn failure_rate(settings: &Settings, own: Counts) -> Option<Finding> {
    let threshold = settings.failure_rate?;
    let qualifies = own.failed > 0 && own.total >= settings.min_requests && own.failure_rate() >= threshold;
    qualifies.then_some(Finding::FailureRate {
        failed: own.failed,
        total: own.total,
        threshold,
    })
}

fn relative(settings: &Settings, pool: &Pool, own: Counts) -> Option<Finding> {
    let test = settings.relative?;
    if own.total < test.min_requests || own.failed < MIN_FAILURES || pool.hosts < test.min_hosts {
        return None;
    }
    // The pool holds this one too: it has enough requests.
    let others = pool.failed_elsewhere(own);
    if own.failure_rate() - others < test.min_gap {
        return None;
    }
    let probability = statistics::at_least(own.failed, own.total, others.max(LEAST_SHARE));
    (probability < 1.0 - test.confidence).then_some(Finding::Relative {
        failed: own.failed,
        total: own.total,
        others,
        probability,
    })
}

/// Slow is whose p90 is far above that of the others *and* who exceeds it too often for chance: of the others one in ten
/// is above their p90, so one in ten may be here.
fn latency(settings: &Settings, pool: &Pool, own: Counts, view: Option<&View>) -> Option<Finding> {
    let factor = settings.latency_factor?;
    let view = view?;
    let p90 = view.quantile(LATENCY_QUANTILE)?;
    if own.total.saturating_sub(own.failed) < LATENCY_REQUESTS || pool.p90.len() < LATENCY_HOSTS {
        return None;
    }
    let others = statistics::median_without(&pool.p90, p90)?;
    let bound = others.mul_f64(factor).max(others + MIN_EXCESS);
    let above = u32::try_from(view.above(bound)).unwrap_or(u32::MAX);
    let total = u32::try_from(view.len()).unwrap_or(u32::MAX);
    let chance = statistics::at_least(above, total, 1.0 - LATENCY_QUANTILE);
    (p90 > bound && chance < 1.0 - LATENCY_CONFIDENCE).then_some(Finding::Latency {
        p90,
        others,
        bound,
        factor,
    })
}

/// What the members of a group in service are compared with, each with the others.
#[derive(Debug, Default)]
struct Pool {
    group: u32,
    /// Those with requests enough to be compared, and their attempts.
    hosts: usize,
    failed: u64,
    total: u64,
    /// Sorted.
    p90: Vec<Duration>,
}

impl Pool {
    /// The share that fails at the others, of one that is in the pool if it has requests enough.
    fn failed_elsewhere(&self, own: Counts) -> f64 {
        let total = self.total.saturating_sub(u64::from(own.total));
        self.failed.saturating_sub(u64::from(own.failed)) as f64 / total.max(1) as f64
    }
}

fn pools(
    settings: &Settings,
    members: &[Member<'_>],
    counts: &[Option<Counts>],
    views: &[Option<View>],
) -> Vec<Pool> {
    let enough = settings.relative.map_or(u32::MAX, |test| test.min_requests);
    let mut pools: Vec<Pool> = groups(members)
        .into_iter()
        .map(|group| Pool {
            group,
            ..Pool::default()
        })
        .collect();
    for ((member, counts), view) in members.iter().zip(counts).zip(views) {
        let Some(counts) = counts else { continue };
        let Some(pool) = pools.iter_mut().find(|pool| pool.group == member.group) else {
            continue;
        };
        if counts.total >= enough {
            pool.hosts += 1;
            pool.failed += u64::from(counts.failed);
            pool.total += u64::from(counts.total);
        }
        pool.p90
            .extend(view.as_ref().and_then(|view| view.quantile(LATENCY_QUANTILE)));
    }
    for pool in &mut pools {
        pool.p90.sort_unstable();
    }
    pools
}

/// The groups there are, usually one.
fn groups(members: &[Member<'_>]) -> Vec<u32> {
    let mut groups: Vec<u32> = members.iter().map(|member| member.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Whether so many of a group qualify that it cannot be their own fault: more than may go, or half of it, if that is
/// three or more. Who was ejected for it within the window still counts.
fn correlation(
    settings: &Settings,
    members: &[Member<'_>],
    group: u32,
    findings: &[(usize, Finding)],
    now: Moment,
) -> Option<Correlated> {
    let of_group = || members.iter().filter(|member| member.group == group);
    let size = of_group().count();
    let allowed = Cap::new(size, settings.max_ejection_percent).size();
    let qualify = findings
        .iter()
        .filter(|(index, finding)| members[*index].group == group && finding.is_statistical())
        .count();
    let fallen = of_group()
        .filter(|member| member.ejection.is_out() && member.tally.fell_within(settings.window, now))
        .count();
    let failing = qualify + fallen;
    let many = failing > allowed.max(1) || (failing >= MANY && 2 * failing >= size);
    (qualify > 0 && many).then_some(Correlated {
        group,
        failing,
        size,
        allowed,
    })
}

/// Ejects a member, or says once why not.
#[expect(
    clippy::too_many_arguments,
    reason = "one decision, all of whose grounds are values"
)]
fn rule(
    settings: &Settings,
    members: &[Member<'_>],
    index: usize,
    finding: Finding,
    objection: Result<(), Withheld>,
    score: Score,
    now: Moment,
    dice: &mut Dice,
) -> Option<Verdict> {
    let member = &members[index];
    let of_group = || members.iter().filter(|other| other.group == member.group);
    let cap = Cap::new(of_group().count(), settings.max_ejection_percent);
    let out = of_group().filter(|other| other.ejection.is_out()).count();
    // Who is unavailable anyway takes nobody's place by going.
    let left = of_group().filter(|other| other.is_available()).count() + usize::from(!member.is_available());
    let healthy = if score.suspends() {
        Err(Withheld::SelfHealth)
    } else {
        Ok(())
    };
    let ruling = match healthy.and(objection).and_then(|()| cap.admit(out, left)) {
        Err(reason) => {
            if !member.tally.withhold(reason) {
                return None;
            }
            Ruling::Withheld(reason)
        }
        Ok(()) => {
            let ejected = member
                .ejection
                .eject(&settings.ejection, settings.mode, now, dice)?;
            member.tally.clear(now);
            let fell = if finding.is_statistical() {
                now.as_nanos().max(1)
            } else {
                0
            };
            // Ordering: Relaxed; only the referee writes, under its lock.
            member.tally.fell.store(fell, Ordering::Relaxed);
            match settings.mode {
                Mode::Enforce => Ruling::Ejected(ejected),
                Mode::Observe => Ruling::WouldEject(ejected),
            }
        }
    };
    Some(Verdict {
        index,
        finding,
        ruling,
    })
}

/// Fewer failures prove nothing.
const MIN_FAILURES: u32 = 5;

/// The others are believed to fail at least this often: with none seen, one failure would be infinitely surprising.
const LEAST_SHARE: f64 = 0.001;

const LATENCY_REQUESTS: u32 = 50;
const LATENCY_HOSTS: usize = 3;
const LATENCY_QUANTILE: f64 = 0.9;
/// Fewer last answers prove nothing.
const LATENCY_SAMPLES: usize = 20;
/// How sure the comparison must be, every second anew.
const LATENCY_CONFIDENCE: f64 = 0.999;

/// A difference below this is not worth an ejection, whatever the factor.
const MIN_EXCESS: Duration = Duration::from_millis(50);

/// One or two may fail by coincidence.
const MANY: usize = 3;

const MIN_AVAILABLE: usize = 1;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(loom)]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_of_two_workers_that_fill_a_row_one_is_told() {
        loom::model(|| {
            let settings = Settings {
                consecutive_local_errors: NonZeroU32::new(2),
                ..Settings::default()
            };
            let tally = Arc::new(Tally::new(settings.window));
            let other = Arc::clone(&tally);
            let told = |tally: &Tally| tally.lengthen(Rows::with_local, &settings).is_some();
            let thread = loom::thread::spawn(move || other.lengthen(Rows::with_local, &settings).is_some());
            let mine = told(&tally);
            let theirs = thread.join().expect("no panic");
            assert!(mine != theirs);
            assert_eq!(tally.rows().local, 2);
        });
    }
}
