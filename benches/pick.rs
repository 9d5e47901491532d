//! What choosing an endpoint costs per attempt, for every policy with 3, 30 and 3000 endpoints.
//!
//! Run with `cargo bench --bench pick`. The usual pick asks two members and must cost the same for 3 and for 3000; the
//! rows with most members ineligible show what the exception costs.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up should stop")]

mod measure;

use std::hint::black_box;
use std::time::Duration;

use bellwether_core::balance::{Balancer, Load, MemberSpec, Members, Policy};
use bellwether_core::{Dice, Moment, Outcome};
use measure::measure;

const POLICIES: [Policy; 6] = [
    Policy::RoundRobin,
    Policy::Random,
    Policy::LeastRequest,
    Policy::PeakEwma,
    Policy::RingHash,
    Policy::Maglev,
];

struct Endpoints {
    loads: Vec<Load>,
    /// Members below this index may not be used.
    first_eligible: usize,
}

impl Members for Endpoints {
    fn load(&self, index: usize) -> &Load {
        &self.loads[index]
    }

    fn eligible(&self, index: usize) -> bool {
        index >= self.first_eligible
    }
}

fn main() {
    let mut dice = Dice::new(7);
    for count in [3, 30, 3_000] {
        let mut endpoints = endpoints(count);
        let keys: Vec<String> = (0..count)
            .map(|n| format!("10.0.{}.{}:80", n / 250, n % 250))
            .collect();
        let specs: Vec<MemberSpec<'_>> = keys
            .iter()
            .map(|key| MemberSpec {
                weight: 1,
                priority: 0,
                key: key.as_bytes(),
            })
            .collect();
        let now = Moment::ZERO.plus(Duration::from_secs(60));
        for policy in POLICIES {
            let balancer = Balancer::new(policy, &specs, 1);
            let mut hash = 0_u64;
            let mut pick = |endpoints: &Endpoints| {
                hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                balancer.pick(endpoints, Some(black_box(hash)), now, &mut dice)
            };
            endpoints.first_eligible = 0;
            measure(&format!("{} of {count}", policy.name()), || pick(&endpoints));
            endpoints.first_eligible = count - 1;
            assert_eq!(pick(&endpoints), Some(count - 1));
            if count <= 30 {
                measure(&format!("{} of {count}, one eligible", policy.name()), || {
                    pick(&endpoints)
                });
            }
        }
    }

    let load = Load::new();
    let mut now = Moment::ZERO;
    measure("recording an attempt: begin and finish", || {
        now = now.plus(Duration::from_micros(20));
        load.begin(Moment::ZERO);
        load.finish(Duration::from_micros(800), Outcome::Success, now);
    });
}

/// Members with a past, each a little slower than the one before.
fn endpoints(count: usize) -> Endpoints {
    let loads = (0..count)
        .map(|n| {
            let load = Load::new();
            for second in 1..=20 {
                load.begin(Moment::ZERO);
                let rtt = Duration::from_micros(500 + n as u64);
                load.finish(
                    rtt,
                    Outcome::Success,
                    Moment::ZERO.plus(Duration::from_secs(second)),
                );
            }
            load
        })
        .collect();
    Endpoints {
        loads,
        first_eligible: 0,
    }
}
