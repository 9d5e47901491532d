//! Loss: writes that were acknowledged and are gone, applied twice, or refused and are there after all.
//!
//! Three questions, by what is known of a run. [`effects`] needs only what clients saw: nobody may see a value that
//! nobody wrote, or one whose write was said to have had no effect. [`against_log`] compares the outcome of every write
//! with the log of applied writes, which must be complete. [`at_end`] needs only what the registers held when all was
//! over. Together they test the outcome words: `not-executed` and `refused` promise that there is no effect, `ok` that
//! there is one, and `unknown`, `executed-by-stale-leader` and `executed-unreplicated` promise nothing.
//!
//! What must stay true: every write of a key has a value of its own; where two have the same, that is reported
//! ([`Anomaly::Reused`]) and neither is judged.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use crate::history::{Content, Effect, History, Value};

/// Something that no honest register would have done. Numbers are those of [`History::push`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// An acknowledged write that the log does not have.
    Lost {
        /// The write.
        write: usize,
    },
    /// An acknowledged write that was neither there at the end nor can have been overwritten by what was.
    LostAtEnd {
        /// The write.
        write: usize,
        /// What the register held.
        held: Option<Value>,
    },
    /// A write that was applied more than once.
    AppliedTwice {
        /// The write.
        write: usize,
        /// Its first place in the log.
        first: u64,
        /// A later one.
        again: u64,
    },
    /// A write that was said to have no effect is in the log.
    ExcludedYetApplied {
        /// The write.
        write: usize,
        /// Its place in the log.
        position: u64,
    },
    /// A write that was said to have no effect was seen.
    ExcludedYetSeen {
        /// The write.
        write: usize,
        /// Who saw it.
        by: usize,
    },
    /// A write that was said to have no effect is what the register held at the end.
    ExcludedYetHeld {
        /// The write.
        write: usize,
    },
    /// A write was seen by somebody whose answer was there before it was called.
    SeenBeforeCall {
        /// The write.
        write: usize,
        /// Who saw it.
        by: usize,
    },
    /// A value was seen that nobody tried to write.
    Invented {
        /// Who saw it.
        by: usize,
    },
    /// A value that nobody tried to write is in the log.
    AppliedFromNowhere {
        /// Its place in the log.
        position: u64,
        /// Its key.
        key: String,
        /// The value.
        value: Value,
    },
    /// A value that nobody tried to write is what the register held at the end.
    HeldFromNowhere {
        /// Its key.
        key: String,
        /// The value.
        value: Value,
    },
    /// A mistake of the run: two writes of a key with the same value, so nothing can be said about either.
    Reused {
        /// A write.
        first: usize,
        /// A later one.
        again: usize,
    },
}

impl Anomaly {
    /// For a person, with the operations.
    #[must_use]
    pub fn explain(&self, history: &History) -> String {
        let mut numbers = Vec::new();
        let what = match self {
            Self::Lost { write } => {
                numbers.push(*write);
                "acknowledged, and the log does not have it".to_owned()
            }
            Self::LostAtEnd { write, held } => {
                numbers.push(*write);
                let held = Content(*held);
                format!("acknowledged, and at the end the register held {held}, which did not come after it")
            }
            Self::AppliedTwice { write, first, again } => {
                numbers.push(*write);
                format!("applied at {first} and again at {again}")
            }
            Self::ExcludedYetApplied { write, position } => {
                numbers.push(*write);
                format!("said to have no effect, and applied at {position}")
            }
            Self::ExcludedYetSeen { write, by } => {
                numbers.extend([*write, *by]);
                "said to have no effect, and seen".to_owned()
            }
            Self::ExcludedYetHeld { write } => {
                numbers.push(*write);
                "said to have no effect, and there at the end".to_owned()
            }
            Self::SeenBeforeCall { write, by } => {
                numbers.extend([*by, *write]);
                "seen before it was called".to_owned()
            }
            Self::Invented { by } => {
                numbers.push(*by);
                "saw a value that nobody tried to write".to_owned()
            }
            Self::AppliedFromNowhere { position, key, value } => {
                format!("the log has {value} for {key} at {position}, which nobody tried to write")
            }
            Self::HeldFromNowhere { key, value } => {
                format!("at the end {key} held {value}, which nobody tried to write")
            }
            Self::Reused { first, again } => {
                numbers.extend([*first, *again]);
                "two writes with the same value: the run must give each its own".to_owned()
            }
        };
        format!("{what}\n{}", history.draw(&numbers))
    }
}

