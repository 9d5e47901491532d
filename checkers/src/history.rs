//! History: what clients did, when, and what they were told; and what the servers say they applied.
//!
//! One line per operation, so that a run that failed can be saved, mailed, cut down in an editor and judged again:
//!
//! ```text
//! # session key call..return what -> outcome, then what is known beside it
//! 3 k1 100..250 write 17 -> ok at=n2 level=strong after=AbC
//! 4 k1 260..300 read -> 17 at=n1
//! 4 k1 310..350 cas 17 18 -> failed
//! 5 k1 320.. cas absent 19 -> unknown
//! applied 57 k1 17
//! ```
//!
//! Times are nanoseconds of one monotonic clock. Judges compare them only with each other, so any origin serves. An
//! operation without a return was still under way when the run ended. `applied` lines are the log of applied writes: the
//! position (a revision, an LSN), the key and the value.
//!
//! What must stay true: a history that exists makes sense (an answer fits its question, nothing returns before it is
//! called), because [`History::push`] and the parser are the only ways in; and what is written is read back unchanged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// What a register holds. Clients give every write a value of its own, as `session << 32 | counter`, so that a read
/// names the write it saw; [`linear`](crate::linear) alone can do without.
pub type Value = u64;

/// The return of an operation that has none.
pub const NEVER: u64 = u64::MAX;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The value of the register.
    Read,
    /// A new value, whatever was there.
    Write(Value),
    /// A new value if the present one is as expected; `None` expects that there is none.
    Cas {
        /// What must be there.
        expected: Option<Value>,
        /// What is there afterwards.
        new: Value,
    },
}

impl Kind {
    /// The value that this may leave behind.
    #[must_use]
    pub const fn writes(self) -> Option<Value> {
        match self {
            Self::Read => None,
            Self::Write(value) | Self::Cas { new: value, .. } => Some(value),
        }
    }
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A read saw this; `None`: the key was absent.
    Saw(Option<Value>),
    /// A write or compare-and-set has been done.
    Done,
    /// A compare-and-set found something else than it expected.
    CasFailed,
    /// Nothing is known: it may have been executed, or may be at any later time. Of a read: no answer.
    Unknown,
    /// `executed-by-stale-leader`: acknowledged by somebody who no longer led. As good as unknown.
    StaleLeader,
    /// `executed-unreplicated`: not known to survive. As good as unknown.
    Unreplicated,
    /// A promise that it never had and never will have an effect.
    NotExecuted,
    /// The same promise, given by the upstream.
    Refused,
}

/// What an outcome lets one conclude about the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It took place between call and return.
    Certain,
    /// It took place at some time after the call, or never.
    Possible,
    /// There is none, ever.
    Excluded,
}

impl Outcome {
    /// What this says about the effect.
    #[must_use]
    pub const fn effect(self) -> Effect {
        match self {
            Self::Saw(_) | Self::Done | Self::CasFailed => Effect::Certain,
            Self::Unknown | Self::StaleLeader | Self::Unreplicated => Effect::Possible,
            Self::NotExecuted | Self::Refused => Effect::Excluded,
        }
    }
}

/// One request of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked. Sessions may have several requests under way.
    pub session: u64,
    /// Which register.
    pub key: String,
    /// What was asked.
    pub kind: Kind,
    /// When, in nanoseconds.
    pub call: u64,
    /// When the answer was there, or when the client gave up; [`NEVER`] for what was under way at the end of the run.
    pub ret: u64,
    /// What the answer was.
    pub outcome: Outcome,
    /// For people: who answered, at which level of consistency, and the session token before and after.
    pub notes: Notes,
}

/// What is known of an operation and decides nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// The endpoint that served it (`at=`).
    pub endpoint: Option<String>,
    /// The level of consistency that was served (`level=`).
    pub level: Option<String>,
    /// The session token that was sent (`before=`).
    pub before: Option<String>,
    /// The session token that came back (`after=`).
    pub after: Option<String>,
}

impl Operation {
    /// The value that this certainly left in the register at some time between call and return.
    #[must_use]
    pub fn wrote(&self) -> Option<Value> {
        self.kind.writes().filter(|_| self.outcome == Outcome::Done)
    }

    /// What this certainly saw: what a read returned, or what a compare-and-set that succeeded expected.
    #[must_use]
    pub const fn saw(&self) -> Option<Option<Value>> {
        match (self.kind, self.outcome) {
            (Kind::Read, Outcome::Saw(value)) => Some(value),
            (Kind::Cas { expected, .. }, Outcome::Done) => Some(expected),
            _ => None,
        }
    }

