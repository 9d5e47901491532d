//! Lineage: which history a position belongs to.
//!
//! After a failover two histories have the same numbers: the old leader may have had writes that the new one never saw,
//! and the new one gives their positions to others. A token from before then looks satisfied by unrelated data, which is
//! how a client reads that its acknowledged write is there when it is gone. So every position is read together with the
//! lineage it was taken on, and lineages are connected by **forks**: the child goes on from the parent at a point, and
//! what the parent had beyond it is lost to the child.
//!
//! A fork point may be known exactly (Patroni's `/history`, Redis' `second_repl_offset`) or only from what the proxy saw:
//! the new leader had at least what it showed while it followed (`sure`), and at most what it showed when it first led
//! (`most`). Between the two nobody knows, and [`Answer::Unknown`] says so.
//!
//! A history can be abandoned and taken up again (a deposed leader that steals its key back), so forks may form a circle;
//! every search is bounded by the number of forks that are kept ([`Forks::MOST`], the oldest forgotten first: a position
//! behind a forgotten fork is unknown, never satisfied).

use crate::hash;

use super::position::Position;

/// The name of a history: four bytes of the hash of a cluster's identity and its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(u32);

impl Lineage {
    /// The history `timeline` of the cluster `id`; both as the upstream writes them, empty where it has none.
    #[must_use]
    pub fn of(id: &str, timeline: &str) -> Self {
        // A NUL cannot be in either, so no two pairs are the same bytes.
        let bytes = [id.as_bytes(), &[0], timeline.as_bytes()].concat();
        Self((hash::of_key(&bytes) >> 32) as u32)
    }

    /// The lineage of these bytes of a token or file.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

/// Eight hexadecimal digits.
impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Where a history goes on from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The one it leaves.
    pub parent: Lineage,
    /// The one that begins.
    pub child: Lineage,
    /// What the child has of the parent for certain; `None` where nothing is.
    pub sure: Option<Position>,
    /// What it has of it at most; the same as `sure` where the point is known exactly.
    pub most: Position,
}

impl Fork {
    /// A fork at a known point.
    #[must_use]
    pub fn exact(parent: Lineage, child: Lineage, at: Position) -> Self {
        Self {
            parent,
            child,
            sure: Some(at.clone()),
            most: at,
        }
    }

    /// Whether the point is known exactly.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.sure.as_ref() == Some(&self.most)
    }
}

/// The forks that are known, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forks {
    known: Vec<Fork>,
}

/// Whether a node has what is wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It has.
    Covered,
    /// It will, if it goes on.
    NotYet,
    /// It never will: its history left that of the position before it.
    Lost,
    /// Nobody can tell: the fork between the two is not known, or not exactly enough, or the positions do not compare.
    Unknown,
}

impl Answer {
    /// The word in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::NotYet => "not_yet",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

impl Forks {
    /// The most that are kept.
    pub const MOST: usize = 64;

    /// None known.
    #[must_use]
    pub const fn new() -> Self {
        Self { known: Vec::new() }
    }

    /// All of them, the oldest first.
    #[must_use]
    pub fn known(&self) -> &[Fork] {
        &self.known
    }

    /// Learns of a fork. Whether that is news: an exact point replaces a guessed one between the same lineages, and nothing
    /// replaces an exact one.
    pub fn record(&mut self, fork: Fork) -> bool {
        if fork.parent == fork.child {
            return false;
        }
        let same = |known: &Fork| known.parent == fork.parent && known.child == fork.child;
        if let Some(at) = self.known.iter().position(same) {
            let known = &self.known[at];
            if known.is_exact() || *known == fork {
                return false;
            }
            self.known.remove(at);
        } else if self.known.len() == Self::MOST {
            self.known.remove(0);
        }
        self.known.push(fork);
        true
    }

    /// Whether a node at `position` of `lineage` has what was wanted at a position of a lineage.
    ///
    /// The same lineage: its position decides. A descendant: what lies up to the forks between is in it once its position
    /// covers that, what lies behind one of them is lost. An ancestor: not yet, it will follow. Siblings: what only the
    /// other branch has is lost.
    #[must_use]
    pub fn satisfies(&self, node: (Lineage, &Position), wanted: (Lineage, &Position)) -> Answer {
        let (here, position) = node;
        let (there, needed) = wanted;
        if position.kind() != needed.kind() {
            return Answer::Unknown;
        }
        if here == there {
            return reached(position, needed);
        }
        match self.survives(there, here, needed) {
            Some(Survival::Whole) => return reached(position, needed),
            Some(Survival::Lost) => return Answer::Lost,
            Some(Survival::Doubtful) => return Answer::Unknown,
            None => {}
        }
        if self.survives(here, there, needed).is_some() {
            return Answer::NotYet;
        }
        self.across(node, wanted)
    }