/// How many writes of which outcome there were, for a report that says how much was at stake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes and compare-and-sets that were acknowledged.
    pub acknowledged: usize,
    /// Those that may have been executed.
    pub possible: usize,
    /// Those that were promised not to have been.
    pub excluded: usize,
}

impl Tally {
    /// Counts the writes of a history.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let mut tally = Self::default();
        for operation in history.operations() {
            if operation.kind.writes().is_none() {
                continue;
            }
            match operation.outcome.effect() {
                Effect::Certain => tally.acknowledged += usize::from(operation.wrote().is_some()),
                Effect::Possible => tally.possible += 1,
                Effect::Excluded => tally.excluded += 1,
            }
        }
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            acknowledged,
            possible,
            excluded,
        } = self;
        write!(
            f,
            "{acknowledged} writes acknowledged, {possible} of unknown outcome, {excluded} not executed"
        )
    }
}

/// What clients saw, against what was written at all.
#[must_use]
pub fn effects(history: &History) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let writers = Writers::new(history, &mut anomalies);
    for (by, operation) in history.operations().iter().enumerate() {
        let Some(value) = operation.saw().flatten() else {
            continue;
        };
        match writers.of(&operation.key, value) {
            Writer::Nobody => anomalies.push(Anomaly::Invented { by }),
            Writer::Several => {}
            Writer::One(write) => {
                let writer = &history.operations()[write];
                if writer.outcome.effect() == Effect::Excluded {
                    anomalies.push(Anomaly::ExcludedYetSeen { write, by });
                } else if operation.ret < writer.call {
                    anomalies.push(Anomaly::SeenBeforeCall { write, by });
                }
            }
        }
    }
    anomalies
}

/// The outcome of every write, against a complete log of applied writes.
#[must_use]
pub fn against_log(history: &History) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let writers = Writers::new(history, &mut anomalies);
    let mut applied: HashMap<usize, u64> = HashMap::new();
    for entry in history.applied() {
        let position = entry.position;
        let write = match writers.of(&entry.key, entry.value) {
            Writer::Nobody => {
                let (key, value) = (entry.key.clone(), entry.value);
                anomalies.push(Anomaly::AppliedFromNowhere { position, key, value });
                continue;
            }
            Writer::Several => continue,
            Writer::One(write) => write,
        };
        if let Some(first) = applied.get(&write) {
            let (first, again) = (*first, position);
            anomalies.push(Anomaly::AppliedTwice { write, first, again });
            continue;
        }
        applied.insert(write, position);
        if history.operations()[write].outcome.effect() == Effect::Excluded {
            anomalies.push(Anomaly::ExcludedYetApplied { write, position });
        }
    }
    for (write, operation) in history.operations().iter().enumerate() {
        let acknowledged = operation.wrote();
        let sole = |value| writers.of(&operation.key, value) == Writer::One(write);
        if acknowledged.is_some_and(sole) && !applied.contains_key(&write) {
            anomalies.push(Anomaly::Lost { write });
        }
    }
    anomalies
}

