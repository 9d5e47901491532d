//! What the proxy of one run is configured with: anything that the configuration would accept, drawn from the seed.

use std::num::NonZeroU32;
use std::time::Duration;

use bellwether_core::balance::Policy;
use bellwether_core::{Dice, Mode, breaker, budget, ejection, health, hedge, outlier, panic, phi};

use crate::client::Clients;

#[derive(Debug, Clone)]
pub struct Settings {
    /// One endpoint at a time is unwell, and nothing else happens: then hardly a GET may fail.
    pub gentle: bool,
    /// Weight and priority of each endpoint.
    pub members: Vec<(u32, u8)>,
    pub policy: Policy,
    pub clients: Clients,
    pub timeout: Duration,
    pub retry: Retry,
    pub budget: Option<budget::Settings>,
    pub route_breaker: Option<breaker::Settings>,
    pub endpoint_breaker: Option<breaker::Settings>,
    pub outlier: Option<outlier::Settings>,
    pub checks: Option<health::Settings>,
    pub beats: Option<phi::Settings>,
    pub panic: panic::Settings,
    pub slow_start: Option<Duration>,
    pub hedge: Option<(hedge::Delay, f64)>,
    pub max_in_flight: Option<u32>,
    pub max_in_flight_per_endpoint: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub num_retries: u32,
    pub server_error: bool,
    pub on_429: bool,
    pub per_try: bool,
    pub retry_after_max: Duration,
}

