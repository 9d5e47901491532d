//! Load: what an endpoint's recent past says about its next request.
//!
//! One per endpoint, shared by all workers, and alive across reloads, because an endpoint is not faster for having been
//! renamed. It is written twice per attempt and read twice per pick, so it is atomics and no lock.
//!
//! * *In flight*: attempts begun and not ended. Exact; all workers count together.
//! * *Estimate*: the peak EWMA of response times. A slower sample is believed at once, faster ones win it back over
//!   ten seconds. Successes feed it; a failure may raise it and never lowers it, or an endpoint that fails at once would look
//!   fast and swallow the traffic.
//! * *Silence*: while attempts wait for an answer and none comes, the time since the last one is a lower bound of the
//!   next. Without it an endpoint that hangs looks as fast as it was until its first request times out, and a second's
//!   worth of requests is lost to it.
//! * *Success*: a count-based average of "went well", from 1.0; the reason why failing fast is expensive.
//!
//! Estimate and time stamp belong together and therefore share one 64-bit word: 32 bits of `f32` seconds and 32 bits of
//! 1.05 ms ticks. What must stay true: an ignored attempt changes nothing but the counts.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::{moment::Moment, outcome::Outcome};

/// The shared record of one endpoint.
#[derive(Debug)]
// Two endpoints in one cache line would make workers wait for each other; 128 because neighbouring lines are fetched in
// pairs.
#[repr(align(128))]
pub struct Load {
    in_flight: AtomicU32,
    /// `f32` bits; 1.0 at the start.
    success: AtomicU32,
    /// `f32` bits of seconds above, tick below; `UNKNOWN` before the first sample.
    estimate: AtomicU64,
    /// Nanoseconds of the moment until which the endpoint asked to be spared.
    avoid_until: AtomicU64,
    picks: AtomicU64,
    /// Attempts that wait for the head of an answer.
    waiting: AtomicU32,
    /// Nanoseconds of the moment since which nothing was heard, while somebody waits.
    quiet_since: AtomicU64,
}

/// What was learned, in a form that another process can take over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saved {
    /// The estimate after the last sample, in seconds, and how long ago that was.
    pub estimate: Option<(f32, Duration)>,
    /// The share of recent attempts that went well.
    pub success: f32,
    /// How long the endpoint still asks to be spared.
    pub avoid_for: Duration,
}

