//! The judge that nobody can get wrong: tries every order. Only for a handful of operations.

use bellwether_checkers::{
    History, Kind, Operation, Outcome,
    history::{Effect, Notes},
};

use crate::register::Dice;

/// Whether some order of these operations explains all answers.
pub fn exists(history: &History, numbers: &[usize]) -> bool {
    let operations: Vec<&Operation> = numbers
        .iter()
        .map(|number| &history.operations()[*number])
        .filter(|operation| operation.outcome.effect() != Effect::Excluded)
        .collect();
    extend(&operations, &mut vec![false; operations.len()], None)
}

/// Whether an order that has placed some can be completed.
fn extend(operations: &[&Operation], placed: &mut Vec<bool>, content: Option<u64>) -> bool {
    let open = |operation: &Operation| operation.outcome.effect() == Effect::Possible;
    let left = |at: &usize| !placed[*at];
    let all: Vec<usize> = (0..operations.len()).filter(left).collect();
    if all.iter().all(|at| open(operations[*at])) {
        return true;
    }
    for at in &all {
        let operation = operations[*at];
        // Nothing that is left had ended before this began.
        let too_early = |other: &usize| !open(operations[*other]) && operations[*other].ret < operation.call;
        if all.iter().any(too_early) {
            continue;
        }
        let after = match (operation.kind, operation.outcome) {
            (Kind::Read, Outcome::Saw(value)) if value != content => continue,
            (Kind::Write(value), _) => Some(value),
            (Kind::Cas { expected, .. }, Outcome::CasFailed) if expected == content => continue,
            (Kind::Cas { expected, .. }, Outcome::Done) if expected != content => continue,
            (Kind::Cas { expected, new }, _) if expected == content => Some(new),
            (Kind::Read | Kind::Cas { .. }, _) => content,
        };
        placed[*at] = true;
        let found = extend(operations, placed, after);
        placed[*at] = false;
        if found {
            return true;
        }
    }
    false
}

/// Up to seven operations on one key, whose answers are chance: good ones, bad ones, and all that is near the border.
pub fn random(seed: u64, values: u32, unique: bool) -> History {
    let mut dice = Dice(seed);
    let mut history = History::new();
    let count = 1 + dice.below(7);
    let mut fresh = 0;
    let mut value = |dice: &mut Dice| {
        if unique {
            fresh += 1;
            fresh
        } else {
            u64::from(1 + dice.below(values))
        }
    };
    let content = |dice: &mut Dice| match dice.below(values + 1) {
        0 => None,
        value => Some(u64::from(value)),
    };
    for number in 0..count {
        let call = u64::from(dice.below(20));
        let ret = call + u64::from(dice.below(12));
        let kind = match dice.below(8) {
            0..3 => Kind::Read,
            3..6 => Kind::Write(value(&mut dice)),
            _ => Kind::Cas {
                expected: content(&mut dice),
                new: value(&mut dice),
            },
        };
        let outcome = match (kind, dice.below(6)) {
            (Kind::Write(_) | Kind::Cas { .. }, 0) => Outcome::Unknown,
            (Kind::Write(_), 1) if dice.chance(0.3) => Outcome::NotExecuted,
            (Kind::Cas { .. }, 1 | 2) => Outcome::CasFailed,
            (Kind::Read, _) => Outcome::Saw(content(&mut dice)),
            _ => Outcome::Done,
        };
        let operation = Operation {
            session: u64::from(number),
            key: "k".to_owned(),
            kind,
            call,
            ret,
            outcome,
            notes: Notes::default(),
        };
        history.push(operation).unwrap();
    }
    history
}
