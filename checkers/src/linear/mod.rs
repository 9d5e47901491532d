//! Linearizability of registers: is there one order that explains every answer?
//!
//! A history is linearizable if each operation can be given one instant between its call and its return so that a single
//! register, doing them in that order, would have answered the same. The search is that of Wing and Gong with Lowe's
//! memory ("Testing for linearizability", 2017): calls and returns in a linked list; take out an operation that has been
//! called and fits the state; when a return is met whose operation is still there, go back. Which operations are placed
//! and what the register holds is remembered, so nothing is tried twice. Registers are judged one by one, because a
//! history is linearizable exactly if each key's is (Herlihy and Wing, 1990).
//!
//! The question is NP-complete; what makes it quick for what clients really record:
//!
//! * What changes nothing (a read, a failed compare-and-set) is placed as soon as it fits, and never reconsidered:
//!   placing it earlier cannot hurt the others.
//! * A value is not left while somebody has yet to see it and nobody will write it again.
//! * A write with a value of its own has been done before the first answer that shows it, and who shows it began to look
//!   after the write was called. That gives most unknown writes an end; one whose value nobody ever saw can be left out.
//!   Not where a compare-and-set failed, for which any value may be the reason; but then one is as good as another.
//! * A write whose value nobody saw is placed at the first moment when nobody misses the value before it.
//!
//! An operation without a certain effect may take place at any time after its call or never; one that is said to have none
//! takes no part, so whoever sees its value sees a value that nobody wrote. Calls and returns at the same nanosecond
//! overlap. What must stay true: "violated" is a proof, "linearizable" is a proof, and when the budget is spent the answer
//! is that it is not known.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

use crate::history::{Effect, History, Kind, NEVER, Operation, Outcome};

/// Steps per key that decide what real clients record: about a second at most, and about 100 MB.
pub const STEPS: u64 = 20_000_000;

/// What came of all keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many registers were judged.
    pub keys: usize,
    /// How many operations took part.
    pub operations: usize,
    /// How many steps the searches took; equal histories take equally many.
    pub steps: u64,
    /// Registers that cannot be explained, each with the proof.
    pub violations: Vec<Violation>,
    /// Registers for which the budget did not suffice.
    pub undecided: Vec<String>,
}

/// The answer in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An order was found for every key.
    Linearizable,
    /// There is none for some key.
    Violated,
    /// None was found to be violated, and for some key the budget did not suffice.
    Unknown,
}

impl Report {
    /// The answer in one word.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if !self.violations.is_empty() {
            Verdict::Violated
        } else if self.undecided.is_empty() {
            Verdict::Linearizable
        } else {
            Verdict::Unknown
        }
    }

    /// The same for a person, with the operations that prove it.
    #[must_use]
    pub fn explain(&self, history: &History) -> String {
        let mut text = format!("{self}\n");
        for violation in &self.violations {
            text.push_str(&format!("\nkey {}: {violation}\n", violation.key));
            text.push_str(&history.draw(&violation.window));
        }
        for key in &self.undecided {
            text.push_str(&format!(
                "\nkey {key}: the budget was spent before it was decided\n"
            ));
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict() {
            Verdict::Linearizable => "linearizable",
            Verdict::Violated => "NOT linearizable",
            Verdict::Unknown => "undecided",
        };
        write!(
            f,
            "{word}: {} operations on {} keys, {} keys violated, {} undecided, {} steps",
            self.operations,
            self.keys,
            self.violations.len(),
            self.undecided.len(),
            self.steps
        )
    }
}

/// The proof that one register's answers have no order. Numbers are those of [`History::push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which register.
    pub key: String,
    /// An order of the longest part of the run that has one, from its beginning. What need not have happened by then is
    /// left out, and so is what was under way without having been seen.
    pub placed: Vec<usize>,
    /// The operation whose answer ends that part: with it there is no order.
    pub stuck: usize,
    /// Few operations that have no order among themselves. Whoever understands these has understood the violation.
    pub window: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "up to then {} operations have an order, with the answer of #{} there is none; these alone have none:",
            self.placed.len(),
            self.stuck
        )
    }
}