    fn problem(&self) -> Option<String> {
        let fits = match self.outcome {
            Outcome::Saw(_) => self.kind == Kind::Read,
            Outcome::Done => self.kind != Kind::Read,
            Outcome::CasFailed => matches!(self.kind, Kind::Cas { .. }),
            Outcome::Unknown
            | Outcome::StaleLeader
            | Outcome::Unreplicated
            | Outcome::NotExecuted
            | Outcome::Refused => true,
        };
        if !fits {
            return Some(format!("{:?} is no answer to {:?}", self.outcome, self.kind));
        }
        if self.ret < self.call {
            return Some(format!(
                "it returns at {}, before its call at {}",
                self.ret, self.call
            ));
        }
        if self.ret == NEVER && self.outcome.effect() == Effect::Certain {
            return Some("it has an answer and no return; write the time after `..`".to_owned());
        }
        let notes = &self.notes;
        let words = [&notes.endpoint, &notes.level, &notes.before, &notes.after];
        std::iter::once(&self.key)
            .chain(words.into_iter().flatten())
            .find_map(|text| bad_word(text))
    }
}

/// Words are separated by spaces and lines end at a comment, so they may have neither.
fn bad_word(text: &str) -> Option<String> {
    (text.is_empty() || text.contains(|letter: char| letter.is_whitespace() || letter == '#'))
        .then(|| format!("{text:?} must be one word, not empty, without spaces and `#`"))
}

/// One write that the servers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Where in the order of all keys, as the upstream counts. What was applied together shares a position.
    pub position: u64,
    /// Which register.
    pub key: String,
    /// What it held from then on.
    pub value: Value,
}

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
    applied: Vec<Applied>,
}

impl History {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            operations: Vec::new(),
            applied: Vec::new(),
        }
    }

    /// Adds an operation, in any order, and gives the number by which verdicts will call it.
    pub fn push(&mut self, operation: Operation) -> Result<usize, Malformed> {
        match operation.problem() {
            Some(what) => Err(Malformed { line: None, what }),
            None => {
                self.operations.push(operation);
                Ok(self.operations.len() - 1)
            }
        }
    }

    /// Adds an entry of the log of applied writes; positions never go back.
    pub fn push_applied(&mut self, applied: Applied) -> Result<(), Malformed> {
        let last = self.applied.last().map_or(0, |last| last.position);
        let what = if applied.position < last {
            Some(format!(
                "position {} comes after {last}; the log is in the order of positions",
                applied.position
            ))
        } else {
            bad_word(&applied.key)
        };
        match what {
            Some(what) => Err(Malformed { line: None, what }),
            None => {
                self.applied.push(applied);
                Ok(())
            }
        }
    }

    /// What clients did.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// What servers applied, in order.
    #[must_use]
    pub fn applied(&self) -> &[Applied] {
        &self.applied
    }

    /// Numbers of the operations on each key, by call.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<&str, Vec<usize>> {
        let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, operation) in self.operations.iter().enumerate() {
            keys.entry(&operation.key).or_default().push(number);
        }
        for numbers in keys.values_mut() {
            numbers.sort_by_key(|number| (self.operations[*number].call, *number));
        }
        keys
    }

    /// The operations of these numbers for a person: one line each, by call, with a picture of which overlap.
    #[must_use]
    pub fn draw(&self, numbers: &[usize]) -> String {
        let mut shown: Vec<(usize, &Operation)> = numbers
            .iter()
            .filter_map(|number| self.operations.get(*number).map(|operation| (*number, operation)))
            .collect();
        shown.sort_by_key(|(number, operation)| (operation.call, *number));
        // The order of events is what matters, so each distinct time is one column.
        let times: BTreeSet<u64> = shown.iter().flat_map(|(_, op)| [op.call, end(op)]).collect();
        let column: BTreeMap<u64, usize> = times.iter().copied().zip(0..).collect();
        let mut out = String::new();
        for (number, operation) in shown {
            let mut bar = String::new();
            if times.len() <= WIDEST {
                bar.push_str(&" ".repeat(column[&operation.call]));
                bar.push('[');
                let length = column[&end(operation)].saturating_sub(column[&operation.call] + 1);
                bar.push_str(&"-".repeat(length));
                bar.push(if end(operation) == NEVER { '>' } else { ']' });
                bar.push_str(&" ".repeat((times.len() + 2).saturating_sub(bar.len())));
            }
            out.push_str(&format!("{bar}#{number} {operation}\n"));
        }
        out
    }
}

/// Columns of a picture; a wider one says nothing.
const WIDEST: usize = 80;

/// The end of the time in which it can have taken effect.
fn end(operation: &Operation) -> u64 {
    match operation.outcome.effect() {
        Effect::Possible if operation.kind != Kind::Read => NEVER,
        Effect::Possible | Effect::Certain | Effect::Excluded => operation.ret,
    }
}

