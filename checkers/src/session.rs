//! Session guarantees: what a client may expect of its own past, and how old what it reads may be.
//!
//! Terry et al., "Session guarantees for weakly consistent replicated data" (1994), judged against the log of applied
//! writes: every value has a place in the order in which the servers applied them, so a read that returns a value has
//! shown a place, and guarantees are comparisons of places.
//!
//! | guarantee | an operation of the session | must not come before |
//! |---|---|---|
//! | read your writes | what a read shows | what the session has written |
//! | monotonic reads | what a read shows | what the session has seen |
//! | monotonic writes | where a write was applied | what the session has written |
//! | writes follow reads | where a write was applied | what the session has seen |
//!
//! "Has" means that the answer was there before the call: a session may have several requests under way. Only
//! acknowledged writes count as written; a write of unknown outcome promises nothing to what follows, yet must itself
//! keep its place. Bounded staleness is the same comparison with everybody's writes, acknowledged long enough before.
//!
//! What must stay true: values are unique per key ([`loss`](crate::loss) says where not), so a value means one write;
//! one that was applied twice is given the benefit of the doubt. An operation whose value has no place in the log is
//! listed and not judged. Calls and returns at the same nanosecond overlap.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use crate::history::{Effect, History, Operation, Value};

/// What was promised and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guarantee {
    /// A read shows what the session has written, or something newer.
    ReadYourWrites,
    /// A read shows what the session has seen, or something newer.
    MonotonicReads,
    /// Writes of a session are applied in its order.
    MonotonicWrites,
    /// A write is applied after what its session has seen.
    WritesFollowReads,
    /// A read shows whatever was acknowledged longer ago than the bound, or something newer.
    BoundedStaleness,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadYourWrites => "read your writes",
            Self::MonotonicReads => "monotonic reads",
            Self::MonotonicWrites => "monotonic writes",
            Self::WritesFollowReads => "writes follow reads",
            Self::BoundedStaleness => "bounded staleness",
        })
    }
}

/// Whose past counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only that on the same key. Places of different keys need not be comparable.
    Key,
    /// All of it: the log has one order over all keys, and a read must show its key as it was at the newest place that the
    /// session knows of, whichever key that was about.
    Group,
}

/// Two operations that cannot both be as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// What they break.
    pub guarantee: Guarantee,
    /// Its answer was there before the later one was called. Numbers are those of [`History::push`].
    pub earlier: usize,
    /// The one that is too old.
    pub later: usize,
}

/// What came of all sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Reads that were judged.
    pub reads: usize,
    /// Writes that were judged.
    pub writes: usize,
    /// By the later operation, at most one per guarantee and operation.
    pub violations: Vec<Violation>,
    /// Reads whose value the log does not have. With a complete log these are violations of something worse.
    pub unplaced: Vec<usize>,
}

impl Report {
    /// How often a guarantee was broken.
    #[must_use]
    pub fn broken(&self, guarantee: Guarantee) -> usize {
        let of = |violation: &&Violation| violation.guarantee == guarantee;
        self.violations.iter().filter(of).count()
    }

    /// For a person: the first `most` violations, each with its two operations.
    #[must_use]
    pub fn explain(&self, history: &History, most: usize) -> String {
        let mut text = format!("{self}\n");
        for violation in self.violations.iter().take(most) {
            let (earlier, later) = (violation.earlier, violation.later);
            let guarantee = violation.guarantee;
            text.push_str(&format!("\n{guarantee}: #{later} does not know of #{earlier}\n"));
            text.push_str(&history.draw(&[earlier, later]));
        }
        let more = self.violations.len().saturating_sub(most);
        if more > 0 {
            text.push_str(&format!("\nand {more} more\n"));
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} violations in {} reads and {} writes, {} reads of values that the log does not have",
            self.violations.len(),
            self.reads,
            self.writes,
            self.unplaced.len()
        )
    }
}

