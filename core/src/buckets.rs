//! Buckets: one [`Bucket`] for each key, and not more of them than may be.
//!
//! Keys come from clients, so their number has no bound of its own: whoever sends a new value with every request would
//! fill the memory. When the place is used up, a hand goes round (the *clock* of page caches): a bucket that was drawn from
//! again since the hand came by last stays once more, one that is full is forgotten at no cost, and any other is forgotten with
//! what it owed, which is counted. So those who come often are remembered, and a flood of new keys forgets itself.
//!
//! The rate comes with every call. A shard that meets another one than before translates its buckets, so a reload keeps
//! what was used.
//!
//! Keys must be hashes that clients cannot choose; they are not hashed again.
//!
//! What must stay true: at most `max_keys`, rounded up to a multiple of [`SHARDS`], are remembered; a key that is
//! remembered gets what its rate says and no more.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::PoisonError;

use crate::moment::Moment;
use crate::rate::{Bucket, Rate, Remaining, RetryAfter};
use crate::sync::{Mutex, MutexGuard};

/// The buckets of one limit, shared by all threads.
#[derive(Debug, Default)]
pub struct Buckets {
    shards: [Mutex<Shard>; SHARDS],
}

/// In how many parts the keys are kept, each with a lock of its own that is held for some tens of nanoseconds.
pub const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    /// Where a key's bucket is.
    places: HashMap<u64, usize, BuildHasherDefault<AsItIs>>,
    kept: Vec<Kept>,
    hand: usize,
    /// The rate that the buckets are kept in.
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Kept {
    key: u64,
    bucket: Bucket,
    /// Drawn from again since the hand came by.
    used: bool,
}

/// What a draw led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// What is left, or when to come again.
    pub result: Result<Remaining, RetryAfter>,
    /// Keys that had to be forgotten although they owed something.
    pub evicted: u32,
}

impl Buckets {
    /// No key is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one request's worth from the bucket of `key`.
    pub fn take(&self, key: u64, rate: &Rate, max_keys: u32, now: Moment) -> Drawn {
        let mut shard = self.shard(key);
        shard.translate(rate, now);
        let (place, evicted) = shard.place(key, max_keys, now);
        let kept = &shard.kept[place];
        Drawn {
            result: kept.bucket.take(rate, now),
            evicted,
        }
    }

    /// Gives back what a [`Buckets::take`] took, because another limit refused the request.
    pub fn put_back(&self, key: u64, rate: &Rate, now: Moment) {
        let mut shard = self.shard(key);
        shard.translate(rate, now);
        if let Some(place) = shard.places.get(&key) {
            shard.kept[*place].bucket.put_back(rate);
        }
    }

    /// How many keys are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).kept.len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // The map looks at both ends of the key; these are bits between.
        lock(&self.shards[(key >> 40) as usize % SHARDS])
    }
}

/// A panic while it was held left whole buckets behind.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn translate(&mut self, rate: &Rate, now: Moment) {
        if self.rate == Some(*rate) {
            return;
        }
        if let Some(before) = self.rate.replace(*rate) {
            for kept in &self.kept {
                kept.bucket.rescale(&before, rate, now);
            }
        }
    }

    /// The place of the bucket of `key`, and how many others were forgotten for it.
    fn place(&mut self, key: u64, max_keys: u32, now: Moment) -> (usize, u32) {
        if let Some(place) = self.places.get(&key) {
            self.kept[*place].used = true;
            return (*place, 0);
        }
        let room = (max_keys as usize).div_ceil(SHARDS).max(1);
        let mut evicted = 0;
        // More than one only after `max_keys` was lowered.
        while self.kept.len() > room {
            evicted += u32::from(self.forget(now));
            let last = self.kept.swap_remove(self.hand);
            self.places.remove(&last.key);
            if let Some(moved) = self.kept.get(self.hand) {
                self.places.insert(moved.key, self.hand);
            }
        }
        let fresh = Kept {
            key,
            bucket: Bucket::new(),
            // The first draw is no sign that there will be another.
            used: false,
        };
        let place = if self.kept.len() < room {
            self.kept.push(fresh);
            self.kept.len() - 1
        } else {
            evicted += u32::from(self.forget(now));
            let before = std::mem::replace(&mut self.kept[self.hand], fresh);
            self.places.remove(&before.key);
            self.hand
        };
        self.places.insert(key, place);
        (place, evicted)
    }

    /// Moves the hand on to the one to be forgotten, and says whether it owes something. Ends after two rounds: the first
    /// takes all marks away.
    fn forget(&mut self, now: Moment) -> bool {
        loop {
            self.hand = (self.hand + 1) % self.kept.len();
            let kept = &mut self.kept[self.hand];
            if kept.bucket.is_full(now) {
                return false;
            }
            if !std::mem::take(&mut kept.used) {
                return true;
            }
        }
    }
}