/// What is wrong with an operation or a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Counted from 1, when it was read from a text.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Malformed {}

/// A register's content in a text.
pub(crate) struct Content(pub(crate) Option<Value>);

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value}"),
            None => f.write_str("absent"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("read"),
            Self::Write(value) => write!(f, "write {value}"),
            Self::Cas { expected, new } => write!(f, "cas {} {new}", Content(*expected)),
        }
    }
}

/// The words of outcomes without a value.
const WORDS: [(&str, Outcome); 7] = [
    ("ok", Outcome::Done),
    ("failed", Outcome::CasFailed),
    ("unknown", Outcome::Unknown),
    ("executed-by-stale-leader", Outcome::StaleLeader),
    ("executed-unreplicated", Outcome::Unreplicated),
    ("not-executed", Outcome::NotExecuted),
    ("refused", Outcome::Refused),
];

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saw(value) => write!(f, "{}", Content(*value)),
            other => {
                let word = WORDS.iter().find(|(_, outcome)| outcome == other);
                f.write_str(word.map_or("unknown", |(word, _)| word))
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}..", self.session, self.key, self.call)?;
        if self.ret != NEVER {
            write!(f, "{}", self.ret)?;
        }
        write!(f, " {} -> {}", self.kind, self.outcome)?;
        let notes = &self.notes;
        let named = [
            ("at", &notes.endpoint),
            ("level", &notes.level),
            ("before", &notes.before),
            ("after", &notes.after),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "applied {} {} {}", self.position, self.key, self.value)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for operation in &self.operations {
            writeln!(f, "{operation}")?;
        }
        for applied in &self.applied {
            writeln!(f, "{applied}")?;
        }
        Ok(())
    }
}

impl FromStr for History {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut history = Self::new();
        for (number, line) in text.lines().enumerate() {
            let words = line.split('#').next().unwrap_or("");
            let mut words = Words(words.split_whitespace());
            let Some(first) = words.0.next() else { continue };
            let read = if first == "applied" {
                applied(&mut words).and_then(|applied| history.push_applied(applied))
            } else {
                operation(first, &mut words).and_then(|operation| history.push(operation).map(|_| ()))
            };
            read.map_err(|error| Malformed {
                line: Some(number + 1),
                what: error.what,
            })?;
        }
        Ok(history)
    }
}

/// What is left of a line.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self, what: &str) -> Result<&'a str, Malformed> {
        self.0
            .next()
            .ok_or_else(|| malformed(format!("the line ends where {what} should be")))
    }

    fn number(&mut self, what: &str) -> Result<u64, Malformed> {
        self.next(what).and_then(|word| number(word, what))
    }

    fn content(&mut self, what: &str) -> Result<Option<Value>, Malformed> {
        self.next(what).and_then(|word| content(word, what))
    }

    fn end(&mut self) -> Result<(), Malformed> {
        match self.0.next() {
            None => Ok(()),
            Some(more) => Err(malformed(format!(
                "{more:?} is too much; the line is complete before it"
            ))),
        }
    }
}

const fn malformed(what: String) -> Malformed {
    Malformed { line: None, what }
}

fn number(word: &str, what: &str) -> Result<u64, Malformed> {
    word.parse()
        .ok()
        .ok_or_else(|| malformed(format!("{word:?} is not {what}: a number is expected")))
}

fn content(word: &str, what: &str) -> Result<Option<Value>, Malformed> {
    if word == "absent" {
        Ok(None)
    } else {
        word.parse().ok().map(Some).ok_or_else(|| {
            malformed(format!(
                "{word:?} is not {what}: a number or `absent` is expected"
            ))
        })
    }
}

fn applied(words: &mut Words<'_>) -> Result<Applied, Malformed> {
    let position = words.number("a position")?;
    let key = words.next("a key")?.to_owned();
    let value = words.number("a value")?;
    words.end()?;
    Ok(Applied { position, key, value })
}