    /// What becomes of what `from` had up to `needed` on the way down to `to`; `None` without a way.
    ///
    /// Of several ways the shortest counts, which is the only one unless a history was taken up again.
    fn survives(&self, from: Lineage, to: Lineage, needed: &Position) -> Option<Survival> {
        // From the child up: a history leaves exactly one other, so there is little to search.
        let mut front = vec![(to, Survival::Whole)];
        let mut seen = vec![to];
        while !front.is_empty() {
            let mut next = Vec::new();
            for (at, so_far) in front {
                for fork in self.known.iter().filter(|fork| fork.child == at) {
                    let survival = so_far.max(Survival::of(fork, needed));
                    if fork.parent == from {
                        return Some(survival);
                    }
                    if !seen.contains(&fork.parent) {
                        seen.push(fork.parent);
                        next.push((fork.parent, survival));
                    }
                }
            }
            front = next;
        }
        None
    }

    /// Two branches of one history: climbs from what is wanted to where the branches part.
    fn across(&self, node: (Lineage, &Position), wanted: (Lineage, &Position)) -> Answer {
        let (mut at, needed) = wanted;
        let mut shared = Survival::Whole;
        for _ in 0..self.known.len() {
            let Some(fork) = self.known.iter().rev().find(|fork| fork.child == at) else {
                return Answer::Unknown;
            };
            // Whether the position lies before this branch began, and so belongs to the parent too.
            shared = shared.max(Survival::of(fork, needed));
            at = fork.parent;
            if let Some(survival) = self.survives(at, node.0, needed) {
                return match shared.max(survival) {
                    Survival::Whole => reached(node.1, needed),
                    Survival::Doubtful => Answer::Unknown,
                    Survival::Lost => Answer::Lost,
                };
            }
        }
        Answer::Unknown
    }
}

/// What is left of a position behind a fork, from the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Survival {
    Whole,
    Doubtful,
    Lost,
}

impl Survival {
    fn of(fork: &Fork, needed: &Position) -> Self {
        if fork.sure.as_ref().is_some_and(|sure| sure.covers(needed)) {
            Self::Whole
        } else if fork.most.kind() == needed.kind() && !fork.most.covers(needed) {
            Self::Lost
        } else {
            Self::Doubtful
        }
    }
}

