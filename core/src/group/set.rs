//! Set: some members of a group.
//!
//! A group has three members, or five; hardly ever more than 64. So a set is one word, and only a group that is larger
//! pays for an allocation.

use super::observation::Member;

/// Some members, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Set {
    first: u64,
    /// Members from 64 on; no allocation while there are none, and never with a zero at the end.
    more: Vec<u64>,
}

impl Set {
    /// Nobody.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: 0,
            more: Vec::new(),
        }
    }

    /// Only this one.
    #[must_use]
    pub fn only(member: Member) -> Self {
        let mut set = Self::new();
        set.insert(member);
        set
    }

    /// Adds one. Whether it was not there.
    pub fn insert(&mut self, member: Member) -> bool {
        let (word, bit) = (member.index() / 64, 1 << (member.index() % 64));
        if word > self.more.len() {
            self.more.resize(word, 0);
        }
        let word = match word {
            0 => &mut self.first,
            n => &mut self.more[n - 1],
        };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes one out.
    pub fn remove(&mut self, member: Member) {
        let (word, bit) = (member.index() / 64, 1u64 << (member.index() % 64));
        match word {
            0 => self.first &= !bit,
            n => {
                if let Some(word) = self.more.get_mut(n - 1) {
                    *word &= !bit;
                }
                while self.more.last() == Some(&0) {
                    self.more.pop();
                }
            }
        }
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, member: Member) -> bool {
        let word = match member.index() / 64 {
            0 => self.first,
            n => self.more.get(n - 1).copied().unwrap_or(0),
        };
        word & (1 << (member.index() % 64)) != 0
    }

    /// Whether nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.more.is_empty()
    }

    /// How many are.
    #[must_use]
    pub fn len(&self) -> usize {
        let more: u32 = self.more.iter().map(|word| word.count_ones()).sum();
        (self.first.count_ones() + more) as usize
    }

    /// Its members, in order.
    pub fn iter(&self) -> impl Iterator<Item = Member> {
        let words = std::iter::once(self.first).chain(self.more.iter().copied());
        words.enumerate().flat_map(|(n, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                // Clears the lowest bit; of none, none.
                word &= word.wrapping_sub(1);
                (bit < 64).then_some(Member((n * 64) as u16 + bit as u16))
            })
        })
    }
}

impl FromIterator<Member> for Set {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let mut set = Self::new();
        for member in members {
            set.insert(member);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(
            steps in proptest::collection::vec((any::<bool>(), prop_oneof![0u16..70, 0u16..300]), 0..60),
        ) {
            let mut model = BTreeSet::new();
            let mut set = Set::new();
            for (insert, member) in steps {
                if insert {
                    prop_assert_eq!(set.insert(Member(member)), model.insert(member));
                } else {
                    set.remove(Member(member));
                    model.remove(&member);
                }
                prop_assert_eq!(set.contains(Member(member)), insert);
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
            }
            let listed: Vec<u16> = set.iter().map(|member| member.0).collect();
            prop_assert!(listed.iter().eq(model.iter()));
            let again: Set = set.iter().collect();
            prop_assert_eq!(again, set);
        }
    }

    #[test]
    fn a_group_of_64_costs_no_allocation() {
        let set: Set = (0..64).map(Member).collect();
        assert_eq!((set.len(), set.more.capacity()), (64, 0));
    }
}
