//! The proxy: the real policies, wired as the shell wires them, over values instead of sockets.
//!
//! What is code of its own here is what the shell does between two decisions: one request's tries
//! (`src/proxy/attempts.rs`), one try's verdict (`src/proxy/attempt.rs`), who is told of it (`src/cluster/outliers.rs`), and
//! everybody's opinions for the arbiter. The pick, the breakers, ejection, budgets, checks, beats, limits and hedges are
//! `bellwether_core`'s.

mod request;
mod watch;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::arbiter::{Arbiter, Availability, Opinion, Source};
use bellwether_core::balance::{Balancer, Load, MemberSpec};
use bellwether_core::breaker::Force;
use bellwether_core::budget::{Budget, Spent};
use bellwether_core::ejection::{Ejection, Probe};
use bellwether_core::health::{CheckResult, Checks, Initial, Others, Traffic};
use bellwether_core::heartbeat::{self, Beat, Beats, Received, Sender};
use bellwether_core::hedge::Hedge;
use bellwether_core::limit::{Limit, Seat};
use bellwether_core::outlier::{Kind, Member, Referee, Ruling, Tally, Verdict};
use bellwether_core::panic::{self, Panic};
use bellwether_core::phi::{Detector, Liveness};
use bellwether_core::pick::{self, Candidates};
use bellwether_core::pulse::Pulse;
use bellwether_core::self_health::{Score, Signs};
use bellwether_core::slow_start::SlowStart;
use bellwether_core::{Dice, Mode, Moment, Outcome};

use crate::client::Order;
use crate::invariants::{Exile, Held, Ledger, TICK, Watched};
use crate::settings::Settings;
use crate::trace::{Note, Trace};
use crate::world::{Fault, Server, Step};

/// An answer that makes no progress for so long is over.
const IDLE: Duration = Duration::from_secs(5);

/// Everything of one run.
pub struct Sim {
    pub settings: Settings,
    pub trace: RefCell<Trace>,
    pub dice: Dice,
    pub now: Moment,
    pub servers: Vec<Server>,
    pub score: Score,
    pub signs: Signs,
    pub tally: Scores,
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    referee: Referee,
    panic: Panic,
    breaker: Option<Watched>,
    budget: Option<(Arc<Budget>, Ledger)>,
    seats: Arc<Limit>,
    hedge: Hedge,
    begun: u64,
    hedged: u64,
    requests: Vec<Option<Box<Request>>>,
    alive: u32,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    /// Counts among the invariants of a gentle world.
    pub gentle_losses: u32,
    /// No clients come after this.
    pub closes: Moment,
}

/// What came of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scores {
    pub requests: u64,
    pub failed: u64,
    pub retries: u64,
    pub ejections: u64,
    pub openings: u64,
    pub probes: u64,
    pub panics: u64,
    pub hedges: u64,
    /// Retries that the budget did not allow.
    pub vetoed: u64,
    /// Ejections that were withheld.
    pub kept: u64,
}

struct Endpoint {
    arbiter: Arbiter,
    ejection: Arc<Ejection>,
    tally: Tally,
    load: Load,
    pulse: Pulse,
    breaker: Option<RefCell<Watched>>,
    checks: Option<Checks>,
    beats: Beats,
    detector: Detector,
    weight: u32,
    priority: u8,
    exile: RefCell<Exile>,
    /// Attempts begun and not ended, by the books.
    active: u32,
    /// The last failure on our side of the connection, by the books.
    local: Option<Moment>,
}

/// What a probe holds: the right of everybody who waits for it.
struct Rights {
    ejection: Option<(Probe, u64, u64)>,
    breaker: Option<Held>,
}

struct Request {
    order: Order,
    deadline: Moment,
    hurried: bool,
    permit: Option<Held>,
    seat: Option<Seat<Arc<Limit>>>,
    paid: Option<Spent>,
    repeatable: bool,
    attempts: Vec<Attempt>,
    last: Last,
    tried: Vec<usize>,
    spent: u32,
    unseen: u32,
    stale: u32,
    tries: u16,
    again_on: Option<usize>,
    answered_by: Option<usize>,
    /// The answer goes to the client; nothing is tried again.
    forwarded: bool,
    status: u16,
    veto: Option<&'static str>,
    /// How often servers have seen it: what is true, not what the proxy knows.
    seen: u32,
}

