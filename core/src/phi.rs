//! Phi: how surprising it is that an endpoint has not been heard from.
//!
//! A fixed deadline is either slow or wrong, because beats of a loaded network vary. The phi-accrual detector (Hayashibara,
//! Défago, Yared, Katayama 2004) learns how they vary and answers with a number instead of a verdict:
//! `phi = -log10(P[a beat comes even later])`, so at 8 one suspicion in 10^8 is wrong under the model. Intervals are taken
//! for normal, with the logistic approximation of the tail that Akka uses, in a form that holds for any distance:
//!
//! ```text
//! y   = (silence - mean - acceptable_pause) / max(deviation, min_std)
//! phi = y * (1.5976 + 0.070566 * y²) * log10(e) + log10(1 + e^(-y * (1.5976 + 0.070566 * y²)))
//! ```
//!
//! A tail that steep makes the threshold a matter of taste; what matters are `acceptable_pause` and `min_std`. Degraded
//! from [`Settings::degraded_at`], dead from [`Settings::phi_threshold`], and alive again only after [`GOOD_BEATS`] beats
//! in time, so that one beat in a while does not bring back a dying endpoint. A fixed deadline is available for those who
//! must be able to say in advance when.
//!
//! *Our own pauses.* Whoever judges late was away himself: beats were waiting for us and not the other way round. The
//! detector is asked at least once per interval ([`Detector::judge`]); if it was not asked for much longer than that, the
//! time is taken for our pause and counts as if it had not passed. So no freeze of ours kills anybody, and who is really
//! dead is found as long after it as always. While we are merely unwell, `acceptable_pause` is stretched ([`Score`]).
//!
//! Silence proves something only where somebody would have spoken: whoever feeds the detector from requests must probe,
//! once per interval, an endpoint that gets none, or say that nobody asked it ([`Detector::excuse`]).

use std::time::Duration;

use crate::moment::Moment;
use crate::self_health::Score;

/// How silence is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How often an endpoint should be heard from; zero counts as a millisecond.
    pub interval: Duration,
    /// From here on it is dead.
    pub phi_threshold: f64,
    /// From here on it gets less to do.
    pub degraded_at: f64,
    /// Silence that is nobody's fault (a garbage collection), added to the mean.
    pub acceptable_pause: Duration,
    /// Instead of phi: dead after this long.
    pub timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            phi_threshold: 8.0,
            degraded_at: 3.0,
            acceptable_pause: Duration::from_secs(2),
            timeout: None,
        }
    }
}

impl Settings {
    fn interval(&self) -> Duration {
        self.interval.max(Duration::from_millis(1))
    }

    /// Perfectly regular beats would make the detector shoot at the first late one.
    fn min_std(&self) -> f64 {
        (self.interval() / 10).max(MIN_STD).as_secs_f64()
    }
}

/// What the detector thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Liveness {
    /// It was never heard from; that is not being dead.
    #[default]
    Unknown,
    /// It is heard from.
    Alive,
    /// It is late.
    Degraded,
    /// It is gone.
    Dead,
}

/// A judgement with its evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suspicion {
    /// What follows from it.
    pub liveness: Liveness,
    /// How surprising the silence is. With a fixed deadline: the share of it that has passed, times the threshold.
    pub phi: f64,
    /// How long it has been silent, without our own pauses; zero if it was never heard from.
    pub silence: Duration,
}

/// What is known of one endpoint's beats.
#[derive(Debug, Clone, PartialEq)]
pub struct Detector {
    /// Seconds, the oldest overwritten first.
    intervals: Vec<f64>,
    oldest: usize,
    mean: f64,
    deviation: f64,
    /// Moved forward by our own pauses.
    last: Option<Moment>,
    /// When somebody last asked or a beat came: what shows our own pauses.
    awake: Option<Moment>,
    liveness: Liveness,
    /// Beats in time since it was suspected.
    good: u32,
}