impl Load {
    /// An endpoint nothing is known about.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            success: AtomicU32::new(1.0f32.to_bits()),
            estimate: AtomicU64::new(UNKNOWN),
            avoid_until: AtomicU64::new(0),
            picks: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            quiet_since: AtomicU64::new(0),
        }
    }

    /// What another process has to know. Attempts in flight are those of this one.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        // Ordering: Relaxed; one word holds all that belongs together.
        let estimate = unpack(self.estimate.load(Ordering::Relaxed));
        let age = |stamp| Duration::from_nanos(u64::from(elapsed(stamp, tick(now))) << TICK_BITS);
        Saved {
            estimate: estimate.map(|(value, stamp)| (value, age(stamp))),
            success: self.success(),
            avoid_for: self.avoid_until().since(now),
        }
    }

    /// What another process had learned; what makes no sense is as if it had learned nothing.
    #[must_use]
    pub fn restored(saved: &Saved, now: Moment) -> Self {
        let mut load = Self::new();
        if let Some((value, age)) = saved.estimate
            && value.is_finite()
            && value >= 0.0
        {
            load.estimate = AtomicU64::new(pack(value, tick(now.minus(age))));
        }
        if saved.success.is_finite() {
            load.success = AtomicU32::new(saved.success.clamp(0.0, 1.0).to_bits());
        }
        if !saved.avoid_for.is_zero() {
            let until = now.plus(saved.avoid_for.min(LONGEST_HINT));
            load.avoid_until = AtomicU64::new(until.as_nanos());
        }
        load
    }

    /// An attempt begins. Exactly one of [`Load::heard`] and [`Load::unheard`] must follow, and then exactly one of
    /// [`Load::finish`], [`Load::end_ignored`] and [`Load::end_at_least`].
    pub fn begin(&self, now: Moment) {
        // Ordering: Relaxed; counts guard no other memory, and a pick may see them late.
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.picks.fetch_add(1, Ordering::Relaxed);
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.quiet_since.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// The head of an answer came, of whatever kind: the endpoint is not silent.
    pub fn heard(&self, now: Moment) {
        self.unheard();
        // Ordering: Relaxed; a lone value. A busy endpoint is heard thousands of times a second, and need not be noted
        // each time.
        let before = self.quiet_since.load(Ordering::Relaxed);
        if now.as_nanos() > before.saturating_add(GRAIN) {
            self.quiet_since.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// Nobody waits any more for an answer that did not come.
    pub fn unheard(&self) {
        // Ordering: Relaxed, as in `begin`.
        let before = self.waiting.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "an answer was waited for less often than it came");
    }

    /// Forgets how fast it was and how well it went: it is another process now, or as good as.
    pub fn forget(&self) {
        // Ordering: Relaxed; lone values.
        self.estimate.store(UNKNOWN, Ordering::Relaxed);
        self.success.store(1.0f32.to_bits(), Ordering::Relaxed);
        self.avoid_until.store(0, Ordering::Relaxed);
    }

    /// The attempt ended and says nothing about the endpoint.
    pub fn end_ignored(&self) {
        // Ordering: Relaxed, as in `begin`; additions to one atomic are never lost.
        let before = self.in_flight.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "an attempt ended that had not begun");
    }

    /// The attempt was given up because another was faster: the endpoint takes at least `waited`.
    pub fn end_at_least(&self, waited: Duration, now: Moment) {
        self.end_ignored();
        self.observe(waited, now, Observation::OnlyIfSlower);
    }

    /// The attempt ended. `rtt` is the time from sending to the response head, or to the failure.
    pub fn finish(&self, rtt: Duration, outcome: Outcome, now: Moment) {
        self.end_ignored();
        match outcome {
            Outcome::Success | Outcome::Slow => {
                self.judge(1.0);
                self.observe(rtt, now, Observation::Typical);
            }
            Outcome::Failure(_) => {
                self.judge(0.0);
                self.observe(rtt, now, Observation::OnlyIfSlower);
            }
            Outcome::Pushback(hint) => {
                self.judge(0.0);
                self.observe(rtt, now, Observation::OnlyIfSlower);
                if let Some(hint) = hint {
                    let until = now.plus(hint.min(LONGEST_HINT));
                    // Ordering: Relaxed; a lone value, and late is fine.
                    self.avoid_until.fetch_max(until.as_nanos(), Ordering::Relaxed);
                }
            }
            Outcome::Ignored => {}
        }
    }

    /// An answer that nobody waited for took so long.
    pub fn learn(&self, rtt: Duration, now: Moment) {
        self.observe(rtt, now, Observation::Typical);
    }

    /// Attempts begun and not ended, of all workers.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        // Ordering: Relaxed; a pick is a guess anyway.
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Attempts ever begun.
    #[must_use]
    pub fn picks(&self) -> u64 {
        // Ordering: Relaxed; for people.
        self.picks.load(Ordering::Relaxed)
    }

    /// The share of recent attempts that went well, 0.0 to 1.0.
    #[must_use]
    pub fn success(&self) -> f32 {
        // Ordering: Relaxed; a lone value.
        f32::from_bits(self.success.load(Ordering::Relaxed))
    }

    /// Until when the endpoint asked to be spared; in the past when it did not.
    #[must_use]
    pub fn avoid_until(&self) -> Moment {
        // Ordering: Relaxed; a lone value.
        Moment::from_nanos(self.avoid_until.load(Ordering::Relaxed))
    }

    /// For how long, in seconds, somebody has been waiting and nothing was heard; 0 if nobody waits.
    #[must_use]
    pub fn silence(&self, now: Moment) -> f32 {
        // Ordering: Relaxed; a pick is a guess anyway.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return 0.0;
        }
        let since = Moment::from_nanos(self.quiet_since.load(Ordering::Relaxed));
        now.since(since).as_secs_f32()
    }

    /// The expected response time in seconds at `now`, at least a millisecond; `None` before the first sample.
    ///
    /// An estimate above `rest` decays towards it while no sample comes, so that an endpoint which was slow once is asked
    /// again. One below stays: silence makes nobody slower.
    #[must_use]
    pub fn estimate(&self, now: Moment, rest: f32) -> Option<f32> {
        // Ordering: Relaxed; one word holds all that belongs together.
        let (value, stamp) = unpack(self.estimate.load(Ordering::Relaxed))?;
        let decayed = if value > rest {
            rest + (value - rest) * kept(stamp, tick(now))
        } else {
            value
        };
        Some(decayed.max(FLOOR))
    }

    /// The estimate as it was after the last sample, in seconds.
    #[cfg(test)]
    fn last_estimate(&self) -> Option<f32> {
        // Ordering: Relaxed; one word holds all that belongs together.
        unpack(self.estimate.load(Ordering::Relaxed)).map(|(value, _)| value)
    }

    fn judge(&self, verdict: f32) {
        // Ordering: Relaxed; a lone value. A verdict that loses a race is lost: the average is of a sample anyway, and
        // the usual case (all is well, and was) must not write to a shared line.
        let before = self.success();
        let after = before + (verdict - before) * SUCCESS_ALPHA;
        // Close to 1.0 the step rounds to nothing; snapping lets a recovered endpoint reach the quiet state again.
        let after = if after > 0.9999 { 1.0 } else { after };
        if after != before {
            self.success.store(after.to_bits(), Ordering::Relaxed);
        }
    }

    fn observe(&self, rtt: Duration, now: Moment, observation: Observation) {
        let rtt = rtt.as_secs_f32();
        let now = tick(now);
        let mut word = self.estimate.load(Ordering::Relaxed);
        // Ordering: Relaxed; the word is complete in itself.
        while let Some(next) = observed(word, rtt, now, observation)
            && let Err(current) =
                self.estimate
                    .compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed)
        {
            word = current;
        }
    }
}