fn reached(position: &Position, needed: &Position) -> Answer {
    if position.covers(needed) {
        Answer::Covered
    } else {
        Answer::NotYet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(n: u32) -> Lineage {
        Lineage(n)
    }

    fn at(n: u64) -> Position {
        Position::U64(n)
    }

    fn forks(of: &[(u32, u32, u64)]) -> Forks {
        let mut forks = Forks::new();
        for &(parent, child, point) in of {
            assert!(forks.record(Fork::exact(line(parent), line(child), at(point))));
        }
        forks
    }

    fn ask(forks: &Forks, node: (u32, u64), wanted: (u32, u64)) -> Answer {
        forks.satisfies((line(node.0), &at(node.1)), (line(wanted.0), &at(wanted.1)))
    }

    #[test]
    fn on_one_lineage_the_position_decides() {
        let forks = Forks::new();
        assert_eq!(ask(&forks, (1, 5), (1, 5)), Answer::Covered);
        assert_eq!(ask(&forks, (1, 4), (1, 5)), Answer::NotYet);
    }

    #[test]
    fn what_lay_before_the_fork_is_satisfied_by_a_descendant() {
        let forks = forks(&[(1, 2, 100)]);
        assert_eq!(ask(&forks, (2, 150), (1, 100)), Answer::Covered);
        assert_eq!(ask(&forks, (2, 99), (1, 100)), Answer::NotYet);
    }

    #[test]
    fn what_lay_behind_the_fork_is_lost_however_far_the_descendant_is() {
        let forks = forks(&[(1, 2, 100)]);
        assert_eq!(ask(&forks, (2, 101), (1, 101)), Answer::Lost);
        assert_eq!(ask(&forks, (2, 9999), (1, 101)), Answer::Lost);
    }

    #[test]
    fn on_the_way_down_every_fork_counts() {
        let forks = forks(&[(1, 2, 100), (2, 3, 50)]);
        assert_eq!(ask(&forks, (3, 200), (1, 50)), Answer::Covered);
        assert_eq!(
            ask(&forks, (3, 200), (1, 60)),
            Answer::Lost,
            "the second fork left earlier"
        );
    }

    #[test]
    fn a_node_on_an_older_lineage_has_it_not_yet() {
        let forks = forks(&[(1, 2, 100)]);
        assert_eq!(ask(&forks, (1, 5000), (2, 120)), Answer::NotYet);
        assert_eq!(
            ask(&forks, (1, 5000), (2, 90)),
            Answer::NotYet,
            "by the rule, although it is there"
        );
    }

    #[test]
    fn without_a_fork_between_them_nobody_knows() {
        assert_eq!(ask(&Forks::new(), (2, 150), (1, 100)), Answer::Unknown);
    }

    #[test]
    fn a_guessed_fork_leaves_a_gap_in_which_nobody_knows() {
        let mut forks = Forks::new();
        forks.record(Fork {
            parent: line(1),
            child: line(2),
            sure: Some(at(100)),
            most: at(110),
        });
        assert_eq!(ask(&forks, (2, 200), (1, 100)), Answer::Covered);
        assert_eq!(ask(&forks, (2, 200), (1, 105)), Answer::Unknown);
        assert_eq!(ask(&forks, (2, 200), (1, 111)), Answer::Lost);
    }

    #[test]
    fn an_exact_fork_replaces_a_guess_and_is_not_replaced() {
        let mut forks = Forks::new();
        let guess = Fork {
            parent: line(1),
            child: line(2),
            sure: Some(at(1)),
            most: at(9),
        };
        let exact = Fork::exact(line(1), line(2), at(5));
        assert!(forks.record(guess.clone()));
        assert!(!forks.record(guess.clone()), "no news");
        assert!(forks.record(exact.clone()));
        assert!(!forks.record(guess));
        assert_eq!(forks.known(), [exact]);
    }

    #[test]
    fn what_only_a_sibling_has_is_lost() {
        let forks = forks(&[(1, 2, 100), (1, 3, 120)]);
        assert_eq!(ask(&forks, (3, 500), (2, 110)), Answer::Lost);
        assert_eq!(
            ask(&forks, (3, 500), (2, 100)),
            Answer::Covered,
            "it lies in both"
        );
        assert_eq!(ask(&forks, (2, 500), (3, 110)), Answer::Lost);
    }

    #[test]
    fn a_history_that_is_taken_up_again_has_lost_the_one_that_was_abandoned() {
        // Finding 4: timeline 2 began at 100, then the old leader stole its key back and went on with timeline 1.
        let forks = forks(&[(1, 2, 100), (2, 1, 100)]);
        assert_eq!(ask(&forks, (1, 500), (2, 101)), Answer::Lost);
        assert_eq!(ask(&forks, (1, 500), (2, 100)), Answer::Covered);
        assert_eq!(ask(&forks, (1, 500), (1, 300)), Answer::Covered);
    }

    #[test]
    fn positions_of_different_types_do_not_answer() {
        let answer = Forks::new().satisfies((line(1), &Position::Lsn(9)), (line(1), &at(1)));
        assert_eq!(answer, Answer::Unknown);
    }

    #[test]
    fn the_oldest_forks_are_forgotten_and_then_nobody_knows() {
        let mut forks = Forks::new();
        for n in 0..1000 {
            forks.record(Fork::exact(line(n), line(n + 1), at(100)));
        }
        assert_eq!(forks.known().len(), Forks::MOST);
        assert_eq!(ask(&forks, (1000, 200), (990, 50)), Answer::Covered);
        assert_eq!(ask(&forks, (1000, 200), (1, 50)), Answer::Unknown);
    }

    #[test]
    fn names_of_histories_never_change() {
        assert_eq!(Lineage::of("a", "b"), Lineage::of("a", "b"));
        assert_ne!(Lineage::of("ab", ""), Lineage::of("a", "b"));
        let again = Lineage::from_bytes(Lineage::of("7", "2").to_bytes());
        assert_eq!(again, Lineage::of("7", "2"));
        assert_eq!(Lineage(0xab).to_string(), "000000ab");
    }

    proptest! {
        /// A model: each lineage is the set of writes it contains; satisfied means contained.
        #[test]
        fn no_answer_contradicts_the_histories(
            points in proptest::collection::vec((0usize..5, 0u64..20), 1..5),
            node in (0usize..6, 0u64..30),
            wanted in (0usize..6, 1u64..30),
        ) {
            // history[l][p] is the lineage that wrote position p of lineage l.
            let mut histories: Vec<Vec<usize>> = vec![vec![0; 31]];
            let mut forks = Forks::new();
            for (i, (parent, point)) in points.into_iter().enumerate() {
                let (parent, child) = (parent.min(i), i + 1);
                let own = (0..31).map(|p| if p <= point { histories[parent][p as usize] } else { child });
                let own: Vec<usize> = own.collect();
                histories.push(own);
                forks.record(Fork::exact(line(parent as u32), line(child as u32), at(point)));
            }
            let count = histories.len();
            let (node, wanted) = ((node.0 % count, node.1), (wanted.0 % count, wanted.1));
            let contains = histories[node.0][wanted.1 as usize] == histories[wanted.0][wanted.1 as usize];
            let answer = ask(&forks, (node.0 as u32, node.1), (wanted.0 as u32, wanted.1));
            match answer {
                Answer::Covered => prop_assert!(contains && node.1 >= wanted.1),
                Answer::Lost => prop_assert!(!contains),
                Answer::NotYet => {}
                Answer::Unknown => prop_assert!(false, "every fork is known and exact"),
            }
        }
    }
}