/// Judges the four guarantees of every session.
#[must_use]
pub fn check(history: &History, scope: Scope) -> Report {
    let mut report = Report::default();
    let log = Log::new(history);
    let mut sessions: BTreeMap<(u64, &str), Vec<usize>> = BTreeMap::new();
    for (number, operation) in history.operations().iter().enumerate() {
        let key = match scope {
            Scope::Key => operation.key.as_str(),
            Scope::Group => "",
        };
        sessions.entry((operation.session, key)).or_default().push(number);
    }
    for numbers in sessions.into_values() {
        let (mut written, mut seen) = (Floor::default(), Floor::default());
        in_time(history, &numbers, 0, |number, operation, event| {
            let shows = log.shown(operation);
            let writes = log.written(operation);
            match event {
                Event::Call => {
                    if let Some(shows) = shows {
                        report.reads += 1;
                        let show = |floor: &Floor| log.newest(&operation.key, floor.place) > shows.last;
                        report.note(Guarantee::ReadYourWrites, &written, number, show);
                        report.note(Guarantee::MonotonicReads, &seen, number, show);
                    } else if operation.saw().is_some() {
                        report.unplaced.push(number);
                    }
                    if let Some(writes) = writes {
                        report.writes += 1;
                        let before = |floor: &Floor| floor.place > writes.last;
                        report.note(Guarantee::MonotonicWrites, &written, number, before);
                        report.note(Guarantee::WritesFollowReads, &seen, number, before);
                    }
                }
                Event::Return => {
                    if operation.outcome.effect() == Effect::Certain {
                        written.raise(writes, number);
                        seen.raise(shows, number);
                    }
                }
            }
        });
    }
    report.sort();
    report
}

/// Judges that no read shows less than what was acknowledged more than `bound` nanoseconds before its call.
#[must_use]
pub fn bounded(history: &History, bound: u64) -> Report {
    let mut report = Report::default();
    let log = Log::new(history);
    for (_, numbers) in history.by_key() {
        let mut written = Floor::default();
        in_time(history, &numbers, bound, |number, operation, event| match event {
            Event::Call => {
                if let Some(shows) = log.shown(operation) {
                    report.reads += 1;
                    let older = |floor: &Floor| floor.place > shows.last;
                    report.note(Guarantee::BoundedStaleness, &written, number, older);
                } else if operation.saw().is_some() {
                    report.unplaced.push(number);
                }
            }
            Event::Return => {
                if operation.wrote().is_some() {
                    written.raise(log.written(operation), number);
                }
            }
        });
    }
    report.sort();
    report
}

impl Report {
    fn note(&mut self, guarantee: Guarantee, floor: &Floor, later: usize, broken: impl Fn(&Floor) -> bool) {
        if let Some(earlier) = floor.by.filter(|_| broken(floor)) {
            self.violations.push(Violation {
                guarantee,
                earlier,
                later,
            });
        }
    }

    fn sort(&mut self) {
        self.violations.sort_by_key(|v| (v.later, v.guarantee));
        self.unplaced.sort_unstable();
    }
}

/// The newest place that is known, and who knows it.
#[derive(Debug, Default)]
struct Floor {
    place: u64,
    by: Option<usize>,
}

impl Floor {
    fn raise(&mut self, places: Option<Places>, by: usize) {
        if let Some(places) = places.filter(|places| places.first > self.place) {
            self.place = places.first;
            self.by = Some(by);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call,
    Return,
}

/// Calls and returns in the order of time; returns come `later`, and after calls of the same time.
fn in_time(history: &History, numbers: &[usize], later: u64, mut each: impl FnMut(usize, &Operation, Event)) {
    let operations = history.operations();
    let mut events: Vec<(u64, Event, usize)> = numbers
        .iter()
        .flat_map(|number| {
            let operation = &operations[*number];
            let ret = operation.ret.saturating_add(later);
            [
                (operation.call, Event::Call, *number),
                (ret, Event::Return, *number),
            ]
        })
        .collect();
    events.sort_unstable();
    for (_, event, number) in events {
        each(number, &operations[number], event);
    }
}

/// Where a value is in the log: more than one place if it was applied more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Places {
    first: u64,
    last: u64,
}

/// The log of applied writes by value. Places count from 1; 0 is before everything.
struct Log<'a> {
    places: HashMap<(&'a str, Value), Places>,
    keys: HashMap<&'a str, Vec<u64>>,
}

impl<'a> Log<'a> {
    fn new(history: &'a History) -> Self {
        let mut log = Self {
            places: HashMap::new(),
            keys: HashMap::new(),
        };
        let (mut place, mut position) = (0, None);
        for applied in history.applied() {
            if position != Some(applied.position) {
                position = Some(applied.position);
                place += 1;
            }
            let key = applied.key.as_str();
            log.keys.entry(key).or_default().push(place);
            log.places
                .entry((key, applied.value))
                .and_modify(|places| places.last = place)
                .or_insert(Places {
                    first: place,
                    last: place,
                });
        }
        log
    }