/// Judges every register of a history, with a budget of steps for each ([`STEPS`] is a good one).
#[must_use]
pub fn check(history: &History, steps: u64) -> Report {
    let mut report = Report {
        keys: 0,
        operations: 0,
        steps: 0,
        violations: Vec::new(),
        undecided: Vec::new(),
    };
    for (key, numbers) in history.by_key() {
        let register = Register::new(history, &numbers, NEVER);
        report.keys += 1;
        report.operations += register.items.len();
        let mut left = steps;
        match register.search(&mut left) {
            Found::Order(_) => {}
            Found::GaveUp => report.undecided.push(key.to_owned()),
            Found::None => report.violations.push(prove(history, key, &numbers, steps)),
        }
        report.steps += steps - left;
    }
    report
}

/// One operation as the search sees it. Values are numbered, 0 is absence.
#[derive(Debug, Clone, Copy)]
struct Item {
    number: usize,
    call: u64,
    /// [`NEVER`]: it need not take place.
    ret: u64,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Read(u32),
    Write(u32),
    Swap { from: u32, to: u32 },
    Fails(u32),
}

impl Item {
    /// Whether it may be done at any time and serves only to end what was there before.
    fn spare(&self, dull: u32) -> bool {
        self.ret == NEVER && self.step == Step::Write(dull)
    }
}

impl Step {
    /// The value that it needs to find.
    const fn needs(self) -> Option<u32> {
        match self {
            Self::Read(value) | Self::Swap { from: value, .. } => Some(value),
            Self::Write(_) | Self::Fails(_) => None,
        }
    }

    /// The value that it leaves.
    const fn leaves(self) -> Option<u32> {
        match self {
            Self::Write(value) | Self::Swap { to: value, .. } => Some(value),
            Self::Read(_) | Self::Fails(_) => None,
        }
    }
}

/// The operations on one key, ready to be searched: those that must take place by call, then those that need not.
#[derive(Debug)]
struct Register {
    items: Vec<Item>,
    /// How many of them must take place.
    must: usize,
    values: usize,
    /// Stands for every value that nobody sees or expects.
    dull: u32,
}

impl Register {
    /// The register as it was known at a time: what was called later is left out, what was answered later is open.
    fn new(history: &History, numbers: &[usize], until: u64) -> Self {
        let mut ids = BTreeMap::new();
        let mut items: Vec<Item> = numbers
            .iter()
            .filter_map(|number| item(*number, &history.operations()[*number], until, &mut ids))
            .collect();
        narrow(&mut items, ids.len() + 1);
        let dull = merge(&mut items, ids.len() + 1);
        items.sort_by_key(|item| (item.ret == NEVER, !item.spare(dull), item.call, item.number));
        let must = items.partition_point(|item| item.ret != NEVER);
        Self {
            items,
            must,
            values: ids.len() + 2,
            dull,
        }
    }

    fn search(&self, budget: &mut u64) -> Found {
        Search::new(self).run(budget)
    }
}

fn item(number: usize, operation: &Operation, until: u64, ids: &mut BTreeMap<u64, u32>) -> Option<Item> {
    let certain = operation.outcome.effect() == Effect::Certain && operation.ret <= until;
    let possible = !certain && operation.kind.writes().is_some() && operation.outcome != Outcome::CasFailed;
    let takes_part = operation.outcome.effect() != Effect::Excluded && operation.call <= until;
    if !takes_part || !(certain || possible) {
        return None;
    }
    let mut id = |value: Option<u64>| {
        let next = ids.len() as u32 + 1;
        value.map_or(0, |value| *ids.entry(value).or_insert(next))
    };
    let step = match (operation.kind, operation.outcome) {
        (Kind::Read, Outcome::Saw(value)) => Step::Read(id(value)),
        (Kind::Read, _) => return None, // Not answered.
        (Kind::Write(value), _) => Step::Write(id(Some(value))),
        (Kind::Cas { expected, .. }, Outcome::CasFailed) => Step::Fails(id(expected)),
        (Kind::Cas { expected, new }, _) => Step::Swap {
            from: id(expected),
            to: id(Some(new)),
        },
    };
    Some(Item {
        number,
        call: operation.call,
        ret: if possible { NEVER } else { operation.ret },
        step,
    })
}