impl Settings {
    pub fn draw(dice: &mut Dice) -> Self {
        let gentle = dice.chance(0.3);
        let size = if gentle {
            3 + dice.below(5)
        } else {
            1 + dice.below(8)
        };
        let tiers = !gentle && dice.chance(0.2);
        let weighted = dice.chance(0.3);
        let members = (0..size)
            .map(|_| {
                let weight = if weighted { 1 + dice.below(4) } else { 1 };
                let priority = if tiers { dice.below(2) as u8 } else { 0 };
                (weight, priority)
            })
            .collect();
        let wild = |dice: &mut Dice, share: f64| !gentle && dice.chance(share);
        let timeout = millis(*of(dice, &[1_000, 2_000, 5_000]));
        Self {
            gentle,
            members,
            policy: *of(
                dice,
                &[
                    Policy::PeakEwma,
                    Policy::PeakEwma,
                    Policy::RoundRobin,
                    Policy::Random,
                    Policy::LeastRequest,
                    Policy::RingHash,
                    Policy::Maglev,
                ],
            ),
            clients: Clients::draw(dice),
            timeout,
            retry: Retry {
                num_retries: *of(dice, &[0, 1, 1, 1, 2, 3]),
                server_error: dice.chance(0.3),
                on_429: dice.chance(0.3),
                per_try: gentle || dice.chance(0.7),
                retry_after_max: seconds(*of(dice, &[0, 1, 3])),
            },
            budget: dice.chance(0.9).then(|| budget::Settings {
                share: *of(dice, &[0.0, 0.1, 0.2, 0.2, 0.5]),
                per_second: *of(dice, &[0, 1, 3, 3]),
                window: seconds(*of(dice, &[1, 10])),
            }),
            route_breaker: dice.chance(0.8).then(|| breaker::Settings {
                mode: mode(dice),
                // One endpoint of three is no reason to break the route of a gentle world.
                failure_rate: Some(if gentle { 0.95 } else { *of(dice, &[0.3, 0.5, 0.9]) }),
                consecutive: wild(dice, 0.3).then_some(8),
                min_requests: if gentle { 20 } else { *of(dice, &[5, 20, 20]) },
                window: seconds(*of(dice, &[1, 10, 10])),
                open: seconds(*of(dice, &[1, 5])),
                max_open: seconds(*of(dice, &[5, 30])),
                probes: 1 + dice.below(3),
                max_in_flight: 1 + dice.below(2),
                // Of the same length as the longest request, or shorter.
                probe_timeout: *of(dice, &[timeout, timeout + seconds(10), millis(700)]),
                ramp: dice.chance(0.7).then(|| seconds(*of(dice, &[2, 10]))),
                ..breaker::Settings::default()
            }),
            endpoint_breaker: wild(dice, 0.4).then(|| breaker::Settings {
                mode: mode(dice),
                consecutive: Some(*of(dice, &[3, 5])),
                open: seconds(*of(dice, &[1, 5])),
                max_open: seconds(*of(dice, &[5, 30])),
                probes: 1 + dice.below(3),
                probe_timeout: *of(dice, &[timeout + seconds(10), millis(700)]),
                // Slow start is the ramp of an endpoint.
                ramp: None,
                ..breaker::Settings::default()
            }),
            outlier: dice.chance(0.9).then(|| outlier::Settings {
                mode: mode(dice),
                consecutive_gateway_errors: NonZeroU32::new(*of(dice, &[3, 5, 5])),
                consecutive_local_errors: NonZeroU32::new(*of(dice, &[0, 3, 3, 5])),
                consecutive_5xx: NonZeroU32::new(*of(dice, &[0, 0, 5])),
                failure_rate: dice.chance(0.8).then_some(0.5),
                relative: dice.chance(0.8).then(outlier::Relative::default),
                window: seconds(*of(dice, &[5, 30])),
                max_ejection_percent: *of(dice, &[0.1, 0.5, 0.5, 1.0]),
                ejection: ejection::Settings {
                    base: seconds(*of(dice, &[1, 5])),
                    max: seconds(*of(dice, &[10, 30])),
                    probe_timeout: *of(dice, &[seconds(30), millis(700)]),
                    ..ejection::Settings::default()
                },
                ..outlier::Settings::default()
            }),
            checks: dice.chance(0.6).then(|| health::Settings {
                interval: seconds(*of(dice, &[1, 5])),
                timeout: millis(*of(dice, &[500, 2_000])),
                ..health::Settings::default()
            }),
            beats: wild(dice, 0.3).then(|| phi::Settings {
                timeout: dice.chance(0.3).then_some(seconds(4)),
                ..phi::Settings::default()
            }),
            panic: panic::Settings {
                threshold: if wild(dice, 0.2) { 0.5 } else { 0.0 },
                to: if wild(dice, 0.1) {
                    panic::To::Reject
                } else {
                    panic::To::All
                },
            },
            slow_start: dice.chance(0.5).then_some(seconds(10)),
            hedge: dice.chance(0.3).then(|| {
                let delay = *of(
                    dice,
                    &[
                        hedge::Delay::Quantile(0.95),
                        hedge::Delay::After(Duration::from_millis(50)),
                    ],
                );
                (delay, *of(dice, &[0.05, 0.2]))
            }),
            max_in_flight: wild(dice, 0.3).then(|| 1 + dice.below(30)),
            max_in_flight_per_endpoint: wild(dice, 0.3).then(|| 1 + dice.below(10)),
        }
    }

    /// What tallies look back over.
    pub fn window(&self) -> Duration {
        self.outlier
            .as_ref()
            .map_or(seconds(30), |outlier| outlier.window)
    }

    /// After so long in a world without faults everything must be as if nothing had been: what was begun ends, what it
    /// ended in leaves the windows, the longest time out passes twice (an ejection and its breaker, or the route's, one after
    /// the other), and then a few requests have to come by, through a ramp.
    pub fn recovery(&self) -> Duration {
        let breakers = [&self.route_breaker, &self.endpoint_breaker];
        let open = breakers
            .into_iter()
            .flatten()
            .map(|breaker| breaker.max_open + breaker.window)
            .max();
        let out = self.outlier.as_ref().map(|outlier| outlier.ejection.max);
        let waits = open.unwrap_or_default() + out.unwrap_or_default();
        self.timeout + self.window() + waits + seconds(45)
    }
}

fn mode(dice: &mut Dice) -> Mode {
    if dice.chance(0.15) {
        Mode::Observe
    } else {
        Mode::Enforce
    }
}

pub fn of<'a, T>(dice: &mut Dice, choices: &'a [T]) -> &'a T {
    &choices[dice.below(choices.len() as u32) as usize]
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
