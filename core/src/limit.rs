//! Limit: how many at once, exactly; and who waits for the next place.
//!
//! A limit that several threads share is either exact or a suggestion. Counting up first and down again when it was too
//! much is not exact: for a moment the count is above the limit, and others are refused a place that nobody has. So a
//! place is taken with a compare-exchange that never writes a number above the limit. The limit itself comes with every
//! call: it is a setting, or what [`adaptive`](crate::adaptive) thinks of it, or the part that a
//! [`Priority`](crate::shed::Priority) may use.
//!
//! What lasts is counted apart ([`Places`]): a tunnel or a stream that is open for hours would otherwise use up the limit
//! while it costs nearly nothing.
//!
//! [`Queue`] is the order in which requests wait. First come, first served is fair as long as everybody is
//! served in the end. When the queue has not been empty for [`STANDING`], it is no longer a buffer for bursts but a delay
//! that all pay: then the youngest is served first, because it is the one whose client still waits, and newcomers wait
//! [`TARGET`] at most (the CoDel constants, as "Fail at Scale", ACM Queue 13(8), 2015, uses them for requests).
//!
//! What must stay true: granted places never exceed the limit they were granted under; every handle that was pushed
//! comes out exactly once, served, late or removed.

use std::{collections::VecDeque, time::Duration};

use crate::{
    deadline::Deadline,
    moment::Moment,
    sync::{AtomicU32, Ordering},
};

/// The number of places that are taken, shared by all threads.
#[derive(Debug)]
// Written twice per request by every worker; see `balance::Load` for the alignment.
#[repr(align(128))]
pub struct Limit {
    in_flight: AtomicU32,
}

impl Limit {
    /// Nothing taken.
    #[must_use]
    pub fn new() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
        }
    }

    /// Takes a place if fewer than `limit` are taken. Every `true` must be followed by one [`Limit::release`]; prefer
    /// [`Seat::take`], which cannot forget.
    #[must_use = "a place that was taken must be given back"]
    pub fn try_acquire(&self, limit: u32) -> bool {
        // Ordering: Relaxed; the count is all there is, it guards no other memory. Exactness comes from the exchange.
        let mut taken = self.in_flight.load(Ordering::Relaxed);
        while taken < limit {
            match self
                .in_flight
                .compare_exchange_weak(taken, taken + 1, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => taken = now,
            }
        }
        false
    }

    /// Gives a place back.
    pub fn release(&self) {
        // Ordering: Relaxed, as above; subtractions from one atomic are never lost.
        let before = self.in_flight.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a place was given back that nobody had");
    }

    /// Places taken at present. May exceed a limit that was lowered since.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        // Ordering: Relaxed; for gauges and estimates.
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<Self> for Limit {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// How long an exchange holds its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// A request and its answer.
    Brief,
    /// A tunnel, or a stream without end.
    Lasting,
}

/// The places under one limit, counted apart by how long they are held. As many of either kind as the limit says.
#[derive(Debug, Default)]
pub struct Places {
    brief: Limit,
    lasting: Limit,
}

impl Places {
    /// The places of one kind.
    #[must_use]
    pub const fn of(&self, stay: Stay) -> &Limit {
        match stay {
            Stay::Brief => &self.brief,
            Stay::Lasting => &self.lasting,
        }
    }

    /// Moves one that turned out to last, unless there are too many of those: then it stays where it is.
    #[must_use = "a place that was moved is given back where it is now"]
    pub fn move_to_lasting(&self, limit: u32) -> bool {
        let moved = self.lasting.try_acquire(limit);
        if moved {
            self.brief.release();
        }
        moved
    }
}

/// A place under a limit; dropping it gives the place back. `H` is how the limit is held: `&Limit`, `Arc<Limit>`.
#[derive(Debug)]
#[must_use = "dropping a seat gives the place back at once"]
pub struct Seat<H: AsRef<Limit>> {
    held: H,
}

impl<H: AsRef<Limit>> Seat<H> {
    /// Takes a place of `of` if fewer than `limit` are taken.
    pub fn take(of: H, limit: u32) -> Option<Self> {
        // The seat is made only when there is one: its drop gives back.
        of.as_ref().try_acquire(limit).then(|| Self { held: of })
    }
}

impl<H: AsRef<Limit>> Drop for Seat<H> {
    fn drop(&mut self) {
        self.held.as_ref().release();
    }
}

/// Until when a request may wait for a place: `queue_timeout`, but no longer than a quarter of what is left, so that the
/// rest suffices for an answer.
#[must_use]
pub fn wait_until(queue_timeout: Duration, deadline: Deadline, now: Moment) -> Moment {
    let longest = deadline
        .left(now)
        .map_or(queue_timeout, |left| queue_timeout.min(left / 4));
    now.plus(longest)
}