fn operation(session: &str, words: &mut Words<'_>) -> Result<Operation, Malformed> {
    let session = number(session, "a session (or the word `applied`)")?;
    let key = words.next("a key")?.to_owned();
    let span = words.next("call..return")?;
    let Some((call, ret)) = span.split_once("..") else {
        return Err(malformed(format!("{span:?} is not `call..return`")));
    };
    let call = number(call, "the time of the call")?;
    let ret = if ret.is_empty() {
        NEVER
    } else {
        number(ret, "the time of the return")?
    };
    let kind = match words.next("what was asked")? {
        "read" => Kind::Read,
        "write" => Kind::Write(words.number("the value written")?),
        "cas" => Kind::Cas {
            expected: words.content("what was expected")?,
            new: words.number("the new value")?,
        },
        other => {
            return Err(malformed(format!(
                "{other:?} is not one of `read`, `write`, `cas`"
            )));
        }
    };
    let arrow = words.next("`->`")?;
    if arrow != "->" {
        return Err(malformed(format!("{arrow:?} stands where `->` should be")));
    }
    let word = words.next("an outcome")?;
    let outcome = match WORDS.iter().find(|(known, _)| *known == word) {
        Some((_, outcome)) => *outcome,
        None => Outcome::Saw(content(word, "an outcome (`ok`, `failed`, `unknown`, ...)")?),
    };
    let mut notes = Notes::default();
    for note in words.0.by_ref() {
        let (name, value) = note.split_once('=').unwrap_or((note, ""));
        let place = match name {
            "at" => &mut notes.endpoint,
            "level" => &mut notes.level,
            "before" => &mut notes.before,
            "after" => &mut notes.after,
            other => {
                return Err(malformed(format!(
                    "{other:?} is not one of `at=`, `level=`, `before=`, `after=`"
                )));
            }
        };
        *place = Some(value.to_owned());
    }
    Ok(Operation {
        session,
        key,
        kind,
        call,
        ret,
        outcome,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
3 k1 100..250 write 17 -> ok at=n2 level=strong before=AbC= after=x
4 k1 260..300 read -> 17
4 k1 260..300 read -> absent
4 k1 310..350 cas 17 18 -> failed
4 k1 310..350 cas absent 18 -> executed-unreplicated
5 k1 320.. cas 18 19 -> unknown
5 k2 320..330 write 20 -> not-executed
5 k2 320..330 write 21 -> refused
5 k2 320..330 write 22 -> executed-by-stale-leader
applied 57 k1 17
applied 57 k2 22
";

    #[test]
    fn what_is_written_is_read_back() {
        let history: History = TEXT.parse().unwrap();
        assert_eq!(history.operations().len(), 9);
        assert_eq!(history.to_string(), TEXT);
        let again: History = history.to_string().parse().unwrap();
        assert_eq!(again, history);
    }

    #[test]
    fn comments_and_empty_lines_are_left_out() {
        let history: History = "# run 7\n\n1 k 1..2 read -> 5 # stale?\n".parse().unwrap();
        assert_eq!(history.to_string(), "1 k 1..2 read -> 5\n");
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        for (line, says) in [
            ("x k 1..2 read -> 1", "\"x\" is not a session"),
            ("1 k 1-2 read -> 1", "\"1-2\" is not `call..return`"),
            ("1 k 2..1 read -> 1", "it returns at 1, before its call at 2"),
            ("1 k 1..2 read -> ok", "Done is no answer to Read"),
            ("1 k 1..2 write 1 -> 1", "Saw(Some(1)) is no answer to Write(1)"),
            ("1 k 1..2 write 1 -> failed", "CasFailed is no answer to Write(1)"),
            ("1 k 1.. write 1 -> ok", "it has an answer and no return"),
            ("1 k 1..2 erase -> ok", "\"erase\" is not one of `read`"),
            ("1 k 1..2 cas one 2 -> ok", "\"one\" is not what was expected"),
            ("1 k 1..2 read => 1", "\"=>\" stands where `->` should be"),
            ("1 k 1..2 read -> well", "\"well\" is not an outcome"),
            ("1 k 1..2 read ->", "the line ends where an outcome should be"),
            ("1 k 1..2 read -> 1 by=n1", "\"by\" is not one of `at=`"),
            ("1 k 1..2 read -> 1 at=", "must be one word"),
            ("applied 1 k 5 6", "\"6\" is too much"),
            ("applied 1 k five", "\"five\" is not a value"),
        ] {
            let error = format!("# first\n{line}").parse::<History>().unwrap_err();
            let said = error.to_string();
            assert!(
                said.starts_with("line 2: ") && said.contains(says),
                "{line}: {said}"
            );
        }
        let error = "applied 9 k 1\napplied 8 k 2".parse::<History>().unwrap_err();
        assert!(error.what.contains("position 8 comes after 9"), "{error}");
    }

    #[test]
    fn a_picture_shows_which_overlap() {
        let history: History =
            "1 k 10..30 write 1 -> ok\n2 k 20..40 read -> absent\n3 k 25..26 write 2 -> unknown"
                .parse()
                .unwrap();
        assert_eq!(
            history.draw(&[2, 0, 1]),
            "\
[--]    #0 1 k 10..30 write 1 -> ok
 [--]   #1 2 k 20..40 read -> absent
  [-->  #2 3 k 25..26 write 2 -> unknown
"
        );
    }
}