/// Makes spans as narrow as the answers prove, and takes out what need not have happened.
fn narrow(items: &mut Vec<Item>, values: usize) {
    // The only writer of each value that has one.
    let mut writers: Vec<Vec<usize>> = vec![Vec::new(); values];
    for (at, item) in items.iter().enumerate() {
        if let Some(value) = item.step.leaves() {
            writers[value as usize].push(at);
        }
    }
    let only = |value: u32| match writers[value as usize][..] {
        [writer] => Some(writer),
        _ => None,
    };
    // What proves a write may itself be proved by another, so each proof is followed up.
    let mut proofs: Vec<usize> = (0..items.len()).filter(|at| items[*at].ret != NEVER).collect();
    while let Some(at) = proofs.pop() {
        let Some(writer) = items[at].step.needs().and_then(only) else {
            continue;
        };
        let (seen, write) = (items[at].ret, items[writer]);
        // Seen before it was called: the search will find no place for the one who saw it.
        if writer == at || seen < write.call {
            continue;
        }
        items[at].call = items[at].call.max(write.call);
        if seen < write.ret {
            items[writer].ret = seen;
            proofs.push(writer);
        }
    }
    if items.iter().any(|item| matches!(item.step, Step::Fails(_))) {
        return;
    }
    // Somebody needs the value: those that must take place, and what leads to them.
    let mut needed = vec![false; values];
    loop {
        let before = needed.iter().filter(|needed| **needed).count();
        for item in items.iter() {
            let counts = item.ret != NEVER || item.step.leaves().is_some_and(|value| needed[value as usize]);
            if let Some(value) = item.step.needs().filter(|_| counts) {
                needed[value as usize] = true;
            }
        }
        if needed.iter().filter(|needed| **needed).count() == before {
            break;
        }
    }
    items.retain(|item| item.ret != NEVER || item.step.leaves().is_some_and(|value| needed[value as usize]));
}

/// Gives all values that nobody sees or expects one number, because it does not matter which of them is there.
fn merge(items: &mut [Item], values: usize) -> u32 {
    let dull = values as u32;
    let mut matters = vec![false; values];
    matters[0] = true;
    for item in items.iter() {
        if let Step::Read(value) | Step::Fails(value) | Step::Swap { from: value, .. } = item.step {
            matters[value as usize] = true;
        }
    }
    for item in items {
        if let Step::Write(value) | Step::Swap { to: value, .. } = &mut item.step
            && !matters[*value as usize]
        {
            *value = dull;
        }
    }
    dull
}

/// What a search came to.
#[derive(Debug)]
enum Found {
    /// An order, as numbers of operations.
    Order(Vec<usize>),
    None,
    GaveUp,
}

/// An operation that has been placed, and how to take it back.
#[derive(Debug, Clone, Copy)]
struct Placed {
    item: u32,
    before: u32,
    /// Nothing else had to be tried in its place.
    settled: bool,
}

struct Search<'a> {
    register: &'a Register,
    /// Calls (`1 + item`) and returns (`1 + items + item`) by time; 0 is the head, and the end.
    next: Vec<u32>,
    previous: Vec<u32>,
    state: u32,
    /// Those that must take place and have yet to see a value, or to write one, by value.
    wanted: Vec<u32>,
    coming: Vec<u32>,
    /// Values on which some compare-and-set would not have failed.
    refused: Vec<bool>,
    /// Writes that nobody sees may be settled: nothing depends on what a value is not.
    hasty: bool,
    stack: Vec<Placed>,
    /// Of `stack`, those that must take place.
    done: usize,
    /// One bit per operation: those that must, then in words of their own those that need not.
    placed: Vec<u64>,
    /// Words below this one are full.
    low: usize,
    seen: HashSet<Box<[u64]>>,
}

/// What remembering a configuration costs, in steps; visiting one operation costs one.
const REMEMBER: u64 = 16;

impl<'a> Search<'a> {
    fn new(register: &'a Register) -> Self {
        let items = &register.items;
        let count = items.len();
        let mut events: Vec<(u64, bool, u32)> = Vec::with_capacity(2 * count);
        let (mut wanted, mut coming) = (vec![0; register.values], vec![0; register.values]);
        let mut refused = vec![false; register.values];
        for (at, item) in items.iter().enumerate() {
            // At one instant calls come first: these overlap.
            events.push((item.call, false, 1 + at as u32));
            if item.ret != NEVER {
                events.push((item.ret, true, (1 + count + at) as u32));
            }
            if let Some(value) = item.step.needs() {
                wanted[value as usize] += u32::from(item.ret != NEVER);
            }
            if let Step::Fails(value) = item.step {
                refused[value as usize] = true;
            }
            if let Some(value) = item.step.leaves() {
                coming[value as usize] += 1;
            }
        }
        events.sort_unstable();
        let (mut next, mut previous) = (vec![0; 2 * count + 1], vec![0; 2 * count + 1]);
        let mut last = 0;
        for (_, _, node) in events {
            next[last as usize] = node;
            previous[node as usize] = last;
            last = node;
        }
        previous[0] = last;
        let words = register.must.div_ceil(64) + (count - register.must).div_ceil(64);
        Self {
            register,
            next,
            previous,
            state: 0,
            wanted,
            coming,
            hasty: register.must == count && !refused.contains(&true),
            refused,
            stack: Vec::with_capacity(count),
            done: 0,
            placed: vec![0; words],
            low: 0,
            seen: HashSet::new(),
        }
    }