enum Last {
    None,
    Answer(Attempt),
    Failure(&'static str),
}

struct Attempt {
    number: u16,
    server: usize,
    started: Moment,
    rights: Rights,
    outcome: Option<Outcome>,
    kind: Kind,
    rtt: Option<Duration>,
    sent: bool,
    first: bool,
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    Arrive,
    Step { request: u32, number: u16, step: Step },
    Deadline(u32),
    PerTry { request: u32, number: u16 },
    Idle { request: u32, number: u16 },
    Leave(u32),
    BackOff(u32),
    Hedge { request: u32, number: u16 },
    Second,
    Check(usize),
    Checked { server: usize, result: CheckResult },
    Beat(usize),
    Nemesis,
    Heal,
}

struct Due {
    at: Moment,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The cluster as one request sees it.
struct View<'a> {
    sim: &'a Sim,
    tried: &'a [usize],
}

impl Candidates for View<'_> {
    type Probe = Rights;
    type Place = ();

    fn count(&self) -> usize {
        self.sim.endpoints.len()
    }

    fn takes_part(&self, index: usize) -> bool {
        self.sim.endpoints[index].weight > 0
    }

    fn availability(&self, index: usize) -> Availability {
        self.sim.endpoints[index].arbiter.availability()
    }

    fn pulse(&self, index: usize) -> &Pulse {
        &self.sim.endpoints[index].pulse
    }

    fn load(&self, index: usize) -> &Load {
        &self.sim.endpoints[index].load
    }

    fn share(&self, index: usize, now: Moment) -> f32 {
        let arbiter = &self.sim.endpoints[index].arbiter;
        let ramp = self.sim.settings.slow_start.map_or(1.0, |window| {
            if arbiter.entered() == Moment::ZERO {
                1.0
            } else {
                SlowStart { window }.factor(arbiter.entered(), now)
            }
        });
        (ramp * arbiter.factor()).max(0.01)
    }

    fn is_tried(&self, index: usize) -> bool {
        self.tried.contains(&index)
    }

    fn is_full(&self, index: usize) -> bool {
        let most = self.sim.settings.max_in_flight_per_endpoint;
        most.is_some_and(|most| self.sim.endpoints[index].load.in_flight() >= most)
    }

    fn take(&self, _: usize) -> Option<()> {
        Some(())
    }

    fn panics(&self) -> bool {
        let settings = &self.sim.settings.panic;
        settings.threshold > 0.0 && pick::census(self).is_panic(settings)
    }

    fn try_probe(&self, index: usize, now: Moment, dice: &mut Dice) -> Option<Rights> {
        let endpoint = &self.sim.endpoints[index];
        let mut rights = Rights {
            ejection: None,
            breaker: None,
        };
        let availability = endpoint.arbiter.availability();
        if availability.is_down_by(Source::Ejection) {
            let settings = &self.sim.settings.outlier.as_ref()?.ejection;
            let probe = endpoint.ejection.try_probe(settings, now)?;
            let mut exile = endpoint.exile.borrow_mut();
            let ticket = exile.probes(settings.probe_timeout, now);
            rights.ejection = Some((probe, exile.epoch, ticket));
        }
        if availability.is_down_by(Source::Breaker) {
            let breaker = endpoint.breaker.as_ref()?;
            let held = breaker
                .borrow_mut()
                .admit(now, dice, &mut self.sim.trace.borrow_mut());
            match held {
                Ok(held) => rights.breaker = Some(held),
                Err(_) => {
                    // Its breaker is not ready: the ejection's slot goes back.
                    if let Some((probe, _, ticket)) = rights.ejection {
                        drop(probe);
                        endpoint.exile.borrow_mut().released(ticket);
                    }
                    return None;
                }
            }
        }
        Some(rights)
    }
}