impl Detector {
    /// An endpoint that was never heard from.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            intervals: Vec::new(),
            oldest: 0,
            mean: 0.0,
            deviation: 0.0,
            last: None,
            awake: None,
            liveness: Liveness::Unknown,
            good: 0,
        }
    }

    /// It was heard from.
    pub fn beat(&mut self, settings: &Settings, score: Score, now: Moment) {
        self.wake(settings, now);
        let Some(last) = self.last else {
            // Two invented intervals, so that an endpoint that beats once can be missed too.
            let interval = settings.interval().as_secs_f64();
            self.push(interval * 0.75);
            self.push(interval * 1.25);
            self.last = Some(now);
            self.liveness = Liveness::Alive;
            return;
        };
        let fine = if settings.timeout.is_some() {
            settings.phi_threshold
        } else {
            FINE
        };
        if self.phi(settings, score, now) < fine {
            self.good = self.good.saturating_add(1);
        } else {
            self.good = 0;
        }
        let silence = now.since(last);
        // Neither the silence of a failure nor two signs of different kinds in short order say how regular beats are.
        if self.liveness != Liveness::Dead && silence >= settings.interval() / 2 {
            self.push(silence.as_secs_f64());
        }
        self.last = Some(now.max(last));
        if self.good >= GOOD_BEATS {
            self.liveness = Liveness::Alive;
        }
    }

    /// What its silence means at `now`. To be asked at least once per interval; later, and the time counts as a pause of
    /// our own.
    pub fn judge(&mut self, settings: &Settings, score: Score, now: Moment) -> Suspicion {
        self.wake(settings, now);
        let phi = self.phi(settings, score, now);
        let worse = if phi >= settings.phi_threshold {
            Liveness::Dead
        } else if phi >= settings.degraded_at && settings.timeout.is_none() {
            Liveness::Degraded
        } else {
            Liveness::Unknown
        };
        if worse.badness() > self.liveness.badness() {
            self.liveness = worse;
            self.good = 0;
        }
        Suspicion {
            liveness: self.liveness,
            phi,
            silence: self.last.map_or(Duration::ZERO, |last| now.since(last)),
        }
    }

    /// Nobody asked it anything since it was last judged, so that its silence since then proves nothing.
    pub fn excuse(&mut self, now: Moment) {
        if let (Some(awake), Some(last)) = (self.awake, self.last) {
            self.last = Some(last.plus(now.since(awake)).min(now));
        }
        self.awake = Some(self.awake.map_or(now, |awake| awake.max(now)));
    }

    /// The mean and the standard deviation of the intervals, in seconds.
    #[must_use]
    pub const fn rhythm(&self) -> (f64, f64) {
        (self.mean, self.deviation)
    }

    /// What it thought when it was last asked.
    #[must_use]
    pub const fn liveness(&self) -> Liveness {
        self.liveness
    }

    fn phi(&self, settings: &Settings, score: Score, now: Moment) -> f64 {
        let Some(last) = self.last else { return 0.0 };
        let silence = now.since(last).as_secs_f64();
        match settings.timeout {
            Some(timeout) => {
                let timeout = score.stretch(timeout).as_secs_f64().max(f64::MIN_POSITIVE);
                silence / timeout * settings.phi_threshold
            }
            None => {
                let mean = self.mean + score.stretch(settings.acceptable_pause).as_secs_f64();
                phi((silence - mean) / self.deviation.max(settings.min_std()))
            }
        }
    }

    /// Takes a gap in which nobody asked for a pause of our own.
    fn wake(&mut self, settings: &Settings, now: Moment) {
        if let (Some(awake), Some(last)) = (self.awake, self.last) {
            let away = now.since(awake);
            if away > settings.interval() * 2 {
                self.last = Some(last.plus(away - settings.interval()).min(now));
            }
        }
        self.awake = Some(self.awake.map_or(now, |awake| awake.max(now)));
    }

    fn push(&mut self, interval: f64) {
        if self.intervals.len() < WINDOW {
            self.intervals.push(interval);
        } else {
            self.intervals[self.oldest] = interval;
            self.oldest = (self.oldest + 1) % WINDOW;
        }
        // Anew each time: running sums drift, and two hundred additions a second are nothing.
        let n = self.intervals.len() as f64;
        self.mean = self.intervals.iter().sum::<f64>() / n;
        let variance = self
            .intervals
            .iter()
            .map(|i| (i - self.mean).powi(2))
            .sum::<f64>()
            / n;
        self.deviation = variance.sqrt();
    }
}