    fn run(mut self, budget: &mut u64) -> Found {
        let count = self.register.items.len() as u32;
        let mut node = self.settle(budget);
        while self.done < self.register.must {
            if *budget == 0 {
                return Found::GaveUp;
            }
            *budget -= 1;
            if (1..=count).contains(&node) {
                let item = node - 1;
                if let Some(after) = self.fits(item) {
                    self.place(item, after, false);
                    if self.seen.insert(self.configuration()) {
                        *budget = budget.saturating_sub(REMEMBER);
                        node = self.settle(budget);
                        continue;
                    }
                    self.take_back();
                }
                node = self.next[node as usize];
                continue;
            }
            // A return, so its operation should have been placed. (There is one, or nothing would be left to do.)
            node = loop {
                match self.take_back() {
                    Some(placed) if placed.settled => {}
                    Some(placed) => break self.next[1 + placed.item as usize],
                    None => return Found::None,
                }
            };
        }
        let number = |placed: &Placed| self.register.items[placed.item as usize].number;
        Found::Order(self.stack.iter().map(number).collect())
    }

    /// Places what can be placed without a second thought, and gives the first node that is left.
    fn settle(&mut self, budget: &mut u64) -> u32 {
        let count = self.register.items.len() as u32;
        let mut node = self.next[0];
        while (1..=count).contains(&node) {
            *budget = budget.saturating_sub(1);
            let item = node - 1;
            node = match self.fits(item) {
                Some(after) if self.settled(item) => {
                    self.place(item, after, true);
                    // What was passed over may fit now.
                    self.next[0]
                }
                _ => self.next[node as usize],
            };
        }
        self.next[0]
    }

    /// What the register holds afterwards, if the operation can be next.
    fn fits(&self, item: u32) -> Option<u32> {
        let at = item as usize;
        let item = &self.register.items[at];
        // One is as good as another, so they are used in their order, and only where they serve a purpose.
        if item.spare(self.register.dull)
            && (!self.refused[self.state as usize] || (at > self.register.must && !self.is_placed(at - 1)))
        {
            return None;
        }
        match item.step {
            Step::Read(value) => (value == self.state).then_some(value),
            Step::Fails(value) => (value != self.state).then_some(self.state),
            Step::Write(value) => self.may_leave(0).then_some(value),
            Step::Swap { from, to } => {
                (from == self.state && self.may_leave(u32::from(item.ret != NEVER))).then_some(to)
            }
        }
    }

    /// Whether nobody but so many wants to see what is there, or it will be there again.
    fn may_leave(&self, but: u32) -> bool {
        let state = self.state as usize;
        self.wanted[state] <= but || self.coming[state] > 0
    }

    /// Whether an operation that fits can be placed at once without losing an order.
    fn settled(&self, item: u32) -> bool {
        match self.register.items[item as usize].step {
            Step::Read(_) | Step::Fails(_) => true,
            Step::Write(value) => {
                self.hasty && value == self.register.dull && self.wanted[self.state as usize] == 0
            }
            Step::Swap { .. } => false,
        }
    }

    fn place(&mut self, item: u32, after: u32, settled: bool) {
        self.stack.push(Placed {
            item,
            before: self.state,
            settled,
        });
        self.state = after;
        self.count(item, |count| *count -= 1);
        self.mark(item);
        for node in self.nodes(item).into_iter().flatten() {
            let (before, after) = (self.previous[node], self.next[node]);
            self.next[before as usize] = after;
            self.previous[after as usize] = before;
        }
    }