/// Acknowledged writes, against what registers held after the last operation. Keys that are not mentioned are not judged.
///
/// What was overwritten is not there, so only this is proof of a loss: the register holds a value whose write had ended
/// before the lost one was called, or nothing at all.
#[must_use]
pub fn at_end(history: &History, held: &BTreeMap<String, Option<Value>>) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let writers = Writers::new(history, &mut anomalies);
    for (key, held) in held {
        let holder = match held {
            None => None,
            Some(value) => match writers.of(key, *value) {
                Writer::Several => continue,
                Writer::Nobody => {
                    let (key, value) = (key.clone(), *value);
                    anomalies.push(Anomaly::HeldFromNowhere { key, value });
                    continue;
                }
                Writer::One(write) => Some(write),
            },
        };
        let over = match holder.map(|write| &history.operations()[write]) {
            None => None,
            Some(operation) => match operation.outcome.effect() {
                Effect::Certain => Some(operation.ret),
                Effect::Possible => continue,
                Effect::Excluded => {
                    let write = holder.unwrap_or_default();
                    anomalies.push(Anomaly::ExcludedYetHeld { write });
                    continue;
                }
            },
        };
        for (write, operation) in history.operations().iter().enumerate() {
            let after = over.is_none_or(|over| over < operation.call);
            if operation.key == *key && operation.wrote().is_some() && after {
                anomalies.push(Anomaly::LostAtEnd { write, held: *held });
            }
        }
    }
    anomalies
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Nobody,
    One(usize),
    Several,
}

/// Who wrote which value.
struct Writers<'a>(HashMap<(&'a str, Value), Writer>);

impl<'a> Writers<'a> {
    fn new(history: &'a History, anomalies: &mut Vec<Anomaly>) -> Self {
        let mut writers = HashMap::new();
        let mut reused = BTreeSet::new();
        for (number, operation) in history.operations().iter().enumerate() {
            let Some(value) = operation.kind.writes() else {
                continue;
            };
            let writer = writers
                .entry((operation.key.as_str(), value))
                .or_insert(Writer::Nobody);
            *writer = match *writer {
                Writer::Nobody => Writer::One(number),
                Writer::One(first) => {
                    reused.insert(Anomaly::Reused { first, again: number });
                    Writer::Several
                }
                Writer::Several => Writer::Several,
            };
        }
        anomalies.extend(reused);
        Self(writers)
    }