/// Who waits, in the order in which they are served. `T` is a handle of the waiter.
#[derive(Debug)]
pub struct Queue<T> {
    /// Oldest first; tickets ascend.
    waiting: VecDeque<Waiting<T>>,
    next: u64,
    /// When the queue was last empty; meaningless while it is.
    began: Moment,
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: u64,
    handle: T,
    since: Moment,
    until: Moment,
}

/// Names one waiter of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    number: u64,
    until: Moment,
}

impl Ticket {
    /// When its time is over.
    #[must_use]
    pub const fn until(self) -> Moment {
        self.until
    }
}

impl<T> Queue<T> {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            next: 0,
            began: Moment::ZERO,
        }
    }

    /// How many wait, those past their time included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the queue has not been empty for [`STANDING`]: it serves the youngest first and lets newcomers wait
    /// [`TARGET`] at most.
    #[must_use]
    pub fn is_standing(&self, now: Moment) -> bool {
        !self.is_empty() && now.since(self.began) >= STANDING
    }

    /// Waits until `until`, or [`TARGET`] if that is sooner and the queue stands. The ticket serves [`Queue::remove`].
    ///
    /// # Errors
    /// The handle, if `capacity` wait already. Those past their time count until they are taken out, so call
    /// [`Queue::expire`] before refusing somebody.
    pub fn push(&mut self, handle: T, until: Moment, capacity: usize, now: Moment) -> Result<Ticket, T> {
        if self.waiting.len() >= capacity {
            return Err(handle);
        }
        let until = if self.is_standing(now) {
            until.min(now.plus(TARGET))
        } else {
            until
        };
        if self.is_empty() {
            self.began = now;
        }
        let ticket = self.next;
        self.next += 1;
        self.waiting.push_back(Waiting {
            ticket,
            handle,
            since: now,
            until,
        });
        Ok(Ticket {
            number: ticket,
            until,
        })
    }

    /// The one to be served now, and how long it waited. Those met on the way whose time is over go to `late`.
    pub fn pop(&mut self, now: Moment, late: impl FnMut(T)) -> Option<(T, Duration)> {
        let standing = self.is_standing(now);
        self.drop_late(standing, now, late);
        let waiting = if standing {
            self.waiting.pop_back()
        } else {
            self.waiting.pop_front()
        }?;
        Some((waiting.handle, now.since(waiting.since)))
    }

    /// The one that [`Queue::pop`] would give, left where it is.
    pub fn front(&mut self, now: Moment, late: impl FnMut(T)) -> Option<(Ticket, &T)> {
        let standing = self.is_standing(now);
        self.drop_late(standing, now, late);
        let waiting = if standing {
            self.waiting.back()
        } else {
            self.waiting.front()
        }?;
        let ticket = Ticket {
            number: waiting.ticket,
            until: waiting.until,
        };
        Some((ticket, &waiting.handle))
    }

    /// Takes out whoever is to be served next as long as its time is over.
    fn drop_late(&mut self, standing: bool, now: Moment, mut late: impl FnMut(T)) {
        let is_late = |waiting: &mut Waiting<T>| waiting.until <= now;
        while let Some(waiting) = if standing {
            self.waiting.pop_back_if(is_late)
        } else {
            self.waiting.pop_front_if(is_late)
        } {
            late(waiting.handle);
        }
    }

    /// Takes out all whose time is over, oldest first.
    pub fn expire(&mut self, now: Moment, mut late: impl FnMut(T)) {
        // Waiting times differ, so everyone is looked at; the order of those who stay does not change.
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            if waiting.until > now {
                self.waiting.push_back(waiting);
            } else {
                late(waiting.handle);
            }
        }
    }

    /// When the next waiter's time is over; `None` if nobody waits.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Moment> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// Takes out the one that came last.
    pub fn pop_last(&mut self) -> Option<T> {
        self.waiting.pop_back().map(|waiting| waiting.handle)
    }

    /// Takes out one who no longer wants to wait; `None` if it was served or late before.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let index = self
            .waiting
            .binary_search_by_key(&ticket.number, |waiting| waiting.ticket)
            .ok()?;
        self.waiting.remove(index).map(|waiting| waiting.handle)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A queue that has not been empty for this long stands: it no longer buffers a burst.
pub const STANDING: Duration = Duration::from_millis(100);

