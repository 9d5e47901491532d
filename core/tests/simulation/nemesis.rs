//! What goes wrong, when; and the mending.

use std::time::Duration;

use bellwether_core::breaker::Force;
use bellwether_core::heartbeat;
use bellwether_core::self_health::Signs;
use bellwether_core::{Dice, Moment};

use crate::invariants::TICK;
use crate::proxy::{Event, Sim};
use crate::settings::{Settings, of};
use crate::world::{Fault, Server};

/// Requests that come while things go wrong, about: slow worlds last longer.
const REQUESTS: f64 = 900.0;
/// Clients come at this rate while the world recovers.
const CALM: f64 = 6.0;
/// How many GETs one fault of one endpoint may cost for lack of budget.
const LOSSES: u32 = 40;

/// The world of a seed, in which nothing has happened.
pub fn world(dice: &mut Dice, tail: usize) -> Sim {
    let settings = Settings::draw(dice);
    let size = settings.members.len();
    let servers = (0..size)
        .map(|index| {
            let pace = Duration::from_millis(u64::from(2 + dice.below(30)));
            let listed = settings.gentle || index == 0 || dice.chance(0.9);
            Server::new(pace, listed)
        })
        .collect();
    Sim::new(settings, servers, dice.split(), tail)
}

/// All of it.
pub fn run(sim: &mut Sim) {
    let storm = Duration::from_secs_f64((REQUESTS / sim.settings.clients.rate).clamp(30.0, 240.0));
    let recovery = sim.settings.recovery();
    sim.schedule(Duration::ZERO, Event::Arrive);
    sim.schedule(TICK, Event::Second);
    for server in 0..sim.servers.len() {
        if let Some(checks) = sim.settings.checks {
            let first = checks.first_pause(&mut sim.dice);
            sim.schedule(first, Event::Check(server));
        }
        if sim.settings.beats.is_some() {
            let phase = Duration::from_secs_f64(sim.dice.unit());
            sim.schedule(phase, Event::Beat(server));
        }
    }
    let first = pause(sim, storm);
    sim.schedule(first, Event::Nemesis);
    sim.schedule(storm, Event::Heal);
    let mut faults = 0;
    while let Some(event) = sim.advance() {
        if let Event::Heal = event {
            heal(sim);
            sim.closes = sim.now.plus(recovery);
        } else if sim.closes == Moment::FAR_FUTURE {
            faults += 1;
            if sim.settings.gentle {
                strike_gently(sim);
            } else {
                strike(sim);
            }
            let pause = pause(sim, storm);
            sim.schedule(pause, Event::Nemesis);
        }
    }
    assert!(
        sim.gentle_losses <= LOSSES * (faults + 1),
        "a GET finds the endpoints that are well: {} of {faults} faults failed",
        sim.gentle_losses
    );
    sim.mind_the_end();
}

fn pause(sim: &mut Sim, storm: Duration) -> Duration {
    storm.mul_f64((0.2 + 1.6 * sim.dice.unit()) / 12.0)
}

/// One endpoint is unwell, or none.
fn strike_gently(sim: &mut Sim) {
    if let Some(unwell) = sim.servers.iter().position(|server| !server.is_well()) {
        return sim.set_fault(unwell, Fault::None);
    }
    // No request meets two of them.
    let apart = sim.settings.timeout + TICK;
    let lately = |server: &Server| {
        let unwell = server.last_unwell(sim.now);
        unwell > Moment::ZERO && sim.now.since(unwell) < apart
    };
    if sim.servers.iter().any(lately) {
        return;
    }
    let server = any(sim);
    if sim.dice.chance(0.1) {
        return sim.restart(server);
    }
    let fault = Fault::draw(&mut sim.dice);
    sim.set_fault(server, fault);
}

fn strike(sim: &mut Sim) {
    let server = any(sim);
    match sim.dice.below(100) {
        0..45 => {
            let fault = Fault::draw(&mut sim.dice);
            sim.set_fault(server, fault);
        }
        45..60 => sim.set_fault(server, Fault::None),
        60..70 => {
            // Several, in the same way.
            let fault = Fault::draw(&mut sim.dice);
            for server in 0..sim.servers.len() {
                if sim.dice.chance(0.6) {
                    sim.set_fault(server, fault);
                }
            }
        }
        70..75 => sim.restart(server),
        75..82 => {
            let listed = !sim.servers[server].listed;
            sim.list(server, listed);
        }
        82..88 => {
            let drained = !sim.servers[server].drained;
            sim.drain(server, drained);
        }
        88..92 => {
            let force = *of(&mut sim.dice, &[Some(Force::Open), Some(Force::Closed), None]);
            let length = Duration::from_millis(u64::from(sim.dice.below(10_000)));
            sim.order(force, length);
        }
        92..95 => {
            let lag = sim.signs.lag.is_zero();
            sim.signs = Signs {
                lag: Duration::from_millis(if lag { 400 } else { 0 }),
                throttled: if lag { 0.5 } else { 0.0 },
                ..Signs::default()
            };
        }
        95..98 => sim.servers[server].muted ^= true,
        _ => {
            let (drain, down) = (heartbeat::State::Drain, heartbeat::State::Down);
            sim.servers[server].wants = *of(&mut sim.dice, &[heartbeat::State::Up, drain, down]);
        }
    }
}

/// The end of all that.
fn heal(sim: &mut Sim) {
    sim.signs = Signs::default();
    sim.settings.clients.rate = CALM;
    for server in 0..sim.servers.len() {
        sim.set_fault(server, Fault::None);
        sim.list(server, true);
        sim.drain(server, false);
        sim.servers[server].muted = false;
        sim.servers[server].wants = heartbeat::State::Up;
    }
}

fn any(sim: &mut Sim) -> usize {
    sim.dice.below(sim.servers.len() as u32) as usize
}
