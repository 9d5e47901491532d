//! Heartbeats as the rest of the proxy sees them: what an endpoint says of itself, and what its silence means.
//!
//! Two opinions come from here. *Agent* is the endpoint's own word, from a pushed beat or from a field of an answer
//! ([`crate::message::fail`]). *Heartbeat* is what the detector makes of signs of life and of their absence. Both are
//! decided by the core ([`bellwether_core::heartbeat`], [`bellwether_core::phi`]); what is known lies with the endpoint.
//!
//! What must stay true: of the members that the detector takes out there are never more than ejection may take, counted
//! apart; and one that is told to be dead by a proxy that is itself unwell stays in.

use std::time::Duration;

use bellwether_core::Moment;
use bellwether_core::arbiter::{Opinion, Source};
use bellwether_core::heartbeat::{self, Beat, Received, Sender, State};
use bellwether_core::outlier::Cap;
use bellwether_core::phi::{self, Detector, Liveness, Suspicion};

use super::Cluster;
use super::health::{Said, reason};
use super::outliers::Witness;
use crate::telemetry::HeartbeatResult;

/// How the members of a cluster are watched for signs of life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What counts as a sign.
    pub signs: Signs,
    /// How silence is judged.
    pub phi: phi::Settings,
    /// The share of members that may be out for it.
    pub max_percent: f64,
}

/// What counts as a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signs {
    /// Whatever comes.
    Any,
    /// An answer to a probe of our own.
    Probe,
    /// A beat that the endpoint pushes.
    Push,
    /// An answer to a request.
    Traffic,
}

impl Signs {
    /// Whether an answer to a request counts.
    pub const fn hears_traffic(self) -> bool {
        matches!(self, Self::Any | Self::Traffic)
    }

    /// Whether a pushed beat counts.
    pub const fn hears_beats(self) -> bool {
        matches!(self, Self::Any | Self::Push)
    }

    /// Whether an answer to a probe, or to a check, counts.
    pub const fn hears_probes(self) -> bool {
        matches!(self, Self::Any | Self::Probe)
    }
}

/// The signs of life of one endpoint.
#[derive(Debug, Default)]
pub struct Watched {
    detector: Detector,
    /// When it last answered a request, as of the last look.
    answered: Option<Moment>,
    /// Attempts begun, as of the last look.
    picks: u64,
}

impl Cluster {
    /// Whether an endpoint is to be probed that has been silent for an interval. Who is out and lives by requests gets
    /// none; nothing else would bring it back.
    pub fn is_probed(&self, index: usize, settings: &Settings, now: Moment) -> bool {
        let endpoint = &self.endpoints[index];
        let Settings { signs, phi, .. } = settings;
        let spoke = signs.hears_traffic() && endpoint.state.pulse.answered_within(phi.interval, now);
        self.hears_probes(index, settings) && !spoke && endpoint.weight > 0
    }

    /// An endpoint is alive: by an answer to a probe or a check.
    pub fn is_alive(&self, index: usize, witness: Witness<'_>) {
        if let Some(settings) = &self.settings.heartbeat
            && self.hears_probes(index, settings)
        {
            let mut watched = self.endpoints[index].state.watched.lock();
            watched.detector.beat(&settings.phi, witness.score, witness.now);
        }
    }

    fn hears_probes(&self, index: usize, settings: &Settings) -> bool {
        let is_out = self.endpoints[index]
            .state
            .availability()
            .is_down_by(Source::Heartbeat);
        settings.signs.hears_probes() || (settings.signs == Signs::Traffic && is_out)
    }

    /// Takes a pushed beat.
    pub fn receive(&self, index: usize, sender: Sender, beat: &Beat, witness: Witness<'_>) -> Received {
        let endpoint = &self.endpoints[index];
        let received = {
            let mut beats = endpoint.state.beats.lock();
            heartbeat::receive(Some(&mut beats), sender, beat, witness.now)
        };
        self.metrics
            .heartbeat_received(witness.worker, HeartbeatResult::from(received));
        if received == Received::Accepted {
            if let Some(settings) = &self.settings.heartbeat {
                let mut watched = endpoint.state.watched.lock();
                watched.detector.beat(&settings.phi, witness.score, witness.now);
            }
            self.heed(index, witness);
        }
        received
    }

    /// An endpoint said this of itself in an answer; that holds for `ttl`.
    pub fn hear(&self, index: usize, word: State, ttl: Duration, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        {
            let mut beats = endpoint.state.beats.lock();
            if word == State::Up && beats.heard(witness.now).is_none() {
                return;
            }
            beats.hear(word, ttl, witness.now);
        }
        self.heed(index, witness);
    }

    /// Shows the arbiter what the endpoint says of itself at this moment: what it said may be over.
    pub fn heed(&self, index: usize, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        let now = witness.now;
        let beats = &endpoint.state.beats;
        {
            let beats = beats.lock();
            endpoint
                .state
                .arbiter
                .set_share(beats.share(endpoint.weight, now));
            endpoint.state.ask_at_most(beats.max_in_flight(now));
        }
        self.voice(index, Source::Agent, witness, || {
            let beats = beats.lock();
            let opinion = beats.opinion(now);
            let word = match opinion {
                Opinion::Unknown => reason::AGENT_SILENT,
                Opinion::Up | Opinion::Degraded => reason::AGENT_UP,
                Opinion::Draining => reason::AGENT_DRAIN,
                Opinion::Down => reason::AGENT_DOWN,
            };
            (opinion, word, words(&beats, now))
        });
    }