    fn take_back(&mut self) -> Option<Placed> {
        let placed = self.stack.pop()?;
        // In the reverse order of `place`, so each node still knows its neighbours.
        for node in self.nodes(placed.item).into_iter().rev().flatten() {
            let (before, after) = (self.previous[node], self.next[node]);
            self.next[before as usize] = node as u32;
            self.previous[after as usize] = node as u32;
        }
        self.mark(placed.item);
        self.count(placed.item, |count| *count += 1);
        self.state = placed.before;
        Some(placed)
    }

    /// Its nodes in the list: the call, and the return if there is one.
    fn nodes(&self, item: u32) -> [Option<usize>; 2] {
        let item = item as usize;
        let returns = item < self.register.must;
        [
            Some(1 + item),
            returns.then_some(1 + self.register.items.len() + item),
        ]
    }

    fn count(&mut self, item: u32, change: impl Fn(&mut u32)) {
        let item = &self.register.items[item as usize];
        if let Some(value) = item.step.needs().filter(|_| item.ret != NEVER) {
            change(&mut self.wanted[value as usize]);
        }
        if let Some(value) = item.step.leaves() {
            change(&mut self.coming[value as usize]);
        }
    }

    /// The word and the bit of an operation.
    const fn bit(&self, item: usize) -> (usize, u64) {
        match item.checked_sub(self.register.must) {
            None => (item / 64, 1 << (item % 64)),
            Some(open) => (self.must_words() + open / 64, 1 << (open % 64)),
        }
    }

    const fn is_placed(&self, item: usize) -> bool {
        let (word, bit) = self.bit(item);
        self.placed.as_slice()[word] & bit != 0
    }

    /// Turns the bit of an operation over.
    fn mark(&mut self, item: u32) {
        let (word, bit) = self.bit(item as usize);
        self.placed[word] ^= bit;
        if word >= self.must_words() {
            return;
        }
        if self.placed[word] & bit == 0 {
            self.done -= 1;
            self.low = self.low.min(word);
        } else {
            self.done += 1;
        }
        while self.placed[..self.must_words()].get(self.low) == Some(&u64::MAX) {
            self.low += 1;
        }
    }

    const fn must_words(&self) -> usize {
        self.register.must.div_ceil(64)
    }

    /// The state and the set of what is placed, without the words at both ends that say nothing.
    fn configuration(&self) -> Box<[u64]> {
        let (must, open) = self.placed.split_at(self.must_words());
        let mut left = self.done - 64 * self.low;
        let middle = must[self.low..].iter().take_while(|word| {
            let more = left > 0;
            left = left.saturating_sub(word.count_ones() as usize);
            more
        });
        let mut configuration = vec![(self.low as u64) << 32 | u64::from(self.state)];
        configuration.extend(open);
        // What can never be done any more is as good as done.
        for (at, item) in self.register.items[self.register.must..].iter().enumerate() {
            if let Step::Swap { from, .. } = item.step
                && from != self.state
                && self.coming[from as usize] == 0
            {
                configuration[1 + at / 64] |= 1 << (at % 64);
            }
        }
        configuration.extend(middle);
        configuration.into_boxed_slice()
    }
}

/// Finds out when it went wrong, and which operations show it.
fn prove(history: &History, key: &str, numbers: &[usize], steps: u64) -> Violation {
    let operations = history.operations();
    let mut answers: Vec<(u64, usize)> = (numbers.iter().copied())
        .filter(|number| operations[*number].outcome.effect() == Effect::Certain)
        .map(|number| (operations[number].ret, number))
        .collect();
    answers.sort_unstable();
    // A part of a run that goes from its beginning to some time is linearizable if the run is, so there is one answer
    // with which it ceases to be. (If the budget is spent on a part, a later one is taken.)
    let search = |until: u64| Register::new(history, numbers, until).search(&mut steps.clone());
    let first = answers.partition_point(|(ret, _)| !matches!(search(*ret), Found::None));
    let (until, stuck) = answers[first.min(answers.len() - 1)];
    let placed = match until.checked_sub(1).map(search) {
        Some(Found::Order(placed)) => placed,
        None | Some(Found::None | Found::GaveUp) => Vec::new(),
    };
    Violation {
        key: key.to_owned(),
        placed,
        stuck,
        window: window(history, numbers, until, stuck, steps),
    }
}