    fn shown(&self, operation: &Operation) -> Option<Places> {
        match operation.saw()? {
            None => Some(Places { first: 0, last: 0 }),
            Some(value) => self.places.get(&(operation.key.as_str(), value)).copied(),
        }
    }

    fn written(&self, operation: &Operation) -> Option<Places> {
        let value = operation.kind.writes()?;
        self.places.get(&(operation.key.as_str(), value)).copied()
    }

    /// The place of what a key held at a place; 0 if nothing.
    fn newest(&self, key: &str, place: u64) -> u64 {
        let places = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let behind = places.partition_point(|at| *at <= place);
        behind.checked_sub(1).map_or(0, |last| places[last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str, scope: Scope) -> Vec<(Guarantee, usize, usize)> {
        let history: History = text.parse().unwrap();
        let report = check(&history, scope);
        let triple = |v: &Violation| (v.guarantee, v.earlier, v.later);
        report.violations.iter().map(triple).collect()
    }

    fn stale(text: &str, bound: u64) -> Vec<(usize, usize)> {
        let history: History = text.parse().unwrap();
        let report = bounded(&history, bound);
        report.violations.iter().map(|v| (v.earlier, v.later)).collect()
    }

    #[test]
    fn a_session_that_reads_its_past_or_newer_is_fine() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 read -> 10
1 k 4..5 read -> 11
1 k 6..7 write 12 -> ok
2 k 4..5 write 11 -> ok
2 k 8..9 read -> 11
applied 1 k 10
applied 2 k 11
applied 3 k 12
";
        assert_eq!(broken(text, Scope::Key), []);
        assert_eq!(broken(text, Scope::Group), []);
    }

    #[test]
    fn a_read_that_misses_the_sessions_own_write_is_named_with_it() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 write 11 -> ok
1 k 4..5 read -> 10
applied 1 k 10
applied 2 k 11
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::ReadYourWrites, 1, 2)]);
        // Absence is older than anything.
        let text = text.replace("read -> 10", "read -> absent");
        assert_eq!(broken(&text, Scope::Key), [(Guarantee::ReadYourWrites, 1, 2)]);
        // Another session's read may be late, and so may one that was under way.
        for other in [text.replace("1 k 4..5", "2 k 4..5"), text.replace("4..5", "3..5")] {
            assert!(
                broken(&other, Scope::Key)
                    .iter()
                    .all(|(_, earlier, _)| *earlier == 0)
            );
        }
    }

    #[test]
    fn a_read_that_goes_back_in_time_is_named_with_the_newer_one() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 write 11 -> ok
2 k 4..5 read -> 11
2 k 6..7 read -> 10
applied 1 k 10
applied 2 k 11
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::MonotonicReads, 2, 3)]);
    }

    #[test]
    fn writes_of_a_session_keep_their_order() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 write 11 -> ok