    /// Judges the silence of everybody. To be called once per interval of the detector.
    pub fn judge_silence(&self, settings: &Settings, witness: Witness<'_>) {
        let mut greatest = 1.0f32;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            self.heed(index, witness);
            greatest = greatest.max(endpoint.state.arbiter.share());
            let suspicion = self.listen(index, settings, witness);
            endpoint.metrics.set_phi(Some(suspicion.phi));
            self.suspect(index, settings, &suspicion, witness);
        }
        self.state.set_greatest_share(greatest);
    }

    /// Feeds the detector what requests have shown, and asks it.
    fn listen(&self, index: usize, settings: &Settings, witness: Witness<'_>) -> Suspicion {
        let Witness { score, now, .. } = witness;
        let state = &self.endpoints[index].state;
        let mut watched = state.watched.lock();
        let Watched {
            detector,
            answered,
            picks,
        } = &mut *watched;
        let asked = std::mem::replace(picks, state.load.picks()) != state.load.picks();
        let last = state.pulse.answered();
        let has_answered = std::mem::replace(answered, last) != last;
        match (settings.signs.hears_traffic(), last) {
            (true, Some(at)) if has_answered => detector.beat(&settings.phi, score, at),
            (true, _) if settings.signs == Signs::Traffic && !asked && state.load.in_flight() == 0 => {
                detector.excuse(now);
            }
            _ => {}
        }
        detector.judge(&settings.phi, score, now)
    }

    fn suspect(&self, index: usize, settings: &Settings, suspicion: &Suspicion, witness: Witness<'_>) {
        let endpoint = &self.endpoints[index];
        let was_out = endpoint.state.availability().is_down_by(Source::Heartbeat);
        let (opinion, word) = match suspicion.liveness {
            Liveness::Unknown => (Opinion::Unknown, reason::HEARTBEAT_NONE),
            Liveness::Alive => (Opinion::Up, reason::HEARTBEAT_FINE),
            Liveness::Degraded => (Opinion::Degraded, reason::HEARTBEAT_LATE),
            Liveness::Dead if was_out => (Opinion::Down, reason::HEARTBEAT_LOST),
            Liveness::Dead if witness.score.suspends() => (Opinion::Degraded, reason::HEARTBEAT_UNSURE),
            Liveness::Dead if !self.may_go(index, settings) => (Opinion::Degraded, reason::HEARTBEAT_KEPT),
            Liveness::Dead => (Opinion::Down, reason::HEARTBEAT_LOST),
        };
        let evidence = format!(
            "phi {:.1}, silent for {:.1} s",
            suspicion.phi,
            suspicion.silence.as_secs_f64()
        );
        let said = Said {
            source: Source::Heartbeat,
            opinion,
            reason: word,
            evidence,
        };
        self.say(index, said, witness);
    }

    /// Whether one more may be out for its silence.
    fn may_go(&self, index: usize, settings: &Settings) -> bool {
        let priority = self.endpoints[index].priority;
        let group = || {
            self.endpoints
                .iter()
                .filter(move |e| e.priority == priority && e.weight > 0)
        };
        let out = group()
            .filter(|e| e.state.availability().is_down_by(Source::Heartbeat))
            .count();
        // Who is unavailable anyway takes nobody's place by going.
        let left =
            group().filter(|e| e.is_usable()).count() + usize::from(!self.endpoints[index].is_usable());
        Cap::new(group().count(), settings.max_percent)
            .admit(out, left)
            .is_ok()
    }

    /// Nobody is watched any more: opinions end.
    pub fn stop_watching(&self, witness: Witness<'_>) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            *endpoint.state.watched.lock() = Watched::default();
            endpoint.metrics.set_phi(None);
            if endpoint.state.availability().opinion_of(Source::Heartbeat) != Opinion::Up {
                let said = Said {
                    source: Source::Heartbeat,
                    opinion: Opinion::Unknown,
                    reason: reason::HEARTBEAT_OFF,
                    evidence: String::new(),
                };
                self.say(index, said, witness);
            }
        }
        self.state.set_greatest_share(1.0);
    }
}

/// What an endpoint said, for people.
fn words(beats: &heartbeat::Beats, now: Moment) -> String {
    let mut words = Vec::new();
    if let Some(beat) = beats.current(now) {
        let mut word = format!("beat {} of {}: {}", beat.seq, beat.incarnation, beat.state.name());
        match beat.weight {
            Some(heartbeat::Weight::Absolute(weight)) => word += &format!(", weight {weight}"),
            Some(heartbeat::Weight::Percent(percent)) => word += &format!(", weight {percent} %"),
            None => {}
        }
        if let Some(load) = beat.load {
            word += &format!(", load {load:.2}");
        }
        if let Some(most) = beat.max_in_flight {
            word += &format!(", at most {most} at a time");
        }
        words.push(word);
    }
    if let Some(state) = beats.heard(now) {
        words.push(format!("in an answer: {}", state.name()));
    }
    words.join("; ")
}