/// Leaves out what can be left out so that the rest has still no order.
///
/// A part of a history proves something about the whole only if leaving out preserves orders. Leaving out what changes
/// nothing does; so does leaving out a value altogether: everybody who writes it or sees it, and with a compare-and-set
/// that saw it the value that it wrote, as long as no compare-and-set that failed is left, whose reason may have been it.
fn window(history: &History, numbers: &[usize], until: u64, stuck: usize, steps: u64) -> Vec<usize> {
    let mut budget = steps;
    let mut kept: BTreeSet<usize> = Register::new(history, numbers, until)
        .items
        .iter()
        .map(|item| item.number)
        .collect();
    let operations = history.operations();
    loop {
        let before = kept.len();
        let idle = |outcome: fn(Outcome) -> bool| -> Vec<Vec<usize>> {
            let mut idle: Vec<usize> = (kept.iter().copied())
                .filter(|number| *number != stuck && outcome(operations[*number].outcome))
                .collect();
            // What is far from the place where it went wrong is likeliest not to matter.
            idle.sort_by_key(|number| operations[stuck].call.abs_diff(operations[*number].call));
            idle.reverse();
            idle.into_iter().map(|number| vec![number]).collect()
        };
        let (failed, reads) = (
            idle(|outcome| outcome == Outcome::CasFailed),
            idle(|outcome| matches!(outcome, Outcome::Saw(_))),
        );
        leave_out(history, until, &mut kept, &failed, &mut budget);
        leave_out(history, until, &mut kept, &reads, &mut budget);
        let fails = |number: &usize| operations[*number].outcome == Outcome::CasFailed;
        if !kept.iter().any(fails) {
            let values = values(history, &kept);
            leave_out(history, until, &mut kept, &values, &mut budget);
        }
        if kept.len() == before || budget == 0 {
            break;
        }
    }
    // A value that nobody of these wrote is the whole story: its write was called later, or is said to have had no effect.
    let mut strange: BTreeSet<u64> = (kept.iter())
        .filter_map(|number| operations[*number].saw().flatten())
        .collect();
    for value in kept.iter().filter_map(|number| operations[*number].kind.writes()) {
        strange.remove(&value);
    }
    kept.extend(numbers.iter().copied().filter(|number| {
        let writes = operations[*number].kind.writes();
        writes.is_some_and(|value| strange.contains(&value))
    }));
    kept.into_iter().collect()
}

/// For each value those who must go with it.
fn values(history: &History, kept: &BTreeSet<usize>) -> Vec<Vec<usize>> {
    let mut touching: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for number in kept {
        let operation = &history.operations()[*number];
        let expected = match operation.kind {
            Kind::Cas { expected, .. } => expected,
            Kind::Read | Kind::Write(_) => operation.saw().flatten(),
        };
        for value in expected.into_iter().chain(operation.kind.writes()) {
            touching.entry(value).or_default().push(*number);
        }
    }
    let closure = |first: u64| {
        let mut values = BTreeSet::from([first]);
        let mut next = vec![first];
        let mut gone = BTreeSet::new();
        while let Some(value) = next.pop() {
            for number in touching.get(&value).into_iter().flatten() {
                gone.insert(*number);
                let Kind::Cas { expected, new } = history.operations()[*number].kind else {
                    continue;
                };
                if expected == Some(value) && values.insert(new) {
                    next.push(new);
                }
            }
        }
        gone.into_iter().collect()
    };
    touching.keys().map(|value| closure(*value)).collect()
}

/// Takes groups out of `kept`, halves of them first and single ones last, wherever the rest has still no order.
fn leave_out(
    history: &History,
    until: u64,
    kept: &mut BTreeSet<usize>,
    groups: &[Vec<usize>],
    budget: &mut u64,
) {
    let mut size = groups.len();
    while size > 0 {
        for chunk in groups.chunks(size) {
            let gone: BTreeSet<usize> = chunk.iter().flatten().copied().collect();
            let rest: Vec<usize> = kept.difference(&gone).copied().collect();
            if rest.is_empty() || rest.len() == kept.len() || *budget == 0 {
                continue;
            }
            let register = Register::new(history, &rest, until);
            // A search for an order that exists can take long; one that is not quick is as good as one that succeeds.
            let mut few = (*budget).min(64 * REMEMBER * (rest.len() as u64 + 16));
            let given = few;
            let found = register.search(&mut few);
            *budget -= given - few;
            if matches!(found, Found::None) {
                *kept = rest.into_iter().collect();
            }
        }
        size /= 2;
    }
}

#[cfg(test)]
mod tests;
