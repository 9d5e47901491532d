//! Sets of routes: sorted words of 64 bits, empty words left out.
//!
//! A table of a thousand routes in which each host has its own few routes would, with plain bit sets, spend a
//! megabyte on zeros; with sorted lists of numbers, a catch-all set of a thousand would be slow to intersect. Words
//! that skip the empty ones are small in the first case and sixteen `and`s in the second.

/// A set of routes. Words ascend, and no word is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row(Box<[(u32, u64)]>);

impl Row {
    /// The set of these route numbers, which must ascend.
    pub(super) fn of(indices: impl IntoIterator<Item = usize>) -> Self {
        let mut words: Vec<(u32, u64)> = Vec::new();
        for index in indices {
            let (word, bit) = ((index / 64) as u32, 1u64 << (index % 64));
            match words.last_mut() {
                Some((last, bits)) if *last == word => *bits |= bit,
                _ => words.push((word, bit)),
            }
        }
        Self(words.into())
    }

    /// Routes in either set.
    pub(super) fn union(&self, other: &Self) -> Self {
        let (mut left, mut right) = (&self.0[..], &other.0[..]);
        let mut words = Vec::with_capacity(left.len().max(right.len()));
        loop {
            match (left, right) {
                ([(a, x), rest_left @ ..], [(b, y), rest_right @ ..]) if a == b => {
                    words.push((*a, x | y));
                    (left, right) = (rest_left, rest_right);
                }
                ([a, rest @ ..], [b, ..]) if a.0 < b.0 => {
                    words.push(*a);
                    left = rest;
                }
                (_, [b, rest @ ..]) => {
                    words.push(*b);
                    right = rest;
                }
                (rest, []) => {
                    words.extend_from_slice(rest);
                    return Self(words.into());
                }
            }
        }
    }

    pub(super) fn words(&self) -> &[(u32, u64)] {
        &self.0
    }

    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor(&self.0)
    }
}

/// Reads a set in ascending order of words.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor<'a>(&'a [(u32, u64)]);

impl Cursor<'_> {
    /// The bits of this word. Words must be asked for in ascending order.
    pub(super) fn word(&mut self, word: u32) -> u64 {
        while let [(at, bits), rest @ ..] = self.0 {
            if *at > word {
                return 0;
            }
            if *at == word {
                return *bits;
            }
            self.0 = rest;
        }
        0
    }
}

/// The route number of a bit.
pub(super) fn index(word: u32, bit: u32) -> usize {
    word as usize * 64 + bit as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members(row: &Row) -> BTreeSet<usize> {
        row.words()
            .iter()
            .flat_map(|&(word, bits)| {
                (0..64)
                    .filter(move |bit| bits >> bit & 1 == 1)
                    .map(move |bit| index(word, bit))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_union_holds_the_members_of_both(
            a in proptest::collection::btree_set(0usize..400, 0..30),
            b in proptest::collection::btree_set(0usize..400, 0..30),
        ) {
            let (left, right) = (Row::of(a.iter().copied()), Row::of(b.iter().copied()));
            prop_assert_eq!(members(&left.union(&right)), a.union(&b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(members(&left), a);
        }
    }

    #[test]
    fn a_cursor_skips_to_the_word_asked_for() {
        let row = Row::of([1, 200, 201, 700]);
        let mut cursor = row.cursor();
        assert_eq!(cursor.word(0), 2);
        assert_eq!(cursor.word(0), 2);
        assert_eq!(cursor.word(2), 0);
        assert_eq!(cursor.word(3), 1 << 8 | 1 << 9);
        assert_eq!(cursor.word(11), 0);
    }
}