/// Answers closer together than this, in nanoseconds, are heard as one.
const GRAIN: u64 = 1_000_000;

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

/// What a sample may do to the estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observation {
    Typical,
    OnlyIfSlower,
}

/// The word after a sample, or `None` if it stays as it is.
fn observed(word: u64, rtt: f32, now: u32, observation: Observation) -> Option<u64> {
    let Some((value, stamp)) = unpack(word) else {
        return (observation == Observation::Typical).then(|| pack(rtt, now));
    };
    if rtt > value {
        return Some(pack(rtt, now));
    }
    // Within one tick the time-weighted average does not move; the stamp stays, so no time is lost to it either.
    if observation == Observation::OnlyIfSlower || elapsed(stamp, now) == 0 {
        return None;
    }
    let kept = kept(stamp, now);
    Some(pack(value * kept + rtt * (1.0 - kept), now))
}

/// What remains of an old value between two ticks.
fn kept(stamp: u32, now: u32) -> f32 {
    match elapsed(stamp, now) {
        0 => 1.0,
        ticks => (-(ticks as f32) / TAU_TICKS).exp(),
    }
}

/// Ticks between a stamp and now. Ticks wrap after 52 days; a stamp up to a minute ahead is another worker's clock read.
const fn elapsed(stamp: u32, now: u32) -> u32 {
    let ticks = now.wrapping_sub(stamp);
    if ticks > u32::MAX - MINUTE_TICKS { 0 } else { ticks }
}

