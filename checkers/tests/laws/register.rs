//! A register that exists, under clients that exist only in virtual time: its histories are good by construction.
//!
//! Every operation takes effect at one instant between its call and its return. In trouble the client gets no answer, and
//! the effect comes at any later time or never; or it is told that there is none, and there is none.

use bellwether_checkers::{
    Applied, History, Kind, Operation, Outcome,
    history::{NEVER, Notes},
};

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u32) -> u32 {
        (self.next() % u64::from(n)) as u32
    }

    pub fn chance(&mut self, p: f64) -> bool {
        f64::from(self.below(1_000_000)) < p * 1e6
    }
}

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Run {
    pub seed: u64,
    pub clients: u32,
    pub keys: u32,
    pub operations: u32,
    /// The share of operations without a good answer.
    pub trouble: f64,
}

struct Planned {
    operation: Operation,
    /// When it takes effect, if ever.
    effect: Option<u64>,
}

/// Plays a run: plans when everything happens, then lets it happen in that order.
pub fn run(run: &Run) -> History {
    let mut dice = Dice(run.seed);
    let mut free = vec![0_u64; run.clients as usize];
    let mut planned: Vec<Planned> = (0..run.operations)
        .map(|number| {
            let client = dice.below(run.clients) as usize;
            let call = free[client] + 1 + u64::from(dice.below(50));
            let length = 2 + u64::from(dice.below(100));
            let mut ret = call + length;
            free[client] = ret;
            let mut effect = Some(call + 1 + dice.next() % (length - 1));
            let mut outcome = Outcome::Done;
            if dice.chance(run.trouble) {
                (outcome, effect) = match dice.below(8) {
                    0 => (Outcome::NotExecuted, None),
                    1 => (Outcome::Refused, None),
                    2 => (Outcome::StaleLeader, effect),
                    3 => (Outcome::Unreplicated, effect),
                    4 => (Outcome::Unknown, None),
                    5 => (Outcome::Unknown, effect),
                    _ => (Outcome::Unknown, Some(ret + u64::from(dice.below(3_000)))),
                };
                if outcome == Outcome::Unknown && dice.chance(0.2) {
                    ret = NEVER;
                }
            }
            // Every write has a value of its own. What a compare-and-set expects is chosen when it takes effect.
            let new = u64::from(number) + 1;
            let kind = match dice.below(10) {
                0..5 => Kind::Read,
                5..8 => Kind::Write(new),
                _ => Kind::Cas { expected: None, new },
            };
            let operation = Operation {
                session: client as u64,
                key: format!("k{}", dice.below(run.keys)),
                kind,
                call,
                ret,
                outcome,
                notes: Notes::default(),
            };
            Planned { operation, effect }
        })
        .collect();
    let mut order: Vec<usize> = (0..planned.len()).collect();
    order.sort_by_key(|at| (planned[*at].effect, *at));
    let mut history = History::new();
    let mut log = Vec::new();
    let mut held = std::collections::BTreeMap::new();
    for at in order {
        let Planned { operation, effect } = &mut planned[at];
        let content = held.entry(operation.key.clone()).or_insert(None::<u64>);
        let mut takes = operation.kind.writes();
        if let Kind::Cas { expected, .. } = &mut operation.kind {
            // Most guess right, some expect what never was.
            *expected = match dice.below(4) {
                0 => Some(u64::MAX - 1),
                _ => *content,
            };
            if *expected != *content {
                takes = None;
                if operation.outcome == Outcome::Done {
                    operation.outcome = Outcome::CasFailed;
                }
            }
        }
        if operation.kind == Kind::Read && operation.outcome == Outcome::Done {
            operation.outcome = Outcome::Saw(*content);
        }
        if let Some(value) = takes.filter(|_| effect.is_some()) {
            *content = Some(value);
            log.push((operation.key.clone(), value));
        }
    }
    for Planned { operation, .. } in planned {
        history.push(operation).unwrap();
    }
    for (position, (key, value)) in log.into_iter().enumerate() {
        let position = position as u64 + 1;
        history.push_applied(Applied { position, key, value }).unwrap();
    }
    history
}