impl Sim {
    pub fn new(settings: Settings, servers: Vec<Server>, dice: Dice, tail: usize) -> Self {
        let keys: Vec<_> = (0..servers.len()).map(|index| index.to_be_bytes()).collect();
        let specs: Vec<_> = keys
            .iter()
            .zip(&settings.members)
            .map(|(key, &(weight, priority))| MemberSpec {
                weight,
                priority,
                key,
            })
            .collect();
        let endpoints = servers
            .iter()
            .zip(&settings.members)
            .enumerate()
            .map(|(index, (server, &(weight, priority)))| {
                let arbiter = Arbiter::new(Moment::ZERO);
                if !server.listed {
                    arbiter.set(
                        Source::Discovery,
                        Opinion::Down,
                        "gone",
                        String::new(),
                        Moment::ZERO,
                    );
                }
                Endpoint {
                    arbiter,
                    ejection: Arc::default(),
                    tally: Tally::new(settings.window()),
                    load: Load::new(),
                    pulse: Pulse::new(),
                    breaker: settings
                        .endpoint_breaker
                        .clone()
                        .map(|settings| RefCell::new(Watched::new(settings, Some(index)))),
                    checks: settings.checks.map(|_| Checks::new(Initial::Up)),
                    beats: Beats::new(),
                    detector: Detector::new(),
                    weight,
                    priority,
                    exile: RefCell::default(),
                    active: 0,
                    local: None,
                }
            })
            .collect();
        Self {
            balancer: Balancer::new(settings.policy, &specs, 1),
            breaker: settings
                .route_breaker
                .clone()
                .map(|settings| Watched::new(settings, None)),
            budget: settings
                .budget
                .map(|settings| (Arc::new(Budget::new(settings.window)), Ledger::new(settings))),
            settings,
            trace: RefCell::new(Trace::new(tail)),
            dice,
            now: Moment::ZERO,
            servers,
            score: Score::WELL,
            signs: Signs::default(),
            tally: Scores::default(),
            endpoints,
            referee: Referee::new(),
            panic: Panic::new(),
            seats: Arc::default(),
            hedge: Hedge::new(),
            begun: 0,
            hedged: 0,
            requests: Vec::new(),
            alive: 0,
            queue: BinaryHeap::new(),
            order: 0,
            gentle_losses: 0,
            closes: Moment::FAR_FUTURE,
        }
    }