impl Default for Detector {
    fn default() -> Self {
        Self::new()
    }
}

impl Liveness {
    /// The word in events and explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Degraded => "degraded",
            Self::Dead => "dead",
        }
    }

    const fn badness(self) -> u8 {
        match self {
            Self::Unknown | Self::Alive => 0,
            Self::Degraded => 1,
            Self::Dead => 2,
        }
    }
}

/// Phi of a silence that lies `y` standard deviations beyond the mean.
#[must_use]
pub fn phi(y: f64) -> f64 {
    if y < -5.0 {
        return 0.0;
    }
    let x = y * (1.5976 + 0.070_566 * y * y);
    let steep = x * std::f64::consts::LOG10_E;
    if y > 5.0 {
        // What would be added is below 1e-7.
        return steep;
    }
    steep + (1.0 + (-x).exp()).log10()
}

/// Intervals remembered.
const WINDOW: usize = 200;

const MIN_STD: Duration = Duration::from_millis(100);

/// Beats in time that end a suspicion.
pub const GOOD_BEATS: u32 = 2;

/// A beat that comes below this phi is in time; with a fixed deadline any beat before it is.
const FINE: f64 = 1.0;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    /// A detector that has heard a beat each second up to the 20th, and was asked in between.
    fn regular(settings: &Settings) -> Detector {
        let mut detector = Detector::new();
        for second in 0..=20 {
            detector.beat(settings, Score::WELL, at(second * 1000));
            detector.judge(settings, Score::WELL, at(second * 1000 + 500));
        }
        detector
    }

    /// Asks every 100 ms and answers when it first thought so.
    fn first(
        detector: &mut Detector,
        settings: &Settings,
        liveness: Liveness,
        score: Score,
        from: u64,
    ) -> Option<u64> {
        (from..from + 60_000)
            .step_by(100)
            .find(|&millis| detector.judge(settings, score, at(millis)).liveness == liveness)
    }

    #[test]
    fn scenario_22_the_reference_values() {
        // The two branches as Akka writes them.
        let akka = |y: f64| {
            let e = (-y * (1.5976 + 0.070566 * y * y)).exp();
            if y > 0.0 {
                -(e / (1.0 + e)).log10()
            } else {
                -(1.0 - 1.0 / (1.0 + e)).log10()
            }
        };
        for y in [-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0] {
            assert!((phi(y) - akka(y)).abs() < 1e-3, "{y}: {} {}", phi(y), akka(y));
        }
        for (y, expected) in [(1.0, 0.7995), (2.0, 1.6428), (3.0, 2.9095), (5.0, 7.2999)] {
            assert!((phi(y) - expected).abs() < 1e-3, "{y}: {}", phi(y));
        }
        // And the table of the distances at which it crosses whole numbers.
        for (expected, y) in [
            (1.0, 1.28),
            (2.0, 2.32),
            (3.0, 3.06),
            (5.0, 4.12),
            (8.0, 5.23),
            (16.0, 7.12),
        ] {
            assert!((phi(y) - expected).abs() < 0.03, "{y}: {}", phi(y));
        }
    }

    #[test]
    fn scenario_22_the_probabilities_are_those_of_the_normal_distribution() {
        for (y, below) in [
            (0.0, 0.5),
            (0.6, 0.7257),
            (1.5, 0.9332),
            (2.0, 0.97725),
            (2.5, 0.99379),
            (3.5, 0.99977),
        ] {
            let cdf = 1.0 - 10f64.powf(-phi(y));
            assert!((cdf - below).abs() < 1e-3, "{y}: {cdf}");
        }
    }

    #[test]
    fn scenario_22_an_hour_of_silence_is_a_finite_number() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        let mut before = 0.0;
        for second in 20..3620 {
            let suspicion = detector.judge(&settings, Score::WELL, at(second * 1000 + 100));
            assert!(
                suspicion.phi.is_finite() && suspicion.phi >= before,
                "second {second}"
            );
            before = suspicion.phi;
        }
        assert!(before > 1e6);
    }

    #[test]
    fn scenario_22_ten_seconds_of_our_own_kill_nobody() {
        let settings = Settings::default();
        // Asked first, or heard first: after a pause everything happens at once, in any order.
        for beat_first in [true, false] {
            let mut detectors = vec![regular(&settings); 20];
            for detector in &mut detectors {
                for step in 0..20 {
                    let now = at(30_600 + step * 250);
                    if beat_first && step % 4 == 0 {
                        detector.beat(&settings, Score::WELL, now);
                    }
                    let suspicion = detector.judge(&settings, Score::WELL, now);
                    assert_eq!(suspicion.liveness, Liveness::Alive, "{suspicion:?}");
                    if !beat_first && step % 4 == 0 {
                        detector.beat(&settings, Score::WELL, now);
                    }
                }
                let (mean, deviation) = detector.rhythm();
                assert!(
                    mean < 1.1 && deviation < 0.2,
                    "the pause is not remembered as a rhythm"
                );
            }
        }
    }

    #[test]
    fn scenario_22_who_died_during_our_pause_is_found_after_it() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        let dead = first(&mut detector, &settings, Liveness::Dead, Score::WELL, 30_600).expect("it is dead");
        assert!((32_000..34_500).contains(&dead), "{dead}");
    }

    #[test]
    fn whom_nobody_asks_may_be_silent_for_ever_and_is_judged_as_before_after_that() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        for tick in 205..2_000 {
            detector.excuse(at(tick * 100));
            let suspicion = detector.judge(&settings, Score::WELL, at(tick * 100));
            assert_eq!(suspicion.liveness, Liveness::Alive, "{tick}: {suspicion:?}");
        }
        let dead = first(&mut detector, &settings, Liveness::Dead, Score::WELL, 200_000);
        let usual = first(
            &mut regular(&settings),
            &settings,
            Liveness::Dead,
            Score::WELL,
            20_500,
        );
        let (Some(dead), Some(usual)) = (dead, usual) else {
            panic!("somebody who is asked and silent is dead at last");
        };
        assert!(dead - 200_000 <= usual - 20_000 && dead > 201_000);
    }

    #[test]
    fn a_silent_endpoint_is_degraded_and_then_dead() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        let degraded = first(&mut detector, &settings, Liveness::Degraded, Score::WELL, 20_600);
        let dead = first(&mut detector, &settings, Liveness::Dead, Score::WELL, 20_600);
        // Mean 1 s + pause 2 s + 3.06 or 5.23 deviations of at least 100 ms.
        assert_eq!((degraded, dead), (Some(23_400), Some(23_600)));
    }

    #[test]
    fn one_beat_is_enough_to_be_missed() {
        let settings = Settings::default();
        let mut detector = Detector::new();
        assert_eq!(
            detector.judge(&settings, Score::WELL, at(0)).liveness,
            Liveness::Unknown,
            "never heard from is not dead"
        );
        detector.beat(&settings, Score::WELL, at(100));
        let dead = first(&mut detector, &settings, Liveness::Dead, Score::WELL, 200).expect("it is dead");
        assert!((4_000..5_000).contains(&dead), "{dead}");
    }

    #[test]
    fn two_beats_in_time_end_a_suspicion_and_its_silence_is_forgotten() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        assert!(first(&mut detector, &settings, Liveness::Dead, Score::WELL, 20_600).is_some());
        let rhythm = detector.rhythm();
        let mut now = 50_000;
        // Somebody asks all the time.
        for millis in (24_000..=now).step_by(500) {
            detector.judge(&settings, Score::WELL, at(millis));
        }
        for expected in [Liveness::Dead, Liveness::Dead, Liveness::Alive] {
            detector.beat(&settings, Score::WELL, at(now));
            assert_eq!(detector.judge(&settings, Score::WELL, at(now)).liveness, expected);
            now += 1000;
        }
        assert_eq!(detector.rhythm().0, rhythm.0, "30 s of silence are no rhythm");
    }

    #[test]
    fn an_unwell_proxy_waits_longer() {
        let settings = Settings::default();
        let mut detector = regular(&settings);
        let dead = first(
            &mut detector,
            &settings,
            Liveness::Dead,
            Score::SUSPENDING,
            20_600,
        );
        assert_eq!(dead, Some(27_600), "a pause of 6 s instead of 2 s");
    }

    #[test]
    fn many_answers_in_short_order_are_signs_of_life_and_no_rhythm() {
        let settings = Settings::default();
        let mut detector = Detector::new();
        for millis in 0..5_000 {
            detector.beat(&settings, Score::WELL, at(millis));
        }
        assert_eq!(detector.rhythm(), (1.0, 0.25));
        // The requests end and one probe a second is left.
        for second in 6..20 {
            detector.beat(&settings, Score::WELL, at(second * 1000));
            let suspicion = detector.judge(&settings, Score::WELL, at(second * 1000 + 999));
            assert_eq!(suspicion.liveness, Liveness::Alive);
        }
    }

    #[test]
    fn a_fixed_deadline_knows_no_degrees() {
        let settings = Settings {
            timeout: Some(Duration::from_secs(5)),
            ..Settings::default()
        };
        let mut detector = regular(&settings);
        for millis in (20_600..25_000).step_by(100) {
            assert_eq!(
                detector.judge(&settings, Score::WELL, at(millis)).liveness,
                Liveness::Alive
            );
        }
        assert_eq!(
            detector.judge(&settings, Score::WELL, at(25_000)).liveness,
            Liveness::Dead
        );
        for (second, expected) in [(26, Liveness::Dead), (27, Liveness::Dead), (28, Liveness::Alive)] {
            detector.beat(&settings, Score::WELL, at(second * 1000));
            assert_eq!(detector.liveness(), expected, "second {second}");
        }
    }

    #[test]
    fn the_window_is_bounded_and_forgets() {
        let settings = Settings::default();
        let mut detector = Detector::new();
        let mut now = 0;
        for beat in 0..1000 {
            now += if beat < 700 { 2000 } else { 1000 };
            detector.beat(&settings, Score::WELL, at(now));
        }
        assert_eq!(detector.rhythm(), (1.0, 0.0));
        assert_eq!(detector.intervals.len(), WINDOW);
    }

    proptest! {
        #[test]
        fn scenario_22_phi_never_falls_with_distance(a in -50.0f64..50_000.0, b in -50.0f64..50_000.0) {
            let (near, far) = (a.min(b), a.max(b));
            prop_assert!(phi(near) <= phi(far) + 1e-6);
            prop_assert!(phi(near) >= 0.0 && phi(far).is_finite());
        }

        /// Who beats, however irregularly within half an interval, is never suspected.
        #[test]
        fn who_beats_is_alive(jitters in prop::collection::vec(500u64..1500, 1..300)) {
            let settings = Settings::default();
            let mut detector = Detector::new();
            let mut now = 0;
            for jitter in jitters {
                detector.beat(&settings, Score::WELL, at(now));
                now += jitter;
                let suspicion = detector.judge(&settings, Score::WELL, at(now));
                prop_assert_eq!(suspicion.liveness, Liveness::Alive);
            }
        }
    }
}
