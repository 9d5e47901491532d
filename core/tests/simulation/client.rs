//! Clients: they come when they come, whatever the service does, and some of them leave.

use std::time::Duration;

use bellwether_core::Dice;

/// Who comes, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// Requests a second.
    pub rate: f64,
    /// The share of requests that must not be sent twice.
    pub posts: f64,
    /// The share that leaves before the answer.
    pub leavers: f64,
    /// The share that gives hardly any time.
    pub hurried: f64,
}

/// What a client wants.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub get: bool,
    /// It may be sent again although something of it was seen.
    pub repeatable: bool,
    /// How long the client gives.
    pub deadline: Option<Duration>,
    /// When it leaves.
    pub leaves: Option<Duration>,
    /// For hashing policies.
    pub key: u64,
}

impl Clients {
    pub fn draw(dice: &mut Dice) -> Self {
        Self {
            rate: [4.0, 8.0, 15.0, 30.0][dice.below(4) as usize],
            posts: [0.2, 0.2, 0.5][dice.below(3) as usize],
            leavers: [0.0, 0.02, 0.2][dice.below(3) as usize],
            hurried: [0.0, 0.0, 0.1][dice.below(3) as usize],
        }
    }

    /// Until the next one comes: exponential, so they come in bunches.
    pub fn pause(&self, dice: &mut Dice) -> Duration {
        Duration::from_secs_f64(-(1.0 - dice.unit()).ln() / self.rate)
    }

    pub fn order(&self, dice: &mut Dice) -> Order {
        let get = !dice.chance(self.posts);
        let millis = |dice: &mut Dice, most| Duration::from_millis(1 + u64::from(dice.below(most)));
        Order {
            get,
            // An idempotency key makes a POST repeatable.
            repeatable: get || dice.chance(0.1),
            deadline: dice.chance(self.hurried).then(|| millis(dice, 400)),
            leaves: dice.chance(self.leavers).then(|| {
                let most = if dice.chance(0.5) { 30 } else { 3_000 };
                millis(dice, most)
            }),
            key: u64::from(dice.below(50)),
        }
    }
}