    fn of(&self, key: &str, value: Value) -> Writer {
        self.0.get(&(key, value)).copied().unwrap_or(Writer::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(text: &str) -> History {
        text.parse().unwrap()
    }

    const RUN: &str = "\
1 k 0..10 write 1 -> ok
1 k 20..30 write 2 -> unknown
2 k 25..35 write 3 -> not-executed
2 k 40..50 cas 2 4 -> ok
1 k 60..70 write 5 -> executed-by-stale-leader
2 k 60..70 write 6 -> refused
1 k 80..90 read -> 4
";

    #[test]
    fn an_honest_run_has_nothing_to_hide() {
        let text = format!("{RUN}applied 1 k 1\napplied 2 k 2\napplied 3 k 4\n");
        let honest = history(&text);
        assert_eq!(effects(&honest), []);
        assert_eq!(against_log(&honest), []);
        let held = BTreeMap::from([("k".to_owned(), Some(4))]);
        assert_eq!(at_end(&honest, &held), []);
        // What a stale leader executed may survive as well.
        let survived = history(&format!("{text}applied 4 k 5\n"));
        assert_eq!(against_log(&survived), []);
        let tally = Tally::of(&honest);
        assert_eq!(
            tally.to_string(),
            "2 writes acknowledged, 2 of unknown outcome, 2 not executed"
        );
    }

    #[test]
    fn an_acknowledged_write_that_is_not_in_the_log_is_lost() {
        let text = format!("{RUN}applied 1 k 2\napplied 2 k 4\n");
        assert_eq!(against_log(&history(&text)), [Anomaly::Lost { write: 0 }]);
    }

    #[test]
    fn a_write_that_was_applied_twice_is_found() {
        let text = format!("{RUN}applied 1 k 1\napplied 2 k 2\napplied 3 k 4\napplied 7 k 2\n");
        let (first, again) = (2, 7);
        assert_eq!(
            against_log(&history(&text)),
            [Anomaly::AppliedTwice {
                write: 1,
                first,
                again
            }]
        );
    }

    #[test]
    fn not_executed_and_refused_must_never_have_an_effect() {
        for (value, write) in [(3, 2), (6, 5)] {
            let log = format!("applied 1 k 1\napplied 2 k 2\napplied 3 k 4\napplied 4 k {value}\n");
            let applied = history(&format!("{RUN}{log}"));
            let position = 4;
            assert_eq!(
                against_log(&applied),
                [Anomaly::ExcludedYetApplied { write, position }]
            );
            let seen = history(&format!("{RUN}3 k 100..110 read -> {value}\n"));
            assert_eq!(effects(&seen), [Anomaly::ExcludedYetSeen { write, by: 7 }]);
            let held = BTreeMap::from([("k".to_owned(), Some(value))]);
            assert_eq!(at_end(&seen, &held), [Anomaly::ExcludedYetHeld { write }]);
        }
    }

    #[test]
    fn values_come_from_somewhere_and_from_the_past() {
        let seen = history("1 k 0..1 read -> 9\n1 k 2..3 read -> 1\n2 k 4..5 write 1 -> ok\n");
        assert_eq!(
            effects(&seen),
            [
                Anomaly::Invented { by: 0 },
                Anomaly::SeenBeforeCall { write: 2, by: 1 }
            ]
        );
        let applied = history("1 k 0..1 write 1 -> ok\napplied 1 k 1\napplied 2 k 7\n");
        let from_nowhere = Anomaly::AppliedFromNowhere {
            position: 2,
            key: "k".to_owned(),
            value: 7,
        };
        assert_eq!(against_log(&applied), [from_nowhere]);
        let key = "k".to_owned();
        let held = BTreeMap::from([(key.clone(), Some(7))]);
        assert_eq!(
            at_end(&applied, &held),
            [Anomaly::HeldFromNowhere { key, value: 7 }]
        );
    }

    #[test]
    fn what_is_held_at_the_end_proves_a_loss_only_if_it_cannot_have_come_after() {
        let run = history(
            "\
1 k 0..10 write 1 -> ok
1 k 20..30 write 2 -> ok
2 k 25..35 write 3 -> ok
2 k 36..40 write 4 -> unknown
",
        );
        let at_end = |held| at_end(&run, &BTreeMap::from([("k".to_owned(), held)]));
        assert_eq!(at_end(Some(2)), []);
        assert_eq!(at_end(Some(3)), []);
        assert_eq!(at_end(Some(4)), []);
        let lost = |write, held| Anomaly::LostAtEnd { write, held };
        assert_eq!(at_end(Some(1)), [lost(1, Some(1)), lost(2, Some(1))]);
        assert_eq!(at_end(None), [lost(0, None), lost(1, None), lost(2, None)]);
    }

    #[test]
    fn two_writes_of_one_value_are_a_mistake_of_the_run() {
        let run = history("1 k 0..1 write 1 -> ok\n2 k 2..3 write 1 -> not-executed\n1 k 4..5 read -> 1\n");
        let reused = [Anomaly::Reused { first: 0, again: 1 }];
        assert_eq!(effects(&run), reused);
        assert_eq!(against_log(&run), reused);
        // The same value of another key is another write.
        let run = history("1 k 0..1 write 1 -> ok\n2 j 2..3 write 1 -> not-executed\n1 k 4..5 read -> 1\n");
        assert_eq!(effects(&run), []);
    }

    #[test]
    fn an_explanation_shows_the_operations() {
        let seen = history("1 k 0..1 write 9 -> refused\n1 k 2..3 read -> 9\n");
        let said: Vec<String> = effects(&seen).iter().map(|a| a.explain(&seen)).collect();
        assert_eq!(
            said,
            [
                "said to have no effect, and seen\n[]    #0 1 k 0..1 write 9 -> refused\n  []  #1 1 k 2..3 read -> 9\n"
            ]
        );
    }
}