/// How long a newcomer of a standing queue may wait.
pub const TARGET: Duration = Duration::from_millis(5);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn push(queue: &mut Queue<u32>, who: u32, until: u64, now: u64) -> Ticket {
        queue.push(who, at(until), 10, at(now)).unwrap()
    }

    fn pop(queue: &mut Queue<u32>, now: u64) -> (Option<u32>, Vec<u32>) {
        let mut late = Vec::new();
        let served = queue.pop(at(now), |who| late.push(who));
        (served.map(|(who, _)| who), late)
    }

    #[test]
    fn as_many_as_the_limit_says_and_no_more() {
        let limit = Limit::new();
        let seats: Vec<_> = (0..3).filter_map(|_| Seat::take(&limit, 2)).collect();
        assert_eq!((seats.len(), limit.in_flight()), (2, 2));
        drop(seats);
        assert_eq!(limit.in_flight(), 0);
        assert!(Seat::take(&limit, 0).is_none());
    }

    #[test]
    fn a_lowered_limit_lets_nobody_in_until_enough_have_left() {
        let limit = Arc::new(Limit::new());
        let first = Seat::take(Arc::clone(&limit), 3);
        let second = Seat::take(Arc::clone(&limit), 3);
        assert!(Seat::take(Arc::clone(&limit), 1).is_none());
        drop(first);
        assert!(Seat::take(Arc::clone(&limit), 1).is_none());
        drop(second);
        assert!(Seat::take(limit, 1).is_some());
    }

    #[test]
    fn scenario_45_threads_never_exceed_the_limit_together() {
        let limit = Limit::new();
        let inside = std::sync::atomic::AtomicU32::new(0);
        let granted = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if let Some(seat) = Seat::take(&limit, 3) {
                            let with_me = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(with_me <= 3, "{with_me} inside");
                            inside.fetch_sub(1, Ordering::SeqCst);
                            granted.fetch_add(1, Ordering::SeqCst);
                            drop(seat);
                        }
                    }
                });
            }
        });
        assert_eq!(limit.in_flight(), 0);
        assert!(granted.into_inner() >= 50_000);
    }

    #[test]
    fn waiting_takes_a_quarter_of_what_is_left_at_most() {
        let second = Duration::from_secs(1);
        assert_eq!(wait_until(second, Deadline::NEVER, at(5)), at(1005));
        assert_eq!(wait_until(second, Deadline::after(at(5), second), at(5)), at(255));
        assert_eq!(wait_until(second, Deadline::at(at(1)), at(5)), at(5));
    }

    #[test]
    fn a_burst_is_served_in_order() {
        let mut queue = Queue::new();
        for who in 0..3 {
            push(&mut queue, who, 1000, 0);
        }
        assert_eq!(pop(&mut queue, 99), (Some(0), vec![]));
        assert_eq!(queue.pop(at(99), drop), Some((1, Duration::from_millis(99))));
    }

    #[test]
    fn a_standing_queue_serves_the_youngest_first() {
        let mut queue = Queue::new();
        for who in 0..3 {
            push(&mut queue, who, 1000, u64::from(who));
        }
        assert!(!queue.is_standing(at(99)));
        assert!(queue.is_standing(at(100)));
        push(&mut queue, 3, 1000, 101);
        assert_eq!(pop(&mut queue, 102), (Some(3), vec![]));
        assert_eq!(pop(&mut queue, 102), (Some(2), vec![]));
    }

    #[test]
    fn newcomers_of_a_standing_queue_wait_five_milliseconds() {
        let mut queue = Queue::new();
        push(&mut queue, 0, 1000, 0);
        push(&mut queue, 1, 1000, 200);
        push(&mut queue, 2, 203, 200);
        assert_eq!(queue.next_expiry(), Some(at(203)));
        assert_eq!(pop(&mut queue, 205), (Some(0), vec![2, 1]));
    }

    #[test]
    fn the_front_is_the_one_that_would_be_served() {
        let mut queue = Queue::new();
        push(&mut queue, 0, 50, 0);
        let first = push(&mut queue, 1, 1000, 0);
        let last = push(&mut queue, 2, 1000, 0);
        let front =
            |queue: &mut Queue<u32>, now| queue.front(at(now), drop).map(|(ticket, who)| (ticket, *who));
        assert_eq!(front(&mut queue, 49).map(|(_, who)| who), Some(0));
        assert_eq!(
            front(&mut queue, 50),
            Some((first, 1)),
            "late ones are in nobody's way"
        );
        assert_eq!(front(&mut queue, 100), Some((last, 2)), "it stands");
        assert_eq!(queue.len(), 2);
        assert_eq!(pop(&mut queue, 100), (Some(2), vec![]));
        assert_eq!(first.until(), at(1000));
    }

    #[test]
    fn what_lasts_is_counted_apart() {
        let places = Places::default();
        assert!(places.of(Stay::Brief).try_acquire(1));
        assert!(places.move_to_lasting(1));
        assert!(places.of(Stay::Brief).try_acquire(1), "its place is free again");
        assert!(!places.move_to_lasting(1), "there are as many as may be");
        assert_eq!(places.of(Stay::Brief).in_flight(), 1);
        places.of(Stay::Lasting).release();
        assert!(places.move_to_lasting(1));
    }

    #[test]
    fn an_empty_moment_ends_the_standing() {
        let mut queue = Queue::new();
        let ticket = push(&mut queue, 0, 1000, 0);
        assert_eq!(queue.remove(ticket), Some(0));
        push(&mut queue, 1, 1000, 100);
        push(&mut queue, 2, 1000, 150);
        assert_eq!(pop(&mut queue, 199), (Some(1), vec![]));
    }

    #[test]
    fn a_full_queue_gives_the_handle_back() {
        let mut queue = Queue::new();
        push(&mut queue, 0, 10, 0);
        assert_eq!(queue.push(1, at(10), 1, at(0)), Err(1));
        assert_eq!(queue.push(1, at(10), 0, at(0)), Err(1));
        let mut late = Vec::new();
        queue.expire(at(10), |who| late.push(who));
        assert_eq!((late, queue.is_empty()), (vec![0], true));
    }

    #[test]
    fn one_who_left_is_not_served() {
        let mut queue = Queue::new();
        let tickets: Vec<_> = (0..3).map(|who| push(&mut queue, who, 1000, 0)).collect();
        assert_eq!(queue.remove(tickets[1]), Some(1));
        assert_eq!(queue.remove(tickets[1]), None);
        assert_eq!(pop(&mut queue, 1), (Some(0), vec![]));
        assert_eq!(queue.remove(tickets[0]), None);
        assert_eq!(pop(&mut queue, 1), (Some(2), vec![]));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Pop,
        Expire,
        Remove(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..400).prop_map(Step::Push),
            2 => Just(Step::Pop),
            1 => Just(Step::Expire),
            1 => (0usize..50).prop_map(Step::Remove),
            2 => (0u64..120).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn every_handle_comes_out_once_and_nobody_is_served_late(steps in proptest::collection::vec(step(), 1..200)) {
            let mut queue = Queue::new();
            let mut now = 0;
            let mut untils = Vec::new();
            let mut tickets = Vec::new();
            let mut out = Vec::new();
            for step in steps {
                match step {
                    Step::Push(patience) => {
                        let who = untils.len() as u32;
                        if let Ok(ticket) = queue.push(who, at(now + patience), 8, at(now)) {
                            untils.push(now + patience);
                            tickets.push(ticket);
                        } else {
                            prop_assert_eq!(queue.len(), 8);
                        }
                    }
                    Step::Pop => {
                        let mut late = Vec::new();
                        if let Some((who, _)) = queue.pop(at(now), |who| late.push(who)) {
                            prop_assert!(now < untils[who as usize]);
                            out.push(who);
                        }
                        out.extend(late);
                    }
                    Step::Expire => {
                        queue.expire(at(now), |who| out.push(who));
                        prop_assert!(queue.next_expiry().is_none_or(|next| next > at(now)));
                    }
                    Step::Remove(index) => {
                        if let Some(ticket) = tickets.get(index) {
                            out.extend(queue.remove(*ticket));
                        }
                    }
                    Step::Wait(millis) => now += millis,
                }
                prop_assert!(queue.len() <= 8);
            }
            queue.expire(Moment::FAR_FUTURE, |who| out.push(who));
            out.sort_unstable();
            prop_assert_eq!(out, (0..untils.len() as u32).collect::<Vec<_>>());
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_one_place_is_never_taken_twice() {
        loom::model(|| {
            let limit = Arc::new(Limit::new());
            let other = Arc::clone(&limit);
            let thread = thread::spawn(move || other.try_acquire(1));
            let mine = limit.try_acquire(1);
            let theirs = thread.join().unwrap();
            assert!(mine != theirs, "mine {mine}, theirs {theirs}");
            assert_eq!(limit.in_flight(), 1);
            limit.release();
            assert_eq!(limit.in_flight(), 0);
        });
    }

    #[test]
    fn loom_a_place_given_back_can_be_taken_and_none_leaks() {
        loom::model(|| {
            let limit = Arc::new(Limit::new());
            let other = Arc::clone(&limit);
            let thread = thread::spawn(move || {
                for _ in 0..2 {
                    if other.try_acquire(1) {
                        other.release();
                    }
                }
            });
            if limit.try_acquire(1) {
                limit.release();
            }
            thread.join().unwrap();
            assert_eq!(limit.in_flight(), 0);
            assert!(limit.try_acquire(1));
        });
    }
}