/// Keys are hashes already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used for 64-bit keys.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use proptest::prelude::*;
    use std::{num::NonZeroU32, time::Duration};

    fn rate(count: u32, seconds: u64, burst: u32) -> Rate {
        let number = |number| NonZeroU32::new(number).unwrap();
        Rate::new(number(count), Duration::from_secs(seconds), number(burst))
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    /// Hashes as a shell would make them.
    fn key(number: u64) -> u64 {
        Dice::new(number).next_u64()
    }

    fn granted(buckets: &Buckets, key: u64, rate: &Rate, now: Moment, asked: u32) -> usize {
        let asked = (0..asked).filter(|_| buckets.take(key, rate, 100, now).result.is_ok());
        asked.count()
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let (buckets, rate) = (Buckets::new(), rate(1, 1, 3));
        assert_eq!(granted(&buckets, key(1), &rate, at(1), 9), 3);
        assert_eq!(granted(&buckets, key(2), &rate, at(1), 9), 3);
        assert_eq!(granted(&buckets, key(1), &rate, at(1001), 9), 1);
        assert_eq!(buckets.len(), 2);
    }

    #[test]
    fn what_is_put_back_can_be_taken_again() {
        let (buckets, rate) = (Buckets::new(), rate(1, 60, 1));
        assert_eq!(granted(&buckets, key(1), &rate, at(1), 2), 1);
        buckets.put_back(key(1), &rate, at(1));
        buckets.put_back(key(2), &rate, at(1));
        assert_eq!(granted(&buckets, key(1), &rate, at(1), 2), 1);
        assert_eq!(buckets.len(), 1, "nothing is remembered of one who took nothing");
    }

    #[test]
    fn another_rate_keeps_the_number_of_requests_used() {
        let buckets = Buckets::new();
        assert_eq!(granted(&buckets, key(1), &rate(1, 3600, 10), at(1), 6), 6);
        assert_eq!(granted(&buckets, key(1), &rate(1, 60, 10), at(1), 20), 4);
    }

    #[test]
    fn a_flood_of_keys_has_no_more_room_than_there_is_and_spares_who_comes_often() {
        let (buckets, rate) = (Buckets::new(), rate(1, 3600, 2));
        let regular = key(1_000_000);
        let mut evicted = 0;
        let mut passed = 0;
        for number in 0..5000 {
            let now = at(1 + number);
            evicted += buckets.take(key(number), &rate, 160, now).evicted;
            if number % 4 == 0 {
                passed += u32::from(buckets.take(regular, &rate, 160, now).result.is_ok());
            }
        }
        assert!(buckets.len() <= 160, "{}", buckets.len());
        assert!(evicted > 4000, "{evicted}");
        assert_eq!(passed, 2, "remembered through the flood");
    }

    #[test]
    fn forgetting_a_full_bucket_costs_nothing() {
        let (buckets, rate) = (Buckets::new(), rate(1000, 1, 1));
        let evicted: u32 = (0..5000)
            .map(|number| buckets.take(key(number), &rate, 16, at(number * 10)).evicted)
            .sum();
        assert_eq!(evicted, 0);
        assert!(buckets.len() <= 16);
    }

    #[test]
    fn fewer_keys_than_before_leave_in_time() {
        let (buckets, rate) = (Buckets::new(), rate(1, 3600, 2));
        for number in 0..1000 {
            buckets.take(key(number), &rate, 1000, at(1));
        }
        for number in 1000..1200 {
            buckets.take(key(number), &rate, 32, at(1));
        }
        assert!(buckets.len() <= 32, "{}", buckets.len());
        assert_eq!(
            granted(&buckets, key(1199), &rate, at(1), 5),
            1,
            "the newest is one of them"
        );
    }

    #[test]
    fn threads_share_one_bucket() {
        let (buckets, rate) = (Buckets::new(), rate(1, 3600, 500));
        let sum: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| granted(&buckets, key(1), &rate, at(1), 1000)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(sum, 500);
    }

    proptest! {
        /// Where no key has to be forgotten, every key gets exactly what a bucket of its own would give.
        #[test]
        fn with_room_for_all_it_is_a_map(
            steps in proptest::collection::vec((0u64..20, 0u64..300), 1..300),
            count in 1u32..50,
            burst in 1u32..10,
        ) {
            let (buckets, rate) = (Buckets::new(), rate(count, 1, burst));
            let alone: Vec<Bucket> = (0..20).map(|_| Bucket::new()).collect();
            let mut now = at(1);
            for (number, pause) in steps {
                now = now.plus(Duration::from_millis(pause));
                let drawn = buckets.take(key(number), &rate, 10_000, now);
                prop_assert_eq!(drawn.result, alone[number as usize].take(&rate, now));
                prop_assert_eq!(drawn.evicted, 0);
            }
        }
    }
}