applied 1 k 11
applied 2 k 10
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::MonotonicWrites, 0, 1)]);
        // Across keys only where the log has one order.
        let text = text.replace("1 k 2..3", "1 j 2..3").replace("1 k 11", "1 j 11");
        assert_eq!(broken(&text, Scope::Key), []);
        assert_eq!(broken(&text, Scope::Group), [(Guarantee::MonotonicWrites, 0, 1)]);
        // One of unknown outcome may be applied late, but what follows an answer may not be applied before it.
        let text = "\
1 k 0..1 write 10 -> unknown
1 k 2..3 write 11 -> ok
1 k 4..5 write 12 -> unknown
applied 1 k 12
applied 2 k 11
applied 3 k 10
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::MonotonicWrites, 1, 2)]);
    }

    #[test]
    fn a_write_is_applied_after_what_its_session_had_seen() {
        let text = "\
1 k 0..1 write 10 -> ok
2 k 2..3 read -> 10
2 k 4..5 write 11 -> ok
applied 1 k 11
applied 2 k 10
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::WritesFollowReads, 1, 2)]);
    }

    #[test]
    fn a_compare_and_set_has_seen_what_it_expected() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 write 11 -> ok
1 k 4..5 cas 10 12 -> ok
1 k 6..7 cas 10 13 -> failed
applied 1 k 10
applied 2 k 11
applied 3 k 12
";
        assert_eq!(broken(text, Scope::Key), [(Guarantee::ReadYourWrites, 1, 2)]);
    }

    #[test]
    fn in_a_group_a_read_shows_its_key_as_of_the_newest_place_known() {
        // The session saw j=20, which was applied after k=11; so k=10 is too old for it.
        let text = "\
9 k 0..1 write 10 -> ok
9 k 2..3 write 11 -> ok
9 j 4..5 write 20 -> ok
1 j 6..7 read -> 20
1 k 8..9 read -> 10
applied 1 k 10
applied 2 k 11
applied 3 j 20
";
        assert_eq!(broken(text, Scope::Key), []);
        assert_eq!(broken(text, Scope::Group), [(Guarantee::MonotonicReads, 3, 4)]);
        // What is applied together is seen together.
        let text = text.replace("applied 2 k", "applied 3 k");
        assert_eq!(broken(&text, Scope::Group), [(Guarantee::MonotonicReads, 3, 4)]);
        // But not what came after it.
        let text = text
            .replace("applied 3 k 11\n", "")
            .replace("3 j 20\n", "3 j 20\napplied 4 k 11\n");
        assert_eq!(
            broken(&text, Scope::Group),
            [(Guarantee::MonotonicWrites, 1, 2)],
            "of the writer"
        );
    }

    #[test]
    fn a_value_that_was_applied_twice_gets_the_benefit_of_the_doubt() {
        let text = "\
1 k 0..1 write 10 -> ok
1 k 2..3 write 11 -> ok
1 k 4..5 read -> 10
applied 1 k 10
applied 2 k 11
applied 3 k 10
";
        assert_eq!(broken(text, Scope::Key), []);
    }

    #[test]
    fn what_the_log_does_not_have_is_listed_and_not_judged() {
        let history: History = "1 k 0..1 write 10 -> ok\n1 k 2..3 read -> 10".parse().unwrap();
        let report = check(&history, Scope::Key);
        assert_eq!((report.unplaced, report.violations), (vec![1], vec![]));
        assert_eq!((report.reads, report.writes), (0, 0));
    }

    #[test]
    fn a_read_may_be_as_old_as_the_bound_and_no_older() {
        let text = "\
1 k 0..100 write 10 -> ok
1 k 200..300 write 11 -> ok
2 k 400..410 read -> 10
2 k 401..411 read -> 10
2 k 900..910 read -> absent
applied 1 k 10
applied 2 k 11
";
        assert_eq!(stale(text, 100), [(1, 3), (1, 4)]);
        assert_eq!(stale(text, 1_000), []);
        assert_eq!(stale(text, 0), [(1, 2), (1, 3), (1, 4)]);
    }

    #[test]
    fn an_explanation_shows_both_operations() {
        let history: History = "\
1 k 0..1 write 10 -> ok
1 k 2..3 read -> absent at=n2
applied 1 k 10
"
        .parse()
        .unwrap();
        let said = check(&history, Scope::Key).explain(&history, 5);
        assert_eq!(
            said,
            "\
1 violations in 1 reads and 1 writes, 0 reads of values that the log does not have

read your writes: #1 does not know of #0
[]    #0 1 k 0..1 write 10 -> ok
  []  #1 1 k 2..3 read -> absent at=n2
"
        );
    }
}