    pub fn schedule(&mut self, after: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due {
            at: self.now.plus(after),
            order: self.order,
            event,
        }));
    }

    /// The next event that is not the proxy's own; `None` when it is quiet after the last client.
    pub fn advance(&mut self) -> Option<Event> {
        loop {
            if self.alive == 0 && self.now >= self.closes {
                return None;
            }
            let Reverse(Due { at, event, .. }) = self.queue.pop()?;
            self.now = at;
            match event {
                Event::Nemesis | Event::Heal => return Some(event),
                Event::Arrive => self.arrive(),
                Event::Step {
                    request,
                    number,
                    step,
                } => self.step(request, number, step),
                Event::Deadline(request) => self.deadline(request),
                Event::PerTry { request, number } => self.per_try(request, number),
                Event::Idle { request, number } => self.idle(request, number),
                Event::Leave(request) => self.leave(request),
                Event::BackOff(request) => self.again(request),
                Event::Hedge { request, number } => self.hedge(request, number),
                Event::Second => self.second(),
                Event::Check(server) => self.check(server),
                Event::Checked { server, result } => self.checked(server, result),
                Event::Beat(server) => self.beat(server),
            }
        }
    }

    pub fn note(&self, note: Note) {
        self.trace.borrow_mut().note(self.now, note);
    }

    /// Those the referee compares: an operator's decisions are none of its business.
    fn compared(&self) -> Vec<usize> {
        (0..self.endpoints.len())
            .filter(|index| {
                let endpoint = &self.endpoints[*index];
                endpoint.weight > 0 && !panic::is_taken_out(endpoint.arbiter.availability())
            })
            .collect()
    }

    fn members(&self, indices: &[usize]) -> Vec<Member<'_>> {
        let member = |index: &usize| {
            let endpoint = &self.endpoints[*index];
            let availability = endpoint.arbiter.availability();
            Member {
                tally: &endpoint.tally,
                ejection: &endpoint.ejection,
                group: endpoint.priority.into(),
                available: availability.is_available() || availability.is_removed_only_by(Source::Ejection),
                recent: None,
            }
        };
        indices.iter().map(member).collect()
    }

    fn announce(&mut self, indices: &[usize], verdict: &Verdict) {
        let server = indices[verdict.index];
        let why = verdict.finding.detector();
        match verdict.ruling {
            Ruling::Ejected(ejected) => {
                self.mind_ejection(server, indices);
                self.endpoints[server].exile.borrow_mut().ejected(&ejected);
                self.tally.ejections += 1;
                let nth = ejected.nth;
                self.note(Note::Ejected { server, nth, why });
            }
            Ruling::WouldEject(_) => {
                let observes = self
                    .settings
                    .outlier
                    .as_ref()
                    .is_some_and(|s| s.mode == Mode::Observe);
                assert!(observes, "only who observes would eject");
                self.note(Note::Kept {
                    server,
                    why: "observed",
                });
            }
            Ruling::Withheld(reason) => {
                self.tally.kept += 1;
                let why = reason.name();
                self.note(Note::Kept { server, why });
            }
        }
        self.sync_ejection(server);
    }

    fn sync_ejection(&self, server: usize) {
        let endpoint = &self.endpoints[server];
        endpoint.arbiter.set_to(Source::Ejection, self.now, || {
            let out = endpoint.ejection.is_out() && !endpoint.ejection.is_shadow();
            let opinion = if out { Opinion::Down } else { Opinion::Up };
            (opinion, "outlier", String::new())
        });
        let out = endpoint.exile.borrow().until.is_some();
        let said = endpoint.arbiter.availability().is_down_by(Source::Ejection);
        assert_eq!(out, said, "the arbiter knows who is ejected");
    }

    fn sync_breaker(&self, server: usize) {
        let endpoint = &self.endpoints[server];
        let Some(breaker) = &endpoint.breaker else { return };
        let refuses = breaker.borrow().refuses();
        if refuses != endpoint.arbiter.availability().is_down_by(Source::Breaker) {
            let opinion = if refuses { Opinion::Down } else { Opinion::Up };
            endpoint
                .arbiter
                .set(Source::Breaker, opinion, "breaker", String::new(), self.now);
        }
    }

    fn say(&self, server: usize, source: Source, opinion: Opinion) {
        let change = self.endpoints[server]
            .arbiter
            .set(source, opinion, "sim", String::new(), self.now);
        if change.before != change.after {
            self.note(Note::Said {
                server,
                by: source.name(),
                what: opinion.name(),
            });
        }
    }

    /// Everything that happens once a second.
    fn second(&mut self) {
        self.schedule(TICK, Event::Second);
        self.score = self.score.after(&self.signs);
        let (now, mut dice) = (self.now, self.dice.split());
        if let Some(breaker) = &mut self.breaker {
            breaker.tick(now, &mut dice, self.trace.get_mut());
        }
        for index in 0..self.endpoints.len() {
            if let Some(breaker) = &self.endpoints[index].breaker {
                let trace = &mut self.trace.borrow_mut();
                breaker.borrow_mut().tick(now, &mut dice, trace);
            }
            self.sync_breaker(index);
            self.listen(index);
        }
        self.sweep(&mut dice);
        self.mind_the_arbiters();
    }

    fn sweep(&mut self, dice: &mut Dice) {
        let Some(settings) = &self.settings.outlier else {
            return;
        };
        let indices = self.compared();
        let report = self
            .referee
            .sweep(settings, &self.members(&indices), self.score, self.now, dice);
        for verdict in &report.verdicts {
            self.announce(&indices, verdict);
        }
        for place in report.returned {
            // Only shadows return by time; nobody was missing.
            self.sync_ejection(indices[place]);
        }
    }

    /// What an endpoint's beats and their absence mean.
    fn listen(&mut self, index: usize) {
        let Some(settings) = self.settings.beats else {
            return;
        };
        let (now, score) = (self.now, self.score);
        let endpoint = &mut self.endpoints[index];
        let liveness = endpoint.detector.judge(&settings, score, now).liveness;
        let agent = endpoint.beats.opinion(now);
        endpoint
            .arbiter
            .set_share(endpoint.beats.share(endpoint.weight, now));
        let beat = match liveness {
            Liveness::Unknown => Opinion::Unknown,
            Liveness::Alive => Opinion::Up,
            Liveness::Degraded => Opinion::Degraded,
            Liveness::Dead => Opinion::Down,
        };
        self.say(index, Source::Heartbeat, beat);
        self.say(index, Source::Agent, agent);
    }

    fn beat(&mut self, index: usize) {
        let Some(settings) = self.settings.beats else {
            return;
        };
        let pause = settings.interval.mul_f64(0.95 + 0.1 * self.dice.unit());
        self.schedule(pause, Event::Beat(index));
        let server = &mut self.servers[index];
        if !server.lives() || server.muted || !server.listed {
            return;
        }
        server.seq += 1;
        let beat = Beat {
            incarnation: server.incarnation,
            seq: server.seq,
            state: server.wants,
            weight: None,
            load: None,
            max_in_flight: None,
            ttl: None,
        };
        let endpoint = &mut self.endpoints[index];
        let received = heartbeat::receive(Some(&mut endpoint.beats), Sender::Verified, &beat, self.now);
        assert_eq!(received, Received::Accepted, "a newer beat is believed");
        endpoint.detector.beat(&settings, self.score, self.now);
        if self.dice.chance(0.1) {
            // The network repeats itself, and somebody lies.
            let endpoint = &mut self.endpoints[index];
            let before = endpoint.beats.clone();
            let again = heartbeat::receive(Some(&mut endpoint.beats), Sender::Verified, &beat, self.now);
            assert_eq!(again, Received::Stale, "a beat counts once");
            let down = Beat {
                state: heartbeat::State::Down,
                seq: beat.seq + 1_000,
                ..beat
            };
            let forged = heartbeat::receive(Some(&mut endpoint.beats), Sender::Forged, &down, self.now);
            assert_eq!(forged, Received::Forged, "a forged beat is refused");
            assert_eq!(before, endpoint.beats, "what is not believed changes nothing");
        }
    }

    fn check(&mut self, index: usize) {
        let Some(settings) = self.settings.checks else {
            return;
        };
        let endpoint = &mut self.endpoints[index];
        let Some(checks) = &mut endpoint.checks else {
            return;
        };
        let traffic = if endpoint.pulse.answered_within(settings.interval, self.now) {
            Traffic::Answered
        } else {
            Traffic::Silent
        };
        if !self.servers[index].listed || checks.skip(traffic) {
            let pause = checks.pause(&settings, &mut self.dice);
            return self.schedule(pause, Event::Check(index));
        }
        let timeout = settings.timeout(self.score);
        let (after, result) = self.servers[index].check(timeout, self.now);
        let cancelled = self.dice.chance(0.02);
        let result = if cancelled { CheckResult::Cancelled } else { result };
        self.schedule(
            after,
            Event::Checked {
                server: index,
                result,
            },
        );
    }

    fn checked(&mut self, index: usize, result: CheckResult) {
        let Some(settings) = self.settings.checks else {
            return;
        };
        self.note(Note::Checked {
            server: index,
            result: result.name(),
        });
        let others = match self.somebody_but(index) {
            true => Others::Available,
            false => Others::None,
        };
        let Some(checks) = &mut self.endpoints[index].checks else {
            return;
        };
        checks.apply(&settings, result, others);
        let used = checks.verdict().is_used();
        let pause = checks.pause(&settings, &mut self.dice);
        self.say(
            index,
            Source::Check,
            if used { Opinion::Up } else { Opinion::Down },
        );
        self.schedule(pause, Event::Check(index));
    }

    /// Whether anybody else is in service.
    fn somebody_but(&self, index: usize) -> bool {
        (0..self.endpoints.len())
            .any(|other| other != index && self.endpoints[other].arbiter.availability().is_available())
    }

    // --- What people and the world do to it ---

    pub fn set_fault(&mut self, server: usize, fault: Fault) {
        let now = self.now;
        self.servers[server].set(fault, now);
        self.note(Note::Fault { server, fault });
        if fault == Fault::Dead {
            self.break_connections(server);
        }
    }

    /// A new process: connections end, pooled ones are stale.
    pub fn restart(&mut self, server: usize) {
        self.set_fault(server, Fault::Dead);
        self.set_fault(server, Fault::None);
        let now = self.now;
        self.servers[server].restarted(now);
    }

    fn break_connections(&mut self, server: usize) {
        let mut broken = Vec::new();
        for (id, request) in self.requests.iter().enumerate() {
            let Some(request) = request else { continue };
            for attempt in request.attempts.iter().filter(|attempt| attempt.server == server) {
                let step = if attempt.rtt.is_some() {
                    Step::Cut
                } else {
                    Step::Reset
                };
                broken.push((id as u32, attempt.number, step));
            }
        }
        for (request, number, step) in broken {
            self.schedule(
                Duration::ZERO,
                Event::Step {
                    request,
                    number,
                    step,
                },
            );
        }
    }

    pub fn drain(&mut self, server: usize, drained: bool) {
        self.servers[server].drained = drained;
        let opinion = match drained {
            true if self.dice.chance(0.5) => Opinion::Draining,
            true => Opinion::Down,
            false => Opinion::Up,
        };
        self.say(server, Source::Admin, opinion);
    }

    pub fn list(&mut self, server: usize, listed: bool) {
        if self.servers[server].listed == listed {
            return;
        }
        self.servers[server].listed = listed;
        if listed && self.endpoints[server].checks.is_some() {
            // It joins: it waits for its first check if others can do the work meanwhile.
            let others = match self.somebody_but(server) {
                true => Others::Available,
                false => Others::None,
            };
            let initial = Initial::beside(others);
            self.endpoints[server].checks = Some(Checks::new(initial));
            let used = initial == Initial::Up;
            self.say(
                server,
                Source::Check,
                if used { Opinion::Unknown } else { Opinion::Down },
            );
        }
        self.say(
            server,
            Source::Discovery,
            if listed { Opinion::Up } else { Opinion::Down },
        );
    }

    pub fn order(&mut self, force: Option<Force>, length: Duration) {
        let (now, until) = (self.now, self.now.plus(length));
        if let Some(breaker) = &mut self.breaker {
            match force {
                Some(force) => breaker.force(force, until, now, self.trace.get_mut()),
                None => breaker.invite(now, self.trace.get_mut()),
            }
        }
    }
}