const fn tick(now: Moment) -> u32 {
    (now.as_nanos() >> TICK_BITS) as u32
}

const fn pack(seconds: f32, tick: u32) -> u64 {
    (seconds.to_bits() as u64) << 32 | tick as u64
}

const fn unpack(word: u64) -> Option<(f32, u32)> {
    if word == UNKNOWN {
        None
    } else {
        Some((f32::from_bits((word >> 32) as u32), word as u32))
    }
}

/// Time constant of the estimate: after this long without samples an old value counts 37 %.
const TAU: Duration = Duration::from_secs(10);

/// No endpoint is believed to be faster, in seconds: below, differences are noise of our own.
const FLOOR: f32 = 0.001;

/// Weight of one attempt in the success average: the last fifty or so count.
const SUCCESS_ALPHA: f32 = 0.02;

/// A hint to stay away is honoured this long at most.
const LONGEST_HINT: Duration = Duration::from_secs(300);

/// 2^20 ns, about 1.05 ms.
const TICK_BITS: u32 = 20;
const TAU_TICKS: f32 = TAU.as_nanos() as f32 / (1u64 << TICK_BITS) as f32;
const MINUTE_TICKS: u32 = (60_000_000_000u64 >> TICK_BITS) as u32;

/// A value no sample has: its upper half is a NaN.
const UNKNOWN: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Origin;
    use proptest::prelude::*;

    const FAILURE: Outcome = Outcome::Failure(Origin::Remote);

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn attempt(load: &Load, rtt: u64, outcome: Outcome, now: Moment) {
        load.begin(at(0));
        load.unheard();
        load.finish(Duration::from_millis(rtt), outcome, now);
    }

    fn near(a: f32, b: f32) -> bool {
        (a - b).abs() <= b.abs() * 0.01 + 1e-6
    }

    #[test]
    fn a_slow_answer_is_believed_at_once_and_won_back_slowly() {
        let load = Load::new();
        attempt(&load, 10, Outcome::Success, at(0));
        attempt(&load, 500, Outcome::Success, at(1));
        assert!(near(load.last_estimate().unwrap(), 0.5));
        attempt(&load, 10, Outcome::Success, at(10_001));
        let expected = 0.5 * (-1.0f32).exp() + 0.01 * (1.0 - (-1.0f32).exp());
        assert!(
            near(load.last_estimate().unwrap(), expected),
            "{:?}",
            load.last_estimate()
        );
    }

    #[test]
    fn many_samples_within_a_tick_still_move_the_estimate_as_time_passes() {
        let load = Load::new();
        attempt(&load, 100, Outcome::Success, at(0));
        for micros in 0..10_000_000u64 / 100 {
            attempt(&load, 10, Outcome::Success, Moment::from_nanos(micros * 100_000));
        }
        let expected = 0.01 + 0.09 * (-1.0f32).exp();
        assert!(
            near(load.last_estimate().unwrap(), expected),
            "{:?}",
            load.last_estimate()
        );
    }

    #[test]
    fn silence_decays_towards_rest_and_not_to_zero() {
        let load = Load::new();
        attempt(&load, 5000, Outcome::Success, at(0));
        assert!(near(load.estimate(at(0), 0.02).unwrap(), 5.0));
        assert!(near(
            load.estimate(at(10_000), 0.02).unwrap(),
            0.02 + 4.98 * (-1.0f32).exp()
        ));
        assert!(near(load.estimate(at(600_000), 0.02).unwrap(), 0.02));
        assert!(near(load.estimate(at(600_000), 9.0).unwrap(), 5.0));
    }

    #[test]
    fn silence_lasts_from_the_last_answer_on_while_somebody_waits() {
        let load = Load::new();
        assert_eq!(load.silence(at(5)), 0.0);
        load.begin(at(100));
        load.begin(at(150));
        assert!(near(load.silence(at(300)), 0.2), "since the first of them");
        load.heard(at(400));
        assert!(near(load.silence(at(600)), 0.2), "since the last answer");
        load.unheard();
        assert_eq!(load.silence(at(900)), 0.0, "nobody waits");
        load.begin(at(1000));
        assert_eq!(load.silence(at(1000)), 0.0);
        load.unheard();
    }

    #[test]
    fn who_loses_against_a_copy_took_at_least_so_long() {
        let load = Load::new();
        attempt(&load, 10, Outcome::Success, at(0));
        load.begin(at(1));
        load.unheard();
        load.end_at_least(Duration::from_millis(300), at(301));
        assert!(near(load.last_estimate().unwrap(), 0.3));
        assert_eq!((load.in_flight(), load.success()), (0, 1.0));
        load.forget();
        assert_eq!(load.last_estimate(), None);
    }

    #[test]
    fn the_floor_holds() {
        let load = Load::new();
        load.begin(at(0));
        load.unheard();
        load.finish(Duration::from_micros(20), Outcome::Success, at(0));
        assert_eq!(load.estimate(at(0), 0.0), Some(FLOOR));
    }

    #[test]
    fn a_failure_raises_the_estimate_and_never_lowers_it() {
        let load = Load::new();
        attempt(&load, 1, FAILURE, at(0));
        assert_eq!(load.estimate(at(0), 0.0), None);
        attempt(&load, 10, Outcome::Success, at(0));
        attempt(&load, 1, FAILURE, at(60_000));
        assert!(near(load.last_estimate().unwrap(), 0.01));
        attempt(&load, 900, FAILURE, at(60_000));
        assert!(near(load.last_estimate().unwrap(), 0.9));
    }

    #[test]
    fn success_follows_about_fifty_attempts_and_recovers_fully() {
        let load = Load::new();
        for _ in 0..50 {
            attempt(&load, 1, FAILURE, at(0));
        }
        assert!(near(load.success(), 0.98f32.powi(50)), "{}", load.success());
        for _ in 0..1000 {
            attempt(&load, 1, Outcome::Success, at(0));
        }
        assert_eq!(load.success(), 1.0);
    }

    #[test]
    fn a_hint_is_kept_up_to_five_minutes() {
        let load = Load::new();
        attempt(
            &load,
            1,
            Outcome::Pushback(Some(Duration::from_secs(2))),
            at(1000),
        );
        assert_eq!(load.avoid_until(), at(3000));
        attempt(
            &load,
            1,
            Outcome::Pushback(Some(Duration::from_secs(86_400))),
            at(1000),
        );
        assert_eq!(load.avoid_until(), at(301_000));
    }

    #[test]
    fn what_was_learned_survives_the_process() {
        let old = Load::new();
        attempt(&old, 200, Outcome::Success, at(1000));
        attempt(&old, 1, FAILURE, at(1000));
        let hint = Outcome::Pushback(Some(Duration::from_secs(7)));
        attempt(&old, 1, hint, at(1000));
        // Five seconds later, and by another clock.
        let new = Load::restored(&old.save(at(6000)), at(900_000));
        for wait in [0, 3000, 30_000] {
            let (a, b) = (
                old.estimate(at(6000 + wait), 0.01),
                new.estimate(at(900_000 + wait), 0.01),
            );
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-3, "{a:?} {b:?}");
        }
        assert_eq!(new.success(), old.success());
        assert_eq!(new.avoid_until(), at(902_000));
        assert_eq!((new.in_flight(), new.picks()), (0, 0));
        assert_eq!(
            Load::restored(&Load::new().save(at(1)), at(2)).estimate(at(2), 0.0),
            None
        );
    }

    proptest! {
        #[test]
        fn nonsense_is_not_restored(value: f32, age: u64, success: f32, avoid: u64, now: u64) {
            let saved = Saved {
                estimate: Some((value, Duration::from_nanos(age))),
                success,
                avoid_for: Duration::from_nanos(avoid),
            };
            let now = Moment::from_nanos(now);
            let load = Load::restored(&saved, now);
            prop_assert!((0.0..=1.0).contains(&load.success()));
            prop_assert!(load.estimate(now, 1.0).is_none_or(|known| known.is_finite() && known > 0.0));
            prop_assert!(load.avoid_until() <= now.plus(LONGEST_HINT));
        }
    }

    #[test]
    fn ignored_attempts_leave_no_trace() {
        let load = Load::new();
        load.begin(at(0));
        assert_eq!(load.in_flight(), 1);
        load.unheard();
        load.finish(Duration::from_secs(9), Outcome::Ignored, at(0));
        load.begin(at(0));
        load.unheard();
        load.end_ignored();
        assert_eq!(
            (load.in_flight(), load.success(), load.last_estimate()),
            (0, 1.0, None)
        );
        assert_eq!(load.picks(), 2);
    }

    #[test]
    fn a_clock_read_earlier_and_published_later_does_no_harm() {
        let load = Load::new();
        attempt(&load, 100, Outcome::Success, at(5000));
        attempt(&load, 10, Outcome::Success, at(4000));
        assert!(near(load.last_estimate().unwrap(), 0.1));
        assert!(near(load.estimate(at(4000), 0.0).unwrap(), 0.1));
    }

    #[test]
    fn stamps_survive_the_wrap_of_their_ticks() {
        let load = Load::new();
        let before = Moment::from_nanos((u64::from(u32::MAX) - 10) << TICK_BITS);
        attempt(&load, 1000, Outcome::Success, before);
        let after = before.plus(TAU);
        assert!(near(load.estimate(after, 0.0).unwrap(), (-1.0f32).exp()));
    }

    #[test]
    fn workers_count_together() {
        let load = Load::new();
        std::thread::scope(|scope| {
            for worker in 0..4u64 {
                let load = &load;
                scope.spawn(move || {
                    for i in 0..10_000 {
                        attempt(load, 10 + worker, Outcome::Success, at(i));
                    }
                });
            }
        });
        assert_eq!((load.in_flight(), load.picks()), (0, 40_000));
        let estimate = load.last_estimate().unwrap();
        assert!((0.0099..0.0131).contains(&estimate), "{estimate}");
    }

    proptest! {
        #[test]
        fn the_estimate_lies_within_what_was_seen(samples in proptest::collection::vec((1u64..10_000, 0u64..5_000), 1..50)) {
            let load = Load::new();
            let mut now = 0;
            for &(rtt, gap) in &samples {
                now += gap;
                attempt(&load, rtt, Outcome::Success, at(now));
            }
            let fastest = samples.iter().map(|s| s.0).min().unwrap() as f32 / 1000.0;
            let slowest = samples.iter().map(|s| s.0).max().unwrap() as f32 / 1000.0;
            let estimate = load.last_estimate().unwrap();
            prop_assert!(fastest * 0.999 <= estimate && estimate <= slowest * 1.001);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_what_began_ends_and_nobody_is_waited_for_any_more() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let load = Arc::new(Load::new());
            let other = Arc::clone(&load);
            let at = |millis| Moment::ZERO.plus(Duration::from_millis(millis));
            let attempt = move |load: &Load| {
                load.begin(at(100));
                load.heard(at(110));
                load.finish(Duration::from_millis(10), Outcome::Success, at(110));
            };
            let thread = thread::spawn(move || attempt(&other));
            attempt(&load);
            thread.join().unwrap();
            assert_eq!((load.in_flight(), load.picks()), (0, 2));
            assert_eq!(load.silence(at(10_000)), 0.0);
            let estimate = load.estimate(at(110), f32::INFINITY).unwrap();
            assert!((0.0099..=0.0101).contains(&estimate), "{estimate}");
        });
    }
}
